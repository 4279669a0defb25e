"""The kernels of the 3x3 Gram eigenvalue meet the accuracy bars, compiled and interpreted."""

from __future__ import annotations

import itertools

import mpmath
import numpy as np
import pytest
import torch
from executors import COMPILED, EVERYWHERE, device, emulated, on
from families import cosine_families, exact_ties

# In units of eps. The value needs no correctly rounded operation; the gradient's bars are for a GPU's own and for them.
VALUE, EXCESS, GRADIENT, GRADIENT_ROUNDED = 1.0, 1.5, 5.5, 3.0


def _hard_cases(dtype: torch.dtype, count: int) -> torch.Tensor:
    return torch.cat([family(count, dtype, seed) for seed, family in enumerate(cosine_families(dtype).values())])


def _definition(cosines: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """``(x, gradient)`` of ``lambda_max - 1`` in float64, from a full eigendecomposition of the Gram matrix less I.

    Good for float32 inputs, where a gap as small as eps still leaves the eigenvector nine digits.
    """
    a, b, c = cosines.double().numpy().T
    matrix = np.zeros((len(a), 3, 3))
    matrix[:, 0, 1] = matrix[:, 1, 0] = a
    matrix[:, 0, 2] = matrix[:, 2, 0] = b
    matrix[:, 1, 2] = matrix[:, 2, 1] = c
    values, vectors = np.linalg.eigh(matrix)
    u = vectors[:, :, 2]
    gradient = 2 * np.stack([u[:, 0] * u[:, 1], u[:, 0] * u[:, 2], u[:, 1] * u[:, 2]], -1)
    return values[:, 2], _least_norm(cosines, gradient)


def _definition_in_50_digits(cosines: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The same for float64 inputs."""
    values, gradients = [], []
    with mpmath.workdps(50):
        for a, b, c in cosines.tolist():
            scale = mpmath.mpf(max(abs(a), abs(b), abs(c)) or 1)
            a, b, c = (mpmath.mpf(cosine) / scale for cosine in (a, b, c))
            spectrum, vectors = mpmath.eigsy(mpmath.matrix([[0, a, b], [a, 0, c], [b, c, 0]]))
            u = vectors[:, 2]
            values.append(float(spectrum[2] * scale))
            gradients.append([float(2 * u[i] * u[j]) for i, j in ((0, 1), (0, 2), (1, 2))])
    return np.array(values), _least_norm(cosines, np.array(gradients))


def _least_norm(cosines: torch.Tensor, gradient: np.ndarray) -> np.ndarray:
    """Where the largest eigenvalue is double, the subgradient of least norm: the signs over three, or zero at zero."""
    cosines = cosines.double().numpy()
    size = np.abs(cosines)
    tied = (size == size[:, :1]).all(1) & (np.signbit(cosines).sum(1) % 2 == 1)
    gradient = np.where(tied[:, None], np.sign(cosines) / 3, gradient)
    return np.where((size == 0).all(1)[:, None], 0, gradient)


def _errors(cosines: torch.Tensor, results: tuple[torch.Tensor, ...], expected: tuple) -> dict[str, float]:
    """Largest errors in eps: of the value relative to lambda, of x to itself, of the gradient, and Euler's identity."""
    eps, tiny = torch.finfo(cosines.dtype).eps, torch.finfo(cosines.dtype).tiny
    x, *gradient = (result.double().cpu().numpy() for result in results)
    expected_x, expected_gradient = expected
    normal = np.abs(expected_x) >= tiny
    safe = np.where(normal, expected_x, 1)
    gradient = np.stack(gradient, -1)
    euler = np.abs((gradient * cosines.double().numpy()).sum(-1) - expected_x)
    return {
        "value": float((np.abs(x - expected_x) / (1 + expected_x)).max() / eps),
        "excess": float((np.abs(x - expected_x) / safe)[normal].max() / eps),
        "gradient": float(np.abs(gradient - expected_gradient).max() / eps),
        "euler": float((euler / safe)[normal].max() / eps),
    }


def _assert_bars(errors: dict[str, float], rounded: bool) -> None:
    assert errors["value"] <= VALUE, errors
    assert errors["excess"] <= EXCESS, errors
    assert errors["gradient"] <= (GRADIENT_ROUNDED if rounded else GRADIENT), errors
    assert errors["euler"] <= (3 if rounded else 6), errors


@on(*COMPILED, "gpu")
def test_hard_families_meet_the_bars_whatever_the_approximate_operations_do():
    from multicontrast.linalg import _gram3_triton as kernels

    cosines = _hard_cases(torch.float32, 200)
    inputs = cosines.to(device()).unbind(-1)
    expected = _definition(cosines)
    for noise in (0.0, 1.0):
        emulated(noise=noise)
        for rounded in (False, True):
            results = kernels.eigmax_with_gradient(*inputs, correctly_rounded=rounded)
            _assert_bars(_errors(cosines, results, expected), rounded)
        x = kernels.eigmax_excess(*inputs)
        _assert_bars(_errors(cosines, (x, *results[1:]), expected), rounded)


@on("sm_80", "gpu")
def test_rounding_is_chosen_by_a_variable():
    import os

    from multicontrast.linalg import _gram3_triton, gram3_eigmax

    cosines = _hard_cases(torch.float32, 20).to(device())
    leaves = [cosine.contiguous().requires_grad_() for cosine in cosines.unbind(-1)]
    os.environ["MULTICONTRAST_ROUNDING"] = "nearest"
    try:
        rounded = torch.autograd.grad(gram3_eigmax(*leaves).sum(), leaves)
        os.environ["MULTICONTRAST_ROUNDING"] = "up"
        with pytest.raises(ValueError, match="device"):
            gram3_eigmax(*leaves)
    finally:
        del os.environ["MULTICONTRAST_ROUNDING"]
    plain = torch.autograd.grad(gram3_eigmax(*leaves).sum(), leaves)
    for results, chosen in ((plain, False), (rounded, True)):
        expected = _gram3_triton.eigmax_with_gradient(*cosines.unbind(-1), correctly_rounded=chosen)[1:]
        assert all(torch.equal(result, reference) for result, reference in zip(results, expected))
    assert not all(torch.equal(one, other) for one, other in zip(plain, rounded))


@on("interpreter", "sm_80", "gpu")
def test_float64_meets_the_bars():
    from multicontrast.linalg import _gram3_triton as kernels

    cosines = _hard_cases(torch.float64, 8)
    inputs = cosines.to(device()).unbind(-1)
    expected = _definition_in_50_digits(cosines)
    for rounded in (False, True):
        results = kernels.eigmax_with_gradient(*inputs, correctly_rounded=rounded)
        _assert_bars(_errors(cosines, results, expected), rounded)


@on(*EVERYWHERE, slow=("sm_90", "sm_100"))
def test_awkward_sizes_and_strides():
    from multicontrast.linalg import _gram3_triton as kernels

    for count in (0, 1, 63, 100, 1025):
        cosines = 2 * torch.rand(3, count, dtype=torch.float32, device=device()) - 1
        expected = kernels.eigmax_with_gradient(*cosines)
        _assert_bars(_errors(cosines.cpu().mT, expected, _definition(cosines.cpu().mT)), False) if count else None
        padded = torch.full((count, 7), float("nan"), device=device())
        padded[:, 1], padded[:, 3], padded[:, 6] = cosines
        strided = padded[:, 1], padded[:, 3], padded[:, 6]
        for result, same in zip(kernels.eigmax_with_gradient(*strided), expected):
            assert result.shape == (count,)
            torch.testing.assert_close(result, same, rtol=0, atol=0)
        torch.testing.assert_close(kernels.eigmax_excess(*strided), expected[0], rtol=0, atol=0)


@on("interpreter", "sm_80", "gpu")
def test_broadcast_transposed_and_scalar_inputs():
    from multicontrast.linalg import _gram3_triton as kernels

    a = (2 * torch.rand(5, 7, device=device()) - 1).mT
    b = (2 * torch.rand(7, 1, device=device()) - 1).expand(7, 5)
    c = torch.tensor(0.25, device=device()).expand(7, 5)
    for cosines in ((a, b, c), (b, c, a), (c, a, b)):  # each of them with each kind of strides
        expected = kernels.eigmax_with_gradient(*(cosine.contiguous() for cosine in cosines))
        for result, same in zip(kernels.eigmax_with_gradient(*cosines), expected):
            torch.testing.assert_close(result, same, rtol=0, atol=0)
        scalar = kernels.eigmax_excess(*(cosine[2, 3] for cosine in cosines))
        assert scalar.shape == ()
        torch.testing.assert_close(scalar, expected[0][2, 3], rtol=0, atol=0)


@on(*EVERYWHERE)
def test_nan_and_infinity_poison_all_results_and_nothing_else():
    from multicontrast.linalg import _gram3_triton as kernels

    nan, inf = float("nan"), float("inf")
    bad = [(nan, 0.5, 0.1), (0.5, nan, 0.1), (0.5, 0.1, nan), (inf, 0.5, 0.1), (0.5, -inf, 0.1), (inf, inf, inf)]
    bad += [(0.0, 0.0, nan), (0.0, inf, 0.0), (nan, nan, nan), (-inf, inf, 0.2)]
    good = [
        (0.5, 0.2, 0.1),
        (0.0, 0.0, 0.0),
        (1.0, 1.0, 1.0),
        (0.5, 0.5, -0.5),
        (3e38, 1e38, 0.0),
        (1e-45, 0.0, -1e-45),
    ]
    for dtype in (torch.float32, torch.float64):
        cosines = torch.tensor(bad + good, dtype=dtype, device=device()).unbind(-1)
        for result in (*kernels.eigmax_with_gradient(*cosines), kernels.eigmax_excess(*cosines)):
            assert result[: len(bad)].isnan().all(), result
            assert result[len(bad) :].isfinite().all(), result


@on("interpreter", *COMPILED, "gpu")
def test_exact_ties_give_the_subgradient_of_least_norm():
    from multicontrast.linalg import _gram3_triton as kernels

    cosines = exact_ties(torch.float32)
    _, *gradient = kernels.eigmax_with_gradient(*cosines.to(device()).unbind(-1))
    _, expected = _definition(cosines)
    error = np.abs(torch.stack(gradient, -1).double().cpu().numpy() - expected).max()
    eps = torch.finfo(torch.float32).eps
    assert error <= 2 * eps, error / eps


@on("sm_80", "sm_100", "gpu")
def test_value_does_not_change_by_one_bit_under_permutations_and_even_sign_flips():
    from multicontrast.linalg import _gram3_triton as kernels

    cosines = _hard_cases(torch.float32, 50).to(device())
    expected = kernels.eigmax_excess(*cosines.unbind(-1))
    for order in itertools.permutations(range(3)):
        for flips in ((1, 1, 1), (-1, -1, 1), (-1, 1, -1), (1, -1, -1)):
            turned = cosines[:, order] * torch.tensor(flips, device=device())
            assert torch.equal(kernels.eigmax_excess(*turned.unbind(-1)), expected), (order, flips)


@on("interpreter", "sm_90", "gpu")
def test_offsets_beyond_32_bits():
    from multicontrast.linalg import _gram3_triton as kernels

    far = torch.empty(2**31 + 8, dtype=torch.float32, device=device()).as_strided((3,), (2**30,))  # 8 GiB, untouched
    near = torch.tensor([0.9, -0.2, 0.4], device=device())
    far.copy_(near)
    torch.testing.assert_close(kernels.eigmax_excess(far, near, near), kernels.eigmax_excess(near, near, near))


@on("interpreter", "gpu")
def test_operators_pass_their_check():
    import multicontrast  # noqa: F401, which registers the operators

    cosines = tuple((2 * torch.rand(2, 3, device=device()) - 1).requires_grad_() for _ in range(3))
    torch.library.opcheck(torch.ops.multicontrast.gram3_excess.default, cosines)
    torch.library.opcheck(torch.ops.multicontrast.gram3_with_gradient.default, cosines)


@on("interpreter", "gpu")
def test_operators_are_differentiable_twice():
    from multicontrast.linalg import gram3

    cosines = tuple((2 * torch.rand(4, dtype=torch.float64, device=device()) - 1).requires_grad_() for _ in range(3))
    for function in (gram3.gram3_excess, torch.ops.multicontrast.gram3_excess):
        assert torch.autograd.gradcheck(function, cosines)
        assert torch.autograd.gradgradcheck(function, cosines)


@on("interpreter", "gpu")
def test_compile_export_and_vmap():
    from multicontrast.linalg import gram3

    def loss(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return gram3.gram3_excess(a, b, c).square().sum()

    cosines = [(2 * torch.rand(9, device=device()) - 1).requires_grad_() for _ in range(3)]
    expected = torch.autograd.grad(loss(*cosines), cosines)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(*cosines), cosines), expected)

    class Module(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            return gram3.gram3_excess(a, b, c)

    exported = torch.export.export(Module(), tuple(cosines))
    torch.testing.assert_close(exported.module()(*cosines), gram3.gram3_excess(*cosines))
    over_b = torch.func.vmap(gram3.gram3_excess, in_dims=(None, 0, None))
    b = 2 * torch.rand(4, 9, device=device()) - 1
    rows = torch.stack([gram3.gram3_excess(cosines[0], row, cosines[2]) for row in b])
    torch.testing.assert_close(over_b(cosines[0], b, cosines[2]), rows)
