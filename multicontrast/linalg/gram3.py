"""Eigenvalues of the 3x3 Gram matrix of three unit vectors, from its three cosines."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from multicontrast._backend import use_triton
from multicontrast._checks import check_floating, check_same_device, compute_dtype, describe, three_beats
from multicontrast.linalg import _gram3_in_place, _gram3_operator, _gram3_torch, _symmetric_operator
from multicontrast.linalg._glue import batch_first, blocks, is_differentiated, is_eager_cpu, refuse_nested_forward_mode
from multicontrast.linalg._gram3_in_place import Triple
from multicontrast.linalg._spectral import spectral_backward, spectral_forward
from multicontrast.linalg.symmetric3 import evaluate_pairs

_BLOCK = 1 << 17  # elements at a time on a CPU: enough to hide the cost of a call, few enough to stay in cache


def gram3_eigmax(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    r"""Largest eigenvalue of ``[[1, a, b], [a, 1, c], [b, c, 1]]``.

    Args:
        a, b, c: cosines between three unit vectors, of any broadcastable shapes. Values slightly beyond 1, as rounding
            leaves them, are fine. Half precision is computed and returned in float32.
    Returns: the broadcast shape; in [1, 3] for cosines of unit vectors.
    Accuracy: 1 eps for the value and 3 eps for the gradient, at every gap between eigenvalues (observed maxima); on a
        GPU 5.5 eps for the float32 gradient, and 3 again with the environment variable
        ``MULTICONTRAST_ROUNDING=nearest``.
        Where the largest eigenvalue is multiple, the gradient is the subgradient of least norm. Differentiable
        twice, in reverse and forward mode; at an exactly multiple eigenvalue the second derivative is 0 by convention.
        NaN or infinity in any of the three gives NaN.
    Raises: TypeError unless all three are real floating-point tensors; ValueError for shapes that do not broadcast or
        tensors on different devices.
    Reference: the equations are in docs/math/h-cubic.

    >>> import torch
    >>> gram3_eigmax(torch.tensor(1.0), torch.tensor(1.0), torch.tensor(1.0))
    tensor(3.)
    """
    return 1 + gram3_excess(*_prepare("gram3_eigmax", a, b, c))


def gram3_eigvals(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    r"""All eigenvalues of ``[[1, a, b], [a, 1, c], [b, c, 1]]``, ascending.

    Args:
        a, b, c: cosines of any broadcastable shapes, as for :func:`gram3_eigmax`.
    Returns: the broadcast shape and a last axis of 3.
    Accuracy: 3 eps of the largest eigenvalue for all three (observed). The gradient is made from one orthonormal basis
        of eigenvectors: right at multiple eigenvalues for every symmetric function of the three, as
        :func:`eigvalsh3`'s. For the largest eigenvalue alone :func:`gram3_eigmax` has the better gradient.
        Differentiable twice; NaN or infinity in any of the three gives NaN.
    Raises: as :func:`gram3_eigmax`.
    Reference: docs/math/h-cubic, "All three".

    >>> import torch
    >>> gram3_eigvals(torch.tensor(0.5), torch.tensor(0.5), torch.tensor(0.5))
    tensor([0.5000, 0.5000, 2.0000])
    """
    a, b, c = _prepare("gram3_eigvals", a, b, c)
    if torch.compiler.is_compiling():
        return 1 + _symmetric_operator.symmetric3_eigenvalues(_assemble(a, b, c))
    excesses: Tensor = _Spectrum.apply(a, b, c)[0] if is_differentiated(a, b, c) else _SpectrumAlone.apply(a, b, c)
    return 1 + excesses


def gram3_excess(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``lambda_max - 1``, differentiable: accurate relative to itself. Equal shapes, float32 or float64; no checks."""
    if torch.compiler.is_compiling():
        # An operator that the compiler takes as it is: inlining the formula costs it minutes.
        return _gram3_operator.gram3_excess(a, b, c)
    x: Tensor = _Excess.apply(a, b, c)[0] if is_differentiated(a, b, c) else _ExcessAlone.apply(a, b, c)
    return x


def _prepare(operation: str, *cosines: Tensor) -> Triple:
    names = ("a", "b", "c")
    for name, cosine in zip(names, cosines):
        check_floating(operation, name, cosine)
    check_same_device(operation, names, cosines)
    dtype = compute_dtype(*cosines)
    try:
        a, b, c = torch.broadcast_tensors(*(cosine.to(dtype) for cosine in cosines))
    except RuntimeError:
        came = ", ".join(f"`{name}` {describe(cosine)}" for name, cosine in zip(names, cosines))
        remedy = "Give all three one shape, or sizes of 1 where one should repeat."
        raise ValueError(three_beats(f"`{operation}` needs shapes that broadcast", came, remedy)) from None
    return a, b, c


