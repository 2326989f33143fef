"""`coordformer design`: files in, files out, resumed and shared between jobs."""

import csv
import dataclasses
import gzip
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import gemmi
import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import STRUCTURES, make_model
from datasets import Dataset
from matplotlib import image

from coordformer import CoordformerForMaskedLM, CoordformerProcessor, design, read_complex, read_proteins
from coordformer.data.rows import SCHEMA, chain_to_row
from coordformer.inference.design import describe, design_files, fasta, parse_bias, write_structure
from coordformer.model.chain import AMINO_ACIDS
from coordformer.model.residues import ResidueNumbers
from coordformer_command import main

CRO, PROTEASE = STRUCTURES / "1orc.pdb.gz", STRUCTURES / "1hvr.pdb.gz"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("designing")
    torch.manual_seed(0)
    make_model(coordinate_embedding="local_frame", num_qk_points=2, num_neighbors=5).save_pretrained(folder)
    CoordformerProcessor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(checkpoint):
    return CoordformerForMaskedLM.from_pretrained(checkpoint)


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr("coordformer.inference.design.plot_probabilities", lambda path, *_: path.touch())


def quietly(checkpoint, inputs, output, **options) -> dict:
    return design_files(checkpoint, inputs, output, progress=False, **options)


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def make_files(folder: Path, count: int, length: int = 16) -> list[Path]:
    """PDB files of parts of a real chain, and one that is broken."""
    structure = gemmi.read_structure(str(CRO))
    folder.mkdir()
    paths = []
    for number in range(count):
        part = structure.clone()
        for index in reversed(range(len(part[0][0]))):
            if not number <= index < number + length:
                del part[0][0][index]
        part.entities.clear()
        paths.append(folder / f"part{number:02d}.pdb")
        paths[-1].write_text(part.make_pdb_string(gemmi.PdbWriteOptions(seqres_records=False)))
    (folder / "broken.pdb").write_text("nothing of a structure\n")
    return paths


