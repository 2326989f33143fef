"""Embeddings are the model's own states, whatever the batch, the window, the format, and how often a run was killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import CHAINS, STRUCTURES, make_model
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import set_seed

from coordformer import Complex, CoordformerForMaskedLM, CoordformerProcessor, read_chains, read_complex
from coordformer.data.batching import fetch_rows
from coordformer.data.pack import write_pack
from coordformer.data.rows import load_rows
from coordformer.inference.embed import describe, embed
from coordformer.inference.embeddings import load_embeddings, write_shard
from coordformer.model.embedding import embed_chains
from coordformer.model.windows import window_starts
from coordformer_command import main

PROCESSOR = CoordformerProcessor()


@pytest.fixture(scope="module")
def chains():
    """30 real chains as rows, and one of them without a single coordinate."""
    rows = fetch_rows(load_rows(CHAINS, "valid"), range(30))
    rows[4]["coords"] = np.full_like(rows[4]["coords"], np.nan)
    return rows


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    set_seed(0)
    save(make_model(), folder)
    return folder


def save(model, folder):
    model.save_pretrained(folder)
    CoordformerProcessor(coordinate_atoms=model.config.coordinate_atoms).save_pretrained(folder)


@torch.no_grad()
def states_alone(model, chain, coords: bool = True) -> torch.Tensor:
    """Last hidden states of a chain by itself, special tokens included."""
    processor = CoordformerProcessor(coordinate_atoms=model.config.coordinate_atoms)
    batch = processor(chains=[chain])
    if not coords:
        del batch["coords"]
    return model.base_model(**batch).last_hidden_state[0]


def quietly(checkpoint, inputs, output, **options) -> dict[str, int]:
    return embed(checkpoint, inputs, output, progress=False, **options)


@pytest.mark.parametrize("token_budget", [1, 700, 100_000])
def test_vectors_are_those_of_each_chain_alone(chains, token_budget):
    """One chain a batch, a few, all: special tokens and padding have no part in the residues."""
    model = make_model()
    expected = [states_alone(model, chain) for chain in chains]
    for pooling in ("mean", "cls", None):
        actual = embed_chains(model, chains, PROCESSOR.tokenizer, pooling, token_budget=token_budget)
        for vectors, states, chain in zip(actual, expected, chains, strict=True):
            assert len(states) == len(chain["sequence"]) + 2 and vectors.dtype == np.float32
            wanted = {"mean": states[1:-1].mean(dim=0), "cls": states[0], None: states[1:-1]}[pooling]
            np.testing.assert_allclose(vectors, wanted, atol=1e-5, rtol=0)


def test_without_coordinates(chains):
    model = make_model()
    given, not_given = (
        embed_chains(model, chains[:5], PROCESSOR.tokenizer, without_coords=without) for without in (False, True)
    )
    for chain, with_coords, without in zip(chains, given, not_given, strict=False):
        np.testing.assert_allclose(without, states_alone(model, chain, coords=False)[1:-1].mean(dim=0), atol=1e-5)
        assert np.allclose(with_coords, without, atol=1e-5) == np.isnan(chain["coords"]).all()


@pytest.mark.parametrize("positions", ["rotary", "absolute"])
def test_long_chains_are_averaged_over_windows(chains, positions):
    """Against windows cut by hand. Absolute positions end before `window` does, and bound it."""
    fields = {"position_embedding_type": "absolute", "max_position_embeddings": 44} if positions == "absolute" else {}
    model = make_model(**fields)
    chain = max(chains, key=lambda row: len(row["sequence"]))
    n, window = len(chain["sequence"]), 40  # of 44 positions the padding token has two, <cls> and <eos> have two
    assert n > 3 * window
    total, visits, firsts = torch.zeros(n, 48), torch.zeros(n, 1), []
    for start in window_starts(n, window):
        inside = slice(start, start + window)
        coords = np.reshape(chain["coords"], (n, 3))[inside]
        states = states_alone(model, {"sequence": chain["sequence"][inside], "coords": coords.reshape(-1)})
        total[inside] += states[1:-1]
        visits[inside] += 1
        firsts.append(states[0])
    residues = total / visits
    expected = {None: residues, "mean": residues.mean(dim=0), "cls": torch.stack(firsts).mean(dim=0)}
    few = [chain, chains[0], chains[1]]
    for pooling, wanted in expected.items():
        for token_budget in (1, 10_000):
            options = {"window": 40 if positions == "rotary" else 1000, "token_budget": token_budget}
            actual = embed_chains(model, few, PROCESSOR.tokenizer, pooling, **options)
            np.testing.assert_allclose(actual[0], wanted, atol=1e-5, rtol=0)
            assert [len(vectors) for vectors in actual] == (
                [len(row["sequence"]) for row in few] if pooling is None else [48] * 3
            )


@pytest.mark.parametrize("head", ["base", "multi_label", "token"])
def test_any_head_will_do(head, tmp_path):
    model = make_model(head, coordinate_atoms=("N", "CA", "C"))
    save(model, tmp_path / "model")
    quietly(tmp_path / "model", STRUCTURES / "1BD2.cif.gz", tmp_path / "out")
    ids, vectors = load_embeddings(tmp_path / "out")
    chains = read_chains(STRUCTURES / "1BD2.cif.gz", atoms=("N", "CA", "C"))
    assert ids == [chain.id for chain in chains] and vectors.shape == (5, 48)
    for chain, vector in zip(chains, vectors, strict=True):
        np.testing.assert_allclose(vector, states_alone(model, chain)[1:-1].mean(dim=0), atol=1e-5, rtol=0)


def test_bfloat16_computes_so_and_writes_float32(checkpoint, tmp_path):
    for dtype in ("float32", "bfloat16"):
        quietly(checkpoint, STRUCTURES / "1A8O.cif.gz", tmp_path / dtype, dtype=dtype)
    (_, high), (_, low) = load_embeddings(tmp_path / "float32"), load_embeddings(tmp_path / "bfloat16")
    assert low.dtype == np.float32 and 0 < np.abs(high - low).max() < 0.1 * np.abs(high).max()


@pytest.mark.parametrize("pooling", ["mean", "cls", None])
def test_both_formats_hold_the_same_numbers(checkpoint, chains, pooling, tmp_path):
    """As a user reads them, without this package."""
    rows = load_rows(CHAINS, "valid").select(range(5))
    rows.to_parquet(tmp_path / "chains.parquet")
    options = {"inputs": tmp_path / "chains.parquet", "pooling": pooling, "entries_per_part": 2}
    for file_format in ("parquet", "safetensors"):
        counts = quietly(checkpoint, output=tmp_path / file_format, file_format=file_format, **options)
        lengths = list(rows["length"])
        assert counts == {"chains": 5, "residues": sum(lengths), "shards": 3, "rejected": 0}
    (names, left), (other_names, right) = (load_embeddings(tmp_path / name) for name in ("parquet", "safetensors"))
    assert names == other_names == list(rows["id"])
    assert [x.shape for x in left] == ([(n, 48) for n in lengths] if pooling is None else [(48,)] * 5)
    assert all(np.array_equal(one, other) for one, other in zip(left, right, strict=True))

    table = pq.read_table(tmp_path / "parquet" / "shard-00001-of-00003.parquet")
    assert table["id"].to_pylist() == names[2:4] and table["length"].to_pylist() == lengths[2:4]
    assert np.array_equal(np.array(table["embedding"][1].as_py(), np.float32), np.ravel(left[3]))
    with safe_open(tmp_path / "safetensors" / "shard-00001-of-00003.safetensors", framework="np") as file:
        assert json.loads(file.metadata()["ids"]) == names[2:4]
        one = file.get_tensor(names[3]) if pooling is None else file.get_tensor("embeddings")[1]
    assert np.array_equal(one, left[3])


@pytest.mark.parametrize("pooling", [None, "mean"])
def test_vectors_of_residues_have_their_numbers(checkpoint, pooling, tmp_path):
    """Of a file, of FASTA, which has none, and of a complex, which is one protein; in both formats."""
    (tmp_path / "one.fasta").write_text(">one\nMKV\n")
    alone, both = read_chains(STRUCTURES / "1orc.pdb.gz")[0], read_complex(STRUCTURES / "1hvr.pdb.gz")
    shutil.copy(STRUCTURES / "1orc.pdb.gz", tmp_path / "first.pdb.gz")
    inputs = [tmp_path / "first.pdb.gz", tmp_path / "one.fasta"]
    columns = ("residue_numbers", "chain_names", "chain_lengths")
    for file_format in ("parquet", "safetensors"):
        quietly(checkpoint, inputs, tmp_path / file_format, pooling=pooling, file_format=file_format)
        path = tmp_path / file_format / f"shard-00000-of-00001.{file_format}"
        expected = {"residue_numbers": [list(alone.residue_numbers), None]} | dict.fromkeys(columns[1:], [None] * 2)
        assert residue_columns(path) == ({} if pooling else expected)

        model = CoordformerForMaskedLM.from_pretrained(checkpoint).eval()
        vectors = embed_chains(model, [both, alone], PROCESSOR.tokenizer, pooling)
        states = states_alone(model, both)[1:-1]
        np.testing.assert_allclose(vectors[0], states if pooling is None else states.mean(dim=0), atol=1e-5, rtol=0)
        path = tmp_path / f"complex.{file_format}"
        write_shard(path, [both, alone], vectors)
        expected = {"residue_numbers": [list(both.residue_numbers), list(alone.residue_numbers)]}
        expected |= {"chain_names": [["A", "B"], None], "chain_lengths": [[99, 99], None]}
        assert residue_columns(path) == ({} if pooling else expected)


@pytest.mark.parametrize("file_format", ["parquet", "safetensors"])
def test_residues_are_read_with_their_vectors(checkpoint, file_format, tmp_path):
    """Files by their paths, chains as in the file; over several shards, FASTA without numbers, a complex as one."""
    paths = [tmp_path / name for name in ("1orc.pdb.gz", "1hvr.pdb.gz", "z.fasta")]  # not in the order of their names
    for path in paths[:2]:
        shutil.copy(STRUCTURES / path.name, path)
    paths[2].write_text(">one\nMKV\n")
    options = {"pooling": None, "file_format": file_format, "entries_per_part": 1}
    chains = [chain for path in sorted(paths[:2]) for chain in read_chains(path)]
    complexes = [read_complex(path) for path in sorted(paths[:2])]
    for proteins in (chains, complexes):
        quietly(checkpoint, paths, out := tmp_path / "out", as_complex=proteins is complexes, **options)
        ids, vectors, residues = load_embeddings(out, residues=True)
        expected = {
            protein.id: {
                "residue_numbers": list(protein.residue_numbers),
                "chain_names": list(protein.chain_names) if isinstance(protein, Complex) else None,
                "chain_lengths": list(protein.chain_lengths) if isinstance(protein, Complex) else None,
            }
            for protein in proteins
        }
        expected["one"] = dict.fromkeys(("residue_numbers", "chain_names", "chain_lengths"))
        assert ids == load_embeddings(out)[0] == [*(protein.id for protein in proteins), "one"]
        assert dict(zip(ids, residues, strict=True)) == expected
        assert [len(vector) for vector in vectors] == [len(expected[name]["residue_numbers"] or "MKV") for name in ids]
        shutil.rmtree(out)


def test_vectors_of_chains_have_no_residues(checkpoint, tmp_path):
    quietly(checkpoint, STRUCTURES / "1orc.pdb.gz", tmp_path / "out")
    with pytest.raises(ValueError, match="out has a vector for each chain, and none for residues; .*--per_residue"):
        load_embeddings(tmp_path / "out", residues=True)


def residue_columns(path: Path) -> dict:
    """What a shard says of its residues."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        return {name: table[name].to_pylist() for name in table.column_names[3:]}
    with safe_open(path, framework="np") as file:
        return {name: json.loads(text) for name, text in sorted(file.metadata().items()) if name != "ids"}


