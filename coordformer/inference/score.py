"""Effects of substitutions, predicted by a masked language model without training on any: `coordformer score`.

A score is the log-likelihood ratio of mutant and wild type in nats, higher is fitter (Meier et al. 2021,
doi:10.1101/2021.07.09.450648; with coordinates in the paper's section 5). The coordinates are those of the wild type,
of the substituted residues too.
"""

import csv
import dataclasses
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr  # type: ignore[import-untyped]
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..data.files import write_text
from ..model.processing_coordformer import SPECIAL_TOKENS, CoordformerProcessor, longest_window, window_around
from ..model.structure import AMINO_ACIDS, Chain, read_proteins
from .evaluate import coordinates_given, letter_ids, load_checkpoint
from .figures import new_figure, save_figure

METHODS = ("wild_type_marginal", "masked_marginal", "pseudo_likelihood")
PLOTTED_LETTERS = "AVILMFYWGPCSTNQDEHKR"  # by kind: aliphatic, aromatic, G and P, polar, charged
PLOTTED_RESIDUES = 100  # of one row of a heat map


def parse_mutant(mutant: str, sequence: str, first: int = 1) -> list[tuple[int, str]]:
    """The substitutions of a mutant such as `A24G` or `A24G:T30S`.

    Args:
        mutant: letter of the wild type, position, new letter; several substitutions are joined by `:`.
        sequence: of the wild type.
        first: position of the first residue of `sequence`.

    Returns:
        For each substitution the residue's index in `sequence`, from 0 on, and the new letter.

    Raises:
        ValueError: the text is no mutant, has a letter beyond the 20 amino acids, a position outside of the sequence or
            twice, or another wild type than the sequence.

    Examples:
        >>> parse_mutant("K2R:V3A", "MKV")
        [(1, 'R'), (2, 'A')]
    """
    fix = (
        f"positions count the deposited sequence from {first}, not a file's own residue numbers: set `first` (--first) "
        "to the position of its first residue in the mutants, or give the chain that they are of"
    )
    substitutions: dict[int, str] = {}
    for text in mutant.split(":"):
        match = re.fullmatch(r"([A-Z])(-?\d+)([A-Z])", text.strip())
        if match is None:
            raise ValueError(f"Mutant {mutant!r} cannot be read; write A24G, or A24G:T30S for several substitutions.")
        wild_type, position, letter = match[1], int(match[2]), match[3]
        if odd := {wild_type, letter} - set(AMINO_ACIDS):
            raise ValueError(f"Mutant {mutant}: {min(odd)} is no amino acid; substitutions are among {AMINO_ACIDS}.")
        index = position - first
        if not 0 <= index < len(sequence):
            raise ValueError(
                f"Mutant {mutant}: the chain has no position {position}, its residues are {first} to "
                f"{first + len(sequence) - 1}; {fix}."
            )
        if sequence[index] != wild_type:
            raise ValueError(
                f"Mutant {mutant}: position {position} of the chain is {sequence[index]}, not {wild_type}; {fix}."
            )
        if index in substitutions:
            raise ValueError(f"Mutant {mutant}: position {position} is substituted twice; keep one of them.")
        substitutions[index] = letter
    return list(substitutions.items())


