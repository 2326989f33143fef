"""An exported folder is whole, says what was measured, and computes the same without the package."""

import ast
import configparser
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CHAINS, HEADS, STRUCTURES, make_config, make_model, old_checkpoints
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from packaging.requirements import Requirement
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForMaskedLM, AutoProcessor

from coordformer import CoordformerForContactPrediction, CoordformerProcessor, read_chains
from coordformer.data.rows import load_rows
from coordformer.data.training_sequences import FILE, TrainingSequences
from coordformer.hub import reload_check
from coordformer.hub.card import check_card, find_template, read_evaluation
from coordformer.hub.export import check_reload, export, requirements
from coordformer.inference.evaluate import evaluate
from coordformer.model.configuration_coordformer import AUTO_MAP
from coordformer.model.pipeline_coordformer import CUSTOM_PIPELINES
from coordformer.training.arguments import parse_arguments
from coordformer.training.train import train

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "coordformer" / "model"


def code_of(*modules: str) -> set[str]:
    """Files of these modules and of all that they import from beside them."""
    found, left = set(), list(modules)
    while left:
        if (module := left.pop()) not in found:
            found.add(module)
            nodes = ast.walk(ast.parse((MODEL / f"{module}.py").read_text()))
            left += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level]
    return {f"{module}.py" for module in found}


