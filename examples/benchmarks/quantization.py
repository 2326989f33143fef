"""What quantized weights change: amino-acid logits and perplexity of the shipped models, each method against float32.

    pip install -e ".[quantization]"
    python examples/benchmarks/quantization.py
    python examples/benchmarks/quantization.py --chains CHAINS.parquet --count 200 --output runs/quantization.json

Methods are used as their makers or Transformers document them; one that is not installed is left out, and said. Logits:
differences of those of the 20 amino acids from float32, at all residues, no residue masked. Perplexity: protocol
masked15, the same residues masked for all; intervals are a bootstrap over sequence clusters where the data has them,
else over chains, and the same draws give that of the difference. Bytes are those of weights as they lie in memory,
embeddings and what stays in float32 included. On a CPU; the weights are the models', so one run is enough.
"""

import argparse
import copy
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import write_record
from torch import nn
from transformers import AutoModelForMaskedLM, BitsAndBytesConfig, PreTrainedModel, QuantoConfig, TorchAoConfig

from coordformer import CoordformerProcessor, StructureError, read_chains
from coordformer.data.pack import open_chains
from coordformer.inference.masked import count_chains
from coordformer.inference.metrics import COUNT, NLL, interval, resample
from coordformer.model.processing_coordformer import letter_ids

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
MODELS = ("coordformer-1M-pdb", "coordformer-7M-pdb")
# Reading from attention and messages: a few large activations there take the one scale that torch.ao has for all.
WIDE = ("attention.output.dense", "message_passing.output")
Load = Callable[[Path], PreTrainedModel]


def load(folder: Path, **options: Any) -> PreTrainedModel:
    return AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


def dynamic(folder: Path, per_channel: bool = False, skip: tuple[str, ...] = ()) -> PreTrainedModel:
    """torch.ao: weights in 8 bits, activations too, by one scale for all tokens of a layer."""
    ao, model = torch.ao.quantization, load(folder)
    kind = ao.per_channel_dynamic_qconfig if per_channel else ao.default_dynamic_qconfig
    kept = {name: None for name, _ in model.named_modules() if name.endswith(skip)} if skip else {}
    return ao.quantize_dynamic(copy.deepcopy(model), {nn.Linear: kind} | kept)


def bitsandbytes_4bit(folder: Path, kind: str) -> PreTrainedModel:
    options = {"bnb_4bit_quant_type": kind, "bnb_4bit_compute_dtype": torch.float32}
    return load(folder, quantization_config=BitsAndBytesConfig(load_in_4bit=True, **options))


def torchao(folder: Path, name: str) -> PreTrainedModel:
    import torchao.quantization as kinds

    return load(folder, quantization_config=TorchAoConfig(getattr(kinds, name)()))


