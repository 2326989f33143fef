"""What does a protein do? Fine-tuning on DeepFRI's tasks, with and without coordinates (paper, section 4).

    python examples/function/function.py --data CHAINS.parquet --annotations nrPDB-EC_2020.04_annot.tsv \
        --splits nrPDB-EC_2020.04_train.txt nrPDB-EC_2020.04_valid.txt nrPDB-EC_2020.04_test.txt \
        --checkpoint demo_output/with_coordinates --baseline demo_output/without_coordinates --tune full frozen lora

Each way of tuning predicts all terms of a chain at once: `full` changes every weight, `lora` (pip install
"coordformer[lora]") a few beside those of the attention, `head` only ESM's classification head on the mean of a chain's
embeddings, `frozen` an MLP on it. `full` and `lora` go on with the head of a CHECKPOINT that `head` left. Of the epochs
the one with the best micro AUPR on the validation chains is kept. Run it again after a stop: it goes on where it was.

OUTPUT gets a folder per run, with its predictions for the test chains and, but for `frozen`, the classifier that
`coordformer annotate` reads; --results gets report.md, results.csv, results.json and terms.csv. Of a run's folder
examples/ship.py makes one as hub_cards/coordformer-1M-ec is.
"""

import argparse
import csv
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from deepfri import match_chains, read_annotations, read_split
from scipy.special import expit
from term_metrics import micro_aupr, micro_fmax, protein_centric_fmax, score_terms
from torch import nn
from transformers import Trainer, TrainingArguments

from coordformer import CoordformerConfig, CoordformerForSequenceClassification, CoordformerProcessor
from coordformer.data.batching import ChainBatches, fetch_rows, read_lengths
from coordformer.data.collator import CoordformerDataCollator
from coordformer.data.files import write_atomically, write_json, write_text
from coordformer.data.function import FunctionCollator, label_matrix, log_odds
from coordformer.data.records import current_commit, hash_data, package_version
from coordformer.data.rows import load_rows
from coordformer.inference.annotate import predict_terms
from coordformer.inference.checkpoints import load_checkpoint
from coordformer.inference.metrics import interval
from coordformer.model.embedding import embed_chains
from coordformer.training.train import SETTINGS, earlier_training, last_whole_checkpoint, write_log

LEARNING_RATES = {"full": 3e-5, "frozen": 1e-3, "lora": 1e-3, "head": 1e-3}  # of the first two the paper's
HEAD_LEARNING_RATE = 1e-3  # of a new head on a pretrained encoder, which the rate of the head would spoil
QUICK_CHAINS, QUICK_LENGTH, QUICK_EPOCHS = 1000, 200, 3  # to train on at most; residues
MAX_LENGTH = 1024  # residues to which longer chains are cropped in training
SPLITS = ("train", "valid", "test")
MEASURES = {"micro AUPR": micro_aupr, "protein-centric Fmax": protein_centric_fmax, "micro Fmax": micro_fmax}
MODELS = ("without coordinates", "with coordinates")
FREQUENCIES = "term frequencies"
WEAK = 0.5  # Fmax below which a card warns


# ---------------------------------------------------------------------------------------------------------------------
# The task
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Task:
    """Chains of a data set that DeepFRI's lists name, and what they do.

    `rows` and `labels` (chains, terms) by split, `annotations` (indices of terms) by the id of a row, `left_out` the
    numbers of listed chains that the data do not have, or that have no term; `embeddings` keeps what `embed_task` made.
    """

    data: Path
    terms: list[str]
    names: list[str]
    rows: dict[str, Any]
    labels: dict[str, np.ndarray]
    annotations: dict[str, np.ndarray]
    left_out: dict[str, dict[str, int]]
    embeddings: dict[tuple[Path, bool], dict[str, list[np.ndarray]]] = field(default_factory=dict)


