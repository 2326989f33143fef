# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""The k-nearest-neighbor graph of residues: who is near whom, what the edges hold, and messages that pass over them."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.utils.generic import maybe_autocast

from .configuration_coordformer import CoordformerConfig, check_noise_level
from .coordinates import FeatureLinear, Frames, shift_residues, virtual_beta
from .edge_blocks import BLOCK, block_size, blocks_of, blockwise, in_blocks
from .fused import is_plain, joint_linear
from .kernels import Messages, kernel_takes, run_kernel
from .packing import take_tokens


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
        rows = pairs // (batch * length)
        if longest < length:
            rows = min(longest, int((longest**2 + pairs / batch) ** 0.5) - longest)
        rows = max(1, rows)
        ends = [(start, min(start + rows, length)) for start in range(0, length, rows)]
        blocks = [(start, end, max(0, start - longest), min(length, end + longest)) for start, end in ends]
    places, exist = [], []
    for start, end, first, last in blocks:
        # Not by a matrix product, whose rounding would put neighbors in another order.
        apart = [axis[:, start:end, None] - axis[:, None, first:last] for axis in translations.unbind(dim=-1)]
        squares = apart[0].square() + apart[1].square() + apart[2].square()
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


def radial_basis_functions(
    distances: Tensor, num_rbf: int, max_distance: float, min_distance: float = 0.0, width: float | None = None
) -> Tensor:
    """Gaussians whose centers spread evenly from `min_distance` to `max_distance`: (...) Å -> (..., num_rbf).

    exp(-((distance - center) / width)^2); the default width, Å, is that from center to center.
    """
    apart = (max_distance - min_distance) / (num_rbf - 1)
    centers = torch.arange(num_rbf, device=distances.device) * apart + min_distance
    exponents = -((distances.unsqueeze(-1) - centers) * (1 / (width or apart))).square()
    # A CPU takes thirty times as long where a result, or its product with a gradient, is too small for a normal float.
    return exponents.clamp(min=-40.0).exp()


NUM_NOISE_LEVELS, MAX_NOISE = 6, 0.5  # Å, the radial basis functions of noise


def noise_features(noise_level: Tensor) -> Tensor:
    """Radial basis functions of the noise that coordinates are said to have, Å: (...) -> (..., NUM_NOISE_LEVELS)."""
    # Values are looked at as in `check_coordinates`.
    if noise_level.device.type == "cpu" and not torch.compiler.is_compiling():
        check_noise_level(float(noise_level.min()))
        check_noise_level(float(noise_level.max()))
    return radial_basis_functions(noise_level.clamp(max=MAX_NOISE), NUM_NOISE_LEVELS, MAX_NOISE)


class NeighborGraph:
    """The k-nearest-neighbor graph that messages are passed over, of a batch, or one for all rows of a batch.

    A class without fields, as `Frames`.

    Attributes:
        places: (batch x sequence x k,), the neighbors' places in the flattened batch.
        exist: (batch, sequence, k), which of them there are.
        edges: (batch, sequence, k, hidden / 2), the edge features.
        updated: the graph as each layer that updated its edges left it, by the layer's number.
    """

    def __init__(self, places: Tensor, exist: Tensor, edges: Tensor):
        self.places, self.exist, self.edges = places, exist, edges
        self.updated: dict[int, NeighborGraph] = {}
        self._kept: dict[nn.Module, Tensor] | None = None

    def begin(self) -> "NeighborGraph":
        """The same for one pass through the layers, which may update its edges: what is shared stays as it is."""
        graph = NeighborGraph(self.places, self.exist, self.edges)
        graph._kept = self._kept
        return graph

    def with_edges(self, edges: Tensor) -> "NeighborGraph":
        """With other edges (rows, sequence, k, width): each row has its own, also where all rows shared a graph."""
        (batch, length), rows = self.exist.shape[:2], len(edges)
        if batch == rows:
            return NeighborGraph(self.places, self.exist, edges)
        starts = length * torch.arange(rows, device=self.places.device).unsqueeze(1)
        return NeighborGraph((self.places + starts).flatten(), self.exist.expand(rows, -1, -1), edges)

    def of_receivers(self, kept: Tensor) -> "NeighborGraph":
        """Edges to some residues alone, `kept` (rows, kept), of rows that may share the graph."""
        batch, length, k = self.exist.shape
        places = take_tokens(self.places.view(batch, length, k), kept)
        if batch == 1:
            places = places + length * torch.arange(len(kept), device=kept.device)[:, None, None]
        return NeighborGraph(places.flatten(), take_tokens(self.exist, kept), take_tokens(self.edges, kept))

    def keep(self) -> None:
        """From now on keep what `project` gives: for many passes over one structure, without gradients."""
        self._kept = {}

    def project(self, layer: nn.Module, dtype: torch.dtype) -> Tensor:
        """Edge features through a linear layer: (batch x sequence x k, width)."""
        if self._kept is None:
            return layer(self.edges.flatten(0, 2).to(dtype))
        if layer not in self._kept:
            self._kept[layer] = layer(self.edges.flatten(0, 2).to(dtype))
        return self._kept[layer]

    @property
    def keeps(self) -> bool:
        return self._kept is not None

    def gather(self, values: Tensor) -> Tensor:
        """(batch, sequence, width) of the residues -> (batch, sequence, k, width) of their neighbors."""
        if values.shape[0] == self.exist.shape[0]:
            gathered = values.flatten(0, 1).index_select(0, self.places)
        else:
            gathered = values.index_select(1, self.places)
        return gathered.view(values.shape[0], *self.exist.shape[1:], -1)

    def to(self, *args, **kwargs) -> "NeighborGraph":
        """On another device, as accelerate moves what a layer is given."""
        graph = NeighborGraph(*(each.to(*args, **kwargs) for each in (self.places, self.exist, self.edges)))
        graph.updated = self.updated  # layers on several devices pass it on
        return graph


