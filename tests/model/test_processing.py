"""Tokens, coordinates and structure files become the batch that the model's contract asks for."""

import numpy as np
import pytest
import torch
from conftest import STRUCTURES, make_config, make_model
from transformers import AutoProcessor, AutoTokenizer, EsmTokenizer

from coordformer import CoordformerProcessor, build_tokenizer, read_chains
from coordformer.data.rows import chain_to_row
from coordformer.model.chain import VOCABULARY, chain_arrays


def test_tokenizer_agrees_with_esm(tmp_path):
    """Transformers' own ESM tokenizer on ESM-2's published vocabulary is the independent source."""
    vocabulary = tmp_path / "vocab.txt"
    published = "<cls> <pad> <eos> <unk> L A G V S E R T I D P K Q N F Y M H W C X B U Z O . - <null_1> <mask>"
    vocabulary.write_text(published.replace(" ", "\n"))
    esm, ours = EsmTokenizer(str(vocabulary)), build_tokenizer()
    assert ours.get_vocab() == esm.get_vocab() and len(ours) == 33
    for name in ("cls", "pad", "eos", "unk", "mask"):
        assert getattr(ours, f"{name}_token_id") == getattr(esm, f"{name}_token_id")
    for text in ("MKTAYIAK", "M<mask>T X.-<null_1>B U", "".join(VOCABULARY[4:31]), "<mask>", "ACD<mask><mask>"):
        assert ours(text).input_ids == esm(text).input_ids
    assert ours(["MK", "A"], padding=True).attention_mask == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert ours.decode(ours("MKTAY").input_ids, skip_special_tokens=True) == "MKTAY"


def test_unknown_letters_keep_their_places():
    assert build_tokenizer()("MJJK").input_ids == [0, 20, 3, 3, 15, 2]


def test_tokenizer_and_processor_reload(tmp_path):
    processor = CoordformerProcessor(coordinate_atoms=("N", "CA"))
    processor.save_pretrained(tmp_path)
    make_config(coordinate_atoms=("N", "CA")).save_pretrained(tmp_path)
    reloaded = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(reloaded, CoordformerProcessor) and reloaded.coordinate_atoms == ("N", "CA")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for each in (reloaded.tokenizer, tokenizer):
        assert each("MK<mask>X").input_ids == [0, 20, 15, 32, 24, 2]
        assert each.model_input_names == ["input_ids", "attention_mask"]


def test_sequences_and_coordinates():
    xyz = np.arange(9, dtype=np.float64).reshape(3, 3)
    batch = CoordformerProcessor()(["MKV", "GAGA<mask>"], coords=[xyz, None])
    assert batch["input_ids"].tolist() == [[0, 20, 15, 7, 2, 1, 1], [0, 6, 5, 6, 5, 32, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0, 0], [1] * 7]
    assert batch["coords"].dtype == torch.float32
    assert batch["coords"][0, 1:4].tolist() == xyz.tolist()
    assert batch["coords"][0, [0, 4, 5, 6]].isnan().all() and batch["coords"][1].isnan().all()
    low = torch.tensor(xyz, dtype=torch.bfloat16, requires_grad=True)
    assert CoordformerProcessor()("MKV", coords=low)["coords"][0, 1:4].tolist() == xyz.tolist()
    arrays = CoordformerProcessor()("MKV", coords=torch.tensor(xyz), pad_to_multiple_of=8, return_tensors="np")
    assert arrays["input_ids"].shape == (1, 8) and isinstance(arrays["coords"], np.ndarray)


