"""The model that comes with the repository is what its card says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CHAINS
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoProcessor

from coordformer.configuration_coordformer import AUTO_MAP
from coordformer.dataset import load_rows
from coordformer.evaluation import count_chains, letter_ids, summarise_draws
from coordformer.export import export, make_card, training_facts

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "hub_cards" / "coordformer-1M-pdb"
REPORTS = [json.loads((FOLDER / f"evaluation{number}.json").read_text()) for number in ("", "_1")]


@pytest.fixture(scope="module")
def model():
    return AutoModelForMaskedLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def test_the_folder_is_small_and_its_weights_are_half():
    assert (FOLDER / "model.safetensors").stat().st_size <= 20e6
    weights = load_file(FOLDER / "model.safetensors")
    precise = {name for name, values in weights.items() if values.dtype == torch.float32}
    assert precise == {name for name in weights if "coordinate_embedding" in name or "rotary" in name}
    assert {weights[name].dtype for name in weights.keys() - precise} == {torch.bfloat16}
    assert json.loads((FOLDER / "config.json").read_text())["auto_map"] == AUTO_MAP


def test_the_card_has_what_was_measured_and_how_it_was_trained(model):
    facts = training_facts(FOLDER)
    half = AutoModelForMaskedLM.from_pretrained(FOLDER)
    card = make_card(
        half, FOLDER.name, evaluations=REPORTS, training=facts, log="log.csv", datasets=[], base_model=None
    )
    assert f"{card}\n" == (FOLDER / "README.md").read_text()
    assert {"command", "commit of the code", "SHA-256 of the data", "updates"} <= facts.keys()
    assert [report["coordinates"] for report in REPORTS] == ["local, points and messages", "withheld"]
    assert all(report["checkpoint"] == FOLDER.name and report["split"] == "valid" for report in REPORTS)


def test_held_out_chains_are_predicted_as_the_card_says(model):
    """On 60 of them, with a margin for the choice; and one model serves with and without coordinates."""
    rows = load_rows(CHAINS, "valid").select(range(60))
    processor = AutoProcessor.from_pretrained(FOLDER)
    for report in REPORTS:
        counts = count_chains(
            model, rows, processor.tokenizer, "masked15", draws=1, progress=False,
            without_coords=report["coordinates"] == "withheld",
        )  # fmt: skip
        found = summarise_draws(counts, letter_ids(processor.tokenizer))
        np.testing.assert_allclose(found["perplexity"], report["masked15"]["perplexity"], rtol=0.15)
    assert REPORTS[0]["masked15"]["perplexity"] < 0.6 * REPORTS[1]["masked15"]["perplexity"]


def test_it_can_be_exported(tmp_path):
    summary = export(FOLDER, tmp_path / FOLDER.name, evaluations=[FOLDER / "evaluation.json"], progress=False)
    assert summary["dtype"] == "bfloat16" and summary["checked"]
