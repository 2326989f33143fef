# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""Vectors of chains and residues: the last hidden states of a model, and the one way to average them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging

from .predict import model_processor, predict, tokens_of, window_rows
from .proteins import Record, collect_proteins
from .windows import WindowMean

POOLINGS = ("mean", "cls", None)
DTYPES = ("float32", "float16")


def embed_chains(
    model: Any, chains: Sequence[Record], tokenizer: PreTrainedTokenizerBase, pooling: str | None = "mean", *,
    without_coords: bool = False, token_budget: int = 8192, window: int = 1024, bar: Any = None,
) -> list[np.ndarray]:  # fmt: skip
    """The last hidden states of a model, pooled or not.

    Args:
        model: a Coordformer with any head or none.
        pooling: `"mean"` over the residues of a chain, `"cls"` (its first token), or None: every residue.
        chains, tokenizer, without_coords, window: as of `window_rows`.
        token_budget, bar: as of `predict`; the vectors depend on the budget by rounding alone.

    Returns:
        For each chain (hidden,), or without pooling (residues, hidden), without special tokens; float32.
    """
    encoder: Any = model.base_model
    hidden = encoder.config.hidden_size
    vectors: list[Any] = [None] * len(chains)
    means: dict[int, WindowMean] = {}
    rows = window_rows(encoder, tokenizer, chains, window=window, without_coords=without_coords)
    options: dict[str, Any] = {"token_budget": token_budget, "bar": bar}
    for row, tokens in predict(encoder, rows, lambda batch: encoder(**batch).last_hidden_state, **options):
        if row.chain not in means:
            means[row.chain] = WindowMean((hidden,), 0) if pooling == "cls" else WindowMean((row.residues, hidden), 1)
        means[row.chain].add(row.start, tokens[0] if pooling == "cls" else tokens[1 : tokens_of(row) - 1])
        if row.last:
            mean = means.pop(row.chain).mean()
            vectors[row.chain] = mean.mean(axis=0) if pooling == "mean" else mean
    return vectors


def embed_dataset(
    model: Any, inputs: Any, processor: Any = None, *, pooling: str | None = "mean", without_coords: bool = False,
    token_budget: int = 8192, window: int = 1024, dtype: Any = "float32", progress: bool = True,
    problems: list[tuple[str, str, str]] | None = None, chain_ids: str | Sequence[str] | None = None,
    min_plddt: float | None = None, as_complex: bool = False, assembly: str | int | None = None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Vectors of proteins, by id: `model.embed_dataset(inputs)`, of a model with any head or none.

    The numbers are those of `coordformer embed`, which writes files, goes on where it was stopped, and also reads
    archives and data sets; here all is in memory.

    Args:
        inputs: one of these, or an iterable of them: a sequence in capital letters; a `Chain` or `Complex`; a row of a
            data set; a dictionary with `sequence`, and perhaps `id` and, as the processor takes them, `coords`; a path
            of a structure or FASTA file, plain or gzipped, or of a folder that is searched for them.
        processor: or a tokenizer; the default is the one beside the weights that the model was loaded from.
        pooling: `"mean"` over the residues, `"cls"` (the first token), or None: a vector for every residue.
        without_coords: give the model no coordinates.
        token_budget: tokens of a batch, padding included; the vectors depend on it by rounding alone.
        window: a chain of more residues is read in windows of so many that overlap by half, which are averaged.
        dtype: of the vectors, `"float32"` or `"float16"`. The model computes in its own, on its own device.
        progress: show a progress bar.
        problems: if given, a file or chain that cannot be read is appended here as `(file, chain, reason)` and costs
            nothing else; by default it raises.
        chain_ids, min_plddt, as_complex, assembly: of files, as of `read_proteins`.

    Returns:
        For each id (hidden,), or without pooling (residues, hidden), without special tokens. The id of a protein
        without one is its sequence. Files come first, sorted by path; their ids are those of the readers, with as much
        of the path in front as tells equal ones apart. A protein that is given twice is computed once.

    Raises:
        FileNotFoundError, ValueError: an argument or input is unusable, there is no processor, or two different
            proteins have one id.

    Examples:
        >>> from coordformer import CoordformerModel
        >>> model = CoordformerModel.from_pretrained("hub_cards/coordformer-1M-pdb")
        >>> inputs = ["MKTAYIAKQR", "tests/data/structures/1orc.pdb.gz"]
        >>> for name, vector in model.embed_dataset(inputs, progress=False).items():
        ...     print(name, vector.shape)
        1ORC_A (128,)
        MKTAYIAKQR (128,)
    """
    asked = str(dtype).removeprefix("torch.")
    for name, value, choices in (("pooling", pooling, POOLINGS), ("dtype", asked, DTYPES)):
        if value not in choices:
            raise ValueError(f"`{name}` is {value!r}; choose one of {', '.join(map(str, choices))}.")
    encoder, tokenizer = model.base_model, _find_tokenizer(model, processor)
    own = model_processor(encoder, tokenizer)
    reading: dict[str, Any] = {"chain_ids": chain_ids, "min_plddt": min_plddt}
    reading |= {"as_complex": as_complex, "assembly": assembly}
    proteins: dict[str, Record] = {}
    for name, record in collect_proteins(inputs, problems=problems, **own.reads, **reading):
        if (first := proteins.setdefault(name, record)) is not record:
            one, other = own.encode_protein(first), own.encode_protein(record)
            same = one.keys() == other.keys() and all(
                np.array_equal(values, other[key], equal_nan=key == "coords") for key, values in one.items()
            )
            if not same:
                raise ValueError(f"Two different proteins have the id {name}; give each its own.")
    if not proteins:
        raise ValueError("There is nothing to embed; give sequences, chains, rows, files or folders.")
    training = encoder.training
    options: dict[str, Any] = {"without_coords": without_coords, "token_budget": token_budget, "window": window}
    try:
        with logging.tqdm(total=len(proteins), unit="chain", disable=not progress) as bar:
            vectors = embed_chains(model, list(proteins.values()), tokenizer, pooling, bar=bar, **options)
    finally:
        encoder.train(training)
    return {name: vector.astype(asked, copy=False) for name, vector in zip(proteins, vectors, strict=True)}


def _find_tokenizer(model: Any, processor: Any) -> Any:
    """Of a processor, or a tokenizer itself, or that of the folder or repository that the model was loaded from.

    No Auto class loads it, which would ask again whether to trust the code that is running.
    """
    if processor is not None:
        return getattr(processor, "tokenizer", processor)
    fix = "give `processor`, such as AutoProcessor.from_pretrained makes, or CoordformerProcessor()"
    if not (name := model.name_or_path):
        raise ValueError(f"The model was not loaded from a folder or the Hub, where its processor lies; {fix}.")
    try:
        # The commit that the weights are of.
        revision = getattr(model.config, "_commit_hash", None) or "main"
        return PreTrainedTokenizerFast.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"The tokenizer of {name} cannot be loaded ({reason}); {fix}.") from error
