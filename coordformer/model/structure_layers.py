# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""How coordinates enter the encoder: an embedding, attention with points, a bias of distances.

In the order of a forward pass: coordinates are checked, centered and rotated, and give each residue a frame
(`coordinates`); `CoordinateEmbedding` adds them to the token embeddings; `EdgeFeatures` describes the edges of the
k-nearest-neighbor graph (`neighbor_graph`); in each layer `InvariantPointAttention` attends with points and
`MessagePassing` sums messages over the graph. `DistanceBias` is the simpler way: a function of distance added to
attention. Shapes of coordinates and masks are those of `coordinates`.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.esm.modeling_esm import EsmSelfAttention, eager_attention_forward
from transformers.utils.generic import maybe_autocast

from .configuration_coordformer import CoordformerConfig
from .coordinates import CHAIN_OFFSETS, FeatureLinear, Frames
from .fused import (
    PointSizes,
    attention_features,
    attention_inputs,
    can_fuse_points,
    joint_linear,
    rotate_positions,
)
from .neighbor_graph import MessagePassing, NeighborGraph
from .packing import sdpa_attention, take_tokens

# --- Coordinate embedding ---


class CoordinateEmbedding(nn.Module):
    """Linear embedding of centered coordinates and a missing flag per atom (paper, section 2).

    Always computed in float32: bfloat16 keeps 8 bits, so that 300.37 Å would become 300 Å. For the same reason it has
    the weights of an `nn.Linear` and is none, see `FeatureLinear`. With `config.coordinate_embedding` "local_frame" the
    atoms are those of `local_frame_coordinates`.
    """

    def __init__(self, config: CoordformerConfig):
        super().__init__()
        self.quadratic = config.coordinate_embedding == "quadratic"
        residues = len(CHAIN_OFFSETS) if config.coordinate_embedding == "local_frame" else 1
        features = residues * len(config.coordinate_atoms) * (config.coordinate_dim + self.quadratic + 1)
        self.weight, self.bias = nn.Linear(features, config.hidden_size, dtype=torch.float32).parameters()
        self.scale = float(config.coordinate_scale)

    def forward(self, coords: Tensor, coords_mask: Tensor) -> Tensor:
        """(batch, sequence, atoms, D), Å, zero where not observed, and its mask -> (batch, sequence, hidden)."""
        x = coords / self.scale
        if self.quadratic:
            x = torch.cat([x, x.square().sum(dim=-1, keepdim=True)], dim=-1)
        missing = ~coords_mask.unsqueeze(-1)
        features = torch.cat([x.masked_fill(missing, 0.0), missing.to(x.dtype)], dim=-1).flatten(-2)
        # Sharded or mixed-precision training may hand over low-precision weights and an autocast context.
        with maybe_autocast(features.device.type, enabled=False):
            return nn.functional.linear(features, self.weight.float(), self.bias.float())


