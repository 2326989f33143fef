"""`model.embed_dataset` has the numbers of `coordformer embed`, whatever it is given, with and without the package."""

import dataclasses
import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CHAINS, HEADS, STRUCTURES, make_model
from transformers import AutoModel, set_seed
from transformers.utils import logging

from coordformer import CoordformerForMaskedLM, CoordformerProcessor, read_chains, read_complex
from coordformer.data.batching import fetch_rows
from coordformer.data.collator import CoordformerDataCollator
from coordformer.data.rows import chain_to_row, load_rows
from coordformer.hub.export import export
from coordformer.inference.embed import embed
from coordformer.inference.embeddings import load_embeddings
from coordformer.model.embedding import embed_dataset
from coordformer.model.predict import model_processor

POOLINGS = ("mean", "cls", None)
STRUCTURE, PROTEASE = STRUCTURES / "1orc.pdb.gz", STRUCTURES / "1hvr.pdb.gz"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    set_seed(0)
    return save(make_model(num_distance_bins=4), folder)


def save(model, folder: Path) -> Path:
    model.save_pretrained(folder)
    CoordformerProcessor(coordinate_atoms=model.config.coordinate_atoms).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(checkpoint):
    return CoordformerForMaskedLM.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> list[Path]:
    """A folder and files: several chains, two files of one entry, sequences, and chains with gaps."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "deep").mkdir()
    for name in ("1BD2.cif.gz", "1A8O.cif.gz", "1A8O.pdb.gz"):
        shutil.copy(STRUCTURES / name, folder / "deep")
    (folder / "deep" / "two.fasta").write_text(">one\nMKVLA\n>two\nGAVLIMCFYW\n")
    lines = gzip.decompress(PROTEASE.read_bytes()).decode().splitlines(keepends=True)
    kept = [line for line in lines if line.startswith("ATOM") and not 30 <= int(line[22:26]) < 36]
    (folder / "gap.pdb").write_text("".join(kept))
    chain = read_chains(folder / "gap.pdb")[0]
    assert len(chain) == 92 and chain.positions[-1] == 98  # residue 67 is a HETATM
    return [folder / "deep", folder / "gap.pdb"]


def as_the_command(checkpoint, inputs, output, **options) -> dict[str, np.ndarray]:
    embed(checkpoint, inputs, output, progress=False, **options)
    return dict(zip(*load_embeddings(output), strict=True))


def assert_same(found, expected) -> None:
    assert list(found) == list(expected)
    for name, vectors in expected.items():
        assert found[name].dtype == np.float32 and found[name].shape == vectors.shape
        np.testing.assert_allclose(found[name], vectors, rtol=0, atol=5e-6)


@pytest.mark.parametrize("reading", [{}, {"as_complex": True}, {"without_coords": True}], ids=str)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_are_those_of_the_command(checkpoint, model, inputs, pooling, reading, tmp_path):
    """Of 210 residues and more a window of 50 makes several."""
    options = {"pooling": pooling, "window": 50, **reading}
    expected = as_the_command(checkpoint, inputs, tmp_path / "out", **options)
    assert len(expected) == (6 if "as_complex" in reading else 11)
    assert_same(model.embed_dataset(inputs, progress=False, **options), expected)


def test_ids_tell_files_of_one_entry_apart(model, inputs):
    names = list(model.embed_dataset(inputs, progress=False))
    chains = [f"1BD2_{name}" for name in "ABCDE"]
    assert names == ["1A8O.cif_A", "1A8O.pdb_A", *chains, "one", "two", "gap_A", "gap_B"]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_protein_may_come_in_several_ways(model, pooling):
    chain, both = read_chains(STRUCTURE)[0], read_complex(PROTEASE)
    gapped = dataclasses.replace(chain, id="gapped", positions=chain.positions + 40 * (np.arange(71) >= 30))
    options = {"pooling": pooling, "progress": False}
    expected = model.embed_dataset([STRUCTURE, PROTEASE], as_complex=True, **options)
    expected["1ORC_A"] = expected.pop("1ORC")
    given = [
        chain,
        {"id": "dictionary", "sequence": chain.sequence, "coords": chain.coords[:, 0]},
        {"id": "spaces", "sequence": " ".join(chain.sequence), "coords": torch.tensor(chain.coords)},
        {"id": "tokens", "sequence": list(chain.sequence), "coords": chain.coords.reshape(-1).tolist(), "atoms": None},
        {**chain_to_row(chain), "id": 5},
        both,
        {**chain_to_row(both), "id": "row"},
        gapped,
        {**chain_to_row(gapped), "id": "gapped row"},
        {"id": "gapped dictionary", "sequence": chain.sequence, "coords": chain.coords, "positions": gapped.positions},
        chain.sequence,
        {"id": "sequence", "sequence": chain.sequence, "coords": None},
    ]
    found = model.embed_dataset(iter(given), **options)
    assert list(found) == [
        "1ORC_A", "dictionary", "spaces", "tokens", "5", "1HVR", "row", "gapped", "gapped row", "gapped dictionary",
        chain.sequence, "sequence",
    ]  # fmt: skip
    groups = [("1ORC_A", "dictionary", "spaces", "tokens", "5"), ("1HVR", "row")]
    groups += [("gapped", "gapped row", "gapped dictionary"), (chain.sequence, "sequence")]
    for first, *others in groups:
        for name in others:
            np.testing.assert_allclose(found[name], found[first], rtol=0, atol=5e-6)
    for name in ("1ORC_A", "1HVR"):
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=5e-6)
    apart = [found[names[0]] for names in groups if names[0] != "1HVR"]
    assert all(np.abs(one - other).max() > 0.01 for one, other in zip(apart, apart[1:] + apart[:1], strict=True))
    without = model.embed_dataset(chain, without_coords=True, **options)
    np.testing.assert_allclose(without["1ORC_A"], found[chain.sequence], rtol=0, atol=5e-6)


@pytest.mark.parametrize("token_budget", [1, 300, 100_000])
def test_rows_of_a_data_set(model, token_budget):
    """As Transformers' datasets give them, one after another; whatever the batch."""
    rows = load_rows(CHAINS, "valid").select(range(8))
    found = model.embed_dataset(rows, token_budget=token_budget, progress=False)
    assert list(found) == list(rows["id"])
    for row in fetch_rows(rows, range(8)):
        batch = CoordformerProcessor()(chains=[row])
        with torch.no_grad():
            states = model.base_model(**batch).last_hidden_state[0, 1:-1]
        np.testing.assert_allclose(found[row["id"]], states.mean(dim=0), rtol=0, atol=1e-5)


