"""Errors by the distance from a tie and by the size of the numbers; sampled denominators; ways to gather.

    python -m benchmarks.curves            # measures, about two minutes, and draws
    python -m benchmarks.curves --draw     # draws the rows on file

`benchmarks.accuracy` measures the hardest families; this measures how errors grow towards them. An error is the
largest of some dozens of cases against the eigendecomposition in 50 digits, in eps of the type. The exact denominator
is `negatives="all"` in float64. Rows are added to ``results/accuracy/curves.csv``; the pictures on the mathematics
pages show the last run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

import multicontrast as mc
from benchmarks import accuracy, cli, driver, pictures, records
from benchmarks.environment import describe_environment
from benchmarks.errors import Point
from tests import families

ROWS = driver.RESULTS / "accuracy" / "curves.csv"
GAP, SIZE, NEGATIVES, BATCH, TURN, SPREAD, RANKS = "gap", "size", "negatives", "batch", "turn", "spread", "ranks"
DENOMINATOR, SIMILARITY, GATHERING = "denominator", "similarity", "gathering"
DRAWS = 24  # of the sampled denominator at each point


# Lines ----------------------------------------------------------------------------------------------------------------


def of_size(size: float) -> families.Family:
    """Cosines of one size, of any sign."""

    def family(count: int, dtype: torch.dtype, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return (size * (2 * torch.rand(count, 3, dtype=torch.float64, generator=generator) - 1)).to(dtype)

    return family


def two_groups(spread: float, n: int = 8) -> families.Family:
    """Gram matrices of two orthogonal groups of vectors, ``spread`` apart in each: the two largest are nearly equal."""

    def family(count: int, dtype: torch.dtype, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        centres = torch.linalg.qr(torch.randn(count, 2 * n, 2, dtype=torch.float64, generator=generator)).Q.mT
        noise = torch.randn(count, n, 2 * n, dtype=torch.float64, generator=generator)
        rows = torch.nn.functional.normalize(centres[:, torch.arange(n) % 2] + spread * noise, dim=-1)
        gram = torch.tril(rows @ rows.mT, -1).to(dtype)
        return gram + gram.mT + torch.eye(n, dtype=dtype)

    return family


@dataclass(frozen=True)
class Line:
    """A family for each value of one number, and the function that measures it."""

    operation: str
    along: str
    family: Callable[[float], families.Family]
    errors: Callable[[Tensor], accuracy.Errors]
    share: float  # of the cases, because the reference for 8 x 8 is slow


LINES = (
    Line(accuracy.GRAM3, GAP, families.double_top, accuracy.gram3_errors, 1),
    Line(accuracy.GRAM3, SIZE, of_size, accuracy.gram3_errors, 1),
    Line(accuracy.SYMMETRIC3, GAP, lambda gap: families.close_pair(1, gap), accuracy.symmetric3_errors, 1),
    Line(accuracy.SYMMETRIC3, SIZE, families.full, accuracy.symmetric3_errors, 1),
    Line(accuracy.GRAM_N, GAP, two_groups, accuracy.gram_n_errors, 0.2),
)


def places(line: Line, dtype: torch.dtype) -> list[float]:
    """The points of a line: gaps down to eps, or sizes over the range of float32."""
    float32 = dtype == torch.float32
    if line.along == GAP:
        return [10.0 ** (-k / 2) for k in range(1, 15)] if float32 else [10.0**-k for k in range(1, 16)]
    high = 0 if line.operation == accuracy.GRAM3 else 36  # cosines end at 1
    return [10.0**k for k in range(-36, high + 1, 4)]


def errors_along_lines(count: int, seed: int) -> Iterator[tuple[str, str, float, str, str, str, float, int]]:
    """The largest errors at every place of every line, in both types."""
    for line in LINES:
        for dtype in (torch.float32, torch.float64):
            name = str(dtype).removeprefix("torch.")
            for place in places(line, dtype):
                cases = line.family(place)(max(round(count * line.share), 2), dtype, seed)
                for (implementation, quantity), error in line.errors(cases).items():
                    yield line.operation, line.along, place, name, implementation, quantity, error, len(cases)


# Denominators ---------------------------------------------------------------------------------------------------------


def views(batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Three noisy views of the same samples, as in the middle of training."""
    shared = torch.randn(batch, 64, dtype=torch.float64, generator=generator)
    noise = torch.randn(3, batch, 64, dtype=torch.float64, generator=generator)
    return tuple((shared + 1.2 * noise).unbind(0))


