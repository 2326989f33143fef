# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""Protein chains out of mmCIF, PDB and FASTA files.

Position i of a chain's sequence and row i of its coordinates are the same residue: mmCIF says which (`label_seq_id`),
in a PDB file the observed residues are placed in SEQRES without a single mismatch. Where that cannot be done, the chain
is reported and never shifted to fit.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from .chain import Chain, StructureError
from .structure_parsing import STANDARD_PARENTS, ChainError, StructureModel

Item = TypeVar("Item")

# BinaryCIF cannot be read; found all the same, it is reported and not overlooked.
STRUCTURE_SUFFIXES = (".cif", ".mmcif", ".pdbx", ".pdb", ".ent", ".bcif")
MAX_BYTES = 2 * 1024**3
"""Larger files (decompressed) are refused: the largest entry of the PDB has about 0.5 GiB, a gzip bomb has no end."""

_FASTA_LETTERS = str.maketrans({**STANDARD_PARENTS, "B": "X", "Z": "X", "J": "X"})
_BARE_SEQUENCE = re.compile(rb"[A-Za-z\s]+\*?\s*")
_PIR = re.compile("(?:P1|F1|DL|DC|RL|RC|N1|N3|XX);")


def read_chains(
    path: str | os.PathLike[str],
    atoms: Sequence[str] = ("CA",),
    min_plddt: float | None = None,
    chain_ids: str | Iterable[str] | None = None,
    problems: list[tuple[str, str]] | None = None,
    data: bytes | None = None,
) -> list[Chain]:
    """Read the protein chains of the first model of an mmCIF or PDB file, plain or gzipped.

    The content decides the format, not the name.

    - The sequence is the deposited one (`_entity_poly_seq`, SEQRES), with NaN for residues that were not observed. A
      file without it gives the observed residues in file order: gaps in such a chain cannot be known.
    - A modified residue gets the letter of its parent: as gemmi tabulates it, else as the file says, else X. D-amino
      acids get the letter of their mirror image, selenocysteine C and pyrrolysine K. Caps that the deposited sequence
      counts (ACE, NH2) are an X without coordinates.
    - All atoms of a residue come from one conformer, the one with the highest occupancy summed over `atoms` (of equal
      ones the first label); atoms without a label belong to each. So does the letter, where a position holds several
      residue types.
    - The first model counts; of several data blocks, the first with atoms.
    - Nucleic acids, sugars, ligands and waters are skipped. In a PDB file, what follows TER in a chain is no polymer;
      without TER, nor are the last HETATM residues that are not bonded to the one before.
    - Chains are kept whatever their length. A chain without a single observed atom is left out.
    - If several proteins share an author's chain name (mmCIF only; the PDB does not do so), their ids end in
      `<chain>.<label_asym_id>`.

    Args:
        path: the file. The entry in the ids is `_entry.id` or that of HEADER, else the file's name without suffixes.
        atoms: names of the atoms to read.
        min_plddt: atoms of residues with a lower pLDDT (B-factor column) become unobserved. Only for predicted models:
            files without experimental method, resolution and values above 100.
        chain_ids: read only these: ids (`1A8O_A`) or author's chain names (`A`).
        problems: if given, a chain that cannot be read is appended here as `(id, reason)` and the others are returned,
            in the order of the file; if None, the first such chain raises.
        data: the content, where it comes from an archive; `path` then only names it.

    Raises:
        FileNotFoundError, ImportError: no such file; gemmi is not installed.
        StructureError: the file is no structure, is broken, has no protein, lacks a chain of `chain_ids` or has an
            atom of `atoms` in no residue; or, if `problems` is None, a chain has a residue that differs from the
            deposited sequence, cannot be placed in it, or has two atoms in one place or coordinates that are no number.
        ValueError: `atoms` is empty or repeats a name; `min_plddt` with an experiment or on another scale.

    Examples:
        >>> for chain in read_chains("tests/data/structures/1orc.pdb.gz"):
        ...     print(chain.id, chain.coords.shape, chain.observed.sum())
        1ORC_A (71, 1, 3) 64
    """
    path = Path(path)
    return _chains_of(_content(path, data), path, atoms, min_plddt, chain_ids, problems)


