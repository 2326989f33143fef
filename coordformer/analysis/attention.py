"""What each head attends to: distance, sequence separation, kinds of residues, helices and strands (paper, section 3).

Everything reported of a head is made of sums of its attention weights over sets of pairs of residues, so that a chain
is a sparse matrix (sums, pairs), by which the attention map of each layer is multiplied as soon as it is there. No map
outlives its layer, and the sums do not grow with the data.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from scipy.optimize import leastsq  # type: ignore[import-untyped]
from scipy.sparse import csr_array  # type: ignore[import-untyped]
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..data.batching import fetch_rows, read_lengths
from ..data.files import write_text
from ..inference import figures
from ..inference.evaluate import chain_generator, load_checkpoint, open_chains
from ..model.processing_coordformer import SPECIAL_TOKENS, CoordformerProcessor, chain_arrays, longest_window
from ..model.structure import AMINO_ACIDS
from .sse import annotate_sse

CONDITIONS = ("given", "withheld", "shuffled")  # what the model gets as coordinates; distances are always the true ones
DISTANCE_EDGES = np.linspace(0.0, 20.0, 41)  # Å
SEPARATIONS = np.arange(-10, 11)
NEAR = 8.0  # Å
LONG_RANGE = 6  # residues apart, as contacts are counted: what position alone tells little about
MIN_PAIRS = 100  # a mean over fewer pairs is not reported
MOTIFS = ("helix_3", "helix_4", "strand_partners")
PARTNERS = 6.0  # Å, between the C-alphas of strand residues side by side: 4.5 and 5.5 antiparallel, 4.8 parallel
TABLES = ("heads", "distance", "separation", "residue_pairs", "motifs")
DRAWS = 200  # of the bootstrap over chains
WEIGHT_EDGES = np.logspace(-8, 0, 161)  # of the histograms that quantiles of attention are read from

# The rows of a chain's matrix; those up to `distance` are resampled for intervals.
_SIZES = {
    "self": 1,
    "unobserved": 1,
    "others": 1,
    "near": 1,
    "others_long_range": 1,
    "near_long_range": 1,
    **{name: 1 for motif in MOTIFS for name in (motif, f"{motif}_outside")},
    "distance": len(DISTANCE_EDGES) - 1,
    "separation": len(SEPARATIONS),
    "residues": len(AMINO_ACIDS) ** 2,
}
ROWS = {
    name: slice(end - size, end)
    for (name, size), end in zip(_SIZES.items(), np.cumsum([*_SIZES.values()]), strict=True)
}
_RESAMPLED = ROWS["distance"].stop


# ---------------------------------------------------------------------------------------------------------------------
# Motifs
# ---------------------------------------------------------------------------------------------------------------------


def read_structures(path: str | Path) -> dict[str, str]:
    """DSSP letters by chain id from the column `ss8` of a Parquet file, or of the files of a folder.

    Returns:
        Empty where there is no such column: `annotate_sse` then takes its place.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted([*path.glob("data/*.parquet"), *path.glob("*.parquet")])
    structures = {}
    for file in files:
        if file.suffix == ".parquet" and "ss8" in pq.read_schema(file).names:
            table = pq.read_table(file, columns=["id", "ss8"])
            pairs = zip(table["id"].to_pylist(), table["ss8"].to_pylist(), strict=True)
            structures.update({name: letters for name, letters in pairs if letters is not None})
    return structures


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
    letters = np.array(list(structure))
    place = np.arange(len(letters))
    separation = np.abs(place[:, None] - place[None])
    observed = np.isfinite(distances)
    helix = letters == "H"
    # Residues of one helix have the same number of other residues before them.
    before = np.cumsum(~helix)
    one_helix = helix[:, None] & helix[None] & (before[:, None] == before[None]) & observed
    padded = np.pad(np.where(observed, distances, np.inf), 1, constant_values=np.inf)
    beside = np.minimum(
        np.minimum(padded[:-2, 1:-1], padded[2:, 1:-1]), np.minimum(padded[1:-1, :-2], padded[1:-1, 2:])
    )
    strand = letters == "E"
    with np.errstate(invalid="ignore"):
        side_by_side = (distances < PARTNERS) & (distances <= beside)
    return {
        "helix_3": one_helix & (separation == 3),
        "helix_4": one_helix & (separation == 4),
        "strand_partners": strand[:, None] & strand[None] & (separation >= 3) & side_by_side,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Sums over pairs
# ---------------------------------------------------------------------------------------------------------------------


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
    length = len(sequence)
    x = np.asarray(coords, dtype=np.float64)
    distances = np.sqrt(sum((x[:, None, axis] - x[None, :, axis]) ** 2 for axis in range(x.shape[1])))
    np.fill_diagonal(distances, np.nan)
    seen = np.asarray(np.isfinite(x).all(axis=1))
    place = np.arange(length)
    apart = ~np.eye(length, dtype=bool)
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
    known = letters >= 0
    add("residues", known[:, None] & known[None] & apart, len(AMINO_ACIDS) * letters[:, None] + letters[None])
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(pairs)))
    return csr_array(entries, shape=(ROWS["residues"].stop, length * length)), distances


