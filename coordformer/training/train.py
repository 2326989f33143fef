"""Masked-LM training with `Trainer`: what `coordformer train`, `examples/pretraining` and `make demo` run."""

import difflib
import hashlib
import importlib.util
import json
import logging
import math
import re
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import yaml
from accelerate.utils import parse_flag_from_env
from huggingface_hub import split_torch_state_dict_into_shards
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    HfArgumentParser,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..data.batching import ChainBatches, fetch_rows, read_lengths
from ..data.collator import CoordformerDataCollator
from ..data.files import write_text
from ..inference.evaluate import letter_ids, open_chains
from ..inference.figures import plot_losses, write_log
from ..inference.metrics import count_predictions, summarize
from ..model.configuration_coordformer import CoordformerConfig
from ..model.modeling_coordformer import CoordformerForMaskedLM, MessagePassing
from ..model.processing_coordformer import CoordformerProcessor, chain_arrays
from .conversion import behind_esm, from_esm
from .muon import MuonAdamW, parameter_groups

logger = logging.getLogger(__name__)


# ---------------------------------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class ModelArguments:
    """The model to train: a new one of the given shape, or one to go on from."""

    init_from: str | None = field(
        default=None, metadata={"help": "Hub name or folder of a Coordformer or ESM-2 checkpoint to start from."}
    )
    sequence_encoder: str | None = field(
        default=None,
        metadata={
            "help": "Hub name or folder of an ESM-2 checkpoint to put in front of a new model, frozen; needs --lm_head "
            "linear."
        },
    )
    hidden_size: int = field(default=320, metadata={"help": "Width (of a new model, as all that follows)."})
    num_hidden_layers: int = field(default=6, metadata={"help": "Layers."})
    num_attention_heads: int = field(default=20, metadata={"help": "Attention heads."})
    intermediate_size: int = field(default=1280, metadata={"help": "Width of the feed-forward layers."})
    position_embedding_type: str = field(default="rotary", metadata={"help": "rotary, absolute, sinusoidal or none."})
    hidden_act: str = field(default="gelu", metadata={"help": "Activation of the feed-forward layers."})
    lm_head: str = field(default="esm", metadata={"help": "esm, or linear (the paper's)."})
    coordinate_embedding: str = field(
        default="linear",
        metadata={
            "help": "linear (the paper's), quadratic (and |x|^2), local (neighbors in the residue's frame) or none."
        },
    )
    coordinate_init: str = field(
        default="normal", metadata={"help": "normal, or gaussian: the first layer starts as Gaussians of distance."}
    )
    distance_bias: int = field(
        default=0,
        metadata={"help": "Values of a learned function of distance, added to attention; its batches are padded."},
    )
    num_qk_points: int = field(default=0, metadata={"help": "Points in space with which each head attends."})
    num_neighbors: int = field(
        default=0, metadata={"help": "Residues nearest in space that are heard in every layer; needs points."}
    )
    message_gating: str = field(
        default="plain", metadata={"help": "plain, or gated: more accurate, slower, needs more memory."}
    )
    coordinate_atoms: list[str] = field(
        default_factory=lambda: ["CA"], metadata={"help": "Atoms of a residue that the model reads."}
    )
    hidden_dropout_prob: float | None = field(
        default=None, metadata={"help": "Dropout after each layer; default: that of --init_from, or 0."}
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "varlen, sdpa, eager, flex_attention or flash_attention_2; default: varlen for packed rows, else "
            "sdpa."
        },
    )
    compile_layers: bool = field(
        default=False,
        metadata={"help": "torch.compile each layer; packed rows are then filled up to the token budget."},
    )
    muon: bool = field(
        default=False, metadata={"help": "Muon for the hidden matrices, AdamW for all else, with one learning rate."}
    )
    max_shard_size: str | None = field(
        default=None, metadata={"help": "Largest file of the final weights, such as 15MB; default: one file."}
    )


