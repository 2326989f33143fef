"""What a shipped model does with a structure, and whether structure helps: two small models, trained here.

    python examples/demo/demo.py            (12.8 minutes of CPU time, on two cores half of that)
    python examples/demo/demo.py --long     (six times the updates)

First sequences for a structure, effects of its substitutions and a picture, by a model that comes with the repository.
Then it trains a model with coordinates and one without through `coordformer train` with examples/pretraining/demo.yaml,
and evaluates both on held-out chains under both protocols, beside a shipped one. OUTPUT gets report.md, results.json,
the figures and the two checkpoints. Run it again after a stop: it goes on where it was.
"""

import argparse
import csv
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoModelForMaskedLM
from transformers.utils import logging

import coordformer
from coordformer import CoordformerProcessor
from coordformer.data.collator import PROTOCOLS
from coordformer.data.files import write_json, write_text
from coordformer.data.prepare import prepare
from coordformer.data.rows import load_rows
from coordformer.inference.design import design_files
from coordformer.inference.figures import plot_losses, plot_recovery
from coordformer.inference.masked import count_chains, summarize_samples
from coordformer.inference.metrics import bootstrap
from coordformer.inference.score import score
from coordformer.model.processing_coordformer import letter_ids

ROOT = Path(__file__).resolve().parents[2]
CHAINS = ROOT / "examples" / "data" / "chains.parquet"
PRESET = ROOT / "examples" / "pretraining" / "demo.yaml"
STRUCTURES = ROOT / "tests" / "data" / "structures"
STRUCTURE = STRUCTURES / "pdb1ubi_ca.pdb.gz"  # ubiquitin
PICTURE = ROOT / "docs" / "figures" / "readme.py"
BEST = ROOT / "hub_cards" / "coordformer-7M-pdb"
MODELS = {"without coordinates": "none", "with coordinates": "linear"}
SHIPPED = ROOT / "hub_cards" / "coordformer-1M-pdb"  # trained on other chains, too; none of the held-out ones
SHOWN = (*MODELS, SHIPPED.name)
STEPS, LONG_STEPS = 500, 3000
NUM_MASK_SAMPLES = 1  # times that the residues to be masked are chosen


def folder_of(output: Path, name: str) -> Path:
    return SHIPPED if name == SHIPPED.name else output / name.replace(" ", "_")


def use(output: Path) -> dict[str, Any]:
    """Design sequences for a structure, score its substitutions, and draw it, by a shipped model."""
    quietly: dict[str, Any] = {"progress": False}
    designed = design_files(BEST, STRUCTURE, output / "design", num_samples=4, **quietly)
    scanned = score(BEST, STRUCTURE, output / "scan", **quietly)
    if importlib.util.find_spec("matplotlib"):
        spec = importlib.util.spec_from_file_location("picture", PICTURE)
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(picture := importlib.util.module_from_spec(spec))
        picture.main(output)
        (output / "readme.png").rename(output / "structure.png")
    (protein,) = designed["proteins"]
    return protein | {"numbering": scanned["numbering"]}


