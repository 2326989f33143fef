"""Scores of mutants, or of all substitutions, as files: `coordformer score`; of whole sequences see `sequences`."""

import csv
import difflib
import io
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..data.files import write_json, write_text
from ..data.inputs import Reject
from ..data.records import counted, first_lines, first_ones, hash_json
from ..model.chain import AMINO_ACIDS, Chain, Complex
from ..model.coordinates import placed_in
from ..model.proteins import as_chain, id_of
from ..model.residues import ResidueNumbers, choose_numbering
from ..model.substitutions import parse_mutant
from .checkpoints import (
    coordinates_given,
    digest_weights,
    load_checkpoint,
    read_for,
    stated_noise,
    training_reports,
    training_sequences_of,
    warn_of_training,
)
from .figures import plot_scan
from .marginals import METHODS, scan_table, score_substitutions, substitutions_of
from .mutants import read_mutants, spearman
from .runner import PARTS, REJECTS, Inputs, Outcome, file_stems, is_data_set, join_tables, parts_in, run_parts
from .selection import (
    low_plddt,
    missing_residues,
    read_copies,
    say_copies,
    say_left_out,
    say_low_plddt,
    say_missing,
    say_unknown,
    say_unseen,
    select_residues,
    unknown_letters,
)
from .sequences import OF_ALL, score_given_sequences
from .timing import in_words, scan_seconds

logger = logging.getLogger(__name__)

SOON = 10  # seconds; of less nothing is said
LISTED = 3  # residues, mutants or ids that a message names
REASONS = 20  # of wrong mutants, to be mended at once
UNASKED = "no mutant has this chain in the column id"  # in records of parts; it is not said of all that are not meant


