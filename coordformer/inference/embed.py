"""Vectors of chains and residues, from structures or sequences: `coordformer embed`.

The output folder fills shard by shard; what was stopped goes on when it is called again.
"""

import errno
import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.batching import fetch_rows, padded_slots, read_lengths, token_lengths
from ..data.collator import CoordformerDataCollator
from ..data.files import write_atomically, write_text
from ..data.inputs import SEQUENCE_SUFFIXES, Reject, find_structures, write_rejects
from ..data.prepare import ROWS_AT_ONCE
from ..data.rows import SCHEMA, chain_to_row
from ..model.structure import STRUCTURE_SUFFIXES, Chain, read_proteins
from .evaluate import digest_weights, load_checkpoint, open_chains, predict_in_windows

POOLINGS = ("mean", "first", None)
FORMATS = ("parquet", "safetensors")
PLAN, CHAINS, REJECTS = "plan.json", "chains.parquet", "rejected.tsv"
SHARD_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("length", pa.int32()),  # residues
        ("embedding", pa.large_list(pa.float32())),  # (hidden,) or flat (residues, hidden)
    ]
)


@torch.no_grad()
def embed_chains(
    model: PreTrainedModel,
    chains: Sequence[Chain | Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    pooling: str | None = "mean",
    *,
    without_coords: bool = False,
    token_budget: int = 8192,
    window: int = 1024,
    bar: tqdm | None = None,
) -> list[np.ndarray]:
    """The last hidden states of a model, pooled or not.

    Args:
        model: a Coordformer with any head or none.
        chains: what `read_proteins` returns, or rows of a data set.
        tokenizer: of the model.
        pooling: `"mean"` over the residues of a chain, `"first"` (its first token, `<cls>`), or None: every residue.
        without_coords: withhold all coordinates.
        token_budget: tokens of a batch, of chains of like length; the longest chain, or window of it, fits in any case.
            The vectors depend on it by rounding alone.
        window: chains with more residues are embedded in overlapping windows of this many, see `predict_in_windows`.
        bar: is moved on by the chains that are done.

    Returns:
        For each chain (hidden,), or without pooling (residues, hidden), without special tokens; float32.
    """
    encoder = model.eval().base_model
    collator = CoordformerDataCollator(
        tokenizer,
        atoms=encoder.config.coordinate_atoms,
        dim=encoder.config.coordinate_dim,
        mlm_probability=0.0,
        rotate=False,
    )
    residues = [len(chain["sequence"] if isinstance(chain, Mapping) else chain.sequence) for chain in chains]
    lengths = token_lengths(np.array(residues, dtype=np.int64), window)
    order = np.argsort(lengths, kind="stable")
    vectors: dict[int, np.ndarray] = {}
    for slots in padded_slots(lengths, max(token_budget, int(lengths.max(initial=0)))):
        numbers = order[slots].tolist()
        batch = collator([chains[number] for number in numbers])
        left_out = {"labels", "coords"} if without_coords else {"labels"}
        batch = {name: values.to(model.device) for name, values in batch.items() if name not in left_out}
        states = predict_in_windows(encoder, batch, window, token_budget, output="last_hidden_state").float()
        for number, tokens in zip(numbers, states, strict=True):
            inside = tokens[1 : residues[number] + 1]
            vector = inside.mean(dim=0) if pooling == "mean" else tokens[0] if pooling == "first" else inside
            vectors[number] = vector.numpy(force=True).copy()  # a view would hold the states of the whole batch
        if bar is not None:
            bar.update(len(numbers))
    return [vectors[number] for number in range(len(chains))]


def embed(
    checkpoint: str | Path,
    output: str | Path,
    *,
    inputs: Sequence[str | Path] = (),
    data: str | Path | None = None,
    split: str | None = None,
    pooling: str | None = "mean",
    file_format: str = "parquet",
    without_coords: bool = False,
    chain_ids: Sequence[str] | None = None,
    min_plddt: float | None = None,
    dtype: str = "float32",
    token_budget: int = 8192,
    window: int = 1024,
    chains_per_shard: int = 1000,
    progress: bool = True,
) -> dict[str, int]:
    """Embed the chains of files or of a data set; further arguments are those of `embed_chains`.

    `output` gets `shard-*-of-*`, which `load_embeddings` reads, chains in the order of the inputs, and `plan.json`, the
    settings; of files also `chains.parquet`, the chains that were read, and `rejected.tsv` (file, chain, reason).

    - Parquet: columns `id`, `length` and `embedding`, (hidden,) or without pooling a flat list (residues, hidden).
    - safetensors: a tensor `embeddings` (chains, hidden), or without pooling one (residues, hidden) for each chain, by
      its id; the ids in their order are JSON in the metadata `ids`.

    A run that was stopped goes on with the shards that are missing when it is called again with the same arguments.

    Args:
        checkpoint: folder or Hub name of a Coordformer with any head or none.
        output: a folder.
        inputs: structure and FASTA files, and folders that are searched for both.
        data: in place of `inputs` a data set, see `open_chains`.
        split: of the data set.
        file_format: `"parquet"` or `"safetensors"`.
        chain_ids: only these chains of each file.
        min_plddt: residues of predicted structures below this confidence count as not observed.
        dtype: in which the model computes; the vectors are float32.
        chains_per_shard: chains of a shard, whose vectors are held in memory until they are written.
        progress: show progress bars.

    Returns:
        Counts of `chains`, `residues`, `shards`, and `rejected` files or chains.

    Raises:
        ValueError: an argument is unusable, no chain could be read, or `output` holds other embeddings.
        OSError: a shard could not be written; those before it stay.
    """
    if bool(inputs) == (data is not None):
        raise ValueError("Give either files or folders to embed, or a data set (`data`).")
    if inputs and split is not None:
        raise ValueError(f"`split` is {split!r}, but files have no splits; it goes with `data`.")
    if data is not None and (chain_ids is not None or min_plddt is not None):
        raise ValueError("`chain_ids` and `min_plddt` go with files; the chains of a data set are chosen already.")
    for name, value, choices in (("pooling", pooling, POOLINGS), ("file_format", file_format, FORMATS)):
        if value not in choices:
            raise ValueError(f"`{name}` is {value!r}; choose one of {', '.join(map(str, choices))}.")
    for name, number, least in (("token_budget", token_budget, 1), ("window", window, 2),
                                ("chains_per_shard", chains_per_shard, 1)):  # fmt: skip
        if number < least:
            raise ValueError(f"`{name}` is {number}; it must be at least {least}.")
    output = Path(output)
    if output.is_file():
        raise ValueError(f"`output` is {output}, which is a file; give a folder.")
    files = _list_files(inputs) if inputs else {}
    rows = None if data is None else open_chains(data, split)
    model, processor = load_checkpoint(checkpoint, dtype, any_head=True)
    _begin(
        output,
        {
            "checkpoint": Path(checkpoint).name,
            "weights": digest_weights(model.base_model),
            "chains": _digest_files(files) if rows is None else _digest_rows(rows),
            "chain_ids": None if chain_ids is None else list(chain_ids),
            "min_plddt": min_plddt,
            "without_coords": without_coords,
            "pooling": pooling,
            "dtype": dtype,
            "window": window,
            "format": file_format,
            "chains_per_shard": chains_per_shard,
        },
    )
    if rows is None:
        if not (output / CHAINS).exists():
            _read_files(files, output, model.config.coordinate_atoms, min_plddt, chain_ids, progress)
        rows = open_chains(output / CHAINS)
    lengths = read_lengths(rows)
    shards = -(-len(rows) // chains_per_shard)
    left: dict[Path, range] = {}
    for shard, start in enumerate(range(0, len(rows), chains_per_shard)):
        path = output / f"shard-{shard:05d}-of-{shards:05d}.{file_format}"
        if not path.exists():
            left[path] = range(start, min(start + chains_per_shard, len(rows)))
    done = len(rows) - sum(map(len, left.values()))
    with tqdm(total=len(rows), initial=done, unit="chain", disable=not progress, smoothing=0) as bar:
        for path, part in left.items():
            chains = fetch_rows(rows, part)
            vectors = embed_chains(
                model,
                chains,
                processor.tokenizer,
                pooling,
                without_coords=without_coords,
                token_budget=token_budget,
                window=window,
                bar=bar,
            )
            write_shard(path, [str(chain["id"]) for chain in chains], lengths[part.start : part.stop], vectors)
    rejected = 0
    if files:
        rejected = len((output / REJECTS).read_text(encoding="utf-8").splitlines()) - 1
    return {"chains": len(rows), "residues": int(lengths.sum()), "shards": shards, "rejected": rejected}


def _list_files(inputs: Sequence[str | Path]) -> dict[str, Path]:
    """Structure and FASTA files by their names below the folder that they have in common."""
    paths = find_structures(inputs, (*STRUCTURE_SUFFIXES, *SEQUENCE_SUFFIXES))
    root = Path(os.path.commonpath([path.resolve().parent for path in paths]))
    return {path.resolve().relative_to(root).as_posix(): path for path in paths}


def _read_files(
    files: Mapping[str, Path],
    output: Path,
    atoms: Sequence[str],
    min_plddt: float | None,
    chain_ids: Sequence[str] | None,
    progress: bool,
) -> None:
    """Read all files into one data set, so that the shards of a run that is called again are of the same chains."""
    rejects: list[Reject] = []
    sources: dict[str, str] = {}

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
            rows: list[dict[str, Any]] = []
            for name, path in tqdm(files.items(), unit="file", disable=not progress):
                try:
                    chains = read_proteins(path, atoms, min_plddt, chain_ids)
                except (ValueError, OSError, RuntimeError) as error:
                    rejects.append((name, "", str(error).removeprefix(f"{path}: ")))
                    continue
                for chain in chains:
                    if chain.id in sources:
                        reason = f"a chain of {sources[chain.id]} has this id, too; embed it into a folder of its own"
                        rejects.append((name, chain.id, reason))
                        continue
                    sources[chain.id] = name
                    rows.append(chain_to_row(chain, source=name))
                    if len(rows) == ROWS_AT_ONCE:
                        writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
                        rows = []
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
        write_rejects(output / REJECTS, rejects)
        if not sources:
            raise ValueError(f"No chain could be read; {output / REJECTS} says why.")

    write_atomically(output / CHAINS, write)


def _digest_files(files: Mapping[str, Path]) -> str:
    """Of names and contents: a file that was edited may be as long as before."""
    digest = hashlib.sha256()
    for name, path in files.items():
        with open(path, "rb") as file:
            digest.update(json.dumps([name, hashlib.file_digest(file, "sha256").hexdigest()]).encode())
    return digest.hexdigest()[:16]


def _digest_rows(rows: Any) -> str:
    """Of ids, which have to be different, sequences and coordinates."""
    ids = list(map(str, rows["id"][:]))
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} ids of the data set stand for several chains, such as {twice[0]}; give each chain its own."
        )
    digest = hashlib.sha256(json.dumps(ids).encode())
    for start in range(0, len(rows), ROWS_AT_ONCE):
        for row in fetch_rows(rows, range(start, min(start + ROWS_AT_ONCE, len(rows)))):
            digest.update(str(row["sequence"]).encode())
            digest.update(np.asarray(row["coords"], dtype=np.float32).tobytes())
    return digest.hexdigest()[:16]


