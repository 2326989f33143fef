"""The documentation: the site builds without a warning and fetches nothing, figures and notebooks can be made again,
and what is printed as a command is one."""

import copy
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import yaml
from transformers import TrainingArguments

from coordformer.training.arguments import DataArguments, ModelArguments
from coordformer_command import build_parser

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
FOLDERS = ("docs", "examples", "hub_cards")
FOUND = (page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md") if "runs" not in page.parts)
PAGES = sorted([*ROOT.glob("*.md"), *FOUND, *NOTEBOOKS])
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]


def cells(notebook: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == kind]


def text_of(page: Path) -> str:
    if page.suffix == ".md":
        return page.read_text()
    return "\n\n".join("".join(cell["source"]) for cell in cells(page, "markdown"))


# --- the site --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocs", reason='pip install ".[docs]"')
    folder = tmp_path_factory.mktemp("site")
    nowhere = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env=os.environ | nowhere | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr[-3000:]
    return folder


def test_the_page_of_options_has_those_of_every_verb(site):
    page = (site / "docs" / "options" / "index.html").read_text()
    (verbs,) = (action for action in build_parser()._actions if action.dest == "verb")
    for verb, parser in verbs.choices.items():
        section = page.partition(f'<h2 id="{verb}">')[2].partition("<h2 ")[0]
        names = {name for action in parser._actions for name in action.option_strings}
        if verb == "train":
            names = {f"--{each.name}" for kind in (ModelArguments, DataArguments) for each in fields(kind)}
        missing = [
            name for name in names - {"-h", "--help", "--json", "--quiet"} if f"<code>{name}</code>" not in section
        ]
        assert section and not missing, (verb, missing)


def test_the_site_fetches_nothing_when_it_is_read(site):
    for page in site.rglob("*.html"):
        assert not re.findall(
            r'<(?:link rel="stylesheet"|script|img)[^>]*(?:href|src)="?(?:https?:)?//', page.read_text()
        )


def test_notebooks_are_pages_with_their_pictures(site):
    for notebook in NOTEBOOKS:
        page = site / notebook.parent.relative_to(ROOT) / notebook.stem / "index.html"
        pictures = re.findall(r'<img [^>]*src="([^"]+\.png)"', page.read_text())
        assert len(pictures) == notebook.read_text().count('"image/png"') > 0
        assert all((page.parent / picture).exists() for picture in pictures)


def test_the_reference_is_of_public_names_with_their_examples(site):
    pages = [page.read_text() for page in (site / "docs" / "reference").rglob("*.html")]
    assert any('id="coordformer.model.structure.read_chains"' in text for text in pages)
    assert not any('id="coordformer.model.structure_parsing._parse' in text for text in pages)
    assert not any("<blockquote>" in text for text in pages)  # what `>>>` outside of a section becomes


def test_the_navigation_names_every_page():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())

    def paths(entry) -> list[str]:
        entries = entry.values() if isinstance(entry, dict) else entry
        return [entry] if isinstance(entry, str) else [path for each in entries for path in paths(each)]

    named = paths(settings["nav"])
    assert len(named) == len(set(named))
    left_out = {"examples/data/README.md", *(name for name in IDS if "/results" in name or "hub_cards" in name)}
    assert set(IDS) - left_out <= set(named)
    made = {"docs/options.md"}  # by the hook of that name, when the site is built
    assert made <= set(named) and all((ROOT / name).exists() for name in set(named) - made)


def test_the_reference_names_every_module():
    """A page for each folder of the package, with its modules."""
    for folder in (path.parent for path in (ROOT / "coordformer").glob("*/__init__.py")):
        page = (ROOT / "docs" / "reference" / f"{folder.name}.md").read_text()
        named = re.findall(rf"^::: coordformer\.{folder.name}\.(\w+)$", page, re.MULTILINE)
        assert sorted(named) == sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


def test_the_tree_names_every_module():
    tree = (ROOT / "CONTRIBUTING.md").read_text().partition("## What is where")[2]
    names = re.findall(r"\b(\w+\.py)\b", tree.partition("## Who may import whom")[0])
    modules = [path.name for path in (ROOT / "coordformer").rglob("*.py") if path.parent.name == "coordformer"]
    modules += [path.name for path in (ROOT / "coordformer").glob("*/*.py") if path.name != "__init__.py"]
    assert sorted(names) == sorted([*modules, "coordformer_command.py"])


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/chain.md", "docs/glossary.md"])
def test_places_in_the_code_are_there(page):
    """What is written as `folder/file.py:name`, or as `file.py:name` where the folder is clear, is in that file."""
    places = re.findall(r"`((?:\w+/)*\w+\.py)(?::(\w+))?`", (ROOT / page).read_text())
    assert places
    for path, name in places:
        files = [file for file in (ROOT / path, ROOT / "coordformer" / path) if file.exists()]
        files = files or list((ROOT / "coordformer").glob(f"*/{path}"))
        assert files, path
        defined = re.compile(rf"^ *(?:(?:def|class) {name}\b|{name}\b.*=)", re.MULTILINE)
        assert not name or any(defined.search(file.read_text()) for file in files), f"{path}:{name}"


# --- commands --------------------------------------------------------------------------------------------------------


