"""Muon for the hidden matrices of a model and AdamW for all else, as one optimizer, which `Trainer` schedules."""

from typing import Any

import torch
from torch import nn

from ..model.coordinates import FeatureLinear


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Three groups: matrices between hidden states (for Muon); other matrices; and vectors, which do not decay.

    Embeddings and the output layer have rows for tokens, and the coordinate embedding has columns for coordinates, most
    of which are small or rare: orthogonal updates would move them all alike. So has the distance bias, for distances.
    The geometry that messages read is with Muon all the same: its features are of one order.
    """
    output = getattr(model, "get_output_embeddings", lambda: None)()
    hidden = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, (nn.Linear, FeatureLinear)) and module is not output
    }
    groups: list[Any] = [{"params": [], "weight_decay": decay} for decay in (weight_decay, weight_decay, 0.0)]
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[0 if id(parameter) in hidden else 1 if parameter.dim() > 1 else 2]["params"].append(parameter)
    return groups


def orthogonalize(
    matrices: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    """Nearly orthogonal matrices from (count, rows, columns), in bfloat16: Jordan's (2024) iteration."""
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class _Muon(torch.optim.Muon):
    """`torch.optim.Muon` that takes matrices of one shape together: of hundreds, each would launch thirty kernels."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            lists: tuple[list[Any], ...] = ([], [], [])
            self._init_group(group, *lists)
            parameters, gradients, buffers = lists
            if not parameters:
                continue
            torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, buffers, group["momentum"])
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            shapes: dict[torch.Size, list[int]] = {}
            for number, parameter in enumerate(parameters):
                shapes.setdefault(parameter.shape, []).append(number)
            for shape, numbers in shapes.items():
                stack = torch.stack([updates[number] for number in numbers])
                moves = orthogonalize(stack, group["ns_coefficients"], group["ns_steps"], group["eps"]).float()
                rate = 0.2 * max(shape) ** 0.5 * group["lr"]  # as torch's "match_rms_adamw"
                torch._foreach_add_([parameters[number] for number in numbers], list(moves), alpha=-rate)


class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` and `torch.optim.AdamW` side by side.

    Muon makes the update of a matrix nearly orthogonal (Jordan 2024, https://kellerjordan.github.io/posts/muon). Here
    it is scaled to the root mean square of AdamW's updates (Liu et al. 2025, arXiv 2502.16982), so that both have one
    learning rate. Of whole matrices: sharded ones (FSDP) are not supported.

    Args:
        groups: parameters as in `torch.optim`, the first group for Muon, matrices alone; see `parameter_groups`.
        lr: learning rate of both.
        betas, eps: of AdamW.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        super().__init__(groups, {"lr": lr})
        # They get the very groups that a scheduler changes.
        self.muon = _Muon(self.param_groups[:1], lr=lr)
        self.adamw = torch.optim.AdamW(self.param_groups[1:], lr=lr, betas=betas, eps=eps)
        self._share()

    def _share(self) -> None:
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self.muon.state = self.adamw.state = self.state

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.muon.step()
        self.adamw.step()
        return loss

    def load_state_dict(self, state_dict) -> None:
        super().load_state_dict(state_dict)  # makes new groups and a new state
        self._share()
