"""What the README and the examples print as code runs as printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("page", ["README.md", "examples/pretraining/README.md"])
def test_python_blocks_run(page, tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    program = next(block for block in blocks if "Trainer" in block)
    for folder in ("examples", "tests"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    if page == "README.md":
        assert re.search(r"^[ACDEFGHIKLMNPQRSTVWY]$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "page", [path.relative_to(ROOT) for path in ROOT.rglob("*.md") if ".venv" not in path.parts], ids=str
)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\((?!https?:|#)([^)\s#]+)", text)
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("example", ["contacts", "embeddings", "function", "molecules", "point_clouds"])
def test_tables_of_an_example_are_the_measured_ones(example):
    """The README of an example has the tables of the report that its script wrote."""
    folder = ROOT / "examples" / example
    report = (folder / "results" / "report.md").read_text().splitlines()
    table = [line for line in report if line.startswith("|")]
    assert table and set(table) <= set((folder / "README.md").read_text().splitlines())


def test_the_speed_table_is_the_measured_one():
    """README.md has the lines that examples/benchmarks/run_all.py wrote."""
    table = (ROOT / "examples" / "benchmarks" / "results" / "speed.md").read_text().strip()
    assert table in (ROOT / "README.md").read_text()
