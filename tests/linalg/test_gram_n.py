"""The Gram path of the losses for N = 2..8, and `eigmax` on every family."""

import itertools
import math

import mpmath
import pytest
import torch
from eigen_definitions import eigh, error
from families import gram_families
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from multicontrast import linalg
from multicontrast.linalg.gram3 import gram_eigmax_excess, gram_eigmax_with_gradient

DTYPES = [torch.float32, torch.float64]
FAMILIES = list(gram_families(4, torch.float32))

# Bars in eps of the largest eigenvalue.
VALUE, DEFICIT, TRACE, ANGLE = 4, 1, 4, 3


def pairs(n: int) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(n), 2))


def cosines_of(gram: Tensor) -> list[Tensor]:
    return [gram[..., i, j].clone() for i, j in pairs(gram.shape[-1])]


def projector(n: int, gradient: list[Tensor]) -> Tensor:
    """The off-diagonal of the projector, which is all that the cosines' gradient knows."""
    matrix = torch.zeros(*gradient[0].shape, n, n, dtype=gradient[0].dtype)
    for (i, j), g in zip(pairs(n), gradient):
        matrix[..., i, j] = matrix[..., j, i] = g / 2
    return matrix


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 8])
def test_value_and_subgradient_against_fifty_digits(n, name, dtype):
    grams = gram_families(n, dtype)[name](3, dtype, n)
    eps = torch.finfo(dtype).eps
    x, gradient = gram_eigmax_with_gradient(cosines_of(grams))
    leaf = grams.clone().requires_grad_()
    value = linalg.eigmax(leaf)
    (subgradient,) = torch.autograd.grad(value.sum(), leaf)
    for k, gram in enumerate(grams):
        truth, basis = eigh(gram)
        unit = eps * truth[-1]
        assert error(1 + x[k].item(), truth[-1], unit) <= VALUE
        assert error(value[k].item(), truth[-1], unit) <= VALUE
        excess = mpmath.matrix(gram.double().sub(torch.eye(n)).tolist())
        off_diagonal = projector(n, gradient)[k].tolist()
        full = mpmath.matrix(subgradient[k].tolist())
        assert abs(sum(full[i, i] for i in range(n)) - 1) <= TRACE * eps
        assert min(mpmath.eigsy((full + full.T) / 2, eigvals_only=True)) >= -eps
        # Both must support: <U, G - I> is the excess, for any subgradient U.
        rayleigh = sum(full[i, j] * excess[i, j] for i in range(n) for j in range(n))
        assert truth[-1] - 1 - rayleigh <= DEFICIT * unit
        rayleigh = sum(mpmath.mpf(off_diagonal[i][j]) * excess[i, j] for i in range(n) for j in range(n))
        assert truth[-1] - 1 - rayleigh <= DEFICIT * unit
        # Its part across the top eigenvector is small by the gap.
        u = basis[:, n - 1]
        across = mpmath.norm(full * u - u * (u.T * full * u)[0])
        assert across * (truth[-1] - truth[-2]) <= ANGLE * unit


@pytest.mark.parametrize("n", range(4, 9))
def test_float32_against_float64_on_many(n):
    eps = torch.finfo(torch.float32).eps
    for name in FAMILIES[:4]:
        grams = gram_families(n, torch.float32)[name](1000, torch.float32, 1)
        value = linalg.eigmax(grams)
        truth = torch.linalg.eigvalsh(grams.double())[..., -1]
        assert ((value.double() - truth).abs() <= VALUE * eps * truth).all()


@pytest.mark.parametrize("n", range(2, 9))
def test_weak_cosines_keep_their_digits(n):
    cosines = cosines_of(gram_families(n, torch.float64)["random d=64"](50, torch.float64, 3))
    x, gradient = gram_eigmax_with_gradient([z * 2.0**-100 for z in cosines])
    large, slopes = gram_eigmax_with_gradient(cosines)
    assert torch.equal(x, large * 2.0**-100)
    assert all(torch.equal(g, s) for g, s in zip(gradient, slopes))


