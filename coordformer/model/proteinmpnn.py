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
is padding, of proteins with fewer observed residues than neighbors. C-alphas that do not exist, before the first
residue, behind the last and in gaps, are as far away as in a file whose origin is far from the protein; there they lie
at the origin. The last two residues of a segment have no frame, as there in rows without padding. As there, C-alphas of
neighboring chains follow upon each other, and quaternions of C-alphas depend on the frame: the model of C-alphas is
invariant to translations alone, that of backbones to rotations, too.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import maybe_autocast

from .configuration_coordformer import BACKBONE, CoordformerConfig
from .coordinates import FeatureLinear
from .neighbor_graph import NeighborGraph, blocks_of, in_blocks, k_nearest_neighbors
from .structure_layers import Structure

FAR = 1e4  # Å, in all directions: a C-alpha that does not exist


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


def chain_frames(points: Tensor, residue_mask: Tensor, runs: Tensor | None) -> Tensor:
    """Frames of residues from `chain_points`: (batch, sequence, 3, 3), the axes in rows; zero without neighbors."""
    steps = points.diff(dim=2)
    lengths = steps.norm(dim=-1, keepdim=True)
    bonded = (lengths > 3.6) & (lengths < 4.0)
    before, behind = nn.functional.normalize(steps * bonded, dim=-1).unbind(dim=2)
    first = nn.functional.normalize(before - behind, dim=-1)
    normal = nn.functional.normalize(torch.linalg.cross(before, behind), dim=-1)
    frames = torch.stack((first, normal, torch.linalg.cross(first, normal)), dim=2)
    inside = residue_exists(residue_mask, -1, runs) & residue_exists(residue_mask, 2, runs)
    return frames * inside[..., None, None]


def virtual_beta(n: Tensor, ca: Tensor, c: Tensor) -> Tensor:
    """Where an ideal C-beta would be, of N, CA and C (..., 3)."""
    b, c = ca - n, c - ca
    return -0.58273431 * torch.linalg.cross(b, c) + 0.56802827 * b - 0.54067466 * c + ca


def quaternions(rotations: Tensor) -> Tensor:
    """Unit quaternions (..., 4), the real part last, of matrices (..., 3, 3)."""
    x, y, z = rotations.diagonal(dim1=-2, dim2=-1).unbind(dim=-1)
    squares = torch.stack((1 + x - y - z, 1 - x + y - z, 1 - x - y + z), dim=-1)
    skew = (rotations - rotations.transpose(-1, -2))[..., (2, 0, 1), (1, 2, 0)]
    imaginary = skew.sign() * squares.abs().sqrt()
    real = nn.functional.relu(1 + x + y + z).sqrt().unsqueeze(-1)
    return nn.functional.normalize(torch.cat((imaginary, real), dim=-1), dim=-1)