class EdgeFeatures(nn.Module):
    """Features of the edges from each residue to its k nearest neighbors; computed once, before the first layer.

    Of an edge: the direction to the neighbor in both backbone frames, the rotation from frame to frame, radial basis
    functions of the distance, and the separation along the chain, up to 16 residues, or that the two are in different
    chains of a complex (after Ingraham et al. 2019, section 2.2). With `config.message_gating` radial basis functions
    of all nine distances between either residue and those beside it along the chain, as Dauparas et al. 2022 have them
    of C-alphas. With `config.partial_backbones` those of all distances between N, C-alpha, C, O and a virtual C-beta of
    one and of the other, of the pairs that are there; with `config.noise_conditioning` the noise that coordinates are
    said to have. Invariant to rotations.
    """

    # Of the atoms of `BACKBONE` and a virtual C-beta; that of C-alphas is among the others.
    atom_pairs = tuple(pair for pair in product(range(5), repeat=2) if pair != (1, 1))
    num_rbf = 16
    max_distance = 20.0  # Å, the center of the last radial basis function
    max_separation = 16  # residues along the chain, beyond which all are alike
    gain = 15.0  # features are of order 1, and weights start at hundredths

    def __init__(self, config: CoordformerConfig):
        super().__init__()
        self.num_neighbors = config.num_neighbors
        self.offsets = (-1, 0, 1) if config.message_gating else (0,)
        width, pairs = config.hidden_size // 2, len(self.atom_pairs)
        self.geometry = FeatureLinear(3 + 3 + 9 + len(self.offsets) ** 2 * self.num_rbf, width)
        self.atom_geometry = FeatureLinear(pairs * self.num_rbf, width) if config.partial_backbones else None
        self.noise = nn.Linear(NUM_NOISE_LEVELS, width, bias=False) if config.noise_conditioning else None
        self.separation = nn.Embedding(2 * self.max_separation + 1, width)
        self.other_chain = nn.Parameter(torch.empty(width))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def zero_init(self, fields: Sequence[str]) -> None:
        """Set to zero what these fields of the config add, so that a trained model predicts what it did."""
        layers = {"partial_backbones": self.atom_geometry, "noise_conditioning": self.noise}
        for field in layers.keys() & {*fields}:
            for parameter in layers[field].parameters():  # type: ignore[union-attr]
                nn.init.zeros_(parameter)

    def forward(
        self, frames: Frames, position_ids: Tensor, runs: Tensor | None, longest: int | None,
        chain_ids: Tensor | None = None, coords: Tensor | None = None, coords_mask: Tensor | None = None,
        noise_level: Tensor | None = None,
    ) -> NeighborGraph:  # fmt: skip
        """The graph of `frames`, Å; `longest` as of `k_nearest_neighbors`, `chain_ids` as of `CoordformerModel`.

        `coords` (batch, sequence, 4, 3), Å, and their mask are there with `config.partial_backbones`, `noise_level`
        (batch, sequence), Å, with `config.noise_conditioning`.
        """
        rotations, translations, observed = frames
        batch, length = observed.shape
        residues = {"rotations": rotations, "translations": translations}
        with maybe_autocast(translations.device.type, enabled=False):
            places, exist = k_nearest_neighbors(translations.detach(), observed, runs, self.num_neighbors, longest)
            shifted = [shift_residues(translations, observed, each, position_ids, runs) for each in self.offsets]
            residues["points"], residues["known"] = (torch.stack(each, dim=2) for each in zip(*shifted, strict=True))
            if self.atom_geometry is not None:
                assert coords is not None and coords_mask is not None
                n, ca, c, _ = coords.unbind(dim=2)
                atoms = torch.cat((coords, virtual_beta(n, ca, c).unsqueeze(2)), dim=2)
                whole = coords_mask[..., :3].all(dim=-1, keepdim=True)
                present = torch.cat((coords_mask, whole), dim=-1)
                own, others = torch.tensor(self.atom_pairs, device=coords.device).unbind(dim=-1)
                residues |= {"own_atoms": atoms[:, :, own], "own_present": present[:, :, own]}
                residues |= {"other_atoms": atoms[:, :, others], "other_present": present[:, :, others]}
            if self.noise is not None:
                assert noise_level is not None
                residues["noise"] = noise_features(noise_level.to(translations.dtype).expand(batch, length))
        places = places + length * torch.arange(batch, device=places.device)[:, None, None]
        near, residues["positions"] = places.flatten(0, 1), position_ids.expand(batch, length)
        if chain_ids is not None:
            residues["chain_ids"] = chain_ids
        residues = {name: each.flatten(0, 1) for name, each in residues.items()}
        blocks = blocks_of(batch * length) if in_blocks(near.device) else [slice(None)]
        edges = torch.cat([self._describe(each, near, **residues) for each in blocks])
        return NeighborGraph(places.flatten(), exist, edges.view(batch, length, self.num_neighbors, -1))

    def _describe(
        self, block, near, rotations, translations, points, known, positions, chain_ids=None, own_atoms=None,
        own_present=None, other_atoms=None, other_present=None, noise=None,
    ) -> Tensor:  # fmt: skip
        """Edge features (n, k, hidden / 2) of the residues in `block`, of all residues' values, (residues, ...)."""
        near = near[block]
        with maybe_autocast(translations.device.type, enabled=False):
            apart = translations[near] - translations[block].unsqueeze(1)
            direction = (apart / (apart.square().sum(dim=-1, keepdim=True) + 1e-6).sqrt()).unsqueeze(-1)
            receiver, sender = rotations[block].unsqueeze(1), rotations[near]
            # No `matmul`, as in `rotate_coordinates`.
            rotation = (receiver.unsqueeze(-1) * sender.unsqueeze(-2)).sum(dim=-3).flatten(-2)
            directions = (direction * receiver).sum(dim=-2), (direction * sender).sum(dim=-2)
            # (n, k, offsets, offsets, 3), and which of these pairs exist
            apart = points[block][:, None, :, None] - points[near].unsqueeze(2)
            both = known[block][:, None, :, None] & known[near].unsqueeze(2)
            features = torch.cat((*directions, rotation, self._distances(apart, both).flatten(-3)), dim=-1)
            limit = self.max_separation
            separation = (positions[near] - positions[block].unsqueeze(1)).clamp(-limit, limit) + limit
            if chain_ids is not None:
                others = chain_ids[near] != chain_ids[block].unsqueeze(1)
                separation = torch.where(others, 2 * limit + 1, separation)
        # One table whether or not there are chains: an idle parameter stops DistributedDataParallel.
        table = torch.cat((self.separation.weight, self.other_chain.unsqueeze(0)))
        summed = self.geometry(features) + nn.functional.embedding(separation, table)
        if self.atom_geometry is not None:
            with maybe_autocast(translations.device.type, enabled=False):
                apart = own_atoms[block].unsqueeze(1) - other_atoms[near]
                rbf = self._distances(apart, own_present[block].unsqueeze(1) & other_present[near])
            summed = summed + self.atom_geometry(rbf.flatten(-2))
        if self.noise is not None:
            summed = summed + self.noise(noise[block].to(self.noise.weight.dtype)).unsqueeze(1)
        edges = MessagePassing.gain * self.norm(nn.functional.gelu(self.gain * summed))
        # Every layer reads them: half the memory under autocast, where the norm gives float32.
        device = edges.device.type
        return edges.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else edges

    def _distances(self, apart: Tensor, both: Tensor) -> Tensor:
        """Radial basis functions (..., num_rbf) of the lengths of vectors (..., 3), Å, 0 where not `both` are there."""
        distances = (apart.square().sum(dim=-1) + 1e-6).sqrt()
        return radial_basis_functions(distances, self.num_rbf, self.max_distance) * both.unsqueeze(-1)


