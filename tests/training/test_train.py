"""Training with the real `Trainer` on real chains: presets, resuming after a kill, evaluation."""

import contextlib
import csv
import gc
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import CHAINS, make_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForMaskedLM,
    AutoProcessor,
    EsmConfig,
    EsmForMaskedLM,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from coordformer import CoordformerProcessor
from coordformer.data.batching import ChainBatches
from coordformer.data.collator import CoordformerDataCollator
from coordformer.data.records import describe_command
from coordformer.data.rows import load_rows
from coordformer.hub.card import training_facts
from coordformer.inference.evaluate import evaluate
from coordformer.model.modeling_coordformer import RENAMED_WEIGHTS
from coordformer.training.arguments import ModelArguments, parse_arguments
from coordformer.training.train import build_model, earlier_training, last_whole_checkpoint, train
from coordformer_command import main

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}

TOKENIZER = CoordformerProcessor().tokenizer
EXAMPLES = CHAINS.parents[1]
TINY = """\
hidden_size: 16
num_hidden_layers: 1
num_attention_heads: 2
intermediate_size: 32
token_budget: 1024
max_length: 64
coordinate_noise: 0.1
drop_coords: 0.2
learning_rate: 1e-3
logging_steps: 1
save_steps: 3
max_steps: 12
report_to: none
use_cpu: true
"""


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """A preset for a tiny model on 40 real chains, of which 10 are held out."""
    folder = tmp_path_factory.mktemp("preset")
    rows = load_rows(CHAINS)
    train_rows = [i for i, split in enumerate(rows["split"][:]) if split == "train"][:30]
    valid_rows = [i for i, split in enumerate(rows["split"][:]) if split == "valid"][:10]
    rows.select(train_rows + valid_rows).to_parquet(folder / "chains.parquet")
    path = folder / "tiny.yaml"
    path.write_text(TINY + f"data: {folder / 'chains.parquet'}\ntrain_split: train\n")
    return path


def last_words(capsys) -> str:
    """What the command said at its end, in one line."""
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("coordformer: ")
    return last


class Killed(BaseException):
    """Ends a training as a kill does: nothing on the way catches it."""


@contextlib.contextmanager
def at_the_end_of_updates(act):
    """Trainings call `act` with the number of each update that is done."""

    class Callback(TrainerCallback):
        def on_step_end(self, args, state, control, **keywords):
            act(state.global_step)

    def make(*, callbacks, **rest):
        return Trainer(callbacks=[*callbacks, Callback()], **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coordformer.training.train.Trainer", make)
        yield


def kill_after(update, error=Killed):
    def act(step):
        if step == update:
            raise error

    return at_the_end_of_updates(act)


@contextlib.contextmanager
def kill_while_saving(update):
    """All files of a checkpoint are written but the last one, and half of that."""
    save = TrainerState.save_to_json

    def save_half(state, path):
        save(state, path)
        if Path(path).parent.name == f"checkpoint-{update}":
            Path(path).write_text('{"global_step"')
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainerState, "save_to_json", save_half)
        yield


def losses(folder) -> dict[int, float]:
    with open(folder / "log.csv", newline="") as file:
        return {int(row["step"]): float(row["value"]) for row in csv.DictReader(file) if row["metric"] == "loss"}


def test_presets_set_options_and_the_command_line_overrides_them(preset, tmp_path):
    model, data, args = parse_arguments([str(preset), "--output_dir", str(tmp_path), "--max_steps", "7"])
    assert (model.hidden_size, data.token_budget, args.learning_rate, args.max_steps) == (16, 1024, 1e-3, 7)
    with pytest.raises(ValueError, match="--max_steps.*: invalid int value: 'abc'; `coordformer train --help`"):
        parse_arguments([str(preset), "--output_dir", str(tmp_path), "--max_steps", "abc"])
    bad = tmp_path / "bad.yaml"
    bad.write_text("token_bugdet: 5\n")
    with pytest.raises(ValueError, match="bad.yaml sets 'token_bugdet', which is no option; did you mean token_budget"):
        parse_arguments([str(bad)])
    bad.write_text("hidden_size: [1\n")
    with pytest.raises(ValueError, match="bad.yaml is no YAML"):
        parse_arguments([str(bad)])
    bad.write_text("max_length: [1, 2]\n")
    with pytest.raises(ValueError, match=r"sets 'max_length' to the list \[1, 2\]; it takes one value"):
        parse_arguments([str(bad)])
    bad.write_text("1: 2\n")
    with pytest.raises(ValueError, match="bad.yaml sets 1, which is no option"):
        parse_arguments([str(bad)])
    bad.write_text("coordinate_atoms: CA\ndata: 5\n")
    model, data, _ = parse_arguments([str(bad), "--output_dir", str(tmp_path)])
    assert build_model(model).config.coordinate_atoms == ("CA",) and data.data == "5"
    bad.write_text("- 5\n")
    with pytest.raises(ValueError, match="bad.yaml is not a YAML mapping"):
        parse_arguments([str(bad)])


