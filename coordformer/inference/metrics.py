"""Masked residue prediction in numbers: perplexity and recovery.

Batches are reduced at once to counts per chain and residue type, (chains, vocabulary, 3); everything reported is
derived from their sums, so that it depends neither on the batches nor on their order.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..data.contacts import MIN_SEPARATION

COUNT, NLL, CORRECT = range(3)  # the last axis of the counts
NOTHING = "Nothing was predicted: no residue of these chains may be chosen under this protocol."


def count_predictions(
    logits: torch.Tensor, labels: torch.Tensor, candidates: Sequence[int] | None = None
) -> torch.Tensor:
    """Reduce predictions to counts.

    Args:
        logits: (chains, length, vocabulary).
        labels: (chains, length), token ids, -100 where nothing was predicted.
        candidates: the token ids that compete in the softmax; all of them by default.

    Returns:
        For each chain and true token the number of predictions, the sum of their negative log-likelihoods in nats and
        the number of correct ones: (chains, vocabulary, 3), float64.
    """
    logits = logits.float()
    if candidates is not None:
        barred = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
        barred[list(candidates)] = False
        logits = logits.masked_fill(barred, -torch.inf)
    chain, position = (labels != -100).nonzero(as_tuple=True)
    truth = labels[chain, position]
    log_probabilities = logits[chain, position].log_softmax(dim=-1)
    nll = -log_probabilities.gather(1, truth.unsqueeze(1)).squeeze(1)
    correct = log_probabilities.argmax(dim=-1) == truth
    values = torch.stack((torch.ones_like(nll), nll, correct.to(nll.dtype)), dim=-1).double()
    counts = torch.zeros(*labels.shape[:1], logits.shape[-1], 3, dtype=torch.float64, device=logits.device)
    return counts.index_put((chain, truth), values, accumulate=True)


def summarize(counts: np.ndarray, letters: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Perplexity and recovery from counts (..., vocabulary, 3).

    Returns:
        `perplexity` (exp of the mean negative log-likelihood), `recovery` (share of the predictions that are correct),
        `residues` (number of predictions), and `recovery_by_residue` where `letters`, token ids by letter, are given.
    """
    counts = np.asarray(counts, dtype=np.float64)
    table = counts.reshape(-1, *counts.shape[-2:]).sum(axis=0)
    total = table.sum(axis=0)
    if total[COUNT] == 0:
        raise ValueError(NOTHING)
    summary: dict[str, Any] = {
        "perplexity": float(np.exp(total[NLL] / total[COUNT])),
        "recovery": float(total[CORRECT] / total[COUNT]),
        "residues": int(total[COUNT]),
    }
    if letters is not None:
        known = {letter: table[index] for letter, index in letters.items() if table[index, COUNT]}
        summary["recovery_by_residue"] = {letter: float(row[CORRECT] / row[COUNT]) for letter, row in known.items()}
    return summary


def resample(
    values: np.ndarray, samples: int = 2000, seed: int | np.random.Generator = 0, clusters: Any = None
) -> np.ndarray:
    """Sums (samples, ...) over chains, or clusters of them, that are drawn with replacement.

    Args:
        values: of the chains, (chains, ...).
        samples: number of draws.
        seed: of the draws, or their generator.
        clusters: of each chain what stands for its sequence cluster, (chains,): chains of one are not independent, and
            are drawn together. None: each chain by itself.
    """
    values = np.asarray(values, dtype=np.float64)
    if clusters is not None:
        names, places = np.unique(np.asarray(clusters), return_inverse=True)
        chains, values = values, np.zeros((len(names), *values.shape[1:]))
        np.add.at(values, places, chains)
    rng, count = np.random.default_rng(seed), len(values)
    shares, flat = np.full(count, 1 / count), values.reshape(count, -1)
    drawn = np.empty((samples, flat.shape[1]))
    # In blocks: how often each of a million chains is drawn in each of thousands of samples would fill the memory.
    for start in range(0, samples, 50):
        block = drawn[start : start + 50]
        block[:] = rng.multinomial(count, shares, size=len(block)) @ flat
    return drawn.reshape(samples, *values.shape[1:])


def interval(drawn: np.ndarray) -> Any:
    """The middle 95 % of what was drawn, (samples, ...): [low, high], for each of `...`."""
    return np.percentile(drawn, [2.5, 97.5], axis=0).tolist()


def ratio_interval(numerator: np.ndarray, denominator: np.ndarray, clusters: Any = None) -> list[float]:
    """95 % interval of the ratio of two sums over chains, each (chains,)."""
    drawn = resample(np.stack([numerator, denominator], axis=1), clusters=clusters)
    return list(interval(drawn[:, 0] / drawn[:, 1]))


