"""Eigenvalues of the Gram matrix of unit vectors, from its cosines: of three, and the largest of N = 2..8.

Cosines come in the order of the pairs ``(0, 1), (0, 2), ..., (N-2, N-1)``; all work is on the matrix less its unit
diagonal, so that small cosines keep their digits.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multicontrast._backend import rounds_to_nearest
from multicontrast._checks import check_floating, check_same_device, compute_dtype, describe, three_beats
from multicontrast.linalg import _gram3_in_place, _gram3_torch
from multicontrast.linalg._gram3_in_place import Triple
from multicontrast.linalg._operation import Operation, Results
from multicontrast.linalg.symmetric import EIGENPAIRS, EIGMAX

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
    Reference: :func:`eigvalsh3` of the matrix less its unit diagonal; docs/math/symmetric-eigenproblems.

    >>> gram3_eigvals(torch.tensor(0.5), torch.tensor(0.5), torch.tensor(0.5))
    tensor([0.5000, 0.5000, 2.0000])
    """
    a, b, c = _prepare("gram3_eigvals", a, b, c)
    zero = torch.zeros_like(a)
    return 1 + EIGENPAIRS.value(torch.stack([zero, a, b, a, zero, c, b, c, zero], -1).unflatten(-1, (3, 3)))


def gram3_excess(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``lambda_max - 1``, differentiable: accurate relative to itself. Equal shapes, float32 or float64; no checks."""
    return EXCESS.value(a, b, c)


def evaluate_excess(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``lambda_max - 1`` by the best implementation for these tensors; no autograd."""
    x: Tensor = EXCESS.evaluate(True, a, b, c)
    return x


def evaluate_with_gradient(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(x, dx/da, dx/db, dx/dc)``, ``x = lambda_max - 1``, by the best implementation; no autograd."""
    x, ga, gb, gc = EXCESS.evaluate(False, a, b, c)
    return x, ga, gb, gc


def num_vectors(num_cosines: int) -> int:
    """N of the N (N - 1) / 2 cosines; ValueError if there is no such N in 2..8."""
    for n in range(2, 9):
        if n * (n - 1) // 2 == num_cosines:
            return n
    raise ValueError(f"The Gram matrix of N = 2..8 vectors has N (N - 1) / 2 cosines; got {num_cosines}.")


def gram_eigmax_excess(cosines: Sequence[Tensor]) -> Tensor:
    """``lambda_max - 1``, differentiable twice. Cosines of one shape, float32 or float64; no further checks."""
    n = num_vectors(len(cosines))
    if n == 2:
        return cosines[0].abs()
    if n == 3:
        a, b, c = cosines
        return gram3_excess(a, b, c)
    return EIGMAX.value(_assemble(n, cosines))


def gram_eigmax_with_gradient(cosines: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """``(x, [dx/dcosine, ...])`` with ``x = lambda_max - 1``: closed form, no autograd."""
    n = num_vectors(len(cosines))
    if n == 2:
        return cosines[0].abs(), [cosines[0].sign()]
    if n == 3:
        a, b, c = cosines
        x, *gradient = evaluate_with_gradient(a, b, c)
        return x, gradient
    x, projector, *_ = EIGMAX.evaluate(False, _assemble(n, cosines))
    return x, [2 * projector[..., i, j] for i in range(n) for j in range(i + 1, n)]


def _assemble(n: int, cosines: Sequence[Tensor]) -> Tensor:
    """The Gram matrix less its unit diagonal, ``(..., N, N)``."""
    of_pair = {pair: k for k, pair in enumerate(itertools.combinations(range(n), 2))}
    zero = torch.zeros_like(cosines[0])
    entries = [zero if i == j else cosines[of_pair[min(i, j), max(i, j)]] for i in range(n) for j in range(n)]
    return torch.stack(entries, -1).unflatten(-1, (n, n))


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


class _Excess(Operation):
    """``lambda_max - 1`` and its gradient. The gradient is a result, so that it can be differentiated again."""

    function = "gram3_eigmax"
    name = "gram3_with_gradient"
    value_name = "gram3_excess"
    arguments = "Tensor a, Tensor b, Tensor c"
    results = 4
    inlined = True
    saved_inputs, saved_results = 3, slice(1, None)

    def plain(self, alone: bool, can_read: bool, *cosines: Tensor) -> Tensor | Results:
        if not can_read:
            return _gram3_torch.eigmax_excess(*cosines) if alone else _gram3_torch.eigmax_with_gradient(*cosines)
        like = cosines[0]
        results = [torch.empty(like.shape, dtype=like.dtype, device=like.device) for _ in range(1 if alone else 4)]
        flat = [tensor.reshape(-1).split(_BLOCK) for tensor in (*cosines, *results)]
        scratch = like.new_empty(_gram3_in_place.SCRATCH_ROWS - 1, len(flat[0][0]))
        for a, b, c, x, *gradient in zip(*flat):
            rows = scratch[:, : len(x)].unbind(0)
            if alone:
                _gram3_in_place.eigmax_excess_into(x, (a, b, c), rows)
            else:
                ga, gb, gc = gradient
                _gram3_in_place.eigmax_with_gradient_into(x, (ga, gb, gc), (a, b, c), rows)
        return tuple(results)

    def triton(self, alone: bool, *cosines: Tensor) -> Tensor | Results:
        from multicontrast.linalg import _gram3_triton

        if alone:
            return _gram3_triton.eigmax_excess(*cosines)
        return _gram3_triton.eigmax_with_gradient(*cosines, correctly_rounded=rounds_to_nearest())

    def fake(self, a: Tensor, *_: Tensor) -> Results:
        return tuple(a.new_empty(a.shape) for _ in range(4))

    def backward(self, residuals: tuple[Any, ...], *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        (*cosines, ga, gb, gc), (dx, *directions) = residuals, cotangents
        first = None if dx is None else (dx * ga, dx * gb, dx * gc)
        if all(direction is None for direction in directions):
            return first or (None, None, None)
        second = self._hessian_product(cosines, directions)
        return second if first is None else tuple(f + s for f, s in zip(first, second))

    def forward_mode(self, residuals: tuple[Any, ...], *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        *cosines, ga, gb, gc = residuals
        slope = sum((g * v for g, v in zip((ga, gb, gc), tangents) if v is not None), torch.zeros_like(ga))
        return (slope, *self._hessian_product(cosines, tangents))

    @staticmethod
    def _hessian_product(cosines: Any, directions: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The Hessian is symmetric, so one function serves reverse and forward mode."""
        zero = torch.zeros_like(cosines[0])
        return _gram3_torch.eigmax_hessian_product(*cosines, *(zero if d is None else d for d in directions))


EXCESS = _Excess()
