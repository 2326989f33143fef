"""Substitutions: how they are written, and files of them."""

import csv
import math
import re
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr  # type: ignore[import-untyped]

from ..model.chain import AMINO_ACIDS


def parse_mutant(mutant: str, sequence: str, offset: int = 1) -> list[tuple[int, str]]:
    """The substitutions of a mutant such as `A24G` or `A24G:T30S`.

    Args:
        mutant: letter of the wild type, position, new letter; several substitutions are joined by `:`.
        sequence: of the wild type.
        offset: position of the first residue of `sequence`.

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
        f"positions count the deposited sequence from {offset}, not a file's own residue numbers: set `offset` "
        "(--offset) to the position of its first residue in the mutants, or give the chain that they are of"
    )
    substitutions: dict[int, str] = {}
    for text in mutant.split(":"):
        if (match := re.fullmatch(r"([A-Z])(-?\d+)([A-Z])", text.strip())) is None:
            raise ValueError(f"Mutant {mutant!r} cannot be read; write A24G, or A24G:T30S for several substitutions.")
        wild_type, position, letter = match[1], int(match[2]), match[3]
        if odd := {wild_type, letter} - set(AMINO_ACIDS):
            raise ValueError(f"Mutant {mutant}: {min(odd)} is no amino acid; substitutions are among {AMINO_ACIDS}.")
        index = position - offset
        if not 0 <= index < len(sequence):
            ends = f"{offset} to {offset + len(sequence) - 1}"
            raise ValueError(f"Mutant {mutant}: the chain has no position {position}, its residues are {ends}; {fix}.")
        if sequence[index] != wild_type:
            found = f"position {position} of the chain is {sequence[index]}, not {wild_type}"
            raise ValueError(f"Mutant {mutant}: {found}; {fix}.")
        if index in substitutions:
            raise ValueError(f"Mutant {mutant}: position {position} is substituted twice; keep one of them.")
        substitutions[index] = letter
    return list(substitutions.items())


def read_mutants(path: str | Path) -> tuple[list[str], np.ndarray | None, list[str] | None]:
    """Mutants and measured fitness of a CSV file in ProteinGym's format.

    Returns:
        The column `mutant`; `DMS_score` (mutants,), higher is fitter, NaN where a cell is empty; and `id`, the chains
        that the mutants are of. None for a column that is not there.

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
    if not (rows := list(reader)):
        raise ValueError(f"{path} has no mutants; give a row for each.")
    mutants = [(row["mutant"] or "").strip() for row in rows]
    if "" in mutants:
        raise ValueError(f"{path}, row {mutants.index('') + 1}: the column mutant is empty; give one, or no row.")
    ids = [(row["id"] or "").strip() for row in rows] if "id" in columns else None
    if "DMS_score" not in columns:
        return mutants, None, ids
    measured = np.full(len(rows), np.nan)
    for number, row in enumerate(rows):
        try:
            measured[number] = float(row["DMS_score"] or "nan")
        except ValueError:
            found = f"DMS_score of {mutants[number]} is {row['DMS_score']!r}"
            raise ValueError(f"{path}: {found}; give a number, or nothing.") from None
    return mutants, measured, ids


def spearman(scores: np.ndarray, measured: np.ndarray) -> float:
    """Spearman's rank correlation over the mutants whose measurement is not NaN; NaN if one side is constant."""
    scores, measured = scores[~np.isnan(measured)], measured[~np.isnan(measured)]
    if len(np.unique(scores)) < 2 or len(np.unique(measured)) < 2:
        return math.nan
    return float(spearmanr(scores, measured).statistic)
