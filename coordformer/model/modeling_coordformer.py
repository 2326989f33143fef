# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""Coordformer: an ESM encoder whose input is a token embedding plus an embedding of coordinates.

Method: Ellmen, Schneider, Raybould, Deane, "Transformers trained on proteins can learn to attend to Euclidean
distance", TMLR 2025. The encoder is Transformers' own `EsmModel`, given `inputs_embeds`. This file holds the base model
and the heads; the layers that take coordinates are in `structure_layers`, their graph in `neighbor_graph`, packed rows
in `packing`, contacts in `contact_maps`.
"""

import copy
import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint
from transformers import EsmConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.masking_utils import create_bidirectional_mask, packed_sequence_mask_function
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.models.esm.modeling_esm import EsmClassificationHead
from transformers.utils import can_return_tuple

from .configuration_coordformer import CoordformerConfig
from .contact_maps import ContactHead, contact_logits
from .coordinates import (
    FeatureLinear,
    backbone_frames,
    check_rotations,
    local_frame_coordinates,
    place_coordinates,
    rotate_coordinates,
)
from .embedding import embed_dataset
from .esm_encoder import CoordformerEncoder, sequence_encoder_config, sinusoidal_positions
from .neighbor_graph import EdgeFeatures
from .packing import (
    SEGMENT_BOUNDS,
    run_starts,
    segment_bounds,
    segment_numbers,
    segment_positions,
    segment_runs,
    segment_sum,
    sequence_id_of_bounds,
    take_tokens,
)
from .proteinmpnn import ProteinMPNN
from .structure_layers import (
    CoordinateEmbedding,
    DistanceBias,
    Structure,
    gaussian_start,
)

IGNORED_LABEL = -100  # Transformers' convention, in every head; Trainer counts what differs from it

# Parts of weights' names in version 0.1.0, and what they are now; registered here, remote code has them, too.
RENAMED_WEIGHTS = {
    "relations.": "edge_features.",
    "read_points.": "output_points.",
    "messages.asks.": "message_passing.receiver.",
    "messages.tells.": "message_passing.sender.",
    "messages.relates.": "message_passing.edge.",
    "messages.gate_tells.": "message_passing.gate_sender.",
    "messages.gate_relates.": "message_passing.gate_edge.",
    "messages.reads.": "message_passing.output.",
}
register_checkpoint_conversion_mapping(
    "coordformer", [WeightRenaming(old, new) for old, new in RENAMED_WEIGHTS.items()], overwrite=True
)


def other_chain_start(separation: Tensor) -> Tensor:
    """What `EdgeFeatures.other_chain` begins with, and is in checkpoints from before complexes, which do not have it:
    another chain is as far away along the chain as can be. Of the table (separations, width), float32."""
    return separation[[0, -1]].float().mean(dim=0)


# --- Base model ---


class CoordformerPreTrainedModel(PreTrainedModel):
    config: CoordformerConfig
    config_class = CoordformerConfig
    base_model_prefix = "coordformer"
    _auto_class = "AutoModel"  # Transformers saves the code beside the weights; the config knows all classes
    supports_gradient_checkpointing = True
    embed_dataset = embed_dataset  # a method: `model.embed_dataset(inputs)`
    _no_split_modules = ["EsmLayer", "ProteinMPNNEncoderLayer", "ProteinMPNNDecoderLayer"]
    _keys_to_ignore_on_load_missing = [r"edge_features\.other_chain$"]  # see `_init_weights`
    _keep_in_fp32_modules_strict = ["coordinate_embedding", "distance_bias", "rotary_embeddings"]
    _supports_flash_attn = _supports_sdpa = _supports_flex_attn = _supports_attention_backend = True

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        kwargs.setdefault("use_safetensors", True)  # nothing is unpickled unless the caller asks for it
        loaded = super().from_pretrained(*args, **kwargs)
        # Loading puts new parameters in the place of frozen ones.
        freeze_sequence_encoder(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    def save_pretrained(self, *args, **kwargs):
        kwargs.setdefault("save_original_format", False)  # or else Transformers writes the names of version 0.1.0
        super().save_pretrained(*args, **kwargs)

    def load_state_dict(self, state_dict, *args, **kwargs):
        # Trainer resumes by it; Transformers renames in `from_pretrained` alone.
        for old, new in RENAMED_WEIGHTS.items():
            state_dict = {name.replace(old, new): tensor for name, tensor in state_dict.items()}
        for name in [name for name in state_dict if name.endswith("edge_features.separation.weight")]:
            state_dict.setdefault(name.replace("separation.weight", "other_chain"), other_chain_start(state_dict[name]))
        return super().load_state_dict(state_dict, *args, **kwargs)

    def set_attn_implementation(self, *args, **kwargs):
        super().set_attn_implementation(*args, **kwargs)
        # Older versions of Transformers pass over a model within a model where the configs are of one class.
        for module in self.modules():
            if isinstance(module, CoordformerModel) and module.sequence_encoder is not None:
                module.sequence_encoder.config._attn_implementation = self.config._attn_implementation

    def _set_gradient_checkpointing(self, enable=True, gradient_checkpointing_func=checkpoint, every_n_layers=1):
        # Both reach a layer by name: there reentrant checkpoints lead no gradient.
        options = getattr(gradient_checkpointing_func, "keywords", {})
        named = [name for name in ("num_distance_bins", "num_neighbors") if getattr(self.config, name)]
        if enable and named and options.get("use_reentrant"):
            raise ValueError(
                f"`gradient_checkpointing_kwargs` has use_reentrant=True, with which `config.{named[0]}` gets no "
                "gradient; leave it out or set it to False."
            )
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, every_n_layers)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if self.config.encoder_type == "proteinmpnn" and isinstance(module, (FeatureLinear, nn.Linear)):
            init.xavier_uniform_(module.weight)  # as theirs, also of a head
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, DistanceBias):
            init.zeros_(module.weight)
        elif isinstance(module, EdgeFeatures):
            init.copy_(module.other_chain, other_chain_start(module.separation.weight))
        elif isinstance(module, ContactHead):
            # Buffers are zero: they are not trained, and a random head would look like a trained one.
            std = self.config.initializer_range if isinstance(module.weight, nn.Parameter) else 0.0
            init.normal_(module.weight, std=std)
            init.zeros_(module.bias)
        elif isinstance(module, (CoordinateEmbedding, FeatureLinear)):
            init.normal_(module.weight, std=self.config.initializer_range)
            init.zeros_(module.bias)
            if isinstance(module, CoordinateEmbedding) and self.config.coordinate_init == "gaussian":
                # Here, after the encoder: for a module without weights of its own, as the model, this is not called.
                for parameter, start in gaussian_start(self).items():
                    init.copy_(parameter, start)

    def __call__(self, *args, **kwargs):
        if "segment_ids" in kwargs:
            warnings.warn("`segment_ids` is called `sequence_id` now; use that name.", FutureWarning, stacklevel=2)
            kwargs.setdefault("sequence_id", kwargs.pop("segment_ids"))
        # FSDP2 casts every floating-point input of what it shards to its `param_dtype`. Coordinates pass as the bits
        # of float32 (`_restore_float32` in `forward`), which it leaves alone.
        if isinstance(self, FSDPModule):
            kwargs |= dict(zip(inspect.signature(self.forward).parameters, args, strict=False))
            args = ()
            for name in ("coords", "rotations", "noise_level"):
                if (values := kwargs.get(name)) is not None and values.dtype != torch.uint32:
                    kwargs[name] = values.detach().to(torch.float32).contiguous().view(torch.uint32)
        return super().__call__(*args, **kwargs)

    def predict_contacts(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, coords: Tensor | None = None,
        coords_mask: Tensor | None = None, **kwargs,
    ) -> Tensor:  # fmt: skip
        """Probability that two residues are in contact, from the attention maps of all layers (paper, section 6).

        Inputs as of `CoordformerModel`, one chain or complex in each row. Memory grows with the square of the length,
        and not with layers and heads, unless attention is eager. Returns (batch, residues, residues), float32, without
        `<cls>` and `<eos>`; zero for padding. Raises a ValueError if the model has no contact head, or one that was
        never trained. Changes nothing of the model, so that threads may share it.
        """
        inputs = {"coords": coords, "coords_mask": coords_mask} | kwargs
        logits, pairs, _ = contact_logits(self.base_model, input_ids, attention_mask, **inputs)
        return logits.sigmoid() * pairs

    def _apply(self, fn, recurse=True):
        # `.to(bfloat16)` would round the rotary frequencies, for good once saved, and the coordinate embedding.
        kept = [
            tensor
            for name, module in self.named_modules()
            if name.rpartition(".")[2] in self._keep_in_fp32_modules_strict
            for tensor in (*module.parameters(), *module.buffers())
        ]
        kept += [tensor.grad for tensor in kept if tensor.grad is not None]
        precise = set(map(id, kept))

        def keep_float32(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            rounded = id(tensor) in precise and applied.dtype != tensor.dtype
            return tensor.to(applied.device) if rounded else applied

        return super()._apply(keep_float32, recurse)


class CoordformerModel(CoordformerPreTrainedModel):
    """The encoder without a head.

    Inputs, all optional but for one of `input_ids`, `inputs_embeds` and `coords`:

    - `input_ids` `(batch, sequence)`: tokens. Without them the input is a point cloud.
    - `attention_mask` `(batch, sequence)`: 1 for tokens, 0 for padding.
    - `position_ids` `(batch, sequence)`: from 0; the default restarts in each segment. Leave a gap where residues are
      missing, and one of `CHAIN_GAP` between the chains of a complex.
    - `chain_ids` `(batch, sequence)`: which chain of a complex a residue belongs to. The default is one chain for each
      segment.
    - `inputs_embeds` `(batch, sequence, hidden)`: in place of `input_ids`.
    - `coords` `(batch, sequence, D)` or `(batch, sequence, atoms, D)`: Å, in any frame; NaN where not observed.
    - `coords_mask` `(batch, sequence)` or `(batch, sequence, atoms)`: False where not observed.
    - `sequence_id` `(batch, sequence)`: runs of equal ids are the segments of a packed row; a segment attends to itself
      alone and has its own center. The default is one segment per row.
    - `rotations` `(batch, segments, D, D)`: a matrix for each segment in reading order (without `sequence_id` one per
      row), by which it is turned about its center; random ones in training. The default turns nothing.
    - `cu_seq_lens_q`, `cu_seq_lens_k`, `max_length_q`, `max_length_k`: the bounds of the segments as Transformers'
      flash attention takes them, see `segment_bounds`. Attention by `"varlen"` or flash computes them from
      `sequence_id` where they are missing, for which the host waits for the device; given, they must agree with it.
    - `noise_level` `(batch, sequence)`: with `config.noise_conditioning`, the standard deviation of noise on `coords`,
      Å, which the model is to reckon with; the default is `config.noise_level` everywhere.
    - `structure`: of `encode_structure`, in place of `coords`: one for all rows.
    - `kept_tokens` `(batch, kept)`: indices of tokens whose last states alone are returned, `(batch, kept, hidden)`,
      and logits of a masked-LM head. Without gradients the last layer is computed for these alone.
    - `special_tokens_mask` `(batch, sequence)`: 1 for `<cls>` and `<eos>`, for `inputs_embeds`, which do not tell; the
      default is where `input_ids` have them.

    `<cls>`, `<eos>` and padding count as not observed whatever `coords` holds there. An input of another shape raises a
    ValueError that names it.

    Examples:
        >>> model = CoordformerModel(CoordformerConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4))
        >>> tokens, coords = torch.tensor([[0, 20, 15, 7, 2]]), torch.randn(1, 5, 3)
        >>> model(input_ids=tokens, coords=coords).last_hidden_state.shape
        torch.Size([1, 5, 64])
    """

    def __init__(self, config: CoordformerConfig):
        super().__init__(config)
        mpnn = config.encoder_type == "proteinmpnn"
        self.esm: Any = None if mpnn else CoordformerEncoder(config)
        self.proteinmpnn = ProteinMPNN(config) if mpnn else None
        self.contact_head = ContactHead(config) if config.contact_head else None
        self.coordinate_embedding = None if config.coordinate_embedding == "none" else CoordinateEmbedding(config)
        self.distance_bias = DistanceBias(config) if config.num_distance_bins else None
        self.edge_features = EdgeFeatures(config) if config.num_neighbors and not mpnn else None
        self.sequence_encoder = self.connector = None
        if isinstance(config.sequence_encoder, EsmConfig):
            without_coordinates = sequence_encoder_config(config.sequence_encoder)
            without_coordinates._attn_implementation = config._attn_implementation
            self.sequence_encoder = CoordformerModel(without_coordinates)
            self.connector = nn.Linear(config.sequence_encoder.hidden_size, config.hidden_size)
            self.esm.embeddings.word_embeddings = None  # type: ignore[union-attr,assignment]  # idle, too
        eos = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        special = (config.pad_token_id, config.bos_token_id, *eos)
        self._special_tokens = tuple(token_id for token_id in special if token_id is not None)
        self.post_init()
        freeze_sequence_encoder(self)

    def train(self, mode: bool = True):
        super().train(mode)
        if self.sequence_encoder is not None:
            self.sequence_encoder.eval()
        return self

    @property
    def reads_coordinates(self) -> bool:
        """Whether anything in the model depends on `coords`."""
        config = self.config
        layers = config.num_distance_bins or config.num_qk_points or self.proteinmpnn is not None
        return config.coordinate_embedding != "none" or bool(layers)

    @property
    def layers(self) -> list[nn.Module]:
        """Of ESM's encoder, or of ProteinMPNN's encoder and decoder."""
        mpnn = self.proteinmpnn
        return [*self.esm.encoder.layer] if mpnn is None else [*mpnn.encoder, *mpnn.decoder]  # type: ignore[union-attr]

    def _reads_tokens(self) -> Any:
        return self.sequence_encoder or self.esm or self.proteinmpnn

    def get_input_embeddings(self):
        return self._reads_tokens().get_input_embeddings()

    def set_input_embeddings(self, value):
        self._reads_tokens().set_input_embeddings(value)
        if isinstance(self.config.sequence_encoder, EsmConfig):
            self.config.sequence_encoder.vocab_size = value.num_embeddings

    @can_return_tuple
    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None, coords: Tensor | None = None, coords_mask: Tensor | None = None,
        sequence_id: Tensor | None = None, rotations: Tensor | None = None, chain_ids: Tensor | None = None,
        special_tokens_mask: Tensor | None = None, noise_level: Tensor | None = None,
        structure: Structure | None = None, **kwargs,
    ) -> BaseModelOutput:  # fmt: skip
        coords, rotations, noise_level = map(_restore_float32, (coords, rotations, noise_level))
        shape, device = self._input_shape(input_ids, inputs_embeds, coords)
        given = {"attention_mask": attention_mask, "position_ids": position_ids, "sequence_id": sequence_id}
        given |= {"chain_ids": chain_ids, "special_tokens_mask": special_tokens_mask, "noise_level": noise_level}
        for name, value in given.items():
            accepted = (shape, (1, shape[1])) if name == "position_ids" else (shape,)
            if value is not None and tuple(value.shape) not in map(tuple, accepted):
                raise ValueError(
                    f"`{name}` has shape {tuple(value.shape)}; the input asks for (batch, sequence) = {tuple(shape)}."
                )
        if sequence_id is None:
            sequence_id = sequence_id_of_bounds(kwargs.get("cu_seq_lens_q"), shape)
        runs = None if sequence_id is None else segment_runs(sequence_id, attention_mask)
        limit = self.config.max_position_embeddings - self.config.pad_token_id - 1
        length = shape[1] if runs is None else kwargs.get("max_length_q") or 0
        if self.config.position_embedding_type == "absolute" and position_ids is None and length > limit:
            raise ValueError(
                f"The input has {length} tokens{'' if runs is None else ' in a segment'}, but absolute positions end "
                f"at {limit} (`config.max_position_embeddings`); cut it into windows."
            )
        if position_ids is None:
            position_ids = segment_positions(runs, attention_mask, shape[1], device)
        if self.sequence_encoder is None:
            embeddings = self._embed(input_ids, attention_mask, inputs_embeds, shape, runs)
        else:
            given = {"attention_mask": attention_mask, "position_ids": position_ids, "sequence_id": sequence_id}
            given |= {name: kwargs[name] for name in SEGMENT_BOUNDS if name in kwargs}
            embeddings = self._encode_sequence(input_ids=input_ids, inputs_embeds=inputs_embeds, **given)
        if structure is None:
            given = {"coords_mask": coords_mask, "attention_mask": attention_mask, "rotations": rotations}
            given |= {"chain_ids": chain_ids, "special_tokens_mask": special_tokens_mask, "noise_level": noise_level}
            longest = None if runs is None else kwargs.get("max_length_q")
            structure = self._encode_structure(coords, input_ids, shape, position_ids, runs, longest, **given)
        elif coords is not None or noise_level is not None or structure.rows not in (1, shape[0]):
            raise ValueError(
                f"`structure` is of {structure.rows} rows, and the input has {shape[0]}; it is of one or of as many, "
                "and in place of `coords` and `noise_level`."
            )
        if self.proteinmpnn is not None:
            visible: Any = torch.full(shape, inputs_embeds is not None, device=device)
            if input_ids is not None:
                visible = input_ids != self.config.mask_token_id
            return self._decode_structure(embeddings, visible, structure, kwargs)
        if structure.embedding is not None:
            embeddings = (embeddings + structure.embedding).to(embeddings.dtype)
        bias = None if structure.bias is None else structure.bias.to(embeddings.dtype)
        if structure.frames is not None:
            graph = structure.graph
            kwargs |= {"frames": structure.frames} | ({} if graph is None else {"graph": graph.begin()})
        embeddings = self._add_positions(embeddings, position_ids)
        if self.esm.embeddings.layer_norm is not None:
            embeddings = self.esm.embeddings.layer_norm(embeddings)
        if attention_mask is not None:
            embeddings = (embeddings * attention_mask.unsqueeze(-1)).to(embeddings.dtype)
        if bias is not None:
            attention_mask = self._bias_attention(bias, attention_mask, runs)
            kwargs |= dict.fromkeys(SEGMENT_BOUNDS)
        elif runs is not None:
            attention_mask, bounds = self._confine_attention(embeddings, runs, kwargs)
            kwargs |= bounds
        outputs = self.esm(inputs_embeds=embeddings, attention_mask=attention_mask, position_ids=position_ids, **kwargs)
        return BaseModelOutput(outputs.last_hidden_state, outputs.hidden_states, outputs.attentions)

    def _input_shape(self, input_ids, inputs_embeds, coords) -> tuple[torch.Size, torch.device]:
        if input_ids is not None and inputs_embeds is not None:
            raise ValueError("Give `input_ids` or `inputs_embeds`, not both.")
        source = input_ids if input_ids is not None else inputs_embeds if inputs_embeds is not None else coords
        if source is None:
            raise ValueError("Give at least one of `input_ids`, `inputs_embeds` and `coords`.")
        if source.dim() < 2 or 0 in source.shape[:2]:
            raise ValueError(
                f"The input has shape {tuple(source.shape)}; (batch, sequence, ...) with at least one token is needed."
            )
        return source.shape[:2], source.device

    def residue_mask(self, input_ids, attention_mask, shape, device) -> Tensor:
        """Which tokens are residues, (batch, sequence): neither padding nor `<cls>` and `<eos>`."""
        mask = torch.ones(shape, dtype=torch.bool, device=device) if attention_mask is None else attention_mask.bool()
        if input_ids is not None:
            for token_id in self._special_tokens:
                mask = mask & (input_ids != token_id)
        return mask

    def _embed(self, input_ids, attention_mask, inputs_embeds, shape, runs) -> Tensor:
        """Token embeddings with ESM's token dropout, counted per segment."""
        if inputs_embeds is not None:
            return inputs_embeds
        table = self.get_input_embeddings()
        if input_ids is None:
            # Multiplied by zero rather than left out: an idle parameter stops DistributedDataParallel.
            return (table.weight[0] * 0).expand(*shape, -1)
        if not self.config.token_dropout:
            return table(input_ids)
        masked = input_ids == self.config.mask_token_id
        embeddings = table(input_ids).masked_fill(masked.unsqueeze(-1), 0.0)
        trained_ratio = 0.15 * 0.8  # as in all ESM-2 training
        tokens = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids.dtype)
        ratio = segment_sum(masked.long(), runs).float() / segment_sum(tokens, runs).clamp(min=1)
        # Where every token is masked the scale has nothing to act upon; it only has to be finite.
        kept = (1 - ratio).clamp(min=torch.finfo(torch.float32).eps)
        return (embeddings * (1 - trained_ratio) / kept.unsqueeze(-1)).to(embeddings.dtype)

    def _encode_sequence(self, **inputs) -> Tensor:
        """The last hidden states of the frozen sequence encoder, through the connector."""
        if inputs["input_ids"] is None and inputs["inputs_embeds"] is None:
            raise ValueError("A model with `config.sequence_encoder` needs `input_ids` or `inputs_embeds`.")
        assert self.sequence_encoder is not None and self.connector is not None
        with torch.no_grad():
            states = self.sequence_encoder(**inputs).last_hidden_state
        # As embeddings are, under autocast as well; a quantized layer does not tell.
        return self.connector(states).to(self.esm.encoder.emb_layer_norm_after.weight.dtype)

    def encode_structure(
        self, coords: Tensor, input_ids: Tensor | None = None, position_ids: Tensor | None = None,
        chain_ids: Tensor | None = None, **masks,
    ) -> Structure:  # fmt: skip
        """What the encoder reads of one chain or complex, for many passes with other tokens.

        Give the result to the model as `structure`, in place of `coords`: all rows of a batch share it. What does not
        depend on tokens is computed once, and without gradients.

        Args:
            coords, position_ids, chain_ids: as of the model, one row each.
            input_ids: (1, sequence), any tokens, which say where `<cls>` and `<eos>` are.
            masks: `coords_mask`, `special_tokens_mask`, `noise_level`, as of the model.
        """
        shape, device = self._input_shape(input_ids, None, coords)
        if position_ids is None:
            position_ids = segment_positions(None, None, shape[1], device)
        with torch.no_grad():
            masks["chain_ids"] = chain_ids
            structure = self._encode_structure(coords, input_ids, shape, position_ids, None, None, **masks)
        if structure.graph is not None:
            structure.graph.keep()
        return structure

    def _encode_structure(
        self, coords, input_ids, shape, position_ids, runs, longest, *, coords_mask=None, attention_mask=None,
        rotations=None, chain_ids=None, special_tokens_mask=None, noise_level=None,
    ) -> Structure:  # fmt: skip
        config, structure = self.config, Structure(shape[0])
        if noise_level is not None and not config.noise_conditioning:
            raise ValueError("`noise_level` is of models with `config.noise_conditioning`; leave it out.")
        if not self.reads_coordinates:
            return structure
        residue_mask = self.residue_mask(input_ids, attention_mask, shape, position_ids.device)
        if special_tokens_mask is not None:
            residue_mask = residue_mask & ~special_tokens_mask.bool()
        placed, coords_mask = place_coordinates(coords, coords_mask, residue_mask, runs, config)
        if rotations is not None:
            numbers = None if runs is None else segment_numbers(runs, attention_mask)
            check_rotations(rotations, shape, numbers, config.coordinate_dim)
            placed = rotate_coordinates(placed, rotations, numbers)
        if config.noise_conditioning and noise_level is None:
            noise_level = torch.full(shape, float(config.noise_level), device=placed.device)
        if self.proteinmpnn is not None:
            given = placed, coords_mask, residue_mask, position_ids, runs, longest, chain_ids, noise_level
            self.proteinmpnn.encode(structure, *given)
        if config.num_qk_points or config.coordinate_embedding == "local_frame":
            # Without N and C a frame is the same, so that a model of C-alphas may be given them.
            atoms = ("CA",) if config.partial_backbones else config.coordinate_atoms
            of = [config.coordinate_atoms.index(atom) for atom in atoms]
            frames = backbone_frames(placed[:, :, of], coords_mask[:, :, of], position_ids, runs, atoms)
        if self.coordinate_embedding is not None:
            lifted = placed, coords_mask
            if config.coordinate_embedding == "local_frame":
                lifted = local_frame_coordinates(placed, coords_mask, frames, position_ids, runs)
            structure.embedding = self.coordinate_embedding(*lifted)
        if config.num_qk_points:
            if "flash" in config._attn_implementation:
                raise ValueError(
                    "`config.num_qk_points` needs products in float32, which attn_implementation="
                    f"{config._attn_implementation!r} does not have; choose 'sdpa'."
                )
            structure.frames = frames.scale_translations(config.coordinate_scale)
            if self.edge_features is not None:
                read = placed, coords_mask, noise_level
                structure.graph = self.edge_features(frames, position_ids, runs, longest, chain_ids, *read)
        if self.distance_bias is not None:
            structure.bias = self.distance_bias(placed, coords_mask)
        return structure

    def _decode_structure(self, embeddings, visible, structure, kwargs) -> BaseModelOutput:
        """The output of ProteinMPNN's decoder; `visible` (batch, sequence) says which embeddings it sees."""
        if kwargs.get("output_attentions", self.config.output_attentions):
            raise ValueError('`output_attentions`: with `encoder_type="proteinmpnn"` there is no attention.')
        assert self.proteinmpnn is not None
        states = self.proteinmpnn(embeddings, visible, structure)
        if (kept_tokens := kwargs.get("kept_tokens")) is not None:
            states = tuple(take_tokens(each, kept_tokens) for each in states)
        all_states = kwargs.get("output_hidden_states", self.config.output_hidden_states)
        return BaseModelOutput(states[-1], states if all_states else None)

    def _add_positions(self, embeddings: Tensor, position_ids: Tensor) -> Tensor:
        if self.config.position_embedding_type == "absolute":
            # ESM's table keeps the rows up to the padding token's for padding.
            return embeddings + self.esm.embeddings.position_embeddings(position_ids + self.config.pad_token_id + 1)
        if self.config.position_embedding_type == "sinusoidal":
            return embeddings + sinusoidal_positions(position_ids, embeddings.shape[-1]).to(embeddings.dtype)
        return embeddings

    def _confine_attention(self, embeddings, runs, kwargs) -> tuple[Any, dict[str, Any]]:
        """What keeps attention within the segments: a mask, or for kernels that take them the segments' bounds."""
        implementation = self.config._attn_implementation
        if implementation == "varlen" or "flash" in implementation:
            return None, {} if kwargs.get("cu_seq_lens_q") is not None else segment_bounds(runs)
        # Bounds that came with the batch would only be in the way of the other kernels.
        mask = create_bidirectional_mask(
            self.config, embeddings, None, and_mask_function=packed_sequence_mask_function(runs)
        )
        return mask, dict.fromkeys(SEGMENT_BOUNDS)

    def _bias_attention(self, bias, attention_mask, runs) -> Tensor:
        """The bias (batch, heads, sequence, sequence) as a mask that also keeps attention within the segments."""
        if self.config._attn_implementation not in ("sdpa", "eager"):
            raise ValueError(
                f"`config.num_distance_bins` needs attn_implementation='sdpa' or 'eager', not "
                f"{self.config._attn_implementation!r}, which takes no bias."
            )
        if runs is not None:
            allowed = (runs.unsqueeze(-1) == runs.unsqueeze(-2)).unsqueeze(1)
        elif attention_mask is not None:
            allowed = attention_mask.bool()[:, None, None, :]
        else:
            return bias
        return bias.masked_fill(~allowed, torch.finfo(bias.dtype).min)


