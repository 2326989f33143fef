"""Residues have the file's numbers and places along the chain; several chains are one complex in one frame."""

import gzip

import numpy as np
import pytest
from conftest import STRUCTURES
from test_structure import atom, mmcif, row, seqres
from test_structure_writers import peptide, residue, summary

from coordformer.model.chain import CHAIN_GAP, Chain, Complex, StructureError, join_chains
from coordformer.model.structure import entry_id, file_entry, read_chains, read_complex, read_proteins

# --- Places along the chain ---------------------------------------------------------------------------------------


def glycines(*placed, ca_only=False):
    """Residues (number, x); `52A` has an insertion code."""
    text = ""
    for number, x in placed:
        digits = str(number).rstrip("ABC")
        code = str(number).removeprefix(digits) or " "
        lines = residue("GLY", "A", int(digits), x, icode=code).splitlines(keepends=True)
        text += lines[1] if ca_only else "".join(lines)
    return text


GAPS = {
    "none": ([(1, 0), (2, 3.8), (3, 7.6)], [0, 1, 2]),
    "by number": ([(1, 0), (2, 3.8), (6, 15)], [0, 1, 5]),
    "by number, 19.6 A": ([(1, 0), (7, 19.6)], [0, 6]),
    "by distance, for numbers go on": ([(1, 0), (2, 19.6), (3, 23.4)], [0, 6, 7]),
    "by distance, for numbers do not reach": ([(1, 0), (3, 40)], [0, 11]),
    "by distance, for numbers fall": ([(100, 0), (2, 19.6)], [0, 6]),
    "of one residue at least": ([(1, 0), (2, 4.9)], [0, 2]),
    "numbers of an antibody": ([(31, 0), (35, 3.8), (38, 7.6)], [0, 1, 2]),
    "numbers that fall along bonds": ([(100, 0), (2, 3.8), (1, 7.6)], [0, 1, 2]),
    "negative numbers": ([(-2, 0), (-1, 3.8), (1, 7.6), (4, 19)], [0, 1, 2, 5]),
    "insertion codes": ([(52, 0), ("52A", 3.8), ("52B", 7.6), (53, 11.4)], [0, 1, 2, 3]),
    "gap between insertion codes": ([(52, 0), ("52A", 3.8), ("52C", 15.2), (53, 19)], [0, 1, 4, 5]),
    "no more than between chains": ([(1, 0), (2, 9000)], [0, CHAIN_GAP]),
}


@pytest.mark.parametrize("ca_only", [False, True])
@pytest.mark.parametrize("case", GAPS)
def test_gaps_in_positions(case, ca_only):
    placed, positions = GAPS[case]
    (chain,) = read_chains("made", data=glycines(*placed, ca_only=ca_only).encode())
    assert chain.positions.tolist() == positions
    assert chain.positions.dtype == np.int32
    assert chain.residue_numbers == tuple(str(number) for number, _ in placed)


def test_positions_follow_the_deposited_sequence():
    text = seqres("A", "GLY GLY GLY GLY") + glycines((1, 0), (4, 11.4))
    assert summary(text + "TER\n") == {"A": ("GGGG", [0, 1, 2, 3], "1 2 3 4")}


def test_bond_decides_where_c_alpha_is_missing():
    lines = residue("GLY", "A", 12, 3.8).splitlines(keepends=True)
    text = glycines((1, 0)) + lines[0] + lines[2] + glycines((13, 7.6))
    assert summary(text) == {"A": ("GGG", [0, 1, 2], "1 12 13")}
    # Without N, too, the number is all there is.
    text = glycines((1, 0)) + lines[2] + glycines((13, 7.6))
    assert summary(text, atoms=("C",)) == {"A": ("GGG", [0, 11, 12], "1 12 13")}


def test_numbers_that_jump_beyond_all_chains_are_no_gap():
    rows = [row("GLY", "A", 1, 0, auth_seq_id=1), row("GLY", "A", 2, 30, auth_seq_id=2_000_000_000)]
    assert summary(mmcif(rows)) == {"A": ("GG", [0, 8], "1 2000000000")}


# --- The file's numbers -------------------------------------------------------------------------------------------


def scheme(rows):
    columns = ("asym_id", "seq_id", "mon_id", "pdb_seq_num", "pdb_strand_id", "pdb_ins_code")
    text = "loop_\n" + "".join(f"_pdbx_poly_seq_scheme.{column}\n" for column in columns)
    return text + "".join(" ".join(row) + "\n" for row in rows)


