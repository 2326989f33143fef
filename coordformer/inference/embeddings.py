"""The files of `coordformer embed`: one for each part of a run.

- Parquet: columns `id`, `length` (residues) and `embedding`, (hidden,) or without pooling flat (residues, hidden).
- safetensors: a tensor `embeddings` (chains, hidden), or without pooling one (residues, hidden) for each chain, by its
  id; the ids in their order are JSON in the metadata `ids`.

Without pooling there are also `residue_numbers`, the file's own, such as 52A, and of complexes `chain_names` and
`chain_lengths` (residues of each chain): as columns, or as JSON in the metadata, for each chain in the order of the
ids; null where the input has none.
"""

import errno
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..data.arrow import to_arrow
from ..data.files import write_atomically
from ..data.records import RUN
from ..model.proteins import Record, id_of, residues_of

FORMATS = ("parquet", "safetensors")
SHARD_SCHEMA = pa.schema({"id": pa.string(), "length": pa.int32(), "embedding": pa.large_list(pa.float32())})
RESIDUE_SCHEMA = pa.schema(  # besides, of vectors that are not pooled
    {
        "residue_numbers": pa.list_(pa.string()),
        "chain_names": pa.list_(pa.string()),
        "chain_lengths": pa.list_(pa.int32()),
    }
)


def write_shard(path: Path, chains: Sequence[Record], vectors: Sequence[np.ndarray]) -> None:
    """Write vectors of chains, in the format that the file's name says."""
    ids, pooled = [id_of(chain) for chain in chains], vectors[0].ndim == 1
    names = {} if pooled else {name: [_listed(chain, name) for chain in chains] for name in RESIDUE_SCHEMA.names}

    def write_parquet(temporary: Path) -> None:
        flat = [vector.reshape(-1) for vector in vectors]
        columns: dict[str, Any] = {"id": ids, "length": list(map(residues_of, chains)), "embedding": flat} | names
        schema = SHARD_SCHEMA if pooled else pa.unify_schemas([SHARD_SCHEMA, RESIDUE_SCHEMA])
        table = pa.table([to_arrow(columns[field.name], field.type) for field in schema], schema=schema)
        pq.write_table(table, temporary, use_dictionary=False)

    def write_safetensors(temporary: Path) -> None:
        tensors = {"embeddings": np.stack(vectors)} if pooled else dict(zip(ids, vectors, strict=True))
        metadata = {name: json.dumps(values, separators=(",", ":")) for name, values in names.items()}
        try:
            save_file(tensors, temporary, metadata={"ids": json.dumps(ids)} | metadata)
        except SafetensorError as error:  # what it makes of an error of the operating system
            raise OSError(errno.EIO, str(error)) from error

    write_atomically(path, write_safetensors if path.suffix == ".safetensors" else write_parquet)


def _listed(chain: Record, name: str) -> list[Any] | None:
    """A chain's column, None where there is nothing in it."""
    values = chain.get(name) if isinstance(chain, Mapping) else getattr(chain, name, None)
    return None if values is None or not len(values) else np.asarray(values).tolist()


@overload
def load_embeddings(folder: str | Path) -> tuple[list[str], Any]: ...
@overload
def load_embeddings(
    folder: str | Path, residues: Literal[True]
) -> tuple[list[str], Any, list[dict[str, list[Any] | None]]]: ...
def load_embeddings(folder: str | Path, residues: bool = False) -> Any:
    """Read the folder of `embed`, of either format.

    Files come in the order of their paths, whatever their order on the command line; chains in the order of their file;
    sequences and rows of a data set as they lie in it. Each chain of a structure file has a vector of its own, unless
    `embed` was told to take a file as a complex (`--complex`).

    Args:
        folder: the `output` of `embed`.
        residues: also return what the vectors of residues stand for.

    Returns:
        The ids of the chains, and in the same order their vectors, float32: (chains, hidden), or not pooled a list of
        (residues, hidden). With `residues` also, in the same order, a dictionary for each chain: `residue_numbers`, the
        file's own (residues,), such as `52A`, and of a complex `chain_names` and `chain_lengths` (chains,); None where
        the input has none, as a FASTA file, or where version 0.1.0 wrote the folder.

    Raises:
        FileNotFoundError: there are no embeddings.
        ValueError: shards are missing, since the run was stopped or other jobs are not done; or `residues` is asked of
            vectors of whole chains.

    Examples:
        >>> ids, vectors, residues = load_embeddings("runs/embeddings", residues=True)  # doctest: +SKIP
        >>> vectors[0][residues[0]["residue_numbers"].index("52A")].shape  # doctest: +SKIP
        (128,)
    """
    folder = Path(folder)
    records = sorted(folder.glob("parts/*.json"))
    if not records or not (folder / RUN).exists():
        raise FileNotFoundError(f"No embeddings in {folder}; give the output of `coordformer embed`.")
    parts = int(records[0].stem.rpartition("-")[2])
    if len(records) < parts:
        raise ValueError(f"{folder} has {len(records)} of {parts} shards; run the same `coordformer embed` again.")
    pooled = json.loads((folder / RUN).read_text(encoding="utf-8"))["pooling"] is not None
    if residues and pooled:
        fix = "embed again with --per_residue (in Python `pooling=None`), or leave `residues` out"
        raise ValueError(f"{folder} has a vector for each chain, and none for residues; {fix}.")
    ids: list[str] = []
    vectors: list[np.ndarray] = []
    described: list[dict[str, list[Any] | None]] = []
    files = [json.loads(record.read_text(encoding="utf-8")).get("file") for record in records]
    for path in [folder / file for file in files if file is not None]:  # a part may have no chain
        columns: dict[str, list[Any]] = {}
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            names = table["id"].to_pylist()
            column = table["embedding"].combine_chunks()
            values = np.split(column.flatten().to_numpy(), np.cumsum(column.value_lengths().to_numpy())[:-1])
            lengths = table["length"].to_pylist()
            vectors += values if pooled else [x.reshape(n, -1) for x, n in zip(values, lengths, strict=True)]
            if residues:
                known = set(table.column_names)
                columns = {name: table[name].to_pylist() for name in RESIDUE_SCHEMA.names if name in known}
        else:
            with safe_open(path, framework="np") as file:
                metadata = file.metadata()
                names = json.loads(metadata["ids"])
                vectors += list(file.get_tensor("embeddings")) if pooled else list(map(file.get_tensor, names))
                columns = {name: json.loads(metadata[name]) for name in RESIDUE_SCHEMA.names if name in metadata}
        ids += names
        nothing: list[Any] = [None] * len(names)
        described += [
            dict(zip(RESIDUE_SCHEMA.names, values, strict=True))
            for values in zip(*(columns.get(name, nothing) for name in RESIDUE_SCHEMA.names), strict=True)
        ]
    found = np.stack(vectors) if pooled else vectors
    return (ids, found, described) if residues else (ids, found)
