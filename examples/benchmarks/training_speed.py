"""Training, residues a second and peak memory: this package against the paper's recipe and Transformers' ESM.

    python examples/benchmarks/training_speed.py --data CHAINS.parquet

A side takes chains as a data set gives them and makes whole updates of them: collating, forward, backward, AdamW.

- the paper's recipe: `torch.nn.TransformerEncoder`, 24 random chains padded to the longest of the whole data set, loops
  over residues in Python, float32;
- EsmForMaskedLM, with `DataCollatorForLanguageModeling` on tokens made before, sdpa, batches of 24: random, and grouped
  by `LengthGroupedSampler`;
- coordformer: packed rows of a token budget, "varlen" attention, with coordinates and without;
- both with bfloat16 autocast, beside.

All have the same width, depth and heads. The sides take turns in one process; a turn is one update, of batches by
length six, from short to long ones. Its rate is the residues (padding and special tokens do not count) over the
seconds, and a side's rate the median of its turns. The cost of coordinates is the median over further turns of the
ratio of the two times on the very same chains. Peak memory is of two turns in a fresh process, weights, gradients and
optimizer included; a side that passes the limit is left out. Utilization is the floating-point operations that the
residues need (6 per weight, 12 x layers x width x length of the chain for attention) over those of a large matrix
product in the same time and precision. `--profile FILE` writes the kernels of one update; `--shares FILE` of
each side the share of its operations in the time of one turn.

On a machine that others use, `--threads 1 --processor_time` counts seconds of the processor, which others disturb less.
"""

import argparse
import gc
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import CUDA, in_fresh_process, operation_shares, peak, start_of_peak, take_turns, write_record
from torch import nn
from transformers import DataCollatorForLanguageModeling, EsmConfig, EsmForMaskedLM
from transformers.trainer_pt_utils import LengthGroupedSampler

from coordformer import CoordformerConfig, CoordformerForMaskedLM, build_tokenizer
from coordformer.data.batching import ChainBatches, fetch_rows, read_lengths
from coordformer.data.collator import CoordformerDataCollator
from coordformer.data.pack import open_chains

HERE = Path(__file__).parent
DEVICE = torch.device("cuda" if CUDA else "cpu")
CHAINS_A_BATCH = 24  # of EsmForMaskedLM and the paper's recipe
STRATA = 6
SHAPES = {  # width, layers, heads, feed-forward
    "8M": (320, 6, 20, 1280),
    "33M": (768, 6, 12, 2048),
    "150M": (640, 30, 20, 2560),
    "650M": (1280, 33, 20, 5120),
}
PAPER, RANDOM, GROUPED = "the paper's recipe", "EsmForMaskedLM, random batches", "EsmForMaskedLM, batches by length"
OURS, WITHOUT = "coordformer", "coordformer without coordinates"
BF16 = ", bfloat16"
# On the CPU a batch of random chains takes so long that it is measured in one precision.
SIDES = (PAPER, RANDOM, *[RANDOM + BF16] * CUDA, GROUPED, GROUPED + BF16, OURS, OURS + BF16, WITHOUT)
Turn = Callable[[], tuple[int, float, float]]  # residues, seconds, floating-point operations


