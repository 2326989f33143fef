"""Labels, batches, precision and files of contacts; the head itself is in test_contacts.py."""

import csv
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CHAINS, STRUCTURES, make_config
from transformers import Trainer, TrainingArguments

from coordformer import CoordformerForContactPrediction, CoordformerForMaskedLM, CoordformerProcessor, read_chains
from coordformer.data.batching import ChainBatches, fetch_rows
from coordformer.data.collator import CoordformerDataCollator
from coordformer.data.rows import load_rows
from coordformer.inference.contacts import (
    CUTS,
    RANGES,
    ContactCollator,
    contact_labels,
    file_stems,
    freeze_encoder,
    measure_precision,
    precision_at,
    predict_chain,
)
from coordformer.inference.evaluate import load_checkpoint
from coordformer_command import main

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "contacts"))
import contacts as example

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


# Labels and batches


def test_labels_by_hand():
    """Nine residues on a line, 1 Å apart but for a jump of 2 Å after the first; the fourth is not observed."""
    x = torch.tensor([0.0, 2, 3, 4, 5, 6, 7, 8, 9])
    coords = torch.stack((x, torch.zeros(9), torch.zeros(9)), dim=1)
    coords[3] = torch.nan
    expected = torch.full((9, 9), -100, dtype=torch.int8)
    for i, j, contact in [(0, 6, 1), (0, 7, 0), (0, 8, 0), (1, 7, 1), (1, 8, 1), (2, 8, 1)]:  # 8 Å is no contact
        expected[i, j] = expected[j, i] = contact
    assert torch.equal(contact_labels(coords), expected)
    assert torch.equal(contact_labels(coords.numpy()), expected)
    both = contact_labels(torch.stack((coords + 50, coords.flip(0))))
    assert torch.equal(both[0], expected) and torch.equal(both[1], expected.flip(0, 1))


def test_labels_of_a_chain_with_gaps():
    chain = read_chains(STRUCTURE)[0]
    labels = contact_labels(chain.coords[:, 0])
    place = np.arange(len(chain))
    observed = chain.observed[:, 0]
    asked = (np.abs(place[:, None] - place) >= 6) & observed[:, None] & observed
    assert not observed.all()
    assert np.array_equal(labels.numpy() >= 0, asked)
    distances = np.linalg.norm(chain.coords - chain.coords[:, 0], axis=-1)
    assert np.array_equal(labels.numpy() == 1, asked & (distances < 8))


@pytest.mark.parametrize("augmented", ["noise", "drop_coords"])
@pytest.mark.parametrize("with_epoch", [True, False])
def test_labels_are_of_the_crop_and_of_true_coordinates(rows, augmented, with_epoch):
    tokenizer = CoordformerProcessor().tokenizer
    collator = CoordformerDataCollator(tokenizer, max_length=50, **{augmented: 1.0})
    batches = ChainBatches(rows, chains_per_batch=6, max_length=50)
    chains = batches[0] if with_epoch else fetch_rows(rows, range(6))
    batch = ContactCollator(collator)([chains])
    assert tokenizer.mask_token_id not in batch["input_ids"]
    starts = set()
    for row, chain in enumerate(chains):
        letters = tokenizer.decode(batch["input_ids"][row], skip_special_tokens=True).replace(" ", "")
        start = chain["sequence"].index(letters)
        starts.add(start)
        coords = chain["coords"].reshape(-1, 3)[start : start + len(letters)]
        labels = batch["labels"][row]
        assert torch.equal(labels[: len(letters), : len(letters)], contact_labels(coords))
        assert (labels[len(letters) :] == -100).all() and (labels[:, len(letters) :] == -100).all()
        seen = batch["coords"][row, 1 : 1 + len(letters)]
        if augmented == "drop_coords":
            assert seen.isnan().all()
        else:
            assert 0.8 < (seen - torch.tensor(coords)).std() < 1.2
    assert len(starts) > 1 and batch["labels"].eq(1).any()


def test_batches_of_several_atoms():
    chain = read_chains(STRUCTURE, atoms=("N", "CA", "C"))[0]
    tokenizer = CoordformerProcessor().tokenizer
    batch = ContactCollator(CoordformerDataCollator(tokenizer, atoms=("C", "CA")))([chain])
    assert torch.equal(batch["labels"][0], contact_labels(chain.coords[:, 1]))
    with pytest.raises(ValueError, match=r"`atoms` is \('N', 'C'\); .*C-alphas \(CA\), add them"):
        ContactCollator(CoordformerDataCollator(tokenizer, atoms=("N", "C")))


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


