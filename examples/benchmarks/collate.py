"""Residues a second: `CoordformerDataCollator` against a Python loop over residues.

    python examples/benchmarks/collate.py

Both sides make the same masked-LM batch of the same rows: tokens, labels, attention mask, padded coordinates and a
random rotation for each chain. The loop does for each residue what one writes first: look up its token, draw whether it
is predicted and what becomes of it, append its coordinates. Both run in one process with one thread, in turns; the time
of a side is the median over the repeats of the time for all batches.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from harness import take_turns, write_record

from coordformer import build_tokenizer
from coordformer.data.batching import ChainBatches
from coordformer.data.collator import CoordformerDataCollator, rotations_from_normals
from coordformer.data.rows import load_rows
from coordformer.model.chain import AMINO_ACIDS

HERE = Path(__file__).parent


def make_loop(tokenizer) -> Callable[[list[list[dict]]], dict[str, torch.Tensor]]:
    ids = tokenizer.get_vocab()
    letters = [ids[letter] for letter in AMINO_ACIDS]
    missing = [float("nan")] * 3

    def collate(features: list[list[dict]]) -> dict[str, torch.Tensor]:
        rows = features[0]
        longest = max(len(row["sequence"]) for row in rows) + 2
        batch: dict[str, list] = {"input_ids": [], "labels": [], "attention_mask": [], "coords": [], "rotations": []}
        for row in rows:
            tokens, labels, coords = [ids["<cls>"]], [-100], [missing]
            values = row["coords"].tolist()
            for index, letter in enumerate(row["sequence"]):
                token = ids[letter]
                label = -100
                if random.random() < 0.15:
                    label = token
                    fate = random.random()
                    if fate < 0.8:
                        token = ids["<mask>"]
                    elif fate < 0.9:
                        token = random.choice(letters)
                tokens.append(token)
                labels.append(label)
                coords.append(values[3 * index : 3 * index + 3])
            tokens.append(ids["<eos>"])
            labels.append(-100)
            coords.append(missing)
            padding = longest - len(tokens)
            batch["attention_mask"].append([1] * len(tokens) + [0] * padding)
            batch["input_ids"].append(tokens + [ids["<pad>"]] * padding)
            batch["labels"].append(labels + [-100] * padding)
            batch["coords"].append(torch.tensor(coords + [missing] * padding))
            batch["rotations"].append(rotations_from_normals(torch.randn(3, 3)).unsqueeze(0))
        tensors = {name: torch.stack(batch.pop(name)) for name in ("coords", "rotations")}
        return {name: torch.tensor(value) for name, value in batch.items()} | tensors

    return collate


def seconds(collate: Callable, batches: list[list[dict]]) -> float:
    start = time.perf_counter()
    for batch in batches:
        collate([batch])
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parent / "data" / "chains.parquet")
    parser.add_argument("--token_budget", type=int, default=16384)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "collate.json")
    options = parser.parse_args()
    torch.set_num_threads(1)

    tokenizer = build_tokenizer()
    data = ChainBatches(load_rows(options.data), token_budget=options.token_budget, packing=False)
    batches = [data[index] for index in range(min(options.batches, len(data)))]
    residues = sum(len(row["sequence"]) for batch in batches for row in batch)
    sides = {"coordformer": CoordformerDataCollator(tokenizer), "loop": make_loop(tokenizer)}
    shapes = [{name: value.shape for name, value in side([batches[0]]).items()} for side in sides.values()]
    assert shapes[0] == shapes[1]

    raw = take_turns({name: partial(seconds, side, batches) for name, side in sides.items()}, options.repeats)
    rates = {name: residues / statistics.median(times) for name, times in raw.items()}
    ratio = rates["coordformer"] / rates["loop"]
    print(f"{residues} residues in {len(batches)} batches of at most {options.token_budget} tokens")
    for name, rate in rates.items():
        print(f"{name:14}{rate:14,.0f} residues/s")
    print(f"ratio {ratio:.1f}")
    record = {
        "residues": residues,
        "batches": len(batches),
        "residues_per_second": rates,
        "ratio": ratio,
        "seconds": raw,
    }
    write_record(options.output, record, ("numpy", "torch"))


if __name__ == "__main__":
    main()
