"""Training that starts from a checkpoint: what is its own, what can be added, and what is refused."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import CHAINS, make_esm, make_esm_batch, make_model
from transformers import AutoModelForMaskedLM, EsmForMaskedLM

from coordformer import CoordformerConfig
from coordformer.hub.card import recorded_base, training_facts
from coordformer.training.arguments import ModelArguments, parse_arguments
from coordformer.training.train import build_model, train
from coordformer_command import main

SHIPPED = CHAINS.parent.parent.parent / "hub_cards" / "coordformer-1M-pdb"


def test_a_checkpoint_decides_what_is_not_given(tmp_path):
    """The plain command: a shipped model goes on with its own frames, points and messages."""
    output = tmp_path / "run"
    command = ["train", "--init_from", str(SHIPPED), "--data", str(CHAINS), "--output_dir", str(output), "--max_steps"]
    more = ["--per_device_train_batch_size", "2", "--max_length", "50", "--report_to", "none", "--use_cpu", "--quiet"]
    assert main([*command, "2", *more]) == 0
    fields = [json.loads((folder / "config.json").read_text()) for folder in (SHIPPED, output)]
    new = {name: getattr(CoordformerConfig, name) for name in fields[1].keys() - fields[0].keys()}  # of later versions
    assert fields[0] | new | {"dtype": "float32"} == fields[1] | {"dtype": "float32"}
    assert json.loads((output / "train.json").read_text())["started_from"]["steps"] == 2000


def test_what_contradicts_the_checkpoint_is_refused_by_name(tmp_path, capsys):
    esm, preset = tmp_path / "esm", tmp_path / "preset.yaml"
    make_esm().save_pretrained(esm)
    preset.write_text("hidden_size: 320\nnum_qk_points: 4\ncoordinate_atoms: [N, CA]\n")
    command = ["train", str(preset), "--data", str(CHAINS), "--output_dir", str(tmp_path / "run"), "--init_from"]
    assert main([*command, str(SHIPPED), "--lm_head", "linear", "--num_neighbors", "24"]) == 1
    what = "has hidden_size=128, not 320; lm_head='esm', not 'linear'; coordinate_atoms=('CA',), not ('N', 'CA'); leave"
    assert f"{SHIPPED} {what}" in capsys.readouterr().err.splitlines()[-1]
    # An ESM-2 has no coordinates yet and takes any; its shape it has.
    assert main([*command, str(esm), "--num_attention_heads", "2"]) == 1
    what = (
        "hidden_size=64, not 320; num_attention_heads=4, not 2; leave that out, on the command line and in the preset"
    )
    assert f"{esm} has {what}" in capsys.readouterr().err.splitlines()[-1]
    given = ModelArguments(init_from=str(esm), num_qk_points=4, coordinate_atoms=["N", "CA"], hidden_size=64)
    config = build_model(given).config
    assert (config.num_qk_points, config.num_v_points, config.coordinate_atoms) == (4, 4, ("N", "CA"))
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_bias_of_the_checkpoint_keeps_batches_padded(tmp_path):
    """The budget packs chains, but for a model whose attention bias would be as large as its square."""
    fields = {"num_distance_bins": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    make_model(**fields, intermediate_size=32).save_pretrained(tmp_path / "bias")
    options = ["--init_from", str(tmp_path / "bias"), "--data", str(CHAINS), "--output_dir", str(tmp_path / "run")]
    options += ["--max_steps", "1", "--token_budget", "1024", "--max_length", "64", "--use_cpu", "--report_to", "none"]
    assert train(*parse_arguments(options))["padding_share"] > 0


# --- a model that stays what it is, and what is added to it ----------------------------------------------------------

PRESET = CHAINS.parent.parent / "pretraining" / "esm2_structure.yaml"
# All of the preset is real but for the ESM, which is small and random, and how long it takes.
QUICK = ["--data", str(CHAINS), "--max_steps", "4", "--save_steps", "2", "--warmup_steps", "1", "--token_budget", "600",
         "--max_length", "60", "--use_cpu", "--report_to", "none"]  # fmt: skip


def weights_of_esm(model) -> dict[str, torch.Tensor]:
    """Those that an ESM has, under its names."""
    names = {
        "coordformer.contact_head.": "esm.contact_head.regression.",
        "coordformer.esm.": "esm.",
        "decoder.bias": "bias",
    }
    weights = model.state_dict()
    for ours, theirs in names.items():
        weights = {name.replace(ours, theirs): tensor for name, tensor in weights.items()}
    return weights


@pytest.fixture(scope="module")
def esm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("esm")
    torch.manual_seed(0)
    make_esm().save_pretrained(folder)
    return folder


def test_a_frozen_esm_gets_layers_that_start_as_the_identity_and_are_all_that_is_trained(esm, tmp_path):
    command = [str(PRESET), "--init_from", str(esm), *QUICK, "--output_dir", str(tmp_path / "run")]
    new = build_model(parse_arguments(command)[0]).eval()
    source, batch = EsmForMaskedLM.from_pretrained(esm).eval(), make_esm_batch()
    expected = source(batch["input_ids"], batch["attention_mask"]).logits
    assert (new(**batch).logits - expected)[batch["attention_mask"].bool()].abs().max() < 1e-5

    train(*parse_arguments(command))
    trained = AutoModelForMaskedLM.from_pretrained(tmp_path / "run")
    weights = weights_of_esm(trained)
    frozen = {name: tensor for name, tensor in source.state_dict().items() if "position_ids" not in name}
    assert all(torch.equal(weights[name], tensor) for name, tensor in frozen.items()) and len(frozen) > 60
    changed = {name for name, tensor in trained.state_dict().items() if not torch.equal(tensor, new.state_dict()[name])}
    for part in ("coordinate_embedding", "output_points", "message_passing.output"):
        assert any(part in name for name in changed)
    assert training_facts(tmp_path / "run")["trained layers"] == "those that were added"
    moments = torch.load(tmp_path / "run" / "checkpoint-4" / "optimizer.pt")["state"].values()
    assert sorted(state["exp_avg"].numel() for state in moments) == sorted(
        parameter.numel() for parameter in new.parameters() if parameter.requires_grad
    )


def test_low_rank_changes_go_on_after_a_kill_and_are_merged(esm, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [str(PRESET), "--init_from", str(esm), "--lora_rank", "2", *QUICK, "--output_dir"]
    train(*parse_arguments([*command, str(killed), "--max_steps", "2", "--lr_scheduler_type", "constant"]))
    for output in (killed, whole):
        train(*parse_arguments([*command, str(output), "--lr_scheduler_type", "constant"]))
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    # Asked for again, the finished training gives the same.
    train(*parse_arguments([*command, str(killed), "--lr_scheduler_type", "constant"]))
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()

    source = EsmForMaskedLM.from_pretrained(esm).state_dict()
    weights = weights_of_esm(AutoModelForMaskedLM.from_pretrained(whole))
    linear = [name for name, tensor in source.items() if ".layer." in name and tensor.dim() == 2]
    changes = [(weights[name] - source[name]).double() for name in linear]
    assert [int(torch.linalg.matrix_rank(change, rtol=1e-4)) for change in changes] == [2] * 4 * 6
    assert all(torch.equal(weights[name], source[name]) for name in source.keys() - set(linear))
    added = "those that were added, and low-rank changes of the others (LoRA, rank 2)"
    assert training_facts(whole)["trained layers"] == added


def test_a_name_on_the_hub_is_the_base_model_of_the_card(esm, tmp_path):
    """And of what is trained from the result. Offline: the Hub's files lie in the cache."""
    snapshot = tmp_path / "cache" / "models--someone--esm" / "snapshots" / "0a"
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(esm, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0a")
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [
        sys.executable,
        "-m",
        "coordformer",
        "train",
        "--init_from",
        "someone/esm",
        *QUICK,
        "--output_dir",
        "first",
    ]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert recorded_base(tmp_path / "first") == "someone/esm"
    train(*parse_arguments(["--init_from", str(tmp_path / "first"), *QUICK, "--output_dir", str(tmp_path / "second")]))
    assert recorded_base(tmp_path / "second") == "someone/esm"


def test_a_trained_model_stays_and_its_messages_are_trained(tmp_path):
    make_model(num_qk_points=2).save_pretrained(tmp_path)
    model = build_model(ModelArguments(init_from=str(tmp_path), num_neighbors=4, freeze=True))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in model.state_dict() if "message_passing" in name or "edge_features" in name}


def test_what_cannot_be_frozen_is_refused(esm, tmp_path):
    make_model().save_pretrained(tmp_path)
    for given, message in (
        ({"freeze": True}, "--freeze and --lora_rank are of a model to start from; give --init_from, too"),
        ({"freeze": True, "init_from": str(tmp_path)}, "Nothing is left to train: no layer was added"),
        ({"lora_rank": 0, "init_from": str(esm)}, "`lora_rank` is 0; give a rank of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            build_model(ModelArguments(**given))
    options = [
        "--init_from",
        str(esm),
        "--lora_rank",
        "2",
        *QUICK,
        "--output_dir",
        str(tmp_path / "run"),
        "--fsdp",
        "full_shard",
    ]
    with pytest.raises(ValueError, match="--lora_rank needs whole matrices, which FSDP does not leave"):
        train(*parse_arguments(options))
