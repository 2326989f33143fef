"""The model keeps the contract for coordinates and segments, and behaves as a Transformers model does."""

import copy
import inspect
import itertools

import pytest
import torch
from conftest import (
    HEADS,
    VARIANTS,
    make_config,
    make_labels,
    make_model,
    outputs_of,
    pack_rows,
    pad_rows,
    random_chain,
)
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from coordformer import CoordformerForMaskedLM, CoordformerModel
from coordformer.data.collator import rotations_from_normals
from coordformer.model.structure_layers import DistanceBias

AUTO = {
    "base": AutoModel,
    "masked_lm": AutoModelForMaskedLM,
    "single_label": AutoModelForSequenceClassification,
    "multi_label": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
}
# --- coordinates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("shift", "tolerance"), [(100.0, 1e-4), (1000.0, 1e-3)])
def test_translation_changes_nothing(head, shift, tolerance):
    model = make_model(head)
    batch = pad_rows([random_chain(30), random_chain(17)])
    before = outputs_of(model, batch)
    batch["coords"] = batch["coords"] + torch.tensor([shift, -shift, shift / 3])
    assert (outputs_of(model, batch) - before).abs().max() < tolerance


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_nothing_observed_has_one_meaning(fields):
    model = make_model(**fields)
    atoms = len(model.config.coordinate_atoms)
    batch = pad_rows([random_chain(20, atoms), random_chain(9, atoms)])
    coords = batch.pop("coords")
    expected = outputs_of(model, batch)
    for given in (
        {"coords": torch.full_like(coords, torch.nan)},
        {"coords": coords.nan_to_num(0.0), "coords_mask": torch.zeros(coords.shape[:2], dtype=torch.bool)},
        {"coords": coords, "coords_mask": torch.zeros(*coords.shape[:2], atoms, dtype=torch.bool)},
    ):
        assert torch.equal(outputs_of(model, batch | given), expected)
    if model.config.coordinate_embedding != "none":
        assert (outputs_of(model, batch | {"coords": coords}) - expected).abs().max() > 1e-3


def test_nan_and_mask_are_combined():
    model = make_model(coordinate_atoms=("N", "CA", "C"))
    row = random_chain(12, atoms=3, missing=0)
    by_nan = row["coords"].clone()
    by_nan[0, 4, 1] = torch.nan
    by_nan[0, 6] = torch.nan
    half = row["coords"].clone()
    half[0, 4, 1, 2] = torch.nan  # one missing number makes the atom missing
    mask = torch.ones(1, 14, dtype=torch.bool)
    mask[0, 6] = False
    expected = model(input_ids=row["input_ids"], coords=by_nan).logits
    assert torch.equal(model(input_ids=row["input_ids"], coords=half, coords_mask=mask).logits, expected)


def test_special_tokens_and_padding_are_never_observed():
    model = make_model()
    row = random_chain(12)
    moved = row["coords"].clone()
    moved[0, [0, -1]] = 500.0
    assert torch.equal(outputs_of(model, row | {"coords": moved}), outputs_of(model, row))


def test_zero_is_a_position_like_any_other():
    model = make_model()
    row = random_chain(12, missing=0)
    zeros = torch.zeros_like(row["coords"])
    assert (outputs_of(model, row | {"coords": zeros}) - outputs_of(model, row | {"coords": None})).abs().max() > 1e-3


def test_quadratic_lift_is_computed_by_hand():
    embedding = make_model(coordinate_embedding="quadratic").coordformer.coordinate_embedding
    weight, bias = embedding.weight, embedding.bias
    found = embedding(torch.tensor([[[[16.0, 0.0, -32.0]]]]), torch.tensor([[[True]]]))
    torch.testing.assert_close(found[0, 0], weight @ torch.tensor([1.0, 0.0, -2.0, 5.0, 0.0]) + bias)
    missing = embedding(torch.zeros(1, 1, 1, 3), torch.tensor([[[False]]]))
    torch.testing.assert_close(missing[0, 0], weight[:, 4] + bias)


