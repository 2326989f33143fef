# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""Configuration of Coordformer models."""

from huggingface_hub.dataclasses import strict
from transformers import EsmConfig
from transformers.activations import ACT2FN

COORDINATE_EMBEDDINGS = ("linear", "quadratic", "local", "none")
COORDINATE_INITS = ("normal", "gaussian")
POSITION_EMBEDDINGS = ("rotary", "absolute", "sinusoidal", "none")
MESSAGE_TYPES = ("plain", "gated")
LM_HEADS = ("esm", "linear")
CLASSIFIER_POOLINGS = ("cls", "mean")

# Where the classes are in a saved folder, for `trust_remote_code=True`: any head can be put on any checkpoint.
AUTO_MAP = {
    "AutoConfig": "configuration_coordformer.CoordformerConfig",
    "AutoModel": "modeling_coordformer.CoordformerModel",
    "AutoModelForMaskedLM": "modeling_coordformer.CoordformerForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_coordformer.CoordformerForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_coordformer.CoordformerForTokenClassification",
}


@strict
class CoordformerConfig(EsmConfig):
    r"""An ESM encoder that also reads coordinates.

    Every field of `transformers.EsmConfig` keeps its meaning; the defaults are those of ESM-2's vocabulary and
    of the paper (no dropout). The fields below are added.

    Args:
        coordinate_embedding (`str`, defaults to `"linear"`):
            What the coordinates are lifted to before the linear embedding: `"linear"` (x; the paper's, section 2),
            `"quadratic"` (x and |x|^2), `"local"` (those of the neighbours along the chain, in the residue's own frame;
            invariant) or `"none"` (no embedding; without `distance_bias` and `attention_points` the model without
            structure).
        coordinate_init (`str`, defaults to `"normal"`):
            How a new model starts: `"normal"`, as every weight, or `"gaussian"`: each head of the first layer attends
            with a Gaussian of distance from the start, of widths that spread over the heads; needs the `"quadratic"`
            embedding.
        distance_bias (`int`, defaults to 0):
            Number of distances between which each head's additive attention bias, a function of |xi - xj| that is the
            same in all layers, is linear; 0: no bias. Time and memory grow with the square of the length.
        attention_points (`int`, defaults to 0):
            Number of points in space with which each head attends beside its queries, keys and values, in the frames of
            the residues (invariant point attention); 0: none. Time grows with the square of the length, memory with the
            length.
        message_neighbours (`int`, defaults to 0):
            Number of residues nearest in space whose messages each residue hears in every layer, beside its attention
            with points; 0: none. Time and memory grow with the number.
        message_type (`str`, defaults to `"plain"`):
            `"plain"`: messages half as wide as the hidden states, of one layer on both states and the relation of the
            pair; `"gated"`: as wide as the hidden states and multiplied by a gate of the sender and the relation; the
            relation then also holds the distances between the residues beside both along the chain. More accurate, for
            up to six times the memory of messages in training.
        coordinate_atoms (`tuple[str, ...]`, defaults to `("CA",)`):
            The atoms of a residue whose coordinates the model reads, in the order of the `atoms` axis of `coords`.
        coordinate_dim (`int`, defaults to 3):
            Number of spatial dimensions.
        coordinate_scale (`int | float`, defaults to 16):
            Length in Å that becomes 1 inside the model.
        position_embedding_type (`str`, defaults to `"rotary"`):
            `"rotary"`, `"absolute"` (learned), `"sinusoidal"` (fixed) or `"none"`: without positions the encoder is
            equivariant to permutations.
        hidden_act (`str`, defaults to `"gelu"`):
            Activation of the feed-forward layers, any name that Transformers knows. ESM-2 writes GELU out:
            `"gelu_python"` is its formula, a fifth slower than `"gelu"`, which differs from it in the last bits.
        contact_head (`bool`, defaults to `False`):
            Whether the encoder carries a logistic regression of contacts on its attention maps; `from_esm` brings
            ESM-2's, `CoordformerForContactPrediction` trains one.
        lm_head (`str`, defaults to `"esm"`):
            `"esm"`: dense, GELU, LayerNorm, then the (tied) vocabulary; `"linear"`: one untied layer with a bias (the
            paper's).
        classifier_pooling (`str`, defaults to `"cls"`):
            What the head of `CoordformerForSequenceClassification` reads of a chain: `"cls"`, its first token (the
            paper's, section 4), or `"mean"`, the mean over its residues.
        sequence_encoder (`EsmConfig`, *optional*):
            A frozen ESM-2 in front (the paper's section 5): the encoder reads its last hidden states, through a linear
            connector, in place of token embeddings. Needs the linear head.

    Example:

    ```python
    >>> from coordformer import CoordformerConfig
    >>> CoordformerConfig(hidden_size=128, num_attention_heads=4).coordinate_atoms
    ('CA',)

    ```
    """

    model_type = "coordformer"
    _auto_class = "AutoConfig"  # Transformers saves the code beside it

    vocab_size: int = 33
    mask_token_id: int | None = 32
    pad_token_id: int = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    hidden_dropout_prob: int | float = 0.0
    attention_probs_dropout_prob: int | float = 0.0
    layer_norm_eps: float = 1e-5
    position_embedding_type: str | None = "rotary"
    emb_layer_norm_before: bool | None = False

    coordinate_embedding: str = "linear"
    coordinate_atoms: tuple[str, ...] | list[str] = ("CA",)
    coordinate_dim: int = 3
    coordinate_scale: int | float = 16
    coordinate_init: str = "normal"
    distance_bias: int = 0
    attention_points: int = 0
    message_neighbours: int = 0
    message_type: str = "plain"
    hidden_act: str = "gelu"
    lm_head: str = "esm"
    classifier_pooling: str = "cls"
    sequence_encoder: EsmConfig | dict | None = None
    contact_head: bool = False

    def __post_init__(self, **kwargs):
        # JSON knows neither tuples nor a default: a config equals its reloaded self.
        self.coordinate_atoms = tuple(self.coordinate_atoms)
        if self.position_embedding_type is None:
            self.position_embedding_type = "none"
        if isinstance(self.sequence_encoder, dict):
            self.sequence_encoder = EsmConfig(**self.sequence_encoder)
        if self.lm_head == "linear":
            self.tie_word_embeddings = False
        super().__post_init__(**kwargs)

    def save_pretrained(self, save_directory, push_to_hub=False, **kwargs):
        # Transformers maps the one class that is being saved, and keeps what a loaded config said of the others.
        self.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, push_to_hub, **kwargs)

    def validate_architecture(self):
        """Part of `@strict` validation: called when a config is made."""
        for name, allowed in (
            ("coordinate_embedding", COORDINATE_EMBEDDINGS),
            ("coordinate_init", COORDINATE_INITS),
            ("position_embedding_type", POSITION_EMBEDDINGS),
            ("message_type", MESSAGE_TYPES),
            ("lm_head", LM_HEADS),
            ("classifier_pooling", CLASSIFIER_POOLINGS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; choose one of {', '.join(allowed)}.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` is {self.hidden_act!r}; choose one of {', '.join(sorted(ACT2FN))}.")
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least 1.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` ({self.hidden_size}) must be a multiple of `num_attention_heads` "
                f"({self.num_attention_heads})."
            )
        if self.position_embedding_type == "rotary" and (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"Rotary positions need an even head size; `hidden_size / num_attention_heads` is "
                f"{self.hidden_size // self.num_attention_heads}."
            )
        if self.coordinate_dim < 1:
            raise ValueError(f"`coordinate_dim` is {self.coordinate_dim}; it must be at least 1.")
        if not self.coordinate_scale > 0:
            raise ValueError(f"`coordinate_scale` is {self.coordinate_scale}; it must be a positive length in Å.")
        if self.coordinate_init == "gaussian":
            if self.coordinate_embedding != "quadratic":
                raise ValueError(
                    '`coordinate_init="gaussian"` reads |x|^2 off the embedding: `coordinate_embedding` must be '
                    f'"quadratic", not {self.coordinate_embedding!r}.'
                )
            head_size, needed = self.hidden_size // self.num_attention_heads, self.coordinate_dim + 1
            if head_size < needed:
                raise ValueError(
                    f'`coordinate_init="gaussian"` needs heads of at least `coordinate_dim` + 1 = {needed} features; '
                    f"`hidden_size / num_attention_heads` is {head_size}."
                )
        if self.sequence_encoder is not None and (self.lm_head != "linear" or self.coordinate_init != "normal"):
            raise ValueError(
                "With a `sequence_encoder` there is no token embedding to share or to start from: `lm_head` must be "
                f'"linear" and `coordinate_init` "normal", not {self.lm_head!r} and {self.coordinate_init!r}.'
            )
        if self.distance_bias < 0 or self.distance_bias == 1:
            raise ValueError(f"`distance_bias` is {self.distance_bias}; give at least 2 values, or 0 for no bias.")
        if self.attention_points < 0:
            raise ValueError(f"`attention_points` is {self.attention_points}; give a number of points, or 0 for none.")
        if self.message_neighbours < 0:
            raise ValueError(
                f"`message_neighbours` is {self.message_neighbours}; give a number of residues, or 0 for none."
            )
        if self.message_neighbours and not self.attention_points:
            raise ValueError(
                f"`message_neighbours` is {self.message_neighbours}, but messages belong to attention with points: set "
                "`attention_points`, too."
            )
        if (self.attention_points or self.coordinate_embedding == "local") and self.coordinate_dim != 3:
            raise ValueError(
                "Residues have frames in three dimensions alone: with `attention_points` or `coordinate_embedding` "
                f'"local", `coordinate_dim` must be 3, not {self.coordinate_dim}.'
            )
        if self.coordinate_embedding == "local" and self.position_embedding_type == "none":
            raise ValueError(
                '`coordinate_embedding="local"` reads the neighbours along the chain, which `position_embedding_type='
                '"none"` leaves without an order.'
            )
        if not self.coordinate_atoms or len(set(self.coordinate_atoms)) != len(self.coordinate_atoms):
            raise ValueError(
                f"`coordinate_atoms` is {self.coordinate_atoms}; name each atom once, for example ('N', 'CA', 'C')."
            )
        if self.is_decoder or self.add_cross_attention:
            raise ValueError("Coordformer is an encoder; `is_decoder` and `add_cross_attention` must be False.")


__all__ = ["CoordformerConfig"]
