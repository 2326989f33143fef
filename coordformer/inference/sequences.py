"""Scores of whole sequences on structures, as files: `coordformer score --sequences`."""

import contextlib
import csv
import dataclasses
import io
import itertools
import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
from tqdm.auto import tqdm

from ..data.files import write_json, write_text
from ..data.inputs import Reject
from ..data.records import counted, hash_file
from ..model.chain import Chain, split_by_chain
from ..model.design import score_sequences
from ..model.proteins import as_chain, id_of
from ..model.residues import ResidueNumbers, choose_numbering
from ..model.structure import read_proteins
from .checkpoints import (
    coordinates_given,
    digest_weights,
    load_checkpoint,
    stated_noise,
    trained_on,
    training_sequences_of,
    warn_of_training,
)
from .runner import PARTS, REJECTS, Inputs, is_data_set, join_tables, parts_in, run_parts
from .selection import missing_residues, say_left_out, say_missing, select_residues
from .timing import in_words, sequences_seconds

logger = logging.getLogger(__name__)

OF_ALL = {"pseudo_score": "global_pseudo_score", "seq_recovery": "global_seq_recovery"}
"""What is a mean over all residues, and not over chosen ones as in `designs.csv`; before, it had that name."""


def score_given_sequences(
    checkpoint: str | Path, inputs: Sequence[str | Path] | str | Path, output: str | Path, sequences: str | Path, *,
    residues: str | None = None, numbering: str | None = None, offset: int | None = None,
    without_coords: bool = False, noise_level: float | None = None, dtype: str = "float32", token_budget: int = 8192,
    entries_per_part: int = 16, progress: bool = True, **reading: Any,
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
        residues, numbering, offset, without_coords, noise_level, dtype, token_budget, entries_per_part, reading: as of
            `score`.

    Returns:
        What is also in `score.json`: the settings, counts, and `proteins`, of each its `id`, `file`, `residues`, the
        number of `sequences`, `best` (the id of the likeliest), its scores, named as in the table, with `residues` how
        many were `scored` and the `missing_residues`, as of `score`, and `trained_on` (see
        `checkpoints.trained_on`: its own chains, or the closest sequence).

    Raises:
        ValueError: an input is unusable. A sequence that does not fit its structure costs the structure.
    """
    output, given_sequences = Path(output), read_sequences(sequences)
    asked_numbering, first = choose_numbering(numbering, offset)
    model, processor = load_checkpoint(checkpoint, dtype, noise_level=noise_level)
    files = not all(map(is_data_set, [inputs] if isinstance(inputs, str | Path) else inputs))
    reading |= {"as_complex": files}
    given = Inputs(inputs, **processor.reads, entries_per_part=entries_per_part, **reading)
    training = training_sequences_of(checkpoint)
    renamed = OF_ALL if residues is None else {}
    names = [renamed.get("pseudo_score", "pseudo_score"), "global_score", renamed.get("seq_recovery", "seq_recovery")]
    options: dict[str, Any] = {"processor": processor, "token_budget": token_budget}
    timed = not progress
    say_left_out(inputs, reading, "sequences")

    def work(records: list[Any], part: str, rejects: list[Reject], bar: tqdm) -> dict[str, Any]:
        nonlocal timed
        texts = [io.StringIO(), io.StringIO()]
        whole, by_residue = (csv.writer(text, lineterminator="\n") for text in texts)
        whole.writerow(["id", "file", "sequence_id", *names, "sequence"])
        by_residue.writerow(
            ["id", "file", "sequence_id", "residue", "position", "native", "letter", "pseudo", "one_pass"]
        )
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
                indices = select_residues(numbers, residues, protein, given)
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
                _say_how_long(sequences_seconds(model, jobs, **options), jobs, len(given))
        for protein, coordinates, mine, letters, indices in asked:
            rows = sum(each[index] != "X" for each in letters for index in indices)
            try:
                with tqdm(total=rows, unit="row", disable=not progress, leave=False) as inner:
                    tables = score_sequences(model, protein, letters, residues=indices, bar=inner, **options)
            except ValueError as error:
                refuse(protein.id, error)
                continue
            bar.update()
            own, file = ResidueNumbers(protein), given.file_of(protein)
            scores = [(-np.nanmean(table[:, 1]), -np.nanmean(table[:, 0])) for table in tables]
            order = sorted(range(len(mine)), key=lambda number: scores[number][0])
            for number in order:
                pairs = [(letters[number][index], protein.sequence[index]) for index in indices]
                pairs = [pair for pair in pairs if "X" not in pair]
                recovery = sum(one == other for one, other in pairs) / len(pairs) if pairs else math.nan
                chains = split_by_chain(letters[number], own.chain_lengths)
                about, figures = [protein.id, file, mine[number].id], [*scores[number], recovery]
                whole.writerow([*about, *map(_cell, figures), "/".join(chains)])
                for index in indices:
                    place = [own.name(index), own.positions[index], protein.sequence[index], letters[number][index]]
                    values = tables[number][index, ::-1]
                    by_residue.writerow([*about, *place, *map(_cell, values)])
            report: dict[str, Any] = {"id": protein.id, "file": file, "residues": len(protein)}
            report |= {"sequences": len(mine), "best": mine[order[0]].id}
            report |= {} if residues is None else {"scored": len(indices)}
            report |= missing_residues(ResidueNumbers(protein, numbering=numbering, offset=offset), residues)
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
    settings |= {"chosen_residues": residues, **stated_noise(noise_level)}
    if residues is not None:
        settings |= {"numbering": asked_numbering, "offset": first}
    guarded = {"verb": "score", "weights": digest_weights(model), "sequences": hash_file(sequences)}
    with parts_in(output, given):
        outcome = run_parts(given, output, settings | guarded, work, progress)
        reports = [report for record in outcome.records for report in record.get("reports", ())]
        reports = [{renamed.get(name, name): value for name, value in report.items()} for report in reports]
        summary: dict[str, Any] = settings | outcome.counts()
        summary["trained_on_sequences"] = warn_of_training(settings["checkpoint"], reports, "id")
        say_missing(reports, "id")
        summary["proteins"] = reports
        if outcome.complete:
            outcome.list_rejects(output / REJECTS)
            tables = [output / record["file"] for record in outcome.records if "file" in record]
            join_tables(tables, output / "sequences.csv", renamed)
            join_tables([path.with_name(f"{path.stem}_residues.csv") for path in tables], output / "residues.csv")
            write_json(output / "score.json", summary)
    return summary


def _say_how_long(
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


def read_sequences(path: str | Path) -> list[Chain]:
    """Sequences of a FASTA file, such as `fasta` writes: chains are joined by `/`, gaps are `-` or X.

    Raises:
        ValueError: it is no such file.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    text = "\n".join(line if line.startswith(">") else line.replace("-", "X") for line in lines)
    return list(read_proteins(path, as_complex=True, data=text.encode()))


def fit_sequence(protein: Chain, given: Chain) -> str:
    """The letters of a sequence, one for each residue of a protein.

    Raises:
        ValueError: it has other chains, or one of another length; the message says where they differ, as aligned.
    """
    residues, sizes = ResidueNumbers(protein), getattr(given, "chain_lengths", None) or (len(given),)
    name = f"{protein.id}: the sequence {given.id} has"
    if len(sizes) != len(residues.chain_lengths):
        have = counted(len(residues.chain_lengths), "chain")
        fix = "join all of them by /, or read those that it is of by --chains"
        raise ValueError(f"{name} {counted(len(sizes), 'chain')}, the structure {have}; {fix}.")
    own, other = split_by_chain(residues.sequence, residues.chain_lengths), split_by_chain(given.sequence, sizes)
    for start, native, letters in zip(residues.chain_starts, own, other, strict=True):
        if len(letters) != len(native):
            aligned = gemmi.align_string_sequences(native, list(letters), [])
            where = _first_gap(aligned.cigar_str(), residues, start, letters)
            chain = residues.chain_name(start)
            have = f"{f'chain {chain}' if chain else 'it'} has {len(native)} residues"
            raise ValueError(f"{name} {len(letters)} letters where {have}: {where}.")
    return given.sequence


def _first_gap(cigar: str, residues: ResidueNumbers, start: int, letters: str) -> str:
    """Where a chain from `start` on and other letters part, by their alignment."""
    index, place = start, 0
    for count, kind in re.findall(r"(\d+)([MID])", cigar):
        size = int(count)
        if kind == "I":  # in the structure alone
            last = f" to {residues.describe(index + size - 1)}" if size > 1 else ""
            return f"it lacks {residues.describe(index)}{last}"
        if kind == "D":
            after = f"after {residues.describe(index - 1)}" if index > start else "in front"
            return f"it has {letters[place : place + size]} more {after}"
        index, place = index + size, place + size
    return "they do not align"
