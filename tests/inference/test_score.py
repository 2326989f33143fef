"""Scores of substitutions: by hand, against naive loops, and of models with a planted preference."""

import csv
import dataclasses
import gzip
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import STRUCTURES, make_config, make_model, make_rows
from datasets import Dataset

from coordformer import CoordformerForMaskedLM, CoordformerProcessor
from coordformer.data.rows import SCHEMA, chain_to_row, load_rows
from coordformer.inference import marginals
from coordformer.inference.marginals import METHODS, scan_chains
from coordformer.inference.mutants import read_mutants, spearman
from coordformer.inference.score import describe, scan_lines, score, score_lines
from coordformer.model.chain import AMINO_ACIDS, Chain, Complex
from coordformer.model.processing_coordformer import letter_ids
from coordformer.model.residues import ResidueNumbers
from coordformer.model.structure import read_chains, read_complex
from coordformer.model.substitutions import parse_mutant
from coordformer.model.windows import window_around
from coordformer_command import main

PROCESSOR = CoordformerProcessor()
LETTERS = letter_ids(PROCESSOR.tokenizer)


@pytest.fixture(scope="module")
def chain() -> Chain:
    """71 residues of phage λ Cro, 64 observed; MEQRITLKDYAMRFGQTKTAKDLGVYQSAINKAIHAG..."""
    return read_chains(STRUCTURES / "1orc.pdb.gz")[0]


def part(chain: Chain, start: int, end: int, **fields) -> Chain:
    """Some contiguous residues as a chain."""
    fields = {"sequence": chain.sequence[start:end], "coords": chain.coords[start:end]} | fields
    fields |= {"positions": None, "residue_numbers": chain.residue_numbers[start:end]}
    return dataclasses.replace(chain, b_factor=chain.b_factor[start:end], **fields)


def log_probabilities(model, processor, chain: Chain, indices, **options) -> np.ndarray:
    """Of one chain, (indices, 20)."""
    return marginals.log_probabilities(model, processor, [(chain, indices)], **options)[0]


def score_mutants(model, processor, chain: Chain, mutants, *arguments, **options) -> np.ndarray:
    """Of one chain, (mutants,)."""
    return marginals.score_mutants(model, processor, [(chain, mutants)], *arguments, progress=False, **options)[0]


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


# --- methods ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("without_coords", [False, True], ids=["given", "not given"])
@pytest.mark.parametrize("method", METHODS[:2])
def test_marginals_are_differences_of_log_probabilities(chain, method, without_coords):
    model = make_model()
    inputs = {"coords": None} if without_coords else {}
    scores = score_mutants(model, PROCESSOR, chain, ["M1A", "T6W", "L7L"], method, without_coords=without_coords)
    for value, index, wild_type, new in zip(scores, (0, 5, 6), "MTL", "AWL", strict=True):
        expected = naive_log_probabilities(model, chain, index, method == "masked_marginal", **inputs)
        assert value == pytest.approx(expected[new] - expected[wild_type], abs=1e-5)
    assert scores[2] == 0 and abs(scores[:2]).min() > 0.001


def test_methods_and_coordinates_matter(chain):
    model = make_model()
    mutants = ["M1A", "T6W", "G24P"]
    scores = [
        score_mutants(model, PROCESSOR, chain, mutants, method, without_coords=without)
        for method in METHODS
        for without in (False, True)
    ]
    for i, one in enumerate(scores):
        assert all(np.abs(one - other).max() > 0.05 for other in scores[:i])
    unobserved = dataclasses.replace(chain, coords=np.full_like(chain.coords, np.nan))
    np.testing.assert_allclose(score_mutants(model, PROCESSOR, unobserved, mutants, METHODS[0]), scores[1], atol=1e-5)


@pytest.mark.parametrize("method", METHODS[:2])
def test_marginals_of_several_substitutions_are_added(chain, method):
    singles = ["M1A", "T6W", "L7G"]
    scores = score_mutants(make_model(), PROCESSOR, chain, [*singles, ":".join(singles)], method)
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
    scores = score_mutants(model, PROCESSOR, short, list(mutants), "pseudo_likelihood", window=window, token_budget=100)
    expected = [log_likelihood(sequence) - log_likelihood(short.sequence) for sequence in mutants.values()]
    np.testing.assert_allclose(scores, expected, atol=2e-4)
    assert abs(scores).min() > 0.01


