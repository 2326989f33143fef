# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""Residues by name, such as `A52A`: the chain's name, and the file's own number with its insertion code.

What people and papers call a residue. A position counts the residues of a chain from 1.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from .chain import Chain

NUMBERINGS = ("file", "sequence")
_LISTED = 6  # chains, residues or readings that a message names
_NUMBER = re.compile(r"(-?\d+)[A-Za-z]?$")
_NO_HYPHEN = r":|\.\.+|[–—]"  # what others write between the ends of a range


class AbsentChainError(ValueError):
    """A residue, range or chain is written with a chain that is not there."""


def choose_numbering(numbering: str | None = None, offset: int | None = None) -> tuple[str, int]:
    """How residues are numbered, `"file"` or `"sequence"`, and the first position of a chain.

    Args:
        numbering: `"file"`, the file's own numbers, or `"sequence"`, positions. None: positions if there is an
            `offset`, else the file's own.
        offset: position of a chain's first residue, 1 by default.

    Raises:
        ValueError: there is no such numbering, or an offset of the file's own numbers.
    """
    if numbering not in (None, *NUMBERINGS):
        raise ValueError(f"`numbering` is {numbering!r}; choose one of {', '.join(NUMBERINGS)}.")
    if numbering == "file" and offset is not None:
        raise ValueError(
            f"`offset` is {offset}, but the file's own numbers are not counted; leave it out, or choose "
            "numbering='sequence' (--numbering sequence)."
        )
    return numbering or ("file" if offset is None else "sequence"), 1 if offset is None else offset