def _begin(output: Path, plan: Mapping[str, Any]) -> None:
    """Refuse a folder that holds other embeddings; write the plan of new ones."""
    path = output / PLAN
    # A plan alone is of a run that found nothing to embed.
    if path.exists() and ((output / CHAINS).exists() or list(output.glob("shard-*"))):
        before = json.loads(path.read_text(encoding="utf-8"))
        # The same weights may lie elsewhere by now.
        changed = [
            f"{name}: {before.get(name)!r} -> {value!r}"
            for name, value in plan.items()
            if name != "checkpoint" and before.get(name) != value
        ]
        if changed:
            raise ValueError(
                f"{output} holds other embeddings ({'; '.join(changed)}). Choose another output folder, or delete it."
            )
        for leftover in output.glob("*.tmp"):
            leftover.unlink()
        return
    if not path.exists() and list(output.glob("shard-*")):
        raise ValueError(f"{output} holds shards without {PLAN}. Choose another output folder, or delete them.")
    output.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(plan, indent=2) + "\n")


# ---------------------------------------------------------------------------------------------------------------------
# Shards
# ---------------------------------------------------------------------------------------------------------------------


def write_shard(path: Path, ids: Sequence[str], lengths: np.ndarray, vectors: Sequence[np.ndarray]) -> None:
    """Write vectors of chains, as `embed` describes it; the name of the file decides the format."""

    def write_parquet(temporary: Path) -> None:
        ends = np.cumsum([0, *(vector.size for vector in vectors)], dtype=np.int64)
        values = np.concatenate([vector.reshape(-1) for vector in vectors])
        embedding = pa.LargeListArray.from_arrays(pa.array(ends), pa.array(values))
        table = pa.table([pa.array(ids), pa.array(lengths, pa.int32()), embedding], schema=SHARD_SCHEMA)
        pq.write_table(table, temporary, use_dictionary=False)

    def write_safetensors(temporary: Path) -> None:
        tensors = {"embeddings": np.stack(vectors)} if vectors[0].ndim == 1 else dict(zip(ids, vectors, strict=True))
        try:
            save_file(tensors, temporary, metadata={"ids": json.dumps(list(ids))})
        except SafetensorError as error:  # what it makes of an error of the operating system
            raise OSError(errno.EIO, str(error)) from error

    write_atomically(path, write_safetensors if path.suffix == ".safetensors" else write_parquet)


