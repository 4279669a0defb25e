"""The small eigenproblems and the similarities against code without this library.

    python -m benchmarks.kernels                      # 1e5 matrices, one CPU thread; a minute or two
    python -m benchmarks.kernels --device cuda        # with MULTICONTRAST_BACKEND=triton and =torch in turn

Value and gradient (forward + backward, a random cotangent) in float32. The alternatives are LAPACK (or cuSOLVER)
through `torch.linalg`, the textbook's arc-cosine form, and the determinant and the edge vectors of the papers' own
formulas. Each group is checked against float64 before it is timed.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import multicontrast as mc
from benchmarks import cases, cli, driver, losses
from benchmarks.environment import describe_environment


@dataclass(frozen=True)
class Group:
    """Implementations of one operation, ours first, as functions of the same leaves."""

    case: str
    shape: str
    leaves: tuple[Tensor, ...]
    contenders: Mapping[str, Callable[..., Tensor]]
    faster_by: float | None = None  # the target for our speed relative to the second
    value_tolerance: float = 1e-5
    gradient_tolerance: float = 1e-3  # of the norm; single cells with nearly double eigenvalues err by more


def gram_matrix(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``[[1, a, b], [a, 1, c], [b, c, 1]]``."""
    one = torch.ones_like(a)
    return torch.stack((one, a, b, a, one, c, b, c, one), dim=-1).unflatten(-1, (3, 3))


