"""Start a Coordformer from the weights of another model."""

import copy
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization, remove_parametrizations
from transformers import (
    AutoConfig,
    AutoTokenizer,
    EsmConfig,
    EsmForMaskedLM,
    EsmModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..data.training_sequences import FILE, TrainingSequences
from ..model.chain import AMINO_ACIDS
from ..model.configuration_coordformer import CoordformerConfig
from ..model.esm_encoder import sinusoidal_positions
from ..model.modeling_coordformer import CoordformerForMaskedLM
from ..model.processing_coordformer import VOCABULARY, CoordformerProcessor, build_tokenizer
from ..model.structure_layers import InvariantPointAttention
from .from_proteinmpnn import CARD, LICENSE, from_proteinmpnn
from .point_clouds import PointCloudAttention
from .weights import NO_LOGIT, check_fields, read_state_dict

# Special tokens as a config calls them, and as a tokenizer does.
SPECIAL_TOKENS = {"bos": "cls", "eos": "eos", "pad": "pad", "mask": "mask"}

# Names of the weights of layers that read coordinates, which no ESM has.
NEW_WEIGHTS = r"coordinate_embedding\.|distance_bias\.|edge_features\.|attention\.self\.(?!(query|key|value)\.)"

# What a config says of the checkpoint it came from and not of the model.
_PROVENANCE = ("model_type", "architectures", "transformers_version", "_name_or_path", "dtype")

# The paper's alphabet in its order, ACDEFGHIKLMNPQRSTVWYX[]~_-, as tokens of ESM's vocabulary. `_` never occurs in the
# paper's data and becomes the token that never occurs in ESM's.
PAPER_ALPHABET = (*"ACDEFGHIKLMNPQRSTVWYX", "<cls>", "<eos>", "<mask>", "<null_1>", "<pad>")
TABLE_TOLERANCE = 1e-3  # a last bit of the frequency, which machines round differently, is 1e-4 at position 2,000

# Parts of a layer of torch.nn.TransformerEncoder, and what EsmModel calls them.
LAYER_PARTS = {
    "self_attn.out_proj": "attention.output.dense",
    "norm1": "attention.LayerNorm",
    "linear1": "intermediate.dense",
    "linear2": "output.dense",
    "norm2": "LayerNorm",
}
# The same of fair-esm's ESM2.
FAIR_ESM_PARTS = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "LayerNorm",
}


