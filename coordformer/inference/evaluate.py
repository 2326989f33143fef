"""Perplexity and recovery of masked residues, under the two protocols: `coordformer evaluate`."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..data.collator import PROTOCOLS
from ..data.files import write_json
from ..data.records import counted
from ..data.training_sequences import chain_sequences
from ..model.processing_coordformer import letter_ids
from ..model.proteins import Record, cluster_of
from .checkpoints import (
    coordinates_of,
    count_trained_on,
    describe_trained_on,
    digest_weights,
    load_checkpoint,
    stated_noise,
    trained_on,
    training_sequences_of,
)
from .figures import plot_recovery
from .masked import count_chains, summarize_samples
from .runner import Inputs, check_file, parts_beside, run_parts, write_arrays

logger = logging.getLogger(__name__)


def evaluate(
    checkpoint: str | Path, inputs: Sequence[str | Path] | str | Path, *, output: str | Path | None = None,
    protocols: Sequence[str] = PROTOCOLS, num_mask_samples: int = 3, without_coords: bool = False,
    num_rotations: int = 1, noise_level: float | None = None, dtype: str = "float32", token_budget: int = 8192,
    window: int = 1024, progress: bool = True, **reading: Any,
) -> dict[str, Any]:  # fmt: skip
    """Evaluate a checkpoint; arguments that are not below are those of `count_chains`.

    Args:
        checkpoint: folder or Hub name of a masked-LM Coordformer.
        inputs: data sets, structure files, archives, folders.
        output: FILE.json, gets the report; FILE.png recovery by residue, and FILE.rejected.tsv what was left out.
        noise_level: what a model with `config.noise_conditioning` is told, Å; default: its `config.noise_level`.
        dtype: of the weights.
        reading: `split`, `chain_ids`, `min_plddt`, `as_complex`, `assembly`, `entries_per_part` and `shard`, as of
            `runner.Inputs`.

    Returns:
        `checkpoint`, `weights` (see `digest_weights`), `data`, `split`, `coordinates`, `dtype`, `num_rotations`,
        `num_mask_samples`, `chains`, `residues`, `rejected`, `clusters` (what intervals are over: their number, or
        None, then chains), `trained_on_sequences` (of so many chains the checkpoint was trained on the `same` sequence
        or a `similar` one, and of so many that is `unknown`; see `checkpoints.trained_on`), and for each protocol what
        `summarize_samples` returns; of a job of several only counts.
    """
    check_file(output, ".json")
    model, processor = load_checkpoint(checkpoint, dtype, noise_level=noise_level)
    given = Inputs(inputs, **processor.reads, **reading)
    measured: dict[str, Any] = {"checkpoint": Path(checkpoint).name, "weights": digest_weights(model)}
    measured |= {"data": ", ".join(given.names), "split": given.settings["split"]}
    measured |= {"coordinates": "not given" if without_coords else coordinates_of(model), "dtype": dtype}
    measured |= stated_noise(noise_level)
    known_sequences = training_sequences_of(checkpoint)
    samples: dict[str, Any] = {"num_rotations": num_rotations, "num_mask_samples": num_mask_samples}
    measured |= samples
    options: dict[str, Any] = {"without_coords": without_coords, "token_budget": token_budget, "window": window}

    with parts_beside(output, given) as folder:

        def work(chains: list[Record], part: str, _: Any, bar: tqdm) -> dict[str, Any]:
            bar.total += len(chains) * (num_mask_samples * len(protocols) - 1)
            counts = {
                protocol: count_chains(model, chains, processor.tokenizer, protocol, bar=bar, **samples, **options)
                for protocol in protocols
            }
            write_arrays(folder / f"counts-{part}.npz", **counts)
            seen = count_trained_on(trained_on(known_sequences, list(map(chain_sequences, chains))))
            return {"file": f"counts-{part}.npz", "clusters": list(map(cluster_of, chains)), "trained_on": seen}

        settings = {"verb": "evaluate", **measured, "protocols": list(protocols), "window": window}
        outcome = run_parts(given, folder, settings, work, progress)
        report: dict[str, Any] = measured | outcome.counts()
        if not outcome.complete:
            return report
        records = [record for record in outcome.records if record["chains"]]
        clusters = [each for record in records for each in record["clusters"]]
        known = None not in clusters
        report["clusters"] = len(set(clusters)) if known else None
        counts_of = [record.get("trained_on", {"unknown": record["chains"]}) for record in records]  # not of 0.1.0
        seen = {name: sum(each.get(name, 0) for each in counts_of) for name in ("same", "similar", "unknown")}
        report["trained_on_sequences"] = seen
        _warn_of_training(measured["checkpoint"], seen, report["chains"])
        for protocol in protocols:
            counts = np.concatenate([np.load(folder / record["file"])[protocol] for record in records], axis=1)
            report[protocol] = summarize_samples(counts, letter_ids(processor.tokenizer), clusters if known else None)
        outcome.list_rejects(None if output is None else Path(output).with_suffix(".rejected.tsv"))
        if output is not None:
            write_json(Path(output), report)
            recoveries = {protocol: report[protocol]["recovery_by_residue"] for protocol in protocols}
            plot_recovery(recoveries, Path(output).with_suffix(".png"))
    return report


def _warn_of_training(checkpoint: str, seen: Mapping[str, int], chains: int) -> None:
    """Say that numbers are of chains that a checkpoint was trained on, or that nobody knows whether they are."""
    if text := describe_trained_on(checkpoint, seen, chains, "chain", "perplexity and recovery say"):
        logger.warning("%s, not how well others are predicted", text)
    elif seen["unknown"]:
        logger.warning("whether %s was trained on these chains is not recorded", checkpoint)


def describe(report: Mapping[str, Any]) -> str:
    """The report as a short text."""
    split = "" if report["split"] is None else f", split {report['split']}"
    chains, residues = counted(report["chains"], "chain"), counted(report["residues"], "residue")
    what = f"{report['checkpoint']} on {chains} with {residues} of {report['data']}{split}"
    lines = [f"{what}; coordinates: {report['coordinates']}; {report['dtype']}"]
    measured = [name for name in PROTOCOLS if name in report]  # none while parts are missing
    lines += [f"{'protocol':10}{'perplexity':26}recovery, %"] if measured else []
    for protocol in measured:
        cells = []
        for name, scale, digits in (("perplexity", 1, 2), ("recovery", 100, 1)):
            values = (report[protocol][name], *report[protocol][f"{name}_interval"])
            value, low, high = (f"{scale * each:.{digits}f}" for each in values)
            # One chain, or one cluster of them, drawn again is the same one: its interval would have no width.
            several = (report["clusters"] or report["chains"]) > 1
            cells.append(f"{value} ({low} to {high})" if several else value)
        lines.append(f"{protocol:10}{cells[0]:26}{cells[1]}")
    return "\n".join(lines)