def test_precision_needs_one_chain():
    with pytest.raises(ValueError, match=r"`scores` has shape \(1, 9, 9\) and `labels` \(9, 9\)"):
        precision_at(np.zeros((1, 9, 9)), np.zeros((9, 9)))


# Prediction


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
    seen = measure_precision(model, rows, processor, progress=False)
    assert seen.shape == (6, 3, 3)
    row = fetch_rows(rows, [4])[0]
    expected = precision_at(predict_chain(model, processor, row), contact_labels(row["coords"].reshape(-1, 3)))
    assert seen[4].tolist() == [list(cuts.values()) for cuts in expected.values()]


# Training


def test_training_a_frozen_encoder(tmp_path, rows):
    """From a masked language model: the loss falls, the encoder stays, the saved head predicts the same."""
    start = save(CoordformerForMaskedLM(make_config()), tmp_path / "start")
    model = CoordformerForContactPrediction.from_pretrained(start)
    freeze_encoder(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    processor = CoordformerProcessor.from_pretrained(start)
    arguments = TrainingArguments(
        str(tmp_path / "trained"),
        max_steps=12,
        per_device_train_batch_size=1,
        learning_rate=0.5,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=ChainBatches(rows, token_budget=512, packing=False, max_length=64),
        data_collator=ContactCollator(CoordformerDataCollator(processor.tokenizer, max_length=64)),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(2), abs=0.01)  # a new head knows nothing
    assert max(losses[-3:]) < 0.5
    trained = model.state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, trained[name])}
    assert changed == {"coordformer.contact_head.weight", "coordformer.contact_head.bias"}

    trainer.save_model(str(tmp_path / "trained"))
    processor.save_pretrained(tmp_path / "trained")
    reloaded, processor = load_checkpoint(tmp_path / "trained", any_head=True)
    chain = fetch_rows(rows, [0])[0]
    maps = [predict_chain(each, processor, chain) for each in (model, reloaded)]
    assert np.array_equal(*maps)


# The command


def test_the_command_writes_three_files_and_a_summary(checkpoint, tmp_path, capsys):
    assert (
        main(["contacts", str(checkpoint), str(STRUCTURE), "--output", str(tmp_path / "out"), "--quiet", "--json"]) == 0
    )
    summary = json.loads(capsys.readouterr().out)
    assert summary == json.loads((tmp_path / "out" / "contacts.json").read_text())
    report = summary["chains"]
    assert [each["id"] for each in report] == ["1ORC_A"]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["1ORC_A.npz", "1ORC_A.png", "1ORC_A.tsv", "contacts.json"]

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
    assert head.split("\t") == ["i", "j", "residue_i", "residue_j", "probability"]
    pairs = [line.split("\t") for line in lines]
    assert len(pairs) == 5 * len(chain)
    values = [float(pair[4]) for pair in pairs]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(np.triu(probabilities, 6).max(), rel=1e-5)
    for i, j, *letters, value in pairs:
        i, j = int(i) - 1, int(j) - 1
        assert j - i >= 6 and letters == [chain.sequence[i], chain.sequence[j]]
        assert float(value) == pytest.approx(probabilities[i, j], rel=1e-5)

    assert report[0]["coordinates"] == "given" and report[0]["residues"] == len(chain)
    assert report[0]["contacts"] == (np.triu(labels) == 1).sum()
    assert report[0]["precision"] == precision_at(probabilities, labels)


def test_the_command_withholds_coordinates_and_keeps_the_truth(checkpoint, tmp_path, capsys):
    options = ["--without_coords", "--output", str(tmp_path), "--quiet", "--json"]
    assert main(["contacts", str(checkpoint), str(STRUCTURE), *options]) == 0
    (report,) = json.loads(capsys.readouterr().out)["chains"]
    model, processor = load_checkpoint(checkpoint, any_head=True)
    expected = predict_chain(model, processor, read_chains(STRUCTURE)[0], without_coords=True)
    assert np.array_equal(np.load(tmp_path / "1ORC_A.npz")["probabilities"], expected)
    assert report["coordinates"] == "withheld" and report["contacts"] > 0


