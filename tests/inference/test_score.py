"""Scores of substitutions: by hand, against naive loops, of models with a planted preference, and of assays."""

import csv
import dataclasses
import json
import math
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import STRUCTURES, make_config, make_model

from coordformer import CoordformerProcessor
from coordformer.inference.evaluate import letter_ids
from coordformer.inference.score import (
    METHODS,
    log_probabilities,
    parse_mutant,
    plot_scan,
    read_mutants,
    scan_chain,
    score_mutants,
    spearman,
    write_scan,
    write_scores,
)
from coordformer.model.chain import AMINO_ACIDS, Chain
from coordformer.model.structure import read_chains
from coordformer.model.windows import window_around
from coordformer_command import main

pytest.importorskip("Bio")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "variants"))
import variants

PROCESSOR = CoordformerProcessor()
LETTERS = letter_ids(PROCESSOR.tokenizer)


@pytest.fixture(scope="module")
def chain() -> Chain:
    """71 residues of phage λ Cro, 64 observed; MEQRITLKDYAMRFGQTKTAKDLGVYQSAINKAIHAG..."""
    return read_chains(STRUCTURES / "1orc.pdb.gz")[0]


def part(chain: Chain, start: int, end: int, **fields) -> Chain:
    """Some contiguous residues as a chain."""
    fields = {"sequence": chain.sequence[start:end], "coords": chain.coords[start:end]} | fields
    return dataclasses.replace(chain, b_factor=chain.b_factor[start:end], **fields)


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@torch.no_grad()
def naive_log_probabilities(model, chain: Chain, index: int, masked: bool, **inputs) -> dict[str, float]:
    """Of the 20 amino acids at one residue, by one call of the model on what the processor makes of the text."""
    text = list(chain.sequence)
    if masked:
        text[index] = "<mask>"
    logits = model(**PROCESSOR("".join(text), coords=chain.coords) | inputs).logits[0, index + 1].double()
    total = sum(math.exp(logits[token]) for token in LETTERS.values())
    return {letter: float(logits[token]) - math.log(total) for letter, token in LETTERS.items()}


# --- mutants ---------------------------------------------------------------------------------------------------------


def test_mutants_are_parsed():
    assert parse_mutant("M1A", "MKV") == [(0, "A")]
    assert parse_mutant("V3A:M1M", "MKV") == [(2, "A"), (0, "M")]
    assert parse_mutant("K25R", "MKV", first=24) == [(1, "R")]
    assert parse_mutant("K0R", "MKV", first=-1) == [(1, "R")]


@pytest.mark.parametrize(
    ("mutant", "message"),
    [
        ("A1G", "Mutant A1G: position 1 of the chain is M, not A; positions count the deposited sequence from 1, "),
        ("K2R:A3G", "Mutant K2R:A3G: position 3 of the chain is V, not A"),
        ("V4A", "Mutant V4A: the chain has no position 4, its residues are 1 to 3; positions count"),
        ("M0A", "Mutant M0A: the chain has no position 0"),
        ("K2B", "Mutant K2B: B is no amino acid; substitutions are among ACDEFGHIKLMNPQRSTVWY"),
        ("X2A", "Mutant X2A: X is no amino acid"),
        ("K2R:K2A", "Mutant K2R:K2A: position 2 is substituted twice"),
        ("K2", "Mutant 'K2' cannot be read; write A24G, or A24G:T30S"),
        ("", "Mutant '' cannot be read"),
        ("K2R,V3A", "Mutant 'K2R,V3A' cannot be read"),
    ],
)
def test_bad_mutants_are_named(mutant, message):
    with pytest.raises(ValueError) as caught:
        parse_mutant(mutant, "MKV")
    assert message in str(caught.value)


# --- methods ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("without_coords", [False, True], ids=["given", "withheld"])
@pytest.mark.parametrize("method", METHODS[:2])
def test_marginals_are_differences_of_log_probabilities(chain, method, without_coords):
    model = make_model()
    inputs = {"coords": None} if without_coords else {}
    scores = score_mutants(
        model, PROCESSOR, chain, ["M1A", "T6W", "L7L"], method, without_coords=without_coords, progress=False
    )
    for score, index, wild_type, new in zip(scores, (0, 5, 6), "MTL", "AWL", strict=True):
        expected = naive_log_probabilities(model, chain, index, method == "masked_marginal", **inputs)
        assert score == pytest.approx(expected[new] - expected[wild_type], abs=1e-5)
    assert scores[2] == 0 and abs(scores[:2]).min() > 0.001


