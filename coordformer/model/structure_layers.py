# Copyright 2026 The coordformer authors. Licensed under the Apache License, Version 2.0.
"""How coordinates enter the encoder: embedding, backbone frames, k-nearest-neighbor graph, point attention, bias.

In the order of a forward pass: coordinates are checked, centered and rotated; `CoordinateEmbedding` adds them to the
token embeddings; `backbone_frames` gives each residue a rotation and a translation; `EdgeFeatures` describes the edges
of the k-nearest-neighbor graph; in each layer `InvariantPointAttention` attends with points and `MessagePassing` sums
messages over the graph. `DistanceBias` is the simpler way: a function of distance added to attention.

`coords` is (batch, sequence, atoms, D) in Å and `coords_mask` (batch, sequence, atoms) False where not observed;
`position_ids` (batch or 1, sequence) differ by 1 between neighbors along the chain; `runs` (batch, sequence) numbers
the segments of a row, see `segment_runs`, or is None.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.esm.modeling_esm import EsmSelfAttention, apply_rotary_pos_emb, eager_attention_forward
from transformers.utils.generic import maybe_autocast

from .configuration_coordformer import CoordformerConfig
from .packing import segment_sum

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
    return center_coordinates(coords, observed, runs), observed


def center_coordinates(coords: Tensor, coords_mask: Tensor, runs: Tensor | None) -> Tensor:
    """Move each segment's observed atoms to the origin and set the others to zero; float32 Å, shape unchanged."""
    coords_mask = coords_mask.unsqueeze(-1)
    count = segment_sum(coords_mask.to(coords.dtype).sum(dim=2, keepdim=True), runs).clamp(min=1)
    coords = coords.masked_fill(~coords_mask, 0.0)
    # The second pass removes the rounding of the first, which shows 1,000 Å away from the origin.
    for _ in range(2):
        mean = segment_sum(coords.sum(dim=2, keepdim=True), runs) / count
        coords = (coords - mean).masked_fill(~coords_mask, 0.0)
    return coords


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


# --- Coordinate embedding ---

# Along the chain, of a residue whose coordinates are embedded in local frames: two turns of a helix.
CHAIN_OFFSETS = range(-4, 5)


class CoordinateEmbedding(nn.Module):
    """Linear embedding of centered coordinates and a missing flag per atom (paper, section 2).

    Always computed in float32: bfloat16 keeps 8 bits, so that 300.37 Å would become 300 Å. For the same reason it has
    the weights of an `nn.Linear` and is none, see `FeatureLinear`. With `config.coordinate_embedding` "local_frame" the
    atoms are those of `local_frame_coordinates`.
    """

    def __init__(self, config: CoordformerConfig):
        super().__init__()
        self.quadratic = config.coordinate_embedding == "quadratic"
        residues = len(CHAIN_OFFSETS) if config.coordinate_embedding == "local_frame" else 1
        features = residues * len(config.coordinate_atoms) * (config.coordinate_dim + self.quadratic + 1)
        self.weight, self.bias = nn.Linear(features, config.hidden_size, dtype=torch.float32).parameters()
        self.scale = float(config.coordinate_scale)

    def forward(self, coords: Tensor, coords_mask: Tensor) -> Tensor:
        """(batch, sequence, atoms, D), Å, zero where not observed, and its mask -> (batch, sequence, hidden)."""
        x = coords / self.scale
        if self.quadratic:
            x = torch.cat([x, x.square().sum(dim=-1, keepdim=True)], dim=-1)
        missing = ~coords_mask.unsqueeze(-1)
        features = torch.cat([x.masked_fill(missing, 0.0), missing.to(x.dtype)], dim=-1).flatten(-2)
        # Sharded or mixed-precision training may hand over low-precision weights and an autocast context.
        with maybe_autocast(features.device.type, enabled=False):
            return nn.functional.linear(features, self.weight.float(), self.bias.float())