PRESETS = [path for each in ("pretraining/*", "inverse_folding/proteinmpnn*") for path in EXAMPLES.glob(f"{each}.yaml")]


@pytest.mark.parametrize("path", sorted(PRESETS), ids=lambda p: p.name)
def test_shipped_presets_are_valid(path):
    parse_arguments([str(path), "--use_cpu", "--bf16", "false", "--report_to", "none"])


def test_trainer_tells_the_epoch_to_the_collator(tmp_path):
    """Each epoch has an order and masks of its own, which resuming relies on."""
    rows = load_rows(CHAINS, "train").select(range(8))
    batches = ChainBatches(rows, chains_per_batch=3, max_length=20)
    collator, seen = CoordformerDataCollator(TOKENIZER, max_length=20), []

    def spy(features):
        seen.append([(row["epoch"], row["id"]) for row in features[0]])
        return collator(features)

    args = TrainingArguments(
        str(tmp_path), num_train_epochs=3, per_device_train_batch_size=1, train_sampling_strategy="sequential",
        remove_unused_columns=False, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    Trainer(make_model(), args, data_collator=spy, train_dataset=batches).train()
    assert [{epoch for epoch, _ in batch} for batch in seen] == [{0}] * 3 + [{1}] * 3 + [{2}] * 3
    for epoch in range(3):
        assert sorted(name for batch in seen for e, name in batch if e == epoch) == sorted(rows["id"][:])
    assert [name for _, name in seen[0]] != [name for _, name in seen[3]]


def test_training_leaves_a_checkpoint_that_auto_classes_load(preset, tmp_path):
    output = tmp_path / "run"
    summary = train(*parse_arguments([str(preset), "--output_dir", str(output), "--valid_split", "valid",
                                      "--eval_strategy", "steps", "--eval_steps", "6"]))  # fmt: skip
    assert summary["steps"] == 12 and summary["padding_share"] == 0 and 0 < summary["waiting_share"] < 1
    assert len(losses(output)) == 12 and (output / "loss.png").stat().st_size > 10_000
    model = AutoModelForMaskedLM.from_pretrained(output)
    assert isinstance(AutoProcessor.from_pretrained(output), CoordformerProcessor)

    # Trainer's evaluation during training, under the paper's protocol, counts residues, not batches. It crops as
    # training does; the whole chains have their own function.
    valid = summary["valid"]
    options = {"split": "valid", "progress": False}
    report = evaluate(output, Path(preset).parent / "chains.parquet", num_mask_samples=2, **options)
    assert 15 < valid["eval_perplexity"] < 40 and 15 < report["paper"]["perplexity"] < 40
    assert report["chains"] == 10 and report["coordinates"] == "linear"
    assert report["masked15"]["perplexity_interval"][0] < report["masked15"]["perplexity"]
    assert set(valid["eval_recovery_by_residue"]) <= set("ACDEFGHIKLMNPQRSTVWY")
    without = evaluate(output, Path(preset).parent / "chains.parquet", without_coords=True, **options)
    assert without["coordinates"] == "not given" and without["paper"] != report["paper"]
    assert 1.3 < without["paper"]["predictions"] / report["paper"]["predictions"] < 1.7  # three samples, two samples
    assert model.config.coordinate_embedding == "linear" and model.config.bos_token_id == 0


@pytest.fixture(scope="module")
def sharded_preset(preset):
    """The same chains as shards of 8, streamed by two workers, with two micro-batches an update."""
    folder = preset.parent / "sharded"
    (folder / "data").mkdir(parents=True)
    table = load_rows(preset.parent / "chains.parquet", "train").data.table.combine_chunks()
    for number in range(4):
        name = f"train-{number:05d}-of-00004.parquet"
        pq.write_table(table.slice(8 * number, 8), folder / "data" / name)
    path = preset.parent / "sharded.yaml"
    path.write_text(
        TINY + f"data: {folder}\nstreaming: true\nopen_shards: 2\ndataloader_num_workers: 2\n"
        "gradient_accumulation_steps: 2\n"
    )
    return path


def assert_same_training(folder, other) -> None:
    """To the last bit."""
    assert len(losses(folder)) == 12 and losses(folder) == losses(other)
    assert (folder / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


@pytest.mark.parametrize("how", ["preset", "sharded_preset"])
def test_an_interrupted_training_equals_an_uninterrupted_one(how, request, tmp_path, capsys, caplog):
    """Stopped while a checkpoint is written, and by Ctrl-C some updates after one."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    command = ["train", str(request.getfixturevalue(how)), "--quiet", "--output_dir"]
    assert main([*command, str(whole)]) == 0
    with kill_while_saving(6), contextlib.suppress(Killed):
        main([*command, str(stopped)])
    assert last_whole_checkpoint(stopped).endswith("checkpoint-3") and (stopped / "checkpoint-6").exists()
    with kill_after(11, KeyboardInterrupt):
        assert main([*command, str(stopped)]) == 130
    assert last_words(capsys) == "coordformer: stopped; run the same command again to go on"
    assert last_whole_checkpoint(stopped).endswith("checkpoint-9")
    gc.collect()  # of the stopped trainings: their workers end
    assert main([*command, str(stopped)]) == 0
    assert f"Going on from {stopped / 'checkpoint-9'}." in caplog.messages
    assert not [text for text in caplog.messages if "missing keys" in text]  # the tied head is in the file once
    assert_same_training(stopped, whole)


def test_a_killed_process_equals_an_uninterrupted_one(sharded_preset, tmp_path):
    """SIGKILL while the second checkpoint is written: its folder is there, its last file is not."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "coordformer", "train", str(sharded_preset), "--output_dir", str(killed)],
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not (killed / "checkpoint-6").exists():
        assert process.poll() is None, "the training ended before it could be killed"
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if (killed / "checkpoint-6" / "trainer_state.json").exists():  # the kill came late: make it half a checkpoint
        (killed / "checkpoint-6" / "trainer_state.json").write_text('{"global_step"')
    assert last_whole_checkpoint(killed).endswith("checkpoint-3") and not (killed / "model.safetensors").exists()
    for output in (killed, whole):
        train(*parse_arguments([str(sharded_preset), "--output_dir", str(output)]))
    assert_same_training(killed, whole)


SMALL_ESM = {
    "vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32, "hidden_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 48, "position_embedding_type": "rotary", "token_dropout": True,
    "hidden_dropout_prob": 0.3,
}  # fmt: skip


@pytest.fixture(scope="module")
def esm(tmp_path_factory):
    """A small ESM-2 with dropout in its config."""
    folder = tmp_path_factory.mktemp("esm")
    EsmForMaskedLM(EsmConfig(**SMALL_ESM)).save_pretrained(folder)
    return folder


def test_training_behind_a_frozen_esm_goes_on_after_a_kill(preset, esm, tmp_path):
    """The ESM has neither gradients nor a place in the optimizer, and is at the end what it was."""
    options = [str(preset), "--sequence_encoder", str(esm), "--lm_head", "linear", "--output_dir"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with kill_after(7), contextlib.suppress(Killed):
        train(*parse_arguments([*options, str(killed)]))
    assert last_whole_checkpoint(killed).endswith("checkpoint-6") and not (killed / "model.safetensors").exists()
    for output in (killed, whole):
        train(*parse_arguments([*options, str(output)]))
    assert_same_training(killed, whole)

    model = AutoModelForMaskedLM.from_pretrained(killed)
    source = EsmForMaskedLM.from_pretrained(esm).esm.state_dict()
    frozen = model.coordformer.sequence_encoder.esm.state_dict()
    assert all(torch.equal(tensor, source[name]) for name, tensor in frozen.items()) and len(frozen) > 32
    new = build_model(parse_arguments([*options, str(whole)])[0]).state_dict()
    assert not torch.equal(model.coordformer.connector.weight, new["coordformer.connector.weight"])
    moments = torch.load(killed / "checkpoint-12" / "optimizer.pt")["state"].values()
    trained = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    assert sorted(state["exp_avg"].numel() for state in moments) == sorted(trained)
    assert sum(trained) == sum(parameter.numel() for parameter in model.parameters()) - sum(
        parameter.numel() for parameter in model.coordformer.sequence_encoder.parameters()
    )


def test_bad_sequence_encoders_are_named(preset, esm, tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    for options, message in (
        ([tmp_path / "model", "--lm_head", "linear"], "model holds a coordformer model; give an ESM-2 checkpoint"),
        ([esm], '`lm_head` must be "linear" and `coordinate_init` "normal", not .esm. and .normal.'),
        ([esm, "--init_from", tmp_path / "model"], "--sequence_encoder is of a new model, but --init_from is .*model"),
    ):
        arguments = [str(preset), "--output_dir", str(tmp_path), "--sequence_encoder", *map(str, options)]
        with pytest.raises(ValueError, match=message):
            train(*parse_arguments(arguments))


def test_dropout_is_that_of_the_option_or_of_the_model_to_start_from(tmp_path, esm):
    CoordformerProcessor().save_pretrained(tmp_path)
    build_model(ModelArguments(**SMALL, hidden_dropout_prob=0.25)).save_pretrained(tmp_path)
    starts = {"esm": {"init_from": str(esm)}, "kept": {"init_from": str(tmp_path)}, "new": SMALL}
    starts["given"] = starts["kept"] | {"hidden_dropout_prob": 0.5}
    found = {}
    for name, start in starts.items():
        model = build_model(ModelArguments(**start))
        layers = [module.p for key, module in model.named_modules() if key.endswith("output.dropout")]
        assert set(layers) == {model.config.hidden_dropout_prob}
        found[name] = layers[0]
    assert found == {"esm": SMALL_ESM["hidden_dropout_prob"], "kept": 0.25, "new": 0.0, "given": 0.5}
    given = build_model(ModelArguments(init_from=str(esm), hidden_dropout_prob=0.2))
    assert given.config.hidden_dropout_prob == 0.2


def test_help_names_the_defaults_of_a_new_model(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Width. (new model: 320) --num_hidden_layers" in text
    assert "--token_budget" in text and "(default: 0.15)" in text


def test_what_was_saved_in_bfloat16_is_trained_in_float32(tmp_path, esm):
    """Updates of a thousandth of a weight would be lost."""
    half = make_model().bfloat16()
    half.save_pretrained(tmp_path / "half")
    EsmForMaskedLM.from_pretrained(esm).bfloat16().save_pretrained(tmp_path / "esm")
    for start in ("half", "esm"):
        model = build_model(ModelArguments(init_from=str(tmp_path / start)))
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    saved = half.state_dict()
    model = build_model(ModelArguments(init_from=str(tmp_path / "half")))
    assert all(torch.equal(tensor, saved[name].float()) for name, tensor in model.state_dict().items())


def test_behind_a_frozen_esm_the_residual_stream_is_float32_under_autocast(esm):
    """As in all other models; attention with points could not compute with less."""
    torch.manual_seed(0)
    shape = SMALL | {"lm_head": "linear", "num_qk_points": 2}
    model = build_model(ModelArguments(sequence_encoder=str(esm), **shape)).eval()
    batch = CoordformerProcessor()(["MKVLA"], coords=[np.random.default_rng(0).normal(scale=5, size=(5, 3))])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        states = model(**batch, output_hidden_states=True).hidden_states
    assert {state.dtype for state in states[:-1]} == {torch.float32}


def test_weights_in_shards_of_another_size_replace_the_old_ones(preset, tmp_path):
    options = [str(preset), "--output_dir", str(tmp_path / "run"), "--lr_scheduler_type", "constant"]
    for steps, size in (("1", "5KB"), ("2", "1GB"), ("3", "5KB"), ("4", None)):
        given = [] if size is None else ["--max_shard_size", size]
        train(*parse_arguments([*options, "--max_steps", steps, *given]))
        last = AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / f"checkpoint-{steps}").state_dict()
        final = AutoModelForMaskedLM.from_pretrained(tmp_path / "run").state_dict()
        assert all(torch.equal(tensor, last[name]) for name, tensor in final.items())
        assert (tmp_path / "run" / "model.safetensors.index.json").exists() == (size == "5KB")


def test_the_best_model_stays_the_final_one(preset, tmp_path):
    """Asking again for a finished training does not put the last model in the place of the best."""
    options = [str(preset), "--output_dir", str(tmp_path / "run"), "--valid_split", "valid", "--eval_strategy", "steps",
               "--eval_steps", "1", "--save_steps", "1", "--load_best_model_at_end", "true", "--max_steps", "3",
               "--learning_rate", "1e-2"]  # fmt: skip
    options += ["--metric_for_best_model", "eval_loss", "--greater_is_better", "true"]  # the first one is the best
    train(*parse_arguments(options))
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    best = Path(state["best_model_checkpoint"])
    assert best.name == "checkpoint-1"
    train(*parse_arguments(options))
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (best / "model.safetensors").read_bytes()


def test_a_run_that_failed_before_its_first_checkpoint_leaves_the_folder_free(preset, tmp_path, monkeypatch):
    options = [str(preset), "--output_dir", str(tmp_path / "run"), "--max_steps", "1"]
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr(Trainer, "train", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("out of memory")))
        train(*parse_arguments(options))
    assert (tmp_path / "run" / "run.json").exists()
    train(*parse_arguments([*options, "--token_budget", "512"]))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["token_budget"] == 512


def test_a_stream_trains_as_many_workers_as_there_are(sharded_preset, tmp_path):
    """The batches and their order do not depend on who reads them."""
    for workers in ("0", "2"):
        options = ["--output_dir", str(tmp_path / workers), "--max_steps", "5", "--dataloader_num_workers", workers]
        train(*parse_arguments([str(sharded_preset), *options]))
    assert losses(tmp_path / "0") == losses(tmp_path / "2") and len(losses(tmp_path / "0")) == 5


def test_packed_and_padded_training_see_the_same_residues(preset, tmp_path):
    """One batch of all chains, packed or padded, without noise: the losses agree, the attention differs."""
    for packing in ("true", "false"):
        options = ["--output_dir", str(tmp_path / packing), "--packing", packing, "--max_steps", "4", "--seed", "1"]
        train(*parse_arguments([str(preset), *options, "--token_budget", "100000"]))
    packed, padded = losses(tmp_path / "true"), losses(tmp_path / "false")
    assert packed == pytest.approx(padded, abs=2e-5) and packed != padded  # printed with four digits


def test_what_happens_to_chains_is_what_the_options_say(preset, tmp_path, monkeypatch):
    """Every option of the collator that the command line has reaches it."""
    made = []

    def stop(*_, **options):
        made.append(options)
        raise InterruptedError

    monkeypatch.setattr("coordformer.training.train.CoordformerDataCollator", stop)
    options = {"masking": "masked15", "rotate": False, "drop_coords": 0.2, "split_chains": 0.4}
    words = [f"--{name}={value}" for name, value in (options | {"max_length": 50}).items()]
    words += ["--mlm_probability", "0.3", "--coordinate_noise", "0", "0.3"]
    options |= {"mlm_probability": 0.3, "coordinate_noise": [0.0, 0.3]}
    with pytest.raises(InterruptedError):
        train(*parse_arguments([str(preset), "--output_dir", str(tmp_path / "out"), *words]))
    options["noise"] = options.pop("coordinate_noise")
    assert made == [made[0] | options | {"max_length": 50}]


def test_final_weights_in_shards_are_the_same(preset, tmp_path):
    weights = {}
    for folder, options in (("whole", []), ("shards", ["--max_shard_size", "5KB"])):
        main(["train", str(preset), "--output_dir", str(tmp_path / folder), "--max_steps", "2", *options])
        weights[folder] = AutoModelForMaskedLM.from_pretrained(tmp_path / folder).state_dict()
    files = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(files) > 2 and not (tmp_path / "shards" / "model.safetensors").exists()
    assert max(path.stat().st_size for path in files) < 7_000
    assert weights["whole"].keys() == weights["shards"].keys()
    assert all(torch.equal(tensor, weights["shards"][name]) for name, tensor in weights["whole"].items())


@pytest.mark.slow  # compiles
def test_compiled_layers_train_the_same(preset, tmp_path):
    for name in ("false", "true"):
        options = ["--output_dir", str(tmp_path / name), "--compile_layers", name, "--max_steps", "6"]
        train(*parse_arguments([str(preset), *options]))
    assert losses(tmp_path / "true") == pytest.approx(losses(tmp_path / "false"), abs=1e-4)
    reloaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "true")
    assert not any("_orig_mod" in name for name in reloaded.state_dict())


def test_a_full_disk_is_said_and_costs_no_checkpoint(preset, tmp_path, capsys):
    """No file may grow beyond a limit between the first checkpoint's and the optimizer's size, as on a full disk."""
    command = ["train", str(preset), "--output_dir", str(tmp_path / "run"), "--quiet"]
    command += ["--hidden_size", "128"]  # weights of more than twice the size of the code that lies beside them
    assert main([*command, "--max_steps", "3"]) == 0
    size = (tmp_path / "run" / "checkpoint-3" / "model.safetensors").stat().st_size
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in (size // 2, size + 2000):  # the weights cannot be written, or the optimizer's state cannot
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, unlimited[1]))
        try:
            assert main(command) == 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        last = last_words(capsys)
        assert "could not be written" in last and "it goes on from" in last, last
        assert last_whole_checkpoint(tmp_path / "run").endswith("checkpoint-3")
    assert main(command) == 0
    assert len(losses(tmp_path / "run")) == 12


def test_a_lost_worker_is_said_and_costs_no_checkpoint(preset, tmp_path, capsys):
    def kill_workers(step):
        for worker in multiprocessing.active_children() if step > 3 else []:
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()

    command = ["train", str(preset), "--output_dir", str(tmp_path), "--dataloader_num_workers", "1"]
    with at_the_end_of_updates(kill_workers):
        assert main([*command, "--max_steps", "1000", "--quiet"]) == 1
    last = last_words(capsys)
    assert "A worker that loads data was lost" in last and "it goes on from" in last
    assert last_whole_checkpoint(tmp_path) is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--token_budget", "1024", "--packing", "false"], "--streaming reads packed batches"),
        (["--data", "nowhere"], "No shard data/train-.*in nowhere"),
        (["--data", str(CHAINS)], "reads the shards of a folder made by .*, not .*chains.parquet"),
        (["--valid_split", "train"], "set --train_split to another split"),
    ],
)
def test_bad_streams_are_named(sharded_preset, tmp_path, options, message):
    options = ["--output_dir", str(tmp_path), "--train_split", "train", *options]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(*parse_arguments([str(sharded_preset), *options]))