def from_esm(
    name_or_path_or_model: str | Path | PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **overrides: Any,
) -> CoordformerForMaskedLM:
    """Make a Coordformer of an ESM-2 checkpoint: same weights, coordinate embedding at zero.

    At first it predicts what ESM-2 predicts, whatever the coordinates; training lets it use them.

    Args:
        name_or_path_or_model: a Hub name such as `"facebook/esm2_t6_8M_UR50D"`, a folder, or an `EsmForMaskedLM` or
            `EsmModel`. An `EsmModel` has no language-model head: the head is new then.
        tokenizer: of a model with another vocabulary than ESM-2's, see `esm_tokenizer`; save it with the model,
            `CoordformerProcessor(tokenizer)`.
        **overrides: fields of `CoordformerConfig` that leave the shapes of ESM's weights alone, for example
            `coordinate_embedding="quadratic"` or `coordinate_atoms=("N", "CA", "C")`.

    Returns:
        A `CoordformerForMaskedLM` in evaluation mode, in the dtype of the source. To put another head on it, save it
        and load the folder with that head's class.

    Raises:
        ValueError: the source is no ESM model, its vocabulary is another one and `tokenizer` does not fit it, or an
            override does not fit its weights.

    Examples:
        >>> from transformers import EsmConfig, EsmForMaskedLM
        >>> small = EsmConfig(vocab_size=33, pad_token_id=1, mask_token_id=32, hidden_size=32, num_hidden_layers=1,
        ...                   num_attention_heads=4, intermediate_size=64, position_embedding_type="rotary")
        >>> from_esm(EsmForMaskedLM(small)).config.coordinate_embedding
        'linear'
    """
    source = name_or_path_or_model
    if not isinstance(source, PreTrainedModel):
        source = _load_esm(source)
    if not isinstance(source, (EsmForMaskedLM, EsmModel)):
        raise ValueError(f"{type(source).__name__} cannot be converted; give an EsmForMaskedLM or an EsmModel.")
    check_fields(overrides)
    special = _special_tokens(name_or_path_or_model, source.config, tokenizer)

    fields = {name: value for name, value in source.config.to_dict().items() if name not in _PROVENANCE}
    # ESM's configs may leave special tokens open; its tokenizer opens a chain with <cls>, and so does the default.
    fields = {name: value for name, value in fields.items() if value is not None}
    # ESM computes GELU by its own formula, which differs from torch's in the last bit of every layer.
    fields |= {"hidden_act": "gelu_python", "attn_implementation": source.config._attn_implementation}
    model = CoordformerForMaskedLM(CoordformerConfig(**fields | special | {"contact_head": True} | overrides))
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
    misfit = f"The overrides {overrides} do not fit the weights of {type(source).__name__}"
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{misfit}: {error}") from error
    new = NEW_WEIGHTS
    if not any(name.startswith("lm_head.") for name in weights):
        new += r"|^lm_head\."
    if lost := unexpected + [name for name in missing if not re.search(new, name)]:
        raise ValueError(f"{misfit}: {', '.join(lost)}.")
    embedding = model.coordformer.coordinate_embedding
    zeros = [] if embedding is None else list(embedding.parameters())
    for module in (each for each in model.modules() if isinstance(each, InvariantPointAttention)):
        # Points that attend to all residues alike, and whose output is zero.
        zeros += [*module.output_points.parameters(), module.missing]
        with torch.no_grad():
            module.log_sigma.copy_(module.log_sigmas(1e4, 1e4))
        if module.message_passing is not None:
            module.message_passing.zero_init()
    for parameter in zeros:
        nn.init.zeros_(parameter)
    return model.to(dtype=source.dtype).eval()  # type: ignore[call-arg]


def give_weights(source: CoordformerForMaskedLM, model: CoordformerForMaskedLM) -> CoordformerForMaskedLM:
    """Give a model's weights to one that has more layers, or reads more atoms, whose columns start at zero.

    What else `model` has more stays as it is. Returns `model`.
    """
    weights, config = source.state_dict(), source.config
    atoms = model.config.coordinate_atoms
    if config.coordinate_atoms != atoms:
        of_coordinates = config.coordinate_dim + (config.coordinate_embedding == "quadratic") + 1
        features = {"coordinate_embedding": of_coordinates, "distance_bias": config.num_distance_bins + 1}
        for name in weights.keys() & {f"coordformer.{layer}.weight" for layer in features}:
            shape = -1, len(config.coordinate_atoms), features[name.split(".")[1]]
            old, new = weights[name].unflatten(-1, shape), torch.zeros_like(model.state_dict()[name])
            for number, atom in enumerate(config.coordinate_atoms):
                new.unflatten(-1, (-1, len(atoms), shape[-1]))[:, :, atoms.index(atom)] = old[:, :, number]
            weights[name] = new
    model.load_state_dict(weights, strict=False)
    return model


