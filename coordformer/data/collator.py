"""From rows of a data set to masked, augmented batches, padded or packed.

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

from ..model.chain import AMINO_ACIDS, CHAIN_GAP, chain_arrays, chain_layout
from ..model.modeling_coordformer import IGNORED_LABEL
from ..model.processing_coordformer import layout_tokens
from ..model.windows import SPECIAL_TOKENS

PROTOCOLS = ("paper", "masked15")

# Where the random numbers of a row lie in its stream, one for each residue or coordinate from there on.
_STREAMS = np.arange(12, dtype=np.uint64) << np.uint64(40)
CHOOSE, FATE, CROP, DROP, ROTATE, NOISE, SPLIT, SHARE, WIDTH, ATOMS, LOSE, EXACT = _STREAMS


def splitmix(counters: np.ndarray) -> np.ndarray:
    """64 random bits for each counter, a multiple of 0x9E3779B97F4A7C15 away from a key (Steele et al. 2014, SplitMix).

    A generator object for each row costs ten times as much as everything else that is done to it.
    """
    x = (counters ^ (counters >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(keys: np.ndarray, places: np.ndarray | np.uint64) -> np.ndarray:
    """Numbers uniform in [0, 1): element by element the number at a place of the stream of a key, both uint64."""
    bits = splitmix(keys + (np.atleast_1d(places) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
    return (bits >> np.uint64(11)) * 2.0**-53


def normal(keys: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Standard normal numbers (Box-Muller), each from the two uniform ones at 2 place and 2 place + 1."""
    places = places * np.uint64(2)
    radius = np.sqrt(-2 * np.log1p(-uniform(keys, places)))
    return radius * np.cos(2 * np.pi * uniform(keys, places + np.uint64(1)))


def _draw(ends: tuple[float, float], keys: np.ndarray, place: np.uint64) -> np.ndarray:
    """A number between both ends for each key."""
    low, high = ends
    return low + (high - low) * uniform(keys, place)


def rotations_from_normals(normals: torch.Tensor) -> torch.Tensor:
    """Turn standard normal matrices into rotations that are uniform on SO(n).

    From (..., n, n), independent standard normal numbers, to (..., n, n), orthogonal with determinant 1.

    Reference: Mezzadri, "How to generate random matrices from the classical compact groups", 2007: the QR
    decomposition is made unique by a positive diagonal of R, which makes Q uniform on O(n); a column of those with
    determinant -1 is then negated.

    Examples:
        >>> rotation = rotations_from_normals(torch.randn(3, 3))
        >>> torch.allclose(rotation @ rotation.T, torch.eye(3), atol=1e-5)
        True
    """
    q, r = torch.linalg.qr(normals)
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    flip = torch.linalg.det(q).sign().unsqueeze(-1)
    return torch.cat((q[..., :1] * flip.unsqueeze(-1), q[..., 1:]), dim=-1)


def value_range(name: str, value: float | Sequence[float]) -> tuple[float, float]:
    """The lowest and the highest of the values that chains draw: `value` is one for all, or these two."""
    values = [float(each) for each in np.atleast_1d(value)]
    if len(values) > 2 or values != sorted(values):
        raise ValueError(f"`{name}` is {value}; give one value, or the lowest and the highest of a range.")
    return values[0], values[-1]