def bootstrap(
    counts: Mapping[str, np.ndarray], clusters: Any = None, samples: int = 2000, seed: int = 0
) -> dict[str, dict]:
    """95 % intervals of perplexity and recovery for one or several models on the same chains.

    The same chains are drawn for every model (a paired bootstrap).

    Args:
        counts: (chains, vocabulary, 3) by model; the order of the chains is the same for all.
        clusters, samples, seed: as of `resample`.

    Returns:
        By model `perplexity` and `recovery` as [low, high]; from the second model on also `gain`, by how much its
        perplexity is below the first's, as a share of the first's, and `gain_interval`.

    Raises:
        ValueError: nothing was predicted, or the models did not predict the same residues.
    """
    tables = [np.asarray(table).sum(axis=1) for table in counts.values()]
    if any(not np.array_equal(table[:, COUNT], tables[0][:, COUNT]) for table in tables):
        raise ValueError(f"The models {', '.join(counts)} did not predict the same residues of the same chains.")
    totals = np.stack(tables, axis=1)  # (chains, models, 3)
    # A draw of chains without any prediction would have no perplexity.
    known = totals[:, 0, COUNT] > 0
    if not known.any():
        raise ValueError(NOTHING)
    totals, clusters = totals[known], None if clusters is None else np.asarray(clusters)[known]
    drawn = resample(totals, samples, seed, clusters)
    perplexities = np.exp(drawn[..., NLL] / drawn[..., COUNT])
    points = np.exp(totals[..., NLL].sum(axis=0) / totals[..., COUNT].sum(axis=0))
    result: dict[str, dict] = {}
    for number, name in enumerate(counts):
        recovery = drawn[:, number, CORRECT] / drawn[:, number, COUNT]
        result[name] = {"perplexity": interval(perplexities[:, number]), "recovery": interval(recovery)}
        if number:
            result[name]["gain"] = 1 - float(points[number] / points[0])
            result[name]["gain_interval"] = interval(1 - perplexities[:, number] / perplexities[:, 0])
    return result


RANGES = {"short": (6, 11), "medium": (12, 23), "long": (24, math.inf)}  # separations, both ends included
INTERCHAIN = "interchain"  # a further range, of complexes
CUTS = {"L": 1, "L/2": 2, "L/5": 5}  # of how many predictions the precision is: residues divided by this


def precision_at(scores: Any, labels: Any, separation: Any = None) -> dict[str, dict[str, float]]:
    """Share of contacts among the highest-scoring pairs of a chain.

    By sequence separation (`short`: 6 to 11, `medium`: 12 to 23, `long`: from 24; `interchain`: between the chains of a
    complex, where there are several) of the best L, L/2 and L/5 pairs, rounded down but at least one, where L is the
    number of residues, observed or not, in all chains. Pairs without a label or a score
    do not compete. Where a range has fewer pairs than that, all of them count, as in CASP, which divides by the number
    of predictions; ESM's published evaluation divides by L/k all the same. Where contacts are fewer, even a perfect
    prediction stays below 1: `precision_at(labels, labels)` says how far.

    Args:
        scores: probabilities or logits (residues, residues), an array or a tensor on the CPU, NaN where there is none;
            the upper triangle is read. Of equal ones first ranks the pair that comes first in the chain.
        labels: (residues, residues), 1, 0, or negative where unknown.
        separation: (residues, residues), as of `data.contacts.separations`; the default is one chain without gaps.

    Returns:
        Precision by range and cut; NaN in a range without a pair that competes.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if scores.shape != labels.shape or scores.shape != 2 * scores.shape[:1]:
        shapes = f"`scores` has shape {scores.shape} and `labels` {labels.shape}"
        raise ValueError(f"{shapes}; both have to be (residues, residues).")
    first, second = np.triu_indices(len(labels), 1)
    apart = second - first if separation is None else np.asarray(separation)[first, second]
    known = (labels[first, second] >= 0) & ~np.isnan(scores[first, second]) & (apart >= MIN_SEPARATION)
    first, second, apart = first[known], second[known], apart[known]
    several = separation is not None and bool(np.isinf(separation).any())
    best = {cut: max(len(labels) // share, 1) for cut, share in CUTS.items()}
    precision = {}
    for name, (least, most) in (RANGES | ({INTERCHAIN: (math.inf, math.inf)} if several else {})).items():
        inside = (apart >= least) & (apart <= most) & (np.isinf(apart) == (name == INTERCHAIN))
        pairs = first[inside], second[inside]
        ranked = labels[pairs][np.argsort(-scores[pairs], kind="stable")]
        precision[name] = {cut: float(ranked[:n].mean()) if ranked.size else math.nan for cut, n in best.items()}
    return precision


def describe_precision(precision: Mapping[str, Mapping[str, float | None]]) -> str:
    """`short 0.31, medium 0.22, long 0.10` at L; a range without one has a dash."""
    values = {name: math.nan if cuts["L"] is None else cuts["L"] for name, cuts in precision.items()}
    return ", ".join(f"{name} {'-' if math.isnan(value) else f'{value:.2f}'}" for name, value in values.items())