def test_distance_bias_is_computed_by_hand():
    """Values at 0, 16 and 32 Å, and of missing pairs."""
    bias = DistanceBias(make_config(num_distance_bins=3))
    coords = torch.tensor([[[[0.0, 0.0, 0.0]], [[0.0, 12.0, 16.0]], [[0.0, 0.0, 0.0]], [[0.0, 0.0, -300.0]]]])
    found = bias(coords, torch.tensor([[[True], [True], [False], [True]]]))
    at_0, at_16, at_32, missing = 64 * bias.weight.T
    for i, j, expected in (
        (0, 1, 0.75 * at_16 + 0.25 * at_32),  # 20 Å
        (1, 1, at_0),
        (3, 0, at_32),
        (0, 2, missing),
        (2, 1, missing),
        (2, 2, missing),
    ):
        torch.testing.assert_close(found[0, :, i, j], expected)


def test_distance_bias_starts_at_nothing_and_is_invariant():
    model = make_model(coordinate_embedding="none", num_distance_bins=8)
    row = random_chain(12)
    rotation = rotations_from_normals(torch.randn(1, 1, 3, 3))
    plain = outputs_of(make_model(coordinate_embedding="none"), row)
    assert not model.coordformer.distance_bias.weight.any()
    torch.nn.init.normal_(model.coordformer.distance_bias.weight, std=0.03)
    expected = outputs_of(model, row)
    assert (expected - plain).abs().max() > 1e-2
    torch.testing.assert_close(outputs_of(model, row | {"rotations": rotation}), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["varlen", "flex_attention"])
def test_attention_without_a_bias_is_refused(attention):
    with pytest.raises(ValueError, match=f"needs attn_implementation='sdpa' or 'eager', not '{attention}'"):
        make_model(attention=attention, num_distance_bins=4)(**random_chain(5))


@pytest.mark.parametrize("positions", ["none", "rotary"])
def test_gaussian_start_attends_with_gaussians(positions):
    """Total variation to the Gaussian of each head's width, beside that of a head that starts as all do."""
    shape = {"hidden_size": 128, "intermediate_size": 64, "position_embedding_type": positions}
    row = random_chain(80, missing=0)
    row["coords"][0, 1:-1] = torch.randn(80, 3) * 12
    distances = torch.cdist(row["coords"], row["coords"])[0, 1:-1, 1:-1]
    errors = {}
    for start in ("normal", "gaussian"):
        config = make_config(**shape, coordinate_embedding="quadratic", coordinate_init=start)
        config._attn_implementation = "eager"
        attention = CoordformerModel(config)(**row, output_attentions=True).attentions[0][0, :, 1:-1, 1:-1]
        attention = attention / attention.sum(dim=-1, keepdim=True)
        sigmas = 4 * 8 ** torch.linspace(0, 1, 4)
        gaussians = torch.softmax(-0.5 * (distances / sigmas[:, None, None]) ** 2, dim=-1)
        errors[start] = (attention - gaussians).abs().sum(-1).mean(-1) / 2
    assert (errors["gaussian"] < 0.15).all()
    assert (errors["gaussian"] < 0.25 * errors["normal"]).all()


def test_gaussian_start_leaves_loaded_weights_alone(tmp_path):
    model = make_model(coordinate_embedding="quadratic", coordinate_init="gaussian")
    model.save_pretrained(tmp_path)
    reloaded = CoordformerForMaskedLM.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(reloaded.state_dict()[name], value), name


def test_point_clouds_need_no_tokens_and_are_permutation_equivariant():
    model = make_model("base", position_embedding_type="none", hidden_act="relu", coordinate_dim=4)
    points = torch.randn(2, 9, 4) * 100
    order = torch.randperm(9)
    expected = model(coords=points).last_hidden_state[:, order]
    torch.testing.assert_close(model(coords=points[:, order]).last_hidden_state, expected, atol=1e-5, rtol=0)


