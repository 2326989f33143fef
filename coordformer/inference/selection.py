"""Chosen residues and chains: which are scored, what of the others stays context, and what is said of it."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gemmi
import numpy as np

from ..data.records import first_ones
from ..model.chain import Chain, Complex, split_by_chain
from ..model.residues import AbsentChainError, ResidueNumbers
from .runner import Inputs

logger = logging.getLogger(__name__)

LISTED = 4  # gaps that a message names
LOOKED_THROUGH = 8  # files, for chains that are left out
ALIKE = 0.9  # share of the residues of the shorter one of two chains that are one protein
LEAST_SIZE = 0.6  # of the longer one, that the shorter one of two copies has
TOUCHING = 10.0  # Å
LIKELY_PLDDT = 50  # a mean below it is one of B-factors, or of a model that is disordered all over
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


def named_residues(reports: Sequence[Mapping[str, Any]], name: str, field: str) -> str:
    """The first residues of a field of reports, of several proteins with their ids, `name`; `""` if there are none."""
    texts = [
        f"{report[name]} {text}" if len(reports) > 1 else text for report in reports for text in report.get(field, ())
    ]
    return first_ones(texts, LISTED)


def say_missing(reports: Sequence[Mapping[str, Any]], name: str, joined: str = "") -> None:
    """Say which residues the files do not have: within chosen ranges, or anywhere, and then what comes of it, `joined`.

    `name` is where reports have the id.
    """
    if listed := named_residues(reports, name, "missing_residues"):
        where = "" if joined else ", though within the chosen ranges"
        why = "a file without SEQRES does not know its missing residues" + (joined and f", and {joined}")
        logger.warning("not in the file%s: %s; %s", where, listed, why)


def unknown_letters(numbers: ResidueNumbers, indices: Iterable[int]) -> dict[str, list[str]]:
    """For a report: which of some residues are X, as modified ones often are; nothing if none."""
    unknown = [index for index in indices if numbers.sequence[index] == "X"]
    return {"unknown": numbers.ranges(unknown)} if unknown else {}


def say_unknown(reports: Sequence[Mapping[str, Any]], name: str, what: str) -> None:
    """Say which residues have no known letter, and `what` becomes of them."""
    if listed := named_residues(reports, name, "unknown"):
        logger.warning("no letter is known of %s (X, as of many modified residues): %s", listed, what)


def low_plddt(protein: Chain, numbers: ResidueNumbers) -> dict[str, list[str]]:
    """For a report: which residues of a predicted structure have coordinates of low confidence; nothing if none.

    Predicted is what states no experiment and has B-factors that may be pLDDT: 100 at most, some above `LOW_PLDDT`, and
    a mean of `LIKELY_PLDDT` or more, which crystals hardly have. Backbones without a sequence often have 0 or 1.
    """
    values = protein.b_factor
    experiment = "THEORETICAL" not in (protein.method or "THEORETICAL").upper() or protein.resolution
    known = values[~np.isnan(values)]
    if experiment or not len(known) or not LOW_PLDDT < known.max() <= 100 or known.mean() < LIKELY_PLDDT:
        return {}
    low = np.flatnonzero(values < LOW_PLDDT)
    return {"low_plddt": numbers.ranges(low.tolist())} if len(low) else {}


def say_low_plddt(reports: Sequence[Mapping[str, Any]], name: str) -> None:
    """Say which coordinates are of low confidence, and what takes them away; `name` is where reports have the id."""
    if listed := named_residues(reports, name, "low_plddt"):
        fix = f"--min_plddt {LOW_PLDDT} takes them for not observed"
        logger.warning("coordinates of low confidence (pLDDT below %d): %s; %s", LOW_PLDDT, listed, fix)


def chain_copies(protein: Chain, residues: ResidueNumbers) -> list[list[int]]:
    """Numbers of the chains of a complex that are one protein, in groups of two and more.

    Those are chains of which `ALIKE` of the residues of the shorter one have the same letter, where the two align:
    files that do not know what is missing lack other residues of each.
    """
    own = split_by_chain(residues.sequence, residues.chain_lengths)
    groups: list[list[int]] = []
    for chain, letters in enumerate(own):
        for group in groups:
            sizes = sorted((len(letters), len(own[group[0]])))
            if sizes[0] < LEAST_SIZE * sizes[1]:
                continue
            same = letters == own[group[0]]
            if same or gemmi.align_string_sequences(letters, own[group[0]], []).match_count >= ALIKE * sizes[0]:
                group.append(chain)
                break
        else:
            groups.append([chain])
    return [group for group in groups if len(group) > 1]


def read_copies(
    protein: Chain, residues: ResidueNumbers, chosen: Iterable[int], masked: Iterable[int] = ()
) -> dict[str, Any]:
    """For a report: chains whose letters are read while those of a copy are asked for; nothing if there are none.

    Args:
        chosen: indices of the residues that are asked for.
        masked: of those that are masked at the same time; a copy of which is masked where the other is tells nothing.

    Returns:
        `copies`, of each chain that is asked for the names of its copies, and `one_of_each`, chains that are no copies
        of each other: the first one that is asked for, and of others those that touch it most.
    """
    asked, hidden = (_numbers_by_chain(residues, indices) for indices in (chosen, masked))
    groups = chain_copies(protein, residues)
    copies: dict[str, list[str]] = {}
    for group in groups:
        for chain in (chain for chain in group if chain in asked):
            told = [each for each in group if each != chain and not _are_hidden(asked[chain], hidden.get(each, set()))]
            if told:
                copies[residues.chain_names[chain]] = [residues.chain_names[each] for each in told]
    if not copies:
        return {}
    kept = [chain for group in groups for chain in group if chain in asked][:1]
    for group in [group for group in groups if not set(group) & set(kept)]:
        kept.append(max(group, key=lambda chain: _count_contacts(protein, residues, kept[0], chain)))
    grouped = {chain for group in groups for chain in group}
    kept += [chain for chain in range(len(residues.chain_names)) if chain not in grouped]
    return {"copies": copies, "one_of_each": [residues.chain_names[chain] for chain in sorted(kept)]}


def _numbers_by_chain(residues: ResidueNumbers, indices: Iterable[int]) -> dict[int, set[str]]:
    numbers: dict[int, set[str]] = {}
    for index in indices:
        numbers.setdefault(int(residues.chain_index[index]), set()).add(residues.numbers[index])
    return numbers


def _are_hidden(asked: set[str], hidden: set[str]) -> bool:
    """Whether the residues of one chain that are asked for are masked in a copy, whose numbers may be others."""
    return asked <= hidden or (not asked & hidden and len(hidden) >= ALIKE * len(asked))


def _count_contacts(protein: Chain, residues: ResidueNumbers, one: int, other: int) -> int:
    """Pairs of atoms of two chains, of those that are read, less than `TOUCHING` apart."""
    points = [protein.coords[residues.chain_index == chain].reshape(-1, 3) for chain in (one, other)]
    first, second = (each[~np.isnan(each[:, 0])] for each in points)
    if len(first) and len(second):  # far chains of a large assembly have none in each other's box
        first = first[_in_box(first, second)]
        second = second[_in_box(second, first)] if len(first) else second[:0]
    return sum(int((np.linalg.norm(second - point, axis=-1) < TOUCHING).sum()) for point in first)


def _in_box(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which points are less than `TOUCHING` from the box around others: bool (points,)."""
    return ((points > others.min(axis=0) - TOUCHING) & (points < others.max(axis=0) + TOUCHING)).all(axis=1)


