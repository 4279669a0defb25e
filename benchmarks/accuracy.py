"""The errors of eigenvalues and their gradients: ours, LAPACK's, and those of the textbook's arc-cosine formula.

    python -m benchmarks.accuracy --record   # about two minutes; rewrites docs/math/eigenvalue-accuracy.md
    python -m benchmarks.accuracy --count 20 --page /tmp/page.md --csv /tmp/rows.csv

A row is the largest error of ``--count`` cases of one family of ``tests/families.py``, in eps of the type, against the
eigendecomposition of the same numbers in 50 digits. ``--record`` adds rows to
``benchmarks/results/accuracy/eigenvalues.csv``; the page shows one run.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import mpmath
import torch
from torch import Tensor

from benchmarks import cli, driver, pictures, records
from benchmarks.environment import describe_environment
from benchmarks.errors import Row
from multicontrast import linalg
from multicontrast.linalg.gram3 import gram3_excess
from tests import eigen_definitions, families

PAGE = Path(__file__).resolve().parents[1] / "docs" / "math" / "eigenvalue-accuracy.md"
ROWS = driver.RESULTS / "accuracy" / "eigenvalues.csv"
GRAM3, SYMMETRIC3, GRAM_N = "gram3_eigmax", "eigh3", "eigmax"
Errors = dict[tuple[str, str], float]  # (implementation, quantity) -> the largest so far


def keep(errors: Errors, implementation: str, quantity: str, value: float, truth: mpmath.mpf, unit: mpmath.mpf) -> None:
    """Keep an error, if it is the largest."""
    error = math.inf if not math.isfinite(value) else float(abs(mpmath.mpf(value) - truth) / unit)
    errors[implementation, quantity] = max(error, errors.get((implementation, quantity), 0.0))


# Alternatives ---------------------------------------------------------------------------------------------------------


def arc_cosine(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The largest eigenvalue minus 1 by the textbook's formula (Smith 1961), with the argument clamped to [-1, 1]."""
    s = a * a + b * b + c * c
    radius = (s / 3).sqrt()
    return 2 * radius * torch.cos(torch.acos((a * b * c / radius**3).clamp(-1, 1)) / 3)


def smith(matrix: Tensor) -> Tensor:
    """All eigenvalues of symmetric 3x3 matrices by the arc-cosine formula, ascending (Smith 1961)."""
    centre = matrix.diagonal(dim1=-2, dim2=-1).mean(-1)
    deviator = matrix - centre[..., None, None] * torch.eye(3, dtype=matrix.dtype)
    radius = (deviator.square().sum((-2, -1)) / 6).sqrt()
    scaled = deviator / radius[..., None, None]
    d = scaled.movedim((-2, -1), (0, 1))
    determinant = (
        d[0, 0] * (d[1, 1] * d[2, 2] - d[1, 2] ** 2)
        - d[0, 1] * (d[0, 1] * d[2, 2] - d[1, 2] * d[0, 2])
        + d[0, 2] * (d[0, 1] * d[1, 2] - d[1, 1] * d[0, 2])
    )
    angle = torch.acos((determinant / 2).clamp(-1, 1)) / 3
    turns = torch.tensor([2 * math.pi / 3, -2 * math.pi / 3, 0.0], dtype=matrix.dtype)
    return (centre[..., None] + 2 * radius[..., None] * torch.cos(angle[..., None] + turns)).sort(-1).values


# Measuring ------------------------------------------------------------------------------------------------------------


def value_and_gradient(
    function: Callable[..., Tensor], cosines: Tensor
) -> tuple[list[float], list[float], list[list[float]]]:
    """Value of each triple, in its type; value minus 1; gradient."""
    leaf = cosines.clone().requires_grad_()
    x = function(*leaf.unbind(-1))
    (gradient,) = torch.autograd.grad(x.sum(), leaf)
    return (1 + x).tolist(), x.tolist(), gradient.tolist()


