# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""What proteins may be given as, and what they are called.

A protein is a sequence, a chain, a complex, a row of a data set, or comes from files, which folders are searched for.
"""

import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import compress, count
from operator import not_
from pathlib import Path
from typing import Any

import numpy as np

from .chain import Chain, Complex, StructureError, chain_arrays
from .structure import STRUCTURE_SUFFIXES, entry_id, file_entry, read_proteins

Record = Chain | Mapping[str, Any]  # a chain, or a row of a data set

SEQUENCE_SUFFIXES = (".fasta", ".fa", ".faa")
HEADS = (2**12, 2**16)
"""Bytes of a file that are looked through for its entry: most have it in the first lines, `entry_id` reads no more."""
_SEQUENCE = re.compile("(?:[A-Z]|<mask>)+")


# --- records ---------------------------------------------------------------------------------------------------------


def residues_of(chain: Record) -> int:
    return len(chain["sequence"] if isinstance(chain, Mapping) else chain.sequence)


def id_of(chain: Record) -> str:
    return str(chain["id"] if isinstance(chain, Mapping) else chain.id)


def cluster_of(chain: Record) -> Any:
    """Sequence cluster of a row of a data set that has one, else None."""
    return chain.get("cluster") if isinstance(chain, Mapping) else None


def as_chain(record: Record) -> Chain:
    """A row of a data set, or a dictionary as pipelines take it, as the chain, or complex, that it is of.

    Without an id it is called `protein`, `<mask>` becomes X, and without `coords` nothing is observed.
    """
    if not isinstance(record, Mapping):
        return record
    atoms = tuple(record.get("atoms") or ("CA",))
    sequence = "".join(record["sequence"]).replace("<mask>", "X").replace(" ", "")
    coords: Any = record.get("coords")
    if coords is None:
        coords = np.full((len(sequence), len(atoms), 3), np.nan)
    _, coords = chain_arrays({**record, "sequence": sequence, "coords": coords}, atoms)
    given: dict[str, Any] = {
        name: record[name] for name in ("positions", "residue_numbers") if record.get(name) is not None
    }
    name = "protein" if record.get("id") is None else str(record["id"])
    values: Any = (name, sequence, coords, atoms, np.full(len(sequence), np.nan))
    if (lengths := record.get("chain_lengths")) is None or not len(lengths):
        return Chain(*values, **given)
    names = record.get("chain_names") or map(str, range(1, len(lengths) + 1))
    return Complex(*values, **given | {"chain_names": tuple(names), "chain_lengths": tuple(lengths)})


# --- files and their ids ---------------------------------------------------------------------------------------------


def has_suffix(name: str, suffixes: Sequence[str]) -> bool:
    """Whether a file's name ends in one of `suffixes`, or in .gz after it, in either case."""
    return name.lower().removesuffix(".gz").endswith(tuple(suffixes))


def as_text(name: str) -> str:
    """A name that may be no UTF-8 as text that can be written: ids and tables are made of it."""
    return name.encode(errors="backslashreplace").decode()


