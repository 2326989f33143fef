"""How well do scores of substitutions agree with deep mutational scans, with coordinates and without?

    python examples/variants/variants.py CHECKPOINT --baseline CHECKPOINT --data FOLDER
    python examples/variants/variants.py CHECKPOINT --baseline CHECKPOINT --data FOLDER --quick
    python examples/variants/variants.py --difference RESULTS RESULTS

Scores every mutant of every assay as `coordformer score` does, and reports Spearman's correlation with the measurement
by assay, by selection type and on average, as ProteinGym does. FOLDER is either ProteinGym's, or holds Parquet files;
README.md says which. OUTPUT gets assays/*.json, assays.csv, summary.json, report.md and assays.png. Run it again after
a stop: assays that have a JSON file are not scored again.
"""

import argparse
import csv
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from Bio.Align import substitution_matrices
from transformers import PreTrainedModel

from coordformer.data.files import write_json, write_text
from coordformer.data.records import package_version
from coordformer.inference.checkpoints import coordinates_of, digest_weights, load_checkpoint
from coordformer.inference.figures import new_figure, save_figure
from coordformer.inference.marginals import METHODS, score_mutants
from coordformer.inference.metrics import interval, resample
from coordformer.inference.mutants import parse_mutant, read_mutants, spearman
from coordformer.model.chain import Chain
from coordformer.model.structure import read_chains

LEAST_IDENTITY = 95.0  # %, of the structure's chain with the protein of the assay
LEAST_COVERAGE = 0.9  # of the substituted residues with coordinates
LEAST_PROTEINS = 5  # a bootstrap over fewer says little
PREDICTORS = {
    "given": "with coordinates",
    "not_given": "the same model, coordinates not given",
    "baseline": "model without coordinates",
    "blosum62": "BLOSUM62",
    "fewest": "fewest substitutions",
}
# Mean Spearman of all 217 assays as published; not measured here.
QUOTED = {
    "ESM2-8M": 0.226,
    "ProteinMPNN": 0.257,
    "MIF": 0.383,
    "ESM-IF1": 0.422,
    "SaProt-650M": 0.457,
    "ProSST-2048": 0.507,
}
BLOSUM62 = substitution_matrices.load("BLOSUM62")


@dataclass(frozen=True)
class Assay:
    """A deep mutational scan; `load` returns its mutants and what was measured, higher is fitter."""

    name: str
    uniprot: str | None  # None: a further set of multi-mutants, which enters no mean
    selection_type: str | None
    chain: Chain
    identity: float | None  # %, of the structure's chain with the protein; None: there is no structure
    load: Callable[[], tuple[list[str], np.ndarray | None]]


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def make_chain(name: str, sequence: str, coords: np.ndarray | None = None) -> Chain:
    """A chain with C-alpha coordinates (L, 3) in Å, or without any."""
    coords = np.full((len(sequence), 3), np.nan) if coords is None else coords
    return Chain(name, sequence, coords[:, None], ("CA",), np.full(len(sequence), np.nan))


def read_compact_coords(row: Mapping[str, Any]) -> np.ndarray | None:
    """C-alpha positions (L, 3) in Å of whole hundredths, -32768 where not observed; None without a structure."""
    if row["ca_x"] is None:
        return None
    coords = np.stack([np.asarray(row[axis], dtype=np.float32) for axis in ("ca_x", "ca_y", "ca_z")], axis=1)
    coords[coords == -32768] = np.nan
    return coords / 100


