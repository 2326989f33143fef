# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""Coordinates before any layer: checked, centered, rotated; and the backbone frames that they give.

`coords` is (batch, sequence, atoms, D) in Å and `coords_mask` (batch, sequence, atoms) False where not observed;
`position_ids` (batch or 1, sequence) differ by 1 between neighbors along the chain; `runs` (batch, sequence) numbers
the segments of a row, see `segment_runs`, or is None.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .chain import Chain, chain_arrays
from .configuration_coordformer import BACKBONE, CoordformerConfig
from .packing import segment_sum

MAX_PEPTIDE_BOND = 2.5  # Å, between C and the next N; 1.33 but for noise

# --- Coordinates ---


def check_coordinates(coords: Tensor, shape: torch.Size, config: CoordformerConfig) -> Tensor:
    """Return `coords` as float32 (batch, sequence, atoms, D), or say what is wrong with it; `shape` is of tokens."""
    names, dim = config.coordinate_atoms, config.coordinate_dim
    expected = (*shape, len(names), dim)
    accepted = [expected] if len(names) > 1 else [(*shape, dim), expected]
    if tuple(coords.shape) not in accepted:
        raise ValueError(
            f"`coords` has shape {tuple(coords.shape)}; {shape[0]} rows of {shape[1]} tokens with the atoms "
            f"{', '.join(names)} (`config.coordinate_atoms`) in {dim} dimensions (`config.coordinate_dim`) need "
            f"{' or '.join(map(str, accepted))}. Special tokens and padding have coordinates too: NaN."
        )
    # Looking at values on an accelerator would stop it at every step; the processor and the collator look there.
    if coords.device.type == "cpu" and not torch.compiler.is_compiling() and coords.isinf().any():
        row, token = coords.isinf().flatten(2).any(dim=-1).nonzero()[0].tolist()
        raise ValueError(
            f"`coords` is infinite at row {row}, token {token}; use NaN for coordinates that were not observed."
        )
    return coords.reshape(expected).to(torch.float32)


def place_coordinates(
    coords: Tensor | None,
    coords_mask: Tensor | None,
    residue_mask: Tensor,
    runs: Tensor | None,
    config: CoordformerConfig,
) -> tuple[Tensor, Tensor]:
    """Centered coordinates (batch, sequence, atoms, D), Å, and `coords_mask` (batch, sequence, atoms).

    Takes what a user gives, see `CoordformerModel`; `residue_mask` (batch, sequence) is False for special tokens and
    padding, which are never observed.
    """
    shape, atoms = residue_mask.shape, len(config.coordinate_atoms)
    if coords is None:
        zeros = torch.zeros(*shape, atoms, config.coordinate_dim, device=residue_mask.device)
        return zeros, zeros[..., 0].bool()
    coords = check_coordinates(coords, shape, config)
    observed = ~coords.isnan().any(dim=-1) & residue_mask.unsqueeze(-1)
    if coords_mask is not None:
        if coords_mask.shape not in (shape, (*shape, atoms)):
            raise ValueError(
                f"`coords_mask` has shape {tuple(coords_mask.shape)}; the input asks for {tuple(shape)} or "
                f"{(*shape, atoms)}."
            )
        observed = observed & coords_mask.reshape(*shape, -1).bool()
    if not config.partial_backbones:
        return center_coordinates(coords, observed, runs), observed
    # A residue is where its C-alpha is, and the center that of these alone, whatever else is there.
    place = config.coordinate_atoms.index("CA")
    observed = observed & observed[..., place, None]
    return center_coordinates(coords, observed, runs, slice(place, place + 1)), observed


def center_coordinates(coords: Tensor, coords_mask: Tensor, runs: Tensor | None, of: slice = slice(None)) -> Tensor:
    """Move each segment's observed atoms to the origin and set the others to zero; float32 Å, shape unchanged.

    The origin is the mean of the atoms `of` the residues, by default of all.
    """
    coords_mask = coords_mask.unsqueeze(-1)
    count = segment_sum(coords_mask[:, :, of].to(coords.dtype).sum(dim=2, keepdim=True), runs).clamp(min=1)
    coords = coords.masked_fill(~coords_mask, 0.0)
    # The second pass removes the rounding of the first, which shows 1,000 Å away from the origin.
    for _ in range(2):
        mean = segment_sum(coords[:, :, of].sum(dim=2, keepdim=True), runs) / count
        coords = (coords - mean).masked_fill(~coords_mask, 0.0)
    return coords


