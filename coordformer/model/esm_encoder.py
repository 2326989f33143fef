# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""ESM's encoder as Coordformer's: Transformers' own `EsmModel`, given `inputs_embeds`."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EsmConfig, EsmModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithCrossAttentions
from transformers.models.esm.modeling_esm import EsmEncoder

from .configuration_coordformer import CoordformerConfig
from .coordinates import FeatureLinear
from .packing import take_tokens
from .structure_layers import InvariantPointAttention, SelfAttention


class FeedForwardInput(nn.Module):
    """First half of a feed-forward layer; stands in for ESM's, which knows no activation but its own GELU."""

    def __init__(self, config: CoordformerConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.activation(self.dense(hidden_states))


class LayerStack(EsmEncoder):
    """ESM's layers, of which the last one may be computed for some tokens alone."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, attention_mask: Any = None, *, kept_tokens: Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithCrossAttentions:
        """As ESM's; with `kept_tokens` (batch, kept) the states of these alone: (batch, kept, hidden)."""
        if kept_tokens is None:
            return super().forward(hidden_states, attention_mask, **kwargs)
        if not kept_tokens.numel() or not self._can_keep_some(attention_mask):
            outputs = super().forward(hidden_states, attention_mask, **kwargs)
            outputs.last_hidden_state = take_tokens(outputs.last_hidden_state, kept_tokens)
            return outputs
        *layers, last = list[Any](self.layer)
        for layer in layers:
            hidden_states = layer(hidden_states, attention_mask=attention_mask, **kwargs)
        attention = last.attention
        normed = attention.LayerNorm(hidden_states)
        attended, _ = attention.self(normed, attention_mask=attention_mask, kept_tokens=kept_tokens, **kwargs)
        states = attention.output(attended, take_tokens(hidden_states, kept_tokens))
        states = self.emb_layer_norm_after(last.feed_forward_chunk(states))
        return BaseModelOutputWithCrossAttentions(last_hidden_state=states)

    def _can_keep_some(self, attention_mask: Any) -> bool:
        """Not with gradients, kernels that know segments by their bounds, or what waits for a layer to be called."""
        if torch.is_grad_enabled() or not len(self.layer) or self.config._attn_implementation not in ("sdpa", "eager"):
            return False
        last: Any = self.layer[-1]
        hooked = any(
            module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook")
            for module in (last, last.attention)
        )
        return not hooked and (attention_mask is None or torch.is_tensor(attention_mask))


class CoordformerEncoder(EsmModel):
    """ESM's encoder with any activation, with invariant point attention, and without poolers and heads."""

    def __init__(self, config: CoordformerConfig):
        super().__init__(config, add_pooling_layer=False)
        # ESM's needs all attention maps at once.
        self.contact_head = None  # type: ignore[assignment]
        self.encoder.__class__ = LayerStack
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


def sequence_encoder_config(esm: EsmConfig) -> CoordformerConfig:
    """Of an ESM-2 as a Coordformer without coordinates, which knows segments; what is frozen has no dropout."""
    fields = {name: value for name, value in esm.to_dict().items() if value is not None and name != "model_type"}
    fields |= dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    return CoordformerConfig(**fields | {"coordinate_embedding": "none", "hidden_act": "gelu_python"})


def sinusoidal_positions(position_ids: Tensor, hidden_size: int) -> Tensor:
    """Fixed positions of Vaswani et al. 2017, section 3.5: (batch, sequence) -> (batch, sequence, hidden)."""
    # Rounded as in the authors' table: another order of these operations shows 1,000 residues on.
    pairs = torch.arange(0, hidden_size, 2, device=position_ids.device, dtype=torch.float32)
    angles = position_ids.unsqueeze(-1).float() * torch.exp(-pairs * math.log(10000.0) / hidden_size)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., :hidden_size]
