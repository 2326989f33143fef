import gzip
import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from Bio.Data.PDBData import protein_letters_3to1_extended
from Bio.PDB.MMCIF2Dict import MMCIF2Dict
from Bio.PDB.PDBParser import PDBParser

from coordformer.model import chain as chain_module
from coordformer.model import structure, structure_parsing, structure_text
from coordformer.model.chain import StructureError
from coordformer.model.structure import read_chains, read_complex, read_proteins

DATA = Path(__file__).parents[1] / "data" / "structures"
# The lengths that follow from the files' own headers: of the deposited sequence, and of it with a C-alpha.
MMCIF = {
    "1A8O.cif.gz": {"1A8O_A": (70, 70)},
    "1AS5.cif.gz": {"1AS5_A": (25, 24)},
    "1BD2.cif.gz": {
        "1BD2_A": (275, 275),
        "1BD2_B": (100, 99),
        "1BD2_C": (9, 9),
        "1BD2_D": (204, 190),
        "1BD2_E": (244, 242),
    },
    "1LCD.cif.gz": {"1LCD_A": (51, 51)},
    "1pfe.cif.gz": {"1PFE_B": (8, 8)},
    "2OFG.cif.gz": {"2OFG_X": (111, 106)},
    "3JQH.cif.gz": {"3JQH_A": (167, 23)},
    "5i55.cif.gz": {"5I55_A": (22, 22)},
}
PDB = {
    "1A8O.pdb.gz": {"1A8O_A": (70, 70)},
    "1hvr.pdb.gz": {"1HVR_A": (99, 99), "1HVR_B": (99, 99)},
    "1orc.pdb.gz": {"1ORC_A": (71, 64)},
    "pdb1ejg.pdb.gz": {"1EJG_A": (46, 46)},
    "pdb1ubi_ca.pdb.gz": {"pdb1ubi_ca_A": (76, 76)},
    "pdb3mht.pdb.gz": {"pdb3mht_A": (327, 327)},
}


# --- Files written by hand ---------------------------------------------------------------------------------------


def atom(
    residue,
    chain,
    number,
    xyz=None,
    name="CA",
    *,
    alt=" ",
    icode=" ",
    occupancy=1.0,
    b=10.0,
    record="ATOM",
    element="C",
):
    """One line of a PDB file; by default residues lie 3.8 Angstrom apart along x."""
    x, y, z = xyz or (3.8 * number, 0, 0)
    padded = f" {name:3s}" if len(element) == 1 else f"{name:4s}"
    return (
        f"{record:6s}    1 {padded}{alt}{residue:>3s} {chain}{number:4d}{icode}   {x:8.3f}{y:8.3f}{z:8.3f}"
        f"{occupancy:6.2f}{b:6.2f}          {element:>2s}\n"
    )


def seqres(chain, names):
    names = names.split()
    return "".join(
        f"SEQRES {i // 13 + 1:3d} {chain} {len(names):4d}  {' '.join(names[i : i + 13])}\n"
        for i in range(0, len(names), 13)
    )


COLUMNS = [
    *("group_PDB", "id", "type_symbol", "label_atom_id", "label_alt_id", "label_comp_id", "label_asym_id"),
    *("label_entity_id", "label_seq_id", "Cartn_x", "Cartn_y", "Cartn_z", "occupancy", "B_iso_or_equiv"),
    *("auth_seq_id", "auth_asym_id", "pdbx_PDB_model_num"),
]


def row(
    residue, label, seq, x=0.0, name="CA", *, alt=".", auth=None, entity=1, occupancy=1.0, b=10.0, model=1, **changes
):
    """One row of _atom_site; `changes` replaces values by column."""
    values = ["ATOM", 1, "C", name, alt, residue, label, entity, seq, x, 0, 0, occupancy, b, seq, auth or label, model]
    return " ".join(str(changes.get(column, value)) for column, value in zip(COLUMNS, values, strict=True)) + "\n"


def mmcif(rows, sequence="", extra="", columns=COLUMNS):
    """An mmCIF file; `sequence` is a list of monomers, "SER,PRO" where both occur."""
    text = "data_test\n_entry.id TEST\n" + extra
    if sequence:
        text += "loop_\n_entity.id\n_entity.type\n1 polymer\n2 polymer\n"
        text += "loop_\n_entity_poly.entity_id\n_entity_poly.type\n1 'polypeptide(L)'\n2 'polypeptide(L)'\n"
        text += "loop_\n_entity_poly_seq.entity_id\n_entity_poly_seq.num\n_entity_poly_seq.mon_id\n"
        for number, monomers in enumerate(sequence.split(), 1):
            text += "".join(f"{entity} {number} {each}\n" for entity in (1, 2) for each in monomers.split(","))
    return text + "loop_\n" + "".join(f"_atom_site.{column}\n" for column in columns) + "".join(rows)


@pytest.fixture
def read(tmp_path):
    """Reads a file with the text given."""

    def read_text(text, name="made.pdb", **options):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_chains(path, **options)

    return read_text


def x_of(chain, slot=0):
    """First coordinates of the atoms of a chain, None where unobserved."""
    return [None if np.isnan(x) else round(float(x), 3) for x in chain.coords[:, slot, 0]]


# --- Real files against Biopython --------------------------------------------------------------------------------


