"""Perplexity and recovery of a checkpoint on a data set, under the two protocols: `coordformer evaluate`."""

import functools
import hashlib
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tqdm.auto import tqdm
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..data.batching import ChainBatches, read_lengths
from ..data.collator import PROTOCOLS, CoordformerDataCollator
from ..data.geometry import rotations_from_normals
from ..data.pack import PackedChains
from ..model import modeling_coordformer
from ..model.configuration_coordformer import CoordformerConfig
from ..model.modeling_coordformer import IGNORED_LABEL
from ..model.processing_coordformer import SPECIAL_TOKENS, CoordformerProcessor, longest_window, window_starts
from ..model.structure import AMINO_ACIDS, Chain
from .metrics import bootstrap, count_predictions, summarize


def open_chains(path: str | Path, split: str | None = None) -> Any:
    """A data set of chains: a folder made by `coordformer prepare`, a Parquet file, or a bundle (`.safetensors`)."""
    if Path(path).suffix == ".safetensors":
        return PackedChains(path, split)
    from ..data.rows import load_rows  # a bundle is read without pyarrow and datasets

    return load_rows(path, split)


def letter_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Token ids of the 20 amino acids by letter."""
    return {letter: tokenizer.get_vocab()[letter] for letter in AMINO_ACIDS}


def chain_generator(name: str, *numbers: int) -> np.random.Generator:
    """Random numbers that are a function of a chain's id and of `numbers` alone."""
    return np.random.default_rng([zlib.crc32(name.encode()), *numbers])


def draw_rotations(ids: Sequence[str], num_rotations: int, seed: int = 0, dim: int = 3) -> torch.Tensor:
    """The frames in which chains are predicted: the given one, and others uniform on SO(D).

    Args:
        ids: of the chains.
        num_rotations: frames of each chain.
        seed: of all but the first.
        dim: D, the model's `config.coordinate_dim`.

    Returns:
        Rotation matrices (chains, num_rotations, D, D), float32; the first ones stay the same when more are drawn.
    """
    normals = np.stack([chain_generator(name, 0, seed).normal(size=(num_rotations, dim, dim)) for name in ids])
    normals[:, 0] = np.eye(dim)
    return rotations_from_normals(torch.from_numpy(normals)).to(torch.float32)


