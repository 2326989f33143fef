"""`pipeline`: sequences with the stock tasks, structures with those of the package, in it and from copied code."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CHAINS, STRUCTURES, make_model
from transformers import AutoModelForMaskedLM, pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from coordformer import CoordformerForContactPrediction, CoordformerProcessor, design, read_chains, read_complex
from coordformer.data.batching import fetch_rows
from coordformer.data.rows import chain_to_row, load_rows
from coordformer.hub.export import export
from coordformer.inference.contacts import predict_contacts
from coordformer.inference.marginals import log_probabilities, scan_chains, score_mutants
from coordformer.model import structure_parsing
from coordformer.model.chain import AMINO_ACIDS
from coordformer.model.embedding import embed_chains
from coordformer.model.pipeline_coordformer import (
    CUSTOM_PIPELINES,
    ProteinDesignPipeline,
    ProteinVariantScoringPipeline,
)
from coordformer.model.windows import window_around

STRUCTURE = STRUCTURES / "1orc.pdb.gz"  # one chain of 71 residues
COMPLEX = STRUCTURES / "1A8O.cif.gz"
PROTEASE = STRUCTURES / "1hvr.pdb.gz"  # two chains of 99 residues each
TASKS = ("protein-fill-mask", "protein-feature-extraction", "protein-contact-prediction")
BATCHED = pytest.mark.parametrize("batch_size", [1, 3])


def save(model, folder: Path) -> str:
    model.save_pretrained(folder)
    CoordformerProcessor(coordinate_atoms=model.config.coordinate_atoms).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """A masked language model with a contact head, whose outputs are far from uniform."""
    torch.manual_seed(0)
    model = make_model(contact_head=True)
    torch.nn.init.normal_(model.coordformer.contact_head.weight, std=30.0)
    return save(model, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def model(checkpoint):
    return AutoModelForMaskedLM.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def chain():
    return read_chains(STRUCTURE)[0]


@pytest.fixture(scope="module")
def rows():
    """Three chains of a data set, of different lengths, with residues that were not observed."""
    rows = load_rows(CHAINS, "valid")
    return fetch_rows(rows, np.argsort(rows["length"][:], kind="stable")[[0, 5, 20]])


def table(predictions) -> np.ndarray:
    """(predictions, 20) probabilities in the order of the letters."""
    return np.array([[each["probabilities"][letter] for letter in AMINO_ACIDS] for each in predictions])


# Sequences


@BATCHED
def test_fill_mask_of_sequences(checkpoint, model, batch_size):
    """With spaces between the letters or without."""
    sequences = ["MK<mask>V", "MKTAYIAKQR<mask>QISFVK", "M K T A Y I A K Q R <mask> Q I S F V K"]
    fill = pipeline("fill-mask", model=checkpoint)
    results = fill(sequences, targets=list(AMINO_ACIDS), top_k=20, batch_size=batch_size)
    for sequence, guesses in zip(sequences, results, strict=True):
        batch = CoordformerProcessor()(sequence)
        probabilities = model(**batch).logits[batch["input_ids"] == 32][0].softmax(dim=-1)
        assert {guess["token_str"] for guess in guesses} == set(AMINO_ACIDS)
        for guess in guesses:
            assert guess["score"] == pytest.approx(probabilities[guess["token"]].item(), abs=1e-5)
            assert guess["sequence"] == sequence.replace(" ", "").replace("<mask>", guess["token_str"])


@BATCHED
def test_feature_extraction_of_sequences(checkpoint, model, batch_size):
    """Of the tokens of a sequence; the stock pipeline returns the padding of a batch, too."""
    sequences = ["MKV", "MKTAYIAKQRQISFVK", "M K T A Y I A K Q R Q I S F V K"]
    features = pipeline("feature-extraction", model=checkpoint)(sequences, batch_size=batch_size, return_tensors=True)
    for sequence, states in zip(sequences, features, strict=True):
        batch = CoordformerProcessor()(sequence)
        expected = model.base_model(**batch).last_hidden_state
        torch.testing.assert_close(states[:, : expected.shape[1]], expected, atol=1e-5, rtol=0)


# Structures


@BATCHED
@pytest.mark.parametrize("window", [1024, 30])
def test_masked_residues_are_masked_marginals(checkpoint, model, chain, rows, batch_size, window):
    fill = pipeline("protein-fill-mask", model=checkpoint, batch_size=batch_size, top_k=20)
    positions = [71, 1, 2, 3, 40]
    predictions = fill(str(STRUCTURE), positions=positions, window=window)[0]["predictions"]
    assert [each["position"] for each in predictions] == positions
    assert [each["residue"] for each in predictions] == [chain.sequence[position - 1] for position in positions]
    indices = np.array(positions) - 1
    (expected,) = log_probabilities(model, fill.processor, [(chain, indices)], masked=True, window=window)
    np.testing.assert_allclose(table(predictions), np.exp(expected), atol=1e-5)

    together = fill([rows[0], STRUCTURE], window=window)
    assert together[0][0]["id"] == rows[0]["id"]
    assert [len(chains[0]["predictions"]) for chains in together] == [len(rows[0]["sequence"]), 71]
    np.testing.assert_allclose(table(together[1][0]["predictions"])[indices], np.exp(expected), atol=1e-5)


def test_best_letters_come_first(checkpoint):
    fill = pipeline("protein-fill-mask", model=checkpoint)
    whole, cut = (fill(STRUCTURE, positions=[9], **options)[0]["predictions"][0] for options in ({"top_k": 20}, {}))
    values = list(whole["probabilities"].values())
    assert values == sorted(values, reverse=True) and sum(values) == pytest.approx(1)
    assert list(cut["probabilities"].items()) == list(whole["probabilities"].items())[:5]


@BATCHED
def test_residues_masked_in_the_sequence_are_predicted_together(checkpoint, model, chain, batch_size):
    sequence = chain.sequence[:10] + "<mask><mask>" + chain.sequence[12:70] + "<mask>"
    protein = {"id": "design", "sequence": sequence, "coords": chain.coords}
    fill = pipeline("protein-fill-mask", model=checkpoint, top_k=20)
    result = fill([protein, {"sequence": "MK<mask>"}], batch_size=batch_size)
    assert [chains[0]["id"] for chains in result] == ["design", None]
    predictions = result[0][0]["predictions"]
    assert result[0][0]["sequence"] == sequence
    assert [(each["position"], each["residue"]) for each in predictions] == [(n, "<mask>") for n in (11, 12, 71)]
    batch = fill.processor(sequence, coords=chain.coords)
    letters = fill.processor.tokenizer.convert_tokens_to_ids(list(AMINO_ACIDS))
    expected = model(**batch).logits[0, [11, 12, 71]][:, letters].softmax(dim=-1)
    np.testing.assert_allclose(table(predictions), expected.detach(), atol=1e-5)

    # In windows: each is read off the one around it, in which the others stay masked.
    predictions = fill(protein, window=30, batch_size=batch_size)[0]["predictions"]
    assert [each["position"] for each in predictions] == [11, 12, 71]
    for found, index in zip(table(predictions), (10, 11, 70), strict=True):
        first = int(window_around(np.array(index), 71, 30))
        places = [0, *range(first + 1, first + 31), 72]
        logits = model(**{name: values[:, places] for name, values in batch.items()}).logits
        expected = logits[0, index - first + 1, letters].softmax(dim=-1)
        np.testing.assert_allclose(found, expected.detach(), atol=1e-5)


@BATCHED
@pytest.mark.parametrize("window", [1024, 30])
def test_embeddings_are_those_of_embed(checkpoint, model, rows, batch_size, window):
    extract = pipeline("protein-feature-extraction", model=checkpoint, window=window)
    result = extract([*rows, str(COMPLEX)], batch_size=batch_size)
    chains = [*rows, *read_chains(COMPLEX)]
    for pooling, name in (("mean", "embedding"), (None, "residue_embeddings")):
        expected = embed_chains(model, chains, extract.processor.tokenizer, pooling, window=window)
        found = [each[name] for chains in result for each in chains]
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == np.float32
            np.testing.assert_allclose(one, other, atol=1e-5)


@BATCHED
@pytest.mark.parametrize("window", [1024, 30])
def test_contacts_are_those_of_predict_contacts(checkpoint, model, rows, batch_size, window):
    predict = pipeline("protein-contact-prediction", model=checkpoint)
    maps = dict(predict_contacts(model, rows, predict.processor.tokenizer, window=window))
    for number, [found] in enumerate(predict(rows, window=window, batch_size=batch_size)):
        expected = maps[number]
        assert found["probabilities"].dtype == np.float32 and np.nanstd(expected) > 0.1
        np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)


def test_contacts_of_a_trained_head(tmp_path, chain):
    """The head of `CoordformerForContactPrediction` is found, too."""
    source = make_model("base", contact_head=True)
    trained = CoordformerForContactPrediction(source.config).eval()
    with torch.no_grad():
        trained.coordformer.contact_head.weight.normal_(std=30.0)
    predict = pipeline("protein-contact-prediction", model=save(trained, tmp_path))
    ((_, expected),) = predict_contacts(trained, [chain], predict.processor.tokenizer)
    np.testing.assert_allclose(predict(chain)[0]["probabilities"], expected, atol=1e-5)


def test_a_protein_may_come_in_several_ways(checkpoint, chain):
    extract = pipeline("protein-feature-extraction", model=checkpoint)
    proteins = [
        STRUCTURE,
        chain,
        {"sequence": " ".join(chain.sequence), "coords": chain.coords[:, 0]},
        {"id": "row", "sequence": chain.sequence, "coords": chain.coords.reshape(-1).tolist(), "atoms": ["CA"]},
    ]
    results = extract(proteins)
    assert [chains[0]["id"] for chains in results] == ["1ORC_A", "1ORC_A", None, "row"]
    assert {chains[0]["sequence"] for chains in results} == {chain.sequence}
    for [found] in results[1:]:
        np.testing.assert_array_equal(found["embedding"], results[0][0]["embedding"])


def test_options_reach_the_reader_and_the_model(checkpoint, chain, tmp_path):
    extract = pipeline("protein-feature-extraction", model=checkpoint)
    [every] = extract([STRUCTURES / "1BD2.cif.gz"], batch_size=3)
    assert [each["id"] for each in every] == [f"1BD2_{name}" for name in "ABCDE"]
    [one] = extract(STRUCTURES / "1BD2.cif.gz", chain_ids="C")
    assert one["id"] == "1BD2_C"
    np.testing.assert_allclose(one["embedding"], every[2]["embedding"], atol=1e-5)

    [given], [not_given] = extract(STRUCTURE), extract(STRUCTURE, without_coords=True)
    [sequence] = extract({"sequence": chain.sequence})
    np.testing.assert_allclose(not_given["embedding"], sequence["embedding"], atol=1e-6)
    assert np.abs(given["embedding"] - not_given["embedding"]).max() > 0.01
    (tmp_path / "one.fasta").write_text(f">one\n{chain.sequence}\n")
    np.testing.assert_array_equal(extract(tmp_path / "one.fasta")[0]["embedding"], sequence["embedding"])


@BATCHED
def test_a_complex_is_one_protein(checkpoint, model, batch_size):
    """As a file, an object, a row and a dictionary; in a batch with a chain, whose positions have no gap."""
    both, alone = read_complex(PROTEASE), read_chains(STRUCTURE)[0]
    row = {**chain_to_row(both), "residue_numbers": list(both.residue_numbers)}
    arrays = {name: getattr(both, name) for name in ("id", "sequence", "coords", "positions", "residue_numbers")}
    arrays |= {"chain_names": ("A", "B"), "chain_lengths": np.array([99, 99])}
    extract = pipeline("protein-feature-extraction", model=checkpoint, batch_size=batch_size)
    [whole] = extract(str(PROTEASE), as_complex=True)
    results = extract([alone, both, alone, row, {"sequence": alone.sequence, "coords": alone.coords}, arrays])
    expected = embed_chains(model, [both, alone], extract.processor.tokenizer, None)
    for [found] in [[whole], results[1], results[3], results[5]]:
        assert (found["id"], found["sequence"]) == ("1HVR", both.sequence)
        assert found["residue_numbers"] == list(both.residue_numbers)
        assert (found["chain_names"], found["chain_lengths"]) == (["A", "B"], [99, 99])
        np.testing.assert_allclose(found["residue_embeddings"], expected[0], atol=1e-5)
    for [found] in (results[0], results[2], results[4]):
        assert "chain_names" not in found
        np.testing.assert_allclose(found["residue_embeddings"], expected[1], atol=1e-5)
    assert results[0][0]["residue_numbers"] == list(alone.residue_numbers) and results[4][0]["residue_numbers"] is None
    [apart, _] = extract(PROTEASE)
    assert np.abs(apart["residue_embeddings"] - whole["residue_embeddings"][:99]).max() > 0.01
    [assembly] = extract(COMPLEX, assembly=1)
    assert assembly["chain_names"] == ["A", "A-2"] and len(assembly["sequence"]) == 140


@BATCHED
def test_contacts_and_gaps(checkpoint, model, batch_size):
    """A chain with a gap, and one without."""
    predict = pipeline("protein-contact-prediction", model=checkpoint, batch_size=batch_size)
    alone = read_chains(STRUCTURE)[0]
    positions = alone.positions + 40 * (np.arange(71) >= 30)
    gapped = dataclasses.replace(alone, positions=positions)
    maps = dict(predict_contacts(model, [gapped, alone], predict.processor.tokenizer))
    found = [chains[0]["probabilities"] for chains in predict([gapped, alone, gapped])]
    for probabilities, number in zip(found, (0, 1, 0), strict=True):
        np.testing.assert_allclose(probabilities, maps[number], atol=1e-5)
    assert np.abs(maps[0] - maps[1]).max() > 0.01


@BATCHED
def test_residues_by_their_own_numbers(checkpoint, model, chain, batch_size):
    """Cro, which has 56A to 56E; a complex, whose chains share numbers; and a file of which one chain is asked for."""
    fill = pipeline("protein-fill-mask", model=checkpoint, batch_size=batch_size, top_k=20)
    [found] = fill(STRUCTURE, residues="A56-A57 A1 66")
    named = [(each["position"], each["residue_number"], each["residue"]) for each in found["predictions"]]
    numbers = ["56", "56A", "56B", "56C", "56D", "56E", "57"]
    letters = zip(range(56, 63), numbers, chain.sequence[55:62], strict=True)
    assert named == [*letters, (1, "1", "M"), (71, "66", "A")] and "chain" not in found["predictions"][0]
    [same] = fill(STRUCTURE, positions=[position for position, *_ in named])
    assert same["predictions"] == found["predictions"]

    both = read_complex(PROTEASE)
    [found] = fill(both, residues=["B30", "A99-A99"])
    named = [(each["position"], each["chain"], each["residue_number"]) for each in found["predictions"]]
    assert named == [(129, "B", "30"), (99, "A", "99")]
    (expected,) = log_probabilities(model, fill.processor, [(both, [128, 98])], masked=True)
    np.testing.assert_allclose(table(found["predictions"]), np.exp(expected), atol=1e-5)

    several = fill(PROTEASE, residues="B30-B32")
    assert [each["id"] for each in several] == ["1HVR_B"]
    assert [each["residue_number"] for each in several[0]["predictions"]] == ["30", "31", "32"]
    [sequence] = fill({"sequence": chain.sequence}, residues="3-4")
    assert [(each["position"], each["residue_number"]) for each in sequence["predictions"]] == [(3, None), (4, None)]


@BATCHED
def test_masks_in_a_complex(checkpoint, model, batch_size):
    """Of the dictionary that a complex with masked residues is."""
    both = read_complex(PROTEASE)
    sequence = both.sequence[:98] + "<mask>" + both.sequence[99:101] + "<mask>" + both.sequence[102:]
    protein = {"id": "design", "sequence": sequence, "coords": both.coords, "positions": both.positions}
    protein |= {"chain_lengths": both.chain_lengths, "residue_numbers": both.residue_numbers}
    fill = pipeline("protein-fill-mask", model=checkpoint, top_k=20)
    [found] = fill(protein, batch_size=batch_size)
    named = [(each["position"], each["chain"], each["residue_number"]) for each in found["predictions"]]
    assert named == [(99, "1", "99"), (102, "2", "3")] and found["chain_names"] == ["1", "2"]
    batch = fill.processor(chains=[both])
    batch["input_ids"][0, [99, 102]] = fill.processor.tokenizer.mask_token_id
    letters = fill.processor.tokenizer.convert_tokens_to_ids(list(AMINO_ACIDS))
    expected = model(**batch).logits[0, [99, 102]][:, letters].softmax(dim=-1)
    np.testing.assert_allclose(table(found["predictions"]), expected.detach(), atol=1e-5)


@BATCHED
def test_several_atoms(tmp_path, batch_size):
    model = make_model("base", coordinate_atoms=("N", "CA", "C"))
    extract = pipeline("protein-feature-extraction", model=save(model, tmp_path), batch_size=batch_size)
    chains = [read_chains(path, atoms=("N", "CA", "C"))[0] for path in (STRUCTURE, COMPLEX)]
    arrays = {"sequence": chains[1].sequence, "coords": chains[1].coords}
    expected = embed_chains(model, chains, extract.processor.tokenizer)
    for [found], vector in zip(extract([STRUCTURE, arrays]), expected, strict=True):
        np.testing.assert_allclose(found["embedding"], vector, atol=1e-5)


def test_half_precision_leaves_coordinates_alone(checkpoint, chain):
    extract = pipeline("protein-feature-extraction", model=checkpoint, dtype="bfloat16")
    assert extract.model.dtype == torch.bfloat16
    seen = []
    extract.model.coordinate_embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    [found] = extract(chain)
    expected = chain.coords[:, 0] - np.nanmean(chain.coords[:, 0], axis=0)
    np.testing.assert_allclose(seen[0][0, 1:-1, 0], np.nan_to_num(expected), atol=1e-4)
    assert found["embedding"].dtype == np.float32


def test_unusable_input_is_named(checkpoint, tmp_path, monkeypatch):
    fill, extract, predict = (pipeline(task, model=checkpoint) for task in TASKS)

    with pytest.raises(FileNotFoundError, match="MKTAYIAK: no such file; .* give a sequence as {'sequence': ...}"):
        fill("MKTAYIAK")
    (tmp_path / "no.cif").write_text("nothing, 1\n")
    with pytest.raises(ValueError, match="no.cif: neither mmCIF"):
        extract(str(tmp_path / "no.cif"))
    with pytest.raises(ValueError, match="no protein chain Z"):
        extract(STRUCTURE, chain_ids="Z")
    with pytest.raises(ValueError, match="1orc.pdb.gz: min_plddt=70 needs a predicted model"):
        extract(STRUCTURE, min_plddt=70)
    for protein in (5, {"coords": [[0, 0, 0]]}):
        with pytest.raises(ValueError, match=f"cannot be read from {type(protein).__name__}; give the path"):
            extract(protein)
    with pytest.raises(ValueError, match="`chain_ids` and `min_plddt` go with files"):
        extract({"sequence": "MKV"}, chain_ids="A")
    with pytest.raises(ValueError, match="has shape .2, 3.; its 3 residues"):
        extract({"sequence": "MKV", "coords": np.zeros((2, 3))})
    with pytest.raises(ValueError, match="`window` is 1;"):
        predict(STRUCTURE, window=1)

    for positions in ([0], [72], [], 3, ["a"]):
        with pytest.raises(ValueError, match="`positions` is .*from 1 to 71, the residues of chain 1ORC_A"):
            fill(STRUCTURE, positions=positions)
    with pytest.raises(ValueError, match=r"`positions` is \[1\], but the sequence has <mask>"):
        fill({"sequence": "MK<mask>"}, positions=[1])
    for residues, message in (
        ("B1", "Residues 'B1': there is no chain B, only 'A'; write it like A1."),
        ("A56F", "of 56 there is A56, A56A, A56B, A56C, A56D, A56E"),
    ):
        with pytest.raises(ValueError, match=message):
            fill(STRUCTURE, residues=residues)
    with pytest.raises(ValueError, match="1 may be A1 .position 1 of chain A. or B1 .position 1 of chain B.; write A1"):
        fill(PROTEASE, residues="1")
    with pytest.raises(ValueError, match=r"`positions` is \[1\] and `residues` 'A1'; choose residues one way"):
        fill(STRUCTURE, positions=[1], residues="A1")
    with pytest.raises(ValueError, match="`residues` is 1, but the sequence has <mask>"):
        fill({"sequence": "MK<mask>"}, residues="1")
    with pytest.raises(ValueError, match="and so do `as_complex` and `assembly`; chains are"):
        extract({"sequence": "MKV"}, as_complex=True)
    with pytest.raises(ValueError, match="Chain short: residues with residue_numbers are 2, where 3 is right"):
        extract({"id": "short", "sequence": "MKV", "residue_numbers": ["1", "2"]})
    with pytest.raises(ValueError, match="`top_k` is 0;"):
        fill(STRUCTURE, top_k=0)

    headless = pipeline("protein-contact-prediction", model=save(make_model("base"), tmp_path / "headless"))
    with pytest.raises(ValueError, match="no contact head; train"):
        headless(STRUCTURE)

    monkeypatch.setattr(structure_parsing, "gemmi", None)
    with pytest.raises(ImportError, match="needs gemmi: pip install gemmi"):
        fill(STRUCTURE)
    assert len(fill({"sequence": "MKV"})[0]["predictions"]) == 3


# Design and variants


@pytest.fixture(scope="module")
def make_pipeline(model):
    """Of a class, since `import coordformer` does not register these tasks."""
    processor = CoordformerProcessor()
    return lambda cls, **options: cls(model=model, processor=processor, **options)


@BATCHED
def test_designs_are_those_of_design(make_pipeline, model, chain, rows, batch_size):
    """Of a file, which is one complex, a chain, a row, and a dictionary, by the file's own numbers."""
    options = {"num_samples": 2, "temperature": [0.1, 1.0], "seed": 3, "rounds": 2, "omit_aa": "C"}
    designer = make_pipeline(ProteinDesignPipeline, batch_size=batch_size)
    found = designer([PROTEASE, STRUCTURE], fixed_residues="A10-A20", **options)
    for [result], path in zip(found, (PROTEASE, STRUCTURE), strict=True):
        protein = read_complex(path)
        expected = design(model, protein, fixed_residues="A10-A20", **options)
        order = np.argsort(expected.scores, kind="stable")
        assert [each["sequence"] for each in result["designs"]] == [expected.sequences[number] for number in order]
        np.testing.assert_allclose([each["score"] for each in result["designs"]], np.sort(expected.scores), atol=1e-6)
        assert result["id"] == protein.id and result["sequence"] == protein.sequence
        assert "pseudo_score" not in result["designs"][0] and result["native_score"] == expected.native_score
    assert found[0][0]["chain_names"] == ["A", "B"] and found[1][0]["chain_names"] == ["A"]

    [a, b] = designer(PROTEASE, as_complex=False, **options)
    assert (a["id"], b["id"]) == ("1HVR_A", "1HVR_B")
    several = designer(
        [chain, rows[0], {"sequence": "<mask>" * 71, "coords": chain.coords}], num_samples=1, rescore=True
    )
    assert [len(result[0]["designs"][0]["sequence"]) for result in several] == [71, len(rows[0]["sequence"]), 71]
    assert several[2][0]["designs"][0]["seq_recovery"] is None and several[2][0]["native_score"] is None
    assert all(result[0]["designs"][0]["pseudo_score"] > 0 for result in several)
    with pytest.raises(ValueError, match="1ORC: Residues .*|Residues 'A99': chain A has no residue A99"):
        designer(STRUCTURE, fixed_residues="A99")
    with pytest.raises(ValueError, match="protein: nothing is left to design"):
        designer({"sequence": "MKV"})