def test_numbers_of_unobserved_residues_in_mmcif():
    """Two types at a position are two rows of the scheme; its number stands for residues that were not observed."""
    extra = scheme(
        [
            *(("A", "1", "GLY", "51", "H", "."), ("A", "2", "ALA", "52", "H", "."), ("A", "2", "SER", "52", "H", ".")),
            *(("A", "3", "SER", "52", "H", "A"), ("A", "4", "VAL", "52", "H", "B"), ("A", "5", "LEU", "70", "H", ".")),
        ]
    )
    rows = [row("ALA", "A", 2, 0, auth="H", alt="A", occupancy=0.6, auth_seq_id=52)]
    rows += [row("SER", "A", 2, 0, auth="H", alt="B", occupancy=0.4, auth_seq_id=52)]
    text = mmcif(rows, "GLY ALA,SER SER VAL LEU", extra)
    assert summary(text) == {"H": ("GASVL", [0, 1, 2, 3, 4], "51 52 52A 52B 70")}
    # Without the scheme they are counted on.
    assert summary(mmcif(rows, "GLY ALA,SER SER VAL LEU"))["H"][2] == "51 52 53 54 55"


def test_numbers_of_unobserved_residues_in_a_real_entry():
    (chain,) = read_chains(STRUCTURES / "3JQH.cif.gz")
    with gzip.open(STRUCTURES / "3JQH.cif.gz", "rt") as file:
        table = file.read().split("_pdbx_poly_seq_scheme.hetero")[1].split("#")[0]
    listed = {int(words[2]): words[5] for words in map(str.split, table.strip().splitlines())}
    assert chain.residue_numbers == tuple(listed[place] for place in range(1, len(chain) + 1))
    (chain,) = read_chains(STRUCTURES / "1orc.pdb.gz")
    numbers = [*range(1, 57), *("56A", "56B", "56C", "56D", "56E"), *range(57, 67)]
    assert chain.residue_numbers == tuple(map(str, numbers))


def remark_465(*residues):
    return "".join(f"REMARK 465     {name} {chain}  {number:>5s}\n" for name, chain, number in residues)


def test_numbers_of_unobserved_residues_in_a_pdb_file():
    header = remark_465(("MET", "A", "  -1 "), ("GLY", "A", "   0 "), ("SER", "A", "  52A"), ("SER", "B", "   7 "))
    text = seqres("A", "MET GLY ALA SER SER VAL") + residue("ALA", "A", 51, 0) + residue("SER", "A", 52, 3.8)
    text += residue("VAL", "A", 53, 11.4) + "TER\n"
    assert summary(header + text)["A"][::2] == ("MGASSV", "-1 0 51 52 52A 53")
    # What the records do not fit is counted on, unless the residues beside it disagree.
    assert summary(remark_465(("TRP", "A", "   1 ")) + text)["A"][2] == "49 50 51 52  53"


def test_residues_beside_which_numbers_disagree_have_none():
    text = seqres("A", "MET GLY ALA SER VAL LEU") + residue("ALA", "A", 3, 0) + residue("VAL", "A", 12, 8) + "TER\n"
    (chain,) = read_chains("made", data=text.encode())
    assert chain.residue_numbers == ("1", "2", "3", "", "12", "13")
    text = seqres("A", "MET GLY ALA") + residue("GLY", "A", 3, 0) + residue("ALA", "A", 2, 3.8) + "TER\n"
    (chain,) = read_chains("made", data=text.encode())
    assert chain.residue_numbers == ("", "3", "2")  # 2 is taken


def test_numbers_that_are_none():
    """An insertion code alone, and what is no number in the scheme."""
    rows = [row("GLY", "A", 1, 0), row("ALA", "A", 2, 3.8, auth_seq_id="k")]
    assert read_chains("made", data=mmcif(rows, "GLY ALA").encode())[0].residue_numbers == ("1", "")
    for odd in ("?", "q", "z1", "1.5", "''", "A"):
        extra = scheme(
            [("A", "1", "GLY", odd, "A", "."), ("A", "x", "ALA", "2", "A", "."), ("A", "3", "SER", "9", "A", "?")]
        )
        text = mmcif([row("ALA", "A", 2, 0)], "GLY ALA SER", extra)
        assert summary(text)["A"][2] == "1 2 9", odd


