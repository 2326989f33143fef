"""A folder belongs to one run: it is claimed, gone on with, and refused to others with the names of what differs."""

import json
import subprocess
import sys

import pytest

from coordformer.data import records
from coordformer.data.records import (
    begin_run,
    describe_command,
    first_lines,
    hash_data,
    hash_file,
    hash_json,
    lock_folder,
)

SETTINGS = {"model": {"layers": 2, "atoms": ("N", "CA")}, "seed": 0, "data": {}}


def test_a_new_folder_is_claimed_and_gone_on_with(tmp_path):
    folder = tmp_path / "new" / "run"
    assert not begin_run(folder, SETTINGS, holds_results=False)
    assert json.loads((folder / "run.json").read_text()) == {**SETTINGS, "model": {"layers": 2, "atoms": ["N", "CA"]}}
    assert begin_run(folder, SETTINGS, holds_results=True)
    # Without results another run may take its place.
    assert not begin_run(folder, {"seed": 1}, holds_results=False)
    assert json.loads((folder / "run.json").read_text()) == {"seed": 1}


def test_another_run_is_refused_with_what_differs(tmp_path):
    begin_run(tmp_path, SETTINGS, holds_results=False)
    other = {"model": {"layers": 3, "atoms": ["CA"]}, "seed": 0, "data": {"split": "train"}}
    changed = r"model.layers: 2 -> 3; model.atoms: \['N', 'CA'\] -> \['CA'\]; data.split: None -> 'train'"
    with pytest.raises(ValueError, match=rf"holds another run \({changed}\); choose another output folder, or delete"):
        begin_run(tmp_path, other, holds_results=True)
    assert json.loads((tmp_path / "run.json").read_text())["model"]["layers"] == 2


def test_settings_that_may_differ(tmp_path):
    begin_run(tmp_path, SETTINGS, holds_results=False)
    moved = {**SETTINGS, "model": {"layers": 4, "atoms": ["N", "CA"]}}
    assert begin_run(tmp_path, moved, holds_results=True, passing={"layers"})
    with pytest.raises(ValueError, match="seed: 0 -> 1"):
        begin_run(tmp_path, {**moved, "seed": 1}, holds_results=True, passing={"layers"})


def test_runs_of_older_versions(tmp_path):
    """A setting that is new has had its default; renamed ones are given their names."""
    begin_run(tmp_path, {"model": {"depth": 2}}, holds_results=False)
    today = {"model": {"layers": 2, "width": 8}}

    def upgrade(old):
        return {"model": {"layers": old["model"]["depth"]}}

    assert begin_run(tmp_path, today, holds_results=True, upgrade=upgrade, defaults={"width": 8})
    with pytest.raises(ValueError, match="model.width: 4 -> 8"):
        begin_run(tmp_path, today, holds_results=True, upgrade=upgrade, defaults={"width": 4})
    with pytest.raises(ValueError, match="run.json cannot be read"):
        begin_run(tmp_path, today, holds_results=True, upgrade=lambda old: old["encoder"])


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '"text"'])
def test_broken_records(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match="run.json cannot be read .*; choose another output folder, or delete it"):
        begin_run(tmp_path, SETTINGS, holds_results=True)


def test_results_without_a_record(tmp_path):
    with pytest.raises(ValueError, match="holds results without a run.json, .*; choose another output folder"):
        begin_run(tmp_path, SETTINGS, holds_results=True)
    assert not list(tmp_path.iterdir())


def test_hashes(tmp_path):
    """SHA-256, as `printf abc | sha256sum` has it."""
    (tmp_path / "abc").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert hash_file(tmp_path / "abc") == hash_data(tmp_path / "abc") == digest
    assert hash_json({"b": 1, "a": [2]}) == hash_json({"a": [2], "b": 1}) != hash_json({"a": [2], "b": 2})
    assert hash_data(tmp_path) == hash_data(tmp_path / "none") == ""
    (tmp_path / "datasheet.json").write_bytes(b"abc")
    assert hash_data(tmp_path) == digest


def test_commands_are_recorded_without_paths_and_tokens():
    command = ["/home/me/chains.parquet", "--output", "../runs/my model", "--hub_token", "hf_secret", "--seed", "1"]
    recorded = "coordformer train chains.parquet --output 'my model' --hub_token ... --seed 1"
    assert describe_command("train", command) == recorded
    assert describe_command("train", ["--hub_token=hf_secret", "a/b"]) == "coordformer train --hub_token=... a/b"
    one_word = ["--data=/home/me/chains.parquet", "--output_dir=../runs/my model", "--valid_data=a/b", "--seed=1"]
    recorded = "coordformer train --data=chains.parquet '--output_dir=my model' --valid_data=a/b --seed=1"
    assert describe_command("train", one_word) == recorded


def test_of_thousands_of_lines_the_first_are_shown():
    assert first_lines(["a", "b"]) == "a\nb" and first_lines([]) == ""
    assert first_lines([str(number) for number in range(2000)], most=2) == "0\n1\n... and 1,998 more; --json has all"


# --- locks -----------------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from coordformer.data.records import lock_folder
with lock_folder(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_two_processes_in_one_folder(tmp_path):
    """Job 1 of 3 is running; jobs that have no part in common with it may come in. A kill leaves no lock."""
    folder = tmp_path / "new" / "out"
    command = [sys.executable, "-c", HOLD, str(folder), "1", "3"]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        for job, jobs in ((2, 3), (3, 3), (2, 6)):
            with lock_folder(folder, job, jobs):
                assert len(list(folder.iterdir())) == 2
        for job, jobs in ((1, 3), (1, 1), (4, 6)):
            message = f"^{folder}: another run is writing there; wait for its end, or choose another output folder$"
            with pytest.raises(BlockingIOError, match=message), lock_folder(folder, job, jobs):
                pass
    finally:
        other.kill()
        other.communicate()
    assert [path.name for path in folder.iterdir()] == [".1-of-3.lock"]
    with lock_folder(folder, 2, 3):
        pass
    with lock_folder(folder):
        assert [path.name for path in folder.iterdir()] == [".1-of-1.lock"]
    assert not list(folder.iterdir())


def test_a_verb_holds_a_lock_and_what_it_calls_too(tmp_path):
    with lock_folder(tmp_path):
        with lock_folder(tmp_path):
            pass
        assert [path.name for path in tmp_path.iterdir()] == [".1-of-1.lock"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("writable", [False, True])
def test_where_nobody_can_write_there_is_nothing_to_lock(tmp_path, monkeypatch, writable):
    """A finished data set may lie on a disk that is read only; a full disk, though, is an error."""

    def fail(*arguments, **options):
        raise OSError("no lock file")

    monkeypatch.setattr(records.FileLock, "acquire", fail)
    monkeypatch.setattr(records.os, "access", lambda *_: writable)
    if writable:
        with pytest.raises(OSError, match="no lock file"), lock_folder(tmp_path):
            pass
    else:
        with lock_folder(tmp_path):
            pass
