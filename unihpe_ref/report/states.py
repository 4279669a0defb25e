"""The states of a report besides its metrics: the PCK curve, and some poses to draw."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from multicontrast.metrics import PoseMetric, mpjpe
from unihpe_ref.report.numbers import Examples

Rows = dict[str, Tensor]


def curve(
    pred: Tensor,
    target: Tensor,
    *,
    thresholds: Sequence[float] = (),
    root: int | Sequence[int] | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The share of each pose's joints that are closer than each threshold, and the weights."""
    distances = joint_distances(pred, target, root)
    weight = torch.ones_like(distances) if mask is None else weights(mask).to(distances).expand(distances.shape)
    closer = (distances.unsqueeze(-2) < torch.tensor(thresholds).to(distances).unsqueeze(-1)).to(distances)
    shares = torch.where(distances.isnan().unsqueeze(-2), torch.nan, closer)
    shares = (shares * weight.unsqueeze(-2)).masked_fill(weight.unsqueeze(-2) == 0, 0.0).sum(-1)
    total = weight.sum(-1, keepdim=True)
    return shares / total, total.expand(shares.shape)


def joint_distances(pred: Tensor, target: Tensor, root: int | Sequence[int] | None) -> Tensor:
    """The distance of every joint, ``(..., J)``."""
    rooted = (at_root(pred, root), at_root(target, root))
    return mpjpe(*(pose.unsqueeze(-2) for pose in rooted), reduction="none")


def at_root(pose: Tensor, root: int | Sequence[int] | None) -> Tensor:
    """The pose less the mean of its root joints."""
    if root is None:
        return pose
    return pose - pose[..., [root] if isinstance(root, int) else list(root), :].mean(-2, keepdim=True)


def weights(mask: Tensor) -> Tensor:
    """A metric's mask as weights: bools and COCO's flags count 1 where above 0."""
    return mask if mask.is_floating_point() else mask > 0


class Curve(PoseMetric, function=curve, pooled=True, unit="share"):
    """The share of joints closer than each threshold: a pose metric that has thresholds for joints."""


class ExampleStore(nn.Module):
    """Keeps the best pose, the worst, and a random sample of the others, for any order and number of batches.

    Every pose draws a random key, and the poses with the ``size`` smallest keys are kept. Such samples can be merged.
    """

    def __init__(self, size: int, root: int | Sequence[int] | None, process_group: Any = None) -> None:
        super().__init__()
        self.size, self.root, self.process_group = size, root, process_group
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        self._keys = np.random.default_rng(rank)
        self.reset()

    def reset(self) -> None:
        """Removes all poses."""
        self._rows: Rows = {}

    def __len__(self) -> int:
        return len(self._rows["key"]) if self._rows else 0

    @torch.no_grad()
    def update(self, pred: Tensor, target: Tensor, *, mask: Tensor | None = None) -> None:
        """Adds poses ``(N, J, D)``."""
        hidden = torch.zeros(target.shape[:-1], dtype=torch.bool)
        if mask is not None:
            hidden = (mask == 0).cpu().expand(target.shape[:-1])
        errors = mpjpe(pred, target, mask=mask, root=self.root, reduction="none").cpu().double()
        poses = [
            at_root(pose, self.root).cpu().double().masked_fill(hidden[..., None], torch.nan) for pose in (pred, target)
        ]
        keys = torch.from_numpy(self._keys.random(len(errors)))
        usable = errors.isfinite()
        self._take({"error": errors[usable], "key": keys[usable], "pred": poses[0][usable], "target": poses[1][usable]})

    def merge(self, other: ExampleStore) -> None:
        """Adds the poses of another store."""
        self._take(other._rows)

    def _take(self, rows: Mapping[str, Tensor]) -> None:
        held = {name: torch.cat((self._rows[name], rows[name])) for name in rows} if self._rows else dict(rows)
        if held and len(held["key"]) > self.size + 2:
            ends = torch.stack((held["error"].argmin(), held["error"].argmax()))
            kept = torch.cat((held["key"].argsort()[: self.size], ends)).unique()
            held = {name: values[kept] for name, values in held.items()}
        self._rows = held

    def chosen(self, unit_scale: float, *, over_ranks: bool = True) -> Examples | None:
        """The best, a median and the worst pose, over all ranks; None without poses."""
        parts: list[Rows] = [self._rows]
        if over_ranks and dist.is_available() and dist.is_initialized():
            parts = [{} for _ in range(dist.get_world_size(self.process_group))]
            dist.all_gather_object(parts, self._rows, group=self.process_group)
        parts = [part for part in parts if part]
        if not sum(len(part["error"]) for part in parts):
            return None
        rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        errors = rows["error"]
        sample = rows["key"].argsort()[: self.size]
        middle = sample[errors[sample].argsort()[(len(sample) - 1) // 2]]
        places = [int(errors.argmin()), int(middle), int(errors.argmax())]
        return Examples(
            names=("best", "median", "worst"),
            errors=tuple((unit_scale * errors[places]).tolist()),
            pred=(unit_scale * rows["pred"][places]).numpy(),
            target=(unit_scale * rows["target"][places]).numpy(),
        )

    def get_extra_state(self) -> Tensor:
        """The poses, as one tensor of bytes."""
        buffer = io.BytesIO()
        torch.save(self._rows, buffer)
        return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """The poses of `get_extra_state`."""
        self._rows = torch.load(io.BytesIO(bytes(state.tolist())), weights_only=True)
