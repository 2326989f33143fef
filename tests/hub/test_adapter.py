"""Adapters of PEFT become whole models, which load without PEFT and without this package."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import STRUCTURES, make_esm, make_model, outputs_of, random_chain, train_adapter
from huggingface_hub import ModelCard
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification

from coordformer import CoordformerForSequenceClassification, CoordformerProcessor, from_esm
from coordformer.hub import reload_check
from coordformer.hub.export import export
from coordformer.inference.annotate import annotate
from coordformer.inference.checkpoints import digest_weights, load_checkpoint
from coordformer.inference.embeddings import load_embeddings
from coordformer_command import main

POINTS = {"coordinate_embedding": "local_frame", "num_qk_points": 2, "num_neighbors": 4}
NAMES = {0: "membrane", 1: "nucleus", 2: "other"}
ROOT = Path(__file__).parents[2]
LORA = {"r": 4, "target_modules": "all-linear"}


def save_base(folder: Path, **fields) -> None:
    model = make_model(**POINTS, **fields)
    model.save_pretrained(folder)
    CoordformerProcessor().save_pretrained(folder)


def save_adapter(model, config, folder: Path):
    """An adapter as if it had been trained, and saved; the model with it."""
    adapted = get_peft_model(model, config).eval()
    train_adapter(adapted)
    adapted.save_pretrained(folder)
    return adapted


@pytest.fixture
def adapter(tmp_path):
    """Of a masked language model: its folder, and what it computes."""
    save_base(tmp_path / "base")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "base")
    return tmp_path / "adapter", save_adapter(model, LoraConfig(**LORA), tmp_path / "adapter")


def test_an_adapter_is_exported_as_a_whole_model(adapter, tmp_path):
    """And checked in a process that has neither PEFT's folder nor this package."""
    folder, adapted = adapter
    assert main(["export", str(folder), str(tmp_path / "out"), "--base_model", "someone/base", "--quiet"]) == 0
    assert not [path for path in (tmp_path / "out").iterdir() if "adapter" in path.name]
    row, merged = random_chain(20), AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(outputs_of(merged, row), outputs_of(adapted, row), atol=1e-4, rtol=1e-4)
    base = AutoModelForMaskedLM.from_pretrained(tmp_path / "base").eval()
    assert (outputs_of(base, row) - outputs_of(merged, row)).abs().max() > 1e-2
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (
        card.data.base_model == "someone/base"
        and "| adapter | LORA, rank 4, merged into the weights of base |" in card.text
    )


def test_verbs_take_an_adapter_as_the_whole_model(adapter, tmp_path):
    """Merged on the way in: files and numbers are those of the model that `export` writes."""
    folder, _ = adapter
    export(folder, tmp_path / "whole", check=False)
    structure = str(STRUCTURES / "1AS5.cif.gz")
    for checkpoint in (folder, tmp_path / "whole", tmp_path / "base"):
        output = str(tmp_path / f"{checkpoint.name}_vectors")
        assert main(["embed", str(checkpoint), structure, "--output", output, "--pooling", "mean", "--quiet"]) == 0
        output = str(tmp_path / f"{checkpoint.name}_masked15.json")
        assert main(["evaluate", str(checkpoint), structure, "--output", output, "--quiet"]) == 0
    reports = [json.loads((tmp_path / f"{name}_masked15.json").read_text()) for name in ("adapter", "whole", "base")]
    assert reports[0]["weights"] == reports[1]["weights"] != reports[2]["weights"]
    assert reports[0]["masked15"] == reports[1]["masked15"] != reports[2]["masked15"]
    vectors = [load_embeddings(tmp_path / f"{name}_vectors")[1] for name in ("adapter", "whole", "base")]
    assert np.array_equal(vectors[0], vectors[1]) and not np.allclose(vectors[0], vectors[2])


