"""The base of the accumulating pose metrics: what is counted, by group and by joint, and what comes out.

What is kept does not grow with the data: float64 sums and int64 counts per group and joint. With sample ids a row of
them per sample is kept instead, so that no sample counts twice.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from multicontrast._checks import check_choice, three_beats
from multicontrast.metrics._accumulate import Accumulator, first_of_each, read_ids, refuse_mixture
from multicontrast.metrics._inputs import average_joints, state_device, weighted
from multicontrast.metrics.joint_errors import JointErrors

EVERYTHING = "all"  # the one group where no groups are named


class Tally(NamedTuple):
    """What is kept: one row per group. Sums are float64, counts int64."""

    item_sum: Tensor  # (G,) of the items' values
    pred_size: Tensor  # (G,) of the poses' sizes, for the warning about units
    target_size: Tensor  # (G,)
    joint_sum: Tensor  # (G, J) of weighted errors
    joint_weight: Tensor  # (G, J)
    items: Tensor  # (G,) with a visible joint
    hidden: Tensor  # (G,) without
    invalid: Tensor  # (G,) with a visible joint, and NaN
    joint_count: Tensor  # (G, J) of items in which the joint is visible


class Summary(NamedTuple):
    """What a pose metric has measured, by group and by joint, over all ranks."""

    value: Tensor  # what `compute` returns
    frame_mean: Tensor  # over all items
    action_mean: Tensor  # over the groups that have items, each counting once
    per_group: dict[str, Tensor]  # groups in the order they were named, NaN for one without items
    per_joint: Tensor  # (J,), over all items in which the joint is visible; empty for metrics of whole poses
    items: dict[str, int]  # how many items count in each group
    hidden: int  # items left out: no joint was visible
    invalid: int  # items that are NaN, and make the means NaN
    tally: Tally  # what all this comes from


class PoseMetric(Accumulator):
    """The base of the pose metrics.

    Args:
        groups: names, such as actions, by which results are kept apart; the same list on every rank.
        sync_on_compute, process_group: as for every accumulating metric.
    """

    pooled: ClassVar[bool] = False  # whether the mean is over visible joints, rather than over items
    scales_with: ClassVar[str] = "length"  # or "share", in [0, 1], or "nothing": how a report prints the value
    whole_pose: ClassVar[bool] = False  # whether there is nothing to say of single joints
    item_axes: ClassVar[int] = 2  # axes of one item: joints and coordinates, and time for motion
    longest: float | None = None  # the largest threshold of those that are lengths, for the warning about units

    def __init__(
        self, *, groups: Sequence[str] | None = None, sync_on_compute: bool = True, process_group: Any = None
    ) -> None:
        self.groups = None if groups is None else tuple(groups)
        if self.groups is not None and (not self.groups or len(set(self.groups)) < len(self.groups)):
            remedy = "Name each group once."
            raise ValueError(
                three_beats(f"`{type(self).__name__}` needs different names in `groups`", repr(self.groups), remedy)
            )
        super().__init__(sync_on_compute=sync_on_compute, process_group=process_group)

    def _options(self) -> dict[str, Any]:
        return {}

    def extra_repr(self) -> str:
        options = {**self._options(), **({} if self.groups is None else {"groups": self.groups})}
        return ", ".join(f"{name}={value!r}" for name, value in options.items())

    # --- taking in --------------------------------------------------------------------------------------------

    def update(
        self,
        pred: Tensor,
        target: Tensor,
        *,
        mask: Tensor | None = None,
        group: str | Sequence[str] | Tensor | None = None,
        ids: Sequence[int | str] | Tensor | None = None,
    ) -> None:
        """Takes in one batch; an empty one is fine.

        Args:
            pred, target, mask: as for the function.
            group: for a metric with ``groups``: the name of all rows' group, or one name (or index) for each entry of
                the target's first axis.
            ids: one for each entry of the target's first axis. A sample whose id was seen before, here or on another
                rank, is not counted again (``DistributedSampler`` repeats samples to fill the last batch). Keeps a row
                of two numbers per joint for each sample. All updates give ids, or none does.
        """
        self._take(target, group, ids, self._measure, pred, target, mask)

    def _measure(self, pred: Tensor, target: Tensor, mask: Tensor | None) -> JointErrors:
        raise NotImplementedError

    def _poses(self, pred: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The poses whose sizes tell a mistaken unit."""
        return pred, target, mask

    def _take(
        self,
        target: Tensor,
        group: str | Sequence[str] | Tensor | None,
        ids: Sequence[int | str] | Tensor | None,
        measure: Callable[..., JointErrors],
        *data: Any,
    ) -> None:
        """Adds ``measure(*data)``, where ``data`` begins with the prediction and ends with the mask."""
        name = type(self).__name__
        self._update_count += 1
        rows = len(target) if target.dim() > self.item_axes else 1
        label = _read_groups(name, group, self.groups, rows, target.device)
        keys = None if ids is None else read_ids(name, ids, rows, target.device)
        if target.numel() == 0:
            return
        with torch.no_grad():
            pred, truth, mask = self._poses(data[0], target, data[-1])
            sums, counts = _pack(measure(*data), rows, _size(pred, mask), _size(truth, mask))
        if keys is None:
            if "ids" in self._rows:
                refuse_mixture(name)
            groups = len(self.groups or (EVERYTHING,))
            self._add("sums", sums.new_zeros(groups, sums.shape[1]).index_add_(0, label, sums))
            self._add("counts", counts.new_zeros(groups, counts.shape[1]).index_add_(0, label, counts))
        else:
            if "sums" in self._sums:
                refuse_mixture(name)
            for state, value in (("ids", keys), ("label", label), ("row_sums", sums), ("row_counts", counts)):
                self._append(state, value)

    # --- giving out -------------------------------------------------------------------------------------------

    def compute(self) -> Tensor:
        """The mean over everything taken in, on all ranks; NaN where that is nothing. Warns of mistaken units."""
        return self.report().value

    def report(self) -> Summary:
        """Everything that was measured: per group, per joint, both means, and what was left out. Gathers all ranks."""
        summary = self._summary(*self._synced())
        warn_of_units(type(self).__name__, summary.tally, self.longest)
        return summary

    def _result(self, sums: dict[str, Tensor], rows: dict[str, Tensor]) -> Tensor:
        return self._summary(sums, rows).value

    def _summary(self, sums: dict[str, Tensor], rows: dict[str, Tensor]) -> Summary:
        values, counts = self._totals(sums, rows)
        names = self.groups or (EVERYTHING,)
        table = _unpack(values, counts)
        each = self._values(table)
        filled = table.items > 0
        actions = torch.where(filled, each, 0.0).sum() / filled.sum()
        everything = Tally(*(part.sum(0, keepdim=True) for part in table))
        frame_mean = self._values(everything)[0]
        joints = everything.joint_sum[0] / everything.joint_weight[0]
        joints = joints[:0] if self.whole_pose else joints
        return Summary(
            value=self._value(everything, frame_mean),
            frame_mean=frame_mean,
            action_mean=actions,
            per_group=dict(zip(names, each.unbind())),
            per_joint=joints,
            items=dict(zip(names, table.items.tolist())),
            hidden=int(everything.hidden),
            invalid=int(everything.invalid),
            tally=table,
        )

    def _values(self, table: Tally) -> Tensor:
        """The mean of each group, ``(G,)``."""
        if self.pooled:
            return table.joint_sum.sum(-1) / table.joint_weight.sum(-1)
        return table.item_sum / table.items

    def _value(self, everything: Tally, frame_mean: Tensor) -> Tensor:
        return frame_mean

    def _totals(self, sums: dict[str, Tensor], rows: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        groups = len(self.groups or (EVERYTHING,))
        if "ids" in rows:
            if "sums" in sums:  # some ranks gave ids and others none
                refuse_mixture(type(self).__name__)
            kept = first_of_each(rows["ids"])
            label = rows["label"][kept]
            values, counts = rows["row_sums"][kept], rows["row_counts"][kept]
            return (
                values.new_zeros(groups, values.shape[1]).index_add_(0, label, values),
                counts.new_zeros(groups, counts.shape[1]).index_add_(0, label, counts),
            )
        if "sums" in sums:
            return sums["sums"], sums["counts"]
        return torch.zeros(groups, _HEAD_SUMS, dtype=torch.float64), torch.zeros(
            groups, _HEAD_COUNTS, dtype=torch.int64
        )


_HEAD_SUMS = 3
_HEAD_COUNTS = 3


def _pack(measured: JointErrors, rows: int, pred_size: Tensor, target_size: Tensor) -> tuple[Tensor, Tensor]:
    """The sums ``(rows, 3 + 2 J)`` and counts ``(rows, 3 + J)`` of the rows of a batch."""
    joints = measured.errors.shape[-1]
    device = state_device(measured.errors.device)
    errors = measured.errors.to(device).double().reshape(rows, -1, joints)
    weight = torch.ones_like(errors)
    if measured.weight is not None:
        weight = measured.weight.to(device).double().reshape(rows, -1, joints)
    visible = weight != 0
    seen = visible.any(-1)
    values = average_joints(errors, weight)
    invalid = seen & values.isnan()
    item_sum = torch.where(seen, values, 0.0).sum(-1)
    sizes = [size.to(device).double().reshape(rows, -1).nansum(-1) for size in (pred_size, target_size)]
    sums = torch.cat((torch.stack((item_sum, *sizes), -1), weighted(errors, weight).sum(1), weight.sum(1)), -1)
    heads = torch.stack((seen.sum(-1), (~seen).sum(-1), invalid.sum(-1)), -1)
    return sums, torch.cat((heads, visible.sum(1)), -1)


def _unpack(sums: Tensor, counts: Tensor) -> Tally:
    joints = counts.shape[1] - _HEAD_COUNTS
    return Tally(
        item_sum=sums[:, 0],
        pred_size=sums[:, 1],
        target_size=sums[:, 2],
        joint_sum=sums[:, _HEAD_SUMS : _HEAD_SUMS + joints],
        joint_weight=sums[:, _HEAD_SUMS + joints :],
        items=counts[:, 0],
        hidden=counts[:, 1],
        invalid=counts[:, 2],
        joint_count=counts[:, _HEAD_COUNTS:],
    )


def _size(pose: Tensor, mask: Tensor | None) -> Tensor:
    """Root mean square distance of the visible joints from their centroid, ``(...)``; NaN where none is."""
    visible = torch.ones_like(pose[..., :1]) if mask is None else (mask != 0).expand(pose.shape[:-1]).unsqueeze(-1)
    pose = pose.masked_fill(visible == 0, 0.0)
    count = visible.sum(-2, keepdim=True)
    centred = (pose - pose.sum(-2, keepdim=True) / count).masked_fill(visible == 0, 0.0)
    return (centred.square().sum((-2, -1)) / count.flatten(-2).squeeze(-1)).sqrt()


def warn_of_units(name: str, tally: Tally, longest: float | None) -> None:
    """Warns where prediction, target or thresholds are about a thousand times too large for one another."""
    pred, target = float(tally.pred_size.sum()), float(tally.target_size.sum())
    if _a_thousand(pred, target):
        larger, smaller = ("predictions", "targets") if pred > target else ("targets", "predictions")
        ratio = max(pred, target) / min(pred, target)
        needed = f"`{name}` compares predictions and targets in one unit"
        remedy = "Is one in metres and the other in millimetres? Multiply or divide by 1000."
        _warn(three_beats(needed, f"{larger} {ratio:.0f} times as large as {smaller}", remedy))
    # A body's size, as measured here, is 0.4 m, and thresholds that are in use go to a third or two of that.
    size = target / max(int(tally.items.sum()), 1)
    if longest is not None and _a_thousand(2 * longest, size):
        needed = f"`{name}` needs its thresholds in the unit of the poses"
        remedy = "Poses in metres want thresholds in metres, 0.15 for 150 mm; a `PoseReport` takes `unit_scale=1000`."
        _warn(three_beats(needed, f"thresholds up to {longest:g} for poses of size {size:.3g}", remedy))


def _a_thousand(first: float, second: float) -> bool:
    return min(first, second) > 0 and 10**2.5 < max(first, second) / min(first, second) < 10**3.5


def _warn(text: str) -> None:
    """Warns at the first line outside this package."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("multicontrast."):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)


def _read_groups(
    name: str,
    group: str | Sequence[str] | Tensor | None,
    groups: tuple[str, ...] | None,
    rows: int,
    device: torch.device,
) -> Tensor:
    """The index of each row's group, ``(rows,)`` on the device of the states."""
    device = state_device(device)
    if groups is None:
        if group is not None:
            remedy = f"Name them when the metric is made: {name}(groups=[...])."
            raise ValueError(three_beats(f"`{name}` has no `groups`", f"group={group!r}", remedy))
        return torch.zeros(rows, dtype=torch.int64, device=device)
    if group is None:
        remedy = "Pass `group=` with each update: one name, or one for each row."
        raise ValueError(three_beats(f"`{name}` needs the group of each row", "None", remedy))
    if isinstance(group, Tensor):
        labels = group.to(device, torch.int64)
        if labels.shape == (rows,) and rows and not bool(((labels >= 0) & (labels < len(groups))).all()):
            remedy = "Number the groups in the order they were named."
            raise ValueError(three_beats(f"`{name}` needs indices under {len(groups)}", str(labels.tolist()), remedy))
    else:
        listed = [group] * rows if isinstance(group, str) else list(group)
        for one in dict.fromkeys(listed):
            check_choice(name, "group", one, groups)
        place = {one: index for index, one in enumerate(groups)}
        labels = torch.tensor([place[one] for one in listed], dtype=torch.int64, device=device)
    if labels.shape != (rows,):
        remedy = "Pass one for each entry of the target's first axis."
        raise ValueError(three_beats(f"`{name}` needs {rows} groups", f"{labels.numel()}", remedy))
    return labels
