"""Verbs that take files as complexes: `--complex` and `--assembly`."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import STRUCTURES, make_model

from coordformer import CoordformerProcessor, read_complex
from coordformer.inference.design import design_files
from coordformer.inference.embed import embed
from coordformer.inference.embeddings import load_embeddings
from coordformer.inference.evaluate import evaluate
from coordformer.inference.runner import Inputs
from coordformer.inference.score import describe, score
from coordformer.inference.selection import chain_copies, read_copies
from coordformer.model.chain import Chain, join_chains
from coordformer.model.residues import ResidueNumbers
from coordformer.model.structure import read_chains

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
    alone = score(checkpoint, HVR, tmp_path / "alone", chain_ids=["B"], **options)
    assert [message.partition(":")[0] for message in caplog.messages] == ["chain B of 1HVR is a copy of A"] * 2
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
    """But for copies of those that are read, which are rather left out."""
    tcr = STRUCTURES / "1BD2.cif.gz"

    def left_out(inputs, name: str, chains: str, **options) -> list[str]:
        caplog.clear()
        options = {"as_complex": True, "method": "wild_type_marginal", "figures": False, "progress": False} | options
        score(checkpoint, inputs, tmp_path / name, chain_ids=chains.split(), **options)
        return [message for message in caplog.messages if "--chains leaves out" in message]

    among = "--chains leaves out chains A, B, D, E of 1BD2, among 2 inputs; --residues C in its place scans the same "
    assert left_out([tcr, HVR], "scan", "C")[0] == among + "residues, and keeps them as context"
    assert left_out(tcr, "some", "A B C D", residues="C1-C9") == [
        "--chains leaves out chain E of 1BD2; without --chains it is context, and --residues says what is scored as "
        "before"
    ]
    assert left_out(tcr, "given", "C", mutants=["L1A"]) == [
        "--chains leaves out chains A, B, D, E of 1BD2; without --chains they are context; name the chain in mutants, "
        "as in SH195A"
    ]
    caplog.clear()
    options = {"num_samples": 1, "figures": False, "progress": False}
    design_files(
        checkpoint, tcr, tmp_path / "design", chain_ids=["A", "B", "C"], redesigned_residues="C3-C6", **options
    )
    assert "--chains leaves out chains D, E of 1BD2; without --chains they are context" in caplog.text
    assert left_out(HVR, "both", "A B", mutants=["PA1A"]) == left_out(HVR, "copy", "A", mutants=["P1A"]) == []
    assert left_out(tcr, "chain", "C", mutants=["L1A"], as_complex=False) == []


def shifted_copy(chain: Chain, name: str, shift: Any, start: int = 0) -> Chain:
    """From one of its residues on, elsewhere."""
    fields = {"sequence": chain.sequence[start:], "coords": chain.coords[start:] + np.float32(shift), "positions": None}
    fields |= {"b_factor": chain.b_factor[start:], "residue_numbers": chain.residue_numbers[start:]}
    return dataclasses.replace(chain, id=f"x_{name}", **fields)


def test_copies_in_a_crystal_are_named(checkpoint, tmp_path, caplog):
    """With those of each that touch; not where the letters of all copies are asked for together, or tied."""
    (cro,) = read_chains(STRUCTURES / "1orc.pdb.gz")
    other = read_chains(STRUCTURES / "1BD2.cif.gz")[2]
    center = np.nanmean(cro.coords, axis=(0, 1)) - np.nanmean(other.coords, axis=(0, 1))
    # Two of each; one copy of cro lacks its first residues, as in a file that does not know what is missing.
    parts = [
        shifted_copy(cro, "A", 0), shifted_copy(other, "P", center + 500), shifted_copy(cro, "B", 500, start=4),
        shifted_copy(other, "Q", center + 5),
    ]  # fmt: skip
    protein = join_chains("x", parts, ["A", "P", "B", "Q"])
    residues = ResidueNumbers(protein)
    assert chain_copies(protein, residues) == [[0, 2], [1, 3]]
    asked = residues.select("A10-A20")
    assert read_copies(protein, residues, asked) == {"copies": {"A": ["B"]}, "one_of_each": ["A", "Q"]}
    assert read_copies(protein, residues, asked, asked)["copies"] == {"A": ["B"]}
    both = residues.select("A10-A20 B10-B20")
    assert read_copies(protein, residues, both)["copies"] == {"A": ["B"], "B": ["A"]}
    assert read_copies(protein, residues, both, both) == {}
    some = residues.select("A10-A20 B10-B19")
    assert read_copies(protein, residues, some, some)["copies"] == {"A": ["B"]}
    # Other numbers for each chain, as some crystals have them.
    numbers = tuple(str(1000 + int(number)) if number[-1:].isdigit() else number for number in parts[2].residue_numbers)
    renamed = join_chains("x", [parts[0], dataclasses.replace(parts[2], residue_numbers=numbers)], ["A", "B"])
    names = ResidueNumbers(renamed)
    assert chain_copies(renamed, names) == [[0, 1]]
    asked = names.select("A10-A20 B1010-B1020")
    assert read_copies(renamed, names, asked, asked) == {}
    asked = names.select("A10-A20")
    assert read_copies(renamed, names, asked, asked)["copies"] == {"A": ["B"]}
    alone = join_chains("x", parts[:2], ["A", "P"])
    assert chain_copies(alone, ResidueNumbers(alone)) == []
    changed = dataclasses.replace(parts[2], sequence="W" * 60 + parts[2].sequence[60:])
    mixed = join_chains("x", [parts[0], changed], ["A", "B"])
    assert chain_copies(mixed, ResidueNumbers(mixed)) == []

    options = {"as_complex": True, "residues": "A50-A52", "method": "wild_type_marginal", "progress": False}
    summary = score(checkpoint, HVR, tmp_path, figures=False, **options)
    assert (summary["copies"], summary["one_of_each"]) == ({"A": ["B"]}, ["A"])
    fix = "where it is a second copy in the crystal, --chains A reads one of each"
    assert caplog.messages[-1].startswith("chain B of 1HVR is a copy of A: letters there are read while those of A")
    assert caplog.messages[-1].endswith(fix)


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


def test_partners_that_are_not_seen_are_named(checkpoint, tmp_path, caplog):
    """Of a chain that is read alone, and touches others, or copies, which may be an oligomer or a crystal."""

    def said(name: str, inputs=STRUCTURES / "1BD2.cif.gz", **options) -> list[str]:
        caplog.clear()
        options = {"method": "wild_type_marginal", "figures": False, "progress": False} | options
        score(checkpoint, inputs, tmp_path / name, **options)
        return [message for message in caplog.messages if "not seen" in message]

    fix = "which are not seen; --complex reads them, too"
    assert said("alone", chain_ids=["C"], mutants=["L1A"]) == [f"chain C of 1BD2 touches chains A, D, E, {fix}"]
    assert said("all") == [f"chain A of 1BD2 touches chains B, C, D, E, {fix}"]
    assert said("copies", HVR) == [
        "chain A of 1HVR touches its copy B, which is not seen; if it is an oligomer, --complex reads it, too"
    ]
    assert said("together", as_complex=True) == said("blind", without_coords=True) == []
