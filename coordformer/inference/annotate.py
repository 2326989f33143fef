"""What proteins do, or are, by a fine-tuned classifier: `coordformer annotate`."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.files import write_json, write_text
from ..data.records import counted
from ..model.modeling_coordformer import CoordformerForSequenceClassification, CoordformerForTokenClassification
from ..model.predict import predict, window_rows
from ..model.proteins import Record, id_of
from ..model.windows import WindowMean
from .checkpoints import digest_weights, load_checkpoint
from .runner import Inputs, check_file, parts_beside, run_parts

logger = logging.getLogger(__name__)

SHIPPED = "hub_cards/coordformer-1M-ec"  # a classifier of several labels at once
# What a head was trained for, as in Transformers, to what its logits become.
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "multi_label_classification": torch.sigmoid,
    "single_label_classification": partial(torch.softmax, dim=-1),
    "regression": torch.Tensor.float,
}


def problem_type_of(config: Any) -> str:
    """What a classifier predicts, a key of `ACTIVATIONS`.

    A config that does not say is of numbers where it has one label, else of one class for each chain.

    Raises:
        ValueError: it says something else.
    """
    found = config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")
    if found not in ACTIVATIONS:
        raise ValueError(f"`config.problem_type` is {found!r}; choose one of {', '.join(ACTIVATIONS)}.")
    return found


def predict_terms(
    model: PreTrainedModel, chains: Sequence[Record], tokenizer: PreTrainedTokenizerBase, *,
    without_coords: bool = False, token_budget: int = 8192, window: int = 1024, bar: tqdm | None = None,
) -> np.ndarray:  # fmt: skip
    """Probability of each label for each chain, (chains, labels), float32; of a long chain the mean over its windows.

    Args:
        model: a `CoordformerForSequenceClassification`. With several labels at once each has its own probability, with
            one label for each chain they sum to 1, and of a regression they are the values themselves
            (`problem_type_of`).
        chains, tokenizer, without_coords, window: as of `window_rows`.
        token_budget, bar: as of `predict`.

    Raises:
        ValueError: the window or the budget is too small, or a chain has not the atoms of the model.
    """
    config: Any = model.config
    activation = ACTIVATIONS[problem_type_of(config)]
    means = [WindowMean((config.num_labels,), 0) for _ in chains]
    rows = window_rows(model, tokenizer, chains, window=window, without_coords=without_coords)
    options: dict[str, Any] = {"token_budget": token_budget, "bar": bar}
    for row, probabilities in predict(model, rows, lambda batch: activation(model(**batch).logits.float()), **options):
        means[row.chain].add(row.start, probabilities)
    return np.stack([each.mean() for each in means])


def annotate(
    checkpoint: str | Path, inputs: Sequence[str | Path] | str | Path, *, output: str | Path | None = None,
    top: int = 10, threshold: float = 0.1, without_coords: bool = False, dtype: str = "float32",
    token_budget: int = 8192, window: int = 1024, progress: bool = True, **reading: Any,
) -> dict[str, list[dict[str, Any]]]:  # fmt: skip
    """The terms, or the one class, or the value that a classifier gives chains.

    Args:
        checkpoint: folder or Hub name of a `CoordformerForSequenceClassification`, or of an adapter of one.
        inputs: structure and FASTA files, archives, folders, data sets.
        output: FILE.tsv (columns `chain`, `term`, `name`, `probability` or `value`, and `file`, see
            `Inputs.file_of`) or FILE.json (what is returned); FILE.rejected.tsv gets what was left out.
        top, threshold: at most this many terms of a chain, of at least this probability. Where a chain has one class,
            the likeliest is there whatever its probability. Of a regression all values are there.
        without_coords, token_budget, window: as of `predict_terms`.
        dtype: of the weights, `float32` or `bfloat16`.
        reading: `split`, `chain_ids`, `min_plddt`, `as_complex`, `assembly`, `entries_per_part` and `shard`, as of
            `runner.Inputs`.

    Returns:
        For each chain its terms, the most probable first: `term`, `name` and `probability`. Of several labels at once,
        such as `GO:0003677 DNA binding` in `config.id2label`, the part before the first space is the term. Of one
        class, or of a regression, the whole label is, and there is no name; a regression has `value` in place of
        `probability`.

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
    if not isinstance(model, CoordformerForSequenceClassification):
        train = (
            f"`python examples/function/function.py --checkpoint {checkpoint}`, which writes a folder to give instead, "
            "or with labels of your own (docs/fine_tuning.md)"
        )
        fix = f"use {SHIPPED} of the repository (EC numbers), or train one: {train}"
        if isinstance(model, CoordformerForTokenClassification):
            fix = "its classes of residues are predicted in Python (docs/fine_tuning.md)"
        raise ValueError(f"{checkpoint} has no classifier of chains, so it cannot predict terms; {fix}.")
    kind = problem_type_of(config)
    several, measures = kind == "multi_label_classification", kind == "regression"
    if config.problem_type is None and config.num_labels > 1:
        what = "it is taken for one class of each chain (softmax)"
        logger.warning("%s does not say its `problem_type`: %s; write it into config.json", checkpoint, what)
    given = Inputs(inputs, **processor.reads, **reading)
    labels = [config.id2label[number] for number in range(config.num_labels)]
    named = [label.partition(" ")[::2] if several else (label, "") for label in labels]
    figure = "value" if measures else "probability"

    def work(chains: list[Record], _: str, __: Any, bar: tqdm) -> dict[str, Any]:
        options: dict[str, Any] = {"without_coords": without_coords, "token_budget": token_budget, "window": window}
        terms = {}
        predicted = predict_terms(model, chains, processor.tokenizer, bar=bar, **options)
        for chain, row in zip(chains, predicted, strict=True):
            best: Sequence[int] = range(len(row))
            if not measures:
                ranks = enumerate(np.argsort(-row, kind="stable")[:top])
                best = [number for rank, number in ranks if row[number] >= threshold or (rank == 0 and not several)]
            terms[id_of(chain)] = [
                {"term": named[number][0], "name": named[number][1], figure: float(row[number])} for number in best
            ]
        return {"terms": terms, "files": {chain: given.file_of(chain) for chain in terms}}

    settings = {"verb": "annotate", "checkpoint": Path(checkpoint).name, "weights": digest_weights(model), "top": top}
    settings |= {"dtype": dtype, "threshold": threshold, "without_coords": without_coords, "window": window}
    if not several:
        settings |= {"predicts": kind}
    with parts_beside(output, given) as folder:
        outcome = run_parts(given, folder, settings, work, progress)
        found: dict[str, list[dict[str, Any]]] = {}
        files: dict[str, str] = {}
        for record in outcome.records:
            here: dict[str, str] = record.get("files", {})  # a part of an older version has none
            for chain, terms in record.get("terms", {}).items():
                if found.setdefault(chain, terms) is terms:
                    files[chain] = here.get(chain, "")
                else:
                    reason = "a chain of another part has this id, too; rename one"
                    outcome.rejects.append((here.get(chain, ""), chain, reason))
        if without := [chain for chain, terms in found.items() if not terms]:
            which = f"{counted(len(without), 'chain')} without a term of probability {threshold:g} or more"
            logger.warning("%s; the first: %s", which, without[0])
        outcome.list_rejects(None if output is None else Path(output).with_suffix(".rejected.tsv"))
        if output is not None and outcome.complete:
            if Path(output).suffix == ".json":
                write_json(Path(output), found)
            else:
                write_text(Path(output), describe(found, files) + "\n")
    return found


def describe(found: Mapping[str, Sequence[Mapping[str, Any]]], files: Mapping[str, str] | None = None) -> str:
    """The terms as a table, tab-separated; of a regression with values in place of probabilities.

    The last column is `file` where `files` has those that the chains come from.
    """
    figure = "value" if any("value" in each for terms in found.values() for each in terms) else "probability"
    form = ".6g" if figure == "value" else ".4f"
    lines = [f"chain\tterm\tname\t{figure}" + ("" if files is None else "\tfile")]
    for chain, terms in found.items():
        for each in terms:
            cells = (" ".join(str(text).split()) for text in (chain, each["term"], each["name"]))
            end = () if files is None else (" ".join(files[chain].split()),)
            lines.append("\t".join((*cells, f"{each[figure]:{form}}", *end)))
    return "\n".join(lines)
