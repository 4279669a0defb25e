"""UniHPE's Table 7: the time that the triplet loss adds to one batch of a stage-2 training step.

    python -m benchmarks.timing                  # --preset paper with a CUDA device, --preset cpu without
    python -m benchmarks.timing --loss-only      # from embeddings to their gradients, without the encoder

One step is the image encoder forward and backward, the frozen pose encoders forward, and the losses; drawing the
tuples is part of it, the optimizer is not. Five losses are compared, each on the same embeddings:

    pairs                       L_pair for all three pairs of modalities (`pairwise_infonce`, this library)
    + triplet, SVD              pairs and Algorithm 2 as printed, with singular values of the gathered 3xD matrices
    + triplet, eigenvalue       pairs and Algorithm 2 as printed: gather B x B x 3 x D, multiply, `eigvalsh`
    + triplet, ours             `trimodal_infonce`
    + triplet, ours, exact      `trimodal_infonce(negatives="all")`: all B^2 triplets of each anchor, none sampled

The paper does not say which step its Table 7 times, or whether TF32 was on. We assume a stage-2 step with all three
pairs. The flags here are PyTorch's defaults unless `--tf32` says otherwise, and are in the header. Values and gradients
are checked before anything is timed.

Each row is printed when measured. On a GPU the singular values come from a loop over the matrices, 32,400 for the
paper's batch, so that row has fewer rounds and states their number.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

import multicontrast as mc
from benchmarks import cases, cli, driver
from benchmarks.environment import describe_environment

PAIRS, SVD, EIGENVALUE = "pairs", "+ triplet, SVD", "+ triplet, eigenvalue"
OURS, EXACT = "+ triplet, ours", "+ triplet, ours, exact"
PAPER_SECONDS = {PAIRS: 1.77, SVD: 2.64, EIGENVALUE: 2.01}  # arXiv 2311.16477, Table 7, one A100
PAPER_OVERHEAD = {SVD: 49.1, EIGENVALUE: 13.5}  # per cent, as printed there
BOUNDED = {SVD: 3}  # most rounds on a GPU, because a step may take half a minute
LOSSES_ALONE = "losses of one stage-2 step"
JOINTS = 17

StepLoss = Callable[[tuple[Tensor, Tensor, Tensor], Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One setting of the step."""

    batch: int
    encoder: str  # a HRNet of timm
    height: int
    width: int
    dim: int
    rounds: int


PRESETS = {
    # Section 4.1: B = 180 in stage 2, HRNet-w32, 192x256 (width x height), one A100 80G.
    "paper": Preset(batch=180, encoder="hrnet_w32", height=256, width=192, dim=1024, rounds=20),
    # The paper's batch and embeddings, with a small encoder.
    "cpu": Preset(batch=180, encoder="hrnet_w18_small", height=64, width=64, dim=1024, rounds=4),
}


def losses(generator: torch.Generator | None = None, index: Tensor | None = None) -> dict[str, StepLoss]:
    """The five losses by name. Without ``index`` each draws its own tuples with the library's sampler."""

    def tuples(batch: int, device: torch.device) -> Tensor:
        if index is not None:
            return index
        return mc.sample_tuples(batch, 3, generator=generator, device=device)

    def pairs(xs: tuple[Tensor, Tensor, Tensor], tau: Tensor) -> Tensor:
        return sum((mc.pairwise_infonce(xs[m], xs[n], tau) for m, n in cases.PAIRS), start=torch.zeros_like(tau))

    def literal(xs: tuple[Tensor, Tensor, Tensor], tau: Tensor, decomposition: str) -> Tensor:
        drawn = tuples(len(xs[0]), xs[0].device)
        return pairs(xs, tau) + cases.definitions.algorithm2_triplet(*xs, drawn, tau, decomposition=decomposition)

    return {
        PAIRS: pairs,
        SVD: lambda xs, tau: literal(xs, tau, "svdvals"),
        EIGENVALUE: lambda xs, tau: literal(xs, tau, "eigvalsh"),
        OURS: lambda xs, tau: mc.trimodal_infonce(*xs, tau, negatives=tuples(len(xs[0]), xs[0].device)),
        EXACT: lambda xs, tau: mc.trimodal_infonce(*xs, tau, negatives="all"),
    }


# --- the step -------------------------------------------------------------------------------------------------


