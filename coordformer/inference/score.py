"""Scores of mutants, of all substitutions, or of whole sequences on a structure, as files: `coordformer score`."""

import contextlib
import csv
import dataclasses
import io
import itertools
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..data.files import write_atomically, write_json, write_text
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
from .timing import in_words, scan_seconds, sequences_seconds

logger = logging.getLogger(__name__)

LISTED = 3  # residues or mutants that a message names
LOOKED_THROUGH = 8  # files, for chains that are left out
OF_ALL = {"pseudo_score": "global_pseudo_score", "seq_recovery": "global_seq_recovery"}
"""What is a mean over all residues, and not over chosen ones as in `designs.csv`; before, it had that name."""


def score(
    checkpoint: str | Path, inputs: Sequence[str | Path] | str | Path, output: str | Path, *,
    mutants: Sequence[str] | None = None, sequences: str | Path | None = None, residues: str | None = None,
    method: str = "masked_marginal", numbering: str | None = None, offset: int | None = None,
    without_coords: bool = False, dtype: str = "float32", token_budget: int = 8192, window: int = 1024,
    entries_per_part: int = 16, progress: bool = True, **reading: Any,
) -> dict[str, Any]:  # fmt: skip
    """Score mutants of proteins, or all substitutions of one of their residues.

    Args:
        checkpoint: folder or Hub name of a masked-LM Coordformer.
        inputs: structure and FASTA files, archives, folders, data sets.
        output: a folder. Gets `scan.csv` and a heat map of each chain or complex, or of given mutants `scores.csv`; and
            `score.json`. A scan has the columns `id`, `position` (in its chain, from 1 or `offset`), `wild_type`,
            `chain`, `residue` (chain and the file's own number, see `ResidueNumbers.name`), `observed` (`true` where it
            has coordinates) and one for each amino acid; scores have `id`, `mutant`, `score`, `DMS_score` where
            measured, of the substituted residues, joined by `:`, `residues` and `positions`, and `observed`, whether
            all of them were.
        mutants: as `parse_mutant` takes them, of one chain; or the name of one CSV file, see `read_mutants`, which for
            several chains says in its column `id` which one a mutant is of. None: all substitutions.
        sequences: name of a FASTA file; then these are scored, and not mutants, see `score_given_sequences`.
        residues: of a scan or of `sequences` only these are masked and scored, such as `"A10-A20 B"`, see
            `ResidueNumbers.select`; the others are context.
        numbering, offset: what numbers in mutants and `residues` are, as of `parse_mutant`, and those above the heat
            map.
        method, without_coords, token_budget, window: as of `score_substitutions` and `log_probabilities`.
        dtype: of the weights.
        entries_per_part, reading (`split`, `chain_ids`, `min_plddt`, `as_complex`, `assembly`, `shard`): as of
            `runner.Inputs`.

    Returns:
        What is also in `score.json`: the settings (`residues` as `chosen_residues`), counts, and `chains`, of each
        `chain` (its id), `residues`, `observed`, `numbering` (`"sequence"` where the file has no numbers, whatever was
        asked for), `coordinates` (see `coordinates_given`), `unobserved` (where coordinates are given: names of the
        scanned residues, or the mutants, without), of a scan `scored` (its residues), `trained_on` (see
        `checkpoints.trained_on`; `trained_on_sequences` counts them), of a complex `chains` (residues by name), and of
        given mutants their number, `mutants`, and where they were measured `spearman`, None where it is not defined. Of
        a single chain these stand at the top, too, but for `chains`.

    Raises:
        ValueError: an input is unusable, or mutants without `id` are of several chains.
    """
    if residues is not None and mutants is not None:
        raise ValueError("`residues` goes with a scan or `sequences`; mutants name their own.")
    if sequences is not None:
        if mutants is not None:
            raise ValueError("Give `mutants` or `sequences`, not both.")
        shared: dict[str, Any] = {"without_coords": without_coords, "dtype": dtype, "token_budget": token_budget}
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
    model, processor = load_checkpoint(checkpoint, dtype)
    given = Inputs(inputs, atoms=processor.coordinate_atoms, entries_per_part=entries_per_part, **reading)
    options: dict[str, Any] = {"without_coords": without_coords, "window": window, "token_budget": token_budget}
    timed = mutants is not None or not progress
    training = training_sequences_of(checkpoint)
    _say_left_out(inputs, reading, "scan" if mutants is None else "mutants")

    def work(records: list[Any], part: str, rejects: list[Reject], bar: tqdm) -> dict[str, Any]:
        nonlocal timed
        if mutants is not None and ids is None and (len(records) > 1 or len(given) > 1):
            raise ValueError(_whose_mutants(records, mutants, len(given)))
        asked: list[tuple[Chain, list[list[tuple[int, str]]]]] = []
        places = []  # of a chain's mutants in the list
        named = []
        scanned: list[list[int]] = []  # indices of residues
        for record in records:
            mine = list(range(len(mutants or ()))) if ids is None else mutants_of.get(id_of(record), [])
            try:
                chain = as_chain(record)
                numbers = ResidueNumbers(chain, numbering=numbering, offset=offset)
                indices = _select(numbers, residues, chain, given)
                if mutants is None:
                    these = substitutions_of(chain, indices)
                else:
                    these = [parse_mutant(mutants[number], numbers) for number in mine]
                if not these:
                    raise ValueError("no mutant has this chain in the column id")
            except ValueError as error:
                rejects.append(("", id_of(record), str(error).removeprefix(f"chain {id_of(record)}: ")))
            else:
                asked.append((chain, these))
                places.append(mine)
                named.append(numbers)
                scanned.append(indices)
        if not timed:
            timed = True
            chains, sizes = [chain for chain, _ in asked], list(map(len, scanned))
            _say_how_long(scan_seconds(model, processor, chains, sizes, **options), method, len(given))
        scored = score_substitutions(model, processor, asked, method, progress=progress, **options)
        reports: list[dict[str, Any]] = []
        lines: list[list[str]] = []
        stems = file_stems(output, part, [chain for chain, _ in asked])
        seen = trained_on(training, [chain_sequences(chain) for chain, _ in asked])
        each = zip(asked, named, places, scanned, scored, stems, seen, strict=True)
        for (chain, these), numbers, mine, indices, scores, stem, trained in each:
            observed: Any = chain.observed.any(axis=1)
            report: dict[str, Any] = {"chain": chain.id, "residues": len(chain)}
            report |= {"observed": int(observed.sum()), "numbering": numbers.numbering}
            report["coordinates"] = coordinates_given(model, chain.coords, without_coords)
            known = report["coordinates"] == "given"
            report["trained_on"] = trained
            if isinstance(chain, Complex):
                report["chains"] = dict(zip(chain.chain_names, chain.chain_lengths, strict=True))
            if mutants is None:
                table = scan_table(chain, scores, indices)
                lines += scan_lines(chain.id, numbers, table, observed, indices)
                found = [index for index in indices if chain.sequence[index] in AMINO_ACIDS]
                report["scored"] = len(found)
                if known:
                    report["unobserved"] = [numbers.name(index) for index in found if not observed[index]]
                picture = output / "scan.png" if len(records) == len(given) == 1 else stem.with_name(f"{stem.name}.png")
                title = f"{chain.id}, {method.replace('_', ' ')}"
                plot_scan(picture, table, numbers, title, indices, observed if known else None)
            else:
                report["mutants"] = len(these)
                texts, values = [mutants[number] for number in mine], None if measured is None else measured[mine]
                lines += score_lines(chain.id, numbers, texts, these, scores, values, observed)
                if known:
                    missing = [not observed[[index for index, _ in mutant]].all() for mutant in these]
                    report["unobserved"] = list(itertools.compress(texts, missing))
                if values is not None:
                    correlation = spearman(scores, values)
                    report["spearman"] = None if math.isnan(correlation) else correlation  # JSON has no NaN
            reports.append(report)
        bar.update(len(records))
        head = ["id", "position", "wild_type", "chain", "residue", "observed", *AMINO_ACIDS]
        if mutants is not None:
            head = ["id", "mutant", "score", *["DMS_score"] * (measured is not None), "residues", "positions"]
            head.append("observed")
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([head, *lines])  # an id may have commas
        write_text(output / PARTS / f"{part}.csv", text.getvalue())
        counts = {"chains": len(reports), "residues": sum(report["residues"] for report in reports)}
        return {"reports": reports, "file": f"{PARTS}/{part}.csv", **counts}

    settings: dict[str, Any] = {
        "checkpoint": Path(checkpoint).name,
        "method": method,
        "numbering": asked_numbering,
        "offset": first,
        "window": window,
        "dtype": dtype,
        "chosen_residues": residues,
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
        _warn_of_unobserved(reports)
        summary["chains"] = reports
        if outcome.complete:
            if len(reports) == 1:
                summary |= {name: value for name, value in reports[0].items() if name != "chains"}
            tables = [output / record["file"] for record in outcome.records if "file" in record]
            _join(tables, output / ("scan.csv" if mutants is None else "scores.csv"))
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


def _say_left_out(inputs: Sequence[str | Path] | str | Path, reading: Mapping[str, Any], what: str) -> None:
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
        "scan": f"--residues {chosen} in its place scans the same residues, and keeps {{}} as context",
        "sequences": f"--residues {chosen} in its place, and sequences of all chains, keep {{}} as context",
        "mutants": "leave it out to keep {} as context, and name the chain in mutants, as in SH195A",
    }[what].format("it" if len(left) == 1 else "them")
    among = f", among {inputs:,} inputs" if inputs > 1 else ""
    logger.warning("--chains leaves out chain%s %s of %s%s; %s", "s" * (len(left) > 1), listed, whole.id, among, fix)


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


