"""Residues embedded a second: coordformer against `EsmModel`, on chains of lengths as mixed as a proteome's.

    python examples/benchmarks/embedding_speed.py

The chains have 30 to 2,000 residues, log-normal with a median of 350; sequences are random, coordinates random walks.
Every side gets them in memory and gives the mean of the last layer over the residues of each chain; all of that is
timed: planning the batches, tokens and coordinates, padding, the forward pass without gradients, the means.
The token budget is by default little more than the longest chain on a CPU, where larger padded batches are slower.

- EsmModel, random batches: 16 chains at random, padded to the longest;
- EsmModel, one at a time: neither padding nor mask, and on a CPU hard to beat;
- EsmModel, like lengths: chains of like length, as many as fit into a token budget when padded, which is what
  `ChainBatches` with packing=False makes;
- coordformer, like lengths: the same batches, with coordinates;
- coordformer, packed: rows of chains one after another up to the same budget, "varlen" attention, no padding;
- esm-cpp, a CPU engine for ESM-2 (`pip install --no-deps esm-cpp==0.2.1`; without it left out): one at a time, as its
  `forward_with_hidden_states` takes one chain, and packed by its own scheduler, which gives logits alone.

All have the same weights but for the coordinate embedding, in float32; three also with bfloat16 weights. EsmModel has
sdpa attention, and the built-in fast tokenizer, not its own slower one; what collating takes by itself is in the
record. Coordformer's GELU is torch's, the default of its config; EsmModel writes it out, which takes longer: with
--hidden_act gelu_python both do. On a machine that others use, `--threads 1 --processor_time` counts seconds of the
processor, which others disturb less. `--shares FILE` writes of each side the share of its operations in the time of a
turn.

The sides take turns in one process; a side's time is the median over the repeats of the time for all chains. Before the
clock starts, some chains are compared: coordformer padded with packed, and coordformer without coordinates and esm-cpp
with EsmModel.
"""

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bars import draw_bars
from harness import CUDA, operation_shares, take_turns, write_record
from safetensors.torch import save_file
from torch import nn
from transformers import EsmConfig, EsmForMaskedLM, EsmModel

from coordformer import build_tokenizer, from_esm
from coordformer.data.batching import ChainBatches
from coordformer.data.collator import CoordformerDataCollator
from coordformer.model.chain import AMINO_ACIDS

HERE = Path(__file__).parent
DEVICE = torch.device("cuda" if CUDA else "cpu")
SHAPES = {  # of ESM-2: width, layers, heads, feed-forward
    "8M": (320, 6, 20, 1280),
    "35M": (480, 12, 20, 1920),
    "150M": (640, 30, 20, 2560),
    "650M": (1280, 33, 20, 5120),
}
RANDOM, ONE, LIKE = "EsmModel, random batches", "EsmModel, one at a time", "EsmModel, like lengths"
OURS_LIKE, PACKED = "coordformer, like lengths", "coordformer, packed"
BF16 = ", bfloat16"
IN_BFLOAT16 = (ONE, LIKE, PACKED)
ESM_CPP, ESM_CPP_LOGITS = "esm-cpp, one at a time", "esm-cpp, packed, logits"
SIDES = (RANDOM, ONE, LIKE, OURS_LIKE, PACKED, *(side + BF16 for side in IN_BFLOAT16), ESM_CPP, ESM_CPP_LOGITS)
CHECKED = 20  # chains

Rows = list[dict[str, Any]]
Collate = Callable[[Rows], dict[str, Any]]


class Chains:
    """Chains in memory, as `ChainBatches` takes them."""

    def __init__(self, rows: Rows):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, column: str) -> list[int]:
        return {"length": [len(row["sequence"]) for row in self.rows]}[column]

    def fetch(self, indices: Sequence[int] | np.ndarray) -> Rows:
        return [self.rows[index] for index in indices]


def draw_chains(count: int) -> Rows:
    rng = np.random.default_rng(0)
    rows = []
    for number, length in enumerate(rng.lognormal(np.log(350), 0.7, count).clip(30, 2000).astype(int)):
        steps = rng.normal(size=(length, 3))
        coords = (3.8 * steps / np.linalg.norm(steps, axis=1, keepdims=True)).cumsum(axis=0).astype(np.float32)
        sequence = "".join(rng.choice(list(AMINO_ACIDS), length))
        rows.append({"id": str(number), "sequence": sequence, "coords": coords.reshape(-1), "atoms": ("CA",)})
    return rows


def build_models(shape: str, hidden_act: str) -> dict[str, nn.Module]:
    """The models by side; where no coordinates are, all compute the same."""
    width, layers, heads, feed_forward = SHAPES[shape]
    config = EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=heads, intermediate_size=feed_forward, position_embedding_type="rotary",
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, layer_norm_eps=1e-5, emb_layer_norm_before=False,
        token_dropout=True, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = EsmModel(config, add_pooling_layer=False).eval()
    padded = from_esm(theirs, hidden_act=hidden_act).coordformer
    weight = padded.coordinate_embedding.weight
    nn.init.normal_(weight[:, :3], std=0.1)  # from_esm leaves it at zero; that of the missing flag stays there
    packed = copy.deepcopy(padded)
    packed.set_attn_implementation("varlen")
    models = {RANDOM: theirs, ONE: theirs, LIKE: theirs, OURS_LIKE: padded, PACKED: packed}
    models |= {side + BF16: copy.deepcopy(models[side]).to(torch.bfloat16) for side in IN_BFLOAT16}
    return {side: model.to(DEVICE) for side, model in models.items()}


