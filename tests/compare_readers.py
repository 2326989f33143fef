"""What coordformer reads of structure files beside an independent reading by Biotite, or by Biopython. No part of CI.

    pip install biotite biopython
    python tests/compare_readers.py tests/data/structures FOLDER ... [--complexes complexes.parquet]

Of each file the first model is compared: names of chains, and of their observed residues letter, author's number with
insertion code, and C-alpha, Å. Biotite reads it; where it cannot, Biopython does. Each difference is a line. Letters of
modified residues are those of the Chemical Component Dictionary that Biotite brings.

`--complexes` compares sequences, lengths and C-alphas of the chains in a table with `id`, `chain_ids`, `lengths`,
`sequence` (chains apart by `/`) and `ca_x`, `ca_y`, `ca_z` (hundredths of Å about a center; -32768 is not observed) for
the files that are in the folders.
"""

from __future__ import annotations

import argparse
import gzip
import io
import warnings
from pathlib import Path

import numpy as np
from biotite.structure import filter_amino_acids
from biotite.structure.info import one_letter_code
from biotite.structure.io.pdb import PDBFile
from biotite.structure.io.pdbx import CIFFile, get_structure

from coordformer.model.chain import AMINO_ACIDS, StructureError
from coordformer.model.structure import STRUCTURE_SUFFIXES, read_chains, read_complex

Residue = tuple[str, np.ndarray, str]  # letter, C-alpha, name
Chains = dict[str, dict[str, Residue]]  # by the author's name, and number with insertion code
NEAR = 0.002  # Å: coordinates are written with three decimals


def letter_of(name: str) -> str:
    letter = {"SEC": "C", "PYL": "K"}.get(name) or one_letter_code(name)
    return letter if letter in [*AMINO_ACIDS] else "X"


def by_biotite(data: bytes, is_mmcif: bool) -> Chains:
    """C-alphas of the residues whose component is an amino acid, each of the conformer with the highest occupancy."""
    fields = ["b_factor", "occupancy"]
    if is_mmcif:
        atoms = get_structure(CIFFile.read(io.StringIO(data.decode())), model=1, altloc="all", extra_fields=fields)
    else:
        file = PDBFile.read(io.StringIO(data.decode("latin-1")))
        atoms = file.get_structure(model=1, altloc="all", extra_fields=fields)
    atoms = atoms[filter_amino_acids(atoms) & (atoms.atom_name == "CA") & (atoms.element == "C")]
    chains: Chains = {}
    best: dict[tuple[str, str], float] = {}
    for atom in atoms:
        number = f"{atom.res_id}{atom.ins_code}"
        if atom.occupancy > best.get((atom.chain_id, number), -1):
            best[atom.chain_id, number] = atom.occupancy
            chains.setdefault(atom.chain_id, {})[number] = (letter_of(atom.res_name), atom.coord, atom.res_name)
    return chains


def by_biopython(data: bytes, is_mmcif: bool) -> Chains:
    from Bio.PDB.MMCIFParser import MMCIFParser
    from Bio.PDB.PDBParser import PDBParser

    parser = (MMCIFParser if is_mmcif else PDBParser)(QUIET=True)
    chains: Chains = {}
    for chain in parser.get_structure("", io.StringIO(data.decode("latin-1")))[0]:
        for residue in chain:
            options = residue.disordered_get_list() if residue.is_disordered() == 2 else [residue]
            options = [each for each in options if "CA" in each and each["CA"].element == "C"]
            if options and any(letter_of(each.resname) != "X" or each.id[0] == " " for each in options):
                each = max(options, key=lambda option: option["CA"].get_occupancy())
                number = f"{each.id[1]}{each.id[2].strip()}"
                found = (letter_of(each.resname), each["CA"].coord, each.resname)
                chains.setdefault(chain.id.strip(), {})[number] = found
    return chains


def by_coordformer(path: Path) -> Chains:
    chains: Chains = {}
    problems: list[tuple[str, str]] = []
    for chain in read_chains(path, problems=problems, entry="x"):
        residues = zip(chain.residue_numbers, chain.sequence, chain.coords[:, 0], chain.observed[:, 0], strict=True)
        chains[chain.id[2:]] = {number: (letter, xyz, "") for number, letter, xyz, seen in residues if seen}
    for name, reason in problems:
        print(f"  {name}: not read by coordformer: {reason}")
    return chains