@pytest.mark.parametrize("method", METHODS)
def test_the_token_budget_changes_no_score(chain, method):
    model = make_model()
    chain = part(chain, 0, 30)
    mutants = ["M1A", "T6W:L7G", "T17A", "G24P"]
    scores = [
        score_mutants(model, PROCESSOR, chain, mutants, method, window=window, token_budget=token_budget)
        for window in (1024, 12)
        for token_budget in (1, 100, 8192)
    ]
    for one, two in ((0, 1), (0, 2), (3, 4), (3, 5)):
        np.testing.assert_allclose(scores[one], scores[two], atol=1e-5)
    assert not np.allclose(scores[0], scores[3], atol=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_chains_are_scored_together_as_alone(chain, method, monkeypatch):
    """Of different lengths, some longer than the window, in batches in which they meet."""
    monkeypatch.setattr(marginals, "MUTANTS_AT_ONCE", 2)
    model = make_model()
    asked = [
        (part(chain, 0, 12), ["M1A"]),
        (part(chain, 0, 40), ["G24P", "T6W:L7G", "M1A"]),
        (part(chain, 3, 20), ["R4A", "T6G"]),
    ]
    together = marginals.score_mutants(model, PROCESSOR, asked, method, window=15, token_budget=60)
    assert [len(scores) for scores in together] == [1, 3, 2]
    for scores, (wild_type, mutants) in zip(together, asked, strict=True):
        alone = score_mutants(model, PROCESSOR, wild_type, mutants, method, window=15, token_budget=1)
        np.testing.assert_allclose(scores, alone, atol=1e-5)


def test_backbone_atoms_are_read():
    atoms = ("N", "CA", "C")
    chain = part(read_chains(STRUCTURES / "1orc.pdb.gz", atoms=atoms)[0], 0, 30)
    model = make_model(coordinate_atoms=atoms)
    processor = CoordformerProcessor(coordinate_atoms=atoms)
    with torch.no_grad():
        logits = model(**processor(chains=chain)).logits[0, 6, list(LETTERS.values())]
    actual = log_probabilities(model, processor, chain, [5], masked=False)
    np.testing.assert_allclose(actual[0], logits.log_softmax(dim=-1).numpy(), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_wild_type_scores_zero(chain, method):
    model, chain = make_model(), part(chain, 0, 12)
    scores = score_mutants(model, PROCESSOR, chain, ["WT", "M1A", "_wt", "T6P"], method)
    assert scores[0] == scores[2] == 0 and abs(scores[[1, 3]]).min() > 0.01
    np.testing.assert_allclose(
        scores[[1, 3]], score_mutants(model, PROCESSOR, chain, ["M1A", "T6P"], method), atol=1e-5
    )
    assert score_mutants(model, PROCESSOR, chain, ["wt"], method).tolist() == [0]


@pytest.mark.parametrize("masked", [False, True])
def test_no_residue_is_asked_for(chain, masked):
    model = make_model()
    assert log_probabilities(model, PROCESSOR, chain, [], masked=masked).shape == (0, 20)
    asked = [(chain, []), (part(chain, 0, 30), [4, 9]), (chain, np.zeros(0))]
    tables = marginals.log_probabilities(model, PROCESSOR, asked, masked=masked, window=20)
    assert [table.shape for table in tables] == [(0, 20), (2, 20), (0, 20)]


# --- complexes -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def protease() -> Complex:
    """HIV protease: two chains of 99 residues, the same numbers in both."""
    return read_complex(STRUCTURES / "1hvr.pdb.gz")


@torch.no_grad()
def test_a_complex_is_read_as_one(protease):
    """By hand, residue by residue; a mutant in both chains; and not what each chain gives alone."""
    model = make_model(coordinate_embedding="local_frame", num_qk_points=2, num_neighbors=5)
    letters = list(LETTERS.values())
    scores = score_mutants(model, PROCESSOR, protease, ["IA50G", "IB50G", "IA50G:IB50G"])
    for value, index in zip(scores, (49, 99 + 49), strict=False):
        batch = PROCESSOR(chains=[protease])
        batch["input_ids"][0, index + 1] = PROCESSOR.tokenizer.mask_token_id
        table = model(**batch).logits[0, index + 1, letters].log_softmax(dim=-1)
        assert value == pytest.approx(float(table[AMINO_ACIDS.index("G")] - table[AMINO_ACIDS.index("I")]), abs=1e-4)
    assert scores[2] == pytest.approx(scores[:2].sum(), abs=1e-9)
    alone = [score_mutants(model, PROCESSOR, each, ["I50G"])[0] for each in protease.chains]
    assert min(abs(scores[:2] - alone)) > 1e-3
    with pytest.raises(
        ValueError, match=r"I50G: 50 may be A50 .* or B50 \(position 50 of chain B\); write IA50G or IB50G"
    ):
        score_mutants(model, PROCESSOR, protease, ["I50G"])


def test_a_scan_of_a_complex(protease):
    model = make_model()
    (table,) = scan_chains(model, PROCESSOR, [protease], "wild_type_marginal")
    assert table.shape == (198, 20)
    (value,) = score_mutants(model, PROCESSOR, protease, ["PB1W"], "wild_type_marginal")
    assert table[99, AMINO_ACIDS.index("W")] == pytest.approx(value, abs=1e-5)
    observed = np.ones(198, dtype=bool)
    rows = [row[:5] for row in scan_lines(protease.id, "a.pdb", ResidueNumbers(protease), table, observed)]
    assert rows[98:100] == [["1HVR", "a.pdb", "99", "F", "A"], ["1HVR", "a.pdb", "1", "P", "B"]]


# --- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "window"), [(50, 12), (50, 13), (50, 50), (50, 49), (7, 20), (50, 2), (300, 64), (301, 65), (2000, 1024)]
)
def test_residues_lie_near_the_middle_of_their_window(length, window):
    """As near as can be, or an eighth of a window apart for less windows than residues."""
    starts = window_around(np.arange(length), length, window)
    inside = min(window, length)
    allowed = np.arange(length - inside + 1)
    for index, start in enumerate(starts):
        assert start in allowed and start <= index < start + inside
        off_center = np.abs(index - (allowed + (inside - 1) / 2))
        assert off_center[start] <= off_center.min() + (window // 16 if window >= 16 else 0)
    if window >= 16:
        assert len(np.unique(starts)) <= 2 + (length - inside) // (window // 8)


@pytest.mark.parametrize("masked", [False, True])
def test_a_window_is_a_chain_of_its_own(chain, masked):
    model = make_model()
    actual = log_probabilities(model, PROCESSOR, chain, np.arange(71), masked=masked, window=21)
    for index in (0, 9, 10, 11, 35, 60, 70):
        start = int(window_around(np.array(index), 71, 21))
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
        score_mutants(model, PROCESSOR, chain, ["T6W", "A66G"], method, window=window)
        for window in (1024, 30)
        for method in ("masked_marginal",)
    )
    np.testing.assert_array_equal(actual, expected)


# --- planted preferences ---------------------------------------------------------------------------------------------


class PlantedModel:
    """Likes the letters of the alphabet the more the later they come, and 5 nats more what it reads at a residue."""

    device, masks_each = torch.device("cpu"), False

    def __init__(self):
        self.config, self.base_model = make_config(), self

    def eval(self):
        return self

    def encode_structure(self, coords, **_):
        return coords

    def __call__(self, input_ids, kept_tokens, **_):
        input_ids = input_ids.gather(1, kept_tokens)
        logits = torch.full((*input_ids.shape, self.config.vocab_size), 50.0)  # of no amino acid
        for rank, letter in enumerate(AMINO_ACIDS):
            logits[..., LETTERS[letter]] = 0.1 * rank + 5.0 * (input_ids == LETTERS[letter])
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize(("method", "copied"), [("wild_type_marginal", 5), ("masked_marginal", 0), (METHODS[2], 0)])
def test_a_planted_preference_is_found(chain, method, copied):
    chain = part(chain, 0, 12)
    (table,) = scan_chains(PlantedModel(), PROCESSOR, [chain], method)
    assert table.shape == (12, 20)
    for index, wild_type in enumerate(chain.sequence):
        rank = AMINO_ACIDS.index(wild_type)
        expected = 0.1 * (np.arange(20) - rank) - copied * (np.arange(20) != rank)
        np.testing.assert_allclose(table[index], expected, atol=1e-5)


def test_a_scan_leaves_out_unknown_residues(chain):
    chain = dataclasses.replace(part(chain, 0, 6), sequence="MEXRIT")
    model = make_model()
    (table,) = scan_chains(model, PROCESSOR, [chain])
    assert np.isnan(table).any(axis=1).tolist() == [False, False, True, False, False, False]
    value = score_mutants(model, PROCESSOR, chain, ["R4W"])[0]
    assert table[3, AMINO_ACIDS.index("W")] == pytest.approx(value, abs=1e-5) and table[3, AMINO_ACIDS.index("R")] == 0


def test_spearman_by_hand():
    scores = np.array([1.0, 2.0, 3.0, 4.0, 9.0])
    assert spearman(scores, np.array([1.0, 3.0, 2.0, 4.0, np.nan])) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert spearman(-scores, np.exp(scores)) == pytest.approx(-1)
    assert math.isnan(spearman(scores, np.ones(5))) and math.isnan(spearman(scores, np.full(5, np.nan)))


# --- files and the command -------------------------------------------------------------------------------------------


def test_scores_are_read_back(tmp_path, chain):
    path = tmp_path / "scores.csv"
    texts = ["A36G", "A36G:D56AS", "WT"]
    residues = ResidueNumbers(chain)
    parsed = [parse_mutant(text, residues) for text in texts]
    scores, fitness = np.array([-1.5, 2e-9, 0]), np.array([0.1 + 0.2, np.nan, 1])
    lines = score_lines('a,"b"', "c d.pdb", residues, texts, parsed, scores, fitness, np.arange(71) != 56)
    with open(path, "w", newline="") as file:
        head = ["id", "file", "mutant", "score", "DMS_score", "residues", "positions", "observed"]
        csv.writer(file, lineterminator="\n").writerows([head, *lines])
    assert path.read_text().splitlines()[1:] == [
        '"a,""b""",c d.pdb,A36G,-1.5,0.30000000000000004,A36,36,true',
        '"a,""b""",c d.pdb,A36G:D56AS,2e-09,,A36:A56A,36:57,false',
        '"a,""b""",c d.pdb,WT,0,1.0,,,true',
    ]
    mutants, measured, ids = read_mutants(path)
    assert mutants == texts and ids == ['a,"b"'] * 3
    np.testing.assert_array_equal(measured, [0.1 + 0.2, np.nan, 1])
    path.write_text("\ufeffmutant\nA24G\n", encoding="utf-8")  # as a spreadsheet writes it
    assert read_mutants(path) == (["A24G"], None, None)
    path.write_text("mutant, DMS_score\r\nA24G, 2\r\n")
    assert read_mutants(path) == (["A24G"], np.array([2.0]), None)


def test_a_scan_in_rows(chain):
    table = np.random.default_rng(0).normal(size=(71, 20))
    table[5] = np.nan
    observed = chain.observed.any(axis=1)
    assert np.flatnonzero(~observed).tolist() == [0, 1, 66, 67, 68, 69, 70]
    rows = list(scan_lines("cro", "a.pdb", ResidueNumbers(chain), table, observed))
    assert {(*row[:2],) for row in rows} == {("cro", "a.pdb")}
    ends = [["1", "M", "A", "A1", "false"], ["71", "A", "A", "A66", "false"]]
    assert [rows[0][2:7], rows[-1][2:7]] == ends and rows[58][2:7] == ["59", "E", "A", "A56C", "true"]
    assert float(rows[70][-1]) == pytest.approx(table[70, 19], rel=1e-5) and rows[5][7:] == [""] * 20
    counted = list(scan_lines("cro", "a.pdb", ResidueNumbers(chain, offset=-3), table, observed))
    assert [row[2:6] for row in (counted[0], counted[-1])] == [["-3", "M", "A", "A1"], ["67", "A", "A", "A66"]]
    sequence = ResidueNumbers({"id": "cro", "sequence": chain.sequence}, offset=-3)
    assert next(scan_lines("cro", "a.pdb", sequence, table, observed))[2:6] == ["-3", "M", "", "-3"]
    assert list(scan_lines("cro", "a.pdb", ResidueNumbers(chain), table, observed, [58, 70])) == [rows[58], rows[70]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scoring")
    torch.manual_seed(0)
    make_model().save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    return folder


def quietly(checkpoint, inputs, output, **options) -> dict:
    return score(checkpoint, inputs, output, progress=False, **options)


def test_given_mutants(checkpoint, tmp_path, chain):
    table = tmp_path / "assay.csv"
    table.write_text("mutant,mutated_sequence,DMS_score\nM1A,,1.5\nT6W:L7G,,-2\nG24P,,0.5\nL7L,,\n")
    structure = STRUCTURES / "1orc.pdb.gz"
    summary = quietly(checkpoint, structure, tmp_path / "out", mutants=[str(table)])
    model = CoordformerForMaskedLM.from_pretrained(checkpoint)
    expected = score_mutants(model, PROCESSOR, chain, ["M1A", "T6W:L7G", "G24P", "L7L"])
    rows = read_rows(tmp_path / "out" / "scores.csv")
    assert list(rows[0])[:5] == ["id", "file", "mutant", "score", "DMS_score"] and {row["id"] for row in rows} == {
        "1ORC_A"
    }
    assert [(row["residues"], row["positions"]) for row in rows[:2]] == [("A1", "1"), ("A6:A7", "6:7")]
    assert [row["mutant"] for row in rows] == ["M1A", "T6W:L7G", "G24P", "L7L"]
    assert [row["DMS_score"] for row in rows] == ["1.5", "-2.0", "0.5", ""]
    np.testing.assert_allclose([float(row["score"]) for row in rows], expected, atol=1e-4)
    assert summary["spearman"] == pytest.approx(spearman(expected[:3], np.array([1.5, -2, 0.5])))
    assert (summary["chain"], summary["residues"], summary["observed"], summary["mutants"]) == ("1ORC_A", 71, 64, 4)
    assert summary["coordinates"] == "given" and summary == json.loads((tmp_path / "out" / "score.json").read_text())
    assert "1ORC_A: 4 mutants of 71 residues by masked_marginal, coordinates given; Spearman's" in describe(summary)

    assert (summary["numbering"], summary["offset"]) == ("file", 1)

    # Mutants as words, another numbering, another method, no coordinates: as of the sequence alone.
    fasta = tmp_path / "cro.fasta"
    fasta.write_text(f">1ORC_A\n{chain.sequence}\n")
    options = {"mutants": ["T16W"], "offset": 11, "method": "wild_type_marginal"}
    one = quietly(checkpoint, structure, tmp_path / "one", without_coords=True, **options)
    two = quietly(checkpoint, fasta, tmp_path / "two", **options)
    assert [each["coordinates"] for each in (one, two)] == ["not given", "unknown"]
    texts = [(tmp_path / name / "scores.csv").read_text() for name in ("one", "two")]
    assert texts[0].startswith("id,file,mutant,score,residues,positions,observed\n1ORC_A,1orc.pdb.gz,T16W,")
    assert (
        texts[0] == texts[1].replace(",16,16,false\n", ",A6,16,true\n").replace("cro.fasta", "1orc.pdb.gz") != texts[1]
    )
    assert (one["numbering"], two["numbering"], one["offset"]) == ("sequence", "sequence", 11)
    assert "spearman" not in one and "spearman" not in two


def test_mutants_of_several_chains(checkpoint, tmp_path, caplog):
    """By the column id, in parts; a chain without mutants, one whose mutant is wrong, and an id that is no chain."""
    chains = read_chains(STRUCTURES / "1BD2.cif.gz")
    names = [f"1BD2_{name}" for name in "CAEC"]
    first = {chain.id: chain.sequence[0] for chain in chains}
    mutants = [f"{first['1BD2_C']}1A", f"{first['1BD2_A']}1W", "W1A", "G4P"]
    assert first["1BD2_E"] != "W" and chains[2].sequence[3] == "G"
    table = tmp_path / "assay.csv"
    lines = [f"{mutant},{name},{number}" for number, (mutant, name) in enumerate(zip(mutants, names, strict=True))]
    table.write_text("\n".join(["mutant,id,DMS_score", *lines, "M1A,nowhere,5"]) + "\n")
    rows = load_rows(make_data_set(chains, tmp_path / "chains.parquet"))
    assert len(rows) == 5
    options = {"mutants": [str(table)], "method": "wild_type_marginal", "entries_per_part": 2}
    summary = quietly(checkpoint, tmp_path / "chains.parquet", tmp_path / "out", **options)
    scored = read_rows(tmp_path / "out" / "scores.csv")
    assert [(row["id"], row["mutant"], row["DMS_score"]) for row in scored] == [
        ("1BD2_A", mutants[1], "1.0"), ("1BD2_C", mutants[0], "0.0"), ("1BD2_C", "G4P", "3.0"),
    ]  # fmt: skip
    model = CoordformerForMaskedLM.from_pretrained(checkpoint)
    expected = score_mutants(model, PROCESSOR, chains[2], [mutants[0], "G4P"], "wild_type_marginal")
    np.testing.assert_allclose([float(row["score"]) for row in scored[1:]], expected, atol=1e-4)
    reports = {report["chain"]: report for report in summary["chains"]}
    assert list(reports) == ["1BD2_A", "1BD2_C"] and reports["1BD2_C"]["mutants"] == 2
    assert reports["1BD2_A"]["spearman"] is None and abs(reports["1BD2_C"]["spearman"]) == pytest.approx(1)
    rejected = [line.split("\t") for line in (tmp_path / "out" / "rejected.tsv").read_text().splitlines()[1:]]
    reasons = {chain: reason for _, chain, reason in rejected}
    assert list(reasons) == ["nowhere", "1BD2_E"] and summary["rejected"] == 2
    assert "the inputs have no such chain; ids of the inputs are such as 1BD2_A, 1BD2_C" in reasons["nowhere"]
    assert f"E1 (position 1 of chain E) is {first['1BD2_E']}, not W" in reasons["1BD2_E"]
    assert "2 files or chains were left out; the first: nowhere: it has mutants, but" in caplog.text
    assert summary["residues"] == len(chains[0]) + len(chains[2])

    # Other measurements are another run, and a run without a single chain leaves the folder free.
    table.write_text(table.read_text().replace("1BD2_C,0", "1BD2_C,7"))
    with pytest.raises(ValueError, match="holds another run .other mutants.; choose another"):
        quietly(checkpoint, tmp_path / "chains.parquet", tmp_path / "out", **options)
    with pytest.raises(
        ValueError, match=r"1ORC_A: Mutant M2A: A2 \(position 2 of chain A\) is E, not M; mend the letter or"
    ):
        quietly(checkpoint, STRUCTURES / "1orc.pdb.gz", tmp_path / "one", mutants=["M2A"])
    assert quietly(checkpoint, STRUCTURES / "1orc.pdb.gz", tmp_path / "one", mutants=["M1A"])["mutants"] == 1


def test_scores_of_residues_that_were_not_observed(checkpoint, tmp_path, caplog):
    """Cro's 1, 2 and 62 to 66 were not: a column says so, and a line counts them, where others have coordinates."""
    cro = STRUCTURES / "1orc.pdb.gz"
    summary = quietly(checkpoint, cro, tmp_path / "scan", method="wild_type_marginal")
    rows = read_rows(tmp_path / "scan" / "scan.csv")
    assert [row["residue"] for row in rows if row["observed"] == "false"] == summary["unobserved"]
    assert summary["unobserved"] == ["A1", "A2", "A62", "A63", "A64", "A65", "A66"] and summary["scored"] == 71
    assert {row["observed"] for row in rows} == {"true", "false"}
    why = "; what has no place in the structure is scored without it (column observed)"
    assert caplog.messages == ["7 of 71 residues were not observed: A1, A2, A62, ..." + why]
    caplog.clear()
    mutants = ["Q3A:E2G", "Q3A", "WT"]
    summary = quietly(checkpoint, cro, tmp_path / "mutants", mutants=mutants)
    scores = [row["observed"] for row in read_rows(tmp_path / "mutants" / "scores.csv")]
    assert scores == ["false", "true", "true"] and summary["unobserved"] == ["Q3A:E2G"]
    assert caplog.messages == ["1 of 3 mutants has residues that were not observed: Q3A:E2G" + why]
    caplog.clear()
    blind = quietly(checkpoint, cro, tmp_path / "blind", mutants=mutants, without_coords=True)
    assert "unobserved" not in blind and not caplog.messages
    assert quietly(checkpoint, cro, tmp_path / "some", residues="A3-A8", method=METHODS[0])["unobserved"] == []
    assert not caplog.messages


def test_a_wrong_mutant_costs_the_others_nothing(checkpoint, tmp_path, caplog):
    table = tmp_path / "assay.csv"
    table.write_text("mutant,DMS_score\nQ3A,3\nA5G,9\nR4A,2\nWT,0\nnot a mutant,8\nI5A,1\n")
    summary = quietly(checkpoint, STRUCTURES / "1orc.pdb.gz", tmp_path / "out", mutants=[str(table)])
    right = quietly(checkpoint, STRUCTURES / "1orc.pdb.gz", tmp_path / "right", mutants=["Q3A", "R4A", "WT", "I5A"])
    rows = read_rows(tmp_path / "out" / "scores.csv")
    assert [row["mutant"] for row in rows] == ["Q3A", "A5G", "R4A", "WT", "not a mutant", "I5A"]
    assert [row["DMS_score"] for row in rows] == ["3.0", "9.0", "2.0", "0.0", "8.0", "1.0"]
    unread = [rows.pop(4), rows.pop(1)]
    assert {row[name] for row in unread for name in ("score", "residues", "positions", "observed")} == {""}
    assert [row["score"] for row in rows] == [row["score"] for row in read_rows(tmp_path / "right" / "scores.csv")]
    assert (summary["mutants"], len(summary["unread"]), right["mutants"]) == (4, 2, 4) and "unread" not in right
    scores = np.array([float(row["score"]) for row in rows])
    assert summary["spearman"] == pytest.approx(spearman(scores, np.array([3.0, 2.0, 0.0, 1.0])))
    (line,) = [message for message in caplog.messages if "cannot be scored" in message]
    assert line.startswith("2 of 6 mutants cannot be scored: Mutant A5G: A5 (position 5 of chain A) is I, not A")
    assert line.endswith("All reasons are in score.json, as unread.")
    with pytest.raises(ValueError, match="None is scored, since 2 of 3 mutants are wrong"):  # WT fits every chain
        quietly(checkpoint, STRUCTURES / "1orc.pdb.gz", tmp_path / "bad", mutants=["WT", "A3G", "A5G"])


def test_a_column_that_is_not_read_is_named(tmp_path, caplog):
    path = tmp_path / "a.csv"
    path.write_text("id,chain,mutant\n5TPN,H,Y109A\n")
    assert read_mutants(path) == (["Y109A"], None, ["5TPN"])
    fix = "write chains into ids, such as 1ABC_H, or with --complex into mutants, as in SH195A"
    assert caplog.messages == [f"{path}: the column chain is not read; {fix}"]


def test_low_confidence_is_said(checkpoint, tmp_path, caplog):
    """Of a file without an experiment; not of B-factors of experiments, nor of backbones that have 0 or 1 for all."""
    lines = gzip.decompress((STRUCTURES / "pdb1ubi_ca.pdb.gz").read_bytes()).decode().splitlines()
    atoms = [line for line in lines if line.startswith("ATOM")]

    def write(name: str, values, head: str = "") -> Path:
        pairs = zip(atoms, values, strict=True)
        text = head + "".join(f"{line[:60]}{value:6.2f}{line[66:]}\n" for line, value in pairs)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    plddt = [90.0] * 70 + [69.9, 50.0, 90.0, 30.0, 70.0, 20.0]
    options = {"method": "wild_type_marginal", "figures": False}
    summary = quietly(checkpoint, write("model.pdb", plddt), tmp_path / "out", **options)
    assert summary["low_plddt"] == ["A71-A72", "A74", "A76"]
    fix = "; --min_plddt 70 takes them for not observed"
    assert caplog.messages == ["coordinates of low confidence (pLDDT below 70): A71-A72, A74, A76" + fix]
    caplog.clear()
    summary = quietly(checkpoint, tmp_path / "model.pdb", tmp_path / "cut", min_plddt=70, **options)
    assert summary["unobserved"] == ["A71", "A72", "A74", "A76"] and "low_plddt" not in summary
    caplog.clear()
    for name, values, head in (
        ("xray.pdb", plddt, "EXPDTA    X-RAY DIFFRACTION\n"), ("new.pdb", [0.0] * 76, ""), ("mask.pdb", [1.0] * 76, ""),
        ("sure.pdb", [95.0] * 76, ""), ("crystal.pdb", [71.0, *[20.0] * 75], ""),
        ("factors.pdb", [150.0, *plddt[1:]], ""),
    ):  # fmt: skip
        assert "low_plddt" not in quietly(checkpoint, write(name, values, head), tmp_path / f"{name}.out", **options)
    assert not caplog.messages


def make_data_set(chains, path: Path) -> Path:
    Dataset(pa.Table.from_pylist([chain_to_row(chain) for chain in chains], schema=SCHEMA)).to_parquet(path)
    return path


def test_a_scan_of_one_chain_of_a_file(checkpoint, tmp_path):
    options = {"chain_ids": ["C"], "method": "wild_type_marginal", "offset": 4}
    assert quietly(checkpoint, STRUCTURES / "1BD2.cif.gz", tmp_path, **options)["residues"] == 9
    rows = read_rows(tmp_path / "scan.csv")
    assert list(rows[0]) == ["id", "file", "position", "wild_type", "chain", "residue", "observed", *AMINO_ACIDS]
    assert "".join(row["wild_type"] for row in rows) == "LLFGYPVYV" and rows[0]["position"] == "4"
    assert rows[0]["residue"] == "C1" and rows[8]["residue"] == "C9"
    assert all(float(row[row["wild_type"]]) == 0 and row["id"] == "1BD2_C" for row in rows)
    assert (tmp_path / "scan.png").stat().st_size > 10000


def test_a_scan_of_several_chains(checkpoint, tmp_path, monkeypatch):
    """Of one part in the folder itself, of several in one for each; a chain of X alone has none."""
    monkeypatch.setattr("coordformer.inference.score.plot_scan", lambda path, *_: path.touch())  # a second each
    (tmp_path / "few.fasta").write_text(">a/b\nMKVA\n>x\nXXX\n>A/B\nMX\n>rejected\nW\n")
    for name, entries in (("one", 16), ("two", 2)):
        summary = quietly(checkpoint, tmp_path / "few.fasta", tmp_path / name, entries_per_part=entries)
        assert [report["chain"] for report in summary["chains"]] == ["a/b", "A/B", "rejected"]
        assert summary["rejected"] == 1 and summary["residues"] == 7
        assert "Chain x has no residue that is known" in (tmp_path / name / "rejected.tsv").read_text()
    pictures = [
        sorted(path.relative_to(tmp_path / name).as_posix() for path in (tmp_path / name).rglob("*.png"))
        for name in ("one", "two")
    ]
    assert pictures == [
        ["A_B-2.png", "a_b.png", "rejected-2.png"],
        ["00000-of-00002/a_b.png", "00001-of-00002/A_B.png", "00001-of-00002/rejected-2.png"],
    ]
    one, two = ((tmp_path / name / "scan.csv").read_text() for name in ("one", "two"))
    rows = [line.split(",") for line in one.splitlines()]
    assert one.count("id,file,position") == two.count("id,file,position") == 1
    assert {row[1] for row in rows[1:]} == {"few.fasta"}
    assert [row[::2][:2] for row in rows[5:]] == [["A/B", "1"], ["A/B", "2"], ["rejected", "1"]]
    assert rows[6][3:] == ["X", "", "2", "false"] + [""] * 20 and two.splitlines()[5].split(",")[:4] == rows[5][:4]


def test_a_complex_of_a_data_set(checkpoint, protease, tmp_path):
    """One protein, with a row for each residue of each chain, and one heat map."""
    path = make_data_set([protease], tmp_path / "complexes.parquet")
    summary = quietly(checkpoint, path, tmp_path / "out", method="wild_type_marginal")
    assert summary["chain"] == "1HVR" and summary["residues"] == 198
    assert [list(report["chains"].values()) for report in summary["chains"]] == [[99, 99]]
    assert describe(summary) == (
        "1HVR: all substitutions of 198 residues in 2 chains by wild_type_marginal, coordinates given"
    )
    rows = read_rows(tmp_path / "out" / "scan.csv")
    assert [row["position"] for row in rows] == [str(number) for number in range(1, 100)] * 2
    assert len({row["chain"] for row in rows}) == 2 and len({row["residue"] for row in rows}) == 198
    (table,) = scan_chains(
        CoordformerForMaskedLM.from_pretrained(checkpoint), PROCESSOR, [protease], "wild_type_marginal"
    )
    np.testing.assert_allclose([float(row["W"]) for row in rows], table[:, AMINO_ACIDS.index("W")], atol=1e-4)


def test_letters_of_a_data_set_that_no_substitution_has(checkpoint, tmp_path):
    """A chain with selenocysteine is named, and does not cost the others."""
    rows = make_rows([5, 6])
    rows = rows.remove_columns("sequence").add_column("sequence", ["MKUVA", "MKVAWA"])
    rows.to_parquet(tmp_path / "chains.parquet")
    summary = quietly(checkpoint, tmp_path / "chains.parquet", tmp_path / "out", method="wild_type_marginal")
    assert [report["chain"] for report in summary["chains"]] == ["chain 1"]
    assert "\tchain 0\tletters 'U' in the sequence; use " in (tmp_path / "out" / "rejected.tsv").read_text()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("1orc.pdb.gz", ["--mutants", "A1G"], "1ORC_A: Mutant A1G: A1 (position 1 of chain A) is M, not A"),
        (
            "1orc.pdb.gz",
            ["--scan", "--numbering", "file", "--offset", "3"],
            "`offset` is 3, but the file's own numbers",
        ),
        ("1orc.pdb.gz", ["--mutants", "empty.csv"], "empty.csv has no mutants"),
        (
            "1orc.pdb.gz",
            ["--mutants", "nothing.csv"],
            "nothing.csv has the columns (none); the column mutant",
        ),
        ("1orc.pdb.gz", ["--mutants", "other.csv"], "other.csv has the columns variant, DMS_score; the column mutant"),
        (
            "1orc.pdb.gz",
            ["--mutants", "excel.csv"],
            "excel.csv has the columns id;mutant; put commas between the columns",
        ),
        ("1orc.pdb.gz", ["--mutants", "large.csv"], "large.csv has the columns ID, Mutant; write Mutant as mutant"),
        (
            "1orc.pdb.gz",
            ["--mutants", "headless.csv"],
            "headless.csv has the columns M1A; put a line with the names of",
        ),
        ("1orc.pdb.gz", ["--mutants", "odd.csv"], "odd.csv: DMS_score of M1A is 'high'; give a number"),
        ("1orc.pdb.gz", ["--mutants", "absent.csv"], "absent.csv"),
        ("1orc.pdb.gz", ["--mutants", "gap.csv"], "gap.csv, row 2: the column mutant is empty"),
        ("1orc.pdb.gz", ["--mutants", "latin.csv"], "latin.csv is no UTF-8 ("),
        ("unknown.fasta", ["--scan"], "Chain x has no residue that is known, only X"),
        (
            "1BD2.cif.gz",
            ["--mutants", "A1G"],
            "several, such as 1BD2_A, 1BD2_B, 1BD2_C, 1BD2_D, 1BD2_E; choose one",
        ),
        (
            "1BD2.cif.gz",
            ["--mutants", "LC1A", "GC4P:LC1A", "wt"],
            "The mutants name chain C of 1BD2, but each chain of a file is read by itself; add --complex to score all "
            "its chains together, or --chains C to score only those of chain C, and this chain alone.",
        ),
        (
            "1BD2.cif.gz",
            ["--mutants", "LC1A", "A1G"],
            "Some mutants name chain C of 1BD2, but each chain of a file is read by itself; add --complex to score all "
            "its chains together; A1G names none of its chains (A, B, C, ...), which the others do as in LC1A.",
        ),
        (
            "1BD2.cif.gz",
            ["--mutants", "A1G"],
            "column id; --complex scores all together, with mutants that name chains, as in SA195A of chain A.",
        ),
        (
            "1orc.pdb.gz",
            ["--mutants", "M1A", "A1G", "Q4C"],
            "not Q; mend the letter or the number. None is scored, since 2 of 3 mutants are wrong.",
        ),
        (
            "1orc.pdb.gz",
            ["--mutants", "M1A", "--residues", "A1"],
            "`residues` goes with a scan or `sequences`; mutants name their own.",
        ),
        ("1orc.pdb.gz", ["--scan", "--residues", "B1-B3"], "Residues 'B1-B3': there is no chain B, only 'A'; write it"),
        ("1BD2.cif.gz", ["--scan", "--chains", "Z"], "1BD2.cif.gz: no protein chain Z"),
        ("1orc.pdb.gz", ["--scan", "--window", "1"], "`window` is 1; it must be at least 2"),
        ("1orc.pdb.gz", ["--scan", "--token_budget", "0"], "`token_budget` is 0; it must be at least 1"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(checkpoint, tmp_path, capsys, name, options, message):
    for file, text in (
        ("empty.csv", "mutant,DMS_score\n"), ("nothing.csv", ""), ("other.csv", "variant,DMS_score\nM1A,1\n"),
        ("odd.csv", "mutant,DMS_score\nM1A,high\n"), ("gap.csv", "mutant,DMS_score\nM1A,1\n,\n"),
        ("excel.csv", "id;mutant\n1ORC_A;M1A\n"), ("large.csv", "ID,Mutant\n1ORC_A,M1A\n"), ("headless.csv", "M1A\n"),
        ("latin.csv", "mutant,note\nM1A,\u00e4\n"), ("unknown.fasta", ">x\nXXX\n"),
    ):  # fmt: skip
        (tmp_path / file).write_text(text, encoding="latin-1")
    path = STRUCTURES / name if name.endswith(".gz") else tmp_path / name
    options = [str(tmp_path / each) if each.endswith(".csv") else each for each in options]
    assert main(["score", str(checkpoint), str(path), "--output", str(tmp_path / "out"), "--quiet", *options]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("coordformer: ")]
    assert len(lines) == 1 and message in lines[0], lines


def test_bad_arguments_of_scoring_are_named(checkpoint, tmp_path, chain):
    for scoring in (
        lambda: score_mutants(make_model(), PROCESSOR, chain, ["M1A"], "other"),
        lambda: quietly(checkpoint, STRUCTURES / "1orc.pdb.gz", tmp_path, method="other"),
    ):
        with pytest.raises(ValueError, match="`method` is 'other'; choose one of wild_type_marginal, masked_marginal"):
            scoring()
    for scoring in (
        lambda: score_mutants(make_model(), PROCESSOR, chain, []),
        lambda: quietly(checkpoint, STRUCTURES / "1orc.pdb.gz", tmp_path, mutants=[]),
    ):
        with pytest.raises(ValueError, match="There is nothing to score: the list of mutants is empty"):
            scoring()
