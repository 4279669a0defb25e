"""The metrics that accumulate over batches: one class for each pose metric, and those of embeddings.

Pose metrics keep float64 sums per group and joint, which do not grow with the data. With sample ids they keep a row per
sample instead, so that no sample counts twice.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple, TypedDict, cast

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from multicontrast._checks import (
    check_choice,
    check_counts,
    check_flag,
    check_floating,
    check_list,
    check_texts,
    check_whole,
    describe,
    three_beats,
)
from multicontrast.metrics._accumulate import Accumulator, Ids, first_of_each
from multicontrast.metrics._inputs import (
    JointErrors,
    average_joints,
    check_options,
    check_values,
    length,
    state_device,
    weighted,
    with_options,
)
from multicontrast.metrics.embeddings import (
    median_of_ranks,
    pairwise,
    read_embeddings,
    recall_of_ranks,
    retrieval_ranks,
)
from multicontrast.metrics.joint_errors import accel_error, epe, min_mpjpe, mpjpe, mpjve, n_mpjpe
from multicontrast.metrics.keypoints import auc3d, cps, oks, pck, pck3d, pckh
from multicontrast.metrics.procrustes import pa_mpjpe

EVERYTHING = "all"  # the only group if none are named
Group = str | Sequence[str] | Tensor  # one for all rows of a batch, or one for each


class Tally(NamedTuple):
    """The kept sums: columns of one float64 tensor ``(G, 6 + 3 J)``. float64 counts exactly to 9e15."""

    item_sum: Tensor  # (G,) sum of the items' values
    pred_size: Tensor  # (G,) sum of the poses' sizes, for the warning about units
    target_size: Tensor  # (G,)
    items: Tensor  # (G,) number of items with a visible joint
    hidden: Tensor  # (G,) number of items without one
    invalid: Tensor  # (G,) number of items with a visible joint that are NaN
    joint_sum: Tensor  # (G, J) sum of weighted errors
    joint_weight: Tensor  # (G, J)
    joint_count: Tensor  # (G, J) number of items in which the joint is visible


class Summary(NamedTuple):
    """What a pose metric has measured, by group and by joint, over all ranks."""

    value: Tensor  # what `compute` returns
    frame_mean: Tensor  # over all items
    action_mean: Tensor  # over the groups that have items, each counting once
    per_group: dict[str, Tensor]  # groups in the order they were named, NaN for one without items
    per_joint: Tensor  # (J,), over all items in which the joint is visible; empty for metrics of whole poses
    items: dict[str, int]  # how many items count in each group
    hidden: int  # number of items left out, because no joint was visible
    invalid: int  # number of items that are NaN, which make the means NaN
    tally: Tally  # the sums behind it


class Batch(TypedDict, total=False):
    """What an update of every pose metric accepts beside the poses."""

    mask: Tensor | None
    group: Group | None
    ids: Ids | None


class PoseMetric(Accumulator):
    """The base of the pose metrics. A subclass names its ``function``, whose options become its own, and the attributes
    below that are not the default: ``class EPE(PoseMetric, function=epe, pooled=True)``.

    Args:
        options: those of the function.
        groups: names, such as actions, by which results are kept apart; the same list on every rank.
        sync_on_compute: gather from all ranks in `compute`, if ``torch.distributed`` is initialised. Every rank must
            then call it, even one without data.
        process_group: the ranks to gather from; None: all.

    If torchmetrics is installed this is a ``torchmetrics.Metric`` and takes its other options too.
    """

    function: ClassVar[Callable[..., Any]]  # a metric, or a function that gives errors ``(..., J)`` and weights
    pooled: ClassVar[bool] = False  # whether the mean is over visible joints, rather than over items
    unit: ClassVar[str] = "length"  # how a report prints the value: also "share", in [0, 1], and "number"
    thresholds_are_lengths: ClassVar[bool] = False  # for the warning about units
    whole_pose: ClassVar[bool] = False  # whether single joints have no value of their own
    item_axes: ClassVar[int] = 2  # of one item: joints and coordinates, and time for motion
    __signature__: ClassVar[inspect.Signature]
    _of_function: ClassVar[list[inspect.Parameter]]

    def __init_subclass__(cls, *, function: Callable[..., Any] | None = None, **description: Any) -> None:
        super().__init_subclass__()
        if function is None:  # a subclass of a metric
            return
        description = {"higher_is_better": description.get("unit", "length") != "length", **description}
        for name, value in {"function": staticmethod(function), **description}.items():
            setattr(cls, name, value)
        cls._of_function = [
            one.replace(annotation=one.empty)
            for one in inspect.signature(function).parameters.values()
            if one.kind is one.KEYWORD_ONLY and one.name not in ("mask", "reduction")
        ]
        base = inspect.signature(PoseMetric.__init__).parameters
        accumulation = (base[name] for name in ("groups", "sync_on_compute", "process_group"))
        cls.__signature__ = inspect.Signature([*cls._of_function, *accumulation])

    def __init__(
        self,
        *,
        groups: Sequence[str] | None = None,
        sync_on_compute: bool = True,
        process_group: Any = None,
        **options: Any,
    ) -> None:
        name = type(self).__name__
        chosen = {one.name: options.pop(one.name, one.default) for one in self._of_function}
        for one in (one for one, value in chosen.items() if value is inspect.Parameter.empty):
            raise TypeError(three_beats(f"`{name}` needs `{one}`", "no value", f"Make it with `{name}({one}=...)`."))
        check_options(name, **chosen)
        self._of_call = {one: _plain(value) for one, value in chosen.items()}
        self.groups: tuple[str, ...] | None = None
        if groups is not None:
            self.groups = tuple(check_texts(name, "groups", groups, remedy="Name each group once."))
            if not 0 < len(self.groups) == len(set(self.groups)):
                needed = f"`{name}` needs different names in `groups`"
                raise ValueError(three_beats(needed, repr(self.groups)[:80], "Name each group once."))
        self._options = {**self._of_call, "groups": self.groups}
        super().__init__(sync_on_compute=sync_on_compute, process_group=process_group, **options)

    # --- adding batches ---------------------------------------------------------------------------------------

    @with_options(Batch)
    def update(self, pred: Tensor, target: Tensor, **batch: Unpack[Batch]) -> None:
        """Adds one batch, which may be empty.

        Args:
            pred, target, mask: as for the function.
            group: for a metric with ``groups``: the name of all rows' group, or one name (or index) for each entry of
                the target's first axis.
            ids: one for each entry of the target's first axis. A sample whose id was already added, here or on another
                rank, is not counted again (``DistributedSampler`` repeats samples to fill the last batch). Keeps a row
                of three numbers per joint for each sample. All updates need ids, or none.
        """
        self._measure(pred, target, {}, **batch)

    def _measure(self, pred: Tensor, target: Tensor, data: dict[str, Any], **batch: Unpack[Batch]) -> None:
        """Adds what the function measures; ``data`` are its arguments beside the poses."""
        name, mask = type(self).__name__, batch.get("mask")
        check_floating(name, "pred", pred)
        check_floating(name, "target", target)
        rows = len(target) if target.dim() > self.item_axes else 1
        labels = _read_groups(name, batch.get("group"), self.groups, rows, target.device)
        keys = self._read_ids(batch.get("ids"), rows, target.device)
        if target.numel() == 0:
            return
        function = type(self).function
        measure = getattr(function, "measure", function)
        with torch.no_grad():
            measured = JointErrors(*measure(pred, target, **data, mask=mask, **self._of_call))
            single = pred if self._of_call.get("dim") is None else pred.select(self._of_call["dim"], 0)
            packed = _pack(measured, rows, *(_size(pose, mask) for pose in (single, target)))
        self._add(packed, keys, labels, len(self.groups or (EVERYTHING,)))

    # --- results ----------------------------------------------------------------------------------------------

    def compute(self) -> Tensor:
        """The mean over all batches of all ranks; NaN if there was no data. Warns if the units look wrong."""
        return self._summary().value

    def report(self) -> Summary:
        """All results: per group, per joint, both means, and what was left out. Gathers from all ranks."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute):
            return self._summary()

    def mean_of(self, tally: Tally, names: Iterable[str] | None = None) -> Tensor:
        """The metric over some groups of a tally together, by default all; NaN if they have no item."""
        groups = list(self.groups or (EVERYTHING,))
        rows = slice(None) if names is None else [groups.index(name) for name in names]
        joint_sum, joint_weight, joint_count = (part[rows].sum(0) for part in tally[6:])
        average = self._of_call.get("average")
        if average == "macro":
            counted = joint_count > 0
            return torch.where(counted, joint_sum / joint_weight, 0.0).sum() / counted.sum()
        if self.pooled:
            return joint_sum.sum() / joint_weight.sum()
        return tally.item_sum[rows].sum() / tally.items[rows].sum()

    def _summary(self) -> Summary:
        names = self.groups or (EVERYTHING,)
        totals = self._totals(len(names))
        if totals is None:
            totals = torch.zeros(len(names), 6, dtype=torch.float64, device=self.sums.device)
        tally = Tally(*totals[:, :6].unbind(1), *totals[:, 6:].unflatten(1, (3, -1)).unbind(1))
        if not self._one_batch:
            thresholds = self._of_call.get("thresholds") or (self._of_call.get("threshold"),)
            _warn_of_units(type(self).__name__, tally, max(thresholds) if self.thresholds_are_lengths else None)
        per_group = {name: self.mean_of(tally, [name]) for name in names}
        filled = [value for value, items in zip(per_group.values(), tally.items) if items]
        frame_mean = self.mean_of(tally)
        joints = tally.joint_sum.sum(0) / tally.joint_weight.sum(0)
        return Summary(
            value=joints if self._of_call.get("average") == "none" else frame_mean,
            frame_mean=frame_mean,
            action_mean=torch.stack(filled).mean() if filled else frame_mean,
            per_group=per_group,
            per_joint=joints[:0] if self.whole_pose else joints,
            items=dict(zip(names, tally.items.long().tolist())),
            hidden=int(tally.hidden.sum()),
            invalid=int(tally.invalid.sum()),
            tally=tally,
        )