@dataclass
class DataArguments:
    """The chains to train on and what happens to them on their way to the model."""

    data: str | None = field(
        default=None, metadata={"help": "Folder made by `coordformer prepare`, Parquet file, or bundle (.safetensors)."}
    )
    train_split: str | None = field(default=None, metadata={"help": "Value of the column `split` to train on."})
    valid_data: str | None = field(default=None, metadata={"help": "As --data, to evaluate on; default: --data."})
    valid_split: str | None = field(default=None, metadata={"help": "Value of the column `split` to evaluate on."})
    token_budget: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of a batch. Without it a batch holds --per_device_train_batch_size random chains, padded "
            "to the longest, as in the paper."
        },
    )
    packing: bool = field(
        default=True,
        metadata={
            "help": "With a token budget: pack the chains into one row, without padding; False: pad chains of like "
            "length."
        },
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read a few shards at a time: for a folder that is too large for memory."}
    )
    open_shards: int = field(
        default=16,
        metadata={"help": "Shards that --streaming reads side by side; a multiple of processes x workers."},
    )
    max_length: int | None = field(default=None, metadata={"help": "Longer chains are cropped at random, in residues."})
    mlm_probability: float = field(default=0.15, metadata={"help": "Share of the residues to predict."})
    rotate: bool = field(default=True, metadata={"help": "Turn each chain at random, anew in each epoch."})
    coordinate_noise: float = field(default=0.0, metadata={"help": "Standard deviation of noise on coordinates, Å."})
    drop_coords: float = field(
        default=0.0,
        metadata={"help": "Probability of withholding a chain's coordinates, for one model with and without."},
    )


def parse_arguments(argv: Sequence[str]) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """Read options, after an optional YAML preset whose values they override.

    Raises:
        ValueError: the preset is no mapping or has a key that is no option.
    """
    kinds: Any = (ModelArguments, DataArguments, TrainingArguments)
    parser = HfArgumentParser(
        kinds,
        prog="coordformer train",
        description="Train a masked language model: coordformer train [PRESET.yaml] [OPTION ...]. Options override "
        "those of the preset. Run it again to go on after a stop. As all verbs it also takes --json and --quiet.",
    )
    tensorboard = importlib.util.find_spec("tensorboard") is not None
    defaults: dict[str, Any] = {
        "report_to": "tensorboard" if tensorboard else "none",
        "per_device_eval_batch_size": 32,
        "logging_steps": 50,
        "logging_nan_inf_filter": False,  # to look at every loss the host would wait for the device
    }
    argv = list(argv)
    if argv and not argv[0].startswith("-"):
        defaults |= _read_preset(Path(argv.pop(0)), {action.dest: action for action in parser._actions})
    parser.set_defaults(**defaults)
    parser.error = _refuse_option  # type: ignore[method-assign]  # in one line, without that of a hundred options
    model_args, data_args, args, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if unknown:
        near = difflib.get_close_matches(unknown[0], parser._option_string_actions, n=1)
        raise ValueError(
            f"{' '.join(unknown)}: no such option"
            + (f"; did you mean {near[0]}?" if near else "; a preset comes first, then its overrides.")
        )
    return model_args, data_args, args  # type: ignore[return-value]


def _refuse_option(message: str) -> NoReturn:
    raise ValueError(f"{message}; `coordformer train --help` lists the options.")


