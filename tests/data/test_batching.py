"""Rows become batches that fit, whichever chains meet in them."""

import numpy as np
import pytest
from conftest import make_rows

from coordformer.data.batching import ChainBatches, fill_bins


@pytest.mark.parametrize("packing", [True, False])
def test_batches_hold_every_chain_once_and_keep_the_budget(packing):
    lengths = np.random.default_rng(1).integers(5, 300, size=700)
    batches = ChainBatches(make_rows(lengths), token_budget=2048, max_length=256, seed=3, packing=packing)
    orders = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        orders.append(batches.order())
        assert len(orders[-1]) == len(batches)  # Trainer counts the steps of an epoch once
        assert sorted(np.concatenate(orders[-1])) == list(range(700))
        for batch in orders[-1]:
            tokens = np.minimum(lengths[batch], 256) + 2
            assert (tokens.sum() if packing else len(batch) * tokens.max()) <= 2048
    assert batches.padding_share() == 0 if packing else 0 < batches.padding_share() < 0.05
    assert {tuple(sorted(batch)) for batch in orders[0]} != {tuple(sorted(batch)) for batch in orders[1]}
    assert [len(batch) for batch in orders[0]] != [len(batch) for batch in orders[1]]  # the order is random


def test_packed_batches_are_full_and_mix_lengths():
    lengths = np.random.default_rng(1).integers(5, 300, size=700)
    batches = ChainBatches(make_rows(lengths), token_budget=2048)
    tokens = np.array([(lengths[batch] + 2).sum() for batch in batches.order()])
    assert len(batches) <= 1.05 * (lengths + 2).sum() / 2048
    assert np.sort(tokens)[1:].min() > 0.9 * 2048  # but for one that holds what is left
    assert np.mean([lengths[batch].std() for batch in batches.order()]) > 50
    filled = ChainBatches(make_rows(lengths), token_budget=2048, pad_to_budget=True)
    assert filled.padding_share() == pytest.approx(1 - (lengths + 2).sum() / (2048 * len(filled)))


def test_bins_by_hand():
    """Best fit: 3 goes to the bin with 4 left, not to the one with 6 left, whatever came first."""

    class InOrder:
        permutation = staticmethod(np.arange)

    bins = fill_bins(np.array([4, 6, 5, 3, 5]), 10, InOrder())
    assert [list(each) for each in bins] == [[0, 1], [2, 3], [4]]
    bins = fill_bins(np.array([4, 7, 3]), 10, InOrder())
    assert [list(each) for each in bins] == [[0], [1, 2]]
    bins = fill_bins(np.random.default_rng(0).integers(1, 11, size=300), 10, np.random.default_rng(0))
    assert sorted(np.concatenate(bins)) == list(range(300))


def test_batches_are_the_rows_in_order():
    rows = make_rows([5, 9, 5, 30])
    batches = ChainBatches(rows, token_budget=32, seed=1)
    batches.set_epoch(4)
    for indices, batch in zip(batches.order(), [batches[i] for i in range(len(batches))], strict=True):
        assert [row["id"] for row in batch] == [f"chain {i}" for i in indices]
        assert all(row["epoch"] == 4 and row["augment"] for row in batch)
        np.testing.assert_array_equal(batch[0]["coords"], np.float32(rows[int(indices[0])]["coords"]))
    with pytest.raises(IndexError):
        batches[len(batches)]


def test_random_batches_of_a_number_of_chains():
    batches = ChainBatches(make_rows(range(5, 58)), chains_per_batch=24)
    assert sorted(map(len, batches.order())) == [5, 24, 24]


def test_bad_batches_are_named():
    rows = make_rows([5, 90])
    with pytest.raises(ValueError, match="`token_budget` is 64, but the longest chain has 92 tokens"):
        ChainBatches(rows, token_budget=64)
    for arguments in ({"token_budget": -1}, {"chains_per_batch": 0}, {"token_budget": 100, "max_length": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            ChainBatches(rows, **arguments)
    for arguments in ({}, {"token_budget": 100, "chains_per_batch": 2}):
        with pytest.raises(ValueError, match="either `token_budget` or `chains_per_batch`"):
            ChainBatches(rows, **arguments)
