r"""Eq. (1), pairwise InfoNCE, as Triton kernels that never hold the B x B logits.

With :math:`z_{ij} = x_i \cdot y_j / \tau`, rows :math:`r_i = \log \sum_j e^{z_{ij}}`, columns
:math:`c_j = \log \sum_i e^{z_{ij}}` and matches :math:`d_i = z_{i, i + o}`:

.. math:: \frac{\partial L}{\partial z_{ij}} = \bar r_i e^{z_{ij} - r_i} + \bar c_j e^{z_{ij} - c_j}
          + \bar d_i [j = i + o] =: W_{ij}, \qquad \bar x = W y / \tau, \qquad \bar y = W^\top x / \tau.

One kernel makes the logsumexp of rows, and of columns when ``x`` and ``y`` change places; a second makes the gradient
of ``x`` from tiles of ``W`` that it computes again, and that of ``y`` likewise. A program has some rows and a part of
the columns, as many parts as fill a device, and writes results of its own, which are added up in a fixed order: no
atomics, and the same result in every run. All sums are in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from multicontrast._launch_triton import Tuning, config, dot_precision, launch

# The largest tiles that spill no register. Splitting a float32 into three bfloat16 costs as much as their products do,
# and every row and column that shares a tile shares it.
_CANDIDATES = [
    config(num_warps=w, num_stages=s, BLOCK_ROWS=r, BLOCK_COLUMNS=c, BLOCK_DEPTH=d)
    for w, s, r, c, d in (
        (8, 2, 64, 64, 16), (8, 2, 64, 64, 32), (4, 2, 64, 64, 32), (8, 2, 128, 64, 16), (8, 2, 128, 64, 32),
        (8, 3, 128, 64, 32), (8, 2, 128, 128, 32),
    )
]  # fmt: skip
_SMALL = config(num_warps=8, BLOCK_ROWS=64, BLOCK_COLUMNS=64, BLOCK_DEPTH=16)
_MEDIUM = config(num_warps=8, BLOCK_ROWS=128, BLOCK_COLUMNS=64, BLOCK_DEPTH=16)
_LARGE = config(num_warps=8, BLOCK_ROWS=128, BLOCK_COLUMNS=64, BLOCK_DEPTH=32)
_SCALAR = config(num_warps=4, num_stages=1, BLOCK_ROWS=32, BLOCK_COLUMNS=32, BLOCK_DEPTH=16)  # no tensor core to feed
_FORWARD = Tuning(_MEDIUM, {"cuda:90": _LARGE, "cuda:100": _LARGE, "cuda:75": _SCALAR}, _CANDIDATES)
_BACKWARD = Tuning(_MEDIUM, {"cuda:90": _LARGE, "cuda:120": _SMALL, "cuda:75": _SCALAR}, _CANDIDATES)

# A logit is rounded before its log-sum is taken off, in both passes, so that a softmax of one entry is 1 at any tau.
_ROUNDED: dict[str, Any] = {"enable_fp_fusion": False}

# Columns are divided into parts of whole tiles, until there are two programs for each multiprocessor of a large device.
# Each part of the gradient takes another (M, D) of memory.
_PROGRAMS, _ROWS, _COLUMNS, _GRADIENT_PARTS = 264, 128, 64, 8


@triton.jit
def _products(
    x_ptr, y_ptr, x_row_stride, x_stride, y_row_stride, y_stride, rows, columns, i, j, depth,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``x_i . y_j``: ``(BLOCK_ROWS, BLOCK_COLUMNS)`` in float32; rows beyond the end count as zero."""
    products = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for start in range(0, depth, BLOCK_DEPTH):
        k = start + tl.arange(0, BLOCK_DEPTH).to(tl.int64)
        x = tl.load(
            x_ptr + i[:, None] * x_row_stride + k[None, :] * x_stride,
            mask=(i[:, None] < rows) & (k[None, :] < depth),
            other=0.0,
        )
        y = tl.load(
            y_ptr + j[None, :] * y_row_stride + k[:, None] * y_stride,
            mask=(j[None, :] < columns) & (k[:, None] < depth),
            other=0.0,
        )
        products = tl.dot(x, y, products, input_precision=PRECISION)
    return products