class MPJPE(PoseMetric, function=mpjpe):
    """`mpjpe` over many batches: the mean over all items.

    >>> metric = MPJPE(groups=["Walking", "Sitting"])
    >>> target = torch.zeros(3, 17, 3)
    >>> metric.update(target + torch.tensor([3.0, 4.0, 0.0]), target, group=["Walking", "Walking", "Sitting"])
    >>> metric.compute()
    tensor(5., dtype=torch.float64)
    """


class EPE(PoseMetric, function=epe, pooled=True):
    """`epe` over many batches: the mean over all visible joints."""


class NMPJPE(PoseMetric, function=n_mpjpe):
    """`n_mpjpe` over many batches: the mean over all items."""


class PAMPJPE(PoseMetric, function=pa_mpjpe):
    """`pa_mpjpe` over many batches: the mean over all items."""


class MPJVE(PoseMetric, function=mpjve, item_axes=3):
    """`mpjve` over many batches of clips ``(B, T, J, 3)``: the mean over all differences of frames."""


class AccelError(PoseMetric, function=accel_error, item_axes=3):
    """`accel_error` over many batches of clips ``(B, T, J, 3)``: the mean over all second differences."""


class MinMPJPE(PoseMetric, function=min_mpjpe):
    """`min_mpjpe` over many batches: the best of several hypotheses."""


