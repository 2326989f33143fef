"""Molecules and crystals go through the same model and collator: elements for residues, atoms for C-alphas."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_model

from coordformer import CoordformerProcessor
from coordformer.data.collator import CoordformerDataCollator

pytest.importorskip("ase")
pytest.importorskip("rdkit")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "molecules"))
import molecules
import structures

TOKENIZER = structures.build_tokenizer()
ACETIC_ACID = structures.molecule_row("CC(=O)O")


@pytest.fixture(scope="module")
def crystals():
    return structures.crystal_rows(clusters=1)


def atom_model(**fields):
    return make_model(
        vocab_size=len(TOKENIZER), mask_token_id=TOKENIZER.mask_token_id, position_embedding_type="none", **fields
    )


def collate(rows, **arguments):
    return CoordformerDataCollator(TOKENIZER, **{"atoms": ("atom",), "alphabet": ["C", "O"]} | arguments)(rows)


def test_the_tokenizer_knows_the_elements_by_atomic_number():
    assert TOKENIZER.convert_tokens_to_ids(["H", "C", "Cl", "Og"]) == [4 + 1, 4 + 6, 4 + 17, 4 + 118]
    assert TOKENIZER("C Cl <mask>", add_special_tokens=False).input_ids == [10, 21, TOKENIZER.mask_token_id]


def test_a_molecule_keeps_its_heavy_atoms():
    assert (ACETIC_ACID["sequence"], ACETIC_ACID["formula"]) == (["C", "C", "O", "O"], "C2O2")
    methyl, carbon, carbonyl, hydroxyl = ACETIC_ACID["coords"].reshape(-1, 3)
    # Å, as in the gas: C-C 1.52, C=O 1.21, C-O 1.36.
    assert np.linalg.norm(methyl - carbon) == pytest.approx(1.50, abs=0.04)
    assert np.linalg.norm(carbonyl - carbon) == pytest.approx(1.21, abs=0.03)
    assert np.linalg.norm(hydroxyl - carbon) == pytest.approx(1.35, abs=0.03)


def test_molecules_are_organic_and_differ():
    smiles = structures.read_smiles()
    assert len(smiles) == len(set(smiles)) > 4000
    assert not any("." in each or "[Cu" in each for each in smiles)


@pytest.mark.parametrize(
    "sites, structure, a, c, neighbors, distance",
    [
        ("NaCl", "rocksalt", 5.64, None, 6, 5.64 / 2),
        ("GaAs", "zincblende", 5.65, None, 4, 5.65 * 3**0.5 / 4),
        ("CsCl", "cesiumchloride", 4.12, None, 8, 4.12 * 3**0.5 / 2),
        ("CaF2", "fluorite", 5.46, None, 8, 5.46 * 3**0.5 / 4),
        ("SrTiO3", "perovskite", 3.91, None, 12, 3.91 / 2**0.5),
    ],
)
def test_the_first_atom_of_a_crystal_has_its_neighbors(sites, structure, a, c, neighbors, distance):
    cell = structures.build_crystal(sites, structure, a, c)
    assert cell.get_chemical_formula("metal") == sites
    blocks = cell.repeat(5)
    first = 62 * len(cell)  # the same atom of the block in the middle
    distances = np.linalg.norm(blocks.positions - blocks.positions[first], axis=1)
    near = np.flatnonzero((distances > 0) & (distances < 1.01 * distance))
    assert len(near) == neighbors
    np.testing.assert_allclose(distances[near], distance, rtol=1e-6)
    assert blocks[first].symbol not in set(blocks[near].symbols)


def test_a_cluster_is_a_ball_within_the_crystal(monkeypatch):
    monkeypatch.setattr(structures, "DISPLACEMENT", 0.0)
    cell = structures.build_crystal("NaCl", "rocksalt", 5.64)
    for seed in range(20):
        cluster = structures.cut_cluster(cell, np.random.default_rng(seed))
        assert len(cluster) == structures.CLUSTER_ATOMS
        # A ball of 24 sites of a simple cubic lattice of 2.82 Å has a radius of about 1.8 sites, 5.05 Å.
        assert np.ptp(cluster.positions, axis=0).max() < 2 * 5.05 + 2.82
        distances = cluster.get_all_distances() + 100 * np.eye(len(cluster))
        np.testing.assert_allclose(distances.min(axis=1), 2.82, atol=1e-6)
        sodium = cluster.symbols == "Na"
        assert distances[sodium][:, sodium].min() > 3.9  # like ions are 2.82 times the root of 2 apart


def test_no_formula_is_in_both_splits(crystals):
    train, test = molecules.split_by_formula(crystals)
    formulas = [{row["formula"] for row in part} for part in (train, test)]
    assert not formulas[0] & formulas[1]
    assert len(train) + len(test) == len(crystals)
    assert 0.15 * len(crystals) < len(test) <= 0.21 * len(crystals)
    for element in molecules.elements_of(test):
        assert len({row["formula"] for row in train if element in row["sequence"]}) >= 3


def test_rows_of_elements_are_collated():
    salt = structures.to_row("salt", "NaCl", "rocksalt", ["Na", "Cl"], [[0, 0, 0], [2.82, 0, 0]])
    batch = collate([salt, ACETIC_ACID], mlm_probability=0, rotate=False)
    assert batch["input_ids"].tolist() == [[0, 4 + 11, 4 + 17, 2, 1, 1], [0, 10, 10, 12, 12, 2]]
    assert batch["coords"][0, 1:3].tolist() == [[0, 0, 0], pytest.approx([2.82, 0, 0])]
    assert batch["coords"][0, [0, 3, 4, 5]].isnan().all()
    np.testing.assert_array_equal(batch["coords"][1, 1:5].numpy().ravel(), ACETIC_ACID["coords"])


def test_only_elements_of_the_alphabet_are_masked_and_replace_others():
    rows = [ACETIC_ACID | {"epoch": epoch} for epoch in range(300)]
    masked = collate(rows, masking="masked15", alphabet=["O"])
    assert set(masked["labels"][masked["labels"] != -100].tolist()) == {12}
    replaced = collate(rows, masking="paper", alphabet=["Na", "Cl"], mlm_probability=0.5)
    chosen = replaced["labels"] != -100
    other = replaced["input_ids"][chosen & (replaced["input_ids"] != replaced["labels"])]
    assert set(other.tolist()) == {TOKENIZER.mask_token_id, 4 + 11, 4 + 17}


def test_letters_and_lists_of_letters_are_the_same():
    listed = collate([ACETIC_ACID], mlm_probability=0, rotate=False)
    lettered = collate([ACETIC_ACID | {"sequence": "CCOO"}], mlm_probability=0, rotate=False)
    assert torch.equal(listed["input_ids"], lettered["input_ids"])


@pytest.mark.parametrize("sequence, name", [(["C", "C", "Oo", "O"], "Oo"), ("CCXO", "X")])
def test_what_is_no_element_is_named(sequence, name):
    with pytest.raises(ValueError, match=f"has the letter '{name}', which is not in the tokenizer's alphabet"):
        collate([ACETIC_ACID | {"sequence": sequence}])
    with pytest.raises(ValueError, match=r"`alphabet` is \['C', 'Oo'\]"):
        collate([ACETIC_ACID], alphabet=["C", "Oo"])


def test_the_processor_takes_rows_of_elements():
    processor = CoordformerProcessor(TOKENIZER, coordinate_atoms=("atom",))
    batch = processor(chains=[ACETIC_ACID])
    collated = collate([ACETIC_ACID], mlm_probability=0, rotate=False)
    assert torch.equal(batch["input_ids"][0, 1:-1], collated["input_ids"][0, 1:-1])
    assert torch.equal(batch["coords"][0, 1:-1], collated["coords"][0, 1:-1])


@pytest.mark.parametrize("fields", [{"coordinate_embedding": "linear"}, molecules.MODELS["with coordinates"]])
def test_the_order_of_the_atoms_does_not_matter(fields):
    row = structures.molecule_row("NC(CCl)C(=O)O")
    model = atom_model(coordinate_atoms=("atom",), coordinate_scale=2.0, **fields)
    if model.coordformer.distance_bias is not None:  # starts at zero
        torch.nn.init.normal_(model.coordformer.distance_bias.weight, std=0.02)
    batch = collate([row], mlm_probability=0, rotate=False)
    with torch.no_grad():
        logits = model(**batch).logits[0]
        order = torch.randperm(row["length"])
        places = torch.cat((torch.tensor([0]), order + 1, torch.tensor([row["length"] + 1])))
        shuffled = model(**{name: values[:, places] for name, values in batch.items() if name != "labels"}).logits[0]
        elsewhere = model(**batch | {"coords": batch["coords"].flip(1)}).logits[0]
    torch.testing.assert_close(shuffled, logits[places], atol=1e-4, rtol=1e-4)
    assert (elsewhere - logits).abs().max() > 1e-2  # the coordinates do matter


def test_frequencies_by_hand():
    rows = [{"sequence": ["C", "C", "C", "O"]}]
    counts = np.zeros((1, len(TOKENIZER), 3))
    counts[0, [10, 12], molecules.COUNT] = 2, 1  # asked for two carbons and an oxygen
    guess = molecules.count_frequencies(counts, rows).sum(axis=(0, 1))
    np.testing.assert_allclose(guess, [3, -2 * np.log(0.75) - np.log(0.25), 2])


def bonds(number, seed):
    """Rows of two atoms: beside a nitrogen a carbon 1 Å away or an oxygen 2 Å away, in any direction."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(number):
        element, length = (("C", 1.0), ("O", 2.0))[index % 2]
        direction = rng.normal(size=3)
        positions = [[0, 0, 0], direction / np.linalg.norm(direction) * length]
        rows.append(structures.to_row(f"{seed} {index}", element, "bond", ["N", element], positions))
    return rows


