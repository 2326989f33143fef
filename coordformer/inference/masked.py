"""Prediction of masked residues: which are masked, in which frames, and what comes of it."""

import functools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.batching import fetch_rows
from ..data.collator import PROTOCOLS, CoordformerDataCollator, rotations_from_normals
from ..model.modeling_coordformer import IGNORED_LABEL
from ..model.predict import Row, longest_first, predict
from ..model.processing_coordformer import letter_ids
from ..model.proteins import Record
from ..model.windows import SPECIAL_TOKENS, cut_window, longest_window, window_starts
from .metrics import bootstrap, count_predictions, summarize

CHAINS_AT_ONCE = 512  # of a data set that is counted in memory


def chain_generator(name: str, *numbers: int) -> np.random.Generator:
    """Random numbers that are a function of a chain's id and of `numbers` alone."""
    return np.random.default_rng([zlib.crc32(name.encode()), *numbers])


def draw_rotations(name: str, num_rotations: int, seed: int = 0, dim: int = 3) -> torch.Tensor:
    """The frames in which a chain is predicted: the given one, and others uniform on SO(D).

    Args:
        name: id of the chain.
        num_rotations, seed: how many frames, and the seed of all but the first.
        dim: D, the model's `config.coordinate_dim`.

    Returns:
        Rotation matrices (num_rotations, D, D), float32; the first ones stay the same when more are drawn.
    """
    normals = chain_generator(name, 0, seed).normal(size=(num_rotations, dim, dim))
    normals[0] = np.eye(dim)
    return rotations_from_normals(torch.from_numpy(normals)).to(torch.float32)