def behind_esm(
    name_or_path: str | Path,
    attn_implementation: str = "sdpa",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **fields: Any,
) -> CoordformerForMaskedLM:
    """Make a new Coordformer behind a frozen ESM-2, the paper's model of section 5.

    Args:
        name_or_path: Hub name or folder of the ESM-2 checkpoint, whose weights become part of the model.
        attn_implementation: of both.
        tokenizer: as of `from_esm`.
        **fields: of `CoordformerConfig`, for the part that is trained.

    Raises:
        ValueError: the checkpoint is no ESM-2 or lacks weights, its vocabulary is another one and `tokenizer` does not
            fit it, or a field is unusable.
    """
    check_fields(fields)
    loaded: Any = _load_esm(name_or_path, output_loading_info=True)
    esm, info = loaded[0].esm, loaded[1]
    unused = ("lm_head.", "esm.contact_head.")
    if missing := sorted(name for name in info["missing_keys"] if not name.startswith(unused)):
        raise ValueError(f"{name_or_path} lacks {', '.join(missing[:3])}; give a whole ESM-2 checkpoint.")
    # Of the checkpoint's config what is of the model, so that the same checkpoint elsewhere makes an equal config.
    kept = {name: value for name, value in esm.config.to_dict().items() if name not in _PROVENANCE}
    special = _special_tokens(name_or_path, esm.config, tokenizer)
    fields = {"vocab_size": esm.config.vocab_size, "lm_head": "linear", **special, **fields}
    fields["sequence_encoder"] = EsmConfig(**kept)
    config = CoordformerConfig(**fields)
    model = CoordformerForMaskedLM._from_config(config, attn_implementation=attn_implementation)
    weights = {name: tensor for name, tensor in esm.state_dict().items() if not name.startswith("contact_head.")}
    model.coordformer.sequence_encoder.esm.load_state_dict(weights)  # type: ignore[union-attr]
    return model.eval()


def freeze(model: nn.Module, new_weights: str, lora_rank: int | None = None) -> None:
    """Let an optimizer change only what was added to a trained model.

    Args:
        model: a Coordformer.
        new_weights: regular expression of the names of weights that were added, and are trained whole.
        lora_rank: the other linear layers of the encoder get low-rank changes of this rank, see `LowRankChange`, until
            `merge_low_rank`; None: none.

    Raises:
        ValueError: the rank is below 1, or nothing is left to train.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(re.search(new_weights, name) is not None)
    if lora_rank is not None:
        if lora_rank < 1:
            raise ValueError(f"`lora_rank` is {lora_rank}; give a rank of at least 1, or leave it out.")
        base: Any = model.coordformer
        for module in itertools.chain.from_iterable(layer.modules() for layer in base.layers):
            if isinstance(module, nn.Linear) and not module.weight.requires_grad:
                register_parametrization(module, "weight", LowRankChange(module.weight, lora_rank))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("Nothing is left to train: no layer was added, and there is no `lora_rank`.")


class LowRankChange(nn.Module):
    """A matrix W of a trained model, to which B A is added (LoRA, Hu et al. 2021): B starts at zero."""

    def __init__(self, weight: torch.Tensor, rank: int):
        super().__init__()
        rows, columns = weight.shape
        self.lora_A = nn.Parameter(torch.randn(rank, columns) * columns**-0.5)
        self.lora_B = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.lora_B @ self.lora_A


def merge_low_rank(model: nn.Module) -> None:
    """Make the low-rank changes part of the weights, which have their names again."""
    for module in model.modules():
        if is_parametrized(module, "weight"):
            remove_parametrizations(module, "weight", leave_parametrized=True)


def esm_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of an ESM checkpoint, as a fast one: ESM-2's, or one of its own with one token per residue.

    Args:
        name_or_path: Hub name or folder.

    Raises:
        ValueError: it holds no ESM, or one with another vocabulary than ESM-2's and no tokenizer, or one in which not
            each of the 20 amino acids is a token (as of k-mers, or of residues with a letter of structure), or whose
            special tokens are not those of its config.
    """
    config = _esm_config(name_or_path)
    try:
        own = AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError, TypeError):  # the last one where a folder holds no file of a tokenizer
        own = None
    if own is not None and own.get_vocab() != {token: index for index, token in enumerate(VOCABULARY)}:
        return _one_token_per_residue(own, config, name_or_path)
    if own is None and config.vocab_size != len(VOCABULARY):
        what = f"{name_or_path} has {config.vocab_size:,} tokens, where ESM-2 has {len(VOCABULARY)}, and no tokenizer"
        raise ValueError(f"{what} that says which; put its own beside it.")
    return _one_token_per_residue(build_tokenizer(), config, name_or_path)


