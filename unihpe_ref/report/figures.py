"""A report's figure. Only this module imports matplotlib, when a figure is requested."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from multicontrast._checks import check_choice
from unihpe_ref.report.numbers import Examples, ReportNumbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#7A7A7A"


def report_figure(result: ReportNumbers, metric: str | None, up: str) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ModuleNotFoundError(
            "`plot` needs matplotlib; it is not installed. Install `multicontrast[plot]`."
        ) from error
    check_choice("plot", "up", up, ("-y", "y", "z"))
    name = next(iter(result.metrics)) if metric is None else metric
    check_choice("plot", "metric", name, result.metrics)
    figure = Figure(figsize=(11.0, 8.6 if result.examples else 4.2), layout="constrained")
    heights = [1.0, 1.25] if result.examples else [1.0]
    grid = figure.add_gridspec(len(heights), 6, height_ratios=heights)
    _bars(figure.add_subplot(grid[0, :4]), result, name)
    _curve(figure.add_subplot(grid[0, 4:]), result)
    if result.examples:
        for place in range(3):
            _overlay(figure.add_subplot(grid[1, 2 * place : 2 * place + 2]), result, result.examples, place, up)
    return figure


def _bars(axes: Any, result: ReportNumbers, name: str) -> None:
    metric = result.metrics[name]
    places = np.arange(len(metric.per_joint))
    axes.bar(places, metric.per_joint, color=_BLUE, width=0.7)
    title = f"{name} by joint"
    if np.isfinite(metric.frame_mean):
        axes.axhline(metric.frame_mean, color="#333333", linewidth=1, linestyle="--")
        title += f"; dashed: the frame mean, {metric.frame_mean:.1f} {metric.unit}".rstrip()
    else:
        title += ": nothing to show" if not result.items else ": NaN"
    axes.set_xticks(
        places, result.joint_names[: len(places)], rotation=40, ha="right", rotation_mode="anchor", parse_math=False
    )
    axes.set_ylabel(f"{name} ({metric.unit})" if metric.unit else name, parse_math=False)
    axes.set_ylim(bottom=0)
    axes.set_title(title, loc="left", parse_math=False)
    axes.margins(x=0.02)
    _plain(axes)


def _curve(axes: Any, result: ReportNumbers) -> None:
    shares = 100 * np.asarray(result.curve)
    longest = max(result.curve_thresholds)
    axes.plot(result.curve_thresholds, shares, color=_BLUE, linewidth=2)
    axes.fill_between(result.curve_thresholds, shares, color=_BLUE, alpha=0.15, linewidth=0)
    axes.set_xlim(0, longest)
    axes.set_xticks(np.linspace(0, longest, 4))
    axes.set_ylim(0, 100)
    axes.set_xlabel(f"threshold ({result.length_unit})", parse_math=False)
    axes.set_ylabel("correct joints (%)")
    axes.set_title("PCK curve" + (f", AUC {shares.mean():.1f} %" if np.isfinite(shares).all() else ""), loc="left")
    _plain(axes)


def _overlay(axes: Any, result: ReportNumbers, examples: Examples, place: int, up: str) -> None:
    """Target and prediction in parallel projection, a thin line between the two places of every joint."""
    target, pred = _project(examples.target[place], examples.pred[place], up)
    axes.plot(*np.stack((target, pred, np.full_like(pred, np.nan)), 1).reshape(-1, 2).T, color=_ORANGE, linewidth=0.7)
    for points, colour, label in ((target, _GREY, "target"), (pred, _ORANGE, "prediction")):
        bones = [(joint, parent) for joint, parent in enumerate(result.parents or ()) if parent >= 0]
        for joint, parent in bones:
            axes.plot(*points[[joint, parent]].T, color=colour, linewidth=2.2, solid_capstyle="round", alpha=0.9)
        axes.plot(*points.T, "o", color=colour, markersize=3.5)
        axes.plot([], [], "o-" if bones else "o", color=colour, markersize=3.5, label=label)
    every = np.concatenate((target, pred))
    centre = (np.nanmax(every, 0) + np.nanmin(every, 0)) / 2
    reach = 0.54 * float(np.nanmax(np.nanmax(every, 0) - np.nanmin(every, 0))) or 1.0
    axes.set(xlim=(centre[0] - reach, centre[0] + reach), ylim=(centre[1] - reach, centre[1] + reach), aspect="equal")
    axes.set_axis_off()
    title = f"{examples.names[place]}: MPJPE {examples.errors[place]:.1f} {result.length_unit}"
    axes.set_title(title, parse_math=False)
    if place == 0:
        axes.legend(loc="upper left", bbox_to_anchor=(0, 0), ncols=2, frameon=False, fontsize=9)


def _project(target: np.ndarray, pred: np.ndarray, up: str) -> tuple[np.ndarray, np.ndarray]:
    """Both poses ``(J, 3)`` as ``(J, 2)``, across and up, from the horizontal direction in which the target is widest.

    Poses in a plane stay as they are.
    """
    axis, sign = {"-y": (1, -1.0), "y": (1, 1.0), "z": (2, 1.0)}[up]
    if target.shape[-1] == 2:
        flip = np.array([1.0, -1.0 if up == "-y" else 1.0])
        return target * flip, pred * flip
    level = [other for other in range(3) if other != axis]
    shown = target[np.isfinite(target).all(-1)][:, level]
    across = np.linalg.svd(shown - shown.mean(0), full_matrices=False)[2][0]
    across = across if across[0] >= 0 else -across
    flat = [np.stack((pose[:, level] @ across, sign * pose[:, axis]), -1) for pose in (target, pred)]
    return flat[0], flat[1]


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
