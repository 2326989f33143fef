"""Curves and bars as PNG."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_letters
from typing import Any

import numpy as np

from ..data.contacts import MIN_SEPARATION
from ..data.files import write_atomically
from ..model.chain import AMINO_ACIDS
from ..model.design import Designs
from ..model.residues import ResidueNumbers

logger = logging.getLogger(__name__)

PLOTTED_LETTERS = "AVILMFYWGPCSTNQDEHKR"  # by kind: aliphatic, aromatic, G and P, polar, charged
PLOTTED_RESIDUES = 100  # of one row of a heat map, at most
FEW_RESIDUES = 40  # less than the square cells of a row need to fill a panel
NARROW = 12  # a row of fewer is narrower than a line below it
CHARACTER = 0.42  # columns that a character of a number above one takes
PLOTTED_NAMES = 8  # along the axes of a contact map


def new_figure(size: tuple[float, float], path: str | Path, layout: Any = "constrained") -> Any:
    """A matplotlib figure of this size in inches for the file `path`, or None, with a warning, without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning('%s was not drawn: pip install "coordformer[figures]"', path)
        return None
    return Figure(figsize=size, layout=layout)


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
            (each["step"], np.log(each["eval_perplexity"])) for each in history if "eval_perplexity" in each
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
    if (figure := new_figure((8, 4), path)) is None:
        return
    last = list(recoveries.values())[-1]
    letters = sorted(last, key=lambda letter: -last[letter])
    axes, width = figure.subplots(), 0.8 / len(recoveries)
    for index, (name, recovery) in enumerate(recoveries.items()):
        places = np.arange(len(letters)) + (index - (len(recoveries) - 1) / 2) * width
        axes.bar(places, [100 * recovery.get(letter, 0.0) for letter in letters], width, label=name)
    axes.set_xticks(range(len(letters)), letters)
    axes.set(xlabel="residue", ylabel="recovered when masked (%)")
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def plot_scan(
    path: Path, table: np.ndarray, residues: ResidueNumbers, title: str = "", shown: Sequence[int] | None = None,
    observed: np.ndarray | None = None,
) -> None:  # fmt: skip
    """A heat map of a scan (L, 20), nats, as PNG: residues from left to right, in as many rows as they need.

    Every tenth residue has its number above, as `residues` are numbered, and so has each with an insertion code, of
    which those after the first have the code alone: `52A B C`. The first residue of a chain has its chain.

    Args:
        path, table, residues, title: what is drawn, of which residues, and where.
        shown: indices of the residues to be drawn, rising. A dotted line parts those between which some are left out or
            the numbers jump, a dashed one those between which residues are missing; the one after it has its number
            above.
        observed: bool (L,); those that are not are hatched.
    """
    limit = float(np.nanpercentile(np.abs(table), 99)) or 1.0  # a few extreme scores do not bleach all others
    colors = {"cmap": "RdBu", "vmin": -limit, "vmax": limit}
    bar = {"extend": "both", "label": "log-likelihood ratio (nats)"}
    _plot_letters(path, table, residues, title, colors, bar, "substituted by", shown, observed)


def plot_probabilities(
    path: Path, designs: Designs, residues: ResidueNumbers, observed: np.ndarray | None = None
) -> None:
    """A heat map of what a design draws from, as PNG, like that of `plot_scan`: residues that are kept are gray.

    Rows without a designed residue are left out. `observed` as of `plot_scan`.
    """
    title = f"{designs.id}, temperature {designs.temperatures[0]:g}"
    colors, bar = {"cmap": "Blues", "vmin": 0.0, "vmax": 1.0}, {"label": "probability"}
    _plot_letters(path, designs.biased[0], residues, title, colors, bar, "designed letter", observed=observed)


