# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""Edges of residues, worked on in blocks that fit into a CPU's cache."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .kernels import is_rewritten

BLOCK = 64  # residues whose edges a thread has in its cache, see `in_blocks`: a megabyte
WIDE_BLOCK = 32  # the same where edges are as wide as states


def in_blocks(device: torch.device) -> bool:
    """Whether edges are worked on in blocks of residues, `BLOCK` for each thread.

    A CPU is two to four times as fast on numbers that stay in its cache; other devices and compilers want all at once.
    """
    return device.type == "cpu" and not is_rewritten()


def block_size() -> int:
    """Residues of a block. Threads share an operation, in the same parts each time."""
    return BLOCK * torch.get_num_threads()


def blocks_of(residues: int, size: int | None = None) -> list[slice]:
    size = size or block_size()
    return [slice(start, min(start + size, residues)) for start in range(0, residues, size)]


def blockwise(
    function: Callable[..., Tensor], layers: Sequence[nn.Module], places: Tensor, sent: Tensor | None = None,
    along: Sequence[Tensor] = (), rows: int = 1, block: int = WIDE_BLOCK,
) -> Tensor:  # fmt: skip
    """`function` of a block of residues after the other: (rows, residues, ...).

    On a CPU a block fits into its cache, and nothing of an edge is kept for the backward pass, which computes it again.
    Elsewhere all residues are one block.

    Args:
        function: of a block, as a slice, then of what is sent to it (rows, n, k, width), then of each of `along` (rows,
            n, ...); gives (rows, n, ...).
        layers: whose parameters `function` uses.
        places: (residues, k), of senders.
        sent: (rows, senders, width), or None.
        along: (rows or 1, residues, ...) each.
        rows: that share a graph.
        block: residues of a block, for each thread.
    """
    tensors = [*([] if sent is None else [sent]), *along]
    if not in_blocks(places.device):
        return function(slice(None), *_parts(slice(None), places, tensors, sent is not None))
    blocks = blocks_of(len(places), max(1, block * torch.get_num_threads() // rows))
    if torch.is_grad_enabled():
        parameters = [each for layer in layers for each in layer.parameters()]
        options = function, places, blocks, len(tensors), sent is not None
        return _Blockwise.apply(*options, *tensors, *parameters)  # type: ignore[no-any-return]
    parts = [function(each, *_parts(each, places, tensors, sent is not None)) for each in blocks]
    return torch.cat(parts, dim=1)


def _parts(block: slice, places: Tensor, tensors: Sequence[Tensor], sends: bool) -> list[Tensor]:
    """Of tensors (rows, residues, ...) what belongs to a block; of the first one, if it is sent, the neighbors'."""
    if not sends:
        return [each[:, block] for each in tensors]
    near, (sent, *along) = places[block], tensors
    gathered = sent.index_select(1, near.flatten()).view(len(sent), *near.shape, -1)
    return [gathered, *_parts(block, places, along, False)]


class _Blockwise(torch.autograd.Function):
    """`blockwise` with gradients for the first `count` tensors and for parameters, which are the others."""

    @staticmethod
    def forward(ctx, function, places, blocks, count, sends, *tensors):
        ctx.function, ctx.blocks, ctx.count, ctx.sends = function, blocks, count, sends
        # A cached weight would belong to the graph of one block, or to none.
        autocast = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu"), False
        ctx.autocast = lambda: torch.autocast("cpu", *autocast)
        ctx.save_for_backward(places, *tensors)
        outputs, ctx.random = [], []  # what dropout draws is drawn again
        with ctx.autocast():
            for block in blocks:
                ctx.random.append(torch.get_rng_state())
                outputs.append(function(block, *_parts(block, places, tensors[:count], sends)))
        return torch.cat(outputs, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, of_output):
        places, *tensors = ctx.saved_tensors
        needed = ctx.needs_input_grad[-len(tensors) :]
        # Sums over many edges are in float32, whatever the messages are in.
        wide = [torch.promote_types(each.dtype, torch.float32) for each in tensors]
        sums: list[Any] = [None] * len(tensors)
        wanted = [number for number, need in enumerate(needed) if need]
        for number in wanted:
            sums[number] = torch.zeros_like(tensors[number], dtype=wide[number])
        with torch.random.fork_rng(devices=()):
            for block, random in zip(ctx.blocks, ctx.random, strict=True):
                torch.set_rng_state(random)
                parts = _parts(block, places, tensors[: ctx.count], ctx.sends)
                parts = [each.detach().requires_grad_(need) for each, need in zip(parts, needed, strict=False)]
                with torch.enable_grad(), ctx.autocast():
                    output = ctx.function(block, *parts)
                inputs = [*parts, *tensors[ctx.count :]]
                wrt = [inputs[number] for number in wanted]
                found = torch.autograd.grad(output, wrt, of_output[:, block], allow_unused=True)  # of silent adapters
                for number, gradient in zip(wanted, found, strict=True):
                    if number == 0 and ctx.sends:
                        sums[0].index_add_(1, places[block].flatten(), gradient.flatten(1, 2).to(wide[0]))
                    elif number < ctx.count:
                        sums[number][:, block] = gradient
                    elif gradient is not None:
                        sums[number] += gradient
        return (
            None,
            None,
            None,
            None,
            None,
            *(None if each is None else each.to(of.dtype) for each, of in zip(sums, tensors, strict=True)),
        )