def _select(numbers: ResidueNumbers, residues: str | None, protein: Chain, given: Inputs) -> list[int]:
    """Indices of the chosen residues, in the order of the file; all if none were.

    Raises:
        ValueError: of `ResidueNumbers.select`; of chains that are read one by one it names --complex.
    """
    if residues is None:
        return list(range(len(protein)))
    try:
        return sorted(numbers.select(residues))
    except ValueError as error:
        if given.settings["as_complex"] or not any(numbers.chain_names):
            raise
        fix = "--complex reads the chains of a file together"
        raise ValueError(f"{str(error).removesuffix('.')}; {fix}.") from None


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
    why = "what has no place in the structure is scored by little but the sequence (column observed)"
    logger.warning("%s of %s: %s; %s", f"{len(names):,}", what, listed, why)


def _join(tables: Sequence[Path], output: Path, renamed: Mapping[str, str] | None = None) -> None:
    """`join_tables`, also of parts that an older version wrote: without some columns, or with `renamed` ones."""
    found = []
    for path in tables:
        with open(path, encoding="utf-8", newline="") as file:
            found.append(next(csv.reader(file)))
    heads = [[(renamed or {}).get(name, name) for name in head] for head in found]
    today = max(heads, key=len, default=[])
    if all(head == today for head in found):
        join_tables(tables, output)
        return

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", newline="") as joined:
            rows = csv.DictWriter(joined, today, restval="", lineterminator="\n")
            rows.writeheader()
            for path, head in zip(tables, heads, strict=True):
                with open(path, encoding="utf-8", newline="") as file:
                    rows.writerows(itertools.islice(csv.DictReader(file, head), 1, None))

    write_atomically(output, write)


