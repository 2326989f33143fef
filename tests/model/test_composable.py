"""What other libraries do to a model: quantize it, adapt it, spread it over devices, compile and export it."""

import copy
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from conftest import STRUCTURES, make_config, make_model, outputs_of, pad_rows, random_chain, train_adapter
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch._dynamo.testing import CompileCounter
from transformers import AutoModelForMaskedLM, BitsAndBytesConfig, QuantoConfig, TorchAoConfig

from coordformer import (
    CoordformerForContactPrediction,
    CoordformerForMaskedLM,
    CoordformerForSequenceClassification,
    CoordformerModel,
    CoordformerProcessor,
)
from coordformer.model.neighbor_graph import EdgeFeatures

CARDS = Path(__file__).parents[2] / "hub_cards"
POINTS = {"num_qk_points": 2, "num_neighbors": 5, "message_gating": True}
MODELS = {
    "linear": {},
    "distance bias": {"num_distance_bins": 8},
    "local frames": {"coordinate_embedding": "local_frame"},
    "points": {"num_qk_points": 2},
    "gated messages": POINTS | {"coordinate_embedding": "local_frame"},
}


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_int8_weights_of_torch_give_almost_the_same(fields):
    """And what is computed from coordinates stays in float32, with weights of its own."""
    model, batch = make_model(**fields), random_chain(40)
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    dtypes = set()
    for module in quantized.modules():
        if isinstance(module, EdgeFeatures):
            module.geometry.register_forward_pre_hook(lambda _, inputs: dtypes.add(inputs[0].dtype))
    with torch.no_grad():
        expected, found = outputs_of(model, batch), outputs_of(quantized, batch)
    agree = torch.corrcoef(torch.stack((found.flatten(), expected.flatten())))[0, 1]
    assert 0.95 < agree < 1 - 1e-6, "weights are random and large here"
    assert dtypes <= {torch.float32} and bool(dtypes) == ("num_neighbors" in fields)


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("name", "most"), [("coordformer-1M-pdb", 0.12), ("coordformer-7M-pdb", 0.16)])
def test_int8_weights_of_the_shipped_models(name, most):
    """Logits of a real chain are `most` nats away, on average over the residues and letters."""
    model = AutoModelForMaskedLM.from_pretrained(CARDS / name, dtype=torch.float32).eval()
    batch = CoordformerProcessor()(structures=STRUCTURES / "1orc.pdb.gz")
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        moved = (quantized(**batch).logits - model(**batch).logits)[..., 4:24].abs().mean()
    assert 0 < moved < most


def config_of(method: str):
    """Of weights in 8 bits; torchao's is a class of its own."""
    if method == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    return QuantoConfig("int8") if method == "optimum.quanto" else BitsAndBytesConfig(load_in_8bit=True)


@pytest.mark.filterwarnings("ignore")  # of their own packages
@pytest.mark.parametrize("method", ["optimum.quanto", "torchao", "bitsandbytes"])
@pytest.mark.parametrize("name", ["coordformer-1M-pdb", "coordformer-7M-pdb"])
def test_weights_in_8_bits_by_the_configs_of_transformers(name, method):
    """Logits of the amino acids are less than .05 away on average, and features of coordinates are never rounded."""
    pytest.importorskip(method, reason="pip install -c constraints.txt '.[quantization]'")
    batch, logits, features = CoordformerProcessor()(structures=STRUCTURES / "1orc.pdb.gz"), [], []
    for options in ({}, {"quantization_config": config_of(method)}):
        model = AutoModelForMaskedLM.from_pretrained(CARDS / name, dtype=torch.float32, **options).eval()
        with torch.no_grad():
            logits.append(model(**batch).logits[0, 1:-1, 4:24])
            structure = model.coordformer.encode_structure(batch["coords"], batch["input_ids"])
        features.append((structure.embedding, structure.graph.edges))
    assert 0 < (logits[1] - logits[0]).abs().mean() < 0.05
    torch.testing.assert_close(features[1], features[0], rtol=0, atol=0)


@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_lora_on_all_linear_layers(fields, tmp_path):
    """Adapters that are silent change nothing; trained ones are merged, and reloaded, to the same logits."""
    config = make_config(num_labels=3, **fields)
    model, row = CoordformerForSequenceClassification(config).eval(), random_chain(12)
    model.save_pretrained(tmp_path / "base")
    expected = outputs_of(model, row)
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear")).eval()
    torch.testing.assert_close(outputs_of(adapted, row), expected)
    train_adapter(adapted)
    trained = outputs_of(adapted, row)
    assert (trained - expected).abs().max() > 1e-3
    adapted.save_pretrained(tmp_path / "adapter")
    base = CoordformerForSequenceClassification.from_pretrained(tmp_path / "base")
    reloaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(outputs_of(reloaded, row), trained)
    torch.testing.assert_close(outputs_of(reloaded.merge_and_unload(), row), trained, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_layers_on_a_second_device(fields):
    """Two devices without two accelerators: the hook that `device_map` attaches, and `meta`, which has shapes alone."""
    model = make_model(tie_word_embeddings=False, **fields)
    behind = [model.coordformer.esm.encoder.layer[1], model.coordformer.esm.encoder.emb_layer_norm_after, model.lm_head]
    for module in behind:
        module.to("meta")
        add_hook_to_module(module, AlignDevicesHook(execution_device="meta"))
    logits = outputs_of(model, pad_rows([random_chain(9), random_chain(12)]))
    assert logits.device.type == "meta" and logits.shape == (2, 14, 33)


@pytest.mark.parametrize("name", ["points", "gated messages"])
def test_one_graph_for_all_batches_and_lengths(name):
    """Also of fewer residues than neighbors."""
    model = make_model(**MODELS[name])
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    for rows, length in ((2, 30), (3, 41), (4, 6), (2, 3), (5, 64), (3, 17)):
        batch = pad_rows(
            [random_chain(length, missing=1), *(random_chain(length - 1, missing=0) for _ in range(rows - 1))]
        )
        with torch.no_grad():
            torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits, atol=1e-4, rtol=1e-4)
    assert counter.frame_count == 1