def test_chain_checks_positions_and_numbers():
    values = {"id": "x_A", "sequence": "AG", "coords": np.zeros((2, 1, 3)), "atoms": ("CA",), "b_factor": np.zeros(2)}
    chain = Chain(**values)
    assert (chain.positions.tolist(), chain.residue_numbers) == ([0, 1], ())
    assert Chain(**values, positions=[0, 7], residue_numbers=[5, "5A"]).residue_numbers == ("5", "5A")
    for positions in (
        [0],
        [0, 0],
        [1, 2],
        [0, -1],
        [0, 2**31],
        [0, 1.5],
        [[0, 1]],
        np.array([0, 2**64 - 1], np.uint64),
    ):
        with pytest.raises(ValueError, match="chain x_A: positions are 2 whole numbers that rise from 0"):
            Chain(**values, positions=positions)
    with pytest.raises(ValueError, match="1 residue_numbers for 2 residues"):
        Chain(**values, residue_numbers=["5"])


# --- Complexes ----------------------------------------------------------------------------------------------------

TWO = peptide("GLY ALA") + "TER\n" + residue("SER", "B", 1, 0) + residue("VAL", "B", 5, 15.2) + "TER\n"


def read(text, **options):
    return read_complex("made.pdb", data=text.encode(), **options)


def test_complex_holds_its_chains():
    whole = read(TWO, atoms=("N", "CA"))
    assert (whole.id, whole.sequence, whole.chain_names, whole.chain_lengths) == ("made", "GASV", ("A", "B"), (2, 2))
    assert whole.positions.tolist() == [0, 1, 2 + CHAIN_GAP, 6 + CHAIN_GAP]
    assert whole.chain_index.tolist() == [0, 0, 1, 1]
    assert whole.residue_numbers == ("1", "2", "1", "5")
    for part, chain in zip(whole.chains, read_chains("made.pdb", atoms=("N", "CA"), data=TWO.encode()), strict=True):
        assert (part.id, part.sequence, part.residue_numbers) == (chain.id, chain.sequence, chain.residue_numbers)
        np.testing.assert_array_equal(part.coords, chain.coords)
        np.testing.assert_array_equal(part.positions, chain.positions)
        np.testing.assert_array_equal(part.b_factor, chain.b_factor)


def test_chains_of_a_complex_are_chosen():
    assert read(TWO, chains="B").sequence == "SV"
    assert read(TWO, chains=["B", "A"]).sequence == "GASV"  # in the order of the file
    assert read(TWO, entry="mine").chains[0].id == "mine_A"
    with pytest.raises(StructureError, match=r"made.pdb: no protein chain Z; the file has A, B"):
        read(TWO, chains=["A", "Z"])
    with pytest.raises(StructureError, match="no chain is asked for"):
        read(TWO, chains=[])


def test_complex_is_whole_or_refused():
    with pytest.raises(StructureError, match="chain made_B: SER 1 and VAL 1 have one place"):
        read(peptide("GLY") + residue("SER", "B", 1, 0) + residue("VAL", "B", 1, 50))
    low = peptide("GLY ALA") + "TER\n" + residue("SER", "B", 1, 0, b=90)
    with pytest.raises(StructureError, match="chain made_A: no residue is observed that reaches min_plddt=50"):
        read(low, min_plddt=50)
    assert read(low, min_plddt=50, chains="B").sequence == "S"


def biomt(number, diagonal, x):
    lines = ""
    for axis in range(3):
        matrix = [diagonal[axis] * (axis == column) for column in range(3)]
        vector = x * (axis == 0)
        lines += f"REMARK 350   BIOMT{axis + 1}{number:4d}" + "".join(f"{value:10.6f}" for value in matrix)
        lines += f"     {vector:10.5f}\n"
    return lines


ONE, HALF_TURN = (1, 1, 1), (-1, -1, 1)
ASSEMBLIES = (
    "REMARK 350 BIOMOLECULE: 1\nREMARK 350 APPLY THE FOLLOWING TO CHAINS: A, B\n"
    + biomt(1, ONE, 0)
    + biomt(2, HALF_TURN, 10)
    + "REMARK 350 BIOMOLECULE: 2\nREMARK 350 APPLY THE FOLLOWING TO CHAINS: A\n"
    + biomt(1, ONE, 0)
    + "REMARK 350 APPLY THE FOLLOWING TO CHAINS: B\n"
    + biomt(1, HALF_TURN, 1)
)


