"""Which coordinate embedding learns a Gaussian of distance soonest? The points of the paper's section 1, p = 2.

    python examples/embeddings/points.py --output runs/embeddings_points

Models of width 64 with 8 heads, three seeds of first weights each, the same structures, batches and rotations. Run it
again after a stop: it goes on where it was. --results gets points.csv and points_curve.csv.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

import torch

from coordformer.data.files import write_atomically
from coordformer.training.point_clouds import PointCloudAttention

sys.path.insert(0, str(Path(__file__).parents[1] / "point_clouds"))
from stacks import Member, best_validation, make_structures, point_cloud_config, train_stack, updates_to_reach

WIDTH, HEADS = 64, 8
GOAL = 0.003
# Distances reach 346: the values of the bias end at twice its scale.
VARIANTS = {
    "linear, scale 16 (paper)": {"coordinate_embedding": "linear", "coordinate_scale": 16},
    "linear": {"coordinate_embedding": "linear", "coordinate_scale": 100},
    "quadratic": {"coordinate_embedding": "quadratic", "coordinate_scale": 100},
    "distance bias": {"coordinate_embedding": "none", "num_distance_bins": 32, "coordinate_scale": 175},
    "quadratic, Gaussian start": {
        "coordinate_embedding": "quadratic",
        "coordinate_init": "gaussian",
        "coordinate_scale": 100,
    },
}


def run(variant: str, output: Path, updates: int, seeds: int) -> dict:
    """Train the seeds of a variant, unless that was done."""
    name = "".join(letter if letter.isalnum() else "_" for letter in variant)
    result = output / f"{name}.json"
    if not result.exists():
        config = point_cloud_config(WIDTH, HEADS, **VARIANTS[variant])
        structures = make_structures(10_000)
        history = train_stack(
            config,
            WIDTH // HEADS,
            [Member(seed=seed) for seed in range(seeds)],
            structures[:8000],
            structures[8000:9000],
            updates=updates,
            warmup=updates // 3,
            validate_every=max(updates // 60, 1),
            state=output / f"{name}.pt",
        )
        parameters = sum(weight.numel() for weight in PointCloudAttention(config, WIDTH // HEADS).parameters())
        content = {"updates": updates, "parameters": parameters, "history": history}
        write_atomically(result, lambda temporary: temporary.write_text(json.dumps(content) + "\n"))
        (output / f"{name}.pt").unlink()
    return json.loads(result.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/embeddings_points"), metavar="FOLDER")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", metavar="FOLDER")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--updates", type=int, default=6000)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    arguments.results.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # small products: more threads wait for each other
    ends, curve = [], []
    for variant in arguments.variants:
        content = run(variant, arguments.output, arguments.updates, arguments.seeds)
        history = content["history"]
        for seed in range(arguments.seeds):
            best = best_validation(history, seed)
            reached = updates_to_reach(history, seed, GOAL)
            ends.append([variant, seed, content["parameters"], content["updates"], f"{best:.4g}", reached])
            curve += [[variant, seed, entry["update"], f"{entry['valid'][seed]:.4g}"] for entry in history]
        print(variant, [line[-2:] for line in ends[-arguments.seeds :]], flush=True)
    for name, head, lines in (
        ("points.csv", ["variant", "seed", "parameters", "updates", "best", f"updates_to_{GOAL}"], ends),
        ("points_curve.csv", ["variant", "seed", "update", "loss"], curve),
    ):
        with open(arguments.results / name, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([head, *lines])


if __name__ == "__main__":
    main()