def load_task(data: Path, annotations: Path, splits: Sequence[Path], ontology: str, quick: bool = False) -> Task:
    """Read the files; a row that several lists name, as itself or by its sequence, is in the last of them alone."""
    terms, names, terms_of = read_annotations(annotations, ontology)
    rows = load_rows(data)
    lengths = read_lengths(rows)
    task = Task(data, terms, names, {}, {}, {}, {})
    taken: set[int] = set()
    for split, path in reversed(list(zip(SPLITS, splits, strict=True))):
        listed = read_split(path)
        found = {number: name for number, name in match_chains(rows, listed).items() if number not in taken}
        taken |= set(found)
        known = {number: terms_of[name] for number, name in found.items() if len(terms_of.get(name, ()))}
        task.left_out[split] = {"not in the data": len(listed) - len(found), "no term": len(found) - len(known)}
        if quick:
            short = [number for number in known if lengths[number] <= QUICK_LENGTH]
            known = {number: known[number] for number in short[:QUICK_CHAINS]}
        if not known:
            raise ValueError(f"{data} has no chain of {path} with a term of {annotations}; give data with their ids.")
        task.rows[split] = rows.select(list(known))
        task.labels[split] = label_matrix(list(known.values()), len(terms))
        task.annotations |= dict(zip(task.rows[split]["id"][:], known.values(), strict=True))
    return task


def seen_in(pretrained_on: Path, rows: Any) -> np.ndarray:
    """Which rows were in the split `train` of a data set, by id, alias or sequence: (rows,) bool."""
    before = load_rows(pretrained_on, "train")
    seen = np.isin(rows["sequence"][:], before["sequence"][:])
    seen[list(match_chains(rows, before["id"][:]))] = True
    return seen


# ---------------------------------------------------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------------------------------------------------


class PooledClassifier(nn.Module):
    """An MLP on the mean of a chain's embeddings (paper, section 4a): `embedding` (chains, width).

    1,024 wide, with one residual block, LayerNorm and dropout; the order of these and the activation are ours.
    """

    def __init__(self, width: int, num_terms: int):
        super().__init__()
        self.project = nn.Sequential(nn.Linear(width, 1024), nn.GELU(), nn.Dropout(0.1))
        self.block = nn.Sequential(nn.LayerNorm(1024), nn.Linear(1024, 1024), nn.GELU(), nn.Dropout(0.1))
        self.out = nn.Sequential(nn.LayerNorm(1024), nn.Linear(1024, num_terms))

    def forward(self, embedding: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        hidden = self.project(embedding)
        logits = self.out(hidden + self.block(hidden))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.binary_cross_entropy_with_logits(logits, labels), "logits": logits}


class HeadOnEmbeddings(nn.Module):
    """The head of a classifier that reads the mean, on means that were made before: `embedding` (chains, width)."""

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.classifier = classifier

    def forward(self, embedding: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.classifier(embedding[:, None])  # ESM's head takes the first token
        return {"loss": nn.functional.binary_cross_entropy_with_logits(logits, labels), "logits": logits}


def new_classifier(checkpoint: Path, task: Task, pooling: str = "cls") -> CoordformerForSequenceClassification:
    """The encoder of a checkpoint with a new head, on the first token of a chain (paper, section 4b) or on the mean.

    A checkpoint that is a classifier of the same terms brings its head.

    Raises:
        ValueError: that one reads a chain in another way.
    """
    labels = [f"{term} {name}".strip() for term, name in zip(task.terms, task.names, strict=True)]
    before = CoordformerConfig.from_pretrained(checkpoint)
    has_head = CoordformerForSequenceClassification.__name__ in (before.architectures or ())
    has_head = has_head and list(before.id2label.values()) == labels
    if has_head and before.classifier_pooling != pooling:
        way = before.classifier_pooling
        raise ValueError(f"The head of {checkpoint} was trained with --pooling {way}, not {pooling}; give the same.")
    model = CoordformerForSequenceClassification.from_pretrained(
        checkpoint,
        dtype=torch.float32,  # whatever is saved: updates are smaller than what bfloat16 tells apart
        classifier_pooling=pooling,
        problem_type="multi_label_classification",
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    if not has_head:
        with torch.no_grad():
            model.classifier.out_proj.bias.copy_(log_odds(task.labels["train"]))
    return model


def add_lora(model: CoordformerForSequenceClassification) -> Any:
    """Low-rank changes of queries and values (Hu et al. 2021) and the new head are trained, all else is frozen."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model, LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], modules_to_save=["classifier"])
    )


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


def make_optimizer(model: nn.Module, learning_rate: float, head_learning_rate: float) -> torch.optim.Optimizer:
    """Adam with a rate of its own for a new head; at that rate an encoder soon puts out the same for all chains."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    head = [parameter for name, parameter in trained.items() if "classifier" in name]
    rest = [parameter for name, parameter in trained.items() if "classifier" not in name]
    groups = [{"params": rest, "lr": learning_rate}, {"params": head, "lr": head_learning_rate}]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0)


def fit(
    model: nn.Module,
    train: Any,
    valid: Any,
    collator: Callable | None,
    folder: Path,
    batch_size: int,
    head_learning_rate: float = HEAD_LEARNING_RATE,
    **options: Any,
) -> dict[str, Any]:
    """Train, or go on after a stop, and leave the model as it was after the epoch with the best micro AUPR on `valid`.

    Leaves `log.csv` in the folder. Returns `trained_parameters`, `best_epoch`, `updates` until then,
    `valid_micro_aupr` of each epoch, and `training`, the settings of `coordformer train`.
    """
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        lr_scheduler_type="constant",
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="micro_aupr",
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=[],
        disable_tqdm=True,
        **options,
    )
    trainer = Trainer(
        model,
        arguments,
        data_collator=collator,
        train_dataset=train,
        eval_dataset=valid,
        compute_metrics=lambda prediction: score_terms(expit(prediction.predictions), prediction.label_ids),
        optimizers=(make_optimizer(model, arguments.learning_rate, head_learning_rate), None),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder))
    write_log(trainer.state.log_history, folder / "log.csv")
    scores = {each["epoch"]: each["eval_micro_aupr"] for each in trainer.state.log_history if "eval_micro_aupr" in each}
    return {
        "trained_parameters": trainer.get_num_trainable_parameters(),
        "best_epoch": max(scores, key=lambda epoch: scores[epoch]),
        "updates": trainer.state.best_global_step,
        "valid_micro_aupr": list(scores.values()),
        "training": {name: getattr(arguments, name) for name in SETTINGS},
    }