class AttentionSums:
    """Sums of attention over the chains seen so far: `open` a chain, then `add` the map of each of its layers.

    Attributes:
        sums: (layers, conditions, heads, sums), `ROWS` says which is where.
        pairs: (sums,), the pairs that each is over.
        distance: (distance bins,), the sum of their distances, Å.
        counts: (layers, conditions, heads, distance bins, weight bins), how often which attention.
        uniform: (sums,), those of a head that attends to all tokens alike.
        cropped: chains of which a part was looked at.
        drawn_sums, drawn_pairs: the first two of each draw of the bootstrap over chains, up to `distance`.
    """

    def __init__(self, layers: int, heads: int):
        shape, bins = (layers, len(CONDITIONS), heads), len(DISTANCE_EDGES) - 1
        self.sums = np.zeros((*shape, ROWS["residues"].stop))
        self.pairs = np.zeros(ROWS["residues"].stop)
        self.distance = np.zeros(bins)
        self.uniform = np.zeros(ROWS["residues"].stop)
        self.cropped = 0
        self.counts = np.zeros((*shape, bins, len(WEIGHT_EDGES) - 1), dtype=np.int64)
        self.drawn_sums = np.zeros((DRAWS, *shape, _RESAMPLED))
        self.drawn_pairs = np.zeros((DRAWS, _RESAMPLED))

    def open(self, matrix: csr_array, distances: np.ndarray, draws: np.ndarray) -> None:
        """Begin a chain: what `pair_sums` returns, and how often each draw of the bootstrap has it, (draws,)."""
        self._matrix, self._draws = matrix, draws
        pairs = np.asarray(matrix.sum(axis=1)).reshape(-1)
        self.pairs += pairs
        self.uniform += pairs / (len(distances) + SPECIAL_TOKENS)
        self.drawn_pairs += draws[:, None] * pairs[:_RESAMPLED]
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
            self.drawn_sums[:, layer, condition] += self._draws[:, None, None] * sums[:, :_RESAMPLED]
            with np.errstate(divide="ignore"):
                scaled = np.log10(flat[:, self._binned]) - np.log10(WEIGHT_EDGES[0])
            # Less than the lowest edge counts as the lowest.
            weight_bin = (scaled.clip(0) * (logs / np.log10(WEIGHT_EDGES[-1] / WEIGHT_EDGES[0]))).astype(np.int64)
            cell = self._bin * logs + weight_bin.clip(max=logs - 1)
            for head, cells in enumerate(cell):
                counts = self.counts[layer, condition, head]
                counts += np.bincount(cells, minlength=counts.size).reshape(counts.shape)


def crop(residues: int, window: int) -> slice:
    """What is looked at of a chain: all of it, or its middle `window` residues."""
    start = max(residues - window, 0) // 2
    return slice(start, start + window)


