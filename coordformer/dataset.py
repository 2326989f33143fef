"""Rows of a data set: from structure files (`prepare`) or Parquet, and from rows to batches.

A row is a dictionary with the columns of `SCHEMA`. Coordinates are one flat list per chain, (residues, atoms, 3) in C
order, NaN where unobserved: nested lists read 40 times slower.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from datasets.exceptions import DatasetGenerationError
from tqdm.auto import tqdm

from .processing_coordformer import SPECIAL_TOKENS
from .structure import Chain, find_structures, read_chains

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("sequence", pa.string()),
        ("length", pa.int32()),  # residues
        ("observed", pa.int32()),  # residues with at least one observed atom
        ("atoms", pa.list_(pa.string())),
        ("coords", pa.list_(pa.float32())),  # Å
        ("b_factor", pa.list_(pa.float32())),  # Å^2, or pLDDT in predicted structures
        ("method", pa.string()),
        ("resolution", pa.float32()),  # Å
        ("source", pa.string()),  # the file a chain was read from, or the collection it belongs to
        ("cluster", pa.int32()),  # sequence cluster, where known
        ("split", pa.string()),
    ]
)


def chain_to_row(chain: Chain, source: str | None = None) -> dict[str, Any]:
    """The row of a chain; `processing_coordformer.chain_arrays` reads it back."""
    return {
        "id": chain.id,
        "sequence": chain.sequence,
        "length": len(chain),
        "observed": int(chain.observed.any(axis=1).sum()),
        "atoms": list(chain.atoms),
        "coords": chain.coords.reshape(-1),
        "b_factor": chain.b_factor,
        "method": chain.method,
        "resolution": chain.resolution,
        "source": source,
        "cluster": None,
        "split": None,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def load_rows(path: str | Path, split: str | None = None) -> Dataset:
    """Open a data set of chains.

    Args:
        path: a folder made by `prepare`, or one Parquet file with the columns of `SCHEMA` or in the compact layout of
            `read_compact`.
        split: only rows whose column `split` has this value, such as `"train"` or `"valid"`.

    Returns:
        A `datasets.Dataset` with the columns of `SCHEMA`.

    Raises:
        FileNotFoundError: there is no Parquet file.
        ValueError: the columns are others, a file is unreadable, or the split is empty.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("data/*.parquet")) or sorted(path.glob("*.parquet"))
    else:
        files = [path] if path.exists() else []
    if not files:
        raise FileNotFoundError(f"No Parquet file at {path}; give a folder made by `coordformer prepare` or a file.")
    files = [file for file in files if _read_footer(file).num_rows]  # `datasets` cannot read an empty one
    if not files:
        raise ValueError(f"{path} has no rows; see rejected.tsv for why, if `coordformer prepare` made it.")
    columns = pq.read_schema(files[0]).names
    if "ca_x" in columns:
        rows = Dataset(pa.concat_tables([read_compact(file) for file in files]))
    elif not {"id", "sequence", "length", "coords", "atoms"} <= set(columns):
        raise ValueError(
            f"{files[0]} has the columns {', '.join(columns)}; a data set of chains needs {', '.join(SCHEMA.names)}. "
            "Make one with `coordformer prepare`."
        )
    else:
        try:
            rows = Dataset.from_parquet([str(file) for file in files])
        except DatasetGenerationError as error:
            raise ValueError(f"{path} cannot be read ({error.__cause__ or error}); prepare it again.") from error
    if split is not None:
        if "split" not in rows.column_names:
            raise ValueError(f"{path} has no column `split`; leave the split {split!r} out.")
        values = np.asarray(rows["split"][:], dtype=object)
        rows = rows.select(np.flatnonzero(values == split))
        if len(rows) == 0:
            found = ", ".join(sorted({str(value) for value in values if value is not None}))
            raise ValueError(
                f"No row of {path} is in split {split!r}; "
                + (f"the file has: {found}." if found else "its column `split` is empty: leave the split out.")
            )
    return rows


def _read_footer(file: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(file)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file} is not a readable Parquet file ({error}); prepare it again.") from error


