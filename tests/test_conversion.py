"""`from_esm` gives a model that is ESM-2 until it learns to use coordinates."""

import pytest
import torch
from conftest import pad_rows, random_chain
from transformers import BertConfig, BertModel, EsmConfig, EsmForMaskedLM, EsmModel

from coordformer import CoordformerForTokenClassification
from coordformer.conversion import from_esm


def make_esm(cls=EsmForMaskedLM, **fields):
    shape = {
        "vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32, "hidden_size": 64, "num_hidden_layers": 4,
        "num_attention_heads": 4, "intermediate_size": 128, "position_embedding_type": "rotary", "token_dropout": True,
        "layer_norm_eps": 1e-5, "emb_layer_norm_before": False,
    }  # fmt: skip
    attention = fields.pop("attn_implementation", "sdpa")
    model = cls(EsmConfig(**shape | fields, attn_implementation=attention)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)  # biases and norms, too
    return model


def make_batch():
    batch = pad_rows([random_chain(40), random_chain(25)])
    batch["input_ids"] = batch["input_ids"].where(batch["attention_mask"] == 1, 1)
    batch["input_ids"][0, 3:11] = 32  # masked, so that token dropout rescales
    return batch


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("coords", [True, False], ids=["with coords", "without coords"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"position_embedding_type": "absolute", "emb_layer_norm_before": True}, {"token_dropout": False}],
    ids=["esm2", "esm1b", "no token dropout"],
)
def test_equals_esm_at_first(fields, coords, attention):
    esm = make_esm(**fields, attn_implementation=attention)
    model = from_esm(esm)
    assert model.config._attn_implementation == attention
    batch = make_batch()
    xyz = batch.pop("coords")
    expected = esm(**batch, output_hidden_states=True)
    actual = model(**batch, coords=xyz if coords else None, output_hidden_states=True)
    real = batch["attention_mask"].bool()
    assert (actual.logits - expected.logits)[real].abs().max() < 1e-6
    assert len(actual.hidden_states) == len(expected.hidden_states) == 5
    for left, right in zip(actual.hidden_states, expected.hidden_states, strict=True):
        assert (left - right)[real].abs().max() < 1e-6


def test_coordinates_get_a_gradient():
    model = from_esm(make_esm())
    batch = make_batch()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    assert model.coordformer.coordinate_embedding.weight.grad.abs().max() > 0


def test_reads_a_folder_and_keeps_dtype(tmp_path):
    esm = make_esm().to(torch.bfloat16)
    esm.save_pretrained(tmp_path)
    model = from_esm(tmp_path, coordinate_embedding="quadratic", coordinate_atoms=("N", "CA", "C"))
    assert model.dtype == torch.bfloat16
    assert model.coordformer.coordinate_embedding.weight.shape == (64, 15)
    assert model.config.token_dropout


def test_another_head_starts_from_the_saved_model(tmp_path):
    esm = make_esm()
    from_esm(esm).save_pretrained(tmp_path)
    model = CoordformerForTokenClassification.from_pretrained(tmp_path, num_labels=3)
    batch = make_batch()
    expected = esm.esm(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    actual = model.coordformer(**batch).last_hidden_state
    assert (actual - expected)[batch["attention_mask"].bool()].abs().max() < 1e-5


def test_an_encoder_gets_a_new_head():
    esm = make_esm(EsmModel)
    model = from_esm(esm, lm_head="linear")
    batch = make_batch()
    expected = esm(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    actual = model.coordformer(**batch).last_hidden_state
    assert (actual - expected)[batch["attention_mask"].bool()].abs().max() < 1e-6


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="BertModel cannot be converted"):
        from_esm(BertModel(BertConfig(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)))
    with pytest.raises(ValueError, match="coordinate_embeding: no field of CoordformerConfig"):
        from_esm(make_esm(), coordinate_embeding="quadratic")
    with pytest.raises(ValueError, match="overrides {'hidden_size': 32} do not fit"):
        from_esm(make_esm(), hidden_size=32)
    with pytest.raises(ValueError, match="overrides {'lm_head': 'linear'} do not fit.*lm_head.dense"):
        from_esm(make_esm(), lm_head="linear")
