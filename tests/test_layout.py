"""The design of the package: imports go down only, and the hub files stand alone."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "coordformer"
FLOORS = [
    {
        "configuration_coordformer",
        "geometry",
        "files",
        "clustering",
        "masked_residues",
        "muon",
        "push",
        "secondary_structure",
        "reload_check",
    },
    {"modeling_coordformer", "structure", "figures"},
    {"processing_coordformer", "fetch", "proteinnet"},
    {"data_collator", "batches", "metrics", "point_clouds", "pipeline_coordformer"},
    {"bundle", "dataset"},
    {"preparation", "conversion", "evaluation"},
    {"training", "invariance", "attention_analysis", "embedding", "function", "contacts", "scoring", "export"},
    {"cli"},
    {"__init__", "__main__"},
]
# Copied flat beside a checkpoint: with torch, transformers (and what it brings) and each other they must run.
HUB_FILES = {
    "configuration_coordformer",
    "modeling_coordformer",
    "pipeline_coordformer",
    "processing_coordformer",
    "structure",
}
HUB_IMPORTS = {"torch", "transformers", "numpy", "tokenizers", "huggingface_hub"}


def imports_of(name: str) -> tuple[set[str], set[str], set[str]]:
    """Modules of the package, other modules at top level outside `try`, and those inside `try`."""
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    guarded = {id(node) for attempt in ast.walk(tree) if isinstance(attempt, ast.Try) for node in ast.walk(attempt)}
    own, others, optional = set(), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            own |= {node.module} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            (optional if id(node) in guarded else others).update(each.partition(".")[0] for each in names)
    return own, others, optional


def test_every_module_has_a_floor():
    assert {path.stem for path in PACKAGE.glob("*.py")} == set().union(*FLOORS)


@pytest.mark.parametrize("floor", range(len(FLOORS)))
def test_imports_go_down_only(floor):
    below = set().union(*FLOORS[:floor])
    for name in FLOORS[floor]:
        own, others, _ = imports_of(name)
        assert own <= below, name
        assert "coordformer" not in others, name


@pytest.mark.parametrize("name", sorted(HUB_FILES))
def test_hub_files_stand_alone(name):
    import sys

    own, others, optional = imports_of(name)
    assert own <= HUB_FILES
    assert others - set(sys.stdlib_module_names) <= HUB_IMPORTS
    assert optional <= {"gemmi"}
    # Transformers finds the files to copy by regular expression: what it finds must be what is imported.
    text = (PACKAGE / f"{name}.py").read_text()
    found = set(re.findall(r"^\s*from\s+\.(\S+)\s+import", text, re.MULTILINE))
    found |= set(re.findall(r"^\s*import\s+\.(\S+)\s*$", text, re.MULTILINE))
    assert found == own


def test_only_one_module_imports_gemmi():
    users = {
        path.stem for path in PACKAGE.glob("*.py") if re.search(r"^\s*import gemmi", path.read_text(), re.MULTILINE)
    }
    assert users == {"structure"}
