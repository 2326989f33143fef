"""Time and peak memory of a training step with each way in which coordinates enter, against the number of points.

    python examples/benchmarks/coordinate_embeddings.py

The model of the embedding study (width 128, 4 layers, 4 heads, 0.8M parameters), one chain, sdpa, float32, forward and
backward. Memory: the peak of one step in a fresh process above what it holds after a step over few points; resident on
the CPU (Linux only), allocated on CUDA. Time: the variants take turns in one process; the median over the repeats.
"""

import argparse
import gc
import json
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import CUDA, in_fresh_process, peak, start_of_peak, take_turns, write_record

from coordformer import CoordformerConfig, CoordformerForMaskedLM

HERE = Path(__file__).parent
DEVICE = torch.device("cuda" if CUDA else "cpu")
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"coordinate_embedding": "none"},
    "linear": {"coordinate_embedding": "linear"},
    "quadratic": {"coordinate_embedding": "quadratic"},
    "distance bias": {"coordinate_embedding": "none", "num_distance_bins": 32},
    "points": {"coordinate_embedding": "local_frame", "num_qk_points": 4},
    "messages": {"coordinate_embedding": "local_frame", "num_qk_points": 4, "num_neighbors": 24},
    "gated messages": {
        "coordinate_embedding": "local_frame",
        "num_qk_points": 4,
        "num_neighbors": 24,
        "message_gating": True,
    },
}


def build(variant: str) -> CoordformerForMaskedLM:
    torch.manual_seed(0)
    shape = dict(hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512)
    config = CoordformerConfig(**shape, **VARIANTS[variant], attn_implementation="sdpa")
    return CoordformerForMaskedLM(config).to(DEVICE)


def draw_chain(points: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(points)
    tokens = torch.randint(4, 24, (1, points), generator=generator)
    steps = torch.nn.functional.normalize(torch.randn(1, points, 3, generator=generator), dim=-1)
    batch = {"input_ids": tokens, "labels": tokens, "coords": (3.8 * steps).cumsum(dim=1)}
    return {name: values.to(DEVICE) for name, values in batch.items()}


def step(model: CoordformerForMaskedLM, batch: dict[str, torch.Tensor]) -> None:
    model.zero_grad()
    model(**batch).loss.backward()
    if CUDA:
        torch.cuda.synchronize()


def measure(variant: str, points: int, options: argparse.Namespace) -> dict[str, int]:
    model = build(variant)
    step(model, draw_chain(40))
    model.zero_grad()
    gc.collect()
    batch = draw_chain(points)
    before = start_of_peak(options.memory_limit, options.time_limit)
    step(model, batch)
    return {"bytes": peak() - before}


def seconds_a_step(model: CoordformerForMaskedLM, batch: dict[str, torch.Tensor]) -> float:
    steps, start = 0, time.perf_counter()
    while steps == 0 or time.perf_counter() - start < 0.2:
        step(model, batch)
        steps += 1
    return (time.perf_counter() - start) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 2048])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--time_limit", type=int, default=120, help="seconds for a step")
    parser.add_argument("--memory_limit", type=float, default=6.0, help="GiB")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "coordinate_embeddings.json")
    parser.add_argument("--measure", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.measure:
        print(json.dumps(measure(options.measure, options.sizes[0], options)))
        return
    models = {variant: build(variant) for variant in VARIANTS}
    memory: dict[str, dict[int, Any]] = {variant: {} for variant in VARIANTS}
    raw: dict[str, dict[int, list[float]]] = {variant: {} for variant in VARIANTS}
    for points in options.sizes:
        for variant in VARIANTS:
            arguments = ["--measure", variant, "--sizes", str(points)]
            arguments += [f"--{name}={getattr(options, name)}" for name in ("time_limit", "memory_limit", "threads")]
            result = in_fresh_process(arguments, options.memory_limit, options.time_limit)
            memory[variant][points] = result.get("bytes", result.get("reason"))
        batch = draw_chain(points)
        turns = {variant: partial(seconds_a_step, model, batch) for variant, model in models.items()}
        for variant, times in take_turns(turns, options.repeats).items():
            raw[variant][points] = times
    seconds = {name: {points: statistics.median(times) for points, times in row.items()} for name, row in raw.items()}
    for title, rows, unit in (("ms", seconds, 1e-3), ("MiB", memory, 2**20)):
        print(f"\n| {title} | {' | '.join(map(str, options.sizes))} |\n| --- |{' ---: |' * len(options.sizes)}")
        for variant, row in rows.items():
            cells = [each if isinstance(each, str) else f"{each / unit:,.1f}" for each in row.values()]
            print(f"| {variant} | {' | '.join(cells)} |")
    record = {
        "threads": options.threads,
        "parameters": {name: sum(w.numel() for w in model.parameters()) for name, model in models.items()},
        "seconds": seconds,
        "peak_bytes": memory,
        "seconds_of_each_turn": raw,
    }
    write_record(options.output, record, ("torch", "transformers"))


if __name__ == "__main__":
    main()
