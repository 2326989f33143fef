"""The classifier and the contact head that come with the repository: what their cards say, and by the command."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CHAINS, STRUCTURES
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoProcessor

from coordformer.data.batching import fetch_rows
from coordformer.data.contacts import contact_labels
from coordformer.data.rows import load_rows
from coordformer.hub.card import check_card, training_facts
from coordformer.inference.annotate import SHIPPED as CLASSIFIER
from coordformer.inference.annotate import annotate, predict_terms
from coordformer.inference.contacts import SHIPPED as CONTACTS
from coordformer.inference.contacts import contacts, measure_precision
from coordformer.inference.metrics import RANGES

ROOT = Path(__file__).parents[2]
FOLDERS = [ROOT / CLASSIFIER, ROOT / CONTACTS]
HEADLESS = ROOT / "hub_cards" / "coordformer-1M-pdb"
STRUCTURE = STRUCTURES / "1orc.pdb.gz"


def evaluation_of(folder):
    return json.loads((folder / "evaluation.json").read_text())["results"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_folder_is_small_and_says_how_it_was_made(folder):
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 5e6
    weights = load_file(folder / "model.safetensors")
    precise = {name for name, values in weights.items() if values.dtype == torch.float32}
    assert precise == {name for name in weights if "coordinate_embedding" in name or "rotary" in name}
    facts, card = training_facts(folder), (folder / "README.md").read_text()
    assert check_card(folder / "README.md")["license"] == "apache-2.0"
    assert {"command", "SHA-256 of the data", "updates", "trained before"} <= facts.keys()
    assert all(f"| {name} | {value} |" in card for name, value in facts.items())
    assert re.fullmatch("[0-9a-f]{40}", facts["commit of the code"]), "of code that was committed"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_encoder_is_that_of_the_masked_language_model(folder):
    """It was frozen; the edge of another chain came with version 0.2.0."""
    before, weights = load_file(HEADLESS / "model.safetensors"), load_file(folder / "model.safetensors")
    new = {name for name in weights.keys() - before.keys() if not name.endswith("other_chain")}
    assert new and all("contact_head." in name or name.startswith("classifier.") for name in new)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights.items() if name in before)
    assert all(name in weights for name in before if not name.startswith("lm_head."))


def test_the_card_of_the_classifier_has_what_was_measured():
    """Better than term frequencies, with coordinates and without, and the intervals hold the values."""
    card, rows = (ROOT / CLASSIFIER / "README.md").read_text(), evaluation_of(ROOT / CLASSIFIER)
    for row in rows:
        for measure in ("micro_aupr", "protein_centric_fmax"):
            low, high = row[f"{measure}_interval"]
            assert low <= row[measure] <= high
            assert f"{row[measure]:.3f} ({low:.3f} to {high:.3f})" in card
    found = {row["model"]: row["micro_aupr_interval"] for row in rows if row["test_chains"] == "all"}
    assert min(found[f"coordinates {which}"][0] for which in ("given", "not given")) > found["term frequencies"][1]
    assert "**This classifier is weak.**" in card


def test_labels_of_the_classifier_are_ec_numbers():
    config = AutoModelForSequenceClassification.from_pretrained(ROOT / CLASSIFIER).config
    listed = (ROOT / "examples" / "function" / "results" / "terms.csv").read_text().splitlines()[1:]
    labels = [config.id2label[number] for number in range(config.num_labels)]
    assert labels == [line.partition(",")[0] for line in listed] and len(set(labels)) == 538
    assert all(re.fullmatch(r"[1-7]\.\d+\.(\d+|-)\.(n?\d+|-)", label) for label in labels)
    assert config.label2id == {label: number for number, label in config.id2label.items()}
    assert config.problem_type == "multi_label_classification"


def test_held_out_chains_get_the_terms_that_were_scored():
    """DeepFRI's test chains that are here: the card's numbers are of these predictions, in float32."""
    carded = json.loads((ROOT / CLASSIFIER / "evaluation.json").read_text())["most_probable"]
    rows = load_rows(CHAINS)
    rows = rows.select([number for number, name in enumerate(rows["id"][:]) if name in carded])
    model = AutoModelForSequenceClassification.from_pretrained(ROOT / CLASSIFIER).eval()
    processor = AutoProcessor.from_pretrained(ROOT / CLASSIFIER)
    chains = fetch_rows(rows, range(len(rows)))
    found = predict_terms(model, chains, processor.tokenizer)
    assert len(chains) > 40 and found.shape == (len(chains), 538)
    terms, probabilities = zip(*(carded[chain["id"]] for chain in chains), strict=True)
    numbers = [model.config.label2id[term] for term in terms]
    np.testing.assert_allclose(found[np.arange(len(chains)), numbers], probabilities, atol=0.05)
    assert np.mean(found.argmax(axis=1) == numbers) > 0.9
    not_given = predict_terms(model, chains, processor.tokenizer, without_coords=True)
    assert np.abs(not_given - found).max() > 0.1, "coordinates matter"


def test_held_out_contacts_are_as_the_card_says():
    """On every eighth chain, with a margin for the choice; and the card says the same as its numbers."""
    model = AutoModel.from_pretrained(ROOT / CONTACTS).eval()
    processor = AutoProcessor.from_pretrained(ROOT / CONTACTS)
    card, results = (ROOT / CONTACTS / "README.md").read_text(), evaluation_of(ROOT / CONTACTS)
    carded = {row["run"]: row for row in results if (row["range"], row["cut"]) == ("long", "L")}
    rows = load_rows(CHAINS, "valid").select(range(0, 400, 8))
    for run, without_coords, margin in (("coordinates given", False, 0.1), ("coordinates not given", True, 0.02)):
        table = measure_precision(model, rows, processor.tokenizer, without_coords=without_coords, progress=False)
        found = np.nanmean(table[:, list(RANGES).index("long"), 0])
        mean, low, high = (carded[run][name] for name in ("precision", "low", "high"))
        np.testing.assert_allclose(found, mean, atol=margin)
        assert f"{100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f})" in card
    assert "read off, not predicted" in card
    assert carded["coordinates not given"]["low"] < carded["nearest in sequence"]["precision"]


def test_a_structure_gets_ec_numbers():
    """As many as asked for, and the same as of the model itself; 1ORC is no enzyme, so none is likely."""
    terms = annotate(ROOT / CLASSIFIER, STRUCTURE, threshold=0, progress=False)["1ORC_A"]
    assert len(terms) == 10 and all(0 < each["probability"] < 0.5 and each["name"] == "" for each in terms)
    model = AutoModelForSequenceClassification.from_pretrained(ROOT / CLASSIFIER).eval()
    batch = AutoProcessor.from_pretrained(ROOT / CLASSIFIER)(structures=STRUCTURE)
    with torch.no_grad():
        probabilities = model(**batch).logits[0].sigmoid()
    assert probabilities.shape == (538,)
    best = int(probabilities.argmax())
    assert terms[0]["term"] == model.config.id2label[best]
    assert terms[0]["probability"] == pytest.approx(float(probabilities[best]), abs=1e-5)


def test_a_structure_gets_contacts(tmp_path):
    summary = contacts(ROOT / CONTACTS, STRUCTURE, tmp_path, progress=False)
    (chain,) = summary["chains"]
    arrays = np.load(tmp_path / f"{chain['file']}.npz")
    batch = AutoProcessor.from_pretrained(ROOT / CONTACTS)(structures=STRUCTURE)
    labels = contact_labels(batch["coords"][0, 1:-1]).numpy()
    assert arrays["probabilities"].shape == labels.shape and np.array_equal(arrays["contacts"], labels)
    assert arrays["probabilities"][labels == 1].mean() > 0.3 > 0.1 > arrays["probabilities"][labels == 0].mean()
    assert chain["precision"]["long"]["L/5"] > 0.5


def test_a_model_without_the_head_names_the_folder_that_has_one(tmp_path):
    with pytest.raises(ValueError, match=f"coordformer-1M-pdb has no contact head.*; use {CONTACTS} of the rep.*or tr"):
        contacts(HEADLESS, STRUCTURE, tmp_path / "contacts", progress=False)
    with pytest.raises(ValueError, match=f"coordformer-1M-pdb has no classifier.*; use {CLASSIFIER} of the rep.*or tr"):
        annotate(HEADLESS, STRUCTURE, progress=False)
