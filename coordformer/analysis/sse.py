"""Secondary structure from C-alpha positions, as biotite finds it."""

import numpy as np

__all__ = ["annotate_sse"]


def annotate_sse(coords: np.ndarray) -> str:
    """Helices and strands from C-alpha positions by the criteria of P-SEA (Labesse et al. 1997).

    The letters of `biotite.structure.annotate_sse` under DSSP's names: helices are at least 5 residues, strands 4, or 3
    with 5 contacts of 4.2 to 5.2 Å.

    Args:
        coords: (residues, 3), Å, NaN where not observed.

    Returns:
        A letter for each residue: H (biotite's a, helix), E (b, strand) or C (c, coil).

    Examples:
        >>> turns = np.radians(100) * np.arange(8)
        >>> annotate_sse(np.stack([2.3 * np.cos(turns), 2.3 * np.sin(turns), 1.5 * np.arange(8)], axis=1))
        'CHHHHHHC'
    """
    length = len(coords)
    if length <= 5:
        return "C" * length
    x = np.asarray(coords, dtype=np.float64)

    def from_previous(values: np.ndarray) -> np.ndarray:
        """Values of the fragments that start at a residue, moved to the residue after it."""
        return np.concatenate(([np.nan], values, np.full(length - 1 - len(values), np.nan)))

    def within(values: np.ndarray, center: float, tolerance: float) -> np.ndarray:
        return np.abs(values - center) <= tolerance

    # Distances to residues 2, 3 and 4 further on, angles and dihedrals.
    d2i, d3i, d4i = (from_previous(np.linalg.norm(x[k:] - x[:-k], axis=-1)) for k in (2, 3, 4))
    steps = np.diff(x, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        directions = steps / np.linalg.norm(steps, axis=-1, keepdims=True)
    ri = from_previous(np.degrees(np.arccos(np.clip(-(directions[:-1] * directions[1:]).sum(axis=-1), -1, 1))))
    normals = np.cross(directions[:-1], directions[1:])
    sine = (directions[1:-1] * np.cross(normals[:-1], normals[1:])).sum(axis=-1)
    ai = from_previous(np.degrees(np.arctan2(sine, (normals[:-1] * normals[1:]).sum(axis=-1))))

    relaxed_helix = within(d3i, 5.3, 0.5) | within(ri, 89, 12)
    strict_helix = (within(d3i, 5.3, 0.5) & within(d4i, 6.4, 0.6)) | (within(ri, 89, 12) & within(ai, 50, 20))
    relaxed_strand = within(d3i, 9.9, 0.9)
    strict_strand = within(d2i, 6.7, 0.6) & relaxed_strand & within(d4i, 12.4, 1.1)
    strict_strand |= within(ri, 124, 14) & ((ai <= -125) | (ai >= 145))

    distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
    contacts = ((distances > 4.2) & (distances <= 5.2)).sum(axis=1)
    helix = _extend_region(_keep_runs(strict_helix, strict_helix, 5), relaxed_helix)
    short_strand = _keep_runs(_keep_runs(strict_strand, strict_strand, 3), contacts, 5)
    strand = _extend_region(_keep_runs(strict_strand, strict_strand, 4) | short_strand, relaxed_strand)
    letters = np.where(strand, "E", np.where(helix, "H", "C"))
    return "".join(np.where(np.isnan(x).any(axis=-1), "C", letters))


def _keep_runs(mask: np.ndarray, counts: np.ndarray, least: int) -> np.ndarray:
    """The runs of True in `mask` (residues,) whose `counts` (residues,) sum to `least`; the mask counts residues."""
    kept = np.zeros_like(mask)
    for start, stop in np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])))).reshape(-1, 2):
        kept[start:stop] = counts[start:stop].sum() >= least
    return kept


def _extend_region(mask: np.ndarray, condition: np.ndarray) -> np.ndarray:
    """Each run longer by one residue on either side, where `condition` holds."""
    neighbors = np.zeros_like(mask)
    neighbors[1:] |= mask[:-1]
    neighbors[:-1] |= mask[1:]
    return mask | (neighbors & condition)
