"""`linalg.eigmax`: value and subgradient at any scale, for N = 2..8."""

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multicontrast import linalg


def symmetric(size: int, count: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    matrix = torch.randn(count, size, size, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return matrix.tril() + matrix.tril(-1).mT


def reference(matrix: torch.Tensor) -> tuple[float, float]:
    """Largest eigenvalue and norm in 40 digits."""
    with mpmath.workdps(40):
        values = mpmath.eigsy(mpmath.matrix(matrix.tolist()), eigvals_only=True)
        return float(max(values)), float(max(abs(value) for value in values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", range(2, 9))
def test_the_value_is_within_four_eps_of_the_norm(size, dtype):
    matrices = symmetric(size, 12, seed=size, dtype=dtype)
    got = linalg.eigmax(matrices)
    assert got.dtype == dtype
    for value, matrix in zip(got.tolist(), matrices):
        expected, norm = reference(matrix)
        assert abs(value - expected) <= 4 * torch.finfo(dtype).eps * norm


@given(st.integers(2, 8), st.integers(0, 1000), st.integers(-900, 900))
def test_powers_of_two_scale_exactly(size, seed, power):
    matrix = symmetric(size, 2, seed)
    assert torch.equal(linalg.eigmax(matrix * 2.0**power), linalg.eigmax(matrix) * 2.0**power)


@given(st.integers(2, 8), st.integers(0, 1000))
def test_the_gradient_is_that_of_torch(size, seed):
    matrix = symmetric(size, 3, seed).requires_grad_()
    (got,) = torch.autograd.grad(linalg.eigmax(matrix).sum(), matrix)
    (expected,) = torch.autograd.grad(torch.linalg.eigvalsh(matrix)[..., -1].sum(), matrix)
    assert torch.equal(got, got.mT)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", range(2, 9))
def test_at_a_tie_the_gradient_is_the_subgradient_of_least_norm(size):
    matrix = torch.eye(size, requires_grad=True)
    (grad,) = torch.autograd.grad(linalg.eigmax(matrix), matrix)
    torch.testing.assert_close(grad, torch.eye(size) / size)
    two = torch.diag(torch.tensor([1.0, 1.0] + [-2.0] * (size - 2))).requires_grad_()
    (grad,) = torch.autograd.grad(linalg.eigmax(two), two)
    torch.testing.assert_close(grad, torch.diag(torch.tensor([0.5, 0.5] + [0.0] * (size - 2))))


@pytest.mark.parametrize("size", range(3, 9))
def test_a_tie_that_rounding_has_broken_is_a_tie(size):
    basis = torch.linalg.qr(
        torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    )[0]
    matrix = (basis * torch.tensor([1.0, 1.0] + [-2.0] * (size - 2))) @ basis.mT
    leaf = ((matrix + matrix.mT) / 2).requires_grad_()
    (grad,) = torch.autograd.grad(linalg.eigmax(leaf), leaf)
    torch.testing.assert_close(grad, basis[:, :2] @ basis[:, :2].mT / 2, rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_derivatives_of_first_and_second_order(size):
    matrix = symmetric(size, 2, seed=size).requires_grad_()

    def value(m):
        return linalg.eigmax((m + m.mT) / 2)

    assert torch.autograd.gradcheck(value, matrix)
    assert torch.autograd.gradgradcheck(value, matrix)
    assert torch.autograd.gradcheck(value, matrix, check_forward_ad=True, check_backward_ad=False)


def test_the_lower_triangle_is_read_and_the_upper_may_be_anything():
    matrix = symmetric(4, 1, seed=0)[0]
    spoiled = matrix.tril() + torch.full((4, 4), torch.nan, dtype=matrix.dtype).triu(1)
    assert torch.equal(linalg.eigmax(spoiled), linalg.eigmax(matrix))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_matrices_are_nan_and_leave_the_others_alone(value):
    matrices = symmetric(3, 2, seed=2)
    alone = linalg.eigmax(matrices)
    matrices[0, 2, 1] = value
    got = linalg.eigmax(matrices)
    assert got[0].isnan()
    assert got[1] == alone[1]


def test_half_precision_is_computed_in_float32():
    matrix = symmetric(3, 1, seed=3).to(torch.bfloat16)
    got = linalg.eigmax(matrix)
    assert got.dtype == torch.float32
    assert torch.equal(got, linalg.eigmax(matrix.float()))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 1), (9, 9)])
def test_wrong_shapes(shape):
    with pytest.raises(ValueError, match=r"`A` of shape \(\.\.\., N, N\) with N = 2\.\.8; got a float32 tensor"):
        linalg.eigmax(torch.zeros(shape))


def test_wrong_types():
    with pytest.raises(TypeError, match="`A` to hold real floating-point numbers"):
        linalg.eigmax(torch.zeros(3, 3, dtype=torch.int64))
