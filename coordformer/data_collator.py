"""From rows of a data set to masked, augmented, padded batches.

Every random number (crop, mask, noise, rotation, dropped coordinates) is a function of (seed, epoch, row id), so that
workers, processes and resumed runs agree on it.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from .geometry import rotations_from_normals
from .processing_coordformer import chain_arrays, pad_batch
from .structure import AMINO_ACIDS

IGNORED_LABEL = -100
SPECIAL_TOKENS = 2  # <cls> and <eos>


@dataclass
class CoordformerDataCollator:
    """Masked-LM batches of chains with coordinates.

    Takes rows as `coordformer.dataset` makes them (`id`, `sequence`, `coords`, `atoms`), or lists of such rows, which
    is what `ChainBatches` yields. A row with an `epoch` draws its random numbers from (seed, epoch, id); a row without
    one draws them from torch's global generator, as the collators of Transformers do. A row with `augment` False is
    masked and cropped, but neither turned nor made noisy, and keeps its coordinates.

    Args:
        tokenizer: maps letters to ids.
        atoms: the model's `config.coordinate_atoms`.
        dim: the model's `config.coordinate_dim`.
        masking: `"paper"` (section 2: of the chosen residues 80 % become `<mask>`, 10 % a random residue, 10 % stay)
            or `"masked15"` (all chosen residues become `<mask>`; X and residues without coordinates are not chosen).
        mlm_probability: share of the residues that is chosen; at least one is.
        rotate: turn each chain by a random rotation about its own frame's origin (the model centres it).
        noise: standard deviation in Å of Gaussian noise on each coordinate.
        drop_coords: probability with which all coordinates of a chain are withheld.
        max_length: longer chains are cropped to this many contiguous residues, at random.
        seed: of all random numbers.
        alphabet: the letters that random replacements are drawn from.

    Returns, when called: `input_ids`, `attention_mask`, `labels` (batch, length) and `coords` (batch, length, D), or
    (batch, length, atoms, D) with several atoms; -100 and NaN where there is nothing.
    """

    tokenizer: PreTrainedTokenizerBase
    atoms: Sequence[str] = ("CA",)
    dim: int = 3
    masking: str = "paper"
    mlm_probability: float = 0.15
    rotate: bool = True
    noise: float = 0.0
    drop_coords: float = 0.0
    max_length: int | None = None
    seed: int = 0
    alphabet: str = AMINO_ACIDS
    _letter_ids: np.ndarray = field(init=False, repr=False)
    _alphabet_ids: np.ndarray = field(init=False, repr=False)

    def __post_init__(self):
        if self.masking not in ("paper", "masked15"):
            raise ValueError(f"`masking` is {self.masking!r}; choose 'paper' or 'masked15'.")
        for name in ("mlm_probability", "drop_coords"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it is a probability between 0 and 1.")
        if self.noise < 0:
            raise ValueError(f"`noise` is {self.noise} Å; it is a standard deviation and cannot be negative.")
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"`max_length` is {self.max_length}; keep at least one residue.")
        # A table from byte to token id is a hundred times faster than a tokenizer for letters.
        self._letter_ids = np.full(256, self.tokenizer.unk_token_id, dtype=np.int64)
        for token, token_id in self.tokenizer.get_vocab().items():
            if len(token) == 1 and token.isascii():
                self._letter_ids[ord(token)] = token_id
        self._alphabet_ids = self._letter_ids[np.frombuffer(self.alphabet.encode(), dtype=np.uint8)]

    def __call__(self, features: Sequence[Any]) -> dict[str, torch.Tensor]:
        rows = [row for feature in features for row in (feature if isinstance(feature, list) else [feature])]
        entropy = 0 if all("epoch" in row for row in rows) else int(torch.randint(2**31, (1,)))
        examples = []
        for index, row in enumerate(rows):
            draw = (row["epoch"], zlib.crc32(str(row["id"]).encode())) if "epoch" in row else (entropy, index)
            examples.append(self._example(row, np.random.default_rng([self.seed, *draw])))
        tokens, labels, coords, normals = zip(*examples, strict=True)

        batch = pad_batch(tokens, coords, self.tokenizer.pad_token_id)
        batch["labels"] = np.full_like(batch["input_ids"], IGNORED_LABEL)
        for index, row_labels in enumerate(labels):
            batch["labels"][index, : len(row_labels)] = row_labels
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        if self.rotate:
            rotations = rotations_from_normals(torch.from_numpy(np.stack(normals))).float()
            flat = tensors["coords"].flatten(1, -2)
            tensors["coords"] = torch.bmm(flat, rotations.mT).reshape(tensors["coords"].shape)
        return tensors

    def _example(self, row: Mapping[str, Any], rng: np.random.Generator):
        """Tokens, labels (length,), coordinates (length, ...) and the normal numbers behind the rotation of one row."""
        sequence, coords = chain_arrays(row, self.atoms, self.dim)
        letters = self._letter_ids[np.frombuffer(sequence.encode(), dtype=np.uint8)]
        augment = row.get("augment", True)
        if self.max_length is not None and len(letters) > self.max_length:
            start = rng.integers(len(letters) - self.max_length + 1)
            letters, coords = letters[start : start + self.max_length], coords[start : start + self.max_length]

        length = len(letters) + SPECIAL_TOKENS
        tokens = np.empty(length, dtype=np.int64)
        tokens[0], tokens[-1] = self.tokenizer.cls_token_id, self.tokenizer.eos_token_id
        tokens[1:-1] = letters
        labels = np.full(length, IGNORED_LABEL, dtype=np.int64)
        chosen = 1 + self._choose(sequence_ids=letters, coords=coords, rng=rng)
        labels[chosen] = tokens[chosen]
        if self.masking == "masked15":
            tokens[chosen] = self.tokenizer.mask_token_id
        else:
            fate = rng.random(len(chosen))
            tokens[chosen[fate < 0.8]] = self.tokenizer.mask_token_id
            randomised = chosen[(fate >= 0.8) & (fate < 0.9)]
            tokens[randomised] = rng.choice(self._alphabet_ids, size=len(randomised))

        padded = np.full((length, *coords.shape[1:]), np.nan, dtype=np.float32)
        if not (augment and rng.random() < self.drop_coords):
            padded[1:-1] = coords
        if augment and self.noise:
            padded[1:-1] += rng.normal(scale=self.noise, size=coords.shape)
        normals = rng.standard_normal((self.dim, self.dim)) if augment else np.eye(self.dim)
        return tokens, labels, padded[:, 0] if len(self.atoms) == 1 else padded, normals

    def _choose(self, sequence_ids: np.ndarray, coords: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Indices of the residues to predict: the share `mlm_probability` of those that may be chosen, at least one."""
        scores = rng.random(len(sequence_ids))
        if self.masking == "masked15":
            eligible = np.isin(sequence_ids, self._alphabet_ids) & np.isfinite(coords).all(axis=-1).any(axis=-1)
            scores[~eligible] = 2.0
            available = int(eligible.sum())
        else:
            available = len(sequence_ids)
        count = min(available, max(1, round(self.mlm_probability * available)))
        return np.sort(np.argpartition(scores, count - 1)[:count]) if count else np.empty(0, dtype=np.int64)
