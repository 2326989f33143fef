"""How mutants are written, and what is said of those that are not of their chain."""

import re

import pytest
from conftest import STRUCTURES

from coordformer.model.chain import Chain
from coordformer.model.structure import read_chains
from coordformer.model.substitutions import parse_mutant


@pytest.fixture(scope="module")
def chain() -> Chain:
    """71 residues of phage λ Cro, 64 observed; MEQRITLKDYAMRFGQTKTAKDLGVYQSAINKAIHAG..."""
    return read_chains(STRUCTURES / "1orc.pdb.gz")[0]


def test_mutants_are_parsed():
    assert parse_mutant("M1A", "MKV") == [(0, "A")]
    assert parse_mutant("V3A:M1M", "MKV") == [(2, "A"), (0, "M")]
    assert parse_mutant("K25R", "MKV", offset=24) == [(1, "R")]
    assert parse_mutant("K0R", "MKV", offset=-1) == [(1, "R")]
    for text in ("WT", "wt", "_wt", " Wt "):
        assert parse_mutant(text, "MKV") == []


@pytest.mark.parametrize(
    ("mutant", "message"),
    [
        ("A1G", "Mutant A1G: position 1 of the chain is M, not A; positions count the deposited sequence from 1, "),
        ("K2R:A3G", "Mutant K2R:A3G: position 3 of the chain is V, not A"),
        (
            "A1G:A3G",
            "position 1 of the chain is M, not A; positions count the deposited sequence from 1, not a file's own ",
        ),
        ("A1G:A3G", ". position 3 of the chain is V, not A; positions count"),
        ("V4A", "Mutant V4A: the chain has no position 4, its residues are 1 to 3; positions count"),
        ("M0A", "Mutant M0A: the chain has no position 0"),
        ("K2B", "Mutant K2B: B is no amino acid; substitutions are among ACDEFGHIKLMNPQRSTVWY"),
        ("X2A", "Mutant X2A: X is no amino acid"),
        ("K2R:K2A", "Mutant K2R:K2A: position 2 of the chain is substituted twice"),
        ("K2", "Mutant 'K2' cannot be read: the new letter is missing, as in K2A; write A24G, or A24G:T30S"),
        ("K3r", "Mutant 'K3r' cannot be read: amino acids are upper-case letters, K3R; write A24G"),
        ("Lys3Arg", "three-letter codes, and one-letter codes are right, K3R; write A24G"),
        ("K2del", "Mutant 'K2del' cannot be read: substitutions are scored, no deletions, insertions or stops; write"),
        ("K2*", "no deletions, insertions or stops"),
        ("K2R+more", "Mutant 'K2R+more' cannot be read; write A24G"),  # and not K2R alone
        ("K2R+V4A", "'+' stands in it, but ':' joins the substitutions of a mutant, and a blank parts mutants. Mutant"),
        ("Odd2Arg", "Mutant 'Odd2Arg' cannot be read; write A24G"),
        ("", "Mutant '' cannot be read"),
        ("K2R,V3A", "Mutant 'K2R,V3A' cannot be read: ',' stands in it, but ':' joins the substitutions of a mutant"),
        ("K2R K2R", "Mutant 'K2R K2R' cannot be read: a blank stands in it, but ':' joins"),
        ("K2,V3A", "cannot be read: ',' stands in it, but ':' joins the substitutions of a mutant, and a blank parts"),
        ("K2R:WT", "Mutant 'K2R:WT' cannot be read"),
    ],
)
def test_bad_mutants_are_named(mutant, message):
    with pytest.raises(ValueError) as caught:
        parse_mutant(mutant, "MKV")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("mutant", "expected"),
    [
        ("S52A", [(1, "A")]),
        ("Y52AA", [(2, "A")]),
        ("YH52aA", [(2, "A")]),  # as SKEMPI has it
        ("SH51A:GL51A", [(0, "A"), (7, "A")]),
        ("ML100AC", [(10, "C")]),
        ("SH100A", [(5, "A")]),  # and not 100A
        ("WH-1A", [(6, "A")]),
        ("W-1A", [(6, "A")]),
        ("KC3R", [(13, "R")]),  # counted
        ("SH/52A", [(1, "A")]),
    ],
)
def test_mutants_have_the_numbers_of_the_file(antibody, mutant, expected):
    assert parse_mutant(mutant, antibody) == expected
    heavy = antibody.chains[0]
    if expected[-1][0] < len(heavy):  # alone, with its name and without
        assert parse_mutant(mutant, heavy) == parse_mutant(re.sub("H/?", "", mutant), heavy) == expected