class ResidueNumbers:
    """What the residues of chains are called, and which residue a name is.

    A name is a number with the chain's name in front: `A52A`, or `A1/52A` where the chain's name ends in a digit. It is
    read with `/` and without, and without the chain's name where one residue alone has the number.

    Args:
        records: a chain, a complex, or a row of a data set; or several, such as all chains of a file, whose residues
            are then counted on.
        numbering, offset: as of `choose_numbering`. Chains without numbers of a file, as of FASTA, are counted in any
            case.

    Attributes:
        sequence: letters of the L residues.
        chain_names: of each chain, `""` where it is not known: of a chain that is not in a complex it is what follows
            the last `_` of the id, if it has numbers of a file.
        chain_lengths, chain_starts: of each chain its residues, and the index of the first.
        chain_index: int64 (L,), number of the chain that a residue belongs to, from 0.
        positions: int64 (L,), of each residue in its chain, the first one's is 1, or the offset.
        numbers: L texts, by the numbering, `""` where the file has none.
        numbering: `"file"` if any of them are a file's own, else `"sequence"`.
        gaps_before: bool (L,), residues before which others are missing in the chain, which the file does not name.
        jumps: bool (L,), these, and residues whose number is not the next after that of the residue before them in the
            chain. An insertion code is no jump.

    Raises:
        ValueError: `choose_numbering` says so, or a row has not a number for each residue.

    Examples:
        >>> row = {"id": "1ABC_H", "sequence": "MKVLA", "residue_numbers": ["52", "52A", "52B", "53", "54"]}
        >>> residues = ResidueNumbers(row)
        >>> residues.name(1), residues.find("H52A"), residues.select("H52A-H53 54")
        ('H52A', 1, [1, 2, 3, 4])
    """

    def __init__(
        self, *records: Chain | Mapping[str, Any], numbering: str | None = None, offset: int | None = None
    ) -> None:
        asked, first = choose_numbering(numbering, offset)
        self._records, self.offset = records, first
        self.sequence: list[str] = []
        self.numbers: list[str] = []
        self._places: list[int] = []  # along a chain, with a gap where the file's sequence has one
        self._of_file: list[bool] = []  # whether chains have numbers of the file
        self._names: list[str] = []
        names: list[str] = []
        lengths: list[int] = []
        for record in records:
            row: Mapping[str, Any] = record if isinstance(record, Mapping) else vars(record)
            self.sequence += list(row["sequence"])
            for name, own, places in _chains_of(row):
                self._places += places
                counted = [str(first + place) for place in range(len(own))]
                self._of_file.append(any(own))
                own = own if any(own) else counted
                self.numbers += own if asked == "file" else counted
                self._names += [_join(name, number) if number else "" for number in own]
                names.append(name)
                lengths.append(len(own))
        self.numbering = asked if any(self._of_file) else "sequence"
        self.chain_names, self.chain_lengths = tuple(names), tuple(lengths)
        self.chain_starts = tuple(accumulate(lengths[:-1], initial=0))
        self.chain_index = np.repeat(np.arange(len(lengths)), lengths)
        self.positions = first + np.concatenate([np.arange(size) for size in lengths])
        self.gaps_before = np.array([self._is_gap(index) for index in range(len(self))])
        self.jumps = self.gaps_before | [self._step(index) not in (0, 1) for index in range(len(self))]
        self._by_text: dict[str, list[int]] = {}
        for index, number in enumerate(self.numbers):
            chain = self.chain_name(index)
            for text in {number, chain + number, f"{chain}/{number}"} if number else ():
                self._by_text.setdefault(text, []).append(index)
        if len(names) == 1:  # 12 of a chain that is called 1 is no residue 2
            self._by_text |= {number: [index] for index, number in enumerate(self.numbers) if number}

    def __len__(self) -> int:
        return len(self.sequence)

    def chain_name(self, index: int) -> str:
        """Name of the chain that a residue belongs to, `""` where it is not known."""
        return self.chain_names[self.chain_index[index]]

    def name(self, index: int) -> str:
        """Of a residue: chain and the file's own number, whatever the numbering; `""` where the file has none.

        Of chains without numbers of a file the position is the number.
        """
        return self._names[index]

    def describe(self, index: int) -> str:
        """A residue with both of its numbers, for messages: `H195 (position 181 of chain H)`."""
        chain = self.chain_name(index)
        place = f"position {self.positions[index]} of {f'chain {chain}' if chain else 'the chain'}"
        return f"{self.name(index)} ({place})" if self._of_file[self.chain_index[index]] and self.name(index) else place

    def readings(self, text: str) -> list[int]:
        """All residues that a name may be of; small letters are read as insertion codes, too, as in SKEMPI."""
        if found := self._by_text.get(text):
            return found
        return self._by_text.get(text[:-1] + text[-1:].swapcase(), []) if text[-2:-1].isdigit() else []

    def find(self, text: str, written: str = "{}") -> int:
        """Index of the residue that has this name; `written` is how a message writes what a residue stands in.

        Raises:
            ValueError: there is none, or several, which the message names.
        """
        found = self.readings(text)
        if not found:
            raise self._absent(text)
        if len(found) > 1:
            meant = [(self.describe(index), written.format(self._spell(index))) for index in found]
            raise ValueError(self._ambiguous(text, meant))
        return found[0]

    def select(self, text: str | Sequence[str]) -> list[int]:
        """Indices of residues, as users of ProteinMPNN, LigandMPNN and RFdiffusion write them: `A10-A20 A52A B`.

        Args:
            text: residues, ranges and whole chains, with blanks or commas between. A range is in the order of the file,
                both ends included: `A52-A53` (or `A52-53`) has 52A and 52B in it. A chain may be written `A/`, too.

        Returns:
            Each index once, in the order of the text.

        Raises:
            ValueError: something in it is no residue, range or chain, or may be read in several ways.
            AbsentChainError: a chain in it is not there.
        """
        words = text if isinstance(text, str) else " ".join(text)
        chosen: dict[int, None] = {}
        errors = []
        for part in _parts(words):
            try:
                chosen |= dict.fromkeys(self._read_part(part))
            except ValueError as error:
                errors.append(error)
        if errors:
            raise type(errors[0])(f"Residues {words!r}: {' '.join(map(str, errors))}")
        if not chosen:
            raise ValueError(f"Residues {words!r}: there are none; write some like {self._example()}.")
        return list(chosen)

    def missing(self, text: str | Sequence[str]) -> list[str]:
        """What ranges of a selection skip, since a file without its sequence does not have it: `["A1226 to A1234"]`.

        Of a whole chain, and where the numbers jump between neighbors, nothing is missing.
        """
        found: dict[str, None] = {}
        for part in _parts(text if isinstance(text, str) else " ".join(text)):
            whole = part.removesuffix("/") in self.chain_names
            found |= dict.fromkeys(self._gaps([] if whole else list(self._read_part(part))[1:]))
        return list(found)

    def gaps(self) -> list[str]:
        """What all chains miss, as of `missing`: where residues are gone, not where only the numbers jump."""
        return list(self._gaps(range(len(self))))

    def _gaps(self, indices: Iterable[int]) -> Iterator[str]:
        for index in indices:
            if self.gaps_before[index]:
                between = f"what is between {self._spell(index - 1)} and {self._spell(index)}"
                yield self._skipped(index) or between

    def ranges(self, indices: Iterable[int]) -> list[str]:
        """Residues as `select` takes them, neighbors in a chain as ranges: `["A980-A990", "B5"]`."""
        runs: list[list[int]] = []
        for index in sorted(indices):
            if runs and index == runs[-1][1] + 1 and self.chain_index[index] == self.chain_index[index - 1]:
                runs[-1][1] = index
            else:
                runs.append([index, index])
        texts = []
        for first, last in runs:
            ends = [
                self._spell(end) if self.numbers[end] else self.describe(end) for end in dict.fromkeys((first, last))
            ]
            texts.append("-".join(ends) if all(self.numbers[end] for end in (first, last)) else " to ".join(ends))
        return texts

    def other(self) -> "ResidueNumbers | None":
        """The same residues by the other numbering; None where the file has no numbers."""
        if not any(self._of_file):
            return None
        return ResidueNumbers(*self._records, numbering="sequence" if self.numbering == "file" else "file")

    def _read_part(self, part: str) -> Iterable[int]:
        found: list[tuple[range, str, str]] = []  # indices, what they are, and how to write that
        for index in self.readings(part):
            found.append((range(index, index + 1), self.describe(index), self._spell(index)))
        for name, size, start in zip(self.chain_names, self.chain_lengths, self.chain_starts, strict=True):
            if name and part in (name, f"{name}/") and not (found and len(self.chain_names) == 1):
                found.append((range(start, start + size), f"chain {name}", f"{name}/"))
        apart = ""
        for first, last in ((part[:i], part[i + 1 :]) for i, sign in enumerate(part) if sign == "-" and i):
            for start in self.readings(first):
                for end in self.readings(last):
                    if self.chain_index[start] != self.chain_index[end]:
                        apart = apart or f"{part} goes from one chain to another; write a range of each"
                    elif start > end:
                        right = f"{self._spell(end)}-{self._spell(start)}"
                        apart = f"{part} is backwards, {last} comes before {first} in the file; write {right}"
                    else:
                        described = f"{self.describe(start)} to {self.describe(end)}"
                        found.append((range(start, end + 1), described, f"{self._spell(start)}-{self._spell(end)}"))
        if len(found) > 1:
            raise ValueError(self._ambiguous(part, [(described, spelled) for _, described, spelled in found]))
        if not found and not apart and (meant := self._as_meant(part)):
            raise ValueError(f"{part} is no residue, range or chain; write {meant}.")
        if not found:
            raise ValueError(f"{apart}.") if apart else self._absent(part)
        return found[0][0]

    def _spell(self, index: int) -> str:
        """How a residue is written so that no other one can be meant."""
        chain, number = self.chain_name(index), self.numbers[index]
        text = _join(chain, number)
        return text if len(self.readings(text)) == 1 and text not in self.chain_names else f"{chain}/{number}"

    def _example(self) -> str:
        index = next((index for index, number in enumerate(self.numbers) if number), 0)
        return self._spell(index)

    def _ambiguous(self, text: str, readings: Sequence[tuple[str, str]]) -> str:
        more = f" or {len(readings) - _LISTED} more" if len(readings) > _LISTED else ""
        described, spelled = (" or ".join(each[:_LISTED]) for each in zip(*readings, strict=True))
        return f"{text} may be {described}{more}; write {spelled}."

    def _step(self, index: int) -> int:
        """How far a residue's number is from that of the residue before it in the chain; 1 where one is not known."""
        if not index or self.chain_index[index] != self.chain_index[index - 1]:
            return 1
        last, here = (_NUMBER.match(self.numbers[each]) for each in (index - 1, index))
        return int(here[1]) - int(last[1]) if last and here else 1

    def _is_gap(self, index: int) -> bool:
        """Whether residues are missing before this one of its chain."""
        inside = index > 0 and self.chain_index[index] == self.chain_index[index - 1]
        return inside and self._places[index] > self._places[index - 1] + 1

    def _skipped(self, index: int) -> str:
        """The numbers between this residue and the one before it: `A1226 to A1234`; `""` if there are none."""
        if (step := self._step(index)) < 2:
            return ""
        before = int(_whole(self.numbers[index - 1]))
        ends = [_join(self.chain_name(index), str(number)) for number in (before + 1, before + step - 1)]
        return " to ".join(dict.fromkeys(ends))

    def _numbers_in(self, text: str) -> list[tuple[int, int]]:
        """Of a text that is written as a residue, there or not: the chains it may be of, and the number in each."""
        found = []
        for chain, name in enumerate(self.chain_names):
            for front in {"", name, f"{name}/"}:
                if text.startswith(front) and (number := _NUMBER.match(text[len(front) :])):
                    found.append((chain, int(number[1])))
        return found

    def _absent(self, text: str) -> ValueError:
        """Why a text is no residue or range: what is on both sides of it, or what the chains have."""
        ends = [text]
        for first, last in ((text[:i], text[i + 1 :]) for i, sign in enumerate(text) if sign == "-" and i):
            absent = [end for end in (first, last) if end and not self.readings(end)]
            if (len(absent) == 1 and first and last) or (absent and all(map(self._numbers_in, (first, last)))):
                ends = absent
        for end in ends:
            if absent_chain := self._absent_chain(end):
                listed = ", ".join(map(repr, self.chain_names[:_LISTED]))
                more = f" and {len(self.chain_names) - _LISTED} more" if len(self.chain_names) > _LISTED else ""
                fix = f"only {listed}{more}; write it like {self._example()}"
                return AbsentChainError(f"there is no chain {absent_chain}, {fix}.")
        found = [self._in_gap(end) for end in ends]
        reasons = dict.fromkeys(filter(None, found))
        reasons |= dict.fromkeys([self._beyond(end) for end, gap in zip(ends, found, strict=True) if not gap][:1])
        fix = "" if all(map(self._numbers_in, ends)) else f"; write it like {self._example()}"
        if inside := self._inside(text):
            fix = f"; write {inside}"
        if (hyphens := re.sub(_NO_HYPHEN, "-", text)) != text:
            fix = f"; write a range with a hyphen, as {hyphens}"
        return ValueError(f"{'; '.join(reasons)}{fix}.")

    def _as_meant(self, text: str) -> str:
        """A residue or range that is written with other signs, such as `H:95-102`, as it is right; else `""`."""
        names = sorted(map(re.escape, filter(None, self.chain_names)), key=len, reverse=True)
        end = rf"(?:({'|'.join(names) or '(?!)'})[:/._-]?)?(-?\d+[A-Za-z]?)"
        if (match := re.fullmatch(rf"{end}(?:(?:{_NO_HYPHEN}|-){end})?", text)) is None:
            return ""
        first, number, second, last = match.groups()
        ends = [f"{name}/{number}" if name else number for name, number in ((first, number), (second or first, last))]
        found = [self.readings(end) for end in (ends if last else ends[:1])]
        if any(len(indices) != 1 for indices in found) or found[0] > found[-1]:
            return ""
        return "-".join(self._spell(index) for (index,) in found)

    def _inside(self, text: str) -> str:
        """Of a range with an end that is not there, the residues of one chain that are in it; else `""`."""
        found: list[str] = []
        for first, last in ((text[:i], text[i + 1 :]) for i, sign in enumerate(text) if sign == "-" and i):
            for chain, start in self._numbers_in(first):
                for end in (number for same, number in self._numbers_in(last) if same == chain):
                    own = self.chain_starts[chain] + np.arange(self.chain_lengths[chain])
                    bounds = [
                        min(self.readings(text), default=other) for text, other in ((first, -1), (last, len(self)))
                    ]
                    inside = [
                        index
                        for index in own.tolist()
                        if self.numbers[index]
                        and start <= int(_whole(self.numbers[index])) <= end
                        and bounds[0] <= index <= bounds[1]
                    ]
                    if inside and len(inside) == inside[-1] - inside[0] + 1:
                        found.append("-".join(dict.fromkeys(self._spell(inside[place]) for place in (0, -1))))
        return found[0] if len(found) == 1 else ""

    def _numbers_of(self, chain: int) -> list[str]:
        start = self.chain_starts[chain]
        return self.numbers[start : start + self.chain_lengths[chain]]

    def _in_gap(self, text: str) -> str:
        """Of a residue whose number is skipped within a chain, what is there on both sides; else `""`."""
        wanted, reasons = self._numbers_in(text), []
        for index in np.flatnonzero(self.jumps).tolist():
            if not (skipped := self._skipped(index)):
                continue
            before, after = (int(_whole(self.numbers[each])) for each in (index - 1, index))
            if any(chain == self.chain_index[index] and before < number < after for chain, number in wanted):
                verb, sides = "are" if " to " in skipped else "is", map(self._spell, (index - 1, index))
                reasons.append(f"{skipped} {verb} not in the file, between {' and '.join(sides)}")
        return "; ".join(reasons[:_LISTED])

    def _beyond(self, text: str) -> str:
        """Of a residue that is not there, which ones are."""
        word = "residue" if self.numbering == "file" else "position"
        meant = {chain for chain, _ in self._numbers_in(text)} or set(range(len(self.chain_names)))
        extents = []
        for chain in sorted(meant):
            numbers = list(filter(None, self._numbers_of(chain)))
            extents.append((self.chain_names[chain], f"{numbers[0]} to {numbers[-1]}"))
        if len(extents) == 1:
            name, extent = extents[0]
            reason = f"{f'chain {name}' if name else 'the chain'} has no {word} {text}, its residues are {extent}"
        else:
            listed = ", ".join(
                f"{f'chain {name}' if name else 'one'} has {extent}" for name, extent in extents[:_LISTED]
            )
            more = f", and {len(extents) - _LISTED} chains more" if len(extents) > _LISTED else ""
            reason = f"no chain has a {word} {text}; {listed}{more}"
        whole = _NUMBER.search(text)
        like = [index for index, number in enumerate(self.numbers) if whole and _whole(number) == whole[1]]
        like = [index for index in like if self.chain_index[index] in meant]
        if whole and like:
            reason += f", of {whole[1]} there is {', '.join(map(self._spell, like[:_LISTED]))}"
        return reason

    def _absent_chain(self, text: str) -> str:
        """The chain that a text begins with, if there is none of this name."""
        named = all(self.chain_names) and not text.startswith(self.chain_names)
        begin = re.match(r"([^/]+)/|[^\d\s/-]+", text)
        return (begin[1] or begin[0]) if named and begin else ""


