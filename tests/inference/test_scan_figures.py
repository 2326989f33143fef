"""Heat maps of some residues."""

import numpy as np
import pytest
from conftest import STRUCTURES

from coordformer.inference.figures import plot_scan
from coordformer.model.chain import AMINO_ACIDS, join_chains
from coordformer.model.residues import ResidueNumbers
from coordformer.model.structure import read_chains


def test_a_heat_map_of_some_residues(tmp_path, monkeypatch):
    """One row where all would be two; those that were not observed are hatched, and a note says so."""
    pytest.importorskip("matplotlib")
    (chain,) = read_chains(STRUCTURES / "1orc.pdb.gz")
    figures = []
    monkeypatch.setattr("coordformer.inference.figures.save_figure", lambda figure, path: figures.append(figure))
    two = join_chains("two", [chain, chain], ["A", "B"])
    table = np.random.default_rng(0).normal(size=(142, 20))
    observed = two.observed.any(axis=1)
    shown = [*range(60, 71), *range(80, 90)]
    plot_scan(tmp_path / "some.png", table, ResidueNumbers(two), "", shown, observed)
    plot_scan(tmp_path / "all.png", table, ResidueNumbers(two), "")
    (some, _), (first, second, _) = (figure.axes for figure in figures)
    letters = [[text.get_text() for text in axes.get_xticklabels()] for axes in (some, first, second)]
    assert letters[0] == [two.sequence[index] for index in shown] and [*letters[1], *letters[2]] == list(two.sequence)
    np.testing.assert_array_equal(some.images[0].get_array()[0], table[shown, AMINO_ACIDS.index("A")])
    hatched = [patch.get_x() + 0.5 for patch in some.patches if patch.get_hatch()]
    assert hatched == [place for place, index in enumerate(shown) if not observed[index]] == [6, 7, 8, 9, 10]
    assert some.get_xlabel() == "wild type (dots), number above; hatched: not observed"
    assert second.get_xlabel() == "wild type (dots), number above"
    assert [line.get_xdata()[0] for line in some.lines[1:]] == [10.5]  # between the chains
