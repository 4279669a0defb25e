"""The eigenproblems' operators are well formed, differentiable twice, and one node for the compiler."""

from __future__ import annotations

import pytest
import torch
from executors import device, kind, on
from torch import Tensor

import multicontrast  # noqa: F401, which registers the operators

NAMES = ("symmetric3_eigenvalues", "symmetric3_eigenpairs", "symmetric_eigmax")


def _matrices(name: str, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    n = 4 if name == "symmetric_eigmax" else 3
    matrix = torch.randn(*shape, n, n, dtype=dtype, device=device())
    return (matrix + matrix.mT).requires_grad_()


def _spectral(name: str, matrix: Tensor) -> Tensor:
    """A smooth function of the matrix that depends neither on the order of eigenvalues nor on signs of vectors."""
    matrix = (matrix + matrix.mT) / 2
    result = getattr(torch.ops.multicontrast, name)(matrix)
    if name == "symmetric3_eigenvalues":
        return result.sin().sum(-1)
    if name == "symmetric_eigmax":
        return result[0].sin()
    values, vectors = result
    return ((vectors * values.cos().unsqueeze(-2)) @ vectors.mT)[..., 0, 1] + values.sin().sum(-1)


@pytest.mark.parametrize("name", NAMES)
@on("torch", "interpreter", "gpu")
def test_operators_pass_their_check(name):
    torch.library.opcheck(getattr(torch.ops.multicontrast, name).default, (_matrices(name, 2, dtype=torch.float32),))


@pytest.mark.parametrize("name", NAMES)
@on("torch", "interpreter", "gpu")
def test_operators_are_differentiable_twice(name):
    matrix = _matrices(name, 1)
    assert torch.autograd.gradcheck(lambda x: _spectral(name, x), (matrix,))
    fast = kind() == "interpreter"  # in random directions instead of all
    assert torch.autograd.gradgradcheck(lambda x: _spectral(name, x), (matrix,), fast_mode=fast)


@pytest.mark.parametrize("name", NAMES)
@on("torch", "interpreter", "gpu")
def test_compile_export_and_vmap(name):
    matrices = _matrices(name, 3, dtype=torch.float32)
    expected = torch.autograd.grad(_spectral(name, matrices).sum(), matrices)
    compiled = torch.compile(lambda x: _spectral(name, x).sum(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(matrices), matrices), expected)

    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return _spectral(name, x)

    exported = torch.export.export(Module(), (matrices,)).module()
    torch.testing.assert_close(exported(matrices), _spectral(name, matrices))
    mapped = torch.func.vmap(lambda x: _spectral(name, x), in_dims=1)(matrices.detach().transpose(0, 1))
    torch.testing.assert_close(mapped, _spectral(name, matrices).detach())
