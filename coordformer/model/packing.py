# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""Packed rows: several segments in one row, and attention that stays within them.

A segment is what attends to itself and shares a center: a chain or a complex. Rows without segments hold one each.
`runs` (batch, sequence) numbers the segments of a row; None stands for rows of one segment.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .kernels import Attention, kernel_takes, run_kernel

SEGMENT_BOUNDS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")  # Transformers' names
WIDEST = 64  # the widest head of which attention.c has a version


def segment_runs(sequence_id: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Number the runs of equal ids in each row from 0: (batch, sequence) -> (batch, sequence).

    Padding is a run of its own: it attends to itself, so that no softmax is over nothing.
    """
    changes = sequence_id[:, 1:] != sequence_id[:, :-1]
    if attention_mask is not None:
        changes = changes | (attention_mask[:, 1:] != attention_mask[:, :-1])
    return nn.functional.pad(changes.long().cumsum(dim=1), (1, 0))


def run_starts(runs: Tensor) -> Tensor:
    """Whether a token is the first of its run, (batch, sequence)."""
    return nn.functional.pad(runs[:, 1:] != runs[:, :-1], (1, 0), value=True)


def segment_numbers(runs: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Number the segments in each row from 0, padding left out: (batch, sequence). Padding has the number before it."""
    starts = run_starts(runs)
    if attention_mask is not None:
        starts = starts & attention_mask.bool()
    return (starts.long().cumsum(dim=1) - 1).clamp(min=0)


def sequence_id_of_bounds(bounds: Tensor | None, shape: torch.Size) -> Tensor | None:
    """`sequence_id` (batch, sequence) from `cu_seq_lens_q`, as the padding-free collators of Transformers give it."""
    if bounds is None:
        return None
    tokens = torch.arange(shape.numel(), device=bounds.device)
    return torch.searchsorted(bounds, tokens, right=True).view(shape)


def take_tokens(values: Tensor, kept: Tensor) -> Tensor:
    """Of (batch, sequence, ...), or one row for all, the tokens `kept` (batch, kept): (batch, kept, ...).

    Raises:
        ValueError: `kept` has not a row for each of `values`.
    """
    if kept.dim() != 2 or values.shape[0] not in (1, len(kept)):
        wanted = f"(batch, kept) with {values.shape[0]} rows"
        raise ValueError(f"`kept_tokens` has shape {tuple(kept.shape)}; the input asks for {wanted}.")
    index = kept.view(*kept.shape, *[1] * (values.dim() - 2)).expand(*kept.shape, *values.shape[2:])
    return values.expand(len(kept), *values.shape[1:]).gather(1, index)


def segment_sum(values: Tensor, runs: Tensor | None) -> Tensor:
    """Sum over each segment: (batch, sequence, ...) -> the same shape; without `runs` the sequence has length 1."""
    if runs is None:
        return values.sum(dim=1, keepdim=True)
    index = runs.reshape(*runs.shape, *[1] * (values.dim() - 2)).expand_as(values)
    return torch.zeros_like(values).scatter_add(1, index, values).gather(1, index)


def segment_positions(runs: Tensor | None, attention_mask: Tensor | None, length: int, device):
    """Positions from 0 at the first token of each segment: (batch or 1, sequence)."""
    index = torch.arange(length, device=device).unsqueeze(0)
    if runs is not None:
        return index - torch.where(run_starts(runs), index, 0).cummax(dim=1).values
    if attention_mask is None:
        return index
    # Padding on the left does not shift a chain.
    return (index - attention_mask.long().argmax(dim=1, keepdim=True)).clamp(min=0)


def segment_bounds(runs: Tensor) -> dict[str, Tensor | int]:
    """Where the segments of a packed batch begin and end, under the names of Transformers' flash attention.

    `cu_seq_lens_q` and `_k` (segments + 1,), int32, count the tokens before each segment, rows one after another;
    `max_length_q` and `_k` are the tokens of the longest. The host has to wait for the device:
    `CoordformerDataCollator` brings the same numbers with the batch.
    """
    starts = run_starts(runs).flatten().nonzero().squeeze(1)
    bounds = torch.cat((starts, starts.new_tensor([runs.numel()]))).to(torch.int32)
    longest = int(bounds.diff().max())
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


def varlen_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float = 0.0,
    scaling: float | None = None, cu_seq_lens_q: Tensor | None = None, max_length_q: int | None = None, **kwargs,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention within the segments of packed rows: `attn_implementation="varlen"`.

    On CUDA in half precision one kernel without a mask (`torch.nn.attention.varlen`), on a CPU C code for narrow heads,
    elsewhere sdpa on one segment after the other: memory and time grow with the sum of the squared lengths, not with
    the square of their sum. Rows without segments go to sdpa with its mask.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
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
        query = query * (query.shape[-1] ** 0.5 * (head_size**-0.5 if scaling is None else scaling))
        longest = length if max_length_q is None else max_length_q
        output: Any = varlen_attn(query, key, value, cu_seq_lens_q, cu_seq_lens_q, longest, longest)
    elif not dropout and are_narrow(query, key, value, len(cu_seq_lens_q) - 1) and bounds_fit(cu_seq_lens_q, query):
        output = attend_narrow(query, key, value, cu_seq_lens_q, int(cu_seq_lens_q.diff().max()), scaling)
    else:

        def attend(*states: Tensor) -> list[Tensor]:
            q, k, v = (each.transpose(1, 2) for each in states)
            attended = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling)
            return [attended.transpose(1, 2)]

        (output,) = each_segment(attend, cu_seq_lens_q, *(each.unsqueeze(0) for each in (query, key, value)))
    return output[..., :head_size].reshape(batch, length, -1, head_size), None