# --- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_coordinates_reach_the_embedding_in_float32(how):
    """300.37 Å is 300 Å in bfloat16; the embedding must see the difference exactly."""
    model = make_model()
    row = random_chain(3, missing=0)
    row["coords"] = torch.tensor([[[0.0] * 3, [300.37, 0, 0], [-300.37, 0, 0], [0, 0, 0], [0.0] * 3]])
    calls = []
    embedding = model.coordformer.coordinate_embedding
    embedding.register_forward_hook(lambda _, args, output: calls.append((args[0], output)))
    model(**row)
    if how == "weights":
        model.to(torch.bfloat16)
        model(**row)
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(**row)
    assert calls[0][1].dtype == calls[1][1].dtype == torch.float32
    assert torch.equal(calls[0][1], calls[1][1])
    assert calls[1][0][0, 1, 0, 0] == torch.tensor(300.37)


def test_casting_and_saving_keep_rotary_frequencies_and_coordinate_weights(tmp_path):
    model = make_model()
    expected = copy.deepcopy(model.state_dict())
    for cast in (lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.bfloat16()):
        low = cast(copy.deepcopy(model))
        assert low.dtype in (torch.bfloat16, torch.float16)
        low.save_pretrained(tmp_path)
        for loaded in (
            CoordformerForMaskedLM.from_pretrained(tmp_path),
            CoordformerForMaskedLM.from_pretrained(tmp_path, dtype=torch.bfloat16),
            CoordformerForMaskedLM.from_pretrained(tmp_path).float(),
        ):
            state = loaded.state_dict()
            precise = [name for name in state if "rotary" in name or "coordinate_embedding" in name]
            assert len(precise) == 3
            for name in precise:
                assert torch.equal(state[name], expected[name]), name


# --- nothing breaks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa", "varlen"])
@pytest.mark.parametrize("head", [head for head in HEADS if head != "base"])
def test_outputs_and_gradients_are_finite_whatever_is_missing(head, attention):
    model = make_model(head, attention, token_dropout=True)
    for missing, masked, padded, packed in itertools.product((False, True), repeat=4):
        rows = [random_chain(9), random_chain(6)]
        batch = pack_rows(rows, padding=4) if packed else pad_rows(rows)
        if missing:
            batch["coords"][:] = torch.nan
        if masked:
            batch["input_ids"][:] = 32
        if padded and not packed:
            batch["attention_mask"][1] = 0
        labels = make_labels(head, batch, 2)
        for given in (labels, torch.full_like(labels, -100)):
            model.zero_grad()
            output = model(**batch, labels=given)
            output.loss.backward()
            assert torch.isfinite(output.logits).all() and torch.isfinite(output.loss)
            assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
        assert output.loss == 0


@pytest.mark.parametrize("inputs", ["tokens and coords", "tokens", "coords"])
@pytest.mark.parametrize("head", [head for head in HEADS if head != "base"])
@pytest.mark.parametrize(
    "fields", [{}, {"lm_head": "linear", "position_embedding_type": "absolute"}], ids=["esm", "paper"]
)
def test_no_parameter_is_idle(head, fields, inputs):
    """An idle parameter makes DistributedDataParallel stop; so every parameter gets a gradient, be it zero."""
    model = make_model(head, **fields)
    batch = pad_rows([random_chain(9), random_chain(6)])
    labels = make_labels(head, batch, 2)
    if inputs == "tokens":
        del batch["coords"]
    if inputs == "coords":
        del batch["input_ids"]
    model(**batch, labels=labels).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


# --- Transformers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_save_reload_predict_the_same(head, tmp_path):
    model = make_model(head)
    batch = pad_rows([random_chain(12), random_chain(7)])
    model.save_pretrained(tmp_path)
    reloaded = AUTO[head].from_pretrained(tmp_path)
    assert type(reloaded) is type(model) and reloaded.config.to_dict() == model.config.to_dict() | {
        "_name_or_path": str(tmp_path),
        "architectures": [type(model).__name__],
        "dtype": "float32",
    }
    torch.testing.assert_close(outputs_of(reloaded, batch), outputs_of(model, batch), atol=1e-6, rtol=0)


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_saves_and_reloads(fields, tmp_path):
    model = make_model(**fields)
    atoms = len(model.config.coordinate_atoms)
    batch = pad_rows([random_chain(12, atoms), random_chain(7, atoms)])
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    torch.testing.assert_close(outputs_of(reloaded, batch), outputs_of(model, batch), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_saves_and_reloads(dtype, tmp_path):
    make_model().save_pretrained(tmp_path / "float32")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "float32", dtype=dtype).eval()
    model.save_pretrained(tmp_path / "cast")
    reloaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "cast").eval()
    batch = pad_rows([random_chain(12), random_chain(7)])
    assert reloaded.dtype == outputs_of(reloaded, batch).dtype == dtype
    assert torch.equal(outputs_of(reloaded, batch), outputs_of(model, batch))


