"""Attention in numbers: planted Gaussians, sums against the maps that the model returns, helices and strands."""

import csv
import json
import re
import sys
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import CHAINS, STRUCTURES, make_model

from coordformer import CoordformerProcessor, read_chains
from coordformer.analysis import attention_sums
from coordformer.analysis.attention import (
    analyze_attention,
    choose_heads,
    conditions_coincide,
    describe,
    fit_gaussian,
    make_tables,
    read_structures,
    write_tables,
)
from coordformer.analysis.attention_sums import (
    CONDITIONS,
    DISTANCE_EDGES,
    MIN_PAIRS,
    AttentionSums,
    motif_pairs,
    pair_sums,
    sum_attention,
)
from coordformer.analysis.sse import annotate_sse
from coordformer.data.batching import fetch_rows
from coordformer.data.pack import write_pack
from coordformer.data.rows import load_rows
from coordformer.inference.checkpoints import load_checkpoint
from coordformer.inference.masked import chain_generator
from coordformer.inference.runner import Inputs
from coordformer.model.chain import chain_arrays
from coordformer_command import main

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "attention"))
from report import read_tables

PROCESSOR = CoordformerProcessor()
TOKENIZER = PROCESSOR.tokenizer
# Made with biotite 1.6.0, `annotate_sse`: a is H, b is E. On 956 chains with 212,995 residues no letter differed.
PSEA = {
    "1orc.pdb.gz": "CCCCCCHHHHHHHCCHHHHHHHHCCCHHHHHHHHHHCCEEEEEECCCCEEEEEEECCCCCCCCCCCCCCCC",
    "1A8O.cif.gz": "CCCCCCCCCCHHHHHHHHHHHHHHHCCCHHHHHHHHHCCCCCCCCHHHHHHHHHCCCCCCHHHHHHHHCC",
    "pdb1ubi_ca.pdb.gz": "CEEEEECCCCEEEEEEECCCCCHHHHHHHHHHHCCCCCCCEEEECCCCCCCCCCCCCCCCCCCEEEEEEEEEECCC",
    "1hvr.pdb.gz": "CCCCCCCCEEEEEECCCCCCCCCCCCCCCCCCCCCCCCCEEEEEEEEECCC"
    "EEEEEEEECEEEEECCCCCCEEEEEECCCCCCCCCCCCCCCCCCCCCC",
}
# Bridges from the hydrogen bonds of beta-2 microglobulin (1BD2, chain B), made with pydssp 0.9.1; residues from 0.
BRIDGES = """3-31 6-28 7-27 8-26 9-25 10-24 11-23 20-71 21-70 22-69 23-68 24-67 25-66 26-65 27-64 28-63 30-62 36-83
37-82 38-81 39-80 40-45 40-79 41-44 41-78 50-67 51-66 55-63 56-62 79-94 80-93 81-92 82-91"""


@pytest.fixture
def few_samples(monkeypatch):
    """The intervals take most of the time."""
    monkeypatch.setattr(attention_sums, "SAMPLES", 8)


@pytest.fixture(scope="module")
def rows():
    """Eight real chains of 40 to 100 residues."""
    rows = load_rows(CHAINS, "valid")
    lengths = np.asarray(rows["length"][:])
    return rows.select(np.flatnonzero((lengths >= 40) & (lengths <= 100))[:8])


def hide(rows, residues):
    """The same chains with residues that were not observed."""

    def change(row):
        coords = np.array(row["coords"], dtype=np.float32).reshape(-1, 3)
        coords[residues] = np.nan
        return {"coords": coords.reshape(-1)}

    return rows.map(change)


def select(table, **values):
    return [row for row in table if all(row[name] == value for name, value in values.items())]


def add_chains(total, rows, attention):
    """Sum maps (heads, residues, residues) that `attention` makes from the distances, the same in each condition."""
    for row in rows:
        sequence, coords = chain_arrays(row, ("CA",))
        matrix, distances = pair_sums(sequence, coords[:, 0], "C" * len(sequence))
        total.open(matrix, distances, chain_generator(row["id"], 0).poisson(1.0, attention_sums.SAMPLES))
        total.add(0, np.stack([attention(distances)] * len(CONDITIONS)))
    return total


