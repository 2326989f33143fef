"""Rows are read as they were written, and shards stream as one data set."""

from itertools import chain as chained
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import CHAINS, STRUCTURES, make_rows

from coordformer import read_chains
from coordformer.data.batching import ChainBatches, fetch_rows
from coordformer.data.prepare import prepare
from coordformer.data.rows import SCHEMA, ShardBatches, chain_to_row, load_rows, read_compact
from coordformer.model.chain import Chain, chain_arrays, join_chains


def write_compact(path, **columns):
    """Two chains of C-alphas, and of whatever atoms `columns` has."""
    base = {"id": ["1ABC_A", "2XYZ_B"], "sequence": ["MKV", "GA"]}
    planes = {
        "ca_x": [[100, -250, -32768], [5, 6]],
        "ca_y": [[0, 1, -32768], [7, 8]],
        "ca_z": [[2, 3, -32768], [9, 10]],
    }
    kinds = {name: pa.list_(pa.int16()) for name in (*planes, *columns) if name[-2:] in ("_x", "_y", "_z")}
    table = {name: pa.array(values, kinds.get(name)) for name, values in (base | planes | columns).items()}
    pq.write_table(pa.table(table), path)
    return path


# --- reading ---------------------------------------------------------------------------------------------------------


def test_compact_layout_by_hand(tmp_path):
    path = write_compact(tmp_path / "chains.parquet", split=["train", "valid"], cluster30=[4, 9])
    rows = load_rows(path)
    assert rows.column_names == SCHEMA.names
    assert rows[0]["coords"][:6] == pytest.approx([1.0, 0.0, 0.02, -2.5, 0.01, 0.03])
    assert np.isnan(rows[0]["coords"][6:]).all()
    assert (rows[0]["length"], rows[0]["observed"], rows[0]["atoms"], rows[0]["cluster"]) == (3, 2, ["CA"], 4)
    assert rows[1]["coords"] == pytest.approx([0.05, 0.07, 0.09, 0.06, 0.08, 0.10])
    assert load_rows(path, "valid")["id"][:] == ["2XYZ_B"]


def test_compact_rows_equal_prepared_rows(tmp_path):
    """The same chain through both ways: equal but for the rounding to hundredths of an Å."""
    chain = read_chains(STRUCTURES / "1A8O.cif.gz")[0]
    raw = np.where(np.isnan(chain.coords[:, 0]), -32768, np.round(chain.coords[:, 0] * 100)).astype(int)
    path = write_compact(
        tmp_path / "chains.parquet",
        id=[chain.id], sequence=[chain.sequence], ca_x=[raw[:, 0]], ca_y=[raw[:, 1]], ca_z=[raw[:, 2]],
    )  # fmt: skip
    prepare([STRUCTURES / "1A8O.cif.gz"], tmp_path / "out", workers=1, progress=False)
    compact, prepared = load_rows(path)[0], load_rows(tmp_path / "out")[0]
    np.testing.assert_allclose(compact.pop("coords"), prepared.pop("coords"), atol=0.0051)
    for name in ("id", "sequence", "length", "observed", "atoms"):
        assert compact[name] == prepared[name]


def test_compact_layout_with_a_backbone(tmp_path):
    """Atoms in the order of the backbone, each observed or not; a model of C-alphas reads the same as without them."""
    chain = read_chains(STRUCTURES / "1A8O.cif.gz", atoms=("N", "CA", "C", "O"))[0]
    chain.coords[2, 3] = chain.coords[4] = np.nan  # no O, nothing
    chain.coords[6, 1] = np.nan  # an N, but no CA
    raw = np.where(np.isnan(chain.coords), -32768, np.round(chain.coords * 100)).astype(int)
    names = [f"{atom}_{axis}" for atom in ("n", "ca", "c", "o") for axis in "xyz"]
    planes = {name: [values] for name, values in zip(names, raw.reshape(-1, 12).T, strict=True)}
    path = write_compact(tmp_path / "chains.parquet", id=[chain.id], sequence=[chain.sequence], **planes)
    (row,) = fetch_rows(load_rows(path), [0])
    assert row["atoms"] == ("N", "CA", "C", "O")
    np.testing.assert_allclose(chain_arrays(row, row["atoms"])[1], chain.coords, atol=0.0051)
    assert load_rows(path)[0]["observed"] == np.isfinite(chain.coords).any(axis=(1, 2)).sum()
    alphas = {name: values for name, values in planes.items() if name.startswith("ca")}
    alone = write_compact(tmp_path / "alphas.parquet", id=[chain.id], sequence=[chain.sequence], **alphas)
    (of_alphas,) = fetch_rows(load_rows(alone), [0])
    np.testing.assert_array_equal(chain_arrays(row, ("CA",))[1], chain_arrays(of_alphas, ("CA",))[1])
    del planes["o_z"]
    with pytest.raises(ValueError, match="halves.parquet lacks the columns o_z of the compact layout"):
        read_compact(write_compact(tmp_path / "halves.parquet", id=[chain.id], sequence=[chain.sequence], **planes))


