"""How a checkpoint depends on the frame, and on what its coordinates are worth: `coordformer robustness`.

The encoder is not equivariant: it is trained on rotated copies (paper, section 2) and learns to disregard the frame.
Measured here: how far it does, what averaging over frames gains, and how well masked residues are predicted under the
protocol `masked15` with noise, without some of the coordinates, by length and by structural class.
"""

import csv
import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.files import write_json, write_text
from ..inference.checkpoints import coordinates_of, load_checkpoint
from ..inference.figures import new_figure, save_figure
from ..inference.masked import count_chains, predict_masked
from ..inference.metrics import CORRECT, COUNT, bootstrap, count_predictions, ratio_interval, summarize
from ..inference.runner import Inputs
from ..inference.timing import WORTH_TIMING, in_words, seconds_of
from ..model.processing_coordformer import letter_ids
from ..model.proteins import Record, cluster_of, id_of, residues_of

logger = logging.getLogger(__name__)

NOISE = (0.0, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0)  # Å
MISSING = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
LENGTHS = (0, 50, 100, 150, 200, 300, 500, 1000)  # residues from which a bin begins
# SCOP 1.75 and SCOPe 2; further letters stand for themselves.
CLASSES = {"a": "all α", "b": "all β", "c": "α/β", "d": "α+β"}
CLASSES |= {"e": "multi-domain", "f": "membrane", "g": "small", "h": "coiled coil"}
LEAST_CHAINS = 10  # of a bin: the bootstrap over fewer chains says little
QUICK_CHAINS, QUICK_FRAMES = 100, 4
BIN_WIDTH, BINS = 0.01, 200  # of the histogram of standard deviations, nats; what is above goes to the last bin