def score_given_sequences(
    checkpoint: str | Path, inputs: Sequence[str | Path] | str | Path, output: str | Path, sequences: str | Path, *,
    residues: str | None = None, numbering: str | None = None, offset: int | None = None,
    without_coords: bool = False, dtype: str = "float32", token_budget: int = 8192, entries_per_part: int = 16,
    progress: bool = True, **reading: Any,
) -> dict[str, Any]:  # fmt: skip
    """Score sequences on structures.

    Args:
        checkpoint, inputs: as of `score`; a structure file is one complex.
        output: a folder. Gets `sequences.csv`, of each structure the likeliest sequence first, `residues.csv` and
            `score.json`. Scores are mean negative log-likelihoods in nats over residues that are not X, lower is
            better: `global_pseudo_score`, each residue masked in its turn, and `global_score`, all of them masked, in
            one pass; `global_seq_recovery` is the share that has the structure's letter. With `residues` there are
            `pseudo_score` and `seq_recovery` in their place, over these alone, as in `designs.csv` over what was
            designed. Of each residue there are the log-likelihoods, `pseudo` and `one_pass`, and the structure's
            letter.
        sequences: a FASTA file, chains joined by `/`, such as `design` writes. Of several structures each gets the
            sequences with its id, alone or with `_` and more behind it.
        residues, numbering, offset, without_coords, dtype, token_budget, entries_per_part, reading: as of `score`.

    Returns:
        What is also in `score.json`: the settings, counts, and `proteins`, of each its `id`, `residues`, the number of
        `sequences`, `best` (the id of the likeliest), its scores, named as in the table, with `residues` how many were
        `scored`, and `trained_on` (see `checkpoints.trained_on`: its own chains, or the closest sequence).

    Raises:
        ValueError: an input is unusable. A sequence that does not fit its structure costs the structure.
    """
    output, given_sequences = Path(output), read_sequences(sequences)
    asked_numbering, first = choose_numbering(numbering, offset)
    model, processor = load_checkpoint(checkpoint, dtype)
    files = not all(map(is_data_set, [inputs] if isinstance(inputs, str | Path) else inputs))
    reading |= {"as_complex": files}
    given = Inputs(inputs, atoms=processor.coordinate_atoms, entries_per_part=entries_per_part, **reading)
    training = training_sequences_of(checkpoint)
    renamed = OF_ALL if residues is None else {}
    names = [renamed.get("pseudo_score", "pseudo_score"), "global_score", renamed.get("seq_recovery", "seq_recovery")]
    options: dict[str, Any] = {"processor": processor, "token_budget": token_budget}
    timed = not progress
    _say_left_out(inputs, reading, "sequences")

    def work(records: list[Any], part: str, rejects: list[Reject], bar: tqdm) -> dict[str, Any]:
        nonlocal timed
        texts = [io.StringIO(), io.StringIO()]
        whole, by_residue = (csv.writer(text, lineterminator="\n") for text in texts)
        whole.writerow(["id", "sequence_id", *names, "sequence"])
        by_residue.writerow(["id", "sequence_id", "residue", "position", "native", "letter", "pseudo", "one_pass"])
        reports: list[dict[str, Any]] = []
        # Protein, what it gets of coordinates, its sequences and their letters, indices of residues.
        asked: list[tuple[Chain, str, list[Chain], list[str], list[int]]] = []

        def refuse(name: str, error: ValueError) -> None:
            rejects.append(("", name, str(error).removeprefix(f"{name}: ")))
            bar.update()

        for record in records:
            name, alone = id_of(record), len(records) == len(given) == 1
            mine = [each for each in given_sequences if alone or each.id == name or each.id.startswith(f"{name}_")]
            try:
                protein = as_chain(record)
                coordinates = coordinates_given(model, protein.coords, without_coords)
                if not mine:
                    raise ValueError("no sequence has this id; ids are ID or ID_ANYTHING")
                letters = [fit_sequence(protein, each) for each in mine]
                numbers = ResidueNumbers(protein, numbering=numbering, offset=offset)
                indices = _select(numbers, residues, protein, given)
                if any({each[index] for index in indices} == {"X"} for each in letters):
                    where = "" if residues is None else f" in {residues!r}"
                    raise ValueError(f"a sequence has only X{where}; there is nothing to score")
            except ValueError as error:
                refuse(name, error)
                continue
            if without_coords:
                protein = dataclasses.replace(protein, coords=np.full_like(protein.coords, np.nan))
            asked.append((protein, coordinates, mine, letters, indices))
        if not timed and asked:
            timed = True
            jobs = [(protein, letters, indices) for protein, _, _, letters, indices in asked]
            with contextlib.suppress(ValueError):  # which is said of the protein itself
                _say_how_long_of_sequences(sequences_seconds(model, jobs, **options), jobs, len(given))
        for protein, coordinates, mine, letters, indices in asked:
            rows = sum(each[index] != "X" for each in letters for index in indices)
            try:
                with tqdm(total=rows, unit="row", disable=not progress, leave=False) as inner:
                    tables = score_sequences(model, protein, letters, residues=indices, bar=inner, **options)
            except ValueError as error:
                refuse(protein.id, error)
                continue
            bar.update()
            own = ResidueNumbers(protein)
            scores = [(-np.nanmean(table[:, 1]), -np.nanmean(table[:, 0])) for table in tables]
            order = sorted(range(len(mine)), key=lambda number: scores[number][0])
            for number in order:
                pairs = [(letters[number][index], protein.sequence[index]) for index in indices]
                pairs = [pair for pair in pairs if "X" not in pair]
                recovery = sum(one == other for one, other in pairs) / len(pairs) if pairs else math.nan
                chains = split_by_chain(letters[number], own.chain_lengths)
                whole.writerow(
                    [protein.id, mine[number].id, *map(_cell, [*scores[number], recovery]), "/".join(chains)]
                )
                for index in indices:
                    place = [own.name(index), own.positions[index], protein.sequence[index], letters[number][index]]
                    values = tables[number][index, ::-1]
                    by_residue.writerow([protein.id, mine[number].id, *place, *map(_cell, values)])
            report = {"id": protein.id, "residues": len(protein), "sequences": len(mine), "best": mine[order[0]].id}
            report |= {} if residues is None else {"scored": len(indices)}
            # What is known may be the structure or, on a backbone of other letters, a sequence.
            sequences_here = [split_by_chain(each, own.chain_lengths) for each in (protein.sequence, *letters)]
            (trained,) = trained_on(training, [list(itertools.chain(*sequences_here))])
            report |= {"coordinates": coordinates, "trained_on": trained}
            reports.append(report | dict(zip(names, map(float, scores[order[0]]), strict=False)))
        for suffix, text in zip(("", "_residues"), texts, strict=True):
            write_text(output / PARTS / f"{part}{suffix}.csv", text.getvalue())
        counts = {"chains": len(reports), "residues": sum(report["residues"] for report in reports)}
        return {"reports": reports, "file": f"{PARTS}/{part}.csv", **counts}

    settings: dict[str, Any] = {"checkpoint": Path(checkpoint).name, "dtype": dtype, "without_coords": without_coords}
    settings["chosen_residues"] = residues
    if residues is not None:
        settings |= {"numbering": asked_numbering, "offset": first}
    guarded = {"verb": "score", "weights": digest_weights(model), "sequences": hash_file(sequences)}
    with parts_in(output, given):
        outcome = run_parts(given, output, settings | guarded, work, progress)
        reports = [report for record in outcome.records for report in record.get("reports", ())]
        reports = [{renamed.get(name, name): value for name, value in report.items()} for report in reports]
        summary: dict[str, Any] = settings | outcome.counts()
        summary["trained_on_sequences"] = warn_of_training(settings["checkpoint"], reports, "id")
        summary["proteins"] = reports
        if outcome.complete:
            outcome.list_rejects(output / REJECTS)
            tables = [output / record["file"] for record in outcome.records if "file" in record]
            _join(tables, output / "sequences.csv", renamed)
            join_tables([path.with_name(f"{path.stem}_residues.csv") for path in tables], output / "residues.csv")
            write_json(output / "score.json", summary)
    return summary


