# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""Protein chains and complexes out of mmCIF, PDB and FASTA files.

Position i of a chain's sequence and row i of its coordinates are the same residue: mmCIF says which (`label_seq_id`),
in a PDB file the observed residues are placed in SEQRES without a single mismatch. Where that cannot be done, the chain
is reported and never shifted to fit.
"""

from __future__ import annotations

import os
import re
import string
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from itertools import islice, product
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .chain import Chain, ChainError, Complex, StructureError, join_chains
from .structure_parsing import STANDARD_PARENTS, Polymer, StructureModel

Item = TypeVar("Item")

# BinaryCIF cannot be read; found all the same, it is reported and not overlooked.
STRUCTURE_SUFFIXES = (".cif", ".mmcif", ".pdbx", ".pdb", ".ent", ".bcif")
MAX_BYTES = 2 * 1024**3
"""Larger files (decompressed) are refused: the largest entry of the PDB has about 0.5 GiB, a gzip bomb has no end."""

MAX_OPERATIONS = 10_000
"""Of an assembly; a virus has some thousands at most."""

# What programs write where they have no name for an entry.
_PLACEHOLDERS = re.compile(
    "x{4}|0{4}|-*|(?:my_)?(?:model|structure|protein|complex)|pred(?:icted|iction)?|unk(?:nown)?(?:_id)?|none|null|"
    "un(?:titled|named)|default",
    re.IGNORECASE,
)
_HEAD = 2**16  # bytes, of a file that is not read but asked for its entry
# A pattern that begins with a line's end is found several times faster than one with ^.
_ENTRY = re.compile(rb"\n[ \t]*_entry\.id\s+(?:'([^'\r\n]*)'|\"([^\"\r\n]*)\"|(\S+))", re.IGNORECASE)
_HEADER = re.compile(rb"\nHEADER.{56}(.{4})")

_DECIMAL = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)
_FASTA_LETTERS = str.maketrans({**STANDARD_PARENTS, "B": "X", "Z": "X", "J": "X"})
_LETTERS_AND_BLANKS = string.ascii_letters.encode() + string.whitespace.encode()
_CHAIN_NAMES = [*string.ascii_uppercase, *map(str, range(27, 1000))]
_PIR = re.compile("(?:P1|F1|DL|DC|RL|RC|N1|N3|XX);")


def read_chains(
    path: str | os.PathLike[str],
    atoms: Sequence[str] = ("CA",),
    min_plddt: float | None = None,
    chain_ids: str | Iterable[str] | None = None,
    problems: list[tuple[str, str]] | None = None,
    data: bytes | None = None,
    *,
    min_mean_plddt: float | None = None,
    entry: str | None = None,
    optional_atoms: Sequence[str] = (),
) -> list[Chain]:
    """Read the protein chains of the first model of an mmCIF or PDB file, plain or gzipped.

    The content decides the format, not the name.

    - The sequence is the deposited one (`_entity_poly_seq`, SEQRES), with NaN for residues that were not observed. A
      file without it gives the observed residues, in file order; `Chain.positions` has a gap where residues are
      missing: as long as their numbers say, or else as the distance between them asks for at least.
    - `label_seq_id` says which residue is which where a deposited sequence verifies it. Elsewhere, as in PDB files, it
      is the author's number with insertion code, and altloc labels where a position holds several residue types; and
      without entities the author's name says which chain is which, not `label_asym_id`.
    - A modified residue gets the letter of its parent: as gemmi tabulates it, else as the file says (MODRES, SEQADV and
      their like in mmCIF, the canonical sequence), else X. D-amino acids get the letter of their mirror image,
      selenocysteine C and pyrrolysine K, and the names of GROMACS, CHARMM and Amber that of the residue. Caps that the
      deposited sequence counts (ACE, NH2) are an X without coordinates.
    - All atoms of a residue come from one conformer, the one with the highest occupancy summed over `atoms` (of equal
      ones the first label); atoms without a label belong to each. So does the letter, where a position holds several
      residue types.
    - The first model counts; of several data blocks, the first with atoms. Coordinates that are NaN are not observed.
    - Nucleic acids, sugars, ligands and waters are skipped. A HETATM residue that no table knows is X if it is bonded
      to the chain. A chain without an entity ends at TER where its backbone ends, too, and where another segment begins
      with numbers of its own; amino acids beyond it are another one, if they are ATOM records.
    - What is broken in records and categories that are not read does not matter.
    - Chains are kept whatever their length. A chain without a single observed atom is left out.
    - If several proteins share an author's chain name, their ids end in `<chain>.<label_asym_id>`, without entities in
      `<chain>.<number>`.

    Args:
        path: the file. The entry in the ids is what `entry_id` finds, else the file's name, see `file_entry`.
        atoms: names of the atoms to read.
        min_plddt: atoms of residues with a lower pLDDT (B-factor column) become unobserved. Only for predicted models:
            files without experimental method, resolution and values above 100.
        chain_ids: read only these: ids (`1A8O_A`) or author's chain names (`A`).
        problems: if given, a chain that cannot be read, or that `min_plddt` or `min_mean_plddt` leaves out, is appended
            here as `(id, reason)`, and the others are returned, in the order of the file; if None, the first chain that
            cannot be read raises.
        data: the content, where it comes from an archive; `path` then only names it.
        min_mean_plddt: chains with a lower mean over the residues' pLDDT, as deposited, are left out; also only for
            predicted models.
        entry: what the ids begin with, in place of the file's own entry.
        optional_atoms: those of `atoms` that may be in no residue; their coordinates are NaN.

    Raises:
        FileNotFoundError, ImportError: no such file; gemmi is not installed.
        StructureError: the file is no structure, is broken, has no protein, lacks a chain of `chain_ids` or has an
            atom of `atoms` in no residue; or, if `problems` is None, a chain has a residue that differs from the
            deposited sequence, cannot be placed in it, or has two atoms in one place.
        ValueError: `atoms` is empty or repeats a name; `min_plddt` or `min_mean_plddt` with an experiment or on another
            scale.

    Examples:
        >>> for chain in read_chains("tests/data/structures/1orc.pdb.gz"):
        ...     print(chain.id, chain.coords.shape, chain.observed.sum())
        1ORC_A (71, 1, 3) 64
    """
    path, least = Path(path), {"min_plddt": min_plddt, "min_mean_plddt": min_mean_plddt}
    _, found = _chains_of(_content(path, data), path, atoms, least, chain_ids, problems, entry, optional_atoms)
    return [chain for _, chain in found]


def read_complex(
    path: str | os.PathLike[str],
    chains: str | Iterable[str] | None = None,
    assembly: str | int | None = None,
    *,
    atoms: Sequence[str] = ("CA",),
    min_plddt: float | None = None,
    data: bytes | None = None,
    entry: str | None = None,
    optional_atoms: Sequence[str] = (),
) -> Complex:
    """Read the protein chains of a structure file as one complex, in the frame of the file.

    Args:
        path, atoms, min_plddt, data, entry, optional_atoms: as of `read_chains`; the complex has the entry as its id.
        chains: only these, by author's name; of an assembly, copies are named `A-2`, `A-3`, as RCSB names them. The
            default is all of them.
        assembly: the biological assembly of this name (`_pdbx_struct_assembly`, REMARK 350), `1` in most entries. The
            default is what the file holds, the asymmetric unit.

    Returns:
        The chains in the order of the file, operation by operation of an assembly.

    Raises:
        FileNotFoundError, ImportError, StructureError, ValueError: as `read_chains`, of any chain; or `min_plddt` would
            leave a chain out, the file has no such chain or assembly, or an operation of it is no rotation.

    Examples:
        >>> read_complex("tests/data/structures/1A8O.cif.gz", assembly=1).chain_names
        ('A', 'A-2')
    """
    path = Path(path)
    return _complex_of(_content(path, data), path, atoms, min_plddt, chains, assembly, entry, optional_atoms)


def _complex_of(content: bytes, path: Path, atoms, min_plddt, chains, assembly, entry, optional_atoms) -> Complex:
    """`read_complex` of a decompressed file."""
    least = {"min_plddt": min_plddt, "min_mean_plddt": None}
    problems: list[tuple[str, str]] = []  # a complex is whole
    chosen = chains if assembly is None else None
    model, found = _chains_of(content, path, atoms, least, chosen, problems, entry, optional_atoms)
    for chain_id, reason in problems:
        raise StructureError(f"{path}: chain {chain_id}: {reason}")
    named = [(polymer.name, chain) for polymer, chain in found]
    if assembly is not None:
        named = []
        copies: Counter[str] = Counter()
        for names, matrix in _operations(model, str(assembly), path):
            for polymer, chain in found:
                if (polymer.author if model.is_pdb else polymer.subchain) not in names:
                    continue
                copies[polymer.name] += 1
                number = f"-{copies[polymer.name]}" if copies[polymer.name] > 1 else ""
                moved = (chain.coords @ matrix[:3, :3].T + matrix[:3, 3]).astype(np.float32)
                named.append((polymer.name + number, replace(chain, coords=moved)))
        named = _select(named, lambda each: each[:1], chains, f"{path}: assembly {assembly} has no chain")
    if not named:
        where = "no chain is asked for" if assembly is None else f"assembly {assembly} has no protein"
        raise StructureError(f"{path}: {where}; ask for another one")
    name = entry or entry_id(content) or file_entry(path)
    return join_chains(name, [chain for _, chain in named], [name for name, _ in named])


# Of an operation: the chains that it moves, and its matrix (4, 4) in Å.
Operation = tuple[list[str], np.ndarray]


def _operations(model: StructureModel, assembly: str, path: Path) -> list[Operation]:
    """What makes a biological assembly; chains have the author's name in a PDB file, `label_asym_id` in mmCIF."""
    found: dict[str, list[Operation]] = {}
    if model.is_pdb:
        for each in model.parsed.structure.assemblies:
            moves = [
                (generator, operator.transform) for generator in each.generators for operator in generator.operators
            ]
            found[each.name] = [
                (generator.chains, _matrix(move.mat.tolist(), move.vec.tolist())) for generator, move in moves
            ]
    else:
        found = _mmcif_operations(model.parsed.block, assembly)
    if assembly not in found:
        raise StructureError(f"{path}: no assembly {assembly}; the file has {', '.join(found) or 'none'}")
    if len(found[assembly]) > MAX_OPERATIONS:
        raise StructureError(f"{path}: assembly {assembly} has more than {MAX_OPERATIONS} operations; read another one")
    for _, matrix in found[assembly]:
        rotation = matrix[:3, :3]
        if not (np.abs(rotation @ rotation.T - np.eye(3)) < 0.01).all() or not (np.abs(matrix) < 1e6).all():
            raise StructureError(
                f"{path}: an operation of assembly {assembly} is no rotation and translation ({matrix[:3].tolist()}); "
                "correct it, or read without assembly"
            )
    return found[assembly]


