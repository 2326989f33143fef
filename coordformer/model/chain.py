# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""A protein chain: its whole sequence, with the coordinates that are known of it. A complex: several, in one frame."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
# ESM-2's vocabulary in its order: token ids of its checkpoints keep their meaning.
VOCABULARY = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>")
CHAIN_GAP = 100
"""Positions between the chains of a complex: beyond every separation that edge features tell apart."""


class StructureError(ValueError):
    """Something is wrong with a structure file; the message names the file, the chain, the value and the fix."""


class ChainError(Exception):
    """Why one chain cannot be read; `read_chains` adds the file and the chain, and raises or collects it."""


@dataclass(eq=False)
class Chain:
    """One protein chain.

    Attributes:
        id: `<entry>_<chain>`, e.g. `1A8O_A`, with the author's chain name.
        sequence: L letters, the 20 amino acids and X.
        coords: float32 `(L, len(atoms), 3)`, Angstrom, NaN where an atom is not observed.
        atoms: names of the atoms, in the order of the second axis of `coords`.
        b_factor: float32 `(L,)`, square Angstrom, of the first of `atoms` that is observed in the residue, NaN where
            none is; predicted models carry their pLDDT (0 to 100) here.
        method, resolution: of the experiment, e.g. `X-RAY DIFFRACTION` and Angstrom; None if the file has none.
        positions: int32 `(L,)`, rising from 0: places along the chain, with a gap where residues are missing that the
            sequence does not have. The default is without gaps.
        residue_numbers: L of the file's own numbers with insertion code, such as `52A`; `""` where a residue has none,
            and `()` where no residue has one, as in a FASTA file.

    Raises:
        ValueError: lengths or shapes that do not agree, an empty sequence, other letters, infinite coordinates, an
            atom with only some of x, y, z, or positions that do not rise from 0.
    """

    id: str
    sequence: str
    coords: np.ndarray
    atoms: tuple[str, ...]
    b_factor: np.ndarray
    method: str | None = None
    resolution: float | None = None
    positions: np.ndarray = None  # type: ignore[assignment]  # 0 to L - 1
    residue_numbers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.coords = np.asarray(self.coords, dtype=np.float32)
        self.b_factor = np.asarray(self.b_factor, dtype=np.float32)
        self.atoms = tuple(self.atoms)
        length = len(self.sequence)
        if not length:
            raise ValueError(f"chain {self.id}: the sequence is empty; leave the chain out")
        if odd := sorted(set(self.sequence) - set(AMINO_ACIDS + "X")):
            raise ValueError(f"chain {self.id}: letters {''.join(odd)!r} in the sequence; use {AMINO_ACIDS} and X")
        for name, shape in {"coords": (length, len(self.atoms), 3), "b_factor": (length,)}.items():
            if (given := getattr(self, name).shape) != shape:
                raise ValueError(
                    f"chain {self.id}: {name} has shape {given}; {length} residues with atoms {self.atoms} need {shape}"
                )
        if np.isinf(self.coords).any():
            raise ValueError(f"chain {self.id}: coords hold inf; unobserved atoms are NaN")
        missing = np.isnan(self.coords)
        if (missing.any(-1) != missing.all(-1)).any():
            raise ValueError(f"chain {self.id}: an atom in coords is NaN in part; set all of x, y, z to NaN")
        places = np.arange(length) if self.positions is None else np.asarray(self.positions)
        whole = places.shape == (length,) and places.dtype.kind in "iu"
        steps = np.diff(places.astype(np.int64)) if whole else np.zeros(1)
        if not whole or places[0] != 0 or (steps < 1).any() or places[-1] > np.iinfo(np.int32).max:
            raise ValueError(f"chain {self.id}: positions are {length} whole numbers that rise from 0, not {places}")
        self.positions = places.astype(np.int32)
        self.residue_numbers = tuple(map(str, self.residue_numbers))
        if len(self.residue_numbers) not in (0, length):
            raise ValueError(
                f"chain {self.id}: {len(self.residue_numbers)} residue_numbers for {length} residues; give one for "
                "each, or none"
            )

    def __len__(self) -> int:
        """Number of residues, unobserved ones included."""
        return len(self.sequence)

    @property
    def observed(self) -> np.ndarray:
        """bool `(L, len(atoms))`: which atoms have coordinates."""
        missing: np.ndarray = np.isnan(self.coords[..., 0])
        return ~missing


