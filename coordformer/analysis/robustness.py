"""How a checkpoint depends on the frame, and on what its coordinates are worth: `coordformer invariance`.

The encoder is not equivariant: it sees rotated copies in training (section 2) and learns to disregard the frame.
Measured here: how far it does, what averaging over frames gains, and how well masked residues are predicted under the
protocol `masked15` with noise, with missing coordinates, by length and by structural class.
"""

import csv
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.batching import read_lengths
from ..data.files import write_text
from ..inference.evaluate import (
    coordinates_of,
    count_chains,
    draw_rotations,
    letter_ids,
    load_checkpoint,
    masked_batches,
    open_chains,
    predict_logits,
)
from ..inference.figures import new_figure, save_figure
from ..inference.metrics import CORRECT, COUNT, bootstrap, count_predictions, resample, summarize
from ..model.modeling_coordformer import IGNORED_LABEL

NOISE = (0.0, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0)  # Å
MISSING = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
LENGTHS = (0, 50, 100, 150, 200, 300, 500, 1000)  # residues from which a bin begins
# SCOP 1.75 and SCOPe 2; further letters stand for themselves.
CLASSES = {
    "a": "all α",
    "b": "all β",
    "c": "α/β",
    "d": "α+β",
    "e": "multi-domain",
    "f": "membrane",
    "g": "small",
    "h": "coiled coil",
}
LEAST_CHAINS = 10  # of a bin: the bootstrap over fewer chains says little
BIN_WIDTH, BINS = 0.01, 200  # of the histogram of standard deviations, nats; what is above goes to the last bin


# ---------------------------------------------------------------------------------------------------------------------
# Counting
# ---------------------------------------------------------------------------------------------------------------------