CODE = code_of("configuration_coordformer", "modeling_coordformer", "processing_coordformer")  # of every saved folder
PIPELINES = code_of("pipeline_coordformer")
FILES = CODE | PIPELINES | {
    "LICENSE", "README.md", "config.json", "model.safetensors", "processor_config.json", "requirements.txt",
    "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip
# That the card was made from, and what it was trained on.
RECORDS = {"evaluation.json", "evaluation_1.json", "log.csv", "training_sequences.safetensors"}
TINY = """\
hidden_size: 32
num_hidden_layers: 2
num_attention_heads: 4
intermediate_size: 64
token_budget: 1024
max_steps: 2
save_steps: 1
logging_steps: 1
report_to: none
use_cpu: true
train_split: train
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint as `coordformer train` leaves it after two updates on 30 real chains, and two reports on it."""
    folder = tmp_path_factory.mktemp("export")
    rows = load_rows(CHAINS)
    chosen = [i for name, count in (("train", 30), ("valid", 5)) for i in find(rows["split"][:], name)[:count]]
    rows.select(chosen).to_parquet(folder / "chains.parquet")
    (folder / "tiny.yaml").write_text(TINY + f"data: {folder / 'chains.parquet'}\n")
    options = [str(folder / "tiny.yaml"), "--output_dir", str(folder / "tiny")]
    train(*parse_arguments(options), options)
    for name, protocols in (("both", ("paper", "masked15")), ("without", ("masked15",))):
        options = {
            "without_coords": name == "without",
            "protocols": protocols,
            "num_mask_samples": 1,
            "progress": False,
        }
        report = evaluate(folder / "tiny", folder / "chains.parquet", split="valid", **options)
        (folder / f"{name}.json").write_text(json.dumps(report))
    return folder


def find(values, wanted) -> list[int]:
    return [index for index, value in enumerate(values) if value == wanted]


@pytest.fixture(scope="module")
def exported(trained):
    """The folder that `export` makes of it, checked in a fresh process."""
    options = {"evaluations": [trained / "both.json", trained / "without.json"], "datasets": ["someone/chains"]}
    summary = export(trained / "tiny", trained / "exported-1.0", base_model="someone/base", progress=False, **options)
    assert summary["checked"] == list(reload_check.AUTO_MODELS) and set(summary["files"]) == FILES | RECORDS
    assert (summary["model"], summary["dtype"]) == ("CoordformerForMaskedLM", "float32")
    return trained / "exported-1.0"


@pytest.fixture(scope="module")
def chain() -> dict:
    """A real chain, as `reload_check` reads it."""
    chain = read_chains(STRUCTURES / "1orc.pdb.gz")[0]
    return {"sequence": chain.sequence, "coords": chain.coords[:, 0].tolist()}


def new_model(head: str, **fields):
    if head == "contacts":
        return CoordformerForContactPrediction(make_config(**fields)).eval()
    return make_model(head, **fields)


def save(model, folder: Path) -> None:
    """The model and its processor."""
    model.save_pretrained(folder)
    CoordformerProcessor(coordinate_atoms=model.config.coordinate_atoms).save_pretrained(folder)


# ---------------------------------------------------------------------------------------------------------------------
# The folder
# ---------------------------------------------------------------------------------------------------------------------


def test_the_folder_holds_what_is_needed_and_nothing_else(exported, trained):
    assert (trained / "tiny" / "training_args.bin").exists()
    assert {path.name for path in exported.iterdir()} == FILES | RECORDS
    assert (exported / "evaluation.json").read_bytes() == (trained / "both.json").read_bytes()
    record = (exported / FILE).read_bytes()
    assert record == (trained / "tiny" / FILE).read_bytes() and len(TrainingSequences.read(exported / FILE)) == 30
    assert (exported / "evaluation_1.json").read_bytes() == (trained / "without.json").read_bytes()
    assert (exported / "log.csv").read_bytes() == (trained / "tiny" / "log.csv").read_bytes()
    assert not list(trained.glob("*.tmp"))
    assert "Apache License" in (exported / "LICENSE").read_text()
    for name in CODE | PIPELINES:
        assert (exported / name).read_text() == (MODEL / name).read_text()
    assert json.loads((exported / "config.json").read_text())["custom_pipelines"] == CUSTOM_PIPELINES


def test_requirements_are_those_of_the_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    stated = {each.name: each for each in map(Requirement, setup["options"]["install_requires"].split())}
    written = [Requirement(line) for line in requirements().splitlines()]
    assert [each.name for each in written] == ["torch", "transformers", "gemmi"]
    assert all(each == stated[each.name] for each in written)


@pytest.mark.parametrize("head", [*HEADS, "contacts"])
def test_every_saved_folder_carries_the_code_for_all_heads(head, tmp_path):
    """Without `export`, too: as `Trainer` and `push_to_hub` save."""
    model = new_model(head)
    model.config.auto_map = {"AutoModel": "someone/else--modeling_coordformer.CoordformerModel"}
    save(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert {"AutoConfig", *reload_check.AUTO_MODELS} == AUTO_MAP.keys()
    processor = json.loads((tmp_path / "processor_config.json").read_text())
    assert processor["auto_map"] == {"AutoProcessor": "processing_coordformer.CoordformerProcessor"}
    assert {path.name for path in tmp_path.glob("*.py")} == CODE
    # With the package nobody is asked whether to trust the code that lies there.
    assert type(AutoConfig.from_pretrained(tmp_path)).__module__ == "coordformer.model.configuration_coordformer"
    assert type(AutoProcessor.from_pretrained(tmp_path)) is CoordformerProcessor
    assert type(AutoModelForMaskedLM.from_pretrained(tmp_path)).__module__ == "coordformer.model.modeling_coordformer"


def test_a_bfloat16_folder_rounds_what_may_be_rounded(tmp_path):
    model = new_model("masked_lm", num_distance_bins=8)
    save(model, tmp_path / "model")
    export(tmp_path / "model", tmp_path / "low", dtype="bfloat16", check=False)
    export(tmp_path / "low", tmp_path / "again", check=False)
    for folder in ("low", "again"):
        weights = load_file(tmp_path / folder / "model.safetensors")
        precise = {name for name, values in weights.items() if values.dtype == torch.float32}
        parts = {
            next(part for part in ("coordinate_embedding", "distance_bias", "rotary") if part in name)
            for name in precise
        }
        assert parts == {"coordinate_embedding", "distance_bias", "rotary"}
        assert {values.dtype for values in weights.values()} == {torch.float32, torch.bfloat16}
        for name, values in weights.items():
            torch.testing.assert_close(values, model.state_dict()[name].to(values.dtype), rtol=0, atol=0)
        assert AutoModelForMaskedLM.from_pretrained(tmp_path / folder).dtype == torch.float32  # to be fine-tuned


def test_names_of_classes_are_kept(tmp_path):
    model = make_model("multi_label", id2label={0: "1.1.1.1", 1: "2.7.11.1", 2: "3.4.21.4", 3: "4.2.1.1"})
    save(model, tmp_path / "model")
    export(tmp_path / "model", tmp_path / "out", check=False)
    assert AutoConfig.from_pretrained(tmp_path / "out").id2label == model.config.id2label
    assert "| classes | 4: 1.1.1.1, 2.7.11.1, 3.4.21.4, 4.2.1.1 |" in (tmp_path / "out" / "README.md").read_text()


# ---------------------------------------------------------------------------------------------------------------------
# The card
# ---------------------------------------------------------------------------------------------------------------------


def test_the_card_has_the_measured_values(exported, trained):
    card = ModelCard.load(exported / "README.md")
    data = card.data
    assert (data.library_name, data.license, data.pipeline_tag) == ("transformers", "apache-2.0", "fill-mask")
    assert (data.datasets, data.base_model) == (["someone/chains"], "someone/base")
    assert data.metrics == ["perplexity", "accuracy"] and "protein" in data.tags
    both, without = (json.loads((trained / f"{name}.json").read_text()) for name in ("both", "without"))
    measured = {(result.metric_name, result.metric_value) for result in data.eval_results}
    assert measured == {
        (f"{metric}, protocol {protocol}, coordinates {report['coordinates']}", report[protocol][metric])
        for report, protocols in ((both, ("paper", "masked15")), (without, ("masked15",)))
        for protocol in protocols
        for metric in ("perplexity", "recovery")
    }
    low, high = without["masked15"]["perplexity_interval"]
    row = f"| chains.parquet | valid | 5 | not given | masked15 | {without['masked15']['perplexity']:.2f} ({low:.2f} to"
    assert row in card.text
    results = [result for result in data.eval_results if result.metric_args["interval"] == [low, high]]
    assert [result.metric_value for result in results] == [without["masked15"]["perplexity"]]


CARDS = {path.parent.name: path for path in (ROOT / "hub_cards").glob("*/README.md") if "pdb" in path.parent.name}


@pytest.mark.parametrize("name", [*CARDS, "exported"])
def test_the_metadata_is_what_the_hub_reads(name, exported):
    """By huggingface_hub's own functions, of which none asks the Hub."""
    path = CARDS.get(name, exported / "README.md")
    data, metadata = check_card(path), metadata_load(path)
    assert data.to_dict() == metadata and len(data.eval_results) >= 4
    assert (data.library_name, data.license, data.pipeline_tag) == ("transformers", "apache-2.0", "fill-mask")
    model_name, results = model_index_to_eval_results(metadata["model-index"])
    assert eval_results_to_model_index(model_name, results) == metadata["model-index"]
    assert all(math.isfinite(result.metric_value) for result in results)


def test_the_page_on_the_hub_has_something_to_try(exported, tmp_path):
    processor = CoordformerProcessor.from_pretrained(exported)
    (example,) = metadata_load(exported / "README.md")["widget"]
    assert (processor(example["text"])["input_ids"] == 32).sum() == 1 and len(example["text"]) == 76 + len("<mask>") - 1
    for head, task in (("single_label", "text-classification"), ("token", "token-classification"), ("base", None)):
        save(new_model(head), tmp_path / head)
        export(tmp_path / head, tmp_path / f"{head}_out", check=False)
        metadata = metadata_load(tmp_path / f"{head}_out" / "README.md")
        assert metadata["pipeline_tag"] == (task or "feature-extraction") and ("widget" in metadata) == (
            task is not None
        )


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("license: [", "while parsing a flow node"),
        ("- 5", "repo card metadata block should be a dict"),
        ("tags: [protein]", "`license` is missing"),
        ("license: mit\nbase_model: no/such/name", "Repo id must be in the form"),
        ("license: mit\ndatasets: [my data]", "Repo id must use alphanumeric chars"),
        ("license: mit\npipeline_tag: protein-folding", "`pipeline_tag` is 'protein-folding', no task of Transformers"),
        ("license: mit\nmodel-index:\n- name: a\n  results: 5", "Invalid model-index|not iterable"),
    ],
)
def test_metadata_that_the_hub_would_not_take_is_named(metadata, message, tmp_path):
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n# Card\n")
    with pytest.raises(ValueError, match=f"The metadata of .*README.md is not valid: .*({message})"):
        check_card(tmp_path / "README.md")
    (tmp_path / "README.md").write_text("# Card\n")
    with pytest.raises(ValueError, match="is not valid: there is none"):
        check_card(tmp_path / "README.md")


