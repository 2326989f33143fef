"""Rows of a data set: their columns, and how they are read from Parquet.

A row is a dictionary with the columns of `SCHEMA`. Coordinates are one flat list per chain, (residues, atoms, 3) in C
order, NaN where unobserved: nested lists read 40 times slower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..model.chain import Chain, chain_positions
from .arrow import to_arrow
from .batching import ChainBatches, EpochBatches, check_budget, packed_slots, token_lengths

if TYPE_CHECKING:
    from datasets import Dataset  # else where it is used: what writes rows does not wait for it

COMPACT_ATOMS = ("N", "CA", "C", "O")  # that `read_compact` may find, in this order

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("sequence", pa.string()),
        ("length", pa.int32()),  # residues
        ("observed", pa.int32()),  # residues with at least one observed atom
        ("atoms", pa.list_(pa.string())),
        ("coords", pa.list_(pa.float32())),  # Å
        ("b_factor", pa.list_(pa.float32())),  # Å^2, or pLDDT in predicted structures
        ("positions", pa.list_(pa.int32())),  # places along the chain from 0; null where they have no gap
        ("residue_numbers", pa.list_(pa.string())),  # of the file, such as 52A; null where it has none
        ("chain_names", pa.list_(pa.string())),  # of a complex, in the order of its residues; null for a chain
        ("chain_lengths", pa.list_(pa.int32())),  # residues of each of them; null for a chain
        ("method", pa.string()),
        ("resolution", pa.float32()),  # Å
        ("source", pa.string()),  # the file a chain was read from, or the collection it belongs to
        ("cluster", pa.int32()),  # sequence cluster, where known
        ("split", pa.string()),
        ("aliases", pa.list_(pa.string())),  # ids of other chains with this sequence, which the row stands for
    ]
)


def chain_to_row(chain: Chain, source: str | None = None) -> dict[str, Any]:
    """The row of a chain or complex; `chain.chain_arrays` reads it back."""
    sizes = {"length": len(chain), "observed": int(chain.observed.any(axis=1).sum())}
    flat = {"atoms": list(chain.atoms), "coords": chain.coords.reshape(-1)}
    gaps = chain.positions is not None and int(chain.positions[-1]) != len(chain) - 1  # they rise from 0
    numbers = {"positions": chain.positions if gaps else None, "residue_numbers": chain.residue_numbers or None}
    return dict.fromkeys(SCHEMA.names) | vars(chain) | sizes | flat | numbers | {"source": source}


def rows_to_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The table of rows that `chain_to_row` made."""
    return pa.table([to_arrow([row[field.name] for row in rows], field.type) for field in SCHEMA], schema=SCHEMA)


def load_rows(path: str | Path, split: str | None = None) -> Dataset:
    """Open a data set of chains.

    Args:
        path: a folder made by `prepare`, or one Parquet file with the columns of `SCHEMA` or in the compact layout of
            `read_compact`.
        split: only rows whose column `split` has this value, such as `"train"` or `"valid"`; where the column is empty,
            the rows of the shards of that name.

    Returns:
        A `datasets.Dataset` with the columns of `SCHEMA`; a data set that an older version made lacks the later ones.

    Raises:
        FileNotFoundError: there is no Parquet file.
        ValueError: the columns are others, a file is unreadable, or the split is empty.

    Examples:
        >>> rows = load_rows("examples/data/chains.parquet", "valid")
        >>> len(rows), rows[0]["atoms"]
        (400, ['CA'])
    """
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    path = Path(path)
    named = sorted(path.glob(f"data/{split}-*.parquet")) if split else []
    files = named or sorted(path.glob("data/*.parquet")) or sorted(path.glob("*.parquet"))
    if path.is_file():
        files = [path]
    if not files:
        raise FileNotFoundError(f"No Parquet file at {path}; give a folder made by `coordformer prepare` or a file.")
    files = [file for file in files if read_footer(file).num_rows]  # `datasets` cannot read an empty one
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
    if split is not None and not (named and rows.data.column("split").null_count == len(rows)):
        if "split" not in rows.column_names:
            raise ValueError(f"{path} has no column `split`; leave the split {split!r} out.")
        values = np.asarray(rows["split"][:], dtype=object)
        rows = rows.select(np.flatnonzero(values == split))
        if len(rows) == 0:
            found = ", ".join(sorted({str(value) for value in values if value is not None}))
            fix = f"the file has: {found}." if found else "its column `split` is empty: leave the split out."
            raise ValueError(f"No row of {path} is in split {split!r}; {fix}")
    return rows