def say_copies(reports: Sequence[Mapping[str, Any]], name: str, tie: str = "") -> None:
    """Say of which chains copies are read; `tie` is what may be done besides."""
    here = [report for report in reports if report.get("copies")]
    if not here:
        return
    first = here[0]
    chain, copies = next(iter(first["copies"].items()))
    listed = f"{', '.join(copies)} of {first[name]}"
    are = f"chains {listed} are copies of {chain}" if copies[1:] else f"chain {listed} is a copy of {chain}"
    more = f", and so in {len(here) - 1:,} more" if here[1:] else ""
    why = f"letters there are read while those of {chain} are masked, and decide much where the two touch"
    fix = f"where it is a second copy in the crystal, --chains {' '.join(first['one_of_each'])} reads one of each{tie}"
    logger.warning("%s%s: %s; %s", are, more, why, fix)


def say_left_out(
    inputs: Sequence[str | Path] | str | Path, reading: Mapping[str, Any], what: str, residues: str | None = None
) -> None:
    """Of complexes of which only some chains are read: which of a file are not, and how they stay context."""
    chosen, together = reading.get("chain_ids"), reading.get("as_complex") or reading.get("assembly") is not None
    if not chosen or not together:
        return
    for whole, wanted, inputs_read in _complexes(inputs, reading):
        left = [name for name in whole.chain_names if name not in wanted]
        if left and wanted and not _are_copies(whole, left):
            _name_left_out(whole, left, inputs_read, what, residues)
            return