def score(
    checkpoint: str | Path, inputs: Sequence[str | Path] | str | Path, output: str | Path, *,
    mutants: Sequence[str] | None = None, sequences: str | Path | None = None, residues: str | None = None,
    method: str = "masked_marginal", numbering: str | None = None, offset: int | None = None,
    without_coords: bool = False, noise_level: float | None = None, dtype: str = "float32", token_budget: int = 8192,
    window: int = 1024, ensemble: Sequence[str | Path] = (), figures: bool = True, entries_per_part: int = 16,
    progress: bool = True, **reading: Any,
) -> dict[str, Any]:  # fmt: skip
    """Score mutants of proteins, or all substitutions of each of their residues, one at a time.

    Args:
        checkpoint: folder or Hub name of a masked-LM Coordformer.
        inputs: structure and FASTA files, archives, folders, data sets.
        output: a folder. Gets `scan.csv` and a heat map of each chain or complex, or of given mutants `scores.csv`; and
            `score.json`. A scan has the columns `id`, `file` (see `Inputs.file_of`), `position` (in its chain, from 1
            or `offset`), `wild_type`, `chain`, `residue` (chain and the file's own number, see `ResidueNumbers.name`),
            `observed` (`true` where all models have a place for it, see `coordinates.placed_in`) and one for each amino
            acid; scores have `id`, `file`, `mutant`, `score`, `DMS_score` where measured, of the substituted residues,
            joined by `:`, `residues` and `positions`, and `observed`, whether all of them were. A mutant that is not of
            its chain has a row without a score; where most are not, the chain is left out, for its numbers are others.
        mutants: as `parse_mutant` takes them, of one chain; or the name of one CSV file, see `read_mutants`, which for
            several chains says in its column `id` which one a mutant is of. None: all substitutions.
        sequences: name of a FASTA file; then these are scored, and not mutants, see `score_given_sequences`.
        residues: of a scan or of `sequences` only these are masked and scored, such as `"A10-A20 B"`, see
            `ResidueNumbers.select`; the others are context.
        numbering, offset: what numbers in mutants and `residues` are, as of `parse_mutant`, and those above the heat
            map.
        method, without_coords, token_budget, window: as of `score_substitutions` and `log_probabilities`.
        noise_level: what a model with `config.noise_conditioning` is told, Å; default: its `config.noise_level`.
        dtype: of the weights.
        ensemble: further checkpoints; a score is then the mean of all. Not with `sequences`.
        figures: draw the heat map of a scan.
        entries_per_part, reading (`split`, `chain_ids`, `min_plddt`, `as_complex`, `assembly`, `shard`): as of
            `runner.Inputs`.

    Returns:
        What is also in `score.json`: the settings (`residues` as `chosen_residues`), counts, and `chains`, of each
        `chain` (its id), `file`, `residues`, `observed`, `numbering` (`"sequence"` where the file has no numbers,
        whatever was asked for), `coordinates` (see `coordinates_given`), `unobserved` (where coordinates are given:
        names of the scanned residues, or the mutants, without), `missing_residues` (what chosen ranges skip, as a file
        without its sequence does not have it; only where there is some), of a scan `scored` (its residues) and
        `unknown` (those that are X and are not),
        `trained_on` (see `checkpoints.trained_on`; `trained_on_sequences` counts them), `low_plddt` (see
        `selection.low_plddt`), `copies` and `one_of_each` (see `selection.read_copies`), of a complex `chains`
        (residues by name), and of given mutants how many were scored, `mutants`, why others were not, `unread`, and
        where they were measured `spearman`, None where it is not defined. Of a single chain these stand at the top,
        too, but for `chains`.

    Raises:
        ValueError: an input is unusable, or mutants without `id` are of several chains.
    """
    if residues is not None and mutants is not None:
        raise ValueError("`residues` goes with a scan or `sequences`; mutants name their own.")
    if sequences is not None:
        if mutants is not None:
            raise ValueError("Give `mutants` or `sequences`, not both.")
        if ensemble:
            raise ValueError("`ensemble` goes with a scan or mutants; `sequences` are scored by one checkpoint.")
        shared: dict[str, Any] = {"without_coords": without_coords, "dtype": dtype, "token_budget": token_budget}
        shared["noise_level"] = noise_level
        shared |= {"entries_per_part": entries_per_part, "progress": progress, "residues": residues}
        shared |= {"numbering": numbering, "offset": offset}
        return score_given_sequences(checkpoint, inputs, output, sequences, **shared, **reading)
    output, measured, ids = Path(output), None, None
    asked_numbering, first = choose_numbering(numbering, offset)
    mutants_of: dict[str, list[int]] = {}  # their numbers
    if mutants is not None and len(mutants) == 1 and mutants[0].lower().endswith(".csv"):
        mutants, measured, ids = read_mutants(mutants[0])
    for number, chain_id in enumerate(ids or ()):
        mutants_of.setdefault(chain_id, []).append(number)
    if mutants is not None and len(mutants) == 0:
        raise ValueError("There is nothing to score: the list of mutants is empty.")
    if method not in METHODS:
        raise ValueError(f"`method` is {method!r}; choose one of {', '.join(METHODS)}.")
    folders = [checkpoint, *ensemble]
    names = [Path(each).name for each in folders]
    loaded = [load_checkpoint(each, dtype, noise_level=noise_level) for each in folders]
    reads = read_for([processor for _, processor in loaded])
    given = Inputs(inputs, **reads, entries_per_part=entries_per_part, **reading)
    options: dict[str, Any] = {"without_coords": without_coords, "window": window, "token_budget": token_budget}
    data_sets = all(map(is_data_set, [inputs] if isinstance(inputs, str | Path) else inputs))
    timed = mutants is not None or not progress
    training = training_sequences_of(*folders)
    say_left_out(inputs, reading, "scan" if mutants is None else "mutants", residues)

    def ask(record: Any) -> _Asked:
        chain = as_chain(record)
        numbers = ResidueNumbers(chain, numbering=numbering, offset=offset)
        indices = select_residues(numbers, residues, chain, given)
        observed = np.all([placed_in(chain, model) for model, _ in loaded], axis=0)
        if mutants is None:
            return _Asked(chain, numbers, observed, indices, substitutions_of(chain, indices))
        mine = list(range(len(mutants))) if ids is None else mutants_of.get(id_of(record), [])
        parsed, unread = _parse_all([mutants[number] for number in mine], numbers)
        return _Asked(chain, numbers, observed, indices, parsed, mine, unread)

    def work(records: list[Any], part: str, rejects: list[Reject], bar: tqdm) -> dict[str, Any]:
        nonlocal timed
        if mutants is not None and ids is None and (len(records) > 1 or len(given) > 1):
            raise ValueError(_whose_mutants(records, mutants, len(given)))
        asked: list[_Asked] = []
        for record in records:
            try:
                asked.append(ask(record))
            except ValueError as error:
                rejects.append(("", id_of(record), str(error).removeprefix(f"chain {id_of(record)}: ")))
        chains = [each.chain for each in asked]
        if not timed:
            timed = True
            timings = [scan_seconds(*each, chains, [len(one.indices) for one in asked], **options) for each in loaded]
            _say_how_long(timings, method, len(given))
        pairs = [(each.chain, [one for one in each.substitutions if one is not None]) for each in asked]
        by_model = [score_substitutions(*each, pairs, method, progress=progress, **options) for each in loaded]
        reports: list[dict[str, Any]] = []
        lines: list[list[str]] = []
        drawn = mutants is None and figures
        stems = file_stems(output, part, chains) if drawn else [output] * len(chains)
        seen = training_reports(training, chains)
        for each, stem, trained, *scored in zip(asked, stems, seen, *by_model, strict=True):
            scores, file = np.mean(scored, axis=0), given.file_of(each.chain)
            kinds = [coordinates_given(model, each.chain.coords, without_coords) for model, _ in loaded]
            report = each.report(file, "given" if "given" in kinds else kinds[0]) | trained
            report |= missing_residues(each.numbers, residues)
            known = report["coordinates"] == "given"
            if mutants is None:
                table = scan_table(each.chain, scores, each.indices)
                lines += scan_lines(each.chain.id, file, each.numbers, table, each.observed, each.indices)
                if drawn:
                    alone = len(records) == len(given) == 1
                    picture = output / "scan.png" if alone else stem.with_name(f"{stem.name}.png")
                    title = f"{each.chain.id}, {method.replace('_', ' ')}"
                    plot_scan(picture, table, each.numbers, title, each.indices, each.observed if known else None)
            else:
                texts, values = [mutants[row] for row in each.rows], None if measured is None else measured[each.rows]
                about = each.chain.id, file, each.numbers
                lines += score_lines(*about, texts, each.substitutions, scores, values, each.observed)
                if values is not None:
                    correlation = spearman(scores, values[[one is not None for one in each.substitutions]])
                    report["spearman"] = None if math.isnan(correlation) else correlation  # JSON has no NaN
            if known:
                report["unobserved"] = each.unobserved(mutants)
                report |= low_plddt(each.chain, each.numbers)
                report |= read_copies(each.chain, each.numbers, each.asked())
            reports.append(report)
        bar.update(len(records))
        head = ["id", "file", "position", "wild_type", "chain", "residue", "observed", *AMINO_ACIDS]
        if mutants is not None:
            head = ["id", "file", "mutant", "score", *["DMS_score"] * (measured is not None), "residues", "positions"]
            head.append("observed")
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([head, *lines])  # an id may have commas
        write_text(output / PARTS / f"{part}.csv", text.getvalue())
        counts = {"chains": len(reports), "residues": sum(report["residues"] for report in reports)}
        return {"reports": reports, "file": f"{PARTS}/{part}.csv", **counts}

    settings: dict[str, Any] = {
        "checkpoint": names[0],
        "method": method,
        "numbering": asked_numbering,
        "offset": first,
        "window": window,
        "dtype": dtype,
        "chosen_residues": residues,
        **stated_noise(noise_level),
    }
    weights = [digest_weights(model) for model, _ in loaded]
    guarded: dict[str, Any] = {"verb": "score", "weights": weights[0], "without_coords": without_coords}
    if mutants is None:
        guarded["figures"] = figures
    if ensemble:  # see `runner.UNSTATED`
        settings["ensemble"] = names[1:]
        guarded["ensemble_weights"] = weights[1:]
    if mutants is not None:
        guarded["mutants"] = hash_json([list(mutants), ids, None if measured is None else measured.tolist()])
    with parts_in(output, given):
        finish = partial(
            _reject_lost, ids=list(mutants_of), files=not data_sets, as_complex=bool(given.settings["as_complex"])
        )
        outcome = run_parts(given, output, {"mutants": None, **settings, **guarded}, work, progress, finish)
        reports = [report for record in outcome.records for report in record.get("reports", ())]
        if outcome.complete:
            outcome.list_rejects(output / REJECTS)
        summary: dict[str, Any] = settings | outcome.counts()
        summary["trained_on_sequences"] = warn_of_training(" or ".join(dict.fromkeys(names)), reports, "chain")
        say_missing(reports, "chain")
        _warn_of_unobserved(reports)
        _warn_of_unread(reports)
        say_low_plddt(reports, "chain")
        say_copies(reports, "chain")
        if not data_sets and not without_coords:
            say_unseen(inputs, reading)
        say_unknown(reports, "chain", "they are context, and are not scanned")
        summary["chains"] = reports
        if outcome.complete:
            if len(reports) == 1:
                summary |= {name: value for name, value in reports[0].items() if name != "chains"}
            tables = [output / record["file"] for record in outcome.records if "file" in record]
            join_tables(tables, output / ("scan.csv" if mutants is None else "scores.csv"))
            write_json(output / "score.json", summary)
    return summary


