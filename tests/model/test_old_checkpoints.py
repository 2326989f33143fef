"""Folders of version 0.1.0 load as they are, predict what they did, and are saved with the names of today."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import STRUCTURES, make_model, old_checkpoints, outputs_of, random_chain
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoProcessor,
    EsmConfig,
    Trainer,
    TrainingArguments,
)

import coordformer
from coordformer import CoordformerForMaskedLM, CoordformerModel, read_chains
from coordformer.model.modeling_coordformer import RENAMED_WEIGHTS

FOLDERS = ("coordformer-1M-pdb", "coordformer-7M-pdb", "linear")
GOLDEN = load_file(STRUCTURES.parent / "checkpoints" / "logits.safetensors")
EQUAL = {"atol": 2e-5, "rtol": 1e-5}  # the kernels of another processor move logits of 25 by 1e-5
# Loads each folder by its own code, saves it again, and writes logits and what was amiss: REMOTE FOLDER ... OUTPUT
REMOTE = """
import json, sys
sys.modules["coordformer"] = sys.modules["gemmi"] = None
import torch
from safetensors.torch import save_file
from transformers import AutoModelForMaskedLM, AutoProcessor
*folders, output = sys.argv[1:]
chain, logits = json.load(sys.stdin), {}
for folder in folders:
    options = {"trust_remote_code": True, "dtype": torch.float32, "output_loading_info": True}
    model, info = AutoModelForMaskedLM.from_pretrained(folder, **options)
    assert type(model).__module__.startswith("transformers_modules"), type(model)
    assert not any(info.values()), info
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        logits[folder.rpartition("/")[2]] = model(**processor(chain["sequence"], coords=chain["coords"])).logits[0]
    model.save_pretrained(folder + "-saved")
    processor.save_pretrained(folder + "-saved")
save_file(logits, output)
"""


@pytest.fixture(scope="module")
def chain():
    return read_chains(STRUCTURES / "1orc.pdb.gz")[0]


def names_in(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def old_names(names) -> set[str]:
    return {name for name in names if any(old in name for old in RENAMED_WEIGHTS)}


def load(folder: Path, auto_class=AutoModelForMaskedLM, **options):
    """A model in float32 all of whose weights were in the folder, and no others."""
    model, info = auto_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **options)
    assert not any(info.values()), info
    return model


@torch.no_grad()
def predict(model, folder: Path, chain) -> torch.Tensor:
    return model(**AutoProcessor.from_pretrained(folder)(chains=chain)).logits[0]


def check_saved(saved: Path, folder: str, chain) -> None:
    """The names are today's, in the config, too, and loading them once more changes nothing."""
    names = names_in(saved)
    assert names == set(load(saved).state_dict()) - {"lm_head.decoder.weight"} and not old_names(names)
    config = json.loads((saved / "config.json").read_text())
    assert {"num_qk_points", "num_v_points", "num_neighbors", "message_gating", "num_distance_bins"} <= config.keys()
    assert not {"attention_points", "message_neighbours", "message_type", "distance_bias"} & config.keys()
    torch.testing.assert_close(predict(load(saved), old_checkpoints() / folder, chain), GOLDEN[folder], **EQUAL)


def test_the_folders_have_old_names():
    found = set().union(*(old_names(names_in(old_checkpoints() / name)) for name in FOLDERS))
    for old in RENAMED_WEIGHTS:
        assert any(old in name for name in found), old
    config = json.loads((old_checkpoints() / "coordformer-7M-pdb" / "config.json").read_text())
    assert config["message_type"] == "gated" and config["coordinate_embedding"] == "local"


@pytest.mark.parametrize("folder", FOLDERS)
def test_with_the_package(folder, chain, tmp_path):
    model = load(old_checkpoints() / folder)
    torch.testing.assert_close(predict(model, old_checkpoints() / folder, chain), GOLDEN[folder], **EQUAL)
    model.save_pretrained(tmp_path)
    check_saved(tmp_path, folder, chain)


