"""Checkpoints as the verbs open them, and what is said of them."""

import contextlib
import difflib
import functools
import hashlib
import json
import logging
import operator
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import utils as hub
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ..data.records import counted, first_ones
from ..data.training_sequences import (
    NEW,
    SAME,
    SIMILAR,
    TrainingSequences,
    chain_sequences,
    read_training_sequences,
)
from ..model import modeling_coordformer
from ..model.chain import Chain, Complex
from ..model.configuration_coordformer import CoordformerConfig, check_noise_level
from ..model.processing_coordformer import CoordformerProcessor

logger = logging.getLogger(__name__)

ADAPTER_SETTINGS, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # of PEFT
# Names of an adapter's weights that have a row for each class.
CLASSES = r"\bclassifier\.(out_proj\.)?(lora_B\.)?weight$"
# Of an adapter that names its task and not the class of its base.
ADAPTED_HEADS = {
    "SEQ_CLS": "CoordformerForSequenceClassification",
    "TOKEN_CLS": "CoordformerForTokenClassification",
    "FEATURE_EXTRACTION": "CoordformerModel",
}
FOLDERS = {"hub_cards", "runs"}  # what the pages call folders of checkpoints: no users of the Hub
UNUSABLE = (OSError, ValueError, AttributeError, KeyError, RuntimeError, SafetensorError, StrictDataclassError)


@contextlib.contextmanager
def quiet_loading(source: str | Path) -> Iterator[None]:
    """Load without what Transformers tells a user who chooses the class; what was set before is set again.

    That is the table of weights that are unexpected or missing where the head is another one, of which a verb speaks
    itself; the bar of a folder's weights, which are there at once, while what comes from the Hub keeps its bars; and a
    name that PEFT asks for and Transformers warns of.
    """

    def keep(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    reports = logging.getLogger("transformers.modeling_utils")
    hide = Path(source).is_dir() and transformers_logging.is_progress_bar_enabled()
    hub_bars = not hub.are_progress_bars_disabled()  # which go with those of Transformers, both ways
    reports.addFilter(keep)
    if hide:
        transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            yield
    finally:
        reports.removeFilter(keep)
        if hide:
            transformers_logging.enable_progress_bar()
            if not hub_bars:
                hub.disable_progress_bars()


def _refuse_other_shapes(info: Mapping[str, Any]) -> None:
    """`ValueError` where weights have other shapes than the model, of what `from_pretrained` says of loading."""
    for name, found, expected in sorted(info["mismatched_keys"], key=str):
        raise ValueError(f"its {name} is {tuple(found)}, but by its config it is {tuple(expected)}")


def load_checkpoint(
    checkpoint: str | Path, dtype: str = "float32", any_head: bool = False, noise_level: float | None = None
) -> tuple[PreTrainedModel, CoordformerProcessor]:
    """A masked-LM Coordformer, on the GPU if there is one, and its processor.

    Args:
        checkpoint: folder or Hub name; or folder of an adapter of PEFT, whose changes are merged, in float32, into the
            weights of the model that it names.
        dtype: of the weights: `"float32"`, `"bfloat16"`, or `"auto"`, as its config (an adapter: its base's) says.
        any_head: take a Coordformer with the head that it was saved or adapted with, or without one.
        noise_level: `config.noise_level` in place of the checkpoint's, for a model with `config.noise_conditioning`.

    Raises:
        ValueError: the folder or name holds no such model, the processor is missing, or an adapter cannot be merged;
            or it is not told of noise.
        ImportError: there is an adapter and no `peft`.
    """
    if (settings := adapter_settings(checkpoint)) is not None:
        model, processor = _merge_adapter(Path(checkpoint), settings, dtype, any_head)
    else:
        model, processor = _load(checkpoint, dtype, any_head)
    if noise_level is not None:
        check_noise_level(noise_level)
        if not model.config.noise_conditioning:
            raise ValueError(f"`noise_level` is {noise_level} Å, but {checkpoint} is not told of noise; leave it out.")
        model.config.noise_level = noise_level
    return model, processor


def _load(checkpoint: str | Path, dtype: str, any_head: bool) -> tuple[PreTrainedModel, CoordformerProcessor]:
    """`load_checkpoint` of what is no adapter."""
    fix = "give a folder that `coordformer train` wrote, or the name of a Coordformer on the Hub"
    path = Path(checkpoint)
    # What lies beside it is here: no name on the Hub, which would be asked again and again.
    beside = len(path.parts) == 2 and (path.parent.is_dir() or path.parts[0] in FOLDERS)
    if not path.exists() and (path.is_absolute() or len(path.parts) != 2 or beside):
        # A name on the Hub is USER/NAME; what has none may lie in a folder of checkpoints below.
        names = _near_names(path)
        did_you_mean = f"did you mean {' or '.join(names)}? If not, " if names else ""
        raise ValueError(f"There is no folder {checkpoint}; {did_you_mean}{fix}.")
    if path.is_file():
        raise ValueError(f"{checkpoint} is a file; the checkpoint comes first, and then what is to be read: {fix}.")
    if path.is_dir() and not (path / "processor_config.json").exists():
        raise ValueError(
            f"{checkpoint} holds no processor; {fix}, or add it by CoordformerProcessor().save_pretrained."
        )
    try:
        config = AutoConfig.from_pretrained(checkpoint)
        if config.model_type != CoordformerConfig.model_type:
            raise ValueError(f"it holds a {config.model_type} model")
        head = (config.architectures or ["CoordformerModel"])[0] if any_head else "CoordformerForMaskedLM"
        load = getattr(modeling_coordformer, head).from_pretrained
        options: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        with quiet_loading(checkpoint):
            model, info = load(checkpoint, config=config, dtype=dtype, **options)
        _refuse_other_shapes(info)
        if missing := sorted(info["missing_keys"]):
            kind = "whole model" if any_head else "masked language model"
            raise ValueError(f"it lacks {', '.join(missing[:3])}, so it is no {kind}")
        processor = CoordformerProcessor.from_pretrained(checkpoint)
    except UNUSABLE as error:
        raise ValueError(f"{checkpoint} cannot be loaded ({' '.join(str(error).split())}); {fix}.") from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), processor


