# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""ProteinMPNN's layers (Dauparas et al. 2022) as a masked language model: `config.encoder_type="proteinmpnn"`.

Edges lead from each residue to its nearest neighbors, itself among them. Encoder layers read geometry alone and update
residues and edges; decoder layers also read letters. ProteinMPNN decodes residues one after another. Here all are
decoded at once: a residue that is not masked is seen by all its neighbors, with its letter and what the decoder makes
of it, a masked one as the encoder left it, and every residue sees itself in that way. A masked residue so has the
probabilities that ProteinMPNN gives to it where the others see each other.

A message is the output of three linear layers on [receiver, edge, sender]. The first is a sum of one for each part, two
of which are computed once a residue; the last is linear, and computed after the mean over the neighbors.

Where the package of 2022 differs: Residues that were not observed are no neighbors; there they are in the decoder, as
is padding, of proteins with fewer observed residues than neighbors. Where O alone is missing it is placed; there the
residue counts as not observed. C-alphas that do not exist, before the first
residue, behind the last and in gaps, are as far away as in a file whose origin is far from the protein; there they lie
at the origin. The last two residues of a segment have no frame, as there in rows without padding. As there, C-alphas of
neighboring chains follow upon each other, and quaternions of C-alphas depend on the axes of the file: the model of
C-alphas is invariant to translations alone, that of backbones to rotations, too, and with
`config.invariant_quaternions` both are.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import maybe_autocast

from .configuration_coordformer import BACKBONE, CoordformerConfig
from .coordinates import FeatureLinear, place_oxygens, placed_residues, virtual_beta
from .edge_blocks import blockwise, in_blocks
from .neighbor_graph import (
    NUM_NOISE_LEVELS,
    NeighborGraph,
    k_nearest_neighbors,
    noise_features,
    radial_basis_functions,
)
from .structure_layers import Structure

FAR = 1e4  # Å, in all directions: a C-alpha that does not exist
PAIRS_AT_ONCE = 512  # of a hidden residue and one that is computed for it, whose edges are in memory

# --- Geometry ---


def residue_exists(residue_mask: Tensor, offset: int, runs: Tensor | None) -> Tensor:
    """Whether the token `offset` further in the row is a residue of the same segment, (batch, sequence)."""
    places = torch.arange(residue_mask.shape[1], device=residue_mask.device) + offset
    exists = residue_mask.roll(-offset, 1) & (places >= 0) & (places < residue_mask.shape[1])
    return exists if runs is None else exists & (runs.roll(-offset, 1) == runs)


def chain_points(
    alphas: Tensor, observed: Tensor, residue_mask: Tensor, position_ids: Tensor, runs: Tensor | None,
    chain_ids: Tensor | None,
) -> Tensor:  # fmt: skip
    """C-alphas of the residue before, of the residue itself and of the one behind, (batch, sequence, 3, 3).

    Of `alphas` (batch, sequence, 3); `FAR` where there is none, as before a gap in `position_ids`.
    """
    points, positions = [], position_ids.expand(observed.shape)
    for offset in (-1, 0, 1):
        known = residue_exists(residue_mask & observed, offset, runs)
        follows = positions.roll(-offset, 1) - positions == offset
        if chain_ids is not None:
            follows = follows | (chain_ids.roll(-offset, 1) != chain_ids)
        points.append(alphas.roll(-offset, 1).masked_fill(~(known & follows).unsqueeze(-1), FAR))
    return torch.stack(points, dim=2)


