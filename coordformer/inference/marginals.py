"""Likelihoods of residues and effects of substitutions by a masked language model, without training on any.

A score is the log-likelihood ratio of mutant and wild type in nats, higher is fitter (Meier et al. 2021,
doi:10.1101/2021.07.09.450648; with coordinates in the paper's section 5). The coordinates are those of the wild type,
of the substituted residues too.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..model.chain import AMINO_ACIDS, Chain
from ..model.predict import Row, longest_first, model_processor, predict, share_structure
from ..model.processing_coordformer import CoordformerProcessor, letter_ids
from ..model.residues import ResidueNumbers
from ..model.substitutions import parse_mutant
from ..model.windows import cut_window, longest_window, window_around

METHODS = ("wild_type_marginal", "masked_marginal", "pseudo_likelihood")
MUTANTS_AT_ONCE = 256  # of pseudo-likelihoods, whose probabilities are in memory


def log_probabilities(
    model: PreTrainedModel, processor: CoordformerProcessor, asked: Sequence[tuple[Chain, Sequence[int] | np.ndarray]],
    *, masked: bool, without_coords: bool = False, window: int = 1024, token_budget: int = 8192, progress: bool = False,
) -> list[np.ndarray]:  # fmt: skip
    """Log-probabilities of the 20 amino acids at some residues of chains.

    Args:
        model, processor: a masked-LM Coordformer, and its processor.
        asked: chains, and of each the indices of residues, from 0 on.
        masked: each residue is masked, alone, and costs a row of a batch, unless the model `masks_each`; otherwise one
            row serves all residues whose window is the same, which in a chain that fits in `window` is every residue.
        without_coords: give the model no coordinates.
        window: of longer chains this many residues are read, those around the residue that is asked for, see
            `window_around`. A window is a chain to the model, with its own `<cls>`, `<eos>` and center.
        token_budget: tokens of a batch; one row in any case.
        progress: show a progress bar.

    Returns:
        For each chain (indices, 20), float64, nats, in the order of `AMINO_ACIDS`; softmax over these letters.
    """
    window = longest_window(model.config, window)
    tokenizer: Any = processor.tokenizer
    own = model_processor(model, tokenizer)
    tables = [np.empty((len(indices), len(AMINO_ACIDS))) for _, indices in asked]
    at_once = masked and model.masks_each

    def rows() -> Iterator[Row]:
        for number in longest_first([chain for chain, _ in asked]):
            chain, indices = asked[number][0], np.asarray(asked[number][1], dtype=np.int64)
            arrays = own.encode_protein(chain, without_coords)
            inside = min(window, len(chain))
            starts = window_around(indices, len(chain), inside)
            # Of each row that the model reads the residues that are asked for.
            groups = [np.array([place]) for place in range(len(indices))]
            if not masked or at_once:
                groups = [np.flatnonzero(starts == start) for start in np.unique(starts)]
            for group in groups:
                start = int(starts[group[0]])
                inputs, places = cut_window(arrays, start, inside, model.config), indices[group] - start + 1
                if masked and not at_once:
                    inputs["input_ids"][places] = tokenizer.mask_token_id
                yield Row(number, start, inputs, places, group, structure=(number, start))

    letters = list(letter_ids(tokenizer).values())

    def forward(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(**batch).logits[..., letters].float().log_softmax(dim=-1)

    count = sum(len(indices) for _, indices in asked) if masked else None
    with tqdm(total=count, unit="row", disable=not progress, leave=False) as bar:
        if at_once:
            for row in rows():
                tables[row.chain][row.tag] = _each_masked(model.eval(), row)[:, letters].log_softmax(dim=-1)
                bar.update(len(row.tag))
            return tables
        for row, logits in predict(model, rows(), forward, token_budget=token_budget, bar=bar, by_row=True):
            tables[row.chain][row.tag] = logits
    return tables


def _each_masked(model: Any, row: Row) -> torch.Tensor:
    """Logits (places, vocabulary), float32, of a row's places, each masked alone."""
    batch = share_structure(model, [row], {})
    assert batch is not None and row.places is not None
    places = torch.from_numpy(row.places).to(model.device)
    return model.predict_each_masked(batch["input_ids"], places, batch["structure"]).float().cpu()