def test_what_a_design_leaves(checkpoint, model, tmp_path, caplog):
    """Of a complex: FASTA, table, picture, probabilities and structure say the same, and what `design` says."""
    summary = quietly(
        checkpoint, PROTEASE, tmp_path, num_samples=3, temperature=[0.1, 1.0], rounds=2, seed=7, structures=True,
        probabilities=True, fixed_residues="A10-A20 B1", omit_aa="C", bias_aa="W:1.5 P:-2",
    )  # fmt: skip
    protein = read_complex(PROTEASE)
    designs = design(
        model, protein, num_samples=3, temperature=[0.1, 1.0], rounds=2, seed=7, fixed_residues="A10-A20 B1",
        omit_aa="C", bias_aa={"W": 1.5, "P": -2},
    )  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "1HVR.cif", "1HVR.csv", "1HVR.fasta", "1HVR.npz", "1HVR.png", "design.json", "designs.csv", "run.json"
    ]  # fmt: skip

    # FASTA: the native sequence, and the designs, chains joined by a slash.
    lines = (tmp_path / "1HVR.fasta").read_text().splitlines()
    assert lines[0].startswith(f">1HVR native, score={designs.native_score:.4f}, global_score=")
    assert f", model={checkpoint.name}, seed=7, commit=" in lines[0]
    assert lines[1] == f"{protein.sequence[:99]}/{protein.sequence[99:]}"
    assert lines[2].startswith(f">1HVR_0.1_1 T=0.1, sample=1, score={designs.scores[0]:.4f}, global_score=")
    read = read_proteins(tmp_path / "1HVR.fasta", as_complex=True)
    assert [each.id for each in read] == ["1HVR", *(f"1HVR_{t}_{n}" for t in ("0.1", "1") for n in (1, 2, 3))]
    assert [each.sequence for each in read] == [protein.sequence, *designs.sequences]
    assert {each.chain_lengths for each in read} == {(99, 99)}

    # The table: the best score first.
    rows = read_rows(tmp_path / "designs.csv")
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5", "6"] and {row["id"] for row in rows} == {"1HVR"}
    scores = [float(row["score"]) for row in rows]
    np.testing.assert_allclose(scores, sorted(designs.scores), rtol=1e-5)
    assert [row["sequence"].replace("/", "") for row in rows] == [
        designs.sequences[number] for number in np.argsort(designs.scores, kind="stable")
    ]
    # What was designed alone, with its numbers, from which the whole can be made again.
    assert {row["file"] for row in rows} == {PROTEASE.name}
    numbers = ResidueNumbers(protein)
    for row in rows:
        indices = numbers.select(row["designed_residues"])
        assert indices == np.flatnonzero(designs.designed).tolist() and len(row["designed_sequence"]) == 186
        whole = list(protein.sequence)
        for index, letter in zip(indices, row["designed_sequence"], strict=True):
            whole[index] = letter
        assert "".join(whole) == row["sequence"].replace("/", "")

    # Probabilities before and after, by the file's own numbers.
    with np.load(tmp_path / "1HVR.npz") as arrays:
        np.testing.assert_allclose(arrays["probabilities"], np.exp(designs.log_probabilities), atol=1e-6)
        np.testing.assert_allclose(arrays["biased"], designs.biased, atol=1e-6)
        assert arrays["residues"][[0, 99]].tolist() == ["A1", "B1"] and "".join(arrays["letters"]) == AMINO_ACIDS
        assert arrays["temperatures"].tolist() == [0.1, 1.0] and arrays["designed"].sum() == 198 - 12
    table = read_rows(tmp_path / "1HVR.csv")
    assert [(row["residue"], row["native"], row["designed"]) for row in table[8:10]] == [
        ("A9", protein.sequence[8], "1"), ("A10", protein.sequence[9], "0")
    ]  # fmt: skip
    assert table[9]["biased_W"] == "" and float(table[8]["biased_C"]) == 0
    assert sum(float(table[8][f"biased_{letter}"]) for letter in AMINO_ACIDS) == pytest.approx(1, abs=1e-4)

    # The structure reads back as the best design in the given backbone.
    found = read_complex(tmp_path / "1HVR.cif")
    assert found.sequence == rows[0]["sequence"].replace("/", "")
    assert (found.chain_names, found.chain_lengths) == (protein.chain_names, protein.chain_lengths)
    assert found.residue_numbers == protein.residue_numbers
    np.testing.assert_allclose(found.coords, protein.coords, atol=1e-3)
    letters = [AMINO_ACIDS.index(letter) for letter in found.sequence]
    confidence = 100 * np.exp(designs.log_probabilities[np.arange(198), letters])
    np.testing.assert_allclose(found.b_factor, confidence, atol=0.01)

    assert image.imread(tmp_path / "1HVR.png").shape[0] > 500
    assert summary == json.loads((tmp_path / "design.json").read_text())
    assert (summary["rounds"], summary["temperature"], summary["seed"]) == (2, [0.1, 1.0], 7)
    [report] = summary["proteins"]
    assert (report["id"], report["residues"], report["designed"], report["sequences"]) == ("1HVR", 198, 186, 6)
    assert report["score"] == pytest.approx(designs.scores.mean(), abs=1e-5)
    assert describe(summary).startswith("1HVR: 6 sequences for 186 of 198 residues; recovery ")
    assert "every residue" not in caplog.text


@pytest.mark.parametrize("name", ["1BD2.cif.gz", "1orc.pdb.gz", "4x8u.pdbx.gz", "1A8O.cif.gz"])
def test_structures_read_back(model, tmp_path, name):
    """Insertion codes, residues without coordinates, files without a deposited sequence."""
    protein = read_complex(STRUCTURES / name)
    designs = design(model, protein, num_samples=2, rounds=1, temperature=1.0)
    write_structure(tmp_path / "out.cif", protein, designs)
    found = read_complex(tmp_path / "out.cif")
    assert found.id == protein.id
    assert found.sequence == designs.sequences[int(designs.scores.argmin())]
    assert found.residue_numbers == protein.residue_numbers
    np.testing.assert_array_equal(found.positions, protein.positions)
    np.testing.assert_allclose(found.coords, protein.coords, atol=1e-3)
    assert getattr(found, "chain_names", None) == getattr(protein, "chain_names", None)


