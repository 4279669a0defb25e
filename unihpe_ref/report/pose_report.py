"""The table of a paper: pose metrics per action, per subject and per joint, with both means named."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from multicontrast._checks import (
    check_choice,
    check_count,
    check_counts,
    check_floating,
    check_list,
    check_number,
    check_texts,
    describe,
    three_beats,
)
from multicontrast.metrics import AUC3D, MPJPE, NMPJPE, PAMPJPE, PCK3D, PoseMetric, Summary
from multicontrast.metrics.keypoints import AUC3D_THRESHOLDS
from unihpe_ref.report import human36m, tables
from unihpe_ref.report.numbers import MetricResult, ReportNumbers
from unihpe_ref.report.states import Curve, ExampleStore

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from typing_extensions import Self


@dataclass(frozen=True)
class PoseResult(ReportNumbers):
    """The result of `PoseReport.compute`: numbers, tables and a figure."""

    def __getitem__(self, metric: str) -> MetricResult:
        return self.metrics[metric]

    def to_markdown(self, digits: int = 1) -> str:
        """The metrics by action, by subject and by joint, as Markdown tables."""
        return tables.markdown(self, check_count("to_markdown", "digits", digits, most=15))

    def to_latex(self, digits: int = 1) -> str:
        r"""The metrics by action as a ``tabular`` for the ``booktabs`` package, columns as papers order them."""
        return tables.latex(self, check_count("to_latex", "digits", digits, most=15))

    def to_csv(self) -> str:
        """Every number on a line of its own: ``metric,unit,section,name,value,items``, with all its digits."""
        return tables.csv(self)

    def plot(self, metric: str | None = None, *, up: str = "-y") -> Figure:
        """Bars of the error per joint, the PCK curve with its area, and the best, median and worst pose.

        Args:
            metric: the metric whose errors per joint are drawn; by default the first.
            up: which axis of the data points up: ``"-y"`` (cameras, images), ``"y"`` or ``"z"`` (worlds). Poses are
                drawn from where they are widest.

        Returns: a matplotlib figure; ``figure.savefig("report.png")``. Needs ``multicontrast[plot]``.
        """
        from unihpe_ref.report.figures import report_figure

        return report_figure(self, metric, up)


class PoseReport(nn.Module):
    """Evaluates poses batch by batch and prints the tables of papers.

    Args:
        actions: names in the order of the columns, Human3.6M's by default; None for no actions. Recordings' own names
            are translated by `unihpe_ref.report.human36m.action_name`.
        subjects: names, or None for no subjects.
        joint_names: one per joint; by default Human3.6M's for 17 joints, otherwise numbers.
        parents: each joint's parent (-1: none), for the drawings; by default Human3.6M's for 17 joints.
        root: the joint, or joints, by which poses are aligned for MPJPE, N-MPJPE, PCK and AUC. See `mpjpe`.
        unit: of the report.
        unit_scale: what lengths are multiplied by for the report: 1000 for poses in metres and a report in millimetres.
        metrics: maps the name of a row to a function that makes the metric and is called with ``groups=``:
            ``{"MPJPE": functools.partial(MPJPE, root=0)}``. By default MPJPE, PA-MPJPE, N-MPJPE, 3DPCK and its AUC.
        examples: how many poses are kept to find a median pose among them; 0 keeps none.
        sync_on_compute, process_group: as for every accumulating metric.

    Example:
        >>> report = PoseReport(actions=["Walk", "Sit"])
        >>> target = 100 * torch.rand(4, 17, 3)
        >>> report.update(target + 1.0, target, action=["Walk", "Walk", "Walk", "Sit"])
        >>> round(report.compute()["MPJPE"].frame_mean, 3)
        0.0
    """

    examples: ExampleStore | None

    def __init__(
        self,
        *,
        actions: Sequence[str] | None = human36m.ACTIONS,
        subjects: Sequence[str] | None = None,
        joint_names: Sequence[str] | None = None,
        parents: Sequence[int] | None = None,
        root: int | Sequence[int] | None = 0,
        unit: str = "mm",
        unit_scale: float = 1.0,
        metrics: Mapping[str, Callable[..., PoseMetric]] | None = None,
        examples: int = 256,
        **accumulation: Any,
    ) -> None:
        super().__init__()
        remedy = "Pass 1000 for poses in metres and a report in millimetres."
        unit_scale = check_number("PoseReport", "unit_scale", unit_scale, above=0, remedy=remedy)
        check_texts("PoseReport", "unit", [unit])
        check_count("PoseReport", "examples", examples, most=10**6)
        self.actions, self.subjects, self.joint_names = (
            None if names is None else tuple(check_texts("PoseReport", what, names))
            for what, names in (("actions", actions), ("subjects", subjects), ("joint_names", joint_names))
        )
        if parents is not None:
            listed = check_list("PoseReport", "parents", parents, remedy="Pass one parent for each joint, -1 for none.")
            parents = check_counts("PoseReport", "parents", listed, -1)
        root = None if root is None else check_counts("PoseReport", "root", root, -(2**63))
        self.parents = None if parents is None else tuple(parents)
        self.root, self.unit, self.unit_scale = root, unit, unit_scale
        self.thresholds = tuple(limit / unit_scale for limit in AUC3D_THRESHOLDS)
        if metrics is not None and not (
            isinstance(metrics, Mapping) and metrics and all(map(callable, metrics.values()))
        ):
            remedy = 'Pass a dict such as {"PA-MPJPE": PAMPJPE}.'
            raise TypeError(three_beats("`PoseReport` needs `metrics` by name", describe(metrics), remedy))
        makers = metrics or {
            "MPJPE": partial(MPJPE, root=root),
            "PA-MPJPE": PAMPJPE,
            "N-MPJPE": partial(NMPJPE, root=root),
            "3DPCK": partial(PCK3D, threshold=150.0 / unit_scale, root=root),
            "AUC": partial(AUC3D, thresholds=self.thresholds, root=root),
        }
        self._groups = [(action, subject) for action in self.actions or (None,) for subject in self.subjects or (None,)]
        groups = [" / ".join(filter(None, cell)) or "all" for cell in self._groups]
        self.metrics = nn.ModuleDict({name: make(groups=groups, **accumulation) for name, make in makers.items()})
        self.curve = Curve(thresholds=self.thresholds, root=root, **accumulation)
        self.sync_on_compute = accumulation.get("sync_on_compute", True)
        self.examples = ExampleStore(examples, root, accumulation.get("process_group")) if examples else None

    def update(
        self,
        pred: Tensor,
        target: Tensor,
        *,
        action: str | Sequence[str] | None = None,
        subject: str | Sequence[str] | None = None,
        mask: Tensor | None = None,
        ids: Sequence[int | str] | Tensor | None = None,
    ) -> None:
        """Adds one batch, which may be empty.

        Args:
            pred, target: ``(N, J, 3)`` or ``(N, J, 2)``.
            action, subject: one for all, or one per pose; needed if the report has them.
            mask: ``(N, J)`` or ``(J,)``, bool or weights.
            ids: ``(N,)`` integers or names: a pose whose id was added before, on any rank, does not count again.
        """
        check_floating("PoseReport", "target", target)
        if target.dim() != 3:
            remedy = "Flatten clips: every pose is an item of its own."
            raise ValueError(
                three_beats("`PoseReport` needs poses of shape (N, J, 3) or (N, J, 2)", describe(target), remedy)
            )
        rows = len(target)
        first = _places("action", action, self.actions, rows)
        second = _places("subject", subject, self.subjects, rows)
        cell = torch.tensor([a * len(self.subjects or (None,)) + s for a, s in zip(first, second)], dtype=torch.int64)
        for metric in self._pose_metrics().values():
            metric.update(pred, target, mask=mask, group=cell, ids=ids)
        self.curve.update(pred, target, mask=mask, ids=ids)
        if self.examples is not None and rows:
            self.examples.update(pred, target, mask=mask)

    def compute(self) -> PoseResult:
        """The results over all batches and all ranks; every rank must call it."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            summaries = {name: metric.report() for name, metric in self._pose_metrics().items()}
            curve = self.curve.report()
        _repeat(caught)
        joints = max((len(summary.per_joint) for summary in summaries.values()), default=0)
        some = next(iter(summaries.values()))
        human = joints == len(human36m.JOINTS)
        names = self.joint_names or (human36m.JOINTS if human else tuple(str(joint) for joint in range(joints)))
        if joints and len(names) != joints:
            remedy = "Name each joint once, in their order."
            raise ValueError(three_beats(f"`PoseReport` needs {joints} `joint_names`", f"{len(names)}", remedy))
        return PoseResult(
            metrics={name: self._result(self.metrics[name], summary) for name, summary in summaries.items()},
            joint_names=tuple(names),
            parents=self.parents or (human36m.PARENTS if human else None),
            length_unit=self.unit,
            items=sum(some.items.values()),
            hidden=some.hidden,
            invalid=some.invalid,
            curve_thresholds=tuple(limit * self.unit_scale for limit in self.thresholds),
            curve=tuple(curve.per_joint.tolist()) or (float("nan"),) * len(self.thresholds),
            examples=None
            if self.examples is None
            else self.examples.chosen(self.unit_scale, over_ranks=self.sync_on_compute),
        )

    def reset(self) -> None:
        """Removes all poses."""
        for part in self._parts():
            part.reset()

    def merge(self, other: Self) -> None:
        """Adds all poses of another report with the same options."""
        if not isinstance(other, PoseReport) or len(self._parts()) != len(other._parts()):
            remedy = "Merge reports that were made with the same options."
            raise TypeError(three_beats("`PoseReport.merge` needs a report like this one", describe(other), remedy))
        for mine, theirs in zip(self._parts(), other._parts()):
            mine.merge(theirs)

    def to_markdown(self, digits: int = 1) -> str:
        """`PoseResult.to_markdown` of `compute`."""
        return self.compute().to_markdown(digits)

    def to_latex(self, digits: int = 1) -> str:
        """`PoseResult.to_latex` of `compute`."""
        return self.compute().to_latex(digits)

    def to_csv(self) -> str:
        """`PoseResult.to_csv` of `compute`."""
        return self.compute().to_csv()

    def plot(self, metric: str | None = None, *, up: str = "-y") -> Figure:
        """`PoseResult.plot` of `compute`."""
        return self.compute().plot(metric, up=up)

    def _pose_metrics(self) -> dict[str, PoseMetric]:
        return cast("dict[str, PoseMetric]", dict(self.metrics.items()))

    def _parts(self) -> list[Any]:
        return [*self.metrics.values(), self.curve, *([] if self.examples is None else [self.examples])]

    def _result(self, metric: Any, summary: Summary) -> MetricResult:
        factor, unit = {"length": (self.unit_scale, self.unit), "share": (100.0, "%")}.get(metric.unit, (1.0, ""))

        def mean(side: int, name: str) -> tuple[float, int]:
            rows = [index for index, cell in enumerate(self._groups) if cell[side] == name]
            value = metric.mean_of(summary.tally, [metric.groups[row] for row in rows])
            return factor * float(value), int(summary.tally.items[rows].sum())

        actions = {name: mean(0, name) for name in self.actions or ()}
        subjects = {name: mean(1, name) for name in self.subjects or ()}
        filled = [value for value, items in actions.values() if items]
        frame_mean = factor * float(summary.frame_mean)
        return MetricResult(
            unit=unit,
            frame_mean=frame_mean,
            action_mean=sum(filled) / len(filled) if filled else frame_mean,
            per_action={name: value for name, (value, _) in actions.items()},
            per_subject={name: value for name, (value, _) in subjects.items()},
            per_joint=tuple((factor * summary.per_joint).tolist()),
            items={name: items for name, (_, items) in actions.items()},
        )