def from_dictionary(path):
    """Sequence and C-alpha by position, computed from Biopython's dictionary of the file, for each author's chain."""
    with gzip.open(path, "rt") as file:
        table = MMCIF2Dict(file)
    monomers = {}
    for entity, number, monomer in zip(
        *(table[f"_entity_poly_seq.{key}"] for key in ("entity_id", "num", "mon_id")), strict=True
    ):
        monomers.setdefault(entity, {}).setdefault(int(number), []).append(monomer)
    proteins = {
        entity
        for entity, kind in zip(table["_entity_poly.entity_id"], table["_entity_poly.type"], strict=True)
        if kind == "polypeptide(L)"
    }
    canonical = {
        entity: letters.replace("\n", "")
        for entity, letters in zip(
            table["_entity_poly.entity_id"], table["_entity_poly.pdbx_seq_one_letter_code_can"], strict=True
        )
    }
    keys = "label_entity_id auth_asym_id label_seq_id label_comp_id Cartn_x Cartn_y Cartn_z occupancy B_iso_or_equiv"
    keys += " label_atom_id type_symbol pdbx_PDB_model_num"
    chains = {}
    for values in zip(*(table[f"_atom_site.{key}"] for key in keys.split()), strict=True):
        entity, chain, number, monomer, x, y, z, occupancy, b, name, element, model = values
        if entity in proteins and (name, element) == ("CA", "C") and model == table["_atom_site.pdbx_PDB_model_num"][0]:
            best = chains.setdefault((entity, chain), {})
            if int(number) not in best or float(occupancy) > best[int(number)][0]:  # of equal ones the first
                best[int(number)] = (float(occupancy), monomer, [float(x), float(y), float(z)], float(b))
    result = {}
    for (entity, chain), best in chains.items():
        letters, coords, b_factor = "", [], []
        for number, names in sorted(monomers[entity].items()):
            _, monomer, xyz, b = best.get(number, (0, names[0], [np.nan] * 3, np.nan))
            several = len(names) > 1  # there the sequence in one letter code has the first type
            letters += protein_letters_3to1_extended.get(monomer, "X") if several else canonical[entity][number - 1]
            coords.append(xyz)
            b_factor.append(b)
        result[chain] = (letters, np.array(coords), np.array(b_factor))
    return result


@pytest.mark.parametrize("name", MMCIF)
def test_mmcif_matches_biopython(name):
    chains = read_chains(DATA / name)
    assert {chain.id: (len(chain), chain.observed.sum()) for chain in chains} == MMCIF[name]
    expected = from_dictionary(DATA / name)
    assert [chain.id.split("_")[1] for chain in chains] == list(expected)
    for chain, (sequence, coords, b_factor) in zip(chains, expected.values(), strict=True):
        assert chain.sequence == sequence
        np.testing.assert_allclose(chain.coords[:, 0], coords, atol=1e-4)
        np.testing.assert_allclose(chain.b_factor, b_factor, atol=1e-4)


@pytest.mark.parametrize("name", PDB)
def test_pdb_matches_biopython(name):
    chains = read_chains(DATA / name)
    assert {chain.id: (len(chain), chain.observed.sum()) for chain in chains} == PDB[name]
    with gzip.open(DATA / name, "rt") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PDBParser(QUIET=True).get_structure("", file)[0]
    for chain in chains:
        letters, coords = "", []
        for residue in model[chain.id[-1]]:
            if residue.is_disordered() == 2:  # several residue types: the one with the highest occupancy
                residue.disordered_select(
                    max(residue.disordered_get_id_list(), key=lambda each: residue.child_dict[each]["CA"].occupancy)
                )
            # S-adenosylhomocysteine is the ligand of 3mht; Biopython counts it among the amino acids.
            if "CA" in residue and residue["CA"].element == "C" and residue.resname != "SAH":
                letters += protein_letters_3to1_extended[residue.resname]
                coords.append(residue["CA"].coord)
        seen = chain.observed[:, 0]
        assert "".join(np.array(list(chain.sequence))[seen]) == letters
        np.testing.assert_allclose(chain.coords[seen, 0], coords, atol=1e-4)


def test_both_formats_of_an_entry_read_the_same():
    (mmcif_chain,) = read_chains(DATA / "1A8O.cif.gz", atoms=("N", "CA", "C"))
    (pdb_chain,) = read_chains(DATA / "1A8O.pdb.gz", atoms=("N", "CA", "C"))
    assert mmcif_chain.id == pdb_chain.id == "1A8O_A"
    assert mmcif_chain.sequence == pdb_chain.sequence
    assert (mmcif_chain.method, mmcif_chain.resolution) == (pdb_chain.method, pdb_chain.resolution)
    assert mmcif_chain.method == "X-RAY DIFFRACTION"
    assert mmcif_chain.resolution == 1.7
    np.testing.assert_array_equal(mmcif_chain.coords, pdb_chain.coords)
    np.testing.assert_array_equal(mmcif_chain.b_factor, pdb_chain.b_factor)
    # N-CA and CA-C are 1.46 and 1.52 Angstrom, so the atoms are in the order asked for.
    bonds = np.linalg.norm(np.diff(mmcif_chain.coords, axis=1), axis=-1)
    np.testing.assert_allclose(bonds.mean(0), [1.46, 1.52], atol=0.03)


