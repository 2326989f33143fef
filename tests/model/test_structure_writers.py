"""Files as programs write them: residues by the author's numbers, chains that end at TER, names in four letters."""

import gzip
import io
import warnings

import numpy as np
import pytest
from Bio.PDB.mmcifio import MMCIFIO
from Bio.PDB.MMCIFParser import MMCIFParser
from Bio.PDB.PDBIO import PDBIO, Select
from Bio.PDB.PDBParser import PDBParser
from conftest import STRUCTURES
from test_structure import MMCIF, PDB, atom, mmcif, row, seqres

from coordformer.model.chain import StructureError
from coordformer.model.structure import read_chains

WATER = {"name": "O", "record": "HETATM", "element": "O"}
LONG = {"HIS": "HISB", "LYS": "LYSH", "ASP": "ASPP", "CYS": "CYS2", "ARG": "ARGN"}


def residue(name, chain, number, x, record="ATOM", **options):
    """N, CA and C of a residue at x; those at x + 3.8 and x - 3.8 are bonded to it."""
    places = (("N", x - 1.2), ("CA", x), ("C", x + 1.3))
    return "".join(
        atom(name, chain, number, (place, 0, 0), each, record=record, element=each[0], **options)
        for each, place in places
    )


def peptide(names, chain="A", number=1, x=0.0, step=1):
    """Residues of which each is bonded to the next, numbered in a row."""
    return "".join(residue(name, chain, number + i * step, x + 3.8 * i) for i, name in enumerate(names.split()))


def summary(text, **options):
    """What is read: for each chain its name, sequence, positions and numbers."""
    chains = read_chains("made", data=text.encode(), **options)
    return {
        chain.id.removeprefix("made_").removeprefix("TEST_"): (
            chain.sequence,
            chain.positions.tolist(),
            " ".join(chain.residue_numbers),
        )
        for chain in chains
    }


def sequences(text):
    return {name: sequence for name, (sequence, _, _) in summary(text).items()}


def observed(chain):
    """Letters, numbers and coordinates of the residues with C-alpha."""
    seen = chain.observed[:, 0]
    residues = zip(chain.sequence, chain.residue_numbers, strict=True)
    return [each for each, here in zip(residues, seen, strict=True) if here], chain.coords[seen, 0]


# --- Written by Biopython, or as others write, and read again -----------------------------------------------------


class FirstModel(Select):
    def accept_model(self, model):
        return model.id == 0


def structure_of(name):
    parser = (PDBParser if name.endswith(".pdb.gz") else MMCIFParser)(QUIET=True)
    with gzip.open(STRUCTURES / name, "rt") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return parser.get_structure("some", file)


def as_biopython(structure, writer):
    """Its mmCIF has no entities, another label_asym_id wherever HETATM follow ATOM, and for these no label_seq_id; its
    PDB files have TER behind the ligands and waters of a chain."""
    file = io.StringIO()
    writer.set_structure(structure)
    writer.save(file, FirstModel())
    return file.getvalue()


# Columns in the order of each program; label_asym_id and label_seq_id repeat the author's.
COLUMNS_OF = {
    "Biotite": "group_PDB type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_entity_id "
    "label_seq_id pdbx_PDB_ins_code auth_seq_id auth_comp_id auth_asym_id auth_atom_id B_iso_or_equiv occupancy "
    "Cartn_x Cartn_y Cartn_z pdbx_PDB_model_num id",
    "OpenMM": "group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_entity_id "
    "label_seq_id pdbx_PDB_ins_code Cartn_x Cartn_y Cartn_z occupancy B_iso_or_equiv Cartn_x_esd pdbx_formal_charge "
    "auth_seq_id auth_comp_id auth_asym_id auth_atom_id pdbx_PDB_model_num",
    "PyMOL": "group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_entity_id "
    "label_seq_id pdbx_PDB_ins_code Cartn_x Cartn_y Cartn_z occupancy B_iso_or_equiv pdbx_formal_charge auth_asym_id "
    "pdbx_PDB_model_num",
}


