"""`score --ensemble`: the mean of several checkpoints, which may read different atoms and know different sequences."""

import csv
import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import STRUCTURES, make_model
from datasets import Dataset

from coordformer import CoordformerProcessor, design, read_chains
from coordformer.data.rows import SCHEMA, chain_to_row
from coordformer.data.training_sequences import FILE, TrainingSequences
from coordformer.inference.checkpoints import read_for, trained_on, training_sequences_of
from coordformer.inference.score import score
from coordformer_command import main

CRO = STRUCTURES / "1orc.pdb.gz"
BACKBONE = ("N", "CA", "C")


def save(folder: Path, seed: int, atoms: tuple[str, ...]) -> Path:
    torch.manual_seed(seed)
    make_model(coordinate_atoms=atoms).save_pretrained(folder)
    CoordformerProcessor(coordinate_atoms=atoms).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("ensembles")
    return [save(folder / "alphas", 0, ("CA",)), save(folder / "backbones", 1, BACKBONE)]


def quietly(checkpoint, output, **options) -> dict:
    return score(checkpoint, CRO, output, progress=False, **options)


def numbers(path: Path, first: str) -> np.ndarray:
    """The columns from `first` on, as numbers."""
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    start = rows[0].index(first)
    return np.array([[float(cell) for cell in row[start:]] for row in rows[1:]])


@pytest.mark.parametrize("method", ["wild_type_marginal", "masked_marginal"])
def test_scores_are_the_mean_of_all(checkpoints, tmp_path, method):
    alone = []
    for checkpoint in checkpoints:
        quietly(checkpoint, tmp_path / checkpoint.name, method=method)
        alone.append(numbers(tmp_path / checkpoint.name / "scan.csv", "A"))
    assert np.abs(alone[0] - alone[1]).max() > 0.1
    summary = quietly(checkpoints[0], tmp_path / "both", method=method, ensemble=checkpoints[1:], figures=False)
    np.testing.assert_allclose(numbers(tmp_path / "both" / "scan.csv", "A"), np.mean(alone, axis=0), atol=1e-5)
    assert (summary["checkpoint"], summary["ensemble"]) == ("alphas", ["backbones"])
    assert json.loads((tmp_path / "both" / "score.json").read_text())["ensemble"] == ["backbones"]
    assert not list((tmp_path / "both").glob("*.png")) and (tmp_path / "alphas" / "scan.png").exists()


def test_the_command(checkpoints, tmp_path, capsys):
    words = ["score", str(checkpoints[1]), str(CRO), "--mutants", "Q3A", "Q3A:R4G", "--quiet", "--output"]
    for name, more in (("one", []), ("both", ["--ensemble", str(checkpoints[0])])):
        assert main([*words, str(tmp_path / name), *more]) == 0
    found = {
        name: [float(row["score"]) for row in csv.DictReader((tmp_path / name / "scores.csv").read_text().splitlines())]
        for name in ("one", "both")
    }
    alphas = quietly(checkpoints[0], tmp_path / "other", mutants=["Q3A", "Q3A:R4G"])
    assert alphas["mutants"] == 2
    other = [
        float(row["score"]) for row in csv.DictReader((tmp_path / "other" / "scores.csv").read_text().splitlines())
    ]
    np.testing.assert_allclose(found["both"], np.mean([found["one"], other], axis=0), atol=1e-5)
    capsys.readouterr()


def test_a_run_of_other_models_is_not_gone_on_with(checkpoints, tmp_path):
    quietly(checkpoints[0], tmp_path, mutants=["Q3A"], ensemble=checkpoints[1:])
    with pytest.raises(ValueError, match="ensemble"):
        quietly(checkpoints[0], tmp_path, mutants=["Q3A"])
    with pytest.raises(ValueError, match="ensemble_weights"):
        quietly(checkpoints[0], tmp_path, mutants=["Q3A"], ensemble=[save(tmp_path / "backbones", 2, BACKBONE)])


