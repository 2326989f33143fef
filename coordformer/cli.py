"""The `coordformer` command: a verb for each step, from structure files to predictions."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import __version__


def _prepare(arguments: argparse.Namespace) -> None:
    from .fetch import fetch, parse_ids
    from .preparation import check_options, prepare

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
    print(json.dumps(sheet["counts"]))
    if not sheet["counts"]["chains"]:
        raise ValueError(f"No chain was kept; {arguments.output}/rejected.tsv says why.")


def _parse_splits(text: str) -> dict[str, float]:
    """`train=0.9,valid=0.1` as a dictionary."""
    try:
        return {name.strip(): float(share) for name, share in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise ValueError(f"--splits is {text!r}; write names and shares like train=0.9,valid=0.1.") from None


def _bundle(arguments: argparse.Namespace) -> None:
    from .bundle import write_bundle
    from .dataset import load_rows

    rows = load_rows(arguments.data, arguments.split)
    print(json.dumps(write_bundle(rows, arguments.output, progress=not arguments.quiet)))


def _convert(arguments: argparse.Namespace) -> None:
    from .conversion import from_esm, from_paper_state_dict, read_state_dict
    from .processing_coordformer import CoordformerProcessor

    arguments.output.mkdir(parents=True, exist_ok=True)
    overrides = {"coordinate_embedding": "none"} if arguments.without_coords else {}
    model: Any
    if arguments.kind == "esm":
        model = from_esm(arguments.source, **overrides)
    else:
        model = from_paper_state_dict(read_state_dict(arguments.source), arguments.kind, **overrides)
    model.save_pretrained(arguments.output)
    if arguments.kind != "simulated":
        CoordformerProcessor().save_pretrained(arguments.output)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(json.dumps({"output": str(arguments.output), "model": type(model).__name__, "parameters": parameters}))


def _evaluate(arguments: argparse.Namespace) -> None:
    from .evaluation import evaluate
    from .figures import plot_recovery

    if arguments.output:  # an evaluation may take long: what can go wrong at its end is looked at first
        if arguments.output.suffix != ".json" or arguments.output.is_dir():
            raise ValueError(f"--output is {arguments.output}; give the name of a file that ends in .json.")
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
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
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")
        recoveries = {protocol: report[protocol]["recovery_by_residue"] for protocol in arguments.protocols}
        plot_recovery(recoveries, arguments.output.with_suffix(".png"))


def _invariance(arguments: argparse.Namespace) -> None:
    from .invariance import measure_invariance, write_report

    arguments.output.mkdir(parents=True, exist_ok=True)
    summary, points = measure_invariance(
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
    print((arguments.output / "report.md").read_text(encoding="utf-8"))


def _attention(arguments: argparse.Namespace) -> None:
    from .attention_analysis import analyse_attention

    summary = analyse_attention(
        arguments.checkpoint,
        arguments.data,
        arguments.output,
        split=arguments.split,
        window=arguments.window,
        seed=arguments.seed,
        progress=not arguments.quiet,
    )
    print(json.dumps(summary, indent=2))


def _embed(arguments: argparse.Namespace) -> None:
    from .embedding import embed

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
    print(json.dumps(counts))
    if counts["rejected"]:
        left_out = "1 file or chain was" if counts["rejected"] == 1 else f"{counts['rejected']} files or chains were"
        print(f"coordformer: {left_out} left out; {arguments.output}/rejected.tsv says why", file=sys.stderr)


def _score(arguments: argparse.Namespace) -> None:
    from .evaluation import coordinates_given, load_checkpoint
    from .scoring import plot_scan, read_mutants, scan_chain, score_mutants, spearman, write_scan, write_scores
    from .structure import read_proteins

    if arguments.output.is_file():
        raise ValueError(f"--output is {arguments.output}, which is a file; give a folder.")
    given, measured = arguments.mutants, None
    if given is not None and len(given) == 1 and given[0].lower().endswith(".csv"):
        given, measured = read_mutants(given[0])
    model, processor = load_checkpoint(arguments.checkpoint, arguments.dtype)
    chains = read_proteins(arguments.protein, processor.coordinate_atoms, arguments.min_plddt, arguments.chains)
    if len(chains) != 1:
        names = ", ".join(chain.id for chain in chains)
        raise ValueError(f"{arguments.protein} has the chains {names or '(none)'}; choose one with --chains.")
    chain = chains[0]
    arguments.output.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {
        "without_coords": arguments.without_coords,
        "window": arguments.window,
        "token_budget": arguments.token_budget,
        "progress": not arguments.quiet,
    }
    summary: dict[str, Any] = {
        "checkpoint": Path(arguments.checkpoint).name,
        "chain": chain.id,
        "residues": len(chain),
        "observed": int(chain.observed.any(axis=1).sum()),
        "coordinates": coordinates_given(model, chain, arguments.without_coords),
        "method": arguments.method,
        "first": arguments.first,
        "window": arguments.window,
        "dtype": arguments.dtype,
    }
    if arguments.scan:
        table = scan_chain(model, processor, chain, arguments.method, **options)
        write_scan(arguments.output / "scan.csv", table, chain.sequence, arguments.first)
        title = f"{chain.id}, {arguments.method.replace('_', ' ')}"
        plot_scan(arguments.output / "scan.png", table, chain.sequence, arguments.first, title)
    else:
        scores = score_mutants(model, processor, chain, given, arguments.method, first=arguments.first, **options)
        write_scores(arguments.output / "scores.csv", given, scores, measured)
        summary["mutants"] = len(given)
        if measured is not None:
            correlation = spearman(scores, measured)
            summary["spearman"] = correlation if correlation == correlation else None  # NaN is no JSON
    text = json.dumps(summary)
    (arguments.output / "score.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def _annotate(arguments: argparse.Namespace) -> None:
    from .files import write_atomically
    from .function import annotate

    if arguments.output:
        if arguments.output.suffix not in (".tsv", ".json") or arguments.output.is_dir():
            raise ValueError(f"--output is {arguments.output}; give the name of a file that ends in .tsv or .json.")
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
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
    )
    lines = ["chain\tterm\tname\tprobability"]
    for chain, terms in found.items():
        lines += [f"{chain}\t{each['term']}\t{each['name']}\t{each['probability']:.4f}" for each in terms]
        if not terms:
            print(f"coordformer: {chain} has no term of probability {arguments.threshold} or more", file=sys.stderr)
    text = "\n".join(lines)
    print(text)
    if arguments.output:
        if arguments.output.suffix == ".json":
            text = json.dumps(found, indent=2)
        write_atomically(arguments.output, lambda path: path.write_text(text + "\n", encoding="utf-8"))


def _contacts(arguments: argparse.Namespace) -> None:
    from .contacts import write_contacts

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
    print(json.dumps(summary, indent=2))


def _train(options: Sequence[str]) -> None:
    import torch.distributed as dist
    from accelerate import PartialState

    from .training import parse_arguments, train

    summary = train(*parse_arguments(options))
    if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
        print(json.dumps(summary, indent=2))
    if dist.is_initialized() and dist.get_backend() == "gloo":
        # A thread of gloo that asks for the interpreter's lock while the interpreter ends aborts the process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    PartialState().destroy_process_group()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="coordformer", description="Structure as an input of protein language models."
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    prepare = verbs.add_parser(
        "prepare",
        help="turn structure files into a data set",
        description="Turn mmCIF and PDB files, plain, gzipped or in tar archives, into Parquet shards with a "
        "datasheet. Run it again to go on after a stop.",
    )
    prepare.add_argument("inputs", nargs="*", metavar="PATH", help="structure files, tar archives, or folders of them")
    prepare.add_argument(
        "--fetch",
        nargs="+",
        metavar="ID",
        help="PDB ids and UniProt accessions (AlphaFold DB), or files that list them",
    )
    prepare.add_argument("--allow_missing", action="store_true", help="go on where --fetch could not get all ids")
    prepare.add_argument("--requests_per_second", type=float, default=10.0, help="of --fetch (default: %(default)s)")
    prepare.add_argument("--rcsb_url", help="a mirror of RCSB's downloads, for --fetch")
    prepare.add_argument("--alphafold_url", help="a mirror of AlphaFold DB's API, for --fetch")
    prepare.add_argument(
        "--output", required=True, type=Path, metavar="FOLDER", help="gets data/*.parquet and what describes them"
    )
    prepare.add_argument("--atoms", default="CA", help="atoms to keep, for example N,CA,C (default: %(default)s)")
    prepare.add_argument("--min_plddt", type=float, help="residues of predicted structures below it are not observed")
    prepare.add_argument("--min_mean_plddt", type=float, help="reject predicted chains with a lower mean confidence")
    prepare.add_argument("--min_length", type=int, default=1, help="reject shorter chains, in residues")
    prepare.add_argument("--max_length", type=int, help="reject longer chains, in residues")
    prepare.add_argument("--min_observed", type=float, default=0.0, help="reject chains with a smaller share observed")
    prepare.add_argument("--keep_duplicates", action="store_true", help="do not merge chains of equal sequence")
    prepare.add_argument(
        "--splits", metavar="NAME=SHARE,...", help="split by sequence clusters (MMseqs2), as train=0.9,valid=0.1"
    )
    prepare.add_argument("--identity", type=float, default=0.3, help="of a sequence cluster (default: %(default)s)")
    prepare.add_argument("--coverage", type=float, default=0.8, help="of a sequence cluster (default: %(default)s)")
    prepare.add_argument("--seed", type=int, default=0, help="of the splits (default: %(default)s)")
    prepare.add_argument("--chains_per_shard", type=int, default=5000, help="default: %(default)s")
    prepare.add_argument("--workers", type=int, help="processes (default: one per core)")
    prepare.add_argument("--quiet", action="store_true", help="no progress bar")
    prepare.set_defaults(run=_prepare)

    bundle = verbs.add_parser(
        "bundle",
        help="put a data set into one file for a bare training machine",
        description="Put a data set into one safetensors file, from which `coordformer train` runs with torch, "
        "transformers and accelerate alone.",
    )
    bundle.add_argument("data", help="folder made by `coordformer prepare`, or Parquet file")
    bundle.add_argument("output", type=Path, metavar="FILE.safetensors")
    bundle.add_argument("--split", help="only this split; all of them by default, their names are kept")
    bundle.add_argument("--quiet", action="store_true", help="no progress bar")
    bundle.set_defaults(run=_bundle)

    convert = verbs.add_parser(
        "convert",
        help="make a checkpoint of the paper's published weights or of ESM-2",
        description="Make a folder that Transformers loads of the weights that the paper's authors published, or of an "
        "ESM-2 checkpoint.",
    )
    convert.add_argument("source", metavar="SOURCE", help="file of weights (.pt, .safetensors); esm: folder, Hub name")
    convert.add_argument("output", type=Path, metavar="FOLDER", help="gets the model, and for proteins its processor")
    convert.add_argument(
        "--kind",
        required=True,
        choices=("pretrained", "simulated", "esm_conditioned", "esm"),
        help="which model the weights are of",
    )
    convert.add_argument(
        "--without_coords",
        action="store_true",
        help="the result reads no coordinates; needed for the paper's models without them, whose files do not tell",
    )
    convert.set_defaults(run=_convert)

    # Listed only: its options are those of HfArgumentParser, to which `main` hands them.
    verbs.add_parser("train", help="train a masked language model on a data set")

    evaluate = verbs.add_parser(
        "evaluate",
        help="perplexity and recovery of a checkpoint on a data set",
        description="Perplexity and recovery of masked residues, as JSON.",
    )
    evaluate.add_argument("checkpoint", help="folder or Hub name")
    evaluate.add_argument("--data", required=True, help="folder, Parquet file or bundle, as of train")
    evaluate.add_argument("--split", help="only rows whose column `split` has this value")
    evaluate.add_argument("--protocols", nargs="+", choices=("paper", "masked15"), default=("paper", "masked15"))
    evaluate.add_argument("--draws", type=int, default=3, help="times the residues are chosen (default: %(default)s)")
    evaluate.add_argument("--without_coords", action="store_true", help="withhold all coordinates")
    evaluate.add_argument(
        "--num_rotations", type=int, default=1, help="frames whose predictions are averaged (default: %(default)s)"
    )
    evaluate.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    evaluate.add_argument("--token_budget", type=int, default=8192, help="tokens of a batch (default: %(default)s)")
    evaluate.add_argument("--window", type=int, default=1024, help="longest chain predicted in one piece, in residues")
    evaluate.add_argument(
        "--output", type=Path, metavar="FILE.json", help="write the JSON here, and recovery by residue as FILE.png"
    )
    evaluate.add_argument("--quiet", action="store_true", help="no progress bar")
    evaluate.set_defaults(run=_evaluate)

    invariance = verbs.add_parser(
        "invariance",
        help="how a checkpoint depends on the frame, and where it fails",
        description="Spread of the predictions between rotated copies, gain of averaging over them, and perplexity and "
        "recovery with noise, with missing coordinates, by length and by structural class: points.csv, "
        "invariance.json, invariance.png and report.md.",
    )
    invariance.add_argument("checkpoint", help="folder or Hub name")
    invariance.add_argument("--data", required=True, help="folder, Parquet file or bundle, as of train")
    invariance.add_argument("--split", help="only rows whose column `split` has this value")
    invariance.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="gets the report")
    invariance.add_argument(
        "--labels", metavar="FILE.parquet", help="columns id and scop_sccs; default: the column scop_sccs of the data"
    )
    invariance.add_argument("--baseline", metavar="CHECKPOINT", help="a model without coordinates to compare with")
    invariance.add_argument("--num_rotations", type=int, default=16, help="frames of a chain (default: %(default)s)")
    invariance.add_argument("--noise", nargs="+", type=float, help="standard deviations in Å (default: 0 to 5)")
    invariance.add_argument("--missing", nargs="+", type=float, help="shares of the residues (default: 0 to 1)")
    invariance.add_argument("--draws", type=int, default=3, help="times the residues are chosen (default: %(default)s)")
    invariance.add_argument("--seed", type=int, default=0, help="of the rotations (default: %(default)s)")
    invariance.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    invariance.add_argument("--token_budget", type=int, default=8192, help="tokens of a batch (default: %(default)s)")
    invariance.add_argument("--window", type=int, default=1024, help="longest chain predicted in one piece")
    invariance.add_argument("--quiet", action="store_true", help="no progress bar")
    invariance.set_defaults(run=_invariance)

    attention = verbs.add_parser(
        "attention",
        help="what each head of a checkpoint attends to",
        description="Attention of each head against distance and sequence separation, by kind of residue, and on "
        "helices and strands, with coordinates given, withheld and shuffled: CSV files and figures.",
    )
    attention.add_argument("checkpoint", help="folder or Hub name, with any head or none")
    attention.add_argument("--data", required=True, help="folder, Parquet file or bundle, as of train")
    attention.add_argument("--split", help="only rows whose column `split` has this value")
    attention.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="gets tables and figures")
    attention.add_argument(
        "--window", type=int, default=1024, help="of longer chains the middle part of this many residues is looked at"
    )
    attention.add_argument("--seed", type=int, default=0, help="of shuffled coordinates and intervals")
    attention.add_argument("--quiet", action="store_true", help="no progress bar")
    attention.set_defaults(run=_attention)

    embed = verbs.add_parser(
        "embed",
        help="vectors of chains or residues",
        description="Vectors of the chains of structure and FASTA files, or of a data set, from the last layer of a "
        "checkpoint: shards in Parquet or safetensors. Run it again to go on after a stop.",
    )
    embed.add_argument("checkpoint", help="folder or Hub name, with any head or none")
    embed.add_argument("inputs", nargs="*", metavar="PATH", help="structure and FASTA files, or folders of them")
    embed.add_argument("--data", help="in place of files: folder, Parquet file or bundle, as of train")
    embed.add_argument("--split", help="only rows of the data set whose column `split` has this value")
    embed.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="gets the shards")
    vectors = embed.add_mutually_exclusive_group()
    vectors.add_argument(
        "--pooling",
        choices=("mean", "first"),
        default="mean",
        help="one vector for each chain: the mean over its residues, or that of its first token (default: %(default)s)",
    )
    vectors.add_argument(
        "--per_residue", dest="pooling", action="store_const", const=None, help="one vector for each residue"
    )
    embed.add_argument("--format", choices=("parquet", "safetensors"), default="parquet", help="default: %(default)s")
    embed.add_argument("--without_coords", action="store_true", help="withhold all coordinates")
    embed.add_argument("--chains", nargs="+", metavar="NAME", help="only these chains of each file")
    embed.add_argument("--min_plddt", type=float, help="residues of predicted structures below it are not observed")
    embed.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the model")
    embed.add_argument("--token_budget", type=int, default=8192, help="tokens of a batch (default: %(default)s)")
    embed.add_argument("--window", type=int, default=1024, help="longest chain embedded in one piece, in residues")
    embed.add_argument("--chains_per_shard", type=int, default=1000, help="default: %(default)s")
    embed.add_argument("--quiet", action="store_true", help="no progress bar")
    embed.set_defaults(run=_embed)

    score = verbs.add_parser(
        "score",
        help="effects of substitutions in a protein",
        description="Log-likelihood ratios of mutants and wild type: scores.csv of given mutants (with Spearman's "
        "correlation where the file has DMS_score), or scan.csv and scan.png of all substitutions; and score.json, the "
        "settings.",
    )
    score.add_argument("checkpoint", help="folder or Hub name")
    score.add_argument("protein", metavar="PROTEIN", help="structure file (mmCIF, PDB), or FASTA file")
    score.add_argument("--chains", nargs="+", metavar="CHAIN", help="the chain to score, where the file has several")
    asked = score.add_mutually_exclusive_group(required=True)
    asked.add_argument(
        "--mutants", nargs="+", metavar="MUTANT", help="such as A24G or A24G:T30S, or FILE.csv with the column mutant"
    )
    asked.add_argument("--scan", action="store_true", help="all substitutions of one residue")
    score.add_argument(
        "--method",
        choices=("wild_type_marginal", "masked_marginal", "pseudo_likelihood"),
        default="masked_marginal",
        help="one pass for the chain, for each substituted residue, or for each residue of each mutant "
        "(default: %(default)s)",
    )
    score.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="gets scores.csv, or the scan")
    score.add_argument(
        "--first",
        type=int,
        default=1,
        help="position of the sequence's first residue in the mutants (default: %(default)s); the sequence is the "
        "deposited one, with residues that were not observed, and the file's own residue numbers are not read",
    )
    score.add_argument("--without_coords", action="store_true", help="withhold all coordinates")
    score.add_argument("--min_plddt", type=float, help="residues of predicted structures below it are not observed")
    score.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    score.add_argument("--token_budget", type=int, default=8192, help="tokens of a batch (default: %(default)s)")
    score.add_argument("--window", type=int, default=1024, help="residues read around each of a longer chain")
    score.add_argument("--quiet", action="store_true", help="no progress bar")
    score.set_defaults(run=_score)

    annotate = verbs.add_parser(
        "annotate",
        help="what a protein does: GO terms or EC numbers by a fine-tuned checkpoint",
        description="Terms of the chains of a structure or FASTA file, the most probable first, as tab-separated text.",
    )
    annotate.add_argument("checkpoint", help="folder or Hub name, of a classifier such as examples/function trains")
    annotate.add_argument("protein", metavar="PROTEIN", help="structure file (mmCIF, PDB) or FASTA file")
    annotate.add_argument("--chains", nargs="+", metavar="CHAIN", help="only these chains of the file")
    annotate.add_argument("--min_plddt", type=float, help="residues of predicted structures below it are not observed")
    annotate.add_argument("--top", type=int, default=10, help="terms of a chain at most (default: %(default)s)")
    annotate.add_argument("--threshold", type=float, default=0.1, help="least probability (default: %(default)s)")
    annotate.add_argument("--without_coords", action="store_true", help="withhold all coordinates")
    annotate.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    annotate.add_argument("--token_budget", type=int, default=8192, help="tokens of a batch (default: %(default)s)")
    annotate.add_argument("--window", type=int, default=1024, help="longest chain predicted in one piece, in residues")
    annotate.add_argument("--output", type=Path, metavar="FILE.tsv|FILE.json", help="write the terms here, too")
    annotate.set_defaults(run=_annotate)

    contacts = verbs.add_parser(
        "contacts",
        help="predict the contacts of a protein's chains",
        description="Probability that two residues are in contact (C-alphas less than 8 Å apart), from the attention "
        "of a checkpoint with a contact head: for each chain ID.npz, ID.tsv and ID.png, and contacts.json. Residues "
        "are counted from 1 on the deposited sequence. Where coordinates are given, the true contacts follow from the "
        "model's input: its precision is no prediction.",
    )
    contacts.add_argument("checkpoint", help="folder or Hub name, with a contact head")
    contacts.add_argument("protein", help="structure file (mmCIF, PDB) or FASTA file, plain or gzipped")
    contacts.add_argument("--chains", nargs="+", metavar="CHAIN", help="only these chains of the file, by id or name")
    contacts.add_argument("--min_plddt", type=float, help="residues of a predicted structure below it are not observed")
    contacts.add_argument("--without_coords", action="store_true", help="withhold all coordinates from the model")
    contacts.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    contacts.add_argument(
        "--window", type=int, default=1024, help="longest chain predicted in one piece, in residues; memory: its square"
    )
    contacts.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="gets the files")
    contacts.add_argument("--quiet", action="store_true", help="no progress bar")
    contacts.set_defaults(run=_contacts)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Exit code 0: done; 1: an input is unusable (one line on stderr says which and what to do);
    2: the command line is."""
    logging.basicConfig(format="%(message)s")
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = None if argv[:1] == ["train"] else build_parser().parse_args(argv)
    try:
        if arguments is None:
            _train(argv[1:])
        else:
            arguments.run(arguments)
    except (ValueError, OSError, ImportError) as error:
        print(f"coordformer: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
