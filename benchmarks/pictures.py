"""The pictures on the mathematics pages, from the rows on file.

Lines are middle grey on a transparent background, for light and dark pages. Each SVG holds the digest of its rows,
which the tests compare with the rows on file.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.environment import ROOT
from benchmarks.errors import Point, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from benchmarks.negatives_noise import Row as NoiseRow

FOLDER = ROOT / "docs" / "_static" / "math"
INK = "#7d8590"
OURS, LAPACK, ARC_COSINE = "ours", "LAPACK", "arc cosine"
COLOURS = {
    OURS: "#2b8fd6", LAPACK: "#9a6fd0", ARC_COSINE: "#e0701a",
    "exact": "#2b8fd6", "sampled": "#e0701a", "scaled": "#2ca277",
    "eigenvalue": "#2b8fd6", "1 + 2 mean cosine": "#2ca277",
    "cyclic": "#2b8fd6", "permutation": "#2ca277", "shared": "#e0701a", "batch": "#7d8590",
    "with gradient": "#2b8fd6", "without, all anchors": "#9a6fd0", "without, own anchors": "#e0701a",
}  # fmt: skip
MARKERS = {OURS: "o", LAPACK: "s", ARC_COSINE: "^"}
DASHES = {"float32": "-", "float64": ":"}
LOWEST = 1e-2  # in eps; smaller errors are drawn here


def digest(rows: Sequence[Any]) -> str:
    """The digest of the rows that a picture shows."""
    return hashlib.sha256("\n".join(map(repr, rows)).encode()).hexdigest()[:16]


def digest_in(picture: Path) -> str:
    """The digest that a picture was written with."""
    found = re.search(r"rows ([0-9a-f]{16})", picture.read_text())
    return found[1] if found else ""


def _sheet(width: float, height: float, columns: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _ink(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    axes.tick_params(colors=INK, which="both", labelsize=8)
    axes.grid(color=INK, alpha=0.25, linewidth=0.6)
    axes.spines[:].set_color(INK)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, handles: Sequence[Any], columns: int) -> None:
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9, labelcolor=INK)


def _lines(axes: Axes, points: Sequence[Point], quantity: str, ceiling: float) -> None:
    """A line for each implementation and type; values that are not finite are crosses at the top."""
    for name in (LAPACK, ARC_COSINE, OURS):
        for dtype, dash in DASHES.items():
            mine = [p for p in points if (p.implementation, p.dtype, p.quantity) == (name, dtype, quantity)]
            mine.sort(key=lambda point: point.at)
            shown = [min(max(p.value, LOWEST), ceiling) if math.isfinite(p.value) else math.nan for p in mine]
            axes.plot([p.at for p in mine], shown, dash, color=COLOURS[name], linewidth=1.8)
            lost = [p.at for p in mine if not math.isfinite(p.value)]
            if lost:  # an empty unclipped line would cover the whole sheet
                axes.plot(lost, [ceiling] * len(lost), "x", color=COLOURS[name], markersize=5, clip_on=False)
    axes.set(xscale="log", yscale="log", ylim=(LOWEST / 2, ceiling))


def _names(names: Sequence[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    who = [Line2D([], [], color=COLOURS[name], linewidth=1.8, label=name) for name in names]
    types = [Line2D([], [], color=INK, linestyle=dash, linewidth=1.8, label=dtype) for dtype, dash in DASHES.items()]
    return [*who, *types, Line2D([], [], color=INK, marker="x", linestyle="", label="not finite")]


Panel = tuple[str, str, str, str, float]  # (along, quantity, title, what is on the axis, the highest error shown)


def _panels(points: Sequence[Point], operation: str, panels: Sequence[Panel], names: Sequence[str]) -> Figure:
    figure, sheet = _sheet(3.3 * len(panels), 3.3, len(panels))
    for axes, (along, quantity, title, x, ceiling) in zip(sheet, panels):
        mine = [point for point in points if (point.operation, point.along) == (operation, along)]
        _lines(axes, mine, quantity, ceiling)
        _ink(axes, title, x, "largest error / eps" if axes is sheet[0] else "")
    _legend(figure, _names(names), len(names) + 3)
    return figure


def three_cosines(points: Sequence[Point]) -> Figure:
    """`gram3_eigmax` towards a tie, and over the size of the cosines."""
    panels = (
        ("gap", "value - 1", "eigenvalue − 1", "relative spread of three cosines", 1e10),
        ("gap", "gradient", "gradient", "relative spread of three cosines", 1e17),
        ("size", "value - 1", "eigenvalue − 1", "size of the cosines", 1e40),
    )
    return _panels(points, "gram3_eigmax", panels, (OURS, LAPACK, ARC_COSINE))


def symmetric3(points: Sequence[Point]) -> Figure:
    """`eigh3` towards a double eigenvalue, and over the norm."""
    panels = (
        ("gap", "values", "all three values", "gap of the two largest", 1e10),
        ("gap", "deficit", "missing from the Rayleigh quotient", "gap of the two largest", 1e2),
        ("size", "values", "all three values", "norm of the matrix", 1e10),
    )
    return _panels(points, "eigh3", panels, (OURS, LAPACK, ARC_COSINE))


def jacobi(points: Sequence[Point]) -> Figure:
    """`eigmax` of 8 x 8 towards a double largest eigenvalue."""
    panels = (
        ("gap", "value", "largest eigenvalue", "spread within two groups", 1e2),
        ("gap", "deficit", "missing from the subgradient", "spread within two groups", 1e2),
    )
    return _panels(points, "eigmax", panels, (OURS, LAPACK))


def denominators(points: Sequence[Point]) -> Figure:
    """Loss and gradient of sampled denominators beside the exact one."""
    from matplotlib.lines import Line2D

    figure, sheet = _sheet(9.9, 3.3, 3)
    panels = (
        ("negatives", "loss", "loss, B = 64", "negatives for each anchor"),
        ("batch", "loss", "loss, B − 1 negatives", "batch"),
        ("negatives", "gradient", "cosine with the exact gradient, B = 64", "negatives for each anchor"),
    )
    for axes, (along, quantity, title, x) in zip(sheet, panels):
        for name in ("exact", "sampled", "scaled") if quantity == "loss" else ("sampled", "scaled"):
            mine = [p for p in points if (p.operation, p.along, p.implementation) == ("denominator", along, name)]
            shown = [point for point in mine if point.quantity == quantity]
            spread = [p.value for p in mine if p.quantity == "spread"] if quantity == "loss" else []
            axes.errorbar(
                [p.at for p in shown], [p.value for p in shown], spread or None, color=COLOURS[name],
                marker="" if name == "exact" else "o", markersize=3.5, linewidth=1.8, elinewidth=1,
            )  # fmt: skip
        axes.set(xscale="log")
        _ink(axes, title, x, "")
    sheet[2].set_ylim(0, 1.02)
    labels = {"exact": "exact", "sampled": "sampled", "scaled": "sampled, the sum times (B² − 1) / K"}
    handles = [Line2D([], [], color=COLOURS[name], linewidth=1.8, label=label) for name, label in labels.items()]
    _legend(figure, handles, 3)
    return figure


def _plain(axes: Axes, points: Sequence[Point], quantity: str, marker: str = "") -> list[Any]:
    """A line for each implementation, in the order of the rows."""
    lines = []
    for name in dict.fromkeys(point.implementation for point in points):
        mine = [p for p in points if (p.implementation, p.quantity) == (name, quantity)]
        dash = "--" if name == "without, own anchors" else "-"  # dashed, because it may cover another line
        lines += axes.plot(
            [p.at for p in mine], [p.value for p in mine], dash, color=COLOURS[name], marker=marker, markersize=3.5,
            linewidth=1.8, label=name,
        )  # fmt: skip
    return lines


def eigenvalue(points: Sequence[Point]) -> Figure:
    """The eigenvalue while one of three embeddings turns, and against the mean cosine near a match."""
    figure, (left, right) = _sheet(8.0, 3.3, 2)
    mine = [point for point in points if point.operation == "similarity"]
    lines = _plain(left, [point for point in mine if point.along == "turn"], "value")
    left.set_xticks(range(0, 181, 30))
    _ink(left, "two embeddings agree, the third turns", "angle in degrees", "similarity")
    _plain(right, [point for point in mine if point.along == "spread"], "difference", "o")
    right.set(xscale="log", yscale="log")
    _ink(right, "eigenvalue less (1 + 2 mean cosine)", "cosines within this of 1", "largest difference")
    _legend(figure, lines, 2)
    return figure


def gathering(points: Sequence[Point]) -> Figure:
    """The averaged gradient compared with that of one process."""
    figure, (left, right) = _sheet(8.0, 3.3, 2)
    mine = [point for point in points if point.operation == "gathering"]
    lines = _plain(left, mine, "length", "o")
    left.set(xscale="log", yscale="log")
    _ink(left, "length of the gradient / that of one process", "ranks", "")
    _plain(right, mine, "cosine", "o")
    right.set(xscale="log", ylim=(0.95, 1.002))
    _ink(right, "cosine with the gradient of one process", "ranks", "")
    for axes in (left, right):
        axes.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
        axes.set_xticks([], minor=True)
    _legend(figure, lines, 3)
    return figure


def noise(rows: Sequence[NoiseRow]) -> Figure:
    """The noise of the gradient by the scheme of negatives."""
    figure, sheet = _sheet(9.9, 3.3, 3)
    panels = (
        ("batch", "noise", "by the embeddings, B − 1 negatives", "batch"),
        ("negatives", "noise", "by the embeddings, B = 64", "negatives for each anchor"),
        ("batch", "weights", "by the weights, B − 1 negatives", "batch"),
    )
    for axes, (along, quantity, title, x) in zip(sheet, panels):
        for name in ("permutation", "cyclic", "shared", *(["batch"] if quantity == "weights" else [])):
            mine = [row for row in rows if (row.along, row.scheme) == (along, name)]
            axes.plot(
                [getattr(row, along) for row in mine], [getattr(row, quantity) for row in mine],
                "--" if name == "batch" else "-", color=COLOURS[name], marker="o", markersize=3.5, linewidth=1.8,
                label="another batch" if name == "batch" else name,
            )  # fmt: skip
        axes.set(xscale="log", yscale="log")
        at = sorted({getattr(row, along) for row in rows if row.along == along})
        axes.set_xticks(at, map(str, at))
        axes.set_yticks([0.05, 0.1, 0.2, 0.5, 1, 2], ["0.05", "0.1", "0.2", "0.5", "1", "2"])
        axes.minorticks_off()
        _ink(axes, title, x, "")
    _legend(figure, sheet[2].get_lines(), 4)
    return figure


def families(rows: Sequence[Row]) -> Figure:
    """The tables of the accuracy page, with a dot for each family."""
    figure, sheet = _sheet(9.9, 4.6, 3)
    quantities = (("value", "eigenvalue"), ("value - 1", "eigenvalue − 1"), ("gradient", "gradient"))
    mine = [row for row in rows if (row.operation, row.dtype) == ("gram3_eigmax", "float32")]
    names = list(dict.fromkeys(row.family for row in mine))
    ceiling = 1e9
    for axes, (quantity, title) in zip(sheet, quantities):
        for who in (LAPACK, ARC_COSINE, OURS):
            dots = [row for row in mine if (row.quantity, row.implementation) == (quantity, who)]
            shown = [min(max(row.error, 0.1), ceiling) for row in dots]
            places = [names.index(row.family) for row in dots]
            axes.plot(shown, places, MARKERS[who], color=COLOURS[who], markersize=4.5, alpha=0.9, clip_on=False)
        axes.set(xscale="log", xlim=(0.07, ceiling), ylim=(len(names) - 0.5, -0.5))
        axes.set_yticks(range(len(names)), names if axes is sheet[0] else [])
        _ink(axes, title, "largest error / eps", "")
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=COLOURS[who], marker=MARKERS[who], linestyle="", label=who)
        for who in (OURS, LAPACK, ARC_COSINE)
    ]
    _legend(figure, handles, 3)
    return figure


CURVES: dict[str, Callable[[Sequence[Point]], Figure]] = {
    "three-cosines.svg": three_cosines,
    "symmetric3.svg": symmetric3,
    "jacobi.svg": jacobi,
    "denominators.svg": denominators,
    "eigenvalue.svg": eigenvalue,
    "gathering.svg": gathering,
}
FAMILIES = "families.svg"
NOISE = "negatives-noise.svg"


def save(figure: Figure, rows: Sequence[Any], path: Path) -> Path:
    """Writes a reproducible SVG with the digest of its rows, and text as text."""
    import matplotlib

    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name, "font.family": "sans-serif"}):
        figure.savefig(path, transparent=True, metadata={"Date": None, "Description": f"rows {digest(rows)}"})
    # matplotlib leaves blanks at the end of some lines of an SVG
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
    return path


def draw_all(points: Sequence[Point], rows: Sequence[Row], folder: Path = FOLDER) -> list[Path]:
    """Every picture, from the points of the curves and the rows of the families."""
    drawn = [save(make(points), points, folder / name) for name, make in CURVES.items()]
    return [*drawn, save(families(rows), rows, folder / FAMILIES)]
