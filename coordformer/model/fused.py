# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""The same numbers in fewer passes over memory: several linear layers as one product, rotary positions in one step."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.esm.modeling_esm import apply_rotary_pos_emb

from .coordinates import FeatureLinear


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is what it was made as, so that its weights may be used without it.

    Not an adapter, not in eight bits, not on another device than the CPU until it is needed, not hooked.
    """
    if type(layer) not in (nn.Linear, FeatureLinear) or type(layer.weight) is not nn.Parameter:
        return False
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return not layer.weight.is_meta and not any(hooks)


def linear_at_once(states: Tensor, layers: Sequence[nn.Module], scales: Sequence[float] | None = None) -> list[Tensor]:
    """What linear layers make of the same states, each times its scale: (..., hidden) -> (..., width) each.

    By one product of matrices where all layers are plain, the results are views of it; else by the layers.
    """
    scales = scales or [1.0] * len(layers)
    kinds = {getattr(layer.weight, "dtype", None) for layer in layers}
    if torch.compiler.is_compiling() or len(kinds) > 1 or not all(map(is_plain, layers)):
        return [_scaled(layer(states), scale) for layer, scale in zip(layers, scales, strict=True)]
    weight = torch.cat([_scaled(layer.weight, scale) for layer, scale in zip(layers, scales, strict=True)])
    biases = [
        layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else _scaled(layer.bias, scale)
        for layer, scale in zip(layers, scales, strict=True)
    ]
    products = nn.functional.linear(states.to(weight.dtype), weight, torch.cat(biases))
    return list(products.split([len(layer.weight) for layer in layers], dim=-1))


def _scaled(values: Tensor, scale: float) -> Tensor:
    return values if scale == 1.0 else values * scale


class _RotatePositions(torch.autograd.Function):
    """Rotary positions (Su et al. 2021) of (batch, sequence, heads, head), in float32: two passes, nothing kept."""

    @staticmethod
    def forward(ctx, states, cos, sin):
        ctx.save_for_backward(cos, sin)
        ctx.dtype = states.dtype
        return _turn(states, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx, of_turned):
        cos, sin = ctx.saved_tensors
        return _turn(of_turned, cos, -sin).to(ctx.dtype), None, None


def _turn(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = states.float().chunk(2, dim=-1)
    turned = torch.empty(states.shape, dtype=torch.float32)
    to_first, to_second = turned.chunk(2, dim=-1)
    torch.mul(first, cos, out=to_first).addcmul_(second, sin, value=-1.0)
    torch.mul(second, cos, out=to_second).addcmul_(first, sin)
    return turned


def rotate_positions(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of queries or keys (batch, sequence, heads, head); `cos` and `sin` as ESM has them.

    As Transformers' function, which is used elsewhere than on a CPU, where a dozen passes over memory take their time.
    """
    if states.device.type != "cpu" or torch.compiler.is_compiling():
        return apply_rotary_pos_emb(states, states[:, :, :0], cos, sin, unsqueeze_dim=2)[0]
    half = states.shape[-1] // 2
    return _RotatePositions.apply(states, *(each[..., :half].unsqueeze(2).float() for each in (cos, sin)))