def _mmcif_operations(block: Any, assembly: str) -> dict[str, list[Operation]]:
    """The operations of one assembly of an mmCIF file, and the names of all; gemmi does not multiply operations."""
    operators: dict[str, np.ndarray] = {}
    rotation = [f"matrix[{i}][{j}]" for i in (1, 2, 3) for j in (1, 2, 3)]
    for row in block.find("_pdbx_struct_oper_list.", ["id", *rotation, *(f"vector[{i}]" for i in (1, 2, 3))]):
        values = [float(row.str(i)) if _DECIMAL.fullmatch(row.str(i)) else np.nan for i in range(1, 13)]
        operators[row.str(0)] = _matrix(values[:9], values[9:])
    unknown = np.full((4, 4), np.nan)
    found: dict[str, list[Operation]] = {}
    for row in block.find("_pdbx_struct_assembly_gen.", ["assembly_id", "oper_expression", "asym_id_list"]):
        operations = found.setdefault(row.str(0), [])
        if row.str(0) == assembly:
            chains = [name.strip() for name in row.str(2).split(",")]
            factors = [_operator_names(factor) for factor in re.findall(r"[^()]+", row.str(1))]
            for names in islice(product(*factors), MAX_OPERATIONS + 1):
                matrices = (operators.get(name, unknown) for name in names)
                operations.append((chains, reduce(np.matmul, matrices, np.eye(4))))
    return found