class ProteinMPNNFeatures(nn.Module):
    """The graph of the nearest neighbors, and features of its edges, as of `CA_ProteinFeatures` and `ProteinFeatures`.

    Of an edge: radial basis functions of the distances between all atoms of the receiver and all of the sender, and the
    separation along the chain, up to 32 residues, or that the two are in different chains. With C-alphas alone, those
    of the residues beside it along the chain count as a residue's atoms, and there are the direction to the sender in
    the receiver's frame and a quaternion of both frames; with backbones, a virtual C-beta is the fifth atom. A residue
    is observed where all of `config.coordinate_atoms` are.
    """

    num_rbf = 16
    min_distance, max_distance = 2.0, 22.0  # Å, the centers of the first and the last radial basis function
    max_separation = 32  # residues along the chain, beyond which all are alike

    def __init__(self, config: CoordformerConfig):
        super().__init__()
        self.num_neighbors = config.num_neighbors
        self.backbone = config.coordinate_atoms == BACKBONE
        features = 25 * self.num_rbf if self.backbone else 9 * self.num_rbf + 3 + 4
        self.geometry = FeatureLinear(features, config.hidden_size)
        self.separation = nn.Embedding(2 * self.max_separation + 2, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, coords: Tensor, coords_mask: Tensor, residue_mask: Tensor, position_ids: Tensor, runs: Tensor | None,
        longest: int | None, chain_ids: Tensor | None,
    ) -> NeighborGraph:  # fmt: skip
        """Of `coords` (batch, sequence, atoms, 3), Å, and their mask; the first neighbor is the residue itself.

        `residue_mask` (batch, sequence) is False for special tokens and padding; the rest is as of
        `k_nearest_neighbors` and `CoordformerModel`.
        """
        observed = coords_mask.all(dim=-1)
        batch, length = observed.shape
        with maybe_autocast(coords.device.type, enabled=False):
            alphas = coords[:, :, 1 if self.backbone else 0]
            neighbors = self.num_neighbors - 1
            near, exist = k_nearest_neighbors(alphas.detach(), observed, runs, neighbors, longest)
            if self.backbone:
                n, ca, c, _ = coords.unbind(dim=2)
                points = torch.cat((coords, virtual_beta(n, ca, c).unsqueeze(2)), dim=2)
                residues = [points]
            else:
                points = chain_points(alphas, observed, residue_mask, position_ids, runs, chain_ids)
                residues = [points, alphas, chain_frames(points, residue_mask, runs)]
        places = torch.arange(length, device=near.device).expand(batch, length).unsqueeze(-1)
        places = torch.cat((places, near), dim=-1)
        places = places + length * torch.arange(batch, device=near.device)[:, None, None]
        exist = torch.cat((observed.unsqueeze(-1), exist), dim=-1)
        along = [position_ids.expand(batch, length), *([] if chain_ids is None else [chain_ids])]
        flat = [each.flatten(0, 1) for each in (places, *along)], [each.flatten(0, 1) for each in residues]
        blocks = blocks_of(batch * length) if in_blocks(near.device) else [slice(None)]
        edges = torch.cat([self._describe(block, *flat[0], residues=flat[1]) for block in blocks])
        return NeighborGraph(places.flatten(), exist, edges.view(batch, length, self.num_neighbors, -1))

    def _describe(self, block, places, positions, chain_ids=None, *, residues) -> Tensor:
        """Edge features (n, k, hidden) of the residues in `block`, of all residues' values, (residues, ...)."""
        near = places[block]
        points = residues[0]
        with maybe_autocast(points.device.type, enabled=False):
            apart = points[block][:, None, :, None] - points[near].unsqueeze(2)
            features = [self.radial_basis_functions((apart.square().sum(dim=-1) + 1e-6).sqrt()).flatten(-3)]
            if not self.backbone:
                _, alphas, frames = residues
                apart = alphas[near] - alphas[block].unsqueeze(1)
                receiver, sender = frames[block].unsqueeze(1), frames[near]
                # No `matmul`, as in `rotate_coordinates`.
                direction = nn.functional.normalize((receiver * apart.unsqueeze(-2)).sum(dim=-1), dim=-1)
                rotation = (receiver.unsqueeze(-1) * sender.unsqueeze(-2)).sum(dim=-3)
                features += [direction, quaternions(rotation)]
            limit = self.max_separation
            separation = (positions[block].unsqueeze(1) - positions[near]).clamp(-limit, limit) + limit
            if chain_ids is not None:
                others = chain_ids[near] != chain_ids[block].unsqueeze(1)
                separation = torch.where(others, 2 * limit + 1, separation)
        summed = self.geometry(torch.cat(features, dim=-1)) + self.separation(separation)
        return self.output(self.norm(summed))

    def radial_basis_functions(self, distances: Tensor) -> Tensor:
        """Gaussians (..., num_rbf) of distances (...), Å."""
        centers = torch.linspace(self.min_distance, self.max_distance, self.num_rbf, device=distances.device)
        width = (self.max_distance - self.min_distance) / self.num_rbf
        # As in `neighbor_graph.radial_basis_functions`, a CPU is slow where the result is too small.
        return (-((distances.unsqueeze(-1) - centers) / width).square()).clamp(min=-80.0).exp()


class Message(nn.Module):
    """Three linear layers on [receiver, edge, sender], of which the last one, `output`, is applied by the caller."""

    def __init__(self, config: CoordformerConfig):
        super().__init__()
        width = config.hidden_size
        self.receiver = nn.Linear(width, width)
        self.edge, self.sender = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.hidden, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, received: Tensor, edges: Tensor, sent: Tensor, places: Tensor) -> Tensor:
        """Messages to a block of n residues before the last layer, (rows, n, k, hidden).

        Args:
            received: (rows, n, hidden), what `receiver` gives.
            edges: (n, k, hidden), what `edge` gives.
            sent: (rows, senders, hidden), what `sender` gives.
            places: (n, k), of the senders.
        """
        summed = sent.index_select(1, places.flatten()).view(len(sent), *places.shape, -1)
        summed = summed + received.unsqueeze(2) + edges
        return self.activation(self.hidden(self.activation(summed)))


