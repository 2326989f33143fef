"""`coordformer train` as it is used: its help, its log, Ctrl-C."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import CHAINS, hear_ctrl_c
from safetensors.torch import load_file
from transformers import TrainingArguments

from coordformer.training.arguments import SHOWN, UnusableOption, parse_arguments
from coordformer.training.train import CtrlC, last_whole_checkpoint
from coordformer_command import main

ROOT = Path(__file__).parents[2]
QUICK = ["--data", str(CHAINS), "--train_split", "valid", "--hidden_size", "16", "--num_hidden_layers", "1",
         "--num_attention_heads", "2", "--intermediate_size", "16", "--max_length", "32", "--token_budget", "512",
         "--report_to", "none", "--use_cpu"]  # fmt: skip


def losses(folder) -> list[int]:
    with open(folder / "log.csv", newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row["metric"] == "loss"]


def test_help_is_of_what_is_ours_and_of_the_trainer_what_most_need(capsys):
    shown = {}
    for word in ("--help", "--help-all"):
        with pytest.raises(SystemExit, match="0"):
            parse_arguments([word])
        shown[word] = capsys.readouterr().out
    short, whole = shown.values()
    assert len(short.splitlines()) < 200 < len(whole.splitlines())
    for name in ("--init_from", "--token_budget", "--drop_coords", *(f"--{name}" for name in SHOWN)):
        assert f"  {name}" in short or f", {name}" in short, name
    assert "--torch_compile_mode" not in short and "--help-all" in short
    named = {name for name in TrainingArguments.__dataclass_fields__ if f"--{name} " in whole}
    assert "(default: 0.15)" in " ".join(short.split()) and "default: [" not in " ".join(whole.split())  # as one types
    assert len(named) > 90 and set(SHOWN) <= named | {"help"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rat", "1"], "--learning_rat 1: no such option; did you mean --learning_rate?"),
        (["--ouput_dir", "x"], "--ouput_dir x: no such option; did you mean --output_dir?"),
        (["--max_steps", "many"], "argument --max_steps: invalid int value: 'many'; `coordformer train --help`"),
    ],
)
def test_an_unusable_command_line_exits_with_2(capsys, words, message):
    with pytest.raises(UnusableOption):
        parse_arguments(words)
    assert main(["train", *words]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"coordformer: {message}")


def test_the_first_update_and_the_last_are_in_the_log(tmp_path):
    assert main(["train", *QUICK, "--output_dir", str(tmp_path), "--max_steps", "4", "--quiet"]) == 0
    assert losses(tmp_path) == [1, 4]
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_ctrl_c_saves_a_checkpoint_to_go_on_from(tmp_path):
    """A real process, SIGINT between two checkpoints; what comes out is what an undisturbed training gives."""
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    # Enough updates that a busy machine does not come to their end before the signal.
    options = [*QUICK, "--max_steps", "400", "--save_steps", "350", "--logging_steps", "1"]
    command = [sys.executable, "-m", "coordformer", "train", *options, "--output_dir"]
    process = subprocess.Popen(
        [*command, str(stopped), "--disable_tqdm", "true"], cwd=ROOT, text=True, preexec_fn=hear_ctrl_c,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    seen = ""
    while "'loss'" not in seen:  # the first update is done
        seen = process.stdout.readline()
        assert seen, process.stderr.read()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert "coordformer: stopping after this update, to save it" in err
    assert err.strip().endswith("coordformer: stopped; run the same command again to go on")
    checkpoint = last_whole_checkpoint(stopped)
    step = json.loads(Path(checkpoint, "trainer_state.json").read_text())["global_step"]
    assert 1 <= step < 350 and not (stopped / "model.safetensors").exists()
    for folder in (stopped, whole):
        assert main(["train", *options, "--output_dir", str(folder), "--quiet"]) == 0
    weights = [load_file(folder / "model.safetensors") for folder in (stopped, whole)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    assert losses(stopped) == losses(whole) == list(range(1, 401))


def test_a_second_ctrl_c_stops_at_once(tmp_path, capfd):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        (ctrl_c := CtrlC()).on_train_begin(args, None, None)
        assert signal.getsignal(signal.SIGINT) != signal.default_int_handler
        os.kill(os.getpid(), signal.SIGINT)
        assert ctrl_c.came and "stopping after this update" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        ctrl_c.restore()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
