"""Scores of mutants, or of all substitutions, as files: `coordformer score`; of whole sequences see `sequences`."""

import csv
import difflib
import io
import itertools
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..data.files import write_json, write_text
from ..data.inputs import Reject
from ..data.records import counted, first_lines, hash_json
from ..data.training_sequences import chain_sequences
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
    trained_on,
    training_sequences_of,
    warn_of_training,
)
from .figures import plot_scan
from .marginals import METHODS, scan_table, score_substitutions, substitutions_of
from .mutants import read_mutants, spearman
from .runner import PARTS, REJECTS, Inputs, Outcome, file_stems, is_data_set, join_tables, parts_in, run_parts
from .selection import missing_residues, say_left_out, say_missing, select_residues
from .sequences import OF_ALL, score_given_sequences
from .timing import in_words, scan_seconds

logger = logging.getLogger(__name__)

LISTED = 3  # residues, mutants or ids that a message names
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
            joined by `:`, `residues` and `positions`, and `observed`, whether all of them were.
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
        without its sequence does not have it; only where there is some), of a scan `scored` (its residues),
        `trained_on` (see `checkpoints.trained_on`; `trained_on_sequences` counts them), of a complex `chains`
        (residues by name), and of given mutants their number, `mutants`, and where they were measured `spearman`,
        None where it is not defined. Of a single chain these stand at the top, too, but for `chains`.

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
    say_left_out(inputs, reading, "scan" if mutants is None else "mutants")

    def work(records: list[Any], part: str, rejects: list[Reject], bar: tqdm) -> dict[str, Any]:
        nonlocal timed
        if mutants is not None and ids is None and (len(records) > 1 or len(given) > 1):
            raise ValueError(_whose_mutants(records, mutants, len(given)))
        asked: list[tuple[Chain, list[list[tuple[int, str]]]]] = []
        places = []  # of a chain's mutants in the list
        named = []
        scanned: list[list[int]] = []  # indices of residues
        placed: list[np.ndarray] = []
        for record in records:
            mine = list(range(len(mutants or ()))) if ids is None else mutants_of.get(id_of(record), [])
            try:
                chain = as_chain(record)
                numbers = ResidueNumbers(chain, numbering=numbering, offset=offset)
                indices = select_residues(numbers, residues, chain, given)
                by_all = np.all([placed_in(chain, model) for model, _ in loaded], axis=0)
                if mutants is None:
                    these = substitutions_of(chain, indices)
                else:
                    these = [parse_mutant(mutants[number], numbers) for number in mine]
                if not these:
                    raise ValueError(UNASKED)
            except ValueError as error:
                rejects.append(("", id_of(record), str(error).removeprefix(f"chain {id_of(record)}: ")))
            else:
                asked.append((chain, these))
                places.append(mine)
                named.append(numbers)
                scanned.append(indices)
                placed.append(by_all)
        if not timed:
            timed = True
            chains, sizes = [chain for chain, _ in asked], list(map(len, scanned))
            timings = [scan_seconds(*each, chains, sizes, **options) for each in loaded]
            _say_how_long(timings, method, len(given))
        by_model = [score_substitutions(*each, asked, method, progress=progress, **options) for each in loaded]
        scored = [np.mean(each, axis=0) for each in zip(*by_model, strict=True)]
        reports: list[dict[str, Any]] = []
        lines: list[list[str]] = []
        stems = file_stems(output, part, [chain for chain, _ in asked])
        seen = trained_on(training, [chain_sequences(chain) for chain, _ in asked])
        each = zip(asked, named, places, scanned, placed, scored, stems, seen, strict=True)
        for (chain, these), numbers, mine, indices, observed, scores, stem, trained in each:
            file = given.file_of(chain)
            report: dict[str, Any] = {"chain": chain.id, "file": file, "residues": len(chain)}
            report |= {"observed": int(observed.sum()), "numbering": numbers.numbering}
            kinds = [coordinates_given(model, chain.coords, without_coords) for model, _ in loaded]
            report["coordinates"] = "given" if "given" in kinds else kinds[0]
            known = report["coordinates"] == "given"
            report["trained_on"] = trained
            report |= missing_residues(numbers, residues)
            if isinstance(chain, Complex):
                report["chains"] = dict(zip(chain.chain_names, chain.chain_lengths, strict=True))
            if mutants is None:
                table = scan_table(chain, scores, indices)
                lines += scan_lines(chain.id, file, numbers, table, observed, indices)
                found = [index for index in indices if chain.sequence[index] in AMINO_ACIDS]
                report["scored"] = len(found)
                if known:
                    report["unobserved"] = [numbers.name(index) for index in found if not observed[index]]
                picture = output / "scan.png" if len(records) == len(given) == 1 else stem.with_name(f"{stem.name}.png")
                title = f"{chain.id}, {method.replace('_', ' ')}"
                if figures:
                    plot_scan(picture, table, numbers, title, indices, observed if known else None)
            else:
                report["mutants"] = len(these)
                texts, values = [mutants[number] for number in mine], None if measured is None else measured[mine]
                lines += score_lines(chain.id, file, numbers, texts, these, scores, values, observed)
                if known:
                    missing = [not observed[[index for index, _ in mutant]].all() for mutant in these]
                    report["unobserved"] = list(itertools.compress(texts, missing))
                if values is not None:
                    correlation = spearman(scores, values)
                    report["spearman"] = None if math.isnan(correlation) else correlation  # JSON has no NaN
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
        summary["chains"] = reports
        if outcome.complete:
            if len(reports) == 1:
                summary |= {name: value for name, value in reports[0].items() if name != "chains"}
            tables = [output / record["file"] for record in outcome.records if "file" in record]
            join_tables(tables, output / ("scan.csv" if mutants is None else "scores.csv"))
            write_json(output / "score.json", summary)
    return summary


