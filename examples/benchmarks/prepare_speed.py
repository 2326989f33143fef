"""Files a second: `coordformer.data.prepare.prepare` against Biopython and pyarrow, from mmCIF files to Parquet.

    python examples/benchmarks/prepare_speed.py
    python examples/benchmarks/prepare_speed.py --folder ~/pdb --processes 1 8 --output pdb.json
    python examples/benchmarks/prepare_speed.py --skip_biopython --output processes.json

Biopython's side reads each file as in read_structures.py and writes one Parquet file with the same columns, but leaves
B-factors, method and resolution empty. `prepare` fills these, looks for equal sequences (all are kept), writes parts
and then shards with checksums, a list of what was rejected, and a datasheet. The time is that of the whole call, with
the start of other processes; that start is measured by itself, too. Of N processes the one that calls is the first. It
reads while the others start; `prepare` hands out files in parts of 32 and starts no process for a single part.

Without --folder the mmCIF files of tests/data/structures are copied, each some times under other names. Both read from
and write to the same disk, every run into a fresh folder. The sides take turns; the time of a side is the median over
the repeats. Before the clock starts, the two results are compared. Several processes gain only where cores are free:
the cores that other programs used in each turn are in the record, on Linux.
"""

import argparse
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bars import draw_bars

from coordformer.data.inputs import list_sources
from coordformer.data.prepare import DATA, FILES_PER_PART, prepare
from coordformer.data.reading import hash_part
from coordformer.data.rows import SCHEMA

HERE = Path(__file__).parent
BIOPYTHON = "Biopython, 1 process"


def ours(processes: int) -> str:
    return f"coordformer, {processes} process{'es' if processes > 1 else ''}"


def copy_files(files: Sequence[Path], copies: int, folder: Path) -> list[Path]:
    """All files, then all again: what `prepare` hands out at once is then of every kind."""
    copied = [folder / f"{number:04d}-{file.name}" for number in range(copies) for file in files]
    for number, target in enumerate(copied):
        shutil.copy(files[number % len(files)], target)
    return copied


def with_prepare(files: Sequence[Path], output: Path, processes: int) -> None:
    prepare(files, output, keep_duplicates=True, workers=processes, progress=False)


def with_biopython(files: Sequence[Path], output: Path) -> None:
    from read_structures import with_biopython as read  # here, as the workers import this file

    rows = []
    for file in files:
        try:
            chains = read(file)
        except Exception as error:  # of files from anywhere
            print(f"Biopython: {file.name}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        for name, (sequence, coords) in chains.items():
            row = dict.fromkeys(SCHEMA.names) | {
                "id": f"{file.name.partition('.')[0]}_{name}",
                "sequence": sequence,
                "length": len(sequence),
                "observed": int((~np.isnan(coords[:, 0])).sum()),
                "atoms": ["CA"],
                "coords": coords.reshape(-1),
                "source": file.name,
            }
            rows.append(row)
    (output / DATA).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), output / DATA / "train.parquet", compression="zstd")


def start_workers(processes: int) -> float:
    """Seconds until the other processes of `prepare` have imported what they run, and ended."""
    start = time.perf_counter()
    with ProcessPoolExecutor(processes - 1, mp_context=get_context("spawn")) as pool:
        list(pool.map(hash_part, [[]] * (processes - 1)))
    return time.perf_counter() - start


