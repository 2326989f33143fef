"""The example that compares residues of interfaces in the complex and in their chain alone."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import STRUCTURES, make_model

from coordformer import CoordformerProcessor, read_complex
from coordformer.data.rows import SCHEMA, chain_to_row

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "complexes"))
import interfaces


def test_an_interface_is_found_by_hand():
    protein = read_complex(STRUCTURES / "1hvr.pdb.gz")
    alpha, chains = protein.coords[:, 0], protein.chain_index
    apart = np.linalg.norm(alpha[:, None] - alpha[None], axis=-1)
    near = (apart < interfaces.CONTACT) & (chains[:, None] != chains[None])
    assert (interfaces.interface(protein) == near.any(axis=1)).all() and 40 < near.any(axis=1).sum() < 120


def test_the_same_residues_are_predicted_alone_and_in_the_complex(tmp_path, monkeypatch):
    make_model(num_qk_points=2, num_neighbors=4).save_pretrained(tmp_path / "model")
    CoordformerProcessor().save_pretrained(tmp_path / "model")
    proteins = [read_complex(STRUCTURES / "1hvr.pdb.gz"), read_complex(STRUCTURES / "1A8O.cif.gz", assembly=1)]
    rows = pa.Table.from_pylist([chain_to_row(protein) for protein in proteins], schema=SCHEMA)
    pq.write_table(rows, tmp_path / "complexes.parquet")
    words = [str(tmp_path / name) for name in ("model", "complexes.parquet")]
    monkeypatch.setattr(sys, "argv", ["interfaces.py", *words, "--output", str(tmp_path / "out.json")])
    interfaces.main()
    report = json.loads((tmp_path / "out.json").read_text())
    found = {
        (line["noise"], line["residues"]): line["measured"]
        for line in report["results"]
        if line["measured"]["residues"]
    }
    masked = [found[noise, place]["residues"] for noise in (0.0, 0.2) for place in ("interface", "elsewhere")]
    assert report["complexes"] == 2 and masked[:2] == masked[2:] and 20 < sum(masked[:2]) < 80
    assert found[0.0, "interface"]["alone"] != pytest.approx(found[0.0, "interface"]["complex"], abs=1e-6)


def test_what_was_measured_of_a_noise_is_kept(tmp_path, monkeypatch, capsys):
    make_model(num_qk_points=2, num_neighbors=4).save_pretrained(tmp_path / "model")
    CoordformerProcessor().save_pretrained(tmp_path / "model")
    rows = pa.Table.from_pylist([chain_to_row(read_complex(STRUCTURES / "1hvr.pdb.gz"))], schema=SCHEMA)
    pq.write_table(rows, tmp_path / "complexes.parquet")
    output = tmp_path / "out.json"
    words = ["interfaces.py", *(str(tmp_path / name) for name in ("model", "complexes.parquet"))]
    words += ["--output", str(output), "--noise"]
    monkeypatch.setattr(sys, "argv", [*words, "0.1"])
    interfaces.main()
    first = json.loads(output.read_text())["results"]
    monkeypatch.setattr(sys, "argv", [*words, "0.1", "0.2"])
    monkeypatch.setattr(
        interfaces, "measure", lambda *given, of=interfaces.measure: seen.append(given[3]) or of(*given)
    )
    seen: list[float] = []
    interfaces.main()
    assert seen == [0.2]
    both = json.loads(output.read_text())["results"]
    assert both[: len(first)] == first and {line["noise"] for line in both[len(first) :]} == {0.2}
    output.write_text(output.read_text().replace('"complexes": 1,', '"complexes": 2,', 1))
    with pytest.raises(SystemExit):
        interfaces.main()
    assert "is of other weights or data; delete it" in " ".join(capsys.readouterr().err.split())


def test_the_table_of_the_page_is_as_measured():
    """A line for each model and kind of complex, as deposited, of residues at the interface."""
    folder = Path(interfaces.__file__).parent
    lines = (folder / "README.md").read_text().splitlines()
    paths = [
        path for path in (folder / "results").glob("*.json") if path.stem.startswith(("coordformer", "proteinmpnn"))
    ]
    assert len(paths) >= 2
    for path in paths:
        for line in json.loads(path.read_text())["results"]:
            if (line["noise"], line["residues"]) == (0.0, "interface"):
                chains = "different" if line["chains"] == "different chains" else "with equal ones"
                cells = []
                for name in ("alone", "complex", "ratio"):
                    low, high = line["measured"][f"{name}_interval"]
                    cells.append(f"{line['measured'][name]:.2f} ({low:.2f} to {high:.2f})")
                assert f"| {path.stem} | {chains} | {' | '.join(cells)} |" in lines
