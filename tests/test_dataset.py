"""Structure files become the same rows however they are prepared, and rows become batches that fit."""

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import STRUCTURES

from coordformer import read_chains
from coordformer.dataset import SCHEMA, ChainBatches, chain_to_row, fetch_rows, load_rows, prepare, read_compact
from coordformer.processing_coordformer import chain_arrays


def write_compact(path, **columns):
    base = {"id": ["1ABC_A", "2XYZ_B"], "sequence": ["MKV", "GA"]}
    planes = {
        "ca_x": [[100, -250, -32768], [5, 6]],
        "ca_y": [[0, 1, -32768], [7, 8]],
        "ca_z": [[2, 3, -32768], [9, 10]],
    }
    kinds = {name: pa.list_(pa.int16()) for name in planes}
    table = {name: pa.array(values, kinds.get(name)) for name, values in (base | planes | columns).items()}
    pq.write_table(pa.table(table), path)
    return path


def make_rows(lengths) -> datasets.Dataset:
    rng = np.random.default_rng(0)
    rows = [
        {
            "id": f"chain {index}", "sequence": "".join(rng.choice(list("ACDEFGHIKL"), size=n)), "length": n,
            "observed": n, "atoms": ["CA"], "coords": rng.normal(size=3 * n).astype(np.float32), "b_factor": None,
            "method": None, "resolution": None, "source": None, "cluster": None, "split": None,
        }
        for index, n in enumerate(lengths)
    ]  # fmt: skip
    return datasets.Dataset(pa.Table.from_pylist(rows, schema=SCHEMA))


# --- reading ---------------------------------------------------------------------------------------------------------


def test_compact_layout_by_hand(tmp_path):
    path = write_compact(tmp_path / "chains.parquet", split=["train", "valid"], cluster30=[4, 9])
    rows = load_rows(path)
    assert rows.column_names == SCHEMA.names
    assert rows[0]["coords"][:6] == pytest.approx([1.0, 0.0, 0.02, -2.5, 0.01, 0.03])
    assert np.isnan(rows[0]["coords"][6:]).all()
    assert (rows[0]["length"], rows[0]["observed"], rows[0]["atoms"], rows[0]["cluster"]) == (3, 2, ["CA"], 4)
    assert rows[1]["coords"] == pytest.approx([0.05, 0.07, 0.09, 0.06, 0.08, 0.10])
    assert load_rows(path, "valid")["id"][:] == ["2XYZ_B"]


def test_compact_rows_equal_prepared_rows(tmp_path):
    """The same chain through both ways: equal but for the rounding to hundredths of an Å."""
    chain = read_chains(STRUCTURES / "1A8O.cif.gz")[0]
    raw = np.where(np.isnan(chain.coords[:, 0]), -32768, np.round(chain.coords[:, 0] * 100)).astype(int)
    path = write_compact(
        tmp_path / "chains.parquet",
        id=[chain.id], sequence=[chain.sequence], ca_x=[raw[:, 0]], ca_y=[raw[:, 1]], ca_z=[raw[:, 2]],
    )  # fmt: skip
    prepare([STRUCTURES / "1A8O.cif.gz"], tmp_path / "out", workers=1, progress=False)
    compact, prepared = load_rows(path)[0], load_rows(tmp_path / "out")[0]
    np.testing.assert_allclose(compact.pop("coords"), prepared.pop("coords"), atol=0.0051)
    for name in ("id", "sequence", "length", "observed", "atoms"):
        assert compact[name] == prepared[name]


def test_rows_keep_chains(tmp_path):
    chains = read_chains(STRUCTURES / "1A8O.cif.gz", atoms=("N", "CA", "C"))
    pq.write_table(
        pa.Table.from_pylist([chain_to_row(chain) for chain in chains], schema=SCHEMA), tmp_path / "a.parquet"
    )
    (row,) = fetch_rows(load_rows(tmp_path), [0])
    sequence, coords = chain_arrays(row, ("N", "CA", "C"))
    assert sequence == chains[0].sequence
    np.testing.assert_array_equal(coords, chains[0].coords)


