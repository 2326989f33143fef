"""Structure files as gemmi reads them, and which residue is which of the deposited sequence; only this needs gemmi."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .chain import AMINO_ACIDS, CHAIN_GAP, Chain, ChainError, StructureError
from .structure_text import (
    MMCIF_ATOMS,
    MMCIF_NEEDED,
    NO_B_FACTOR,
    NO_COORDINATE,
    atoms_before_ter,
    first_mmcif_model,
    first_pdb_model,
    is_mmcif,
    mmcif_categories,
    modified_residues,
    needed_records,
    unusual_atoms,
    with_usual_atoms,
)

try:
    import gemmi
except ImportError:  # only reading a structure file needs it
    gemmi = None  # type: ignore[assignment]

LINKED = 4.5
"""C-alpha atoms of bonded residues are 3.8 Å apart (2.9 if cis); farther than this is a break in the chain."""
PEPTIDE_BOND = 2.0
"""C and N of bonded residues are 1.33 Å apart, in poor models somewhat more."""
SPAN = 3.8
"""No chain of n bonds between C-alpha atoms reaches farther than n times so many Å."""

MOST_MISSING = 9999
"""Numbers that jump farther count from somewhere else, and no residues between."""

# Selenocysteine and pyrrolysine have letters of their own but are not among the 20; these are their parents in the CCD.
STANDARD_PARENTS = {"U": "C", "O": "K"}
# Names that simulation programs give to protonation states and ends.
_OTHER_PARENTS = dict.fromkeys(("HSD", "HSE", "HSP", "HID", "HIE", "HIP"), "H")
_OTHER_PARENTS |= {"CYX": "C", "CYM": "C", "ASH": "D", "GLH": "E", "LYN": "K", "LSN": "K", "ARN": "R"}
# Of GROMACS and CHARMM, in four letters: the third is that of the residue, the fourth of its state.
_FOUR_LETTERS = re.compile(
    r"(HIS)[ABDEHP12]|(LYS)[HNP]|(ASP)[HP]|(GLU)[HP]|(CYS)[HSNX12]|(ARG)[NP]|(TYR)[HN]|[NC](.{3})"
)

_PDB_MISSING = re.compile(r"REMARK 465 [ \d]{2}. +(\w{1,3}) (.{1,2}) +(-?\d+\w?) *$", re.ASCII)
_NUMBER = re.compile(r"(-?\d+)[A-Za-z]?", re.ASCII)  # of a residue, with insertion code


@dataclass
class Polymer:
    """Where a chain is in the model, and what is known of its sequence."""

    name: str  # author's name of the chain, with more after a dot where several proteins share it
    rows: list[int]
    deposited: list[str]  # monomers of the whole sequence, "SER,PRO" where both occur at one position; may be empty
    author: str  # as the file has it
    subchain: str  # label_asym_id, mmCIF only
    verified: bool  # whether label_seq_id says which of `deposited` a residue is


class StructureModel:
    """First model of a structure file (`data`, decompressed): its residues as `rows`, the `atoms` as arrays.

    Raises an ImportError without gemmi and a StructureError, which names `path`, of what is broken or has no atoms.
    """

    def __init__(self, data: bytes, path: Path, atoms: tuple[str, ...]) -> None:
        if gemmi is None:
            raise ImportError("reading structure files needs gemmi: pip install gemmi")
        self.parsed = parsed = _parse(data, path)
        self.is_pdb = parsed.block is None
        structure = parsed.structure
        if not len(structure) or not len(structure[0]):
            raise StructureError(f"{path}: no atoms in the file; give one with coordinates")
        del structure[1:]
        self.parents = _parent_letters(structure, parsed.modified)
        self.atoms = atoms
        info = structure.info
        self.method = (info["_exptl.method"].strip("?. ") if "_exptl.method" in info else "") or None
        self.resolution = structure.resolution or None

        placed = [(chain.name, residue) for chain in structure[0] for residue in chain]
        self.chain_names: list[str] = [name for name, _ in placed]
        self.residues: list[Any] = [residue for _, residue in placed]
        self.names: list[str] = [residue.name for residue in self.residues]
        flat = _flat(structure)
        names, elements, positions = flat.atom_names, flat.element_names, flat.pos
        if self.is_pdb:
            positions = np.where((positions == NO_COORDINATE).all(axis=1, keepdims=True), np.nan, positions)
        observed = ~np.isnan(positions).any(axis=1)
        if not observed.all() and parsed.has_odd_coordinates():
            observed[:] = True  # and `build` says so
        lengths = [len(residue) for residue in self.residues]
        rows = np.repeat(np.arange(len(lengths)), lengths)
        self._atoms = (names, elements, rows, positions, observed)
        self._before_ter: set[int] = set()
        if parsed.atoms_before_ter:
            self._before_ter.update(np.flatnonzero(np.isin(np.cumsum(lengths), parsed.atoms_before_ter)).tolist())
        slots = np.full(len(names), -1)
        for slot, atom in enumerate(atoms):
            slots[_atoms_named(atom, names, elements)] = slot
        wanted = np.flatnonzero((slots >= 0) & observed)
        columns = (rows, slots, positions, flat.altlocs, flat.occ)
        self.row, self.slot, self.xyz, self.altloc, self.occupancy = (column[wanted] for column in columns)
        self.b_iso = np.array(flat.b_iso[wanted], dtype=np.float32)
        self.b_iso[np.isinf(self.b_iso) | (self.b_iso == np.float32(NO_B_FACTOR))] = np.nan

    @cached_property
    def backbone(self) -> dict[str, np.ndarray]:
        """Coordinates of N, CA and C of each residue, in any conformer: what tells whether it is bonded to another."""
        names, elements, rows, positions, observed = self._atoms
        backbone = {name: np.full((len(self.residues), 3), np.nan) for name in ("N", "CA", "C")}
        for name, places in backbone.items():
            found = _atoms_named(name, names, elements)
            found = found[observed[found]]
            places[rows[found]] = positions[found]
        return backbone

    def polymers(self) -> list[Polymer]:
        """The protein chains of the file, in its order."""
        entities = {entity.name: entity for entity in self.parsed.structure.entities}
        entity_of = {subchain: entity for entity in entities.values() for subchain in entity.subchains}
        groups: dict[tuple[str, str], list[int]] = {}
        for row, (chain, residue) in enumerate(zip(self.chain_names, self.residues, strict=True)):
            groups.setdefault((chain, residue.subchain), []).append(row)
        for (chain, subchain), rows in [*groups.items()]:
            first = self.residues[rows[0]]
            # Without an entity a label_asym_id means nothing: Biopython has a new one wherever HETATM follow ATOM.
            if first.entity_id not in entities and subchain not in entity_of:
                if subchain:
                    groups.setdefault((chain, ""), []).extend(groups.pop((chain, subchain)))
            elif first.entity_type.name in ("NonPolymer", "Branched", "Water"):
                del groups[chain, subchain]
        found: list[Polymer] = []
        for (chain, subchain), rows in sorted(groups.items(), key=lambda group: min(group[1])):
            rows.sort()
            # gemmi names the entities of a PDB file, which are its SEQRES records, after the chains.
            first = self.residues[rows[0]]
            entity = entities.get(chain if self.is_pdb else first.entity_id) or entity_of.get(first.subchain)
            deposited = list(entity.full_sequence) if entity is not None else []
            # Without a sequence ligands and waters may outnumber the protein, so residues decide alone.
            if deposited and not self._is_protein(entity, deposited):
                continue
            verified = bool(deposited) and first.label_seq is not None
            pieces = [self._amino_acids(rows)] if verified else self._pieces(rows, deposited)
            for number, piece in enumerate(pieces, 1):
                name = chain or subchain
                name = name if len(pieces) == 1 else f"{name}.{number}".removeprefix(".")
                if piece:
                    sequence = deposited if number == 1 else []
                    found.append(Polymer(name, piece, sequence, chain, self.residues[piece[0]].subchain, verified))
        shared = Counter(polymer.name for polymer in found)
        taken: set[str] = set()
        for polymer in found:
            if shared[polymer.name] > 1 and polymer.subchain:
                polymer.name += f".{polymer.subchain}"
            name = polymer.name
            copies = count(2)
            while polymer.name in taken:
                polymer.name = f"{name}.{next(copies)}"
            taken.add(polymer.name)
        return found

    def build(self, polymer: Polymer, chain_id: str) -> Chain:
        """The chain with its sequence and coordinates; `ChainError` if they do not fit."""
        places = self._places(polymer)
        length = len(polymer.deposited) or len(set(places))
        place_of_row = np.full(len(self.residues), -1)
        place_of_row[polymer.rows] = places
        names = dict(zip(reversed(places), (self.names[row] for row in reversed(polymer.rows)), strict=True))
        mine = np.flatnonzero(place_of_row[self.row] >= 0)
        mine = mine[np.argsort(place_of_row[self.row[mine]], kind="stable")]
        place = place_of_row[self.row[mine]]
        # Most residues have one conformer; only the others are worth a look at each atom.
        alternative = set(place[self.altloc[mine] != 0].tolist())
        alternative |= {each for each, count in Counter(places).items() if count > 1}
        kept = [mine[~np.isin(place, list(alternative))]]
        for each in sorted(alternative):
            first, last = np.searchsorted(place, (each, each + 1))
            if first < last:
                names[each], conformer = self._conformer(mine[first:last].tolist())
                kept.append(np.array(conformer))
        atoms = np.concatenate(kept)
        place, slot = place_of_row[self.row[atoms]], self.slot[atoms]
        cell = place * len(self.atoms) + slot
        if len(np.unique(cell)) < len(cell):
            order = np.argsort(cell, kind="stable")
            self._raise_double(int(atoms[order[1:][np.diff(cell[order]) == 0][0]]))
        with np.errstate(over="ignore"):
            xyz = self.xyz[atoms].astype(np.float32)
        if not np.isfinite(xyz).all():
            bad = atoms[np.argmin(np.isfinite(xyz).all(-1))]
            raise ChainError(
                f"atom {self.atoms[self.slot[bad]]} of {self._label(self.row[bad])} has the coordinates "
                f"{self.xyz[bad].tolist()}; correct the file or remove the atom"
            )
        coords = np.full((length, len(self.atoms), 3), np.nan, dtype=np.float32)
        coords[place, slot] = xyz
        b_factor = np.full(length, np.nan, dtype=np.float32)
        for index in reversed(range(len(self.atoms))):  # the first listed atom is written last
            b_factor[place[slot == index]] = self.b_iso[atoms[slot == index]]
        names = {index: monomer.split(",")[0] for index, monomer in enumerate(polymer.deposited)} | names
        letters = "".join(self._letter(names.get(index, "")) or "X" for index in range(length))
        positions: Any = None if polymer.deposited else self._positions(polymer, places)
        numbers = self._residue_numbers(polymer, places, length)
        return Chain(
            chain_id, letters, coords, self.atoms, b_factor, self.method, self.resolution, positions, tuple(numbers)
        )

    def _positions(self, polymer: Polymer, places: Sequence[int]) -> np.ndarray:
        """Places along the chain of residues without a deposited sequence, which alone knows what is missing.

        Bonded residues are neighbors, whatever their numbers. Between others there is a gap: as long as the numbers
        say, where the chain reaches so far, or else as the distance asks for at least.
        """
        first = dict(zip(reversed(places), reversed(polymer.rows), strict=True))  # one row of each place
        rows = np.array([first[place] for place in range(len(first))])
        steps = np.ones(len(rows), dtype=int)
        steps[0] = 0
        for index in np.flatnonzero(~self._bonded(rows[:-1], rows[1:])):
            before, after = rows[index], rows[index + 1]
            distance, apart = float(self._distance(before, after)), self._number(after) - self._number(before)
            # Where an atom is missing the distance is NaN, and compares as False.
            if 1 < apart <= MOST_MISSING and not (distance <= LINKED or distance > SPAN * apart + 1):
                steps[index + 1] = apart
            elif distance > LINKED:
                steps[index + 1] = max(math.ceil(min(distance / SPAN, CHAIN_GAP)), 2)
        return np.cumsum(steps)

    def _residue_numbers(self, polymer: Polymer, places: Sequence[int], length: int) -> list[str]:
        """The author's numbers; of residues that were not observed as the file lists them, or counted on."""
        numbers = [""] * length
        for place, row in zip(places, polymer.rows, strict=True):
            number = str(self.residues[row].seqid)
            numbers[place] = "" if number.startswith("?") else number
        missing = sorted(set(range(length)).difference(places))
        if missing:
            for place, number in self._listed_numbers(polymer, missing).items():
                numbers[place] = number
            if not all(numbers):
                _count_on(numbers)
        return numbers

    def _listed_numbers(self, polymer: Polymer, missing: Sequence[int]) -> dict[int, str]:
        """Numbers of residues that were not observed, as `_pdbx_poly_seq_scheme` or REMARK 465 have them."""
        if not self.is_pdb:
            listed = self.parsed.numbers_of_sequence
            found = {place: listed.get((polymer.subchain, str(place + 1)), "") for place in missing}
            return {place: number for place, number in found.items() if _NUMBER.fullmatch(number)}
        unobserved = self.parsed.unobserved.get(polymer.author, [])
        if [name for name, _ in unobserved] != [polymer.deposited[place] for place in missing]:
            return {}
        return {place: number for place, (_, number) in zip(missing, unobserved, strict=True)}

    def _number(self, row: int) -> int:
        seqid = self.residues[row].seqid
        return seqid.num if seqid.num is not None else self.residues[row].label_seq or 0

    def _letter(self, name: str) -> str | None:
        """One of the 20 letters or X; None for what is not known to be an amino acid."""
        return _tabulated(name)[0] or self.parents.get(name)

    def _label(self, row: int) -> str:
        residue = self.residues[row]
        return f"{residue.name} {residue.seqid}"

    def _is_protein(self, entity: Any, monomers: Sequence[str]) -> bool:
        nature = entity.polymer_type.name if entity is not None else "Unknown"
        if nature in ("PeptideL", "PeptideD", "CyclicPseudoPeptide"):
            return True
        amino = sum(self._letter(monomer.split(",")[0]) is not None for monomer in monomers)
        return nature in ("Unknown", "Other") and 2 * amino > len(monomers)

    def _amino_acids(self, rows: list[int]) -> list[int]:
        """Residues of a polymer without its caps, which gemmi knows and knows not to be amino acids."""
        return [row for row in rows if self._letter(self.names[row]) or not _tabulated(self.names[row])[1]]

    def _pieces(self, rows: list[int], deposited: list[str]) -> list[list[int]]:
        """Amino acids of a chain in which ligands and waters may follow the polymer: of each protein those of its own.

        A chain ends where its backbone does and there is TER, or another segment; what follows is another one, if it is
        no ligand.
        """
        pieces: list[list[int]] = []
        start = 0
        for end, row in enumerate(rows, 1):
            at_ter = row in self._before_ter
            if end < len(rows) and not at_ter and not self._anew(row, rows[end]):
                continue
            piece = self._polymer_rows(rows[start:end], deposited, at_ter)
            start = end
            if pieces and all(self.residues[row].het_flag == "H" for row in piece):
                continue
            if pieces and self._linked(pieces[-1][-1], piece[0]):
                pieces[-1] += piece
            elif piece:
                pieces.append(piece)
        keys = [{self._key_of(row, verified=False) for row in piece} for piece in pieces]
        if len(pieces) > 1 and deposited and not set.intersection(*keys):
            whole = [row for piece in pieces for row in piece]
            try:
                self._places(Polymer("", whole, deposited, "", "", verified=False))
                return [whole]  # TER at the gaps of one chain
            except ChainError:
                pass
        return pieces

    def _anew(self, row: int, following: int) -> bool:
        """Whether another segment begins: by its name if the chain has none, else if the numbers begin anew, too."""
        before, after = self.residues[row], self.residues[following]
        if before.segment != after.segment and not self.chain_names[row]:
            return True
        named = (before.segment, before.subchain) != (after.segment, after.subchain)
        return named and self._number(following) < self._number(row)

    def _polymer_rows(self, rows: list[int], deposited: Sequence[str], at_ter: bool) -> list[int]:
        """The amino acids among residues in a row."""
        named = {name for monomer in deposited for name in monomer.split(",")}
        known = {row for row in rows if self._letter(self.names[row]) is not None}
        unknown = {
            row for row in rows if not _tabulated(self.names[row])[1] and not np.isnan(self.backbone["CA"][row, 0])
        }
        candidates = [row for row in rows if row in known or row in unknown]
        kept = []
        for index, row in enumerate(candidates):
            sure = row in known or self.residues[row].het_flag == "A" or self.names[row] in named
            if sure or any(self._follows(*pair) for pair in pairwise(candidates[max(index - 1, 0) : index + 2])):
                kept.append(row)
        # Behind these may be free amino acids and peptides of HETATM records; the polymer's own are bonded to it.
        # Right before TER is the polymer, but for programs that write ligands there, too.
        closed = at_ter and kept[-1:] == rows[-1:]
        own = [index for index, row in enumerate(kept, 1) if row in known and self._in_polymer(row, closed)]
        end = own[-1] if own else 1
        while end < len(kept) and self._follows(kept[end - 1], kept[end]):
            end += 1
        return kept[:end] if own or end > 1 or deposited else []

    def _follows(self, row: int, other: int) -> bool:
        """Whether the second residue is bonded to the first one, or is another type at its position."""
        return bool(self._bonded(row, other)) or self.residues[row].seqid == self.residues[other].seqid

    def _in_polymer(self, row: int, before_ter: bool) -> bool:
        """Whether an amino acid belongs to the polymer by its record; there, the 20 are ATOM records."""
        modified = before_ter and not gemmi.find_tabulated_residue(self.names[row]).is_standard()
        return modified or self.residues[row].het_flag != "H"

    def _distance(self, row: Any, other: Any, name: str = "CA", other_name: str = "CA") -> Any:
        """Between atoms of two residues, by default the C-alphas, Å; NaN if one is missing. Rows may be arrays."""
        vector = self.backbone[name][row] - self.backbone[other_name][other]
        return np.sqrt(np.einsum("...i,...i->...", vector, vector))

    def _linked(self, row: Any, other: Any) -> Any:
        """Whether the second residue may follow the first one in the chain, by their C-alpha atoms."""
        return self._distance(row, other) <= LINKED

    def _bonded(self, row: Any, other: Any) -> Any:
        """Whether a peptide bond leads from the first residue to the second; without C and N `_linked` decides."""
        bond = self._distance(row, other, "C", "N")
        return np.where(np.isnan(bond), self._linked(row, other), bond <= PEPTIDE_BOND)

    def _places(self, polymer: Polymer) -> list[int]:
        """Index in the sequence of each row; several rows share one where the residue type varies."""
        keys: list[Any] = [self._key_of(row, polymer.verified) for row in polymer.rows]
        if None in keys:
            raise ChainError(f"a {self.names[polymer.rows[keys.index(None)]]} has no residue number; number it")
        groups: dict[Any, list[int]] = {}
        for key, row in zip(keys, polymer.rows, strict=True):
            groups.setdefault(key, []).append(row)
        for rows in groups.values() if len(groups) < len(keys) else ():
            several = len({self.names[row] for row in rows}) > 1
            if several and any(all(atom.altloc == "\0" for atom in self.residues[row]) for row in rows):
                raise ChainError(
                    f"{self._label(rows[0])} and {self._label(rows[1])} have one place and no altloc labels; "
                    "number each residue or, if these are two molecules, give each its own chain name"
                )
        order = sorted(groups) if polymer.verified else list(groups)
        places = list(range(len(order)))
        if polymer.verified:
            places = [number - 1 for number in order]
            for number, place in zip(order, places, strict=True):
                self._check(groups[number], place, polymer.deposited)
        elif polymer.deposited:
            places = self._aligned([groups[key] for key in order], polymer.deposited)
        index = dict(zip(order, places, strict=True))
        return [index[key] for key in keys]

    def _key_of(self, row: int, verified: bool) -> Any:
        """What identifies a residue of a chain: `label_seq_id` where a deposited sequence verifies it, else the
        author's number with insertion code; None where it has none."""
        residue = self.residues[row]
        if verified or (seqid := residue.seqid).num is None:
            return residue.label_seq
        return seqid.num, seqid.icode

    def _check(self, rows: list[int], place: int, deposited: Sequence[str]) -> None:
        """That residues are what the deposited sequence has at their place."""
        if not 0 <= place < len(deposited):
            raise ChainError(
                f"{self._label(rows[0])} has the number {place + 1} in a sequence of {len(deposited)}; correct "
                "label_seq_id or the deposited sequence"
            )
        if self.names[rows[0]] == deposited[place]:
            return
        allowed = {self._key(name) for name in deposited[place].split(",")}
        if not any(self._key(self.names[row]) in allowed for row in rows):
            raise ChainError(
                f"{self._label(rows[0])} is {deposited[place]} at position {place + 1} of the deposited sequence; "
                "correct the one that is wrong"
            )

    def _key(self, name: str) -> str:
        """What must be equal for two residue names to mean the same: MSE stands for MET in many files."""
        letter = self._letter(name)
        return letter if letter not in (None, "X") else name

    def _aligned(self, residues: list[list[int]], deposited: Sequence[str]) -> list[int]:
        """Places of the residues of a PDB file in its SEQRES, without a mismatch."""
        codes: dict[str, int] = {}
        options = [{codes.setdefault(self._key(self.names[row]), len(codes)) for row in rows} for rows in residues]
        target = [codes.setdefault(self._key(name.split(",")[0]), len(codes)) for name in deposited]
        numbers = [self.residues[rows[0]].seqid.num for rows in residues]
        rows = np.array([rows[0] for rows in residues])
        bonded = self._linked(rows[:-1], rows[1:]).tolist()
        solutions, places = _place_runs(options, np.array(target), numbers, bonded)
        if solutions == 1:
            return places
        if solutions > 1:
            raise ChainError(
                f"the residues {self._label(residues[0][0])} to {self._label(residues[-1][0])} fit SEQRES in more than "
                "one way; read the mmCIF file of the entry, which numbers them"
            )
        raise ChainError(self._first_mismatch(residues, deposited))

    def _first_mismatch(self, residues: list[list[int]], deposited: Sequence[str]) -> str:
        keys = [[self._key(self.names[row]) for row in rows] for rows in residues]
        target = [self._key(name) for name in deposited]
        aligned = gemmi.align_string_sequences([each[0] for each in keys], target, [])
        fix = "correct the one that is wrong, or read the mmCIF file of the entry"
        here = there = 0
        for length, kind in re.findall(r"(\d+)([MID])", aligned.cigar_str()):
            for _ in range(int(length)):
                residue = self._label(residues[min(here, len(residues) - 1)][0])
                if kind == "M" and target[there] not in keys[here]:
                    return f"{residue} is {deposited[there]} at position {there + 1} of SEQRES; {fix}"
                if kind == "I":
                    return f"{residue} has no place in SEQRES near position {there + 1}; {fix}"
                here += kind != "D"
                there += kind != "I"
        return f"the residues fit SEQRES only with gaps between bonded ones; {fix}"

    def _conformer(self, indices: list[int]) -> tuple[str, list[int]]:
        """Residue name and atoms of the conformer with the highest occupancy, among atoms of one residue."""
        conformers: dict[tuple[str, int], dict[int, int]] = {}
        for index in indices:
            slots = conformers.setdefault((self.names[self.row[index]], int(self.altloc[index])), {})
            if int(self.slot[index]) in slots:
                self._raise_double(index)
            slots[int(self.slot[index])] = index
        ranked: list[tuple[float, int, int, str, list[int]]] = []
        for (name, altloc), own in conformers.items():
            atoms = {**conformers.get((name, 0), {}), **own}
            every = {slot for (other, _), slots in conformers.items() if other == name for slot in slots}
            if altloc == 0 and every - set(atoms):
                continue  # atoms without a label are shared, not a conformer, unless nothing else is to be had
            occupancy = round(sum(float(self.occupancy[index]) for index in atoms.values()), 3)
            ranked.append((-occupancy, altloc, len(ranked), name, list(atoms.values())))
        *_, name, chosen = min(ranked)
        return name, chosen

    def _raise_double(self, index: int) -> None:
        raise ChainError(
            f"{self._label(self.row[index])} has two atoms {self.atoms[self.slot[index]]} with the same altloc label; "
            "label the conformers or, if these are two molecules, give each its own chain name"
        )