@BATCHED
@pytest.mark.parametrize("window", [1024, 30])
@pytest.mark.parametrize("method", ["masked_marginal", "wild_type_marginal"])
def test_variants_are_those_of_score(make_pipeline, model, chain, batch_size, window, method):
    """A scan, mutants with insertion codes, and mutants of a complex."""
    scorer = make_pipeline(ProteinVariantScoringPipeline, batch_size=batch_size, method=method, window=window)
    (expected,) = scan_chains(model, scorer.processor, [chain], method, window=window)
    [found] = scorer(STRUCTURE)
    np.testing.assert_allclose(found["scan"], expected, atol=1e-4)
    mutants = ["M1A", "WT", f"{chain.sequence[56]}56AW:T6W"]
    (expected,) = score_mutants(model, scorer.processor, [(chain, mutants)], method, window=window)
    [found], [again] = scorer([chain, STRUCTURE], mutants=mutants)
    assert [each["mutant"] for each in found["mutants"]] == mutants and found["mutants"] == again["mutants"]
    np.testing.assert_allclose([each["score"] for each in found["mutants"]], expected, atol=1e-4)
    both = read_complex(PROTEASE)
    (expected,) = score_mutants(model, scorer.processor, [(both, ["IB50G"])], method, window=window)
    [found] = scorer(PROTEASE, as_complex=True, mutants="IB50G")
    assert found["mutants"][0]["score"] == pytest.approx(expected[0], abs=1e-4)
    [counted] = scorer({"sequence": chain.sequence}, mutants=["E2A"])
    assert counted["mutants"][0]["mutant"] == "E2A"