@dataclass(eq=False)
class _Asked:
    """What is to be scored of a chain.

    Attributes:
        observed: bool (L,), residues that all models have a place for.
        indices: residues that are scanned.
        substitutions: of each mutant, or of each letter of a scan, what `parse_mutant` returns, None where it cannot.
        rows: numbers of the mutants in the list that was given.
        unread: why mutants without substitutions have none.
    """

    chain: Chain
    numbers: ResidueNumbers
    observed: np.ndarray
    indices: list[int]
    substitutions: Sequence[list[tuple[int, str]] | None]
    rows: Sequence[int] | None = None
    unread: Sequence[str] = ()

    def report(self, file: str, coordinates: str) -> dict[str, Any]:
        """What is said of a chain whatever its scores are."""
        report: dict[str, Any] = {"chain": self.chain.id, "file": file, "residues": len(self.chain)}
        report |= {"observed": int(self.observed.sum()), "numbering": self.numbers.numbering}
        report["coordinates"] = coordinates
        if isinstance(self.chain, Complex):
            report["chains"] = dict(zip(self.chain.chain_names, self.chain.chain_lengths, strict=True))
        if self.rows is None:
            report["scored"] = len(self._scanned())
            report |= unknown_letters(self.numbers, self.indices)
        else:
            report["mutants"] = len(self.rows) - len(self.unread)
        if self.unread:
            report["unread"] = list(self.unread)
        return report

    def unobserved(self, mutants: Sequence[str] | None) -> list[str]:
        """Names of the scanned residues without a place in the structure, or the mutants that have such residues."""
        if mutants is None or self.rows is None:
            return [self.numbers.name(index) for index in self._scanned() if not self.observed[index]]
        pairs = zip(self.rows, self.substitutions, strict=True)
        return [mutants[row] for row, each in pairs if each and not self.observed[[index for index, _ in each]].all()]

    def asked(self) -> list[int]:
        """Residues that are scanned, or that any mutant substitutes."""
        return sorted({index for each in self.substitutions for index, _ in each or ()})

    def _scanned(self) -> list[int]:
        return [index for index in self.indices if self.chain.sequence[index] in AMINO_ACIDS]


