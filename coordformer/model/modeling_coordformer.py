# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""Coordformer: an ESM encoder whose input is a token embedding plus an embedding of coordinates.

Method: Ellmen, Schneider, Raybould, Deane, "Transformers trained on proteins can learn to attend to Euclidean
distance", TMLR 2025. The encoder is Transformers' own `EsmModel`, given `inputs_embeds`; this file adds the coordinate
embedding, segments, and heads.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.attention.varlen import varlen_attn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface, EsmConfig, EsmModel, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import (
    create_bidirectional_mask,
    packed_sequence_mask_function,
    sdpa_mask,
)
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.esm.modeling_esm import EsmSelfAttention, apply_rotary_pos_emb, eager_attention_forward
from transformers.utils import can_return_tuple
from transformers.utils.generic import maybe_autocast

from .configuration_coordformer import CoordformerConfig

IGNORED_LABEL = -100  # Transformers' convention, in every head; Trainer counts what differs from it
SEGMENT_BOUNDS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")  # Transformers' names


# ---------------------------------------------------------------------------------------------------------------------
# Segments: what may attend to itself and shares a center
# ---------------------------------------------------------------------------------------------------------------------


def segment_runs(sequence_id: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Number the runs of equal ids in each row from 0: (batch, sequence) -> (batch, sequence).

    Padding is a run of its own, whatever its id: it attends to itself, so that no softmax is over nothing.
    """
    changes = sequence_id[:, 1:] != sequence_id[:, :-1]
    if attention_mask is not None:
        changes = changes | (attention_mask[:, 1:] != attention_mask[:, :-1])
    return nn.functional.pad(changes.long().cumsum(dim=1), (1, 0))


def run_starts(runs: torch.Tensor) -> torch.Tensor:
    """Whether a token is the first of its run, (batch, sequence)."""
    return nn.functional.pad(runs[:, 1:] != runs[:, :-1], (1, 0), value=True)


def segment_numbers(runs: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Number the segments in each row from 0, padding left out: (batch, sequence). Padding has the number before it."""
    starts = run_starts(runs)
    if attention_mask is not None:
        starts = starts & attention_mask.bool()
    return (starts.long().cumsum(dim=1) - 1).clamp(min=0)


def sequence_id_of_bounds(bounds: torch.Tensor | None, shape: torch.Size) -> torch.Tensor | None:
    """`sequence_id` (batch, sequence) from `cu_seq_lens_q`, as the padding-free collators of Transformers give it."""
    if bounds is None:
        return None
    tokens = torch.arange(shape.numel(), device=bounds.device)
    return torch.searchsorted(bounds, tokens, right=True).view(shape)


def segment_sum(values: torch.Tensor, runs: torch.Tensor | None) -> torch.Tensor:
    """Sum over each segment: (batch, sequence, ...) -> the same rank, broadcastable to `values`.

    Without `runs` a row is one segment and the result has length 1 along the sequence.
    """
    if runs is None:
        return values.sum(dim=1, keepdim=True)
    index = runs.reshape(*runs.shape, *[1] * (values.dim() - 2)).expand_as(values)
    return torch.zeros_like(values).scatter_add(1, index, values).gather(1, index)


def segment_positions(runs: torch.Tensor | None, attention_mask: torch.Tensor | None, length: int, device):
    """Positions from 0 at the first token of each segment: (batch or 1, sequence)."""
    index = torch.arange(length, device=device).unsqueeze(0)
    if runs is not None:
        return index - torch.where(run_starts(runs), index, 0).cummax(dim=1).values
    if attention_mask is None:
        return index
    # Padding on the left does not shift a chain.
    return (index - attention_mask.long().argmax(dim=1, keepdim=True)).clamp(min=0)


def segment_bounds(runs: torch.Tensor) -> dict[str, torch.Tensor | int]:
    """Where the segments of a packed batch begin and end, under the names that Transformers' flash attention reads.

    `cu_seq_lens_q` and `cu_seq_lens_k` (segments + 1,), int32, count the tokens before each segment, rows one after
    another; `max_length_q` and `max_length_k` are the tokens of the longest. The host has to wait for the device:
    `CoordformerDataCollator` brings the same numbers with the batch.
    """
    starts = run_starts(runs).flatten().nonzero().squeeze(1)
    bounds = torch.cat((starts, starts.new_tensor([runs.numel()]))).to(torch.int32)
    longest = int(bounds.diff().max())
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


def varlen_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Attention within the segments of packed rows: `attn_implementation="varlen"`.

    On CUDA in half precision one kernel without a mask (`torch.nn.attention.varlen`), elsewhere sdpa on one segment
    after the other: memory and time grow with the sum of the squared lengths, not with the square of their sum. Rows
    without segments go to sdpa with its mask.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    batch, _, length, head_size = query.shape
    # (batch, heads, length, head) -> (tokens of all rows, heads, head)
    query, key, value = (states.transpose(1, 2).flatten(0, 1) for states in (query, key, value))
    if query.device.type in ("cuda", "meta") and query.dtype != torch.float32:
        if dropout:
            raise ValueError(
                f"`attention_probs_dropout_prob` is {dropout}, but torch's varlen attention has no dropout; set it to "
                "0 or choose attn_implementation='sdpa'."
            )
        # The kernel takes heads of a multiple of eight, and divides by the root of their size; ESM has scaled its
        # queries already.
        query, key, value = (nn.functional.pad(states, (0, -head_size % 8)) for states in (query, key, value))
        factor = query.shape[-1] ** 0.5 * (head_size**-0.5 if scaling is None else scaling)
        longest = length if max_length_q is None else max_length_q
        output: Any = varlen_attn(query * factor, key, value, cu_seq_lens_q, cu_seq_lens_q, longest, longest)
        output = output[..., :head_size]
    else:
        output = _attend_one_by_one(query, key, value, cu_seq_lens_q, dropout, scaling)
    return output.unflatten(0, (batch, length)), None


@torch.compiler.disable
def _attend_one_by_one(query, key, value, bounds, dropout, scaling) -> torch.Tensor:
    lengths = bounds.diff().tolist()
    parts = []
    for segment in zip(*(states.split(lengths) for states in (query, key, value)), strict=True):
        q, k, v = (states.transpose(0, 1).unsqueeze(0) for states in segment)
        part = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling)
        parts.append(part.squeeze(0).transpose(0, 1))
    return torch.cat(parts)


def reduce_maps(
    query: torch.Tensor,
    key: torch.Tensor,
    attention_mask: torch.Tensor | None,
    real: torch.Tensor,
    weights: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Weighted sum of a layer's attention maps, each made symmetric and corrected for its average product.

    One head after the other, so that no more than one map is in memory. The correction is that of Dunn et al. 2008, as
    ESM's contact head applies it (Rao et al. 2021).

    Args:
        query, key: (batch, heads, sequence, head), float32 or half.
        attention_mask: additive or boolean, broadcastable to (batch, heads, sequence, sequence), or None.
        real: which tokens are residues, (batch, sequence); the others do not take part.
        weights: (heads,).
        scaling: of the products.

    Returns:
        (batch, sequence, sequence), float32.
    """
    pairs = real.unsqueeze(2) & real.unsqueeze(1)
    total = torch.zeros(pairs.shape, dtype=torch.float32, device=query.device)
    for head, weight in enumerate(weights.float()):
        logits = (query[:, head] @ key[:, head].transpose(1, 2)).float() * scaling
        if attention_mask is not None:
            mask = attention_mask[:, head if attention_mask.shape[1] > 1 else 0]
            logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
        attention = logits.softmax(dim=-1).masked_fill(~pairs, 0.0)
        attention = attention + attention.transpose(1, 2)
        rows = attention.sum(dim=2, keepdim=True)
        product = rows * (rows.transpose(1, 2) / rows.sum(dim=1, keepdim=True).clamp(min=1e-12))
        total = total + weight * (attention - product)
    return total


class ContactHead(nn.Module):
    """Logistic regression on the attention maps of all layers; the names are ESM's.

    Its weights are parameters where they are trained, and buffers elsewhere: there an optimizer would let them decay,
    and an idle parameter stops DistributedDataParallel.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, config: CoordformerConfig, trained: bool = False):
        super().__init__()
        for name, size in (("weight", (1, config.num_hidden_layers * config.num_attention_heads)), ("bias", (1,))):
            if trained:
                self.register_parameter(name, nn.Parameter(torch.zeros(size)))
            else:
                self.register_buffer(name, torch.zeros(size))


