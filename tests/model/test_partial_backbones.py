"""ProteinMPNN's layers where atoms are missing, and where they are told how exact coordinates are."""

import gzip
import json

import numpy as np
import pytest
import torch
from conftest import CHAINS, STRUCTURES, make_config, make_model, outputs_of, pack_rows, random_chain
from proteinmpnn_reference import random_weights
from transformers import AutoModelForMaskedLM, AutoProcessor

from coordformer import CoordformerProcessor, design, from_proteinmpnn, read_chains
from coordformer.data.collator import CoordformerDataCollator
from coordformer.inference.checkpoints import load_checkpoint
from coordformer.inference.masked import predict_masked
from coordformer.model.configuration_coordformer import BACKBONE
from coordformer.model.coordinates import place_oxygens
from coordformer.model.processing_coordformer import VOCABULARY
from coordformer.training.arguments import ModelArguments
from coordformer.training.train import build_model
from coordformer_command import main

MASK = VOCABULARY.index("<mask>")
ALONE = torch.tensor([atom != "CA" for atom in BACKBONE])
FIELDS = {
    "encoder_type": "proteinmpnn", "num_neighbors": 6, "num_decoder_layers": 2, "coordinate_atoms": BACKBONE,
    "partial_backbones": True, "noise_conditioning": True,
}  # fmt: skip


def partial_model(**fields):
    return make_model(**FIELDS | fields)


def changed(model, *rows) -> torch.Tensor:
    """Of which tokens of one row the outputs differ between two, by more than the rounding of another center."""
    first, second = (outputs_of(model, row)[0] for row in rows)
    return (first - second).abs().amax(dim=-1) > 1e-3


def alone(row, places=slice(None)):
    """The row with C-alphas alone at these places."""
    coords = row["coords"].clone()
    coords[0, places] = coords[0, places].masked_fill(ALONE.unsqueeze(-1), torch.nan)
    return row | {"coords": coords}


# --- Atoms that are missing ---


def test_complete_backbones_are_read_as_without_it():
    """Of ProteinMPNN's weights, whatever is in those that are added; also where residues were not observed."""
    model = from_proteinmpnn(random_weights("backbone"), num_neighbors=6)
    shape = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_decoder_layers")
    partial = partial_model(**{name: getattr(model.config, name) for name in shape})
    missing = partial.load_state_dict(model.state_dict(), strict=False).missing_keys
    assert {name.split("features.")[1] for name in missing} == {
        "alpha_geometry.weight", "alpha_geometry.bias", "noise.weight"
    }  # fmt: skip
    with torch.no_grad():
        partial.coordformer.proteinmpnn.features.noise.weight.zero_()
    row = random_chain(40, 4)
    observed = ~row["coords"][0].isnan().flatten(1).any(dim=-1)
    torch.testing.assert_close(outputs_of(partial, row)[0, observed], outputs_of(model, row)[0, observed])


def test_c_alphas_alone():
    """Other atoms do not matter where they are NaN or masked; C-alphas do, and so does that the others are missing."""
    model, row = partial_model(), random_chain(30, 4)
    mask = ~row["coords"].isnan().any(dim=-1)
    expected = outputs_of(model, alone(row))
    mask[..., ALONE] = False
    torch.testing.assert_close(outputs_of(model, row | {"coords_mask": mask}), expected, rtol=0, atol=0)
    assert (outputs_of(model, row) - expected).abs().max() > 0.01
    moved = alone(row)
    moved["coords"][0, 12] += 1.0
    assert (outputs_of(model, moved) - expected).abs().max() > 0.01


def test_one_residue_without_its_other_atoms_changes_its_neighborhood_alone():
    """With a layer of each kind: those who have it for a neighbor, and theirs."""
    model = partial_model(num_hidden_layers=1, num_decoder_layers=1)
    row = random_chain(300, 4, missing=0)
    differs = changed(model, row, alone(row, [150]))
    assert differs[150] and 6 <= differs.sum() < 100


