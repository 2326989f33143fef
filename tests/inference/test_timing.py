"""What is said of the time that a run will take."""

import re
import time

import numpy as np
import pytest
from conftest import STRUCTURES, make_model

from coordformer import CoordformerProcessor, read_chains
from coordformer.inference import score, timing
from coordformer.inference.marginals import METHODS, scan_chains
from coordformer.inference.timing import in_words, scan_seconds, sequences_seconds
from coordformer_command import main

PROCESSOR = CoordformerProcessor()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "about 1 s"), (89, "about 89 s"), (125, "about 2 min"), (5399, "about 90 min"), (9000, "about 2.5 h")],
)
def test_time_in_words(seconds, words):
    assert in_words(seconds) == words


def test_a_scan_takes_what_was_said(monkeypatch):
    """With a clock that rows move on, a second for each residue read, and ten for each pass."""
    clock = 0.0

    def predict(model, processor, asked, *, masked, **options):
        nonlocal clock
        ((chain, indices),) = asked
        clock += 10 + len(chain) * len(indices)

    monkeypatch.setattr(timing, "log_probabilities", predict)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock)
    said = scan_seconds(None, PROCESSOR, ["A" * 50, "A" * 50])
    assert said["masked_marginal"] == pytest.approx(2 * (10 + 50 * 50))
    assert said["wild_type_marginal"] == pytest.approx(2 * (10 + 50))
    assert said["pseudo_likelihood"] == pytest.approx(2 * (1 + 19 * 50) * (10 + 50 * 50))
    assert scan_seconds(None, PROCESSOR, ["A" * 50]) is None  # sooner done than timed
    some = scan_seconds(None, PROCESSOR, ["A" * 50, "A" * 50], [30, 40])
    assert some["masked_marginal"] == pytest.approx(2 * 10 + 50 * (30 + 40))
    assert some["pseudo_likelihood"] == pytest.approx((2 + 19 * (30 + 40)) * (10 + 50 * 50))


def test_sequences_take_what_was_said(monkeypatch):
    """Of a structure a hundred seconds, of each sequence ten, and a second for each residue read."""
    clock = 0.0

    def score(model, protein, sequences, *, residues):
        nonlocal clock
        assert "X" not in {sequences[0][index] for index in residues}
        clock += 100 + len(sequences) * (10 + len(protein) * len(residues))

    monkeypatch.setattr(timing, "score_sequences", score)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock)
    said = sequences_seconds(None, [("A" * 50, ["X" + "A" * 49] * 7, range(50))])
    assert said == pytest.approx(100 + 7 * (10 + 50 * 50))
    assert sequences_seconds(None, [("A" * 50, ["A" * 50] * 7, range(9))]) is None  # sooner done than timed


def test_the_command_says_how_long_and_names_the_faster_method(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(score, "SOON", 0)
    make_model().save_pretrained(tmp_path / "model")
    PROCESSOR.save_pretrained(tmp_path / "model")
    inputs = [str(tmp_path / "model"), str(STRUCTURES / "1orc.pdb.gz"), "--scan", "--output"]
    number = r"about \d+ s"
    for method, more in (("masked_marginal", "; --method wild_type_marginal, which masks nothing, takes " + number),
                         ("wild_type_marginal", "")):  # fmt: skip
        assert main(["score", *inputs, str(tmp_path / method), "--method", method]) == 0
        lines = [line for line in capsys.readouterr().err.splitlines() if "take about" in line]
        assert len(lines) == 1
        assert re.search(rf"coordformer: all substitutions by {method} take {number}{more}$", lines[0])
    assert main(["score", *inputs, str(tmp_path / "quiet"), "--quiet"]) == 0
    monkeypatch.undo()
    assert main(["score", *inputs, str(tmp_path / "soon")]) == 0  # of some seconds nothing is said
    assert "take about" not in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_said_is_what_it_takes():
    model = make_model(num_qk_points=2, num_neighbors=8).eval()
    chains = read_chains(STRUCTURES / "1hvr.pdb.gz")
    said = scan_seconds(model, PROCESSOR, chains)
    for method in METHODS[:2]:
        start = time.perf_counter()
        assert np.isfinite(scan_chains(model, PROCESSOR, chains, method)[0]).any()
        assert 0.3 < (time.perf_counter() - start) / said[method] < 3
