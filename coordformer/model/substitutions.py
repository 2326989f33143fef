# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""Substitutions and how they are written, such as `S52AA`."""

import re

from .chain import AMINO_ACIDS, Chain
from .residues import AbsentChainError, ResidueNumbers

_SUBSTITUTION = re.compile(r"([A-Z])([^\s,;]*\d[A-Za-z]?)([A-Z])")  # wild type, residue, new letter
_SIGN = re.compile(r"\s*[\s+,;|&/:_-]\s*")  # what others write between substitutions
_WILD_TYPE = re.compile("_?wt", re.IGNORECASE)
_CODES = re.compile(r"(?:p\.)?([A-Za-z]{3})([^\s,;]*\d[A-Za-z]?)([A-Za-z]{3})")  # three-letter codes, as of HGVS
_ONE_LETTER = "these are three-letter codes, and one-letter codes are right"
_UPPER_CASE = "amino acids are upper-case letters"
_JOINED = "':' joins the substitutions of a mutant, and a blank parts mutants"
_NAMES = "ALACYSASPGLUPHEGLYHISILELYSLEUMETASNPROGLNARGSERTHRVALTRPTYR"
_LETTERS = dict(zip(re.findall("...", _NAMES), AMINO_ACIDS, strict=True))


def parse_mutant(
    mutant: str, chain: Chain | ResidueNumbers | str, *, numbering: str | None = None, offset: int | None = None
) -> list[tuple[int, str]]:
    """The substitutions of a mutant such as `A24G`, `A24G:T30S` or `SH195A`.

    Args:
        mutant: letter of the wild type, residue, new letter; several substitutions are joined by `:`. The residue is
            the file's own number with insertion code, `S52AA` makes 52A an A. Where several chains have the number, the
            chain's name is in front, as in SKEMPI and FoldX: `SH195A`. `WT`, in any case, and `_wt` are the wild type.
        chain: the wild type, a chain or complex; its residues, where many mutants are of them; or a sequence.
        numbering: `"file"`, the file's own numbers, or `"sequence"`, positions in each chain; chains without numbers of
            a file are counted in any case. None: `"file"`, unless there is an `offset`.
        offset: position of a chain's first residue, 1 if not given.

    Returns:
        For each substitution the residue's index, from 0 on, and the new letter; nothing of the wild type.

    Raises:
        ValueError: the text is no mutant or may be read in several ways, has a letter beyond the 20 amino acids, a
            residue that the chain does not have or twice, or another wild type than the chain.

    Examples:
        >>> parse_mutant("K2R:V3A", "MKV")
        [(1, 'R'), (2, 'A')]
    """
    if isinstance(chain, str):
        chain = ResidueNumbers({"sequence": chain}, numbering=numbering, offset=offset)
    elif not isinstance(chain, ResidueNumbers):
        chain = ResidueNumbers(chain, numbering=numbering, offset=offset)
    try:
        return _parse(mutant, chain)
    except ValueError:
        if meant := _as_meant(mutant, chain):
            raise ValueError(f"Mutant {mutant!r} cannot be read: {meant}.") from None
        raise


def _parse(mutant: str, chain: ResidueNumbers) -> list[tuple[int, str]]:
    if _WILD_TYPE.fullmatch(mutant.strip()):
        return []
    substitutions: dict[int, str] = {}
    reasons: list[str] = []  # of all of them, to be mended at once
    for text in map(str.strip, mutant.split(":")):
        if (match := _SUBSTITUTION.fullmatch(text)) is None:
            raise ValueError(
                f"Mutant {mutant!r} cannot be read{_why_unread(text)}; write A24G, or A24G:T30S for several "
                "substitutions, and AH24G for chain H."
            )
        wild_type, residue, letter = match.groups()
        if odd := {wild_type, letter} - set(AMINO_ACIDS):
            raise ValueError(f"Mutant {mutant}: {min(odd)} is no amino acid; substitutions are among {AMINO_ACIDS}.")
        try:
            index = chain.find(residue, f"{wild_type}{{}}{letter}")
        except ValueError as error:
            fix = "" if chain.readings(residue) else _what_is_meant(chain, residue, wild_type, letter)
            what = str(error).removesuffix(".").partition("; write it like ")[0]
            if isinstance(error, AbsentChainError):
                fix = "; write the wild type, the chain and the number, as in SH195A"
            reasons.append(what + fix)
            continue
        if chain.sequence[index] != wild_type:
            what = f"{chain.describe(index)} is {chain.sequence[index]}, not {wild_type}"
            fix = _what_is_meant(chain, residue, wild_type, letter) or "; mend the letter or the number"
            reasons.append(what + fix)
        elif index in substitutions:
            reasons.append(f"{chain.describe(index)} is substituted twice; keep one of them")
        else:
            substitutions[index] = letter
    if reasons:
        raise ValueError(f"Mutant {mutant}: {'. '.join(dict.fromkeys(reasons))}.")
    return list(substitutions.items())


