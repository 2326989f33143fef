"""Predicted structures by the program that made them, and by their pLDDT: perplexity of masked residues.

    python examples/inverse_folding/predicted.py --predicted PREDICTED.parquet --results FILE.json \
        --model v_48_020 runs/v_48_020 --model ours hub_cards/coordformer-mpnn-ca

Under `masked15`, the same residues for all models. Chains whose identity with a chain to train on is 30 % or more
(`max_train_identity`) are apart from the others. `method` is the program; bins of pLDDT are of residues (`plddt`, 0 to
100), of files that have it. Intervals are 95 % of a bootstrap over `component`, chains that are similar to each other.
"""

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from calibration import letters_alone
from noise import RELATIVE, with_atoms

from coordformer import build_tokenizer
from coordformer.data.batching import fetch_rows
from coordformer.data.collator import CoordformerDataCollator
from coordformer.data.files import write_json
from coordformer.data.rows import load_rows
from coordformer.inference.checkpoints import load_checkpoint
from coordformer.inference.masked import predict_masked
from coordformer.inference.metrics import CORRECT, COUNT, NLL, interval, resample
from coordformer.model.processing_coordformer import letter_ids

PLDDT = (0, 70, 90, 95, 101)  # edges of the bins
FEWEST = 5  # components, without which a group is not reported


def predictions(model: Any, rows: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each masked residue its chain (n,) and place in it (n,), and counts (n, 3): 1, nats, whether it is right."""
    tokenizer = build_tokenizer()
    layout: dict[str, Any] = {"atoms": model.config.coordinate_atoms, "optional_atoms": model.config.optional_atoms}
    collate = CoordformerDataCollator(tokenizer, masking="masked15", rotate=False, **layout)
    letters, found = list(letter_ids(tokenizer).values()), []
    with torch.inference_mode():
        for number, truth, frames in predict_masked(model, rows, tokenizer, token_budget=2048):
            labels = collate([{**rows[number], "epoch": 0}])["labels"][0, 1:-1]
            (asked,) = (labels != -100).nonzero(as_tuple=True)
            assert torch.equal(labels[asked], truth), "the residues that were masked"
            logits, right = letters_alone([(frames[0], truth)], letters)
            likely = logits.log_softmax(dim=-1)
            nats = -likely.gather(1, right.unsqueeze(1)).squeeze(1)
            counts = torch.stack((torch.ones_like(nats), nats, (likely.argmax(dim=-1) == right).float()), dim=-1)
            found.append((np.full(len(asked), number), asked.numpy(), counts.double().numpy()))
    chains, residues, counts = (np.concatenate(each) for each in zip(*found, strict=True))
    return chains, residues, counts


def report(counts: np.ndarray, components: np.ndarray) -> dict[str, Any]:
    """Perplexity and recovery with intervals, of residues' counts (n, 3) and components (n,)."""
    drawn, total = resample(counts, clusters=components), counts.sum(axis=0)
    return {
        "components": len(set(components)), "residues": int(total[COUNT]),
        "perplexity": float(np.exp(total[NLL] / total[COUNT])),
        "perplexity_interval": interval(np.exp(drawn[:, NLL] / drawn[:, COUNT])),
        "recovery": float(total[CORRECT] / total[COUNT]),
        "recovery_interval": interval(drawn[:, CORRECT] / drawn[:, COUNT]),
    }  # fmt: skip


def table(summary: dict[str, Any]) -> list[str]:
    """Lines of a table in Markdown: perplexities, with intervals where all programs and residues are together."""
    models = summary["models"]
    lines = [f"| predicted chains | residues | {' | '.join(models)} |", "| --- | --- |" + " --- |" * len(models)]
    for part, groups in next(iter(models.values())).items():
        for group, first in groups.items():
            cells = []
            for found in models.values():
                values = found[part][group]
                low, high = values["perplexity_interval"]
                cells.append(f"{values['perplexity']:.2f}" + f" ({low:.2f} to {high:.2f})" * (group == "all"))
            lines.append(f"| {part}, {group} | {first['residues']:,} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--predicted", required=True, metavar="PREDICTED.parquet")
    parser.add_argument("--model", nargs=2, action="append", required=True, metavar=("NAME", "FOLDER"))
    parser.add_argument("--atoms", nargs="+", help="leave out all others, for models with `partial_backbones`")
    parser.add_argument("--results", type=Path, required=True, metavar="FILE.json")
    arguments = parser.parse_args()
    columns = pq.read_table(arguments.predicted, columns=["method", "max_train_identity", "component", "plddt"])
    components, methods = np.asarray(columns["component"]), np.array(columns["method"].to_pylist())
    relatives = np.asarray(columns["max_train_identity"]) >= RELATIVE
    rows = load_rows(arguments.predicted)
    chains = with_atoms(fetch_rows(rows, np.arange(len(rows))), arguments.atoms)
    plddt = [np.full(len(row["sequence"]), np.nan) if values is None else np.asarray(values, dtype=float)
             for row, values in zip(chains, columns["plddt"].to_pylist(), strict=True)]  # fmt: skip
    summary: dict[str, Any] = {"protocol": "masked15", "num_mask_samples": 1, "atoms": arguments.atoms}
    summary |= {"torch": torch.__version__, "models": {}}
    for name, folder in arguments.model:
        number, place, counts = predictions(load_checkpoint(folder)[0], chains)
        confidence = np.array([plddt[chain][residue] for chain, residue in zip(number, place, strict=True)])
        bins = {f"pLDDT {low} to {min(high, 100)}": (confidence >= low) & (confidence < high)
                for low, high in pairwise(PLDDT)}  # fmt: skip
        groups = {"all": np.ones(len(number), dtype=bool)}
        groups |= {method: methods[number] == method for method in sorted(set(methods))} | bins
        found = summary["models"][name] = {}
        for part, inside in (("no relatives", ~relatives[number]), ("relatives of training chains", relatives[number])):
            chosen = {group: inside & of for group, of in groups.items()}
            found[part] = {group: report(counts[of], components[number[of]]) for group, of in chosen.items()
                           if len(set(components[number[of]])) >= FEWEST}  # fmt: skip
    write_json(arguments.results, summary)
    print("\n".join(table(summary)))


if __name__ == "__main__":
    main()
