"""An update does not depend on how its rows, or the weights, are spread over micro-batches and processes."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType
from conftest import CHAINS, HEADS, make_model
from safetensors.torch import load_file
from transformers import set_seed

from coordformer.data.batching import ChainBatches
from coordformer.data.rows import load_rows

SCRIPT = Path(__file__).parent / "one_update.py"
# The scripts import conftest, too.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
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
    running = {}
    for name, (command, batch_size, accumulation) in WAYS.items():
        command = [*command, str(SCRIPT), str(folder / name), str(batch_size), str(accumulation)]
        running[name] = subprocess.Popen(
            command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
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


# --- the command -----------------------------------------------------------------------------------------------------

TINY = """\
hidden_size: 16
num_hidden_layers: 1
num_attention_heads: 2
intermediate_size: 32
token_budget: 512
max_length: 64
coordinate_noise: 0.1
logging_steps: 1
lr_scheduler_type: constant
save_steps: 4
max_steps: 8
report_to: none
use_cpu: true
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Two presets: chains in memory, and the same chains as a stream of shards."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "shards" / "data").mkdir(parents=True)
    rows = load_rows(CHAINS, "train").select(range(66)).flatten_indices()
    # Of an odd number `accelerate` gives the last process a batch of the beginning again.
    assert len(ChainBatches(rows, 512, max_length=64, seed=42)) % 2 == 0
    table = rows.data.table.combine_chunks()
    pq.write_table(table, folder / "chains.parquet")
    for number in range(6):
        name = f"train-{number:05d}-of-00006.parquet"
        pq.write_table(table.slice(11 * number, 11), folder / "shards" / "data" / name)
    (folder / "memory.yaml").write_text(TINY + f"data: {folder / 'chains.parquet'}\n")
    (folder / "stream.yaml").write_text(TINY + f"data: {folder / 'shards'}\nstreaming: true\nopen_shards: 4\n")
    return folder


def run(command, **arguments):
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, **arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def losses(folder):
    with open(folder / "log.csv", newline="") as file:
        return [float(row["value"]) for row in csv.DictReader(file) if row["metric"] == "loss"]


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12),
    reason="older torch does not load what several processes on CPUs saved: 'tagged with cpu:0'",
)
@pytest.mark.parametrize("data", ["memory", pytest.param("stream", marks=pytest.mark.slow)])
def test_the_command_trains_the_same_on_two_processes(data, tiny, tmp_path):
    """`accelerate launch` with two processes, stopped in the middle of an epoch and started again, against one process
    with twice the micro-batches: the same chains meet in each update."""
    train = ["-m", "coordformer", "train", str(tiny / f"{data}.yaml"), "--output_dir"]
    run([sys.executable, *train, str(tmp_path / "one"), "--gradient_accumulation_steps", "2"])
    for steps in ("4", "8"):
        run([*LAUNCH, *train, str(tmp_path / "two"), "--max_steps", steps])
    assert len(losses(tmp_path / "two")) == 8
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=2e-4)  # logged with 4 digits
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("two", "one")]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], atol=2e-5, rtol=1e-4)


# --- FSDP2 -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    output = tmp_path_factory.mktemp("sharded") / "report.json"
    script = Path(__file__).parent / "sharded_update.py"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run([*launch, str(script), str(output)])
    return json.loads(output.read_text())


@pytest.mark.parametrize("attention", ["sdpa", "varlen"])
def test_sharded_weights_train_as_whole_ones(sharded, attention):
    report = sharded[attention]
    assert report["sharded"] == pytest.approx(report["whole"], rel=1e-5) and len(set(report["whole"])) == 3
    assert report["largest_difference"] < 2e-5


def test_coordinates_survive_the_input_cast_of_fsdp(sharded):
    """300.37 Å is 300 Å in bfloat16, to which FSDP2 casts what enters a sharded module."""
    report = sharded["bfloat16"]
    assert report["layer_dtype"] == "torch.bfloat16"  # the cast is on
    assert report["coordinate"] == pytest.approx(300.37, abs=1e-4)
    assert report["nested"] == pytest.approx(300.37, abs=1e-4)
    assert report["frame"] == pytest.approx(300.37, abs=1e-4)
    assert report["embedding_dtype"] == "torch.float32"
    assert report["turned"] == pytest.approx([0.0, 300.37, 0.0], abs=1e-4)
    assert report["loss"] == pytest.approx(report["loss_of_float32"], rel=0.02)


def test_the_shipped_configuration_is_one_of_accelerate():
    """Every key is known to it, and the class that it names is in the model."""
    path = Path(__file__).parents[2] / "examples" / "pretraining" / "accelerate" / "fsdp2.yaml"
    config = load_config_from_file(str(path))
    assert config.distributed_type == DistributedType.FSDP and config.mixed_precision == "bf16"
    known = vars(launch_command_parser().parse_args(["script.py"]))
    assert set(config.fsdp_config) <= set(known)
    assert config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"] in {
        type(m).__name__ for m in make_model().modules()
    }
