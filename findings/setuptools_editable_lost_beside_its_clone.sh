#!/usr/bin/env bash
# Version:  setuptools 80.9.0, pip as Python brings it
# Behavior: a package whose clone has its own name (git clone .../toy makes toy/toy/__init__.py) is installed with
#           `pip install -e`. Of a project that has no src/ setuptools installs a finder, which Python asks after its own.
#           In the folder that holds the clone its own finds toy/, the clone, and takes it for a namespace package:
#           `import toy` works, and nothing is in it. With editable_mode=compat it is a path, and the package is found.
# A guess:  what is installed in an environment is imported from any folder, and a folder without __init__.py never
#           comes before a package that has one, wherever both are looked for.
# Why:      scripts of one's own lie beside the clones of the models they use, and most models' repositories have the
#           name of their package. The error is an ImportError of a name that is there, or an AttributeError later; the
#           command of the same environment works, since its folder is not looked through.
# Source:   setuptools.command.editable_wheel (_TopLevelFinder, _StaticPth); importlib's PathFinder; the output below.
# Run:      bash findings/setuptools_editable_lost_beside_its_clone.sh
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder/folder/toy/toy"
cd "$folder/folder"
echo "def fold(): return 'folded'" > toy/toy/__init__.py
cat > toy/setup.cfg <<'CONFIG'
[metadata]
name = toy
version = 1
[options]
packages = toy
CONFIG
printf '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n' > toy/pyproject.toml
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" --quiet --disable-pip-version-check)
"${pip[@]}" install setuptools==80.9.0 2>/dev/null
program='import toy; print(getattr(toy, "fold", None) is not None)'
try() {
    echo "$1: beside the clone $(cd "$folder/folder" && "$folder/venv/bin/python" -c "$program")," \
        "elsewhere $(cd / && "$folder/venv/bin/python" -c "$program")"
}
"${pip[@]}" install --no-build-isolation -e ./toy 2>/dev/null
found=$(try "pip install -e")
"${pip[@]}" install --no-build-isolation --config-settings editable_mode=compat -e ./toy 2>/dev/null
found+=$'\n'$(try "the same, editable_mode=compat")
echo "$found"
test "$found" = "pip install -e: beside the clone False, elsewhere True
the same, editable_mode=compat: beside the clone True, elsewhere True"
# Output seen:
#   pip install -e: beside the clone False, elsewhere True
#   the same, editable_mode=compat: beside the clone True, elsewhere True