def options_of(verb: str) -> set[str]:
    (verbs,) = (action for action in build_parser()._actions if action.dest == "verb")
    assert verb in verbs.choices, f"`coordformer {verb}` is no verb"
    options = {name for action in verbs.choices[verb]._actions for name in action.option_strings}
    if verb == "train":
        classes = (ModelArguments, DataArguments, TrainingArguments)
        options |= {"--help", *(f"--{field.name}" for each in classes for field in fields(each))}
    return options


def commands(text: str) -> list[str]:
    """Lines of bash blocks, without comments, and what stands between backticks."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    spans = re.findall(
        r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.M)
    )
    return [re.sub(r"\s+#.*", "", command).strip() for command in [*lines, *spans]]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_printed_commands_exist(page):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in commands(text_of(page)):
        if found := re.match(r"(?:.* -m )?coordformer ([a-z]+)\b(.*)", command, re.DOTALL):
            verb, rest = found.groups()
            options = set(re.findall(r"(?<!\S)(--\w+)", rest))
            assert options <= options_of(verb), command
        elif found := re.match(r"make ([a-z-]+)\b", command):
            assert found[1] in targets, command
        elif found := re.match(r"(?:\S*/)?python (\S+\.py)\b", command):
            assert (ROOT / found[1]).exists(), command


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_printed_command_lines_are_whole(page):
    """What stands in a block can be typed: the parser takes it."""
    for command in commands("".join(re.findall(r"^```bash\n.*?^```\n", text_of(page), re.DOTALL | re.MULTILINE))):
        if command.startswith("coordformer ") and not command.startswith("coordformer train"):
            build_parser().parse_args(shlex.split(command)[1:])


OLD_NAMES = re.compile(
    r"withheld|segment_ids|distance_bias=|attention_points|message_neighbours|message_type|--draws|--first\b|"
    r"coordformer (?:bundle|invariance)|examples/invariance"
)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_pages_have_todays_names(page):
    """Those of version 0.1.0 are in the changelog alone."""
    assert page.name == "CHANGELOG.md" or not OLD_NAMES.search(text_of(page))


def test_a_wrong_command_is_found():
    assert commands("`make demos`\n```bash\ncoordformer embed A \\\n  --pool mean  # no\n```") == [
        "coordformer embed A    --pool mean",
        "make demos",
    ]
    assert "--pool" not in options_of("embed") and "--max_steps" in options_of("train")


@pytest.mark.parametrize("page", ["chain", "coordinates", "data", "fine_tuning", "scale"])
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """The blocks of a page are one program. Those of docs/hub.md need a network."""
    blocks = re.findall(r"^```python\n(.*?)^```", text_of(ROOT / "docs" / f"{page}.md"), re.DOTALL | re.MULTILINE)
    program = "\n".join(blocks)
    for folder in ("examples", "hub_cards", "tests"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    exec(compile(program, page, "exec"), {})


# --- figures and notebooks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_kept_outputs_are_small_and_clean(notebook):
    assert notebook.stat().st_size < 300_000
    for number, cell in enumerate(cells(notebook, "code")):
        assert cell["execution_count"] == number + 1, "executed once, from top to bottom"
        for output in cell["outputs"]:
            assert output["output_type"] in ("stream", "display_data") and output.get("name") != "stderr", output
            assert not re.search(r"/(?:home|root|tmp|usr|Users)/", "".join(output.get("text", "")))


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted((ROOT / "docs" / "figures").glob("*.py")), ids=lambda path: path.stem)
def test_figures_are_what_their_scripts_draw(script, tmp_path):
    from matplotlib.image import imread

    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, env=environment)
    assert list(tmp_path.glob("*.png"))
    for path in tmp_path.glob("*.png"):
        drawn, kept = imread(path), imread(script.parent / path.name)
        assert drawn.shape == kept.shape and np.abs(drawn - kept).mean() < 0.02


@pytest.mark.slow
def test_notebooks_run_and_give_what_they_show(tmp_path, monkeypatch):
    """The second one starts from the checkpoint of the first. Numbers may differ from machine to machine, somewhat."""
    nbclient = pytest.importorskip("nbclient", reason='pip install ".[docs]"')
    import nbformat

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "examples" / "notebooks"
    folder.mkdir(parents=True)
    for name in ("examples/data", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("quickstart", "fine_tuning"):
        kept = nbformat.read(ROOT / "examples" / "notebooks" / f"{name}.ipynb", as_version=4)
        run = copy.deepcopy(kept)
        options = {"timeout": 1800, "resources": {"metadata": {"path": str(folder)}}}
        # A stream comes in as many pieces as the kernel likes.
        nbclient.NotebookClient(run, coalesce_streams=True, **options).execute()
        for now, before in zip(run.cells, kept.cells, strict=True):
            outputs = [[out for out in cell.get("outputs", [])] for cell in (now, before)]
            shown = [[(out.output_type, sorted(out.get("data", []))) for out in each] for each in outputs]
            assert shown[0] == shown[1], now.source
            texts = ["".join(out.get("text", "") for out in each) for each in outputs]
            number = r"-?\d+(?:\.\d+)?"
            assert re.sub(number, "#", texts[0]) == re.sub(number, "#", texts[1])
            values = [[float(value) for value in re.findall(number, text)] for text in texts]
            assert np.allclose(*values, atol=8 if "%" in texts[0] else 0.5), texts
