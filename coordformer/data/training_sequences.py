"""Which sequences a checkpoint was trained on: their sketches, in its folder, and not the sequences themselves.

A score, a design or a recovery says something else of a protein that the model was trained on. So `coordformer train`
leaves `training_sequences.safetensors` beside its weights, and the verbs look their inputs up in it. Of each distinct
training sequence the file has

- `hashes`, uint64: the first eight bytes of the SHA-256 of its letters, which find the same sequence again;
- `lengths`, int32: its residues;
- `sketches`, uint32, one after another, and `sketch_sizes`, int32: the smallest hashes of its 7-mers, a sixteenth of
  them and at least 16 (bottom-k MinHash: Ondov et al. 2016, doi:10.1186/s13059-016-0997-x). They find relatives;

and in its metadata `unknown`: names of weights that the training started from and of which there is no such file, as of
an ESM-2. What is not found may have been trained on then.

A 7-mer survives the substitutions between two sequences of identity p with a probability of about p^7, so of two
sequences that are 90 % identical half of the 7-mers are the same. Where a share c of them is, the identity is about
c^(1/7). What is compared is containment (Koslicki and Zabeti 2019, doi:10.1016/j.amc.2019.02.018) and not Jaccard's
index, since one of two chains is often cut short or has a tag. A sketch holds all hashes of its sequence up to its
largest, so the share is known in both directions: of the sketch among the 7-mers of the query, and of those of the
query up to that hash in the sketch. The larger one counts, and the training sequence has at least half of the query's
length. So the sketch grows with the sequence: of a domain that was cut out of a long training chain there are enough.
`examples/inverse_folding/known_sequences.py` measures what is found and what is not.

7-mers are hashed by splitmix64 (Steele et al. 2014, doi:10.1145/2714064.2660195), upper 32 bits, from their number in
base 20. X is in no 7-mer; sequences that have none (of fewer than seven residues) are found again if
they are the same, letter by letter. Nothing here depends on the platform, or on the order in which sequences were read.

A sketch is no secret. Who has a sequence can ask whether it is in there; and since there are only 20^7 7-mers, who
tries them all gets back those of the sketch, which are most of a chain of 30 residues. Delete the file where
that is too much.

`python -m coordformer.data.training_sequences CHECKPOINT DATA --split train` makes the file for a checkpoint that has
none, such as one of an older version.
"""

import argparse
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..model.chain import AMINO_ACIDS, split_by_chain
from .files import write_atomically
from .pack import open_chains
from .records import counted

FILE = "training_sequences.safetensors"
ABOUT, FORMAT = "training_sequences", "coordformer training sequences 1"  # in the metadata
K = 7
MIN_SKETCH, SHARE = 16, 16  # hashes of a sketch: at least so many, and one in so many; like `K` part of the format
CONTAINMENT = 0.4
"""Share of common 7-mers from which on a training sequence counts as nearly the query: 0.4^(1/7) = 88 % identity."""
MIN_SHARED = 3
"""Hashes that two sequences have in common at least: tags and repeats make some by themselves."""
COVERAGE = 0.5
"""Residues of a training sequence, per residue of the query, at least."""
MOST = 1_000_000
"""Sequences of a record at most: 120 MB. Of larger data sets it says that they are not recorded."""
NEW, SIMILAR, SAME = 0, 1, 2  # as `find` says it
AT_ONCE = 5_000  # sequences

TENSORS = {"hashes": np.uint64, "lengths": np.int32, "sketch_sizes": np.int32, "sketches": np.uint32}
_DIGITS = np.full(256, 255, dtype=np.uint8)
_DIGITS[np.frombuffer(AMINO_ACIDS.encode(), dtype=np.uint8)] = np.arange(20)
_HIGH = np.uint64(32)


def hash_kmers(codes: np.ndarray) -> np.ndarray:
    """The first output of splitmix64 from uint64 seeds, its upper 32 bits as uint32.

    Examples:
        >>> hash_kmers(np.array([1234567], dtype=np.uint64)).tolist()[0] == 6457827717110365317 >> 32
        True
    """
    mixed = codes.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)  # modulo 2^64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return ((mixed ^ (mixed >> np.uint64(31))) >> _HIGH).astype(np.uint32)


def hash_sequence(sequence: str) -> int:
    """The first eight bytes of the SHA-256 of a sequence, X included, as a number."""
    return int.from_bytes(hashlib.sha256(sequence.encode()).digest()[:8], "big")