def _parse_all(mutants: Sequence[str], numbers: ResidueNumbers) -> tuple[list[list[tuple[int, str]] | None], list[str]]:
    """Substitutions of all mutants of a chain, None for one that is not of it, and why.

    Raises:
        ValueError: there are no mutants; or most are not of the chain: then its numbers are others, and a twentieth of
            the mutants fits by chance.
    """
    if not mutants:
        raise ValueError(UNASKED)
    parsed: list[list[tuple[int, str]] | None] = []
    unread = []
    for mutant in mutants:
        try:
            parsed.append(parse_mutant(mutant, numbers))
        except ValueError as error:
            parsed.append(None)
            unread.append(str(error))
    if len(unread) > sum(map(bool, parsed)):
        reasons = " ".join(unread[:REASONS]) + f" And {len(unread) - REASONS:,} more." * (len(unread) > REASONS)
        whole = f" None is scored, since {len(unread):,} of {len(mutants):,} mutants are wrong." if unread[1:] else ""
        raise ValueError(reasons + whole)
    return parsed, unread


def _say_how_long(timings: Sequence[Mapping[str, float] | None], method: str, parts: int) -> None:
    """Before a scan: what it will take with all models, and the fastest method where another one was chosen."""
    known = [each for each in timings if each is not None]
    if not known:
        return
    seconds = {each: sum(timing[each] for timing in known) for each in (method, METHODS[0])}
    of_parts = f", for each of {parts:,} parts" if parts > 1 else ""
    if seconds[method] * parts < SOON:
        return
    text = f"all substitutions by {method} take {in_words(seconds[method])}{of_parts}"
    if method != METHODS[0]:
        text += f"; --method {METHODS[0]}, which masks nothing, takes {in_words(seconds[METHODS[0]])}"
    logger.warning("%s", text)


