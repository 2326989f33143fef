"""The options of `coordformer train`: of the model, of its data, and those of `TrainingArguments`; YAML presets."""

import argparse
import difflib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser, TrainingArguments


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


# Fields of a new model that are not given.
NEW_MODEL: dict[str, Any] = {
    "hidden_size": 320,
    "num_hidden_layers": 6,
    "num_attention_heads": 20,
    "intermediate_size": 1280,
    "position_embedding_type": "rotary",
    "hidden_act": "gelu",
    "lm_head": "esm",
    "coordinate_embedding": "linear",
    "coordinate_init": "normal",
    "num_distance_bins": 0,
    "num_qk_points": 0,
    "num_neighbors": 0,
    "message_gating": False,
    "message_attention": False,
    "edge_updates": False,
    "coordinate_atoms": ("CA",),
}


def _new(name: str, text: str) -> Any:
    """An option without a default, since a checkpoint to start from has its own."""
    return _option(None, f"{text} (new model: {NEW_MODEL[name]})")


TRAINER = "training, by Trainer of Transformers"
# Options of `Trainer` that most trainings need; the others are many.
SHOWN = {
    "help": "Show this and exit; --help-all shows all options of Trainer, too.",
    "output_dir": "Gets the model, its log and its checkpoints.",
    "max_steps": "Updates; -1: as many as --num_train_epochs takes.",
    "num_train_epochs": "Epochs.",
    "learning_rate": "Highest learning rate.",
    "lr_scheduler_type": "How it changes: linear, cosine, constant_with_warmup and others.",
    "warmup_steps": "Updates in which it rises; below 1 a share of all.",
    "weight_decay": "Weight decay of AdamW.",
    "per_device_train_batch_size": "Chains of a batch, without --token_budget.",
    "gradient_accumulation_steps": "Batches of an update.",
    "eval_strategy": "When to evaluate: no, steps or epoch.",
    "eval_steps": "Updates from one evaluation to the next.",
    "save_steps": "Updates from one checkpoint to the next.",
    "save_total_limit": "Checkpoints to keep; None: all.",
    "logging_steps": "Updates from one loss in the log to the next; the first and the last are there, too.",
    "bf16": "Compute in bfloat16; the weights stay in float32.",
    "use_cpu": "Leave a GPU alone.",
    "seed": "Of weights, batches and masks.",
    "report_to": "Where the log goes, too: tensorboard, wandb, none and others.",
}


class UnusableOption(ValueError):
    """What is wrong with a command line, which ends the command."""

    exit_code = 2


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Does not say that a default is None, and has lists as one would type them."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, []):
            return action.help
        text = super()._get_help_string(action)
        if not isinstance(action.default, list) or text is None:
            return text
        return text.replace("%(default)s", " ".join(map(str, action.default)).replace("%", "%%"))


