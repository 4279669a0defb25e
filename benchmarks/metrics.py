"""Accuracy and speed of PA-MPJPE against common alternatives, and the page that shows them.

    python -m benchmarks.metrics                       # times, 1e5 poses; SciPy's loop takes minutes
    python -m benchmarks.metrics --no-loop             # without SciPy's loop
    python -m benchmarks.metrics accuracy              # errors and gradients on hard poses, against 60 digits
    python -m benchmarks.metrics page                  # docs/metrics/accuracy-and-speed.md from the rows on file

Contenders must agree before they are timed. Rounds are interleaved; CPU time is measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import cli, driver, table
from benchmarks.environment import ROOT, describe_environment
from multicontrast.linalg.rotation import proper_rotation
from multicontrast.metrics import pa_mpjpe

OURS, SVD = "pa_mpjpe", "batched torch.linalg.svd"
LOOP, LOOP_SVD = "scipy.spatial.procrustes, in a loop", "scipy.linalg.svd, in a loop"
BARS = ((SVD, "float32", 3.5), (SVD, "float64", 3.5), (LOOP, "float32", 100.0))
"""Our targets for how many times faster pa_mpjpe is, at 1e5 poses. SciPy always computes in float64, but poses usually
come in float32; in float64 the loop is shown without a target."""
PAGE = ROOT / "docs" / "metrics" / "accuracy-and-speed.md"
FIGURE = ROOT / "docs" / "_static" / "metrics-accuracy.svg"
ACCURACY = driver.RESULTS / "metrics-accuracy.json"
JOINTS, NOISE = 17, 0.3


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / f"{name}.py")
    if spec is None or spec.loader is None:
        raise driver.BenchmarkError(f"`tests/{name}.py` is read from a checkout; it is not there.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# --- the contenders -------------------------------------------------------------------------------------------


def by_svd(pred: Tensor, target: Tensor) -> Tensor:
    """The usual code: centre, batched SVD of the covariances, flip the last column, scale, mean distance."""
    x, y = pred - pred.mean(-2, keepdim=True), target - target.mean(-2, keepdim=True)
    u, s, vh = torch.linalg.svd(y.mT @ x)
    sign = torch.ones_like(s)
    sign[..., -1] = torch.linalg.det(u @ vh).sign()
    rotation = (u * sign.unsqueeze(-2)) @ vh
    scale = (s * sign).sum(-1) / x.square().sum((-2, -1))
    return (scale[..., None, None] * x @ rotation.mT - y).norm(dim=-1).mean(-1)


def loop_of_scipy(pred: np.ndarray, target: np.ndarray) -> list[float]:
    """SciPy's own function, pose by pose. Its disparity is standardised and allows reflections."""
    from scipy.spatial import procrustes

    return [procrustes(y, x)[2] for x, y in zip(pred, target)]


def loop_of_svd(pred: np.ndarray, target: np.ndarray) -> list[float]:
    """The usual NumPy code, pose by pose."""
    from scipy import linalg

    errors = []
    for p, t in zip(pred, target):
        x, y = p - p.mean(0), t - t.mean(0)
        u, s, vh = linalg.svd(y.T @ x)
        if np.linalg.det(u @ vh) < 0:
            u[:, -1] *= -1
            s[-1] *= -1
        aligned = s.sum() / (x * x).sum() * x @ (u @ vh).T
        errors.append(np.linalg.norm(aligned - y, axis=1).mean())
    return errors


def contenders(count: int, dtype: torch.dtype, loop: bool, seed: int) -> dict[str, Callable[[], Any]]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(count, JOINTS, 3, generator=generator, dtype=torch.float64).to(dtype)
    pred = target + NOISE * torch.randn(count, JOINTS, 3, generator=generator, dtype=torch.float64).to(dtype)
    made: dict[str, Callable[[], Any]] = {
        OURS: lambda: pa_mpjpe(pred, target, reduction="none"),
        SVD: lambda: by_svd(pred, target),
    }
    few, some = pred[:100].numpy(), target[:100].numpy()
    expected = pa_mpjpe(pred[:100], target[:100], reduction="none").double().numpy()
    tolerance = 100 * torch.finfo(dtype).eps
    np.testing.assert_allclose(made[SVD]()[:100].double().numpy(), expected, rtol=tolerance)
    if loop:
        np.testing.assert_allclose(loop_of_svd(few, some), expected, rtol=tolerance)
        made[LOOP_SVD] = lambda: loop_of_svd(pred.numpy(), target.numpy())
        made[LOOP] = lambda: loop_of_scipy(pred.numpy(), target.numpy())
    return made


