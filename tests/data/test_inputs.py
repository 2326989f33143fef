"""What a verb may be given is found, listed in a stable order and read, and what cannot be read is named."""

import gzip
import io
import shutil
import tarfile

import pytest
from conftest import STRUCTURES

from coordformer.data.inputs import (
    SEQUENCE_SUFFIXES,
    is_archive,
    list_sources,
    read_contents,
    write_rejects,
)
from coordformer.model.chain import StructureError
from coordformer.model.structure import STRUCTURE_SUFFIXES

SUFFIXES = (*STRUCTURE_SUFFIXES, *SEQUENCE_SUFFIXES)


def names_of(inputs, suffixes=STRUCTURE_SUFFIXES):
    return [source.name for source in list_sources(inputs, suffixes)[0]]


def test_folders_are_searched(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    names = ["b.cif", "a.pdb.gz", "deep/c.ENT", "deep/er/d.mmcif.gz", "deep/e.pdbx", "deep/f.bcif.gz"]
    for name in [*names, "g.txt", "h.gz", "deep/odd.name"]:
        (tmp_path / name).touch()
    assert names_of([str(tmp_path)]) == sorted(names)
    # Each file once, one that is named whatever its name, all by their names below the folder in common.
    given = [tmp_path / "deep" / "odd.name", tmp_path / "deep", tmp_path / "deep" / "c.ENT"]
    assert names_of(given) == sorted(name.removeprefix("deep/") for name in (*names[2:], "deep/odd.name"))


def test_nothing_found(tmp_path):
    with pytest.raises(StructureError, match="no structure file found; give files, or folders with names that end in"):
        list_sources([tmp_path])
    with pytest.raises(StructureError, match="no path given"):
        list_sources([])
    with pytest.raises(FileNotFoundError, match="absent: no such file or folder; check the path"):
        list_sources([tmp_path / "absent"])


def add(archive, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def test_sources_are_listed_and_read_in_one_order(tmp_path):
    """Files of structures and sequences, a plain archive, whose members can be sought, and a compressed one."""
    (tmp_path / "deep").mkdir()
    entry = (STRUCTURES / "1orc.pdb.gz").read_bytes()
    (tmp_path / "deep" / "b.pdb.gz").write_bytes(entry)
    (tmp_path / "deep" / "a.FA").write_bytes(b">a\nMK\n")
    (tmp_path / "c.txt").write_bytes(b"notes")
    with tarfile.open(tmp_path / "d.tar", "w") as archive:
        add(archive, "z.fasta", b">z\nMK\n")
        add(archive, "y.pdb.gz", entry)
        add(archive, "notes.txt", b"notes")
    shutil.copy(tmp_path / "d.tar", tmp_path / "e.tar.gz")
    (tmp_path / "e.tar.gz").write_bytes(gzip.compress((tmp_path / "d.tar").read_bytes()))
    sources, rejects = list_sources([tmp_path], SUFFIXES)
    names = [source.name for source in sources]
    assert names == ["d.tar/z.fasta", "d.tar/y.pdb.gz", "deep/a.FA", "deep/b.pdb.gz", "e.tar.gz"]
    assert [is_archive(source) for source in sources] == [False, False, False, False, True]
    read = {name: data for source in sources for name, data in read_contents(source, rejects)}
    assert list(read) == [*names[:4], "e.tar.gz/z.fasta", "e.tar.gz/y.pdb.gz"] and rejects == []
    assert [name for name, data in read.items() if data == entry] == [name for name in read if "pdb" in name]
    assert names_of([tmp_path]) == ["d.tar/y.pdb.gz", "deep/b.pdb.gz", "e.tar.gz"]
    assert [name for name, _ in read_contents(sources[-1], rejects, STRUCTURE_SUFFIXES)] == ["e.tar.gz/y.pdb.gz"]


def test_what_cannot_be_read_is_said(tmp_path):
    for name in ("gone.pdb", "short.pdb"):
        (tmp_path / name).write_bytes(b"ATOM  ")
    (tmp_path / "x.tar").write_bytes(b"no archive" * 100)
    sources, rejects = list_sources([tmp_path], SUFFIXES)
    assert [source.name for source in sources] == ["gone.pdb", "short.pdb"]
    (reject,) = rejects
    assert reject[0] == "x.tar" and "broken or cut off after its start" in reject[2]
    (tmp_path / "gone.pdb").unlink()
    (tmp_path / "short.pdb").write_bytes(b"A")
    said = [data for source in sources for _, data in read_contents(source, rejects)]
    assert said == ["cannot be read (No such file or directory)", "cut off: the archive ends within it; get it again"]
    write_rejects(tmp_path / "rejected.tsv", [("a\tb", "", "two\nlines")])
    assert (tmp_path / "rejected.tsv").read_text() == "file\tchain\treason\na b\t\ttwo lines\n"
