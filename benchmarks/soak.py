"""A soak test: thousands of steps of random shapes, types, options and degenerate rows, compared with float64.

    python -m benchmarks.soak --steps 20000

Every step draws a loss, its options and a batch with rows that are zero, equal, opposite, huge, tiny or absent, and
checks that the loss and every gradient are finite, that they equal those of the same call in float64 up to the rounding
of the inputs, that a training temperature stays within its bounds, and that memory does not grow. It stops at the first
step that fails, and prints how to repeat it.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import random
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import multicontrast as mc

SIMILARITIES = ("eigenvalue", "singular_value", "mean_cosine", "volume", "area", "multilinear")
SCHEMES = ("permutation", "shared", "cyclic", "tied", "all")
# The derivative of a square root is unbounded at 0. There a rounding error e of the cosines changes it by sqrt(e).
ROOTS = ("volume", "area")


@dataclass
class Case:
    """One step: a loss, its options and its inputs."""

    seed: int
    name: str
    dtype: torch.dtype
    autocast: bool
    tau: float
    options: dict[str, Any]
    embeddings: list[Tensor] = field(repr=False)  # float64, exact in ``dtype``

    def call(self, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        """The loss, and its gradients w.r.t. the embeddings and tau."""
        xs = [x.to(dtype).requires_grad_() for x in self.embeddings]
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        tau = torch.tensor(self.tau, dtype=torch.float32).to(wide).requires_grad_()
        options = dict(self.options)
        if "weight" in options:
            options["weight"] = options["weight"].to(wide)
        if options.get("negatives") not in (None, "all"):
            options["generator"] = torch.Generator().manual_seed(self.seed)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.autocast and dtype != torch.float64):
            arguments: tuple[Any, ...] = (xs,) if self.name == "multimodal_infonce" else tuple(xs)
            loss = getattr(mc, self.name)(*arguments, tau, **options)
        loss.sum().backward()
        return loss.detach(), [torch.zeros_like(x) if x.grad is None else x.grad for x in (*xs, tau)]


def draw(seed: int) -> Case:
    """The case of a seed."""
    choose = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    name = choose.choice(("pairwise_infonce", "triplet_infonce", "trimodal_infonce", "multimodal_infonce"))
    modalities = {"pairwise_infonce": 2, "multimodal_infonce": choose.choice((2, 3, 4, 5))}.get(name, 3)
    size, dim = choose.choice((1, 2, 3, 5, 8, 13, 24, 40)), choose.choice((1, 2, 3, 8, 17, 64))
    options: dict[str, Any] = {"reduction": choose.choice(("mean", "sum", "none"))}
    if name != "pairwise_infonce":
        options["similarity"] = choose.choice(SIMILARITIES)
        if modalities != 3 and options["similarity"] == "area":
            options["similarity"] = "eigenvalue"
        options["negatives"] = choose.choice(SCHEMES)
        if options["negatives"] == "all":
            if size > 13 or (modalities > 3 and (options["similarity"] != "mean_cosine" or size > 5)):
                options["negatives"] = "tied"
            else:
                options["anchor"] = choose.choice((0, "any"))
    elif choose.random() < 0.3:
        options["symmetric"] = False
    if name == "trimodal_infonce":
        options["alpha"] = choose.choice((0.0, 0.5, 1.0))
    if options.get("negatives") != "all" and choose.random() < 0.2:
        options["tiled"] = True
    dtype = choose.choice((torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16))
    common = torch.randn(size, dim, generator=generator, dtype=torch.float64)
    spread = choose.choice((0.0, 1e-3, 0.3, 1.0, 10.0))
    xs = [common + spread * torch.randn(size, dim, generator=generator, dtype=torch.float64) for _ in range(modalities)]
    if choose.random() < 0.5:
        _spoil(xs, choose, dtype)
    if choose.random() < 0.5:
        _mask(xs, options, choose, generator)
    xs = [x.to(dtype).double() for x in xs]
    tau = math.exp(choose.uniform(math.log(0.02), math.log(2.0)))
    return Case(seed, name, dtype, choose.random() < 0.3, tau, options, xs)


def _spoil(xs: list[Tensor], choose: random.Random, dtype: torch.dtype) -> None:
    """Makes some rows degenerate: zero, equal to another, opposite, far from unit length."""
    largest = 2.0**15 if dtype == torch.float16 else 2.0**100
    least = 2.0**-14 if dtype == torch.float16 else 2.0**-100
    for _ in range(choose.randint(1, 4)):
        x, other = choose.choice(xs), choose.choice(xs)
        i, j = choose.randrange(len(x)), choose.randrange(len(x))
        kind = choose.choice(("zero", "equal", "opposite", "huge", "tiny", "one-hot"))
        if kind == "zero":
            x[i] = 0
        elif kind == "equal":
            x[i] = other[j]
        elif kind == "opposite":
            x[i] = -other[j]
        elif kind == "one-hot":
            x[i] = 0
            x[i, choose.randrange(x.shape[1])] = 1
        else:
            peak = x[i].abs().max()
            x[i] *= (largest if kind == "huge" else least) / (peak if peak > 0 else 1)


def _mask(xs: list[Tensor], options: dict[str, Any], choose: random.Random, generator: torch.Generator) -> None:
    """Draws options that act on logits and averages; absent rows get NaN."""
    size = len(xs[0])
    if choose.random() < 0.5:
        present = torch.rand(size, len(xs), generator=generator) < choose.choice((0.3, 0.8, 1.0))
        options["present"] = present
        for m, x in enumerate(xs):
            x[~present[:, m]] = math.nan
    if choose.random() < 0.4:
        options["ids"] = torch.randint(0, max(1, size // 2), (size,), generator=generator)
    if choose.random() < 0.4:
        weight = torch.rand(size, generator=generator)
        options["weight"] = weight * (torch.rand(size, generator=generator) < 0.8)
    if choose.random() < 0.3:
        options["label_smoothing"] = choose.choice((0.1, 0.5))
    if choose.random() < 0.3:
        options["hardness"] = choose.choice((0.1, 1.0))


# --- Checks -----------------------------------------------------------------------------------------------------------


class Failed(Exception):
    """A step that failed a check."""


def check(case: Case) -> tuple[float, float]:
    """The errors of loss and gradient against float64, as multiples of the allowed rounding; raises :class:`Failed`."""
    loss, grads = case.call(case.dtype)
    for what, value in (("loss", loss), *((f"gradient {place}", grad) for place, grad in enumerate(grads))):
        if not bool(value.isfinite().all()):
            # A gradient w.r.t. a row of length 1e-30 is of the order 1e30, beyond what half precision holds.
            if what != "loss" and case.dtype in (torch.float16, torch.bfloat16, torch.float32) and _overflows(case):
                continue
            raise Failed(f"the {what} of {case} is {value}")
    expected, wanted = case.call(torch.float64)
    eps = torch.finfo(torch.float64 if case.dtype == torch.float64 else torch.float32).eps
    allowed = eps ** (0.5 if case.options.get("similarity") in ROOTS else 1.0)
    modalities = len(case.embeddings)
    scale = (1 + case.options.get("hardness", 0.0)) * modalities / case.tau + math.log(1 + len(case.embeddings[0]))
    size = len(case.embeddings[0]) if case.options["reduction"] == "sum" else 1
    error = (loss.double() - expected).abs().max().item() / (allowed * scale * size * 4)
    if not error < 8:
        raise Failed(f"the loss of {case} is {loss}, in float64 {expected}: {error:.3g} times what rounding explains")
    return error, _gradient_error(case, grads, wanted, allowed, scale, size)


def _gradient_error(
    case: Case, grads: list[Tensor], wanted: list[Tensor], allowed: float, scale: float, size: int
) -> float:
    """The error of the gradients w.r.t. unit rows, where the similarity has a bounded derivative."""
    if (
        case.options.get("similarity", "eigenvalue") not in ("mean_cosine", "multilinear")
        and "negatives" in case.options
    ):
        return 0.0  # the gradient jumps at a double eigenvalue, and has a pole at the root of 0
    worst = 0.0
    for x, got, expected in zip(case.embeddings, grads, wanted):
        lengths = x.nan_to_num().norm(dim=1, keepdim=True)
        if case.dtype in (torch.float16, torch.bfloat16) or bool(((lengths > 2.0**60) | (lengths < 2.0**-60)).any()):
            continue
        difference = ((got.double() - expected) * lengths).abs().max().item()
        worst = max(worst, difference / (allowed * scale * size * 16 / case.tau))
    if not worst < 8:
        raise Failed(f"a gradient of {case} is {worst:.3g} times off what rounding explains")
    return worst


def _overflows(case: Case) -> bool:
    rows = torch.cat([x.nan_to_num().norm(dim=1) for x in case.embeddings])
    return bool(((rows > 0) & (rows < 2.0**-10 / case.tau)).any())


@dataclass
class Report:
    """The results of a soak."""

    steps: int = 0
    seconds: float = 0.0
    loss_error: float = 0.0
    gradient_error: float = 0.0
    resident_mb: list[float] = field(default_factory=list)  # at each tenth of the steps
    live_tensors: list[int] = field(default_factory=list)
    worst: str = ""


def soak(steps: int, first_seed: int = 0, progress: Callable[[Report], None] | None = None) -> Report:
    """Run the steps; raises :class:`Failed` at the first that fails."""
    report = Report()
    temperature = mc.Temperature.preset("unihpe_stage_1")
    optimizer = torch.optim.SGD(temperature.parameters(), lr=0.5)
    start = time.perf_counter()
    for step in range(steps):
        case = draw(first_seed + step)
        error, gradient_error = check(case)
        if error > report.loss_error:
            report.loss_error, report.worst = error, repr(case)
        report.gradient_error = max(report.gradient_error, gradient_error)
        _train(temperature, optimizer, case)
        report.steps += 1
        if (step + 1) % max(1, steps // 10) == 0:
            gc.collect()
            report.resident_mb.append(_resident_mb())
            report.live_tensors.append(sum(1 for thing in gc.get_objects() if type(thing) is Tensor))
            report.seconds = time.perf_counter() - start
            if progress is not None:
                progress(report)
    return report


def _train(temperature: mc.Temperature, optimizer: torch.optim.Optimizer, case: Case) -> None:
    optimizer.zero_grad()
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(case.seed))
    loss = mc.pairwise_infonce(x, x.roll(case.seed % 3, 1), temperature())
    (loss if case.seed % 200 < 100 else -loss).backward()
    optimizer.step()
    tau = temperature.tau.item()
    if not 0.01 <= tau <= 1e4:
        raise Failed(f"the temperature is {tau} after step {case.seed}")


def _resident_mb() -> float:
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="seed of the first step; later steps count up from it")
    chosen = parser.parse_args(arguments)

    def tell(report: Report) -> None:
        print(
            f"{report.steps} steps in {report.seconds:.0f} s: {report.resident_mb[-1]:.0f} MB resident, "
            f"{report.live_tensors[-1]} live tensors, loss within {report.loss_error:.2f} and gradients within "
            f"{report.gradient_error:.2f} of what rounding explains",
            flush=True,
        )

    try:
        report = soak(chosen.steps, chosen.seed, tell)
    except Failed as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report.__dict__))
    return 0


if __name__ == "__main__":
    sys.exit(main())
