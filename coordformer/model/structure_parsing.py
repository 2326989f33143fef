"""Structure files as gemmi reads them, and which residue is which of the deposited sequence; only this needs gemmi."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .chain import AMINO_ACIDS, Chain, StructureError

try:
    import gemmi
except ImportError:  # only reading a structure file needs it
    gemmi = None  # type: ignore[assignment]

LINKED = 4.5
"""C-alpha atoms of bonded residues are 3.8 Å apart (2.9 if cis); farther than this is a break in the chain."""

# Selenocysteine and pyrrolysine have letters of their own but are not among the 20; these are their parents in the CCD.
STANDARD_PARENTS = {"U": "C", "O": "K"}
# Names that simulation programs give to protonation states; no dictionary of the PDB holds them.
_FORCE_FIELD_PARENTS = dict.fromkeys(("HSD", "HSE", "HSP", "HID", "HIE", "HIP"), "H")
_FORCE_FIELD_PARENTS |= {"CYX": "C", "CYM": "C", "ASH": "D", "GLH": "E", "LYN": "K"}

_MMCIF = re.compile(rb"(?:\s|#[^\n]*\n)*data_", re.IGNORECASE)
_PDB_ATOM = re.compile(rb"^(?:ATOM  |HETATM)", re.MULTILINE)
# gemmi reads 0.0 from a coordinate field without a number, so such a line must be found before.
_PDB_BAD_ATOM = re.compile(rb"^(?:ATOM  |HETATM)(?!.{24}(?:(?=[-+. ]{0,7}\d)[-+. \d]{8}){3})[^\r\n]*", re.MULTILINE)
_PDB_MODIFIED = re.compile(rb"^SEQADV.{6}(.{3}).{24}(.{3}).{7}MODIFIED RESIDUE", re.MULTILINE)


class ChainError(Exception):
    """Why one chain cannot be read; `read_chains` adds the file and the chain, and raises or collects it."""


@dataclass
class Polymer:
    """Where a chain is in the model, and what is known of its sequence."""

    name: str
    rows: list[int]
    deposited: list[str]  # monomers of the whole sequence, "SER,PRO" where both occur at one position; may be empty
    numbers: list[int] | None  # label_seq_id of the rows


class StructureModel:
    """First model of a structure file (`data`, decompressed): its residues as `rows`, the `atoms` as arrays.

    Raises an ImportError without gemmi and a StructureError, which names `path`, of what is broken or has no atoms.
    """

    def __init__(self, data: bytes, path: Path, atoms: tuple[str, ...]) -> None:
        if gemmi is None:
            raise ImportError("reading structure files needs gemmi: pip install gemmi")
        self.is_pdb = _MMCIF.match(data) is None
        structure, modified, has_b_iso = _parse(data, not self.is_pdb, path)
        if not len(structure) or not len(structure[0]):
            raise StructureError(f"{path}: no atoms in the file; give one with coordinates")
        del structure[1:]
        self.structure = structure
        self.parents = _parent_letters(structure, modified)
        self.atoms = atoms
        info = structure.info
        self.entry = info["_entry.id"].strip("?. ") if "_entry.id" in info else ""
        self.method = (info["_exptl.method"].strip("?. ") if "_exptl.method" in info else "") or None
        self.resolution = structure.resolution or None

        placed = [(chain.name, residue) for chain in structure[0] for residue in chain]
        self.chain_names: list[str] = [name for name, _ in placed]
        self.residues: list[Any] = [residue for _, residue in placed]
        self.names: list[str] = [residue.name for residue in self.residues]
        try:
            flat: Any = gemmi.FlatStructure(structure)
        except RuntimeError as error:  # names of 8 letters and more
            raise StructureError(f"{path}: {error}; shorten the name") from error
        flat.strings_as_numbers = False
        names, elements, positions = flat.atom_names, flat.element_names, flat.pos
        rows = np.repeat(np.arange(len(self.residues)), [len(residue) for residue in self.residues])
        carbon = _atoms_named("CA", names, elements)
        self.carbon = np.full((len(self.residues), 3), np.nan)  # C-alpha of each residue
        self.carbon[rows[carbon]] = positions[carbon]  # any conformer will do
        slots = np.full(len(names), -1)
        for slot, atom in enumerate(atoms):
            slots[_atoms_named(atom, names, elements)] = slot
        wanted = np.flatnonzero(slots >= 0)
        columns = (rows, slots, positions, flat.altlocs, flat.occ)
        self.row, self.slot, self.xyz, self.altloc, self.occupancy = (column[wanted] for column in columns)
        self.b_iso = flat.b_iso[wanted] if has_b_iso else np.full(len(wanted), np.nan, dtype=np.float32)

    def polymers(self) -> Iterator[Polymer]:
        """The protein chains of the file, in its order."""
        label_seq = [residue.label_seq for residue in self.residues]
        numbered = any(number is not None for number in label_seq)
        groups: dict[tuple[str, str], list[int]] = {}
        for row, (chain, residue) in enumerate(zip(self.chain_names, self.residues, strict=True)):
            if label_seq[row] is not None or not numbered:
                groups.setdefault((chain, residue.subchain if numbered else ""), []).append(row)
        entities = {entity.name: entity for entity in self.structure.entities}
        entity_of = {subchain: entity for entity in entities.values() for subchain in entity.subchains}
        found = []
        for (chain, subchain), rows in groups.items():
            first = self.residues[rows[0]]
            # gemmi names the entities of a PDB file, which are its SEQRES records, after the chains.
            key = chain if self.is_pdb else first.entity_id
            entity = entities.get(key) or entity_of.get(first.subchain)
            deposited = list(entity.full_sequence) if entity is not None else []
            monomers = deposited or [self.names[row] for row in rows]
            # Without numbers or a sequence, ligands and waters may outnumber the protein, so residues decide alone.
            if (deposited or numbered) and not self._is_protein(entity, monomers):
                continue
            rows = self._numbered_rows(rows) if numbered else self._unnumbered_rows(rows, deposited)
            if rows:
                numbers = [label_seq[row] for row in rows] if numbered else None
                found.append((subchain, Polymer(chain, rows, deposited, numbers)))
        shared = Counter(polymer.name for _, polymer in found)
        for subchain, polymer in found:
            if shared[polymer.name] > 1:
                polymer.name += f".{subchain}"
            yield polymer

    def build(self, polymer: Polymer, chain_id: str) -> Chain:
        """The chain with its sequence and coordinates; `ChainError` if they do not fit."""
        places = self._places(polymer)
        length = len(polymer.deposited) or max(places) + 1
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
        return Chain(chain_id, letters, coords, self.atoms, b_factor, self.method, self.resolution)

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

    def _numbered_rows(self, rows: list[int]) -> list[int]:
        """Residues of a polymer without its caps, which gemmi knows and knows not to be amino acids."""
        return [row for row in rows if self._letter(self.names[row]) or not _tabulated(self.names[row])[1]]

    def _unnumbered_rows(self, rows: list[int], deposited: Sequence[str]) -> list[int]:
        """Amino acids of a chain in which ligands and waters may follow the polymer."""
        polymer = [row for row in rows if self.residues[row].entity_type.name == "Polymer"]
        named = {name for monomer in deposited for name in monomer.split(",")}
        kept = []
        for row in polymer or rows:
            residue, name = self.residues[row], self.names[row]
            unknown = not _tabulated(name)[1] and not np.isnan(self.carbon[row, 0])
            in_chain = bool(polymer) or residue.het_flag == "A" or name in named
            if self._letter(name) is not None or (unknown and in_chain):
                kept.append(row)
        # Without TER, a free amino acid may follow; the polymer's own are bonded.
        while not polymer and kept and self.residues[kept[-1]].het_flag == "H":
            bonded = self._distance(kept[-2], kept[-1]) <= LINKED if len(kept) > 1 else bool(deposited)
            if bonded:
                break
            kept.pop()
        return kept

    def _distance(self, row: int, other: int) -> float:
        """Between the C-alpha atoms, Å; NaN if one has none."""
        return float(np.linalg.norm(self.carbon[row] - self.carbon[other]))

    def _places(self, polymer: Polymer) -> list[int]:
        """Index in the sequence of each row; several rows share one where the residue type varies."""
        if polymer.numbers is not None:
            keys: list[Any] = polymer.numbers
        else:
            keys = [(self.residues[row].seqid.num, self.residues[row].seqid.icode) for row in polymer.rows]
            if unnumbered := [row for row, (number, _) in zip(polymer.rows, keys, strict=True) if number is None]:
                raise ChainError(f"a {self.names[unnumbered[0]]} has no residue number; number it")
        groups: dict[Any, list[int]] = {}
        for key, row in zip(keys, polymer.rows, strict=True):
            groups.setdefault(key, []).append(row)
        for rows in groups.values():
            several = len({self.names[row] for row in rows}) > 1
            if several and any(all(atom.altloc == "\0" for atom in self.residues[row]) for row in rows):
                raise ChainError(
                    f"{self._label(rows[0])} and {self._label(rows[1])} have one place and no altloc labels; "
                    "number each residue or, if these are two molecules, give each its own chain name"
                )
        order = list(groups) if polymer.numbers is None else sorted(groups)
        places = list(range(len(order)))
        if polymer.deposited and polymer.numbers is not None:
            places = [number - 1 for number in order]
            for number, place in zip(order, places, strict=True):
                self._check(groups[number], place, polymer.deposited)
        elif polymer.deposited:
            places = self._aligned([groups[key] for key in order], polymer.deposited)
        index = dict(zip(order, places, strict=True))
        return [index[key] for key in keys]

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
        bonded = [self._distance(before[0], after[0]) <= LINKED for before, after in pairwise(residues)]
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
        for count, kind in re.findall(r"(\d+)([MID])", aligned.cigar_str()):
            for _ in range(int(count)):
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


@cache
def _tabulated(name: str) -> tuple[str | None, bool]:
    """Letter of an amino acid (None: not one), and whether the name is known at all."""
    if name in _FORCE_FIELD_PARENTS:
        return _FORCE_FIELD_PARENTS[name], True
    info = gemmi.find_tabulated_residue(name)
    if not info.is_amino_acid():
        return None, info.found()
    letter = info.one_letter_code.upper()
    letter = STANDARD_PARENTS.get(letter, letter)
    return (letter if letter in AMINO_ACIDS else "X"), True


def _atoms_named(name: str, names: np.ndarray, elements: np.ndarray) -> np.ndarray:
    """Indices of the atoms with this name: CA is C-alpha, and not calcium, whose symbol it also is."""
    found = np.flatnonzero(names == name.encode())
    return found[np.char.upper(elements[found]) != name.encode()] if len(name) > 1 else found


def _parent_letters(structure: Any, modified: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Letters of modified residues by the parents that the file gives; X where a name has several."""
    letters: dict[str, set[str]] = {}
    pairs = [(each.res_id.name, each.parent_comp_id) for each in structure.mod_residues]
    for name, parent in (*pairs, *modified):
        if letter := _tabulated(parent)[0]:
            letters.setdefault(name, set()).add(letter)
    return {name: found.pop() if len(found) == 1 else "X" for name, found in letters.items()}


