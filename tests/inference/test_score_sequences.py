"""`coordformer score --sequences`: whole sequences on structures."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import STRUCTURES, make_model
from tqdm.auto import tqdm

from coordformer import CoordformerForMaskedLM, CoordformerProcessor, read_complex
from coordformer.inference.design import design_files
from coordformer.inference.score import describe, score
from coordformer.model.chain import Complex
from coordformer.model.design import score_sequences
from coordformer_command import main


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scoring")
    torch.manual_seed(0)
    make_model(coordinate_embedding="local_frame", num_qk_points=2, num_neighbors=5).save_pretrained(folder)
    CoordformerProcessor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def protease() -> Complex:
    """HIV protease: two chains of 99 residues, the same numbers in both."""
    return read_complex(STRUCTURES / "1hvr.pdb.gz")


def quietly(checkpoint, inputs, output, **options) -> dict:
    return score(checkpoint, inputs, output, progress=False, **options)


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_sequences_of_a_complex(checkpoint, protease, tmp_path):
    """In any order, with a gap; each file says what `score_sequences` says, and the likeliest stands first."""
    native = protease.sequence
    given = {"wild": native, "mutant": "A" * 99 + native[99:], "gap": "X" + native[1:]}
    lines = [f">{name} a note\n{text[:99].replace('X', '-')}/{text[99:]}\n" for name, text in given.items()]
    (tmp_path / "given.fasta").write_text("".join(lines))
    summary = quietly(checkpoint, STRUCTURES / "1hvr.pdb.gz", tmp_path / "out", sequences=tmp_path / "given.fasta")
    model = CoordformerForMaskedLM.from_pretrained(checkpoint)
    tables = dict(zip(given, score_sequences(model, protease, list(given.values())), strict=True))
    rows = read_rows(tmp_path / "out" / "sequences.csv")
    assert [row["sequence_id"] for row in rows] == sorted(given, key=lambda name: -np.nanmean(tables[name][:, 1]))
    for row in rows:
        table = tables[row["sequence_id"]]
        assert float(row["global_pseudo_score"]) == pytest.approx(-np.nanmean(table[:, 1]), abs=1e-4)
        assert float(row["global_score"]) == pytest.approx(-np.nanmean(table[:, 0]), abs=1e-4)
        assert row["sequence"].replace("/", "") == given[row["sequence_id"]] and row["id"] == "1HVR"
    alike = {row["sequence_id"]: float(row["global_seq_recovery"]) for row in rows}
    expected = (native[:99].count("A") + 99) / 198
    assert alike == {"wild": 1, "gap": 1, "mutant": pytest.approx(expected, abs=1e-5)}
    residues = [row for row in read_rows(tmp_path / "out" / "residues.csv") if row["sequence_id"] == "gap"]
    assert [row["residue"] for row in residues[98:100]] == ["A99", "B1"] and residues[99]["position"] == "1"
    assert (residues[0]["native"], residues[0]["letter"], residues[0]["pseudo"]) == ("P", "X", "")
    np.testing.assert_allclose([float(row["pseudo"]) for row in residues[1:]], tables["gap"][1:, 1], atol=1e-4)
    np.testing.assert_allclose([float(row["one_pass"]) for row in residues[1:]], tables["gap"][1:, 0], atol=1e-4)
    [report] = summary["proteins"]
    assert (report["sequences"], report["best"]) == (3, rows[0]["sequence_id"])
    assert describe(summary).startswith("1HVR: 3 sequences on 198 residues, coordinates given; the likeliest is ")
    blind = quietly(
        checkpoint, STRUCTURES / "1hvr.pdb.gz", tmp_path / "blind", sequences=tmp_path / "given.fasta",
        without_coords=True,
    )  # fmt: skip
    assert blind["proteins"][0]["coordinates"] == "not given"
    assert blind["proteins"][0]["global_pseudo_score"] != pytest.approx(report["global_pseudo_score"], abs=1e-3)


def test_scores_of_chosen_residues_are_those_of_designs(checkpoint, protease, tmp_path):
    """`pseudo_score` and `seq_recovery` mean the same in designs.csv and, of what was designed, in sequences.csv."""
    hvr, chosen = STRUCTURES / "1hvr.pdb.gz", "A50-A55 B1"
    design_files(
        checkpoint, hvr, tmp_path / "design", num_samples=3, temperature=[2.0], redesigned_residues=chosen,
        rescore=True, figures=False, progress=False,
    )  # fmt: skip
    fasta = tmp_path / "design" / "1HVR.fasta"
    summary = quietly(checkpoint, hvr, tmp_path / "out", sequences=fasta, residues=chosen)
    designs = {f"1HVR_2_{row['sample']}": row for row in read_rows(tmp_path / "design" / "designs.csv")}
    rows = {row["sequence_id"]: row for row in read_rows(tmp_path / "out" / "sequences.csv")}
    expected = ["id", "file", "sequence_id", "pseudo_score", "global_score", "seq_recovery", "sequence"]
    assert list(rows["1HVR"]) == expected
    assert len(designs) == 3 and rows.keys() == {"1HVR", *designs} and rows["1HVR"]["seq_recovery"] == "1"
    for name, design in designs.items():
        for column in ("pseudo_score", "seq_recovery"):
            assert float(rows[name][column]) == pytest.approx(float(design[column]), abs=1e-4), (name, column)
    assert len({row["pseudo_score"] for row in designs.values()}) > 1
    places = [row["residue"] for row in read_rows(tmp_path / "out" / "residues.csv") if row["sequence_id"] == "1HVR"]
    assert places == ["A50", "A51", "A52", "A53", "A54", "A55", "B1"]
    (report,) = summary["proteins"]
    assert report["pseudo_score"] == pytest.approx(min(float(row["pseudo_score"]) for row in rows.values()), abs=1e-4)
    assert (report["scored"], "global_pseudo_score" in report) == (7, False)
    assert describe(summary).startswith(
        "1HVR: 4 sequences on 198 residues (7 chosen), coordinates given; the likeliest"
    )
    every = quietly(checkpoint, hvr, tmp_path / "all", sequences=fasta)
    assert "global_pseudo_score" in every["proteins"][0] and "pseudo_score" not in every["proteins"][0]
    assert list(read_rows(tmp_path / "all" / "sequences.csv")[0])[3:6] == [
        "global_pseudo_score", "global_score", "global_seq_recovery"
    ]  # fmt: skip
    table = {row["sequence_id"]: float(row["global_score"]) for row in read_rows(tmp_path / "all" / "sequences.csv")}
    assert {name: float(row["global_score"]) for name, row in rows.items()} == pytest.approx(table, abs=1e-5)


def test_sequences_count_rows_and_say_how_long(checkpoint, protease, tmp_path, monkeypatch, capsys):
    """A bar of all residues that are masked, from the start on; X is none of them."""
    bars = []

    class Bar(tqdm):
        def __init__(self, *arguments, **keywords):
            super().__init__(*arguments, **keywords)
            bars.append(self)

    monkeypatch.setattr("coordformer.inference.sequences.tqdm", Bar)
    (tmp_path / "given.fasta").write_text(f">a\n{protease.sequence[:99]}/X{protease.sequence[100:]}\n>b\n"
                                          f"{protease.sequence[:99]}/{protease.sequence[99:]}\n")  # fmt: skip
    command = ["score", str(checkpoint), str(STRUCTURES / "1hvr.pdb.gz"), "--sequences", str(tmp_path / "given.fasta")]
    assert main([*command, "--output", str(tmp_path / "all")]) == 0
    assert [(bar.total, bar.n) for bar in bars] == [(197 + 198, 197 + 198)]
    lines = [line for line in capsys.readouterr().err.splitlines() if "take about" in line]
    assert re.search(r"coordformer: 2 sequences, each residue masked in its turn, take about \d+ s$", lines[0])
    assert main([*command, "--output", str(tmp_path / "some"), "--residues", "B1-B3"]) == 0
    assert (bars[1].total, bars[1].n) == (5, 5)
    assert "take about" not in capsys.readouterr().err  # sooner done than timed


def test_sequences_of_a_run_that_an_older_version_began(checkpoint, protease, tmp_path):
    """What was called as in designs.csv has its new name, and is not made again."""
    hvr = STRUCTURES / "1hvr.pdb.gz"
    (tmp_path / "given.fasta").write_text(f">a\n{protease.sequence[:99]}/{protease.sequence[99:]}\n")
    options = {"sequences": tmp_path / "given.fasta"}
    before = quietly(checkpoint, hvr, tmp_path / "out", **options)
    new = (tmp_path / "out" / "sequences.csv").read_text()
    for path in (tmp_path / "out" / "run.json", *(tmp_path / "out" / "parts").iterdir()):
        text = path.read_text().replace("global_pseudo_score", "pseudo_score")
        path.write_text(text.replace("global_seq_recovery", "seq_recovery").replace('"chosen_residues": null,', ""))
    assert "global_pseudo_score" not in (tmp_path / "out" / "parts" / "00000-of-00001.csv").read_text()
    assert quietly(checkpoint, hvr, tmp_path / "out", **options) == before
    assert (tmp_path / "out" / "sequences.csv").read_text() == new and "global_pseudo_score" in new


def test_sequences_of_several_structures(checkpoint, protease, tmp_path):
    """Each gets those with its id; one that has none, and one whose sequence does not fit, are listed."""
    cro, first, second = read_complex(STRUCTURES / "1orc.pdb.gz"), protease.sequence[:99], protease.sequence[99:]
    text = f">1ORC\n{cro.sequence}\n>1ORC_0.1_1\n{cro.sequence}\n>1HVR_a\n{first}/{second[:40]}{second[42:]}\n"
    (tmp_path / "given.fasta").write_text(text)
    paths = [STRUCTURES / name for name in ("1orc.pdb.gz", "1hvr.pdb.gz", "1A8O.cif.gz")]
    options = {"sequences": tmp_path / "given.fasta", "entries_per_part": 2}
    summary = quietly(checkpoint, paths, tmp_path / "out", **options)
    assert [(each["id"], each["sequences"]) for each in summary["proteins"]] == [("1ORC", 2)]
    rejected = (tmp_path / "out" / "rejected.tsv").read_text()
    assert "\t1HVR\tthe sequence 1HVR_a has 97 letters where chain B has 99 residues: it lacks B41 " in rejected
    assert "\t1A8O\tno sequence has this id" in rejected
    with pytest.raises(ValueError, match="holds another run"):
        quietly(checkpoint, paths, tmp_path / "out", mutants=["A1G"], entries_per_part=2)


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ("{n}", "1HVR: the sequence s has 1 chain, the structure 2 chains; join all of them by /, or read those"),
        ("{n}/{n}/{n}", "1HVR: the sequence s has 3 chains, the structure 2 chains"),
        ("{n}GG/{n}", "101 letters where chain A has 99 residues: it has GG more after A99 (position 99 of chain A)."),
        ("MM{n}/{n}", "101 letters where chain A has 99 residues: it has MM more in front."),
        ("{n}/{lost}", "98 letters where chain B has 99 residues: it lacks B30 (position 30 of chain B)."),
        ("{x}/{x}", "1HVR: a sequence has only X; there is nothing to score"),
        ("{n}/1{n}", "given.fasta: chain s: letters"),
    ],
)
def test_sequences_that_do_not_fit(checkpoint, protease, tmp_path, capsys, sequence, message):
    native = protease.sequence[:99]
    filled = sequence.format(n=native, lost=native[:29] + native[30:], x="X" * 99)
    (tmp_path / "given.fasta").write_text(f">s\n{filled}\n")
    command = ["score", str(checkpoint), str(STRUCTURES / "1hvr.pdb.gz"), "--output", str(tmp_path / "out"), "--quiet"]
    assert main([*command, "--sequences", str(tmp_path / "given.fasta")]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("coordformer: ")]
    assert len(lines) == 1 and message in lines[0], lines


def test_one_thing_is_scored(checkpoint, tmp_path, capsys):
    command = ["score", str(checkpoint), str(STRUCTURES / "1hvr.pdb.gz"), "--output", str(tmp_path / "out")]
    for options in ([], ["--scan", "--sequences", "a.fasta"], ["--mutants", "A1G", "--sequences", "a.fasta"]):
        with pytest.raises(SystemExit):
            main([*command, *options])
        message = capsys.readouterr().err
        assert "one of the arguments --mutants --scan --sequences is required" in message or "not allowed" in message
    with pytest.raises(ValueError, match="Give `mutants` or `sequences`, not both"):
        quietly(checkpoint, STRUCTURES / "1hvr.pdb.gz", tmp_path, mutants=["A1G"], sequences="a.fasta")