def _chains_of(content: bytes, path: Path, atoms, min_plddt, chain_ids, problems) -> list[Chain]:
    """`read_chains` of a decompressed file."""
    if isinstance(atoms, str) or not atoms or len(set(atoms)) < len(atoms):
        raise ValueError(f"atoms={atoms!r}: give a tuple of different atom names, such as ('CA',)")
    try:
        model = StructureModel(content, path, tuple(atoms))
        polymers = list(model.polymers())
    except UnicodeDecodeError as error:
        raise StructureError(f"{path}: a name in it is not UTF-8 ({error}); convert the file") from error

    # Of a predicted model there is no resolution either.
    experiment = model.method or (f"{model.resolution:g} Å" if model.resolution else "THEORETICAL")
    if min_plddt is not None and "THEORETICAL" not in experiment.upper():
        raise ValueError(
            f"{path}: min_plddt={min_plddt} needs a predicted model, but the file is experimental ({experiment}) and "
            "has B-factors, not pLDDT; leave min_plddt out"
        )
    if not polymers:
        raise StructureError(f"{path}: no protein in the file; give one that has amino acid residues")
    named = [(polymer.name, f"{model.entry or _stem(path)}_{polymer.name}", polymer) for polymer in polymers]
    named = _select(named, lambda each: each[:2], chain_ids, f"{path}: no protein chain")
    chains: list[Chain] = []
    for _, chain_id, polymer in named:
        try:
            chains.append(model.build(polymer, chain_id))
        except (ChainError, UnicodeDecodeError) as error:
            reason = str(error) if isinstance(error, ChainError) else f"a name is not UTF-8 ({error}); correct it"
            if problems is None:
                raise StructureError(f"{path}: chain {chain_id}: {reason}") from error
            problems.append((chain_id, reason))
    for index, atom in enumerate(atoms):
        if len(chains) == len(named) and not any(chain.observed[:, index].any() for chain in chains):
            raise StructureError(
                f"{path}: atom {atom!r} is in no amino acid residue; ask for atoms that the file has "
                "(some files hold only CA)"
            )
    if min_plddt is not None:
        _hide_below(chains, min_plddt, path)
    kept = [chain for chain in chains if chain.observed.any()]
    if chains and not kept:
        fix = "" if min_plddt is None else f" that reaches min_plddt={min_plddt:g}; lower it, or leave it out"
        raise StructureError(f"{path}: no residue is observed{fix}")
    return kept


def read_proteins(
    path: str | os.PathLike[str],
    atoms: Sequence[str] = ("CA",),
    min_plddt: float | None = None,
    chain_ids: str | Iterable[str] | None = None,
    *,
    problems: list[tuple[str, str]] | None = None,
    data: bytes | None = None,
) -> list[Chain]:
    """Read a structure file (`read_chains`) or a FASTA file, plain or gzipped; its content says which it is.

    The sequences of a FASTA file become chains of which nothing is observed. The id is the header up to the first
    space. Small letters count as capitals and `*` at the end is left out; selenocysteine and pyrrolysine get the letter
    of their parent, B, Z and J are X. Arguments and errors are those of `read_chains`; a sequence that is empty, has
    another letter or the id of one before is one of `problems`, and `min_plddt` with a FASTA file a ValueError.
    """
    path = Path(path)
    content = _content(path, data)
    if _BARE_SEQUENCE.fullmatch(content):
        raise StructureError(f"{path}: a sequence without a name; put a line >NAME above it")
    if not content.lstrip().startswith(b">"):
        return _chains_of(content, path, atoms, min_plddt, chain_ids, problems)
    if min_plddt is not None:
        raise ValueError(f"{path}: min_plddt={min_plddt} needs a predicted structure, but this is a FASTA file")
    try:
        records = list(_fasta_records(content.decode()))
    except UnicodeDecodeError as error:
        raise StructureError(f"{path}: no FASTA file ({error}); save it as UTF-8") from error
    chains: dict[str, Chain] = {}
    for name, sequence in _select(records, lambda record: record[:1], chain_ids, f"{path}: no sequence"):
        missing = np.full((len(sequence), len(atoms), 3), np.nan)
        try:
            if name in chains:
                raise ValueError(f"chain {name}: two sequences have this id; rename one")
            chains[name] = Chain(name, sequence, missing, tuple(atoms), np.full(len(sequence), np.nan))
        except ValueError as error:
            if problems is None:
                raise StructureError(f"{path}: {error}") from error
            problems.append((name, str(error).removeprefix(f"chain {name}: ")))
    return list(chains.values())