def load_embeddings(folder: str | Path) -> tuple[list[str], Any]:
    """Read the folder of `embed`, of either format.

    Returns:
        The ids of the chains, and their vectors, float32: an array (chains, hidden), or where they were not pooled a
        list of arrays (residues, hidden).

    Raises:
        FileNotFoundError: there are no embeddings.
        ValueError: shards are missing, since the run was stopped.
    """
    folder = Path(folder)
    paths = sorted(path for file_format in FORMATS for path in folder.glob(f"shard-*-of-*.{file_format}"))
    if not paths or not (folder / PLAN).exists():
        raise FileNotFoundError(f"No embeddings in {folder}; give the output of `coordformer embed`.")
    shards = int(paths[0].stem.rpartition("-")[2])
    if len(paths) < shards:
        raise ValueError(f"{folder} has {len(paths)} of {shards} shards; run the same `coordformer embed` again.")
    pooled = json.loads((folder / PLAN).read_text(encoding="utf-8"))["pooling"] is not None
    ids: list[str] = []
    vectors: list[np.ndarray] = []
    for path in paths:
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            ids += table["id"].to_pylist()
            column = table["embedding"].combine_chunks()
            values = np.split(column.flatten().to_numpy(), np.cumsum(column.value_lengths().to_numpy())[:-1])
            residues = table["length"].to_pylist()
            vectors += values if pooled else [x.reshape(n, -1) for x, n in zip(values, residues, strict=True)]
        else:
            with safe_open(path, framework="np") as file:
                names = json.loads(file.metadata()["ids"])
                ids += names
                vectors += list(file.get_tensor("embeddings")) if pooled else list(map(file.get_tensor, names))
    return ids, np.stack(vectors) if pooled else vectors
