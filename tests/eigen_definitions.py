"""Eigenvalues and their derivatives, from the matrix, in 50 digits."""

from __future__ import annotations

import itertools

import mpmath
import torch
from torch import Tensor

mpmath.mp.dps = 50


def eigh(matrix: Tensor) -> tuple[list[mpmath.mpf], mpmath.matrix]:
    """Eigenvalues, ascending, and eigenvectors, the columns."""
    values, vectors = mpmath.eigsy(mpmath.matrix(matrix.tolist()))
    return list(values), vectors


def gram(cosines: Tensor) -> Tensor:
    """The Gram matrices less their unit diagonal, ``(..., 3, 3)``, of ``(..., 3)`` cosines a, b, c."""
    a, b, c = cosines.unbind(-1)
    zero = torch.zeros_like(a)
    return torch.stack([zero, a, b, a, zero, c, b, c, zero], -1).unflatten(-1, (3, 3))


def excess_and_gradient(cosines: Tensor) -> tuple[mpmath.mpf, list[mpmath.mpf] | None]:
    """``lambda_max - 1`` of one triple, and ``2 u_i u_j`` for the pairs of the top eigenvector; None where it has none
    of its own, because the eigenvalue is multiple."""
    values, vectors = eigh(gram(cosines))
    if values[2] - values[1] <= values[2] * mpmath.mpf(10) ** -40:
        return values[2], None
    u = [vectors[i, 2] for i in range(3)]
    return values[2], [2 * u[i] * u[j] for i, j in itertools.combinations(range(3), 2)]


def error(value: float, truth: mpmath.mpf, unit: mpmath.mpf) -> float:
    """``|value - truth|`` in units; nan where the value is."""
    return float(abs(mpmath.mpf(value) - truth) / unit)
