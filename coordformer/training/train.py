"""Masked-LM training with `Trainer`: what `coordformer train`, `examples/pretraining` and `make demo` run."""

import contextlib
import json
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from huggingface_hub import split_torch_state_dict_into_shards
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForMaskedLM, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..data.batching import ChainBatches, fetch_rows, read_lengths
from ..data.collator import CoordformerDataCollator
from ..data.files import write_json, write_text
from ..data.pack import open_chains
from ..data.records import begin_run, counted, current_commit, describe_command, hash_data, lock_folder
from ..data.training_sequences import FILE, record_training
from ..inference.figures import plot_losses
from ..inference.metrics import count_predictions, summarize
from ..model.chain import VOCABULARY, chain_arrays
from ..model.configuration_coordformer import CoordformerConfig
from ..model.modeling_coordformer import CoordformerForMaskedLM
from ..model.neighbor_graph import EdgeFeatures, MessagePassing
from ..model.processing_coordformer import CoordformerProcessor, letter_ids
from ..model.proteinmpnn import ProteinMPNNFeatures
from .arguments import NEW_MODEL, DataArguments, ModelArguments, parse_arguments
from .conversion import NEW_WEIGHTS, behind_esm, esm_tokenizer, freeze, from_esm, give_weights, merge_low_rank
from .distillation import DistillingTrainer, load_teachers
from .muon import MuonAdamW, parameter_groups

logger = logging.getLogger(__name__)

# How coordinates enter: an ESM-2 to start from may get all of it, a Coordformer has it already.
COORDINATES = ("coordinate_embedding", "coordinate_atoms", "num_distance_bins", "num_qk_points", "num_v_points",
               "num_neighbors", "message_gating")  # fmt: skip
# Names of the weights of messages.
MESSAGE_WEIGHTS = r"edge_features\.|message_passing\."
# Of what messages can be given, by the config's field.
ADDED_WEIGHTS = {
    "message_attention": r"message_passing\.attention\.",
    "edge_updates": r"message_passing\.edge_update\.",
    "partial_backbones": r"\.(atom_geometry|alpha_geometry)\.",
    "noise_conditioning": r"features\.noise\.",
}
# What decides the weights, beside the model and the data.
SETTINGS = ("seed", "per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "optim",
            "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "adam_beta1",
            "adam_beta2", "adam_epsilon", "max_grad_norm", "bf16", "fp16")  # fmt: skip


def build_model(arguments: ModelArguments, attn_implementation: str = "sdpa") -> CoordformerForMaskedLM:
    """A new model, alone or behind a frozen ESM-2, or the one in `init_from`.

    An ESM-2 there may get any of the coordinate fields, a Coordformer with `num_qk_points` and without messages
    `num_neighbors`, one with messages `message_attention`, `edge_updates` and `noise_conditioning`, and where it reads
    C-alphas `partial_backbones` with the other `coordinate_atoms`; one with ProteinMPNN's layers `noise_conditioning`,
    on C-alphas `invariant_quaternions`, on backbones `partial_backbones`; and each another dropout. It then predicts
    what it did, until it is trained. All else is the checkpoint's, and an argument that says otherwise is refused. In
    float32, whatever is saved there: updates are smaller than what bfloat16 resolves.

    Raises:
        ValueError: an argument is unusable, or the checkpoint has other fields than those given.
    """
    try:
        return _build_model(arguments, attn_implementation)
    except StrictDataclassError as error:  # what a config refuses: no ValueError, and in two lines
        raise ValueError(" ".join(str(error.__cause__ or error).split())) from error