def _repeat(caught: Sequence[warnings.WarningMessage]) -> None:
    """Repeats warnings, each once for all metrics, at the first line outside this package."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("unihpe_ref."):
        level, frame = level + 1, frame.f_back
    texts: dict[str, warnings.WarningMessage] = {}
    for warning in caught:
        text = str(warning.message)
        texts.setdefault(text.split("`")[-1].split(";")[0] if text.startswith("`") else text, warning)
    for warning in texts.values():
        warnings.warn(str(warning.message), warning.category, stacklevel=level)


def _places(what: str, given: str | Sequence[str] | None, names: tuple[str, ...] | None, rows: int) -> list[int]:
    """The place of each row's action or subject among the report's."""
    if names is None:
        if given is not None:
            remedy = f"Name them when the report is made: PoseReport({what}s=[...])."
            raise ValueError(three_beats(f"`PoseReport` has no {what}s", f"{what}={given!r}", remedy))
        return [0] * rows
    if given is None:
        remedy = f"Pass `{what}=` with each update, or make the report with {what}s=None."
        raise ValueError(three_beats(f"`PoseReport` needs the {what} of each pose", "None", remedy))
    listed = [given] * rows if isinstance(given, str) else check_texts("PoseReport", what, given)
    if len(listed) != rows:
        remedy = "Pass one for all poses, or one for each."
        raise ValueError(three_beats(f"`PoseReport` needs {rows} {what}s", f"{len(listed)}", remedy))
    place = {name: index for index, name in enumerate(names)}
    found = {}
    for name in dict.fromkeys(listed):
        if name not in place and names == human36m.ACTIONS:
            found[name] = place[human36m.action_name(name)]
        else:
            check_choice("PoseReport", what, name, names)
            found[name] = place[name]
    return [found[name] for name in listed]
