#!/usr/bin/env bash
# Version:  gemmi 0.7.5, biotite 1.6.0, biopython 1.88
# Behavior: GROMACS and CHARMM write residue names of four letters (LYSH, HISB, ASPP) into columns 18 to 21 of a PDB file.
#           gemmi takes the fourth letter for the first of a two-letter chain name: the residue leaves chain A and becomes
#           a chain HA of its own. Biotite and Biopython read three letters and drop the fourth.
# A guess:  one residue LYSH, or an error; at any rate the same chain.
# Why:      the chain that is left has a hole whose neighbors are joined, without a word; a model for sequences sees a
#           deletion, and an alignment to the sequence shifts.
# Source:   gemmi's read_pdb (chain names of columns 21 and 22, include/gemmi/pdb.hpp); the output below.
# Run:      bash findings/pdb_residue_names_of_four_letters_three_readers.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check gemmi==0.7.5 biotite==1.6.0 biopython==1.88 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import io
import warnings

import biotite.structure.io.pdb as biotite_pdb
import gemmi
from Bio.PDB import PDBParser

warnings.simplefilter("ignore")
LINE = "ATOM  {0:5d}  CA  {1:4s}A{0:4d}    {2:8.3f}   0.000   0.000  1.00 10.00           C\n"
text = "".join(LINE.format(number, name, 3.8 * number) for number, name in enumerate(("GLY", "LYSH", "ALA"), 1)) + "END\n"

by_gemmi = [(chain.name, residue.name) for chain in gemmi.read_pdb_string(text)[0] for residue in chain]
atoms = biotite_pdb.PDBFile.read(io.StringIO(text)).get_structure(model=1)
by_biotite = list(zip(atoms.chain_id.tolist(), atoms.res_name.tolist()))
parsed = PDBParser(QUIET=True).get_structure("x", io.StringIO(text))[0]
by_biopython = [(chain.id, residue.resname.strip()) for chain in parsed for residue in chain]
print("gemmi:    ", by_gemmi)
print("biotite:  ", by_biotite)
print("biopython:", by_biopython)
assert by_gemmi == [("A", "GLY"), ("HA", "LYS"), ("A", "ALA")], "gemmi reads four letters otherwise now"
assert by_biotite == [("A", "GLY"), ("A", "LYS"), ("A", "ALA")], "biotite reads four letters otherwise now"
assert by_biopython == [("A", "GLY"), ("A", "LYS"), ("A", "ALA")], "biopython reads four letters otherwise now"
PYTHON
# Output seen:
#   gemmi:     [('A', 'GLY'), ('HA', 'LYS'), ('A', 'ALA')]
#   biotite:   [('A', 'GLY'), ('A', 'LYS'), ('A', 'ALA')]
#   biopython: [('A', 'GLY'), ('A', 'LYS'), ('A', 'ALA')]