def seconds(write: Callable[[Sequence[Path], Path], None], files: Sequence[Path]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        write(files, Path(folder) / "out")
        return time.perf_counter() - start


def busy_seconds() -> float | None:
    """Of all cores since the machine started, less those of this process and of children that ended; Linux only."""
    try:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq = map(int, words[1:8])
    own = sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK") - own


def watched(turn: Callable[[], float], busy: list[float | None]) -> Callable[[], float]:
    """The same turn; `busy` then has the cores that other programs used meanwhile, on average."""

    def watch() -> float:
        before, start = busy_seconds(), time.perf_counter()
        found, after = turn(), busy_seconds()
        elapsed = time.perf_counter() - start
        busy.append(None if before is None or after is None else round((after - before) / elapsed, 3))
        return found

    return watch


def compare(files: Sequence[Path]) -> dict[str, int]:
    """Chains and residues that both sides write, and how many of these have the same C-alpha on both.

    The sides choose differently where residue types or conformers tie, so agreement is counted and not required.
    """
    tables: list[dict[tuple[str, str], dict[str, Any]]] = []
    for write in (partial(with_prepare, processes=1), with_biopython):
        with tempfile.TemporaryDirectory() as folder:
            write(files, Path(folder) / "out")
            rows = pq.read_table(Path(folder) / "out" / DATA).to_pylist()
        tables.append({(Path(row["source"]).name, row["id"].rpartition("_")[2]): row for row in rows})
    pairs = [(tables[0][key], tables[1][key]) for key in tables[0].keys() & tables[1].keys()]
    same = 0
    for a, b in pairs:
        if a["length"] == b["length"]:
            xyz = [np.array(row["coords"], dtype=np.float32).reshape(-1, 3) for row in (a, b)]
            same += int(np.isclose(*xyz, atol=1e-3, equal_nan=True).all(axis=1).sum())
    return {
        "chains_of_coordformer": len(tables[0]),
        "chains_of_biopython": len(tables[1]),
        "chains_of_both": len(pairs),
        "residues": sum(a["length"] for a, _ in pairs),
        "residues_with_same_calpha": same,
    }


def main() -> None:
    from harness import take_turns, write_record  # here, as it imports torch, and the workers import this file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="mmCIF files of your own, read as they are")
    parser.add_argument("--copies", type=int, default=30, help="of the files in tests/data/structures")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="of prepare")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--skip_biopython", action="store_true", help="one process against several, no other side")
    parser.add_argument("--quick", action="store_true", help="8 copies, 2 repeats")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "prepare_speed.json")
    options = parser.parse_args()
    if options.quick:
        options.copies, options.repeats = 8, 2
    warnings.simplefilter("ignore")

    folder = options.folder or HERE.parent.parent / "tests" / "data" / "structures"
    found = [Path(source.path) for source in list_sources([folder], (".cif", ".mmcif", ".pdbx"))[0]]
    if not found:
        sys.exit(f"{folder}: no mmCIF files; give --folder")
    with tempfile.TemporaryDirectory() as temporary:
        files = found if options.folder else copy_files(found, options.copies, Path(temporary))
        agreement = {} if options.skip_biopython else compare(files[: len(found)])
        busy: dict[str, list[float | None]] = {}
        sides: dict[str, Callable[[], float]] = {
            ours(n): watched(partial(seconds, partial(with_prepare, processes=n), files), busy.setdefault(ours(n), []))
            for n in options.processes
        }
        if not options.skip_biopython:
            sides[BIOPYTHON] = partial(seconds, with_biopython, files)
        starts = {f"starting {n} processes": partial(start_workers, n) for n in options.processes if n > 1}
        starts = starts if len(files) > FILES_PER_PART else {}
        raw = take_turns(sides | starts, options.repeats)

    medians = {side: statistics.median(times) for side, times in raw.items()}
    rates = {side: len(files) / medians[side] for side in sides}
    base = ours(options.processes[0]) if options.skip_biopython else BIOPYTHON
    ratios = {side: rates[side] / rates[base] for side in sides if side != base}
    print(f"{len(files)} mmCIF files; of {len(found)} compared: {agreement}")
    print(f"\n| side | files/s | s | over {base} |\n| --- | ---: | ---: | ---: |")
    for side in sides:
        print(f"| {side} | {rates[side]:,.1f} | {medians[side]:.2f} | {rates[side] / rates[base]:.2f} |")
    print()
    for name in starts:
        print(f"{name}: {medians[name]:.2f} s")
    record = {
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in found) * len(files) // len(found),
        "copies": None if options.folder else options.copies,
        "agreement": agreement,
        "files_per_second": rates,
        "ratios": ratios,
        "seconds_to_start": {name: medians[name] for name in starts},
        "seconds": raw,
        "cores_that_other_programs_used": busy,
    }
    write_record(options.output, record, ("coordformer", "gemmi", "biopython", "pyarrow", "numpy"))
    if options.skip_biopython:
        return
    title = f"{len(files)} mmCIF files to Parquet, the start of the processes included"
    draw_bars(options.output.with_suffix(".png"), title, "files a second", rates)


if __name__ == "__main__":
    main()
