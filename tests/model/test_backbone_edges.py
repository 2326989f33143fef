"""ESM's layers where residues have N, C and O beside their C-alphas, or lack any, and are told of noise."""

import numpy as np
import pytest
import torch
from conftest import CHAINS, STRUCTURES, make_config, make_model, outputs_of, random_chain
from transformers import AutoModelForMaskedLM, AutoProcessor

from coordformer import CoordformerProcessor, design, read_chains
from coordformer.data.collator import CoordformerDataCollator
from coordformer.hub.card import training_facts
from coordformer.inference.checkpoints import load_checkpoint
from coordformer.inference.masked import predict_masked
from coordformer.model.configuration_coordformer import BACKBONE
from coordformer.model.coordinates import backbone_frames, placed_in, virtual_beta
from coordformer.model.neighbor_graph import EdgeFeatures
from coordformer.training.arguments import ModelArguments
from coordformer.training.train import build_model
from coordformer_command import main

ALONE = torch.tensor([atom != "CA" for atom in BACKBONE])
TRACE = {"coordinate_embedding": "local_frame", "num_qk_points": 2, "num_neighbors": 5, "message_gating": True}
ADDED = {"partial_backbones": True, "noise_conditioning": True}
FIELDS = TRACE | ADDED | {"coordinate_atoms": BACKBONE}


def alone(row, places=slice(None)):
    """The row with C-alphas alone at these places."""
    coords = row["coords"].clone()
    coords[0, places] = coords[0, places].masked_fill(ALONE.unsqueeze(-1), torch.nan)
    return row | {"coords": coords}


def test_a_virtual_beta_is_where_one_was_deposited():
    """In a crystal structure of 2 Å, whatever the residue; of the mirror image it is elsewhere."""
    (chain,) = read_chains(STRUCTURES / "1orc.pdb.gz", atoms=("N", "CA", "C", "CB"))
    n, ca, c, beta = torch.tensor(chain.coords).unbind(dim=1)
    apart = (virtual_beta(n, ca, c) - beta).norm(dim=-1)
    there = ~apart.isnan()
    assert there.sum() > 50 and apart[there].median() < 0.15 and apart[there].max() < 0.5
    mirrored = (virtual_beta(c, ca, n) - beta).norm(dim=-1)
    assert mirrored[there].min() > 1.0


def test_edges_hold_the_distances_of_all_atoms_that_are_there():
    """Of each edge and each pair of atoms, by a loop; a residue without C has no virtual C-beta."""
    row = random_chain(9, 4)
    coords, mask = row["coords"].nan_to_num(), ~row["coords"].isnan().any(dim=-1)
    mask[0, 5, 2] = False
    positions = torch.arange(11)[None]
    frames = backbone_frames(coords[:, :, 1:2], mask[:, :, 1:2], positions, None, ["CA"])
    module, features = EdgeFeatures(make_config(**FIELDS)), []
    module.atom_geometry.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    graph = module(frames, positions, None, None, None, coords, mask, torch.zeros(1, 11))
    points = torch.cat((coords, virtual_beta(*coords[:, :, :3].unbind(dim=2)).unsqueeze(2)), dim=2)[0]
    there = torch.cat((mask, mask[..., :3].all(dim=-1, keepdim=True)), dim=-1)[0]
    found, places, seen = features[0].view(11, 5, 24, 16), graph.places.view(11, 5), 0
    for one in range(11):
        for edge in range(5):
            if not graph.exist[0, one, edge]:
                continue
            other = int(places[one, edge])
            for number, (i, j) in enumerate(module.atom_pairs):
                expected = np.zeros(16)
                if there[one, i] and there[other, j]:
                    distance = float((points[one, i] - points[other, j]).norm())
                    expected = np.exp(-np.minimum(((distance - np.linspace(0, 20, 16)) / (20 / 15)) ** 2, 40))
                    seen += 1
                np.testing.assert_allclose(found[one, edge, number], expected, atol=2e-3)
    assert seen > 500 and len(module.atom_pairs) == 24


def test_frames_are_of_the_trace_whatever_else_is_there():
    model, row, seen = make_model(**FIELDS), random_chain(20, 4), []
    model.coordformer.edge_features.register_forward_pre_hook(lambda _, given: seen.append(given[0].rotations))
    outputs_of(model, row)
    outputs_of(model, alone(row))
    torch.testing.assert_close(*seen)


def test_c_alphas_alone_and_in_part():
    """Other atoms do not matter where they are NaN or masked; each of those that are there does."""
    model, row = make_model(**FIELDS), random_chain(30, 4)
    mask = ~row["coords"].isnan().any(dim=-1)
    expected = outputs_of(model, alone(row))
    mask[..., ALONE] = False
    torch.testing.assert_close(outputs_of(model, row | {"coords_mask": mask}), expected, rtol=0, atol=1e-4)
    for atom in range(4):
        moved = row["coords"].clone()
        moved[0, 12, atom] += 1.0
        assert (outputs_of(model, row | {"coords": moved}) - outputs_of(model, row)).abs().max() > 0.01, atom
    without = row["coords"].clone()
    without[0, 12, 3] = torch.nan
    assert (outputs_of(model, row | {"coords": without}) - outputs_of(model, row)).abs().max() > 0.01


