# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""Configuration of Coordformer models."""

from huggingface_hub.dataclasses import strict
from transformers import EsmConfig
from transformers.activations import ACT2FN

CHOICES = {
    "encoder_type": ("esm", "proteinmpnn"),
    "coordinate_embedding": ("linear", "quadratic", "local_frame", "none"),
    "coordinate_init": ("normal", "gaussian"),
    "position_embedding_type": ("rotary", "absolute", "sinusoidal", "none"),
    "lm_head": ("esm", "linear"),
    "classifier_pooling": ("cls", "mean"),
}
BACKBONE = ("N", "CA", "C", "O")
# Fields of ESM's encoder and of its coordinates, with the values of an encoder that has nothing of it.
PROTEINMPNN_FIELDS = {
    "coordinate_embedding": "none",
    "position_embedding_type": "none",
    "lm_head": "linear",
    "classifier_pooling": "mean",
    "coordinate_init": "normal",
    "coordinate_dim": 3,
    "num_distance_bins": 0,
    "num_qk_points": 0,
    "num_v_points": 0,
    "message_gating": False,
    "message_attention": False,
    "edge_updates": False,
    "token_dropout": False,
    "emb_layer_norm_before": False,
    "sequence_encoder": None,
    "contact_head": False,
}
# Where the classes are in a saved folder, for `trust_remote_code=True`: any head can be put on any checkpoint.
AUTO_MAP = {
    "AutoConfig": "configuration_coordformer.CoordformerConfig",
    "AutoModel": "modeling_coordformer.CoordformerModel",
    "AutoModelForMaskedLM": "modeling_coordformer.CoordformerForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_coordformer.CoordformerForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_coordformer.CoordformerForTokenClassification",
}


def check_noise_level(noise_level: float) -> None:
    """Raise a ValueError unless it is a standard deviation, Å."""
    if not 0 <= noise_level < float("inf"):
        raise ValueError(f"`noise_level` is {noise_level} Å; it is a standard deviation, 0 or more.")