def test_missing_residues_of_1orc_follow_its_remark_465():
    (chain,) = read_chains(DATA / "1orc.pdb.gz")
    with gzip.open(DATA / "1orc.pdb.gz", "rt") as file:
        lines = [line.split() for line in file if line.startswith("REMARK 465")]
    missing = [words[2:] for words in lines if len(words) == 5 and words[3] == "A"]
    assert [protein_letters_3to1_extended[name] for name, _, _ in missing] == [
        letter for letter, seen in zip(chain.sequence, chain.observed[:, 0], strict=True) if not seen
    ]
    # MET 1, GLU 2 in front; residues 62 to 66 behind. The sequence has 5 inserted residues after 56.
    assert np.flatnonzero(~chain.observed[:, 0]).tolist() == [0, 1, 66, 67, 68, 69, 70]


def test_mmcif_under_another_suffix_without_sequence():
    (chain,) = read_chains(DATA / "4x8u.pdbx.gz")
    assert chain.id == "4X8U_H"
    assert chain.sequence == "FDKIKNW"
    assert chain.observed.all()


def test_microheterogeneity_of_1ejg_keeps_one_type_per_position():
    (chain,) = read_chains(DATA / "pdb1ejg.pdb.gz")
    assert chain.sequence == "TTCCPSIVARSNFNVCRLPGTPEALCATYTGCIIIPGATCPGDYAN"


# --- Special cases -----------------------------------------------------------------------------------------------


def test_unobserved_residues_stay_in_place(read):
    text = seqres("A", "GLY ALA SER VAL LEU TRP") + atom("ALA", "A", 2) + atom("LEU", "A", 5) + "TER\n"
    (chain,) = read(text)
    assert chain.sequence == "GASVLW"
    assert x_of(chain) == [None, 7.6, None, None, 19.0, None]
    assert np.isnan(chain.b_factor).tolist() == [True, False, True, True, False, True]


def test_gap_between_equal_residues_falls_at_the_break(read):
    # A A A A A with the third unobserved: letters alone cannot tell; the distance and the numbers can.
    text = seqres("A", "GLY ALA ALA ALA ALA ALA TRP")
    text += "".join(atom("ALA", "A", n) for n in (2, 3, 5, 6)) + atom("TRP", "A", 7) + "TER\n"
    assert x_of(read(text)[0]) == [None, 7.6, 11.4, None, 19.0, 22.8, 26.6]


def test_numbers_that_jump_between_bonded_residues_are_no_gap(read):
    # As antibodies are numbered: 10 follows 2, yet the atoms are bonded and the sequence has no residue between.
    text = seqres("A", "ALA ALA ALA ALA")
    text += atom("ALA", "A", 1) + atom("ALA", "A", 2) + atom("ALA", "A", 10, (11.4, 0, 0)) + "TER\n"
    assert x_of(read(text)[0]) == [3.8, 7.6, 11.4, None]


def test_gap_whose_ends_are_close_is_seen_by_the_numbers(read):
    text = seqres("A", "GLY ALA SER VAL LEU")
    text += (
        atom("GLY", "A", 1, (0, 0, 0)) + atom("ALA", "A", 2, (3.8, 0, 0)) + atom("LEU", "A", 5, (7.6, 0, 0)) + "TER\n"
    )
    assert x_of(read(text)[0]) == [0, 3.8, None, None, 7.6]


def test_negative_and_falling_residue_numbers(read):
    text = seqres("A", "GLY ALA SER VAL LEU")
    names = [("GLY", -3), ("ALA", -2), ("SER", 7), ("VAL", 1), ("LEU", 0)]
    text += "".join(atom(name, "A", number, (3.8 * i, 0, 0)) for i, (name, number) in enumerate(names)) + "TER\n"
    (chain,) = read(text)
    assert chain.sequence == "GASVL"
    assert x_of(chain) == [0, 3.8, 7.6, 11.4, 15.2]


def test_insertion_codes_are_residues_of_their_own(read):
    text = atom("GLY", "A", 1, (0, 0, 0)) + atom("ALA", "A", 1, (3.8, 0, 0), icode="A")
    text += atom("SER", "A", 1, (7.6, 0, 0), icode="B") + atom("VAL", "A", 2, (11.4, 0, 0))
    for header in ("", seqres("A", "GLY ALA SER VAL")):
        (chain,) = read(header + text + "TER\n")
        assert chain.sequence == "GASV"
        assert x_of(chain) == [0, 3.8, 7.6, 11.4]


def test_without_seqres_the_sequence_is_what_is_observed(read):
    (chain,) = read(atom("ALA", "A", 2) + atom("LEU", "A", 9), name="my.model.pdb")
    assert (chain.id, chain.sequence, chain.method, chain.resolution) == ("my.model_A", "AL", None, None)


def test_random_gaps_in_seqres_are_found(read):
    rng = random.Random(0)
    names = {"A": "ALA", "G": "GLY", "W": "TRP"}  # few letters, so that a run fits in many places
    for _ in range(40):
        letters = ["W", "W", "W", "W", *rng.choices("AG", k=60)]  # the start is unique, so the first run has one place
        seen = [True] * 64
        for _ in range(4):
            start, length = rng.randrange(4, 64), rng.randrange(1, 8)
            seen[start : start + length] = [False] * len(seen[start : start + length])
        shift = rng.randrange(-60, 500)  # the author's numbers begin anywhere
        text = seqres("A", " ".join(names[letter] for letter in letters))
        for i, letter in enumerate(letters):
            if seen[i]:
                text += atom(names[letter], "A", i + shift, (3.8 * i, 0, 0))
        (chain,) = read(text + "TER\n")
        assert chain.sequence == "".join(letters)
        assert x_of(chain) == [round(3.8 * i, 3) if seen[i] else None for i in range(64)]


