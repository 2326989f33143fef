"""The module of `evaluate` loads by path and by name, computes what the package does, and names bad input."""

import re
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import evaluate
import pandas as pd
import pytest
import torch
import yaml
from hub_server import Hub

from coordformer.inference.metrics import count_predictions, summarize
from coordformer.model.processing_coordformer import build_tokenizer, letter_ids

FOLDER = Path(__file__).parents[2] / "hub_cards" / "masked_residues"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")
    monkeypatch.setattr(evaluate.config, "DOWNLOADED_EVALUATE_PATH", tmp_path / "downloads")
    monkeypatch.setattr(evaluate.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)


@pytest.fixture
def loaded():
    return {name: evaluate.load(str(FOLDER), name) for name in ("recovery", "perplexity")}


def test_it_computes_what_the_package_does(loaded):
    letters = letter_ids(build_tokenizer())
    names = {number: letter for letter, number in letters.items()}
    logits, labels = torch.randn(3, 12, 33), torch.randint(4, 24, (3, 12))
    summary = summarize(count_predictions(logits, labels, letters.values()).numpy(), letters)
    allowed = logits[..., 4:24].log_softmax(dim=-1)
    given = {
        "log_likelihoods": allowed.gather(-1, (labels - 4).unsqueeze(-1)).flatten(),
        "predictions": [names[number] for number in (allowed.argmax(dim=-1) + 4).flatten().tolist()],
        "references": [names[number] for number in labels.flatten().tolist()],
    }
    perplexity = loaded["perplexity"].compute(log_likelihoods=given["log_likelihoods"])
    assert perplexity == {"perplexity": pytest.approx(summary["perplexity"], rel=1e-5)}
    combined = evaluate.combine(list(loaded.values()))
    result = combined.compute(**given)
    assert result == {
        "perplexity": pytest.approx(summary["perplexity"], rel=1e-5),
        "recovery": pytest.approx(summary["recovery"]),
        "recovery_by_residue": pytest.approx(summary["recovery_by_residue"]),
    }
    for start in range(0, 36, 12):  # batch by batch
        combined.add_batch(**{name: values[start : start + 12] for name, values in given.items()})
    assert combined.compute() == result


def test_bad_input_is_named(loaded):
    for name in (None, "f1"):
        with pytest.raises(ValueError, match=f"no metric '{name or 'default'}'; give 'perplexity' or 'recovery'"):
            evaluate.load(str(FOLDER), name)
    with pytest.raises(ValueError, match="`references` is empty; give a value for each masked residue"):
        loaded["recovery"].compute(predictions=[], references=[])
    with pytest.raises(ValueError, match="`log_likelihoods` is empty"):
        loaded["perplexity"].compute(log_likelihoods=[])
    with pytest.raises(ValueError, match=r"Mismatch in the number of predictions \(2\) and references \(1\)"):
        loaded["recovery"].compute(predictions=["A", "L"], references=["A"])
    # And it can be used again.
    assert loaded["recovery"].compute(predictions=["A"], references=["A"])["recovery"] == 1


@pytest.mark.parametrize("name", ["tester/masked_residues", "masked_residues"])
def test_it_loads_by_name_from_a_space(name, tmp_path, monkeypatch):
    """Without a user's name from that of `evaluate`, where modules of its release are looked for first."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.chdir(tmp_path)  # else a folder of that name would be taken
    with Hub(tmp_path / "hub") as hub:
        space = name if "/" in name else f"evaluate-metric/{name}"
        hub.add_space(space, FOLDER)
        monkeypatch.setattr(evaluate.config, "HUB_EVALUATE_URL", hub.url + "/spaces/{path}/resolve/{revision}/{name}")
        recovery = evaluate.load(name, "recovery")
        asked = [path for _, path in hub.requests]
    assert recovery.compute(predictions=["A", "L"], references=["A", "G"])["recovery"] == 0.5
    assert type(recovery).__module__.startswith(f"evaluate_modules.metrics.{space.replace('/', '--')}.")
    assert asked[-1] == f"/spaces/{space}/resolve/main/masked_residues.py"


def test_the_folder_is_a_space(monkeypatch, capsys):
    """Its page has what the Hub reads of it, and examples that print from the repository what they say."""
    _, metadata, text = (FOLDER / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(metadata)
    assert card["sdk"] == "gradio" and card["tags"] == ["evaluate", "metric"]
    assert (FOLDER / card["app_file"]).exists() and (FOLDER / "requirements.txt").exists()
    monkeypatch.chdir(FOLDER.parents[1])
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
        assert capsys.readouterr().out.splitlines() == re.findall(r"^# (.*)", block, re.MULTILINE)
    assert names["both"].evaluation_modules == [names["recovery"], names["perplexity"]]


@pytest.mark.filterwarnings("ignore:The inplace keyword")
def test_its_page_computes(monkeypatch):
    """With what stands in for gradio, which tests do without: the widget's function gets the table that it shows."""
    page = SimpleNamespace()
    gradio = ModuleType("gradio")
    gradio.inputs = SimpleNamespace(Dataframe=lambda **options: options["headers"])
    gradio.outputs = SimpleNamespace(Textbox=lambda label: label)
    gradio.Interface = lambda **options: page.__dict__.update(options) or SimpleNamespace(launch=lambda: None)
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    runpy.run_path(str(FOLDER / "app.py"))
    assert page.inputs == ("predictions", "references")
    table = pd.DataFrame({"predictions": ["A", "L"], "references": ["A", "G"]})
    assert page.fn(table) == {"recovery": 0.5, "recovery_by_residue": {"A": 1.0, "G": 0.0}}
