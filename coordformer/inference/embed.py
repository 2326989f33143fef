"""Vectors of chains and residues, from structures, sequences or data sets: `coordformer embed`."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..data.records import counted
from ..model.coordinates import placed_in
from ..model.embedding import POOLINGS, embed_chains
from ..model.proteins import Record, as_chain
from .checkpoints import digest_weights, load_checkpoint, stated_noise
from .embeddings import FORMATS, write_shard
from .runner import REJECTS, Inputs, parts_in, run_parts

logger = logging.getLogger(__name__)


def embed(
    checkpoint: str | Path, inputs: Sequence[str | Path] | str | Path, output: str | Path, *,
    pooling: str | None = "mean", file_format: str = "parquet", without_coords: bool = False,
    noise_level: float | None = None, dtype: str = "float32", token_budget: int = 8192, window: int = 1024,
    progress: bool = True, **reading: Any,
) -> dict[str, Any]:  # fmt: skip
    """Embed chains; arguments that are not below are those of `embed_chains`.

    Args:
        checkpoint: folder or Hub name of a Coordformer with any head or none.
        inputs: structure and FASTA files, archives, folders, data sets.
        output: a folder; gets a file `shard-*-of-*` for each part, which `load_embeddings` reads and whose docstring
            has the order of the chains; see `embeddings` for what is in it, without pooling the residues' own numbers,
            too.
        file_format: `"parquet"` or `"safetensors"`.
        noise_level: what a model with `config.noise_conditioning` is told, Å; default: its `config.noise_level`.
        dtype: in which the model computes; the vectors are float32.
        reading: `split`, `chain_ids`, `min_plddt`, `as_complex`, `assembly`, `entries_per_part` and `shard`, as of
            `runner.Inputs`.

    Returns:
        Counts of `chains`, `residues`, `shards`, and `rejected` files or chains.

    Raises:
        ValueError: an argument is unusable, no chain could be read, or `output` holds other embeddings.
        OSError: a shard could not be written; those before it stay.
    """
    for name, value, choices in (("pooling", pooling, POOLINGS), ("file_format", file_format, FORMATS)):
        if value not in choices:
            raise ValueError(f"`{name}` is {value!r}; choose one of {', '.join(map(str, choices))}.")
    output = Path(output)
    model, processor = load_checkpoint(checkpoint, dtype, any_head=True, noise_level=noise_level)
    given = Inputs(inputs, **processor.reads, **reading)

    def work(chains: list[Record], part: str, _: Any, bar: tqdm) -> dict[str, Any]:
        options: dict[str, Any] = {"without_coords": without_coords, "token_budget": token_budget, "window": window}
        vectors = embed_chains(model, chains, processor.tokenizer, pooling, bar=bar, **options)
        write_shard(output / f"shard-{part}.{file_format}", chains, vectors)
        read = [] if without_coords else map(as_chain, chains)
        unplaced = sum(int((~placed_in(chain, model)).sum()) for chain in read if chain.observed.any())
        return {"file": f"shard-{part}.{file_format}", "unplaced": unplaced}

    settings: dict[str, Any] = {"verb": "embed", "checkpoint": Path(checkpoint).name}
    settings |= {"weights": digest_weights(model.base_model), "without_coords": without_coords, "pooling": pooling}
    settings |= {"dtype": dtype, "window": window, "format": file_format, **stated_noise(noise_level)}
    with parts_in(output, given):
        outcome = run_parts(given, output, settings, work, progress)
        outcome.list_rejects(output / REJECTS)
    if unplaced := sum(record.get("unplaced", 0) for record in outcome.records):  # an older version did not count
        blind = model.config.encoder_type == "proteinmpnn"
        what = "their vectors are zeros, also in means" if blind else "their vectors are of the sequence alone"
        logger.warning("%s without a place in the structure: %s", counted(unplaced, "residue"), what)
    counts = outcome.counts()
    shards = sum("file" in record for record in outcome.records)
    return {"chains": counts.pop("chains"), "residues": counts.pop("residues"), "shards": shards} | counts


def describe(counts: dict[str, Any]) -> str:
    """The counts as a short text."""
    chains, residues, shards = (counted(counts[f"{name}s"], name) for name in ("chain", "residue", "shard"))
    return f"{chains} with {residues} in {shards}"