def gaussian_start(model: Any) -> dict[nn.Parameter, Tensor]:
    """Weights with which a model's first layer attends with Gaussians of distance: `coordinate_init="gaussian"`.

    A softmax over j of (xi.xj - |xj|^2 / 2) / sigma^2 is one of -|xi - xj|^2 / (2 sigma^2), so that x and |x|^2 in
    D + 1 features of the first layer's input are enough. They share the first LayerNorm with a constant that is
    large beside them, which makes it nearly the identity, and the head with the slowest rotary frequencies.
    Approximate, therefore; sigma spreads from a quarter to twice `config.coordinate_scale` over the heads.

    Returns the parameters of the `CoordformerModel` with their new values.
    """
    dim, width, heads = model.config.coordinate_dim, model.config.hidden_size, model.config.num_attention_heads
    head_size, attention = width // heads, model.esm.encoder.layer[0].attention.self
    changing = (model.esm.embeddings.word_embeddings, model.coordinate_embedding, attention.query, attention.key)
    start = {parameter: parameter.detach().clone() for module in changing for parameter in module.parameters()}
    table, embed, offset, query, query_bias, key, key_bias = start.values()
    # Of the features beside the constant: the smaller, the nearer to a Gaussian, and the larger the weights.
    small = 0.25
    table[:, : dim + 1], embed[: dim + 1], offset[: dim + 1] = 0, 0, 0
    embed[: dim + 1, : dim + 1] = small * torch.eye(dim + 1)
    embed[dim, dim + 1] = small * 16.0  # not observed: as far as four scales, so that few attend to it
    offset[dim + 1 :] = 1 - 2 * (torch.arange(width - dim - 1) % 2)
    sigma = 0.25 * 8 ** torch.linspace(0, 1, heads)  # in units of the scale
    strength = head_size**0.25 / sigma  # ESM divides queries by the root of the head size
    pairs = torch.arange(head_size // 2 - 1, -1, -1)
    slow = torch.stack((pairs, pairs + head_size // 2), dim=1).flatten()[: dim + 1]
    for head in range(heads):
        rows = head * head_size + slow
        for weight, bias in ((query, query_bias), (key, key_bias)):
            weight[rows], bias[rows] = 0, 0
            weight[rows[:dim], torch.arange(dim)] = strength[head] / small
        query_bias[rows[dim]] = -strength[head] / 2**0.5
        key[rows[dim], dim] = strength[head] / 2**0.5 / small
    return start


# --- Backbone frames ---


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
    """Frames of residues from N, CA and C, or else from CA and those of the residues beside it.

    The first axis points from one neighbor to the other, the third is normal to the plane of the three. `atoms` names
    the atoms of `coords` (batch, sequence, atoms, 3); without a CA the first of them stands for it. Translations have
    the unit of `coords`.
    """
    place = {name: number for number, name in enumerate(atoms)}
    center = place.get("CA", 0)
    translations, observed = coords[:, :, center], coords_mask[:, :, center]
    if {"N", "CA", "C"} <= place.keys():
        before, after = coords[:, :, place["N"]], coords[:, :, place["C"]]
        known = coords_mask[:, :, [place["N"], center, place["C"]]].all(dim=-1)
    else:
        before, has_before = shift_residues(translations, observed, -1, position_ids, runs)
        after, has_after = shift_residues(translations, observed, 1, position_ids, runs)
        known = observed & has_before & has_after
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


# --- k-nearest-neighbor graph: edge features and message passing ---


def k_nearest_neighbors(
    translations: Tensor,
    coords_mask: Tensor,
    runs: Tensor | None,
    k: int,
    longest: int | None = None,
    pairs: int = 2**24,
) -> tuple[Tensor, Tensor]:
    """The k observed residues of the same segment that are nearest in space, without the residue itself.

    Of `translations` (batch, sequence, 3) and `coords_mask` (batch, sequence); `longest` are the tokens of the longest
    segment, beyond which none is looked for (default: of the row), `pairs` the distances in memory at the same time.
    Returns their places in the row, and which of them exist: both (batch, sequence, k).
    """
    batch, length = coords_mask.shape
    index = torch.arange(length, device=coords_mask.device)
    if torch.compiler.is_compiling():  # one graph for all lengths, with all pairs in memory
        blocks = [(0, length, 0, length)]
    else:
        longest = min(longest or length, length)
        # So many at a time search the whole row, or `longest` tokens on either side.
        rows = max(1, pairs // (batch * length), int((longest**2 + pairs / batch) ** 0.5) - longest)
        ends = [(start, min(start + rows, length)) for start in range(0, length, rows)]
        blocks = [(start, end, max(0, start - longest), min(length, end + longest)) for start, end in ends]
    places, exist = [], []
    for start, end, first, last in blocks:
        # Not by a matrix product, whose rounding would put neighbors in another order.
        squares = (translations[:, start:end, None] - translations[:, None, first:last]).square().sum(dim=-1)
        allowed = coords_mask[:, start:end, None] & coords_mask[:, None, first:last]
        allowed = allowed & (index[start:end, None] != index[first:last])
        if runs is not None:
            allowed = allowed & (runs[:, start:end, None] == runs[:, None, first:last])
        squares = squares.masked_fill(~allowed, torch.inf)
        if torch.compiler.is_compiling() or last - first < k:
            squares = nn.functional.pad(squares, (0, k), value=torch.inf)
        found = squares.topk(k, largest=False)
        exist.append(found.values.isfinite())
        places.append((found.indices + first).masked_fill(~exist[-1], 0))
    return torch.cat(places, dim=1), torch.cat(exist, dim=1)


def radial_basis_functions(distances: Tensor, num_rbf: int, max_distance: float) -> Tensor:
    """Gaussians whose centers spread evenly from 0 to `max_distance`, as wide as apart: (...) Å -> (..., num_rbf)."""
    centers = torch.arange(num_rbf, device=distances.device) * (max_distance / (num_rbf - 1))
    return (-((distances.unsqueeze(-1) - centers) * ((num_rbf - 1) / max_distance)).square()).exp()


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


class NeighborGraph:
    """The k-nearest-neighbor graph that messages are passed over, of a batch, or one for all rows of a batch.

    A class without fields, as `Frames`.

    Attributes:
        places: (batch x sequence x k,), the neighbors' places in the flattened batch.
        exist: (batch, sequence, k), which of them there are.
        edges: (batch, sequence, k, hidden / 2), the edge features.
    """

    def __init__(self, places: Tensor, exist: Tensor, edges: Tensor):
        self.places, self.exist, self.edges = places, exist, edges
        self._kept: dict[nn.Module, Tensor] | None = None

    def keep(self) -> None:
        """From now on keep what `project` gives: for many passes over one structure, without gradients."""
        self._kept = {}

    def project(self, layer: nn.Module, dtype: torch.dtype) -> Tensor:
        """Edge features through a linear layer: (batch, sequence, k, width)."""
        if self._kept is None:
            return self._project(layer, self.edges.to(dtype))
        if layer not in self._kept:
            self._kept[layer] = self._project(layer, self.edges.to(dtype))
        return self._kept[layer]

    def project_block(self, layer: nn.Module, dtype: torch.dtype, row: int, inside: slice) -> Tensor:
        """`project` of the residues `inside` a row: (n, k, width)."""
        if self._kept is not None:
            return self.project(layer, dtype)[row, inside]
        return self._project(layer, self.edges[row, inside].to(dtype))

    def _project(self, layer: nn.Module, edges: Tensor) -> Tensor:
        # In two dimensions: some quantized layers take no more.
        return layer(edges.flatten(0, -2)).view(*edges.shape[:-1], -1)

    def gather(self, values: Tensor) -> Tensor:
        """(batch, sequence, width) of the residues -> (batch, sequence, k, width) of their neighbors."""
        if values.shape[0] == self.exist.shape[0]:
            gathered = values.flatten(0, 1).index_select(0, self.places)
        else:
            gathered = values.index_select(1, self.places)
        return gathered.view(values.shape[0], *self.exist.shape[1:], -1)

    def blocks(self, batch: int, residues: int) -> Iterator[tuple[int, int, slice, Tensor]]:
        """All rows of a batch in blocks of so many residues.

        Yields the row, the graph's own, the residues inside of it, and their neighbors' places in the flattened batch.
        """
        rows, length, k = self.exist.shape
        places = self.places.view(rows, length, k)
        for row in range(batch):
            own = row if rows == batch else 0
            for start in range(0, length, residues):
                inside = slice(start, min(start + residues, length))
                yield row, own, inside, places[own, inside].flatten() + (row - own) * length

    def to(self, *args, **kwargs) -> "NeighborGraph":
        """On another device, as accelerate moves what a layer is given."""
        return NeighborGraph(*(each.to(*args, **kwargs) for each in (self.places, self.exist, self.edges)))


class EdgeFeatures(nn.Module):
    """Features of the edges from each residue to its k nearest neighbors; computed once, for all layers.

    Of an edge: the direction to the neighbor in both backbone frames, the rotation from frame to frame, radial basis
    functions of the distance, and the separation along the chain, up to 16 residues, or that the two are in different
    chains of a complex (after Ingraham et al. 2019, section 2.2). With `config.message_gating` radial basis functions
    of all nine distances between either residue and those beside it along the chain, as Dauparas et al. 2022 have them
    of C-alphas. Invariant to rotations.
    """

    num_rbf = 16
    max_distance = 20.0  # Å, the center of the last radial basis function
    max_separation = 16  # residues along the chain, beyond which all are alike
    gain = 15.0  # features are of order 1, and weights start at hundredths

    def __init__(self, config: CoordformerConfig):
        super().__init__()
        self.num_neighbors = config.num_neighbors
        self.offsets = (-1, 0, 1) if config.message_gating else (0,)
        width = config.hidden_size // 2
        self.geometry = FeatureLinear(3 + 3 + 9 + len(self.offsets) ** 2 * self.num_rbf, width)
        self.separation = nn.Embedding(2 * self.max_separation + 1, width)
        self.other_chain = nn.Parameter(torch.empty(width))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(
        self, frames: Frames, position_ids: Tensor, runs: Tensor | None, longest: int | None,
        chain_ids: Tensor | None = None,
    ) -> NeighborGraph:  # fmt: skip
        """The graph of `frames`, Å; `longest` as of `k_nearest_neighbors`, `chain_ids` as of `CoordformerModel`."""
        rotations, translations, coords_mask = frames
        batch, length = coords_mask.shape
        with maybe_autocast(translations.device.type, enabled=False):
            places, exist = k_nearest_neighbors(translations.detach(), coords_mask, runs, self.num_neighbors, longest)
            rows = torch.arange(batch, device=places.device)[:, None, None]
            apart = translations[rows, places] - translations.unsqueeze(2)
            direction = (apart / (apart.square().sum(dim=-1, keepdim=True) + 1e-6).sqrt()).unsqueeze(-1)
            receiver, sender = rotations.unsqueeze(2), rotations[rows, places]
            # No `matmul`, as in `rotate_coordinates`.
            rotation = (receiver.unsqueeze(-1) * sender.unsqueeze(-2)).sum(dim=-3).flatten(-2)
            directions = (direction * receiver).sum(dim=-2), (direction * sender).sum(dim=-2)
            rbf = self._distances(translations, coords_mask, position_ids, runs, rows, places)
            features = torch.cat((*directions, rotation, rbf), dim=-1)
            positions, limit = position_ids.expand(batch, length), self.max_separation
            separation = (positions[rows, places] - positions.unsqueeze(2)).clamp(-limit, limit) + limit
            if chain_ids is not None:
                others = chain_ids[rows, places] != chain_ids.unsqueeze(2)
                separation = torch.where(others, 2 * limit + 1, separation)
        # One table whether or not there are chains: an idle parameter stops DistributedDataParallel.
        table = torch.cat((self.separation.weight, self.other_chain.unsqueeze(0)))
        summed = self.geometry(features) + nn.functional.embedding(separation, table)
        edges = MessagePassing.gain * self.norm(nn.functional.gelu(self.gain * summed))
        return NeighborGraph((places + length * rows).flatten(), exist, edges)

    def _distances(self, translations, coords_mask, position_ids, runs, rows, places) -> Tensor:
        """Radial basis functions between the residues `offsets` from both of an edge, zero where one is missing."""
        shifted = [shift_residues(translations, coords_mask, each, position_ids, runs) for each in self.offsets]
        points, known = (torch.stack(each, dim=2) for each in zip(*shifted, strict=True))
        # (batch, sequence, k, offsets, offsets, 3), and which of these pairs exist
        apart = points[:, :, None, :, None] - points[rows, places].unsqueeze(3)
        both = known[:, :, None, :, None] & known[rows, places].unsqueeze(3)
        rbf = radial_basis_functions((apart.square().sum(dim=-1) + 1e-6).sqrt(), self.num_rbf, self.max_distance)
        return (rbf * both.unsqueeze(-1)).flatten(-3)


class MessagePassing(nn.Module):
    """Messages from a residue's k nearest neighbors (senders) to it (the receiver), and their mean.

    A message is SiLU(receiver h_i + sender h_j + edge e_ij), as in message-passing networks (Dauparas et al. 2022),
    whose second layer commutes with the mean: `output` is applied once a residue and not once an edge. The mean is over
    `config.num_neighbors`; a neighbor that does not exist counts as zero. With `config.message_gating` a message is
    multiplied by a linear function of the sender's state and the edge features (Shazeer 2020). For the backward pass
    each edge keeps hidden / 2 numbers a layer, gated three times hidden.
    """

    gain = 5.0  # of each of the two steps, as in `EdgeFeatures`
    block = 32  # residues whose messages are in memory at the same time, without gradients on a CPU

    def __init__(self, config: CoordformerConfig):
        super().__init__()
        hidden, edges = config.hidden_size, config.hidden_size // 2
        width = hidden if config.message_gating else edges
        self.receiver, self.sender = nn.Linear(hidden, width), nn.Linear(hidden, width, bias=False)
        self.edge = nn.Linear(edges, width, bias=False)
        self.gate_sender = nn.Linear(hidden, width, bias=False) if config.message_gating else None
        self.gate_edge = nn.Linear(edges, width, bias=False) if config.message_gating else None
        self.output = nn.Linear(width, hidden, bias=False)

    def zero_init(self) -> None:
        """Set the output to zero, so that a trained model to which messages are added predicts what it did."""
        nn.init.zeros_(self.output.weight)

    def forward(self, hidden_states: Tensor, graph: NeighborGraph) -> Tensor:
        """(batch, sequence, hidden), and what `EdgeFeatures` returns -> (batch, sequence, hidden)."""
        layers = [
            (self.sender, self.edge),
            *([(self.gate_sender, self.gate_edge)] if self.gate_sender is not None else []),
        ]
        edge_layers: list[Any] = [edge for _, edge in layers]
        received = (self.gain * self.receiver(hidden_states)).unsqueeze(2)
        states = [self.gain * sender(hidden_states) for sender, _ in layers]
        blocked = hidden_states.device.type == "cpu" and not torch.is_grad_enabled()
        if not blocked or torch.compiler.is_compiling():
            pairs = zip(states, edge_layers, strict=True)
            sums = [graph.gather(sent).add_(graph.project(edge, sent.dtype)) for sent, edge in pairs]
            return self.output(self._mean(received, sums, graph.exist))
        # Without gradients a CPU is twice to four times as fast on messages that stay in its cache.
        mean = torch.empty_like(states[0])
        flat = [sent.flatten(0, 1) for sent in states]
        for row, own, inside, places in graph.blocks(len(mean), self.block):
            sums = []
            for sent, edge in zip(flat, edge_layers, strict=True):
                gathered = sent.index_select(0, places).view(-1, graph.exist.shape[-1], sent.shape[-1])
                sums.append(gathered.add_(graph.project_block(edge, sent.dtype, own, inside)))
            mean[row, inside] = self._mean(received[row, inside], sums, graph.exist[own, inside])
        return self.output(mean)

    def _mean(self, received: Tensor, sums: list[Tensor], exist: Tensor) -> Tensor:
        """Mean messages (..., width), of sums over sender and edge (..., k, width), which are overwritten."""
        messages = nn.functional.silu(sums[0].add_(received))
        if len(sums) > 1:
            messages = messages * sums[1]
        weights = exist.to(messages.dtype).unsqueeze(-2) * (self.gain / exist.shape[-1])
        return (weights @ messages).squeeze(-2)


# --- Attention ---


class SelfAttention(EsmSelfAttention):
    """ESM's self-attention, which also hands its queries and keys to `contacts`, where these are predicted."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, attention_mask: Any = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None, *, contacts: Any = None, **kwargs,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """As ESM's; `contacts` as of `contact_maps.ContactLogits`."""
        if contacts is not None:
            contacts.add(self, *self.queries_and_keys(hidden_states, position_embeddings), attention_mask)
        rotary: Any = position_embeddings
        return super().forward(hidden_states, attention_mask, position_embeddings=rotary, **kwargs)  # type: ignore

    def queries_and_keys(self, hidden_states, position_embeddings) -> tuple[Tensor, Tensor]:
        """Queries, divided by the root of the head size as ESM does, and keys: (batch, heads, sequence, head)."""
        shape = (*hidden_states.shape[:2], self.num_attention_heads, -1)
        query, key = (layer(hidden_states).view(shape).transpose(1, 2) for layer in (self.query, self.key))
        query = query * self.attention_head_size**-0.5
        if position_embeddings is not None and self.position_embedding_type == "rotary":
            query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        return query, key


class InvariantPointAttention(SelfAttention):
    """ESM's self-attention, in which each head also attends with points: Jumper et al. 2021, algorithm 22.

    Every residue makes P query and key points and V value points in its own frame. A head adds to its logits
    -sum_p |q_ip - k_jp|^2 / (2 P sigma^2), distances in space, and its output holds the mean of the value points in the
    frame of the query's residue, with their norms. Nothing depends on the frame of the chain, and mirror images differ.

    -|q - k|^2 / 2 = q.k - |k|^2 / 2 - |q|^2 / 2 is a product of 3 P + 2 features, as in the paper's section 2, so that
    any attention kernel computes it and no pair is kept. Where coordinates are missing, a key has a constant in place
    of its distance, and a query none. With `config.num_neighbors` the output of `MessagePassing` is added.
    """

    # Rates of learning are those of weights, which move by thousandths; sigma has to move by factors.
    gain = 8.0

    def __init__(self, config: CoordformerConfig, layer_idx: int):
        super().__init__(config, layer_idx=layer_idx)
        width, heads = config.hidden_size, config.num_attention_heads
        self.num_qk_points, self.num_v_points = config.num_qk_points, int(config.num_v_points or 0)
        self.query_points = FeatureLinear(width, heads * self.num_qk_points * 3)
        self.key_points = FeatureLinear(width, heads * self.num_qk_points * 3)
        self.value_points = FeatureLinear(width, heads * self.num_v_points * 3)
        self.output_points = FeatureLinear(heads * (self.num_v_points * 4 + 1), width)
        self.log_sigma = nn.Parameter(torch.empty(heads))
        self.missing = nn.Parameter(torch.empty(heads))
        self.message_passing = MessagePassing(config) if config.num_neighbors else None

    def log_sigmas(self, first: float, last: float) -> Tensor:
        """Values of `log_sigma` for widths from `first` to `last`, Å, over the heads."""
        sigmas = torch.logspace(math.log10(first), math.log10(last), self.num_attention_heads)
        return (sigmas / self.config.coordinate_scale).log() / self.gain

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None, *,
        frames: Frames, graph: NeighborGraph | None = None, contacts: Any = None, **kwargs,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """As `SelfAttention`; `frames` in units of `config.coordinate_scale`, `graph` from `EdgeFeatures`."""
        query, key = self.queries_and_keys(hidden_states, position_embeddings)
        shape = (*hidden_states.shape[:2], self.num_attention_heads, -1)
        value = self.value(hidden_states).view(shape).transpose(1, 2)
        # Squares of coordinates cancel in the product: 16 bits would leave nothing of near distances.
        with maybe_autocast(hidden_states.device.type, enabled=False):
            query, key, value = self._add_points(hidden_states, query.float(), key.float(), value.float(), frames)
            if torch.is_tensor(attention_mask) and attention_mask.is_floating_point():
                attention_mask = attention_mask.float()
            if contacts is not None:
                contacts.add(self, query, key, attention_mask)
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
            dropout = self.dropout if self.training else 0.0
            output, weights = attend(
                self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
            )
            value, points = output[..., : self.attention_head_size], output[..., self.attention_head_size :]
            points = self._output_features(points, frames)
        output = value.flatten(2).to(hidden_states.dtype) + self.output_points(points.to(hidden_states.dtype))
        if self.message_passing is not None:
            assert graph is not None
            output = output + self.message_passing(hidden_states, graph)
        return output, weights

    def _add_points(self, hidden_states, query, key, value, frames):
        """Queries, keys and values (batch, heads, sequence, features), followed by features of their points."""
        rotations, translations, coords_mask = frames
        batch, length, _ = hidden_states.shape
        observed = coords_mask[:, None, :, None]

        def global_points(layer: FeatureLinear) -> Tensor:
            points = layer(hidden_states).float().view(batch, length, -1, 3)
            points = points @ rotations.transpose(-1, -2) + translations.unsqueeze(2)
            return points.view(batch, length, self.num_attention_heads, -1).transpose(1, 2) * observed

        strength = (-2 * self.gain * self.log_sigma.float()).exp().view(-1, 1, 1) / self.num_qk_points
        points = global_points(self.query_points), global_points(self.key_points)
        of_query, of_key = (-0.5 * strength * each.square().sum(dim=-1, keepdim=True) for each in points)
        of_key = torch.where(observed, of_key, self.missing.float().view(-1, 1, 1))
        ones = observed.to(query.dtype).expand_as(of_key)
        query = torch.cat((query, strength * points[0], ones, of_query), dim=-1)
        key = torch.cat((key, points[1], of_key, ones), dim=-1)
        value = torch.cat((value, global_points(self.value_points), ones), dim=-1)
        # Kernels take values as wide as keys, and CUDA's that keep no pair a multiple of four.
        width = 4 * math.ceil(max(query.shape[-1], value.shape[-1]) / 4)
        return tuple(nn.functional.pad(states, (0, width - states.shape[-1])) for states in (query, key, value))

    def _output_features(self, points, frames):
        """Mean value points (batch, sequence, heads, features) in the residue's frame, with norms and their share."""
        rotations, translations, coords_mask = frames
        batch, length, heads, _ = points.shape
        points, share = points[..., : 3 * self.num_v_points], points[..., 3 * self.num_v_points, None]
        points = points.reshape(batch, length, heads * self.num_v_points, 3)
        points = points - (share * translations.unsqueeze(2)).repeat_interleave(self.num_v_points, dim=2)
        norms = (points.square().sum(dim=-1) + 1e-6).sqrt()
        features = ((points @ rotations).flatten(2), norms, share.flatten(2))
        return torch.cat(features, dim=-1) * coords_mask.unsqueeze(-1)


class DistanceBias(nn.Module):
    """Attention bias per head, a learned function of the distance between two tokens.

    The function is linear between its values at `config.num_distance_bins` distances, which spread evenly from 0 to
    twice `config.coordinate_scale`, and constant beyond: a basis of triangles, of which two at a time are not zero.
    With several atoms it is a sum over pairs of atoms of the same name; where a coordinate is missing it has a value of
    its own. Starts at zero. Invariant to rotations, but time and memory grow with the square of the length, where those
    of an embedding grow with the length.
    """

    # An optimizer moves a weight by about the learning rate in an update; a bias has to move by units, and soon.
    gain = 64.0

    def __init__(self, config: CoordformerConfig):
        super().__init__()
        features = len(config.coordinate_atoms) * (config.num_distance_bins + 1)
        self.weight = nn.Linear(features, config.num_attention_heads, bias=False, dtype=torch.float32).weight
        self.num_bins = config.num_distance_bins
        self.spacing = 2 * float(config.coordinate_scale) / (self.num_bins - 1)

    def forward(self, coords: Tensor, coords_mask: Tensor) -> Tensor:
        """(batch, sequence, atoms, D), Å, and (batch, sequence, atoms) -> (batch, heads, sequence, sequence)."""
        with maybe_autocast(coords.device.type, enabled=False):
            atoms, observed = coords.transpose(1, 2), coords_mask.transpose(1, 2)
            # Not by a matrix product, whose rounding shows between neighbors.
            distances = torch.cdist(atoms, atoms, compute_mode="donot_use_mm_for_euclid_dist")
            place = (distances / self.spacing).clamp(max=self.num_bins - 1)
            lower = place.floor().clamp(max=self.num_bins - 2)
            share = (place - lower).unsqueeze(-1)
            missing = ~(observed.unsqueeze(-1) & observed.unsqueeze(-2))
            # The rows of each atom: its values in the order of the distances, then the one of missing pairs.
            rows = torch.arange(atoms.shape[1], device=coords.device).view(-1, 1, 1) * (self.num_bins + 1)
            table, lower = self.gain * self.weight.float().T, lower.long()
            ends = (torch.where(missing, self.num_bins, each) + rows for each in (lower, lower + 1))
            first, second = (nn.functional.embedding(each, table) for each in ends)
            return torch.lerp(first, second, share).sum(dim=1).movedim(-1, 1)


# --- All of it ---


class Structure:
    """What the encoder reads of coordinates: made once, for one row or for all rows of a batch.

    Attributes:
        rows: number of rows.
        embedding: (batch, sequence, hidden), of coordinates; None without a coordinate embedding.
        bias: (batch, heads, sequence, sequence), of distances; None without `num_distance_bins`.
        frames: in units of `config.coordinate_scale`; None without invariant point attention.
        graph: None without `num_neighbors`.
    """

    embedding: Tensor | None = None
    bias: Tensor | None = None
    frames: Frames | None = None
    graph: NeighborGraph | None = None

    def __init__(self, rows: int):
        self.rows = rows
