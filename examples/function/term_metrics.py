"""How well the terms of proteins are predicted: precision and recall over pairs of a chain and a term."""

from collections.abc import Sequence
from typing import Any

import numpy as np

THRESHOLDS = np.arange(1, 101) / 100  # of CAFA


def precision_recall(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall over all pairs of a chain and a term, at each distinct score from the highest down.

    Args:
        scores: (chains, terms).
        labels: (chains, terms), 0 or 1.

    Raises:
        ValueError: the shapes differ, a score is NaN, or no label is 1.
    """
    scores, labels = _check(scores, labels)
    order = np.argsort(-scores, axis=None)
    ranked = scores.ravel()[order]
    # Equal scores are predicted together, whatever their order.
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    true = labels.ravel()[order].cumsum()[last]
    return true / (last + 1), true / true[-1]


def micro_aupr(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the precision-recall curve over all pairs of a chain and a term, in steps.

    That is average precision: the sum over distinct scores of precision times the gain in recall, without interpolation
    (scikit-learn's `average_precision_score(average="micro")`). Arguments and errors as of `precision_recall`.
    """
    precision, recall = precision_recall(scores, labels)
    return float(np.sum(np.diff(recall, prepend=0) * precision))


def micro_fmax(scores: np.ndarray, labels: np.ndarray) -> float:
    """The highest F1 on the precision-recall curve over all pairs of a chain and a term (paper, section 4).

    Another number than `protein_centric_fmax`. Arguments and errors as of `precision_recall`.
    """
    return float(_f1(*precision_recall(scores, labels)).max())


def protein_centric_fmax(
    scores: np.ndarray, labels: np.ndarray, thresholds: Sequence[float] | np.ndarray = THRESHOLDS
) -> float:
    """Fmax of CAFA (Radivojac et al. 2013), as DeepFRI reports it: the highest F1 over thresholds on probabilities.

    At a threshold, precision is the mean over the chains with at least one predicted term, and recall the mean over all
    chains; predicted are the terms whose probability is at least the threshold. Labels are taken as they are: nothing
    is propagated in an ontology. Chains without a label are left out. 0 where nothing is predicted at any threshold.

    Args:
        scores: (chains, terms), probabilities.
        labels: (chains, terms), 0 or 1.
        thresholds: to try; CAFA's are 0.01 to 1 in steps of 0.01.

    Raises:
        ValueError: the shapes differ, a score is NaN, or no label is 1.
    """
    scores, labels = _check(scores, labels)
    known = labels.any(axis=1)
    scores, labels = scores[known], labels[known]
    # How many of the thresholds each score reaches; counted by chain, and from the highest threshold down.
    reached = np.searchsorted(np.sort(thresholds), scores, side="right")
    places = reached + (len(thresholds) + 1) * np.arange(len(scores))[:, None]
    number, true = (
        np.bincount(places[which], minlength=len(scores) * (len(thresholds) + 1)).reshape(len(scores), -1)[:, :0:-1]
        for which in (np.ones_like(labels), labels)
    )
    number, true = number.cumsum(axis=1), true.cumsum(axis=1)
    predicting = (number > 0).sum(axis=0)
    precision = (true / np.maximum(number, 1)).sum(axis=0) / np.maximum(predicting, 1)
    recall = (true / labels.sum(axis=1, keepdims=True)).mean(axis=0)
    return float(_f1(precision, recall).max())


def score_terms(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`micro_aupr`, `protein_centric_fmax` and `micro_fmax` of probabilities (chains, terms)."""
    return {measure.__name__: measure(scores, labels) for measure in (micro_aupr, protein_centric_fmax, micro_fmax)}


def _f1(precision: Any, recall: Any) -> Any:
    return 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)


def _check(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scores, and the labels as bool."""
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.shape != labels.shape or scores.ndim != 2:
        raise ValueError(f"`scores` has shape {scores.shape} and `labels` {labels.shape}; both are (chains, terms).")
    if np.isnan(scores).any():
        raise ValueError("`scores` has NaN: a model that diverged, or a chain that was not predicted.")
    if not labels.any():
        raise ValueError("No chain has a term: there is nothing to be found in `labels`.")
    return scores, labels.astype(bool)
