"""Edges that change from layer to layer, attention weights for messages: by loops, by symmetry, added to a model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_config, make_model, outputs_of, pad_rows, random_chain
from safetensors.torch import load_file, save_file

import coordformer
from coordformer import CoordformerForMaskedLM
from coordformer.inference.checkpoints import coordinates_of
from coordformer.model import edge_blocks, neighbor_graph
from coordformer.model.neighbor_graph import BLOCK, EdgeUpdate, MessagePassing, NeighborGraph
from coordformer.training.arguments import ModelArguments
from coordformer.training.train import build_model

POINTS = {"coordinate_embedding": "none", "num_qk_points": 1, "num_neighbors": 6}
BOTH = {"message_attention": True, "edge_updates": True}
WAYS = {
    "attention": {"message_attention": True},
    "gated attention": {"message_attention": True, "message_gating": True},
    "edge updates": {"edge_updates": True},
    "both, gated": BOTH | {"message_gating": True},
}
# Loads a folder by its own code, and writes its logits: FOLDER INPUTS OUTPUT
REMOTE = """
import sys
sys.modules["coordformer"] = sys.modules["gemmi"] = None
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM
model, info = AutoModelForMaskedLM.from_pretrained(sys.argv[1], trust_remote_code=True, output_loading_info=True)
assert type(model).__module__.startswith("transformers_modules") and not any(info.values()), info
with torch.no_grad():
    save_file({"logits": model(**load_file(sys.argv[2])).logits}, sys.argv[3])
"""


def random_graph(width: int, rows: int = 2) -> NeighborGraph:
    """Of rows of seven residues with four neighbors each, of which some do not exist."""
    places, exist = torch.randint(7, (rows, 7, 4)), torch.rand(rows, 7, 4) > 0.3
    exist[0, 2] = False
    places = (places + 7 * torch.arange(rows)[:, None, None]).flatten()
    return NeighborGraph(places, exist, torch.randn(rows, 7, 4, width))


def large_weights(module: torch.nn.Module) -> torch.nn.Module:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return module


def test_edges_are_updated_as_by_a_loop():
    config = make_config(num_qk_points=1, num_neighbors=4, edge_updates=True)
    module, graph = large_weights(EdgeUpdate(config, 1)), random_graph(config.hidden_size // 2)
    hidden = torch.randn(2, 7, config.hidden_size)
    with torch.no_grad():
        changed = module(hidden, graph)
        for row, i, k in torch.cartesian_prod(torch.arange(2), torch.arange(7), torch.arange(4)).tolist():
            j = int(graph.places.view(2, 7, 4)[row, i, k]) - 7 * row
            both = 5 * (module.receiver(hidden[row, i]) + module.sender(hidden[row, j]))
            message = torch.nn.functional.silu(both + module.edge(graph.edges[row, i, k]))
            expected = graph.edges[row, i, k] + 5 * module.output(message)
            torch.testing.assert_close(changed.edges[row, i, k], expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(changed.places, graph.places) and torch.equal(changed.exist, graph.exist)


@pytest.mark.parametrize("gating", [False, True])
def test_attention_weighs_messages_as_a_loop_does(gating):
    config = make_config(num_qk_points=1, num_neighbors=4, message_attention=True, message_gating=gating)
    module, graph = large_weights(MessagePassing(config)), random_graph(config.hidden_size // 2)
    hidden = torch.randn(2, 7, config.hidden_size)
    output = module(hidden, graph)
    for row, i in torch.cartesian_prod(torch.arange(2), torch.arange(7)).tolist():
        messages = []
        for k in graph.exist[row, i].nonzero().flatten().tolist():
            j, edge = int(graph.places.view(2, 7, 4)[row, i, k]) - 7 * row, graph.edges[row, i, k]
            both = 5 * (module.receiver(hidden[row, i]) + module.sender(hidden[row, j]))
            message = torch.nn.functional.silu(both + module.edge(edge))
            if gating:
                message = message * (5 * module.gate_sender(hidden[row, j]) + module.gate_edge(edge))
            messages.append(message)
        mean = torch.zeros(module.output.in_features)
        if messages:
            messages = torch.stack(messages)
            weights = (5 * module.attention(messages)).softmax(dim=0)  # (neighbors, heads)
            parts = zip(weights.T, messages.chunk(config.num_attention_heads, dim=1), strict=True)
            mean = len(messages) / 4 * torch.cat([weight @ part for weight, part in parts])
        torch.testing.assert_close(output[row, i], module.output(5 * mean), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("fields", WAYS.values(), ids=WAYS)
def test_gradients_in_blocks_are_those_of_one_piece(fields, bfloat16, monkeypatch):
    """Of all weights and of the coordinates; in bfloat16 about as far from float32's."""
    model = make_model(num_hidden_layers=2 if bfloat16 else 3, **POINTS, **fields)
    rows = pad_rows([random_chain(2 * BLOCK + 5), random_chain(5), random_chain(BLOCK)])
    rows["coords"][0, 10:12] = torch.nan

    def gradients(half: bool) -> dict[str, torch.Tensor]:
        model.zero_grad()
        coords = rows["coords"].clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            outputs = outputs_of(model, rows | {"coords": coords})
        outputs.float().square().sum().backward()
        assert all(weight.grad is not None for weight in model.parameters()), "an idle weight stops DDP"
        found = {name: weight.grad for name, weight in model.named_parameters()}
        return found | {"coords": coords.grad.nan_to_num(), "outputs": outputs.detach().float()}

    blocks = gradients(bfloat16)
    for module in (edge_blocks, neighbor_graph):
        monkeypatch.setattr(module, "in_blocks", lambda device: False)
    exact, plain = gradients(False), gradients(bfloat16)

    def errors(found):
        return torch.stack([(found[name] - each).norm() / (each.norm() + 1e-3) for name, each in exact.items()])

    if bfloat16:
        assert errors(blocks).mean() < 1.5 * errors(plain).mean() < 0.6
    else:
        assert errors(blocks).max() < 1e-4