def test_methods_and_coordinates_matter(chain):
    model = make_model()
    mutants = ["M1A", "T6W", "G24P"]
    scores = [
        score_mutants(model, PROCESSOR, chain, mutants, method, without_coords=without, progress=False)
        for method in METHODS
        for without in (False, True)
    ]
    for i, one in enumerate(scores):
        assert all(np.abs(one - other).max() > 0.05 for other in scores[:i])
    unobserved = dataclasses.replace(chain, coords=np.full_like(chain.coords, np.nan))
    np.testing.assert_allclose(
        score_mutants(model, PROCESSOR, unobserved, mutants, METHODS[0], progress=False), scores[1], atol=1e-5
    )


@pytest.mark.parametrize("method", METHODS[:2])
def test_marginals_of_several_substitutions_are_added(chain, method):
    singles = ["M1A", "T6W", "L7G"]
    scores = score_mutants(make_model(), PROCESSOR, chain, [*singles, ":".join(singles)], method, progress=False)
    assert scores[3] == pytest.approx(scores[:3].sum(), abs=1e-9)


@pytest.mark.parametrize("window", [1024, 11], ids=["whole", "windows"])
def test_pseudo_likelihood_is_that_of_a_naive_loop(chain, window):
    """Residues without coordinates and an X among them; windows are cut by hand, and nothing is left out."""
    model = make_model()
    short = part(chain, 0, 24)
    short = dataclasses.replace(short, sequence=short.sequence[:9] + "X" + short.sequence[10:])

    def log_likelihood(sequence: str) -> float:
        total = 0.0
        for index in set(range(24)) - {9}:
            start = min(max(index - window // 2, 0), max(24 - window, 0))
            piece = part(dataclasses.replace(short, sequence=sequence), start, min(start + window, 24))
            total += naive_log_probabilities(model, piece, index - start, True)[sequence[index]]
        return total

    mutants = {"M1A": "AEQRITLKDXAMRFGQTKTAKDLG", "T6W:L7G": "MEQRIWGKDXAMRFGQTKTAKDLG"}
    scores = score_mutants(
        model, PROCESSOR, short, list(mutants), "pseudo_likelihood", window=window, token_budget=100, progress=False
    )
    expected = [log_likelihood(sequence) - log_likelihood(short.sequence) for sequence in mutants.values()]
    np.testing.assert_allclose(scores, expected, atol=2e-4)
    assert abs(scores).min() > 0.01


@pytest.mark.parametrize("method", METHODS)
def test_the_token_budget_changes_no_score(chain, method):
    model = make_model()
    chain = part(chain, 0, 30)
    mutants = ["M1A", "T6W:L7G", "T17A", "G24P"]
    scores = [
        score_mutants(
            model, PROCESSOR, chain, mutants, method, window=window, token_budget=token_budget, progress=False
        )
        for window in (1024, 12)
        for token_budget in (1, 100, 8192)
    ]
    for one, two in ((0, 1), (0, 2), (3, 4), (3, 5)):
        np.testing.assert_allclose(scores[one], scores[two], atol=1e-5)
    assert not np.allclose(scores[0], scores[3], atol=0.01)


def test_backbone_atoms_are_read():
    atoms = ("N", "CA", "C")
    chain = part(read_chains(STRUCTURES / "1orc.pdb.gz", atoms=atoms)[0], 0, 30)
    model = make_model(coordinate_atoms=atoms)
    processor = CoordformerProcessor(coordinate_atoms=atoms)
    with torch.no_grad():
        logits = model(**processor(chains=chain)).logits[0, 6, list(LETTERS.values())]
    actual = log_probabilities(model, processor, chain, [5], masked=False)
    np.testing.assert_allclose(actual[0], logits.log_softmax(dim=-1).numpy(), atol=1e-5)


# --- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "window"), [(50, 12), (50, 13), (50, 50), (50, 49), (7, 20), (50, 2)])
def test_residues_lie_as_near_the_middle_of_their_window_as_can_be(length, window):
    starts = window_around(np.arange(length), length, window)
    inside = min(window, length)
    allowed = np.arange(length - inside + 1)
    for index, start in enumerate(starts):
        assert start in allowed and start <= index < start + inside
        off_center = np.abs(index - (allowed + (inside - 1) / 2))
        assert off_center[start] == off_center.min()


@pytest.mark.parametrize("masked", [False, True])
def test_a_window_is_a_chain_of_its_own(chain, masked):
    model = make_model()
    actual = log_probabilities(model, PROCESSOR, chain, np.arange(71), masked=masked, window=21)
    for index in (0, 9, 10, 11, 35, 60, 70):
        start = min(max(index - 10, 0), 50)
        expected = naive_log_probabilities(model, part(chain, start, start + 21), index - start, masked)
        np.testing.assert_allclose(actual[index], list(expected.values()), atol=1e-4)
    np.testing.assert_allclose(np.exp(actual).sum(axis=1), 1, atol=1e-5)


def test_a_window_in_which_the_chain_fits_changes_nothing(chain):
    model = make_model()
    whole, just, less = (
        log_probabilities(model, PROCESSOR, chain, [3, 70, 40], masked=True, window=window) for window in (1024, 71, 70)
    )
    np.testing.assert_array_equal(whole, just)
    assert not np.allclose(whole, less, atol=1e-3)


def test_absolute_positions_limit_the_window(chain):
    model = make_model(position_embedding_type="absolute", max_position_embeddings=34)
    assert model.config.pad_token_id == 1
    actual, expected = (
        score_mutants(model, PROCESSOR, chain, ["T6W", "A71G"], method, window=window, progress=False)
        for window in (1024, 30)
        for method in ("masked_marginal",)
    )
    np.testing.assert_array_equal(actual, expected)


# --- planted preferences ---------------------------------------------------------------------------------------------


class PlantedModel:
    """Likes the letters of the alphabet the more the later they come, and 5 nats more what it reads at a residue."""

    device = torch.device("cpu")

    def __init__(self):
        self.config = make_config()

    def eval(self):
        return self

    def __call__(self, input_ids, **_):
        logits = torch.full((*input_ids.shape, self.config.vocab_size), 50.0)  # of no amino acid
        for rank, letter in enumerate(AMINO_ACIDS):
            logits[..., LETTERS[letter]] = 0.1 * rank + 5.0 * (input_ids == LETTERS[letter])
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize(("method", "copied"), [("wild_type_marginal", 5), ("masked_marginal", 0), (METHODS[2], 0)])
def test_a_planted_preference_is_found(chain, method, copied):
    chain = part(chain, 0, 12)
    table = scan_chain(PlantedModel(), PROCESSOR, chain, method, progress=False)
    assert table.shape == (12, 20)
    for index, wild_type in enumerate(chain.sequence):
        rank = AMINO_ACIDS.index(wild_type)
        expected = 0.1 * (np.arange(20) - rank) - copied * (np.arange(20) != rank)
        np.testing.assert_allclose(table[index], expected, atol=1e-5)


def test_a_scan_leaves_out_unknown_residues(chain):
    chain = dataclasses.replace(part(chain, 0, 6), sequence="MEXRIT")
    model = make_model()
    table = scan_chain(model, PROCESSOR, chain, progress=False)
    assert np.isnan(table).any(axis=1).tolist() == [False, False, True, False, False, False]
    score = score_mutants(model, PROCESSOR, chain, ["R4W"], progress=False)[0]
    assert table[3, AMINO_ACIDS.index("W")] == pytest.approx(score, abs=1e-5) and table[3, AMINO_ACIDS.index("R")] == 0


def test_spearman_by_hand():
    scores = np.array([1.0, 2.0, 3.0, 4.0, 9.0])
    assert spearman(scores, np.array([1.0, 3.0, 2.0, 4.0, np.nan])) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert spearman(-scores, np.exp(scores)) == pytest.approx(-1)
    assert math.isnan(spearman(scores, np.ones(5))) and math.isnan(spearman(scores, np.full(5, np.nan)))


# --- files and the command -------------------------------------------------------------------------------------------


def test_scores_are_read_back(tmp_path):
    path = tmp_path / "scores.csv"
    write_scores(path, ["A24G", "A24G:T30S"], np.array([-1.5, 2e-9]), np.array([0.1 + 0.2, np.nan]))
    assert path.read_text() == "mutant,score,DMS_score\nA24G,-1.5,0.30000000000000004\nA24G:T30S,2e-09,\n"
    mutants, measured = read_mutants(path)
    assert mutants == ["A24G", "A24G:T30S"]
    np.testing.assert_array_equal(measured, [0.1 + 0.2, np.nan])
    path.write_text("\ufeffmutant\nA24G\n", encoding="utf-8")  # as a spreadsheet writes it
    assert read_mutants(path) == (["A24G"], None)
    path.write_text("mutant, DMS_score\r\nA24G, 2\r\n")
    assert read_mutants(path) == (["A24G"], np.array([2.0]))


def test_a_heat_map_wraps(tmp_path, chain):
    image = pytest.importorskip("matplotlib.image")
    shapes = []
    for sequence in (chain.sequence[:40], chain.sequence * 2):  # one row, and two
        table = np.random.default_rng(0).normal(size=(len(sequence), 20))
        table[5] = np.nan
        plot_scan(tmp_path / "scan.png", table, sequence, first=-3, title="chain")
        shapes.append(image.imread(tmp_path / "scan.png").shape)
    assert shapes[1][0] > 1.5 * shapes[0][0] and shapes[1][1] < 3 * shapes[0][1]
    write_scan(tmp_path / "scan.csv", table, sequence, first=-3)
    rows = read_rows(tmp_path / "scan.csv")
    assert (rows[0]["position"], rows[-1]["position"]) == ("-3", "138")
    assert float(rows[141]["Y"]) == pytest.approx(table[141, 19], rel=1e-5) and rows[5]["A"] == ""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scoring")
    for name in ("linear", "none"):
        make_model(coordinate_embedding=name).save_pretrained(folder / name)
        PROCESSOR.save_pretrained(folder / name)
    return folder


def run(checkpoint, *options) -> int:
    return main(["score", str(checkpoint / "linear"), *map(str, options), "--quiet", "--json"])


def test_command_scores_given_mutants(checkpoint, tmp_path, capsys, chain):
    table = tmp_path / "assay.csv"
    table.write_text("mutant,mutated_sequence,DMS_score\nM1A,,1.5\nT6W:L7G,,-2\nG24P,,0.5\nL7L,,\n")
    structure = STRUCTURES / "1orc.pdb.gz"
    assert run(checkpoint, structure, "--mutants", table, "--output", tmp_path / "out") == 0
    summary = json.loads(capsys.readouterr().out)
    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_pretrained(checkpoint / "linear")
    expected = score_mutants(model, PROCESSOR, chain, ["M1A", "T6W:L7G", "G24P", "L7L"], progress=False)
    rows = read_rows(tmp_path / "out" / "scores.csv")
    assert [row["mutant"] for row in rows] == ["M1A", "T6W:L7G", "G24P", "L7L"]
    assert [row["DMS_score"] for row in rows] == ["1.5", "-2.0", "0.5", ""]
    np.testing.assert_allclose([float(row["score"]) for row in rows], expected, atol=1e-4)
    assert summary["spearman"] == pytest.approx(spearman(expected[:3], np.array([1.5, -2, 0.5])))
    assert (summary["chain"], summary["residues"], summary["observed"], summary["mutants"]) == ("1ORC_A", 71, 64, 4)
    assert summary["coordinates"] == "given" and summary == json.loads((tmp_path / "out" / "score.json").read_text())

    # Mutants as words, another numbering, another method, coordinates withheld: as of the sequence alone.
    fasta = tmp_path / "cro.fasta"
    fasta.write_text(f">cro\n{chain.sequence}\n")
    options = ["--mutants", "T16W", "--first", 11, "--method", "wild_type_marginal"]
    assert run(checkpoint, structure, *options, "--without_coords", "--output", tmp_path / "one") == 0
    assert run(checkpoint, fasta, *options, "--output", tmp_path / "two") == 0
    given = [json.loads((tmp_path / name / "score.json").read_text())["coordinates"] for name in ("one", "two")]
    assert given == ["withheld", "unknown"]
    one, two = ((tmp_path / name / "scores.csv").read_text() for name in ("one", "two"))
    assert one == two and one.startswith("mutant,score\nT16W,")
    assert all("spearman" not in text for text in (one, two, capsys.readouterr().out))


def test_command_scans_a_chain_of_a_file(checkpoint, tmp_path, capsys):
    options = ["--scan", "--method", "wild_type_marginal", "--output", tmp_path]
    assert run(checkpoint, STRUCTURES / "1BD2.cif.gz", "--chains", "C", *options) == 0
    assert json.loads(capsys.readouterr().out)["residues"] == 9
    rows = read_rows(tmp_path / "scan.csv")
    assert "".join(row["wild_type"] for row in rows) == "LLFGYPVYV"
    assert all(float(row[row["wild_type"]]) == 0 for row in rows)
    assert (tmp_path / "scan.png").stat().st_size > 10000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["1orc.pdb.gz", "--mutants", "A1G"], "Mutant A1G: position 1 of the chain is M, not A"),
        (["1orc.pdb.gz", "--mutants", "empty.csv"], "empty.csv has no mutants"),
        (
            ["1orc.pdb.gz", "--mutants", "nothing.csv"],
            "nothing.csv has the columns (none); the column mutant is needed",
        ),
        (["1orc.pdb.gz", "--mutants", "other.csv"], "other.csv has the columns variant, DMS_score; the column mutant"),
        (["1orc.pdb.gz", "--mutants", "odd.csv"], "odd.csv: DMS_score of M1A is 'high'; give a number"),
        (["1orc.pdb.gz", "--mutants", "absent.csv"], "absent.csv"),
        (["1orc.pdb.gz", "--mutants", "gap.csv"], "gap.csv, row 2: the column mutant is empty"),
        (["1orc.pdb.gz", "--mutants", "latin.csv"], "latin.csv is no UTF-8 ("),
        (["unknown.fasta", "--scan"], "Chain x has no residue that is known, only X"),
        (["1BD2.cif.gz", "--scan"], "1BD2.cif.gz has the chains 1BD2_A, 1BD2_B, 1BD2_C, 1BD2_D, 1BD2_E; choose one"),
        (["1BD2.cif.gz", "--scan", "--chains", "Z"], "no protein chain Z"),
        (["1orc.pdb.gz", "--scan", "--window", "1"], "`window` is 1; it must be at least 2"),
        (["1orc.pdb.gz", "--scan", "--token_budget", "0"], "`token_budget` is 0; it must be at least 1"),
    ],
)
def test_command_line_says_what_is_wrong_in_one_line(checkpoint, tmp_path, capsys, options, message):
    for name, text in (
        ("empty.csv", "mutant,DMS_score\n"), ("nothing.csv", ""), ("other.csv", "variant,DMS_score\nM1A,1\n"),
        ("odd.csv", "mutant,DMS_score\nM1A,high\n"), ("gap.csv", "mutant,DMS_score\nM1A,1\n,\n"),
        ("latin.csv", "mutant,note\nM1A,\u00e4\n"), ("unknown.fasta", ">x\nXXX\n"),
    ):  # fmt: skip
        (tmp_path / name).write_text(text, encoding="latin-1")
    options = [STRUCTURES / each if each.endswith(".gz") else each for each in options]
    options = [tmp_path / each if str(each).endswith((".csv", ".fasta")) else each for each in options]
    assert run(checkpoint, *options, "--output", tmp_path / "out") == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("coordformer: ")]
    assert len(lines) == 1 and message in lines[0], lines