def differences(mine: Chains, other: Chains) -> list[str]:
    found = []
    for name in [*mine, *(name for name in other if name not in mine)]:
        here, there = mine.get(name, {}), other.get(name, {})
        for text, left in (("only here", set(here) - set(there)), ("only there", set(there) - set(here))):
            names = [f"{(there.get(number) or here[number])[2] or here[number][0]} {number}" for number in left]
            if names:
                found.append(f"chain {name!r}, {text}: {len(names)} residues: {', '.join(sorted(names)[:6])}")
        for number in here.keys() & there.keys():
            (letter, xyz, _), (other_letter, other_xyz, residue) = here[number], there[number]
            if letter != other_letter:
                found.append(f"chain {name!r}, {residue} {number}: {letter} here, {other_letter} there")
            if (distance := float(np.linalg.norm(xyz - other_xyz))) > NEAR:
                found.append(f"chain {name!r}, {residue} {number}: C-alpha {distance:.2f} Å apart")
        order = [number for number in there if number in here], [number for number in here if number in there]
        if order[0] != order[1]:
            found.append(f"chain {name!r}: another order of residues")
    return found


def compare_file(path: Path) -> tuple[int, int, list[str]]:
    """Numbers of chains and observed residues, and the differences."""
    data = path.read_bytes()
    data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    is_mmcif = data.lstrip().startswith(b"data_") or b"\ndata_" in data[:4096]
    mine = by_coordformer(path)
    try:
        other = by_biotite(data, is_mmcif)
    except Exception as error:
        print(f"  Biotite: {type(error).__name__}: {error}; compared with Biopython")
        other = by_biopython(data, is_mmcif)
    return len(mine), sum(map(len, mine.values())), differences(mine, other)


def compare_complexes(table: Path, files: dict[str, Path]) -> list[str]:
    """Differences from a table of complexes whose ids are names of files."""
    import pyarrow.parquet as pq

    found, compared = [], 0
    for row in pq.read_table(table).to_pylist():
        if row["id"] not in files:
            continue
        compared += 1
        whole = read_complex(files[row["id"]], atoms=("N", "CA", "C", "O"))
        if [*whole.chain_names] != row["chain_ids"]:
            found.append(f"{row['id']}: chains {whole.chain_names} here, {row['chain_ids']} there")
            continue
        for chain, sequence in zip(whole.chains, row["sequence"].split("/"), strict=True):
            if chain.sequence != sequence:
                pairs = enumerate(zip(chain.sequence, sequence, strict=False))
                places = [f"{i + 1} {a} {b}" for i, (a, b) in pairs if a != b]
                found.append(
                    f"{chain.id}: {len(chain)} residues here, {len(sequence)} there; letters: {', '.join(places[:5])}"
                )
        columns = [[row[f"{atom}_{axis}"] for axis in "xyz"] for atom in ("n", "ca", "c", "o")]
        there = np.array(columns, dtype=float).transpose(2, 0, 1)
        if len(there) != len(whole):
            continue
        there = np.where(there == -32768, np.nan, there / 100)
        shift = there - whole.coords
        apart = np.linalg.norm(shift - np.nanmean(shift[:, 1], axis=0), axis=-1)
        found += [
            f"{row['id']}: {atom} observed in {int(a.sum())} residues here, in {int(b.sum())} there"
            for atom, a, b in zip(whole.atoms, whole.observed.T, ~np.isnan(there[..., 0]).T, strict=True)
            if (a != b).any()
        ]
        if (far := apart > 0.02).any():
            found.append(f"{row['id']}: {int(far.sum())} atoms more than 0.02 Å apart")
    print(f"{compared} complexes of {table.name}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--complexes", type=Path)
    options = parser.parse_args()
    paths = sorted(path for folder in options.folders for path in folder.iterdir() if path.is_file())
    paths = [path for path in paths if path.name.removesuffix(".gz").endswith(STRUCTURE_SUFFIXES)]
    counts, lines = np.zeros(3, dtype=int), []
    for path in paths:
        print(path.name)
        try:
            chains, residues, found = compare_file(path)
        except StructureError as error:
            print(f"  not read by coordformer: {error}")
            continue
        print(*(f"  {line}\n" for line in found), sep="", end="")
        counts += (1, chains, residues)
        lines += found
    if options.complexes:
        found = compare_complexes(options.complexes, {path.name.partition(".")[0]: path for path in paths})
        print(*(f"  {line}\n" for line in found), sep="", end="")
        lines += found
    print(f"{counts[0]} files, {counts[1]} chains, {counts[2]} observed residues; {len(lines)} differences")


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
