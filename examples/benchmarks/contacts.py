"""Time and peak memory of contact prediction against `EsmModel.predict_contacts` on the same weights.

    python examples/benchmarks/contacts.py

The shape of ESM-2 35M (12 layers, 20 heads, width 480), new weights, one chain, float32; ours without coordinates, so
that both sides compute the same: outputs are compared. Memory: the peak of one prediction in a fresh process above what
it holds after one of few residues; resident on the CPU (Linux only), allocated on CUDA. `training` is a step of the
head behind a frozen encoder. Time: both sides take turns; the median over the repeats.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import CUDA, in_fresh_process, peak, start_of_peak, take_turns, write_record
from transformers import EsmConfig, EsmModel

from coordformer import CoordformerForContactPrediction, from_esm

HERE = Path(__file__).parent
DEVICE = torch.device("cuda" if CUDA else "cpu")
SIDES = ("coordformer", "EsmModel", "coordformer, training")


def build_esm() -> EsmModel:
    torch.manual_seed(0)
    config = EsmConfig(
        vocab_size=33, pad_token_id=1, mask_token_id=32, hidden_size=480, num_hidden_layers=12, num_attention_heads=20,
        intermediate_size=1920, position_embedding_type="rotary", token_dropout=True, emb_layer_norm_before=False,
        layer_norm_eps=1e-5, attn_implementation="eager",
    )  # fmt: skip
    return EsmModel(config, add_pooling_layer=False).eval()


def draw_chain(residues: int) -> torch.Tensor:
    tokens = torch.randint(4, 24, (1, residues + 2), generator=torch.Generator().manual_seed(residues))
    tokens[0, 0], tokens[0, -1] = 0, 2
    return tokens.to(DEVICE)


def build(side: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """What one side does with a chain."""
    esm = build_esm()
    if side == "EsmModel":
        esm = esm.to(DEVICE)

        @torch.no_grad()
        def predict(tokens: torch.Tensor) -> torch.Tensor:
            return esm.predict_contacts(tokens, torch.ones_like(tokens))

        return predict
    model = from_esm(esm).to(DEVICE)
    if side == "coordformer":
        return torch.no_grad()(model.predict_contacts)
    config = model.config
    trained = CoordformerForContactPrediction(config)
    trained.coordformer.load_state_dict(model.coordformer.state_dict())
    trained.coordformer.requires_grad_(False)
    trained.coordformer.contact_head.requires_grad_(True)
    trained = trained.to(DEVICE).train()

    def step(tokens: torch.Tensor) -> torch.Tensor:
        residues = tokens.shape[1] - 2
        labels = torch.zeros(1, residues, residues, dtype=torch.long, device=DEVICE)
        output = trained(tokens, labels=labels)
        output.loss.backward()
        return output.logits.detach()

    return step


def run(work: Callable[[torch.Tensor], torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    result = work(tokens)
    if CUDA:
        torch.cuda.synchronize()
    return result


def measure(side: str, residues: int, options: argparse.Namespace) -> dict[str, int]:
    work = build(side)
    run(work, draw_chain(30))
    gc.collect()
    tokens = draw_chain(residues)
    before = start_of_peak(options.memory_limit, options.time_limit)
    run(work, tokens)
    return {"bytes": peak() - before}


def seconds_of(work: Callable[[torch.Tensor], torch.Tensor], tokens: torch.Tensor) -> float:
    start = time.perf_counter()
    run(work, tokens)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512, 1024])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--time_limit", type=int, default=300, help="seconds for a prediction")
    parser.add_argument("--memory_limit", type=float, default=16.0, help="GiB")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="128 residues, one repeat")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "contacts.json")
    parser.add_argument("--measure", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.measure:
        print(json.dumps(measure(options.measure, options.sizes[0], options)))
        return
    if options.quick:
        options.sizes, options.repeats = [128], 1
    memory: dict[str, dict[int, Any]] = {side: {} for side in SIDES}
    raw: dict[str, dict[int, list[float]]] = {side: {} for side in SIDES}
    difference: dict[int, float] = {}
    work = {side: build(side) for side in SIDES}
    for residues in options.sizes:
        for side in SIDES:
            arguments = ["--measure", side, "--sizes", str(residues)]
            arguments += [f"--{name}={getattr(options, name)}" for name in ("time_limit", "memory_limit", "threads")]
            result = in_fresh_process(arguments, options.memory_limit, options.time_limit)
            memory[side][residues] = result.get("bytes", result.get("reason"))
        tokens = draw_chain(residues)
        difference[residues] = float((work["coordformer"](tokens) - work["EsmModel"](tokens)).abs().max())
        turns = {side: partial(seconds_of, each, tokens) for side, each in work.items()}
        for side, times in take_turns(turns, options.repeats).items():
            raw[side][residues] = times
    seconds = {side: {size: statistics.median(times) for size, times in row.items()} for side, row in raw.items()}
    for title, rows, unit in (("s", seconds, 1.0), ("MiB", memory, 2**20)):
        print(f"\n| {title} | {' | '.join(map(str, options.sizes))} |\n| --- |{' ---: |' * len(options.sizes)}")
        for side, row in rows.items():
            cells = [each if isinstance(each, str) else f"{each / unit:,.2f}" for each in row.values()]
            print(f"| {side} | {' | '.join(cells)} |")
    print(f"\nlargest difference of the outputs: {max(difference.values()):.1e}")
    record = {
        "threads": options.threads,
        "seconds": seconds,
        "peak_bytes": memory,
        "largest_difference": difference,
        "seconds_of_each_turn": raw,
    }
    write_record(options.output, record, ("torch", "transformers"))


if __name__ == "__main__":
    main()