def test_planted_gaussians_are_recovered(rows):
    planted = [(0.44, 2.7), (0.11, 4.7), (0.05, 12.0)]

    def attention(distances):
        squares = np.nan_to_num(distances, nan=np.inf) ** 2
        return np.stack([amplitude * np.exp(-squares / (2 * sigma**2)) for amplitude, sigma in planted])

    tables = make_tables(add_chains(AttentionSums(1, len(planted)), rows, attention))
    for row, (amplitude, sigma) in zip(tables["heads"], planted, strict=True):
        assert row["fit"] == "ok" and row["r2"] > 0.999
        assert row["amplitude"] == pytest.approx(amplitude, rel=0.01)
        assert row["sigma"] == pytest.approx(sigma, rel=0.01)
        assert row["sigma_low"] <= row["sigma"] * 1.001 and row["sigma_high"] >= row["sigma"] * 0.999
        for each in select(tables["distance"], head=row["head"]):
            # Quantiles are known to a bin of the histogram, a factor of 1.12, and above 1e-8.
            expected = amplitude * np.exp(-(np.array([each["to"], each["from"]]) ** 2) / (2 * sigma**2))
            expected = expected.clip(1e-8)
            assert expected[0] / 1.13 <= each["q05"] <= each["q50"] <= each["q95"] <= expected[1] * 1.13


def test_intervals_are_those_of_a_mean_over_chains(rows):
    """All chains alike but for the share near, whose spread is known: mean +- 1.96 sd / sqrt(n)."""
    rng = np.random.default_rng(0)
    sequence, coords = chain_arrays(rows[0], ("CA",))
    matrix, distances = pair_sums(sequence, coords[:, 0], "C" * len(sequence))
    near = distances < attention_sums.NEAR
    shares, total = rng.uniform(0.2, 0.6, size=60), AttentionSums(1, 1)
    for share in shares:
        maps = np.where(near, share / near.sum(), (1 - share) / (np.isfinite(distances) & ~near).sum())
        total.open(matrix, distances, rng.poisson(1.0, attention_sums.SAMPLES))
        total.add(0, np.stack([maps[None]] * len(CONDITIONS)))
    row = make_tables(total)["heads"][0]
    half = 1.96 * shares.std() / np.sqrt(len(shares))
    assert row["near"] == pytest.approx(shares.mean(), rel=1e-9)
    assert row["near_low"] == pytest.approx(shares.mean() - half, abs=0.3 * half)
    assert row["near_high"] == pytest.approx(shares.mean() + half, abs=0.3 * half)


@pytest.mark.parametrize(
    ("distance", "attention", "reason"),
    [
        (np.linspace(4, 20, 33), np.full(33, 0.01), "no decay"),
        (np.linspace(4, 20, 33), np.linspace(0.01, 0.02, 33), "no decay"),
        (np.linspace(4, 20, 33), 0.01 * np.exp(-(np.linspace(4, 20, 33) ** 2) / (2 * 25**2)), "no decay"),
        (np.linspace(4, 20, 33), 5 * np.exp(-(np.linspace(4, 20, 33) ** 2) / (2 * 2**2)), "amplitude 5 is"),
        (np.linspace(4, 20, 33), np.where(np.arange(33) < 1, 0.9, 0.0), "amplitude|did not converge"),
        (np.linspace(4, 20, 33), np.where(np.arange(33) % 2, 0.01, 0.02), "no decay|R.2"),
        (np.linspace(4, 20, 33), np.exp(-((np.linspace(4, 20, 33) - 12) ** 2)) + 0.2, "no decay|R.2"),
        (np.linspace(4, 20, 33), np.full(33, np.nan), "no finite"),
        (np.linspace(4, 20, 33), np.zeros(33), "no finite"),
        (np.array([4.0, 5, 6]), np.array([0.3, 0.2, 0.1]), "only 3 bins"),
    ],
)
def test_a_fit_that_means_nothing_gives_a_reason_and_no_numbers(distance, attention, reason):
    fit = fit_gaussian(distance, attention)
    assert re.match(reason, fit["fit"])
    assert fit["amplitude"] is fit["sigma"] is fit["r2"] is None


