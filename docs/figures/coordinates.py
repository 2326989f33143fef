"""The picture of docs/coordinates.md: two chains as a packed batch, and where the model puts them."""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from coordformer import CoordformerProcessor, read_chains
from coordformer.inference.figures import save_figure
from coordformer.model.coordinates import center_coordinates
from coordformer.model.packing import segment_positions, segment_runs

ROOT = Path(__file__).parents[2]
RESIDUES = 5  # of each chain, from its start: that many fit in a picture
COLORS = ("tab:blue", "tab:orange")


def pack(chains) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """Tokens, coordinates (1, length, 3) and segment ids (1, length) of the first residues, in one row."""
    processor = CoordformerProcessor()
    rows = [processor(chain.sequence[:RESIDUES], coords=chain.coords[:RESIDUES]) for chain in chains]
    ids = torch.cat([row["input_ids"] for row in rows], dim=1)
    sequence_id = torch.repeat_interleave(torch.arange(len(chains)), RESIDUES + 2).unsqueeze(0)
    return processor.tokenizer.convert_ids_to_tokens(ids[0]), torch.cat([row["coords"] for row in rows], 1), sequence_id


def draw_arrays(axes, tokens, coords, sequence_id) -> None:
    """The arrays as a table, a column for each token."""
    positions = segment_positions(segment_runs(sequence_id, None), None, len(tokens), "cpu")[0]
    xyz = [[f"{value:.1f}" if value == value else "NaN" for value in column] for column in coords[0].T.tolist()]
    rows = [tokens, *xyz, sequence_id[0].tolist(), positions.tolist()]
    for line, values in enumerate(rows):
        for column, value in enumerate(values):
            unknown = value == "NaN"
            color = COLORS[sequence_id[0, column]]
            axes.add_patch(
                Rectangle((column, line), 1, 1, fc="0.85" if unknown else "white", ec="0.6", lw=0.6)
                if line in (1, 2, 3)
                else Rectangle((column, line), 1, 1, fc=color, alpha=0.25, ec="0.6", lw=0.6)
            )
            axes.text(column + 0.5, line + 0.5, value, ha="center", va="center", fontsize=8)
    names = ["input_ids", "coords: x", "y", "z (Å)", "sequence_id", "position_ids"]
    shapes = ["(1, 14)", "", "(1, 14, 3)", "", "(1, 14)", "(1, 14), by default"]
    for line, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        axes.text(-0.2, line + 0.5, name, ha="right", va="center", fontsize=9, family="monospace")
        axes.text(len(tokens) + 0.2, line + 0.5, shape, va="center", fontsize=9)
    note = "gray: no position, as special tokens and residues that were not observed (here M, the first)"
    axes.text(len(tokens) / 2, 6.6, note, ha="center", va="center", fontsize=9)
    axes.set(xlim=(0, len(tokens)), ylim=(7, 0))
    axes.axis("off")


def draw_trace(axes, coords, sequence_id, chains, title) -> None:
    """x and y of the observed residues, with a cross at the mean of each segment."""
    for number, chain in enumerate(chains):
        points = coords[0, sequence_id[0] == number].numpy()
        points = points[np.isfinite(points).all(axis=-1)]
        axes.plot(*points[:, :2].T, "o-", color=COLORS[number], ms=5, label=f"chain {chain.id}")
        axes.plot(*points[:, :2].mean(axis=0), "x", color=COLORS[number], ms=9, mew=2)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)


def main(folder: Path) -> None:
    chains = read_chains(ROOT / "tests" / "data" / "structures" / "1BD2.cif.gz", chain_ids=["B", "A"])
    chains = sorted(chains, key=lambda chain: chain.id, reverse=True)  # first the one whose first residue is missing
    tokens, coords, sequence_id = pack(chains)
    observed = ~coords.isnan().any(dim=-1, keepdim=True)
    centered = center_coordinates(coords.unsqueeze(2), observed, segment_runs(sequence_id, None)).squeeze(2)
    centered = centered.masked_fill(~observed, torch.nan)

    figure = Figure(figsize=(10, 6), layout="constrained")
    parts = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    draw_arrays(parts[0].subplots(), tokens, coords, sequence_id)
    axes = parts[1].subplots(1, 2)
    draw_trace(axes[0], coords, sequence_id, chains, "in the file's frame: what you give")
    axes[0].set(xlabel="x (Å)", ylabel="y (Å)")
    axes[0].legend(fontsize=8)
    draw_trace(axes[1], centered / 16, sequence_id, chains, "in the model: each segment about its own center")
    axes[1].set(xlabel="x / config.coordinate_scale", ylabel="y / config.coordinate_scale")
    save_figure(figure, folder / "coordinates.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