@pytest.mark.parametrize("on_disk", [(), ("coordformer.esm.encoder.layer.0", "coordformer.coordinate_embedding")])
def test_device_maps_and_weights_that_stay_on_the_disk(on_disk, tmp_path):
    model = make_model()
    batch = pad_rows([random_chain(12), random_chain(7)])
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    modules = {name for name, module in model.named_modules() if [*module.parameters(False), *module.buffers(False)]}
    device_map = dict.fromkeys(on_disk, "disk") | dict.fromkeys(
        (name for name in modules if not name.startswith(tuple(on_disk))), "cpu"
    )
    reloaded = AutoModelForMaskedLM.from_pretrained(
        tmp_path, device_map=device_map if on_disk else "auto", offload_folder=tmp_path / "offload"
    )
    assert any(parameter.is_meta for parameter in reloaded.parameters()) == bool(on_disk)
    with torch.no_grad():
        # What is loaded for each use is multiplied layer by layer, and rounds otherwise.
        torch.testing.assert_close(outputs_of(reloaded.eval(), batch), outputs_of(model, batch), atol=1e-5, rtol=0)


def test_exports_for_any_batch_and_length():
    model = make_model()
    batch = pad_rows([random_chain(12), random_chain(7)])
    shape = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("length", min=3, max=1026)}
    exported = torch.export.export(model, (), batch, dynamic_shapes=dict.fromkeys(batch, shape), strict=False)
    other = pad_rows([random_chain(20), random_chain(3), random_chain(9)])
    torch.testing.assert_close(outputs_of(exported.module(), other), outputs_of(model, other), atol=1e-6, rtol=0)


def test_linear_head_is_untied_and_esm_head_is_tied():
    for lm_head, tied in (("linear", False), ("esm", True)):
        model = make_model(lm_head=lm_head)
        same = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert same == tied
        assert model.get_output_embeddings().bias is not None
    config = make_config(lm_head="linear")
    config.tie_word_embeddings = True
    model = CoordformerForMaskedLM(config)
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight


@pytest.mark.parametrize("head", [head for head in HEADS if head != "base"])
def test_heads_name_their_inputs(head):
    """Trainer keeps the columns that `forward` names: the base model's inputs, in their order, and labels."""
    base, named = (inspect.signature(cls.forward).parameters for cls in (CoordformerModel, HEADS[head][0]))
    assert [*named] == [*[*base][:-1], "labels", "num_items_in_batch", "kwargs"]


def test_hidden_states_and_attentions():
    model = make_model(attention="eager")
    batch = pad_rows([random_chain(12), random_chain(7)])
    output = model(**batch, output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, 14, 48)] * 3
    assert [tuple(map_.shape) for map_ in output.attentions] == [(2, 4, 14, 14)] * 2
    base = model.coordformer(**batch)
    assert torch.equal(output.hidden_states[-1], base.last_hidden_state)
    for attention in output.attentions:
        torch.testing.assert_close(attention.sum(dim=-1), torch.ones(2, 4, 14))
        assert (attention[1, :, :, 9:] == 0).all()  # nobody looks at padding
    as_tuple = model(**batch, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], output.logits)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("head", [head for head in HEADS if head != "base"])