def _special_tokens(source: Any, config: EsmConfig, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, int]:
    """The config's fields that say which tokens of the source are special; none where its vocabulary is ESM-2's."""
    name = type(source).__name__ if isinstance(source, PreTrainedModel) else str(source)
    if tokenizer is not None:
        tokenizer = _one_token_per_residue(tokenizer, config, name)
    elif not isinstance(source, PreTrainedModel):
        tokenizer = esm_tokenizer(source)
        if tokenizer.get_vocab() != build_tokenizer().get_vocab():
            fix = "give `tokenizer=esm_tokenizer(...)` of coordformer.training.conversion, and save it with the model"
            raise ValueError(f"{name} has a vocabulary of its own, of {len(tokenizer)} tokens; {fix}.")
    elif config.vocab_size != len(VOCABULARY):
        what = f"{name} has {config.vocab_size:,} tokens, where ESM-2 has {len(VOCABULARY)}"
        raise ValueError(f"{what}; give `tokenizer`, one in which each amino acid is a token.")
    else:
        tokenizer = _one_token_per_residue(build_tokenizer(), config, name)
    return {f"{theirs}_token_id": getattr(tokenizer, f"{ours}_token_id") for theirs, ours in SPECIAL_TOKENS.items()}


def _one_token_per_residue(tokenizer: PreTrainedTokenizerBase, config: EsmConfig, name: Any) -> PreTrainedTokenizerBase:
    """The tokenizer as a fast one, if a model can read proteins by it and it is this config's."""
    vocabulary = tokenizer.get_vocab()
    if lost := [letter for letter in AMINO_ACIDS if letter not in vocabulary]:
        what = f"{name} has {len(vocabulary):,} tokens, none of them for {', '.join(lost[:3])}"
        what += f" and {len(lost) - 3} more of the 20 amino acids" if len(lost) > 3 else ""
        raise ValueError(f"{what}; only a model with a token for each of them can be converted.")
    for theirs, ours in {**SPECIAL_TOKENS, "unk": "unk"}.items():
        token_id, stated = getattr(tokenizer, f"{ours}_token_id"), getattr(config, f"{theirs}_token_id", None)
        if token_id is None or stated not in (None, token_id):
            what = f"{name}: <{ours}> is {token_id} to the tokenizer and {stated} to the config ({theirs}_token_id)"
            raise ValueError(f"{what}; give the tokenizer and the config of one model.")
    largest, size = max(vocabulary.values()), int(config.vocab_size or 0)
    if largest >= size:
        raise ValueError(f"{name}: the tokenizer has the token id {largest} and the model {size} tokens; give its own.")
    if tokenizer.is_fast:
        fast = copy.deepcopy(tokenizer)
        fast.bos_token = fast.cls_token  # Trainer writes the tokenizer's idea of it into the config
    else:
        fast = build_tokenizer(sorted(vocabulary, key=vocabulary.__getitem__))
    expected = [fast.cls_token_id, *(vocabulary[letter] for letter in AMINO_ACIDS), fast.eos_token_id]
    for each in (tokenizer, fast):
        if each(AMINO_ACIDS)["input_ids"] != expected:
            what = f"{name}: the tokenizer makes {len(each(AMINO_ACIDS)['input_ids'])} tokens of the 20 amino acids"
            raise ValueError(f"{what} and not <cls>, one for each, and <eos>; give one of single letters.")
    return fast


def _esm_config(name_or_path: str | Path) -> EsmConfig:
    config: Any = AutoConfig.from_pretrained(name_or_path)
    if config.model_type != "esm":
        raise ValueError(f"{name_or_path} holds a {config.model_type} model; give an ESM-2 checkpoint.")
    return config


def _load_esm(name_or_path: str | Path, **options: Any) -> Any:
    _esm_config(name_or_path)
    try:
        return EsmForMaskedLM.from_pretrained(name_or_path, use_safetensors=True, **options)
    except SafetensorError as error:
        raise ValueError(f"The weights in {name_or_path} are damaged or cut off ({error}); get them again.") from error


