"""Sizes a run: the tables of alphafold_db.md from inputs, which are options, and those inputs that can be measured.

    python examples/pretraining/size_a_run.py                  # the tables
    python examples/pretraining/size_a_run.py --chains 2.3e6   # of a smaller run
    python examples/pretraining/size_a_run.py --measure        # the inputs, on this machine: 40 seconds

Measured are seconds of one core and resident memory, each in a process of its own. The chains are made up: random
letters, 300 residues in the mean (gamma distribution of shape 2, from 16 to 1,280), and the coordinates of
examples/data/chains.parquet, turned, shaken by 0.5 Å and rounded to 0.001 Å, with random pLDDT of two decimals.
"""

import argparse
import io
import json
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset

from coordformer import CoordformerConfig, CoordformerForMaskedLM, build_tokenizer
from coordformer.data.collator import CoordformerDataCollator
from coordformer.data.pack import write_pack
from coordformer.data.prepare import READING, REJECTS_KEY, PrepareSettings, assemble, part_path, plan, read_part
from coordformer.data.rows import SCHEMA, ShardBatches, read_compact

ROOT = Path(__file__).parent.parent.parent
SHAPES = {"8M": (320, 6), "35M": (480, 12), "150M": (640, 30), "650M": (1280, 33)}  # of ESM-2: width and layers
# name: value, where it is from
INPUTS = {
    "chains": (214e6, "quoted"),
    "tar_bytes": (23 * 2**40, "quoted"),
    "tars": (1015797, "quoted"),
    "length": (300, "assumed: residues of a chain"),
    "attention_length": (450, "assumed: residues of the chain that the mean residue is in"),
    "files_per_second": (58, "measured, on one core"),
    "shard_bytes": (8.7, "measured, for a residue"),
    "pack_bytes": (7.1, "measured, for a residue"),
    "plan_us": (43, "measured, for a file in a tar"),
    "plan_bytes": (580, "measured, for a file in a tar"),
    "assemble_us": (83, "measured, for a chain"),
    "assemble_bytes": (2850, "measured, for a chain"),
    "open_us": (0.7, "measured, for a chain"),
    "open_bytes": (19, "measured, for a residue"),
    "group": (1e6, "chosen: chains that are prepared together"),
    "cores": (64, "chosen: that read; the rest runs on one"),
    "chains_per_shard": (10000, "chosen"),
    "open_shards": (16, "chosen"),
    "requests_per_second": (10, "the default of --fetch, which needs two requests for a chain"),
    "peak": (989e12, "quoted: bfloat16 operations a second of an H100 or H200, dense"),
    "utilization": (0.4, "assumed"),
}