def test_without_figures(checkpoint, tmp_path):
    """All other files are the same."""
    command = ["design", str(checkpoint), str(CRO), "--num_samples", "1", "--probabilities", "--quiet", "--output"]
    assert main([*command, str(tmp_path / "all")]) == main([*command, str(tmp_path / "few"), "--no_figures"]) == 0
    names = [{path.name for path in (tmp_path / run).iterdir()} for run in ("all", "few")]
    assert names[0] - names[1] == {"1ORC.png"} and names[1] < names[0]
    for name in ("1ORC.fasta", "1ORC.csv", "designs.csv"):
        assert (tmp_path / "few" / name).read_bytes() == (tmp_path / "all" / name).read_bytes(), name
    with pytest.raises(ValueError, match="holds another run"):
        quietly(checkpoint, CRO, tmp_path / "few", num_samples=1, probabilities=True)


def test_rows_without_a_designed_residue_are_not_drawn(checkpoint, tmp_path, monkeypatch):
    """Of two rows, of which the second begins with chain B: one, with the numbers of its residues."""
    drawn = []
    monkeypatch.setattr("coordformer.inference.figures.save_figure", lambda figure, path: drawn.append(figure))
    for chosen in ("A10 B10", "B10", "A10"):
        quietly(checkpoint, PROTEASE, tmp_path / chosen, num_samples=1, redesigned_residues=chosen)
    panels = [[axes for axes in figure.axes if axes.get_ylabel() == "designed letter"] for figure in drawn]
    assert [[axes.get_xlim() for axes in each] for each in panels] == [
        [(-0.5, 98.5), (98.5, 197.5)], [(98.5, 197.5)], [(-0.5, 98.5)]
    ]  # fmt: skip
    images = [each[-1].get_images()[0] for each in panels]
    assert [int((~np.ma.getmaskarray(image.get_array())).any(axis=0).argmax()) for image in images] == [9, 9, 9]
    assert drawn[0].get_figheight() > 1.5 * drawn[1].get_figheight()


def test_rescored_designs(checkpoint, model, no_pictures, tmp_path):
    """In the table and the FASTA file, and nowhere unless asked for."""
    quietly(checkpoint, CRO, tmp_path / "out", num_samples=2, rescore=True, redesigned_residues="A10-A14")
    designs = design(model, read_complex(CRO), num_samples=2, rescore=True, redesigned_residues="A10-A14")
    rows = read_rows(tmp_path / "out" / "designs.csv")
    found = {int(row["sample"]): float(row["pseudo_score"]) for row in rows}
    np.testing.assert_allclose([found[1], found[2]], designs.pseudo_scores, rtol=1e-4)
    text = (tmp_path / "out" / "1ORC.fasta").read_text()
    assert f", pseudo_score={designs.native_pseudo_score:.4f}, model=" in text and text.count("pseudo_score") == 3
    quietly(checkpoint, CRO, tmp_path / "plain", num_samples=2, redesigned_residues="A10-A14")
    for name in ("1ORC.fasta", "designs.csv"):
        assert "pseudo" not in (tmp_path / "plain" / name).read_text()


def test_residues_without_coordinates(checkpoint, model, no_pictures, tmp_path):
    """Their letters are kept where they are known; where they are not, `gaps` says what is written."""
    structure = gemmi.read_structure(str(CRO))
    structure.setup_entities()
    names = structure.entities[0].full_sequence
    names[0] = "UNK"
    structure.entities[0].full_sequence = names
    (tmp_path / "cro.pdb").write_text(structure.make_pdb_string())
    for gaps, letter in (("X", "X"), ("-", "-")):
        quietly(checkpoint, tmp_path / "cro.pdb", tmp_path / gaps, num_samples=1, gaps=gaps)
        lines = (tmp_path / gaps / "1ORC.fasta").read_text().splitlines()
        native = read_complex(CRO).sequence
        assert lines[1] == letter + native[1:] and lines[3][:2] == letter + native[1]
    assert fasta(design(model, read_complex(CRO), num_samples=1), {}, "-").count("-") == 0