def _near_names(path: Path) -> list[str]:
    """Folders that a path that is none may mean: of this name in a folder here, and with names like it beside it."""
    try:
        below = [each / path.name for each in sorted(Path().iterdir())] if len(path.parts) == 1 else []
        beside = {each.name: each for each in path.parent.iterdir() if (each / "config.json").is_file()}
    except OSError:  # there is no such folder, or it may not be read
        return []
    near = [str(each) for each in below if (each / "config.json").is_file()]
    return near + [str(beside[name]) for name in difflib.get_close_matches(path.name, beside, 3)]


def stated_noise(noise_level: float | None) -> dict[str, float]:
    """The setting of a run, where it was given; see `runner.UNSTATED`."""
    return {} if noise_level is None else {"noise_level": noise_level}


def adapter_settings(checkpoint: str | Path) -> dict[str, Any] | None:
    """What the folder of an adapter says of it, or None where it is no adapter.

    Raises:
        ValueError: that cannot be read, or no base is named.
    """
    path = Path(checkpoint, ADAPTER_SETTINGS)
    if not path.exists():
        return None
    try:
        settings = dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); save the adapter again.") from error
    if not settings.get("base_model_name_or_path"):
        fix = "write the folder or Hub name of the model that it was trained on there"
        raise ValueError(f"{path} has no `base_model_name_or_path`; {fix}.")
    return settings


def _merge_adapter(
    folder: Path, settings: dict[str, Any], dtype: str, any_head: bool
) -> tuple[PreTrainedModel, CoordformerProcessor]:
    """The model that an adapter was trained on, with its changes; arguments and errors as of `load_checkpoint`."""
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError as error:
        fix = 'install peft (pip install "coordformer[lora]")'
        raise ImportError(f"{folder} is an adapter, which needs peft to be merged; {fix}.") from error

    base = settings["base_model_name_or_path"]
    fix = "give an adapter with the Coordformer that it was trained on, by PeftModel.save_pretrained"
    try:
        weights = load_file(folder / ADAPTER_WEIGHTS)
        config: Any = AutoConfig.from_pretrained(base)
        if config.model_type != CoordformerConfig.model_type:
            raise ValueError(f"its base {base} holds a {config.model_type} model")
        saved = config.dtype
        if (folder / "config.json").exists():  # names of classes, where somebody saved them beside it
            config = AutoConfig.from_pretrained(folder)
        elif classes := [len(tensor) for name, tensor in weights.items() if re.search(CLASSES, name)]:
            config.num_labels = classes[0]
        named = (settings.get("auto_mapping") or {}).get("base_model_class")
        named = named or ADAPTED_HEADS.get(settings.get("task_type") or "")
        named = named or (config.architectures or ["CoordformerModel"])[0]
        if not any_head and named != "CoordformerForMaskedLM":
            raise ValueError(f"it adapts a {named}, which is no masked language model")
        load = getattr(modeling_coordformer, named).from_pretrained
        options: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        with quiet_loading(base):
            model, info = load(base, config=config, dtype=torch.float32, **options)
        # What a head of its own was before the adapter is known only if it was trained whole, and so is in its file.
        new = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
        if lost := sorted(name for name in new if f"base_model.model.{name}" not in weights):
            raise ValueError(f"neither it nor its base {base} has {lost[0]}; train it with this in `modules_to_save`")
        with quiet_loading(folder):
            adapted: Any = PeftModel.from_pretrained(model, str(folder))
        if differing := sorted(weights.keys() ^ get_peft_model_state_dict(adapted).keys()):
            raise ValueError(f"its weights are not those of {named} with this adapter: {differing[0]}")
        if not hasattr(adapted.base_model, "merge_and_unload"):
            raise ValueError(f"{settings.get('peft_type')} changes no weights, so it cannot be merged into them")
        model = adapted.merge_and_unload(safe_merge=True)
        beside = (folder / "processor_config.json").exists()
        processor = CoordformerProcessor.from_pretrained(folder if beside else base)
    except UNUSABLE as error:
        raise ValueError(f"The adapter {folder} cannot be merged ({' '.join(str(error).split())}); {fix}.") from error
    kept = saved if dtype == "auto" and saved is not None else getattr(torch, dtype, torch.float32)
    return model.to("cuda" if torch.cuda.is_available() else "cpu", kept).eval(), processor


