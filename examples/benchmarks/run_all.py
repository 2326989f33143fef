"""All benchmarks, one after another, and one table of what they found: results/speed.md.

    python examples/benchmarks/run_all.py --data CHAINS.parquet
    python examples/benchmarks/run_all.py --only collate training_speed
    python examples/benchmarks/run_all.py --only            # the table alone, of the JSON files that are there
    python examples/benchmarks/run_all.py --quick           # does everything run? Numbers go to runs/, not results/

One that fails stops none of the others. The table has a row for each comparison of each JSON file that is there.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RESULTS, QUICK_RESULTS = HERE / "results", HERE / "runs"
Cells = tuple[str, str, str, str]  # what, ours, theirs, ratio


def number(value: float) -> str:
    """Three digits, written out."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:g}"


def compare(what: str, unit: str, ours: float, theirs: float, name: str) -> Cells:
    return what, f"{number(ours)} {unit}", f"{number(theirs)} {unit} ({name})", number(ours / theirs)


# ---------------------------------------------------------------------------------------------------------------------
# Rows of the table
# ---------------------------------------------------------------------------------------------------------------------


def read_structures(record: Mapping[str, Any]) -> Iterator[Cells]:
    rates = record["files_per_second"]
    yield compare("reading mmCIF files", "files/s", rates["coordformer"], rates["biopython"], "Biopython")


def collate(record: Mapping[str, Any], tokens: str = "16,384") -> Iterator[Cells]:
    rates = record["residues_per_second"]
    what = f"collating batches of {tokens} tokens"
    yield compare(what, "residues/s", rates["coordformer"], rates["loop"], "loop over residues")


def collate_4096(record: Mapping[str, Any]) -> Iterator[Cells]:
    yield from collate(record, "4,096")


def prepare_speed(record: Mapping[str, Any]) -> Iterator[Cells]:
    rates = dict(record["files_per_second"])
    theirs = next(side for side in rates if not side.startswith("coordformer"))
    starts = record.get("seconds_to_start", {})
    for side in rates:
        if side != theirs:
            processes = side.removeprefix("coordformer, ")
            start = starts.get(f"starting {processes}")
            note = "" if start is None else f" (starting them alone takes {start:.1f} s)"
            what = f"from {record['files']:,} mmCIF files to Parquet, {processes}{note}"
            yield compare(what, "files/s", rates[side], rates[theirs], theirs)


def one_thread(record: Mapping[str, Any]) -> str:
    return ", one thread" if "--processor_time" in record["command"] else ""


def embedding_speed(record: Mapping[str, Any]) -> Iterator[Cells]:
    rates = record["residues_per_second"]
    for pair in record["ratios"]:
        ours, _, theirs = pair.partition(" over ")
        way = ours.removeprefix("coordformer, ")
        what = f"embedding {record['chains']} chains, {record['shape']}, {way}, with coordinates{one_thread(record)}"
        yield compare(what, "residues/s", rates[ours], rates[theirs], theirs)


def structure_layers(record: Mapping[str, Any]) -> Iterator[Cells]:
    """One row: every kind at the largest size that it reached, and its time over ours at that size."""
    seconds = {
        kind: {int(points): value for points, value in row.items()} for kind, row in record["seconds"].items() if row
    }
    ours = seconds.pop("coordformer")
    cells, ratios = [], []
    for kind, row in seconds.items():
        if shared := [points for points in row if points in ours]:
            largest = max(shared)
            ratios.append(row[largest] / ours[largest])
            cells.append(f"{kind} {number(1000 * row[largest])} at {largest:,} (x{number(ratios[-1])})")
    largest = max(ours)
    shown = sorted({largest, *(max(row) for row in seconds.values())} & ours.keys())
    low, high = number(min(ratios)), number(max(ratios))
    yield (
        "one layer, forward and backward, ms at the largest number of points reached",
        ", ".join(f"{number(1000 * ours[points])} at {points:,}" for points in shown),
        "; ".join(cells),
        low if low == high else f"{low} to {high}",
    )


def training_by_length(record: Mapping[str, Any]) -> Iterator[Cells]:
    return training_speed(record, by_length=True)


def training_speed(record: Mapping[str, Any], by_length: bool = False) -> Iterator[Cells]:
    """Beside batches by length there is a record of its own."""
    for size, result in record["sizes"].items():
        rates, memory = result.get("residues_per_second", {}), result.get("peak_bytes", {})

        def cell(side: str, rates: Any = rates, memory: Any = memory) -> str:
            parts = [f"{number(rates[side])} residues/s"] if side in rates else []
            parts += [f"{memory[side] / 2**30:.2f} GiB"] if side in memory else []
            return ", ".join(parts)

        for name, ratio in result.get("ratios", {}).items():
            if not isinstance(ratio, int | float) or ("batches by length" in name) != by_length:
                continue
            theirs = name.removeprefix("over ")
            ours, what = "coordformer", f"training, {size}{one_thread(record)}"
            if name == "cost of coordinates":
                theirs, ratio = "coordformer without coordinates", 1 / (1 + ratio)
            elif theirs.endswith(", ours in bfloat16"):
                theirs = theirs.removesuffix(", ours in bfloat16")
                ours, what = f"{ours}, bfloat16", f"{what}, bfloat16 (theirs float32)"
            elif theirs.endswith(", both bfloat16"):
                theirs = theirs.removesuffix(", both bfloat16") + ", bfloat16"
                ours, what = f"{ours}, bfloat16", f"{what}, bfloat16"
            found = cell(theirs)
            yield what, cell(ours), f"{found} ({theirs})" if found else theirs, number(ratio)