def test_without_o():
    """The distances of O are left out, and those of C-alphas come in."""
    model, row = partial_model(), random_chain(30, 4)
    without = row["coords"].clone()
    without[:, :, 3] = torch.nan
    others = without.clone()
    others[:, :, 0] += torch.randn(others[:, :, 0].shape)
    expected = outputs_of(model, row | {"coords": without})
    assert (outputs_of(model, row) - expected).abs().max() > 0.01
    assert (outputs_of(model, row | {"coords": others}) - expected).abs().max() > 0.01
    assert (outputs_of(model, alone(row)) - expected).abs().max() > 0.01


def test_a_residue_without_a_c_alpha_reads_letters_along_the_chain():
    """Those of the nearest on either side; nobody reads its own letter, nor the atoms that it has."""
    model, row = partial_model(num_decoder_layers=1, num_neighbors=6), random_chain(40, 4, missing=0)
    row["coords"][0, 20, 1] = torch.nan  # the others count for nothing then
    read = []
    for place in range(1, 41):
        tokens = row["input_ids"].clone()
        tokens[0, place] = 4 + (tokens[0, place] - 3) % 20
        differs = changed(model, row, row | {"input_ids": tokens})
        read += [place] if differs[20] else []
        if place == 20:
            assert not differs.any()
    assert read == [18, 19, 21, 22, 23]  # five neighbors beside itself, the first behind it
    moved = row["coords"].clone()
    moved[0, 20] += 3.0
    assert not changed(model, row, row | {"coords": moved}).any()


def test_without_any_coordinates():
    """Letters along the chain, of the own segment, whatever the row."""
    model = partial_model()
    rows = [random_chain(length, 4) for length in (9, 30)]
    for row in rows:
        row["coords"][:] = torch.nan
    alone = [outputs_of(model, row)[0] for row in rows]
    packed = outputs_of(model, pack_rows(rows, padding=4))[0, :-4].split([len(each) for each in alone])
    for found, expected in zip(packed, alone, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-5)
    assert (alone[1][1:-1] - model.lm_head.bias).abs().amax(dim=-1).min() > 1e-3


@pytest.mark.parametrize("name", ["1orc.pdb.gz", "1A8O.pdb.gz", "1hvr.pdb.gz"])
def test_o_is_placed_where_it_is_missing(name):
    """Where the next residue is bonded: near the deposited one, as near as bond angles vary; packed rows, too."""
    chain, *_ = read_chains(STRUCTURES / name, atoms=BACKBONE)
    coords = torch.from_numpy(chain.coords)[None].nan_to_num()
    mask = torch.from_numpy(chain.observed)[None]
    without = mask.clone()
    without[..., 3] = False
    residues = torch.ones(mask.shape[:2], dtype=torch.bool)
    placed, found = place_oxygens(coords, without, residues, None)
    whole = mask.all(dim=-1)
    bonded = whole & whole.roll(-1, 1) & ((coords[:, :, 2] - coords.roll(-1, 1)[:, :, 0]).norm(dim=-1) < 2)
    assert (found[..., 3] == bonded).all() and bonded.sum() > 50
    apart = (placed - coords)[:, :, 3][bonded].norm(dim=-1)
    assert apart.square().mean().sqrt() < 0.12
    torch.testing.assert_close(placed[:, :, :3], coords[:, :, :3], rtol=0, atol=0)
    kept, same = place_oxygens(coords, mask, residues, None)
    assert torch.equal(kept[:, :, 3][whole], coords[:, :, 3][whole]) and torch.equal(same, mask)
    cut = torch.arange(len(chain))[None] // 20  # segments of a packed row are not bonded
    _, parts = place_oxygens(coords, without, residues, cut)
    assert (parts[..., 3] == bonded & (cut == cut.roll(-1, 1))).all()