def digest_weights(model: torch.nn.Module) -> str:
    """A checksum of a model's weights in their dtype: another model's folder may have the same name.

    So that what was recorded with version 0.1.0 is still recognized, names are those of then, and the edge of another
    chain, which a checkpoint of then does not have, is left out where it was never trained.
    """
    digest, state = hashlib.sha256(), model.state_dict()
    for name, tensor in state.items():
        if name.endswith("edge_features.other_chain"):
            start = modeling_coordformer.other_chain_start(state[name.replace("other_chain", "separation.weight")])
            if torch.allclose(tensor.float(), start, rtol=2**-7, atol=1e-6):  # it may have been in bfloat16
                continue
        for old, new in modeling_coordformer.RENAMED_WEIGHTS.items():
            name = name.replace(new, old)
        digest.update(name.encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def coordinates_of(model: PreTrainedModel) -> str:
    """How a model reads coordinates, in a few words such as `local frame and invariant points`, or `none`."""
    config = model.config
    ways = [config.coordinate_embedding.replace("_", " ")] if config.coordinate_embedding != "none" else []
    ways += ["distance bias"] * bool(config.num_distance_bins) + ["invariant points"] * bool(config.num_qk_points)
    messages = "gated messages" if config.message_gating else "messages"
    messages += " with attention" * config.message_attention + " over updated edges" * config.edge_updates
    ways += [messages] * bool(config.num_neighbors)
    return " and ".join(filter(None, (", ".join(ways[:-1]), *ways[-1:]))) or "none"


def read_for(processors: Sequence[CoordformerProcessor]) -> dict[str, Any]:
    """What is read of structure files for several models, as `CoordformerProcessor.reads` of one."""
    atoms = tuple(dict.fromkeys(atom for each in processors for atom in each.coordinate_atoms))
    needed = {atom for each in processors for atom in each.coordinate_atoms if atom not in each.optional_atoms}
    return {"atoms": atoms, "optional_atoms": tuple(atom for atom in atoms if atom not in needed)}


def coordinates_given(model: PreTrainedModel, coords: np.ndarray, without_coords: bool) -> str:
    """What a model gets of a chain's coordinates: `given`, `not given`, `unknown` (all are NaN) or `not read`."""
    if coordinates_of(model) == "none":
        return "not read"
    return "unknown" if np.isnan(coords).all() else "not given" if without_coords else "given"


def training_sequences_of(*checkpoints: str | Path) -> TrainingSequences | None:
    """What is recorded of the sequences that any of the checkpoints was trained on, if anything is.

    Of an adapter without a record it is that of its base, and the adapter is named as not known.

    Raises:
        ValueError: a record is broken.
    """
    records = list(map(_recorded_sequences, checkpoints))
    unknown = [Path(each).resolve().name for each, record in zip(checkpoints, records, strict=True) if record is None]
    if len(unknown) == len(records):
        return None
    known = [record for record in records if record is not None]
    if unknown:
        known.append(TrainingSequences.of((), unknown))
    return functools.reduce(operator.or_, known)


def _recorded_sequences(checkpoint: str | Path) -> TrainingSequences | None:
    record, settings = read_training_sequences(checkpoint), adapter_settings(checkpoint)
    if record is not None or settings is None:
        return record
    base = read_training_sequences(settings["base_model_name_or_path"])
    return None if base is None else base | TrainingSequences.of((), [Path(checkpoint).resolve().name])


def trained_on(record: TrainingSequences | None, proteins: Sequence[Sequence[str]]) -> list[str | None]:
    """Whether a checkpoint was trained on proteins.

    Args:
        record: as of `training_sequences_of`.
        proteins: the sequences of the chains of each.

    Returns:
        Of each protein `same` where a chain is a training sequence, `similar` where one is nearly identical to one (by
        about 90 % or more), `no`, or None where nobody knows: nothing is recorded, or not all.
    """
    if record is None:
        return [None] * len(proteins)
    distinct = list(dict.fromkeys(sequence for chains in proteins for sequence in chains))
    kinds = dict(zip(distinct, record.find(distinct).tolist(), strict=True))
    words = {SAME: "same", SIMILAR: "similar", NEW: None if record.unknown else "no"}
    return [words[max((kinds[sequence] for sequence in chains), default=NEW)] for chains in proteins]


def training_reports(record: TrainingSequences | None, proteins: Sequence[Chain]) -> list[dict[str, Any]]:
    """For reports: of each protein `trained_on`, and of a complex `trained_on_chains`, the chains that are known."""
    sequences = [chain_sequences(protein) for protein in proteins]
    answers = iter(trained_on(record, [[sequence] for chains in sequences for sequence in chains]))
    reports: list[dict[str, Any]] = []
    for protein, chains in zip(proteins, sequences, strict=True):
        own = [next(answers) for _ in chains]
        known = next((word for word in ("same", "similar") if word in own), None)
        reports.append({"trained_on": known or own[0]})
        if known and isinstance(protein, Complex) and len(own) > 1:
            pairs = zip(protein.chain_names, own, strict=True)
            reports[-1]["trained_on_chains"] = [name for name, word in pairs if word in ("same", "similar")]
    return reports


def count_trained_on(answers: Iterable[str | None]) -> dict[str, int]:
    """How many of the answers of `trained_on` are `same` and `similar`, and of how many it is `unknown`."""
    counts = Counter(answers)
    return {"same": counts["same"], "similar": counts["similar"], "unknown": counts[None]}


def describe_trained_on(
    checkpoint: str, counts: Mapping[str, int], number: int, noun: str, what: str, names: Sequence[str] = (),
    several: bool = False,
) -> str | None:  # fmt: skip
    """In a line which proteins a checkpoint was trained on; None where it is not known of any.

    Args:
        checkpoint: its name.
        counts: as of `count_trained_on`.
        number, noun: how many there are of what.
        what: says how well they are known.
        names: of those that were trained on, or that are similar to such.
        several: whether a name is of several chains of one protein.
    """
    same, similar = counts["same"], counts["similar"]
    trained, alike = f"among the training sequences of {checkpoint}", "nearly identical (about 90 % or more) to"
    one_of_them = f"a training sequence of {checkpoint}"
    if number == 1 and names:
        ones = f"training sequences of {checkpoint}" if several else one_of_them
        was, are, they_are = ("were", "are", "they are") if several else ("was", "is", "it is")
        text = f"{was} {trained}" if same else f"{are} {alike} {ones}"
        return f"{names[0]} {text}: {what} how well {they_are} known"
    parts = []
    if same:
        parts.append(f"{same:,} of {counted(number, noun)} {'was' if same == 1 else 'were'} {trained}")
    if similar:
        of, other = ("more", "one") if same else (f"of {counted(number, noun)}", one_of_them)
        parts.append(f"{similar:,} {of} {'is' if similar == 1 else 'are'} {alike} {other}")
    listed = f" ({first_ones(names, 3)})" if names else ""
    return f"{' and '.join(parts)}{listed}: {what} how well they are known" if parts else None


def warn_of_training(
    checkpoint: str, reports: Sequence[Mapping[str, Any]], name: str, what: str = "scores say"
) -> dict[str, int]:
    """Say which proteins a checkpoint was trained on, by their reports, and count them.

    Args:
        checkpoint, what: as of `describe_trained_on`.
        reports: of each protein what `training_reports` says, which a part that an older version wrote does not have,
            and its id.
        name: what the id is called there.
    """
    seen = count_trained_on(report.get("trained_on") for report in reports)
    names, several = [], False
    for report in reports:
        if report.get("trained_on") in ("same", "similar"):
            chains = report.get("trained_on_chains", ())
            several = len(chains) > 1
            of = f"chain{'s' * several} {', '.join(chains)} of " if chains else ""
            names.append(of + report[name])
    if text := describe_trained_on(checkpoint, seen, len(reports), "protein", what, names, several):
        logger.warning("%s", text)
    return seen