@given(st.integers(2, 8), st.integers(0, 10_000))
def test_renaming_and_flipping_vectors(n, seed):
    generator = torch.Generator().manual_seed(seed)
    gram = gram_families(n, torch.float64)["random d=N"](2, torch.float64, seed)
    order = torch.randperm(n, generator=generator)
    flips = torch.randint(0, 2, (n,), generator=generator).double() * 2 - 1
    other = (gram * flips * flips[:, None])[:, order][:, :, order]
    torch.testing.assert_close(linalg.eigmax(other), linalg.eigmax(gram), rtol=2e-15, atol=0)
    x = gram_eigmax_excess(cosines_of(other))
    torch.testing.assert_close(x, linalg.eigmax(gram) - 1, rtol=0, atol=1e-14)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_derivatives_of_first_and_second_order(n):
    cosines = [
        z[:2].requires_grad_() for z in cosines_of(gram_families(n, torch.float64)["random d=N"](2, torch.float64, 4))
    ]

    def function(*z):
        return gram_eigmax_excess(z)

    assert torch.autograd.gradcheck(function, cosines, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, cosines)
    _, gradient = gram_eigmax_with_gradient([z.detach() for z in cosines])
    expected = torch.autograd.grad(function(*cosines).sum(), cosines)
    for got, slope in zip(gradient, expected):
        torch.testing.assert_close(got, slope, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("n", range(2, 9))
def test_ties_have_the_subgradient_of_least_norm(n):
    """Two blocks of equal vectors: the top eigenvalue is double, and the projector on its plane, halved, is known."""
    if n % 2:
        pytest.skip("two equal blocks need an even number")
    half = n // 2
    gram = torch.block_diag(torch.ones(half, half), torch.ones(half, half)).double().requires_grad_()
    (gradient,) = torch.autograd.grad(linalg.eigmax(gram), gram)
    torch.testing.assert_close(gradient, gram.detach() / n, rtol=0, atol=1e-15)
    (first,) = torch.autograd.grad(linalg.eigmax(gram), gram, create_graph=True)
    (second,) = torch.autograd.grad(first[0, -1], gram)
    assert torch.equal(second, torch.zeros_like(second))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", range(2, 9))
@pytest.mark.parametrize("exponent", [-125, -60, 60, 120])
def test_any_scale_is_as_good_as_one(n, exponent, dtype):
    gram = gram_families(n, dtype)["random d=64"](20, dtype, 5) - 0.3 * torch.eye(n, dtype=dtype)
    leaf, scaled = gram.clone().requires_grad_(), (gram * 2.0**exponent).requires_grad_()
    value, other = linalg.eigmax(leaf), linalg.eigmax(scaled)
    torch.testing.assert_close(other * 2.0**-exponent, value, rtol=2 * torch.finfo(dtype).eps, atol=0)
    (gradient,), (slope,) = torch.autograd.grad(value.sum(), leaf), torch.autograd.grad(other.sum(), scaled)
    torch.testing.assert_close(slope, gradient, rtol=0, atol=64 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("n", range(2, 9))
def test_non_finite_cosines_are_nan_and_leave_the_others_alone(n):
    cosines = cosines_of(gram_families(n, torch.float32)["random d=N"](4, torch.float32, 6))
    x, gradient = gram_eigmax_with_gradient(cosines)
    cosines[-1][0], cosines[0][1] = math.nan, math.inf
    spoiled, slopes = gram_eigmax_with_gradient(cosines)
    if n > 2:
        assert spoiled[:2].isnan().all()
        assert all(slope[:2].isnan().all() for slope in slopes)
    assert torch.equal(spoiled[2:], x[2:])
    assert all(torch.equal(slope[2:], g[2:]) for slope, g in zip(slopes, gradient))
    assert gram_eigmax_excess(cosines)[2:].isfinite().all()


@pytest.mark.parametrize("count", [0, 2, 4, 5, 36])
def test_a_number_of_cosines_that_no_gram_matrix_has(count):
    with pytest.raises(ValueError, match=rf"has N \(N - 1\) / 2 cosines; got {count}"):
        gram_eigmax_excess([torch.zeros(1)] * count)