def test_mutants_by_positions_of_each_chain(antibody):
    assert parse_mutant("YH3A:GL1A", antibody, numbering="sequence") == [(2, "A"), (7, "A")]
    assert parse_mutant("YH13A", antibody, offset=11) == [(2, "A")]
    assert parse_mutant("S52A", antibody.chains[0], numbering="file") == [(1, "A")]
    with pytest.raises(ValueError, match="`offset` is 11, but the file's own numbers are not counted"):
        parse_mutant("YH13A", antibody, numbering="file", offset=11)
    with pytest.raises(ValueError, match="`numbering` is 'pdb'; choose one of file, sequence"):
        parse_mutant("YH13A", antibody, numbering="pdb")


@pytest.mark.parametrize(
    ("mutant", "numbering", "message"),
    [
        ("S51A", "file", "51 may be H51 (position 1 of chain H) or L51 (position 1 of chain L); write SH51A or SL51A"),
        ("AH52AG", "file", "H52A (position 3 of chain H) is Y, not A; mend the letter or the number."),
        # Its two numbers are equal.
        ("AC2G", "file", "Mutant AC2G: position 2 of chain C is Y, not A; mend the letter or the number."),
        # The new letter is missing; S is at 52, Y at 52A.
        ("YH52A", "file", "Mutant YH52A: H52 (position 2 of chain H) is S, not Y; H52A (position 3 of chain H) is Y: "
         "if it is meant, the new letter is missing, YH52AA."),
        ("ML100A", "file", "of 100 there is L100A; L100A (position 4 of chain L) is M: if it "
         "is meant, the new letter is missing, ML100AA."),
        ("SX51A", "file", "Mutant SX51A: there is no chain X, only 'H', 'L', 'C'; write the wild type, the chain and"),
        # What is right in the other numbering is named.
        ("YH3A", "file", "chain H has no residue H3, its residues are 51 to -1; numbers are "
         "the file's own; positions in the sequence need numbering="
         "'sequence' (--numbering sequence): with it H52A (position 3 of chain H) is Y."),
        ("YC1A:YC1F", "file", "position 1 of chain C is substituted twice"),
        ("SH52A", "sequence", "chain H has no position H52, its residues are 1 to 7; positions "
         "count the deposited sequence from 1; the file's own numbers need numbering="
         "'file' (--numbering file): with it H52 (position 2 of chain H) is S."),
    ],
)  # fmt: skip
def test_bad_mutants_of_complexes_are_named(antibody, mutant, numbering, message):
    with pytest.raises(ValueError) as caught:
        parse_mutant(mutant, antibody, numbering=numbering)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("mutant", "rule", "meant"),
    [
        ("HS52A", "the wild type comes first", "SH52A"),
        ("HY52AA", "the wild type comes first", "YH52AA"),
        ("LM100AC", "the wild type comes first", "ML100AC"),
        ("H/S52A", "the wild type comes first", "SH52A"),
        ("H:S52A", "the wild type comes first", "SH52A"),
        ("H-W-1A", "the wild type comes first", "WH-1A"),
        ("SerH52Ala", "one-letter codes", "SH52A"),
        ("p.TyrH52aAla", "one-letter codes", "YH52aA"),
        ("sH52a", "upper-case", "SH52A"),
        ("SH52A+ML100AC", "'+' stands in it", "SH52A:ML100AC"),
        ("SH52A / ML100AC", "'/' stands in it", "SH52A:ML100AC"),
        ("SH52A_ML100AC", "'_' stands in it", "SH52A:ML100AC"),
        ("SH52A-WH-1A", "'-' stands in it", "SH52A:WH-1A"),
        ("HS52A, LM100AC", "',' stands in it", "SH52A:ML100AC"),
    ],
)
def test_a_mutant_in_another_notation_is_written_as_it_is_right(antibody, mutant, rule, meant):
    with pytest.raises(ValueError, match=f"^Mutant {re.escape(repr(mutant))} cannot be read: .*") as caught:
        parse_mutant(mutant, antibody)
    assert rule in str(caught.value) and str(caught.value).endswith(f"; write {meant}.")
    assert parse_mutant(meant, antibody)


def test_a_chain_that_is_not_there_is_named(antibody):
    with pytest.raises(
        ValueError, match="there is no chain Z, only .*; write the wild type, the chain and the number, as"
    ):
        parse_mutant("SZ52A", antibody)


def test_a_wrong_wild_type_names_both_numbers(chain):
    """Cro has 56A to 56E: from 57 on numbers are less than positions by 5."""
    assert parse_mutant("N61A", chain) == parse_mutant("N66A", chain, numbering="sequence") == [(65, "A")]
    found = "A66 (position 71 of chain A) is A, not N; numbers are the file's own; positions in the sequence need "
    there = "numbering='sequence' (--numbering sequence): with it A61 (position 66 of chain A) is N."
    with pytest.raises(ValueError) as caught:
        parse_mutant("N66A", chain)
    assert str(caught.value) == f"Mutant N66A: {found}{there}"
