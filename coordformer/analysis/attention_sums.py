"""Attention of heads, summed over sets of pairs of residues as soon as a layer has made its map.

Everything reported of a head is made of such sums, so that a chain is a sparse matrix (sums, pairs), by which the
attention map of each layer is multiplied. No map outlives its layer, and the sums do not grow with the data.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array  # type: ignore[import-untyped]
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..inference.masked import chain_generator
from ..model.chain import AMINO_ACIDS, chain_arrays
from ..model.predict import Row, collate_rows, model_processor
from ..model.proteins import Record, cluster_of, id_of, residues_of
from ..model.windows import SPECIAL_TOKENS, cut_window, longest_window, middle_window
from .sse import annotate_sse

CONDITIONS = ("given", "not given", "shuffled")  # of the model's coordinates; distances are always the true ones
DISTANCE_EDGES = np.linspace(0.0, 20.0, 41)  # Å
SEPARATIONS = np.arange(-10, 11)
NEAR = 8.0  # Å
LONG_RANGE = 6  # residues apart, as contacts are counted: where position alone says little
MIN_PAIRS = 100  # a mean over fewer pairs is not reported
MOTIFS = ("helix_3", "helix_4", "strand_partners")
PARTNERS = 6.0  # Å, between the C-alphas of strand residues side by side: 4.5 and 5.5 antiparallel, 4.8 parallel
SAMPLES = 200  # of the bootstrap over clusters or chains
WEIGHT_EDGES = np.logspace(-8, 0, 161)  # of the histograms that quantiles of attention are read from

# The rows of a chain's matrix; those up to `distance` are resampled for intervals.
_SIZES = {
    **dict.fromkeys(("self", "unobserved", "others", "near", "others_long_range", "near_long_range"), 1),
    **{name: 1 for motif in MOTIFS for name in (motif, f"{motif}_outside")},
    "distance": len(DISTANCE_EDGES) - 1,
    "separation": len(SEPARATIONS),
    "residues": len(AMINO_ACIDS) ** 2,
}
_ENDS = np.cumsum([*_SIZES.values()])
ROWS = {name: slice(end - size, end) for (name, size), end in zip(_SIZES.items(), _ENDS, strict=True)}
_RESAMPLED = ROWS["distance"].stop


def motif_pairs(structure: str, distances: np.ndarray) -> dict[str, np.ndarray]:
    """Which pairs of residues make up the motifs.

    Args:
        structure: a letter for each residue; H are helices, E strands.
        distances: (residues, residues), Å, NaN where not observed.

    Returns:
        By name (residues, residues), symmetric, only observed pairs. `helix_3` and `helix_4`: three and four residues
        apart in one helix. `strand_partners`: neighbors in a ladder, which are two strand residues at least 3 apart
        whose distance is below 6 Å and not above that from either to the sequence neighbors of the other. That finds
        most of the bridges that DSSP takes from hydrogen bonds, and hardly any other.
    """
    letters, place = np.array(list(structure)), np.arange(len(structure))
    separation = np.abs(place[:, None] - place[None])
    observed = np.isfinite(distances)
    helix, strand = letters == "H", letters == "E"
    # Residues of one helix have the same number of other residues before them.
    before = np.cumsum(~helix)
    one_helix = helix[:, None] & helix[None] & (before[:, None] == before[None]) & observed
    padded = np.pad(np.where(observed, distances, np.inf), 1, constant_values=np.inf)
    beside = np.min([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]], axis=0)
    with np.errstate(invalid="ignore"):
        side_by_side = (distances < PARTNERS) & (distances <= beside)
    return {
        "helix_3": one_helix & (separation == 3),
        "helix_4": one_helix & (separation == 4),
        "strand_partners": strand[:, None] & strand[None] & (separation >= 3) & side_by_side,
    }


def _like_pairs(motif: np.ndarray, observed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A motif without the pairs that have no like, and weights of the pairs outside that have its separations.

    At each separation the weights sum to the number of the motif's pairs, (residues, residues) both.
    """
    place = np.arange(len(motif))
    separation: np.ndarray = np.abs(place[:, None] - place[None])
    outside = observed & ~motif
    inside_count = np.bincount(separation[motif], minlength=len(motif))
    outside_count = np.bincount(separation[outside], minlength=len(motif))
    share = np.divide(inside_count, outside_count, out=np.zeros(len(motif)), where=outside_count > 0)
    return motif & np.take(outside_count > 0, separation), np.where(outside, share[separation], 0.0)


