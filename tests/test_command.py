"""The command as a whole: verbs, options, exit codes, and what goes to which stream."""

import importlib
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from conftest import CHAINS, STRUCTURES, hear_ctrl_c, make_model

import coordformer_command
from coordformer import CoordformerProcessor
from coordformer.analysis.robustness import MISSING, NOISE
from coordformer.data.collator import PROTOCOLS
from coordformer.inference.embed import POOLINGS
from coordformer.inference.embeddings import FORMATS
from coordformer.inference.marginals import METHODS
from coordformer.inference.runner import Inputs
from coordformer.model.residues import NUMBERINGS
from coordformer.training.conversion import PAPER_KINDS
from coordformer_command import VERBS, build_parser, main

NAMES = ["inspect", "prepare", "pack", "train", "evaluate", "embed", "annotate", "contacts", "design", "score",
         "attention", "robustness", "convert", "export", "push"]  # fmt: skip
STRUCTURE = str(STRUCTURES / "1orc.pdb.gz")
ROOT = Path(__file__).parent.parent


def parsers() -> dict:
    (verbs,) = (action for action in build_parser()._actions if action.dest == "verb")
    return verbs.choices


# --- options ---------------------------------------------------------------------------------------------------------


def test_verbs_come_in_the_order_of_work(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    assert [word for word in listed if word in NAMES] == NAMES == list(parsers()) == list(VERBS)


def function_at(verb: str):
    """Module and name of what a verb calls."""
    place, _, name = VERBS[verb].calls.partition(":")
    return importlib.import_module(f"coordformer.{place}"), name


def function_of(verb: str):
    """What a verb calls, with its module."""
    module, name = function_at(verb)
    return module, getattr(module, name)


@pytest.mark.parametrize("verb", [name for name in NAMES if name != "train"])
def test_options_are_the_parameters_of_what_does_the_work(verb):
    """Each option is a parameter with the same default, and each parameter an option."""
    module, function = function_of(verb)
    assert callable(module.describe)
    parameters = dict(inspect.signature(function).parameters)
    assert parameters.pop("progress").default is True
    if parameters.pop("reading", None) is not None:
        parameters = dict(inspect.signature(Inputs).parameters) | parameters
    if parameters.pop("options", None) is not None:  # those of `prepare`
        parameters = dict(inspect.signature(module.PrepareSettings).parameters) | parameters
    no_options = {"atoms": verb != "prepare", "optional_atoms": True, "failed": True, "progress": True}
    expected = {name: each.default for name, each in parameters.items() if not no_options.get(name)}
    asked = {action.dest: action for action in parsers()[verb]._actions if action.dest not in ("help", "json", "quiet")}
    assert set(asked) - {"shard", "entries_per_part"} == set(expected) - {"shard", "entries_per_part"}
    for name, action in asked.items():
        default = expected.get(name, inspect.Parameter.empty)
        if default is inspect.Parameter.empty:
            assert action.required or action.nargs == "*", name
        elif isinstance(action.default, tuple):
            assert action.default == tuple(default), name
        elif name == "pooling":
            assert default == "mean"
        else:
            assert action.default == default, name


def test_help_imports_nothing_that_takes_time():
    program = (
        "import sys\nfrom coordformer_command import main\n"
        "for verb in sys.argv[1:]:\n"
        "    try:\n        main([verb, '--help'])\n"
        "    except SystemExit as ended:\n        assert ended.code == 0\n"
        "print('imported:', {'coordformer', 'torch', 'transformers', 'numpy', 'gemmi', 'pyarrow'} & set(sys.modules))"
    )
    verbs = [verb for verb in NAMES if verb != "train"]
    done = subprocess.run([sys.executable, "-c", program, *verbs], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("imported: set()\n"), done.stderr
    assert done.stdout.count("usage: coordformer ") == len(verbs)


def test_a_folder_of_the_same_name_does_not_hide_the_package(tmp_path):
    """As in the folder that holds the clone; an installation by a finder would lose it there, see the Makefile."""
    (tmp_path / "coordformer").mkdir()
    program = "import coordformer; coordformer.read_chains"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


def test_the_same_names_mean_the_same_everywhere():
    options: dict[str, set] = {}
    for verb, parser in parsers().items():
        mine = {name: action for action in parser._actions for name in action.option_strings}
        assert {"--json", "--quiet"} <= set(mine), verb
        assert ("--output" in mine) or verb in ("pack", "convert", "export", "push", "train"), verb
        for name, action in mine.items():
            how = (action.nargs, action.type, type(action).__name__, tuple(action.choices or ()))
            options.setdefault(name, set()).add(how)
    different = {name for name, ways in options.items() if len(ways) > 1}
    assert different == set()


def test_choices_are_those_of_the_package():
    choices = {
        (verb, action.dest): tuple(action.choices) for verb, parser in parsers().items() for action in parser._actions
        if action.choices
    }  # fmt: skip
    assert choices["score", "numbering"] == NUMBERINGS
    assert choices["score", "method"] == METHODS and choices["evaluate", "protocols"] == tuple(PROTOCOLS)
    assert set(choices["embed", "pooling"]) | {None} == set(POOLINGS)
    assert choices["embed", "file_format"] == tuple(FORMATS)
    defaults = {action.dest: action.default for action in parsers()["robustness"]._actions}
    assert (defaults["noise"], defaults["missing"]) == (NOISE, MISSING)
    assert set(choices["convert", "kind"]) == {*PAPER_KINDS, "esm", "proteinmpnn"}


def test_names_of_chains_do_not_swallow_a_file(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["embed", "checkpoint", "--output", "out", "--chains", "A", STRUCTURE])
    assert f"--chains: {STRUCTURE} is a file, and no chain's name; give files before" in capsys.readouterr().err
    parsed = build_parser().parse_args(["embed", "checkpoint", STRUCTURE, "--output", "out", "--chains", "A", "P1.2"])
    assert parsed.chain_ids == ["A", "P1.2"] and parsed.inputs == [STRUCTURE]


@pytest.mark.parametrize(
    ("verb", "words", "given", "summary", "text"),
    [
        (
            "export",
            ["runs/demo", "out", "--evaluation", "a.json", "b.json", "--datasets", "PDB", "--no_check", "--quiet"],
            {"checkpoint": "runs/demo", "output": Path("out"), "evaluations": ["a.json", "b.json"],
             "name": None, "license": None, "datasets": ["PDB"], "base_model": None, "dtype": None,
             "check": False, "progress": False},
            {"model": "M", "parameters": 1000, "dtype": "float32", "checked": []},
            "M of 1,000 parameters in float32: not checked\noutput: out\n",
        ),
        (
            "push",
            ["out", "me/model", "--revision", "v1", "--private", "--commit_message", "First", "--create_pr"],
            {"folder": Path("out"), "repo_id": "me/model", "revision": "v1", "private": True,
             "commit_message": "First", "create_pr": True, "progress": True},
            {"url": "https://huggingface.co/me/model", "revision": "v1", "commit": "ab12", "changed": True},
            "https://huggingface.co/me/model (v1, commit ab12)\n",
        ),
    ],
)  # fmt: skip
def test_options_reach_what_does_the_work(tmp_path, monkeypatch, capsys, verb, words, given, summary, text):
    def work(**options):
        assert options == given
        return summary

    monkeypatch.setattr(function_of(verb)[0], verb, work)
    monkeypatch.setattr(coordformer_command, "hide_progress_bars", lambda: None)
    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "b.json"):
        Path(name).touch()
    assert main([verb, *words]) == 0
    assert capsys.readouterr().out == text


# --- streams and exit codes ------------------------------------------------------------------------------------------


def test_json_is_alone_on_stdout(monkeypatch, capsys):
    counts = {"chains": 1, "residues": 2, "bytes": 3_000_000}

    def noisy(**options):
        print("a library that prints")
        print("a note", file=sys.stderr)
        return counts

    monkeypatch.setattr(function_of("pack")[0], "pack", noisy)
    data = str(STRUCTURES)
    assert main(["pack", data, "out", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == counts and "a library that prints" in printed.err
    assert main(["pack", data, "out"]) == 0
    assert capsys.readouterr().out.endswith("\n1 chain with 2 residues, 3.0 MB\noutput: out\n")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("--data is\n  wrong; mend it"), 1, "coordformer: --data is wrong; mend it"),
        (OSError(28, "No space left"), 1, "coordformer: [Errno 28] No space left"),
        (ImportError("gemmi is missing"), 1, "coordformer: gemmi is missing"),
        (KeyboardInterrupt(), 130, "coordformer: stopped"),
    ],
)
def test_exit_codes(monkeypatch, capsys, error, code, line):
    def fail(**options):
        raise error

    for verb in ("push", "train"):
        monkeypatch.setattr(*function_at(verb), fail)
    for command in (["push", "folder", "me/model", "--json"], ["train", "preset.yaml"]):
        assert main(command) == code
        printed = capsys.readouterr()
        again = "; run the same command again to go on" * (code == 130 and command[0] == "train")
        assert printed.out == "" and printed.err.strip() == line + again