@torch.no_grad()
def sum_attention(
    model: PreTrainedModel,
    rows: Any,
    processor: CoordformerProcessor,
    structures: Mapping[str, str] | None = None,
    *,
    window: int = 1024,
    seed: int = 0,
    progress: bool = True,
) -> AttentionSums:
    """Run a model on every chain in three conditions and sum its attention.

    `given`: coordinates as they are; `withheld`: none; `shuffled`: those of the observed residues permuted among them.
    The true distances are measured with in each. One chain is one batch of three rows without padding.

    Args:
        model: any Coordformer; with a head or without.
        rows: chains, see `evaluation.open_chains`.
        processor: of the model.
        structures: DSSP letters by chain id; of other chains `annotate_sse` finds them.
        window: of longer chains the middle part of this many residues is a chain to the model.
        seed: with the chain's id it decides the permutation and the draws of the bootstrap.
        progress: show a progress bar.

    Raises:
        ValueError: an argument is out of range, a chain is unusable, or there are too few pairs of observed residues.
    """
    for name, value, least in (("window", window, 2), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"`{name}` is {value}; it must be at least {least}.")
    config = model.config
    window = longest_window(model, window)
    layers: Any = model.base_model.esm.encoder.layer  # type: ignore[union-attr]
    total = AttentionSums(len(layers), config.num_attention_heads)

    def hook(layer: int):
        def reduce_map(module, inputs, outputs) -> None:
            # <cls> and <eos> are no residues.
            total.add(layer, outputs[1][..., 1:-1, 1:-1].float().cpu().numpy())

        return reduce_map

    implementation = config._attn_implementation
    model.eval().set_attn_implementation("eager")  # the one that makes a map
    hooks = [layer.attention.self.register_forward_hook(hook(n)) for n, layer in enumerate(layers)]
    try:
        for number in tqdm(range(len(rows)), unit="chain", disable=not progress):
            row = fetch_rows(rows, [number])[0]
            sequence, atoms = chain_arrays(row, config.coordinate_atoms, config.coordinate_dim)
            _, alpha = chain_arrays(row, ("CA",))
            alpha = alpha[:, 0]
            name = str(row["id"])
            structure = (structures or {}).get(name) or annotate_sse(alpha)
            if len(structure) != len(sequence):
                raise ValueError(
                    f"Chain {name}: {len(structure)} letters in `ss8` for {len(sequence)} residues; correct the column "
                    "or remove it."
                )
            total.cropped += len(sequence) > window
            part = crop(len(sequence), window)
            sequence, structure, atoms, alpha = sequence[part], structure[part], atoms[part], alpha[part]
            rng = chain_generator(name, seed)
            observed = np.flatnonzero(np.isfinite(atoms).all(axis=-1).any(axis=-1))
            shuffled = atoms.copy()
            shuffled[observed] = atoms[rng.permutation(observed)]
            total.open(*pair_sums(sequence, alpha, structure), rng.poisson(1.0, DRAWS))
            batch = processor([sequence] * 3, coords=[atoms, None, shuffled])
            model.base_model(**{name: values.to(model.device) for name, values in batch.items()})
    finally:
        for each in hooks:
            each.remove()
        model.set_attn_implementation(implementation)
    if total.pairs[ROWS["distance"]].max() < MIN_PAIRS:
        raise ValueError(
            f"There are {total.pairs[ROWS['others']][0]:.0f} pairs of residues with coordinates in {len(rows)} chains, "
            f"and {MIN_PAIRS} at no distance; give more chains, with structures."
        )
    return total


# ---------------------------------------------------------------------------------------------------------------------
# From sums to tables
# ---------------------------------------------------------------------------------------------------------------------


