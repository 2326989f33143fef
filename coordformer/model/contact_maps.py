# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""Contacts from attention maps: ESM's logistic regression (Rao et al. 2021), summed while the encoder runs.

No attention map is kept: memory grows with the square of the length, not with layers and heads.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutput

from .configuration_coordformer import CoordformerConfig


def reduce_maps(
    query: Tensor, key: Tensor, attention_mask: Tensor | None, residue_mask: Tensor, weights: Tensor, scaling: float
) -> Tensor:
    """Sum of a layer's attention maps by `weights` (heads,), each made symmetric and corrected for its average product.

    One head after the other, so that no more than one map is in memory. The correction is that of Dunn et al. 2008, as
    ESM's contact head applies it (Rao et al. 2021). `query` and `key` are (batch, heads, sequence, head), float32 or
    half; `attention_mask` is additive or boolean, broadcastable to (batch, heads, sequence, sequence), or None; tokens
    outside `residue_mask` (batch, sequence) do not take part. Returns (batch, sequence, sequence), float32.
    """
    pairs = residue_mask.unsqueeze(2) & residue_mask.unsqueeze(1)
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

    weight: Tensor
    bias: Tensor

    def __init__(self, config: CoordformerConfig, trained: bool = False):
        super().__init__()
        for name, size in (("weight", (1, config.num_hidden_layers * config.num_attention_heads)), ("bias", (1,))):
            if trained:
                self.register_parameter(name, nn.Parameter(torch.zeros(size)))
            else:
                self.register_buffer(name, torch.zeros(size))


class ContactLogits:
    """Logits of contacts, summed over layers and heads while the encoder runs.

    Handed down to each layer, which calls `add`: nothing of the model changes, so that threads may share one.
    """

    def __init__(self, layers: Sequence[nn.Module], head: ContactHead, residue_mask: Tensor, padding: Tensor | None):
        self.weights = dict(zip(layers, head.weight.view(len(layers), -1), strict=True))
        self.residue_mask = residue_mask
        self.padding = None if padding is None else padding.bool()[:, None, None, :]
        self.total: Any = 0.0

    def add(self, layer: Any, query: Tensor, key: Tensor, attention_mask: Any) -> None:
        """Take in a layer's queries and keys (batch, heads, sequence, head), and its mask, if this is a dense one."""
        mask = attention_mask if torch.is_tensor(attention_mask) and attention_mask.dim() == 4 else self.padding
        # Made again in the backward pass, of queries and keys, rather than kept.
        reduce = partial(checkpoint, reduce_maps, use_reentrant=False) if torch.is_grad_enabled() else reduce_maps
        weights = self.weights[layer].to(query.device)
        self.total = self.total + reduce(query, key, mask, self.residue_mask, weights, layer.scaling)


def contact_logits(
    model: Any, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs
) -> tuple[Tensor, Tensor, BaseModelOutput]:
    """Logits of contacts by a `CoordformerModel` and its contact head (paper, section 6).

    Takes the model's inputs, one chain in each row, padded on the right; crops the first token and the last position.

    Returns:
        Logits (batch, residues, residues), float32; which pairs are of residues, of the same shape; the model's output.

    Raises:
        ValueError: the model has no contact head; rows are packed; or gradient checkpointing is on in training.
    """
    if model.contact_head is None:
        raise ValueError(
            "The model has no contact head; train a CoordformerForContactPrediction, or start with `from_esm` from "
            "a checkpoint that has one."
        )
    if {"sequence_id", "segment_ids", "cu_seq_lens_q"} & kwargs.keys():
        raise ValueError("Contacts are predicted of padded rows with one chain each; leave `sequence_id` out.")
    if model.training and model.esm.encoder.gradient_checkpointing:
        raise ValueError("Contacts are made again in the backward pass already; turn gradient checkpointing off.")
    if not isinstance(model.contact_head.weight, nn.Parameter) and not model.contact_head.weight.any():
        raise ValueError(
            "The contact head was never trained, so that every pair would have the probability 0.5; train a "
            "CoordformerForContactPrediction, or load a checkpoint that has a head."
        )
    residue_mask = model.residue_mask(input_ids, attention_mask, input_ids.shape, input_ids.device)
    layers = [layer.attention.self for layer in model.esm.encoder.layer]
    contacts = ContactLogits(layers, model.contact_head, residue_mask, attention_mask)
    outputs = model(input_ids=input_ids, attention_mask=attention_mask, contacts=contacts, **kwargs)
    logits = contacts.total[:, 1:-1, 1:-1] + model.contact_head.bias.float()
    residue_mask = residue_mask[:, 1:-1]
    return logits, residue_mask.unsqueeze(2) & residue_mask.unsqueeze(1), outputs
