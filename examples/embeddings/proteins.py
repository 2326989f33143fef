"""Which way learns proteins best? Small masked language models, alike but for what a file of variants says.

    python examples/embeddings/proteins.py --data CHAINS.parquet --output runs/embeddings
    python examples/embeddings/proteins.py examples/inverse_folding/experiments.yaml --data CHAINS.parquet \
        --output runs/experiments --results examples/inverse_folding/results --seeds 0

CHAINS.parquet: chains with a column `split` (train, valid). Each variant is trained with each seed through
`coordformer train` on the same batches of chains of at most 256 residues, evaluated on held-out ones on the way, and at
the end under both protocols. Run it again after a stop: it goes on where it was.

OUTPUT gets a folder per run; --results gets proteins.csv (a row per variant, seed and protocol) and proteins_curve.csv
(perplexity against residues seen), named as the file of variants is.
"""

import argparse
import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from safetensors import safe_open

from coordformer.data.collator import PROTOCOLS

ROOT = Path(__file__).resolve().parents[2]
PRESET = ROOT / "examples" / "pretraining" / "demo.yaml"
MAX_LENGTH = 256


def read_variants(path: Path) -> dict[str, list[str]]:
    """Options of `coordformer train` by the name of a variant, from a YAML file of such options."""
    variants = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {
        name: [text for option, value in entry["options"].items() for text in (f"--{option}", str(value).lower())]
        for name, entry in variants.items()
    }


def folder_of(output: Path, variant: str, seed: int) -> Path:
    return output / f"{re.sub(r'[^a-z0-9]+', '_', variant.lower())}-{seed}"


def short_chains(data: Path, output: Path) -> Path:
    """The chains of at most MAX_LENGTH residues, as a Parquet file."""
    path = output / "chains.parquet"
    if not path.exists():
        table = pq.read_table(data)
        table = table.filter(pc.less_equal(pc.utf8_length(table["sequence"]), MAX_LENGTH))
        pq.write_table(table, path)
    return path


def run(output: Path, chains: Path, variant: str, options: list[str], seed: int, steps: int, threads: int) -> None:
    """Train and evaluate one model, each unless it was done before."""
    folder = folder_of(output, variant, seed)
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    train = [sys.executable, "-m", "coordformer", "train", str(PRESET), "--data", str(chains), "--seed", str(seed),
             "--output_dir", str(folder), "--max_steps", str(steps), "--eval_strategy", "steps", "--eval_steps", "100",
             "--report_to", "none", "--disable_tqdm", "true", *options]  # fmt: skip
    evaluate = [sys.executable, "-m", "coordformer", "evaluate", str(folder), str(chains), "--split", "valid",
                "--quiet", "--output", str(folder / "evaluation.json")]  # fmt: skip
    for command, result in ((train, folder / "train.json"), (evaluate, folder / "evaluation.json")):
        if not result.exists():
            with open(folder / "log.txt", "a", encoding="utf-8") as log:
                done = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
            if done.returncode:
                raise RuntimeError(f"{variant}, seed {seed}: failed; {folder / 'log.txt'} says why.")
    print(f"{variant}, seed {seed}: done", flush=True)


def count_parameters(checkpoint: Path) -> int:
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return sum(tensor.numel() for name, tensor in tensors.items() if not name.endswith("inv_freq"))


def collect(output: Path, results: Path, name: str, variants: Iterable[str], seeds: list[int]) -> None:
    """One table of the ends and one of the ways there, of all runs that are finished."""
    ends, curve = [], []
    for variant in variants:
        for seed in seeds:
            folder = folder_of(output, variant, seed)
            if not (folder / "evaluation.json").exists():
                continue
            report = json.loads((folder / "evaluation.json").read_text())
            parameters = count_parameters(folder)
            for protocol in PROTOCOLS:
                numbers = report[protocol]
                ends.append([variant, seed, parameters, protocol, report["chains"], numbers["perplexity"],
                             *numbers["perplexity_interval"], numbers["recovery"]])  # fmt: skip
            residues = json.loads((folder / "train.json").read_text())["residues_per_epoch"]
            with open(folder / "log.csv", newline="") as file:
                rows = list(csv.DictReader(file))
            epochs = {row["step"]: float(row["value"]) for row in rows if row["metric"] == "epoch"}
            for row in rows:
                if row["metric"] == "eval_perplexity":
                    seen = round(epochs[row["step"]] * residues)
                    curve.append([variant, seed, int(row["step"]), seen, float(row["value"])])
    columns = ["variant", "seed", "parameters", "protocol", "chains", "perplexity", "low", "high", "recovery"]
    for file_name, head, lines in (
        (f"{name}.csv", columns, ends),
        (f"{name}_curve.csv", ["variant", "seed", "update", "residues", "perplexity"], curve),
    ):
        with open(results / file_name, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([head, *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    default = Path(__file__).with_name("proteins.yaml")
    parser.add_argument("variants", nargs="?", type=Path, default=default, metavar="VARIANTS.yaml")
    parser.add_argument("--data", type=Path, required=True, metavar="CHAINS.parquet")
    parser.add_argument("--output", type=Path, default=Path("runs/embeddings"), metavar="FOLDER")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", metavar="FOLDER")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these variants")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=700, help="updates (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="trainings at the same time (default: %(default)s)")
    arguments = parser.parse_args()
    variants = read_variants(arguments.variants)
    if unknown := sorted(set(arguments.only or ()) - variants.keys()):
        parser.error(f"{arguments.variants} has no {unknown[0]!r}; it has {', '.join(variants)}.")
    arguments.output.mkdir(parents=True, exist_ok=True)
    arguments.results.mkdir(parents=True, exist_ok=True)
    chains = short_chains(arguments.data, arguments.output)
    threads = max(1, len(os.sched_getaffinity(0)) // arguments.workers)
    with ThreadPoolExecutor(arguments.workers) as pool:
        waiting = [
            pool.submit(run, arguments.output, chains, variant, variants[variant], seed, arguments.steps, threads)
            for seed in arguments.seeds
            for variant in arguments.only or variants
        ]
        for each in waiting:
            each.result()
    collect(arguments.output, arguments.results, arguments.variants.stem, variants, arguments.seeds)


if __name__ == "__main__":
    main()