def test_conformer_with_the_highest_occupancy(read):
    text = atom("ALA", "A", 1, (1, 0, 0), alt="A", occupancy=0.4) + atom(
        "ALA", "A", 1, (2, 0, 0), alt="B", occupancy=0.6
    )
    assert x_of(read(text)[0]) == [2]


def test_equal_occupancies_take_the_first_label(read):
    text = atom("ALA", "A", 1, (1, 0, 0), alt="B", occupancy=0.5) + atom(
        "ALA", "A", 1, (2, 0, 0), alt="A", occupancy=0.5
    )
    assert x_of(read(text)[0]) == [2]


def test_atoms_of_a_residue_come_from_one_conformer(read):
    # B has the better C-alpha, A the better sum; N has no label and belongs to both.
    text = atom("ALA", "A", 1, (1, 0, 0), "N", element="N")
    for name, alt, x, occupancy in (("CA", "A", 2, 0.4), ("CA", "B", 3, 0.6), ("C", "A", 4, 0.9), ("C", "B", 5, 0.1)):
        text += atom("ALA", "A", 1, (x, 0, 0), name, alt=alt, occupancy=occupancy)
    (chain,) = read(text, atoms=("N", "CA", "C"))
    assert chain.coords[0, :, 0].tolist() == [1, 2, 4]
    assert x_of(read(text)[0]) == [3]


def test_unlabeled_atoms_are_no_conformer_of_their_own(read):
    text = atom("ALA", "A", 1, (1, 0, 0), "N", element="N") + atom("ALA", "A", 1, (2, 0, 0), alt="A", occupancy=0)
    (chain,) = read(text, atoms=("N", "CA"))
    assert chain.coords[0, :, 0].tolist() == [1, 2]


def test_unlabeled_conformer_beside_a_labeled_one(read):
    text = atom("ALA", "A", 1, (1, 0, 0), occupancy=0.6) + atom("ALA", "A", 1, (2, 0, 0), alt="B", occupancy=0.4)
    assert x_of(read(text)[0]) == [1]


def test_microheterogeneity_takes_type_and_atoms_of_the_highest_occupancy(read):
    text = atom("GLY", "A", 1, (0, 0, 0))
    text += atom("PRO", "A", 2, (3.8, 0, 0), alt="A", occupancy=0.3) + atom(
        "SER", "A", 2, (4, 0, 0), alt="B", occupancy=0.7
    )
    text += atom("VAL", "A", 3, (7.6, 0, 0))
    for header in ("", seqres("A", "GLY PRO VAL")):
        (chain,) = read(header + text + "TER\n")
        assert chain.sequence == "GSV"
        assert x_of(chain) == [0, 4, 7.6]


def test_microheterogeneity_in_mmcif(read):
    rows = [row("GLY", "A", 1, 1), row("PRO", "A", 2, 2, alt="A", occupancy=0.3)]
    rows += [row("SER", "A", 2, 3, alt="B", occupancy=0.7)]
    (chain,) = read(mmcif(rows, "GLY PRO,SER PRO,SER"), "a.cif")
    assert (chain.sequence, x_of(chain)) == ("GSP", [1, 3, None])


def test_modified_and_mirrored_residues_get_the_letter_of_their_parent(read):
    names = "MSE SEP DAL SEC PYL UNK HSD QQQ RRR"
    text = "MODRES 1ABC QQQ A    8  LYS  SOMETHING NEW\n"
    text += "SEQADV 1ABC RRR A    9  UNP  P12345    TRP     9 MODIFIED RESIDUE\n" + seqres("A", names)
    text += "".join(atom(name, "A", number, record="HETATM") for number, name in enumerate(names.split(), 1)) + "TER\n"
    (chain,) = read(text)
    assert chain.sequence == "MSACKXHKW"
    assert chain.observed.all()


def test_residue_with_several_parents_is_x(read):
    text = "".join(f"MODRES 1ABC QQQ A    1  {parent}  CHROMOPHORE\n" for parent in ("SER", "TYR", "GLY"))
    assert read(text + atom("QQQ", "A", 1, record="HETATM") + atom("ALA", "A", 2) + "TER\n")[0].sequence == "XA"


def test_unknown_residue_is_x_and_keeps_its_place(read):
    (chain,) = read(
        mmcif([row("ALA", "A", 1, 1), row("QQQ", "A", 2, 2), row("GLY", "A", 3, 3)], "ALA QQQ GLY"), "a.cif"
    )
    assert (chain.sequence, x_of(chain)) == ("AXG", [1, 2, 3])


