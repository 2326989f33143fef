"""Time and peak memory of one structure layer, forward and backward, against the number of points.

    pip install egnn-pytorch==0.2.8 se3-transformer-pytorch==0.9.0 equiformer-pytorch==0.5.4
    python examples/benchmarks/structure_layers.py

Every layer takes 128 numbers a point and coordinates (a random walk of 3.8 Å steps), batch 1, float32, and its own work
on the coordinates counts: distances, neighbors, bases. `KINDS` says what each is; without its package it is left out.
Gradients go to the weights and the 128 numbers; the coordinates are data.

Memory is measured first, in a fresh process for each layer and size: the peak of one pass above what the process holds
after a pass over few points; resident memory on the CPU (Linux only), allocated memory on CUDA. At a size that passes
the limit of memory or time, a layer stops. The others are then timed in one process, in turns; the time is the median
over the repeats. Growth is the exponent of a power of the number of points, fitted to the logarithms by least squares
from 256 points on, or to the last three sizes where a layer reached fewer than three of these.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from harness import CUDA, in_fresh_process, peak, start_of_peak, take_turns, write_record
from torch import nn

HERE = Path(__file__).parent
DEVICE = torch.device("cuda" if CUDA else "cpu")
WIDTH, HEADS, NEIGHBOURS, FEW_POINTS = 128, 8, 32, 40
os.environ["CLEAR_CACHE"] = "1"  # keeps two of the packages from writing to the home directory


class Coordformer(nn.Module):
    def __init__(self):
        super().__init__()
        from coordformer import CoordformerConfig, CoordformerModel

        shape = dict(hidden_size=WIDTH, num_attention_heads=HEADS, intermediate_size=4 * WIDTH, num_hidden_layers=1)
        self.model = CoordformerModel(CoordformerConfig(**shape, attn_implementation="sdpa"))
        self.model.esm.embeddings.requires_grad_(False)  # no tokens here

    def forward(self, features: torch.Tensor, coords: torch.Tensor):
        return (self.model(inputs_embeds=features, coords=coords).last_hidden_state,)


class PairBias(nn.Module):
    """A Transformer layer whose attention logits get a bias from the distance of the two points.

    The pair tensor is 16 Gaussians of the distance, 2 to 22 Å: far narrower than AlphaFold 2's, and nothing updates it.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("centers", torch.linspace(2, 22, 16))
        self.bias = nn.Linear(16, HEADS, bias=False)
        self.norm, self.norm_after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.project_in, self.project_out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.feed_forward = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, features: torch.Tensor, coords: torch.Tensor):
        pairs = torch.exp(-((torch.cdist(coords, coords).unsqueeze(-1) - self.centers) / 1.25).square())
        query, key, value = self.project_in(self.norm(features)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        bias = self.bias(pairs).movedim(-1, 1)
        heads = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        features = features + self.project_out(heads.transpose(1, 2).flatten(-2))
        return (features + self.feed_forward(self.norm_after(features)),)


class PassOn(nn.Module):
    """In place of the convolution before the first layer."""

    def forward(self, features, *args, **kwargs):
        return features


class ScalarsAndVectors(nn.Module):
    """The 128 numbers of a point as 32 scalars and 32 vectors."""

    def __init__(self, layer: nn.Module, scalar: int | str, vector: int | str):
        super().__init__()
        self.layer, self.scalar, self.vector = layer, scalar, vector

    def forward(self, features: torch.Tensor, coords: torch.Tensor):
        scalars, vectors = features.split((WIDTH // 4, WIDTH - WIDTH // 4), dim=-1)
        outputs = self.layer({self.scalar: scalars.unsqueeze(-1), self.vector: vectors.unflatten(-1, (-1, 3))}, coords)
        return tuple(outputs.values() if isinstance(outputs, dict) else outputs)


def egnn(neighbors: int = 0) -> nn.Module:
    from egnn_pytorch import EGNN

    return EGNN(dim=WIDTH, num_nearest_neighbors=neighbors)


def se3_transformer(neighbors: float = float("inf")) -> nn.Module:
    from se3_transformer_pytorch import SE3Transformer

    shape = dict(dim=WIDTH // 4, heads=HEADS, dim_head=WIDTH // 4 // HEADS, depth=1, num_degrees=2, input_degrees=2)
    layer = SE3Transformer(**shape, output_degrees=None, num_neighbors=neighbors)  # no convolution after the layer
    layer.conv_in = PassOn()
    return ScalarsAndVectors(layer, "0", "1")


def equiformer(neighbors: float = float("inf")) -> nn.Module:
    from equiformer_pytorch import Equiformer

    dim = (WIDTH // 4, WIDTH // 4)
    shape = dict(dim=dim, dim_in=dim, heads=HEADS, dim_head=dim[0] // HEADS, depth=1, num_degrees=2, input_degrees=2)
    layer = Equiformer(**shape, num_neighbors=neighbors)
    layer.tp_in = PassOn()
    return ScalarsAndVectors(layer, 0, 1)


class Kind(NamedTuple):
    build: Callable[[], nn.Module]
    package: str
    line: str
    settings: str


OURS = "coordinate embedding, one EsmLayer, last LayerNorm: width 128, 8 heads, feed-forward 4x, rotary positions, SDPA"
PAIR_BIAS = "this script's: 16 Gaussians of each distance to a bias a head, SDPA: width 128, 8 heads, feed-forward 4x"
MESSAGES = "width 128, messages of 16, updates the coordinates too, no heads: the package's defaults"
DEGREES = "32 scalars and 32 vectors, 8 heads of 4, feed-forward 4x, no convolution before or after, else the defaults"
L2 = f"{DEGREES} (attention by distance of query and key)"
KINDS = {
    "coordformer": Kind(Coordformer, "transformers", "C0-", OURS),
    "pair bias": Kind(PairBias, "torch", "C1-", PAIR_BIAS),
    "EGNN": Kind(egnn, "egnn-pytorch", "C2-", MESSAGES),
    "EGNN, 32 nearest": Kind(partial(egnn, NEIGHBOURS), "egnn-pytorch", "C2--", MESSAGES),
    "SE(3)-Transformer": Kind(se3_transformer, "se3-transformer-pytorch", "C3-", DEGREES),
    "SE(3)-Transformer, 32 nearest": Kind(
        partial(se3_transformer, NEIGHBOURS), "se3-transformer-pytorch", "C3--", DEGREES
    ),
    "Equiformer": Kind(equiformer, "equiformer-pytorch", "C4-", L2),
    "Equiformer, 32 nearest": Kind(partial(equiformer, NEIGHBOURS), "equiformer-pytorch", "C4--", L2),
}


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    layer = KINDS[kind].build()
    for weight in layer.parameters():
        if not weight.any():  # an output that starts at zero would keep gradients from what lies before it
            nn.init.normal_(weight, std=0.02)
    return layer.to(DEVICE)


def draw_points(points: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (1, points, 128), which ask for a gradient, and coordinates (1, points, 3) in Å."""
    generator = torch.Generator().manual_seed(points)
    features = torch.randn(1, points, WIDTH, generator=generator)
    steps = nn.functional.normalize(torch.randn(1, points, 3, generator=generator), dim=-1)
    return features.to(DEVICE).requires_grad_(), (3.8 * steps).cumsum(dim=1).to(DEVICE)


def forward_and_backward(layer: nn.Module, features: torch.Tensor, coords: torch.Tensor) -> tuple[torch.Tensor, ...]:
    layer.zero_grad()
    features.grad = None
    outputs = layer(features, coords)
    sum(output.square().mean() for output in outputs).backward()
    if CUDA:
        torch.cuda.synchronize()
    return outputs


def check(kind: str, layer: nn.Module) -> None:
    """All numbers are finite, and gradients reach the features, the coordinates and every weight."""
    features, coords = draw_points(FEW_POINTS)
    outputs = forward_and_backward(layer, features, coords.requires_grad_())
    gradients = {name: weight.grad for name, weight in layer.named_parameters() if weight.requires_grad}
    gradients |= {"features": features.grad, "coords": coords.grad}
    idle = [name for name, gradient in gradients.items() if gradient is None or not gradient.any()]
    assert not idle, f"{kind}: no gradient reaches {', '.join(idle)}"
    assert all(values.isfinite().all() for values in (*outputs, *gradients.values())), f"{kind}: not finite"


def measure(kind: str, points: int, options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory and time of one pass; passing a limit ends this process."""
    layer = build(kind)
    forward_and_backward(layer, *draw_points(FEW_POINTS))
    layer.zero_grad()
    gc.collect()
    features, coords = draw_points(points)
    before = start_of_peak(options.memory_limit, options.time_limit)
    start = time.perf_counter()
    outputs = forward_and_backward(layer, features, coords)
    seconds = time.perf_counter() - start
    after = peak()
    assert all(values.isfinite().all() for values in (*outputs, features.grad)), "not finite"
    return {"bytes": after - before, "seconds": seconds}


def measure_in_fresh_process(kind: str, points: int, options: argparse.Namespace) -> dict[str, Any]:
    limits = [f"--{name}={getattr(options, name)}" for name in ("time_limit", "memory_limit", "threads")]
    arguments = ["--measure", kind, "--sizes", str(points), *limits]
    return in_fresh_process(arguments, options.memory_limit, options.time_limit)


def seconds_a_pass(
    layer: nn.Module, features: torch.Tensor, coords: torch.Tensor, clock: Callable[[], float] = time.perf_counter
) -> float:
    passes, start = 0, clock()
    while passes == 0 or clock() - start < 0.2:
        forward_and_backward(layer, features, coords)
        passes += 1
    return (clock() - start) / passes


def growth(values: Mapping[int, float]) -> float | None:
    sizes = [points for points in values if points >= 256]
    sizes = sizes if len(sizes) >= 3 else list(values)[-3:]
    if len(sizes) < 2:
        return None
    return float(np.polyfit(np.log(sizes), np.log([values[points] for points in sizes]), 1)[0])


def print_table(title: str, sizes: list[int], rows: Mapping[str, Mapping[int, float]], unit: float) -> None:
    print(f"\n| {title} | {' | '.join(map(str, sizes))} | growth |\n| --- |{' ---: |' * (len(sizes) + 1)}")
    for kind, row in rows.items():
        cells = [f"{row[points] / unit:,.1f}" if points in row else "" for points in sizes]
        exponent = growth(row)
        print(f"| {kind} | {' | '.join(cells)} | {'' if exponent is None else f'{exponent:.2f}'} |")


def draw(path: Path, title: str, seconds: Mapping[str, dict[int, float]], memory: Mapping[str, dict[int, int]]) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return print(f"{path} was not drawn: pip install matplotlib")
    figure = Figure(figsize=(12, 7), layout="constrained")
    figure.suptitle(title)
    panels = ((seconds, 1e-3, "forward and backward (ms)"), (memory, 2**20, "peak memory (MiB)"))
    for axes, (rows, unit, label) in zip(figure.subplots(1, 2), panels, strict=True):
        for kind, row in rows.items():
            exponent = growth(row)
            name = kind if exponent is None else f"{kind}: $n^{{{exponent:.1f}}}$"
            axes.plot(list(row), [value / unit for value in row.values()], KINDS[kind].line, marker="o", label=name)
        sizes = sorted({points for row in rows.values() for points in row})
        axes.set(xlabel="points n", ylabel=label, xscale="log", yscale="log")
        axes.set_xticks(sizes, map(str, sizes))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=2, fontsize="small", handlelength=3.5)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--processor_time", action="store_true", help="seconds of the processor, for one thread")
    parser.add_argument("--repeats", type=int, default=7, help="fewer, but at least 3, where they would take a minute")
    parser.add_argument("--time_limit", type=int, default=60, help="seconds for one forward and backward pass")
    parser.add_argument("--memory_limit", type=float, default=6.0, help="GiB")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="64 to 256 points, 3 repeats")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "structure_layers.json")
    parser.add_argument("--measure", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.measure:
        print(json.dumps(measure(options.measure, options.sizes[0], options)))
        return
    sizes, repeats = ([64, 128, 256], 3) if options.quick else (sorted(options.sizes), options.repeats)

    layers: dict[str, nn.Module] = {}
    stopped: dict[str, str] = {}
    for kind in options.kinds:
        try:
            layers[kind] = build(kind)
        except ImportError as error:
            stopped[kind] = f"left out: {error}"
        else:
            check(kind, layers[kind])

    memory: dict[str, dict[int, int]] = {kind: {} for kind in layers}
    raw: dict[str, dict[int, list[float]]] = {kind: {} for kind in layers}
    for points in sizes:
        once: dict[str, float] = {}
        for kind in [kind for kind in layers if kind not in stopped]:
            result = measure_in_fresh_process(kind, points, options)
            if "reason" in result:
                stopped[kind] = f"stopped at {points} points: {result['reason']}"
            else:
                memory[kind][points], once[kind] = result["bytes"], result["seconds"]
        inputs = draw_points(points)
        clock = time.process_time if options.processor_time else time.perf_counter
        sides = {kind: partial(seconds_a_pass, layers[kind], *inputs, clock) for kind in once}
        turns = min(repeats, max(3, int(60 / sum(once.values())))) if once else 0
        for kind, times in take_turns(sides, turns).items():
            raw[kind][points] = times
        print(f"{points} points: {len(once)} layers, {turns} turns", file=sys.stderr, flush=True)

    seconds = {kind: {points: statistics.median(times) for points, times in row.items()} for kind, row in raw.items()}
    parameters = {kind: sum(w.numel() for w in layer.parameters() if w.requires_grad) for kind, layer in layers.items()}
    print_table("forward and backward (ms)", sizes, seconds, 1e-3)
    print_table("peak memory (MiB)", sizes, memory, 2**20)
    print()
    for kind in options.kinds:
        _, package, _, settings = KINDS[kind]
        numbers = f"{parameters[kind]:,} parameters; " if kind in layers else ""
        print(f"- {kind} ({package}): {settings}; {numbers}{stopped.get(kind, 'reached the last size')}")
    record = {
        "threads": options.threads,
        "of": "processor" if options.processor_time else "clock",
        "settings": {kind: KINDS[kind].settings for kind in KINDS},
        "parameters": parameters,
        "stopped": stopped,
        "growth_of_time": {kind: growth(row) for kind, row in seconds.items()},
        "growth_of_memory": {kind: growth(row) for kind, row in memory.items()},
        "seconds": seconds,
        "peak_bytes": memory,
        "seconds_of_each_turn": raw,
    }
    write_record(options.output, record, tuple(dict.fromkeys(KINDS[kind].package for kind in layers)))
    title = f"One layer; a line ends early where a pass took more than {options.memory_limit:g} GiB"
    draw(options.output.with_suffix(".png"), f"{title} or {options.time_limit} s", seconds, memory)


if __name__ == "__main__":
    main()
