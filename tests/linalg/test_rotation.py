"""The nearest proper rotation: values, degenerate matrices, and its analytic, damped gradient."""

from __future__ import annotations

import math

import pytest
import torch
from families import ROTATIONS
from hypothesis import given
from hypothesis import strategies as st
from pose_definitions import mp
from torch import Tensor

from multicontrast.linalg.rotation import proper_rotation

DTYPES = [torch.float32, torch.float64]


def turns(count: int, generator: torch.Generator, size: int = 3) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(count, size, size, generator=generator, dtype=torch.float64))
    q = q * torch.diagonal(r, dim1=-2, dim2=-1).sign().unsqueeze(-2)
    q[..., 0] *= torch.linalg.det(q).unsqueeze(-1)
    return q


def definition(matrix: Tensor, allow_reflection: bool = False) -> Tensor:
    """U diag(1, ..., det U V) V of the singular value decomposition, in 60 digits; float64 LAPACK is 20 eps off."""
    size = matrix.shape[-1]
    rotations = []
    for one in matrix.detach().double().tolist():
        u, _, v = mp.svd_r(mp.matrix(one))
        sign = mp.eye(size)
        if not allow_reflection and mp.det(u) * mp.det(v) < 0:
            sign[size - 1, size - 1] = -1
        rotation = u * sign * v
        rotations.append([[float(rotation[i, j]) for j in range(size)] for i in range(size)])
    return torch.tensor(rotations, dtype=torch.float64)


