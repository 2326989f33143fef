"""What each head attends to: distance, sequence separation, kinds of residues, helices and strands (paper, section 3).

From the sums of `attention_sums` to tables, figures and the folder of `coordformer attention`.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy.optimize import leastsq  # type: ignore[import-untyped]

from ..data.files import write_json
from ..data.records import counted
from ..inference.checkpoints import load_checkpoint
from ..inference.metrics import interval
from ..inference.runner import Inputs, is_data_set
from ..model.chain import AMINO_ACIDS
from ..model.proteins import cluster_of, id_of, residues_of
from .attention_figures import plot_atlas, plot_profiles, plot_residue_pairs
from .attention_sums import (
    CONDITIONS,
    DISTANCE_EDGES,
    MIN_PAIRS,
    MOTIFS,
    ROWS,
    SEPARATIONS,
    WEIGHT_EDGES,
    AttentionSums,
    sum_attention,
)

TABLES = ("heads", "distance", "separation", "residue_pairs", "motifs")


def fit_gaussian(distance: np.ndarray, attention: np.ndarray) -> dict[str, Any]:
    """Fit amplitude * exp(-d^2 / (2 sigma^2)) by least squares, each bin alike (paper, section 3).

    Takes distances (bins,), Å, and mean attention (bins,).

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

    Layers and heads are numbered from 1. `low` and `high` bound 95 % intervals of a bootstrap over sequence clusters,
    or over the chains that have none, paired where conditions are compared. A model whose conditions coincide has rows
    of `given` alone.
    """
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    names = CONDITIONS[:1] if conditions_coincide(total) else CONDITIONS
    layers, _, heads, _ = total.sums.shape
    separations = [{"separation": int(each)} for each in SEPARATIONS]
    kinds = [{"query": query, "key": other} for query in AMINO_ACIDS for other in AMINO_ACIDS]
    for layer, head, condition in np.ndindex(layers, heads, len(names)):
        place = (layer, condition, head)
        key = {"layer": layer + 1, "head": head + 1, "condition": names[condition]}
        tables["heads"].append(key | _where_attention_goes(total, place) | _fit_with_intervals(total, place))
        tables["distance"] += [key | row for row in _distance_profile(total, place)]
        motifs = [name for name in MOTIFS if total.pairs[ROWS[name]] >= MIN_PAIRS]
        tables["motifs"] += [key | _motif(total, place, name) for name in motifs]
        tables["separation"] += [key | row for row in _means(total, place, "separation", separations)]
        if condition == 0:
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


def _interval(name: str, drawn: np.ndarray) -> dict[str, float | None]:
    """The interval of what was drawn; none where more than 5 % of it has no value."""
    unknown = np.isnan(drawn)
    low, high = (None, None) if unknown.mean() > 0.05 else interval(drawn[~unknown])
    return {f"{name}_low": low, f"{name}_high": high}


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
        row |= dict.fromkeys((gain, f"{gain}_low", f"{gain}_high"))
        if condition > 0:
            row |= {gain: float(share[0] - share[condition])} | _interval(gain, drawn[:, 0] - drawn[:, condition])
    return row


def _ratio(value: np.ndarray, base: np.ndarray) -> np.ndarray:
    """NaN where there is nothing, as in a sample of the bootstrap that has no chain."""
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
    if row["fit"] != "ok":
        return row | dict.fromkeys(("amplitude_low", "amplitude_high", "sigma_low", "sigma_high"))
    drawn = zip(total.drawn_sums[:, layer, condition, head], total.drawn_pairs, strict=True)
    fits = [fit_gaussian(distance, _profile(sums, pairs, enough)) for sums, pairs in drawn]
    for name in ("amplitude", "sigma"):
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
    sums, drawn, pairs = total.sums[layer, :, head], total.drawn_sums[:, layer, :, head], total.pairs[inside]
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
    rows, value = (null, "near_gain") if null else (heads, "near")
    layers = sorted({row["layer"] for row in rows})
    best = [max((row for row in rows if row["layer"] == layer), key=itemgetter(value)) for layer in layers]
    return {row["layer"]: row["head"] for row in best}


def write_tables(tables: Mapping[str, Sequence[Mapping[str, Any]]], output: str | Path) -> None:
    """A CSV file of each table in a folder; numbers with 6 digits, an empty cell for None."""
    for name, table in tables.items():
        with open(Path(output) / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(table[0]) if table else [], lineterminator="\n")
            writer.writeheader()
            for row in table:
                writer.writerow({key: f"{cell:.6g}" if isinstance(cell, float) else cell for key, cell in row.items()})


def read_structures(path: str | Path) -> dict[str, str]:
    """DSSP letters by chain id from the column `ss8` of a Parquet file, or of the files of a folder."""
    path = Path(path)
    files = [path] if path.is_file() else sorted([*path.glob("data/*.parquet"), *path.glob("*.parquet")])
    structures: dict[str, str] = {}
    for file in files:
        if file.suffix == ".parquet" and "ss8" in pq.read_schema(file).names:
            rows = pq.read_table(file, columns=["id", "ss8"]).to_pylist()
            structures |= {row["id"]: row["ss8"] for row in rows if row["ss8"] is not None}
    return structures


def analyze_attention(
    checkpoint: str | Path,
    inputs: Sequence[str | Path] | str | Path,
    output: str | Path,
    *,
    window: int = 1024,
    seed: int = 0,
    progress: bool = True,
    **reading: Any,
) -> dict[str, Any]:
    """Analyze the attention of a checkpoint on chains.

    Args:
        checkpoint: folder or Hub name of a Coordformer with any head or none.
        inputs: data sets, structure files, archives, folders.
        output: a folder. Gets a CSV file of each table of `make_tables`, `summary.json`, `profiles.png`, `atlas.png`
            and `residue_pairs.png`.
        window, seed, progress: as of `sum_attention`.
        reading: `split`, `chain_ids`, `min_plddt`, `as_complex` and `assembly`, as of `runner.Inputs`.

    Returns:
        The summary: `checkpoint`, `data`, `split`, `window`, `seed`, `chains`, `residues`, `clusters` (None where a
        chain has none), `cropped` (chains longer than the window), `with_ss8` (chains whose secondary structure the
        data brought), `pairs` (of observed residues), `reads_coordinates` (False: the conditions coincide, nulls are
        left out) and `best_heads` by layer.

    Raises:
        ValueError: an input is unusable.
    """
    if (output := Path(output)).is_file():
        raise ValueError(f"`output` is {output}, which is a file; give a folder.")
    model, processor = load_checkpoint(checkpoint, any_head=True)
    atoms = tuple(dict.fromkeys((*model.config.coordinate_atoms, "CA")))
    given = Inputs(inputs, atoms=atoms, optional_atoms=model.config.optional_atoms, **reading)
    chains = given.read_all()
    structures: dict[str, str] = {}
    for path in [inputs] if isinstance(inputs, str | Path) else inputs:
        structures |= read_structures(path) if is_data_set(path) else {}
    total = sum_attention(model, chains, processor.tokenizer, structures, window=window, seed=seed, progress=progress)
    tables = make_tables(total)
    clusters = set(map(cluster_of, chains))
    summary = {
        "checkpoint": Path(checkpoint).name,
        "data": ", ".join(given.names),
        "split": given.settings["split"],
        "window": window,
        "seed": seed,
        "chains": len(chains),
        "residues": sum(map(residues_of, chains)),
        "clusters": None if None in clusters else len(clusters),
        "cropped": total.cropped,
        "with_ss8": sum(id_of(chain) in structures for chain in chains),
        "pairs": int(total.pairs[ROWS["others"].start]),
        "reads_coordinates": not conditions_coincide(total),
        "best_heads": choose_heads(tables["heads"]),
    }
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "summary.json", summary)
    write_tables(tables, output)
    draw_figures(tables, output)
    return summary


def draw_figures(tables: Mapping[str, Sequence[Mapping[str, Any]]], output: str | Path) -> None:
    """`profiles.png`, `atlas.png` and `residue_pairs.png` in a folder, from the tables of `make_tables`."""
    plot_profiles(tables, choose_heads(tables["heads"]), Path(output) / "profiles.png")
    plot_atlas(tables["heads"], Path(output) / "atlas.png")
    if tables["residue_pairs"]:
        plot_residue_pairs(tables["residue_pairs"], Path(output) / "residue_pairs.png")


def describe(summary: Mapping[str, Any]) -> str:
    """The summary as a short text."""
    heads = ", ".join(f"{layer}.{head}" for layer, head in summary["best_heads"].items())
    null = ", beyond the null of shuffled coordinates" if summary["reads_coordinates"] else ""
    return (
        f"{counted(summary['chains'], 'chain')} with {counted(summary['residues'], 'residue')}\n"
        f"heads (layer.head) with the largest share within 8 Å{null}: {heads}"
    )
