"""Largest eigenvalue of the Gram matrix of N = 2..8 unit vectors, from its cosines. What the losses call.

Cosines come in the order of the pairs ``(0, 1), (0, 2), ..., (N-2, N-1)``; all work is on the matrix less its unit
diagonal, so that small cosines keep their digits.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from multicontrast.linalg.gram3 import evaluate_with_gradient, gram3_excess
from multicontrast.linalg.symmetric import EIGMAX, symmetric_eigmax


def num_vectors(num_cosines: int) -> int:
    """N of the N (N - 1) / 2 cosines; ValueError where there is no such N in 2..8."""
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
    return symmetric_eigmax(_assemble(n, cosines))


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
