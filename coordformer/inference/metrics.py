"""Masked residue prediction in numbers: perplexity and recovery.

Batches are reduced at once to counts per chain and residue type, (chains, vocabulary, 3); everything reported is
derived from their sums, so that it depends neither on the batches nor on their order.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

COUNT, NLL, CORRECT = range(3)  # the last axis of the counts


def count_predictions(
    logits: torch.Tensor, labels: torch.Tensor, candidates: Sequence[int] | None = None
) -> torch.Tensor:
    """Reduce predictions to counts.

    Args:
        logits: (chains, length, vocabulary).
        labels: (chains, length), token ids, -100 where nothing was predicted.
        candidates: the token ids that compete in the softmax; all of them by default.

    Returns:
        For each chain and true token the number of predictions, the sum of their negative log-likelihoods in nats and
        the number of correct ones: (chains, vocabulary, 3), float64.
    """
    logits = logits.float()
    if candidates is not None:
        barred = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
        barred[list(candidates)] = False
        logits = logits.masked_fill(barred, -torch.inf)
    chain, position = (labels != -100).nonzero(as_tuple=True)
    truth = labels[chain, position]
    log_probabilities = logits[chain, position].log_softmax(dim=-1)
    nll = -log_probabilities.gather(1, truth.unsqueeze(1)).squeeze(1)
    correct = log_probabilities.argmax(dim=-1) == truth
    values = torch.stack((torch.ones_like(nll), nll, correct.to(nll.dtype)), dim=-1).double()
    counts = torch.zeros(*labels.shape[:1], logits.shape[-1], 3, dtype=torch.float64, device=logits.device)
    return counts.index_put((chain, truth), values, accumulate=True)


def summarize(counts: np.ndarray, letters: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Perplexity and recovery from counts (..., vocabulary, 3).

    Args:
        counts: of `count_predictions`, of any number of chains.
        letters: token ids by letter, for `recovery_by_residue`.

    Returns:
        `perplexity` (exp of the mean negative log-likelihood), `recovery` (share of the predictions that are correct),
        `residues` (number of predictions), and `recovery_by_residue` where `letters` are given.
    """
    counts = np.asarray(counts, dtype=np.float64)
    table = counts.reshape(-1, *counts.shape[-2:]).sum(axis=0)
    total = table.sum(axis=0)
    if total[COUNT] == 0:
        raise ValueError("Nothing was predicted: no residue of these chains may be chosen under this protocol.")
    summary: dict[str, Any] = {
        "perplexity": float(np.exp(total[NLL] / total[COUNT])),
        "recovery": float(total[CORRECT] / total[COUNT]),
        "residues": int(total[COUNT]),
    }
    if letters is not None:
        summary["recovery_by_residue"] = {
            letter: float(table[index, CORRECT] / table[index, COUNT])
            for letter, index in letters.items()
            if table[index, COUNT]
        }
    return summary


def resample(values: np.ndarray, samples: int, seed: int | np.random.Generator) -> np.ndarray:
    """Sums (samples, ...) over chains that are drawn with replacement, of values (chains, ...).

    In blocks: how often each of a million chains is drawn in each of thousands of samples would fill the memory.
    """
    rng, chains = np.random.default_rng(seed), len(values)
    shares, flat = np.full(chains, 1 / chains), values.reshape(chains, -1)
    sums = np.empty((samples, flat.shape[1]))
    for start in range(0, samples, 50):
        block = sums[start : start + 50]
        block[:] = rng.multinomial(chains, shares, size=len(block)) @ flat
    return sums.reshape(samples, *values.shape[1:])


def bootstrap(counts: Mapping[str, np.ndarray], samples: int = 2000, seed: int = 0) -> dict[str, dict]:
    """95 % intervals over chains for one or several models on the same chains.

    Chains are drawn with replacement, the same ones for every model (a paired bootstrap).

    Args:
        counts: (chains, vocabulary, 3) by model; the order of the chains is the same for all.
        samples: number of draws.
        seed: of the draws.

    Returns:
        By model `perplexity` and `recovery` as [low, high]; from the second model on also `gain`, by how much its
        perplexity is below the first's, as a share of the first's, and `gain_interval`.
    """
    totals = {name: np.asarray(table).sum(axis=1) for name, table in counts.items()}
    asked = [total[:, COUNT] for total in totals.values()]
    if any(not np.array_equal(each, asked[0]) for each in asked):
        raise ValueError(f"The models {', '.join(totals)} did not predict the same residues of the same chains.")
    # A draw of chains without any prediction would have no perplexity.
    totals = {name: total[asked[0] > 0] for name, total in totals.items()}
    chains = int((asked[0] > 0).sum())
    if chains == 0:
        raise ValueError("Nothing was predicted: no residue of these chains may be chosen under this protocol.")
    drawn_totals = resample(np.stack(list(totals.values()), axis=1), samples, seed)
    result: dict[str, dict] = {}
    reference = None
    for (name, total), drawn in zip(totals.items(), drawn_totals.swapaxes(0, 1), strict=True):
        perplexity = np.exp(drawn[:, NLL] / drawn[:, COUNT])
        point = float(np.exp(total[:, NLL].sum() / total[:, COUNT].sum()))
        result[name] = {
            "perplexity": np.percentile(perplexity, [2.5, 97.5]).tolist(),
            "recovery": np.percentile(drawn[:, CORRECT] / drawn[:, COUNT], [2.5, 97.5]).tolist(),
        }
        if reference is None:
            reference = (perplexity, point)
        else:
            result[name]["gain"] = 1 - point / reference[1]
            result[name]["gain_interval"] = np.percentile(1 - perplexity / reference[0], [2.5, 97.5]).tolist()
    return result
