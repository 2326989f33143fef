"""Contacts as labels: by hand, of chains with gaps, and in batches that are cropped, noisy or without coordinates."""

import numpy as np
import pytest
import torch
from conftest import CHAINS, STRUCTURES

from coordformer import CoordformerProcessor, read_chains
from coordformer.data.batching import ChainBatches, fetch_rows
from coordformer.data.collator import CoordformerDataCollator
from coordformer.data.contacts import ContactCollator, contact_labels
from coordformer.data.rows import load_rows

STRUCTURE = STRUCTURES / "1orc.pdb.gz"


@pytest.fixture(scope="module")
def rows():
    return load_rows(CHAINS, "valid").select(range(6))


def test_labels_by_hand():
    """Nine residues on a line, 1 Å apart but for a jump of 2 Å after the first; the fourth is not observed."""
    x = torch.tensor([0.0, 2, 3, 4, 5, 6, 7, 8, 9])
    coords = torch.stack((x, torch.zeros(9), torch.zeros(9)), dim=1)
    coords[3] = torch.nan
    expected = torch.full((9, 9), -100, dtype=torch.int8)
    for i, j, contact in [(0, 6, 1), (0, 7, 0), (0, 8, 0), (1, 7, 1), (1, 8, 1), (2, 8, 1)]:  # 8 Å is no contact
        expected[i, j] = expected[j, i] = contact
    assert torch.equal(contact_labels(coords), expected)
    assert torch.equal(contact_labels(coords.numpy()), expected)
    both = contact_labels(torch.stack((coords + 50, coords.flip(0))))
    assert torch.equal(both[0], expected) and torch.equal(both[1], expected.flip(0, 1))


def test_labels_of_a_chain_with_gaps():
    chain = read_chains(STRUCTURE)[0]
    labels = contact_labels(chain.coords[:, 0])
    place = np.arange(len(chain))
    observed = chain.observed[:, 0]
    asked = (np.abs(place[:, None] - place) >= 6) & observed[:, None] & observed
    assert not observed.all()
    assert np.array_equal(labels.numpy() >= 0, asked)
    distances = np.linalg.norm(chain.coords - chain.coords[:, 0], axis=-1)
    assert np.array_equal(labels.numpy() == 1, asked & (distances < 8))


@pytest.mark.parametrize("augmented", ["noise", "drop_coords"])
@pytest.mark.parametrize("with_epoch", [True, False])
def test_labels_are_of_the_crop_and_of_true_coordinates(rows, augmented, with_epoch):
    tokenizer = CoordformerProcessor().tokenizer
    collator = CoordformerDataCollator(tokenizer, max_length=50, **{augmented: 1.0})
    batches = ChainBatches(rows, chains_per_batch=6, max_length=50)
    chains = batches[0] if with_epoch else fetch_rows(rows, range(6))
    batch = ContactCollator(collator)([chains])
    assert tokenizer.mask_token_id not in batch["input_ids"]
    starts = set()
    for row, chain in enumerate(chains):
        letters = tokenizer.decode(batch["input_ids"][row], skip_special_tokens=True).replace(" ", "")
        start = chain["sequence"].index(letters)
        starts.add(start)
        coords = chain["coords"].reshape(-1, 3)[start : start + len(letters)]
        labels = batch["labels"][row]
        assert torch.equal(labels[: len(letters), : len(letters)], contact_labels(coords))
        assert (labels[len(letters) :] == -100).all() and (labels[:, len(letters) :] == -100).all()
        seen = batch["coords"][row, 1 : 1 + len(letters)]
        if augmented == "drop_coords":
            assert seen.isnan().all()
        else:
            assert 0.8 < (seen - torch.tensor(coords)).std() < 1.2
    assert len(starts) > 1 and batch["labels"].eq(1).any()


def test_batches_of_several_atoms():
    chain = read_chains(STRUCTURE, atoms=("N", "CA", "C"))[0]
    tokenizer = CoordformerProcessor().tokenizer
    batch = ContactCollator(CoordformerDataCollator(tokenizer, atoms=("C", "CA")))([chain])
    assert torch.equal(batch["labels"][0], contact_labels(chain.coords[:, 1]))
    with pytest.raises(ValueError, match=r"`atoms` is \('N', 'C'\); .*C-alphas \(CA\), add them"):
        ContactCollator(CoordformerDataCollator(tokenizer, atoms=("N", "C")))
