r"""Eq. (3) over sampled triplets as Triton kernels: gather, eigenvalue, softmax, and their gradients.

Row ``i`` compares the triplets ``index[i]``; the first is the positive. With ``x = lambda_max - 1`` of a triplet's
three cosines and :math:`z_k = (x_k - x_0) / \tau`,

.. math:: \ell_i = \log \sum_k e^{z_k}, \qquad
          \partial \ell_i / \partial x_k = (e^{z_k - \ell_i} - [k = 0]) / \tau, \qquad
          \partial \ell_i / \partial \tau = - \sum_k e^{z_k - \ell_i} z_k / \tau.

Nothing of size (rows, tuples) is stored: the backward pass computes the eigenvalues again. Of the three ways to pass
the triplets (:data:`SCHEMES`) only the index has that size; the others are one list for all rows. Equations:
``docs/math/h-cubic.md``.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from multicontrast._launch_triton import Tuning, config, launch
from multicontrast.linalg._gram3_triton import eigmax_excess_of, eigmax_with_gradient_of
from multicontrast.losses.triton.rows_triton import add_exponential, inverse_of, log_sum

SCHEMES = ("index", "list", "shifts")
"""How a row's tuples ``(i, j, k)`` are given; i is the row's own number, except for ``index``:

``index``   ``(R, 1 + K, 3)``: the members themselves
``list``    ``(1 + K, 2)``: ``j`` and ``k``, the same for all rows; in entry 0 both are replaced by the row's own number
``shifts``  ``(1 + K, 2)``: ``j = i + s`` and ``k = i + t``, modulo B1, for shifts from 0 to B1 - 1
"""

# One row for each program, which fills any device; each program reads its index once, in order.
_FORWARD = Tuning(
    default=config(num_warps=4, BLOCK=256),
    candidates=[config(num_warps=w, BLOCK=b) for w, b in ((2, 128), (4, 256), (4, 512), (8, 1024))],
)
_CANDIDATES = [config(num_warps=w, BLOCK=b) for w, b in ((2, 64), (4, 128), (4, 256), (8, 256), (8, 512))]
_BACKWARD = {
    torch.float32: Tuning(default=config(num_warps=4, BLOCK=128), candidates=_CANDIDATES),
    torch.float64: Tuning(default=config(num_warps=8, BLOCK=256), candidates=_CANDIDATES),  # spills no register
}


@triton.jit
def _members(index_ptr, index_stride, index_last_stride, own, size1, columns, inside, SCHEME: tl.constexpr):
    """``(i, j, k)`` of some columns of row ``own``."""
    i = own + tl.zeros_like(columns)
    j = tl.load(index_ptr + columns * index_stride, mask=inside, other=0).to(tl.int64)
    k = tl.load(index_ptr + columns * index_stride + index_last_stride, mask=inside, other=0).to(tl.int64)
    if SCHEME == "index":
        i, j = j, k
        k = tl.load(index_ptr + columns * index_stride + 2 * index_last_stride, mask=inside, other=0).to(tl.int64)
    elif SCHEME == "shifts":
        j, k = i + j, i + k
        j, k = j - tl.where(j < size1, 0, size1), k - tl.where(k < size1, 0, size1)
    else:
        j, k = tl.where(columns == 0, i, j), tl.where(columns == 0, i, k)
    return i, j, k


@triton.jit
def _gather(
    a_ptr, b_ptr, c_ptr, index_ptr,
    a_stride0, a_stride1, b_stride0, b_stride1, c_stride0, c_stride1, index_stride, index_last_stride,
    own, first, size0, size1, size2, columns, inside, SCHEME: tl.constexpr,
):  # fmt: skip
    """``(a, b, c, i, j, k, read)``: the tuples' cosines, their places in the blocks and which were read; a cosine is
    NaN where a member does not exist."""
    i, j, k = _members(index_ptr, index_stride, index_last_stride, own, size1, columns, inside, SCHEME)
    i -= first
    exists = (i >= 0) & (i < size0) & (j >= 0) & (j < size1) & (k >= 0) & (k < size2)
    read = inside & exists
    a = tl.load(a_ptr + i * a_stride0 + j * a_stride1, mask=read, other=0.0)
    b = tl.load(b_ptr + i * b_stride0 + k * b_stride1, mask=read, other=0.0)
    c = tl.load(c_ptr + j * c_stride0 + k * c_stride1, mask=read, other=0.0)
    return tl.where(exists, a, float("nan")), b, c, i, j, k, read


@triton.jit
def _positive(
    a_ptr, b_ptr, c_ptr, index_ptr,
    a_stride0, a_stride1, b_stride0, b_stride1, c_stride0, c_stride1, index_stride, index_last_stride,
    own, first, size0, size1, size2, SCHEME: tl.constexpr,
):  # fmt: skip
    """``x`` of the row's first tuple."""
    column = tl.zeros((1,), tl.int64)
    a, b, c, _i, _j, _k, _read = _gather(
        a_ptr, b_ptr, c_ptr, index_ptr,
        a_stride0, a_stride1, b_stride0, b_stride1, c_stride0, c_stride1, index_stride, index_last_stride,
        own, first, size0, size1, size2, column, column == 0, SCHEME,
    )  # fmt: skip
    return tl.sum(eigmax_excess_of(a, b, c), 0)


