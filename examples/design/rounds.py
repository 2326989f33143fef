"""How many rounds should `design` take? Designs of chains and complexes by 1, 2, 4, 8 and 16 rounds.

    python examples/design/rounds.py hub_cards/coordformer-1M-pdb --chains CHAINS.parquet --complexes COMPLEXES.parquet

CHAINS.parquet has a split `valid`. From each file some proteins are drawn and designed whole, as deposited and with
noise on the coordinates, drawn by the protein's id. --results gets MODEL.json with all numbers: of each protein those
that the summary is made of, too. Seconds are of the processor, on one core.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from coordformer import Chain, design
from coordformer.data.files import write_json
from coordformer.inference.checkpoints import digest_weights, load_checkpoint
from coordformer.inference.masked import chain_generator
from coordformer.inference.metrics import interval, ratio_interval, resample
from coordformer.inference.runner import Inputs
from coordformer.model.chain import AMINO_ACIDS
from coordformer.model.proteins import as_chain, cluster_of, residues_of

ROUNDS = (1, 2, 4, 8, 16)
NOISE = (0.0, 0.2)  # Å
WINDOW, LOW = 12, 2.2  # residues and bits, as of SEG (Wootton and Federhen 1993)


def draw(path: str, split: str | None, count: int, longest: int) -> list[tuple[Chain, Any]]:
    """So many proteins that are no longer than `longest`, and of each its cluster."""
    records = [record for record in Inputs(path, split=split).read_all() if residues_of(record) <= longest]
    chosen = np.sort(np.random.default_rng(0).choice(len(records), min(count, len(records)), replace=False))
    return [(as_chain(records[number]), cluster_of(records[number])) for number in chosen.tolist()]


def low_complexity(chains: list[str]) -> float:
    """Share of the residues that lie in a window of 12 whose letters have less than 2.2 bits of entropy."""
    low = total = 0
    for chain in chains:
        letters = np.array(list(chain))[:, None] == np.array(list(AMINO_ACIDS + "X"))
        sums = np.pad(letters.cumsum(axis=0), ((1, 0), (0, 0)))
        shares = (sums[WINDOW:] - sums[:-WINDOW]) / WINDOW
        below = -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(axis=1) < LOW
        marked = np.zeros(len(chain), dtype=bool)
        for start in np.flatnonzero(below):
            marked[start : start + WINDOW] = True
        low, total = low + int(marked.sum()), total + len(chain)
    return low / total


def composition(sequence: str) -> list[int]:
    return [sequence.count(letter) for letter in AMINO_ACIDS]


def divergence(counts: np.ndarray, natural: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence of compositions (..., 20), bits."""
    one, other = (each / each.sum(axis=-1, keepdims=True) for each in (counts, natural))
    mean = (one + other) / 2

    def entropy(shares: np.ndarray) -> np.ndarray:
        return -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(axis=-1)

    return entropy(mean) - (entropy(one) + entropy(other)) / 2