@pytest.mark.parametrize("source", ["mod_residue", "ref_seq_dif"])
def test_parent_that_only_an_mmcif_gives(read, source):
    extra = {
        "mod_residue": "".join(
            f"_pdbx_struct_mod_residue.{key} {value}\n"
            for key, value in {
                "id": 1,
                "auth_asym_id": "A",
                "auth_seq_id": 2,
                "auth_comp_id": "QQQ",
                "label_comp_id": "QQQ",
                "label_asym_id": "A",
                "label_seq_id": 2,
                "PDB_ins_code": "?",
                "parent_comp_id": "LYS",
            }.items()
        ),
        "ref_seq_dif": "_struct_ref_seq_dif.mon_id QQQ\n_struct_ref_seq_dif.db_mon_id LYS\n"
        "_struct_ref_seq_dif.details 'MODIFIED RESIDUE'\n",
    }[source]
    (chain,) = read(mmcif([row("ALA", "A", 1), row("QQQ", "A", 2)], "ALA QQQ", extra), "a.cif")
    assert chain.sequence == "AK"


def test_parent_that_the_canonical_sequence_gives(read):
    text = mmcif([row("ALA", "A", 1, 1), row("QQQ", "A", 2, 2)], "ALA QQQ RRR GLY")
    table = "_entity_poly.type\n1 'polypeptide(L)'\n2 'polypeptide(L)'\n"
    assert table in text
    for letters, sequence in (("AYXG", "AYXG"), (";AY\nFG\n;", "AYFG"), ("AYG", "AXXG"), ("?", "AXXG")):
        new = "_entity_poly.type\n_entity_poly.pdbx_seq_one_letter_code_can\n"
        new += "".join(f"{entity} 'polypeptide(L)'\n{letters}\n" for entity in (1, 2))
        assert read(text.replace(table, new), "a.cif")[0].sequence == sequence


def test_caps_are_never_observed(read):
    rows = [row("ACE", "A", 1, 1, "C"), row("ALA", "A", 2, 2, "C"), row("NH2", "A", 3, 3, "N", type_symbol="N")]
    (chain,) = read(mmcif(rows, "ACE ALA NH2"), "a.cif", atoms=("C",))
    assert (chain.sequence, x_of(chain)) == ("XAX", [None, 2, None])


def test_calcium_is_not_a_c_alpha(read):
    text = atom("ALA", "A", 1) + "TER\n" + atom("CA", "A", 2, name="CA", record="HETATM", element="CA")
    assert read(text)[0].sequence == "A"
    # Even where a residue of the polymer binds it under its own name.
    rows = [row("ALA", "A", 1, 1), row("QQQ", "A", 2, 2, type_symbol="CA"), row("GLY", "A", 3, 3)]
    assert x_of(read(mmcif(rows, "ALA QQQ GLY"), "a.cif")[0]) == [1, None, 3]


def test_ligands_and_waters_under_the_chain_name_are_skipped(read):
    text = atom("ALA", "A", 1) + atom("GLY", "A", 2) + "TER\n"
    text += atom("GLU", "A", 3, record="HETATM") + atom("HOH", "A", 4, name="O", record="HETATM", element="O")
    assert read(text)[0].sequence == "AG"
    assert read(seqres("A", "ALA GLY GLU") + text)[0].observed[:, 0].tolist() == [True, True, False]


def test_without_ter_a_free_amino_acid_is_a_ligand_and_a_bonded_one_is_not(read):
    text = atom("ALA", "A", 1) + atom("MSE", "A", 2, record="HETATM")
    assert read(text + atom("GLU", "A", 3, (90, 0, 0), record="HETATM"))[0].sequence == "AM"


def test_single_modified_residue_is_a_chain_if_seqres_says_so(read):
    text = atom("MSE", "A", 1, record="HETATM") + atom("ALA", "B", 1)
    assert [chain.id for chain in read(text)] == ["made_B"]
    assert [chain.id for chain in read(seqres("A", "MSE") + text)] == ["made_A", "made_B"]


def test_chain_of_one_residue_is_kept_and_a_chain_without_atoms_left_out(read):
    text = seqres("A", "ALA") + seqres("B", "GLY SER") + atom("ALA", "A", 1) + "TER\n"
    text += atom("GLY", "B", 1, name="CB") + "TER\n"
    assert [chain.id for chain in read(text)] == ["made_A"]


def test_calpha_only_and_several_atoms(read):
    text = atom("ALA", "A", 1, (1, 0, 0), "N", element="N", b=5) + atom("ALA", "A", 1, (2, 0, 0), b=6)
    text += atom("GLY", "A", 2, (5.8, 0, 0), b=7)
    (chain,) = read(text, atoms=("N", "CA"))
    assert chain.atoms == ("N", "CA")
    assert chain.observed.tolist() == [[True, True], [False, True]]
    assert chain.b_factor.tolist() == [5, 7]


def test_only_the_first_model(read):
    text = "".join(f"MODEL     {n:4d}\n" + atom("ALA", "A", 1, (n, 0, 0)) + "ENDMDL\n" for n in (1, 2))
    assert x_of(read(text)[0]) == [1]
    assert x_of(read(mmcif([row("ALA", "A", 1, n, model=n) for n in (1, 2)], "ALA"), "a.cif")[0]) == [1]


def test_author_chain_names_of_several_characters(read):
    chains = read(mmcif([row("ALA", "A", 1, auth="Heavy1"), row("GLY", "B", 1, auth="Light2", entity=2)]), "a.cif")
    assert [chain.id for chain in chains] == ["TEST_Heavy1", "TEST_Light2"]