def sdpa_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float = 0.0,
    scaling: float | None = None, **kwargs,
) -> tuple[Tensor, None]:  # fmt: skip
    """As Transformers' `"sdpa"`; narrow heads that attend to the whole of their rows do so by C code on a CPU."""
    batch, _, length, _ = query.shape
    if attention_mask is None and not dropout and length and query.device.type == "cpu":
        q, k, v = (states.transpose(1, 2).flatten(0, 1) for states in (query, key, value))
        if are_narrow(q, k, v, batch):
            bounds = torch.arange(0, len(q) + 1, length, dtype=torch.int32)
            return attend_narrow(q, k, v, bounds, length, scaling).unflatten(0, (batch, length)), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)


def are_narrow(query: Tensor, key: Tensor, value: Tensor, segments: int) -> bool:
    """Whether the C code takes these heads, (tokens, heads, head) each."""
    return (
        query.shape == key.shape == value.shape
        and query.shape[-1] <= WIDEST
        and kernel_takes(query, key, value)
        and torch.get_num_threads() <= segments * query.shape[1]  # a thread takes a head of a segment
    )


def bounds_fit(bounds: Tensor, states: Tensor) -> bool:
    """Whether `cu_seq_lens_q` are those of states (tokens, heads, head): C code looks nowhere else."""
    return (
        bounds.dtype == torch.int32
        and int(bounds[0]) == 0
        and int(bounds[-1]) == len(states)
        and int(bounds.diff().min()) >= 0
    )


def attend_narrow(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scaling: float | None
) -> Any:
    """Attention by C code of what `are_narrow` and `bounds_fit` let through: (tokens, heads, head)."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _NarrowAttention.apply(query if scale == 1.0 else query * scale, key, value, bounds, longest)


class _NarrowAttention(torch.autograd.Function):
    """Attention within segments: queries that have been scaled, keys and values, (tokens, heads, head) each."""

    @staticmethod
    def forward(ctx, query, key, value, bounds, longest):
        query, key, value = (
            each if each.stride()[1:] == (each.shape[-1], 1) else each.contiguous() for each in (query, key, value)
        )
        _, heads, dim = query.shape
        ctx.values = dict(
            segments=len(bounds) - 1, longest=longest, heads=heads, dim=dim,
            query_row=query.stride(0), key_row=key.stride(0), value_row=value.stride(0),
        )  # fmt: skip
        bounds, output = bounds.contiguous(), torch.empty(query.shape, dtype=query.dtype)
        norms = torch.empty(query.shape[:2])
        ctx.save_for_backward(query, key, value, bounds, output, norms)
        values = {"query": query, "key": key, "value": value, "bounds": bounds, "output": output, "norms": norms}
        run_kernel("attention", Attention, query.dtype, **ctx.values, **values)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, of_output):
        names = ("query", "key", "value", "bounds", "output", "norms")
        values = dict(zip(names, ctx.saved_tensors, strict=True)) | {"of_output": of_output.contiguous()}
        dtype = values["query"].dtype
        found = {f"of_{name}": torch.empty(values["query"].shape, dtype=dtype) for name in names[:3]}
        run_kernel("attention_backward", Attention, dtype, **ctx.values, **values, **found)
        return *found.values(), None, None


@torch.compiler.disable
def each_segment(function: Callable[..., Sequence[Tensor]], bounds: Tensor, *states: Tensor) -> list[Tensor]:
    """A function of one segment after the other: of (1, tokens, ...) each, to the same; of all (batch, sequence, ...).

    `bounds` are `cu_seq_lens_q`. What belongs to a segment stays in the cache of a CPU meanwhile.
    """
    lengths, shape = bounds.diff().tolist(), states[0].shape[:2]
    segments = zip(*(each.flatten(0, 1).split(lengths) for each in states), strict=True)
    outputs = [function(*(part.unsqueeze(0) for part in segment)) for segment in segments]
    return [torch.cat(parts, dim=1).view(*shape, *parts[0].shape[2:]) for parts in zip(*outputs, strict=True)]


AttentionInterface.register("varlen", varlen_attention)
AttentionMaskInterface.register("varlen", sdpa_mask)