def run_times(options: argparse.Namespace) -> int:
    device = cli.device(options)
    environment = describe_environment(device, driver.clock_name(device))
    print(environment.header())
    rows, failed = [], []
    for dtype in (torch.float32, torch.float64):
        for count in options.poses:
            with torch.no_grad():
                made = contenders(count, dtype, options.loop and count >= 10_000, options.seed)
                seconds = 0.0 if count >= 10_000 else 0.1
                found = driver.measure(
                    made, device, rounds=options.rounds or 7, seed=options.seed, memory=False, min_seconds=seconds,
                    report=cli.progress,
                )  # fmt: skip
            name = str(dtype).removeprefix("torch.")
            shape = f"N={count} J={JOINTS}"
            for implementation, samples in found.items():
                rows.append(
                    driver.make_row(
                        samples, environment, benchmark="metrics", case="PA-MPJPE", implementation=implementation,
                        shape=shape, dtype=name,
                    )
                )  # fmt: skip
                faster = driver.median_ratio(samples, found[OURS]) or float("nan")
                print(f"{shape:>14} {name} {implementation:36} {rows[-1].p50_ms:10.2f} ms  {faster:7.2f} x")
                for rival, held, bar in BARS:
                    if (implementation, name) == (rival, held) and count >= 100_000 and faster < bar:
                        failed.append(f"{OURS} is {faster:.2f} x faster than {rival} in {name}; the bar is {bar}")
    return cli.finish(options, rows, failed)


# --- accuracy -------------------------------------------------------------------------------------------------


def run_accuracy(options: argparse.Namespace) -> int:
    """The worst error of some items of each family, in units of eps x size; and gradients that are not finite."""
    definitions, families = _load("pose_definitions"), _load("pose_families")
    device = cli.device(options)
    rows = []
    for dtype in (torch.float32, torch.float64):
        eps = torch.finfo(dtype).eps
        for family in families.FAMILIES:
            cli.progress(f"{family}, {dtype}")
            worst: dict[str, Any] = {
                "ours": 0.0,
                "svd": 0.0,
                "condition": 0.0,
                "ours_bad": 0,
                "svd_bad": 0,
                "raises": 0,
            }
            for pred, target, weight in families.items(family, dtype, count=options.items):
                arrays = definitions.array(pred), definitions.array(target), None if weight is None else weight.tolist()
                truth, size = definitions.pa_mpjpe(*arrays), definitions.extent(arrays[1], arrays[2]) or 1.0
                worst["condition"] = max(worst["condition"], definitions.pa_condition(*arrays))
                for name, function in (("ours", pa_mpjpe), ("svd", by_svd)):
                    if name == "svd" and weight is not None:
                        worst["svd"] = None  # the usual code has no mask
                        continue
                    try:
                        value, finite = _value_and_gradient(function, pred, target, weight)
                    except torch.linalg.LinAlgError:
                        value, finite = float("nan"), False
                        worst["raises"] += 1
                    ok = np.isfinite(value)
                    error = float(abs(definitions.mp.mpf(value) - truth)) / (eps * size) if ok else float("inf")
                    worst[name] = max(worst[name], error)
                    worst[f"{name}_bad"] += not finite
            rows.append({"family": family, "dtype": str(dtype).removeprefix("torch."), "items": options.items, **worst})
    rotation = _rotation_errors(definitions, options.items)
    content = {"environment": asdict(describe_environment(device, "")), "rows": rows, "rotation": rotation}
    cli.progress("")
    for row in rows:
        print(row)
    print(rotation)
    path = options.json or cli.place(ACCURACY, options.record)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    return 0


def _value_and_gradient(
    function: Callable[..., Tensor], pred: Tensor, target: Tensor, weight: Tensor | None
) -> tuple[float, bool]:
    pred = pred.detach().clone().requires_grad_()
    options = {} if weight is None else {"mask": weight}
    value = function(pred, target, **options)
    value.sum().backward()
    return value.item(), bool(pred.grad is not None and pred.grad.isfinite().all())