def _assemble(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The symmetric ``(..., 3, 3)`` with zeros on the diagonal."""
    zero = torch.zeros_like(a)
    return torch.stack([zero, a, b, a, zero, c, b, c, zero], -1).view(*a.shape, 3, 3)


# Back ends -----------------------------------------------------------------------------------------------------------


def evaluate_excess(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``lambda_max - 1`` by the best back end for these tensors; no autograd."""
    if use_triton(a):
        return _gram3_operator.eigmax_excess(a, b, c)
    if not is_eager_cpu(a):
        return _gram3_torch.eigmax_excess(a, b, c)
    x = torch.empty(a.shape, dtype=a.dtype, device=a.device)
    flat, cosines = x.view(-1), _flat(a, b, c)
    scratch = _scratch(flat)
    for block in blocks(len(flat), _BLOCK, x.device):
        rows = scratch[:, : block.stop - block.start].unbind(0)
        _gram3_in_place.eigmax_excess_into(flat[block], _take(cosines, block), rows)
    return x


def evaluate_with_gradient(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(x, dx/da, dx/db, dx/dc)``, ``x = lambda_max - 1``, by the best back end for these tensors; no autograd."""
    if use_triton(a):
        return _gram3_operator.eigmax_with_gradient(a, b, c)
    if not is_eager_cpu(a):
        return _gram3_torch.eigmax_with_gradient(a, b, c)
    x, ga, gb, gc = (torch.empty(a.shape, dtype=a.dtype, device=a.device) for _ in range(4))
    flat, cosines, gradient = x.view(-1), _flat(a, b, c), _flat(ga, gb, gc)
    scratch = _scratch(flat)
    for block in blocks(len(flat), _BLOCK, x.device):
        rows = scratch[:, : block.stop - block.start].unbind(0)
        _gram3_in_place.eigmax_with_gradient_into(flat[block], _take(gradient, block), _take(cosines, block), rows)
    return x, ga, gb, gc


def _scratch(flat: Tensor) -> Tensor:
    return flat.new_empty(_gram3_in_place.SCRATCH_ROWS - 1, min(_BLOCK, len(flat)))


def _flat(a: Tensor, b: Tensor, c: Tensor) -> Triple:
    return a.reshape(-1), b.reshape(-1), c.reshape(-1)


def _take(triple: Triple, block: slice) -> Triple:
    return triple[0][block], triple[1][block], triple[2][block]


# Autograd ------------------------------------------------------------------------------------------------------------


class _Excess(torch.autograd.Function):
    """Value and gradient together. The gradient is an output, so that it can be differentiated again."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return evaluate_with_gradient(a, b, c)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs, *output[1:])
        ctx.save_for_forward(*inputs, *output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dx: Tensor | None, *dg: Tensor | None) -> tuple[Tensor | None, ...]:
        a, b, c, ga, gb, gc = ctx.saved_tensors
        first = (None, None, None) if dx is None else (dx * ga, dx * gb, dx * gc)
        if all(d is None for d in dg):
            return first
        va, vb, vc = (torch.zeros_like(ga) if d is None else d for d in dg)
        second = _gram3_torch.eigmax_hessian_product(a, b, c, va, vb, vc)  # the Hessian is symmetric
        return tuple(s if f is None else f + s for f, s in zip(first, second))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        refuse_nested_forward_mode("gram3_eigmax")
        a, b, c, ga, gb, gc = ctx.saved_tensors
        va, vb, vc = (torch.zeros_like(ga) if tangent is None else tangent for tangent in tangents)
        return ga * va + gb * vb + gc * vc, *_gram3_torch.eigmax_hessian_product(a, b, c, va, vb, vc)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *cosines: Tensor) -> tuple[Any, Any]:
        return _Excess.apply(*batch_first(info.batch_size, in_dims, cosines)), (0, 0, 0, 0)


class _ExcessAlone(torch.autograd.Function):
    """The value for those who ask for no derivative; a function only so that ``vmap`` can see through it."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return evaluate_excess(a, b, c)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *cosines: Tensor) -> tuple[Any, Any]:
        return _ExcessAlone.apply(*batch_first(info.batch_size, in_dims, cosines)), 0


class _Spectrum(torch.autograd.Function):
    """All three eigenvalues less 1, and the eigenvectors that their derivatives are made of."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return _gram3_torch.eigenvalues_excess(a, b, c), evaluate_pairs(_assemble(a, b, c))[1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*output)
        ctx.save_for_forward(*output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, d_values: Tensor | None, d_vectors: Tensor | None) -> tuple[Tensor | None, ...]:
        values, vectors = ctx.saved_tensors
        gradient = spectral_backward(values, vectors, d_values, d_vectors)
        if gradient is None:
            return None, None, None
        return 2 * gradient[..., 1, 0], 2 * gradient[..., 2, 0], 2 * gradient[..., 2, 1]

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, Tensor]:
        refuse_nested_forward_mode("gram3_eigvals")
        values, vectors = ctx.saved_tensors
        zero = torch.zeros_like(values[..., 0])
        va, vb, vc = (zero if tangent is None else tangent for tangent in tangents)
        return spectral_forward(values, vectors, _assemble(va, vb, vc))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *cosines: Tensor) -> tuple[Any, Any]:
        return _Spectrum.apply(*batch_first(info.batch_size, in_dims, cosines)), (0, 0)


class _SpectrumAlone(_ExcessAlone):
    @staticmethod
    def forward(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return _gram3_torch.eigenvalues_excess(a, b, c)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *cosines: Tensor) -> tuple[Any, Any]:
        return _SpectrumAlone.apply(*batch_first(info.batch_size, in_dims, cosines)), 0