class EdgeUpdate(nn.Module):
    """Edge features that change from layer to layer with the states of receiver and sender (`config.edge_updates`).

    e_ij + W SiLU(receiver h_i + sender h_j + edge e_ij), as in the encoder of ProteinMPNN (Dauparas et al. 2022), but
    with one hidden layer and without a norm after the sum: with W at zero the edges stay what they are. In every layer
    but the first, of the states that the layer before left. On a CPU only the edges of each layer are kept for the
    backward pass.
    """

    def __init__(self, config: CoordformerConfig, layer_idx: int):
        super().__init__()
        self.layer_idx, self.gain = layer_idx, MessagePassing.gain
        hidden, width = config.hidden_size, config.hidden_size // 2
        self.receiver, self.sender = nn.Linear(hidden, width), nn.Linear(hidden, width, bias=False)
        self.edge, self.output = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor, graph: NeighborGraph) -> NeighborGraph:
        """The graph with new edges, one of its own for each row, of states (batch, sequence, hidden)."""
        before = graph.updated.get(self.layer_idx - 1, graph)
        if before.places.device != hidden_states.device:
            before = before.to(hidden_states.device)
        exist, edges = before.exist.flatten(0, 1), before.edges.flatten(0, 1).unsqueeze(0)
        states = joint_linear(hidden_states, [self.receiver, self.sender], [self.gain] * 2)
        received, sent = states.reshape(-1, len(exist), states.shape[-1]).chunk(2, dim=-1)

        def change(block: slice, sent: Tensor, received: Tensor, edges: Tensor) -> Tensor:
            hidden = nn.functional.silu(torch.add(sent, self.edge(edges)).add_(received.unsqueeze(2)))
            return torch.add(edges, self.dropout(self.output(hidden)), alpha=self.gain).to(edges.dtype)

        places, layers = before.places.view(exist.shape), [self.edge, self.output]
        changed = blockwise(change, layers, places, sent, (received, edges), len(received), BLOCK)
        if not torch.is_grad_enabled():
            graph.updated.clear()  # nobody asks for the edges of earlier layers again, as checkpoints do
        after = before.with_edges(changed.reshape(*hidden_states.shape[:2], *edges.shape[2:]))
        graph.updated[self.layer_idx] = after
        return after