class ContactLogits:
    """Logits of contacts, summed over layers and heads while the encoder runs: no attention map is kept."""

    def __init__(self, layers: Sequence[nn.Module], head: ContactHead, real: torch.Tensor):
        self.weights = dict(zip(layers, head.weight.view(len(layers), -1), strict=True))
        self.real = real
        self.total: Any = 0.0

    def add(self, layer: nn.Module, query, key, attention_mask, scaling: float) -> None:
        arguments = (query, key, attention_mask, self.real, self.weights[layer], scaling)
        if torch.is_grad_enabled():
            # Made again in the backward pass, of queries and keys, rather than kept.
            self.total = self.total + checkpoint(reduce_maps, *arguments, use_reentrant=False)
        else:
            self.total = self.total + reduce_maps(*arguments)


def contact_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    contacts: ContactLogits | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Attention by sdpa that also adds up `contacts`; used while contacts are predicted, whatever the model's own."""
    assert contacts is not None
    contacts.add(module, query, key, attention_mask, query.shape[-1] ** -0.5 if scaling is None else scaling)
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)


AttentionInterface.register("varlen", varlen_attention)
AttentionMaskInterface.register("varlen", sdpa_mask)
AttentionInterface.register("contacts", contact_attention)
AttentionMaskInterface.register("contacts", sdpa_mask)


# ---------------------------------------------------------------------------------------------------------------------
# Embeddings
# ---------------------------------------------------------------------------------------------------------------------