def find_files(inputs: Sequence[str | os.PathLike[str]], endings: Sequence[str]) -> list[tuple[str, Path]]:
    """List files.

    Args:
        inputs: files, which are taken whatever their names, and folders that are searched, with all below them.
        endings: of the files that folders are searched for, see `has_suffix`.

    Returns:
        Each file once, sorted by path: its name below the folder that all have in common, and its path.

    Raises:
        FileNotFoundError: a path does not exist.
        StructureError: no file was found.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, inputs):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder; check the path")
        for file in path.rglob("*") if path.is_dir() else [path]:
            if file == path or (has_suffix(file.name, endings) and file.is_file()):
                found.setdefault(file.resolve(), file)
    if not found:
        raise StructureError(
            f"{', '.join(map(str, inputs)) or 'no path given'}: no structure file found; give files, or folders with "
            f"names that end in {' '.join(endings)} (.gz)"
        )
    root = os.path.commonpath([file.parent for file in found])
    ordered = sorted(found.items(), key=lambda item: item[1])
    return [(as_text(file.relative_to(root).as_posix()), path) for file, path in ordered]


def peek_entry(name: str, path: str | os.PathLike[str], size: int, offset: int | None = None) -> str | None:
    """The entry that the ids of a structure file begin with; None of FASTA files, and of what is not read.

    Args:
        name: of the file, for its entry where it names none.
        path, size, offset: where its bytes lie: those of a member of a plain archive begin at `offset`.
    """
    if has_suffix(name, (".bcif",)):
        return None
    for most in HEADS:
        head = _read_head(path, min(most, size), offset, most)
        if head.lstrip().startswith(b">"):
            return None
        if len(head) == most:
            head = head[: head.rfind(b"\n") + 1]  # the last line may be cut
        if entry := entry_id(head):
            return entry
        if len(head) < most // 2:
            break
    return file_entry(name)


def _read_head(path: str | os.PathLike[str], size: int, offset: int | None, most: int) -> bytes:
    """The first bytes of a file, decompressed; none of what cannot be read, which says so in its turn."""
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(offset or 0)
            data = file.read(size)
        if data.startswith(b"\x1f\x8b"):
            data = zlib.decompressobj(wbits=31).decompress(data, most)
    except (OSError, zlib.error):
        return b""
    return data.removeprefix(b"\xef\xbb\xbf")


def distinct_entries(own: Sequence[str | None], sources: Sequence[str]) -> list[str | None]:
    """Entries without equal ones: these become the shortest part of the path that tells them apart; None stays.

    Args:
        own: of each file what `peek_entry` finds.
        sources: their names.
    """
    entries = list(own)
    named = [number for number, entry in enumerate(own) if entry is not None]
    found = first_distinct(
        [str(own[number]) for number in named], lambda place: path_ends(sources[named[place]], named[place])
    )
    for number, entry in zip(named, found, strict=True):
        entries[number] = entry
    return entries


def distinct_ids(ids: Sequence[str], sources: Sequence[str], sequences: Sequence[bool] | None = None) -> list[str]:
    """Ids without equal ones: of these, the entry becomes the shortest part of the path that tells them apart.

    Args:
        ids: of chains, `<entry>_<chain>`.
        sources: names of the files that they were read from.
        sequences: whether each comes from a FASTA file, whose ids have no entry: the part is put before the id.
    """

    def candidates(number: int) -> Iterator[str]:
        name, chain_id = sources[number], ids[number]
        start = f"{file_entry(name)}_"
        chain = chain_id.removeprefix(start) if chain_id.startswith(start) else chain_id.rpartition("_")[2]
        end = f"/{chain_id}" if sequences is not None and sequences[number] else f"_{chain}"
        return (part + end for part in path_ends(name, number))

    return first_distinct(list(ids), candidates)


def first_distinct(names: list[str], others: Callable[[int], Iterator[str]]) -> list[str]:
    """Of each item the first of its names that no other has; all that share one go on to the next of `others`."""
    following: dict[int, Iterator[str]] = {}
    while len(counts := Counter(names)) < len(names):
        for number in [number for number, name in enumerate(names) if counts[name] > 1]:
            if number not in following:
                following[number] = others(number)
            names[number] = next(following[number])
    return names


def path_ends(name: str, number: int) -> Iterator[str]:
    """Ends of a source's path, the shortest first: without the suffixes of the file, then with them."""
    *folders, file = [part for part in name.split("/") if part not in ("", ".", "..")]
    stem = file_entry(file)
    for suffix in SEQUENCE_SUFFIXES:
        stem = stem[: -len(suffix)] if stem.lower().endswith(suffix) else stem
    for end in (stem or file, file.removesuffix(".gz"), file):
        for depth in range(len(folders) + 1):
            yield "/".join([*folders[len(folders) - depth :], end])
    yield from (f"{name}-{each}" for each in count(number + 1))  # two members of an archive may have one name


# --- what is given ---------------------------------------------------------------------------------------------------


def check_protein(protein: Any) -> None:
    """Refuse what is no chain, complex, row or dictionary with `sequence`.

    By what it has and not by its class: code from the Hub has a `Chain` of its own.
    """
    if "sequence" not in protein if isinstance(protein, Mapping) else not hasattr(protein, "sequence"):
        raise ValueError(
            f"A protein cannot be read from {type(protein).__name__}; give the path of a structure or FASTA file, a "
            "Chain, a Complex, a dictionary with `sequence`, or a list of these."
        )