def freeze_sequence_encoder(model: nn.Module) -> None:
    """Let no optimizer change the ESM-2 in front, where there is one."""
    for module in model.modules():
        if isinstance(module, CoordformerModel) and module.sequence_encoder is not None:
            module.sequence_encoder.requires_grad_(False)


def _restore_float32(bits: Tensor | None) -> Tensor | None:
    """Undo what `CoordformerPreTrainedModel.__call__` does to coordinates."""
    return bits.view(torch.float32) if bits is not None and bits.dtype == torch.uint32 else bits


# --- Heads ---


def mean_loss(losses: Tensor, labels: Tensor, num_items_in_batch=None) -> Tensor:
    """Sum the element-wise `losses` whose label counts and divide by their number.

    `Trainer` passes `num_items_in_batch`, the number of labels in all micro-batches and processes of one update, so
    that the loss of an update does not depend on how its rows are spread over them. Without any label it is zero.
    """
    counts = labels != IGNORED_LABEL
    number = counts.sum() if num_items_in_batch is None else num_items_in_batch
    total = losses.masked_fill(~counts, 0.0).sum()
    return total / (number.to(total.device).clamp(min=1) if torch.is_tensor(number) else max(number, 1))


def cross_entropy(logits: Tensor, labels: Tensor, num_items_in_batch=None) -> Tensor:
    """Mean cross-entropy in float32: logits (..., classes), labels (...)."""
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"`labels` has shape {tuple(labels.shape)}; the logits ask for {tuple(logits.shape[:-1])}.")
    if labels.is_floating_point():
        raise ValueError(f"`labels` are {labels.dtype}; classes are whole numbers.")
    labels = labels.to(logits.device, torch.long)
    losses = nn.functional.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="none"
    )
    return mean_loss(losses, labels.flatten(), num_items_in_batch)


