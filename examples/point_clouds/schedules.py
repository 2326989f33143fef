"""Which decay of the learning rate, and how many updates, explain the paper's loss for p = 2?

    python examples/point_clouds/schedules.py                     (all runs, one after the other)
    python examples/point_clouds/schedules.py --only polynomial   (one of them)

The paper's text says "quadratically decayed"; its code divides by the square root of the update. Each run was listed
here, with what was expected of it, before it was made. Run it again after a stop: it goes on where it was. --results
gets schedules.csv (a row per run), schedules_history.csv (losses on the way), schedules.md and schedules.png.
"""

import argparse
import csv
import json
import math
import shutil
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
from point_clouds import HERE, PAPER_UPDATES, STRUCTURES, WARMUP, read_paper
from stacks import (
    Member,
    best_validation,
    learning_rates,
    make_structures,
    peak_rate,
    point_cloud_config,
    train_stack,
    updates_to_reach,
    write_table,
)

from coordformer.data.files import write_atomically
from coordformer.inference.figures import new_figure

HIDDEN_SIZE, HEADS, HEAD_SIZE = 256, 8, 32
FULL_SPLIT_UPDATES = 100_000  # 200 epochs of 8,000 structures in batches of 16
VALIDATE_EVERY = 126  # as the exponents of point_clouds.py


@dataclass(frozen=True)
class Run:
    """A training for p = 2.

    Attributes:
        decay: the learning rate over its peak, after w = 4,000 updates of warm-up.
        lr_scheduler_type: the name that Transformers has for it, or None.
        expected: best validation loss of single weights, written before the run.
    """

    decay: str
    lr_scheduler_type: str | None
    expected: str
    lr_scheduler_kwargs: dict[str, Any] = field(default_factory=dict)
    updates: int = PAPER_UPDATES

    def rates(self) -> Callable[[int], float]:
        peak = peak_rate(HIDDEN_SIZE, WARMUP)
        if self.lr_scheduler_type is None:  # the one that Transformers does not have
            return lambda update: peak * min(update / WARMUP, (WARMUP / update) ** 2)
        return learning_rates(self.lr_scheduler_type, peak, self.updates, WARMUP, **self.lr_scheduler_kwargs)


RUNS = {
    "inverse_sqrt": Run(
        "√(w / t), as in the code", "inverse_sqrt", ".0005; the paper's value after about 25,000 updates",
        updates=FULL_SPLIT_UPDATES,
    ),
    "polynomial": Run(
        "((T - t) / (T - w))²", "polynomial",
        ".0004: it ends at zero, and so near the averaged weights of inverse_sqrt, .0003; below the paper's",
        {"power": 2},
    ),
    "inverse_square": Run(
        "(w / t)²", None, ".0005: at the end a tenth of the peak, where inverse_sqrt has a half; below the paper's"
    ),
}  # fmt: skip