def step_with_encoder(preset: Preset, device: torch.device, seed: int) -> Callable[[StepLoss], Callable[[], None]]:
    """A function that builds a stage-2 step around a loss; encoders and batch are made once and shared."""
    from unihpe_ref.models.hrnet import HRNetEncoder
    from unihpe_ref.models.pose_transformer import PoseTransformer

    torch.manual_seed(seed)
    image_encoder = HRNetEncoder(preset.encoder, preset.dim).to(device).train()
    encoder_2d = PoseTransformer(2, JOINTS, preset.dim, box_token=True).to(device).eval().requires_grad_(False)
    encoder_3d = PoseTransformer(3, JOINTS, preset.dim, box_token=False).to(device).eval().requires_grad_(False)
    temperature = mc.Temperature(cases.TAU).to(device)
    trained = [*image_encoder.parameters(), *temperature.parameters()]
    images = torch.randn(preset.batch, 3, preset.height, preset.width, device=device)
    poses_2d = torch.randn(preset.batch, JOINTS, 2, device=device)
    boxes = torch.randn(preset.batch, 3, device=device)
    poses_3d = torch.randn(preset.batch, JOINTS, 3, device=device)

    def build(loss: StepLoss) -> Callable[[], None]:
        def step() -> None:
            with torch.no_grad():
                x_2d, x_3d = encoder_2d(poses_2d, boxes), encoder_3d(poses_3d)
            loss((image_encoder(images), x_2d, x_3d), temperature()).backward()
            for parameter in trained:
                parameter.grad = None

        return step

    return build


def step_without_encoder(preset: Preset, device: torch.device, seed: int) -> Callable[[StepLoss], Callable[[], None]]:
    """A function that builds a step of a loss alone; all three embeddings get a gradient."""
    inputs = cases.make_inputs(preset.batch, preset.dim, torch.float32, device, seed)
    return lambda loss: cases.step_of(lambda: loss(inputs.xs, inputs.tau), inputs.leaves)


def check(preset: Preset, device: torch.device, seed: int) -> str:
    """Checks values and gradients of all rows against float64 definitions (small) and each other (full size)."""
    small = cases.make_inputs(min(preset.batch, 32), min(preset.dim, 64), torch.float64, device, seed)
    worst = _check_on(small, 1e-10, 1e-8, exact=True)
    full = cases.make_inputs(preset.batch, preset.dim, torch.float32, device, seed)
    with driver.memory_limit() if device.type == "cpu" else contextlib.nullcontext():
        worst_full = _check_on(full, 1e-5, 1e-3, exact=False)
    return f"float64 small batch: {worst:.0e}; float32 at B={preset.batch}: {worst_full:.0e} relative"


def _check_on(inputs: cases.Inputs, value_tolerance: float, gradient_tolerance: float, *, exact: bool) -> float:
    xs, tau, definitions = inputs.xs, inputs.tau, cases.definitions
    rows = losses(index=inputs.index)
    tolerances = {"value_tolerance": value_tolerance, "gradient_tolerance": gradient_tolerance}

    def bound(name: str) -> cases.Loss:
        return lambda: rows[name](xs, tau)

    pair_definition = {"definition of the pairs": lambda: definitions.three_pairs(xs, tau)}
    sampled = {name: bound(name) for name in (EIGENVALUE, SVD, OURS)}
    worst = cases.check_agreement(pair_definition | {PAIRS: bound(PAIRS)}, inputs.leaves, **tolerances)
    worst = max(worst, cases.check_agreement(sampled, inputs.leaves, **tolerances))
    if exact:  # only for tiny batches, because the definition lists every triplet
        definition = {
            "definition": lambda: definitions.three_pairs(xs, tau) + definitions.exact_infonce(xs, tau).mean()
        }
        worst = max(worst, cases.check_agreement(definition | {EXACT: bound(EXACT)}, inputs.leaves, **tolerances))
    return worst


# --- the report -----------------------------------------------------------------------------------------------


def beside(row: driver.Row) -> str:
    """The paper's figure for a row, as printed there. The paper timed whole steps, so losses alone have none."""
    if row.case == LOSSES_ALONE or row.implementation not in PAPER_SECONDS:
        return ""
    overhead_there = PAPER_OVERHEAD.get(row.implementation)
    return f"{PAPER_SECONDS[row.implementation]:.2f} s" + (f" (+{overhead_there:.1f} %)" if overhead_there else "")


