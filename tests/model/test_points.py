"""Frames of residues, neighbors embedded in them, and attention with points: by hand, by formula, by symmetry."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import STRUCTURES, make_config, make_model, outputs_of, pack_rows, pad_rows, random_chain
from transformers import EsmConfig, EsmForMaskedLM

from coordformer import CoordformerProcessor, from_esm, read_chains
from coordformer.data.collator import rotations_from_normals
from coordformer.model import fused, kernels, neighbor_graph
from coordformer.model.coordinates import CHAIN_OFFSETS, backbone_frames, local_frame_coordinates
from coordformer.model.neighbor_graph import (
    BLOCK,
    EdgeFeatures,
    MessagePassing,
    NeighborGraph,
    k_nearest_neighbors,
    radial_basis_functions,
)
from coordformer.model.structure_layers import InvariantPointAttention
from coordformer.training.arguments import ModelArguments
from coordformer.training.train import build_model

WAYS = {
    "local": {"coordinate_embedding": "local_frame"},
    "points": {"coordinate_embedding": "none", "num_qk_points": 3},
    "both": {"coordinate_embedding": "local_frame", "num_qk_points": 3},
    "messages": {"coordinate_embedding": "none", "num_qk_points": 2, "num_neighbors": 6},
    "gated messages": {
        "coordinate_embedding": "none",
        "num_qk_points": 2,
        "num_neighbors": 6,
        "message_gating": True,
    },
    "message attention": {
        "coordinate_embedding": "none",
        "num_qk_points": 2,
        "num_neighbors": 6,
        "message_attention": True,
    },
    "edge updates": {"coordinate_embedding": "none", "num_qk_points": 2, "num_neighbors": 6, "edge_updates": True},
    "messages of backbones": {
        "coordinate_embedding": "local_frame",
        "num_qk_points": 2,
        "num_neighbors": 6,
        "coordinate_atoms": ("N", "CA", "C", "O"),
        "partial_backbones": True,
    },
    "more value points": {"coordinate_embedding": "none", "num_qk_points": 2, "num_v_points": 5},
    "fewer value points": {"coordinate_embedding": "none", "num_qk_points": 4, "num_v_points": 1},
    "both, backbone": {"coordinate_embedding": "local_frame", "num_qk_points": 2, "coordinate_atoms": ("N", "CA", "C")},
}


def random_rotation() -> torch.Tensor:
    return rotations_from_normals(torch.randn(1, 3, 3, dtype=torch.float64))[0].float()


def chain_of(points: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Coordinates, their mask, and positions of one chain of C-alphas (residues, 3), Å."""
    coords = torch.tensor(points, dtype=torch.float32)[None, :, None]
    return coords.nan_to_num(), ~coords.isnan().any(dim=-1), torch.arange(len(points))[None]


def have_axes(rotations: torch.Tensor) -> torch.Tensor:
    """Which frames have a rotation, (batch, sequence)."""
    return rotations.any(dim=-1).any(dim=-1)


# --- frames ----------------------------------------------------------------------------------------------------------


def test_a_frame_is_computed_by_hand():
    coords, coords_mask, positions = chain_of(np.array([[0, 0, 0], [3, 0, 0], [3, 4, 0], [3, 4, 5]]))
    rotations, translations, known = backbone_frames(coords, coords_mask, positions, None, ["CA"])
    assert known.all() and torch.equal(translations[0], coords[0, :, 0])
    # Of residue 1: (-3, 0, 0) and (0, 4, 0) to its neighbors, (3, 4, 0) between them.
    expected = torch.tensor([[0.6, 0.8, 0.0], [-0.8, 0.6, 0.0], [0.0, 0.0, -1.0]]).T
    expected[:, 1] = torch.linalg.cross(expected[:, 2], expected[:, 0])
    torch.testing.assert_close(rotations[0, 1], expected)
    assert not rotations[0, [0, 3]].any(), "the ends have one neighbor"