def test_assemblies_of_a_pdb_file():
    whole = read(ASSEMBLIES + TWO, assembly=1)
    assert (whole.chain_names, whole.sequence) == (("A", "B", "A-2", "B-2"), "GASVGASV")
    assert whole.coords[:, 0, 0].tolist() == pytest.approx([0, 3.8, 0, 15.2, 10, 6.2, 10, -5.2])
    assert whole.positions.tolist() == [0, 1, 102, 106, 207, 208, 309, 313]
    other = read(ASSEMBLIES + TWO, assembly="2")
    assert (other.chain_names, other.coords[:, 0, 0].tolist()) == (("A", "B"), pytest.approx([0, 3.8, 1, -14.2]))
    assert read(ASSEMBLIES + TWO, assembly=1, chains=["A", "A-2"]).sequence == "GAGA"
    with pytest.raises(StructureError, match=r"assembly 1 has no chain C; the file has A, B, A-2, B-2"):
        read(ASSEMBLIES + TWO, assembly=1, chains="C")
    with pytest.raises(StructureError, match=r"no assembly 3; the file has 1, 2"):
        read(ASSEMBLIES + TWO, assembly=3)
    with pytest.raises(StructureError, match=r"no assembly 1; the file has none"):
        read(TWO, assembly=1)
    with pytest.raises(StructureError, match="an operation of assembly 1 is no rotation and translation"):
        read(ASSEMBLIES.replace(" -1.000000", "      junk", 1) + TWO, assembly=1)


def mmcif_assemblies(generators, half_turn="-1"):
    """Operators 1 (identity), 2 (half turn about z, then 10 along x) and P (5 along x)."""
    text = "loop_\n_pdbx_struct_assembly_gen.assembly_id\n_pdbx_struct_assembly_gen.oper_expression\n"
    text += "_pdbx_struct_assembly_gen.asym_id_list\n" + "".join(f"{line}\n" for line in generators)
    text += "loop_\n_pdbx_struct_oper_list.id\n"
    for i in (1, 2, 3):
        text += "".join(f"_pdbx_struct_oper_list.matrix[{i}][{j}]\n" for j in (1, 2, 3))
        text += f"_pdbx_struct_oper_list.vector[{i}]\n"
    text += f"1 1 0 0 0 0 1 0 0 0 0 1 0\n2 {half_turn} 0 0 10 0 -1 0 0 0 0 1 0\nP 1 0 0 5 0 1 0 0 0 0 1 0\n"
    rows = [row("GLY", "A", 1, 0, auth="B"), row("ALA", "A", 2, 3.8, auth="B")]
    rows += [row("GLY", "B", 1, 1, auth="A", entity=2), row("ALA", "B", 2, 4.8, auth="A", entity=2)]
    return mmcif(rows, "GLY ALA", text)


@pytest.mark.parametrize(
    ("generators", "names", "places"),
    [
        (["1 1 A,B"], ("B", "A"), [0, 3.8, 1, 4.8]),
        (["1 1,2 A", "1 2 B"], ("B", "B-2", "A"), [0, 3.8, 10, 6.2, 9, 5.2]),
        (["1 (1-2) B,C,D"], ("A", "A-2"), [1, 4.8, 9, 5.2]),
        (["1 (2)(P) B"], ("A",), [4, 0.2]),  # the right one first
        (["1 (1,2)(1,P) A"], ("B", "B-2", "B-3", "B-4"), [0, 3.8, 5, 8.8, 10, 6.2, 5, 1.2]),
    ],
)
def test_assemblies_of_an_mmcif_file(generators, names, places):
    """Chains are named there by label_asym_id: the author's chain B is A."""
    whole = read(mmcif_assemblies(generators), assembly=1)
    assert (whole.chain_names, whole.coords[:, 0, 0].tolist()) == (names, pytest.approx(places, abs=1e-5))


def test_assemblies_that_are_wrong():
    for text in (
        mmcif_assemblies(["1 1,2 A"], half_turn="?"),
        mmcif_assemblies(["1 1,2 A"], half_turn="-1.5"),
        mmcif_assemblies(["1 3 A"]),
    ):
        with pytest.raises(StructureError, match="made.pdb: an operation of assembly 1 is no rotation and translation"):
            read(text, assembly=1)
    with pytest.raises(StructureError, match="no assembly PAU; the file has 1, 2"):
        read(mmcif_assemblies(["1 1 A", "2 1 B"]), assembly="PAU")
    with pytest.raises(StructureError, match="assembly 1 has no protein; ask for another one"):
        read(mmcif_assemblies(["1 1 Z"]), assembly=1)
    with pytest.raises(StructureError, match="more than 10000 operations"):
        read(mmcif_assemblies(["1 (1-999999999)(1-999999999)(1-999999999) A"]), assembly=1)


