"""Contacts of residues, predicted from attention maps: `coordformer contacts`.

A model that is given coordinates is asked for what follows from its input: precision then says how much of the geometry
is left in its attention maps. Without coordinates it says how well contacts are predicted (paper, section 6).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.batching import fetch_rows
from ..data.contacts import MIN_SEPARATION, chain_labels, separations
from ..data.files import write_json, write_text
from ..data.records import counted, first_lines
from ..model.chain import chain_arrays
from ..model.predict import predict, tokens_of, window_rows
from ..model.proteins import Record, id_of, residues_of
from ..model.residues import ResidueNumbers
from ..model.windows import WindowMean
from .checkpoints import coordinates_given, digest_weights, load_checkpoint
from .figures import plot_contacts
from .metrics import CUTS, RANGES, describe_precision, precision_at
from .runner import REJECTS, Inputs, file_stems, parts_in, run_parts, write_arrays

SHIPPED = "hub_cards/coordformer-1M-contacts"  # a model with a contact head
LISTED = 5  # pairs for each residue that a TSV file has


def predict_contacts(
    model: PreTrainedModel, chains: Sequence[Record], tokenizer: PreTrainedTokenizerBase, *,
    without_coords: bool = False, token_budget: int = 8192, window: int = 1024, bar: tqdm | None = None,
) -> Iterator[tuple[int, np.ndarray]]:  # fmt: skip
    """Probabilities of contacts of chains, the longest first.

    Args:
        model: a Coordformer with a contact head.
        chains, tokenizer, without_coords, window: as of `window_rows`; memory grows with the square of the window.
        token_budget, bar: as of `predict`.

    Yields:
        Number of a chain, and (residues, residues), float32, symmetric, NaN where no window holds both residues.
    """
    contacts_of: Any = model.predict_contacts
    means: dict[int, WindowMean] = {}
    rows = window_rows(model, tokenizer, chains, window=window, without_coords=without_coords)
    for row, pairs in predict(model, rows, lambda batch: contacts_of(**batch), token_budget=token_budget, bar=bar):
        residues, inside = residues_of(chains[row.chain]), tokens_of(row) - 2
        means.setdefault(row.chain, WindowMean((residues, residues), 2)).add(row.start, pairs[:inside, :inside])
        if row.last:
            yield row.chain, means.pop(row.chain).mean()


def measure_precision(
    model: PreTrainedModel, rows: Any, tokenizer: PreTrainedTokenizerBase, *, progress: bool = True, **options: Any
) -> np.ndarray:
    """Precision on every chain of a data set; the mean over chains is `np.nanmean(..., axis=0)`.

    Args:
        rows: chains, see `data.pack.open_chains`.
        model, tokenizer, options: as of `predict_contacts`.
        progress: show a progress bar.

    Returns:
        (chains, ranges, cuts), in the order of `RANGES` and `CUTS`; NaN where a chain has no known pair. Of a complex
        these are of pairs within a chain.
    """
    table = np.full((len(rows), len(RANGES), len(CUTS)), np.nan)
    with tqdm(total=len(rows), unit="chain", disable=not progress) as bar:
        for start in range(0, len(rows), 64):
            chains = fetch_rows(rows, range(start, min(start + 64, len(rows))))
            for number, scores in predict_contacts(model, chains, tokenizer, bar=bar, **options):
                chain = chains[number]
                precision = precision_at(scores, chain_labels(chain), separations(chain))
                table[start + number] = [list(precision[name].values()) for name in RANGES]
    return table


def contacts(
    checkpoint: str | Path, inputs: Sequence[str | Path] | str | Path, output: str | Path, *,
    without_coords: bool = False, token_budget: int = 8192, dtype: str = "float32", window: int = 1024,
    entries_per_part: int = 64, progress: bool = True, **reading: Any,
) -> dict[str, Any]:  # fmt: skip
    """Predict the contacts of chains.

    Args:
        checkpoint: folder or Hub name of a Coordformer with a contact head.
        inputs: structure and FASTA files, archives, folders, data sets.
        output: a folder. Gets for each chain or complex, by its id (see `file_stems`): ID.npz with `probabilities`
            (residues, residues), float32, `contacts` (as of `contact_labels`), `sequence` and `residues` (their names,
            see `ResidueNumbers.name`); ID.tsv with the 5 L most probable pairs (see `pair_lines`); ID.png with both
            triangles; and `contacts.json`.
        without_coords, token_budget, window: as of `predict_contacts`.
        dtype: of the weights.
        entries_per_part, reading (`split`, `chain_ids`, `min_plddt`, `as_complex`, `assembly`, `shard`): as of
            `runner.Inputs`.

    Returns:
        What is also in `contacts.json`: `protein` (names of the inputs), `checkpoint`, `dtype`, `window`, counts, and
        in `chains` of each its `id`, `file` (without the ending), `input` (what it was read from, see
        `Inputs.file_of`), `residues`, `numbering` (`"file"` where their names have the file's own numbers, else
        `"sequence"`), `coordinates` (see `coordinates_given`), of a complex `chains` (residues by name), `contacts`
        (known pairs; None without structure) and `precision` as of `precision_at`, None where not defined
        and in a range without a contact.

    Raises:
        ValueError: the checkpoint has no contact head, or an input is unusable.
    """
    output = Path(output)
    model, processor = load_checkpoint(checkpoint, dtype, any_head=True)
    if not model.config.contact_head:
        train = f"`python examples/contacts/contacts.py {checkpoint}`, which writes a folder to give instead"
        fix = f"use {SHIPPED} of the repository, or train one: {train}"
        raise ValueError(f"{checkpoint} has no contact head, so it cannot predict contacts; {fix}.")
    atoms = tuple(dict.fromkeys((*processor.coordinate_atoms, "CA")))
    given = Inputs(inputs, **processor.reads | {"atoms": atoms}, entries_per_part=entries_per_part, **reading)

    def work(chains: list[Record], part: str, _: Any, bar: tqdm) -> dict[str, Any]:
        options: dict[str, Any] = {"token_budget": token_budget, "window": window, "bar": bar}
        stems = file_stems(output, part, chains)
        reports: dict[int, dict[str, Any]] = {}
        for number, probabilities in predict_contacts(
            model, chains, processor.tokenizer, without_coords=without_coords, **options
        ):
            chain, stem, residues = chains[number], stems[number], ResidueNumbers(chains[number])
            labels, separation = chain_labels(chain), separations(chain)
            sequence, coords = chain_arrays(chain, atoms, optional_atoms=processor.optional_atoms)
            precision, possible = (precision_at(each, labels, separation) for each in (probabilities, labels))
            for name, cuts in possible.items():
                if not cuts["L"]:  # where there is no contact, none was missed
                    precision[name] = dict.fromkeys(CUTS, math.nan)
            known = bool((labels >= 0).any())
            report: dict[str, Any] = {"id": id_of(chain), "file": stem.relative_to(output).as_posix()}
            report["input"] = given.file_of(chain)
            report |= {"residues": len(sequence), "numbering": residues.numbering}
            report["coordinates"] = coordinates_given(model, coords, without_coords)
            if len(residues.chain_names) > 1:
                report["chains"] = dict(zip(residues.chain_names, residues.chain_lengths, strict=True))
            report |= {"contacts": int((labels == 1).sum()) // 2 if known else None, "precision": {}}
            reports[number] = report
            for name, cuts in precision.items():  # JSON has no NaN
                report["precision"][name] = {cut: None if math.isnan(cuts[cut]) else cuts[cut] for cut in cuts}
            title = f"{report['id']}, coordinates {report['coordinates']}"
            title += f"\nprecision at L: {describe_precision(precision)}" if known else ""
            # Not `with_suffix`: an id may have dots.
            names = np.array([residues.name(index) for index in range(len(residues))])
            arrays = {"probabilities": probabilities, "contacts": labels, "sequence": sequence, "residues": names}
            write_arrays(Path(f"{stem}.npz"), **arrays)
            write_text(Path(f"{stem}.tsv"), pair_lines(probabilities, residues, separation))
            plot_contacts({title: probabilities}, labels, Path(f"{stem}.png"), separation, residues)
        return {"reports": [reports[number] for number in sorted(reports)]}

    settings = {"checkpoint": Path(checkpoint).name, "dtype": dtype, "window": window}
    guarded = {"verb": "contacts", "weights": digest_weights(model), "without_coords": without_coords}
    with parts_in(output, given):
        outcome = run_parts(given, output, settings | guarded, work, progress)
        outcome.list_rejects(output / REJECTS)
        summary: dict[str, Any] = {"protein": ", ".join(given.names), **settings, **outcome.counts()}
        summary["chains"] = [report for record in outcome.records for report in record.get("reports", ())]
        if outcome.complete:
            write_json(output / "contacts.json", summary)
    return summary


def pair_lines(probabilities: np.ndarray, residues: ResidueNumbers, separation: np.ndarray) -> str:
    """The 5 L most probable pairs i < j, at least 6 apart in a chain or in two chains, as TSV.

    Columns: places in the whole sequence from 1, letters, probability, and names (`ResidueNumbers.name`).
    """
    first, second = np.nonzero(np.triu(separation >= MIN_SEPARATION))
    order = np.argsort(-probabilities[first, second], kind="stable")[: LISTED * len(residues)]
    lines = ["i\tj\tresidue_i\tresidue_j\tprobability\tname_i\tname_j"]
    for i, j in zip(first[order].tolist(), second[order].tolist(), strict=True):
        if np.isfinite(probabilities[i, j]):  # not of pairs that no window holds, which come last
            letters = f"{residues.sequence[i]}\t{residues.sequence[j]}"
            names = f"{residues.name(i)}\t{residues.name(j)}"
            lines.append(f"{i + 1}\t{j + 1}\t{letters}\t{probabilities[i, j]:.6g}\t{names}")
    return "\n".join(lines) + "\n"


def describe(summary: Mapping[str, Any]) -> str:
    """The summary as a short text."""
    lines = []
    for chain in summary["chains"]:
        known = "" if chain["contacts"] is None else f"; precision at L: {describe_precision(chain['precision'])}"
        residues = counted(chain["residues"], "residue")
        lines.append(f"{chain['id']}: {residues}, coordinates {chain['coordinates']}{known}")
    return first_lines(lines)