def tune_classifier(
    task: Task, checkpoint: Path, tune: str, folder: Path, token_budget: int, pooling: str = "cls",
    without_coords: bool = False, both: bool = False, **options: Any,
) -> tuple[np.ndarray, dict[str, Any]]:  # fmt: skip
    """Tune a whole model, or by LoRA, and save it in `folder`; the adapter of LoRA alone in `folder/adapter`.

    Returns probabilities of the test chains, and what `fit` returns.
    """
    processor = CoordformerProcessor.from_pretrained(checkpoint)
    model: Any = new_classifier(checkpoint, task, pooling)
    chains = CoordformerDataCollator(
        processor.tokenizer,
        atoms=model.config.coordinate_atoms,
        mlm_probability=0,
        drop_coords=_drop_coords(without_coords, both),
        max_length=MAX_LENGTH,
        seed=options["seed"],
    )
    train, valid = (
        ChainBatches(
            task.rows[split],
            token_budget,
            packing=False,
            max_length=MAX_LENGTH,
            seed=options["seed"],
            augment=split == "train",
        )
        for split in ("train", "valid")
    )
    if tune == "lora":
        model = add_lora(model)
    collator = FunctionCollator(chains, task.annotations, len(task.terms))
    record = fit(model, train, valid, collator, folder, batch_size=1, **options)  # of `ChainBatches`
    if tune == "lora":
        model.save_pretrained(folder / "adapter")
        model = model.merge_and_unload()
    return _save_and_predict(task, model, processor, folder, without_coords), record


