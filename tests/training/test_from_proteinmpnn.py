"""Weights of ProteinMPNN under our names: what is read of them, what of the vocabulary, and what is refused.

That they compute the same is tested in tests/model/test_proteinmpnn.py.
"""

import pytest
import torch
from huggingface_hub import ModelCard
from proteinmpnn_reference import ATOMS, WIDTH, random_weights
from transformers import AutoModelForMaskedLM, AutoProcessor

from coordformer import from_proteinmpnn
from coordformer.data.training_sequences import read_training_sequences
from coordformer.hub.export import export
from coordformer.hub.push import check_folder
from coordformer.model.processing_coordformer import VOCABULARY
from coordformer.training.conversion import convert
from coordformer.training.from_proteinmpnn import ALPHABET, LICENSE_FILE
from coordformer.training.weights import NO_LOGIT


@pytest.mark.parametrize("kind", ATOMS)
def test_the_weights_say_what_they_read(kind, tmp_path):
    """A file, what it holds and the weights alone are the same; nothing of ours is left as it was made."""
    weights = random_weights(kind, layers=(2, 1))
    torch.save({"num_edges": 7, "noise_level": 0.2, "model_state_dict": weights}, tmp_path / "v.pt")
    model = from_proteinmpnn(tmp_path / "v.pt")
    config = model.config
    found = (config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.num_decoder_layers)
    assert found == (WIDTH, 4 * WIDTH, 2, 1) and config.coordinate_atoms == ATOMS[kind] and not model.training
    assert (config.num_neighbors, config.hidden_dropout_prob) == (7, 0.1)
    others = from_proteinmpnn(torch.load(tmp_path / "v.pt")), from_proteinmpnn(weights, num_neighbors=7)
    for other in others:
        assert other.config.to_dict() == config.to_dict()
        for name, tensor in other.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name
    assert from_proteinmpnn(weights, hidden_dropout_prob=0.0).config.num_neighbors == 48


def test_the_alphabet_in_our_vocabulary():
    """Its letters have their rows, X is also read for other residues, and no other token is ever predicted."""
    weights = random_weights("ca")
    model = from_proteinmpnn(weights)
    embedded = model.get_input_embeddings().weight
    for number, token in enumerate(VOCABULARY):
        row = ALPHABET.find(token) if len(token) == 1 else -1
        if row >= 0:
            assert torch.equal(embedded[number], weights["W_s.weight"][row])
            assert torch.equal(model.lm_head.weight[number], weights["W_out.weight"][row])
            assert torch.equal(model.lm_head.bias[number], weights["W_out.bias"][row])
            continue
        assert not model.lm_head.weight[number].any() and model.lm_head.bias[number] == NO_LOGIT
        expected = weights["W_s.weight"][20] if token in ("B", "U", "Z", "O", "<unk>") else torch.zeros(WIDTH)
        assert torch.equal(embedded[number], expected)


def test_a_converted_folder(tmp_path):
    """It has the processor of its atoms, and says where the weights are from and what their license is."""
    torch.save({"num_edges": 7, "model_state_dict": random_weights("backbone")}, tmp_path / "v_48_020.pt")
    summary = convert(tmp_path / "v_48_020.pt", tmp_path / "folder", kind="proteinmpnn")
    assert summary["model"] == "CoordformerForMaskedLM"
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "folder").config.num_neighbors == 7
    assert AutoProcessor.from_pretrained(tmp_path / "folder").coordinate_atoms == ATOMS["backbone"]
    known = read_training_sequences(tmp_path / "folder")
    assert (len(known), known.unknown) == (0, ("ProteinMPNN v_48_020.pt",))
    card = ModelCard.load(tmp_path / "folder" / "README.md")
    assert card.data.license == "mit"
    for words in ("v_48_020.pt", "https://github.com/dauparas/ProteinMPNN", "Copyright (c) 2022 Justas Dauparas"):
        assert words in card.text
    with pytest.raises(ValueError, match="holds a model"):
        convert(tmp_path / "v_48_020.pt", tmp_path / "folder", kind="proteinmpnn")
    with pytest.raises(ValueError, match="`without_coords`"):
        convert(tmp_path / "v_48_020.pt", tmp_path / "other", kind="proteinmpnn", without_coords=True)


def test_an_exported_folder_keeps_the_license(tmp_path):
    """The text of the weights' own, beside that of the code."""
    torch.save(random_weights("ca"), tmp_path / "v.pt")
    convert(tmp_path / "v.pt", tmp_path / "folder", kind="proteinmpnn")
    summary = export(tmp_path / "folder", tmp_path / "exported", check=False, progress=False)
    assert LICENSE_FILE in summary["files"]
    texts = [(tmp_path / "exported" / name).read_text() for name in (LICENSE_FILE, "LICENSE")]
    assert "Copyright (c) 2022 Justas Dauparas" in texts[0] and texts[0].startswith("MIT License")
    assert "Apache License" in texts[1]
    assert ModelCard.load(tmp_path / "exported" / "README.md").data.license == "mit"
    assert f"({LICENSE_FILE})" in (tmp_path / "exported" / "README.md").read_text()
    check_folder(tmp_path / "exported")  # so it is pushed


class Code:
    """Runs where it is unpickled."""

    def __reduce__(self):
        return print, ("unpickled",)


def test_what_is_refused(tmp_path, capsys):
    weights = random_weights("ca")
    torch.save({"model_state_dict": weights, "code": Code()}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match=r"code.pt does not load with weights_only=True"):
        from_proteinmpnn(tmp_path / "code.pt")
    assert "unpickled" not in capsys.readouterr().out
    with pytest.raises(OSError):
        from_proteinmpnn(tmp_path / "nothing.pt")
    torch.save([1], tmp_path / "list.pt")
    for others in ({"embed.weight": torch.ones(2)}, tmp_path / "list.pt"):
        with pytest.raises(ValueError, match="no weights of ProteinMPNN; give a file of its ca_model_weights"):
            from_proteinmpnn(others)
    for name in ("W_out.bias", "encoder_layers.1.W2.weight"):
        with pytest.raises(ValueError, match="ProteinMPNN"):
            from_proteinmpnn({key: value for key, value in weights.items() if key != name})
    with pytest.raises(ValueError, match="colour: no field of CoordformerConfig"):
        from_proteinmpnn(weights, colour=1)
    with pytest.raises(ValueError, match=r"do not fit, with the overrides .*num_hidden_layers"):
        from_proteinmpnn(weights, num_hidden_layers=4)
    with pytest.raises(ValueError, match="do not fit"):
        from_proteinmpnn(weights, coordinate_atoms=ATOMS["backbone"])
