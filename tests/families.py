"""Hard inputs by name, for closed forms and kernels of small symmetric matrices.

Every family is a function ``(count, dtype, seed) -> Tensor`` whose values are exact in ``dtype``, so that a reference
in higher precision sees the very same numbers.

``COSINES``     ``(count, 3)``: the cosines of three unit vectors, or of no vectors at all: the algorithms do not mind
``SYMMETRIC3``  ``(count, 3, 3)``: general symmetric matrices
``GRAMS``       ``(count, N, N)``: symmetric matrices with a unit diagonal; functions of N
``ROTATIONS``   singular values of matrices whose nearest rotation is sought
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

Family = Callable[[int, torch.dtype, int], Tensor]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _uniform(count: int, *shape: int, generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(count, *shape, dtype=torch.float64, generator=generator) - 1


def _signs(count: int, *shape: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (count, *shape), generator=generator).double() * 2 - 1


def _unit_rows(count: int, rows: int, dim: int, generator: torch.Generator) -> Tensor:
    x = torch.randn(count, rows, dim, dtype=torch.float64, generator=generator)
    return x / x.norm(dim=-1, keepdim=True)


def _cosines_of(rows: Tensor) -> Tensor:
    gram = rows @ rows.mT
    return torch.stack([gram[..., i, j] for i, j in itertools.combinations(range(rows.shape[-2]), 2)], -1)


# Cosines of three vectors --------------------------------------------------------------------------------------------


def _random(dim: int) -> Family:
    def family(count: int, dtype: torch.dtype, seed: int) -> Tensor:
        return _cosines_of(_unit_rows(count, 3, dim, _generator(seed))).to(dtype)

    return family


def _box(count: int, dtype: torch.dtype, seed: int) -> Tensor:
    return _uniform(count, 3, generator=_generator(seed)).to(dtype)


def _collinear(distance: float) -> Family:
    """Nearly parallel vectors: the optimum of a contrastive loss, where arc cosines lose half their digits."""

    def family(count: int, dtype: torch.dtype, seed: int) -> Tensor:
        generator = _generator(seed)
        cosines = 1 - distance * torch.rand(count, 3, dtype=torch.float64, generator=generator)
        flips = _signs(count, 3, generator=generator)
        pairs = torch.stack([flips[:, 0] * flips[:, 1], flips[:, 0] * flips[:, 2], flips[:, 1] * flips[:, 2]], -1)
        return (pairs * cosines).to(dtype)

    return family


def double_top(gap: float) -> Family:
    """Equal magnitudes up to ``gap`` with a negative product: the two largest eigenvalues nearly meet."""

    def family(count: int, dtype: torch.dtype, seed: int) -> Tensor:
        generator = _generator(seed)
        size = 0.02 + 0.48 * torch.rand(count, 1, dtype=torch.float64, generator=generator)
        magnitudes = size * (1 + gap * _uniform(count, 3, generator=generator))
        signs = _signs(count, 3, generator=generator)
        signs[:, 2] = -signs[:, 0] * signs[:, 1]
        return (signs * magnitudes).to(dtype)

    return family


def _two_equal(count: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Two equal magnitudes above or below a third, negative product; the third within 1e-1 .. 1e-8 of them."""
    generator = _generator(seed)
    size = 0.02 + 0.48 * torch.rand(count, dtype=torch.float64, generator=generator)
    offset = 10 ** (-1 - 7 * torch.rand(count, dtype=torch.float64, generator=generator))
    offset = offset * _signs(count, generator=generator)
    cosines = torch.stack([-size, -size, -size * (1 + offset)], -1)
    order = torch.rand(count, 3, generator=generator).argsort(-1)
    return cosines.gather(-1, order).to(dtype)


def _scales(lowest: float) -> Family:
    """Cosines of every size from ``lowest`` to 1, three sizes in one triple or one size for all."""

    def family(count: int, dtype: torch.dtype, seed: int) -> Tensor:
        generator = _generator(seed)
        exponent = torch.rand(count, 3, dtype=torch.float64, generator=generator)
        exponent[::2] = exponent[::2, :1].expand(-1, 3).clone()
        return (_uniform(count, 3, generator=generator) * lowest**exponent).to(dtype)

    return family


def _zeros(count: int, dtype: torch.dtype, seed: int) -> Tensor:
    """One or two of the three are exactly zero, of either sign."""
    generator = _generator(seed)
    cosines = _uniform(count, 3, generator=generator)
    keep = torch.randint(1, 3, (count, 1), generator=generator)
    order = torch.rand(count, 3, generator=generator).argsort(-1)
    return torch.where(order < keep, cosines, 0 * cosines).to(dtype)