def _plot_letters(
    path: Path, table: np.ndarray, residues: ResidueNumbers, title: str, colors: Mapping[str, Any],
    bar: Mapping[str, Any], label: str, shown: Sequence[int] | None = None, observed: np.ndarray | None = None,
) -> None:  # fmt: skip
    """A heat map of (L, 20), gray where it is NaN, without the rows that would be gray all over."""
    places = np.arange(len(residues)) if shown is None else np.asarray(shown)
    sequence, table = [residues.sequence[index] for index in places], table[places]
    hatched = np.zeros(len(places), dtype=bool) if observed is None else ~observed[places]
    chains, apart = np.diff(residues.chain_index[places]) != 0, (np.diff(places) > 1) | residues.jumps[places[1:]]
    gaps = residues.gaps_before[places[1:]] & (np.diff(places) == 1)
    # Rows of like width: none of a few residues that are left.
    width = -(-len(sequence) // -(-len(sequence) // PLOTTED_RESIDUES))
    starts = [start for start in range(0, len(sequence), width) if not np.isnan(table[start : start + width]).all()]
    starts = starts or [0]
    rows = len(starts)
    # Cells are squares: of few residues the title may be wider, and blank is left out between them and the bar.
    inches = max(0.13 * width + 1.5, 0.07 * len(title) + 1.0)
    layout = "compressed" if width < FEW_RESIDUES else "constrained"
    if (figure := new_figure((inches, 3.3 * rows + 0.7), path, layout)) is None:
        return
    image = table[:, [AMINO_ACIDS.index(letter) for letter in PLOTTED_LETTERS]].T
    notes: dict[str, None] = {}  # of what is drawn
    panels = figure.subplots(rows, 1, squeeze=False)[:, 0]
    for start, axes in zip(starts, panels, strict=True):
        end = min(start + width, len(sequence))
        extent = (start - 0.5, end - 0.5, len(PLOTTED_LETTERS) - 0.5, -0.5)
        drawn = axes.imshow(image[:, start:end], extent=extent, **colors)
        axes.axvspan(start - 0.5, end - 0.5, color="0.8", zorder=-1)  # behind what is NaN
        marked = [(i, PLOTTED_LETTERS.index(sequence[i])) for i in range(start, end) if sequence[i] in AMINO_ACIDS]
        if marked:
            axes.plot(*zip(*marked, strict=True), "k.", markersize=3)
        for index in start + np.flatnonzero(hatched[start:end]):
            axes.axvspan(index - 0.5, index + 0.5, fill=False, edgecolor="0.3", hatch="////", linewidth=0)
            notes["hatched: not observed"] = None
        axes.set(xlim=(start - 0.5, start + width - 0.5), ylabel=label)
        axes.spines["right"].set_position(("data", end - 0.5))  # of a last row that ends before the others
        axes.set_xticks(range(start, end), sequence[start:end], fontsize=6)
        axes.set_yticks(range(len(PLOTTED_LETTERS)), PLOTTED_LETTERS, fontsize=6)
        axes.tick_params(length=0, pad=2)
        for lines, note, look in (
            (chains, "", {"color": "k", "linewidth": 1}),
            (apart & ~chains, "", {"color": "w", "linewidth": 2.5}),
            (apart & ~chains & ~gaps, "dotted: left out, or numbers jump", {"linewidth": 1, "linestyle": ":"}),
            (gaps & ~chains, "dashed: residues are missing", {"linewidth": 2, "linestyle": "--"}),
        ):
            for last in np.flatnonzero(lines[start : end - 1]) + start:
                axes.axvline(last + 0.5, **{"color": "k"} | look)
                notes |= {note: None} if note else {}
        ticks = _numbered_ticks(residues, start, end, places)
        top = axes.secondary_xaxis("top")
        top.set_xticks(list(ticks), list(ticks.values()), fontsize=6)
        for spine in (axes.spines["top"], axes.spines["bottom"], top.spines["top"]):
            spine.set_bounds(start - 0.5, end - 0.5)
    numbers = "number" if residues.numbering == "file" else "position"
    comma = ",\n" if width < NARROW else ", "  # else it is wider than the figure
    if any(np.isnan(table[start : start + width]).any() for start in starts):
        notes["gray: letter not known" if label == "substituted by" else "gray: kept"] = None
    panels[-1].set_xlabel(f"wild type (dots){comma}{numbers} above" + "".join(f"\n{note}" for note in notes))
    figure.colorbar(drawn, ax=panels, shrink=min(1.0, 1.5 / rows), **bar)
    figure.suptitle(title)
    save_figure(figure, path)


def _numbered_ticks(
    residues: ResidueNumbers, start: int, end: int, shown: Sequence[int] | np.ndarray | None = None
) -> dict[int, str]:
    """What stands above the residues of a row: by place, far enough from each other to be read.

    First come the beginnings of the row and of chains, then numbers after a gap, then insertion codes, then tens
    and the end of the row.
    """
    wanted: list[tuple[int, int, str, str]] = []  # rank, place, text, and what it is beside the residue before
    for place in range(start, end):
        index, before = (place, place - 1) if shown is None else (shown[place], shown[place - 1] if place else -1)
        number, last = residues.numbers[index], residues.numbers[before] if place > start else ""
        skipped, coded = index > before + 1 or residues.jumps[index], number[-1:].isalpha()
        if place == start or residues.chain_index[index] != residues.chain_index[before]:
            name = residues.chain_name(index) if len(residues.chain_names) > 1 else ""
            wanted.append((0, place, f"{name} {number}".strip(), ""))
        elif number and skipped:
            wanted.append((1, place, number, ""))
        elif coded:
            same = last.rstrip(ascii_letters) == number[:-1]
            wanted.append((2, place, number, number[-1] if same else ""))
        elif number.endswith("0"):
            wanted.append((3, place, number, ""))
        elif place == end - 1 and number:
            wanted.append((4, place, number, ""))
    ticks: dict[int, str] = {}
    for rank, place, text, short in sorted(wanted):
        text = short if short and place - 1 in ticks else text
        room = CHARACTER * (2 if rank == 4 else 1)  # the end is said where nothing else is near
        if all(abs(place - each) > room * (len(text) + len(ticks[each])) / 2 for each in ticks):
            ticks[place] = text
    return dict(sorted(ticks.items()))


def plot_contacts(
    maps: Mapping[str, np.ndarray], labels: np.ndarray, path: str | Path, separation: np.ndarray | None = None,
    residues: ResidueNumbers | None = None,
) -> None:  # fmt: skip
    """Predicted probabilities above the diagonal and true contacts below, as PNG; a panel for each of `maps`, by title.

    Pairs fewer than 6 apart are left blank; gray are those of which nobody knows. The L/5 most probable are darkest.
    `separation` is that of `data.contacts.separations`, by default of one chain without gaps. The axes count from 1, or
    have the names of `residues`, and lines between chains.
    """
    if (figure := new_figure((5.4 * len(maps), 5.0), path)) is None:
        return
    length = len(labels)
    places = np.arange(length) - np.arange(length)[:, None]
    apart = (np.abs(places) if separation is None else separation) >= MIN_SEPARATION
    shades = np.array([(0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 0.15)])  # no contact, contact; the last for -100
    truth = shades[np.maximum(labels, -1)] * (apart & (places < 0))[..., None]
    below = "true contacts (gray: not known)" if (labels >= 0).any() else "nothing, as no structure is known"
    extent = (0.5, length + 0.5, length + 0.5, 0.5)
    panels = figure.subplots(1, len(maps), squeeze=False)[0]
    for axes, (title, probabilities) in zip(panels, maps.items(), strict=True):
        predicted = np.where(apart & (places > 0), probabilities, np.nan)
        best = np.sort(predicted[np.isfinite(predicted)])[-max(length // 5, 1) :]
        drawing = {"extent": extent, "interpolation": "none"}
        image = axes.imshow(predicted, cmap="Blues", vmin=0.0, vmax=best.min(initial=1.0), **drawing)
        axes.imshow(truth, **drawing)
        axes.plot([0.5, length + 0.5], [0.5, length + 0.5], color="0.6", linewidth=0.8)
        axes.set(xlabel="residue", ylabel="residue")
        if residues is not None:
            ticks = range(0, length, max(length // PLOTTED_NAMES, 1))
            names = [residues.name(index) for index in ticks]
            axes.set_xticks([index + 1 for index in ticks], names, fontsize=7)
            axes.set_yticks([index + 1 for index in ticks], names, fontsize=7)
            for first in residues.chain_starts[1:]:
                axes.axvline(first + 0.5, color="0.6", linewidth=0.8)
                axes.axhline(first + 0.5, color="0.6", linewidth=0.8)
        axes.set_title(f"{title}\nabove: predicted, below: {below}", fontsize=9)
        figure.colorbar(image, ax=axes, extend="max", label="predicted probability of contact", shrink=0.8)
    save_figure(figure, path)