@strict
class CoordformerConfig(EsmConfig):
    r"""An ESM encoder that also reads coordinates.

    Every field of `transformers.EsmConfig` keeps its meaning; the defaults are those of ESM-2's vocabulary and of the
    paper (no dropout). The fields below are added; their types and defaults are in the class.

    Args:
        encoder_type: `"esm"`, or `"proteinmpnn"`: the layers of ProteinMPNN (Dauparas et al. 2022) in place of ESM's,
            see `proteinmpnn`. They read C-alphas or N, CA, C and O, `num_neighbors` counts the residue itself, and
            `lm_head` is `"linear"`, `classifier_pooling` `"mean"`; what else is said of attention, positions and
            coordinates does not apply.
        num_decoder_layers: layers of ProteinMPNN's decoder; `num_hidden_layers` are those of its encoder.
        invariant_quaternions: whether ProteinMPNN's layers on C-alphas read how a neighbor's frame is turned in the
            residue's own frame, which is invariant to rotations. In the published models it is in the axes of the file;
            their weights predict alike with both.
        partial_backbones: whether of N, CA, C and O residues may lack any. ESM's layers, which then need
            `num_neighbors`, read C-alphas as a model of these alone does, with frames of the trace, and to edges are
            added the distances of all other atoms that are there. ProteinMPNN's read complete backbones as without
            this field; between residues that lack atoms and others what ProteinMPNN for C-alphas reads, and where the
            C-alpha is missing, too, the letters of the residues beside it along the chain.
        noise_conditioning: whether edges are told how exact coordinates are: the input `noise_level`. More than 0.5 Å
            counts as 0.5. ESM's layers need `num_neighbors`.
        noise_level: standard deviation of noise on coordinates, Å, where that input is not given. 0 stands for
            experiments and predictions, 0.2 suits backbones that were designed or modeled without their sequence.
        coordinate_embedding: what the coordinates are lifted to before the linear embedding: `"linear"` (x; the
            paper's, section 2), `"quadratic"` (x and |x|^2), `"local_frame"` (those of the neighbors along the chain,
            in the backbone frame of the residue; invariant) or `"none"` (no embedding; without `num_distance_bins` and
            `num_qk_points` the model without structure).
        coordinate_atoms: the atoms of a residue whose coordinates the model reads, in the order of the `atoms` axis.
        coordinate_dim: number of spatial dimensions.
        coordinate_scale: length in Å that becomes 1 inside the model.
        coordinate_init: how a new model starts: `"normal"`, as every weight, or `"gaussian"`: each head of the first
            layer attends with a Gaussian of distance, of widths that spread over the heads; needs `"quadratic"`.
        num_distance_bins: number of distances between which each head's additive attention bias, a function of
            |xi - xj| that is the same in all layers, is linear; 0: no bias. Time and memory grow with the square of the
            length.
        num_qk_points: query and key points of each head in invariant point attention (AlphaFold, supplementary
            algorithm 22), beside its queries and keys; 0: ordinary attention. Time grows with the square of the length,
            memory with the length.
        num_v_points: value points of each head; None: as many as `num_qk_points`.
        num_neighbors: k of the k-nearest-neighbor graph over which residues pass messages in every layer, beside
            invariant point attention; 0: none. Time and memory grow with the number.
        message_gating: whether messages are as wide as the hidden states and multiplied by a gate of the sender and the
            edge features, which then also hold the distances between the residues beside both along the chain; else
            half as wide, without a gate. More accurate, for up to six times the memory of messages in training.
        message_attention: whether the mean over the messages of a residue is weighted, by attention of as many heads as
            the others have.
        edge_updates: whether from layer to layer the edge features change with the states of both residues. They then
            depend on letters, and no two rows share them.
        position_embedding_type: `"rotary"`, `"absolute"` (learned), `"sinusoidal"` (fixed) or `"none"`: without
            positions the encoder is equivariant to permutations.
        hidden_act: activation of the feed-forward layers, any name that Transformers knows. `"gelu_python"` is ESM-2's
            formula, a fifth slower than `"gelu"`, which differs from it in the last bits.
        lm_head: `"esm"`: dense, GELU, LayerNorm, then the (tied) vocabulary; `"linear"`: one untied layer with a bias
            (the paper's).
        classifier_pooling: what the head of `CoordformerForSequenceClassification` reads of a chain: `"cls"`, its first
            token (the paper's, section 4), or `"mean"`, the mean over its residues.
        sequence_encoder: a frozen ESM-2 in front (the paper's section 5): the encoder reads its last hidden states,
            through a linear connector, in place of token embeddings. Needs the linear head.
        contact_head: whether the encoder carries a logistic regression of contacts on its attention maps; `from_esm`
            brings ESM-2's, `CoordformerForContactPrediction` trains one.

    Example:

    ```python
    >>> from coordformer import CoordformerConfig
    >>> CoordformerConfig(hidden_size=128, num_attention_heads=4).coordinate_atoms
    ('CA',)

    ```
    """

    model_type = "coordformer"
    # Names of version 0.1.0, which its folders have; `__post_init__` reads the fields whose values changed, too.
    attribute_map = {"distance_bias": "num_distance_bins", "message_neighbours": "num_neighbors"}
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

    encoder_type: str = "esm"
    num_decoder_layers: int = 3
    invariant_quaternions: bool = False
    partial_backbones: bool = False
    noise_conditioning: bool = False
    noise_level: int | float = 0.0
    coordinate_embedding: str = "linear"
    coordinate_atoms: tuple[str, ...] | list[str] = ("CA",)
    coordinate_dim: int = 3
    coordinate_scale: int | float = 16
    coordinate_init: str = "normal"
    num_distance_bins: int = 0
    num_qk_points: int = 0
    num_v_points: int | None = None
    num_neighbors: int = 0
    message_gating: bool = False
    message_attention: bool = False
    edge_updates: bool = False
    hidden_act: str = "gelu"
    lm_head: str = "esm"
    classifier_pooling: str = "cls"
    sequence_encoder: EsmConfig | dict | None = None
    contact_head: bool = False

    def __post_init__(self, **kwargs):
        if (points := kwargs.pop("attention_points", None)) is not None:
            self.num_qk_points = points
        if (kind := kwargs.pop("message_type", None)) is not None:
            self.message_gating = kind == "gated"
        if self.coordinate_embedding == "local":
            self.coordinate_embedding = "local_frame"
        if self.num_v_points is None:
            self.num_v_points = self.num_qk_points
        # JSON knows neither tuples nor a default: a config equals its reloaded self.
        self.coordinate_atoms = tuple(self.coordinate_atoms)
        if self.position_embedding_type is None:
            self.position_embedding_type = "none"
        if isinstance(self.sequence_encoder, dict):
            self.sequence_encoder = EsmConfig(**self.sequence_encoder)
        if self.encoder_type == "proteinmpnn":
            for name, value in PROTEINMPNN_FIELDS.items():
                if getattr(self, name) == getattr(CoordformerConfig, name):  # not given
                    setattr(self, name, value)
        if self.lm_head == "linear":
            self.tie_word_embeddings = False
        super().__post_init__(**kwargs)

    @property
    def optional_atoms(self) -> tuple[str, ...]:
        """Of `coordinate_atoms` those that a protein may lack; ProteinMPNN's layers place O where it is missing."""
        if self.partial_backbones:
            return tuple(atom for atom in BACKBONE if atom != "CA")
        return ("O",) if self.encoder_type == "proteinmpnn" and self.coordinate_atoms == BACKBONE else ()

    def save_pretrained(self, save_directory, push_to_hub=False, **kwargs):
        # Transformers maps the one class that is being saved, and keeps what a loaded config said of the others.
        self.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, push_to_hub, **kwargs)

    def validate_architecture(self):
        """Part of `@strict` validation: called when a config is made."""
        for name, allowed in {**CHOICES, "hidden_act": sorted(ACT2FN)}.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; choose one of {', '.join(allowed)}.")
        sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        for name in (*sizes, "num_decoder_layers", "coordinate_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least 1.")
        if self.is_decoder or self.add_cross_attention:
            raise ValueError("Coordformer is an encoder; `is_decoder` and `add_cross_attention` must be False.")
        if self.encoder_type == "proteinmpnn":
            self._validate_proteinmpnn()
        else:
            self._validate_esm()

        if self.invariant_quaternions and (self.encoder_type, self.coordinate_atoms) != ("proteinmpnn", ("CA",)):
            raise ValueError(
                "`invariant_quaternions` is True, but only ProteinMPNN's layers on C-alphas have quaternions: leave it "
                'out, or set `encoder_type="proteinmpnn"` and `coordinate_atoms=("CA",)`.'
            )

        if self.partial_backbones and self.coordinate_atoms != BACKBONE:
            raise ValueError(
                f"`partial_backbones` is True, but `coordinate_atoms` is {self.coordinate_atoms}: leave it out, or set "
                f"`coordinate_atoms={BACKBONE}`."
            )
        for name in ("partial_backbones", "noise_conditioning"):
            if getattr(self, name) and not self.num_neighbors:
                raise ValueError(f"`{name}` is True, but without `num_neighbors` there are no edges: set it, too.")
        check_noise_level(self.noise_level)
        if self.noise_level and not self.noise_conditioning:
            raise ValueError(
                f"`noise_level` is {self.noise_level} Å, but without `noise_conditioning` the model is not told of it; "
                "leave it out, or take a model that is."
            )

    def _validate_proteinmpnn(self) -> None:
        for name, value in PROTEINMPNN_FIELDS.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f'`{name}` is {getattr(self, name)!r}, but with `encoder_type="proteinmpnn"` there is none of it: '
                    f"leave it out, or set it to {value!r}."
                )
        if self.coordinate_atoms not in (("CA",), BACKBONE):
            raise ValueError(
                f"`coordinate_atoms` is {self.coordinate_atoms}; ProteinMPNN's layers read ('CA',) or {BACKBONE}."
            )
        if self.num_neighbors < 1:
            raise ValueError(
                f"`num_neighbors` is {self.num_neighbors}; ProteinMPNN's layers need at least 1, the residue itself, "
                "and have 48 in the published weights."
            )

    def _validate_esm(self) -> None:
        heads, embedding = self.num_attention_heads, self.coordinate_embedding
        if self.hidden_size % heads:
            raise ValueError(
                f"`hidden_size` ({self.hidden_size}) must be a multiple of `num_attention_heads` ({heads})."
            )
        head_size, needed = self.hidden_size // heads, self.coordinate_dim + 1
        if self.position_embedding_type == "rotary" and head_size % 2:
            raise ValueError(
                f"Rotary positions need an even head size; `hidden_size / num_attention_heads` is {head_size}."
            )
        if not self.coordinate_scale > 0:
            raise ValueError(f"`coordinate_scale` is {self.coordinate_scale}; it must be a positive length in Å.")
        if self.coordinate_init == "gaussian":
            if embedding != "quadratic":
                raise ValueError(
                    '`coordinate_init="gaussian"` reads |x|^2 off the embedding: `coordinate_embedding` must be '
                    f'"quadratic", not {embedding!r}.'
                )
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
        if self.num_distance_bins < 0 or self.num_distance_bins == 1:
            raise ValueError(
                f"`num_distance_bins` is {self.num_distance_bins}; give at least 2 distances, or 0 for no bias."
            )
        for name, what in (("num_qk_points", "points"), ("num_v_points", "points"), ("num_neighbors", "residues")):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}; give a number of {what}, or 0 for none.")
        if bool(self.num_qk_points) != bool(self.num_v_points):
            raise ValueError(
                f"`num_qk_points` is {self.num_qk_points} and `num_v_points` {self.num_v_points}; invariant point "
                "attention needs both, ordinary attention neither."
            )
        if self.num_neighbors and not self.num_qk_points:
            raise ValueError(
                f"`num_neighbors` is {self.num_neighbors}, but messages are passed beside invariant point attention: "
                "set `num_qk_points`, too."
            )
        for name in ("message_attention", "edge_updates"):
            if getattr(self, name) and not self.num_neighbors:
                raise ValueError(f"`{name}` is True, but without `num_neighbors` there are no messages: set it, too.")
        width = self.hidden_size if self.message_gating else self.hidden_size // 2
        if self.message_attention and width % heads:
            raise ValueError(
                f"`message_attention` is True, but {heads} heads (`num_attention_heads`) cannot share messages {width} "
                "wide; their number must divide it."
            )
        if (self.num_qk_points or embedding == "local_frame") and self.coordinate_dim != 3:
            raise ValueError(
                "Residues have backbone frames in three dimensions alone: with `num_qk_points` or "
                f'`coordinate_embedding` "local_frame", `coordinate_dim` must be 3, not {self.coordinate_dim}.'
            )
        if embedding == "local_frame" and self.position_embedding_type == "none":
            raise ValueError(
                '`coordinate_embedding="local_frame"` reads the neighbors along the chain, which '
                '`position_embedding_type="none"` leaves without an order.'
            )
        if not self.coordinate_atoms or len(set(self.coordinate_atoms)) != len(self.coordinate_atoms):
            raise ValueError(
                f"`coordinate_atoms` is {self.coordinate_atoms}; name each atom once, for example ('N', 'CA', 'C')."
            )


__all__ = ["CoordformerConfig"]
