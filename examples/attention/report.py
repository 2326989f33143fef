"""Tables and figures of `coordformer attention` runs beside the paper's, from their CSV files.

    coordformer attention CHECKPOINT DATA --split valid --output RESULTS/with_coordinates
    coordformer attention CHECKPOINT DATA --split valid --output RESULTS/without_coordinates
    python examples/attention/report.py RESULTS

Every folder in RESULTS with a summary.json is a run; RESULTS gets report.md, and each folder its figures anew.
"""

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coordformer.analysis.attention import CONDITIONS, TABLES, draw_figures

# Read off the published plots, one head of each layer: amplitude, sigma in Å (paper, section 3).
PAPER = {1: (0.11, 4.7), 2: (0.44, 2.7), 3: (0.27, 3.5), 4: (0.15, 4.7), 5: (0.01, 18), 6: (0.03, 7)}


def read_tables(folder: str | Path) -> dict[str, list[dict[str, Any]]]:
    """The tables of a run: numbers, texts, and None for an empty cell."""

    def parse(text: str) -> Any:
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                pass
        return text or None

    tables = {}
    for name in TABLES:
        with open(Path(folder) / f"{name}.csv", newline="", encoding="utf-8") as file:
            tables[name] = [{key: parse(text) for key, text in row.items()} for row in csv.DictReader(file)]
    return tables


def with_interval(row: dict, name: str, digits: int = 3, scale: float = 1.0) -> str:
    """`value (low to high)`, or nothing where there is no value."""
    if row[name] is None:
        return ""
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    text = f"{scale * value:.{digits}g}"
    return text if low is None else f"{text} ({scale * low:.{digits}g} to {scale * high:.{digits}g})"


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    return [f"| {' | '.join(map(str, line))} |" for line in (head, ["---"] * len(head), *rows)] + [""]


def select(rows: Sequence[dict], **values: object) -> list[dict]:
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def describe_fits(runs: dict[str, tuple[dict, dict]]) -> list[str]:
    """The paper's fits beside those of the chosen head of each layer, in each condition."""
    lines = ["## Gaussians of distance", ""]
    for name, (summary, tables) in runs.items():
        conditions = [each for each in CONDITIONS if select(tables["heads"], condition=each)]
        rows = []
        for layer, head in summary["best_heads"].items():
            amplitude, sigma = PAPER.get(int(layer), ("", ""))
            cells: list[object] = [layer, amplitude, sigma, head]
            for condition in conditions:
                row = select(tables["heads"], layer=int(layer), head=head, condition=condition)[0]
                ok = row["fit"] == "ok"
                cells += [
                    with_interval(row, "amplitude"),
                    with_interval(row, "sigma"),
                    f"{row['r2']:.2f}" if ok else row["fit"],
                ]
            rows.append(cells)
        head_line = ["layer", "amplitude, paper", "sigma, paper (Å)", "head"]
        head_line += [f"{what}, {each}" for each in conditions for what in ("amplitude", "sigma (Å)", "R² or reason")]
        lines += [f"### {name}", "", *markdown(head_line, rows)]
        counts = [f"{len(select(tables['heads'], condition=each, fit='ok'))} {each}" for each in conditions]
        total = len(select(tables["heads"], condition="given"))
        lines += [f"Heads of {total} with a Gaussian, by coordinates: {', '.join(counts)}.", ""]
        lines += [f"![Attention by distance and separation]({name}/profiles.png)", ""]
    return lines


