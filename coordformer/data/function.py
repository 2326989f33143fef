"""Protein function as multi-label classification: labels and training batches (paper, section 4).

A term is a GO term or an EC number; a chain has several.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..model.modeling_coordformer import IGNORED_LABEL
from .collator import CoordformerDataCollator


def label_matrix(terms_of_chains: Sequence[Sequence[int] | np.ndarray], num_terms: int) -> np.ndarray:
    """Indices of the terms of each chain as a matrix of 0 and 1: (chains, terms), float32."""
    labels = np.zeros((len(terms_of_chains), num_terms), dtype=np.float32)
    for row, terms in zip(labels, terms_of_chains, strict=True):
        row[np.asarray(terms, dtype=np.int64)] = 1
    return labels


def log_odds(labels: np.ndarray) -> torch.Tensor:
    """Logarithms of the odds of each term (terms,) in `labels` (chains, terms): where the biases of a head start.

    Half a chain is added with each term and half a one without it, so that a term that no chain has is rare, not
    impossible. From a bias of zero, most of a training on rare terms goes into learning that they are rare.
    """
    positives = labels.sum(axis=0)
    return torch.from_numpy(np.log((positives + 0.5) / (len(labels) - positives + 0.5)).astype(np.float32))


@dataclass
class FunctionCollator:
    """Batches of chains and their terms for a classifier with `problem_type="multi_label_classification"`.

    Takes what its `collator` takes: rows, or lists of rows from `ChainBatches`.

    Args:
        collator: makes the batches; one that masks nothing, `mlm_probability=0`.
        annotations: indices of the terms of each chain, by the `id` of its row.
        num_terms: the model's `config.num_labels`.

    Returns, when called: the collator's batch with `labels` (chains, terms), float32; in the order of the chains, and
    after them -100 for the padding at the end of a packed row, which is a segment like they are.
    """

    collator: CoordformerDataCollator
    annotations: Mapping[str, Sequence[int] | np.ndarray]
    num_terms: int

    def __call__(self, features: Sequence[Any]) -> dict[str, torch.Tensor]:
        rows = [row for feature in features for row in (feature if isinstance(feature, list) else [feature])]
        batch = self.collator(rows)
        if absent := [row["id"] for row in rows if row["id"] not in self.annotations]:
            raise ValueError(f"Chain {absent[0]} has no entry in `annotations`; give it one, or leave the chain out.")
        labels = torch.from_numpy(label_matrix([self.annotations[row["id"]] for row in rows], self.num_terms))
        segments = len(batch["cu_seq_lens_q"]) - 1 if "cu_seq_lens_q" in batch else len(rows)
        batch["labels"] = torch.nn.functional.pad(labels, (0, 0, 0, segments - len(rows)), value=IGNORED_LABEL)
        return batch