@dataclass
class CoordformerDataCollator:
    """Masked-LM batches of chains with coordinates.

    Takes rows as `coordformer.data.rows` makes them (`id`, `sequence`, `coords`, `atoms`), or lists of such rows, as
    `ChainBatches` yields them. A sequence is a string of letters or, where tokens are longer (chemical elements), a
    list of tokens. A row with an `epoch` draws its random numbers from (seed, epoch, id), one without from torch's
    global generator, as the collators of Transformers do. A row with `augment` False is masked and cropped, but has no
    rotation, no noise, and all of its coordinates. Rows with a `packed_length` become one row of that many tokens, or
    if it is 0 of as many as they have.

    Args:
        tokenizer: maps letters or tokens to ids.
        atoms, dim: the model's `config.coordinate_atoms` and `config.coordinate_dim`.
        optional_atoms: those of `atoms` that rows may lack, the model's `config.optional_atoms`.
        masking: `"paper"` (section 2: of the chosen residues 80 % become `<mask>`, 10 % a random residue, 10 % stay)
            or `"masked15"` (all chosen residues become `<mask>`; X and residues without coordinates are not chosen).
        mlm_probability: with which a residue is chosen; at least one is, unless this is 0: then nothing is masked. Of
            two values each chain draws its own between them.
        rotate: give a random rotation for each chain, by which the model rotates it about its center.
        noise: standard deviation in Å of Gaussian noise on each coordinate. Of two values each chain draws its own
            between them.
        exact_coords: probability with which a chain has no noise all the same.
        drop_coords: probability with which a chain is without any coordinates.
        drop_atoms: probability with which a chain lacks atoms of the backbone: half of these chains have C-alphas
            alone, a quarter have them alone in a share of their residues that each chain draws, a quarter lack O.
        give_noise_level: give the standard deviation of each chain's noise, `noise_level`.
        split_chains: probability with which a chain is cut in two at random, which become two chains of a complex: so
            data of single chains teaches where chains end.
        max_length: longer chains are cropped to this many contiguous residues, at random.
        seed: of all random numbers.
        alphabet: letters or tokens that may be masked under `"masked15"` and that random replacements are drawn from.

    Returns, when called: `input_ids`, `labels` (batch, length) and `coords` (batch, length, D), or (batch, length,
    atoms, D) with several atoms, -100 and NaN where there is nothing; `rotations` (batch, chains of a row, D, D); of
    padded rows `attention_mask` (batch, length), of a packed one `sequence_id` (1, length) and the segments' bounds, as
    `CoordformerModel` takes them; and where a row is a complex, has gaps or may be split, `position_ids` and
    `chain_ids`, of the shape of `input_ids`, as `noise_level` is.

    Examples:
        >>> from coordformer import build_tokenizer, read_chains
        >>> collate = CoordformerDataCollator(build_tokenizer())
        >>> batch = collate(read_chains("tests/data/structures/1orc.pdb.gz"))
        >>> batch["coords"].shape, batch["rotations"].shape
        (torch.Size([1, 73, 3]), torch.Size([1, 1, 3, 3]))
    """

    tokenizer: PreTrainedTokenizerBase
    atoms: Sequence[str] = ("CA",)
    dim: int = 3
    optional_atoms: Sequence[str] = ()
    masking: str = "paper"
    mlm_probability: float | Sequence[float] = 0.15
    rotate: bool = True
    noise: float | Sequence[float] = 0.0
    exact_coords: float = 0.0
    drop_coords: float = 0.0
    drop_atoms: float = 0.0
    give_noise_level: bool = False
    split_chains: float = 0.0
    max_length: int | None = None
    seed: int = 0
    alphabet: Sequence[str] = AMINO_ACIDS
    _probabilities: tuple[float, float] = field(init=False, repr=False)
    _deviations: tuple[float, float] = field(init=False, repr=False)
    _special: dict[str, int] = field(init=False, repr=False)
    _vocabulary: dict[str, int] = field(init=False, repr=False)
    _letter_ids: np.ndarray = field(init=False, repr=False)
    _alphabet_ids: np.ndarray = field(init=False, repr=False)

    def __post_init__(self):
        self.atoms = (self.atoms,) if isinstance(self.atoms, str) else tuple(self.atoms)
        if self.masking not in PROTOCOLS:
            raise ValueError(f"`masking` is {self.masking!r}; choose 'paper' or 'masked15'.")
        for name in ("mlm_probability", "exact_coords", "drop_coords", "drop_atoms", "split_chains"):
            if not all(0 <= value <= 1 for value in np.atleast_1d(getattr(self, name))):
                raise ValueError(f"`{name}` is {getattr(self, name)}; it is a probability between 0 and 1.")
        if not all(0 <= value < np.inf for value in np.atleast_1d(self.noise)):
            raise ValueError(f"`noise` is {self.noise} Å; it is a standard deviation and cannot be negative.")
        if self.drop_atoms and not {"CA", "O"} < set(self.atoms):
            what = f"`drop_atoms` is {self.drop_atoms}, but the model reads {', '.join(self.atoms)} and no backbone"
            raise ValueError(f"{what}; leave it out, or give the model N, CA, C and O as `atoms` (`coordinate_atoms`).")
        self._probabilities = value_range("mlm_probability", self.mlm_probability)
        self._deviations = value_range("noise", self.noise)
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"`max_length` is {self.max_length}; keep at least one residue.")
        if self.seed < 0:
            raise ValueError(f"`seed` is {self.seed}; it cannot be negative.")
        specials = ("cls", "eos", "pad", "mask", "unk")
        self._special = {name: getattr(self.tokenizer, f"{name}_token_id") for name in specials}
        self._vocabulary = self.tokenizer.get_vocab()
        # A table from byte to token id is much faster than a tokenizer for letters.
        self._letter_ids = np.full(256, self._special["unk"], dtype=np.int64)
        for token, token_id in self._vocabulary.items():
            if len(token) == 1 and token.isascii():
                self._letter_ids[ord(token)] = token_id
        self._alphabet_ids = self._token_ids([self.alphabet])
        if not self.alphabet or self._special["unk"] in self._alphabet_ids:
            raise ValueError(f"`alphabet` is {self.alphabet!r}; give letters or tokens that the tokenizer knows.")

    def __call__(self, features: Sequence[Any]) -> dict[str, torch.Tensor]:
        rows = [row for feature in features for row in (feature if isinstance(feature, list) else [feature])]
        rows = [row if isinstance(row, Mapping) else vars(row) for row in rows]  # a Chain has what a row has
        if not rows:
            raise ValueError("There is nothing to collate: the batch has no rows.")
        keys = self._keys(rows)
        sequences, arrays = [], []
        layouts: list[tuple[np.ndarray, ...] | None] = []
        for row, crop in zip(rows, uniform(keys, CROP), strict=True):
            sequence, xyz = chain_arrays(row, self.atoms, self.dim, self.optional_atoms)
            width = len(sequence) if self.max_length is None else min(self.max_length, len(sequence))
            start = int(crop * (len(sequence) - width + 1))
            sequences.append(sequence[start : start + width])
            arrays.append(xyz[start : start + width])
            places = chain_layout(row)
            layouts.append(places and tuple(values[start : start + width] for values in places))

        # All residues of the batch, one after another, with the row of each and its place in it.
        lengths = np.array([len(sequence) for sequence in sequences])
        starts = np.cumsum(lengths) - lengths
        row_of = np.repeat(np.arange(len(rows)), lengths)
        place = np.arange(len(row_of)) - starts[row_of]
        letters = self._token_ids(sequences)
        if (unknown := np.flatnonzero(letters == self._special["unk"])).size:
            row, letter = row_of[unknown[0]], place[unknown[0]]
            raise ValueError(
                f"Chain {rows[row].get('id', '?')} has the letter {sequences[row][letter]!r}, which is not in the "
                "tokenizer's alphabet; write X for an unknown residue, or take a tokenizer that knows it."
            )
        coords = np.concatenate(arrays)
        if np.isinf(coords).any():
            row = row_of[np.flatnonzero(np.isinf(coords).any(axis=(1, 2)))[0]]
            raise ValueError(f"Chain {rows[row].get('id', '?')} has infinite coordinates; use NaN where not observed.")
        augment = np.array([row.get("augment", True) for row in rows])

        streams, residue = keys[row_of], place.astype(np.uint64)
        shares = _draw(self._probabilities, keys, SHARE)
        chosen = self._choose(uniform(streams, CHOOSE + residue), shares, letters, coords, starts)
        tokens = letters.copy()
        tokens[chosen] = self._replacements(letters[chosen], uniform(streams[chosen], FATE + residue[chosen]))
        noisy = augment & (uniform(keys, EXACT) >= self.exact_coords)
        deviations = _draw(self._deviations, keys, WIDTH) * noisy
        if any(self._deviations):
            numbers = np.arange(coords[0].size, dtype=np.uint64)
            places = NOISE + residue[:, None] * np.uint64(len(numbers)) + numbers
            noise = normal(streams[:, None], places).reshape(coords.shape)
            coords = coords + (deviations[row_of, None, None] * noise).astype(np.float32)
        if self.drop_atoms:
            coords[self._lost_atoms(keys, augment, row_of, streams, residue)] = np.nan
        if self.drop_coords:
            coords[(augment & (uniform(keys, DROP) < self.drop_coords))[row_of]] = np.nan

        layout, shape, first = self._lay_out(lengths + SPECIAL_TOKENS, rows[0].get("packed_length"))
        batch = {
            "input_ids": np.full(shape, self._special["pad"]),
            "labels": np.full(shape, IGNORED_LABEL),
            "coords": np.full((*shape, *coords.shape[1:]), np.nan, dtype=np.float32),
        }
        flat = {name: array.reshape(-1, *array.shape[2:]) for name, array in batch.items()}
        inside = first[row_of] + 1 + place
        flat["input_ids"][first] = self._special["cls"]
        flat["input_ids"][first + lengths + 1] = self._special["eos"]
        flat["input_ids"][inside] = tokens
        flat["labels"][inside[chosen]] = letters[chosen]
        flat["coords"][inside] = coords
        if self.give_noise_level:
            batch["noise_level"] = np.zeros(shape, dtype=np.float32)
            batch["noise_level"].reshape(-1)[inside] = deviations[row_of]
        if len(self.atoms) == 1:
            batch["coords"] = batch["coords"].squeeze(2)
        if self.split_chains or any(layouts):
            batch |= self._layouts(layouts, lengths, keys, augment, shape, first)
        if self.rotate:
            rotations = self._rotations(keys, augment)
            if "sequence_id" in layout and layout["sequence_id"][0, -1] == len(rows):  # the segment of the padding
                rotations = np.concatenate((rotations, np.eye(self.dim, dtype=np.float32)[None]))
            batch["rotations"] = rotations.reshape(shape[0], -1, self.dim, self.dim)
        batch |= layout
        return {name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in batch.items()}

    def _token_ids(self, sequences: Sequence[Any]) -> np.ndarray:
        """Ids of the letters or tokens of all sequences, one after another."""
        if all(isinstance(sequence, str) for sequence in sequences):
            text = "".join(sequences).encode("latin-1", errors="replace")
            return self._letter_ids[np.frombuffer(text, dtype=np.uint8)]
        unknown = self._special["unk"]
        return np.array([self._vocabulary.get(token, unknown) for sequence in sequences for token in sequence])

    def _layouts(self, layouts, lengths, keys, augment, shape, first) -> dict[str, np.ndarray]:
        """`position_ids` and `chain_ids` of the batch, in which some chains are cut in two."""
        batch = {name: np.zeros(shape, dtype=np.int64) for name in ("position_ids", "chain_ids")}
        draws = uniform(keys[:, None], SPLIT + np.arange(2, dtype=np.uint64))
        for layout, length, (fate, where), turned, start in zip(layouts, lengths, draws, augment, first, strict=True):
            positions, chain_index = layout or (np.arange(length), np.zeros(length, dtype=np.int64))
            if turned and fate < self.split_chains and length > 1 and not np.any(chain_index):
                cut = 1 + int(where * (length - 1))
                chain_index = (np.arange(length) >= cut).astype(np.int64)
                positions = positions + CHAIN_GAP * chain_index
            for name, tokens in layout_tokens((positions, chain_index)).items():
                batch[name].reshape(-1)[start : start + len(tokens)] = tokens
        return batch

    def _lost_atoms(self, keys, augment, row_of, streams, residue) -> np.ndarray:
        """Which atoms of all residues are missing by `drop_atoms`, (residues, atoms)."""
        fate, kind, share = uniform(keys[:, None], ATOMS + np.arange(3, dtype=np.uint64)).T
        loses = augment & (fate < self.drop_atoms)
        share = np.where(kind < 0.5, 1.0, share)
        names = np.array(self.atoms)
        alone = (loses & (kind < 0.75))[row_of] & (uniform(streams, LOSE + residue) < share[row_of])
        without = (loses & (kind >= 0.75))[row_of]
        return (alone[:, None] & (names != "CA")) | (without[:, None] & (names == "O"))

    def _lay_out(self, lengths: np.ndarray, packed_length: int | None) -> tuple[dict[str, Any], tuple, np.ndarray]:
        """What describes the batch to the model, its shape, and where each chain of `lengths` tokens begins."""
        if packed_length is None:
            width = int(lengths.max())
            mask = (np.arange(width) < lengths[:, None]).astype(np.int64)
            return {"attention_mask": mask}, mask.shape, np.arange(len(lengths)) * width
        ends = lengths.cumsum()
        if packed_length and ends[-1] > packed_length:
            raise ValueError(f"{len(lengths)} chains with {ends[-1]} tokens do not fit in a row of {packed_length}.")
        # Padding at the end is one more segment, whose outputs nobody uses.
        sizes = lengths if packed_length in (0, ends[-1]) else np.append(lengths, packed_length - ends[-1])
        bounds, longest = torch.from_numpy(np.append(0, sizes.cumsum()).astype(np.int32)), int(sizes.max())
        sequence_id = np.repeat(np.arange(len(sizes)), sizes)[None]
        layout = {"sequence_id": sequence_id, "cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
        return layout | {"max_length_q": longest, "max_length_k": longest}, sequence_id.shape, ends - lengths

    def _keys(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The key of each row's random numbers, (rows,) uint64."""
        if all("epoch" in row and "id" in row for row in rows):
            pairs = [(row["epoch"], zlib.crc32(str(row["id"]).encode())) for row in rows]
        else:
            entropy = int(torch.randint(2**31, (1,)))
            pairs = [(entropy, index) for index in range(len(rows))]
        epochs, names = np.array(pairs, dtype=np.uint64).T
        seed = splitmix(np.array([self.seed], dtype=np.uint64))
        return splitmix(splitmix(seed + epochs) + names)

    def _choose(
        self, scores: np.ndarray, shares: np.ndarray, letters: np.ndarray, coords: np.ndarray, starts: np.ndarray
    ) -> np.ndarray:
        """Which of all residues are to be predicted: those that score low, and the lowest of a chain without any."""
        if self.masking == "masked15":
            observed = ~np.isnan(coords).any(axis=-1)
            needed = np.array([atom not in self.optional_atoms for atom in self.atoms])
            placed = observed[:, needed].all(axis=-1) if self.optional_atoms else observed.any(axis=-1)
            eligible = np.isin(letters, self._alphabet_ids) & placed
            scores = np.where(eligible, scores, 1.0)
        if not any(self._probabilities):
            return np.empty(0, dtype=np.int64)
        chosen = scores < np.repeat(shares, np.diff(starts, append=len(scores)))
        for start, share, score in zip(starts, shares, np.minimum.reduceat(scores, starts), strict=True):
            if share <= score < 1.0:
                chosen[start + int(np.argmax(scores[start:] == score))] = True
        return np.flatnonzero(chosen)

    def _replacements(self, letters: np.ndarray, fate: np.ndarray) -> np.ndarray:
        """What stands in the input where `letters` are to be predicted."""
        if self.masking == "masked15":
            return np.full_like(letters, self._special["mask"])
        # From 0.8 to 0.9 the number also decides which residue of the alphabet.
        pick = ((fate - 0.8).clip(0, 0.0999999) * 10 * len(self._alphabet_ids)).astype(np.int64)
        replaced = np.where(fate < 0.9, self._alphabet_ids[pick], letters)
        return np.where(fate < 0.8, self._special["mask"], replaced)

    def _rotations(self, keys: np.ndarray, augment: np.ndarray) -> np.ndarray:
        """A rotation for each row, the identity where it is not augmented: (rows, D, D), float32."""
        places = ROTATE + np.arange(self.dim * self.dim, dtype=np.uint64)
        normals = normal(keys[:, None], places).reshape(-1, self.dim, self.dim)
        normals[~augment] = np.eye(self.dim)
        return rotations_from_normals(torch.from_numpy(normals)).to(torch.float32).numpy()
