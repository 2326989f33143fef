"""Heat maps of some residues."""

import dataclasses

import numpy as np
import pytest
from conftest import STRUCTURES

from coordformer.inference.figures import _numbered_ticks, plot_scan
from coordformer.model.chain import AMINO_ACIDS, Chain, join_chains
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
    assert some.get_xlabel() == "wild type (dots), number above\nhatched: not observed"
    assert second.get_xlabel() == "wild type (dots), number above"
    assert [line.get_xdata()[0] for line in some.lines[1:]] == [10.5]  # between the chains


def test_jumps_of_the_numbers_have_a_line_and_a_number(tmp_path, monkeypatch):
    """Also where nothing that the file has was left out; not at insertion codes, and at each end of a chain once."""
    pytest.importorskip("matplotlib")
    figures = []
    monkeypatch.setattr("coordformer.inference.figures.save_figure", lambda figure, path: figures.append(figure))
    numbers = ["1223", "1224", "1225", "1235", "1236", "1239", "1239A", "1240", "1242A", "1243", "1244"]
    rows = [{"id": f"x_{name}", "sequence": "A" * 11, "residue_numbers": numbers} for name in "AB"]
    residues, shown = ResidueNumbers(*rows), [*range(11), 13, 14, 15]
    table = np.random.default_rng(0).normal(size=(22, 20))
    for size in (14, 11):
        plot_scan(tmp_path / "scan.png", table, residues, "", shown[:size])
    axes = figures[0].axes[0]
    lines = {line.get_xdata()[0]: line.get_linestyle() for line in axes.lines[1:]}
    assert lines == {2.5: ":", 4.5: ":", 7.5: ":", 10.5: "-", 11.5: ":"}
    ticks = _numbered_ticks(residues, 0, 14, shown)
    assert ticks == {0: "A 1223", 3: "1235", 5: "1239", 8: "1242A", 11: "B 1225"}  # no room for the last
    assert list(axes.child_axes[0].get_xticks()) == list(ticks)
    # What is not named is missing, too: a dashed line, and a note.
    gap = ResidueNumbers({"id": "x", "sequence": "AAAA", "positions": [0, 1, 5, 6]})
    plot_scan(tmp_path / "scan.png", table[:4], gap)
    axes = figures[-1].axes[0]
    assert {line.get_xdata()[0]: line.get_linestyle() for line in axes.lines[1:]} == {1.5: "--"}
    assert axes.get_xlabel().endswith("\ndashed: residues are missing")
    assert _numbered_ticks(gap, 0, 4) == {0: "1", 2: "3", 3: "4"}


@pytest.mark.parametrize("size", [3, 16, 60])
def test_a_heat_map_fills_its_figure(tmp_path, size):
    """Beside the cells, their labels and the bar there is nothing but what the title needs."""
    image = pytest.importorskip("matplotlib.image")
    residues = ResidueNumbers({"id": "x", "sequence": "A" * size})
    plot_scan(tmp_path / "scan.png", np.random.default_rng(0).normal(size=(size, 20)), residues, "title")
    dark = (image.imread(tmp_path / "scan.png")[100:, :, :3].min(axis=2) < 0.9).any(axis=0)
    inked = np.flatnonzero(dark)
    assert inked[0] < 0.15 * len(dark) and inked[-1] > 0.85 * len(dark), (inked[0], inked[-1], len(dark))


