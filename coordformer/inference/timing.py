"""How long a run will take on this machine, told from a small part of it before it begins."""

import time
from collections.abc import Callable, Sequence

import numpy as np
from transformers import PreTrainedModel

from ..model.chain import Chain
from ..model.design import score_sequences
from ..model.processing_coordformer import CoordformerProcessor
from .marginals import log_probabilities

FEW, MORE = 1, 8  # masked residues that are timed
WORTH_TIMING = 64  # rows; fewer take about as long as the timing


def in_words(seconds: float) -> str:
    """`about 40 s`, `about 12 min`, `about 3.5 h`."""
    if seconds < 90:
        return f"about {max(seconds, 1):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def scan_seconds(
    model: PreTrainedModel, processor: CoordformerProcessor, chains: Sequence[Chain],
    counts: Sequence[int] | None = None, **options: object,
) -> dict[str, float] | None:  # fmt: skip
    """Seconds that all substitutions of chains will take, by method.

    A pass costs the structure once, and each masked residue: both are timed on the chain of median length, and are
    taken to grow with the length.

    Args:
        model, processor, options: as of `marginals.log_probabilities`.
        chains: wild types.
        counts: of each how many residues are scanned; by default all.

    Returns:
        One for each of `marginals.METHODS`; None where the scan is done about as soon as it could be timed.
    """
    lengths = [len(chain) for chain in chains]
    counts = lengths if counts is None else counts
    if sum(counts) < WORTH_TIMING:
        return None
    chain = sorted(chains, key=len)[len(chains) // 2]

    def predict(residues: int) -> object:
        indices = np.arange(min(residues, len(chain)))
        return log_probabilities(model, processor, [(chain, indices)], masked=True, **options)  # type: ignore[arg-type]

    predict(FEW)  # the first pass of a process is slower
    few, more = seconds_of(lambda: predict(FEW)), seconds_of(lambda: predict(MORE))
    row = max(more - few, 0.0) / max(min(MORE, len(chain)) - FEW, 1)
    shares = [length / len(chain) for length in lengths]  # of the time of a row

    def seconds(rows: Sequence[int], times: Sequence[int] | None = None) -> float:
        times = [1] * len(rows) if times is None else times
        return sum(
            share * each * (few + row * (count - 1)) for share, count, each in zip(shares, rows, times, strict=True)
        )

    # Pseudo-likelihoods take all residues, of the wild type and of each mutant.
    whole = seconds(lengths) + seconds(lengths, [19 * count for count in counts])
    return {
        "wild_type_marginal": few * sum(shares),
        "masked_marginal": seconds(counts),
        "pseudo_likelihood": whole,
    }


def sequences_seconds(
    model: PreTrainedModel, asked: Sequence[tuple[Chain, Sequence[str], Sequence[int]]], **options: object
) -> float | None:
    """Seconds that `model.design.score_sequences` will take.

    The structure, a sequence and a masked residue are timed on the protein of median length, and are taken to grow
    with the length.

    Args:
        model, options: as of `score_sequences`.
        asked: of each protein the sequences, and the indices of the residues that are masked.

    Returns:
        None where that is done about as soon as it could be timed.
    """
    if sum(len(sequences) * len(residues) for _, sequences, residues in asked) < WORTH_TIMING:
        return None
    protein, (sequence, *_), residues = sorted(asked, key=lambda each: len(each[0]))[len(asked) // 2]
    known = [index for index in residues if sequence[index] != "X"]

    def score(sequences: int, masked: int) -> object:
        letters = [sequence] * sequences
        return score_sequences(model, protein, letters, residues=known[:masked], **options)  # type: ignore[arg-type]

    score(1, FEW)  # the first pass of a process is slower
    few, two, more = (seconds_of(lambda: score(*each)) for each in ((1, FEW), (2, FEW), (1, MORE)))  # noqa: B023
    row = max(more - few, 0.0) / max(min(MORE, len(known)) - FEW, 1)
    first = max(two - few, 0.0)  # of a sequence, with the first residue
    return sum(
        len(chain) / len(protein) * (max(few - first, 0.0) + len(each) * (first + row * (len(places) - 1)))
        for chain, each, places in asked
    )