class PaperModel(nn.Module):
    """The paper's network (section 2), of torch's own modules."""

    def __init__(self, width: int, layers: int, heads: int, feed_forward: int, longest: int):
        super().__init__()
        self.embed, self.coords_embed = nn.Embedding(26, width), nn.Linear(4, width)
        angles = torch.arange(longest).unsqueeze(1) * torch.exp(torch.arange(0, width, 2) * (-np.log(10000.0) / width))
        self.register_buffer("positions", torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1))
        layer = nn.TransformerEncoderLayer(
            width, heads, feed_forward, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.generator = nn.Linear(width, 26)

    def forward(self, tokens: torch.Tensor, coords: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(tokens) + self.coords_embed(coords) + self.positions[: tokens.shape[1]]
        logits = self.generator(self.encoder(hidden, src_key_padding_mask=tokens == 25))
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


def collate_by_loops(rows: list[dict[str, Any]], longest: int) -> dict[str, torch.Tensor]:
    """Residue after residue, padded to the longest chain of the data set."""
    alphabet = {letter: index for index, letter in enumerate("ACDEFGHIKLMNPQRSTVWYX[]~_-")}
    batch: dict[str, list[Any]] = {"tokens": [], "coords": [], "labels": []}
    for row in rows:
        xyz = row["coords"].reshape(-1, 3)
        xyz = xyz - np.nanmean(xyz, axis=0)
        rotation = np.linalg.qr(np.random.normal(size=(3, 3)))[0]
        tokens, coords, labels = [alphabet["["]], [[0.0, 0.0, 0.0, 1.0]], [-100]
        for index, letter in enumerate(row["sequence"]):
            token = alphabet[letter]
            labels.append(token if random.random() < 0.15 else -100)
            tokens.append(alphabet["~"] if labels[-1] != -100 else token)
            if np.isnan(xyz[index]).any():
                coords.append([0.0, 0.0, 0.0, 1.0])
            else:
                x, y, z = rotation @ xyz[index] / 16
                coords.append([float(x), float(y), float(z), 0.0])
        padding = longest + 1 - len(tokens)
        batch["tokens"].append([*tokens, alphabet["]"], *[alphabet["-"]] * padding])
        batch["coords"].append([*coords, [0.0, 0.0, 0.0, 1.0], *[[0.0] * 4] * padding])
        batch["labels"].append([*labels, -100, *[-100] * padding])
    return {name: torch.tensor(values) for name, values in batch.items()}


def random_batches(chains: int, size: int) -> Iterator[list[int]]:
    generator = random.Random(0)
    while True:
        order = generator.sample(range(chains), chains)
        yield from (order[start : start + size] for start in range(0, chains - size, size))


def grouped_batches(lengths: list[int], size: int) -> Iterator[list[int]]:
    """In turns short and long ones: each `STRATA` in a row are spread evenly over the batches sorted by length."""
    order = list(LengthGroupedSampler(size, lengths=lengths, generator=torch.Generator().manual_seed(0)))
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    batches.sort(key=lambda batch: sum(lengths[chain] for chain in batch))
    offsets = random.Random(0)
    while True:
        offset = offsets.random()
        yield from (batches[int((stratum + offset) * len(batches) / STRATA)] for stratum in range(STRATA))


def packed_batches(batches: ChainBatches) -> Iterator[list[dict[str, Any]]]:
    while True:
        yield from (batches[index] for index in range(len(batches)))
        batches.set_epoch(batches.epoch + 1)


def make_turn(
    side: str,
    size: str,
    rows: Any,
    token_budget: int,
    compiled: bool,
    chains_a_batch: int = CHAINS_A_BATCH,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[nn.Module, Turn]:
    """The model of a side, and what it does when its turn comes."""
    width, layers, heads, feed_forward = SHAPES[size]
    tokenizer = build_tokenizer()
    lengths = read_lengths(rows)
    name = side.removesuffix(BF16)
    batches: Iterator[Any]
    torch.manual_seed(0)
    if name == PAPER:
        model: nn.Module = PaperModel(width, layers, heads, feed_forward, int(lengths.max()) + 2)
        batches = (fetch_rows(rows, batch) for batch in random_batches(len(rows), chains_a_batch))
        collate: Callable[[Any], dict[str, Any]] = partial(collate_by_loops, longest=int(lengths.max()))
    elif name in (RANDOM, GROUPED):
        config = EsmConfig(
            vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=width, num_hidden_layers=layers,
            num_attention_heads=heads, intermediate_size=feed_forward, position_embedding_type="rotary",
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, emb_layer_norm_before=False, token_dropout=False,
        )  # fmt: skip
        model = EsmForMaskedLM._from_config(config, attn_implementation="sdpa")
        model.esm.contact_head.requires_grad_(False)
        order = (
            random_batches(len(rows), chains_a_batch)
            if name == RANDOM
            else grouped_batches(lengths.tolist(), chains_a_batch)
        )
        batches = (fetch_rows(rows, batch) for batch in order)
        mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
        collate = lambda chains: dict(mask([{"input_ids": chain["tokens"]} for chain in chains]))  # noqa: E731
    else:
        config = CoordformerConfig(
            hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=feed_forward,
            coordinate_embedding="none" if name == WITHOUT else "linear",
        )  # fmt: skip
        model = CoordformerForMaskedLM._from_config(config, attn_implementation="varlen")
        batches = packed_batches(ChainBatches(rows, token_budget, pad_to_budget=compiled))
        collate = CoordformerDataCollator(tokenizer)
        if compiled:
            for layer in model.coordformer.esm.encoder.layer:
                layer.compile()
    model.to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.98), fused=True)
    weights = sum(weight.numel() for weight in model.parameters() if weight.dim() > 1)

    def update(now: Callable[[], float]) -> tuple[int, float, float]:
        chains = next(batches)
        if name in (RANDOM, GROUPED):  # made once for a data set, as `datasets.map` does
            for chain in chains:
                chain["tokens"] = tokenizer(chain["sequence"])["input_ids"]
        start = now()
        batch = {key: value.to(DEVICE) if torch.is_tensor(value) else value for key, value in collate(chains).items()}
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=side.endswith(BF16)):
            output = model(**batch)
        (output if torch.is_tensor(output) else output.loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        if CUDA:
            torch.cuda.synchronize()
        seconds = now() - start
        residues = [len(chain["sequence"]) for chain in chains]
        operations = sum(6.0 * weights * n + 12.0 * layers * width * n * n for n in residues)
        return sum(residues), seconds, operations

    def turn() -> tuple[int, float, float]:
        """An update, or of batches by length several: short chains cost less a residue than long ones."""
        parts = [update(clock) for _ in range(STRATA if name == GROUPED else 1)]
        return sum(n for n, _, _ in parts), sum(s for _, s, _ in parts), sum(f for _, _, f in parts)

    return model, turn


def measure(side: str, size: str, rows: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of two turns; passing a limit ends this process."""
    gc.collect()
    before = start_of_peak(options.memory_limit, options.time_limit)
    _, turn = make_turn(side, size, rows, options.token_budget, options.compile, options.chains_a_batch)
    turn(), turn()
    return {"bytes": peak() - before}


def ceiling(dtype: torch.dtype, clock: Callable[[], float]) -> float:
    """Floating-point operations a second of a large matrix product, the best of several."""
    n = 8192 if CUDA else 1024
    a, b = torch.randn(2, n, n, device=DEVICE, dtype=dtype)
    best = 0.0
    for _ in range(12):
        if CUDA:
            torch.cuda.synchronize()
        start = clock()
        a @ b
        if CUDA:
            torch.cuda.synchronize()
        best = max(best, 2.0 * n**3 / (clock() - start))
    return best


def shares_of(side: str, size: str, rows: Any, options: argparse.Namespace) -> dict[str, float]:
    """Of the operations that take a hundredth of a turn and more."""
    _, turn = make_turn(side, size, rows, options.token_budget, options.compile, options.chains_a_batch)
    return operation_shares(turn)


def measure_size(size: str, rows: Any, options: argparse.Namespace) -> dict[str, Any]:
    limits = [f"--{name}={getattr(options, name)}" for name in ("memory_limit", "time_limit", "threads")]
    limits += ["--data", str(options.data), "--token_budget", str(options.token_budget)]
    limits += ["--compile"] if options.compile else []
    memory, stopped, sides = {}, {}, {}
    clock = time.process_time if options.processor_time else time.perf_counter
    for side in options.sides:
        result = {"bytes": None}
        if not options.skip_memory:
            result = in_fresh_process(
                ["--measure", side, "--sizes", size, *limits], options.memory_limit, options.time_limit
            )
        if "reason" in result:
            stopped[side] = result["reason"]
        else:
            if result["bytes"] is not None:
                memory[side] = result["bytes"]
            sides[side] = make_turn(
                side, size, rows, options.token_budget, options.compile, options.chains_a_batch, clock
            )[1]
    for turn in sides.values():
        turn()  # warm
    raw = take_turns(sides, options.repeats)
    # Both have the same chains, turn by turn.
    pair = {side: sides[side] for side in (OURS, WITHOUT) if side in sides}
    raw_pair = take_turns(pair, 2 * options.repeats) if len(pair) == 2 else {}
    rates = {side: statistics.median(n / seconds for n, seconds, _ in turns) for side, turns in raw.items()}
    tops = {"float32": ceiling(torch.float32, clock), "bfloat16": ceiling(torch.bfloat16, clock)}
    utilization = {
        side: statistics.median(operations / seconds for _, seconds, operations in turns)
        / tops["bfloat16" if side.endswith(BF16) else "float32"]
        for side, turns in raw.items()
    }
    ratios = {f"over {side}": rates[OURS] / rates[side] for side in (PAPER, RANDOM, GROUPED) if side in rates}
    for side in (RANDOM + BF16, GROUPED + BF16):
        if side in rates:
            ratios[f"over {side.removesuffix(BF16)}, both bfloat16"] = rates[OURS + BF16] / rates[side]
    if PAPER in rates:
        ratios[f"over {PAPER}, ours in bfloat16"] = rates[OURS + BF16] / rates[PAPER]
    if len(pair) == 2:
        with_and_without = list(zip(raw_pair[OURS], raw_pair[WITHOUT], strict=True))
        assert all(a[0] == b[0] for a, b in with_and_without)
        ratios["cost of coordinates"] = statistics.median(a[1] / b[1] for a, b in with_and_without) - 1
    return {
        "residues_per_second": rates,
        "ratios": ratios,
        "peak_bytes": memory,
        "stopped": stopped,
        "utilization": utilization,
        "ceiling_flops": tops,
        "repeats": options.repeats,
        "residues_seconds_operations_of_each_turn": raw,
        "residues_seconds_operations_of_each_turn_for_the_cost": raw_pair,
    }


def draw(path: Path, sizes: dict[str, dict[str, Any]]) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return print(f"{path} was not drawn: pip install matplotlib")
    figure = Figure(figsize=(11, 1.2 + 2.4 * len(sizes)), layout="constrained")
    for row, (size, result) in zip(figure.subplots(len(sizes), 2, squeeze=False), sizes.items(), strict=True):
        sides = [side for side in SIDES if side in result["residues_per_second"]][::-1]
        colors = ["C0" if side.startswith(OURS) else "0.6" for side in sides]
        for axes, key, unit, label in (
            (row[0], "residues_per_second", 1, f"{size} parameters: residues trained a second"),
            (row[1], "peak_bytes", 2**30, "peak memory (GiB)"),
        ):
            bars = axes.barh(sides, [result[key].get(side, 0) / unit for side in sides], color=colors)
            axes.bar_label(bars, fmt="{:,.0f}" if unit == 1 else "{:.1f}", padding=3)
            axes.set_xlabel(label)
            axes.margins(x=0.15)
        row[1].set_yticklabels([])
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parent / "data" / "chains.parquet")
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=["8M", "33M"])
    parser.add_argument("--token_budget", type=int, default=8192, help="of coordformer's batches")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processor_time", action="store_true", help="seconds of the processor, for one thread")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="torch.compile coordformer's layers")
    parser.add_argument("--memory_limit", type=float, default=120.0 if CUDA else 16.0, help="GiB")
    parser.add_argument("--time_limit", type=int, default=900, help="seconds for two turns")
    parser.add_argument("--skip_memory", action="store_true", help="time alone")
    parser.add_argument("--quick", action="store_true", help="8M, 2 repeats")
    parser.add_argument("--shares", type=Path, help="write the shares of operations here as JSON, and measure no more")
    parser.add_argument("--profile", type=Path, help="write the kernels of one update here, as a Chrome trace")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "training_speed.json")
    parser.add_argument("--measure", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--chains_a_batch", type=int, default=CHAINS_A_BATCH, help="of the sides with such batches")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = open_chains(options.data)
    if options.measure:
        print(json.dumps(measure(options.measure, options.sizes[0], rows, options)))
        return
    if options.quick:
        options.sizes, options.repeats = ["8M"], 2
    if options.shares:
        shares = {side: shares_of(side, options.sizes[0], rows, options) for side in options.sides}
        return write_record(options.shares, {"threads": options.threads, "shares": shares}, ("torch", "transformers"))
    if options.profile:
        _, turn = make_turn(
            OURS + BF16, options.sizes[-1], rows, options.token_budget, options.compile, options.chains_a_batch
        )
        turn(), turn()
        with torch.profiler.profile() as profiler:
            turn()
        profiler.export_chrome_trace(str(options.profile))
        print(
            profiler.key_averages().table(
                sort_by="self_device_time_total" if CUDA else "self_cpu_time_total", row_limit=15
            )
        )

    lengths = read_lengths(rows)
    data = {"file": options.data.name, "chains": len(rows), "mean_length": float(lengths.mean()),
            "longest": int(lengths.max())}  # fmt: skip
    sizes: dict[str, dict[str, Any]] = {}
    if options.output.exists():  # sizes that were measured before stay, if all else was the same
        before = json.loads(options.output.read_text())
        same = {"data": data, "threads": options.threads, "token_budget": options.token_budget}
        if all(before.get(name) == value for name, value in same.items()):
            sizes = before["sizes"]
    for size in options.sizes:
        sizes[size] = result = measure_size(size, rows, options)
        print(f"\n| {size} | residues/s | peak GiB | utilization |\n| --- | ---: | ---: | ---: |")
        for side in options.sides:
            if side in result["stopped"]:
                print(f"| {side} | {result['stopped'][side]} | | |")
            else:
                rate, held = result["residues_per_second"][side], result["peak_bytes"].get(side, 0) / 2**30
                print(f"| {side} | {rate:,.0f} | {held:.2f} | {result['utilization'][side]:.0%} |")
        for name, ratio in result["ratios"].items():
            print(f"{name}: {ratio:.3f}", flush=True)
        record = {
            "data": data,
            "threads": options.threads,
            "token_budget": options.token_budget,
            "compiled": options.compile,
            "chains_a_batch": options.chains_a_batch,
            "of": "processor" if options.processor_time else "clock",
            "shapes": {size: SHAPES[size] for size in sizes},
            "sizes": sizes,
        }  # fmt: skip
        write_record(options.output, record, ("torch", "transformers"))  # after each, as the large ones take long
        if not options.skip_memory:
            draw(options.output.with_suffix(".png"), sizes)


if __name__ == "__main__":
    main()
