"""Figures of `coordformer attention`, from its tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..inference.figures import new_figure, save_figure
from ..model.chain import AMINO_ACIDS
from .attention_sums import CONDITIONS, DISTANCE_EDGES, SEPARATIONS


def plot_profiles(
    tables: Mapping[str, Sequence[Mapping[str, Any]]], best_heads: Mapping[int, int], path: str | Path
) -> None:
    """Attention of one head of each layer against distance and sequence separation, as PNG (paper, section 3).

    On the left boxes of the middle half of the pairs' attention with whiskers from 5 to 95 %, their means, and the
    fitted Gaussian; on the right means in each condition.
    """
    if (figure := new_figure((11, 2.4 * len(best_heads) + 0.6), path)) is None:
        return
    panels = figure.subplots(len(best_heads), 2, sharex="col", squeeze=False, width_ratios=(3, 2))
    for (left, right), (layer, head) in zip(panels, best_heads.items(), strict=True):
        wanted = {"layer": layer, "head": head}
        fit = _select(tables["heads"], **wanted, condition="given")[0]
        bins = _select(tables["distance"], **wanted, condition="given")
        parts = {"whislo": "q05", "q1": "q25", "med": "q50", "q3": "q75", "whishi": "q95"}
        boxes = [{part: row[name] for part, name in parts.items()} for row in bins]
        places = [row["distance"] for row in bins]
        style = {"widths": 0.35, "showfliers": False, "manage_ticks": False, "medianprops": {"color": "C0"}}
        left.bxp(boxes, positions=places, **style)
        left.plot(places, [row["mean"] for row in bins], "o", color="C1", ms=3, label="mean")
        text = f"no Gaussian ({fit['fit']})"
        if fit["fit"] == "ok":
            x = np.linspace(0, DISTANCE_EDGES[-1], 200)
            y = fit["amplitude"] * np.exp(-(x**2) / (2 * fit["sigma"] ** 2))
            left.plot(x, y, color="C3", label="Gaussian")
            text = f"amplitude {fit['amplitude']:.2g}, sigma {fit['sigma']:.1f} Å, R² {fit['r2']:.2f}"
        left.set(ylim=(0, 1.1 * max(max(row["q95"], row["mean"]) for row in bins)), ylabel="attention")
        left.set_title(f"layer {layer}, head {head}: {text}", fontsize=9)
        for condition in CONDITIONS:
            if points := _select(tables["separation"], **wanted, condition=condition):
                right.plot(*zip(*((row["separation"], row["mean"]) for row in points), strict=True), label=condition)
        right.set_ylim(bottom=0)
        right.set_title(f"layer {layer}, head {head}", fontsize=9)
    panels[0, 0].legend(fontsize=8)
    lines, labels = panels[0, 1].get_legend_handles_labels()
    labels = [f"coordinates {label}" for label in labels]
    figure.legend(lines, labels, loc="outside upper right", ncols=len(labels), fontsize=8)
    panels[-1, 0].set(xlabel="distance between C-alphas (Å)", xlim=(0, DISTANCE_EDGES[-1]), xticks=DISTANCE_EDGES[::4])
    panels[-1, 1].set(xlabel="sequence separation, key - query (residues)", xticks=SEPARATIONS[::5])
    save_figure(figure, path)


def plot_atlas(heads: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Layers x heads: amplitude and sigma of the fits, and the share within 8 Å above each null, as PNG.

    Gray: no Gaussian. Without nulls the shares are compared with those of uniform attention.
    """
    given = _select(heads, condition="given")
    maps: dict[str, tuple[list, str, float | None]] = {
        "amplitude": ([row["amplitude"] for row in given], "viridis", None),
        "sigma (Å)": ([row["sigma"] for row in given], "viridis", None),
    }
    nulls = [condition for condition in CONDITIONS[1:] if _select(heads, condition=condition)]
    for value, title in (("near", "share within 8 Å"), ("near_long_range", "share within 8 Å\nof residues ≥ 6 apart")):
        gains = {null: [row[f"{value}_gain"] for row in _select(heads, condition=null)] for null in nulls}
        if not nulls:
            gains = {"uniform": [row[value] - row[f"{value}_uniform"] for row in given]}
        largest = max(abs(gain) for values in gains.values() for gain in values)
        maps |= {f"{title},\ngiven - {null}": (values, "RdBu_r", largest) for null, values in gains.items()}
    shape = (max(row["layer"] for row in given), max(row["head"] for row in given))
    if (figure := new_figure((len(maps) * (1.7 + 0.13 * shape[1]), 2.0 + 0.24 * shape[0]), path)) is None:
        return
    panels = figure.subplots(1, len(maps), sharey=True)
    for axes, (title, (values, colors, bound)) in zip(panels, maps.items(), strict=True):
        table = np.array(values, dtype=float).reshape(shape)
        axes.set_facecolor("0.8")
        limits = {"vmin": 0, "vmax": None} if bound is None else {"vmin": -bound, "vmax": bound}
        extent = (0.5, shape[1] + 0.5, shape[0] + 0.5, 0.5)
        image = axes.imshow(table, cmap=colors, extent=extent, aspect="auto", interpolation="none", **limits)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("head")
        axes.set(xticks=range(1, shape[1] + 1, 1 + shape[1] // 12), yticks=range(1, shape[0] + 1, 1 + shape[0] // 20))
        figure.colorbar(image, ax=axes)
    panels[0].set_ylabel("layer")
    save_figure(figure, path)


def plot_residue_pairs(pairs: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """How much each kind of residue attends to each other, a panel for each layer, as PNG (paper, section 3).

    The mean over the layer's heads, relative to the layer's mean over all kinds. Gray: fewer than 100 pairs.
    """
    layers = sorted({row["layer"] for row in pairs})
    columns, lines = min(len(layers), 3), -(-len(layers) // 3)
    if (figure := new_figure((4.2 * columns, 3.6 * lines), path)) is None:
        return
    panels = figure.subplots(lines, columns, squeeze=False)
    for axes, layer in zip(panels.flat, layers, strict=False):
        sums, heads = np.zeros((20, 20)), np.zeros((20, 20))
        for row in _select(pairs, layer=layer):
            place = AMINO_ACIDS.index(row["query"]), AMINO_ACIDS.index(row["key"])
            sums[place] += row["mean"]
            heads[place] += 1
        means = np.divide(sums, heads, out=np.full_like(sums, np.nan), where=heads > 0)
        logs = np.log2(means / np.nanmean(means))
        bound = np.nanmax(np.abs(logs))
        image = axes.imshow(logs, cmap="RdBu_r", vmin=-bound, vmax=bound)
        axes.set_facecolor("0.8")
        axes.set_xticks(range(20), AMINO_ACIDS, fontsize=7)
        axes.set_yticks(range(20), AMINO_ACIDS, fontsize=7)
        axes.set(title=f"layer {layer}", xlabel="attended to", ylabel="attending")
        figure.colorbar(image, ax=axes, label="log2 of attention / mean")
    for axes in panels.flat[len(layers) :]:
        axes.remove()
    save_figure(figure, path)


def _select(rows: Sequence[Mapping[str, Any]], **values: Any) -> list[Mapping[str, Any]]:
    return [row for row in rows if all(row[name] == value for name, value in values.items())]
