#!/usr/bin/env bash
# Version:  py3Dmol 2.5.5
# Behavior: The package holds one Python file and no JavaScript. What a viewer writes into a page loads 3Dmol from
#           cdn.jsdelivr.net at run time, and a bare <div> is all that is seen without network.
# A guess:  a package of this name brings the viewer along, so a page made with it works offline.
# Why:      a page that is to fetch nothing needs 3Dmol-min.js of the npm package 3dmol, which is one file and asks nobody.
# Source:   py3Dmol/__init__.py, view.__init__(js=...); the output below.
# Run:      bash findings/py3dmol_fetches_its_javascript.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check py3Dmol==2.5.5 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import re
from importlib.metadata import files

import py3Dmol

scripts = [str(path) for path in files("py3Dmol") if str(path).endswith(".js")]
hosts = sorted(set(re.findall(r"https?://([^/'\"]+)", py3Dmol.view().write_html())))
print("JavaScript in the package:", scripts)
print("hosts in the page:        ", hosts)
assert not scripts and hosts, "the package brings its JavaScript now"
PYTHON
# Output seen:
#   JavaScript in the package: []
#   hosts in the page:         ['cdn.jsdelivr.net']