def test_rows_keep_chains(tmp_path):
    chains = read_chains(STRUCTURES / "1A8O.cif.gz", atoms=("N", "CA", "C"))
    pq.write_table(
        pa.Table.from_pylist([chain_to_row(chain) for chain in chains], schema=SCHEMA), tmp_path / "a.parquet"
    )
    (row,) = fetch_rows(load_rows(tmp_path), [0])
    sequence, coords = chain_arrays(row, ("N", "CA", "C"))
    assert sequence == chains[0].sequence
    np.testing.assert_array_equal(coords, chains[0].coords)


def test_rows_keep_positions_and_residue_numbers(tmp_path):
    """Null where there is nothing to say: positions without a gap, and files without numbers."""
    coords = np.zeros((2, 4, 1, 3), dtype=np.float32)
    numbers = ("9", "52", "52A", "60")
    chains = [
        Chain("gap", "MKVL", coords[0], ("CA",), np.zeros(4), positions=[0, 43, 44, 52], residue_numbers=numbers),
        Chain("plain", "MKVL", coords[1], ("CA",), np.zeros(4)),
    ]
    pq.write_table(
        pa.Table.from_pylist([chain_to_row(chain) for chain in chains], schema=SCHEMA), tmp_path / "a.parquet"
    )
    gap, plain = load_rows(tmp_path / "a.parquet")
    assert gap["positions"] == [0, 43, 44, 52] and gap["residue_numbers"] == list(numbers)
    new = ("positions", "residue_numbers", "chain_names", "chain_lengths")
    assert [plain[name] for name in new] == [None] * 4 and gap["chain_names"] is gap["chain_lengths"] is None
    joined = join_chains(
        "1ABC", [read_chains(STRUCTURES / "1orc.pdb.gz")[0], *read_chains(STRUCTURES / "1orc.pdb.gz")], "AB"
    )
    row = pa.Table.from_pylist([chain_to_row(joined)], schema=SCHEMA).to_pylist()[0]
    assert (row["chain_names"], row["chain_lengths"], row["length"]) == (["A", "B"], [71, 71], 142)
    assert row["positions"][71] > 71 and len(row["residue_numbers"]) == 142
    # Numbers and letters are those of the file.
    chain = read_chains(STRUCTURES / "1orc.pdb.gz")[0]
    assert chain_to_row(chain)["residue_numbers"] == chain.residue_numbers and len(chain.residue_numbers) == 71


def test_data_sets_of_older_versions_are_read(tmp_path):
    """They lack the columns that came later, as one data set and as shards."""
    later = ["positions", "residue_numbers", "chain_names", "chain_lengths"]
    (tmp_path / "data").mkdir()
    pq.write_table(make_rows([5, 7]).data.table.drop_columns(later), tmp_path / "data" / "train-00000-of-00001.parquet")
    rows = load_rows(tmp_path)
    assert rows["length"][:] == [5, 7] and not set(later) & set(rows.column_names)
    assert len(fetch_rows(rows, [0, 1])[1]["sequence"]) == 7
    assert {row["id"] for row in ShardBatches(tmp_path, 64)[0]} == {"chain 0", "chain 1"}