def _rotation_errors(definitions: ModuleType, count: int) -> list[dict[str, Any]]:
    """Largest error of the rotation alone, in eps x s1 / (s2 + d s3)."""
    mp = definitions.mp
    values = {
        "apart (3, 2, 1)": (3.0, 2.0, 1.0),
        "reflection (3, 2, -1)": (3.0, 2.0, -1.0),
        "two equal (2, 2, 0.5)": (2.0, 2.0, 0.5),
        "three equal": (1.0, 1.0, 1.0),
        "long (1, 0.01, 0.001)": (1.0, 1e-2, 1e-3),
        "rank 2": (1.0, 0.3, 0.0),
        "about to jump (1, 0.5, -0.499)": (1.0, 0.5, -0.499),
    }
    rows = []
    for family, sigma in values.items():
        row: dict[str, Any] = {"family": family}
        for dtype in (torch.float32, torch.float64):
            generator = torch.Generator().manual_seed(0)
            left, right = (
                torch.linalg.qr(torch.randn(8 * count, 3, 3, generator=generator, dtype=torch.float64))[0]
                for _ in range(2)
            )
            left, right = (q * torch.linalg.det(q)[:, None, None] for q in (left, right))
            matrix = (left * torch.tensor(sigma, dtype=torch.float64) @ right.mT).to(dtype)
            u, _, vh = torch.linalg.svd(matrix)
            sign = torch.ones_like(matrix[:, 0])
            sign[:, 2] = torch.linalg.det(u @ vh).sign()
            unit = torch.finfo(dtype).eps * sigma[0] / (sigma[1] + sigma[2])
            for name, found in (("ours", proper_rotation(matrix)), ("svd", (u * sign[:, None]) @ vh)):
                worst = 0.0
                for one, rotation in zip(matrix.double().tolist(), found.double().tolist()):
                    a, _, b = mp.svd_r(mp.matrix(one))
                    flip = mp.diag([1, 1, 1 if mp.det(a) * mp.det(b) > 0 else -1])
                    worst = max(worst, float(max(abs(v) for v in mp.matrix(rotation) - a * flip * b)))
                row[f"{name} {str(dtype).removeprefix('torch.')}"] = worst / unit
        rows.append(row)
    return rows


# --- the page -------------------------------------------------------------------------------------------------

_REGION = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n)(?P<body>.*?)(<!-- end of table -->)", re.DOTALL)


def render(text: str) -> str:
    """The page with its tables regenerated from the rows on file."""
    makers = {"metrics-speed": speed_table, "metrics-accuracy": accuracy_table, "metrics-rotation": rotation_table}
    return _REGION.sub(lambda match: f"{match[1]}\n{makers[match['name']]()}\n{match[4]}", text)


def speed_table() -> str:
    rows = [row for row in driver.read_rows(driver.RESULTS / "metrics.csv") if row.case == "PA-MPJPE"]
    newest = max(row.date for row in rows)
    rows = [row for row in rows if row.date == newest]
    lines = []
    for setting in dict.fromkeys((row.shape, row.dtype) for row in rows):
        group = [row for row in rows if (row.shape, row.dtype) == setting]
        ours = next(row.p50_ms for row in group if row.implementation == OURS) or float("nan")
        for row in group:
            spread = f"{table.three_digits(row.p20_ms or 0)} to {table.three_digits(row.p80_ms or 0)}"
            times = "" if row.implementation == OURS else f"{table.three_digits((row.p50_ms or 0) / ours)} x"
            name = f"**`{OURS}`**" if row.implementation == OURS else row.implementation
            lines.append((", ".join(setting), name, table.three_digits(row.p50_ms or 0), spread, times))
    header = ("poses", "", "ms (median)", "p20 to p80", "`pa_mpjpe` is faster by")
    load = f"; load {rows[0].load} when it began" if rows[0].load is not None else ""
    return f"{table.origin(rows[0])}{load}\n\n{table.markdown(header, lines, text_columns=2)}"