def table(rows: list[driver.Row]) -> str:
    """The rows beside the paper's Table 7."""
    base = next((row.p50_ms for row in rows if row.implementation == PAIRS), None)
    lines = [f"{'':24}{'p20 s':>9}{'p50 s':>9}{'p80 s':>9}{'peak MB':>10}{'overhead':>11}   paper, A100"]
    for row in rows:
        paper = beside(row) or "-"
        if row.p50_ms is None or row.p20_ms is None or row.p80_ms is None:
            lines.append(f"{row.implementation:24}{row.status:>48}   {paper}")
            continue
        times = "".join(f"{milliseconds / 1e3:>9.4f}" for milliseconds in (row.p20_ms, row.p50_ms, row.p80_ms))
        more = "-" if base is None or row.implementation == PAIRS else overhead(row.p50_ms / base)
        peak = "-" if row.peak_mb is None else f"{row.peak_mb:.1f}"
        lines.append(f"{row.implementation:24}{times}{peak:>10}{more:>11}   {paper}")
    return "\n".join(lines)


def table_line(row: driver.Row) -> str:
    """One row, printed as soon as it is measured."""
    time = row.status if row.p50_ms is None else f"{row.p50_ms / 1e3:.4f} s"
    return f"measured: {row.implementation:24}{time}, {row.rounds} rounds"


def overhead(factor: float) -> str:
    """The overhead of a factor in per cent, as in the paper; from ten times on, the factor itself."""
    return f"{factor:.0f} times" if factor >= 10 else f"{100 * (factor - 1):+.1f} %"


def plot(rows: list[driver.Row], path: Path) -> None:
    """Medians as bars, the 20th to 80th percentile as whiskers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [row for row in rows if row.p50_ms is not None]
    middle = [row.p50_ms / 1e3 for row in shown]
    reach = [[(row.p50_ms - row.p20_ms) / 1e3 for row in shown], [(row.p80_ms - row.p50_ms) / 1e3 for row in shown]]
    figure, axes = pyplot.subplots(figsize=(7, 0.5 * len(shown) + 1.2), layout="constrained")
    axes.barh([row.implementation for row in shown], middle, xerr=reach)
    axes.invert_yaxis()
    axes.set_xlabel("seconds per batch, median and 20th to 80th percentile")
    axes.set_title(f"{shown[0].case}, {shown[0].shape}, {shown[0].device}", fontsize="small")
    figure.savefig(path)
    pyplot.close(figure)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = cli.parser("timing", __doc__ or "")
    parser.add_argument("--preset", choices=sorted(PRESETS), help="default: paper with a CUDA device, cpu without")
    parser.add_argument("--loss-only", action="store_true", help="leave out the encoders")
    parser.add_argument("--batch", type=int, help="instead of the preset's batch")
    parser.add_argument("--dim", type=int, help="instead of the preset's embedding length")
    parser.add_argument("--encoder", help="instead of the preset's HRNet")
    parser.add_argument("--tf32", choices=("default", "on", "off"), default="default", help="for matmul and cudnn")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Check, time, print, record the rows."""
    options = parse(arguments)
    device = cli.device(options)
    name = options.preset or ("paper" if device.type == "cuda" else "cpu")
    changes = {key: getattr(options, key) for key in ("batch", "dim", "encoder", "rounds") if getattr(options, key)}
    preset = replace(PRESETS[name], **changes)
    if options.tf32 != "default":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32 == "on"
    environment = describe_environment(device, driver.clock_name(device))
    inside = "losses alone" if options.loss_only else f"{preset.encoder} {preset.width}x{preset.height}"
    case = LOSSES_ALONE if options.loss_only else f"stage-2 step, {inside}"
    print(f"{environment.header()}\n    step: {inside}, B={preset.batch}, D={preset.dim}, float32\n")

    try:
        print("checked:", check(preset, device, options.seed), flush=True)
        make_step = (step_without_encoder if options.loss_only else step_with_encoder)(preset, device, options.seed)
        generator = torch.Generator().manual_seed(options.seed)
        contenders = {row: make_step(loss) for row, loss in losses(generator).items()}
        shape = f"B={preset.batch} D={preset.dim}"
        where = {"benchmark": "timing", "case": case, "shape": shape, "dtype": "float32"}
        rows: list[driver.Row] = []

        def done(row: str, sample: driver.Samples) -> None:
            rows.append(driver.make_row(sample, environment, implementation=row, **where))
            print(table_line(rows[-1]), flush=True)
            driver.append_csv(cli.csv_of(options), rows[-1:])

        driver.measure(
            contenders,
            device,
            rounds=preset.rounds,
            seed=options.seed,
            warm_up=device.type == "cuda",
            report=cli.progress,
            bounds=BOUNDED if device.type == "cuda" else {},
            done=done,
        )
        rows.sort(key=lambda row: list(contenders).index(row.implementation))
        print(f"\n{table(rows)}\n\nTable 7 of the paper is read as a stage-2 step with all three pairs: our reading.")
        if options.plot:
            plot(rows, options.plot)
        return cli.finish(options, rows, appended=True)
    except driver.BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
