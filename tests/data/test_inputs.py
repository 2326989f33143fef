"""What a verb may be given is found, listed in a stable order and read, and what cannot be read is named."""

import gzip
import io
import os
import shutil
import tarfile

import pytest
from conftest import STRUCTURES

from coordformer.data.inputs import (
    Source,
    is_archive,
    list_sources,
    name_entries,
    read_contents,
    write_rejects,
)
from coordformer.model.chain import StructureError
from coordformer.model.proteins import SEQUENCE_SUFFIXES, distinct_ids
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


# --- names of entries ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "entries"),
    [
        (["model.cif"], [None]),
        (["a/one.cif", "b/two.pdb.gz"], [None, None]),
        (["a/model.cif", "b/model.cif"], ["a/model", "b/model"]),
        (["model.cif", "model.pdb"], ["model.cif", "model.pdb"]),
        (["1abc.cif.gz", "1abc.pdb.gz", "1abc.pdb"], ["1abc.cif", "1abc.pdb.gz", "1abc.pdb"]),
        (["a/x/model.cif", "b/x/model.cif", "b/y/model.cif"], ["a/x/model", "b/x/model", "y/model"]),
        (["a/model.cif", "b/model.cif", "model.cif", "other.cif"], ["a/model", "b/model", "model.cif", None]),
        (["a/m.cif", "a/m.pdb", "b/m.cif"], ["m.cif", "m.pdb", "b/m"]),
        (["b/1abc.pdb", "c/1abc.tar.gz", "d/1abc.bcif"], [None, None, None]),
    ],
)
def test_equal_entries_get_the_part_of_the_path_that_tells_them_apart(names, entries):
    """Of files that cannot be read, which have their names for entries; in any order."""
    sources = [Source(name, "/nowhere", 0) for name in names]
    assert [source.entry for source in name_entries(sources)] == entries
    assert [source.entry for source in name_entries(sources[::-1])] == entries[::-1]


def test_two_members_of_one_name():
    """Odd folders are no part of a name, and where nothing else is left the number in the list is."""
    sources = [Source(name, "/nowhere", 0) for name in ("t.tar/../x.pdb", "t.tar//x.pdb", "u.tar/x.pdb")]
    assert [source.entry for source in name_entries(sources)] == ["t.tar/../x.pdb-1", "t.tar//x.pdb-2", "u.tar/x"]


def test_the_heads_of_files_decide(tmp_path):
    """Plain, gzipped, as a member, with the entry far down or where the first look ends; FASTA files have none."""
    far = b"data_x\n" + b"# a comment\n" * 2000 + b"_entry.id 1FAR\n"
    cut = b"data_x\n" + b"#" * (4096 - 7 - 13) + b"\n_entry.id 1CUT\n"  # the first look ends with 1C
    assert cut[:4096].endswith(b"_entry.id 1C")
    for name, data in {
        "a.cif": far, "b.cif.gz": gzip.compress(far), "c.cif": cut, "d.cif": b"data_x\n_entry.id 1C\n",
        "e.pdb": b"HEADER    MADE".ljust(62) + b"1ABC\n", "f.fa": b"\n>1ABC\nMKV\n", "g.txt": b">e\nMKV\n",
        "h/1ABC.pdb": b"ATOM\n", "1ABC.fa": b">x\nMKV\n",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with tarfile.open(tmp_path / "i.tar", "w") as archive:
        add(archive, "x/j.cif", far)
        add(archive, "k.cif.gz", gzip.compress(cut))
    sources, _ = list_sources([tmp_path, tmp_path / "g.txt"], SUFFIXES)
    assert {source.name: source.entry for source in name_entries(sources) if source.entry is not None} == {
        "a.cif": "a", "b.cif.gz": "b", "i.tar/x/j.cif": "j", "c.cif": "c", "i.tar/k.cif.gz": "k", "e.pdb": "e",
    }  # fmt: skip


def test_a_new_name_is_no_name_of_another_file(tmp_path):
    """Two files of one entry would take their names, but another file has that of the first for its entry."""
    for name, entry in (("one.cif", "1ABC"), ("two.cif", "1ABC"), ("three.cif", "one")):
        (tmp_path / name).write_text(f"data_x\n_entry.id {entry}\n")
    sources, _ = list_sources([tmp_path])
    assert [(source.name, source.entry) for source in name_entries(sources)] == [
        ("one.cif", "one.cif"), ("three.cif", "three"), ("two.cif", "two")
    ]  # fmt: skip


def test_equal_ids_are_told_apart_by_their_files():
    """The chain stays as it is, also where the entry has `_`; before an id of a FASTA file goes the file's name."""
    ids = ["1ABC_A", "1ABC_A", "1ABC_B", "my_model_A", "my_model_A", "sp|P1|X_HUMAN", "sp|P1|X_HUMAN"]
    names = ["x/1abc.cif", "2.pdb", "2.pdb", "t.tgz/a/my_model.cif", "t.tgz/b/my_model.cif", "s.fasta.gz", "t/s.fasta"]
    assert distinct_ids(ids, names, [False] * 5 + [True] * 2) == [
        "1abc_A", "2_A", "1ABC_B", "a/my_model_A", "b/my_model_A", "s.fasta/sp|P1|X_HUMAN", "t/s/sp|P1|X_HUMAN"
    ]  # fmt: skip
    assert distinct_ids(["a_A", "b_A"], ["x.cif", "y.cif"]) == ["a_A", "b_A"]
    assert distinct_ids(["a_A"] * 3, ["t.tgz/a.cif"] * 3) == ["t.tgz/a.cif-1_A", "t.tgz/a.cif-2_A", "t.tgz/a.cif-3_A"]


def test_names_that_are_no_utf8(tmp_path):
    with open(os.path.join(os.fsencode(tmp_path), b"a\xff.cif"), "wb"):
        pass
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        add(archive, "b\udcff.cif", b"")
    assert names_of([tmp_path]) == ["a\\udcff.cif", "t.tar/b\\udcff.cif"]
