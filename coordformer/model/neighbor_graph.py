# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""The k-nearest-neighbor graph of residues: who is near whom, what the edges hold, and messages that pass over them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.generic import maybe_autocast

from .configuration_coordformer import CoordformerConfig
from .coordinates import FeatureLinear, Frames, shift_residues


def k_nearest_neighbors(
    translations: Tensor,
    coords_mask: Tensor,
    runs: Tensor | None,
    k: int,
    longest: int | None = None,
    pairs: int = 2**24,
) -> tuple[Tensor, Tensor]:
    """The k observed residues of the same segment that are nearest in space, without the residue itself.

    Of `translations` (batch, sequence, 3) and `coords_mask` (batch, sequence); `longest` are the tokens of the longest
    segment, beyond which none is looked for (default: of the row), `pairs` the distances in memory at the same time.
    Returns their places in the row, and which of them exist: both (batch, sequence, k).
    """
    batch, length = coords_mask.shape
    index = torch.arange(length, device=coords_mask.device)
    if torch.compiler.is_compiling():  # one graph for all lengths, with all pairs in memory
        blocks = [(0, length, 0, length)]
    else:
        longest = min(longest or length, length)
        # So many at a time search the whole row, or `longest` tokens on either side.
        rows = max(1, pairs // (batch * length), int((longest**2 + pairs / batch) ** 0.5) - longest)
        ends = [(start, min(start + rows, length)) for start in range(0, length, rows)]
        blocks = [(start, end, max(0, start - longest), min(length, end + longest)) for start, end in ends]
    places, exist = [], []
    for start, end, first, last in blocks:
        # Not by a matrix product, whose rounding would put neighbors in another order.
        squares = (translations[:, start:end, None] - translations[:, None, first:last]).square().sum(dim=-1)
        allowed = coords_mask[:, start:end, None] & coords_mask[:, None, first:last]
        allowed = allowed & (index[start:end, None] != index[first:last])
        if runs is not None:
            allowed = allowed & (runs[:, start:end, None] == runs[:, None, first:last])
        squares = squares.masked_fill(~allowed, torch.inf)
        if torch.compiler.is_compiling() or last - first < k:
            squares = nn.functional.pad(squares, (0, k), value=torch.inf)
        found = squares.topk(k, largest=False)
        exist.append(found.values.isfinite())
        places.append((found.indices + first).masked_fill(~exist[-1], 0))
    return torch.cat(places, dim=1), torch.cat(exist, dim=1)


def radial_basis_functions(distances: Tensor, num_rbf: int, max_distance: float) -> Tensor:
    """Gaussians whose centers spread evenly from 0 to `max_distance`, as wide as apart: (...) Å -> (..., num_rbf)."""
    centers = torch.arange(num_rbf, device=distances.device) * (max_distance / (num_rbf - 1))
    return (-((distances.unsqueeze(-1) - centers) * ((num_rbf - 1) / max_distance)).square()).exp()


class NeighborGraph:
    """The k-nearest-neighbor graph that messages are passed over, of a batch, or one for all rows of a batch.

    A class without fields, as `Frames`.

    Attributes:
        places: (batch x sequence x k,), the neighbors' places in the flattened batch.
        exist: (batch, sequence, k), which of them there are.
        edges: (batch, sequence, k, hidden / 2), the edge features.
    """

    def __init__(self, places: Tensor, exist: Tensor, edges: Tensor):
        self.places, self.exist, self.edges = places, exist, edges
        self._kept: dict[nn.Module, Tensor] | None = None

    def keep(self) -> None:
        """From now on keep what `project` gives: for many passes over one structure, without gradients."""
        self._kept = {}

    def project(self, layer: nn.Module, dtype: torch.dtype) -> Tensor:
        """Edge features through a linear layer: (batch, sequence, k, width)."""
        if self._kept is None:
            return self._project(layer, self.edges.to(dtype))
        if layer not in self._kept:
            self._kept[layer] = self._project(layer, self.edges.to(dtype))
        return self._kept[layer]

    def project_block(self, layer: nn.Module, dtype: torch.dtype, row: int, inside: slice) -> Tensor:
        """`project` of the residues `inside` a row: (n, k, width)."""
        if self._kept is not None:
            return self.project(layer, dtype)[row, inside]
        return self._project(layer, self.edges[row, inside].to(dtype))

    def _project(self, layer: nn.Module, edges: Tensor) -> Tensor:
        # In two dimensions: some quantized layers take no more.
        return layer(edges.flatten(0, -2)).view(*edges.shape[:-1], -1)

    def gather(self, values: Tensor) -> Tensor:
        """(batch, sequence, width) of the residues -> (batch, sequence, k, width) of their neighbors."""
        if values.shape[0] == self.exist.shape[0]:
            gathered = values.flatten(0, 1).index_select(0, self.places)
        else:
            gathered = values.index_select(1, self.places)
        return gathered.view(values.shape[0], *self.exist.shape[1:], -1)

    def blocks(self, batch: int, residues: int) -> Iterator[tuple[int, int, slice, Tensor]]:
        """All rows of a batch in blocks of so many residues.

        Yields the row, the graph's own, the residues inside of it, and their neighbors' places in the flattened batch.
        """
        rows, length, k = self.exist.shape
        places = self.places.view(rows, length, k)
        for row in range(batch):
            own = row if rows == batch else 0
            for start in range(0, length, residues):
                inside = slice(start, min(start + residues, length))
                yield row, own, inside, places[own, inside].flatten() + (row - own) * length

    def to(self, *args, **kwargs) -> "NeighborGraph":
        """On another device, as accelerate moves what a layer is given."""
        return NeighborGraph(*(each.to(*args, **kwargs) for each in (self.places, self.exist, self.edges)))


class EdgeFeatures(nn.Module):
    """Features of the edges from each residue to its k nearest neighbors; computed once, for all layers.

    Of an edge: the direction to the neighbor in both backbone frames, the rotation from frame to frame, radial basis
    functions of the distance, and the separation along the chain, up to 16 residues, or that the two are in different
    chains of a complex (after Ingraham et al. 2019, section 2.2). With `config.message_gating` radial basis functions
    of all nine distances between either residue and those beside it along the chain, as Dauparas et al. 2022 have them
    of C-alphas. Invariant to rotations.
    """

    num_rbf = 16
    max_distance = 20.0  # Å, the center of the last radial basis function
    max_separation = 16  # residues along the chain, beyond which all are alike
    gain = 15.0  # features are of order 1, and weights start at hundredths

    def __init__(self, config: CoordformerConfig):
        super().__init__()
        self.num_neighbors = config.num_neighbors
        self.offsets = (-1, 0, 1) if config.message_gating else (0,)
        width = config.hidden_size // 2
        self.geometry = FeatureLinear(3 + 3 + 9 + len(self.offsets) ** 2 * self.num_rbf, width)
        self.separation = nn.Embedding(2 * self.max_separation + 1, width)
        self.other_chain = nn.Parameter(torch.empty(width))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(
        self, frames: Frames, position_ids: Tensor, runs: Tensor | None, longest: int | None,
        chain_ids: Tensor | None = None,
    ) -> NeighborGraph:  # fmt: skip
        """The graph of `frames`, Å; `longest` as of `k_nearest_neighbors`, `chain_ids` as of `CoordformerModel`."""
        rotations, translations, coords_mask = frames
        batch, length = coords_mask.shape
        with maybe_autocast(translations.device.type, enabled=False):
            places, exist = k_nearest_neighbors(translations.detach(), coords_mask, runs, self.num_neighbors, longest)
            rows = torch.arange(batch, device=places.device)[:, None, None]
            apart = translations[rows, places] - translations.unsqueeze(2)
            direction = (apart / (apart.square().sum(dim=-1, keepdim=True) + 1e-6).sqrt()).unsqueeze(-1)
            receiver, sender = rotations.unsqueeze(2), rotations[rows, places]
            # No `matmul`, as in `rotate_coordinates`.
            rotation = (receiver.unsqueeze(-1) * sender.unsqueeze(-2)).sum(dim=-3).flatten(-2)
            directions = (direction * receiver).sum(dim=-2), (direction * sender).sum(dim=-2)
            rbf = self._distances(translations, coords_mask, position_ids, runs, rows, places)
            features = torch.cat((*directions, rotation, rbf), dim=-1)
            positions, limit = position_ids.expand(batch, length), self.max_separation
            separation = (positions[rows, places] - positions.unsqueeze(2)).clamp(-limit, limit) + limit
            if chain_ids is not None:
                others = chain_ids[rows, places] != chain_ids.unsqueeze(2)
                separation = torch.where(others, 2 * limit + 1, separation)
        # One table whether or not there are chains: an idle parameter stops DistributedDataParallel.
        table = torch.cat((self.separation.weight, self.other_chain.unsqueeze(0)))
        summed = self.geometry(features) + nn.functional.embedding(separation, table)
        edges = MessagePassing.gain * self.norm(nn.functional.gelu(self.gain * summed))
        return NeighborGraph((places + length * rows).flatten(), exist, edges)

    def _distances(self, translations, coords_mask, position_ids, runs, rows, places) -> Tensor:
        """Radial basis functions between the residues `offsets` from both of an edge, zero where one is missing."""
        shifted = [shift_residues(translations, coords_mask, each, position_ids, runs) for each in self.offsets]
        points, known = (torch.stack(each, dim=2) for each in zip(*shifted, strict=True))
        # (batch, sequence, k, offsets, offsets, 3), and which of these pairs exist
        apart = points[:, :, None, :, None] - points[rows, places].unsqueeze(3)
        both = known[:, :, None, :, None] & known[rows, places].unsqueeze(3)
        rbf = radial_basis_functions((apart.square().sum(dim=-1) + 1e-6).sqrt(), self.num_rbf, self.max_distance)
        return (rbf * both.unsqueeze(-1)).flatten(-3)


class MessagePassing(nn.Module):
    """Messages from a residue's k nearest neighbors (senders) to it (the receiver), and their mean.

    A message is SiLU(receiver h_i + sender h_j + edge e_ij), as in message-passing networks (Dauparas et al. 2022),
    whose second layer commutes with the mean: `output` is applied once a residue and not once an edge. The mean is over
    `config.num_neighbors`; a neighbor that does not exist counts as zero. With `config.message_gating` a message is
    multiplied by a linear function of the sender's state and the edge features (Shazeer 2020). For the backward pass
    each edge keeps hidden / 2 numbers a layer, gated three times hidden.
    """

    gain = 5.0  # of each of the two steps, as in `EdgeFeatures`
    block = 32  # residues whose messages are in memory at the same time, without gradients on a CPU

    def __init__(self, config: CoordformerConfig):
        super().__init__()
        hidden, edges = config.hidden_size, config.hidden_size // 2
        width = hidden if config.message_gating else edges
        self.receiver, self.sender = nn.Linear(hidden, width), nn.Linear(hidden, width, bias=False)
        self.edge = nn.Linear(edges, width, bias=False)
        self.gate_sender = nn.Linear(hidden, width, bias=False) if config.message_gating else None
        self.gate_edge = nn.Linear(edges, width, bias=False) if config.message_gating else None
        self.output = nn.Linear(width, hidden, bias=False)

    def zero_init(self) -> None:
        """Set the output to zero, so that a trained model to which messages are added predicts what it did."""
        nn.init.zeros_(self.output.weight)

    def forward(self, hidden_states: Tensor, graph: NeighborGraph) -> Tensor:
        """(batch, sequence, hidden), and what `EdgeFeatures` returns -> (batch, sequence, hidden)."""
        layers = [
            (self.sender, self.edge),
            *([(self.gate_sender, self.gate_edge)] if self.gate_sender is not None else []),
        ]
        edge_layers: list[Any] = [edge for _, edge in layers]
        received = (self.gain * self.receiver(hidden_states)).unsqueeze(2)
        states = [self.gain * sender(hidden_states) for sender, _ in layers]
        blocked = hidden_states.device.type == "cpu" and not torch.is_grad_enabled()
        if not blocked or torch.compiler.is_compiling():
            pairs = zip(states, edge_layers, strict=True)
            sums = [graph.gather(sent).add_(graph.project(edge, sent.dtype)) for sent, edge in pairs]
            return self.output(self._mean(received, sums, graph.exist))
        # Without gradients a CPU is twice to four times as fast on messages that stay in its cache.
        mean = torch.empty_like(states[0])
        flat = [sent.flatten(0, 1) for sent in states]
        for row, own, inside, places in graph.blocks(len(mean), self.block):
            sums = []
            for sent, edge in zip(flat, edge_layers, strict=True):
                gathered = sent.index_select(0, places).view(-1, graph.exist.shape[-1], sent.shape[-1])
                sums.append(gathered.add_(graph.project_block(edge, sent.dtype, own, inside)))
            mean[row, inside] = self._mean(received[row, inside], sums, graph.exist[own, inside])
        return self.output(mean)

    def _mean(self, received: Tensor, sums: list[Tensor], exist: Tensor) -> Tensor:
        """Mean messages (..., width), of sums over sender and edge (..., k, width), which are overwritten."""
        messages = nn.functional.silu(sums[0].add_(received))
        if len(sums) > 1:
            messages = messages * sums[1]
        weights = exist.to(messages.dtype).unsqueeze(-2) * (self.gain / exist.shape[-1])
        return (weights @ messages).squeeze(-2)