def test_bad_arguments_of_scoring_are_named(chain):
    with pytest.raises(ValueError, match="`method` is 'other'; choose one of wild_type_marginal, masked_marginal"):
        score_mutants(make_model(), PROCESSOR, chain, ["M1A"], "other")
    with pytest.raises(ValueError, match="There is nothing to score: the list of mutants is empty"):
        score_mutants(make_model(), PROCESSOR, chain, [])


# --- the example -----------------------------------------------------------------------------------------------------

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

    model = part(chain, 3, 65)
    assert model.observed.all()
    sequence, coords = "GG" + model.sequence, np.round(100 * model.coords[:, 0]).astype(np.int16)
    mutants, measured = ["R3A", "T5W", "L6G", "G23P", "A28G"], [0.3, -1.0, -0.5, -2.0, 0.0]

    gym = tmp_path / "gym"
    for name in ("DMS_ProteinGym_substitutions", "ProteinGym_AF2_structures"):
        (gym / name).mkdir(parents=True)
    lines = [f"{mutant},,{score},0\n" for mutant, score in zip(mutants, measured, strict=True)]
    header = "mutant,mutated_sequence,DMS_score,DMS_score_bin\n"
    (gym / "DMS_ProteinGym_substitutions" / "CRO.csv").write_text(header + "".join(lines))
    atoms = [
        f"ATOM  {i:5d}  CA  {seq3(letter).upper()} A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 90.00           C\n"
        for i, (letter, (x, y, z)) in enumerate(zip(model.sequence, (coords / 100).tolist(), strict=True), 1)
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
    expected = spearman(
        score_mutants(*linear, wild_type, mutants, "wild_type_marginal", progress=False), np.array(measured)
    )
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
    models = {"checkpoint": variants.load_checkpoint(checkpoint / "linear")}
    mutants = ["M1A", "T6W", "L7G"]  # residues 1 and 2 of Cro are not observed
    for identity, asked, compared in ((100.0, mutants[1:], True), (100.0, mutants, False), (94.0, mutants[1:], False)):
        load = partial(tuple, (asked, np.arange(len(asked), dtype=float)))
        assay = variants.Assay("CRO", "P", "Stability", chain, identity, load)
        result = variants.score_assay(assay, models, "wild_type_marginal")
        assert ("given" in result["spearman"]) == compared
        assert result["structure_coverage"] == pytest.approx(1 if len(asked) == 2 else 2 / 3)
