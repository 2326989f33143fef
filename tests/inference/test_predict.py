"""Windows cut and averaged by hand; batches of a token budget, whatever it is, give each row what it gives alone."""

import numpy as np
import pytest
import torch
from conftest import CHAINS, STRUCTURES, make_config, make_model

from coordformer import CoordformerProcessor, read_chains
from coordformer.data.batching import fetch_rows
from coordformer.data.rows import load_rows
from coordformer.inference.masked import draw_rotations
from coordformer.model.predict import Row, longest_first, predict, window_rows
from coordformer.model.proteins import as_chain, residues_of
from coordformer.model.windows import (
    WindowMean,
    cut_window,
    longest_window,
    middle_window,
    window_around,
    window_starts,
)

PROCESSOR = CoordformerProcessor()


# --- windows ---------------------------------------------------------------------------------------------------------


def test_windows_cover_a_chain_and_overlap_by_half():
    assert window_starts(100, 100) == window_starts(1, 100) == [0]
    assert window_starts(101, 100) == [0, 1]
    assert window_starts(300, 100) == [0, 50, 100, 150, 200]
    assert window_starts(310, 100) == [0, 50, 100, 150, 200, 210]
    assert window_starts(5, 2) == [0, 1, 2, 3]
    for length in range(1, 40):
        for window in range(2, 12):
            starts = window_starts(length, window)
            inside = {start + place for start in starts for place in range(min(window, length))}
            assert inside == set(range(length)) and sorted(set(starts)) == starts


def test_windows_around_a_residue_and_in_the_middle():
    assert window_around(np.arange(7), 7, 3).tolist() == [0, 0, 1, 2, 3, 4, 4]
    assert window_around(np.arange(3), 3, 5).tolist() == [0, 0, 0]
    assert [middle_window(length, 10) for length in (4, 10, 11, 20)] == [0, 0, 0, 5]


def test_tokens_of_a_window_are_a_chain_of_their_own():
    """<cls>, the residues and <eos>, where the chain has them; positions from 0 on, with the gaps of the chain."""
    tokens = np.array([0, *range(10, 17), 2])
    arrays = {"input_ids": tokens, "position_ids": np.array([0, 1, 2, 6, 7, 8, 20, 21, 22])}
    whole, part = (cut_window(arrays, start, inside, make_config()) for start, inside in ((0, 7), (3, 3)))
    assert all((whole[name] == arrays[name]).all() for name in arrays)
    assert part["input_ids"].tolist() == [0, 13, 14, 15, 2]
    assert part["position_ids"].tolist() == [0, 1, 2, 14, 15]
    assert arrays["position_ids"][3] == 6, "the chain's own are left alone"


@pytest.mark.parametrize(
    ("limit", "expected"), [(24, [0, 1, 2, 6, 7, 8, 20, 21, 22]), (12, [0, 1, 2, 3, 4, 5, 8, 9, 10])]
)
def test_gaps_shrink_where_a_model_has_no_positions_for_them(limit, expected):
    absolute = make_config(position_embedding_type="absolute", max_position_embeddings=limit + 2)
    arrays = {"input_ids": np.zeros(9), "position_ids": np.array([0, 1, 2, 6, 7, 8, 20, 21, 22])}
    positions = cut_window(arrays, 0, 7, absolute)["position_ids"].tolist()
    assert positions == expected and positions[-1] < limit


def test_positions_bound_the_window():
    absolute = make_config(position_embedding_type="absolute", max_position_embeddings=34)
    assert [longest_window(make_config(), 1000), longest_window(absolute, 1000), longest_window(absolute, 9)] == [
        1000, 30, 9
    ]  # fmt: skip
    with pytest.raises(ValueError, match="`window` is 1; it must be at least 2"):
        longest_window(absolute, 1)


def test_means_over_windows_by_hand():
    residues = WindowMean((4, 2), 1)
    residues.add(0, np.array([[1, 2], [3, 4], [5, 6]]))
    residues.add(2, np.array([[7, 8], [9, 10]]))
    assert residues.mean().tolist() == [[1, 2], [3, 4], [6, 7], [9, 10]] and residues.mean().dtype == np.float32

    pairs = WindowMean((3, 3), 2)
    pairs.add(0, np.array([[1, 2], [3, 4]]))
    pairs.add(1, np.array([[6, 7], [8, 9]]))
    np.testing.assert_array_equal(pairs.mean(), [[1, 2, np.nan], [3, 5, 7], [np.nan, 8, 9]])

    whole = WindowMean((2,), 0)
    for start, values in ((0, [1.0, 2.0]), (5, [3.0, 6.0]), (9, [5.0, 1.0])):
        whole.add(start, np.array(values))
    assert whole.mean().tolist() == [3, 3]


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chains():
    """Rows of a data set and a chain of a file, of which nothing is observed in one, and one has a single residue."""
    rows = fetch_rows(load_rows(CHAINS, "valid"), range(6))
    rows[1]["coords"] = np.full_like(rows[1]["coords"], np.nan)
    one = {"id": "one", "sequence": "M", "atoms": ("CA",), "coords": np.zeros(3, dtype=np.float32)}
    return [*rows, read_chains(STRUCTURES / "1orc.pdb.gz")[0], one]


