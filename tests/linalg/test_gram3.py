"""The 3x3 Gram eigenvalue: accurate at every gap, symmetric, valid at ties, and its derivatives."""

import itertools
import math

import eigen_definitions
import pytest
import torch
from families import cosine_families, exact_ties
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from multicontrast import linalg
from multicontrast.linalg import _gram3_in_place, _gram3_torch, gram3

DTYPES = [torch.float32, torch.float64]
CASES = [(dtype, name) for dtype in DTYPES for name in cosine_families(dtype)]
NAMES = [name for name in cosine_families(torch.float32) if name != "exact ties"]

# Bars, in eps of the type: value beside lambda, value less 1 beside itself, gradient, Euler's identity.
VALUE, EXCESS, GRADIENT, EULER = 1.0, 1.5, 3.0, 3.0


def out_of_place(cosines: Tensor) -> tuple[Tensor, Tensor]:
    """Excess ``(n,)`` and gradient ``(n, 3)`` of ``(n, 3)`` cosines."""
    x, *gradient = _gram3_torch.eigmax_with_gradient(*cosines.unbind(-1))
    return x, torch.stack(gradient, -1)


def in_place(cosines: Tensor) -> tuple[Tensor, Tensor]:
    a, b, c = (z.contiguous() for z in cosines.unbind(-1))
    scratch = torch.full((_gram3_in_place.SCRATCH_ROWS, len(cosines)), torch.nan, dtype=cosines.dtype)
    x, pullback = _gram3_in_place.eigmax_with_pullback((a, b, c), scratch)
    x = x.clone()
    return x, torch.stack(pullback(torch.ones_like(x)), -1)


def at_the_door(cosines: Tensor) -> tuple[Tensor, Tensor]:
    leaf = cosines.clone().requires_grad_()
    x = gram3.gram3_excess(*leaf.unbind(-1))
    (gradient,) = torch.autograd.grad(x.sum(), leaf)
    return x.detach(), gradient


FORMS = [out_of_place, in_place, at_the_door]


