"""Geometry on tensors."""

import torch


def rotations_from_normals(normals: torch.Tensor) -> torch.Tensor:
    """Turn standard normal matrices into rotations that are uniform on SO(n).

    Args:
        normals: independent standard normal numbers, (..., n, n).

    Returns:
        Rotation matrices (orthogonal, determinant 1), (..., n, n).

    Reference: Mezzadri, "How to generate random matrices from the classical compact groups", 2007: the QR
    decomposition is made unique by a positive diagonal of R, which makes Q uniform on O(n); a column of those with
    determinant -1 is then turned round.

    Examples:
        >>> rotation = rotations_from_normals(torch.randn(3, 3))
        >>> torch.allclose(rotation @ rotation.T, torch.eye(3), atol=1e-5)
        True
    """
    q, r = torch.linalg.qr(normals)
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    flip = torch.linalg.det(q).sign().unsqueeze(-1)
    return torch.cat((q[..., :1] * flip.unsqueeze(-1), q[..., 1:]), dim=-1)