def _say_how_long(timings: Sequence[Mapping[str, float] | None], method: str, parts: int) -> None:
    """Before a scan: what it will take with all models, and the fastest method where another one was chosen."""
    known = [each for each in timings if each is not None]
    if not known:
        return
    seconds = {each: sum(timing[each] for timing in known) for each in (method, METHODS[0])}
    of_parts = f", for each of {parts:,} parts" if parts > 1 else ""
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
    chains = [name for name in known if name.rpartition("_")[0] == lost]
    if chains and files and not as_complex:
        return f"add --complex, which reads {_list(chains)} together as {lost}, and gives all files such ids"
    entry = lost.rpartition("_")[0]
    if entry in known:
        return f"its complex has the id {entry}: write that, and chains in mutants, as in SH195A"
    small = {name.lower(): name for name in known}
    close = chains or [small[name] for name in difflib.get_close_matches(lost.lower(), small, LISTED)]
    if close:
        return f"write the id that it has there, such as {_list(close)}"
    return f"ids of the inputs are such as {_list(list(dict.fromkeys(known)))}" if known else "mend the column id"


def _list(names: Sequence[str]) -> str:
    return ", ".join([*names[:LISTED], *["..."] * (len(names) > LISTED)])


def _whose_mutants(records: Sequence[Any], mutants: Sequence[str], parts: int) -> str:
    """Why mutants without an id are not of several chains, and what to do: where they name chains, something else."""
    chains = list(dict.fromkeys(name for record in records for name in ResidueNumbers(record).chain_names if name))
    pattern = re.compile(rf"[A-Z]({'|'.join(map(re.escape, chains))})/?-?\d+[A-Za-z]?[A-Z]") if chains else None
    words = [word.strip() for mutant in mutants for word in mutant.split(":")]
    found = [pattern and pattern.fullmatch(word) for word in words if word.lower() not in ("wt", "_wt")]
    entries = {id_of(record).rpartition("_")[0] for record in records}
    if found and all(found) and len(entries) == parts == 1:
        named = sorted({match[1] for match in found if match})
        listed = f"chain{'s' * (len(named) > 1)} {', '.join(named)} of {entries.pop()}"
        alone = f"only those of chain {named[0]}, and this chain alone"
        fix = f"add --complex to score all its chains together, or --chains {named[0]} to score {alone}"
        return f"The mutants name {listed}, but each chain of a file is read by itself; {fix}."
    names = ", ".join(map(id_of, records[:8]))
    fix = "choose one with `chain_ids` (--chains), or give a CSV file with the column id"
    return f"The mutants are of one chain, but the inputs have several, such as {names}; {fix}."


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
    listed = ", ".join([*names[:LISTED], *["..."] * (len(names) > LISTED)])
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
    parsed: Sequence[Sequence[tuple[int, str]]], scores: np.ndarray, measured: np.ndarray | None, observed: np.ndarray,
) -> Iterator[list[str]]:  # fmt: skip
    """Rows of `scores.csv`: of `mutants` as they were written, and as `parse_mutant` reads them."""
    for number, (mutant, substitutions, value) in enumerate(zip(mutants, parsed, scores, strict=True)):
        cells = [chain_id, file, mutant, f"{value:.6g}"]
        if measured is not None:
            cells.append("" if np.isnan(measured[number]) else repr(float(measured[number])))
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