def _place_runs(
    options: list[set[int]], target: np.ndarray, numbers: list[int], bonded: list[bool]
) -> tuple[int, list[int]]:
    """Place residues in a sequence so that each meets its own kind.

    Residues that are bonded and numbered in a row stay adjacent; between others the sequence may have a gap. Of all
    such placements the one is taken whose gaps agree best with the bonds and the numbers. `options` are codes that each
    observed residue may have, `target` those of the sequence; `numbers` are the author's; `bonded` says whether
    residues i and i + 1 are. Returns how many placements are equally good (0: there is none), and the places of one.
    """
    breaks = [i + 1 for i, bond in enumerate(bonded) if not bond or numbers[i + 1] - numbers[i] not in (0, 1)]
    runs = list(zip([0, *breaks], [*breaks, len(options)], strict=True))
    tables: list[dict[int, tuple[int, int, int]]] = []  # start of the run: cost, equally good ways, start before
    for first, last in runs:
        width = len(target) - (last - first) + 1
        fits = np.ones(max(width, 0), dtype=bool)
        for offset in range(last - first if width > 0 else 0):
            window = target[offset : offset + width]
            fits &= np.any([window == code for code in options[first + offset]], axis=0)
        table: dict[int, tuple[int, int, int]] = {}
        for start in np.flatnonzero(fits).tolist():
            if not tables:
                table[start] = (int(start + 1 != numbers[0]), 1, -1)
                continue
            length = first - runs[len(tables) - 1][0]
            expected = numbers[first] - numbers[first - 1] - 1
            for before, (cost, ways, _) in tables[-1].items():
                gap = start - before - length
                if gap < 0:
                    continue
                best, second = (gap == 0, gap == expected) if bonded[first - 1] else (gap == expected, gap > 0)
                cost += 0 if best else 2 if second else 4
                least, others, previous = table.get(start, (cost + 1, 0, -1))
                if cost < least:
                    table[start] = (cost, ways, before)
                elif cost == least:
                    table[start] = (cost, others + ways, previous)
        if not table:
            return 0, []
        tables.append(table)
    cost = min(entry[0] for entry in tables[-1].values())
    ends = [start for start, entry in tables[-1].items() if entry[0] == cost]
    start = ends[0]
    places: list[int] = []
    for (first, last), table in zip(reversed(runs), reversed(tables), strict=True):
        places += range(start + last - first - 1, start - 1, -1)
        start = table[start][2]
    return sum(tables[-1][end][1] for end in ends), places[::-1]


