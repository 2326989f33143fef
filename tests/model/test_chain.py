"""A chain is whole or refused, and so is each sequence of a FASTA file."""

import gzip

import numpy as np
import pytest
from conftest import STRUCTURES

from coordformer.model.chain import Chain, StructureError
from coordformer.model.structure import read_chains, read_proteins


def test_chain_knows_its_length_and_what_is_observed():
    coords = np.zeros((2, 1, 3))
    coords[1] = np.nan
    chain = Chain("x_A", "AX", coords, ("CA",), np.array([1, np.nan]))
    assert len(chain) == 2
    assert chain.coords.dtype == chain.b_factor.dtype == np.float32
    assert chain.observed.tolist() == [[True], [False]]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sequence": ""}, "empty"),
        ({"sequence": "AB"}, "letters 'B'"),
        ({"sequence": "Aa"}, "letters 'a'"),
        ({"sequence": "AAA"}, r"coords has shape \(2, 1, 3\); 3 residues"),
        ({"coords": np.zeros((2, 3))}, r"need \(2, 1, 3\)"),
        ({"atoms": ("N", "CA")}, r"need \(2, 2, 3\)"),
        ({"b_factor": np.zeros(3)}, "b_factor has shape"),
        ({"coords": np.array([[[0, 0, np.inf]]] * 2)}, "inf"),
        ({"coords": np.array([[[0, 0, np.nan]]] * 2)}, "NaN in part"),
    ],
)
def test_chain_refuses_what_does_not_fit(changes, reason):
    values = {"id": "x_A", "sequence": "AG", "coords": np.zeros((2, 1, 3)), "atoms": ("CA",), "b_factor": np.zeros(2)}
    with pytest.raises(ValueError, match=f"chain x_A: .*{reason}"):
        Chain(**{**values, **changes})


def test_sequences_are_chains_of_which_nothing_is_observed(tmp_path):
    path = tmp_path / "some.fasta.gz"
    path.write_bytes(gzip.compress(b">one of two\nMKU\n OBX*\n\n>two\nga\n"))
    one, two = read_proteins(path, atoms=("N", "CA"))
    assert (one.id, one.sequence, two.id, two.sequence) == ("one", "MKCKXX", "two", "GA")
    assert one.coords.shape == (6, 2, 3) and not one.observed.any()
    assert [chain.id for chain in read_proteins(path, chain_ids="two")] == ["two"]


def test_the_content_says_whether_it_is_a_structure(tmp_path):
    path = tmp_path / "named.fasta"
    path.write_bytes((STRUCTURES / "1orc.pdb.gz").read_bytes())
    (chain,) = read_proteins(path, chain_ids=["A"])
    (same,) = read_chains(STRUCTURES / "1orc.pdb.gz")
    assert chain.sequence == same.sequence
    np.testing.assert_array_equal(chain.coords, same.coords)


@pytest.mark.parametrize(
    "text, message",
    [
        (">a\nMK1\n", "chain a: letters '1'"),
        (">a\nMK-V\n", "chain a: letters '-'"),
        (">a\n>b\nMK\n", "chain a: the sequence is empty"),
        (">a x\nMK\n>a y\nMK\n", "chain a: two sequences have this id; rename one"),
        ("", "empty file"),
    ],
)
def test_broken_sequence_files(tmp_path, text, message):
    path = tmp_path / "bad.fasta"
    path.write_text(text)
    with pytest.raises(StructureError, match=f"bad.fasta: {message}"):
        read_proteins(path)


def test_what_a_sequence_file_has_not(tmp_path):
    path = tmp_path / "one.fasta"
    path.write_text(">one\nMK\n")
    with pytest.raises(StructureError, match="no sequence two"):
        read_proteins(path, chain_ids=["one", "two"])
    with pytest.raises(ValueError, match="min_plddt=70 needs a predicted structure"):
        read_proteins(path, min_plddt=70)
    path.write_text("MKVLAAG\nWYF*\n")
    with pytest.raises(StructureError, match="one.fasta: a sequence without a name; put a line >NAME above it"):
        read_proteins(path)
    (path := path.with_name("text.pdb")).write_text("not a structure\n")
    with pytest.raises(StructureError, match=r"text.pdb: no structure is in it, though its name says so; get the file"):
        read_proteins(path)


def test_one_bad_sequence_does_not_cost_the_others(tmp_path):
    """Given as bytes, as from an archive; the last one is a PIR record with its line of description."""
    text = b">a x\nMK\n>b\nM1\n>a y\nMKV\n>\n>e\nGA*\n>P1;f\nA lysine\nMKK*\n"
    problems = []
    chains = read_proteins("set.tar/some.fasta", problems=problems, data=text)
    assert [(chain.id, chain.sequence) for chain in chains] == [("a", "MK"), ("e", "GA"), ("P1;f", "MKK")]
    reasons = ["letters '1'", "two sequences have this id", "the sequence is empty"]
    assert [name for name, _ in problems] == ["b", "a", "sequence_4"]
    assert all(reason in said for reason, (_, said) in zip(reasons, problems, strict=True))
    assert [chain.id for chain in read_proteins("some.fasta", chain_ids="e", data=text)] == ["e"]
    with pytest.raises(StructureError, match=r"set.tar/some.fasta: chain b: letters '1'"):
        read_proteins("set.tar/some.fasta", data=text)
    entry = gzip.decompress((STRUCTURES / "1orc.pdb.gz").read_bytes())
    (chain,) = read_proteins("some.pdb", problems=problems, data=entry)
    assert chain.id == "1ORC_A"
