"""A chain alone, padded and packed with others gives the same; segments have their own center and rotation."""

import numpy as np
import pytest
import torch
from conftest import HEADS, VARIANTS, make_model, outputs_of, pack_rows, pad_rows, random_chain

from coordformer import CoordformerForMaskedLM, build_tokenizer
from coordformer.data.collator import CoordformerDataCollator, rotations_from_normals
from coordformer.model import packing
from coordformer.model.kernels import load_kernel
from coordformer.model.packing import SEGMENT_BOUNDS, attend_narrow, segment_bounds, varlen_attention

# --- padding and packing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa", "varlen"])
@pytest.mark.parametrize("head", HEADS)
def test_alone_padded_and_packed_agree(head, attention):
    model = make_model(head, attention, token_dropout=True)
    rows = [random_chain(23), random_chain(11), random_chain(31, missing=0)]
    rows[0]["input_ids"][0, 3:9] = 32  # token dropout counts masks per chain
    alone = [outputs_of(model, row)[0] for row in rows]
    for padded in (outputs_of(model, pad_rows(rows)), outputs_of(model, pad_rows(rows, left=True))):
        for index, row in enumerate(rows):
            actual = padded[index]
            if actual.dim() == 2:
                n = row["input_ids"].shape[1]
                actual = min((actual[:n], actual[-n:]), key=lambda part: (part - alone[index]).abs().max())
            assert (actual - alone[index]).abs().max() < 1e-5
    for padding in (0, 5):
        packed = outputs_of(model, pack_rows(rows, padding))
        if head in ("single_label", "multi_label", "regression"):
            actual = list(packed)
        else:
            actual = packed[0, : packed.shape[1] - padding].split([row["input_ids"].shape[1] for row in rows])
        for index in range(len(rows)):
            assert (actual[index] - alone[index]).abs().max() < 1e-5


@pytest.mark.parametrize("attention", ["eager", "sdpa", "varlen"])
def test_a_sequence_encoder_packs_with_any_attention_and_stays_as_it_is(attention):
    model = make_model(**VARIANTS["behind ESM-2"])
    rows = [random_chain(30), random_chain(17)]
    for row in rows:
        row["input_ids"][0, 4:9] = 32  # token dropout counts per segment
    expected = [outputs_of(model, row)[0] for row in rows]
    model.set_attn_implementation(attention)
    assert model.coordformer.sequence_encoder.config._attn_implementation == attention
    packed = outputs_of(model, pack_rows(rows, padding=3))[0]
    torch.testing.assert_close(packed[:51], torch.cat(expected), atol=1e-5, rtol=0)
    left = outputs_of(model, pad_rows(rows, left=True))
    torch.testing.assert_close(left[1, -19:], expected[1], atol=1e-5, rtol=0)
    # Frozen, and without dropout in training, too.
    assert torch.equal(outputs_of(model.train(), rows[0]), outputs_of(model.eval(), rows[0]))
    outputs_of(model, rows[0]).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad) == ("sequence_encoder" in name), name


def test_a_resized_sequence_encoder_reloads(tmp_path):
    model = make_model(**VARIANTS["behind ESM-2"])
    model.resize_token_embeddings(40)
    row = random_chain(9)
    row["input_ids"][0, 3] = 39
    assert outputs_of(model, row).shape[-1] == 40
    model.save_pretrained(tmp_path)
    assert torch.equal(outputs_of(CoordformerForMaskedLM.from_pretrained(tmp_path), row), outputs_of(model, row))


def test_a_sequence_encoder_needs_a_sequence():
    with pytest.raises(ValueError, match="config.sequence_encoder` needs `input_ids`"):
        make_model(**VARIANTS["behind ESM-2"])(coords=torch.randn(1, 5, 3))