def test_gradient_checkpointing_gives_the_same_gradients(head, reentrant):
    model = make_model(head)
    batch = pad_rows([random_chain(12), random_chain(7)])
    labels = make_labels(head, batch, 2)
    gradients = []
    model.train()
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.zero_grad()
        model(**batch, labels=labels).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_reentrant_checkpoints_are_refused_with_a_distance_bias():
    model = make_model(num_distance_bins=4)
    with pytest.raises(ValueError, match="use_reentrant=True, with which `config.num_distance_bins` gets no gradient"):
        model.gradient_checkpointing_enable({"use_reentrant": True})
    model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = pad_rows([random_chain(12), random_chain(7)])
    model.train()(**batch, labels=batch["input_ids"]).loss.backward()
    assert model.coordformer.distance_bias.weight.grad.any()


@pytest.mark.parametrize("lm_head", ["esm", "linear"])
def test_forward_and_loss_after_resizing_the_embeddings(lm_head, tmp_path):
    model = make_model(lm_head=lm_head)
    batch = pad_rows([random_chain(12), random_chain(7)])
    before = outputs_of(model, batch).detach()
    model.resize_token_embeddings(40)
    batch["labels"] = batch["input_ids"].masked_fill(torch.rand(batch["input_ids"].shape) < 0.5, 39)
    output = model(**batch)
    assert output.logits.shape[-1] == 40
    torch.testing.assert_close(output.logits[..., :33], before)
    output.loss.backward()
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForMaskedLM.from_pretrained(tmp_path)
    torch.testing.assert_close(reloaded(**batch).logits, output.logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "head",
    ["masked_lm", "single_label"]
    + [pytest.param(head, marks=pytest.mark.slow) for head in ("multi_label", "regression", "token")],
)
def test_compiles_without_graph_breaks(head):
    torch._dynamo.reset()
    model = make_model(head)
    batch = pad_rows([random_chain(12), random_chain(7)])
    labels = make_labels(head, batch, 2)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    output = compiled(**batch, labels=labels)
    torch.testing.assert_close(output.logits, model(**batch).logits)
    output.loss.backward()
    if head in ("masked_lm", "token"):  # packed chains, too; how many segments a row has is data to the other heads
        packed = pack_rows([random_chain(5), random_chain(6)])
        torch.testing.assert_close(compiled(**packed).logits, model(**packed).logits)


def test_whole_rows_without_a_mask_compile_without_graph_breaks():
    """There are no segments to keep apart; by themselves such rows attend by C code."""
    torch._dynamo.reset()
    model, row = make_model(), random_chain(12)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**row).logits, model(**row).logits)


@pytest.mark.slow
def test_compiled_code_equals_eager_code():
    torch._dynamo.reset()
    model = make_model()
    batch = pad_rows([random_chain(12), random_chain(7)])
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(**batch).logits, model(**batch).logits)