def kmers_of(sequences: Sequence[str]) -> np.ndarray:
    """Distinct hashes of the 7-mers of sequences: uint64, sorted; above 32 bits the number of the sequence."""
    letters = np.frombuffer("-".join([*sequences, ""]).encode("latin-1", "replace"), dtype=np.uint8)
    digits = _DIGITS[letters]
    places = max(len(letters) - K + 1, 0)
    codes, known = np.zeros(places, dtype=np.uint64), np.ones(places, dtype=bool)
    for shift in range(K):
        part = digits[shift : shift + places]
        codes = codes * np.uint64(20) + part
        known &= part < 20
    sizes = np.array([len(each) + 1 for each in sequences], dtype=np.int64)
    owners = np.repeat(np.arange(len(sequences), dtype=np.uint64), sizes)[:places]
    kmers = np.sort((owners[known] << _HIGH) | hash_kmers(codes[known]))
    return kmers[np.diff(kmers, prepend=~kmers[:1]) != 0]  # as `np.unique`, which takes 15 times as long


def _starts(kmers: np.ndarray, count: int) -> np.ndarray:
    """Where in `kmers_of` each of so many sequences begins, and the last one ends."""
    return np.searchsorted(kmers, np.arange(count + 1, dtype=np.uint64) << _HIGH)


