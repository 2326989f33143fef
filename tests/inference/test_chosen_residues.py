"""Chosen residues that a file does not have, or has without coordinates: what is said of them."""

import csv
import gzip
from pathlib import Path

import pytest
import torch
from conftest import STRUCTURES
from small_models import make_model

from coordformer import CoordformerProcessor
from coordformer.inference.score import score

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
    """Cro without SEQRES, in which 20 to 24 and 30 are missing."""
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
    """Without advice that would be in vain; of another chain there is some."""
    with pytest.raises(ValueError) as caught:
        quietly(checkpoint, gapped, tmp_path, mutants=["LA22A"])
    assert "Mutant LA22A: A20 to A24 are not in the file, between A19 and A25; numbers are" in str(caught.value)
    for residues, reason in (
        ("A20-A23", "A20 to A24 are not in the file, between A19 and A25."),
        ("A30", "A30 is not in the file, between A29 and A31."),
        ("A29-A99", "chain A has no residue A99, its residues are 3 to 61."),
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
    assert summary["missing"] == ["A20 to A24", "A30"]
    assert caplog.messages == [f"not in the file, though within the chosen ranges: A20 to A24, A30{why}"]
    caplog.clear()
    two = quietly(checkpoint, [gapped, CRO], tmp_path / "two", residues="A28-A31")
    assert [report.get("missing") for report in two["chains"]] == [["A30"], None]
    assert (
        caplog.messages[-1] == f"not in the file, though within the chosen ranges: {two['chains'][0]['chain']} A30{why}"
    )
    caplog.clear()
    (tmp_path / "a.fasta").write_text(">a\n" + "A" * summary["residues"] + "\n")
    given = {"sequences": tmp_path / "a.fasta", "residues": "A18-A31"}
    scored = score(checkpoint, gapped, tmp_path / "sequences", progress=False, **given)
    assert scored["proteins"][0]["missing"] == ["A20 to A24", "A30"] and why in caplog.text
    caplog.clear()
    assert "missing" not in quietly(checkpoint, CRO, tmp_path / "whole", residues="A18-A31")
    assert "missing" not in quietly(checkpoint, gapped, tmp_path / "chain", residues="A")
    assert not caplog.messages