def _build_model(arguments: ModelArguments, attn_implementation: str) -> CoordformerForMaskedLM:
    known = {each.name for each in fields(CoordformerConfig)} - {"sequence_encoder"}
    given = {name: value for name, value in asdict(arguments).items() if name in known and value is not None}
    if "coordinate_atoms" in given:
        atoms = given["coordinate_atoms"]
        given["coordinate_atoms"] = (atoms,) if isinstance(atoms, str) else tuple(atoms)
    source, encoder = arguments.init_from, arguments.sequence_encoder
    if source is None and _freezes(arguments):
        raise ValueError("--freeze and --lora_rank are of a model to start from; give --init_from, too.")
    if source is None and encoder is not None:
        own = esm_tokenizer(encoder)
        return behind_esm(encoder, attn_implementation, tokenizer=own, **NEW_MODEL | given)
    if source is None:
        config = CoordformerConfig(**NEW_MODEL | given)
        return CoordformerForMaskedLM._from_config(config, attn_implementation=attn_implementation)
    if encoder is not None:
        raise ValueError(f"--sequence_encoder is of a new model, but --init_from is {source}; leave one of them out.")
    config = AutoConfig.from_pretrained(source)
    # Fields with which the weights still fit, or with weights that are added.
    free = {"hidden_dropout_prob", "invariant_quaternions"}
    changed = {name: value for name, value in given.items() if name in free}
    if config.model_type == "esm":
        changed |= {name: given[name] for name in (*COORDINATES, *ADDED_WEIGHTS) if name in given}
        model = from_esm(source, tokenizer=esm_tokenizer(source), **changed).float()
        _refuse_contradictions(source, model.config, given)
        model.set_attn_implementation(attn_implementation)
        if _freezes(arguments):
            freeze(model, NEW_WEIGHTS, arguments.lora_rank)
        return model
    addable = set(ADDED_WEIGHTS)
    if config.encoder_type == "esm" and config.coordinate_atoms != ("CA",):
        addable.remove("partial_backbones")  # its frames are of N, CA and C, and would be others
    # Messages can be added to a model with points, which computes what it did until they are trained.
    if add_messages := bool(config.num_qk_points and given.get("num_neighbors") and not config.num_neighbors):
        changed |= {name: given[name] for name in ("num_neighbors", "message_gating", *addable) if name in given}
    added = [name for name in ADDED_WEIGHTS if name in addable and given.get(name) and not getattr(config, name)]
    added = added if config.num_neighbors else []
    changed |= dict.fromkeys(added, True)
    if config.encoder_type == "esm" and changed.get("partial_backbones") and "coordinate_atoms" in given:
        changed["coordinate_atoms"] = given["coordinate_atoms"]
    has = CoordformerConfig.from_dict(config.to_dict() | changed)  # given to `from_pretrained` it is not validated
    _refuse_contradictions(source, has, given)
    options: dict[str, Any] = {"attn_implementation": attn_implementation, "dtype": torch.float32}
    fitting = {name: value for name, value in changed.items() if name in free}
    try:
        model = AutoModelForMaskedLM.from_pretrained(source, **options, **fitting)
        if changed != fitting:
            model = give_weights(model, CoordformerForMaskedLM._from_config(has, **options))
    except SafetensorError as error:
        raise ValueError(f"The weights in {source} are damaged or cut off ({error}); copy them again.") from error
    for module in model.modules():
        if isinstance(module, MessagePassing) and (add_messages or added):
            module.zero_init(None if add_messages else added)
        if isinstance(module, (EdgeFeatures, ProteinMPNNFeatures)):
            module.zero_init(added)
    if _freezes(arguments):
        new = [MESSAGE_WEIGHTS] if add_messages else [ADDED_WEIGHTS[name] for name in added]
        freeze(model, "|".join(new) or r"$^", arguments.lora_rank)
    return model


def _freezes(arguments: ModelArguments) -> bool:
    return arguments.freeze or arguments.lora_rank is not None


def _refuse_contradictions(source: str, has: CoordformerConfig, given: Mapping[str, Any]) -> None:
    """Where a checkpoint `has` other fields than are given, an error that names them all."""
    if not has.num_neighbors:  # of no messages it says nothing
        given = {name: value for name, value in given.items() if name != "message_gating"}
    differing = {name: value for name, value in given.items() if getattr(has, name) != value}
    if differing:
        what = "; ".join(f"{name}={getattr(has, name)!r}, not {value!r}" for name, value in differing.items())
        fix = "leave that out, on the command line and in the preset, or leave out --init_from"
        if has.num_qk_points and not has.num_neighbors and differing.keys() & ADDED_WEIGHTS.keys():
            fix = "add --num_neighbors, too, or leave that out"
        raise ValueError(f"{source} has {what}; {fix}.")