def exact_ties(dtype: torch.dtype) -> Tensor:
    """Triples of equal magnitude (all sign patterns, many sizes) and zero: ``(.., 3)``."""
    signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=3)), dtype=torch.float64)
    sizes = torch.tensor([1.0, 0.5, 0.3, 0.1, 1 / 3, 2.0**-20, 1e-10, 1e-30], dtype=torch.float64)
    ties = (signs * sizes.view(-1, 1, 1)).flatten(0, 1)
    return torch.cat([ties, torch.zeros(1, 3, dtype=torch.float64)]).to(dtype)


def _exact_ties(count: int, dtype: torch.dtype, seed: int) -> Tensor:
    return exact_ties(dtype)


def cosine_families(dtype: torch.dtype) -> dict[str, Family]:
    """The families of cosines worth testing in ``dtype``: the gaps go down to its rounding."""
    float32 = dtype == torch.float32
    gaps = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7) if float32 else (1e-1, 1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12)
    return {
        **{f"random d={dim}": _random(dim) for dim in (3, 64, 512)},
        "uniform": _box,
        **{f"collinear {distance:.0e}": _collinear(distance) for distance in (1e-1, 1e-3, 1e-5, 1e-7)},
        **{f"double top {gap:.0e}": double_top(gap) for gap in gaps},
        "two equal": _two_equal,
        "scales": _scales(1e-30 if float32 else 1e-200),
        "zeros": _zeros,
        "exact ties": _exact_ties,
    }


# General symmetric 3x3 -----------------------------------------------------------------------------------------------


def _rotated(spectrum: Tensor, generator: torch.Generator) -> Tensor:
    n = spectrum.shape[-1]
    basis = torch.linalg.qr(torch.randn(len(spectrum), n, n, dtype=torch.float64, generator=generator)).Q
    matrix = (basis * spectrum.unsqueeze(-2)) @ basis.mT
    return (matrix + matrix.mT) / 2


def full(scale: float) -> Family:
    def family(count: int, dtype: torch.dtype, seed: int) -> Tensor:
        matrix = torch.randn(count, 3, 3, dtype=torch.float64, generator=_generator(seed))
        return ((matrix + matrix.mT) * scale).to(dtype)

    return family


def close_pair(index: int, gap: float) -> Family:
    """Two of three eigenvalues within ``gap``: the bottom pair (index 0) or the top pair (index 1)."""

    def family(count: int, dtype: torch.dtype, seed: int) -> Tensor:
        generator = _generator(seed)
        spectrum = _uniform(count, 3, generator=generator).sort(-1).values
        spectrum[:, index] = spectrum[:, index + 1] - gap * torch.rand(count, dtype=torch.float64, generator=generator)
        return _rotated(spectrum, generator).to(dtype)

    return family


def _triple(gap: float) -> Family:
    """A multiple of the identity and a small rest."""

    def family(count: int, dtype: torch.dtype, seed: int) -> Tensor:
        generator = _generator(seed)
        rest = torch.randn(count, 3, 3, dtype=torch.float64, generator=generator)
        centre = _uniform(count, 1, 1, generator=generator) * torch.eye(3, dtype=torch.float64)
        return (centre + gap * (rest + rest.mT)).to(dtype)

    return family