def test_a_folder_of_an_older_version_is_read(checkpoint, tmp_path):
    """Whose shards say nothing of residues."""
    for file_format in ("parquet", "safetensors"):
        out = tmp_path / file_format
        quietly(checkpoint, STRUCTURES / "1orc.pdb.gz", out, pooling=None, file_format=file_format)
        ids, vectors = load_embeddings(out)
        path = out / f"shard-00000-of-00001.{file_format}"
        if file_format == "parquet":
            pq.write_table(pq.read_table(path).select(["id", "length", "embedding"]), path)
        else:
            save_file({ids[0]: vectors[0]}, path, metadata={"ids": json.dumps(ids)})
        again, same, residues = load_embeddings(out, residues=True)
        assert residues == [{"residue_numbers": None, "chain_names": None, "chain_lengths": None}]
        assert again == ids and np.array_equal(same[0], vectors[0]) and not residue_columns(path)


def test_a_packed_file_is_a_data_set(checkpoint, tmp_path):
    rows = load_rows(CHAINS, "valid").select(range(4))
    rows.to_parquet(tmp_path / "chains.parquet")
    write_pack(rows, tmp_path / "chains.safetensors", progress=False)
    for kind in ("parquet", "safetensors"):
        quietly(checkpoint, tmp_path / f"chains.{kind}", tmp_path / kind, split="valid")
    (ids, vectors), (same, packed) = (load_embeddings(tmp_path / kind) for kind in ("parquet", "safetensors"))
    assert ids == same == list(rows["id"])
    np.testing.assert_allclose(packed, vectors, atol=0.05)  # it rounds to 0.01 Å