def contacts(record: Mapping[str, Any]) -> Iterator[Cells]:
    """One row, at the longest chain."""
    residues = max(record["seconds"]["coordformer"], key=int)

    def cell(side: str) -> str:
        seconds, memory = (record[what][side][residues] for what in ("seconds", "peak_bytes"))
        return f"{number(seconds)} s, {number(memory / 2**20)} MiB"

    ratio = record["seconds"]["EsmModel"][residues] / record["seconds"]["coordformer"][residues]
    what = f"predicting contacts of {int(residues):,} residues, 35M"
    yield what, cell("coordformer"), f"{cell('EsmModel')} (EsmModel.predict_contacts)", number(ratio)


class Benchmark(NamedTuple):
    script: str
    arguments: tuple[str, ...]
    has_quick: bool
    rows: Callable[[Mapping[str, Any]], Iterator[Cells]]


ONE_THREAD = ("--threads", "1", "--processor_time", "--repeats", "5")
BY_LENGTH = (
    *ONE_THREAD, "--skip_memory", "--sizes", "8M", "--chains_a_batch", "6",
    *("--sides", "EsmForMaskedLM, batches by length", "EsmForMaskedLM, batches by length, bfloat16"),
    *("coordformer", "coordformer, bfloat16"),
)  # fmt: skip
ENGINES = (
    *ONE_THREAD, "--chains", "6",
    *("--sides", "EsmModel, one at a time", "coordformer, packed", "EsmModel, one at a time, bfloat16"),
    *("coordformer, packed, bfloat16", "esm-cpp, one at a time", "esm-cpp, packed, logits"),
)  # fmt: skip
BENCHMARKS = {  # the keys name the JSON files
    "training_speed": Benchmark("training_speed", (), True, training_speed),
    "training_by_length": Benchmark("training_speed", BY_LENGTH, False, training_by_length),
    "read_structures": Benchmark("read_structures", (), False, read_structures),
    "collate": Benchmark("collate", (), False, collate),
    "collate_4096": Benchmark("collate", ("--token_budget", "4096"), False, collate_4096),
    "prepare_speed": Benchmark("prepare_speed", (), True, prepare_speed),
    "embedding_speed": Benchmark("embedding_speed", (), True, embedding_speed),
    "embedding_engines": Benchmark("embedding_speed", ENGINES, False, embedding_speed),
    "structure_layers": Benchmark("structure_layers", (), True, structure_layers),
    "contacts": Benchmark("contacts", (), True, contacts),
}


def write_table(folder: Path) -> None:
    lines = ["| what | ours | theirs | ratio |", "| --- | --- | --- | --- |"]
    machines: dict[str, None] = {}
    for name, benchmark in BENCHMARKS.items():
        path = folder / f"{name}.json"
        if not path.exists():
            continue
        try:
            record = json.loads(path.read_text())
            rows = [f"| {' | '.join(cells)} |" for cells in benchmark.rows(record)]
        except (AttributeError, KeyError, StopIteration, TypeError, ValueError, ZeroDivisionError) as error:
            print(f"{path} is not in the table: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        lines += rows
        device = record.get("device", "cpu")
        gpu = "" if device == "cpu" else f"{device}, "
        machines[f"{gpu}{record.get('cpu_count')} cores of {record.get('machine')}"] = None
    if len(lines) == 2:
        sys.exit(f"{folder}: no results to make a table of")
    lines += [
        "",
        "A ratio above 1 says that ours is faster. Beside coordformer without coordinates it is the median over",
        f"pairs of turns, not the quotient of the two columns. Measured on {'; '.join(machines)}.",
    ]
    table = folder / "speed.md"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"\n{table.read_text(encoding='utf-8')}\nwritten to {table}")


def from_root(path: Path) -> str:
    """As the recorded command is to show it, which is called from the root of the repository."""
    path = path.resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def run(name: str, folder: Path, options: argparse.Namespace) -> int:
    benchmark = BENCHMARKS[name]
    command = [sys.executable, f"examples/benchmarks/{benchmark.script}.py", *benchmark.arguments]
    if folder.resolve() != RESULTS or name != benchmark.script:
        command += ["--output", from_root(folder / f"{name}.json")]
    if options.quick and benchmark.has_quick:
        command.append("--quick")
    if options.data is not None and benchmark.script == "training_speed":
        command += ["--data", from_root(options.data)]
    print(f"\n== {' '.join(['python', *command[1:]])}", flush=True)
    start = time.perf_counter()
    code = subprocess.run(command, cwd=ROOT).returncode
    print(f"== {name}: {'done' if code == 0 else f'failed with {code}'} after {time.perf_counter() - start:.0f} s")
    return code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=BENCHMARKS, default=list(BENCHMARKS), metavar="NAME",
                        help=f"of {', '.join(BENCHMARKS)}; without a name none is run")  # fmt: skip
    parser.add_argument("--data", type=Path, help="chains for training_speed")
    parser.add_argument("--quick", action="store_true", help="passed on to those that have it")
    parser.add_argument("--results", type=Path, help="folder of the JSON files and the table")
    options = parser.parse_args()
    folder = options.results or (QUICK_RESULTS if options.quick else RESULTS)
    folder.mkdir(parents=True, exist_ok=True)

    failed = [name for name in BENCHMARKS if name in options.only and run(name, folder, options) != 0]
    write_table(folder)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