def chain_neighbors(residue_mask: Tensor, runs: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """The k tokens nearest along the row, those behind and before in turns, and which are residues of the same segment.

    As `k_nearest_neighbors`, places in the row and which exist: both (batch, sequence, k).
    """
    batch, length = residue_mask.shape
    steps = torch.arange(1, k + 1, device=residue_mask.device)
    offsets = (steps + 1) // 2 * (2 * (steps % 2) - 1)  # 1, -1, 2, -2, ...
    places = torch.arange(length, device=residue_mask.device).unsqueeze(-1) + offsets
    exist = (places >= 0) & (places < length)
    places = places.clamp(0, length - 1)
    exist = exist & residue_mask[:, places] & residue_mask.unsqueeze(-1)
    if runs is not None:
        exist = exist & (runs[:, places] == runs.unsqueeze(-1))
    return places.expand(batch, length, k).masked_fill(~exist, 0), exist


def unit(vectors: Tensor) -> Tensor:
    """Vectors (..., 3) of length 1; zero stays zero, with a finite gradient."""
    return vectors * (vectors.square().sum(dim=-1, keepdim=True) + 1e-8).rsqrt()


def chain_frames(points: Tensor, residue_mask: Tensor, runs: Tensor | None) -> Tensor:
    """Frames of residues from `chain_points`: (batch, sequence, 3, 3), the axes in rows; zero without neighbors."""
    steps = points.diff(dim=2)
    lengths = steps.norm(dim=-1, keepdim=True)
    bonded = (lengths > 3.6) & (lengths < 4.0)
    before, behind = unit(steps * bonded).unbind(dim=2)
    first, normal = unit(before - behind), unit(torch.linalg.cross(before, behind))
    frames = torch.stack((first, normal, torch.linalg.cross(first, normal)), dim=2)
    inside = residue_exists(residue_mask, -1, runs) & residue_exists(residue_mask, 2, runs)
    return frames * inside[..., None, None]


def quaternions(rotations: Tensor, least: float = 0.0) -> Tensor:
    """Unit quaternions (..., 4), the real part last, of matrices (..., 3, 3).

    Where one of the frames lacks axes, as beside gaps, an imaginary part has the sign of what would be 0 but for
    rounding. Below `least` it is 0, too.
    """
    x, y, z = rotations.diagonal(dim1=-2, dim2=-1).unbind(dim=-1)
    squares = torch.stack((1 + x - y - z, 1 - x + y - z, 1 - x - y + z), dim=-1)
    skew = (rotations - rotations.transpose(-1, -2))[..., (2, 0, 1), (1, 2, 0)]
    imaginary = skew.sign() * (skew.abs() > least) * (squares.abs() + 1e-12).sqrt()
    real = (nn.functional.relu(1 + x + y + z) + 1e-12).sqrt().unsqueeze(-1)
    return nn.functional.normalize(torch.cat((imaginary, real), dim=-1), dim=-1)


class ProteinMPNNFeatures(nn.Module):
    """The graph of the nearest neighbors, and features of its edges, as of `CA_ProteinFeatures` and `ProteinFeatures`.

    Of an edge: radial basis functions of the distances between all atoms of the receiver and all of the sender, and the
    separation along the chain, up to 32 residues, or that the two are in different chains. With C-alphas alone, those
    of the residues beside it along the chain count as a residue's atoms, and there are the direction to the sender in
    the receiver's frame and a quaternion of both frames; with backbones, a virtual C-beta is the fifth atom. A residue
    is observed where all of `config.coordinate_atoms` are.

    With `config.partial_backbones` it is where the C-alpha is. Of an edge between complete backbones all is as above;
    of another one the distances of atoms that are missing are left out, and what there is of C-alphas alone is added.
    The neighbors of a residue that is not observed are those along the chain, observed or not, and of their edges only
    the separation is known. With `config.noise_conditioning` the noise that coordinates are said to have is added, too.
    """

    num_rbf = 16
    min_distance, max_distance = 2.0, 22.0  # Å, the centers of the first and the last radial basis function
    max_separation = 32  # residues along the chain, beyond which all are alike

    def __init__(self, config: CoordformerConfig):
        super().__init__()
        self.num_neighbors = config.num_neighbors
        self.config = config
        self.backbone, self.partial = config.coordinate_atoms == BACKBONE, config.partial_backbones
        self.invariant_quaternions = config.invariant_quaternions or self.partial
        of_alphas = 9 * self.num_rbf + 3 + 4
        self.geometry = FeatureLinear(25 * self.num_rbf if self.backbone else of_alphas, config.hidden_size)
        self.alpha_geometry = FeatureLinear(of_alphas, config.hidden_size) if self.partial else None
        noise = config.noise_conditioning
        self.noise = nn.Linear(NUM_NOISE_LEVELS, config.hidden_size, bias=False) if noise else None
        self.separation = nn.Embedding(2 * self.max_separation + 2, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def zero_init(self, fields: Sequence[str]) -> None:
        """Set to zero what these fields of the config add: complete backbones are read as before."""
        layers = {"partial_backbones": self.alpha_geometry, "noise_conditioning": self.noise}
        for field in layers.keys() & {*fields}:
            for parameter in layers[field].parameters():  # type: ignore[union-attr]
                nn.init.zeros_(parameter)

    def forward(
        self, coords: Tensor, coords_mask: Tensor, residue_mask: Tensor, position_ids: Tensor, runs: Tensor | None,
        longest: int | None, chain_ids: Tensor | None, noise_level: Tensor | None = None,
    ) -> NeighborGraph:  # fmt: skip
        """Of `coords` (batch, sequence, atoms, 3), Å, and their mask; the first neighbor is the residue itself.

        `residue_mask` (batch, sequence) is False for special tokens and padding; `noise_level` (batch, sequence), Å, is
        there with `config.noise_conditioning`; the rest is as of `k_nearest_neighbors` and `CoordformerModel`.
        """
        if self.backbone:
            coords, coords_mask = place_oxygens(coords, coords_mask, residue_mask, runs)
        place = 1 if self.backbone else 0
        alphas, observed = coords[:, :, place], placed_residues(coords_mask, self.config)
        batch, length = observed.shape
        with maybe_autocast(coords.device.type, enabled=False):
            near, exist = k_nearest_neighbors(alphas.detach(), observed, runs, self.num_neighbors - 1, longest)
            values = []
            if self.backbone:
                n, ca, c, _ = coords.unbind(dim=2)
                values += [coords.flatten(2), virtual_beta(n, ca, c)]
            if self.partial or not self.backbone:
                points = chain_points(alphas, observed, residue_mask, position_ids, runs, chain_ids)
                frames = chain_frames(points, residue_mask, runs)
                values += [points.flatten(2), alphas, frames.flatten(2)]
            if self.partial:
                known = coords_mask & observed.unsqueeze(-1)
                known = torch.cat((known, known[..., :3].all(dim=-1, keepdim=True)), dim=-1)
                values.append(known.to(coords.dtype))
            if self.noise is not None:
                assert noise_level is not None
                values.append(noise_features(noise_level.to(coords.dtype).expand(batch, length)))
            residues = torch.cat(values, dim=-1).flatten(0, 1).unsqueeze(0)
        present = residue_mask if self.partial else observed
        if self.partial:
            along, there = chain_neighbors(residue_mask, runs, self.num_neighbors - 1)
            near = torch.where(observed.unsqueeze(-1), near, along)
            exist = torch.where(observed.unsqueeze(-1), exist, there)
        itself = torch.arange(length, device=near.device).expand(batch, length).unsqueeze(-1)
        starts = length * torch.arange(batch, device=near.device)[:, None, None]
        places = (torch.cat((itself, near), dim=-1) + starts).flatten(0, 1)
        exist = torch.cat((present.unsqueeze(-1), exist), dim=-1)
        positions = position_ids.expand(batch, length).flatten()
        chains = None if chain_ids is None else chain_ids.flatten()
        sizes = [each.shape[-1] for each in values]

        def describe(block: slice, sent: Tensor, received: Tensor) -> Tensor:
            """Edge features (1, n, k, hidden) of the residues in a block, of what `residues` says of both sides."""
            near = places[block]
            summed = self._geometry(received.unsqueeze(2).split(sizes, dim=-1), sent.split(sizes, dim=-1))
            limit = self.max_separation
            separation = (positions[block].unsqueeze(-1) - positions[near]).clamp(-limit, limit) + limit
            if chains is not None:
                separation = torch.where(chains[near] != chains[block].unsqueeze(-1), 2 * limit + 1, separation)
            return self.output(self.norm(summed + self.separation(separation)))

        edges = blockwise(describe, [self], places, residues, (residues,))
        return NeighborGraph(places.flatten(), exist, edges.view(batch, length, self.num_neighbors, -1))

    def _geometry(self, receiver: Sequence[Tensor], sender: Sequence[Tensor]) -> Tensor:
        """What coordinates and noise give edges, (1, n, k, hidden).

        Of the values of receivers (1, n, 1, ...) and senders (1, n, k, ...), in the order of `forward`.
        """
        own, others = [*receiver], [*sender]
        added = 0.0
        if self.noise is not None:
            added = self.noise(own.pop().to(self.noise.weight.dtype))
            others.pop()
        if not self.backbone:
            return self.geometry(self._of_alphas(own, others)) + added
        with maybe_autocast(own[0].device.type, enabled=False):
            rbf = self._distances(*(torch.cat(each[:2], dim=-1) for each in (own, others)))
            if self.partial:
                both = (own[-1].unsqueeze(-1) * others[-1].unsqueeze(-2)).flatten(-2)  # (1, n, k, pairs)
                rbf = rbf * both.unsqueeze(-1)
        summed = self.geometry(rbf.flatten(-2)) + added
        if self.partial:
            incomplete = ~both.all(dim=-1, keepdim=True)
            # Most backbones are complete; other devices than a CPU would have to be waited for to know.
            if not in_blocks(both.device) or incomplete.any():
                pair = both.unflatten(-1, (5, 5))[..., 1, 1, None]  # of C-alphas
                of_alphas = self.alpha_geometry(self._of_alphas(own[2:5], others[2:5]) * pair)  # type: ignore[misc]
                summed = summed + of_alphas * incomplete
        return summed

    def _distances(self, receiver: Tensor, sender: Tensor) -> Tensor:
        """Radial basis functions (1, n, k, pairs, num_rbf) of the distances of atoms (1, n, 1 or k, 3 x atoms)."""
        own, others = (each.unflatten(-1, (-1, 3)) for each in (receiver, sender))
        apart = own.unsqueeze(-2) - others.unsqueeze(-3)
        distances = (apart.square().sum(dim=-1) + 1e-6).sqrt().flatten(-2)
        first, last = self.min_distance, self.max_distance
        return radial_basis_functions(distances, self.num_rbf, last, first, width=(last - first) / self.num_rbf)

    def _of_alphas(self, receiver: Sequence[Tensor], sender: Sequence[Tensor]) -> Tensor:
        """Features (1, n, k, features) of `chain_points`, C-alphas and `chain_frames`."""
        with maybe_autocast(receiver[0].device.type, enabled=False):
            rbf = self._distances(receiver[0], sender[0]).flatten(-2)
            own, others = (each[2].unflatten(-1, (3, 3)) for each in (receiver, sender))
            apart = sender[1] - receiver[1]
            # No `matmul`, as in `rotate_coordinates`.
            direction = unit((own * apart.unsqueeze(-2)).sum(dim=-1))
            if self.invariant_quaternions:  # of O_i O_j^T, where the published models have O_i^T O_j
                own, others = own.transpose(-1, -2), others.transpose(-1, -2)
            rotation = (own.unsqueeze(-1) * others.unsqueeze(-2)).sum(dim=-3)
            # What the published models read of rounding is theirs; it changes when a file is turned.
            turned = quaternions(rotation, least=1e-5 if self.invariant_quaternions else 0.0)
            return torch.cat((rbf, direction, turned), dim=-1)


# --- Layers ---


class Message(nn.Module):
    """Three linear layers on [receiver, edge, sender]: the first a sum, the last one, `output`, for the caller."""

    def __init__(self, config: CoordformerConfig):
        super().__init__()
        width = config.hidden_size
        self.receiver = nn.Linear(width, width)
        self.edge, self.sender = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.hidden, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, received: Tensor, edges: Tensor, sent: Tensor) -> Tensor:
        """Messages before the last layer, (rows, n, k, hidden).

        Of what `receiver`, `edge` and `sender` give: (rows, n, hidden), (rows or 1, n, k, hidden), (rows, n, k,
        hidden).
        """
        return self.activation(self.hidden(self.activation(sent + received.unsqueeze(2) + edges)))


class ProteinMPNNLayer(GradientCheckpointingLayer):
    """What layers of the encoder and of the decoder have in common: the mean of messages, and a feed-forward layer.

    States are (rows, residues, hidden). Rows that share a graph are beside each other; the residues of rows with a
    graph each are one row of all. `places` and `exist` (residues, k) say who the neighbors are, and which there are.
    """

    scale = 30.0  # a sum of messages is divided by it

    def __init__(self, config: CoordformerConfig):
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.message = Message(config)
        self.message_norm = nn.LayerNorm(width, eps=eps)
        self.intermediate = nn.Linear(width, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, width)
        self.output_norm = nn.LayerNorm(width, eps=eps)
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def update(
        self, states: Tensor, sent: Tensor, edges: Tensor, places: Tensor, exist: Tensor, projected: bool = False
    ) -> Tensor:
        """New states, of what `message.sender` gives for all senders, and of edges (residues, k, hidden).

        `projected`: the edges are what `message.edge` gives of them.
        """
        message, number = self.message, exist.sum(dim=-1, keepdim=True)
        weights = exist / number.clamp(min=1)

        def mean(block: slice, sent: Tensor, received: Tensor, edges: Tensor) -> Tensor:
            messages = message(received, edges if projected else message.edge(edges), sent)
            return (weights[block].to(messages.dtype).unsqueeze(-2) @ messages).squeeze(-2)

        layers = [message.hidden, *([] if projected else [message.edge])]
        along = message.receiver(states), edges.unsqueeze(0)
        means = blockwise(mean, layers, places, sent, along, len(states))
        messages = message.output(means)
        states = self.message_norm(states + self.dropout(messages * (number / self.scale).to(messages.dtype)))
        states = self.output_norm(states + self.dropout(self.output(self.activation(self.intermediate(states)))))
        return states * exist[:, :1]


class ProteinMPNNEncoderLayer(ProteinMPNNLayer):
    """Messages to residues, and then to edges."""

    def __init__(self, config: CoordformerConfig):
        super().__init__(config)
        self.edge_message = Message(config)
        self.edge_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, states: Tensor, edges: Tensor, places: Tensor, exist: Tensor) -> tuple[Tensor, Tensor]:
        """New states (1, residues, hidden) and edges (residues, k, hidden)."""
        states = self.update(states, self.message.sender(states), edges, places, exist)
        message = self.edge_message

        def change(block: slice, sent: Tensor, received: Tensor, edges: Tensor) -> Tensor:
            messages = message.output(message(received, message.edge(edges), sent))
            return self.edge_norm(edges + self.dropout(messages))

        layers, along = [message.edge, message.hidden, message.output, self.edge_norm], edges.unsqueeze(0)
        edges = blockwise(change, layers, places, message.sender(states), (message.receiver(states), along))[0]
        return states, edges


