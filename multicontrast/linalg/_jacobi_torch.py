r"""Cyclic Jacobi in plain PyTorch: all eigenpairs of small symmetric matrices, N = 2..8, batched.

Each rotation makes one off-diagonal entry zero; a sweep visits all of them once, and convergence is quadratic, so the
number of sweeps is a constant of N and of the type. Derivation, sweeps and errors are in
``docs/math/symmetric-eigenproblems.md``.

The work is done with the batch in the last axis, so that each operation has contiguous rows. No branch depends on a
value. This is for devices other than the CPU where there is no Triton, and for N = 2.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

# Sweeps after which neither values nor vectors improve; float64 has one more than needed.
SWEEPS = {
    torch.float32: {2: 1, 3: 4, 4: 5, 5: 5, 6: 6, 7: 6, 8: 6},
    torch.float64: {2: 1, 3: 5, 4: 6, 5: 7, 6: 7, 7: 7, 8: 7},
}


def eigenpairs(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``(..., N)``, in no order, and orthonormal eigenvectors, the columns of ``(..., N, N)``.

    Args:
        matrix: ``(..., N, N)``, symmetric, entries of order 1.
    """
    shape, n = matrix.shape, matrix.shape[-1]
    matrix = matrix.reshape(-1, n, n)
    batch = len(matrix)
    # The vectors hang below the matrix: a rotation of two columns is one operation on both.
    work = matrix.new_zeros(2 * n, n, batch)
    work[:n] = matrix.permute(1, 2, 0)
    for i in range(n):
        work[n + i, i] = 1
    spare = torch.empty_like(work[:, 0]), torch.empty_like(work[:, 0])
    for _ in range(SWEEPS[matrix.dtype][n]):
        for p, q in itertools.combinations(range(n), 2):
            _rotate(work, p, q, spare)
    values = torch.stack([work[i, i] for i in range(n)], -1)
    return values.view(shape[:-1]), work[n:].permute(2, 0, 1).reshape(shape)


def _rotate(work: Tensor, p: int, q: int, spare: tuple[Tensor, Tensor]) -> None:
    """Makes entry ``(p, q)`` zero by a rotation of the p-th and q-th axes; in place."""
    app, aqq, apq = work[p, p].clone(), work[q, q].clone(), work[p, q].clone()
    # The smaller root of t^2 + 2 theta t - 1, at most 1: t = 2 apq / (gap +- sqrt(gap^2 + 4 apq^2)).
    gap, twice = aqq - app, 2 * apq
    divisor = (gap * gap).addcmul_(twice, twice).sqrt_().add_(gap.abs())
    divisor = torch.maximum(divisor, twice.abs(), out=divisor).clamp_min_(torch.finfo(work.dtype).smallest_normal)
    t = twice.div_(divisor.copysign_(gap))
    cos = (t * t).add_(1).rsqrt_()
    sin = t * cos
    tau = sin / cos.add_(1)
    # Rutishauser's form adds small changes to the entries, so the rounding errors of the changes are small, too.
    first, second = work[:, p], work[:, q]
    down = torch.addcmul(second, tau, first, out=spare[0])
    up = torch.addcmul(first, tau, second, value=-1, out=spare[1])
    first.addcmul_(sin, down, value=-1)
    second.addcmul_(sin, up)
    # The rows mirror the columns; the crossing entries are known without rounding twice.
    size = work.shape[1]
    work[p] = first[:size]
    work[q] = second[:size]
    work[p, p] = app.addcmul_(t, apq, value=-1)
    work[q, q] = aqq.addcmul_(t, apq)
    work[p, q] = 0
    work[q, p] = 0