def test_proteins_that_share_a_chain_name_get_different_ids(read):
    rows = [row("ALA", "A", 1, 1, auth="X"), row("ALA", "B", 1, 2, auth="X", entity=2, auth_seq_id=9)]
    chains = read(mmcif(rows, "ALA"), "a.cif")
    assert [(chain.id, x_of(chain)) for chain in chains] == [("TEST_X.A", [1]), ("TEST_X.B", [2])]


def test_atoms_of_a_residue_that_do_not_follow_each_other(read):
    rows = [row("ALA", "A", 1, 1, "N", type_symbol="N"), row("GLY", "B", 1, 9, auth="B", entity=2)]
    rows += [row("ALA", "A", 1, 2, "CA")]
    chain = read(mmcif(rows, "ALA,GLY"), "a.cif", atoms=("N", "CA"), chain_ids=["A"])[0]
    assert chain.coords[0, :, 0].tolist() == [1, 2]


def test_mmcif_without_label_seq_id_is_aligned(read):
    rows = [row(name, "A", ".", 3.8 * n, auth_seq_id=n) for n, name in ((2, "ALA"), (4, "SER"))]
    (chain,) = read(mmcif(rows, "GLY ALA VAL SER"), "a.cif")
    assert (chain.sequence, x_of(chain)) == ("GAVS", [None, 7.6, None, 15.2])


@pytest.mark.parametrize("column", ["id", "label_alt_id", "type_symbol", "auth_asym_id", "B_iso_or_equiv"])
def test_mmcif_without_a_column_it_can_do_without(read, column):
    index = COLUMNS.index(column)
    line = row("ALA", "A", 1, 5).split()
    text = mmcif([" ".join(line[:index] + line[index + 1 :]) + "\n"], columns=COLUMNS[:index] + COLUMNS[index + 1 :])
    (chain,) = read(text, "a.cif")
    assert (chain.id, x_of(chain)) == ("TEST_A", [5])
    assert np.isnan(chain.b_factor[0]) == (column == "B_iso_or_equiv")


def test_pdb_format_of_before_1996(read):
    lines = [f"{atom('ALA', ' ', number)[:72]}1GDR{number + 89:4d}\n" for number in (1, 2)]
    (chain,) = read(seqres(" ", "ALA ALA GLY") + "".join(lines) + "TER\n")
    assert (chain.id, chain.sequence, x_of(chain)) == ("made_", "AAG", [3.8, 7.6, None])


def test_residue_without_a_number_is_reported(read):
    text = atom("ALA", "A", 1, (0, 0, 0)).replace("A   1 ", "A     ")
    with pytest.raises(StructureError, match="ALA has no residue number"):
        read(text)


def test_text_that_is_not_utf8_in_a_header(read):
    assert read("TITLE     CAF\xe9\n".encode("latin-1") + atom("ALA", "A", 1).encode())[0].sequence == "A"
    text = mmcif([row("ALA", "A", 1)], extra="_struct.title 'caf\xe9'\n")
    assert read(text.encode("latin-1"), "a.cif")[0].sequence == "A"
    bad = mmcif([row("ALA", "A", 1)], "ALA").replace("1 1 ALA", "1 1 'AL\xc4'").encode("latin-1")
    with pytest.raises(StructureError, match="not UTF-8"):
        read(bad, "a.cif")


def test_format_is_decided_by_content(read):
    assert read("\ufeff" + mmcif([row("ALA", "A", 1)]))[0].id == "TEST_A"
    for name in ("a.txt", "a.pdb", "a"):
        assert read("# a comment\n" + mmcif([row("ALA", "A", 1)]), name)[0].id == "TEST_A"
    assert read(atom("ALA", "A", 1), "a.cif")[0].id == "a_A"


def test_gzip_is_recognized_by_content_and_may_have_several_members(read):
    text = (atom("ALA", "A", 1) + atom("GLY", "A", 2)).encode()
    half = len(text) // 2
    packed = gzip.compress(text[:half]) + gzip.compress(text[half:]) + b"\0" * 64
    assert read(packed, "a.pdb")[0].sequence == "AG"
    assert read(packed, "b.pdb.gz")[0].id == "b_A"


def test_chain_ids_choose_by_name_and_by_id(read):
    text = "".join(atom("ALA", name, 1) + "TER\n" for name in "ABC")
    assert [chain.id for chain in read(text, chain_ids=["C", "made_A"])] == ["made_A", "made_C"]
    with pytest.raises(StructureError, match=r"no protein chain Z; the file has A, B, C"):
        read(text, chain_ids=["A", "Z"])
    with pytest.raises(StructureError, match=r"no protein chain A,C; the file has A, B, C; give them apart: A C$"):
        read(text, chain_ids=["A,C"])


def test_min_plddt_hides_residues_of_predicted_models(read):
    text = atom("ALA", "A", 1, b=50) + atom("GLY", "A", 2, b=70) + atom("SER", "A", 3, b=90)
    (chain,) = read(text, min_plddt=70)
    assert (chain.sequence, x_of(chain)) == ("AGS", [None, 7.6, 11.4])
    assert np.isnan(chain.b_factor).tolist() == [True, False, False]
    assert read("EXPDTA    THEORETICAL MODEL\n" + text, min_plddt=70)[0].observed.sum() == 2
    with pytest.raises(StructureError, match=r"no residue is observed that reaches min_plddt=95; lower it"):
        read(text, min_plddt=95)


