"""A report's figure. The only importer of matplotlib, and only when a figure is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from multicontrast._checks import check_choice

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from multicontrast.metrics._report_states import Examples
    from multicontrast.metrics.report import PoseResult

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#8A8A8A"


def report_figure(result: PoseResult, metric: str | None, up: str) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ModuleNotFoundError(
            "`plot` needs matplotlib; it is not installed. Install `multicontrast[plot]`."
        ) from error
    check_choice("plot", "up", up, ("-y", "z"))
    name = next(iter(result.metrics)) if metric is None else metric
    check_choice("plot", "metric", name, result.metrics)
    figure = Figure(figsize=(11.0, 8.0 if result.examples else 4.2), layout="constrained")
    heights = [1.0, 1.1] if result.examples else [1.0]
    grid = figure.add_gridspec(len(heights), 6, height_ratios=heights)
    _bars(figure.add_subplot(grid[0, :4]), result, name)
    _curve(figure.add_subplot(grid[0, 4:]), result)
    if result.examples:
        for place in range(3):
            axes = figure.add_subplot(grid[1, 2 * place : 2 * place + 2], projection="3d")
            _overlay(axes, result, result.examples, place, up)
    return figure


def _bars(axes: Any, result: PoseResult, name: str) -> None:
    metric = result.metrics[name]
    places = np.arange(len(metric.per_joint))
    axes.bar(places, metric.per_joint, color=_BLUE, width=0.7)
    axes.axhline(metric.frame_mean, color="#333333", linewidth=1, linestyle="--")
    axes.set_xticks(places, result.joint_names[: len(places)], rotation=40, ha="right", rotation_mode="anchor")
    axes.set_ylabel(f"{name} ({metric.unit})" if metric.unit else name)
    axes.set_title(f"{name} by joint; dashed: the frame mean, {metric.frame_mean:.1f} {metric.unit}", loc="left")
    axes.margins(x=0.02)
    _plain(axes)


def _curve(axes: Any, result: PoseResult) -> None:
    shares = 100 * np.asarray(result.curve)
    axes.plot(result.curve_thresholds, shares, color=_BLUE, linewidth=2)
    axes.fill_between(result.curve_thresholds, shares, color=_BLUE, alpha=0.15, linewidth=0)
    axes.set_xlim(0, max(result.curve_thresholds))
    axes.set_ylim(0, 100)
    axes.set_xlabel(f"threshold ({result.length_unit})")
    axes.set_ylabel("correct joints (%)")
    axes.set_title(f"PCK curve, AUC {shares.mean():.1f} %", loc="left")
    _plain(axes)


def _overlay(axes: Any, result: PoseResult, examples: Examples, place: int, up: str) -> None:
    drawn = []
    for pose, colour, label in (
        (examples.target[place], _GREY, "target"),
        (examples.pred[place], _ORANGE, "prediction"),
    ):
        points = pose[:, [0, 2, 1]] * (1, 1, -1) if up == "-y" else pose
        drawn.append(points)
        axes.scatter(*points.T, color=colour, s=9, depthshade=False, label=label)
        for joint, parent in enumerate(result.parents or ()):
            if parent >= 0:
                axes.plot(*points[[joint, parent]].T, color=colour, linewidth=2)
    every = np.concatenate(drawn)
    centre = (np.nanmax(every, 0) + np.nanmin(every, 0)) / 2
    reach = float(np.nanmax(np.nanmax(every, 0) - np.nanmin(every, 0))) / 2 or 1.0
    axes.set(xlim=(-reach, reach) + centre[0], ylim=(-reach, reach) + centre[1], zlim=(-reach, reach) + centre[2])
    axes.set_box_aspect((1, 1, 1), zoom=1.25)
    axes.view_init(elev=12, azim=-70)
    axes.set_axis_off()
    axes.set_title(f"{examples.names[place]}: {examples.errors[place]:.1f} {result.length_unit}")
    if place == 0:
        axes.legend(loc="lower left", frameon=False, fontsize=9)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