def test_chains_rows_and_files_give_the_same_batch():
    path = STRUCTURES / "1A8O.cif.gz"
    processor = CoordformerProcessor(coordinate_atoms=("N", "CA", "C"))
    chains = read_chains(path, atoms=("N", "CA", "C"))
    batches = [
        processor(structures=path),
        processor(structures=[str(path)], chain_ids=["A"]),
        processor(chains=chains),
        processor(chains=[chain_to_row(chain) for chain in chains]),
        processor([chain.sequence for chain in chains], coords=[chain.coords for chain in chains]),
    ]
    assert batches[0]["coords"].shape == (1, 72, 3, 3)
    for batch in batches[1:]:
        assert torch.equal(batch["input_ids"], batches[0]["input_ids"])
        assert torch.equal(batch["coords"].nan_to_num(1e6), batches[0]["coords"].nan_to_num(1e6))
    assert make_model(coordinate_atoms=("N", "CA", "C"))(**batches[0]).logits.isfinite().all()


def test_atoms_are_picked_by_name():
    chain = read_chains(STRUCTURES / "1A8O.cif.gz", atoms=("N", "CA", "C"))[0]
    _, coords = chain_arrays(chain, ("C", "CA"))
    np.testing.assert_array_equal(coords, chain.coords[:, [2, 1]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of `sequences`, `chains` and `structures`"),
        ({"sequences": "MK", "structures": "x.cif"}, "exactly one"),
        ({"sequences": []}, "list of sequences is empty"),
        ({"sequences": [""]}, "Sequence 0 is empty"),
        ({"sequences": ["MK", "MJK"]}, "Sequence 1 has 'J' at position 2.*not in the alphabet"),
        ({"sequences": "mkv"}, "'m' at position 1.*capitals"),
        ({"sequences": [["M", "K"]]}, "Sequence 0 is list"),
        ({"sequences": ["MKV"], "coords": []}, "`coords` has 0 entries for 1 sequences"),
        ({"sequences": "MKV", "coords": np.zeros((4, 3))}, r"shape \(4, 3\).*3 residues.*need \(3, 3\)"),
        ({"sequences": "MKV", "coords": np.zeros((3, 3, 3))}, r"shape \(3, 3, 3\).*atoms CA"),
        ({"sequences": "MKV", "coords": [[0, 0, 0], [1, 1, np.inf], [2, 2, 2]]}, "infinite at residue 2; use NaN"),
        ({"sequences": "MKV", "chain_ids": ["A"]}, "go with `structures`"),
        (
            {"chains": {"id": "1ABC_A", "sequence": "MK", "coords": [0.0] * 5}},
            r"1ABC_A: coordinates of shape \(5,\) for 2 residues",
        ),
        ({"chains": {"id": "1ABC_A", "sequence": "MK", "coords": np.zeros((3, 2))}}, r"shape \(3, 2\) for 2 residues"),
        ({"chains": {"id": "1ABC_A", "sequence": "MK"}}, "has the columns id, sequence, but.*remove_unused_columns"),
        ({"chains": "1ABC_A"}, "`chains` are Chain objects or rows"),
        ({"sequences": 5}, "`sequences` a string or a list of strings"),
        ({"sequences": "MK<eos>V"}, "'<eos>' at position 3"),
        ({"sequences": ["MK", "GA"], "coords": [None, [[0, 0], [1]]]}, "`coords` of sequence 1 are no array"),
        ({"sequences": "MK", "pad_to_multiple_of": 0}, "`pad_to_multiple_of` is 0"),
        ({"chains": [], "coords": [1]}, "`coords` go with `sequences`"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CoordformerProcessor()(**arguments)


def test_missing_atoms_are_named():
    row = {"id": "1ABC_A", "sequence": "MK", "coords": [0.0] * 6, "atoms": ["CA"]}
    with pytest.raises(
        ValueError, match=r"1ABC_A holds the atoms CA, but CB of `coordinate_atoms`.*read the structure again"
    ):
        CoordformerProcessor(coordinate_atoms=("CA", "CB"))(chains=row)


def test_a_chain_id_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="Z"):
        CoordformerProcessor()(structures=STRUCTURES / "1A8O.cif.gz", chain_ids=["Z"])


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"^absent\.cif: no such file or folder; check the path$"):
        CoordformerProcessor()(structures="absent.cif")