def frame_spread(frames: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """By how much predictions of the same residues differ between frames.

    Takes log-probabilities in each frame (K, predictions, candidates) and the true candidates' numbers (predictions,).

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


def count_frames(
    model: PreTrainedModel,
    chains: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_rotations: int = 16,
    num_mask_samples: int = 3,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Predict the same masked residues in several frames, those of `draw_rotations`.

    Args:
        num_rotations: frames, at least 2.
        seed: of the frames; 0 gives those of `count_chains`.
        model, chains, tokenizer, num_mask_samples, progress, options (`token_budget`, `window`): as of `count_chains`.

    Returns:
        `averaged`: by number of frames averaged (1, 2, 4, ... and `num_rotations`) the counts of each chain, (chains,
        3), of which those of 1 are the given frame's; `single`: the counts of each frame, (num_rotations, 3);
        `spread`: the sums of `frame_spread` over each chain's predictions, (chains, 3); `histogram` of the standard
        deviations of the true residue's log-probability, (BINS,).
    """
    numbers = {"num_rotations": num_rotations, "num_mask_samples": num_mask_samples, "seed": seed}
    for least, (name, value) in zip((2, 1, 0), numbers.items(), strict=True):
        if value < least:
            raise ValueError(f"`{name}` is {value}; it must be at least {least}.")
    candidates = list(letter_ids(tokenizer).values())
    place_of = torch.full((model.config.vocab_size,), -1)
    place_of[candidates] = torch.arange(len(candidates))
    sizes = sorted({2**power for power in range(num_rotations.bit_length())} | {num_rotations})
    averaged, single = np.zeros((len(sizes), len(chains), 3)), np.zeros((num_rotations, 3))
    spread, histogram = np.zeros((len(chains), 3)), np.zeros(BINS, dtype=np.int64)
    total = num_mask_samples * len(chains)
    with tqdm(total=total, unit="chain", desc=f"{num_rotations} frames", disable=not progress) as bar:
        for sample in range(num_mask_samples):
            for number, truth, logits in predict_masked(
                model, chains, tokenizer, sample=sample, num_rotations=num_rotations, seed=seed, bar=bar, **options
            ):
                frames = logits.log_softmax(dim=-1)
                # But for a factor, which no prediction depends on.
                averages = torch.logcumsumexp(frames, dim=0)[[size - 1 for size in sizes]]
                for counts, of in ((averaged[:, number], averages), (single, frames)):
                    counts += count_predictions(of, truth.expand(len(of), -1), candidates).sum(dim=1).numpy()
                values = frame_spread(frames[..., candidates].log_softmax(dim=-1), place_of[truth]).numpy()
                spread[number] += values.sum(axis=0)
                bins = (np.sqrt(values[:, 0]) / BIN_WIDTH).astype(np.int64).clip(max=BINS - 1)
                histogram += np.bincount(bins, minlength=BINS)
    by_size = dict(zip(sizes, averaged, strict=True))
    return {"averaged": by_size, "single": single, "spread": spread, "histogram": histogram}


def length_bins(lengths: np.ndarray) -> dict[str, np.ndarray]:
    """Numbers of the chains of each bin of `LENGTHS`, from their residues (chains,); every chain is in one."""
    names = [f"{first} to {end - 1}" for first, end in itertools.pairwise(LENGTHS)]
    names = [f"below {LENGTHS[1]}", *names[1:], f"{LENGTHS[-1]} and more"]
    number = np.searchsorted(LENGTHS, lengths, side="right") - 1
    return {name: np.flatnonzero(number == i) for i, name in enumerate(names)}


def class_bins(chains: Sequence[Record], labels: str | Path | None = None) -> dict[str, np.ndarray]:
    """Numbers of the chains of each SCOP class: the first letter of the column `scop_sccs`, as in `c.1.15.3`.

    Args:
        chains: rows of a data set may have the column.
        labels: a Parquet file with the columns `id` and `scop_sccs`, in place of that column.

    Returns:
        By letter; chains without a label are in none, and without any labels there is no bin.

    Raises:
        ValueError: the labels lack a column, or are of other chains.
    """
    if labels is None:
        sccs = [chain.get("scop_sccs") if isinstance(chain, Mapping) else None for chain in chains]
    else:
        import pyarrow as pa  # a packed file is evaluated without pyarrow
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(labels, columns=["id", "scop_sccs"])
        except pa.ArrowException as error:
            fix = "give a Parquet file with the columns id and scop_sccs"
            raise ValueError(f"{labels} cannot be read ({' '.join(str(error).split())}); {fix}.") from error
        known = dict(zip(table["id"].to_pylist(), table["scop_sccs"].to_pylist(), strict=True))
        sccs = [known.get(id_of(chain)) for chain in chains]
        if not any(sccs):
            raise ValueError(f"{labels} has a class for none of the {len(chains)} chains; give labels with their ids.")
    letters = np.array([text[0] if text else "" for text in sccs])
    return {str(letter): np.flatnonzero(letters == letter) for letter in np.unique(letters) if letter}


def describe_point(
    counts: np.ndarray, reference: np.ndarray | None = None, clusters: np.ndarray | None = None
) -> dict[str, Any]:
    """Perplexity and recovery of counts (chains, 3) with 95 % intervals, and the gain over a reference.

    The gain in perplexity is a share of the reference's, that in recovery a difference; negative gains are losses.
    Intervals are over `clusters` (chains,), or without them over chains.
    """
    asked = counts[:, COUNT] > 0
    counts, clusters = counts[asked], None if clusters is None else clusters[asked]
    tables = {} if reference is None else {"reference": reference[asked, None]}
    summary, intervals = summarize(counts[:, None]), bootstrap(tables | {"this": counts[:, None]}, clusters)["this"]
    point = {"chains": len(counts), "predictions": summary["residues"]}
    for name in ("perplexity", "recovery"):
        point |= {name: summary[name], f"{name}_low": intervals[name][0], f"{name}_high": intervals[name][1]}
    if reference is not None:
        low, high = intervals["gain_interval"]
        point |= {"gain": intervals["gain"], "gain_low": low, "gain_high": high}
        more = (counts - reference[asked])[:, CORRECT]
        low, high = ratio_interval(more, counts[:, COUNT], clusters)
        point["recovery_gain"] = float(more.sum() / counts[:, COUNT].sum())
        point |= {"recovery_gain_low": low, "recovery_gain_high": high}
    return point


def measure_robustness(
    checkpoint: str | Path,
    inputs: Sequence[str | Path] | str | Path,
    output: str | Path,
    *,
    labels: str | Path | None = None,
    baseline: str | Path | None = None,
    num_rotations: int = 16,
    noise: Sequence[float] = NOISE,
    missing: Sequence[float] = MISSING,
    num_mask_samples: int = 3,
    seed: int = 0,
    quick: bool = False,
    dtype: str = "float32",
    token_budget: int = 8192,
    window: int = 1024,
    progress: bool = True,
    **reading: Any,
) -> dict[str, Any]:
    """Measure how invariant to the frame and how robust a masked-LM checkpoint is, under the protocol `masked15`.

    Every point is of the same masked residues. Which residues lose their coordinates is drawn among all of a chain, so
    that of the masked ones the same share loses its own; one more point is where these alone lose them.

    Args:
        checkpoint: folder or Hub name of a masked-LM Coordformer that reads coordinates.
        inputs: data sets, structure files, archives, folders.
        output: a folder, gets what `write_report` writes.
        labels: structural classes, see `class_bins`.
        baseline: a checkpoint without coordinates, to compare with.
        num_rotations: frames of each chain.
        noise: standard deviations in Å.
        missing: shares of the residues that lose their coordinates.
        num_mask_samples, token_budget, window, progress: as of `count_chains`.
        seed, dtype: of the frames, and of the weights.
        quick: for a first look at most 100 chains, drawn at random, 4 frames, one choice of masked residues, and of
            `noise` and `missing` every second and every third value.
        reading: `split`, `chain_ids`, `min_plddt`, `as_complex` and `assembly`, as of `runner.Inputs`.

    Returns:
        What was measured, of how many `chains`, `residues` and `clusters` (what intervals are over: their number, or
        None, then chains); `spread` between frames, see `summarize_spread`; and `points`, the rows of a table: `test`
        (`frames`, `noise`, `missing`, `own`, `length`, `class`, `baseline`), `value`, `model` (`checkpoint` or
        `baseline`), and what `describe_point` returns. The reference of a gain is the given frame, no noise, nothing
        missing, or in a bin the baseline.

    Raises:
        ValueError: an argument is out of range, an input is unusable, or `baseline` reads coordinates.
    """
    output = Path(output)
    if quick:
        num_rotations, num_mask_samples = min(num_rotations, QUICK_FRAMES), min(num_mask_samples, 1)
        noise, missing = noise[::2], missing[::3]
    for name, values, most, fix in (("noise", noise, np.inf, "on"), ("missing", missing, 1, "to 1")):
        if not all(0 <= value <= most for value in values):
            raise ValueError(f"`{name}` is {', '.join(map(str, values))}; give values from 0 {fix}.")
    output.mkdir(parents=True, exist_ok=True)
    model, processor = load_checkpoint(checkpoint, dtype)
    models = {"checkpoint": model}
    if baseline is not None:
        models["baseline"], _ = load_checkpoint(baseline, dtype)
        if (kind := coordinates_of(models["baseline"])) != "none":
            raise ValueError(f"`baseline` is {baseline}, a model with coordinates ({kind}); give one without any.")
    given = Inputs(inputs, **processor.reads, **reading)
    chains = given.read_all()
    if quick and len(chains) > QUICK_CHAINS:
        drawn = np.random.default_rng(seed).choice(len(chains), QUICK_CHAINS, replace=False)
        chains = [chains[number] for number in sorted(drawn)]
    lengths = np.array(list(map(residues_of, chains)))
    bins = {"length": length_bins(lengths), "class": class_bins(chains, labels)}
    names = list(map(cluster_of, chains))
    clusters = None if None in names else np.array(names)
    options: dict[str, Any] = {"num_mask_samples": num_mask_samples, "token_budget": token_budget}
    options |= {"window": window, "progress": progress}

    conditions = [{test: value} for test, values in (("noise", noise), ("missing", missing)) for value in values]
    passes = num_rotations + 2 + sum(any(condition.values()) for condition in conditions) + (baseline is not None)
    if progress:
        _say_how_long(model, processor.tokenizer, chains, lengths, passes * num_mask_samples, quick, window)

    def count(name: str, model: PreTrainedModel, **condition: Any) -> np.ndarray:
        bar = tqdm(total=num_mask_samples * len(chains), unit="chain", desc=name, disable=not progress)
        with bar:
            return count_chains(model, chains, processor.tokenizer, **condition, **options, bar=bar).sum(axis=(0, 2))

    frames = count_frames(model, chains, processor.tokenizer, num_rotations=num_rotations, seed=seed, **options)
    counts_of = {name: count(name, each) for name, each in models.items()}
    plain = counts_of["checkpoint"]
    points: list[dict[str, Any]] = []

    def add(test: str, value: Any, counts: np.ndarray, reference=None, name="checkpoint", inside: Any = ...) -> None:
        """A point, of the chains `inside`."""
        of_chains: list[Any] = [None if each is None else each[inside] for each in (counts, reference, clusters)]
        points.append({"test": test, "value": value, "model": name} | describe_point(*of_chains))

    for size, counts in frames["averaged"].items():
        add("frames", size, counts, None if size == 1 else frames["averaged"][1])
    for condition in conditions:
        ((test, value),) = condition.items()
        counts = count(f"{test} {value:g}", model, **condition) if value else plain
        add(test, value, counts, plain if value else None)
    add("own", "without coordinates", count("masked ones missing", model, without_own_coords=True), plain)
    left_out: dict[str, int] = {}
    for test, members in bins.items():
        for bin_name, inside in members.items():
            inside = inside[plain[inside, COUNT] > 0]
            if len(inside) < LEAST_CHAINS:
                left_out |= {f"{test} {bin_name}": len(inside)} if len(inside) else {}
                continue
            for name, counts in counts_of.items():
                add(test, bin_name, counts, counts_of.get("baseline") if name == "checkpoint" else None, name, inside)
    if baseline is not None:
        add("baseline", "", counts_of["baseline"], name="baseline")
    paths: dict[str, Any] = {"checkpoint": checkpoint, "baseline": baseline}
    summary = {
        "models": {
            role: {
                "checkpoint": Path(paths[role]).name,
                "coordinates": coordinates_of(each),
                "parameters": each.num_parameters(),
            }
            for role, each in models.items()
        },
        "data": ", ".join(given.names),
        "split": given.settings["split"],
        "dtype": dtype,
        "protocol": "masked15",
        "num_mask_samples": num_mask_samples,
        "seed": seed,
        "chains": len(chains),
        "residues": int(lengths.sum()),
        "clusters": None if clusters is None else len(set(names)),
        "chains_with_class": sum(map(len, bins["class"].values())),
        "left_out": left_out,
        "spread": summarize_spread(frames, clusters),
        "points": points,
    }
    write_report(summary, output)
    return summary


def _say_how_long(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chains: Sequence[Record], lengths: np.ndarray,
    passes: int, quick: bool, window: int,
) -> None:  # fmt: skip
    """Before a run: how often the chains are predicted, and what that takes, timed on a few of them."""
    if passes * len(chains) < 10 * WORTH_TIMING:
        return
    few = np.argsort(lengths)[len(chains) // 16 :: max(len(chains) // 8, 1)]
    timed = [chains[number] for number in few]
    options: dict[str, Any] = {"num_mask_samples": 1, "window": window, "progress": False}
    count_chains(model, timed[:1], tokenizer, **options)  # the first pass of a process is slower
    seconds = seconds_of(lambda: count_chains(model, timed, tokenizer, **options))
    seconds *= passes * lengths.sum() / lengths[few].sum()
    text = f"{passes} predictions of each of {len(chains):,} chains take {in_words(seconds)}"
    logger.warning("%s", text + ("" if quick else "; --quick makes fewer, of at most 100 chains"))


def summarize_spread(frames: Mapping[str, Any], clusters: np.ndarray | None = None) -> dict[str, Any]:
    """What is reported of `count_frames`: means over all predictions with 95 % intervals, and each frame's perplexity.

    Returns:
        `frames`, `predictions`; `log_probability_sd`, the root of the mean variance of the true residue's
        log-probability, and `divergence`, both in nats; `changed`, the share of pairs of frames that do not agree on
        the likeliest residue; `perplexity_by_frame`, the given frame first; and the histogram of the standard
        deviations, `histogram`, in bins of `bin_width` nats.
    """
    asked = frames["averaged"][1][:, COUNT]
    known = asked > 0
    sums, asked, clusters = frames["spread"][known], asked[known], None if clusters is None else clusters[known]
    summary: dict[str, Any] = {"frames": len(frames["single"]), "predictions": int(asked.sum())}
    for name, values, power in zip(("log_probability_sd", "divergence", "changed"), sums.T, (0.5, 1, 1), strict=True):
        summary[name] = float(values.sum() / asked.sum()) ** power
        summary[f"{name}_interval"] = [each**power for each in ratio_interval(values, asked, clusters)]
    by_frame = [summarize(counts[None])["perplexity"] for counts in frames["single"]]
    summary |= {"perplexity_by_frame": by_frame, "perplexity_sd": float(np.std(by_frame, ddof=1))}
    return summary | {"bin_width": BIN_WIDTH, "histogram": frames["histogram"].tolist()}


TESTS = {
    "frames": "frames averaged",
    "noise": "noise on the coordinates (Å)",
    "missing": "residues without coordinates (%)",
    "length": "residues of the chain",
    "class": "structural class (SCOP)",
}
MEASURES = ("perplexity", "recovery", "gain", "recovery_gain")
COLUMNS = ["test", "value", "model", "chains", "predictions"]
COLUMNS += [f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")]


def model_names(summary: Mapping[str, Any]) -> dict[str, str]:
    """What the report and the figure call the checkpoint and the baseline."""
    return {role: f"{model['checkpoint']} ({model['coordinates']})" for role, model in summary["models"].items()}


def label_of(test: str, value: Any) -> str:
    """A point's value as the report and the figure name it."""
    if test in ("noise", "missing"):
        return f"{100 * value if test == 'missing' else value:g}"
    return CLASSES.get(value, value) if test == "class" else str(value)


def write_report(summary: Mapping[str, Any], folder: Path) -> None:
    """Write what `measure_robustness` returns: points.csv, the rest as robustness.json, robustness.png, report.md."""
    with open(folder / "points.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(summary["points"])
    write_json(folder / "robustness.json", {name: value for name, value in summary.items() if name != "points"})
    plot_robustness(summary, folder / "robustness.png")
    write_text(folder / "report.md", describe(summary))


def describe(summary: Mapping[str, Any]) -> str:
    """The report, in Markdown, by the template robustness.md.jinja."""
    template = Path(__file__).with_suffix(".md.jinja").read_text(encoding="utf-8")
    environment = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    named = {"names": model_names(summary), "tests": TESTS, "label_of": label_of, "least": LEAST_CHAINS}
    return environment.from_string(template).render(summary, **named)


def plot_robustness(summary: Mapping[str, Any], path: str | Path) -> None:
    """A page of what `measure_robustness` returns, as PNG."""
    if (figure := new_figure((10, 11), path)) is None:
        return
    points = summary["points"]
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
    axes.set(title=f"One masked residue in {spread['frames']} frames", ylabel="masked residues (%)")
    axes.set_xlabel("standard deviation of its log-probability (nats)")

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
            places = np.arange(len(values)) + shift * (len(names) - 1)
            style = {"fmt": "o", "capsize": 3, "color": colors[model], "label": names[model]}
            axes.errorbar(places, perplexity[0], error, **style)
        chosen = [point for point in points if (point["test"], point["model"]) == (test, "checkpoint")]
        ticks = [f"{label_of(test, point['value']).replace(' to ', '–')}\n({point['chains']:,})" for point in chosen]
        axes.set_xticks(range(len(ticks)), ticks, fontsize=8)
        axes.set_xlim(-0.6, max(len(ticks), 1) - 0.4)
        axes.set_title({"length": "By length", "class": "By structural class"}[test])
        axes.set(xlabel=f"{TESTS[test]} (chains)", ylabel="perplexity")
        if not chosen:
            axes.text(0.5, 0.5, f"no class with {LEAST_CHAINS} chains", ha="center", transform=axes.transAxes)
    for axes in panels.flat:
        axes.grid(alpha=0.3)
    panels[2, 0].legend()
    of_split = "" if summary["split"] is None else f", {summary['split']}"
    figure.suptitle(f"{names['checkpoint']}: {summary['chains']:,} chains of {summary['data']}{of_split}")
    save_figure(figure, path)