def test_the_command_without_structure(checkpoint, tmp_path, capsys):
    """Short sequences, too: of the second no pair is asked for."""
    (tmp_path / "two.fasta").write_text(f">sp/P1.2 first\n{'MKVLAGHDEW' * 3}\n>tiny\nMKV\n")
    options = ["--output", str(tmp_path / "out"), "--quiet", "--json"]
    assert main(["contacts", str(checkpoint), str(tmp_path / "two.fasta"), *options]) == 0
    first, tiny = json.loads(capsys.readouterr().out)["chains"]
    assert (first["id"], first["coordinates"], first["contacts"]) == ("sp/P1.2", "unknown", None)
    assert first["precision"]["long"] == {"L": None, "L/2": None, "L/5": None}
    assert (np.load(tmp_path / "out" / "sp_P1.2.npz")["contacts"] == -100).all()
    assert (tmp_path / "out" / "sp_P1.2.png").stat().st_size > 1000
    assert (tmp_path / "out" / "tiny.tsv").read_text().count("\n") == 1 and tiny["residues"] == 3

    options += ["--chains", "tiny", "--dtype", "bfloat16"]
    assert main(["contacts", str(checkpoint), str(tmp_path / "two.fasta"), *options]) == 0
    assert [each["id"] for each in json.loads(capsys.readouterr().out)["chains"]] == ["tiny"]


def test_the_command_without_matplotlib(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("coordformer.inference.figures.new_figure", lambda size, path: None)
    assert main(["contacts", str(checkpoint), str(STRUCTURE), "--output", str(tmp_path), "--quiet"]) == 0
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".npz", ".tsv"]


def test_bad_input_is_named(checkpoint, tmp_path, capsys):
    def message(*argv) -> str:
        assert main(["contacts", *map(str, argv), "--quiet"]) == 1
        lines = capsys.readouterr().err.splitlines()
        return next(line for line in lines if line.startswith("coordformer: "))

    headless = save(CoordformerForMaskedLM(make_config()), tmp_path / "headless")
    assert "headless has no contact head; train one" in message(headless, STRUCTURE, "--output", tmp_path / "out")
    (tmp_path / "file").touch()
    assert "which is a file; give a folder" in message(checkpoint, STRUCTURE, "--output", tmp_path / "file")
    assert "`window` is 1" in message(checkpoint, STRUCTURE, "--output", tmp_path / "out", "--window", "1")
    assert "no protein chain Z" in message(checkpoint, STRUCTURE, "--output", tmp_path / "out", "--chains", "Z")


def test_files_are_named_by_ids_on_every_system(checkpoint, tmp_path, capsys):
    assert file_stems(["2QFA_A", "sp|P69905|HBA", "a/b", "A_B", "a:b", "..", "x.y"]) == [
        "2QFA_A", "sp_P69905_HBA", "a_b", "A_B-2", "a_b-3", "_", "x.y",
    ]  # fmt: skip
    (tmp_path / "two.fasta").write_text(">A\nMKVAA\n>a\nMKVLLLL\n")
    command = ["contacts", str(checkpoint), str(tmp_path / "two.fasta"), "--output", str(tmp_path / "out")]
    assert main([*command, "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["chains"]
    assert [(each["id"], each["file"]) for each in found] == [("A", "A"), ("a", "a-2")]
    for each in found:
        assert len(str(np.load(tmp_path / "out" / f"{each['file']}.npz")["sequence"])) == each["residues"]


# The example


def run_example(tmp_path, monkeypatch, *options) -> str:
    """Run examples/contacts on two small models; its report."""
    for name, kind in (("with_coordinates", "linear"), ("without_coordinates", "none")):
        save(CoordformerForMaskedLM(make_config(coordinate_embedding=kind)), tmp_path / name)
    output = tmp_path / "output"
    monkeypatch.setattr(sys, "argv", ["contacts.py", str(tmp_path / "with_coordinates"), "--output", str(output),
                                      "--quiet", *options])  # fmt: skip
    example.main()
    return (output / "report.md").read_text()


def test_two_steps_of_the_example(tmp_path, monkeypatch):
    report = run_example(tmp_path, monkeypatch, "--steps", "2", "--chains", "3", "--finetune")
    assert "3 held-out chains" in report and "| long (from 24) | L/5 |" in report
    with open(tmp_path / "output" / "precision.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 7 * 9 and all(0 <= float(row["precision"]) <= 1 for row in table)
    heads = json.loads((tmp_path / "output" / "results.json").read_text())["heads"]
    assert heads["withheld"]["drop_coords"] == 1.0 and len(heads["given"]["losses"]) == 4  # two of each stage
    given, start = (
        CoordformerForContactPrediction.from_pretrained(tmp_path / name).coordformer
        for name in ("output/head_given", "with_coordinates")
    )
    assert not torch.equal(given.coordinate_embedding.weight, start.coordinate_embedding.weight)


@pytest.mark.slow
def test_the_quick_example(tmp_path, monkeypatch):
    report = run_example(tmp_path, monkeypatch, "--quick")
    assert "100 updates of each head, 100 held-out chains" in report