@triton.jit
def _sampled_forward_kernel(
    a_ptr, b_ptr, c_ptr, index_ptr, tau_ptr, lse_ptr, loss_ptr,
    a_stride0, a_stride1, b_stride0, b_stride1, c_stride0, c_stride1,
    index_row_stride, index_stride, index_last_stride, first, size0, size1, size2, count,
    SCHEME: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    own = row + first
    index_ptr += row * index_row_stride
    inverse_tau = inverse_of(tau_ptr)
    positive = _positive(
        a_ptr, b_ptr, c_ptr, index_ptr,
        a_stride0, a_stride1, b_stride0, b_stride1, c_stride0, c_stride1, index_stride, index_last_stride,
        own, first, size0, size1, size2, SCHEME,
    )  # fmt: skip
    # The positive's z is 0, so the largest is at least 0 and every lane starts from 0.
    highest = tl.zeros((BLOCK,), positive.dtype)
    total = tl.zeros((BLOCK,), positive.dtype)
    for start in range(0, count, BLOCK):
        columns = start + tl.arange(0, BLOCK).to(tl.int64)  # (BLOCK,)
        inside = columns < count
        a, b, c, _i, _j, _k, _read = _gather(
            a_ptr, b_ptr, c_ptr, index_ptr,
            a_stride0, a_stride1, b_stride0, b_stride1, c_stride0, c_stride1, index_stride, index_last_stride,
            own, first, size0, size1, size2, columns, inside, SCHEME,
        )  # fmt: skip
        z = (eigmax_excess_of(a, b, c) - positive) * inverse_tau
        z = tl.where(inside, z, -float("inf"))
        highest, total = add_exponential(z, highest, total)
    loss = log_sum(highest, total)
    tl.store(loss_ptr + row, loss)
    tl.store(lse_ptr + row, loss + positive * inverse_tau)


@triton.jit
def _add(ptr, fixed_ptr, offsets, value, inverse_unit, mask, DETERMINISTIC: tl.constexpr):
    """Adds ``value``; with ``DETERMINISTIC`` in fixed point, whose sum does not depend on the order."""
    if DETERMINISTIC:
        finite = tl.abs(value) < float("inf")
        tl.atomic_add(fixed_ptr + offsets, (value * inverse_unit).to(tl.int64), mask=mask & finite, sem="relaxed")
        tl.atomic_add(ptr + offsets, value, mask=mask & (finite == 0), sem="relaxed")
    else:
        tl.atomic_add(ptr + offsets, value, mask=mask, sem="relaxed")


@triton.jit
def _sampled_backward_kernel(
    a_ptr, b_ptr, c_ptr, index_ptr, tau_ptr, loss_ptr, grad_ptr, inverse_unit_ptr,
    da_ptr, db_ptr, dc_ptr, a_fixed_ptr, b_fixed_ptr, c_fixed_ptr, dtau_ptr,
    a_stride0, a_stride1, b_stride0, b_stride1, c_stride0, c_stride1,
    index_row_stride, index_stride, index_last_stride, grad_stride, first, size0, size1, size2, count,
    SCHEME: tl.constexpr, DETERMINISTIC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    own = row + first
    index_ptr += row * index_row_stride
    inverse_tau = inverse_of(tau_ptr)
    loss = tl.load(loss_ptr + row)
    grad = tl.load(grad_ptr + row * grad_stride)
    slant = grad * inverse_tau
    inverse_unit = tl.load(inverse_unit_ptr)
    positive = _positive(
        a_ptr, b_ptr, c_ptr, index_ptr,
        a_stride0, a_stride1, b_stride0, b_stride1, c_stride0, c_stride1, index_stride, index_last_stride,
        own, first, size0, size1, size2, SCHEME,
    )  # fmt: skip
    slope = tl.zeros((BLOCK,), positive.dtype)
    for start in range(0, count, BLOCK):
        columns = start + tl.arange(0, BLOCK).to(tl.int64)  # (BLOCK,)
        inside = columns < count
        a, b, c, i, j, k, read = _gather(
            a_ptr, b_ptr, c_ptr, index_ptr,
            a_stride0, a_stride1, b_stride0, b_stride1, c_stride0, c_stride1, index_stride, index_last_stride,
            own, first, size0, size1, size2, columns, inside, SCHEME,
        )  # fmt: skip
        x, ga, gb, gc = eigmax_with_gradient_of(a, b, c, False)
        z = (x - positive) * inverse_tau
        p = tl.exp(z - loss)
        slope += tl.where(inside, p * z, 0)
        weight = slant * (p - tl.where(columns == 0, 1, 0))
        _add(da_ptr, a_fixed_ptr, i * size1 + j, weight * ga, inverse_unit, read, DETERMINISTIC)
        _add(db_ptr, b_fixed_ptr, i * size2 + k, weight * gb, inverse_unit, read, DETERMINISTIC)
        _add(dc_ptr, c_fixed_ptr, j * size2 + k, weight * gc, inverse_unit, read, DETERMINISTIC)
    tl.store(dtau_ptr + row, -grad * tl.sum(slope, 0) * inverse_tau)


def sampled_forward(
    a: Tensor, b: Tensor, c: Tensor, index: Tensor, tau: Tensor, scheme: str = "index", first: int = 0
) -> tuple[Tensor, Tensor]:
    """``(lse, loss)`` of each row, ``(R,)`` both: the logsumexp of x / tau, and that minus the positive's logit.

    Args:
        a, b, c: the Gram blocks ``(B0, B1)``, ``(B0, B2)``, ``(B1, B2)`` of modalities 0, 1 and 2, of one type
            (float32 or float64) and device, with any strides.
        index: integers in the layout of ``scheme``, any strides; column 0 is the positive. A row with a member out of
            range is NaN, and nothing is read for that member. A list or shifts serve every row of ``a``.
        tau: 0-dim tensor on the same device. It divides ``x = lambda_max - 1``; the 1 cancels in the loss.
        scheme: one of :data:`SCHEMES`.
        first: the number of the first row of ``a`` and ``b``, if they hold only the rows of some anchors.
    """
    rows, count, strides = extent(len(a), index, scheme)
    lse, loss = a.new_empty(rows), a.new_empty(rows)
    if rows:
        launch(
            _sampled_forward_kernel, lambda _: (rows,), _FORWARD,
            a, b, c, index, tau.to(a.dtype), lse, loss,
            *a.stride(), *b.stride(), *c.stride(), *strides, first, *a.shape, b.shape[1], count,
            SCHEME=scheme, key=("count",),
        )  # fmt: skip
    return lse, loss


def extent(anchors: int, index: Tensor, scheme: str) -> tuple[int, int, tuple[int, ...]]:
    """``(rows, columns, strides by row, column and member)`` of an index."""
    if scheme == "index":
        return index.shape[0], index.shape[1], index.stride()
    return anchors, index.shape[0], (0, *index.stride())


def sampled_backward(
    a: Tensor, b: Tensor, c: Tensor, index: Tensor, tau: Tensor, loss: Tensor, grad: Tensor,
    deterministic: bool = False, scheme: str = "index", first: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of ``(grad * loss).sum()`` by the blocks and by tau: ``(da, db, dc, dtau)``.

    Args:
        a, b, c, index, tau, scheme, first: the arguments of :func:`sampled_forward`.
        loss: its second result.
        grad: ``(R,)``, any stride.
        deterministic: whether every run gives the same bits. If so, contributions are added in fixed point, with a unit
            of about ``max|grad| / tau * R * 2**-60``, which takes 8 more bytes for each entry of a block.
    """
    rows, count, strides = extent(len(a), index, scheme)
    blocks = (a, b, c)
    grads = [torch.zeros(block.shape, dtype=block.dtype, device=block.device) for block in blocks]
    dtau = a.new_empty(rows)
    if not rows:
        return grads[0], grads[1], grads[2], dtau.sum()
    fixed, unit = grads, tau
    if deterministic:
        # A power of two with a finite inverse. One row adds at most 2 max|grad| / tau to any entry, so sums stay below
        # 2^62 units.
        exponent = torch.frexp(grad.abs().amax() / tau).exponent + (math.ceil(math.log2(rows)) - 60)
        unit = exponent.clamp_min(-126 if a.dtype == torch.float32 else -1022).to(a.dtype).exp2()
        fixed = [torch.zeros_like(block, dtype=torch.int64) for block in grads]
    launch(
        _sampled_backward_kernel, lambda _: (rows,), _BACKWARD[a.dtype],
        a, b, c, index, tau.to(a.dtype), loss, grad, 1 / unit if deterministic else unit, *grads, *fixed, dtau,
        *a.stride(), *b.stride(), *c.stride(), *strides, grad.stride(0), first, *a.shape, b.shape[1], count,
        SCHEME=scheme, DETERMINISTIC=deterministic,
        key=("count",), zeroed=("da_ptr", "db_ptr", "dc_ptr", "a_fixed_ptr", "b_fixed_ptr", "c_fixed_ptr"),
    )  # fmt: skip
    if deterministic:
        grads = [block.add_(whole.to(a.dtype) * unit) for block, whole in zip(grads, fixed)]
    return grads[0], grads[1], grads[2], dtau.sum()
