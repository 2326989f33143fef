# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""A protein chain: its whole sequence, with the coordinates that are known of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"


class StructureError(ValueError):
    """Something is wrong with a structure file; the message names the file, the chain, the value and the fix."""


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

    Raises:
        ValueError: lengths or shapes that do not agree, an empty sequence, other letters, infinite coordinates, or an
            atom with only some of x, y, z.
    """

    id: str
    sequence: str
    coords: np.ndarray
    atoms: tuple[str, ...]
    b_factor: np.ndarray
    method: str | None = None
    resolution: float | None = None

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

    def __len__(self) -> int:
        """Number of residues, unobserved ones included."""
        return len(self.sequence)

    @property
    def observed(self) -> np.ndarray:
        """bool `(L, len(atoms))`: which atoms have coordinates."""
        missing: np.ndarray = np.isnan(self.coords[..., 0])
        return ~missing