def test_noise_that_is_told():
    model, row = make_model(**FIELDS), random_chain(10, 4)
    exact, larger, largest, more = (
        outputs_of(model, row | {"noise_level": torch.full((1, 12), level)}) for level in (0.0, 0.2, 0.5, 2.0)
    )
    torch.testing.assert_close(outputs_of(model, row), exact, rtol=0, atol=0)
    torch.testing.assert_close(more, largest, rtol=0, atol=0)
    assert (larger - exact).abs().max() > 1e-3 and (largest - larger).abs().max() > 1e-3
    model.config.noise_level = 0.2
    torch.testing.assert_close(outputs_of(model, row), larger, rtol=0, atol=0)
    with pytest.raises(ValueError, match="`noise_level` is -1"):
        outputs_of(model, row | {"noise_level": torch.full((1, 12), -1.0)})
    with pytest.raises(ValueError, match="`noise_level` is of models with `config.noise_conditioning`"):
        outputs_of(make_model(**TRACE), random_chain(10) | {"noise_level": torch.zeros(1, 12)})


@pytest.mark.parametrize("atoms", [(), ("C-alphas",)], ids=["backbones", "C-alphas"])
def test_every_weight_gets_a_gradient(atoms):
    """An idle one stops DistributedDataParallel."""
    model, row = make_model(**FIELDS), random_chain(12, 4)
    model.train()
    outputs_of(model, alone(row) if atoms else row).square().sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("embedding", ["local_frame", "linear", "quadratic", "none", "distance bias"])
def test_a_checkpoint_of_c_alphas_is_given_backbones_and_noise(embedding, tmp_path, caplog):
    """It predicts what it did, with backbones, with C-alphas and with letters alone; then what is new is trained."""
    reads = {"num_distance_bins": 8} if embedding == "distance bias" else {"coordinate_embedding": embedding}
    model = make_model(**TRACE | reads)
    model.save_pretrained(tmp_path)
    given = {"coordinate_atoms": [*BACKBONE], **ADDED}
    with caplog.at_level("WARNING"):
        grown = build_model(ModelArguments(init_from=str(tmp_path), **given)).eval()
    assert "MISSING" not in caplog.text
    row = random_chain(30, 4)
    expected = outputs_of(model, row | {"coords": row["coords"][:, :, 1]})
    told = row | {"noise_level": torch.full((1, 32), 0.3)}
    torch.testing.assert_close(outputs_of(grown, told), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs_of(grown, alone(told)), expected, atol=1e-4, rtol=1e-4)
    letters = {"input_ids": row["input_ids"]}
    torch.testing.assert_close(outputs_of(grown, letters), outputs_of(model, letters))
    grown(**told).logits.square().sum().backward()
    edges = grown.coordformer.edge_features
    assert edges.atom_geometry.weight.grad.any() and edges.noise.weight.grad.any()
    with torch.no_grad():
        for weight in (edges.atom_geometry.weight, edges.noise.weight):
            weight.normal_(std=0.1)
    grown.save_pretrained(tmp_path / "trained")
    assert (outputs_of(grown, told) - expected).abs().max() > 1e-3
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "trained")
    torch.testing.assert_close(outputs_of(again, told), outputs_of(grown, told))
    frozen = build_model(ModelArguments(init_from=str(tmp_path), freeze=True, **given))
    trained = {name for name, weight in frozen.named_parameters() if weight.requires_grad}
    assert trained == {name for name in frozen.state_dict() if "atom_geometry" in name or ".noise." in name}
    with pytest.raises(ValueError, match=r"has coordinate_atoms=\('CA',\), not"):
        build_model(ModelArguments(init_from=str(tmp_path), coordinate_atoms=[*BACKBONE]))
    with pytest.raises(ValueError, match=r"`partial_backbones` is True, but `coordinate_atoms` is \('CA',\)"):
        build_model(ModelArguments(init_from=str(tmp_path), partial_backbones=True))


def test_frames_of_a_trained_model_stay_what_they_are(tmp_path):
    """Of one that reads N, CA and C, or all four, they are of these: it is refused what would change them."""
    make_model(**TRACE | {"coordinate_atoms": BACKBONE}).save_pretrained(tmp_path / "whole")
    make_model(coordinate_embedding="local_frame", num_qk_points=2).save_pretrained(tmp_path / "points")
    for name, given, message in (
        ("whole", {"partial_backbones": True}, "has partial_backbones=False, not True; leave that out"),
        ("points", {"num_neighbors": 5, "coordinate_atoms": [*BACKBONE]}, r"has coordinate_atoms=\('CA',\), not"),
        (
            "points",
            {"coordinate_atoms": [*BACKBONE], "partial_backbones": True},
            "; add --num_neighbors, too, or leave",
        ),
    ):
        for more in ({}, {"partial_backbones": False}) if name == "points" and "num_neighbors" in given else ({},):
            with pytest.raises(ValueError, match=message):
                build_model(ModelArguments(init_from=str(tmp_path / name), **given, **more))
    options = {"num_neighbors": 5, "coordinate_atoms": [*BACKBONE], **ADDED}
    grown = build_model(ModelArguments(init_from=str(tmp_path / "points"), **options)).eval()
    row, model = random_chain(30, 4), AutoModelForMaskedLM.from_pretrained(tmp_path / "points")
    expected = outputs_of(model, row | {"coords": row["coords"][:, :, 1]})
    torch.testing.assert_close(outputs_of(grown, row), expected, atol=1e-4, rtol=1e-4)


