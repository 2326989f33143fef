"""What the README and the examples print as code runs as printed, and their tables are the measured ones."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [path.relative_to(ROOT) for path in ROOT.rglob("*.md") if ".venv" not in path.parts]


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def run(program: str, folder: Path) -> str:
    """What a program prints, run in a fresh process where the repository's folders are."""
    for name in ("examples", "hub_cards", "tests"):
        (folder / name).symlink_to(ROOT / name)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 120


@pytest.mark.parametrize("program", python_blocks("README.md"))
def test_python_blocks_of_the_readme_run(program, tmp_path):
    """They print what the comment at the end of their last line says."""
    said = re.search(r"print\(.*#\s*(.*?),? ?\.*$", program.strip().splitlines()[-1])
    assert said and said[1] in run(program, tmp_path)


def test_a_model_trains_as_the_pretraining_page_says(tmp_path):
    (program,) = (block for block in python_blocks("examples/pretraining/README.md") if "Trainer" in block)
    run(program, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\((?!https?:|#)([^)\s#]+)", text)
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


# --- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", ["contacts", "embeddings", "function", "molecules", "point_clouds"])
def test_tables_of_an_example_are_the_measured_ones(example):
    """The README of an example has the tables of the report that its script wrote."""
    folder = ROOT / "examples" / example
    report = (folder / "results" / "report.md").read_text().splitlines()
    table = [line for line in report if line.startswith("|")]
    assert table and set(table) <= set((folder / "README.md").read_text().splitlines())


def test_models_are_compared_as_measured():
    """The rows of the comparison are those of its report, in the README by their numbers."""
    folder = ROOT / "examples" / "inverse_folding"
    report = (folder / "results" / "report.md").read_text()
    pages = [(folder / name).read_text().splitlines() for name in ("README.md", "lab_log.md")]
    rows = [line for line in report.partition("\n## held-out")[0].splitlines() if line.startswith("|")]
    assert len(rows) > 10 and all(any(row in lines for lines in pages) for row in rows)
    cells = [dict(zip(("name", *"1234", "paper"), row.strip("| ").split(" | "), strict=False)) for row in rows[2:]]
    of_7m = [cell["4"] for cell in cells if cell["name"].startswith("coordformer-7M-pdb")]
    assert len(of_7m) == 2 and all(number in " ".join(README.read_text().split()) for number in of_7m)


@pytest.mark.parametrize("page", ["README.md", "examples/inverse_folding/README.md"])
def test_the_table_of_noise_is_the_measured_one(page):
    """Perplexities at three widths of noise on the half of the clusters that chose nothing, and on predicted chains."""
    rows = set()
    for kind in ("ca", "backbone", "8M_ca", "8M_backbone"):
        parts = json.loads((ROOT / f"examples/inverse_folding/results/noise_{kind}.json").read_text())["parts"]
        columns = [parts["test"]["noise"][width] for width in ("0", "0.1", "0.2")] + [parts["predicted"]["noise"]["0"]]
        for name in columns[0]:
            rows.add(" | ".join(f"{column[name]['perplexity']:.2f}" for column in columns))
    shown = re.findall(
        r"^\| [^|]*(?:mpnn|ProteinMPNN|8M)[^|]*\| [^|]*\| ((?:\d+\.\d+ \| ){3}\d+\.\d+) \|$",
        (ROOT / page).read_text(),
        re.M,
    )
    assert len(shown) >= 8 and set(shown) <= rows


def test_the_speed_table_is_the_measured_one():
    """docs/speed.md has the lines that examples/benchmarks/run_all.py wrote."""
    table = (ROOT / "examples" / "benchmarks" / "results" / "speed.md").read_text().strip()
    assert table in (ROOT / "docs" / "speed.md").read_text()