@pytest.mark.parametrize("fields", [{}, {"num_distance_bins": 8, "coordinate_embedding": "none"}])
def test_tables_equal_a_direct_computation(rows, few_samples, fields):
    """From the maps that the model returns with `output_attentions`, with masks of pairs, chain by chain."""
    rows = hide(rows.select(range(3)), [0, 5, 6])
    model = make_model("base", "eager", **fields)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "distance_bias" in name:  # starts at zero
                parameter.normal_(std=0.02)
    total = sum_attention(model, rows, TOKENIZER, seed=3, progress=False)
    tables = make_tables(total)
    pooled = {name: [] for name in ("distance", "attention", "separation", "queries", "keys", "seen")}
    for row in rows:
        sequence, coords = chain_arrays(row, ("CA",))
        shuffled, observed = coords.copy(), np.flatnonzero(np.isfinite(coords).all(axis=(1, 2)))
        shuffled[observed] = coords[chain_generator(row["id"], 3).permutation(observed)]
        maps = []
        for xyz in (coords, None, shuffled):
            with torch.no_grad():
                output = model(**PROCESSOR(sequence, coords=xyz), output_attentions=True)
            maps.append(torch.cat(output.attentions)[..., 1:-1, 1:-1].numpy())
        index = np.arange(len(sequence))
        pooled["attention"].append(np.stack(maps, axis=1).reshape(2, 3, 4, -1))
        pooled["distance"].append(np.linalg.norm(coords - coords[:, 0], axis=-1).reshape(-1))
        pooled["separation"].append((index[None] - index[:, None]).reshape(-1))
        letters = np.array(list(sequence))
        pooled["queries"].append(np.repeat(letters, len(letters)))
        pooled["keys"].append(np.tile(letters, len(letters)))
        seen = np.isfinite(coords).all(axis=(1, 2))
        pooled["seen"].append((seen[:, None] + 2 * seen[None]).reshape(-1))
    pooled = {name: np.concatenate(values, axis=-1) for name, values in pooled.items()}
    attention, apart = pooled["attention"], pooled["separation"] != 0
    between = (pooled["seen"] == 3) & apart
    assert total.pairs[attention_sums.ROWS["others"]] == between.sum()
    for row in tables["heads"]:
        weights = attention[row["layer"] - 1, CONDITIONS.index(row["condition"]), row["head"] - 1]
        near = between & (pooled["distance"] < 8)
        far = np.abs(pooled["separation"]) >= 6
        assert row["near"] == pytest.approx(weights[near].sum() / weights[between].sum(), rel=1e-4)
        assert row["near_long_range"] == pytest.approx(
            weights[near & far].sum() / weights[between & far].sum(), rel=1e-4
        )
        queries = (~apart & (pooled["seen"] == 3)).sum()
        assert row["to_self"] == pytest.approx(weights[~apart & (pooled["seen"] == 3)].sum() / queries, rel=1e-4)
        assert row["to_unobserved"] == pytest.approx(weights[pooled["seen"] == 1].sum() / queries, rel=1e-4)
        seen_queries = np.isin(pooled["seen"], (1, 3))
        assert row["to_special"] == pytest.approx(1 - weights[seen_queries].sum() / queries, abs=1e-5)
        key = {name: row[name] for name in ("layer", "head", "condition")}
        for each in select(tables["distance"], **key):
            inside = between & (pooled["distance"] >= each["from"]) & (pooled["distance"] < each["to"])
            assert each["pairs"] == inside.sum()
            assert each["mean"] == pytest.approx(weights[inside].mean(), rel=1e-4)
            assert each["q50"] == pytest.approx(np.median(weights[inside]), rel=0.15)
        for each in select(tables["separation"], **key):
            inside = pooled["separation"] == each["separation"]
            assert each["pairs"] == inside.sum()
            assert each["mean"] == pytest.approx(weights[inside].mean(), rel=1e-4)
        if row["condition"] == "given":
            for each in select(tables["residue_pairs"], layer=row["layer"], head=row["head"]):
                inside = (pooled["queries"] == each["query"]) & (pooled["keys"] == each["key"]) & apart
                assert each["pairs"] == inside.sum()
                assert each["mean"] == pytest.approx(weights[inside].mean(), rel=1e-4)
    assert len(tables["heads"]) == 2 * 4 * 3 and tables["distance"] and tables["residue_pairs"]


