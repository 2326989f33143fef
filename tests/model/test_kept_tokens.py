"""`kept_tokens`: the last layer of some tokens gives what the whole one gives them."""

import pytest
import torch
from conftest import VARIANTS, make_model, outputs_of, pack_rows, pad_rows, random_chain

KEPT = torch.tensor([[3, 0, 9], [5, 5, 1]])


def make_batches(fields: dict) -> dict[str, dict[str, torch.Tensor]]:
    atoms = len(fields.get("coordinate_atoms", ("CA",)))
    chains = [random_chain(20, atoms), random_chain(11, atoms)]
    return {"padded": pad_rows(chains), "packed": pack_rows(chains, padding=3)}


def rows_of(kept: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return kept[: len(batch["input_ids"])]


@pytest.mark.parametrize("attention", ["sdpa", "eager", "varlen"])
@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_kept_tokens_have_the_outputs_of_all(fields, attention):
    if attention == "varlen" and fields.get("num_distance_bins"):
        pytest.skip("takes no bias")
    model = make_model(attention=attention, **fields)
    for batch in make_batches(fields).values():
        kept = rows_of(KEPT, batch)
        with torch.no_grad():
            whole, some = outputs_of(model, batch), outputs_of(model, batch | {"kept_tokens": kept})
        assert some.shape == (*kept.shape, whole.shape[-1])
        torch.testing.assert_close(some, whole.take_along_dim(kept.unsqueeze(-1), dim=1), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("fields", [VARIANTS["gated messages"], VARIANTS["paper"]], ids=["messages", "paper"])
def test_kept_tokens_of_rows_that_share_a_structure(fields):
    model, chain = make_model(**fields), random_chain(20)
    tokens = chain["input_ids"].repeat(2, 1)
    tokens[1, 4:8] = 7
    structure = model.base_model.encode_structure(**{name: chain[name] for name in ("coords", "input_ids")})
    with torch.no_grad():
        whole = model(input_ids=tokens, structure=structure).logits
        some = model(input_ids=tokens, structure=structure, kept_tokens=KEPT).logits
    torch.testing.assert_close(some, whole.take_along_dim(KEPT.unsqueeze(-1), dim=1), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["C-alphas", "backbone"])
def test_kept_tokens_of_proteinmpnn(kind):
    atoms = ("N", "CA", "C", "O") if kind == "backbone" else ("CA",)
    fields = {"encoder_type": "proteinmpnn", "coordinate_embedding": "none", "num_neighbors": 6, "num_hidden_layers": 1}
    model = make_model(coordinate_atoms=atoms, position_embedding_type="none", **fields)
    batch = pad_rows([random_chain(20, len(atoms)), random_chain(11, len(atoms))])
    with torch.no_grad():
        whole, some = outputs_of(model, batch), outputs_of(model, batch | {"kept_tokens": KEPT})
    torch.testing.assert_close(some, whole.take_along_dim(KEPT.unsqueeze(-1), dim=1))


def test_the_last_layer_computes_them_alone():
    """And no other layer; with gradients, hooks or recorded states all are computed, and the same comes out."""
    model, batch = make_model(**VARIANTS["gated messages"]), pad_rows([random_chain(20), random_chain(11)])
    widths = []
    for layer in model.coordformer.esm.encoder.layer:
        layer.output.dense.register_forward_hook(lambda _, inputs, __: widths.append(inputs[0].shape[1]))
    count, kept = len(model.coordformer.esm.encoder.layer), batch | {"kept_tokens": KEPT}
    with torch.no_grad():
        some = model(**kept).logits
    assert widths == [22] * (count - 1) + [3]
    found = [model(**kept).logits.detach()]
    with torch.no_grad():
        outputs = model(**kept, output_hidden_states=True)
        found.append(outputs.logits)
        assert outputs.hidden_states[0].shape[1] == 22
        handle = model.coordformer.esm.encoder.layer[-1].register_forward_hook(lambda *_: None)
        found.append(model(**kept).logits)
        handle.remove()
        assert set(widths[count:]) == {22}
        assert model(**batch | {"kept_tokens": KEPT[:, :0]}).logits.shape == (2, 0, 33)
    for each in found:
        torch.testing.assert_close(each, some, atol=2e-4, rtol=1e-4)


def test_gradients_reach_all_layers():
    model, batch = make_model(**VARIANTS["messages"]), pad_rows([random_chain(20), random_chain(11)])
    gradients = []
    for given in ({}, {"kept_tokens": KEPT}):
        model.zero_grad()
        logits = model(**batch, **given).logits
        (logits if given else logits.take_along_dim(KEPT.unsqueeze(-1), dim=1)).square().sum().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize("kept", [torch.tensor([3, 4]), torch.zeros(3, 1, dtype=torch.long)])
def test_other_shapes_are_named(kept):
    model, batch = make_model(), pad_rows([random_chain(20), random_chain(11)])
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match=r"`kept_tokens` has shape \(.*\); the input asks for \(batch"),
    ):
        model(**batch, kept_tokens=kept)
