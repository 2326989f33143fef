# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""From sequences, coordinates, chains or structure files to a padded batch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin

from .chain import AMINO_ACIDS, VOCABULARY, Chain, chain_arrays, chain_layout
from .structure import read_chains, read_complex
from .windows import SPECIAL_TOKENS


def build_tokenizer(vocabulary: Sequence[str] = VOCABULARY, **kwargs) -> PreTrainedTokenizerFast:
    """ESM-2's 33 tokens as a fast tokenizer: one token per letter, `<cls>` before and `<eos>` after.

    A letter outside the vocabulary becomes one `<unk>`, so that tokens and residues stay aligned. Another `vocabulary`,
    in the order of its ids, has the same special tokens: `<cls>`, `<pad>`, `<eos>`, `<unk>` and `<mask>`.

    Examples:
        >>> build_tokenizer()("MK<mask>V").input_ids
        [0, 20, 15, 32, 7, 2]
    """
    special = {name: f"<{name}>" for name in ("cls", "pad", "eos", "unk", "mask")}
    ids = {token: index for index, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=special["unk"]))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special.values()])
    longer = [token for token in vocabulary if len(token) > 1 and token not in special.values()]  # as `<null_1>`
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in longer])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), behavior="isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<cls> $A <eos>",
        pair="<cls> $A <eos> $B <eos>",
        special_tokens=[("<cls>", ids["<cls>"]), ("<eos>", ids["<eos>"])],
    )
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        # Trainer writes the tokenizer's idea of the first token into the model's config, where <cls> has its place.
        bos_token=special["cls"],
        **{f"{name}_token": token for name, token in special.items()},
        **kwargs,
    )


