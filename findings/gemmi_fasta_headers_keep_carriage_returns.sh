#!/usr/bin/env bash
# Version:  gemmi 0.7.5
# Behavior: gemmi.read_pir_or_fasta keeps the carriage return at the end of each header of a file with CRLF line ends,
#           and drops those in the sequences.
# A guess:  both are dropped, as Biopython and text mode do.
# Why:      ids made of headers differ from those of the same file with LF line ends, invisibly when printed: joins with
#           a table of labels find nothing.
# Source:   gemmi's read_pir_or_fasta (include/gemmi/pirfasta.hpp); the output below.
# Run:      bash findings/gemmi_fasta_headers_keep_carriage_returns.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check gemmi==0.7.5 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import gemmi

found = gemmi.read_pir_or_fasta(">sp|P0CG48 ubiquitin\r\nMQIFVK\r\nTLTGKT\r\n")[0]
print("header:  ", repr(found.header))
print("sequence:", repr(found.seq))
assert found.header == "sp|P0CG48 ubiquitin\r", "the header has no carriage return any more"
assert found.seq == "MQIFVKTLTGKT"
PYTHON
# Output seen:
#   header:   'sp|P0CG48 ubiquitin\r'
#   sequence: 'MQIFVKTLTGKT'