def _ranges(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """`starts[0], starts[0] + 1, ...`, so many as `sizes` says of each."""
    return np.repeat(starts - np.append(0, sizes.cumsum()[:-1]), sizes) + np.arange(sizes.sum())


@dataclass(eq=False)
class TrainingSequences:
    """What a checkpoint was trained on, as its file has it.

    Attributes:
        hashes: uint64 `(n,)`, of the sequences, sorted, see `hash_sequence`.
        lengths: int32 `(n,)`, their residues.
        sketch_sizes: int32 `(n,)`, hashes in the sketch of each.
        sketches: uint32 `(sketch_sizes.sum(),)`, the sketches one after another, each sorted.
        unknown: names of what else the weights were trained on or started from, whose sequences nobody recorded.
    """

    hashes: np.ndarray
    lengths: np.ndarray
    sketch_sizes: np.ndarray
    sketches: np.ndarray
    unknown: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, dtype in TENSORS.items():
            if (values := getattr(self, name)).dtype != dtype or values.ndim != 1:
                raise ValueError(f"{name} is {values.dtype} of {values.ndim} dimensions, not {np.dtype(dtype)} of one")
        n, sizes, hashed = len(self.hashes), self.sketch_sizes, len(self.sketches)
        if not len(self.lengths) == len(sizes) == n or sizes.min(initial=0) < 0 or sizes.sum() != hashed:
            raise ValueError(f"{n} hashes, {len(self.lengths)} lengths and {sizes.sum()} of {hashed} 7-mers")
        if (self.hashes[1:] <= self.hashes[:-1]).any():
            raise ValueError("the hashes are not sorted")

    def __len__(self) -> int:
        """Number of distinct sequences."""
        return len(self.hashes)

    @classmethod
    def of(cls, sequences: Iterable[str], unknown: Iterable[str] = ()) -> "TrainingSequences":
        """The record of sequences, in any order, of which some may be equal."""
        distinct = {hash_sequence(sequence): sequence for sequence in sequences}
        hashes = sorted(distinct)
        sizes, sketches = [np.zeros(0, np.int32)], [np.zeros(0, np.uint32)]
        for start in range(0, len(hashes), AT_ONCE):
            chosen = [distinct[each] for each in hashes[start : start + AT_ONCE]]
            kmers = kmers_of(chosen)
            starts = _starts(kmers, len(chosen))
            counts = np.diff(starts)
            sizes.append(np.minimum(counts, np.maximum(MIN_SKETCH, counts // SHARE)).astype(np.int32))
            sketches.append(kmers[_ranges(starts[:-1], sizes[-1])].astype(np.uint32))  # without the number
        lengths = np.array([len(distinct[each]) for each in hashes], dtype=np.int32)
        arrays = np.array(hashes, dtype=np.uint64), lengths, np.concatenate(sizes), np.concatenate(sketches)
        return cls(*arrays, tuple(sorted(set(unknown))))

    def __or__(self, other: "TrainingSequences") -> "TrainingSequences":
        """What is in one of two, or in both."""
        hashes = np.concatenate([self.hashes, other.hashes])
        sizes = np.concatenate([self.sketch_sizes, other.sketch_sizes])
        unique, chosen = np.unique(hashes, return_index=True)
        starts = np.append(0, sizes.cumsum()[:-1])[chosen]
        sketches = np.concatenate([self.sketches, other.sketches])[_ranges(starts, sizes[chosen])]
        lengths = np.concatenate([self.lengths, other.lengths])[chosen]
        return TrainingSequences(
            unique, lengths, sizes[chosen], sketches, tuple(sorted({*self.unknown, *other.unknown}))
        )

    # --- looking up ---

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sorted hashes of all sketches; the sequence that each is of; the largest of each, up to which it has all."""
        owners = np.repeat(np.arange(len(self), dtype=np.uint64), self.sketch_sizes)
        both = np.sort((self.sketches.astype(np.uint64) << _HIGH) | owners)
        ends = self.sketch_sizes.cumsum()
        largest = np.full(len(self), 2**32 - 1, dtype=np.uint64)  # of what has all its 7-mers in the sketch
        cut = self.sketch_sizes >= MIN_SKETCH
        largest[cut] = self.sketches[ends[cut] - 1]
        return (both >> _HIGH).astype(np.uint32), both.astype(np.uint32), largest

    def containment(self, sequences: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The training sequences that have 7-mers in common with these, if they are long enough (`COVERAGE`).

        Returns:
            Numbers of the query and of the training sequence of each pair, and the share of common 7-mers.
        """
        hashes, owners, largest = self._index
        kmers = kmers_of(sequences)
        wanted = kmers.astype(np.uint32)
        first = np.searchsorted(hashes, wanted, side="left")
        found = np.searchsorted(hashes, wanted, side="right") - first
        query = np.repeat(kmers >> _HIGH, found)
        pairs, shared = np.unique((query << _HIGH) | owners[_ranges(first, found)], return_counts=True)
        queries, trained = (pairs >> _HIGH).astype(np.int64), pairs.astype(np.uint32).astype(np.int64)
        sizes = np.array(list(map(len, sequences)), dtype=np.int64)
        fitting = (shared >= MIN_SHARED) & (self.lengths[trained] >= COVERAGE * sizes[queries])
        queries, trained, shared = queries[fitting], trained[fitting], shared[fitting]
        ends = np.searchsorted(kmers, (queries.astype(np.uint64) << _HIGH) | largest[trained], side="right")
        below = ends - _starts(kmers, len(sequences))[queries]
        return queries, trained, shared / np.minimum(below, self.sketch_sizes[trained])

    def find(self, sequences: Sequence[str]) -> np.ndarray:
        """Look sequences up: int8 `(n,)`, `SAME` of those that are there, `SIMILAR` of those with a relative of about
        90 % identity, and `NEW`."""
        result = np.full(len(sequences), NEW, dtype=np.int8)
        if not len(self):
            return result
        for start in range(0, len(sequences), AT_ONCE):
            chosen = sequences[start : start + AT_ONCE]
            queries, _, shares = self.containment(chosen)
            result[start + queries[shares >= CONTAINMENT]] = SIMILAR
        asked = np.array([hash_sequence(each) for each in sequences], dtype=np.uint64)
        places = np.minimum(np.searchsorted(self.hashes, asked), len(self) - 1)
        result[self.hashes[places] == asked] = SAME
        return result

    # --- the file ---

    def write(self, path: str | Path) -> None:
        """Write the file, atomically: equal records give equal bytes.

        Raises:
            OSError: it could not be written; nothing is left of it.
        """
        arrays = {name: getattr(self, name) for name in TENSORS}
        about = json.dumps({"format": FORMAT, "unknown": self.unknown})
        # One entry of metadata: of several the order is random.
        content = save(arrays, {ABOUT: about})
        write_atomically(Path(path), lambda temporary: temporary.write_bytes(content))

    @classmethod
    def read(cls, path: str | Path) -> "TrainingSequences":
        """Read the file.

        Raises:
            ValueError: it is broken or another one; the message names it and what to do.
        """
        try:
            with safe_open(path, framework="np") as file:
                about = json.loads((file.metadata() or {}).get(ABOUT, "{}"))
                if about.get("format") != FORMAT:
                    raise ValueError(f"its format is {about.get('format')!r}, not {FORMAT!r}")
                arrays = {name: file.get_tensor(name) for name in TENSORS}
            return cls(**arrays, unknown=tuple(map(str, about["unknown"])))
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            fix = "copy it again, make it by `python -m coordformer.data.training_sequences`, or delete it"
            raise ValueError(f"{path} cannot be read ({error}); {fix}.") from error


def read_training_sequences(checkpoint: str | Path) -> TrainingSequences | None:
    """What a checkpoint was trained on; None where that is not recorded, as of converted weights.

    Args:
        checkpoint: folder, where the file may lie beside `checkpoint-*`, or Hub name.

    Raises:
        ValueError: the file is broken.
    """
    folder = Path(checkpoint)
    if folder.exists():
        folder = folder.resolve()
        beside = [folder.parent] if folder.name.startswith("checkpoint-") else []
        path = next((each / FILE for each in (folder, *beside) if (each / FILE).exists()), None)
        return None if path is None else TrainingSequences.read(path)
    from transformers.utils import cached_file  # what opens a folder does not wait for it

    missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    try:
        found = cached_file(str(checkpoint), FILE, **missing)
    except (OSError, ValueError):  # of which who loads the model says what is wrong
        return None
    return None if found is None else TrainingSequences.read(found)


def record_training(data: Iterable[Any], starts: Iterable[str | Path] = ()) -> TrainingSequences:
    """The record of a training.

    Args:
        data: what it trains on, each a `datasets.Dataset`, `pack.PackedChains` or `rows.ShardBatches`.
        starts: folders or Hub names of the weights that it starts from. Their records are joined to it; of one that has
            none the name is kept, in `unknown`.

    Raises:
        ValueError: the record of a start is broken.
    """
    record = TrainingSequences.of(())
    for rows in data:
        if (chains := getattr(rows, "chains", None) or len(rows)) > MOST:
            record |= TrainingSequences.of((), [f"{chains:,} chains, more than are recorded"])
        else:
            record |= TrainingSequences.of(sequences_of(rows))
    for start in starts:
        name = Path(start).resolve().name if Path(start).exists() else str(start)
        before = read_training_sequences(start)
        record |= TrainingSequences.of((), [name]) if before is None else before
    return record


def sequences_of(rows: Any) -> Iterator[str]:
    """The sequences of a data set, of complexes those of their chains; `rows` as of `record_training`."""
    columns = ("sequence", "chain_lengths")
    if hasattr(rows, "files"):  # shards, one after another; `datasets` would copy them all
        import pyarrow.parquet as pq

        for file in rows.files:
            names = [name for name in columns if name in pq.read_schema(file).names]
            yield from (each for row in pq.read_table(file, columns=names).to_pylist() for each in chain_sequences(row))
        return
    for start in range(0, len(rows), AT_ONCE):
        inside = range(start, min(start + AT_ONCE, len(rows)))
        if hasattr(rows, "fetch"):
            records = rows.fetch(inside)
        else:
            names = [name for name in columns if name in rows.column_names]
            values = rows.select_columns(names)[inside.start : inside.stop]
            records = [dict(zip(values, each, strict=True)) for each in zip(*values.values(), strict=True)]
        for record in records:
            yield from chain_sequences(record)


def chain_sequences(record: Any) -> list[str]:
    """The sequences of the chains of a row, a chain or a complex."""
    values = record if isinstance(record, Mapping) else vars(record)
    lengths = values.get("chain_lengths")
    return [values["sequence"]] if lengths is None or not len(lengths) else split_by_chain(values["sequence"], lengths)


def main(options: Sequence[str] | None = None) -> None:
    """Make the file for a checkpoint that has none, or anew: `python -m coordformer.data.training_sequences`."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=main.__doc__)
    parser.add_argument("checkpoint", type=Path, help="its folder, which gets the file")
    parser.add_argument(
        "data", nargs="+", help="what it was trained on: folder made by `prepare`, Parquet, packed file"
    )
    parser.add_argument("--split", help="of the data only rows whose column `split` has this value")
    start = "folder or Hub name of the weights that it was started from, if there were some"
    parser.add_argument("--init_from", nargs="+", default=[], metavar="CHECKPOINT", help=start)
    arguments = parser.parse_args(options)
    try:
        if not (arguments.checkpoint / "config.json").exists():
            raise ValueError(f"{arguments.checkpoint} holds no checkpoint; give the folder of one.")
        data = [open_chains(path, arguments.split) for path in arguments.data]
        record = record_training(data, arguments.init_from)
        record.write(arguments.checkpoint / FILE)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    unknown = f"; not known: {', '.join(record.unknown)}" if record.unknown else ""
    print(f"{arguments.checkpoint / FILE}: {counted(len(record), 'sequence')}{unknown}")


if __name__ == "__main__":
    main()