def test_a_report_of_version_0_1_0_is_read_with_the_names_of_today(tmp_path):
    """Of the folder as that version made it, whose weights have other names by now."""
    result = {"perplexity": 6.4, "perplexity_interval": [6.3, 6.5], "perplexity_by_draw": [6.4], "recovery": 0.4,
              "recovery_interval": [0.39, 0.41], "recovery_by_draw": [0.4]}  # fmt: skip
    report = {"checkpoint": "coordformer-1M-pdb", "weights": "1370bcbdf173ad17", "data": "chains.parquet",
              "split": None, "coordinates": "local, points and messages", "dtype": "float32", "num_rotations": 1,
              "draws": 1, "chains": 5, "masked15": result}  # fmt: skip
    (tmp_path / "old.json").write_text(json.dumps(report))
    read = read_evaluation(tmp_path / "old.json", old_checkpoints() / "coordformer-1M-pdb")
    assert read.keys() - report.keys() == {"num_mask_samples"} and "draws" not in read
    assert read["coordinates"] == "local frame, invariant points and messages"
    assert read["masked15"].keys() - result.keys() == {"perplexity_by_mask_sample", "recovery_by_mask_sample"}
    (tmp_path / "old.json").write_text(json.dumps(report | {"coordinates": "withheld"}))
    read = read_evaluation(tmp_path / "old.json", old_checkpoints() / "coordformer-1M-pdb")
    assert read["coordinates"] == "not given"