def test_min_plddt_refuses_experiments_and_other_scales(read):
    text = atom("ALA", "A", 1, b=0.5)
    with pytest.raises(ValueError, match=r"experimental \(SOLUTION NMR\)"):
        read("EXPDTA    SOLUTION NMR\n" + text, min_plddt=70)
    with pytest.raises(ValueError, match=r"experimental \(X-RAY"):
        read_chains(DATA / "1A8O.cif.gz", min_plddt=70)
    with pytest.raises(ValueError, match=r"highest value in the file is 0\.5"):
        read(text, min_plddt=70)
    with pytest.raises(ValueError, match="highest value in the file is 50"):
        read(atom("ALA", "A", 1, b=50), min_plddt=0.7)
    high = atom("ALA", "A", 1, b=50) + atom("GLY", "A", 2, b=100)
    assert read(high, min_plddt=70)[0].observed.sum() == 1
    with pytest.raises(ValueError, match="highest value in the file is 100.5, so these are B-factors and no pLDDT"):
        read(high + atom("SER", "A", 3, b=100.5), min_plddt=70)
    with pytest.raises(ValueError, match=r"the file is experimental \(1.8 Å\)"):
        read("REMARK   2 RESOLUTION.    1.80 ANGSTROMS.\n" + high, min_plddt=70)


# --- Chains that cannot be read ----------------------------------------------------------------------------------

GOOD = seqres("B", "GLY") + atom("GLY", "B", 1) + "TER\n"
BAD_CHAINS = {
    "mismatch": (
        seqres("A", "GLY ALA SER VAL")
        + "".join(atom(n, "A", i) for i, n in enumerate(["GLY", "ALA", "TRP", "VAL"], 1)),
        "TRP 3 is SER at position 3 of SEQRES",
    ),
    "residue too many": (
        seqres("A", "GLY ALA VAL LEU LYS")
        + "".join(atom(n, "A", i) for i, n in enumerate(["GLY", "ALA", "SER", "VAL", "LEU", "LYS"], 1)),
        "SER 3 has no place in SEQRES",
    ),
    "sequence shorter than what is bonded": (
        seqres("A", "GLY ALA SER VAL LEU LYS")
        + "".join(atom(n, "A", i) for i, n in enumerate(["GLY", "ALA", "VAL", "LEU", "LYS"], 1)),
        "only with gaps between bonded",
    ),
    "ambiguous": (
        seqres("A", "GLY ALA GLY ALA GLY ALA") + atom("GLY", "A", 100) + atom("ALA", "A", 101),
        "more than one way",
    ),
    "two atoms in one place": (atom("ALA", "A", 1, (1, 0, 0)) * 2, "ALA 1 has two atoms CA"),
    "two conformers with one label": (atom("ALA", "A", 1, alt="A") * 2, "ALA 1 has two atoms CA"),
    "two residues with one number": (
        atom("ALA", "A", 1) + atom("SER", "A", 1, (7, 0, 0)),
        "ALA 1 and SER 1 have one place",
    ),
    "not a number": (atom("ALA", "A", 1).replace("   3.800", "     inf"), "line 1 has no number"),
}


@pytest.mark.parametrize("case", BAD_CHAINS)
def test_bad_chain_is_reported_and_the_others_are_read(read, case):
    bad, reason = BAD_CHAINS[case]
    with pytest.raises(StructureError, match=reason) as error:
        read(bad + "TER\n" + GOOD)
    assert "made.pdb" in str(error.value)
    if case == "not a number":  # the line, and not the chain, is what can be told
        return
    assert "chain made_A" in str(error.value)
    problems: list[tuple[str, str]] = []
    assert [chain.id for chain in read(bad + "TER\n" + GOOD, problems=problems)] == ["made_B"]
    assert [chain_id for chain_id, _ in problems] == ["made_A"]
    assert reason in problems[0][1]


def test_atom_of_a_reported_chain_is_not_called_absent(read):
    bad = atom("ALA", "A", 1, name="N", element="N") * 2 + "TER\n"
    problems: list[tuple[str, str]] = []
    assert [chain.id for chain in read(bad + GOOD, atoms=("CA", "N"), problems=problems)] == ["made_B"]
    assert len(problems) == 1


def test_two_molecules_under_one_chain_name_are_reported(read):
    molecule = atom("ALA", " ", 1) + atom("GLY", " ", 2) + "TER\n"
    with pytest.raises(StructureError, match="give each its own chain name"):
        read(molecule * 2)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([row("TRP", "A", 2)], "TRP 2 is ALA at position 2 of the deposited sequence"),
        ([row("ALA", "A", 7)], "ALA 7 has the number 7 in a sequence of 3"),
        ([row("ALA", "A", 2, "inf")], "CA of ALA 2 has the coordinates"),
        ([row("ALA", "A", 2, "1e50")], "CA of ALA 2 has the coordinates .1e.50"),
        ([row("ALA", "A", 2, 1), row("ALA", "A", 2, 2)], "ALA 2 has two atoms CA"),
    ],
)
def test_bad_chain_in_mmcif(read, rows, reason):
    rows = [*rows, row("GLY", "B", 1, entity=2)]
    with pytest.raises(StructureError, match=f"a.cif: chain TEST_A: .*{reason}"):
        read(mmcif(rows, "GLY ALA SER"), "a.cif")
    problems: list[tuple[str, str]] = []
    assert [chain.id for chain in read(mmcif(rows, "GLY ALA SER"), "a.cif", problems=problems)] == ["TEST_B"]
    assert len(problems) == 1


