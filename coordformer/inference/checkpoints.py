"""Checkpoints as the verbs open them, and what is said of them."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedModel

from ..model import modeling_coordformer
from ..model.configuration_coordformer import CoordformerConfig
from ..model.processing_coordformer import CoordformerProcessor


def load_checkpoint(
    checkpoint: str | Path, dtype: str = "float32", any_head: bool = False
) -> tuple[PreTrainedModel, CoordformerProcessor]:
    """A masked-LM Coordformer, on the GPU if there is one, and its processor.

    Args:
        checkpoint: folder or Hub name.
        dtype: of the weights: `"float32"`, `"bfloat16"`, or `"auto"`, as they were saved.
        any_head: take a Coordformer with the head that it was saved with, or without one.

    Raises:
        ValueError: the folder or name holds no such model, or the processor is missing.
    """
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
    except (OSError, ValueError, AttributeError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise ValueError(f"{checkpoint} cannot be loaded ({' '.join(str(error).split())}); {fix}.") from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), processor


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