def as_program(structure, program):
    columns = COLUMNS_OF[program].split()
    text = "data_some\nloop_\n" + "".join(f"_atom_site.{column}\n" for column in columns)
    for chain in structure[0]:
        for each in chain.get_unpacked_list():
            hetero, number, code = each.id
            for place in each.get_unpacked_list():
                x, y, z = place.coord
                values = {
                    "group_PDB": "HETATM" if hetero.strip() else "ATOM",
                    "id": place.serial_number,
                    "type_symbol": place.element,
                    "label_atom_id": f'"{place.name}"',
                    "label_alt_id": place.altloc.strip() or ".",
                    "label_comp_id": each.resname.strip(),
                    "label_asym_id": "." if program == "PyMOL" else chain.id,
                    "label_entity_id": "1" if program == "Biotite" else "?",
                    "label_seq_id": number,
                    "pdbx_PDB_ins_code": code.strip() or "?",
                    "Cartn_x": f"{x:.3f}",
                    "Cartn_y": f"{y:.3f}",
                    "Cartn_z": f"{z:.3f}",
                    "occupancy": f"{place.occupancy:.2f}",
                    "auth_seq_id": number,
                    "auth_comp_id": each.resname.strip(),
                    "auth_asym_id": chain.id,
                    "auth_atom_id": f'"{place.name}"',
                    "pdbx_PDB_model_num": 1,
                }
                text += " ".join(str(values.get(column, "?")) for column in columns) + "\n"
    return text


WRITERS = {
    "Biopython mmCIF": lambda structure: as_biopython(structure, MMCIFIO()),
    "Biopython PDB": lambda structure: as_biopython(structure, PDBIO()),
    **{program: lambda structure, program=program: as_program(structure, program) for program in COLUMNS_OF},
}


@pytest.mark.parametrize("name", [*MMCIF, *PDB, "4x8u.pdbx.gz"])
def test_files_of_other_programs_read_as_the_deposited_one(name):
    """Insertion codes, modified residues as HETATM, ligands, waters, DNA, and several types at one position."""
    expected = {chain.id.split("_")[-1]: observed(chain) for chain in read_chains(STRUCTURES / name)}
    structure = structure_of(name)
    for program, write in WRITERS.items():
        found = {
            chain.id.split("_")[-1]: observed(chain) for chain in read_chains("made", data=write(structure).encode())
        }
        assert list(found) == list(expected), program
        for chain, (residues, coords) in expected.items():
            assert found[chain][0] == residues, (program, chain)
            np.testing.assert_allclose(found[chain][1], coords, atol=2e-3)


def test_two_types_at_a_position_are_one_residue_without_entities():
    rows = [row("GLY", "A", 1, 0), row("PRO", "A", 2, 3.8, alt="A", occupancy=0.4)]
    rows += [row("SER", "A", 2, 3.9, alt="B", occupancy=0.6), row("ALA", "A", 3, 7.6)]
    assert summary(mmcif(rows)) == {"A": ("GSA", [0, 1, 2], "1 2 3")}
    with pytest.raises(StructureError, match="PRO 2 and SER 2 have one place and no altloc labels"):
        read_chains(
            "made", data=mmcif([each.replace(" A PRO", " . PRO").replace(" B SER", " . SER") for each in rows]).encode()
        )


def test_residues_that_a_program_names_after_the_polymer_are_none():
    """A free amino acid as HETATM, a ligand with an atom CA, calcium, and water; all with a label_seq_id."""
    rows = [row("GLY", "A", 1, 0), row("ALA", "A", 2, 3.8)]
    for number, (name, symbol) in enumerate({"GLU": "C", "QQQ": "C", "CA": "CA", "HOH": "O"}.items(), 3):
        rows.append(row(name, "A", number, 50 * number, type_symbol=symbol, group_PDB="HETATM"))
    assert summary(mmcif(rows)) == {"A": ("GA", [0, 1], "1 2")}


def test_entities_say_what_a_chain_is_where_there_are_any():
    """A residue of the polymer without label_seq_id is reported, not left out."""
    rows = [row("GLY", "A", 1, 0), row("ALA", "A", ".", 3.8, auth_seq_id=2)]
    with pytest.raises(StructureError, match="chain TEST_A: a ALA has no residue number"):
        read_chains("made", data=mmcif(rows, "GLY ALA").encode())