def describe_shares(runs: dict[str, tuple[dict, dict]]) -> list[str]:
    """Shares within 8 Å of the chosen heads against the nulls and uniform attention."""
    lines = ["## Attention to residues within 8 Å", ""]
    for name, (summary, tables) in runs.items():
        for value, title in (("near", "all pairs"), ("near_long_range", "pairs at least 6 residues apart")):
            rows = []
            for layer, head in summary["best_heads"].items():
                each = {row["condition"]: row for row in select(tables["heads"], layer=int(layer), head=head)}
                cells = [layer, head, f"{100 * each['given'][f'{value}_uniform']:.3g}"]
                cells += [with_interval(row, value, scale=100) for row in each.values()]
                cells += [with_interval(row, f"{value}_gain", scale=100) for row in list(each.values())[1:]]
                rows.append(cells)
            nulls = [each for each in CONDITIONS[1:] if select(tables["heads"], condition=each)]
            head_line = ["layer", "head", "uniform", "given", *nulls, *(f"given - {null}" for null in nulls)]
            lines += [f"### {name}: {title}, share in %", "", *markdown(head_line, rows)]
            for null in nulls:
                above = [row for row in select(tables["heads"], condition=null) if (row[f"{value}_gain_low"] or 0) > 0]
                total = len(select(tables["heads"], condition=null))
                lines += [f"Above `{null}`, with an interval above 0: {len(above)} of {total} heads.", ""]
        lines += [f"![Atlas of heads]({name}/atlas.png)", ""]
    return lines


def describe_motifs(runs: dict[str, tuple[dict, dict]]) -> list[str]:
    """The head of each motif that prefers it most to other pairs of the same separation."""
    lines = ["## Motifs", ""]
    for name, (_, tables) in runs.items():
        rows = []
        given = select(tables["motifs"], condition="given")
        for motif in dict.fromkeys(row["motif"] for row in given):
            best = max(select(given, motif=motif), key=lambda row: row["ratio"])
            place = {key: best[key] for key in ("layer", "head", "motif")}
            each = {row["condition"]: row for row in select(tables["motifs"], **place)}
            cells = [motif, best["pairs"], best["layer"], best["head"], f"{best['mean']:.3g}"]
            cells += [with_interval(each[condition], "ratio") if condition in each else "" for condition in CONDITIONS]
            cells += [with_interval(each[null], "given_over") if null in each else "" for null in CONDITIONS[1:]]
            rows.append(cells)
        head_line = ["motif", "pairs", "layer", "head", "mean attention, given"]
        head_line += [f"over like pairs, {each}" for each in CONDITIONS] + [
            f"given / {each}" for each in CONDITIONS[1:]
        ]
        lines += [f"### {name}", "", *markdown(head_line, rows)]
        lines += [f"![Attention by kind of residue]({name}/residue_pairs.png)", ""]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="folder of the runs' folders")
    results = parser.parse_args().results
    folders = sorted(path.parent for path in results.glob("*/summary.json"))
    if not folders:
        parser.error(f"no folder in {results} has a summary.json; run `coordformer attention --output {results}/NAME`")
    runs = {path.name: (json.loads((path / "summary.json").read_text()), read_tables(path)) for path in folders}
    lines = ["# What the heads attend to", ""]
    for name, (summary, tables) in runs.items():
        draw_figures(tables, results / name)
        lines.append(
            f"- **{name}**: {summary['checkpoint']} on {summary['chains']:,} chains of {summary['data']}"
            + (f" (`{summary['split']}`)" if summary["split"] else "")
            + f", {summary['residues']:,} residues, {summary['pairs']:,} pairs; secondary structure by DSSP for "
            f"{summary['with_ss8']:,} chains, by P-SEA for the others."
            + ("" if summary["reads_coordinates"] else " It reads no coordinates: the nulls coincide with it.")
        )
    drawn = "sequence clusters" if all(summary.get("clusters") for summary, _ in runs.values()) else "chains"
    lines += [
        "",
        "The head of each layer is the one whose share within 8 Å is furthest above that with shuffled coordinates "
        f"(without nulls: the highest). In parentheses 95 % intervals of a bootstrap over {drawn}; they leave out that "
        "the head was chosen on the same chains. The paper's values are read off its plots: one head of each layer of "
        "a 33M model, chosen by its authors, without a null.",
        "",
        *describe_fits(runs),
        *describe_shares(runs),
        *describe_motifs(runs),
        "All numbers: heads.csv, distance.csv, separation.csv, residue_pairs.csv and motifs.csv of each run.",
    ]
    (results / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(results / "report.md")


if __name__ == "__main__":
    main()
