"""Sharp and robust? Perplexity on held-out chains as deposited and with noise, and on predicted chains.

    python examples/inverse_folding/noise.py --data CHAINS.parquet --predicted PREDICTED.parquet --num_chains 300 \
        --model v_48_002 runs/v_48_002 --model v_48_020 runs/v_48_020 --model ours hub_cards/coordformer-mpnn-ca \
        --results examples/inverse_folding/results/noise_ca.json

Every model is asked for the same residues under `masked15`, chosen once. Half of the clusters of --split is there to
choose among models (`choose`), the other half to be looked at once, in the end (`test`); a hash of the cluster's number
says which. Intervals are 95 % of a bootstrap over clusters; `gain` is by how much the perplexity is below that of the
first model, as a share of it. Models with `config.noise_conditioning` are told how much noise is added. --predicted has
the column `max_train_identity`: from 0.3 on a chain is a relative of one to train on, and reported apart. Run it again
after a stop, or with further models: what is counted stays in --output.
"""

import argparse
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from compare import count

from coordformer import build_tokenizer
from coordformer.data.batching import fetch_rows
from coordformer.data.files import write_json
from coordformer.data.records import hash_data
from coordformer.data.rows import load_rows
from coordformer.inference.checkpoints import digest_weights, load_checkpoint
from coordformer.inference.masked import summarize_samples
from coordformer.inference.metrics import bootstrap
from coordformer.model.chain import chain_arrays
from coordformer.model.processing_coordformer import letter_ids

HALVES = ("choose", "test")
RELATIVE = 0.3  # identity to a chain to train on from which a predicted chain is a relative
SEED = 0  # of the chains that are drawn


def half_of(cluster: Any) -> str:
    """Which half of the held-out chains a cluster belongs to."""
    return HALVES[int(hashlib.md5(str(cluster).encode()).hexdigest(), 16) % 2]


def draw(places: np.ndarray, number: int | None) -> np.ndarray:
    """`number` of the places, at random, in their order; all where there are no more."""
    chosen = np.random.default_rng(SEED).permutation(places)[:number]
    return np.sort(chosen)


def held_out(path: str, split: str, halves: list[str], number: int | None) -> dict[str, tuple[list, list]]:
    """Rows and clusters by half."""
    rows = load_rows(path, split)
    clusters = np.array(rows["cluster"][:])
    if None in clusters:
        raise ValueError(f"{path} has chains without a cluster, which says what half they belong to.")
    found = {}
    for half in halves:
        places = draw(np.array([place for place, each in enumerate(clusters) if half_of(each) == half]), number)
        found[half] = fetch_rows(rows, places), clusters[places].tolist()
    return found


def predicted(path: str, number: int | None) -> dict[str, tuple[list, list]]:
    """Rows and clusters of predicted chains, relatives of chains to train on apart."""
    rows = load_rows(path)
    table = pq.read_table(path, columns=["max_train_identity", "component"])
    relatives = np.asarray(table["max_train_identity"]) >= RELATIVE
    components = np.asarray(table["component"])
    parts = {"predicted": ~relatives, "predicted, relatives of training chains": relatives}
    drawn = {name: draw(np.flatnonzero(inside), number) for name, inside in parts.items()}
    return {name: (fetch_rows(rows, places), components[places].tolist()) for name, places in drawn.items()}


def with_atoms(rows: list[dict[str, Any]], atoms: list[str] | None) -> list[dict[str, Any]]:
    """Rows with no other atoms than these."""
    if atoms is None:
        return rows
    return [{**row, "atoms": atoms, "coords": chain_arrays(row, atoms)[1].reshape(-1)} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, metavar="CHAINS.parquet")
    parser.add_argument("--predicted", metavar="PREDICTED.parquet")
    parser.add_argument("--split", default="valid", help="default: %(default)s")
    parser.add_argument("--halves", nargs="+", default=list(HALVES), choices=HALVES, help="default: both")
    parser.add_argument("--model", nargs=2, action="append", required=True, metavar=("NAME", "FOLDER"))
    parser.add_argument("--noise", nargs="+", type=float, default=[0.0, 0.1, 0.2], help="Å (default: 0 0.1 0.2)")
    parser.add_argument("--atoms", nargs="+", help="leave out all others, for models with `partial_backbones`")
    parser.add_argument("--noise_level", type=float, help="told to models in place of the noise that is added, Å")
    parser.add_argument("--without_coords", action="store_true", help="give letters alone; --noise changes nothing")
    parser.add_argument("--num_chains", type=int, help="chains of each part, drawn at random (default: all)")
    parser.add_argument("--token_budget", type=int, default=2048)
    parser.add_argument("--output", type=Path, default=Path("runs/noise"), metavar="FOLDER")
    parser.add_argument("--results", type=Path, required=True, metavar="FILE.json")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    parts = {
        half: (arguments.data, *rows)
        for half, rows in held_out(arguments.data, arguments.split, arguments.halves, arguments.num_chains).items()
    }
    if arguments.predicted:
        found = predicted(arguments.predicted, arguments.num_chains)
        parts |= {name: (arguments.predicted, *rows) for name, rows in found.items()}
    models = {name: load_checkpoint(folder)[0] for name, folder in arguments.model}
    told = arguments.noise_level
    for model in models.values():
        if told is not None and model.config.noise_conditioning:
            model.config.noise_level = told
    options = {"without_coords": arguments.without_coords, "token_budget": arguments.token_budget}
    state = (
        "-".join(["", *(arguments.atoms or ())])
        + "-without" * arguments.without_coords
        + (f"-told{told:g}" if told is not None else "")
    )
    letters = letter_ids(build_tokenizer())
    summary: dict[str, Any] = {"protocol": "masked15", "split": arguments.split, "num_mask_samples": 1}
    summary |= {"coordinates": "not given" if arguments.without_coords else "given", "noise_level": told}
    summary["atoms"] = arguments.atoms
    summary |= {"torch": torch.__version__, "parts": {}}
    for part, (path, rows, clusters) in parts.items():
        rows = with_atoms(rows, arguments.atoms)
        data = f"{hash_data(path)[:16]}-{part.partition(',')[0]}{'-relatives' * (',' in part)}-{len(rows)}{state}"
        measured: dict[str, Any] = {"chains": len(rows), "clusters": len(set(clusters)), "noise": {}}
        for noise in arguments.noise if part in HALVES else [0.0]:
            tables = {}
            for name, model in models.items():
                saved = count(
                    arguments.output, f"{digest_weights(model)}-{data}-{noise:g}", 1, rows, lambda model=model: model,
                    ["masked15"], noise=noise, progress=False, **options,
                )  # fmt: skip
                tables[name] = saved["masked15"]["counts"]
            gains = bootstrap({name: table[0] for name, table in tables.items()}, clusters)
            report = {name: summarize_samples(table, letters, clusters) for name, table in tables.items()}
            for name, values in report.items():
                values |= {key: value for key, value in gains[name].items() if key.startswith("gain")}
                low, high = values["perplexity_interval"]
                text = f"{part}, {noise:g} Å, {name}: {values['perplexity']:.3f} ({low:.2f} to {high:.2f})"
                print(text, f"recovery {values['recovery']:.3f}", flush=True)
            measured["noise"][f"{noise:g}"] = report
        summary["parts"][part] = measured
    write_json(arguments.results, summary)


if __name__ == "__main__":
    main()