def train(name: str, output: Path) -> None:
    """Train unless that was done; OUTPUT gets NAME.json."""
    result = output / f"{name}.json"
    if result.exists():
        return
    run, structures = RUNS[name], make_structures(STRUCTURES)

    def go_on(updates: int, state: Path) -> list[dict[str, Any]]:
        return train_stack(
            point_cloud_config(HIDDEN_SIZE, HEADS),
            HEAD_SIZE,
            [Member()],
            structures[:8000],
            structures[8000:9000],
            updates=updates,
            warmup=WARMUP,
            validate_every=VALIDATE_EVERY,
            rates=run.rates(),
            state=state,
        )

    if not (output / f"{name}.pt").exists():  # the warm-up is the same for all
        go_on(WARMUP // VALIDATE_EVERY * VALIDATE_EVERY, output / "warmup.pt")
        shutil.copy(output / "warmup.pt", output / f"{name}.pt")
    history = go_on(run.updates, output / f"{name}.pt")
    content = {"run": asdict(run), "torch": torch.__version__, "history": history}
    write_atomically(result, lambda temporary: temporary.write_text(json.dumps(content) + "\n"))
    (output / f"{name}.pt").unlink()


def histories(output: Path) -> dict[str, list[dict[str, Any]]]:
    """Of each run the validations so far, of those under way, too."""
    found = {}
    for name in RUNS:
        if (path := output / f"{name}.json").exists():
            found[name] = json.loads(path.read_text())["history"]
        elif (path := output / f"{name}.pt").exists():
            found[name] = json.loads(torch.load(path, weights_only=True)["history"])
    return found


def collect(found: dict[str, list[dict[str, Any]]], results: Path) -> list[dict[str, Any]]:
    """A row for each run, as dictionaries and as schedules.csv; schedules_history.csv.

    A run of more than the published updates has two rows, the first of them after the published number.
    """
    paper = read_paper()["exponents", 3, None, 2.0, True]
    rows, losses = [], []
    for name, history in found.items():
        run, rates = RUNS[name], RUNS[name].rates()
        for end in sorted({min(PAPER_UPDATES, history[-1]["update"]), history[-1]["update"]}):
            part = [entry for entry in history if entry["update"] <= end]
            best = best_validation(part, 0)
            rows.append(
                {
                    "run": name,
                    "lr_scheduler_type": run.lr_scheduler_type,
                    "lr_scheduler_kwargs": json.dumps(run.lr_scheduler_kwargs),
                    "updates": end,
                    "last_rate": rates(end),
                    "best": best,
                    "last": part[-1]["valid"][0],
                    "averaged": best_validation(part, 0, "averaged"),
                    "paper": paper,
                    "ratio": best / paper,
                    "updates_to_paper": updates_to_reach(part, 0, paper),
                    "expected": run.expected,
                }
            )
        for entry in history:
            values = {key: entry[key][0] for key in ("train", "valid", "averaged")}
            losses.append({"run": name, "update": entry["update"], "rate": rates(entry["update"])} | values)
    write_table(results / "schedules.csv", rows)
    write_table(results / "schedules_history.csv", losses)
    return rows


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    """The table of the README."""
    head = ["rate over its peak", "`lr_scheduler_type`", "updates", "best", "ratio", "last", "averaged weights, best",
            "the paper's .00082 after"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        kind = f"`{row['lr_scheduler_type']}`" if row["lr_scheduler_type"] else "none"
        if row["lr_scheduler_kwargs"] != "{}":
            kind += f", `{row['lr_scheduler_kwargs']}`"
        reached = "never" if row["updates_to_paper"] is None else f"{row['updates_to_paper']:,}"
        cells = [RUNS[row["run"]].decay, kind, f"{row['updates']:,}"]
        cells += [f"{row['best']:.5f}", f"{row['ratio']:.2f}", f"{row['last']:.5f}", f"{row['averaged']:.5f}", reached]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def by_exponent(results: Path) -> list[str]:
    """After how many updates of the code's schedule every exponent would have the paper's loss.

    Of the runs of point_clouds.py, results.csv and history.csv: a line through log loss against log update, of all
    validations after the warm-up, goes on to the paper's value.
    """
    tables = []
    for name in ("results.csv", "history.csv"):
        with open(results / name, newline="") as file:
            tables.append([row for row in csv.DictReader(file) if row["experiment"] == "exponents"])
    lines = ["| p | loss falls as | the paper's loss after |", "| --- | --- | --- |"]
    for row in tables[0]:
        points = [
            (math.log(int(entry["update"])), math.log(float(entry["valid"])))
            for entry in tables[1]
            if entry["exponent"] == row["exponent"] and int(entry["update"]) > WARMUP
        ]
        slope = statistics.linear_regression(*zip(*points, strict=True)).slope
        ratio = float(row["best"]) / float(row["paper"])
        updates = round(int(row["updates"]) * ratio ** (-1 / slope), -2)
        lines.append(f"| {float(row['exponent']):g} | t^{slope:.2f} | {updates:,.0f} updates |")
    return lines


def of_both_schedules(results: Path) -> list[str]:
    """Every exponent with the code's schedule and with the text's, as runs of point_clouds.py have them."""
    tables = []
    for folder in (results, results / "polynomial"):
        with open(folder / "results.csv", newline="") as file:
            tables.append({row["exponent"]: row for row in csv.DictReader(file) if row["experiment"] == "exponents"})
    head = ["p", "paper", "ratio with the code's schedule", "with the text's", "its ratio"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for exponent, row in tables[0].items():
        # Decimal, since the tables have rounded numbers: a float of 1.155 may be rounded to 1.15.
        other = tables[1][exponent]
        cells = [f"{float(exponent):g}", f"{float(row['paper']):.5f}", f"{Decimal(row['ratio']):.2f}"]
        cells += [f"{float(other['best']):.5f}", f"{Decimal(other['ratio']):.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def plot(found: dict[str, list[dict[str, Any]]], results: Path) -> None:
    """Rates, and validation losses of single weights, against the number of the update."""
    if (figure := new_figure((11, 4), results / "schedules.png")) is None:
        return
    left, right = figure.subplots(1, 2)
    for color, (name, history) in enumerate(found.items()):
        rates, updates = RUNS[name].rates(), [entry["update"] for entry in history]
        style = {"color": f"C{color}", "linewidth": 1, "label": f"{name}, {updates[-1]:,} updates"}
        left.loglog(updates, [rates(update) for update in updates], **style)
        right.loglog(updates, [entry["valid"][0] for entry in history], **style)
    paper = read_paper()["exponents", 3, None, 2.0, True]
    right.axhline(paper, color="k", linestyle="--", linewidth=1, label=f"paper's best, {paper:.5f}")
    left.set(xlabel="update", ylabel="learning rate", ylim=(1e-7, 1e-3))
    right.set(xlabel="update", ylabel="validation L1, p = 2")
    right.legend(fontsize=8)
    figure.savefig(results / "schedules.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), metavar="RUN", help=", ".join(RUNS))
    parser.add_argument("--output", type=Path, default=Path("runs/point_cloud_schedules"), help="work in progress")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--only_report", action="store_true", help="of what is trained so far")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    if not arguments.only_report:
        for name in arguments.only:
            train(name, arguments.output)
    # The losses of fewer updates than the published ones compare to nothing.
    found = {name: run for name, run in histories(arguments.output).items() if run[-1]["update"] >= PAPER_UPDATES}
    arguments.results.mkdir(parents=True, exist_ok=True)
    lines = ["# The code's schedule, every exponent", "", *by_exponent(HERE / "results")]
    lines += ["", "# Both schedules, every exponent", "", *of_both_schedules(HERE / "results")]
    if found:
        lines += ["", "# Decays of the learning rate, p = 2", "", *markdown(collect(found, arguments.results))]
        plot(found, arguments.results)
    text = "\n".join(lines) + "\n"
    (arguments.results / "schedules.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