def _operator_names(factor: str) -> list[str]:
    """Of `1,3`, `P` or `1-60`."""
    names: list[str] = []
    for part in factor.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdecimal() and last.isdecimal():
            names += map(str, range(int(first), min(int(last), int(first) + MAX_OPERATIONS) + 1))
        else:
            names.append(part.strip())
    return names


def _matrix(rotation: Any, translation: Any) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = np.reshape(rotation, (3, 3)), translation
    return matrix


def entry_id(content: bytes) -> str:
    """The entry that a file names: `_entry.id` of an mmCIF file, HEADER of a PDB file.

    Args:
        content: of the file, decompressed; its first 64 kB are enough, and no more is read.

    Returns:
        `""` where it names none, or only has what many files share, such as `model` (Boltz, Chai) or `XXXX`.
    """
    head = b"\n" + content[:_HEAD]
    found = _ENTRY.search(head) or _HEADER.search(head)
    text = next(filter(None, found.groups()), b"") if found else b""
    name = text.decode("utf-8", errors="replace").strip(" .?")
    return "" if _PLACEHOLDERS.fullmatch(name) else name


def file_entry(path: str | os.PathLike[str]) -> str:
    """A file's name without the suffixes of structure files and gzip: the entry of a file that names none."""
    name = Path(path).name
    for suffix in (".gz", *STRUCTURE_SUFFIXES):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    return name