def denominators(batch: int, count: int, draws: int, seed: int, tau: float = 0.2) -> dict[tuple[str, str], float]:
    """Loss and direction of the gradient: exact, sampled, and sampled with the factor (B^2 - 1) / K."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = views(batch, generator)

    def step(weight: float = 1.0, **options: object) -> tuple[float, Tensor]:
        anchor = embeddings[0].clone().requires_grad_()
        losses = mc.triplet_infonce(anchor, *embeddings[1:], tau, reduction="none", **options)  # type: ignore[arg-type]
        loss = torch.log1p(weight * torch.expm1(losses)).mean()  # exp(loss) - 1 is the sum over the negatives
        (gradient,) = torch.autograd.grad(loss, anchor)
        return loss.item(), gradient.flatten()

    exact, direction = step(negatives="all")
    found = {("exact", "loss"): exact}
    for name, weight in (("sampled", 1.0), ("scaled", (batch**2 - 1) / count)):
        steps = [step(weight, negatives="permutation", num_negatives=count, generator=generator) for _ in range(draws)]
        values = torch.tensor([value for value, _ in steps], dtype=torch.float64)
        agreements = [torch.cosine_similarity(gradient, direction, dim=0).item() for _, gradient in steps]
        found[name, "loss"] = values.mean().item()
        found[name, "spread"] = values.std().item()
        found[name, "gradient"] = sum(agreements) / draws
    return found


def losses_along_lines(draws: int, seed: int) -> Iterator[tuple[str, str, float, str, str, str, float, int]]:
    """The denominators by their number of negatives at one batch, and by the batch with the paper's B - 1 negatives."""
    settings = [(NEGATIVES, count, 64, count) for count in (1, 2, 4, 8, 16, 32, 63, 128, 256, 512, 1024, 2048)]
    settings += [(BATCH, batch, batch, batch - 1) for batch in (8, 16, 32, 64, 128, 256)]
    for along, place, batch, count in settings:
        for (name, quantity), value in denominators(batch, count, draws, seed).items():
            yield DENOMINATOR, along, float(place), "float64", name, quantity, value, draws


# What the eigenvalue sees ---------------------------------------------------------------------------------------------


def similarities(cosines: Tensor) -> dict[str, Tensor]:
    """The eigenvalue, and the mean cosine on its scale: both 3 where all cosines are 1, and 1 where all are 0."""
    return {
        "eigenvalue": mc.linalg.gram3_eigmax(*cosines.unbind(-1)),
        "1 + 2 mean cosine": 1 + 2 * cosines.mean(-1),
    }


def similarities_along_lines(count: int, seed: int) -> Iterator[tuple[str, str, float, str, str, str, float, int]]:
    """The similarities of two aligned embeddings and one that turns; and their difference near a match."""
    for degrees in range(0, 181, 5):
        turned = torch.tensor(float(degrees), dtype=torch.float64).deg2rad().cos()
        for name, value in similarities(torch.stack([torch.ones_like(turned), turned, turned])).items():
            yield SIMILARITY, TURN, float(degrees), "float64", name, "value", value.item(), 1
    for k in range(1, 9):
        spread = 10.0 ** (-k / 2)
        generator = torch.Generator().manual_seed(seed)
        cosines = 1 - spread * torch.rand(count, 3, dtype=torch.float64, generator=generator)
        eigenvalue, mean = similarities(cosines).values()
        yield SIMILARITY, SPREAD, spread, "float64", "eigenvalue", "difference", (eigenvalue - mean).max().item(), count


# Gathering ------------------------------------------------------------------------------------------------------------


