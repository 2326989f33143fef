# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""The same numbers in fewer passes over memory: linear layers as one product, rotary positions, points of attention."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.esm.modeling_esm import apply_rotary_pos_emb

from .coordinates import FeatureLinear, Frames
from .kernels import Points, is_rewritten, kernel_takes, run_kernel


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is what it was made as, so that its weights may be used without it.

    Not an adapter, not in eight bits, not on another device than the CPU until it is needed, not hooked.
    """
    if type(layer) not in (nn.Linear, FeatureLinear) or type(layer.weight) is not nn.Parameter:
        return False
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return not layer.weight.is_meta and not any(hooks)


def joint_linear(states: Tensor, layers: Sequence[Any], scales: Sequence[float] | None = None) -> Tensor:
    """What linear layers make of the same states, each times its scale, side by side: (..., hidden) -> (..., widths).

    By one product of matrices where all layers are plain, else by one layer after the other.
    """
    each = list(zip(layers, scales or [1.0] * len(layers), strict=True))
    kinds = {getattr(layer.weight, "dtype", None) for layer in layers}
    if torch.compiler.is_compiling() or len(kinds) > 1 or not all(map(is_plain, layers)):
        return torch.cat([_scaled(layer(states), scale) for layer, scale in each], dim=-1)
    weight = torch.cat([_scaled(layer.weight, scale) for layer, scale in each])
    biases = [
        layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else _scaled(layer.bias, scale)
        for layer, scale in each
    ]
    return nn.functional.linear(states.to(weight.dtype), weight, torch.cat(biases))


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
    if states.device.type != "cpu" or is_rewritten():
        return apply_rotary_pos_emb(states, states[:, :, :0], cos, sin, unsqueeze_dim=2)[0]
    half = states.shape[-1] // 2
    return _RotatePositions.apply(states, *(each[..., :half].unsqueeze(2).float() for each in (cos, sin)))


class PointSizes(NamedTuple):
    """Heads, the features of each head's states, its query points (as many as key points) and value points."""

    heads: int
    dim: int
    key_points: int
    value_points: int

    @property
    def wide(self) -> int:
        """Features that a head attends with: kernels take values as wide as keys, CUDA's in multiples of four."""
        return -(-max(self.dim + 3 * self.key_points + 2, self.dim + 3 * self.value_points + 1) // 4) * 4


def can_fuse_points(states: Tensor, frames: Frames) -> bool:
    """Whether `attention_inputs` and `attention_features` do; they have no gradients for coordinates."""
    return kernel_takes(states) and not (frames.rotations.requires_grad or frames.translations.requires_grad)


def attention_inputs(
    states: Tensor, strength: Tensor, missing: Tensor, positions: tuple[Tensor, Tensor] | None, frames: Frames,
    sizes: PointSizes,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As `InvariantPointAttention._attention_inputs`, of `states` (batch, sequence, widths), in one pass.

    `strength` and `missing` (heads,); returns queries, keys and values (batch, sequence, heads, features), float32.
    """
    cos, sin = (None, None) if positions is None else (each[..., : sizes.dim // 2].float() for each in positions)
    return _AttentionInputs.apply(
        states, strength.float(), missing.float(), cos, sin, _of_places(frames), sizes
    ).unbind()


def attention_features(attended: Tensor, frames: Frames, sizes: PointSizes) -> Tensor:
    """As `InvariantPointAttention._output_features`, of what was attended to (batch, sequence, heads, features)."""
    return _AttentionFeatures.apply(attended, _of_places(frames), sizes)


def _of_places(frames: Frames) -> dict[str, Any]:
    rotations, translations, observed = (each.contiguous() for each in frames)
    values = {"rotations": rotations.float(), "translations": translations.float(), "observed": observed}
    return values | {"places": observed.numel()}


class _AttentionInputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, strength, missing, cos, sin, places, sizes):
        states = states.contiguous()
        tokens, row = states.shape[:2].numel(), states.shape[-1]
        turning = {} if cos is None else {"cos": cos.contiguous(), "sin": sin.contiguous()}
        ctx.values = dict(
            **places, **turning, **sizes._asdict(), wide=sizes.wide, tokens=tokens, row=row,
            positions=1 if cos is None else cos.shape[:2].numel(),
        )  # fmt: skip
        ctx.save_for_backward(states, strength, missing)
        inputs = torch.empty(3, *states.shape[:2], sizes.heads, sizes.wide)
        values = {"states": states, "strength": strength, "missing": missing, "inputs": inputs}
        run_kernel("attention_inputs", Points, states.dtype, **ctx.values, **values)
        return inputs

    @staticmethod
    @once_differentiable
    def backward(ctx, of_inputs):
        states, strength, missing = ctx.saved_tensors
        states, of_heads = states.clone(), torch.empty(*states.shape[:2], len(strength), 2)
        values = {"states": states, "strength": strength, "missing": missing, "inputs": of_inputs.contiguous()}
        run_kernel("attention_inputs_backward", Points, states.dtype, **ctx.values, **values, of_heads=of_heads)
        return states, *of_heads.sum(dim=(0, 1)).unbind(dim=-1), None, None, None, None


class _AttentionFeatures(torch.autograd.Function):
    @staticmethod
    def forward(ctx, attended, places, sizes):
        attended = attended.contiguous()
        ctx.values = dict(**places, **sizes._asdict(), wide=sizes.wide, tokens=attended.shape[:2].numel())
        ctx.save_for_backward(attended)
        features = torch.empty(*attended.shape[:2], sizes.heads * (4 * sizes.value_points + 1))
        run_kernel("attention_features", Points, torch.float32, **ctx.values, attended=attended, features=features)
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx, of_features):
        (attended,) = ctx.saved_tensors
        of_attended = attended.clone()
        values = {"attended": of_attended, "features": of_features.contiguous()}
        run_kernel("attention_features_backward", Points, torch.float32, **ctx.values, **values)
        of_attended[..., : ctx.values["dim"]] = 0
        of_attended[..., ctx.values["dim"] + 3 * ctx.values["value_points"] + 1 :] = 0
        return of_attended, None, None