def predict_masked(
    model: PreTrainedModel, chains: Sequence[Record], tokenizer: PreTrainedTokenizerBase, protocol: str = "masked15",
    sample: int = 0, *, num_rotations: int = 1, seed: int = 0, noise: float = 0.0, missing: float = 0.0,
    without_coords: bool = False, without_own_coords: bool = False, token_budget: int = 8192, window: int = 1024,
    bar: tqdm | None = None,
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:  # fmt: skip
    """Predict the masked residues of chains in one or several frames.

    Args:
        sample: number of the choice of residues; it depends on this and the chain's id alone.
        seed: of the frames.
        bar: is moved on by each chain that is done.
        model, chains, tokenizer, protocol, ...: as of `count_chains`.

    Yields:
        Number of a chain that has such residues, their token ids (asked,), and logits (num_rotations, asked,
        vocabulary), float32, averaged over the windows of a long chain.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"`protocol` is {protocol!r}; choose one of {', '.join(PROTOCOLS)}.")
    if not 0 <= missing <= 1:
        raise ValueError(f"`missing` is {missing}; it is a share between 0 and 1.")
    config = model.config
    window = longest_window(config, window)
    layout: dict[str, Any] = {"atoms": config.coordinate_atoms, "dim": config.coordinate_dim, "rotate": False}
    layout |= {"optional_atoms": config.optional_atoms}
    layout["give_noise_level"] = config.noise_conditioning and not config.noise_level
    collator = CoordformerDataCollator(tokenizer, masking=protocol, noise=noise, **layout)
    truth: dict[int, np.ndarray] = {}
    total: dict[int, np.ndarray] = {}
    visits: dict[int, np.ndarray] = {}

    def rows() -> Iterator[Row]:
        for number in longest_first(chains):
            chain = chains[number]
            record = dict(chain) if isinstance(chain, Mapping) else vars(chain)
            name = str(record["id"])
            batch = collator([{**record, "epoch": sample}])
            arrays = {key: values[0].numpy() for key, values in batch.items() if key != "attention_mask"}
            if without_coords:
                arrays["coords"] = np.full_like(arrays["coords"], np.nan)
            residues = len(arrays["input_ids"]) - SPECIAL_TOKENS
            asked = np.flatnonzero(arrays["labels"] != IGNORED_LABEL)
            if missing:
                arrays["coords"][chain_generator(name, 1, sample).random(residues + SPECIAL_TOKENS) < missing] = np.nan
            if without_own_coords:
                arrays["coords"][asked] = np.nan
            if not len(asked):
                if bar is not None:
                    bar.update()
                continue
            truth[number] = arrays.pop("labels")[asked]
            total[number] = np.zeros((num_rotations, len(asked), config.vocab_size), dtype=np.float32)
            visits[number] = np.zeros(len(asked), dtype=np.float32)
            turned = num_rotations > 1
            frames: Any = draw_rotations(name, num_rotations, seed, config.coordinate_dim) if turned else [None]
            inside = min(window, residues)
            starts = window_starts(residues, inside)
            for start in starts:
                inputs = cut_window(arrays, start, inside, config)
                here = np.flatnonzero((asked > start) & (asked <= start + inside))
                visits[number][here] += 1
                for frame, rotation in enumerate(frames):
                    last = start == starts[-1] and frame == num_rotations - 1
                    yield Row(number, start, inputs, asked[here] - start, (frame, here), rotation, last)

    for row, logits in predict(model, rows(), lambda batch: model(**batch).logits, token_budget=token_budget, bar=bar):
        frame, here = row.tag
        total[row.chain][frame, here] += logits
        if row.last:
            mean = torch.from_numpy(total.pop(row.chain) / visits.pop(row.chain)[:, None])
            yield row.chain, torch.from_numpy(truth.pop(row.chain)), mean


def count_chains(
    model: PreTrainedModel, rows: Any, tokenizer: PreTrainedTokenizerBase, protocol: str = "masked15", *,
    num_mask_samples: int = 3, num_rotations: int = 1, progress: bool = True, bar: tqdm | None = None, **options: Any,
) -> np.ndarray:  # fmt: skip
    """Predict masked residues of every chain under a protocol.

    Args:
        model, tokenizer: a masked-LM Coordformer, and its tokenizer.
        rows: chains, or a data set of them, see `data.pack.open_chains`.
        protocol: `"paper"` (15 % of the residues, of these 80 % masked, 10 % another residue, 10 % unchanged; softmax
            over the vocabulary) or `"masked15"` (15 % of the residues with coordinates and without X, all masked;
            softmax over the 20 amino acids). What is chosen depends on the sample and the chain's id alone.
        num_mask_samples: how many times the residues are chosen anew.
        num_rotations: frames in which each chain is predicted, of which the probabilities are averaged (test-time
            augmentation); the first is the given one, the others depend on the chain's id alone.
        progress, bar: show a progress bar, or move on this one instead.
        options: `without_coords` (bool), `noise` (standard deviation in Å of Gaussian noise on each coordinate),
            `missing` (share of the residues, masked or not, that lose their coordinates at random, the same ones and
            more at a larger share) and `without_own_coords` (the residues that are to be predicted lose theirs), all
            with the same residues chosen; `token_budget` of a batch; `window`, beyond which a chain is predicted in
            overlapping windows of so many residues.

    Returns:
        Counts as in `metrics.count_predictions`, (samples, chains, vocabulary, 3), chains in the order of `rows`.
    """
    for name, value in (("num_mask_samples", num_mask_samples), ("num_rotations", num_rotations)):
        if value < 1:
            raise ValueError(f"`{name}` is {value}; it must be at least 1.")
    candidates = list(letter_ids(tokenizer).values()) if protocol == "masked15" else None
    counts = np.zeros((num_mask_samples, len(rows), model.config.vocab_size, 3))
    own = {"total": num_mask_samples * len(rows), "unit": "chain", "desc": protocol, "disable": not progress}
    with tqdm(**own) if bar is None else nullcontext(bar) as bar:
        for start in range(0, len(rows), CHAINS_AT_ONCE):
            inside = range(start, min(start + CHAINS_AT_ONCE, len(rows)))
            chains = rows[start : inside.stop] if isinstance(rows, list) else fetch_rows(rows, inside)
            for sample in range(num_mask_samples):
                for number, truth, frames in predict_masked(
                    model, chains, tokenizer, protocol, sample, num_rotations=num_rotations, bar=bar, **options
                ):
                    # One frame is left as it is: rounding would move perplexities in the last digits.
                    logits = frames[0] if num_rotations == 1 else average_frames(frames)
                    counts[sample, start + number] = count_predictions(logits[None], truth[None], candidates)[0]
    return counts


def average_frames(frames: torch.Tensor) -> torch.Tensor:
    """Logarithm of the mean of the probabilities in K frames, of logits (K, ..., vocabulary)."""
    return functools.reduce(torch.logaddexp, frames.log_softmax(dim=-1)) - float(np.log(len(frames)))


def summarize_samples(counts: np.ndarray, letters: Mapping[str, int], clusters: Any = None) -> dict[str, Any]:
    """What is reported of `count_chains`: all samples together, each, and a bootstrap over clusters or chains."""
    summary = summarize(counts, letters)
    by_sample = [summarize(sample) for sample in counts]
    # A chain's samples are not independent: the bootstrap draws chains with all of them.
    intervals = bootstrap({"model": counts.sum(axis=0)}, clusters)["model"]
    report: dict[str, Any] = {}
    for name in ("perplexity", "recovery"):
        report |= {name: summary[name], f"{name}_interval": intervals[name]}
        report[f"{name}_by_mask_sample"] = [sample[name] for sample in by_sample]
    return report | {"recovery_by_residue": summary["recovery_by_residue"], "predictions": summary["residues"]}