def fit_gaussian(distance: np.ndarray, attention: np.ndarray) -> dict[str, Any]:
    """Fit amplitude * exp(-d^2 / (2 sigma^2)) by least squares, each bin alike (paper, section 3).

    Args:
        distance: (bins,), Å.
        attention: (bins,), means.

    Returns:
        `amplitude`, `sigma` (Å), `r2` and `fit`, which is `"ok"`, or says why there is no such Gaussian: then the
        others are None. An amplitude above 1 is not one of attention; a sigma of 20 Å or more is not seen in 20 Å.
    """
    failed: dict[str, Any] = {"amplitude": None, "sigma": None, "r2": None}
    if len(distance) < 5:
        return failed | {"fit": f"only {len(distance)} bins with {MIN_PAIRS} pairs"}
    scale = attention.max()
    if not (np.isfinite(attention).all() and scale > 0):
        return failed | {"fit": "no finite attention"}

    # In 1 / (2 sigma^2) a flat profile is 0 and a rising one negative, where sigma would run to infinity.
    def residuals(parameters: np.ndarray) -> np.ndarray:
        return parameters[0] * np.exp(np.minimum(-parameters[1] * distance**2, 700)) - attention / scale

    # `least_squares` takes four times as long to come to the same, and the bootstrap fits each head 200 times.
    solution, _, details, _, status = leastsq(residuals, (1.0, 0.02), full_output=True)
    amplitude, decay = float(solution[0] * scale), float(solution[1])
    if status not in (1, 2, 3, 4) or not np.isfinite(solution).all():
        return failed | {"fit": "did not converge"}
    if decay <= 1 / (2 * DISTANCE_EDGES[-1] ** 2):
        return failed | {"fit": f"no decay: sigma is not below {DISTANCE_EDGES[-1]:.0f} Å"}
    sigma = float(np.sqrt(1 / (2 * decay)))
    if not 0 < amplitude <= 1:
        return failed | {"fit": f"amplitude {amplitude:.3g} is not between 0 and 1"}
    r2 = float(1 - (details["fvec"] ** 2).sum() * scale**2 / ((attention - attention.mean()) ** 2).sum())
    if r2 < 0.5:
        return failed | {"fit": f"R^2 {r2:.2f} is below 0.5"}
    return {"amplitude": amplitude, "sigma": sigma, "r2": r2, "fit": "ok"}


def conditions_coincide(total: AttentionSums) -> bool:
    """Whether the model attends alike whatever coordinates it gets: then there are no nulls to compare with."""
    given = total.sums[:, :1]
    return bool((np.abs(total.sums - given) <= 1e-5 * given.max(axis=-1, keepdims=True)).all())


def make_tables(total: AttentionSums) -> dict[str, list[dict[str, Any]]]:
    """The `TABLES`, as lists of rows; without rows where there are too few pairs.

    Layers and heads are numbered from 1. `low` and `high` bound 95 % intervals of a bootstrap over chains, paired where
    conditions are compared. A model whose conditions coincide has rows of `given` alone.
    """
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    names = CONDITIONS[:1] if conditions_coincide(total) else CONDITIONS
    layers, _, heads, _ = total.sums.shape
    for layer, head, condition in np.ndindex(layers, heads, len(names)):
        place = (layer, condition, head)
        key = {"layer": layer + 1, "head": head + 1, "condition": names[condition]}
        tables["heads"].append(key | _where_attention_goes(total, place) | _fit_with_intervals(total, place))
        tables["distance"] += [key | row for row in _distance_profile(total, place)]
        tables["motifs"] += [
            key | _motif(total, place, name) for name in MOTIFS if total.pairs[ROWS[name]] >= MIN_PAIRS
        ]
        separations = [{"separation": int(each)} for each in SEPARATIONS]
        tables["separation"] += [key | row for row in _means(total, place, "separation", separations)]
        if condition == 0:
            kinds = [{"query": query, "key": other} for query in AMINO_ACIDS for other in AMINO_ACIDS]
            del key["condition"]
            tables["residue_pairs"] += [key | row for row in _means(total, place, "residues", kinds)]
    return tables


def _means(total: AttentionSums, place: tuple[int, int, int], name: str, labels: Sequence[dict]) -> list[dict]:
    """A row for each label of a block of sums: pairs and mean attention."""
    return [
        label | {"pairs": int(pairs), "mean": float(value / pairs)}
        for label, value, pairs in zip(labels, total.sums[place][ROWS[name]], total.pairs[ROWS[name]], strict=True)
        if pairs >= MIN_PAIRS
    ]


