"""The `coordformer` command: its verbs, their options, and how it ends.

Beside the package and not in it: importing any part of the package registers the classes with Transformers, which takes
seconds, and `coordformer --help` is to take none. What the verbs do is in `coordformer.cli`.
"""

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

GO_ON = ("prepare", "train", "embed")
"""Verbs that, stopped and called again, go on where they were."""


class _Version(argparse.Action):
    """Print the version, for which the package has to be imported, and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *arguments: Any, **keywords: Any) -> None:
        import coordformer

        print(coordformer.__version__)
        parser.exit()


def _chain_name(text: str) -> str:
    if "." in text and Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text} is a file, and no chain's name; give files before --chains")
    return text


def _add_data_set(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--data", required=True, help="folder, Parquet file or bundle, as of train")
    verb.add_argument("--split", help="only rows whose column `split` has this value")


def _add_chains(verb: argparse.ArgumentParser, which: str) -> None:
    verb.add_argument("--chains", nargs="+", type=_chain_name, metavar="NAME", help=which)
    verb.add_argument(
        "--min_plddt",
        type=float,
        help="residues of predicted structures below it are not observed; a file that states neither an experimental "
        "method nor a resolution, and has no B-factor above 100, counts as predicted",
    )


def _add_computing(verb: argparse.ArgumentParser, window: str, batches: bool = True) -> None:
    verb.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the model (default: %(default)s)"
    )
    if batches:
        verb.add_argument("--token_budget", type=int, default=8192, help="tokens of a batch (default: %(default)s)")
    verb.add_argument("--window", type=int, default=1024, help=f"{window} (default: %(default)s)")


def build_parser() -> argparse.ArgumentParser:
    """The verbs in the order of work; each has its name as `verb`. The options of `train` are left to `training`."""
    parser = argparse.ArgumentParser(
        prog="coordformer",
        description="Structure as an input of protein language models.",
        epilog="Exit codes: 0 done; 1 an input is unusable, a line on stderr says which and what to do; 2 the command "
        "line is; 130 stopped by Ctrl-C. Results are printed on stdout, progress and notes on stderr.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
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

    bundle = verbs.add_parser(
        "bundle",
        help="put a data set into one file for a bare training machine",
        description="Put a data set into one safetensors file, from which `coordformer train` runs with torch, "
        "transformers and accelerate alone.",
    )
    bundle.add_argument("data", help="folder made by `coordformer prepare`, or Parquet file")
    bundle.add_argument("output", type=Path, metavar="FILE.safetensors")
    bundle.add_argument("--split", help="only this split; all of them by default, their names are kept")

    # Its own help, too, is that of HfArgumentParser, to which all but the common options goes.
    verbs.add_parser("train", help="train a masked language model on a data set", add_help=False, allow_abbrev=False)

    evaluate = verbs.add_parser(
        "evaluate",
        help="perplexity and recovery of a checkpoint on a data set",
        description="Perplexity and recovery of masked residues.",
    )
    evaluate.add_argument("checkpoint", help="folder or Hub name")
    _add_data_set(evaluate)
    evaluate.add_argument("--protocols", nargs="+", choices=("paper", "masked15"), default=("paper", "masked15"))
    evaluate.add_argument("--draws", type=int, default=3, help="times the residues are chosen (default: %(default)s)")
    evaluate.add_argument("--without_coords", action="store_true", help="withhold all coordinates")
    evaluate.add_argument(
        "--num_rotations", type=int, default=1, help="frames whose predictions are averaged (default: %(default)s)"
    )
    _add_computing(evaluate, "longest chain predicted in one piece, in residues")
    evaluate.add_argument(
        "--output", type=Path, metavar="FILE.json", help="write all numbers here, and recovery by residue as FILE.png"
    )

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
    _add_chains(embed, "only these chains of each file, by id or name")
    _add_computing(embed, "longest chain embedded in one piece, in residues")
    embed.add_argument("--chains_per_shard", type=int, default=1000, help="default: %(default)s")

    annotate = verbs.add_parser(
        "annotate",
        help="what a protein does: GO terms or EC numbers by a fine-tuned checkpoint",
        description="Terms of the chains of a structure or FASTA file, the most probable first, as tab-separated text.",
    )
    annotate.add_argument("checkpoint", help="folder or Hub name, of a classifier such as examples/function trains")
    annotate.add_argument("protein", metavar="PROTEIN", help="structure file (mmCIF, PDB) or FASTA file")
    _add_chains(annotate, "only these chains of the file, by id or name")
    annotate.add_argument("--top", type=int, default=10, help="terms of a chain at most (default: %(default)s)")
    annotate.add_argument("--threshold", type=float, default=0.1, help="least probability (default: %(default)s)")
    annotate.add_argument("--without_coords", action="store_true", help="withhold all coordinates")
    _add_computing(annotate, "longest chain predicted in one piece, in residues")
    annotate.add_argument("--output", type=Path, metavar="FILE.tsv|FILE.json", help="write the terms here, too")

    contacts = verbs.add_parser(
        "contacts",
        help="predict the contacts of a protein's chains",
        description="Probability that two residues are in contact (C-alphas less than 8 Å apart), from the attention "
        "of a checkpoint with a contact head: for each chain ID.npz, ID.tsv and ID.png, and contacts.json. Residues "
        "are counted from 1 on the deposited sequence. Where coordinates are given, the true contacts follow from the "
        "model's input: its precision is no prediction.",
    )
    contacts.add_argument("checkpoint", help="folder or Hub name, with a contact head")
    contacts.add_argument("protein", metavar="PROTEIN", help="structure file (mmCIF, PDB) or FASTA file")
    _add_chains(contacts, "only these chains of the file, by id or name")
    contacts.add_argument("--without_coords", action="store_true", help="withhold all coordinates from the model")
    # Chains are predicted one at a time.
    _add_computing(contacts, "longest chain predicted in one piece, in residues; memory: its square", batches=False)
    contacts.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="gets the files")

    score = verbs.add_parser(
        "score",
        help="effects of substitutions in a protein",
        description="Log-likelihood ratios of mutants and wild type: scores.csv of given mutants (with Spearman's "
        "correlation where the file has DMS_score), or scan.csv and scan.png of all substitutions; and score.json, the "
        "settings.",
    )
    score.add_argument("checkpoint", help="folder or Hub name")
    score.add_argument("protein", metavar="PROTEIN", help="structure file (mmCIF, PDB) or FASTA file")
    _add_chains(score, "the chain to score, where the file has several")
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
    _add_computing(score, "residues read around each of a longer chain")

    attention = verbs.add_parser(
        "attention",
        help="what each head of a checkpoint attends to",
        description="Attention of each head against distance and sequence separation, by kind of residue, and on "
        "helices and strands, with coordinates given, withheld and shuffled: CSV files and figures.",
    )
    attention.add_argument("checkpoint", help="folder or Hub name, with any head or none")
    _add_data_set(attention)
    attention.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="gets tables and figures")
    attention.add_argument(
        "--window", type=int, default=1024, help="of longer chains the middle part of this many residues is looked at"
    )
    attention.add_argument("--seed", type=int, default=0, help="of shuffled coordinates and intervals")

    invariance = verbs.add_parser(
        "invariance",
        help="how a checkpoint depends on the frame, and where it fails",
        description="Spread of the predictions between rotated copies, gain of averaging over them, and perplexity and "
        "recovery with noise, with missing coordinates, by length and by structural class: points.csv, "
        "invariance.json, invariance.png and report.md.",
    )
    invariance.add_argument("checkpoint", help="folder or Hub name")
    _add_data_set(invariance)
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
    _add_computing(invariance, "longest chain predicted in one piece, in residues")

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

    export = verbs.add_parser(
        "export",
        help="make a folder that is ready for the Hub",
        description="Make a folder of a checkpoint that loads with and without this package, with its code, license "
        "and model card, and check that it does.",
    )
    export.add_argument("checkpoint", help="folder or Hub name, with any head or none")
    export.add_argument("output", type=Path, metavar="FOLDER", help="gets all that goes to the Hub")
    export.add_argument(
        "--evaluation",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE.json",
        help="what `coordformer evaluate --output` wrote: the numbers of the model card",
    )
    export.add_argument(
        "--name", metavar="USER/NAME", help="on the card: where it will be pushed to (default: FOLDER's)"
    )
    export.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the weights (default: the checkpoint's)")
    export.add_argument("--license", default="apache-2.0", help="of the weights (default: %(default)s)")
    export.add_argument("--datasets", nargs="+", default=[], metavar="NAME", help="that it was trained on")
    export.add_argument("--base_model", metavar="NAME", help="that it was trained from")
    export.add_argument("--no_check", action="store_true", help="do not load the folder without the package")

    push = verbs.add_parser(
        "push",
        help="upload an exported folder to the Hub",
        description="Upload a folder made by `coordformer export` to the Hub, as the account of `hf auth login`.",
    )
    push.add_argument("folder", type=Path, metavar="FOLDER", help="made by `coordformer export`")
    push.add_argument("repo_id", metavar="REPO_ID", help="USER/NAME; made if there is none")
    push.add_argument("--revision", help="branch (default: main)")
    push.add_argument("--private", action="store_true", help="a new repository is private")
    push.add_argument("--commit_message", help="default: the Hub's own")
    push.add_argument("--create_pr", action="store_true", help="open a pull request")

    for verb in verbs.choices.values():
        verb.add_argument("--json", action="store_true", help="print the result as one JSON object, and nothing else")
        verb.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    The result goes to stdout, for people or with `--json` as one JSON object; all else goes to stderr.

    Returns:
        The exit code: 0 done; 1 an input is unusable (one line on stderr says which and what to do); 130 stopped by
        Ctrl-C. An unusable command line exits with 2.
    """
    # Ours alone: the libraries print their own.
    logger = logging.getLogger("coordformer")
    if not logger.handlers:
        logger.addHandler(handler := logging.StreamHandler())
        handler.setFormatter(logging.Formatter("%(message)s"))
    parser = build_parser()
    arguments, others = parser.parse_known_args(argv)
    if arguments.verb == "train":
        arguments.options = others
    elif others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    try:
        from coordformer import cli

        if arguments.quiet:
            cli.hide_progress_bars()
        # What libraries print is no part of the result.
        with contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext():
            summary, text = getattr(cli, arguments.verb)(arguments)
        if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
            print(json.dumps(summary, indent=2) if arguments.json else text)
        if arguments.verb == "train":
            cli.leave_processes()
    except (ValueError, OSError, ImportError) as error:
        reason = str(error)
        if isinstance(error, FileNotFoundError) and error.filename and reason.startswith("[Errno"):
            reason = f"{error.filename}: no such file; check the name"
        print(f"coordformer: {' '.join(reason.split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        again = "; run the same command again to go on" if arguments.verb in GO_ON else ""
        print(f"\ncoordformer: stopped{again}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
