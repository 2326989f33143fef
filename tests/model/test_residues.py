"""Names of residues: what a file calls them, and what people write to choose some."""

import numpy as np
import pytest
from conftest import STRUCTURES

from coordformer import read_chains, read_complex
from coordformer.model.residues import AbsentChainError, ResidueNumbers, choose_numbering
from coordformer.model.substitutions import parse_mutant


def make_row(name: str, numbers: str, letter: str = "M", **fields) -> dict:
    """A chain with these numbers, `?` where there is none."""
    found = [number.replace("?", "") for number in numbers.split()]
    return {"id": name, "sequence": letter * len(found), "residue_numbers": found} | fields


THROMBIN = make_row("1XYZ_H", "-1 0 59 60 60A 60B 61 62 195 ? 197")


def refusal(call, *arguments) -> str:
    with pytest.raises(ValueError) as caught:
        call(*arguments)
    return str(caught.value)


# Names


def test_names_are_of_the_file_and_positions_of_the_chain():
    residues = ResidueNumbers(THROMBIN)
    assert len(residues) == 11 and residues.chain_names == ("H",) and residues.numbering == "file"
    assert [residues.name(index) for index in (0, 4, 9, 10)] == ["H-1", "H60A", "", "H197"]
    assert residues.positions.tolist() == [*range(1, 12)]
    assert residues.describe(4) == "H60A (position 5 of chain H)" and residues.describe(9) == "position 10 of chain H"
    by_position = ResidueNumbers(THROMBIN, numbering="sequence")
    assert by_position.numbers[4] == "5" and by_position.name(4) == "H60A" and by_position.numbering == "sequence"


@pytest.mark.parametrize("numbering", [None, "file", "sequence"])
def test_chains_without_numbers_are_counted(numbering):
    residues = ResidueNumbers({"id": "sp|P00734|THRB_HUMAN", "sequence": "MKV"}, numbering=numbering)
    assert (residues.chain_names, residues.numbers, residues.numbering) == (("",), ["1", "2", "3"], "sequence")
    assert residues.name(2) == "3" and residues.describe(2) == "position 3 of the chain" and residues.find("3") == 2
    assert residues.other() is None and residues.select("2-3") == [1, 2]


def test_a_complex_of_chains_with_numbers_and_without():
    row = make_row("entry", "5 6 ? ? ? 7 7A", chain_names=["A", "B", "C2"], chain_lengths=np.array([2, 3, 2]))
    residues = ResidueNumbers(row)
    assert [residues.name(index) for index in range(7)] == ["A5", "A6", "B1", "B2", "B3", "C2/7", "C2/7A"]
    assert residues.positions.tolist() == [1, 2, 1, 2, 3, 1, 2] and residues.chain_starts == (0, 2, 5)
    assert residues.chain_index.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert [residues.find(residues.name(index)) for index in range(7)] == list(range(7))
    assert residues.find("C27A") == 6 and residues.select("C2 A6-A6") == [5, 6, 1]
    del row["chain_names"]  # as of a packed file
    assert ResidueNumbers(row).chain_names == ("1", "2", "3")


def test_chains_of_a_file_are_counted_on():
    residues = ResidueNumbers(*read_chains(STRUCTURES / "1BD2.cif.gz"))
    assert residues.chain_names == tuple("ABCDE") and len(residues) == 275 + 100 + 9 + 204 + 244
    assert residues.select("C1-C3 D54A") == [375, 376, 377, 384 + residues.numbers[384:].index("54A")]


def test_every_residue_of_files_is_found_by_its_name():
    """Insertion codes, negative numbers, author's numbers that start anywhere, and chains of an assembly."""
    complexes = [
        read_complex(STRUCTURES / name) for name in ("1orc.pdb.gz", "4x8u.pdbx.gz", "3JQH.cif.gz", "1BD2.cif.gz")
    ]
    for found in (*complexes, read_complex(STRUCTURES / "1A8O.cif.gz", assembly=1)):
        residues = ResidueNumbers(found)
        names = [residues.name(index) for index in range(len(found))]
        assert len(set(names)) == len(names) and [residues.find(name) for name in names] == list(range(len(found)))
        assert residues.select(names) == list(range(len(found)))
        assert residues.select(list(found.chain_names)) == list(range(len(found)))
    assert names[70] == "A-2/151"


# Selections


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("H60", "60"),
        ("60B H59", "60B 59"),
        ("H60-H61", "60 60A 60B 61"),
        ("H60-61,60A", "60 60A 60B 61"),
        ("60A-61", "60A 60B 61"),
        ("H-1", "-1"),
        ("-1", "-1"),
        ("H-1-H59", "-1 0 59"),
        ("-1-59", "-1 0 59"),
        ("H-1-0", "-1 0"),
        ("-1--1", "-1"),
        ("H195-H197", "195 ? 197"),
        ("H60a", "60A"),
        ("H/60A", "60A"),
        (["H62", "H195"], "62 195"),
        ("H", "-1 0 59 60 60A 60B 61 62 195 ? 197"),
        ("H/", "-1 0 59 60 60A 60B 61 62 195 ? 197"),
    ],
)
def test_selections(text, numbers):
    residues = ResidueNumbers(THROMBIN)
    assert [residues.numbers[index] or "?" for index in residues.select(text)] == numbers.split()


