"""An adapter of PEFT (LoRA and its kin) as a whole model: its changes are merged into the weights of its base."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedModel

from ..inference.checkpoints import load_checkpoint
from ..model import modeling_coordformer
from ..model.configuration_coordformer import CoordformerConfig
from ..model.processing_coordformer import CoordformerProcessor

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Names of weights that have a row for each class.
CLASSES = r"\bclassifier\.(out_proj\.)?(lora_B\.)?weight$"
# Of an adapter that names its task and not the class of its base.
HEADS = {
    "SEQ_CLS": "CoordformerForSequenceClassification",
    "TOKEN_CLS": "CoordformerForTokenClassification",
    "FEATURE_EXTRACTION": "CoordformerModel",
}


def adapter_settings(checkpoint: str | Path) -> dict[str, Any] | None:
    """What an adapter's folder says of it, or None where it is no adapter.

    Raises:
        ValueError: that cannot be read, or no base is named.
    """
    path = Path(checkpoint, SETTINGS)
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


def open_checkpoint(checkpoint: str | Path, dtype: str = "float32") -> tuple[PreTrainedModel, CoordformerProcessor]:
    """As `load_checkpoint` of a model with any head; of an adapter's folder the base with what was trained, merged.

    The head is the one that the adapter was trained with. Merged is in float32; `dtype` "auto" is the base's.

    Raises:
        ValueError: the folder holds no such model or adapter, its base cannot be loaded, or it cannot be merged.
        ImportError: there is an adapter and no `peft`.
    """
    settings = adapter_settings(checkpoint)
    if settings is None:
        return load_checkpoint(checkpoint, dtype, any_head=True)
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError as error:
        fix = 'install peft (pip install "coordformer[lora]")'
        raise ImportError(f"{checkpoint} is an adapter, which needs peft to be merged; {fix}.") from error

    folder, base = Path(checkpoint), settings["base_model_name_or_path"]
    fix = "give an adapter with the Coordformer that it was trained on, by PeftModel.save_pretrained"
    try:
        weights = load_file(folder / WEIGHTS)
        config: Any = AutoConfig.from_pretrained(base)
        if config.model_type != CoordformerConfig.model_type:
            raise ValueError(f"its base {base} holds a {config.model_type} model")
        saved = config.dtype
        if (folder / "config.json").exists():  # names of classes, where somebody saved them beside it
            config = AutoConfig.from_pretrained(folder)
        elif classes := [len(tensor) for name, tensor in weights.items() if re.search(CLASSES, name)]:
            config.num_labels = classes[0]
        named = (settings.get("auto_mapping") or {}).get("base_model_class") or HEADS.get(
            settings.get("task_type") or ""
        )
        head = getattr(modeling_coordformer, named or (config.architectures or ["CoordformerModel"])[0])
        model = head.from_pretrained(base, config=config, dtype=torch.float32)
        adapted: Any = PeftModel.from_pretrained(model, str(folder))
        if differing := sorted(weights.keys() ^ get_peft_model_state_dict(adapted).keys()):
            raise ValueError(f"its weights are not those of {head.__name__} with this adapter: {differing[0]}")
        if not hasattr(adapted.base_model, "merge_and_unload"):
            raise ValueError(f"{settings.get('peft_type')} changes no weights, so it cannot be merged into them")
        model = adapted.merge_and_unload(safe_merge=True)
        processor = CoordformerProcessor.from_pretrained(
            folder if (folder / "processor_config.json").exists() else base
        )
    except (OSError, ValueError, AttributeError, RuntimeError, KeyError, SafetensorError) as error:
        raise ValueError(
            f"The adapter {checkpoint} cannot be merged ({' '.join(str(error).split())}); {fix}."
        ) from error
    kept = saved if dtype == "auto" and saved is not None else getattr(torch, dtype, torch.float32)
    return model.to("cuda" if torch.cuda.is_available() else "cpu", kept).eval(), processor