def test_a_classifier_that_was_trained_with_an_adapter_comes_with_its_classes(tmp_path):
    """Its base is a masked language model: only the adapter tells how many classes there are."""
    save_base(tmp_path / "base")
    model = CoordformerForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    adapted = save_adapter(model, LoraConfig(task_type="SEQ_CLS", **LORA), tmp_path / "adapter")
    summary = export(tmp_path / "adapter", tmp_path / "out", dtype="bfloat16", progress=False)
    assert summary["model"] == "CoordformerForSequenceClassification" and summary["dtype"] == "bfloat16"
    assert summary["checked"] == list(reload_check.AUTO_MODELS)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    row = random_chain(20)
    expected = outputs_of(adapted, row)
    assert (
        merged.config.num_labels == 3 and (outputs_of(merged, row) - expected).abs().max() < 0.1 * expected.abs().max()
    )
    # Names of the classes, where somebody saves them beside it.
    model.config.id2label = {0: "membrane", 1: "nucleus", 2: "other"}
    model.config.save_pretrained(tmp_path / "adapter")
    assert load_checkpoint(tmp_path / "adapter", any_head=True)[0].config.id2label[1] == "nucleus"


def test_a_classifier_of_other_classes_is_adapted_to_new_ones(tmp_path):
    """The base has a head of its own, whose place the adapter's takes; without it the adapter is refused."""
    make_model("single_label", **POINTS).save_pretrained(tmp_path / "base")
    CoordformerProcessor().save_pretrained(tmp_path / "base")
    options = {"id2label": NAMES, "problem_type": "single_label_classification", "ignore_mismatched_sizes": True}
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", **options)
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], modules_to_save=["classifier"])
    adapted = save_adapter(model, config, tmp_path / "adapter")
    model.config.save_pretrained(tmp_path / "adapter")
    merged, _ = load_checkpoint(tmp_path / "adapter", any_head=True)
    row = random_chain(20)
    torch.testing.assert_close(outputs_of(merged, row), outputs_of(adapted, row), atol=1e-4, rtol=1e-4)
    found = annotate(tmp_path / "adapter", STRUCTURES / "1orc.pdb.gz", threshold=0, progress=False)
    assert sorted(each["term"] for each in found["1ORC_A"]) == sorted(NAMES.values())
    lacking = {
        name: tensor
        for name, tensor in load_file(tmp_path / "adapter" / "adapter_model.safetensors").items()
        if "classifier" not in name
    }
    save_file(lacking, tmp_path / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="neither it nor its base .* has classifier"):
        load_checkpoint(tmp_path / "adapter", any_head=True)


@pytest.mark.parametrize(
    ("targets", "fields"),
    [
        (["query", "value"], POINTS),
        (["sender", "receiver", "hidden", "output"], {"encoder_type": "proteinmpnn", "num_neighbors": 6}),
    ],
    ids=["ESM", "ProteinMPNN"],
)
def test_the_recipe_of_the_documentation_keeps_names_and_numbers(tmp_path, targets, fields):
    """PEFT's own class knows only the base's config, which has two classes; the ways that are printed know them."""
    assert str(targets).replace("'", '"') in (ROOT / "docs" / "fine_tuning.md").read_text()
    make_model(**fields).save_pretrained(tmp_path / "base")
    CoordformerProcessor().save_pretrained(tmp_path / "base")
    head = {"id2label": NAMES, "label2id": {name: number for number, name in NAMES.items()}}
    head["problem_type"] = "single_label_classification"
    model = CoordformerForSequenceClassification.from_pretrained(tmp_path / "base", **head)
    lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=targets, modules_to_save=["classifier"])
    adapted = save_adapter(model, lora, tmp_path / "adapter")
    adapted.config.save_pretrained(tmp_path / "adapter")
    batch = CoordformerProcessor()(structures=STRUCTURES / "1orc.pdb.gz")
    expected = outputs_of(adapted, batch)

    config = AutoConfig.from_pretrained(tmp_path / "adapter")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", config=config)
    for again in (
        PeftModel.from_pretrained(base, tmp_path / "adapter").eval(),
        AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter", **head).eval(),
        load_checkpoint(tmp_path / "adapter", any_head=True)[0],
    ):
        assert again.config.id2label == NAMES
        torch.testing.assert_close(outputs_of(again, batch), expected, atol=1e-4, rtol=1e-4)
    found = annotate(tmp_path / "adapter", STRUCTURES / "1orc.pdb.gz", threshold=0, progress=False)["1ORC_A"]
    probabilities = expected.softmax(dim=-1)[0].tolist()
    assert {each["term"]: pytest.approx(each["probability"], abs=1e-4) for each in found} == dict(
        zip(NAMES.values(), probabilities, strict=True)
    )