def test_bins_of_few_pairs_are_left_out(rows, few_samples):
    total = sum_attention(make_model("base"), rows.select([0]), TOKENIZER, progress=False)
    tables = make_tables(total)
    pairs = total.pairs[attention_sums.ROWS["distance"]]
    assert ((pairs > 0) & (pairs < MIN_PAIRS)).any() and (pairs >= MIN_PAIRS).any()  # the chain has both kinds
    shown = {row["from"] for row in tables["distance"]}
    assert shown == set(DISTANCE_EDGES[:-1][pairs >= MIN_PAIRS])
    assert all(row["pairs"] >= MIN_PAIRS for table in ("distance", "residue_pairs", "motifs") for row in tables[table])


def test_tables_depend_neither_on_the_order_nor_on_other_chains(rows, few_samples):
    model = make_model("base")
    forth = sum_attention(model, rows, TOKENIZER, progress=False)
    back = sum_attention(model, rows.select(range(len(rows))[::-1]), TOKENIZER, progress=False)
    parts = [sum_attention(model, rows.select(part), TOKENIZER, progress=False) for part in (range(3), range(3, 8))]
    for name in ("sums", "pairs", "drawn_sums", "drawn_pairs", "counts", "distance", "uniform"):
        np.testing.assert_allclose(getattr(back, name), getattr(forth, name), rtol=1e-9, atol=1e-12)
        both = getattr(parts[0], name) + getattr(parts[1], name)
        np.testing.assert_allclose(both, getattr(forth, name), rtol=1e-9, atol=1e-12)


def test_chains_of_a_cluster_are_drawn_together(rows, few_samples):
    """A sample of the bootstrap has both chains of a cluster equally often, others each by itself."""
    model, records = make_model("base"), fetch_rows(rows, range(3))

    def times(*clusters):
        return [
            sum_attention(model, [record | {"cluster": cluster}], TOKENIZER, progress=False).drawn_pairs.max(axis=1)
            for record, cluster in zip(records, clusters, strict=True)
        ]

    def same(first, second):
        return np.allclose(first / first.max(), second / second.max())

    together, apart, alone = times(7, 7, None), times(7, 8, None), times(None, None, None)
    assert same(*together[:2]) and not same(*apart[:2]) and not same(*alone[:2])
    np.testing.assert_array_equal(together[2], alone[2])


def test_the_seed_decides_the_shuffled_coordinates_alone(rows, few_samples):
    model, rows = make_model("base"), rows.select(range(2))
    first, again, other = (sum_attention(model, rows, TOKENIZER, seed=seed, progress=False).sums for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[:, :2], other[:, :2])
    assert not np.allclose(first[:, 2], other[:, 2])


def test_a_model_that_reads_no_coordinates_has_no_nulls(rows, few_samples):
    tables = make_tables(sum_attention(make_model(coordinate_embedding="none"), rows, TOKENIZER, progress=False))
    assert {row["condition"] for name in ("heads", "distance", "motifs") for row in tables[name]} == {"given"}
    assert len(choose_heads(tables["heads"])) == 2
    with_coordinates = sum_attention(make_model(), rows, TOKENIZER, progress=False)
    assert not conditions_coincide(with_coordinates)


def test_uniform_attention_has_the_uniform_share_and_no_motif(rows, few_samples):
    model = make_model("base")
    with torch.no_grad():
        for layer in model.esm.encoder.layer:
            layer.attention.self.query.weight.zero_()
            layer.attention.self.query.bias.zero_()
    tables = make_tables(sum_attention(model, rows, TOKENIZER, progress=False))
    for row in tables["heads"]:
        assert row["near"] == pytest.approx(row["near_uniform"], rel=1e-5)
        assert row["near_long_range"] == pytest.approx(row["near_long_range_uniform"], rel=1e-5)
        assert row["fit"] != "ok" and row["sigma"] is None
    assert {row["motif"] for row in tables["motifs"]} >= {"helix_3", "helix_4"}
    assert [row["ratio"] for row in tables["motifs"]] == pytest.approx([1.0] * len(tables["motifs"]), rel=1e-5)