def _interval(name: str, draws: np.ndarray) -> dict[str, float | None]:
    """The middle 95 % of the draws; none where more than 5 % of them have no value."""
    if np.isnan(draws).mean() > 0.05:
        return {f"{name}_low": None, f"{name}_high": None}
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return {f"{name}_low": float(low), f"{name}_high": float(high)}


def _where_attention_goes(total: AttentionSums, place: tuple[int, int, int]) -> dict[str, Any]:
    """How observed residues spread their attention, and the shares within 8 Å of what goes to other observed ones."""
    layer, condition, head = place
    queries = total.pairs[ROWS["self"].start]
    to = {name: float(total.sums[place][ROWS[name].start] / queries) for name in ("self", "unobserved", "others")}
    row: dict[str, Any] = {"to_special": 1 - sum(to.values())} | {f"to_{name}": value for name, value in to.items()}
    for near, others in (("near", "others"), ("near_long_range", "others_long_range")):
        share, drawn, uniform = (
            _ratio(sums[..., ROWS[near].start], sums[..., ROWS[others].start])
            for sums in (total.sums[layer, :, head], total.drawn_sums[:, layer, :, head], total.uniform)
        )
        row |= {near: float(share[condition])} | _interval(near, drawn[:, condition])
        row[f"{near}_uniform"] = float(uniform)
        gain = f"{near}_gain"
        if condition == 0:
            row |= dict.fromkeys((gain, f"{gain}_low", f"{gain}_high"))
        else:
            row[gain] = float(share[0] - share[condition])
            row |= _interval(gain, drawn[:, 0] - drawn[:, condition])
    return row