def test_a_sequence_is_a_structure_without_coordinates(checkpoint, tmp_path):
    structure = STRUCTURES / "1BD2.cif.gz"
    fasta = tmp_path / "sequences.fa"
    fasta.write_text(
        "".join(f">{chain.id} of {structure.name}\n{chain.sequence}\n" for chain in read_chains(structure))
    )
    quietly(checkpoint, fasta, tmp_path / "fasta")
    quietly(checkpoint, [structure], tmp_path / "structure", without_coords=True)
    (ids, vectors), (same, expected) = load_embeddings(tmp_path / "fasta"), load_embeddings(tmp_path / "structure")
    assert ids == same and len(ids) == 5
    np.testing.assert_array_equal(vectors, expected)


def test_what_cannot_be_read_is_listed_and_costs_nothing_else(checkpoint, tmp_path, capsys, caplog):
    inputs = tmp_path / "inputs"
    (inputs / "more").mkdir(parents=True)
    for name in ("1A8O.cif.gz", "1A8O.pdb.gz", "3jqh.bcif.gz", "1BD2.cif.gz"):
        shutil.copy(STRUCTURES / name, inputs)
    (inputs / "more" / "broken.cif").write_text("data_broken\n")
    (inputs / "more" / "a.fasta").write_text(">one\nMKV\n>1A8O_A\nMKV\n")
    (inputs / "more" / "b.FAA").write_text(">two\nMK1V\n")
    command = ["embed", str(checkpoint), str(inputs), "--output", str(tmp_path / "out"), "--quiet", "--json"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["chains"] == 9 and json.loads(printed.out)["rejected"] == 3
    assert "3 files or chains were left out; the first: " in caplog.text
    lines = [line.split("\t") for line in (tmp_path / "out" / "rejected.tsv").read_text().splitlines()]
    assert lines[0] == ["file", "chain", "reason"]
    reasons = {(name, chain): reason for name, chain, reason in lines[1:]}
    assert reasons.keys() == {("3jqh.bcif.gz", ""), ("more/broken.cif", ""), ("more/b.FAA", "two")}
    assert "BinaryCIF is not supported" in reasons["3jqh.bcif.gz", ""] and "1" in reasons["more/b.FAA", "two"]
    ids, _ = load_embeddings(tmp_path / "out")
    assert ids == ["1A8O.cif_A", "1A8O.pdb_A", *(f"1BD2_{name}" for name in "ABCDE"), "one", "1A8O_A"]
    assert main(command) == 0 and json.loads(capsys.readouterr().out)["rejected"] == 3  # nothing is left to do


def test_chains_are_chosen_by_name(checkpoint, tmp_path):
    command = ["embed", str(checkpoint), str(STRUCTURES / "1BD2.cif.gz"), "--output", str(tmp_path / "out"), "--quiet"]
    assert main([*command, "--chains", "B", "D", "--per_residue", "--format", "safetensors"]) == 0
    ids, vectors = load_embeddings(tmp_path / "out")
    lengths = {chain.id: len(chain) for chain in read_chains(STRUCTURES / "1BD2.cif.gz")}
    assert ids == ["1BD2_B", "1BD2_D"] and [len(each) for each in vectors] == [lengths[name] for name in ids]


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["parquet", "safetensors"])
def test_a_killed_run_goes_on(checkpoint, file_format, tmp_path):
    """SIGKILL between two of 80 shards; then the bytes are those of a run that nobody stopped."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    load_rows(CHAINS, "valid").select(range(160)).to_parquet(tmp_path / "chains.parquet")
    options = ["--format", file_format, "--entries_per_part", "2"]
    command = ["embed", str(checkpoint), str(tmp_path / "chains.parquet"), *options, "--quiet", "--output"]
    process = subprocess.Popen(
        [sys.executable, "-m", "coordformer", *command, str(killed)],
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    while not (killed / "parts" / "00002-of-00080.json").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in (killed / "parts").glob("*.json")}
    assert 3 <= len(before) < 80
    with pytest.raises(ValueError, match=f"killed has {len(before)} of 80 shards; run the same"):
        load_embeddings(killed)
    for name in ("shard-00079-of-00080.parquet.tmp", "parts/00079-of-00080.json.tmp"):
        (killed / name).write_text("what a kill may leave")

    assert main([*command, str(killed)]) == main([*command, str(whole)]) == 0
    assert all(path.stat().st_mtime_ns == time_written for path, time_written in before.items())
    contents = [
        {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} for folder in (killed, whole)
    ]
    assert contents[0] == contents[1] and len(contents[0]) == 161


def test_a_missing_shard_is_made_again(checkpoint, tmp_path):
    options = {"inputs": STRUCTURES / "1BD2.cif.gz", "output": tmp_path / "out"}
    quietly(checkpoint, **options)
    _, expected = load_embeddings(tmp_path / "out")
    (tmp_path / "out" / "shard-00000-of-00001.parquet").unlink()
    quietly(checkpoint, **options)
    np.testing.assert_array_equal(load_embeddings(tmp_path / "out")[1], expected)


def test_other_contents_of_a_file_are_refused(checkpoint, tmp_path):
    shutil.copy(STRUCTURES / "1BD2.cif.gz", tmp_path / "structures.cif.gz")
    options = {"inputs": [tmp_path / "structures.cif.gz"], "output": tmp_path / "out"}
    quietly(checkpoint, **options)
    size = (tmp_path / "structures.cif.gz").stat().st_size
    (tmp_path / "structures.cif.gz").write_bytes(bytes(size))  # as long as before
    message = "what part 00000-of-00001 was made of, structures.cif.gz, has changed since; choose another output folder"
    with pytest.raises(ValueError, match=message):
        quietly(checkpoint, **options)


def test_other_coordinates_of_the_same_chains_are_refused(checkpoint, tmp_path):
    rows = load_rows(CHAINS, "valid").select(range(3))
    rows.to_parquet(tmp_path / "chains.parquet")
    quietly(checkpoint, tmp_path / "chains.parquet", tmp_path / "out")
    moved = rows.map(lambda row: {"coords": [*row["coords"][:-1], row["coords"][-1] + 1]})
    moved.to_parquet(tmp_path / "chains.parquet")
    with pytest.raises(ValueError, match="made of, rows 0 to 2 of chains.parquet, has changed since"):
        quietly(checkpoint, tmp_path / "chains.parquet", tmp_path / "out")


def test_a_folder_in_which_nothing_was_embedded_can_be_used_again(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="1BD2.cif.gz: no protein chain Z; the file has A, B, C, D, E"):
        quietly(checkpoint, STRUCTURES / "1BD2.cif.gz", tmp_path / "out", chain_ids=["Z"])
    assert quietly(checkpoint, STRUCTURES / "1BD2.cif.gz", tmp_path / "out", chain_ids=["C"])["chains"] == 1
    assert not (tmp_path / "out" / "rejected.tsv").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file, which is a file; give a folder"):
        quietly(checkpoint, STRUCTURES / "1BD2.cif.gz", tmp_path / "file")


def test_other_embeddings_in_the_same_folder_are_refused(checkpoint, tmp_path):
    inputs = [STRUCTURES / "1A8O.cif.gz"]
    quietly(checkpoint, inputs, tmp_path / "out")
    before = (tmp_path / "out" / "shard-00000-of-00001.parquet").read_bytes()
    trained = CoordformerForMaskedLM.from_pretrained(checkpoint)
    trained.coordformer.coordinate_embedding.weight.data[0, 0] += 1e-3
    save(trained, tmp_path / checkpoint.name)
    for change, message in (
        ({"pooling": None}, "pooling: 'mean' -> None"),
        ({"dtype": "bfloat16"}, "dtype: 'float32' -> 'bfloat16'"),
        ({"window": 50, "without_coords": True}, "without_coords: False -> True; window: 1024 -> 50"),
        ({"file_format": "safetensors"}, "format: 'parquet' -> 'safetensors'"),
        ({"entries_per_part": 7}, "entries_per_part: 1000 -> 7"),
        ({"inputs": [STRUCTURES / "1A8O.pdb.gz"]}, "other inputs"),
        ({"inputs": CHAINS, "split": "valid"}, "split: None -> 'valid'.*other inputs"),
    ):
        with pytest.raises(ValueError, match=rf"out holds another run .*{message}.*; choose another output folder"):
            quietly(checkpoint, **{"inputs": inputs, "output": tmp_path / "out"} | change)
    with pytest.raises(ValueError, match=r"\(other weights\)"):
        quietly(tmp_path / checkpoint.name, inputs, tmp_path / "out")
    assert (tmp_path / "out" / "shard-00000-of-00001.parquet").read_bytes() == before
    # Of no consequence: the budget, and where the same weights and files lie.
    moved = shutil.copytree(checkpoint, tmp_path / "moved")
    shutil.copy(inputs[0], tmp_path)
    quietly(moved, tmp_path / "1A8O.cif.gz", tmp_path / "out", token_budget=100)
    (tmp_path / "out" / "run.json").unlink()
    with pytest.raises(ValueError, match="out holds results without a run.json"):
        quietly(checkpoint, inputs, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": []}, "There is nothing to read; give structure or FASTA files"),
        ({"inputs": ["x.cif"], "split": "valid"}, "`split` is 'valid', but files have no splits"),
        ({"inputs": ["nowhere.cif"]}, "nowhere.cif: no such file or folder"),
        ({"chain_ids": ["A"]}, "`chain_ids` and `min_plddt` go with files"),
        ({"min_plddt": 70.0}, "`chain_ids` and `min_plddt` go with files"),
        ({"pooling": "max"}, "`pooling` is 'max'; choose one of mean, cls, None"),
        ({"file_format": "csv"}, "`file_format` is 'csv'; choose one of parquet, safetensors"),
        ({"token_budget": 0}, "`token_budget` is 0; it must be at least 1"),
        ({"window": 1}, "`window` is 1; it must be at least 2"),
        ({"entries_per_part": 0}, "`entries_per_part` is 0; it must be at least 1"),
        ({"shard": "4/3"}, "`shard` is '4/3'; write the number of this job and that of all"),
        ({"inputs": [Path(__file__)]}, "test_embed.py: neither mmCIF .* nor PDB"),
        ({"inputs": [STRUCTURES / "1A8O.cif.gz"], "chain_ids": ["Z"]}, "1A8O.cif.gz: no protein chain Z"),
    ],
)
def test_bad_arguments_are_named(checkpoint, tmp_path, options, message):
    with pytest.raises((ValueError, OSError), match=message):
        quietly(checkpoint, **{"inputs": CHAINS, "output": tmp_path / "out"} | options)
    assert not list(tmp_path.glob("out/shard-*")) and not list(tmp_path.glob("out/parts/*"))


def test_chains_of_one_id_are_refused(checkpoint, tmp_path):
    load_rows(CHAINS, "valid").select([0, 1, 0]).to_parquet(tmp_path / "twice.parquet")
    with pytest.raises(ValueError, match="1 ids of .*twice.parquet stand for several chains, such as "):
        quietly(checkpoint, tmp_path / "twice.parquet", tmp_path / "out")


def test_a_folder_without_embeddings_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="No embeddings in .*; give the output of `coordformer embed`"):
        load_embeddings(tmp_path)


def test_the_summary_in_words():
    counts = {"chains": 1, "residues": 2000, "shards": 3}
    assert describe(counts) == "1 chain with 2,000 residues in 3 shards"


def test_residues_without_a_place_are_counted(tmp_path, caplog):
    """Cro's seven; not of a sequence alone, nor where no coordinates are given."""
    checkpoint = tmp_path / "model"
    make_model(num_qk_points=1).save_pretrained(checkpoint)
    CoordformerProcessor().save_pretrained(checkpoint)
    cro = STRUCTURES / "1orc.pdb.gz"
    (tmp_path / "a.fasta").write_text(">a\nMKV\n")
    quietly(checkpoint, [cro, tmp_path / "a.fasta"], tmp_path / "out")
    line = "7 residues without a place in the structure: their vectors are of the sequence alone"
    assert caplog.messages == [line]
    caplog.clear()
    quietly(checkpoint, cro, tmp_path / "blind", without_coords=True)
    assert not caplog.messages