def tables(given):
    use = argparse.Namespace(**given)
    residues, shard = use.chains * use.length, min(use.chains_per_shard, use.group) * use.length
    groups, hour, gb = use.chains / use.group, 3600, 1e9
    lines = [
        ("tar archives, GB", "tar_bytes", use.tar_bytes / gb),
        ("Parquet shards, GB", "chains x length x shard_bytes", residues * use.shard_bytes / gb),
        ("shards", "chains / chains_per_shard", use.chains / use.chains_per_shard),
        ("a packed file, GB", "chains x length x pack_bytes", residues * use.pack_bytes / gb),
        ("groups", "chains / group", groups),
        ("tar archives of a group", "tars / groups", use.tars / groups),
        ("reading, core-hours", "chains / files_per_second", use.chains / use.files_per_second / hour),
        ("plan of a group, s", "group x plan_us", use.group * use.plan_us / 1e6),
        ("... of all at once, hours", "chains x plan_us", use.chains * use.plan_us / 1e6 / hour),
        ("... of all at once, GB of memory", "chains x plan_bytes", use.chains * use.plan_bytes / gb),
        ("assembling a group, s", "group x assemble_us", use.group * use.assemble_us / 1e6),
        ("... GB of memory", "group x assemble_bytes", use.group * use.assemble_bytes / gb),
        ("all groups one after another, hours", "groups x (plan + assembling) + reading / cores",
         use.chains * ((use.plan_us + use.assemble_us) / 1e6 + 1 / use.files_per_second / use.cores) / hour),
        ("fetching by id, days", "chains x 2 / requests_per_second", use.chains * 2 / use.requests_per_second / 86400),
        ("start of training, s", "chains x open_us", use.chains * use.open_us / 1e6),
        ("open shards, GB of memory", "open_shards x chains_per_shard x length x open_bytes",
         use.open_shards * shard * use.open_bytes / gb),
    ]  # fmt: skip
    print("| | formula | |\n| --- | --- | --- |")
    for name, formula, value in lines:
        print(f"| {name} | {formula} | {value:,.{max(0, 2 - len(f'{value:.0f}'))}f} |")
    tokens = residues + 2 * use.chains
    print("\n| model | parameters | operations a token | GPU-hours an epoch | tokens a second | checkpoint, GB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, (width, layers) in SHAPES.items():
        with torch.device("meta"):
            config = CoordformerConfig(
                hidden_size=width, num_hidden_layers=layers, num_attention_heads=20, intermediate_size=4 * width
            )
            parameters = CoordformerForMaskedLM(config).num_parameters()
        work = 6 * parameters + 12 * layers * width * use.attention_length
        rate = use.utilization * use.peak / work
        checkpoint = 12 * parameters / gb  # float32 weights and two moments of Adam
        values = f"{parameters / 1e6:.1f}M | {work:.2e} | {tokens / rate / hour:,.1f} | {rate / 1e6:.2f}M"
        print(f"| {name} | {values} | {checkpoint:.2f} |")


@cache
def pool():
    return read_compact(ROOT / "examples/data/chains.parquet")["coords"].combine_chunks().values.to_numpy()


def rows(number, seed):
    rng = np.random.default_rng(seed)
    offsets = np.append(0, np.clip(rng.gamma(2, 150, number), 16, 1280).astype(int).cumsum()).astype(np.int32)
    total, turn = int(offsets[-1]), np.linalg.qr(rng.normal(size=(3, 3)))[0]
    start = rng.integers(len(pool()) // 3)
    places = pool().reshape(-1, 3)[(start + np.arange(total)) % (len(pool()) // 3)] @ turn
    places = (places + rng.normal(0, 0.5, places.shape)).round(3).astype(np.float32)
    letters = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)[rng.integers(0, 20, total)]
    columns = {
        "id": pa.array([f"AF-A0A{seed:04d}{row:04d}-F1_A" for row in range(number)]),
        "sequence": pa.StringArray.from_buffers(number, pa.py_buffer(offsets), pa.py_buffer(letters)),
        "length": pa.array(np.diff(offsets)),
        "observed": pa.array(np.diff(offsets)),
        "atoms": pa.array([["CA"]] * number),
        "coords": pa.ListArray.from_arrays(3 * offsets, places.reshape(-1)),
        "b_factor": pa.ListArray.from_arrays(offsets, rng.uniform(30, 99, total).round(2).astype(np.float32)),
        "source": pa.array([f"proteome-{seed:04d}_v4.tar/{row:04d}.cif.gz" for row in range(number)]),
    }
    return pa.table([columns.get(field.name, pa.nulls(number, field.type)) for field in SCHEMA], schema=SCHEMA)


class Cost:
    """Seconds of this process and bytes of memory that a block takes; Linux only."""

    def __enter__(self):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self.before, self.start = self.memory("VmRSS"), time.process_time()
        return self

    def __exit__(self, *_):
        self.seconds = time.process_time() - self.start
        self.peak, self.bytes = (self.memory(name) - self.before for name in ("VmHWM", "VmRSS"))

    def memory(self, name):
        return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) * 1024


def measure_bytes(folder):
    table = rows(5000, 0)
    residues = int(np.sum(table["length"]))
    pq.write_table(table, folder / "shard.parquet", compression="zstd")
    with Cost() as cost:
        size = write_pack(Dataset(table), folder / "packed.safetensors", progress=False)["bytes"]
    sizes = (folder / "shard.parquet").stat().st_size, size, cost.peak
    names = "shard_bytes", "pack_bytes", "memory to write a packed file, bytes"
    return {name: round(size / residues, 1) for name, size in zip(names, sizes, strict=True)}


def measure_reading(folder, files=256):
    with tarfile.open(folder / "one.tar", "w") as tar:
        for number in range(files):
            tar.add(ROOT / "tests/data/structures/1BD2.cif.gz", f"{number}.cif.gz")
    with Cost() as cost:
        for part in plan([folder / "one.tar"])[0]:
            read_part(part, PrepareSettings(), folder / "part.parquet")
    return {"files_per_second": round(files / cost.seconds, 1)}


def measure_plan(folder, models=20000):
    with tarfile.open(folder / "one.tar", "w") as tar:
        for number in range(models):
            for kind in ("model_v4.cif", "confidence_v4.json", "predicted_aligned_error_v4.json"):
                tar.addfile(tarfile.TarInfo(f"AF-A0A{number:07d}-F1-{kind}.gz"), io.BytesIO())
    with Cost() as cost:
        parts, _ = plan([folder / "one.tar"])
        json.dumps([[each.name, each.size, each.offset] for part in parts for each in part]).encode()  # as `prepare`
    return {"plan_us": round(cost.seconds / models * 1e6), "plan_bytes": round(cost.peak / models)}


def measure_assembling_and_streaming(folder, chains=64000, size=64):
    (folder / READING).mkdir()
    for number in range(chains // size):
        with pq.ParquetWriter(part_path(folder, number), SCHEMA, compression="zstd") as writer:
            writer.write_table(rows(size, number))
            writer.add_key_value_metadata({REJECTS_KEY: b"[]", b"files": b"64"})
    with Cost() as assembling:
        assemble(folder, PrepareSettings())
    with Cost() as opening:
        batches = ShardBatches(folder, 16384, open_shards=8)
    with Cost() as shards:
        items = [batches[item] for item in range(8)]  # of 8 shards of 5,000 chains
    collate, tokens = CoordformerDataCollator(build_tokenizer()), 0
    with Cost() as loading:
        for item in range(8, 208):
            tokens += collate(batches[item])["input_ids"].numel()
    return {
        "assemble_us": round(assembling.seconds / chains * 1e6),
        "assemble_bytes": round(assembling.peak / chains),
        "open_us": round(opening.seconds / chains * 1e6, 1),
        "open_bytes": round(shards.bytes / 8 / 5000 / 300),
        "tokens read and collated a second": round(tokens / loading.seconds, -4),
        "shards open": len(items),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="measure instead")
    for name, (value, origin) in INPUTS.items():
        parser.add_argument(f"--{name}", type=float, default=value, help=f"{origin} (default: {value:g})")
    given = vars(parser.parse_args())
    if not given.pop("measure"):
        return tables(given)
    for function in (measure_bytes, measure_reading, measure_plan, measure_assembling_and_streaming):
        with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, get_context("spawn")) as process:
            process.submit(torch.set_num_threads, 1).result()
            print(json.dumps(process.submit(function, Path(folder)).result()))


if __name__ == "__main__":
    main()