def test_masked_residues_count_as_residues(model):
    found = model.embed_dataset(["MK<mask>V", "MKXV"], pooling=None, window=3, progress=False)
    assert [vectors.shape for vectors in found.values()] == [(4, 48)] * 2
    assert np.abs(found["MK<mask>V"] - found["MKXV"]).max() > 0.01


@pytest.mark.parametrize("atoms", [("CA",), ("N", "CA", "C")])
def test_the_processor_makes_what_the_collator_makes(atoms):
    """Of a collator that masks and rotates nothing."""
    model = make_model("base", coordinate_atoms=atoms)
    tokenizer = CoordformerProcessor().tokenizer
    collate = CoordformerDataCollator(tokenizer, atoms=atoms, mlm_probability=0.0, rotate=False)
    chain = read_chains(STRUCTURES / "1A8O.cif.gz", atoms=("N", "CA", "C"))[0]
    unknown = dataclasses.replace(chain, sequence="X" + chain.sequence[1:])
    gapped = dataclasses.replace(chain, positions=chain.positions + 7 * (np.arange(70) >= 30))
    both = read_complex(STRUCTURES / "1A8O.cif.gz", assembly=1, atoms=("N", "CA", "C"))
    for each in (chain, unknown, gapped, both, chain_to_row(gapped), chain_to_row(both)):
        expected = {name: values[0].numpy() for name, values in collate([each]).items()}
        found = model_processor(model, tokenizer).encode_protein(each)
        assert found.keys() == expected.keys() - {"labels", "attention_mask"}
        for name, values in found.items():
            assert values.dtype == expected[name].dtype
            np.testing.assert_array_equal(values, expected[name])
        without = model_processor(model, tokenizer).encode_protein(each, without_coords=True)
        assert np.isnan(without["coords"]).all() and without.keys() == found.keys()