def test_no_map_outlives_its_layer(rows, few_samples):
    model = make_model("base", num_hidden_layers=4)
    maps, alive = [], []

    def count(module, inputs, outputs):
        alive.append(sum(each() is not None for each in maps))
        maps.append(weakref.ref(outputs[1]))

    for layer in model.esm.encoder.layer:
        layer.attention.self.register_forward_hook(count)
    sum_attention(model, rows.select(range(2)), TOKENIZER, progress=False)
    assert len(alive) == 8 and max(alive) == 0
    # What would be kept otherwise.
    alive.clear()
    model.set_attn_implementation("eager")
    model(**PROCESSOR("MKV" * 5), output_attentions=True)
    assert max(alive) == 3


def test_the_model_is_left_as_it_was(rows, few_samples):
    model = make_model("base", "sdpa")
    sum_attention(model, rows.select([0]), TOKENIZER, progress=False)
    assert model.config._attn_implementation == "sdpa"
    assert not any(layer.attention.self._forward_hooks for layer in model.esm.encoder.layer)


def test_of_long_chains_the_middle_is_looked_at(rows, few_samples):
    longest = int(np.argmax(rows["length"][:]))
    model, long, row = make_model("base"), rows.select([longest]), rows[longest]
    before, window = (row["length"] - 60) // 2, 60
    after = row["length"] - window - before
    part = {"sequence": row["sequence"][before:][:window], "coords": row["coords"][3 * before :][: 3 * window]}
    alone = long.from_list([row | part | {"length": window}], features=long.features)
    structures = {row["id"]: "C" * before + "H" * window + "C" * after}
    cropped = sum_attention(model, long, TOKENIZER, structures, window=window, progress=False)
    expected = sum_attention(model, alone, TOKENIZER, {row["id"]: "H" * window}, progress=False)
    np.testing.assert_allclose(cropped.sums, expected.sums, rtol=1e-12)
    assert before > 0 and (cropped.cropped, expected.cropped) == (1, 0)
    few_positions = make_model("base", position_embedding_type="absolute", max_position_embeddings=64)
    assert sum_attention(few_positions, long, TOKENIZER, progress=False).cropped == 1


@pytest.mark.parametrize("file", sorted(PSEA))
def test_structure_is_that_of_biotite(file):
    chain = read_chains(STRUCTURES / file, atoms=("CA",))[0]
    assert annotate_sse(chain.coords[:, 0]) == PSEA[file]


def test_structure_of_fragments():
    assert annotate_sse(np.zeros((5, 3))) == "CCCCC"
    helix = read_chains(STRUCTURES / "1A8O.cif.gz", atoms=("CA",))[0].coords[10:25, 0]
    assert annotate_sse(helix).count("H") >= 11
    broken = helix.copy()
    broken[7] = np.nan
    assert annotate_sse(broken)[7] == "C"


def test_helix_pairs_by_hand():
    distances = np.full((12, 12), 30.0)
    np.fill_diagonal(distances, np.nan)
    distances[1, :] = distances[:, 1] = np.nan
    pairs = motif_pairs("HHHHHHCHHHHE", distances)
    three = {(0, 3), (2, 5), (7, 10)}  # not 1-4, which is not observed, nor 4-7, which is in two helices
    assert set(zip(*map(np.ndarray.tolist, np.nonzero(np.triu(pairs["helix_3"]))), strict=True)) == three
    assert set(zip(*map(np.ndarray.tolist, np.nonzero(np.triu(pairs["helix_4"]))), strict=True)) == {(0, 4)}
    assert (pairs["helix_3"] == pairs["helix_3"].T).all() and not pairs["strand_partners"].any()


