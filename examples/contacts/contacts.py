"""Do attention maps hold contacts? ESM's contact head on frozen encoders, with coordinates given and not given.

    python examples/contacts/contacts.py                                (coordformer-1M-pdb of the repository)
    python examples/contacts/contacts.py demo_output/with_coordinates   (the demo's two; 2.6 minutes of CPU time)
    python examples/contacts/contacts.py --quick                        (fewer updates and chains)

Trains one head on CHECKPOINT with coordinates given, one with none given, and one on the model without coordinates if
there is one, with `Trainer`; measures precision on held-out chains. OUTPUT gets report.md,
precision.csv, results.json, contacts.png and the checkpoints, of which `coordformer contacts` predicts. With
`--heads both` there is one head, trained on chains of which half have no coordinates, to serve with and without;
examples/ship.py makes a folder of it as hub_cards/coordformer-1M-contacts is. Heads that are there are not trained
again.
"""

import argparse
import csv
import json
import math
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainingArguments

import coordformer
from coordformer import CoordformerForContactPrediction, CoordformerProcessor
from coordformer.data.batching import ChainBatches, fetch_rows
from coordformer.data.collator import CoordformerDataCollator
from coordformer.data.contacts import ContactCollator, chain_labels
from coordformer.data.files import write_json, write_text
from coordformer.data.records import current_commit, hash_data
from coordformer.data.rows import load_rows
from coordformer.inference.contacts import measure_precision, predict_contacts
from coordformer.inference.figures import plot_contacts
from coordformer.inference.metrics import CUTS, RANGES, describe_precision, interval, precision_at, resample
from coordformer.training.train import SETTINGS, earlier_training, write_log

ROOT = Path(__file__).resolve().parents[2]
CHAINS = ROOT / "examples" / "data" / "chains.parquet"
# Of a head: the checkpoint it is trained on, and the share of the chains whose coordinates are not given in that.
HEADS = {
    "given": ("with coordinates", 0.0),
    "not_given": ("with coordinates", 1.0),
    "without": ("without coordinates", 0.0),
    "both": ("with coordinates", 0.5),
}
# What is measured, in the order of the tables: the head, and whether it gets no coordinates.
RUNS = {
    "coordinates given": ("given", False),
    "coordinates not given": ("not_given", True),
    "model without coordinates": ("without", False),
    "head of `given`, coordinates not given": ("given", True),
    "one head, coordinates given": ("both", False),
    "one head, coordinates not given": ("both", True),
}
BASELINES = ("nearest in sequence", "best possible")  # that cards name


def freeze_encoder(model: CoordformerForContactPrediction) -> None:
    """Let training change the contact head alone: logistic regression on the encoder's attention maps, as ESM's is."""
    model.requires_grad_(False)
    model.coordformer.contact_head.requires_grad_(True)


