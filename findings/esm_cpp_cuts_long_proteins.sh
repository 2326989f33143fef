#!/usr/bin/env bash
# Version:  esm-cpp 0.2.1
# Behavior: its tokenizer makes 1,024 tokens of a protein of 2,000 residues, without a word: the first 1,022 residues between
#           <cls> and <eos>. `truncate=False` keeps them all.
# A guess:  all residues are there, as with EsmTokenizer of Transformers, whose default cuts nothing; or there is an error.
# Why:      of a longer protein, as of dystrophin with 3,685 residues, the embedding is that of its beginning alone, and of
#           the shape that all have, so that nothing shows it.
# Source:   esm_cpp.Tokenizer.encode; the output below.
# Run:      bash findings/esm_cpp_cuts_long_proteins.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.3.4 2>/dev/null
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps esm-cpp==0.2.1 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import esm_cpp

tokenizer = esm_cpp.Tokenizer()
protein = "MK" + 1997 * "A" + "W"
cut, whole = list(tokenizer.encode(protein)), list(tokenizer.encode(protein, truncate=False))
last = list(tokenizer.encode("W"))[1]
print("residues:", len(protein), "tokens:", len(cut), "without truncation:", len(whole))
print("the last residue is there:", last in cut, "without truncation:", last in whole)
assert (len(cut), len(whole)) == (1024, 2002), "long proteins have other numbers of tokens now"
assert last not in cut and last in whole
PYTHON
# Output seen:
#   residues: 2000 tokens: 1024 without truncation: 2002
#   the last residue is there: False without truncation: True