def test_backbones_without_o_as_files(tmp_path, capsys):
    """The shipped model reads N, CA and C of a file; predictions are near those of the whole backbone."""
    whole, path = STRUCTURES / "1orc.pdb.gz", tmp_path / "1orc.pdb"
    lines = gzip.decompress(whole.read_bytes()).decode().splitlines()
    path.write_text("\n".join(line for line in lines if line[:4] != "ATOM" or line[12:16] in (" N  ", " CA ", " C  ")))
    model, processor = load_checkpoint(CHAINS.parents[2] / "hub_cards" / "coordformer-mpnn-backbone")
    with torch.no_grad():
        shares = [model(**processor(structures=each)).logits[0, 1:-1, 4:24].softmax(dim=-1) for each in (whole, path)]
    observed = read_chains(whole, atoms=BACKBONE)[0].observed.all(axis=1)
    observed[np.flatnonzero(observed)[-1]] = False  # nothing is behind the last one
    assert (shares[0] - shares[1])[observed].abs().mean() < 0.01
    ca_only(whole, path)
    with pytest.raises(ValueError, match="atom 'N' is in no amino acid residue"):
        processor(structures=path)


# --- Noise that the model is told ---


def test_noise_level_is_of_each_chain():
    """The default is the config's; a chain of a packed row has its own."""
    model, told = partial_model(), partial_model()
    told.load_state_dict(model.state_dict())
    told.config.noise_level = 0.2
    rows = [random_chain(length, 4) for length in (12, 20)]
    levels = [torch.full(row["input_ids"].shape, 0.2) for row in rows]
    for row, level in zip(rows, levels, strict=True):
        expected = outputs_of(told, row)
        torch.testing.assert_close(outputs_of(model, row | {"noise_level": level}), expected, rtol=0, atol=0)
        assert (outputs_of(model, row) - expected).abs().max() > 1e-3
    packed = pack_rows(rows) | {"noise_level": torch.cat((levels[0], 0 * levels[1]), dim=1)}
    first, second = outputs_of(model, packed)[0].split([14, 22])
    torch.testing.assert_close(first, outputs_of(told, rows[0])[0], rtol=0, atol=3e-5)
    torch.testing.assert_close(second, outputs_of(model, rows[1])[0], rtol=0, atol=3e-5)
    structure = model.coordformer.encode_structure(**rows[0], noise_level=levels[0])
    again = outputs_of(model, {"input_ids": rows[0]["input_ids"], "structure": structure})
    torch.testing.assert_close(again, outputs_of(told, rows[0]), rtol=0, atol=2e-5)


def test_wrong_noise_levels():
    model, row = partial_model(), random_chain(8, 4)
    with pytest.raises(ValueError, match=r"`noise_level` has shape \(1,\); the input asks for .*\(1, 10\)"):
        model(**row, noise_level=torch.zeros(1))
    for level in (-0.1, float("nan"), float("inf")):
        levels = torch.zeros(1, 10)
        levels[0, 3] = level
        with pytest.raises(ValueError, match=r"`noise_level` is (-0\.1.*|nan|inf) Å; it is a standard deviation"):
            partial_model()(**row, noise_level=levels)
    for other in (make_model(), partial_model(noise_conditioning=False)):
        coords = row["coords"][..., : len(other.config.coordinate_atoms), :].squeeze(2)
        with pytest.raises(ValueError, match="models with `config.noise_conditioning`"):
            other(input_ids=row["input_ids"], coords=coords, noise_level=torch.zeros(1, 10))


def test_levels_beyond_the_largest_count_as_it():
    """And not as exact coordinates."""
    model, row = partial_model(), random_chain(8, 4)
    torch.nn.init.normal_(model.coordformer.proteinmpnn.features.noise.weight)
    exact, largest, more = (
        outputs_of(model, row | {"noise_level": torch.full((1, 10), level)}) for level in (0.0, 0.5, 2.0)
    )
    torch.testing.assert_close(more, largest, rtol=0, atol=0)
    assert (largest - exact).abs().max() > 1e-3


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"coordinate_atoms": ("CA",)},
            r"`partial_backbones` is True, but `coordinate_atoms` is \('CA',\): leave it out",
        ),
        (
            {"encoder_type": "esm", "partial_backbones": False, "num_neighbors": 0},
            "`noise_conditioning` is True, but without `num_neighbors` there are no edges",
        ),
        ({"noise_level": -0.1}, "`noise_level` is -0.1 Å; it is a standard deviation, 0 or more"),
        ({"noise_level": float("nan")}, "`noise_level` is nan Å"),
        ({"noise_level": 0.2, "noise_conditioning": False}, "without `noise_conditioning` the model is not told of it"),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(Exception, match=message):
        make_config(**FIELDS | fields)