def test_bad_data_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="No Parquet file at .*nowhere"):
        load_rows(tmp_path / "nowhere")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="has the columns text; a data set of chains needs id"):
        load_rows(tmp_path / "other.parquet")
    pq.write_table(pa.Table.from_pylist([], schema=SCHEMA), tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match="empty.parquet has no rows"):
        load_rows(tmp_path / "empty.parquet")
    pq.write_table(pa.table({"id": ["a"], "sequence": ["M"], "ca_x": [[1]]}), tmp_path / "half.parquet")
    with pytest.raises(ValueError, match="half.parquet lacks the columns ca_y, ca_z"):
        load_rows(tmp_path / "half.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="broken.parquet is not a readable Parquet file"):
        load_rows(tmp_path / "broken.parquet")
    path = write_compact(tmp_path / "chains.parquet", split=["train", "valid"])
    with pytest.raises(ValueError, match="in split 'test'; the file has: train, valid"):
        load_rows(path, "test")
    with pytest.raises(ValueError, match="chain 2XYZ_B: 1 values in ca_y for 2 residues"):
        read_compact(write_compact(tmp_path / "short.parquet", ca_y=[[1, 2, 3], [1]]))


# --- batches ---------------------------------------------------------------------------------------------------------


def test_batches_hold_every_chain_once_and_keep_the_budget():
    lengths = np.random.default_rng(1).integers(5, 300, size=700)
    batches = ChainBatches(make_rows(lengths), token_budget=2048, max_length=256, seed=3)
    orders = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        orders.append(batches.order())
        assert len(orders[-1]) == len(batches)  # Trainer counts the steps of an epoch once
        assert sorted(np.concatenate(orders[-1])) == list(range(700))
        for batch in orders[-1]:
            assert len(batch) * (min(lengths[batch].max(), 256) + 2) <= 2048
    assert batches.padding_share() < 0.05
    assert {tuple(sorted(batch)) for batch in orders[0]} != {tuple(sorted(batch)) for batch in orders[1]}
    assert [len(batch) for batch in orders[0]] != [len(batch) for batch in orders[1]]  # the order is random


def test_batches_are_the_rows_in_order():
    rows = make_rows([5, 9, 5, 30])
    batches = ChainBatches(rows, token_budget=32, seed=1)
    batches.set_epoch(4)
    for indices, batch in zip(batches.order(), [batches[i] for i in range(len(batches))], strict=True):
        assert [row["id"] for row in batch] == [f"chain {i}" for i in indices]
        assert all(row["epoch"] == 4 and row["augment"] for row in batch)
        np.testing.assert_array_equal(batch[0]["coords"], np.float32(rows[int(indices[0])]["coords"]))
    with pytest.raises(IndexError):
        batches[len(batches)]


def test_random_batches_of_a_number_of_chains():
    batches = ChainBatches(make_rows(range(5, 58)), chains_per_batch=24)
    assert sorted(map(len, batches.order())) == [5, 24, 24]


def test_bad_batches_are_named():
    rows = make_rows([5, 90])
    with pytest.raises(ValueError, match="`token_budget` is 64, but the longest chain has 92 tokens"):
        ChainBatches(rows, token_budget=64)
    for arguments in ({"token_budget": -1}, {"chains_per_batch": 0}, {"token_budget": 100, "max_length": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            ChainBatches(rows, **arguments)
    for arguments in ({}, {"token_budget": 100, "chains_per_batch": 2}):
        with pytest.raises(ValueError, match="either `token_budget` or `chains_per_batch`"):
            ChainBatches(rows, **arguments)


# --- preparing -------------------------------------------------------------------------------------------------------


def make_folder(folder, copies=1):
    """Real files, one bad one of each kind, and one that no reader should look at."""
    folder.mkdir()
    for number in range(copies):
        shutil.copy(STRUCTURES / "1A8O.cif.gz", folder / f"a{number:03d}.cif.gz")
        shutil.copy(STRUCTURES / "1orc.pdb.gz", folder / f"b{number:03d}.pdb.gz")
    (folder / "broken.cif").write_bytes(os.urandom(2000))
    (folder / "truncated.cif.gz").write_bytes((STRUCTURES / "1A8O.cif.gz").read_bytes()[:9000])
    (folder / "notgzip.pdb.gz").write_text("HEADER\n")
    (folder / "notes.txt").write_text("not a structure\n")
    return folder


def rejects(output):
    lines = (output / "rejected.tsv").read_text().splitlines()
    assert lines[0] == "file\tchain\treason"
    return {line.split("\t")[0]: line.split("\t")[2] for line in lines[1:]}


def test_prepare_goes_on_after_bad_files_and_says_why(tmp_path):
    folder = make_folder(tmp_path / "in")
    counts = prepare([folder], tmp_path / "out", workers=1, progress=False)
    assert counts == {"files": 5, "chains": 2, "rejected": 3, "shards": 1}
    reasons = rejects(tmp_path / "out")
    assert set(reasons) == {"broken.cif", "truncated.cif.gz", "notgzip.pdb.gz"}
    assert all(name in reason for name, reason in reasons.items())
    rows = load_rows(tmp_path / "out")
    assert rows["source"][:] == ["a000.cif.gz", "b000.pdb.gz"] and rows[0]["id"] == "1A8O_A"


def test_prepare_filters_and_says_why(tmp_path):
    folder = make_folder(tmp_path / "in")
    counts = prepare([folder], tmp_path / "out", min_length=71, workers=1, progress=False)
    assert counts["chains"] == 1 and "70 residues are fewer than min_length=71" in rejects(tmp_path / "out").values()
    prepare([folder], tmp_path / "two", max_length=70, min_observed=0.95, workers=1, progress=False)
    assert "71 residues are more than max_length=70" in rejects(tmp_path / "two")["b000.pdb.gz"]


def test_prepare_does_not_depend_on_the_number_of_workers(tmp_path):
    folder = make_folder(tmp_path / "in", copies=10)
    for workers in (1, 2):
        prepare([folder], tmp_path / f"{workers}", files_per_shard=7, workers=workers, progress=False)
    files = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*.*") if path.is_file())
    assert [path.name for path in files if path.suffix == ".parquet"] == [
        f"train-{i:05d}-of-00004.parquet" for i in range(4)
    ]
    for path in files:
        assert (tmp_path / "1" / path).read_bytes() == (tmp_path / "2" / path).read_bytes()


def test_shards_stream(tmp_path):
    prepare([make_folder(tmp_path / "in", copies=3)], tmp_path / "out", files_per_shard=2, workers=1, progress=False)
    assert len(list((tmp_path / "out" / "empty").iterdir())) == 2  # the bad files fill two shards
    stream = datasets.load_dataset(str(tmp_path / "out"), split="train", streaming=True, cache_dir=str(tmp_path / "c"))
    assert [row["id"] for row in stream] == load_rows(tmp_path / "out")["id"][:]


def test_prepare_goes_on_after_a_kill(tmp_path):
    """SIGKILL as soon as the second shard is there; the second run keeps what is whole and adds the rest."""
    folder = make_folder(tmp_path / "in", copies=150)
    prepare([folder], tmp_path / "whole", files_per_shard=20, workers=1, progress=False)
    command = [sys.executable, "-m", "coordformer", "prepare", str(folder), "--output", str(tmp_path / "out")]
    command += ["--files_per_shard", "20", "--workers", "1", "--quiet"]
    process = subprocess.Popen(command)
    data = tmp_path / "out" / "data"
    while process.poll() is None and len(list(data.glob("*.parquet"))) < 2:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in data.glob("*.parquet")}
    assert 2 <= len(done) < 16 and not (tmp_path / "out" / "rejected.tsv").exists()
    for name in done:
        pq.read_table(data / name)  # whole
    (data / "train-00015-of-00016.parquet.tmp").write_bytes(b"half a shard")
    subprocess.run(command, check=True, capture_output=True)
    for path in (tmp_path / "whole").rglob("*.*"):
        if path.is_file():
            assert (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
    assert not list(data.glob("*.tmp"))
    assert all((data / name).stat().st_mtime_ns == moment for name, moment in done.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"atoms": ["CA", "CA"]}, "name each atom once"),
        ({"atoms": [""]}, "name each atom once"),
        ({"min_length": 50, "max_length": 10}, r"`max_length` \(10\) is less than `min_length` \(50\)"),
        ({"min_observed": 2}, "`min_observed` is 2; it is a share"),
        ({"workers": 0}, "`workers` is 0"),
        ({"files_per_shard": 0}, "`files_per_shard` is 0"),
    ],
)
def test_bad_options_of_prepare_are_named(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        prepare([STRUCTURES], tmp_path / "out", progress=False, **{"workers": 1} | arguments)
    assert not (tmp_path / "out").exists()


def test_one_odd_file_does_not_cost_the_others(tmp_path):
    """gemmi refuses names of 8 letters and more."""
    folder = tmp_path / "in"
    folder.mkdir()
    text = gzip.decompress((STRUCTURES / "1A8O.cif.gz").read_bytes()).decode()
    (folder / "long.cif").write_text(re.sub(r"(?m)^(ATOM +\d+ +\S+ +\S+ +\S+ +\S+) A ", r"\1 HeavyChain ", text))
    shutil.copy(STRUCTURES / "1orc.pdb.gz", folder)
    counts = prepare([folder], tmp_path / "out", workers=1, progress=False)
    assert counts["chains"] == 1 and "HeavyChain" in rejects(tmp_path / "out")["long.cif"]


def test_prepare_refuses_to_mix_runs(tmp_path):
    folder = make_folder(tmp_path / "in")
    prepare([folder], tmp_path / "out", workers=1, progress=False)
    before = (tmp_path / "out" / "data" / "train-00000-of-00001.parquet").read_bytes()
    with pytest.raises(ValueError, match="made from other files or with other settings"):
        prepare([folder], tmp_path / "out", atoms=("N", "CA"), workers=1, progress=False)
    assert (tmp_path / "out" / "data" / "train-00000-of-00001.parquet").read_bytes() == before


def test_rejected_text_cannot_break_the_table(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    with gzip.open(folder / "odd\tname\n.cif.gz", "wb") as file:
        file.write(b"data_x\n")
    prepare([folder], tmp_path / "out", workers=1, progress=False)
    lines = (tmp_path / "out" / "rejected.tsv").read_text().splitlines()
    assert len(lines) == 2 and lines[1].count("\t") == 2


def test_command_line(tmp_path):
    folder = make_folder(tmp_path / "in")
    command = [sys.executable, "-m", "coordformer", "prepare"]
    done = subprocess.run(
        [*command, str(folder), "--output", str(tmp_path / "out"), "--atoms", "N,CA,C", "--workers", "2"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["chains"] == 2 and "5/5" in done.stderr  # the bar goes to stderr
    assert load_rows(tmp_path / "out")[0]["atoms"] == ["N", "CA", "C"]
    failed = subprocess.run(
        [*command, str(tmp_path / "none"), "--output", str(tmp_path / "two")], capture_output=True, text=True
    )
    assert failed.returncode == 1 and "none" in failed.stderr and "Traceback" not in failed.stderr
    assert not (tmp_path / "two").exists()
    empty = subprocess.run(
        [*command, str(folder), "--output", str(tmp_path / "three"), "--min_length", "999", "--workers", "1"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert empty.returncode == 1 and "No chain was kept" in empty.stderr and "rejected.tsv says why" in empty.stderr
