"""General symmetric 3x3 matrices: values, vectors and derivatives, at every gap and scale."""

import math

import eigen_definitions
import mpmath
import pytest
import torch
from families import exact_multiples, symmetric3_families
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from multicontrast import linalg
from multicontrast.linalg import _symmetric3_torch

DTYPES = [torch.float32, torch.float64]
CASES = [(dtype, name) for dtype in DTYPES for name in symmetric3_families(dtype)]

# Bars in eps of the norm.
VALUES, DEFICIT, LENGTH, ANGLE = 3, 1, 2, 3


@pytest.mark.parametrize(("dtype", "name"), CASES)
def test_values_and_vectors_against_fifty_digits(dtype, name):
    matrices = symmetric3_families(dtype)[name](20, dtype, 1)
    alone, (values, vectors) = linalg.eigvalsh3(matrices), linalg.eigh3(matrices)
    scaled, _ = _symmetric3_torch.solve(matrices, False, can_read=False)
    eps = torch.finfo(dtype).eps
    denormal = torch.finfo(dtype).smallest_normal * eps
    for k, matrix in enumerate(matrices):
        truth, basis = eigen_definitions.eigh(matrix)
        norm = max(abs(t) for t in truth)
        unit = max(eps * norm, mpmath.mpf(denormal))
        for result in (alone, values, scaled):
            for value, t in zip(result[k].tolist(), truth):
                assert eigen_definitions.error(value, t, unit) <= VALUES
        if norm == 0:
            continue
        for i in range(3):
            v = mpmath.matrix(vectors[k, :, i].tolist())
            length = mpmath.norm(v)
            assert abs(length - 1) <= LENGTH * eps
            v /= length
            weights = [(basis[:, j].T * v)[0] for j in range(3)]
            # The Rayleigh quotient is the eigenvalue, and the part along each other eigenvector is small by the gap.
            rayleigh = sum(t * w**2 for t, w in zip(truth, weights))
            if i == 2:
                assert truth[2] - rayleigh <= DEFICIT * eps * norm
            if i == 0:
                assert rayleigh - truth[0] <= DEFICIT * eps * norm
            gap = min(abs(truth[i] - truth[j]) for j in range(3) if j != i)
            across = mpmath.sqrt(sum(weights[j] ** 2 for j in range(3) if j != i))
            assert across * gap <= ANGLE * eps * norm


@pytest.mark.parametrize(("dtype", "name"), CASES)
def test_scaling_every_matrix_changes_nothing(dtype, name):
    """On a CPU only those out of range are scaled; other devices scale all. The values are equal to the last bit."""
    matrices = symmetric3_families(dtype)[name](100, dtype, 4)
    values, vectors = _symmetric3_torch.solve(matrices, True, can_read=False)
    assert torch.equal(values, _symmetric3_torch.solve(matrices, False, can_read=False)[0])
    assert torch.equal(values, linalg.eigvalsh3(matrices))
    # Signs and bases of close eigenvalues are free; the matrices that they make are not.
    eps = torch.finfo(dtype).eps
    size = values.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(dtype).smallest_normal)
    rebuilt = [v @ torch.diag_embed(values / size) @ v.mT for v in (vectors, linalg.eigh3(matrices)[1])]
    torch.testing.assert_close(*rebuilt, rtol=0, atol=20 * eps)


@pytest.mark.parametrize("name", symmetric3_families(torch.float32))
def test_float32_against_float64_on_many(name):
    matrices = symmetric3_families(torch.float32)[name](5_000, torch.float32, 2)
    truth = linalg.eigvalsh3(matrices.double())
    unit = (torch.finfo(torch.float32).eps * truth.abs().amax(-1, keepdim=True)).clamp_min(2.0**-149)
    values, vectors = linalg.eigh3(matrices)
    for got in (linalg.eigvalsh3(matrices), values):
        assert ((got.double() - truth) / unit).abs().max() <= VALUES
    identity = torch.eye(3, dtype=torch.float64)
    assert (vectors.double().mT @ vectors.double() - identity).abs().max() <= 5 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize(("dtype", "name"), CASES)
def test_eigvalsh3_is_eigh3_without_the_vectors(dtype, name):
    matrices = symmetric3_families(dtype)[name](300, dtype, 3)
    assert torch.equal(linalg.eigvalsh3(matrices), linalg.eigh3(matrices)[0])
    leaf = matrices.clone().requires_grad_()
    assert torch.equal(linalg.eigvalsh3(leaf), linalg.eigvalsh3(matrices))


