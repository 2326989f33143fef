"""The tables and the figure of the embedding study, from the CSV files of proteins.py and points.py.

    python examples/embeddings/report.py

Writes report.md and embeddings.png into --results.
"""

import argparse
import csv
import json
import math
import statistics
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

from coordformer.inference.figures import new_figure

HERE = Path(__file__).parent
COST = HERE.parent / "benchmarks" / "results" / "coordinate_embeddings.json"
GOAL = 14.0  # perplexity, protocol `paper`: about where a model without coordinates ends


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def grouped(rows: list[dict[str, str]], *columns: str) -> dict[tuple[str, ...], list[dict[str, str]]]:
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(row[column] for column in columns)].append(row)
    return groups


def mean_and_range(values: list[float], digits: int) -> str:
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def residues_to_reach(points: list[tuple[float, float]], goal: float) -> float | None:
    """Where the curve (residues, perplexity) first crosses the goal, between two evaluations by interpolation."""
    for (before, high), (after, low) in pairwise(points):
        if low <= goal < high:
            return before + (after - before) * (math.log(high) - math.log(goal)) / (math.log(high) - math.log(low))
    return points[0][0] if points and points[0][1] <= goal else None


def table(head: list[str], body: list[list[str]]) -> list[str]:
    rows = ["| " + " | ".join(cells) + " |" for cells in (head, *body)]
    return [rows[0], "|" + " --- |" * len(head), *rows[1:], ""]


def report_proteins(ends: list[dict[str, str]], curve: list[dict[str, str]]) -> list[str]:
    reached = defaultdict(list)
    for (variant, _), rows in grouped(curve, "variant", "seed").items():
        points = [(float(row["residues"]), float(row["perplexity"])) for row in rows]
        reached[variant].append(residues_to_reach(points, GOAL))
    body = []
    for (variant,), rows in grouped(ends, "variant").items():
        cells = [variant, f"{int(rows[0]['parameters']):,}", str(len({row["seed"] for row in rows}))]
        for protocol in ("paper", "masked15"):
            mine = [row for row in rows if row["protocol"] == protocol]
            cells.append(mean_and_range([float(row["perplexity"]) for row in mine], 2))
            cells.append(f"{100 * statistics.mean(float(row['recovery']) for row in mine):.1f} %")
        seen = reached[variant]
        cells.append(
            "not reached" if None in seen or not seen else f"{statistics.mean(filter(None, seen)) / 1e6:.2f} million"
        )
        body.append(cells)
    residues = max(int(row["residues"]) for row in curve)
    head = ["embedding", "parameters", "seeds", "perplexity, `paper`", "recovery", "perplexity, `masked15`", "recovery"]
    return [
        "## Proteins",
        "",
        f"{ends[0]['chains']} held-out chains of at most 256 residues, {residues:,} residues seen in training; mean "
        "over the seeds (smallest to largest).",
        "",
        *table([*head, f"residues to perplexity {GOAL:g}"], body),
    ]


def report_points(ends: list[dict[str, str]]) -> list[str]:
    column = next(name for name in ends[0] if name.startswith("updates_to_"))
    body = []
    for (variant,), rows in grouped(ends, "variant").items():
        reached = [row[column] for row in rows]
        body.append([
            variant, f"{int(rows[0]['parameters']):,}", mean_and_range([float(row["best"]) for row in rows], 5),
            ", ".join(each or "not reached" for each in reached),
        ])  # fmt: skip
    head = [
        "embedding",
        "parameters",
        "best validation L1",
        f"updates to {column.removeprefix('updates_to_')}, by seed",
    ]
    return ["## Points", "", f"{int(ends[0]['updates']):,} updates of 16 structures, p = 2.", "", *table(head, body)]


def report_cost() -> list[str]:
    record = json.loads(COST.read_text())
    lines = ["## Cost of a training step", ""]
    for title, rows, unit in (("ms", record["seconds"], 1e-3), ("MiB", record["peak_bytes"], 2**20)):
        sizes = list(next(iter(rows.values())))
        body = [
            [name, *(each if isinstance(each, str) else f"{each / unit:,.1f}" for each in row.values())]
            for name, row in rows.items()
        ]
        lines += table([f"{title} at points", *(f"{int(size):,}" for size in sizes)], body)
    return lines


def plot(results: Path, protein_curve: list[dict[str, str]], point_curve: list[dict[str, str]]) -> None:
    if (figure := new_figure((12, 4.6), results / "embeddings.png")) is None:
        return
    proteins, points = figure.subplots(1, 2)
    names = [name for (name,) in grouped(protein_curve + point_curve, "variant")]
    colors = {name: f"C{number}" for number, name in enumerate(names)}
    for axes, curve, x, y in (
        (proteins, protein_curve, "residues", "perplexity"),
        (points, point_curve, "update", "loss"),
    ):
        for (variant,), rows in grouped(curve, "variant").items():
            places = sorted(grouped(rows, x).items(), key=lambda item: int(item[0][0]))
            xs = [int(place) for (place,), _ in places]
            values = [[float(row[y]) for row in group] for _, group in places]
            axes.plot(xs, list(map(statistics.mean, values)), color=colors[variant], label=variant)
            axes.fill_between(xs, list(map(min, values)), list(map(max, values)), color=colors[variant], alpha=0.2)
        axes.set_yscale("log")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    proteins.set(xlabel="residues seen", ylabel="perplexity of held-out chains", title="proteins, masked residues")
    points.set(xlabel="update", ylabel="validation L1", title="simulated points, p = 2")
    proteins.yaxis.set_major_formatter("{x:g}")
    proteins.yaxis.set_minor_formatter("{x:g}")
    figure.savefig(results / "embeddings.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="FOLDER")
    results = parser.parse_args().results
    tables = {name: read(results / f"{name}.csv") for name in ("proteins", "proteins_curve", "points", "points_curve")}
    lines = ["# Which coordinate embedding: results", ""]
    if tables["proteins"]:
        lines += report_proteins(tables["proteins"], tables["proteins_curve"])
    if tables["points"]:
        lines += report_points(tables["points"])
    if COST.exists():
        lines += report_cost()
    (results / "report.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    plot(results, tables["proteins_curve"], tables["points_curve"])
    print("\n".join(lines))


if __name__ == "__main__":
    main()