def gathered(ranks: int, seed: int, batch: int = 64, tau: float = 0.1) -> dict[str, Tensor]:
    """The gradient w.r.t. the rows of both modalities, averaged over the ranks, for each of three ways to gather."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(batch, 32, dtype=torch.float64, generator=generator)
    noise = torch.randn(2, batch, 32, dtype=torch.float64, generator=generator)
    rows = torch.nn.functional.normalize(shared + noise, dim=-1)
    found = {}
    for name in ("with gradient", "without, all anchors", "without, own anchors"):
        total = torch.zeros_like(rows)
        for own in torch.arange(batch).chunk(ranks):
            leaf = rows.clone().requires_grad_()
            seen = leaf if name == "with gradient" else rows.index_copy(1, own, leaf[:, own])
            anchors = torch.arange(batch) if name == "without, all anchors" else own
            logits = seen[0] @ seen[1].mT / tau
            losses = sum(torch.nn.functional.cross_entropy(z[anchors], anchors) / 2 for z in (logits, logits.mT))
            (gradient,) = torch.autograd.grad(losses, leaf)
            total += gradient / ranks
        found[name] = total
    return found


def gathering_along_ranks(seed: int) -> Iterator[tuple[str, str, float, str, str, str, float, int]]:
    """Length and direction of the averaged gradient relative to that of one process."""
    truth = gathered(1, seed)["with gradient"].flatten()
    for ranks in (1, 2, 4, 8, 16, 32):
        for name, gradient in gathered(ranks, seed).items():
            length = (gradient.norm() / truth.norm()).item()
            angle = torch.cosine_similarity(gradient.flatten(), truth, dim=0).item()
            yield GATHERING, RANKS, float(ranks), "float64", name, "length", length, 1
            yield GATHERING, RANKS, float(ranks), "float64", name, "cosine", angle, 1


# Running --------------------------------------------------------------------------------------------------------------


def measure(count: int, draws: int, seed: int, report: Callable[[str], object] = str) -> list[Point]:
    """All lines."""
    environment = describe_environment(torch.device("cpu"), "")
    points: list[Point] = []
    sweeps = (
        errors_along_lines(count, seed),
        losses_along_lines(draws, seed),
        similarities_along_lines(count, seed),
        gathering_along_ranks(seed),
    )
    for sweep in sweeps:
        for operation, along, at, dtype, implementation, quantity, value, cases in sweep:
            if not points or (points[-1].operation, points[-1].along, points[-1].dtype) != (operation, along, dtype):
                report(f"{operation} along {along}, {dtype}")
            points.append(
                Point(
                    operation=operation, along=along, at=float(f"{at:.4g}"), dtype=dtype, implementation=implementation,
                    quantity=quantity, value=float(f"{value:.4g}"), count=cases, torch=environment.torch,
                    commit=environment.commit, date=environment.date,
                )
            )  # fmt: skip
    return points


def read(path: Path = ROWS) -> list[Point]:
    """The points of the latest run on file."""
    convert = {column.name: {"float": float, "int": int}.get(str(column.type), str) for column in fields(Point)}
    return [Point(**{name: convert[name](text) for name, text in record.items()}) for record in records.latest(path)]


def main(arguments: list[str] | None = None) -> int:
    """Measure, record the rows, draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--count", type=int, default=60, help="cases at each place")
    parser.add_argument("--draws", type=int, default=DRAWS, help="draws of each sampled denominator")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--folder", type=Path, help="folder for the pictures")
    parser.add_argument("--draw", action="store_true", help="measure nothing; draw the rows on file")
    cli.add_record(parser)
    options = parser.parse_args(arguments)
    csv_path = options.csv or cli.place(ROWS, options.record or options.draw)
    folder = options.folder or cli.place(pictures.FOLDER, options.record)
    torch.set_num_threads(1)
    if not options.draw:
        records.append(
            csv_path, measure(options.count, options.draws, options.seed, lambda text: print(text, flush=True))
        )
    for path in pictures.draw_all(read(csv_path), accuracy.read(accuracy.ROWS), folder):
        print(f"{path} drawn")
    return 0


if __name__ == "__main__":
    sys.exit(main())