@pytest.mark.parametrize(("dtype", "name"), CASES)
def test_value_and_gradient_against_fifty_digits(dtype, name):
    cosines = cosine_families(dtype)[name](25, dtype, 1)
    eps = torch.finfo(dtype).eps
    results = [form(cosines) for form in FORMS]
    for i, triple in enumerate(cosines):
        truth, slopes = eigen_definitions.excess_and_gradient(triple)
        for x, gradient in results:
            assert eigen_definitions.error((1 + x[i]).item(), 1 + truth, eps * (1 + truth)) <= VALUE
            assert abs(x[i].item() - truth) <= EXCESS * eps * truth
            for got, slope in zip(gradient[i].tolist(), slopes or []):  # ties have a test of their own
                assert eigen_definitions.error(got, slope, eps) <= GRADIENT


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_float32_against_float64_on_many(name, form):
    """Thousands of cases, against the float64 form that fifty digits have just confirmed."""
    cosines = cosine_families(torch.float32)[name](5_000, torch.float32, 2)
    x, gradient = form(cosines)
    truth, slopes = out_of_place(cosines.double())
    eps = torch.finfo(torch.float32).eps
    positive = truth > 0
    assert (((1 + x).double() - 1 - truth).abs() <= VALUE * eps * (1 + truth)).all()
    assert ((x.double() - truth).abs() <= EXCESS * eps * truth)[positive].all()
    assert (gradient.double() - slopes).abs().max() <= GRADIENT * eps
    # Euler: the excess is homogeneous of degree 1, so any subgradient g has <g, cosines> = x.
    euler = (gradient.double() * cosines.double()).sum(-1)
    assert ((euler - truth).abs() <= EULER * eps * truth)[positive].all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_have_the_subgradient_of_least_norm(dtype, form):
    cosines = exact_ties(dtype)
    x, gradient = form(cosines)
    size = cosines.abs().amax(-1)
    positive = cosines.prod(-1).sign() * cosines.sign().prod(-1) > 0
    frustrated = cosines.sign().prod(-1) < 0
    eps = torch.finfo(dtype).eps
    assert positive.any()
    # abc > 0: a simple eigenvalue 1 + 2 t. abc < 0: a double one, 1 + t, and the projector on its plane, halved.
    torch.testing.assert_close(x, torch.where(frustrated, size, 2 * size), rtol=eps, atol=0)
    expected = torch.where(frustrated, torch.full_like(size, 1 / 3), torch.full_like(size, 2 / 3))
    torch.testing.assert_close(gradient, cosines.sign() * expected.unsqueeze(-1), rtol=0, atol=eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_denormal_cosines_keep_the_digits_they_have(dtype):
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    cosines = torch.tensor([[5.0, 3, 2], [1, 0, 0], [7, -7, 7], [100, -40, 30]], dtype=dtype)
    x, gradient = out_of_place(cosines * least)
    large, slopes = out_of_place(cosines)
    assert torch.equal(gradient, slopes)
    assert ((x / least - large).abs() <= 0.51).all()
    torch.testing.assert_close(in_place(cosines * least), (x, gradient), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_symmetries(name, dtype):
    """Renaming the vectors permutes the cosines, flipping one changes two signs; the eigenvalue sees neither."""
    cosines = cosine_families(torch.float32)[name](500, dtype, 3)
    x, gradient = out_of_place(cosines)
    for order in itertools.permutations(range(3)):
        for signs in ([1.0, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]):
            flips = torch.tensor(signs, dtype=dtype)
            other, slopes = out_of_place((cosines * flips)[:, order])
            assert torch.equal(other, x)
            assert (slopes - (gradient * flips)[:, order]).abs().max() <= 2 * torch.finfo(dtype).eps * 1.5


cosine = st.floats(-1, 1, width=32)


@given(cosine, cosine, cosine, st.integers(-80, 0))
def test_powers_of_two_scale_exactly(a, b, c, power):
    cosines = torch.tensor([[a, b, c]])
    if cosines.abs().amin() < 2.0**-20:
        cosines = torch.where(cosines.abs() < 2.0**-20, 0, cosines)  # products must stay clear of underflow
    x, gradient = out_of_place(cosines)
    small, slopes = out_of_place(cosines * 2.0**power)
    assert torch.equal(small, x * 2.0**power)
    assert torch.equal(slopes, gradient)


@given(*[cosine] * 6)
def test_the_eigenvalue_is_convex_and_bounded(a, b, c, p, q, r):
    one, two = torch.tensor([a, b, c], dtype=torch.float64), torch.tensor([p, q, r], dtype=torch.float64)
    value = [linalg.gram3_eigmax(*cosines) for cosines in (one, two, (one + two) / 2)]
    assert value[2] <= (value[0] + value[1]) / 2 + 1e-15
    assert all(1 <= v <= 3 + 1e-15 for v in value)
    # A subgradient supports from below.
    x, gradient = out_of_place(one[None])
    assert value[1] - 1 >= x[0] + gradient[0] @ (two - one) - 1e-14
    assert gradient.abs().max() <= 1 + 1e-15


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("form", FORMS)
def test_non_finite_cosines_are_nan_and_leave_the_others_alone(form, bad):
    cosines = cosine_families(torch.float32)["uniform"](12, torch.float32, 4)
    x, gradient = form(cosines)
    for i in range(3):
        cosines[i, i] = bad
    cosines[3] = bad
    spoiled, slopes = form(cosines)
    assert spoiled[:4].isnan().all()
    assert slopes[:4].isnan().all()
    assert torch.equal(spoiled[4:], x[4:])
    assert torch.equal(slopes[4:], gradient[4:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0,), (1,), (63,), (100,), (128,), (3, 5), (70_001,)])
def test_in_place_is_the_same_function(shape, dtype):
    cosines = [z.reshape(shape) for z in cosine_families(dtype)["uniform"](math.prod(shape), dtype, 5).unbind(-1)]
    if math.prod(shape) > 20:
        for cosine, value in zip(cosines, (0.0, -0.25, 0.25)):  # elements for which the formulas in place fail
            cosine.view(-1)[7], cosine.view(-1)[11] = 0, value or -0.25
    rows = torch.full((_gram3_in_place.SCRATCH_ROWS, *shape), torch.nan, dtype=dtype).unbind(0)
    a, b, c = before = [cosine.clone() for cosine in cosines]
    x, *gradient = _gram3_torch.eigmax_with_gradient(*cosines)
    _gram3_in_place.eigmax_excess_into(rows[0], (a, b, c), rows[1:])
    alone = rows[0].clone()
    assert all(torch.equal(cosine, old) for cosine, old in zip(cosines, before))
    _gram3_in_place.eigmax_with_gradient_into(rows[0], (a, b, c), (a, b, c), rows[1:])  # over the cosines
    assert torch.equal(rows[0], alone)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(alone, x, rtol=2 * eps, atol=0)
    for ours, theirs in zip((a, b, c), gradient):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=5 * eps)


# Derivatives ---------------------------------------------------------------------------------------------------------