@dataclass(eq=False)
class Complex(Chain):
    """Several protein chains in one frame: a chain whose parts are its chains, one after another.

    To the model it is one segment, with one center: neighbors and attention reach across its chains, which positions
    keep apart by `CHAIN_GAP` and `chain_index` tells apart.

    Attributes:
        id: of the entry.
        chain_names: of its chains, in their order; `residue_numbers` are unique within a chain alone.
        chain_lengths: residues of each.

    Raises:
        ValueError: as `Chain`, or the lengths are not those of the sequence.
    """

    chain_names: tuple[str, ...] = ()
    chain_lengths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.chain_names, self.chain_lengths = tuple(self.chain_names), tuple(map(int, self.chain_lengths))
        if sum(self.chain_lengths) != len(self) or min(self.chain_lengths, default=0) < 1:
            raise ValueError(
                f"complex {self.id}: chains of {self.chain_lengths} residues, but {len(self)} in the sequence; give "
                "the length of each chain"
            )
        if len(self.chain_names) != len(self.chain_lengths) or len(set(self.chain_names)) < len(self.chain_names):
            raise ValueError(
                f"complex {self.id}: the names {self.chain_names} for {len(self.chain_lengths)} chains; give each its "
                "own"
            )

    @property
    def chain_index(self) -> np.ndarray:
        """int64 `(L,)`: number of the chain that a residue belongs to, from 0."""
        return np.repeat(np.arange(len(self.chain_lengths)), self.chain_lengths)

    @property
    def chains(self) -> list[Chain]:
        """Its chains, each by itself, in the frame of the complex; their ids are `<complex>_<chain>`."""
        columns = (self.sequence, self.coords, self.b_factor, self.positions, self.residue_numbers)
        parts = zip(self.chain_names, *(split_by_chain(column, self.chain_lengths) for column in columns), strict=True)
        return [
            Chain(
                f"{self.id}_{name}", sequence, coords, self.atoms, b_factor, self.method, self.resolution,
                positions - positions[0], residue_numbers,
            )
            for name, sequence, coords, b_factor, positions, residue_numbers in parts
        ]  # fmt: skip