class PCK3D(PoseMetric, function=pck3d, pooled=True, unit="share", thresholds_are_lengths=True):
    """`pck3d` over many batches: the share of correct joints."""


class AUC3D(PoseMetric, function=auc3d, pooled=True, unit="share", thresholds_are_lengths=True):
    """`auc3d` over many batches: the mean share of correct joints over the thresholds."""


class CPS(PoseMetric, function=cps, whole_pose=True, thresholds_are_lengths=True, higher_is_better=True):
    """`cps` over many batches: the mean over all poses."""


class PCK(PoseMetric, function=pck, pooled=True, unit="share"):
    """`pck` over many batches: the share of correct joints."""

    @with_options(Batch)
    def update(self, pred: Tensor, target: Tensor, norm: Tensor | float | None = None, **batch: Unpack[Batch]) -> None:
        """As for every pose metric; ``norm`` as for `pck`."""
        self._measure(pred, target, {"norm": norm}, **batch)


class PCKh(PoseMetric, function=pckh, pooled=True, unit="share"):
    """`pckh` over many batches: the share of correct joints, by the size of the head."""

    @with_options(Batch)
    def update(  # type: ignore[override]
        self, pred: Tensor, target: Tensor, norm: Tensor | float, **batch: Unpack[Batch]
    ) -> None:
        """As for every pose metric; ``norm``, the head sizes, as for `pckh`."""
        self._measure(pred, target, {"norm": norm}, **batch)