def test_both_formats_have_the_same_assembly():
    """1A8O is a dimer by a crystal axis."""
    one, other = (read_complex(STRUCTURES / f"1A8O.{suffix}.gz", assembly=1) for suffix in ("cif", "pdb"))
    assert one.chain_names == other.chain_names == ("A", "A-2")
    np.testing.assert_allclose(one.coords, other.coords, atol=2e-3)
    (alone,) = read_chains(STRUCTURES / "1A8O.cif.gz")
    np.testing.assert_array_equal(one.chains[0].coords, alone.coords)
    shift = np.linalg.norm(one.coords[:70, None, 0] - one.coords[None, 70:, 0], axis=-1)
    assert 4 < shift.min() < 8  # they touch, and do not overlap


def test_complex_checks_its_parts():
    values = {"sequence": "AGS", "coords": np.zeros((3, 1, 3)), "atoms": ("CA",), "b_factor": np.zeros(3)}
    for lengths, names, reason in (
        ((2,), ("A",), "chains of .2,. residues, but 3"),
        ((3, 0), ("A", "B"), "give the length of each chain"),
        ((1, 2), ("A",), "give each its own"),
        ((1, 2), ("A", "A"), "give each its own"),
    ):
        with pytest.raises(ValueError, match=f"complex x: .*{reason}"):
            Complex("x", **values, chain_names=names, chain_lengths=lengths)
    chain = Chain("x_A", **values)
    numbered = Chain("x_B", **values, residue_numbers=("1", "2", "2A"))
    assert join_chains("x", [chain, numbered], "AB").residue_numbers == ("", "", "", "1", "2", "2A")
    assert join_chains("x", [chain], "A").residue_numbers == ()
    with pytest.raises(ValueError, match="join at least one chain"):
        join_chains("x", [], [])
    several = Chain("x_C", "A", np.zeros((1, 2, 3)), ("N", "CA"), np.zeros(1))
    with pytest.raises(ValueError, match="all with the same atoms"):
        join_chains("x", [chain, several], "AC")


# --- pLDDT --------------------------------------------------------------------------------------------------------

PREDICTED = "".join(
    atom("ALA", chain, number, b=b)
    for chain, number, b in (("A", 1, 90), ("A", 2, 80), ("A", 3, 40), ("B", 1, 30), ("B", 2, 20))
)


def filtered(text=PREDICTED, **options):
    problems: list[tuple[str, str]] = []
    chains = read_chains("made", data=text.encode(), problems=problems, **options)
    return {chain.id: int(chain.observed.sum()) for chain in chains}, dict(problems)


def test_the_mean_plddt_is_over_the_values_as_deposited():
    read, left_out = filtered(min_plddt=70, min_mean_plddt=70)
    assert (read, [*left_out]) == ({"made_A": 2}, ["made_B"])  # 70 exactly; of what min_plddt keeps it would be 85
    assert left_out["made_B"] == "the mean pLDDT is 25, less than min_mean_plddt=70; lower it, or leave it out"
    read, left_out = filtered(min_plddt=70, min_mean_plddt=71)
    assert (read, [*left_out]) == ({}, ["made_A", "made_B"])
    read, left_out = filtered(min_mean_plddt=25)
    assert (read, left_out) == ({"made_A": 3, "made_B": 2}, {})


def test_a_chain_that_the_filter_empties_is_reported():
    read, left_out = filtered(min_plddt=50)
    assert read == {"made_A": 2}
    assert left_out["made_B"] == "no residue is observed that reaches min_plddt=50; lower it, or leave it out"


def test_both_options_refuse_experiments_and_other_scales():
    for name in ("min_plddt", "min_mean_plddt"):
        with pytest.raises(ValueError, match=rf"{name}=70 needs a predicted model.*\(X-RAY DIFFRACTION\)"):
            filtered("EXPDTA    X-RAY DIFFRACTION\n" + PREDICTED, **{name: 70})
        with pytest.raises(ValueError, match=rf"{name}=0.7, but the highest value in the file is 90"):
            filtered(**{name: 0.7})
        with pytest.raises(ValueError, match=rf"{name}=70, but the highest value in the file is 0.9"):
            filtered(atom("ALA", "A", 1, b=0.9), **{name: 70})
        with pytest.raises(ValueError, match=rf"{name}=70, but the file has no B-factors; leave {name} out"):
            filtered("".join(f"{line[:54]}\n" for line in PREDICTED.splitlines()), **{name: 70})
    with pytest.raises(ValueError, match="min_mean_plddt=0.7"):
        filtered(min_plddt=70, min_mean_plddt=0.7)
    # A missing value counts neither as 20 nor at all.
    text = mmcif([row("ALA", "A", 1, b="?"), row("ALA", "A", 2, 3.8, b=75)])
    assert filtered(text, min_mean_plddt=70) == ({"TEST_A": 2}, {})
    assert filtered(text, min_plddt=70) == ({"TEST_A": 1}, {})


