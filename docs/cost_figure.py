"""The picture at the top of the benchmarks, drawn from the rows in ``benchmarks/results/``.

It shows the time of a step, and the error of the gradient near a tie.

    python docs/cost_figure.py
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import driver, pictures, table

OUT = ROOT / "docs" / "_static" / "cost.svg"
OURS, PLAIN, THEIRS = "#0072b2", "#8c959f", "#d55e00"
_STEP = "losses of one stage-2 step"
_COLOURS = {"pairs": PLAIN, "+ triplet, SVD": THEIRS, "+ triplet, eigenvalue": THEIRS}
_NAMES = {
    "pairs": "three pairs",
    "+ triplet, SVD": "+ triplet, paper's Algorithm 2, SVD",
    "+ triplet, eigenvalue": "+ triplet, paper's Algorithm 2, eigvalsh",
    "+ triplet, ours": "+ triplet, multicontrast",
    "+ triplet, ours, exact": "+ all B² triplets, multicontrast",
}


def costs() -> list[driver.Row]:
    """The newest run."""
    rows = driver.read_rows(driver.RESULTS / "timing.csv")
    device = [row.device for row in rows if row.case == _STEP][-1]
    return [row for row in table.latest_run(rows, _STEP, device) if row.p50_ms]


def draw_costs(axis: plt.Axes, run: list[driver.Row]) -> None:
    """Bars of a run."""
    for place, row in enumerate(reversed(run)):
        axis.barh(place, row.p50_ms, color=_COLOURS.get(row.implementation, OURS))
        text = f"{row.p50_ms:,.0f} ms" if row.p50_ms >= 20 else f"{row.p50_ms:.1f} ms"
        axis.text(row.p50_ms * 1.15, place, text, va="center")
    axis.set_yticks(range(len(run)), [_NAMES[row.implementation] for row in reversed(run)])
    axis.set_xscale("log")
    axis.set_xlim(4, axis.get_xlim()[1] * 6)
    axis.set_xlabel("milliseconds, forward and backward")
    axis.set_title("losses of one step, B = 180, D = 1024, one CPU thread", fontsize=10, loc="left")
    axis.spines[["top", "right"]].set_visible(False)


def draw_errors(axis: plt.Axes) -> None:
    """The gradient's error by the gap between the two largest eigenvalues."""
    with (driver.RESULTS / "accuracy" / "eigenvalues.csv").open() as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["operation"] == "gram3_eigmax" and row["quantity"] == "gradient" and row["dtype"] == "float32"
        ]
    newest = max(row["date"] for row in rows)
    names = (("ours", "multicontrast", OURS), ("LAPACK", "LAPACK", PLAIN), ("arc cosine", "arc cosine", THEIRS))
    for name, label, colour in names:
        points = sorted(
            (float(row["family"].split()[-1]), float(row["error"]))
            for row in rows
            if row["date"] == newest and row["implementation"] == name and row["family"].startswith("double top")
        )
        axis.loglog(*zip(*points), "o-", color=colour, label=label, linewidth=2)
    axis.set_xlabel("gap between the two largest eigenvalues, relative")
    axis.set_title("largest error of the gradient, in float32 eps", fontsize=10, loc="left")
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(0, 0.35))
    axis.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Draw the picture: grey on a transparent background, for light and dark pages."""
    grey = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "legend.labelcolor")
    plt.rcParams.update(dict.fromkeys(grey, pictures.INK))
    run = costs()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained", width_ratios=(1, 1))
    draw_costs(left, run)
    draw_errors(right)
    pictures.save(figure, run, OUT)


if __name__ == "__main__":
    main()
