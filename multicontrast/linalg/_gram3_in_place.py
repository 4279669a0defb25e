r"""The h-cubic in place: the hot path of the losses on a CPU, where each elementwise pass counts.

The same equations as :mod:`multicontrast.linalg._gram3_torch` (docs/math/h-cubic) without a mask, a comparison or an
allocation: about ninety passes over buffers that stay in cache. Exact ties with a negative product, cosines that are
all zero or denormal, NaN and infinity surface as something not finite in two sums; such a block is done again by the
careful form.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multicontrast.linalg._gram3_torch import eigmax_excess, eigmax_with_gradient

SCRATCH_ROWS = 14

_DOMINATE = {torch.float32: 2.0**26, torch.float64: 2.0**55}  # beats a relative spacing of the cosines
_HALLEY_STEPS = {torch.float32: 2, torch.float64: 3}


def eigmax_with_gradient_(a: Tensor, b: Tensor, c: Tensor, scratch: Tensor) -> Tensor:
    """``lambda_max - 1`` in a row of ``scratch``; ``a, b, c`` become its derivatives.

    Args:
        a, b, c: cosines of one shape, float32 or float64; overwritten.
        scratch: ``(SCRATCH_ROWS, *shape)`` of the same type; overwritten.

    Accuracy and conventions are those of :func:`multicontrast.linalg._gram3_torch.eigmax_with_gradient`.
    """
    rows = scratch.unbind(0)
    _root_(a, b, c, rows)
    hi, h, gap_a, gap_b, gap_c, signed_low, spare, work, fa, fb, fc, *_ = rows
    # u_i^2 = w_i / W with w = h (h + 2) + e (2 - e): sums of non-negative terms, accurate at any gap.
    common = torch.add(h, 2, out=spare).mul_(h)
    x = h.mul_(hi).add_(hi)
    u1, u2, u3 = (torch.sub(common, gap, out=gap) for gap in (gap_c, gap_b, gap_a))
    two_over_w = torch.add(u1, u2, out=work).add_(u3).mul_(0.5).reciprocal_()
    if not bool(torch.isfinite(x.sum() + two_over_w.sum())):
        careful, *gradient = eigmax_with_gradient(a, b, c)
        for cosine, slope in zip((a, b, c), gradient):
            cosine.copy_(slope)
        return x.copy_(careful)
    u1.sqrt_(), u2.sqrt_(), u3.sqrt_()
    low = torch.abs(signed_low, out=hi)
    for cosine, size, first, second in ((a, fa, u1, u2), (b, fb, u1, u3), (c, fc, u2, u3)):
        # With a negative product the smallest cosine changes sign. `size - low` is 0 for it and at least a rounding
        # unit of `low` for any other, so the factor has the sign of the product for the smallest alone. (Of two
        # smallest the gradient is 0, and three are a tie.)
        factor = torch.add(signed_low, size.sub_(low), alpha=_DOMINATE[a.dtype], out=size)
        magnitude = torch.mul(first, second, out=spare).mul_(two_over_w)
        torch.copysign(magnitude, cosine.mul_(factor), out=cosine)
    return x


def eigmax_excess_(a: Tensor, b: Tensor, c: Tensor, scratch: Tensor) -> Tensor:
    """``lambda_max - 1`` alone, in a row of ``scratch``; ``a, b, c`` are left as they are."""
    rows = scratch.unbind(0)
    _root_(a, b, c, rows)
    hi, h = rows[:2]
    x = h.mul_(hi).add_(hi)
    return x if bool(torch.isfinite(x.sum())) else x.copy_(eigmax_excess(a, b, c))


def _root_(a: Tensor, b: Tensor, c: Tensor, rows: tuple[Tensor, ...]) -> None:
    """Fills hi = max |cosine|, h = x / hi - 1, -e (2 - e) for the gap e of each cosine, sign(abc) min |cosine| and the
    absolute values; the other rows are spent."""
    hi, h, gap_a, gap_b, gap_c, signed_low, spare, work, fa, fb, fc, s, slope, half = rows
    for cosine, size in ((a, fa), (b, fb), (c, fc)):
        torch.abs(cosine, out=size)
    smaller, larger = torch.minimum(fa, fb, out=spare), torch.maximum(fa, fb, out=work)
    torch.maximum(larger, fc, out=hi)
    middle = torch.minimum(larger, fc, out=larger)
    torch.maximum(middle, smaller, out=middle)
    low = torch.minimum(smaller, fc, out=smaller)
    torch.mul(a, b, out=signed_low).mul_(c)  # keeps its sign where it underflows
    torch.copysign(low, signed_low, out=signed_low)
    scale = torch.reciprocal(hi, out=spare)
    t = middle.add_(signed_low).mul_(scale)
    g = t.mul_(t)
    for gap, size in ((gap_a, fa), (gap_b, fb), (gap_c, fc)):
        e = torch.sub(hi, size, out=gap).mul_(scale)  # subtract before scaling: exact where the cosines meet
        torch.sub(torch.mul(e, e, out=s), e, alpha=2, out=gap)
    k = torch.add(gap_a, gap_b, out=spare).add_(gap_c).neg_()
    # h0 = 2 G / (k + sqrt(k^2 + 12 G)), the root without h^3: above the root, so that Halley's steps descend to it.
    denominator = torch.mul(k, k, out=h).add_(g, alpha=12).sqrt_().add_(k)
    torch.div(g, denominator, out=h).mul_(2)
    # With s = h (h + 2): f = (s + h + k) h - G, f' = 3 s + k, f'' / 2 = 3 (h + 1).
    for _ in range(_HALLEY_STEPS[a.dtype]):
        torch.add(h, 2, out=s).mul_(h)
        torch.add(k, s, alpha=3, out=slope)
        f = s.add_(h).add_(k).mul_(h).sub_(g)
        torch.add(h, 1, out=half).mul_(f)
        f.mul_(slope)
        denominator = slope.mul_(slope).sub_(half, alpha=3)
        h.sub_(f.div_(denominator))