def _count_on(numbers: list[str]) -> None:
    """Number residues that have none as the ones beside them say, in place; where these disagree they stay without."""
    found = ((place, _NUMBER.match(number)) for place, number in enumerate(numbers))
    known = [(place, int(match[1])) for place, match in found if match]
    if not known:
        return
    (first, lowest), (last, highest) = known[0], known[-1]
    ends = [(-1, lowest - first - 1), *known, (len(numbers), highest + len(numbers) - last)]
    taken = set(numbers)
    for (before, number), (after, following) in pairwise(ends):
        counted = [str(number + step) for step in range(1, after - before)]
        if following - number == after - before and not taken.intersection(counted):
            numbers[before + 1 : after] = counted


def _four_letter_parent(name: str) -> str | None:
    """The name in three letters of a residue that a simulation program names in four, such as LYSH or NALA."""
    match = _FOUR_LETTERS.fullmatch(name)
    parent = next(filter(None, match.groups()), None) if match else None
    return parent if parent is not None and len(parent) == 3 and _tabulated(parent)[0] in (*AMINO_ACIDS,) else None


@cache
def _tabulated(name: str) -> tuple[str | None, bool]:
    """Letter of an amino acid (None: not one), and whether the name is known at all."""
    if name in _OTHER_PARENTS:
        return _OTHER_PARENTS[name], True
    if len(name) == 4 and (parent := _four_letter_parent(name)):
        return _tabulated(parent)
    info = gemmi.find_tabulated_residue(name)
    if not info.is_amino_acid():
        return None, info.found()
    letter = info.one_letter_code.upper()
    letter = STANDARD_PARENTS.get(letter, letter)
    return (letter if letter in AMINO_ACIDS else "X"), True