def gaussian_start(model: Any) -> dict[nn.Parameter, Tensor]:
    """Weights with which a model's first layer attends with Gaussians of distance: `coordinate_init="gaussian"`.

    A softmax over j of (xi.xj - |xj|^2 / 2) / sigma^2 is one of -|xi - xj|^2 / (2 sigma^2), so that x and |x|^2 in
    D + 1 features of the first layer's input are enough. They share the first LayerNorm with a constant that is
    large beside them, which makes it nearly the identity, and the head with the slowest rotary frequencies.
    Approximate, therefore; sigma spreads from a quarter to twice `config.coordinate_scale` over the heads.

    Returns the parameters of the `CoordformerModel` with their new values.
    """
    dim, width, heads = model.config.coordinate_dim, model.config.hidden_size, model.config.num_attention_heads
    head_size, attention = width // heads, model.esm.encoder.layer[0].attention.self
    changing = (model.esm.embeddings.word_embeddings, model.coordinate_embedding, attention.query, attention.key)
    start = {parameter: parameter.detach().clone() for module in changing for parameter in module.parameters()}
    table, embed, offset, query, query_bias, key, key_bias = start.values()
    # Of the features beside the constant: the smaller, the nearer to a Gaussian, and the larger the weights.
    small = 0.25
    table[:, : dim + 1], embed[: dim + 1], offset[: dim + 1] = 0, 0, 0
    embed[: dim + 1, : dim + 1] = small * torch.eye(dim + 1)
    embed[dim, dim + 1] = small * 16.0  # not observed: as far as four scales, so that few attend to it
    offset[dim + 1 :] = 1 - 2 * (torch.arange(width - dim - 1) % 2)
    sigma = 0.25 * 8 ** torch.linspace(0, 1, heads)  # in units of the scale
    strength = head_size**0.25 / sigma  # ESM divides queries by the root of the head size
    pairs = torch.arange(head_size // 2 - 1, -1, -1)
    slow = torch.stack((pairs, pairs + head_size // 2), dim=1).flatten()[: dim + 1]
    for head in range(heads):
        rows = head * head_size + slow
        for weight, bias in ((query, query_bias), (key, key_bias)):
            weight[rows], bias[rows] = 0, 0
            weight[rows[:dim], torch.arange(dim)] = strength[head] / small
        query_bias[rows[dim]] = -strength[head] / 2**0.5
        key[rows[dim], dim] = strength[head] / 2**0.5 / small
    return start


# --- Attention ---


class SelfAttention(EsmSelfAttention):
    """ESM's self-attention by one product of matrices, which also hands its queries and keys to `contacts`, where these
    are predicted."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, attention_mask: Any = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None, *, contacts: Any = None,
        kept_tokens: Tensor | None = None, **kwargs,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """As ESM's; `contacts` as of `contact_maps.ContactLogits`; of `kept_tokens` (batch, kept) alone if given."""
        states = self.split_heads(self.project(hidden_states), position_embeddings)
        query, key, value = (each.to(states[-1].dtype).transpose(1, 2) for each in states)
        if contacts is not None:
            contacts.add(self, query, key, attention_mask)
        output, weights = self.attend(query, key, value, attention_mask, kept_tokens, **kwargs)
        return output.flatten(2), weights

    def project(self, hidden_states: Tensor, *others: nn.Module) -> Tensor:
        """Queries, divided by the root of the head size as ESM does, keys, values, and what other layers make of the
        states, side by side: (batch, sequence, widths)."""
        scales = [self.attention_head_size**-0.5, *[1.0] * (2 + len(others))]
        return joint_linear(hidden_states, [self.query, self.key, self.value, *others], scales)

    def split_heads(self, states: Tensor, position_embeddings: tuple[Tensor, Tensor] | None) -> tuple[Tensor, ...]:
        """Queries and keys, turned by their positions, and values: (batch, sequence, heads, head) each."""
        shape = (self.num_attention_heads, self.attention_head_size)
        query, key, value = (each.unflatten(-1, shape) for each in states.chunk(3, dim=-1))
        if self._rotary(position_embeddings):
            query, key = (rotate_positions(each, *position_embeddings) for each in (query, key))  # type: ignore[misc]
        return query, key, value

    def _rotary(self, position_embeddings: Any) -> Any:
        return position_embeddings if self.position_embedding_type == "rotary" else None

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, kept_tokens: Tensor | None, **kwargs
    ) -> tuple[Tensor, Any]:
        """The config's attention of (batch, heads, sequence, features): (batch, sequence, heads, features), weights."""
        if kept_tokens is not None:
            query = take_tokens(query.transpose(1, 2), kept_tokens).transpose(1, 2)
            if attention_mask is not None and attention_mask.shape[2] > 1:
                attention_mask = take_tokens(attention_mask.transpose(1, 2), kept_tokens).transpose(1, 2)
        implementation = self.config._attn_implementation
        function: Any = sdpa_attention
        if implementation != "sdpa":
            function = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        dropout = self.dropout if self.training else 0.0
        return function(self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)


class InvariantPointAttention(SelfAttention):
    """ESM's self-attention, in which each head also attends with points: Jumper et al. 2021, algorithm 22.

    Every residue makes P query and key points and V value points in its own frame. A head adds to its logits
    -sum_p |q_ip - k_jp|^2 / (2 P sigma^2), distances in space, and its output holds the mean of the value points in the
    frame of the query's residue, with their norms. Nothing depends on the frame of the chain, and mirror images differ.

    -|q - k|^2 / 2 = q.k - |k|^2 / 2 - |q|^2 / 2 is a product of 3 P + 2 features, as in the paper's section 2, so that
    any attention kernel computes it and no pair is kept. Where coordinates are missing, a key has a constant in place
    of its distance, and a query none. With `config.num_neighbors` the output of `MessagePassing` is added.
    """

    # Rates of learning are those of weights, which move by thousandths; sigma has to move by factors.
    gain = 8.0

    def __init__(self, config: CoordformerConfig, layer_idx: int):
        super().__init__(config, layer_idx=layer_idx)
        width, heads = config.hidden_size, config.num_attention_heads
        self.num_qk_points, self.num_v_points = config.num_qk_points, int(config.num_v_points or 0)
        self.query_points = FeatureLinear(width, heads * self.num_qk_points * 3)
        self.key_points = FeatureLinear(width, heads * self.num_qk_points * 3)
        self.value_points = FeatureLinear(width, heads * self.num_v_points * 3)
        self.output_points = FeatureLinear(heads * (self.num_v_points * 4 + 1), width)
        self.log_sigma = nn.Parameter(torch.empty(heads))
        self.missing = nn.Parameter(torch.empty(heads))
        self.message_passing = MessagePassing(config, layer_idx) if config.num_neighbors else None

    def log_sigmas(self, first: float, last: float) -> Tensor:
        """Values of `log_sigma` for widths from `first` to `last`, Å, over the heads."""
        sigmas = torch.logspace(math.log10(first), math.log10(last), self.num_attention_heads)
        return (sigmas / self.config.coordinate_scale).log() / self.gain

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None, *,
        frames: Frames, graph: NeighborGraph | None = None, contacts: Any = None, kept_tokens: Tensor | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """As `SelfAttention`; `frames` in units of `config.coordinate_scale`, `graph` from `EdgeFeatures`."""
        states = self.project(hidden_states, self.query_points, self.key_points, self.value_points)
        fused = can_fuse_points(states, frames)
        # Squares of coordinates cancel in the product: 16 bits would leave nothing of near distances.
        with maybe_autocast(hidden_states.device.type, enabled=False):
            if fused:
                positions = self._rotary(position_embeddings)
                inputs = attention_inputs(states, self._strength(), self.missing, positions, frames, self._sizes)
            else:
                inputs = self._attention_inputs(states, position_embeddings, frames)
            query, key, value = (each.transpose(1, 2) for each in inputs)
            if torch.is_tensor(attention_mask) and attention_mask.is_floating_point():
                attention_mask = attention_mask.float()
            if contacts is not None:
                contacts.add(self, query, key, attention_mask)
            attended, weights = self.attend(query, key, value, attention_mask, kept_tokens, **kwargs)
            if kept_tokens is not None:
                frames = Frames(*(take_tokens(each, kept_tokens) for each in frames))
            if fused:
                features = attention_features(attended, frames, self._sizes)
            else:
                features = self._output_features(attended[..., self.attention_head_size :], frames)
            output = attended[..., : self.attention_head_size].flatten(2)
        output = output.to(hidden_states.dtype) + self.output_points(features.to(hidden_states.dtype))
        if self.message_passing is not None:
            assert graph is not None
            output = output + self.message_passing(hidden_states, graph, kept_tokens)
        return output, weights

    @property
    def _sizes(self) -> PointSizes:
        return PointSizes(self.num_attention_heads, self.attention_head_size, self.num_qk_points, self.num_v_points)

    def _strength(self) -> Tensor:
        """1 / (P sigma^2) of each head, (heads,)."""
        return (-2 * self.gain * self.log_sigma.float()).exp() / self.num_qk_points

    # As in points.c.
    def _attention_inputs(self, states, position_embeddings, frames):
        """Queries, keys and values (batch, sequence, heads, features), followed by features of their points.

        Of the products (batch, sequence, widths) of `project`, whose points are in the frames of their residues.
        """
        rotations, translations, coords_mask = frames
        (batch, length), heads = states.shape[:2], self.num_attention_heads
        query, key, value = self.split_heads(states[..., : 3 * self.all_head_size], position_embeddings)
        observed = coords_mask[:, :, None, None]
        points = states[..., 3 * self.all_head_size :].float().unflatten(-1, (-1, 3))
        points = (points @ rotations.transpose(-1, -2) + translations.unsqueeze(2)) * observed
        numbers = [heads * number for number in (self.num_qk_points, self.num_qk_points, self.num_v_points)]
        of_query, of_key, of_value = (each.reshape(batch, length, heads, -1) for each in points.split(numbers, dim=2))
        strength = self._strength().view(-1, 1)
        squares = [-0.5 * strength * each.square().sum(dim=-1, keepdim=True) for each in (of_query, of_key)]
        squares[1] = torch.where(observed, squares[1], self.missing.float().view(-1, 1))
        ones = observed.to(squares[0].dtype).expand_as(squares[0])
        query = torch.cat((query.float(), strength * of_query, ones, squares[0]), dim=-1)
        key = torch.cat((key.float(), of_key, squares[1], ones), dim=-1)
        value = torch.cat((value.float(), of_value, ones), dim=-1)
        wide = self._sizes.wide
        return tuple(nn.functional.pad(each, (0, wide - each.shape[-1])) for each in (query, key, value))

    def _output_features(self, points, frames):
        """Mean value points (batch, sequence, heads, features) in the residue's frame, with norms and their share."""
        rotations, translations, coords_mask = frames
        batch, length, heads, _ = points.shape
        points, share = points[..., : 3 * self.num_v_points], points[..., 3 * self.num_v_points, None]
        points = points.reshape(batch, length, heads * self.num_v_points, 3)
        points = points - (share * translations.unsqueeze(2)).repeat_interleave(self.num_v_points, dim=2)
        norms = (points.square().sum(dim=-1) + 1e-6).sqrt()
        features = ((points @ rotations).flatten(2), norms, share.flatten(2))
        return torch.cat(features, dim=-1) * coords_mask.unsqueeze(-1)


class DistanceBias(nn.Module):
    """Attention bias per head, a learned function of the distance between two tokens.

    The function is linear between its values at `config.num_distance_bins` distances, which spread evenly from 0 to
    twice `config.coordinate_scale`, and constant beyond: a basis of triangles, of which two at a time are not zero.
    With several atoms it is a sum over pairs of atoms of the same name; where a coordinate is missing it has a value of
    its own. Starts at zero. Invariant to rotations, but time and memory grow with the square of the length, where those
    of an embedding grow with the length.
    """

    # An optimizer moves a weight by about the learning rate in an update; a bias has to move by units, and soon.
    gain = 64.0

    def __init__(self, config: CoordformerConfig):
        super().__init__()
        features = len(config.coordinate_atoms) * (config.num_distance_bins + 1)
        self.weight = nn.Linear(features, config.num_attention_heads, bias=False, dtype=torch.float32).weight
        self.num_bins = config.num_distance_bins
        self.spacing = 2 * float(config.coordinate_scale) / (self.num_bins - 1)

    def forward(self, coords: Tensor, coords_mask: Tensor) -> Tensor:
        """(batch, sequence, atoms, D), Å, and (batch, sequence, atoms) -> (batch, heads, sequence, sequence)."""
        with maybe_autocast(coords.device.type, enabled=False):
            atoms, observed = coords.transpose(1, 2), coords_mask.transpose(1, 2)
            # Not by a matrix product, whose rounding shows between neighbors.
            distances = torch.cdist(atoms, atoms, compute_mode="donot_use_mm_for_euclid_dist")
            place = (distances / self.spacing).clamp(max=self.num_bins - 1)
            lower = place.floor().clamp(max=self.num_bins - 2)
            share = (place - lower).unsqueeze(-1)
            missing = ~(observed.unsqueeze(-1) & observed.unsqueeze(-2))
            # The rows of each atom: its values in the order of the distances, then the one of missing pairs.
            rows = torch.arange(atoms.shape[1], device=coords.device).view(-1, 1, 1) * (self.num_bins + 1)
            table, lower = self.gain * self.weight.float().T, lower.long()
            ends = (torch.where(missing, self.num_bins, each) + rows for each in (lower, lower + 1))
            first, second = (nn.functional.embedding(each, table) for each in ends)
            return torch.lerp(first, second, share).sum(dim=1).movedim(-1, 1)


# --- All of it ---


class Structure:
    """What the encoder reads of coordinates: made once, for one row or for all rows of a batch.

    Attributes:
        rows: number of rows.
        embedding: (batch, sequence, hidden), of coordinates; None without a coordinate embedding.
        bias: (batch, heads, sequence, sequence), of distances; None without `num_distance_bins`.
        frames: in units of `config.coordinate_scale`; None without invariant point attention.
        graph: None without `num_neighbors`.
    """

    embedding: Tensor | None = None
    bias: Tensor | None = None
    frames: Frames | None = None
    graph: NeighborGraph | None = None

    def __init__(self, rows: int):
        self.rows = rows