@triton.jit
def _pairwise_logsumexp_kernel(
    x_ptr, y_ptr, tau_ptr, highest_ptr, total_ptr, match_ptr,
    x_row_stride, x_stride, y_row_stride, y_stride, rows, columns, depth, offset, parts, part_columns,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tau = tl.load(tau_ptr).to(tl.float32)
    inverse_tau = tl.where(tau > 0, 1 / tau, float("nan"))
    program = tl.program_id(0).to(tl.int64)
    first, part = program // parts * BLOCK_ROWS, program % parts
    i = first + tl.arange(0, BLOCK_ROWS)
    highest = tl.full((BLOCK_ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    match = tl.full((BLOCK_ROWS,), -float("inf"), tl.float32)  # until it is met
    begin = part * part_columns
    stop = tl.minimum(begin + part_columns, columns)
    for start in range(begin, stop, BLOCK_COLUMNS):
        j = start + tl.arange(0, BLOCK_COLUMNS).to(tl.int64)
        z = inverse_tau * _products(
            x_ptr, y_ptr, x_row_stride, x_stride, y_row_stride, y_stride, rows, stop, i, j, depth,
            BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_DEPTH, PRECISION,
        )  # fmt: skip
        if (start < first + BLOCK_ROWS + offset) & (start + BLOCK_COLUMNS > first + offset):
            is_match = j[None, :] == i[:, None] + offset
            here = (i + offset >= start) & (i + offset < tl.minimum(start + BLOCK_COLUMNS, stop))
            match = tl.where(here, tl.sum(tl.where(is_match, z, 0.0), 1), match)
        z = tl.where(j[None, :] < stop, z, -float("inf"))
        higher = tl.maximum(highest, tl.max(z, 1))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(z - higher[:, None]), 1)
        highest = higher
    inside = i < rows
    out = part * rows + i
    tl.store(highest_ptr + out, highest, mask=inside)
    tl.store(total_ptr + out, total, mask=inside)
    tl.store(match_ptr + out, match, mask=inside)


@triton.jit
def _softmax(z, lse):
    """``exp(z - lse)``, at most 1: at a tiny tau ``z`` has no digits left that its row's sum has not rounded off."""
    return tl.exp(tl.minimum(z - lse, 0.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def _pairwise_gradient_kernel(
    x_ptr, y_ptr, tau_ptr, row_lse_ptr, column_lse_ptr, row_grad_ptr, column_grad_ptr, match_grad_ptr,
    dx_ptr, dtau_ptr,
    x_row_stride, x_stride, y_row_stride, y_stride, rows, columns, depth, offset, match_shift, matches,
    parts, part_columns,
    OF_ROWS: tl.constexpr, OF_COLUMNS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tau = tl.load(tau_ptr).to(tl.float32)
    inverse_tau = tl.where(tau > 0, 1 / tau, float("nan"))
    program = tl.program_id(0).to(tl.int64)
    part = program % parts
    i = program // parts * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = i < rows
    dx_ptr += part * rows * depth
    if OF_ROWS:
        row_lse = tl.load(row_lse_ptr + i, mask=inside, other=0.0)
        row_grad = tl.load(row_grad_ptr + i, mask=inside, other=0.0)
    has_match = inside & (i + match_shift >= 0) & (i + match_shift < matches)
    match_grad = tl.load(match_grad_ptr + i + match_shift, mask=has_match, other=0.0)
    slope = tl.zeros((BLOCK_ROWS,), tl.float32)
    begin = part * part_columns
    stop = tl.minimum(begin + part_columns, columns)
    for start in range(begin, stop, BLOCK_COLUMNS):
        j = start + tl.arange(0, BLOCK_COLUMNS).to(tl.int64)
        cosines = _products(
            x_ptr, y_ptr, x_row_stride, x_stride, y_row_stride, y_stride, rows, stop, i, j, depth,
            BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_DEPTH, PRECISION,
        )  # fmt: skip
        z = cosines * inverse_tau
        weight = tl.where(j[None, :] == i[:, None] + offset, match_grad[:, None], 0.0)
        if OF_ROWS:
            weight += row_grad[:, None] * _softmax(z, row_lse[:, None])
        if OF_COLUMNS:
            column_lse = tl.load(column_lse_ptr + j, mask=j < stop, other=0.0)
            column_grad = tl.load(column_grad_ptr + j, mask=j < stop, other=0.0)
            weight += column_grad[None, :] * _softmax(z, column_lse[None, :])
        weight = tl.where(inside[:, None] & (j[None, :] < stop), weight, 0.0)
        slope += tl.sum(weight * z, 1)
        weight *= inverse_tau
        for depth_start in range(0, depth, BLOCK_DEPTH):
            k = depth_start + tl.arange(0, BLOCK_DEPTH).to(tl.int64)
            y = tl.load(
                y_ptr + j[:, None] * y_row_stride + k[None, :] * y_stride,
                mask=(j[:, None] < stop) & (k[None, :] < depth),
                other=0.0,
            )
            pointers = dx_ptr + i[:, None] * depth + k[None, :]
            mask = inside[:, None] & (k[None, :] < depth)
            if y.dtype == tl.bfloat16:  # a gradient of half inputs comes from products in their type
                factor = weight.to(tl.bfloat16)
            else:
                factor, y = weight, y.to(tl.float32)
            dx = tl.load(pointers, mask=mask & (start > begin), other=0.0)
            tl.store(pointers, tl.dot(factor, y, dx, input_precision=PRECISION), mask=mask)
        tl.debug_barrier()  # these rows are the program's own, but another of its threads may read them next
    tl.store(dtau_ptr + part * rows + i, -slope * inverse_tau, mask=inside)


def pairwise_forward(
    x: Tensor, y: Tensor, tau: Tensor, *, offset: int = 0, columns: bool = True, tf32: bool = False
) -> tuple[Tensor, Tensor | None, Tensor]:
    """``(row logsumexp (M,), column logsumexp (N,) or None, matches (M,))`` of the logits ``x @ y.T / tau``, float32.

    Args:
        x, y: ``(M, D)`` and ``(N, D)`` of one floating type and device, any strides; computed in float32.
        tau: 0-dim tensor on the same device.
        offset: row ``i`` matches column ``i + offset``; a row that matches none has NaN for its match.
        columns: whether the logsumexp of columns is wanted; it takes a second pass.
        tf32: whether products may err as those of TF32 do.
    """
    precision = dot_precision(tf32)
    x, y = _factors(x, y, precision)
    rows, match = _logsumexp(x, y, tau, offset, precision)
    return rows, _logsumexp(y, x, tau, -offset, precision)[0] if columns else None, match


def pairwise_backward(
    x: Tensor,
    y: Tensor,
    tau: Tensor,
    row_lse: Tensor,
    column_lse: Tensor | None,
    row_grad: Tensor,
    column_grad: Tensor | None,
    match_grad: Tensor,
    *,
    offset: int = 0,
    tf32: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(dx, dy, dtau)`` in float32 from the gradients of the three results of :func:`pairwise_forward`.

    Args:
        row_lse, column_lse: what it returned; None for the columns if they were not wanted.
        row_grad, column_grad, match_grad: ``(M,)``, ``(N,)`` or None, and ``(M,)``.
        tf32: as it was given there; the products must be the same.
    """
    precision = dot_precision(tf32)
    x, y = _factors(x, y, precision)
    match_grad = match_grad.contiguous().float()
    row_grad = row_grad.contiguous().float()
    column_grad = None if column_grad is None else column_grad.contiguous().float()
    rows, columns = (row_lse, row_grad), (column_lse, column_grad)
    dx, dtau = _gradient(x, y, tau, rows, columns, match_grad, offset, 0, precision)
    dy, _ = _gradient(y, x, tau, columns, rows, match_grad, -offset, -offset, precision)
    return dx, dy, dtau.sum()


def _factors(x: Tensor, y: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """What is multiplied: half precision as it is on tensor cores, float32 on scalar units and in the interpreter."""
    return (x.float(), y.float()) if precision == "ieee" else (x, y)


def _logsumexp(x: Tensor, y: Tensor, tau: Tensor, offset: int, precision: str) -> tuple[Tensor, Tensor]:
    parts, part_columns = _parts(len(x), len(y), len(y))
    shape = (parts, len(x))
    highest, total, match = (torch.empty(shape, dtype=torch.float32, device=x.device) for _ in range(3))
    if len(x):
        launch(
            _pairwise_logsumexp_kernel, _grid(len(x), parts), _FORWARD,
            x, y, tau, highest, total, match, *x.stride(), *y.stride(), len(x), len(y), x.shape[1], offset,
            parts, part_columns, PRECISION=precision, **_ROUNDED, key=("columns", "depth"),
        )  # fmt: skip
    peak = highest.amax(0)
    total = torch.where(total == 0, total, total * torch.exp(highest - peak)).sum(0)  # no columns: the log of 0
    match = match.amax(0)
    return peak + total.log(), torch.where(match == -torch.inf, torch.nan, match)


def _parts(rows: int, columns: int, most: int) -> tuple[int, int]:
    """Into how many parts the columns are divided, at most ``most``, and the columns of each: whole tiles."""
    tiles = triton.cdiv(columns, _COLUMNS)
    wanted = max(1, min(tiles, most, triton.cdiv(_PROGRAMS, max(1, triton.cdiv(rows, _ROWS)))))
    part = triton.cdiv(tiles, wanted) if tiles else 1
    return max(1, triton.cdiv(tiles, part)), part * _COLUMNS


def _gradient(
    x: Tensor,
    y: Tensor,
    tau: Tensor,
    rows: tuple[Tensor | None, Tensor | None],
    columns: tuple[Tensor | None, Tensor | None],
    match_grad: Tensor,
    offset: int,
    match_shift: int,
    precision: str,
) -> tuple[Tensor, Tensor]:
    parts, part_columns = _parts(len(x), len(y), _GRADIENT_PARTS)
    allocate = torch.empty if len(y) else torch.zeros
    dx = allocate((parts, *x.shape), dtype=torch.float32, device=x.device)
    dtau = torch.empty((parts, len(x)), dtype=torch.float32, device=x.device)
    if len(x):
        of_rows, of_columns = rows[0] is not None, columns[0] is not None
        row_lse, row_grad = rows if of_rows else (match_grad, match_grad)  # not read
        column_lse, column_grad = columns if of_columns else (match_grad, match_grad)
        launch(
            _pairwise_gradient_kernel, _grid(len(x), parts), _BACKWARD,
            x, y, tau, row_lse, column_lse, row_grad, column_grad, match_grad, dx, dtau,
            *x.stride(), *y.stride(), len(x), len(y), x.shape[1], offset, match_shift, len(match_grad),
            parts, part_columns, OF_ROWS=of_rows, OF_COLUMNS=of_columns,
            PRECISION=precision, **_ROUNDED, key=("columns", "depth"),
        )  # fmt: skip
    return dx.sum(0) if parts > 1 else dx[0], dtau


def _grid(rows: int, parts: int):
    return lambda constants: (triton.cdiv(rows, constants["BLOCK_ROWS"]) * parts,)
