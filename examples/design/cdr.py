"""CDR 3 of heavy chains, designed with and without the antigen.

    python examples/design/cdr.py --model hub_cards/coordformer-1M-pdb --model hub_cards/coordformer-7M-pdb \
        --complexes COMPLEXES.parquet

COMPLEXES.parquet says for each chain whether it is of an antibody (`antibody_chain`) and its cluster of 90 % identity
(`cluster90`). The loop is found by its ends, which hardly vary: what lies between `YYC` (or its like) and `WGxG`. Its
residues are masked, everything else is kept: all chains, or those of the antibody alone. --results gets cdr.json.
"""

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from tqdm.auto import tqdm

from coordformer import design
from coordformer.data.files import write_json
from coordformer.inference.checkpoints import digest_weights, load_checkpoint
from coordformer.inference.metrics import ratio_interval
from coordformer.inference.runner import Inputs
from coordformer.model.chain import AMINO_ACIDS, Complex, join_chains
from coordformer.model.design import DesignTask
from coordformer.model.proteins import as_chain

LOOP = re.compile(r"[YFW][YFH]C(.{3,32}?)WG.G")
NEAR = 10.0  # Å between C-alpha atoms
COLUMNS = ("id", "kind", "antibody_chain", "cluster90")


def loops(protein: Complex, antibody: list[bool]) -> list[tuple[int, int, int]]:
    """Of each heavy chain with that loop: number of the chain, first residue of the loop and the one behind it."""
    found, start = [], 0
    for number, length in enumerate(protein.chain_lengths):
        if antibody[number] and (match := LOOP.search(protein.sequence[start : start + length])):
            found.append((number, start + match.start(1), start + match.end(1)))
        start += length
    return found


def keep_chains(protein: Complex, kept: np.ndarray) -> Complex:
    """The chains (chains,) bool of a complex, where they are."""
    places = np.flatnonzero(kept)
    return join_chains(
        protein.id, [protein.chains[place] for place in places], [protein.chain_names[place] for place in places]
    )


def task_for(protein: Complex, first: int, end: int) -> DesignTask:
    """Only the loop is designed."""
    designed = np.zeros(len(protein), dtype=bool)
    designed[first:end] = protein.observed[first:end].any(axis=1)
    groups = [np.array([index]) for index in np.flatnonzero(designed)]
    bias = np.zeros((len(protein), len(AMINO_ACIDS)))
    return DesignTask(designed, bias, groups, [np.ones(1)] * len(groups))


def measure(model: Any, processor: Any, protein: Complex, antibody: list[bool], place: tuple[int, int, int]) -> dict:
    number, first, end = place
    kept = np.array(antibody)
    alone = keep_chains(protein, kept)
    moved = sum(length for length, k in zip(protein.chain_lengths[:number], kept, strict=False) if not k)
    row: dict[str, Any] = {"chain": protein.chain_names[number], "loop": protein.sequence[first:end]}
    for name, given, shift in (("with", protein, 0), ("without", alone, moved)):
        task = task_for(given, first - shift, end - shift)
        designs = design(model, given, task, processor=processor)
        inside = np.flatnonzero(task.designed)
        row[name] = {
            "residues": len(inside),
            "recovered": float(designs.recoveries.mean() * len(inside)),
            "native_nats": designs.native_score * len(inside),
            "best": "".join(designs.sequences[int(designs.scores.argmin())][index] for index in inside),
        }
    others = protein.coords[~kept[protein.chain_index], 0]
    distances = np.linalg.norm(protein.coords[first:end, None, 0] - others, axis=-1)
    row["near_antigen"] = int((np.nan_to_num(distances, nan=np.inf).min(axis=1) < NEAR).sum())
    return row


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    clusters = [str(row["cluster"]) for row in rows]
    residues = np.array([row["with"]["residues"] for row in rows], dtype=float)
    summary: dict[str, Any] = {"loops": len(rows), "residues": int(residues.sum()), "clusters": len(set(clusters))}
    for key in ("recovered", "native_nats"):
        values = {name: np.array([row[name][key] for row in rows]) for name in ("with", "without")}
        values["difference"] = values["with"] - values["without"]
        for name, each in values.items():
            summary[f"{key}_{name}"] = [float(each.sum() / residues.sum()), *ratio_interval(each, residues, clusters)]
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", action="append", required=True, metavar="FOLDER")
    parser.add_argument("--complexes", required=True, metavar="COMPLEXES.parquet")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", metavar="FOLDER")
    options = parser.parse_args()
    torch.set_num_threads(1)
    about = {row["id"]: row for row in pq.read_table(options.complexes, columns=list(COLUMNS)).to_pylist()}
    records = [each for each in Inputs(options.complexes).read_all() if about[each["id"]]["kind"] == "antibody-antigen"]
    report: dict[str, Any] = {"entries": len(records), "models": {}}
    for folder in options.model:
        model, processor = load_checkpoint(folder, "float32")
        rows = []
        for record in tqdm(records):
            protein, known = as_chain(record), about[record["id"]]
            for place in loops(protein, known["antibody_chain"]):
                found = measure(model, processor, protein, known["antibody_chain"], place)
                rows.append({"id": protein.id, "cluster": known["cluster90"][place[0]]} | found)
        near = [row for row in rows if row["near_antigen"]]
        report["models"][Path(folder).name] = {
            "weights": digest_weights(model), "entries_with_a_loop": len({row["id"] for row in rows}),
            "all": summarize(rows), "near_the_antigen": summarize(near), "rows": rows,
        }  # fmt: skip
        options.results.mkdir(parents=True, exist_ok=True)
        write_json(options.results / "cdr.json", report)
        print(Path(folder).name, report["models"][Path(folder).name]["all"])


if __name__ == "__main__":
    main()