def read_compact(path: str | Path) -> pa.Table:
    """Read the compact layout: one C-alpha per residue in whole hundredths of an Å.

    The columns `ca_x`, `ca_y` and `ca_z` are lists of int16, -32768 where not observed; `id` and `sequence` are
    required, `source`, `method`, `resolution`, `cluster30` and `split` are taken where present.

    Returns:
        A table with the columns of `SCHEMA`; `b_factor` is null.

    Raises:
        ValueError: a column is missing, or coordinates and sequence of a chain differ in length.
    """
    table = pq.read_table(path)
    if missing := {"id", "sequence", "ca_x", "ca_y", "ca_z"} - set(table.column_names):
        raise ValueError(f"{path} lacks the columns {', '.join(sorted(missing))} of the compact layout.")
    if table["sequence"].null_count:
        raise ValueError(f"{path} has {table['sequence'].null_count} rows without a sequence; remove them.")
    sequences = table["sequence"].combine_chunks()
    lengths = np.asarray(pc.utf8_length(sequences))
    planes = []
    for name in ("ca_x", "ca_y", "ca_z"):
        column = table[name].combine_chunks()
        counts = np.asarray(column.value_lengths())
        if not np.array_equal(counts, lengths):
            row = int(np.flatnonzero(counts != lengths)[0])
            raise ValueError(
                f"{path}, chain {table['id'][row]}: {counts[row]} values in {name} for {lengths[row]} residues."
            )
        planes.append(column.flatten().to_numpy())
    raw = np.stack(planes, axis=1)
    coords = np.where(raw == -32768, np.float32("nan"), raw.astype(np.float32) / np.float32(100))
    ends = lengths.cumsum()
    seen = np.append(0, np.isfinite(coords).all(axis=1).cumsum())
    observed = seen[ends] - seen[ends - lengths]
    offsets = np.append(0, 3 * ends).astype(np.int32)

    def optional(column: str, name: str) -> pa.Array:
        kind = SCHEMA.field(name).type
        return table[column].combine_chunks().cast(kind) if column in table.column_names else pa.nulls(len(table), kind)

    columns = {
        "id": optional("id", "id"),
        "sequence": sequences,
        "length": pa.array(lengths, pa.int32()),
        "observed": pa.array(observed, pa.int32()),
        "atoms": pa.array([["CA"]] * len(table), SCHEMA.field("atoms").type),
        "coords": pa.ListArray.from_arrays(pa.array(offsets), pa.array(coords.reshape(-1))),
        "b_factor": pa.nulls(len(table), SCHEMA.field("b_factor").type),
        "method": optional("method", "method"),
        "resolution": optional("resolution", "resolution"),
        "source": optional("source", "source"),
        "cluster": optional("cluster30", "cluster"),
        "split": optional("split", "split"),
    }
    return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def fetch_rows(rows: Dataset, indices: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
    """The rows at `indices` with what a collator reads; coordinates as numpy views, not Python lists."""
    table = rows.with_format("arrow")[list(map(int, indices))]
    coords = table["coords"].combine_chunks()
    values, offsets = coords.values.to_numpy(zero_copy_only=False), coords.offsets.to_numpy()
    columns = (table[name].to_pylist() for name in ("id", "sequence", "atoms"))
    return [
        {"id": name, "sequence": sequence, "atoms": tuple(atoms), "coords": values[offsets[i] : offsets[i + 1]]}
        for i, (name, sequence, atoms) in enumerate(zip(*columns, strict=True))
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------------------------------------------------

BUCKET = 8  # residues; chains whose lengths round up to the same multiple are interchangeable


class ChainBatches(torch.utils.data.Dataset):
    """A data set whose items are batches (lists of rows), for `Trainer` with a batch size of 1.

    With a `token_budget` a batch holds chains of like length, as many as fit when all are padded to the longest; which
    chains meet and the order of the batches change with every epoch, their number does not. With `chains_per_batch`
    it holds that many chains at random, as in the paper.

    Args:
        rows: chains with the columns of `SCHEMA`.
        token_budget: tokens of a batch, padding and special tokens included.
        chains_per_batch: chains of a batch.
        max_length: residues to which the collator crops.
        seed: of the order.
        augment: whether the collator may rotate, add noise to, and withhold coordinates.
    """

    def __init__(
        self,
        rows: Dataset,
        token_budget: int | None = None,
        chains_per_batch: int | None = None,
        max_length: int | None = None,
        seed: int = 0,
        augment: bool = True,
    ):
        if (token_budget is None) == (chains_per_batch is None):
            raise ValueError("Give either `token_budget` or `chains_per_batch`.")
        if len(rows) == 0:
            raise ValueError("The data set has no rows.")
        for name, value, least in (
            ("token_budget", token_budget, 1),
            ("chains_per_batch", chains_per_batch, 1),
            ("max_length", max_length, 1),
            ("seed", seed, 0),
        ):
            if value is not None and value < least:
                raise ValueError(f"`{name}` is {value}; it must be at least {least}.")
        self.rows, self.seed, self.augment = rows, seed, augment
        # Shared memory: the workers of a DataLoader that outlive an epoch see the next one, too.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        lengths = np.asarray(rows.with_format("numpy")["length"][:])
        if max_length is not None:
            lengths = np.minimum(lengths, max_length)
        self.lengths = lengths + SPECIAL_TOKENS
        self.buckets = -(-self.lengths // BUCKET) * BUCKET
        if chains_per_batch is not None:
            self.bounds = np.append(np.arange(0, len(rows), chains_per_batch), len(rows))
        else:
            assert token_budget is not None
            longest = int(self.lengths.max())
            if longest > token_budget:
                raise ValueError(
                    f"`token_budget` is {token_budget}, but the longest chain has {longest} tokens; raise the budget "
                    "or set `max_length`."
                )
            self.bounds = self._fill(token_budget)
        self.by_length = token_budget is not None
        self._order: list[np.ndarray] = []
        self._ordered_epoch: int | None = None

    def _fill(self, token_budget: int) -> np.ndarray:
        """Cut the chains, sorted by bucket, into batches that fit whichever chain of a bucket comes where."""
        bounds, start = [0], 0
        # A bucket may round the longest chains up beyond the budget.
        sizes = np.minimum(np.sort(self.buckets), token_budget)
        for end in range(1, len(sizes) + 1):
            if end < len(sizes) and (end + 1 - start) * sizes[end] <= token_budget:
                continue
            bounds.append(end)
            start = end
        return np.asarray(bounds)

    def set_epoch(self, epoch: int) -> None:
        """Called by `Trainer` at the start of an epoch."""
        self._epoch.fill_(epoch)

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def order(self) -> list[np.ndarray]:
        """Row numbers of each batch of this epoch."""
        epoch = self.epoch
        if self._ordered_epoch != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            rows = rng.permutation(len(self.rows))
            if self.by_length:
                rows = rows[np.argsort(self.buckets[rows], kind="stable")]
            batches = np.split(rows, self.bounds[1:-1])
            self._order, self._ordered_epoch = [batches[i] for i in rng.permutation(len(batches))], epoch
        return self._order

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        marks = {"epoch": self.epoch, "augment": self.augment}
        return [row | marks for row in fetch_rows(self.rows, self.order()[index])]

    def padding_share(self) -> float:
        """Share of this epoch's tokens that is padding."""
        total = sum(len(batch) * int(self.lengths[batch].max()) for batch in self.order())
        return 1 - int(self.lengths.sum()) / total


# ---------------------------------------------------------------------------------------------------------------------
# Preparing
# ---------------------------------------------------------------------------------------------------------------------


def _read_file(path: Path, atoms: tuple[str, ...], min_plddt: float | None):
    """Runs in a worker: the chains of one file and what was wrong with it, as (chain or "", reason)."""
    problems: list[tuple[str, str]] = []
    try:
        chains = read_chains(path, atoms=atoms, min_plddt=min_plddt, problems=problems)
    except (ValueError, OSError) as error:
        return [], [("", str(error))]
    except Exception as error:  # whatever else a file of a million brings up must not cost the others
        return [], [("", f"{path}: {type(error).__name__}: {error}")]
    return chains, problems


def _filter(chain: Chain, min_length: int, max_length: int | None, min_observed: float) -> str | None:
    """Why a chain is left out, or None."""
    observed = float(chain.observed.any(axis=1).mean())
    if len(chain) < min_length:
        return f"{len(chain)} residues are fewer than min_length={min_length}"
    if max_length is not None and len(chain) > max_length:
        return f"{len(chain)} residues are more than max_length={max_length}"
    if observed < min_observed:
        return f"{observed:.3f} of the residues are observed, less than min_observed={min_observed}"
    return None


def write_atomically(path: Path, write) -> None:
    """Call `write(temporary path)`, then move the finished file into place."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# A shard carries what was rejected beside its rows, so that one file says all of it at once. A shard without rows is
# kept apart: `datasets` cannot stream it.
REJECTS_KEY, JOB_KEY, EMPTY = b"coordformer.rejects", b"coordformer.job", "empty"


def prepare(
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    atoms: Sequence[str] = ("CA",),
    min_plddt: float | None = None,
    min_length: int = 1,
    max_length: int | None = None,
    min_observed: float = 0.0,
    files_per_shard: int = 1000,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, int]:
    """Turn structure files into Parquet shards that `datasets.load_dataset(output)` reads and streams.

    A shard appears whole or not at all; a run that was stopped goes on after the last whole shard when it is called
    again with the same arguments. The result depends on the files alone, not on the number of workers.

    Args:
        inputs: structure files, and folders that are searched for them.
        output: a folder; gets `data/train-*.parquet` and `rejected.tsv` (file, chain, reason).
        atoms: the atoms to keep.
        min_plddt: residues of predicted structures below this confidence count as not observed.
        min_length: chains with fewer residues are rejected.
        max_length: chains with more residues are rejected.
        min_observed: chains with a smaller share of observed residues are rejected.
        files_per_shard: structure files behind one shard.
        workers: processes that read; the default is one per core.
        progress: show a progress bar.

    Returns:
        Counts of `files`, `chains`, `rejected` and `shards`.

    Raises:
        ValueError: nothing to read, or `output` holds the shards of another run.
    """
    atoms = [atom.strip() for atom in atoms]
    if not all(atoms) or not atoms or len(set(atoms)) < len(atoms):
        raise ValueError(f"`atoms` is {atoms}; name each atom once, for example N, CA and C.")
    for name, value in (("min_length", min_length), ("max_length", max_length), ("files_per_shard", files_per_shard)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` is {value}; it must be at least 1.")
    if max_length is not None and max_length < min_length:
        raise ValueError(f"`max_length` ({max_length}) is less than `min_length` ({min_length}).")
    if not 0 <= min_observed <= 1:
        raise ValueError(f"`min_observed` is {min_observed}; it is a share between 0 and 1.")
    if workers is not None and workers < 1:
        raise ValueError(f"`workers` is {workers}; at least one process has to read.")
    files = find_structures(inputs)
    output = Path(output)
    settings = {
        "atoms": atoms,
        "min_plddt": min_plddt,
        "min_length": min_length,
        "max_length": max_length,
        "min_observed": min_observed,
        "files_per_shard": files_per_shard,
    }
    root = Path(os.path.commonpath([file.resolve().parent for file in files]))
    names = [file.resolve().relative_to(root).as_posix() for file in files]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, file in zip(names, files, strict=True):
        digest.update(f"{name}\t{file.stat().st_size}\n".encode())
    job = digest.hexdigest()

    starts = range(0, len(files), files_per_shard)
    names_of_shards = [f"train-{i:05d}-of-{len(starts):05d}.parquet" for i in range(len(starts))]
    done: dict[str, Path] = {}
    for folder in (output / "data", output / EMPTY):
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.parquet"):
            metadata = _read_footer(path).metadata or {}
            if path.name not in names_of_shards or metadata.get(JOB_KEY) != job.encode():
                raise ValueError(
                    f"{path} was made from other files or with other settings; choose another output folder or "
                    "delete it."
                )
            done[path.name] = path
        for leftover in folder.glob("*.tmp"):
            leftover.unlink()

    read = partial(_read_file, atoms=tuple(atoms), min_plddt=min_plddt)
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=len(files), unit="file", disable=not progress))
        read_all: Any = map
        if workers > 1:
            # Spawned, not forked: this process may hold threads, and a fork of a threaded process can hang.
            pool = stack.enter_context(ProcessPoolExecutor(workers, mp_context=get_context("spawn")))
            read_all = partial(pool.map, chunksize=8)
        for start, shard in zip(starts, names_of_shards, strict=True):
            batch = slice(start, start + files_per_shard)
            if shard in done:
                bar.update(len(files[batch]))
                continue
            rows, rejects = [], []
            for name, (chains, problems) in zip(names[batch], read_all(read, files[batch]), strict=True):
                rejects += [(name, chain, reason) for chain, reason in problems]
                for chain in chains:
                    reason = _filter(chain, min_length, max_length, min_observed)
                    if reason is None:
                        rows.append(chain_to_row(chain, source=name))
                    else:
                        rejects.append((name, chain.id, reason))
                bar.update()
            metadata = {JOB_KEY: job.encode(), REJECTS_KEY: json.dumps(rejects).encode()}
            table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(metadata))
            done[shard] = output / ("data" if rows else EMPTY) / shard
            write_atomically(done[shard], partial(pq.write_table, table, compression="zstd"))

    counts = {"files": len(files), "chains": 0, "rejected": 0, "shards": len(starts)}
    lines = ["file\tchain\treason"]
    for shard in names_of_shards:
        info = pq.read_metadata(done[shard])
        counts["chains"] += info.num_rows
        for reject in json.loads(info.metadata[REJECTS_KEY]):
            lines.append("\t".join(" ".join(str(value).split()) for value in reject))
    counts["rejected"] = len(lines) - 1
    write_atomically(output / "rejected.tsv", lambda path: path.write_text("\n".join(lines) + "\n", encoding="utf-8"))
    return counts
