"""Eigenvalues of the 3x3 Gram matrix of three unit vectors, from its three cosines."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from multicontrast._checks import check_floating, check_same_device, compute_dtype, describe, three_beats
from multicontrast.linalg._gram3_torch import eigmax_excess, eigmax_hessian_product, eigmax_with_gradient


def gram3_eigmax(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    r"""Largest eigenvalue of ``[[1, a, b], [a, 1, c], [b, c, 1]]``.

    Args:
        a, b, c: cosines between three unit vectors, of any broadcastable shapes. Values slightly beyond 1, as rounding
            leaves them, are fine. Half precision is computed and returned in float32.
    Returns: the broadcast shape; in [1, 3] for cosines of unit vectors.
    Accuracy: 1.0 eps for the value and 3 eps for the gradient at every gap between eigenvalues (observed maxima).
        Where the largest eigenvalue is multiple, the gradient is the subgradient of least norm. Differentiable
        twice, in reverse and forward mode; at an exactly multiple eigenvalue the second derivative is 0 by convention.
        NaN or infinity in any of the three gives NaN.
    Raises: TypeError unless all three are real floating-point tensors; ValueError for shapes that do not broadcast or
        tensors on different devices.
    Reference: the equations are in docs/math/h-cubic.
    """
    return 1 + gram3_excess(*_prepare("gram3_eigmax", a, b, c))


def gram3_excess(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``lambda_max - 1``, differentiable: accurate relative to itself. Equal shapes, float32 or float64; no checks."""
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad or c.requires_grad):
        return _Gram3Eigmax.apply(a, b, c)[0]
    return eigmax_excess(a, b, c)


def _prepare(operation: str, *cosines: Tensor) -> tuple[Tensor, ...]:
    names = ("a", "b", "c")
    for name, cosine in zip(names, cosines):
        check_floating(operation, name, cosine)
    check_same_device(operation, names, cosines)
    try:
        shape = torch.broadcast_shapes(*(cosine.shape for cosine in cosines))
    except RuntimeError:
        came = ", ".join(f"`{name}` {describe(cosine)}" for name, cosine in zip(names, cosines))
        remedy = "Give all three one shape, or sizes of 1 where one should repeat."
        raise ValueError(three_beats(f"`{operation}` needs shapes that broadcast", came, remedy)) from None
    dtype = compute_dtype(*cosines)
    return tuple(cosine.to(dtype).expand(shape) for cosine in cosines)


class _Gram3Eigmax(torch.autograd.Function):
    """Value and gradient together. The gradient is an output, so that it can be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return eigmax_with_gradient(a, b, c)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs, *output[1:])
        ctx.save_for_forward(*inputs, *output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dx: Tensor | None, *dg: Tensor | None) -> tuple[Tensor | None, ...]:
        *cosines, ga, gb, gc = ctx.saved_tensors
        grads: list[Tensor] | None = None
        if dx is not None:
            grads = [dx * ga, dx * gb, dx * gc]
        if any(d is not None for d in dg):
            direction = [torch.zeros_like(ga) if d is None else d for d in dg]
            second = eigmax_hessian_product(*cosines, *direction)  # the Hessian is symmetric
            grads = list(second) if grads is None else [g + s for g, s in zip(grads, second)]
        return (None, None, None) if grads is None else tuple(grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        *cosines, ga, gb, gc = ctx.saved_tensors
        va, vb, vc = (torch.zeros_like(ga) if tangent is None else tangent for tangent in tangents)
        return ga * va + gb * vb + gc * vc, *eigmax_hessian_product(*cosines, va, vb, vc)