def test_many_files(checkpoint, model, no_pictures, tmp_path, caplog):
    """Parts, a file that cannot be read, and one in which a chosen residue is not there."""
    paths = make_files(tmp_path / "in", 5)
    assert [each.residue_numbers[0] for each in map(read_complex, paths)] == ["3", "4", "5", "6", "7"]
    options = {"num_samples": 2, "redesigned_residues": "A6-A9", "entries_per_part": 2}
    summary = quietly(checkpoint, tmp_path / "in", tmp_path / "out", **options)
    assert [report["id"] for report in summary["proteins"]] == ["part00", "part01", "part02", "part03"]
    rejected = [line.split("\t") for line in (tmp_path / "out" / "rejected.tsv").read_text().splitlines()[1:]]
    assert [row[:2] for row in rejected] == [["broken.pdb", ""], ["part04.pdb", "part04"]] and summary["rejected"] == 2
    assert "chain A has no residue A6, its residues are 7 to 22" in rejected[1][2]
    rows = read_rows(tmp_path / "out" / "designs.csv")
    assert [(row["id"], row["rank"]) for row in rows] == [(f"part{n:02d}", rank) for n in range(4) for rank in "12"]
    assert [row["file"] for row in rows] == [f"part{n:02d}.pdb" for n in range(4) for _ in range(2)]
    assert [report["file"] for report in summary["proteins"]] == [f"part{n:02d}.pdb" for n in range(4)]
    assert {row["designed_residues"] for row in rows} == {"A6 A7 A8 A9"}
    for number, path in enumerate(paths[:4]):
        protein = dataclasses.replace(read_complex(path), id=path.stem)  # which draws depend on
        expected = design(model, protein, num_samples=2, redesigned_residues="A6-A9")
        assert {row["sequence"] for row in rows[2 * number : 2 * number + 2]} == set(expected.sequences)


def test_jobs_write_what_one_run_writes(checkpoint, no_pictures, tmp_path):
    make_files(tmp_path / "in", 7)
    options = {"num_samples": 2, "entries_per_part": 2, "probabilities": True, "temperature": [1.0]}
    quietly(checkpoint, tmp_path / "in", tmp_path / "one", **options)
    for job in (2, 3, 1):
        summary = quietly(checkpoint, tmp_path / "in", tmp_path / "jobs", shard=f"{job}/3", **options)
        assert ("missing" in summary) == (job != 1)
    names = [
        sorted(path.relative_to(tmp_path / run).as_posix() for path in (tmp_path / run).rglob("*") if path.is_file())
        for run in ("one", "jobs")
    ]
    assert names[0] == names[1] and sum(name.endswith(".fasta") for name in names[0]) == 7
    for name in names[0]:
        if name.endswith((".fasta", ".csv", ".tsv", "design.json")):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "jobs" / name).read_bytes(), name