def test_unusable_variants_are_named(make_pipeline):
    scorer = make_pipeline(ProteinVariantScoringPipeline)
    for options, message in (
        ({"method": "pseudo_likelihood"}, "`method` is 'pseudo_likelihood'; choose one of masked_marginal, wild"),
        ({"mutants": []}, "the list of mutants is empty"),
        ({"mutants": ["A1G"]}, "Mutant A1G: A1 .position 1 of chain A. is M, not A"),
    ):
        with pytest.raises(ValueError, match=message):
            scorer(STRUCTURE, **options)
    with pytest.raises(ValueError, match="The mutants are of one chain, and there are 1HVR_A, 1HVR_B; choose by"):
        scorer(PROTEASE, mutants=["P1A"])
    with pytest.raises(ValueError, match="has no residue that is known"):
        scorer({"sequence": "XXX"})


# Code that travels with a checkpoint


def test_config_json_gets_what_is_registered(checkpoint, tmp_path):
    """And a pipeline that is saved is whole: with its processor and its code."""
    for task in TASKS:
        pipe = pipeline(task, model=checkpoint)
        assert type(pipe) is PIPELINE_REGISTRY.supported_tasks[task]["impl"]
        pipe.save_pretrained(tmp_path / task)
        written = json.loads((tmp_path / task / "config.json").read_text())["custom_pipelines"]
        assert written == {task: CUSTOM_PIPELINES[task]}
        assert {"processor_config.json", "pipeline_coordformer.py", "structure.py"} <= set(os.listdir(tmp_path / task))