@dataclass
class ModelArguments:
    """The model to train: a new one of the given shape, or one to go on from.

    Options with the name of a field of `CoordformerConfig` are that field, and None where they are not given.
    """

    _argument_group_name = "the model"

    init_from: str | None = _option(
        None,
        "Hub name or folder of a Coordformer or ESM-2 checkpoint to start from. It decides what the model is: of the "
        "options below those that say otherwise are refused, but for layers that it can be given.",
    )
    freeze: bool = _option(False, "Of the model of --init_from train only the layers that are given to it here.")
    lora_rank: int | None = _option(
        None, "As --freeze, and low-rank changes (LoRA) of its linear layers, of this rank; they are merged at the end."
    )
    sequence_encoder: str | None = _option(
        None, "Hub name or folder of an ESM-2 to put in front of a new model, frozen; needs --lm_head linear."
    )
    hidden_size: int | None = _new("hidden_size", "Width.")
    num_hidden_layers: int | None = _new("num_hidden_layers", "Layers.")
    num_attention_heads: int | None = _new("num_attention_heads", "Attention heads.")
    intermediate_size: int | None = _new("intermediate_size", "Width of the feed-forward layers.")
    position_embedding_type: str | None = _new(
        "position_embedding_type", "Positions: rotary, absolute, sinusoidal or none."
    )
    hidden_act: str | None = _new("hidden_act", "Activation of the feed-forward layers.")
    lm_head: str | None = _new("lm_head", "Head: esm, or linear (the paper's).")
    coordinate_embedding: str | None = _new(
        "coordinate_embedding",
        "linear (the paper's), quadratic (and |x|^2), local_frame (neighbors along the chain, in the residue's "
        "backbone frame) or none.",
    )
    coordinate_init: str | None = _new(
        "coordinate_init", "normal, or gaussian: the heads of the first layer start as Gaussians of distance."
    )
    num_distance_bins: int | None = _new(
        "num_distance_bins",
        "Distances between which an attention bias is linear; 0: none. Its batches are padded.",
    )
    num_qk_points: int | None = _new(
        "num_qk_points", "Query and key points of each head in invariant point attention; 0: none."
    )
    num_v_points: int | None = _option(None, "Value points of each head; of a new model as --num_qk_points.")
    num_neighbors: int | None = _new(
        "num_neighbors",
        "k of the k-nearest-neighbor graph over which messages are passed; 0: none. Needs --num_qk_points. A "
        "checkpoint with points and without messages can be given them.",
    )
    # `bool`, so that the option may stand alone; None where it is not given.
    message_gating: bool = _new(
        "message_gating", "Wider messages with a gate: more accurate, slower, need more memory."
    )
    message_attention: bool = _new(
        "message_attention", "Attention weights for the messages; a checkpoint with messages can be given them."
    )
    edge_updates: bool = _new("edge_updates", "Update edges in each layer; a checkpoint with messages can be given it.")
    coordinate_atoms: list[str] | None = field(
        default=None, metadata={"help": "Atoms of a residue that the model reads (new model: CA)"}
    )
    hidden_dropout_prob: float | None = _option(None, "Dropout after each layer; default: that of --init_from, or 0.")
    invariant_quaternions: bool = _option(
        None,
        "Of ProteinMPNN's layers on C-alphas: read nothing that depends on rotations; --init_from may get it.",
    )
    partial_backbones: bool = _option(
        None, "Residues may lack N, C or O; a checkpoint of C-alphas can be given these --coordinate_atoms so."
    )
    noise_conditioning: bool = _option(None, "Tell the model each chain's --coordinate_noise; --init_from may get it.")
    attn_implementation: str | None = _option(
        None, "varlen, sdpa, eager, flex_attention or flash_attention_2; default: varlen for packed rows, else sdpa."
    )
    compile_layers: bool = _option(False, "torch.compile each layer; packed rows are filled up to the token budget.")
    teachers: list[str] | None = field(
        default=None, metadata={"help": "Hub names or folders of models whose probabilities it also learns from"}
    )
    distillation_weight: float = _option(0.5, "Share of the loss that is the divergence to the --teachers.")
    teacher_temperature: float = _option(1.0, "Divides the logits of the --teachers.")
    muon: bool = _option(False, "Muon for the hidden matrices, AdamW for all else, with one learning rate.")
    max_shard_size: str | None = _option(None, "Largest file of the final weights, such as 15MB; default: one file.")


@dataclass
class DataArguments:
    """The chains to train on and what happens to them on their way to the model."""

    _argument_group_name = "its data"

    data: str | None = _option(None, "Folder made by `coordformer prepare`, Parquet file, or pack (.safetensors).")
    train_split: str | None = _option(None, "Value of the column `split` to train on.")
    valid_data: str | None = _option(None, "As --data, to evaluate on; default: --data.")
    valid_split: str | None = _option(None, "Value of the column `split` to evaluate on.")
    token_budget: int | None = _option(
        None,
        "Tokens of a batch. Without it a batch holds --per_device_train_batch_size random chains, padded to the "
        "longest, as in the paper.",
    )
    packing: bool = _option(
        True, "With a token budget: pack the chains into one row, without padding; False: pad chains of like length."
    )
    streaming: bool = _option(False, "Read a few shards at a time: for a folder that is too large for memory.")
    open_shards: int = _option(16, "Shards that --streaming reads side by side; a multiple of processes x workers.")
    max_length: int | None = _option(None, "Longer chains are cropped at random, in residues.")
    # A number, or a list of two.
    mlm_probability: list[float] = field(
        default_factory=lambda: [0.15],
        metadata={"help": "Share of the residues to predict; of two values each chain draws its own between."},
    )
    masking: str = _option(
        "paper", "Of these residues 80 %% are masked and 10 %% replaced (paper), or all are masked (masked15)."
    )
    rotate: bool = _option(True, "Turn each chain at random, anew in each epoch.")
    coordinate_noise: list[float] = field(
        default_factory=lambda: [0.0],
        metadata={
            "help": "Standard deviation of noise on coordinates, Å; of two values each chain draws its own between."
        },
    )
    exact_coords: float = _option(0.0, "Share of chains that --coordinate_noise leaves as they are.")
    drop_coords: float = _option(0.0, "Share of chains that come without coordinates, for one model with and without.")
    drop_atoms: float = _option(0.0, "Share of chains without atoms of the backbone: half of them have C-alphas alone.")
    split_chains: float = _option(0.0, "Share of chains that are cut in two at random, as two chains of a complex.")

    def __post_init__(self):
        for name in ("mlm_probability", "coordinate_noise"):
            value = getattr(self, name)
            if isinstance(value, list) and len(value) == 1:
                setattr(self, name, value[0])