def from_paper_state_dict(
    state_dict: Mapping[str, torch.Tensor], kind: str, **overrides: Any
) -> CoordformerForMaskedLM | PointCloudAttention:
    """Make a Coordformer of weights that the paper's authors published, which compute the same.

    As everywhere, coordinates go in as they are, in Å: the model centers them, as the paper does to its data.

    Args:
        state_dict: weights under their published names, those of `torch.nn.TransformerEncoder` or of fair-esm.
        kind: which of the paper's models: `"simulated"` (section 1), `"pretrained"` (2) or `"esm_conditioned"` (5).
        **overrides: fields of `CoordformerConfig` that leave the shapes of the weights alone. The authors' models
            without coordinates hold an embedding of coordinates that they never used: they need
            `coordinate_embedding="none"`. The weights of `"pretrained"` do not say `num_attention_heads`; the default
            is the paper's 12. For `"simulated"` it is as many as the measured head goes into the width.

    Returns:
        For `"simulated"` a `PointCloudAttention`, else a `CoordformerForMaskedLM`, in evaluation mode.

        The alphabet of `"pretrained"` becomes ESM's vocabulary: `[` and `]` are `<cls>` and `<eos>`, `~` is `<mask>`,
        `-` is `<pad>`, and `_`, which never occurs, `<null_1>`. The tokens that it lacks (`<unk>`, B, U, Z, O, `.` and
        the gap) are read as X and never predicted: their logit is -10,000, so that a softmax over the vocabulary is
        one over the paper's alphabet.

    Raises:
        ValueError: `kind` or an override is unknown; weights are missing, unexpected or of another shape; the positions
            are not those of `sinusoidal_positions`; the overrides do not fit the weights.
    """
    if kind not in PAPER_KINDS:
        raise ValueError(f"`kind` is {kind!r}; choose one of {', '.join(PAPER_KINDS)}.")
    check_fields(overrides)
    model, weights = PAPER_KINDS[kind](state_dict, overrides)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"The overrides {overrides} do not fit the weights of the {kind} model: {error}") from error
    return model.eval()


def _pretrained(state_dict: Mapping[str, torch.Tensor], overrides: dict[str, Any]):
    """The model of section 2 and its weights under Coordformer's names."""
    fields = _encoder_sizes(state_dict, "linear1")
    width, layers, letters = fields["hidden_size"], fields["num_hidden_layers"], len(PAPER_ALPHABET)
    positions = _shape_of(state_dict, "positional_encoding.pos_embedding", 3)[0]
    with torch.device("meta"):
        layout = {
            "embed": nn.Embedding(letters, width),
            "coords_embed": nn.Linear(4, width),
            "positional_encoding": nn.ParameterDict({"pos_embedding": torch.empty(positions, 1, width)}),
            "encoder": _torch_encoder(width, fields["intermediate_size"], layers),
            "norm": nn.LayerNorm(width),
            "generator": nn.Linear(width, letters),
        }
    _check_layout(state_dict, layout)
    table = state_dict["positional_encoding.pos_embedding"].squeeze(1)
    difference = (table - sinusoidal_positions(torch.arange(positions).unsqueeze(0), width)[0]).abs().max().item()
    if not difference < TABLE_TOLERANCE:
        raise ValueError(
            f"positional_encoding.pos_embedding differs by {difference:.3g} from the fixed table of sines and cosines, "
            "the only one that the paper's model has; Coordformer computes it and takes no other."
        )

    fields |= {"num_attention_heads": 12, "position_embedding_type": "sinusoidal", "lm_head": "linear"}
    model = CoordformerForMaskedLM(CoordformerConfig(**fields | overrides))
    rows = [PAPER_ALPHABET.index(token if token in PAPER_ALPHABET else "X") for token in VOCABULARY]
    lacking = torch.tensor([token not in PAPER_ALPHABET for token in VOCABULARY])
    weights = _torch_encoder_weights(state_dict, layers, "norm", "coordformer.esm.")
    weights["coordformer.esm.embeddings.word_embeddings.weight"] = state_dict["embed.weight"][rows]
    weights["lm_head.weight"] = state_dict["generator.weight"][rows].masked_fill(lacking.unsqueeze(1), 0.0)
    weights["lm_head.bias"] = state_dict["generator.bias"][rows].masked_fill(lacking, NO_LOGIT)
    if model.coordformer.coordinate_embedding is not None:
        weights |= _take(state_dict, {"coords_embed": "coordformer.coordinate_embedding"})
        # The paper divides the missing flag by 16 with the coordinates.
        name = "coordformer.coordinate_embedding.weight"
        weights[name] = weights[name] * torch.tensor([1.0, 1.0, 1.0, 1 / 16])
    return model, weights


