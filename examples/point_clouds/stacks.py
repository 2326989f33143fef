"""Stacks of small models of simulated points: the closed form, structures, and their training (paper, section 1).

Many models of one shape train at once, their weights stacked (`torch.func`).
"""

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from transformers import get_scheduler

from coordformer import CoordformerConfig
from coordformer.data.collator import rotations_from_normals
from coordformer.data.files import write_atomically
from coordformer.training.point_clouds import PointCloudAttention

SIDE = 200.0  # of the cube that holds the points
WIDTH = 200.0  # of the target
BETAS = (0.9, 0.98)
AVERAGING = 0.998  # of weights: about the last 500 updates
VALIDATION_CHUNK = 1000


# ---------------------------------------------------------------------------------------------------------------------
# Theory
# ---------------------------------------------------------------------------------------------------------------------


def gaussian_maps(dim: int, sigma: float, softmax: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Query and key maps whose attention equals a Gaussian of distance (paper, section 1).

    With features f = (x, |x|^2, 1) of points x in `dim` dimensions, q = Q f and k = K f have

        q_i . k_j = -|xi - xj|^2 / (2 sigma^2)                        in dim + 2 dimensions, or
        q_i . k_j = -|xi - xj|^2 / (2 sigma^2) + |xi|^2 / (2 sigma^2)    in dim + 1 dimensions:

    the second differs in a term of the row alone, which cancels in a softmax over j.

    Args:
        dim: n, the spatial dimensions.
        sigma: standard deviation of the Gaussian, in the units of the points.
        softmax: whether a softmax follows (n + 1 dimensions suffice) or a bare exponential (n + 2).

    Returns:
        Q and K, (dim + 1 or dim + 2, dim + 2), float64.
    """
    if dim < 1 or not sigma > 0:
        raise ValueError(f"`dim` is {dim} and `sigma` {sigma}; give at least 1 dimension and a positive width.")
    query, key = torch.zeros(2, dim + 2, dim + 2, dtype=torch.float64)
    square, one = dim, dim + 1
    query[:dim, :dim] = 2 * torch.eye(dim)
    key[:dim, :dim] = torch.eye(dim)
    query[dim, one], key[dim, square] = -1, 1
    query[dim + 1, square], key[dim + 1, one] = -1, 1
    query /= 2 * sigma**2
    rows = dim + 1 if softmax else dim + 2
    return query[:rows], key[:rows]


def target_attention(coords: torch.Tensor, exponent: float = 2.0, width: float = WIDTH) -> torch.Tensor:
    """A_ij = exp(-(|xi - xj| / width)^exponent): (..., points, dim) -> (..., points, points)."""
    return torch.exp(-((torch.cdist(coords, coords, compute_mode="donot_use_mm_for_euclid_dist") / width) ** exponent))


# ---------------------------------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------------------------------


def make_structures(count: int, points: int = 5, dim: int = 3, seed: int = 0) -> torch.Tensor:
    """Points uniform in [0, 200]^dim, each structure centered: (count, points, dim), float32."""
    for name, value in (("count", count), ("points", points), ("dim", dim)):
        if value < 1:
            raise ValueError(f"`{name}` is {value}; it must be at least 1.")
    coords = torch.rand(count, points, dim, generator=torch.Generator().manual_seed(seed)) * SIDE
    return coords - coords.mean(dim=1, keepdim=True)


def random_rotations(count: int, dim: int, generator: torch.Generator) -> torch.Tensor:
    """Uniform on SO(dim), of which SO(1) is the identity alone: (count, dim, dim), float32."""
    return rotations_from_normals(torch.randn(count, dim, dim, generator=generator))


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


def point_cloud_config(hidden_size: int = 256, heads: int = 8, dim: int = 3, **fields: Any) -> CoordformerConfig:
    """The paper's encoder for points: 2 layers, feed-forward 1024, ReLU, no tokens, no positions."""
    config = CoordformerConfig(
        hidden_size=hidden_size,
        num_attention_heads=heads,
        num_hidden_layers=2,
        intermediate_size=1024,
        hidden_act="relu",
        position_embedding_type="none",
        coordinate_dim=dim,
        **fields,
    )
    config._attn_implementation = "eager"  # five points: faster than a fused kernel
    return config


@dataclass(frozen=True)
class Member:
    """What a model of a stack may have of its own.

    Attributes:
        dim: spatial dimensions; the further ones of the data are set to zero.
        exponent: p of the target.
        rotate: random rotations in training.
        subtract_max: subtract the row maximum before the exponential.
        seed: of the first weights.
    """

    dim: int = 3
    exponent: float = 2.0
    rotate: bool = True
    subtract_max: bool = True
    seed: int = 0


def peak_rate(hidden_size: int, warmup: int = 4000, factor: float = 0.4) -> float:
    """The published peak, factor / sqrt(hidden_size * warmup): 4e-4 for a width of 256."""
    return factor * (hidden_size * warmup) ** -0.5


def learning_rates(
    name: str, peak: float, updates: int, warmup: int = 4000, **lr_scheduler_kwargs: Any
) -> Callable[[int], float]:
    """A schedule of Transformers as a function of the number of the update, from 1.

    Args:
        name: `lr_scheduler_type` of `TrainingArguments`, such as "inverse_sqrt" (the authors' code) or "polynomial".
        peak: the learning rate after the warm-up.
        updates: of the whole training, which "polynomial" and others end with.
        warmup: updates of the linear warm-up.
        **lr_scheduler_kwargs: of the schedule, such as `power=2`.

    Raises:
        ValueError: Transformers has no such schedule, or it needs more than the number of the update.
        TypeError: the schedule has no such keyword.
    """
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=peak)
    scheduler = get_scheduler(name, optimizer, warmup, updates, scheduler_specific_kwargs=lr_scheduler_kwargs)
    if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        raise ValueError(f"`lr_scheduler_type` {name} follows the loss; choose one that follows the updates.")
    factor = scheduler.lr_lambdas[0]
    return lambda update: peak * factor(update)