class CoordformerLMHead(nn.Module):
    """ESM-2's language-model head; its bias lies in `decoder` so that resizing the vocabulary resizes it too."""

    def __init__(self, config: CoordformerConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.activation = ACT2FN["gelu_python"]  # ESM's formula
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.decoder(self.layer_norm(self.activation(self.dense(hidden_states))))


class CoordformerModelWithHead(CoordformerPreTrainedModel):
    """A `CoordformerModel` and a head: a subclass makes the logits and says which output they go into.

    Inputs are those of `CoordformerModel` and `labels`; with `num_items_in_batch` the loss is divided by it.
    """

    output_class: type = TokenClassifierOutput

    def __init__(self, config: CoordformerConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.coordformer = CoordformerModel(config)

    def compute_logits(self, hidden_states, input_ids, attention_mask, sequence_id) -> Tensor:
        """Logits from the last hidden states (batch, sequence, hidden) and the inputs."""
        raise NotImplementedError

    def compute_loss(self, logits, labels, num_items_in_batch) -> Tensor:
        return cross_entropy(logits, labels, num_items_in_batch)

    @can_return_tuple
    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, inputs_embeds=None, coords=None, coords_mask=None,
        sequence_id=None, rotations=None, chain_ids=None, special_tokens_mask=None, noise_level=None, structure=None,
        labels=None, num_items_in_batch=None, **kwargs,
    ):  # fmt: skip
        outputs = self.coordformer(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, inputs_embeds=inputs_embeds,
            coords=coords, coords_mask=coords_mask, sequence_id=sequence_id, rotations=rotations,
            chain_ids=chain_ids, special_tokens_mask=special_tokens_mask, noise_level=noise_level, structure=structure,
            **kwargs,
        )  # fmt: skip
        states = outputs.last_hidden_state
        if sequence_id is None:
            sequence_id = sequence_id_of_bounds(kwargs.get("cu_seq_lens_q"), states.shape[:2])
        logits = self.compute_logits(states, input_ids, attention_mask, sequence_id)
        loss = None if labels is None else self.compute_loss(logits, labels, num_items_in_batch)
        return self.output_class(loss, logits, outputs.hidden_states, outputs.attentions)


class CoordformerForMaskedLM(CoordformerModelWithHead):
    """Masked-language-model head. `labels` `(batch, sequence)`: token ids, -100 where nothing is to be predicted."""

    output_class = MaskedLMOutput
    _tied_weights_keys = {"lm_head.decoder.weight": "coordformer.esm.embeddings.word_embeddings.weight"}

    def __init__(self, config: CoordformerConfig):
        super().__init__(config)
        if config.lm_head == "linear":
            self._tied_weights_keys = {}  # whatever becomes of `config.tie_word_embeddings`
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        else:
            self.lm_head = CoordformerLMHead(config)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head if self.config.lm_head == "linear" else self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings):
        if self.config.lm_head == "linear":
            self.lm_head = new_embeddings
        else:
            self.lm_head.decoder = new_embeddings

    def compute_logits(self, hidden_states, input_ids, attention_mask, sequence_id) -> Tensor:
        return self.lm_head(hidden_states)

    @property
    def masks_each(self) -> bool:
        """Whether there is `predict_each_masked`: with ProteinMPNN's layers, in which letters do not get far."""
        return self.coordformer.proteinmpnn is not None

    @torch.no_grad()
    def predict_each_masked(self, input_ids: Tensor, places: Tensor, structure: Structure) -> Tensor:
        """Logits (n, vocabulary) of tokens, each masked alone.

        Equal to n rows with a `<mask>` each, in a time that grows with n and not with n times the length. Without
        gradients, and only where `masks_each`.

        Args:
            input_ids: (1, sequence).
            places: (n,), of the tokens.
            structure: of `encode_structure`.
        """
        mpnn = self.coordformer.proteinmpnn
        if mpnn is None:
            raise ValueError('`predict_each_masked` needs `encoder_type="proteinmpnn"`; give a row for each residue.')
        visible: Any = input_ids != self.config.mask_token_id
        return self.lm_head(mpnn.hide_each(self.get_input_embeddings()(input_ids), visible, structure, places))