def last_whole_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint of a `Trainer` that was written to its end, or None.

    `Trainer` writes `trainer_state.json` last; a process killed earlier leaves a folder without it or half of it.
    """
    steps = {path.name.removeprefix("checkpoint-"): path for path in Path(folder).glob("checkpoint-*")}
    for step in sorted((int(step) for step in steps if step.isdecimal()), reverse=True):
        checkpoint = steps[str(step)]
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            logger.warning("%s was not written to its end and is passed over.", checkpoint)
        else:
            return str(checkpoint)
    return None


def earlier_training(checkpoint: str | Path) -> dict[str, Any] | None:
    """What is recorded of how the weights in a folder were trained, if anything is.

    Of a training that ended its `train.json`; of a checkpoint on the way how many updates it had.

    Raises:
        ValueError: what is there cannot be read.
    """
    for name in ("train.json", "trainer_state.json"):
        path = Path(checkpoint, name)
        if path.exists():
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                return record if name == "train.json" else {"steps": record["global_step"]}
            except (ValueError, KeyError) as error:
                fix = "move it away to start from these weights without what it says"
                raise ValueError(f"{path} cannot be read ({error}); {fix}.") from error
    return None


def write_log(history: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write the numbers of `trainer.state.log_history` as CSV: step, metric, value."""
    lines = ["step,metric,value"]
    for entry in history:
        numbers = {name: value for name, value in entry.items() if name != "step" and isinstance(value, int | float)}
        lines += [f"{entry['step']},{name},{value!r}" for name, value in numbers.items()]
    write_text(Path(path), "\n".join(lines) + "\n")


