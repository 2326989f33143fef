"""`coordformer score --sequences`: whole sequences on structures."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import STRUCTURES, make_model

from coordformer import CoordformerForMaskedLM, CoordformerProcessor, read_complex
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
        assert float(row["pseudo_score"]) == pytest.approx(-np.nanmean(table[:, 1]), abs=1e-4)
        assert float(row["global_score"]) == pytest.approx(-np.nanmean(table[:, 0]), abs=1e-4)
        assert row["sequence"].replace("/", "") == given[row["sequence_id"]] and row["id"] == "1HVR"
    alike = {row["sequence_id"]: float(row["seq_recovery"]) for row in rows}
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
    assert blind["proteins"][0]["pseudo_score"] != pytest.approx(report["pseudo_score"], abs=1e-3)


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
        ("{n}", "1HVR: the sequence s has 1 chain, the structure 2 chains; join them by /."),
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