def measure(
    model: Any, processor: Any, proteins: list[tuple[Chain, Any]], noise: float, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Of each protein and number of rounds a row of numbers."""
    for protein, cluster in tqdm(proteins, desc=f"{noise} Å"):
        moved = noise * chain_generator(protein.id, 2).normal(size=protein.coords.shape)
        moved_protein = type(protein)(**vars(protein) | {"coords": protein.coords + moved.astype(np.float32)})
        for rounds in options.rounds:
            start = time.process_time()
            designs = design(
                model, moved_protein, processor=processor, rounds=rounds,
                num_samples=options.num_samples, temperature=options.temperature,
            )  # fmt: skip
            seconds = time.process_time() - start
            places = np.flatnonzero(designs.designed & (np.array(list(protein.sequence)) != "X"))
            native, *drawn = (np.array(list(sequence))[places] for sequence in (designs.native, *designs.sequences))
            yield {
                "id": protein.id,
                "cluster": protein.id if cluster is None else cluster,
                "rounds": rounds,
                "residues": len(places),
                "recovered": float(np.mean([(letters == native).sum() for letters in drawn])),
                "score": float(designs.scores.mean()),
                "native_score": designs.native_score,
                "equal": float((drawn[0] == drawn[-1]).mean()),  # of two samples
                "low": float(np.mean([low_complexity(designs.split(sequence)) for sequence in designs.sequences])),
                "native_low": low_complexity(designs.split(designs.native)),
                "seconds": seconds / options.num_samples,
                "composition": composition("".join("".join(letters) for letters in drawn)),
                "native_composition": composition("".join(native)),
            }


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One line of the table, with 95 % intervals over clusters."""

    def column(name: str) -> np.ndarray:
        return np.array([row[name] for row in rows], dtype=float)

    clusters = [str(row["cluster"]) for row in rows]
    recovered, residues = column("recovered"), column("residues")
    compositions = np.stack([column("composition"), column("native_composition")], axis=1)
    drawn = resample(compositions, clusters=clusters)
    total = compositions.sum(axis=0)
    return {
        "rounds": rows[0]["rounds"],
        "recovery": recovered.sum() / residues.sum(),
        "recovery_interval": ratio_interval(recovered, residues, clusters),
        "jensen_shannon": float(divergence(total[0], total[1])),
        "jensen_shannon_interval": interval(divergence(drawn[:, 0], drawn[:, 1])),
        "low_complexity_residues": float((column("low") * residues).sum() / residues.sum()),
        "low_complexity_natural": float((column("native_low") * residues).sum() / residues.sum()),
        "designs_with_a_tenth_low": float((column("low") > 0.1).mean()),
        "natural_with_a_tenth_low": float((column("native_low") > 0.1).mean()),
        "equal_between_samples": float((column("equal") * residues).sum() / residues.sum()),
        "score": float((column("score") * residues).sum() / residues.sum()),
        "seconds": float(column("seconds").mean()),
    }


def differences(tables: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    """Recovery of each number of rounds less that of one round, on the same proteins, with intervals."""
    one = next(iter(tables.values()))
    residues = np.array([row["residues"] for row in one], dtype=float)
    clusters = [str(row["cluster"]) for row in one]
    lines = {}
    for rounds, rows in tables.items():
        gained = np.array([row["recovered"] - first["recovered"] for row, first in zip(rows, one, strict=True)])
        lines[str(rounds)] = [float(gained.sum() / residues.sum()), *ratio_interval(gained, residues, clusters)]
    return lines


def _short(value: Any) -> Any:
    """A row's value on one line: counts as text."""
    return " ".join(map(str, value)) if isinstance(value, list) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--chains", metavar="CHAINS.parquet")
    parser.add_argument("--complexes", metavar="COMPLEXES.parquet")
    parser.add_argument("--num_chains", type=int, default=60)
    parser.add_argument("--num_complexes", type=int, default=20)
    parser.add_argument("--longest", type=int, default=500, help="residues of a protein (default: %(default)s)")
    parser.add_argument("--rounds", nargs="+", type=lambda text: text if text == "all" else int(text), default=ROUNDS)
    parser.add_argument("--num_samples", type=int, default=2)
    parser.add_argument("--temperature", type=float, default=0.1)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", metavar="FOLDER")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, processor = load_checkpoint(options.checkpoint, "float32")
    kinds = {}
    if options.chains:
        kinds["chains"] = draw(options.chains, "valid", options.num_chains, options.longest)
    if options.complexes:
        kinds["complexes"] = draw(options.complexes, None, options.num_complexes, options.longest)
    name = Path(options.checkpoint).name
    report: dict[str, Any] = {"checkpoint": name, "weights": digest_weights(model), "torch": torch.__version__}
    report |= {key: getattr(options, key) for key in ("num_samples", "temperature", "longest")}
    for kind, proteins in kinds.items():
        for noise in NOISE:
            rows = list(measure(model, processor, proteins, noise, options))
            tables = {rounds: [row for row in rows if row["rounds"] == rounds] for rounds in options.rounds}
            report[f"{kind}, noise {noise}"] = {
                "proteins": len(proteins),
                "residues": sum(row["residues"] for row in tables[options.rounds[0]]),
                "clusters": len({str(cluster) for _, cluster in proteins}),
                "by_rounds": [summarize(table) for table in tables.values()],
                "gained_over_one_round": differences(tables),
                "rows": [{name: _short(value) for name, value in row.items()} for row in rows],
            }
            options.results.mkdir(parents=True, exist_ok=True)
            write_json(options.results / f"{name}.json", report)
            print(kind, noise)
            for line in report[f"{kind}, noise {noise}"]["by_rounds"]:
                print(json.dumps({key: value for key, value in line.items()}))


if __name__ == "__main__":
    main()
