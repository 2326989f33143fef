"""Perplexity, recovery and their intervals against hand-computed values."""

import itertools
import math

import numpy as np
import pytest
import torch

from coordformer.inference.metrics import bootstrap, count_predictions, interval, ratio_interval, resample, summarize


def test_counts_by_hand():
    p = torch.tensor([[[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]], [[0.25, 0.25, 0.5], [1 / 3, 1 / 3, 1 / 3]]])
    labels = torch.tensor([[0, 2], [2, -100]])
    counts = count_predictions(p.log(), labels).numpy()
    assert counts.shape == (2, 3, 3)
    np.testing.assert_allclose(counts[0, 0], [1, -math.log(0.7), 1])
    np.testing.assert_allclose(counts[0, 2], [1, -math.log(0.3), 0], rtol=1e-6)
    np.testing.assert_allclose(counts[1, 2], [1, -math.log(0.5), 1], rtol=1e-6)
    assert counts.sum(axis=(0, 1))[0] == 3
    summary = summarize(counts, {"A": 0, "C": 1, "D": 2})
    assert summary["perplexity"] == pytest.approx((0.7 * 0.3 * 0.5) ** (-1 / 3), rel=1e-6)
    assert summary["recovery"] == pytest.approx(2 / 3) and summary["residues"] == 3
    assert summary["recovery_by_residue"] == {"A": 1.0, "D": 0.5}  # C never occurred


def test_uniform_predictions_have_the_perplexity_of_the_candidates():
    logits, labels = torch.zeros(2, 10, 33), torch.randint(4, 24, (2, 10))
    assert summarize(count_predictions(logits, labels).numpy())["perplexity"] == pytest.approx(33)
    candidates = count_predictions(logits, labels, candidates=range(4, 24)).numpy()
    assert summarize(candidates)["perplexity"] == pytest.approx(20)


def test_barred_tokens_neither_win_nor_weigh():
    logits = torch.zeros(1, 1, 4)
    logits[..., 0] = 50.0
    logits[..., 2] = 1.0
    summary = summarize(count_predictions(logits, torch.tensor([[2]]), candidates=[1, 2]).numpy())
    assert summary["recovery"] == 1 and summary["perplexity"] == pytest.approx(1 + math.exp(-1), rel=1e-6)


def test_counts_do_not_depend_on_batches_nor_order():
    logits, labels = torch.randn(6, 9, 33), torch.randint(4, 24, (6, 9)).masked_fill(torch.rand(6, 9) < 0.5, -100)
    whole = count_predictions(logits, labels)
    parts = torch.cat([count_predictions(logits[i : i + 1], labels[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(whole, parts)
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert summarize(whole.numpy())["perplexity"] == pytest.approx(math.exp(nll), rel=1e-5)


def test_nothing_predicted_is_an_error():
    with pytest.raises(ValueError, match="Nothing was predicted"):
        summarize(np.zeros((3, 33, 3)))


def make_counts(rng, chains, mean, spread):
    counts = np.zeros((chains, 33, 3))
    counts[:, 5, 0] = 20
    counts[:, 5, 1] = 20 * (mean + spread)
    counts[:, 5, 2] = rng.integers(0, 20, chains)
    return counts


def test_bootstrap_interval_is_that_of_the_mean():
    """With equal chains the log perplexity is a mean, whose interval is known: mean +- 1.96 sd / sqrt(n)."""
    rng = np.random.default_rng(0)
    spread = rng.normal(scale=0.3, size=400)
    low, high = np.log(bootstrap({"model": make_counts(rng, 400, 2.5, spread)}, samples=4000)["model"]["perplexity"])
    half = 1.96 * spread.std() / math.sqrt(400)
    assert low == pytest.approx(2.5 + spread.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(2.5 + spread.mean() + half, abs=0.15 * half)


def test_bootstrap_is_paired():
    """A small difference shared by all chains is certain, however much the chains differ among themselves."""
    rng = np.random.default_rng(0)
    spread = rng.normal(scale=0.5, size=100)
    without, with_ = make_counts(rng, 100, 2.5, spread), make_counts(rng, 100, 2.45, spread)
    result = bootstrap({"without": without, "with": with_})
    assert result["with"]["gain"] == pytest.approx(1 - math.exp(-0.05))
    np.testing.assert_allclose(result["with"]["gain_interval"], 1 - math.exp(-0.05), rtol=1e-6)
    assert "gain" not in result["without"]
    silent = np.zeros((300, 33, 3))  # chains without a prediction change nothing
    padded = bootstrap({"without": np.concatenate([silent, without]), "with": np.concatenate([silent, with_])})
    assert padded == result
    with pytest.raises(ValueError, match="Nothing was predicted"):
        bootstrap({"model": silent})
    with pytest.raises(ValueError, match="did not predict the same residues"):
        bootstrap({"without": without, "with": with_[:50]})


def test_chains_of_a_cluster_are_drawn_together():
    """Sums over clusters that are drawn: as if each cluster were one chain, whatever names and order it has."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 2))
    names = ["b", "a", "b", "c", "a", "b"]
    sums = np.stack([values[[name == cluster for name in names]].sum(axis=0) for cluster in "abc"])
    np.testing.assert_allclose(resample(values, clusters=names), resample(sums))
    np.testing.assert_allclose(resample(values, clusters=range(6)), resample(values))
    drawn = resample(values, samples=120, clusters=names)
    assert drawn.shape == (120, 2) and resample(values[:, 0], samples=7).shape == (7,)
    whole = {tuple(np.round(sums[list(which)].sum(axis=0), 6)) for which in itertools.product(range(3), repeat=3)}
    assert {tuple(np.round(row, 6)) for row in drawn} <= whole
    one = resample(values, clusters=[1] * 6)
    np.testing.assert_allclose(one, np.broadcast_to(values.sum(axis=0), one.shape))
    counts = make_counts(rng, 6, 2.5, rng.normal(size=6))
    apart, together = (bootstrap({"model": counts}, clusters)["model"]["perplexity"] for clusters in (None, [0] * 6))
    assert together[0] == pytest.approx(together[1]) and apart[0] < together[0] < apart[1]


def test_intervals_of_a_ratio_of_sums():
    numerator, denominator = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])
    assert ratio_interval(numerator, denominator) == pytest.approx([0.5, 0.5])
    low, high = ratio_interval(np.array([0.0, 1.0]), np.ones(2))
    assert (low, high) == (0, 1)
    assert interval(np.arange(101.0)) == [2.5, 97.5]
