"""Scores of mutants, of all substitutions, or of whole sequences on a structure, as files: `coordformer score`."""

import csv
import dataclasses
import io
import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..data.files import write_json, write_text
from ..data.inputs import Reject
from ..data.records import counted, first_lines, hash_file, hash_json
from ..data.training_sequences import chain_sequences
from ..model.chain import AMINO_ACIDS, Chain, Complex, split_by_chain
from ..model.design import score_sequences
from ..model.proteins import as_chain, id_of
from ..model.residues import ResidueNumbers, choose_numbering
from ..model.substitutions import parse_mutant
from .checkpoints import (
    coordinates_given,
    digest_weights,
    load_checkpoint,
    trained_on,
    training_sequences_of,
    warn_of_training,
)
from .design import fit_sequence, read_sequences
from .figures import plot_scan
from .marginals import METHODS, scan_table, score_substitutions, substitutions_of
from .mutants import read_mutants, spearman
from .runner import PARTS, REJECTS, Inputs, file_stems, is_data_set, join_tables, parts_in, run_parts
from .timing import in_words, scan_seconds

logger = logging.getLogger(__name__)


def score(
    checkpoint: str | Path, inputs: Sequence[str | Path] | str | Path, output: str | Path, *,
    mutants: Sequence[str] | None = None, sequences: str | Path | None = None, method: str = "masked_marginal",
    numbering: str | None = None, offset: int | None = None, without_coords: bool = False, dtype: str = "float32",
    token_budget: int = 8192, window: int = 1024, entries_per_part: int = 16, progress: bool = True, **reading: Any,
) -> dict[str, Any]:  # fmt: skip
    """Score mutants of proteins, or all substitutions of one of their residues.

    Args:
        checkpoint: folder or Hub name of a masked-LM Coordformer.
        inputs: structure and FASTA files, archives, folders, data sets.
        output: a folder. Gets `scan.csv` and a heat map of each chain or complex, or of given mutants `scores.csv`; and
            `score.json`. A scan has the columns `id`, `position` (in its chain, from 1 or `offset`), `wild_type`,
            `chain`, `residue` (chain and the file's own number, see `ResidueNumbers.name`) and one for each amino acid;
            scores have `id`, `mutant`, `score`, `DMS_score` where measured, and of the substituted residues, joined by
            `:`, `residues` and `positions`.
        mutants: as `parse_mutant` takes them, of one chain; or the name of one CSV file, see `read_mutants`, which for
            several chains says in its column `id` which one a mutant is of. None: all substitutions.
        sequences: name of a FASTA file; then these are scored, and not mutants, see `score_given_sequences`.
        numbering, offset: what the numbers in the mutants are, as of `parse_mutant`, and those above the heat map.
        method, without_coords, token_budget, window: as of `score_substitutions` and `log_probabilities`.
        dtype: of the weights.
        entries_per_part, reading (`split`, `chain_ids`, `min_plddt`, `as_complex`, `assembly`, `shard`): as of
            `runner.Inputs`.

    Returns:
        What is also in `score.json`: the settings, counts, and `chains`, of each `chain` (its id), `residues`,
        `observed`, `numbering` (`"sequence"` where the file has no numbers, whatever was asked for), `coordinates` (see
        `coordinates_given`), `trained_on` (see `checkpoints.trained_on`; `trained_on_sequences` counts them), of a
        complex `chains` (residues by name), and of given mutants their number, `mutants`, and where they were measured
        `spearman`, None where it is not defined. Of a single chain these stand at the top, too, but for `chains`.

    Raises:
        ValueError: an input is unusable, or mutants without `id` are of several chains.
    """
    if sequences is not None:
        if mutants is not None:
            raise ValueError("Give `mutants` or `sequences`, not both.")
        shared: dict[str, Any] = {"without_coords": without_coords, "dtype": dtype, "token_budget": token_budget}
        shared |= {"entries_per_part": entries_per_part, "progress": progress}
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
    model, processor = load_checkpoint(checkpoint, dtype)
    given = Inputs(inputs, atoms=processor.coordinate_atoms, entries_per_part=entries_per_part, **reading)
    options: dict[str, Any] = {"without_coords": without_coords, "window": window, "token_budget": token_budget}
    timed = mutants is not None or not progress
    training = training_sequences_of(checkpoint)

    def work(records: list[Any], part: str, rejects: list[Reject], bar: tqdm) -> dict[str, Any]:
        nonlocal timed
        if mutants is not None and ids is None and (len(records) > 1 or len(given) > 1):
            names = ", ".join(map(id_of, records[:8]))
            fix = "choose one with `chain_ids` (--chains), or give a CSV file with the column id"
            raise ValueError(f"The mutants are of one chain, but the inputs have several, such as {names}; {fix}.")
        asked: list[tuple[Chain, list[list[tuple[int, str]]]]] = []
        places = []  # of a chain's mutants in the list
        named = []
        for record in records:
            mine = list(range(len(mutants or ()))) if ids is None else mutants_of.get(id_of(record), [])
            try:
                chain = as_chain(record)
                residues = ResidueNumbers(chain, numbering=numbering, offset=offset)
                if mutants is None:
                    these = substitutions_of(chain)
                else:
                    these = [parse_mutant(mutants[number], residues) for number in mine]
                if not these:
                    raise ValueError("no mutant has this chain in the column id")
            except ValueError as error:
                rejects.append(("", id_of(record), str(error).removeprefix(f"chain {id_of(record)}: ")))
            else:
                asked.append((chain, these))
                places.append(mine)
                named.append(residues)
        if not timed:
            timed = True
            _say_how_long(scan_seconds(model, processor, [chain for chain, _ in asked], **options), method, len(given))
        scored = score_substitutions(model, processor, asked, method, progress=progress, **options)
        reports: list[dict[str, Any]] = []
        lines: list[list[str]] = []
        stems = file_stems(output, part, [chain for chain, _ in asked])
        seen = trained_on(training, [chain_sequences(chain) for chain, _ in asked])
        each = zip(asked, named, places, scored, stems, seen, strict=True)
        for (chain, these), residues, mine, scores, stem, trained in each:
            report: dict[str, Any] = {"chain": chain.id, "residues": len(chain)}
            report |= {"observed": int(chain.observed.any(axis=1).sum()), "numbering": residues.numbering}
            report["coordinates"] = coordinates_given(model, chain.coords, without_coords)
            report["trained_on"] = trained
            if isinstance(chain, Complex):
                report["chains"] = dict(zip(chain.chain_names, chain.chain_lengths, strict=True))
            if mutants is None:
                table = scan_table(chain, scores)
                lines += scan_lines(chain.id, residues, table)
                picture = output / "scan.png" if len(records) == len(given) == 1 else stem.with_name(f"{stem.name}.png")
                plot_scan(picture, table, residues, f"{chain.id}, {method.replace('_', ' ')}")
            else:
                report["mutants"] = len(these)
                texts, values = [mutants[number] for number in mine], None if measured is None else measured[mine]
                lines += score_lines(chain.id, residues, texts, these, scores, values)
                if values is not None:
                    correlation = spearman(scores, values)
                    report["spearman"] = None if math.isnan(correlation) else correlation  # JSON has no NaN
            reports.append(report)
        bar.update(len(records))
        head = ["id", "position", "wild_type", "chain", "residue", *AMINO_ACIDS]
        if mutants is not None:
            head = ["id", "mutant", "score", *["DMS_score"] * (measured is not None), "residues", "positions"]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([head, *lines])  # an id may have commas
        write_text(output / PARTS / f"{part}.csv", text.getvalue())
        residues = sum(report["residues"] for report in reports)
        return {"reports": reports, "chains": len(reports), "residues": residues, "file": f"{PARTS}/{part}.csv"}

    settings: dict[str, Any] = {
        "checkpoint": Path(checkpoint).name,
        "method": method,
        "numbering": asked_numbering,
        "offset": first,
        "window": window,
        "dtype": dtype,
    }
    guarded: dict[str, Any] = {"verb": "score", "weights": digest_weights(model), "without_coords": without_coords}
    if mutants is not None:
        guarded["mutants"] = hash_json([list(mutants), ids, None if measured is None else measured.tolist()])
    with parts_in(output, given):
        outcome = run_parts(given, output, {"mutants": None, **settings, **guarded}, work, progress)
        reports = [report for record in outcome.records for report in record.get("reports", ())]
        if outcome.complete:
            known = {report["chain"] for report in reports} | {chain for _, chain, _ in outcome.rejects}
            reason = "it has mutants, but the inputs have no such chain"
            outcome.rejects += [("", chain, reason) for chain in mutants_of if chain not in known]
            outcome.list_rejects(output / REJECTS)
        summary: dict[str, Any] = settings | outcome.counts()
        summary["trained_on_sequences"] = warn_of_training(settings["checkpoint"], reports, "chain")
        summary["chains"] = reports
        if outcome.complete:
            if len(reports) == 1:
                summary |= {name: value for name, value in reports[0].items() if name != "chains"}
            tables = [output / record["file"] for record in outcome.records if "file" in record]
            join_tables(tables, output / ("scan.csv" if mutants is None else "scores.csv"))
            write_json(output / "score.json", summary)
    return summary