def test_by_remote_code(chain, tmp_path):
    for name in FOLDERS:
        shutil.copytree(old_checkpoints() / name, tmp_path / name)
        for file in (Path(coordformer.__file__).parent / "model").glob("[!_]*.py"):
            shutil.copy(file, tmp_path / name)
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", REMOTE, *(str(tmp_path / name) for name in FOLDERS), str(tmp_path / "logits")],
        input=json.dumps({"sequence": chain.sequence, "coords": chain.coords.tolist()}),
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    logits = load_file(tmp_path / "logits")
    for name in FOLDERS:
        torch.testing.assert_close(logits[name], GOLDEN[name], **EQUAL)
        assert (tmp_path / f"{name}-saved" / "structure_layers.py").exists()
        check_saved(tmp_path / f"{name}-saved", name, chain)


def test_other_classes_take_the_weights():
    folder = old_checkpoints() / "coordformer-7M-pdb"
    base, info = CoordformerModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and {name.split(".")[0] for name in info["unexpected_keys"]} == {"lm_head"}
    head, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"classifier"}
    weight = "edge_features.geometry.weight"
    assert torch.equal(base.get_parameter(weight), head.get_parameter(f"coordformer.{weight}"))


@pytest.mark.parametrize("front", [False, True], ids=["alone", "behind ESM-2"])
def test_the_old_names_can_be_written_and_are_read_again(front, tmp_path):
    """In a model within a model, too."""
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    esm = EsmConfig(vocab_size=33, pad_token_id=1, mask_token_id=32, position_embedding_type="rotary", **shape)
    fields = {"sequence_encoder": esm, "lm_head": "linear"} if front else {}
    model = make_model(num_qk_points=2, num_neighbors=3, message_gating=True, **fields)
    row = random_chain(12)
    model.save_pretrained(tmp_path / "new")
    model.save_pretrained(tmp_path / "old", save_original_format=True)
    old, new = names_in(tmp_path / "old"), names_in(tmp_path / "new")
    assert len(old) == len(new) and len(old_names(old)) == 6 + 2 * 9 and not old_names(new)
    for each in (tmp_path / "old", tmp_path / "new"):
        assert torch.equal(outputs_of(load(each), row), outputs_of(model, row))
    fresh = make_model(num_qk_points=2, num_neighbors=3, message_gating=True, **fields)
    assert not fresh.load_state_dict(load_file(tmp_path / "old" / "model.safetensors"), strict=False).unexpected_keys
    assert torch.equal(outputs_of(fresh, row), outputs_of(model, row))


def test_trainer_saves_new_names_and_resumes_old_ones(tmp_path):
    """Trainer loads a checkpoint into the model as a state dict, past Transformers' own renaming."""
    model = load(old_checkpoints() / "coordformer-1M-pdb")
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    Trainer(model, arguments).save_model(tmp_path / "saved")
    assert not old_names(names_in(tmp_path / "saved"))
    fresh = CoordformerForMaskedLM(model.config)
    Trainer(fresh, arguments)._load_from_checkpoint(str(old_checkpoints() / "coordformer-1M-pdb"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor), name


def test_the_old_keyword_of_packed_rows_is_taken_with_one_warning():
    row = random_chain(12)
    ids = torch.tensor([[0] * 6 + [1] * 8])
    for head in ("base", "masked_lm", "single_label"):
        model = make_model(head)
        expected = outputs_of(model, row | {"sequence_id": ids})
        with pytest.warns(FutureWarning, match="`segment_ids` is called `sequence_id` now") as warned:
            assert torch.equal(outputs_of(model, row | {"segment_ids": ids}), expected)
        assert len(warned) == 1 and Path(warned[0].filename).name == "small_models.py", "where the model is called"
        assert not torch.equal(outputs_of(model, row)[..., :1], expected[..., :1])
