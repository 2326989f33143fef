"""Structure files become the same data set however they are read, and nothing half-written is taken for whole."""

import gzip
import io
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import datasets
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import CHAINS, STRUCTURES

from coordformer import read_chains
from coordformer.data import prepare as preparation
from coordformer.data.prepare import (
    PrepareSettings,
    assemble,
    merge_duplicates,
    part_path,
    plan,
    prepare,
    read_part,
)
from coordformer.data.rows import SCHEMA, load_rows
from coordformer_command import main

NEEDS_MMSEQS = pytest.mark.skipif(shutil.which("mmseqs") is None, reason="needs the program mmseqs (MMseqs2)")


def make_folder(folder, copies=1):
    """Real files, one bad one of each kind, and one that no reader should look at."""
    folder.mkdir()
    for number in range(copies):
        shutil.copy(STRUCTURES / "1A8O.cif.gz", folder / f"a{number:03d}.cif.gz")
        shutil.copy(STRUCTURES / "1orc.pdb.gz", folder / f"b{number:03d}.pdb.gz")
    (folder / "broken.cif").write_bytes(os.urandom(2000))
    (folder / "truncated.cif.gz").write_bytes((STRUCTURES / "3JQH.cif.gz").read_bytes()[:9000])
    (folder / "notgzip.pdb.gz").write_text("HEADER\n")
    (folder / "notes.txt").write_text("not a structure\n")
    return folder


def rejects(output):
    lines = (output / "rejected.tsv").read_text().splitlines()
    assert lines[0] == "file\tchain\treason"
    return {line.split("\t")[0]: line.split("\t")[2] for line in lines[1:]}


def prepare_quietly(folder, output, **arguments):
    return prepare([folder], output, **{"workers": 1, "progress": False} | arguments)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_goes_on_after_bad_files_and_says_why(tmp_path):
    folder = make_folder(tmp_path / "in")
    sheet = prepare_quietly(folder, tmp_path / "out")
    wanted = {"files": 5, "chains_read": 2, "chains": 2, "duplicates_merged": 0, "rejected": 3, "residues": 141}
    assert wanted.items() <= sheet["counts"].items()
    assert set(rejects(tmp_path / "out")) == {"broken.cif", "truncated.cif.gz", "notgzip.pdb.gz"}
    # The reason does not say where the files lay.
    assert not any(str(tmp_path) in reason for reason in rejects(tmp_path / "out").values())
    rows = load_rows(tmp_path / "out")
    assert rows["source"][:] == ["a000.cif.gz", "b000.pdb.gz"] and rows[0]["id"] == "1A8O_A"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "data", "datasheet.json", "rejected.tsv", "run.json"
    ]  # fmt: skip


def test_filters_and_says_why(tmp_path):
    folder = make_folder(tmp_path / "in")
    prepare_quietly(folder, tmp_path / "out", min_length=71)
    assert "70 residues are fewer than min_length=71" in rejects(tmp_path / "out").values()
    prepare_quietly(folder, tmp_path / "two", max_length=70, min_observed=0.95)
    assert "71 residues are more than max_length=70" in rejects(tmp_path / "two")["b000.pdb.gz"]


def with_confidence(text, *values):
    """The atoms of a PDB file as a model with a chain for each value, the pLDDT of all its residues."""
    atoms = [line for line in text.splitlines() if line.startswith("ATOM")]
    lines = [
        f"{atom[:21]}{name}{atom[22:60]}{value:6.2f}"
        for name, value in zip("AB", values, strict=False)
        for atom in atoms
    ]
    return "\n".join(lines) + "\n"


def test_confidence(tmp_path):
    """The mean is over the values as deposited; a line for each chain that goes; no experiment, and no other scale."""
    folder = tmp_path / "in"
    folder.mkdir()
    text = gzip.decompress((STRUCTURES / "1orc.pdb.gz").read_bytes()).decode()
    half = with_confidence(text, 90.0).splitlines()
    half = [line[:60] + " 20.00" if 20 <= int(line[22:26]) < 50 else line for line in half]
    (folder / "half.pdb").write_text("\n".join(half) + "\n")
    (folder / "mixed.pdb").write_text(with_confidence(text, 91.5, 42.0))
    (folder / "ones.pdb").write_text(with_confidence(text, 0.9))
    shutil.copy(STRUCTURES / "1A8O.cif.gz", folder)
    for name, value in (("min_plddt", 70), ("min_mean_plddt", 75)):
        prepare_quietly(folder, tmp_path / name, **{name: value, "keep_duplicates": True})
        lines = [line.split("\t") for line in (tmp_path / name / "rejected.tsv").read_text().splitlines()[1:]]
        reasons = {(file, chain): reason for file, chain, reason in lines}
        assert f"{name}={value} needs a predicted model, but the file is" in reasons["1A8O.cif.gz", ""]
        assert f"{name}={value}, but the highest value in the file is 0.9" in reasons["ones.pdb", ""]
        assert f"{name}={value}" in reasons["mixed.pdb", "mixed_B"]
        kept = ["half_A", "mixed_A"] if name == "min_plddt" else ["mixed_A"]
        assert load_rows(tmp_path / name)["id"][:] == kept and len(reasons) == 5 - len(kept)
    assert "the mean pLDDT is 4" in reasons["mixed.pdb", "mixed_B"]
    # Both: 30 of 64 residues below 70 pull the mean down, whether they are blanked or not.
    prepare_quietly(folder, tmp_path / "both", min_plddt=70, min_mean_plddt=75)
    assert load_rows(tmp_path / "both")["id"][:] == ["mixed_A"]


