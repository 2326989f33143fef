"""From rows to batches by a token budget.

Rows are a `datasets.Dataset` with the columns of `rows.SCHEMA`, or `pack.PackedChains`; nothing of what only preparing
data needs is imported here.
"""

import bisect
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..model.windows import SPECIAL_TOKENS

BUCKET = 8  # residues; chains whose lengths round up to the same multiple are interchangeable


def fetch_rows(rows: Any, indices: Sequence[int] | np.ndarray, names: bool = False) -> list[dict[str, Any]]:
    """The rows at `indices` with what a collator reads; coordinates and positions as numpy views, not Python lists.

    With `names` also `residue_numbers` and `chain_names`, where they are known, which training does without.
    """
    if hasattr(rows, "fetch"):
        return rows.fetch(indices)
    table = rows.with_format("arrow")[list(map(int, indices))]
    columns: dict[str, list[Any]] = {name: table[name].to_pylist() for name in ("id", "sequence", "atoms")}
    columns["coords"] = _views(table["coords"])
    optional = ("positions", "chain_lengths", *(("residue_numbers", "chain_names") if names else ()))
    for name in optional:
        if name in table.column_names and table[name].null_count < len(table):
            columns[name] = _views(table[name]) if name == "positions" else table[name].to_pylist()
    fetched = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [
        {name: value for name, value in row.items() if value is not None} | {"atoms": tuple(row["atoms"])}
        for row in fetched
    ]


def _views(column: Any) -> list[np.ndarray | None]:
    """The lists of an Arrow column as views of one array; None where there is none."""
    lists = column.combine_chunks()
    values, offsets = lists.values.to_numpy(zero_copy_only=False), lists.offsets.to_numpy()
    known = lists.is_valid().to_numpy(zero_copy_only=False)
    return [values[offsets[i] : offsets[i + 1]] if known[i] else None for i in range(len(lists))]


def read_lengths(rows: Any) -> np.ndarray:
    """Residues of each row."""
    return np.asarray(rows["length"][:])


def token_lengths(residues: np.ndarray, max_length: int | None) -> np.ndarray:
    """Tokens of chains that are cropped to `max_length` residues."""
    return (residues if max_length is None else np.minimum(residues, max_length)) + SPECIAL_TOKENS


def check_budget(token_budget: int, lengths: np.ndarray) -> None:
    if (longest := int(lengths.max(initial=0))) > token_budget:
        raise ValueError(
            f"`token_budget` is {token_budget}, but the longest chain has {longest} tokens; raise the budget or set "
            "`max_length`."
        )


# A slot is a place for a chain in a batch. Slots are numbered by the length of their chain, and any chain of the same
# bucket may take one: so every epoch mixes the chains anew and has the same number of batches.


