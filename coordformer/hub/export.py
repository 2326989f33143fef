"""A checkpoint as a folder that is ready to push to the Hub: `coordformer export`."""

import errno
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from ..data.collator import PROTOCOLS
from ..inference.evaluate import coordinates_of, digest_weights, load_checkpoint
from ..model import pipeline_coordformer
from ..model.configuration_coordformer import AUTO_MAP
from ..model.processing_coordformer import CoordformerProcessor
from ..model.structure import AMINO_ACIDS
from . import reload_check

DTYPES = ("float32", "bfloat16")
PACKAGES = ("torch", "transformers", "gemmi")  # that a folder's code imports, the last one only to read structures
AUTO_CLASSES = {place.partition(".")[2]: name for name, place in AUTO_MAP.items()}
PIPELINE_TAGS = {
    "CoordformerForMaskedLM": "fill-mask",
    "CoordformerForSequenceClassification": "text-classification",
    "CoordformerForTokenClassification": "token-classification",
}
# `coordformer evaluate`'s names, and the Hub's for what they are.
METRICS = {"perplexity": "perplexity", "recovery": "accuracy"}
TRAINING_LOG = "log.csv"
# Of an evaluation.
SETTINGS = {"checkpoint", "weights", "data", "split", "coordinates", "dtype", "num_rotations", "draws", "chains"}


# ---------------------------------------------------------------------------------------------------------------------
# What is known of a checkpoint
# ---------------------------------------------------------------------------------------------------------------------


def read_evaluation(path: str | Path, checkpoint: str | Path) -> dict[str, Any]:
    """A report of `coordformer evaluate` on this checkpoint.

    Raises:
        OSError: there is no such file.
        ValueError: it is no such report, or one on another checkpoint.
    """
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        results = [report[protocol] for protocol in PROTOCOLS if protocol in report]
        measured = {*METRICS, *(f"{metric}_interval" for metric in METRICS)}
        whole = bool(results) and all(measured <= result.keys() for result in results) and report.keys() >= SETTINGS
    except (ValueError, TypeError, AttributeError):  # no JSON, or JSON of something else
        whole = False
    if not whole:
        raise ValueError(f"{path} is no report of perplexity and recovery; give one that `coordformer evaluate` wrote.")
    if report["weights"] != digest_weights(load_checkpoint(checkpoint, report["dtype"], any_head=True)[0]):
        raise ValueError(
            f"{path} was measured on {report['checkpoint']!r} with other weights than those of {checkpoint}; evaluate "
            "what is exported."
        )
    return report


def eval_results(report: Mapping[str, Any], task: str) -> list[EvalResult]:
    """The measured values of a report, as the Hub's `model-index` takes them."""
    return [
        EvalResult(
            task_type=task,
            dataset_type=report["data"],
            dataset_name=report["data"],
            dataset_split=report["split"],
            metric_type=METRICS[metric],
            metric_name=f"{metric}, protocol {protocol}, coordinates {report['coordinates']}",
            metric_value=report[protocol][metric],
            metric_args={
                "interval": report[protocol][f"{metric}_interval"],
                "chains": report["chains"],
                "dtype": report["dtype"],
                "num_rotations": report["num_rotations"],
            },
        )
        for protocol in PROTOCOLS
        if protocol in report
        for metric in METRICS
    ]


def training_facts(checkpoint: str | Path) -> dict[str, str]:
    """What `coordformer train` recorded of a checkpoint, in words; nothing where it recorded nothing.

    The settings lie in the folder of a run, of which its `checkpoint-*` are part; how far it came, in both.
    """
    folder = Path(checkpoint).resolve()
    run = (folder.parent if folder.name.startswith("checkpoint-") else folder) / "run.json"
    state, result = folder / "trainer_state.json", folder / "train.json"
    facts: dict[str, Any] = {}
    try:
        if run.exists():
            settings = json.loads(run.read_text(encoding="utf-8"))
            facts |= _settings(settings["data"], settings["training"])
        if result.exists():
            summary = json.loads(result.read_text(encoding="utf-8"))
            facts["updates"] = f"{summary['steps']:,}"
            facts["SHA-256 of the data"] = summary.get("data_sha256")
            facts["command"] = summary.get("command") and f"`{summary['command']}`"
            facts["commit of the code"] = summary.get("commit")
            if before := "; before that ".join(_earlier_stages(summary)):
                facts |= {"started from": None, "trained before": before}  # a folder's name says less
        if state.exists():
            progress = json.loads(state.read_text(encoding="utf-8"))
            losses = [entry["loss"] for entry in progress["log_history"] if "loss" in entry]
            facts["updates"] = f"{progress['global_step']:,}"
            facts["last training loss"] = f"{losses[-1]:.3f}" if losses else None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{run}, {result.name} or {state.name} cannot be read ({type(error).__name__}: {error}); move them away to "
            "export without what they say."
        ) from error
    return {name: value for name, value in facts.items() if value}


