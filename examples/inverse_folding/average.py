"""The mean of the weights of several checkpoints of one training, as a model of its own.

    python examples/inverse_folding/average.py runs/pdb/checkpoint-7000 runs/pdb/checkpoint-7500 --output runs/mean
    coordformer evaluate runs/mean CHAINS.parquet --split valid

At a constant learning rate weights wander about a mean that is better than each of them (Izmailov et al. 2018).
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, AutoProcessor

import coordformer  # noqa: F401  # so that the Auto classes know Coordformer


def average(checkpoints: list[Path], output: Path) -> None:
    """Write the mean of the parameters, taken in float64, with the config and processor of the first checkpoint."""
    model = AutoModelForMaskedLM.from_pretrained(checkpoints[0])
    total = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    for checkpoint in checkpoints[1:]:
        other = dict(AutoModelForMaskedLM.from_pretrained(checkpoint).named_parameters())
        if {(name, value.shape) for name, value in other.items()} != {(n, v.shape) for n, v in total.items()}:
            raise ValueError(
                f"{checkpoint} and {checkpoints[0]} are different models; give checkpoints of one training."
            )
        total = {name: value + other[name].detach().double() for name, value in total.items()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(total[name] / len(checkpoints))
    model.save_pretrained(output)
    AutoProcessor.from_pretrained(checkpoints[0]).save_pretrained(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    arguments = parser.parse_args()
    average(arguments.checkpoints, arguments.output)


if __name__ == "__main__":
    main()
