"""The `coordformer` command: the options of each verb, once, and how it ends.

Beside the package and not in it: importing any part of the package brings numpy and gemmi, for which
`coordformer --help` is not to wait. A verb is a function of the package and a table of options, whose
names are the parameters of that function; its module's `describe` makes a short text of what the function returns.
"""

import argparse
import contextlib
import difflib
import gc
import importlib
import itertools
import json
import logging
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

Options = dict[str, dict[str, Any]]


class InputPath(str):
    """Of a file or folder to read: looked for before anything is loaded."""


def mutant(text: str) -> str:
    return InputPath(text) if text.lower().endswith(".csv") else text


def chain_name(text: str) -> str:
    if "." in text and Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text} is a file, and no chain's name; give files before --chains")
    return text


def shares(text: str) -> dict[str, float]:
    """`train=0.9,valid=0.1` as a dictionary."""
    try:
        return {name.strip(): float(share) for name, share in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write names and shares like train=0.9,valid=0.1") from None


def names(text: str) -> tuple[str, ...]:
    return tuple(text.replace(",", " ").split())


def number(text: str) -> float:
    """Of several, so that others than blanks may stand between them."""
    try:
        return float(text)
    except ValueError:
        fix = f"; put blanks between several, {text.replace(',', ' ')}" if "," in text else ""
        raise argparse.ArgumentTypeError(f"{text!r} is no number{fix}") from None


def amino_acids(text: str) -> str:
    if text.upper() in THREE_LETTERS:
        letters = "".join(dict.fromkeys(reversed(text.upper())))
        fix = f"write its one letter, or {letters} if these letters are meant"
        raise argparse.ArgumentTypeError(f"{text!r} is the code of one amino acid; {fix}")
    if odd := sorted(set(text) - set(AMINO_ACIDS)):
        raise argparse.ArgumentTypeError(f"{text!r} has {', '.join(odd)} in it; letters are among {AMINO_ACIDS}")
    return text


# --- Options: by what is written, what argparse takes ---


def option(name: str, text: str, default: Any = None, **more: Any) -> Options:
    """One with a value, of the type of its default, which its help names."""
    if isinstance(default, int | float | str):
        text = f"{text} (default: %(default)s)"
    if isinstance(default, int | float):
        more = {"type": type(default), **more}
    return {name: {"help": text, "default": default, **more}}


def switch(name: str, text: str, action: str = "store_true", **more: Any) -> Options:
    """One without a value."""
    return {name: {"help": text, "action": action, **more}}


def argument(name: str, text: str, **more: Any) -> Options:
    """One that is given by its place."""
    return {name: {"help": text, **more}}


def folder(text: str) -> Options:
    return {"--output": {"required": True, "type": Path, "metavar": "FOLDER", "help": f"gets {text}"}}


def window(text: str) -> Options:
    return option("--window", f"{text}, in residues", 1024)


def parts(entries: int = 1000) -> Options:
    share = "do every Nth part, from the Kth on: the jobs of an array, 1/N to N/N, together write what one run writes"
    entry = "structure files, sequences or rows that are read, predicted and written at once"
    return option("--entries_per_part", entry, entries) | option("--shard", share, metavar="K/N")


CHECKPOINT = argument("checkpoint", "folder or Hub name")
CHECKPOINT_AND_INPUTS = CHECKPOINT | argument(
    "inputs",
    "structure (mmCIF, PDB) and FASTA files, plain or gzipped, tar archives, folders of them, and data sets (folder "
    "made by `prepare`, Parquet or packed file)",
    nargs="+",
    type=InputPath,
    metavar="PATH",
)
MIN_PLDDT = option(
    "--min_plddt",
    "residues of predicted structures below it are not observed; a file that states neither an experimental method nor "
    "a resolution, and has no B-factor above 100, counts as predicted",
    type=float,
)
CHOICE = (
    option("--split", "of data sets only rows whose column `split` has this value")
    | option("--chains", "only these of each file, by id or name", dest="chain_ids", nargs="+", type=chain_name)
    | MIN_PLDDT
    | switch("--complex", "each structure file is one complex, and not chain by chain", dest="as_complex")
    | option("--assembly", "with --complex: the biological assembly of this name, 1 in most entries", metavar="NAME")
)
COMPUTING = option("--dtype", "of the model", "float32", choices=("float32", "bfloat16")) | option(
    "--token_budget", "tokens of a batch", 8192
)
PREDICTION = CHOICE | COMPUTING | switch("--without_coords", "give the model no coordinates")
NOISE_LEVEL = option(
    "--noise_level",
    "noise on coordinates, Å, that a model with noise conditioning is told (default: its own)",
    type=float,
)
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
THREE_LETTERS = {
    *("ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "GLY", "HIS", "ILE"),
    *("LEU", "LYS", "MET", "PHE", "PRO", "SER", "THR", "TRP", "TYR", "VAL"),
}
METHODS = ("wild_type_marginal", "masked_marginal", "pseudo_likelihood")
NUMBERINGS = ("file", "sequence")
KINDS = ("pretrained", "simulated", "esm_conditioned", "esm", "proteinmpnn")
NOISE, MISSING = (0.0, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0), (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
MASK_SAMPLES = option("--num_mask_samples", "times that the residues to be masked are chosen", 3)
SEED = option("--seed", "of what is drawn at random", 0)


# --- The verbs, in the order of work ---


@dataclass(frozen=True)
class Verb:
    """What a verb calls, `module:function` below `coordformer`, and with what."""

    calls: str
    help: str
    description: str
    options: Options
    goes_on: bool = True  # stopped and called again, where it was
    one_of: tuple[str, ...] = ()  # options of which exactly one is given


VERBS = {
    "inspect": Verb(
        "inference.inspection:inspect",
        "what is in files: chains, residue numbers, gaps, confidence",
        "A line for each chain: its residues as options and mutants call them, those with insertion codes, those "
        "without coordinates, those of low confidence, and which atoms are there. Needs no checkpoint.",
        {"inputs": CHECKPOINT_AND_INPUTS["inputs"]}
        | option("--chains", "only these of each file, by id or name", dest="chain_ids", nargs="+", type=chain_name)
        | option("--split", "of data sets only rows whose column `split` has this value")
        | option("--output", "gets a row for each residue", type=Path, metavar="FILE.csv"),
        goes_on=False,
    ),
    "prepare": Verb(
        "data.prepare:fetch_and_prepare",
        "turn structure files into a data set",
        "Turn mmCIF and PDB files, plain, gzipped or in tar archives, into Parquet shards with a datasheet. Run it "
        "again to go on after a stop.",
        argument(
            "inputs", "structure files, tar archives, or folders of them", nargs="*", type=InputPath, metavar="PATH"
        )
        | option("--fetch", "PDB ids, UniProt accessions (AlphaFold DB), or files of them", (), nargs="+", metavar="ID")
        | switch("--allow_missing", "go on where --fetch could not get all ids")
        | option("--requests_per_second", "of --fetch", 10.0)
        | option("--rcsb_url", "a mirror of RCSB's downloads, for --fetch")
        | option("--alphafold_url", "a mirror of AlphaFold DB's API, for --fetch")
        | folder("data/*.parquet and what describes them")
        | option("--atoms", "to keep, for example N,CA,C (default: CA)", ("CA",), type=names)
        | MIN_PLDDT
        | option("--min_mean_plddt", "reject predicted chains with a lower mean confidence", type=float)
        | option("--min_length", "reject shorter chains, in residues", 1)
        | option("--max_length", "reject longer chains, in residues", type=int)
        | option("--min_observed", "reject chains with a smaller share observed", 0.0)
        | switch("--keep_duplicates", "do not merge chains of equal sequence")
        | option(
            "--splits", "by sequence clusters (MMseqs2), as train=0.9,valid=0.1", type=shares, metavar="NAME=SHARE,"
        )
        | option("--identity", "of a sequence cluster", 0.3)
        | option("--coverage", "of a sequence cluster", 0.8)
        | SEED
        | option("--chains_per_shard", "rows of a file", 5000)
        | option("--workers", "processes (default: one, and one per core once that is sooner)", type=int),
    ),
    "pack": Verb(
        "data.pack:pack",
        "put a data set into one file for a bare training machine",
        "Put a data set into one safetensors file, from which `coordformer train` runs with torch, transformers and "
        "accelerate alone.",
        argument("data", "folder made by `coordformer prepare`, or Parquet file", type=InputPath)
        | argument("output", "the file to make", type=Path, metavar="FILE.safetensors")
        | option("--split", "only this split; all of them by default, their names are kept"),
        goes_on=False,
    ),
    # Its own help, too, is that of HfArgumentParser, to which all but the common options goes.
    "train": Verb("training.train:run", "train a masked language model on a data set", "", {}),
    "evaluate": Verb(
        "inference.evaluate:evaluate",
        "perplexity and recovery of a checkpoint",
        "Perplexity and recovery of masked residues.",
        CHECKPOINT_AND_INPUTS
        | option("--protocols", "paper, masked15", ("paper", "masked15"), nargs="+", choices=("paper", "masked15"))
        | MASK_SAMPLES
        | option("--num_rotations", "frames whose predictions are averaged", 1)
        | PREDICTION
        | NOISE_LEVEL
        | window("longest chain predicted in one piece")
        | parts()
        | option("--output", "gets all numbers, and FILE.png recovery by residue", type=Path, metavar="FILE.json"),
    ),
    "embed": Verb(
        "inference.embed:embed",
        "vectors of chains or residues",
        "Vectors of chains or of their residues, from the last layer of a checkpoint with any head or none, in Parquet "
        "or safetensors.",
        CHECKPOINT_AND_INPUTS
        | folder("a file for each part")
        | option("--pooling", "a vector for each chain: mean of its residues or <cls>", "mean", choices=("mean", "cls"))
        | switch("--per_residue", "one vector for each residue", "store_const", dest="pooling", const=None)
        | option("--format", "of the files", "parquet", dest="file_format", choices=("parquet", "safetensors"))
        | PREDICTION
        | NOISE_LEVEL
        | window("longest chain embedded in one piece")
        | parts(),
    ),
    "annotate": Verb(
        "inference.annotate:annotate",
        "what proteins do: GO terms, EC numbers or your own labels, by a fine-tuned checkpoint",
        "Terms of chains, the most probable first, as tab-separated text, by a classifier such as examples/function "
        "trains; or the one class, or the value, of a head for your own labels.",
        CHECKPOINT_AND_INPUTS
        | option("--top", "terms of a chain at most", 10)
        | option("--threshold", "least probability; of one class for each chain the likeliest is always there", 0.1)
        | PREDICTION
        | window("longest chain predicted in one piece")
        | parts()
        | option("--output", "gets the terms, too", type=Path, metavar="FILE.tsv|FILE.json"),
    ),
    "contacts": Verb(
        "inference.contacts:contacts",
        "predict the contacts of chains",
        "Probability that two residues are in contact (C-alphas less than 8 Å apart), from the attention of a "
        "checkpoint with a contact head: for each chain ID.npz, ID.tsv and ID.png, and contacts.json. Residues are "
        "counted from 1 on the deposited sequence; their names in the file (A52A) stand beside it. Where coordinates "
        "are given, the true contacts follow from the model's input: its precision is no prediction.",
        CHECKPOINT_AND_INPUTS
        | folder("the files")
        | PREDICTION
        | window("longest chain predicted in one piece (memory: its square)")
        | parts(64),
    ),
    "design": Verb(
        "inference.design:design_files",
        "sequences for backbones",
        "Sequences for structures: ID.fasta of each (chains joined by /, the native one first), ID.png with the "
        "probabilities, designs.csv with the best of each protein first, design.json.",
        CHECKPOINT
        | argument(
            "inputs",
            "structure files, archives, folders, data sets; a file is one complex",
            nargs="+",
            type=InputPath,
            metavar="PATH",
        )
        | folder("the files")
        | option("--num_samples", "sequences at each temperature", 8)
        | option(
            "--temperature", "one or several; 0: the likeliest letter (default: 0.1)", (0.1,), nargs="+", type=number
        )
        | option("--rounds", "1: all residues at once; N: the surest first; all: one after another (default: 1)")
        | SEED
        | option("--fixed_residues", "that keep their letters, by the file's own numbers: 'A10-A20 B52A'")
        | option("--redesigned_residues", "the only ones that get new letters")
        | option("--chains_to_design", "by name, as A,B; all by default", type=names)
        | option("--omit_aa", "letters that never appear, such as CM", "", type=amino_acids)
        | option("--bias_aa", "nats by letter, as 'W:3.0 P:-2'")
        | option("--omit_per_residue", 'letters by residue: {"A12": "CM"}', type=InputPath, metavar="FILE.json")
        | option("--bias_per_residue", 'nats by residue: {"A12": {"W": 3.0}}', type=InputPath, metavar="FILE.json")
        | option("--symmetry_residues", "groups that get one letter: 'A1,B1 A2,B2', or 'A1-A9,B1-B9'")
        | option("--symmetry_weights", "of these in the mean of their logits: '0.5,0.5 0.8,0.2'")
        | switch("--homo_oligomer", "all chains get one sequence")
        | option(
            "--pssm",
            f"(residues, 20) nats that are added to logits, columns {AMINO_ACIDS}",
            type=InputPath,
            metavar="FILE.csv|npz",
        )
        | option("--gaps", "written for residues without coordinates and letter", "X", choices=("X", "-"))
        | switch("--rescore", "also score by pseudo-likelihood: a row for each designed residue of each sequence")
        | switch("--probabilities", "also ID.npz and ID.csv, before and after bias and temperature")
        | switch("--structures", "also ID.cif of the best design, with confidence as B-factor")
        | switch("--no_figures", "no ID.png, which can take longer than a design", "store_false", dest="figures")
        | option("--numbering", "of residues (default: file)", choices=NUMBERINGS)
        | switch("--single_chains", "design each chain of a file alone", "store_false", dest="as_complex")
        | option("--split", "of data sets only rows whose column `split` has this value")
        | option("--chains", "only these of each file, by id or name", dest="chain_ids", nargs="+", type=chain_name)
        | MIN_PLDDT
        | option("--assembly", "the biological assembly of this name, 1 in most entries", metavar="NAME")
        | option("--noise_level", "as of score, for a new backbone (default: 0.2)", type=float)
        | COMPUTING
        | parts(16),
    ),
    "score": Verb(
        "inference.score:score",
        "effects of substitutions, and whole sequences",
        "Log-likelihood ratios of mutants and wild type: scores.csv of given mutants (with Spearman's correlation "
        "where the file has DMS_score), or scan.csv and a heat map of each chain with all substitutions; or mean "
        "negative log-likelihoods of sequences on a structure; score.json.",
        CHECKPOINT_AND_INPUTS
        | folder("scores.csv, the scan, or sequences.csv")
        | option(
            "--mutants",
            "such as A24G or A24G:T30S of one chain, S52AA where 52A becomes A, SH195A of chain H, WT; or FILE.csv "
            "with the column mutant, and of several chains id",
            nargs="+",
            type=mutant,
            metavar="MUTANT",
        )
        | switch(
            "--scan", "all substitutions of each residue, one at a time", "store_const", dest="mutants", const=None
        )
        | option("--residues", "of --scan and --sequences only these, the others are context: 'A10-A20 B52A C'")
        | option("--method", "a pass a chain, a residue, or a residue of each mutant", METHODS[1], choices=METHODS)
        | option(
            "--numbering",
            "of residues in mutants and --residues: the file's own numbers with insertion codes, or positions in the "
            "deposited sequence, with residues that were not observed; FASTA has positions alone (default: file)",
            choices=NUMBERINGS,
        )
        | option(
            "--offset",
            "position of the sequence's first residue (default: 1); implies --numbering sequence",
            type=int,
        )
        | option(
            "--sequences",
            "whole sequences on the structures, chains joined by /: sequences.csv with the likeliest first, "
            "residues.csv; a structure file is one complex",
            type=InputPath,
            metavar="FILE.fasta",
        )
        | option(
            "--ensemble",
            "further checkpoints: scores are the mean of all; not with --sequences",
            (),
            nargs="+",
            metavar="CHECKPOINT",
        )
        | switch("--no_figures", "no heat maps of a scan", "store_false", dest="figures")
        | PREDICTION
        | NOISE_LEVEL
        | window("what is read around each residue of a longer chain; not with --sequences")
        | parts(16),
        one_of=("--mutants", "--scan", "--sequences"),
    ),
    "attention": Verb(
        "analysis.attention:analyze_attention",
        "what each head of a checkpoint attends to",
        "Attention of each head against distance and sequence separation, by kind of residue, and on helices and "
        "strands, with coordinates given, not given and shuffled: CSV files and figures.",
        CHECKPOINT_AND_INPUTS
        | folder("tables and figures")
        | CHOICE
        | window("of longer chains the middle part is looked at")
        | SEED,
        goes_on=False,
    ),
    "robustness": Verb(
        "analysis.robustness:measure_robustness",
        "how a checkpoint depends on the frame, and where it fails",
        "Spread of the predictions between rotated copies, gain of averaging over them, and perplexity and recovery "
        "with noise, with missing coordinates, by length and by structural class: points.csv, robustness.json, "
        "robustness.png and report.md.",
        CHECKPOINT_AND_INPUTS
        | folder("the report")
        | option("--labels", "columns id and scop_sccs (default: of the data)", type=InputPath, metavar="FILE.parquet")
        | option("--baseline", "a model without coordinates to compare with", metavar="CHECKPOINT")
        | option("--num_rotations", "frames of a chain", 16)
        | option("--noise", "standard deviations in Å (default: 0 to 5)", NOISE, nargs="+", type=number)
        | option("--missing", "shares of the residues (default: 0 to 1)", MISSING, nargs="+", type=number)
        | MASK_SAMPLES
        | SEED
        | switch("--quick", "for a first look: 100 chains, 4 frames, one choice of masked residues, fewer values")
        | CHOICE
        | COMPUTING
        | window("longest chain predicted in one piece"),
        goes_on=False,
    ),
    "convert": Verb(
        "training.conversion:convert",
        "make a checkpoint of the paper's published weights, of ESM-2 or of ProteinMPNN",
        "Make a folder that Transformers loads of the weights that the paper's authors published, of an ESM-2 "
        "checkpoint, or of weights of ProteinMPNN.",
        argument("source", "file of weights (.pt, .safetensors); esm: folder, Hub name", metavar="SOURCE")
        | argument("output", "gets the model, and for proteins its processor", type=Path, metavar="FOLDER")
        | option("--kind", "which model the weights are of", required=True, choices=KINDS)
        | switch(
            "--without_coords",
            "the result reads no coordinates; needed for the paper's models without them, whose files do not tell",
        ),
        goes_on=False,
    ),
    "export": Verb(
        "hub.export:export",
        "make a folder that is ready for the Hub",
        "Make a folder of a checkpoint that loads with and without this package, with its code, license and model "
        "card, and check that it does.",
        CHECKPOINT
        | argument("output", "gets all that goes to the Hub", type=Path, metavar="FOLDER")
        | option("--evaluation", "reports of `evaluate --output`", (), dest="evaluations", nargs="+", type=InputPath)
        | option("--name", "on the card: where it will be pushed to (default: FOLDER's)", metavar="USER/NAME")
        | option("--dtype", "of the weights (default: the checkpoint's)", choices=("float32", "bfloat16"))
        | option("--license", "of the weights (default: apache-2.0, of ProteinMPNN's layers mit)")
        | option("--datasets", "that it was trained on", (), nargs="+", metavar="NAME")
        | option("--base_model", "that it was trained from", metavar="NAME")
        | switch("--no_check", "do not load the folder without the package", "store_false", dest="check"),
        goes_on=False,
    ),
    "push": Verb(
        "hub.push:push",
        "upload an exported folder to the Hub",
        "Upload a folder made by `coordformer export` to the Hub, as the account of `hf auth login`.",
        argument("folder", "made by `coordformer export`", type=Path, metavar="FOLDER")
        | argument("repo_id", "USER/NAME; made if there is none", metavar="REPO_ID")
        | option("--revision", "branch (default: main)")
        | switch("--private", "a new repository is private")
        | option("--commit_message", "default: the Hub's own")
        | switch("--create_pr", "open a pull request"),
        goes_on=False,
    ),
}


class _Version(argparse.Action):
    """Print the version, for which the package has to be imported, and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *arguments: Any, **keywords: Any) -> None:
        import coordformer

        print(coordformer.__version__)
        parser.exit()


class _VerbParser(argparse.ArgumentParser):
    """Refuses, in a line, an option that it does not have; a part of a name is none."""

    greedy: Sequence[str] = ()  # options that were given and take several values

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[override]
        # Before argparse misses what was misspelled.
        words = itertools.takewhile("--".__ne__, args or ())
        given = [name for word in words if (name := word.partition("=")[0]).startswith("--")]
        for name in given if self.add_help else ():
            if name not in self._option_string_actions:
                near = difflib.get_close_matches(name, self._option_string_actions, n=1)
                self.error(f"there is no option {name}" + "".join(f"; did you mean {each}?" for each in near))
        self.greedy = [name for name in given if self.add_help and self._option_string_actions[name].nargs == "+"]
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        fix = "" if message.endswith("?") else f"; `{self.prog} --help` lists the options"
        if self.greedy and "arguments are required" in message:
            fix = f"; {' and '.join(self.greedy)} takes all that follows up to the next option: put it last"
        self.exit(2, f"{self.prog}: {message}{fix}\n")


class _Parser(argparse.ArgumentParser):
    """Refuses, in a line, a verb that there is not."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[override]
        word = next(iter(sys.argv[1:] if args is None else args), "-")
        if not word.startswith("-") and word not in VERBS:
            near = difflib.get_close_matches(word, VERBS, n=1)
            fix = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(VERBS)}"
            self.exit(2, f"{self.prog}: there is no verb {word}; {fix}\n")
        return super().parse_known_args(args, namespace)


def build_parser() -> argparse.ArgumentParser:
    """The verbs with their options; each has its name as `verb`."""
    parser = _Parser(
        prog="coordformer",
        allow_abbrev=False,
        description="Structure as an input of protein language models.",
        epilog="Exit codes: 0 done; 1 an input is unusable, a line on stderr says which and what to do; 2 the command "
        "line is; 130 stopped by Ctrl-C. Results are printed on stdout, progress and notes on stderr.",
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help="show the version and exit"
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=_VerbParser)
    for name, verb in VERBS.items():
        added = verbs.add_parser(
            name, help=verb.help, description=verb.description, add_help=name != "train", allow_abbrev=False
        )
        # Of two options of one parameter one is to be given at most.
        places = Counter(keywords.get("dest", flag.lstrip("-")) for flag, keywords in verb.options.items())
        either: Any = added
        if max(places.values(), default=0) > 1:
            either = added.add_mutually_exclusive_group(required=bool(verb.one_of))
        for flag, keywords in verb.options.items():
            several = places[keywords.get("dest", flag.lstrip("-"))] > 1 or flag in verb.one_of
            (either if several else added).add_argument(flag, **keywords)
        added.add_argument("--json", action="store_true", help="print the result as one JSON object, and nothing else")
        added.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    The result goes to stdout, for people or with `--json` as one JSON object; all else goes to stderr.

    Returns:
        The exit code: 0 done; 1 an input is unusable (one line on stderr says which and what to do); 130 stopped by
        Ctrl-C. An unusable command line exits with 2.
    """
    try:
        return _run(argv)
    finally:
        # What is done, or has failed, stays so: a late Ctrl-C would change the exit code to 120.
        if argv is None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(argv: Sequence[str] | None) -> int:
    """`main` until its exit code is known."""
    # Ours alone: the libraries print their own.
    logging.getLogger("coordformer").handlers[:] = [handler := _BesideBars()]
    handler.setFormatter(logging.Formatter("coordformer: %(message)s"))
    parser = build_parser()
    arguments, others = parser.parse_known_args(argv)
    options = vars(arguments)
    name, as_json, quiet = (options.pop(each) for each in ("verb", "json", "quiet"))
    if name == "train":
        options["options"] = others
    elif others:
        words = list(sys.argv[1:] if argv is None else argv)
        parser.exit(2, f"coordformer {name}: {_stray(VERBS[name].options, words, others[0])}\n")
    for path in _input_paths(options.values()):
        if not os.path.exists(path):
            print(f"coordformer: {path}: no such file or folder; check the path", file=sys.stderr)
            return 1
    place, _, function = VERBS[name].calls.partition(":")
    try:
        if quiet:
            hide_progress_bars()
        # What libraries print is no part of the result.
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            with contextlib.nullcontext() if argv is not None else _for_good():
                module = importlib.import_module(f"coordformer.{place}")
            summary = getattr(module, function)(**options, progress=not quiet)
        if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
            print(json.dumps(summary, indent=2) if as_json else module.describe(summary))
            if options.get("output") is not None and not as_json:
                print(f"output: {options['output']}")
            if summary.get("missing"):
                print(
                    f"coordformer: {summary['missing']} of {summary['parts']} parts are left to others", file=sys.stderr
                )
        if name == "train":
            module.leave_processes()
    except BrokenPipeError:  # whoever read stdout, as `head` does, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError) as error:
        reason = str(error)
        if isinstance(error, FileNotFoundError) and error.filename and reason.startswith("[Errno"):
            reason = f"{error.filename}: no such file; check the name"
        print(f"coordformer: {' '.join(reason.split())}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    except KeyboardInterrupt:
        again = "; run the same command again to go on" if VERBS[name].goes_on else ""
        print(f"\ncoordformer: stopped{again}", file=sys.stderr)
        return 130
    return 0


class _BesideBars(logging.StreamHandler):
    """Writes lines of their own to stderr, while there are progress bars, too."""

    def emit(self, record: logging.LogRecord) -> None:
        bars: Any = sys.modules.get("tqdm")
        with contextlib.nullcontext() if bars is None else bars.tqdm.external_write_mode(file=sys.stderr):
            super().emit(record)


def _stray(options: Options, words: Sequence[str], stray: str) -> str:
    """What to do with a word that no option takes: what is before it may be the first of several values."""
    place = words.index(stray)
    start = next((place for place in range(place, -1, -1) if words[place].startswith("--")), None)
    name, equals, value = ("" if start is None else words[start]).partition("=")
    keywords = options.get(name, {})
    if start is None or keywords.get("type", names) is not names or {"action", "choices", "metavar"} & set(keywords):
        return f"{stray} belongs to no option; `coordformer VERB --help` lists them"
    values = [*[value] * bool(equals), *itertools.takewhile(lambda word: not word.startswith("--"), words[start + 1 :])]
    return f"{name} takes one text; put several in quotes: {name} '{' '.join(values)}'"


def _input_paths(values: Iterable[Any]) -> Iterator[InputPath]:
    for value in values:
        yield from (each for each in (value if isinstance(value, list) else [value]) if isinstance(each, InputPath))


@contextlib.contextmanager
def _for_good() -> Iterator[None]:
    """Of imports into a process of our own: looking for garbage among what stays takes an eighth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def hide_progress_bars() -> None:
    """Those of the libraries, too: of weights that are loaded, files that are fetched, data sets that are read."""
    # Read when the libraries are imported, which takes seconds.
    os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    if "huggingface_hub" in sys.modules:
        from transformers.utils import logging

        logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
