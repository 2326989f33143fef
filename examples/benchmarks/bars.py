"""A bar for each side of a benchmark, as PNG."""

from collections.abc import Mapping
from pathlib import Path


def draw_bars(path: Path, title: str, label: str, values: Mapping[str, float]) -> None:
    """Horizontal bars from top to bottom, those of coordformer in color; without matplotlib none."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return print(f"{path} was not drawn: pip install matplotlib")
    sides = list(values)[::-1]
    figure = Figure(figsize=(9, 1.2 + 0.45 * len(sides)), layout="constrained")
    axes = figure.subplots()
    colors = ["C0" if side.startswith("coordformer") else "0.6" for side in sides]
    bars = axes.barh(sides, [values[side] for side in sides], color=colors)
    axes.bar_label(bars, fmt="{:,.0f}" if max(values.values()) >= 1000 else "{:.1f}", padding=3)
    axes.margins(x=0.12)
    axes.set(title=title, xlabel=label)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    figure.savefig(path, dpi=150)
