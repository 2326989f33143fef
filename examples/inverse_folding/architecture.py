"""What is a layer worth? Small models, alike but for what a file of variants says, with exact and inexact coordinates.

    python examples/inverse_folding/architecture.py --data CHAINS.parquet --output runs/architecture

Each variant of architecture.yaml is trained with each seed as `coordformer train` does, one after the other, on one
thread, and then asked for the same residues under `masked15`: of --num_chains chains of the half of the held-out
clusters that is there to choose (see noise.py), as deposited and with noise. Run it again after a stop, or with other
variants: it goes on where it was.

--results gets one JSON file. By variant: updates, parameters, CPU seconds of each training, and by width of the noise
perplexity and recovery, of all seeds together, and perplexity of each. `gain` is by how much the perplexity is below
that of the variant `with` which it is compared, as a share of it, of the seeds that both have. Intervals are 95 % of a
bootstrap over clusters; they do not hold what seeds do.
"""

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from compare import count
from noise import held_out

from coordformer import build_tokenizer
from coordformer.data.files import write_json
from coordformer.data.records import hash_data
from coordformer.inference.checkpoints import digest_weights, load_checkpoint
from coordformer.inference.masked import summarize_samples
from coordformer.inference.metrics import bootstrap
from coordformer.model.processing_coordformer import letter_ids
from coordformer.training.arguments import parse_arguments
from coordformer.training.train import train as coordformer_train

HERE = Path(__file__).parent


def as_options(options: dict[str, Any]) -> list[str]:
    """A command line of the options of a YAML file."""
    texts = [json.dumps(value) if isinstance(value, dict | bool) else str(value) for value in options.values()]
    return [word for name, text in zip(options, texts, strict=True) for word in (f"--{name}", text)]


def train(folder: Path, data: str, options: dict[str, Any], seed: int) -> None:
    """Train one model, unless it was done before; `seconds.json` gets its CPU seconds."""
    if (folder / "train.json").exists():
        return
    words = as_options({**options, "data": data, "seed": seed, "output_dir": folder, "disable_tqdm": True})
    before = time.process_time()
    coordformer_train(*parse_arguments(words), words)
    write_json(folder / "seconds.json", time.process_time() - before)


def folder_of(output: Path, variant: str, seed: int) -> Path:
    return output / f"{re.sub(r'[^a-z0-9]+', '_', variant.lower())}-{seed}"


def measure(
    tables: dict[str, dict[int, np.ndarray]], compared: dict[str, str], clusters: list, letters: dict
) -> dict[str, dict[str, Any]]:
    """Perplexity, recovery and gain by variant, of counts by variant and seed: (chains, vocabulary, 3) each."""
    found = {}
    for variant, table in tables.items():
        summary = summarize_samples(np.stack(list(table.values())), letters, clusters)
        kept = ("perplexity", "perplexity_interval", "recovery", "recovery_interval")
        found[variant] = {name: summary[name] for name in kept}
        found[variant]["perplexity_by_seed"] = summary["perplexity_by_mask_sample"]
        other = compared.get(variant)
        if seeds := sorted(table.keys() & tables.get(other, {}).keys()):
            both = {name: sum(tables[name][seed] for seed in seeds) for name in (other, variant)}
            gains = bootstrap(both, clusters)[variant]
            found[variant] |= {name: gains[name] for name in ("gain", "gain_interval")}
    return found


def table(report: dict[str, Any]) -> list[str]:
    """The variants of a report as Markdown."""
    widths = [f"{noise} Å" for noise in next(iter(report["variants"].values()))["noise"]]
    widths[0] = f"perplexity at {widths[0]}"
    columns = ["model", "compared with", "parameters", "updates", "CPU seconds", *widths, "gain at 0 Å"]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for name, variant in report["variants"].items():
        seconds = " and ".join(f"{each:.0f}" for each in variant["cpu_seconds"])
        cells = [name, variant["with"] or "", f"{variant['parameters'] / 1e6:.2f}M", f"{variant['updates']:,}", seconds]
        for numbers in variant["noise"].values():
            low, high = numbers["perplexity_interval"]
            cells.append(f"{numbers['perplexity']:.2f} ({low:.2f} to {high:.2f})")
        gain, exact = "", variant["noise"]["0"]
        if "gain" in exact:
            low, high = exact["gain_interval"]
            gain = f"{100 * exact['gain']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
        lines.append("| " + " | ".join([*cells, gain]) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("variants", nargs="?", type=Path, default=HERE / "architecture.yaml", metavar="VARIANTS.yaml")
    parser.add_argument("--data", required=True, metavar="CHAINS.parquet")
    parser.add_argument("--output", type=Path, default=Path("runs/architecture"), metavar="FOLDER")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "architecture.json", metavar="FILE.json")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="train only these variants, or none")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--noise", nargs="+", type=float, default=[0.0, 0.2], help="Å (default: 0 0.2)")
    parser.add_argument("--num_chains", type=int, default=100, help="drawn at random (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    file = yaml.safe_load(arguments.variants.read_text(encoding="utf-8"))
    variants = file["variants"]
    if unknown := sorted(set(arguments.only or ()) - variants.keys()):
        parser.error(f"{arguments.variants} has no {unknown[0]!r}; it has {', '.join(variants)}.")
    for seed in arguments.seeds:
        for name in variants if arguments.only is None else arguments.only:
            folder = folder_of(arguments.output, name, seed)
            train(folder, arguments.data, file["recipe"] | variants[name]["options"], seed)
            print(f"{name}, seed {seed}: trained", flush=True)

    rows, clusters = held_out(arguments.data, "valid", ["choose"], arguments.num_chains)["choose"]
    counts = arguments.output / "counts"
    counts.mkdir(exist_ok=True)
    tables: dict[float, dict[str, dict[int, np.ndarray]]] = {noise: {} for noise in arguments.noise}
    report: dict[str, Any] = {}
    for name, variant in variants.items():
        by_seed = {seed: folder_of(arguments.output, name, seed) for seed in arguments.seeds}
        by_seed = {seed: folder for seed, folder in by_seed.items() if (folder / "train.json").exists()}
        if not by_seed:
            continue
        folders = list(by_seed.values())
        models = {seed: load_checkpoint(str(folder))[0] for seed, folder in by_seed.items()}
        report[name] = {"with": variant.get("with"), "seeds": list(by_seed)}
        report[name]["parameters"] = sum(each.numel() for each in models[min(by_seed)].parameters())
        report[name]["updates"] = json.loads((folders[0] / "train.json").read_text())["steps"]
        report[name]["cpu_seconds"] = [json.loads((folder / "seconds.json").read_text()) for folder in folders]
        for noise in arguments.noise:
            for seed, model in models.items():
                key = f"{digest_weights(model)}-{hash_data(arguments.data)[:16]}-{len(rows)}-{noise:g}"
                saved = count(counts, key, 1, rows, lambda model=model: model, ["masked15"],
                              token_budget=2048, noise=noise, progress=False)  # fmt: skip
                tables[noise].setdefault(name, {})[seed] = saved["masked15"]["counts"][0]
    compared = {name: variant.get("with") for name, variant in variants.items()}
    for noise, found in tables.items():
        for name, numbers in measure(found, compared, clusters, letter_ids(build_tokenizer())).items():
            report[name].setdefault("noise", {})[f"{noise:g}"] = numbers
    summary = {"protocol": "masked15", "chains": len(rows), "clusters": len(set(clusters)), "torch": torch.__version__}
    summary |= {"recipe": file["recipe"], "variants": report}
    write_json(arguments.results, summary)
    print("\n".join(table(summary)))


if __name__ == "__main__":
    main()
