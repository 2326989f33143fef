"""Beyond proteins: the same classes on molecules and on crystals. Do coordinates tell which element is masked?

    python examples/molecules/molecules.py            (4 minutes on two cores)
    python examples/molecules/molecules.py --quick    (half a minute, to see that it runs)

Trains small models with and without coordinates on the heavy atoms of molecules and on pieces of crystals, and lets
them fill in masked elements of formulas that they have not seen. OUTPUT gets report.md, a JSON file
for each set, and recovery.png.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from matplotlib.figure import Figure
from structures import build_tokenizer, crystal_rows, molecule_row, read_smiles
from transformers import Trainer, TrainingArguments

from coordformer import CoordformerConfig, CoordformerForMaskedLM
from coordformer.data.batching import ChainBatches
from coordformer.data.collator import CoordformerDataCollator
from coordformer.data.records import package_version
from coordformer.inference.metrics import CORRECT, COUNT, NLL, bootstrap, count_predictions, summarize

TOKENIZER = build_tokenizer()
# Of the 32 values of the bias the last is at twice the scale.
MODELS: dict[str, dict[str, Any]] = {
    "without coordinates": {"coordinate_embedding": "none"},
    "with coordinates": {"coordinate_embedding": "quadratic", "num_distance_bins": 32},
}
SCALES = {"molecules": 1.5, "crystals": 4.0}  # Å: about a bond, about a unit cell
FREQUENCIES = "element frequencies"
NUM_MASK_SAMPLES = 3  # times that the atoms to be masked are chosen, in an evaluation


def split_by_formula(rows: Sequence[dict[str, Any]], share: float = 0.2, seed: int = 0) -> tuple[list, list]:
    """Rows to train on and rows to test on, about `share` of the formulas; no formula is in both.

    Each element of the second is in at least three formulas of the first.
    """
    elements = {row["formula"]: set(row["sequence"]) for row in rows}
    left = Counter(element for formula in elements.values() for element in formula)
    held_out: set[str] = set()
    for formula in np.random.default_rng(seed).permutation(sorted(elements)):
        if len(held_out) < share * len(elements) and all(left[element] > 3 for element in elements[formula]):
            held_out.add(formula)
            left.subtract(elements[formula])
    return (
        [row for row in rows if row["formula"] not in held_out],
        [row for row in rows if row["formula"] in held_out],
    )


def elements_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    return sorted({element for row in rows for element in row["sequence"]})


def make_model(fields: dict[str, Any]) -> CoordformerForMaskedLM:
    """A small model of a set of atoms with these fields of the config."""
    config = CoordformerConfig(
        vocab_size=len(TOKENIZER),
        mask_token_id=TOKENIZER.mask_token_id,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        position_embedding_type="none",  # atoms are a set
        coordinate_atoms=("atom",),
        **fields,
    )
    return CoordformerForMaskedLM(config)


def train(rows: Sequence[dict[str, Any]], fields: dict[str, Any], steps: int, seed: int) -> CoordformerForMaskedLM:
    """A model of `make_model`, trained on the rows in random orientations."""
    torch.manual_seed(seed)
    model = make_model(fields)
    collator = CoordformerDataCollator(
        TOKENIZER,
        model.config.coordinate_atoms,
        masking="masked15",
        mlm_probability=0.4,  # more to learn from than 15 %, by which the models are judged
        seed=seed,
        alphabet=elements_of(rows),
    )
    batches = ChainBatches(Dataset.from_list(list(rows)), token_budget=1024, packing=False, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=1,  # one batch of `ChainBatches`
            learning_rate=2e-3,
            adam_beta2=0.98,
            warmup_steps=steps // 10,
            lr_scheduler_type="cosine",
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=seed,
            use_cpu=True,
        )
        Trainer(model, arguments, train_dataset=batches, data_collator=collator).train()
    return model


@torch.no_grad()
def count_atoms(model: CoordformerForMaskedLM, rows: Sequence[dict[str, Any]], alphabet: Sequence[str]) -> np.ndarray:
    """Mask 15 % of the atoms of each row, several times, and predict them: softmax over the elements of `alphabet`.

    Returns counts as in `metrics.count_predictions`, (rows, vocabulary, 3). Which atoms are masked depends on the
    number of the sample and the row's id alone.
    """
    collator = CoordformerDataCollator(
        TOKENIZER, model.config.coordinate_atoms, masking="masked15", rotate=False, alphabet=alphabet
    )
    batches = ChainBatches(Dataset.from_list(list(rows)), token_budget=4096, packing=False, augment=False)
    candidates = TOKENIZER.convert_tokens_to_ids(list(alphabet))
    counts = np.zeros((len(rows), model.config.vocab_size, 3))
    model.eval()
    for sample in range(NUM_MASK_SAMPLES):
        batches.set_epoch(sample)
        for number, indices in enumerate(batches.order()):
            batch = collator([batches[number]])
            labels = batch.pop("labels")
            counts[indices] += count_predictions(model(**batch).logits, labels, candidates).numpy()
    return counts


def count_frequencies(counts: np.ndarray, rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """The counts of a guess at the same atoms by the frequencies of the elements in the rows to train on."""
    frequencies = Counter(element for row in rows for element in row["sequence"])
    guess = np.zeros_like(counts)
    guess[..., COUNT] = counts[..., COUNT]
    for element, number in frequencies.items():
        index = TOKENIZER.convert_tokens_to_ids(element)
        guess[..., index, NLL] = -np.log(number / frequencies.total()) * counts[..., index, COUNT]
    most = TOKENIZER.convert_tokens_to_ids(frequencies.most_common(1)[0][0])
    guess[..., most, CORRECT] = counts[..., most, COUNT]
    return guess


def sum_by(counts: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The counts (rows, vocabulary, 3) of the rows of each name together: {name: (vocabulary, 3)}."""
    return {name: counts[np.asarray(names) == name].sum(axis=0) for name in sorted(set(names))}