def test_another_run_in_the_same_folder_is_refused(preset, tmp_path):
    output = tmp_path / "run"
    options = [str(preset), "--output_dir", str(output), "--max_steps", "3"]
    train(*parse_arguments(options))
    before = (output / "model.safetensors").read_bytes()
    for change, message in (
        (["--seed", "7"], "seed: 42 -> 7"),
        (["--coordinate_embedding", "none"], "coordinate_embedding: 'linear' -> 'none'"),
        (["--token_budget", "512"], "token_budget: 1024 -> 512"),
        (["--learning_rate", "1"], "learning_rate: 0.001 -> 1.0"),
        (["--optim", "sgd"], "optim: 'adamw_torch.*' -> 'sgd'"),
        (["--adam_beta2", "0.5"], "adam_beta2: 0.999 -> 0.5"),
    ):
        with pytest.raises(ValueError, match=f"holds another run.*{message}.*choose another output folder"):
            train(*parse_arguments(options + change))
    assert (output / "model.safetensors").read_bytes() == before
    train(*parse_arguments([*options[:-1], "6"]))  # more of the same run is fine
    assert len(losses(output)) == 6


def test_other_data_of_equal_size_is_refused(preset, tmp_path):
    """Moved it is the same data; with other coordinates it is not, whatever its name and number of residues."""
    rows = load_rows(preset.parent / "chains.parquet")
    options = [str(preset), "--max_steps", "1", "--output_dir", str(tmp_path / "run")]
    train(*parse_arguments(options))
    shutil.copy(preset.parent / "chains.parquet", tmp_path / "moved.parquet")
    train(*parse_arguments([*options, "--data", str(tmp_path / "moved.parquet")]))
    edited = rows.map(lambda row: {"coords": [value + 1 for value in row["coords"]]}, load_from_cache_file=False)
    edited.to_parquet(tmp_path / "moved.parquet")
    with pytest.raises(ValueError, match=r"holds another run \(other data\); choose another output"):
        train(*parse_arguments([*options, "--data", str(tmp_path / "moved.parquet")]))


