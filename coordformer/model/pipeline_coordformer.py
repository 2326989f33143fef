# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""Pipelines of Transformers that take structures: masked residues, embeddings, contacts.

`pipeline("fill-mask")` and `pipeline("feature-extraction")` take sequences alone.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.pipelines.base import ChunkPipeline

from .chain import AMINO_ACIDS
from .processing_coordformer import chain_layout, layout_tokens
from .residues import ResidueNumbers
from .structure import read_complex, read_proteins
from .windows import WindowMean, cut_window, longest_window, window_around, window_starts

# As config.json has it, for a folder that carries this file; `import coordformer` registers the same tasks.
CUSTOM_PIPELINES: dict[str, dict[str, Any]] = {
    "protein-fill-mask": {"impl": "pipeline_coordformer.ProteinFillMaskPipeline", "pt": ["AutoModelForMaskedLM"]},
    "protein-feature-extraction": {
        "impl": "pipeline_coordformer.ProteinFeatureExtractionPipeline",
        "pt": ["AutoModel"],
    },
    "protein-contact-prediction": {
        "impl": "pipeline_coordformer.ProteinContactPredictionPipeline",
        "pt": ["AutoModel"],
    },
}


class ProteinPipeline(ChunkPipeline):
    """What the pipelines of proteins have in common.

    Called with a protein or a list of them: the path of a structure or FASTA file, plain or gzipped; a `Chain` or a
    `Complex`; or a dictionary with `sequence`, in which `<mask>` stands for a residue, and perhaps `coords`, as the
    processor takes them, `id`, `positions`, `residue_numbers`, and `chain_lengths` and `chain_names` of a complex; a
    row of a data set is one. For each protein the result is a list with a dictionary for each of its chains, or for the
    complex: `id` (None if there is none), `sequence`, `residue_numbers` (a list of the file's own, None if there are
    none), of a complex `chain_names` and `chain_lengths`, and what the pipeline adds.

    Options, of a call or of the pipeline:

    - `chain_ids`: only these chains of each file.
    - `min_plddt`: residues of a predicted structure below this confidence count as not observed.
    - `as_complex`: the chains of a structure file are read as one complex (see `structure.read_complex`).
    - `assembly`: of a structure file this biological assembly, such as 1, as one complex.
    - `without_coords`: give the model no coordinates.
    - `window`: longer chains are read in windows of this many residues, 1024 if not given (see `model.windows`).
    - `batch_size`: rows that the model reads at once, of whichever chains; 1 if not given.
    """

    _load_processor: Any = True
    _load_tokenizer: Any = False  # the processor has it
    _load_feature_extractor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False

    model: Any
    processor: Any

    def _sanitize_parameters(self, **options):
        return options, {}, {}

    def preprocess(  # type: ignore[override]
        self, protein: Any, chain_ids: str | Sequence[str] | None = None, min_plddt: float | None = None,
        as_complex: bool = False, assembly: str | int | None = None, without_coords: bool = False, window: int = 1024,
        **options,
    ) -> Iterator[dict[str, Any]]:  # fmt: skip
        """The rows that the model reads, of every chain one for each window: inputs, and where they come from."""
        window = longest_window(self.model.config, window)
        rows: list[dict[str, Any]] = []
        chains = [self._encode(each) for each in self._read(protein, chain_ids, min_plddt, as_complex, assembly)]
        for (chain, arrays), asked in zip(chains, self._choose([chain for chain, _ in chains], **options), strict=True):
            if without_coords:
                del arrays["coords"]
            residues = len(chain["sequence"])
            inside = min(window, residues)
            shared = {"chain": chain | {"sequence": "".join(chain["sequence"])}}
            for first, places in self._cut(chain["sequence"], asked, inside):
                cut = cut_window(arrays, first, inside, self.model.config)
                row = shared | {"window": (first, first + inside), "asked": places}
                rows.append(row | {key: torch.from_numpy(values)[None] for key, values in cut.items()})
        for number, row in enumerate(rows, 1):
            yield row | {"is_last": number == len(rows)}

    def _read(self, protein: Any, chain_ids, min_plddt, as_complex, assembly) -> list[Any]:
        """The chains or the complex of a protein: of a file, and else what was given."""
        if isinstance(protein, (str, os.PathLike)):
            if not os.path.exists(protein):
                raise FileNotFoundError(
                    f"{os.fspath(protein)}: no such file; check the path, or give a sequence as {{'sequence': ...}}"
                )
            atoms = self.processor.coordinate_atoms
            if as_complex or assembly is not None:
                return [read_complex(protein, chain_ids, assembly, atoms=atoms, min_plddt=min_plddt)]
            return read_proteins(protein, atoms, min_plddt, chain_ids)
        if chain_ids is not None or min_plddt is not None or as_complex or assembly is not None:
            raise ValueError(
                "`chain_ids` and `min_plddt` go with files, and so do `as_complex` and `assembly`; chains are chosen "
                "and joined as they are read."
            )
        # Rather than its class: code from the Hub has a Chain of its own.
        if "sequence" not in protein if isinstance(protein, Mapping) else not hasattr(protein, "sequence"):
            raise ValueError(
                f"A protein cannot be read from {type(protein).__name__}; give the path of a structure or FASTA file, "
                "a Chain, a Complex, a dictionary with `sequence`, or a list of these."
            )
        return [protein]

    def _encode(self, protein: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What the rows of a chain or complex share, its sequence as tokens, and its arrays (tokens, ...).

        All have `position_ids` and `chain_ids`: rows that meet in a batch must have the same.
        """
        row: Mapping[str, Any] = protein if isinstance(protein, Mapping) else vars(protein)
        if isinstance(protein, Mapping) and "atoms" not in protein:
            inputs = self.processor(sequences=[protein["sequence"]], coords=[protein.get("coords")])
        else:  # a Chain, or a row of a data set, whose coordinates are flat
            inputs = self.processor(chains=[protein])
        tokens = self.processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0, 1:-1])
        chain: dict[str, Any] = {"id": row.get("id"), "sequence": tokens, "residue_numbers": None}
        for name in ("residue_numbers", "chain_names", "chain_lengths"):
            if (values := row.get(name)) is not None and len(values):
                chain[name] = np.asarray(values).tolist()
        residues = ResidueNumbers(chain)
        if "chain_lengths" in chain:
            chain["chain_names"] = list(residues.chain_names)
        layout = chain_layout(chain | {"positions": row.get("positions")})
        layout = layout or (np.arange(len(residues)), np.zeros(len(residues), dtype=np.int64))
        arrays = {key: values[0].numpy() for key, values in inputs.items()}
        return chain, arrays | layout_tokens(layout)

    def _choose(self, chains: list[dict[str, Any]]) -> Iterable[Any]:
        """Of each chain the residues that are asked for, where the pipeline takes some."""
        return [None] * len(chains)

    def _cut(self, residues: list[str], asked: Any, window: int) -> list[tuple[int, list[int]]]:
        """First residues of the windows of a chain, and of each the residues that are to be predicted, if any."""
        return [(first, []) for first in window_starts(len(residues), window)]

    def _forward(self, row: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        inputs = {name: row.pop(name) for name in self.processor.model_input_names if name in row}
        return row | self._predict(inputs, row)

    def postprocess(self, rows: list[dict[str, Any]], **options) -> list[dict[str, Any]]:  # type: ignore[override]
        chains = [list(group) for _, group in groupby(rows, key=lambda row: row["chain"]["id"])]
        return [rows[0]["chain"] | self._assemble(rows, **options) for rows in chains]

    def _predict(self, inputs: dict[str, Tensor], row: dict[str, Any]) -> dict[str, Tensor]:
        """What is kept of the model's outputs for a batch of rows."""
        raise NotImplementedError

    def _assemble(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """What a chain's dictionary gets of its rows."""
        raise NotImplementedError

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        # Transformers saves the processor's parts, but not the processor.
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


class ProteinFillMaskPipeline(ProteinPipeline):
    """Probabilities of the 20 amino acids at masked residues, given all others and the structure.

    Residues that are `<mask>` in the sequence are predicted together, in one row. Of a sequence without any, each
    residue is masked in its turn, alone, and costs a row, as in masked marginals. The coordinates of masked residues
    stay. Of a chain longer than `window` those residues are read that are around the one that is predicted.

    Adds to each chain `predictions`, a list of dictionaries with `position` (of the residue in the whole sequence, from
    1 on), `residue_number` (the file's own, or None), of a complex `chain` (its name), `residue` (its letter, or
    `<mask>`) and `probabilities` by letter, highest first; softmax over these 20.

    Options beyond those of `ProteinPipeline`:

    - `residues`: those that are masked in their turn, by chain and the file's own numbers, such as `"A10-A20 A52A"`
      (see `ResidueNumbers.select`). Of a file with several chains the result has those with a residue among them.
    - `positions`: the same by position, from 1 on, of each chain of a file. All residues if neither is given.
    - `top_k`: letters of each prediction, 5 if not given.
    """

    def _sanitize_parameters(self, top_k=None, **options):
        if top_k is not None and top_k < 1:
            raise ValueError(f"`top_k` is {top_k}; it must be at least 1.")
        return options, {}, {} if top_k is None else {"top_k": top_k}

    def _choose(
        self, chains, positions: Sequence[int] | None = None, residues: str | Sequence[str] | None = None
    ) -> Iterator[np.ndarray]:
        chosen: Any = residues
        if residues is not None:
            if positions is not None:
                raise ValueError(f"`positions` is {positions} and `residues` {residues!r}; choose residues one way.")
            chosen = np.array(ResidueNumbers(*chains).select(residues))
        start = 0
        for chain in chains:
            length = len(chain["sequence"])
            asked = self._masked(chain["sequence"])
            given = positions if residues is None else residues
            if len(asked) and given is not None:
                name, mask = "positions" if residues is None else "residues", self.processor.tokenizer.mask_token
                raise ValueError(f"`{name}` is {given}, but the sequence has {mask} in it; choose residues one way.")
            if residues is not None:
                asked = chosen[(chosen >= start) & (chosen < start + length)] - start
            elif not len(asked):
                asked = self._indices(positions, length, chain["id"])
            start += length
            yield asked

    def _masked(self, residues: list[str]) -> np.ndarray:
        return np.flatnonzero([residue == self.processor.tokenizer.mask_token for residue in residues])

    def _indices(self, positions: Sequence[int] | None, length: int, name: str | None) -> np.ndarray:
        try:
            alone = np.arange(length) if positions is None else np.asarray(positions, dtype=np.int64) - 1
        except (TypeError, ValueError):
            alone = np.zeros(0, dtype=np.int64)  # no numbers
        if alone.ndim != 1 or not len(alone) or alone.min() < 0 or alone.max() >= length:
            raise ValueError(
                f"`positions` is {positions}; give a list of numbers from 1 to {length}, the residues of "
                f"chain {name or '?'}."
            )
        return alone

    def _cut(self, residues, asked, window):
        starts = window_around(asked, len(residues), window)
        if len(self._masked(residues)):
            return [(int(first), asked[starts == first].tolist()) for first in np.unique(starts)]
        return list(zip(starts.tolist(), asked[:, None].tolist(), strict=True))

    def preprocess(self, protein: Any, **options) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        for row in super().preprocess(protein, **options):
            places = torch.tensor([row["asked"]]) - row["window"][0] + 1  # <cls> is in front
            masked = row["input_ids"].index_fill(1, places[0], self.processor.tokenizer.mask_token_id)
            yield row | {"input_ids": masked, "places": places}

    def _predict(self, inputs, row):
        letters = self.processor.tokenizer.convert_tokens_to_ids(list(AMINO_ACIDS))
        logits = self.model(**inputs).logits.take_along_dim(row["places"].unsqueeze(-1), dim=1)
        return {"probabilities": logits[..., letters].float().softmax(dim=-1)}

    def _assemble(self, rows, top_k: int = 5):
        chain = rows[0]["chain"]
        residues = self.processor.tokenizer.tokenize(chain["sequence"])
        names, numbers = ResidueNumbers(chain | {"sequence": residues}), chain["residue_numbers"]
        predictions = []
        for row in rows:
            best = row["probabilities"][0].topk(min(top_k, len(AMINO_ACIDS)))
            for number, index in enumerate(row["asked"]):  # in a batch there is padding after them
                pairs = zip(best.indices[number].tolist(), best.values[number].tolist(), strict=True)
                probabilities = {AMINO_ACIDS[letter]: probability for letter, probability in pairs}
                named = {"position": index + 1, "residue_number": numbers and (numbers[index] or None)}
                named |= {"chain": names.chain_name(index)} if "chain_lengths" in chain else {}
                predictions.append(named | {"residue": residues[index], "probabilities": probabilities})
        return {"predictions": predictions}


class ProteinFeatureExtractionPipeline(ProteinPipeline):
    """The last hidden states of the encoder; the options are those of `ProteinPipeline`.

    Adds to each chain `embedding` (hidden,), the mean over its residues, and `residue_embeddings` (residues, hidden),
    float32 arrays without special tokens. Windows of long chains overlap by half, and are averaged.
    """

    def _predict(self, inputs, row):
        return {"states": self.model.base_model(**inputs).last_hidden_state.float()}

    def _assemble(self, rows):
        mean = WindowMean((rows[-1]["window"][1], rows[0]["states"].shape[-1]), 1)
        for row in rows:
            first, end = row["window"]
            mean.add(first, row["states"][0, 1 : 1 + end - first].numpy())
        states = mean.mean()
        return {"embedding": states.mean(axis=0), "residue_embeddings": states}


class ProteinContactPredictionPipeline(ProteinPipeline):
    """Probabilities that two residues are in contact, of a model with a contact head.

    Adds to each chain `probabilities` (residues, residues), a symmetric float32 array. Windows of long chains overlap
    by half, and probabilities are averaged; NaN where no window holds both residues. The options are those of
    `ProteinPipeline`; memory grows with the square of `window`.
    """

    def _predict(self, inputs, row):
        return {"probabilities": self.model.predict_contacts(**inputs)}

    def _assemble(self, rows):
        residues = rows[-1]["window"][1]
        mean = WindowMean((residues, residues), 2)
        for row in rows:
            first, end = row["window"]
            mean.add(first, row["probabilities"][0, : end - first, : end - first].numpy())
        return {"probabilities": mean.mean()}


__all__ = [
    "CUSTOM_PIPELINES",
    "ProteinContactPredictionPipeline",
    "ProteinFeatureExtractionPipeline",
    "ProteinFillMaskPipeline",
]
