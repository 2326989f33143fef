"""Muon and AdamW as one optimizer."""

import pytest
import torch
from conftest import CHAINS, make_model
from safetensors.torch import load_file

from coordformer.training.arguments import parse_arguments
from coordformer.training.muon import MuonAdamW, parameter_groups
from coordformer.training.train import train


def model_and_groups(**fields):
    torch.manual_seed(0)
    model = make_model(coordinate_embedding="local_frame", num_qk_points=2, **fields)
    return model, parameter_groups(model, weight_decay=0.1)


def gradients(model, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(
    ("fields", "also"),
    [
        ({}, set()),
        ({"lm_head": "linear"}, {"lm_head.weight"}),
        ({"num_distance_bins": 4}, {"coordformer.distance_bias.weight"}),
    ],
    ids=["tied", "untied", "distance bias"],
)
def test_every_parameter_is_in_one_group(fields, also):
    model, groups = model_and_groups(**fields)
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(ids) == sorted(id(parameter) for parameter in model.parameters())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_adamw = {names[id(parameter)] for parameter in groups[1]["params"]}
    expected = {"coordformer.esm.embeddings.word_embeddings.weight", "coordformer.coordinate_embedding.weight"}
    assert by_adamw == expected | also
    assert {parameter.dim() for parameter in groups[0]["params"]} == {2}
    assert {parameter.dim() for parameter in groups[2]["params"]} == {1}


def test_each_part_moves_its_parameters_as_alone():
    together, groups = model_and_groups()
    apart, parts = model_and_groups()
    one = MuonAdamW(groups, lr=1e-2, betas=(0.9, 0.98))
    two = [
        torch.optim.Muon(parts[:1], lr=1e-2, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(parts[1:], lr=1e-2, betas=(0.9, 0.98)),
    ]
    schedules = [torch.optim.lr_scheduler.LinearLR(each, total_iters=4) for each in (one, *two)]
    start = [parameter.detach().clone() for parameter in together.parameters()]
    for step in range(3):
        gradients(together, step)
        gradients(apart, step)
        for optimizer in (one, *two):
            optimizer.step()
        for schedule in schedules:
            schedule.step()
    for before, ours, theirs in zip(start, together.parameters(), apart.parameters(), strict=True):
        assert not torch.equal(before, ours)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_saved_state_goes_on_to_the_last_bit(tmp_path):
    whole, groups = model_and_groups()
    optimizer = MuonAdamW(groups, lr=1e-2)
    for step in range(4):
        if step == 2:
            torch.save([whole.state_dict(), optimizer.state_dict()], tmp_path / "saved.pt")
        gradients(whole, step)
        optimizer.step()
    resumed, groups = model_and_groups()
    optimizer = MuonAdamW(groups, lr=1.0)
    weights, state = torch.load(tmp_path / "saved.pt", weights_only=True)
    resumed.load_state_dict(weights)
    optimizer.load_state_dict(state)
    for step in (2, 3):
        gradients(resumed, step)
        optimizer.step()
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_training_with_muon_goes_on_as_if_it_had_not_stopped(tmp_path):
    def run(folder, *options):
        preset = [
            "--data", str(CHAINS), "--train_split", "valid", "--hidden_size", "16", "--num_hidden_layers", "1",
            "--num_attention_heads", "2", "--intermediate_size", "32", "--token_budget", "512", "--max_length", "32",
            "--muon", "true", "--learning_rate", "3e-3", "--weight_decay", "0.01", "--report_to", "none",
            "--lr_scheduler_type", "constant", "--use_cpu", "true", "--save_steps", "3", "--disable_tqdm", "true",
        ]  # fmt: skip
        train(*parse_arguments([*preset, "--output_dir", str(tmp_path / folder), *options]))
        return load_file(tmp_path / folder / "model.safetensors")

    whole = run("whole", "--max_steps", "6")
    half = run("stopped", "--max_steps", "3")
    resumed = run("stopped", "--max_steps", "6")
    assert any(not torch.equal(half[name], whole[name]) for name in whole)
    for name in whole:
        torch.testing.assert_close(resumed[name], whole[name], rtol=0, atol=0)
    # AdamW's learning rate would have moved the matrices otherwise.
    adamw = run("adamw", "--max_steps", "6", "--muon", "false")
    assert not torch.equal(adamw["coordformer.esm.encoder.layer.0.output.dense.weight"],
                           whole["coordformer.esm.encoder.layer.0.output.dense.weight"])  # fmt: skip


def test_sharded_matrices_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    arguments = parse_arguments(["--data", str(CHAINS), "--muon", "true", "--output_dir", str(tmp_path)])
    with pytest.raises(ValueError, match="--muon needs whole matrices"):
        train(*arguments)