def test_methionine_stands_for_selenomethionine(read):
    text = seqres("A", "MET ALA") + atom("MSE", "A", 1, record="HETATM") + atom("ALA", "A", 2) + "TER\n"
    assert read(text)[0].observed.all()


# --- Files that are no structures --------------------------------------------------------------------------------

GARBAGE = random.Random(1).randbytes(5000)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.pdb", b"", "empty file"),
        ("a.cif", b" \n\n", "empty file"),
        ("a.pdb.gz", b"", "not gzipped"),
        ("a.pdb.gz", gzip.compress(b"", mtime=0), "empty file"),
        ("a.pdb.gz", atom("ALA", "A", 1).encode(), "not gzipped"),
        ("a.pdb.gz", gzip.compress(atom("ALA", "A", 1).encode() * 50, mtime=0)[:-20], "cut off"),
        ("a.pdb.gz", b"\x1f\x8b" + GARBAGE, "broken gzip"),
        ("a.pdb", GARBAGE, "binary data"),
        ("a.pdb", b"\xff" * 100, "neither mmCIF"),
        ("a.pdb", b"Dear all,\nsee the ATOM below.\n", "neither mmCIF"),
        ("a.fasta", b">a\nMKV\n", "neither mmCIF"),
        ("a.pdb", b"ATOM  is how the lines of a PDB file begin\n", "line 1 has no number"),
        ("a.cif", b"data_ALA\n_chem_comp.id ALA\n", "without atoms"),
        ("a.cif", b"data_x\n_struct.title 'begun", "broken or cut off"),
        ("a.cif", mmcif([row("ALA", "A", 1)[:-8]]).encode(), "broken or cut off"),
        ("a.cif", mmcif([row("ALA", "A", 1, label_seq_id="x")]).encode(), "broken or cut off"),
        ("a.pdb", (atom("DA", "A", 1, name="P", element="P") + "TER\n").encode(), "no protein"),
        ("a.pdb", atom("HOH", "A", 1, name="O", record="HETATM", element="O").encode(), "no protein"),
        ("a.pdb", atom("CA", "A", 1, record="HETATM", element="CA").encode(), "no protein"),
        ("a.pdb", atom("GLU", "A", 1, record="HETATM").encode(), "no protein"),
        ("a.cif", mmcif([row("DA", "A", 1, name="P")]).encode(), "no protein"),
        ("a.pdb", atom("ALA", "A", 1, name="CB").encode(), "atom 'CA' is in no amino acid residue"),
    ],
)
def test_file_that_cannot_be_read(read, name, content, reason):
    with pytest.raises(StructureError, match=reason) as error:
        read(content, name)
    assert name in str(error.value)


def test_binary_cif_is_named():
    with pytest.raises(StructureError, match="BinaryCIF is not supported; convert"):
        read_chains(DATA / "3jqh.bcif.gz")


def test_atom_that_no_residue_has():
    with pytest.raises(StructureError, match="atom 'N' is in no amino acid residue"):
        read_chains(DATA / "pdb1ubi_ca.pdb.gz", atoms=("CA", "N"))


@pytest.mark.parametrize("atoms", ["CA", (), ("CA", "CA")])
def test_atoms_must_be_different_names(atoms):
    with pytest.raises(ValueError, match="tuple of different atom names"):
        read_chains(DATA / "1A8O.cif.gz", atoms=atoms)


def test_missing_file_and_folder(tmp_path):
    for read in (read_chains, read_complex, read_proteins):
        with pytest.raises(FileNotFoundError, match=r"absent\.pdb: no such file or folder; check the path$"):
            read(tmp_path / "absent.pdb")
    with pytest.raises(StructureError, match="a folder; give its files one by one"):
        read_chains(tmp_path)


def test_gzip_bomb_is_refused(read, monkeypatch):
    text = atom("ALA", "A", 1).encode() + b" " * 1000
    monkeypatch.setattr(structure, "MAX_BYTES", len(text))
    assert len(read(gzip.compress(text), "a.pdb.gz")) == 1
    for bomb in (gzip.compress(text + b"\n"), gzip.compress(text) + gzip.compress(b"\n")):
        with pytest.raises(StructureError, match="gzip bomb"):
            read(bomb, "a.pdb.gz")
    with pytest.raises(StructureError, match="larger than"):
        read(text + b"\n", "a.pdb")


def test_error_without_gemmi(monkeypatch):
    monkeypatch.setattr(structure_parsing, "gemmi", None)
    with pytest.raises(ImportError, match="pip install gemmi"):
        read_chains(DATA / "1A8O.cif.gz")
    assert read_proteins("some.fasta", data=b">one\nMK\n")[0].sequence == "MK"


def test_the_reader_stands_alone(tmp_path):
    """Copied beside a checkpoint, it needs neither the package nor torch."""
    for module in (chain_module, structure, structure_parsing, structure_text):
        shutil.copy(module.__file__, tmp_path)
    code = f"""
import sys
sys.modules |= dict.fromkeys(("coordformer", "torch", "transformers"))
from {tmp_path.name}.structure import read_chains
print(*(chain.id for chain in read_chains({str(DATA / "1BD2.cif.gz")!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path.parent, capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(MMCIF["1BD2.cif.gz"])