class CoordinateEmbedding(nn.Linear):
    """Linear embedding of centered coordinates and a missing flag per atom (paper, section 2).

    Always computed in float32: bfloat16 keeps 8 bits, so that 300.37 Å would become 300 Å. If local, the atoms are
    those of `local_frame_coordinates`.
    """

    def __init__(self, config: CoordformerConfig):
        self.quadratic = config.coordinate_embedding == "quadratic"
        atoms = len(config.coordinate_atoms) * (len(NEIGHBOURS) if config.coordinate_embedding == "local_frame" else 1)
        features = atoms * (config.coordinate_dim + self.quadratic + 1)
        super().__init__(features, config.hidden_size, dtype=torch.float32)
        self.scale = float(config.coordinate_scale)

    def forward(self, coords: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Embed centered `coords` (batch, sequence, atoms, D), Å, zero where not `observed` (batch, sequence, atoms)."""
        x = coords / self.scale
        if self.quadratic:
            x = torch.cat([x, x.square().sum(dim=-1, keepdim=True)], dim=-1)
        missing = ~observed.unsqueeze(-1)
        features = torch.cat([x.masked_fill(missing, 0.0), missing.to(x.dtype)], dim=-1).flatten(-2)
        # Sharded or mixed-precision training may hand over low-precision weights and an autocast context.
        with maybe_autocast(features.device.type, enabled=False):
            return nn.functional.linear(features, self.weight.float(), self.bias.float())


# Along the chain, of a residue whose coordinates are embedded locally: two turns of a helix.
NEIGHBOURS = range(-4, 5)


def shift_residues(
    values: torch.Tensor, offset: int, position_ids: torch.Tensor, runs: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What (batch, sequence, ...) holds `offset` residues further on, and whether that is a residue of the segment."""
    positions = position_ids.expand(values.shape[:2])
    there = positions.roll(-offset, 1) - positions == offset
    if runs is not None:
        there = there & (runs.roll(-offset, 1) == runs)
    return values.roll(-offset, 1), there


class Frames:
    """What `backbone_frames` returns, on the way to the layers.

    FSDP2 casts every tensor that enters a layer to its `param_dtype`, in tuples and dataclasses, too; here it does not
    look.
    """

    def __init__(self, origins: torch.Tensor, axes: torch.Tensor, seen: torch.Tensor):
        self.parts = origins, axes, seen

    def __iter__(self):
        return iter(self.parts)


def shifted_translations(
    origins: torch.Tensor, seen: torch.Tensor, offset: int, position_ids: torch.Tensor, runs: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the residue `offset` further along the chain is, (batch, sequence, 3), and whether it is observed there."""
    shifted, there = shift_residues(torch.cat((origins, seen.unsqueeze(-1)), -1), offset, position_ids, runs)
    return shifted[..., :3], there & shifted[..., 3].bool()


def backbone_frames(
    coords: torch.Tensor,
    observed: torch.Tensor,
    position_ids: torch.Tensor,
    runs: torch.Tensor | None,
    atoms: Sequence[str],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where a residue is and how it is turned, from its N, CA and C, or else from its CA and those beside it.

    The first axis points from one neighbor to the other, the third is normal to the plane of the three.

    Args:
        coords: (batch, sequence, atoms, 3).
        observed: (batch, sequence, atoms).
        position_ids: (batch or 1, sequence); neighbors differ by 1.
        runs: segments, see `segment_runs`.
        atoms: their names; without a CA the first of them stands for it.

    Returns:
        Origins (batch, sequence, 3), in the unit of `coords`; axes (batch, sequence, 3, 3), in columns, zero where they
        are not known; and where the origin is observed, (batch, sequence).
    """
    place = {name: number for number, name in enumerate(atoms)}
    center = place.get("CA", 0)
    origins, seen = coords[:, :, center], observed[:, :, center]
    if {"N", "CA", "C"} <= place.keys():
        before, after = coords[:, :, place["N"]], coords[:, :, place["C"]]
        known = observed[:, :, [place["N"], center, place["C"]]].all(dim=-1)
    else:
        before, has_before = shifted_translations(origins, seen, -1, position_ids, runs)
        after, has_after = shifted_translations(origins, seen, 1, position_ids, runs)
        known = seen & has_before & has_after
    before, after = before - origins, after - origins
    first = nn.functional.normalize(after - before, dim=-1)
    third = nn.functional.normalize(torch.linalg.cross(before, after), dim=-1)
    axes = torch.stack((first, torch.linalg.cross(third, first), third), dim=-1)
    return origins, axes.masked_fill(~known[..., None, None], 0.0), seen


def local_frame_coordinates(
    coords: torch.Tensor,
    observed: torch.Tensor,
    frames: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    position_ids: torch.Tensor,
    runs: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The atoms of the residues `NEIGHBOURS` away, in each residue's own frame: invariant to rotations.

    Args as of `backbone_frames`, whose result `frames` is. Returns coordinates (batch, sequence, neighbors x atoms, 3)
    and which are known, without the last axis.
    """
    origins, axes, _ = frames
    framed = axes.any(dim=-1).any(dim=-1, keepdim=True)
    local, known = [], []
    for offset in NEIGHBOURS:
        shifted, there = shift_residues(coords, offset, position_ids, runs)
        # No `matmul`, as in `rotate_coordinates`.
        local.append(((shifted - origins.unsqueeze(2)).unsqueeze(-1) * axes.unsqueeze(2)).sum(dim=-2))
        known.append(observed.roll(-offset, 1) & there.unsqueeze(-1) & framed)
    return torch.cat(local, dim=2), torch.cat(known, dim=2)


def nearest_neighbors(
    origins: torch.Tensor,
    seen: torch.Tensor,
    runs: torch.Tensor | None,
    count: int,
    longest: int | None = None,
    pairs: int = 2**24,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The observed residues of the same segment that are nearest in space, without the residue itself.

    Args:
        origins: (batch, sequence, 3).
        seen: which are observed, (batch, sequence).
        runs: segments, see `segment_runs`.
        count: how many.
        longest: tokens of the longest segment, beyond which none is looked for; default: of the row.
        pairs: distances that are in memory at the same time.

    Returns:
        Their places in the row, and which of them there are: both (batch, sequence, count).
    """
    batch, length = seen.shape
    longest = min(longest or length, length)
    index = torch.arange(length, device=seen.device)
    # Each looks at the whole row, or at `longest` tokens on either side.
    rows = max(1, pairs // (batch * length), int((longest**2 + pairs / batch) ** 0.5) - longest)
    places, there = [], []
    for start in range(0, length, rows):
        end = min(start + rows, length)
        first, last = max(0, start - longest), min(length, end + longest)
        # Not by a matrix product, whose rounding would put neighbors in another order.
        squares = (origins[:, start:end, None] - origins[:, None, first:last]).square().sum(dim=-1)
        apart = (index[start:end, None] == index[first:last]) | ~(seen[:, start:end, None] & seen[:, None, first:last])
        if runs is not None:
            apart = apart | (runs[:, start:end, None] != runs[:, None, first:last])
        found = squares.masked_fill(apart, torch.inf).topk(min(count, last - first), largest=False)
        missing = count - found.indices.shape[-1]
        places.append(nn.functional.pad(found.indices + first, (0, missing)))
        there.append(nn.functional.pad(found.values.isfinite(), (0, missing)))
    return torch.cat(places, dim=1), torch.cat(there, dim=1)


class EdgeFeatures(nn.Module):
    """How a residue and each of its nearest ones in space lie to one another: one layer, whose output all layers read.

    Of a pair: the direction to the other in both frames, the turn from frame to frame, a Gaussian basis of the distance
    and the separation along the chain (after Ingraham et al. 2019, section 2.2); for gated messages the basis is of all
    nine distances between the residues of either and those beside them along the chain, as Dauparas et al. 2022 have it
    for C-alphas. Invariant to rotations.
    """

    bases = 16  # Gaussians, as wide as they are apart
    reach = 20.0  # Å, where the last one is
    separations = 16  # residues along the chain, beyond which all are alike
    gain = 15.0  # features are of order 1, and weights start at hundredths

    def __init__(self, config: CoordformerConfig):
        super().__init__()
        self.count = config.num_neighbors
        self.beside = (-1, 0, 1) if config.message_gating == True else (0,)
        width = config.hidden_size // 2
        self.geometry = nn.Linear(3 + 3 + 9 + len(self.beside) ** 2 * self.bases, width)
        self.separation = nn.Embedding(2 * self.separations + 1, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(
        self, frames, position_ids, runs, longest: int | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of `frames` (see `backbone_frames`), with `count` neighbors of each residue.

        Returns their places in the flattened batch (batch x sequence x count,), which of them there are (batch,
        sequence, count), and the relations (batch, sequence, count, hidden / 2).
        """
        origins, axes, seen = frames
        batch, length = seen.shape
        with maybe_autocast(origins.device.type, enabled=False):
            places, there = nearest_neighbors(origins.detach(), seen, runs, self.count, longest)
            rows = torch.arange(batch, device=places.device)[:, None, None]
            apart = origins[rows, places] - origins.unsqueeze(2)
            direction = (apart / (apart.square().sum(dim=-1, keepdim=True) + 1e-6).sqrt()).unsqueeze(-1)
            mine, theirs = axes.unsqueeze(2), axes[rows, places]
            # No `matmul`, as in `rotate_coordinates`.
            turn = (mine.unsqueeze(-1) * theirs.unsqueeze(-2)).sum(dim=-3)
            near = self._near(origins, seen, position_ids, runs, rows, places)
            features = torch.cat(
                ((direction * mine).sum(dim=-2), (direction * theirs).sum(dim=-2), turn.flatten(-2), near), dim=-1
            )
            positions = position_ids.expand(batch, length)
            separations = (positions[rows, places] - positions.unsqueeze(2)).clamp(-self.separations, self.separations)
        summed = self.geometry(features.to(self.geometry.weight.dtype)) + self.separation(
            separations + self.separations
        )
        related = MessagePassing.gain * self.norm(nn.functional.gelu(self.gain * summed))
        return (places + length * rows).flatten(), there, related

    def _near(self, origins, seen, position_ids, runs, rows, places) -> torch.Tensor:
        """Gaussian basis of the distances between the residues `beside` both of a pair, zero where one is missing."""
        around = [shifted_translations(origins, seen, offset, position_ids, runs) for offset in self.beside]
        points, known = (torch.stack(each, dim=2) for each in zip(*around, strict=True))
        # (batch, sequence, count, beside, beside, 3), and which of these pairs there are
        apart = points[:, :, None, :, None] - points[rows, places].unsqueeze(3)
        both = known[:, :, None, :, None] & known[rows, places].unsqueeze(3)
        distances = (apart.square().sum(dim=-1) + 1e-6).sqrt().unsqueeze(-1)
        steps = torch.arange(self.bases, device=origins.device) * (self.reach / (self.bases - 1))
        near = (-((distances - steps) * ((self.bases - 1) / self.reach)).square()).exp()
        return (near * both.unsqueeze(-1)).flatten(-3)


class MessagePassing(nn.Module):
    """What a residue hears of its nearest ones in space: the mean of a layer on both states and their relation.

    As in message-passing networks (Dauparas et al. 2022), whose second layer commutes with the mean: `reads` is applied
    once a residue and not once a pair. The mean is over `config.num_neighbors`, those that are not there silent.
    A gated message is multiplied by a linear function of the sender's state and the relation (Shazeer 2020). For the
    backward pass each pair keeps hidden / 2 numbers a layer, gated three times hidden.
    """

    gain = 5.0  # of each of the two steps, as in `EdgeFeatures`

    def __init__(self, config: CoordformerConfig):
        super().__init__()
        gated = config.message_gating == True
        hidden, relation = config.hidden_size, config.hidden_size // 2
        width = hidden if gated else relation
        self.asks = nn.Linear(hidden, width)
        self.tells = nn.Linear(hidden, width, bias=False)
        self.relates = nn.Linear(relation, width, bias=False)
        self.gate_tells = nn.Linear(hidden, width, bias=False) if gated else None
        self.gate_relates = nn.Linear(relation, width, bias=False) if gated else None
        self.reads = nn.Linear(width, hidden, bias=False)

    def zero_init(self) -> None:
        """Let nothing be heard until training moves `reads`: what a trained model is given starts thus."""
        nn.init.zeros_(self.reads.weight)

    def forward(self, hidden_states: torch.Tensor, relations) -> torch.Tensor:
        """(batch, sequence, hidden), and what `EdgeFeatures` returns -> (batch, sequence, hidden)."""
        places, there, related = relations

        def of_pairs(tells: nn.Linear, relates: nn.Linear) -> torch.Tensor:
            told = (self.gain * tells(hidden_states)).flatten(0, 1).index_select(0, places).view(*there.shape, -1)
            return relates(related.to(told.dtype)).add_(told)

        asked = (self.gain * self.asks(hidden_states)).unsqueeze(2)
        messages = nn.functional.silu(of_pairs(self.tells, self.relates).add_(asked))
        if self.gate_tells is not None and self.gate_relates is not None:
            messages = messages * of_pairs(self.gate_tells, self.gate_relates)
        weights = there.to(messages.dtype).unsqueeze(-2) * (self.gain / there.shape[-1])
        return self.reads((weights @ messages).squeeze(-2))


class InvariantPointAttention(EsmSelfAttention):
    """ESM's self-attention, in which each head also attends with points: Jumper et al. 2021, algorithm 22.

    Every residue makes query, key and value points in its own frame. A head adds to its logits
    -sum_p |q_ip - k_jp|^2 / (2 P sigma^2), distances in space, and reads the mean of the value points in the frame of
    the residue that asks, with their norms. Nothing depends on the frame of the chain, and mirror images differ.

    -|q - k|^2 / 2 = q.k - |k|^2 / 2 - |q|^2 / 2 is a product of 3 P + 2 features, as in the paper's section 2, so that
    any attention kernel computes it and no pair is kept. Where coordinates are missing, a key has a constant in place
    of its distance, and a query none. With `config.num_neighbors` the messages of the nearest residues are added.
    """

    # Rates of learning are those of weights, which move by thousandths; sigma has to move by factors.
    gain = 8.0

    def __init__(self, config: CoordformerConfig, layer_idx: int):
        super().__init__(config, layer_idx=layer_idx)
        width, heads = config.hidden_size, config.num_attention_heads
        self.points = config.num_qk_points
        self.query_points = nn.Linear(width, heads * self.points * 3)
        self.key_points = nn.Linear(width, heads * self.points * 3)
        self.value_points = nn.Linear(width, heads * self.points * 3)
        self.read_points = nn.Linear(heads * (self.points * 4 + 1), width)
        self.log_sigma = nn.Parameter(torch.empty(heads))
        self.missing = nn.Parameter(torch.empty(heads))
        self.messages = MessagePassing(config) if config.num_neighbors else None

    def log_sigmas(self, first: float, last: float) -> torch.Tensor:
        """Values of `log_sigma` for widths from `first` to `last`, Å, over the heads."""
        sigmas = torch.logspace(math.log10(first), math.log10(last), self.num_attention_heads)
        return (sigmas / self.config.coordinate_scale).log() / self.gain

    def forward(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        *,
        frames: Frames | tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        relations: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (*hidden_states.shape[:2], self.num_attention_heads, -1)
        query = self.query(hidden_states).view(shape).transpose(1, 2) * self.attention_head_size**-0.5
        key = self.key(hidden_states).view(shape).transpose(1, 2)
        value = self.value(hidden_states).view(shape).transpose(1, 2)
        if position_embeddings is not None and self.position_embedding_type == "rotary":
            query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        # Squares of coordinates cancel in the product: 16 bits would leave nothing of near distances.
        with maybe_autocast(hidden_states.device.type, enabled=False):
            query, key, value = self._add_points(hidden_states, query.float(), key.float(), value.float(), frames)
            if torch.is_tensor(attention_mask) and attention_mask.is_floating_point():
                attention_mask = attention_mask.float()
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
            dropout = self.dropout if self.training else 0.0
            output, weights = attend(
                self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
            )
            value, points = output[..., : self.attention_head_size], output[..., self.attention_head_size :]
            points = self._points_read(points, frames)
        value = value.flatten(2).to(hidden_states.dtype)
        output = value + self.read_points(points.to(hidden_states.dtype))
        if self.messages is not None:
            output = output + self.messages(hidden_states, relations)
        return output, weights

    def _add_points(self, hidden_states, query, key, value, frames):
        """Queries, keys and values (batch, heads, sequence, features) with features of their points behind."""
        origins, axes, observed = frames
        batch, length, _ = hidden_states.shape
        seen = observed[:, None, :, None]

        def placed(layer: nn.Linear) -> torch.Tensor:
            points = layer(hidden_states).float().view(batch, length, -1, 3)
            points = points @ axes.transpose(-1, -2) + origins.unsqueeze(2)
            return points.view(batch, length, self.num_attention_heads, -1).transpose(1, 2) * seen

        strength = (-2 * self.gain * self.log_sigma.float()).exp().view(-1, 1, 1) / self.points
        asking, asked, read = placed(self.query_points), placed(self.key_points), placed(self.value_points)
        of_query = -0.5 * strength * asking.square().sum(dim=-1, keepdim=True)
        of_key = -0.5 * strength * asked.square().sum(dim=-1, keepdim=True)
        of_key = torch.where(seen, of_key, self.missing.float().view(-1, 1, 1))
        ones = seen.to(query.dtype).expand_as(of_key)
        query = torch.cat((query, strength * asking, ones, of_query), dim=-1)
        key = torch.cat((key, asked, of_key, ones), dim=-1)
        # The second one makes values as wide as keys. CUDA's kernels that keep no pair want a multiple of four.
        value = torch.cat((value, read, ones, ones), dim=-1)
        return tuple(nn.functional.pad(states, (0, -states.shape[-1] % 4)) for states in (query, key, value))

    def _points_read(self, points, frames):
        """Mean value points (batch, sequence, heads, features) in the residue's frame, with norms and their share."""
        origins, axes, observed = frames
        batch, length, heads, _ = points.shape
        points, share = points[..., : 3 * self.points], points[..., 3 * self.points : 3 * self.points + 1]
        points = points.reshape(batch, length, heads * self.points, 3)
        points = points - (share * origins.unsqueeze(2)).repeat_interleave(self.points, dim=2)
        norms = (points.square().sum(dim=-1) + 1e-6).sqrt()
        local = (points @ axes).flatten(2)
        return torch.cat((local, norms, share.flatten(2)), dim=-1) * observed.unsqueeze(-1)


class DistanceBias(nn.Linear):
    """Attention bias per head, a learned function of the distance between two tokens.

    The function is linear between its values at `config.num_distance_bins` distances, which spread evenly from 0 to twice
    `config.coordinate_scale`, and constant beyond: a basis of triangles, of which two at a time are not zero. With
    several atoms it is a sum over pairs of atoms of the same name; where a coordinate is missing it has a value of its
    own. Starts at zero. Invariant to rotations, but time and memory grow with the square of the length, where those of
    an embedding grow with the length.
    """

    # An optimizer moves a weight by about the learning rate in an update; a bias has to move by units, and soon.
    gain = 64.0

    def __init__(self, config: CoordformerConfig):
        features = len(config.coordinate_atoms) * (config.num_distance_bins + 1)
        super().__init__(features, config.num_attention_heads, bias=False, dtype=torch.float32)
        self.spacing = 2 * float(config.coordinate_scale) / (config.num_distance_bins - 1)
        self.values = config.num_distance_bins

    def forward(self, coords: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """(batch, sequence, atoms, D), Å, and (batch, sequence, atoms) -> (batch, heads, sequence, sequence)."""
        with maybe_autocast(coords.device.type, enabled=False):
            atoms, seen = coords.transpose(1, 2), observed.transpose(1, 2)
            # Not by a matrix product, whose rounding is felt between neighbors.
            distances = torch.cdist(atoms, atoms, compute_mode="donot_use_mm_for_euclid_dist")
            place = (distances / self.spacing).clamp(max=self.values - 1)
            lower = place.floor().clamp(max=self.values - 2)
            share = (place - lower).unsqueeze(-1)
            missing = ~(seen.unsqueeze(-1) & seen.unsqueeze(-2))
            # The rows of each atom: its values in the order of the distances, then the one of missing pairs.
            rows = torch.arange(atoms.shape[1], device=coords.device).view(-1, 1, 1) * (self.values + 1)
            first = torch.where(missing, self.values, lower.long()) + rows
            second = torch.where(missing, self.values, lower.long() + 1) + rows
            table = self.gain * self.weight.float().T
            bias = torch.lerp(nn.functional.embedding(first, table), nn.functional.embedding(second, table), share)
            return bias.sum(dim=1).movedim(-1, 1)


def center_coordinates(coords: torch.Tensor, observed: torch.Tensor, runs: torch.Tensor | None) -> torch.Tensor:
    """Move each segment's observed atoms to the origin and set the others to zero; float32 Å, shape unchanged."""
    observed = observed.unsqueeze(-1)
    count = segment_sum(observed.to(coords.dtype).sum(dim=2, keepdim=True), runs).clamp(min=1)
    coords = coords.masked_fill(~observed, 0.0)
    # The second pass removes the rounding of the first, which is felt 1,000 Å away from the origin.
    for _ in range(2):
        mean = segment_sum(coords.sum(dim=2, keepdim=True), runs) / count
        coords = (coords - mean).masked_fill(~observed, 0.0)
    return coords


def rotate_coordinates(coords: torch.Tensor, rotations: torch.Tensor, numbers: torch.Tensor | None) -> torch.Tensor:
    """Turn each segment of (batch, sequence, atoms, D) by its matrix of (batch, segments, D, D), float32.

    `numbers` (batch, sequence) says which segment a token belongs to; without it a row is one.
    """
    if numbers is not None:
        rotations = rotations[torch.arange(len(numbers), device=numbers.device).unsqueeze(1), numbers]
    # Multiplied and summed rather than `matmul`, which may round to 10 bits (TF32) on CUDA.
    return (rotations.to(coords.dtype).unsqueeze(2) * coords.unsqueeze(-2)).sum(dim=-1)


class FeedForwardInput(nn.Module):
    """First half of a feed-forward layer; stands in for ESM's, which knows no activation but its own GELU."""

    def __init__(self, config: CoordformerConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.activation(self.dense(hidden_states))


class CoordformerEncoder(EsmModel):
    """ESM's encoder with any activation, with points in its attention, and without poolers and heads."""

    def __init__(self, config: CoordformerConfig):
        super().__init__(config, add_pooling_layer=False)
        # That of ESM needs all attention maps at once.
        self.contact_head = None  # type: ignore[assignment]
        for number, layer in enumerate(self.encoder.layer):
            layer.intermediate = FeedForwardInput(config)
            if config.num_qk_points:
                layer.attention.self = InvariantPointAttention(config, number)  # type: ignore[union-attr]

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, InvariantPointAttention):
            init.copy_(module.log_sigma, module.log_sigmas(3.0, 48.0))
            init.constant_(module.missing, -1.0)


def sinusoidal_positions(position_ids: torch.Tensor, hidden_size: int) -> torch.Tensor:
    """Fixed positions of Vaswani et al. 2017, section 3.5: (batch, sequence) -> (batch, sequence, hidden)."""
    # Rounded as in the authors' table: another order of these operations is felt 1,000 residues on.
    pairs = torch.arange(0, hidden_size, 2, device=position_ids.device, dtype=torch.float32)
    angles = position_ids.unsqueeze(-1).float() * torch.exp(-pairs * math.log(10000.0) / hidden_size)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., :hidden_size]


# ---------------------------------------------------------------------------------------------------------------------
# Base model
# ---------------------------------------------------------------------------------------------------------------------


class CoordformerPreTrainedModel(PreTrainedModel):
    config: CoordformerConfig
    config_class = CoordformerConfig
    base_model_prefix = "coordformer"
    _auto_class = "AutoModel"  # Transformers saves the code beside the weights; the config knows all classes
    supports_gradient_checkpointing = True
    _no_split_modules = ["EsmLayer"]
    _keep_in_fp32_modules_strict = ["coordinate_embedding", "distance_bias", "rotary_embeddings"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        kwargs.setdefault("use_safetensors", True)  # nothing is unpickled unless the caller asks for it
        loaded = super().from_pretrained(*args, **kwargs)
        # Loading puts new parameters in the place of frozen ones.
        freeze_sequence_encoder(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    def set_attn_implementation(self, *args, **kwargs):
        super().set_attn_implementation(*args, **kwargs)
        # Older versions of Transformers pass over a model within a model where the configs are of one class.
        for module in self.modules():
            if isinstance(module, CoordformerModel) and module.sequence_encoder is not None:
                module.sequence_encoder.config._attn_implementation = self.config._attn_implementation

    def _set_gradient_checkpointing(self, enable=True, gradient_checkpointing_func=checkpoint, every_n_layers=1):
        # Both reach a layer by name: there reentrant checkpoints lead no gradient.
        options = getattr(gradient_checkpointing_func, "keywords", {})
        named = [name for name in ("distance_bias", "num_neighbors") if getattr(self.config, name)]
        if enable and named and options.get("use_reentrant"):
            raise ValueError(
                f"`gradient_checkpointing_kwargs` has use_reentrant=True, with which `config.{named[0]}` gets no "
                "gradient; leave it out or set it to False."
            )
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, every_n_layers)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, DistanceBias):
            init.zeros_(module.weight)
        elif isinstance(module, ContactHead):
            # Buffers are zero: nobody trains them, and a random head would look like a trained one.
            std = self.config.initializer_range if isinstance(module.weight, nn.Parameter) else 0.0
            init.normal_(module.weight, std=std)
            init.zeros_(module.bias)
        elif (
            isinstance(self, CoordformerModel)
            and module is self.coordinate_embedding
            and (self.config.coordinate_init == "gaussian")
        ):
            # Here, after the encoder: of a module without weights of its own, as the model, nobody asks.
            for parameter, start in self.gaussian_start().items():
                init.copy_(parameter, start)

    def __call__(self, *args, **kwargs):
        # FSDP2 casts every floating-point input of what it shards to its `param_dtype`. Coordinates pass as the bits
        # of float32 (`_restore_float32` in `forward`), which it leaves alone.
        if isinstance(self, FSDPModule):
            kwargs |= dict(zip(inspect.signature(self.forward).parameters, args, strict=False))
            args = ()
            for name in ("coords", "rotations"):
                values = kwargs.get(name)
                if values is not None and values.dtype != torch.uint32:
                    kwargs[name] = values.detach().to(torch.float32).contiguous().view(torch.uint32)
        return super().__call__(*args, **kwargs)

    def predict_contacts(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        coords: torch.Tensor | None = None,
        coords_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """Probability that two residues are in contact, from the attention maps of all layers (paper, section 6).

        Inputs as of `CoordformerModel`, one chain in each row. Memory grows with the square of the length, not with
        layers and heads, and is the same for every `attn_implementation`.

        Returns:
            (batch, residues, residues), float32, without `<cls>` and `<eos>`; zero for padding.

        Raises:
            ValueError: the model has no contact head.
        """
        base: Any = self.base_model
        logits, pairs, _ = base.contact_logits(
            input_ids, attention_mask, coords=coords, coords_mask=coords_mask, **kwargs
        )
        return logits.sigmoid() * pairs

    def _apply(self, fn, recurse=True):
        # `.to(bfloat16)` would round the rotary frequencies, for good once saved, and the coordinate embedding.
        precise = {
            id(tensor)
            for name, module in self.named_modules()
            if name.rpartition(".")[2] in self._keep_in_fp32_modules_strict
            for tensor in (*module.parameters(), *module.buffers())
        }

        def keep_float32(tensor: torch.Tensor) -> torch.Tensor:
            applied = fn(tensor)
            if id(tensor) in precise and applied.dtype != tensor.dtype:
                return tensor.to(applied.device)
            return applied

        return super()._apply(keep_float32, recurse)


class CoordformerModel(CoordformerPreTrainedModel):
    """The encoder without a head.

    Inputs, all optional but for one of `input_ids`, `inputs_embeds` and `coords`:

    - `input_ids` `(batch, sequence)`: tokens. Without them the input is a point cloud.
    - `attention_mask` `(batch, sequence)`: 1 for tokens, 0 for padding.
    - `position_ids` `(batch, sequence)`: from 0; the default restarts in each segment. Leave a gap between the chains
      of a complex.
    - `inputs_embeds` `(batch, sequence, hidden)`: in place of `input_ids`.
    - `coords` `(batch, sequence, D)` or `(batch, sequence, atoms, D)`: Å, in any frame; NaN where not observed.
    - `coords_mask` `(batch, sequence)` or `(batch, sequence, atoms)`: False where not observed.
    - `sequence_id` `(batch, sequence)`: runs of equal ids are the segments of a packed row; a segment attends to itself
      alone and has its own center. The default is one segment per row.
    - `rotations` `(batch, segments, D, D)`: a matrix for each segment in reading order (without `sequence_id` one per
      row), by which it is turned about its center; random ones in training. The default turns nothing.
    - `cu_seq_lens_q`, `cu_seq_lens_k`, `max_length_q`, `max_length_k`: the bounds of the segments as Transformers'
      flash attention takes them, see `segment_bounds`. Attention by `"varlen"` or flash computes them from
      `sequence_id` where they are missing, for which the host waits for the device; given, they must agree with it.

    `<cls>`, `<eos>` and padding count as not observed whatever `coords` holds there.

    Examples:
        >>> model = CoordformerModel(CoordformerConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4))
        >>> tokens, coords = torch.tensor([[0, 20, 15, 7, 2]]), torch.randn(1, 5, 3)
        >>> model(input_ids=tokens, coords=coords).last_hidden_state.shape
        torch.Size([1, 5, 64])
    """

    def __init__(self, config: CoordformerConfig):
        super().__init__(config)
        self.esm = CoordformerEncoder(config)
        self.contact_head = None
        if config.contact_head:
            self.contact_head = ContactHead(config)
        self.coordinate_embedding = None if config.coordinate_embedding == "none" else CoordinateEmbedding(config)
        self.distance_bias = DistanceBias(config) if config.num_distance_bins else None
        self.relations = EdgeFeatures(config) if config.num_neighbors else None
        self.sequence_encoder = self.connector = None
        if isinstance(config.sequence_encoder, EsmConfig):
            without_coordinates = _sequence_encoder_config(config.sequence_encoder)
            without_coordinates._attn_implementation = config._attn_implementation
            self.sequence_encoder = CoordformerModel(without_coordinates)
            self.connector = nn.Linear(config.sequence_encoder.hidden_size, config.hidden_size)
            self.esm.embeddings.word_embeddings = None  # type: ignore[assignment]  # idle, too
        eos = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        special = (config.pad_token_id, config.bos_token_id, *eos)
        self._tokens_without_coordinates = tuple(token_id for token_id in special if token_id is not None)
        self.post_init()
        freeze_sequence_encoder(self)

    def gaussian_start(self) -> dict[nn.Parameter, torch.Tensor]:
        """Weights with which the first layer's heads attend with Gaussians of distance: `coordinate_init="gaussian"`.

        A softmax over j of (xi.xj - |xj|^2 / 2) / sigma^2 is one of -|xi - xj|^2 / (2 sigma^2), so that x and |x|^2 in
        D + 1 features of the first layer's input are enough. They share the first LayerNorm with a constant that is
        large beside them, which makes it nearly the identity, and the head with the slowest rotary frequencies.
        Approximate, therefore; sigma spreads from a quarter to twice `config.coordinate_scale` over the heads.

        Returns the parameters with their new values.
        """
        dim, width, heads = self.config.coordinate_dim, self.config.hidden_size, self.config.num_attention_heads
        head_size = width // heads
        assert self.coordinate_embedding is not None
        attention: Any = self.esm.encoder.layer[0].attention
        tokens = self.esm.embeddings.word_embeddings
        changing = (tokens, self.coordinate_embedding, attention.self.query, attention.self.key)
        changed = [parameter for module in changing for parameter in module.parameters()]
        start = {parameter: parameter.detach().clone() for parameter in changed}
        table, embed, offset, query, query_bias, key, key_bias = start.values()

        # Of the features beside the constant: the smaller, the nearer to a Gaussian, and the larger the weights.
        small = 0.25
        table[:, : dim + 1] = 0
        embed[: dim + 1] = 0
        embed[: dim + 1, : dim + 1] = small * torch.eye(dim + 1)
        embed[dim, dim + 1] = small * 16.0  # not observed: as far as four scales, so that few attend to it
        offset[: dim + 1] = 0
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

    def train(self, mode: bool = True):
        super().train(mode)
        if self.sequence_encoder is not None:
            self.sequence_encoder.eval()
        return self

    @property
    def reads_coordinates(self) -> bool:
        """Whether anything in the model depends on `coords`."""
        config = self.config
        return config.coordinate_embedding != "none" or bool(config.num_distance_bins or config.num_qk_points)

    def get_input_embeddings(self):
        return (self.sequence_encoder or self.esm).get_input_embeddings()

    def set_input_embeddings(self, value):
        (self.sequence_encoder or self.esm).set_input_embeddings(value)
        if isinstance(self.config.sequence_encoder, EsmConfig):
            self.config.sequence_encoder.vocab_size = value.num_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        coords: torch.Tensor | None = None,
        coords_mask: torch.Tensor | None = None,
        sequence_id: torch.Tensor | None = None,
        rotations: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        coords, rotations = _restore_float32(coords), _restore_float32(rotations)
        shape, device = self._input_shape(input_ids, inputs_embeds, coords)
        for name, value in (
            ("attention_mask", attention_mask),
            ("position_ids", position_ids),
            ("sequence_id", sequence_id),
        ):
            accepted = (shape, (1, shape[1])) if name == "position_ids" else (shape,)
            if value is not None and tuple(value.shape) not in map(tuple, accepted):
                raise ValueError(
                    f"`{name}` has shape {tuple(value.shape)}; the input asks for (batch, sequence) = {tuple(shape)}."
                )

        if sequence_id is None:
            sequence_id = sequence_id_of_bounds(kwargs.get("cu_seq_lens_q"), shape)
        runs = None if sequence_id is None else segment_runs(sequence_id, attention_mask)
        longest = self.config.max_position_embeddings - self.config.pad_token_id - 1
        absolute = self.config.position_embedding_type == "absolute"
        asked = shape[1] if runs is None else kwargs.get("max_length_q") or 0
        if absolute and position_ids is None and asked > longest:
            raise ValueError(
                f"The input has {asked} tokens{'' if runs is None else ' in a segment'}, but absolute positions end at "
                f"{longest} (`config.max_position_embeddings`); cut it into windows."
            )
        if position_ids is None:
            position_ids = segment_positions(runs, attention_mask, shape[1], device)

        if self.sequence_encoder is None:
            embeddings = self._embed(input_ids, attention_mask, inputs_embeds, shape, runs)
        else:
            bounds = {name: kwargs[name] for name in SEGMENT_BOUNDS if name in kwargs}
            embeddings = self._encode_sequence(
                input_ids=input_ids,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                sequence_id=sequence_id,
                **bounds,
            )
        bias = None
        if self.reads_coordinates:
            placed, observed = self._place_coordinates(
                coords, coords_mask, input_ids, attention_mask, shape, device, runs
            )
            if rotations is not None:
                numbers = None if runs is None else segment_numbers(runs, attention_mask)
                self._check_rotations(rotations, shape, numbers)
                placed = rotate_coordinates(placed, rotations, numbers)
            local = self.config.coordinate_embedding == "local_frame"
            if local or self.config.num_qk_points:
                frames = backbone_frames(placed, observed, position_ids, runs, self.config.coordinate_atoms)
            if self.coordinate_embedding is not None:
                lifted = (
                    local_frame_coordinates(placed, observed, frames, position_ids, runs)
                    if local
                    else (placed, observed)
                )
                embeddings = (embeddings + self.coordinate_embedding(*lifted)).to(embeddings.dtype)
            if self.config.num_qk_points:
                if "flash" in self.config._attn_implementation:
                    raise ValueError(
                        "`config.num_qk_points` needs products in float32, which attn_implementation="
                        f"{self.config._attn_implementation!r} does not have; choose 'sdpa'."
                    )
                origins, axes, seen = frames
                kwargs["frames"] = Frames(origins / self.config.coordinate_scale, axes, seen)
                if self.relations is not None:
                    bound = None if runs is None else kwargs.get("max_length_q")
                    kwargs["relations"] = self.relations(frames, position_ids, runs, bound)
            if self.distance_bias is not None:
                bias = self.distance_bias(placed, observed).to(embeddings.dtype)
        embeddings = self._add_positions(embeddings, position_ids)
        if self.esm.embeddings.layer_norm is not None:
            embeddings = self.esm.embeddings.layer_norm(embeddings)
        if attention_mask is not None:
            embeddings = (embeddings * attention_mask.unsqueeze(-1)).to(embeddings.dtype)

        if bias is not None:
            attention_mask = self._bias_attention(bias, attention_mask, runs)
            kwargs |= dict.fromkeys(SEGMENT_BOUNDS)
        elif runs is not None:
            attention_mask, bounds = self._confine_attention(embeddings, runs, kwargs)
            kwargs |= bounds
        outputs = self.esm(inputs_embeds=embeddings, attention_mask=attention_mask, position_ids=position_ids, **kwargs)
        return BaseModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def contact_logits(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor, BaseModelOutput]:
        """Logits of contacts (batch, residues, residues), which pairs are of residues, and what the encoder puts out.

        One chain in each row, padded on the right; the first token and the last position are cropped.
        """
        if self.contact_head is None:
            raise ValueError(
                "The model has no contact head; train a CoordformerForContactPrediction, or start with `from_esm` from "
                "a checkpoint that has one."
            )
        if "sequence_id" in kwargs or "cu_seq_lens_q" in kwargs:
            raise ValueError("Contacts are predicted of padded rows with one chain each; leave `sequence_id` out.")
        if self.training and self.esm.encoder.gradient_checkpointing:
            raise ValueError("Contacts are made again in the backward pass already; turn gradient checkpointing off.")
        real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        for token_id in self._tokens_without_coordinates:
            real = real & (input_ids != token_id)
        encoder_layers: Any = self.esm.encoder.layer
        layers: list[nn.Module] = [layer.attention.self for layer in encoder_layers]
        contacts = ContactLogits(layers, self.contact_head, real)
        implementation = self.config._attn_implementation
        self.config._attn_implementation = "contacts"
        try:
            outputs = self(input_ids=input_ids, attention_mask=attention_mask, contacts=contacts, **kwargs)
        finally:
            self.config._attn_implementation = implementation
        logits = contacts.total[:, 1:-1, 1:-1] + self.contact_head.bias.float()
        real = real[:, 1:-1]
        return logits, real.unsqueeze(2) & real.unsqueeze(1), outputs

    def _input_shape(self, input_ids, inputs_embeds, coords) -> tuple[torch.Size, torch.device]:
        if input_ids is not None and inputs_embeds is not None:
            raise ValueError("Give `input_ids` or `inputs_embeds`, not both.")
        source = input_ids if input_ids is not None else inputs_embeds if inputs_embeds is not None else coords
        if source is None:
            raise ValueError("Give at least one of `input_ids`, `inputs_embeds` and `coords`.")
        if source.dim() < 2 or 0 in source.shape[:2]:
            raise ValueError(
                f"The input has shape {tuple(source.shape)}; (batch, sequence, ...) with at least one token is needed."
            )
        return source.shape[:2], source.device

    def _embed(self, input_ids, attention_mask, inputs_embeds, shape, runs) -> torch.Tensor:
        """Token embeddings with ESM's token dropout, counted per segment."""
        if inputs_embeds is not None:
            return inputs_embeds
        table = self.esm.embeddings.word_embeddings
        if input_ids is None:
            # Multiplied by zero rather than left out: an idle parameter stops DistributedDataParallel.
            return (table.weight[0] * 0).expand(*shape, -1)
        embeddings = table(input_ids)
        if self.config.token_dropout:
            masked = input_ids == self.config.mask_token_id
            embeddings = embeddings.masked_fill(masked.unsqueeze(-1), 0.0)
            trained_ratio = 0.15 * 0.8  # as in all ESM-2 training
            real = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids.dtype)
            ratio = segment_sum(masked.long(), runs).float() / segment_sum(real, runs).clamp(min=1)
            # Where every token is masked the scale has nothing to act upon; it only has to be finite.
            kept = (1 - ratio).clamp(min=torch.finfo(torch.float32).eps)
            embeddings = (embeddings * (1 - trained_ratio) / kept.unsqueeze(-1)).to(embeddings.dtype)
        return embeddings

    def _encode_sequence(self, **inputs) -> torch.Tensor:
        """What the connector makes of the last hidden states of the frozen sequence encoder."""
        if inputs["input_ids"] is None and inputs["inputs_embeds"] is None:
            raise ValueError("A model with `config.sequence_encoder` needs `input_ids` or `inputs_embeds`.")
        assert self.sequence_encoder is not None and self.connector is not None
        with torch.no_grad():
            states = self.sequence_encoder(**inputs).last_hidden_state
        return self.connector(states).to(self.connector.weight.dtype)  # as embeddings are, under autocast as well

    def _place_coordinates(
        self, coords, coords_mask, input_ids, attention_mask, shape, device, runs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Centered coordinates (batch, sequence, atoms, D) in Å, and which are observed (batch, sequence, atoms)."""
        atoms, dim = len(self.config.coordinate_atoms), self.config.coordinate_dim
        if coords is None:
            coords = torch.zeros(*shape, atoms, dim, device=device)
            observed = torch.zeros(*shape, atoms, dtype=torch.bool, device=device)
            return coords, observed

        coords = self._check_coords(coords, shape)
        observed = ~coords.isnan().any(dim=-1)
        if coords_mask is not None:
            if coords_mask.shape not in (shape, (*shape, atoms)):
                raise ValueError(
                    f"`coords_mask` has shape {tuple(coords_mask.shape)}; the input asks for {tuple(shape)} or "
                    f"{(*shape, atoms)}."
                )
            observed = observed & coords_mask.reshape(*shape, -1).bool()
        if attention_mask is not None:
            observed = observed & attention_mask.bool().unsqueeze(-1)
        if input_ids is not None:
            for token_id in self._tokens_without_coordinates:
                observed = observed & (input_ids != token_id).unsqueeze(-1)
        return center_coordinates(coords, observed, runs), observed

    def _check_coords(self, coords: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Return `coords` as float32 (batch, sequence, atoms, D), or say what is wrong with it."""
        names, dim = self.config.coordinate_atoms, self.config.coordinate_dim
        expected = (*shape, len(names), dim)
        accepted = [expected] if len(names) > 1 else [(*shape, dim), expected]
        if tuple(coords.shape) not in accepted:
            raise ValueError(
                f"`coords` has shape {tuple(coords.shape)}; {shape[0]} rows of {shape[1]} tokens with the atoms "
                f"{', '.join(names)} (`config.coordinate_atoms`) in {dim} dimensions (`config.coordinate_dim`) need "
                f"{' or '.join(map(str, accepted))}. Special tokens and padding have coordinates too: NaN."
            )
        # Looking at values on an accelerator would stop it at every step; the processor and the collator look there.
        if coords.device.type == "cpu" and not torch.compiler.is_compiling() and coords.isinf().any():
            row, token = coords.isinf().flatten(2).any(dim=-1).nonzero()[0].tolist()
            raise ValueError(
                f"`coords` is infinite at row {row}, token {token}; use NaN for coordinates that were not observed."
            )
        return coords.reshape(expected).to(torch.float32)

    def _add_positions(self, embeddings: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        if self.config.position_embedding_type == "absolute":
            # ESM's table keeps the rows up to the padding token's for padding.
            offset = self.config.pad_token_id + 1
            return embeddings + self.esm.embeddings.position_embeddings(position_ids + offset)
        if self.config.position_embedding_type == "sinusoidal":
            return embeddings + sinusoidal_positions(position_ids, embeddings.shape[-1]).to(embeddings.dtype)
        return embeddings

    def _check_rotations(self, rotations: torch.Tensor, shape: torch.Size, numbers: torch.Tensor | None) -> None:
        dim = self.config.coordinate_dim
        batch, segments, *matrix = rotations.shape if rotations.dim() == 4 else (None, 0)
        needed = 1
        # As in `_check_coords`, values are looked at on the CPU alone.
        if numbers is not None and numbers.device.type == "cpu" and not torch.compiler.is_compiling():
            needed = int(numbers.max()) + 1
        if batch != shape[0] or matrix != [dim, dim] or segments < needed or (numbers is None and segments != 1):
            wanted = (shape[0], needed, dim, dim)
            raise ValueError(
                f"`rotations` has shape {tuple(rotations.shape)}; a matrix for each segment is "
                f"({', '.join(map(str, wanted))})."
            )

    def _confine_attention(self, embeddings, runs, kwargs) -> tuple[Any, dict[str, Any]]:
        """What keeps attention within the segments: a mask, or for kernels that take them the segments' bounds."""
        implementation = self.config._attn_implementation
        if implementation == "varlen" or "flash" in implementation:
            return None, {} if kwargs.get("cu_seq_lens_q") is not None else segment_bounds(runs)
        mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=embeddings,
            attention_mask=None,
            and_mask_function=packed_sequence_mask_function(runs),
        )
        # Bounds that came with the batch would only be in the way of the other kernels.
        return mask, dict.fromkeys(SEGMENT_BOUNDS)

    def _bias_attention(self, bias, attention_mask, runs) -> torch.Tensor:
        """The bias (batch, heads, sequence, sequence) as a mask that also keeps attention within the segments."""
        if self.config._attn_implementation not in ("sdpa", "eager", "contacts"):
            raise ValueError(
                f"`config.num_distance_bins` needs attn_implementation='sdpa' or 'eager', not "
                f"{self.config._attn_implementation!r}, which takes no bias."
            )
        if runs is not None:
            allowed = (runs.unsqueeze(-1) == runs.unsqueeze(-2)).unsqueeze(1)
        elif attention_mask is not None:
            allowed = attention_mask.bool()[:, None, None, :]
        else:
            return bias
        return bias.masked_fill(~allowed, torch.finfo(bias.dtype).min)


def _sequence_encoder_config(esm: EsmConfig) -> CoordformerConfig:
    """Of an ESM-2 as a Coordformer without coordinates, which knows segments; what is frozen has no dropout."""
    fields = {name: value for name, value in esm.to_dict().items() if value is not None and name != "model_type"}
    fields |= {"coordinate_embedding": "none", "hidden_act": "gelu_python"}
    fields |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return CoordformerConfig(**fields)


def freeze_sequence_encoder(model: nn.Module) -> None:
    """Let no optimizer change the ESM-2 in front, where there is one."""
    for module in model.modules():
        if isinstance(module, CoordformerModel) and module.sequence_encoder is not None:
            module.sequence_encoder.requires_grad_(False)


def _restore_float32(bits: torch.Tensor | None) -> torch.Tensor | None:
    """Undo what `CoordformerPreTrainedModel.__call__` does to coordinates."""
    return bits.view(torch.float32) if bits is not None and bits.dtype == torch.uint32 else bits


# ---------------------------------------------------------------------------------------------------------------------
# Heads
# ---------------------------------------------------------------------------------------------------------------------


def mean_loss(losses: torch.Tensor, labels: torch.Tensor, num_items_in_batch=None) -> torch.Tensor:
    """Sum the element-wise `losses` whose label counts and divide by their number.

    `Trainer` passes `num_items_in_batch`, the number of labels in all micro-batches and processes of one update, so
    that the loss of an update does not depend on how its rows are spread over them. Without any label that counts
    the loss is zero, not NaN.
    """
    counts = labels != IGNORED_LABEL
    total = losses.masked_fill(~counts, 0.0).sum()
    if num_items_in_batch is None:
        return total / counts.sum().clamp(min=1)
    if torch.is_tensor(num_items_in_batch):
        return total / num_items_in_batch.to(total.device).clamp(min=1)
    return total / max(num_items_in_batch, 1)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch=None) -> torch.Tensor:
    """Mean cross-entropy in float32: logits (..., classes), labels (...)."""
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"`labels` has shape {tuple(labels.shape)}; the logits ask for {tuple(logits.shape[:-1])}.")
    if labels.is_floating_point():
        raise ValueError(f"`labels` are {labels.dtype}; classes are whole numbers.")
    labels = labels.to(logits.device, torch.long)
    losses = nn.functional.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="none"
    )
    return mean_loss(losses, labels.flatten(), num_items_in_batch)


class CoordformerLMHead(nn.Module):
    """ESM-2's language-model head; its bias lies in `decoder` so that resizing the vocabulary resizes it too."""

    def __init__(self, config: CoordformerConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.activation = ACT2FN["gelu_python"]  # ESM's formula
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.layer_norm(self.activation(self.dense(hidden_states))))


class CoordformerForMaskedLM(CoordformerPreTrainedModel):
    """Masked-language-model head. `labels` `(batch, sequence)`: token ids, -100 where nothing is to be predicted."""

    _tied_weights_keys = {"lm_head.decoder.weight": "coordformer.esm.embeddings.word_embeddings.weight"}

    def __init__(self, config: CoordformerConfig):
        super().__init__(config)
        self.coordformer = CoordformerModel(config)
        if config.lm_head == "linear":
            self._tied_weights_keys = {}  # whatever becomes of `config.tie_word_embeddings`
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        else:
            self.lm_head = CoordformerLMHead(config)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head if self.config.lm_head == "linear" else self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings):
        if self.config.lm_head == "linear":
            self.lm_head = new_embeddings
        else:
            self.lm_head.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        coords: torch.Tensor | None = None,
        coords_mask: torch.Tensor | None = None,
        sequence_id: torch.Tensor | None = None,
        rotations: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> MaskedLMOutput:
        outputs = self.coordformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            coords=coords,
            coords_mask=coords_mask,
            sequence_id=sequence_id,
            rotations=rotations,
            **kwargs,
        )
        logits = self.lm_head(outputs.last_hidden_state)
        return MaskedLMOutput(
            loss=None if labels is None else cross_entropy(logits, labels, num_items_in_batch),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class CoordformerClassificationHead(nn.Module):
    """ESM's sentence head."""

    def __init__(self, config: CoordformerConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)  # type: ignore[arg-type]

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        hidden_states = torch.tanh(self.dense(self.dropout(pooled)))
        return self.out_proj(self.dropout(hidden_states))


class CoordformerForSequenceClassification(CoordformerPreTrainedModel):
    """One prediction per chain, from its first token or the mean of its residues (`config.classifier_pooling`).

    `logits` is `(batch, num_labels)`; of packed rows `(segments, num_labels)`, one per segment in reading order.
    `config.problem_type` decides the loss, or else `num_labels` and the type of `labels`, as in Transformers:
    `"regression"` and `"multi_label_classification"` take float labels shaped like the logits (regression to one value
    also `(batch,)`), `"single_label_classification"` integers `(batch,)`. A label of -100 is missing.
    """

    def __init__(self, config: CoordformerConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.coordformer = CoordformerModel(config)
        self.classifier = CoordformerClassificationHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        coords: torch.Tensor | None = None,
        coords_mask: torch.Tensor | None = None,
        sequence_id: torch.Tensor | None = None,
        rotations: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        outputs = self.coordformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            coords=coords,
            coords_mask=coords_mask,
            sequence_id=sequence_id,
            rotations=rotations,
            **kwargs,
        )
        if sequence_id is None:
            sequence_id = sequence_id_of_bounds(kwargs.get("cu_seq_lens_q"), outputs.last_hidden_state.shape[:2])
        logits = self.classifier(self._pool(outputs.last_hidden_state, input_ids, attention_mask, sequence_id))
        return SequenceClassifierOutput(
            loss=None if labels is None else self._loss(logits, labels, num_items_in_batch),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _pool(self, hidden_states, input_ids, attention_mask, sequence_id) -> torch.Tensor:
        """A vector for each chain: of its first token, or the mean over its residues."""
        if self.config.classifier_pooling == "mean":
            residues = (
                torch.ones_like(hidden_states[..., :1]) if attention_mask is None else attention_mask.unsqueeze(-1)
            )
            if input_ids is not None:
                for token_id in self.coordformer._tokens_without_coordinates:
                    residues = residues * (input_ids != token_id).unsqueeze(-1)
            residues = residues.float()  # bfloat16 would round a sum over hundreds of residues
            runs = None if sequence_id is None else segment_runs(sequence_id, attention_mask)
            mean = segment_sum(hidden_states * residues, runs) / segment_sum(residues, runs).clamp(min=1)
            hidden_states = mean.to(hidden_states.dtype).expand_as(hidden_states)  # the same for all tokens
        if sequence_id is not None:
            first = run_starts(segment_runs(sequence_id, attention_mask))
            return hidden_states[first if attention_mask is None else first & attention_mask.bool()]
        if attention_mask is None:
            return hidden_states[:, 0]
        first = attention_mask.long().argmax(dim=1)
        return hidden_states[torch.arange(hidden_states.shape[0], device=hidden_states.device), first]

    def _loss(self, logits, labels, num_items_in_batch) -> torch.Tensor:
        problem_type = self.config.problem_type
        if problem_type is None:
            if self.num_labels == 1:
                problem_type = "regression"
            elif labels.is_floating_point() or labels.dtype == torch.bool:
                problem_type = "multi_label_classification"
            else:
                problem_type = "single_label_classification"
        if problem_type == "single_label_classification":
            return cross_entropy(logits, labels, num_items_in_batch)
        if problem_type not in ("regression", "multi_label_classification"):
            raise ValueError(
                f"`config.problem_type` is {problem_type!r}; choose single_label_classification, "
                "multi_label_classification or regression."
            )
        if labels.shape != logits.shape and not (self.num_labels == 1 and labels.numel() == logits.numel()):
            raise ValueError(f"`labels` has shape {tuple(labels.shape)}; {problem_type} needs {tuple(logits.shape)}.")
        labels = labels.to(logits.device, torch.float32).reshape(logits.shape)
        if problem_type == "regression":
            losses = nn.functional.mse_loss(logits.float(), labels, reduction="none")
        else:
            losses = nn.functional.binary_cross_entropy_with_logits(logits.float(), labels, reduction="none")
        return mean_loss(losses, labels, num_items_in_batch)


class CoordformerForContactPrediction(CoordformerPreTrainedModel):
    """Contacts by logistic regression on the attention maps of all layers (ESM's contact head; paper, section 6).

    `labels` `(batch, residues, residues)`: 1 for contacts, 0 for others, -100 where nobody knows or asks. `logits` have
    the same shape, `<cls>` and `<eos>` left out.
    """

    supports_gradient_checkpointing = False  # attention maps are made again in the backward pass as it is

    def __init__(self, config: CoordformerConfig):
        config.contact_head = True
        super().__init__(config)
        self.coordformer = CoordformerModel(config)
        self.coordformer.contact_head = ContactHead(config, trained=True)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        coords: torch.Tensor | None = None,
        coords_mask: torch.Tensor | None = None,
        rotations: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> TokenClassifierOutput:
        logits, pairs, outputs = self.coordformer.contact_logits(
            input_ids,
            attention_mask,
            position_ids=position_ids,
            coords=coords,
            coords_mask=coords_mask,
            rotations=rotations,
            **kwargs,
        )
        loss = None
        if labels is not None:
            if labels.shape != logits.shape:
                raise ValueError(
                    f"`labels` has shape {tuple(labels.shape)}; (batch, residues, residues) = {tuple(logits.shape)}."
                )
            labels = labels.to(logits.device, torch.long).masked_fill(~pairs, IGNORED_LABEL)
            losses = nn.functional.binary_cross_entropy_with_logits(
                logits, labels.clamp(min=0).float(), reduction="none"
            )
            loss = mean_loss(losses, labels, num_items_in_batch)
        return TokenClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


class CoordformerForTokenClassification(CoordformerPreTrainedModel):
    """One prediction per token. `labels` `(batch, sequence)`: classes, -100 where there is none."""

    def __init__(self, config: CoordformerConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.coordformer = CoordformerModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)  # type: ignore[arg-type]
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        coords: torch.Tensor | None = None,
        coords_mask: torch.Tensor | None = None,
        sequence_id: torch.Tensor | None = None,
        rotations: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> TokenClassifierOutput:
        outputs = self.coordformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            coords=coords,
            coords_mask=coords_mask,
            sequence_id=sequence_id,
            rotations=rotations,
            **kwargs,
        )
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        return TokenClassifierOutput(
            loss=None if labels is None else cross_entropy(logits, labels, num_items_in_batch),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = [
    "CoordformerForContactPrediction",
    "CoordformerForMaskedLM",
    "CoordformerForSequenceClassification",
    "CoordformerForTokenClassification",
    "CoordformerModel",
    "CoordformerPreTrainedModel",
]
