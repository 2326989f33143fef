# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""The text of mmCIF and PDB files before it is parsed: what of it is needed, in a form that gemmi reads right."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import accumulate

from .chain import ChainError

NO_COORDINATE, NO_B_FACTOR = -999.999, -999.9
"""What stands for a value that is missing, since gemmi reads a number in its place."""

MMCIF_ATOMS = ("_atom_site.", "_entry.", "_exptl.", "_refine.", "_em_3d_reconstruction.", "_entity", "_struct_asym.")
"""Beginnings of the categories that chains are made of."""
MMCIF_NEEDED = (
    *(*MMCIF_ATOMS, "_pdbx_struct_mod_residue.", "_struct_ref_seq_dif.", "_pdbx_poly_seq_scheme."),
    *("_pdbx_struct_assembly", "_pdbx_struct_oper_list."),
)
"""And of what else is read."""

# A pattern that begins with a line's end is found several times faster than one with ^.
_MMCIF = re.compile(rb"(?:\s|#[^\n]*\n)*+data_", re.IGNORECASE)
# A data block, or a category with a loop or without; a tag of the same category goes on with it.
_CATEGORY = re.compile(rb"\n[ \t]*(?:data_|(loop_)\s+(_[^\s.]+\.)|(_[^\s.]+\.))", re.IGNORECASE)
# The model's number, if it is the last value of the first row.
_MODEL_NUMBER = re.compile(rb"\n_atom_site\.pdbx_PDB_model_num[ \t]*\r?\n(?:ATOM|HETATM)[^\n]*([ \t]\d+[ \t]*\r?\n)")

_ATOM = re.compile(rb"^(?:ATOM  |HETATM)", re.MULTILINE)
# Column 21 is blank, coordinates are written as %8.3f, and the B-factor is a number; other lines are looked at.
_COORDINATE = rb"(?:   \d|  [-\d]\d| [-\d]\d\d|[-\d]\d{3})\.\d{3}"
_USUAL = rb".{16} .{9}" + _COORDINATE * 3 + rb".{6}(?=[-+. ]{0,5}\d)"
_UNUSUAL = re.compile(rb"\n((?:ATOM|HETA)(?!" + _USUAL + rb")[^\r\n]*)", re.IGNORECASE)
_NUMBER = re.compile(rb" *[-+]?(?:\d+\.?\d*|\.\d+) *")
_MODIFIED = re.compile(rb"\nSEQADV.{6}(.{3}).{24}(.{3}).{7}MODIFIED RESIDUE")
_TER = re.compile(rb"\nTER(?!\S)", re.IGNORECASE)
_MODEL_END = re.compile(rb"\n(?:ENDMDL|MODEL )")
_NEEDED = re.compile(rb"\n(?:ATOM  |HETATM|TER|HEADER|EXPDTA|REMARK|SEQRES|MODRES|SEQADV|END\s)[^\n]*")


def is_mmcif(data: bytes) -> bool:
    """Whether the first word, behind comments, begins a data block."""
    return _MMCIF.match(data) is not None


def mmcif_categories(data: bytes, needed: tuple[str, ...]) -> bytes:
    """The text of the categories whose names begin so."""
    view = memoryview(data)
    parts: list[memoryview] = []
    start, at, category, keep = 0, 0, "", True
    while match := _CATEGORY.search(data, at):
        at, found = match.end(), (match[2] or match[3] or b"").decode("latin-1").lower()
        if match[1] is None and found and found == category:
            continue
        if keep:
            parts.append(view[start : match.start()])
        start, category, keep = match.start(), found, not found or found.startswith(needed)
        if found == "_atom_site.":  # the longest by far, and in most files a comment ends it
            at = max(at, data.find(b"#", at))
    return b"".join((*parts, view[start:] if keep else b""))


def first_mmcif_model(data: bytes) -> bytes:
    """Without atoms of later models, where rows of `_atom_site` end with their number and a comment ends them."""
    match = _MODEL_NUMBER.search(data)
    stop = data.find(b"\n#", match.end()) + 1 if match else 0
    if match is None or not stop:
        return data
    end = data.rfind(match[1], match.start(), stop) + len(match[1])
    number = match[1].split()[0]
    later = data[end:stop]  # in which a row of the first model would end otherwise
    if any(b" %s%s\n" % (number, blanks) in later for blanks in (b"", b" ", b"  ", b"\r", b" \r")):
        return data
    return data[:end] + data[stop:]


def first_pdb_model(data: bytes) -> bytes | None:
    """Up to the end of the first model with atoms, behind a line's end; None if there are no atoms."""
    first = _ATOM.search(data)
    if first is None:
        return None
    end = _MODEL_END.search(data, first.end())
    return b"\n" + (data[: end.start() + 1] if end else data)


def modified_residues(data: bytes) -> list[tuple[str, str]]:
    """Names of modified residues and of their parents, by SEQADV."""
    return [
        (name.decode("latin-1").strip(), parent.decode("latin-1").strip()) for name, parent in _MODIFIED.findall(data)
    ]


def atoms_before_ter(data: bytes) -> list[int]:
    """How many atoms come before each TER."""
    pieces = _TER.split(data)
    return list(accumulate(piece.count(b"\nATOM") + piece.count(b"\nHETA") for piece in pieces[:-1]))


def needed_records(data: bytes) -> bytes:
    """The records that are read."""
    return b"".join(_NEEDED.findall(data))


def unusual_atoms(data: bytes) -> list[bytes]:
    """Lines of atoms that gemmi may read otherwise than they are meant."""
    return _UNUSUAL.findall(data)


def with_usual_atoms(data: bytes, parents: Mapping[str, str]) -> bytes:
    """With all atoms as gemmi has to read them; `parents` are names in three letters for some in four.

    Raises:
        ChainError: a coordinate is no number.
    """

    def usual(match: re.Match[bytes]) -> bytes:
        line = match[1]
        coords = [line[start : start + 8] for start in (30, 38, 46)]
        if any(each.strip().lower().lstrip(b"-+") == b"nan" for each in coords):
            coords = [b"%8.3f" % NO_COORDINATE] * 3
        if len(line) < 54 or not all(map(_NUMBER.fullmatch, coords)):  # of which gemmi would read 0
            number = data.count(b"\n", 0, match.start()) + 1
            raise ChainError(
                f"line {number} has no number in a coordinate column ({line.decode('latin-1')!r}); correct or remove it"
            )
        if parent := parents.get(line[17:21].decode("latin-1")):
            line = line[:17] + parent.encode() + b" " + line[21:]
        occupancy, b_factor = line[54:60].ljust(6), line[60:66]
        if not _NUMBER.fullmatch(b_factor):
            b_factor = b"%6.1f" % NO_B_FACTOR
            occupancy = occupancy if occupancy.strip() else b"  1.00"
        return b"\n" + line[:30] + b"".join(coords) + occupancy + b_factor + line[66:]

    return _UNUSUAL.sub(usual, data)