def _flat(structure: Any) -> Any:
    """The atoms of a structure as arrays, which know names of at most 7 letters; longer ones are cut."""
    try:
        flat = gemmi.FlatStructure(structure)
    except RuntimeError:
        short = structure.clone()
        for chain in short[0]:
            chain.name = ""
            for residue in chain:
                residue.name = residue.subchain = residue.entity_id = ""
                for atom in residue:
                    atom.name = atom.name[:7]
        flat = gemmi.FlatStructure(short)
    flat.strings_as_numbers = False
    return flat


def _atoms_named(name: str, names: np.ndarray, elements: np.ndarray) -> np.ndarray:
    """Indices of the atoms with this name: CA is C-alpha, and not calcium, whose symbol it also is."""
    found = np.flatnonzero(names == name.encode())
    return found[elements[found] != name.title().encode()] if len(name) > 1 else found


def _parent_letters(structure: Any, modified: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Letters of modified residues by the parents that the file gives; X where a name has several."""
    letters: dict[str, set[str]] = {}
    pairs = [(each.res_id.name, each.parent_comp_id) for each in structure.mod_residues]
    for name, parent in (*pairs, *modified):
        if letter := _tabulated(parent)[0]:
            letters.setdefault(name, set()).add(letter)
    return {name: found.pop() if len(found) == 1 else "X" for name, found in letters.items()}


@dataclass
class _Parsed:
    """What is read of a file: gemmi's structure, and beyond it

    - `modified`: names of modified residues and their parents;
    - `atoms_before_ter`: of a PDB file, how many atoms come before each TER;
    - `block`: of an mmCIF file.
    """

    structure: Any
    modified: list[tuple[str, str]]
    atoms_before_ter: list[int] = field(default_factory=list)
    block: Any = None

    def has_odd_coordinates(self) -> bool:
        """Whether a coordinate that gemmi read as NaN is neither NaN nor missing."""
        usual = re.compile(r"[-+]?(?:\.?\d|nan$)|[?.]$", re.IGNORECASE)
        columns = (self.block.find_values(f"_atom_site.Cartn_{axis}") for axis in ("xyz" if self.block else ""))
        return not all(usual.match(value) for column in columns for value in column)

    @cached_property
    def numbers_of_sequence(self) -> dict[tuple[str, str], str]:
        """Of an mmCIF file, by `label_asym_id` and `label_seq_id`: the author's number with insertion code."""
        names = ("asym_id", "seq_id", "pdb_seq_num", "pdb_ins_code")
        columns = [list(self.block.find_values(f"_pdbx_poly_seq_scheme.{name}")) for name in names]
        columns[3] = columns[3] or [""] * len(columns[0])
        return {(asym, place): number + code.strip(".?") for asym, place, number, code in zip(*columns, strict=False)}

    @cached_property
    def unobserved(self) -> dict[str, list[tuple[str, str]]]:
        """Of a PDB file, by chain: names and numbers of the residues in REMARK 465, in its order."""
        found: dict[str, list[tuple[str, str]]] = {}
        for match in filter(None, map(_PDB_MISSING.match, self.structure.raw_remarks)):
            found.setdefault(match[2].strip(), []).append((match[1], match[3]))
        return found


def _parse(data: bytes, path: Path) -> _Parsed:
    head = data[:4096]
    mmcif = is_mmcif(data)
    if b"dataBlocks" in head and not mmcif:
        raise StructureError(f"{path}: BinaryCIF is not supported; convert it to mmCIF or download that")
    if b"\0" in head:
        raise StructureError(f"{path}: binary data and no structure; give an mmCIF or PDB file")
    model = None if mmcif else first_pdb_model(data)
    if not mmcif and model is None:
        raise StructureError(f"{path}: neither mmCIF (begins with data_) nor PDB (has ATOM lines); give one of these")
    try:
        parsed = _parse_mmcif(data) if model is None else _parse_pdb(model)
    except ChainError as error:
        raise StructureError(f"{path}: {error}") from error
    except (ValueError, RuntimeError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise StructureError(f"{path}: {reason}; the file is broken or cut off, get it again") from error
    if parsed is None:
        raise StructureError(f"{path}: an mmCIF without atoms (_atom_site); give one with coordinates")
    return parsed


def _parse_mmcif(data: bytes) -> _Parsed | None:
    """The categories that are needed of an mmCIF file, or as many of them as can be read.

    The others are up to half of a file, and what is broken there does not matter.
    """
    return _first_of(
        lambda: _read_mmcif(first_mmcif_model(mmcif_categories(data, MMCIF_NEEDED))),
        lambda: _read_mmcif(mmcif_categories(data, MMCIF_ATOMS)),
        lambda: _read_mmcif(data),  # where text of several lines looks like a category
    )


def _first_of(*attempts: Callable[[], Any]) -> Any:
    """What the first attempt finds, or the next one if it cannot be read; if none can, the error of the first."""
    reason = None
    for attempt in attempts:
        try:
            if (found := attempt()) is not None:
                return found
        except (ValueError, RuntimeError, IndexError) as error:
            reason = reason or error
    if reason:
        raise reason
    return None


def _read_mmcif(data: bytes) -> _Parsed | None:
    """The first block with atoms; None if there is none."""
    document = gemmi.cif.read_string(data, check_level=0)  # blocks may have one name
    document.check_for_missing_values()  # a tag without one would end the process
    block = next((block for block in document if block.find_values("_atom_site.Cartn_x")), None)
    if block is None:
        return None
    # gemmi returns no atom at all where one of its columns is missing; the value of these is not needed.
    loop = block.find_values("_atom_site.Cartn_x").get_loop()
    for column, value in (("id", "1"), ("label_alt_id", "."), ("type_symbol", "X"), ("B_iso_or_equiv", "?")):
        if loop is not None and not block.find_values(f"_atom_site.{column}"):
            loop.add_columns([f"_atom_site.{column}"], value)
    with suppress(RuntimeError):  # which is gemmi's way to say that no value is missing
        block.find("_atom_site.", ["B_iso_or_equiv"]).find_row("")
        b_factors = block.find_values("_atom_site.B_iso_or_equiv")
        for index, value in enumerate(b_factors):
            if value in ("?", "."):
                b_factors[index] = str(NO_B_FACTOR)
    changes = block.find("_struct_ref_seq_dif.", ["mon_id", "db_mon_id", "details"])
    modified = [(row.str(0), row.str(1)) for row in changes if row.str(2).upper() == "MODIFIED RESIDUE"]
    structure = gemmi.make_structure_from_block(block)
    return _Parsed(structure, [*modified, *_canonical(structure, block)], block=block)


def _canonical(structure: Any, block: Any) -> Iterable[tuple[str, str]]:
    """Modified residues and their parents by the canonical sequence, which has a letter for each residue."""
    for row in block.find("_entity_poly.", ["entity_id", "type", "pdbx_seq_one_letter_code_can"]):
        entity = structure.get_entity(row.str(0)) if "polypeptide" in row.str(1) else None
        monomers = [each.split(",")[0] for each in entity.full_sequence] if entity is not None else []
        if all(_tabulated(monomer)[0] for monomer in set(monomers)):
            continue
        letters = "".join(row.str(2).split())
        for monomer, letter in zip(monomers, letters, strict=True) if len(letters) == len(monomers) else ():
            if letter in AMINO_ACIDS and not _tabulated(monomer)[1]:
                yield monomer, gemmi.expand_one_letter(letter, gemmi.ResidueKind.AA)


def _parse_pdb(data: bytes) -> _Parsed:
    """The first model of a PDB file; the records that are needed, if gemmi stumbles over the others, or of their first
    72 columns: until 1996 columns 73 to 80 held the entry and the line's number, where element and charge are now."""
    if lines := unusual_atoms(data):
        data = with_usual_atoms(data, _four_letter_names(lines))
    read = partial(gemmi.read_pdb_string, split_chain_on_ter=True)
    text = data.replace(b"\nDBREF2", b"\nNOTE  ")  # without DBREF1 gemmi would read nothing behind it
    structure = _first_of(
        lambda: read(text),
        lambda: read(text, max_line_length=72),
        lambda: read(needed_records(data)),
        lambda: read(needed_records(data), max_line_length=72),
    )
    return _Parsed(structure, modified_residues(data), atoms_before_ter(data))


def _four_letter_names(lines: Iterable[bytes]) -> dict[str, str]:
    """Of atoms with something in column 21: residue names in four letters, such as LYSH, with those in three.

    It is the fourth letter of a residue's name, or the first of a chain's: then it stands behind other names, too.
    """
    names = {line[17:21].decode("latin-1") for line in lines if line[20:21].strip()}
    parents = {name: parent for name in names if (parent := _four_letter_parent(name))}
    chains = {name[3] for name in names.difference(parents) if _tabulated(name[:3].strip())[0]}
    return {name: parent for name, parent in parents.items() if name[3] not in chains}
