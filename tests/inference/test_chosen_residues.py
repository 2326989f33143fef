"""Chosen residues that a file does not have, or has without coordinates: what is said of them."""

import csv
import gzip
from pathlib import Path

import pytest
import torch
from conftest import STRUCTURES
from small_models import make_model

from coordformer import CoordformerProcessor
from coordformer.inference.design import describe, design_files
from coordformer.inference.score import score
from coordformer_command import main

CRO = STRUCTURES / "1orc.pdb.gz"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    make_model().save_pretrained(folder)
    CoordformerProcessor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gapped(tmp_path_factory) -> Path:
    """Cro without SEQRES: of its 64 observed residues 20 to 24 and 30 are missing."""
    cut = {*range(20, 25), 30}
    lines = gzip.decompress(CRO.read_bytes()).decode().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("SEQRES")]
    kept = [line for line in kept if not (line.startswith(("ATOM", "ANISOU")) and int(line[22:26]) in cut)]
    path = tmp_path_factory.mktemp("gapped") / "gapped.pdb"
    path.write_text("".join(kept))
    return path


def quietly(checkpoint, inputs, output, **options) -> dict:
    return score(checkpoint, inputs, output, progress=False, method="wild_type_marginal", **options)


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_residue_in_a_gap_is_named_with_its_neighbors(checkpoint, gapped, tmp_path):
    """Without advice that would be in vain; of a range with residues in it, and of another chain, there is some."""
    with pytest.raises(ValueError) as caught:
        quietly(checkpoint, gapped, tmp_path, mutants=["LA22A"])
    assert "Mutant LA22A: A20 to A24 are not in the file, between A19 and A25; numbers are" in str(caught.value)
    for residues, reason in (
        ("A20-A23", "A20 to A24 are not in the file, between A19 and A25."),
        ("A18-A23", "A20 to A24 are not in the file, between A19 and A25; write A18-A19."),
        ("A30", "A30 is not in the file, between A29 and A31."),
        ("A29-A99", "chain A has no residue A99, its residues are 3 to 61; write A29-A61."),
        ("B3", "there is no chain B, only 'A'; write it like A3; --complex reads the chains of a file together."),
    ):
        with pytest.raises(ValueError) as caught:
            quietly(checkpoint, gapped, tmp_path, residues=residues)
        assert str(caught.value).endswith(f": Residues {residues!r}: {reason}")


def test_a_range_across_a_gap_says_what_is_missing(checkpoint, gapped, tmp_path, caplog):
    why = "; a file without SEQRES does not know its missing residues"
    summary = quietly(checkpoint, gapped, tmp_path / "scan", residues="A18-A31")
    names = [row["residue"] for row in read_rows(tmp_path / "scan" / "scan.csv")]
    assert names == [f"A{number}" for number in (18, 19, *range(25, 30), 31)]
    assert summary["missing_residues"] == ["A20 to A24", "A30"]
    assert caplog.messages == [f"not in the file, though within the chosen ranges: A20 to A24, A30{why}"]
    caplog.clear()
    two = quietly(checkpoint, [gapped, CRO], tmp_path / "two", residues="A28-A31")
    found = {report["chain"]: report.get("missing_residues") for report in two["chains"]}  # sorted by the files' paths
    name = "gapped_A"
    assert found.pop(name) == ["A30"] and list(found.values()) == [None]
    assert caplog.messages[-1] == f"not in the file, though within the chosen ranges: {name} A30{why}"
    caplog.clear()
    (tmp_path / "a.fasta").write_text(">a\n" + "A" * summary["residues"] + "\n")
    given = {"sequences": tmp_path / "a.fasta", "residues": "A18-A31"}
    scored = score(checkpoint, gapped, tmp_path / "sequences", progress=False, **given)
    assert scored["proteins"][0]["missing_residues"] == ["A20 to A24", "A30"] and why in caplog.text
    caplog.clear()
    assert "missing_residues" not in quietly(checkpoint, CRO, tmp_path / "whole", residues="A18-A31")
    assert "missing_residues" not in quietly(checkpoint, gapped, tmp_path / "chain", residues="A")
    assert not caplog.messages


