"""Eq. (1) without its B x B logits as an operator: ``multicontrast::pairwise_logsumexp`` and its backward.

Plain PyTorch on a CPU and for float64, Triton on a GPU or wherever ``MULTICONTRAST_BACKEND=triton`` asks for it; the
same numbers, and one node for ``torch.compile`` and ``torch.export``. Differentiable twice: the second derivative is
that of the plain form, which holds the logits.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from multicontrast._backend import run_kernel, tf32_allowed, use_triton
from multicontrast._checks import compute_dtype
from multicontrast.losses._second_derivative import second_derivative

Three = tuple[Tensor, Tensor, Tensor]


@torch.library.custom_op(
    "multicontrast::pairwise_logsumexp",
    mutates_args=(),
    schema="(Tensor x, Tensor y, Tensor tau, int offset, bool columns) -> (Tensor, Tensor, Tensor)",
)
def pairwise_logsumexp(x: Tensor, y: Tensor, tau: Tensor, offset: int, columns: bool) -> Three:
    """``(row logsumexp (M,), column logsumexp (N,), matches (M,))`` of the logits ``x @ y.T / tau``.

    Args:
        x, y: ``(M, D)`` and ``(N, D)`` of one type. Half precision is computed and returned in float32.
        tau: 0-dim tensor; a temperature that is not positive gives NaN.
        offset: row ``i`` matches column ``i + offset``; one that matches none has NaN.
        columns: whether the second result is wanted; it is empty if not.
    """
    if _in_tiles(x):
        return run_kernel(_by_kernels, _plain, x, y, tau, offset, columns)
    return _plain(x, y, tau, offset, columns)


def _by_kernels(x: Tensor, y: Tensor, tau: Tensor, offset: int, columns: bool) -> Three:
    from multicontrast.losses.triton import pairwise_triton

    tf32 = tf32_allowed()
    rows, cols, match = pairwise_triton.pairwise_forward(x, y, tau, offset=offset, columns=columns, tf32=tf32)
    return rows, rows.new_empty(0) if cols is None else cols, match


@pairwise_logsumexp.register_fake
def _fake(x: Tensor, y: Tensor, tau: Tensor, offset: int, columns: bool) -> Three:
    like = x.new_empty(0, dtype=compute_dtype(x))
    return like.new_empty(x.shape[0]), like.new_empty(y.shape[0] if columns else 0), like.new_empty(x.shape[0])


@torch.library.custom_op(
    "multicontrast::pairwise_logsumexp_backward",
    mutates_args=(),
    schema="(Tensor x, Tensor y, Tensor tau, Tensor row_lse, Tensor column_lse, Tensor row_grad, Tensor column_grad,"
    " Tensor match_grad, int offset, bool columns, bool tf32) -> (Tensor, Tensor, Tensor)",
)
def pairwise_logsumexp_backward(
    x: Tensor,
    y: Tensor,
    tau: Tensor,
    row_lse: Tensor,
    column_lse: Tensor,
    row_grad: Tensor,
    column_grad: Tensor,
    match_grad: Tensor,
    offset: int,
    columns: bool,
    tf32: bool,
) -> Three:
    """Gradients by ``x``, ``y`` and ``tau``, in their types."""
    arguments = (x, y, tau, row_lse, column_lse, row_grad, column_grad, match_grad, offset, columns)
    if _in_tiles(x):
        return run_kernel(partial(_backward_by_kernels, tf32=tf32), _plain_backward, *arguments)
    return _plain_backward(*arguments)


def _backward_by_kernels(
    x: Tensor, y: Tensor, tau: Tensor, row_lse: Tensor, column_lse: Tensor,
    row_grad: Tensor, column_grad: Tensor, match_grad: Tensor, offset: int, columns: bool, tf32: bool,
) -> Three:  # fmt: skip
    from multicontrast.losses.triton import pairwise_triton

    dx, dy, dtau = pairwise_triton.pairwise_backward(
        x, y, tau,
        row_lse, column_lse if columns else None,
        row_grad, column_grad if columns else None, match_grad, offset=offset, tf32=tf32,
    )  # fmt: skip
    return dx.to(x.dtype), dy.to(y.dtype), dtau.to(tau.dtype)


def _plain_backward(
    x: Tensor, y: Tensor, tau: Tensor, row_lse: Tensor, column_lse: Tensor,
    row_grad: Tensor, column_grad: Tensor, match_grad: Tensor, offset: int, columns: bool,
) -> Three:  # fmt: skip
    dtype = compute_dtype(x)
    logits = x.to(dtype) @ y.to(dtype).mT / tau.to(dtype)
    weight = row_grad[:, None] * torch.exp(logits - row_lse[:, None])
    if columns:
        weight += column_grad * torch.exp(logits - column_lse)
    matched = _matched(x, y, offset)
    weight.diagonal(offset).add_(match_grad[matched])
    dx, dy = weight @ y.to(dtype) / tau, weight.mT @ x.to(dtype) / tau
    return dx.to(x.dtype), dy.to(y.dtype), -((weight * logits).sum() / tau).to(tau.dtype)


@pairwise_logsumexp_backward.register_fake
def _backward_fake(
    x: Tensor,
    y: Tensor,
    tau: Tensor,
    row_lse: Tensor,
    column_lse: Tensor,
    row_grad: Tensor,
    column_grad: Tensor,
    match_grad: Tensor,
    offset: int,
    columns: bool,
    tf32: bool,
) -> Three:
    return x.new_empty(x.shape), y.new_empty(y.shape), tau.new_empty(())


def _in_tiles(x: Tensor) -> bool:
    return use_triton(x) and x.dtype != torch.float64


def _matched(x: Tensor, y: Tensor, offset: int) -> slice:
    """The rows that match a column."""
    return slice(max(-offset, 0), max(min(x.shape[0], y.shape[0] - offset), max(-offset, 0)))


def _plain(x: Tensor, y: Tensor, tau: Tensor, offset: int, columns: bool) -> Three:
    dtype = compute_dtype(x)
    tau = tau.to(dtype)
    logits = x.to(dtype) @ y.to(dtype).mT / torch.where(tau > 0, tau, torch.nan)
    match = logits.new_full((x.shape[0],), torch.nan)
    matched = _matched(x, y, offset)
    match = torch.cat([match[: matched.start], logits.diagonal(offset), match[matched.stop :]])
    return logits.logsumexp(1), logits.logsumexp(0) if columns else logits.new_empty(0), match


def _save(ctx: Any, inputs: tuple[Any, ...], output: Three) -> None:
    x, y, tau, ctx.offset, ctx.columns = inputs
    ctx.tf32 = tf32_allowed()  # the backward pass multiplies as this one did
    ctx.save_for_backward(x, y, tau, output[0], output[1])


def _differentiate(ctx: Any, row_grad: Tensor, column_grad: Tensor, match_grad: Tensor) -> tuple[Tensor | None, ...]:
    x, y, tau, row_lse, column_lse = ctx.saved_tensors
    grads = pairwise_logsumexp_backward(
        x, y, tau, row_lse, column_lse, row_grad, column_grad, match_grad, ctx.offset, ctx.columns, ctx.tf32
    )
    return *grads, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Three) -> None:
    x, y, tau, _, _, row_grad, column_grad, match_grad, ctx.offset, ctx.columns, _ = inputs
    ctx.save_for_backward(x, y, tau, row_grad, column_grad, match_grad)


def _differentiate_backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    x, y, tau, *grads = ctx.saved_tensors

    def plain(x: Tensor, y: Tensor, tau: Tensor) -> Three:
        return _plain(x, y, tau, ctx.offset, ctx.columns)

    (dx, dy, dtau), dgrads = second_derivative(plain, (x, y, tau), tuple(grads), cotangents)
    return dx, dy, dtau, None, None, *dgrads, None, None, None


pairwise_logsumexp.register_autograd(_differentiate, setup_context=_save)
pairwise_logsumexp_backward.register_autograd(_differentiate_backward, setup_context=_save_backward)