def test_does_not_depend_on_the_number_of_workers(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "in", copies=16)
    monkeypatch.setattr(preparation, "FILES_PER_PART", 4)
    monkeypatch.setattr(preparation, "SECONDS_WORTH_WORKERS", 0)
    monkeypatch.setattr(preparation, "_cores", lambda: 2)
    for workers in (1, 2, None):
        prepare_quietly(folder, tmp_path / f"{workers}", workers=workers, chains_per_shard=12, keep_duplicates=True)
    first, second, third = (contents(tmp_path / name) for name in ("1", "2", "None"))
    assert first == second == third
    assert [path.name for path in sorted(first) if path.suffix == ".parquet"] == [
        f"train-{i:05d}-of-00003.parquet" for i in range(3)
    ]
    assert [pq.read_metadata(path).num_rows for path in sorted((tmp_path / "1" / "data").iterdir())] == [12, 12, 8]


def test_other_processes_are_started_for_what_is_worth_it(tmp_path, monkeypatch):
    """Of eleven parts of a second each, on two cores: after the first ten are left, of which half would be saved.

    This process reads, too, so that there is one less to be started.
    """
    folder, started = make_folder(tmp_path / "in", copies=20), []
    monkeypatch.setattr(preparation, "FILES_PER_PART", 4)
    monkeypatch.setattr(preparation, "_cores", lambda: 2)

    class Pool(ThreadPoolExecutor):
        def __init__(self, workers, mp_context):
            started.append(workers)
            super().__init__(workers)

    monkeypatch.setattr(preparation, "ProcessPoolExecutor", Pool)
    for least, workers, expected in ((4.9, None, [1]), (5.1, None, []), (4.9, 1, []), (99, 2, [1]), (99, 30, [10])):
        monkeypatch.setattr(preparation, "time", SimpleNamespace(monotonic=itertools.count().__next__))
        monkeypatch.setattr(preparation, "SECONDS_WORTH_WORKERS", least)
        output = tmp_path / f"{least}-{workers}"
        assert prepare_quietly(folder, output, workers=workers, keep_duplicates=True)["counts"]["files"] == 43
        assert started == expected, (least, workers)
        started.clear()


def test_shards_stream(tmp_path):
    prepare_quietly(make_folder(tmp_path / "in", 3), tmp_path / "out", chains_per_shard=2, keep_duplicates=True)
    stream = datasets.load_dataset(str(tmp_path / "out"), split="train", streaming=True, cache_dir=str(tmp_path / "c"))
    assert [row["id"] for row in stream] == load_rows(tmp_path / "out")["id"][:]
    assert load_rows(tmp_path / "out")["id"][:] == [f"{name}{number:03d}_A" for name in "ab" for number in range(3)]


# --- duplicates, clusters, splits ------------------------------------------------------------------------------------


def test_duplicates_by_hand():
    table = pa.table(
        {
            "id": ["a", "b", "c", "d", "e", "f"],
            "sequence": ["MKV", "GGA", "MKV", "MKV", "MKV", "W"],
            "observed": pa.array([2, 3, 3, 3, 3, 1], pa.int32()),
            "resolution": pa.array([1.0, None, 2.5, 1.8, None, None], pa.float32()),
        }
    )
    kept, aliases = merge_duplicates(table)
    assert list(kept) == [1, 3, 5]  # d: as many observed residues as c and e, and the best resolution
    assert aliases == [None, ["a", "c", "e"], None]