# --- Files, data sets, folders ---


def ca_only(source, path) -> None:
    """A PDB file with the C-alphas of another."""
    lines = gzip.decompress(source.read_bytes()).decode().splitlines()
    path.write_text("\n".join(line for line in lines if line[:4] != "ATOM" or line[12:16] == " CA ") + "\n")


def test_files_and_rows_that_lack_atoms(tmp_path):
    """By the processor, saved and loaded, the reader, and rows; a model that needs backbones refuses them."""
    path = tmp_path / "1orc.pdb"
    ca_only(STRUCTURES / "1orc.pdb.gz", path)
    CoordformerProcessor(coordinate_atoms=BACKBONE, optional_atoms=("N", "C", "O")).save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    found = processor(structures=path)["coords"]
    (whole,) = read_chains(STRUCTURES / "1orc.pdb.gz", atoms=BACKBONE)
    np.testing.assert_array_equal(found[0, 1:-1, 1], whole.coords[:, 1])
    assert found[0, :, ALONE].isnan().all()
    (chain,) = read_chains(path)  # C-alphas, as in a data set of them
    torch.testing.assert_close(processor(chains=chain)["coords"], found, rtol=0, atol=0, equal_nan=True)
    complex_ = processor(structures=path, as_complex=True)["coords"]
    torch.testing.assert_close(complex_, found, rtol=0, atol=0, equal_nan=True)
    with pytest.raises(ValueError, match="atom 'N' is in no amino acid residue"):
        CoordformerProcessor(coordinate_atoms=BACKBONE)(structures=path)
    with pytest.raises(ValueError, match="holds the atoms CA, but N, C, O"):
        CoordformerProcessor(coordinate_atoms=BACKBONE)(chains=chain)
    with pytest.raises(ValueError, match="atom 'CB' is in no amino acid residue"):
        read_chains(path, atoms=("CB", "N"), optional_atoms=("N",))