def _as_meant(mutant: str, residues: ResidueNumbers) -> str:
    """Of a mutant that is written in another way, what is right, and the mutant so; `""` if it is none even then.

    With another sign than `:` between substitutions, the chain in front of the wild type, three-letter codes (HGVS), or
    small letters.
    """
    names = sorted(map(re.escape, filter(None, residues.chain_names)), key=len, reverse=True)
    chain, letters = f"({'|'.join(names) or '(?!)'})", "([A-Za-z]{3}|[A-Za-z])"
    one = re.compile(rf"(?:p\.)?(?:{chain}[:/._-]?)?{letters}(?:{chain}/?)?(-?\d+[A-Za-z]??){letters}(?![A-Za-z])")
    found, rules, place, text = [], dict[str, None](), 0, mutant.strip()
    while match := one.match(text, place):
        front, wild_type, inside, number, letter = match.groups()
        if {len(wild_type), len(letter)} == {3}:
            rules[_ONE_LETTER] = None
        elif not (wild_type + letter).isupper():
            rules[_UPPER_CASE] = None
        if front:
            rules["the wild type comes first, then the chain"] = None
        name = front or inside or ""
        wild_type, letter = (_LETTERS.get(each.upper(), each.upper()) for each in (wild_type, letter))
        found.append(f"{wild_type}{name}{'/' if name[-1:].isdigit() else ''}{number}{letter}")
        place = match.end()
        if (sign := _SIGN.match(text, place)) is None:
            break
        if (stands := sign[0].strip()) != ":":
            rules[f"{repr(stands) if stands else 'a blank'} stands in it, but {_JOINED}"] = None
        place = sign.end()
    if place < len(text):
        return ""
    what, written = ", and ".join(rules), ":".join(found)
    try:
        return f"{what}; write {written}" if rules and _parse(written, residues) else ""
    except ValueError as error:  # which says more of what was written, unless it certainly was written in another way
        return f"{what}. {str(error).removesuffix('.')}" if _JOINED in what else ""


def _why_unread(text: str) -> str:
    """What is wrong with a text that is no substitution, where that shows."""
    if match := re.search(r"[\s,;]", text):
        sign = "a blank" if match[0].isspace() else repr(match[0])
        return f": {sign} stands in it, but {_JOINED}"
    if match := _CODES.fullmatch(text):
        wild_type, residue, letter = match.groups()
        if {wild_type.upper(), letter.upper()} <= set(_LETTERS):
            short = f"{_LETTERS[wild_type.upper()]}{residue}{_LETTERS[letter.upper()]}"
            return f": {_ONE_LETTER}, {short}"
    if text and _SUBSTITUTION.fullmatch(upper := text[0].upper() + text[1:-1] + text[-1].upper()):
        return f": {_UPPER_CASE}, {upper}"
    if re.search(r"\d.*(del|ins|dup|fs|Ter|[*=?-])", text):
        return ": substitutions are scored, no deletions, insertions or stops"
    if re.fullmatch(r"[A-Z][^\s,;]*\d", text):
        return f": the new letter is missing, as in {text}{'A' if text[0] != 'A' else 'G'}"
    return ""


def _what_is_meant(residues: ResidueNumbers, text: str, wild_type: str, letter: str) -> str:
    """Of a residue `text` that is not there, or is no `wild_type`, what may be meant: after `; `, or nothing."""
    inserted = [index for index in residues.readings(text + letter) if residues.sequence[index] == wild_type]
    if len(inserted) == 1 and text[-1:].isdigit():
        example = f"{wild_type}{text}{letter}{'A' if wild_type != 'A' else 'G'}"
        return (
            f"; {residues.describe(inserted[0])} is {wild_type}: if it is meant, the new letter is missing, {example}"
        )
    return f"; {numbers}" if (numbers := _other_numbering(residues, text, wild_type)) else ""


def _other_numbering(residues: ResidueNumbers, text: str, wild_type: str) -> str:
    """How residues were numbered, what else there is, and whether the wild type is there; `""` where that is equal."""
    if (other := residues.other()) is None:
        fix = "to the position of its first residue in the mutants, or give the chain that they are of"
        counted = f"positions count the deposited sequence from {residues.offset}, not a file's own residue numbers"
        return f"{counted}: set `offset` (--offset) {fix}"
    if other.readings(text) in ([], residues.readings(text)):
        return ""
    fitting = [other.describe(index) for index in other.readings(text) if other.sequence[index] == wild_type]
    there = f": with it {' and '.join(fitting)} is {wild_type}" if fitting else ""
    if residues.numbering == "file":
        return (
            "numbers are the file's own; positions in the sequence need numbering='sequence' (--numbering sequence)"
            + there
        )
    return (
        f"positions count the deposited sequence from {residues.offset}; the file's own numbers need numbering='file' "
        f"(--numbering file){there}"
    )


__all__ = ["parse_mutant"]
