"""The models that come with the repository are what their cards say."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CHAINS
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoProcessor

from coordformer.data.rows import load_rows
from coordformer.hub.card import make_card, training_facts
from coordformer.hub.export import export
from coordformer.inference.evaluate import count_chains, letter_ids, summarize_draws
from coordformer.model.configuration_coordformer import AUTO_MAP

ROOT = Path(__file__).parents[2]
MODELS = {
    "coordformer-1M-pdb": "local, points and messages",
    "coordformer-7M-pdb": "local, points and gated messages",
}


@pytest.fixture(scope="module", params=MODELS)
def folder(request):
    return ROOT / "hub_cards" / request.param


def reports_of(folder):
    """With coordinates, and with them withheld."""
    return [json.loads((folder / f"evaluation{number}.json").read_text()) for number in ("", "_1")]


def test_the_folder_is_small_and_its_weights_are_half(folder):
    assert (folder / "model.safetensors").stat().st_size <= 20e6
    weights = load_file(folder / "model.safetensors")
    precise = {name for name, values in weights.items() if values.dtype == torch.float32}
    assert precise == {name for name in weights if "coordinate_embedding" in name or "rotary" in name}
    assert {weights[name].dtype for name in weights.keys() - precise} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["auto_map"] == AUTO_MAP


def test_the_card_has_what_was_measured_and_how_it_was_trained(folder):
    facts, reports = training_facts(folder), reports_of(folder)
    half = AutoModelForMaskedLM.from_pretrained(folder)
    card = make_card(
        half, folder.name, evaluations=reports, training=facts, log="log.csv", datasets=[], base_model=None
    )
    assert f"{card}\n" == (folder / "README.md").read_text()
    assert {"command", "commit of the code", "SHA-256 of the data", "updates"} <= facts.keys()
    assert [report["coordinates"] for report in reports] == [MODELS[folder.name], "withheld"]
    assert all(report["checkpoint"] == folder.name and report["split"] == "valid" for report in reports)


def test_held_out_chains_are_predicted_as_the_card_says(folder):
    """On every sixth of those here, with a margin for the choice; and one model serves with and without coordinates."""
    rows = load_rows(CHAINS, "valid").select(range(0, 400, 6))
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
    reports = reports_of(folder)
    for report in reports:
        counts = count_chains(
            model, rows, processor.tokenizer, "masked15", draws=1, progress=False,
            without_coords=report["coordinates"] == "withheld",
        )  # fmt: skip
        found = summarize_draws(counts, letter_ids(processor.tokenizer))
        np.testing.assert_allclose(found["perplexity"], report["masked15"]["perplexity"], rtol=0.15)
    assert reports[0]["masked15"]["perplexity"] < 0.6 * reports[1]["masked15"]["perplexity"]


def test_it_can_be_exported(folder, tmp_path):
    summary = export(folder, tmp_path / folder.name, evaluations=[folder / "evaluation.json"], progress=False)
    assert summary["dtype"] == "bfloat16" and summary["checked"]