# gemmi's structure, names of modified residues and their parents beyond what it reads, and whether there are B-factors.
_Parsed = tuple[Any, list[tuple[str, str]], bool]


def _parse(data: bytes, is_mmcif: bool, path: Path) -> _Parsed:
    head = data[:4096]
    if b"dataBlocks" in head and not is_mmcif:
        raise StructureError(f"{path}: BinaryCIF is not supported; convert it to mmCIF or download that")
    if b"\0" in head:
        raise StructureError(f"{path}: binary data and no structure; give an mmCIF or PDB file")
    if not is_mmcif and not _PDB_ATOM.search(data):
        raise StructureError(f"{path}: neither mmCIF (begins with data_) nor PDB (has ATOM lines); give one of these")
    if not is_mmcif and (bad := _PDB_BAD_ATOM.search(data)):
        line = data.count(b"\n", 0, bad.start()) + 1
        raise StructureError(
            f"{path}: line {line} has no number in a coordinate column ({bad[0].decode('latin-1')!r}); correct or "
            "remove it"
        )
    try:
        parsed = _parse_mmcif(data) if is_mmcif else _parse_pdb(data)
    except (ValueError, RuntimeError, IndexError) as error:
        raise StructureError(f"{path}: {error}; the file is broken or cut off, get it again") from error
    if parsed is None:
        raise StructureError(f"{path}: an mmCIF without atoms (_atom_site); give one with coordinates")
    return parsed