def check_reading(reading: Mapping[str, Any]) -> None:
    """Refuse options of reading files (`chain_ids`, `min_plddt`, `as_complex`, `assembly`) where there are none."""
    if any(value is not None and value is not False for value in reading.values()):
        raise ValueError(
            "`chain_ids` and `min_plddt` go with files, and so do `as_complex` and `assembly`; chains are chosen and "
            "joined as they are read."
        )


def collect_proteins(
    inputs: Any,
    atoms: Sequence[str] = ("CA",),
    problems: list[tuple[str, str, str]] | None = None,
    optional_atoms: Sequence[str] = (),
    **reading: Any,
) -> list[tuple[str, Record]]:
    """Proteins with their ids, of all that they may be given as.

    Args:
        inputs: one of these, or an iterable of them: a sequence (capital letters; `<mask>` stands for a residue); a
            chain or complex; a row of a data set; a dictionary with `sequence`, and perhaps `id` and what the processor
            takes as `coords`; the path of a structure or FASTA file, plain or gzipped, or of a folder, which is
            searched for them.
        atoms, optional_atoms: what to read of structure files, as of `read_chains`.
        problems: if given, what cannot be read of the files is appended here as `(file, chain, reason)`; else the first
            raises.
        reading: `chain_ids`, `min_plddt`, `as_complex` and `assembly` of files, as of `read_proteins`.

    Returns:
        Those of files first, sorted by path, of which equal ids are told apart, see `distinct_entries` and
        `distinct_ids`. What was given without an id has its sequence for one.

    Raises:
        FileNotFoundError, ValueError: a path does not exist, a file cannot be read, or what was given is no protein; or
            a string is a sequence and a path, too.
    """
    several = isinstance(inputs, Iterable) and not isinstance(inputs, (str, os.PathLike, Mapping))
    given = list(inputs) if several else [inputs]
    is_path = list(map(_is_path, given))
    paths = list(compress(given, is_path))
    if not paths:
        check_reading(reading)
    chains: list[Chain] = []
    names: list[str] = []
    files = find_files(paths, (*STRUCTURE_SUFFIXES, *SEQUENCE_SUFFIXES)) if paths else []
    entries = [peek_entry(name, path, path.stat().st_size) for name, path in files]
    for (name, path), entry in zip(files, distinct_entries(entries, [name for name, _ in files]), strict=True):
        own: list[tuple[str, str]] | None = None if problems is None else []
        try:
            found = read_proteins(path, atoms, problems=own, entry=entry, optional_atoms=optional_atoms, **reading)
        except (ValueError, OSError, RuntimeError) as error:
            if problems is None:
                raise
            found, own = [], [("", str(error).removeprefix(f"{path}: "))]
        if problems is not None:
            problems += [(name, chain_id, reason) for chain_id, reason in own or ()]
        chains += found
        names += [name] * len(found)
    sequences = [not chain.observed.any() for chain in chains]  # a structure has something that is observed
    for chain, chain_id in zip(chains, distinct_ids([chain.id for chain in chains], names, sequences), strict=True):
        chain.id = chain_id
    proteins: list[tuple[str, Record]] = [(chain.id, chain) for chain in chains]
    for each in compress(given, map(not_, is_path)):
        record = {"sequence": each} if isinstance(each, str) else each
        check_protein(record)
        row: Mapping[str, Any] = record if isinstance(record, Mapping) else vars(record)
        proteins.append(("".join(row["sequence"]) if row.get("id") is None else str(row["id"]), record))
    return proteins


def _is_path(given: Any) -> bool:
    if not isinstance(given, str):
        return isinstance(given, os.PathLike)
    letters, exists = _SEQUENCE.fullmatch(given) is not None, os.path.exists(given)
    if letters and exists:
        raise ValueError(f"{given!r} is a sequence and a path, too; give pathlib.Path, or {{'sequence': {given!r}}}.")
    if not letters and not exists:
        raise FileNotFoundError(
            f"{given[:200]}: no such file or folder; check the path, or write a sequence in capital letters"
        )
    return not letters