def test_the_card_tells_how_it_was_trained(exported, trained, tmp_path):
    text = (exported / "README.md").read_text()
    loss = json.loads((trained / "tiny" / "trainer_state.json").read_text())["log_history"][1]["loss"]
    rows = ("data | chains.parquet, split train", "chains | 30", "updates | 2", f"last training loss | {loss:.3f}")
    assert all(f"| {row} |" in text for row in rows) and "not recorded" not in text
    data = hashlib.sha256((trained / "chains.parquet").read_bytes()).hexdigest()
    # Of paths on this machine the names alone.
    assert f"| SHA-256 of the data | {data} |" in text
    assert "| command | `coordformer train tiny.yaml --output_dir tiny` |" in text
    assert re.search(r"\| commit of the code \| [0-9a-f]{40}(-dirty)? \|", text)
    assert "`log.csv`" in text
    # A checkpoint of the run tells how far it had come.
    export(trained / "tiny" / "checkpoint-1", tmp_path / "early", check=False)
    text = (tmp_path / "early" / "README.md").read_text()
    assert "| chains | 30 |" in text and "| updates | 1 |" in text


@pytest.mark.parametrize(
    ("head", "tag"),
    [
        ("base", "feature-extraction"),
        ("masked_lm", "fill-mask"),
        ("multi_label", "text-classification"),
        ("token", "token-classification"),
        ("contacts", "feature-extraction"),
    ],
)
def test_the_card_of_each_head_runs_and_says_what_is_not_known(head, tag, tmp_path, monkeypatch, capsys):
    save(new_model(head, coordinate_atoms=("N", "CA", "C")), tmp_path / "model")
    export(tmp_path / "model", tmp_path / "out", check=False)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.pipeline_tag == tag and card.data.eval_results is None and card.data.metrics is None
    assert "Not measured." in card.text and "not recorded" in card.text and "Not equivariant." in card.text
    assert "{" not in card.text and "C-alpha alone" not in card.text and "(14, 3, 3)" in card.text
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1], {})
    assert capsys.readouterr().out.strip()


def test_the_card_of_a_model_without_coordinates_promises_none(tmp_path):
    save(new_model("masked_lm", coordinate_embedding="none"), tmp_path / "model")
    export(tmp_path / "model", tmp_path / "out", check=False, license="cc-by-4.0")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "reads no structure" in text and "equivariant" not in text and "coords" not in text
    assert "Weights: cc-by-4.0. Code: Apache 2.0" in text


def test_the_template_is_found_where_a_wheel_puts_it(tmp_path, monkeypatch):
    assert find_template() == ROOT / "hub_cards" / "template.md"
    monkeypatch.setattr("coordformer.hub.card.__file__", str(tmp_path / "coordformer" / "hub" / "card.py"))
    with pytest.raises(OSError, match="hub_cards/template.md is neither in .*install coordformer again"):
        find_template()
    (tmp_path / "coordformer" / "hub_cards").mkdir(parents=True)
    shutil.copy(ROOT / "hub_cards" / "template.md", tmp_path / "coordformer" / "hub_cards")
    assert find_template() == tmp_path / "coordformer" / "hub_cards" / "template.md"


