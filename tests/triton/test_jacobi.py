"""The Jacobi kernel meets the accuracy bars for N = 2..8, compiled and interpreted."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from executors import device, emulated, on
from families import gram_families

# In eps: the values of the Gram matrix's largest; how far short of it the top vector's Rayleigh quotient falls; its
# squared length, which is the trace of the gradient; orthogonality; the angle to the true vector times the gap.
VALUES, DEFICIT, TRACE, OVERLAP, ANGLE = 4.0, 1.0, 4.0, 8.0, 3.0


def _hard_cases(n: int, dtype: torch.dtype, count: int) -> torch.Tensor:
    """Gram matrices less the identity, which is what the losses solve."""
    families = gram_families(n, dtype).values()
    return torch.cat([family(count, dtype, seed) for seed, family in enumerate(families)]) - torch.eye(n, dtype=dtype)


def _definition(matrices: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, ascending, and eigenvectors: in float64 for float32 input, in 40 digits for float64."""
    if matrices.dtype == torch.float32:
        return np.linalg.eigh(matrices.double().numpy())
    values, vectors = [], []
    with mpmath.workdps(40):
        for matrix in matrices.tolist():
            spectrum, basis = mpmath.eigsy(mpmath.matrix(matrix))
            values.append([np.longdouble(mpmath.nstr(value, 25)) for value in spectrum])
            vectors.append([[np.longdouble(mpmath.nstr(entry, 25)) for entry in row] for row in basis.tolist()])
    return np.array(values), np.array(vectors)


def _errors(matrices: torch.Tensor, values: torch.Tensor, vectors: torch.Tensor) -> dict[str, float]:
    reference, basis = _definition(matrices)
    eps = torch.finfo(matrices.dtype).eps
    matrix = matrices.numpy().astype(np.longdouble)
    values, vectors = (x.cpu().numpy().astype(np.longdouble) for x in (values, vectors.mT))
    order = values.argsort(1)
    values = np.take_along_axis(values, order, 1)
    top = np.take_along_axis(vectors, order[:, -1:, None], 1)[:, 0]
    lam = 1 + reference[:, -1]  # the values' errors count against the Gram matrix's own
    norm = np.abs(reference).max(1).clip(1e-30)
    overlap = np.abs(np.einsum("nik,njk->nij", vectors, vectors) - np.eye(matrix.shape[1])).max((1, 2))
    rayleigh = np.einsum("ni,nij,nj->n", top, matrix, top) / (top**2).sum(1)
    rest = top - basis[:, :, -1] * (top * basis[:, :, -1]).sum(1)[:, None]
    angle = np.sqrt((rest**2).sum(1)) * (reference[:, -1] - reference[:, -2])
    return {
        "values": float((np.abs(values - reference).max(1) / (eps * lam)).max()),
        "top, of itself": float((np.abs(values - reference)[:, -1] / (eps * norm)).max()),
        "deficit": float(((reference[:, -1] - rayleigh) / (eps * lam)).max()),
        "trace": float((np.abs((top**2).sum(1) - 1) / eps).max()),
        "overlap": float((overlap / eps).max()),
        "angle": float((angle / (eps * lam)).max()),
    }


def _assert_bars(errors: dict[str, float]) -> None:
    assert errors["values"] <= VALUES, errors
    assert errors["top, of itself"] <= 2 * VALUES, errors
    assert errors["deficit"] <= DEFICIT, errors
    assert errors["trace"] <= TRACE, errors
    assert errors["overlap"] <= OVERLAP, errors
    assert errors["angle"] <= ANGLE, errors


def _check(n: int, dtype: torch.dtype, count: int) -> None:
    from multicontrast.linalg._jacobi_triton import jacobi

    matrices = _hard_cases(n, dtype, count)
    _assert_bars(_errors(matrices, *jacobi(matrices.to(device()))))


@pytest.mark.parametrize("n", [2, 5, 8])
@on("interpreter")
def test_interpreted_kernels_meet_the_bars(n):
    _check(n, torch.float32, 50)
    _check(n, torch.float64, 1)


@pytest.mark.parametrize("n", range(2, 9))
@on("gpu")
def test_hard_families_meet_the_bars(n):
    _check(n, torch.float32, 2000)
    _check(n, torch.float64, 5)


@pytest.mark.parametrize("n", [4, 5])
@on("sm_80", "sm_90", "sm_100")
def test_compiled_kernels_meet_the_bars_whatever_the_approximate_operations_do(n):
    for noise in (0.0, 1.0):
        emulated(noise=noise)
        _check(n, torch.float32, 100)


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3, 6, 7, 8])
@on("sm_80", "sm_90", "sm_100")
def test_compiled_kernels_of_the_other_sizes_meet_the_bars(n):
    for noise in (0.0, 1.0):
        emulated(noise=noise)
        _check(n, torch.float32, 100)
    emulated()
    _check(n, torch.float64, 2)


@on("interpreter", "sm_80", "gpu")
def test_awkward_sizes_strides_scales_and_the_lower_triangle():
    from multicontrast.linalg._jacobi_triton import jacobi

    for count in (0, 1, 63, 101):
        matrices = torch.randn(count, 4, 4, device=device())
        matrices = matrices + matrices.mT
        values, vectors = jacobi(matrices)
        torch.testing.assert_close((vectors * values[:, None]) @ vectors.mT, matrices, rtol=0, atol=3e-5)
        padded = torch.full((count, 6, 9), float("nan"), device=device())
        lower = torch.ones(4, 4, device=device()).tril().bool()
        padded[:, 1:5, ::2][:, :, :4][:, lower] = matrices[:, lower]
        for k in (-100, 60):  # powers of two are exact
            scaled, same = jacobi(padded[:, 1:5, ::2][:, :, :4] * 2.0**k)
            torch.testing.assert_close(scaled, values * 2.0**k, rtol=0, atol=0)
            torch.testing.assert_close(same, vectors, rtol=0, atol=0)
    stack = matrices[:6].view(2, 3, 4, 4)
    assert jacobi(stack.transpose(0, 1))[0].shape == (3, 2, 4)


@on("interpreter", "sm_80", "gpu")
def test_nan_and_infinity_poison_their_matrix_and_no_other():
    from multicontrast.linalg._jacobi_triton import jacobi

    matrices = torch.eye(4, device=device()).repeat(4, 1, 1)
    matrices[0, 2, 1], matrices[1, 3, 3] = float("nan"), float("inf")
    values, vectors = jacobi(matrices)
    assert values[:2].isnan().all() and vectors[:2].isnan().all()
    assert values[2:].isfinite().all() and vectors[2:].isfinite().all()
