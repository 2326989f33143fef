# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""Windows of long chains: where they start, what they hold and how they are averaged.

Each is a chain to the model, with its own `<cls>`, `<eos>`, center and positions.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

SPECIAL_TOKENS = 2  # <cls> before a chain and <eos> after it


def window_starts(length: int, window: int) -> list[int]:
    """First residues of windows that cover a chain and overlap by half; the last one ends with the chain.

    Examples:
        >>> window_starts(10, window=4)
        [0, 2, 4, 6]
    """
    return [*range(0, max(length - window, 0), max(window // 2, 1)), max(length - window, 0)]


def window_around(indices: np.ndarray, length: int, window: int) -> np.ndarray:
    """First residues of the windows in which the residues at `indices` lie near the middle.

    Windows start an eighth of their length apart, so that a row of the model serves many residues. Each residue has at
    least seven sixteenths of its window on either side, where the chain has as many.

    Examples:
        >>> window_around(np.arange(7), length=7, window=3)
        array([0, 0, 1, 2, 3, 4, 4])
        >>> np.unique(window_around(np.arange(100), length=100, window=48))
        array([ 0,  6, 12, 18, 24, 30, 36, 42, 48, 52])
    """
    apart = max(window // 8, 1)
    nearest = (indices - window // 2 + apart // 2) // apart * apart
    return np.clip(nearest, 0, max(length - window, 0))


def middle_window(length: int, window: int) -> int:
    """First residue of the middle window of a chain."""
    return max(length - window, 0) // 2


def longest_window(config: Any, window: int) -> int:
    """Residues of a window of at most `window` that a model with this `config` has positions for.

    Raises:
        ValueError: `window` is less than 2.
    """
    if window < 2:
        raise ValueError(f"`window` is {window}; it must be at least 2.")
    if config.position_embedding_type != "absolute":
        return window
    return min(window, config.max_position_embeddings - config.pad_token_id - 1 - SPECIAL_TOKENS)


def cut_window(arrays: Mapping[str, np.ndarray], start: int, residues: int, config: Any) -> dict[str, np.ndarray]:
    """A window of a chain: of each array (tokens, ...) `<cls>`, `residues` from the one at `start` on, and `<eos>`.

    `position_ids`, where there are any, begin with 0 again; gaps in them are made smaller where a model with this
    `config` has no positions for them.
    """
    tokens = [0, *range(start + 1, start + 1 + residues), len(arrays["input_ids"]) - 1]
    window = {name: values[tokens] for name, values in arrays.items()}
    if (positions := window.get("position_ids")) is not None:
        gaps = np.diff(positions[1:-1]) - 1
        if config.position_embedding_type == "absolute" and gaps.any():
            room = config.max_position_embeddings - config.pad_token_id - 1 - len(tokens)
            gaps = (gaps * min(1.0, room / gaps.sum())).astype(gaps.dtype)
        positions[0], positions[1] = 0, 1
        positions[2:-1] = 1 + np.cumsum(gaps + 1)
        positions[-1] = positions[-2] + 1
    return window


class WindowMean:
    """Mean, over the windows that hold a residue or pair of residues, of what the model gives for it there.

    `shape` is that of a chain's values, of which the first `axes` are residues: (residues, ...) and 1, (residues,
    residues) and 2, or, of the chain as a whole, (features,) and 0.
    """

    def __init__(self, shape: tuple[int, ...], axes: int):
        self.total = np.zeros(shape, dtype=np.float32)
        self.count = np.zeros(shape[:axes], dtype=np.float32)

    def add(self, start: int, values: np.ndarray) -> None:
        """Take in the values of a window whose first residue is `start`."""
        where = tuple(slice(start, start + size) for size in values.shape[: self.count.ndim])
        self.total[where] += values
        self.count[where] += 1

    def mean(self) -> np.ndarray:
        """Of the chain, float32; NaN where no window holds both residues of a pair."""
        count = self.count.reshape(self.count.shape + (1,) * (self.total.ndim - self.count.ndim))
        return np.where(count > 0, self.total / np.maximum(count, 1), np.float32(np.nan))
