"""Masks and augmentations do what they are named for, and are functions of (seed, epoch, row id)."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import assert_same_geometry

from coordformer import build_tokenizer
from coordformer.data.collator import CoordformerDataCollator, normal, rotations_from_normals, splitmix, uniform
from coordformer.model.coordinates import rotate_coordinates
from coordformer.model.packing import segment_bounds, segment_runs

TOKENIZER = build_tokenizer()
LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def make_row(name="1ABC_A", length=100, atoms=("CA",), **fields):
    rng = np.random.default_rng(len(name) + length)
    coords = rng.normal(size=(length, len(atoms), 3)).cumsum(axis=0).astype(np.float32) * 3.8
    sequence = "".join(rng.choice(list(LETTERS), size=length))
    return {"id": name, "sequence": sequence, "coords": coords.ravel(), "atoms": atoms, "epoch": 0} | fields


def collate(rows, **arguments):
    return CoordformerDataCollator(TOKENIZER, **arguments)(rows)


def same(left, right):
    return all(torch.equal(left[name].nan_to_num(1e9), right[name].nan_to_num(1e9)) for name in left)


def test_paper_masking_is_80_10_10_of_15_percent():
    rows = [make_row(f"{i}", 200) for i in range(500)]
    batch = collate(rows)
    true = torch.tensor([TOKENIZER(row["sequence"]).input_ids for row in rows])
    chosen = batch["labels"] != -100
    assert abs(chosen[:, 1:-1].float().mean() - 0.15) < 0.006  # five standard deviations of 100,000 draws
    assert torch.equal(batch["labels"][chosen], true[chosen])
    assert torch.equal(batch["input_ids"][~chosen], true[~chosen])
    masked = (batch["input_ids"] == 32)[chosen].float().mean()
    unchanged = (batch["input_ids"] == true)[chosen].float().mean()
    # 15,000 draws: five standard deviations are 0.016. A random residue is the true one in 1 of 20 cases.
    assert abs(masked - 0.8) < 0.016 and abs(unchanged - (0.1 + 0.1 / 20)) < 0.016
    other = batch["input_ids"][chosen & (batch["input_ids"] != 32) & (batch["input_ids"] != true)]
    assert set(other.tolist()) == set(TOKENIZER.convert_tokens_to_ids(list(LETTERS)))
    # Every residue is as likely as another, <cls> and <eos> are never chosen.
    assert not chosen[:, [0, -1]].any()
    assert chosen[:, 1:-1].float().mean(dim=0).std() < 0.03


def test_masked15_leaves_out_x_and_the_unobserved():
    row = make_row(length=60)
    row["sequence"] = "X" * 20 + row["sequence"][20:]
    row["coords"] = row["coords"].copy()
    row["coords"][3 * 40 :] = np.nan
    numbers = []
    for epoch in range(200):
        batch = collate([row | {"epoch": epoch}], masking="masked15")
        chosen = (batch["labels"][0] != -100).nonzero().flatten()
        assert len(chosen) >= 1 and chosen.min() >= 21 and chosen.max() <= 40
        numbers.append(len(chosen))
        assert (batch["input_ids"][0, chosen] == 32).all()
    assert abs(sum(numbers) / 200 - 20 * 0.15 - 0.85**20) < 0.6  # 20 may be chosen, and one is if none was
    blind = collate([row | {"coords": np.full(180, np.nan, dtype=np.float32)}], masking="masked15")
    assert (blind["labels"] == -100).all()


def test_every_chain_has_a_prediction():
    rows = [make_row(f"{i}", 1 + i % 3) for i in range(300)]
    labels = collate(rows)["labels"]
    assert ((labels != -100).sum(dim=1) >= 1).all()
    assert (labels[:, 1] != -100).float().mean() < 0.8  # not always the first


def test_draws_depend_on_seed_epoch_and_id_alone():
    options = {"noise": [0.1, 0.5], "mlm_probability": [0.1, 0.5], "drop_coords": 0.3, "max_length": 50}
    rows = [make_row(f"chain {i}", 40 + 10 * i) for i in range(4)]
    together = collate(rows, **options)
    for index in range(4):  # whichever batch a chain is in, whatever was drawn before
        torch.manual_seed(index)
        alone = collate([[rows[index]]], **options)
        n = alone["input_ids"].shape[1]
        assert same(alone, {name: value[index : index + 1, :n] for name, value in together.items()})
    assert same(collate(rows, **options), together)
    assert not same(collate([row | {"epoch": 1} for row in rows], **options), together)
    assert not same(collate(rows, seed=1, **options), together)


def test_random_numbers_are_uniform_and_independent():
    """SplitMix64 against published values, and its streams against chance."""
    # The first outputs for the seed 1234567, as in the reference implementation's test vectors.
    counters = np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1234567)
    assert splitmix(counters).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]

    keys = splitmix(np.arange(300, dtype=np.uint64))[:, None]  # as neighboring epochs or ids give them
    numbers = uniform(keys, np.arange(1000, dtype=np.uint64))
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
    chi_square = ((counts - 3000) ** 2 / 3000).sum()
    assert 50 < chi_square < 170  # 99 degrees of freedom
    correlations = np.corrcoef(numbers[:, :200]) - np.eye(300)
    assert np.abs(correlations).max() < 6 / np.sqrt(200)
    assert abs(np.corrcoef(numbers[:, :-1].ravel(), numbers[:, 1:].ravel())[0, 1]) < 5 / np.sqrt(300_000)
    gaussian = normal(keys, np.arange(1000, dtype=np.uint64)).ravel()
    assert abs(gaussian.mean()) < 0.01 and gaussian.std() == pytest.approx(1, abs=0.01)
    assert (np.abs(gaussian) > 1.96).mean() == pytest.approx(0.05, abs=0.003)


def test_without_masking_chains_stay_as_they_are():
    rows = [make_row("a", 30), make_row("b", 7)]
    batch = collate(rows, mlm_probability=0, rotate=False)
    assert TOKENIZER.decode(batch["input_ids"][1, :9]) == f"<cls>{rows[1]['sequence']}<eos>"
    assert (batch["labels"] == -100).all() and "rotations" not in batch


def test_rows_without_an_epoch_follow_torchs_generator():
    row = make_row()
    del row["epoch"]
    torch.manual_seed(3)
    first, second = collate([row]), collate([row])
    torch.manual_seed(3)
    assert same(collate([row]), first) and not same(first, second)


def test_rotation_keeps_distances_and_forgets_the_frame():
    """The collator brings a matrix for each chain; the model turns by it."""
    row = make_row(length=80, atoms=("N", "CA", "C"))
    seen = []
    for epoch in range(200):
        batch = collate([row | {"epoch": epoch}], atoms=("N", "CA", "C"))
        assert batch["rotations"].shape == (1, 1, 3, 3)
        coords = rotate_coordinates(batch["coords"], batch["rotations"], None)[0, 1:-1]
        seen.append(coords[0, 0] / coords[0, 0].norm())
        if epoch < 3:
            assert_same_geometry(coords.reshape(-1, 3).numpy(), row["coords"].reshape(-1, 3))
    assert torch.stack(seen).mean(dim=0).norm() < 0.25  # directions spread over the sphere: 5 sd of 1 / sqrt(200)


@pytest.mark.parametrize("packed_length", [0, 400])
def test_packed_rows_hold_the_same_chains_as_padded_ones(packed_length):
    """Tokens, labels, coordinates and rotations of each chain are the same; the bounds say where it lies."""
    rows = [make_row(f"{i}", length) for i, length in enumerate((30, 7, 120, 55))]
    options = {"noise": 0.5, "drop_coords": 0.4, "max_length": 100}
    padded = collate(rows, **options)
    packed = collate([row | {"packed_length": packed_length} for row in rows], **options)
    lengths = padded["attention_mask"].sum(dim=1).tolist()
    assert lengths == [32, 9, 102, 57] and packed["input_ids"].shape == (1, packed_length or 200)
    bounds = packed["cu_seq_lens_q"].tolist()
    assert bounds[:5] == [0, 32, 41, 143, 200] and bounds[5:] == ([400] if packed_length else [])
    for row, (start, end) in enumerate(pairwise(bounds[:5])):
        for name in ("input_ids", "labels", "coords"):
            of_row = padded[name][row, : lengths[row]]
            assert torch.equal(packed[name][0, start:end].nan_to_num(1e9), of_row.nan_to_num(1e9))
        assert torch.equal(packed["rotations"][0, row], padded["rotations"][row, 0])
        assert set(packed["sequence_id"][0, start:end].tolist()) == {row}
    tail = slice(200, None)
    assert (packed["input_ids"][0, tail] == 1).all() and (packed["labels"][0, tail] == -100).all()
    assert packed["coords"][0, tail].isnan().all() and (packed["sequence_id"][0, tail] == 4).all()
    # What the model would work out from the segments itself.
    worked_out = segment_bounds(segment_runs(packed["sequence_id"], None))
    for name, value in worked_out.items():
        assert torch.equal(torch.as_tensor(packed[name]), torch.as_tensor(value))


def test_a_row_that_is_too_short_is_named():
    with pytest.raises(ValueError, match="2 chains with 204 tokens do not fit in a row of 128"):
        collate([make_row(f"{i}") | {"packed_length": 128} for i in range(2)])


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
def test_rotations_are_proper_and_uniform(dim):
    rotations = rotations_from_normals(torch.randn(4000, dim, dim, dtype=torch.float64))
    identity = torch.eye(dim, dtype=torch.float64)
    torch.testing.assert_close(rotations @ rotations.mT, identity.expand(4000, dim, dim))
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(4000, dtype=torch.float64))
    if dim > 1:  # Haar measure: entries have mean 0, variance 1 / n (dim 2 and up)
        assert rotations.mean(dim=0).abs().max() < 0.06
        torch.testing.assert_close(
            rotations.var(dim=0), torch.full((dim, dim), 1 / dim, dtype=torch.float64), atol=0.04, rtol=0
        )


def test_noise_has_the_stated_width():
    row = make_row(length=5000)
    quiet = collate([row], rotate=False)["coords"]
    noisy = collate([row], rotate=False, noise=0.7)["coords"]
    assert (noisy - quiet)[0, 1:-1].std() == pytest.approx(0.7, rel=0.03)


def test_each_chain_draws_its_own_noise_from_a_range():
    rows = [make_row(f"{i}", 300) for i in range(300)]
    quiet, noisy = collate(rows, rotate=False)["coords"], collate(rows, rotate=False, noise=[0.1, 0.4])["coords"]
    widths = (noisy - quiet)[:, 1:-1].flatten(1).std(dim=1)
    # 900 numbers a chain: a width is known to 2.4 % or 0.01 Å; of 300 widths quartiles are known to 0.008 Å.
    assert 0.09 < widths.min() < 0.12 and 0.38 < widths.max() < 0.44
    quartiles = widths.quantile(torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quartiles, torch.tensor([0.175, 0.25, 0.325]), atol=0.03, rtol=0)
    again = collate([row | {"epoch": 1} for row in rows], rotate=False, noise=[0.1, 0.4])["coords"] - quiet
    assert abs(np.corrcoef(again[:, 1:-1].flatten(1).std(dim=1), widths)[0, 1]) < 0.25  # drawn anew in each epoch


def test_each_chain_draws_its_own_share_of_masks_from_a_range():
    rows = [make_row(f"{i}", 300) for i in range(300)]
    chosen = (collate(rows, mlm_probability=[0.2, 0.8], noise=[0, 0.4])["labels"][:, 1:-1] != -100).float()
    shares = chosen.mean(dim=1)
    assert 0.1 < shares.min() < 0.26 and 0.74 < shares.max() < 0.9
    assert shares.mean() == pytest.approx(0.5, abs=0.05) and shares.std() == pytest.approx(0.6 / 12**0.5, abs=0.02)
    widths = (collate(rows, rotate=False, noise=[0, 0.4])["coords"] - collate(rows, rotate=False)["coords"])[:, 1:-1]
    assert abs(np.corrcoef(widths.flatten(1).std(dim=1), shares)[0, 1]) < 0.25  # not of the noise


def test_a_range_of_one_value_is_that_value():
    rows = [make_row(f"{i}", 50) for i in range(5)]
    for options in ({"noise": 0.3}, {"mlm_probability": 0.3}):
        (name, value), *_ = options.items()
        for written in ([value], [value, value], (value, value)):
            assert same(collate(rows, **options), collate(rows, **{name: written}))


def test_dropping_withholds_whole_chains_at_the_stated_rate():
    rows = [make_row(f"{i}", 10) for i in range(1000)]
    observed = ~collate(rows, drop_coords=0.3)["coords"][:, 1:-1].isnan().any(dim=-1)
    assert (observed.all(dim=1) | ~observed.any(dim=1)).all()
    assert observed.all(dim=1).float().mean() == pytest.approx(0.7, abs=0.075)
    assert collate(rows, drop_coords=1.0)["coords"].isnan().all()


def test_crops_are_contiguous_random_and_keep_residue_and_coordinates_together():
    row = make_row(length=60)
    starts = set()
    for epoch in range(100):
        batch = collate([row | {"epoch": epoch}], max_length=20, rotate=False, mlm_probability=0)
        text = TOKENIZER.decode(batch["input_ids"][0].where(batch["labels"][0] == -100, batch["labels"][0]))
        start = row["sequence"].index(text.removeprefix("<cls>").removesuffix("<eos>"))
        np.testing.assert_array_equal(batch["coords"][0, 1:-1], row["coords"].reshape(-1, 3)[start : start + 20])
        starts.add(start)
    assert min(starts) < 5 and max(starts) > 35 and max(starts) <= 40


def test_evaluation_rows_are_masked_but_not_augmented():
    row = make_row(augment=False)
    batch = collate([row], noise=1.0, drop_coords=1.0)
    np.testing.assert_allclose(batch["coords"][0, 1:-1], row["coords"].reshape(-1, 3), rtol=1e-5, atol=1e-5)
    assert 1 <= (batch["labels"] != -100).sum() < 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"masking": "bert"}, "`masking` is 'bert'; choose 'paper' or 'masked15'"),
        ({"mlm_probability": 15}, "`mlm_probability` is 15"),
        ({"drop_coords": -0.1}, "`drop_coords` is -0.1"),
        ({"noise": -1}, "`noise` is -1 Å"),
        ({"max_length": 0}, "`max_length` is 0"),
        ({"noise": float("nan")}, "`noise` is nan"),
        ({"noise": [0.3, 0.1]}, r"`noise` is \[0.3, 0.1\]; give one value, or the lowest and the highest"),
        ({"noise": [0, 0.1, 0.2]}, r"`noise` is \[0, 0.1, 0.2\]; give one value"),
        ({"noise": [-0.1, 0.1]}, r"`noise` is \[-0.1, 0.1\] Å"),
        ({"mlm_probability": [0.1, 1.1]}, r"`mlm_probability` is \[0.1, 1.1\]"),
        ({"seed": -1}, "`seed` is -1"),
        ({"alphabet": "acd"}, "`alphabet` is 'acd'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CoordformerDataCollator(TOKENIZER, **arguments)


def test_bad_rows_are_named():
    with pytest.raises(ValueError, match=r"Chain 1ABC_A: coordinates of shape \(5,\) for 3 residues"):
        collate([{"id": "1ABC_A", "sequence": "MKV", "coords": np.zeros(5)}])
    with pytest.raises(ValueError, match="Chain 1ABC_A has the letter 'J', which is not in the tokenizer's alphabet"):
        collate([make_row("2XYZ_B"), {"id": "1ABC_A", "sequence": "MJV", "coords": np.zeros(9), "epoch": 0}])
    with pytest.raises(ValueError, match="Chain 1ABC_A has infinite coordinates; use NaN"):
        collate([{"id": "1ABC_A", "sequence": "MKV", "coords": [0.0] * 8 + [np.inf]}])
    with pytest.raises(ValueError, match="the batch has no rows"):
        collate([])
    with pytest.raises(ValueError, match="has the columns input_ids.*remove_unused_columns=False"):
        collate([{"input_ids": [1, 2]}])
    with pytest.raises(ValueError, match="1ABC_A holds the atoms CA, but CB"):
        collate([make_row()], atoms=("CB",))
