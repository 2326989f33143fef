"""How near to Gaussians of distance do heads start with `coordinate_init="gaussian"`?

    python examples/embeddings/gaussian_start.py

The first layer of new models (width 128, 4 heads) on real chains, with and without rotary positions: total variation
(half the L1 distance of two distributions over residues, 0 to 1) of each head's attention to the Gaussian of its width,
the mean over residues and chains. --results gets gaussian_start.csv.
"""

import argparse
import csv
from pathlib import Path

import torch

from coordformer import CoordformerConfig, CoordformerModel, CoordformerProcessor
from coordformer.data.rows import load_rows
from coordformer.model.chain import chain_arrays

HERE = Path(__file__).parent
CHAINS = HERE.parents[1] / "examples" / "data" / "chains.parquet"
HEADS = 4


@torch.no_grad()
def errors(start: str, positions: str, rows, processor: CoordformerProcessor) -> torch.Tensor:
    """Total variation of each head, (HEADS,)."""
    torch.manual_seed(0)
    config = CoordformerConfig(
        hidden_size=128,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        intermediate_size=128,
        position_embedding_type=positions,
        coordinate_embedding="quadratic",
        coordinate_init=start,
        attn_implementation="eager",
    )
    model = CoordformerModel(config).eval()
    total = torch.zeros(HEADS)
    for row in rows:
        sequence, coords = chain_arrays(row, ("CA",))
        seen = ~torch.from_numpy(coords[:, 0]).isnan().any(dim=-1)
        batch = processor(sequence, coords=coords)
        attention = model(**batch, output_attentions=True).attentions[0][0, :, 1:-1, 1:-1][:, seen][:, :, seen]
        attention = attention / attention.sum(dim=-1, keepdim=True)
        points = torch.from_numpy(coords[:, 0])[seen].float()
        distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
        gaussians = torch.softmax(-0.5 * (distances / widths(config)[:, None, None]) ** 2, dim=-1)
        total += (attention - gaussians).abs().sum(dim=-1).mean(dim=-1) / 2
    return total / len(rows)


def widths(config: CoordformerConfig) -> torch.Tensor:
    """Sigma of each head in Å, as `structure_layers.gaussian_start` sets it."""
    return config.coordinate_scale * 0.25 * 8 ** torch.linspace(0, 1, HEADS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=CHAINS, metavar="CHAINS.parquet")
    parser.add_argument("--chains", type=int, default=100)
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="FOLDER")
    arguments = parser.parse_args()
    rows = load_rows(arguments.data, "valid").select(range(arguments.chains))
    processor = CoordformerProcessor()
    lines = []
    for positions in ("none", "rotary"):
        by_start = {start: errors(start, positions, rows, processor) for start in ("normal", "gaussian")}
        sigmas = widths(CoordformerConfig())
        for head in range(HEADS):
            cells = [positions, head + 1, f"{sigmas[head]:.1f}", *(f"{each[head]:.3f}" for each in by_start.values())]
            lines.append(cells)
            print(*cells)
    arguments.results.mkdir(parents=True, exist_ok=True)
    with open(arguments.results / "gaussian_start.csv", "w", newline="", encoding="utf-8") as file:
        head_line = ["positions", "head", "sigma", "error_normal_start", "error_gaussian_start"]
        csv.writer(file, lineterminator="\n").writerows([head_line, *lines])


if __name__ == "__main__":
    main()