@torch.no_grad()
def predict_in_windows(
    model: PreTrainedModel, batch: Mapping[str, torch.Tensor], window: int, token_budget: int = 8192, *, output: str
) -> torch.Tensor:
    """One of a model's outputs for a right-padded batch, whatever the length of its chains.

    A chain of more than `window` residues is predicted in windows that overlap by half, and what they give for a token
    is averaged. Each window is a chain to the model, with its own `<cls>`, `<eos>` and center; as many are predicted at
    once as have `token_budget` tokens, but one in any case.

    Args:
        output: name of the output, such as `"logits"`, of shape (batch, length, features), which is the result's.
    """
    window = longest_window(model, window)
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    if max(lengths) - SPECIAL_TOKENS <= window:
        return getattr(model(**batch), output)
    # Of a chain, not of its tokens: all its windows are turned alike.
    batch = dict(batch)
    turns = batch.pop("rotations", None)
    rows = []
    for row, length in enumerate(lengths):
        residues = length - SPECIAL_TOKENS
        inside = min(window, residues)
        tokens = [[0, *range(first + 1, first + 1 + inside), length - 1] for first in window_starts(residues, inside)]
        index = torch.tensor(tokens, device=model.device)
        parts = []
        for some in index.split(max(1, token_budget // (inside + SPECIAL_TOKENS))):
            windows = {name: values[row][some] for name, values in batch.items()}
            if turns is not None:
                windows["rotations"] = turns[row].expand(len(some), *turns.shape[1:])
            parts.append(getattr(model(**windows), output).float())
        values = torch.cat(parts)
        total = values.new_zeros(max(lengths), values.shape[-1]).index_put_((index,), values, accumulate=True)
        rows.append(total / index.flatten().bincount(minlength=max(lengths)).clamp(min=1).unsqueeze(1))
    return torch.stack(rows)


def predict_logits(
    model: PreTrainedModel,
    batch: Mapping[str, torch.Tensor],
    window: int,
    token_budget: int = 8192,
    rotations: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits (batch, length, vocabulary) of a right-padded batch, of long chains as in `predict_in_windows`.

    With `rotations` (batch, K, D, D), as of `draw_rotations`, each chain is predicted in K frames, and the logits are
    the logarithm of the mean of the K probabilities over the vocabulary.
    """
    if rotations is None:
        return predict_in_windows(model, batch, window, token_budget, output="logits")
    frames = (
        predict_logits(model, {**batch, "rotations": frame}, window, token_budget).float().log_softmax(dim=-1)
        for frame in rotations.split(1, dim=1)
    )
    return functools.reduce(torch.logaddexp, frames) - math.log(rotations.shape[1])


def masked_batches(
    model: PreTrainedModel,
    rows: Any,
    tokenizer: PreTrainedTokenizerBase,
    protocol: str = "masked15",
    draw: int = 0,
    *,
    noise: float = 0.0,
    missing: float = 0.0,
    without_own_coords: bool = False,
    token_budget: int = 8192,
    window: int = 1024,
) -> Iterator[tuple[np.ndarray, list[str], dict[str, torch.Tensor]]]:
    """Every chain once, in padded batches on the model's device; the arguments are those of `count_chains`.

    Yields:
        Row numbers and ids of a batch's chains, and what the model and `count_predictions` take of them, `labels`
        included.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"`protocol` is {protocol!r}; choose one of {', '.join(PROTOCOLS)}.")
    for name, value, least in (("token_budget", token_budget, 1), ("window", window, 2)):
        if value < least:
            raise ValueError(f"`{name}` is {value}; it must be at least {least}.")
    if not 0 <= missing <= 1:
        raise ValueError(f"`missing` is {missing}; it is a share between 0 and 1.")
    collator = CoordformerDataCollator(
        tokenizer,
        atoms=model.config.coordinate_atoms,
        dim=model.config.coordinate_dim,
        masking=protocol,
        rotate=False,
        noise=noise,
    )
    longest = min(window, int(read_lengths(rows).max())) + SPECIAL_TOKENS
    batches = ChainBatches(rows, token_budget=max(token_budget, longest), packing=False, max_length=window)
    batches.set_epoch(draw)
    for number, indices in enumerate(batches.order()):
        chains = batches[number]
        ids = [str(chain["id"]) for chain in chains]
        batch = collator([chains])
        if missing:
            width = batch["input_ids"].shape[1]
            scores = np.stack([chain_generator(name, 1, draw).random(width) for name in ids])
            batch["coords"][torch.from_numpy(scores < missing)] = torch.nan
        if without_own_coords:
            batch["coords"][batch["labels"] != IGNORED_LABEL] = torch.nan
        yield indices, ids, {name: value.to(model.device) for name, value in batch.items()}


@torch.no_grad()
def count_chains(
    model: PreTrainedModel,
    rows: Any,
    tokenizer: PreTrainedTokenizerBase,
    protocol: str = "masked15",
    *,
    draws: int = 3,
    without_coords: bool = False,
    num_rotations: int = 1,
    noise: float = 0.0,
    missing: float = 0.0,
    without_own_coords: bool = False,
    token_budget: int = 8192,
    window: int = 1024,
    progress: bool = True,
) -> np.ndarray:
    """Predict masked residues of every chain under a protocol.

    Args:
        model: a masked-LM Coordformer.
        rows: chains, see `open_chains`.
        tokenizer: of the model.
        protocol: `"paper"` (15 % of the residues, of these 80 % masked, 10 % another residue, 10 % unchanged; softmax
            over the vocabulary) or `"masked15"` (15 % of the residues with coordinates and without X, all masked;
            softmax over the 20 amino acids). What is chosen depends on the draw and the chain's id alone.
        draws: how many times the residues are chosen anew.
        without_coords: withhold all coordinates; the same residues are chosen.
        num_rotations: frames in which each chain is predicted, of which the probabilities are averaged; the first is
            the given one, the others depend on the chain's id alone.
        noise: standard deviation in Å of Gaussian noise on each coordinate; the same residues are chosen.
        missing: share of the residues, masked or not, whose coordinates are withheld at random, the same ones and more
            at a larger share; the same residues are chosen.
        without_own_coords: withhold the coordinates of the residues that are to be predicted.
        token_budget: tokens of a batch; the longest chain, or window of it, fits in any case.
        window: chains with more residues are predicted in overlapping windows of this many.
        progress: show a progress bar.

    Returns:
        Counts as in `metrics.count_predictions`, (draws, chains, vocabulary, 3), chains in the order of `rows`.
    """
    for name, value in (("draws", draws), ("num_rotations", num_rotations)):
        if value < 1:
            raise ValueError(f"`{name}` is {value}; it must be at least 1.")
    candidates = list(letter_ids(tokenizer).values()) if protocol == "masked15" else None
    counts = np.zeros((draws, len(rows), model.config.vocab_size, 3))
    model.eval()
    with tqdm(total=draws * len(rows), unit="chain", desc=protocol, disable=not progress) as bar:
        for draw in range(draws):
            for indices, ids, batch in masked_batches(
                model,
                rows,
                tokenizer,
                protocol,
                draw,
                noise=noise,
                missing=missing,
                without_own_coords=without_own_coords,
                token_budget=token_budget,
                window=window,
            ):
                labels = batch.pop("labels")
                if without_coords:
                    del batch["coords"]
                rotations = None
                if num_rotations > 1:
                    rotations = draw_rotations(ids, num_rotations, dim=model.config.coordinate_dim).to(model.device)
                logits = predict_logits(model, batch, window, token_budget, rotations)
                counts[draw, indices] = count_predictions(logits, labels, candidates).cpu().numpy()
                bar.update(len(indices))
    return counts


def summarize_draws(counts: np.ndarray, letters: Mapping[str, int]) -> dict[str, Any]:
    """What is reported of `count_chains`: all draws together, the spread over them, and a bootstrap over chains."""
    summary = summarize(counts, letters)
    by_draw = [summarize(draw) for draw in counts]
    # One chain's draws are not independent: the bootstrap draws chains.
    intervals = bootstrap({"model": counts.sum(axis=0)})["model"]
    return {
        "perplexity": summary["perplexity"],
        "perplexity_interval": intervals["perplexity"],
        "perplexity_by_draw": [draw["perplexity"] for draw in by_draw],
        "recovery": summary["recovery"],
        "recovery_interval": intervals["recovery"],
        "recovery_by_draw": [draw["recovery"] for draw in by_draw],
        "recovery_by_residue": summary["recovery_by_residue"],
        "predictions": summary["residues"],
    }


def coordinates_of(model: PreTrainedModel) -> str:
    """How a model takes coordinates, in a word or two; `none` if it does not."""
    ways = [model.config.coordinate_embedding] if model.config.coordinate_embedding != "none" else []
    ways += ["distance bias"] * bool(model.config.num_distance_bins) + ["points"] * bool(model.config.num_qk_points)
    messages = "gated messages" if model.config.message_gating == True else "messages"
    ways += [messages] * bool(model.config.num_neighbors)
    return " and ".join(filter(None, (", ".join(ways[:-1]), *ways[-1:]))) or "none"


def coordinates_given(model: PreTrainedModel, chain: Chain, without_coords: bool) -> str:
    """What a model gets of a chain's coordinates: `given`, `withheld`, `unknown` (none is observed) or `not read`."""
    if coordinates_of(model) == "none":
        return "not read"
    return "unknown" if not chain.observed.any() else "withheld" if without_coords else "given"


def digest_weights(model: torch.nn.Module) -> str:
    """A checksum of a model's weights in their dtype: another model's folder may have the same name."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def load_checkpoint(
    checkpoint: str | Path, dtype: str = "float32", any_head: bool = False
) -> tuple[PreTrainedModel, CoordformerProcessor]:
    """A masked-LM Coordformer, on the GPU if there is one, and its processor.

    With `any_head` a Coordformer with the head that it was saved with, or without one.

    Raises:
        ValueError: the folder or name holds no such model, or the processor is missing.
    """
    fix = "give a folder that `coordformer train` wrote, or the name of a Coordformer on the Hub"
    path = Path(checkpoint)
    # What lies beside it is here: no name on the Hub, which would be asked again and again.
    beside = len(path.parts) == 2 and path.parent.is_dir()
    if not path.exists() and (path.is_absolute() or len(path.parts) > 2 or beside):
        raise ValueError(f"There is no folder {checkpoint}; {fix}.")
    if path.is_dir() and not (path / "processor_config.json").exists():
        raise ValueError(
            f"{checkpoint} holds no processor; {fix}, or add it by CoordformerProcessor().save_pretrained."
        )
    try:
        config = AutoConfig.from_pretrained(checkpoint)
        if config.model_type != CoordformerConfig.model_type:
            raise ValueError(f"it holds a {config.model_type} model")
        saved_as = (config.architectures or ["CoordformerModel"])[0]
        model, info = getattr(modeling_coordformer, saved_as if any_head else "CoordformerForMaskedLM").from_pretrained(
            checkpoint, config=config, dtype=dtype, output_loading_info=True
        )
        if missing := sorted(info["missing_keys"]):
            kind = "whole model" if any_head else "masked language model"
            raise ValueError(f"it lacks {', '.join(missing[:3])}, so it is no {kind}")
        processor = CoordformerProcessor.from_pretrained(checkpoint)
    except (OSError, ValueError, AttributeError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise ValueError(f"{checkpoint} cannot be loaded ({' '.join(str(error).split())}); {fix}.") from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), processor


def evaluate(
    checkpoint: str | Path,
    data: str | Path,
    *,
    split: str | None = None,
    protocols: Sequence[str] = PROTOCOLS,
    draws: int = 3,
    without_coords: bool = False,
    num_rotations: int = 1,
    dtype: str = "float32",
    token_budget: int = 8192,
    window: int = 1024,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate a checkpoint on a data set; the arguments are those of `count_chains`.

    Returns:
        `checkpoint`, `weights` (see `digest_weights`), `data`, `split`, `coordinates`, `dtype`, `num_rotations`,
        `draws`, `chains`, `residues`, and for each protocol what `summarize_draws` returns.
    """
    rows = open_chains(data, split)
    model, processor = load_checkpoint(checkpoint, dtype)
    tokenizer = processor.tokenizer
    report: dict[str, Any] = {
        "checkpoint": Path(checkpoint).name,
        "weights": digest_weights(model),
        "data": Path(data).name,
        "split": split,
        "coordinates": "withheld" if without_coords else coordinates_of(model),
        "dtype": dtype,
        "num_rotations": num_rotations,
        "draws": draws,
        "chains": len(rows),
        "residues": int(read_lengths(rows).sum()),
    }
    for protocol in protocols:
        counts = count_chains(
            model,
            rows,
            tokenizer,
            protocol,
            draws=draws,
            without_coords=without_coords,
            num_rotations=num_rotations,
            token_budget=token_budget,
            window=window,
            progress=progress,
        )
        report[protocol] = summarize_draws(counts, letter_ids(tokenizer))
    return report
