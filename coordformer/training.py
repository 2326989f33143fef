"""Masked-LM training with `Trainer`, and evaluation under the two protocols.

`train` and `evaluate` are what `coordformer train`, `coordformer evaluate`, `examples/pretraining` and `make demo` run.
"""

import difflib
import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerState,
    TrainingArguments,
)

from .configuration_coordformer import CoordformerConfig
from .conversion import from_esm
from .data_collator import PROTOCOLS, CoordformerDataCollator
from .dataset import ChainBatches, fetch_rows, load_rows, write_atomically
from .metrics import bootstrap, count_predictions, summarise
from .modeling_coordformer import CoordformerForMaskedLM
from .processing_coordformer import SPECIAL_TOKENS, CoordformerProcessor, chain_arrays
from .structure import AMINO_ACIDS

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
    hidden_size: int = field(default=320, metadata={"help": "Width (of a new model, as all that follows)."})
    num_hidden_layers: int = field(default=6, metadata={"help": "Layers."})
    num_attention_heads: int = field(default=20, metadata={"help": "Attention heads."})
    intermediate_size: int = field(default=1280, metadata={"help": "Width of the feed-forward layers."})
    position_embedding_type: str = field(default="rotary", metadata={"help": "rotary, absolute, sinusoidal or none."})
    hidden_act: str = field(default="gelu", metadata={"help": "Activation of the feed-forward layers."})
    lm_head: str = field(default="esm", metadata={"help": "esm, or linear (the paper's)."})
    coordinate_embedding: str = field(
        default="linear", metadata={"help": "linear (the paper's), quadratic, or none: a model without structure."}
    )
    coordinate_atoms: list[str] = field(
        default_factory=lambda: ["CA"], metadata={"help": "Atoms of a residue that the model reads."}
    )


@dataclass
class DataArguments:
    """The chains to train on and what happens to them on their way to the model."""

    data: str | None = field(default=None, metadata={"help": "Folder made by `coordformer prepare`, or Parquet file."})
    train_split: str | None = field(default=None, metadata={"help": "Value of the column `split` to train on."})
    valid_data: str | None = field(default=None, metadata={"help": "As --data, to evaluate on; default: --data."})
    valid_split: str | None = field(default=None, metadata={"help": "Value of the column `split` to evaluate on."})
    token_budget: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of a batch, padding included; chains of like length meet. Without it a batch holds "
            "--per_device_train_batch_size random chains, as in the paper."
        },
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
    parser = HfArgumentParser(kinds, prog="coordformer train")
    tensorboard = importlib.util.find_spec("tensorboard") is not None
    defaults: dict[str, Any] = {
        "report_to": "tensorboard" if tensorboard else "none",
        "per_device_eval_batch_size": 32,
        "logging_steps": 50,
    }
    argv = list(argv)
    if argv and not argv[0].startswith("-"):
        defaults |= _read_preset(Path(argv.pop(0)), {action.dest for action in parser._actions})
    parser.set_defaults(**defaults)
    model_args, data_args, args, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if unknown:
        near = difflib.get_close_matches(unknown[0], parser._option_string_actions, n=1)
        raise ValueError(
            f"{' '.join(unknown)}: no such option"
            + (f"; did you mean {near[0]}?" if near else "; a preset comes first, then its overrides.")
        )
    return model_args, data_args, args  # type: ignore[return-value]