def _read_preset(path: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Options from a YAML file; `known` has argparse's action of each."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a YAML mapping of options to values.")
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise ValueError(
                f"{path} sets {key!r}, which is no option" + (f"; did you mean {near[0]!r}?" if near else ".")
            )
        if isinstance(value := values[key], list) and known[key].nargs not in ("+", "*"):
            raise ValueError(f"{path} sets {key!r} to the list {value}; it takes one value.")
        if isinstance(value, dict) and not key.endswith(("kwargs", "config", "args")):
            raise ValueError(f"{path} sets {key!r} to the mapping {value}; it takes one value.")
        if value is None and known[key].default is not None:
            raise ValueError(f"{path} sets {key!r} to nothing; give a value, or leave the line out.")
    # argparse checks and converts text as on the command line, and nothing else.
    return {key: str(value) if type(value) in (int, float) else value for key, value in values.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """What a config refuses, as a ValueError of one line: it is raised as no ValueError, and in two lines."""
    try:
        yield
    except StrictDataclassError as error:
        raise ValueError(" ".join(str(error.__cause__ or error).split())) from error


@_one_line_errors()
def build_model(arguments: ModelArguments, attn_implementation: str = "sdpa") -> CoordformerForMaskedLM:
    """A new model, alone or behind a frozen ESM-2, or the one in `init_from` with the coordinate fields given.

    An ESM-2 there may get any of them, and a Coordformer with `num_qk_points` messages of `num_neighbors`.
    Either gets the dropout given. In float32, whatever is saved there: updates are smaller than what bfloat16 resolves.
    """
    dropout = {} if arguments.hidden_dropout_prob is None else {"hidden_dropout_prob": arguments.hidden_dropout_prob}
    atoms = arguments.coordinate_atoms
    coordinates = {
        "coordinate_embedding": arguments.coordinate_embedding,
        "num_distance_bins": arguments.num_distance_bins,
        "num_qk_points": arguments.num_qk_points,
        "num_neighbors": arguments.num_neighbors,
        "message_gating": arguments.message_gating,
        "coordinate_atoms": (atoms,) if isinstance(atoms, str) else tuple(atoms),
    }
    if arguments.init_from is None:
        elsewhere = ("init_from", "sequence_encoder", "attn_implementation", "compile_layers", "max_shard_size", "muon",
                     "hidden_dropout_prob")  # fmt: skip
        shape = {name: value for name, value in asdict(arguments).items() if name not in elsewhere} | dropout
        if arguments.sequence_encoder is not None:
            return behind_esm(arguments.sequence_encoder, attn_implementation, **shape | coordinates)
        config = CoordformerConfig(**shape | coordinates)
        return CoordformerForMaskedLM._from_config(config, attn_implementation=attn_implementation)
    if arguments.sequence_encoder is not None:
        raise ValueError(
            f"--sequence_encoder is of a new model, but --init_from is {arguments.init_from}; leave one of them out."
        )
    config = AutoConfig.from_pretrained(arguments.init_from)
    if config.model_type == "esm":
        model = from_esm(arguments.init_from, **coordinates | dropout).float()
        model.set_attn_implementation(attn_implementation)
        return model
    # Messages can be added to a model with points, which goes on as it was until they are read.
    changed: dict[str, Any] = {**dropout}
    silent = config.num_qk_points and arguments.num_neighbors and not config.num_neighbors
    if silent:
        changed |= {"num_neighbors": arguments.num_neighbors, "message_gating": arguments.message_gating}
    CoordformerConfig.from_dict(config.to_dict() | changed)  # what is given to `from_pretrained` is not validated
    try:
        model = AutoModelForMaskedLM.from_pretrained(
            arguments.init_from, attn_implementation=attn_implementation, dtype=torch.float32, **changed
        )
    except SafetensorError as error:
        raise ValueError(
            f"The weights in {arguments.init_from} are damaged or cut off ({error}); copy them again."
        ) from error
    for module in model.modules():
        if silent and isinstance(module, MessagePassing):
            module.zero_init()
    if not model.config.num_neighbors:
        del coordinates["message_gating"]  # says nothing
    for name, value in coordinates.items():
        if getattr(model.config, name) != value:
            raise ValueError(
                f"{arguments.init_from} has {name}={getattr(model.config, name)!r}, not {value!r}; set --{name} to it."
            )
    return model


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


def hash_data(path: str | Path) -> str:
    """SHA-256 of a data set: of its file, or of the datasheet of a folder, which has those of its shards.

    A folder without one has none: an empty string.
    """
    path = Path(path)
    file = path / "datasheet.json" if path.is_dir() else path
    if not file.is_file():
        return ""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


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
                raise ValueError(
                    f"{path} cannot be read ({error}); move it away to start from these weights without what it says."
                ) from error
    return None


def _describe_command(options: Sequence[str]) -> str:
    """The command line for the record: paths outside the folder in which it was run by their names, no token."""
    words, secret = ["coordformer", "train"], False
    for option in options:
        path = option.startswith(("/", ".."))
        words.append("..." if secret else Path(option).name if path else re.sub("token=.*", "token=...", option))
        secret = option.endswith("token")
    return shlex.join(words)


def current_commit() -> str:
    """Commit of the repository that the package runs from, `-dirty` where files differ; empty where it is installed."""
    folder = Path(__file__).resolve().parent
    git = ["git", "-C", str(folder)]
    try:
        commit, inside, changed = (
            subprocess.run([*git, *arguments], capture_output=True, text=True, check=True).stdout.strip()
            for arguments in (
                ("rev-parse", "HEAD"),
                ("ls-files", Path(__file__).name),
                ("status", "--porcelain", "--untracked-files=no", "."),
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return (commit + "-dirty" * bool(changed)) if inside else ""


def _check_same_run(output: Path, settings: dict[str, dict[str, Any]]) -> None:
    """Refuse a folder that holds another run; remember the settings of a new one in `run.json`.

    A run that failed before its first checkpoint left nothing to lose.
    """
    path = output / "run.json"
    settings = json.loads(json.dumps(settings))
    trained = any((output / name).exists() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))
    if not path.exists() or not (trained or last_whole_checkpoint(output)):
        output.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(settings, indent=2) + "\n")
        return
    before = json.loads(path.read_text())
    # What an older version did not write has its default.
    before["model"] = json.loads(json.dumps(CoordformerConfig.from_dict(before["model"]).to_dict()))
    defaults = {each.name: each.default for kind in (ModelArguments, DataArguments) for each in fields(kind)}
    # The same data may lie elsewhere by now; its size stands for it.
    passing = {"transformers_version", "data", "valid_data"}
    changed = [
        f"{name}: {was!r} -> {value!r}"
        for part, values in settings.items()
        for name, value in values.items()
        if name not in passing and (was := before[part].get(name, defaults.get(name))) != value
    ]
    if changed:
        raise ValueError(
            f"{output} holds another run ({'; '.join(changed)}). Choose another --output_dir, or delete it."
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


def train(
    model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments, options: Sequence[str] = ()
) -> dict[str, Any]:
    """Train, or go on with a training that was stopped; leave a checkpoint, its log and its loss curve.

    `args.output_dir` gets the model and processor, `log.csv`, `loss.png`, `run.json` (the settings) and the
    `checkpoint-*` folders. If it holds a whole checkpoint of the same run already, training goes on from there.
    `options` are those of the command line, for the record.

    Returns:
        `steps`, `residues_per_epoch`, `padding_share`, `command`, `commit` and `data_sha256` of the data, and where it
        trained `waiting_share` (of the time, for batches) and the last evaluation's metrics where there was one.

    Raises:
        ValueError: an argument is unusable, or `output_dir` belongs to another run.
        OSError: a checkpoint could not be written, as on a full disk, or a worker was lost; older ones are whole.
    """
    if data_args.data is None:
        raise ValueError("--data is missing: a folder made by `coordformer prepare`, or a Parquet file.")
    output = Path(str(args.output_dir))
    if args.per_device_train_batch_size < 1:
        raise ValueError(f"--per_device_train_batch_size is {args.per_device_train_batch_size}; it is at least 1.")
    if args.gradient_accumulation_steps < 1:
        raise ValueError(f"--gradient_accumulation_steps is {args.gradient_accumulation_steps}; it is at least 1.")
    if args.save_only_model:
        raise ValueError("--save_only_model leaves nothing to go on from after a stop; leave it out.")
    if model_args.max_shard_size is not None:
        try:
            split_torch_state_dict_into_shards({}, max_shard_size=model_args.max_shard_size)
        except ValueError as error:
            raise ValueError(
                f"--max_shard_size is {model_args.max_shard_size}; give a size as 15MB, in KB, MB, GB or TB."
            ) from error
    if args.n_gpu > 1:
        raise ValueError(
            f"This process sees {args.n_gpu} GPUs; start one for each by `accelerate launch --multi_gpu -m coordformer "
            "train ...`, or show it one by CUDA_VISIBLE_DEVICES=0."
        )
    if model_args.muon and (args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP")):
        raise ValueError("--muon needs whole matrices, which FSDP does not leave; leave it out, or use DDP.")
    if not 0 < data_args.mlm_probability <= 1:
        raise ValueError(f"--mlm_probability is {data_args.mlm_probability}; it is a share above 0.")
    if not 0 <= (model_args.hidden_dropout_prob or 0) < 1:
        raise ValueError(f"--hidden_dropout_prob is {model_args.hidden_dropout_prob}; it is a share below 1.")
    # Of the code that is running: at the end another may lie there.
    record: dict[str, Any] = {
        "command": _describe_command(options),
        "commit": current_commit(),
        "data_sha256": hash_data(data_args.data),
    }
    if model_args.init_from is not None:
        record["started_from"] = earlier_training(model_args.init_from)
    batches, rows = _open_batches(model_args, data_args, args)
    valid_rows = None
    if data_args.valid_data is not None or data_args.valid_split is not None:
        valid_rows = open_chains(data_args.valid_data or data_args.data, data_args.valid_split)
        # Of a stream nobody knows the ids.
        if rows is None and data_args.valid_data is None and data_args.train_split in (None, data_args.valid_split):
            raise ValueError(
                f"With --streaming and --valid_split {data_args.valid_split}, set --train_split to another split, or "
                "the chains to evaluate on are trained on, too."
            )
        if rows is not None and (shared := set(rows["id"][:]) & set(valid_rows["id"][:])):
            raise ValueError(
                f"{len(shared)} chains, such as {min(shared)}, are both to train and to evaluate on; set them apart by "
                "--train_split, --valid_split or --valid_data."
            )
    elif args.eval_strategy != "no":
        raise ValueError("--eval_strategy needs chains to evaluate on; set --valid_data or --valid_split.")

    # Before the model is made, so that its weights depend on the seed alone.
    torch.manual_seed(args.seed)
    attention = "varlen" if _packs(model_args, data_args) else "sdpa"
    model = build_model(model_args, model_args.attn_implementation or attention)
    if model_args.compile_layers:
        for layer in model.coordformer.esm.encoder.layer:
            layer.compile()
    if model_args.init_from is not None and Path(model_args.init_from, "processor_config.json").exists():
        processor = CoordformerProcessor.from_pretrained(model_args.init_from)
    else:
        processor = CoordformerProcessor(coordinate_atoms=model.config.coordinate_atoms)
    chain_arrays(batches[0][0], model.config.coordinate_atoms)  # has the data the atoms of the model?
    tokenizer = processor.tokenizer
    collator = CoordformerDataCollator(
        tokenizer,
        atoms=model.config.coordinate_atoms,
        mlm_probability=data_args.mlm_probability,
        rotate=data_args.rotate,
        noise=data_args.coordinate_noise,
        drop_coords=data_args.drop_coords,
        max_length=data_args.max_length,
        seed=args.seed,
    )
    if args.should_save:
        names = ("seed", "per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "optim",
                 "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay",
                 "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "bf16", "fp16")  # fmt: skip
        training = {name: getattr(args, name) for name in names} | {
            "init_from": model_args.init_from,
            "sequence_encoder": model_args.sequence_encoder,
            "muon": model_args.muon,
        }
        data = {**asdict(data_args), "chains": batches.chains, "residues": batches.residues}
        _check_same_run(output, {"model": model.config.to_dict(), "data": data, "training": training})

    # An item of the data set is a whole batch already, in an order of its own.
    args.per_device_train_batch_size = 1
    args.train_sampling_strategy = "sequential"
    args.remove_unused_columns = False
    letters = letter_ids(tokenizer)
    optimizer = None
    if model_args.muon:
        optimizer = MuonAdamW(
            parameter_groups(model, args.weight_decay),
            lr=args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
        )
    trainer = Trainer(
        model=model,
        args=args,
        data_collator=collator,
        train_dataset=batches,
        eval_dataset=None if valid_rows is None else _EvaluationRows(valid_rows),
        processing_class=processor,
        compute_metrics=lambda prediction: summarize(np.asarray(prediction.predictions), letters),
        preprocess_logits_for_metrics=count_predictions,
        callbacks=[waiting := _WaitingTime()],
        optimizers=(optimizer, None),
    )

    checkpoint = args.resume_from_checkpoint or last_whole_checkpoint(output)
    if checkpoint is not None and not (Path(checkpoint) / "trainer_state.json").exists():
        raise ValueError(
            f"--resume_from_checkpoint is {checkpoint}, which is no checkpoint; leave it out to go on from the newest."
        )
    state = None if checkpoint is None else TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    if state is not None and 0 < args.max_steps <= state.global_step:
        # `Trainer` would add a step to what is finished.
        logger.warning("%s is %d updates old, and %d were asked for.", checkpoint, state.global_step, args.max_steps)
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            checkpoint = str(output / Path(state.best_model_checkpoint).name)  # the folder may have been moved
        model.load_state_dict(type(model).from_pretrained(checkpoint, dtype=torch.float32).state_dict())
        trainer.state = state
        # Recorded is what trained the weights, not what saves them again.
        before = earlier_training(output) or {}
        if before.get("steps") == state.global_step:
            record |= {name: before[name] for name in (*record, "waiting_share") if name in before}
    else:
        _run(trainer, checkpoint, output)
    if args.should_save:
        (output / SAFE_WEIGHTS_INDEX_NAME).unlink(missing_ok=True)  # of shards that go now, if it was trained before
    trainer.save_model()
    if model_args.max_shard_size is not None:
        weights = trainer.accelerator.get_state_dict(trainer.model)  # of all processes, which may hold parts of it
        if args.should_save:
            whole = trainer.accelerator.unwrap_model(trainer.model)
            whole.save_pretrained(output, state_dict=weights, max_shard_size=model_args.max_shard_size)
            if (output / SAFE_WEIGHTS_INDEX_NAME).exists():
                (output / SAFE_WEIGHTS_NAME).unlink()
    trainer.save_state()

    summary: dict[str, Any] = {
        "steps": trainer.state.global_step,
        "residues_per_epoch": batches.residues,
        "padding_share": round(batches.padding_share(), 4),
        **record,
    }
    if waiting.waited:
        summary["waiting_share"] = round(waiting.share(), 4)
    if valid_rows is not None:
        summary["valid"] = trainer.evaluate()
    if args.should_save:
        write_log(trainer.state.log_history, output / "log.csv")
        plot_losses({output.name: trainer.state.log_history}, output / "loss.png")
        write_text(output / "train.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _packs(model_args: ModelArguments, data_args: DataArguments) -> bool:
    """Whether batches are packed rows; a bias for one would be as large as the square of the token budget."""
    return data_args.token_budget is not None and data_args.packing and not model_args.num_distance_bins


def _open_batches(model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments) -> tuple[Any, Any]:
    """The batches to train on, and their rows unless they are streamed."""
    assert data_args.data is not None
    shared: dict[str, Any] = {
        "token_budget": data_args.token_budget,
        "pad_to_budget": model_args.compile_layers,
        "max_length": data_args.max_length,
        "seed": args.seed,
    }
    if not data_args.streaming:
        rows = open_chains(data_args.data, data_args.train_split)
        chains = args.per_device_train_batch_size if data_args.token_budget is None else None
        return ChainBatches(rows, chains_per_batch=chains, packing=_packs(model_args, data_args), **shared), rows
    from ..data.rows import ShardBatches  # needs pyarrow and datasets, which training from a bundle does not

    if Path(data_args.data).is_file():
        raise ValueError(
            f"--streaming reads the shards of a folder made by `coordformer prepare`, not {data_args.data}."
        )
    if not _packs(model_args, data_args):
        raise ValueError(
            "--streaming reads packed batches; set --token_budget, and leave --packing and --num_distance_bins as they are."
        )
    readers = args.world_size * max(args.dataloader_num_workers, 1)
    if data_args.open_shards % readers:
        logger.warning(
            "--open_shards is %d, no multiple of %d processes x workers: each of them reads all shards.",
            data_args.open_shards, readers,
        )  # fmt: skip
    return ShardBatches(data_args.data, split=data_args.train_split, open_shards=data_args.open_shards, **shared), None


def _run(trainer: Trainer, checkpoint: str | None, output: Path) -> None:
    """Train; what stops it from outside becomes an error that says how to go on."""
    if checkpoint is not None:
        logger.warning("Going on from %s.", checkpoint)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except (OSError, SafetensorError, RuntimeError) as error:
        text = " ".join(str(error).split())
        lost_worker = "DataLoader worker" in text
        # `torch.save` names the part of its own code that could not write.
        unwritten = isinstance(error, (OSError, SafetensorError)) or "inline_container" in text
        if not lost_worker and not unwritten:
            raise
        raise OSError(
            ("A worker that loads data was lost" if lost_worker else f"{output} could not be written")
            + f" ({text}); "
            + ("use fewer --dataloader_num_workers or free memory" if lost_worker else "make room")
            + f" and run the same command again: it goes on from {last_whole_checkpoint(output) or 'the start'}."
        ) from error