class CoordformerForSequenceClassification(CoordformerModelWithHead):
    """One prediction per chain, from its first token or the mean of its residues (`config.classifier_pooling`).

    `logits` is `(batch, num_labels)`; of packed rows `(segments, num_labels)`, one per segment in reading order.
    `config.problem_type` decides the loss, or else `num_labels` and the type of `labels`, as in Transformers:
    `"regression"` and `"multi_label_classification"` take float labels shaped like the logits (regression to one value
    also `(batch,)`), `"single_label_classification"` integers `(batch,)`. A label of -100 is missing.
    """

    output_class = SequenceClassifierOutput

    def __init__(self, config: CoordformerConfig):
        super().__init__(config)
        self.classifier = EsmClassificationHead(config)
        self.post_init()

    def compute_logits(self, hidden_states, input_ids, attention_mask, sequence_id) -> Tensor:
        runs = None if sequence_id is None else segment_runs(sequence_id, attention_mask)
        if self.config.classifier_pooling == "mean":
            shape, device = hidden_states.shape[:2], hidden_states.device
            residues = self.coordformer.residue_mask(input_ids, attention_mask, shape, device).unsqueeze(-1)
            residues = residues.float()  # bfloat16 would round a sum over hundreds of residues
            mean = segment_sum(hidden_states * residues, runs) / segment_sum(residues, runs).clamp(min=1)
            hidden_states = mean.to(hidden_states.dtype).expand_as(hidden_states)  # the same for all tokens
        if runs is not None:
            first = run_starts(runs)
            pooled = hidden_states[first if attention_mask is None else first & attention_mask.bool()]
        elif attention_mask is None:
            pooled = hidden_states[:, 0]
        else:
            pooled = hidden_states.take_along_dim(attention_mask.long().argmax(dim=1)[:, None, None], dim=1).squeeze(1)
        return self.classifier(pooled.unsqueeze(1))  # ESM's head takes the first token

    def compute_loss(self, logits, labels, num_items_in_batch) -> Tensor:
        problem_type: str | None = self.config.problem_type
        if problem_type is None:
            several = labels.is_floating_point() or labels.dtype == torch.bool
            classes = "multi_label_classification" if several else "single_label_classification"
            problem_type = "regression" if self.num_labels == 1 else classes
        if problem_type == "single_label_classification":
            return cross_entropy(logits, labels, num_items_in_batch)
        if problem_type not in ("regression", "multi_label_classification"):
            raise ValueError(
                f"`config.problem_type` is {problem_type!r}; choose single_label_classification, "
                "multi_label_classification or regression."
            )
        if labels.shape != logits.shape and not (self.num_labels == 1 and labels.numel() == logits.numel()):
            raise ValueError(f"`labels` has shape {tuple(labels.shape)}; {problem_type} needs {tuple(logits.shape)}.")
        labels = labels.to(logits.device, torch.float32).reshape(logits.shape)
        functional = nn.functional
        loss = functional.mse_loss if problem_type == "regression" else functional.binary_cross_entropy_with_logits
        return mean_loss(loss(logits.float(), labels, reduction="none"), labels, num_items_in_batch)