def frame_spread(frames: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """By how much predictions of the same residues differ between frames.

    Args:
        frames: log-probabilities of the candidates in each frame, (K, predictions, candidates).
        truth: number of the true candidate, (predictions,).

    Returns:
        (predictions, 3): the variance (of K - 1 degrees of freedom) of the true residue's log-probability, nats²; the
        Jensen-Shannon divergence of the K predictions, which is their mean Kullback-Leibler divergence from their
        average, nats; and the share of pairs of frames that do not agree on the likeliest residue.
    """
    frames = frames.double()
    count = len(frames)
    variance = frames[:, torch.arange(len(truth), device=truth.device), truth].var(dim=0)
    average = frames.logsumexp(dim=0) - np.log(count)
    divergence = (frames.exp() * (frames - average)).sum(dim=-1).mean(dim=0)
    votes = torch.nn.functional.one_hot(frames.argmax(dim=-1), frames.shape[-1]).sum(dim=0)
    agreeing = (votes * (votes - 1)).sum(dim=-1) / (count * (count - 1))
    return torch.stack((variance, divergence, 1 - agreeing), dim=-1)


@torch.no_grad()
def count_frames(
    model: PreTrainedModel,
    rows: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_rotations: int = 16,
    draws: int = 3,
    seed: int = 0,
    token_budget: int = 8192,
    window: int = 1024,
    progress: bool = True,
) -> dict[str, Any]:
    """Predict the same masked residues in several frames, those of `draw_rotations`.

    Args:
        num_rotations: frames, at least 2.
        seed: of the frames; 0 gives those of `count_chains`.
        model, rows, tokenizer, draws, token_budget, window, progress: as in `count_chains`.

    Returns:
        `averaged`: by number of frames averaged (1, 2, 4, ... and `num_rotations`) the counts of each chain, (chains,
        3), of which those of 1 are the given frame's; `single`: the counts of each frame, (num_rotations, 3);
        `spread`: the sums of `frame_spread` over each chain's predictions, (chains, 3); `histogram` of the standard
        deviations of the true residue's log-probability, (BINS,).
    """
    for name, value, least in (("num_rotations", num_rotations, 2), ("draws", draws, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"`{name}` is {value}; it must be at least {least}.")
    candidates = list(letter_ids(tokenizer).values())
    place_of = torch.full((model.config.vocab_size,), -1, device=model.device)
    place_of[candidates] = torch.arange(len(candidates), device=model.device)
    sizes = sorted({2**power for power in range(num_rotations.bit_length())} | {num_rotations})
    averaged = {size: np.zeros((len(rows), 3)) for size in sizes}
    single = np.zeros((num_rotations, 3))
    spread = np.zeros((len(rows), 3))
    histogram = np.zeros(BINS, dtype=np.int64)
    options: dict[str, Any] = {"token_budget": token_budget, "window": window}
    model.eval()
    with tqdm(total=draws * len(rows), unit="chain", desc=f"{num_rotations} frames", disable=not progress) as bar:
        for draw in range(draws):
            for indices, ids, batch in masked_batches(model, rows, tokenizer, draw=draw, **options):
                labels = batch.pop("labels")
                chain, position = (labels != IGNORED_LABEL).nonzero(as_tuple=True)
                truth = labels[chain, position]
                bar.update(len(indices))
                if len(truth) == 0:
                    continue
                rotations = draw_rotations(ids, num_rotations, seed, model.config.coordinate_dim).to(model.device)
                # Of each frame only what is asked for is kept: (num_rotations, predictions, vocabulary).
                frames = torch.stack(
                    [
                        predict_logits(model, batch, rotations=frame, **options)[chain, position]
                        for frame in rotations.split(1, dim=1)
                    ]
                )
                rows_of = indices[chain.cpu().numpy()]
                averages = torch.logcumsumexp(frames, dim=0)  # but for a factor, which no prediction depends on
                for size, counts in averaged.items():
                    np.add.at(counts, rows_of, count_residues(averages[size - 1], truth, candidates))
                for frame, counts in zip(frames, single, strict=True):
                    counts += count_residues(frame, truth, candidates).sum(axis=0)
                values = frame_spread(frames[..., candidates].log_softmax(dim=-1), place_of[truth]).cpu().numpy()
                np.add.at(spread, rows_of, values)
                bins = (np.sqrt(values[:, 0]) / BIN_WIDTH).astype(np.int64).clip(max=BINS - 1)
                histogram += np.bincount(bins, minlength=BINS)
    return {"averaged": averaged, "single": single, "spread": spread, "histogram": histogram}


def count_residues(logits: torch.Tensor, truth: torch.Tensor, candidates: Sequence[int]) -> np.ndarray:
    """Counts of single residues, (predictions, 3), from logits (predictions, vocabulary) and token ids."""
    return count_predictions(logits.unsqueeze(1), truth.unsqueeze(1), candidates).sum(dim=1).cpu().numpy()


# ---------------------------------------------------------------------------------------------------------------------
# Bins of chains
# ---------------------------------------------------------------------------------------------------------------------


def length_bins(lengths: np.ndarray) -> dict[str, np.ndarray]:
    """Row numbers of the chains of each bin of `LENGTHS`; every chain is in one."""
    names = [f"{first} to {end - 1}" for first, end in itertools.pairwise(LENGTHS)]
    names = [f"below {LENGTHS[1]}", *names[1:], f"{LENGTHS[-1]} and more"]
    number = np.searchsorted(LENGTHS, lengths, side="right") - 1
    return {name: np.flatnonzero(number == i) for i, name in enumerate(names)}


def class_bins(rows: Any, labels: str | Path | None = None) -> dict[str, np.ndarray]:
    """Row numbers of the chains of each SCOP class: the first letter of the column `scop_sccs`, as in `c.1.15.3`.

    Args:
        rows: chains, see `evaluation.open_chains`.
        labels: a Parquet file with the columns `id` and `scop_sccs`; without it `rows` may have the latter.

    Returns:
        By letter; chains without a label are in none, and without any labels there is no bin.

    Raises:
        ValueError: the labels lack a column, or are of other chains.
    """
    if labels is not None:
        import pyarrow as pa  # a bundle is evaluated without pyarrow
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(labels, columns=["id", "scop_sccs"])
        except pa.ArrowException as error:
            raise ValueError(
                f"{labels} cannot be read ({' '.join(str(error).split())}); give a Parquet file with the columns id "
                "and scop_sccs."
            ) from error
        known = dict(zip(table["id"].to_pylist(), table["scop_sccs"].to_pylist(), strict=True))
        sccs = [known.get(name) for name in rows["id"][:]]
        if not any(sccs):
            raise ValueError(f"{labels} has a class for none of the {len(rows)} chains; give labels with their ids.")
    elif "scop_sccs" in rows.column_names:
        sccs = rows["scop_sccs"][:]
    else:
        return {}
    letters = np.array([text[0] if text else "" for text in sccs])
    return {str(letter): np.flatnonzero(letters == letter) for letter in np.unique(letters) if letter}


# ---------------------------------------------------------------------------------------------------------------------
# The measurement
# ---------------------------------------------------------------------------------------------------------------------


def ratio_interval(numerator: np.ndarray, denominator: np.ndarray, samples: int = 2000, seed: int = 0) -> list[float]:
    """95 % interval of the ratio of two sums over chains, each (chains,), by a bootstrap over chains."""
    drawn = resample(np.stack([numerator, denominator], axis=1), samples, seed)
    return np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5]).tolist()