def test_strand_partners_are_bridges_of_dssp():
    """All but one of the partners are bridges, and most bridges are partners, where the strands are DSSP's."""
    chain = next(chain for chain in read_chains(STRUCTURES / "1BD2.cif.gz", atoms=("CA",)) if chain.id.endswith("_B"))
    bridges = {tuple(map(int, each.split("-"))) for each in BRIDGES.split()}
    strands = {residue for bridge in bridges for residue in bridge}
    structure = "".join("E" if residue in strands else "C" for residue in range(len(chain)))
    coords = chain.coords[:, 0]
    distances = np.linalg.norm(coords[:, None] - coords[None], axis=-1)
    found = motif_pairs(structure, distances)["strand_partners"]
    partners = set(zip(*map(np.ndarray.tolist, np.nonzero(np.triu(found))), strict=True))
    assert len(partners - bridges) <= 1
    assert len(partners & bridges) >= 0.8 * len(bridges)
    assert (found == found.T).all()


def test_pairs_outside_a_motif_have_its_separations():
    chain = read_chains(STRUCTURES / "1orc.pdb.gz", atoms=("CA",))[0]
    coords = chain.coords[:, 0]
    matrix, distances = pair_sums(chain.sequence, coords, annotate_sse(coords))
    separation = np.abs(np.subtract.outer(np.arange(len(coords)), np.arange(len(coords))))
    for name, motif in motif_pairs(annotate_sse(coords), distances).items():
        inside, outside = (
            matrix[attention_sums.ROWS[each]].toarray().reshape(distances.shape) for each in (name, f"{name}_outside")
        )
        assert motif.any() and (inside == motif).all() and not (outside * motif).any()
        for each in np.unique(separation[motif]):
            assert outside[separation == each].sum() == pytest.approx(inside[separation == each].sum())


def test_tables_return_from_their_files(rows, few_samples, tmp_path):
    tables = make_tables(sum_attention(make_model("base"), rows.select(range(2)), TOKENIZER, progress=False))
    tables["motifs"] = []
    write_tables(tables, tmp_path)
    again = read_tables(tmp_path)
    assert again["motifs"] == []
    for name, table in tables.items():
        for row, other in zip(table, again[name], strict=True):
            assert row.keys() == other.keys()
            for key, value in row.items():
                assert other[key] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value)


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory, rows):
    """A masked-LM checkpoint, a base one, and eight chains, four of them with DSSP letters."""
    folder = tmp_path_factory.mktemp("attention")
    for head in ("masked_lm", "base"):
        torch.manual_seed(0)
        make_model(head).save_pretrained(folder / head)
        PROCESSOR.save_pretrained(folder / head)
    letters = ["H" * length if number < 4 else None for number, length in enumerate(rows["length"][:])]
    rows.add_column("ss8", pa.array(letters, pa.string()).to_pylist()).to_parquet(folder / "chains.parquet")
    return folder