def read_footer(file: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(file)
    except (pa.ArrowInvalid, OSError) as error:
        fix = "give a data set; `coordformer prepare` makes one of structure files, or makes it again if it is damaged"
        raise ValueError(f"{file} is not a readable Parquet file ({error}); {fix}.") from error


def read_compact(path: str | Path) -> pa.Table:
    """Read the compact layout: atoms in whole hundredths of an Å, the C-alphas, and perhaps others of the backbone.

    The columns `ca_x`, `ca_y` and `ca_z` are lists of int16, -32768 where not observed; N, C and O, in the same frame,
    may have such columns, too. `id` and `sequence` are required, `source`, `method`, `resolution`, `cluster30`, `split`
    and `alias_ids` are taken where present. Of complexes also `lengths` and `chain_ids`, of their chains, between which
    `sequence` has `/`; their cluster is `component`.

    Returns:
        A table with the columns of `SCHEMA`, null where the layout has none, such as `b_factor`.

    Raises:
        ValueError: a column is missing, or coordinates and sequence of a chain differ in length.
    """
    import pyarrow.compute as pc  # the processes of `prepare`, which import this module, do without

    table = _read_table(Path(path))
    atoms = [atom for atom in COMPACT_ATOMS if atom == "CA" or f"{atom.lower()}_x" in table.column_names]
    axes = [f"{atom.lower()}_{axis}" for atom in atoms for axis in "xyz"]
    if missing := {"id", "sequence", *axes} - set(table.column_names):
        raise ValueError(f"{path} lacks the columns {', '.join(sorted(missing))} of the compact layout.")
    if table["sequence"].null_count:
        raise ValueError(f"{path} has {table['sequence'].null_count} rows without a sequence; remove them.")
    sequences = table["sequence"].combine_chunks()
    complexes = "lengths" in table.column_names
    if complexes:
        sequences = pc.replace_substring(sequences, "/", "")
        table = table.set_column(table.column_names.index("sequence"), "sequence", sequences)
        renamed = {"lengths": "chain_lengths", "chain_ids": "chain_names", "component": "cluster30"}
        table = table.drop_columns([name for name in ("cluster30",) if name in table.column_names])
        table = table.rename_columns([renamed.get(name, name) for name in table.column_names])
    lengths = np.asarray(pc.utf8_length(sequences))
    planes = []
    for name in axes:
        column = table[name].combine_chunks()
        counts = np.asarray(column.value_lengths())
        if (wrong := np.flatnonzero(counts != lengths)).size:
            chain, count, residues = table["id"][int(wrong[0])], counts[wrong[0]], lengths[wrong[0]]
            raise ValueError(f"{path}, chain {chain}: {count} values in {name} for {residues} residues.")
        planes.append(column.flatten().to_numpy())
    raw = np.stack(planes, axis=1).reshape(-1, len(atoms), 3)
    absent = (raw == -32768).any(axis=-1, keepdims=True)
    coords = np.where(absent, np.float32("nan"), raw.astype(np.float32) / np.float32(100))
    offsets = np.append(0, lengths.cumsum())
    seen = np.append(0, (~absent).any(axis=(1, 2)).cumsum())
    made = {
        "length": pa.array(lengths, pa.int32()),
        "observed": pa.array(np.diff(seen[offsets]), pa.int32()),
        "atoms": pa.array([atoms] * len(table), SCHEMA.field("atoms").type),
        "coords": pa.ListArray.from_arrays(
            pa.array(3 * len(atoms) * offsets, pa.int32()), pa.array(coords.reshape(-1))
        ),
        "b_factor": pa.nulls(len(table), SCHEMA.field("b_factor").type),
    }
    if complexes:
        positions = [chain_positions(each) for each in table["chain_lengths"].to_pylist()]
        made["positions"] = pa.array(positions, SCHEMA.field("positions").type)
    for field in SCHEMA:
        name = {"cluster": "cluster30", "aliases": "alias_ids"}.get(field.name, field.name)
        if field.name not in made:
            given = name in table.column_names
            made[field.name] = table[name].cast(field.type) if given else pa.nulls(len(table), field.type)
    return pa.table(made).select(SCHEMA.names).cast(SCHEMA)


class ShardBatches(EpochBatches):
    """The batches of a data set too large for memory: each shard is packed by itself and read when its turn comes.

    The batches of an epoch, shard after shard in an order of its own, are cut into `open_shards` equal runs, which are
    read side by side: item i comes from run i modulo `open_shards`. So a process or worker that takes each n-th item
    touches its own runs alone, if n divides `open_shards`, and holds one shard of each; and since an item is a function
    of its number, the seed and the epoch, a run that was stopped goes on in the middle of an epoch without reading what
    came before, on any number of processes.

    Args:
        path: a folder made by `prepare.prepare`.
        split: only the shards of this split, by their names.
        open_shards: shards that are read side by side; a multiple of processes x workers.
        token_budget, pad_to_budget, max_length, seed: as of `ChainBatches`.

    Raises:
        FileNotFoundError: there is no shard of the split.
        ValueError: a shard is unreadable, or a chain does not fit in the budget.
    """

    def __init__(
        self,
        path: str | Path,
        token_budget: int,
        *,
        split: str | None = None,
        open_shards: int = 16,
        pad_to_budget: bool = False,
        max_length: int | None = None,
        seed: int = 0,
    ):
        if open_shards < 1:
            raise ValueError(f"`open_shards` is {open_shards}; at least one shard has to be read.")
        self.files = sorted(Path(path).glob(f"data/{split or '*'}-*.parquet"))
        if not self.files:
            raise FileNotFoundError(
                f"No shard data/{split or '*'}-*.parquet in {path}; give a folder made by `coordformer prepare`"
                + (" with --splits." if split else ".")
            )
        super().__init__(seed)
        self._options: dict[str, Any] = {"token_budget": token_budget, "pad_to_budget": pad_to_budget}
        self._options |= {"max_length": max_length, "seed": seed}
        self._packed_length = token_budget if pad_to_budget else 0
        self.chains = self.tokens = 0
        self._counts = np.zeros(len(self.files), dtype=np.int64)
        with ThreadPoolExecutor() as pool:
            for number, table in enumerate(pool.map(lambda file: _read_table(file, ["length"]), self.files)):
                lengths = token_lengths(np.asarray(table["length"]), max_length)
                check_budget(token_budget, lengths)
                self._counts[number] = len(packed_slots(lengths, token_budget, seed))
                self.chains += len(lengths)
                self.tokens += int(lengths.sum())
        self._runs = min(open_shards, len(self))
        self._open: dict[int, tuple[int, ChainBatches]] = {}  # of each run its shard
        self._order = self._ends = np.zeros(0, dtype=np.int64)
        self._ordered_epoch: int | None = None

    def __len__(self) -> int:
        return int(self._counts.sum())

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        from datasets import Dataset

        if not 0 <= index < len(self):
            raise IndexError(index)
        shard, batch = self.locate(index)
        run = index % self._runs
        if run not in self._open or self._open[run][0] != shard:
            self._open.pop(run, None)  # before the next one is read
            columns = ["id", "sequence", "length", "atoms", "coords"]
            more = {"positions", "chain_lengths"}  # not in data sets of older versions
            columns += [name for name in read_footer(self.files[shard]).schema.to_arrow_schema().names if name in more]
            table = _read_table(self.files[shard], columns)
            self._open[run] = shard, ChainBatches(Dataset(table), **self._options)
        batches = self._open[run][1]
        batches.set_epoch(self.epoch)
        return batches[batch]

    def locate(self, index: int) -> tuple[int, int]:
        """Number of the shard, in `files`, and of the batch in it, of an item of this epoch."""
        run, place = index % self._runs, index // self._runs
        each, rest = divmod(len(self), self._runs)
        batch = run * each + min(run, rest) + place  # the first `rest` runs are longer by one
        if self._ordered_epoch != (epoch := self.epoch):
            self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.files))
            self._ends, self._ordered_epoch = self._counts[self._order].cumsum(), epoch
        position = int(np.searchsorted(self._ends, batch, side="right"))
        shard = int(self._order[position])
        return shard, batch - int(self._ends[position] - self._counts[shard])

    def padding_share(self) -> float:
        """Share of an epoch's tokens that is padding."""
        return 1 - self.tokens / (len(self) * self._packed_length or self.tokens)


def _read_table(file: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.read_table(file, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read ({error}); copy or prepare it again.") from error
