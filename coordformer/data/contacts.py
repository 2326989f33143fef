"""Contacts of residues: labels and training batches.

Two residues are in contact if their C-alphas are less than 8 Å apart and they are at least 6 apart in the sequence
(paper, section 6), or in two chains. Residues that the sequence lacks count where positions have a gap for them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ..model.chain import Chain, chain_arrays, chain_layout
from ..model.modeling_coordformer import IGNORED_LABEL
from .collator import CoordformerDataCollator

CONTACT = 8.0  # Å
MIN_SEPARATION = 6  # residues


def contact_labels(coords: Any, positions: Any = None, chain_index: Any = None) -> torch.Tensor:
    """Which residues are in contact.

    Args:
        coords: C-alpha positions (..., residues, D), Å, NaN where not observed; an array or a tensor.
        positions, chain_index: places along the chain, and the number of the chain, (..., residues), see
            `Chain.positions` and `Complex.chain_index`; by default one chain without gaps.

    Returns:
        (..., residues, residues), int8: 1 for contacts, 0 for others, -100 where one of the two is not observed or they
        are fewer than 6 apart in a chain.

    Examples:
        >>> contact_labels([[0.0, 0, 0], *[[50.0 * i, 0, 0] for i in range(1, 6)], [0, 7.9, 0]])[0]
        tensor([-100, -100, -100, -100, -100, -100,    1], dtype=torch.int8)
    """
    coords = coords.float() if torch.is_tensor(coords) else torch.tensor(np.asarray(coords, dtype=np.float32))
    # Not by a matrix product, whose rounding would move pairs across the threshold.
    distances = torch.cdist(coords, coords, compute_mode="donot_use_mm_for_euclid_dist")
    places = torch.arange(coords.shape[-2]) if positions is None else torch.as_tensor(positions)
    chains = torch.zeros_like(places) if chain_index is None else torch.as_tensor(chain_index)
    apart = (places.unsqueeze(-1) - places.unsqueeze(-2)).abs() >= MIN_SEPARATION
    apart = (apart | (chains.unsqueeze(-1) != chains.unsqueeze(-2))).to(coords.device)
    return (distances < CONTACT).to(torch.int8).masked_fill(~(apart & distances.isfinite()), IGNORED_LABEL)


def chain_labels(chain: Chain | Mapping[str, Any]) -> np.ndarray:
    """`contact_labels` of a chain or complex, or of a row of a data set: (residues, residues), int8."""
    return contact_labels(chain_arrays(chain, ("CA",))[1][:, 0], *(chain_layout(chain) or ())).numpy()


def separations(chain: Chain | Mapping[str, Any]) -> np.ndarray:
    """How far residues are apart in their chain, (residues, residues), infinite between chains."""
    length = len(chain["sequence"] if isinstance(chain, Mapping) else chain.sequence)
    positions, chain_index = chain_layout(chain) or (np.arange(length), np.zeros(length))
    apart = np.abs(positions[:, None] - positions).astype(np.float64)
    return np.where(chain_index[:, None] == chain_index, apart, np.inf)


@dataclass
class ContactCollator:
    """Batches for `CoordformerForContactPrediction`: those of `collator`, nothing masked, with contacts as labels.

    Takes what `CoordformerDataCollator` takes, padded, one chain in each row. `labels` (batch, residues, residues),
    int8, are the contacts of the rows as they are, whatever `collator` does to the coordinates: cropped with them, but
    without their noise, and also of rows whose coordinates it drops (`drop_coords=1.0`: of all rows).
    """

    collator: CoordformerDataCollator
    _exact: CoordformerDataCollator = field(init=False, repr=False)
    _alpha: int = field(init=False, repr=False)

    def __post_init__(self):
        if "CA" not in self.collator.atoms:
            raise ValueError(f"`atoms` is {self.collator.atoms}; contacts are counted between C-alphas (CA), add them.")
        self.collator = replace(self.collator, mlm_probability=0.0)
        self._exact = replace(self.collator, noise=0.0, drop_coords=0.0)
        self._alpha = self.collator.atoms.index("CA")

    def __call__(self, features: Sequence[Any]) -> dict[str, torch.Tensor]:
        with torch.random.fork_rng(devices=[]):  # so that both collators crop alike
            exact = self._exact(features)["coords"]
        batch = self.collator(features)
        alpha = exact if exact.dim() == 3 else exact[:, :, self._alpha]
        layout = [batch[name][:, 1:-1] for name in ("position_ids", "chain_ids") if name in batch]
        return batch | {"labels": contact_labels(alpha[:, 1:-1], *layout)}