def test_chains_of_a_dictionary_are_as_far_apart_as_those_of_a_file():
    both = read_complex(PROTEASE)
    given = {"sequence": both.sequence, "coords": both.coords, "chain_lengths": both.chain_lengths}
    expected = CoordformerProcessor().encode_protein(both)
    for name, values in CoordformerProcessor().encode_protein(given).items():
        np.testing.assert_array_equal(values, expected[name])


def test_what_is_given_twice_is_computed_once(model):
    chain = read_chains(STRUCTURE)[0]
    seen = []
    hook = model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    twice = [chain, "MKV", dataclasses.replace(chain), "MKV", chain_to_row(chain), str(STRUCTURE), STRUCTURE]
    assert list(model.embed_dataset(twice, progress=False)) == ["1ORC_A", "MKV"] and sum(seen) == 2
    hook.remove()
    moved = dataclasses.replace(chain, coords=chain.coords + 1)
    for other in (moved, dataclasses.replace(chain, positions=2 * chain.positions), {"id": "1ORC_A", "sequence": "MK"}):
        with pytest.raises(ValueError, match="Two different proteins have the id 1ORC_A; give each its own"):
            model.embed_dataset([chain, other])


@pytest.mark.parametrize("head", ["base", "multi_label"])
def test_any_head_and_its_mode_stays(head, tmp_path):
    cls = HEADS[head][0]
    model = cls.from_pretrained(save(make_model(head, hidden_dropout_prob=0.5), tmp_path)).train()
    one, other = (model.embed_dataset("MKVLAG", progress=False)["MKVLAG"] for _ in range(2))
    assert all(module.training for module in model.modules())
    np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="`window` is 1"):
        model.embed_dataset("MKVLAG", window=1, progress=False)
    assert model.training and model.base_model.training
    assert not model.eval().embed_dataset("MKVLAG", progress=False).keys() ^ {"MKVLAG"} and not model.training


def test_the_vectors_dtype(model):
    full, half = (model.embed_dataset("MKVLAG", dtype=dtype)["MKVLAG"] for dtype in ("float32", torch.float16))
    assert full.dtype == np.float32 and half.dtype == np.float16
    np.testing.assert_array_equal(full.astype(np.float16), half)


def test_a_bar_shows_how_far_it_is(model, capfd):
    logging.enable_progress_bar()
    model.embed_dataset(["MKV", "MKVL"])
    assert "2/2" in capfd.readouterr().err
    model.embed_dataset(["MKV", "MKVL"], progress=False)
    assert not capfd.readouterr().err


def test_what_cannot_be_read_raises_or_is_noted(model, tmp_path):
    shutil.copy(STRUCTURE, tmp_path / "good.pdb.gz")
    (tmp_path / "broken.cif").write_text("data_broken\n")
    (tmp_path / "odd.faa").write_text(">one\nMKV\n>two\nMK1V\n")
    with pytest.raises(ValueError, match=r"broken\.cif: "):
        model.embed_dataset(tmp_path)
    problems: list[tuple[str, str, str]] = []
    assert list(model.embed_dataset(tmp_path, problems=problems, progress=False)) == ["1ORC_A", "one"]
    assert [each[:2] for each in problems] == [("broken.cif", ""), ("odd.faa", "two")]
    assert all(reason and str(tmp_path) not in reason for *_, reason in problems)