def _parse_mmcif(data: bytes) -> _Parsed | None:
    blocks = (block for block in gemmi.cif.read_string(data) if block.find_values("_atom_site.Cartn_x"))
    block = next(blocks, None)
    if block is None:
        return None
    # gemmi returns no atom at all where one of its columns is missing; the value of these is not needed.
    loop = block.find_values("_atom_site.Cartn_x").get_loop()
    for column, value in (("id", "1"), ("label_alt_id", "."), ("type_symbol", "X")):
        if loop is not None and f"_atom_site.{column}" not in loop.tags:
            loop.add_columns([f"_atom_site.{column}"], value)
    changes = block.find("_struct_ref_seq_dif.", ["mon_id", "db_mon_id", "details"])
    modified = [(row.str(0), row.str(1)) for row in changes if row.str(2).upper() == "MODIFIED RESIDUE"]
    has_b_iso = bool(block.find_values("_atom_site.B_iso_or_equiv"))
    return gemmi.make_structure_from_block(block), modified, has_b_iso


def _parse_pdb(data: bytes) -> _Parsed:
    found = _PDB_MODIFIED.findall(data)
    modified = [(name.decode("latin-1").strip(), parent.decode("latin-1").strip()) for name, parent in found]
    try:
        return gemmi.read_pdb_string(data), modified, True
    except (ValueError, RuntimeError):
        # Until 1996 columns 73 to 80 held the entry and the line's number, where element and charge are now.
        return gemmi.read_pdb_string(data, max_line_length=72), modified, True