def _ratio(value: np.ndarray, base: np.ndarray) -> np.ndarray:
    """NaN where there is nothing, as in a draw of the bootstrap that has no chain."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(value / base)


def _profile(sums: np.ndarray, pairs: np.ndarray, enough: np.ndarray) -> np.ndarray:
    """Mean attention in the bins of distance that have enough pairs."""
    block = ROWS["distance"]
    return sums[block][enough] / pairs[block][enough].clip(min=1)


def _fit_with_intervals(total: AttentionSums, place: tuple[int, int, int]) -> dict[str, Any]:
    layer, condition, head = place
    enough = total.pairs[ROWS["distance"]] >= MIN_PAIRS
    distance = total.distance[enough] / total.pairs[ROWS["distance"]][enough]
    row = fit_gaussian(distance, _profile(total.sums[place], total.pairs, enough))
    names = ("amplitude", "sigma")
    if row["fit"] != "ok":
        return row | {f"{name}_{end}": None for name in names for end in ("low", "high")}
    drawn = zip(total.drawn_sums[:, layer, condition, head], total.drawn_pairs, strict=True)
    fits = [fit_gaussian(distance, _profile(sums, pairs, enough)) for sums, pairs in drawn]
    for name in names:
        row |= _interval(name, np.array([fit[name] for fit in fits], dtype=float))
    return row


def _distance_profile(total: AttentionSums, place: tuple[int, int, int]) -> Iterator[dict[str, Any]]:
    levels = (0.05, 0.25, 0.5, 0.75, 0.95)
    block = ROWS["distance"]
    for number, (value, pairs) in enumerate(zip(total.sums[place][block], total.pairs[block], strict=True)):
        if pairs >= MIN_PAIRS:
            cumulative = np.append(0, total.counts[place][number].cumsum()) / pairs
            logs = np.interp(levels, cumulative, np.log10(WEIGHT_EDGES))
            yield {
                "from": float(DISTANCE_EDGES[number]),
                "to": float(DISTANCE_EDGES[number + 1]),
                "distance": float(total.distance[number] / pairs),
                "pairs": int(pairs),
                "mean": float(value / pairs),
                **{f"q{100 * level:02.0f}": float(10**log) for level, log in zip(levels, logs, strict=True)},
            }


def _motif(total: AttentionSums, place: tuple[int, int, int], name: str) -> dict[str, Any]:
    """Attention on a motif, against pairs of the same separations outside it, and in the other conditions."""
    layer, condition, head = place
    inside, outside = ROWS[name].start, ROWS[f"{name}_outside"].start
    sums, drawn = total.sums[layer, :, head], total.drawn_sums[:, layer, :, head]
    pairs = total.pairs[inside]
    row = {"motif": name, "pairs": int(pairs)}
    row |= {"mean": float(sums[condition, inside] / pairs), "mean_outside": float(sums[condition, outside] / pairs)}
    row |= {"ratio": float(sums[condition, inside] / sums[condition, outside])}
    row |= _interval("ratio", _ratio(drawn[:, condition, inside], drawn[:, condition, outside]))
    if condition == 0:
        return row | dict.fromkeys(("given_over", "given_over_low", "given_over_high"))
    row |= {"given_over": float(sums[0, inside] / sums[condition, inside])}
    return row | _interval("given_over", _ratio(drawn[:, 0, inside], drawn[:, condition, inside]))


def choose_heads(heads: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """The head of each layer whose share within 8 Å is furthest above that with shuffled coordinates, by layer.

    Where there is no null, as in a model without coordinates, the one with the highest share.
    """
    null = [row for row in heads if row["condition"] == "shuffled"]
    best: dict[int, Mapping[str, Any]] = {}
    for row in null or heads:
        value = "near_gain" if null else "near"
        if row["layer"] not in best or row[value] > best[row["layer"]][value]:
            best[row["layer"]] = row
    return {layer: row["head"] for layer, row in sorted(best.items())}


# ---------------------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------------------


def plot_profiles(tables: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path) -> None:
    """Attention of one head of each layer against distance and sequence separation, as PNG (paper, section 3).

    On the left boxes of the middle half of the pairs' attention with whiskers from 5 to 95 %, their means, and the
    fitted Gaussian; on the right means in each condition.
    """
    best = choose_heads(tables["heads"])
    if (figure := figures.new_figure((11, 2.4 * len(best) + 0.6), path)) is None:
        return
    panels = figure.subplots(len(best), 2, sharex="col", squeeze=False, width_ratios=(3, 2))
    for (left, right), (layer, head) in zip(panels, best.items(), strict=True):
        wanted = {"layer": layer, "head": head}
        fit = _select(tables["heads"], **wanted, condition="given")[0]
        bins = _select(tables["distance"], **wanted, condition="given")
        boxes = [
            {"whislo": row["q05"], "q1": row["q25"], "med": row["q50"], "q3": row["q75"], "whishi": row["q95"]}
            for row in bins
        ]
        places = [row["distance"] for row in bins]
        left.bxp(
            boxes, positions=places, widths=0.35, showfliers=False, manage_ticks=False, medianprops={"color": "C0"}
        )
        left.plot(places, [row["mean"] for row in bins], "o", color="C1", ms=3, label="mean")
        text = f"no Gaussian ({fit['fit']})"
        if fit["fit"] == "ok":
            x = np.linspace(0, DISTANCE_EDGES[-1], 200)
            y = fit["amplitude"] * np.exp(-(x**2) / (2 * fit["sigma"] ** 2))
            left.plot(x, y, color="C3", label="Gaussian")
            text = f"amplitude {fit['amplitude']:.2g}, sigma {fit['sigma']:.1f} Å, R² {fit['r2']:.2f}"
        left.set_ylim(0, 1.1 * max(max(row["q95"], row["mean"]) for row in bins))
        left.set_title(f"layer {layer}, head {head}: {text}", fontsize=9)
        left.set_ylabel("attention")
        for condition in CONDITIONS:
            if points := _select(tables["separation"], **wanted, condition=condition):
                right.plot(*zip(*((row["separation"], row["mean"]) for row in points), strict=True), label=condition)
        right.set_ylim(bottom=0)
        right.set_title(f"layer {layer}, head {head}", fontsize=9)
    panels[0, 0].legend(fontsize=8)
    lines, labels = panels[0, 1].get_legend_handles_labels()
    labels = [f"coordinates {label}" for label in labels]
    figure.legend(lines, labels, loc="outside upper right", ncols=len(labels), fontsize=8)
    panels[-1, 0].set(xlabel="distance between C-alphas (Å)", xlim=(0, DISTANCE_EDGES[-1]), xticks=DISTANCE_EDGES[::4])
    panels[-1, 1].set(xlabel="sequence separation, key - query (residues)", xticks=SEPARATIONS[::5])
    figures.save_figure(figure, path)


def plot_atlas(heads: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Layers x heads: amplitude and sigma of the fits, and the share within 8 Å above each null, as PNG.

    Gray: no Gaussian. Without nulls the shares are compared with those of uniform attention.
    """
    given = _select(heads, condition="given")
    maps: dict[str, tuple[list, str, float | None]] = {
        "amplitude": ([row["amplitude"] for row in given], "viridis", None),
        "sigma (Å)": ([row["sigma"] for row in given], "viridis", None),
    }
    nulls = [condition for condition in CONDITIONS[1:] if _select(heads, condition=condition)]
    for value, title in (("near", "share within 8 Å"), ("near_long_range", "share within 8 Å\nof residues ≥ 6 apart")):
        gains = {null: [row[f"{value}_gain"] for row in _select(heads, condition=null)] for null in nulls}
        if not nulls:
            gains = {"uniform": [row[value] - row[f"{value}_uniform"] for row in given]}
        largest = max(abs(gain) for values in gains.values() for gain in values)
        maps |= {f"{title},\ngiven - {null}": (values, "RdBu_r", largest) for null, values in gains.items()}
    shape = (max(row["layer"] for row in given), max(row["head"] for row in given))
    size = (len(maps) * (1.7 + 0.13 * shape[1]), 2.0 + 0.24 * shape[0])
    if (figure := figures.new_figure(size, path)) is None:
        return
    panels = figure.subplots(1, len(maps), sharey=True)
    for axes, (title, (values, colors, bound)) in zip(panels, maps.items(), strict=True):
        table = np.array(values, dtype=float).reshape(shape)
        axes.set_facecolor("0.8")
        limits = {"vmin": 0, "vmax": None} if bound is None else {"vmin": -bound, "vmax": bound}
        extent = (0.5, shape[1] + 0.5, shape[0] + 0.5, 0.5)
        image = axes.imshow(table, cmap=colors, extent=extent, aspect="auto", interpolation="none", **limits)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("head")
        axes.set(xticks=range(1, shape[1] + 1, 1 + shape[1] // 12), yticks=range(1, shape[0] + 1, 1 + shape[0] // 20))
        figure.colorbar(image, ax=axes)
    panels[0].set_ylabel("layer")
    figures.save_figure(figure, path)


def plot_residue_pairs(pairs: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """How much each kind of residue attends to each other, a panel for each layer, as PNG (paper, section 3).

    The mean over the layer's heads, relative to the layer's mean over all kinds. Gray: fewer than 100 pairs.
    """
    layers = sorted({row["layer"] for row in pairs})
    columns = min(len(layers), 3)
    lines = -(-len(layers) // columns)
    if (figure := figures.new_figure((4.2 * columns, 3.6 * lines), path)) is None:
        return
    panels = figure.subplots(lines, columns, squeeze=False)
    letters = {letter: place for place, letter in enumerate(AMINO_ACIDS)}
    for axes, layer in zip(panels.flat, layers, strict=False):
        sums, heads = np.zeros((20, 20)), np.zeros((20, 20))
        for row in _select(pairs, layer=layer):
            place = letters[row["query"]], letters[row["key"]]
            sums[place] += row["mean"]
            heads[place] += 1
        means = np.divide(sums, heads, out=np.full_like(sums, np.nan), where=heads > 0)
        logs = np.log2(means / np.nanmean(means))
        bound = np.nanmax(np.abs(logs))
        image = axes.imshow(logs, cmap="RdBu_r", vmin=-bound, vmax=bound)
        axes.set_facecolor("0.8")
        axes.set_xticks(range(20), AMINO_ACIDS, fontsize=7)
        axes.set_yticks(range(20), AMINO_ACIDS, fontsize=7)
        axes.set(title=f"layer {layer}", xlabel="attended to", ylabel="attending")
        figure.colorbar(image, ax=axes, label="log2 of attention / mean")
    for axes in panels.flat[len(layers) :]:
        axes.remove()
    figures.save_figure(figure, path)


def draw_figures(tables: Mapping[str, Sequence[Mapping[str, Any]]], output: str | Path) -> None:
    """`profiles.png`, `atlas.png` and `residue_pairs.png` in a folder, from the tables of `make_tables`."""
    plot_profiles(tables, Path(output) / "profiles.png")
    plot_atlas(tables["heads"], Path(output) / "atlas.png")
    if tables["residue_pairs"]:
        plot_residue_pairs(tables["residue_pairs"], Path(output) / "residue_pairs.png")


def _select(rows: Sequence[Mapping[str, Any]], **values: Any) -> list[Mapping[str, Any]]:
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


# ---------------------------------------------------------------------------------------------------------------------
# Files and the command
# ---------------------------------------------------------------------------------------------------------------------


def write_tables(tables: Mapping[str, Sequence[Mapping[str, Any]]], output: str | Path) -> None:
    """A CSV file of each table in a folder; numbers with 6 digits, an empty cell for None."""
    for name, table in tables.items():
        with open(Path(output) / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(table[0]) if table else [], lineterminator="\n")
            writer.writeheader()
            for row in table:
                writer.writerow(
                    {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
                )


def read_tables(folder: str | Path) -> dict[str, list[dict[str, Any]]]:
    """What `write_tables` wrote."""

    def parse(text: str) -> Any:
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                pass
        return text or None

    tables = {}
    for name in TABLES:
        with open(Path(folder) / f"{name}.csv", newline="", encoding="utf-8") as file:
            tables[name] = [{key: parse(text) for key, text in row.items()} for row in csv.DictReader(file)]
    return tables


def analyze_attention(
    checkpoint: str | Path,
    data: str | Path,
    output: str | Path,
    *,
    split: str | None = None,
    window: int = 1024,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Analyze a checkpoint on a data set; `window` and `seed` are those of `sum_attention`.

    Writes into the folder `output` a CSV file of each table of `make_tables`, `summary.json`, and the figures of
    `draw_figures`.

    Returns:
        The summary: `checkpoint`, `data`, `split`, `window`, `seed`, `chains`, `residues`, `cropped` (chains longer
        than the window), `with_ss8` (chains whose secondary structure the data brought), `pairs` (of observed
        residues), `reads_coordinates` (False: the conditions coincide, nulls are left out) and `best_heads` by layer.

    Raises:
        ValueError: an input is unusable.
    """
    output = Path(output)
    if output.is_file():
        raise ValueError(f"`output` is {output}, which is a file; give a folder.")
    rows = open_chains(data, split)
    model, processor = load_checkpoint(checkpoint, any_head=True)
    structures = read_structures(data)
    total = sum_attention(model, rows, processor, structures, window=window, seed=seed, progress=progress)
    tables = make_tables(total)
    lengths = read_lengths(rows)
    summary = {
        "checkpoint": Path(checkpoint).name,
        "data": Path(data).name,
        "split": split,
        "window": window,
        "seed": seed,
        "chains": len(rows),
        "residues": int(lengths.sum()),
        "cropped": total.cropped,
        "with_ss8": sum(str(name) in structures for name in rows["id"][:]),
        "pairs": int(total.pairs[ROWS["others"].start]),
        "reads_coordinates": not conditions_coincide(total),
        "best_heads": choose_heads(tables["heads"]),
    }
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "summary.json", json.dumps(summary, indent=2) + "\n")
    write_tables(tables, output)
    draw_figures(tables, output)
    return summary