def test_a_run_that_is_killed_goes_on(checkpoint, tmp_path):
    """A process of its own, killed for good between two files, and called again."""
    make_files(tmp_path / "in", 5)
    (tmp_path / "in" / "broken.pdb").unlink()
    command = [sys.executable, "-m", "coordformer", "design", str(checkpoint), str(tmp_path / "in"), "--quiet"]
    command += ["--entries_per_part", "1", "--num_samples", "2", "--temperature", "0.5", "--rounds", "2"]
    process = subprocess.Popen([*command, "--output", str(tmp_path / "out")], stderr=subprocess.DEVNULL)
    parts = tmp_path / "out" / "parts"
    for _ in range(15000):
        if len(list(parts.glob("*.json"))) >= 2 or process.poll() is not None:
            break
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in parts.glob("*.json")}
    assert 2 <= len(before) < 5 and not (tmp_path / "out" / "designs.csv").exists()
    done = subprocess.run([*command, "--output", str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())
    assert done.stdout.count(" sequences for 16 of 16 residues; recovery ") == 5
    assert "every residue with coordinates is designed" in done.stderr
    whole = quietly(
        checkpoint, tmp_path / "in", tmp_path / "whole", num_samples=2, temperature=[0.5], rounds=2, entries_per_part=1
    )
    assert whole == json.loads((tmp_path / "out" / "design.json").read_text())
    assert (tmp_path / "out" / "designs.csv").read_bytes() == (tmp_path / "whole" / "designs.csv").read_bytes()
    assert len(list((tmp_path / "out").rglob("*.png"))) == 5 and not list((tmp_path / "out").rglob("*.tmp"))


def test_a_run_of_an_older_version_goes_on(checkpoint, no_pictures, tmp_path):
    """Its parts lack columns of today, which stay empty for them."""
    paths = make_files(tmp_path / "in", 2)
    options = {"num_samples": 1, "entries_per_part": 1, "redesigned_residues": "A10"}
    quietly(checkpoint, paths, tmp_path / "out", **options)
    today = read_rows(tmp_path / "out" / "designs.csv")
    added = ("file", "designed_residues", "designed_sequence")
    (first,) = read_rows(tmp_path / "out" / "parts" / "00000-of-00002.csv")
    old = {name: value for name, value in first.items() if name not in added}
    with open(tmp_path / "out" / "parts" / "00000-of-00002.csv", "w", newline="") as file:
        table = csv.DictWriter(file, old, lineterminator="\n")
        table.writeheader()
        table.writerow(old)
    for name in ("designs.csv", "parts/00001-of-00002.csv", "parts/00001-of-00002.json"):
        (tmp_path / "out" / name).unlink()
    quietly(checkpoint, paths, tmp_path / "out", **options)
    assert read_rows(tmp_path / "out" / "designs.csv") == [{**today[0], **dict.fromkeys(added, "")}, today[1]]


def test_other_options_are_another_run(checkpoint, no_pictures, tmp_path):
    (tmp_path / "omit.json").write_text('{"A12": "C"}')
    options = {"num_samples": 1, "omit_per_residue": tmp_path / "omit.json"}
    quietly(checkpoint, CRO, tmp_path / "out", **options)
    quietly(checkpoint, CRO, tmp_path / "out", **options)
    for changed in ({"temperature": [0.2]}, {"rounds": 3}, {"seed": 1}, {"omit_aa": "W"}, {"homo_oligomer": True}):
        with pytest.raises(ValueError, match="holds another run"):
            quietly(checkpoint, CRO, tmp_path / "out", **options, **changed)
    (tmp_path / "omit.json").write_text('{"A12": "W"}')
    with pytest.raises(ValueError, match="holds another run .other omit_per_residue"):
        quietly(checkpoint, CRO, tmp_path / "out", **options)


def test_options_by_residue_from_files(checkpoint, no_pictures, tmp_path):
    """Of one protein, and of several by their ids; matrices with and without a first line, and as arrays."""
    (tmp_path / "one.json").write_text(json.dumps({"A10": AMINO_ACIDS.replace("Y", "")}))
    (tmp_path / "several.json").write_text(json.dumps({"1ORC": {"A11": {"W": 500.0}}, "1HVR": {"B11": {"F": 500.0}}}))
    pssm = np.zeros((71, 20))
    pssm[11, AMINO_ACIDS.index("H")] = 300
    np.savetxt(tmp_path / "plain.csv", pssm, delimiter=",")
    np.savetxt(tmp_path / "headed.csv", pssm, delimiter=",", header=",".join(AMINO_ACIDS), comments="")
    np.savez(tmp_path / "arrays.npz", **{"1ORC": pssm, "1HVR": np.zeros((198, 20))})
    options = {"num_samples": 2, "temperature": [1.0], "rounds": 1}
    for name in ("plain.csv", "headed.csv", "arrays.npz"):
        quietly(
            checkpoint, CRO, tmp_path / f"{name} out", omit_per_residue=tmp_path / "one.json",
            bias_per_residue=tmp_path / "several.json", pssm=tmp_path / name, **options,
        )  # fmt: skip
        for row in read_rows(tmp_path / f"{name} out" / "designs.csv"):
            assert row["sequence"][9:12] == "YWH"
    quietly(
        checkpoint, [CRO, PROTEASE], tmp_path / "both", bias_per_residue=tmp_path / "several.json",
        pssm=tmp_path / "arrays.npz", **options,
    )  # fmt: skip
    rows = read_rows(tmp_path / "both" / "designs.csv")
    assert [row["sequence"].replace("/", "")[{"1ORC": 10, "1HVR": 109}[row["id"]]] for row in rows] == list("FFWW")


def test_chains_of_a_file_by_themselves(checkpoint, no_pictures, tmp_path):
    summary = quietly(checkpoint, PROTEASE, tmp_path, num_samples=1, as_complex=False)
    assert [report["id"] for report in summary["proteins"]] == ["1HVR_A", "1HVR_B"]


def test_rows_of_a_data_set(checkpoint, model, no_pictures, tmp_path):
    """Chains and complexes of one, designed as from their files."""
    proteins = [read_complex(CRO), read_complex(PROTEASE)]
    table = pa.Table.from_pylist([chain_to_row(protein) for protein in proteins], schema=SCHEMA)
    Dataset(table).to_parquet(tmp_path / "proteins.parquet")
    quietly(checkpoint, tmp_path / "proteins.parquet", tmp_path / "out", num_samples=2, redesigned_residues="A10-A20")
    quietly(checkpoint, [CRO, PROTEASE], tmp_path / "files", num_samples=2, redesigned_residues="A10-A20")
    one, two = (read_rows(tmp_path / name / "designs.csv") for name in ("out", "files"))
    assert {(row["id"], row.pop("file")) for row in one} == {(name, "proteins.parquet") for name in ("1ORC", "1HVR")}
    assert {(row["id"], row.pop("file")) for row in two} == {("1ORC", CRO.name), ("1HVR", PROTEASE.name)}
    assert sorted(map(str, one)) == sorted(map(str, two)) and len(one) == 4


def test_bias_is_parsed():
    assert parse_bias("W:3.0 P:-2") == parse_bias("W:3,P:-2.0") == {"W": 3.0, "P": -2.0}
    for text in ("W", "W:a", "W:1:2"):
        with pytest.raises(ValueError, match="`bias_aa` is '.*'; write letters and nats, such as 'W:3.0 P:-2'"):
            parse_bias(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "-1"], "`temperature` is [-1.0]; give numbers from 0 on."),
        (["--num_samples", "0"], "`num_samples` is 0; it must be at least 1."),
        (["--rounds", "some"], "`rounds` is 'some'; write a number from 1 on, or all."),
        (["--rounds", "0"], "`rounds` is 0; give a number from 1 on, or 'all'."),
        (["--seed", "-3"], "`seed` is -3; it must be at least 0."),
        (["--fixed_residues", "A99"], "1ORC: Residues 'A99': chain A has no residue A99"),
        (["--redesigned_residues", "B"], "1ORC: Residues 'B': "),
        (["--chains_to_design", "B"], "1ORC: `chains_to_design` names B; 1ORC has A."),
        (["--fixed_residues", "A"], "1ORC: nothing is left to design; "),
        (["--redesigned_residues", "X95-X102"], "1ORC: Residues 'X95-X102': there is no chain X, only 'A'; write it"),
        (["--bias_aa", "W=3"], "`bias_aa` is 'W=3'; write letters and nats"),
        (["--bias_aa", "W:3 B:1"], "`bias_aa` has B; letters are among ACDEFGHIKLMNPQRSTVWY."),
        (["--omit_per_residue", "list.json"], "list.json holds a list; give an object with residues"),
        (["--omit_per_residue", "text.json"], "text.json is no JSON ("),
        (["--omit_per_residue", "number.json"], "1ORC: `omit_per_residue` has 3.5; write letters"),
        (["--bias_per_residue", "number.json"], "1ORC: `bias_per_residue of A12` is 3.5; give names with values"),
        (["--bias_per_residue", "word.json"], "1ORC: The bias_per_residue of W at A12 is 'much'; give a number"),
        (["--bias_per_residue", "absent.json"], "absent.json"),
        (["--pssm", "short.csv"], "1ORC: `pssm` has shape (3, 20); (71, 20) is right."),
        (["--pssm", "order.csv"], "order.csv is no PSSM (its first line is 'Y,W,V"),
        (["--pssm", "text.json"], "text.json is no PSSM ("),
        (["--pssm", "absent.csv"], "absent.csv"),
        (["--symmetry_residues", "A10,A10"], "1ORC: A10, A10 is tied twice"),
        (["--homo_oligomer"], "1ORC: `homo_oligomer` needs several chains of one length"),
        (["--chains", "Z"], "1orc.pdb.gz: no protein chain Z"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(checkpoint, tmp_path, capsys, options, message):
    for name, text in (
        ("list.json", "[1]"), ("text.json", "{nothing"), ("number.json", '{"A12": 3.5}'),
        ("word.json", '{"A12": {"W": "much"}}'), ("order.csv", ",".join(AMINO_ACIDS[::-1]) + "\n0,0\n"),
        ("short.csv", "\n".join([",".join(["0"] * 20)] * 3)),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
    options = [str(tmp_path / each) if each.endswith((".json", ".csv")) else each for each in options]
    assert main(["design", str(checkpoint), str(CRO), "--output", str(tmp_path / "out"), "--quiet", *options]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("coordformer: ")]
    lines = [line for line in lines if "every residue with coordinates" not in line]
    assert len(lines) == 1 and message in lines[0], lines


def test_what_is_wrong_is_said_before_anything_else(checkpoint, tmp_path, caplog, monkeypatch):
    """Letters before a checkpoint is loaded, and a checkpoint that is not there before what is designed."""
    with pytest.raises(ValueError, match="There is no folder .*nowhere; give a folder"):
        quietly(tmp_path / "nowhere", CRO, tmp_path / "out")
    assert "every residue" not in caplog.text
    monkeypatch.setattr("coordformer.inference.design.load_checkpoint", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match="`omit_aa` has c, m; letters are among ACDEFGHIKLMNPQRSTVWY"):
        quietly(checkpoint, CRO, tmp_path / "out", omit_aa="cm")


def test_a_turned_and_moved_file_gives_the_same(checkpoint, no_pictures, tmp_path):
    """As a file, whose coordinates have three decimals."""
    text = gzip.decompress(PROTEASE.read_bytes()).decode()
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    (tmp_path / "a" / "1hvr.pdb").write_text(text)
    structure = gemmi.read_pdb_string(text)
    transform = gemmi.Transform()
    transform.mat.fromlist([[0, -1, 0], [0.6, 0, -0.8], [0.8, 0, 0.6]])
    transform.vec.fromlist([40, -25, 8])
    structure[0].transform_pos_and_adp(transform)
    (tmp_path / "b" / "1hvr.pdb").write_text(structure.make_pdb_string())
    options = {"num_samples": 4, "temperature": [0.0, 0.1, 0.3], "rounds": 1}
    for name in "ab":
        quietly(checkpoint, tmp_path / name, tmp_path / f"{name}_out", **options)
    one, two = (read_rows(tmp_path / f"{name}_out" / "designs.csv") for name in "ab")
    assert len(one) == 12
    sequences = [{(row["temperature"], row["sample"]): row["sequence"] for row in rows} for rows in (one, two)]
    assert sequences[0] == sequences[1]