def train_head(checkpoint: Path, output: Path, drop_coords: float, options: argparse.Namespace) -> dict[str, Any]:
    """Train a contact head on a masked language model, the encoder frozen; with --finetune both after that.

    Leaves `run.json`, `train.json` and `log.csv` as `coordformer train` does, of which `coordformer export` makes a
    card. Returns what is in `head` of the first.
    """
    names = ("steps", "token_budget", "seed", "finetune")
    settings = {"checkpoint": checkpoint.name, "drop_coords": drop_coords}
    settings |= {name: getattr(options, name) for name in names}
    if (path := output / "run.json").exists():
        record = json.loads(path.read_text(encoding="utf-8"))["head"]
        if all(record[name] == value for name, value in settings.items()):
            return record
        raise ValueError(f"{output} holds another head; choose another --output.")
    source = {"command": _command(), "commit": current_commit(), "data_sha256": hash_data(options.data)}
    processor = CoordformerProcessor.from_pretrained(checkpoint)
    # In float32 whatever is saved: updates are smaller than what bfloat16 tells apart.
    model = CoordformerForContactPrediction.from_pretrained(checkpoint, dtype=torch.float32)
    rows = load_rows(options.data, "train")
    batches = ChainBatches(rows, token_budget=options.token_budget, packing=False, max_length=256)
    collator = CoordformerDataCollator(
        processor.tokenizer, atoms=model.config.coordinate_atoms, drop_coords=drop_coords, max_length=256
    )
    freeze_encoder(model)
    history: list[dict[str, Any]] = []
    # Weights of the head have to reach some tens, as maps are near zero; those of an encoder are where they belong.
    for learning_rate in (1.0, 1e-4) if options.finetune else (1.0,):
        arguments = TrainingArguments(
            str(output),
            max_steps=options.steps,
            per_device_train_batch_size=1,  # of ChainBatches, whose items are batches
            learning_rate=learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=options.steps // 10,
            weight_decay=0.0,
            logging_steps=max(1, options.steps // 20),
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            disable_tqdm=options.quiet,
            seed=options.seed,
        )
        trainer = Trainer(model, arguments, train_dataset=batches, data_collator=ContactCollator(collator))
        trainer.train()
        before = history[-1]["step"] if history else 0
        history += [entry | {"step": before + entry["step"]} for entry in trainer.state.log_history]
        model.requires_grad_(True)
    trainer.save_model(str(output))
    processor.save_pretrained(output)
    write_log(history, output / "log.csv")
    steps = history[-1]["step"]
    write_json(output / "train.json", {"steps": steps, **source, "started_from": earlier_training(checkpoint)})
    data = {
        "data": Path(options.data).name, "train_split": "train", "chains": batches.chains,
        "residues": batches.residues, "token_budget": options.token_budget, "max_length": 256, "mlm_probability": 0,
        "rotate": False, "coordinate_noise": 0.0, "drop_coords": drop_coords,
    }  # fmt: skip
    training = {name: getattr(arguments, name) for name in SETTINGS}
    training |= {"init_from": checkpoint.name, "sequence_encoder": None, "muon": False}
    training |= {"freeze": not options.finetune, "lora_rank": None}
    record = settings | {"losses": [entry["loss"] for entry in history if "loss" in entry]}
    write_json(path, {"head": record, "data": data, "training": training})  # at the end: it says that all is there
    return record


def _command() -> str:
    """Where a file lies on this machine is of no use elsewhere."""
    options = (Path(each).name if each.startswith(("/", "..")) else each for each in sys.argv[1:])
    return " ".join(["python examples/contacts/contacts.py", *options])


def baselines(rows: Any) -> dict[str, np.ndarray]:
    """Precisions without a model, (chains, ranges, cuts): a random order, the nearest in sequence first, the best."""
    table: dict[str, list] = {"random": [], "nearest in sequence": [], "best possible": []}
    for number in range(len(rows)):
        labels = chain_labels(fetch_rows(rows, [number])[0])
        place = np.arange(len(labels))
        separation = place - place[:, None]
        shares = []
        for least, most in RANGES.values():
            known = labels[(separation >= least) & (separation <= most) & (labels >= 0)]
            shares.append([known.mean() if known.size else math.nan] * len(CUTS))
        table["random"].append(shares)
        for name, scores in (("nearest in sequence", -np.abs(separation)), ("best possible", labels)):
            table[name].append([list(cuts.values()) for cuts in precision_at(scores, labels).values()])
    return {name: np.array(values) for name, values in table.items()}


def intervals(precisions: np.ndarray, samples: int = 2000, seed: int = 0) -> np.ndarray:
    """Means over chains and 95 % intervals of a bootstrap over them: (chains, ...) -> (3, ...); NaN does not count."""
    known = ~np.isnan(precisions)
    drawn = resample(np.stack([np.where(known, precisions, 0.0), known], axis=1), samples, seed)
    return np.stack([np.nanmean(precisions, axis=0), *interval(drawn[:, 0] / drawn[:, 1])])


def write_evaluation(folder: Path, results: dict[str, Any], table: list[dict[str, Any]], runs: dict[str, str]) -> None:
    """What was measured of a head with coordinates and without, for its card: evaluation.json and evaluation.md.

    `runs` are the names of these two in the table, by `given` and `not given`.
    """
    named = {name: name for name in BASELINES} | {run: f"coordinates {given}" for given, run in runs.items()}
    rows = [row | {"run": named[row["run"]]} for row in table if row["run"] in named]
    report = {name: results[name] for name in ("data", "chains", "residues")} | {"split": "valid", "results": rows}
    write_json(folder / "evaluation.json", report)
    found = {(row["run"], row["range"]): row for row in rows if row["cut"] == "L"}
    lines = [f"| range | {' | '.join(named.values())} |", "| --- " * (1 + len(named)) + "|"]
    for name, (least, most) in RANGES.items():
        cells = [f"{name} ({least} to {most})" if math.isfinite(most) else f"{name} (from {least})"]
        for run in named.values():
            row = found[run, name]
            interval_of = f" ({100 * row['low']:.1f} to {100 * row['high']:.1f})" * (run not in BASELINES)
            cells.append(f"{100 * row['precision']:.1f}{interval_of}")
        lines.append(f"| {' | '.join(cells)} |")
    without, nearest = found["coordinates not given", "long"], found["nearest in sequence", "long"]["precision"]
    above = without["low"] > nearest
    lines += [
        "",
        f"Precision at L in %, the mean over {results['chains']} held-out chains of {results['data']} (split valid); "
        "in parentheses 95 %",
        "intervals of a bootstrap over chains. The numbers, also at L/2 and L/5, are in `evaluation.json`.",
        "",
        "**With coordinates given** contacts follow from the input: they are read off, not predicted.",
        f"**Without coordinates** they are predicted from the sequence, and at long range "
        f"{'better' if above else 'no better'} than separation in the",
        f"sequence alone tells: {100 * without['precision']:.1f} %, where sorting pairs by separation (`nearest in "
        f"sequence`) gives {100 * nearest:.1f} %.",
    ]
    write_text(folder / "evaluation.md", "\n".join(lines) + "\n")


def describe(results: dict[str, Any], table: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(row["run"] for row in table))
    lines = [
        "# Contacts from attention",
        "",
        f"`{results['command']}`: {results['cpu_seconds'] / 60:.1f} minutes of CPU time, {results['steps']} updates of "
        f"each head, {results['chains']:,} held-out chains with {results['residues']:,} residues. Precision in %, the "
        "mean over chains; in parentheses 95 % intervals of a bootstrap over chains.",
        "",
        f"| range | first | {' | '.join(names)} |",
        "| --- " * (len(names) + 2) + "|",
    ]
    for name, (least, most) in RANGES.items():
        for cut in CUTS:
            cells = []
            for run in names:
                row = next(r for r in table if (r["run"], r["range"], r["cut"]) == (run, name, cut))
                text = f"{100 * row['precision']:.1f}"
                if run in RUNS:
                    text += f" ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
                cells.append(text)
            ends = f"{least} to {most}" if math.isfinite(most) else f"from {least}"
            lines.append(f"| {name} ({ends}) | {cut} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "![A held-out chain](contacts.png)", "", results["figure"], ""])


def main() -> None:
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", type=Path, default=ROOT / "hub_cards" / "coordformer-1M-pdb")
    parser.add_argument(
        "--without",
        type=Path,
        help="a model without coordinates (default: without_coordinates beside the checkpoint, if it is there)",
    )
    parser.add_argument("--data", default=CHAINS, help="chains with the splits train and valid")
    parser.add_argument("--output", type=Path, default=Path("contacts_output"), metavar="FOLDER")
    parser.add_argument(
        "--heads", nargs="+", choices=HEADS, default=["given", "not_given", "without"],
        help="which to train, of those that there are models for (default: all but both)",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=300, help="updates of each head (default: %(default)s)")
    parser.add_argument("--chains", type=int, default=400, help="held-out chains to measure on (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="100 updates, 100 chains")
    parser.add_argument("--finetune", action="store_true", help="then train encoder and head as many updates more")
    parser.add_argument("--token_budget", type=int, default=2048, help="tokens of a batch (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the training (default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.chains = 100, 100
    folders = {"with coordinates": options.checkpoint}
    beside = options.checkpoint.parent / "without_coordinates"
    if options.without is not None or beside.exists():
        folders["without coordinates"] = options.without or beside
    for name, folder in folders.items():
        if not (folder / "config.json").exists():
            parser.error(f"{folder} holds no model {name}; run `make demo`, or name one")
    heads = {
        name: (model, drop_coords)
        for name, (model, drop_coords) in HEADS.items()
        if model in folders and name in options.heads
    }
    options.output.mkdir(parents=True, exist_ok=True)

    training, models = {}, {}
    for name, (model, drop_coords) in heads.items():
        output = options.output / f"head_{name}"
        training[name] = train_head(folders[model], output, drop_coords, options)
        models[name] = CoordformerForContactPrediction.from_pretrained(output).to(
            "cuda" if torch.cuda.is_available() else "cpu"
        )
    processor = CoordformerProcessor.from_pretrained(options.checkpoint)

    rows = load_rows(options.data, "valid")
    rows = rows.select(range(min(options.chains, len(rows))))
    measured = baselines(rows)
    for run, (head, without_coords) in RUNS.items():
        if head not in heads:
            continue
        measured[run] = measure_precision(
            models[head], rows, processor.tokenizer, without_coords=without_coords, progress=not options.quiet
        )
    table = [
        {"run": run, "range": name, "cut": cut, "precision": mean[i, j], "low": low[i, j], "high": high[i, j]}
        for run, precisions in measured.items()
        for mean, low, high in [intervals(precisions)]
        for i, name in enumerate(RANGES)
        for j, cut in enumerate(CUTS)
    ]
    with open(options.output / "precision.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in table)

    # No choice by eye: the chain whose precision is the median.
    shown = [run for run in ("coordinates given", "coordinates not given") if run in measured]
    shown = shown or [run for run in RUNS if run in measured][:2]
    chosen = measured[shown[0]][:, -1, 0]
    number = int(np.argsort(np.where(np.isnan(chosen), np.inf, chosen))[np.isfinite(chosen).sum() // 2])
    chain = fetch_rows(rows, [number])[0]
    labels = chain_labels(chain)
    maps = {}
    for run in shown:
        head, without_coords = RUNS[run]
        predicted = predict_contacts(models[head], [chain], processor.tokenizer, without_coords=without_coords)
        ((_, probabilities),) = predicted
        title = f"{chain['id']}, {run}\nprecision at L: {describe_precision(precision_at(probabilities, labels))}"
        maps[title] = probabilities
    plot_contacts(maps, labels, options.output / "contacts.png")

    results = {
        "command": _command(),
        "seconds": round(time.monotonic() - start),
        "cpu_seconds": round(time.process_time()),
        "cores": os.cpu_count(),
        "versions": {
            "coordformer": coordformer.__version__, "torch": torch.__version__, "python": platform.python_version()
        },
        "steps": options.steps,
        "token_budget": options.token_budget,
        "seed": options.seed,
        "finetune": options.finetune,
        "data": Path(options.data).name,
        "chains": len(rows),
        "residues": int(np.sum(rows["length"][:])),
        "heads": training,
        "figure": f"{chain['id']}: of the held-out chains the one whose long-range precision at L is the median.",
    }  # fmt: skip
    write_json(options.output / "results.json", results)
    for head in heads:
        runs = {"not given" if without else "given": run for run, (of, without) in RUNS.items() if of == head}
        if len(runs) == 2:
            write_evaluation(options.output / f"head_{head}", results, table, runs)
    report = describe(results, table)
    write_text(options.output / "report.md", report)
    print(report)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(str(error))