class ProteinMPNNDecoderLayer(ProteinMPNNLayer):
    """Messages to residues that also hold the sender's letter, if it is visible."""

    def __init__(self, config: CoordformerConfig):
        super().__init__(config)
        self.letter = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self, states: Tensor, letters: Tensor, visible: Tensor, encoded: Tensor, places: Tensor, graph: NeighborGraph
    ) -> Tensor:
        """New states, of states and token embeddings (rows, residues, hidden) and the encoder's states, of one row.

        `visible` (rows, residues, 1) says whose letters are seen; `places` leads a residue to itself `residues` further
        than to others.
        """
        hidden = self.message.sender(encoded)
        sent = self.send(states, letters, visible, hidden)
        sent = torch.cat((sent, hidden.expand_as(sent)), dim=1)
        edges = self.edges_of(graph, sent.dtype)
        return self.update(states, sent, edges, places, graph.exist.flatten(0, 1), projected=graph.keeps)

    def send(self, states: Tensor, letters: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        """What neighbors get of a residue: its state and letter, or where that is not visible `hidden`."""
        return torch.where(visible, self.message.sender(states) + self.letter(letters), hidden)

    def edges_of(self, graph: NeighborGraph, dtype: torch.dtype) -> Tensor:
        """(residues, k, hidden); where the graph keeps what layers make of edges, what `message.edge` gives of them."""
        edges = graph.edges.flatten(0, 1)
        return graph.project(self.message.edge, dtype).view_as(edges) if graph.keeps else edges


class ProteinMPNN(nn.Module):
    """The graph, the encoder, which reads it alone, and the decoder, which also reads letters."""

    def __init__(self, config: CoordformerConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.features = ProteinMPNNFeatures(config)
        self.encoder = nn.ModuleList(ProteinMPNNEncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.decoder = nn.ModuleList(ProteinMPNNDecoderLayer(config) for _ in range(config.num_decoder_layers))

    def get_input_embeddings(self) -> nn.Module:
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.word_embeddings = value  # type: ignore[assignment]

    def encode(self, structure: Structure, *geometry) -> None:
        """Put the graph, and as `embedding` the encoder's states, into a structure; of what `features` takes."""
        graph = self.features(*geometry)
        exist, edges = graph.exist.flatten(0, 1), graph.edges.flatten(0, 1)
        # In the weights' dtype, as all states between layers; edges are in that of autocast.
        states = torch.zeros_like(edges[None, :, 0], dtype=self.features.norm.weight.dtype)
        places = graph.places.view_as(exist)
        for layer in self.encoder:
            states, edges = layer(states, edges, places, exist)
        structure.embedding = states.view(*graph.exist.shape[:2], -1)
        structure.graph = NeighborGraph(graph.places, graph.exist, edges.view_as(graph.edges))

    def forward(self, letters: Tensor, visible: Tensor, structure: Structure) -> tuple[Tensor, ...]:
        """Hidden states (batch, sequence, hidden): the encoder's, then those of each layer of the decoder.

        Of token embeddings (batch, sequence, hidden) and which of them are seen, (batch, sequence). They are zero where
        a residue was not observed.
        """
        encoded, graph = structure.embedding, structure.graph
        assert encoded is not None and graph is not None
        shape, residues = letters.shape, encoded.shape[0] * encoded.shape[1]
        places = graph.places.view(residues, -1).clone()
        places[:, 0] += residues
        encoded = encoded.reshape(1, residues, -1)
        letters, visible = letters.reshape(-1, residues, shape[-1]), visible.reshape(-1, residues, 1)
        states = [encoded.expand_as(letters)]
        for layer in self.decoder:
            states.append(layer(states[-1], letters, visible, encoded, places, graph))
        return tuple(each.reshape(shape) for each in states)

    @torch.no_grad()
    def hide_each(self, letters: Tensor, visible: Tensor, structure: Structure, hidden: Tensor) -> Tensor:
        """The last states (n, hidden) of the residues `hidden` (n,), of each where it alone is hidden from the others.

        They are what `forward` gives of n rows, with one more residue hidden in each. But what a letter changes travels
        along one edge a layer, and of the last layer the state of one residue is wanted, so that few residues are
        computed in each layer, whatever the length: with three layers about twice as many as a residue has neighbors.

        Args:
            letters, visible: (1, sequence, hidden) and (1, sequence), as of `forward`, of what is there otherwise.
            structure: of one row.
            hidden: indices of tokens.
        """
        encoded, graph = structure.embedding, structure.graph
        assert encoded is not None and graph is not None
        before = [each[0] for each in self(letters, visible, structure)]
        encoded, letters, visible = encoded[0], letters[0], visible[0].unsqueeze(-1)
        residues, device = len(encoded), encoded.device
        near, exist = graph.places.view(residues, -1), graph.exist.flatten(0, 1)
        own = torch.arange(residues, device=device)
        owners = torch.arange(len(hidden), device=device)
        reads = torch.zeros(residues, residues, device=device)  # 1 where a row's residue sees a column's, not itself
        reads.scatter_reduce_(1, near[:, 1:], exist[:, 1:].to(reads.dtype), "amax")

        # By layer, (n, residues): whose states differ from those before, and whose are needed for what is asked.
        changed = [reads[:, hidden].T > 0]
        needed = [torch.zeros(len(hidden), residues, dtype=torch.bool, device=device)]
        needed[0][owners, hidden] = True
        for _ in self.decoder[1:]:
            changed.append(changed[0] | changed[-1] | (changed[-1].to(reads.dtype) @ reads.T > 0))
            needed.insert(0, needed[0] | (needed[0].to(reads.dtype) @ reads > 0))
        changed[-1] = needed[-1]

        # Pairs of who is hidden and whose state is computed for it, and where in `states` and `sent` a state is.
        pair_owner, pair_residue = owners[:0], own[:0]
        states = before[0][:0]
        layer: Any
        for layer, old, differ, wanted in zip(self.decoder, before, changed, needed, strict=False):
            unseen = layer.message.sender(encoded)
            found = layer.send(states, letters[pair_residue], visible[pair_residue], unseen[pair_residue])
            sent = torch.cat((layer.send(old, letters, visible, unseen), unseen, found)).unsqueeze(0)
            source = own.expand(len(hidden), -1).clone()
            source[pair_owner, pair_residue] = 2 * residues + torch.arange(len(pair_owner), device=device)
            receiver = torch.where(source < residues, source, source - residues)
            source[owners, hidden] = residues + hidden
            received = torch.cat((old, states))
            edges = layer.edges_of(graph, sent.dtype)
            pair_owner, pair_residue = (differ & wanted).nonzero(as_tuple=True)
            parts = [states[:0]]  # all there is where nobody has a neighbor
            for start in range(0, len(pair_owner), PAIRS_AT_ONCE):
                inside = slice(start, start + PAIRS_AT_ONCE)
                owner, residue = pair_owner[inside], pair_residue[inside]
                places = source[owner.unsqueeze(-1), near[residue]]
                places[:, 0] = residues + residue
                given = received[receiver[owner, residue]].unsqueeze(0)
                new = layer.update(given, sent, edges[residue], places, exist[residue], projected=graph.keeps)
                parts.append(new[0])
            states = torch.cat(parts)
        return states