def test_chain_names_of_many_letters():
    rows = [row("GLY", "Antibody_heavy", 1, 0), row("ALA", "Antibody_light", 1, 3.8)]
    assert sequences(mmcif(rows)) == {"Antibody_heavy": "G", "Antibody_light": "A"}


# --- TER, and what else ends a chain ------------------------------------------------------------------------------

FIRST, SECOND = peptide("GLY ALA SER"), peptide("LEU VAL THR", number=4, x=50)


@pytest.mark.parametrize("ter", ["TER", "TER   ", "TER      10      SER A   3", "TER\r", "TER\nTER", "ter"])
@pytest.mark.parametrize("chain", ["A", " "])
def test_chain_ends_at_ter(ter, chain):
    names = ("A.1", "A.2") if chain == "A" else ("1", "2")
    for number in (4, 1):  # numbers that go on, and that begin anew
        text = f"{peptide('GLY ALA SER', chain)}{ter}\n{peptide('LEU VAL THR', chain, number, 50)}{ter}\nEND\n"
        assert sequences(text) == dict(zip(names, ("GAS", "LVT"), strict=True))


def test_proteins_without_chain_names_are_told_apart():
    """As tleap writes a complex: 1BD2, with TER between its chains, residues numbered throughout, and no B-factors."""
    text, number = "", 0
    for chain in structure_of("1BD2.cif.gz")[0]:
        for each in chain:
            if each.id[0] != " ":
                continue
            number += 1
            for place in each:
                x, y, z = place.coord
                name = place.name if len(place.name) == 4 else f" {place.name:3s}"
                text += f"ATOM      1 {name} {each.resname:3s}  {number:4d}    {x:8.3f}{y:8.3f}{z:8.3f}\n"
        text += "TER\n"
    chains = read_chains("made", data=text.encode())
    assert [chain.id for chain in chains] == ["made_1", "made_2", "made_3", "made_4", "made_5"]
    for chain, expected in zip(chains, read_chains(STRUCTURES / "1BD2.cif.gz"), strict=True):
        residues, coords = observed(expected)
        assert chain.sequence == "".join(letter for letter, _ in residues)
        np.testing.assert_allclose(chain.coords[:, 0], coords, atol=2e-3)
        assert np.isnan(chain.b_factor).all()


def test_ter_within_a_chain_does_not_end_it():
    assert summary(FIRST + "TER\n" + peptide("LEU VAL", number=4, x=11.4)) == {"A": ("GASLV", [*range(5)], "1 2 3 4 5")}
    # With SEQRES the gap is one, too.
    text = seqres("A", "GLY ALA SER TRP TRP LEU VAL") + FIRST + "TER\n" + peptide("LEU VAL", number=6, x=19) + "TER\n"
    assert summary(text) == {"A": ("GASWWLV", [*range(7)], "1 2 3 4 5 6 7")}
    # But two copies are two.
    text = seqres("A", "GLY ALA SER") + FIRST + "TER\n" + peptide("GLY ALA SER", x=50) + "TER\n"
    assert sequences(text) == {"A.1": "GAS", "A.2": "GAS"}


@pytest.mark.parametrize("ligand", [atom("HOH", "A", 201, **WATER), residue("QQQ", "A", 201, 90, "HETATM")])
def test_ter_behind_ligands_is_no_end_of_the_polymer(ligand):
    """So Biopython writes, and a free amino acid before them is no part of the chain."""
    free = residue("GLU", "A", 200, 90, "HETATM")
    text = FIRST + free + ligand + "TER\n" + peptide("LEU VAL", "B")
    assert sequences(text) == {"A": "GAS", "B": "LV"}
    assert sequences(FIRST + free + "TER\n") == {"A": "GAS"}
    # A modified residue there is of the polymer, also behind a gap.
    assert summary(FIRST + residue("MSE", "A", 6, 19, "HETATM") + "TER\n") == {"A": ("GASM", [0, 1, 2, 5], "1 2 3 6")}


