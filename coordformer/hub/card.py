"""The model card: what was recorded of a checkpoint and measured on it, in the form of `hub_cards/template.md`."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedModel
from transformers.pipelines import PIPELINE_REGISTRY
from yaml import YAMLError

from ..data.collator import PROTOCOLS
from ..data.records import package_version
from ..data.training_sequences import read_training_sequences
from ..inference.checkpoints import coordinates_of, digest_weights, load_checkpoint
from ..model.configuration_coordformer import AUTO_MAP
from .adapter import base_of_adapter, describe_adapter

AUTO_CLASSES = {place.partition(".")[2]: name for name, place in AUTO_MAP.items()}
PIPELINE_TAGS = {
    "CoordformerForMaskedLM": "fill-mask",
    "CoordformerForSequenceClassification": "text-classification",
    "CoordformerForTokenClassification": "token-classification",
}
# For the page on the Hub: ubiquitin, for a masked language model with a residue to fill in.
UBIQUITIN = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"
METRICS = {"perplexity": "perplexity", "recovery": "accuracy"}  # of `coordformer evaluate`, and as the Hub calls them
# Of an evaluation.
SETTINGS = {"checkpoint", "weights", "data", "split", "coordinates", "dtype", "num_rotations", "num_mask_samples",
            "chains"}  # fmt: skip


def read_evaluation(path: str | Path, checkpoint: str | Path) -> dict[str, Any]:
    """A report of `coordformer evaluate` on this checkpoint.

    Raises:
        OSError: there is no such file.
        ValueError: it is no such report, or one on another checkpoint.
    """
    try:
        report = _with_todays_names(json.loads(Path(path).read_text(encoding="utf-8")))
        results = [report[protocol] for protocol in PROTOCOLS if protocol in report]
        measured = {*METRICS, *(f"{metric}_interval" for metric in METRICS)}
        whole = bool(results) and all(measured <= result.keys() for result in results) and report.keys() >= SETTINGS
    except (ValueError, TypeError, KeyError, AttributeError):  # no JSON, or JSON of something else
        whole = False
    if not whole:
        raise ValueError(f"{path} is no report of perplexity and recovery; give one that `coordformer evaluate` wrote.")
    if report["weights"] != digest_weights(load_checkpoint(checkpoint, report["dtype"], any_head=True)[0]):
        others = f"{report['checkpoint']!r} with other weights than those of {checkpoint}"
        raise ValueError(f"{path} was measured on {others}; evaluate what is exported.")
    return report


def _with_todays_names(report: dict[str, Any]) -> dict[str, Any]:
    """A report with the names of today, where version 0.1.0 wrote it."""
    if "draws" not in report:
        return report
    words = {"withheld": "not given", "local": "local frame", "points": "invariant points"}
    settings = {"num_mask_samples" if name == "draws" else name: value for name, value in report.items()}
    settings["coordinates"] = re.sub("[a-z]+", lambda word: words.get(word[0], word[0]), report["coordinates"])
    for protocol in settings.keys() & set(PROTOCOLS):
        measured = settings[protocol].items()
        settings[protocol] = {name.replace("_by_draw", "_by_mask_sample"): value for name, value in measured}
    return settings


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
            metric_args={"interval": report[protocol][f"{metric}_interval"]}
            | {name: report[name] for name in ("chains", "dtype", "num_rotations")},
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
    facts["adapter"] = describe_adapter(checkpoint)
    try:
        if run.exists():
            settings = json.loads(run.read_text(encoding="utf-8"))
            facts |= _settings(settings["data"], settings["training"])
        if result.exists():
            summary = json.loads(result.read_text(encoding="utf-8"))
            facts |= {"updates": f"{summary['steps']:,}", "SHA-256 of the data": summary.get("data_sha256")}
            facts["command"] = summary.get("command") and f"`{summary['command']}`"
            facts["commit of the code"] = summary.get("commit")
            facts["calibrated"] = summary.get("temperature") and f"logits divided by {summary['temperature']:g}"
            if before := "; before that ".join(_earlier_stages(summary)):
                facts |= {"started from": None, "trained before": before}  # a folder's name says less
        if state.exists():
            progress = json.loads(state.read_text(encoding="utf-8"))
            losses = [entry["loss"] for entry in progress["log_history"] if "loss" in entry]
            facts["updates"] = f"{progress['global_step']:,}"
            facts["last training loss"] = f"{losses[-1]:.3f}" if losses else None
    except (ValueError, KeyError, TypeError) as error:
        what = f"{run}, {result.name} or {state.name} cannot be read ({type(error).__name__}: {error})"
        raise ValueError(f"{what}; move them away to export without what they say.") from error
    if (known := read_training_sequences(checkpoint)) is not None and known.unknown:
        facts["not recorded"] = f"what {' and '.join(known.unknown)} had been trained on"
    return {name: value for name, value in facts.items() if value}


def recorded_base(checkpoint: str | Path) -> str | None:
    """The Hub's name of the model that a checkpoint, or what it was started from, was made of, if it is recorded.

    Of an adapter its base, unless that is a folder; else what `coordformer train` got from the Hub.
    """
    if (base := base_of_adapter(checkpoint)) is not None:
        return recorded_base(base) if Path(base).exists() else base
    path = Path(checkpoint, "train.json")
    summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    while summary:
        if summary.get("base_model"):
            return str(summary["base_model"])
        summary = summary.get("started_from") or {}
    return None


def check_card(path: str | Path) -> ModelCardData:
    """The metadata of a model card, as `huggingface_hub` reads it, if the Hub will take it.

    Nothing is asked of the Hub, which validates once more what is pushed.

    Raises:
        ValueError: there is none, it is no YAML, or a value is none that the Hub or Transformers knows.
    """
    try:
        card = ModelCard.load(Path(path), ignore_metadata_errors=False)
        data = card.data.to_dict()
        if not data:
            raise ValueError("there is none")
        for name in ("base_model", "datasets"):
            values = data.get(name) or []
            for repository in [values] if isinstance(values, str) else values:
                validate_repo_id(repository)
        if not data.get("license"):
            raise ValueError("`license` is missing")
        if (task := data.get("pipeline_tag")) not in (None, *PIPELINE_REGISTRY.get_supported_tasks()):
            raise ValueError(f"`pipeline_tag` is {task!r}, no task of Transformers")
    except (ValueError, KeyError, TypeError, YAMLError) as error:
        raise ValueError(f"The metadata of {path} is not valid: {' '.join(str(error).split())}.") from error
    return card.data  # type: ignore[return-value]


def _earlier_stages(summary: Mapping[str, Any]) -> Iterator[str]:
    """Of a `train.json` the trainings that its weights had before, the last one first, in words."""
    while summary := summary.get("started_from") or {}:
        command, commit = summary.get("command"), summary.get("commit")
        by = f" by `{command}`" * bool(command) + f" at commit {commit}" * bool(commit)
        yield f"{summary['steps']:,} updates{by}"


def _span(value: float | Sequence[float], scale: float = 1) -> str:
    """One number, or the two that each chain draws its own between, in words."""
    return " to ".join(f"{scale * each:g}" for each in ([value] if isinstance(value, int | float) else value))


def _teachers(training: Mapping[str, Any]) -> str:
    """Names of the models that a model learned from, and how."""
    names = ", ".join(Path(each).name for each in training["teachers"])
    share, temperature = training["distillation_weight"], training["teacher_temperature"]
    return f"{names}: {100 * share:g} % of the loss is the divergence to them, temperature {temperature:g}"


def _settings(data: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's settings what a reader of the card asks for; a value is empty where there is nothing to say."""
    chains, tokens = training["per_device_train_batch_size"], data["token_budget"]
    batches = training["gradient_accumulation_steps"] * training["world_size"]
    rank = training.get("lora_rank")
    masks_all = data.get("masking") == "masked15"
    exact = f", none on {100 * data['exact_coords']:g} % of the chains" if data.get("exact_coords") else ""
    added = "those that were added" + f", and low-rank changes of the others (LoRA, rank {rank})" * bool(rank)
    return {
        "started from": training["init_from"] and Path(training["init_from"]).name,
        "behind a frozen": training["sequence_encoder"] and Path(training["sequence_encoder"]).name,
        "teachers": training.get("teachers") and _teachers(training),
        "trained layers": (rank or training.get("freeze")) and added,
        "data": f"{Path(data['data']).name}, split {data['train_split'] or 'all'}",
        "chains": f"{data['chains']:,}",
        "residues in an epoch": f"{data['residues']:,}",
        "longer chains": data["max_length"] and f"cropped at random to {data['max_length']:,} residues",
        "masked": f"{_span(data['mlm_probability'], 100)} % of the residues" + ", all by <mask>" * masks_all,
        "frames": "turned at random" if data["rotate"] else "as given",
        "noise": data["coordinate_noise"] and f"{_span(data['coordinate_noise'])} Å on coordinates{exact}",
        "without coordinates": data["drop_coords"] and f"{100 * data['drop_coords']:g} % of the chains",
        "without other atoms": data.get("drop_atoms")
        and f"in all or in part, {100 * data['drop_atoms']:g} % of the chains",
        "cut in two": data.get("split_chains") and f"{100 * data['split_chains']:g} % of the chains",
        "batch": (f"{tokens:,} tokens" if tokens else f"{chains} chains") + f", times {batches}" * (batches > 1),
        "optimizer": f"{'Muon and AdamW' if training.get('muon') else training['optim']}, "
        f"learning rate {training['learning_rate']:g}, {training['lr_scheduler_type']}, "
        f"{training['warmup_steps']:g} updates of warm-up",
        "precision": "bfloat16" if training["bf16"] else "float16" if training["fp16"] else "float32",
        "seed": str(training["seed"]),
    }


