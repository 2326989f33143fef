# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""From chains to what a model makes of them: windows, batches of a token budget, longest first.

Every verb goes through `predict`. A row is what the model reads in one go, a chain or a window of it; rows come chain
by chain, the longest chain first, so that rows of a batch are of like length, and a batch that does not fit in the
memory shows at once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from .processing_coordformer import CoordformerProcessor, pad_batch
from .proteins import Record, residues_of
from .structure_layers import Structure
from .windows import SPECIAL_TOKENS, cut_window, longest_window, window_starts


@dataclass(slots=True)
class Row:
    """What the model reads in one go.

    Attributes:
        chain: number of the chain.
        start: its first residue.
        inputs: `input_ids` (tokens,), `<cls>` and `<eos>` included; `coords` (tokens, D) or (tokens, atoms, D), Å, NaN
            where not observed; of a complex or a chain with gaps `position_ids` and `chain_ids` (tokens,).
        places: (asked,), the tokens whose outputs are wanted; None: all of them.
        tag: what whoever made the row wants to find again.
        rotation: (D, D), by which the model turns the row about its center.
        last: whether it is the last one of its chain.
        residues: of the whole chain, of rows of `window_rows`.
        structure: equal for rows with the same coordinates, of which the model then computes once what tokens do not
            change; such rows come one after another. None: the row is by itself.
    """

    chain: int
    start: int
    inputs: dict[str, np.ndarray]
    places: np.ndarray | None = None
    tag: Any = None
    rotation: torch.Tensor | None = None
    last: bool = False
    residues: int = 0
    structure: Any = None


def tokens_of(row: Row) -> int:
    return len(row.inputs["input_ids"])


def longest_first(chains: Sequence[Record]) -> list[int]:
    """Numbers of the chains by length, the longest first; of equal ones in their order."""
    return sorted(range(len(chains)), key=lambda number: -residues_of(chains[number]))


def model_processor(model: Any, tokenizer: PreTrainedTokenizerBase) -> CoordformerProcessor:
    """The processor that makes what a model reads, whatever atoms were asked for elsewhere."""
    config = model.config
    return CoordformerProcessor(tokenizer, config.coordinate_atoms, config.coordinate_dim, config.optional_atoms)


def window_rows(
    model: Any, tokenizer: PreTrainedTokenizerBase, chains: Sequence[Record], *,
    window: int = 1024, without_coords: bool = False,
) -> Iterator[Row]:  # fmt: skip
    """Rows of whole chains, longest first.

    Args:
        model, tokenizer: a Coordformer, and its tokenizer.
        chains: what `CoordformerProcessor.encode_protein` takes.
        window: a chain of more residues is cut into windows of so many, which overlap by half, to be averaged.
        without_coords: give the model no coordinates.
    """
    window = longest_window(model.config, window)
    processor = model_processor(model, tokenizer)
    for number in longest_first(chains):
        arrays = processor.encode_protein(chains[number], without_coords)
        residues = len(arrays["input_ids"]) - SPECIAL_TOKENS
        inside = min(window, residues)
        for start in (starts := window_starts(residues, inside)):
            inputs = cut_window(arrays, start, inside, model.config)
            yield Row(number, start, inputs, last=start == starts[-1], residues=residues)


def collate_rows(rows: Sequence[Row], pad_token_id: int, device: torch.device | str) -> dict[str, torch.Tensor]:
    """Rows as a batch that is padded on the right, as a model takes it."""
    batch = pad_batch([row.inputs for row in rows], pad_token_id)
    tensors = {name: torch.from_numpy(values).to(device) for name, values in batch.items()}
    if rows[0].rotation is not None:
        turns = torch.stack([row.rotation for row in rows if row.rotation is not None])
        tensors["rotations"] = turns.unsqueeze(1).to(device)
    return tensors


def share_structure(model: Any, rows: Sequence[Row], shared: dict[Any, Structure]) -> dict[str, Any] | None:
    """Rows with the same coordinates as a batch of tokens and their one structure, which `shared` keeps for the next.

    None where each row is by itself.
    """
    key = rows[0].structure
    if key is None:
        return None
    first = collate_rows(rows[:1], model.config.pad_token_id, model.device)
    given = {name: first[name] for name in ("input_ids", "position_ids", "chain_ids") if name in first}
    if key not in shared:
        shared.clear()
        shared[key] = model.base_model.encode_structure(first["coords"], **given)
    tokens = torch.from_numpy(np.stack([row.inputs["input_ids"] for row in rows]))
    positions = {"position_ids": given["position_ids"]} if "position_ids" in given else {}
    return {"input_ids": tokens.to(model.device), "structure": shared[key]} | positions


@torch.no_grad()
def predict(
    model: Any, rows: Iterable[Row], forward: Callable[[dict[str, torch.Tensor]], torch.Tensor], *,
    token_budget: int = 8192, bar: Any = None, by_row: bool = False,
) -> Iterator[tuple[Row, np.ndarray]]:  # fmt: skip
    """What a model makes of rows, in batches.

    Args:
        model: is set to evaluation; its config has the padding token.
        rows: the longer ones first.
        forward: from a padded batch to a tensor (batch, tokens, ...), or of whole rows (batch, ...). Where rows have
            `places` the batch has `kept_tokens`, and the tensor these alone.
        token_budget: tokens of a batch, padding included; a row that is longer is a batch of its own.
        bar: of tqdm; is moved on by each chain that is done, or `by_row`.

    Yields:
        Each row with its output, float32: (asked, ...) where the row has `places`, else what `forward` gives for it.

    Raises:
        ValueError: `token_budget` is less than 1.
    """
    if token_budget < 1:
        raise ValueError(f"`token_budget` is {token_budget}; it must be at least 1.")
    model.eval()
    shared: dict[Any, Structure] = {}
    batch: list[Row] = []
    for row in rows:
        full = batch and (len(batch) + 1) * max(tokens_of(batch[0]), tokens_of(row)) > token_budget
        if full or (batch and batch[0].structure != row.structure):
            yield from _predict_batch(model, batch, forward, bar, by_row, shared)
            batch = []
        batch.append(row)
    if batch:
        yield from _predict_batch(model, batch, forward, bar, by_row, shared)


def _predict_batch(
    model: Any, rows: list[Row], forward: Any, bar: Any, by_row: bool, shared: dict[Any, Structure]
) -> Iterator[tuple[Row, np.ndarray]]:
    batch = share_structure(model, rows, shared) or collate_rows(rows, model.config.pad_token_id, model.device)
    places = [row.places for row in rows if row.places is not None]
    if places:
        kept = [np.pad(each, (0, max(map(len, places)) - len(each))) for each in places]
        batch["kept_tokens"] = torch.from_numpy(np.stack(kept)).to(model.device)
    outputs = forward(batch).float().cpu().numpy()  # one copy from the device for all rows
    for row, output in zip(rows, outputs, strict=True):
        yield row, output if row.places is None else output[: len(row.places)]
    if bar is not None:
        bar.update(len(rows) if by_row else sum(row.last for row in rows))
