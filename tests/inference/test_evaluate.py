"""Evaluation: counts under the two protocols, windows of long chains, what is reported."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import CHAINS, make_model

from coordformer import CoordformerProcessor
from coordformer.data.rows import load_rows
from coordformer.inference.evaluate import count_chains, evaluate, predict_logits, summarize_draws
from coordformer.inference.metrics import summarize
from coordformer.model.windows import window_starts

TOKENIZER = CoordformerProcessor().tokenizer


@pytest.fixture(scope="module")
def valid_rows():
    rows = load_rows(CHAINS, "valid")
    return rows.select(range(40))


def test_counts_do_not_depend_on_batches(valid_rows):
    model = make_model()
    options = {"draws": 2, "progress": False}
    expected = count_chains(model, valid_rows, TOKENIZER, "paper", token_budget=300, **options)
    actual = count_chains(model, valid_rows, TOKENIZER, "paper", token_budget=5000, **options)
    np.testing.assert_allclose(actual, expected, atol=1e-3)
    assert expected.shape == (2, 40, 33, 3) and not np.array_equal(expected[0], expected[1])


@pytest.mark.parametrize(("protocol", "candidates"), [("paper", 33), ("masked15", 20)])
def test_a_model_that_knows_nothing_has_the_perplexity_of_its_alphabet(valid_rows, protocol, candidates):
    model = make_model()
    for parameter in model.lm_head.parameters():
        torch.nn.init.zeros_(parameter)
    counts = count_chains(model, valid_rows, TOKENIZER, protocol, draws=1, progress=False)
    assert summarize(counts)["perplexity"] == pytest.approx(candidates, rel=1e-5)
    assert 0.12 < summarize(counts)["residues"] / sum(valid_rows["length"][:]) < 0.18


def test_protocols_choose_the_same_residues_with_and_without_coordinates(valid_rows):
    model = make_model()
    with_ = count_chains(model, valid_rows, TOKENIZER, "masked15", draws=1, progress=False)
    without = count_chains(model, valid_rows, TOKENIZER, "masked15", draws=1, without_coords=True, progress=False)
    np.testing.assert_array_equal(with_[..., 0], without[..., 0])
    assert not np.allclose(with_[..., 1], without[..., 1])
    with pytest.raises(ValueError, match="`protocol` is 'mlm'"):
        count_chains(model, valid_rows, TOKENIZER, "mlm")
    for name in ("draws", "window", "token_budget"):
        with pytest.raises(ValueError, match=f"`{name}` is 0; it must be at least"):
            count_chains(model, valid_rows, TOKENIZER, **{name: 0})


def test_bfloat16_perplexity_is_near_float32(valid_rows):
    model = make_model()
    options = {"draws": 1, "progress": False}
    high = summarize(count_chains(model, valid_rows, TOKENIZER, **options))["perplexity"]
    low = summarize(count_chains(model.to(torch.bfloat16), valid_rows, TOKENIZER, **options))["perplexity"]
    assert low == pytest.approx(high, rel=0.02) and low != high


def test_windows_cover_a_chain_and_overlap_by_half():
    assert window_starts(100, 100) == [0]
    assert window_starts(101, 100) == [0, 1]
    assert window_starts(300, 100) == [0, 50, 100, 150, 200]
    assert window_starts(310, 100) == [0, 50, 100, 150, 200, 210]


def test_long_chains_are_averaged_over_windows():
    """Against windows cut by hand; chains that fit are predicted as ever."""
    model = make_model()
    rows = load_rows(CHAINS, "valid").select(range(3))
    batch = CoordformerProcessor()(chains=[rows[i] for i in range(3)])
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    window = sorted(lengths)[1] - 2  # the longest chain is cut, one just fits, one is shorter
    with torch.no_grad():
        actual, whole = predict_logits(model, batch, window), model(**batch).logits
        long = int(np.argmax(lengths))
        n = lengths[long]
        total, visits = torch.zeros(n, 33), torch.zeros(n, 1)
        for start in window_starts(n - 2, window):
            index = [0, *range(start + 1, start + 1 + window), n - 1]
            one = {name: batch[name][long : long + 1, index] for name in ("input_ids", "coords")}
            total[index] += model(**one).logits[0]
            visits[index] += 1
    assert (visits[1:-1] >= 1).all() and visits.max() >= 2
    torch.testing.assert_close(actual[long, :n], total / visits, atol=1e-5, rtol=0)
    for row in range(3):
        if row != long:
            torch.testing.assert_close(actual[row, : lengths[row]], whole[row, : lengths[row]], atol=1e-5, rtol=0)


def test_summary_reports_the_spread(valid_rows):
    counts = count_chains(make_model(), valid_rows, TOKENIZER, draws=3, progress=False)
    letters = {letter: TOKENIZER.convert_tokens_to_ids(letter) for letter in "ACDEFGHIKLMNPQRSTVWY"}
    summary = json.loads(json.dumps(summarize_draws(counts, letters)))
    assert len(summary["perplexity_by_draw"]) == 3
    weights = counts[..., 0].sum(axis=(1, 2))
    log_mean = np.average(np.log(summary["perplexity_by_draw"]), weights=weights)
    assert math.log(summary["perplexity"]) == pytest.approx(log_mean, rel=1e-9)
    low, high = summary["perplexity_interval"]
    assert low < summary["perplexity"] < high


def test_a_checkpoint_without_a_language_model_is_refused(tmp_path):
    make_model("multi_label").save_pretrained(tmp_path)
    CoordformerProcessor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="it lacks lm_head.*so it is no masked language model"):
        evaluate(tmp_path, CHAINS, split="valid", progress=False)