def test_selections_by_position():
    residues = ResidueNumbers(THROMBIN, numbering="sequence")
    assert residues.select("H4-6 11") == [3, 4, 5, 10]
    assert ResidueNumbers(THROMBIN, offset=100).select("H103-105") == [3, 4, 5]


def test_names_of_several_characters():
    rows = [make_row("x_AA", "1 12 -5"), make_row("x_A", "2 3 112"), make_row("x_A-2", "3 4")]
    residues = ResidueNumbers(*rows)
    for text, indices in (
        ("AA12", [1]), ("AA-5", [2]), ("A112", [5]), ("A2-A3", [3, 4]), ("A2-3", [3, 4]), ("A-23", [6]),
        ("A-2/3-A-2/4", [6, 7]), ("A-23-A-24", [6, 7]), ("A-2", [6, 7]), ("AA", [0, 1, 2]), ("AA1-AA-5", [0, 1, 2]),
    ):  # fmt: skip
        assert residues.select(text) == indices, text


def test_what_may_be_read_in_several_ways_is_named():
    rows = [make_row("x_1", "1 52"), make_row("x_A1", "52 2"), make_row("x_A", "152 153 -3"), make_row("x_A-3", "1")]
    residues = ResidueNumbers(*rows)
    assert residues.select("A1/52 A/152 1/52") == [2, 4, 1]
    assert refusal(residues.select, "A1-A153 A152") == (
        "Residues 'A1-A153 A152': chain A has no residue A1, its residues are 152 to -3; write A/152-A153. A152 may be "
        "A1/52 (position 1 of chain A1) or A152 (position 1 of chain A); write A1/52 or A/152."
    )
    assert refusal(residues.select, "A152") == (
        "Residues 'A152': A152 may be A1/52 (position 1 of chain A1) or A152 (position 1 of chain A); write A1/52 or "
        "A/152."
    )
    assert "52 may be 1/52 (position 2 of chain 1) or A1/52 (position 1 of chain A1)" in refusal(residues.find, "52")
    assert refusal(residues.find, "152").endswith("write 1/52 or A/152.")
    assert "A-3 may be A-3 (position 3 of chain A) or chain A-3; write A/-3 or A-3/." in refusal(residues.select, "A-3")
    assert residues.select("A/-3") == [6] and residues.select("A-3/") == [7]
    alone = ResidueNumbers(make_row("x_1", "1 2 12 13"))  # without another chain its name is left out
    assert [alone.find(text) for text in ("12", "1/2", "113", "1/12")] == [2, 1, 3, 2]
    assert alone.select("1") == [0] and alone.select("1/") == [0, 1, 2, 3] and alone.select("12-13") == [2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("H60C", "chain H has no residue H60C, its residues are -1 to 197, of 60 there is H60, H60A, H60B."),
        ("H60-H999", "chain H has no residue H999, its residues are -1 to 197."),
        ("H300-H999", "chain H has no residue H300, its residues are -1 to 197."),
        ("L5-H60", "there is no chain L, only 'H'; write it like H-1."),
        ("H61-H60", "H61-H60 is backwards, H60 comes before H61 in the file; write H60-H61."),
        ("H60-", "chain H has no residue H60-, its residues are -1 to 197; write it like H-1."),
        ("H59:H60", "H59:H60 is no residue, range or chain; write H59-H60."),
        ("H59..H61", "H59..H61 is no residue, range or chain; write H59-H61."),
        ("H:59-60A", "H:59-60A is no residue, range or chain; write H59-H60A."),
        ("H-59-H.60", "H-59-H.60 is no residue, range or chain; write H59-H60."),
        ("H:59", "H:59 is no residue, range or chain; write H59."),
        ("H61..H59", "chain H has no residue H61..H59, its residues are -1 to 197, of 59 there is H59; write a range"),
        ("H1", "H1 to H58 are not in the file, between H0 and H59."),
        ("H30-H40", "H1 to H58 are not in the file, between H0 and H59."),
        ("30A-H60", "H1 to H58 are not in the file, between H0 and H59; write H59-H60."),
        ("H1-H999", "H1 to H58 are not in the file, between H0 and H59; chain H has no residue H999, its"),
        (" , ", "there are none; write some like H-1."),
    ],
)  # fmt: skip
def test_bad_selections_are_named(text, message):
    assert refusal(ResidueNumbers(THROMBIN).select, text).startswith(f"Residues {text!r}: {message}")