def train_and_count(task: tuple[list, list, dict[str, Any], int, int]) -> np.ndarray:
    """Counts of one model on the rows to test on; in a process of its own."""
    train_rows, test_rows, fields, steps, seed = task
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    return count_atoms(train(train_rows, fields, steps, seed), test_rows, elements_of(train_rows))


def assess(name: str, rows: list[dict[str, Any]], steps: int, seeds: int, pool: ProcessPoolExecutor) -> dict[str, Any]:
    """Train all models on one set and summarize their predictions on the formulas held out."""
    # Settings were chosen on the split of seed 0: this one was not looked at.
    train_rows, test_rows = split_by_formula(rows, seed=1)
    tasks = [
        (train_rows, test_rows, fields | {"coordinate_scale": SCALES[name]}, steps, seed)
        for fields in MODELS.values()
        for seed in range(seeds)
    ]
    counts = np.stack(list(pool.map(train_and_count, tasks)))
    counted = dict(zip(MODELS, counts.reshape(len(MODELS), seeds, *counts.shape[1:]), strict=True))
    counted[FREQUENCIES] = count_frequencies(counted["without coordinates"], train_rows)

    formulas, structures = ([row[key] for row in test_rows] for key in ("formula", "structure"))
    # Pieces of one crystal are not independent, nor is what several seeds say of a molecule: formulas are drawn.
    intervals = bootstrap({model: each.sum(axis=0) for model, each in counted.items()}, formulas)
    letters = {element: TOKENIZER.convert_tokens_to_ids(element) for element in elements_of(train_rows)}
    models = {}
    for model, each in counted.items():
        summary = summarize(each, letters)
        models[model] = {
            "perplexity": summary["perplexity"],
            "perplexity_interval": intervals[model]["perplexity"],
            "perplexity_by_seed": [summarize(one)["perplexity"] for one in each],
            "recovery": summary["recovery"],
            "recovery_interval": intervals[model]["recovery"],
            "recovery_by_seed": [summarize(one)["recovery"] for one in each],
            "recovery_by_element": summary["recovery_by_residue"],
            "recovery_by_structure": {
                structure: summarize(table)["recovery"]
                for structure, table in sum_by(each.sum(axis=0), structures).items()
            },
        }
    return {
        "rows": {"train": len(train_rows), "test": len(test_rows)},
        "formulas": {"train": len({row["formula"] for row in train_rows}), "test": len(set(formulas))},
        "atoms": {split: sum(row["length"] for row in part) for split, part in
                  (("train", train_rows), ("test", test_rows))},
        "predictions_by_seed": int(counts[0, ..., COUNT].sum()),
        "steps": steps,
        "seeds": seeds,
        "parameters": {model: make_model(fields).num_parameters() for model, fields in MODELS.items()},
        "gain": intervals["with coordinates"]["gain"],
        "gain_interval": intervals["with coordinates"]["gain_interval"],
        "models": models,
    }  # fmt: skip


