"""Files of other models' weights, and what a config can be given beside them."""

import dataclasses
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..model.configuration_coordformer import CoordformerConfig

NO_LOGIT = -1e4  # of tokens that a model lacks: no probability in a softmax, and finite in half precision


def check_fields(overrides: Iterable[str]) -> None:
    """Raise a ValueError unless all names are fields of `CoordformerConfig`."""
    known = {field.name for field in dataclasses.fields(CoordformerConfig)}
    if unknown := sorted(set(overrides) - known):
        raise ValueError(f"{', '.join(unknown)}: no field of CoordformerConfig; it has {', '.join(sorted(known))}.")


def read_weights(path: str | Path) -> Any:
    """Read a file of torch with `weights_only=True`, or of safetensors where its name ends so.

    Raises:
        OSError: there is no such file.
        ValueError: it is damaged, or holds more than tensors and plain values, which are not unpickled: that could run
            code.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        raise ValueError(
            f"{path} does not load with weights_only=True: it is damaged, or holds more than weights; if you trust it, "
            "load it in Python and save the model's state_dict() alone."
        ) from error


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the weights in a file, as `read_weights` does.

    Raises:
        OSError: there is no such file.
        ValueError: it holds anything but named tensors.
    """
    content = read_weights(path)
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        held = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} holds {held} and not the named tensors of a state dict; save these alone.")
    return content