def test_residues_in_a_gap_have_neighbors():
    """Of each chain its own, and of a mutant as of a selection; numbers that a scheme skips are not there, either."""
    rows = [make_row("x_A", "5 6 9 10 13A", positions=[0, 1, 4, 5, 6]), make_row("x_B", "5 6 7 9 10")]
    residues = ResidueNumbers(*rows)
    assert refusal(residues.find, "A7") == "A7 to A8 are not in the file, between A6 and A9."
    assert refusal(residues.find, "A12") == "A11 to A12 are not in the file, between A10 and A13A."
    assert refusal(residues.find, "B8") == "B8 is not in the file, between B7 and B9."
    assert refusal(residues.find, "8") == (
        "A7 to A8 are not in the file, between A6 and A9; B8 is not in the file, between B7 and B9."
    )
    assert refusal(residues.find, "B11").startswith("chain B has no residue B11, its residues are 5 to ")
    assert refusal(residues.find, "77").startswith("no chain has a residue 77; chain A has 5 to 13A, chain B has 5")
    with pytest.raises(AbsentChainError, match="Residues 'C7': there is no chain C, only 'A', 'B'; write it like A5."):
        residues.select("C7")
    with pytest.raises(ValueError, match="Mutant MA7G: A7 to A8 are not in the file, between A6 and A9.") as caught:
        parse_mutant("MA7G", residues)
    assert not isinstance(caught.value, AbsentChainError)
    unnumbered = ResidueNumbers(THROMBIN)  # its 196 is there, without a number
    assert refusal(unnumbered.find, "H196") == "chain H has no residue H196, its residues are -1 to 197."


def test_ranges_say_what_they_skip():
    """Where residues are missing, and not where numbers jump between neighbors or a whole chain is chosen."""
    numbers = "5 6 9 10 13A 14"
    rows = [make_row("x_A", numbers, positions=[0, 1, 4, 5, 6, 7]), make_row("x_B", "5 6 7", positions=[0, 1, 3])]
    residues = ResidueNumbers(*rows)
    assert residues.jumps.tolist() == [False, False, True, False, True, False, False, False, True]
    assert residues.missing("A5-A10 A9-A14 A6") == residues.missing(["A6-9"]) == ["A7 to A8"]
    assert residues.missing("A9-A14 A B5") == [] and residues.missing("B5-B7") == ["what is between B6 and B7"]
    inserted = ResidueNumbers(make_row("x_A", "109 110 111 111A 112B 112A 112 113 ? 120"))
    assert not inserted.jumps.any() and inserted.missing("109-120") == []


def test_residues_are_written_as_ranges():
    residues = ResidueNumbers(make_row("x_H", "1 1A 3 4 ?"), make_row("x_L2", "1 2 3"))
    assert residues.ranges([4, 0, 1, 2]) == ["H1-H3", "position 5 of chain H"]
    assert residues.ranges([2, 3, 5, 6]) == ["H3-H4", "L2/1-L2/2"] and residues.ranges([]) == []
    assert residues.select(" ".join(residues.ranges([0, 2, 3, 6, 7]))) == [0, 2, 3, 6, 7]
    assert residues.ranges([3, 4]) == ["H4 to position 5 of chain H"]


def test_bad_selections_of_complexes_are_named():
    residues = ResidueNumbers(read_complex(STRUCTURES / "1hvr.pdb.gz"))
    assert refusal(residues.select, "A10-B20") == (
        "Residues 'A10-B20': A10-B20 goes from one chain to another; write a range of each."
    )
    assert refusal(residues.select, "C").endswith("there is no chain C, only 'A', 'B'; write it like A1.")
    assert "10-20 may be A10 (position 10 of chain A) to A20" in refusal(residues.select, "10-20")
    assert refusal(residues.select, "10-20").endswith("; write A10-A20 or B10-B20.")
    many = ResidueNumbers(*(make_row(f"x_{name}", "1 2") for name in "ABCDEFGH"))
    assert refusal(many.find, "1").count(" or ") == 11 and " or 2 more; write A1 or" in refusal(many.find, "1")
    assert "chain F has 1 to 2, and 2 chains more" in refusal(many.find, "9")
    assert refusal(many.find, "A9") == "chain A has no residue A9, its residues are 1 to 2."


def test_numberings():
    assert choose_numbering() == ("file", 1) and choose_numbering("sequence") == ("sequence", 1)
    assert choose_numbering(offset=-3) == choose_numbering("sequence", -3) == ("sequence", -3)
    assert "`numbering` is 'label'; choose one of file, sequence" in refusal(choose_numbering, "label")
    assert "`offset` is 1, but the file's own numbers are not counted" in refusal(choose_numbering, "file", 1)


def test_rows_that_do_not_agree_are_named():
    for fields, message in (
        ({"residue_numbers": ["1"]}, "Chain x: residues with residue_numbers are 1, where 3 is right"),
        ({"positions": [0, 1]}, "Chain x: residues with positions are 2, where 3 is right"),
        ({"chain_lengths": [1, 1]}, "Chain x: chain_lengths add up to 2, where 3 is right"),
        ({"chain_lengths": [1, 2], "chain_names": ["A"]}, "Chain x: chain_names are 1, where 2 is right"),
    ):
        assert message in refusal(ResidueNumbers, {"id": "x", "sequence": "MKV"} | fields)