def read_parquet_assays(folder: Path) -> Iterator[Assay]:
    """Assays of `dms_targets.parquet` with `dms_single_mutants.parquet`, and sets of `dms_multi_*.parquet`."""

    def load(mutants: Any, key: str, name: str, column: str) -> tuple[list[str], np.ndarray]:
        table = mutants.filter(pc.equal(mutants[key], name))
        return table[column].to_pylist(), table["score"].to_numpy().astype(float)

    mutants = pq.read_table(folder / "dms_single_mutants.parquet")
    for row in pq.read_table(folder / "dms_targets.parquet").to_pylist():
        name = row["dms_id"]
        yield Assay(
            name,
            row["UniProt_ID"],
            row["coarse_selection_type"],
            make_chain(name, row["target_seq"], read_compact_coords(row)),
            row["structure_identity"],
            partial(load, mutants, "dms_id", name, "mutant"),
        )
    if not (folder / "dms_multi_targets.parquet").exists():
        return
    multiple = pq.read_table(folder / "dms_multi_mutants.parquet")
    for row in pq.read_table(folder / "dms_multi_targets.parquet").to_pylist():
        if row["n_variants"] > row["n_single"]:
            chain = make_chain(row["dataset"], row["wt_sequence"], read_compact_coords(row))
            # Each structure is of this very protein: its alignment is exact.
            load_set = partial(load, multiple, "dataset", row["dataset"], "variant")
            yield Assay(row["dataset"], None, None, chain, 100.0, load_set)


def read_measured(path: Path) -> tuple[list[str], np.ndarray | None]:
    mutants, measured, _ = read_mutants(path)
    return mutants, measured