def _save_and_predict(
    task: Task, model: Any, processor: CoordformerProcessor, folder: Path, without_coords: bool
) -> np.ndarray:
    """Leave the classifier for `coordformer annotate`; returns probabilities of the test chains."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    rows = task.rows["test"]
    return predict_terms(model, fetch_rows(rows, range(len(rows))), processor.tokenizer, without_coords=without_coords)


def embed_task(task: Task, checkpoint: Path, without_coords: bool) -> dict[str, list[np.ndarray]]:
    """Mean states of all chains by split, made once for all seeds."""
    key = (checkpoint, without_coords)
    if key not in task.embeddings:
        encoder, processor = load_checkpoint(checkpoint, any_head=True)
        task.embeddings[key] = {
            split: embed_chains(
                encoder, fetch_rows(rows, range(len(rows))), processor.tokenizer, without_coords=without_coords
            )
            for split, rows in task.rows.items()
        }
    return task.embeddings[key]


def _embedded_items(
    task: Task, checkpoint: Path, without_coords: bool, both: bool
) -> dict[str, list[dict[str, torch.Tensor]]]:
    """`embedding` and `labels` of all chains, by split; with `both` those without coordinates come after the others."""
    items: dict[str, list[dict[str, torch.Tensor]]] = {split: [] for split in SPLITS}
    for not_given in (False, True) if both else (without_coords,):
        for split, embeddings in embed_task(task, checkpoint, not_given).items():
            pairs = zip(map(torch.from_numpy, embeddings), torch.from_numpy(task.labels[split]), strict=True)
            items[split] += [{"embedding": embedding, "labels": labels} for embedding, labels in pairs]
    return items


def _drop_coords(without_coords: bool, both: bool) -> float:
    """Of how many of the chains the coordinates are not given in tuning."""
    return 1.0 if without_coords else 0.5 * both


def tune_head(
    task: Task, checkpoint: Path, folder: Path, without_coords: bool = False, both: bool = False, **options: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    """Train the head of a classifier on the embeddings of all chains, and save the classifier in `folder`.

    Returns what `tune_classifier` does.
    """
    items = _embedded_items(task, checkpoint, without_coords, both)
    model: Any = new_classifier(checkpoint, task, "mean")
    head = HeadOnEmbeddings(model.classifier)
    record = fit(head, items["train"], items["valid"], None, folder, batch_size=32, **options)
    processor = CoordformerProcessor.from_pretrained(checkpoint)
    return _save_and_predict(task, model.eval(), processor, folder, without_coords), record


def tune_frozen(
    task: Task, checkpoint: Path, folder: Path, without_coords: bool = False, both: bool = False, **options: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    """Train an MLP on the embeddings of all chains; returns what `tune_classifier` does."""
    items = _embedded_items(task, checkpoint, without_coords, both)
    model = PooledClassifier(len(items["train"][0]["embedding"]), len(task.terms))
    with torch.no_grad():
        model.out[-1].bias.copy_(log_odds(task.labels["train"]))
    record = fit(model, items["train"], items["valid"], None, folder, batch_size=32, **options)
    model.cpu().eval()
    with torch.no_grad():
        tested = items["test"][: len(task.rows["test"])]  # not those without coordinates, where there are both
        logits = model(torch.stack([item["embedding"] for item in tested]))["logits"]
    return logits.sigmoid().numpy(), record


EMBEDDED = {"frozen": tune_frozen, "head": tune_head}  # what is trained on embeddings that were made once


def run(task: Task, checkpoint: Path, folder: Path, settings: dict[str, Any]) -> None:
    """Tune and predict the test chains, unless it was done before: `predictions.npz`, `run.json` and `train.json`.

    Of a classifier that is saved, and was tuned with coordinates, `predictions.npz` also has `not_given`: what it
    predicts without.
    """
    path = folder / "run.json"
    before = json.loads(path.read_text())["settings"] if path.exists() else settings
    if changed := [name for name in settings if before.get(name) != settings[name]]:
        raise ValueError(f"{folder} holds a run with another {', '.join(changed)}; choose another --output.")
    if (folder / "predictions.npz").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"settings": settings})
    start = time.monotonic()
    names = ("num_train_epochs", "learning_rate", "head_learning_rate", "seed", "without_coords", "both", "bf16")
    options = {name: settings[name] for name in names}
    transformers.set_seed(options["seed"])
    # Of the code that is running: at the end another may lie there.
    source = {"command": _command(), "commit": current_commit(), "data_sha256": hash_data(task.data)}
    if settings["tune"] in EMBEDDED:
        probabilities, record = EMBEDDED[settings["tune"]](task, checkpoint, folder, **options)
    else:
        probabilities, record = tune_classifier(
            task, checkpoint, settings["tune"], folder, settings["token_budget"], settings["pooling"], **options
        )
    training = record.pop("training")
    record = {"settings": settings, **record, "seconds": round(time.monotonic() - start)}
    write_json(path, record | training_settings(task, checkpoint, settings, training))
    write_json(
        folder / "train.json",
        {"steps": record["updates"], **source, "started_from": earlier_training(checkpoint)},
    )
    predictions = {"probabilities": probabilities}
    if (folder / "config.json").exists() and not settings["without_coords"]:
        model, processor = load_checkpoint(folder, any_head=True)
        rows = task.rows["test"]
        chains = fetch_rows(rows, range(len(rows)))
        predictions["not_given"] = predict_terms(model, chains, processor.tokenizer, without_coords=True)
    write_atomically(folder / "predictions.npz", lambda temporary: _save(temporary, predictions, task))
    print(f"{folder.name}: {record['seconds']} s", flush=True)


def training_settings(
    task: Task, checkpoint: Path, settings: Mapping[str, Any], training: Mapping[str, Any]
) -> dict[str, Any]:
    """What `run.json` of `coordformer train` has of a training, of which `coordformer export` makes a card."""
    rows, embedded = task.rows["train"], settings["tune"] in EMBEDDED
    data = {
        "data": task.data.name,
        "train_split": "DeepFRI's train",
        "chains": len(rows),
        "residues": int(read_lengths(rows).sum()),
        "token_budget": None if embedded else settings["token_budget"],
        "max_length": None if embedded else MAX_LENGTH,
        "mlm_probability": 0,
        "rotate": False,
        "coordinate_noise": 0.0,
        "drop_coords": _drop_coords(settings["without_coords"], settings["both"]),
    }
    started = {"init_from": checkpoint.name, "sequence_encoder": None, "muon": False, "freeze": embedded}
    return {"data": data, "training": {**training, **started, "lora_rank": 8 if settings["tune"] == "lora" else None}}


def _save(path: Path, predictions: Mapping[str, np.ndarray], task: Task) -> None:
    with open(path, "wb") as file:  # numpy would add .npz to a name
        np.savez_compressed(file, **predictions, ids=np.array(task.rows["test"]["id"][:]))


# ---------------------------------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------------------------------


def difference_interval(
    first: np.ndarray, second: np.ndarray, labels: np.ndarray, measure: Callable, samples: int = 500
) -> list[float]:
    """95 % interval of by how much the second model scores above the first, on chains drawn with replacement.

    `first` and `second` are probabilities (seeds, chains, terms) for the same chains; the scores of seeds are averaged.
    """
    rng = np.random.default_rng(0)
    differences = []
    for _ in range(samples):
        drawn = rng.integers(len(labels), size=len(labels))
        means = [np.mean([measure(seed[drawn], labels[drawn]) for seed in model]) for model in (first, second)]
        differences.append(means[1] - means[0])
    return interval(np.array(differences))


def score_intervals(probabilities: np.ndarray, labels: np.ndarray, samples: int = 500) -> dict[str, list[float]]:
    """95 % intervals of the scores of probabilities (chains, terms), by measure: a bootstrap over chains."""
    rng = np.random.default_rng(0)
    drawn = (rng.integers(len(labels), size=len(labels)) for _ in range(samples))
    scores = [score_terms(probabilities[chains], labels[chains]) for chains in drawn]
    return {measure: interval(np.array([each[measure] for each in scores])) for measure in scores[0]}


def evaluate_folder(task: Task, folder: Path, seen: np.ndarray | None) -> dict[str, Any]:
    """Scores of a saved classifier on the test chains, with intervals, for its card: also its `evaluation.json`.

    `results` has a row for each set of chains and each model: term frequencies, and the classifier with coordinates
    given and not given.
    """
    labels, frequencies = task.labels["test"], task.labels["train"].mean(axis=0)
    predictions = np.load(folder / "predictions.npz")
    models = {FREQUENCIES: np.tile(frequencies, (len(labels), 1)), "coordinates given": predictions["probabilities"]}
    models["coordinates not given"] = predictions["not_given"]
    sets = {"all": np.ones(len(labels), dtype=bool)} | ({} if seen is None else {"not seen in pretraining": ~seen})
    results = []
    for name, chosen in sets.items():
        for model, probabilities in models.items() if labels[chosen].any() else ():
            row: dict[str, Any] = {"test_chains": name, "chains": int(chosen.sum()), "model": model}
            scores = score_terms(probabilities[chosen], labels[chosen])
            intervals = score_intervals(probabilities[chosen], labels[chosen])
            for measure, value in scores.items():
                row |= {measure: value, f"{measure}_interval": intervals[measure]}
            results.append(row)
    report = {"data": task.data.name, "split": "DeepFRI's test", "terms": len(task.terms), "results": results}
    given, ids = predictions["probabilities"], predictions["ids"].tolist()
    tops = [
        (task.terms[best], round(float(row[best]), 4)) for row, best in zip(given, given.argmax(axis=1), strict=True)
    ]
    report["most_probable"] = dict(zip(ids, tops, strict=True))  # so that anybody can compare
    lines = [
        f"| chains of {task.data.name} | model | {' | '.join(MEASURES)} |", "| --- " * (2 + len(MEASURES)) + "|"
    ]  # fmt: skip
    for row in results:
        values = (f"{row[each]:.3f} ({{:.3f}} to {{:.3f}})".format(*row[f"{each}_interval"]) for each in scores)
        lines.append(f"| {row['test_chains']} ({row['chains']}) | {row['model']} | {' | '.join(values)} |")
    words = (
        "DeepFRI's test chains; in parentheses 95 % intervals of a bootstrap over chains. `term frequencies` guesses"
    )
    lines += ["", f"{words}", "each term by its share of the training chains. The numbers are in `evaluation.json`."]
    if seen is not None:
        lines += ["Of the chains that pretraining has seen it had no labels."]
    lines += [
        "",
        "**All chains that it was trained and tested on have a term.** It gives terms to others, too: it does not tell",
        "whether a protein has one, such as whether it is an enzyme.",
    ]
    best = next(row for row in results if row["model"] == "coordinates given")["protein_centric_fmax"]
    if best < WEAK:
        lines += [
            "",
            "**This classifier is weak.** Even with coordinates, at the best threshold, its protein-centric F1 is "
            f"{best:.2f}:",
            "most of what it says of a chain is wrong or missing. Take it as a hint of where to look, not as an "
            "annotation.",
        ]
    write_json(folder / "evaluation.json", report)
    write_text(folder / "evaluation.md", "\n".join(lines) + "\n")
    return report


def score_runs(
    predictions: Mapping[tuple[str, str], np.ndarray],
    labels: np.ndarray,
    frequencies: np.ndarray,
    sets: Mapping[str, np.ndarray],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Scores of each run, and differences between the two models.

    Args:
        predictions: probabilities (seeds, chains, terms) by way of tuning and model.
        labels: (chains, terms).
        frequencies: share of the training chains that have each term, (terms,): a guess to compare with.
        sets: which chains belong to each set, (chains,) bool.
    """
    scores, differences = [], []
    for name, chosen in sets.items():
        truth = labels[chosen]
        guess = np.tile(frequencies, (len(truth), 1))
        count = {"test_chains": name, "chains": len(truth), "positives": int(truth.sum())}
        scores.append({"tune": "", "model": FREQUENCIES, "seed": "", **count, **score_terms(guess, truth)})
        for (tune, model), probabilities in predictions.items():
            for seed, one in enumerate(probabilities):
                scores.append({"tune": tune, "model": model, "seed": seed, **count, **score_terms(one[chosen], truth)})
        for tune in dict.fromkeys(tune for tune, _ in predictions):
            pair = [predictions[tune, model][:, chosen] for model in MODELS if (tune, model) in predictions]
            for measure in MEASURES.values() if len(pair) == 2 else ():
                low, high = difference_interval(*pair, truth, measure)
                row = {"tune": tune, "test_chains": name, "measure": measure.__name__, "low": low, "high": high}
                differences.append(row)
    return scores, differences