PROGRAM = """
import sys
sys.modules["coordformer"] = None  # not to be imported, wherever it is installed
if len(sys.argv) > 3:
    sys.modules["gemmi"] = None

import json
from transformers import pipeline

def load(task):
    return pipeline(task, model=sys.argv[1], trust_remote_code=True)

fill = load("protein-fill-mask")
print(len(fill({"sequence": "MK<mask>V"})[0]["predictions"]), load("fill-mask")("MK<mask>V", top_k=1)[0]["sequence"])
try:
    chain = fill(sys.argv[2], positions=[5, 7], top_k=20, batch_size=2)[0]
except ImportError as error:
    sys.exit(str(error))
embedding = load("protein-feature-extraction")(sys.argv[2])[0]["embedding"]
contacts = load("protein-contact-prediction")(sys.argv[2])[0]["probabilities"][0]
designs = load("protein-design")(sys.argv[2], num_samples=2, omit_aa="C")[0]["designs"]
mutants = load("protein-variant-scoring")(sys.argv[2], mutants=["M1A"])[0]["mutants"]
print(json.dumps([chain["predictions"], embedding.tolist(), contacts.tolist(), designs, mutants]))
"""


@pytest.fixture(scope="module")
def hub_folder(checkpoint, tmp_path_factory) -> Path:
    """The checkpoint with its code, as on the Hub."""
    folder = tmp_path_factory.mktemp("hub") / "model"
    export(checkpoint, folder, check=False, progress=False)
    return folder