def make_collators() -> dict[str, Collate]:
    """For EsmModel and for coordformer, from rows to what the model takes."""
    tokenizer = build_tokenizer()
    collator = CoordformerDataCollator(tokenizer, rotate=False, mlm_probability=0)

    def theirs(rows: Rows) -> dict[str, Any]:
        return dict(tokenizer([row["sequence"] for row in rows], padding=True, return_tensors="pt"))

    def ours(rows: Rows) -> dict[str, Any]:
        return {name: value for name, value in collator(rows).items() if name != "labels"}

    return {"EsmModel": theirs, "coordformer": ours}


@torch.no_grad()
def embed(model: nn.Module, collate: Collate, chains: Chains, batching: dict[str, Any]) -> torch.Tensor:
    """The mean of the last layer over the residues of each chain, (chains, width), float32."""
    batches = ChainBatches(chains, **batching)
    special = torch.tensor([0, 1, 2], device=DEVICE)  # <cls>, <pad>, <eos>
    means = []
    for number in range(len(batches)):
        rows = batches[number]
        batch = {name: x.to(DEVICE) if torch.is_tensor(x) else x for name, x in collate(rows).items()}
        hidden = model(**batch).last_hidden_state
        owner = batch.get("sequence_id", torch.arange(len(rows), device=DEVICE).unsqueeze(1))
        owner = torch.where(torch.isin(batch["input_ids"], special), len(rows), owner).flatten()
        total = torch.zeros(len(rows) + 1, hidden.shape[-1], device=DEVICE)
        total.index_add_(0, owner, hidden.flatten(0, 1).float())
        lengths = torch.tensor([len(row["sequence"]) for row in rows], device=DEVICE)
        means.append(total[:-1] / lengths.unsqueeze(1))
    found = torch.cat(means).cpu()  # waits for the device
    return found[np.argsort(np.concatenate(batches.order()))]


def load_esm_cpp(model: nn.Module, threads: int) -> Any:
    """The engine with the same weights; None without the package."""
    os.environ["ESM_NUM_THREADS"] = str(threads)  # read when the first model is loaded
    try:
        import esm_cpp
    except ImportError:
        return None
    whole = EsmForMaskedLM(model.config)
    whole.esm.load_state_dict(model.state_dict(), strict=False)
    # It asks for frequencies of positions in each layer, as the files of ESM-2 have them. Transformers saves none.
    head_size = model.config.hidden_size // model.config.num_attention_heads
    frequencies = 10000.0 ** (-torch.arange(0, head_size, 2).float() / head_size)
    weights = {name: weight.detach().clone() for name, weight in whole.state_dict().items()}
    for layer in range(model.config.num_hidden_layers):
        name = f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"
        weights[name] = frequencies.clone()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(weights, path, metadata={"format": "pt"})
        return esm_cpp.Model.load_from_safetensors(str(path))


def embed_by_esm_cpp(engine: Any, chains: Chains) -> torch.Tensor:
    tokenizer, means = build_tokenizer(), []
    for row in chains.rows:
        tokens = np.array(tokenizer(row["sequence"])["input_ids"], dtype=np.int32)
        _, hidden = engine.forward_with_hidden_states(tokens)
        means.append(torch.from_numpy(hidden[-1][1:-1].mean(axis=0)))
    return torch.stack(means)


def logits_by_esm_cpp(engine: Any, chains: Chains) -> None:
    tokenizer = build_tokenizer()
    engine.forward_scheduled([np.array(tokenizer(row["sequence"])["input_ids"], dtype=np.int32) for row in chains.rows])


def collate_all(collate: Collate, chains: Chains, batching: dict[str, Any]) -> None:
    batches = ChainBatches(chains, **batching)
    for number in range(len(batches)):
        collate(batches[number])


def check(runs: dict[str, Callable[[Chains], torch.Tensor]], rows: Rows) -> dict[str, float]:
    """The largest differences of the embeddings."""
    missing = [row | {"coords": np.full_like(row["coords"], np.nan)} for row in rows]
    found = {side: run(Chains(rows)) for side, run in runs.items() if side != ESM_CPP_LOGITS}
    pairs = {
        "padded and packed": (found[OURS_LIKE], found[PACKED]),
        "EsmModel and coordformer without coordinates": (found[LIKE], runs[OURS_LIKE](Chains(missing))),
        "EsmModel and coordformer packed without coordinates": (found[LIKE], runs[PACKED](Chains(missing))),
    }
    differences = {name: float((a - b).abs().max()) for name, (a, b) in pairs.items()}
    assert max(differences.values()) < 1e-4, differences
    assert (found[LIKE] - found[PACKED]).abs().max() > 1e-2, "coordinates change nothing"
    if ESM_CPP in found:
        differences["EsmModel and esm-cpp"] = float((found[LIKE] - found[ESM_CPP]).abs().max())
    differences["packed, float32 and bfloat16"] = float((found[PACKED] - found[PACKED + BF16]).abs().max())
    return differences