def _reject_lost(outcome: Outcome, ids: Sequence[str], files: bool, as_complex: bool) -> None:
    """Put first what has mutants, but no chain, and take out the chains that no mutant is of."""
    reports = [report for record in outcome.records for report in record.get("reports", ())]
    known = [report["chain"] for report in reports] + [chain for _, chain, _ in outcome.rejects if chain]
    lost = [each for each in ids if each not in known]
    outcome.rejects = [reject for reject in outcome.rejects if reject[2] != UNASKED]
    reason = "it has mutants, but the inputs have no such chain"
    fixes = [_name_chain(each, known, files, as_complex) for each in lost]
    outcome.rejects[:0] = [("", each, f"{reason}; {fix}") for each, fix in zip(lost, fixes, strict=True)]


def _name_chain(lost: str, known: Sequence[str], files: bool, as_complex: bool) -> str:
    """What to do with an id that no chain has: --complex, or what the ids of the inputs are."""
    chains = sorted(name for name in known if name.rpartition("_")[0].lower() == lost.lower())
    if len(chains) > 1 and files and not as_complex:
        together = (
            f"--complex, which reads them together as {chains[0].rpartition('_')[0]}, and gives all files such ids"
        )
        return f"write the id of a chain, {_list(chains)}, or add {together}"
    entry = lost.rpartition("_")[0]
    if entry in known:
        return f"its complex has the id {entry}: write that, and chains in mutants, as in SH195A"
    small = {name.lower(): name for name in known}
    close = chains or [small[name] for name in difflib.get_close_matches(lost.lower(), small, LISTED)]
    if close:
        return f"write the id that it has there, such as {_list(close)}"
    return f"ids of the inputs are such as {_list(list(dict.fromkeys(known)))}" if known else "mend the column id"


def _list(names: Sequence[str]) -> str:
    return first_ones(names, LISTED)


def _whose_mutants(records: Sequence[Any], mutants: Sequence[str], parts: int) -> str:
    """Why mutants without an id are not of several chains, and what to do: where they name chains, something else."""
    chains = list(dict.fromkeys(name for record in records for name in ResidueNumbers(record).chain_names if name))
    pattern = re.compile(rf"[A-Z]({'|'.join(map(re.escape, chains))})/?-?\d+[A-Za-z]?[A-Z]") if chains else None
    words = [word.strip() for mutant in mutants for word in mutant.split(":")]
    words = [word for word in words if word.lower() not in ("wt", "_wt")]
    found = {word: match[1] for word in words if pattern and (match := pattern.fullmatch(word))}
    entries = {id_of(record).rpartition("_")[0] for record in records}
    if found and len(entries) == parts == 1:
        named = sorted(set(found.values()))
        listed = f"chain{'s' * (len(named) > 1)} {', '.join(named)} of {entries.pop()}"
        fix = "add --complex to score all its chains together"
        odd = [word for word in words if word not in found]
        if odd:
            of_none = f"{_list(odd)} {'name' if odd[1:] else 'names'} none of its chains"
            fix += f"; {of_none} ({_list(chains)}), which the others do as in {next(iter(found))}"
        else:
            fix += f", or --chains {named[0]} to score only those of chain {named[0]}, and this chain alone"
        return f"{'Some' if odd else 'The'} mutants name {listed}, but each chain of a file is read by itself; {fix}."
    names = ", ".join(map(id_of, records[:8]))
    fix = "choose one with `chain_ids` (--chains), or give a CSV file with the column id"
    if chains and len(entries) == parts == 1:
        fix += "; --complex scores all together, with mutants that name chains, as in SA195A of chain A"
    return f"The mutants are of one chain, but the inputs have several, such as {names}; {fix}."


def _warn_of_unread(reports: Sequence[Mapping[str, Any]]) -> None:
    """Say how many mutants are not of their chain, and the first one's reason."""
    reasons = [reason for report in reports for reason in report.get("unread", ())]
    if reasons:
        total = len(reasons) + sum(report["mutants"] for report in reports)
        rest = "all reasons are in score.json, as unread" if reasons[1:] else "its row is without a score"
        what = f"{len(reasons):,} of {counted(total, 'mutant')}"
        logger.warning("%s cannot be scored: %s %s", what, reasons[0], rest[0].upper() + rest[1:] + ".")


