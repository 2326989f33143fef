"""What `coordformer train` leaves of the sequences that it trained on, from one training to the next."""

import json

import pytest
from conftest import CHAINS, make_esm, make_model

from coordformer.data.pack import write_pack
from coordformer.data.rows import load_rows
from coordformer.data.training_sequences import FILE, SAME, TrainingSequences
from coordformer.inference.evaluate import evaluate
from coordformer.training.arguments import parse_arguments
from coordformer.training.train import train

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
QUICK = {"max_steps": 1, "max_length": 64, "token_budget": 1024, "train_split": "train"}
QUIET = ["--report_to", "none", "--use_cpu", "true", "--disable_tqdm", "true"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two files of six chains, of which four are to train on; the second one packed."""
    folder = tmp_path_factory.mktemp("record")
    rows = load_rows(CHAINS)
    places = {name: [i for i, split in enumerate(rows["split"][:]) if split == name] for name in ("train", "valid")}
    for number, name in enumerate(("first.parquet", "second.safetensors")):
        chosen = rows.select(places["train"][4 * number : 4 * number + 4] + places["valid"][:2])
        if name.endswith(".parquet"):
            chosen.to_parquet(folder / name)
        else:
            write_pack(chosen, folder / name, progress=False)
    return folder


def run(data, output, **options) -> TrainingSequences:
    words = [word for name, value in (QUICK | options).items() for word in (f"--{name}", str(value))]
    train(*parse_arguments(["--data", str(data), "--output_dir", str(output), *words, *QUIET]))
    return TrainingSequences.read(output / FILE)


def test_each_training_adds_to_what_the_weights_were_trained_on(data, tmp_path):
    first = run(data / "first.parquet", tmp_path / "first", **TINY, save_steps=1)
    sequences = load_rows(data / "first.parquet", "train")["sequence"][:]
    assert len(first) == 4 and (first.find(sequences) == SAME).all() and first.unknown == ()
    # Of a checkpoint on the way, and of what was trained from it.
    second = run(data / "second.safetensors", tmp_path / "second", init_from=tmp_path / "first" / "checkpoint-1")
    assert len(second) == 8 and (second.find(sequences) == SAME).all() and second.unknown == ()
    again = run(data / "second.safetensors", tmp_path / "third", init_from=tmp_path / "second")
    assert (tmp_path / "third" / FILE).read_bytes() == (tmp_path / "second" / FILE).read_bytes() and len(again) == 8

    options = {"protocols": ("masked15",), "num_mask_samples": 1, "progress": False}
    report = evaluate(tmp_path / "third", data / "first.parquet", **options)
    assert report["trained_on_sequences"] == {"same": 4, "similar": 0, "unknown": 0}
    report = evaluate(tmp_path / "second", data / "first.parquet", split="valid", **options)
    assert report["trained_on_sequences"] == {"same": 0, "similar": 0, "unknown": 0}


def test_a_start_that_nobody_recorded_is_named_and_handed_on(data, tmp_path):
    make_model(**TINY).save_pretrained(tmp_path / "converted")
    record = run(data / "first.parquet", tmp_path / "first", init_from=tmp_path / "converted")
    assert len(record) == 4 and record.unknown == ("converted",)
    record = run(data / "second.safetensors", tmp_path / "second", init_from=tmp_path / "first")
    assert len(record) == 8 and record.unknown == ("converted",)
    options = {"protocols": ("masked15",), "num_mask_samples": 1, "progress": False}
    report = evaluate(tmp_path / "second", data / "first.parquet", **options)
    assert report["trained_on_sequences"] == {"same": 4, "similar": 0, "unknown": 2}
    assert "trained_on_sequences" not in json.loads((tmp_path / "second" / "train.json").read_text())


def test_a_frozen_esm_is_a_start(data, tmp_path):
    make_esm().save_pretrained(tmp_path / "esm")
    options = {**TINY, "lm_head": "linear", "sequence_encoder": tmp_path / "esm"}
    record = run(data / "first.parquet", tmp_path / "run", **options)
    assert len(record) == 4 and record.unknown == ("esm",)


def test_a_broken_record_of_the_start_is_named(data, tmp_path):
    make_model(**TINY).save_pretrained(tmp_path / "start")
    (tmp_path / "start" / FILE).write_text("{")
    with pytest.raises(ValueError, match=f"start/{FILE} cannot be read .*; copy it again, make it by"):
        run(data / "first.parquet", tmp_path / "run", init_from=tmp_path / "start")