class MessagePassing(nn.Module):
    """Messages from a residue's k nearest neighbors (senders) to it (the receiver), and their mean.

    A message is SiLU(receiver h_i + sender h_j + edge e_ij), as in message-passing networks (Dauparas et al. 2022),
    whose second layer commutes with the mean: `output` is applied once a residue and not once an edge. The mean is over
    `config.num_neighbors`; a neighbor that does not exist counts as zero. With `config.message_gating` a message is
    multiplied by a linear function of the sender's state and the edge features (Shazeer 2020). On a CPU nothing is kept
    of an edge for the backward pass, elsewhere hidden / 2 numbers a layer, gated three times hidden.

    With `config.message_attention` the mean is weighted: each head has its part of the message, and weights that are a
    softmax over the neighbors of a linear function of the whole message (Brody et al. 2022, arXiv 2105.14491). Their
    sum is the share of neighbors that exist, so that equal weights give the mean. With `config.edge_updates` the edges
    are first changed, see `EdgeUpdate`.
    """

    gain = 5.0  # of each of the two steps, as in `EdgeFeatures`

    def __init__(self, config: CoordformerConfig, layer_idx: int = 0):
        super().__init__()
        hidden, edges = config.hidden_size, config.hidden_size // 2
        width = hidden if config.message_gating else edges
        self.receiver, self.sender = nn.Linear(hidden, width), nn.Linear(hidden, width, bias=False)
        self.edge = nn.Linear(edges, width, bias=False)
        self.gate_sender = nn.Linear(hidden, width, bias=False) if config.message_gating else None
        self.gate_edge = nn.Linear(edges, width, bias=False) if config.message_gating else None
        self.output = nn.Linear(width, hidden, bias=False)
        self.edge_update = EdgeUpdate(config, layer_idx) if config.edge_updates and layer_idx else None
        heads = config.num_attention_heads
        self.attention = nn.Linear(width, heads, bias=False) if config.message_attention else None

    def zero_init(self, added: Sequence[str] | None = None) -> None:
        """Let what was added to a trained model be silent, so that it predicts what it did.

        `added`: names of the config's fields, `"edge_updates"` and `"message_attention"`; by default all messages.
        """
        if added is None:
            nn.init.zeros_(self.output.weight)
        elif "edge_updates" in added and self.edge_update is not None:
            nn.init.zeros_(self.edge_update.output.weight)
        if added and "message_attention" in added and self.attention is not None:
            nn.init.zeros_(self.attention.weight)

    def forward(self, hidden_states: Tensor, graph: NeighborGraph, kept_tokens: Tensor | None = None) -> Tensor:
        """(batch, sequence, hidden), and what `EdgeFeatures` returns -> (batch, sequence, hidden).

        Of `kept_tokens` (batch, kept) alone if given.
        """
        if kept_tokens is not None and (self.edge_update is not None or self.attention is not None):
            return take_tokens(self(hidden_states, graph), kept_tokens)
        if self.edge_update is not None:
            graph = self.edge_update(hidden_states, graph)
        senders = [layer for layer in (self.sender, self.gate_sender) if layer is not None]
        edge_layers: list[Any] = [layer for layer in (self.edge, self.gate_edge) if layer is not None]
        states = joint_linear(hidden_states, [self.receiver, *senders], [self.gain] * (1 + len(senders)))
        graph = graph if kept_tokens is None else graph.of_receivers(kept_tokens)
        exist, device = graph.exist, hidden_states.device
        if self.attention is not None:
            mean = self._attend(graph, states, edge_layers).view(*states.shape[:2], -1)
            return self.output(self.gain * mean)
        received, *sent = states.chunk(1 + len(senders), dim=-1)
        received = received if kept_tokens is None else take_tokens(received, kept_tokens)
        if in_blocks(device):
            plain = all(map(is_plain, edge_layers))
            weights = [layer.weight for layer in edge_layers] if plain and not graph.keeps else None
            if not torch.is_grad_enabled():
                edges = None if weights else [graph.project(layer, received.dtype) for layer in edge_layers]
                mean = _mean_messages(graph, received, sent, weights, edges)
                return self.output(self.gain / exist.shape[-1] * mean)
            if weights and len(exist) == len(received):
                mean = _MeanMessages.apply(graph, received, graph.edges, *sent, *weights)
                return self.output(self.gain / exist.shape[-1] * mean)
        projected = [graph.project(layer, received.dtype).view(*exist.shape, -1) for layer in edge_layers]
        sums = [graph.gather(each).add_(edges) for each, edges in zip(sent, projected, strict=True)]
        messages = nn.functional.silu(sums[0].add_(received.unsqueeze(2)))
        if len(sums) > 1:
            messages = messages * sums[1]
        mean_weights = exist.to(messages.dtype).unsqueeze(-2) * (self.gain / exist.shape[-1])
        return self.output((mean_weights @ messages).squeeze(-2))

    def _attend(self, graph: NeighborGraph, states: Tensor, edge_layers: list[Any]) -> Tensor:
        """Means of messages by the weights of attention, (rows, residues, width); `states` side by side."""
        attention: Any = self.attention
        exist = graph.exist.flatten(0, 1)
        missing, shares = ~exist.unsqueeze(1), exist.float().mean(dim=-1)[:, None, None]
        width = self.receiver.out_features
        received, sent = states.view(-1, len(exist), states.shape[-1]).split([width, states.shape[-1] - width], dim=-1)
        edges = graph.edges.flatten(0, 1).unsqueeze(0)
        if graph.keeps:
            kept = [graph.project(layer, states.dtype).view(*edges.shape[:3], -1) for layer in edge_layers]
            edges = torch.cat(kept, dim=-1)

        def mean(block: slice, sent: Tensor, received: Tensor, edges: Tensor) -> Tensor:
            added = edges.split(width, dim=-1) if graph.keeps else [layer(edges) for layer in edge_layers]
            sums = [torch.add(*both) for both in zip(sent.split(width, dim=-1), added, strict=True)]
            messages = nn.functional.silu(sums[0].add_(received.unsqueeze(2)))
            if len(sums) > 1:
                messages = messages * sums[1]
            logits = self.gain * attention(messages).float().transpose(-1, -2)  # (rows, n, heads, k)
            logits = logits.masked_fill(missing[block], torch.finfo(logits.dtype).min)
            weights = logits.softmax(dim=-1) * shares[block]
            # Of all heads' weights with all heads' messages, in one product, those that belong together.
            means = (weights.to(messages.dtype) @ messages).unflatten(-1, (weights.shape[2], -1))
            return means.diagonal(dim1=2, dim2=3).transpose(-1, -2).flatten(-2)

        layers = [attention] if graph.keeps else [attention, *edge_layers]
        places = graph.places.view(exist.shape)
        return blockwise(mean, layers, places, sent, (received, edges), len(received), BLOCK)