def _begin_run(output: Path, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a folder that holds another run; one that failed before its first checkpoint left nothing to lose."""
    trained = any((output / name).exists() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))
    begin_run(
        output,
        settings,
        holds_results=trained or last_whole_checkpoint(output) is not None,
        # The same data may lie elsewhere by now; its hash stands for it, which older versions did not keep.
        passing=("transformers_version", "data", "valid_data"),
        defaults=asdict(ModelArguments())
        | NEW_MODEL
        | asdict(DataArguments())
        | {"sha256": settings["data"]["sha256"]},
        # The config reads fields by the names that they had.
        upgrade=lambda old: {**old, "model": CoordformerConfig.from_dict(old["model"]).to_dict()},
    )


class _EvaluationRows(torch.utils.data.Dataset):
    """Chains one by one, longest first, masked the same way at every evaluation."""

    def __init__(self, rows: Any):
        self.rows = rows
        self.order = np.argsort(-read_lengths(rows), kind="stable")

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return fetch_rows(self.rows, [self.order[index]])[0] | {"epoch": 0, "augment": False}


class _WaitingTime(TrainerCallback):
    """Seconds from the end of an update to the beginning of the next: the host waits for its batches.

    With a GPU an upper bound of what the GPU waits, which may still be at work on what was queued.
    """

    def __init__(self) -> None:
        self.waited, self.started, self.since = 0.0, time.perf_counter(), math.inf

    def on_train_begin(self, *arguments, **keywords):
        self.started = self.since = time.perf_counter()

    def on_step_begin(self, *arguments, **keywords):
        self.waited += max(time.perf_counter() - self.since, 0.0)

    def on_step_end(self, *arguments, **keywords):
        self.since = time.perf_counter()

    # What the Trainer does between two updates besides is no waiting.
    on_log = on_evaluate = on_save = on_step_end

    def share(self) -> float:
        return self.waited / (time.perf_counter() - self.started)


class _Log(TrainerCallback):
    """The first update and the last are in the log, however far apart its entries are."""

    def on_step_end(self, args, state, control, **keywords):
        control.should_log |= state.global_step == 1 or state.global_step >= state.max_steps


class CtrlC(TrainerCallback):
    """Ctrl-C lets the update that is being made end, and saves a checkpoint; a second one stops at once.

    Not of several processes: signals reach them at different updates, and they save together.
    """

    def __init__(self) -> None:
        self.came = False
        self.before: Any = None

    def on_train_begin(self, args, state, control, **keywords):
        first = threading.current_thread() is threading.main_thread()
        if first and args.world_size == 1 and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self.before = signal.signal(signal.SIGINT, self.take)

    def take(self, *arguments: Any) -> None:
        self.came = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # No `print`, which a signal may have interrupted.
        os.write(2, b"\ncoordformer: stopping after this update, to save it; Ctrl-C again stops at once\n")

    def on_step_end(self, args, state, control, **keywords):
        if self.came:
            control.should_save = control.should_log = True

    def on_save(self, *arguments, **keywords):
        if self.came:
            raise KeyboardInterrupt

    def restore(self) -> None:
        """Leave the signal as it was."""
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)


def train(
    model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments, options: Sequence[str] = ()
) -> dict[str, Any]:
    """Train, or go on with a training that was stopped; leave a checkpoint, its log and its loss curve.

    `args.output_dir` gets the model and processor, `log.csv`, `loss.png`, `run.json` (the settings),
    `training_sequences.safetensors` (see `data.training_sequences`) and the `checkpoint-*` folders. If it holds a whole
    checkpoint of the same run already, training goes on from there.
    `options` are those of the command line, for the record.

    Returns:
        `steps`, `residues_per_epoch`, `padding_share`, `command`, `commit` and `data_sha256` of the data, and where it
        trained `waiting_share` (of the time, for batches) and the last evaluation's metrics where there was one.

    Raises:
        ValueError: an argument is unusable, or `output_dir` belongs to another run.
        OSError: a checkpoint could not be written, as on a full disk, or a worker was lost; older ones are whole.
    """
    _check_arguments(model_args, data_args, args)
    output = Path(str(args.output_dir))
    # Of the code that is running: at the end another may lie there.
    record: dict[str, Any] = {"command": describe_command("train", options), "commit": current_commit()}
    record["data_sha256"] = hash_data(str(data_args.data))
    source = model_args.init_from or model_args.sequence_encoder
    if source is not None and not Path(source).exists():
        record["base_model"] = source  # on the Hub
    if model_args.init_from is not None:
        record["started_from"] = earlier_training(model_args.init_from)
    packs = _packs(model_args, data_args)
    batches, rows = _open_batches(model_args, data_args, args, packs)
    valid_rows = _open_held_out(data_args, args, rows)

    # Before the model is made, so that its weights depend on the seed alone.
    torch.manual_seed(args.seed)
    model = build_model(model_args, model_args.attn_implementation or ("varlen" if packs else "sdpa"))
    if model_args.compile_layers:
        for layer in model.coordformer.layers:
            layer.compile()
    processor = _find_processor(model_args, model.config)
    reads: dict[str, Any] = {"atoms": model.config.coordinate_atoms, "optional_atoms": model.config.optional_atoms}
    chain_arrays(batches[0][0], **reads)  # has the data the atoms of the model?
    if args.should_save:
        data = {**asdict(data_args), "chains": batches.chains, "residues": batches.residues}
        data["sha256"] = record["data_sha256"]
        training = {name: getattr(args, name) for name in SETTINGS}
        named = ("init_from", "sequence_encoder", "freeze", "lora_rank", "muon")
        training |= {name: getattr(model_args, name) for name in named}
        if model_args.teachers:
            of_teachers = ("teachers", "distillation_weight", "teacher_temperature")
            training |= {name: getattr(model_args, name) for name in of_teachers}
        _begin_run(output, {"model": model.config.to_dict(), "data": data, "training": training})
        # Now, and not at the end: it is for the checkpoints of a training that is stopped, too.
        starts = [each for each in (model_args.init_from, model_args.sequence_encoder) if each is not None]
        record_training([batches if rows is None else rows], starts).write(output / FILE)

    # An item of the data set is a whole batch already, in an order of its own.
    args.per_device_train_batch_size, args.train_sampling_strategy = 1, "sequential"
    args.remove_unused_columns = False
    letters = letter_ids(processor.tokenizer)
    optimizer = None
    if model_args.muon:
        options_of_adam: dict[str, Any] = {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
        optimizer = MuonAdamW(parameter_groups(model, args.weight_decay), args.learning_rate, **options_of_adam)
    if data_args.drop_atoms and model.config.encoder_type == "proteinmpnn" and not model.config.partial_backbones:
        what = f"--drop_atoms is {data_args.drop_atoms}, but the model reads residues with complete backbones alone"
        raise ValueError(f"{what}; add --partial_backbones true.")
    make: Any = Trainer
    if model_args.teachers:
        make = partial(
            DistillingTrainer, teachers=load_teachers(model_args.teachers, model),
            weight=model_args.distillation_weight, temperature=model_args.teacher_temperature,
        )  # fmt: skip
    trainer = make(
        model=model,
        args=args,
        data_collator=CoordformerDataCollator(
            processor.tokenizer, **reads, masking=data_args.masking, mlm_probability=data_args.mlm_probability,
            rotate=data_args.rotate, noise=data_args.coordinate_noise, exact_coords=data_args.exact_coords,
            drop_coords=data_args.drop_coords, drop_atoms=data_args.drop_atoms, split_chains=data_args.split_chains,
            max_length=data_args.max_length, give_noise_level=model.config.noise_conditioning, seed=args.seed,
        ),
        train_dataset=batches,
        eval_dataset=None if valid_rows is None else _EvaluationRows(valid_rows),
        processing_class=processor,
        compute_metrics=lambda prediction: summarize(np.asarray(prediction.predictions), letters),
        preprocess_logits_for_metrics=count_predictions,
        callbacks=[waiting := _WaitingTime(), _Log(), ctrl_c := CtrlC()],
        optimizers=(optimizer, None),
    )  # fmt: skip

    checkpoint = args.resume_from_checkpoint or last_whole_checkpoint(output)
    state = None
    if checkpoint is not None:
        if not (path := Path(checkpoint, "trainer_state.json")).exists():
            fix = "leave it out to go on from the newest"
            raise ValueError(f"--resume_from_checkpoint is {checkpoint}, which is no checkpoint; {fix}.")
        state = TrainerState.load_from_json(str(path))
    if state is not None and 0 < args.max_steps <= state.global_step:
        # `Trainer` would add a step to what is finished.
        logger.warning("%s is %d updates old, and %d were asked for.", checkpoint, state.global_step, args.max_steps)
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            checkpoint = str(output / Path(state.best_model_checkpoint).name)  # the folder may have been moved
        if model_args.lora_rank is None:
            model.load_state_dict(type(model).from_pretrained(checkpoint, dtype=torch.float32).state_dict())
        else:  # `from_pretrained` knows no low-rank changes; tied weights are saved once
            model.load_state_dict(load_file(Path(str(checkpoint), SAFE_WEIGHTS_NAME)), strict=False)
        trainer.state = state
        # Recorded is what trained the weights, not what saves them again.
        before = earlier_training(output) or {}
        if before.get("steps") == state.global_step:
            record |= {name: before[name] for name in (*record, "waiting_share") if name in before}
    else:
        _run(trainer, checkpoint, output, ctrl_c)
    merge_low_rank(model)
    _save(trainer, output, model_args.max_shard_size)

    summary: dict[str, Any] = {"steps": trainer.state.global_step, "residues_per_epoch": batches.residues}
    summary |= {"padding_share": round(batches.padding_share(), 4), **record}
    if waiting.waited:
        summary["waiting_share"] = round(waiting.share(), 4)
    if valid_rows is not None:
        summary["valid"] = trainer.evaluate()
    if args.should_save:
        write_log(trainer.state.log_history, output / "log.csv")
        plot_losses({output.name: trainer.state.log_history}, output / "loss.png")
        write_json(output / "train.json", summary)
    return summary


def _check_arguments(model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments) -> None:
    """Refuse what would fail later, or silently."""
    size, dropout, masked = model_args.max_shard_size, model_args.hidden_dropout_prob, data_args.mlm_probability
    weight = model_args.distillation_weight
    of_parts = bool(args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP"))
    lora_of_parts = model_args.lora_rank is not None and of_parts
    refused = {
        "--data is missing: a folder made by `coordformer prepare`, or a Parquet file.": data_args.data is None,
        "--save_only_model leaves nothing to go on from after a stop; leave it out.": args.save_only_model,
        f"This process sees {args.n_gpu} GPUs; start one for each by `accelerate launch --multi_gpu -m coordformer "
        "train ...`, or show it one by CUDA_VISIBLE_DEVICES=0.": args.n_gpu > 1,
        "--muon needs whole matrices, which FSDP does not leave; leave it out, or use DDP.": model_args.muon
        and of_parts,
        "--lora_rank needs whole matrices, which FSDP does not leave; leave it out, or use DDP.": lora_of_parts,
        f"--mlm_probability is {masked}; it is a share above 0.": not 0 < np.min(masked) <= np.max(masked) <= 1,
        f"--hidden_dropout_prob is {dropout}; it is a share below 1.": not 0 <= (dropout or 0) < 1,
        f"--distillation_weight is {weight}; it is a share.": not 0 <= weight <= 1,
        f"--teacher_temperature is {model_args.teacher_temperature}; it is above 0.": not model_args.teacher_temperature
        > 0,
        "--teachers predict residues that are all masked; give --masking masked15, too.": bool(model_args.teachers)
        and data_args.masking != "masked15",
    }
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        refused[f"--{name} is {getattr(args, name)}; it is at least 1."] = getattr(args, name) < 1
    for message, holds in refused.items():
        if holds:
            raise ValueError(message)
    try:
        split_torch_state_dict_into_shards({}, max_shard_size="5GB" if size is None else size)
    except ValueError as error:
        raise ValueError(f"--max_shard_size is {size}; give a size as 15MB, in KB, MB, GB or TB.") from error


def _packs(model_args: ModelArguments, data_args: DataArguments) -> bool:
    """Whether batches are packed rows; a bias for one would be as large as the square of the token budget."""
    bins, source = model_args.num_distance_bins, model_args.init_from
    if bins is None and source is not None:
        bins = getattr(AutoConfig.from_pretrained(source), "num_distance_bins", 0)
    return data_args.token_budget is not None and data_args.packing and not bins


def _find_processor(model_args: ModelArguments, config: CoordformerConfig) -> CoordformerProcessor:
    """The processor of the checkpoint to start from, or one with its tokenizer, or with ESM-2's."""
    source = model_args.init_from or model_args.sequence_encoder
    reads: dict[str, Any] = {"coordinate_atoms": config.coordinate_atoms, "optional_atoms": config.optional_atoms}
    if source is None or AutoConfig.from_pretrained(source).model_type == "esm":
        tokenizer = None if source is None else esm_tokenizer(source)
        return CoordformerProcessor(tokenizer, **reads)
    try:
        processor = CoordformerProcessor.from_pretrained(source)
    except (OSError, ValueError) as error:
        if config.vocab_size != len(VOCABULARY):
            raise ValueError(f"{source} has a vocabulary of its own and no processor; put it beside it.") from error
        return CoordformerProcessor(**reads)
    processor.coordinate_atoms, processor.optional_atoms = tuple(config.coordinate_atoms), config.optional_atoms
    return processor


def _open_batches(
    model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments, packs: bool
) -> tuple[Any, Any]:
    """The batches to train on, and their rows unless they are streamed."""
    assert data_args.data is not None
    shared: dict[str, Any] = {"token_budget": data_args.token_budget, "pad_to_budget": model_args.compile_layers}
    shared |= {"max_length": data_args.max_length, "seed": args.seed}
    if not data_args.streaming:
        rows = open_chains(data_args.data, data_args.train_split)
        chains = args.per_device_train_batch_size if data_args.token_budget is None else None
        return ChainBatches(rows, chains_per_batch=chains, packing=packs, **shared), rows
    from ..data.rows import ShardBatches  # needs pyarrow and datasets, which training from a pack does not

    if Path(data_args.data).is_file():
        raise ValueError(
            f"--streaming reads the shards of a folder made by `coordformer prepare`, not {data_args.data}."
        )
    if not packs:
        fix = "set --token_budget, and leave out --packing and --num_distance_bins"
        raise ValueError(f"--streaming reads packed batches; {fix}.")
    readers = args.world_size * max(args.dataloader_num_workers, 1)
    if data_args.open_shards % readers:
        text = "--open_shards is %d, no multiple of %d processes x workers: each of them reads all shards."
        logger.warning(text, data_args.open_shards, readers)
    return ShardBatches(data_args.data, split=data_args.train_split, open_shards=data_args.open_shards, **shared), None


def _open_held_out(data_args: DataArguments, args: TrainingArguments, rows: Any) -> Any:
    """The chains to evaluate on, if any: none of `rows`, those to train on, which are None where they are streamed."""
    if data_args.valid_data is None and data_args.valid_split is None:
        if args.eval_strategy != "no":
            raise ValueError("--eval_strategy needs chains to evaluate on; set --valid_data or --valid_split.")
        return None
    valid_rows = open_chains(data_args.valid_data or str(data_args.data), data_args.valid_split)
    # Of a stream nobody knows the ids.
    if rows is None and data_args.valid_data is None and data_args.train_split in (None, data_args.valid_split):
        what = f"With --streaming and --valid_split {data_args.valid_split}, set --train_split to another split"
        raise ValueError(f"{what}, or the chains to evaluate on are trained on, too.")
    if rows is not None and (shared := set(rows["id"][:]) & set(valid_rows["id"][:])):
        what = f"{len(shared)} chains, such as {min(shared)}, are both to train and to evaluate on"
        raise ValueError(f"{what}; set them apart by --train_split, --valid_split or --valid_data.")
    return valid_rows


def _run(trainer: Trainer, checkpoint: str | None, output: Path, ctrl_c: CtrlC) -> None:
    """Train; what stops it from outside becomes an error that says how to go on."""
    if checkpoint is not None:
        logger.warning("Going on from %s.", checkpoint)
    # A file holds tied weights once, and `Trainer` then says that the others are missing.
    tied = sorted(getattr(trainer.model, "all_tied_weights_keys", {}))
    log = logging.getLogger("transformers.trainer")
    log.addFilter(alarm := lambda record: not record.getMessage().endswith(f"model loaded: {tied}."))
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except (OSError, SafetensorError, RuntimeError) as error:
        text = " ".join(str(error).split())
        if ctrl_c.came and "DataLoader worker" in text:
            raise KeyboardInterrupt from error  # the workers heard it, too
        if "DataLoader worker" in text:
            reason, fix = "A worker that loads data was lost", "use fewer --dataloader_num_workers or free memory"
        # `torch.save` names the part of its own code that could not write.
        elif isinstance(error, OSError | SafetensorError) or "inline_container" in text:
            reason, fix = f"{output} could not be written", "make room"
        else:
            raise
        newest = last_whole_checkpoint(output) or "the start"
        raise OSError(f"{reason} ({text}); {fix} and run the same command again: it goes on from {newest}.") from error
    finally:
        log.removeFilter(alarm)
        ctrl_c.restore()


def _save(trainer: Trainer, output: Path, max_shard_size: str | None) -> None:
    """Write the final model and processor, its weights in one file or in shards, and the state."""
    if writes := trainer.args.should_save:
        (output / SAFE_WEIGHTS_INDEX_NAME).unlink(missing_ok=True)  # of shards that go now, if it was trained before
    trainer.save_model()
    if max_shard_size is not None:
        weights = trainer.accelerator.get_state_dict(trainer.model)  # of all processes, which may hold parts of it
        if writes:
            whole = trainer.accelerator.unwrap_model(trainer.model)
            whole.save_pretrained(output, state_dict=weights, max_shard_size=max_shard_size)
            if (output / SAFE_WEIGHTS_INDEX_NAME).exists():
                (output / SAFE_WEIGHTS_NAME).unlink()
    trainer.save_state()


def run(options: Sequence[str], progress: bool = True) -> dict[str, Any]:
    """`train` with the options of a command line, see `arguments.parse_arguments`: `coordformer train`."""
    model_args, data_args, args = parse_arguments([*options, *(() if progress else ("--disable_tqdm", "true"))])
    # Of several processes one writes.
    with lock_folder(str(args.output_dir)) if args.should_save else contextlib.nullcontext():
        return train(model_args, data_args, args, options) | {"output": str(args.output_dir)}


def describe(summary: Mapping[str, Any]) -> str:
    """The summary as a short text."""
    lines = [f"{counted(summary['steps'], 'update')}: {summary['output']}"]
    if "valid" in summary:
        perplexity, recovery = summary["valid"]["eval_perplexity"], summary["valid"]["eval_recovery"]
        lines.append(f"held out: perplexity {perplexity:.2f}, recovery {100 * recovery:.1f} %")
    return "\n".join(lines)


def leave_processes() -> None:
    """End a training as one of several processes."""
    if dist.is_initialized() and dist.get_backend() == "gloo":
        # A thread of gloo that asks for the interpreter's lock while the interpreter ends aborts the process.
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(0)
    PartialState().destroy_process_group()