@pytest.mark.slow  # compiles
@torch.no_grad()  # flex attention has no backward pass on the CPU
def test_flex_attention_agrees():
    model = make_model()
    rows = [random_chain(23), random_chain(11)]
    padded, packed = (outputs_of(model, batch) for batch in (pad_rows(rows), pack_rows(rows, padding=3)))
    torch.manual_seed(1)
    batches = pad_rows(rows), pack_rows(rows, padding=3)
    model.set_attn_implementation("flex_attention")
    assert (outputs_of(model, batches[0]) - padded)[0].abs().max() < 1e-5
    assert (outputs_of(model, batches[0]) - padded)[1, :13].abs().max() < 1e-5
    assert (outputs_of(model, batches[1]) - packed)[:, :38].abs().max() < 1e-5


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_packs(fields):
    model = make_model(**fields)
    atoms = len(model.config.coordinate_atoms)
    rows = [random_chain(13, atoms), random_chain(8, atoms)]
    packed = outputs_of(model, pack_rows(rows, padding=3))[0, :25].split([15, 10])
    for index, row in enumerate(rows):
        assert (packed[index] - outputs_of(model, row)[0]).abs().max() < 1e-5


@pytest.mark.parametrize("attention", ["eager", "sdpa", "varlen"])
@pytest.mark.parametrize("head", HEADS)
def test_alone_padded_and_packed_agree_in_bfloat16(head, attention):
    """bfloat16 keeps 8 bits: 0.05 on outputs of the order of 1 to 3 (seen: 0.03)."""
    model = make_model(head, attention).to(torch.bfloat16)
    rows = [random_chain(23), random_chain(11)]
    alone = [outputs_of(model, row)[0].detach() for row in rows]
    padded = outputs_of(model, pad_rows(rows))
    packed = outputs_of(model, pack_rows(rows))
    for index, row in enumerate(rows):
        n = row["input_ids"].shape[1]
        if alone[index].dim() == 1:
            parts = padded[index], packed[index]
        else:
            parts = padded[index, :n], packed[0].split([25, 13])[index]
        for part in parts:
            assert (part - alone[index]).abs().max() < 0.05 * max(1.0, float(alone[index].abs().max()))


def test_padding_of_a_packed_row_may_stand_anywhere():
    """On the left, between chains, and with the id of a chain beside it."""
    for head in ("masked_lm", "multi_label"):
        model = make_model(head, position_embedding_type="absolute")
        rows = [random_chain(5), random_chain(7)]
        alone = [outputs_of(model, row)[0] for row in rows]
        batch = pack_rows(rows)
        index = torch.cat([torch.arange(7) + 2, torch.arange(9) + 12])  # two tokens on the left, three between
        spread = {name: torch.full((1, 21, *value.shape[2:]), 3, dtype=value.dtype) for name, value in batch.items()}
        for name, value in batch.items():
            spread[name][:, index] = value
        spread["attention_mask"][:] = 0
        spread["attention_mask"][:, index] = 1
        spread["sequence_id"][0, :9], spread["sequence_id"][0, 9:] = 0, 1
        output = outputs_of(model, spread)
        parts = list(output) if head == "multi_label" else output[0, index].split([7, 9])
        for part, expected in zip(parts, alone, strict=True):
            assert (part - expected).abs().max() < 1e-5


@pytest.mark.parametrize("attention", ["eager", "sdpa", "varlen"])
def test_packed_losses_and_gradients_equal_padded_ones(attention):
    rows = [random_chain(13), random_chain(8)]
    model = make_model(attention=attention)
    padded, packed = pad_rows(rows), pack_rows(rows)
    padded["labels"] = torch.full_like(padded["input_ids"], -100)
    padded["labels"][0, 2:9] = 7
    padded["labels"][1, 1:4] = 9
    packed["labels"] = torch.cat([padded["labels"][:1, :15], padded["labels"][1:, :10]], dim=1)
    rotations = rotations_from_normals(torch.randn(2, 3, 3))
    padded["rotations"], packed["rotations"] = rotations.unsqueeze(1), rotations.unsqueeze(0)
    losses, gradients = [], []
    for batch in (padded, packed):
        model.zero_grad()
        losses.append(model(**batch).loss)
        losses[-1].backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(*losses, atol=1e-5, rtol=0)
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "varlen"])
def test_bounds_of_segments_come_with_the_batch_or_are_worked_out(attention):
    """Under Transformers' names; without `sequence_id` they say what the segments are, for the coordinates, too."""
    model = make_model(attention=attention)
    batch = pack_rows([random_chain(13), random_chain(8), random_chain(3)])
    expected = outputs_of(model, batch)
    bounds = segment_bounds(batch.pop("sequence_id"))
    assert bounds["cu_seq_lens_q"].tolist() == [0, 15, 25, 30] and bounds["max_length_k"] == 15
    torch.testing.assert_close(outputs_of(model, batch | bounds), expected, atol=1e-6, rtol=0)


