"""Contacts: equal to ESM's own head, whatever the attention, and trained without keeping a map."""

import pytest
import torch
from conftest import make_config, make_esm, make_esm_batch, make_model, pad_rows, random_chain

from coordformer import CoordformerForContactPrediction, from_esm


@pytest.fixture(scope="module")
def esm():
    torch.manual_seed(0)
    model = make_esm(attn_implementation="eager")
    with torch.no_grad():
        for layer in model.esm.encoder.layer:  # sharp enough that maps differ
            layer.attention.self.query.weight.mul_(8)
            layer.attention.self.key.weight.mul_(8)
        model.esm.contact_head.regression.weight.mul_(10)
    return model


@pytest.mark.parametrize("attention", ["eager", "sdpa", "varlen"])
def test_equals_esm(esm, attention):
    """Of `EsmModel.predict_contacts`, each row alone: padding takes part in ESM's average product correction."""
    model = from_esm(esm)
    model.set_attn_implementation(attention)
    batch = make_esm_batch()
    batch["coords"][:] = torch.nan
    with torch.no_grad():
        seen = model.predict_contacts(**batch)
        assert torch.equal(seen, model.coordformer.predict_contacts(**batch))
        for row, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
            ids = batch["input_ids"][row : row + 1, :length]
            expected = esm.esm.predict_contacts(ids, torch.ones_like(ids))[0]
            assert expected.std() > 1e-2
            residues = length - 2
            assert (seen[row, :residues, :residues] - expected).abs().max() < 1e-5
            assert not seen[row, residues:].any() and not seen[row, :, residues:].any()
    assert model.config._attn_implementation == attention


def make_contact_model(**fields):
    torch.manual_seed(0)
    config = make_config(**fields)
    config._attn_implementation = "sdpa"
    return CoordformerForContactPrediction(config)


def labels_of(batch) -> torch.Tensor:
    """True contacts at 20 Å of a random walk, far enough apart, -100 for all others."""
    xyz = batch["coords"][:, 1:-1]
    distances = torch.cdist(xyz, xyz)
    place = torch.arange(xyz.shape[1])
    asked = ((place[:, None] - place[None]).abs() >= 6) & distances.isfinite()
    asked &= batch["attention_mask"][:, 1:-1, None].bool() & batch["attention_mask"][:, None, 1:-1].bool()
    return (distances < 20).long().masked_fill(~asked, -100)


def test_gradients_are_those_of_maps_that_are_kept():
    """Against the same sum over `attentions` of the eager encoder, by torch's own autograd."""
    model = make_contact_model()
    batch = pad_rows([random_chain(14, missing=0)])
    labels = labels_of(batch)
    model(**batch, labels=labels).loss.backward()
    seen = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()

    model.set_attn_implementation("eager")
    maps = torch.cat(model.coordformer(**batch, output_attentions=True).attentions, dim=1)[..., 1:-1, 1:-1]
    maps = maps + maps.transpose(-1, -2)
    rows = maps.sum(-1, keepdim=True)
    maps = maps - rows * rows.transpose(-1, -2) / maps.sum((-1, -2), keepdim=True)
    head = model.coordformer.contact_head
    logits = torch.einsum("bcij,c->bij", maps, head.weight[0]) + head.bias
    asked = labels != -100
    torch.nn.functional.binary_cross_entropy_with_logits(logits[asked], labels[asked].float()).backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {"coordformer.contact_head.weight", "coordformer.coordinate_embedding.weight"} <= set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(seen[name], gradient, atol=1e-6, rtol=1e-3)


def test_rows_do_not_depend_on_their_padding():
    model = make_contact_model(coordinate_embedding="linear", num_distance_bins=4).eval()
    rows = [random_chain(20), random_chain(9)]
    padded = model(**pad_rows(rows)).logits
    for index, row in enumerate(rows):
        residues = row["input_ids"].shape[1] - 2
        alone = model(**row).logits[0]
        assert (padded[index, :residues, :residues] - alone).abs().max() < 1e-5


def test_frozen_encoder_trains_the_head_alone():
    model = make_contact_model()
    model.coordformer.requires_grad_(False)
    model.coordformer.contact_head.requires_grad_(True)
    batch = pad_rows([random_chain(30, missing=0), random_chain(24, missing=3)])
    labels = labels_of(batch)
    optimizer = torch.optim.Adam(model.coordformer.contact_head.parameters(), lr=0.5)
    losses = []
    for _ in range(60):
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01
    assert [name for name, p in model.named_parameters() if p.grad is not None] == [
        "coordformer.contact_head.weight",
        "coordformer.contact_head.bias",
    ]


def test_a_head_goes_with_the_encoder(tmp_path):
    model = make_contact_model().eval()
    batch = pad_rows([random_chain(12)])
    model.save_pretrained(tmp_path)
    reloaded = CoordformerForContactPrediction.from_pretrained(tmp_path).eval()
    expected = model(**batch).logits.sigmoid()
    torch.testing.assert_close(reloaded(**batch).logits.sigmoid(), expected)
    base = type(model.coordformer).from_pretrained(tmp_path)
    torch.testing.assert_close(base.predict_contacts(**batch), expected)
    assert [name for name, _ in base.named_parameters() if "contact" in name] == []
    assert [name for name, _ in reloaded.named_parameters() if "contact" in name] == [
        "coordformer.contact_head.weight",
        "coordformer.contact_head.bias",
    ]


def test_bad_input_is_named():
    batch = pad_rows([random_chain(12)])
    with pytest.raises(ValueError, match="has no contact head; train a CoordformerForContactPrediction"):
        make_model().predict_contacts(**batch)
    model = make_contact_model()
    with pytest.raises(ValueError, match=r"`labels` has shape \(1, 13, 13\); .* = \(1, 12, 12\)"):
        model(**batch, labels=torch.zeros(1, 13, 13))
    with pytest.raises(ValueError, match="one chain each; leave `sequence_id` out"):
        model.predict_contacts(**batch, sequence_id=torch.zeros_like(batch["input_ids"]))
    with pytest.raises(ValueError, match="does not support (gradient|activation) checkpointing"):
        model.gradient_checkpointing_enable()
    model.coordformer.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="turn gradient checkpointing off"):
        model.train()(**batch)


def test_hidden_states_come_with_the_contacts():
    batch = pad_rows([random_chain(12), random_chain(7)])
    model = make_contact_model().eval()
    seen = model(**batch, output_hidden_states=True).hidden_states
    expected = model.coordformer(**batch, output_hidden_states=True).hidden_states
    assert len(seen) == model.config.num_hidden_layers + 1
    for states, others in zip(seen, expected, strict=True):
        torch.testing.assert_close(states, others)


def test_a_head_that_nobody_trained_is_zero():
    """It would pass for a trained one; zero says 0.5 of every pair."""
    model = make_model("base", contact_head=True)
    assert not model.contact_head.weight.any() and not model.contact_head.bias.any()
    assert make_contact_model().coordformer.contact_head.weight.any()
