"""Checkpoints as the verbs open them, and what is said of them."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedModel

from ..data.records import hash_data
from ..model import modeling_coordformer
from ..model.configuration_coordformer import CoordformerConfig
from ..model.processing_coordformer import CoordformerProcessor

ADAPTER_SETTINGS, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # of PEFT
# Names of an adapter's weights that have a row for each class.
CLASSES = r"\bclassifier\.(out_proj\.)?(lora_B\.)?weight$"
# Of an adapter that names its task and not the class of its base.
ADAPTED_HEADS = {
    "SEQ_CLS": "CoordformerForSequenceClassification",
    "TOKEN_CLS": "CoordformerForTokenClassification",
    "FEATURE_EXTRACTION": "CoordformerModel",
}
UNUSABLE = (OSError, ValueError, AttributeError, KeyError, RuntimeError, SafetensorError, StrictDataclassError)


def load_checkpoint(
    checkpoint: str | Path, dtype: str = "float32", any_head: bool = False
) -> tuple[PreTrainedModel, CoordformerProcessor]:
    """A masked-LM Coordformer, on the GPU if there is one, and its processor.

    Args:
        checkpoint: folder or Hub name; or folder of an adapter of PEFT, whose changes are merged, in float32, into the
            weights of the model that it names.
        dtype: of the weights: `"float32"`, `"bfloat16"`, or `"auto"`, as its config (an adapter: its base's) says.
        any_head: take a Coordformer with the head that it was saved or adapted with, or without one.

    Raises:
        ValueError: the folder or name holds no such model, the processor is missing, or an adapter cannot be merged.
        ImportError: there is an adapter and no `peft`.
    """
    if (settings := adapter_settings(checkpoint)) is not None:
        return _merge_adapter(Path(checkpoint), settings, dtype, any_head)
    fix = "give a folder that `coordformer train` wrote, or the name of a Coordformer on the Hub"
    path = Path(checkpoint)
    # What lies beside it is here: no name on the Hub, which would be asked again and again.
    beside = len(path.parts) == 2 and path.parent.is_dir()
    if not path.exists() and (path.is_absolute() or len(path.parts) > 2 or beside):
        raise ValueError(f"There is no folder {checkpoint}; {fix}.")
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
        model, info = load(checkpoint, config=config, dtype=dtype, output_loading_info=True)
        if missing := sorted(info["missing_keys"]):
            kind = "whole model" if any_head else "masked language model"
            raise ValueError(f"it lacks {', '.join(missing[:3])}, so it is no {kind}")
        processor = CoordformerProcessor.from_pretrained(checkpoint)
    except UNUSABLE as error:
        raise ValueError(f"{checkpoint} cannot be loaded ({' '.join(str(error).split())}); {fix}.") from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), processor


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
        model, info = load(base, config=config, dtype=torch.float32, output_loading_info=True)
        # What a head of its own was before the adapter is known only if it was trained whole, and so is in its file.
        if lost := sorted(name for name in info["missing_keys"] if f"base_model.model.{name}" not in weights):
            raise ValueError(f"neither it nor its base {base} has {lost[0]}; train it with this in `modules_to_save`")
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
    ways += ["gated messages" if config.message_gating else "messages"] * bool(config.num_neighbors)
    return " and ".join(filter(None, (", ".join(ways[:-1]), *ways[-1:]))) or "none"


def coordinates_given(model: PreTrainedModel, coords: np.ndarray, without_coords: bool) -> str:
    """What a model gets of a chain's coordinates: `given`, `not given`, `unknown` (all are NaN) or `not read`."""
    if coordinates_of(model) == "none":
        return "not read"
    return "unknown" if np.isnan(coords).all() else "not given" if without_coords else "given"


def trained_on(checkpoint: str | Path, inputs: Sequence[str | Path], split: str | None) -> list[str]:
    """Names of the data sets among `inputs` that `coordformer train` recorded a checkpoint was trained on.

    Data sets are told by their contents (`hash_data`), and count unless `split` is another one than that of the
    training. So the same chains in another file are not recognized.

    Raises:
        ValueError: what is recorded cannot be read.
    """
    folder = Path(checkpoint).resolve()
    folder = folder.parent if folder.name.startswith("checkpoint-") else folder
    known: dict[str | None, str | None] = {}
    try:
        paths = (folder / name for name in ("run.json", "train.json"))
        run, stage = (json.loads(path.read_text(encoding="utf-8")) if path.exists() else {} for path in paths)
        data = run.get("data") or {}
        own = data.get("train_split")
        known = {data.get("sha256"): own, stage.get("data_sha256"): own}
        while stage := stage.get("started_from") or {}:  # of these nobody noted the split
            known.setdefault(stage.get("data_sha256"), "train")
    except (ValueError, AttributeError) as error:
        what = f"run.json or train.json in {folder} cannot be read ({error})"
        raise ValueError(f"{what}; move it away to evaluate without what it says.") from error
    known = {digest: own for digest, own in known.items() if digest and (None in (split, own) or split == own)}
    # Large data sets are read only where there is something to compare with.
    return [Path(each).name for each in inputs if hash_data(each) in known] if known else []
