"""One file holds a data set, and a machine with torch, transformers and accelerate alone trains from it."""

import json
import os
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CHAINS, make_rows
from packaging.requirements import Requirement
from safetensors import safe_open
from safetensors.numpy import save_file

from coordformer.data.batching import ChainBatches, fetch_rows
from coordformer.data.pack import TENSORS, PackedChains, open_chains, write_pack
from coordformer.data.rows import load_rows
from coordformer.training.arguments import parse_arguments
from coordformer.training.train import train
from coordformer_command import main

TINY = """\
hidden_size: 16
num_hidden_layers: 1
num_attention_heads: 2
intermediate_size: 32
token_budget: 1024
max_length: 64
logging_steps: 1
max_steps: 4
save_strategy: 'no'
report_to: none
use_cpu: true
"""


@pytest.fixture(scope="module")
def chains():
    rows = load_rows(CHAINS)
    return rows.select([*range(40), *range(3200, 3220)])


@pytest.fixture(scope="module")
def packed(chains, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "chains.safetensors"
    counts = write_pack(chains, path, progress=False)
    assert counts == {"chains": 60, "residues": sum(chains["length"][:]), "bytes": path.stat().st_size}
    return path


def centered(coords):
    xyz = np.asarray(coords).reshape(-1, 3)
    return xyz - np.nanmean(xyz, axis=0)


def test_a_packed_file_holds_the_rows(chains, packed):
    read = PackedChains(packed)
    assert len(read) == 60 and read["id"] == chains["id"][:] and list(read["length"]) == chains["length"][:]
    for got, row in zip(read.fetch(range(60)), fetch_rows(chains, range(60)), strict=True):
        assert (got["id"], got["sequence"], got["atoms"]) == (row["id"], row["sequence"], row["atoms"])
        np.testing.assert_array_equal(np.isnan(got["coords"]), np.isnan(row["coords"]))
        # Rounded to 0.01 Å relative to a center that is rounded, too.
        np.testing.assert_allclose(centered(got["coords"]), centered(row["coords"]), atol=0.011)
    assert read["split"] == chains["split"][:]
    for split in ("train", "valid"):
        assert PackedChains(packed, split)["id"] == [
            name for name, of in zip(chains["id"][:], chains["split"][:], strict=True) if of == split
        ]
    assert packed.stat().st_size < 8 * sum(chains["length"][:]) + 60 * 40 + 2000


def test_wide_and_unobserved_chains(tmp_path):
    """A chain of 1 km, one of which nothing is observed, and several atoms per residue."""
    rows = make_rows([5, 4, 6]).to_list()
    rows[0]["coords"] = np.linspace(-5e6, 5e6, 15).astype(np.float32).tolist()
    rows[1]["coords"] = [float("nan")] * 12
    for row in rows:
        row["atoms"] = ["CA"]
    wide = make_rows([1]).from_list(rows)
    write_pack(wide, tmp_path / "wide.safetensors", progress=False)
    first, second, _ = PackedChains(tmp_path / "wide.safetensors").fetch([0, 1, 2])
    np.testing.assert_allclose(centered(first["coords"]), centered(rows[0]["coords"]), rtol=1e-6, atol=0.02)
    assert np.isnan(second["coords"]).all() and len(second["coords"]) == 12
    for row in rows:
        row["atoms"] = ["N", "CA", "C"]
        row["coords"] = (np.random.default_rng(0).normal(size=9 * row["length"]) * 20).tolist()
    write_pack(make_rows([1]).from_list(rows), tmp_path / "three.safetensors", progress=False)
    got = PackedChains(tmp_path / "three.safetensors").fetch([2])[0]
    assert got["atoms"] == ("N", "CA", "C")
    np.testing.assert_allclose(centered(got["coords"]), centered(rows[2]["coords"]), atol=0.011)


def test_chains_may_have_a_part_of_the_atoms_of_others(tmp_path):
    """Each comes back with its own, so that a model that needs more says so; one with an atom of its own is refused."""
    rows, rng = make_rows([5, 4, 6]).to_list(), np.random.default_rng(0)
    for row, atoms in zip(rows, (["CA"], ["N", "CA", "C", "O"], ["CA", "C"]), strict=True):
        row["atoms"], row["coords"] = atoms, (rng.normal(size=3 * len(atoms) * row["length"]) * 20).tolist()
    write_pack(make_rows([1]).from_list(rows), tmp_path / "some.safetensors", progress=False)
    for got, row in zip(PackedChains(tmp_path / "some.safetensors").fetch([0, 1, 2]), rows, strict=True):
        assert got["atoms"] == tuple(row["atoms"])
        np.testing.assert_allclose(centered(got["coords"]), centered(row["coords"]), atol=0.011)
    rows[2]["atoms"] = ["CA", "CB"]
    with pytest.raises(ValueError, match=f"Chain {rows[2]['id']} has CB, and others have N, CA, C, O; prepare all"):
        write_pack(make_rows([1]).from_list(rows), tmp_path / "odd.safetensors", progress=False)


def test_files_of_the_version_before_are_read(packed, tmp_path):
    """They differ in the name of their format alone."""
    with safe_open(packed, framework="np") as file:
        metadata, arrays = file.metadata(), {name: file.get_tensor(name) for name in TENSORS}
    save_file(arrays, tmp_path / "old.safetensors", metadata | {"format": "coordformer bundle 1"})
    assert open_chains(tmp_path / "old.safetensors", "valid")["id"] == PackedChains(packed, "valid")["id"]


def test_batches_of_a_packed_file_are_those_of_its_rows(chains, packed):
    of_rows, of_packed = (ChainBatches(rows, 2048, seed=5) for rows in (chains, PackedChains(packed)))
    assert [[row["id"] for row in batch] for batch in of_rows] == [[row["id"] for row in batch] for batch in of_packed]


def test_bad_packed_files_are_named(chains, packed, tmp_path):
    with pytest.raises(ValueError, match="a name that ends in .safetensors"):
        write_pack(chains, tmp_path / "chains.bin")
    with pytest.raises(ValueError, match="There are no chains to pack; give"):
        write_pack(chains.select([]), tmp_path / "none.safetensors", progress=False)
    (tmp_path / "cut.safetensors").write_bytes(packed.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="cut.safetensors cannot be read .*copy or make it again"):
        PackedChains(tmp_path / "cut.safetensors")
    save_file({"weight": np.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors holds no packed chains"):
        PackedChains(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="in split 'test'; it has: train, valid"):
        PackedChains(packed, "test")
    with pytest.raises(FileNotFoundError):
        PackedChains(tmp_path / "none.safetensors")
    odd = chains.select([0]).map(lambda row: {"sequence": row["sequence"][:-1] + "*"})
    with pytest.raises(ValueError, match=r"has the letters \*; write X for unknown residues"):
        write_pack(odd, tmp_path / "odd.safetensors", progress=False)


def test_a_full_disk_leaves_no_packed_file(tmp_path):
    command = [sys.executable, "-m", "coordformer", "pack", str(CHAINS), str(tmp_path / "a.safetensors"), "--quiet"]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # noqa: E731
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "a.safetensors could not be written" in done.stderr and list(tmp_path.iterdir()) == []


def test_command_line(tmp_path, capsys):
    assert main(["pack", str(CHAINS), str(tmp_path / "a.safetensors"), "--split", "valid", "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["chains"] == 400
    assert main(["pack", str(tmp_path), str(tmp_path / "b.safetensors")]) == 1
    assert "No Parquet file" in capsys.readouterr().err and not (tmp_path / "b.safetensors").exists()


# --- a bare machine --------------------------------------------------------------------------------------------------


def requirements_of(names):
    """The named distributions and what they need without extras."""
    found, left = {}, list(names)
    while left:
        name = left.pop()
        try:
            each = distribution(name)
        except PackageNotFoundError:
            continue
        if each.name not in found:
            found[each.name] = each
            needs = map(Requirement, each.requires or ())
            left += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found.values()


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """A virtual environment in which torch, transformers and accelerate are installed, and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for each in requirements_of(["torch", "transformers", "accelerate"]):
        for file in each.files or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(Path(each.locate_file("")) / top)
    return folder / "bin" / "python"


def test_a_bare_machine_trains_from_a_packed_file(bare_python, packed, tmp_path):
    """The losses are those of a full installation, to the last bit."""
    (tmp_path / "tiny.yaml").write_text(TINY + f"data: {packed}\ntrain_split: train\nvalid_split: valid\n")
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    } | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    look = "import importlib.util as u; print([n for n in %r if u.find_spec(n)])"
    names = ["datasets", "pyarrow", "gemmi", "evaluate", "pandas", "requests", "torch", "transformers", "accelerate"]
    found = subprocess.run(
        [bare_python, "-c", look % names], capture_output=True, text=True, check=True, env=environment
    )
    assert found.stdout.strip() == "['torch', 'transformers', 'accelerate']"
    command = [bare_python, "-m", "coordformer", "train", str(tmp_path / "tiny.yaml"), "--json", "--output_dir"]
    done = subprocess.run([*command, str(tmp_path / "bare")], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout)
    assert summary["steps"] == 4 and summary["valid"]["eval_perplexity"] > 1

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        here = train(*parse_arguments([str(tmp_path / "tiny.yaml"), "--output_dir", str(tmp_path / "full")]))
    finally:
        torch.set_num_threads(threads)
    assert here["valid"]["eval_perplexity"] == summary["valid"]["eval_perplexity"]
    assert (tmp_path / "full" / "model.safetensors").read_bytes() == (
        tmp_path / "bare" / "model.safetensors"
    ).read_bytes()
