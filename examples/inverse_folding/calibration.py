"""Is a model as sure as it should be? The temperature of its logits that fits held-out chains best, and what it gains.

    python examples/inverse_folding/calibration.py --data CHAINS.parquet \
        --model coordformer-7M-pdb hub_cards/coordformer-7M-pdb

The temperature is fitted to masked residues (`masked15`) of the half of the held-out clusters that is there to choose,
with coordinates as deposited, and looked at in the other half (see noise.py). --results gets one JSON file: by model
and width of the noise perplexity of the other half at 1 and at that temperature; by how much it is lower, as a share;
and the expected calibration error of both: the mean, over fifteenths of equally many residues, of the difference
between the mean probability of the likeliest letter and the share of residues that have it (Guo et al. 2017,
arXiv:1706.04599; there bins are of equal width). Intervals are 95 % of a bootstrap over clusters.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from noise import held_out
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]

from coordformer import build_tokenizer
from coordformer.data.files import write_json
from coordformer.inference.checkpoints import digest_weights, load_checkpoint
from coordformer.inference.masked import predict_masked
from coordformer.inference.metrics import COUNT, NLL, bootstrap, count_predictions
from coordformer.model.processing_coordformer import letter_ids

HERE = Path(__file__).parent
BINS = 15
LOWEST, HIGHEST = 0.5, 3.0  # temperatures

Predicted = Sequence[tuple[torch.Tensor, torch.Tensor]]  # of each chain logits (asked, vocabulary) and labels (asked,)


def letters_alone(predicted: Predicted, letters: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (n, 20) and the index of the right letter (n,), of all chains."""
    logits = torch.cat([each for each, _ in predicted])[:, letters]
    places = torch.full((max(letters) + 1,), -1)
    places[letters] = torch.arange(len(letters))
    return logits, places[torch.cat([labels for _, labels in predicted])]


def fit_temperature(logits: torch.Tensor, right: torch.Tensor) -> float:
    """The temperature of least cross-entropy."""

    def loss(temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits / temperature, right))

    return float(minimize_scalar(loss, bounds=(LOWEST, HIGHEST), method="bounded", options={"xatol": 1e-3}).x)


def calibration_error(logits: torch.Tensor, right: torch.Tensor) -> float:
    """Expected calibration error of the likeliest letter."""
    sure, letter = logits.softmax(dim=-1).max(dim=-1)
    order, hit = sure.argsort(), (letter == right).float()
    parts = zip(sure[order].tensor_split(BINS), hit[order].tensor_split(BINS), strict=True)
    return float(sum(abs(a.sum() - b.sum()) for a, b in parts) / len(right))


def table(report: dict[str, Any]) -> list[str]:
    """A row for each model of a report and width of the noise, as Markdown."""
    lines = ["| model | temperature | noise | perplexity | at that temperature | lower by | calibration error |"]
    lines.append("|" + " --- |" * 7)
    for name, model in report["models"].items():
        for noise, found in model["noise"].items():
            before, after = (f"{each:.2f}" for each in found["perplexity"])
            shares = found["gain"], *found["gain_interval"]
            gain, low, high = (round(100 * each, 1) + 0.0 for each in shares)  # no -0.0
            sure = ", then ".join(f"{100 * each:.1f} %" for each in found["calibration_error"])
            cells = [name, f"{model['temperature']:.2f}", f"{noise} Å", before, after]
            lines.append("| " + " | ".join([*cells, f"{gain:.1f} % ({low:.1f} to {high:.1f})", sure]) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, metavar="CHAINS.parquet")
    parser.add_argument("--model", nargs=2, action="append", required=True, metavar=("NAME", "FOLDER"))
    parser.add_argument("--noise", nargs="+", type=float, default=[0.0, 0.2], help="Å (default: 0 0.2)")
    parser.add_argument("--num_chains", type=int, default=150, help="of each half, at random (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "calibration.json", metavar="FILE.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = build_tokenizer()
    letters = list(letter_ids(tokenizer).values())
    halves = held_out(arguments.data, "valid", ["choose", "test"], arguments.num_chains)
    models: dict[str, Any] = {}
    for name, folder in arguments.model:
        model = load_checkpoint(folder)[0]

        def predict(half: str, noise: float, model: Any = model) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
            asked = predict_masked(model, halves[half][0], tokenizer, noise=noise, token_budget=2048)
            return {number: (logits[0], labels) for number, labels, logits in asked}

        temperature = fit_temperature(*letters_alone(list(predict("choose", 0.0).values()), letters))
        models[name] = {"weights": digest_weights(model), "temperature": temperature, "noise": {}}
        for noise in arguments.noise:
            found, (rows, clusters) = predict("test", noise), halves["test"]
            counts = {scale: np.zeros((len(rows), model.config.vocab_size, 3)) for scale in (1.0, temperature)}
            for number, (logits, labels) in found.items():
                for scale, each in counts.items():
                    each[number] = count_predictions(logits[None] / scale, labels[None], letters)[0]
            both = bootstrap({str(scale): each for scale, each in counts.items()}, clusters)
            gain = both[str(temperature)]
            sums = {scale: each.sum(axis=(0, 1)) for scale, each in counts.items()}
            logits, right = letters_alone(list(found.values()), letters)
            models[name]["noise"][f"{noise:g}"] = {
                "perplexity": [float(np.exp(each[NLL] / each[COUNT])) for each in sums.values()],
                "gain": gain["gain"],
                "gain_interval": gain["gain_interval"],
                "calibration_error": [calibration_error(logits / scale, right) for scale in counts],
            }
    chains = {half: len(rows) for half, (rows, _) in halves.items()}
    report = {"protocol": "masked15", "chains": chains, "bins": BINS, "models": models}
    write_json(arguments.results, report)
    print("\n".join(table(report)))


if __name__ == "__main__":
    main()