def member_rotations(
    members: Sequence[Member], count: int, dim: int, generator: torch.Generator | None
) -> torch.Tensor:
    """What each model does to its points: (members, count, 1, dim, dim).

    A rotation in the member's own dimensions (the identity without `generator`) and zero in the others, so that models
    of different dimensions share one input. Members of equal dimension see equal rotations.
    """
    matrices = torch.zeros(len(members), count, 1, dim, dim)
    for n in sorted({member.dim for member in members}):
        turned = random_rotations(count, n, generator) if generator is not None else None
        for number, member in enumerate(members):
            if member.dim == n:
                own = torch.eye(n) if turned is None or not member.rotate else turned
                matrices[number, :, 0, :n, :n] = own
    return matrices


def train_stack(
    config: CoordformerConfig,
    head_size: int,
    members: Sequence[Member],
    train: torch.Tensor,
    valid: torch.Tensor,
    *,
    updates: int,
    warmup: int = 4000,
    batch_size: int = 16,
    validate_every: int = 500,
    rates: Callable[[int], float] | None = None,
    state: str | Path | None = None,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Train models of one shape on the same structures at the same time (paper, section 1).

    Loss: L1 against `target_attention`; Adam (0.9, 0.98); validation without rotations, of the weights as they are and
    of their running average, which the last updates shake less.

    Args:
        config: of the encoders; see `point_cloud_config`.
        head_size: dimension of queries and keys of the measured head.
        members: what each model has of its own.
        train, valid: structures (count, points, D), D = `config.coordinate_dim`.
        updates: to make in all; of `batch_size` structures each.
        warmup: updates until the learning rate falls.
        validate_every: updates between two validations.
        rates: learning rate by the number of the update; by default the authors', which falls with the square root.
        state: file from which a training that was stopped goes on, and to which it writes at each validation.
        device: where to train.

    Returns:
        One dictionary per validation: `update`, and of each member `train` (mean loss since the last), `valid`, and
        `averaged`, the validation loss of the averaged weights.

    Raises:
        ValueError: an argument is unusable, or `state` belongs to another training.
    """
    dim = config.coordinate_dim
    for name, structures in (("train", train), ("valid", valid)):
        if structures.dim() != 3 or structures.shape[-1] != dim:
            raise ValueError(f"`{name}` has shape {tuple(structures.shape)}; (count, points, {dim}) is needed.")
    if not members or not all(1 <= member.dim <= dim for member in members):
        raise ValueError(f"Each member needs a dimension of 1 to {dim}; the members are {list(members)}.")
    if len(train) < batch_size or updates < 1 or validate_every < 1:
        raise ValueError(
            f"{updates} updates of {batch_size} of {len(train)} structures, validated every {validate_every}: each of "
            "them must be at least 1, and a batch no larger than the data."
        )

    models = []
    for member in members:
        torch.manual_seed(member.seed)
        models.append(PointCloudAttention(config, head_size).to(device))
    weights, buffers = stack_module_state(models)  # type: ignore[arg-type]
    averages = {name: weight.detach().clone() for name, weight in weights.items()}
    optimizer = torch.optim.Adam(weights.values(), betas=BETAS, fused=True)
    subtract_max = torch.tensor([float(member.subtract_max) for member in members], device=device)
    if rates is None:
        rates = learning_rates("inverse_sqrt", peak_rate(config.hidden_size, warmup), updates, warmup)
    settings = repr((config.to_diff_dict(), head_size, list(members), len(train), len(valid), warmup, batch_size,
                     validate_every))  # fmt: skip

    def loss(weights, buffers, rotation, subtract_max, target, coords):
        attention = functional_call(models[0], (weights, buffers), (coords, rotation, subtract_max))
        return (attention - target).abs().mean()

    every_model = (0, 0, 0, 0, 0, None)
    update_losses = vmap(grad_and_value(loss), in_dims=every_model)
    valid_losses = vmap(loss, in_dims=every_model)

    def targets(structures: torch.Tensor) -> torch.Tensor:
        parts = [target_attention(structures[..., : member.dim], member.exponent) for member in members]
        return torch.stack(parts).to(device)

    train_targets, valid_targets = targets(train), targets(valid)
    train, valid = train.to(device), valid.to(device)

    @torch.no_grad()
    def validate(weights: Mapping[str, torch.Tensor]) -> list[float]:
        summed = torch.zeros(len(members), device=device)
        for start in range(0, len(valid), VALIDATION_CHUNK):
            chunk = slice(start, start + VALIDATION_CHUNK)
            still = member_rotations(members, len(valid[chunk]), dim, None).to(device)
            parts = valid_losses(weights, buffers, still, subtract_max, valid_targets[:, chunk], valid[chunk])
            summed += parts * len(valid[chunk])
        return (summed / len(valid)).tolist()

    history: list[dict[str, Any]] = []
    done = 0
    if state is not None and Path(state).exists():
        done, history = _load(Path(state), settings, rates, weights, averages, optimizer)

    batches = len(train) // batch_size
    while done < updates:
        # Order and rotations are functions of the number of the block: a stopped training goes on with the same ones.
        block = min(validate_every - done % validate_every, updates - done)
        generator = torch.Generator().manual_seed(done)
        turns = member_rotations(members, block * batch_size, dim, generator).to(device).split(batch_size, dim=1)
        total = torch.zeros(len(members), device=device)
        for turn in turns:
            epoch, batch = divmod(done, batches)
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(epoch))
            index = order[batch * batch_size : (batch + 1) * batch_size].to(device)
            detached = {name: weight.detach() for name, weight in weights.items()}
            gradients, losses = update_losses(
                detached, buffers, turn, subtract_max, train_targets[:, index], train[index]
            )
            for name, weight in weights.items():
                weight.grad = gradients[name].contiguous()  # the fused optimizer does not look at strides
            done += 1
            optimizer.param_groups[0]["lr"] = rates(done)
            optimizer.step()
            for name, average in averages.items():
                average.lerp_(weights[name].detach(), 1 - AVERAGING)
            total += losses
        history.append({"update": done, "train": (total / block).tolist()})
        history[-1] |= {"valid": validate(weights), "averaged": validate(averages)}
        if state is not None:
            _save(Path(state), settings, rates, done, history, weights, averages, optimizer)
    return [entry for entry in history if entry["update"] <= updates]


def _so_far(rates: Callable[[int], float], done: int) -> list[float]:
    """A sample of the rates: schedules that differ later on may share the warm-up."""
    return [rates(update) for update in range(1, done + 1, max(1, done // 100))]


def _save(path: Path, settings: str, rates, done: int, history: list, weights, averages, optimizer) -> None:
    content = {
        "settings": settings,
        "rates": _so_far(rates, done),
        "done": done,
        "history": json.dumps(history),
        "weights": {name: weight.detach() for name, weight in weights.items()},
        "averages": averages,
        "optimizer": optimizer.state_dict(),
    }
    write_atomically(path, lambda temporary: torch.save(content, temporary))


def _load(path: Path, settings: str, rates, weights, averages, optimizer) -> tuple[int, list]:
    content = torch.load(path, weights_only=True, map_location="cpu")
    same = torch.allclose(*map(torch.tensor, (content["rates"], _so_far(rates, content["done"]))), rtol=1e-6, atol=0)
    if content["settings"] != settings or not same:
        raise ValueError(f"{path} belongs to a training with other settings; delete it, or choose another file.")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(content["weights"][name])
            averages[name].copy_(content["averages"][name])
    optimizer.load_state_dict(content["optimizer"])
    return content["done"], json.loads(content["history"])


def best_validation(history: Sequence[Mapping[str, Any]], member: int, of: str = "valid") -> float:
    """The lowest validation loss of a member, as the paper reports it, or with `"averaged"` of its averaged weights."""
    return min((entry[of][member] for entry in history), default=math.nan)


def updates_to_reach(history: Sequence[Mapping[str, Any]], member: int, loss: float) -> int | None:
    """The first validation at which a member's loss was at most this, or None."""
    return next((entry["update"] for entry in history if entry["valid"][member] <= loss), None)


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A CSV file, numbers to four digits."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{x:.4g}" if isinstance(x, float) else x for key, x in row.items()})
