"""ProteinNet's text records as chains (AlQuraishi 2019, BMC Bioinformatics 20:311)."""

import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .structure import Chain, StructureError

BACKBONE = ("N", "CA", "C")  # the atoms of a record, in its order
PICOMETRES = 100  # in an Å
MAX_RECORD = 64 * 1024**2
"""Longer records are refused: one of the longest protein known, titin, has about 10 MiB; a gzip bomb has no end."""


def read_proteinnet(path: str | Path, atoms: Sequence[str] = ("CA",)) -> Iterator[Chain]:
    """Read the records of a ProteinNet text file, plain or gzipped (`.gz`), one after another.

    An atom is not observed where the record's mask is `-`, or at the origin: there the files put single atoms that are
    missing from residues whose mask is `+`. Profiles and further sections are left out.

    Args:
        path: the file.
        atoms: which of N, CA and C to keep.

    Yields:
        Chains with the ids of the records, coordinates in Å (the file has picometres); no B-factors.

    Raises:
        FileNotFoundError: no such file.
        StructureError: the file is no ProteinNet text or cut off, or a record lacks a section or has one of another
            length than its sequence; the message names file and record.
        ValueError: `atoms` has a name that the records do not.
    """
    path = Path(path)
    if isinstance(atoms, str) or not atoms or set(atoms) - set(BACKBONE):
        raise ValueError(f"atoms={atoms!r}: ProteinNet has {', '.join(BACKBONE)}; give a tuple of these")
    open_text: Any = gzip.open if path.suffix == ".gz" else open
    sections: dict[str, list[str]] = {}
    size = 0
    try:
        with open_text(path, "rt", encoding="ascii") as file:
            # A line at a time, but no more than a record may have: a line, too, can be without end.
            for number, line in enumerate(iter(lambda: file.readline(MAX_RECORD + 1), ""), 1):
                line = line.strip()
                size = len(line) if line == "[ID]" else size + len(line)
                if size > MAX_RECORD:
                    raise StructureError(
                        f"{path}: line {number} ends a record of more than {MAX_RECORD} bytes; is this a gzip bomb?"
                    )
                if line == "[ID]":
                    if sections:
                        yield _read_record(sections, tuple(atoms), path)
                    sections = {line: (lines := [])}
                elif line and not sections:
                    raise StructureError(f"{path}: line {number} is {line[:40]!r}; a ProteinNet text begins with [ID]")
                elif line.startswith("["):
                    lines = sections.setdefault(line, [])
                elif line:
                    lines.append(line)
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise StructureError(f"{path}: {error}; the file is broken or cut off, get it again") from error
    if not sections:
        raise StructureError(f"{path}: no ProteinNet record in it; get it again")
    yield _read_record(sections, tuple(atoms), path)


def _read_record(sections: dict[str, list[str]], atoms: tuple[str, ...], path: Path) -> Chain:
    name = "".join(sections["[ID]"])
    try:
        sequence, mask = ("".join(_section(sections, each)) for each in ("[PRIMARY]", "[MASK]"))
        axes = [np.array(line.split(), dtype=np.float64) for line in _section(sections, "[TERTIARY]")]
        if [len(axis) for axis in axes] != 3 * [len(BACKBONE) * len(sequence)]:
            raise ValueError(
                f"[TERTIARY] has lines of {', '.join(str(len(axis)) for axis in axes)} numbers; {len(sequence)} "
                f"residues need 3 of {len(BACKBONE) * len(sequence)}"
            )
        if len(mask) != len(sequence) or set(mask) - set("+-"):
            raise ValueError(
                f"[MASK] is {mask[:20]!r} ({len(mask)}); it has + or - for each of {len(sequence)} residues"
            )
        coords = np.stack(axes, axis=1).reshape(len(sequence), len(BACKBONE), 3) / PICOMETRES
        coords[~coords.any(axis=-1) | (np.array(list(mask)) == "-")[:, None]] = np.nan
        chosen = coords[:, [BACKBONE.index(atom) for atom in atoms]]
        return Chain(name, sequence, chosen, atoms, np.full(len(sequence), np.nan))
    except ValueError as error:
        raise StructureError(f"{path}, record {name}: {error}; correct the record or get the file again") from error


def _section(sections: dict[str, list[str]], name: str) -> list[str]:
    if not sections.get(name):
        raise ValueError(f"there is no {name}")
    return sections[name]