def _simulated(state_dict: Mapping[str, torch.Tensor], overrides: dict[str, Any]):
    """The model of section 1 and its weights under Coordformer's names."""
    fields = _encoder_sizes(state_dict, "linear1")
    width, layers = fields["hidden_size"], fields["num_hidden_layers"]
    dim = _shape_of(state_dict, "embed.weight", 2)[1]
    head_size = _shape_of(state_dict, "pa.query_map.weight", 2)[0]
    with torch.device("meta"):
        measured = {"key_map": nn.Linear(width, head_size), "query_map": nn.Linear(width, head_size)}
        layout = {
            "embed": nn.Linear(dim, width),
            "encoder": _torch_encoder(width, fields["intermediate_size"], layers),
            "pa": nn.ModuleDict(measured | {"norm": nn.LayerNorm(width)}),
        }
    _check_layout(state_dict, layout)

    fields |= {"num_attention_heads": max(width // head_size, 1), "coordinate_dim": dim}
    fields |= {"hidden_act": "relu", "position_embedding_type": "none"}
    model = PointCloudAttention(CoordformerConfig(**fields | overrides), head_size)
    weights = _torch_encoder_weights(state_dict, layers, "pa.norm", "encoder.esm.")
    # Points have no tokens, and none is missing.
    tokens = model.encoder.get_input_embeddings().weight
    weights["encoder.esm.embeddings.word_embeddings.weight"] = torch.zeros_like(tokens)
    weights["encoder.coordinate_embedding.weight"] = nn.functional.pad(state_dict["embed.weight"], (0, 1))
    weights["encoder.coordinate_embedding.bias"] = state_dict["embed.bias"]
    return model, weights | _take(state_dict, {"pa.query_map": "query", "pa.key_map": "key"})


def _esm_conditioned(state_dict: Mapping[str, torch.Tensor], overrides: dict[str, Any]):
    """The model of section 5 and its weights under Coordformer's names."""
    fields = _encoder_sizes(state_dict, "fc1")
    width, layers, letters = fields["hidden_size"], fields["num_hidden_layers"], len(VOCABULARY)
    frequencies = _shape_of(state_dict, "encoder.layers.0.self_attn.rot_emb.inv_freq", 1)[0]
    fields["num_attention_heads"] = heads = width // (2 * frequencies)
    with torch.device("meta"):
        layout = {
            "esm_model": _fair_esm(width, fields["intermediate_size"], layers, heads, letters),
            "encoder": _fair_esm(width, fields["intermediate_size"], layers, heads, letters),
            "coords_embed": nn.Linear(3, width),
            "connector": nn.Linear(width, width),
            "norm": nn.LayerNorm(width),
            "generator": nn.Linear(width, letters),
        }
    _check_layout(state_dict, layout)

    esm = EsmConfig(
        **fields, vocab_size=letters, pad_token_id=1, mask_token_id=32, position_embedding_type="rotary",
        token_dropout=True, emb_layer_norm_before=False, layer_norm_eps=1e-5,
    )  # fmt: skip
    fields |= {"sequence_encoder": esm, "lm_head": "linear", "hidden_act": "gelu_python"}
    model = CoordformerForMaskedLM(CoordformerConfig(**fields | overrides))
    # Neither the second stack's own tokens nor the heads of either have a part in the model.
    front = "coordformer.sequence_encoder.esm."
    weights = _fair_esm_weights(state_dict, layers, "esm_model.emb_layer_norm_after", "esm_model.", front)
    weights |= _fair_esm_weights(state_dict, layers, "norm", "encoder.", "coordformer.esm.")
    kept = {"esm_model.embed_tokens": f"{front}embeddings.word_embeddings", "connector": "coordformer.connector"}
    weights |= _take(state_dict, kept | {"generator": "lm_head"})
    if model.coordformer.coordinate_embedding is not None:
        weights |= _take(state_dict, {"coords_embed": "coordformer.coordinate_embedding"})
        # This model has no missing flag: what is missing lies at the origin.
        name = "coordformer.coordinate_embedding.weight"
        weights[name] = nn.functional.pad(weights[name], (0, 1))
    return model, weights


PAPER_KINDS = {"pretrained": _pretrained, "simulated": _simulated, "esm_conditioned": _esm_conditioned}


def _shape_of(state_dict: Mapping[str, torch.Tensor], name: str, axes: int) -> torch.Size:
    if name not in state_dict or state_dict[name].dim() != axes:
        raise ValueError(
            f"`state_dict` has no {name} with {axes} axes; give the published weights of the `kind` that you name."
        )
    return state_dict[name].shape


def _encoder_sizes(state_dict: Mapping[str, torch.Tensor], feed_forward: str) -> dict[str, Any]:
    """Fields of the config, from shapes of the encoder's weights; `feed_forward` names its first such layer."""
    intermediate_size, hidden_size = _shape_of(state_dict, f"encoder.layers.0.{feed_forward}.weight", 2)
    layers = len({name.split(".")[2] for name in state_dict if name.startswith("encoder.layers.")})
    return {"hidden_size": hidden_size, "intermediate_size": intermediate_size, "num_hidden_layers": layers}


def _torch_encoder(width: int, intermediate_size: int, layers: int) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(width, 1, intermediate_size)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def _check_layout(state_dict: Mapping[str, torch.Tensor], layout: dict[str, nn.Module]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in nn.ModuleDict(layout).state_dict().items()}
    faults = [f"{name} is missing" for name in expected if name not in state_dict]
    faults += [f"{name} is unexpected" for name in state_dict if name not in expected]
    faults += [
        f"{name} has shape {tuple(state_dict[name].shape)} and not {shape}"
        for name, shape in expected.items()
        if name in state_dict and tuple(state_dict[name].shape) != shape
    ]
    if faults:
        shown = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
        raise ValueError(f"`state_dict` does not fit the `kind` that you name: {shown}.")


def _take(state_dict: Mapping[str, torch.Tensor], names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Weights and biases of modules, under other names of these."""
    return {
        f"{name}.{part}": state_dict[f"{theirs}.{part}"]
        for theirs, name in names.items()
        for part in ("weight", "bias")
        if f"{theirs}.{part}" in state_dict
    }


def _layers(theirs: str, ours: str, layers: int, parts: Mapping[str, str], final_norm: str) -> dict[str, str]:
    """The names of an encoder's modules, those of layers after `theirs`, and EsmModel's, which begin with `ours`."""
    names = {
        f"{theirs}.{layer}.{part}": f"{ours}encoder.layer.{layer}.{name}"
        for layer in range(layers)
        for part, name in parts.items()
    }
    return names | {final_norm: f"{ours}encoder.emb_layer_norm_after"}


def _torch_encoder_weights(
    state_dict: Mapping[str, torch.Tensor], layers: int, final_norm: str, ours: str
) -> dict[str, torch.Tensor]:
    """The encoder's layers and the LayerNorm after them, under EsmModel's names after `ours`."""
    weights = _take(state_dict, _layers("encoder.layers", ours, layers, LAYER_PARTS, final_norm))
    for layer in range(layers):
        for part in ("weight", "bias"):
            stacked = state_dict[f"encoder.layers.{layer}.self_attn.in_proj_{part}"].chunk(3)
            for name, tensor in zip(("query", "key", "value"), stacked, strict=True):
                weights[f"{ours}encoder.layer.{layer}.attention.self.{name}.{part}"] = tensor
    return weights


def _fair_esm(width: int, intermediate_size: int, layers: int, heads: int, letters: int) -> nn.ModuleDict:
    """fair-esm's ESM2 as far as names and shapes go."""

    def layer() -> nn.ModuleDict:
        attention = nn.ModuleDict({f"{name}_proj": nn.Linear(width, width) for name in ("k", "v", "q", "out")})
        attention["rot_emb"] = nn.ParameterDict({"inv_freq": torch.empty(width // heads // 2)})
        modules = nn.ModuleDict({"self_attn": attention, "self_attn_layer_norm": nn.LayerNorm(width)})
        modules["fc1"], modules["fc2"] = nn.Linear(width, intermediate_size), nn.Linear(intermediate_size, width)
        modules["final_layer_norm"] = nn.LayerNorm(width)
        return modules

    stack = nn.ModuleDict({"embed_tokens": nn.Embedding(letters, width)})
    stack["layers"] = nn.ModuleList(layer() for _ in range(layers))
    stack["contact_head"] = nn.ModuleDict({"regression": nn.Linear(layers * heads, 1)})
    stack["emb_layer_norm_after"] = nn.LayerNorm(width)
    stack["lm_head"] = lm_head = nn.Linear(width, letters)
    lm_head.dense, lm_head.layer_norm = nn.Linear(width, width), nn.LayerNorm(width)
    return stack


def _fair_esm_weights(
    state_dict: Mapping[str, torch.Tensor], layers: int, final_norm: str, theirs: str, ours: str
) -> dict[str, torch.Tensor]:
    """The layers that begin with `theirs` and the LayerNorm after them, under EsmModel's names after `ours`."""
    weights = _take(state_dict, _layers(f"{theirs}layers", ours, layers, FAIR_ESM_PARTS, final_norm))
    # In EsmModel the layers share one set of rotary frequencies.
    frequencies = state_dict[f"{theirs}layers.0.self_attn.rot_emb.inv_freq"]
    return weights | {f"{ours}rotary_embeddings.inv_freq": frequencies}


TITLES = {"proteinmpnn": "ProteinMPNN ", "esm": "ESM-2 "}  # of weights whose file says less


def convert(
    source: str | Path, output: str | Path, *, kind: str, without_coords: bool = False, progress: bool = True
) -> dict[str, Any]:
    """Make a folder that Transformers loads of published weights of other models: `coordformer convert`.

    Args:
        source: file of weights, or of ESM-2 a folder or Hub name.
        output: gets the model, and for proteins its processor.
        kind: `"esm"`, `"proteinmpnn"`, or which of the paper's models the weights are of, see `from_paper_state_dict`.
        without_coords: the result reads no coordinates.
        progress: is there for the command; nothing takes long.

    Returns:
        `output`, `model` (its class) and `parameters`.

    Raises:
        ValueError: `output` is a file or holds a model, or the weights are others.
    """
    output = Path(output)
    if output.is_file() or (output / "config.json").exists():
        raise ValueError(
            f"{output} {'is a file' if output.is_file() else 'holds a model'}; give another folder, or delete it."
        )
    if kind == "proteinmpnn" and without_coords:
        raise ValueError("`without_coords`: ProteinMPNN reads nothing but coordinates and letters of neighbors.")
    overrides = {"coordinate_embedding": "none"} if without_coords else {}
    tokenizer: Any = None
    if kind == "esm":
        tokenizer = esm_tokenizer(source)
        model: Any = from_esm(source, tokenizer=tokenizer, **overrides)
    elif kind == "proteinmpnn":
        model = from_proteinmpnn(source)
    else:
        model = from_paper_state_dict(read_state_dict(source), kind, **overrides)
    model.save_pretrained(output)
    if kind != "simulated":
        atoms, optional = model.config.coordinate_atoms, model.config.optional_atoms
        CoordformerProcessor(tokenizer, atoms, optional_atoms=optional).save_pretrained(output)
        # What it was trained on is not known; whatever starts from it says so by the name of the weights.
        name = Path(source).name if Path(source).exists() else str(source)
        TrainingSequences.of((), [f"{TITLES.get(kind, '')}{name}"]).write(output / FILE)
    if kind == "proteinmpnn":
        (output / "README.md").write_text(CARD.format(file=Path(source).name, license=LICENSE), encoding="utf-8")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"output": str(output), "model": type(model).__name__, "parameters": parameters}


def describe(summary: Mapping[str, Any]) -> str:
    """What `convert` made, as a short text."""
    return f"{summary['model']} of {summary['parameters']:,} parameters"