METHODS: dict[str, tuple[str, Load]] = {  # with the package that each needs
    "optimum-quanto, int8": ("optimum", lambda folder: load(folder, quantization_config=QuantoConfig("int8"))),
    "torchao, int8 weights": ("torchao", lambda folder: torchao(folder, "Int8WeightOnlyConfig")),
    "torchao, int8 weights and activations": (
        "torchao",
        lambda folder: torchao(folder, "Int8DynamicActivationInt8WeightConfig"),
    ),
    "bitsandbytes, 8 bit": (
        "bitsandbytes",
        lambda folder: load(folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True)),
    ),
    "torch.ao dynamic": ("torch", dynamic),
    "torch.ao dynamic, per channel": ("torch", lambda folder: dynamic(folder, per_channel=True)),
    "torch.ao dynamic, per channel, wide layers in float32": (
        "torch",
        lambda folder: dynamic(folder, per_channel=True, skip=WIDE),
    ),
    "bitsandbytes, 4 bit, nf4": ("bitsandbytes", lambda folder: bitsandbytes_4bit(folder, "nf4")),
    "bitsandbytes, 4 bit, fp4": ("bitsandbytes", lambda folder: bitsandbytes_4bit(folder, "fp4")),
}


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    """The plain tensors that hold a weight, however it is packed."""
    if isinstance(value, torch._C.ScriptObject):  # of torch.ao: weight and bias
        for each in value.__getstate__()[0] if hasattr(value, "__getstate__") else value.unpack():
            yield from tensors_of(each)
    elif isinstance(value, torch.Tensor):
        if hasattr(value, "__tensor_flatten__"):  # torchao, quanto
            for name in value.__tensor_flatten__()[0]:
                yield from tensors_of(getattr(value, name))
        else:
            yield value
            state = getattr(value, "quant_state", None)  # bitsandbytes, 4 bit
            if state is not None:
                yield state.absmax
            if (scales := getattr(value, "SCB", None)) is not None:  # 8 bit
                yield scales


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights; of tied ones once."""
    found: dict[int, int] = {}

    def add(tensor: torch.Tensor) -> None:
        size = tensor.int_repr().numel() if tensor.is_quantized else tensor.numel() * tensor.element_size()
        if tensor.is_quantized and tensor.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
            size += sum(
                x.numel() * x.element_size()
                for x in (tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points())
            )
        found[id(tensor) if tensor.is_quantized else tensor.data_ptr()] = size

    kept = []  # so that no two have one address
    for module in model.modules():
        if isinstance(module, torch.ao.nn.quantized.dynamic.Linear):
            kept += [each for each in module._weight_bias() if each is not None]
        else:
            for parameter in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                kept += tensors_of(parameter)
    for tensor in kept:
        add(tensor)
    return sum(found.values())


def open_data(options: argparse.Namespace) -> tuple[list[Any], np.ndarray | None]:
    """The chains, and their sequence clusters."""
    if options.chains is None:
        chains = []
        for file in options.structures:
            try:
                chains += [chain for chain in read_chains(file) if chain.observed.any()]
            except StructureError as error:
                print(f"left out: {error}", file=sys.stderr)
        return chains, None
    rows = open_chains(options.chains, options.split)
    chosen = np.random.default_rng(0).permutation(len(rows))[: options.count]
    chains = [rows[int(number)] for number in sorted(chosen)]
    clusters = np.array([chain["cluster"] for chain in chains]) if "cluster" in chains[0] else None
    return chains, clusters


@torch.no_grad()
def logits_of(model: PreTrainedModel, processor: CoordformerProcessor, chains: list[Any]) -> torch.Tensor:
    """Of the 20 amino acids: (residues, 20)."""
    letters = list(letter_ids(processor.tokenizer).values())
    return torch.cat([model(**processor(chains=[chain])).logits[0, 1:-1, letters].float() for chain in chains])


def perplexity(counts: np.ndarray) -> Any:
    """Of sums (..., 3)."""
    return np.exp(counts[..., NLL] / counts[..., COUNT])


def measure(name: str, chains: list[Any], clusters: np.ndarray | None, options: argparse.Namespace) -> dict[str, Any]:
    folder = ROOT / "hub_cards" / name
    processor = CoordformerProcessor.from_pretrained(folder)

    def predict(model: PreTrainedModel) -> tuple[torch.Tensor, np.ndarray]:
        samples = count_chains(
            model, chains, processor.tokenizer, num_mask_samples=options.num_mask_samples, progress=False
        )
        return logits_of(model, processor, chains), samples.sum(axis=(0, 2))  # (chains, 3)

    model = load(folder)
    expected, before = predict(model)
    known = before[:, COUNT] > 0
    groups = None if clusters is None else clusters[known]
    float32 = {"bytes": weight_bytes(model), "perplexity": float(perplexity(before.sum(axis=0)))}
    float32["perplexity_interval"] = interval(perplexity(resample(before[known], clusters=groups)))
    report: dict[str, Any] = {"residues": len(expected), "predictions": int(before[:, COUNT].sum()), "float32": float32}
    for method, (package, build) in METHODS.items():
        if find_spec(package) is None:
            report[method] = None
            continue
        quantized = build(folder)
        found, after = predict(quantized)
        away = (found - expected).abs()
        both = resample(np.stack((before, after), axis=1)[known], clusters=groups)
        report[method] = {
            "mean_difference": float(away.mean()),
            "max_difference": float(away.max()),
            "same_letter": float((found.argmax(-1) == expected.argmax(-1)).float().mean()),
            "perplexity": float(perplexity(after.sum(axis=0))),
            "perplexity_interval": interval(perplexity(both[:, 1])),
            "perplexity_difference": float(perplexity(after.sum(axis=0)) - perplexity(before.sum(axis=0))),
            "perplexity_difference_interval": interval(perplexity(both[:, 1]) - perplexity(both[:, 0])),
            "bytes": weight_bytes(quantized),
        }
        print(name, method, json.dumps(report[method]), file=sys.stderr, flush=True)
    return report


def table(models: dict[str, dict[str, Any]]) -> str:
    lines = ["| method | " + " | ".join(f"{name}: logits, mean (max) | perplexity | MB" for name in models) + " |"]
    lines += ["| --- |" + " ---: | ---: | ---: |" * len(models)]
    for method in ("float32", *METHODS):
        cells = []
        for report in models.values():
            row = report[method]
            if row is None:
                cells += ["not installed", "", ""]
                continue
            moved = f"{row['mean_difference']:.3f} ({row['max_difference']:.2f})" if method != "float32" else ""
            value = f"{row['perplexity']:.3f}"
            if method != "float32":
                low, high = row["perplexity_difference_interval"]
                value = f"{row['perplexity_difference']:+.3f} ({low:+.3f} to {high:+.3f})"
            cells += [moved, value, f"{row['bytes'] / 1e6:.1f}"]
        lines.append(f"| {' | '.join([method, *cells])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", type=Path, nargs="+", help="files; default: tests/data/structures")
    parser.add_argument("--chains", type=Path, help="data set of `coordformer prepare`, in place of files")
    parser.add_argument("--split", default="valid")
    parser.add_argument("--count", type=int, default=16, help="chains of the data set")
    parser.add_argument("--num_mask_samples", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="the first two structures, one mask sample")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "quantization.json")
    options = parser.parse_args()
    warnings.filterwarnings(
        "ignore", message=".*(torch.ao.quantization is deprecated|will be cast from|cast to float16).*"
    )
    torch.set_num_threads(options.threads)
    options.structures = options.structures or sorted((ROOT / "tests" / "data" / "structures").iterdir())
    chains, clusters = open_data(options)
    if options.quick:
        chains, clusters, options.num_mask_samples = chains[:2], None, 1
    models = {name: measure(name, chains, clusters, options) for name in MODELS}
    print(table(models))
    record = {
        "chains": len(chains),
        "clusters": None if clusters is None else len(set(clusters)),
        "protocol": "masked15",
    }
    record |= {"num_mask_samples": options.num_mask_samples, "models": models}
    write_record(options.output, record, ("torch", "transformers", "torchao", "optimum-quanto", "bitsandbytes"))


if __name__ == "__main__":
    main()