def test_what_does_not_go_together(checkpoints, tmp_path):
    (tmp_path / "a.fasta").write_text(">a\nA\n")
    with pytest.raises(ValueError, match="`ensemble` goes with a scan or mutants; `sequences` are scored by one"):
        quietly(checkpoints[0], tmp_path, sequences=tmp_path / "a.fasta", ensemble=checkpoints[1:])
    with pytest.raises(ValueError, match=f"{tmp_path / 'none'}"):
        quietly(checkpoints[0], tmp_path / "out", mutants=["Q3A"], ensemble=[tmp_path / "none"])
    assert not (tmp_path / "out").exists()


def test_atoms_that_all_of_them_read():
    alphas, three = CoordformerProcessor(), CoordformerProcessor(coordinate_atoms=BACKBONE)
    four = CoordformerProcessor(coordinate_atoms=(*BACKBONE, "O"), optional_atoms=("N", "C", "O"))
    assert read_for([four]) == four.reads
    assert read_for([alphas, three]) == {"atoms": ("CA", "N", "C"), "optional_atoms": ()}
    assert read_for([alphas, four]) == {"atoms": ("CA", "N", "C", "O"), "optional_atoms": ("N", "C", "O")}
    assert read_for([four, three])["optional_atoms"] == ("O",)


def test_training_sequences_of_each_count(checkpoints, tmp_path, caplog):
    """Of one that says nothing nobody knows what it was trained on; what another one says is known."""
    cro, other = (read_chains(STRUCTURES / name)[0].sequence for name in ("1orc.pdb.gz", "1A8O.cif.gz"))
    silent, knowing = tmp_path / "silent", tmp_path / "knowing"
    for folder in (silent, knowing):
        shutil.copytree(checkpoints[0], folder)
    TrainingSequences.of([cro]).write(knowing / FILE)
    assert training_sequences_of(silent, checkpoints[1]) is None
    assert trained_on(training_sequences_of(silent, knowing), [[cro], [other]]) == ["same", None]
    assert trained_on(training_sequences_of(knowing), [[cro], [other]]) == ["same", "no"]
    summary = quietly(silent, tmp_path / "out", mutants=["Q3A"], ensemble=[knowing])
    assert summary["trained_on"] == "same"
    assert "1ORC_A was among the training sequences of silent or knowing" in caplog.text


def test_a_run_that_was_told_of_noise_is_not_one_that_was_not(tmp_path):
    """What only one of two runs was given is a difference, too."""
    layers = {"encoder_type": "proteinmpnn", "num_neighbors": 6, "num_decoder_layers": 2}
    make_model(**layers, noise_conditioning=True).save_pretrained(tmp_path / "told")
    CoordformerProcessor().save_pretrained(tmp_path / "told")
    quietly(tmp_path / "told", tmp_path / "out", mutants=["Q3A"], noise_level=0.2)
    with pytest.raises(ValueError, match=r"holds another run \(noise_level: 0.2 -> None\)"):
        quietly(tmp_path / "told", tmp_path / "out", mutants=["Q3A"])
    assert quietly(tmp_path / "told", tmp_path / "out", mutants=["Q3A"], noise_level=0.2)["mutants"] == 1


def backbone_file(path: Path) -> Path:
    """Residues 3 to 61 of Cro, of which 3 to 10 have C-alphas alone, and 20 has no C-alpha."""
    lines = []
    for line in gzip.decompress(CRO.read_bytes()).decode().splitlines(keepends=True):
        if not line.startswith("ATOM"):
            continue
        number, atom = int(line[22:26]), line[12:16].strip()
        if (number <= 10 and atom != "CA") or (number == 20 and atom == "CA"):
            continue
        lines.append(line)
    path.write_text("".join(lines))
    return path