def test_insertion_codes_have_labels(tmp_path, monkeypatch):
    """Each as far as there is room: the first with its number, those after it by the code alone."""

    def ticks(numbers: str, start: int = 0) -> dict[int, str]:
        row = {"id": "1ABC_H", "sequence": "A" * len(numbers.split()), "residue_numbers": numbers.split()}
        return _numbered_ticks(ResidueNumbers(row), start, len(row["sequence"]))

    kabat = "50 51 52 52A 53 54 55 82 82A 82B 82C 83 84"
    assert ticks(kabat) == {0: "50", 3: "52A", 7: "82", 8: "A", 9: "B", 10: "C", 12: "84"}  # 82 is after a gap
    assert ticks(kabat, 9) == {9: "82B", 10: "C", 12: "84"}  # a row that begins within a loop
    assert ticks("98 99 100 100A 100B 100C 101") == {0: "98", 3: "100A", 5: "100C"}  # no room for B
    assert ticks("109 110 111 111A 112B 112A 112 113") == {0: "109", 3: "111A", 5: "112A"}  # IMGT counts down
    assert ticks("8 9 10 11") == {0: "8", 2: "10"}

    pytest.importorskip("matplotlib")
    figures = []
    monkeypatch.setattr("coordformer.inference.figures.save_figure", lambda figure, path: figures.append(figure))
    (chain,) = read_chains(STRUCTURES / "1orc.pdb.gz")
    table = np.random.default_rng(0).normal(size=(71, 20))
    plot_scan(tmp_path / "scan.png", table, ResidueNumbers(chain))
    above = figures[0].axes[0].child_axes[0]
    labels = dict(zip(above.get_xticks(), (text.get_text() for text in above.get_xticklabels()), strict=True))
    assert {place: labels[place] for place in (49, 56, 57, 60)} == {49: "50", 56: "56A", 57: "B", 60: "E"}


def first(chain: Chain, count: int) -> Chain:
    """The first residues as a chain."""
    arrays = {"coords": chain.coords[:count], "b_factor": chain.b_factor[:count]}
    names = {"sequence": chain.sequence[:count], "residue_numbers": chain.residue_numbers[:count]}
    return dataclasses.replace(chain, **names, **arrays, positions=None)


def test_a_heat_map_wraps(tmp_path):
    (chain,) = read_chains(STRUCTURES / "1orc.pdb.gz")
    image = pytest.importorskip("matplotlib.image")
    shapes = []
    halves = [first(chain, 51)] * 2
    # One row, and two.
    for shown in (first(chain, 40), *(join_chains("two", each, ["A", "B"]) for each in ([chain, chain], halves))):
        table = np.random.default_rng(0).normal(size=(len(shown), 20))
        table[5] = np.nan
        plot_scan(tmp_path / "scan.png", table, ResidueNumbers(shown), title="chain")
        shapes.append(image.imread(tmp_path / "scan.png").shape)
    assert shapes[1][0] > 1.5 * shapes[0][0] and shapes[1][1] < 3 * shapes[0][1]
    assert shapes[2][0] == shapes[1][0] and shapes[2][1] < shapes[1][1]  # 51 and 51 residues, and not 100 and 2


def test_numbers_above_a_heat_map_are_those_of_the_file(antibody):
    """Of the first residue of a row and of a chain, and of every tenth, not so near that they touch."""
    (chain,) = read_chains(STRUCTURES / "1orc.pdb.gz")
    assert _numbered_ticks(ResidueNumbers(chain), 45, 71) == {
        45: "46", 49: "50", 56: "56A", 57: "B", 58: "C", 59: "D", 60: "E", 64: "60", 70: "66"
    }  # fmt: skip
    assert _numbered_ticks(ResidueNumbers(chain, numbering="sequence"), 45, 71) == {
        45: "46", 49: "50", 59: "60", 69: "70"
    }  # fmt: skip
    assert _numbered_ticks(ResidueNumbers(antibody), 0, 14) == {
        0: "H 51", 2: "52A", 5: "100", 7: "L 51", 11: "C 1", 13: "3"
    }  # fmt: skip
    # Of some: where residues are left out, and where another chain begins, though not with its first residue.
    shown = [*range(40, 49), *range(53, 59)]
    assert _numbered_ticks(ResidueNumbers(chain), 0, 12, shown) == {0: "41", 9: "54", 11: "56"}
    assert _numbered_ticks(ResidueNumbers(antibody), 0, 8, [*range(5), 8, 9, 10]) == {
        0: "H 51", 2: "52A", 5: "L 53", 7: "100A"
    }  # fmt: skip