def seconds(run: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="8M")
    parser.add_argument("--hidden_act", default="gelu", help="of coordformer")
    parser.add_argument("--chains", type=int, default=300)
    parser.add_argument("--token_budget", type=int, default=8192 if CUDA else 2048)
    parser.add_argument("--chains_per_batch", type=int, default=16, help="of the random batches")
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="default: all but those of packages that are missing")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processor_time", action="store_true", help="seconds of the processor, for one thread")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="20 chains, 2 repeats")
    parser.add_argument("--shares", type=Path, help="write the shares of operations here as JSON, and measure no more")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "embedding_speed.json")
    options = parser.parse_args()
    if options.quick:
        options.chains, options.repeats = 20, 2
    torch.set_num_threads(options.threads)

    rows = draw_chains(options.chains)
    chains = Chains(rows)
    lengths = np.array(chains["length"])
    like: dict[str, Any] = {"token_budget": options.token_budget, "packing": False}
    batching = dict.fromkeys(SIDES, like) | {RANDOM: {"chains_per_batch": options.chains_per_batch}}
    batching |= {side: {"chains_per_batch": 1} for side in (ONE, ONE + BF16)}
    batching |= {side: {"token_budget": options.token_budget} for side in (PACKED, PACKED + BF16)}
    models, collators = build_models(options.shape, options.hidden_act), make_collators()
    runs: dict[str, Callable[[Chains], Any]] = {
        side: partial(embed, models[side], collators[side.partition(",")[0]], batching=batching[side])
        for side in models
    }
    if (engine := load_esm_cpp(models[RANDOM], options.threads)) is not None:
        runs |= {ESM_CPP: partial(embed_by_esm_cpp, engine), ESM_CPP_LOGITS: partial(logits_by_esm_cpp, engine)}
    differences = check(runs, rows[:CHECKED])
    if options.sides:
        runs = {side: runs[side] for side in options.sides}

    whole = {side: partial(run, chains) for side, run in runs.items()}
    if options.shares:
        shares = {side: operation_shares(run) for side, run in whole.items()}
        return write_record(options.shares, {"threads": options.threads, "shares": shares}, ("torch", "transformers"))
    alone = {
        f"collating for {name}": partial(collate_all, collate, chains, like) for name, collate in collators.items()
    }
    clock = time.process_time if options.processor_time else time.perf_counter
    raw = take_turns({side: partial(seconds, run, clock) for side, run in (whole | alone).items()}, options.repeats)
    rates = {side: float(lengths.sum()) / statistics.median(times) for side, times in raw.items()}
    collating = {side: rates.pop(side) for side in alone}
    padding = {side: ChainBatches(chains, **batching[side]).padding_share() for side in models}
    pairs = [*((PACKED, theirs) for theirs in (RANDOM, ONE, LIKE)), (OURS_LIKE, LIKE)]
    pairs += [(PACKED + BF16, theirs + BF16) for theirs in (ONE, LIKE)]
    pairs += [(PACKED, ESM_CPP), (PACKED, ESM_CPP_LOGITS)]
    ratios = {
        f"{ours} over {theirs}": rates[ours] / rates[theirs] for ours, theirs in pairs if {ours, theirs} <= rates.keys()
    }

    print(f"{len(rows)} chains, {lengths.sum():,} residues, longest {lengths.max():,}; model of {options.shape}")
    print("\n| side | residues/s | padding |\n| --- | ---: | ---: |")
    for side in rates:
        print(f"| {side} | {rates[side]:,.0f} | {padding.get(side, 0):.0%} |")
    print()
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    for name, rate in collating.items():
        print(f"{name} alone: {rate:,.0f} residues/s")
    for name, difference in differences.items():
        print(f"largest difference, {name}: {difference:.1e}")
    record = {
        "shape": options.shape,
        "hidden_act_of_coordformer": options.hidden_act,
        "chains": len(rows),
        "residues": int(lengths.sum()),
        "lengths": {f"{q:.0%}": float(np.quantile(lengths, q)) for q in (0, 0.25, 0.5, 0.75, 1)},
        "token_budget": options.token_budget,
        "chains_per_batch": options.chains_per_batch,
        "threads": options.threads,
        "of": "processor" if options.processor_time else "clock",
        "residues_per_second": rates,
        "residues_per_second_of_collating": collating,
        "padding_share": padding,
        "ratios": ratios,
        "largest_differences": differences,
        "seconds": raw,
    }
    write_record(options.output, record, ("numpy", "torch", "transformers", "esm-cpp"))
    title = f"{len(rows)} chains of {lengths.min()} to {lengths.max():,} residues, ESM-2's {options.shape} shape"
    draw_bars(options.output.with_suffix(".png"), title, "residues embedded a second", rates)


if __name__ == "__main__":
    main()
