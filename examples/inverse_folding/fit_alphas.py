"""Give a ProteinMPNN for backbones the C-alphas alone: edges between these become what those of backbones are.

    python examples/inverse_folding/fit_alphas.py MODEL BACKBONES.parquet OUTPUT --num_chains 200 --noise 0.1

OUTPUT is MODEL with `partial_backbones` and `noise_conditioning`. What is added for edges between C-alphas is fitted by
linear least squares to what the distances of backbones give there; so a training need not find it. The noise that the
model is told is silent. Complete backbones are read as MODEL reads them. Takes a minute.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from coordformer import CoordformerConfig, CoordformerForMaskedLM
from coordformer.data.batching import fetch_rows
from coordformer.data.rows import load_rows
from coordformer.data.training_sequences import FILE
from coordformer.inference.checkpoints import load_checkpoint
from coordformer.training.from_proteinmpnn import LICENSE_FILE

RIDGE = 1e-4  # of the mean square of the features


def seen_by(layer: torch.nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Lists that get what the layer takes and gives from now on, edges in rows."""
    taken: list[Tensor] = []
    given: list[Tensor] = []

    def note(_, inputs, output):
        taken.append(inputs[0].flatten(0, -2))
        given.append(output.flatten(0, -2))

    layer.register_forward_hook(note)
    return taken, given


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("data", metavar="BACKBONES.parquet")
    parser.add_argument("output", type=Path)
    parser.add_argument("--split", default="train", help="default: %(default)s")
    parser.add_argument("--num_chains", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--noise", type=float, default=0.1, help="on all coordinates, Å (default: %(default)s)")
    arguments = parser.parse_args()
    before, processor = load_checkpoint(arguments.model)
    added = {"partial_backbones": True, "noise_conditioning": True}
    model = CoordformerForMaskedLM(CoordformerConfig.from_dict(before.config.to_dict() | added)).eval()
    model.load_state_dict(before.state_dict(), strict=False)
    features = model.coordformer.proteinmpnn.features
    features.zero_init(list(added))
    _, of_distances = seen_by(features.geometry)
    of_alphas, _ = seen_by(features.alpha_geometry)

    rows = load_rows(arguments.data, arguments.split)
    random = np.random.default_rng(0)
    places = np.sort(random.permutation(len(rows["length"]))[: arguments.num_chains])
    squares, products = torch.zeros(2, 1, 1, dtype=torch.float64)
    alone = torch.tensor([atom != "CA" for atom in model.config.coordinate_atoms])
    for row in fetch_rows(rows, places):
        batch = processor(chains=row)
        coords = batch["coords"]
        coords += arguments.noise * torch.from_numpy(random.normal(size=coords.shape)).to(coords)
        passes = []
        for each in (coords, coords.masked_fill(alone[:, None], torch.nan)):
            for values in (of_distances, of_alphas):
                values.clear()
            model.coordformer.encode_structure(each, batch["input_ids"])
            passes.append(torch.cat(of_distances))
        wanted = passes[0] - passes[1]
        given = torch.nn.functional.pad(torch.cat(of_alphas), (0, 1), value=1.0)
        known = given[:, :-1].any(dim=-1)  # neither special tokens nor neighbors that do not exist
        given, wanted = given[known].double(), wanted[known].double()
        squares, products = squares + given.T @ given, products + given.T @ wanted
    squares += RIDGE * squares.diagonal().mean() * torch.eye(len(squares))
    weights = torch.linalg.solve(squares, products).T
    features.alpha_geometry.weight.copy_(weights[:, :-1])
    features.alpha_geometry.bias.copy_(weights[:, -1])
    model.save_pretrained(arguments.output)
    processor.save_pretrained(arguments.output)
    for name in (FILE, LICENSE_FILE):
        if (path := Path(arguments.model, name)).exists():
            (arguments.output / name).write_bytes(path.read_bytes())


if __name__ == "__main__":
    main()
