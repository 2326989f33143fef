"""Secondary structure from C-alpha positions."""

import numpy as np


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Where each run of True begins, and where what follows it begins."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False]))))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _long_runs(mask: np.ndarray, least: int) -> np.ndarray:
    kept = np.zeros_like(mask)
    for start, stop in _runs(mask):
        kept[start:stop] = stop - start >= least
    return kept


def _extended(mask: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Each run longer by one residue on either side, where that is `allowed`."""
    neighbors = np.zeros_like(mask)
    neighbors[1:] |= mask[:-1]
    neighbors[:-1] |= mask[1:]
    return mask | (neighbors & allowed)


def annotate_sse(coords: np.ndarray) -> str:
    """Helices and strands from C-alpha positions by the criteria of P-SEA (Labesse et al. 1997).

    As `biotite.structure.annotate_sse` reads them: strands of 4 residues, or of 3 with 5 contacts of 4.2 to 5.2 Å.

    Args:
        coords: (residues, 3), Å, NaN where not observed.

    Returns:
        A letter for each residue: H (helix), E (strand) or C.

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

    d2, d3, d4 = (from_previous(np.linalg.norm(x[k:] - x[:-k], axis=-1)) for k in (2, 3, 4))
    steps = np.diff(x, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        directions = steps / np.linalg.norm(steps, axis=-1, keepdims=True)
    angle = from_previous(np.degrees(np.arccos(np.clip(-(directions[:-1] * directions[1:]).sum(axis=-1), -1, 1))))
    normals = np.cross(directions[:-1], directions[1:])
    sine = (directions[1:-1] * np.cross(normals[:-1], normals[1:])).sum(axis=-1)
    dihedral = from_previous(np.degrees(np.arctan2(sine, (normals[:-1] * normals[1:]).sum(axis=-1))))

    helix = (within(d3, 5.3, 0.5) & within(d4, 6.4, 0.6)) | (within(angle, 89, 12) & within(dihedral, 50, 20))
    helix = _extended(_long_runs(helix, 5), within(d3, 5.3, 0.5) | within(angle, 89, 12))
    strand = within(d2, 6.7, 0.6) & within(d3, 9.9, 0.9) & within(d4, 12.4, 1.1)
    strand |= within(angle, 124, 14) & ((dihedral <= -125) | (dihedral >= 145))
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
    contacts = ((distances > 4.2) & (distances <= 5.2)).sum(axis=1)
    long = _long_runs(strand, 4)
    for start, stop in _runs(_long_runs(strand, 3)):
        long[start:stop] |= contacts[start:stop].sum() >= 5
    strand = _extended(long, within(d3, 9.9, 0.9))
    letters = np.where(strand, "E", np.where(helix, "H", "C"))
    return "".join(np.where(np.isnan(x).any(axis=-1), "C", letters))