def split_by_chain(values: Any, lengths: Sequence[int]) -> list[Any]:
    """What a complex has of each residue, as letters or coordinates, in parts of its chains' `lengths`.

    Examples:
        >>> split_by_chain("MKVGA", [3, 2])
        ['MKV', 'GA']
    """
    ends = list(accumulate(lengths))
    return [values[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def chain_positions(lengths: Sequence[int]) -> np.ndarray:
    """Positions int64 `(sum(lengths),)` of the residues of a complex whose chains have no gaps of their own.

    Examples:
        >>> chain_positions([2, 3])
        array([  0,   1, 102, 103, 104])
    """
    starts = np.cumsum([0, *(length + CHAIN_GAP for length in lengths[:-1])])
    return np.concatenate([start + np.arange(length) for start, length in zip(starts, lengths, strict=True)])


def join_chains(name: str, chains: Sequence[Chain], chain_names: Sequence[str]) -> Complex:
    """The complex of chains that are in one frame.

    Args:
        name: its id.
        chains: at least one, all with the same atoms.
        chain_names: of each chain, all different.

    Raises:
        ValueError: there is no chain, they have other atoms, or equal names.
    """
    if len({chain.atoms for chain in chains}) != 1:
        raise ValueError(
            f"complex {name}: chains with the atoms {sorted({chain.atoms for chain in chains})}; join "
            "at least one chain, and all with the same atoms"
        )
    positions: list[np.ndarray] = []
    start = 0
    for chain in chains:
        positions.append(chain.positions + start)
        start = int(positions[-1][-1]) + 1 + CHAIN_GAP
    numbered = any(chain.residue_numbers for chain in chains)
    return Complex(
        name,
        "".join(chain.sequence for chain in chains),
        np.concatenate([chain.coords for chain in chains]),
        chains[0].atoms,
        np.concatenate([chain.b_factor for chain in chains]),
        chains[0].method,
        chains[0].resolution,
        np.concatenate(positions),
        tuple(each for chain in chains for each in chain.residue_numbers or [""] * len(chain)) if numbered else (),
        tuple(chain_names),
        tuple(map(len, chains)),
    )


def chain_arrays(
    record: Chain | Mapping[str, Any], atoms: Sequence[str], dim: int = 3, optional_atoms: Sequence[str] = ()
) -> tuple[Any, np.ndarray]:
    """Sequence and coordinates (L, atoms, dim), float32 Å, of a `Chain` or of a data set row; `atoms` picks the atoms.

    Those of `optional_atoms` that the record does not hold are NaN.

    A row keeps its coordinates as one flat list; its sequence is a string of letters or a list of tokens.
    """
    if isinstance(record, Mapping):
        if "sequence" not in record or "coords" not in record:
            raise ValueError(
                f"A row has the columns {', '.join(map(str, record))}, but `sequence` and `coords` are needed; with "
                "Trainer set remove_unused_columns=False."
            )
        name, sequence, coords = record.get("id", "?"), record["sequence"], record["coords"]
        available = tuple(record.get("atoms") or ("CA",))
    else:
        name, sequence, coords, available = record.id, record.sequence, record.coords, record.atoms
    coords = np.asarray(coords, dtype=np.float32)
    shape = (len(sequence), len(available), dim)
    flat = coords.ndim == 1 or coords.shape[:1] == shape[:1]
    if not sequence or not flat or coords.size != math.prod(shape):
        raise ValueError(
            f"Chain {name}: coordinates of shape {coords.shape} for {shape[0]} residues with the atoms "
            f"{', '.join(available)} in {dim} dimensions; a flat list of {math.prod(shape)} or an "
            f"array of shape {shape} is needed."
        )
    coords = coords.reshape(shape)
    if tuple(atoms) == available:
        return sequence, coords
    if missing := [atom for atom in atoms if atom not in (*available, *optional_atoms)]:
        raise ValueError(
            f"Chain {name} holds the atoms {', '.join(available)}, but {', '.join(missing)} of `coordinate_atoms` "
            f"{tuple(atoms)} was asked for; read the structure again with atoms={tuple(atoms)}, or prepare the "
            f"data set again with --atoms {','.join(atoms)}."
        )
    coords = np.pad(coords, ((0, 0), (0, 1), (0, 0)), constant_values=np.nan)  # of the last what there is none of
    return sequence, coords[:, [available.index(atom) if atom in available else -1 for atom in atoms]]


def chain_layout(record: Chain | Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """Where residues are along the chain, and of a complex in which chain: `positions` and `chain_index`, both (L,).

    Takes what `chain_arrays` takes. None where positions have no gap and there is one chain, as in most.
    """
    row: Mapping[str, Any] = record if isinstance(record, Mapping) else vars(record)
    positions, lengths, length = row.get("positions"), row.get("chain_lengths"), len(row["sequence"])
    lengths = [length] if lengths is None or not len(lengths) else lengths
    if len(lengths) == 1 and (positions is None or positions[-1] == length - 1):
        return None
    places = chain_positions(lengths) if positions is None else np.asarray(positions, dtype=np.int64)
    return places, np.repeat(np.arange(len(lengths)), lengths)