def describe_point(counts: np.ndarray, reference: np.ndarray | None = None) -> dict[str, Any]:
    """Perplexity and recovery of counts (chains, 3) with 95 % intervals, and the gain over a reference.

    The gain in perplexity is a share of the reference's, that in recovery a difference; negative gains are losses.
    """
    asked = counts[:, COUNT] > 0
    counts = counts[asked]
    tables = {} if reference is None else {"reference": reference[asked, None]}
    summary, intervals = summarize(counts[:, None]), bootstrap(tables | {"this": counts[:, None]})["this"]
    point = {"chains": len(counts), "predictions": summary["residues"]}
    for name in ("perplexity", "recovery"):
        point |= {name: summary[name], f"{name}_low": intervals[name][0], f"{name}_high": intervals[name][1]}
    if reference is not None:
        low, high = intervals["gain_interval"]
        point |= {"gain": intervals["gain"], "gain_low": low, "gain_high": high}
        more = (counts - reference[asked])[:, CORRECT]
        low, high = ratio_interval(more, counts[:, COUNT])
        point["recovery_gain"] = float(more.sum() / counts[:, COUNT].sum())
        point |= {"recovery_gain_low": low, "recovery_gain_high": high}
    return point


def measure_robustness(
    checkpoint: str | Path,
    data: str | Path,
    *,
    split: str | None = None,
    labels: str | Path | None = None,
    baseline: str | Path | None = None,
    num_rotations: int = 16,
    noise: Sequence[float] = NOISE,
    missing: Sequence[float] = MISSING,
    draws: int = 3,
    seed: int = 0,
    dtype: str = "float32",
    token_budget: int = 8192,
    window: int = 1024,
    progress: bool = True,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure how invariant to the frame and how robust a masked-LM checkpoint is, under the protocol `masked15`.

    Every point is of the same masked residues. Which residues lose their coordinates is drawn among all of a chain, so
    that of the masked ones the same share loses its own; one more point is where these alone lose them.

    Args:
        checkpoint: with coordinates.
        data, split: chains, see `evaluation.open_chains`.
        labels: structural classes, see `class_bins`.
        baseline: a checkpoint without coordinates, to compare with.
        num_rotations: frames of each chain.
        noise: standard deviations in Å.
        missing: shares of the residues whose coordinates are withheld.
        draws, dtype, token_budget, window, progress: as in `evaluation.evaluate`.
        seed: of the frames.

    Returns:
        The summary: what was measured, and `spread` between frames; and the points as rows of a table: `test`
        (`frames`, `noise`, `missing`, `own`, `length`, `class`, `baseline`), `value`, `model` (`checkpoint` or
        `baseline`), and what `describe_point` returns. The reference of a gain is the given frame, no noise, nothing
        missing, or in a bin the baseline.
    """
    for name, values, most, fix in (("noise", noise, np.inf, "on"), ("missing", missing, 1, "to 1")):
        if not all(0 <= value <= most for value in values):
            raise ValueError(f"`{name}` is {', '.join(map(str, values))}; give values from 0 {fix}.")
    rows = open_chains(data, split)
    bins = {"length": length_bins(read_lengths(rows)), "class": class_bins(rows, labels)}
    model, processor = load_checkpoint(checkpoint, dtype)
    models = {"checkpoint": model}
    if baseline is not None:
        models["baseline"], _ = load_checkpoint(baseline, dtype)
        if (kind := coordinates_of(models["baseline"])) != "none":
            raise ValueError(f"`baseline` is {baseline}, a model with coordinates ({kind}); give one without any.")
    options: dict[str, Any] = {"token_budget": token_budget, "window": window, "progress": progress}

    def count(model: PreTrainedModel, **condition: Any) -> np.ndarray:
        counts = count_chains(model, rows, processor.tokenizer, "masked15", draws=draws, **condition, **options)
        return counts.sum(axis=(0, 2))

    frames = count_frames(
        model, rows, processor.tokenizer, num_rotations=num_rotations, draws=draws, seed=seed, **options
    )
    plain = count(model)
    counts_of = {name: plain if name == "checkpoint" else count(each) for name, each in models.items()}
    points = [
        {"test": "frames", "value": size, "model": "checkpoint"}
        | describe_point(counts, None if size == 1 else frames["averaged"][1])
        for size, counts in frames["averaged"].items()
    ]
    for test, values in (("noise", noise), ("missing", missing)):
        for value in values:
            counts = count(model, **{test: value}) if value else plain
            point = describe_point(counts, plain if value else None)
            points.append({"test": test, "value": value, "model": "checkpoint"} | point)
    own = describe_point(count(model, without_own_coords=True), plain)
    points.append({"test": "own", "value": "withheld", "model": "checkpoint"} | own)
    left_out: dict[str, int] = {}
    for test, members in bins.items():
        for bin_name, chains in members.items():
            chains = chains[plain[chains, COUNT] > 0]
            if len(chains) < LEAST_CHAINS:
                left_out |= {f"{test} {bin_name}": len(chains)} if len(chains) else {}
                continue
            for name, counts in counts_of.items():
                reference = counts_of["baseline"][chains] if (name, len(counts_of)) == ("checkpoint", 2) else None
                points.append(
                    {"test": test, "value": bin_name, "model": name} | describe_point(counts[chains], reference)
                )
    if baseline is not None:
        points.append({"test": "baseline", "value": "", "model": "baseline"} | describe_point(counts_of["baseline"]))

    summary = {
        "models": {
            role: {
                "checkpoint": Path(path).name,
                "coordinates": coordinates_of(models[role]),
                "parameters": models[role].num_parameters(),
            }
            for role, path in (("checkpoint", checkpoint), ("baseline", baseline))
            if path is not None
        },
        "data": Path(data).name,
        "split": split,
        "dtype": dtype,
        "protocol": "masked15",
        "draws": draws,
        "seed": seed,
        "chains": len(rows),
        "residues": int(read_lengths(rows).sum()),
        "chains_with_class": sum(map(len, bins["class"].values())),
        "left_out": left_out,
        "spread": summarize_spread(frames),
    }
    return summary, points


def summarize_spread(frames: Mapping[str, Any]) -> dict[str, Any]:
    """What is reported of `count_frames`: means over all predictions with 95 % intervals, and each frame's perplexity.

    Returns:
        `frames`, `predictions`; `log_probability_sd`, the root of the mean variance of the true residue's
        log-probability, and `divergence`, both in nats; `changed`, the share of pairs of frames that do not agree on
        the likeliest residue; `perplexity_by_frame`, the given frame first; and the histogram of the standard
        deviations, `histogram`, in bins of `bin_width` nats.
    """
    asked = frames["averaged"][1][:, COUNT]
    sums, asked = frames["spread"][asked > 0], asked[asked > 0]
    summary: dict[str, Any] = {"frames": len(frames["single"]), "predictions": int(asked.sum())}
    for name, values, power in zip(("log_probability_sd", "divergence", "changed"), sums.T, (0.5, 1, 1), strict=True):
        summary[name] = float(values.sum() / asked.sum()) ** power
        summary[f"{name}_interval"] = [each**power for each in ratio_interval(values, asked)]
    by_frame = [summarize(counts[None])["perplexity"] for counts in frames["single"]]
    summary |= {"perplexity_by_frame": by_frame, "perplexity_sd": float(np.std(by_frame, ddof=1))}
    return summary | {"bin_width": BIN_WIDTH, "histogram": frames["histogram"].tolist()}


# ---------------------------------------------------------------------------------------------------------------------
# The report
# ---------------------------------------------------------------------------------------------------------------------

TESTS = {
    "frames": "frames averaged",
    "noise": "noise on the coordinates (Å)",
    "missing": "residues without coordinates (%)",
    "length": "residues of the chain",
    "class": "structural class (SCOP)",
}
COLUMNS = [
    "test", "value", "model", "chains", "predictions",
    *(f"{name}{end}" for name in ("perplexity", "recovery", "gain", "recovery_gain") for end in ("", "_low", "_high")),
]  # fmt: skip


def model_names(summary: Mapping[str, Any]) -> dict[str, str]:
    """What the report and the figure call the checkpoint and the baseline."""
    return {role: f"{model['checkpoint']} ({model['coordinates']})" for role, model in summary["models"].items()}


def label_of(test: str, value: Any) -> str:
    """A point's value as the report and the figure name it."""
    if test in ("noise", "missing"):
        return f"{100 * value if test == 'missing' else value:g}"
    return CLASSES.get(value, value) if test == "class" else str(value)


def write_report(summary: Mapping[str, Any], points: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write what `measure_robustness` returned: points.csv, invariance.json, invariance.png and report.md."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "points.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(points)
    write_text(folder / "invariance.json", json.dumps(summary, indent=2) + "\n")
    plot_robustness(summary, points, folder / "invariance.png")
    write_text(folder / "report.md", describe(summary, points))


def describe(summary: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> str:
    """The report, in Markdown."""
    spread = summary["spread"]
    low, high = min(spread["perplexity_by_frame"]), max(spread["perplexity_by_frame"])

    def interval(point: Mapping[str, Any], name: str, show: Callable[[float], str]) -> str:
        if name not in point:
            return ""
        return f"{show(point[name])} ({show(point[f'{name}_low'])} to {show(point[f'{name}_high'])})"

    def nats(name: str) -> str:
        first, last = spread[f"{name}_interval"]
        return f"{spread[name]:.4f} ({first:.4f} to {last:.4f})"

    names = model_names(summary)
    first, last = spread["changed_interval"]
    of_split = "" if summary["split"] is None else f", split {summary['split']}"
    lines = [
        "# How invariant, and where does it fail?",
        "",
        f"{names['checkpoint']}: {summary['models']['checkpoint']['parameters']:,} parameters, {summary['dtype']}. "
        f"{summary['chains']:,} chains with {summary['residues']:,} residues of {summary['data']}{of_split}; protocol "
        f"`{summary['protocol']}`, draws of residues: {summary['draws']}, the same ones in every row. In parentheses "
        "95 % intervals of a bootstrap over chains, paired for the gains.",
        "",
        "![All panels](invariance.png)",
        "",
        "## From frame to frame",
        "",
        f"| {spread['frames']} frames of each chain, {spread['predictions']:,} predictions in each | |",
        "| --- | --- |",
        f"| standard deviation of the true residue's log-probability, nats | {nats('log_probability_sd')} |",
        f"| Jensen-Shannon divergence of the predictions, nats | {nats('divergence')} |",
        f"| pairs of frames that do not agree on the likeliest residue | {100 * spread['changed']:.2f} % "
        f"({100 * first:.2f} to {100 * last:.2f}) |",
        f"| perplexity of all chains in one frame, lowest to highest | {low:.3f} to {high:.3f} |",
        f"| its standard deviation over frames | {spread['perplexity_sd']:.4f} |",
    ]
    references = {"frames": "the given frame", "noise": "no noise", "missing": "all coordinates"}
    for test, title in TESTS.items():
        chosen = [point for point in points if point["test"] == test]
        if not chosen:
            continue
        head = [title, "model", "chains", "perplexity", "recovery, %"]
        if reference := references.get(test, names.get("baseline")):
            head += [f"gain in perplexity over {reference}, %", "in recovery, points"]
        lines += ["", f"## {title[0].upper()}{title[1:]}", "", f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
        # Points that are drawn into the panel of another test.
        beside = {"noise": {"baseline": "any"}, "missing": {"own": "those of masked residues", "baseline": "any"}}
        others = beside.get(test, {})
        for point in [*chosen, *(point for point in points if point["test"] in others)]:
            cells = [
                others.get(point["test"]) or label_of(test, point["value"]),
                names[point["model"]],
                f"{point['chains']:,}",
                interval(point, "perplexity", "{:.3f}".format),
                interval(point, "recovery", lambda share: f"{100 * share:.2f}"),
            ]
            cells += [interval(point, name, lambda share: f"{100 * share:+.2f}") for name in ("gain", "recovery_gain")]
            lines.append("| " + " | ".join(cells[: len(head)]) + " |")
    if summary["left_out"]:
        bins = ", ".join(f"{name} ({chains})" for name, chains in summary["left_out"].items())
        lines += ["", f"Left out for having fewer than {LEAST_CHAINS} chains: {bins}."]
    if summary["chains_with_class"]:
        lines += ["", f"Chains with a structural class: {summary['chains_with_class']:,}."]
    lines += ["", "All numbers: points.csv and invariance.json."]
    return "\n".join(lines) + "\n"


def plot_robustness(summary: Mapping[str, Any], points: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """A page of what `measure_robustness` returned, as PNG."""
    if (figure := new_figure((10, 11), path)) is None:
        return
    panels = figure.subplots(3, 2)
    for left, right in panels[1:]:
        right.sharey(left)
    names = model_names(summary)
    colors = {"checkpoint": "C0", "baseline": "0.5"}

    def series(test: str, model: str, name: str) -> tuple[list, np.ndarray]:
        chosen = [point for point in points if (point["test"], point["model"]) == (test, model) and name in point]
        table = [[point[f"{name}{end}"] for end in ("", "_low", "_high")] for point in chosen]
        return [point["value"] for point in chosen], np.array(table).reshape(-1, 3).T

    axes = panels[0, 0]
    values, gain = series("frames", "checkpoint", "gain")
    axes.errorbar(values, 100 * gain[0], 100 * np.abs(gain[1:] - gain[0]), fmt="o-", capsize=3)
    axes.axhline(0, color="0.7", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, values)
    axes.minorticks_off()
    axes.set(title="Averaging over frames", xlabel=TESTS["frames"], ylabel="perplexity below that of one frame (%)")

    axes = panels[0, 1]
    spread = summary["spread"]
    shares = 100 * np.array(spread["histogram"]) / spread["predictions"]
    shown = max(5, int(np.searchsorted(shares.cumsum(), 99.5)) + 1)
    axes.bar(spread["bin_width"] * np.arange(shown), shares[:shown], spread["bin_width"], align="edge")
    axes.set(
        title=f"One masked residue in {spread['frames']} frames",
        xlabel="standard deviation of its log-probability (nats)",
        ylabel="masked residues (%)",
    )

    for axes, test in zip(panels[1], ("noise", "missing"), strict=True):
        scale = 100 if test == "missing" else 1
        values, perplexity = series(test, "checkpoint", "perplexity")
        places = scale * np.array(values)
        axes.plot(places, perplexity[0], "o-", color="C0", label=names["checkpoint"])
        axes.fill_between(places, *perplexity[1:], color="C0", alpha=0.2, linewidth=0)
        if test == "missing":
            (value,), low, high = series("own", "checkpoint", "perplexity")[1]
            error = [value - low, high - value]
            axes.errorbar(15, value, error, fmt="*", markersize=10, color="C3", capsize=3, label="only the masked 15 %")
        if "baseline" in names:
            (value,), low, high = series("baseline", "baseline", "perplexity")[1]
            axes.axhline(value, color="0.5", linestyle="--", label=names["baseline"])
            axes.axhspan(*low, *high, color="0.5", alpha=0.2, linewidth=0)
        axes.set(title={"noise": "Noise", "missing": "Missing coordinates"}[test], xlabel=TESTS[test])
        axes.legend()
    panels[1, 0].set_ylabel("perplexity")

    for axes, test in zip(panels[2], ("length", "class"), strict=True):
        for shift, model in zip((-0.1, 0.1), names, strict=False):
            values, perplexity = series(test, model, "perplexity")
            error = np.abs(perplexity[1:] - perplexity[0])
            axes.errorbar(
                np.arange(len(values)) + shift * (len(names) - 1), perplexity[0], error, fmt="o", capsize=3,
                color=colors[model], label=names[model],
            )  # fmt: skip
        chosen = [point for point in points if (point["test"], point["model"]) == (test, "checkpoint")]
        ticks = [f"{label_of(test, point['value']).replace(' to ', '–')}\n({point['chains']:,})" for point in chosen]
        axes.set_xticks(range(len(ticks)), ticks, fontsize=8)
        axes.set_xlim(-0.6, max(len(ticks), 1) - 0.4)
        axes.set(
            title={"length": "By length", "class": "By structural class"}[test],
            xlabel=f"{TESTS[test]} (chains)",
            ylabel="perplexity",
        )
        if not chosen:
            axes.text(0.5, 0.5, f"no class with {LEAST_CHAINS} chains", ha="center", transform=axes.transAxes)
    for axes in panels.flat:
        axes.grid(alpha=0.3)
    panels[2, 0].legend()
    of_split = "" if summary["split"] is None else f", {summary['split']}"
    figure.suptitle(f"{names['checkpoint']}: {summary['chains']:,} chains of {summary['data']}{of_split}")
    save_figure(figure, path)