def build_parser() -> HfArgumentParser:
    """The parser, with what Trainer has below what is ours."""
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, TrainingArguments),  # type: ignore[arg-type]
        prog="coordformer train",
        usage="coordformer train [PRESET.yaml] [OPTION ...]",
        formatter_class=_Formatter,
        allow_abbrev=False,
        description="Train a masked language model. Options override those of the preset. Run it again to go on after "
        "a stop. As all verbs it also takes --json and --quiet; --help-all shows all options of Trainer.",
    )
    parser._optionals.title = TRAINER
    parser._action_groups.append(parser._action_groups.pop(parser._action_groups.index(parser._optionals)))
    for action in parser._actions:
        if action.dest != "help":  # of --max_steps and --max-steps, which are one, messages name one
            action.option_strings = action.option_strings[:1]
    parser.error = _refuse_option  # type: ignore[method-assign]  # in one line, without that of a hundred options
    return parser


def parse_arguments(argv: Sequence[str]) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """Read options, after an optional YAML preset whose values they override.

    `--help` shows those of the model and its data, and the `SHOWN` ones of `Trainer`; `--help-all` shows all of them.

    Raises:
        UnusableOption: an option is unusable.
        ValueError: the preset is no mapping or has a key that is no option.
    """
    parser = build_parser()
    defaults: dict[str, Any] = {
        "report_to": "tensorboard" if importlib.util.find_spec("tensorboard") else "none",
        "per_device_eval_batch_size": 32,
        "logging_steps": 50,
        "logging_nan_inf_filter": False,  # to look at every loss the host would wait for the device
    }
    argv = list(argv)
    if argv and not argv[0].startswith("-"):
        defaults |= _read_preset(Path(argv.pop(0)), {action.dest: action for action in parser._actions})
    parser.set_defaults(**defaults)
    everything = "--help-all" in argv
    for action in () if everything else parser._optionals._group_actions:
        action.help = SHOWN.get(action.dest, argparse.SUPPRESS)
    argv = ["--help"] if everything else argv
    model_args, data_args, args, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if unknown:
        fix = _suggest(unknown[0], parser._option_string_actions) or "; a preset comes first, then its overrides."
        raise UnusableOption(f"{' '.join(unknown)}: no such option{fix}")
    return model_args, data_args, args  # type: ignore[return-value]


def _refuse_option(message: str) -> NoReturn:
    raise UnusableOption(f"{message}; `coordformer train --help` lists the options.")


def _suggest(name: Any, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _read_preset(path: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Options from a YAML file; `known` has argparse's action of each."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a YAML mapping of options to values.")
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"{path} sets {key!r}, which is no option{_suggest(key, known) or '.'}")
        if isinstance(value, list) and known[key].nargs not in ("+", "*"):
            raise ValueError(f"{path} sets {key!r} to the list {value}; it takes one value.")
        if isinstance(value, dict) and not key.endswith(("kwargs", "config", "args")):
            raise ValueError(f"{path} sets {key!r} to the mapping {value}; it takes one value.")
        if value is None and known[key].default is not None:
            raise ValueError(f"{path} sets {key!r} to nothing; give a value, or leave the line out.")
    # argparse checks and converts text as on the command line, and nothing else.
    return {key: str(value) if type(value) in (int, float) else value for key, value in values.items()}
