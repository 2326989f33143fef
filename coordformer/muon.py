"""Muon for the hidden matrices of a model and AdamW for all else, as one optimizer, which `Trainer` schedules."""

from typing import Any

import torch
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Three groups: matrices between hidden states (for Muon); other matrices; and vectors, which do not decay.

    Embeddings and the output layer have rows for tokens, and the coordinate embedding has columns for coordinates, most
    of which are small or rare: orthogonal updates would move them all alike.
    """
    output = getattr(model, "get_output_embeddings", lambda: None)()
    hidden = {
        id(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not output and "coordinate_embedding" not in name
    }
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": weight_decay},
        {"params": [], "weight_decay": weight_decay},
        {"params": [], "weight_decay": 0.0},
    ]
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[0 if id(parameter) in hidden else 1 if parameter.dim() > 1 else 2]["params"].append(parameter)
    return groups


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
        self.muon = torch.optim.Muon(self.param_groups[:1], lr=lr, adjust_lr_fn="match_rms_adamw")
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
