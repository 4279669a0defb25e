r"""Eq. (3) over all triplets of an anchor, streamed, as Triton kernels: B^3 eigenvalues, memory O(B^2).

With :math:`x_{ijk} = \lambda_{max} - 1` for the cosines :math:`a_{ij}, b_{ik}, c_{jk}`:

.. math:: \ell_i = \log \sum_{jk} e^{x_{ijk} / \tau}, \qquad w_{ijk} = e^{x_{ijk} / \tau - \ell_i}, \qquad
          \mu_i = \sum_{jk} w_{ijk} x_{ijk}, \qquad \partial \ell_i / \partial \tau = -\mu_i / \tau^2.

The gradient w.r.t. :math:`a_{ij}` is a sum over k, that w.r.t. :math:`b_{ik}` over j, that w.r.t. :math:`c_{jk}` over
i. One kernel, launched three times, computes them: each lane owns one entry and loops over the third index. This
computes each eigenvalue three times, but needs no atomics and no reduction between lanes, and every run gives the same
bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from multicontrast._launch_triton import Tuning, config, launch
from multicontrast.linalg._gram3_triton import eigmax_excess_of, eigmax_with_gradient_of
from multicontrast.losses.triton.rows_triton import inverse_of

_PROGRAMS = 512  # fills any device; with fewer anchors, each is split over several programs

_FORWARD = Tuning(
    default=config(num_warps=4, BLOCK=256),
    candidates=[config(num_warps=w, BLOCK=b) for w, b in ((2, 128), (4, 128), (4, 256), (8, 512))],
)
_BACKWARD = Tuning(
    default=config(num_warps=4, BLOCK=128),
    candidates=[config(num_warps=w, BLOCK=b) for w, b in ((2, 64), (4, 128), (4, 256), (8, 256))],
)


@triton.jit
def _excess_of_row(a_ptr, a_stride, b, c_ptr, c_row_stride, c_offsets, j, stop, inside):
    """``x`` of the triplets ``(i, j, k)`` for a block of k; minus infinity beyond the end."""
    exists = inside & (j < stop)
    a = tl.load(a_ptr + j * a_stride, mask=j < stop, other=0.0)
    c = tl.load(c_ptr + j * c_row_stride + c_offsets, mask=exists, other=0.0)
    return tl.where(exists, eigmax_excess_of(tl.zeros_like(b) + a, b, c), -float("inf"))


@triton.jit
def _exact_forward_kernel(
    a_ptr, b_ptr, c_ptr, tau_ptr, highest_ptr, total_ptr, moment_ptr,
    a_row_stride, a_stride, b_row_stride, b_stride, c_row_stride, c_stride, size1, size2, chunk, splits,
    BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    i = program // splits
    start = (program % splits) * chunk
    stop = tl.minimum(start + chunk, size1)
    a_ptr += i * a_row_stride
    b_ptr += i * b_row_stride
    tau = tl.load(tau_ptr)
    scale = tl.where(tau > 0, 1.4426950408889634 / tau, float("nan"))
    highest = tl.full((BLOCK,), -1e30, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    moment = tl.zeros((BLOCK,), tl.float32)  # sum of x times its weight
    for k_start in range(0, size2, BLOCK):
        k = k_start + tl.arange(0, BLOCK).to(tl.int64)  # (BLOCK,)
        inside = k < size2
        b = tl.load(b_ptr + k * b_stride, mask=inside, other=0.0)
        c_offsets = k * c_stride
        for j in range(start, stop, 4):  # four rows for each rescaling of the sums
            x0 = _excess_of_row(a_ptr, a_stride, b, c_ptr, c_row_stride, c_offsets, j, stop, inside)
            x1 = _excess_of_row(a_ptr, a_stride, b, c_ptr, c_row_stride, c_offsets, j + 1, stop, inside)
            x2 = _excess_of_row(a_ptr, a_stride, b, c_ptr, c_row_stride, c_offsets, j + 2, stop, inside)
            x3 = _excess_of_row(a_ptr, a_stride, b, c_ptr, c_row_stride, c_offsets, j + 3, stop, inside)
            x = tl.maximum(tl.maximum(x0, x1), tl.maximum(x2, x3))
            higher = tl.maximum(highest, x * scale)
            w0, w1 = tl.exp2(x0 * scale - higher), tl.exp2(x1 * scale - higher)
            w2, w3 = tl.exp2(x2 * scale - higher), tl.exp2(x3 * scale - higher)
            rescale = tl.exp2(highest - higher)
            total = total * rescale + ((w0 + w1) + (w2 + w3))
            # Beyond the end x is -inf, and 0 * -inf would be NaN; elsewhere x is at least -1. NaN stays.
            moment = moment * rescale + (
                (w0 * tl.where(x0 < -1, 0, x0) + w1 * tl.where(x1 < -1, 0, x1))
                + (w2 * tl.where(x2 < -1, 0, x2) + w3 * tl.where(x3 < -1, 0, x3))
            )
            highest = higher
    maximum = tl.max(highest, 0)
    rescale = tl.exp2(highest - maximum)
    tl.store(highest_ptr + program, maximum)
    tl.store(total_ptr + program, tl.sum(total * rescale, 0))
    tl.store(moment_ptr + program, tl.sum(moment * rescale, 0))


@triton.jit
def _exact_gradient_kernel(
    own_ptr, left_ptr, right_ptr, tau_ptr, lse_ptr, grad_ptr, result_ptr,
    own_row_stride, own_stride, left_row_stride, left_stride, right_stride, right_column_stride,
    lse_row_stride, lse_stride, rows, columns, count,
    BLOCK: tl.constexpr,
):  # fmt: skip
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,)
    inside = entry < rows * columns
    row = entry // columns
    column = entry % columns
    inverse_tau = inverse_of(tau_ptr)
    scale = 1.4426950408889634 * inverse_tau
    own = tl.load(own_ptr + row * own_row_stride + column * own_stride, mask=inside, other=0.0)
    total = tl.zeros((BLOCK,), tl.float32)
    left_ptrs = left_ptr + row * left_row_stride
    right_ptrs = right_ptr + column * right_column_stride
    lse_offsets = row * lse_row_stride
    for _t in range(count):
        left = tl.load(left_ptrs, mask=inside, other=0.0)
        right = tl.load(right_ptrs, mask=inside, other=0.0)
        lse = tl.load(lse_ptr + lse_offsets, mask=inside, other=0.0)
        grad = tl.load(grad_ptr + lse_offsets, mask=inside, other=0.0)
        x, slope, _by_left, _by_right = eigmax_with_gradient_of(own, left, right, False)
        total += grad * tl.exp2(x * scale - lse) * slope
        left_ptrs += left_stride
        right_ptrs += right_stride
        lse_offsets += lse_stride
    tl.store(result_ptr + entry, total * inverse_tau, mask=inside)


def exact_forward(a: Tensor, b: Tensor, c: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """``(lse, mean)``, ``(B0,)`` both: logsumexp of ``x / tau`` over all (j, k), and the mean of ``x`` under it.

    An anchor's loss is this logsumexp minus its positive's ``x / tau``; the 1 of ``lambda = 1 + x`` cancels.

    Args:
        a, b, c: float32 Gram blocks ``(B0, B1)``, ``(B0, B2)``, ``(B1, B2)`` of the anchor's modality with the other
            two, and of those two; any strides.
        tau: 0-dim tensor on the same device.
    """
    (anchors, size1), size2 = a.shape, b.shape[1]
    splits = max(1, min(triton.cdiv(_PROGRAMS, max(anchors, 1)), triton.cdiv(size1, 8)))
    chunk = triton.cdiv(size1, splits)
    highest, total, moment = (a.new_empty(anchors, splits) for _ in range(3))
    if anchors:
        launch(
            _exact_forward_kernel, lambda _: (anchors * splits,), _FORWARD,
            a, b, c, tau.float(), highest, total, moment, *a.stride(), *b.stride(), *c.stride(),
            size1, size2, chunk, splits, key=("size1", "size2"),
        )  # fmt: skip
    maximum = highest.amax(1, keepdim=True)
    rescale = torch.exp2(highest - maximum)
    total = (total * rescale).sum(1)
    lse = (maximum.squeeze(1) + total.log2()) * 0.6931471805599453
    return lse, (moment * rescale).sum(1) / total


def exact_backward(
    a: Tensor, b: Tensor, c: Tensor, tau: Tensor, lse: Tensor, mean: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ``(grad * lse).sum()``: ``(da, db, dc, dtau)``.

    Args:
        a, b, c, tau: the arguments of :func:`exact_forward`.
        lse, mean: its results.
        grad: ``(B0,)``.
    """
    lse = lse * 1.4426950408889634  # in units of ln 2
    grad = grad.contiguous()
    transposed = c.mT.contiguous()  # so that neighbouring lanes read neighbouring entries
    # The block of the entries, the two other blocks, and whether the anchor is an entry's row or the third index.
    da = _gradient(a, b, transposed, tau, lse, grad, anchor_is_row=True)
    db = _gradient(b, a, c, tau, lse, grad, anchor_is_row=True)
    dc = _gradient(c, a.mT, b, tau, lse, grad, anchor_is_row=False)
    return da, db, dc, -(grad * mean).sum() / tau.square()


def _gradient(
    own: Tensor, left: Tensor, right: Tensor, tau: Tensor, lse: Tensor, grad: Tensor, *, anchor_is_row: bool
) -> Tensor:
    """``sum_t grad w dx/d(own[r, s])`` for cosines ``own[r, s]``, ``left[r, t]``, ``right[t, s]``."""
    result = own.new_empty(own.shape)
    count = left.shape[1]
    if result.numel():
        launch(
            _exact_gradient_kernel, lambda constants: (triton.cdiv(result.numel(), constants["BLOCK"]),), _BACKWARD,
            own, left, right, tau.float(), lse, grad, result,
            *own.stride(), *left.stride(), *right.stride(),
            int(anchor_is_row), int(not anchor_is_row), *own.shape, count, key=("count",),
        )  # fmt: skip
    return result
