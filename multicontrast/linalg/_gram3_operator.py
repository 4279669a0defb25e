"""The 3x3 Gram eigenvalue as operators of PyTorch: one name for plain PyTorch and the Triton kernels.

``torch.compile`` and ``torch.export`` take an operator as it is, whatever runs inside: plain PyTorch on a CPU, Triton
on a GPU or wherever ``MULTICONTRAST_BACKEND=triton`` asks for it. Each is differentiable: the backward of
``multicontrast::gram3_excess`` is ``multicontrast::gram3_with_gradient``, whose own backward is the Hessian.

:func:`eigmax_excess` and :func:`eigmax_with_gradient` are what the rest of the library calls: the plain functions, with
no detour, unless Triton is in charge. Inputs are of one shape, type (float32 or float64) and device.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from multicontrast._backend import rounds_to_nearest, run_kernel, use_triton
from multicontrast.linalg import _gram3_torch as plain


def eigmax_excess(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``lambda_max - 1``; not differentiable unless Triton is in charge."""
    return gram3_excess(a, b, c) if use_triton(a) else plain.eigmax_excess(a, b, c)


def eigmax_with_gradient(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(x, dx/da, dx/db, dx/dc)`` with ``x = lambda_max - 1``; not differentiable unless Triton is in charge."""
    return gram3_with_gradient(a, b, c) if use_triton(a) else plain.eigmax_with_gradient(a, b, c)


@torch.library.custom_op(
    "multicontrast::gram3_excess",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor a, Tensor b, Tensor c) -> Tensor",
)
def gram3_excess(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return _excess_cuda(a, b, c) if use_triton(a) else _plain_excess(a, b, c)


def _plain_excess(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return plain.eigmax_excess(a, b, c).contiguous()


@gram3_excess.register_kernel("cuda")
def _excess_cuda(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    from multicontrast.linalg import _gram3_triton

    return run_kernel(_gram3_triton.eigmax_excess, _plain_excess, a, b, c)


@gram3_excess.register_fake
def _excess_fake(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return a.new_empty(a.shape)


@torch.library.custom_op(
    "multicontrast::gram3_with_gradient",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor a, Tensor b, Tensor c) -> (Tensor, Tensor, Tensor, Tensor)",
)
def gram3_with_gradient(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _with_gradient_cuda(a, b, c) if use_triton(a) else _plain_with_gradient(a, b, c)


def _plain_with_gradient(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, ga, gb, gc = (result.contiguous() for result in plain.eigmax_with_gradient(a, b, c))
    return x, ga, gb, gc


@gram3_with_gradient.register_kernel("cuda")
def _with_gradient_cuda(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from multicontrast.linalg import _gram3_triton

    kernel = partial(_gram3_triton.eigmax_with_gradient, correctly_rounded=rounds_to_nearest())
    return run_kernel(kernel, _plain_with_gradient, a, b, c)


@gram3_with_gradient.register_fake
def _with_gradient_fake(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return a.new_empty(a.shape), a.new_empty(a.shape), a.new_empty(a.shape), a.new_empty(a.shape)


def _save_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _excess_backward(ctx: Any, dx: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    _, ga, gb, gc = gram3_with_gradient(*ctx.saved_tensors)
    return dx * ga, dx * gb, dx * gc


def _save_gradient(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output[1:])


def _with_gradient_backward(ctx: Any, dx: Tensor, va: Tensor, vb: Tensor, vc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a, b, c, ga, gb, gc = ctx.saved_tensors
    ha, hb, hc = plain.eigmax_hessian_product(a, b, c, va, vb, vc)  # the Hessian is symmetric
    return dx * ga + ha, dx * gb + hb, dx * gc + hc


gram3_excess.register_autograd(_excess_backward, setup_context=_save_inputs)
gram3_with_gradient.register_autograd(_with_gradient_backward, setup_context=_save_gradient)


def _batched(operator: Any) -> Any:
    """The ``vmap`` rule of an elementwise operator: the batch axis first in every input, then as it is."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *cosines: Tensor) -> tuple[Any, Any]:
        size = info.batch_size
        moved = [c.expand(size, *c.shape) if dim is None else c.movedim(dim, 0) for c, dim in zip(cosines, in_dims)]
        result = operator(*moved)
        return result, 0 if isinstance(result, Tensor) else tuple(0 for _ in result)

    return rule


gram3_excess.register_vmap(_batched(gram3_excess))
gram3_with_gradient.register_vmap(_batched(gram3_with_gradient))