def make_card(
    model: PreTrainedModel,
    name: str,
    *,
    evaluations: Sequence[Mapping[str, Any]] = (),
    training: Mapping[str, str] | None = None,
    log: str | None = None,
    license: str | None = None,
    datasets: Sequence[str] = (),
    base_model: str | None = None,
    with_code: bool = True,
) -> ModelCard:
    """The model card, of `hub_cards/template.md`; what nobody recorded or measured it says is unknown.

    Args:
        model: the model, in the dtype that it is saved in.
        name: of the model.
        evaluations: see `read_evaluation`.
        training: see `training_facts`.
        log: name of the file with the training's losses.
        license, datasets, base_model: the Hub's names of the weights' license (default: of `default_license`), of the
            data sets that the model was trained on, and of the model that it was made of.
        with_code: whether the folder has the code of its classes, and loads without the package.
    """
    architecture = type(model).__name__
    task = PIPELINE_TAGS.get(architecture, "feature-extraction")
    license = license or default_license(model.config)
    data = ModelCardData(
        model_name=name,
        library_name="transformers",
        license=license,
        tags=["coordformer", "protein", "protein-language-model", "protein-structure"],
        datasets=list(datasets) or None,
        base_model=base_model,
        pipeline_tag=task,
        widget=_widget(task),
        metrics=list(METRICS.values()) if evaluations else None,
        eval_results=[result for report in evaluations for result in eval_results(report, task)] or None,
    )
    classifies = task.endswith("classification")
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
        invariant=_invariant(model.config),
        atoms=list(model.config.coordinate_atoms),
        labels=list((model.config.id2label or {}).values()) if classifies else [],
        base_model=base_model,
        training=training,
        log=log,
        evaluations=evaluations,
        protocols=PROTOCOLS,
        license=license,
        version=package_version(),
        with_code=with_code,
    )


def default_license(config: Any) -> str:
    """The Hub's name of the license of a model's weights where nobody says another.

    ProteinMPNN's layers are taken to start from its published weights, whose license stays with them.
    """
    return "mit" if config.encoder_type == "proteinmpnn" else "apache-2.0"


def _invariant(config: Any) -> bool:
    """Whether predictions do not depend on how a structure is turned."""
    if config.encoder_type == "proteinmpnn":
        return config.coordinate_atoms != ("CA",) or config.invariant_quaternions
    return config.coordinate_embedding in ("local_frame", "none")  # whatever else it reads


def _widget(task: str) -> list[dict[str, str]] | None:
    """What the page on the Hub offers to try."""
    if task == "feature-extraction":
        return None
    text = UBIQUITIN.replace("GKQ", "G<mask>Q") if task == "fill-mask" else UBIQUITIN
    return [{"text": text, "example_title": "Ubiquitin"}]


def find_template() -> Path:
    """The template of model cards: in the package where it was installed, beside it in the repository."""
    package = Path(__file__).parents[1]
    for folder in (package, package.parent):
        if (path := folder / "hub_cards" / "template.md").exists():
            return path
    raise FileNotFoundError(f"hub_cards/template.md is neither in {package} nor beside it; install coordformer again.")