def test_peptide_of_hetatm_records_behind_a_chain_is_a_ligand():
    ligand = residue("DPN", "A", 300, 90, "HETATM") + residue("PRO", "A", 301, 93.8, "HETATM")
    for end in ("", "TER\n"):
        assert sequences(FIRST + end + ligand) == {"A": "GAS"}
    assert sequences(ligand) == {"A": "FP"}


def test_chain_name_that_returns():
    other = peptide("LEU VAL", "B", x=50)
    later = peptide("THR TRP", number=4, x=11.4)
    for end in ("", "TER\n"):
        assert sequences(FIRST + end + other + end + later) == {"A": "GASTW", "B": "LV"}
    far = peptide("THR TRP", number=9, x=30)
    assert summary(FIRST + other + far)["A"] == ("GASTW", [0, 1, 2, 8, 9], "1 2 3 9 10")
    assert sequences(FIRST + "TER\n" + other + "TER\n" + far) == {"A.1": "GAS", "A.2": "TW", "B": "LV"}
    waters = atom("HOH", "A", 201, **WATER) + residue("QQQ", "A", 202, 90, "HETATM")
    assert sequences(FIRST + "TER\n" + other + "TER\n" + waters) == {"A": "GAS", "B": "LV"}


def segment(text, name):
    return "".join(f"{line[:72]}{name:4s}{line[76:]}\n" for line in text.splitlines())


def test_segments_stand_for_chains_without_names():
    """As CHARMM and NAMD write, without TER."""
    first = segment(peptide("GLY ALA SER", " "), "PROA")
    for number in (1, 4):
        assert sequences(first + segment(peptide("LEU VAL", " ", number, 50), "PROB")) == {"1": "GAS", "2": "LV"}
    # Beside names they say nothing, but where numbers begin anew.
    assert sequences(segment(FIRST, "P1") + segment(SECOND, "P2")) == {"A": "GASLVT"}
    assert sequences(segment(FIRST, "P1") + segment(peptide("LEU VAL", x=50), "P2")) == {"A.1": "GAS", "A.2": "LV"}


def test_ids_stay_different():
    """Of pieces of a chain without a name, and of a chain with the name of a piece."""
    text = peptide("GLY ALA", " ") + "TER\n" + peptide("SER LEU", " ", x=50) + "TER\n" + peptide("VAL THR", "1", x=90)
    chains = read_chains("made", data=text.encode())
    assert [chain.sequence for chain in chains] == ["GA", "SL", "VT"]
    assert len({chain.id for chain in chains}) == 3


def test_model_records_that_are_broken():
    """Only the first model is read, so what follows does not matter."""
    for second in ("MODEL        1\n", "MODEL     what\n", "ENDMDL\nMODEL        1\n", "ENDMDL\nATOM  broken\n"):
        assert sequences("MODEL        1\n" + FIRST + "TER\n" + second + SECOND) == {"A": "GAS"}


# --- Residues that no table knows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", "TER\n"])
@pytest.mark.parametrize("place", range(3))
def test_unknown_residue_of_a_chain_is_x(place, end):
    """Inside or at an end: by the peptide bond, or by C-alpha where nothing else is known."""
    names = ["GLY", "ALA", "SER"]
    names[place] = "QQQ"
    lines = "".join(
        residue(name, "A", number, 3.8 * number, "HETATM" if name == "QQQ" else "ATOM")
        for number, name in enumerate(names)
    )
    expected = "".join({"GLY": "G", "ALA": "A", "SER": "S", "QQQ": "X"}[name] for name in names)
    for text in (lines, "".join(line for line in lines.splitlines(keepends=True) if " CA " in line)):
        (chain,) = read_chains("made", data=(text + end).encode())
        assert chain.sequence == expected
        assert chain.coords[:, 0, 0].tolist() == pytest.approx([0, 3.8, 7.6])