def _read_preset(path: Path, known: set[str]) -> dict[str, Any]:
    """Options from a YAML file."""
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
    # argparse checks and converts text as on the command line, and nothing else.
    return {key: str(value) if type(value) in (int, float) else value for key, value in values.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


def build_model(arguments: ModelArguments) -> CoordformerForMaskedLM:
    """A new model, or the one in `init_from` with the coordinate fields of the arguments."""
    atoms = arguments.coordinate_atoms
    coordinates = {
        "coordinate_embedding": arguments.coordinate_embedding,
        "coordinate_atoms": (atoms,) if isinstance(atoms, str) else tuple(atoms),
    }
    if arguments.init_from is None:
        shape = {name: value for name, value in asdict(arguments).items() if name != "init_from"}
        try:
            config = CoordformerConfig(**shape | coordinates)
        except StrictDataclassError as error:  # no ValueError, and in two lines
            raise ValueError(" ".join(str(error.__cause__ or error).split())) from error
        return CoordformerForMaskedLM(config)
    if AutoConfig.from_pretrained(arguments.init_from).model_type == "esm":
        return from_esm(arguments.init_from, **coordinates)
    model = AutoModelForMaskedLM.from_pretrained(arguments.init_from)
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


def _check_same_run(output: Path, settings: dict[str, dict[str, Any]]) -> None:
    """Refuse a folder that holds another run; remember the settings of a new one in `run.json`."""
    path = output / "run.json"
    settings = json.loads(json.dumps(settings))
    if not path.exists():
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: temporary.write_text(json.dumps(settings, indent=2) + "\n"))
        return
    before = json.loads(path.read_text())
    # The same data may lie elsewhere by now; its size stands for it.
    passing = {"transformers_version", "data", "valid_data"}
    changed = [
        f"{name}: {before[part].get(name)!r} -> {value!r}"
        for part, values in settings.items()
        for name, value in values.items()
        if name not in passing and before[part].get(name) != value
    ]
    if changed:
        raise ValueError(
            f"{output} holds another run ({'; '.join(changed)}). Choose another --output_dir, or delete it."
        )


class _EvaluationRows(torch.utils.data.Dataset):
    """Chains one by one, longest first, masked the same way at every evaluation."""

    def __init__(self, rows: Dataset):
        self.rows = rows
        self.order = np.argsort(-np.asarray(rows.with_format("numpy")["length"][:]), kind="stable")

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return fetch_rows(self.rows, [self.order[index]])[0] | {"epoch": 0, "augment": False}