def _say_how_long(seconds: Mapping[str, float] | None, method: str, parts: int) -> None:
    """Before a scan: what it will take, and the fastest method where another one was chosen."""
    if seconds is None:
        return
    of_parts = f", for each of {parts:,} parts" if parts > 1 else ""
    text = f"all substitutions by {method} take {in_words(seconds[method])}{of_parts}"
    if method != METHODS[0]:
        text += f"; --method {METHODS[0]}, which masks nothing, takes {in_words(seconds[METHODS[0]])}"
    logger.warning("%s", text)


def score_given_sequences(
    checkpoint: str | Path, inputs: Sequence[str | Path] | str | Path, output: str | Path, sequences: str | Path, *,
    without_coords: bool = False, dtype: str = "float32", token_budget: int = 8192, entries_per_part: int = 16,
    progress: bool = True, **reading: Any,
) -> dict[str, Any]:  # fmt: skip
    """Score sequences on structures.

    Args:
        checkpoint, inputs: as of `score`; a structure file is one complex.
        output: a folder. Gets `sequences.csv`, of each structure the likeliest sequence first, `residues.csv` and
            `score.json`. Scores are mean negative log-likelihoods in nats over residues that are not X, lower is
            better: `pseudo_score`, each residue masked in its turn, and `global_score`, all of them masked, in one
            pass. Of each residue there are the log-likelihoods, `pseudo` and `one_pass`, and the structure's letter.
        sequences: a FASTA file, chains joined by `/`, such as `design` writes. Of several structures each gets the
            sequences with its id, alone or with `_` and more behind it.
        without_coords, dtype, token_budget, entries_per_part, reading: as of `score`.

    Returns:
        What is also in `score.json`: the settings, counts, and `proteins`, of each its `id`, `residues`, the number of
        `sequences`, `best` (the id of the likeliest), `pseudo_score` and `global_score` of that, and `trained_on` (see
        `checkpoints.trained_on`: its own chains, or the closest sequence).

    Raises:
        ValueError: an input is unusable. A sequence that does not fit its structure costs the structure.
    """
    output, given_sequences = Path(output), read_sequences(sequences)
    model, processor = load_checkpoint(checkpoint, dtype)
    files = not all(map(is_data_set, [inputs] if isinstance(inputs, str | Path) else inputs))
    reading |= {"as_complex": files}
    given = Inputs(inputs, atoms=processor.coordinate_atoms, entries_per_part=entries_per_part, **reading)
    training = training_sequences_of(checkpoint)

    def work(records: list[Any], part: str, rejects: list[Reject], bar: tqdm) -> dict[str, Any]:
        texts = [io.StringIO(), io.StringIO()]
        whole, by_residue = (csv.writer(text, lineterminator="\n") for text in texts)
        whole.writerow(["id", "sequence_id", "pseudo_score", "global_score", "seq_recovery", "sequence"])
        by_residue.writerow(["id", "sequence_id", "residue", "position", "native", "letter", "pseudo", "one_pass"])
        reports: list[dict[str, Any]] = []
        for record in records:
            name, alone = id_of(record), len(records) == len(given) == 1
            mine = [each for each in given_sequences if alone or each.id == name or each.id.startswith(f"{name}_")]
            try:
                protein = as_chain(record)
                coordinates = coordinates_given(model, protein.coords, without_coords)
                if not mine:
                    raise ValueError("no sequence has this id; ids are ID or ID_ANYTHING")
                letters = [fit_sequence(protein, each) for each in mine]
                if without_coords:
                    protein = dataclasses.replace(protein, coords=np.full_like(protein.coords, np.nan))
                tables = score_sequences(model, protein, letters, processor=processor, token_budget=token_budget)
                if any(np.isnan(table).all() for table in tables):
                    raise ValueError("a sequence has only X; there is nothing to score")
            except ValueError as error:
                rejects.append(("", name, str(error).removeprefix(f"{name}: ")))
                continue
            finally:
                bar.update()
            residues = ResidueNumbers(protein)
            scores = [-np.nanmean(table, axis=0) for table in tables]
            order = sorted(range(len(mine)), key=lambda number: scores[number][1])
            for number in order:
                pairs = [pair for pair in zip(letters[number], protein.sequence, strict=True) if "X" not in pair]
                recovery = sum(one == other for one, other in pairs) / len(pairs) if pairs else math.nan
                cells = [scores[number][1], scores[number][0], recovery]
                chains = split_by_chain(letters[number], residues.chain_lengths)
                whole.writerow([name, mine[number].id, *map(_cell, cells), "/".join(chains)])
                for index, letter in enumerate(letters[number]):
                    place = [residues.name(index), residues.positions[index], protein.sequence[index], letter]
                    values = tables[number][index, ::-1]
                    by_residue.writerow([name, mine[number].id, *place, *map(_cell, values)])
            report = {"id": name, "residues": len(protein), "sequences": len(mine), "best": mine[order[0]].id}
            best = dict(zip(("global_score", "pseudo_score"), map(float, scores[order[0]]), strict=True))
            # What is known may be the structure or, on a backbone of other letters, a sequence.
            sequences_here = [split_by_chain(each, residues.chain_lengths) for each in (protein.sequence, *letters)]
            (trained,) = trained_on(training, [list(itertools.chain(*sequences_here))])
            reports.append(report | {"coordinates": coordinates, "trained_on": trained} | best)
        for suffix, text in zip(("", "_residues"), texts, strict=True):
            write_text(output / PARTS / f"{part}{suffix}.csv", text.getvalue())
        counts = {"chains": len(reports), "residues": sum(report["residues"] for report in reports)}
        return {"reports": reports, "file": f"{PARTS}/{part}.csv", **counts}

    settings: dict[str, Any] = {"checkpoint": Path(checkpoint).name, "dtype": dtype, "without_coords": without_coords}
    guarded = {"verb": "score", "weights": digest_weights(model), "sequences": hash_file(sequences)}
    with parts_in(output, given):
        outcome = run_parts(given, output, settings | guarded, work, progress)
        reports = [report for record in outcome.records for report in record.get("reports", ())]
        summary: dict[str, Any] = settings | outcome.counts()
        summary["trained_on_sequences"] = warn_of_training(settings["checkpoint"], reports, "id")
        summary["proteins"] = reports
        if outcome.complete:
            outcome.list_rejects(output / REJECTS)
            tables = [output / record["file"] for record in outcome.records if "file" in record]
            join_tables(tables, output / "sequences.csv")
            join_tables([path.with_name(f"{path.stem}_residues.csv") for path in tables], output / "residues.csv")
            write_json(output / "score.json", summary)
    return summary


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def scan_lines(chain_id: str, residues: ResidueNumbers, table: np.ndarray) -> Iterator[list[str]]:
    """Rows of `scan.csv` of a chain's table."""
    for index, scores in enumerate(table):
        place = str(residues.positions[index]), residues.sequence[index]
        cells = ["" if np.isnan(value) else f"{value:.6g}" for value in scores]
        yield [chain_id, *place, residues.chain_name(index), residues.name(index), *cells]