def test_varlen_attention_has_no_attention_maps_and_says_so_by_none():
    output = make_model(attention="varlen")(**pack_rows([random_chain(5)]), output_attentions=True)
    assert output.attentions is None or all(each is None for each in output.attentions)


@pytest.mark.parametrize("attention", ["varlen", "sdpa", "eager"])
def test_a_step_never_waits_for_the_device(attention):
    """Tensors on the meta device have no values: whatever would fetch one to the host raises."""
    rows = [{"id": str(n), "sequence": "MKV" * n, "coords": np.zeros(9 * n), "epoch": 0, "packed_length": 80}
            for n in (3, 11)]  # fmt: skip
    batch = CoordformerDataCollator(build_tokenizer(), drop_coords=0.5, noise=1.0)(rows)
    batch = {name: value.to("meta") if torch.is_tensor(value) else value for name, value in batch.items()}
    # With bfloat16 weights "varlen" goes through the CUDA kernel's own shape function.
    model = make_model(attention=attention, token_dropout=True).to("meta", torch.bfloat16)
    output = model(**batch, num_items_in_batch=torch.empty((), dtype=torch.int64, device="meta"))
    assert output.logits.shape == (1, 80, 33)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(RuntimeError, match="meta"):
        output.loss.item()
    if attention == "varlen":  # had the bounds to be worked out, the step would wait
        for name in SEGMENT_BOUNDS:
            del batch[name]
        with pytest.raises(NotImplementedError, match="nonzero"):
            model(**batch)


# --- rotations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 3])
def test_rotations_turn_each_segment_about_its_center(dim):
    """As if the coordinates had been turned before."""
    model = make_model(coordinate_dim=dim)
    rows = [random_chain(13), random_chain(8)]
    for row in rows:
        row["coords"] = row["coords"][..., :dim] + 30.0
    rotations = rotations_from_normals(torch.randn(2, dim, dim))
    turned = [row | {"coords": row["coords"] @ rotation.T} for row, rotation in zip(rows, rotations, strict=True)]
    assert (outputs_of(model, rows[0]) - outputs_of(model, turned[0])).abs().max() > 1e-3
    for pack, given in ((pad_rows, rotations.unsqueeze(1)), (pack_rows, rotations.unsqueeze(0))):
        torch.manual_seed(0)  # what stands in the padding
        batch = pack(rows)
        torch.manual_seed(0)
        expected = outputs_of(model, pack(turned))
        actual = outputs_of(model, batch | {"rotations": given})
        keep = batch["attention_mask"].bool()
        torch.testing.assert_close(actual[keep], expected[keep], atol=2e-5, rtol=0)


def test_padding_between_chains_takes_no_rotation():
    """The matrices are the segments' in reading order, wherever the padding is."""
    model = make_model()
    rows = [random_chain(5), random_chain(7)]
    rotations = rotations_from_normals(torch.randn(2, 3, 3)).unsqueeze(0)
    batch = pack_rows(rows)
    expected = outputs_of(model, batch | {"rotations": rotations})
    index = torch.cat([torch.arange(7) + 2, torch.arange(9) + 12])  # two tokens on the left, three between
    spread = {name: torch.full((1, 21, *value.shape[2:]), 3, dtype=value.dtype) for name, value in batch.items()}
    for name, value in batch.items():
        spread[name][:, index] = value
    spread["attention_mask"][:] = 0
    spread["attention_mask"][:, index] = 1
    actual = outputs_of(model, spread | {"rotations": rotations})
    torch.testing.assert_close(actual[:, index], expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"`rotations` has shape \(1, 1, 3, 3\); .* is \(1, 2, 3, 3\)"):
        outputs_of(model, spread | {"rotations": rotations[:, :1]})