# ---------------------------------------------------------------------------------------------------------------------
# Without the package
# ---------------------------------------------------------------------------------------------------------------------


def run_without_package(python, folder, output, chain, path="") -> None:
    """Run remote_code.py, with `path` as the only other place to import from."""
    command = [python, "-P", ROOT / "tests" / "hub" / "remote_code.py", reload_check.__file__, folder, output]
    environment = {"HF_MODULES_CACHE": str(output / "modules"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(path)}
    output.mkdir()
    done = subprocess.run(
        command, input=json.dumps(chain), cwd=output, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def assert_same_without_package(folder, outputs, chain) -> None:
    """What `reload_check` made of the folder is what the package makes of it."""
    loaded = load_file(outputs)
    batch = AutoProcessor.from_pretrained(folder)(chain["sequence"], coords=chain["coords"])
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    expected = reload_check.predict(model, batch)
    pairs = [(loaded["AutoModelForMaskedLM.logits"], expected["logits"])]
    pairs += [(loaded[f"{name}.last_hidden_state"], expected["last_hidden_state"]) for name in reload_check.AUTO_MODELS]
    pairs += [(loaded[f"AutoProcessor.{name}"], values) for name, values in batch.items()]
    pairs += [(loaded["AutoTokenizer.input_ids"], batch["input_ids"])]
    for actual, wanted in pairs:
        torch.testing.assert_close(actual, wanted, equal_nan=True)


def test_without_the_package_a_folder_is_loaded_saved_and_trained(exported, chain, tmp_path):
    output = tmp_path / "output"
    run_without_package(sys.executable, exported, output, chain)
    folders = {"folder": exported, "saved": output / "saved", "trained": output / "trained" / "checkpoint-4"}
    for name, folder in folders.items():
        assert json.loads((folder / "config.json").read_text())["auto_map"] == AUTO_MAP
        assert {path.name for path in folder.glob("*.py")} == (CODE | PIPELINES if name == "folder" else CODE)
        assert_same_without_package(folder, output / f"{name}.safetensors", chain)


def test_a_folder_that_computes_something_else_is_refused(exported, monkeypatch):
    monkeypatch.setattr(  # here, as a process takes seconds to start
        "coordformer.hub.export._reload_elsewhere", lambda folder, chain: reload_check.reload(folder, **chain)
    )
    model = AutoModelForMaskedLM.from_pretrained(exported).eval()
    check_reload(exported, model, CoordformerProcessor())
    with torch.no_grad():
        model.lm_head.decoder.bias += 1e-3
    with pytest.raises(ValueError, match="AutoModelForMaskedLM.logits differs .*Greatest absolute difference"):
        check_reload(exported, model, CoordformerProcessor())


def test_a_failed_check_leaves_nothing(trained, tmp_path, monkeypatch):
    script = tmp_path / "check.py"
    script.write_text("raise ImportError('no module named x')")
    monkeypatch.setattr(reload_check, "__file__", str(script))
    with pytest.raises(ValueError, match="does not load without the package .ImportError: no module named x.; check"):
        export(trained / "tiny", tmp_path / "out" / "folder", progress=False)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("head", [*HEADS, "contacts"])
def test_every_head_and_dtype_passes_the_check(head, dtype, tmp_path):
    save(new_model(head, coordinate_atoms=("N", "CA"), contact_head=True), tmp_path / "model")
    assert export(tmp_path / "model", tmp_path / "out", dtype=dtype, progress=False)["checked"]


@pytest.fixture(scope="module", params=["oldest", "newest"])
def environment(request, tmp_path_factory):
    """Python with torch and transformers alone, and a folder of what `Trainer` needs besides.

    Making one takes minutes and a package index; with COORDFORMER_ENVIRONMENTS they are kept in the folder it names.
    """
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lowest = re.search(r"^transformers>=([\d.]+)", setup["options"]["install_requires"], re.MULTILINE)[1]
    version = {"oldest": f"{lowest}.*", "newest": pins["transformers"]}[request.param]
    kept = os.environ.get("COORDFORMER_ENVIRONMENTS")
    place = (Path(kept) if kept else tmp_path_factory.mktemp("environments")) / f"transformers-{version.rstrip('.*')}"
    python = place / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    steps = [
        [sys.executable, "-m", "venv", place],
        [*pip, f"torch=={pins['torch']}", f"transformers=={version}"],
        [
            *pip,
            "--no-deps",
            "--target",
            place / "trainer",
            f"accelerate=={pins['accelerate']}",
            f"psutil=={pins['psutil']}",
        ],
    ]
    for command in [] if (place / "trainer").exists() else steps:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            shutil.rmtree(place, ignore_errors=True)
            pytest.skip(f"No environment with transformers {version}: {done.stderr.strip().splitlines()[-1]}")
    return python, place / "trainer"


@pytest.mark.slow
def test_in_an_environment_without_gemmi_and_accelerate(environment, exported, trained, chain, tmp_path):
    python, trainer = environment
    for folder, name in ((exported, "exported"), (trained / "tiny" / "checkpoint-2", "checkpoint")):
        run_without_package(python, folder, tmp_path / name, chain)
        assert not (tmp_path / name / "trained").exists()
        for each, outputs in ((folder, "folder"), (tmp_path / name / "saved", "saved")):
            assert_same_without_package(each, tmp_path / name / f"{outputs}.safetensors", chain)
    run_without_package(python, exported, tmp_path / "trainer", chain, path=trainer)
    folder = tmp_path / "trainer" / "trained" / "checkpoint-4"
    assert_same_without_package(folder, tmp_path / "trainer" / "trained.safetensors", chain)


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------


def test_bad_arguments_are_named(trained, tmp_path):
    out = tmp_path / "out"
    cases = [
        ({"output": trained}, ValueError, "exists already; delete it or"),
        ({"dtype": "float16"}, ValueError, "`dtype` is 'float16'; choose one of float32, bfloat16"),
        ({"evaluations": [tmp_path / "no.json"]}, OSError, "no.json"),
        ({"evaluations": [trained / "tiny.yaml"]}, ValueError, "tiny.yaml is no report of perplexity and recovery"),
        ({"evaluations": [trained / "tiny" / "run.json"]}, ValueError, "run.json is no report"),
        ({"checkpoint": trained / "tiny" / "checkpoint-1", "evaluations": [trained / "both.json"]}, ValueError,
         "both.json was measured on 'tiny' with other weights than those of .*checkpoint-1; evaluate what is exported"),
        ({"license": ""}, ValueError, "`license` is empty"),
        ({"base_model": "my/base/model"}, ValueError, "README.md is not valid: Repo id must be in the form"),
        ({"checkpoint": trained / "tni"}, ValueError, "There is no folder .*tni; give a folder"),
        ({"checkpoint": tmp_path}, ValueError, "holds no processor"),
    ]  # fmt: skip
    for change, error, message in cases:
        with pytest.raises(error, match=message):
            export(**{"checkpoint": trained / "tiny", "output": out, "check": False} | change)
        assert not out.exists()


@pytest.mark.parametrize(("name", "text"), [("run.json", "{}"), ("trainer_state.json", "[]"), ("run.json", "{")])
def test_an_unreadable_record_of_training_is_named(name, text, trained, tmp_path):
    shutil.copytree(trained / "tiny", tmp_path / "tiny")
    (tmp_path / "tiny" / name).write_text(text)
    with pytest.raises(ValueError, match="run.json, train.json or trainer_state.json cannot be read .*move them away"):
        export(tmp_path / "tiny", tmp_path / "out", check=False)


def test_the_last_update_has_the_numbers_too(trained, tmp_path):
    """A report is of weights, whatever their folder is called."""
    last = trained / "tiny" / "checkpoint-2"
    export(last, tmp_path / "out", evaluations=[trained / "both.json"], name="someone/tiny", check=False)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert len(card.data.eval_results) == 4 and card.data.model_name == "someone/tiny"
    assert 'name = "someone/tiny"' in card.text


def test_a_full_disk_is_said(trained, tmp_path, monkeypatch):
    def fail(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CoordformerProcessor, "save_pretrained", fail)
    with pytest.raises(OSError, match=r"out could not be written .*No space left on device.*make room and run again"):
        export(trained / "tiny", tmp_path / "out", check=False)
    assert not list(tmp_path.iterdir())
