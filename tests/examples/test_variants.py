"""examples/variants: means as ProteinGym has them, assays of both layouts, and what is not compared."""

import csv
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import STRUCTURES, make_model

from coordformer import CoordformerProcessor
from coordformer.inference.marginals import score_mutants
from coordformer.inference.mutants import spearman
from coordformer.model.chain import Chain
from coordformer.model.structure import read_chains

pytest.importorskip("Bio")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "variants"))
import variants


@pytest.fixture(scope="module")
def chain() -> Chain:
    """71 residues of phage λ Cro, 64 observed."""
    return read_chains(STRUCTURES / "1orc.pdb.gz")[0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scoring")
    for name in ("linear", "none"):
        make_model(coordinate_embedding=name).save_pretrained(folder / name)
        CoordformerProcessor().save_pretrained(folder / name)
    return folder


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


RESULTS = [
    {"uniprot": uniprot, "selection_type": kind, "spearman": {"given": given, "baseline": baseline, "blosum62": 0.0}}
    for uniprot, kind, given, baseline in [
        ("P1", "Activity", 0.2, 0.1),
        ("P1", "Activity", 0.6, 0.3),  # two assays of one protein
        ("P2", "Activity", 0.0, 0.2),
        ("P1", "Stability", 0.8, 0.3),
        (None, None, 9.0, 9.0),  # multi-mutants, in no mean
    ]
]


def test_averages_are_those_of_proteingym_by_hand():
    summary = variants.summarize(RESULTS)["with_structure"]
    # Activity: P1 (0.2 + 0.6) / 2, P2 0; then (Activity + Stability) / 2.
    assert summary["spearman"]["given"] == pytest.approx({"Activity": 0.2, "Stability": 0.8, "mean": 0.5})
    assert summary["spearman"]["baseline"] == pytest.approx({"Activity": 0.2, "Stability": 0.3, "mean": 0.25})
    assert summary["assays"] == {"Activity": 3, "Stability": 1} and summary["proteins"] == {
        "Activity": 2,
        "Stability": 1,
    }
    above = summary["given_above"]["baseline"]
    # P1 differs by +0.2, P2 by -0.2: drawn twice each with probability 1/4.
    assert above["Activity"] == pytest.approx([0, -0.2, 0.2], abs=1e-9)
    assert above["Stability"] == pytest.approx([0.5, 0.5, 0.5])
    assert above["mean"] == pytest.approx([0.25, 0.15, 0.35])


def test_assays_of_both_layouts_give_the_same_results(checkpoint, tmp_path, chain, monkeypatch):
    """A folder like ProteinGym's with a structure of all but two residues, and the same as Parquet files."""
    from Bio.SeqUtils import seq3

    inside = slice(3, 65)
    assert chain.observed[inside].all()
    modeled = chain.sequence[inside]
    sequence, coords = "GG" + modeled, np.round(100 * chain.coords[inside, 0]).astype(np.int16)
    mutants, measured = ["R3A", "T5W", "L6G", "G23P", "A28G"], [0.3, -1.0, -0.5, -2.0, 0.0]

    gym = tmp_path / "gym"
    for name in ("DMS_ProteinGym_substitutions", "ProteinGym_AF2_structures"):
        (gym / name).mkdir(parents=True)
    lines = [f"{mutant},,{score},0\n" for mutant, score in zip(mutants, measured, strict=True)]
    header = "mutant,mutated_sequence,DMS_score,DMS_score_bin\n"
    (gym / "DMS_ProteinGym_substitutions" / "CRO.csv").write_text(header + "".join(lines))
    atoms = [
        f"ATOM  {i:5d}  CA  {seq3(letter).upper()} A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 90.00           C\n"
        for i, (letter, (x, y, z)) in enumerate(zip(modeled, (coords / 100).tolist(), strict=True), 1)
    ]
    (gym / "ProteinGym_AF2_structures" / "CRO.pdb").write_text("".join(atoms))
    (gym / "DMS_substitutions.csv").write_text(
        "DMS_id,DMS_filename,UniProt_ID,target_seq,coarse_selection_type,pdb_file,pdb_range\n"
        f"CRO,CRO.csv,RCRO_LAMBD,{sequence},Stability,CRO.pdb,3-64\n"
    )

    parquet = tmp_path / "parquet"
    parquet.mkdir()
    planar = {f"ca_{axis}": [[-32768, -32768, *coords[:, i].tolist()]] for i, axis in enumerate("xyz")}
    target = {"dms_id": ["CRO"], "UniProt_ID": ["RCRO_LAMBD"], "coarse_selection_type": ["Stability"]}
    target |= {"target_seq": [sequence], "structure_identity": [100.0]}
    singles = {"dms_id": ["CRO"] * 5, "mutant": mutants, "score": measured}
    several = {"dataset": ["several"], "wt_sequence": [sequence], "n_variants": [4], "n_single": [1]}
    doubles = {"variant": ["R3A", "R3A:T5W", "L6G:G23P", "T5W:A28G:L6G"], "score": [0.3, -1.0, -2.0, -3.0]}
    for name, table in (
        ("dms_targets", target | planar),
        ("dms_single_mutants", singles),
        ("dms_multi_targets", several | planar),
        ("dms_multi_mutants", {"dataset": ["several"] * 4} | doubles),
    ):
        pq.write_table(pa.table(table), parquet / f"{name}.parquet")

    def measure(data: Path, output: str) -> dict:
        variants.main(
            [str(checkpoint / "linear"), "--baseline", str(checkpoint / "none"), "--data", str(data),
             "--method", "wild_type_marginal", "--output", str(tmp_path / output)]
        )  # fmt: skip
        return json.loads((tmp_path / output / "summary.json").read_text())

    one, two = measure(gym, "one"), measure(parquet, "two")
    assert one["with_structure"] == two["with_structure"] and one["with_structure"]["assays"] == {"Stability": 1}
    linear = variants.load_checkpoint(checkpoint / "linear")
    wild_type = variants.make_chain("CRO", sequence, np.vstack((np.full((2, 3), np.nan), coords / 100)))
    (scores,) = score_mutants(*linear, [(wild_type, mutants)], "wild_type_marginal")
    expected = spearman(scores, np.array(measured))
    assert one["with_structure"]["spearman"]["given"]["mean"] == pytest.approx(expected)
    report = (tmp_path / "two" / "report.md").read_text()
    assert "| several | 4 | all |" in report and "| several | 3 | two and more |" in report
    assert (tmp_path / "two" / "assays.png").exists()
    row = read_rows(tmp_path / "one" / "assays.csv")[0]
    assert (row["assay"], row["mutants"], row["structure_coverage"]) == ("CRO", "5", "1")

    # A second run scores nothing again, and other models do not mix with the first ones.
    monkeypatch.setattr(variants, "score_assay", None)
    assert measure(gym, "one")["with_structure"] == one["with_structure"]
    with pytest.raises(ValueError, match="holds results of other models or options; give another --output"):
        variants.main([str(checkpoint / "linear"), "--data", str(gym), "--output", str(tmp_path / "one")])
    with pytest.raises(FileNotFoundError, match="has neither DMS_substitutions.csv"):
        variants.read_assays(tmp_path)


def test_unusable_assays_are_named(chain):
    for mutants, measured, message in (
        (["A1G", "M1A"], [0.0, 1.0], "CRO: Mutant A1G: position 1 of the chain is M, not A"),
        (["M1G", "M1A"], [1.0, 1.0], "CRO has no two different values of DMS_score"),
    ):
        assay = variants.Assay("CRO", "P", "Stability", chain, 100.0, partial(tuple, (mutants, np.array(measured))))
        with pytest.raises(ValueError, match=message):
            variants.score_assay(assay, {}, "wild_type_marginal")


def test_an_unlike_structure_is_not_compared(checkpoint, chain):
    models = {"checkpoint": [variants.load_checkpoint(checkpoint / "linear")]}
    mutants = ["M1A", "T6W", "L7G"]  # residues 1 and 2 of Cro are not observed
    for identity, asked, compared in ((100.0, mutants[1:], True), (100.0, mutants, False), (94.0, mutants[1:], False)):
        load = partial(tuple, (asked, np.arange(len(asked), dtype=float)))
        assay = variants.Assay("CRO", "P", "Stability", chain, identity, load)
        result = variants.score_assay(assay, models, "wild_type_marginal")
        assert ("given" in result["spearman"]) == compared
        assert result["structure_coverage"] == pytest.approx(1 if len(asked) == 2 else 2 / 3)


def test_an_ensemble_has_the_mean_of_the_scores(checkpoint, chain):
    loaded = [variants.load_checkpoint(checkpoint / name) for name in ("linear", "none")]
    mutants = [f"{chain.sequence[index]}{index + 1}{letter}" for index in (5, 20, 40) for letter in "AGLKDW"]
    mutants = [mutant for mutant in mutants if mutant[0] != mutant[-1]]
    measured = np.random.default_rng(0).normal(size=len(mutants))
    assay = variants.Assay("CRO", "P", "Stability", chain, 100.0, partial(tuple, (mutants, measured)))
    result = variants.score_assay(assay, {"checkpoint": loaded}, "masked_marginal")
    scores = [score_mutants(*each, [(chain, mutants)], "masked_marginal")[0] for each in loaded]
    assert result["spearman"]["given"] == pytest.approx(spearman(np.mean(scores, axis=0), measured))
    assert result["spearman"]["given"] != pytest.approx(spearman(scores[0], measured))


def test_the_difference_of_two_results_is_that_of_the_page():
    folder = Path(variants.__file__).parent
    names = "ensemble_wild_type_marginal", "coordformer-mpnn-ca_wild_type_marginal"
    found = variants.difference(*(folder / "results" / name for name in names))
    page = (folder / "README.md").read_text()
    for kind in ("mean", "OrganismalFitness"):
        value, low, high = found[kind]
        assert f"{value:+.3f} ({low:+.3f} to {high:+.3f})" in " ".join(page.split())
    assert found["assays"] == 57 and variants.difference(folder / "results" / names[0], folder / "results" / names[0])[
        "mean"
    ] == [0, 0, 0]
    swapped = variants.difference(*(folder / "results" / name for name in reversed(names)))
    assert swapped["mean"][0] == pytest.approx(-found["mean"][0])