def pair_sums(sequence: str, coords: np.ndarray, structure: str) -> tuple[csr_array, np.ndarray]:
    """The matrix that turns an attention map of a chain into sums, and the distances.

    Args:
        sequence: one-letter codes.
        coords: C-alpha positions (residues, 3), Å, NaN where not observed.
        structure: a letter for each residue, as `motif_pairs` reads it.

    Returns:
        (sums, residues^2), float64, `ROWS` says which sum is where, pairs are (query, key) in C order; and distances
        (residues, residues), Å, NaN on the diagonal and where one of the pair is not observed.
    """
    x = np.asarray(coords, dtype=np.float64)
    distances = np.sqrt(sum((x[:, None, axis] - x[None, :, axis]) ** 2 for axis in range(x.shape[1])))
    np.fill_diagonal(distances, np.nan)
    seen = np.asarray(np.isfinite(x).all(axis=1))
    place = np.arange(len(sequence))
    separation = place[None] - place[:, None]
    letters = np.array([AMINO_ACIDS.find(letter) for letter in sequence])
    observed = np.isfinite(distances)

    rows, pairs, values = [], [], []

    def add(name: str, where: np.ndarray, row: np.ndarray | int = 0, weights: np.ndarray | None = None) -> None:
        chosen = np.flatnonzero(where)
        pairs.append(chosen)
        rows.append(ROWS[name].start + np.broadcast_to(row, where.shape).reshape(-1)[chosen])
        values.append(np.ones(len(chosen)) if weights is None else weights.reshape(-1)[chosen])

    with np.errstate(invalid="ignore"):
        distance_bin = np.digitize(distances, DISTANCE_EDGES) - 1  # NaN goes to the end
        near = distances < NEAR
    add("self", np.diag(seen))
    add("unobserved", seen[:, None] & ~seen)
    long_range = np.abs(separation) >= LONG_RANGE
    add("others", observed)
    add("near", near)
    add("others_long_range", observed & long_range)
    add("near_long_range", near & long_range)
    for name, motif in motif_pairs(structure, distances).items():
        inside, outside = _like_pairs(motif, observed)
        add(name, inside)
        add(f"{name}_outside", outside > 0, weights=outside)
    add("distance", distance_bin < len(DISTANCE_EDGES) - 1, distance_bin)
    add("separation", np.abs(separation) <= SEPARATIONS[-1], separation - SEPARATIONS[0])
    known = (letters[:, None] >= 0) & (letters[None] >= 0) & (separation != 0)
    add("residues", known, len(AMINO_ACIDS) * letters[:, None] + letters[None])
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(pairs)))
    return csr_array(entries, shape=(ROWS["residues"].stop, len(sequence) ** 2)), distances


class AttentionSums:
    """Sums of attention over the chains seen so far: `open` a chain, then `add` the map of each of its layers.

    Attributes:
        sums: (layers, conditions, heads, sums), `ROWS` says which is where.
        pairs: (sums,), the pairs that each is over.
        distance: (distance bins,), the sum of their distances, Å.
        counts: (layers, conditions, heads, distance bins, weight bins), how often which attention.
        uniform: (sums,), those of a head that attends to all tokens alike.
        cropped: chains of which a part was looked at.
        drawn_sums, drawn_pairs: the first two of each sample of the bootstrap, up to `distance`.
    """

    def __init__(self, layers: int, heads: int):
        shape, bins = (layers, len(CONDITIONS), heads), len(DISTANCE_EDGES) - 1
        self.sums = np.zeros((*shape, ROWS["residues"].stop))
        self.pairs = np.zeros(ROWS["residues"].stop)
        self.distance = np.zeros(bins)
        self.uniform = np.zeros(ROWS["residues"].stop)
        self.cropped = 0
        self.counts = np.zeros((*shape, bins, len(WEIGHT_EDGES) - 1), dtype=np.int64)
        self.drawn_sums = np.zeros((SAMPLES, *shape, _RESAMPLED))
        self.drawn_pairs = np.zeros((SAMPLES, _RESAMPLED))

    def open(self, matrix: csr_array, distances: np.ndarray, times: np.ndarray) -> None:
        """Begin a chain: what `pair_sums` returns, and how often each sample of the bootstrap has it, (samples,)."""
        self._matrix, self._times = matrix, times
        pairs = np.asarray(matrix.sum(axis=1)).reshape(-1)
        self.pairs += pairs
        self.uniform += pairs / (len(distances) + SPECIAL_TOKENS)
        self.drawn_pairs += times[:, None] * pairs[:_RESAMPLED]
        flat = distances.reshape(-1)
        self._binned = np.flatnonzero(flat < DISTANCE_EDGES[-1])
        self._bin = np.digitize(flat[self._binned], DISTANCE_EDGES) - 1
        self.distance += np.bincount(self._bin, weights=flat[self._binned], minlength=len(self.distance))

    def add(self, layer: int, weights: np.ndarray) -> None:
        """Take in the attention of one layer in the open chain: (conditions, heads, residues, residues)."""
        logs = len(WEIGHT_EDGES) - 1
        for condition, maps in enumerate(weights):
            flat = maps.reshape(len(maps), -1)
            sums = (self._matrix @ flat.T.astype(np.float64)).T
            self.sums[layer, condition] += sums
            self.drawn_sums[:, layer, condition] += self._times[:, None, None] * sums[:, :_RESAMPLED]
            with np.errstate(divide="ignore"):
                scaled = np.log10(flat[:, self._binned]) - np.log10(WEIGHT_EDGES[0])
            # Less than the lowest edge counts as the lowest.
            weight_bin = (scaled.clip(0) * (logs / np.log10(WEIGHT_EDGES[-1] / WEIGHT_EDGES[0]))).astype(np.int64)
            cell = self._bin * logs + weight_bin.clip(max=logs - 1)
            for counts, cells in zip(self.counts[layer, condition], cell, strict=True):
                counts += np.bincount(cells, minlength=counts.size).reshape(counts.shape)