def test_rows_of_windows_come_longest_first(chains):
    model = make_model()
    rows = list(window_rows(model, PROCESSOR.tokenizer, chains, window=50))
    order = longest_first(chains)
    lengths = [residues_of(chain) for chain in chains]
    assert [lengths[number] for number in order] == sorted(lengths, reverse=True) and lengths[order[-1]] == 1
    expected = [
        (number, start) for number in order for start in window_starts(lengths[number], min(50, lengths[number]))
    ]
    assert [(row.chain, row.start) for row in rows] == expected
    assert [row.chain for row in rows if row.last] == order
    for row in rows:
        batch = PROCESSOR(chains=[chains[row.chain]], return_tensors="np")
        del batch["attention_mask"]
        arrays = {name: values[0] for name, values in batch.items()}
        expected = cut_window(arrays, row.start, len(row.inputs["input_ids"]) - 2, model.config)
        assert row.inputs.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(row.inputs[name], values)
    without = list(window_rows(model, PROCESSOR.tokenizer, chains, without_coords=True))
    assert all(np.isnan(row.inputs["coords"]).all() for row in without)


class Counter:
    """Stands for a model: notes the batches, and gives each token its id and the sum of all ids of its row."""

    device = torch.device("cpu")

    def __init__(self):
        self.config = make_config()
        self.shapes: list[tuple[int, ...]] = []

    def eval(self):
        return self

    def __call__(self, input_ids, attention_mask, coords):
        self.shapes.append(tuple(input_ids.shape))
        assert (input_ids[attention_mask == 0] == self.config.pad_token_id).all()
        assert coords[attention_mask == 0].isnan().all()
        total = (input_ids * attention_mask).sum(dim=1, keepdim=True).expand_as(input_ids)
        return torch.stack((input_ids, total), dim=-1).float()


@pytest.mark.parametrize("token_budget", [1, 130, 700, 100_000])
def test_batches_keep_to_the_budget(chains, token_budget):
    counter = Counter()
    rows = list(window_rows(counter, PROCESSOR.tokenizer, chains, window=50))
    found = list(predict(counter, iter(rows), lambda batch: counter(**batch), token_budget=token_budget))
    assert [row for row, _ in found] == rows
    for row, values in found:
        inside = len(row.inputs["input_ids"])
        assert (
            values[:inside, 0].tolist() == row.inputs["input_ids"].tolist()
            and values[0, 1] == row.inputs["input_ids"].sum()
        )
    for number, (count, width) in enumerate(counter.shapes):
        assert count == 1 or count * width <= token_budget
        if number + 1 < len(counter.shapes):  # and no row more would fit
            assert (count + 1) * max(width, counter.shapes[number + 1][1]) > token_budget
    widths = [width for _, width in counter.shapes]
    assert widths == sorted(widths, reverse=True) and sum(count for count, _ in counter.shapes) == len(rows)
    with pytest.raises(ValueError, match="`token_budget` is 0; it must be at least 1"):
        next(predict(counter, iter(rows), lambda batch: counter(**batch), token_budget=0))


def test_a_row_longer_than_its_batch_is_not_padded_beyond_the_budget():
    """Rows that do not come longest first are batched all the same."""
    counter = Counter()
    empty = [{"input_ids": np.full(n, 5), "coords": np.full((n, 3), np.nan, dtype=np.float32)} for n in (4, 4, 30, 3)]
    rows = [Row(0, 0, each) for each in empty]
    list(predict(counter, rows, lambda batch: counter(**batch), token_budget=40))
    assert counter.shapes == [(2, 4), (1, 30), (1, 3)]


@pytest.mark.parametrize("token_budget", [1, 700, 100_000])
def test_places_are_picked_and_rows_are_turned(chains, token_budget):
    """Rows that ask for some tokens, for none, and with rotations of their own: as of each row alone."""
    model = make_model()
    rotations = draw_rotations("x", 3)
    rows = list(window_rows(model, PROCESSOR.tokenizer, chains, window=50))
    rng = np.random.default_rng(0)
    for number, row in enumerate(rows):
        row.places = rng.integers(0, len(row.inputs["input_ids"]), size=number % 4)
        row.rotation = rotations[number % 3]
        row.tag = number

    found = list(predict(model, rows, lambda batch: model(**batch).logits, token_budget=token_budget))
    assert [row.tag for row, _ in found] == list(range(len(rows)))
    with torch.no_grad():
        for row, logits in found:
            xyz = torch.from_numpy(row.inputs["coords"])
            turned = (xyz - xyz.nanmean(dim=0)) @ row.rotation.T
            alone = model(input_ids=torch.from_numpy(row.inputs["input_ids"][None]), coords=turned[None]).logits[0]
            assert logits.shape == (len(row.places), 33) and logits.dtype == np.float32
            np.testing.assert_allclose(logits, alone[torch.from_numpy(row.places)], atol=2e-4)


def test_the_bar_moves_by_chains_or_rows(chains):
    class Bar:
        n = 0

        def update(self, count=1):
            self.n += count

    counter = Counter()
    for by_row in (False, True):
        bar, rows = Bar(), list(window_rows(counter, PROCESSOR.tokenizer, chains, window=50))
        list(predict(counter, rows, lambda batch: counter(**batch), token_budget=300, bar=bar, by_row=by_row))
        assert bar.n == (len(rows) if by_row else len(chains)) and len(rows) > len(chains)


def test_a_row_of_a_data_set_is_the_chain_that_it_was(chains):
    chain = read_chains(STRUCTURES / "1orc.pdb.gz", atoms=("N", "CA"))[0]
    assert as_chain(chain) is chain
    row = {"id": 7, "sequence": chain.sequence, "atoms": ["N", "CA"], "coords": chain.coords.reshape(-1)}
    again = as_chain(row)
    assert (again.id, again.sequence, again.atoms) == ("7", chain.sequence, ("N", "CA"))
    np.testing.assert_array_equal(again.coords, chain.coords)
    with pytest.raises(ValueError, match="chain x: letters 'U' in the sequence"):
        as_chain({"id": "x", "sequence": "MU", "atoms": ("CA",), "coords": np.zeros(6)})