def round_up(lengths: np.ndarray) -> np.ndarray:
    return -(-lengths // BUCKET) * BUCKET


def slot_sizes(lengths: np.ndarray, token_budget: int) -> np.ndarray:
    return np.minimum(np.sort(round_up(lengths)), token_budget)  # rounding may exceed the budget


def packed_slots(lengths: np.ndarray, token_budget: int, seed: int) -> list[np.ndarray]:
    """The slots of each batch, of chains that lie one after another."""
    return fill_bins(slot_sizes(lengths, token_budget), token_budget, np.random.default_rng(seed))


def padded_slots(lengths: np.ndarray, token_budget: int) -> list[np.ndarray]:
    """The slots of each batch, of chains of like length that are padded to the longest."""
    sizes, batches, start = slot_sizes(lengths, token_budget), [], 0
    for end in range(1, len(sizes) + 1):
        if end == len(sizes) or (end + 1 - start) * sizes[end] > token_budget:
            batches.append(np.arange(start, end))
            start = end
    return batches


def fill_bins(sizes: np.ndarray, capacity: int, rng: np.random.Generator) -> list[np.ndarray]:
    """The items of each bin, by number: best fit in random order, so that a bin holds sizes of all kinds.

    `capacity` is at least the largest size.
    """
    bins: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # what is left of each bin that is not full, and its number; sorted
    for item in rng.permutation(len(sizes)).tolist():
        size = int(sizes[item])
        place = bisect.bisect_left(spaces, (size, -1))
        if place < len(spaces):
            space, number = spaces.pop(place)
        else:
            space, number = capacity, len(bins)
            bins.append([])
        bins[number].append(item)
        if space > size:
            bisect.insort(spaces, (space - size, number))
    return [np.asarray(items) for items in bins]


class EpochBatches:
    """A data set of PyTorch whose items are batches, others in every epoch."""

    chains: int  # of an epoch
    tokens: int  # of an epoch, without padding

    def __init__(self, seed: int):
        import torch  # here, since what opens a data set to look at its rows imports this module

        self.seed = seed
        # Shared memory: the workers of a DataLoader that outlive an epoch see the next one, too.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Called by `Trainer` at the start of an epoch."""
        self._epoch.fill_(epoch)

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    @property
    def residues(self) -> int:
        """Residues of an epoch."""
        return self.tokens - SPECIAL_TOKENS * self.chains


class ChainBatches(EpochBatches):
    """A data set whose items are batches (lists of rows), for `Trainer` with a batch size of 1.

    With a `token_budget` a batch holds as many chains as fit: packed into one row one after another, or with
    `packing=False` chains of like length, as many as fit when all are padded to the longest. Which chains meet and the
    order of the batches change with every epoch, their number does not. With `chains_per_batch` a batch holds that many
    chains at random, as in the paper.

    Args:
        rows: chains, see the head of this module.
        token_budget: tokens of a batch, padding and special tokens included.
        chains_per_batch: chains of a batch.
        packing: whether the chains of a budget are packed; of `chains_per_batch` they are padded.
        pad_to_budget: fill up each packed row to the budget, so that all have one shape (for compiled models).
        max_length: residues to which the collator crops.
        seed: of the order.
        augment: whether the collator may rotate, add noise to, and drop coordinates.

    Examples:
        >>> from coordformer.data.rows import load_rows
        >>> batches = ChainBatches(load_rows("examples/data/chains.parquet", "valid"), token_budget=4096)
        >>> max(sum(len(row["sequence"]) + SPECIAL_TOKENS for row in batch) for batch in batches) <= 4096
        True
    """

    def __init__(
        self,
        rows: Any,
        token_budget: int | None = None,
        chains_per_batch: int | None = None,
        *,
        packing: bool = True,
        pad_to_budget: bool = False,
        max_length: int | None = None,
        seed: int = 0,
        augment: bool = True,
    ):
        if (token_budget is None) == (chains_per_batch is None):
            raise ValueError("Give either `token_budget` or `chains_per_batch`.")
        if len(rows) == 0:
            raise ValueError("The data set has no rows.")
        counts = {"token_budget": token_budget, "chains_per_batch": chains_per_batch, "max_length": max_length}
        for name, value in {**counts, "seed": seed}.items():
            if value is not None and value < (least := int(name in counts)):
                raise ValueError(f"`{name}` is {value}; it must be at least {least}.")
        super().__init__(seed)
        self.rows, self.lengths = rows, token_lengths(read_lengths(rows), max_length)
        self.chains, self.tokens = len(rows), int(self.lengths.sum())
        self.buckets = round_up(self.lengths)
        self.marks: dict[str, Any] = {"augment": augment}
        self._order: list[np.ndarray] = []
        self._ordered_epoch: int | None = None
        if token_budget is None:
            self.buckets[:] = 0  # chains are interchangeable whatever their length
            self.slots = np.split(np.arange(len(rows)), range(len(rows))[::chains_per_batch][1:])
            return
        check_budget(token_budget, self.lengths)
        if packing:
            self.marks["packed_length"] = token_budget if pad_to_budget else 0
            self.slots = packed_slots(self.lengths, token_budget, seed)
        else:
            self.slots = padded_slots(self.lengths, token_budget)

    def __len__(self) -> int:
        return len(self.slots)

    def order(self) -> list[np.ndarray]:
        """Row numbers of each batch of this epoch."""
        if self._ordered_epoch != (epoch := self.epoch):
            rng = np.random.default_rng([self.seed, epoch])
            rows = rng.permutation(len(self.rows))
            # A slot keeps its bucket, and gets another chain of that bucket in every epoch.
            rows = rows[np.argsort(self.buckets[rows], kind="stable")]
            self._order = [rows[self.slots[i]] for i in rng.permutation(len(self.slots))]
            self._ordered_epoch = epoch
        return self._order

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        marks = {"epoch": self.epoch, **self.marks}
        return [row | marks for row in fetch_rows(self.rows, self.order()[index])]

    def padding_share(self) -> float:
        """Share of this epoch's tokens that is padding."""
        if "packed_length" in self.marks:
            return 1 - self.tokens / (self.marks["packed_length"] * len(self) or self.tokens)
        return 1 - self.tokens / sum(len(batch) * int(self.lengths[batch].max()) for batch in self.order())