def place_oxygens(
    coords: Tensor, coords_mask: Tensor, residue_mask: Tensor, runs: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Backbones (batch, sequence, 4, D) and their mask (batch, sequence, 4), with O where it is missing.

    Of a residue with N, CA and C that is bonded to the next one: on the bisector of the bonds from C to CA and to the
    next N, 1.231 Å away (Engh and Huber 1991). Of others it stays missing.
    """
    before, carbon = coords[:, :, 1], coords[:, :, 2]
    behind = coords[:, :, 0].roll(-1, 1)
    follows = (residue_mask & coords_mask[:, :, 0]).roll(-1, 1)
    follows[:, -1] = False
    if runs is not None:
        follows = follows & (runs.roll(-1, 1) == runs)
    bonded = follows & ((behind - carbon).norm(dim=-1) < MAX_PEPTIDE_BOND)
    lacks = bonded & coords_mask[:, :, :3].all(dim=-1) & ~coords_mask[:, :, 3]
    bisector = nn.functional.normalize(carbon - before, dim=-1) + nn.functional.normalize(carbon - behind, dim=-1)
    oxygen = carbon + 1.231 * nn.functional.normalize(bisector, dim=-1)
    oxygen = torch.where(lacks.unsqueeze(-1), oxygen, coords[:, :, 3])
    coords = torch.cat((coords[:, :, :3], oxygen.unsqueeze(2)), dim=2)
    return coords, torch.cat((coords_mask[:, :, :3], (coords_mask[:, :, 3] | lacks).unsqueeze(2)), dim=2)


def virtual_beta(n: Tensor, ca: Tensor, c: Tensor) -> Tensor:
    """Where an ideal C-beta would be, of N, CA and C (..., 3); the numbers are ProteinMPNN's (Dauparas et al. 2022)."""
    b, c = ca - n, c - ca
    return -0.58273431 * torch.linalg.cross(b, c) + 0.56802827 * b - 0.54067466 * c + ca


def placed_residues(coords_mask: Tensor, config: CoordformerConfig) -> Tensor:
    """Residues (batch, sequence) that have a place for a model, of the mask of their atoms (batch, sequence, atoms).

    With `config.partial_backbones` it has one by its C-alpha. Else for ProteinMPNN's layers by all of its atoms, O
    placed (see `place_oxygens`), for all other layers by any atom.
    """
    if config.partial_backbones:
        return coords_mask[..., config.coordinate_atoms.index("CA")]
    return coords_mask.all(dim=-1) if config.encoder_type == "proteinmpnn" else coords_mask.any(dim=-1)


def placed_in(chain: Chain, model: Any) -> np.ndarray:
    """Which residues of a chain have a place for a model, see `placed_residues`: bool (L,).

    Raises:
        ValueError: the chain has coordinates, and not the atoms that the model reads.
    """
    if not chain.observed.any():
        return np.zeros(len(chain), dtype=bool)
    config = model.config
    _, values = chain_arrays(chain, config.coordinate_atoms, config.coordinate_dim, config.optional_atoms)
    coords = torch.from_numpy(np.array(values))[None]  # a row of a data set is read-only
    coords_mask = ~coords.isnan().any(dim=-1)
    if config.encoder_type == "proteinmpnn" and config.coordinate_atoms == BACKBONE:
        coords, coords_mask = place_oxygens(coords, coords_mask, torch.ones(coords.shape[:2], dtype=torch.bool), None)
    return placed_residues(coords_mask, config)[0].numpy()


def check_rotations(rotations: Tensor, shape: torch.Size, numbers: Tensor | None, dim: int) -> None:
    """Raise a ValueError unless `rotations` has a `dim` x `dim` matrix for each segment, see `rotate_coordinates`."""
    batch, segments, *matrix = rotations.shape if rotations.dim() == 4 else (None, 0)
    needed = 1
    # As in `check_coordinates`, values are looked at on the CPU alone.
    if numbers is not None and numbers.device.type == "cpu" and not torch.compiler.is_compiling():
        needed = int(numbers.max()) + 1
    if batch != shape[0] or matrix != [dim, dim] or segments < needed or (numbers is None and segments != 1):
        raise ValueError(
            f"`rotations` has shape {tuple(rotations.shape)}; a matrix for each segment is "
            f"({shape[0]}, {needed}, {dim}, {dim})."
        )


def rotate_coordinates(coords: Tensor, rotations: Tensor, numbers: Tensor | None) -> Tensor:
    """Turn each segment of (batch, sequence, atoms, D) by its matrix of (batch, segments, D, D), float32.

    `numbers` (batch, sequence) says which segment a token belongs to; without it a row is one.
    """
    if numbers is not None:
        rotations = rotations[torch.arange(len(numbers), device=numbers.device).unsqueeze(1), numbers]
    # Multiplied and summed rather than `matmul`, which may round to 10 bits (TF32) on CUDA.
    return (rotations.to(coords.dtype).unsqueeze(2) * coords.unsqueeze(-2)).sum(dim=-1)


# --- Backbone frames ---


# Along the chain, of a residue whose coordinates are embedded in local frames: two turns of a helix.
CHAIN_OFFSETS = range(-4, 5)


class Frames:
    """Backbone frames of residues, as AlphaFold has them: x_global = rotation x_local + translation.

    A class without fields, since FSDP2 casts every tensor that enters a layer to its `param_dtype`, in tuples and
    dataclasses, too.

    Attributes:
        rotations: (batch, sequence, 3, 3), the axes in columns; zero where they are not known.
        translations: (batch, sequence, 3), where the C-alpha is.
        coords_mask: (batch, sequence), where the translation is observed.
    """

    def __init__(self, rotations: Tensor, translations: Tensor, coords_mask: Tensor):
        self.rotations, self.translations, self.coords_mask = rotations, translations, coords_mask

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.rotations, self.translations, self.coords_mask))

    def scale_translations(self, scale: float) -> "Frames":
        """Frames with translations in units of `scale`."""
        return Frames(self.rotations, self.translations / scale, self.coords_mask)

    def to(self, *args, **kwargs) -> "Frames":
        """On another device, as accelerate moves what a layer is given."""
        return Frames(*(each.to(*args, **kwargs) for each in self))


