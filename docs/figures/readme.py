"""The picture of README.md: the C-alpha trace of ubiquitin, and part of the scan that a shipped model makes of it."""

import sys
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.patheffects import withStroke
from scipy.interpolate import CubicSpline

from coordformer import read_chains
from coordformer.inference.checkpoints import load_checkpoint
from coordformer.inference.figures import PLOTTED_LETTERS, save_figure
from coordformer.inference.marginals import scan_chains
from coordformer.model.chain import AMINO_ACIDS

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "hub_cards" / "coordformer-7M-pdb"
STRUCTURE = ROOT / "tests" / "data" / "structures" / "pdb1ubi_ca.pdb.gz"
RESIDUES = 40  # of the heat map: as many as can be read
LIMIT = 10.0  # nats, where colors end
STEPS = 12  # of the curve from residue to residue
COLORS = colormaps["RdBu"]
INK, FAINT = "#24292f", "#c9d1d9"


def view(coords: np.ndarray) -> np.ndarray:
    """C-alphas (residues, 3) as x, y and depth: seen from where they spread most, turned so that they fill a square."""
    coords = coords - coords.mean(axis=0)
    seen = coords @ np.linalg.svd(coords, full_matrices=False)[2].T
    angles = np.radians(np.arange(180))
    turned = [seen[:, :2] @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) for a in angles]
    best = min(turned, key=lambda plane: np.ptp(plane, axis=0).max())
    return np.column_stack([best, seen[:, 2]])


def draw_trace(axes, coords: np.ndarray, effects: np.ndarray) -> None:
    """C-alphas as balls on a line through them, near ones above and larger; colors are mean effects (residues,)."""
    points = view(coords)
    places = np.arange(len(points))
    curve = CubicSpline(places, points)(np.linspace(0, places[-1], STEPS * (len(points) - 1) + 1))
    near = (points[:, 2] - points[:, 2].min()) / np.ptp(points[:, 2])
    shades = COLORS(Normalize(-LIMIT, LIMIT)(effects))
    for residue in places:
        level, width = points[residue, 2], 2.5 + 2 * near[residue]
        for layer, (color, lw, longer) in enumerate(
            (("white", width + 5, 0), (INK, width + 1.5, 1), (FAINT, width, 3))
        ):
            half = STEPS // 2 + longer  # the line reaches over the ends of its outline, or they would be seen
            piece = curve[max(STEPS * residue - half, 0) : STEPS * residue + half + 1, :2]
            axes.plot(*piece.T, color=color, lw=lw, solid_capstyle="butt", zorder=level + layer / 10)
        above = points[max(residue - 1, 0) : residue + 2, 2].max() + 0.3
        size = 7 + 5 * near[residue]
        axes.plot(*points[residue, :2], "o", color=shades[residue], mec=INK, mew=0.8, ms=size, zorder=above)
    halo = [withStroke(linewidth=3, foreground="white")]
    for number in (1, 10, 20, 30, 40, 50, len(points)):
        outward = points[number - 1, :2]
        place = outward + 2.6 * outward / np.linalg.norm(outward)
        axes.text(*place, number, ha="center", va="center", size=9.5, color=INK, zorder=100, path_effects=halo)
    (left, bottom), (right, top) = points[:, :2].min(axis=0) - 3, points[:, :2].max(axis=0) + 3
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    axes.axis("off")


def draw_scan(axes, table: np.ndarray, sequence: str) -> None:
    """Effects (residues, 20) of substitutions, nats: residues from left to right, with dots at the wild type."""
    image = table[:, [AMINO_ACIDS.index(letter) for letter in PLOTTED_LETTERS]].T
    axes.imshow(image, cmap=COLORS, vmin=-LIMIT, vmax=LIMIT, aspect="auto")
    axes.set_xticks(np.arange(len(sequence) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(PLOTTED_LETTERS) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", lw=0.5)
    axes.tick_params(which="both", length=0, colors=INK, labelsize=9, pad=3)
    axes.plot(*zip(*enumerate(map(PLOTTED_LETTERS.index, sequence)), strict=True), "o", color=INK, ms=3.2)
    axes.set_xticks(range(len(sequence)), sequence)
    axes.set_yticks(range(len(PLOTTED_LETTERS)), PLOTTED_LETTERS)
    for place in range(9, len(sequence), 10):
        axes.text(place, -1.1, place + 1, ha="center", va="center", fontsize=9, color=INK)
    for side in axes.spines.values():
        side.set_visible(False)


def main(folder: Path) -> None:
    (chain,) = read_chains(STRUCTURE)
    model, processor = load_checkpoint(MODEL)
    (table,) = scan_chains(model, processor, [chain])

    figure = Figure(figsize=(11, 4.6), facecolor="none")
    card = FancyBboxPatch((0.005, 0.01), 0.99, 0.98, "round,pad=0,rounding_size=0.02", fc="white", ec="#d0d7de")
    card.set(transform=figure.transFigure, mutation_aspect=11 / 4.6, zorder=-1)
    figure.add_artist(card)
    draw_trace(figure.add_axes((0.015, 0.11, 0.32, 0.76)), chain.coords[:, 0], table.mean(axis=1))
    draw_scan(figure.add_axes((0.425, 0.13, 0.48, 0.71)), table[:RESIDUES], chain.sequence[:RESIDUES])
    arrow = FancyArrowPatch(
        (0.345, 0.485), (0.395, 0.485), arrowstyle="simple,head_width=14,head_length=12,tail_width=4"
    )
    figure.add_artist(arrow)
    arrow.set(transform=figure.transFigure, color="#8c959f", lw=0)
    bar = figure.colorbar(
        ScalarMappable(Normalize(-LIMIT, LIMIT), COLORS), cax=figure.add_axes((0.925, 0.13, 0.012, 0.71)), extend="both"
    )
    bar.set_ticks([-10, -5, 0, 5, 10])
    bar.ax.tick_params(length=0, colors=INK, labelsize=9)
    bar.outline.set_visible(False)
    for x, title, text in (
        (0.175, "structure in", "the C-alphas of ubiquitin (1UBI); color: mean effect"),
        (
            0.665,
            "heat map out",
            "effect of each substitution (log-likelihood ratio, nats), residues 1 to 40; dots: wild type",
        ),
    ):
        figure.text(x, 0.93, title, ha="center", fontsize=13, weight="bold", color=INK)
        figure.text(x, 0.045, text, ha="center", fontsize=9.5, color=INK)
    save_figure(figure, folder / "readme.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