class OKS(PoseMetric, function=oks, unit="number"):
    """`oks` over many batches: the mean over all objects with a visible joint."""

    @with_options(Batch)
    def update(  # type: ignore[override]
        self, pred: Tensor, target: Tensor, area: Tensor | float, **batch: Unpack[Batch]
    ) -> None:
        """As for every pose metric; ``area`` as for `oks`."""
        self._measure(pred, target, {"area": area}, **batch)


class ModalityAlignment(Accumulator):
    """How well modalities agree over many batches: cosines, alignment and gap of every pair, from sums alone.

    ``compute`` gives a dict of ``(N, N)`` float64 tensors: ``"cosine"`` (`cosine_matrix`), ``"alignment"`` (`alignment`
    with ``alpha=2``) and ``"gap"`` (`modality_gap`). The other options are those of every accumulating metric.

    >>> metric = ModalityAlignment()
    >>> metric.update([torch.eye(2), -torch.eye(2)])
    >>> metric.compute()["cosine"]
    tensor([[ 1., -1.],
            [-1.,  1.]], dtype=torch.float64)
    """

    _one_shape = "Keep as many modalities, of one width,"

    def __init__(self, *, normalize: bool = True, **accumulation: Any) -> None:
        self._options = {"normalize": check_flag("ModalityAlignment", "normalize", normalize)}
        super().__init__(**accumulation)

    def update(self, embeddings: Sequence[Tensor], *, ids: Ids | None = None) -> None:
        """Adds one batch, which may be empty: N >= 2 tensors ``(B, D)``, row ``i`` of each from sample ``i``.

        ``ids``: ``(B,)`` integers or names; a sample whose id was already added, here or on another rank, is not
        counted again. Keeps a row of ``N (2 N + D + 1)`` numbers for each sample. All updates need ids, or none.
        """
        name = type(self).__name__
        rows = read_embeddings(name, embeddings, **self._options, least=2, may_be_empty=True)
        if len(rows[0]) == 0:
            return
        rows = [part.detach().to(state_device(part.device)).double() for part in rows]
        keys = self._read_ids(ids, len(rows[0]), rows[0].device)
        cosine = pairwise(rows, lambda x, y: (x * y).sum(-1))
        squared = pairwise(rows, lambda x, y: (x - y).square().sum(-1))
        stacked = torch.stack(rows, 1)
        parts = (cosine.movedim(-1, 0), squared.movedim(-1, 0), stacked, torch.ones_like(stacked[..., :1]))
        self._add(torch.cat(parts, -1), keys, torch.zeros(len(stacked), dtype=torch.int64, device=stacked.device))

    def compute(self) -> dict[str, Tensor]:
        """The three matrices over all batches of all ranks; empty if there was no data."""
        totals = self._totals()
        if totals is None:
            nothing = torch.full((0, 0), torch.nan, dtype=torch.float64)
            return {"cosine": nothing, "alignment": nothing, "gap": nothing}
        modalities = totals.shape[1]
        means = totals[0, :, :-1] / totals[0, :, -1:]
        cosine, squared, centroids = means.tensor_split((modalities, 2 * modalities), -1)
        return {"cosine": cosine, "alignment": squared, "gap": length(centroids[:, None] - centroids)}