def test_a_residue_is_where_its_c_alpha_is():
    """Without one, its other atoms are nowhere: not for the model, nor for what is masked, nor for what is counted."""
    (chain,) = read_chains(STRUCTURES / "1orc.pdb.gz", atoms=BACKBONE)
    chain.coords[20:26, 1] = np.nan
    for embedding in ("local_frame", "linear"):
        model, row = make_model(**FIELDS | {"coordinate_embedding": embedding}), random_chain(30, 4)
        row["coords"][0, 12, 1] = torch.nan
        moved = row["coords"].clone()
        moved[0, 12] += 3.0
        torch.testing.assert_close(outputs_of(model, row | {"coords": moved}), outputs_of(model, row), rtol=0, atol=0)
    collate = CoordformerDataCollator(
        CoordformerProcessor().tokenizer, BACKBONE, optional_atoms=model.config.optional_atoms, masking="masked15",
        mlm_probability=1.0, rotate=False,
    )  # fmt: skip
    placed = placed_in(chain, model)
    assert placed.sum() == 58
    np.testing.assert_array_equal(collate([chain])["labels"][0, 1:-1] != -100, placed)


def test_noise_is_not_told_twice():
    model, row = make_model(**FIELDS), random_chain(12, 4)
    structure = model.coordformer.encode_structure(row["coords"], row["input_ids"])
    with pytest.raises(ValueError, match="in place of `coords` and `noise_level`"):
        model(input_ids=row["input_ids"], structure=structure, noise_level=torch.zeros(1, 14))


def test_evaluation_and_design_tell_the_noise():
    (chain,) = read_chains(STRUCTURES / "1orc.pdb.gz", atoms=BACKBONE)
    model, processor, seen = make_model(**FIELDS), CoordformerProcessor(coordinate_atoms=BACKBONE), []
    model.coordformer.edge_features.register_forward_pre_hook(lambda _, given: seen.append(given[-1].clone()))
    list(predict_masked(model, [chain], processor.tokenizer, noise=0.1))
    design(model, chain, processor=processor, num_samples=1)
    assert [float(level[0, 1]) for level in seen] == pytest.approx([0.1, 0.2])


def test_trained_by_the_command_and_read_from_files(tmp_path, capsys):
    """From a checkpoint of C-alphas; the folder reads files with and without the other atoms."""
    make_model(**TRACE).save_pretrained(tmp_path / "trace")
    CoordformerProcessor().save_pretrained(tmp_path / "trace")
    words = ["train", "--init_from", str(tmp_path / "trace"), "--data", str(CHAINS.parent / "backbones.parquet")]
    words += ["--coordinate_atoms", *BACKBONE, "--partial_backbones", "true", "--noise_conditioning", "true"]
    words += ["--drop_atoms", "0.5", "--coordinate_noise", "0", "0.3", "--exact_coords", "0.3"]
    words += ["--max_length", "50", "--token_budget", "256"]
    words += ["--packing", "false", "--max_steps", "2", "--use_cpu", "--report_to", "none", "--quiet"]
    assert main([*words, "--output_dir", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    facts = training_facts(tmp_path / "out")
    assert facts["without other atoms"] == "in all or in part, 50 % of the chains"
    assert facts["noise"] == "0 to 0.3 Å on coordinates, none on 30 % of the chains"
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.reads == {"atoms": BACKBONE, "optional_atoms": ("N", "C", "O")}
    model, _ = load_checkpoint(tmp_path / "out")
    files = [STRUCTURES / "1orc.pdb.gz", STRUCTURES / "pdb1ubi_ca.pdb.gz"]
    for file in files:
        batch = processor(structures=str(file))
        assert model(**batch).logits.isfinite().all() and batch["coords"].shape[2:] == (4, 3)
    out, given = str(tmp_path / "out"), [*map(str, files), "--quiet"]
    assert main(["evaluate", out, *given]) == 0, capsys.readouterr().err
    assert main(["attention", out, *given, "--output", str(tmp_path / "attention")]) == 0, capsys.readouterr().err
    words = [
        "robustness",
        out,
        *given,
        "--output",
        str(tmp_path / "robustness"),
        "--num_rotations",
        "2",
        "--noise",
        "0.1",
    ]
    assert main(words) == 0, capsys.readouterr().err