def test_an_unusable_command_line_exits_with_2(capsys):
    for words, message in (
        ([], "required: VERB"),
        (["embedd"], "coordformer: there is no verb embedd; did you mean embed?\n"),
        (["desgin", "checkpoint"], "coordformer: there is no verb desgin; did you mean design?\n"),
        (
            ["xyzxyz", "--help"],
            "there is no verb xyzxyz; choose one of inspect, prepare, pack, train, evaluate, embed, annotate",
        ),
        (
            ["design", "c", "x.cif", "--output", "o", "--omit_aa", "CB"],
            "argument --omit_aa: 'CB' has B in it; letters are among ACDEFGHIKLMNPQRSTVWY;",
        ),
        (["evaluate", "checkpoint"], "required: PATH"),
        (["embed", "c", "x.cif", "--chians", "A"], "embed: there is no option --chians; did you mean --chains?"),
        (["embed", "c", "x.cif", "--ouput", "o"], "embed: there is no option --ouput; did you mean --output?"),
        (["embed", "c", "x.cif", "--output", "o", "--chain=A"], "there is no option --chain; did you mean --chains?"),
        (
            ["design", "model", "a.pdb", "--output", "out", "--redesigned_residues", "H95-H102", "L3"],
            "--redesigned_residues takes one text; put several in quotes: --redesigned_residues 'H95-H102 L3'",
        ),
        (
            ["score", "model", "a.pdb", "--scan", "--output", "out", "--residues=H95", "L3", "L4", "--quiet"],
            "--residues takes one text; put several in quotes: --residues 'H95 L3 L4'",
        ),
        (
            ["design", "model", "a.pdb", "--output", "out", "--chains_to_design", "H", "L"],
            "--chains_to_design takes one text; put several in quotes: --chains_to_design 'H L'",
        ),
        (
            ["design", "model", "a.pdb", "--output", "out", "--seed", "1", "2"],
            "2 belongs to no option; `coordformer VERB",
        ),
        (
            ["design", "model", "a.pdb", "--output", "out", "--temperature", "0.1,0.5"],
            "'0.1,0.5' is no number; put blanks between several, 0.1 0.5",
        ),
        (
            ["design", "model", "a.pdb", "--output", "out", "--omit_aa", "cys"],
            "'cys' is the code of one amino acid; write its one letter, or SYC if these letters are meant",
        ),
        (["pack", "data", "out", "--zzz"], "no option --zzz; `coordformer pack --help` lists the options"),
        (
            ["score", "c", "--output", "o", "--scan", "--ensemble", "d", "x.cif"],
            "required: PATH; --ensemble takes all that follows up to the next option: put it last",
        ),
        (["embed", "c", "x.cif", "--output", "o", "--pooling", "cls", "--per_residue"], "not allowed with argument"),
        (["score", "c", "x.cif", "--output", "o"], "one of the arguments --mutants --scan --sequences is required"),
        (["prepare", "--output", "o", "--splits", "train"], "write names and shares like train=0.9,valid=0.1"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(words)
        error = capsys.readouterr().err
        assert message in error and (len(words) < 2 or len(error.splitlines()) == 1)


def test_inputs_are_looked_for_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail(f"{name} was imported"))
    there, missing = str(tmp_path), str(tmp_path / "none.x")
    table = missing.replace(".x", ".csv")
    for words, name in (
        (["embed", "model", there, missing, "--output", "out"], missing),
        (["design", "model", there, "--output", "out", "--pssm", missing], missing),
        (["score", "model", there, "--output", "out", "--mutants", table], table),
        (["score", "model", there, "--output", "out", "--sequences", missing], missing),
        (["robustness", "model", there, "--output", "out", "--labels", missing], missing),
        (["prepare", missing, "--output", "out"], missing),
        (["pack", missing, "out"], missing),
        (["export", "model", "out", "--evaluation", missing], missing),
    ):
        assert main(words) == 1
        assert capsys.readouterr().err == f"coordformer: {name}: no such file or folder; check the path\n"


def test_ctrl_c_ends_in_one_line_and_the_next_run_goes_on(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for number in range(200):
        shutil.copy(STRUCTURES / "1BD2.cif.gz", tmp_path / "in" / f"{number:03}.cif.gz")
    command = [sys.executable, "-m", "coordformer", "prepare", str(tmp_path / "in"), "--output", str(tmp_path / "out"),
               "--workers", "1", "--quiet", "--json"]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c
    )
    first = tmp_path / "out" / "reading" / "part-0000000.parquet"
    while not first.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert err.strip() == "coordformer: stopped; run the same command again to go on"
    assert first.exists() and main(command[3:]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == 200


# --- what is printed -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    model = make_model(contact_head=True)
    torch.nn.init.normal_(model.coordformer.contact_head.weight, std=30.0)
    model.save_pretrained(folder / "model")
    CoordformerProcessor().save_pretrained(folder / "model")
    pq.write_table(pq.read_table(CHAINS).slice(0, 3), folder / "chains.parquet")
    return folder


def test_results_are_short_and_readable(folder, tmp_path, capsys):
    def run(*words) -> list[str]:
        assert main([*map(str, words), "--quiet"]) == 0
        return capsys.readouterr().out.splitlines()

    model, data = folder / "model", folder / "chains.parquet"
    report = tmp_path / "new" / "evaluation.json"
    head, columns, line, _ = run("evaluate", model, data, "--protocols", "masked15", "--output", report)
    numbers = json.loads(report.read_text())
    assert head.startswith("model on 3 chains with ") and head.endswith("; coordinates: linear; float32")
    low, high = numbers["masked15"]["perplexity_interval"]
    assert columns.split() == ["protocol", "perplexity", "recovery,", "%"]
    assert line.startswith(f"masked15  {numbers['masked15']['perplexity']:.2f} ({low:.2f} to {high:.2f})")
    assert f"  {100 * numbers['masked15']['recovery']:.1f} (" in line
    assert (tmp_path / "new" / "evaluation.png").read_bytes().startswith(b"\x89PNG")

    out = tmp_path / "out"
    written = f"output: {out}"
    assert run("embed", model, STRUCTURE, "--output", out) == ["1 chain with 71 residues in 1 shard", written]
    out, written = tmp_path / "contacts", f"output: {tmp_path}/contacts"
    line, where = run("contacts", model, STRUCTURE, "--output", out)
    assert line.startswith("1ORC_A: 71 residues, coordinates given; precision at L: short 0.")
    assert where == written
    for options in (["A66G", "DA56AA", "WT"], ["A71G", "D57A", "WT", "--numbering", "sequence"]):
        line, _ = run("score", model, STRUCTURE, "--output", tmp_path / options[0], "--mutants", *options)
        assert line == "1ORC_A: 3 mutants of 71 residues by masked_marginal, coordinates given"
    own, counted = ((tmp_path / name / "scores.csv").read_text().split() for name in ("A66G", "A71G"))
    assert [line.split(",")[3:] for line in own] == [line.split(",")[3:] for line in counted]
    assert own[2].endswith(",A56A,57,true") and own[3] == "1ORC_A,1orc.pdb.gz,WT,0,,,true"
    assays = tmp_path / "assay.csv"
    assays.write_text("mutant,DMS_score\nM1A,1\nE2G,2\nQ3A,0\n")
    line, _ = run("score", model, STRUCTURE, "--mutants", assays, "--output", tmp_path / "assay")
    assert "; Spearman's correlation with DMS_score " in line
    line, _ = run("pack", data, tmp_path / "a.safetensors")
    assert line.startswith("3 chains with ") and line.endswith(" MB")
    first, second, _ = run("prepare", STRUCTURE, "--output", tmp_path / "data", "--workers", 1)
    assert first == "1 chain with 71 residues of 1 file"
    assert second == "merged as duplicates: 0 chains; left out, as rejected.tsv says: 0 files or chains"
    first, second, _ = run("attention", model, data, "--output", tmp_path / "attention", "--window", 64)
    assert first.startswith("3 chains with ") and second.count(".") == 3  # layer 1, layer 2, and of "layer.head"


def test_quiet_leaves_stderr_empty(folder, tmp_path):
    whole = str(STRUCTURES / "1A8O.cif.gz")  # of what was not observed a line speaks in any case
    words = ["embed", str(folder / "model"), whole, "--output", str(tmp_path), "--quiet", "--json"]
    done = subprocess.run([sys.executable, "-m", "coordformer", *words], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"chains": 1, "residues": 70, "shards": 1, "rejected": 0}


def test_a_late_ctrl_c_does_not_change_the_exit_code():
    """In the moments in which the interpreter ends; a verb that is called from Python leaves the signal alone."""
    code = (
        "import os, signal, sys, time\n"
        "from coordformer_command import main\n"
        "words = ['score', 'model', 'nowhere.pdb', '--scan', '--output', 'out']\n"
        "sys.argv[1:] = words\n"
        "code = main(words) if os.environ['CALLED'] else main()\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "time.sleep(0.05)\n"
        "sys.exit(code)\n"
    )
    ends = {}
    for called in ("", "yes"):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"CALLED": called}, capture_output=True, text=True,
            preexec_fn=hear_ctrl_c,
        )  # fmt: skip
        ends[called] = done.returncode, "KeyboardInterrupt" in done.stderr
    assert ends == {"": (1, False), "yes": (-signal.SIGINT, True)}
