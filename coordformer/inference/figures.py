"""Curves and bars as PNG."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.files import write_atomically

logger = logging.getLogger(__name__)


def new_figure(size: tuple[float, float], path: str | Path) -> Any:
    """A matplotlib figure of this size in inches for the file `path`, or None, with a warning, without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning('%s was not drawn: pip install "coordformer[figures]"', path)
        return None
    return Figure(figsize=size, layout="constrained")


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a figure as PNG, atomically."""
    write_atomically(Path(path), lambda temporary: figure.savefig(temporary, dpi=150, format="png"))


def plot_losses(histories: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path) -> None:
    """Training loss of one or several runs against the update, and their evaluations, as PNG."""
    if (figure := new_figure((6, 4), path)) is None:
        return
    axes = figure.subplots()
    for index, (name, history) in enumerate(histories.items()):
        train_points = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
        # Of all residues alike; Trainer's own `eval_loss` averages over batches.
        valid_points = [
            (entry["step"], np.log(entry["eval_perplexity"])) for entry in history if "eval_perplexity" in entry
        ]
        axes.plot(*zip(*train_points, strict=True), color=f"C{index}", label=f"{name}, training")
        if valid_points:
            axes.plot(*zip(*valid_points, strict=True), "o--", color=f"C{index}", label=f"{name}, held out")
    axes.set(xlabel="update", ylabel="cross-entropy of masked residues (nats)")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    save_figure(figure, path)


def plot_recovery(recoveries: Mapping[str, Mapping[str, float]], path: str | Path) -> None:
    """Recovery by residue of one or several models, as PNG; the residues best recovered by the last come first."""
    last = list(recoveries.values())[-1]
    letters = sorted(last, key=lambda letter: -last[letter])
    if (figure := new_figure((8, 4), path)) is None:
        return
    axes = figure.subplots()
    width = 0.8 / len(recoveries)
    for index, (name, recovery) in enumerate(recoveries.items()):
        places = np.arange(len(letters)) + (index - (len(recoveries) - 1) / 2) * width
        axes.bar(places, [100 * recovery.get(letter, 0.0) for letter in letters], width, label=name)
    axes.set_xticks(range(len(letters)), letters)
    axes.set(xlabel="residue", ylabel="recovered when masked (%)")
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    save_figure(figure, path)