def _chains_of(
    content: bytes, path: Path, atoms, least: dict[str, float | None], chain_ids, problems, entry, optional_atoms
) -> tuple[StructureModel, list[tuple[Polymer, Chain]]]:
    """`read_chains` of a decompressed file: what is in the file, and the chains with where each is in it."""
    if isinstance(atoms, str) or not atoms or len(set(atoms)) < len(atoms):
        raise ValueError(f"atoms={atoms!r}: give a tuple of different atom names, such as ('CA',)")
    try:
        model = StructureModel(content, path, tuple(atoms))
        polymers = list(model.polymers())
    except UnicodeDecodeError as error:
        raise StructureError(f"{path}: a name in it is not UTF-8 ({error}); convert the file") from error

    # Of a predicted model there is no resolution either.
    experiment = model.method or (f"{model.resolution:g} Å" if model.resolution else "THEORETICAL")
    asked = {name: value for name, value in least.items() if value is not None}
    for name, value in asked.items():
        if "THEORETICAL" not in experiment.upper():
            raise ValueError(
                f"{path}: {name}={value} needs a predicted model, but the file is experimental ({experiment}) and has "
                f"B-factors, not pLDDT; leave {name} out"
            )
    if not polymers:
        raise StructureError(f"{path}: no protein in the file; give one that has amino acid residues")
    entry = entry or entry_id(content) or file_entry(path)
    named = [(polymer.name, f"{entry}_{polymer.name}", polymer) for polymer in polymers]
    named = _select(named, lambda each: each[:2], chain_ids, f"{path}: no protein chain")
    found: list[tuple[Polymer, Chain]] = []
    for _, chain_id, polymer in named:
        try:
            found.append((polymer, model.build(polymer, chain_id)))
        except (ChainError, UnicodeDecodeError) as error:
            reason = str(error) if isinstance(error, ChainError) else f"a name is not UTF-8 ({error}); correct it"
            if problems is None:
                raise StructureError(f"{path}: chain {chain_id}: {reason}") from error
            problems.append((chain_id, reason))
    for index, atom in enumerate(atoms):
        if atom in optional_atoms or not found or len(found) < len(named):
            continue
        if not any(chain.observed[:, index].any() for _, chain in found):
            raise StructureError(
                f"{path}: atom {atom!r} is in no amino acid residue; ask for atoms that the file has: where it has CA "
                "alone, a model that reads C-alphas, such as coordformer-mpnn-ca"
            )
    kept = [pair for pair in found if pair[1].observed.any()]
    if found and not kept:
        raise StructureError(f"{path}: no residue is observed")
    if not asked:
        return model, kept
    _check_plddt([chain for _, chain in kept], asked, path)
    reasons = [(chain.id, _leave_out(chain, **least)) for _, chain in kept]
    if problems is not None:
        problems += [(chain_id, reason) for chain_id, reason in reasons if reason]
    kept = [pair for pair, (_, reason) in zip(kept, reasons, strict=True) if not reason]
    if found and not kept and problems is None:
        raise StructureError(f"{path}: {reasons[0][1]}")
    return model, kept


def _check_plddt(chains: Sequence[Chain], asked: Mapping[str, float], path: Path) -> None:
    """`ValueError` unless the B-factors are pLDDT on the scale of the options that were given."""
    values = np.concatenate([chain.b_factor for chain in chains] or [np.zeros(0)])
    highest = float(np.nanmax(values, initial=0.0))
    for name, value in asked.items():
        if np.isnan(values).all():
            raise ValueError(f"{path}: {name}={value}, but the file has no B-factors; leave {name} out")
        other_scale = (highest <= 1.0) != (value <= 1.0)
        if other_scale or highest > 100:
            fix = f"; use the file's scale (0 to 100 or 0 to 1), or leave {name} out if it carries no pLDDT"
            fix = fix if other_scale else f", so these are B-factors and no pLDDT; leave {name} out"
            raise ValueError(f"{path}: {name}={value}, but the highest value in the file is {highest:g}{fix}")