# --- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [head for head in HEADS if head != "base"])
def test_losses_of_parts_add_up(head):
    """With `num_items_in_batch` the losses of micro-batches of unequal size sum to the loss of the whole."""
    model = make_model(head)
    batch = pad_rows([random_chain(12), random_chain(7), random_chain(9)])
    labels = make_labels(head, batch, 3)
    if head in ("single_label", "regression"):
        labels[1] = -100
    whole = model(**batch, labels=labels).loss
    items = (labels != -100).sum()
    parts = [
        model(
            **{name: value[part] for name, value in batch.items()}, labels=labels[part], num_items_in_batch=items
        ).loss
        for part in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_losses_by_hand():
    logits_of = {}
    for head in ("single_label", "multi_label", "regression", "token", "masked_lm"):
        model = make_model(head)
        batch = pad_rows([random_chain(4), random_chain(4)])
        labels = make_labels(head, batch, 2)
        output = model(**batch, labels=labels)
        logits, p = output.logits.double(), output.logits.double().softmax(dim=-1)
        if head == "multi_label":
            q = logits.sigmoid()
            expected = -(labels * q.log() + (1 - labels) * (1 - q).log()).mean()
        elif head == "regression":
            expected = ((logits[:, 0] - labels) ** 2).mean()
        else:
            chosen = labels != -100
            expected = -p[chosen].gather(-1, labels[chosen].unsqueeze(-1)).log().mean()
        torch.testing.assert_close(output.loss.double(), expected, atol=1e-5, rtol=1e-5)
        logits_of[head] = logits
    assert len(logits_of) == 5


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coords": torch.zeros(1, 10, 2)}, r"`coords` has shape \(1, 10, 2\).*coordinate_dim.*need \(1, 10, 3\)"),
        ({"coords": torch.zeros(1, 9, 3)}, r"`coords` has shape \(1, 9, 3\).*10 tokens"),
        ({"coords": torch.zeros(1, 10, 3, 3)}, r"`coords` has shape \(1, 10, 3, 3\).*atoms CA"),
        ({"coords": torch.full((1, 10, 3), torch.inf)}, r"infinite at row 0, token 0; use NaN"),
        ({"coords_mask": torch.ones(1, 9)}, r"`coords_mask` has shape \(1, 9\)"),
        ({"attention_mask": torch.ones(3, 10)}, r"`attention_mask` has shape \(3, 10\)"),
        ({"attention_mask": torch.ones(1, 9)}, r"`attention_mask` has shape \(1, 9\)"),
        ({"sequence_id": torch.ones(1, 11)}, r"`sequence_id` has shape \(1, 11\)"),
        ({"inputs_embeds": torch.zeros(1, 10, 48)}, "not both"),
        ({"labels": torch.zeros(1, 9, dtype=torch.long)}, r"`labels` has shape \(1, 9\)"),
        ({"labels": torch.zeros(1, 10)}, "`labels` are torch.float32; classes are whole numbers"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, "at least one token"),
        ({"input_ids": None, "coords": None}, "at least one of `input_ids`, `inputs_embeds` and `coords`"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        make_model()(**random_chain(8) | change)


def test_other_atoms_than_the_configs_are_named():
    with pytest.raises(ValueError, match=r"atoms N, CA, C \(`config.coordinate_atoms`\).*need \(1, 10, 3, 3\)"):
        make_model(coordinate_atoms=("N", "CA", "C"))(**random_chain(8))


def test_other_bad_input_is_named():
    with pytest.raises(ValueError, match=r"has 30 tokens, but absolute positions end at 18"):
        make_model(position_embedding_type="absolute", max_position_embeddings=20)(**random_chain(28))
    packed = pack_rows([random_chain(15), random_chain(15)])  # longer, but each chain has its own positions
    make_model(position_embedding_type="absolute", max_position_embeddings=20)(**packed)
    with pytest.raises(ValueError, match=r"`labels` has shape \(4, 1\); multi_label_classification needs \(1, 4\)"):
        make_model("multi_label")(**random_chain(8), labels=torch.ones(4, 1))
    model = make_model("single_label")
    vars(model.config)["problem_type"] = "ranking"  # as an old config.json may say; some versions refuse it themselves
    with pytest.raises(ValueError, match="`config.problem_type` is 'ranking'; choose single_label"):
        model(**random_chain(8), labels=torch.ones(1))


def test_dropout_of_attention_is_not_ignored_by_varlen():
    """On the CPU it acts; the CUDA kernel has none, which is an error there."""
    model = make_model(attention="varlen", attention_probs_dropout_prob=0.5).train()
    batch = pack_rows([random_chain(20), random_chain(6)])
    assert (outputs_of(model, batch) - outputs_of(model, batch)).abs().max() > 1e-2


def test_weights_that_a_checkpoint_lacks_are_initialized(tmp_path):
    """A new head or embedding is drawn with `initializer_range`, not left as memory happened to be."""
    make_model("base", coordinate_embedding="none").save_pretrained(tmp_path)
    model, info = CoordformerForMaskedLM.from_pretrained(tmp_path, config=make_config(), output_loading_info=True)
    weight = model.coordformer.coordinate_embedding.weight
    assert {"coordformer.coordinate_embedding.weight", "lm_head.dense.weight"} <= set(info["missing_keys"])
    assert 0.5 * 0.02 < weight.std() < 1.5 * 0.02
    assert isinstance(model.coordformer, CoordformerModel)
    expected = 1.0 / 10000.0 ** (torch.arange(0, 12, 2) / 12)
    torch.testing.assert_close(model.coordformer.esm.rotary_embeddings.inv_freq, expected)
