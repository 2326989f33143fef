"""An update does not depend on how its rows are spread over micro-batches and processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import HEADS, make_model
from safetensors.torch import load_file
from transformers import set_seed

SCRIPT = Path(__file__).parent / "one_update.py"
# `--multi_gpu` is what makes accelerate start several processes; on the CPU (`use_cpu` in the script) they use gloo.
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1",
          "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
          "--num_processes", "2"]  # fmt: skip
WAYS = {  # batch of 8 rows: command, micro-batch, accumulation
    "one batch": ([sys.executable], 8, 1),
    "accumulation": ([sys.executable], 4, 2),
    "two processes": (LAUNCH, 4, 1),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("updates")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = {}
    for name, (command, batch_size, accumulation) in WAYS.items():
        command = [*command, str(SCRIPT), str(folder / name), str(batch_size), str(accumulation)]
        running[name] = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    try:
        for process in running.values():
            text, _ = process.communicate(timeout=300)
            assert process.returncode == 0, text[-3000:]
    finally:
        for process in running.values():
            process.terminate()
    return folder


@pytest.mark.parametrize("way", [name for name in WAYS if name != "one batch"])
@pytest.mark.parametrize("head", [head for head in HEADS if head != "base"])
def test_same_losses_and_gradients(results, head, way):
    """With plain SGD the change of a weight is its gradient times the learning rate."""
    reports = {name: json.loads((results / name / "losses.json").read_text()) for name in ("one batch", way)}
    assert reports[way]["processes"] == (2 if way == "two processes" else 1)
    expected, actual = (reports[name]["losses"][head] for name in ("one batch", way))
    assert len(expected) == 2 and expected[0] != expected[1]
    assert actual == pytest.approx(expected, rel=1e-5)
    set_seed(0)
    start = make_model(head).state_dict()
    weights = {name: load_file(results / name / f"{head}.safetensors") for name in ("one batch", way)}
    moved = 0.0
    for name, value in start.items():
        if value.is_floating_point():
            gradients = [(value - weights[each][name]) / 0.05 for each in ("one batch", way)]
            torch.testing.assert_close(gradients[1], gradients[0], atol=2e-5, rtol=1e-4)
            moved += float(gradients[0].abs().sum())
    assert moved > 1