def _fasta_records(text: str) -> Iterator[tuple[str, str]]:
    """Ids and letters of a FASTA file, or of a PIR file, which has a line of description below each header."""
    for number, record in enumerate(re.split(r"^>", text.lstrip(), flags=re.MULTILINE)[1:], 1):
        header, *lines = record.splitlines() or [""]
        lines = lines[_PIR.match(header) is not None :]
        letters = "".join("".join(lines).split()).removesuffix("*")
        yield (header.split() or [f"sequence_{number}"])[0], letters.upper().translate(_FASTA_LETTERS)


def _select(
    items: list[Item], keys: Callable[[Item], tuple[str, ...]], chain_ids: str | Iterable[str] | None, absent: str
) -> list[Item]:
    """Those of which a key is in `chain_ids`; if it is None, all."""
    if chain_ids is None:
        return items
    wanted = {chain_ids} if isinstance(chain_ids, str) else set(chain_ids)
    if missing := sorted(wanted.difference(*map(keys, items))):
        raise StructureError(
            f"{absent} {', '.join(missing)}; the file has {', '.join(keys(item)[0] for item in items)}"
        )
    return [item for item in items if wanted.intersection(keys(item))]


def _hide_below(chains: list[Chain], min_plddt: float, path: Path) -> None:
    """Make residues with a lower pLDDT unobserved, in place."""
    highest = max((float(np.nanmax(chain.b_factor, initial=0.0)) for chain in chains), default=0.0)
    other_scale = chains and (highest <= 1.0) != (min_plddt <= 1.0)
    if other_scale or highest > 100:
        fix = "; use the file's scale (0 to 100 or 0 to 1), or leave min_plddt out if it carries no pLDDT"
        fix = fix if other_scale else ", so these are B-factors and no pLDDT; leave min_plddt out"
        raise ValueError(f"{path}: min_plddt={min_plddt}, but the highest value in the file is {highest:g}{fix}")
    for chain in chains:
        low = chain.b_factor < min_plddt
        chain.coords[low], chain.b_factor[low] = np.nan, np.nan


def _content(path: Path, data: bytes | None) -> bytes:
    """Of a file, or of `data` in its place, decompressed, whatever the name says of gzip."""
    if data is None:
        if path.is_dir():
            raise StructureError(f"{path}: a folder; give its files one by one")
        if path.stat().st_size > MAX_BYTES:
            raise StructureError(f"{path}: larger than {MAX_BYTES} bytes; split the file")
        data = path.read_bytes()
    if data.startswith(b"\x1f\x8b"):
        data = _gunzip(data, path)
    elif path.suffix.lower() == ".gz":
        raise StructureError(f"{path}: not gzipped (or empty) in spite of its name; rename it, or get it again")
    if not data or data.isspace():
        raise StructureError(f"{path}: empty file; get it again")
    return data.removeprefix(b"\xef\xbb\xbf")


def _gunzip(data: bytes, path: Path) -> bytes:
    """All members of a gzip file: in one call each, which is faster than `gzip`, and never more than MAX_BYTES."""
    parts, left = [], MAX_BYTES
    while data:
        member = zlib.decompressobj(wbits=31)
        try:
            part = member.decompress(data, left + 1)
        except zlib.error as error:
            raise StructureError(f"{path}: broken gzip ({error}); get it again") from error
        left -= len(part)
        if left < 0:
            raise StructureError(f"{path}: more than {MAX_BYTES} bytes once decompressed; is this a gzip bomb?")
        if not member.eof:
            raise StructureError(f"{path}: broken gzip (its end is missing); the file is cut off, get it again")
        parts.append(part)
        data = member.unused_data.lstrip(b"\0")  # archives are padded with zeros
    return b"".join(parts)


def _stem(path: Path) -> str:
    name = path.name
    for suffix in (".gz", *STRUCTURE_SUFFIXES):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    return name
