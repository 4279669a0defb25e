"""Samples frames for batches without neighbours, because neighbours are nearly equal and so are false negatives."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from multicontrast._checks import three_beats


class SpacedSampler:
    """Draws batches in which two frames of one group are at least a gap apart.

    Each batch takes a regular grid of times in every group, at a random phase, and draws from it without replacement.
    Where frames are missing, the next existing frame at least a gap after the last one is taken.

    Args:
        group: ``(N,)`` int64, 0 .. G - 1, the group of each frame (a sequence, or a sequence seen by a camera).
        time: ``(N,)`` int64, the time of each frame, in frames of its group.
        gap: ``(G,)`` int64, the smallest distance in time, >= 1.
        poses: ``(N, J, 3)``, which :meth:`batches` compares by ``min_distance``; None if that is not used.

    Attributes:
        available: the number of frames that every batch can have, whatever its phases.
    """

    def __init__(self, group: Tensor, time: Tensor, gap: Tensor, poses: Tensor | None = None) -> None:
        self._poses = poses
        span = int(time.max() - time.min()) + int(gap.max()) + 1
        key = group * span + (time - time.min())
        self._order = torch.argsort(key, stable=True)
        self._key, self._group = key[self._order], group[self._order]
        present, count = self._group.unique_consecutive(return_counts=True)
        self._first = count.cumsum(0) - count
        self._gap = gap[present]
        self._member = torch.arange(len(present)).repeat_interleave(count)  # of each frame, which of those groups
        self._row = torch.arange(len(key)) - self._first[self._member]
        step = self._key.diff()[self._group.diff() == 0]
        self._step = int(step[0]) if len(step) and bool((step == step[0]).all()) and int(step[0]) > 0 else 0
        self.available = len(self._teeth(self._gap - 1))

    def check(self, batch_size: int, gap_seconds: float) -> None:
        """Raises ValueError for batches that are empty or larger than the data."""
        if not self.available:
            needed = f"`sampler` needs samples {gap_seconds:g} s apart"
            remedy = "Lower `data.min_gap_seconds`, or add data."
            raise ValueError(three_beats(needed, "sequences that are shorter", remedy))
        if not 0 < batch_size <= self.available:
            needed = f"`sampler` needs `batch_size` from 1 to {self.available}, the samples {gap_seconds:g} s apart"
            raise ValueError(three_beats(needed, str(batch_size), "Lower `data.min_gap_seconds`, or add data."))

    def batches(self, batch_size: int, generator: torch.Generator, min_distance: float = 0.0) -> Iterator[Tensor]:
        """Endless batches ``(batch_size,)`` of frame numbers, int64.

        Args:
            batch_size: at most ``available``. generator: on the CPU.
            min_distance: poses of a batch differ by at least this (root mean square over joints, in the unit of the
                poses), whatever groups they come from; 0 does not check.
        Raises: ValueError, when a batch is drawn, if too few poses differ by that.
        """
        while True:
            if bool((self._gap == self._gap[0]).all()):
                phase = torch.randint(int(self._gap[0]), (len(self._gap),), generator=generator)
            else:
                phase = (torch.rand(len(self._gap), generator=generator) * self._gap).long()
            teeth = self._teeth(phase)
            drawn = teeth[torch.randperm(len(teeth), generator=generator)]
            yield self._distinct(drawn, batch_size, min_distance) if min_distance > 0 else drawn[:batch_size]

    def _teeth(self, phase: Tensor) -> Tensor:
        """Frame numbers, ascending; ``phase`` (groups,) is added to the first time of each group."""
        if self._step:  # no frame is missing
            gap, start = -(-self._gap // self._step), -(-phase // self._step)
            found = self._row - start[self._member]
            chosen = (found >= 0) & (found % gap[self._member] == 0)
            return self._order[chosen].sort().values
        position = torch.searchsorted(self._key, self._key[self._first] + phase)
        own = self._group[self._first]
        gap = self._gap
        parts: list[Tensor] = []
        while True:
            inside = position < len(self._key)
            inside &= self._group[position.clamp(max=len(self._key) - 1)] == own
            position, own, gap = position[inside], own[inside], gap[inside]
            if not len(position):
                return self._order[torch.cat(parts)].sort().values if parts else self._order[:0]
            parts.append(position)
            position = torch.searchsorted(self._key, self._key[position] + gap)

    def _distinct(self, drawn: Tensor, batch_size: int, min_distance: float) -> Tensor:
        if self._poses is None:
            needed = "`SpacedSampler` needs poses to keep them `min_distance` apart"
            raise ValueError(three_beats(needed, "none", "Leave `min_distance` at 0."))
        kept: list[int] = []
        begin, size = 0, batch_size
        while len(kept) < batch_size and begin < len(drawn):
            # the ones kept so far, and the next candidates; distances in one product
            candidates = torch.cat([torch.tensor(kept, dtype=torch.int64), drawn[begin : begin + size]])
            poses = self._poses[candidates].flatten(1)
            near = (torch.cdist(poses, poses) < min_distance * self._poses.shape[1] ** 0.5).numpy()
            blocked = near[: len(kept)].any(0)
            for row in range(len(kept), len(candidates)):
                if not blocked[row] and len(kept) < batch_size:
                    kept.append(int(candidates[row]))
                    blocked |= near[row]
            begin += size
        if len(kept) < batch_size:
            needed = f"`SpacedSampler` needs {batch_size} poses that differ by {min_distance:g}"
            raise ValueError(three_beats(needed, f"{len(kept)}", "Lower `min_distance` or `batch_size`."))
        return torch.tensor(kept)
