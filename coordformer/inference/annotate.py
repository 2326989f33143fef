"""Protein function as multi-label classification: DeepFRI's files, its scores, and `coordformer annotate`.

Paper, section 4. A term is a GO term or an EC number; a chain has several.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..data.collator import CoordformerDataCollator
from ..model.modeling_coordformer import IGNORED_LABEL, CoordformerForSequenceClassification
from ..model.processing_coordformer import (
    SPECIAL_TOKENS,
    CoordformerProcessor,
    chain_arrays,
    longest_window,
    window_starts,
)
from ..model.structure import Chain, read_proteins
from .evaluate import load_checkpoint

# ---------------------------------------------------------------------------------------------------------------------
# DeepFRI's files
# ---------------------------------------------------------------------------------------------------------------------


def read_annotations(
    path: str | Path, ontology: str = "molecular_function"
) -> tuple[list[str], list[str], dict[str, np.ndarray]]:
    """Read an annotation file of DeepFRI, of EC numbers or of GO terms.

    Such a file is `nrPDB-EC_2020.04_annot.tsv` or `nrPDB-GO_2019.06.18_annot.tsv`: lines of tab-separated terms, and of
    GO terms also of their names, each below a line `### TITLE`; a line `### PDB-chain`; and for each chain a line with
    its terms, separated by commas, in one column for each ontology.

    Args:
        path: of the file.
        ontology: `molecular_function`, `biological_process` or `cellular_component`; a file of EC numbers has one.

    Returns:
        The terms; their names, empty for EC numbers; and the indices of the terms of each chain, none where it has no
        term of this ontology, by ids as of `structure.Chain` (`1R9W_A` where the file has `1R9W-A`).

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no such file, has no such ontology, or a line has an unknown term, other columns, or a chain
            that was there before.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = csv.reader(file, delimiter="\t")
            sections, columns = _read_head(path, lines)
            column = "EC-numbers" if "EC-numbers" in sections else f"GO-terms ({ontology})"
            if column not in sections or column not in columns:
                there = ", ".join(name for name in columns[1:] if name in sections) or "none"
                raise ValueError(f"{path} has no terms of the ontology {ontology!r}; the file has: {there}.")
            terms = sections[column]
            names = sections.get(f"GO-names ({ontology})") or [""] * len(terms)
            if len(names) != len(terms):
                raise ValueError(f"{path} has {len(names)} names for {len(terms)} terms of {column}; get it again.")
            numbers, place = {term: number for number, term in enumerate(terms)}, columns.index(column)
            chains: dict[str, np.ndarray] = {}
            for line in lines:
                here = f"{path}, line {lines.line_num}"
                if len(line) != len(columns):
                    raise ValueError(f"{here}: {len(line)} columns in place of {len(columns)}; get the file again.")
                name, found = _chain_id(line[0]), [term for term in line[place].split(",") if term]
                if unknown := [term for term in found if term not in numbers]:
                    raise ValueError(
                        f"{here}: {line[0]} has the term {unknown[0]}, which is not among those of {column}."
                    )
                if name in chains:
                    raise ValueError(f"{here}: {line[0]} was there before; keep one of the two lines.")
                chains[name] = np.array(sorted({numbers[term] for term in found}), dtype=np.int64)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no annotation file of DeepFRI ({error}).") from error
    return terms, names, chains


def _read_head(path: str | Path, lines: Any) -> tuple[dict[str, list[str]], list[str]]:
    """What stands before the chains: terms and names by their titles, and the titles of the chains' columns."""
    sections: dict[str, list[str]] = {}
    for line in lines:
        if not line or not line[0].startswith("### "):
            raise ValueError(f"{path}, line {lines.line_num}: no '### TITLE'; give an annotation file of DeepFRI.")
        title = line[0].removeprefix("### ")
        if title == "PDB-chain":
            return sections, line
        sections[title] = next(lines, [])
    raise ValueError(f"{path} has no line '### PDB-chain'; give an annotation file of DeepFRI.")


def read_split(path: str | Path) -> list[str]:
    """Ids (`1R9W_A`) of a split list of DeepFRI, one chain (`1R9W-A`) per line.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line is no chain, or the file has none.
    """
    names = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        if not re.fullmatch(r"\w{4}[-_]\w+", line.strip()):
            raise ValueError(f"{path}, line {number}: {line!r} is no chain; write one per line, such as 1R9W-A.")
        names.append(_chain_id(line.strip()))
    if not names:
        raise ValueError(f"{path} lists no chain; write one per line, such as 1R9W-A.")
    return names


def _chain_id(name: str) -> str:
    return name.replace("-", "_", 1)