def test_rotations_are_orthogonal_and_keep_the_hand():
    coords, coords_mask, positions = chain_of(np.random.default_rng(0).normal(size=(30, 3)).cumsum(axis=0))
    rotations = backbone_frames(coords, coords_mask, positions, None, ["CA"]).rotations[0, 1:-1]
    torch.testing.assert_close(rotations.mT @ rotations, torch.eye(3).expand(28, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(28))


def test_frames_end_at_gaps_breaks_and_segments():
    points = np.random.default_rng(0).normal(size=(12, 3)).cumsum(axis=0)
    points[5] = np.nan
    coords, coords_mask, positions = chain_of(points)
    framed = have_axes(backbone_frames(coords, coords_mask, positions, None, ["CA"]).rotations)[0]
    assert framed.tolist() == [0 < i < 11 and i not in (4, 5, 6) for i in range(12)]
    positions = positions + 20 * (positions >= 8)  # the chains of a complex
    framed = have_axes(backbone_frames(coords, coords_mask, positions, None, ["CA"]).rotations)[0]
    assert framed.tolist() == [0 < i < 11 and i not in (4, 5, 6, 7, 8) for i in range(12)]
    runs = torch.tensor([[0] * 3 + [1] * 9])
    positions = torch.arange(12)[None]
    framed = have_axes(backbone_frames(coords, coords_mask, positions, runs, ["CA"]).rotations)[0]
    assert framed.tolist() == [0 < i < 11 and i not in (2, 3, 4, 5, 6) for i in range(12)]


def test_backbone_atoms_need_no_neighbors():
    atoms = torch.randn(1, 5, 3, 3)
    coords_mask = torch.ones(1, 5, 3, dtype=torch.bool)
    coords_mask[0, 0, 0] = False  # the first without its N
    rotations, translations, known = backbone_frames(atoms, coords_mask, torch.arange(5)[None], None, ["N", "CA", "C"])
    assert torch.equal(translations, atoms[:, :, 1]) and known.all()
    assert have_axes(rotations)[0].tolist() == [False, True, True, True, True]


def test_frames_are_of_c_alphas_where_atoms_are_missing():
    """Those of the residues beside it; whole residues keep theirs, whatever their neighbors lack."""
    coords, positions = torch.randn(1, 8, 3, 3), torch.arange(8)[None]
    coords_mask = torch.ones(1, 8, 3, dtype=torch.bool)
    atoms = ["N", "CA", "C"]
    whole = backbone_frames(coords, coords_mask, positions, None, atoms).rotations
    trace = backbone_frames(coords[:, :, 1:2], coords_mask[:, :, 1:2], positions, None, ["CA"]).rotations
    coords_mask[0, 3, 0] = coords_mask[0, 5, 2] = coords_mask[0, 0, 2] = False
    found = backbone_frames(coords, coords_mask, positions, None, atoms).rotations
    expected = whole.clone()
    expected[0, [3, 5]], expected[0, 0] = trace[0, [3, 5]], 0.0  # nothing is before the first
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert (whole - trace).abs().max() > 0.1


def test_residues_of_an_ideal_helix_have_the_same_coordinates_in_each_frame():
    """3.6 residues a turn, 1.5 Å of rise; the left-handed helix has others, as mirror images differ."""
    turn = 2 * np.pi / 3.6 * np.arange(20)
    views = []
    for hand in (1, -1):
        points = np.stack((2.3 * np.cos(turn), hand * 2.3 * np.sin(turn), 1.5 * np.arange(20)), axis=1)
        coords, coords_mask, positions = chain_of(points @ random_rotation().numpy() + 20)
        frames = backbone_frames(coords, coords_mask, positions, None, ["CA"])
        local, known = local_frame_coordinates(coords, coords_mask, frames, positions, None)
        assert local.shape == (1, 20, len(CHAIN_OFFSETS), 3)
        assert known[0, 4:-4].all() and not known[0, 0].any() and known[0, 2].tolist() == [False] * 2 + [True] * 7
        torch.testing.assert_close(local[0, 4:-4], local[0, 4:5].expand(12, -1, -1), atol=1e-4, rtol=0)
        views.append(local[0, 10])
    assert (views[0] - views[1]).abs().max() > 1


@pytest.mark.parametrize("pairs", [2**24, 700])
def test_the_nearest_are_those_of_a_search_by_hand(pairs):
    """Across segments, padding and missing residues; in pieces or at once."""
    generator = torch.Generator().manual_seed(0)
    translations = torch.randn(2, 40, 3, generator=generator) * 10
    coords_mask = torch.rand(2, 40, generator=generator) > 0.2
    runs = torch.tensor([[0] * 25 + [1] * 15, [0] * 3 + [1] * 20 + [2] * 17])
    for segments, longest in ((runs, 25), (runs, None), (None, None)):
        places, exist = k_nearest_neighbors(translations, coords_mask, segments, 8, longest, pairs)
        assert places.shape == exist.shape == (2, 40, 8)
        for row in range(2):
            for i in range(40):
                same = torch.ones(40) if segments is None else segments[row] == segments[row, i]
                others = (same * coords_mask[row] * coords_mask[row, i]).nonzero().flatten().tolist()
                others = [j for j in others if j != i]
                others.sort(key=lambda j: (translations[row, i] - translations[row, j]).norm().item())
                assert places[row, i][exist[row, i]].tolist() == others[:8]


def test_radial_basis_functions_by_hand():
    found = radial_basis_functions(torch.tensor([[0.0, 6.0]]), num_rbf=5, max_distance=20.0)  # centers 5 Å apart
    assert found.shape == (1, 2, 5)
    expected = np.exp(-(((np.array([[0.0], [6.0]]) - np.array([0, 5, 10, 15, 20])) / 5) ** 2))
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


def test_edge_features_are_computed_by_hand():
    """Of residue 1 and the two beside it in the chain of the frame above, with weights that pass features on."""
    coords, coords_mask, positions = chain_of(np.array([[0, 0, 0], [3, 0, 0], [3, 4, 0], [3, 4, 5]]))
    frames = backbone_frames(coords, coords_mask, positions, None, ["CA"])
    module = EdgeFeatures(make_config(num_qk_points=1, num_neighbors=3, hidden_size=64))
    features = []
    module.geometry.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    torch.nn.init.normal_(module.other_chain)
    graph = module(frames, positions, None, None)
    places, exist, edges = graph.places, graph.exist, graph.edges
    assert exist.all() and edges.shape == (1, 4, 3, 32)
    places = places.view(4, 3)
    assert places[1].tolist() == [0, 2, 3]

    def edges_of(separation) -> torch.Tensor:
        summed = module.geometry(features[0][1]) + separation
        return MessagePassing.gain * module.norm(torch.nn.functional.gelu(module.gain * summed))

    along = module.separation.weight[module.max_separation + torch.tensor([-1, 1, 2])]
    torch.testing.assert_close(edges[0, 1], edges_of(along))
    complex_ids = torch.tensor([[0, 0, 0, 1]])  # the last residue is in another chain, whatever its position says
    across = module(frames, positions, None, None, complex_ids)
    torch.testing.assert_close(across.edges[0, 1], edges_of(torch.cat((along[:2], module.other_chain[None]))))
    second = features[0][1, 1]  # 4 Å away, in the frame of residue 1 and in its own
    rotations = frames.rotations[0]
    direction = torch.tensor([0.0, 1.0, 0.0])
    torch.testing.assert_close(second[:3], direction @ rotations[1])
    torch.testing.assert_close(second[3:6], direction @ rotations[2])
    torch.testing.assert_close(second[6:15].view(3, 3), rotations[1].T @ rotations[2])
    expected = np.exp(-(((4 - np.linspace(0, 20, 16)) / (20 / 15)) ** 2))
    np.testing.assert_allclose(second[15:], expected, atol=1e-5)
    assert not features[0][1, 0, 3:15].any(), "the first residue has no frame of its own"


def test_edge_features_with_gates_hold_the_distances_between_the_residues_beside_both():
    """Two chains in a row whose positions run on, with a residue that was not observed in the first."""
    points = np.array([[0, 0, 0], [3, 0, 0], [3, 4, 0], [3, 4, 5], [np.nan] * 3, [7, 1, 2], [8, 2, 2], [2, 2, 2]])
    coords, coords_mask, positions = chain_of(points)
    runs = torch.tensor([[0] * 6 + [1] * 2])
    frames = backbone_frames(coords, coords_mask, positions, runs, ["CA"])
    config = make_config(num_qk_points=1, num_neighbors=4, hidden_size=64, message_gating=True)
    module = EdgeFeatures(config)
    features = []
    module.geometry.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    graph = module(frames, positions, runs, None)
    places, exist, edges = graph.places, graph.exist, graph.edges
    assert edges.shape == (1, 8, 4, 32) and exist.sum() == 5 * 4 + 2 * 1
    missing = 0
    for one in range(8):
        for place, exists, row in zip(places.view(8, 4)[one], exist[0, one], features[0][one], strict=True):
            for i, j in np.ndindex(3, 3) if exists else ():
                first, second = one + i - 1, int(place) + j - 1
                inside = all(0 <= end < 8 and runs[0, end] == runs[0, one] for end in (first, second))
                expected = np.zeros(16)
                if inside and not np.isnan(points[[first, second]]).any():
                    distance = np.linalg.norm(points[first] - points[second])
                    expected = np.exp(-(((distance - np.linspace(0, 20, 16)) / (20 / 15)) ** 2))
                missing += not expected.any()
                # Of no distance the root of 1e-6 is taken.
                np.testing.assert_allclose(row[15:].view(3, 3, 16)[i, j], expected, atol=2e-3)
    assert missing > 50


@pytest.mark.parametrize("gating", [False, True])
def test_messages_are_those_of_a_loop_over_edges(gating):
    config = make_config(num_qk_points=1, num_neighbors=4, message_gating=gating)
    module = MessagePassing(config)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    hidden = torch.randn(2, 7, config.hidden_size)
    places, exist = torch.randint(7, (2, 7, 4)), torch.rand(2, 7, 4) > 0.3
    edges = torch.randn(2, 7, 4, config.hidden_size // 2)
    output = module(hidden, NeighborGraph((places + torch.tensor([0, 7])[:, None, None]).flatten(), exist, edges))
    for row in range(2):
        for i in range(7):
            mean = torch.zeros(config.hidden_size // (1 if gating else 2))
            for k in range(4):
                both = module.sender(hidden[row, places[row, i, k]]) + module.receiver(hidden[row, i])
                message = torch.nn.functional.silu(5 * both + module.edge(edges[row, i, k]))
                if gating:
                    gate = 5 * module.gate_sender(hidden[row, places[row, i, k]])
                    message = message * (gate + module.gate_edge(edges[row, i, k]))
                mean = mean + 5 / 4 * message * exist[row, i, k]
            torch.testing.assert_close(output[row, i], module.output(mean), atol=2e-4 if gating else 1e-5, rtol=1e-4)


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", WAYS.values(), ids=WAYS)
def test_rotations_and_translations_change_nothing_and_mirrors_do(fields):
    model = make_model(**fields)
    atoms = len(model.config.coordinate_atoms)
    batch = pad_rows([random_chain(30, atoms), random_chain(17, atoms)])
    before = outputs_of(model, batch)
    turned = batch | {"coords": batch["coords"] @ random_rotation() + torch.tensor([50.0, -20.0, 7.0])}
    mirrored = batch | {"coords": -batch["coords"]}
    real = batch["attention_mask"].bool()
    assert (outputs_of(model, turned) - before)[real].abs().max() < 2e-3 * before.std()
    assert (outputs_of(model, mirrored) - before)[real].abs().max() > 0.1 * before.std()


@pytest.mark.parametrize("fields", WAYS.values(), ids=WAYS)
def test_gradients_of_coordinates_neither_move_nor_turn_the_chain(fields):
    """An invariant function pulls at residues with forces whose sum and torque are zero, in all its parts."""
    model = make_model(**fields)
    row = random_chain(20, len(model.config.coordinate_atoms))
    row["coords"].requires_grad_()
    outputs_of(model, row)[0].square().sum().backward()
    forces, places = row["coords"].grad.reshape(-1, 3), row["coords"].detach().nan_to_num().reshape(-1, 3)
    size = forces.norm(dim=-1).sum()
    assert forces.isfinite().all() and size > 0
    assert forces.sum(dim=0).norm() < 1e-3 * size
    arms = places - places.mean(dim=0)
    torque = torch.linalg.cross(arms, forces).sum(dim=0)
    assert torque.norm() < 1e-3 * (arms.norm(dim=-1) * forces.norm(dim=-1)).sum()


class AnotherLinear(torch.nn.Linear):
    """Not the layer that the blocks know: its messages get the gradients of autograd."""


def without_kernels(monkeypatch):
    for module in (neighbor_graph, fused):
        monkeypatch.setattr(module, "kernel_takes", lambda *tensors: False)


@pytest.fixture(params=["C", "PyTorch"])
def kernel(request, monkeypatch):
    """Messages and points in C, where there is a compiler, and by PyTorch."""
    if request.param == "PyTorch":
        without_kernels(monkeypatch)
    elif kernels.load_kernel() is None:
        pytest.skip("no C compiler")


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("gating", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_gradients_of_blocks_are_those_of_autograd(kernel, gating, bfloat16, threads):
    """Of all weights and of the coordinates, of rows longer than a block, with residues that have few neighbors; in
    bfloat16 about as far from float32's as autograd's."""
    fields = {"coordinate_embedding": "none", "num_qk_points": 1, "num_neighbors": 6, "message_gating": gating}
    model, rows = make_model(**fields), pad_rows([random_chain(2 * BLOCK + 5), random_chain(5), random_chain(BLOCK)])
    rows["coords"][0, 10:12] = torch.nan

    def gradients_of(layer: type, bfloat16: bool) -> dict[str, torch.Tensor]:
        for module in model.modules():
            if isinstance(module, MessagePassing):
                for edge in (module.edge, module.gate_edge):
                    if edge is not None:
                        edge.__class__ = layer
        model.zero_grad()
        coords = rows["coords"].clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            outputs = outputs_of(model, rows | {"coords": coords})
        outputs.float().square().sum().backward()
        gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        return gradients | {"coords": coords.grad.nan_to_num(), "outputs": outputs.detach().float()}

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        exact, autograd, blocks = (
            gradients_of(layer, half)
            for layer, half in ((AnotherLinear, False), (AnotherLinear, bfloat16), (torch.nn.Linear, bfloat16))
        )
    finally:
        torch.set_num_threads(before)
    assert blocks.keys() == exact.keys() and any("edge_features.geometry" in name for name in blocks)

    def errors(found: dict[str, torch.Tensor]) -> np.ndarray:
        return np.array([(found[name] - each).norm() / (each.norm() + 1e-3) for name, each in exact.items()])

    if bfloat16:
        assert errors(blocks).mean() < 1.5 * errors(autograd).mean() < 0.1
    else:
        assert errors(blocks).max() < 2e-5


@pytest.mark.skipif(kernels.load_kernel() is None, reason="no C compiler")
@pytest.mark.parametrize("positions", ["rotary", "none"])
@pytest.mark.parametrize("way", ["points", "both", "gated messages", "more value points", "fewer value points"])
def test_points_in_c_are_those_of_the_formulas(way, positions, monkeypatch):
    """Outputs and all gradients, padded, packed, and of rows that share a structure."""
    if way == "both" and positions == "none":
        pytest.skip("neighbors along the chain need positions")
    model = make_model(**WAYS[way], position_embedding_type=positions)
    for name, weight in model.named_parameters():
        if name.endswith(("missing", "log_sigma")):
            torch.nn.init.normal_(weight, std=0.3)
    chains = [random_chain(30), random_chain(17, missing=9)]
    padded, packed = pad_rows(chains), pack_rows(chains, padding=3)
    model.set_attn_implementation("varlen")
    found = []
    for without in (False, True):
        if without:
            without_kernels(monkeypatch)
        model.zero_grad()
        outputs = [outputs_of(model, batch) for batch in (padded, packed)]
        sum(each.square().sum() for each in outputs).backward()
        gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        with torch.no_grad():
            structure = model.base_model.encode_structure(chains[0]["coords"], chains[0]["input_ids"])
            letters = torch.randint(4, 24, (3, 32)).fill_(9)
            letters[1, 3:9], letters[2, 7] = 5, 6
            letters[:, 0], letters[:, -1] = 0, 2
            outputs.append(model(input_ids=letters, structure=structure).logits)
        found.append(gradients | {f"output {number}": each.detach() for number, each in enumerate(outputs)})
    assert found[0].keys() == found[1].keys()
    for name, formula in found[1].items():
        # Of sigma large terms cancel, and what is left of their rounding depends on the processor's instructions.
        share = 2e-3 if name.endswith("log_sigma") else 2e-4
        assert (found[0][name] - formula).norm() < share * formula.norm() + 1e-5 * formula.numel() ** 0.5, name


def test_kernel_sums_messages_without_gradients_too(kernel):
    """Of rows that share a graph, and those of layers that are no plain `nn.Linear`."""
    model = make_model(coordinate_embedding="none", num_qk_points=1, num_neighbors=6, message_gating=True)
    row = pad_rows([random_chain(BLOCK + 9)])
    structure = model.base_model.encode_structure(row["coords"], row["input_ids"])
    letters = row["input_ids"].repeat(3, 1)
    letters[1:, 5:20] = letters[1:, 5:20].flip(1)
    letters[2, 1:-1] = letters[2, 1:-1].roll(3)
    exact = torch.cat([model(input_ids=each[None], coords=row["coords"]).logits for each in letters]).detach()
    with torch.no_grad():
        shared = model(input_ids=letters, structure=structure).logits
        alone = torch.cat([model(input_ids=each[None], coords=row["coords"]).logits for each in letters])
    torch.testing.assert_close(shared, exact, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(alone, exact, atol=1e-5, rtol=1e-4)


def test_kernel_can_be_turned_off_and_compiles_into_the_folder_of_assets(tmp_path):
    code = (
        "import sys, coordformer.model.kernels as kernel\n"
        "print(kernel.load_kernel() is None, [p.name for p in __import__('pathlib').Path(sys.argv[1]).rglob('*.so')])"
    )
    environment = os.environ | {"HF_ASSETS_CACHE": str(tmp_path / "assets")}

    def run(**more: str) -> str:
        command = [sys.executable, "-c", code, str(tmp_path)]
        return subprocess.run(command, env=environment | more, capture_output=True, text=True, check=True).stdout

    assert run(COORDFORMER_KERNEL="0") == "True []\n"
    assert run(CC="no-such-compiler") == "True []\n"
    assert run(CC="false") == "True []\n"  # one that fails is none
    if kernels.load_kernel() is not None:
        assert run() == run() == "False ['kernels.so']\n"


@pytest.mark.parametrize("gating", [False, True])
def test_messages_have_their_part_in_the_gradient_of_coordinates(gating):
    """Against a difference of two evaluations, with all other residues as neighbors."""
    fields = {"num_qk_points": 1, "num_neighbors": 25, "message_gating": gating, "num_hidden_layers": 1}
    model = make_model(coordinate_embedding="none", **fields)
    row = random_chain(20)
    direction = torch.randn_like(row["coords"])
    torch.nn.init.zeros_(model.coordformer.esm.encoder.layer[0].attention.self.output_points.weight)

    def value(coords: torch.Tensor) -> torch.Tensor:
        return outputs_of(model, row | {"coords": coords})[0].double().square().sum()

    coords = row["coords"].clone().requires_grad_()
    value(coords).backward()
    slope = (coords.grad.nan_to_num() * direction).sum().item()
    with torch.no_grad():
        rise = (value(row["coords"] + 0.01 * direction) - value(row["coords"] - 0.01 * direction)).item()
    assert slope == pytest.approx(rise / 0.02, rel=0.05)


def attend_one_by_one(module: InvariantPointAttention, hidden, frames) -> torch.Tensor:
    """Jumper et al. 2021, algorithm 22, residue by residue and head by head, without pair representation."""
    rotations, translations, known = (each[0] for each in frames)
    hidden = hidden[0]
    length, heads = len(hidden), module.num_attention_heads
    query, key, value = (layer(hidden).view(length, heads, -1) for layer in (module.query, module.key, module.value))
    query_points, key_points, value_points = (
        torch.einsum("lij,lhpj->lhpi", rotations, layer(hidden).view(length, heads, -1, 3))
        + translations[:, None, None]
        for layer in (module.query_points, module.key_points, module.value_points)
    )
    sigma = (module.gain * module.log_sigma).exp()
    outputs, features = [], []
    for i in range(length):
        values, points = [], []
        for head in range(heads):
            logits = key[:, head] @ query[i, head] / query.shape[-1] ** 0.5
            if known[i]:
                squares = (query_points[i, head] - key_points[:, head]).square().sum(dim=(-2, -1))
                near = -squares / (2 * module.num_qk_points * sigma[head] ** 2)
                logits = logits + torch.where(known, near, module.missing[head])
            weights = logits.softmax(dim=0)
            values.append(weights @ value[:, head])
            mean = torch.einsum("j,jpc->pc", weights * known, value_points[:, head] - translations[i])
            points.append((mean @ rotations[i], mean.norm(dim=-1), (weights * known).sum()))
        outputs.append(torch.cat(values))
        parts = [torch.cat([each.reshape(-1) for each in column]) for column in zip(*points, strict=True)]
        features.append(torch.cat(parts) * known[i])
    return torch.stack(outputs) + module.output_points(torch.stack(features))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("num_qk_points", "num_v_points"), [(3, None), (1, 6), (5, 2), (4, 8)])
def test_invariant_point_attention_is_that_of_the_formula(num_qk_points, num_v_points, attention):
    config = make_config(num_qk_points=num_qk_points, num_v_points=num_v_points, position_embedding_type="none")
    config._attn_implementation = attention
    module = InvariantPointAttention(config, 0)
    assert module.value_points.out_features == 4 * 3 * (num_v_points or num_qk_points)
    torch.nn.init.uniform_(module.log_sigma, -0.1, 0.1)
    torch.nn.init.normal_(module.missing)
    coords, coords_mask, positions = chain_of(np.random.default_rng(1).normal(size=(15, 3)).cumsum(axis=0) / 4)
    coords_mask[0, 6:8] = False
    frames = backbone_frames(coords.masked_fill(~coords_mask[..., None], 0.0), coords_mask, positions, None, ["CA"])
    hidden = torch.randn(1, 15, config.hidden_size)
    output = module(hidden, frames=frames)[0]
    torch.testing.assert_close(output[0], attend_one_by_one(module, hidden, frames), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", ["eager", "varlen"])
@pytest.mark.parametrize("num_v_points", [1, 7])
def test_kernels_agree_whatever_the_number_of_value_points(num_v_points, attention):
    """Also of packed rows, and of contacts, which are attended to by a kernel of their own."""
    model = make_model(num_qk_points=3, num_v_points=num_v_points, num_neighbors=4, contact_head=True)
    torch.nn.init.normal_(model.coordformer.contact_head.weight)
    packed, row = pack_rows([random_chain(14), random_chain(9)]), random_chain(12)
    expected, contacts = outputs_of(model, packed), model.predict_contacts(**row)
    model.set_attn_implementation(attention)
    torch.testing.assert_close(outputs_of(model, packed), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.predict_contacts(**row), contacts, atol=1e-6, rtol=1e-5)


def test_a_head_attends_by_distance_in_space():
    """With no content in its queries, a narrow head attends to the residue whose key point is nearest."""
    config = make_config(num_qk_points=1, position_embedding_type="none")
    config._attn_implementation = "eager"
    module = InvariantPointAttention(config, 0)
    for name, parameter in module.named_parameters():
        torch.nn.init.zeros_(parameter) if "output" not in name else None
    torch.nn.init.constant_(module.log_sigma, np.log(1 / 16) / module.gain)
    points = np.random.default_rng(2).uniform(0, 3, size=(20, 3))
    coords, coords_mask, positions = chain_of(points)
    weights = module(torch.randn(1, 20, 48), frames=backbone_frames(coords, coords_mask, positions, None, ["CA"]))[1][0]
    squares = ((points[:, None] - points[None]) ** 2).sum(axis=-1)
    expected = torch.softmax(torch.tensor(-squares / 2 * 256, dtype=torch.float32), dim=-1)
    for head in weights:
        torch.testing.assert_close(head, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_points_keep_float32_beside_bfloat16(how):
    """Products of coordinates in bfloat16 would lose what is near: of 100 Å squared, 64 Å^2."""
    model = make_model(coordinate_embedding="none", num_qk_points=3)
    batch = pad_rows([random_chain(120)])
    batch["coords"] = batch["coords"] * 3  # a chain of some 100 Å
    expected = outputs_of(model, batch)
    if how == "weights":
        model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        output = outputs_of(model, batch).float()
    assert (output - expected).abs().mean() < 0.03 * expected.std()


def test_packed_chains_get_the_messages_that_they_get_alone():
    model = make_model(coordinate_embedding="none", num_qk_points=2, num_neighbors=6)
    chains = [random_chain(length) for length in (14, 5, 22)]
    alone = torch.cat([outputs_of(model, pad_rows([chain]))[0] for chain in chains])
    packed = {name: torch.cat([chain[name] for chain in chains], dim=1) for name in ("input_ids", "coords")}
    packed["sequence_id"] = torch.repeat_interleave(torch.arange(3), torch.tensor([16, 7, 24]))[None]
    together = outputs_of(model, packed)[0]
    torch.testing.assert_close(together, alone, atol=2e-3 * alone.std().item(), rtol=0)


def test_messages_of_one_layer_come_from_the_nearest_neighbors_alone():
    """Attention switched off: what remains is messages."""
    model = make_model(coordinate_embedding="none", num_qk_points=1, num_neighbors=3, num_hidden_layers=1)
    attention = model.coordformer.esm.encoder.layer[0].attention.self
    for layer in (attention.value, attention.output_points):
        torch.nn.init.zeros_(layer.weight)
    row = pad_rows([random_chain(20)])
    before = outputs_of(model, row)[0]
    squares = (row["coords"][0, 7] - row["coords"][0]).square().sum(dim=-1)
    squares[7] = torch.inf
    order = squares.nan_to_num(torch.inf).argsort()
    for number, j in enumerate(order[:6].tolist()):
        changed = row["input_ids"].clone()
        changed[0, j] = 5 if changed[0, j] != 5 else 6
        difference = (outputs_of(model, row | {"input_ids": changed})[0, 7] - before[7]).abs().max()
        assert (difference > 1e-6) == (number < 3), (number, difference)


@pytest.mark.parametrize("gating", [False, True])
def test_messages_are_added_to_a_trained_model(gating, tmp_path):
    """It predicts what it did; then they are trained with the rest."""
    model = make_model(num_qk_points=2)
    model.save_pretrained(tmp_path)
    given = {"init_from": str(tmp_path), "num_qk_points": 2}
    grown = build_model(ModelArguments(**given, num_neighbors=4, message_gating=gating)).eval()
    assert (grown.config.num_neighbors, grown.config.message_gating) == (4, gating)
    row = pad_rows([random_chain(11)])
    torch.testing.assert_close(grown(**row).logits, model(**row).logits)
    grown(**row, labels=row["input_ids"]).loss.backward()
    assert grown.coordformer.esm.encoder.layer[0].attention.self.message_passing.output.weight.grad.any()
    with pytest.raises(ValueError, match="has num_qk_points=2, not 3; leave that out"):
        build_model(ModelArguments(init_from=str(tmp_path), num_qk_points=3, num_neighbors=4))
    with pytest.raises(ValueError, match="`num_neighbors` is -4"):
        build_model(ModelArguments(**given, num_neighbors=-4))
    grown.save_pretrained(tmp_path / "grown")
    given["init_from"] = str(tmp_path / "grown")
    with pytest.raises(ValueError, match="has num_neighbors=4, not 5; leave that out"):
        build_model(ModelArguments(**given, num_neighbors=5, message_gating=gating))
    with pytest.raises(ValueError, match=f"has message_gating={gating}, not {not gating}; leave that out"):
        build_model(ModelArguments(**given, num_neighbors=4, message_gating=not gating))


@pytest.mark.parametrize("gating", [False, True])
def test_checkpoints_lead_the_gradient_of_edge_features_or_are_refused(gating):
    model = make_model(num_qk_points=1, num_neighbors=4, message_gating=gating)
    with pytest.raises(ValueError, match="with which `config.num_neighbors` gets no gradient"):
        model.gradient_checkpointing_enable({"use_reentrant": True})
    row = pad_rows([random_chain(9)])
    gradients = []
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        model.zero_grad()
        outputs_of(model, row).square().sum().backward()
        gradients.append(model.coordformer.edge_features.geometry.weight.grad.clone())
    assert gradients[0].any()
    torch.testing.assert_close(*gradients)


def test_flash_attention_with_points_is_refused():
    model = make_model(num_qk_points=2)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="`config.num_qk_points` needs products in float32"):
        model(**random_chain(5))


def test_points_added_to_esm_change_nothing_at_first():
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    esm = EsmForMaskedLM(
        EsmConfig(vocab_size=33, pad_token_id=1, mask_token_id=32, position_embedding_type="rotary", **shape)
    ).eval()
    model = from_esm(esm, num_qk_points=4, coordinate_embedding="local_frame", num_neighbors=5, message_gating=True)
    chain = read_chains(STRUCTURES / "1orc.pdb.gz")[0]
    batch = CoordformerProcessor()(chain.sequence, coords=chain.coords)
    expected = esm(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(model(**batch).logits, expected, atol=1e-5, rtol=0)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    for name, parameter in model.named_parameters():
        if "output_points" in name or "message_passing.output" in name:
            assert parameter.grad.any(), name


def test_esm_is_not_given_what_no_config_takes(tmp_path):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    EsmForMaskedLM(EsmConfig(vocab_size=33, pad_token_id=1, mask_token_id=32, **shape)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^`num_neighbors` is 3, but messages are passed beside invariant point"):
        build_model(ModelArguments(init_from=str(tmp_path), num_neighbors=3))


def test_contacts_of_a_model_with_points_are_those_of_its_maps():
    model = make_model(num_qk_points=2, contact_head=True)
    head = model.coordformer.contact_head
    torch.nn.init.normal_(head.weight)
    row = random_chain(12)
    predicted = model.predict_contacts(**row)
    model.set_attn_implementation("eager")
    maps = torch.cat(model(**row, output_attentions=True).attentions, dim=1)[:, :, 1:-1, 1:-1]
    maps = maps + maps.transpose(-1, -2)
    product = maps.sum(-1, keepdim=True) * maps.sum(-2, keepdim=True) / maps.sum((-1, -2), keepdim=True)
    logits = ((maps - product) * head.weight.view(1, -1, 1, 1)).sum(dim=1) + head.bias
    torch.testing.assert_close(predicted, logits.sigmoid(), atol=1e-5, rtol=0)


def test_points_and_messages_compile_without_graph_breaks():
    fields = {"num_qk_points": 2, "num_neighbors": 3, "message_gating": True}
    model = make_model(coordinate_embedding="local_frame", **fields)
    batch = pad_rows([random_chain(12), random_chain(7)])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits)
