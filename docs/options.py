"""The page of the command's options, of the tables that the command itself reads: a hook of MkDocs."""

import argparse
from collections.abc import Iterable

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from coordformer.training.arguments import SHOWN
from coordformer.training.arguments import build_parser as build_train_parser
from coordformer_command import VERBS, build_parser

PAGE = "docs/options.md"
HEAD = """# Options of the command

`coordformer VERB --help` prints the same. Options have two dashes and are written out. All verbs take `--json` (the
result as one JSON object on stdout) and `--quiet` (no progress bars). Exit codes: 0 done; 1 an input is unusable, and a
line on stderr says which and what to do; 2 the command line is; 130 stopped by Ctrl-C.
"""


def table(actions: Iterable[argparse.Action], texts: dict[str, str]) -> list[str]:
    """Rows of Markdown: how an option is written, and what its help says."""
    lines = ["| option | what it is |", "| --- | --- |"]
    for action in actions:
        name = action.option_strings[0] if action.option_strings else action.metavar or action.dest
        value = action.metavar if action.option_strings and action.metavar else ""
        if action.choices and len(list(action.choices)) < 6:
            value = ", ".join(map(str, action.choices))
        text = texts.get(action.dest, action.help or "")
        default = "" if isinstance(action.default, list | tuple) else action.default
        if "%(default)s" in text:
            text = text.replace("%(default)s", str(default))
        elif texts and action.default not in (None, False, "", argparse.SUPPRESS):
            text += f" (default: {default})"
        text += " (required)" if action.required and action.option_strings else ""
        lines.append("| " + " | ".join(each.replace("|", "\\|") for each in (f"`{name}` {value}".strip(), text)) + " |")
    return [*lines, ""]


def page() -> str:
    """The page, in Markdown."""
    (verbs,) = (action for action in build_parser()._actions if action.dest == "verb")
    lines = [HEAD]
    for name, verb in VERBS.items():
        lines += [f"## {name}", "", verb.description or f"{verb.help[0].upper()}{verb.help[1:]}.", ""]
        if name != "train":
            common = ("help", "json", "quiet")
            lines += table([each for each in verbs.choices[name]._actions if each.dest not in common], {})
            continue
        lines += ["`coordformer train [PRESET.yaml] [OPTION ...]`: options override those of the preset.", ""]
        for group in build_train_parser()._action_groups:
            trainer = group.title not in ("the model", "its data")
            actions = [each for each in group._group_actions if each.dest != "help"]
            actions = [each for each in actions if not trainer or each.dest in SHOWN]
            if actions:
                lines += [f"### {str(group.title)[0].upper()}{str(group.title)[1:]}", "", *table(actions, SHOWN)]
        lines += ["`coordformer train --help-all` shows all options of Trainer.", ""]
    return "\n".join(lines)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page, which is no file."""
    files.append(File.generated(config, PAGE, content=page()))
    return files