def test_verbs_and_folders(tmp_path, capsys):
    """From a folder by its own code's config, on a file with C-alphas alone: scores, embeddings and a design."""
    ca_only(STRUCTURES / "1orc.pdb.gz", tmp_path / "1orc.pdb")
    model, folder = partial_model(), tmp_path / "model"
    model.save_pretrained(folder)
    CoordformerProcessor(coordinate_atoms=BACKBONE, optional_atoms=("N", "C", "O")).save_pretrained(folder)
    loaded = AutoModelForMaskedLM.from_pretrained(folder, noise_level=0.2)
    row = random_chain(12, 4)
    torch.testing.assert_close(
        outputs_of(loaded, row), outputs_of(model, row | {"noise_level": torch.full((1, 14), 0.2)})
    )
    file = str(tmp_path / "1orc.pdb")
    assert main(["score", str(folder), file, "--mutants", "Y26A", "--output", str(tmp_path / "scores")]) == 0
    assert main(["embed", str(folder), file, "--output", str(tmp_path / "embeddings")]) == 0
    assert main(["evaluate", str(folder), file, "--output", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["rejected"] == 0 and found["residues"] == 71 and "noise_level" not in found
    for number, level in enumerate(([], ["--noise_level", "0"], ["--noise_level", "0.2"])):
        output = tmp_path / f"{number}"
        assert main(["score", str(folder), file, "--mutants", "Y26A", *level, "--output", str(output)]) == 0
    first, second, third = ((tmp_path / f"{number}" / "scores.csv").read_text() for number in range(3))
    assert first == second != third
    assert json.loads((tmp_path / "2" / "score.json").read_text())["noise_level"] == 0.2
    capsys.readouterr()
    shipped = str(CHAINS.parents[2] / "hub_cards" / "coordformer-1M-pdb")
    assert main(["evaluate", shipped, file, "--noise_level", "0.2"]) == 1
    assert "coordformer-1M-pdb is not told of noise; leave it out" in capsys.readouterr().err


# --- Training ---


def test_a_checkpoint_may_be_given_both(tmp_path):
    """`train --init_from` predicts what the checkpoint did, and all that is new gets a gradient."""
    model = make_model(**FIELDS | {"partial_backbones": False, "noise_conditioning": False})
    model.save_pretrained(tmp_path)
    arguments = ModelArguments(init_from=str(tmp_path), partial_backbones=True, noise_conditioning=True)
    given = build_model(arguments)
    row = random_chain(30, 4)
    observed = ~row["coords"][0].isnan().flatten(1).any(dim=-1)
    before = outputs_of(model, row)[0, observed]
    told = row | {"noise_level": torch.full((1, 32), 0.3)}
    torch.testing.assert_close(outputs_of(given, told)[0, observed], before)
    given(**alone(told, slice(5, 9))).logits.square().sum().backward()
    features = given.coordformer.proteinmpnn.features
    assert features.alpha_geometry.weight.grad.any() and features.noise.weight.grad.any()
    given.save_pretrained(tmp_path / "given")
    with torch.no_grad():
        features.noise.weight.normal_()
    given.save_pretrained(tmp_path / "trained")
    again = build_model(ModelArguments(init_from=str(tmp_path / "trained"), partial_backbones=True))
    torch.testing.assert_close(outputs_of(again, told), outputs_of(given, told))


def test_collator_drops_atoms_and_states_the_noise():
    chain = read_chains(STRUCTURES / "1orc.pdb.gz", atoms=BACKBONE)[0]
    rows = [vars(chain) | {"id": f"{number}", "epoch": 0} for number in range(400)]
    tokenizer = CoordformerProcessor().tokenizer
    options = {"atoms": BACKBONE, "mlm_probability": 0, "rotate": False}
    exact = CoordformerDataCollator(tokenizer, **options)(rows[:1])["coords"][0]
    collate = CoordformerDataCollator(
        tokenizer, **options, noise=[0.0, 0.3], drop_atoms=0.6, drop_coords=0.1, give_noise_level=True
    )
    batch = collate(rows)
    there = ~batch["coords"][:, 1:-1].isnan().any(dim=-1)[:, chain.observed[:, 1]]  # (chains, residues, atoms)
    lost = 1 - there.double().mean(dim=1)
    nothing = (lost == 1).all(dim=-1)
    kinds = {
        "nothing": (nothing, 0.1),
        "alone": ((lost[:, 0] == 1) & (lost[:, 1] == 0), 0.9 * 0.3),
        "in part": ((lost[:, 0] > 0) & (lost[:, 0] < 1), 0.9 * 0.15),
        "without O": ((lost[:, 0] == 0) & (lost[:, 3] == 1), 0.9 * 0.15),
        "whole": ((lost == 0).all(dim=-1), 0.9 * 0.4),
    }
    for name, (found, share) in kinds.items():
        assert abs(found.double().mean().item() - share) < 3.5 * (share / 400) ** 0.5, name
    assert (lost[:, 0] == lost[:, 2])[~nothing].all() and ((lost[:, 1] == 0) | nothing).all()
    deviations = (batch["coords"] - exact)[:, 1:-1, 1].square().nanmean(dim=(1, 2)).sqrt()[~nothing]
    told = batch["noise_level"][~nothing]
    assert (told[:, 1:-1] == told[:, 1:2]).all() and not told[:, [0, -1]].any()
    torch.testing.assert_close(deviations, told[:, 1], rtol=0.3, atol=0.01)
    exact_share = CoordformerDataCollator(
        tokenizer, **options, noise=[0.1, 0.3], exact_coords=0.3, give_noise_level=True
    )(rows)
    unmoved = (exact_share["coords"] - exact).nan_to_num().abs().sum(dim=(1, 2, 3)) == 0
    assert (unmoved == (exact_share["noise_level"][:, 1] == 0)).all() and 0.2 < unmoved.double().mean() < 0.4
    still = collate([row | {"augment": False} for row in rows[:5]])
    assert not still["noise_level"].any()
    torch.testing.assert_close(still["coords"][3], exact, rtol=0, atol=0, equal_nan=True)
    assert CoordformerDataCollator(tokenizer, optional_atoms=("N", "C", "O"), **options)(
        read_chains(STRUCTURES / "1orc.pdb.gz")
    )["coords"].shape == (1, 73, 4, 3)
    with pytest.raises(
        ValueError, match="`drop_atoms` is 0.5, but the model reads CA and no backbone; leave it out, or"
    ):
        CoordformerDataCollator(tokenizer, drop_atoms=0.5)


def test_evaluation_tells_the_noise_that_it_adds():
    chain = read_chains(STRUCTURES / "1orc.pdb.gz", atoms=BACKBONE)
    model, tokenizer, found = partial_model(), CoordformerProcessor().tokenizer, {}
    seen = []
    model.coordformer.proteinmpnn.features.register_forward_pre_hook(lambda _, given: seen.append(given[-1].clone()))
    for noise in (0.0, 0.1):
        found[noise] = list(predict_masked(model, chain, tokenizer, noise=noise))
    assert not seen[0].any()
    torch.testing.assert_close(seen[1][0, 1:-1], torch.full((71,), 0.1))
    model.config.noise_level = 0.3  # unless it was told otherwise
    list(predict_masked(model, chain, tokenizer, noise=0.1))
    torch.testing.assert_close(seen[2], torch.full((1, 73), 0.3))


def test_design_reckons_with_noise():
    (chain,) = read_chains(STRUCTURES / "1orc.pdb.gz", atoms=BACKBONE)
    model, processor, seen = partial_model(), CoordformerProcessor(coordinate_atoms=BACKBONE), []
    model.coordformer.proteinmpnn.features.register_forward_pre_hook(lambda _, given: seen.append(given[-1].clone()))
    for options in ({}, {"noise_level": 0.0}, {"noise_level": 0.1}):
        design(model, chain, processor=processor, num_samples=1, **options)
    assert [float(level.unique()) for level in seen] == pytest.approx([0.2, 0.0, 0.1])
    with pytest.raises(ValueError, match="`noise_level` is -1 Å"):
        design(model, chain, processor=processor, noise_level=-1)
    with pytest.raises(ValueError, match="models with `config.noise_conditioning`"):
        design(make_model(), read_chains(STRUCTURES / "1orc.pdb.gz")[0], noise_level=0.1)


def test_atoms_are_dropped_for_models_that_read_parts_of_a_backbone(tmp_path, capsys):
    partial_model(partial_backbones=False, noise_conditioning=False).save_pretrained(tmp_path / "whole")
    CoordformerProcessor(coordinate_atoms=BACKBONE, optional_atoms=("O",)).save_pretrained(tmp_path / "whole")
    words = [
        "train",
        "--init_from",
        str(tmp_path / "whole"),
        "--data",
        str(CHAINS.parent / "backbones.parquet"),
        "--drop_atoms",
        "0.5",
        "--quiet",
    ]
    words += ["--max_length", "50", "--token_budget", "128", "--max_steps", "1", "--use_cpu", "--report_to", "none"]
    assert main([*words, "--output_dir", str(tmp_path / "out")]) == 1
    fix = "but the model reads residues with complete backbones alone; add --partial_backbones true."
    assert fix in capsys.readouterr().err
    assert main([*words, "--output_dir", str(tmp_path / "out"), "--partial_backbones", "true"]) == 0
