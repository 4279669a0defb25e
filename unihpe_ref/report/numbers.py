"""The numbers of a report."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Examples:
    """Example poses, root-aligned: the best, the median and the worst."""

    names: tuple[str, ...]
    errors: tuple[float, ...]
    pred: np.ndarray  # (3, J, 3)
    target: np.ndarray


@dataclass(frozen=True)
class MetricResult:
    """One metric of a `PoseResult`, in the unit of the report."""

    unit: str
    frame_mean: float  # over all items
    action_mean: float  # over the actions that have items, each counting once
    per_action: dict[str, float]
    per_subject: dict[str, float]  # over all items of the subject
    per_joint: tuple[float, ...]
    items: dict[str, int]  # per action


@dataclass(frozen=True)
class ReportNumbers:
    """The fields of a `PoseResult`, which tables and figures read."""

    metrics: dict[str, MetricResult]
    joint_names: tuple[str, ...]
    parents: tuple[int, ...] | None
    length_unit: str
    items: int
    hidden: int  # number of items left out of the means, because no joint was visible
    invalid: int  # number of items that are NaN, which make the means NaN
    curve_thresholds: tuple[float, ...]
    curve: tuple[float, ...]  # share of joints closer than each threshold, in [0, 1]
    examples: Examples | None