def run_copied_code(hub_folder: Path, tmp_path: Path, *options: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    program = [sys.executable, "-c", PROGRAM, str(hub_folder), str(STRUCTURE), *options]
    return subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True)


def test_copied_code_gives_the_same(checkpoint, make_pipeline, hub_folder, tmp_path):
    done = run_copied_code(hub_folder, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    predictions, embedding, contacts, designs, mutants = json.loads(done.stdout.splitlines()[-1])
    fill, extract, predict = (pipeline(task, model=checkpoint) for task in TASKS)
    assert [each["position"] for each in predictions] == [5, 7]
    expected = fill(STRUCTURE, positions=[5, 7], top_k=20)[0]["predictions"]
    np.testing.assert_allclose(table(predictions), table(expected), atol=1e-5)
    np.testing.assert_allclose(embedding, extract(STRUCTURE)[0]["embedding"], atol=1e-5)
    np.testing.assert_allclose(contacts, predict(STRUCTURE)[0]["probabilities"][0], atol=1e-5)
    designer, scorer = map(make_pipeline, (ProteinDesignPipeline, ProteinVariantScoringPipeline))
    [expected] = designer(STRUCTURE, num_samples=2, omit_aa="C")
    assert [each["sequence"] for each in designs] == [each["sequence"] for each in expected["designs"]]
    [expected] = scorer(STRUCTURE, mutants=["M1A"])
    assert mutants[0]["score"] == pytest.approx(expected["mutants"][0]["score"], abs=1e-4)


def test_copied_code_without_gemmi(hub_folder, tmp_path):
    """Sequences still work."""
    done = run_copied_code(hub_folder, tmp_path, "without gemmi")
    assert done.returncode == 1 and done.stderr.endswith("reading structure files needs gemmi: pip install gemmi\n")
    assert done.stdout.startswith("1 MK")
