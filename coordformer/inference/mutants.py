"""Files of mutants and measurements."""

import csv
import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..model.substitutions import parse_mutant

logger = logging.getLogger(__name__)


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
        raise ValueError(f"{path} has the columns {', '.join(columns) or '(none)'}; {_why_no_mutants(columns)}.")
    if "chain" in columns:
        fix = "write chains into ids, such as 1ABC_H, or with --complex into mutants, as in SH195A"
        logger.warning("%s: the column chain is not read; %s", path, fix)
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


def _why_no_mutants(columns: Sequence[str]) -> str:
    """What is to be done about a head without the column `mutant`."""
    small = [name.strip().lower() for name in columns]
    if len(columns) == 1 and (sign := next((sign for sign in (";", "\t") if sign in columns[0]), "")):
        return f"put commas between the columns, and no {'tabs' if sign != ';' else 'semicolons'}"
    if "mutant" in small:
        return f"write {columns[small.index('mutant')]} as mutant"
    if any(re.fullmatch(r"[A-Z][^\s,;]*\d[A-Za-z]?[A-Z]", name.strip()) for name in columns):
        return "put a line with the names of the columns first: mutant, and of several chains id"
    return "the column mutant is needed"


def spearman(scores: np.ndarray, measured: np.ndarray) -> float:
    """Spearman's rank correlation over the mutants whose measurement is not NaN; NaN if one side is constant."""
    from scipy.stats import spearmanr  # type: ignore[import-untyped]  # half a second, and few files have measurements

    scores, measured = scores[~np.isnan(measured)], measured[~np.isnan(measured)]
    if len(np.unique(scores)) < 2 or len(np.unique(measured)) < 2:
        return math.nan
    return float(spearmanr(scores, measured).statistic)


__all__ = ["parse_mutant", "read_mutants", "spearman"]