def score_mutants(
    model: PreTrainedModel, processor: CoordformerProcessor, asked: Sequence[tuple[Chain, Sequence[str]]],
    method: str = "masked_marginal", *, numbering: str | None = None, offset: int | None = None, **options: Any,
) -> list[np.ndarray]:  # fmt: skip
    """Score mutants of chains and complexes.

    Args:
        asked: wild types, and of each its mutants, as `parse_mutant` takes them.
        numbering, offset: what the numbers in the mutants are, as of `parse_mutant`.
        model, processor, method, options: as of `score_substitutions`.

    Returns:
        For each chain (mutants,), float64: log-likelihood ratios in nats, higher is fitter, 0 is the wild type's.

    Raises:
        ValueError: `method` is none, a chain has no mutants, or one is not of its chain (see `parse_mutant`).
    """
    parsed = []
    for chain, mutants in asked:
        residues = ResidueNumbers(chain, numbering=numbering, offset=offset)
        parsed.append((chain, [parse_mutant(mutant, residues) for mutant in mutants]))
    return score_substitutions(model, processor, parsed, method, **options)


def score_substitutions(
    model: PreTrainedModel, processor: CoordformerProcessor,
    asked: Sequence[tuple[Chain, Sequence[Sequence[tuple[int, str]]]]], method: str = "masked_marginal", **options: Any,
) -> list[np.ndarray]:  # fmt: skip
    """Score mutants of chains that are given as substitutions.

    - `wild_type_marginal`: log p(new letter) - log p(wild type) at the residue, which the model reads unmasked. One
      row for the whole chain; of a chain longer than `window` one for each window.
    - `masked_marginal`: the same with the residue masked. One row for each residue that any mutant substitutes.
    - `pseudo_likelihood`: the sum over all residues i of log p(x_i | all others) of the mutant less that of the wild
      type. One row for each residue of the wild type and of every mutant: where a chain is longer than `window`, of the
      residues whose window holds a substitution, since the others cancel. Residues X are not summed over.

    Marginals of several substitutions are added: each is scored with the wild type everywhere else, in masked marginals
    with no other residue masked. In a complex, which is one chain to the model, the other chains are there, too.

    Args:
        model, processor: a masked-LM Coordformer, and its processor.
        asked: wild types, and of each its mutants: for each substitution the residue's index, from 0 on, and the new
            letter; a mutant without any is the wild type.
        method: one of `METHODS`.
        options: those of `log_probabilities`; `token_budget` changes no score.

    Returns:
        For each chain (mutants,), float64: log-likelihood ratios in nats, higher is fitter, 0 is the wild type's.

    Raises:
        ValueError: `method` is none, or a chain has no mutants.
    """
    if method not in METHODS:
        raise ValueError(f"`method` is {method!r}; choose one of {', '.join(METHODS)}.")
    if any(len(mutants) == 0 for _, mutants in asked):
        raise ValueError("There is nothing to score: the list of mutants is empty.")
    chains, parsed = [chain for chain, _ in asked], [mutants for _, mutants in asked]
    letters = [np.array([AMINO_ACIDS.find(letter) for letter in chain.sequence]) for chain in chains]  # -1: X
    if method == "pseudo_likelihood":
        return _pseudo_likelihoods(model, processor, chains, parsed, letters, options)
    places = [np.array(sorted({index for mutant in each for index, _ in mutant}), dtype=np.int64) for each in parsed]
    pairs, masked = list(zip(chains, places, strict=True)), method == "masked_marginal"
    tables = log_probabilities(model, processor, pairs, masked=masked, **options)
    scores = []
    for table, indices, wild_type, mutants in zip(tables, places, letters, parsed, strict=True):
        table -= table[np.arange(len(indices)), wild_type[indices]][:, None]
        ratios = dict(zip(indices.tolist(), table, strict=True))
        sums = [sum(ratios[index][AMINO_ACIDS.index(letter)] for index, letter in each) for each in mutants]
        scores.append(np.array(sums, dtype=float))
    return scores