def test_command(folder, tmp_path, capsys, few_samples):
    command = ["attention", str(folder / "masked_lm"), str(folder / "chains.parquet"), "--split", "valid"]
    assert main([*command, "--output", str(tmp_path / "out"), "--quiet", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["chains"], summary["with_ss8"], summary["reads_coordinates"]) == (8, 4, True)
    assert set(summary["best_heads"]) == {"1", "2"}
    text = r"8 chains with .* residues\nheads .* null of shuffled coordinates: 1\.\d, 2\.\d"
    assert re.fullmatch(text, describe(summary))
    tables = {}
    for name in ("heads", "distance", "separation", "residue_pairs", "motifs"):
        with open(tmp_path / "out" / f"{name}.csv", newline="") as file:
            tables[name] = list(csv.DictReader(file))
    assert len(tables["heads"]) == 2 * 4 * 3
    assert {row["condition"] for row in tables["heads"]} == set(CONDITIONS)
    assert {row["separation"] for row in tables["separation"]} == {str(each) for each in range(-10, 11)}
    for row in tables["heads"]:
        assert sum(float(row[name]) for name in row if name.startswith("to_")) == pytest.approx(1, abs=1e-4)
        assert (row["fit"] == "ok") == bool(row["sigma"])
    assert all(len(read) == len(tables[name]) for name, read in read_tables(tmp_path / "out").items())
    for name in ("profiles", "atlas", "residue_pairs"):
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_files_and_data_sets_are_taken_together(folder, tmp_path, few_samples):
    inputs = [folder / "chains.parquet", STRUCTURES / "1orc.pdb.gz"]
    both = analyze_attention(folder / "base", inputs, tmp_path, progress=False)
    assert (both["data"], both["chains"], both["with_ss8"]) == ("chains.parquet, 1orc.pdb.gz", 9, 4)
    assert both["clusters"] is None  # a file has none
    alone = [analyze_attention(folder / "base", each, tmp_path, progress=False) for each in inputs]
    assert sum(each["pairs"] for each in alone) == both["pairs"] and alone[0]["clusters"] > 1


def test_a_model_with_a_head_attends_as_its_encoder(folder, tmp_path, rows, few_samples):
    model, processor = load_checkpoint(folder / "masked_lm", any_head=True)
    assert hasattr(model, "lm_head")
    model.coordformer.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    models = model, load_checkpoint(tmp_path, any_head=True)[0], load_checkpoint(folder / "base", any_head=True)[0]
    first, same, other = (sum_attention(each, rows.select([0]), TOKENIZER, progress=False).sums for each in models)
    np.testing.assert_array_equal(first, same)
    assert not np.allclose(first, other)


def test_a_packed_file_gives_the_same_attention(folder, tmp_path, rows, few_samples):
    model, _ = load_checkpoint(folder / "base", any_head=True)
    write_pack(rows.select(range(2)), tmp_path / "chains.safetensors", progress=False)
    sums = [
        sum_attention(model, each, TOKENIZER, progress=False).sums
        for each in (rows.select(range(2)), Inputs(tmp_path / "chains.safetensors").read_all())
    ]
    np.testing.assert_allclose(*sums, rtol=1e-3, atol=1e-3)  # coordinates are rounded to 0.01 Å
    assert read_structures(tmp_path / "chains.safetensors") == {}


def test_structures_come_from_the_column_where_there_is_one(folder, rows):
    structures = read_structures(folder / "chains.parquet")
    assert set(structures) == set(rows["id"][:4]) and set(structures[rows["id"][0]]) == {"H"}
    assert read_structures(CHAINS) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint": "nowhere"}, "nowhere; give a folder that `coordformer train` wrote"),
        ({"checkpoint": "empty"}, "holds no processor"),
        ({"checkpoint": "esm"}, "holds a esm model"),
        ({"checkpoint": "unknown"}, "no attribute 'CoordformerForNothing'"),
        ({"inputs": "nowhere.parquet"}, "no such file or folder; check the path"),
        ({"--split": "tset"}, "is in split 'tset'"),
        ({"--window": "1"}, "`window` is 1; it must be at least 2"),
        ({"--seed": "-1"}, "`seed` is -1; it must be at least 0"),
        ({"--output": "chains.parquet"}, "which is a file; give a folder"),
        ({"inputs": "letters.parquet"}, "3 letters in `ss8` for"),
        ({"inputs": "hidden.parquet"}, "There are 0 pairs of residues with coordinates in 1 chains"),
    ],
)
def test_bad_inputs_are_one_clear_line(folder, rows, capsys, few_samples, change, message):
    (folder / "empty").mkdir(exist_ok=True)
    for name, text in (("esm", '{"model_type": "esm"}'), ("unknown", '{"model_type": "coordformer"}')):
        PROCESSOR.save_pretrained(folder / name)
        config = json.loads(text) | ({"architectures": ["CoordformerForNothing"]} if name == "unknown" else {})
        (folder / name / "config.json").write_text(json.dumps(config))
    one = rows.select([0])
    one.add_column("ss8", ["HHH"]).to_parquet(folder / "letters.parquet")
    hide(one, slice(None)).to_parquet(folder / "hidden.parquet")
    options = {"checkpoint": "base", "inputs": "chains.parquet", "--output": "out"} | change
    for name in ("checkpoint", "inputs", "--output"):
        options[name] = str(folder / options[name])
    paths = options.pop("checkpoint"), options.pop("inputs")
    assert main(["attention", *paths, "--quiet", *(word for option in options.items() for word in option)]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("coordformer: ") and message in error
