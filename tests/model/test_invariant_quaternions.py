"""ProteinMPNN's layers on C-alphas: with `invariant_quaternions` turning a file changes nothing, without it does."""

import pytest
import torch
from conftest import make_model as make_small_model
from conftest import outputs_of, pack_rows, random_chain

from coordformer import CoordformerConfig, CoordformerForMaskedLM, CoordformerProcessor
from coordformer.data.collator import rotations_from_normals
from coordformer.model.proteinmpnn import quaternions, unit
from coordformer.training.arguments import ModelArguments
from coordformer.training.train import build_model

FIELDS = {"encoder_type": "proteinmpnn", "num_neighbors": 12, "hidden_size": 16, "intermediate_size": 32}
PROTEIN = "tests/data/structures/1orc.pdb.gz"


def make_model(**fields):
    torch.manual_seed(0)
    config = CoordformerConfig(**FIELDS | {"num_hidden_layers": 2, "num_decoder_layers": 2} | fields)
    model = CoordformerForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.6)  # first weights are so small that geometry hardly counts; these enlarge rounding
    return model


def change_by_rotation(model, mirror=False):
    batch = CoordformerProcessor()(structures=PROTEIN)
    rotation = rotations_from_normals(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))
    turned = batch | {"coords": batch["coords"] @ (rotation * (1 - 2 * mirror))}
    with torch.no_grad():
        return float((model(**turned).logits - model(**batch).logits).abs().max())


def test_turning_a_file_changes_nothing():
    assert change_by_rotation(make_model(invariant_quaternions=True)) < 0.06
    assert change_by_rotation(make_model(invariant_quaternions=False)) > 0.2
    assert change_by_rotation(make_model(invariant_quaternions=True), mirror=True) > 0.2


@pytest.mark.parametrize("what", ["whole", "gap", "cis"])
def test_frames_without_axes(what):
    """Beside a gap, or a step between C-alphas as of a cis-peptide, nothing depends on rounding: turned, and packed."""
    model = make_small_model(encoder_type="proteinmpnn", num_neighbors=6, invariant_quaternions=True)
    for _ in range(4):
        row, other = random_chain(30, missing=0), random_chain(25, missing=0)
        steps = torch.randn(1, 32, 3)
        lengths = 3.7 + 0.2 * torch.rand(1, 32, 1)  # of equal ones two could be the last neighbor
        row["coords"] = (lengths * steps / steps.norm(dim=-1, keepdim=True)).cumsum(dim=1)
        row["coords"][0, [0, -1]] = torch.nan
        if what == "gap":
            row["coords"][0, 15] = torch.nan
        if what == "cis":
            row["coords"][0, 15:] -= 0.22 * (row["coords"][0, 15] - row["coords"][0, 14])
        expected = outputs_of(model, row)[0]
        rotation = rotations_from_normals(torch.randn(3, 3))
        turned = outputs_of(model, row | {"coords": row["coords"] @ rotation})[0]
        torch.testing.assert_close(turned, expected, rtol=0, atol=1e-3)
        torch.testing.assert_close(outputs_of(model, pack_rows([other, row]))[0, 27:], expected, rtol=0, atol=1e-3)


def test_real_part_of_a_quaternion_is_the_same_in_both():
    """The angle between two frames, which is what the published weights can read of it in files turned at random."""
    frames = rotations_from_normals(torch.randn(50, 2, 3, 3, generator=torch.Generator().manual_seed(0)))
    own, others = frames.unbind(dim=1)
    ours, theirs = quaternions(own @ others.mT), quaternions(own.mT @ others)
    torch.testing.assert_close(ours[:, 3], theirs[:, 3], atol=1e-5, rtol=1e-4)
    assert (ours - theirs).abs().max() > 0.1 and torch.allclose(unit(ours), ours, atol=1e-4)


def test_weights_to_start_from_are_given_it(tmp_path):
    make_model().save_pretrained(tmp_path)
    model = build_model(ModelArguments(init_from=str(tmp_path), invariant_quaternions=True))
    assert model.config.invariant_quaternions and change_by_rotation(model.eval()) < 0.06
    assert not build_model(ModelArguments(init_from=str(tmp_path))).config.invariant_quaternions


@pytest.mark.parametrize("fields", [{}, FIELDS | {"coordinate_atoms": ("N", "CA", "C", "O")}])
def test_models_without_quaternions_refuse_it(fields):
    with pytest.raises(Exception, match="`invariant_quaternions` is True, but only ProteinMPNN's layers on C-alphas"):
        CoordformerConfig(**fields, invariant_quaternions=True)