# --- Entries ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["model", "MODEL", "XXXX", "0000", "unknown_id", "?", ".", "predicted", "UNK", "'my model'", "----", "none"]
)
def test_names_that_many_files_share_are_no_entries(name):
    name = name.replace(" ", "_").strip("'")
    text = mmcif([row("ALA", "A", 1)]).replace("_entry.id TEST", f"_entry.id {name}")
    assert entry_id(text.encode()) == ""
    assert [chain.id for chain in read_chains("some/where/one.cif.gz", data=gzip.compress(text.encode()))] == ["one_A"]
    header = f"HEADER    PROTEIN                                 01-JAN-20   {name[:4]:4s}\n"
    assert read_complex("two.pdb", data=(header + atom("ALA", "A", 1)).encode()).id in ("two", name[:4])


def test_entries_are_found():
    for text in ("data_x\n_entry.id 1ABC\n", "data_x\nloop_\n_entry.id\n'1ABC'\n", 'data_x\n  _Entry.ID\t"1ABC"\n'):
        assert entry_id(text.encode()) == "1ABC"
    for header, name in (("1ABC", "1ABC"), ("XXXX", ""), ("    ", ""), ("0000", "")):
        assert entry_id(f"HEADER    HYDROLASE                               01-JAN-20   {header}\n".encode()) == name
    assert entry_id(b"data_x\n" + b"\n" * 60_000 + b"_entry.id 1ABC") == "1ABC"
    assert entry_id(b"\n" * 10**6) == ""
    names = {"a/b.cif.gz": "b", "X.PDB.GZ": "X", "AF-1-F1-model_v4.cif": "AF-1-F1-model_v4", "pdb1abc.ent": "pdb1abc"}
    assert {path: file_entry(path) for path in names} == names


# --- FASTA --------------------------------------------------------------------------------------------------------


def fasta(content):
    problems: list[tuple[str, str]] = []
    data = content if isinstance(content, bytes) else content.encode()
    chains = read_proteins("some.fasta", problems=problems, data=data)
    return {chain.id: chain.sequence for chain in chains}, dict(problems)


@pytest.mark.parametrize("start", ["\n", "\n\n \t\n", "\r\n", "\ufeff", "\ufeff\n"])
def test_blank_lines_before_the_first_record(start):
    assert fasta(start + ">a\nGA\n\n>b\n\nLV\n") == ({"a": "GA", "b": "LV"}, {})


@pytest.mark.parametrize("bad", [b"G-A", b"G1", b"GA*LV", b"", b"G\xe9A", b"GA>c", b"*"])
def test_one_bad_record_is_named_and_the_others_are_read(bad):
    read, problems = fasta(b">first x\nGA\n>bad one\n" + bad + b"\n>last\nLV*\n")
    assert (read, [*problems]) == ({"first": "GA", "last": "LV"}, ["bad"])
    assert "letters" in problems["bad"] or problems["bad"].startswith("the sequence is empty")


def test_ids_may_be_long():
    name = "x" * 260
    assert fasta(f">{name} of something\nGA\n") == ({name: "GA"}, {})


@pytest.mark.parametrize(
    "text",
    [
        ">a\nG" + " " * 10**6 + "A\n",
        ">a\nG" + "\n" * 10**6 + "A\n",
        "G" + " " * 10**6 + "A\n",
        "G" + " " * 10**6 + "1\n",
        "\n" * 10**6 + ">a\nGA\n",
        ">" + " " * 10**6 + "\nGA\n",
        "#\n" * 10**6,
    ],
)
def test_blanks_are_read_in_linear_time(text):
    """Quadratic in a million blanks would be hours; the default limit of a test is enough."""
    try:
        chains = read_proteins("some.fasta", data=text.encode())
    except StructureError as error:
        assert "a sequence without a name" in str(error) or "neither mmCIF" in str(error)
    else:
        assert chains[0].sequence == "GA"
