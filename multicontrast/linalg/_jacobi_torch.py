r"""Cyclic Jacobi in plain PyTorch: all eigenpairs of small symmetric matrices, N = 2..8, batched.

Each rotation makes one off-diagonal entry zero; a sweep visits all of them once, and convergence is quadratic, so the
number of sweeps is a constant of N and of the type. Entries that do not share a row or column are rotated together
(the round-robin order of a tournament), which divides the number of operators by N/2.

Nothing is checked here and nothing is known of autograd. Free of branches on values: works under ``vmap`` and
``torch.compile``. Derivation, sweeps and errors: ``docs/math/symmetric-eigenproblems.md``.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

# Sweeps after which neither value nor vector gets better, and one to spare in float64.
_SWEEPS = {
    torch.float32: {2: 1, 3: 4, 4: 4, 5: 5, 6: 6, 7: 6, 8: 6},
    torch.float64: {2: 1, 3: 4, 4: 6, 5: 7, 6: 7, 7: 7, 8: 7},
}


# Eigenvalues closer than this, in eps of the largest magnitude, count as one: rounding alone parts them so far.
_TIE = 4.0


@functools.cache
def _rounds(n: int) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """The pairs ``(p, q)``, ``p < q``, of ``0..n-1`` as rounds of disjoint pairs: everybody meets everybody once."""
    players = list(range(n + n % 2))  # with an odd number, whoever meets the last one rests
    rounds = []
    for _ in range(len(players) - 1):
        pairs = sorted(tuple(sorted(pair)) for pair in zip(players, reversed(players[len(players) // 2 :])))
        pairs = [pair for pair in pairs if pair[1] < n]
        rounds.append((tuple(p for p, _ in pairs), tuple(q for _, q in pairs)))
        players[1:] = [players[-1], *players[1:-1]]
    return tuple(rounds)


def jacobi(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``(N, ...)``, in no order, and eigenvectors ``(N, N, ...)``, first index the eigenvalue's.

    Args:
        matrix: ``(N, N, ...)`` symmetric, the matrix's own axes *first*, entries at most about 1 in magnitude.
    """
    n = matrix.shape[0]
    rest = [1] * (matrix.dim() - 2)
    vectors = torch.eye(n, dtype=matrix.dtype, device=matrix.device).view(n, n, *rest).expand(matrix.shape)
    for _ in range(_SWEEPS[matrix.dtype][n]):
        for p, q in _rounds(n):
            app, aqq, apq = matrix[p, p], matrix[q, q], matrix[p, q]
            # tan of the angle that makes a_pq zero, the smaller of the two roots of t^2 + 2 theta t - 1.
            gap = aqq - app
            root = torch.hypot(gap, 2 * apq)
            divisor = gap + torch.where(gap < 0, -root, root)
            t = torch.where(divisor == 0, 0, 2 * apq / torch.where(divisor == 0, 1, divisor))
            cos = torch.rsqrt(t * t + 1)
            sin = t * cos
            matrix = _rotate_rows(matrix, p, q, cos, sin).transpose(0, 1)
            matrix = _rotate_rows(matrix, p, q, cos, sin)
            vectors = _rotate_rows(vectors, p, q, cos, sin)
    return torch.stack([matrix[i, i] for i in range(n)]), vectors


def _rotate_rows(matrix: Tensor, p: tuple[int, ...], q: tuple[int, ...], cos: Tensor, sin: Tensor) -> Tensor:
    upper, lower = matrix[list(p)], matrix[list(q)]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    resting = [i for i in range(matrix.shape[0]) if i not in p and i not in q]
    rotated = torch.cat([cos * upper - sin * lower, sin * upper + cos * lower, matrix[resting]])
    order = [*p, *q, *resting]
    return rotated[[order.index(i) for i in range(matrix.shape[0])]]


def top_projector(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(largest eigenvalue, projector, eigenvalues, eigenvectors)`` of symmetric ``(..., N, N)``.

    The projector ``(..., N, N)`` is the gradient of the eigenvalue: ``u u'``, or where the eigenvalue is multiple the
    projector on its space over its dimension, the subgradient of least norm. Eigenvalues ``(..., N)`` are in no order,
    eigenvectors are the rows of ``(..., N, N)``. NaN or infinity anywhere in a matrix makes all its results NaN.
    """
    poison = (matrix * 0).sum((-2, -1))
    spectrum, vectors = jacobi(matrix.movedim((-2, -1), (0, 1)))
    top = spectrum.amax(0)
    tied = (top - spectrum) <= _TIE * torch.finfo(matrix.dtype).eps * spectrum.abs().amax(0)
    weights = tied.to(matrix.dtype)
    weighted = vectors * (weights / weights.sum(0)).unsqueeze(1)
    projector = (weighted.movedim((0, 1), (-2, -1))).mT @ vectors.movedim((0, 1), (-2, -1))
    # The rotations leave some eps in the diagonal; the Rayleigh quotient with the matrix itself takes them out.
    trace = projector.diagonal(dim1=-2, dim2=-1).sum(-1)
    top = (projector * matrix).sum((-2, -1)) / trace
    projector = projector / trace[..., None, None]
    return (
        top + poison,
        projector + poison[..., None, None],
        spectrum.movedim(0, -1) + poison[..., None],
        vectors.movedim((0, 1), (-2, -1)).clone(),
    )


def hessian_product(spectrum: Tensor, vectors: Tensor, direction: Tensor) -> Tensor:
    """The Hessian of the largest eigenvalue times the symmetric part of ``direction``; 0 where it is multiple.

    The top eigenvector ``u`` moves by ``w = sum_i v_i (v_i . V u) / (top - l_i)`` over the other pairs, so ``u u'``
    moves by ``w u' + u w'``.
    """
    top, index = spectrum.max(-1, keepdim=True)
    u = torch.take_along_dim(vectors, index.unsqueeze(-1), -2)  # (..., 1, N)
    gap = top - spectrum
    other = torch.arange(spectrum.shape[-1], device=spectrum.device) != index
    tied = (gap <= _TIE * torch.finfo(spectrum.dtype).eps * spectrum.abs().amax(-1, keepdim=True)) & other
    weight = torch.where(other & ~tied.any(-1, keepdim=True), 1 / torch.where(other & (gap > 0), gap, 1), 0)
    symmetric = (direction + direction.mT) / 2
    along = (vectors @ (symmetric @ u.mT)).squeeze(-1)  # (..., N): v_i . V u
    w = (weight * along).unsqueeze(-2) @ vectors  # (..., 1, N)
    return w.mT @ u + u.mT @ w
