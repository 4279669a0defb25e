"""Ratios of the losses on a CPU: to their own matmuls, to other losses, and to the paper's algorithm.

    python -m benchmarks.losses                            # B = 180, 512, 1024, 2048; D = 1024; four minutes
    python -m benchmarks.losses --batch 180 --compiled     # also under torch.compile, for some minutes
    python -m benchmarks.losses --batch 180 --dim 64 256 1024 --plot scaling.png
    python -m benchmarks.losses --large                    # pairs of 65,536 samples in tiles, once; three minutes
    python -m benchmarks.losses --few                      # two samples: the overhead of a call; ten seconds
    python -m benchmarks.losses --compare benchmarks/results/losses.csv --fail-above 1.15

Forward and backward in float32, with unit rows and ``normalize=False``, the same given tuples on both sides and a
learnable temperature. A ratio is between medians of one interleaved run, and is printed with its target. Every
contender is first compared with a definition; if one disagrees, nothing is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import multicontrast as mc
from benchmarks import cases, cli, driver
from benchmarks.environment import describe_environment
from multicontrast.linalg._gram3_torch import eigmax_with_gradient
from multicontrast.losses.candidates import SCHEMES, Draw
from multicontrast.similarity import Eigenvalue

THREE_PAIRS, THREE_CLIP = "three pairs", "three CLIP losses, two matmuls each"
PAIRWISE, MATMULS = "pairwise", "three matmuls of one pair"
TRIMODAL, NORMALISING = "trimodal", "trimodal, normalising"
TRIPLET, ALGORITHM2, LAPACK = "triplet", "Algorithm 2, eigvalsh", "gathered cosines, LAPACK"
EXACT, DRAW = "triplet, exact", "draw the tuples"
TILED = "pairwise, in tiles"
REFERENCE, EXACT_MEAN = "trimodal, by the reference", "triplet, exact, mean cosine"
TRIMODAL_COMPILED, EXACT_COMPILED = "trimodal, compiled", "triplet, exact, compiled"
CHEAP_SCHEMES = ("shared", "cyclic")
TRIMODAL_OUT, EXACT_OUT = "trimodal, cyclic, eigenvalue out of place", "triplet, exact, eigenvalue out of place"
_LAPACK_UP_TO = 1024  # samples
CALL_PAIR, CALL_TRIMODAL = "pairwise, as called", "trimodal, as called"
CALL_CLIP, CALL_THREE_CLIP = "CLIP loss of raw rows", "three CLIP losses of raw rows"
LARGE, FEW = (65536, 256), (2, 64)
GIVEN, CALLED = "unit rows, tuples given", "raw rows, tuples drawn"


def with_scheme(name: str, scheme: str) -> str:
    """The name of a contender that draws its tuples by another scheme."""
    return f"{name}, {scheme}"


@dataclass(frozen=True)
class Bar:
    """A target: ``numerator / denominator`` must be at most ``limit`` at these batch sizes."""

    numerator: str
    denominator: str
    limit: float
    batches: tuple[int, ...] = ()  # empty: all
    of: str = "time"


BARS = (
    Bar(TRIMODAL, THREE_PAIRS, 1.40),
    *(Bar(with_scheme(TRIMODAL, scheme), THREE_PAIRS, 1.20, (512, 1024, 2048)) for scheme in CHEAP_SCHEMES),
    Bar(TRIMODAL, THREE_CLIP, 0.68),
    *(Bar(with_scheme(TRIMODAL, scheme), THREE_CLIP, 0.60, (512, 1024, 2048)) for scheme in CHEAP_SCHEMES),
    Bar(PAIRWISE, MATMULS, 1.15, (512, 1024, 2048)),
    Bar(NORMALISING, TRIMODAL, 1.05),
    *(Bar(with_scheme(DRAW, scheme), TRIMODAL, 0.02) for scheme in CHEAP_SCHEMES),
    Bar(TRIPLET, ALGORITHM2, 1 / 150, (180,)),
    Bar(TRIPLET, ALGORITHM2, 1 / 50, (180,), "memory"),
    Bar(EXACT, ALGORITHM2, 1 / 20, (180,)),
    Bar(EXACT_COMPILED, ALGORITHM2, 1 / 30, (180,)),
    Bar(TRIPLET, LAPACK, 1.0),
    Bar(CALL_PAIR, CALL_CLIP, 1.30),
    Bar(CALL_TRIMODAL, CALL_THREE_CLIP, 2.00),
)


class OutOfPlace(Eigenvalue):
    """The eigenvalue computed out of place, to show what the in-place form gains."""

    def with_pullback(
        self, cosines: Sequence[Tensor], workspace: object
    ) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
        value, *slopes = eigmax_with_gradient(*torch.broadcast_tensors(*cosines))
        return value, lambda weights: [slope.mul_(weights) for slope in slopes]


# --- contenders -----------------------------------------------------------------------------------------------


def contenders(inputs: cases.Inputs, seed: int, compiled: bool = False) -> dict[str, cases.Loss]:
    """Every timed loss as a call without arguments; with ``compiled`` also under ``torch.compile``."""
    xs, tau, index = inputs.xs, inputs.tau, inputs.index
    x, y, z = xs

    def pairs(loss: Callable[..., Tensor], **options: object) -> Tensor:
        return loss(x, y, tau, **options) + loss(x, z, tau, **options) + loss(y, z, tau, **options)

    def trimodal(**options: object) -> Tensor:
        return mc.trimodal_infonce(x, y, z, tau, **({"normalize": False, "negatives": index} | options))

    def scheme_of(scheme: str) -> cases.Loss:
        return lambda: trimodal(negatives=scheme, generator=torch.Generator().manual_seed(seed))

    def exact(**options: object) -> Tensor:
        return mc.triplet_infonce(x, y, z, tau, negatives="all", normalize=False, **options)

    fused: dict[str, cases.Loss] = {}
    if compiled:
        fused[TRIMODAL_COMPILED] = torch.compile(trimodal)
        fused[EXACT_COMPILED] = torch.compile(exact)
    return fused | {
        THREE_PAIRS: lambda: pairs(mc.pairwise_infonce, normalize=False),
        THREE_CLIP: lambda: pairs(cases.definitions.clip_two_matmul),
        PAIRWISE: lambda: mc.pairwise_infonce(x, y, tau, normalize=False),
        TRIMODAL: trimodal,
        NORMALISING: lambda: trimodal(normalize=True),
        REFERENCE: lambda: trimodal(impl="reference"),
        **{with_scheme(TRIMODAL, scheme): scheme_of(scheme) for scheme in CHEAP_SCHEMES},
        TRIPLET: lambda: mc.triplet_infonce(x, y, z, tau, negatives=index, normalize=False),
        EXACT: exact,
        EXACT_MEAN: lambda: exact(similarity="mean_cosine"),
        EXACT_OUT: lambda: exact(similarity=OutOfPlace()),
        TRIMODAL_OUT: lambda: trimodal(
            negatives="cyclic", generator=torch.Generator().manual_seed(seed), similarity=OutOfPlace()
        ),
        ALGORITHM2: lambda: cases.definitions.algorithm2_triplet(x, y, z, index, tau),
        LAPACK: lambda: cases.lapack_on_gathered_cosines(xs, index, tau),
    }


def steps(inputs: cases.Inputs, seed: int, compiled: bool = False) -> dict[str, driver.Step]:
    """The contenders with their backward passes, and the steps that are not losses."""
    batch = len(inputs.xs[0])
    generator = torch.Generator().manual_seed(seed)
    x, y = (row.detach() for row in inputs.xs[:2])
    cotangent = torch.randn(batch, batch, dtype=x.dtype, device=x.device)

    def draw(scheme: str) -> driver.Step:  # as the losses draw: only the paper's scheme needs an index
        return lambda: SCHEMES[scheme].draw(Draw(batch, 3, None, True, generator, x.device))

    found: dict[str, driver.Step] = {
        name: cases.step_of(loss, inputs.leaves) for name, loss in contenders(inputs, seed, compiled).items()
    }
    found[MATMULS] = lambda: cases.three_matmuls(x, y, cotangent)
    found |= {with_scheme(DRAW, scheme): draw(scheme) for scheme in ("permutation", *CHEAP_SCHEMES)}
    return found


def check(
    inputs: cases.Inputs,
    seed: int,
    value_tolerance: float,
    gradient_tolerance: float,
    *,
    small: bool,
    compiled: bool = False,
) -> float:
    """Compare all contenders with the definitions; at full size only with those that memory and time allow."""
    xs, tau = inputs.xs, inputs.tau
    batch = len(xs[0])
    ours = contenders(inputs, seed, compiled)
    definitions = cases.definitions

    def triplet(index: Tensor) -> cases.Loss:
        if small:
            return lambda: definitions.algorithm2_triplet(*xs, index, tau)
        if batch > _LAPACK_UP_TO:
            return lambda: cases.arccosine_on_gathered_cosines(xs, index, tau)
        return lambda: cases.lapack_on_gathered_cosines(xs, index, tau)

    def four_terms(index: Tensor) -> cases.Loss:
        return lambda: definitions.three_pairs(xs, tau) + triplet(index)()

    def drawn(scheme: str) -> Tensor:
        return mc.sample_tuples(batch, 3, scheme=scheme, generator=torch.Generator().manual_seed(seed))

    groups: list[tuple[cases.Loss, Sequence[str]]] = [
        (lambda: definitions.three_pairs(xs, tau), (THREE_PAIRS, THREE_CLIP)),
        (lambda: definitions.pair_infonce(xs[0], xs[1], tau), (PAIRWISE,)),
        (triplet(inputs.index), (TRIPLET, *((ALGORITHM2, LAPACK) if batch <= _LAPACK_UP_TO else ()))),
        (four_terms(inputs.index), (TRIMODAL, NORMALISING, REFERENCE, *((TRIMODAL_COMPILED,) if compiled else ()))),
        *((four_terms(drawn(scheme).to(tau.device)), (with_scheme(TRIMODAL, scheme),)) for scheme in CHEAP_SCHEMES),
        (four_terms(drawn("cyclic").to(tau.device)), (TRIMODAL_OUT,)),
    ]
    if small:
        exact = (EXACT, EXACT_OUT, EXACT_COMPILED) if compiled else (EXACT, EXACT_OUT)
        groups.append((lambda: definitions.exact_infonce(xs, tau).mean(), exact))
        groups.append((lambda: definitions.exact_infonce(xs, tau, "mean_cosine").mean(), (EXACT_MEAN,)))
    worst = 0.0
    for reference, names in groups:
        losses = {"definition": reference, **{name: ours[name] for name in names if small or name != ALGORITHM2}}
        seen = cases.check_agreement(
            losses, inputs.leaves, value_tolerance=value_tolerance, gradient_tolerance=gradient_tolerance
        )
        worst = max(worst, seen)
    return worst


# --- the run --------------------------------------------------------------------------------------------------


def ratios(samples: dict[str, driver.Samples], batch: int) -> list[dict[str, object]]:
    """The targets for this batch size, with the measured ratios."""
    found = []
    for bar in BARS:
        if (bar.batches and batch not in bar.batches) or bar.numerator not in samples or bar.denominator not in samples:
            continue
        numerator, denominator = samples[bar.numerator], samples[bar.denominator]
        if bar.of == "memory":
            known = numerator.peak_bytes is not None and denominator.peak_bytes
            value = numerator.peak_bytes / denominator.peak_bytes if known else None
        else:
            value = driver.median_ratio(numerator, denominator)
        found.append({**asdict(bar), "batch": batch, "value": value, "met": value is not None and value <= bar.limit})
    return found


def ratio_lines(found: Sequence[dict[str, object]]) -> str:
    """Ratios as a table. A ratio below 1/20 is printed as its inverse."""

    def number(value: object) -> str:
        if not isinstance(value, float):
            return "-"
        return f"1/{1 / value:.0f}" if 0 < value < 0.05 else f"{value:.3f}"

    lines = [f"{'ratio':>8} {'bar':>7}  {'':8}what"]
    for entry in found:
        verdict = "met" if entry["met"] else "no value" if entry["value"] is None else "MISSED"
        what = f"{entry['numerator']} / {entry['denominator']}" + (" (memory)" if entry["of"] == "memory" else "")
        lines.append(f"{number(entry['value']):>8} {number(entry['limit']):>7}  {verdict:8}{what}")
    return "\n".join(lines)


def table(rows: Sequence[driver.Row]) -> str:
    """One line for each row."""
    lines = [f"{'p20 ms':>10}{'p50 ms':>10}{'p80 ms':>10}{'peak MB':>10}  what"]
    for row in rows:
        if row.p50_ms is None:
            lines.append(f"{row.status:>40}  {row.implementation}")
        else:
            peak = "-" if row.peak_mb is None else f"{row.peak_mb:.1f}"
            lines.append(f"{row.p20_ms:>10.3f}{row.p50_ms:>10.3f}{row.p80_ms:>10.3f}{peak:>10}  {row.implementation}")
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = cli.parser("losses", __doc__ or "")
    parser.add_argument("--batch", type=int, nargs="+", default=[180, 512, 1024, 2048])
    parser.add_argument("--dim", type=int, nargs="+", default=[1024])
    parser.add_argument("--literal-up-to", type=int, default=256, metavar="B", help="largest batch for Algorithm 2")
    parser.add_argument("--exact-up-to", type=int, default=256, metavar="B", help="largest batch for all triplets")
    parser.add_argument("--compiled", action="store_true", help="also under torch.compile: needs a C++ compiler")
    parser.add_argument("--large", action="store_true", help="only pairs of 65,536 samples in tiles, one step")
    parser.add_argument("--few", action="store_true", help="only two samples, as users call the losses")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these contenders, for a quick look")
    parser.add_argument("--strict", action="store_true", help="fail if a target is missed")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, device: torch.device, batch: int, dim: int) -> dict[str, driver.Samples]:
    """Check and time one size."""
    compiled = options.compiled
    small = cases.make_inputs(min(batch, 24), min(dim, 48), torch.float64, device, options.seed)
    worst_small = check(small, options.seed, 1e-10, 1e-8, small=True, compiled=compiled)
    inputs = cases.make_inputs(batch, dim, torch.float32, device, options.seed)
    with driver.memory_limit() if device.type == "cpu" else contextlib.nullcontext():
        worst = check(inputs, options.seed, 1e-5, 1e-3, small=False, compiled=compiled)
    print(f"checked: float64 small batch {worst_small:.0e}, float32 full size {worst:.0e} relative", flush=True)
    chosen = steps(inputs, options.seed, compiled)
    limits = (
        (ALGORITHM2, options.literal_up_to),
        (EXACT, options.exact_up_to),
        (EXACT_OUT, options.exact_up_to),
        (EXACT_COMPILED, options.exact_up_to),
        (LAPACK, _LAPACK_UP_TO),
    )
    for name, largest in limits:
        if batch > largest:
            chosen.pop(name, None)
    if options.only:
        chosen = {name: step for name, step in chosen.items() if name in options.only}
    return driver.measure(
        chosen, device, rounds=options.rounds or 7, seed=options.seed, min_seconds=0.02, report=cli.progress
    )


def run_large(options: argparse.Namespace, device: torch.device, batch: int, dim: int) -> dict[str, driver.Samples]:
    """One step of the pairs in tiles, timed while its memory is counted, after a check at a small size."""

    def loss_of(inputs: cases.Inputs, **how: object) -> cases.Loss:
        return lambda: mc.pairwise_infonce(*inputs.xs[:2], inputs.tau, normalize=False, **how)

    small = cases.make_inputs(3000, dim, torch.float32, device, options.seed)  # several tiles
    leaves = (*small.xs[:2], small.tau)
    definition = {"definition": lambda: cases.definitions.pair_infonce(*small.xs[:2], small.tau)}
    ours = {TILED: loss_of(small, tiled=True)}
    worst = cases.check_agreement(definition | ours, leaves, value_tolerance=1e-5, gradient_tolerance=1e-3)
    print(f"checked: float32 at B=3000 {worst:.0e} relative", flush=True)
    inputs = cases.make_inputs(batch, dim, torch.float32, device, options.seed, tuples=False)
    samples = driver.Samples()
    step = cases.step_of(loss_of(inputs, tiled=True), inputs.leaves)

    def timed() -> None:
        samples.seconds.append(driver.time_once(step, device))

    samples.peak_bytes = driver.peak_bytes(timed, device)
    return {TILED: samples}


def run_few(options: argparse.Namespace, device: torch.device, batch: int, dim: int) -> dict[str, driver.Samples]:
    """The losses with their defaults, compared with CLIP losses that normalise their rows."""
    inputs = cases.make_inputs(batch, dim, torch.float32, device, options.seed)
    (x, y, z), tau = inputs.xs, inputs.tau

    def clip(*xs: Tensor) -> Tensor:
        return cases.definitions.clip_two_matmul(*(F.normalize(x, dim=1) for x in xs), tau)

    losses: dict[str, cases.Loss] = {
        CALL_CLIP: lambda: clip(x, y),
        CALL_PAIR: lambda: mc.pairwise_infonce(x, y, tau),
        CALL_THREE_CLIP: lambda: clip(x, y) + clip(x, z) + clip(y, z),
        CALL_TRIMODAL: lambda: mc.trimodal_infonce(x, y, z, tau),
    }
    pair = {name: losses[name] for name in (CALL_CLIP, CALL_PAIR)}
    cases.check_agreement(pair, (x, y, tau), value_tolerance=1e-5, gradient_tolerance=1e-3)
    steps = {name: cases.step_of(loss, inputs.leaves) for name, loss in losses.items()}
    return driver.measure(
        steps, device, rounds=options.rounds or 101, seed=options.seed, min_seconds=0.01, report=cli.progress
    )


def main(arguments: list[str] | None = None) -> int:
    """Check, time, print and record each size."""
    options = parse(arguments)
    device = cli.device(options)
    environment = describe_environment(device, driver.clock_name(device))
    print(environment.header())
    rows: list[driver.Row] = []
    found: list[dict[str, object]] = []
    measure = run_large if options.large else run_few if options.few else run
    sizes = list(itertools.product(options.batch, options.dim))
    if options.large or options.few:
        sizes = [LARGE if options.large else FEW]
    try:
        for dim in dict.fromkeys(dim for _, dim in sizes):
            for batch in dict.fromkeys(batch for batch, _ in sizes):
                print(f"\nB={batch} D={dim}, forward + backward, float32")
                samples = measure(options, device, batch, dim)
                where = {"benchmark": "losses", "case": CALLED if options.few else GIVEN, "dtype": "float32"}
                shape = f"B={batch} D={dim}"
                new = [
                    driver.make_row(sample, environment, implementation=name, shape=shape, **where)
                    for name, sample in samples.items()
                ]
                held = ratios(samples, batch)
                print(f"\n{table(new)}\n\n{ratio_lines(held)}")
                rows += new
                found += [{**entry, "dim": dim} for entry in held]
        if options.plot:
            plot_scaling(rows, options.plot)
        missed = [f"{e['numerator']} / {e['denominator']} at B={e['batch']}" for e in found if not e["met"]]
        return cli.finish(options, rows, failed=missed if options.strict else (), ratios=found)
    except driver.BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def plot_scaling(rows: Sequence[driver.Row], path: object) -> None:
    """Median time over the batch size, one line for each contender, for the first D."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    dim = rows[0].shape.split()[1]
    shown = [row for row in rows if row.p50_ms is not None and row.shape.split()[1] == dim]
    for name in dict.fromkeys(row.implementation for row in shown):
        line = [row for row in shown if row.implementation == name]
        axes.loglog([int(row.shape.split()[0][2:]) for row in line], [row.p50_ms for row in line], "o-", label=name)
    axes.set_xlabel(f"batch size ({dim})")
    axes.set_ylabel("ms, forward + backward")
    axes.legend(fontsize="x-small")
    figure.savefig(path)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