def arccosine_form(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The textbook's largest root of the cubic: half the digits at double roots, no gradient where a = b = c."""
    mean = ((a * a + b * b + c * c) / 3).sqrt()
    angle = torch.acos((a * b * c / mean**3).clamp(-1 + 1e-7, 1 - 1e-7))
    return 1 + 2 * mean * torch.cos(angle / 3)


def symmetric(count: int, size: int, device: torch.device, generator: torch.Generator) -> Tensor:
    """Random symmetric matrices, leaves."""
    matrix = torch.randn(count, size, size, generator=generator)
    return ((matrix + matrix.mT) / 2).to(device).requires_grad_()


def groups(count: int, batch: int, dim: int, device: torch.device, seed: int) -> list[Group]:
    """All groups."""
    generator = torch.Generator().manual_seed(seed)
    cosines = tuple((torch.rand(count, generator=generator) * 1.2 - 0.4).to(device).requires_grad_() for _ in range(3))
    matrices = (symmetric(count, 3, device, generator),)
    found = [
        Group(
            "Gram 3x3, largest eigenvalue",
            f"n={count}",
            cosines,
            {
                "gram3_eigmax": mc.linalg.gram3_eigmax,
                "torch.linalg.eigvalsh": lambda a, b, c: torch.linalg.eigvalsh(gram_matrix(a, b, c))[..., -1],
                "arc cosine": arccosine_form,
            },
            faster_by=50,
        )
    ]
    # For `--compare` this also runs in older checkouts, which have fewer operations.
    if hasattr(mc.linalg, "eigvalsh3"):
        rivals = {"eigvalsh3": mc.linalg.eigvalsh3, "torch.linalg.eigvalsh": torch.linalg.eigvalsh}
        found.append(Group("symmetric 3x3, all eigenvalues", f"n={count}", matrices, rivals, faster_by=8))
    if hasattr(mc.linalg, "eigmax"):
        few = max(count // 10, 1)
        rivals = {"eigmax": mc.linalg.eigmax, "torch.linalg.eigvalsh": lambda a: torch.linalg.eigvalsh(a)[..., -1]}
        for size in (2, 4, 8):
            leaves = (symmetric(few, size, device, generator),)
            found.append(Group(f"symmetric {size}x{size}, largest eigenvalue", f"n={few}", leaves, rivals))
    return found + similarity_groups(batch, dim, device, seed)


def similarity_groups(batch: int, dim: int, device: torch.device, seed: int) -> list[Group]:
    """GRAM's and TRIANGLE's losses over tied negatives, and their published formulas."""
    inputs = cases.make_inputs(batch, dim, torch.float32, device, seed)
    rivals = {"volume": ("torch.linalg.det", cases.direct_determinant), "area": ("edge vectors", cases.direct_area)}

    def ours(name: str) -> Callable[..., Tensor]:
        return lambda x, y, z, tau: mc.triplet_infonce(x, y, z, tau, similarity=name, negatives="tied", normalize=False)

    def theirs(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, y, z, tau: formula((x, y, z), tau)

    return [
        Group(
            f"loss, {name} over tied negatives",
            f"B={batch} D={dim}",
            inputs.leaves,
            {"triplet_infonce": ours(name), rival: theirs(formula)},
        )
        for name, (rival, formula) in rivals.items()
    ]


def check(group: Group, seed: int) -> float:
    """Values and gradients of all contenders, in the run's type, against the second contender in float64."""
    names = list(group.contenders)
    exact = tuple(leaf.detach().double().requires_grad_() for leaf in group.leaves)
    wanted = value_and_gradients(group.contenders[names[1]], exact, seed)
    worst = 0.0
    for name in names:
        got = value_and_gradients(group.contenders[name], group.leaves, seed)
        off, *gradients_off = ((a - b).norm().item() / b.norm().item() for a, b in zip(got, wanted))
        if not (off <= group.value_tolerance and max(gradients_off) <= group.gradient_tolerance):  # catches NaN too
            raise driver.BenchmarkError(
                f"`{name}` ({group.case}) must agree with `{names[1]}` in float64 to {group.value_tolerance:.0e} "
                f"(gradients {group.gradient_tolerance:.0e}); it is off by {off:.1e} ({max(gradients_off):.1e}). "
                "Nothing was timed: a wrong answer has no speed."
            )
        worst = max(worst, off, *gradients_off)
    return worst


def value_and_gradients(function: Callable[..., Tensor], leaves: Sequence[Tensor], seed: int) -> list[Tensor]:
    """The value and, for a fixed random cotangent, each gradient; all in float64."""
    value = function(*leaves)
    generator = torch.Generator().manual_seed(seed)
    cotangent = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
    gradients = torch.autograd.grad(value, leaves, cotangent)
    return [value.detach().double(), *(symmetric_part(g, leaf) for g, leaf in zip(gradients, leaves))]


def symmetric_part(gradient: Tensor, leaf: Tensor) -> Tensor:
    """The part of a gradient that acts on symmetric perturbations; for unit rows, the part that acts on rotations."""
    if leaf.dim() == 3:
        return (gradient + gradient.mT).double() / 2
    return cases.tangential(gradient.double(), leaf.detach().double())


def step_of(function: Callable[..., Tensor], leaves: Sequence[Tensor], seed: int) -> driver.Step:
    """Forward and backward with a fixed random cotangent."""
    shape = function(*leaves).shape
    cotangent = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(leaves[0].device)

    def step() -> None:
        torch.autograd.grad(function(*leaves), leaves, cotangent)

    return step


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = cli.parser("kernels", __doc__ or "")
    parser.add_argument("--count", type=int, nargs="+", default=[100_000], help="how many matrices")
    parser.add_argument("--batch", type=int, default=180)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--strict", action="store_true", help="fail if a target is missed")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Check, time, print and record one group after another."""
    options = parse(arguments)
    device = cli.device(options)
    environment = describe_environment(device, driver.clock_name(device))
    print(environment.header())
    rows: list[driver.Row] = []
    missed: list[str] = []
    try:
        for number, count in enumerate(options.count):
            every = groups(count, options.batch, options.dim, device, options.seed)
            for group in every if number == 0 else [group for group in every if group.shape.startswith("n=")]:
                print(f"\n{group.case}, {group.shape}, forward + backward; checked: {check(group, options.seed):.0e}")
                steps = {name: step_of(call, group.leaves, options.seed) for name, call in group.contenders.items()}
                samples = driver.measure(
                    steps, device, rounds=options.rounds or 9, seed=options.seed, min_seconds=0.02, report=cli.progress
                )
                where = {"benchmark": "kernels", "case": group.case, "shape": group.shape, "dtype": "float32"}
                new = [driver.make_row(samples[name], environment, implementation=name, **where) for name in steps]
                print(losses.table(new))
                missed += held_to(group, samples)
                rows += new
        return cli.finish(options, rows, failed=missed if options.strict else ())
    except driver.BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def held_to(group: Group, samples: Mapping[str, driver.Samples]) -> list[str]:
    """Print how much faster ours is than the second contender; returns the missed targets."""
    ours, rival = list(group.contenders)[:2]
    ratio = driver.median_ratio(samples[rival], samples[ours])
    if ratio is None or math.isnan(ratio):
        return []
    bar = "" if group.faster_by is None else f" (bar: {group.faster_by:g})"
    print(f"{ours} is {ratio:.1f} times as fast as {rival}{bar}")
    if group.faster_by is not None and ratio < group.faster_by:
        return [f"{group.case}: {ratio:.1f} times as fast as {rival}, held to {group.faster_by:g}"]
    return []


if __name__ == "__main__":
    sys.exit(main())
