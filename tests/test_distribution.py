"""Versions that are said in several places agree; what is built holds the package and nothing else."""

import configparser
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

import coordformer
from coordformer_command import main

ROOT = Path(__file__).parent.parent


def pins(name: str) -> dict[str, str]:
    lines = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / name).read_text(), re.MULTILINE)
    return {package.lower(): version for package, version in lines}


def floors() -> dict[str, str]:
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    extras = dict(setup["options.extras_require"])
    extras.pop("release")  # not of the tests
    text = "\n".join([setup["options"]["install_requires"], *extras.values()])
    return {name.lower(): floor for name, floor in re.findall(r"^([\w-]+)>=([\w.]+)", text, re.MULTILINE)}


def numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def test_the_minimum_versions_are_the_floors_of_setup_cfg():
    minimum, needed = pins("constraints-minimum.txt"), floors()
    assert minimum.keys() == needed.keys()
    for name, floor in needed.items():
        assert minimum[name].startswith(floor), name
        assert numbers(pins("constraints.txt")[name]) >= numbers(floor), name


def test_the_tested_versions_take_the_lowest_python():
    """As far as they are installed here; others are not known without a network."""
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    lowest = f"{re.fullmatch(r'>=([0-9.]+)', setup['options']['python_requires'])[1]}.0"
    installed = {each.name.lower(): each for each in metadata.distributions()}
    known = [installed[name] for name, pin in pins("constraints.txt").items()
             if name in installed and installed[name].version.partition("+")[0] == pin]  # fmt: skip
    assert len(known) > 20
    needed = {f"{each.name}=={each.version}": each.metadata["Requires-Python"] for each in known}
    assert {pin: python for pin, python in needed.items() if python and lowest not in SpecifierSet(python)} == {}


def test_the_hooks_use_the_tested_versions():
    config = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.search(r"ruff-pre-commit\n    rev: v(\S+)", config)[1] == pins("constraints.txt")["ruff"]


def test_the_version_is_in_one_place_and_the_command_tells_it(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code in (None, 0) and capsys.readouterr().out.split()[-1] == coordformer.__version__
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["version"] == "attr: coordformer.__version__"


def test_every_folder_of_the_package_is_installed():
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "coordformer").rglob("__init__.py")}
    assert set(setup["options"]["packages"].split()) == folders | {"coordformer.hub_cards"}


@pytest.mark.slow
def test_distributions_hold_the_package_and_nothing_else(tmp_path):
    for module in ("build", "twine"):
        pytest.importorskip(module, reason="pip install -c constraints.txt '.[release]'")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in listed:
        if name.partition("/")[0] not in ("tests", "examples", ".github", ".ci"):
            (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "src" / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(tmp_path), str(tmp_path / "src")],
        check=True, capture_output=True, timeout=600,
    )  # fmt: skip
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)], check=True)
    package = {name for name in listed if name.startswith("coordformer/")} | {"coordformer_command.py"}
    assert "coordformer/py.typed" in package
    names = set(zipfile.ZipFile(wheel).namelist())
    # Of hub_cards/ nothing else: published checkpoints stay out of the package.
    cards = {name for name in listed if re.match("hub_cards/(template.md|masked_residues/)", name)}
    assert {name for name in names if ".dist-info/" not in name} == package | {f"coordformer/{name}" for name in cards}
    with tarfile.open(sdist) as archive:
        files = {member.name.partition("/")[2] for member in archive if member.isfile()}
    beside = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
    assert {name for name in files if not name.startswith("coordformer.egg-info/")} == package | beside | cards
