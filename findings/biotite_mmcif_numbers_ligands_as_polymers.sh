#!/usr/bin/env bash
# Version:  biotite 1.6.0, gemmi 0.7.5
# Behavior: Biotite writes mmCIF without entity tables, and copies the author's number into label_seq_id: of residues with
#           insertion codes several share one, and waters and ligands have one, too. gemmi's Residue.label_seq then says
#           that a water is residue 301 of a polymer.
# A guess:  label_seq_id numbers the residues of a polymer from 1 and is `.` for everything else, as the dictionary has it.
# Why:      what takes label_seq_id for the place in the sequence (as one may in files of the PDB) merges residues 52 and
#           52A, and appends ligands and waters to the protein.
# Source:   biotite.structure.io.pdbx.set_structure; mmCIF dictionary, _atom_site.label_seq_id; the output below.
# Run:      bash findings/biotite_mmcif_numbers_ligands_as_polymers.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check gemmi==0.7.5 biotite==1.6.0 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import io

import biotite.structure as struc
import biotite.structure.io.pdbx as pdbx
import gemmi

atoms = struc.array([
    struc.Atom([3.8 * place, 0, 0], chain_id="A", res_id=number, ins_code=code, res_name=name, atom_name=atom,
               element=atom[0], hetero=hetero)
    for place, (number, code, name, atom, hetero) in enumerate([
        (52, "", "ASN", "CA", False), (52, "A", "PRO", "CA", False), (53, "", "ASP", "CA", False),
        (301, "", "HOH", "O", True),
    ])
])
file = pdbx.CIFFile()
pdbx.set_structure(file, atoms, data_block="made")
stream = io.StringIO()
file.write(stream)
block = gemmi.cif.read_string(stream.getvalue())[0]
categories = sorted(name.rstrip(".") for name in block.get_mmcif_category_names())
residues = [(str(each.seqid), each.name, each.label_seq) for each in gemmi.make_structure_from_block(block)[0]["A"]]
print("categories:", categories)
print("number, name, label_seq_id:", residues)
assert not any(name.startswith("_entity") for name in categories), "biotite writes entities now"
assert residues == [("52", "ASN", 52), ("52A", "PRO", 52), ("53", "ASP", 53), ("301", "HOH", 301)]
PYTHON
# Output seen:
#   categories: ['_atom_site']
#   number, name, label_seq_id: [('52', 'ASN', 52), ('52A', 'PRO', 52), ('53', 'ASP', 53), ('301', 'HOH', 301)]
