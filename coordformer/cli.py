"""What the verbs of the `coordformer` command do; `coordformer_command` has their options.

A verb takes the options as they were read. It returns what `--json` prints, and a short text for people.
"""

import json
import os
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Each verb imports what it needs: training from a bundle runs where pyarrow, datasets and gemmi are not installed.


def prepare(arguments: Namespace) -> tuple[dict[str, Any], str]:
    from .data.fetch import fetch, parse_ids
    from .data.prepare import check_options, prepare

    inputs: list[str | Path] = list(arguments.inputs)
    failed: list[tuple[str, str]] = []
    options: dict[str, Any] = {
        "atoms": arguments.atoms.split(","),
        "min_plddt": arguments.min_plddt,
        "min_mean_plddt": arguments.min_mean_plddt,
        "min_length": arguments.min_length,
        "max_length": arguments.max_length,
        "min_observed": arguments.min_observed,
        "keep_duplicates": arguments.keep_duplicates,
        "splits": None if arguments.splits is None else _parse_splits(arguments.splits),
        "identity": arguments.identity,
        "coverage": arguments.coverage,
        "seed": arguments.seed,
        "chains_per_shard": arguments.chains_per_shard,
        "workers": arguments.workers,
    }
    check_options(**options)
    if arguments.fetch:
        files, failed = fetch(
            parse_ids(arguments.fetch),
            arguments.output / "downloads",
            requests_per_second=arguments.requests_per_second,
            progress=not arguments.quiet,
            **{name: url for name in ("rcsb_url", "alphafold_url") if (url := getattr(arguments, name)) is not None},
        )
        inputs += files
        if failed and not arguments.allow_missing:
            raise ValueError(
                f"{len(failed)} of the ids could not be fetched; the first: {failed[0][0]}, {failed[0][1]}. Run again "
                "to try them again, or with --allow_missing to go on without them."
            )
    elif not inputs:
        raise ValueError("There is nothing to prepare; give files, folders or tar archives, or ids after --fetch.")
    if not inputs:
        raise ValueError(f"None of the ids could be fetched; the first: {failed[0][0]}, {failed[0][1]}")
    sheet = prepare(inputs, arguments.output, failed=failed, progress=not arguments.quiet, **options)
    for name in options["splits"] or ():
        if name not in sheet["splits"]:
            print(f"coordformer: no sequence cluster fell into the split {name!r}", file=sys.stderr)
    counts = sheet["counts"]
    if not counts["chains"]:
        raise ValueError(f"No chain was kept; {arguments.output}/rejected.tsv says why.")
    return counts, (
        f"{_chains(counts)} of {_number(counts['files'], 'file')}: {arguments.output}\n"
        f"merged as duplicates: {_number(counts['duplicates_merged'], 'chain')}; left out, as rejected.tsv says: "
        f"{_number(counts['rejected'], 'file or chain', 'files or chains')}"
    )