def _pseudo_likelihoods(model, processor, chains, parsed, letters, options) -> list[np.ndarray]:
    known = [np.flatnonzero(each >= 0) for each in letters]
    wild_types = log_probabilities(model, processor, list(zip(chains, known, strict=True)), masked=True, **options)
    window = longest_window(model.config, options.get("window", 1024))
    results = []
    for chain, residues, wild_type, table, mutants in zip(chains, known, letters, wild_types, parsed, strict=True):
        inside = min(window, len(chain))
        starts = window_around(residues, len(chain), inside)
        likelihoods = table[np.arange(len(residues)), wild_type[residues]]
        scores = []
        for first in range(0, len(mutants), MUTANTS_AT_ONCE):
            asked, wanted = [], []
            for substitutions in mutants[first : first + MUTANTS_AT_ONCE]:
                sequence, new = list(chain.sequence), wild_type.copy()
                for index, letter in substitutions:
                    sequence[index], new[index] = letter, AMINO_ACIDS.index(letter)
                changed = np.array([index for index, _ in substitutions], dtype=np.int64)[:, None]
                seen = np.flatnonzero(((starts <= changed) & (changed < starts + inside)).any(axis=0))
                asked.append((dataclasses.replace(chain, sequence="".join(sequence)), residues[seen]))
                wanted.append((seen, new))
            tables = log_probabilities(model, processor, asked, masked=True, **options)
            for (seen, new), mutant in zip(wanted, tables, strict=True):
                scores.append((mutant[np.arange(len(seen)), new[residues[seen]]] - likelihoods[seen]).sum())
        results.append(np.array(scores))
    return results


def substitutions_of(chain: Chain, indices: Sequence[int] | None = None) -> list[list[tuple[int, str]]]:
    """All substitutions of one residue of a chain, 20 for each that is known, by index and new letter.

    Args:
        chain: the wild type.
        indices: of the residues that are substituted, from 0 on; by default all.

    Raises:
        ValueError: these are only X.
    """
    known = _known(chain, indices)
    if not known:
        where = "" if indices is None or len(indices) == len(chain) else " among those that were chosen"
        raise ValueError(
            f"Chain {chain.id} has no residue that is known{where}, only X; there is nothing to substitute."
        )
    return [[(index, letter)] for index in known for letter in AMINO_ACIDS]


def scan_chains(
    model: PreTrainedModel, processor: CoordformerProcessor, chains: Sequence[Chain], *arguments: Any, **options: Any
) -> list[np.ndarray]:
    """Score all substitutions of one residue of chains and complexes; the arguments are those of `score_substitutions`.

    Returns:
        For each chain (L, 20), float64, nats, in the order of `AMINO_ACIDS`: 0 for the wild type, NaN for residues X.
        What the residues are called says `model.residues.ResidueNumbers`.

    Raises:
        ValueError: a chain has no residue that is known.
    """
    asked = [(chain, substitutions_of(chain)) for chain in chains]
    scored = score_substitutions(model, processor, asked, *arguments, **options)
    return [scan_table(chain, scores) for chain, scores in zip(chains, scored, strict=True)]


def scan_table(chain: Chain, scores: np.ndarray, indices: Sequence[int] | None = None) -> np.ndarray:
    """Scores of `substitutions_of` a chain as a table (L, 20), NaN for residues X and those not in `indices`."""
    table = np.full((len(chain), len(AMINO_ACIDS)), np.nan)
    table[_known(chain, indices)] = scores.reshape(-1, len(AMINO_ACIDS))
    return table


def _known(chain: Chain, indices: Sequence[int] | None) -> list[int]:
    return [i for i in (range(len(chain)) if indices is None else indices) if chain.sequence[i] in AMINO_ACIDS]