@pytest.mark.parametrize("fields", WAYS.values(), ids=WAYS)
def test_rows_share_a_structure_but_no_edges_that_depend_on_letters(fields):
    """As in scans: with and without gradients, and twice."""
    model = make_model(num_hidden_layers=3, **POINTS, **fields)
    row = random_chain(BLOCK + 9)
    letters = row["input_ids"].repeat(3, 1)
    letters[1:, 5:20] = letters[1:, 5:20].flip(1)
    letters[2, 1:-1] = letters[2, 1:-1].roll(3)
    with torch.no_grad():
        expected = model(input_ids=letters, coords=row["coords"].expand(3, -1, -1)).logits
        structure = model.base_model.encode_structure(row["coords"], row["input_ids"])
        edges = structure.graph.edges.clone()
        for _ in range(2):
            torch.testing.assert_close(model(input_ids=letters, structure=structure).logits, expected)
    assert torch.equal(structure.graph.edges, edges) and not structure.graph.updated
    found = model(input_ids=letters, structure=structure).logits
    torch.testing.assert_close(found.detach(), expected)
    assert (expected[0] - expected[1]).abs().max() > 1e-3


def test_the_edges_of_each_layer_depend_on_letters_from_the_second_on():
    model, row = make_model(num_hidden_layers=3, **POINTS, **BOTH), random_chain(12)
    other = row["input_ids"].clone()
    other[0, 6] = 5 + (other[0, 6] == 5)
    seen: list[list[torch.Tensor]] = [[], []]
    for found, letters in zip(seen, (row["input_ids"], other), strict=True):
        hooks = [
            layer.attention.self.message_passing.edge_update.register_forward_hook(
                lambda module, inputs, graph, found=found: found.append(graph.edges.detach())
            )
            for layer in model.coordformer.esm.encoder.layer[1:]
        ]
        outputs_of(model, row | {"input_ids": letters})
        for hook in hooks:
            hook.remove()
    assert model.coordformer.esm.encoder.layer[0].attention.self.message_passing.edge_update is None
    assert len(seen[0]) == 2
    for first, second in zip(*seen, strict=True):
        assert (first - second).abs().max() > 1e-4
    assert (seen[0][0] - seen[0][1]).abs().max() > 1e-4, "each layer changes them"


