"""Eq. (3) over sampled triplets as an operator: ``multicontrast::sampled_loss`` and its backward.

Plain PyTorch on a CPU, Triton on a GPU or under ``MULTICONTRAST_BACKEND=triton``, both with the same numbers. One node
for ``torch.compile`` and ``torch.export``. Differentiable twice: the second derivative is that of the plain form, which
stores every triplet's cosines.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from multicontrast._backend import run_kernel, use_triton
from multicontrast.linalg.gram3 import evaluate_excess, evaluate_with_gradient, gram3_excess
from multicontrast.losses.triton.second_derivative import second_derivative

Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op(
    "multicontrast::sampled_loss",
    mutates_args=(),
    schema='(Tensor a, Tensor b, Tensor c, Tensor index, Tensor tau, str scheme="index", int first=0) -> Tensor',
)
def sampled_loss(
    a: Tensor, b: Tensor, c: Tensor, index: Tensor, tau: Tensor, scheme: str = "index", first: int = 0
) -> Tensor:
    """The loss ``(R,)`` of each row of triplets in the index; the first triplet is the positive.

    Args:
        a, b, c: Gram blocks ``(B0, B1)``, ``(B0, B2)``, ``(B1, B2)``, float32 or float64.
        index: ``(R, 1 + K, 3)``, or ``(1 + K, 2)`` for the other schemes.
        tau: 0-dim tensor of their type; a temperature that is not positive gives NaN.
        scheme: ``"index"``, ``"list"`` or ``"shifts"``: see `sampled_triton.SCHEMES`.
        first: the number of the first row of ``a`` and ``b``, if they hold only the rows of some anchors.
    """
    arguments = (a, b, c, index, tau, scheme, first)
    return run_kernel(_by_kernels, _plain, *arguments) if use_triton(a) else _plain(*arguments)


def _plain(a: Tensor, b: Tensor, c: Tensor, index: Tensor, tau: Tensor, scheme: str, first: int) -> Tensor:
    return _cross_entropy(evaluate_excess(*_cosines(a, b, c, index, scheme, first)), tau)


def _by_kernels(a: Tensor, b: Tensor, c: Tensor, index: Tensor, tau: Tensor, scheme: str, first: int) -> Tensor:
    from multicontrast.losses.triton import sampled_triton

    return sampled_triton.sampled_forward(a, b, c, index, tau, scheme, first)[1]


@sampled_loss.register_fake
def _loss_fake(
    a: Tensor, b: Tensor, c: Tensor, index: Tensor, tau: Tensor, scheme: str = "index", first: int = 0
) -> Tensor:
    return a.new_empty(index.shape[0] if scheme == "index" else a.shape[0])


@torch.library.custom_op(
    "multicontrast::sampled_loss_backward",
    mutates_args=(),
    schema="(Tensor a, Tensor b, Tensor c, Tensor index, Tensor tau, Tensor loss, Tensor grad, bool deterministic,"
    " str scheme, int first) -> (Tensor, Tensor, Tensor, Tensor)",
)
def sampled_loss_backward(
    a: Tensor, b: Tensor, c: Tensor, index: Tensor, tau: Tensor, loss: Tensor, grad: Tensor,
    deterministic: bool, scheme: str, first: int,
) -> Gradients:  # fmt: skip
    """Gradients of ``(grad * loss).sum()`` by ``a, b, c, tau``; ``loss`` as :func:`sampled_loss` returned it."""
    arguments = (a, b, c, index, tau, loss, grad, deterministic, scheme, first)
    if use_triton(a):
        return run_kernel(_backward_by_kernels, _plain_backward, *arguments)
    return _plain_backward(*arguments)


def _plain_backward(
    a: Tensor, b: Tensor, c: Tensor, index: Tensor, tau: Tensor, loss: Tensor, grad: Tensor,
    deterministic: bool, scheme: str, first: int,
) -> Gradients:  # fmt: skip
    i, j, k = _places(a, c, index, scheme, first)
    x, ga, gb, gc = evaluate_with_gradient(a[i, j], b[i, k], c[j, k])
    z = (x - x[:, :1]) / tau
    p = torch.exp(z - loss[:, None])
    weight = p.clone()
    weight[:, 0] -= 1
    weight *= grad[:, None] / tau
    da = torch.zeros_like(a).index_put_((i, j), weight * ga, accumulate=True)
    db = torch.zeros_like(b).index_put_((i, k), weight * gb, accumulate=True)
    dc = torch.zeros_like(c).index_put_((j, k), weight * gc, accumulate=True)
    return da, db, dc, -(grad[:, None] * p * z).sum() / tau


def _backward_by_kernels(
    a: Tensor, b: Tensor, c: Tensor, index: Tensor, tau: Tensor, loss: Tensor, grad: Tensor,
    deterministic: bool, scheme: str, first: int,
) -> Gradients:  # fmt: skip
    from multicontrast.losses.triton import sampled_triton

    return sampled_triton.sampled_backward(a, b, c, index, tau, loss, grad, deterministic, scheme, first)


@sampled_loss_backward.register_fake
def _backward_fake(
    a: Tensor, b: Tensor, c: Tensor, index: Tensor, tau: Tensor, loss: Tensor, grad: Tensor,
    deterministic: bool, scheme: str, first: int,
) -> Gradients:  # fmt: skip
    return a.new_empty(a.shape), b.new_empty(b.shape), c.new_empty(c.shape), tau.new_empty(())


def _places(a: Tensor, c: Tensor, index: Tensor, scheme: str, first: int) -> tuple[Tensor, Tensor, Tensor]:
    """The row in ``a`` and ``b``, the column in ``a``, and that in ``b``, of each triplet: ``(R, 1 + K)``."""
    if scheme == "index":
        i, j, k = index.unbind(-1)
        return i - first, j, k
    rows = torch.arange(len(a), device=a.device)[:, None]
    own = rows + first
    if scheme == "shifts":
        j, k = ((own + shift) % len(c) for shift in index.unbind(-1))
    else:
        is_positive = torch.arange(len(index), device=a.device) == 0
        j, k = (torch.where(is_positive, own, member) for member in index.unbind(-1))
    return rows.expand_as(j), j, k


def _cosines(a: Tensor, b: Tensor, c: Tensor, index: Tensor, scheme: str, first: int) -> tuple[Tensor, Tensor, Tensor]:
    i, j, k = _places(a, c, index, scheme, first)
    return a[i, j], b[i, k], c[j, k]


def _cross_entropy(x: Tensor, tau: Tensor) -> Tensor:
    z = (x - x[:, :1]) / torch.where(tau > 0, tau, torch.nan)
    return torch.logsumexp(z, 1)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scheme, ctx.first = inputs
    ctx.save_for_backward(*tensors, output)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    a, b, c, index, tau, loss = ctx.saved_tensors
    deterministic = torch.are_deterministic_algorithms_enabled()
    da, db, dc, dtau = sampled_loss_backward(a, b, c, index, tau, loss, grad, deterministic, ctx.scheme, ctx.first)
    return da, db, dc, None, dtau, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Gradients) -> None:
    a, b, c, index, tau, _, grad, _, ctx.scheme, ctx.first = inputs
    ctx.save_for_backward(a, b, c, index, tau, grad)


def _differentiate_backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    a, b, c, index, tau, grad = ctx.saved_tensors

    def plain(a: Tensor, b: Tensor, c: Tensor, tau: Tensor) -> Tensor:
        return _cross_entropy(gram3_excess(*_cosines(a, b, c, index, ctx.scheme, ctx.first)), tau)

    (da, db, dc, dtau), dgrad = second_derivative(plain, (a, b, c, tau), (grad,), cotangents)
    return da, db, dc, None, dtau, None, dgrad[0], None, None, None


sampled_loss.register_autograd(_differentiate, setup_context=_save)
sampled_loss_backward.register_autograd(_differentiate_backward, setup_context=_save_backward)
