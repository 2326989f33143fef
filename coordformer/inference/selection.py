"""Chosen residues and chains: which are scored, what of the others stays context, and what is said of it."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..model.chain import Chain, Complex
from ..model.residues import AbsentChainError, ResidueNumbers
from .runner import Inputs

logger = logging.getLogger(__name__)

LISTED = 4  # gaps that a message names
LOOKED_THROUGH = 8  # files, for chains that are left out
LOW_PLDDT = 70  # what AlphaFold DB calls low confidence is below it


def select_residues(numbers: ResidueNumbers, residues: str | None, protein: Chain, given: Inputs) -> list[int]:
    """Indices of the chosen residues, in the order of the file; all if none were.

    Raises:
        ValueError: of `ResidueNumbers.select`; of a chain that is not there, where they are read one by one, it names
            --complex.
    """
    if residues is None:
        return list(range(len(protein)))
    try:
        return sorted(numbers.select(residues))
    except AbsentChainError as error:  # another chain of the file may be it
        if given.settings["as_complex"]:
            raise
        fix = "--complex reads the chains of a file together"
        raise ValueError(f"{str(error).removesuffix('.')}; {fix}.") from None


def missing_residues(numbers: ResidueNumbers, residues: str | None) -> dict[str, list[str]]:
    """For a report: what ranges of `residues` skip, see `ResidueNumbers.missing`; nothing where they skip nothing."""
    missing = numbers.missing(residues) if residues is not None else []
    return {"missing_residues": missing} if missing else {}


def say_missing(reports: Sequence[Mapping[str, Any]], name: str) -> None:
    """Say which residues within chosen ranges the files do not have; `name` is where reports have the id."""
    here = [report for report in reports if report.get("missing_residues")]
    texts = [
        f"{report[name]} {text}" if len(reports) > 1 else text for report in here for text in report["missing_residues"]
    ]
    if texts:
        listed = ", ".join([*texts[:LISTED], *["..."] * (len(texts) > LISTED)])
        why = "a file without SEQRES does not know its missing residues"
        logger.warning("not in the file, though within the chosen ranges: %s; %s", listed, why)


def low_plddt(protein: Chain, numbers: ResidueNumbers) -> dict[str, list[str]]:
    """For a report: which residues of a predicted structure have coordinates of low confidence; nothing if none.

    Predicted is what states no experiment and has B-factors that may be pLDDT: different ones, up to more than
    `LOW_PLDDT`, and to 100 at most. Backbones without a sequence often have 0 or 1 for all.
    """
    values = protein.b_factor
    experiment = (protein.method or "THEORETICAL").upper().find("THEORETICAL") < 0 or protein.resolution
    if experiment or not LOW_PLDDT < np.nanmax(values, initial=0.0) <= 100:
        return {}
    low = np.flatnonzero(values < LOW_PLDDT)
    return {"low_plddt": numbers.ranges(low.tolist())} if len(low) else {}


def say_low_plddt(reports: Sequence[Mapping[str, Any]], name: str) -> None:
    """Say which coordinates are of low confidence, and what takes them away; `name` is where reports have the id."""
    here = [report for report in reports if report.get("low_plddt")]
    texts = [f"{report[name]} {text}" if len(reports) > 1 else text for report in here for text in report["low_plddt"]]
    if texts:
        listed = ", ".join([*texts[:LISTED], *["..."] * (len(texts) > LISTED)])
        fix = f"--min_plddt {LOW_PLDDT} takes them for not observed"
        logger.warning("coordinates of low confidence (pLDDT below %d): %s; %s", LOW_PLDDT, listed, fix)


def say_left_out(inputs: Sequence[str | Path] | str | Path, reading: Mapping[str, Any], what: str) -> None:
    """Of complexes of which only some chains are read: which of a file are not, and how they stay context."""
    chosen, together = reading.get("chain_ids"), reading.get("as_complex") or reading.get("assembly") is not None
    if not chosen or not together:
        return
    wanted = {chosen} if isinstance(chosen, str) else set(chosen)
    files = Inputs(inputs, **{**reading, "chain_ids": None, "shard": None}, entries_per_part=1)
    for number in range(min(len(files), LOOKED_THROUGH)):
        for whole in files.read(number, [])[0]:
            if not isinstance(whole, Complex) or not whole.observed.any():  # of FASTA, chain_ids are sequences
                continue
            names = whole.chain_names
            left = [name for name in names if not {name, f"{whole.id}_{name}"} & wanted]
            if 0 < len(left) < len(names):
                _name_left_out(whole, left, len(files), what)
                return


def _name_left_out(whole: Complex, left: Sequence[str], inputs: int, what: str) -> None:
    kept = [f"{name}/" if name[-1:].isdigit() else name for name in whole.chain_names if name not in left]
    chosen = f"'{' '.join(kept)}'" if len(kept) > 1 else kept[0]
    listed = ", ".join([*left[:8], *["..."] * (len(left) > 8)])
    fix = {
        "scan": f"--residues {chosen} in its place scans the same residues, and keeps {{0}} as context",
        "sequences": f"--residues {chosen} in its place, and sequences of all chains, keep {{0}} as context",
        "mutants": "without --chains {0} {1} context; name the chain in mutants, as in SH195A",
    }[what].format(*("it", "is") if len(left) == 1 else ("them", "are"))
    among = f", among {inputs:,} inputs" if inputs > 1 else ""
    logger.warning("--chains leaves out chain%s %s of %s%s; %s", "s" * (len(left) > 1), listed, whole.id, among, fix)