def _warn_of_unobserved(reports: Sequence[Mapping[str, Any]]) -> None:
    """Say how many of the scores are of residues without coordinates, where others have some."""
    here = [report for report in reports if "unobserved" in report]
    several = len(reports) > 1
    names = [f"{report['chain']} {name}" if several else name for report in here for name in report["unobserved"]]
    if not names:
        return
    total, one = sum(report.get("scored", report.get("mutants", 0)) for report in here), len(names) == 1
    if "scored" in here[0]:
        what = f"{counted(total, 'residue')} {'was' if one else 'were'} not observed"
    else:
        what = f"{counted(total, 'mutant')} {'has' if one else 'have'} residues that were not observed"
    listed = first_ones(names, LISTED)
    why = "what has no place in the structure is scored without it (column observed)"
    logger.warning("%s of %s: %s; %s", f"{len(names):,}", what, listed, why)


def scan_lines(
    chain_id: str, file: str, residues: ResidueNumbers, table: np.ndarray, observed: np.ndarray,
    indices: Sequence[int] | None = None,
) -> Iterator[list[str]]:  # fmt: skip
    """Rows of `scan.csv` of a chain's table (L, 20), of all residues or of `indices`; `observed` is bool (L,)."""
    for index in range(len(table)) if indices is None else indices:
        place = str(residues.positions[index]), residues.sequence[index]
        name = residues.chain_name(index), residues.name(index)
        cells = ["" if np.isnan(value) else f"{value:.6g}" for value in table[index]]
        yield [chain_id, file, *place, *name, _true(observed[index]), *cells]


def score_lines(
    chain_id: str, file: str, residues: ResidueNumbers, mutants: Sequence[str],
    parsed: Sequence[Sequence[tuple[int, str]] | None], scores: np.ndarray, measured: np.ndarray | None,
    observed: np.ndarray,
) -> Iterator[list[str]]:  # fmt: skip
    """Rows of `scores.csv`: of `mutants` as they were written, and as `parse_mutant` reads them, None if it cannot.

    These have no score, and `scores` are of the others.
    """
    values = iter(scores)
    for number, (mutant, substitutions) in enumerate(zip(mutants, parsed, strict=True)):
        cells = [chain_id, file, mutant, "" if substitutions is None else f"{next(values):.6g}"]
        if measured is not None:
            cells.append("" if np.isnan(measured[number]) else repr(float(measured[number])))
        if substitutions is None:
            yield [*cells, "", "", ""]
            continue
        places = [index for index, _ in substitutions]
        cells += [":".join(map(residues.name, places)), ":".join(str(residues.positions[i]) for i in places)]
        yield [*cells, _true(observed[places].all())]


def _true(value: Any) -> str:
    return "true" if value else "false"


def describe(summary: Mapping[str, Any]) -> str:
    """The summary as a short text."""
    lines = []
    for protein in summary.get("proteins", ()):
        line = (
            f"{protein['id']}: {counted(protein['sequences'], 'sequence')} on {counted(protein['residues'], 'residue')}"
        )
        line += f" ({protein['scored']:,} chosen)" if "scored" in protein else ""
        line += f", coordinates {protein['coordinates']}; the likeliest is {protein['best']}"
        name = next(name for name in (*OF_ALL.values(), *OF_ALL) if name in protein)
        lines.append(f"{line}, {name} {protein[name]:.3f}")
    for chain in () if "proteins" in summary else summary["chains"]:
        what = counted(chain["mutants"], "mutant") if "mutants" in chain else "all substitutions"
        part = f"{chain['scored']:,} of " if summary.get("chosen_residues") else ""
        line = f"{chain['chain']}: {what} of {part}{counted(chain['residues'], 'residue')}"
        line += f" in {counted(len(chain['chains']), 'chain')}" if "chains" in chain else ""
        line += f" by {summary['method']}"
        line += f", coordinates {chain['coordinates']}"
        if chain.get("spearman") is not None:
            line += f"; Spearman's correlation with DMS_score {chain['spearman']:.3f}"
        lines.append(line)
    return first_lines(lines)