def separated(count: int, seed: int = 6) -> list[Tensor]:
    """Triples whose two largest eigenvalues are 0.01 apart at least."""
    cosines = cosine_families(torch.float64)["uniform"](20 * count, torch.float64, seed)
    values = torch.linalg.eigvalsh(eigen_definitions.gram(cosines))
    apart = (values[:, 2] - values[:, 1] > 1e-2) & (values[:, 1] - values[:, 0] > 1e-2)
    return [z.clone().requires_grad_() for z in cosines[apart][:count].unbind(-1)]


@pytest.mark.parametrize("function", [linalg.gram3_eigmax, linalg.gram3_eigvals])
def test_derivatives_of_first_and_second_order(function):
    cosines = separated(4)
    assert torch.autograd.gradcheck(function, cosines, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, cosines, check_fwd_over_rev=True)


@pytest.mark.parametrize("by_table", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_power_of_two_is_the_same_under_a_transform(dtype, by_table, monkeypatch):
    if by_table:  # as before PyTorch 2.13
        monkeypatch.setattr(_gram3_torch, "_MAPS_NO_VIEWS", True)
    info = torch.finfo(dtype)
    exponents = torch.arange(-1080, 1030, dtype=torch.float64)
    values = torch.cat([2**exponents, 1.75 * 2**exponents]).to(dtype)
    values = torch.cat(
        [values[values.isfinite()], torch.tensor([0.0, info.tiny, info.max, info.smallest_normal], dtype=dtype)]
    )
    for plain, mapped in zip(_gram3_torch.power_of_two(values), torch.vmap(_gram3_torch.power_of_two)(values)):
        assert torch.equal(plain, mapped)


@pytest.mark.parametrize("function", [linalg.gram3_eigmax, linalg.gram3_eigvals])
def test_transforms_of_torch_func(function):
    cosines = torch.stack([z.detach() for z in separated(5)], -1)

    def of_one(triple):
        return function(*triple)

    def definition(triple):
        values = 1 + torch.linalg.eigvalsh(eigen_definitions.gram(triple))
        return values if function is linalg.gram3_eigvals else values[-1]

    torch.testing.assert_close(torch.func.vmap(of_one)(cosines), function(*cosines.unbind(-1)))
    for outer, inner in itertools.product((torch.func.jacfwd, torch.func.jacrev), repeat=2):
        if outer is inner is torch.func.jacfwd:
            continue
        got = torch.func.vmap(outer(inner(of_one)))(cosines)
        torch.testing.assert_close(got, torch.func.vmap(torch.func.hessian(definition))(cosines), rtol=1e-9, atol=1e-9)
    tangent = torch.ones_like(cosines[0])
    primal, slope = torch.func.jvp(of_one, (cosines[0],), (tangent,))
    expected = torch.func.jvp(definition, (cosines[0],), (tangent,))
    torch.testing.assert_close((primal, slope), expected)
    mixed = torch.func.vmap(function, in_dims=(0, None, 1))(cosines[:, :1], cosines[0, :1], cosines[None, :, 2])
    assert mixed.shape[:2] == (5, 1)


def test_the_power_of_two_compiles_to_a_few_operations_on_bits(monkeypatch):
    """The table, which is for transforms, would leave single numbers in the compiled loop: three times its time."""
    monkeypatch.setattr(_gram3_torch, "_MAPS_NO_VIEWS", True)
    seen = []

    def backend(graph, inputs):
        seen.extend(getattr(node.target, "__name__", str(node.target)) for node in graph.graph.nodes)
        return graph.forward

    largest = torch.tensor([0.3, 1e-30, 5.0])
    power, inverse = torch.compile(lambda x: _gram3_torch.power_of_two(x), backend=backend)(largest)
    assert "view" in seen
    assert not {"frexp", "index_select"} & set(seen)
    assert torch.equal(power, _gram3_torch.power_of_two(largest)[0])
    assert torch.equal(power * inverse, torch.ones(3))


def test_forward_mode_over_itself_is_refused_rather_than_zero():
    with pytest.raises(NotImplementedError, match="forward mode once; got forward mode over forward mode"):
        torch.func.jacfwd(torch.func.jacfwd(lambda t: linalg.gram3_eigmax(*t)))(torch.tensor([0.1, 0.2, 0.3]))


@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-4, 1e-6])
def test_second_derivatives_in_float32_do_not_depend_on_the_gap(gap):
    cosines = cosine_families(torch.float32)["double top 1e-01"](2000, torch.float32, 7)
    cosines = cosines.sign() * 0.3 * (1 + gap * (10 * cosines.abs() % 1)).float()
    direction = torch.randn(3, 2000, generator=torch.Generator().manual_seed(8))
    got = torch.stack(_gram3_torch.eigmax_hessian_product(*cosines.unbind(-1), *direction))
    truth = torch.stack(_gram3_torch.eigmax_hessian_product(*cosines.double().unbind(-1), *direction.double()))
    relative = (got.double() - truth).norm(dim=0) / truth.norm(dim=0)
    assert relative[truth.norm(dim=0) > 0].median() <= 1e-6  # at the smallest gap some are exact ties
    assert got.isfinite().all()