def match_chains(rows: Any, names: Iterable[str]) -> dict[int, str]:
    """The rows that stand for the chains of a list, by their ids or `aliases` (chains of the same sequence).

    Args:
        rows: of `dataset.load_rows`.
        names: ids of chains.

    Returns:
        {row number: name}, in the order of the list; where several names lead to one row, the first of them.
    """
    numbers: dict[str, int] = {}
    for number, aliases in enumerate(rows["aliases"][:] if "aliases" in rows.column_names else ()):
        numbers |= dict.fromkeys(aliases or (), number)
    numbers |= {name: number for number, name in enumerate(rows["id"][:])}
    matched: dict[int, str] = {}
    for name in names:
        if name in numbers:
            matched.setdefault(numbers[name], name)
    return matched


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------------------------------------------------
# Scores
# ---------------------------------------------------------------------------------------------------------------------

THRESHOLDS = np.arange(1, 101) / 100  # of CAFA


def precision_recall(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall over all pairs of a chain and a term, at each distinct score from the highest down.

    Args:
        scores: (chains, terms).
        labels: (chains, terms), 0 or 1.

    Raises:
        ValueError: the shapes differ, a score is NaN, or no label is 1.
    """
    scores, labels = _check(scores, labels)
    order = np.argsort(-scores, axis=None)
    ranked = scores.ravel()[order]
    # Equal scores are predicted together, whatever their order.
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    true = labels.ravel()[order].cumsum()[last]
    return true / (last + 1), true / true[-1]


def micro_aupr(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the precision-recall curve over all pairs of a chain and a term, in steps.

    That is average precision: the sum over distinct scores of precision times the gain in recall, without interpolation
    (scikit-learn's `average_precision_score(average="micro")`). Arguments and errors as of `precision_recall`.
    """
    precision, recall = precision_recall(scores, labels)
    return float(np.sum(np.diff(recall, prepend=0) * precision))


def micro_fmax(scores: np.ndarray, labels: np.ndarray) -> float:
    """The highest F1 on the precision-recall curve over all pairs of a chain and a term (paper, section 4).

    Another number than `protein_centric_fmax`. Arguments and errors as of `precision_recall`.
    """
    return float(_f1(*precision_recall(scores, labels)).max())


def protein_centric_fmax(
    scores: np.ndarray, labels: np.ndarray, thresholds: Sequence[float] | np.ndarray = THRESHOLDS
) -> float:
    """Fmax of CAFA (Radivojac et al. 2013), as DeepFRI reports it: the highest F1 over thresholds on probabilities.

    At a threshold, precision is the mean over the chains with at least one predicted term, and recall the mean over all
    chains; predicted are the terms whose probability is at least the threshold. Labels are taken as they are: nothing
    is propagated in an ontology. Chains without a label are left out. 0 where nothing is predicted at any threshold.

    Args:
        scores: (chains, terms), probabilities.
        labels: (chains, terms), 0 or 1.
        thresholds: to try; CAFA's are 0.01 to 1 in steps of 0.01.

    Raises:
        ValueError: the shapes differ, a score is NaN, or no label is 1.
    """
    scores, labels = _check(scores, labels)
    known = labels.any(axis=1)
    scores, labels = scores[known], labels[known]
    # How many of the thresholds each score reaches; counted by chain, and from the highest threshold down.
    reached = np.searchsorted(np.sort(thresholds), scores, side="right")
    places = reached + (len(thresholds) + 1) * np.arange(len(scores))[:, None]
    number, true = (
        np.bincount(places[which], minlength=len(scores) * (len(thresholds) + 1)).reshape(len(scores), -1)[:, :0:-1]
        for which in (np.ones_like(labels), labels)
    )
    number, true = number.cumsum(axis=1), true.cumsum(axis=1)
    predicting = (number > 0).sum(axis=0)
    precision = (true / np.maximum(number, 1)).sum(axis=0) / np.maximum(predicting, 1)
    recall = (true / labels.sum(axis=1, keepdims=True)).mean(axis=0)
    return float(_f1(precision, recall).max())


def score_terms(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`micro_aupr`, `protein_centric_fmax` and `micro_fmax` of probabilities (chains, terms)."""
    return {measure.__name__: measure(scores, labels) for measure in (micro_aupr, protein_centric_fmax, micro_fmax)}


def _f1(precision: Any, recall: Any) -> Any:
    return 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)


def _check(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scores, and the labels as bool."""
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.shape != labels.shape or scores.ndim != 2:
        raise ValueError(f"`scores` has shape {scores.shape} and `labels` {labels.shape}; both are (chains, terms).")
    if np.isnan(scores).any():
        raise ValueError("`scores` has NaN: a model that diverged, or a chain that was not predicted.")
    if not labels.any():
        raise ValueError("No chain has a term: there is nothing to be found in `labels`.")
    return scores, labels.astype(bool)


# ---------------------------------------------------------------------------------------------------------------------
# Prediction
# ---------------------------------------------------------------------------------------------------------------------


def window_batches(
    model: PreTrainedModel,
    processor: CoordformerProcessor,
    chains: Sequence[Chain | Mapping[str, Any]],
    *,
    without_coords: bool = False,
    token_budget: int = 8192,
    window: int = 1024,
) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
    """Chains, or windows of them, in padded batches on the model's device, the longest first.

    Args:
        model: a Coordformer.
        processor: of the model.
        chains: of `structure.read_proteins`, or rows of a data set.
        without_coords: withhold all coordinates.
        token_budget: tokens of a batch; the longest chain, or window of it, fits in any case.
        window: longer chains are cut into windows of this many residues that overlap by half.

    Yields:
        For each row of a batch the number of its chain, and what the model takes.

    Raises:
        ValueError: the window or the budget is too small, or a chain has not the atoms of the model.
    """
    for name, value, least in (("token_budget", token_budget, 1), ("window", window, 2)):
        if value < least:
            raise ValueError(f"`{name}` is {value}; it must be at least {least}.")
    config = model.config
    window = longest_window(model, window)
    pieces = []
    for number, chain in enumerate(chains):
        sequence, coords = chain_arrays(chain, config.coordinate_atoms, config.coordinate_dim)
        for start in window_starts(len(sequence), window):
            pieces.append((number, sequence[start : start + window], coords[start : start + window]))
    pieces.sort(key=lambda piece: -len(piece[1]))
    while pieces:
        at_once = max(1, token_budget // (len(pieces[0][1]) + SPECIAL_TOKENS))
        numbers, sequences, arrays = zip(*pieces[:at_once], strict=True)
        batch = processor(list(sequences), coords=None if without_coords else list(arrays)).to(model.device)
        yield np.array(numbers), dict(batch)
        del pieces[:at_once]


@torch.no_grad()
def predict_probabilities(
    model: PreTrainedModel,
    processor: CoordformerProcessor,
    chains: Sequence[Chain | Mapping[str, Any]],
    *,
    progress: bool = False,
    **options: Any,
) -> np.ndarray:
    """Probability of each term for each chain, (chains, terms), float32; of a long chain the mean over its windows.

    Further arguments and errors as of `window_batches`; `progress` shows a progress bar.
    """
    model.eval()
    config: Any = model.config
    total = np.zeros((len(chains), config.num_labels), dtype=np.float32)
    windows = np.zeros((len(chains), 1), dtype=np.float32)
    for numbers, batch in tqdm(window_batches(model, processor, chains, **options), unit="batch", disable=not progress):
        np.add.at(total, numbers, model(**batch).logits.float().sigmoid().cpu().numpy())
        np.add.at(windows, numbers, 1)
    return total / windows


def annotate(
    checkpoint: str | Path,
    protein: str | Path,
    *,
    chain_ids: Sequence[str] | None = None,
    min_plddt: float | None = None,
    top: int = 10,
    threshold: float = 0.1,
    without_coords: bool = False,
    dtype: str = "float32",
    token_budget: int = 8192,
    window: int = 1024,
    progress: bool = True,
) -> dict[str, list[dict[str, Any]]]:
    """The terms that a classifier gives the chains of a structure or FASTA file.

    Args:
        checkpoint: folder or Hub name of a `CoordformerForSequenceClassification` with several labels at once.
        protein: the file, see `structure.read_proteins`.
        chain_ids: only these of its chains.
        min_plddt: residues of a predicted structure below this confidence count as not observed.
        top: at most this many terms of a chain.
        threshold: only terms of at least this probability.
        without_coords: withhold all coordinates.
        dtype: of the weights, `float32` or `bfloat16`.
        token_budget: tokens of a batch.
        window: of longer chains the mean over windows of this many residues is taken.
        progress: show a progress bar.

    Returns:
        For each chain its terms, the most probable first: `term`, `name` and `probability`. Of a label in
        `config.id2label` such as `GO:0003677 DNA binding`, the part before the first space is the term.

    Raises:
        ValueError: an argument is unusable, or the checkpoint is no such classifier.
    """
    if top < 1:
        raise ValueError(f"`top` is {top}; it must be at least 1.")
    if not 0 <= threshold <= 1:
        raise ValueError(f"`threshold` is {threshold}; it is a probability between 0 and 1.")
    model, processor = load_checkpoint(checkpoint, dtype, any_head=True)
    config: Any = model.config
    head, problem_type = type(model).__name__, config.problem_type
    if not isinstance(model, CoordformerForSequenceClassification) or problem_type != "multi_label_classification":
        raise ValueError(
            f"{checkpoint} holds a {head} with problem_type={problem_type!r}; give a CoordformerForSequence"
            "Classification with 'multi_label_classification', such as examples/function trains."
        )
    chains = read_proteins(protein, config.coordinate_atoms, min_plddt, chain_ids)
    probabilities = predict_probabilities(
        model,
        processor,
        chains,
        without_coords=without_coords,
        token_budget=token_budget,
        window=window,
        progress=progress,
    )
    labels = [config.id2label[number].partition(" ") for number in range(config.num_labels)]
    return {
        chain.id: [
            {"term": labels[number][0], "name": labels[number][2], "probability": float(row[number])}
            for number in np.argsort(-row, kind="stable")[:top]
            if row[number] >= threshold
        ]
        for chain, row in zip(chains, probabilities, strict=True)
    }
