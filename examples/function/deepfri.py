"""The files of DeepFRI: annotations and split lists, and the rows of a data set that they are of."""

import csv
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np


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
