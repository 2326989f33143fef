"""The paper's model of simulated points (section 1): an encoder cut off at the attention matrix of one more head.

`examples/point_clouds` trains it.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..model.configuration_coordformer import CoordformerConfig
from ..model.modeling_coordformer import CoordformerModel
from ..model.structure_layers import CoordinateEmbedding, DistanceBias, gaussian_start


class PointCloudAttention(nn.Module):
    """A Coordformer without tokens and positions, cut off at the attention matrix of one more head.

    The head's matrix is returned before normalization, exp(q.k / sqrt(e) - m), with m the maximum of each row where
    `subtract_max` is 1, and 0 where it is 0.

    Args:
        config: of the encoder.
        head_size: e, the dimension of queries and keys of the measured head.
    """

    def __init__(self, config: CoordformerConfig, head_size: int):
        super().__init__()
        self.encoder = CoordformerModel(config)  # ends with the LayerNorm that stands before q and k
        self.query, self.key = (nn.Linear(config.hidden_size, head_size) for _ in range(2))
        self.bias = None
        if config.num_distance_bins:  # a head like the others
            one_head = CoordformerConfig(**{**config.to_dict(), "hidden_size": head_size, "num_attention_heads": 1})
            self.bias = DistanceBias(one_head)
            nn.init.zeros_(self.bias.weight)
        # As torch.nn.TransformerEncoder starts, which the authors use.
        for module in self.modules():
            if isinstance(module, (nn.Linear, CoordinateEmbedding)):
                nn.init.xavier_uniform_(module.weight)
        if config.coordinate_init == "gaussian":
            with torch.no_grad():
                for parameter, start in gaussian_start(self.encoder).items():
                    parameter.copy_(start)

    def forward(
        self, coords: torch.Tensor, rotations: torch.Tensor | None = None, subtract_max: torch.Tensor | float = 1.0
    ) -> torch.Tensor:
        """(batch, points, D) -> (batch, points, points); `rotations` (batch, 1, D, D) turn the points first."""
        states = self.encoder(coords=coords, rotations=rotations).last_hidden_state
        logits = self.query(states) @ self.key(states).transpose(-1, -2) * self.query.out_features**-0.5
        if self.bias is not None:
            atoms = coords.unsqueeze(2)
            logits = logits + self.bias(atoms, torch.ones_like(atoms[..., 0], dtype=torch.bool)).squeeze(1)
        return (logits - subtract_max * logits.amax(dim=-1, keepdim=True)).exp()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the encoder as a folder that `AutoModel` loads, and beside it the measured head, head.safetensors."""
        self.encoder.save_pretrained(folder)
        save_file(self._head().state_dict(), Path(folder) / "head.safetensors")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "PointCloudAttention":
        """Load what `save_pretrained` wrote, in evaluation mode."""
        head = load_file(Path(folder) / "head.safetensors")
        encoder = CoordformerModel.from_pretrained(folder)
        model = cls(encoder.config, head_size=len(head["query.weight"]))
        model.encoder = encoder
        model._head().load_state_dict(head)
        return model.eval()

    def _head(self) -> nn.ModuleDict:
        return nn.ModuleDict({name: module for name, module in self.named_children() if name != "encoder"})