@pytest.mark.slow  # 3 GB of memory
def test_more_letters_than_plain_strings_hold(tmp_path):
    """2.2e9 letters, in a few long sequences, each twice."""
    part_path(tmp_path, 0).parent.mkdir(parents=True)
    for number in range(2):
        rows = [
            {"id": f"{number}-{n}", "sequence": "AC"[n % 2] * (10**8 + n), "length": 10**8 + n, "observed": 0,
             "atoms": ["CA"], "coords": []} for n in range(11)
        ]  # fmt: skip
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        metadata = {"coordformer.rejects": "[]", "files": "0"}
        pq.write_table(table.replace_schema_metadata(metadata), part_path(tmp_path, number))
    sheet = assemble(tmp_path, PrepareSettings())
    assert (sheet["counts"]["chains"], sheet["counts"]["duplicates_merged"]) == (11, 11)


def test_duplicates_become_aliases(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    text = gzip.decompress((STRUCTURES / "1orc.pdb.gz").read_bytes()).decode()
    for name in ("1ORC", "2ORC", "3ORC"):
        (folder / f"{name.lower()}.pdb").write_text(text.replace("1ORC", name))
    sheet = prepare_quietly(folder, tmp_path / "out")
    (row,) = load_rows(tmp_path / "out")
    assert (row["id"], row["aliases"]) == ("1ORC_A", ["2ORC_A", "3ORC_A"])
    assert sheet["counts"]["duplicates_merged"] == 2 and sheet["counts"]["chains_read"] == 3
    assert len(load_rows(tmp_path / "out")) == 1
    prepare_quietly(folder, tmp_path / "all", keep_duplicates=True)
    assert load_rows(tmp_path / "all")["id"][:] == ["1ORC_A", "2ORC_A", "3ORC_A"]


def real_parts(output, numbers):
    """Parts as `read_part` leaves them, of real chains and of copies with some residues exchanged."""
    rows = load_rows(CHAINS).select(numbers).to_list()
    for row in list(rows):
        sequence = list(row["sequence"])
        sequence[::12] = "A" * len(sequence[::12])
        rows.append(row | {"id": row["id"] + "m", "sequence": "".join(sequence)})
    part_path(output, 0).parent.mkdir(parents=True)
    for number, start in enumerate(range(0, len(rows), 50)):
        table = pa.Table.from_pylist(rows[start : start + 50], schema=SCHEMA)
        metadata = {"coordformer.rejects": "[]", "files": "0"}
        pq.write_table(table.replace_schema_metadata(metadata), part_path(output, number))
    return rows


@NEEDS_MMSEQS
def test_no_cluster_crosses_splits(tmp_path):
    rows = real_parts(tmp_path / "out", range(0, 600, 5))
    sheet = assemble(tmp_path / "out", PrepareSettings(splits={"train": 0.7, "valid": 0.3}, chains_per_shard=60))
    chains = load_rows(tmp_path / "out")
    where = {row["id"]: (row["cluster"], row["split"]) for row in chains}
    assert set(where) == {row["id"] for row in rows}
    assert all(where[name] == where[name.removesuffix("m")] for name in where)  # one in twelve residues differs
    of_cluster: dict[int, set[str]] = {}
    for cluster, split in where.values():
        of_cluster.setdefault(cluster, set()).add(split)
    assert all(len(splits) == 1 for splits in of_cluster.values())
    assert sheet["counts"]["clusters"] == len(of_cluster) >= 100
    # Files, column and `datasets` agree; 240 chains of about 120 clusters: 30 % within five standard deviations.
    for name in ("train", "valid"):
        of_split = load_rows(tmp_path / "out", name)
        assert set(of_split["split"][:]) == {name}
        assert len(of_split) == sheet["splits"][name]["chains"]
        stream = datasets.load_dataset(str(tmp_path / "out"), split=name, streaming=True, cache_dir=str(tmp_path / "c"))
        assert [row["id"] for row in stream] == of_split["id"][:]
    assert abs(sheet["splits"]["valid"]["chains"] / 240 - 0.3) < 5 * (0.3 * 0.7 / 120) ** 0.5
    assert "No cluster is in two splits" in (tmp_path / "out" / "README.md").read_text()


def test_without_mmseqs_splits_fail_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="apt install mmseqs2"):
        prepare_quietly(make_folder(tmp_path / "in"), tmp_path / "out", splits={"train": 1.0})
    assert not (tmp_path / "out").exists()


# --- datasheet -------------------------------------------------------------------------------------------------------