def test_mean_pooling_is_that_over_the_residues():
    model = make_model("single_label", classifier_pooling="mean")
    rows = [random_chain(9), random_chain(20), random_chain(4)]
    expected = []
    for row in rows:
        states = model.coordformer(**row).last_hidden_state
        expected.append(model.classifier(states[:, 1:-1].mean(dim=1, keepdim=True)))
    expected = torch.cat(expected)
    for batch in (pad_rows(rows), pad_rows(rows, left=True), pack_rows(rows), pack_rows(rows, padding=5)):
        torch.testing.assert_close(model(**batch).logits, expected, atol=1e-5, rtol=1e-5)


def test_bounds_alone_give_one_class_for_each_chain():
    model = make_model("multi_label", attention="varlen")
    batch = pack_rows([random_chain(5), random_chain(7)])
    expected = outputs_of(model, batch)
    bounds = segment_bounds(batch.pop("sequence_id"))
    torch.testing.assert_close(outputs_of(model, batch | bounds), expected, atol=1e-6, rtol=0)


def test_packed_chains_beyond_absolute_positions_are_named():
    model = make_model(position_embedding_type="absolute", max_position_embeddings=20, attention="varlen")
    batch = pack_rows([random_chain(5), random_chain(30)])
    with pytest.raises(ValueError, match="32 tokens in a segment, but absolute positions end at 18"):
        model(**batch, **segment_bounds(batch["sequence_id"]))


@pytest.mark.parametrize("shape", [(1, 3, 3), (3, 1, 3, 3), (2, 2, 3, 3), (2, 1, 2, 3), (2, 0, 3, 3)])
def test_bad_rotations_are_named(shape):
    with pytest.raises(ValueError, match=r"`rotations` has shape .*; a matrix for each segment is \(2, 1, 3, 3\)"):
        make_model()(**pad_rows([random_chain(3), random_chain(4)]), rotations=torch.zeros(shape))


def test_a_complex_is_one_segment_with_a_gap_in_its_positions():
    """Two chains of a complex see each other and share a center; two segments do neither."""
    model = make_model()
    rows = [random_chain(10, missing=0), random_chain(12, missing=0)]
    batch = pack_rows(rows)
    segments = batch.pop("sequence_id")
    positions = torch.cat([torch.arange(12), torch.arange(14) + 100]).unsqueeze(0)
    together = model(**batch, position_ids=positions).logits
    apart = model(**batch, sequence_id=segments).logits
    assert (together - apart).abs().max() > 1e-2
    # Moving one chain against the other shows in a complex, and only there.
    moved = batch | {"coords": batch["coords"] + torch.where(segments == 1, 25.0, 0.0).unsqueeze(-1)}
    assert (model(**moved, position_ids=positions).logits - together).abs().max() > 1e-2
    assert (model(**moved, sequence_id=segments).logits - apart).abs().max() < 1e-4


# --- attention of narrow heads in C ----------------------------------------------------------------------------------


def attended(monkeypatch, narrow: bool, bounds: list[int], dim: int, dtype: torch.dtype, scale: float = 1.0):
    """Outputs and gradients of queries, keys and values, which lie side by side; with C code, or without."""
    monkeypatch.setattr(packing, "WIDEST", 64 if narrow else 0)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1, bounds[-1], 3 * 2 * dim, generator=generator).mul(scale).to(dtype).requires_grad_()
    heads = [each.unflatten(-1, (2, dim)).transpose(1, 2) for each in states.chunk(3, dim=-1)]
    assert not narrow or packing.are_narrow(*(each[0].transpose(0, 1) for each in heads), len(bounds) - 1)
    output, _ = varlen_attention(
        torch.nn.Module(), *heads, None, scaling=0.5, cu_seq_lens_q=torch.tensor(bounds).int(), max_length_q=99
    )
    output.backward(torch.randn(output.shape, generator=generator).to(dtype))
    return output.detach(), states.grad


@pytest.mark.skipif(load_kernel() is None, reason="no C compiler")
def test_where_memory_is_at_its_end_c_code_says_so():
    """Of a segment that is said to be so long that no machine could hold it; nothing is written."""
    states, bounds = (
        [torch.randn(6, 2, 16, requires_grad=True) for _ in range(3)],
        torch.tensor([0, 6], dtype=torch.int32),
    )
    assert attend_narrow(*states, bounds, 6, None).isfinite().all()
    with pytest.raises(MemoryError, match="attention: memory is at its end; give fewer tokens at once"):
        attend_narrow(*states, bounds, 2**40, None)