def _parse_splits(text: str) -> dict[str, float]:
    """`train=0.9,valid=0.1` as a dictionary."""
    try:
        return {name.strip(): float(share) for name, share in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise ValueError(f"--splits is {text!r}; write names and shares like train=0.9,valid=0.1.") from None


def bundle(arguments: Namespace) -> tuple[dict[str, Any], str]:
    from .data.pack import write_pack
    from .data.rows import load_rows

    rows = load_rows(arguments.data, arguments.split)
    counts = write_pack(rows, arguments.output, progress=not arguments.quiet)
    return counts, f"{_chains(counts)}, {counts['bytes'] / 1e6:,.1f} MB: {arguments.output}"


def train(arguments: Namespace) -> tuple[dict[str, Any], str]:
    from .training.arguments import parse_arguments
    from .training.train import train

    quiet = ["--disable_tqdm", "true"] if arguments.quiet else []
    model_args, data_args, args = parse_arguments([*arguments.options, *quiet])
    summary = train(model_args, data_args, args, arguments.options)
    lines = [f"{_number(summary['steps'], 'update')}: {args.output_dir}"]
    if "valid" in summary:
        valid = summary["valid"]
        lines.append(
            f"held out: perplexity {valid['eval_perplexity']:.2f}, recovery {100 * valid['eval_recovery']:.1f} %"
        )
    return summary, "\n".join(lines)


def leave_processes() -> None:
    """End a training as one of several processes."""
    import torch.distributed as dist
    from accelerate import PartialState

    if dist.is_initialized() and dist.get_backend() == "gloo":
        # A thread of gloo that asks for the interpreter's lock while the interpreter ends aborts the process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    PartialState().destroy_process_group()


def evaluate(arguments: Namespace) -> tuple[dict[str, Any], str]:
    from .data.files import write_text
    from .inference.evaluate import evaluate
    from .inference.figures import plot_recovery

    if arguments.output:  # an evaluation may take long: what can go wrong at its end is looked at first
        _check_file(arguments.output, ".json")
    report = evaluate(
        arguments.checkpoint,
        arguments.data,
        split=arguments.split,
        protocols=arguments.protocols,
        draws=arguments.draws,
        without_coords=arguments.without_coords,
        num_rotations=arguments.num_rotations,
        dtype=arguments.dtype,
        token_budget=arguments.token_budget,
        window=arguments.window,
        progress=not arguments.quiet,
    )
    if arguments.output:
        write_text(arguments.output, json.dumps(report, indent=2) + "\n")
        recoveries = {protocol: report[protocol]["recovery_by_residue"] for protocol in arguments.protocols}
        plot_recovery(recoveries, arguments.output.with_suffix(".png"))

    def interval(name: str, numbers: Mapping[str, Any], scale: float, digits: int) -> str:
        value, low, high = (scale * each for each in (numbers[name], *numbers[f"{name}_interval"]))
        return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    of_split = "" if report["split"] is None else f", split {report['split']}"
    lines = [
        f"{report['checkpoint']} on {_chains(report)} of {report['data']}{of_split}; coordinates: "
        f"{report['coordinates']}; {report['dtype']}",
        f"{'protocol':10}{'perplexity':26}recovery, %",
    ]
    for protocol in arguments.protocols:
        perplexity, recovery = (
            interval(name, report[protocol], *how) for name, how in (("perplexity", (1, 2)), ("recovery", (100, 1)))
        )
        lines.append(f"{protocol:10}{perplexity:26}{recovery}")
    return report, "\n".join(lines)


def embed(arguments: Namespace) -> tuple[dict[str, Any], str]:
    from .inference.embed import embed

    counts = embed(
        arguments.checkpoint,
        arguments.output,
        inputs=arguments.inputs,
        data=arguments.data,
        split=arguments.split,
        pooling=arguments.pooling,
        file_format=arguments.format,
        without_coords=arguments.without_coords,
        chain_ids=arguments.chains,
        min_plddt=arguments.min_plddt,
        dtype=arguments.dtype,
        token_budget=arguments.token_budget,
        window=arguments.window,
        chains_per_shard=arguments.chains_per_shard,
        progress=not arguments.quiet,
    )
    if counts["rejected"]:
        left_out = _number(counts["rejected"], "file or chain was", "files or chains were")
        print(f"coordformer: {left_out} left out; {arguments.output}/rejected.tsv says why", file=sys.stderr)
    return counts, f"{_chains(counts)} in {_number(counts['shards'], 'shard')}: {arguments.output}"


def annotate(arguments: Namespace) -> tuple[dict[str, Any], str]:
    from .data.files import write_text
    from .inference.annotate import annotate

    if arguments.output:
        _check_file(arguments.output, ".tsv", ".json")
    found = annotate(
        arguments.checkpoint,
        arguments.protein,
        chain_ids=arguments.chains,
        min_plddt=arguments.min_plddt,
        top=arguments.top,
        threshold=arguments.threshold,
        without_coords=arguments.without_coords,
        dtype=arguments.dtype,
        token_budget=arguments.token_budget,
        window=arguments.window,
        progress=not arguments.quiet,
    )
    lines = ["chain\tterm\tname\tprobability"]
    for chain, terms in found.items():
        lines += [f"{chain}\t{each['term']}\t{each['name']}\t{each['probability']:.4f}" for each in terms]
        if not terms:
            print(f"coordformer: {chain} has no term of probability {arguments.threshold} or more", file=sys.stderr)
    text = "\n".join(lines)
    if arguments.output:
        as_json = arguments.output.suffix == ".json"
        write_text(arguments.output, (json.dumps(found, indent=2) if as_json else text) + "\n")
    return found, text


def contacts(arguments: Namespace) -> tuple[dict[str, Any], str]:
    from .inference.contacts import describe_precision, write_contacts

    summary = write_contacts(
        arguments.checkpoint,
        arguments.protein,
        arguments.output,
        chain_ids=arguments.chains,
        min_plddt=arguments.min_plddt,
        without_coords=arguments.without_coords,
        dtype=arguments.dtype,
        window=arguments.window,
        progress=not arguments.quiet,
    )
    lines = []
    for chain in summary["chains"]:
        known = "" if chain["contacts"] is None else f"; precision at L: {describe_precision(chain['precision'])}"
        residues = _number(chain["residues"], "residue")
        lines.append(f"{chain['id']}: {residues}, coordinates {chain['coordinates']}{known}")
    return summary, "\n".join([*lines, f"maps, pairs and pictures: {arguments.output}"])


def score(arguments: Namespace) -> tuple[dict[str, Any], str]:
    from .inference.score import score_protein

    summary = score_protein(
        arguments.checkpoint,
        arguments.protein,
        arguments.output,
        mutants=arguments.mutants,
        method=arguments.method,
        first=arguments.first,
        chain_ids=arguments.chains,
        min_plddt=arguments.min_plddt,
        without_coords=arguments.without_coords,
        dtype=arguments.dtype,
        token_budget=arguments.token_budget,
        window=arguments.window,
        progress=not arguments.quiet,
    )
    what, file = "all substitutions", "scan.csv"
    if "mutants" in summary:
        what, file = _number(summary["mutants"], "mutant"), "scores.csv"
    text = (
        f"{summary['chain']}: {what} of {_number(summary['residues'], 'residue')} by {summary['method']}, coordinates "
        f"{summary['coordinates']}: {arguments.output / file}"
    )
    if summary.get("spearman") is not None:
        text += f"\nSpearman's correlation with DMS_score: {summary['spearman']:.3f}"
    return summary, text


def attention(arguments: Namespace) -> tuple[dict[str, Any], str]:
    from .analysis.attention import analyze_attention

    summary = analyze_attention(
        arguments.checkpoint,
        arguments.data,
        arguments.output,
        split=arguments.split,
        window=arguments.window,
        seed=arguments.seed,
        progress=not arguments.quiet,
    )
    heads = ", ".join(f"{layer}.{head}" for layer, head in summary["best_heads"].items())
    null = ", beyond the null of shuffled coordinates" if summary["reads_coordinates"] else ""
    return summary, (
        f"{_chains(summary)}: {arguments.output}\nheads (layer.head) with the largest share within 8 Å{null}: {heads}"
    )


def invariance(arguments: Namespace) -> tuple[dict[str, Any], str]:
    from .analysis.robustness import describe, measure_robustness, write_report

    arguments.output.mkdir(parents=True, exist_ok=True)
    summary, points = measure_robustness(
        arguments.checkpoint,
        arguments.data,
        split=arguments.split,
        labels=arguments.labels,
        baseline=arguments.baseline,
        num_rotations=arguments.num_rotations,
        draws=arguments.draws,
        seed=arguments.seed,
        dtype=arguments.dtype,
        token_budget=arguments.token_budget,
        window=arguments.window,
        progress=not arguments.quiet,
        **{name: values for name in ("noise", "missing") if (values := getattr(arguments, name)) is not None},
    )
    write_report(summary, points, arguments.output)
    return {**summary, "points": points}, describe(summary, points)


def convert(arguments: Namespace) -> tuple[dict[str, Any], str]:
    from .model.processing_coordformer import CoordformerProcessor
    from .training.conversion import from_esm, from_paper_state_dict, read_state_dict

    if arguments.output.is_file() or (arguments.output / "config.json").exists():
        holds = "is a file" if arguments.output.is_file() else "holds a model"
        raise ValueError(f"{arguments.output} {holds}; give another folder, or delete it.")
    overrides = {"coordinate_embedding": "none"} if arguments.without_coords else {}
    model: Any
    if arguments.kind == "esm":
        model = from_esm(arguments.source, **overrides)
    else:
        model = from_paper_state_dict(read_state_dict(arguments.source), arguments.kind, **overrides)
    model.save_pretrained(arguments.output)
    if arguments.kind != "simulated":
        CoordformerProcessor().save_pretrained(arguments.output)
    kind, parameters = type(model).__name__, sum(parameter.numel() for parameter in model.parameters())
    summary = {"output": str(arguments.output), "model": kind, "parameters": parameters}
    return summary, f"{kind} of {parameters:,} parameters: {arguments.output}"


def export(arguments: Namespace) -> tuple[dict[str, Any], str]:
    from .hub.export import export

    summary = export(
        arguments.checkpoint,
        arguments.output,
        evaluations=arguments.evaluation,
        name=arguments.name,
        license=arguments.license,
        datasets=arguments.datasets,
        base_model=arguments.base_model,
        dtype=arguments.dtype,
        check=not arguments.no_check,
        progress=not arguments.quiet,
    )
    checked = "not checked" if arguments.no_check else "loads with and without the package"
    return summary, f"{arguments.output}: {checked}"


def push(arguments: Namespace) -> tuple[dict[str, Any], str]:
    from .hub.push import push

    summary = push(
        arguments.folder,
        arguments.repo_id,
        revision=arguments.revision,
        private=arguments.private,
        commit_message=arguments.commit_message,
        create_pr=arguments.create_pr,
        progress=not arguments.quiet,
    )
    if not summary["changed"]:
        return summary, f"{summary['url']} holds all of it already; nothing was sent" + (
            ", and no pull request opened" if arguments.create_pr else ""
        )
    return summary, f"{summary['url']} ({summary['revision']}, commit {summary['commit']})"


def _number(count: int, one: str, several: str = "") -> str:
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def _chains(counts: Mapping[str, Any]) -> str:
    return f"{_number(counts['chains'], 'chain')} with {_number(counts['residues'], 'residue')}"


def _check_file(path: Path, *suffixes: str) -> None:
    """Refuse a name that --output cannot have, and make its folder."""
    if path.suffix not in suffixes or path.is_dir():
        raise ValueError(f"--output is {path}; give the name of a file that ends in {' or '.join(suffixes)}.")
    path.parent.mkdir(parents=True, exist_ok=True)


def hide_progress_bars() -> None:
    """Those of the libraries, too: of weights that are loaded, files that are fetched, data sets that are read."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # read when `datasets` is imported, which takes seconds
