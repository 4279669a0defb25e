"""Every operation against its definition: value, gradient, the same under ``create_graph``, Hessian-vector product.

The definitions are the perturbation theory of one eigendecomposition in 50 digits. For a simple spectrum and a
direction ``D``, with ``d_ij = v_i . D v_j``, the sum ``f = sum_k w_k l_k`` has the gradient ``sum_k w_k v_k v_k'`` and
the Hessian-vector product ``sum_{i != j} (w_i - w_j) / (l_i - l_j) d_ij v_i v_j'``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import eigen_definitions
import mpmath
import pytest
import torch
from families import Family, cosine_families, gram_families, symmetric3_families
from torch import Tensor

from multicontrast import linalg

DTYPES = [torch.float32, torch.float64]
WEIGHTS = (0.7, -1.3, 0.4)  # of the three eigenvalues, where an operation returns all


@dataclass(frozen=True)
class Operation:
    """``function`` maps ``(n, ...)`` inputs to ``(n,)``; bars in eps, of the norm and of powers of norm over gap."""

    function: Callable[[Tensor], Tensor]
    weights: Callable[[int], list[float]]  # of the eigenvalues, ascending
    value: float
    gradient: float
    families: Callable[[torch.dtype], dict[str, Family]]
    cosines: bool = False  # the input is cosines (n, 3): the matrix has a zero diagonal and the value is 1 larger
    gap_free: bool = False  # the gradient's error does not grow as the gap closes


def top(n: int) -> list[float]:
    return [0.0] * (n - 1) + [1.0]


def all_three(n: int) -> list[float]:
    return list(WEIGHTS)


def weighted(values: Tensor) -> Tensor:
    return (values * values.new_tensor(WEIGHTS)).sum(-1)


OPERATIONS = {
    "gram3_eigmax": Operation(
        lambda x: linalg.gram3_eigmax(*x.unbind(-1)), top, 1, 3, cosine_families, cosines=True, gap_free=True
    ),
    "gram3_eigvals": Operation(
        lambda x: weighted(linalg.gram3_eigvals(*x.unbind(-1))), all_three, 9, 16, cosine_families, cosines=True
    ),
    "eigvalsh3": Operation(lambda x: weighted(linalg.eigvalsh3(x)), all_three, 9, 16, symmetric3_families),
    "eigh3": Operation(lambda x: weighted(linalg.eigh3(x)[0]), all_three, 9, 16, symmetric3_families),
    "eigmax, N = 3": Operation(linalg.eigmax, top, 4, 8, symmetric3_families),
    **{
        f"eigmax, N = {n}": Operation(linalg.eigmax, top, 4, 8, lambda dtype, n=n: gram_families(n, dtype))
        for n in (2, 4, 5, 8)
    },
}
CASES = [
    (name, dtype, family)
    for name, operation in OPERATIONS.items()
    for dtype in DTYPES
    for family in operation.families(dtype)
]


def to_matrix(x: Tensor, cosines: bool) -> mpmath.matrix:
    """One input as a symmetric matrix; the lower triangle counts."""
    if cosines:
        return mpmath.matrix(eigen_definitions.gram(x).tolist())
    return mpmath.matrix((x.tril() + x.tril(-1).mT).tolist())


def from_matrix(matrix: mpmath.matrix, cosines: bool) -> list[mpmath.mpf]:
    """A symmetric derivative in the form of the input, flat: both triangles of a matrix belong to one cosine."""
    if cosines:
        return [2 * matrix[i, j] for i, j in ((0, 1), (0, 2), (1, 2))]
    return list(matrix)


@dataclass(frozen=True)
class Truth:
    value: mpmath.mpf
    gradient: list[mpmath.mpf]
    hessian_product: list[mpmath.mpf]
    norm: mpmath.mpf
    gap: mpmath.mpf  # the least distance between eigenvalues of different weights


def definition(x: Tensor, direction: Tensor, weights: list[float], cosines: bool) -> Truth:
    """Everything about one input, in 50 digits."""
    values, vectors = mpmath.eigsy(to_matrix(x, cosines))
    n = len(values)
    w = [mpmath.mpf(float(torch.tensor(weight, dtype=x.dtype))) for weight in weights]
    gaps = [abs(values[i] - values[j]) for i, j in itertools.combinations(range(n), 2) if w[i] != w[j]]
    gap = min(gaps)
    norm = max(abs(value) for value in values)
    value = sum(weight * v for weight, v in zip(w, values)) + (sum(w) if cosines else 0)
    gradient = vectors * mpmath.diag(w) * vectors.T
    turned = vectors.T * to_matrix(direction, cosines) * vectors
    moved = mpmath.zeros(n)
    for i, j in itertools.permutations(range(n), 2):
        if w[i] != w[j] and values[i] != values[j]:
            moved[i, j] = (w[i] - w[j]) / (values[i] - values[j]) * turned[i, j]
    product = vectors * moved * vectors.T
    return Truth(value, from_matrix(gradient, cosines), from_matrix(product, cosines), norm, gap)


def distance(got: Tensor, truth: list[mpmath.mpf]) -> mpmath.mpf:
    return max(abs(mpmath.mpf(g) - t) for g, t in zip(got.flatten().tolist(), truth))


def derivatives(function: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> tuple[Tensor, ...]:
    """Value, gradient, gradient with ``create_graph``, Hessian-vector product."""
    leaf = x.clone().requires_grad_()
    value = function(leaf)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    (again,) = torch.autograd.grad(function(leaf).sum(), leaf, create_graph=True)
    (product,) = torch.autograd.grad(again, leaf, direction)
    return value.detach(), gradient, again.detach(), product


@pytest.mark.parametrize(("name", "dtype", "family"), CASES)
def test_value_and_derivatives_against_fifty_digits(name, dtype, family):
    operation = OPERATIONS[name]
    x = operation.families(dtype)[family](3, dtype, 11)
    direction = torch.randn(x.shape, dtype=dtype, generator=torch.Generator().manual_seed(12))
    if not operation.cosines:
        direction = direction + direction.mT
    results = derivatives(operation.function, x, direction)
    alone = operation.function(x)
    info = torch.finfo(dtype)
    for i, one in enumerate(x):
        n = 3 if operation.cosines else x.shape[-1]
        truth = definition(one, direction[i], operation.weights(n), operation.cosines)
        value, gradient, again, product = (result[i] for result in results)
        unit = max(info.eps * (truth.norm + operation.cosines), info.smallest_normal * info.eps)
        for found in (value, alone[i]):
            assert abs(mpmath.mpf(found.item()) - truth.value) <= operation.value * unit
        for found in (gradient, again):
            assert found.isfinite().all()
        if truth.norm < info.smallest_normal:  # the second derivative is beyond the type's range
            continue
        assert product.isfinite().all()
        if truth.gap > 1e3 * info.eps * truth.norm:
            condition = 1 if operation.gap_free else 1 + truth.norm / truth.gap
            for found in (gradient, again):
                assert distance(found, truth.gradient) <= operation.gradient * info.eps * condition
            size = max(abs(z) for z in truth.hessian_product) + 4 / truth.gap
            assert distance(product, truth.hessian_product) <= 16 * info.eps * condition * size
