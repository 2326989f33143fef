"""Tables of parts, and what they call the files that chains are of."""

import tarfile

import pyarrow.parquet as pq
from conftest import STRUCTURES

from coordformer import read_chains
from coordformer.data.rows import chain_to_row, rows_to_table
from coordformer.inference.runner import Inputs, join_tables
from coordformer.model.proteins import id_of


def test_tables_are_joined(tmp_path):
    for name, text in (("a", "x,y\n1,2\n"), ("b", "x,y\n"), ("c", 'x,y\n"3\n",4\n')):
        (tmp_path / name).write_text(text)
    join_tables([tmp_path / name for name in "abc"], tmp_path / "joined")
    assert (tmp_path / "joined").read_text() == 'x,y\n1,2\n"3\n",4\n'


def test_tables_of_an_older_version_are_joined(tmp_path):
    """A run that it began, and that goes on with columns of today."""
    (tmp_path / "old.csv").write_text('id,score\n"a,b",1\n')
    (tmp_path / "new.csv").write_text("id,global_score,observed\nc,2,true\n")
    tables = [tmp_path / "old.csv", tmp_path / "new.csv"]
    join_tables(tables, tmp_path / "joined.csv", {"score": "global_score"})
    assert (tmp_path / "joined.csv").read_text() == 'id,global_score,observed\n"a,b",1,\nc,2,true\n'
    join_tables(tables[:1], tmp_path / "joined.csv", {"score": "global_score"})
    assert (tmp_path / "joined.csv").read_text() == 'id,global_score\n"a,b",1\n'
    join_tables(tables[1:] * 2, tmp_path / "joined.csv")
    assert (tmp_path / "joined.csv").read_text() == "id,global_score,observed\nc,2,true\nc,2,true\n"


def test_what_chains_are_read_from(tmp_path):
    """As rejected.tsv names it; of archives with the member, of rows the data set."""
    for folder in ("a", "b"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        (tmp_path / "in" / folder / "same.fasta").write_text(">one\nMKV\n")
    (tmp_path / "in" / "odd\udcff.fasta").write_text(">two\nMKVLG\n>bad\nM1\n")
    with tarfile.open(tmp_path / "in" / "more.tar", "w") as archive:
        archive.add(STRUCTURES / "1hvr.pdb.gz", "deep/1hvr.pdb.gz")
    rows = [chain_to_row(chain) for chain in read_chains(STRUCTURES / "1orc.pdb.gz")]
    pq.write_table(rows_to_table(rows), tmp_path / "rows.parquet")
    expected = {
        "1ORC_A": "rows.parquet", "a/same/one": "a/same.fasta", "b/same/one": "b/same.fasta", "two": "odd\\udcff.fasta",
        "1HVR_A": "more.tar/deep/1hvr.pdb.gz", "1HVR_B": "more.tar/deep/1hvr.pdb.gz",
    }  # fmt: skip
    rejects = []
    given = Inputs([tmp_path / "rows.parquet", tmp_path / "in"])
    found = {}
    for number in range(len(given)):
        found |= {id_of(chain): given.file_of(chain) for chain in given.read(number, rejects)[0]}
    assert found == expected and [name for name, *_ in rejects] == ["odd\\udcff.fasta"]
    assert given.file_of("nobody") == ""
