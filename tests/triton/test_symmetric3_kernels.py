"""The kernel of symmetric 3x3 eigenproblems meets the accuracy bars, compiled and interpreted."""

from __future__ import annotations

import mpmath
import numpy as np
import torch
from executors import COMPILED, EVERYWHERE, device, emulated, on
from families import symmetric3_families

# In eps of the largest eigenvalue's magnitude; the angle is between vectors, times the gap.
VALUES, DEFICIT, LENGTH, ANGLE = 3.0, 1.0, 2.0, 3.0


def _hard_cases(dtype: torch.dtype, count: int) -> torch.Tensor:
    return torch.cat([family(count, dtype, seed) for seed, family in enumerate(symmetric3_families(dtype).values())])


def _definition(matrices: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eigenvalues, eigenvectors and scale in float64, of float32 matrices."""
    scale = matrices.double().abs().amax((-2, -1)).clamp_min(1e-300).numpy()
    values, vectors = np.linalg.eigh(matrices.double().numpy() / scale[:, None, None])
    return values, vectors, scale


def _definition_in_40_digits(matrices: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scale = matrices.abs().amax((-2, -1)).clamp_min(1e-320).double().numpy()
    values, vectors = [], []
    with mpmath.workdps(40):
        for matrix, factor in zip(matrices.tolist(), scale.tolist()):
            spectrum, basis = mpmath.eigsy(mpmath.matrix(matrix) / mpmath.mpf(factor))
            values.append([np.longdouble(mpmath.nstr(value, 25)) for value in spectrum])
            vectors.append([[np.longdouble(mpmath.nstr(basis[i, j], 25)) for j in range(3)] for i in range(3)])
    return np.array(values), np.array(vectors), scale


def _errors(matrices: torch.Tensor, values: torch.Tensor, vectors: torch.Tensor, expected: tuple) -> dict[str, float]:
    info = torch.finfo(matrices.dtype)
    reference, basis, scale = expected
    norm = np.abs(reference).max(1).clip(1e-300)
    # The rounding of a result to a denormal number is nobody's error.
    denormal = info.smallest_normal * info.eps / scale
    values = values.cpu().numpy().astype(np.longdouble) / scale[:, None]
    vectors = vectors.cpu().numpy().astype(np.longdouble)
    matrix = matrices.numpy().astype(np.longdouble) / scale[:, None, None]
    unit = info.eps * norm + denormal
    top = vectors[:, :, 2]
    length = np.sqrt((vectors**2).sum(1))
    overlap = np.abs(np.einsum("nij,nik->njk", vectors, vectors) - np.eye(3)).max((1, 2))
    rayleigh = np.einsum("ni,nij,nj->n", top, matrix, top) / (top**2).sum(1)
    rest = top - basis[:, :, 2] * (top * basis[:, :, 2]).sum(1)[:, None]
    angle = np.sqrt((rest**2).sum(1))
    gap = reference[:, 2] - reference[:, 1]
    return {
        "values": float((np.abs(values - reference).max(1) / unit).max()),
        "deficit": float(((reference[:, 2] - rayleigh) / unit).max()),
        "length": float((np.abs(length - 1).max(1) / info.eps).max()),
        "overlap": float((overlap / info.eps).max()),
        "angle": float((angle * gap / unit).max()),
    }


def _assert_bars(errors: dict[str, float]) -> None:
    assert errors["values"] <= VALUES, errors
    assert errors["deficit"] <= DEFICIT, errors
    assert errors["length"] <= LENGTH, errors
    assert errors["overlap"] <= 2 * LENGTH, errors
    assert errors["angle"] <= ANGLE, errors


@on(*COMPILED, "gpu")
def test_hard_families_meet_the_bars_whatever_the_approximate_operations_do():
    from multicontrast.linalg._symmetric3_triton import eigh3, eigvalsh3

    matrices = _hard_cases(torch.float32, 300)
    for noise in (0.0, 1.0):
        emulated(noise=noise)
        values, vectors = eigh3(matrices.to(device()))
        _assert_bars(_errors(matrices, values, vectors, _definition(matrices)))
    emulated()
    torch.testing.assert_close(eigvalsh3(matrices.to(device())), eigh3(matrices.to(device()))[0], rtol=0, atol=0)


@on("interpreter", "sm_80", "gpu")
def test_float64_meets_the_bars():
    from multicontrast.linalg._symmetric3_triton import eigh3

    matrices = _hard_cases(torch.float64, 8)
    _assert_bars(_errors(matrices, *eigh3(matrices.to(device())), _definition_in_40_digits(matrices)))


@on(*EVERYWHERE, slow=("sm_90", "sm_100"))
def test_awkward_sizes_strides_and_the_lower_triangle():
    from multicontrast.linalg._symmetric3_triton import eigh3, eigvalsh3

    for count in (0, 1, 63, 1025):
        matrices = torch.randn(count, 3, 3)
        matrices = (matrices + matrices.mT).to(device())
        values, vectors = eigh3(matrices)
        rebuilt = (vectors * values[:, None]) @ vectors.mT
        torch.testing.assert_close(rebuilt, matrices, rtol=0, atol=2e-5)
        assert (values.diff() >= 0).all()
        padded = torch.full((count, 5, 7), float("nan"), device=device())
        lower = torch.ones(3, 3, device=device()).tril().bool()
        padded[:, 1:4, ::3][:, lower] = matrices[:, lower]
        torch.testing.assert_close(eigvalsh3(padded[:, 1:4, ::3]), values, rtol=0, atol=0)
    stack = matrices[:8].view(2, 4, 3, 3)
    assert eigvalsh3(stack.transpose(0, 1)).shape == (4, 2, 3)
    torch.testing.assert_close(eigvalsh3(stack.transpose(0, 1))[1, 0], eigvalsh3(stack[0, 1]), rtol=0, atol=0)


@on("interpreter", "sm_80", "sm_100", "gpu")
def test_nan_and_infinity_poison_their_matrix_and_no_other():
    from multicontrast.linalg._symmetric3_triton import eigh3

    matrices = torch.eye(3, device=device()).repeat(14, 1, 1)
    for k, (i, j) in enumerate(((0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2))):
        matrices[2 * k, i, j] = float("nan")
        matrices[2 * k + 1, i, j] = -float("inf")
    values, vectors = eigh3(matrices)
    assert values[:12].isnan().all() and vectors[:12].isnan().all()
    assert values[12:].isfinite().all() and vectors[12:].isfinite().all()


@on("sm_90", "gpu")
def test_offsets_beyond_32_bits():
    from multicontrast.linalg._symmetric3_triton import eigvalsh3

    near = torch.randn(3, 3, 3, device=device())
    far = torch.empty(2**31 + 64, device=device()).as_strided((3, 3, 3), (2**30, 3, 1))
    far.copy_(near)
    torch.testing.assert_close(eigvalsh3(far), eigvalsh3(near), rtol=0, atol=0)