def test_second_derivative_at_a_tie_is_zero():
    cosines = [torch.tensor([z], requires_grad=True) for z in (0.5, 0.5, -0.5)]
    first = torch.autograd.grad(linalg.gram3_eigmax(*cosines).sum(), cosines, create_graph=True)
    second = torch.autograd.grad(sum(first).sum(), cosines)
    assert all(torch.equal(s, torch.zeros(1)) for s in second)


# All three -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "name"), CASES)
def test_all_three_eigenvalues_against_fifty_digits(dtype, name):
    cosines = cosine_families(dtype)[name](15, dtype, 9)
    got = linalg.gram3_eigvals(*cosines.unbind(-1))
    assert (got.diff(dim=-1) >= 0).all()
    for values, triple in zip(got, cosines):
        truth, _ = eigen_definitions.eigh(eigen_definitions.gram(triple))
        unit = torch.finfo(dtype).eps * (1 + truth[2])
        assert all(eigen_definitions.error(v, 1 + t, unit) <= 3 for v, t in zip(values.tolist(), truth))


@given(cosine, cosine, cosine)
def test_the_trace_and_the_sum_of_squares_are_those_of_the_matrix(a, b, c):
    cosines = torch.tensor([a, b, c], dtype=torch.float64, requires_grad=True)
    values = linalg.gram3_eigvals(*cosines)
    torch.testing.assert_close(values.sum(), torch.tensor(3.0, dtype=torch.float64), rtol=1e-15, atol=1e-15)
    squares = values.square().sum()
    torch.testing.assert_close(squares, 3 + 2 * cosines.square().sum(), rtol=1e-14, atol=0)
    # A symmetric function of the eigenvalues: its gradient is right at ties too, here that of 3 + 2 |cosines|^2.
    (gradient,) = torch.autograd.grad(squares, cosines)
    torch.testing.assert_close(gradient, 4 * cosines.detach(), rtol=1e-13, atol=1e-13)


# The door ------------------------------------------------------------------------------------------------------------

DOORS = [linalg.gram3_eigmax, linalg.gram3_eigvals]


@pytest.mark.parametrize("door", DOORS)
def test_shapes_broadcast_and_types_are_promoted(door):
    a, b, c = torch.rand(4, 1), torch.rand(3, dtype=torch.float64), torch.rand(2, 1, 1)
    got = door(a, b, c)
    last = (3,) if door is linalg.gram3_eigvals else ()
    assert got.shape == (2, 4, 3, *last)
    assert got.dtype == torch.float64
    assert door(a[:0], b, c).shape == (2, 0, 3, *last)
    torch.testing.assert_close(got[1, 2, 1], door(a[2, 0].double(), b[1], c[1, 0, 0].double()), rtol=0, atol=1e-15)
    a.requires_grad_()
    door(a, b, c).sum().backward()
    assert a.grad.shape == a.shape


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(door, dtype):
    cosines = [z.to(dtype).requires_grad_() for z in torch.rand(3, 10).unbind(0)]
    got = door(*cosines)
    assert got.dtype == torch.float32
    assert torch.equal(got, door(*(z.detach().float() for z in cosines)))
    got.sum().backward()
    assert cosines[0].grad.dtype == dtype


@pytest.mark.parametrize("door", DOORS)
def test_wrong_arguments_say_what_to_do(door):
    good, name = torch.rand(3), door.__name__
    with pytest.raises(TypeError, match=f"`{name}` needs `b` to be a tensor; got 0.5. Convert it"):
        door(good, 0.5, good)
    with pytest.raises(TypeError, match=f"`{name}` needs `c` to hold real floating-point numbers; got a int64 tensor"):
        door(good, good, torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=f"`{name}` needs shapes that broadcast; got `a` a float32 tensor of shape"):
        door(good, torch.rand(2), good)
    with pytest.raises(ValueError, match=f"`{name}` needs all tensors on one device; got `a` on cpu, `b` on meta"):
        door(good, torch.rand(3, device="meta"), good)


def test_results_may_be_written_to():
    cosines = [z.clone().requires_grad_() for z in torch.rand(3, 5).unbind(0)]
    x = gram3.gram3_excess(*cosines)
    x.add_(1).sum().backward()
    assert cosines[0].grad.isfinite().all()
