"""Eq. (3) over all triplets of an anchor as an operator: ``multicontrast::exact_logsumexp`` and its backward.

Plain PyTorch on a CPU and for float64, an anchor at a time; Triton on a GPU or wherever
``MULTICONTRAST_BACKEND=triton`` asks for it. Memory is O(B^2) in both. A compiler for a CPU sees the formulas of all
anchors instead and fuses them; it holds 3/2 B^3 numbers. Differentiable twice: the second derivative is that of the
plain form, which then holds B^3 numbers.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensorMode

from multicontrast._backend import run_kernel, use_triton
from multicontrast.linalg._gram3_torch import (
    eigmax_excess_at_one_scale,
    eigmax_with_gradient_at_one_scale,
    to_one_scale,
)
from multicontrast.linalg.gram3 import evaluate_excess, evaluate_with_gradient, gram3_excess
from multicontrast.losses.triton.second_derivative import second_derivative

Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op(
    "multicontrast::exact_logsumexp",
    mutates_args=(),
    schema='(Tensor a, Tensor b, Tensor c, Tensor tau, str version="") -> (Tensor, Tensor)',
)
def exact_logsumexp(a: Tensor, b: Tensor, c: Tensor, tau: Tensor, version: str = "") -> tuple[Tensor, Tensor]:
    """``(lse, mean)``, ``(B0,)`` both, with ``x = lambda_max - 1`` of the triplets ``(i, j, k)``: the logsumexp of
    ``x / tau`` over all j and k, and the mean of ``x`` under that softmax, which has no derivative.

    Args:
        a, b, c: Gram blocks ``(B0, B1)``, ``(B0, B2)``, ``(B1, B2)`` of the anchor's modality with the other two, and
            of those two; float32 or float64.
        tau: 0-dim tensor of their type; a temperature that is not positive gives NaN.
        version: of the package. PyTorch caches compiled code on disk under the operator's name and arguments, not under
            the formulas that a compiler saw instead of the operator.
    """
    return run_kernel(_by_kernels, _one_by_one, a, b, c, tau) if _streamed(a) else _one_by_one(a, b, c, tau)


def _by_kernels(a: Tensor, b: Tensor, c: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    from multicontrast.losses.triton import exact_triton

    return exact_triton.exact_forward(a, b, c, tau)


def _one_by_one(a: Tensor, b: Tensor, c: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    lse, mean = a.new_empty(len(a)), a.new_empty(len(a))
    tau = torch.where(tau > 0, tau, torch.nan)
    for i, (row, column) in enumerate(zip(a, b)):
        x = evaluate_excess(*_all_of(row, column, c)).flatten()
        z = x / tau
        lse[i] = torch.logsumexp(z, 0)
        mean[i] = torch.exp(z - lse[i]) @ x
    return lse, mean


def _at_once(a: Tensor, b: Tensor, c: Tensor, tau: Tensor, version: str = "") -> tuple[Tensor, Tensor]:
    scaled, inverse = _to_one_scale(a, b, c)
    x = eigmax_excess_at_one_scale(*_all_triplets(*scaled))
    z = x * (inverse / torch.where(tau > 0, tau, torch.nan))
    lse = torch.logsumexp(z.flatten(1), 1)
    return lse, (torch.exp(z - lse[:, None, None]) * x).sum((1, 2)) * inverse  # the gradient does not use the mean


@exact_logsumexp.register_fake
def _fake(a: Tensor, b: Tensor, c: Tensor, tau: Tensor, version: str = "") -> tuple[Tensor, Tensor]:
    return a.new_empty(a.shape[0]), a.new_empty(a.shape[0])


@torch.library.custom_op(
    "multicontrast::exact_logsumexp_backward",
    mutates_args=(),
    schema="(Tensor a, Tensor b, Tensor c, Tensor tau, Tensor lse, Tensor mean, Tensor grad)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def exact_logsumexp_backward(
    a: Tensor, b: Tensor, c: Tensor, tau: Tensor, lse: Tensor, mean: Tensor, grad: Tensor
) -> Gradients:
    """Gradients of ``(grad * lse).sum()`` by ``a, b, c, tau``; ``lse`` and ``mean`` as the forward returned them."""
    arguments = (a, b, c, tau, lse, mean, grad)
    if _streamed(a):
        return run_kernel(_backward_by_kernels, _backward_one_by_one, *arguments)
    return _backward_one_by_one(*arguments)


def _backward_by_kernels(
    a: Tensor, b: Tensor, c: Tensor, tau: Tensor, lse: Tensor, mean: Tensor, grad: Tensor
) -> Gradients:
    from multicontrast.losses.triton import exact_triton

    return exact_triton.exact_backward(a, b, c, tau, lse, mean, grad)


def _backward_one_by_one(
    a: Tensor, b: Tensor, c: Tensor, tau: Tensor, lse: Tensor, mean: Tensor, grad: Tensor
) -> Gradients:
    da, db, dc = a.new_empty(a.shape), b.new_empty(b.shape), c.new_zeros(c.shape)
    for i, (row, column) in enumerate(zip(a, b)):
        x, ga, gb, gc = evaluate_with_gradient(*_all_of(row, column, c))
        weight = torch.exp(x / tau - lse[i]) * (grad[i] / tau)
        da[i], db[i] = (weight * ga).sum(1), (weight * gb).sum(0)
        dc += weight * gc
    return da, db, dc, -(grad * mean).sum() / tau.square()


def _backward_at_once(
    a: Tensor, b: Tensor, c: Tensor, tau: Tensor, lse: Tensor, mean: Tensor, grad: Tensor
) -> Gradients:
    (rows, columns, inner), inverse = _to_one_scale(a, b, c)
    by_a, by_b, dc = [], [], c.new_zeros(1, c.numel())
    # Half of the anchors at a time: the allocator would return the memory of all to the system after each step, and
    # getting it back page by page takes as long as the formulas.
    for row, column, log, scale in zip(*(x.tensor_split(2) for x in (rows, columns, lse, grad / tau))):
        x, ga, gb, gc = eigmax_with_gradient_at_one_scale(*_all_triplets(row, column, inner))
        weight = torch.exp(x * (inverse / tau) - log[:, None, None])
        by_a.append(scale[:, None] * _in_memory(weight * ga).sum(2))
        by_b.append(scale[:, None] * _in_memory(weight * gb).sum(1))
        dc = torch.addmm(dc, scale[None], (weight * gc).flatten(1))
        inner = _in_memory(inner + 0 * dc.nan_to_num(0, 0, 0).view_as(c))  # makes the second half wait for the first
    da, db, dc = torch.cat(by_a), torch.cat(by_b), dc.view_as(c)
    # x is the sum of cosine times derivative (Euler), so the mean is not needed.
    return da, db, dc, -((a * da).sum() + (b * db).sum() + (c * dc).sum()) / tau


@exact_logsumexp_backward.register_fake
def _backward_fake(a: Tensor, b: Tensor, c: Tensor, tau: Tensor, lse: Tensor, mean: Tensor, grad: Tensor) -> Gradients:
    return a.new_empty(a.shape), b.new_empty(b.shape), c.new_empty(c.shape), tau.new_empty(())


def _streamed(a: Tensor) -> bool:
    return use_triton(a) and a.dtype == torch.float32


def _all_of(row: Tensor, column: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cosines of all triplets of an anchor: three tensors ``(B1, B2)``."""
    return row[:, None].expand(c.shape), column[None, :].expand(c.shape), c


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4], *output)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *exact_logsumexp_backward(*ctx.saved_tensors, grad), None