def _say_how_long_of_sequences(
    seconds: float | None, asked: Sequence[tuple[Chain, Sequence[str], Sequence[int]]], parts: int
) -> None:
    """Before sequences are scored: what it will take."""
    if seconds is None:
        return
    count = counted(sum(len(letters) for _, letters, _ in asked), "sequence")
    of_parts = f", for each of {parts:,} parts" if parts > 1 else ""
    verb = "takes" if count.startswith("1 ") else "take"
    logger.warning("%s, each residue masked in its turn, %s %s%s", count, verb, in_words(seconds), of_parts)


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def scan_lines(
    chain_id: str, residues: ResidueNumbers, table: np.ndarray, observed: np.ndarray,
    indices: Sequence[int] | None = None,
) -> Iterator[list[str]]:  # fmt: skip
    """Rows of `scan.csv` of a chain's table (L, 20), of all residues or of `indices`; `observed` is bool (L,)."""
    for index in range(len(table)) if indices is None else indices:
        place = str(residues.positions[index]), residues.sequence[index]
        name = residues.chain_name(index), residues.name(index)
        cells = ["" if np.isnan(value) else f"{value:.6g}" for value in table[index]]
        yield [chain_id, *place, *name, _true(observed[index]), *cells]


def score_lines(
    chain_id: str, residues: ResidueNumbers, mutants: Sequence[str], parsed: Sequence[Sequence[tuple[int, str]]],
    scores: np.ndarray, measured: np.ndarray | None, observed: np.ndarray,
) -> Iterator[list[str]]:  # fmt: skip
    """Rows of `scores.csv`: of `mutants` as they were written, and as `parse_mutant` reads them."""
    for number, (mutant, substitutions, value) in enumerate(zip(mutants, parsed, scores, strict=True)):
        cells = [chain_id, mutant, f"{value:.6g}"]
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
