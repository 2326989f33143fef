"""Molecules and crystals as rows: elements in place of residues, an atom's position in place of a C-alpha.

A row has what `CoordformerDataCollator` and `ChainBatches` read (`id`, `sequence`, `length`, `atoms`, `coords`), a
`formula` and a kind of `structure`; its sequence is the list of its elements.
"""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import chemical_symbols
from ase.spacegroup import crystal
from rdkit import Chem, RDConfig, RDLogger
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

MOLECULES = Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi"  # of the open database of the NCI, ships with RDKit
CRYSTALS = Path(__file__).parent / "crystals.csv"
ORGANIC = {"C", "N", "O", "F", "P", "S", "Cl", "Br", "I"}
DISPLACEMENT = 0.1  # Å, of each atom of a crystal along each axis: about what heat does at room temperature
CLUSTER_ATOMS = 24


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per element of the periodic table, separated by spaces; the special tokens have ESM-2's ids."""
    special = {f"{name}_token": f"<{name}>" for name in ("cls", "pad", "eos", "unk", "mask")}
    ids = {token: index for index, token in enumerate((*special.values(), *chemical_symbols[1:]))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<cls> $A <eos>", special_tokens=[("<cls>", ids["<cls>"]), ("<eos>", ids["<eos>"])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<cls>", **special)


def to_row(name: str, formula: str, structure: str, elements: Sequence[str], positions: np.ndarray) -> dict[str, Any]:
    """A row of atoms at `positions` (atoms, 3), Å."""
    coords = np.asarray(positions, dtype=np.float32).ravel()
    return {
        "id": name, "formula": formula, "structure": structure, "sequence": list(elements), "length": len(elements),
        "atoms": ["atom"], "coords": coords,
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Molecules
# ---------------------------------------------------------------------------------------------------------------------


def read_smiles(path: str | Path = MOLECULES) -> list[str]:
    """SMILES of the molecules of 5 to 24 heavy atoms, all of them of `ORGANIC`, each molecule once."""
    RDLogger.DisableLog("rdApp.*")
    found = {}
    for line in Path(path).read_text().splitlines():
        molecule = Chem.MolFromSmiles(line.split()[0])
        if molecule is None or not 5 <= molecule.GetNumAtoms() <= 24:
            continue
        smiles = Chem.MolToSmiles(molecule)
        if "." not in smiles and {atom.GetSymbol() for atom in molecule.GetAtoms()} <= ORGANIC:
            found[smiles] = None
    return list(found)


def molecule_row(smiles: str) -> dict[str, Any] | None:
    """The heavy atoms of one conformer: distance geometry (ETKDG), relaxed by the force field MMFF94.

    The hydrogens take part in the relaxation and are left out then: their number would tell the element. `formula`
    counts heavy atoms alone. None where RDKit finds no conformer or lacks parameters.
    """
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    if rdDistGeom.EmbedMolecule(molecule, randomSeed=0) or rdForceFieldHelpers.MMFFOptimizeMolecule(molecule) < 0:
        return None
    heavy = [atom.GetIdx() for atom in molecule.GetAtoms() if atom.GetAtomicNum() > 1]
    elements = [molecule.GetAtomWithIdx(index).GetSymbol() for index in heavy]
    formula = "".join(f"{element}{count}" for element, count in sorted(Counter(elements).items()))
    return to_row(smiles, formula, "molecule", elements, molecule.GetConformer().GetPositions()[heavy])


# ---------------------------------------------------------------------------------------------------------------------
# Crystals
# ---------------------------------------------------------------------------------------------------------------------


def build_crystal(sites: str, structure: str, a: float, c: float | None = None) -> Atoms:
    """The unit cell of a crystal.

    Args:
        sites: elements in the order of the structure's sites: NaCl; CaF2, and OLi2 where fluorite's anions and cations
            change places; SrTiO3.
        structure: `"perovskite"` (cubic), or one that `ase.build.bulk` knows.
        a, c: lattice constants in Å.
    """
    if structure != "perovskite":
        return bulk(sites, structure, a=a, c=c)
    elements = Atoms(sites).get_chemical_symbols()[:3]
    corners = [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)]
    return crystal(elements, corners, spacegroup=221, cellpar=[a, a, a, 90, 90, 90])


def cut_cluster(cell: Atoms, rng: np.random.Generator) -> Atoms:
    """The `CLUSTER_ATOMS` atoms nearest to a random point of a crystal, displaced at random."""
    blocks = cell.repeat(7)
    center = (3 + rng.random(3)) @ cell.cell.array  # in the block in the middle
    nearest = np.argsort(np.linalg.norm(blocks.positions - center, axis=1))[:CLUSTER_ATOMS]
    cluster = blocks[nearest]
    cluster.positions += rng.normal(scale=DISPLACEMENT, size=cluster.positions.shape)
    return cluster


def crystal_rows(clusters: int, path: str | Path = CRYSTALS, seed: int = 0) -> list[dict[str, Any]]:
    """A number of clusters of each crystal of a table with the columns `sites`, `structure`, `a` and `c` (Å)."""
    rng = np.random.default_rng(seed)
    rows = []
    with open(path, newline="") as file:
        for entry in csv.DictReader(file):
            cell = build_crystal(entry["sites"], entry["structure"], float(entry["a"]), float(entry["c"] or 0) or None)
            for number in range(clusters):
                cluster = cut_cluster(cell, rng)
                name, elements = f"{entry['sites']} {number}", cluster.get_chemical_symbols()
                rows.append(to_row(name, entry["sites"], entry["structure"], elements, cluster.positions))
    return rows