def train(model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments) -> dict[str, Any]:
    """Train, or go on with a training that was stopped; leave a checkpoint, its log and its loss curve.

    `args.output_dir` gets the model and processor, `log.csv`, `loss.png`, `run.json` (the settings) and the
    `checkpoint-*` folders. If it holds a whole checkpoint of the same run already, training goes on from there.

    Returns:
        `steps`, `residues_per_epoch`, `padding_share`, and the last evaluation's metrics where there was one.

    Raises:
        ValueError: an argument is unusable, or `output_dir` belongs to another run.
    """
    if data_args.data is None:
        raise ValueError("--data is missing: a folder made by `coordformer prepare`, or a Parquet file.")
    output = Path(str(args.output_dir))
    rows = load_rows(data_args.data, data_args.train_split)
    valid_rows = None
    if data_args.valid_data is not None or data_args.valid_split is not None:
        valid_rows = load_rows(data_args.valid_data or data_args.data, data_args.valid_split)
        if shared := set(rows["id"][:]) & set(valid_rows["id"][:]):
            raise ValueError(
                f"{len(shared)} chains, such as {min(shared)}, are both to train and to evaluate on; set them apart by "
                "--train_split, --valid_split or --valid_data."
            )
    elif args.eval_strategy != "no":
        raise ValueError("--eval_strategy needs chains to evaluate on; set --valid_data or --valid_split.")
    if args.per_device_train_batch_size < 1:
        raise ValueError(f"--per_device_train_batch_size is {args.per_device_train_batch_size}; it is at least 1.")

    # Before the model is made, so that its weights depend on the seed alone.
    torch.manual_seed(args.seed)
    model = build_model(model_args)
    if model_args.init_from is not None and Path(model_args.init_from, "processor_config.json").exists():
        processor = CoordformerProcessor.from_pretrained(model_args.init_from)
    else:
        processor = CoordformerProcessor(coordinate_atoms=model.config.coordinate_atoms)
    chain_arrays(fetch_rows(rows, [0])[0], model.config.coordinate_atoms)  # has the data the atoms of the model?
    tokenizer = processor.tokenizer
    batches = ChainBatches(
        rows,
        token_budget=data_args.token_budget,
        chains_per_batch=args.per_device_train_batch_size if data_args.token_budget is None else None,
        max_length=data_args.max_length,
        seed=args.seed,
    )
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
    residues = int(batches.lengths.sum()) - SPECIAL_TOKENS * len(rows)
    if args.should_save:
        names = ("seed", "per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "optim",
                 "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay")  # fmt: skip
        training = {name: getattr(args, name) for name in names} | {"init_from": model_args.init_from}
        data = {**asdict(data_args), "chains": len(rows), "residues": residues}
        _check_same_run(output, {"model": model.config.to_dict(), "data": data, "training": training})

    # An item of the data set is a whole batch already, in an order of its own.
    args.per_device_train_batch_size = 1
    args.train_sampling_strategy = "sequential"
    args.remove_unused_columns = False
    letters = letter_ids(tokenizer)
    trainer = Trainer(
        model=model,
        args=args,
        data_collator=collator,
        train_dataset=batches,
        eval_dataset=None if valid_rows is None else _EvaluationRows(valid_rows),
        processing_class=processor,
        compute_metrics=lambda prediction: summarise(np.asarray(prediction.predictions), letters),
        preprocess_logits_for_metrics=count_predictions,
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
        model.load_state_dict(type(model).from_pretrained(checkpoint).state_dict())
        trainer.state = state
    else:
        if checkpoint is not None:
            logger.warning("Going on from %s.", checkpoint)
        trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()

    summary: dict[str, Any] = {
        "steps": trainer.state.global_step,
        "residues_per_epoch": residues,
        "padding_share": round(batches.padding_share(), 4),
    }
    if valid_rows is not None:
        summary["valid"] = trainer.evaluate()
    if args.should_save:
        write_log(trainer.state.log_history, output / "log.csv")
        plot_losses({output.name: trainer.state.log_history}, output / "loss.png")
        (output / "train.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation
# ---------------------------------------------------------------------------------------------------------------------


def letter_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Token ids of the 20 amino acids by letter."""
    return {letter: tokenizer.get_vocab()[letter] for letter in AMINO_ACIDS}


def window_starts(length: int, window: int) -> list[int]:
    """First residues of windows that cover a chain and overlap by half; the last one ends with the chain."""
    return [*range(0, max(length - window, 0), max(window // 2, 1)), max(length - window, 0)]


@torch.no_grad()
def predict_logits(
    model: PreTrainedModel, batch: Mapping[str, torch.Tensor], window: int, windows_at_once: int = 8
) -> torch.Tensor:
    """Logits (batch, length, vocabulary) of a right-padded batch, whatever the length of its chains.

    A chain of more than `window` residues is predicted in windows that overlap by half, and their logits are averaged.
    Each window is a chain to the model, with its own `<cls>`, `<eos>` and centre.
    """
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    if max(lengths) - SPECIAL_TOKENS <= window:
        return model(**batch).logits
    rows = []
    for row, length in enumerate(lengths):
        residues = length - SPECIAL_TOKENS
        inside = min(window, residues)
        tokens = [[0, *range(first + 1, first + 1 + inside), length - 1] for first in window_starts(residues, inside)]
        total = torch.zeros(max(lengths), 1 + model.config.vocab_size, device=model.device)
        for index in torch.tensor(tokens, device=model.device).split(windows_at_once):
            logits = model(**{name: values[row][index] for name, values in batch.items()}).logits.float()
            # One column more counts how many windows a token was in.
            total.index_put_((index,), nn.functional.pad(logits, (0, 1), value=1.0), accumulate=True)
        rows.append(total[:, :-1] / total[:, -1:].clamp(min=1))
    return torch.stack(rows)


@torch.no_grad()
def count_chains(
    model: PreTrainedModel,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    protocol: str = "masked15",
    *,
    draws: int = 3,
    without_coords: bool = False,
    token_budget: int = 8192,
    window: int = 1024,
    progress: bool = True,
) -> np.ndarray:
    """Predict masked residues of every chain under a protocol.

    Args:
        model: a masked-LM Coordformer.
        rows: chains with the columns of `dataset.SCHEMA`.
        tokenizer: of the model.
        protocol: `"paper"` (15 % of the residues, of these 80 % masked, 10 % another residue, 10 % unchanged; softmax
            over the vocabulary) or `"masked15"` (15 % of the residues with coordinates and without X, all masked;
            softmax over the 20 amino acids). What is chosen depends on the draw and the chain's id alone.
        draws: how many times the residues are chosen anew.
        without_coords: withhold all coordinates; the same residues are chosen.
        token_budget: tokens of a batch; the longest chain, or window of it, fits in any case.
        window: chains with more residues are predicted in overlapping windows of this many.
        progress: show a progress bar.

    Returns:
        Counts as in `metrics.count_predictions`, (draws, chains, vocabulary, 3), chains in the order of `rows`.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"`protocol` is {protocol!r}; choose one of {', '.join(PROTOCOLS)}.")
    for name, value, least in (("draws", draws, 1), ("token_budget", token_budget, 1), ("window", window, 2)):
        if value < least:
            raise ValueError(f"`{name}` is {value}; it must be at least {least}.")
    collator = CoordformerDataCollator(
        tokenizer,
        atoms=model.config.coordinate_atoms,
        dim=model.config.coordinate_dim,
        masking=protocol,
        rotate=False,
    )
    candidates = list(letter_ids(tokenizer).values()) if protocol == "masked15" else None
    longest = min(window, int(max(rows.with_format("numpy")["length"][:]))) + SPECIAL_TOKENS
    token_budget = max(token_budget, longest)
    batches = ChainBatches(rows, token_budget=token_budget, max_length=window, augment=False)
    model.eval()
    counts = np.zeros((draws, len(rows), model.config.vocab_size, 3))
    with tqdm(total=draws * len(rows), unit="chain", desc=protocol, disable=not progress) as bar:
        for draw in range(draws):
            batches.set_epoch(draw)
            for number, indices in enumerate(batches.order()):
                batch = {name: value.to(model.device) for name, value in collator([batches[number]]).items()}
                labels = batch.pop("labels")
                if without_coords:
                    del batch["coords"]
                logits = predict_logits(model, batch, window, windows_at_once=token_budget // longest)
                counts[draw, indices] = count_predictions(logits, labels, candidates).cpu().numpy()
                bar.update(len(indices))
    return counts


def summarise_draws(counts: np.ndarray, letters: Mapping[str, int]) -> dict[str, Any]:
    """What is reported of `count_chains`: all draws together, the spread over them, and a bootstrap over chains."""
    summary = summarise(counts, letters)
    by_draw = [summarise(draw) for draw in counts]
    # One chain's draws are not independent: the bootstrap draws chains.
    intervals = bootstrap({"model": counts.sum(axis=0)})["model"]
    return {
        "perplexity": summary["perplexity"],
        "perplexity_interval": intervals["perplexity"],
        "perplexity_by_draw": [draw["perplexity"] for draw in by_draw],
        "recovery": summary["recovery"],
        "recovery_interval": intervals["recovery"],
        "recovery_by_draw": [draw["recovery"] for draw in by_draw],
        "recovery_by_residue": summary["recovery_by_residue"],
        "predictions": summary["residues"],
    }


def load_checkpoint(checkpoint: str | Path, dtype: str = "float32") -> tuple[PreTrainedModel, CoordformerProcessor]:
    """A masked-LM Coordformer, on the GPU if there is one, and its processor.

    Raises:
        ValueError: the folder or name holds no such model, or the processor is missing.
    """
    fix = "give a folder that `coordformer train` wrote, or the name of a Coordformer on the Hub"
    if Path(checkpoint).is_dir() and not (Path(checkpoint) / "processor_config.json").exists():
        raise ValueError(
            f"{checkpoint} holds no processor; {fix}, or add it by CoordformerProcessor().save_pretrained."
        )
    try:
        config = AutoConfig.from_pretrained(checkpoint)
        if config.model_type != CoordformerConfig.model_type:
            raise ValueError(f"it holds a {config.model_type} model")
        model = AutoModelForMaskedLM.from_pretrained(checkpoint, config=config, dtype=getattr(torch, dtype))
        processor = CoordformerProcessor.from_pretrained(checkpoint)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{checkpoint} cannot be loaded ({' '.join(str(error).split())}); {fix}.") from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), processor


def evaluate(
    checkpoint: str | Path,
    data: str | Path,
    *,
    split: str | None = None,
    protocols: Sequence[str] = PROTOCOLS,
    draws: int = 3,
    without_coords: bool = False,
    dtype: str = "float32",
    token_budget: int = 8192,
    window: int = 1024,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate a checkpoint on a data set; the arguments are those of `count_chains`.

    Returns:
        `checkpoint`, `data`, `split`, `coordinates`, `dtype`, `chains`, `residues`, and for each protocol what
        `summarise_draws` returns.
    """
    rows = load_rows(data, split)
    model, processor = load_checkpoint(checkpoint, dtype)
    tokenizer = processor.tokenizer
    report: dict[str, Any] = {
        "checkpoint": Path(checkpoint).name,
        "data": Path(data).name,
        "split": split,
        "coordinates": "withheld" if without_coords else model.config.coordinate_embedding,
        "dtype": dtype,
        "chains": len(rows),
        "residues": int(np.sum(rows.with_format("numpy")["length"][:])),
    }
    for protocol in protocols:
        counts = count_chains(
            model,
            rows,
            tokenizer,
            protocol,
            draws=draws,
            without_coords=without_coords,
            token_budget=token_budget,
            window=window,
            progress=progress,
        )
        report[protocol] = summarise_draws(counts, letter_ids(tokenizer))
    return report


# ---------------------------------------------------------------------------------------------------------------------
# Logs and figures
# ---------------------------------------------------------------------------------------------------------------------


def write_log(history: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write the numbers of `trainer.state.log_history` as CSV: step, metric, value."""
    lines = ["step,metric,value"]
    for entry in history:
        for name, value in entry.items():
            if name != "step" and isinstance(value, (int, float)):
                lines.append(f"{entry['step']},{name},{value!r}")
    Path(path).write_text("\n".join(lines) + "\n")


def _new_figure(size: tuple[float, float], path: str | Path) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning('%s was not drawn: pip install "coordformer[figures]"', path)
        return None
    return Figure(figsize=size, layout="constrained")


def plot_losses(histories: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path) -> None:
    """Training loss of one or several runs against the update, and their evaluations, as PNG."""
    if (figure := _new_figure((6, 4), path)) is None:
        return
    axes = figure.subplots()
    for index, (name, history) in enumerate(histories.items()):
        train_points = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
        # Of all residues alike; Trainer's own `eval_loss` averages over batches.
        valid_points = [
            (entry["step"], np.log(entry["eval_perplexity"])) for entry in history if "eval_perplexity" in entry
        ]
        axes.plot(*zip(*train_points, strict=True), color=f"C{index}", label=f"{name}, training")
        if valid_points:
            axes.plot(*zip(*valid_points, strict=True), "o--", color=f"C{index}", label=f"{name}, held out")
    axes.set(xlabel="update", ylabel="cross-entropy of masked residues (nats)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def plot_recovery(recoveries: Mapping[str, Mapping[str, float]], path: str | Path) -> None:
    """Recovery by residue of one or several models, as PNG; the residues best recovered by the last come first."""
    last = list(recoveries.values())[-1]
    letters = sorted(last, key=lambda letter: -last[letter])
    if (figure := _new_figure((8, 4), path)) is None:
        return
    axes = figure.subplots()
    width = 0.8 / len(recoveries)
    for index, (name, recovery) in enumerate(recoveries.items()):
        places = np.arange(len(letters)) + (index - (len(recoveries) - 1) / 2) * width
        axes.bar(places, [100 * recovery.get(letter, 0.0) for letter in letters], width, label=name)
    axes.set_xticks(range(len(letters)), letters)
    axes.set(xlabel="residue", ylabel="recovered when masked (%)")
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
