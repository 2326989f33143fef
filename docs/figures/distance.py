"""The pictures of docs/theory.md: what the terms of q.k are, and heads that attend with a Gaussian of distance."""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from coordformer import CoordformerConfig, CoordformerModel, CoordformerProcessor, read_chains
from coordformer.data.collator import rotations_from_normals
from coordformer.inference.figures import save_figure

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "point_clouds"))
from stacks import gaussian_maps

STRUCTURE = Path(__file__).parents[2] / "tests" / "data" / "structures" / "1orc.pdb.gz"
SIGMA = 8.0  # Å, of the terms
SCALE = 16.0  # Å, `config.coordinate_scale`


def draw_terms(coords: np.ndarray, path: Path) -> None:
    """The products of queries and keys over a chain, with and without the term of the row, and their softmax."""
    x = torch.from_numpy(coords - coords.mean(axis=0)).double()
    features = torch.cat([x, x.square().sum(dim=-1, keepdim=True), torch.ones(len(x), 1)], dim=-1)
    panels = {}
    for dimensions, softmax in (("n + 2", False), ("n + 1", True)):
        query, key = gaussian_maps(3, SIGMA, softmax)
        panels[dimensions] = (features @ query.T) @ (features @ key.T).T
    attention = panels["n + 2"].softmax(dim=-1)  # that of n + 1 is the same: tests/examples/test_point_clouds.py

    figure = Figure(figsize=(10, 3.1), layout="constrained")
    axes = figure.subplots(1, 3)
    titles = (
        "q·k in n + 2 dimensions:\n$-|x_i - x_j|^2 / 2σ^2$",
        "in n + 1, without $-|x_i|^2 / 2σ^2$:\nrows are shifted",
    )
    for ax, logits, title in zip(axes, panels.values(), titles, strict=False):
        image = ax.imshow(logits, cmap="viridis", origin="lower")
        ax.set_title(title, fontsize=10)
        figure.colorbar(image, ax=ax, label="logit")
    image = axes[2].imshow(attention, cmap="magma_r", origin="lower", vmin=0)
    axes[2].set_title("softmax over j of either:\na Gaussian of distance", fontsize=10)
    figure.colorbar(image, ax=axes[2], label="attention")
    for ax in axes:
        ax.set(xlabel="residue j", ylabel="residue i")
    save_figure(figure, path)


def gaussian_heads() -> tuple[CoordformerModel, np.ndarray]:
    """A new model whose first layer starts as Gaussians, and the widths of its heads in Å."""
    config = CoordformerConfig(
        hidden_size=128, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
        coordinate_embedding="quadratic", coordinate_init="gaussian", coordinate_scale=SCALE,
        attn_implementation="eager",
    )  # fmt: skip
    return CoordformerModel(config).eval(), SCALE * 0.25 * 8 ** np.linspace(0, 1, 4)


def heads_with_points() -> tuple[CoordformerModel, np.ndarray]:
    """A new model whose heads attend with points alone, each at its residue's C-alpha, and their widths in Å."""
    config = CoordformerConfig(
        hidden_size=128, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
        coordinate_embedding="none", num_qk_points=1, coordinate_scale=SCALE,
        attn_implementation="eager",
    )  # fmt: skip
    model = CoordformerModel(config).eval()
    attention = model.esm.encoder.layer[0].attention.self
    with torch.no_grad():
        for layer in (attention.query, attention.key, attention.query_points, attention.key_points):
            layer.weight.zero_()
            layer.bias.zero_()
    return model, SCALE * (attention.gain * attention.log_sigma.detach()).exp().numpy()


@torch.no_grad()
def relative_attention(model: CoordformerModel, batch, rotations) -> np.ndarray:
    """Attention of residues to each other over their attention to themselves, (heads, residues, residues)."""
    attention = model(**batch, rotations=rotations, output_attentions=True).attentions[0][0, :, 1:-1, 1:-1]
    return (attention / attention.diagonal(dim1=1, dim2=2).unsqueeze(-1)).numpy()


def draw_heads(sequence: str, coords: np.ndarray, path: Path) -> None:
    """Attention of each head against distance, in the frame of the file and in another."""
    batch = CoordformerProcessor()(sequence, coords=coords)
    distances = np.linalg.norm(coords[:, None] - coords[None], axis=-1)
    turned = rotations_from_normals(torch.randn(1, 1, 3, 3))
    shown = np.random.default_rng(0).random(distances.shape) < 0.06  # all of them would hide each other
    grid = np.linspace(0, distances.max(), 200)

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    titles = {
        'coordinate_init="gaussian": approximate': gaussian_heads(),
        "num_qk_points, at the C-alphas: exact": heads_with_points(),
    }
    for ax, (title, (model, sigmas)) in zip(axes, titles.items(), strict=True):
        frames = [relative_attention(model, batch, rotations) for rotations in (None, turned)]
        for head, sigma in enumerate(sigmas):
            color = f"C{head}"
            ax.plot(grid, np.exp(-(grid**2) / (2 * sigma**2)), color=color, lw=1, label=f"σ = {sigma:.3g} Å")
            for ratio, marker in zip(frames, ("o", "+"), strict=True):
                ax.plot(distances[shown], ratio[head][shown], marker, color=color, mfc="none", ms=4, mew=0.7)
        ax.set(xlabel="distance between C-alphas (Å)", ylim=(-0.03, 1.5))
        ax.set_title(title, fontsize=10)
        ax.grid(alpha=0.3)
        ax.plot([], [], "o", color="0.3", mfc="none", ms=4, label="as in the file")
        ax.plot([], [], "+", color="0.3", ms=4, label="turned")
        ax.legend(fontsize=8, ncols=3, loc="upper center")
    axes[0].set_ylabel("attention to j / attention to itself")
    save_figure(figure, path)


def main(folder: Path) -> None:
    torch.manual_seed(0)
    chain = read_chains(STRUCTURE)[0]
    observed = chain.observed[:, 0]
    sequence = "".join(np.array(list(chain.sequence))[observed])
    coords = chain.coords[observed, 0]
    draw_terms(coords, folder / "terms.png")
    draw_heads(sequence, coords, folder / "heads.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