class RetrievalRecall(Accumulator):
    """`retrieval_recall` over many batches: each query searches the gallery of all batches and all ranks.

    Embeddings are kept (float32 unless they are float64), and the search is blocked, so memory grows with the samples
    and not with their square. ``compute`` gives a dict: ``"recall@k"`` for each ``k``, ``"median_rank"`` and
    ``"mean_reciprocal_rank"``. The other options are those of every accumulating metric.

    >>> metric = RetrievalRecall(k=(1, 2))
    >>> metric.update(torch.eye(4)[:2], torch.eye(4)[:2])
    >>> metric.update(torch.eye(4)[2:], torch.eye(4)[2:].flip(0))
    >>> metric.compute()["recall@1"]
    tensor(0.5000)
    """

    higher_is_better = True

    def __init__(
        self,
        *,
        k: int | Sequence[int] = (1, 5, 10),
        ties: str = "pessimistic",
        normalize: bool = True,
        **accumulation: Any,
    ) -> None:
        check_options("RetrievalRecall", k=k, ties=ties, normalize=normalize)
        k = tuple(check_counts("RetrievalRecall", "k", k, 1))
        self._options = {"k": k, "ties": ties, "normalize": bool(normalize)}
        super().__init__(**accumulation)

    def update(self, query: Tensor, gallery: Tensor, *, ids: Ids | None = None) -> None:
        """Adds one batch, which may be empty: row ``i`` of ``query`` should find row ``i`` of ``gallery``.

        ``ids``: ``(B,)`` integers or names; a pair whose id was already added, here or on another rank, is not counted
        again.
        """
        name = type(self).__name__
        pair, normalize = (query, gallery), self._options["normalize"]
        rows = read_embeddings(name, pair, normalize, names=("query", "gallery"), may_be_empty=True)
        if len(query) == 0:
            return
        keys = self._read_ids(ids, len(query), query.device)
        self._join("rows", torch.stack(rows, 1))
        if keys is not None:
            self._join("ids", keys)

    def compute(self) -> dict[str, Tensor]:
        """Recalls and ranks over all batches of all ranks; NaN if there was no data."""
        options = dict(self._options)
        limits = options.pop("k")
        names = [f"recall@{limit}" for limit in limits]
        rows, ids = self._joined("rows"), self._joined("ids")
        if rows is None:
            return {name: torch.tensor(torch.nan) for name in (*names, "median_rank", "mean_reciprocal_rank")}
        if ids is not None:
            if len(ids) != len(rows):
                self._refuse_mixture()
            rows = rows[first_of_each(ids)]
        query, gallery = rows.unbind(1)
        ranks = retrieval_ranks(query, gallery, **options)
        return {
            **dict(zip(names, recall_of_ranks(ranks, limits).unbind())),
            "median_rank": median_of_ranks(ranks),
            "mean_reciprocal_rank": (1 / ranks).mean(),
        }


def _plain(value: Any) -> Any:
    """An option as it is stored and shown: sequences as tuples, NumPy scalars as Python numbers."""
    if isinstance(value, (np.generic, np.ndarray, Tensor)):
        value = value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _pack(measured: JointErrors, rows: int, pred_size: Tensor, target_size: Tensor) -> Tensor:
    """What a `Tally` holds, for each row of a batch, ``(rows, 6 + 3 J)`` in float64."""
    device = state_device(measured.errors.device)
    errors = measured.errors.to(device).double().reshape(rows, -1, measured.errors.shape[-1])
    weight = torch.ones_like(errors)
    if measured.weight is not None:
        weight = measured.weight.to(device).double().reshape(errors.shape)
    visible = weight != 0
    counted = visible.any(-1)
    values = average_joints(errors, weight)
    sizes = [size.to(device).double().reshape(rows, -1).nansum(-1) for size in (pred_size, target_size)]
    counts = [part.sum(-1).double() for part in (counted, ~counted, counted & values.isnan())]
    head = torch.stack((torch.where(counted, values, 0.0).sum(-1), *sizes, *counts), -1)
    return torch.cat((head, weighted(errors, weight).sum(1), weight.sum(1), visible.sum(1).double()), -1)