def test_unknown_residue_that_is_not_bonded_is_a_ligand():
    far = residue("QQQ", "A", 201, 90, "HETATM")
    beside = residue("QQQ", "A", 201, 3.8, "HETATM").replace("   0.000   0.000  1.00", "   3.800   0.000  1.00")
    for ligand in (far, beside, far + residue("RRR", "A", 202, 93.8, "HETATM")):
        for end in ("", "TER\n"):
            assert sequences(FIRST + end + ligand + end) == {"A": "GAS"}
    assert sequences(far + FIRST) == {"A": "GAS"}


def test_two_unknown_types_at_a_position():
    text = peptide("GLY", x=0)
    text += residue("QQQ", "A", 2, 3.8, "HETATM", alt="A", occupancy=0.4)
    text += residue("RRR", "A", 2, 3.9, "HETATM", alt="B", occupancy=0.6) + peptide("SER", number=3, x=7.6)
    (chain,) = read_chains("made", data=text.encode())
    assert (chain.sequence, round(float(chain.coords[1, 0, 0]), 3)) == ("GXS", 3.9)
    (chain,) = read_chains("made", data=text.split(peptide("SER", number=3, x=7.6))[0].encode())
    assert (chain.sequence, round(float(chain.coords[1, 0, 0]), 3)) == ("GX", 3.9)


# --- Names in four letters ----------------------------------------------------------------------------------------


def four(name, chain, number, x=0.0, place="CA"):
    """A line with the residue's name in columns 18 to 21, where chain names of two letters begin in the last one."""
    return (
        f"ATOM  {number:5d}  {place:3s} {name:4s}{chain}{number:4d}    {x:8.3f}{0:8.3f}{0:8.3f}{1:6.2f}{10:6.2f}"
        f"          {place[0]:>2s}\n"
    )


@pytest.mark.parametrize("chain", ["A", " "])
@pytest.mark.parametrize("header", ["", seqres("A", "ALA HIS LYS ASP CYS ARG HIS CYS GLU GLY")])
def test_names_in_four_letters(chain, header):
    """Of GROMACS, CHARMM and Amber, with waters and lipids that are named so, too."""
    names = ["NALA", "HISB", "LYSH", "ASPP", "CYS2", "ARGN", "NHIE", "CCYX", "GLUH", "CGLY"]
    text = "".join(four(name, chain, number, 3.8 * number) for number, name in enumerate(names, 1)) + "TER\n"
    text += four("TIP3", chain, 11, 90, "OH2") + four("POPC", chain, 12, 95, "CA") + four("DPPC", chain, 13, 99, "C1")
    assert summary(header.replace(" A ", f" {chain} ") + text) == {
        chain.strip(): ("AHKDCRHCEG", [*range(10)], "1 2 3 4 5 6 7 8 9 10")
    }


def test_waters_and_lipids_in_four_letters_leave_the_protein_alone():
    text = "".join(four(name, "A", number, 3.8 * number) for number, name in enumerate(("GLY ", "LYS "), 1))
    text += four("TIP3", "A", 11, 90, "OH2") + four("POPC", "A", 12, 95, "C1") + four("SPCE", "A", 13, 95, "OW")
    assert sequences(text) == {"A": "GK"}


def test_chain_names_of_two_letters_are_no_names_of_residues():
    """As in large assemblies: LYS of chain HA looks like LYSH of chain A."""
    text, x = "", 0.0
    for chain in ("AA", "HA", "NA", "BA", "A1", "2B", "C"):
        for number, name in enumerate(("LYS", "GLY", "HIS", "ASP", "CYS"), 1):
            text += four(name + chain[:-1].ljust(1), chain[-1], number, x := x + 3.8)
        text, x = text + "TER\n", x + 50
    assert sequences(text) == dict.fromkeys(("AA", "HA", "NA", "BA", "A1", "2B", "C"), "KGHDC")
    # The letters of one chain do not speak for another.
    text = four("LYSH", "B", 1) + four("HISB", "B", 2, 3.8) + four("GLYC", "B", 1, 50) + four("ALAC", "B", 2, 53.8)
    assert sequences(text) == {"B": "KH", "CB": "GA"}


# --- What is broken and not needed --------------------------------------------------------------------------------

ANISOU = "ANISOU    1  C   GLY A   1      100    100    100      0      0      0\n"