def test_ids_with_mutants_that_no_chain_has_come_first(checkpoint, tmp_path, caplog):
    """With what to do about each; chains that no mutant is of are not left out, as nobody asked for them."""
    protease, table = STRUCTURES / "1hvr.pdb.gz", tmp_path / "mutants.csv"
    reason = "it has mutants, but the inputs have no such chain"

    def run(name: str, *rows: str, **options) -> tuple[dict, list[str]]:
        table.write_text("\n".join(["id,mutant", *rows]) + "\n")
        caplog.clear()
        summary = quietly(checkpoint, [CRO, protease], tmp_path / name, mutants=[str(table)], **options)
        rejected = tmp_path / name / "rejected.tsv"
        return summary, rejected.read_text().splitlines()[1:] if rejected.exists() else []

    together = (
        "write the id of a chain, 1HVR_A, 1HVR_B, or add --complex, which reads them together as 1HVR, and gives "
    )
    together += "all files such ids"
    summary, rejected = run("chains", "1ORC_A,M1A", "1ORC_A,E2K", "1HVR,PB1A")
    assert [report["chain"] for report in summary["chains"]] == ["1ORC_A"] and summary["rejected"] == 1
    assert rejected == [f"\t1HVR\t{reason}; {together}"]
    assert caplog.messages[0] == f"1 file or chain was left out: 1HVR: {reason}; {together}"
    _, rejected = run("close", "1ORC_A,W1A", "1HVR_C,P1A", "1hvr_a,P1A", "x,P1A", "1HVR_B,P1A")
    names = {"1HVR_A", "1HVR_B", "1ORC_A"}
    assert rejected[0].startswith(f"\t1HVR_C\t{reason}; write the id that it has there, such as 1HVR_")
    assert rejected[1].startswith(f"\t1hvr_a\t{reason}; write the id that it has there, such as 1HVR_A")
    assert set(rejected[2].removeprefix(f"\tx\t{reason}; ids of the inputs are such as ").split(", ")) == names
    assert rejected[3].startswith("1orc.pdb.gz\t1ORC_A\tMutant W1A: A1 ") and len(rejected) == 4
    _, rejected = run("one chain", "1ORC,M1A", "1HVR_A,P1A")
    assert rejected == [f"\t1ORC\t{reason}; write the id that it has there, such as 1ORC_A"]
    _, rejected = run("complexes", "1HVR,PB1A", "1ORC_A,M1A", as_complex=True)
    assert rejected == [
        f"\t1ORC_A\t{reason}; its complex has the id 1ORC: write that, and chains in mutants, as in SH195A"
    ]
    with pytest.raises(ValueError, match=f"^1HVR: {reason}; {together}$"):
        run("nothing", "1HVR,PB1A")
    summary, rejected = run("all", "1ORC_A,M1A")
    assert summary["rejected"] == 0 and not rejected


def test_residues_that_are_not_designed_are_named(checkpoint, gapped, tmp_path, caplog):
    """Cro has coordinates from 3 to 61 of 1 to 66."""
    options = {"num_samples": 3, "temperature": [0.0], "figures": False, "progress": False}
    summary = design_files(checkpoint, CRO, tmp_path / "some", redesigned_residues="A1-A4 A60-A65", **options)
    (report,) = summary["proteins"]
    assert (report["designed"], report["chosen"], report["unobserved"]) == (4, 10, ["A1-A2", "A62-A65"])
    note = "6 of 10 residues were not observed: A1-A2, A62-A65; what has no coordinates keeps its letter"
    assert caplog.messages == [note]
    assert report["distinct"] == 1 and "3 sequences, 1 distinct, for 4 of 71 residues" in describe(summary)
    caplog.clear()
    summary = design_files(checkpoint, gapped, tmp_path / "gap", redesigned_residues="A18-A26", **options)
    (report,) = summary["proteins"]
    assert report["missing_residues"] == ["A20 to A24", "A30"] and report["unobserved"] == []  # of all that is written
    joined = "a file without SEQRES does not know its missing residues, and sequences are joined there"
    assert caplog.messages[0] == f"not in the file: A20 to A24, A30; {joined}"
    for chosen, cause in (
        ({"redesigned_residues": "A63-A65 A1"}, "A1 A63-A65 of `redesigned_residues` 'A63-A65 A1' have no coordinates"),
        ({"fixed_residues": "A3-A61"}, "`fixed_residues` 'A3-A61' keep all residues with coordinates; fix fewer"),
    ):
        with pytest.raises(ValueError, match=f"1ORC: nothing is left to design; {cause}"):
            design_files(checkpoint, CRO, tmp_path / "none", **chosen, **options)
    chosen = {"redesigned_residues": "B5-B9", "chains_to_design": ["A"]}
    with pytest.raises(ValueError, match="'B5-B9' are in no chain of `chains_to_design`, A"):
        design_files(checkpoint, STRUCTURES / "1hvr.pdb.gz", tmp_path / "none", **chosen, **options)


def test_the_command_says_what_is_missing(checkpoint, gapped, tmp_path, capsys):
    """Which is no part of a run that another job has yet to do."""
    options = ["--residues", "A18-A31", "--method", "wild_type_marginal", "--quiet", "--output", str(tmp_path / "out")]
    assert main(["score", str(checkpoint), str(gapped), "--scan", *options]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("coordformer: ") == 1 and "A20 to A24, A30; a file without SEQRES" in printed.err
    assert "all substitutions of 8 of 58 residues" in printed.out
