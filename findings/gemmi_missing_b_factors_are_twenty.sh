#!/usr/bin/env bash
# Version:  gemmi 0.7.5
# Behavior: A B-factor that the file does not have becomes a number: 20.0 for `?` in mmCIF and for a PDB line that ends
#           behind the coordinates, 0.0 for a PDB field of blanks. A coordinate `?`, `nan` or `inf` of mmCIF becomes NaN.
# A guess:  NaN or None for each, and an error for `inf`.
# Why:      predicted models have their pLDDT in this column. A filter or a mean takes 20 and 0 for a very low confidence,
#           and nothing tells them from values that were given.
# Source:   gemmi's Atom::b_iso (include/gemmi/model.hpp), read_atom_line of pdb.hpp, mmcif.cpp; the output below.
# Run:      bash findings/gemmi_missing_b_factors_are_twenty.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check gemmi==0.7.5 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import gemmi

COLUMNS = "group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_seq_id Cartn_x Cartn_y"
COLUMNS += " Cartn_z B_iso_or_equiv auth_seq_id auth_asym_id"
text = "data_x\nloop_\n" + "".join(f"_atom_site.{name}\n" for name in COLUMNS.split())
for number, (x, b) in enumerate((("1.0", "?"), ("?", "91.5"), ("nan", "91.5"), ("inf", "91.5")), 1):
    text += f"ATOM {number} C CA . ALA A {number} {x} 2.0 3.0 {b} {number} A\n"
chain = gemmi.make_structure_from_block(gemmi.cif.read_string(text)[0])[0]["A"]
found = [(residue[0].pos.x, residue[0].b_iso) for residue in chain]
print("mmCIF x and B:", found)
assert found[0] == (1.0, 20.0), "a missing B-factor is not 20 any more"
assert all(x != x for x, _ in found[1:]), "a missing coordinate is not NaN any more"

line = "ATOM      1  CA  ALA A   1       1.000   2.000   3.000"
short, blank = (gemmi.read_pdb_string(each + "\n")[0]["A"][0][0].b_iso for each in (line, line + "  1.00" + " " * 20))
print("PDB B, line ends:", short, " PDB B, blanks:", blank)
assert (short, blank) == (20.0, 0.0), "a missing B-factor of a PDB file is something else now"
PYTHON
# Output seen:
#   mmCIF x and B: [(1.0, 20.0), (nan, 91.5), (nan, 91.5), (nan, 91.5)]
#   PDB B, line ends: 20.0  PDB B, blanks: 0.0
