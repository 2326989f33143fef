"""Scores of predicted terms: by hand, against loops and against scikit-learn."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "function"))
from term_metrics import micro_aupr, micro_fmax, precision_recall, protein_centric_fmax, score_terms


def random_scores(chains: int = 40, terms: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, and labels with chains that have none and a term that nobody has."""
    rng = np.random.default_rng(seed)
    labels = rng.random((chains, terms)) < 0.15
    labels[:, 3] = False
    labels[:5] = False
    return np.round(rng.random((chains, terms)) * 0.5 + 0.4 * labels, 1), labels


def test_micro_aupr_by_hand():
    # From the highest score down: right (1/1, recall 1/2), wrong, right (2/3, recall 1), wrong.
    assert micro_aupr([[0.9, 0.8], [0.7, 0.1]], [[1, 0], [1, 0]]) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert micro_aupr([[0.1, 0.9], [0.2, 0.8]], [[0, 1], [0, 1]]) == 1


def test_equal_scores_are_predicted_together():
    precision, recall = precision_recall(np.full((2, 3), 0.4), [[1, 0, 0], [0, 0, 1]])
    assert precision.tolist() == [1 / 3] and recall.tolist() == [1]
    assert micro_aupr([[0.5, 0.5], [0.5, 0.1]], [[1, 0], [0, 1]]) == pytest.approx(0.5 * 1 / 3 + 0.5 * 2 / 4)


def test_micro_fmax_by_hand():
    # F1 of 1/1 and 1/2 is 2/3; of 2/3 and 1 it is 4/5.
    assert micro_fmax([[0.9, 0.8], [0.7, 0.1]], [[1, 0], [1, 0]]) == pytest.approx(4 / 5)


@pytest.mark.parametrize("seed", range(3))
def test_micro_scores_are_those_of_scikit_learn(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    scores, labels = random_scores(seed=seed)
    assert micro_aupr(scores, labels) == pytest.approx(metrics.average_precision_score(labels, scores, average="micro"))
    precision, recall, _ = metrics.precision_recall_curve(labels.ravel(), scores.ravel())
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    assert micro_fmax(scores, labels) == pytest.approx(f1.max())


SCORES, LABELS = np.array([[0.9, 0.2, 0.0], [0.6, 0.0, 0.4]]), np.array([[1, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    ("thresholds", "expected"),
    [
        ([0.2], 2 * 0.75 / 1.75),  # the first chain has both terms, the second one right and one wrong
        ([0.3], 0.75),  # precision (1 + 1/2) / 2, recall (1/2 + 1) / 2
        ([0.5], 2 * 0.5 * 0.25 / 0.75),  # precision (1 + 0) / 2, recall (1/2 + 0) / 2
        ([0.9], 0.4),  # nothing of the second chain: precision is that of the first, recall 1/4
        ([0.95], 0.0),
        ([0.95, 0.9, 0.3, 0.2], 6 / 7),
    ],
)
def test_protein_centric_fmax_by_hand(thresholds, expected):
    assert protein_centric_fmax(SCORES, LABELS, thresholds) == pytest.approx(expected)


def test_protein_centric_fmax_tries_whole_hundredths_and_differs_from_micro():
    assert protein_centric_fmax(SCORES, LABELS) == pytest.approx(6 / 7)
    assert micro_fmax(SCORES, LABELS) == pytest.approx(6 / 7)  # 3 right of 4
    scores = np.array([[0.9, 0.2, 0.0], [0.6, 0.5, 0.4]])  # one more wrong term of the second chain
    assert protein_centric_fmax(scores, LABELS) == pytest.approx(0.8)  # (1 + 1/3) / 2 and 1
    assert micro_fmax(scores, LABELS) == pytest.approx(0.75)  # 3 of 5 and 1


@pytest.mark.parametrize("seed", range(3))
def test_protein_centric_fmax_is_that_of_a_loop(seed):
    scores, labels = random_scores(seed=seed)
    scores, labels = scores[5:], labels[5:] | (np.arange(12) == 0)  # each chain has a term
    best = 0.0
    for threshold in np.arange(1, 101) / 100:
        predicted = [set(np.flatnonzero(row >= threshold)) for row in scores]
        true = [set(np.flatnonzero(row)) for row in labels]
        if any(predicted):
            precision = np.mean([len(a & b) / len(a) for a, b in zip(predicted, true, strict=True) if a])
            recall = np.mean([len(a & b) / len(b) for a, b in zip(predicted, true, strict=True)])
            best = max(best, 2 * precision * recall / max(precision + recall, 1e-9))
    assert protein_centric_fmax(scores, labels) == pytest.approx(best)


def test_a_chain_without_terms_counts_in_micro_scores_alone():
    scores, labels = np.vstack([SCORES, [0.99, 0.99, 0.99]]), np.vstack([LABELS, [0, 0, 0]])
    assert protein_centric_fmax(scores, labels) == protein_centric_fmax(SCORES, LABELS)
    assert micro_aupr(scores, labels) < micro_aupr(SCORES, LABELS)


def test_a_term_that_nobody_has_changes_nothing_where_it_scores_low():
    scores, labels = np.pad(SCORES, ((0, 0), (0, 1))), np.pad(LABELS, ((0, 0), (0, 1)))
    assert score_terms(scores, labels) == score_terms(SCORES, LABELS)


@pytest.mark.parametrize("measure", [micro_aupr, micro_fmax, protein_centric_fmax])
@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros((2, 3)), np.ones((2, 2)), r"`scores` has shape \(2, 3\) and `labels` \(2, 2\)"),
        (np.array([[np.nan]]), np.ones((1, 1)), "`scores` has NaN"),
        (np.zeros((2, 3)), np.zeros((2, 3)), "No chain has a term"),
    ],
)
def test_what_cannot_be_scored(measure, scores, labels, message):
    with pytest.raises(ValueError, match=message):
        measure(scores, labels)