@pytest.mark.parametrize(
    "broken",
    [
        *(
            ANISOU,
            "ANISOU\n",
            "CONECT    1*****\n",
            "CONECT12 4\n",
            "DBREF2 1ABC A     P12345\n",
            "SHEET\n",
            "MTRIX1 x\n",
        ),
        *(
            "REMARK 350   BIOMT1   1\n",
            "REMARK 290     55555   X,Y,Q\n",
            "HETNAM     QQQ\n",
            "CRYST1  x y z\n",
            "TITLE \xe9\n",
        ),
    ],
)
def test_broken_records_that_nothing_needs(broken):
    for text in (broken + FIRST, FIRST + broken, peptide("GLY") + broken + peptide("ALA SER", number=2, x=3.8)):
        assert sequences(text) == {"A": "GAS"}


def test_charges_that_are_none_beside_an_orphan_anisou():
    assert sequences(ANISOU + "".join(f"{line[:78]}1x\n" for line in FIRST.splitlines())) == {"A": "GAS"}


BROKEN_CATEGORIES = {
    "title in two words": "_struct.title My protein\n",
    "tag without a value": "_struct.title\n_struct.pdbx_descriptor x\n",
    "tag twice": "_struct.title a\n_struct.title b\n",
    "loop with a value too few": "loop_\n_citation.id\n_citation.title\n1 a 2\n",
    "quote that does not end": "_struct.title 'A protein\n",
    "helices without numbers": "loop_\n_struct_conf.conf_type_id\n_struct_conf.id\n_struct_conf.beg_auth_asym_id\n"
    "_struct_conf.beg_auth_comp_id\n_struct_conf.beg_auth_seq_id\n_struct_conf.end_auth_asym_id\n"
    "_struct_conf.end_auth_comp_id\n_struct_conf.end_auth_seq_id\nHELX_P 1 A GLY x A SER y\n",
    "numbering that is cut off": "loop_\n_pdbx_poly_seq_scheme.asym_id\n_pdbx_poly_seq_scheme.seq_id\nA 1 A\n",
}


@pytest.mark.parametrize("case", BROKEN_CATEGORIES)
def test_broken_categories_that_nothing_needs(case):
    rows = [row("GLY", "A", 1, 0), row("SER", "A", 3, 7.6)]
    text = mmcif(rows, "GLY ALA SER", extra="_exptl.method 'X-RAY DIFFRACTION'\n" + BROKEN_CATEGORIES[case])
    (chain,) = read_chains("made", data=text.encode())
    assert (chain.id, chain.sequence, chain.method) == ("TEST_A", "GAS", "X-RAY DIFFRACTION")
    assert chain.residue_numbers == ("1", "2", "3")
    at_end = mmcif(rows, "GLY ALA SER") + "#\n" + BROKEN_CATEGORIES[case]
    assert sequences(at_end) == {"A": "GAS"}


def test_a_broken_table_of_atoms_is_refused():
    rows = [row("GLY", "A", 1, 0), row("SER", "A", 3, 7.6)]
    for text in (mmcif(rows)[:-4], mmcif(rows, "GLY ALA SER").replace("1 2 ALA", "1 2"), mmcif(rows) + "3\n"):
        with pytest.raises(StructureError, match="broken or cut off"):
            read_chains("made", data=text.encode())


def test_tags_without_values_are_refused():
    """gemmi would end the process over the rows above their tags."""
    lines = [f"_atom_site.{column}\n" for column in COLUMNS_OF["OpenMM"].split()]
    text = "data_x\nloop_\n" + lines[0] + row("GLY", "A", 1, 0) + "".join(lines[:0:-1])
    with pytest.raises(StructureError, match="has no value; the file is broken"):
        read_chains("made", data=text.encode())