@pytest.mark.parametrize("given", [{"message_attention": True}, {"edge_updates": True}, BOTH])
def test_a_trained_model_with_messages_is_given_them(given, tmp_path):
    """It predicts what it did; then what was added is trained, alone with --freeze."""
    model = make_model(**POINTS)
    model.save_pretrained(tmp_path)
    grown = build_model(ModelArguments(init_from=str(tmp_path), **given, freeze=True)).eval()
    assert all(getattr(grown.config, name) for name in given)
    row = pad_rows([random_chain(11)])
    torch.testing.assert_close(grown(**row).logits, model(**row).logits, atol=1e-5, rtol=1e-4)
    grown(**row, labels=row["input_ids"]).loss.backward()
    trained = {name for name, weight in grown.named_parameters() if weight.requires_grad}
    assert trained == set(grown.state_dict()) - set(model.state_dict())
    silent = [name for name in trained if name.endswith(("edge_update.output.weight", "attention.weight"))]
    assert silent and all(grown.get_parameter(name).grad.any() for name in silent)
    grown.save_pretrained(tmp_path / "grown")
    again = build_model(ModelArguments(init_from=str(tmp_path / "grown"), **given)).eval()
    torch.testing.assert_close(again(**row).logits, grown(**row).logits)
    with pytest.raises(ValueError, match=f"has {next(iter(given))}=True, not False; "):
        build_model(ModelArguments(init_from=str(tmp_path / "grown"), **dict.fromkeys(given, False)))


def test_a_model_with_points_is_given_messages_with_them(tmp_path):
    model = make_model(num_qk_points=2)
    model.save_pretrained(tmp_path)
    grown = build_model(ModelArguments(init_from=str(tmp_path), num_neighbors=4, **BOTH)).eval()
    assert grown.config.edge_updates and grown.config.message_attention
    row = pad_rows([random_chain(11)])
    torch.testing.assert_close(grown(**row).logits, model(**row).logits)
    assert coordinates_of(grown).endswith("invariant points and messages with attention over updated edges")
    with pytest.raises(
        ValueError, match="has edge_updates=False, not True; add --num_neighbors, too, or leave that out"
    ):
        build_model(ModelArguments(init_from=str(tmp_path), edge_updates=True))


@pytest.mark.parametrize("fields", WAYS.values(), ids=WAYS)
def test_gradient_checkpoints_give_the_same_gradients(fields):
    """The layers hand edges on beside what they return, and each is computed a second time."""
    model, row = make_model(num_hidden_layers=3, **POINTS, **fields), pad_rows([random_chain(9)])
    model.train()
    gradients = []
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        outputs_of(model, row).square().sum().backward()
        gradients.append([weight.grad.clone() for weight in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


def test_dropout_of_edges_is_that_of_the_forward_pass():
    """A step against the gradient, with the same dropout, lowers the output as far as the gradient says."""
    config = make_config(num_qk_points=1, num_neighbors=4, edge_updates=True, hidden_dropout_prob=0.5)
    module, graph = large_weights(EdgeUpdate(config, 1)).double().train(), random_graph(config.hidden_size // 2)
    graph.edges = graph.edges.double()
    hidden = torch.randn(2, 7, config.hidden_size, dtype=torch.float64)

    def value() -> torch.Tensor:
        torch.manual_seed(5)
        return module(hidden, graph).edges.square().sum()

    value().backward()
    direction = torch.randn_like(module.edge.weight)
    slope = (module.edge.weight.grad * direction).sum().item()
    with torch.no_grad():
        module.edge.weight += 1e-6 * direction
        above = value()
        module.edge.weight -= 2e-6 * direction
        assert (above - value()).item() / 2e-6 == pytest.approx(slope, rel=1e-4)


def test_they_compile_without_graph_breaks():
    model = make_model(**POINTS, **BOTH)
    batch = pad_rows([random_chain(12), random_chain(7)])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits)


def test_a_model_of_before_loads_as_it_is(tmp_path):
    """A config without the new fields, and the weights of a seed, are those that they were."""
    torch.manual_seed(0)
    plain = CoordformerForMaskedLM(make_config(**POINTS))
    torch.manual_seed(0)
    off = CoordformerForMaskedLM(make_config(**POINTS, message_attention=False, edge_updates=False))
    assert plain.state_dict().keys() == off.state_dict().keys()
    assert all(torch.equal(tensor, off.state_dict()[name]) for name, tensor in plain.state_dict().items())
    assert not any("edge_update" in name or "message_passing.attention" in name for name in plain.state_dict())


def test_remote_code_has_them(tmp_path):
    model, row = make_model(**POINTS, **BOTH), random_chain(12)
    model.save_pretrained(tmp_path / "model")
    for file in (Path(coordformer.__file__).parent / "model").glob("[!_]*.py"):
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    save_file(row, tmp_path / "inputs.safetensors")
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    words = [str(tmp_path / name) for name in ("model", "inputs.safetensors", "logits.safetensors")]
    done = subprocess.run(
        [sys.executable, "-P", "-c", REMOTE, *words],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    logits = load_file(tmp_path / "logits.safetensors")["logits"]
    torch.testing.assert_close(logits, model(**row).logits.detach(), atol=1e-5, rtol=1e-4)