def shift_residues(
    values: Tensor, mask: Tensor, offset: int, position_ids: Tensor, runs: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`values` (batch, sequence, ...) and `mask` of the residue `offset` further along the chain; False if none is."""
    positions = position_ids.expand(values.shape[:2])
    exists = positions.roll(-offset, 1) - positions == offset
    if runs is not None:
        exists = exists & (runs.roll(-offset, 1) == runs)
    return values.roll(-offset, 1), mask.roll(-offset, 1) & exists.view(*exists.shape, *[1] * (mask.dim() - 2))


def backbone_frames(
    coords: Tensor, coords_mask: Tensor, position_ids: Tensor, runs: Tensor | None, atoms: Sequence[str]
) -> Frames:
    """Frames of residues from N, CA and C, or where one is missing from CA and those of the residues beside it.

    The first axis points from one neighbor to the other, the third is normal to the plane of the three. `atoms` names
    the atoms of `coords` (batch, sequence, atoms, 3); without a CA the first of them stands for it. Translations have
    the unit of `coords`.
    """
    place = {name: number for number, name in enumerate(atoms)}
    center = place.get("CA", 0)
    translations, observed = coords[:, :, center], coords_mask[:, :, center]
    before, has_before = shift_residues(translations, observed, -1, position_ids, runs)
    after, has_after = shift_residues(translations, observed, 1, position_ids, runs)
    known = observed & has_before & has_after
    if {"N", "CA", "C"} <= place.keys():
        whole = coords_mask[:, :, [place["N"], center, place["C"]]].all(dim=-1)
        before, after = (
            torch.where(whole.unsqueeze(-1), coords[:, :, place[name]], trace)
            for name, trace in (("N", before), ("C", after))
        )
        known = known | whole
    before, after = before - translations, after - translations
    first = nn.functional.normalize(after - before, dim=-1)
    third = nn.functional.normalize(torch.linalg.cross(before, after), dim=-1)
    rotations = torch.stack((first, torch.linalg.cross(third, first), third), dim=-1)
    return Frames(rotations.masked_fill(~known[..., None, None], 0.0), translations, observed)


def local_frame_coordinates(
    coords: Tensor, coords_mask: Tensor, frames: Frames, position_ids: Tensor, runs: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The atoms of the residues `CHAIN_OFFSETS` away, in each residue's backbone frame: invariant to rotations.

    Returns coordinates (batch, sequence, offsets x atoms, 3) and their mask, without the last axis.
    """
    rotations, translations, _ = frames
    framed = rotations.any(dim=-1).any(dim=-1, keepdim=True)
    local, known = [], []
    for offset in CHAIN_OFFSETS:
        shifted, observed = shift_residues(coords, coords_mask, offset, position_ids, runs)
        # No `matmul`, as in `rotate_coordinates`.
        local.append(((shifted - translations.unsqueeze(2)).unsqueeze(-1) * rotations.unsqueeze(2)).sum(dim=-2))
        known.append(observed & framed)
    return torch.cat(local, dim=2), torch.cat(known, dim=2)


class FeatureLinear(nn.Module):
    """A linear layer from or to coordinates: (..., features) -> (..., width).

    The weights of an `nn.Linear` and not one itself, which quantizers and adapters would put another in the place of:
    eight bits are too few for lengths and angles.
    """

    def __init__(self, features: int, width: int):
        super().__init__()
        self.in_features, self.out_features = features, width
        self.weight, self.bias = nn.Linear(features, width).parameters()

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.linear(features.to(self.weight.dtype), self.weight, self.bias)