@torch.no_grad()
def sum_attention(
    model: PreTrainedModel,
    chains: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    structures: Mapping[str, str] | None = None,
    *,
    window: int = 1024,
    seed: int = 0,
    progress: bool = True,
) -> AttentionSums:
    """Run a model on every chain in three conditions and sum its attention.

    `given`: coordinates as they are; `not given`: none; `shuffled`: those of the observed residues permuted among them.
    The true distances are measured with in each. One chain is one batch of three rows without padding.

    Args:
        model: any Coordformer; with a head or without.
        chains: with C-alphas.
        tokenizer: of the model.
        structures: DSSP letters by chain id; of other chains `annotate_sse` finds them.
        window: of longer chains the middle part of this many residues is a chain to the model.
        seed: with the chain's id it decides the permutation and, with its cluster where it has one, the bootstrap.
        progress: show a progress bar.

    Raises:
        ValueError: an argument is out of range, a chain is unusable, or there are too few pairs of observed residues.
    """
    if seed < 0:
        raise ValueError(f"`seed` is {seed}; it must be at least 0.")
    config = model.config
    window = longest_window(config, window)
    processor = model_processor(model, tokenizer)
    if config.encoder_type != "esm":
        raise ValueError(f"The model has the layers of {config.encoder_type}, without attention; give one with ESM's.")
    layers: Any = model.base_model.layers
    total = AttentionSums(len(layers), config.num_attention_heads)

    def reduce_map(layer: int, module, inputs, outputs) -> None:
        # <cls> and <eos> are no residues.
        total.add(layer, outputs[1][..., 1:-1, 1:-1].float().cpu().numpy())

    implementation = config._attn_implementation
    model.eval().set_attn_implementation("eager")  # the one that makes a map
    hooks = [layer.attention.self.register_forward_hook(partial(reduce_map, n)) for n, layer in enumerate(layers)]
    try:
        for chain in tqdm(chains, unit="chain", disable=not progress):
            name, residues = id_of(chain), residues_of(chain)
            sequence, alpha = chain_arrays(chain, ("CA",))
            structure = (structures or {}).get(name) or annotate_sse(alpha[:, 0])
            if len(structure) != residues:
                raise ValueError(
                    f"Chain {name}: {len(structure)} letters in `ss8` for {residues} residues; correct the column or "
                    "remove it."
                )
            total.cropped += residues > window
            start = middle_window(residues, window)
            inside = slice(start, start + window)
            arrays = processor.encode_protein(chain)
            inputs = cut_window(arrays, start, min(window, residues), config)
            coords = inputs["coords"]
            observed = np.flatnonzero(np.isfinite(coords).all(axis=-1).reshape(len(coords), -1).any(axis=1))
            rng = chain_generator(name, seed)
            shuffled = coords.copy()
            shuffled[observed] = coords[rng.permutation(observed)]
            cluster = cluster_of(chain)
            drawing = rng if cluster is None else chain_generator(f"cluster {cluster}", seed)
            sums = pair_sums(sequence[inside], alpha[inside, 0], structure[inside])
            total.open(*sums, drawing.poisson(1.0, SAMPLES))
            given = (coords, np.full_like(coords, np.nan), shuffled)
            rows = [Row(0, start, inputs | {"coords": each}) for each in given]
            model.base_model(**collate_rows(rows, config.pad_token_id, model.device))
    finally:
        for each in hooks:
            each.remove()
        model.set_attn_implementation(implementation)
    if total.pairs[ROWS["distance"]].max() < MIN_PAIRS:
        raise ValueError(
            f"There are {total.pairs[ROWS['others']][0]:.0f} pairs of residues with coordinates in {len(chains)} "
            f"chains, and {MIN_PAIRS} at no distance; give more chains, with structures."
        )
    return total
