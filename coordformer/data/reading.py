"""What the processes of `coordformer prepare` run: structure files to a part of a data set.

A process imports this module, which waits for nothing that only the whole data set needs.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ..model.chain import Chain
from ..model.structure import STRUCTURE_SUFFIXES, read_chains
from .cluster import assign_splits, cluster_sequences, find_mmseqs
from .files import write_atomically
from .inputs import Reject, Source, read_and_hash
from .rows import SCHEMA, chain_to_row, read_footer, rows_to_table

ROWS_AT_ONCE = 2000
REJECTS_KEY, CONTENTS_KEY = b"coordformer.rejects", b"coordformer.contents"  # in the metadata of a part


@dataclass
class PrepareSettings:
    """What decides a data set besides its files.

    Attributes:
        atoms: the atoms to keep.
        min_plddt: residues of predicted structures below this confidence count as not observed.
        min_mean_plddt: chains of predicted structures with a lower mean confidence, as deposited, are rejected.
        min_length, max_length: chains with fewer or more residues are rejected.
        min_observed: chains with a smaller share of observed residues are rejected.
        keep_duplicates: keep all chains of equal sequence; the default merges them into the best observed one.
        splits: shares of the sequence clusters by split, such as `{"train": 0.95, "valid": 0.05}`; no cluster is in two
            splits. The default is one split, `train`, without clustering.
        identity, coverage, seed: as of `cluster.cluster_sequences` and `cluster.assign_splits`.
        chains_per_shard: rows of a shard.

    Raises:
        ValueError: one is unusable.
        FileNotFoundError: there are to be splits, but there is no MMseqs2.
    """

    atoms: Sequence[str] = ("CA",)
    min_plddt: float | None = None
    min_mean_plddt: float | None = None
    min_length: int = 1
    max_length: int | None = None
    min_observed: float = 0.0
    keep_duplicates: bool = False
    splits: Mapping[str, float] | None = None
    identity: float = 0.3
    coverage: float = 0.8
    seed: int = 0
    chains_per_shard: int = 5000

    def __post_init__(self) -> None:
        self.atoms = tuple(atom.strip() for atom in self.atoms)
        if not self.atoms or not all(self.atoms) or len(set(self.atoms)) < len(self.atoms):
            raise ValueError(f"`atoms` is {list(self.atoms)}; name each atom once, for example N, CA and C.")
        for name in ("min_length", "max_length", "chains_per_shard"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"`{name}` is {value}; it must be at least 1.")
        if self.max_length is not None and self.max_length < self.min_length:
            raise ValueError(f"`max_length` ({self.max_length}) is less than `min_length` ({self.min_length}).")
        if not 0 <= self.min_observed <= 1:
            raise ValueError(f"`min_observed` is {self.min_observed}; it is a share between 0 and 1.")
        if self.splits is not None:  # hours before they are made
            find_mmseqs()
            cluster_sequences([], self.identity, self.coverage)
            assign_splits(np.array([], dtype=np.int64), [], self.splits, self.seed)

    def decisive(self) -> dict[str, Any]:
        """All but what decides nothing without splits."""
        unused = ("identity", "coverage", "seed") if self.splits is None else ()
        return {name: value for name, value in vars(self).items() if name not in unused}

    def reject(self, chain: Chain) -> str | None:
        """Why a chain is left out, or None."""
        observed = float(chain.observed.any(axis=1).mean())
        if len(chain) < self.min_length:
            return f"{len(chain)} residues are fewer than min_length={self.min_length}"
        if self.max_length is not None and len(chain) > self.max_length:
            return f"{len(chain)} residues are more than max_length={self.max_length}"
        if observed < self.min_observed:
            return f"{observed:.3f} of the residues are observed, less than min_observed={self.min_observed}"
        return None


def _read_file(
    name: str, data: bytes | str, entry: str | None, settings: PrepareSettings, rejects: list[Reject]
) -> list[dict[str, Any]]:
    """Rows of the chains that are kept; what is not goes to `rejects`."""
    problems: list[tuple[str, str]] = []
    rows = []
    least: dict[str, Any] = {"min_plddt": settings.min_plddt, "min_mean_plddt": settings.min_mean_plddt}
    try:
        if isinstance(data, str):
            raise ValueError(data)
        for chain in read_chains(name, settings.atoms, **least, problems=problems, data=data, entry=entry):
            if (reason := settings.reject(chain)) is None:
                rows.append(chain_to_row(chain, source=name))
            else:
                problems.append((chain.id, reason))
    except (ValueError, OSError) as error:
        problems.append(("", str(error).removeprefix(f"{name}: ")))
    except Exception as error:  # whatever else a file of a million brings up must not cost the others
        problems.append(("", f"{type(error).__name__}: {error}"))
    rejects += [(name, *problem) for problem in problems]
    return rows


def read_part(part: Sequence[Source], settings: PrepareSettings, path: str | Path) -> int:
    """Read a part into a Parquet file, which appears whole or not at all; returns the number of structure files."""
    rejects: list[Reject] = []
    hashes: list[str] = []
    files = 0

    def write(temporary: Path) -> None:
        nonlocal files
        with pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
            rows: list[dict[str, Any]] = []
            for source, name, data in _contents(part, rejects, hashes):
                files += 1
                rows += _read_file(name, data, source.entry, settings, rejects)
                if len(rows) >= ROWS_AT_ONCE:
                    writer.write_table(rows_to_table(rows))
                    rows = []
            writer.write_table(rows_to_table(rows))
            metadata = {REJECTS_KEY: json.dumps(rejects), CONTENTS_KEY: json.dumps(hashes), b"files": str(files)}
            writer.add_key_value_metadata({key: value.encode() for key, value in metadata.items()})

    write_atomically(Path(path), write)
    return files


def _contents(
    part: Sequence[Source], rejects: list[Reject], hashes: list[str]
) -> Iterator[tuple[Source, str, bytes | str]]:
    """The files of a part, each with its source and name; `hashes` gets the SHA-256 of each source."""
    for source in part:
        digest = hashlib.sha256()
        for name, data in read_and_hash(source, rejects, digest, STRUCTURE_SUFFIXES):
            yield source, name, data
        hashes.append(digest.hexdigest())


def hash_part(part: Sequence[Source]) -> list[str]:
    """SHA-256 of each source of a part, as it is now: of all that its rows are made of."""
    hashes: list[str] = []
    for _ in _contents(part, [], hashes):
        pass
    return hashes


def is_read(part: Sequence[Source], path: str | Path) -> bool:
    """Whether the file of a part is there, and was made of what the part has now.

    Raises:
        ValueError: it is there and unreadable.
    """
    if not Path(path).exists():
        return False
    made_of = (read_footer(Path(path)).metadata or {}).get(CONTENTS_KEY)  # not yet in those of older versions
    return made_of is not None and json.loads(made_of) == hash_part(part)