def _rank_one(count: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = _generator(seed)
    x = torch.randn(count, 3, 1, dtype=torch.float64, generator=generator)
    return (x @ x.mT * _signs(count, 1, 1, generator=generator)).to(dtype)


def _nearly_diagonal(count: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = _generator(seed)
    rest = 1e-5 * torch.randn(count, 3, 3, dtype=torch.float64, generator=generator)
    return (torch.diag_embed(_uniform(count, 3, generator=generator)) + rest + rest.mT).to(dtype)


def exact_multiples(dtype: torch.dtype) -> Tensor:
    """Matrices whose eigenvalues coincide exactly, and other matrices of small integers: ``(.., 3, 3)``."""
    ones, eye = torch.ones(3, 3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    block = torch.tensor([[2.0, 1, 0], [1, 2, 0], [0, 0, 3]], dtype=torch.float64)
    spectra = [
        torch.diag(torch.tensor(d, dtype=torch.float64)) for d in ([1.0, 1, 2], [1, 2, 2], [0, 0, 1], [-1, -1, 0])
    ]
    # Rank one and its mirror image, in integers: a double eigenvalue that thirds of the diagonal part by a rounding.
    rows = torch.tensor([[1.0, 2, 2], [1, 2, 3], [2, 3, 6], [1, -1, 5], [3, -7, 11]], dtype=torch.float64)
    outer = list(rows.unsqueeze(-1) * rows.unsqueeze(-2))
    mirrored = [7 * eye - matrix for matrix in outer]
    grams = [eye + 0.5 * (ones - eye), 1.5 * eye - 0.5 * ones, 2 * eye - ones]
    return torch.stack(
        [0 * eye, eye, -eye, ones, -ones, ones - eye, eye - ones, block, -block, *spectra, *grams, *outer, *mirrored]
    ).to(dtype)


def _exact_multiples(count: int, dtype: torch.dtype, seed: int) -> Tensor:
    return exact_multiples(dtype)


def symmetric3_families(dtype: torch.dtype) -> dict[str, Family]:
    """The families of general symmetric 3x3 matrices worth testing in ``dtype``."""
    float32 = dtype == torch.float32
    gaps = (1e-1, 1e-3, 1e-5, 1e-7) if float32 else (1e-1, 1e-4, 1e-8, 1e-12, 1e-15)
    return {
        "random": full(1.0),
        **{f"top gap {gap:.0e}": close_pair(1, gap) for gap in gaps},
        **{f"bottom gap {gap:.0e}": close_pair(0, gap) for gap in gaps},
        "triple 1e-05": _triple(1e-5),
        "rank one": _rank_one,
        "nearly diagonal": _nearly_diagonal,
        "exact multiples": _exact_multiples,
        "large scale": full(1e30 if float32 else 1e300),
        "small scale": full(1e-30 if float32 else 1e-300),
        "largest": full(2e37 if float32 else 1e307),
        "denormal": full(1e-41 if float32 else 1e-320),
    }


# N x N with a unit diagonal -------------------------------------------------------------------------------------------


def gram_families(n: int, dtype: torch.dtype) -> dict[str, Family]:
    """The families of ``(count, n, n)`` Gram matrices worth testing in ``dtype``."""
    eye = torch.eye(n, dtype=torch.float64)

    def of_rows(make: Callable[[int, torch.Generator], Tensor]) -> Family:
        def family(count: int, dtype: torch.dtype, seed: int) -> Tensor:
            rows = make(count, _generator(seed))
            rows = rows / rows.norm(dim=-1, keepdim=True)
            gram = (rows @ rows.mT).to(dtype)
            gram = torch.tril(gram, -1)
            return gram + gram.mT + eye.to(dtype)

        return family

    def around(centres: int, spread: float) -> Family:
        def make(count: int, generator: torch.Generator) -> Tensor:
            middle = torch.randn(count, centres, 2 * n, dtype=torch.float64, generator=generator)
            member = middle[:, torch.arange(n) % centres]
            return member + spread * torch.randn(count, n, 2 * n, dtype=torch.float64, generator=generator)

        return of_rows(make)

    def constant(matrix: Tensor) -> Family:
        def family(count: int, dtype: torch.dtype, seed: int) -> Tensor:
            return matrix.expand(1, n, n).to(dtype)

        return family

    def weak(count: int, dtype: torch.dtype, seed: int) -> Tensor:
        rest = torch.tril(1e-6 * _uniform(count, n, n, generator=_generator(seed)), -1)
        return (rest + rest.mT + eye).to(dtype)

    return {
        "random d=N": of_rows(lambda count, g: torch.randn(count, n, n, dtype=torch.float64, generator=g)),
        "random d=64": of_rows(lambda count, g: torch.randn(count, n, 64, dtype=torch.float64, generator=g)),
        "collinear": around(1, 1e-4),
        "two clusters": around(2, 1e-2),
        "weak": weak,
        "identity": constant(eye),
        "simplex": constant((1 + 1 / (n - 1)) * eye - 1 / (n - 1)),
        "ones": constant(torch.ones(n, n, dtype=torch.float64)),
    }


# Singular values, the last with the sign of the determinant; how far apart the best and the next best rotation are is
# the sum of the last two.
ROTATIONS = {
    "apart": (3.0, 2.0, 1.0),
    "reflection": (3.0, 2.0, -1.0),
    "long": (1.0, 1e-2, 1e-3),
    "two equal": (2.0, 2.0, 0.5),
    "three equal": (1.0, 1.0, 1.0),
    "nearly equal": (1.0, 1 - 1e-6, 1 - 2e-6),
    "rank 2": (1.0, 0.3, 0.0),
    "about to jump": (1.0, 0.5, -0.5 + 1e-3),
}
