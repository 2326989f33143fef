"""What comes from outside runs no code and is written nowhere but where it belongs."""

import ast
import gzip
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import CHAINS, STRUCTURES, make_config, make_model
from transformers import AutoModelForMaskedLM

from coordformer import (
    CoordformerForContactPrediction,
    CoordformerForMaskedLM,
    CoordformerProcessor,
    StructureError,
    from_esm,
    read_proteins,
)
from coordformer.data.rows import load_rows
from coordformer.inference.checkpoints import load_checkpoint
from coordformer.model import structure
from coordformer.training.arguments import parse_arguments
from coordformer.training.train import train
from coordformer_command import main

ROOT = Path(__file__).parents[2]
CODE = sorted(path.relative_to(ROOT) for name in ("coordformer", "hub_cards") for path in (ROOT / name).rglob("*.py"))


class Payload:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("path", [*CODE, Path("coordformer_command.py")], ids=str)
def test_nothing_is_read_by_what_can_run_code(path):
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {each.arg: ast.unparse(each.value) for each in node.keywords}
        if called == "torch.load":
            assert given.get("weights_only") == "True", f"line {node.lineno}"
        assert given.get("allow_pickle", "False") == "False", f"line {node.lineno}"
        if path.name != "reload_check.py":  # whose task it is to run the code that `export` has just written
            assert given.get("trust_remote_code", "False") == "False", f"line {node.lineno}"
        assert not re.fullmatch(
            r"eval|exec|(pickle|dill|marshal|joblib)\.loads?|yaml\.(unsafe_|full_)?load|os\.system|.*\.extract(all)?",
            called,
        ), f"line {node.lineno}"


@pytest.fixture
def pickled(tmp_path):
    """A checkpoint whose weights are a pickle that runs code."""
    folder = tmp_path / "pickled"
    make_model().save_pretrained(folder)
    CoordformerProcessor().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Payload(tmp_path / "mark")}, folder / "pytorch_model.bin")
    return folder


def test_pickled_weights_are_refused(pickled, tmp_path):
    with pytest.raises(ValueError, match=r"pickled cannot be loaded \(.*model\.safetensors"):
        load_checkpoint(pickled)
    for load in (CoordformerForMaskedLM.from_pretrained, AutoModelForMaskedLM.from_pretrained):
        with pytest.raises(OSError, match=r"model\.safetensors"):
            load(pickled)
    config = json.loads((pickled / "config.json").read_text())
    (pickled / "config.json").write_text(json.dumps(config | {"model_type": "esm"}))
    with pytest.raises(OSError, match=r"model\.safetensors"):
        from_esm(str(pickled))
    assert not (tmp_path / "mark").exists()


def test_what_was_put_into_a_checkpoint_is_not_run_when_training_goes_on(tmp_path):
    load_rows(CHAINS, "train").select(range(20)).to_parquet(tmp_path / "chains.parquet")
    options = ["--data", str(tmp_path / "chains.parquet"), "--train_split", "train", "--hidden_size", "16",
               "--num_hidden_layers", "1", "--num_attention_heads", "2", "--intermediate_size", "16",
               "--max_length", "64", "--save_steps", "1", "--report_to", "none", "--use_cpu", "true",
               "--output_dir", str(tmp_path / "run")]  # fmt: skip
    train(*parse_arguments([*options, "--max_steps", "1"]))
    first = tmp_path / "run" / "checkpoint-1"
    pickles = [path.name for path in first.iterdir() if path.suffix in (".pt", ".pth", ".bin")]
    assert sorted(pickles) == ["optimizer.pt", "rng_state.pth", "scheduler.pt", "training_args.bin"]
    shutil.copytree(tmp_path / "run", tmp_path / "whole")
    for name in pickles:
        shutil.rmtree(tmp_path / "run")
        shutil.copytree(tmp_path / "whole", tmp_path / "run")
        torch.save(Payload(tmp_path / "mark"), first / name)
        if name == "training_args.bin":  # is written and never read
            train(*parse_arguments([*options, "--max_steps", "2"]))
        else:
            with pytest.raises(Exception, match=r"[Ww]eights.only"):
                train(*parse_arguments([*options, "--max_steps", "2"]))
        assert not (tmp_path / "mark").exists(), name


def test_a_gzip_bomb_in_place_of_sequences_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.fasta.gz"
    path.write_bytes(gzip.compress(b">a\n" + b"M" * 1_000_000))
    assert path.stat().st_size < 2000
    monkeypatch.setattr(structure, "MAX_BYTES", 900_000)
    with pytest.raises(StructureError, match=r"a\.fasta\.gz: more than 900000 bytes once decompressed"):
        read_proteins(path)


def test_names_lead_nowhere(tmp_path):
    """Whatever an entry or a chain calls itself, files appear in the output folder alone."""
    names = ["../../evil", "..", "a/../../b", "a\\..\\c", f"{tmp_path}/absolute"]
    model = CoordformerForContactPrediction(make_config(hidden_size=16, num_hidden_layers=1, intermediate_size=16))
    model.save_pretrained(tmp_path / "model")
    CoordformerProcessor().save_pretrained(tmp_path / "model")
    text = gzip.decompress((STRUCTURES / "1A8O.cif.gz").read_bytes()).decode()
    text, changes = re.subn(r"^(_entry\.id\s+)\S+", r"\1/../../entry", text, flags=re.MULTILINE)
    assert changes == 1
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.cif").write_text(text)
    (tmp_path / "in" / "a.fasta").write_text("".join(f">{name}\nMKVLAG\n" for name in names))
    assert read_proteins(tmp_path / "in" / "a.cif")[0].id == "/../../entry_A"
    output = tmp_path / "deep" / "output"
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    for verb in ("contacts", "embed"):
        command = [verb, str(tmp_path / "model"), str(tmp_path / "in"), "--output", str(output / verb), "--quiet"]
        assert main(command) == 0
    main(["prepare", str(tmp_path / "in" / "a.cif"), "--output", str(output / "prepare"), "--quiet"])
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert all(output in path.parents for path in written)
    assert len(list((output / "contacts").glob("*.npz"))) == len(names) + 1
    assert {"embed", "prepare"} <= {path.parent.name for path in written}