class ProteinMPNNLayer(GradientCheckpointingLayer):
    """What layers of the encoder and of the decoder have in common: messages, their sum, a feed-forward layer.

    States are (rows, residues, hidden). Rows that share a graph are beside each other; the residues of rows with a
    graph each are one row of all.
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

    def update(self, states: Tensor, means: Tensor, exist: Tensor) -> Tensor:
        """New states, of the mean messages before their last layer; `exist` (residues, k) says of which neighbors."""
        messages = self.message.output(means) * (exist.sum(dim=-1, keepdim=True) / self.scale)
        states = self.message_norm(states + self.dropout(messages))
        states = self.output_norm(states + self.dropout(self.output(self.activation(self.intermediate(states)))))
        return states * exist[:, :1]

    def mean_messages(
        self, states: Tensor, sent: Tensor, edges: Callable[[slice], Tensor], places: Tensor, exist: Tensor
    ) -> Tensor:
        """The mean (rows, residues, hidden) of each residue's messages; `edges` gives those of a block (n, k, hidden).

        A neighbor that does not exist does not count. `sent`, `places` and `exist` are of all residues, see `Message`.
        """
        received, means = self.message.receiver(states), []
        weights = exist / exist.sum(dim=-1, keepdim=True).clamp(min=1)
        for block in row_blocks(len(exist), len(states), exist.device):
            messages = self.message(received[:, block], edges(block), sent, places[block])
            means.append((weights[block].to(messages.dtype).unsqueeze(-2) @ messages).squeeze(-2))
        return torch.cat(means, dim=1)


def row_blocks(residues: int, rows: int, device: torch.device) -> list[slice]:
    """Blocks of residues whose edges, of all rows, a CPU has in its cache; see `in_blocks`."""
    if not in_blocks(device):
        return [slice(0, residues)]
    size = max(1, (blocks_of(residues)[0].stop if rows == 1 else 0) or blocks_of(10**6)[0].stop // rows)
    return [slice(start, min(start + size, residues)) for start in range(0, residues, size)]


class ProteinMPNNEncoderLayer(ProteinMPNNLayer):
    """Messages to residues, and then to edges."""

    def __init__(self, config: CoordformerConfig):
        super().__init__(config)
        self.edge_message = Message(config)
        self.edge_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, states: Tensor, edges: Tensor, places: Tensor, exist: Tensor) -> tuple[Tensor, Tensor]:
        """States (1, residues, hidden) and edges (residues, k, hidden); `places` and `exist` (residues, k)."""
        sent = self.message.sender(states)
        means = self.mean_messages(states, sent, lambda block: self.message.edge(edges[block]), places, exist)
        states = self.update(states, means, exist)
        message, changed = self.edge_message, []
        received, sent = message.receiver(states), message.sender(states)
        for block in row_blocks(len(places), 1, places.device):
            before = edges[block]
            messages = message(received[:, block], message.edge(before), sent, places[block])[0]
            changed.append(self.edge_norm(before + self.dropout(message.output(messages))))
        return states, torch.cat(changed)


class ProteinMPNNDecoderLayer(ProteinMPNNLayer):
    """Messages to residues that also hold the sender's letter, if it is visible."""

    def __init__(self, config: CoordformerConfig):
        super().__init__(config)
        self.letter = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self, states: Tensor, letters: Tensor, visible: Tensor, encoded: Tensor, places: Tensor, graph: NeighborGraph
    ) -> Tensor:
        """States (rows, residues, hidden), token embeddings of the same shape, and the encoder's states, of one row.

        `visible` (rows, residues, 1) says whose letters are seen; `places` (residues, k) leads a residue to itself
        `residues` further than to others.
        """
        hidden = self.message.sender(encoded)
        sent = torch.where(visible, self.message.sender(states) + self.letter(letters), hidden)
        sent = torch.cat((sent, hidden.expand_as(sent)), dim=1)
        exist, edge = graph.exist.flatten(0, 1), self.message.edge
        if graph.keeps:
            kept = graph.project(edge, sent.dtype).view(*exist.shape, -1)
            edges = kept.__getitem__
        else:
            features = graph.edges.flatten(0, 1)
            edges = lambda block: edge(features[block])  # noqa: E731
        return self.update(states, self.mean_messages(states, sent, edges, places, exist), exist)


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
        states, places = torch.zeros_like(edges[:, 0]).unsqueeze(0), graph.places.view_as(exist)
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