def describe(results: dict[str, Any]) -> str:
    """The report, in Markdown."""
    lines = [
        "# Molecules and crystals",
        "",
        "| set | model | perplexity | by seed | recovery |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, one in results.items():
        for model in (FREQUENCIES, *MODELS):
            row = one["models"][model]
            (low, high), (r_low, r_high) = row["perplexity_interval"], row["recovery_interval"]
            seeds = "" if model == FREQUENCIES else ", ".join(f"{each:.2f}" for each in row["perplexity_by_seed"])
            lines.append(
                f"| {name} | {model} | {row['perplexity']:.2f} ({low:.2f} to {high:.2f}) | {seeds} | "
                f"{100 * row['recovery']:.1f} % ({100 * r_low:.1f} to {100 * r_high:.1f}) |"
            )
    lines.append("")
    for name, one in results.items():
        low, high = (100 * each for each in one["gain_interval"])
        lines.append(
            f"- {name}: {one['rows']['train']:,} rows of {one['formulas']['train']:,} formulas to train on, "
            f"{one['rows']['test']:,} rows of {one['formulas']['test']:,} other formulas to test on, "
            f"{one['predictions_by_seed']:,} predictions for each of {one['seeds']} seeds, {one['steps']:,} updates. "
            f"{one['parameters']['without coordinates']:,} and {one['parameters']['with coordinates']:,} parameters. "
            f"Coordinates change the perplexity by {-100 * one['gain']:+.1f} % ({-high:+.1f} to {-low:+.1f})."
        )
    lines += [
        "",
        "All seeds together; in parentheses 95 % intervals of a bootstrap over formulas (paired for the change).",
        "",
        "![Recovery by element and by structure](recovery.png)",
        "",
    ]
    for name, one in results.items():
        packages = ", ".join(f"{package} {number}" for package, number in one["versions"].items())
        lines.append(
            f"- {name}.json: `{one['command']}`, {one['seconds'] / 60:.1f} minutes of this set with "
            f"{one['processes']} process(es) on {one['machine']}; {packages}."
        )
    return "\n".join(lines) + "\n"


def plot(results: dict[str, Any], path: str | Path) -> None:
    """Recovery of the molecules by element and of the crystals by structure, as PNG."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (name, one) in zip(
        figure.subplots(1, len(results), sharey=True, squeeze=False)[0], results.items(), strict=True
    ):
        models, key = one["models"], "recovery_by_element" if name == "molecules" else "recovery_by_structure"
        kinds = sorted(models["with coordinates"][key], key=lambda kind: -models["with coordinates"][key][kind])
        for index, model in enumerate(MODELS):
            recovery = [100 * models[model][key][kind] for kind in kinds]
            axes.bar(np.arange(len(kinds)) + 0.4 * index - 0.2, recovery, 0.4, label=model)
        axes.set_xticks(range(len(kinds)), kinds, rotation=0 if name == "molecules" else 20)
        axes.set(title=name, ylim=(0, 100), ylabel="recovered when masked (%)")
        axes.set(xlabel="element" if name == "molecules" else "structure")
        axes.grid(axis="y", alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=len(MODELS))
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rows, updates and one seed: the numbers mean nothing")
    parser.add_argument(
        "--only", choices=SCALES, help="one of the two sets; the report keeps what is there of the other"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/molecules"), help="default: %(default)s")
    arguments = parser.parse_args()
    molecules, clusters, steps, seeds = (300, 2, 20, 1) if arguments.quick else (None, 16, 600, 3)
    arguments.output.mkdir(parents=True, exist_ok=True)
    processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for name in [arguments.only] if arguments.only else SCALES:
            start = time.monotonic()
            if name == "molecules":
                rows = [row for row in pool.map(molecule_row, read_smiles()[:molecules], chunksize=20) if row]
            else:
                rows = crystal_rows(clusters)
            print(f"{name}: {len(rows)} rows in {time.monotonic() - start:.0f} s", flush=True)
            result = assess(name, rows, steps, seeds, pool) | {
                "command": " ".join(["python examples/molecules/molecules.py", *sys.argv[1:]]),
                "seconds": round(time.monotonic() - start),
                "processes": processes,
                "machine": f"{os.cpu_count()} cores of {platform.machine()}",
                "versions": {"coordformer": package_version()}
                | {package: version(package) for package in ("torch", "rdkit", "ase")},
            }
            (arguments.output / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    files = {name: arguments.output / f"{name}.json" for name in SCALES}
    results = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    (arguments.output / "report.md").write_text(describe(results))
    plot(results, arguments.output / "recovery.png")
    print(describe(results))


if __name__ == "__main__":
    main()