def _parts(text: str) -> Iterator[str]:
    """What a selection is written of."""
    return filter(None, re.split(r"[\s,]+", text))


def _chains_of(row: Mapping[str, Any]) -> Iterator[tuple[str, list[str], list[int]]]:
    """Of each chain of a row its name, the file's own numbers, `""` where there is none, and the places along it."""

    def column(name: str) -> list[Any]:
        value = row.get(name)
        return [] if value is None else list(value)

    length, chain_id = len(row["sequence"]), str(row.get("id") or "")
    own, lengths = list(map(str, column("residue_numbers"))) or [""] * length, column("chain_lengths")
    names = list(map(str, column("chain_names"))) or [str(number) for number in range(1, len(lengths) + 1)]
    places = list(map(int, column("positions"))) or list(range(length))
    if not lengths:
        lengths, names = [length], [chain_id.rpartition("_")[2] if "_" in chain_id and any(own) else ""]
    for what, given, wanted in (
        ("residues with residue_numbers are", len(own), length),
        ("residues with positions are", len(places), length),
        ("chain_lengths add up to", sum(lengths), length),
        ("chain_names are", len(names), len(lengths)),
    ):
        if given != wanted:
            raise ValueError(f"Chain {chain_id or '?'}: {what} {given}, where {wanted} is right; mend the row.")
    start = 0
    for name, size in zip(names, lengths, strict=True):
        yield name, own[start : start + size], places[start : start + size]
        start += size


def _join(chain: str, number: str) -> str:
    """A residue's name, in which nobody takes the chain's last digit for the number's first."""
    return f"{chain}/{number}" if chain[-1:].isdigit() else chain + number


def _whole(number: str) -> str:
    """A number without its insertion code."""
    return number[:-1] if number[-1:].isalpha() else number


__all__ = ["NUMBERINGS", "AbsentChainError", "ResidueNumbers", "choose_numbering"]
