"""What is imported when: reading waits for neither torch nor Transformers, and the Auto classes know the models."""

import ast
import importlib
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import STRUCTURES

import coordformer
from coordformer.auto_classes import ImportHook

ROOT = Path(__file__).parents[1]
STRUCTURE, CHECKPOINT = STRUCTURES / "1orc.pdb.gz", ROOT / "hub_cards" / "coordformer-1M-pdb"
HEAVY = {"torch", "transformers", "datasets", "pandas"}
# What reads structures, writes data sets, or says what a data set holds.
LIGHT = [
    *("model.chain", "model.residues", "model.proteins", "model.structure", "model.structure_parsing"),
    *("model.structure_text", "model.substitutions", "model.windows"),
    *("data.arrow", "data.batching", "data.cluster", "data.fetch", "data.files", "data.inputs", "data.pack"),
    *("data.prepare", "data.reading", "data.records", "data.rows", "data.training_sequences"),
    "inference.runner",
]


def run(script: str, *arguments: object) -> str:
    """What a fresh process prints that runs these lines."""
    command = [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def test_what_reads_structures_needs_no_torch(tmp_path):
    script = f"""
import importlib, sys
from coordformer import read_chains
from coordformer_command import main
(chain,) = read_chains(sys.argv[1])
for name in {LIGHT}:
    importlib.import_module("coordformer." + name)
assert main(["prepare", sys.argv[1], "--output", sys.argv[2], "--quiet", "--json"]) == 0
print(chain.id, *sorted({HEAVY} & set(sys.modules)))
"""
    *_, last = run(script, STRUCTURE, tmp_path / "out").splitlines()
    assert last == "1ORC_A" and (tmp_path / "out" / "datasheet.json").exists()


def test_processes_of_prepare_need_no_torch(tmp_path):
    """This one waits with its first part until the other has written its modules."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys, time
from pathlib import Path
from coordformer.data import prepare, reading
prepare.FILES_PER_PART = 1
folder = Path(sys.argv[1])
def read_part(part, settings, path):
    files = reading.read_part(part, settings, path)
    if __name__ == "__mp_main__":
        (folder / "modules").write_text(" ".join(sys.modules))
    while not (folder / "modules").exists():
        time.sleep(0.01)
    return files
if __name__ == "__main__":
    prepare.read_part = read_part
    files = {[str(STRUCTURES / name) for name in ("1orc.pdb.gz", "1A8O.cif.gz", "1AS5.cif.gz", "3JQH.cif.gz")]}
    prepare.prepare(files, folder / "out", workers=2, progress=False)
""")
    subprocess.run([sys.executable, script, tmp_path], check=True, timeout=60, cwd=ROOT)
    modules = set((tmp_path / "modules").read_text().split())
    assert "coordformer.data.reading" in modules and not HEAVY & modules


# --- public names ----------------------------------------------------------------------------------------------------


def test_public_names_are_those_that_a_type_checker_reads():
    tree = ast.parse(Path(coordformer.__file__).read_text())
    named = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    named.pop("hook")
    assert set(named) == set(coordformer.__all__) and set(coordformer.__all__) <= set(dir(coordformer))
    for name, module in named.items():
        value = getattr(importlib.import_module(f"coordformer.{module}"), name)
        assert getattr(coordformer, name) is value and value.__module__ == f"coordformer.{module}"
    with pytest.raises(AttributeError, match="module 'coordformer' has no attribute 'Coordformer'"):
        coordformer.Coordformer  # noqa: B018


# --- registration ----------------------------------------------------------------------------------------------------