def test_a_length_tells_the_element_to_the_model_with_coordinates_alone():
    train_rows, test_rows = bonds(200, seed=0), bonds(50, seed=1)
    samples, nats = molecules.NUM_MASK_SAMPLES, {}
    for name, fields in molecules.MODELS.items():
        model = molecules.train(train_rows, fields | {"coordinate_scale": 1.5}, steps=60, seed=0)
        counts = molecules.count_atoms(model, test_rows, ["C", "O"])
        asked = counts[..., molecules.COUNT].sum(axis=0)
        assert asked[10] == asked[12] == 25 * samples and asked.sum() == 50 * samples
        nats[name] = counts[..., molecules.NLL].sum() / asked.sum()
    assert nats["without coordinates"] > 0.6 > 0.3 > nats["with coordinates"]  # ln 2 is 0.69


def test_the_report_has_a_line_for_every_model(crystals, tmp_path):
    """What is trained is replaced: the numbers of a run are those of its counts."""

    class Pool:
        def map(self, function, tasks):
            for train_rows, test_rows, *_ in tasks:
                counts = np.zeros((len(test_rows), len(TOKENIZER), 3))
                counts[:, TOKENIZER.convert_tokens_to_ids(molecules.elements_of(train_rows)[0])] = 2, 2 * np.log(3), 1
                yield counts

    result = molecules.assess("crystals", crystals, steps=1, seeds=2, pool=Pool())
    for name in molecules.MODELS:
        assert result["models"][name]["perplexity"] == pytest.approx(3)
        assert result["models"][name]["recovery"] == pytest.approx(0.5)
        assert set(result["models"][name]["recovery_by_structure"]) <= {row["structure"] for row in crystals}
    assert result["gain"] == pytest.approx(0)
    assert result["rows"]["train"] + result["rows"]["test"] == len(crystals)
    run = {"command": "x", "seconds": 60, "processes": 1, "machine": "y", "versions": {"torch": "z"}}
    report = molecules.describe({"crystals": result | run})
    assert "| crystals | with coordinates | 3.00 (3.00 to 3.00) | 3.00, 3.00 | 50.0 % (50.0 to 50.0) |" in report
    molecules.plot({"crystals": result}, tmp_path / "recovery.png")
    assert (tmp_path / "recovery.png").stat().st_size > 5000
