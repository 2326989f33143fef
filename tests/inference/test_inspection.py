"""`coordformer inspect`: what is said of files, against what is in them."""

import csv
import gzip
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import STRUCTURES

from coordformer.inference.inspection import describe, inspect
from coordformer.model.residues import ResidueNumbers
from coordformer.model.structure import read_chains, read_complex
from coordformer_command import main


def test_a_chain_with_insertion_codes_gaps_and_missing_residues():
    summary = inspect(STRUCTURES / "1BD2.cif.gz", chain_ids=["D"], progress=False)
    assert summary["rejected"] == 0
    (report,) = summary["chains"]
    assert (report["id"], report["file"], report["residues"]) == ("1BD2_D", "1BD2.cif.gz", 204)
    assert (report["method"], report["resolution"]) == ("X-RAY DIFFRACTION", 2.5)
    assert report["ranges"] == ["D1-D58", "D61-D96", "D102-D210"] and report["inserted"] == ["D54A"]
    assert report["unobserved"] == ["D133-D136", "D170-D172", "D204-D210"]
    assert describe(summary) == (
        "1BD2_D: 204 residues, D1-D58 D61-D96 D102-D210; inserted D54A; not observed D133-D136 D170-D172 D204-D210; "
        "N, CA, C, O"
    )


@pytest.mark.parametrize("name", ["1BD2.cif.gz", "1orc.pdb.gz", "pdb1ubi_ca.pdb.gz", "4x8u.pdbx.gz", "3JQH.cif.gz"])
def test_every_residue_is_called_as_the_options_have_it(tmp_path, name):
    """Rows are those of the chains, and their names, given as an option, are those residues."""
    table = tmp_path / "residues.csv"
    summary = inspect(STRUCTURES / name, table, progress=False)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    chains = {chain.id: chain for chain in read_chains(STRUCTURES / name, ("CA",))}
    assert [report["id"] for report in summary["chains"]] == list(chains)
    whole = ResidueNumbers(read_complex(STRUCTURES / name))
    for report in summary["chains"]:
        chain = chains[report["id"]]
        mine = [row for row in rows if row["id"] == report["id"]]
        assert "".join(row["letter"] for row in mine) == chain.sequence
        assert [row["position"] for row in mine] == list(map(str, range(1, len(chain) + 1)))
        assert [("CA" in row["atoms"].split()) for row in mine] == chain.observed[:, 0].tolist()
        values = np.array([float(row["b_factor"] or "nan") for row in mine])
        here = chain.observed[:, 0] & ~np.isnan(values)
        if report["atoms"] == ["CA"]:  # of several atoms it is the first one's
            np.testing.assert_allclose(values[here], chain.b_factor[here], atol=1e-4)
        numbers = ResidueNumbers(chain)
        named = [index for index, row in enumerate(mine) if row["residue"]]
        assert numbers.select([mine[index]["residue"] for index in named]) == named
        chosen = whole.select(report["ranges"])
        assert "".join(whole.sequence[index] for index in chosen) == chain.sequence


def test_a_predicted_structure_and_a_sequence(tmp_path):
    text = gzip.decompress((STRUCTURES / "pdb1ubi_ca.pdb.gz").read_bytes()).decode()
    atoms = [line for line in text.splitlines() if line.startswith("ATOM")]
    values = [40.0] * 3 + [90.0] * (len(atoms) - 3)
    lines = [f"{line[:60]}{value:6.2f}{line[66:]}\n" for line, value in zip(atoms, values, strict=True)]
    (tmp_path / "model.pdb").write_text("".join(lines))
    (tmp_path / "two.fasta").write_text(">one\nMKVLA\n>two\nMK\n")
    (tmp_path / "bad.pdb").write_text("no structure\n")
    summary = inspect([tmp_path], progress=False)
    assert describe(summary).splitlines() == [
        "model_A: 76 residues, A1-A76; pLDDT below 70 A1-A3; CA",
        "one: 5 residues, 1-5; no coordinates",
        "two: 2 residues, 1-2; no coordinates",
    ]
    assert summary["rejected"] == 1


def test_letters_that_are_not_known_are_named():
    (report,) = inspect(STRUCTURES / "1pfe.cif.gz", progress=False)["chains"]
    (chain,) = read_chains(STRUCTURES / "1pfe.cif.gz")
    assert report["unknown"] == [f"B{index + 1}" for index, letter in enumerate(chain.sequence) if letter == "X"] != []


def test_chains_of_one_sequence_are_named(tmp_path):
    (tmp_path / "a.fasta").write_text(">one\nMKV\n>two\nMKV\n")
    shutil.copy(STRUCTURES / "1hvr.pdb.gz", tmp_path)
    summary = inspect(tmp_path, progress=False)
    copies = {each["id"]: each["copy_of"] for each in summary["chains"]}
    assert copies == {"one": None, "two": "one", "1HVR_A": None, "1HVR_B": "1HVR_A"}
    assert "1HVR_B: 99 residues, B1-B99; sequence of 1HVR_A; N, CA, C, O" in describe(summary)


def test_the_command_needs_no_torch(tmp_path, capsys):
    path = str(STRUCTURES / "1orc.pdb.gz")
    assert main(["inspect", path, "--json", "--output", str(tmp_path / "a.csv")]) == 0
    assert json.loads(capsys.readouterr().out)["chains"][0]["inserted"] == [f"A56{code}" for code in "ABCDE"]
    code = "import sys; from coordformer_command import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, "inspect", path], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "a.tsv"], "`output` is a.tsv; give the name of a file that ends in .csv."),
        (["--chains", "Z"], "1orc.pdb.gz: no protein chain Z"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(capsys, options, message):
    assert main(["inspect", str(STRUCTURES / "1orc.pdb.gz"), *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