@given(st.integers(0, 10_000), st.integers(-60, 60))
def test_powers_of_two_scale_exactly(seed, power):
    matrix = symmetric3_families(torch.float32)["random"](3, torch.float32, seed)
    values, vectors = linalg.eigh3(matrix)
    scaled, same = linalg.eigh3(matrix * 2.0**power)
    assert torch.equal(scaled, values * 2.0**power)
    assert torch.equal(same, vectors)
    assert torch.equal(linalg.eigvalsh3(matrix * 2.0**power), linalg.eigvalsh3(matrix) * 2.0**power)


@given(st.integers(0, 10_000))
def test_invariants(seed):
    matrix = symmetric3_families(torch.float64)["random"](4, torch.float64, seed)
    values = linalg.eigvalsh3(matrix)
    norm = matrix.norm(dim=(-2, -1))
    assert (values.diff(dim=-1) >= 0).all()
    assert ((values.sum(-1) - matrix.diagonal(dim1=-2, dim2=-1).sum(-1)).abs() <= 1e-14 * norm).all()
    torch.testing.assert_close(values.norm(dim=-1), norm, rtol=1e-14, atol=0)
    torch.testing.assert_close(linalg.eigvalsh3(-matrix), -values.flip(-1), rtol=0, atol=1e-14 * norm.max().item())
    basis = torch.linalg.qr(torch.randn(4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).Q
    turned = basis @ matrix @ basis.mT
    torch.testing.assert_close(linalg.eigvalsh3(turned), values, rtol=0, atol=1e-14 * norm.max().item())


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_multiples(dtype):
    matrices = exact_multiples(dtype)
    values, vectors = linalg.eigh3(matrices)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(
        vectors.mT @ vectors, torch.eye(3, dtype=dtype).expand_as(matrices), rtol=0, atol=4 * eps
    )
    norm = matrices.norm(dim=(-2, -1), keepdim=True).clamp_min(1)
    rebuilt = vectors @ torch.diag_embed(values) @ vectors.mT
    assert ((rebuilt - matrices) / norm).abs().max() <= 6 * eps
    assert torch.equal(linalg.eigvalsh3(torch.zeros(2, 3, 3, dtype=dtype)), torch.zeros(2, 3, dtype=dtype))


def test_the_lower_triangle_is_read_and_the_upper_may_be_anything():
    matrix = symmetric3_families(torch.float64)["random"](5, torch.float64, 4)
    spoiled = matrix.tril() + torch.full((3, 3), torch.nan, dtype=torch.float64).triu(1)
    for door in (linalg.eigvalsh3, lambda m: linalg.eigh3(m)[1], linalg.eigmax):
        assert torch.equal(door(spoiled), door(matrix))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_matrices_are_nan_and_leave_the_others_alone(bad):
    matrices = symmetric3_families(torch.float32)["random"](8, torch.float32, 5)
    alone, vectors = linalg.eigh3(matrices)
    for k, (i, j) in enumerate([(0, 0), (1, 1), (2, 2), (1, 0), (2, 0), (2, 1)]):
        matrices[k, i, j] = bad
    values, spoiled = linalg.eigh3(matrices)
    assert values[:6].isnan().all()
    assert spoiled[:6].isnan().all()
    assert torch.equal(values[6:], alone[6:])
    assert torch.equal(spoiled[6:], vectors[6:])
    assert linalg.eigvalsh3(matrices)[:6].isnan().all()
    assert linalg.eigvalsh3(matrices)[6:].isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_matrices_are_nan_where_all_are_scaled(bad):
    matrices = symmetric3_families(torch.float64)["random"](7, torch.float64, 5)
    for k, (i, j) in enumerate([(0, 0), (1, 1), (2, 2), (1, 0), (2, 0), (2, 1)]):
        matrices[k, i, j] = bad
    values, vectors = _symmetric3_torch.solve(matrices, True, can_read=False)
    for result in (values, vectors, _symmetric3_torch.solve(matrices, False, can_read=False)[0]):
        assert result[:6].isnan().all()
        assert result[6].isfinite().all()


# Derivatives ---------------------------------------------------------------------------------------------------------


def symmetrised(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


def spectral(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Functions of the eigenvectors that do not see their signs."""
    values, vectors = linalg.eigh3(symmetrised(matrix))
    return values, vectors @ torch.diag_embed(values.sin()) @ vectors.mT


def separated(count: int) -> Tensor:
    matrices = symmetric3_families(torch.float64)["random"](50, torch.float64, 6)
    apart = (torch.linalg.eigvalsh(matrices).diff(dim=-1) > 0.3).all(-1)
    return matrices[apart][:count].clone().requires_grad_()


@pytest.mark.parametrize("function", [lambda m: linalg.eigvalsh3(symmetrised(m)), spectral], ids=["eigvalsh3", "eigh3"])
def test_derivatives_of_first_and_second_order(function):
    matrix = separated(2)
    assert torch.autograd.gradcheck(function, matrix, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, matrix, check_fwd_over_rev=True)


def test_symmetric_functions_have_the_right_gradient_at_multiple_eigenvalues():
    matrix = exact_multiples(torch.float64).requires_grad_()
    values = linalg.eigvalsh3(matrix)
    (gradient,) = torch.autograd.grad(values.pow(3).sum(), matrix)  # tr A^3, whose gradient is 3 A^2
    torch.testing.assert_close(gradient, 3 * matrix @ matrix, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_of_equal_eigenvalues_do_not_move(dtype):
    """By convention: rounding parts equal eigenvalues, and one over that distance is no derivative."""
    matrix = exact_multiples(dtype).requires_grad_()
    _, vectors = linalg.eigh3(matrix)
    cotangent = torch.randn(vectors.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(vectors, matrix, cotangent)
    assert gradient.abs().max() < 20
    multiples_of_identity = matrix[:3]
    assert torch.equal(gradient[:3], torch.zeros_like(multiples_of_identity))


def test_transforms_of_torch_func():
    matrix = separated(4).detach()

    def spread(m):
        return linalg.eigvalsh3(symmetrised(m)).sin().sum()

    def definition(m):
        return torch.linalg.eigvalsh(symmetrised(m)).sin().sum()

    torch.testing.assert_close(
        torch.func.vmap(linalg.eigvalsh3, in_dims=1)(matrix.movedim(0, 1)), linalg.eigvalsh3(matrix)
    )
    values, vectors = torch.func.vmap(linalg.eigh3)(matrix)
    torch.testing.assert_close(vectors @ torch.diag_embed(values) @ vectors.mT, matrix, rtol=0, atol=1e-13)
    got = torch.func.vmap(torch.func.hessian(spread))(matrix)
    torch.testing.assert_close(got, torch.func.vmap(torch.func.hessian(definition))(matrix), rtol=1e-9, atol=1e-9)
    tangent = torch.randn_like(matrix)
    torch.testing.assert_close(
        torch.func.jvp(spread, (matrix,), (tangent,)), torch.func.jvp(definition, (matrix,), (tangent,))
    )
    with pytest.raises(NotImplementedError, match="`eigh3` can be differentiated in forward mode once"):
        torch.func.jacfwd(torch.func.jacfwd(spread))(matrix[0])


# The door ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    matrix = symmetric3_families(torch.float32)["random"](5, torch.float32, 7).to(dtype)
    assert linalg.eigvalsh3(matrix).dtype == torch.float32
    assert torch.equal(linalg.eigvalsh3(matrix), linalg.eigvalsh3(matrix.float()))
    assert torch.equal(linalg.eigh3(matrix)[1], linalg.eigh3(matrix.float())[1])


@pytest.mark.parametrize("shape", [(3, 3), (0, 3, 3), (2, 0, 3, 3), (63, 3, 3), (2, 50, 3, 3), (40_000, 3, 3)])
def test_shapes(shape):
    matrix = symmetric3_families(torch.float32)["random"](math.prod(shape) // 9, torch.float32, 8).view(shape)
    values, vectors = linalg.eigh3(matrix)
    assert linalg.eigvalsh3(matrix).shape == values.shape == shape[:-1]
    assert vectors.shape == shape
    torch.testing.assert_close(values, torch.linalg.eigvalsh(matrix), rtol=0, atol=2e-5)
    turned = matrix.mT.flip(0) if len(shape) > 2 else matrix.mT
    expected = linalg.eigvalsh3(matrix)
    assert torch.equal(linalg.eigvalsh3(turned), expected.flip(0) if len(shape) > 2 else expected)


@pytest.mark.parametrize("door", [linalg.eigvalsh3, linalg.eigh3])
def test_wrong_arguments_say_what_to_do(door):
    name = door.__name__
    with pytest.raises(TypeError, match=f"`{name}` needs `A` to be a tensor; got a list. Convert it"):
        door([[1.0]])
    with pytest.raises(TypeError, match=f"`{name}` needs `A` to hold real floating-point numbers; got a complex64"):
        door(torch.zeros(3, 3, dtype=torch.complex64))
    for shape in ((3,), (2, 2), (3, 4), (3, 3, 2)):
        with pytest.raises(
            ValueError, match=rf"`{name}` needs `A` of shape \(\.\.\., 3, 3\); got a float32 tensor of shape"
        ):
            door(torch.zeros(shape))