def lapack_excess(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The largest eigenvalue minus 1 by `torch.linalg.eigvalsh` of the Gram matrix."""
    gram = eigen_definitions.gram(torch.stack([a, b, c], -1)) + torch.eye(3, dtype=a.dtype)
    return torch.linalg.eigvalsh(gram)[..., -1] - 1


def gram3_errors(cosines: Tensor) -> Errors:
    """Errors of the value relative to lambda, of the value minus 1 relative to itself, and of the gradient."""
    eps = torch.finfo(cosines.dtype).eps
    functions = {"ours": gram3_excess, "LAPACK": lapack_excess, "arc cosine": arc_cosine}
    results = {name: value_and_gradient(function, cosines) for name, function in functions.items()}
    errors: Errors = {}
    for i, triple in enumerate(cosines):
        truth, slopes = eigen_definitions.excess_and_gradient(triple)
        for name, (value, x, gradient) in results.items():
            keep(errors, name, "value", value[i], 1 + truth, eps * (1 + truth))
            if truth > 0:
                keep(errors, name, "value - 1", x[i], truth, eps * truth)
            for got, slope in zip(gradient[i], slopes or []):
                keep(errors, name, "gradient", got, slope, mpmath.mpf(eps))
    return errors


def symmetric3_errors(matrices: Tensor) -> Errors:
    """Errors of all values relative to the norm; the deficit of the top vector's Rayleigh quotient; angle times gap."""
    info = torch.finfo(matrices.dtype)
    pairs = {"ours": linalg.eigh3(matrices), "LAPACK": tuple(torch.linalg.eigh(matrices))}
    values = {name: pair[0] for name, pair in pairs.items()} | {"arc cosine": smith(matrices)}
    errors: Errors = {}
    for i, matrix in enumerate(matrices):
        truth, basis = eigen_definitions.eigh(matrix)
        norm = max(abs(t) for t in truth)
        unit = max(info.eps * norm, mpmath.mpf(info.smallest_normal * info.eps))
        for name, value in values.items():
            for got, t in zip(value[i].tolist(), truth):
                keep(errors, name, "values", got, t, unit)
        if norm * info.eps < info.smallest_normal * info.eps:
            continue
        for name, (_, vectors) in pairs.items():
            vector = mpmath.matrix(vectors[i, :, 2].tolist())
            weights = [(basis[:, j].T * vector)[0] / mpmath.norm(vector) for j in range(3)]
            rayleigh = sum(t * w**2 for t, w in zip(truth, weights))
            keep(errors, name, "deficit", 0.0, truth[2] - rayleigh, unit)
            across = mpmath.sqrt(weights[0] ** 2 + weights[1] ** 2)
            keep(errors, name, "angle x gap", 0.0, across * (truth[2] - truth[1]), unit)
    return errors


def gram_n_errors(grams: Tensor) -> Errors:
    """Errors of the largest value relative to itself; the deficit of the subgradient's Rayleigh quotient."""
    eps = torch.finfo(grams.dtype).eps
    errors: Errors = {}
    for name, function in (("ours", linalg.eigmax), ("LAPACK", lambda m: torch.linalg.eigvalsh(m)[..., -1])):
        leaf = grams.clone().requires_grad_()
        value = function(leaf)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        for i, gram in enumerate(grams):
            truth, _ = eigen_definitions.eigh(gram)
            keep(errors, name, "value", value[i].item(), truth[-1], eps * truth[-1])
            n = len(gram)
            rayleigh = sum(
                mpmath.mpf(gradient[i, j, k].item()) * mpmath.mpf(gram[j, k].item()) for j in range(n) for k in range(n)
            )
            trace = sum(mpmath.mpf(gradient[i, j, j].item()) for j in range(n))
            keep(errors, name, "deficit", 0.0, truth[-1] - rayleigh / trace, eps * truth[-1])
    return errors


def all_errors(count: int, seed: int) -> Iterator[tuple[str, str, torch.dtype, int, Errors]]:
    """``(operation, family, dtype, cases, errors)`` for every operation, family and type."""
    for dtype in (torch.float32, torch.float64):
        for name, family in families.cosine_families(dtype).items():
            cosines = family(count, dtype, seed)
            yield GRAM3, name, dtype, len(cosines), gram3_errors(cosines)
        for name, family in families.symmetric3_families(dtype).items():
            matrices = family(count, dtype, seed)
            yield SYMMETRIC3, name, dtype, len(matrices), symmetric3_errors(matrices)
        for n in (4, 5, 6, 8):
            for name, family in families.gram_families(n, dtype).items():
                grams = family(max(count // 10, 2), dtype, seed)
                yield GRAM_N, f"N = {n}, {name}", dtype, len(grams), gram_n_errors(grams)


def measure(count: int, seed: int, report: Callable[[str], object] = str) -> list[Row]:
    """One run: every operation, family and type."""
    environment = describe_environment(torch.device("cpu"), "")
    rows = []
    for operation, family, dtype, cases, errors in all_errors(count, seed):
        name = str(dtype).removeprefix("torch.")
        report(f"{operation}, {family}, {name}")
        for (implementation, quantity), error in errors.items():
            rows.append(
                Row(
                    operation=operation, family=family, dtype=name, implementation=implementation, quantity=quantity,
                    error=float(f"{error:.3g}"), count=cases, torch=environment.torch, commit=environment.commit,
                    date=environment.date,
                )
            )  # fmt: skip
    return rows


# Writing --------------------------------------------------------------------------------------------------------------


def figure(error: float | None) -> str:
    """Two decimals for small errors, a power of ten for large ones."""
    if error is None:
        return ""
    if math.isinf(error):
        return "not finite"
    return f"{error:.2f}" if error < 100 else f"{error:.0e}".replace("e+0", "e").replace("e+", "e")


def table(rows: Sequence[Row], operation: str, dtype: str, columns: Sequence[tuple[str, str]]) -> str:
    """Markdown: a line for each family, a column for each ``(implementation, quantity)``."""
    chosen = [row for row in rows if row.operation == operation and row.dtype == dtype]
    found = {(row.family, row.implementation, row.quantity): row.error for row in chosen}
    lines = ["| family | " + " | ".join(f"{quantity}: {name}" for name, quantity in columns) + " |"]
    lines.append("| --- |" + " ---: |" * len(columns))
    for family in dict.fromkeys(row.family for row in chosen):
        cells = (figure(found.get((family, name, quantity))) for name, quantity in columns)
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


COLUMNS = {
    GRAM3: [
        (name, quantity) for quantity in ("value", "value - 1", "gradient") for name in ("ours", "LAPACK", "arc cosine")
    ],
    SYMMETRIC3: [
        *((name, "values") for name in ("ours", "LAPACK", "arc cosine")),
        *((name, quantity) for quantity in ("deficit", "angle x gap") for name in ("ours", "LAPACK")),
    ],
    GRAM_N: [(name, quantity) for quantity in ("value", "deficit") for name in ("ours", "LAPACK")],
}

INTRODUCTION = """\
# How accurate the eigenvalues are

<!-- Written by `python -m benchmarks.accuracy`: change that, not this page. -->

The tables have the largest error in {count} cases of each family, in units of eps: 2<sup>-23</sup> = 1.2e-7 in float32
and 2<sup>-52</sup> = 2.2e-16 in float64. Errors are against the eigendecomposition of the same numbers in 50 digits.
*LAPACK* is `torch.linalg.eigvalsh` or `eigh` in the same type, with PyTorch's gradient; *arc cosine* is the textbook's
closed form (Smith, *Communications of the ACM* 4, 1961) with its gradient by autograd. PyTorch {torch}, {date}.

![Largest errors of the largest eigenvalue of three cosines and of its gradient, float32](../_static/math/families.svg)

The picture shows the first table. These errors are observed maxima, not proofs; the derivations are on the pages of
[three cosines](h-cubic.md) and [symmetric matrices](symmetric-eigenproblems.md), which also show how the errors grow
near a tie. The tests require ours to be within 1 (value), 1.5 (value − 1), 3 (gradient, general 3x3) and 4 (N x N).
"""

SECTIONS = {
    GRAM3: """\
## Gram 3x3: `gram3_eigmax`

*value* is relative to the eigenvalue. *value - 1* is relative to itself, which matters for small cosines. *gradient* is
the largest component's absolute error; LAPACK's grows as one over the distance of the two largest eigenvalues, and ours
does not. At exact ties of the two largest there is no gradient to compare; ours is the subgradient of least norm.

The families are *random d*, three random unit vectors in d dimensions; *uniform*, three numbers in [-1, 1]; *collinear
x*, cosines within x of 1, up to the signs of the vectors, as after training; *double top x*, magnitudes equal up to x
with a negative product, so that the two largest eigenvalues nearly coincide; *two equal*, the same with two magnitudes
exactly equal; *scales*, cosines from 1e-30 (1e-200 in float64) to 1; *zeros*, one or two cosines are 0; *exact ties*.
""",
    SYMMETRIC3: """\
## General 3x3: `eigvalsh3`, `eigh3`

*values* is the largest error of the three, relative to the norm. *deficit* is how far the Rayleigh quotient of the
top vector is below the eigenvalue: above 1 or 2 the vector is not a top eigenvector. *angle x gap* is the angle to the
true vector times the distance to the next eigenvalue; no algorithm can bound more than this product.

*top gap x* and *bottom gap x* have two eigenvalues within x; *triple* is a multiple of the identity plus a small rest;
*exact multiples* are matrices of small integers with equal eigenvalues; *large*, *small* and *largest* are random ones
times 1e30, 1e-30 and 2e37 (1e300, 1e-300 and 1e307 in float64), *denormal* times 1e-41 (1e-320).
""",
    GRAM_N: """\
## N = 4 to 8: `eigmax`

*value* and *deficit* (of the subgradient) are relative to the eigenvalue. These families have a tenth of the cases.

*collinear* rows are within 1e-4 of each other; *two clusters* are rows around two centres; *weak* has cosines of 1e-6;
*simplex* has all cosines -1/(N - 1), where all eigenvalues but one are equal.
""",
}


SOURCES = """\
## Sources

- O. K. Smith, Eigenvalues of a symmetric 3×3 matrix, *Communications of the ACM* 4 (1961), 168. The arc cosine.
- J. Kopp, Efficient numerical diagonalization of hermitian 3×3 matrices, *Int. J. Mod. Phys. C* 19 (2008), 523;
  [arXiv physics/0610206](https://arxiv.org/abs/physics/0610206). Where closed forms lose digits.
- E. Anderson et al., *LAPACK Users' Guide*, third edition, 1999, chapter 4. The bound on *angle x gap*.
- F. Johansson and others, *mpmath*, [mpmath.org](https://mpmath.org/). Arithmetic in 50 digits.
"""


def page(rows: Sequence[Row]) -> str:
    """The documentation page of one run."""
    count = statistics.mode(row.count for row in rows)
    parts = [INTRODUCTION.format(count=count, torch=rows[0].torch, date=rows[0].date[:10])]
    for operation, text in SECTIONS.items():
        parts.append(text)
        for dtype in dict.fromkeys(row.dtype for row in rows):
            parts += [f"### {operation}, {dtype}\n", table(rows, operation, dtype, COLUMNS[operation]) + "\n"]
    return "\n".join([*parts, SOURCES])


def read(path: Path) -> list[Row]:
    """The rows of the latest run on file."""
    convert = {column.name: {"float": float, "int": int}.get(str(column.type), str) for column in fields(Row)}
    return [Row(**{name: convert[name](text) for name, text in record.items()}) for record in records.latest(path)]


def main(arguments: list[str] | None = None) -> int:
    """Measure, record the rows, write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--count", type=int, default=200, help="cases of each family")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--csv", type=Path)
    cli.add_record(parser)
    options = parser.parse_args(arguments)
    csv_path, page_path = (
        options.csv or cli.place(ROWS, options.record),
        options.page or cli.place(PAGE, options.record),
    )
    torch.set_num_threads(1)
    rows = measure(options.count, options.seed, lambda text: print(text, file=sys.stderr))
    records.append(csv_path, rows)
    page_path.parent.mkdir(parents=True, exist_ok=True)
    page_path.write_text(page(rows))
    if options.record:
        pictures.save(pictures.families(rows), rows, pictures.FOLDER / pictures.FAMILIES)
    print(f"{len(rows)} rows added to {csv_path}; page written to {page_path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