def score_lines(
    chain_id: str, residues: ResidueNumbers, mutants: Sequence[str], parsed: Sequence[Sequence[tuple[int, str]]],
    scores: np.ndarray, measured: np.ndarray | None,
) -> Iterator[list[str]]:  # fmt: skip
    """Rows of `scores.csv`: of `mutants` as they were written, and as `parse_mutant` reads them."""
    for number, (mutant, substitutions, value) in enumerate(zip(mutants, parsed, scores, strict=True)):
        cells = [chain_id, mutant, f"{value:.6g}"]
        if measured is not None:
            cells.append("" if np.isnan(measured[number]) else repr(float(measured[number])))
        places = [index for index, _ in substitutions]
        yield [*cells, ":".join(map(residues.name, places)), ":".join(str(residues.positions[i]) for i in places)]


def describe(summary: Mapping[str, Any]) -> str:
    """The summary as a short text."""
    lines = []
    for protein in summary.get("proteins", ()):
        line = (
            f"{protein['id']}: {counted(protein['sequences'], 'sequence')} on {counted(protein['residues'], 'residue')}"
        )
        line += f", coordinates {protein['coordinates']}; the likeliest is {protein['best']}"
        lines.append(f"{line}, pseudo_score {protein['pseudo_score']:.3f}")
    for chain in () if "proteins" in summary else summary["chains"]:
        what = counted(chain["mutants"], "mutant") if "mutants" in chain else "all substitutions"
        line = f"{chain['chain']}: {what} of {counted(chain['residues'], 'residue')}"
        line += f" in {counted(len(chain['chains']), 'chain')}" if "chains" in chain else ""
        line += f" by {summary['method']}"
        line += f", coordinates {chain['coordinates']}"
        if chain.get("spearman") is not None:
            line += f"; Spearman's correlation with DMS_score {chain['spearman']:.3f}"
        lines.append(line)
    return first_lines(lines)