def with_singular_values(*values: float, count: int = 200, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sigma = torch.tensor(values, dtype=torch.float64)
    return (turns(count, generator, len(values)) * sigma) @ turns(count, generator, len(values)).mT


FAMILIES = ROTATIONS | {
    "plane": (1.0, 0.25),
    "plane, reflection": (1.0, -0.25),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("allow_reflection", [False, True])
def test_the_rotation_is_that_of_the_singular_value_decomposition(family, dtype, allow_reflection):
    values = FAMILIES[family]
    matrix = with_singular_values(*values, count=12).to(dtype)
    rotation = proper_rotation(matrix, allow_reflection=allow_reflection)
    assert rotation.dtype == dtype
    gap = values[-2] + (abs(values[-1]) if allow_reflection else values[-1])
    if allow_reflection and values[-1] == 0:
        return  # both signs are nearest
    tolerance = 8 * torch.finfo(dtype).eps * values[0] / gap
    expected = definition(matrix, allow_reflection)
    torch.testing.assert_close(rotation.double(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("allow_reflection", [False, True])
def test_every_result_is_a_rotation_and_a_maximum(allow_reflection, dtype):
    """Also where several are nearest: rank 1, rank 0, a reflection with equal values."""
    eps = torch.finfo(dtype).eps
    matrices = [with_singular_values(*v, count=50) for v in ((1.0, 0, 0), (1, 1e-9, 0), (1, 1, -1), (1, 0.5, -0.5))]
    special = torch.zeros(30, 3, 3, dtype=torch.float64)
    for index in range(9):
        special[index].view(-1)[index] = 1.0
        special[9 + index].view(-1)[index] = -1.0
    special[18:21, 0] = torch.eye(3).double()
    special[21] = -torch.eye(3)
    special[22] = torch.ones(3, 3)
    special[23] = torch.diag(torch.tensor([1.0, 1.0, -1.0]))
    matrix = torch.cat((*matrices, special)).to(dtype)
    rotation = proper_rotation(matrix, allow_reflection=allow_reflection).double()
    identity = torch.eye(3, dtype=torch.float64).expand_as(rotation)
    torch.testing.assert_close(rotation @ rotation.mT, identity, atol=16 * eps, rtol=0)
    if not allow_reflection:
        assert (torch.linalg.det(rotation) > 0).all()
    singular = torch.linalg.svdvals(matrix.double())
    mirrored = (torch.linalg.det(matrix.double()) < 0) & (not allow_reflection)
    best = singular[:, 0] + singular[:, 1] + torch.where(mirrored, -singular[:, 2], singular[:, 2])
    reached = (rotation * matrix.double()).sum((-2, -1))
    assert (best - reached <= 16 * eps * singular[:, 0]).all()
    assert torch.equal(proper_rotation(torch.zeros(1, 3, 3)), torch.eye(3)[None])
    assert torch.equal(proper_rotation(torch.zeros(2, 2)), torch.eye(2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("allow_reflection", [False, True])
def test_without_iteration_nothing_is_lost_at_any_gap(allow_reflection, dtype):
    """Singular values that meet each other, or 0, to every degree; also in frames along the axes, full of zeros."""
    count, eps, generator = 20_000, torch.finfo(dtype).eps, torch.Generator().manual_seed(2)
    first, second, sign = torch.rand(3, count, generator=generator, dtype=torch.float64)
    first, second = 10 ** (-17 * first), 10 ** (-17 * second)
    middle = torch.where(torch.arange(count) % 2 == 0, 1 - first, first)
    least = torch.where(torch.arange(count) % 4 < 2, middle * (1 - second), middle * second)
    sigma = torch.stack((torch.ones(count).double(), middle, torch.where(sign < 0.5, -least, least)), -1)
    left, right = turns(count, generator), turns(count, generator)
    left[::3], right[::5] = torch.eye(3).double(), torch.eye(3).double()[[1, 2, 0]]
    matrix = ((left * sigma[:, None]) @ right.mT).to(dtype)
    rotation = proper_rotation(matrix, allow_reflection=allow_reflection).double()
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).double().expand_as(rotation), atol=16 * eps, rtol=0)
    best = sigma.sum(-1)
    if allow_reflection:
        best = sigma.abs().sum(-1)
    else:
        assert (torch.linalg.det(rotation) > 0).all()
    lost = best - (rotation * matrix.double()).sum((-2, -1))
    assert (lost <= 16 * eps).all(), lost.max() / eps
    gap = sigma[:, 1] + (sigma[:, 2].abs() if allow_reflection else sigma[:, 2])
    if allow_reflection:  # which of two signs is nearer must be decided by more than rounding
        gap = torch.where(sigma[:, 2].abs() > 64 * eps, gap, 0)
    flips = torch.where(sigma < 0, -1.0, 1.0) if allow_reflection else torch.ones_like(sigma)
    error = (rotation - (left * flips[:, None]) @ right.mT).abs().amax((-2, -1)) * gap
    assert (error[gap > 1e-10] <= 32 * eps).all(), error.max() / eps


@given(st.integers(-100, 100), st.integers(0, 2**31))
def test_scale_does_not_matter(exponent, seed):
    matrix = torch.randn(5, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    single = matrix.float()
    for one in (matrix, single):
        assert torch.equal(proper_rotation(one * 2.0**exponent), proper_rotation(one))


@given(st.integers(0, 2**31))
def test_it_follows_rotations_of_both_sides(seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = with_singular_values(3.0, 2.0, 1.0, count=4, seed=seed)
    left, right = turns(4, generator), turns(4, generator)
    torch.testing.assert_close(proper_rotation(left @ matrix @ right), left @ proper_rotation(matrix) @ right)
    torch.testing.assert_close(proper_rotation(matrix.mT), proper_rotation(matrix).mT)


def test_nan_and_infinity_spoil_their_matrix_alone():
    matrix = torch.randn(4, 3, 3)
    matrix[1, 2, 0] = math.nan
    matrix[3, 0, 0] = math.inf
    for allow_reflection in (False, True):
        rotation = proper_rotation(matrix, allow_reflection=allow_reflection)
        assert rotation[1].isnan().all() and rotation[3].isnan().all()
        expected = proper_rotation(matrix[[0, 2]], allow_reflection=allow_reflection)
        torch.testing.assert_close(rotation[[0, 2]], expected)


@pytest.mark.parametrize("values", [v for v in FAMILIES.values() if v != (1.0, 1.0, 1.0)], ids=str)
@pytest.mark.parametrize("allow_reflection", [False, True])
def test_gradcheck(values, allow_reflection):
    if allow_reflection and values[-1] == 0:
        return
    matrix = with_singular_values(*values, count=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: proper_rotation(m, allow_reflection=allow_reflection), (matrix,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_is_exact_to_the_edge_of_the_damping(dtype):
    """Against the derivative in closed form, at gaps down to sqrt(eps): no damping is felt before it."""
    eps = torch.finfo(dtype).eps
    generator = torch.Generator().manual_seed(1)
    for gap in (1e-1, 1e-2, 4 * eps**0.5):
        matrix = with_singular_values(1.0, 0.5, -0.5 + gap, count=5).to(dtype).requires_grad_()
        cotangent = torch.randn(5, 3, 3, generator=generator, dtype=torch.float64)
        (ours,) = torch.autograd.grad(proper_rotation(matrix), matrix, cotangent.to(dtype))
        exact = matrix.detach().double()
        rotation = definition(exact)
        stretch = rotation.mT @ exact
        stretch = (stretch + stretch.mT) / 2
        operator = stretch.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None] * torch.eye(3) - stretch
        twist = rotation.mT @ cotangent
        twist = twist - twist.mT
        vee = torch.stack((twist[:, 2, 1], twist[:, 0, 2], twist[:, 1, 0]), -1)
        z = torch.linalg.solve(operator, vee)
        cross = torch.linalg.cross(z[:, None].expand(5, 3, 3), torch.eye(3).double().expand(5, 3, 3), dim=-1).mT
        expected = rotation @ cross
        error = (ours.double() - expected).abs().amax((-2, -1)) / expected.abs().amax((-2, -1))
        assert (error <= 64 * eps / gap).all(), (gap, error.max().item() / eps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_is_finite_and_bounded_where_the_rotation_jumps(dtype):
    bound = 10 / torch.finfo(dtype).eps ** 0.5
    for values in ((1.0, 0, 0), (1, 1, -1), (1, 0.5, -0.5), (1, 1e-20, 0), (0, 0, 0), (1.0, -1.0), (0.0, 0.0)):
        matrix = with_singular_values(*map(float, values), count=20).to(dtype).requires_grad_()
        rotation = proper_rotation(matrix)
        (gradient,) = torch.autograd.grad(rotation, matrix, torch.randn_like(rotation))
        assert gradient.isfinite().all()
        assert gradient.abs().max() <= bound * 5
    zero = torch.zeros(1, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(proper_rotation(zero).square().sum(), zero)
    assert (gradient == 0).all()


def test_a_second_derivative_is_refused_in_words():
    matrix = torch.randn(2, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(proper_rotation(matrix)[0, 0, 1] ** 2, matrix, create_graph=True)
    with pytest.raises(
        RuntimeError, match="`proper_rotation` can be differentiated once; got a request for its second"
    ):
        gradient.sum().backward()


def test_arguments():
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 3, 3\) or \(\.\.\., 2, 2\); got"):
        proper_rotation(torch.zeros(3, 4))
    with pytest.raises(TypeError, match="floating-point"):
        proper_rotation(torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(TypeError, match="needs `allow_reflection` to be True or False; got 'no'"):
        proper_rotation(torch.zeros(3, 3), allow_reflection="no")
    assert proper_rotation(torch.zeros(0, 3, 3)).shape == (0, 3, 3)
    assert proper_rotation(torch.randn(2, 1, 3, 3, dtype=torch.bfloat16)).dtype == torch.float32