@torch.no_grad()
def log_probabilities(
    model: PreTrainedModel,
    processor: CoordformerProcessor,
    chain: Chain,
    indices: Sequence[int] | np.ndarray,
    *,
    masked: bool,
    without_coords: bool = False,
    window: int = 1024,
    token_budget: int = 8192,
    progress: bool = False,
) -> np.ndarray:
    """Log-probabilities of the 20 amino acids at some residues of a chain.

    Args:
        model: a masked-LM Coordformer.
        processor: of the model.
        chain: the protein.
        indices: of the residues, from 0 on.
        masked: each residue is masked, alone, and costs a row of a batch; otherwise one row serves all residues whose
            window is the same, which in a chain that fits in `window` is every residue.
        without_coords: withhold all coordinates.
        window: of longer chains this many residues are read, those around the residue that is asked for. A window is a
            chain to the model, with its own `<cls>`, `<eos>` and center.
        token_budget: tokens of a batch; one row in any case.
        progress: show a progress bar.

    Returns:
        (indices, 20), float64, nats, in the order of `AMINO_ACIDS`; softmax over these letters.
    """
    for name, value, least in (("token_budget", token_budget, 1), ("window", window, 2)):
        if value < least:
            raise ValueError(f"`{name}` is {value}; it must be at least {least}.")
    indices = np.asarray(indices, dtype=np.int64)
    window = min(longest_window(model, window), len(chain))
    starts = window_around(indices, len(chain), window)
    # The rows that the model reads: where their windows begin, and which of them each residue is in.
    firsts, row_of = (starts, np.arange(len(starts))) if masked else np.unique(starts, return_inverse=True)
    places = indices - starts + 1  # <cls> is in front
    inputs = {name: values[0].to(model.device) for name, values in processor(chains=chain).items()}
    if without_coords:
        del inputs["coords"]
    letters = list(letter_ids(processor.tokenizer).values())
    last = len(chain) + SPECIAL_TOKENS - 1
    at_once = max(1, token_budget // (window + SPECIAL_TOKENS))
    result = np.empty((len(indices), len(AMINO_ACIDS)))
    model.eval()
    with tqdm(total=len(firsts), unit="row", desc=chain.id, disable=not progress) as bar:
        for rows in np.split(np.arange(len(firsts)), range(at_once, len(firsts), at_once)):
            asked = np.flatnonzero((row_of >= rows[0]) & (row_of <= rows[-1]))
            row, place = (torch.from_numpy(each).to(model.device) for each in (row_of[asked] - rows[0], places[asked]))
            tokens = torch.tensor([[0, *range(first + 1, first + 1 + window), last] for first in firsts[rows]])
            batch = {name: values[tokens.to(model.device)] for name, values in inputs.items()}
            if masked:
                batch["input_ids"][row, place] = processor.tokenizer.mask_token_id
            logits = model(**batch).logits[row, place][:, letters]
            result[asked] = logits.float().log_softmax(dim=-1).cpu().numpy()
            bar.update(len(rows))
    return result


def score_mutants(
    model: PreTrainedModel,
    processor: CoordformerProcessor,
    chain: Chain,
    mutants: Sequence[str],
    method: str = "masked_marginal",
    *,
    first: int = 1,
    without_coords: bool = False,
    window: int = 1024,
    token_budget: int = 8192,
    progress: bool = True,
) -> np.ndarray:
    """Score mutants of a chain.

    - `wild_type_marginal`: log p(new letter) - log p(wild type) at the residue, which the model reads unmasked. One
      row for the whole chain; of a chain longer than `window` one for each window.
    - `masked_marginal`: the same with the residue masked. One row for each residue that any mutant substitutes.
    - `pseudo_likelihood`: the sum over all residues i of log p(x_i | all others) of the mutant less that of the wild
      type. One row for each residue of the wild type and of every mutant: where a chain is longer than `window`, of the
      residues whose window holds a substitution, since the others cancel. Residues X are not summed over.

    Marginals of several substitutions are added: each is scored with the wild type everywhere else, in masked marginals
    with no other residue masked.

    Args:
        model: a masked-LM Coordformer.
        processor: of the model.
        chain: the wild type.
        mutants: as `parse_mutant` takes them.
        method: one of `METHODS`.
        first: position of the chain's first residue in `mutants`.
        without_coords, window, token_budget: as in `log_probabilities`; `token_budget` changes no score.
        progress: show a progress bar.

    Returns:
        (mutants,), float64: log-likelihood ratios in nats, higher is fitter, 0 is the wild type's.

    Raises:
        ValueError: `method` is none, there are no mutants, or one is not of this chain (see `parse_mutant`).
    """
    if method not in METHODS:
        raise ValueError(f"`method` is {method!r}; choose one of {', '.join(METHODS)}.")
    if len(mutants) == 0:
        raise ValueError("There is nothing to score: the list of mutants is empty.")
    parsed = [parse_mutant(mutant, chain.sequence, first) for mutant in mutants]
    options: dict[str, Any] = {"without_coords": without_coords, "window": window, "token_budget": token_budget}
    letters = np.array([AMINO_ACIDS.find(letter) for letter in chain.sequence])  # -1: X

    if method != "pseudo_likelihood":
        indices = np.unique([index for substitutions in parsed for index, _ in substitutions])
        masked = method == "masked_marginal"
        table = log_probabilities(model, processor, chain, indices, masked=masked, progress=progress, **options)
        table -= table[np.arange(len(indices)), letters[indices]][:, None]
        ratios = dict(zip(indices.tolist(), table, strict=True))
        return np.array(
            [sum(ratios[index][AMINO_ACIDS.index(letter)] for index, letter in each) for each in parsed], dtype=float
        )

    known = np.flatnonzero(letters >= 0)
    inside = min(longest_window(model, window), len(chain))
    starts = window_around(known, len(chain), inside)
    wild_type = log_probabilities(model, processor, chain, known, masked=True, **options)
    wild_type = wild_type[np.arange(len(known)), letters[known]]
    scores = np.empty(len(parsed))
    for number, substitutions in enumerate(tqdm(parsed, unit="mutant", desc=chain.id, disable=not progress)):
        sequence, new = list(chain.sequence), letters.copy()
        for index, letter in substitutions:
            sequence[index], new[index] = letter, AMINO_ACIDS.index(letter)
        changed = np.array([index for index, _ in substitutions])[:, None]
        seen = np.flatnonzero(((starts <= changed) & (changed < starts + inside)).any(axis=0))
        mutant = dataclasses.replace(chain, sequence="".join(sequence))
        table = log_probabilities(model, processor, mutant, known[seen], masked=True, **options)
        scores[number] = (table[np.arange(len(seen)), new[known[seen]]] - wild_type[seen]).sum()
    return scores


def scan_chain(
    model: PreTrainedModel,
    processor: CoordformerProcessor,
    chain: Chain,
    method: str = "masked_marginal",
    *,
    without_coords: bool = False,
    window: int = 1024,
    token_budget: int = 8192,
    progress: bool = True,
) -> np.ndarray:
    """Score all substitutions of one residue of a chain; the arguments are those of `score_mutants`.

    Returns:
        (L, 20), float64, nats, in the order of `AMINO_ACIDS`: 0 for the wild type, NaN for residues X.
    """
    known = [index for index, letter in enumerate(chain.sequence) if letter in AMINO_ACIDS]
    if not known:
        raise ValueError(f"Chain {chain.id} has no residue that is known, only X; there is nothing to substitute.")
    scores = score_mutants(
        model,
        processor,
        chain,
        [f"{chain.sequence[index]}{index + 1}{letter}" for index in known for letter in AMINO_ACIDS],
        method,
        without_coords=without_coords,
        window=window,
        token_budget=token_budget,
        progress=progress,
    )
    table = np.full((len(chain), len(AMINO_ACIDS)), np.nan)
    table[known] = scores.reshape(len(known), len(AMINO_ACIDS))
    return table


def spearman(scores: np.ndarray, measured: np.ndarray) -> float:
    """Spearman's rank correlation over the mutants whose measurement is not NaN; NaN if one side is constant."""
    scores, measured = scores[~np.isnan(measured)], measured[~np.isnan(measured)]
    if len(np.unique(scores)) < 2 or len(np.unique(measured)) < 2:
        return math.nan
    return float(spearmanr(scores, measured).statistic)


# ---------------------------------------------------------------------------------------------------------------------
# Files and the command
# ---------------------------------------------------------------------------------------------------------------------


def read_mutants(path: str | Path) -> tuple[list[str], np.ndarray | None]:
    """Mutants and measured fitness of a CSV file in ProteinGym's format.

    Returns:
        The column `mutant`; and `DMS_score` (mutants,), higher is fitter, NaN where a cell is empty, None without the
        column.

    Raises:
        FileNotFoundError: no such file.
        ValueError: there is no column `mutant`, no row, or a measurement that is no number.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 ({error}); convert it.") from error
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
    columns = reader.fieldnames or []
    if "mutant" not in columns:
        raise ValueError(f"{path} has the columns {', '.join(columns) or '(none)'}; the column mutant is needed.")
    rows = list(reader)
    if not rows:
        raise ValueError(f"{path} has no mutants; give a row for each.")
    mutants = [(row["mutant"] or "").strip() for row in rows]
    if "" in mutants:
        raise ValueError(f"{path}, row {mutants.index('') + 1}: the column mutant is empty; give one, or no row.")
    if "DMS_score" not in columns:
        return mutants, None
    measured = np.full(len(rows), np.nan)
    for number, row in enumerate(rows):
        try:
            measured[number] = float(row["DMS_score"] or "nan")
        except ValueError:
            raise ValueError(
                f"{path}: DMS_score of {mutants[number]} is {row['DMS_score']!r}; give a number, or nothing."
            ) from None
    return mutants, measured


def write_scores(path: Path, mutants: Sequence[str], scores: np.ndarray, measured: np.ndarray | None = None) -> None:
    """Write a CSV file with the columns `mutant`, `score` and, where there are any, `DMS_score`."""
    lines = ["mutant,score" + ",DMS_score" * (measured is not None)]
    for number, (mutant, score) in enumerate(zip(mutants, scores, strict=True)):
        cells = [mutant, f"{score:.6g}"]
        if measured is not None:
            cells.append("" if np.isnan(measured[number]) else repr(float(measured[number])))
        lines.append(",".join(cells))
    write_text(path, "\n".join(lines) + "\n")


def write_scan(path: Path, table: np.ndarray, sequence: str, first: int = 1) -> None:
    """Write what `scan_chain` returned as CSV: `position`, `wild_type` and a column for each amino acid."""
    lines = [",".join(["position", "wild_type", *AMINO_ACIDS])]
    for position, (letter, scores) in enumerate(zip(sequence, table, strict=True), first):
        lines.append(",".join([str(position), letter, *("" if np.isnan(x) else f"{x:.6g}" for x in scores)]))
    write_text(path, "\n".join(lines) + "\n")


def plot_scan(path: Path, table: np.ndarray, sequence: str, first: int = 1, title: str = "") -> None:
    """A heat map of what `scan_chain` returned, as PNG: residues from left to right, in as many rows as they need."""
    rows = -(-len(sequence) // PLOTTED_RESIDUES)
    width = min(len(sequence), PLOTTED_RESIDUES)
    if (figure := new_figure((0.13 * max(width, 40) + 1.6, 3.3 * rows + 0.7), path)) is None:
        return
    image = table[:, [AMINO_ACIDS.index(letter) for letter in PLOTTED_LETTERS]].T
    limit = float(np.nanpercentile(np.abs(table), 99)) or 1.0  # a few extreme scores do not bleach all others
    panels = figure.subplots(rows, 1, squeeze=False)[:, 0]
    for number, axes in enumerate(panels):
        start = number * PLOTTED_RESIDUES
        end = min(start + PLOTTED_RESIDUES, len(sequence))
        drawn = axes.imshow(
            image[:, start:end],
            extent=(start - 0.5, end - 0.5, len(PLOTTED_LETTERS) - 0.5, -0.5),
            cmap="RdBu",
            vmin=-limit,
            vmax=limit,
        )
        axes.axvspan(start - 0.5, end - 0.5, color="0.8", zorder=-1)  # behind residues X
        marked = [(i, PLOTTED_LETTERS.index(sequence[i])) for i in range(start, end) if sequence[i] in AMINO_ACIDS]
        axes.plot(*zip(*marked, strict=True), "k.", markersize=3)
        axes.set_xlim(start - 0.5, start + width - 0.5)
        axes.set_xticks(range(start, end), sequence[start:end], fontsize=6)
        axes.set_yticks(range(len(PLOTTED_LETTERS)), PLOTTED_LETTERS, fontsize=6)
        axes.tick_params(length=0, pad=2)
        tens = [index for index in range(start, end) if (first + index) % 10 == 0 or index == start]
        numbers = axes.secondary_xaxis("top")
        numbers.set_xticks(tens, [first + index for index in tens], fontsize=7)
        axes.set_ylabel("substituted by")
    panels[-1].set_xlabel("wild type (dots), position above")
    figure.colorbar(drawn, ax=panels, shrink=min(1.0, 1.5 / rows), extend="both", label="log-likelihood ratio (nats)")
    figure.suptitle(title)
    save_figure(figure, path)


def score_protein(
    checkpoint: str | Path,
    protein: str | Path,
    output: str | Path,
    *,
    mutants: Sequence[str] | None = None,
    method: str = "masked_marginal",
    first: int = 1,
    chain_ids: Sequence[str] | None = None,
    min_plddt: float | None = None,
    without_coords: bool = False,
    dtype: str = "float32",
    token_budget: int = 8192,
    window: int = 1024,
    progress: bool = True,
) -> dict[str, Any]:
    """Score mutants of the protein in a file, or all substitutions of one of its residues.

    Writes into the folder `output` scores.csv (see `write_scores`), or scan.csv and scan.png.

    Args:
        checkpoint: folder or Hub name of a masked-LM Coordformer.
        protein: structure or FASTA file.
        output: folder.
        mutants: as `parse_mutant` takes them, or the name of one CSV file, see `read_mutants`; None: all substitutions.
        method, first, without_coords, token_budget, window: as of `score_mutants`.
        chain_ids, min_plddt: as of `structure.read_proteins`; one chain is scored.
        dtype: of the weights.
        progress: show a progress bar.

    Returns:
        What is also in `score.json`: `checkpoint`, `chain`, `residues`, `observed`, `coordinates` (see
        `coordinates_given`), `method`, `first`, `window`, `dtype`; of given mutants their number, `mutants`, and where
        they were measured `spearman`, None where it is not defined.

    Raises:
        ValueError: the file has several chains, or an input is unusable.
    """
    output = Path(output)
    if output.is_file():
        raise ValueError(f"`output` is {output}, which is a file; give a folder.")
    measured = None
    if mutants is not None and len(mutants) == 1 and mutants[0].lower().endswith(".csv"):
        mutants, measured = read_mutants(mutants[0])
    model, processor = load_checkpoint(checkpoint, dtype)
    chains = read_proteins(protein, processor.coordinate_atoms, min_plddt, chain_ids)
    if len(chains) != 1:
        names = ", ".join(chain.id for chain in chains)
        raise ValueError(f"{protein} has the chains {names or '(none)'}; choose one with `chain_ids` (--chains).")
    chain = chains[0]
    output.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {
        "without_coords": without_coords,
        "window": window,
        "token_budget": token_budget,
        "progress": progress,
    }
    summary: dict[str, Any] = {
        "checkpoint": Path(checkpoint).name,
        "chain": chain.id,
        "residues": len(chain),
        "observed": int(chain.observed.any(axis=1).sum()),
        "coordinates": coordinates_given(model, chain, without_coords),
        "method": method,
        "first": first,
        "window": window,
        "dtype": dtype,
    }
    if mutants is None:
        table = scan_chain(model, processor, chain, method, **options)
        write_scan(output / "scan.csv", table, chain.sequence, first)
        plot_scan(output / "scan.png", table, chain.sequence, first, f"{chain.id}, {method.replace('_', ' ')}")
    else:
        scores = score_mutants(model, processor, chain, mutants, method, first=first, **options)
        write_scores(output / "scores.csv", mutants, scores, measured)
        summary["mutants"] = len(mutants)
        if measured is not None:
            correlation = spearman(scores, measured)
            summary["spearman"] = None if math.isnan(correlation) else correlation  # JSON has no NaN
    write_text(output / "score.json", json.dumps(summary) + "\n")
    return summary