def test_bad_data_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="No Parquet file at .*nowhere"):
        load_rows(tmp_path / "nowhere")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="has the columns text; a data set of chains needs id"):
        load_rows(tmp_path / "other.parquet")
    pq.write_table(pa.Table.from_pylist([], schema=SCHEMA), tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match="empty.parquet has no rows"):
        load_rows(tmp_path / "empty.parquet")
    pq.write_table(pa.table({"id": ["a"], "sequence": ["M"], "ca_x": [[1]]}), tmp_path / "half.parquet")
    with pytest.raises(ValueError, match="half.parquet lacks the columns ca_y, ca_z"):
        load_rows(tmp_path / "half.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="broken.parquet is not a readable Parquet file"):
        load_rows(tmp_path / "broken.parquet")
    path = write_compact(tmp_path / "chains.parquet", split=["train", "valid"])
    with pytest.raises(ValueError, match="in split 'test'; the file has: train, valid"):
        load_rows(path, "test")
    with pytest.raises(ValueError, match="chain 2XYZ_B: 1 values in ca_y for 2 residues"):
        read_compact(write_compact(tmp_path / "short.parquet", ca_y=[[1, 2, 3], [1]]))


@pytest.mark.parametrize(
    ("place", "message"),
    [(100_000, "damaged.parquet cannot be read .*copy or prepare it again"), (-600, "is not a readable Parquet file")],
)
def test_a_damaged_file_is_named(tmp_path, place, message):
    """In the columns, and in the schema."""
    content = bytearray(CHAINS.read_bytes())
    content[place : place + 300] = b"U" * 300
    (tmp_path / "damaged.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_rows(tmp_path / "damaged.parquet")


# --- shards ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Seven shards of different sizes, 500 chains in all."""
    folder = tmp_path_factory.mktemp("shards")
    (folder / "data").mkdir()
    table = make_rows(np.random.default_rng(1).integers(5, 120, size=500)).data.table
    for number, (start, end) in enumerate(pairwise([0, 90, 170, 171, 300, 350, 420, 500])):
        pq.write_table(table.slice(start, end - start), folder / "data" / f"train-{number:05d}-of-00007.parquet")
    return folder


def ids_of(batches, items):
    return [[row["id"] for row in batches[item]] for item in items]


def test_every_chain_of_the_shards_comes_once_in_an_epoch(shards):
    batches = ShardBatches(shards, 512, open_shards=4, seed=3)
    epochs = []
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        items = ids_of(batches, range(len(batches)))
        assert sorted(chained.from_iterable(items)) == sorted(load_rows(shards)["id"][:])
        epochs.append(items)
        for item in range(len(batches)):
            assert sum(len(row["sequence"]) + 2 for row in batches[item]) <= 512
    assert epochs[0] != epochs[1]
    assert batches.chains == 500 and batches.residues == sum(load_rows(shards)["length"][:])
    assert ChainBatches(load_rows(shards), 512).residues == batches.residues


@pytest.mark.parametrize("readers", [1, 2, 4])
def test_a_reader_of_each_nth_item_touches_its_own_shards_alone(shards, readers):
    """With as many runs as there are shards, each reader opens few, one at a time, and sees what one reader sees."""
    whole = ids_of(ShardBatches(shards, 512, open_shards=4), range(len(ShardBatches(shards, 512, open_shards=4))))
    touched = []
    for reader in range(readers):
        batches = ShardBatches(shards, 512, open_shards=4)
        items = range(reader, len(batches), readers)
        assert ids_of(batches, items) == [whole[item] for item in items]
        touched.append({batches.locate(item)[0] for item in items})
        assert len(batches._open) == 4 // readers  # a shard of each of its runs, and no other
    # A shard in which a run ends and the next begins is read by both.
    assert sum(map(len, touched)) <= 7 + 4


def test_a_stream_goes_on_in_the_middle_without_reading_what_came_before(shards, tmp_path):
    """The shards of what is done may even be gone."""
    batches = ShardBatches(shards, 512, open_shards=1)
    whole = ids_of(batches, range(len(batches)))
    middle = len(batches) // 2
    left = {batches.locate(item)[0] for item in range(middle, len(batches))}
    again = ShardBatches(shards, 512, open_shards=1)
    for number in set(range(7)) - left:
        again.files[number] = tmp_path / "gone.parquet"
    assert 0 < len(left) < 7
    assert ids_of(again, range(middle, len(batches))) == whole[middle:]


def test_bad_shards_are_named(shards, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"No shard data/valid-\*.parquet in .*coordformer prepare` with --splits"
    ):
        ShardBatches(shards, 512, split="valid")
    with pytest.raises(ValueError, match="`token_budget` is 64, but the longest chain has"):
        ShardBatches(shards, 64)
    with pytest.raises(ValueError, match="`open_shards` is 0"):
        ShardBatches(shards, 512, open_shards=0)
    (tmp_path / "data").mkdir()
    whole = (shards / "data" / "train-00000-of-00007.parquet").read_bytes()
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="train-00000-of-00001.parquet cannot be read .*copy or prepare it again"):
        ShardBatches(tmp_path, 512)
    path.write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])  # a hole in the pages
    batches = ShardBatches(tmp_path, 512) if _lengths_are_readable(path) else None
    if batches is not None:
        with pytest.raises(ValueError, match="train-00000-of-00001.parquet cannot be read"):
            batches[0]


def _lengths_are_readable(path):
    try:
        return pq.read_table(path, columns=["length"]).num_rows > 0
    except (OSError, pa.ArrowException):
        return False
