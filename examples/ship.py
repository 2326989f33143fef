"""What was trained as a folder like those of hub_cards/: weights, records and card, no code.

    python examples/ship.py runs/mpnn-ca/run hub_cards/coordformer-mpnn-ca --data CHAINS.parquet
    python examples/ship.py runs/8M/run hub_cards/coordformer-8M-backbone --data BACKBONES.parquet --temperature 1.09
    python examples/ship.py runs/function/full_with_coordinates_0 hub_cards/coordformer-1M-ec
    python examples/ship.py contacts_output/head_both hub_cards/coordformer-1M-contacts

The run of a masked language model is one of `coordformer train`. With --data its rounded weights are evaluated on the
held-out chains, with coordinates and without (ProteinMPNN's layers only with). --temperature divides its logits, as
examples/inverse_folding/calibration.py found that they should be. The others are what examples/function/function.py or
examples/contacts/contacts.py left, with what it measured in evaluation.json, and in words in evaluation.md. The card is
that of `coordformer export`, with these numbers or words for its evaluation.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from coordformer.data.files import write_json, write_text
from coordformer.data.training_sequences import FILE
from coordformer.hub.card import make_card, read_evaluation, training_facts
from coordformer.hub.export import export
from coordformer.inference.checkpoints import load_checkpoint
from coordformer.inference.evaluate import evaluate
from coordformer.training.from_proteinmpnn import LICENSE_FILE

WEIGHTS = ("model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
RECORDS = ("run.json", "train.json", "log.csv")
WHERE_THERE = (LICENSE_FILE, FILE)  # of some models alone
UNKNOWN = "Not measured."  # of a card without reports of `coordformer evaluate`


def divide_logits(run: Path, temperature: float, output: Path) -> None:
    """A copy of a run whose logits are divided by `temperature`, in the last weights; `train.json` says so."""
    shutil.copytree(run, output, ignore=shutil.ignore_patterns("checkpoint-*"))
    model = load_checkpoint(run)[0]
    head = model.lm_head
    last = list(head.parameters() if model.config.lm_head == "linear" else head.layer_norm.parameters())
    last += [] if model.config.lm_head == "linear" else [head.decoder.bias]
    with torch.no_grad():
        for parameter in last:
            parameter.div_(temperature)
    model.save_pretrained(output)
    record = json.loads((output / "train.json").read_text(encoding="utf-8"))
    write_json(output / "train.json", record | {"temperature": temperature})


def ship(
    run: Path, output: Path, data: Path | None = None, split: str = "valid", temperature: float | None = None
) -> None:
    """Export in bfloat16, checked, and keep what a folder needs where the package is installed.

    Args:
        run: of the training.
        output: the folder to make.
        data, split: of a masked language model, the chains to evaluate it on.
        temperature: of a masked language model, what its logits are divided by.

    Raises:
        ValueError: the output is there already, or cannot be exported.
        OSError: a record is missing.
    """
    if output.exists():
        raise ValueError(f"{output} exists already; delete it or give the name of a new folder.")
    words = None if data else (run / "evaluation.md").read_text(encoding="utf-8").strip()
    with tempfile.TemporaryDirectory() as scratch:
        if temperature is not None:
            calibrated = Path(scratch) / "run"
            divide_logits(run, temperature, calibrated)
            run = calibrated
        exported = Path(scratch) / output.name
        export(run, exported, dtype="bfloat16")
        config = json.loads((exported / "config.json").read_text(encoding="utf-8"))
        config.pop("custom_pipelines", None)  # which are code
        output.mkdir(parents=True)
        write_json(output / "config.json", config)
        there = [name for name in WHERE_THERE if (exported / name).exists()]
        for folder, names in ((exported, (*WEIGHTS, *there)), (run, RECORDS)):
            for name in names:
                shutil.copy(folder / name, output / name)
    if words is not None:
        shutil.copy(run / "evaluation.json", output / "evaluation.json")
        write_card(output, words)
        return
    with tempfile.TemporaryDirectory() as scratch:  # figures and parts stay there
        for name, without_coords in (("evaluation", False), ("evaluation_1", True)):
            if without_coords and config["encoder_type"] == "proteinmpnn" and not config["partial_backbones"]:
                continue  # it then says the same of every residue
            report = Path(scratch) / f"{name}.json"
            options: Any = {"num_mask_samples": 1, "token_budget": 2048, "without_coords": without_coords}
            evaluate(output, str(data), split=split, output=report, **options)
            shutil.copy(report, output / report.name)
    write_card(output)


def write_card(folder: Path, words: str | None = None) -> None:
    """Write a card, or write it anew, as after a change of hub_cards/template.md; `words` are its evaluation."""
    model = load_checkpoint(folder, "bfloat16", any_head=True)[0]
    paths = (folder / name for name in ("evaluation.json", "evaluation_1.json"))
    reports = [read_evaluation(path, folder) for path in paths if path.exists()] if words is None else []
    facts: Any = {"training": training_facts(folder), "log": "log.csv", "with_code": False}
    card = str(make_card(model, folder.name, evaluations=reports, **facts))
    write_text(folder / "README.md", card.replace(f"\n{UNKNOWN}\n", f"\n{words}\n") + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--data", type=Path, help="chains to evaluate a masked language model on")
    parser.add_argument("--temperature", type=float, help="divides the logits of a masked language model")
    parser.add_argument("--split", default="valid", help="of these (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        ship(**vars(arguments))
    except (ValueError, OSError) as error:
        sys.exit(str(error))
