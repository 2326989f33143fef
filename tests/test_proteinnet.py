"""ProteinNet's text records: units, order of the atoms, what is missing, and files that are broken."""

import gzip

import numpy as np
import pytest

from coordformer import StructureError, proteinnet
from coordformer.proteinnet import read_proteinnet


def make_record(name="1ABC_1_A", sequence="MKVLAGH", mask=None, fill=None) -> str:
    """A record whose C-alphas are 380 pm apart on a line along y, N 100 pm before in x, C 150 pm after it in z."""
    xyz = np.zeros((len(sequence), 3, 3))
    xyz[:, :, 1] = 10000 + 380 * np.arange(len(sequence))[:, None]
    xyz[:, 0, 0], xyz[:, 2, 2] = -100, 150
    if fill is not None:
        xyz[fill] = 0.0
    profile = "\n".join("\t".join(["0.5"] * len(sequence)) for _ in range(21))
    axes = "\n".join("\t".join(f"{value:.1f}" for value in axis) for axis in xyz.reshape(-1, 3).T)
    mask = "+" * len(sequence) if mask is None else mask
    return (
        f"[ID]\n{name}\n[PRIMARY]\n{sequence}\n[EVOLUTIONARY]\n{profile}\n[TERTIARY]\n{axes}\n[MASK]\n{mask}\n"
        f"[CHI]\n1.0\n\n"
    )


@pytest.mark.parametrize("name", ["records.txt", "records.txt.gz"])
def test_records_become_chains(tmp_path, name):
    text = make_record() + make_record("10#2XYZ_d2xyza1", "ACDE", mask="-++-")
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    first, second = read_proteinnet(tmp_path / name, ("C", "CA", "N"))
    assert (first.id, first.sequence, first.atoms) == ("1ABC_1_A", "MKVLAGH", ("C", "CA", "N"))
    np.testing.assert_allclose(np.linalg.norm(np.diff(first.coords[:, 1], axis=0), axis=1), 3.8, rtol=1e-5)
    np.testing.assert_allclose(first.coords[2], [[0, 107.6, 1.5], [0, 107.6, 0], [-1, 107.6, 0]], rtol=1e-5)
    assert first.observed.all()
    assert (second.id, second.sequence) == ("10#2XYZ_d2xyza1", "ACDE")
    assert second.observed.tolist() == [[False] * 3, [True] * 3, [True] * 3, [False] * 3]
    alpha = next(iter(read_proteinnet(tmp_path / name)))
    np.testing.assert_array_equal(alpha.coords[:, 0], first.coords[:, 1])


def test_an_atom_at_the_origin_is_missing(tmp_path):
    """Records of models of C-alphas alone say + for all residues."""
    path = tmp_path / "records.txt"
    path.write_text(make_record(fill=(slice(None), [0, 2])))
    (chain,) = read_proteinnet(path, ("N", "CA", "C"))
    assert chain.observed.tolist() == [[False, True, False]] * 7


@pytest.mark.parametrize("text", [make_record() + "A" * 5000, make_record() + "A\n" * 3000], ids=["line", "lines"])
def test_a_gzip_bomb_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.setattr(proteinnet, "MAX_RECORD", 2500)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(text.encode()))
    with pytest.raises(StructureError, match=r"bomb.gz: line \d+ ends a record of more than 2500 bytes"):
        list(read_proteinnet(tmp_path / "bomb.gz"))
    (tmp_path / "many.gz").write_bytes(gzip.compress((make_record() * 10).encode()))
    assert len(list(read_proteinnet(tmp_path / "many.gz"))) == 10  # the limit is a record's, not the file's


def without_line(text: str, number: int) -> str:
    lines = text.splitlines()
    return "\n".join(lines[:number] + lines[number + 1 :])


BROKEN = {
    "cut in the profile": (make_record()[:200], "there is no"),
    "cut in the coordinates": (make_record()[:-170], "there is no"),
    "an axis missing": (without_line(make_record(), 27), r"lines of 21, 21 numbers; 7 residues need 3 of 21"),
    "numbers missing": (make_record().replace("\t150.0", "", 1), r"lines of 21, 21, 20 numbers"),
    "short mask": (make_record(mask="+++"), r"\[MASK\] is '\+\+\+' \(3\); .* each of 7 residues"),
    "other signs": (make_record(mask="+++x+++"), r"\[MASK\] is '\+\+\+x\+\+\+'"),
    "no number": (make_record().replace("150.0", "15o.0", 1), "15o.0"),
    "other letters": (make_record(sequence="MKVLAG?"), r"letters '\?'"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_record_is_named(tmp_path, kind):
    text, message = BROKEN[kind]
    path = tmp_path / "records.txt"
    path.write_text(make_record("2GOO_1_D") + text)
    records = read_proteinnet(path)
    assert next(records).id == "2GOO_1_D"
    with pytest.raises(StructureError, match=rf"records.txt, record 1ABC_1_A: .*{message}.*get the file again"):
        next(records)


def test_other_files_are_named(tmp_path):
    path = tmp_path / "records.txt"
    path.write_text(">1ABC\nMKV\n")
    with pytest.raises(StructureError, match=r"records.txt: line 1 is '>1ABC'; a ProteinNet text begins with \[ID\]"):
        list(read_proteinnet(path))
    path.write_text("\n")
    with pytest.raises(StructureError, match="records.txt: no ProteinNet record"):
        list(read_proteinnet(path))
    broken = tmp_path / "records.gz"
    broken.write_bytes(gzip.compress(make_record().encode())[:-20])
    with pytest.raises(StructureError, match="records.gz: .*broken or cut off"):
        list(read_proteinnet(broken))
    broken.write_text(make_record())
    with pytest.raises(StructureError, match="records.gz: Not a gzipped file.*broken or cut off"):
        list(read_proteinnet(broken))
    with pytest.raises(FileNotFoundError):
        list(read_proteinnet(tmp_path / "absent.txt"))
    with pytest.raises(ValueError, match=r"atoms=\('CB',\): ProteinNet has N, CA, C"):
        list(read_proteinnet(path, ("CB",)))
