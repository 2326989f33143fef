"""examples/contacts: heads on frozen encoders are trained, saved and reported."""

import csv
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CHAINS, make_config
from transformers import Trainer, TrainingArguments

from coordformer import CoordformerForContactPrediction, CoordformerForMaskedLM, CoordformerProcessor
from coordformer.data.batching import ChainBatches, fetch_rows
from coordformer.data.collator import CoordformerDataCollator
from coordformer.data.contacts import ContactCollator
from coordformer.data.rows import load_rows
from coordformer.hub.card import training_facts
from coordformer.inference.checkpoints import load_checkpoint
from coordformer.inference.contacts import predict_contacts

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "contacts"))
import contacts as example


@pytest.fixture(scope="module")
def rows():
    return load_rows(CHAINS, "valid").select(range(6))


def save(model, folder):
    model.save_pretrained(folder)
    CoordformerProcessor().save_pretrained(folder)
    return folder


def test_training_a_frozen_encoder(tmp_path, rows):
    """From a masked language model: the loss falls, the encoder stays, the saved head predicts the same."""
    start = save(CoordformerForMaskedLM(make_config()), tmp_path / "start")
    model = CoordformerForContactPrediction.from_pretrained(start)
    example.freeze_encoder(model)
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
    maps = [dict(predict_contacts(each, [chain], processor.tokenizer))[0] for each in (model, reloaded)]
    assert np.array_equal(*maps)


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
    assert heads["not_given"]["drop_coords"] == 1.0 and len(heads["given"]["losses"]) == 4  # two of each stage
    given, start = (
        CoordformerForContactPrediction.from_pretrained(tmp_path / name).coordformer
        for name in ("output/head_given", "with_coordinates")
    )
    assert not torch.equal(given.coordinate_embedding.weight, start.coordinate_embedding.weight)


def test_one_head_for_both_is_not_trained_again(tmp_path, monkeypatch):
    options = ("--heads", "both", "--steps", "2", "--chains", "3")
    report = run_example(tmp_path, monkeypatch, *options)
    head = tmp_path / "output" / "head_both"
    before = (head / "model.safetensors").stat().st_mtime_ns
    assert "| one head, coordinates given | one head, coordinates not given |" in report
    assert run_example(tmp_path, monkeypatch, *options).splitlines()[4:] == report.splitlines()[4:]
    assert (head / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="head_both holds another head; choose another --output"):
        run_example(tmp_path, monkeypatch, *options[:2], "--steps", "3")
    facts = training_facts(head)  # as `coordformer export` reads them
    assert (facts["updates"], facts["without coordinates"]) == ("2", "50 % of the chains")
    assert facts["command"].startswith("`python examples/contacts/contacts.py with_coordinates --output")
    rows = json.loads((head / "evaluation.json").read_text())["results"]
    assert {row["run"] for row in rows} == {
        "nearest in sequence", "best possible", "coordinates given", "coordinates not given"
    }  # fmt: skip
    assert "read off, not predicted" in (head / "evaluation.md").read_text()


@pytest.mark.slow
def test_the_quick_example(tmp_path, monkeypatch):
    report = run_example(tmp_path, monkeypatch, "--quick")
    assert "100 updates of each head, 100 held-out chains" in report