def test_what_is_observed_is_what_all_models_have_a_place_for(tmp_path, caplog):
    """ProteinMPNN's layers need the whole backbone, or the C-alpha alone, and other layers any atom."""
    path, rows = backbone_file(tmp_path / "part.pdb"), {}
    layers = {"encoder_type": "proteinmpnn", "num_neighbors": 6, "num_decoder_layers": 1}
    kinds = {
        "whole": layers | {"coordinate_atoms": ("N", "CA", "C", "O")},
        "partial": layers | {"coordinate_atoms": ("N", "CA", "C", "O"), "partial_backbones": True},
        "alphas": layers,
        "any": {"coordinate_atoms": BACKBONE},
    }
    for name, fields in kinds.items():
        model = make_model(**fields)
        model.save_pretrained(tmp_path / name)
        options = {"optional_atoms": model.config.optional_atoms}
        CoordformerProcessor(coordinate_atoms=model.config.coordinate_atoms, **options).save_pretrained(tmp_path / name)

    def unobserved(first: str, *others: str) -> list[str]:
        options = {"residues": "A3-A22", "ensemble": [tmp_path / name for name in others], "figures": False}
        output = tmp_path / "-".join(["out", first, *others])
        found = score(tmp_path / first, path, output, progress=False, method="wild_type_marginal", **options)
        with open(output / "scan.csv", newline="") as file:
            rows[first] = [row["residue"] for row in csv.DictReader(file) if row["observed"] == "false"]
        assert rows[first] == found["unobserved"]
        return found["unobserved"]

    lacking = [f"A{number}" for number in range(3, 11)]
    assert unobserved("whole") == [*lacking, "A20"]
    assert unobserved("partial") == unobserved("alphas") == ["A20"]
    assert unobserved("any") == []
    assert unobserved("alphas", "any") == ["A20"] and unobserved("partial", "whole") == [*lacking, "A20"]
    assert "9 of 20 residues were not observed" in caplog.text


def test_a_residue_without_a_place_is_not_designed(tmp_path):
    path = backbone_file(tmp_path / "part.pdb")
    fields = {"encoder_type": "proteinmpnn", "num_neighbors": 6, "num_decoder_layers": 1}
    for partial, kept in ((False, {*range(3, 11), 20}), (True, {20})):
        model = make_model(**fields, coordinate_atoms=("N", "CA", "C", "O"), partial_backbones=partial)
        protein = read_chains(path, model.config.coordinate_atoms)[0]
        designed = design(model, protein, num_samples=1).designed
        assert {int(n) for n, free in zip(protein.residue_numbers, designed, strict=True) if not free} == kept


def test_checkpoints_of_one_name(checkpoints, tmp_path):
    """Each has its own record of training, whatever the order."""
    cro = read_chains(CRO)[0].sequence
    for name in ("a", "b"):
        shutil.copytree(checkpoints[0], tmp_path / name / "best")
    TrainingSequences.of([cro]).write(tmp_path / "a" / "best" / FILE)
    for folders in (("a", "b"), ("b", "a")):
        record = training_sequences_of(*(tmp_path / name / "best" for name in folders))
        assert trained_on(record, [[cro]]) == ["same"]


def test_a_scan_without_figures_is_another_run(checkpoints, tmp_path):
    quietly(checkpoints[0], tmp_path, figures=False)
    with pytest.raises(ValueError, match="figures: False -> True"):
        quietly(checkpoints[0], tmp_path)


def test_a_row_without_the_atoms_of_a_model_is_left_out(checkpoints, tmp_path):
    """And named, before anything is predicted; the others are scored."""
    rows = [chain_to_row(read_chains(CRO)[0]), chain_to_row(read_chains(STRUCTURES / "1hvr.pdb.gz", BACKBONE)[0])]
    Dataset(pa.Table.from_pylist(rows, schema=SCHEMA)).to_parquet(tmp_path / "rows.parquet")
    given = {"progress": False, "figures": False, "method": "wild_type_marginal"}
    summary = score(checkpoints[0], tmp_path / "rows.parquet", tmp_path / "out", ensemble=checkpoints[1:], **given)
    assert [report["chain"] for report in summary["chains"]] == ["1HVR_A"]
    rejected = (tmp_path / "out" / "rejected.tsv").read_text()
    assert "1ORC_A" in rejected and "or prepare the data set again with --atoms N,CA,C" in rejected