def accuracy_table() -> str:
    rows = json.loads(ACCURACY.read_text())["rows"]
    lines = []
    for family in dict.fromkeys(row["family"] for row in rows):
        single, double = (
            next(r for r in rows if (r["family"], r["dtype"]) == (family, d)) for d in ("float32", "float64")
        )
        cells = [
            "raises" if name == "svd" and row["raises"] else _error(row[name])
            for row in (single, double)
            for name in ("ours", "svd")
        ]
        bad = [f"{row['svd_bad']} of {row['items']}" if row["svd"] is not None else "" for row in (single, double)]
        lines.append((family, _error(double["condition"]), *cells, *bad))
    header = (
        "family", "condition", "ours, float32", "SVD, float32", "ours, float64", "SVD, float64",
        "SVD gradients not finite, float32", "float64",
    )  # fmt: skip
    total = sum(row["ours_bad"] for row in rows)
    items = sum(row["items"] for row in rows)
    note = f"Gradients of `pa_mpjpe` that are not finite: {total} of {items}."
    return f"{table.markdown(header, lines)}\n{note}\n"


def rotation_table() -> str:
    rows = json.loads(ACCURACY.read_text())["rotation"]
    names = ("ours float32", "svd float32", "ours float64", "svd float64")
    lines = [(row["family"], *(_error(row[name]) for name in names)) for row in rows]
    return table.markdown(("singular values", "ours, float32", "SVD, float32", "ours, float64", "SVD, float64"), lines)


def _error(value: float | None) -> str:
    if value is None:
        return ""
    if not np.isfinite(value):
        return "NaN"
    if value < 0.005:
        return "0"
    return f"{value:.2g}" if value < 1000 else f"{value:.1e}"


def draw() -> None:
    """One dot per family and implementation, on a logarithmic axis: the error over the pose's condition."""
    from matplotlib.figure import Figure

    rows = [row for row in json.loads(ACCURACY.read_text())["rows"] if row["dtype"] == "float64"]
    figure = Figure(figsize=(8.5, 6.6), layout="constrained")
    axes = figure.add_subplot()
    floor, ceiling = 1e-2, 1e4
    for place, row in enumerate(rows):
        for name, colour, marker in (("svd", "#D55E00", "s"), ("ours", "#0072B2", "o")):
            if row[name] is None:
                continue
            share = row[name] / (1 + row["condition"])
            shown = ceiling / 2 if not np.isfinite(share) else float(np.clip(share, floor, ceiling / 2))
            axes.plot(shown, place, marker, color=colour, markersize=6 if name == "ours" else 8, alpha=0.9)
            if not np.isfinite(share):
                axes.annotate(
                    "raises" if row["raises"] else "NaN",
                    (shown, place),
                    (7, 0),
                    textcoords="offset points",
                    va="center",
                    color=colour,
                )
    axes.axvline(16, color="#333333", linewidth=1, linestyle="--")
    axes.annotate("the bar", (16, -1), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_xscale("log")
    axes.set_xlim(floor / 1.5, ceiling * 2)
    axes.set_yticks(range(len(rows)), [row["family"] for row in rows])
    axes.set_ylim(len(rows) - 0.3, -1.7)
    axes.set_xlabel("error of PA-MPJPE in float64, over eps x size x (1 + condition)")
    axes.plot([], [], "o", color="#0072B2", label="pa_mpjpe")
    axes.plot([], [], "s", color="#D55E00", label="batched torch.linalg.svd")
    axes.legend(loc="lower right", frameon=False)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, metadata={"Date": None})
    # matplotlib leaves blanks at the end of some lines of an SVG
    FIGURE.write_text("\n".join(line.rstrip() for line in FIGURE.read_text().splitlines()) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = cli.parser("metrics", __doc__ or "")
    parser.add_argument("what", nargs="?", choices=("times", "accuracy", "page"), default="times")
    parser.add_argument("--poses", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--no-loop", dest="loop", action="store_false", help="leave out the loops over poses")
    parser.add_argument("--items", type=int, default=6, help="items of each family, for the accuracy")
    options = parser.parse_args(arguments)
    if options.what == "times":
        return run_times(options)
    if options.what == "accuracy":
        return run_accuracy(options)
    draw()
    PAGE.write_text(render(PAGE.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
