"""Eigenvalues of symmetric 3x3 matrices, in place: large batches on a CPU, where the cost is the number of passes.

The equations of :mod:`multicontrast.linalg._symmetric3_torch` without the scaling. Matrices that need it (entries far
from 1, multiples of the identity, NaN, infinity) show in the norm of the deviator; if there are any, they alone are
done by the careful form.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multicontrast.linalg._symmetric3_torch import NEWTON_STEPS, START, eigenvalues

SCRATCH_ROWS = 14

# Half the squared norm of the deviator, where squares of the smallest differences are still normal numbers and the
# fourth power of the largest entry is one.
_RANGE = {torch.float32: (2.0**-36, 2.0**50), torch.float64: (2.0**-440, 2.0**480)}
# The fit in 2 z.
_C0, _C1, _C2, _C3 = (c / 2**power for power, c in enumerate(START))


def eigenvalues_into(out: Tensor, matrix: Tensor, scratch: Tensor) -> None:
    """Writes the ascending eigenvalues of ``(n, 3, 3)``, lower triangle, into ``(n, 3)``.

    ``scratch`` is ``(SCRATCH_ROWS, n)``, contiguous rows of the same type.
    """
    a, b, c, u, v, w, centre, j2, s, t, y, z, eta, spare = scratch.unbind(0)
    for row, i, j in ((a, 0, 0), (b, 1, 1), (c, 2, 2), (u, 1, 0), (v, 2, 0), (w, 2, 1)):
        row.copy_(matrix[:, i, j])
    torch.add(a, b, out=centre).add_(c).mul_(1 / 3)
    torch.sub(a, b, out=s), torch.sub(a, c, out=t), torch.sub(b, c, out=y)
    torch.add(s, t, out=a).mul_(1 / 3)
    torch.sub(y, s, out=b).mul_(1 / 3)
    torch.add(t, y, out=c).mul_(-1 / 3)
    torch.mul(u, u, out=j2).addcmul_(v, v).addcmul_(w, w)
    j2.addcmul_(a, a, value=0.5).addcmul_(b, b, value=0.5).addcmul_(c, c, value=0.5)
    # The determinant, then 2 z = |J3| / r^3 in the place of r^2.
    j3 = torch.mul(b, c, out=s).addcmul_(w, w, value=-1).mul_(a)
    j3.addcmul_(torch.mul(v, w, out=t).addcmul_(u, c, value=-1), u)
    j3.addcmul_(torch.mul(u, w, out=t).addcmul_(v, b, value=-1), v)
    r = torch.sqrt(torch.mul(j2, 1 / 3, out=t), out=eta)
    torch.div(j3, t.mul_(r), out=z).abs_().clamp_max_(2)
    torch.mul(z, _C3, out=y).add_(_C2).mul_(z).add_(_C1).mul_(z).add_(_C0)
    for _ in range(NEWTON_STEPS[y.dtype]):
        residual = torch.sub(torch.mul(y, y, out=t), 3, out=spare).mul_(y).sub_(z)
        y.addcdiv_(residual, t.sub_(1), value=-1 / 3)
    torch.copysign(eta.mul_(y), j3, out=eta)
    # The adjugate of S = B + eta / 2, entry by entry, and its squared norm.
    for row in (a, b, c):
        row.add_(eta, alpha=0.5)
    norm, minor = s, t
    torch.mul(a, b, out=minor).addcmul_(u, u, value=-1)
    torch.mul(minor, minor, out=norm)
    for first, second, square in ((a, c, v), (b, c, w)):
        torch.mul(first, second, out=minor).addcmul_(square, square, value=-1)
        norm.addcmul_(minor, minor)
    for first, second, third, diagonal in ((u, v, w, a), (u, w, v, b), (v, w, u, c)):
        torch.mul(first, second, out=minor).addcmul_(third, diagonal, value=-1)
        norm.addcmul_(minor, minor, value=2)
    odd = _odd_matrices(j2)
    delta = norm.div_(j2.addcmul_(eta, eta, value=3.75)).sqrt_()
    middle = torch.mul(eta, -0.5, out=y)
    low, high = torch.sub(middle, delta, out=z), torch.add(middle, delta, out=t)
    torch.minimum(low, eta, out=low), torch.maximum(high, eta, out=high)
    middle.add_(torch.copysign(delta, eta, out=delta))
    for k, root in enumerate((low, middle, high)):
        torch.add(root, centre, out=out[:, k])
    if odd is not None:
        out[odd] = eigenvalues(matrix[odd])


def _odd_matrices(j2: Tensor) -> Tensor | None:
    """Indices of the matrices that need the careful form; None when there are none."""
    lowest, highest = _RANGE[j2.dtype]
    smallest, largest = torch.aminmax(j2)
    if smallest > lowest and largest < highest:  # False for NaN
        return None
    return ((j2 > lowest) & (j2 < highest)).logical_not_().nonzero().squeeze(1)