def test_a_second_process_is_refused(preset, tmp_path, capsys):
    """Nothing is trained where another one trains."""
    hold = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(input('held'))"
    command = [sys.executable, "-c", hold, str(tmp_path / ".1-of-1.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.read(4) == "held"
        assert main(["train", str(preset), "--quiet", "--output_dir", str(tmp_path)]) == 1
        assert last_words(capsys).startswith(f"coordformer: {tmp_path}: another run is writing there; wait for its end")
        assert [path.name for path in tmp_path.iterdir()] == [".1-of-1.lock"]
        other.communicate("over")
    assert main(["train", str(preset), "--quiet", "--max_steps", "1", "--output_dir", str(tmp_path)]) == 0
    assert not list(tmp_path.glob(".*"))


def test_a_run_of_an_older_version_goes_on(preset, tmp_path):
    """It is known by the names that fields had, and its weights by theirs."""
    new, old = tmp_path / "new", tmp_path / "old"
    shape = ["--coordinate_embedding", "local_frame", "--num_qk_points", "2", "--message_gating", "true"]
    options = [str(preset), *shape, "--save_steps", "1", "--lr_scheduler_type", "constant", "--output_dir"]
    train(*parse_arguments([*options, str(new), "--num_neighbors", "3", "--max_steps", "1"]))
    shutil.copytree(new, old)
    settings = json.loads((old / "run.json").read_text())
    model = settings["model"]
    for name, today in (("distance_bias", "num_distance_bins"), ("message_neighbours", "num_neighbors"),
                        ("attention_points", "num_qk_points")):  # fmt: skip
        model[name] = model.pop(today)
    del model["num_v_points"], model["message_gating"], settings["training"]["muon"]  # it wrote nothing of them
    model |= {"coordinate_embedding": "local", "message_type": "gated"}
    (old / "run.json").write_text(json.dumps(settings))
    weights = {}
    for name, values in load_file(old / "checkpoint-1" / "model.safetensors").items():
        for before, today in RENAMED_WEIGHTS.items():
            name = name.replace(today, before)
        weights[name] = values
    assert sum("messages.asks" in name or "relations" in name for name in weights) > 4
    save_file(weights, old / "checkpoint-1" / "model.safetensors", {"format": "pt"})

    with pytest.raises(ValueError, match=r"holds another run \(model.num_neighbors: 3 -> 4\); choose"):
        train(*parse_arguments([*options, str(old), "--num_neighbors", "4", "--max_steps", "2"]))
    for folder in (new, old):
        assert (
            train(*parse_arguments([*options, str(folder), "--num_neighbors", "3", "--max_steps", "2"]))["steps"] == 2
        )
    assert (old / "model.safetensors").read_bytes() == (new / "model.safetensors").read_bytes()


def test_the_record_of_a_command_has_no_token():
    options = ["tiny.yaml", "--hub_token", "hf_secret", "--data", "/home/me/chains", "--hub_token=hf_secret"]
    expected = "coordformer train tiny.yaml --hub_token ... --data chains --hub_token=..."
    assert describe_command("train", options) == expected


def test_the_record_of_a_command_has_no_path_outside_its_folder():
    options = ["runs/tiny.yaml", "--data=/home/me/chains", "--init_from=../models/small", "--output_dir=runs/first"]
    expected = "coordformer train runs/tiny.yaml --data=chains --init_from=small --output_dir=runs/first"
    assert describe_command("train", options) == expected


def test_a_finished_training_stays_as_it_is(preset, tmp_path):
    """Asking again for what is done, or for less, neither trains nor changes the model."""
    output = tmp_path / "run"
    options = [str(preset), "--output_dir", str(output), "--lr_scheduler_type", "constant", "--max_steps"]
    first = train(*parse_arguments([*options, "5"]))
    # What is recorded is of the training, also where it is another commit that saves it again.
    first |= {"commit": "another"}
    (output / "train.json").write_text(json.dumps(first))
    weights = (output / "model.safetensors").read_bytes()
    for steps in ("5", "3"):
        again = train(*parse_arguments([*options, steps]))
        assert again == first and again["steps"] == 5
        assert (output / "model.safetensors").read_bytes() == weights and len(losses(output)) == 5


def test_chains_to_evaluate_on_are_not_trained_on(preset, tmp_path):
    model, data, args = parse_arguments([str(preset), "--output_dir", str(tmp_path), "--valid_split", "valid"])
    data.train_split = None
    with pytest.raises(ValueError, match="10 chains, such as .*, are both to train and to evaluate on.*--train_split"):
        train(model, data, args)


def test_workers_that_outlive_an_epoch_see_the_next_one(tmp_path):
    rows = load_rows(CHAINS, "train").select(range(6))
    batches = ChainBatches(rows, chains_per_batch=3, max_length=20)
    loader = torch.utils.data.DataLoader(
        batches, batch_size=1, num_workers=1, persistent_workers=True,
        collate_fn=CoordformerDataCollator(TOKENIZER, max_length=20), multiprocessing_context="fork",
    )  # fmt: skip
    epochs = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        epochs.append([batch["input_ids"].clone() for batch in loader])
    expected = [CoordformerDataCollator(TOKENIZER, max_length=20)([batches[i]])["input_ids"] for i in range(2)]
    assert all(torch.equal(left, right) for left, right in zip(epochs[1], expected, strict=True))
    assert not all(torch.equal(left, right) for left, right in zip(*epochs, strict=True))


def test_training_without_matplotlib_only_lacks_the_figure(preset, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    train(*parse_arguments([str(preset), "--output_dir", str(tmp_path / "run"), "--max_steps", "1"]))
    assert (tmp_path / "run" / "train.json").exists() and not (tmp_path / "run" / "loss.png").exists()
    assert "coordformer[figures]" in caplog.text


def test_a_training_records_those_that_its_weights_had_before(preset, tmp_path):
    """A run from nothing, one from its checkpoint on the way, and one from the result of that."""
    folders = [tmp_path / name for name in ("first", "second", "third")]
    starts = [None, folders[0] / "checkpoint-1", folders[1]]
    for folder, start in zip(folders, starts, strict=True):
        options = [str(preset), "--output_dir", str(folder), "--max_steps", "1", "--save_steps", "1"]
        train(*parse_arguments(options if start is None else [*options, "--init_from", str(start)]))
    first, second, third = (json.loads((folder / "train.json").read_text()) for folder in folders)
    assert "started_from" not in first and second["started_from"] == {"steps": 1} and third["started_from"] == second
    before = training_facts(folders[2])["trained before"]
    assert before.startswith(f"1 updates by `{second['command']}`") and before.endswith("; before that 1 updates")
    assert "started from" not in training_facts(folders[2]) and "trained before" not in training_facts(folders[0])
    (folders[1] / "train.json").write_text("{")
    with pytest.raises(ValueError, match=r"second/train\.json cannot be read .*move it away"):
        earlier_training(folders[1])


def test_half_checkpoints_are_passed_over(tmp_path):
    assert last_whole_checkpoint(tmp_path / "none") is None
    for step, text in ((2, '{"global_step": 2}'), (10, '{"global_step": 10}'), (30, '{"global_st')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(text)
    (tmp_path / "checkpoint-40").mkdir()
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", ""], "No Parquet file|is not a readable"),
        (["--train_split", "tests"], "No row of .* is in split 'tests'"),
        (["--token_budget", "30"], "`token_budget` is 30, but the longest chain has 66 tokens"),
        (["--eval_strategy", "steps"], "--eval_strategy needs chains to evaluate on"),
        (["--coordinate_embedding", "cubic"], "`coordinate_embedding` is 'cubic'"),
        (["--num_attention_heads", "5"], r"`hidden_size` \(16\) must be a multiple of `num_attention_heads` \(5\)"),
        (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size is 0"),
        (["--token_budget", "0"], "`token_budget` is 0; it must be at least 1"),
        (["--resume_from_checkpoint", "true"], "--resume_from_checkpoint is true, which is no checkpoint"),
        (["--tokn_budget", "5"], "--tokn_budget 5: no such option; did you mean --token_budget"),
        (["other.yaml"], "other.yaml: no such option.*a preset comes first"),
        (["--coordinate_atoms", "N", "CA"], "holds the atoms CA, but N of `coordinate_atoms`"),
    ],
)
def test_bad_arguments_are_named(preset, tmp_path, options, message):
    with pytest.raises((ValueError, OSError), match=message):
        train(*parse_arguments([str(preset), "--output_dir", str(tmp_path), *options]))


def test_command_line(preset, tmp_path, capsys):
    output = tmp_path / "run"
    assert main(["train", str(preset), "--output_dir", str(output), "--max_steps", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    command = ["evaluate", str(output), str(Path(preset).parent / "chains.parquet"), "--split", "valid", "--protocols",
               "masked15", "--num_mask_samples", "1", "--output", str(tmp_path / "report.json")]  # fmt: skip
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert report.keys() >= {"masked15", "chains", "residues"}


def test_command_line_says_what_is_wrong_in_one_line(preset, tmp_path, capsys):
    (tmp_path / "esm").mkdir()
    EsmConfig(vocab_size=33, pad_token_id=1).save_pretrained(tmp_path / "esm")
    CoordformerProcessor().save_pretrained(tmp_path / "esm")
    broken = tmp_path / "broken"
    make_model().save_pretrained(broken)
    CoordformerProcessor().save_pretrained(broken)
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:500])
    newer, resized = tmp_path / "newer", tmp_path / "resized"  # a value that this version has not; other sizes
    for folder, change in ((newer, {"coordinate_embedding": "newer"}), (resized, {"intermediate_size": 8})):
        make_model().save_pretrained(folder)
        CoordformerProcessor().save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | change))
    (tmp_path / "empty.yaml").write_text("hidden_size: 16\nmax_steps:\n")
    cut = tmp_path / "cut"
    EsmForMaskedLM(EsmConfig(**SMALL_ESM)).save_pretrained(cut)
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:500])
    chains = str(Path(preset).parent / "chains.parquet")
    data = ["--data", chains]
    for arguments, message in (
        (["train", "--output_dir", str(tmp_path / "x")], "--data is missing"),
        (["train", str(preset), "--hidden_size", "50", "--num_attention_heads", "3"], "must be a multiple"),
        (["train", str(tmp_path / "no.yaml")], "no.yaml"),
        (["train", *data, "--hidden_dropout_prob", "1.5"], "--hidden_dropout_prob is 1.5; it is a share below 1"),
        (["train", *data, "--mlm_probability", "0"], "--mlm_probability is 0.0; it is a share above 0"),
        (
            ["train", *data, "--gradient_accumulation_steps", "0"],
            "--gradient_accumulation_steps is 0; it is at least 1",
        ),
        (["train", *data, "--save_only_model", "true"], "--save_only_model leaves nothing to go on from after a stop"),
        (["train", *data, "--max_shard_size", "15M"], "--max_shard_size is 15M; give a size as 15MB, in KB, MB, GB"),
        (["train", str(tmp_path / "empty.yaml")], "empty.yaml sets 'max_steps' to nothing; give a value, or leave"),
        (["train", *data, "--init_from", str(broken)], "The weights in BROKEN are damaged or cut off"),
        (["train", *data, "--init_from", str(cut)], "The weights in CUT are damaged or cut off"),
        (["train", *data, "--sequence_encoder", str(cut), "--lm_head", "linear"], "The weights in CUT are damaged"),
        (["convert", str(cut), str(tmp_path / "new"), "--kind", "esm"], "The weights in CUT are damaged or cut off"),
        (["evaluate", str(tmp_path / "nothing"), chains], "nothing"),
        (["evaluate", str(tmp_path / "esm"), chains], "esm cannot be loaded (it holds a esm model)"),
        (["evaluate", str(broken), chains], "broken cannot be loaded"),
        (["evaluate", chains, str(broken)], "is a file; the checkpoint comes first, and then what is to be read"),
        (["evaluate", str(broken.with_name("brokn")), chains], f"did you mean {broken}? If not, give a folder"),
        (["evaluate", str(newer), chains], "newer cannot be loaded"),
        (["evaluate", str(resized), chains], "resized cannot be loaded"),
        (["convert", str(tmp_path / "esm"), str(newer), "--kind", "esm"], "newer holds a model; give another folder"),
        (["evaluate", str(Path(preset).parent), chains], "holds no processor"),
        (
            ["evaluate", str(broken), chains, "--output", str(tmp_path / "report.png")],
            "give the name of a file that ends in .json",
        ),
    ):
        assert main(arguments) == 1, arguments
        assert message.replace("BROKEN", str(broken)).replace("CUT", str(cut)) in last_words(capsys)