def train(output: Path, options: list[str]) -> None:
    """Train both models, at the same time if there are cores for it, each in a process of its own."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, cores // 2))}
    running = []
    for name, embedding in MODELS.items():
        folder = folder_of(output, name)
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "coordformer", "train", str(PRESET), "--data", str(CHAINS)]
        command += ["--coordinate_embedding", embedding, "--output_dir", str(folder), *options]
        last = embedding == "linear"
        # One progress bar is enough: the runs take the same number of steps. Trainer's has no name of its own.
        environment["TQDM_DESC"] = f"training {name}"
        with open(folder / "train.log", "w", encoding="utf-8") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=None if last else subprocess.STDOUT
            )
        running.append((name, process))
        if cores == 1:
            process.wait()
    try:
        for name, process in running:
            if process.wait():
                sys.exit(f"Training {name} failed; see {folder_of(output, name) / 'train.log'}.")
    finally:
        for _, process in running:
            process.terminate()


def describe(results: dict) -> str:
    """The report, in Markdown."""
    used, designs = results["used"], results["designs"]
    name = BEST.name
    lines = [
        "# The demo",
        "",
        f"## Ubiquitin, by {name}",
        "",
        "![Ubiquitin, and the effects of its substitutions](structure.png)",
        "",
        f"Four sequences for its {used['residues']} C-alphas, the best first. Lower scores are better: mean negative "
        f"log-likelihoods in nats; the native sequence has {used['native_score']:.2f}. This is an example, not a test: "
        "the chain may be among those that the model was trained on.",
        "",
        "| sequence | score | equal to the native |",
        "| --- | --- | --- |",
        *(f"| `{each}` | {float(value):.2f} | {100 * float(share):.0f} % |" for each, value, share in designs),
        "",
        "Effects of all substitutions are in scan/scan.csv, and drawn in scan/scan.png; probabilities of the letters "
        "in design/.",
        "",
        "## Does structure help?",
        "",
        f"Two models of {results['parameters']['with coordinates']:,} parameters (the one without coordinates: "
        f"{results['parameters']['without coordinates']:,}), trained on the same {results['chains']['train']:,} chains "
        f"for the same {results['steps']:,} updates ({results['residues_seen'] / 1e6:.1f} million residues) with the "
        f"same seed; {results['chains']['valid']} held-out chains that share no cluster at 30 % identity with them. "
        f"Beside them {SHIPPED.name}, a model that comes with the repository "
        f"({results['parameters'][SHIPPED.name]:,} parameters), which was trained for longer on more chains, "
        "with coordinates; its card says how.",
        "",
        "| protocol | model | perplexity | 95 % interval | recovery | 95 % interval |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for protocol in PROTOCOLS:
        for name, row in results["evaluation"][protocol].items():
            low, high = row["perplexity_interval"]
            r_low, r_high = row["recovery_interval"]
            lines.append(
                f"| {protocol} | {name} | {row['perplexity']:.2f} | {low:.2f} to {high:.2f} | "
                f"{100 * row['recovery']:.1f} % | {100 * r_low:.1f} to {100 * r_high:.1f} % |"
            )
    lines.append("")
    for protocol in PROTOCOLS:
        gain = results["evaluation"][protocol]["with coordinates"]["gain"]
        low, high = results["evaluation"][protocol]["with coordinates"]["gain_interval"]
        lines.append(
            f"Coordinates lower the perplexity by **{100 * gain:.1f} %** under `{protocol}` (95 % interval of a paired "
            f"bootstrap over chains: {100 * low:.1f} to {100 * high:.1f} %)."
        )
    lines += [
        "",
        "`paper`: 15 % of the residues, of these 80 % masked, 10 % replaced, 10 % unchanged; softmax over the "
        "vocabulary. `masked15`: 15 % of the residues, all masked; softmax over the 20 amino acids.",
        "",
        "![Loss of both models](loss.png)",
        "",
        "![Recovery by residue](recovery.png)",
        "",
        f"Made by `{results['command']}` in {results['seconds'] / 60:.1f} minutes on {results['cores']} cores, "
        f"{results['cpu_seconds'] / 60:.1f} minutes of CPU time (coordformer {results['versions']['coordformer']}, "
        f"torch {results['versions']['torch']}). All numbers: "
        "results.json.",
    ]
    return "\n".join(lines) + "\n"


@contextmanager
def step(seconds: dict[str, float], name: str, text: str) -> Iterator[None]:
    """Say what begins, and note how long it takes."""
    print(f"\n{len(seconds) + 1}. {text}", flush=True)
    start = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - start, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--long", action="store_true", help=f"train for {LONG_STEPS} updates")
    parser.add_argument("--output", type=Path, default=None, help="default: demo_output, or demo_output_long")
    parser.add_argument("--steps", type=int, help=f"updates (default: {STEPS})")
    arguments = parser.parse_args()
    output = arguments.output or ROOT / ("demo_output_long" if arguments.long else "demo_output")
    output = output.resolve()
    steps = arguments.steps or (LONG_STEPS if arguments.long else STEPS)
    start, seconds = time.monotonic(), {}
    logging.disable_progress_bar()  # of weights, which are loaded in no time

    model, file = BEST.relative_to(ROOT), STRUCTURE.relative_to(ROOT)
    with step(seconds, "use", f"{BEST.name} designs and scores sequences of a structure"):
        print(f"   coordformer design {model} {file} --num_samples 4 --output {output.name}/design")
        print(f"   coordformer score {model} {file} --scan --output {output.name}/scan", flush=True)
        used = use(output)
        with open(output / "design" / "designs.csv", newline="", encoding="utf-8") as table:
            designs = [[row["sequence"], row["score"], row["seq_recovery"]] for row in csv.DictReader(table)]
        for sequence, value, share in designs:
            print(f"   {sequence}  score {float(value):.2f}, {100 * float(share):.0f} % as the native one")
        print(
            f"   pictures: {output.name}/structure.png, {output.name}/scan/scan.png, {output.name}/design/", flush=True
        )

    with step(seconds, "prepare", "Structure files become rows: coordformer prepare"):
        counts = prepare([STRUCTURES], output / "structures", workers=1)["counts"]
        print(f"   {counts['chains']} chains of {counts['files']} files; {counts['rejected']} rejected, as")
        print(f"   {output.name}/structures/rejected.tsv says")

    with step(seconds, "train", "Two small models learn from the same chains: coordformer train"):
        train(output, ["--max_steps", str(steps)])

    rows = load_rows(CHAINS, "valid")
    tokenizer = CoordformerProcessor().tokenizer
    models = {
        name: AutoModelForMaskedLM.from_pretrained(folder_of(output, name), dtype=torch.float32) for name in SHOWN
    }

    def evaluate(name: str, protocol: str) -> np.ndarray:
        total = NUM_MASK_SAMPLES * len(rows)
        with tqdm(total=total, unit="chain", desc=f"evaluating {name}, {protocol}") as bar:
            return count_chains(models[name], rows, tokenizer, protocol, num_mask_samples=NUM_MASK_SAMPLES, bar=bar)

    evaluation: dict[str, dict] = {}
    with step(seconds, "evaluate", f"Both, and {SHIPPED.name}, are evaluated on held-out chains: coordformer evaluate"):
        for protocol in PROTOCOLS:
            counted = {name: evaluate(name, protocol) for name in models}
            intervals = bootstrap({name: counts.sum(axis=0) for name, counts in counted.items()})
            evaluation[protocol] = {
                name: summarize_samples(counts, letter_ids(tokenizer))
                | {key: value for key, value in intervals[name].items() if key.startswith("gain")}
                for name, counts in counted.items()
            }

    histories = {name: json.loads((folder_of(output, name) / "trainer_state.json").read_text()) for name in MODELS}
    plot_losses({name: state["log_history"] for name, state in histories.items()}, output / "loss.png")
    plot_recovery(
        {name: evaluation["masked15"][name]["recovery_by_residue"] for name in SHOWN},
        output / "recovery.png",
    )
    summary = json.loads((folder_of(output, "with coordinates") / "train.json").read_text())
    train_rows = load_rows(CHAINS, "train")
    epochs = histories["with coordinates"]["epoch"]
    results = {
        "command": " ".join(["python examples/demo/demo.py", *sys.argv[1:]]),
        "seconds": round(time.monotonic() - start),
        "seconds_of_steps": seconds,
        "cpu_seconds": round(sum(os.times()[:4])),  # of the trainings, too
        "cores": os.cpu_count(),
        "versions": {
            "coordformer": coordformer.__version__, "torch": torch.__version__, "python": platform.python_version()
        },
        "used": used,
        "designs": designs,
        "steps": summary["steps"],
        "residues_seen": round(epochs * summary["residues_per_epoch"]),
        "padding_share": summary["padding_share"],
        "num_mask_samples": NUM_MASK_SAMPLES,
        "chains": {"train": len(train_rows), "valid": len(rows)},
        "parameters": {name: model.num_parameters() for name, model in models.items()},
        "evaluation": evaluation,
    }  # fmt: skip
    write_json(output / "results.json", results)
    report = describe(results)
    write_text(output / "report.md", report)
    print("\n" + report)
    print(f"Report and figures: {output / 'report.md'}\nCheckpoint: {folder_of(output, 'with coordinates')}")
    if Path(sys.prefix) == ROOT / ".venv":
        print(f"\nThe command `coordformer` and the package are in {ROOT / '.venv'}. To use them in this shell:\n")
        print("    source .venv/bin/activate")


if __name__ == "__main__":
    main()