def test_first_model_of_an_mmcif_file():
    """Rows of later models are not parsed; rows of the first one are not lost behind them, or if their end differs."""
    first = [row("GLY", "A", 1, 0), row("ALA", "A", 2, 3.8)]
    second = [row("GLY", "A", 1, 50, model=2), row("ALA", "A", 2, 53.8, model=2)]
    blank = [each.replace("\n", " \n") for each in (*first, *second)]
    orders = [first + second, [first[0], second[0], first[1]], [*blank[:1], *blank[2:], first[1]], blank]
    for rows in orders:
        for end in ("", "#\n", "# \nloop_\n_citation.id\n_citation.year\n1 1\n2 1\n"):
            (chain,) = read_chains("made", data=(mmcif(rows) + end).encode())
            assert (chain.sequence, chain.coords[:, 0, 0].tolist()) == ("GA", pytest.approx([0, 3.8]))


@pytest.mark.parametrize("category", ["_struct.title", "_entity.details"])
def test_text_that_looks_like_a_category(category):
    extra = f"{category}\n;\nloop_\n_atom_site.id is not meant\n_struct.title neither\ndata_ is none\n;\n"
    assert sequences(mmcif([row("GLY", "A", 1, 0)], extra=extra)) == {"A": "G"}


def test_two_data_blocks_of_one_name():
    text = mmcif([row("GLY", "A", 1, 0)])
    assert sequences(text + text.replace("GLY", "ALA")) == {"A": "G"}


# --- Numbers that are none ----------------------------------------------------------------------------------------


def columns(text, start, value):
    return "".join(f"{line[:start]}{value}{line[start + len(value) :]}\n" for line in text.splitlines())


def test_coordinates_that_are_nan():
    text = (
        peptide("GLY") + residue("ALA", "A", 2, 3.8).replace("   3.800", "     nan") + peptide("SER", number=3, x=7.6)
    )
    (chain,) = read_chains("made", data=text.encode(), atoms=("N", "CA"))
    assert chain.sequence == "GAS"
    assert chain.observed.tolist() == [[True, True], [True, False], [True, True]]
    whole = columns(residue("ALA", "A", 2, 3.8), 30, "     NaN    -nan     nan")
    (chain,) = read_chains("made", data=(peptide("GLY") + whole + peptide("SER", number=3, x=7.6)).encode())
    assert (chain.sequence, chain.observed[:, 0].tolist()) == ("GAS", [True, False, True])


@pytest.mark.parametrize("value", ["nan", "NaN", "?", ".", "-nan"])
@pytest.mark.parametrize("sequence", ["", "GLY ALA SER"])
def test_coordinates_that_are_nan_in_mmcif(value, sequence):
    rows = [row("GLY", "A", 1, 0), row("ALA", "A", 2, value), row("SER", "A", 3, 7.6)]
    (chain,) = read_chains("made", data=mmcif(rows, sequence).encode())
    assert (chain.sequence, chain.observed[:, 0].tolist()) == ("GAS", [True, False, True])


@pytest.mark.parametrize("value", ["  12.34.", "1 2.3456", "  1.0E01", "        ", "********", "     0x1"])
def test_coordinates_that_are_no_numbers(value):
    with pytest.raises(StructureError, match="line 2 has no number in a coordinate column"):
        read_chains("made", data=columns(FIRST, 38, value).replace(value, "   0.000", 1).encode())


def test_coordinates_that_are_cut_off():
    """The rest of a number is a number, too; and the message is one line."""
    *whole, last = FIRST.splitlines(keepends=True)
    for end in (52, 50, 45):
        with pytest.raises(StructureError, match="line 9 has no number in a coordinate column") as error:
            read_chains("made", data="".join((*whole, last[:end])).encode())
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["      ", "******", "   nan", "  NULL", " 1e999"])
def test_b_factors_that_are_none(value):
    (chain,) = read_chains("made", data=columns(FIRST, 60, value).encode())
    assert (chain.sequence, chain.observed.all(), np.isnan(chain.b_factor).all()) == ("GAS", True, True)
    short = "".join(f"{line[:54]}\n" for line in FIRST.splitlines())
    assert np.isnan(read_chains("made", data=short.encode())[0].b_factor).all()
    (chain,) = read_chains(
        "made", data=mmcif([row("GLY", "A", 1, b=value.strip() or "?"), row("ALA", "A", 2, b=7)]).encode()
    )
    assert np.isnan(chain.b_factor).tolist() == [True, False]