def say_unseen(inputs: Sequence[str | Path] | str | Path, reading: Mapping[str, Any]) -> None:
    """Of chains that are read one by one: which others of the file one touches, and what reads these, too."""
    if reading.get("as_complex") or reading.get("assembly") is not None:
        return
    for whole, wanted, _ in _complexes(inputs, {**reading, "as_complex": True}):
        residues, names = ResidueNumbers(whole), whole.chain_names
        groups = list(map(set, chain_copies(whole, residues)))
        for chain in (chain for chain, name in enumerate(names) if name in wanted):
            others = [other for other in range(len(names)) if other != chain]
            touching = [other for other in others if _count_contacts(whole, residues, chain, other)]
            partners = [other for other in touching if not any({chain, other} <= group for group in groups)]
            if touching:
                shown = partners or touching
                are, them = ("are", "them") if shown[1:] else ("is", "it")
                of, where = "chains" if shown[1:] else "chain", ""
                if not partners:  # a copy may be a second one in the crystal
                    of, where = "its copies" if shown[1:] else "its copy", "if it is an oligomer, "
                what = f"{of} {first_ones([names[other] for other in shown], LISTED)}"
                unseen = f"which {are} not seen; {where}--complex reads {them}, too"
                logger.warning("chain %s of %s touches %s, %s", names[chain], whole.id, what, unseen)
                return


def _complexes(
    inputs: Sequence[str | Path] | str | Path, reading: Mapping[str, Any]
) -> Iterator[tuple[Complex, set[str], int]]:
    """Complexes of the first files, the names of the chosen chains in each, and how many inputs there are."""
    chosen = reading.get("chain_ids")
    ids = {chosen} if isinstance(chosen, str) else set(chosen or ())
    files = Inputs(inputs, **{**reading, "chain_ids": None, "shard": None}, entries_per_part=1)
    for number in range(min(len(files), LOOKED_THROUGH)):
        for whole in files.read(number, [])[0]:
            if isinstance(whole, Complex) and whole.observed.any():  # of FASTA, chain_ids are sequences
                names = {name for name in whole.chain_names if not ids or {name, f"{whole.id}_{name}"} & ids}
                yield whole, names, len(files)


def _are_copies(whole: Complex, left: Sequence[str]) -> bool:
    """Whether chains that are left out are all copies of chains that are not."""
    groups = [{whole.chain_names[chain] for chain in group} for group in chain_copies(whole, ResidueNumbers(whole))]
    return all(any(name in group and group - set(left) for group in groups) for name in left)


def _name_left_out(whole: Complex, left: Sequence[str], inputs: int, what: str, residues: str | None) -> None:
    kept = [f"{name}/" if name[-1:].isdigit() else name for name in whole.chain_names if name not in left]
    chosen = f"'{' '.join(kept)}'" if len(kept) > 1 else kept[0]
    listed = first_ones(left, 8)
    them, they_are = ("it", "it is") if len(left) == 1 else ("them", "they are")
    if residues is not None:
        fix = f"without --chains {they_are} context, and --residues says what is scored as before"
    else:
        fix = {
            "scan": f"--residues {chosen} in its place scans the same residues, and keeps {them} as context",
            "sequences": f"--residues {chosen} in its place, and sequences of all chains, keep {them} as context",
            "design": f"without --chains {they_are} context; --chains_to_design says what is designed",
            "mutants": f"without --chains {they_are} context; name the chain in mutants, as in SH195A",
        }[what]
    among = f", among {inputs:,} inputs" if inputs > 1 else ""
    logger.warning("--chains leaves out chain%s %s of %s%s; %s", "s" * (len(left) > 1), listed, whole.id, among, fix)