def _size(pose: Tensor, mask: Tensor | None) -> Tensor:
    """Root mean square distance of the visible joints from their centroid, ``(...)``; NaN if none is visible."""
    visible = torch.ones_like(pose[..., :1]) if mask is None else (mask != 0).expand(pose.shape[:-1]).unsqueeze(-1)
    pose = pose.masked_fill(visible == 0, 0.0)
    count = visible.sum(-2, keepdim=True)
    centred = (pose - pose.sum(-2, keepdim=True) / count).masked_fill(visible == 0, 0.0)
    return (centred.square().sum((-2, -1)) / count.flatten(-2).squeeze(-1)).sqrt()


def _warn_of_units(name: str, tally: Tally, longest: float | None) -> None:
    """Warns if predictions and targets differ by a factor of about 1000, or if thresholds do not fit the pose size."""
    pred, target = float(tally.pred_size.sum()), float(tally.target_size.sum())
    if min(pred, target) > 0 and 10**2.5 < max(pred, target) / min(pred, target) < 10**3.5:
        larger, smaller = ("predictions", "targets") if pred > target else ("targets", "predictions")
        ratio = max(pred, target) / min(pred, target)
        needed = f"`{name}` compares predictions and targets in one unit"
        remedy = "Is one in metres and the other in millimetres? Multiply or divide by 1000."
        _warn(three_beats(needed, f"{larger} {ratio:.0f} times as large as {smaller}", remedy))
    # A body's size, as measured here, is 0.4 m; thresholds in use are between 0.01 and 4 times the pose's size.
    size = target / max(int(tally.items.sum()), 1)
    if longest and size > 0 and not 1 / 500 < longest / size < 10:
        needed = f"`{name}` needs its thresholds in the unit of the poses"
        remedy = "Poses in metres want thresholds in metres, 0.15 for 150 mm; poses in [-1, 1] need their true scale."
        _warn(three_beats(needed, f"thresholds up to {longest:g} for poses of size {size:.3g}", remedy))


def _warn(text: str) -> None:
    """Warns at the first line outside this package and torchmetrics."""
    level, frame = 1, inspect.currentframe()
    inside = ("multicontrast.", "torchmetrics.", "torch.", "contextlib")
    while frame is not None and f"{frame.f_globals.get('__name__', '')}.".startswith(inside):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)


def _read_groups(
    name: str, group: Group | None, groups: tuple[str, ...] | None, rows: int, device: torch.device
) -> Tensor:
    """The index of each row's group, ``(rows,)`` on the device of the states."""
    device = state_device(device)
    remedy = "Pass `group=` with each update: one name, or one for each entry of the target's first axis."
    if groups is None:
        if group is not None:
            remedy = f"Name them when the metric is made: {name}(groups=[...])."
            raise ValueError(three_beats(f"`{name}` has no `groups`", f"group={describe(group)}", remedy))
        return torch.zeros(rows, dtype=torch.int64, device=device)
    if group is None:
        raise ValueError(three_beats(f"`{name}` needs the group of each row", "None", remedy))
    if isinstance(group, Tensor):
        check_whole(name, "group", group)
        labels = group.to(device, torch.int64)
        wrong = (labels < 0) | (labels >= len(groups))
        check_values(
            name, "group", labels, wrong, f"indices under {len(groups)}", "Number the groups as they were named."
        )
    else:
        listed = [group] * rows if isinstance(group, str) else check_list(name, "group", group, remedy=remedy)
        for one in listed:
            check_choice(name, "group", one, groups)
        labels = torch.tensor([groups.index(cast(str, one)) for one in listed], dtype=torch.int64, device=device)
    if labels.shape != (rows,):
        raise ValueError(three_beats(f"`{name}` needs {rows} groups", f"{labels.numel()}", remedy))
    return labels