def layout_tokens(layout: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    """`position_ids` and `chain_ids` (tokens,) of a chain with `<cls>` and `<eos>`, from its `chain_layout`."""
    positions, chain_index = layout
    position_ids = np.concatenate(([0], positions - positions[0] + 1, [positions[-1] - positions[0] + 2]))
    return {"position_ids": position_ids, "chain_ids": np.pad(chain_index, 1, mode="edge")}


def pad_batch(
    rows: Sequence[Mapping[str, np.ndarray]], pad_token_id: int, pad_to_multiple_of: int = 1
) -> dict[str, np.ndarray]:
    """Pad rows on the right to the longest.

    Args:
        rows: of each `input_ids` (tokens,), `coords` (tokens, ...), and where any row has them `position_ids` and
            `chain_ids` (tokens,), for rows without them they are counted on, and 0; perhaps `noise_level` (tokens,).
        pad_token_id: of `input_ids`; coordinates are NaN, all else is 0.
        pad_to_multiple_of: the padded length is rounded up to a multiple of this.

    Returns:
        Arrays (batch, length, ...) by name, and `attention_mask`.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    shape = len(rows), -(-max(lengths) // pad_to_multiple_of) * pad_to_multiple_of
    batch = {
        "input_ids": np.full(shape, pad_token_id, dtype=np.int64),
        "attention_mask": (np.arange(shape[1]) < np.array(lengths)[:, None]).astype(np.int64),
        "coords": np.full((*shape, *rows[0]["coords"].shape[1:]), np.nan, dtype=np.float32),
    }
    if any("position_ids" in row for row in rows):
        batch |= {"position_ids": np.zeros(shape, dtype=np.int64), "chain_ids": np.zeros(shape, dtype=np.int64)}
        batch["position_ids"][:] = np.arange(shape[1]) * batch["attention_mask"]
    if any("noise_level" in row for row in rows):
        batch["noise_level"] = np.zeros(shape, dtype=np.float32)
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        for name, values in row.items():
            batch[name][number, :length] = values
    return batch


def letter_ids(tokenizer: Any) -> dict[str, int]:
    """Token ids of the 20 amino acids by letter."""
    vocabulary = tokenizer.get_vocab()
    return {letter: vocabulary[letter] for letter in AMINO_ACIDS}


class CoordformerProcessor(ProcessorMixin):
    """Prepare inputs for a Coordformer.

    Args:
        tokenizer: a fast tokenizer with one token per residue; the default is ESM-2's vocabulary, built in.
        coordinate_atoms: the atoms the model reads, `config.coordinate_atoms`.
        coordinate_dim: number of spatial dimensions, `config.coordinate_dim`.
        optional_atoms: those of them that files and chains may lack, `config.optional_atoms`.

    Examples:
        >>> processor = CoordformerProcessor()
        >>> batch = processor(["MKV", "GA"], coords=[[[0, 0, 0], [3.8, 0, 0], [7.6, 0, 0]], None])
        >>> batch["input_ids"].shape, batch["coords"].shape
        (torch.Size([2, 5]), torch.Size([2, 5, 3]))
    """

    _auto_class = "AutoProcessor"  # Transformers saves the code beside it

    def __init__(
        self, tokenizer=None, coordinate_atoms: Sequence[str] = ("CA",), coordinate_dim: int = 3,
        optional_atoms: Sequence[str] = (), **kwargs,
    ):  # fmt: skip
        self.coordinate_atoms = (coordinate_atoms,) if isinstance(coordinate_atoms, str) else tuple(coordinate_atoms)
        self.coordinate_dim = coordinate_dim
        self.optional_atoms = tuple(optional_atoms)
        super().__init__(build_tokenizer() if tokenizer is None else tokenizer, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "coords", "position_ids", "chain_ids"]

    @property
    def reads(self) -> dict[str, Any]:
        """What is read of structure files, as arguments of `read_chains`."""
        return {"atoms": self.coordinate_atoms, "optional_atoms": self.optional_atoms}

    def __call__(
        self, sequences: str | Sequence[str] | None = None, coords: Any = None, *,
        chains: Chain | Mapping[str, Any] | Sequence[Chain | Mapping[str, Any]] | None = None,
        structures: str | Path | Sequence[str | Path] | None = None, chain_ids: str | Sequence[str] | None = None,
        min_plddt: float | None = None, as_complex: bool = False, assembly: str | int | None = None,
        pad_to_multiple_of: int | None = None, return_tensors: str = "pt",
    ) -> BatchFeature:  # fmt: skip
        """Make one padded batch from sequences, or from chains, or from structure files.

        Args:
            sequences: one-letter sequences; `<mask>` stands for one residue.
            coords: for each sequence (residues, D) or (residues, atoms, D) in Å, special tokens left out, NaN where
                not observed; None for a sequence without structure.
            chains: what `coordformer.model.structure.read_chains` or `read_complex` returns, or rows of a prepared
                data set.
            structures: mmCIF or PDB files, plain or gzipped; every protein chain becomes a row, in file order, or with
                `as_complex` or `assembly` every file one row. The batch has no names: to know which row is which, read
                the chains first, give them as `chains`, and take `[chain.id for chain in chains]`.
            chain_ids, min_plddt, assembly: of `structures`, as of `read_chains` and `read_complex`.
            pad_to_multiple_of: round the padded length up to a multiple of this.
            return_tensors: `"pt"` or `"np"`.

        Returns `input_ids` and `attention_mask` (batch, length), `coords` (batch, length, D), or (batch, length, atoms,
        D) with several atoms; of complexes and chains with gaps also `position_ids` and `chain_ids` (batch, length).
        Raises a ValueError that names the sequence, the value and the fix, and a FileNotFoundError that names the file.
        """
        if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
            raise ValueError(f"`pad_to_multiple_of` is {pad_to_multiple_of}; it must be at least 1.")
        if sum(source is not None for source in (sequences, chains, structures)) != 1:
            raise ValueError("Give exactly one of `sequences`, `chains` and `structures`.")
        if structures is not None:
            if self.coordinate_dim != 3:
                raise ValueError(f"`structures` are in 3 dimensions, but `coordinate_dim` is {self.coordinate_dim}.")
            paths = [structures] if isinstance(structures, (str, Path)) else structures
            options: dict[str, Any] = {**self.reads, "min_plddt": min_plddt}
            if as_complex or assembly is not None:
                chains = [read_complex(path, chain_ids, assembly, **options) for path in paths]
            else:
                chains = [chain for path in paths for chain in read_chains(path, chain_ids=chain_ids, **options)]
        elif chain_ids is not None or min_plddt is not None or as_complex or assembly is not None:
            raise ValueError(
                "`chain_ids`, `min_plddt`, `as_complex` and `assembly` go with `structures`; chains are chosen and "
                "joined as they are read."
            )
        if isinstance(chains, str) or not (sequences is None or isinstance(sequences, (str, Sequence))):
            raise ValueError("`chains` are Chain objects or rows; `sequences` a string or a list of strings.")
        if chains is not None:
            if coords is not None:
                raise ValueError("`coords` go with `sequences`; chains have their own.")
            chains = [chains] if isinstance(chains, (Chain, Mapping)) else chains
            rows = [self._chain(chain) for chain in chains]
        else:
            if isinstance(sequences, str):
                sequences, coords = [sequences], None if coords is None else [coords]
            assert sequences is not None
            coords = [None] * len(sequences) if coords is None else coords
            if len(sequences) and len(coords) != len(sequences):
                what = f"`coords` has {len(coords)} entries for {len(sequences)} sequences"
                raise ValueError(f"{what}; give one for each.")
            pairs = zip(sequences, coords, strict=True) if len(sequences) else ()
            rows = [self._row(f"sequence {index}", *pair) for index, pair in enumerate(pairs)]
        if not rows:
            raise ValueError("There is nothing to process: the list of sequences is empty.")
        batch = pad_batch(rows, self.tokenizer.pad_token_id, pad_to_multiple_of or 1)
        return BatchFeature(batch, tensor_type=return_tensors)

    def encode_protein(self, protein: Chain | Mapping[str, Any], without_coords: bool = False) -> dict[str, np.ndarray]:
        """What a model reads of one protein.

        Args:
            protein: what `chains` of a call may be, or a dictionary with `sequence`, in which `<mask>` stands for a
                residue, and perhaps `coords`, as the processor takes them, `id`, `positions` and `chain_lengths`.
            without_coords: they are all NaN.

        Returns:
            `input_ids` (tokens,), `coords` (tokens, D) or (tokens, atoms, D), Å, and of a complex or a chain with gaps
            `position_ids` and `chain_ids` (tokens,); `<cls>` and `<eos>` are tokens.

        Raises:
            ValueError: as when called; the message names the protein's id.
        """
        if isinstance(protein, Mapping) and protein.get("atoms") is None:
            sequence, name = protein["sequence"], protein.get("id")
            text = sequence if isinstance(sequence, str) else " ".join(sequence)
            row = self._row(f"sequence {text[:40] if name is None else name}", text, protein.get("coords"))
            layout = chain_layout({**protein, "sequence": row["input_ids"][1:-1]})
            row |= {} if layout is None else layout_tokens(layout)
        else:
            row = self._chain(protein)
        if without_coords:
            row["coords"] = np.full_like(row["coords"], np.nan)
        return row

    def _chain(self, chain: Chain | Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The row of a chain, or of a row of a data set."""
        layout = chain_layout(chain)
        sequence, coords = chain_arrays(chain, self.coordinate_atoms, self.coordinate_dim, self.optional_atoms)
        name = chain.get("id", "?") if isinstance(chain, Mapping) else chain.id
        # The tokenizer splits at spaces; between letters it needs none.
        row = self._row(f"chain {name}", sequence if isinstance(sequence, str) else " ".join(sequence), coords)
        return row if layout is None else row | layout_tokens(layout)

    def _row(self, name: str, sequence: str, coords: Any) -> dict[str, np.ndarray]:
        ids = self._tokens(name, sequence)
        return {"input_ids": ids, "coords": self._coords(name, len(ids), coords)}

    def _tokens(self, name: str, sequence: str) -> np.ndarray:
        subject = name[0].upper() + name[1:]
        if not isinstance(sequence, str):
            raise ValueError(f"{subject} is {type(sequence).__name__}; give a string of one-letter codes.")
        encoding = self.tokenizer(sequence, return_offsets_mapping=True)
        ids = np.asarray(encoding["input_ids"])
        if len(ids) <= SPECIAL_TOKENS:
            raise ValueError(f"{subject} is empty; a chain needs at least one residue.")
        # Within a chain the one special token is <mask>; <unk> also stands for a letter that is not in the vocabulary.
        special = set(self.tokenizer.all_special_ids) - {self.tokenizer.mask_token_id}
        unknown = np.flatnonzero(np.isin(ids[1:-1], list(special))) + 1
        if len(unknown):
            start, end = encoding["offset_mapping"][unknown[0]]
            letter = sequence[start:end]
            fix = " and capitals for residues." if letter.isalpha() and letter.islower() else "."
            raise ValueError(
                f"{subject} has {letter!r} at position {unknown[0]}, which is not in the alphabet "
                f"({AMINO_ACIDS}, X, B, U, Z, O); write X for an unknown residue{fix}"
            )
        return ids

    def _coords(self, name: str, length: int, coords: Any) -> np.ndarray:
        """Coordinates of one row with NaN for the two special tokens: (length, D) or (length, atoms, D)."""
        atoms, dim = len(self.coordinate_atoms), self.coordinate_dim
        padded = np.full((length, dim) if atoms == 1 else (length, atoms, dim), np.nan, dtype=np.float32)
        if coords is None:
            return padded
        if hasattr(coords, "detach"):  # a torch tensor, of any dtype, on any device
            coords = coords.detach().float().cpu().numpy()
        try:
            coords = np.asarray(coords, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`coords` of {name} are no array of numbers ({error}).") from error
        residues = length - SPECIAL_TOKENS
        accepted: list[tuple[int, ...]] = [(residues, dim)] if atoms == 1 else []
        accepted += [(residues, atoms, dim), (residues * atoms * dim,)]  # flat, as in a row of a data set
        if coords.shape not in accepted:
            raise ValueError(
                f"`coords` of {name} has shape {coords.shape}; its {residues} residues with the atoms "
                f"{', '.join(self.coordinate_atoms)} in {dim} dimensions need {accepted[0]}. Special tokens are "
                "left out, residues without coordinates are NaN."
            )
        if np.isinf(coords).any():
            residue = np.flatnonzero(np.isinf(coords).reshape(residues, -1).any(axis=1))[0] + 1
            raise ValueError(
                f"`coords` of {name} is infinite at residue {residue}; use NaN for coordinates that were not observed."
            )
        padded[1:-1] = coords.reshape(padded[1:-1].shape)
        return padded


__all__ = ["CoordformerProcessor", "build_tokenizer"]
