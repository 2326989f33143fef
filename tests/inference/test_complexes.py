"""Verbs that take files as complexes: `--complex` and `--assembly`."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import STRUCTURES, make_model

from coordformer import CoordformerProcessor, read_complex
from coordformer.inference.embed import embed
from coordformer.inference.embeddings import load_embeddings
from coordformer.inference.evaluate import evaluate
from coordformer.inference.runner import Inputs
from coordformer.inference.score import describe, score

HVR, A8O = STRUCTURES / "1hvr.pdb.gz", STRUCTURES / "1A8O.cif.gz"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    make_model(coordinate_embedding="local_frame", num_qk_points=2, num_neighbors=4).save_pretrained(folder)
    CoordformerProcessor().save_pretrained(folder)
    return folder


def test_a_file_is_one_complex_or_its_chains(checkpoint, tmp_path):
    one = evaluate(checkpoint, [HVR, A8O], as_complex=True, num_mask_samples=1, progress=False)
    each = evaluate(checkpoint, [HVR, A8O], num_mask_samples=1, progress=False)
    assert (one["chains"], one["residues"]) == (2, 198 + 70) and (each["chains"], each["residues"]) == (3, 198 + 70)
    assembly = evaluate(checkpoint, A8O, assembly="1", num_mask_samples=1, progress=False)
    assert (assembly["chains"], assembly["residues"]) == (1, 140)


def test_chains_of_a_complex_see_each_other(checkpoint, tmp_path):
    """Residues have other vectors in the complex, and those that the model gives for the complex itself."""
    options = {"pooling": None, "progress": False}
    embed(checkpoint, HVR, tmp_path / "complex", as_complex=True, **options)
    embed(checkpoint, HVR, tmp_path / "chains", **options)
    (name,), (whole,) = load_embeddings(tmp_path / "complex")
    ids, parts = load_embeddings(tmp_path / "chains")
    assert name == "1HVR" and ids == ["1HVR_A", "1HVR_B"] and whole.shape == (198, 48)
    assert np.abs(whole - np.concatenate(parts)).max(axis=1).min() > 1e-4
    torch.manual_seed(0)
    model = make_model(coordinate_embedding="local_frame", num_qk_points=2, num_neighbors=4)
    with torch.no_grad():
        batch = CoordformerProcessor()(chains=[read_complex(HVR)])
        expected = model.coordformer(**batch).last_hidden_state[0, 1:-1]
    np.testing.assert_allclose(whole, expected, atol=1e-4)


def test_a_scan_of_a_complex_names_chains_and_residues(checkpoint, tmp_path):
    summary = score(checkpoint, HVR, tmp_path / "scan", as_complex=True, progress=False)
    assert summary["residues"] == 198
    with open(tmp_path / "scan" / "scan.csv") as file:
        rows = list(csv.DictReader(file))
    assert [rows[place]["residue"] for place in (0, 98, 99, 197)] == ["A1", "A99", "B1", "B99"]
    assert [rows[place]["position"] for place in (0, 98, 99, 197)] == ["1", "99", "1", "99"]
    given = score(checkpoint, HVR, tmp_path / "given", as_complex=True, mutants=["PB1A", "WT"], progress=False)
    assert given["chains"][0]["mutants"] == 2
    with open(tmp_path / "given" / "scores.csv") as file:
        scores = [float(row["score"]) for row in csv.DictReader(file)]
    assert scores == [pytest.approx(float(rows[99]["A"]), abs=1e-4), 0.0]


def test_a_scan_of_some_residues_has_the_others_as_context(checkpoint, tmp_path, caplog):
    """The rows that a scan of all residues of the complex has, and not those of the chain alone."""
    options = {"as_complex": True, "progress": False}
    score(checkpoint, HVR, tmp_path / "all", **options)
    summary = score(checkpoint, HVR, tmp_path / "some", residues="B/ A50-A52", **options)
    assert not caplog.messages
    alone = score(checkpoint, HVR, tmp_path / "alone", chain_ids=["B"], **options)
    fix = "--residues B in its place scans the same residues, and keeps it as context"
    assert caplog.messages == [f"--chains leaves out chain A of 1HVR; {fix}"]
    tables = {}
    for name in ("all", "some", "alone"):
        with open(tmp_path / name / "scan.csv") as file:
            tables[name] = list(csv.DictReader(file))
    names = ["A50", "A51", "A52", *(f"B{number}" for number in range(1, 100))]
    assert [row["residue"] for row in tables["some"]] == names
    assert (summary["scored"], summary["residues"], alone["residues"]) == (102, 198, 99)
    assert summary["chosen_residues"] == "B/ A50-A52" and alone["chosen_residues"] is None
    assert describe(summary).startswith("1HVR: all substitutions of 102 of 198 residues in 2 chains by masked_marginal")
    every, some, other = (
        np.array([[float(row[letter]) for letter in "ACW"] for row in tables[name]]) for name in tables
    )
    np.testing.assert_allclose(some, np.concatenate([every[49:52], every[99:]]), atol=1e-5)
    assert np.abs(some[3:] - other).max() > 0.01
    assert (tmp_path / "some" / "scan.png").exists()
    with pytest.raises(ValueError, match="holds another run .chosen_residues: 'B/ A50-A52' -> 'B'"):
        score(checkpoint, HVR, tmp_path / "some", residues="B", **options)


def test_chains_that_are_left_out_are_named(checkpoint, tmp_path, caplog):
    score(checkpoint, [HVR, A8O], tmp_path / "mutants", as_complex=True, chain_ids=["A"], mutants=None, progress=False)
    left = "--chains leaves out chain B of 1HVR, among 2 inputs; --residues A in its place"
    assert caplog.messages[0].startswith(left)
    caplog.clear()
    score(checkpoint, HVR, tmp_path / "given", as_complex=True, chain_ids=["A"], mutants=["P1A"], progress=False)
    assert caplog.messages == [
        "--chains leaves out chain B of 1HVR; without --chains it is context; name the chain in mutants, as in SH195A"
    ]
    caplog.clear()
    options = {"chain_ids": ["A", "B"], "mutants": ["PA1A"], "as_complex": True, "progress": False}
    score(checkpoint, HVR, tmp_path / "both", **options)
    score(checkpoint, HVR, tmp_path / "chain", **options | {"chain_ids": ["A"], "as_complex": False})
    assert not caplog.messages


def test_residues_of_chains_that_are_read_one_by_one(checkpoint, tmp_path):
    summary = score(checkpoint, HVR, tmp_path, residues="B50", method="wild_type_marginal", progress=False)
    assert [report["chain"] for report in summary["chains"]] == ["1HVR_B"] and summary["scored"] == 1
    reason = (
        "Residues 'B50': there is no chain B, only 'A'; write it like A1; --complex reads the chains of a file together"
    )
    assert reason in (tmp_path / "rejected.tsv").read_text()


def test_sequences_of_several_chains(checkpoint, tmp_path):
    """As designs are written, and as ColabFold takes them."""
    (tmp_path / "a.fasta").write_text(">one\nMKV/LAGVS\n>two\nMKVLA:GVS:E\n>three\nMKV\n")
    chains = Inputs(tmp_path / "a.fasta", as_complex=True).read_all()
    assert [getattr(chain, "chain_lengths", None) for chain in chains] == [(3, 5), (5, 3, 1), None]
    assert chains[1].chain_names == ("A", "B", "C") and chains[0].sequence == "MKVLAGVS"
    rejects: list = []
    found, _ = Inputs(tmp_path / "a.fasta").read(0, rejects)
    assert [chain.id for chain in found] == ["three"] and {reject[1] for reject in rejects} == {"one", "two"}


def test_a_folder_of_chains_is_no_folder_of_complexes(checkpoint, tmp_path):
    embed(checkpoint, HVR, tmp_path / "out", as_complex=True, progress=False)
    for options in ({}, {"as_complex": True, "assembly": "1"}):
        with pytest.raises(ValueError, match="holds another run"):
            embed(checkpoint, HVR, tmp_path / "out", progress=False, **options)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["as_complex"] is True


def test_what_is_no_complex_is_said(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="no assembly 7; the file has 1"):
        evaluate(checkpoint, A8O, assembly="7", progress=False)
    with pytest.raises(ValueError, match="no protein chain Z; the file has A, B"):
        evaluate(checkpoint, HVR, as_complex=True, chain_ids=["Z"], progress=False)