def test_the_processor_is_found_or_asked_for(checkpoint, model, tmp_path):
    expected = model.embed_dataset("MKV")
    for processor in (CoordformerProcessor(), CoordformerProcessor().tokenizer):
        fresh = type(model)(model.config).eval()
        fresh.load_state_dict(model.state_dict())
        assert_same(fresh.embed_dataset("MKV", processor), expected)
        assert_same(embed_dataset(fresh, "MKV", processor), expected)
    fresh = make_model()
    with pytest.raises(ValueError, match="The model was not loaded from a folder or the Hub.*; give `processor`, such"):
        fresh.embed_dataset("MKV")
    model.save_pretrained(tmp_path / "weights")
    with pytest.raises(ValueError, match="The tokenizer of .*weights cannot be loaded .*; give `processor`, such as"):
        AutoModel.from_pretrained(tmp_path / "weights").embed_dataset("MKV")


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ([], {}, "There is nothing to embed"),
        ("mkv", {}, "mkv: no such file or folder; check the path, or write a sequence in capital letters"),
        (5, {}, "cannot be read from int; give the path"),
        ([{"id": "x"}], {}, "cannot be read from dict"),
        (["MKV", {"id": "x", "sequence": "MJK"}], {}, "Sequence x has 'J' at position 2, which is not in the alphabet"),
        ({"id": "x", "sequence": "MK", "coords": [[0, 0, 0]]}, {}, r"`coords` of sequence x has shape \(1, 3\)"),
        (["MKV"], {"min_plddt": 70}, "`min_plddt` go with files"),
        ("MKV", {"pooling": "max"}, "`pooling` is 'max'; choose one of mean, cls, None"),
        ("MKV", {"dtype": torch.bfloat16}, "`dtype` is 'bfloat16'; choose one of float32, float16"),
        ("MKV", {"token_budget": 0}, "`token_budget` is 0"),
    ],
)
def test_unusable_inputs_and_arguments_are_named(model, inputs, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        model.embed_dataset(inputs, progress=False, **options)


def test_a_sequence_that_is_a_path_is_asked_about(model, tmp_path, monkeypatch):
    (tmp_path / "DATA").mkdir()
    shutil.copy(STRUCTURE, tmp_path / "DATA")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="'DATA' is a sequence and a path, too; give pathlib.Path, or {'sequence': 'D"):
        model.embed_dataset("DATA")
    assert list(model.embed_dataset(Path("DATA"), progress=False)) == ["1ORC_A"]
    assert list(model.embed_dataset({"sequence": "DATA"}, progress=False)) == ["DATA"]


PROGRAM = """
import sys
sys.modules["coordformer"] = None  # not to be imported, wherever it is installed

import numpy as np
from transformers import AutoModel, AutoModelForMaskedLM

folder, output, *inputs = sys.argv[1:]
sys.modules["gemmi"], gemmi = None, sys.modules.get("gemmi")
for load in (AutoModel, AutoModelForMaskedLM):
    model = load.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules")
    print(list(model.embed_dataset(["MKV", {"id": "x", "sequence": "MKV"}], progress=False)))
try:
    model.embed_dataset(inputs)
except ImportError as error:
    print(error)
"""
WITH_GEMMI = """
for name in [name for name in sys.modules if name.startswith("transformers_modules") or name == "gemmi"]:
    del sys.modules[name]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
found = {}
for pooling in ("mean", "cls", None):
    for as_complex in (False, True):
        vectors = model.embed_dataset(inputs, pooling=pooling, as_complex=as_complex, window=50, progress=False)
        found |= {f"{pooling}/{as_complex}/{name}": values for name, values in vectors.items()}
np.savez(output, **found)
"""


def test_copied_code_gives_the_same(checkpoint, inputs, tmp_path):
    """In a process that cannot import the package; sequences without gemmi, too."""
    export(checkpoint, tmp_path / "hub", check=False, progress=False)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    program = [sys.executable, "-c", PROGRAM + WITH_GEMMI, str(tmp_path / "hub"), str(tmp_path / "found.npz")]
    done = subprocess.run([*program, *map(str, inputs)], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == 2 * ["['MKV', 'x']"] + ["reading structure files needs gemmi: pip install gemmi"]
    expected = {}
    for pooling in POOLINGS:
        for as_complex in (False, True):
            options = {"pooling": pooling, "as_complex": as_complex, "window": 50}
            vectors = as_the_command(checkpoint, inputs, tmp_path / f"{pooling}{as_complex}", **options)
            expected |= {f"{pooling}/{as_complex}/{name}": values for name, values in vectors.items()}
    assert_same(dict(np.load(tmp_path / "found.npz")), expected)
