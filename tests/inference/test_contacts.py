"""Contacts: precision by hand and against a loop, predictions in one piece and in windows, files."""

import itertools
import json
import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import CHAINS, STRUCTURES, make_config
from datasets import Dataset

from coordformer import (
    CoordformerForContactPrediction,
    CoordformerForMaskedLM,
    CoordformerProcessor,
    read_chains,
    read_complex,
)
from coordformer.data.batching import fetch_rows
from coordformer.data.collator import CoordformerDataCollator
from coordformer.data.contacts import ContactCollator, chain_labels, contact_labels, separations
from coordformer.data.rows import SCHEMA, chain_to_row, load_rows
from coordformer.inference.checkpoints import load_checkpoint
from coordformer.inference.contacts import contacts, describe, measure_precision, pair_lines, predict_contacts
from coordformer.inference.metrics import CUTS, RANGES, precision_at
from coordformer.inference.runner import file_stems
from coordformer.model.chain import Chain
from coordformer.model.residues import ResidueNumbers
from coordformer_command import main

STRUCTURE = STRUCTURES / "1orc.pdb.gz"


def make_contact_model(**fields) -> CoordformerForContactPrediction:
    """A small model whose maps and head are sharp enough that pairs differ."""
    torch.manual_seed(0)
    model = CoordformerForContactPrediction(make_config(**fields)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(100.0 if "contact_head" in name else 4.0)
    return model


def save(model, folder):
    model.save_pretrained(folder)
    CoordformerProcessor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows():
    return load_rows(CHAINS, "valid").select(range(6))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(make_contact_model(), tmp_path_factory.mktemp("contacts"))


# Precision


def naive_precision(scores, labels, least, most, share) -> float:
    length = len(labels)
    pairs = []
    for i in range(length):
        for j in range(i + 1, length):
            if least <= j - i <= most and labels[i, j] >= 0:
                pairs.append((-scores[i, j], i, j))
    best = sorted(pairs)[: max(length // share, 1)]
    return sum(labels[i, j] == 1 for _, i, j in best) / len(best) if best else math.nan


@pytest.mark.parametrize("length", [3, 12, 24, 61])
def test_precision_is_that_of_a_loop(length):
    rng = np.random.default_rng(length)
    scores = rng.integers(0, 5, (length, length)).astype(np.float32)  # many ties
    labels = rng.choice([-100, 0, 1], (length, length), p=[0.3, 0.5, 0.2])
    seen = precision_at(scores, torch.tensor(labels))
    assert list(seen) == ["short", "medium", "long"]
    for name, (least, most) in RANGES.items():
        for cut, share in CUTS.items():
            expected = naive_precision(scores, labels, least, most, share)
            assert seen[name][cut] == pytest.approx(expected, nan_ok=True)
    assert math.isnan(seen["long"]["L"]) == (length < 25)


def test_precision_by_hand():
    """Ten residues have ten pairs of short range; those of residue 1 score highest, two of its four are contacts."""
    scores, labels = np.zeros((10, 10)), np.zeros((10, 10))
    scores[0, 6:] = [4, 3, 2, 1]
    labels[0, [6, 8]] = labels[1, 7] = 1
    assert precision_at(scores, labels)["short"] == {"L": 0.3, "L/2": 0.6, "L/5": 0.5}
    labels[0, 6] = -100  # drops out: (1, 8), (1, 9), (1, 10) and the first of the equal ones remain
    assert precision_at(scores, labels)["short"] == {"L": 2 / 9, "L/2": 0.4, "L/5": 0.5}
    scores[0, 8] = np.nan
    assert precision_at(scores, labels)["short"] == {"L": 1 / 8, "L/2": 0.2, "L/5": 0.0}  # does not compete


def test_perfect_predictions_reach_one_where_contacts_suffice():
    place = np.arange(80)
    labels = ((place[:, None] + place) % 5 == 0).astype(int)
    perfect = precision_at(labels.astype(float), labels)
    assert all(value == 1.0 for cuts in perfect.values() for value in cuts.values())
    assert precision_at(-labels.astype(float), labels)["long"]["L"] == 0.0
    few = np.zeros((80, 80))
    few[0, 40] = 1
    assert precision_at(few, few)["long"] == {"L": 1 / 80, "L/2": 1 / 40, "L/5": 1 / 16}


def test_precision_of_chains_of_a_complex():
    """Two chains of seven and eight residues, of which the first lacks 20 after its third; ranges are of one chain."""
    positions, chain_index = np.array([0, 1, 2, *range(23, 27), *range(127, 135)]), np.repeat([0, 1], (7, 8))
    row = {"id": "x", "sequence": "A" * 15, "positions": positions, "chain_lengths": [7, 8]}
    separation = separations(row)
    assert separation[0, 3] == 23 and separation[7, 14] == 7 and np.isinf(separation[6, 7])
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(15, 15)), rng.integers(0, 2, (15, 15))
    seen = precision_at(scores, labels, separation)
    assert list(seen) == ["short", "medium", "long", "interchain"]
    pairs = {name: [] for name in seen}
    for i, j in itertools.combinations(range(15), 2):
        apart = positions[j] - positions[i]
        same = chain_index[i] == chain_index[j]
        name = "interchain" if not same else next((n for n, (a, b) in RANGES.items() if a <= apart <= b), None)
        if name:
            pairs[name].append((-scores[i, j], labels[i, j]))
    assert [len(pairs[name]) for name in seen] == [3, 6, 6, 56]
    for name, found in pairs.items():
        for cut, number in (("L", 15), ("L/2", 7), ("L/5", 3)):
            assert seen[name][cut] == pytest.approx(np.mean([label for _, label in sorted(found)[:number]]))
    assert list(precision_at(scores[:7, :7], labels[:7, :7], separation[:7, :7])) == list(RANGES)


def test_precision_needs_one_chain():
    with pytest.raises(ValueError, match=r"`scores` has shape \(1, 9, 9\) and `labels` \(9, 9\)"):
        precision_at(np.zeros((1, 9, 9)), np.zeros((9, 9)))


# Prediction


def predict_chain(model, processor, chain, **options) -> np.ndarray:
    """Of one chain, (residues, residues)."""
    ((number, probabilities),) = predict_contacts(model, [chain], processor.tokenizer, **options)
    assert number == 0
    return probabilities


@pytest.mark.parametrize("token_budget", [1, 700, 100_000])
def test_chains_are_predicted_together_as_alone(checkpoint, rows, token_budget):
    """Longest first; some are longer than the window."""
    model, processor = load_checkpoint(checkpoint, any_head=True)
    chains = fetch_rows(rows, range(6))
    lengths = [len(chain["sequence"]) for chain in chains]
    options = {"window": sorted(lengths)[3], "token_budget": token_budget}
    found = list(predict_contacts(model, chains, processor.tokenizer, **options))
    assert [lengths[number] for number, _ in found] == sorted(lengths, reverse=True)
    for number, probabilities in found:
        alone = predict_chain(model, processor, chains[number], window=options["window"])
        np.testing.assert_allclose(probabilities, alone, atol=1e-5)


def test_a_chain_in_one_piece_and_in_windows(checkpoint):
    model, processor = load_checkpoint(checkpoint, any_head=True)
    chain = read_chains(STRUCTURE)[0]
    whole = predict_chain(model, processor, chain)
    expected = model.predict_contacts(**processor(chains=chain))[0].detach().numpy()
    assert whole.shape == (len(chain), len(chain)) and np.allclose(whole, expected) and whole.std() > 5e-3
    assert not np.allclose(whole, predict_chain(model, processor, chain, without_coords=True), atol=1e-3)

    parts = predict_chain(model, processor, chain, window=40)  # 71 residues: from 1, 21 and 32
    assert np.allclose(parts, parts.T, atol=1e-6, equal_nan=True)
    place = np.arange(len(chain))
    together = np.zeros_like(parts, dtype=bool)
    for first in (0, 20, 31):
        together[first : first + 40, first : first + 40] = True
    assert np.array_equal(np.isfinite(parts), together) and not together.all() and len(place) == 71
    alone = predict_chain(
        model, processor, {"id": "part", "sequence": chain.sequence[:40], "coords": chain.coords[:40]}
    )
    assert np.allclose(parts[:20, :40], alone[:20], atol=1e-6)


def test_precision_of_a_data_set(checkpoint, rows):
    model, processor = load_checkpoint(checkpoint, any_head=True)
    seen = measure_precision(model, rows, processor.tokenizer, progress=False)
    assert seen.shape == (6, 3, 3)
    row = fetch_rows(rows, [4])[0]
    expected = precision_at(predict_chain(model, processor, row), contact_labels(row["coords"].reshape(-1, 3)))
    assert seen[4].tolist() == [list(cuts.values()) for cuts in expected.values()]


# Files


def quietly(checkpoint, inputs, output, **options) -> dict:
    return contacts(checkpoint, inputs, output, progress=False, **options)


def test_three_files_of_each_chain_and_a_summary(checkpoint, tmp_path):
    summary = quietly(checkpoint, STRUCTURE, tmp_path / "out")
    assert summary == json.loads((tmp_path / "out" / "contacts.json").read_text())
    assert (summary["protein"], summary["rejected"]) == ("1orc.pdb.gz", 0)
    (report,) = summary["chains"]
    assert report["id"] == "1ORC_A"
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["1ORC_A.npz", "1ORC_A.png", "1ORC_A.tsv", "contacts.json", "parts", "run.json"]

    chain = read_chains(STRUCTURE)[0]
    model, processor = load_checkpoint(checkpoint, any_head=True)
    arrays = np.load(tmp_path / "out" / "1ORC_A.npz")
    probabilities = arrays["probabilities"]
    assert str(arrays["sequence"]) == chain.sequence
    assert probabilities.dtype == np.float32 and np.array_equal(probabilities, predict_chain(model, processor, chain))
    assert np.allclose(probabilities, probabilities.T)
    labels = contact_labels(chain.coords[:, 0]).numpy()
    assert np.array_equal(arrays["contacts"], labels)

    head, *lines = (tmp_path / "out" / "1ORC_A.tsv").read_text().splitlines()
    assert head.split("\t") == ["i", "j", "residue_i", "residue_j", "probability", "name_i", "name_j"]
    pairs = [line.split("\t") for line in lines]
    assert len(pairs) == 5 * len(chain)
    values = [float(pair[4]) for pair in pairs]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(np.triu(probabilities, 6).max(), rel=1e-5)
    for i, j, *letters, value, name_i, name_j in pairs:
        i, j = int(i) - 1, int(j) - 1
        assert j - i >= 6 and letters == [chain.sequence[i], chain.sequence[j]]
        assert [name_i, name_j] == [f"A{chain.residue_numbers[i]}", f"A{chain.residue_numbers[j]}"]
        assert float(value) == pytest.approx(probabilities[i, j], rel=1e-5)

    assert arrays["residues"].tolist() == [f"A{number}" for number in chain.residue_numbers]
    assert report["coordinates"] == "given" and report["residues"] == len(chain) and report["numbering"] == "file"
    assert report["contacts"] == (np.triu(labels) == 1).sum()
    assert report["precision"] == precision_at(probabilities, labels)
    assert describe(summary).startswith("1ORC_A: 71 residues, coordinates given; precision at L: short 0.")


def test_without_coordinates_the_truth_is_kept(checkpoint, tmp_path):
    (report,) = quietly(checkpoint, STRUCTURE, tmp_path, without_coords=True)["chains"]
    model, processor = load_checkpoint(checkpoint, any_head=True)
    expected = predict_chain(model, processor, read_chains(STRUCTURE)[0], without_coords=True)
    assert np.array_equal(np.load(tmp_path / "1ORC_A.npz")["probabilities"], expected)
    assert report["coordinates"] == "not given" and report["contacts"] > 0


def test_without_structure(checkpoint, tmp_path):
    """Short sequences, too: of the second no pair is asked for."""
    (tmp_path / "two.fasta").write_text(f">sp/P1.2 first\n{'MKVLAGHDEW' * 3}\n>tiny\nMKV\n")
    first, tiny = quietly(checkpoint, tmp_path / "two.fasta", tmp_path / "out")["chains"]
    assert (first["id"], first["coordinates"], first["contacts"]) == ("sp/P1.2", "unknown", None)
    assert first["precision"]["long"] == {"L": None, "L/2": None, "L/5": None}
    assert (np.load(tmp_path / "out" / "sp_P1.2.npz")["contacts"] == -100).all()
    assert (tmp_path / "out" / "sp_P1.2.png").stat().st_size > 1000
    assert (tmp_path / "out" / "tiny.tsv").read_text().count("\n") == 1 and tiny["residues"] == 3
    assert first["numbering"] == "sequence" and "\t1\t" in (tmp_path / "out" / "sp_P1.2.tsv").read_text()

    options = {"chain_ids": ["tiny"], "dtype": "bfloat16"}
    found = quietly(checkpoint, tmp_path / "two.fasta", tmp_path / "half", **options)["chains"]
    assert [each["id"] for each in found] == ["tiny"]


def test_chains_of_a_data_set_in_parts(checkpoint, rows, tmp_path, monkeypatch):
    """Each part has its folder; letters beyond the 20 are no obstacle, and nor are chains that nobody observed."""
    monkeypatch.setattr("coordformer.inference.contacts.plot_contacts", lambda *_: None)
    chains = fetch_rows(rows, range(3))
    sequences = [chains[0]["sequence"], "U" + chains[1]["sequence"][1:], chains[2]["sequence"]]
    coords = [chain["coords"] for chain in chains[:2]] + [np.full_like(chains[2]["coords"], np.nan)]
    table = rows.select(range(3)).remove_columns(["sequence", "coords"])
    table = table.add_column("sequence", sequences).add_column("coords", coords)
    table.to_parquet(tmp_path / "chains.parquet")
    summary = quietly(checkpoint, tmp_path / "chains.parquet", tmp_path / "out", entries_per_part=2)
    assert [each["id"] for each in summary["chains"]] == [chain["id"] for chain in chains]
    assert [each["file"].split("/")[0] for each in summary["chains"]] == ["00000-of-00002"] * 2 + ["00001-of-00002"]
    assert [each["coordinates"] for each in summary["chains"]] == ["given", "given", "unknown"]
    model, processor = load_checkpoint(checkpoint, any_head=True)
    for chain, sequence, xyz, report in zip(chains, sequences, coords, summary["chains"], strict=True):
        arrays = np.load(tmp_path / "out" / f"{report['file']}.npz")
        expected = predict_chain(model, processor, {**chain, "sequence": sequence, "coords": xyz})
        np.testing.assert_allclose(arrays["probabilities"], expected, atol=1e-5)
        assert str(arrays["sequence"]) == sequence
        assert "\tU\t" in (tmp_path / "out" / f"{report['file']}.tsv").read_text() or "U" not in sequence


def test_contacts_of_a_complex(checkpoint, tmp_path):
    """HIV protease, whose chains touch, as a row of a data set: pairs and names of both, and a range of its own."""
    both = read_complex(STRUCTURES / "1hvr.pdb.gz")
    rows = Dataset(pa.Table.from_pylist([chain_to_row(both)], schema=SCHEMA))
    rows.to_parquet(tmp_path / "complexes.parquet")
    (report,) = quietly(checkpoint, tmp_path / "complexes.parquet", tmp_path / "out")["chains"]
    assert report["residues"] == 198 and list(report["chains"].values()) == [99, 99]
    arrays = np.load(tmp_path / "out" / f"{report['file']}.npz")
    labels = arrays["contacts"]
    distances = np.linalg.norm(both.coords - both.coords[:, 0], axis=-1)
    other = both.chain_index[:, None] != both.chain_index
    assert (labels >= 0)[other].all() and np.array_equal(labels[other] == 1, distances[other] < 8)
    assert np.array_equal(labels[:99, :99], contact_labels(both.coords[:99, 0]))
    assert (labels[other] == 1).sum() > 20 and report["contacts"] == (labels == 1).sum() // 2
    assert report["precision"] == precision_at(arrays["probabilities"], labels, separations(both))
    assert 0 <= report["precision"]["interchain"]["L"] <= 1
    model, processor = load_checkpoint(checkpoint, any_head=True)
    np.testing.assert_allclose(arrays["probabilities"], predict_chain(model, processor, both), atol=1e-5)

    residues = ResidueNumbers(both)
    text = pair_lines(arrays["probabilities"], residues, separations(both))
    lines = [line.split("\t") for line in text.splitlines()[1:]]
    assert len(lines) == 5 * 198
    for i, j, *_, name_i, name_j in lines:
        assert [residues.find(name_i), residues.find(name_j)] == [int(i) - 1, int(j) - 1]
        assert name_i[0] != name_j[0] or int(j) - int(i) >= 6
    assert any(name_i[0] != name_j[0] for *_, name_i, name_j in lines)


def test_separation_counts_residues_that_are_missing():
    """Eight residues in a row of 3.8 Å; where six are missing the first and the second part are apart."""
    coords = np.array([[1.0 * place, 0, 0] for place in range(8)])[:, None]
    gapped = Chain("g_A", "MKVLAGST", coords, ("CA",), np.ones(8), positions=np.array([0, 1, 2, 3, 10, 11, 12, 13]))
    labels = chain_labels(gapped)
    assert (labels[:4, 4:] == 1).all() and (labels[:4, :4] == -100).all() and (labels[4:, 4:] == -100).all()
    batch = ContactCollator(CoordformerDataCollator(CoordformerProcessor().tokenizer))([gapped, gapped])
    assert np.array_equal(batch["labels"][1], labels)
    lines = pair_lines(np.ones((8, 8)), ResidueNumbers(gapped), separations(gapped)).splitlines()[1:]
    assert [line.split("\t")[:2] for line in lines] == [[str(i), str(j)] for i in range(1, 5) for j in range(5, 9)]


def test_the_command_without_matplotlib(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("coordformer.inference.figures.new_figure", lambda size, path: None)
    assert main(["contacts", str(checkpoint), str(STRUCTURE), "--output", str(tmp_path), "--quiet"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "1ORC_A.npz", "1ORC_A.tsv", "contacts.json", "parts", "run.json"
    ]  # fmt: skip


def test_bad_input_is_named(checkpoint, tmp_path):
    headless = save(CoordformerForMaskedLM(make_config()), tmp_path / "headless")
    (tmp_path / "file").touch()
    for folder, output, options, message in (
        (
            headless,
            "out",
            {},
            "headless has no contact head.*; use hub_cards/coordformer-1M-contacts .*, or train one: `python exam",
        ),
        (checkpoint, "file", {}, "file, which is a file; give a folder"),
        (checkpoint, "out", {"window": 1}, "`window` is 1; it must be at least 2"),
        (checkpoint, "out", {"token_budget": 0}, "`token_budget` is 0; it must be at least 1"),
        (checkpoint, "out", {"chain_ids": ["Z"]}, "1orc.pdb.gz: no protein chain Z"),
    ):
        with pytest.raises(ValueError, match=message):
            quietly(folder, STRUCTURE, tmp_path / output, **options)


def test_files_are_named_by_ids_on_every_system(checkpoint, tmp_path):
    ids = ["2QFA_A", "sp|P69905|HBA", "a/b", "A_B", "a:b", "..", "", "x.y", "rejected", 300 * "é", 300 * "É"]
    stems = file_stems(tmp_path, "00000-of-00001", [{"id": name} for name in ids])
    assert [stem.name for stem in stems] == [
        "2QFA_A", "sp_P69905_HBA", "a_b", "A_B-2", "a_b-3", "_", "_-2", "x.y", "rejected-2", 100 * "é",
        100 * "É" + "-2",
    ]  # fmt: skip
    assert {stem.parent for stem in stems} == {tmp_path}
    (stem,) = file_stems(tmp_path, "00003-of-00079", [{"id": "a"}])
    assert stem == tmp_path / "00003-of-00079" / "a" and stem.parent.is_dir()
    name = "tr|" + 257 * "A"  # 260 letters; file systems have 255
    (tmp_path / "three.fasta").write_text(f">A\nMKVAA\n>a\nMKVLLLL\n>{name}\nMK\n")
    found = quietly(checkpoint, tmp_path / "three.fasta", tmp_path / "out")["chains"]
    assert [(each["id"], each["file"]) for each in found] == [("A", "A"), ("a", "a-2"), (name, "tr_" + 197 * "A")]
    for each in found:
        assert len(str(np.load(tmp_path / "out" / f"{each['file']}.npz")["sequence"])) == each["residues"]


def test_no_contacts_are_no_failure(checkpoint, tmp_path):
    """Of a range of separations in which a structure has none there is no precision; `describe` has a dash."""
    atom = "ATOM  {0:5d}  CA  ALA A{0:4d}    {1:8.3f}   0.000   0.000  1.00  0.00           C\n"
    file = tmp_path / "line.pdb"
    file.write_text("".join(atom.format(number, 3.8 * number) for number in range(1, 31)))
    summary = contacts(checkpoint, file, tmp_path / "output", progress=False)
    assert summary["chains"][0]["contacts"] == 0
    assert summary["chains"][0]["precision"] == {name: dict.fromkeys(CUTS) for name in RANGES}
    assert describe(summary).endswith("precision at L: short -, medium -, long -")