def _earlier_stages(summary: Mapping[str, Any]) -> Iterator[str]:
    """Of a `train.json` the trainings that its weights had before, the last one first, in words."""
    while summary := summary.get("started_from") or {}:
        command, commit = summary.get("command"), summary.get("commit")
        by = f" by `{command}`" * bool(command) + f" at commit {commit}" * bool(commit)
        yield f"{summary['steps']:,} updates{by}"


def _settings(data: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's settings what a reader of the card asks for; a value is empty where there is nothing to say."""
    chains, tokens = training["per_device_train_batch_size"], data["token_budget"]
    batches = training["gradient_accumulation_steps"] * training["world_size"]
    return {
        "started from": training["init_from"] and Path(training["init_from"]).name,
        "behind a frozen": training["sequence_encoder"] and Path(training["sequence_encoder"]).name,
        "data": f"{Path(data['data']).name}, split {data['train_split'] or 'all'}",
        "chains": f"{data['chains']:,}",
        "residues in an epoch": f"{data['residues']:,}",
        "longer chains": data["max_length"] and f"cropped at random to {data['max_length']:,} residues",
        "masked": f"{100 * data['mlm_probability']:g} % of the residues",
        "frames": "turned at random" if data["rotate"] else "as given",
        "noise": data["coordinate_noise"] and f"{data['coordinate_noise']:g} Å on coordinates",
        "without coordinates": data["drop_coords"] and f"{100 * data['drop_coords']:g} % of the chains",
        "batch": (f"{tokens:,} tokens" if tokens else f"{chains} chains") + f", times {batches}" * (batches > 1),
        "optimizer": f"{'Muon and AdamW' if training.get('muon') else training['optim']}, "
        f"learning rate {training['learning_rate']:g}, {training['lr_scheduler_type']}, "
        f"{training['warmup_steps']:g} updates of warm-up",
        "precision": "bfloat16" if training["bf16"] else "float16" if training["fp16"] else "float32",
        "seed": str(training["seed"]),
    }


# ---------------------------------------------------------------------------------------------------------------------
# The folder
# ---------------------------------------------------------------------------------------------------------------------


def make_card(
    model: PreTrainedModel,
    name: str,
    *,
    evaluations: Sequence[Mapping[str, Any]] = (),
    training: Mapping[str, str] | None = None,
    log: str | None = None,
    license: str = "apache-2.0",
    datasets: Sequence[str] = (),
    base_model: str | None = None,
) -> ModelCard:
    """The model card, of `hub_cards/template.md`; what nobody recorded or measured it says is unknown.

    Args:
        model: the model, in the dtype that it is saved in.
        name: of the model.
        evaluations: see `read_evaluation`.
        training: see `training_facts`.
        log: name of the file with the training's losses.
        license, datasets, base_model: the Hub's names of the weights' license, of the data sets that the model was
            trained on, and of the model that it was made of.
    """
    architecture = type(model).__name__
    task = PIPELINE_TAGS.get(architecture, "feature-extraction")
    data = ModelCardData(
        model_name=name,
        library_name="transformers",
        license=license,
        tags=["coordformer", "protein", "protein-language-model", "protein-structure"],
        datasets=list(datasets) or None,
        base_model=base_model,
        pipeline_tag=task,
        metrics=list(METRICS.values()) if evaluations else None,
        eval_results=[result for report in evaluations for result in eval_results(report, task)] or None,
    )
    classifies = architecture in ("CoordformerForSequenceClassification", "CoordformerForTokenClassification")
    return ModelCard.from_template(
        data,
        template_path=str(find_template()),
        model_name=name,
        architecture=architecture,
        auto_class=AUTO_CLASSES.get(architecture, "AutoModel"),
        config=model.config,
        parameters=model.num_parameters(),
        dtype=str(model.dtype).removeprefix("torch."),
        coordinates=coordinates_of(model),
        invariant=model.config.coordinate_embedding in ("local_frame", "none"),  # to rotations, whatever else it reads
        atoms=list(model.config.coordinate_atoms),
        labels=list((model.config.id2label or {}).values()) if classifies else [],
        base_model=base_model,
        training=training,
        log=log,
        evaluations=evaluations,
        protocols=PROTOCOLS,
        license=license,
        version=importlib.metadata.version("coordformer"),
    )


def find_template() -> Path:
    """The template of model cards: in the package where it was installed, beside it in the repository."""
    package = Path(__file__).parent
    for folder in (package, package.parent):
        if (path := folder / "hub_cards" / "template.md").exists():
            return path
    raise FileNotFoundError(f"hub_cards/template.md is neither in {package} nor beside it; install coordformer again.")


def read_license() -> str:
    """The license of the code, as it was installed with the package."""
    # A working tree may hold a second, older record of the installation, which has no license.
    for record in importlib.metadata.distributions(name="coordformer"):
        if text := record.read_text("licenses/LICENSE"):
            return text
    raise FileNotFoundError("LICENSE was not installed with coordformer; install it again.")


def requirements() -> str:
    """What the code of a folder needs, as the package states it."""
    stated = importlib.metadata.requires("coordformer") or []
    found = {re.split(r"[^\w-]", line, maxsplit=1)[0]: line for line in stated if "extra ==" not in line}
    return "".join(f"{found[name]}\n" for name in PACKAGES)


def export(
    checkpoint: str | Path,
    output: str | Path,
    *,
    evaluations: Sequence[str | Path] = (),
    name: str | None = None,
    license: str = "apache-2.0",
    datasets: Sequence[str] = (),
    base_model: str | None = None,
    dtype: str | None = None,
    check: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """Write a folder that is ready to push: weights, configs, code, license, requirements, and a card with its sources.

    Args:
        checkpoint: folder or Hub name of a Coordformer with any head or none.
        output: the folder to make; it appears when it is whole and checked.
        evaluations: reports of `coordformer evaluate` on the checkpoint, the card's numbers; the folder gets copies,
            and one of the training's log.
        name: of the model on its card, which the code there loads: the repository's; default: the folder's.
        license, datasets, base_model: see `make_card`.
        dtype: `"float32"` or `"bfloat16"`; default: the checkpoint's. What is computed in float32 stays in it.
        check: load the folder in a fresh process without the package, with every Auto class, and compare.
        progress: say on standard error what is going on.

    Returns:
        `output`, `model` (its class), `parameters`, `dtype`, `files` (names), and `checked` (Auto classes).

    Raises:
        ValueError: an argument is unusable, or the reloaded model does not compute the same.
        OSError: the folder could not be written.
    """
    output = Path(output)
    if output.exists():
        raise ValueError(f"{output} exists already; delete it or give the name of a new folder.")
    if not license:
        raise ValueError("`license` is empty; give the Hub's name of one, such as apache-2.0, or other.")
    if dtype not in (None, *DTYPES):
        raise ValueError(f"`dtype` is {dtype!r}; choose one of {', '.join(DTYPES)}, or leave it out.")
    reports = [read_evaluation(path, checkpoint) for path in evaluations]
    # What the card says, as it was recorded.
    records = {
        Path(path): f"evaluation{f'_{number}' if number else ''}.json" for number, path in enumerate(evaluations)
    }
    log = Path(checkpoint) / TRAINING_LOG
    if log.exists():
        records[log] = TRAINING_LOG
    model, processor = load_checkpoint(checkpoint, dtype or "auto", any_head=True)
    model.cpu().eval()
    card = make_card(
        model,
        name or output.resolve().name,
        evaluations=reports,
        training=training_facts(checkpoint),
        log=TRAINING_LOG if log.exists() else None,
        license=license,
        datasets=datasets,
        base_model=base_model,
    )
    summary = {
        "output": str(output),
        "model": type(model).__name__,
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype).removeprefix("torch."),
    }

    temporary = output.with_name(f"{output.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.mkdir(parents=True)
        # Each brings its code, and the map of Auto classes to it (`_auto_class`, `AUTO_MAP`).
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        # Only here: with `custom_pipelines` in its config a folder needs `trust_remote_code` for every pipeline.
        config = json.loads((temporary / "config.json").read_text(encoding="utf-8"))
        config["custom_pipelines"] = pipeline_coordformer.CUSTOM_PIPELINES
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        shutil.copy(pipeline_coordformer.__file__, temporary)
        (temporary / "LICENSE").write_text(read_license(), encoding="utf-8")
        (temporary / "requirements.txt").write_text(requirements(), encoding="utf-8")
        (temporary / "README.md").write_text(f"{card}\n", encoding="utf-8")
        for source, name in records.items():
            shutil.copy(source, temporary / name)
        if check:
            if progress:
                print("Loading the folder in a fresh process without the package ...", file=sys.stderr)
            check_reload(temporary, model, processor)
        summary["files"] = sorted(path.name for path in temporary.iterdir())
        summary["checked"] = list(reload_check.AUTO_MODELS) if check else []
        os.replace(temporary, output)
    except (OSError, SafetensorError) as error:
        fix = "make room" if getattr(error, "errno", None) in (None, errno.ENOSPC) else "mend that or give another name"
        raise OSError(f"{output} could not be written ({error}); {fix} and run again.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return summary


# ---------------------------------------------------------------------------------------------------------------------
# The check
# ---------------------------------------------------------------------------------------------------------------------


def check_reload(folder: str | Path, model: PreTrainedModel, processor: CoordformerProcessor) -> None:
    """Load a folder in a fresh process, where the package cannot be imported, and compare its outputs with the model's.

    In float32, on a chain of the twenty amino acids along a random walk of 3.8 Å steps, with a gap. The model is left
    in float32.

    Raises:
        ValueError: a class cannot be loaded, or gives other values (`torch.testing.assert_close`).
    """
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(len(AMINO_ACIDS), len(processor.coordinate_atoms), processor.coordinate_dim))
    coords = (3.8 * steps / np.linalg.norm(steps, axis=-1, keepdims=True)).cumsum(axis=0)
    coords[5:8] = np.nan
    if len(processor.coordinate_atoms) == 1:
        coords = coords[:, 0]
    with tempfile.TemporaryDirectory() as scratch:
        outputs = Path(scratch) / "outputs.safetensors"
        command = [sys.executable, "-P", reload_check.__file__, str(Path(folder).resolve()), str(outputs)]
        environment = {"HF_MODULES_CACHE": scratch, "HF_HUB_OFFLINE": "1"}
        chain = json.dumps({"sequence": AMINO_ACIDS, "coords": coords.tolist()})
        process = subprocess.run(
            command, input=chain, capture_output=True, text=True, cwd=scratch, env={**os.environ, **environment}
        )
        if process.returncode:
            reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
            raise ValueError(f"The folder does not load without the package ({reason}); check=False keeps it.")
        loaded = load_file(outputs)

    batch = processor(AMINO_ACIDS, coords=coords)
    expected = {f"AutoProcessor.{name}": values for name, values in batch.items()}
    expected["AutoTokenizer.input_ids"] = batch["input_ids"]
    for output, values in reload_check.predict(model.float(), batch).items():
        # Of all heads but the saved one the weights are new.
        names = [AUTO_CLASSES.get(type(model).__name__)] if output == "logits" else reload_check.AUTO_MODELS
        expected |= {f"{name}.{output}": values for name in names if name is not None}
    for name, values in expected.items():
        try:
            torch.testing.assert_close(loaded.get(name), values, equal_nan=True)
        except AssertionError as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"Loaded without the package, {name} differs ({reason}); check=False keeps the folder."
            ) from error