def _leave_out(chain: Chain, min_plddt: float | None, min_mean_plddt: float | None) -> str:
    """Make residues with a low pLDDT unobserved, in place; why the chain is left out, if it is."""
    known = chain.b_factor[~np.isnan(chain.b_factor)]
    if min_mean_plddt is not None and not (mean := float(known.mean() if len(known) else np.nan)) >= min_mean_plddt:
        return f"the mean pLDDT is {mean:.4g}, less than min_mean_plddt={min_mean_plddt:g}; lower it, or leave it out"
    if min_plddt is not None:
        low = ~(chain.b_factor >= min_plddt)
        chain.coords[low], chain.b_factor[low] = np.nan, np.nan
        if not chain.observed.any():
            return f"no residue is observed that reaches min_plddt={min_plddt:g}; lower it, or leave it out"
    return ""


def read_proteins(
    path: str | os.PathLike[str],
    atoms: Sequence[str] = ("CA",),
    min_plddt: float | None = None,
    chain_ids: str | Iterable[str] | None = None,
    *,
    problems: list[tuple[str, str]] | None = None,
    data: bytes | None = None,
    entry: str | None = None,
    as_complex: bool = False,
    assembly: str | int | None = None,
    optional_atoms: Sequence[str] = (),
) -> list[Chain]:
    """Read a structure file (`read_chains`) or a FASTA file, plain or gzipped; its content says which it is.

    With `as_complex`, or an `assembly`, a structure file is one complex (`read_complex`), and so is a sequence with `/`
    or `:` between its chains, which are called A, B, C.

    The sequences of a FASTA file become chains of which nothing is observed. The id is the header up to the first
    space. Small letters count as capitals and `*` at the end is left out; selenocysteine and pyrrolysine get the letter
    of their parent, B, Z and J are X. Arguments and errors are those of `read_chains`; a sequence that is empty, has
    another letter or the id of one before is one of `problems`, and `min_plddt` with a FASTA file a ValueError.
    """
    path = Path(path)
    content = _content(path, data)
    if not content.rstrip().removesuffix(b"*").translate(None, _LETTERS_AND_BLANKS):
        if path.name.lower().removesuffix(".gz").endswith(STRUCTURE_SUFFIXES):
            raise StructureError(f"{path}: no structure is in it, though its name says so; get the file again")
        raise StructureError(f"{path}: a sequence without a name; put a line >NAME above it")
    as_complex = as_complex or assembly is not None
    if not content.lstrip().startswith(b">"):
        if as_complex:
            return [_complex_of(content, path, atoms, min_plddt, chain_ids, assembly, entry, optional_atoms)]
        least = {"min_plddt": min_plddt, "min_mean_plddt": None}
        read = _chains_of(content, path, atoms, least, chain_ids, problems, entry, optional_atoms)[1]
        return [chain for _, chain in read]
    if min_plddt is not None:
        raise ValueError(f"{path}: min_plddt={min_plddt} needs a predicted structure, but this is a FASTA file")
    records = list(_fasta_records(content.decode(errors="replace")))  # a record's letters are looked at below
    chains: dict[str, Chain] = {}
    for name, sequence in _select(records, lambda record: record[:1], chain_ids, f"{path}: no sequence"):
        try:
            if name in chains:
                raise ValueError(f"chain {name}: two sequences have this id; rename one")
            parts = re.split("[/:]", sequence) if as_complex else [sequence]
            found = [_chain_of_sequence(name, part, atoms) for part in parts]
            chains[name] = found[0] if len(found) == 1 else join_chains(name, found, _CHAIN_NAMES[: len(found)])
        except ValueError as error:
            if problems is None:
                raise StructureError(f"{path}: {error}") from error
            problems.append((name, str(error).removeprefix(f"chain {name}: ")))
    return list(chains.values())


def _chain_of_sequence(name: str, sequence: str, atoms: Sequence[str]) -> Chain:
    missing = np.full((len(sequence), len(atoms), 3), np.nan)
    return Chain(name, sequence, missing, tuple(atoms), np.full(len(sequence), np.nan))


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
        parts = [part for name in missing for part in name.split(",")]
        apart = parts != missing and {*parts} <= {key for item in items for key in keys(item)}
        fix = f"; give them apart: {' '.join(parts)}" if apart else ""
        raise StructureError(
            f"{absent} {', '.join(missing)}; the file has {', '.join(keys(item)[0] for item in items)}{fix}"
        )
    return [item for item in items if wanted.intersection(keys(item))]


def _content(path: Path, data: bytes | None) -> bytes:
    """Of a file, or of `data` in its place, decompressed, whatever the name says of gzip."""
    if data is None:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder; check the path")
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