def test_loading_says_nothing_and_changes_no_settings(adapter, tmp_path, capfd, caplog):
    """Nothing of weights of another head, of bars, or of what PEFT asks Transformers; users' own calls still tell."""
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging

    logging.enable_progress_bar()
    make_model("single_label", **POINTS).save_pretrained(tmp_path / "head")
    CoordformerProcessor().save_pretrained(tmp_path / "head")
    capfd.readouterr(), caplog.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_checkpoint(adapter[0])
        with pytest.raises(ValueError, match="it lacks lm_head"):
            load_checkpoint(tmp_path / "head")
    assert capfd.readouterr() == ("", "") and not caplog.text
    assert logging.is_progress_bar_enabled() and not are_progress_bars_disabled()
    AutoModelForMaskedLM.from_pretrained(tmp_path / "head")
    assert "LOAD REPORT" in caplog.text and "Loading weights" in capfd.readouterr().err
    logging.disable_progress_bar()
    load_checkpoint(adapter[0])
    assert not logging.is_progress_bar_enabled() and are_progress_bars_disabled()
    logging.enable_progress_bar()


def test_weights_of_another_shape_are_named(tmp_path):
    save_base(tmp_path / "base")
    settings = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(settings | {"intermediate_size": 64}))
    with pytest.raises(ValueError, match=r"its coordformer\.esm\.\S* is \(96.*, but by its config it is \(64"):
        load_checkpoint(tmp_path / "base")


def test_the_dtype_is_that_of_the_base_and_changes_are_merged_before_they_are_rounded(tmp_path):
    save_base(tmp_path / "exact")
    AutoModelForMaskedLM.from_pretrained(tmp_path / "exact").bfloat16().save_pretrained(tmp_path / "base")
    CoordformerProcessor().save_pretrained(tmp_path / "base")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    adapted = save_adapter(model, LoraConfig(**LORA), tmp_path / "adapter")
    merged = load_checkpoint(tmp_path / "adapter", "auto")[0]
    expected = adapted.merge_and_unload().bfloat16()
    assert merged.dtype == torch.bfloat16 and digest_weights(merged) == digest_weights(expected)


def test_the_base_of_the_card_is_that_of_the_adapter(adapter, tmp_path):
    """A name on the Hub stands in the adapter's settings; a folder's own base, in what is recorded of its training."""
    folder, _ = adapter
    record = {"steps": 5, "started_from": {"steps": 9, "base_model": "facebook/esm2_t6_8M_UR50D"}}
    (tmp_path / "base" / "train.json").write_text(json.dumps(record))
    export(folder, tmp_path / "out", check=False)
    assert ModelCard.load(tmp_path / "out" / "README.md").data.base_model == "facebook/esm2_t6_8M_UR50D"


def test_what_cannot_be_merged_is_named(adapter, tmp_path):
    folder, _ = adapter

    def spoil(name, **settings):
        copy = shutil.copytree(folder, tmp_path / name)
        path = copy / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        return copy

    unnamed = tmp_path / "unnamed"
    save_adapter(from_esm(make_esm()), LoraConfig(**LORA), unnamed)
    elsewhere = spoil("elsewhere", base_model_name_or_path=str(tmp_path / "none"))
    part = spoil("part")
    weights = load_file(part / "adapter_model.safetensors")
    lost = sorted(weights)[0]
    save_file({name: tensor for name, tensor in weights.items() if name != lost}, part / "adapter_model.safetensors")
    broken = spoil("broken")
    (broken / "adapter_config.json").write_text("{")
    empty = spoil("empty")
    (empty / "adapter_model.safetensors").unlink()
    # Low-rank changes of a head that was random, and is in no file.
    random_head = tmp_path / "random_head"
    classifier = CoordformerForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    save_adapter(classifier, LoraConfig(r=4, target_modules=["query", "out_proj"]), random_head)
    for given, message in (
        (unnamed, "adapter_config.json has no `base_model_name_or_path`; write the folder or Hub name of the model"),
        (elsewhere, "elsewhere cannot be merged .*none"),
        (part, f"its weights are not those of CoordformerForMaskedLM with this adapter: {lost}"),
        (broken, "adapter_config.json is no JSON"),
        (random_head, r"neither it nor its base .* has classifier.dense.bias; train it with this in `modules_to_save`"),
        (empty, "empty cannot be merged .*adapter_model.safetensors"),
    ):
        with pytest.raises(ValueError, match=message):
            export(given, tmp_path / "out", check=False)
        assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="adapts a CoordformerForSequenceClassification, which is no masked language"):
        load_checkpoint(random_head)