def describe(scores: Sequence[dict], differences: Sequence[dict], about: dict[str, Any]) -> str:
    """The report, in Markdown."""
    models = [model for model in (FREQUENCIES, *MODELS) if any(row["model"] == model for row in scores)]
    head = ["tuned", "test chains", "score", *models, *["difference"] * bool(differences)]
    lines = ["# Protein function", "", f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for tune in about["tune"]:
        for name in dict.fromkeys(row["test_chains"] for row in scores):
            for title, measure in ((title, measure.__name__) for title, measure in MEASURES.items()):
                of_set = [row for row in scores if row["test_chains"] == name]
                values = {
                    model: [row[measure] for row in of_set if row["model"] == model and row["tune"] in ("", tune)]
                    for model in models
                }
                cells = [tune, f"{name} ({of_set[0]['chains']})", title]
                for each in values.values():
                    several = f" ({min(each):.3f} to {max(each):.3f})" if len(each) > 1 else ""
                    cells.append(f"{np.mean(each):.3f}{several}" if each else "")
                for row in differences:
                    if (row["tune"], row["test_chains"], row["measure"]) == (tune, name, measure):
                        without, with_coordinates = (np.mean(values[model]) for model in MODELS)
                        gain = with_coordinates - without
                        cells.append(f"{gain:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})")
                lines.append(f"| {' | '.join(cells)} |")
    packages = ", ".join(f"{package} {number}" for package, number in about["versions"].items())
    chains = ", ".join(f"{count:,} {split}" for split, count in about["chains"].items())
    left_out = "; ".join(
        f"{split}: " + ", ".join(f"{count:,} {why}" for why, count in counts.items())
        for split, counts in about["left_out"].items()
    )
    lines += [
        "",
        f"Means over {about['seeds']} seed(s) of tuning (with several, from the lowest to the highest)"
        + "; differences with 95 % intervals of a bootstrap over the test chains, the same ones for both models"
        * bool(differences)
        + ".",
        "",
        f"- Chains: {chains}. Of the chains of the lists left out: {left_out}.",
        f"- Terms: {about['terms']:,}, of which {about['terms_without_training_chain']:,} have no training chain and "
        f"cannot be learned; their {about['positives_without_training_chain']:,} positives among the test chains count "
        "like those of any other term.",
        f"- `{about['command']}`, {about['seconds'] / 60:.1f} minutes of tuning and predicting on {about['machine']}; "
        f"{packages}.",
    ]
    return "\n".join(lines) + "\n"


def _without_folder(option: str) -> str:
    """Where a file lies on this machine is of no use elsewhere."""
    return Path(option).name if option.startswith(("/", "..")) else option


def _says_both(folder: Path) -> bool:
    """Whether a run predicted with coordinates and without."""
    with np.load(folder / "predictions.npz") as predictions:
        return "not_given" in predictions


def _command() -> str:
    return " ".join(["python examples/function/function.py", *map(_without_folder, sys.argv[1:])])


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_results(task: Task, arguments: argparse.Namespace, folders: Mapping[tuple[str, str], Sequence[Path]]) -> None:
    """Score what was predicted; `folders` has those of the seeds by way of tuning and model."""
    ids = task.rows["test"]["id"][:]
    predictions, records = {}, {}
    for key, seeds in folders.items():
        files = [np.load(folder / "predictions.npz") for folder in seeds]
        assert all(file["ids"].tolist() == list(ids) for file in files)
        predictions[key] = np.stack([file["probabilities"] for file in files])
        records |= {folder.name: json.loads((folder / "run.json").read_text()) for folder in seeds}
    sets = {"all": np.ones(len(ids), dtype=bool)}
    seen = None
    if arguments.pretrained_on is not None:
        seen = seen_in(arguments.pretrained_on, task.rows["test"])
        sets |= {"seen in pretraining": seen, "not seen": ~seen}
    labels = task.labels["test"]
    scores, differences = score_runs(
        predictions,
        labels,
        task.labels["train"].mean(axis=0),
        {name: chosen for name, chosen in sets.items() if labels[chosen].any()},
    )
    never = ~task.labels["train"].any(axis=0)
    about = {
        "command": _command(),
        "tune": arguments.tune,
        "seeds": arguments.seeds,
        "chains": {split: len(rows) for split, rows in task.rows.items()},
        "left_out": task.left_out,
        "terms": len(task.terms),
        "terms_without_training_chain": int(never.sum()),
        "positives_without_training_chain": int(labels[:, never].sum()),
        "seconds": sum(record["seconds"] for record in records.values()),
        "machine": f"{os.cpu_count()} cores of {platform.machine()}",
        "versions": {"coordformer": package_version()}
        | {package: version(package) for package in ("torch", "transformers")},
    }
    results = arguments.results or arguments.output
    results.mkdir(parents=True, exist_ok=True)
    write_csv(results / "results.csv", scores)
    positives = {split: task.labels[split].sum(axis=0).astype(int).tolist() for split in SPLITS}
    columns = zip(task.terms, task.names, *positives.values(), strict=True)
    write_csv(results / "terms.csv", [dict(zip(("term", "name", *SPLITS), row, strict=True)) for row in columns])
    saved = {folder.name: folder for seeds in folders.values() for folder in seeds if _says_both(folder)}
    evaluations = {name: evaluate_folder(task, folder, seen) for name, folder in saved.items()}
    summary = {**about, "differences": differences, "runs": records, "evaluations": evaluations}
    write_json(results / "results.json", summary)
    report = describe(scores, differences, about)
    write_text(results / "report.md", report)
    print(report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="CHAINS.parquet", help="or a folder of them")
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE.tsv", help="of DeepFRI, EC or GO")
    parser.add_argument("--splits", nargs=3, type=Path, required=True, metavar=("TRAIN", "VALID", "TEST"))
    parser.add_argument("--ontology", default="molecular_function", help="of GO terms (default: %(default)s)")
    shipped = Path(__file__).resolve().parents[2] / "hub_cards" / "coordformer-1M-pdb"
    parser.add_argument(
        "--checkpoint", type=Path, default=shipped, metavar="FOLDER",
        help="pretrained with coordinates (default: coordformer-1M-pdb of the repository)",
    )  # fmt: skip
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--baseline", type=Path, metavar="FOLDER", help="pretrained without coordinates")
    other.add_argument("--without_coords", action="store_true", help="also the checkpoint itself, given no coordinates")
    parser.add_argument("--pretrained_on", type=Path, metavar="CHAINS.parquet", help="both have seen its split train")
    parser.add_argument("--tune", nargs="+", choices=LEARNING_RATES, default=["full"], help="default: full")
    parser.add_argument(
        "--pooling", choices=("cls", "mean"), default="cls", help="what full and lora read of a chain (default: cls)"
    )
    parser.add_argument("--both", action="store_true", help="tune on chains of which half are given no coordinates")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16; weights stay in float32")
    parser.add_argument("--epochs", type=int, help="default: 20, with --quick 3")
    parser.add_argument("--learning_rate", type=float, help="default: 3e-5 for full, else 1e-3")
    parser.add_argument(
        "--head_learning_rate", type=float, default=HEAD_LEARNING_RATE, help="of full and lora (default: %(default)s)"
    )
    parser.add_argument("--token_budget", type=int, default=8192, help="tokens of a batch (default: %(default)s)")
    parser.add_argument("--seeds", type=int, help="number of runs of each kind (default: 3, with --quick 1)")
    parser.add_argument("--quick", action="store_true", help="fewer chains, epochs and seeds")
    parser.add_argument("--output", type=Path, default=Path("runs/function"), metavar="FOLDER")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="default: OUTPUT")
    arguments = parser.parse_args()
    arguments.epochs = arguments.epochs or (QUICK_EPOCHS if arguments.quick else 20)
    arguments.seeds = arguments.seeds or (1 if arguments.quick else 3)
    transformers.logging.set_verbosity_error()  # that the head is new is meant
    transformers.logging.disable_progress_bar()
    task = load_task(arguments.data, arguments.annotations, arguments.splits, arguments.ontology, arguments.quick)
    checkpoints = {"with coordinates": arguments.checkpoint}
    if arguments.without_coords:
        checkpoints["without coordinates"] = arguments.checkpoint
    elif arguments.baseline is not None:
        checkpoints["without coordinates"] = arguments.baseline
    folders: dict[tuple[str, str], list[Path]] = {}
    for tune in arguments.tune:
        for model, checkpoint in checkpoints.items():
            for seed in range(arguments.seeds):
                folder = arguments.output / f"{tune}_{model.replace(' ', '_')}_{seed}"
                settings = {
                    "tune": tune,
                    "checkpoint": checkpoint.name,
                    "num_train_epochs": arguments.epochs,
                    "learning_rate": arguments.learning_rate or LEARNING_RATES[tune],
                    "head_learning_rate": arguments.head_learning_rate,
                    "token_budget": arguments.token_budget,
                    "pooling": "mean" if tune in EMBEDDED else arguments.pooling,
                    "bf16": arguments.bf16,
                    "seed": seed,
                    "both": arguments.both,
                    "without_coords": arguments.without_coords and model == "without coordinates",
                    "chains": {split: len(rows) for split, rows in task.rows.items()},
                    "terms": len(task.terms),
                }
                run(task, checkpoint, folder, settings)
                folders.setdefault((tune, model), []).append(folder)
    write_results(task, arguments, folders)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(str(error))