@pytest.mark.skipif(load_kernel() is None, reason="no C compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [3, 16, 24, 32, 48, 50, 64])
def test_narrow_heads_attend_in_c_as_in_pytorch(dim, dtype, monkeypatch):
    """Segments of one token, of none, of blocks, of several tiles; the same to the bit on any number of threads."""
    bounds, before = [0, 1, 34, 34, 98, 197, 800], torch.get_num_threads()
    found = attended(monkeypatch, True, bounds, dim, dtype)
    expected = attended(monkeypatch, False, bounds, dim, torch.float64)
    torch_own = attended(monkeypatch, False, bounds, dim, dtype)
    for ours, exact, theirs in zip(found, expected, torch_own, strict=True):
        assert ours.dtype == dtype
        error = (ours.float() - exact).abs().max()
        assert error < (3 if dtype == torch.float32 else 1.5) * (theirs.float() - exact).abs().max()
        assert dtype != torch.float32 or (ours - theirs).abs().max() < 2e-5
    torch.set_num_threads(3)
    try:
        again = attended(monkeypatch, True, bounds, dim, dtype)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.skipif(load_kernel() is None, reason="no C compiler")
def test_narrow_heads_take_logits_of_any_size(monkeypatch):
    """Thousands: most weights are zero, and none is above one."""
    for ours, theirs in zip(
        attended(monkeypatch, True, [0, 50], 16, torch.float32, 30.0),
        attended(monkeypatch, False, [0, 50], 16, torch.float32, 30.0),
        strict=True,
    ):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, theirs, atol=2e-4 * float(theirs.abs().max()), rtol=0)


@pytest.mark.skipif(load_kernel() is None, reason="no C compiler")
@pytest.mark.parametrize("variant", ["paper", "points"])
def test_whole_rows_attend_in_c_by_sdpa(variant, monkeypatch):
    """Outputs and gradients are PyTorch's; what torch.func differentiates has PyTorch's operations."""
    model = make_model("masked_lm", "sdpa", **VARIANTS[variant])
    rows = [random_chain(30), random_chain(30)]
    batch = {name: torch.cat([row[name] for row in rows]) for name in ("input_ids", "coords")}
    attend, called, found = packing.attend_narrow, [], []
    monkeypatch.setattr(packing, "attend_narrow", lambda *given: called.append(given) or attend(*given))
    for widest in (64, 0):
        monkeypatch.setattr(packing, "WIDEST", widest)
        model.zero_grad()
        logits = model(**batch).logits
        logits.square().sum().backward()
        assert len(called) == model.config.num_hidden_layers
        found.append([logits.detach(), *(each.grad.clone() for each in model.parameters() if each.grad is not None)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5 * max(1.0, float(theirs.abs().max())), rtol=1e-4)
    monkeypatch.setattr(packing, "WIDEST", 64)

    def loss_of(parameters):
        return torch.func.functional_call(model, parameters, (), batch).logits.square().sum()

    gradients = torch.func.grad(loss_of)(dict(model.named_parameters()))
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            scale = max(1.0, float(weight.grad.abs().max()))
            torch.testing.assert_close(gradients[name], weight.grad, atol=1e-5 * scale, rtol=1e-4)
    assert len(called) == model.config.num_hidden_layers


def test_bounds_that_do_not_fit_never_reach_c():
    states = torch.randn(3, 10, 2, 16)
    for wrong in ([0, 4, 11], [1, 10], [0, 7, 4, 10], [0, 9]):
        assert not packing.bounds_fit(torch.tensor(wrong).int(), states[0])
    assert not packing.bounds_fit(torch.tensor([0, 10]), states[0])  # 64 bits
    assert packing.bounds_fit(torch.tensor([0, 10]).int(), states[0])
    assert not packing.are_narrow(*states.double(), 1)
    assert not packing.are_narrow(*torch.randn(3, 10, 2, 128), 1)
