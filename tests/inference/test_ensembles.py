"""`score --ensemble`: the mean of several checkpoints, which may read different atoms and know different sequences."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import STRUCTURES, make_model

from coordformer import CoordformerProcessor, read_chains
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
    layers = {"encoder_type": "proteinmpnn", "num_neighbors": 6, "num_decoder_layers": 2, "coordinate_embedding": "none"}
    make_model(**layers, noise_conditioning=True).save_pretrained(tmp_path / "told")
    CoordformerProcessor().save_pretrained(tmp_path / "told")
    quietly(tmp_path / "told", tmp_path / "out", mutants=["Q3A"], noise_level=0.2)
    with pytest.raises(ValueError, match=r"holds another run \(noise_level: 0.2 -> None\)"):
        quietly(tmp_path / "told", tmp_path / "out", mutants=["Q3A"])
    assert quietly(tmp_path / "told", tmp_path / "out", mutants=["Q3A"], noise_level=0.2)["mutants"] == 1