def test_datasheet_by_hand(tmp_path):
    prepare_quietly(make_folder(tmp_path / "in"), tmp_path / "out")
    sheet = json.loads((tmp_path / "out" / "datasheet.json").read_text())
    chains = [read_chains(STRUCTURES / name)[0] for name in ("1A8O.cif.gz", "1orc.pdb.gz")]
    assert sheet["length"] == {"0%": 70, "5%": 70.05, "25%": 70.25, "50%": 70.5, "75%": 70.75, "95%": 70.95, "100%": 71}
    assert sheet["counts"]["observed_residues"] == sum(int(chain.observed.sum()) for chain in chains)
    assert sheet["methods"] == {"X-RAY DIFFRACTION": 2}
    (name, shard), *others = sheet["shards"].items()
    path = tmp_path / "out" / "data" / name
    assert not others and (shard["rows"], shard["bytes"]) == (2, path.stat().st_size)
    digest = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
    assert shard["sha256"] == digest
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| train | 2 | 141 | not made |" in text and str(tmp_path) not in text


# --- ids -------------------------------------------------------------------------------------------------------------


def made_model(entry, sequence, x=0.0):
    """A made PDB file of one chain, C-alphas alone, as programs write it that have no name for an entry."""
    names = {"G": "GLY", "A": "ALA", "S": "SER", "L": "LEU", "V": "VAL", "T": "THR"}
    lines = ["HEADER    MADE".ljust(62) + entry]
    for number, letter in enumerate(sequence, 1):
        place = f"{3.8 * number + x:8.3f}{0:8.3f}{0:8.3f}  1.00 80.00           C"
        lines.append(f"ATOM  {number:5d}  CA  {names[letter]} A{number:4d}    {place}")
    return "\n".join([*lines, "TER", "END", ""])


def write_models(folder, models):
    for name, text in models.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_every_chain_has_an_id_of_its_own(tmp_path, monkeypatch):
    """Placeholders, equal names, equal entries, members of archives, duplicates; however they are read."""
    folder = write_models(
        tmp_path / "in",
        {
            "one.pdb": made_model("XXXX", "GAS"), "two.pdb": made_model("XXXX", "LVT"),
            "a/model.pdb": made_model("    ", "GAGA"), "b/model.pdb": made_model("    ", "GASA"),
            "c/x.pdb": made_model("1ABC", "GGG"), "c/y.pdb": made_model("1ABC", "GGGG"),
            "c/z.pdb": made_model("1ABC", "GGGG"), "d/2ABC.pdb": made_model("2ABC", "LLL"),
        },
    )  # fmt: skip
    members = {"m/model.pdb": made_model("XXXX", "SAS"), "n/model.pdb": made_model("XXXX", "SASA")}
    members["2ABC.pdb"] = made_model("2ABC", "LLLL")
    make_tar(folder / "e.tar.gz", [(name, text.encode()) for name, text in members.items()], "w:gz")
    ids = [
        "m/model_A",
        "n/model_A",
        "e.tar.gz/2ABC_A",
        "a/model_A",
        "b/model_A",
        "x_A",
        "y_A",
        "d/2ABC_A",
        "one_A",
        "two_A",
    ]
    for files_per_part, workers in ((64, 1), (1, 1), (1, 2)):
        monkeypatch.setattr(preparation, "FILES_PER_PART", files_per_part)
        output = tmp_path / f"{files_per_part}-{workers}"
        sheet = prepare_quietly(folder, output, workers=workers)
        rows = load_rows(output)
        assert rows["id"][:] == ids and sheet["counts"]["rejected"] == 0
        assert rows["aliases"][:] == [["z_A"] if name == "y_A" else None for name in ids]
        assert sheet["counts"]["chains_read"] == 11


def test_a_file_that_is_no_utf8_by_name(tmp_path):
    folder = write_models(tmp_path / "in", {"a.pdb": made_model("XXXX", "GAS")})
    os.rename(folder / "a.pdb", os.path.join(os.fsencode(folder), b"a\xff.pdb"))
    prepare_quietly(folder, tmp_path / "out")
    (row,) = load_rows(tmp_path / "out")
    assert (row["id"], row["source"]) == ("a\\udcff_A", "a\\udcff.pdb")


# --- archives --------------------------------------------------------------------------------------------------------


def make_tar(path, members, mode="w"):
    """`members` are (name, bytes), or a TarInfo for what is no file."""
    with tarfile.open(path, mode) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def real_members():
    names = ("1A8O.cif.gz", "1orc.pdb.gz")
    return [(f"proteome/{name}", (STRUCTURES / name).read_bytes()) for name in names]


