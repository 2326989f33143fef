# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""ESM's encoder as Coordformer's: Transformers' own `EsmModel`, given `inputs_embeds`."""

import math

import torch
from torch import Tensor, nn
from transformers import EsmModel
from transformers import initialization as init
from transformers.activations import ACT2FN

from .configuration_coordformer import CoordformerConfig
from .coordinates import FeatureLinear
from .structure_layers import InvariantPointAttention, SelfAttention


class FeedForwardInput(nn.Module):
    """First half of a feed-forward layer; stands in for ESM's, which knows no activation but its own GELU."""

    def __init__(self, config: CoordformerConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.activation(self.dense(hidden_states))


class CoordformerEncoder(EsmModel):
    """ESM's encoder with any activation, with invariant point attention, and without poolers and heads."""

    def __init__(self, config: CoordformerConfig):
        super().__init__(config, add_pooling_layer=False)
        # ESM's needs all attention maps at once.
        self.contact_head = None  # type: ignore[assignment]
        for number, layer in enumerate(self.encoder.layer):
            layer.intermediate = FeedForwardInput(config)
            if config.num_qk_points:
                layer.attention.self = InvariantPointAttention(config, number)  # type: ignore[union-attr]
            else:
                # Another class for the same weights, which a seed then gives as it always did.
                layer.attention.self.__class__ = SelfAttention  # type: ignore[union-attr,assignment]

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, InvariantPointAttention):
            init.copy_(module.log_sigma, module.log_sigmas(3.0, 48.0))
            init.constant_(module.missing, -1.0)
        elif isinstance(module, FeatureLinear):
            init.normal_(module.weight, std=self.config.initializer_range)
            init.zeros_(module.bias)


def sinusoidal_positions(position_ids: Tensor, hidden_size: int) -> Tensor:
    """Fixed positions of Vaswani et al. 2017, section 3.5: (batch, sequence) -> (batch, sequence, hidden)."""
    # Rounded as in the authors' table: another order of these operations shows 1,000 residues on.
    pairs = torch.arange(0, hidden_size, 2, device=position_ids.device, dtype=torch.float32)
    angles = position_ids.unsqueeze(-1).float() * torch.exp(-pairs * math.log(10000.0) / hidden_size)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., :hidden_size]