LOAD = """
from transformers import AutoConfig, AutoModelForMaskedLM, AutoProcessor, AutoTokenizer
loaded = [each.from_pretrained(sys.argv[1]) for each in (AutoModelForMaskedLM, AutoProcessor)]
assert type(AutoTokenizer.from_pretrained(sys.argv[1])).__module__.startswith("transformers.")
from transformers.pipelines import PIPELINE_REGISTRY
tasks = [task for task in PIPELINE_REGISTRY.get_supported_tasks() if task.startswith("protein-")]
print(*(type(each).__module__ for each in loaded), len(tasks), *(type(each).__name__ for each in sys.meta_path))
"""
FIRST = {
    "the package": "import sys, coordformer",
    "Transformers": "import sys\nfrom transformers import AutoModel, pipeline\nimport coordformer",
    "a module of it": "import sys\nfrom coordformer.model.pipeline_coordformer import ProteinDesignPipeline",
}


@pytest.mark.parametrize("first", FIRST)
def test_auto_classes_know_the_models_whatever_is_imported_first(first):
    words = run(FIRST[first] + LOAD, CHECKPOINT).split()
    modules = ["coordformer.model.modeling_coordformer", "coordformer.model.processing_coordformer"]
    assert words[:2] == modules and int(words[2]) == 5
    assert "ImportHook" not in words  # its work is done


@pytest.fixture
def hook(tmp_path, monkeypatch):
    """One for two packages, of which `upper` imports `lower`, and what it registered."""
    for name, text in {
        "lower/__init__.py": "",
        "lower/auto.py": "from . import base",
        "lower/base.py": "",
        "lower/broken.py": "from . import auto\nraise RuntimeError('of all things')",
        "upper/__init__.py": "",
        "upper/models.py": "from lower import auto\nclass Model: pass",
        "upper/verb.py": "from lower import auto\nfrom upper import models",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    registered = []

    def register():
        from upper.models import Model

        registered.append(Model.__name__)

    hook = ImportHook(("lower", "upper"), {"lower.auto": register})
    yield hook, registered
    for name in [name for name in sys.modules if name.partition(".")[0] in ("lower", "upper")]:
        del sys.modules[name]
    sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not hook]


def test_hook_waits_for_the_module_it_is_about(hook):
    hook, registered = hook
    hook.install()
    importlib.import_module("lower.base")
    assert sys.meta_path[0] is hook and not registered
    importlib.import_module("lower.auto")
    assert registered == ["Model"] and hook not in sys.meta_path
    hook.install()
    assert registered == ["Model"] and hook not in sys.meta_path
    loader = sys.modules["lower.auto"].__spec__.loader
    assert type(loader).__name__ == "SourceFileLoader" and "base" in loader.get_source("lower.auto")


def test_hook_calls_at_once_for_what_is_there(hook):
    hook, registered = hook
    importlib.import_module("lower.auto")
    hook.install()
    assert registered == ["Model"] and hook not in sys.meta_path


@pytest.mark.parametrize("first", ["upper.models", "upper.verb"])
def test_hook_does_not_call_in_the_middle_of_an_import(hook, first):
    """What it registers is not there before the module that imports `lower` is whole."""
    hook, registered = hook
    hook.install()
    importlib.import_module(first)
    assert registered == ["Model"] and hook not in sys.meta_path


def test_hook_outlives_an_import_that_fails(hook):
    hook, registered = hook
    hook.install()
    with pytest.raises(RuntimeError, match="of all things"):
        importlib.import_module("lower.broken")
    assert not registered and not hook.executing
    importlib.import_module("upper.models")
    assert registered == ["Model"]


def test_two_hooks_do_not_ask_each_other_for_ever(hook):
    """As after a package was imported a second time."""
    hook, registered = hook
    other = ImportHook(hook.packages, hook.waiting)
    hook.install()
    other.install()
    importlib.import_module("upper.verb")
    assert registered == ["Model", "Model"] and not {hook, other} & set(sys.meta_path)


def test_hook_calls_once_for_threads(hook):
    hook, registered = hook
    hook.install()
    names = ["lower.auto", "upper.models", "upper.verb", "lower.base"] * 4
    threads = [threading.Thread(target=importlib.import_module, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert registered == ["Model"] and hook not in sys.meta_path
