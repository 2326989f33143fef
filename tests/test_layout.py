"""The design of the package: imports go down only, the hub files stand alone, and no file is too long to read."""

import ast
import re
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "coordformer"
# A folder imports from those below it; those on one floor do not know of each other.
FLOORS = [{"model"}, {"data"}, {"inference"}, {"training", "analysis"}, {"hub"}, {""}]
FOLDERS = sorted(set().union(*FLOORS))
MODULES = sorted(path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py"))
HUB_FILES = [name for name in MODULES if name.startswith("model/") and name != "model/__init__"]
# Copied flat beside a checkpoint: with torch, transformers (and what it brings) and each other they must run.
HUB_IMPORTS = {"torch", "transformers", "numpy", "tokenizers", "huggingface_hub"}
# The last two align sequences.
READS_GEMMI = {"model/structure_parsing", "inference/design", "inference/selection", "inference/sequences"}
LONGEST = 800  # lines


@cache
def imports_of(name: str) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Modules of the package (`data/rows`), other modules at top level outside `try`, and those inside `try`."""
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    guarded = {id(node) for attempt in ast.walk(tree) if isinstance(attempt, ast.Try) for node in ast.walk(attempt)}
    own, others, optional = set(), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = Path(name).parents[node.level - 1] / (node.module or "").replace(".", "/")
            # What is named is a module of a folder, or something in a module.
            inside = [(base / alias.name).as_posix() for alias in node.names]
            own |= {each for each in inside if each in MODULES} or {base.as_posix()}
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            (optional if id(node) in guarded else others).update(each.partition(".")[0] for each in names)
    return frozenset(own), frozenset(others), frozenset(optional)


def folder_of(name: str) -> str:
    return name.rpartition("/")[0]


def test_every_folder_has_a_floor():
    assert {folder_of(name) for name in MODULES} == set(FOLDERS)
    assert all(imports_of(name)[0] <= set(MODULES) for name in MODULES)


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_go_down_only(folder):
    floor = next(number for number, folders in enumerate(FLOORS) if folder in folders)
    allowed = {folder}.union(*FLOORS[:floor])
    for name in MODULES:
        if folder_of(name) == folder:
            own, others, _ = imports_of(name)
            assert {folder_of(each) for each in own} <= allowed, name
            assert "coordformer" not in others, name


def test_modules_do_not_import_each_other_in_circles():
    list(TopologicalSorter({name: imports_of(name)[0] for name in MODULES}).static_order())


@pytest.mark.parametrize("name", HUB_FILES)
def test_hub_files_stand_alone(name):
    own, others, optional = imports_of(name)
    assert own <= set(HUB_FILES)
    assert others - set(sys.stdlib_module_names) <= HUB_IMPORTS
    assert optional - set(sys.stdlib_module_names) <= {"gemmi"}
    # Transformers finds the files to copy by regular expression: what it finds must be what is imported.
    text = (PACKAGE / f"{name}.py").read_text()
    found = set(re.findall(r"^\s*from\s+\.(\S+)\s+import", text, re.MULTILINE))
    found |= set(re.findall(r"^\s*import\s+\.(\S+)\s*$", text, re.MULTILINE))
    assert {f"model/{each}" for each in found} == own


def test_few_modules_import_gemmi():
    assert {name for name in MODULES if "gemmi" in imports_of(name)[1] | imports_of(name)[2]} <= READS_GEMMI


def test_no_file_is_too_long():
    folders = ("coordformer", "examples", "tests", "docs")
    files = [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}
