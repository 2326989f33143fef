"""How long a run will take on this machine, told from a small part of it before it begins."""

import time
from collections.abc import Callable, Sequence

import numpy as np
from transformers import PreTrainedModel

from ..model.chain import Chain
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
    model: PreTrainedModel, processor: CoordformerProcessor, chains: Sequence[Chain], **options: object
) -> dict[str, float] | None:
    """Seconds that all substitutions of chains will take, by method.

    A pass costs the structure once, and each masked residue: both are timed on the chain of median length, and are
    taken to grow with the length.

    Args:
        model, processor, options: as of `marginals.log_probabilities`.
        chains: wild types.

    Returns:
        One for each of `marginals.METHODS`; None where the scan is done about as soon as it could be timed.
    """
    lengths = [len(chain) for chain in chains]
    if sum(lengths) < WORTH_TIMING:
        return None
    chain = sorted(chains, key=len)[len(chains) // 2]

    def predict(residues: int) -> object:
        indices = np.arange(min(residues, len(chain)))
        return log_probabilities(model, processor, [(chain, indices)], masked=True, **options)  # type: ignore[arg-type]

    predict(FEW)  # the first pass of a process is slower
    few, more = seconds_of(lambda: predict(FEW)), seconds_of(lambda: predict(MORE))
    row = max(more - few, 0.0) / max(min(MORE, len(chain)) - FEW, 1)
    shares = [length / len(chain) for length in lengths]  # of the time of a row
    masked = sum(share * (few + row * (length - 1)) for share, length in zip(shares, lengths, strict=True))
    mutants = [19 * length for length in lengths]
    whole = sum(
        share * count * (few + row * (length - 1))
        for share, count, length in zip(shares, mutants, lengths, strict=True)
    )
    return {
        "wild_type_marginal": few * sum(shares),
        "masked_marginal": masked,
        "pseudo_likelihood": masked + whole,
    }
