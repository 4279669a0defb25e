"""In a compiled function every operation and its gradient is one node with the eager results."""

import pytest
import torch

from multicontrast import linalg


def matrices(n: int) -> torch.Tensor:
    matrix = torch.randn(6, n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    return matrix + matrix.mT


CASES = {
    "gram3_eigmax": (lambda m: linalg.gram3_eigmax(m[:, 1, 0], m[:, 2, 0], m[:, 2, 1]), 3),
    "gram3_eigvals": (lambda m: linalg.gram3_eigvals(m[:, 1, 0], m[:, 2, 0], m[:, 2, 1]), 3),
    "eigvalsh3": (linalg.eigvalsh3, 3),
    "eigh3": (lambda m: (lambda values, vectors: vectors.square() * values[:, None])(*linalg.eigh3(m)), 3),
    "eigmax, N = 3": (linalg.eigmax, 3),
    "eigmax, N = 4": (linalg.eigmax, 4),
}


@pytest.mark.parametrize("name", CASES)
def test_compiled_is_eager(name):
    torch._dynamo.reset()  # the cases share one code object, whose recompilations are limited
    function, n = CASES[name]

    def loss(matrix):
        return function(matrix).sin().sum()

    leaf = matrices(n).requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=False)
    value, expected = compiled(leaf), loss(leaf)
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=1e-13)
    got, slope = torch.autograd.grad(value, leaf), torch.autograd.grad(expected, leaf)
    torch.testing.assert_close(got, slope, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(compiled(leaf.detach()), expected.detach(), rtol=1e-13, atol=1e-13)