@pytest.mark.parametrize(
    ("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("a.tar.xz", "w:xz")]
)
def test_archives_read_as_their_files(tmp_path, name, mode):
    (tmp_path / "in").mkdir()
    make_tar(tmp_path / "in" / name, [*real_members(), ("readme.txt", b"no structure")], mode)
    prepare_quietly(tmp_path / "in", tmp_path / "out")
    rows = load_rows(tmp_path / "out")
    assert rows["id"][:] == ["1A8O_A", "1ORC_A"]
    assert rows["source"][:] == [f"{name}/proteome/1A8O.cif.gz", f"{name}/proteome/1orc.pdb.gz"]
    np.testing.assert_array_equal(
        np.float32(rows[0]["coords"]), read_chains(STRUCTURES / "1A8O.cif.gz")[0].coords.reshape(-1)
    )
    assert rejects(tmp_path / "out") == {}


def test_members_cannot_escape(tmp_path):
    """Whatever a member is called or points to, nothing is written or read outside."""
    (tmp_path / "in").mkdir()
    secret = tmp_path / "secret.pdb"
    shutil.copy(STRUCTURES / "1orc.pdb.gz", secret)
    link = tarfile.TarInfo("link.pdb")
    link.type, link.linkname = tarfile.SYMTYPE, str(secret)
    hard = tarfile.TarInfo("hard.pdb")
    hard.type, hard.linkname = tarfile.LNKTYPE, "../secret.pdb"
    device = tarfile.TarInfo("zero.pdb")
    device.type, device.devmajor, device.devminor = tarfile.CHRTYPE, 1, 5
    data = (STRUCTURES / "1A8O.cif.gz").read_bytes()
    names = ["../../escaped.cif.gz", f"{tmp_path}/absolute.cif.gz"]
    make_tar(tmp_path / "in" / "evil.tar", [link, hard, device, *((name, data) for name in names)])
    before = contents(tmp_path)
    prepare_quietly(tmp_path / "in", tmp_path / "out" / "deep", keep_duplicates=True)
    assert load_rows(tmp_path / "out" / "deep")["id"][:] == ["escaped_A", "absolute_A"]
    assert all("a link or special file" in reason for reason in rejects(tmp_path / "out" / "deep").values())
    assert len(rejects(tmp_path / "out" / "deep")) == 3
    shutil.rmtree(tmp_path / "out")
    assert contents(tmp_path) == before


def test_bombs_are_bounded(tmp_path):
    """A header that promises much, a gzip that grows a thousandfold, and a file with holes in it."""
    (tmp_path / "in").mkdir()
    huge = tarfile.TarInfo("huge.pdb")
    huge.size = 2**40
    good = real_members()[:1]
    end = 512 + -(-len(good[0][1]) // 512) * 512
    (tmp_path / "in" / "a.tar").write_bytes(make_tar(tmp_path / "x", good).read_bytes()[:end] + huge.tobuf())
    make_tar(tmp_path / "in" / "b.tar.gz", [("zeros.pdb", bytes(20_000_000)), *good], "w:gz")
    bomb = gzip.compress(b"ATOM  " + b" " * 50_000_000)
    make_tar(tmp_path / "in" / "c.tar", [("bomb.pdb.gz", bomb)])
    assert prepare_quietly(tmp_path / "in", tmp_path / "out")["counts"]["chains"] == 1
    reasons = rejects(tmp_path / "out")
    assert "cut off" in reasons["a.tar"] or "larger than" in reasons.get("a.tar/huge.pdb", "")
    assert "zeros.pdb brings it beyond 200 times its size; a bomb?" in reasons["b.tar.gz"]
    assert "c.tar/bomb.pdb.gz" in reasons


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE])
def test_headers_are_bounded(tmp_path, kind):
    """`tarfile` itself reads a name, or a list of the holes in a file, of any length into memory."""
    (tmp_path / "in").mkdir()
    header = tarfile.TarInfo("huge.pdb")
    header.type, header.size = kind, 50_000_000
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    if kind == tarfile.GNUTYPE_SPARSE:
        block[482] = 1  # the list goes on in the next block
        block[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(block))[0]
    listed = (b"00000000001\0" * 42 + b"\1" + bytes(7)) * 100_000
    good = real_members()[:1]
    end = 512 + -(-len(good[0][1]) // 512) * 512
    start = make_tar(tmp_path / "good", good).read_bytes()[:end]
    (tmp_path / "in" / "a.tar.gz").write_bytes(gzip.compress(start + block + listed))
    tracemalloc.start()
    prepare_quietly(tmp_path / "in", tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f"a header of more than {2**20} bytes, a bomb?" in rejects(tmp_path / "out")["a.tar.gz"]
    assert load_rows(tmp_path / "out")["id"][:] == ["1A8O_A"]
    assert peak < 40_000_000


@pytest.mark.parametrize("name", ["cut.tar", "cut.tar.gz"])
def test_archives_that_are_cut_off(tmp_path, name):
    """What comes before the cut is read."""
    (tmp_path / "in").mkdir()
    noise = [("c.pdb.gz", os.urandom(50_000))]
    make_tar(tmp_path / "whole", real_members() + noise, "w:gz" if name.endswith("gz") else "w")
    whole = (tmp_path / "whole").read_bytes()
    (tmp_path / "in" / name).write_bytes(whole[: len(whole) - 30_000])
    prepare_quietly(tmp_path / "in", tmp_path / "out")
    assert load_rows(tmp_path / "out")["id"][:] == ["1A8O_A", "1ORC_A"]
    said = rejects(tmp_path / "out")
    assert said and all(where.startswith(name) and "cut off" in reason for where, reason in said.items())


def test_an_archive_that_is_none(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").write_bytes(os.urandom(5000))
    prepare_quietly(tmp_path / "in", tmp_path / "out")
    assert "broken or cut off after its start" in rejects(tmp_path / "out")["a.tar"]


# --- stops -----------------------------------------------------------------------------------------------------------


def start(folder, output, *options, **arguments):
    command = [
        sys.executable,
        "-m",
        "coordformer",
        "prepare",
        str(folder),
        "--output",
        str(output),
        "--quiet",
        *options,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **arguments)


def test_goes_on_after_a_kill(tmp_path, monkeypatch):
    """SIGKILL as soon as the second part is there; the second run keeps what is whole and adds the rest."""
    folder = make_folder(tmp_path / "in", copies=55)  # four parts
    options = ("--workers", "1", "--keep_duplicates", "--chains_per_shard", "100")
    prepare_quietly(folder, tmp_path / "whole", keep_duplicates=True, chains_per_shard=100)
    process = start(folder, tmp_path / "out", *options)
    reading = tmp_path / "out" / "reading"
    while process.poll() is None and len(list(reading.glob("part-*.parquet"))) < 2:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = sorted(reading.glob("part-*.parquet"))
    assert 2 <= len(done) < 4 and not (tmp_path / "out" / "data").exists()
    with pytest.raises(FileNotFoundError, match="No Parquet file"):
        load_rows(tmp_path / "out")
    (reading / "part-0000003.parquet.tmp").write_bytes(b"half a part")
    read = []
    monkeypatch.setattr(preparation, "read_part", lambda *arguments: read.append(arguments[2]) or read_part(*arguments))
    prepare_quietly(folder, tmp_path / "out", keep_duplicates=True, chains_per_shard=100)
    assert not set(read) & set(done) and len(read) + len(done) == 4
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_goes_on_after_a_kill_while_assembling(tmp_path):
    folder = make_folder(tmp_path / "in")
    prepare_quietly(folder, tmp_path / "whole")
    # What a kill leaves between the shards and the datasheet: parts, and shards that no datasheet vouches for.
    parts, _ = plan([folder])
    settings = PrepareSettings()
    (tmp_path / "out" / "reading").mkdir(parents=True)
    shutil.copy(tmp_path / "whole" / "run.json", tmp_path / "out")
    read_part(parts[0], settings, part_path(tmp_path / "out", 0))
    (tmp_path / "out" / "data").mkdir()
    (tmp_path / "out" / "data" / "train-00000-of-00009.parquet").write_bytes(b"old")
    prepare_quietly(folder, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_lost_worker_is_said_and_costs_nothing(tmp_path, monkeypatch):
    """A worker is killed as soon as the first part is there."""
    folder = make_folder(tmp_path / "in", copies=60)
    monkeypatch.setattr(preparation, "FILES_PER_PART", 4)
    reading = tmp_path / "out" / "reading"

    def kill():
        while not list(reading.glob("part-*.parquet")):
            time.sleep(0.002)
        children = psutil.Process().children()
        next(child for child in children if any("spawn_main" in part for part in child.cmdline())).kill()

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    with pytest.raises(OSError, match="a worker of `prepare` was killed.* run the same command again to go on, with"):
        prepare_quietly(folder, tmp_path / "out", keep_duplicates=True, workers=2)
    thread.join()
    assert 1 <= len(list(reading.glob("part-*.parquet"))) < 31
    assert prepare_quietly(folder, tmp_path / "out", keep_duplicates=True)["counts"]["chains"] == 120


def test_a_full_disk_is_said_and_costs_nothing(tmp_path):
    """No file may grow beyond 4 kB: the operating system refuses to write on, as on a full disk."""
    folder = make_folder(tmp_path / "in", copies=40)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000))

    process = start(folder, tmp_path / "out", "--workers", "1", "--keep_duplicates", preexec_fn=limit)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in text
    assert "part-0000000.parquet could not be written" in text and "make room and run again" in text
    assert not list((tmp_path / "out").rglob("*.parquet*"))
    assert prepare_quietly(folder, tmp_path / "out", keep_duplicates=True)["counts"]["chains"] == 80


def stop_after(monkeypatch, parts):
    """`prepare` is stopped when so many parts are there."""
    left = iter(range(parts))

    def reading(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return read_part(*arguments)

    monkeypatch.setattr(preparation, "read_part", reading)


@pytest.mark.parametrize("change", ["coordinates", "entry"])
def test_what_has_changed_is_read_again(tmp_path, monkeypatch, change):
    """An edit at equal size, of coordinates in a part that is there, and of an entry that names a file in another."""
    models = {
        f"{name}.pdb": made_model("1ABC", sequence) for name, sequence in (("a", "GAS"), ("b", "LVT"), ("c", "GG"))
    }
    folder = write_models(tmp_path / "in", models)
    edited = made_model("1ABC", "GAS", x=1.0) if change == "coordinates" else made_model("1XYZ", "GG")
    name = "a.pdb" if change == "coordinates" else "c.pdb"
    assert len(edited) == len(models[name])
    monkeypatch.setattr(preparation, "FILES_PER_PART", 1)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            prepare_quietly(folder, tmp_path / "out")
    write_models(folder, {name: edited})
    if change == "entry":  # then a has its entry to itself
        write_models(folder, {"b.pdb": made_model("2XYZ", "LVT")})
    prepare_quietly(folder, tmp_path / "out")
    prepare_quietly(folder, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    (row,) = load_rows(tmp_path / "out").select([0])
    assert row["id"] == ("a_A" if change == "coordinates" else "1ABC_A")
    assert row["coords"][0] == np.float32(4.8 if change == "coordinates" else 3.8)


def test_a_finished_data_set_of_files_that_have_changed(tmp_path):
    folder = write_models(tmp_path / "in", {"a.pdb": made_model("1ABC", "GAS"), "b.pdb": made_model("2ABC", "GG")})
    sheet = prepare_quietly(folder, tmp_path / "out")
    before = contents(tmp_path / "out")
    write_models(folder, {"a.pdb": made_model("1ABC", "GAS", x=1.0)})
    with pytest.raises(
        ValueError, match="out: the files that .* was made of have changed since; choose another output"
    ):
        prepare_quietly(folder, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    # Of an older version nobody knows what it was made of.
    del sheet["contents"]
    (tmp_path / "out" / "datasheet.json").write_text(json.dumps(sheet))
    assert prepare_quietly(folder, tmp_path / "out") == sheet


def test_a_second_process_is_refused(tmp_path, capsys):
    """The first one stands still in the middle of its work, with half a part on the disk."""
    folder = make_folder(tmp_path / "in", copies=55)  # four parts
    process = start(folder, tmp_path / "out", "--workers", "1", "--keep_duplicates")
    reading = tmp_path / "out" / "reading"
    while process.poll() is None and not list(reading.glob("part-*.parquet")):
        time.sleep(0.005)
    process.send_signal(signal.SIGSTOP)
    (reading / "part-0000009.parquet.12345678.tmp").write_bytes(b"half a part")
    options = ["--output", str(tmp_path / "out"), "--workers", "1", "--keep_duplicates", "--quiet"]
    assert main(["prepare", str(folder), *options]) == 1
    refusal = "another run is writing there; wait for its end, or choose another output folder"
    assert capsys.readouterr().err == f"coordformer: {tmp_path}/out: {refusal}\n"
    assert (reading / "part-0000009.parquet.12345678.tmp").exists()
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode == 0
    prepare_quietly(folder, tmp_path / "whole", keep_duplicates=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_finished_data_set_is_left_alone(tmp_path):
    folder = make_folder(tmp_path / "in")
    sheet = prepare_quietly(folder, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert prepare_quietly(folder, tmp_path / "out") == sheet
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    for changed, message in (
        ({"atoms": ("N", "CA")}, r"atoms: \['CA'\] -> \['N', 'CA'\]"),
        ({"keep_duplicates": True}, "keep_duplicates: False -> True"),
    ):
        with pytest.raises(ValueError, match=rf"out holds another run \({message}\); choose another output folder"):
            prepare_quietly(folder, tmp_path / "out", **changed)
    # What decides nothing without splits, or nothing at all, may differ.
    assert prepare_quietly(folder, tmp_path / "out", seed=1, workers=2) == sheet
    shutil.copy(STRUCTURES / "1A8O.cif.gz", folder / "new.cif.gz")
    with pytest.raises(ValueError, match=r"holds another run \(sources.files: 5 -> 6; other sources"):
        prepare_quietly(folder, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_what_a_run_leaves_of_another_is_not_mixed(tmp_path):
    """Parts, shards or a datasheet alone make a folder another run's; its settings are there to read."""
    folder = make_folder(tmp_path / "in")
    prepare_quietly(folder, tmp_path / "out", min_length=2)
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (run["min_length"], run["atoms"], run["sources"]["files"]) == (2, ["CA"], 5)
    for name in ("data", "datasheet.json"):
        other = tmp_path / f"with {name}"
        other.mkdir()
        shutil.move(tmp_path / "out" / name, other)
        with pytest.raises(ValueError, match="holds results without a run.json"):
            prepare_quietly(folder, other)
        shutil.copy(tmp_path / "out" / "run.json", other)
        with pytest.raises(ValueError, match="min_length: 2 -> 1"):
            prepare_quietly(folder, other)
        assert prepare_quietly(folder, other, min_length=2)["counts"]["chains"] == 2
    part_path(tmp_path / "parts", 0).parent.mkdir(parents=True)
    read_part(plan([folder])[0][0], PrepareSettings(), part_path(tmp_path / "parts", 0))
    with pytest.raises(ValueError, match="holds results without a run.json"):
        prepare_quietly(folder, tmp_path / "parts")


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"atoms": ["CA", "CA"]}, "name each atom once"),
        ({"atoms": [""]}, "name each atom once"),
        ({"min_length": 50, "max_length": 10}, r"`max_length` \(10\) is less than `min_length` \(50\)"),
        ({"min_observed": 2}, "`min_observed` is 2; it is a share"),
        ({"workers": 0}, "`workers` is 0"),
        ({"chains_per_shard": 0}, "`chains_per_shard` is 0"),
        pytest.param({"splits": {"train": 0.5}}, "sum to 0.5; make them sum to 1", marks=NEEDS_MMSEQS),
        pytest.param({"splits": {"train": 1.0}, "identity": 2}, "identity is 2", marks=NEEDS_MMSEQS),
    ],
)
def test_bad_options_are_named(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        prepare_quietly(STRUCTURES, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_one_odd_file_does_not_cost_the_others(tmp_path, monkeypatch):
    """Whatever it makes the reader raise, which is to raise nothing but `ValueError` and `OSError`."""
    folder = write_models(tmp_path / "in", {"a.pdb": made_model("1ABC", "GAS"), "b.pdb": made_model("2ABC", "LVT")})

    def reading(name, *arguments, **options):
        if name == "a.pdb":
            raise MemoryError("of all things")
        return read_chains(name, *arguments, **options)

    monkeypatch.setattr("coordformer.data.reading.read_chains", reading)
    sheet = prepare_quietly(folder, tmp_path / "out")
    assert sheet["counts"]["chains"] == 1 and rejects(tmp_path / "out") == {"a.pdb": "MemoryError: of all things"}


def test_rejected_text_cannot_break_the_table(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    with gzip.open(folder / "odd\tname\n.cif.gz", "wb") as file:
        file.write(b"data_x\n")
    prepare_quietly(folder, tmp_path / "out")
    lines = (tmp_path / "out" / "rejected.tsv").read_text().splitlines()
    assert len(lines) == 2 and lines[1].count("\t") == 2


def test_command_line(tmp_path, capsys):
    folder = make_folder(tmp_path / "in")
    done = subprocess.run(
        [sys.executable, "-m", "coordformer", "prepare", str(folder), "--output", str(tmp_path / "out"),
         "--atoms", "N,CA,C", "--workers", "2", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["chains"] == 2 and "5/5" in done.stderr  # the bar goes to stderr
    assert load_rows(tmp_path / "out")[0]["atoms"] == ["N", "CA", "C"]
    for options, message in (
        ([str(tmp_path / "none"), "--output", str(tmp_path / "two")], "none"),
        (["--output", str(tmp_path / "two")], "There is nothing to prepare; give files"),
    ):
        assert main(["prepare", *options]) == 1 and message in capsys.readouterr().err
        assert not (tmp_path / "two").exists()
    with pytest.raises(SystemExit):
        main(["prepare", str(folder), "--output", str(tmp_path / "two"), "--splits", "train"])
    assert "--splits: 'train': write names and shares" in capsys.readouterr().err
    options = ["--output", str(tmp_path / "three"), "--min_length", "999", "--workers", "1"]
    assert main(["prepare", str(folder), *options]) == 1
    text = capsys.readouterr().err
    assert "No chain was kept" in text and "rejected.tsv says why" in text
