"""From structure files to a data set: `coordformer prepare`.

Three steps, each of which can be stopped at any moment and called again:

1. `plan` lists what there is to read, in parts of a few files;
2. `read_part` turns one part into one Parquet file: any engine may run it, here it is a pool of processes;
3. `assemble` merges duplicates, finds sequence clusters, splits, and writes the shards and what describes them.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jinja2 import Environment
from tqdm.auto import tqdm

from ..model.proteins import distinct_ids
from .arrow import to_arrow, to_numpy
from .cluster import COMPARABLE, assign_splits, cluster_sequences, is_comparable
from .files import write_atomically, write_json, write_text
from .inputs import (
    Reject,
    Source,
    is_archive,
    list_sources,
    name_entries,
    write_rejects,
)
from .reading import CONTENTS_KEY, REJECTS_KEY, PrepareSettings, hash_part, is_read, read_part
from .records import begin_run, counted, hash_file, hash_json, lock_folder, package_version
from .rows import SCHEMA, read_footer, rows_to_table

FILES_PER_PART = 32
SECONDS_WORTH_WORKERS = 1.0
"""What other processes have to save: each takes about half a second of a core to start."""

logger = logging.getLogger(__name__)
READING, DATA, SHEET = "reading", "data", "datasheet.json"


def plan(inputs: Sequence[str | Path]) -> tuple[list[list[Source]], list[Reject]]:
    """The parts, each read at once, of structure files, tar archives, and folders that are searched for both.

    A compressed archive is a part for itself. What cannot be read of the archives comes after the parts.
    """
    sources, rejects = list_sources(inputs)
    sources = name_entries(sources)
    parts = [[source] for source in sources if is_archive(source)]
    sources = [source for source in sources if not is_archive(source)]
    parts += [sources[start : start + FILES_PER_PART] for start in range(0, len(sources), FILES_PER_PART)]
    return parts, rejects


def part_path(output: Path, number: int) -> Path:
    return output / READING / f"part-{number:07d}.parquet"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_all(
    parts: list[list[Source]], settings: PrepareSettings, output: Path, workers: int | None, progress: bool
) -> None:
    """Read the parts that are not there yet, and those whose files have changed since."""
    paths = [part_path(output, number) for number in range(len(parts))]
    for path in filter(Path.exists, paths):
        read_footer(path)  # or raises
    with ThreadPoolExecutor(workers or _cores()) as threads:
        there = list(threads.map(is_read, parts, paths))
    left = deque((part, settings, path) for part, path, done in zip(parts, paths, there, strict=True) if not done)
    total, missing = sum(map(len, parts)), sum(len(part) for part, *_ in left)
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(
            tqdm(total=total, initial=total - missing, unit="file", disable=not progress, smoothing=0)
        )
        lock = threading.Lock()

        def read_next(read: Callable[..., Any]) -> bool:
            """Whether there was a part left; after an error there is none for anybody."""
            try:
                arguments = left.popleft()
            except IndexError:
                return False
            try:
                read(*arguments)
            except BaseException:
                left.clear()
                raise
            with lock:
                bar.update(len(arguments[0]))
            return True

        def read_elsewhere(pool: Executor) -> None:
            while read_next(lambda *arguments: pool.submit(read_part, *arguments).result()):
                pass

        others: list[Future[None]] = []
        seconds = 0.0
        while left:
            if not others and (processes := _worth(workers, len(left), seconds)) > 1:
                # Spawned, not forked: this process may hold threads, and a fork of a threaded process can hang. It
                # reads on while they start.
                pool = ProcessPoolExecutor(processes - 1, mp_context=get_context("spawn"))
                stack.callback(pool.shutdown, wait=False)  # they end while the parts are assembled
                threads = stack.enter_context(ThreadPoolExecutor(processes - 1))
                others = [threads.submit(read_elsewhere, pool) for _ in range(processes - 1)]
            start = time.monotonic()
            read_next(read_part)
            seconds = time.monotonic() - start
        try:
            for other in others:
                other.result()
        except BrokenProcessPool as error:
            raise OSError(
                f"a worker of `prepare` was killed, perhaps for want of memory; {output} keeps what was read: run the "
                f"same command again to go on, with fewer than {processes} --workers if it happens again"
            ) from error


def _worth(workers: int | None, parts: int, seconds: float) -> int:
    """Processes that are to read so many parts, of which the last took so many seconds.

    Without a number of workers it is one until the others save enough time to be worth their start.
    """
    processes = min(workers or _cores(), parts)
    saved = seconds * parts * (1 - 1 / processes)
    return processes if workers is not None or saved > SECONDS_WORTH_WORKERS else 1


def merge_duplicates(table: pa.Table) -> tuple[np.ndarray, list[list[str] | None]]:
    """One chain for each sequence: the one with most observed residues, then the best resolution, then the first.

    Returns:
        The row numbers that stay, ascending, and for each the ids of the chains it stands for besides itself.
    """
    sequences = to_numpy(table["sequence"].combine_chunks().dictionary_encode().indices)
    resolution = np.array([np.inf if each is None else each for each in table["resolution"].to_pylist()])
    rank = np.lexsort((np.arange(len(table)), resolution, -to_numpy(table["observed"]), sequences))
    first = np.flatnonzero(np.diff(sequences[rank], prepend=-1))
    ids = table["id"].to_pylist()
    chosen = {int(group[0]): [ids[row] for row in group[1:]] for group in np.split(rank, first[1:]) if len(group)}
    kept = sorted(chosen)
    return np.array(kept, dtype=np.int64), [sorted(chosen[row]) or None for row in kept]


def assemble(
    output: str | Path, settings: PrepareSettings, rejects: Sequence[Reject] = (), threads: int | None = None
) -> dict[str, Any]:
    """Make the data set out of the parts in `output/reading`, which are removed at the end.

    Args:
        output: the folder of the data set.
        settings, rejects: as of `read_part`, and of `plan`.
        threads: of MMseqs2.

    Returns:
        The datasheet, see `write_datasheet`.
    """
    output, splits = Path(output), settings.splits
    parts = sorted((output / READING).glob("part-*.parquet"))
    footers = [read_footer(part).metadata for part in parts]
    all_rejects = [*rejects, *(tuple(reject) for footer in footers for reject in json.loads(footer[REJECTS_KEY]))]
    contents = [each for footer in footers for each in json.loads(footer.get(CONTENTS_KEY, b"[]"))]
    columns = ["id", "sequence", "length", "observed", "resolution", "method", "source"]
    tables = [pq.ParquetFile(part).read(columns).select(columns) for part in parts]
    table = pa.concat_tables([rows_to_table([]).select(columns), *tables])
    # More than 2^31 letters together do not fit in Arrow's plain strings.
    large = [each.with_type(pa.large_string()) if each.type == pa.string() else each for each in table.schema]
    table = table.cast(pa.schema(large))
    if pc.count_distinct(table["id"]).as_py() < len(table):  # of compressed archives, or of parts of older versions
        ids = distinct_ids(table["id"].to_pylist(), [source or "" for source in table["source"].to_pylist()])
        table = table.set_column(0, table.schema.field("id"), to_arrow(ids, pa.large_string()))
    table = table.drop_columns("source")
    kept = np.arange(len(table))
    aliases: list[list[str] | None] = [None] * len(table)
    if not settings.keep_duplicates:
        kept, aliases = merge_duplicates(table)
    summary = table.take(to_arrow(kept, pa.int64()))
    clusters: np.ndarray | None = None
    names = np.full(len(kept), "train", dtype=object)
    if splits is not None and len(kept):
        # In an order of their own, so that clusters do not depend on the names of the files.
        sorted_rows = pc.sort_indices(summary["sequence"])
        order, sequences = to_numpy(sorted_rows), summary["sequence"].take(sorted_rows).to_pylist()
        labels = cluster_sequences(sequences, settings.identity, settings.coverage, threads, output / READING)
        names[order] = assign_splits(labels, sequences, splits, settings.seed)
        clusters = np.unique(labels, return_inverse=True)[1][np.argsort(order)]
    extra = pa.table(
        {
            "id": summary["id"],
            "cluster": pa.nulls(len(kept), pa.int32()) if clusters is None else to_arrow(clusters, pa.int32()),
            "split": pa.nulls(len(kept), pa.string()) if splits is None else to_arrow(names, pa.string()),
            "aliases": to_arrow(aliases, SCHEMA.field("aliases").type),
        }
    )

    # Built beside and moved into place whole, so that no part of a data set is taken for one.
    folder = output / f"{DATA}.tmp"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    writers = {
        name: _ShardWriter(folder, name, int((names == name).sum()), settings.chains_per_shard)
        for name in (splits or ("train",))
    }
    bounds = np.cumsum([0, *map(len, tables)])
    for part, start, end in zip(parts, bounds, bounds[1:], strict=False):
        inside = np.arange(*np.searchsorted(kept, [start, end]))
        rows = pq.ParquetFile(part).read().take(to_arrow(kept[inside] - start, pa.int64()))
        more = extra.take(to_arrow(inside, pa.int64()))
        for column in extra.column_names:
            place = rows.column_names.index(column)
            rows = rows.set_column(place, SCHEMA.field(column), more[column].cast(SCHEMA.field(column).type))
        for name, writer in writers.items():
            writer.add(rows.take(to_arrow(np.flatnonzero(names[inside] == name), pa.int64())))
    for writer in writers.values():
        writer.write()
    shutil.rmtree(output / DATA, ignore_errors=True)
    os.replace(folder, output / DATA)

    write_rejects(output / "rejected.tsv", all_rejects)
    files = sum(int(footer[b"files"]) for footer in footers)
    counts = {"chains_read": len(table), "files": files, "duplicates_merged": len(table) - len(kept)}
    chains = summary.append_column("split", to_arrow(names, pa.string()))
    sheet = write_datasheet(output, chains, clusters, all_rejects, counts, settings.decisive(), hash_json(contents))
    shutil.rmtree(output / READING, ignore_errors=True)
    return sheet


class _ShardWriter:
    """Writes rows as shards of equal numbers of chains."""

    def __init__(self, folder: Path, split: str, chains: int, chains_per_shard: int):
        self.folder, self.split, self.size = folder, split, chains_per_shard
        self.shards = -(-chains // chains_per_shard)
        self.written = 0
        self.waiting = rows_to_table([])

    def add(self, rows: pa.Table) -> None:
        self.waiting = pa.concat_tables([self.waiting, rows.cast(SCHEMA)])
        while len(self.waiting) >= self.size:
            self.write()

    def write(self) -> None:
        """A shard of what waits, if there is anything."""
        rows, self.waiting = self.waiting.slice(0, self.size), self.waiting.slice(self.size)
        if len(rows):
            path = self.folder / f"{self.split}-{self.written:05d}-of-{self.shards:05d}.parquet"
            write_atomically(path, lambda temporary: pq.write_table(rows, temporary, compression="zstd"))
            self.written += 1


QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)


def write_datasheet(
    output: Path,
    chains: pa.Table,
    clusters: np.ndarray | None,
    rejects: Sequence[Reject],
    counts: Mapping[str, int],
    settings: Mapping[str, Any],
    contents: str,
) -> dict[str, Any]:
    """Write what a user of the data set has to know as `datasheet.json` and, for people and the Hub, `README.md`.

    `contents` is the hash of all that it was made of.
    """
    lengths, observed = to_numpy(chains["length"]), to_numpy(chains["observed"])
    names = np.array(chains["split"].to_pylist(), dtype=object)
    short = sum(not is_comparable(sequence) for sequence in chains["sequence"].to_pylist())
    # Numbers differ from file to file, the reason does not.
    reasons = Counter(re.sub(r"\d+(\.\d+)?", "#", reason)[:100] for *_, reason in rejects)

    def quantiles(values: np.ndarray) -> dict[str, float]:
        return {f"{q:.0%}": round(float(np.quantile(values, q)), 4) for q in QUANTILES if len(values)}

    def count(inside: np.ndarray) -> dict[str, int | None]:
        return {
            "chains": int(inside.sum()),
            "residues": int(lengths[inside].sum()),
            "clusters": None if clusters is None else len(np.unique(clusters[inside])),
        }

    sheet: dict[str, Any] = {
        "counts": {
            **counts,
            "rejected": len(rejects),
            **count(np.ones(len(chains), dtype=bool)),
            "observed_residues": int(observed.sum()),
            "too_short_to_cluster": None if clusters is None else short,
        },
        "splits": {str(name): count(names == name) for name in sorted(set(names))},
        "length": quantiles(lengths),
        "observed_share": quantiles(observed / np.maximum(lengths, 1)),
        "methods": dict(Counter(method or "not stated" for method in chains["method"].to_pylist()).most_common()),
        "reject_reasons": dict(reasons.most_common(20)),
        "settings": dict(settings),
        "contents": contents,
        "versions": {"coordformer": package_version(), **{name: version(name) for name in ("gemmi", "pyarrow")}},
        "shards": {
            path.name: {"rows": read_footer(path).num_rows, "bytes": path.stat().st_size, "sha256": hash_file(path)}
            for path in sorted((output / DATA).glob("*.parquet"))
        },
    }
    template = Path(__file__).with_name("datasheet.md.jinja").read_text(encoding="utf-8")
    environment = Environment(trim_blocks=True, keep_trailing_newline=True)
    text = environment.from_string(template).render(sheet, folder=DATA, comparable=COMPARABLE)
    write_text(output / "README.md", text)
    write_json(output / SHEET, sheet)
    return _read_sheet(output)


def _read_sheet(output: Path) -> dict[str, Any]:
    return dict(json.loads((output / SHEET).read_text(encoding="utf-8")))


def prepare(
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    workers: int | None = None,
    failed: Sequence[tuple[str, str]] = (),
    progress: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Turn structure files into Parquet shards that `datasets.load_dataset(output)` reads and streams.

    The data set appears whole or not at all; a run that was stopped goes on where it was when it is called again with
    the same arguments, and reads again what has changed since. The result depends on the files alone, not on the number
    of workers. Ids are all different: chains of equal ones have the part of their file's path in them that tells them
    apart, see `inputs.name_entries`.

    Args:
        inputs: structure files, tar archives of them, and folders that are searched for both.
        output: a folder; gets `data/<split>-*.parquet`, `rejected.tsv` (file, chain, reason), `datasheet.json`,
            `README.md` and `run.json`.
        workers: processes that read; by default one, and one per core for what is left as soon as that is sooner.
        failed: ids and reasons of what could not be fetched; they go into `rejected.tsv`.
        progress: show a progress bar.
        options: of `PrepareSettings`.

    Returns:
        The datasheet, see `write_datasheet`.

    Raises:
        ValueError: an option is unusable, there is nothing to read, or `output` holds another data set, or one of files
            that have changed since.
        OSError: a worker was lost or a disk is full, and what was read stays; or another run is writing to `output`.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"`workers` is {workers}; it must be at least 1.")
    output, settings = Path(output), PrepareSettings(**options)
    parts, rejects = plan(inputs)
    with lock_folder(output):
        if not begin(output, settings, parts):
            _check_contents(parts, output, workers)
            return _read_sheet(output)
        _read_all(parts, settings, output, workers, progress)
        return assemble(output, settings, [*((name, "", reason) for name, reason in failed), *rejects], workers)


def _check_contents(parts: list[list[Source]], output: Path, workers: int | None) -> None:
    """`ValueError` unless the files are those that a finished data set was made of."""
    before = _read_sheet(output).get("contents")  # older versions did not write it
    if before is None:
        return
    with ThreadPoolExecutor(workers or _cores()) as threads:
        hashes = [each for part in threads.map(hash_part, parts) for each in part]
    if hash_json(hashes) != before:
        what = "the files that this data set was made of have changed since"
        raise ValueError(f"{output}: {what}; choose another output folder, or delete it.")


def begin(output: Path, settings: PrepareSettings, parts: Sequence[Sequence[Source]]) -> bool:
    """Claim a folder for a run or go on with it, as of `records.begin_run`: whether there is anything left to do.

    A ValueError says that it holds parts, or a data set, of other files or other settings.
    """
    reading, sheet = output / READING, output / SHEET
    sources = [[source.name, source.size, source.offset] for part in parts for source in part]
    decisive = settings.decisive() | {"sources": {"files": len(sources), "sha256": hash_json(sources)}}
    begin_run(
        output,
        decisive | {"splits": settings.splits and list(settings.splits.items())},  # their order counts
        holds_results=sheet.exists() or (output / DATA).exists() or any(reading.glob("part-*.parquet")),
    )
    if sheet.exists() and (output / DATA).exists():
        shutil.rmtree(reading, ignore_errors=True)
        return False
    reading.mkdir(exist_ok=True)
    for leftover in reading.glob("*.tmp"):
        leftover.unlink()
    return True


def fetch_and_prepare(
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    fetch: Sequence[str] = (),
    allow_missing: bool = False,
    requests_per_second: float = 10.0,
    rcsb_url: str | None = None,
    alphafold_url: str | None = None,
    workers: int | None = None,
    progress: bool = True,
    **options: Any,
) -> dict[str, int]:
    """`prepare` files and what is fetched by its id: `coordformer prepare`.

    Args:
        fetch: PDB ids, UniProt accessions, or files that list them, see `fetch.parse_ids`; files go to
            `output`/downloads.
        allow_missing: go on without ids that could not be fetched.
        requests_per_second, rcsb_url, alphafold_url: as of `fetch.fetch`.
        inputs, output, workers, options, progress: as of `prepare`.

    Returns:
        The counts of the datasheet.

    Raises:
        ValueError: there is nothing to prepare, an id could not be fetched, or no chain was kept.
    """
    PrepareSettings(**options)  # or raises, before anything is fetched
    found: list[str | Path] = list(inputs)
    failed: list[tuple[str, str]] = []
    if fetch:
        from .fetch import fetch as fetch_files  # most runs wait for no web client
        from .fetch import parse_ids

        mirrors = {"rcsb_url": rcsb_url, "alphafold_url": alphafold_url}
        settings: dict[str, Any] = {name: url for name, url in mirrors.items() if url is not None}
        settings |= {"requests_per_second": requests_per_second, "progress": progress}
        files, failed = fetch_files(parse_ids(fetch), Path(output) / "downloads", **settings)
        found += files
        if failed and not (allow_missing and found):
            raise ValueError(
                f"{len(failed)} of the ids could not be fetched; the first: {failed[0][0]}, {failed[0][1]}. Run again "
                "to try them again, or with --allow_missing to go on without them."
            )
    if not found:
        raise ValueError("There is nothing to prepare; give files, folders or tar archives, or ids after --fetch.")
    sheet = prepare(found, output, workers=workers, failed=failed, progress=progress, **options)
    for name in options.get("splits") or ():
        if name not in sheet["splits"]:
            logger.warning("no sequence cluster fell into the split %r", name)
    counts: dict[str, int] = sheet["counts"]
    if not counts["chains"]:
        raise ValueError(f"No chain was kept; {output}/rejected.tsv says why.")
    return counts


def describe(counts: Mapping[str, int]) -> str:
    """The counts of a datasheet as a short text."""
    return (
        f"{counted(counts['chains'], 'chain')} with {counted(counts['residues'], 'residue')} of "
        f"{counted(counts['files'], 'file')}\nmerged as duplicates: {counted(counts['duplicates_merged'], 'chain')}; "
        f"left out, as rejected.tsv says: {counts['rejected']:,} files or chains"
    )
