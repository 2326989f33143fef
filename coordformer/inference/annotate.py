"""What proteins do, by a fine-tuned classifier: `coordformer annotate`."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.files import write_json, write_text
from ..data.records import counted
from ..model.modeling_coordformer import CoordformerForSequenceClassification
from ..model.predict import predict, window_rows
from ..model.proteins import Record, id_of
from ..model.windows import WindowMean
from .checkpoints import digest_weights, load_checkpoint
from .runner import Inputs, check_file, parts_beside, run_parts

logger = logging.getLogger(__name__)

SHIPPED = "hub_cards/coordformer-1M-ec"  # a classifier of several labels at once


def predict_terms(
    model: PreTrainedModel, chains: Sequence[Record], tokenizer: PreTrainedTokenizerBase, *,
    without_coords: bool = False, token_budget: int = 8192, window: int = 1024, bar: tqdm | None = None,
) -> np.ndarray:  # fmt: skip
    """Probability of each term for each chain, (chains, terms), float32; of a long chain the mean over its windows.

    Args:
        model: a `CoordformerForSequenceClassification` with several labels at once.
        chains, tokenizer, without_coords, window: as of `window_rows`.
        token_budget, bar: as of `predict`.

    Raises:
        ValueError: the window or the budget is too small, or a chain has not the atoms of the model.
    """
    config: Any = model.config
    means = [WindowMean((config.num_labels,), 0) for _ in chains]
    rows = window_rows(model, tokenizer, chains, window=window, without_coords=without_coords)
    options: dict[str, Any] = {"token_budget": token_budget, "bar": bar}
    for row, probabilities in predict(model, rows, lambda batch: model(**batch).logits.float().sigmoid(), **options):
        means[row.chain].add(row.start, probabilities)
    return np.stack([each.mean() for each in means])


def annotate(
    checkpoint: str | Path, inputs: Sequence[str | Path] | str | Path, *, output: str | Path | None = None,
    top: int = 10, threshold: float = 0.1, without_coords: bool = False, dtype: str = "float32",
    token_budget: int = 8192, window: int = 1024, progress: bool = True, **reading: Any,
) -> dict[str, list[dict[str, Any]]]:  # fmt: skip
    """The terms that a classifier gives chains.

    Args:
        checkpoint: folder or Hub name of a `CoordformerForSequenceClassification` with several labels at once.
        inputs: structure and FASTA files, archives, folders, data sets.
        output: FILE.tsv (columns `chain`, `term`, `name`, `probability`) or FILE.json (what is returned);
            FILE.rejected.tsv gets what was left out.
        top, threshold: at most this many terms of a chain, of at least this probability.
        without_coords, token_budget, window: as of `predict_terms`.
        dtype: of the weights, `float32` or `bfloat16`.
        reading: `split`, `chain_ids`, `min_plddt`, `as_complex`, `assembly`, `entries_per_part` and `shard`, as of
            `runner.Inputs`.

    Returns:
        For each chain its terms, the most probable first: `term`, `name` and `probability`. Of a label in
        `config.id2label` such as `GO:0003677 DNA binding`, the part before the first space is the term.

    Raises:
        ValueError: an argument is unusable, or the checkpoint is no such classifier.
    """
    if top < 1:
        raise ValueError(f"`top` is {top}; it must be at least 1.")
    if not 0 <= threshold <= 1:
        raise ValueError(f"`threshold` is {threshold}; it is a probability between 0 and 1.")
    check_file(output, ".tsv", ".json")
    model, processor = load_checkpoint(checkpoint, dtype, any_head=True)
    config: Any = model.config
    classifies = isinstance(model, CoordformerForSequenceClassification)
    if not classifies or config.problem_type != "multi_label_classification":
        what = "gives a chain one label, and not several" if classifies else "has no classifier of chains"
        train = (
            f"`python examples/function/function.py --checkpoint {checkpoint}`, which writes a folder to give instead"
        )
        fix = f"use {SHIPPED} of the repository (EC numbers), or train one: {train}"
        raise ValueError(f"{checkpoint} {what}, so it cannot predict terms; {fix}.")
    given = Inputs(inputs, atoms=processor.coordinate_atoms, **reading)
    labels = [config.id2label[number].partition(" ") for number in range(config.num_labels)]

    def work(chains: list[Record], _: str, __: Any, bar: tqdm) -> dict[str, Any]:
        options: dict[str, Any] = {"without_coords": without_coords, "token_budget": token_budget, "window": window}
        terms = {}
        probabilities = predict_terms(model, chains, processor.tokenizer, bar=bar, **options)
        for chain, row in zip(chains, probabilities, strict=True):
            best = [number for number in np.argsort(-row, kind="stable")[:top] if row[number] >= threshold]
            terms[id_of(chain)] = [
                {"term": labels[number][0], "name": labels[number][2], "probability": float(row[number])}
                for number in best
            ]
        return {"terms": terms}

    settings = {"verb": "annotate", "checkpoint": Path(checkpoint).name, "weights": digest_weights(model), "top": top}
    settings |= {"dtype": dtype, "threshold": threshold, "without_coords": without_coords, "window": window}
    with parts_beside(output, given) as folder:
        outcome = run_parts(given, folder, settings, work, progress)
        found: dict[str, list[dict[str, Any]]] = {}
        for record in outcome.records:
            for chain, terms in record.get("terms", {}).items():
                if found.setdefault(chain, terms) is not terms:
                    outcome.rejects.append(("", chain, "a chain of another part has this id, too; rename one"))
        if without := [chain for chain, terms in found.items() if not terms]:
            which = f"{counted(len(without), 'chain')} without a term of probability {threshold:g} or more"
            logger.warning("%s; the first: %s", which, without[0])
        outcome.list_rejects(None if output is None else Path(output).with_suffix(".rejected.tsv"))
        if output is not None and outcome.complete:
            if Path(output).suffix == ".json":
                write_json(Path(output), found)
            else:
                write_text(Path(output), describe(found) + "\n")
    return found


def describe(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The terms as a table, tab-separated."""
    lines = ["chain\tterm\tname\tprobability"]
    for chain, terms in found.items():
        name = " ".join(chain.split())
        lines += [f"{name}\t{each['term']}\t{each['name']}\t{each['probability']:.4f}" for each in terms]
    return "\n".join(lines)