class CoordformerForContactPrediction(CoordformerPreTrainedModel):
    """Contacts by logistic regression on the attention maps of all layers (ESM's contact head; paper, section 6).

    `labels` `(batch, residues, residues)`: 1 for contacts, 0 for others, -100 where it is not known or does not count.
    `logits` have the same shape, `<cls>` and `<eos>` left out.
    """

    supports_gradient_checkpointing = False  # attention maps are made again in the backward pass as it is

    def __init__(self, config: CoordformerConfig):
        config = copy.deepcopy(config)  # the caller's has none
        config.contact_head = True
        config.validate_architecture()  # not all encoders have attention
        super().__init__(config)
        self.coordformer = CoordformerModel(config)
        self.coordformer.contact_head = ContactHead(config, trained=True)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None,
        coords: Tensor | None = None, coords_mask: Tensor | None = None, rotations: Tensor | None = None,
        labels: Tensor | None = None, num_items_in_batch: Tensor | int | None = None, **kwargs,
    ) -> TokenClassifierOutput:  # fmt: skip
        kwargs |= {"position_ids": position_ids, "coords": coords, "coords_mask": coords_mask, "rotations": rotations}
        logits, pairs, outputs = contact_logits(self.coordformer, input_ids, attention_mask, **kwargs)
        loss = None
        if labels is not None:
            if labels.shape != logits.shape:
                raise ValueError(
                    f"`labels` has shape {tuple(labels.shape)}; (batch, residues, residues) = {tuple(logits.shape)}."
                )
            labels = labels.to(logits.device, torch.long).masked_fill(~pairs, IGNORED_LABEL)
            classes = labels.clamp(min=0).float()
            losses = nn.functional.binary_cross_entropy_with_logits(logits, classes, reduction="none")
            loss = mean_loss(losses, labels, num_items_in_batch)
        return TokenClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


class CoordformerForTokenClassification(CoordformerModelWithHead):
    """One prediction per token. `labels` `(batch, sequence)`: classes, -100 where there is none."""

    def __init__(self, config: CoordformerConfig):
        super().__init__(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)  # type: ignore[arg-type]
        self.post_init()

    def compute_logits(self, hidden_states, input_ids, attention_mask, sequence_id) -> Tensor:
        return self.classifier(self.dropout(hidden_states))


__all__ = [
    "CoordformerForContactPrediction",
    "CoordformerForMaskedLM",
    "CoordformerForSequenceClassification",
    "CoordformerForTokenClassification",
    "CoordformerModel",
    "CoordformerPreTrainedModel",
]