class _Memory:
    """Memory for the edges of a block, which the next block uses again.

    What an allocator gives back to the system has to be paged in anew, which takes longer than the arithmetic.
    """

    def __init__(self, rows: int):
        self.rows = rows
        self._tensors: dict[Any, Tensor] = {}

    def __call__(self, name: Any, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """(rows, width) of what is kept under this name; there are never more rows than `self.rows`."""
        rows, width = shape
        if name not in self._tensors:
            self._tensors[name] = torch.empty(self.rows, width, dtype=dtype)
        return self._tensors[name][:rows]

    def cast(self, name: Any, values: Tensor, dtype: torch.dtype) -> Tensor:
        return values if values.dtype == dtype else self(name, values.shape, dtype).copy_(values)


def _project(memory: _Memory, features: Tensor, weights: Tensor) -> Tensor:
    """Edge features (n x k, hidden / 2) through layers whose weights follow each other: (n x k, all their widths)."""
    return torch.mm(features, weights.T, out=memory("edges", (len(features), len(weights)), features.dtype))


def _sum_parts(memory: _Memory, near: Tensor, received: Tensor, sent: list[Tensor], edges: Sequence[Tensor]) -> Any:
    """Of a block what messages, and their gates, are functions of: (n x k, width) each.

    Args:
        near: (n x k,), places of the senders.
        received: (n, width).
        sent: (residues, width) each, of all residues.
        edges: (n x k, width) each.
    """
    sums = []
    for number, (values, added) in enumerate(zip(sent, edges, strict=True)):
        gathered = torch.index_select(values, 0, near, out=memory(number, added.shape, values.dtype))
        sums.append(gathered.add_(added))
    sums[0].view(len(received), -1, received.shape[1]).add_(received.unsqueeze(1))
    return sums


def _run_kernel(direction: str, block: slice, near, exist, received, sent, edges, **others) -> None:
    """`run_kernel` for the residues of a block, whose `edges` are given; of all residues the other values."""
    gate = {"gate_sent": sent[1], "gate_edge": edges[1]} if len(sent) > 1 else {}
    run_kernel(
        direction, Messages, received.dtype, received=received, sent=sent[0], edge=edges[0], stride=edges[0].stride(0),
        near=near[block], exist=exist[block], residues=len(near), first=block.start, count=block.stop - block.start,
        k=near.shape[1], width=received.shape[1], **gate, **others,
    )  # fmt: skip


@torch.no_grad()
def _mean_messages(graph: NeighborGraph, received: Tensor, sent: list[Tensor], weights, edges) -> Tensor:
    """The sum of a residue's messages, as in `MessagePassing.forward`: (batch, sequence, width).

    Takes the `weights` of the linear layers on the graph's edge features, or else what these layers give, `edges`.
    """
    k = graph.exist.shape[-1]
    exist, places, features = graph.exist.flatten(0, 1), graph.places.view(-1, k), graph.edges.flatten(0, 1)
    to, *states = (each.contiguous().flatten(0, 1) for each in (torch.empty_like(received), received, *sent))
    of, flat = states[0], states[1:]
    compiled, together = kernel_takes(*states), weights and torch.cat(weights).to(of.dtype)
    # What is the same for all passes is there already: nothing is to be kept in the cache between two operations.
    blocks = [slice(0, len(places))] if compiled and not weights else blocks_of(len(places))
    memory = _Memory(block_size() * k)
    for block in blocks:
        if weights:
            part = memory.cast("features", features[block].flatten(0, 1), of.dtype)
            parts: Sequence[Tensor] = _project(memory, part, together).chunk(len(weights), dim=1)
        else:
            parts = [each[block.start * k : block.stop * k] for each in edges]
        if compiled:
            _run_kernel("forward", block, places, exist, of, flat, parts, sums=to, rows=len(of) // len(places))
            continue
        for first in range(0, len(of), len(places)):  # of each row that shares the graph
            inside = slice(first + block.start, first + block.stop)
            sums = _sum_parts(memory, places[block].flatten() + first, of[inside], flat, parts)
            messages = nn.functional.silu(sums[0], inplace=True)
            if len(sums) > 1:
                messages.mul_(sums[1])
            messages = messages.view(-1, k, of.shape[1])
            if not exist[block].all():
                messages.mul_(exist[block].unsqueeze(-1))
            torch.sum(messages, dim=1, out=to[inside])
    return to.view(received.shape)


class _MeanMessages(torch.autograd.Function):
    """`_mean_messages` with gradients. Nothing is kept of an edge: the backward pass computes its messages again.

    Of received (batch, sequence, width), edges (batch, sequence, k, hidden / 2), and then what is sent and the weights,
    as many of one as of the other.
    """

    @staticmethod
    def forward(ctx, graph, received, edges, *sent_and_weights):
        sent, weights = _halves(sent_and_weights)
        ctx.save_for_backward(graph.places, graph.exist, received, edges, *sent_and_weights)
        return _mean_messages(graph, received, sent, weights, None)

    @staticmethod
    @once_differentiable
    def backward(ctx, of_mean):
        places, exist, received, edges, *sent_and_weights = ctx.saved_tensors
        sent, weights = _halves(sent_and_weights)
        dtype, shape, k, float32 = received.dtype, received.shape, exist.shape[-1], torch.float32
        places, exist, edges = places.view(-1, k), exist.flatten(0, 1), edges.flatten(0, 1)
        of_mean, received, *sent = (each.contiguous().flatten(0, 1) for each in (of_mean, received, *sent))
        compiled, together = kernel_takes(of_mean, received, *sent), torch.cat(weights).to(dtype)
        memory = _Memory(block_size() * k)
        # Sums over many edges are in float32, whatever the messages are in.
        of_received, of_edges = torch.empty_like(received), torch.empty_like(edges)
        of_weights, *of_sent = (torch.zeros_like(each, dtype=float32) for each in (together, *sent))
        of_gates = {"of_gate_sent": of_sent[1]} if len(sent) > 1 else {}
        for block in blocks_of(len(places)):
            part = memory.cast("features", edges[block].flatten(0, 1), dtype)
            of_together = _project(memory, part, together)  # and then its gradient
            parts = of_together.chunk(len(weights), dim=1)
            if compiled:
                others = {"sums": of_mean, "of_received": of_received, "of_sent": of_sent[0], **of_gates}
                _run_kernel("backward", block, places, exist, received, sent, parts, **others)
            else:
                near = places[block].flatten()
                inner, *gates = _sum_parts(memory, near, received[block], sent, parts)
                of_message = of_mean[block].unsqueeze(1)
                if not exist[block].all():
                    of_message = of_message * exist[block].unsqueeze(-1)
                of_message = of_message.expand(-1, k, -1)
                for gate in gates:
                    torch.ops.aten.silu.out(inner, out=parts[1])
                    parts[1].view_as(of_message).mul_(of_message)
                    of_message = gate.view_as(of_message).mul_(of_message)
                torch.ops.aten.silu_backward.grad_input(of_message.reshape(inner.shape), inner, grad_input=parts[0])
                torch.sum(parts[0].view_as(of_message), dim=1, out=of_received[block])
                for to, of_sum in zip(of_sent, parts, strict=True):
                    to.index_add_(0, near, memory.cast("of sent", of_sum, float32))
            of_part = torch.mm(of_together, together, out=memory("of features", part.shape, dtype))
            of_edges[block] = of_part.view(-1, k, part.shape[1])
            of_weights += of_together.T @ part
        of_sent = [each.to(dtype).view(shape) for each in of_sent]
        split = zip(of_weights.chunk(len(weights)), weights, strict=True)
        of_edges = of_edges.view(*shape[:2], k, -1)
        return None, of_received.view(shape), of_edges, *of_sent, *(each.to(weight.dtype) for each, weight in split)


def _halves(values):
    return list(values[: len(values) // 2]), list(values[len(values) // 2 :])