def _save_backward(ctx: Any, inputs: tuple[Tensor, ...], output: Gradients) -> None:
    a, b, c, tau, _, _, grad = inputs
    ctx.save_for_backward(a, b, c, tau, grad)


def _differentiate_backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    a, b, c, tau, grad = ctx.saved_tensors
    (da, db, dc, dtau), dgrad = second_derivative(_plain, (a, b, c, tau), (grad,), cotangents)
    return da, db, dc, dtau, None, None, dgrad[0]


def _plain(a: Tensor, b: Tensor, c: Tensor, tau: Tensor) -> Tensor:
    return torch.logsumexp((gram3_excess(*_all_triplets(a, b, c)) / tau).flatten(1), 1)


def _all_triplets(a: Tensor, b: Tensor, c: Tensor) -> list[Tensor]:
    """Their cosines, ``(B0, B1, B2)``."""
    return torch.broadcast_tensors(a[:, :, None], b[:, None, :], c[None])


def _to_one_scale(*blocks: Tensor) -> tuple[list[Tensor], Tensor]:
    scaled, inverse = to_one_scale(*blocks)
    return [_in_memory(block) for block in scaled], inverse


def _in_memory(x: Tensor) -> Tensor:
    """``x``, marked so that a compiler computes it once and not in each loop that reads it."""
    return x.as_strided(x.shape, x.stride())


def _show_to_compilers(operator: Any, formulas: Callable[..., Any]) -> None:
    """Show a compiler for a CPU the formulas instead of the operator, once it has the derivatives."""

    def decompose(mode: Any, op: Any, types: Any, inputs: Any, keywords: Any) -> Any:
        if mode.export or inputs[0].device.type != "cpu" or use_triton(inputs[0]):
            return mode.__torch_dispatch__(op, types, inputs, keywords)
        with mode:
            return formulas(*inputs)

    operator.register_torch_dispatch(FunctionalTensorMode, decompose)


_show_to_compilers(exact_logsumexp, _at_once)
_show_to_compilers(exact_logsumexp_backward, _backward_at_once)
exact_logsumexp.register_autograd(_differentiate, setup_context=_save)
exact_logsumexp_backward.register_autograd(_differentiate_backward, setup_context=_save_backward)
