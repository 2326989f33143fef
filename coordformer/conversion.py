"""Start a Coordformer from the weights of another model."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, EsmForMaskedLM, EsmModel, PreTrainedModel

from .configuration_coordformer import CoordformerConfig
from .modeling_coordformer import CoordformerForMaskedLM

# What a config says of the checkpoint it came from and not of the model.
_PROVENANCE = ("model_type", "architectures", "transformers_version", "_name_or_path", "dtype")


def from_esm(name_or_path_or_model: str | Path | PreTrainedModel, **overrides: Any) -> CoordformerForMaskedLM:
    """Make a Coordformer of an ESM-2 checkpoint: same weights, coordinate embedding at zero.

    At first it predicts what ESM-2 predicts, whatever the coordinates; training lets it use them.

    Args:
        name_or_path_or_model: a Hub name such as `"facebook/esm2_t6_8M_UR50D"`, a folder, or an `EsmForMaskedLM` or
            `EsmModel`. An `EsmModel` has no language-model head: the head is new then.
        **overrides: fields of `CoordformerConfig` that leave the shapes of ESM's weights alone, for example
            `coordinate_embedding="quadratic"` or `coordinate_atoms=("N", "CA", "C")`.

    Returns:
        A `CoordformerForMaskedLM` in evaluation mode, in the dtype of the source. To put another head on it, save it
        and load the folder with that head's class.

    Raises:
        ValueError: the source is no ESM model, or an override does not fit its weights.

    Example:

    >>> from transformers import EsmConfig, EsmForMaskedLM
    >>> small = EsmConfig(vocab_size=33, pad_token_id=1, mask_token_id=32, hidden_size=32, num_hidden_layers=1,
    ...                   num_attention_heads=4, intermediate_size=64, position_embedding_type="rotary")
    >>> from_esm(EsmForMaskedLM(small)).config.coordinate_embedding
    'linear'
    """
    source = name_or_path_or_model
    if not isinstance(source, PreTrainedModel):
        kind = AutoConfig.from_pretrained(source).model_type
        if kind != "esm":
            raise ValueError(f"{source} holds a {kind} model; give an ESM-2 checkpoint.")
        source = EsmForMaskedLM.from_pretrained(source)
    if not isinstance(source, (EsmForMaskedLM, EsmModel)):
        raise ValueError(f"{type(source).__name__} cannot be converted; give an EsmForMaskedLM or an EsmModel.")
    known = {field.name for field in dataclasses.fields(CoordformerConfig)}
    if unknown := sorted(set(overrides) - known):
        raise ValueError(f"{', '.join(unknown)}: no field of CoordformerConfig; it has {', '.join(sorted(known))}.")

    fields = {name: value for name, value in source.config.to_dict().items() if name not in _PROVENANCE}
    # ESM's configs may leave special tokens open; its tokenizer opens a chain with <cls>, and so does the default.
    fields = {name: value for name, value in fields.items() if value is not None}
    # ESM computes GELU by its own formula, which differs from torch's in the last bit of every layer.
    fields["hidden_act"] = "gelu_python"
    fields["attn_implementation"] = source.config._attn_implementation
    fields["contact_head"] = True
    model = CoordformerForMaskedLM(CoordformerConfig(**{**fields, **overrides}))

    weights = {}
    for name, tensor in source.state_dict().items():
        if "pooler." in name or ("contact_head." in name and not model.config.contact_head):
            continue
        if "contact_head." in name:
            weights["coordformer.contact_head." + name.rpartition(".")[2]] = tensor
        elif name.startswith("lm_head."):
            weights[name.replace("lm_head.bias", "lm_head.decoder.bias")] = tensor
        else:
            weights["coordformer.esm." + name.removeprefix("esm.")] = tensor
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(
            f"The overrides {overrides} do not fit the weights of {type(source).__name__}: {error}"
        ) from error
    new = ["coordformer.coordinate_embedding.", "coordformer.distance_bias."]
    if not any(name.startswith("lm_head.") for name in weights):
        new.append("lm_head.")
    lost = unexpected + [name for name in missing if not name.startswith(tuple(new))]
    if lost:
        raise ValueError(
            f"The overrides {overrides} do not fit the weights of {type(source).__name__}: {', '.join(lost)}."
        )
    if model.coordformer.coordinate_embedding is not None:
        for parameter in model.coordformer.coordinate_embedding.parameters():
            torch.nn.init.zeros_(parameter)
    model.to(dtype=source.dtype)  # type: ignore[call-arg]
    return model.eval()