def random_batch(rows: int, length: int) -> dict[str, torch.Tensor]:
    return pad_rows([random_chain(length), *(random_chain(length - 2) for _ in range(rows - 1))])


@pytest.mark.parametrize("name", ["linear", "gated messages"])
def test_an_exported_program_takes_any_batch_and_length(name, tmp_path):
    """Also after it was saved, where a reader needs neither this package nor Transformers."""
    model, example = make_model(**MODELS[name]), random_batch(2, 30)
    auto = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    program = torch.export.export(model, (), kwargs=example, dynamic_shapes=dict.fromkeys(example, auto))
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for rows, length in ((2, 30), (3, 50), (4, 5)):
        given = random_batch(rows, length)
        with torch.no_grad():
            torch.testing.assert_close(loaded(**given).logits, model(**given).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's exporter
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))),
    reason="pip install -c constraints.txt '.[onnx]'",
)
def test_onnxruntime_computes_what_the_shipped_model_does(tmp_path):
    """Of other batches and lengths than the one that was exported, and fewer residues than neighbors."""
    import onnxruntime

    model = AutoModelForMaskedLM.from_pretrained(CARDS / "coordformer-1M-pdb", dtype=torch.float32).eval()
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    example = random_batch(2, 50)
    program = torch.onnx.export(
        model, kwargs=example, dynamic_shapes=dict.fromkeys(example, sizes), dynamo=True, output_names=["logits"]
    )
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert session.get_outputs()[0].shape[:2] == ["batch", "length"]
    for rows, length in ((2, 50), (1, 80), (3, 31), (4, 9), (1, 200)):
        given = random_batch(rows, length)
        (found,) = session.run(["logits"], {name: value.numpy() for name, value in given.items()})
        with torch.no_grad():
            expected = model(**given).logits
        real = given["attention_mask"].bool()
        torch.testing.assert_close(torch.from_numpy(found)[real], expected[real], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_threads_share_a_model_that_predicts_contacts(attention):
    """While others predict residues: nothing of the model changes, and each gets what it gets alone."""
    model = CoordformerForContactPrediction(make_config(**POINTS)).eval()
    model.set_attn_implementation(attention)
    rows = [random_chain(length) for length in range(20, 60, 2)]
    with torch.no_grad():
        expected = [model.predict_contacts(**row) for row in rows]
        states = [model.coordformer(**row).last_hidden_state for row in rows]

    @torch.no_grad()
    def both(number: int) -> bool:
        row = rows[number % len(rows)]
        if number % 3:
            return torch.equal(model.predict_contacts(**row), expected[number % len(rows)])
        return torch.equal(model.coordformer(**row).last_hidden_state, states[number % len(rows)])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(both, range(120)))
    assert model.config._attn_implementation == attention


def test_a_contact_head_is_nobodys_business():
    """The config that it is made of stays as it is, and a head that was never trained says so."""
    config = make_config(**POINTS)
    CoordformerForContactPrediction(config)
    assert not config.contact_head and CoordformerForMaskedLM(config).coordformer.contact_head is None
    with pytest.raises(ValueError, match="contact head was never trained"):
        CoordformerModel(make_config(contact_head=True)).predict_contacts(**random_chain(9))


@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_gradients_have_the_dtype_of_their_weights(fields):
    model = make_model(**fields)
    outputs_of(model, random_chain(12)).square().mean().backward()
    model.to(torch.bfloat16)
    dtypes = {parameter.dtype for parameter in model.parameters()}
    assert torch.bfloat16 in dtypes
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.dtype == parameter.dtype, name
    torch.optim.SGD(model.parameters(), 1e-3).step()


@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_embeddings_in_place_of_tokens_need_to_be_told_which_are_special(fields):
    """With coordinates at <cls> and <eos>, which tokens alone would rule out."""
    model, row = make_model(token_dropout=False, **fields), random_chain(12)
    coords = row["coords"].clone()
    coords[0, [0, -1]] = 5.0
    expected = outputs_of(model, row | {"coords": coords})
    embeds = model.get_input_embeddings()(row["input_ids"])
    special = torch.zeros(1, 14, dtype=torch.long)
    special[0, [0, -1]] = 1
    given = {"inputs_embeds": embeds, "coords": coords}
    torch.testing.assert_close(outputs_of(model, given | {"special_tokens_mask": special}), expected)
    assert not torch.allclose(outputs_of(model, given), expected)
    torch.testing.assert_close(outputs_of(model, row), expected)