def read_proteingym(folder: Path) -> Iterator[Assay]:
    """Assays of ProteinGym's downloads, with the structures (AlphaFold's models) if they are there."""
    with open(folder / "DMS_substitutions.csv", newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        name, sequence = row["DMS_id"], row["target_seq"]
        path = folder / "DMS_ProteinGym_substitutions" / row["DMS_filename"]
        structure = folder / "ProteinGym_AF2_structures" / row["pdb_file"]
        coords, identity = None, None
        if structure.is_file():
            model = read_chains(structure)[0]
            first = int(row["pdb_range"].split("-")[0]) - 1
            covered = sequence[first : first + len(model)]
            if len(covered) < len(model):
                raise ValueError(f"{structure} has {len(model)} residues, more than {name} from {first + 1} on.")
            coords = np.full((len(sequence), 3), np.nan, dtype=np.float32)
            coords[first : first + len(model)] = model.coords[:, 0]
            identity = 100 * float(np.mean([a == b for a, b in zip(covered, model.sequence, strict=True)]))
        chain = make_chain(name, sequence, coords)
        load = partial(read_measured, path)
        yield Assay(name, row["UniProt_ID"], row["coarse_selection_type"], chain, identity, load)


def read_assays(folder: Path, max_length: int | None = None, quick: bool = False) -> list[Assay]:
    """All assays of a folder, shortest protein first.

    Args:
        folder: of ProteinGym, or of Parquet files.
        max_length: only proteins of up to this many residues.
        quick: only the two shortest with a like structure of each selection type.
    """
    if (folder / "DMS_substitutions.csv").exists():
        found = read_proteingym(folder)
    elif (folder / "dms_targets.parquet").exists():
        found = read_parquet_assays(folder)
    else:
        raise FileNotFoundError(f"{folder} has neither DMS_substitutions.csv (ProteinGym) nor dms_targets.parquet.")
    assays = sorted(found, key=lambda assay: (len(assay.chain), assay.name))
    if max_length is not None:
        assays = [assay for assay in assays if len(assay.chain) <= max_length]
    if quick:
        counted: dict[str | None, list[Assay]] = {}
        for assay in assays:
            if (assay.identity or 0) >= LEAST_IDENTITY:
                counted.setdefault(assay.selection_type, []).append(assay)
        assays = [assay for group in counted.values() for assay in group[:2]]
    if not assays:
        raise ValueError(f"{folder} has no assay of a protein of up to {max_length} residues.")
    return assays


# ---------------------------------------------------------------------------------------------------------------------
# Scoring
# ---------------------------------------------------------------------------------------------------------------------


def score_assay(
    assay: Assay, models: Mapping[str, Sequence[tuple[PreTrainedModel, Any]]], method: str, **options: Any
) -> dict[str, Any]:
    """Spearman's correlations of an assay by predictor: of all mutants, and of those with several substitutions.

    Of several models in one role the mean of the scores is taken.
    `given` is among the predictors where the structure is good enough to compare with and without.
    """
    start = time.monotonic()
    mutants, measured = assay.load()
    if measured is None or len(np.unique(measured[~np.isnan(measured)])) < 2:
        raise ValueError(f"{assay.name} has no two different values of DMS_score; leave it out.")
    sequence = assay.chain.sequence
    try:
        substitutions = [parse_mutant(mutant, sequence) for mutant in mutants]
    except ValueError as error:
        raise ValueError(f"{assay.name}: {error}") from error
    substituted = np.unique([index for each in substitutions for index, _ in each])
    coverage = float(assay.chain.observed[substituted, 0].mean())
    # The signs are those of a higher fitness.
    predictions = {
        "blosum62": np.array([sum(BLOSUM62[sequence[i]][new] for i, new in each) for each in substitutions]),
        "fewest": -np.array([len(each) for each in substitutions]),
    }
    asked = [(assay.chain, mutants)]

    def score(role: str, **condition: Any) -> np.ndarray:
        return np.mean(
            [score_mutants(*each, asked, method, **condition, **options)[0] for each in models[role]], axis=0
        )

    if (assay.identity or 0) >= LEAST_IDENTITY and coverage >= LEAST_COVERAGE:
        predictions["given"] = score("checkpoint")
    predictions["not_given"] = score("checkpoint", without_coords=True)
    if "baseline" in models:
        predictions["baseline"] = score("baseline")
    multiple = np.array([len(each) > 1 for each in substitutions])

    def correlations(chosen: np.ndarray) -> dict[str, float | None]:
        values = {
            name: spearman(predictions[name][chosen], measured[chosen]) for name in PREDICTORS if name in predictions
        }
        return {name: None if math.isnan(value) else value for name, value in values.items()}

    return {
        "assay": assay.name,
        "uniprot": assay.uniprot,
        "selection_type": assay.selection_type,
        "residues": len(assay.chain),
        "mutants": len(mutants),
        "mutants_multiple": int(multiple.sum()),
        "structure_identity": assay.identity,
        "structure_coverage": coverage,
        "spearman": correlations(np.ones(len(mutants), dtype=bool)),
        "spearman_multiple": correlations(multiple) if multiple.any() else {},
        "seconds": round(time.monotonic() - start, 1),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Averages as ProteinGym's
# ---------------------------------------------------------------------------------------------------------------------


def protein_means(results: Sequence[Mapping[str, Any]], predictor: str) -> dict[str, np.ndarray]:
    """By selection type the mean correlation of each protein over its assays, proteins in the order of their ids."""
    means: dict[str, np.ndarray] = {}
    for kind in sorted({result["selection_type"] for result in results}):
        by_protein: dict[str, list[float]] = {}
        for result in results:
            if result["selection_type"] == kind:
                by_protein.setdefault(result["uniprot"], []).append(result["spearman"][predictor])
        means[kind] = np.array([np.mean(by_protein[protein]) for protein in sorted(by_protein)])
    return means


def average(results: Sequence[Mapping[str, Any]], predictor: str) -> dict[str, float]:
    """Mean correlation by selection type, and their mean as `mean`: over assays, then proteins, then types."""
    by_type = {kind: float(values.mean()) for kind, values in protein_means(results, predictor).items()}
    return by_type | {"mean": float(np.mean(list(by_type.values())))}


def compare(
    results: Sequence[Mapping[str, Any]], one: str, other: str, samples: int = 10000, seed: int = 0
) -> dict[str, list[float]]:
    """By how much `average` of one predictor is above the other's: difference, and its 95 % interval.

    The bootstrap draws proteins within each selection type, the same ones for both predictors.
    """
    rng = np.random.default_rng(seed)
    first, second = protein_means(results, one), protein_means(results, other)
    table: dict[str, list[float]] = {}
    drawn = []
    for kind in first:
        difference = first[kind] - second[kind]
        drawn.append(resample(difference, samples, rng) / len(difference))
        table[kind] = [float(difference.mean()), *interval(drawn[-1])]
    mean = float(np.mean([values[0] for values in table.values()]))
    return table | {"mean": [mean, *interval(np.mean(drawn, axis=0))]}


def difference(first: Path, second: Path) -> dict[str, Any]:
    """`compare` of two folders of results, with coordinates, over the assays that both have."""
    tables = []
    for folder in (first, second):
        with open(folder / "assays.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["spearman_given"] and row["uniprot"]]
        tables.append({row["assay"]: row for row in rows})
    both = [(row, tables[1][name]) for name, row in tables[0].items() if name in tables[1]]
    if not both:
        raise ValueError(f"{first} and {second} have no assay in common; give results of the same assays.")
    results = [
        {
            "uniprot": one["uniprot"],
            "selection_type": one["selection_type"],
            "spearman": {"first": float(one["spearman_given"]), "second": float(other["spearman_given"])},
        }
        for one, other in both
    ]
    return {"assays": len(both), **compare(results, "first", "second")}


def summarize(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Averages over the assays with a structure good enough for the comparison, and over all; and the differences."""
    assays = [result for result in results if result["uniprot"] is not None]
    summary: dict[str, Any] = {}
    for name, chosen in (("with_structure", [each for each in assays if "given" in each["spearman"]]), ("all", assays)):
        if not chosen:
            continue
        predictors = [each for each in PREDICTORS if each in chosen[0]["spearman"] and each != "fewest"]
        if name == "all":
            predictors = [each for each in predictors if each != "given"]
        kinds = sorted({each["selection_type"] for each in chosen})
        summary[name] = {
            "assays": {kind: sum(each["selection_type"] == kind for each in chosen) for kind in kinds},
            "proteins": {kind: len(means) for kind, means in protein_means(chosen, "blosum62").items()},
            "spearman": {predictor: average(chosen, predictor) for predictor in predictors},
        }
        if name == "with_structure":
            summary[name]["given_above"] = {
                other: compare(chosen, "given", other) for other in predictors if other != "given"
            }
    return summary


# ---------------------------------------------------------------------------------------------------------------------
# The report
# ---------------------------------------------------------------------------------------------------------------------


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["", *(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)), ""]


def show(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def describe(summary: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    """The report, in Markdown."""
    settings = summary["settings"]
    lines = [
        "# Effects of substitutions",
        "",
        f"Spearman's correlation of scores ({settings['method'].replace('_', ' ')}) with what was measured. "
        + ". ".join(
            f"{role.capitalize()}: {model['name']}, {model['parameters']:,} parameters, coordinates: "
            f"{model['coordinates']}"
            for role, model in [*settings["models"].items(), *(("with", each) for each in settings.get("ensemble", ()))]
        )
        + f". {sum(each['mutants'] for each in results):,} mutants of {len(results)} assays"
        + (f", proteins of up to {summary['max_length']} residues" if summary["max_length"] else "")
        + ".",
    ]
    for name, title in (("with_structure", "Assays with a structure"), ("all", "All assays")):
        if name not in summary:
            continue
        part = summary[name]
        predictors = list(part["spearman"])
        rows = []
        for kind in [*part["assays"], "mean"]:
            label = f"**{kind}**" if kind == "mean" else kind
            counted = [str(part[what].get(kind, "")) for what in ("assays", "proteins")]
            rows.append([label, *counted, *(show(part["spearman"][each][kind]) for each in predictors)])
        head = ["selection type", "assays", "proteins", *(PREDICTORS[each] for each in predictors)]
        lines += ["", f"## {title}", *markdown(head, rows)]
        if name == "with_structure":
            lines += [
                f"Structures of at least {LEAST_IDENTITY:g} % identity with the protein that cover at least "
                f"{100 * LEAST_COVERAGE:g} % of the substituted residues. By how much the correlation with coordinates "
                "is above the others':",
            ]
            others = part["given_above"]
            rows = [
                [f"**{kind}**" if kind == "mean" else kind]
                + [
                    (
                        "{:+.3f} ({:+.3f} to {:+.3f})"
                        if part["proteins"].get(kind, math.inf) >= LEAST_PROTEINS
                        else "{:+.3f}"
                    ).format(*others[other][kind])
                    for other in others
                ]
                for kind in [*part["assays"], "mean"]
            ]
            lines += markdown(["selection type", *(PREDICTORS[other] for other in others)], rows)
            lines += ["![With against without coordinates](assays.png)"]
    lines += [
        "Means are ProteinGym's: over the assays of a protein (UniProt id), over the proteins of a selection type, "
        "over the types. In parentheses 95 % intervals of a bootstrap over the proteins of each type, paired; none "
        f"where a type has fewer than {LEAST_PROTEINS}. No model was trained on a measurement. BLOSUM62 knows nothing "
        "of the protein: what is below it has learned little of use here.",
        "",
    ]
    multiple = [each for each in results if each["spearman_multiple"]]
    if multiple:
        predictors = [name for name in PREDICTORS if any(name in each["spearman_multiple"] for each in multiple)]
        rows = []
        for each in multiple:
            subsets = {"all": ("mutants", "spearman"), "two and more": ("mutants_multiple", "spearman_multiple")}
            for label, (count, correlations) in subsets.items():
                cells = [each["assay"], f"{each[count]:,}", label]
                rows.append(cells + [show(each[correlations].get(name)) for name in predictors])
        head = ["assay", "mutants", "substitutions", *(PREDICTORS[name] for name in predictors)]
        lines += ["## Several substitutions", *markdown(head, rows)]
        lines += ["Where all mutants have equally many substitutions, their number says nothing.", ""]
    lines += [
        "## For comparison",
        "",
        "Mean Spearman of all 217 assays of ProteinGym, **quoted** and not measured here:",
    ]
    lines += markdown(list(QUOTED), [[f"{value:.3f}" for value in QUOTED.values()]])
    lines += [
        "The assays above are fewer, so that these figures say where the field is and not by how much a model differs.",
        "",
        f"Made by `{summary['command']}`: {summary['seconds'] / 60:.1f} minutes of scoring on {summary['machine']}; "
        + ", ".join(f"{package} {number}" for package, number in summary["versions"].items())
        + ". All numbers: assays.csv and summary.json.",
    ]
    return "\n".join(lines) + "\n"


def plot(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Correlation of each assay with coordinates against that without them, as PNG."""
    chosen = [each for each in results if each["uniprot"] is not None and "given" in each["spearman"]]
    others = [name for name in ("baseline", "not_given") if chosen and name in chosen[0]["spearman"]]
    if not others or (figure := new_figure((5 * len(others), 5.4), path)) is None:
        return
    kinds = sorted({each["selection_type"] for each in chosen})
    values = [each["spearman"][name] for each in chosen for name in ("given", *others)]
    limits = (min(values) - 0.03, max(values) + 0.03)
    panels = figure.subplots(1, len(others), squeeze=False)[0]
    for axes, other in zip(panels, others, strict=True):
        axes.plot(limits, limits, color="0.6", linewidth=0.8)
        for kind, marker in zip(kinds, "os^Dv", strict=False):
            points = [each["spearman"] for each in chosen if each["selection_type"] == kind]
            axes.plot(
                [each[other] for each in points], [each["given"] for each in points], marker, alpha=0.8, label=kind
            )
        axes.set(xlim=limits, ylim=limits, aspect="equal", xlabel=f"Spearman, {PREDICTORS[other]}")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"Spearman, {PREDICTORS['given']}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)  # as fit above one panel
    save_figure(figure, path)


def write_results(summary: Mapping[str, Any], results: Sequence[Mapping[str, Any]], output: Path) -> None:
    """assays.csv, summary.json, report.md and assays.png."""
    plain = [name for name in results[0] if not name.startswith("spearman")]
    nested = [(subset, name) for subset in ("spearman", "spearman_multiple") for name in PREDICTORS]
    lines = [",".join([*plain, *(f"{subset}_{name}" for subset, name in nested)])]
    for each in results:
        cells = [each[name] for name in plain] + [each[subset].get(name) for subset, name in nested]
        lines.append(",".join("" if x is None else f"{x:.6g}" if isinstance(x, float) else str(x) for x in cells))
    write_text(output / "assays.csv", "\n".join(lines) + "\n")
    write_json(output / "summary.json", summary)
    write_text(output / "report.md", describe(summary, results))
    plot(results, output / "assays.png")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shipped = str(Path(__file__).resolve().parents[2] / "hub_cards" / "coordformer-1M-pdb")
    parser.add_argument(
        "checkpoint", nargs="?", default=shipped,
        help="a model with coordinates (default: the one that comes with the repository)",
    )  # fmt: skip
    parser.add_argument(
        "--ensemble", nargs="+", default=[], metavar="CHECKPOINT", help="with these the mean of the scores is taken"
    )
    parser.add_argument("--baseline", metavar="CHECKPOINT", help="a model without coordinates to compare with")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="ProteinGym's, or of Parquet files")
    parser.add_argument(
        "--difference", nargs=2, type=Path, metavar="RESULTS", help="scores nothing: the first results above the second"
    )
    parser.add_argument("--method", choices=METHODS, default="masked_marginal", help="default: %(default)s")
    parser.add_argument("--max_length", type=int, help="only proteins of up to this many residues")
    parser.add_argument("--quick", action="store_true", help="two assays of each selection type, of short proteins")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--token_budget", type=int, default=8192, help="tokens of a batch (default: %(default)s)")
    parser.add_argument("--window", type=int, default=1024, help="residues read around each of a longer chain")
    parser.add_argument("--output", type=Path, default=Path("runs/variants"), help="default: %(default)s")
    arguments = parser.parse_args(argv)
    if arguments.difference:
        print(json.dumps(difference(*arguments.difference), indent=2))
        return
    if arguments.data is None:
        parser.error("--data is missing; give the folder of the assays.")
    assays = read_assays(arguments.data, arguments.max_length, arguments.quick)
    folders = {"checkpoint": [arguments.checkpoint, *arguments.ensemble]}
    if arguments.baseline is not None:
        folders["baseline"] = [arguments.baseline]
    models = {role: [load_checkpoint(path, arguments.dtype) for path in paths] for role, paths in folders.items()}
    for role, loaded in models.items():
        for model, _ in loaded:
            if (coordinates_of(model) == "none") != (role == "baseline"):
                raise ValueError(f"The {role} reads coordinates: {coordinates_of(model)}; give the two in their order.")
    described = {
        role: [
            {
                "name": Path(path).name,
                "weights": digest_weights(model),
                "parameters": model.num_parameters(),
                "coordinates": coordinates_of(model),
            }
            for path, (model, _) in zip(paths, models[role], strict=True)
        ]
        for role, paths in folders.items()
    }
    settings = {
        "models": {role: each[0] for role, each in described.items()},
        **({"ensemble": described["checkpoint"][1:]} if arguments.ensemble else {}),
        "method": arguments.method,
        "dtype": arguments.dtype,
        "window": arguments.window,
    }
    (arguments.output / "assays").mkdir(parents=True, exist_ok=True)
    kept = arguments.output / "settings.json"
    if kept.exists() and json.loads(kept.read_text()) != settings:
        raise ValueError(f"{arguments.output} holds results of other models or options; give another --output.")
    write_json(kept, settings)
    results = []
    for number, assay in enumerate(assays, 1):
        path = arguments.output / "assays" / f"{assay.name}.json"
        if not path.exists():
            result = score_assay(
                assay, models, arguments.method, window=arguments.window, token_budget=arguments.token_budget
            )
            write_json(path, result)
            shown = ", ".join(f"{name} {show(value)}" for name, value in result["spearman"].items())
            print(f"{number} of {len(assays)}: {assay.name}, {result['seconds']} s, {shown}", flush=True)
        results.append(json.loads(path.read_text()))
    options = [Path(each).name if Path(each).exists() else each for each in (sys.argv[1:] if argv is None else argv)]
    summary = {
        "settings": settings,
        "max_length": arguments.max_length,
        **summarize(results),
        "seconds": round(sum(each["seconds"] for each in results)),
        "command": " ".join(["python examples/variants/variants.py", *options]),
        "machine": f"{torch.get_num_threads()} core(s) of {platform.machine()}"
        + (f" with {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
        "versions": {"coordformer": package_version()}
        | {package: version(package) for package in ("torch", "transformers", "scipy")},
    }
    write_results(summary, results, arguments.output)
    print(arguments.output / "report.md")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(str(error))
