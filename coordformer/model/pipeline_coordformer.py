# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""Pipelines of Transformers that take structures: masked residues, embeddings, contacts, design, variants.

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

from .chain import AMINO_ACIDS, Chain
from .design import Designs, design
from .processing_coordformer import layout_tokens
from .proteins import as_chain, check_protein, check_reading
from .residues import ResidueNumbers
from .structure import read_proteins
from .substitutions import parse_mutant
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
    "protein-design": {"impl": "pipeline_coordformer.ProteinDesignPipeline", "pt": ["AutoModelForMaskedLM"]},
    "protein-variant-scoring": {
        "impl": "pipeline_coordformer.ProteinVariantScoringPipeline",
        "pt": ["AutoModelForMaskedLM"],
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
        reading = {"chain_ids": chain_ids, "min_plddt": min_plddt, "as_complex": as_complex, "assembly": assembly}
        chains = [self._encode(each, without_coords) for each in self._read(protein, **reading)]
        for (chain, arrays), asked in zip(chains, self._choose([chain for chain, _ in chains], **options), strict=True):
            residues = len(chain["sequence"])
            inside = min(window, residues)
            shared = {"chain": chain | {"sequence": "".join(chain["sequence"])}}
            for first, places in self._cut(chain["sequence"], asked, inside):
                cut = cut_window(arrays, first, inside, self.model.config)
                row = shared | {"window": (first, first + inside), "asked": places}
                rows.append(row | {key: torch.from_numpy(values)[None] for key, values in cut.items()})
        for number, row in enumerate(rows, 1):
            yield row | {"is_last": number == len(rows)}

    def _read(self, protein: Any, **reading: Any) -> list[Any]:
        """The chains or the complex of a protein: of a file, and else what was given."""
        if isinstance(protein, (str, os.PathLike)):
            if not os.path.exists(protein):
                raise FileNotFoundError(
                    f"{os.fspath(protein)}: no such file; check the path, or give a sequence as {{'sequence': ...}}"
                )
            return read_proteins(protein, **self.processor.reads, **reading)
        check_reading(reading)
        check_protein(protein)
        return [protein]

    def _encode(self, protein: Any, without_coords: bool) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What the rows of a chain or complex share, its sequence as tokens, and its arrays (tokens, ...).

        All have `position_ids` and `chain_ids`: rows that meet in a batch must have the same.
        """
        row: Mapping[str, Any] = protein if isinstance(protein, Mapping) else vars(protein)
        arrays = self.processor.encode_protein(protein, without_coords)
        tokens = self.processor.tokenizer.convert_ids_to_tokens(arrays["input_ids"][1:-1].tolist())
        chain: dict[str, Any] = {"id": row.get("id"), "sequence": tokens, "residue_numbers": None}
        for name in ("residue_numbers", "chain_names", "chain_lengths"):
            if (values := row.get(name)) is not None and len(values):
                chain[name] = np.asarray(values).tolist()
        residues = ResidueNumbers(chain)
        if "chain_lengths" in chain:
            chain["chain_names"] = list(residues.chain_names)
        whole = layout_tokens((np.arange(len(residues)), np.zeros(len(residues), dtype=np.int64)))
        return chain, {"attention_mask": np.ones_like(arrays["input_ids"])} | whole | arrays

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


class ProteinDesignPipeline(ProteinPipeline):
    """Sequences for a backbone, see `design`.

    A structure file is one complex, unless `as_complex` is False. A dictionary has `coords`. Residues are chosen by the
    file's own numbers. Options beyond `chain_ids`, `min_plddt`, `as_complex` and `assembly` are those of `design`
    (`num_samples`, `temperature`, `seed`, `rounds`, `rescore`, `token_budget`) and of `plan_design`
    (`fixed_residues`, `chains_to_design`, `omit_aa` and others). A protein is read whole.

    Adds to each chain or complex `designs`, a list of dictionaries, the best score first: `sequence`, `temperature`,
    `sample`, `score`, `global_score`, `seq_recovery` (None where no native letter is known) and with `rescore`
    `pseudo_score`; and `native_score`. Scores are those of `Designs`.
    """

    def preprocess(  # type: ignore[override]
        self, protein: Any, chain_ids: str | Sequence[str] | None = None, min_plddt: float | None = None,
        as_complex: bool | None = None, assembly: str | int | None = None, **options,
    ) -> Iterator[dict[str, Any]]:  # fmt: skip
        whole = isinstance(protein, (str, os.PathLike)) if as_complex is None else as_complex
        reading = {"chain_ids": chain_ids, "min_plddt": min_plddt, "as_complex": whole, "assembly": assembly}
        proteins = [as_chain(each) for each in self._read(protein, **reading)]
        for number, each in enumerate(proteins, 1):
            yield {"protein": each, "options": options, "is_last": number == len(proteins)}

    def _forward(self, row: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        if not isinstance(row["protein"], list):
            return row | {"designs": self._design(row["protein"], row["options"])}
        pairs = zip(row["protein"], row["options"], strict=True)
        return row | {"designs": [self._design(protein, options) for protein, options in pairs]}

    def _design(self, protein: Chain, options: Mapping[str, Any]) -> Designs:
        return design(self.model, protein, processor=self.processor, **options)

    def postprocess(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:  # type: ignore[override]
        results = []
        for row in rows:
            protein, designs = row["protein"], row["designs"]
            result: dict[str, Any] = {"id": protein.id, "sequence": protein.sequence}
            result["residue_numbers"] = list(protein.residue_numbers) or None
            for name in ("chain_names", "chain_lengths"):
                if getattr(protein, name, None):
                    result[name] = list(getattr(protein, name))
            columns = {"score": designs.scores, "global_score": designs.global_scores}
            columns |= {"seq_recovery": designs.recoveries, "pseudo_score": designs.pseudo_scores}
            result["designs"] = []
            for number in np.argsort(designs.scores, kind="stable").tolist():
                found = {name: float(column[number]) for name, column in columns.items()}
                values = {name: None if np.isnan(value) else value for name, value in found.items()}
                if values["pseudo_score"] is None:
                    del values["pseudo_score"]
                drawn = {"temperature": designs.temperatures[number], "sample": designs.samples[number]}
                result["designs"].append({"sequence": designs.sequences[number]} | drawn | values)
            native = designs.native_score
            results.append(result | {"native_score": None if np.isnan(native) else native})
        return results


class ProteinVariantScoringPipeline(ProteinPipeline):
    """Effects of substitutions: log-likelihood ratios of mutant and wild type in nats, higher is fitter.

    Options beyond those of `ProteinPipeline`:

    - `mutants`: such as `["A24G", "A24G:T30S", "SH195A"]`, by the file's own numbers (see `parse_mutant`), of a protein
      with one chain or of a complex. None: all substitutions.
    - `method`: `"masked_marginal"`, a row for each residue, or `"wild_type_marginal"`, one for the chain.
    - `numbering`, `offset`: as of `parse_mutant`.

    Adds to the chain `mutants`, a list of dictionaries with `mutant` and `score`, in the given order; or without
    `mutants`, `scan`, float64 (residues, 20), in the order `ACDEFGHIKLMNPQRSTVWY`, NaN for residues X.
    """

    METHODS = ("masked_marginal", "wild_type_marginal")

    def _sanitize_parameters(self, **options):
        if (method := options.get("method", self.METHODS[0])) not in self.METHODS:
            raise ValueError(f"`method` is {method!r}; choose one of {', '.join(self.METHODS)}.")
        if isinstance(options.get("mutants"), str):
            options["mutants"] = [options["mutants"]]
        if options.get("mutants") is not None and not len(options["mutants"]):
            raise ValueError("There is nothing to score: the list of mutants is empty.")
        parsing = {name: options[name] for name in ("mutants", "numbering", "offset") if name in options}
        return options, {}, parsing

    def _choose(
        self, chains, mutants: Sequence[str] | None = None, method: str = METHODS[0], numbering: str | None = None,
        offset: int | None = None,
    ) -> Iterator[list[np.ndarray]]:  # fmt: skip
        if mutants is not None and len(chains) > 1:
            names = ", ".join(str(chain["id"]) for chain in chains)
            raise ValueError(
                f"The mutants are of one chain, and there are {names}; choose by `chain_ids`, or as_complex."
            )
        for chain in chains:
            places = np.flatnonzero(np.isin(chain["sequence"], list(AMINO_ACIDS)))
            if mutants is not None:
                parsed = _parse(chain, chain["sequence"], mutants, numbering, offset)
                places = np.unique([index for mutant in parsed for index, _ in mutant] or [0])
            if not len(places):
                raise ValueError(
                    f"Chain {chain['id'] or '?'} has no residue that is known; nothing can be substituted."
                )
            yield [places] if method == "wild_type_marginal" else list(places[:, None])

    def _cut(self, residues, asked, window):
        rows = []
        for group in asked:
            starts = window_around(group, len(residues), window)
            rows += [(int(first), group[starts == first].tolist()) for first in np.unique(starts)]
        return rows

    def preprocess(self, protein: Any, method: str = METHODS[0], **options):  # type: ignore[override]
        for row in super().preprocess(protein, method=method, **options):
            places = torch.tensor([row["asked"]]) - row["window"][0] + 1  # <cls> is in front
            if method == "masked_marginal":
                row["input_ids"] = row["input_ids"].index_fill(1, places[0], self.processor.tokenizer.mask_token_id)
            yield row | {"places": places}

    def _predict(self, inputs, row):
        letters = self.processor.tokenizer.convert_tokens_to_ids(list(AMINO_ACIDS))
        logits = self.model(**inputs).logits.take_along_dim(row["places"].unsqueeze(-1), dim=1)
        return {"log_probabilities": logits[..., letters].double().log_softmax(dim=-1)}

    def _assemble(self, rows, mutants=None, numbering=None, offset=None):
        chain = rows[0]["chain"]
        letters = self.processor.tokenizer.tokenize(chain["sequence"])
        scan = np.full((len(letters), len(AMINO_ACIDS)), np.nan)
        for row in rows:
            for number, index in enumerate(row["asked"]):  # in a batch there is padding after them
                values = row["log_probabilities"][0, number].numpy()
                if letters[index] in AMINO_ACIDS:
                    scan[index] = values - values[AMINO_ACIDS.index(letters[index])]
        if mutants is None:
            return {"scan": scan}
        scores = []
        for mutant, substitutions in zip(mutants, _parse(chain, letters, mutants, numbering, offset), strict=True):
            score = sum(float(scan[index, AMINO_ACIDS.index(letter)]) for index, letter in substitutions)
            scores.append({"mutant": mutant, "score": float(score)})
        return {"mutants": scores}


def _parse(chain: Mapping[str, Any], letters: Any, mutants: Sequence[str], numbering, offset) -> list[Any]:
    residues = ResidueNumbers({**chain, "sequence": letters}, numbering=numbering, offset=offset)
    return [parse_mutant(mutant, residues) for mutant in mutants]


__all__ = [
    "CUSTOM_PIPELINES",
    "ProteinContactPredictionPipeline",
    "ProteinDesignPipeline",
    "ProteinFeatureExtractionPipeline",
    "ProteinFillMaskPipeline",
    "ProteinVariantScoringPipeline",
]
