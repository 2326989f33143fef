"""Training that starts from a checkpoint: what is its own, what can be added, and what is refused."""

import json

from conftest import CHAINS, make_esm, make_model

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
    assert fields[0] | {"dtype": "float32"} == fields[1] | {"dtype": "float32"}
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
