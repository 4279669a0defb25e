"""The 3x3 eigenvalues against LAPACK, in both types: values alone, and with their gradient.

    python -m benchmarks.eigenvalues             # 1e5 matrices, one CPU thread; under a minute
    python -m benchmarks.eigenvalues --fused     # also the h-cubic under torch.compile, which takes 20 s to compile

Our targets are 50 times the speed of `torch.linalg.eigh` with its backward for Gram matrices, and 8 times that of
`torch.linalg.eigvalsh` for general ones. The figures are CPU time per matrix; accuracy is measured by
`benchmarks.accuracy`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import cli, driver
from benchmarks.environment import describe_environment
from benchmarks.losses import table
from multicontrast import linalg
from multicontrast.similarity import Eigenvalue

LAPACK = "torch.linalg"


@dataclass(frozen=True)
class Case:
    """Equivalent steps, ours first, LAPACK's last."""

    name: str
    steps: Mapping[str, driver.Step]
    faster_by: float


def gradient(function: Callable[[Tensor], Tensor], leaf: Tensor, cotangent: Tensor) -> driver.Step:
    """Forward and backward."""
    return lambda: torch.autograd.grad(function(leaf), leaf, cotangent)


def cases(count: int, dtype: torch.dtype, seed: int, fused: bool = False) -> list[Case]:
    """Gram matrices of random unit vectors in 64 dimensions, and random symmetric matrices."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(count, 3, 64, dtype=dtype, generator=generator), dim=-1)
    gram = (rows @ rows.mT).requires_grad_()
    cosines = tuple(gram[:, i, j].detach().clone().requires_grad_() for i, j in ((0, 1), (0, 2), (1, 2)))
    general = torch.randn(count, 3, 3, dtype=dtype, generator=generator)
    general = ((general + general.mT) / 2).requires_grad_()
    fixed, one = general.detach(), torch.ones(count, dtype=dtype)
    three = torch.randn(count, 3, dtype=dtype, generator=generator)
    detached = [cosine.detach() for cosine in cosines]
    ours: dict[str, driver.Step] = {
        "gram3_eigmax": lambda: torch.autograd.grad(linalg.gram3_eigmax(*cosines), cosines, one)
    }
    if fused:
        # Without this option shared subexpressions are inlined repeatedly, which takes minutes.
        program = torch.compile(
            lambda *args: Eigenvalue().with_gradient(args), dynamic=True, options={"realize_opcount_threshold": 4}
        )
        ours["torch.compile, value and gradient"] = lambda: torch.no_grad()(program)(*detached)
    return [
        Case(
            "Gram 3x3, largest eigenvalue and gradient",
            {**ours, LAPACK: gradient(lambda m: torch.linalg.eigh(m).eigenvalues[:, -1], gram, one)},
            faster_by=50,
        ),
        Case(
            "symmetric 3x3, all eigenvalues",
            {"eigvalsh3": lambda: linalg.eigvalsh3(fixed), LAPACK: lambda: torch.linalg.eigvalsh(fixed)},
            faster_by=8,
        ),
        Case(
            "symmetric 3x3, all eigenvalues and gradient",
            {
                "eigvalsh3": gradient(linalg.eigvalsh3, general, three),
                LAPACK: gradient(torch.linalg.eigvalsh, general, three),
            },
            faster_by=8,
        ),
        Case(
            "symmetric 3x3, eigenvalues and eigenvectors",
            {"eigh3": lambda: linalg.eigh3(fixed), LAPACK: lambda: torch.linalg.eigh(fixed)},
            faster_by=1,
        ),
    ]


def measure(case: Case, device: torch.device, rounds: int, seed: int) -> dict[str, driver.Samples]:
    """Interleaved rounds of one case."""
    return driver.measure(case.steps, device, rounds=rounds, seed=seed, min_seconds=0.02, report=cli.progress)


def main(arguments: list[str] | None = None) -> int:
    """Time, print, record the rows."""
    parser = cli.parser("eigenvalues", __doc__ or "")
    parser.add_argument("--count", type=int, default=100_000, help="how many matrices")
    parser.add_argument("--fused", action="store_true", help="also through torch.compile")
    parser.add_argument("--strict", action="store_true", help="fail if a target is missed")
    options: argparse.Namespace = parser.parse_args(arguments)
    device = cli.device(options)
    environment = describe_environment(device, driver.clock_name(device))
    print(environment.header())
    rows: list[driver.Row] = []
    missed: list[str] = []
    for dtype in (torch.float32, torch.float64):
        name = str(dtype).removeprefix("torch.")
        for case in cases(options.count, dtype, options.seed, options.fused):
            samples = measure(case, device, options.rounds or 9, options.seed)
            where = {"benchmark": "eigenvalues", "case": case.name, "shape": f"n={options.count}", "dtype": name}
            new = [driver.make_row(samples[key], environment, implementation=key, **where) for key in case.steps]
            print(f"\n{case.name}, {name}\n{table(new)}")
            for key in list(case.steps)[:-1]:
                ratio = driver.median_ratio(samples[LAPACK], samples[key])
                if ratio is None:
                    continue
                print(f"{key} is {ratio:.1f} times as fast as {LAPACK} (bar: {case.faster_by:g})")
                if ratio < case.faster_by:
                    missed.append(f"{case.name}, {name}, {key}: {ratio:.1f} times, held to {case.faster_by:g}")
            rows += new
    return cli.finish(options, rows, failed=missed if options.strict else ())


if __name__ == "__main__":
    sys.exit(main())
