r"""The walk in tiles, for batches whose Gram blocks do not fit: no ``B x B`` tensor is ever held.

Pairs: one pass of tiles accumulates the log-sums of rows and columns, a second recomputes each tile and multiplies its
gradient out at once. Tuples: the anchors are taken some at a time, and each part is computed again in the backward
pass. The numbers are those of the other roads to rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from multicontrast._checks import three_beats
from multicontrast.losses._cells import GatheredCells, ListCells, pairs_of
from multicontrast.losses._masks import weigh
from multicontrast.losses._rows import unit_rows
from multicontrast.losses._walk import Tuples, Walk
from multicontrast.similarity import CosineSimilarity, Multilinear

ALWAYS_ABOVE = 8192  # samples: from here on three float32 Gram blocks take most of a gigabyte
_TILE = 2048  # rows and columns: 16 MiB in float32, large enough for a matmul at full speed
_CELLS = 1 << 20  # compared tuples at a time
_GATHERED = 1 << 23  # entries of gathered rows at a time


def check_tiled(operation: str, tiled: object, tuples: Tuples | None) -> None:
    """Raise unless ``tiled`` is a bool or None that goes with the negatives."""
    if tiled is not None and not isinstance(tiled, bool):
        raise TypeError(
            three_beats(f"`{operation}` needs `tiled` to be True, False or None", repr(tiled), "None decides by size.")
        )
    if tiled and tuples is not None and tuples.cells is None:
        raise ValueError(
            three_beats(
                f"`{operation}` streams negatives='all' over whole Gram blocks",
                "tiled=True",
                "Leave `tiled` out, or choose a sampled scheme.",
            )
        )


def tiled_loss(embeddings: list[Tensor], tau: Tensor, walk: Walk, normalize: bool) -> Tensor:
    """The walk's loss: 0-dim, or ``(B,)`` for ``reduction="none"``."""
    units = [unit_rows(x) for x in embeddings] if normalize else list(embeddings)
    tau = tau.to(units[0].dtype)
    tau = torch.where(tau > 0, tau, torch.nan)
    size = len(units[0])
    start, stop = walk.range(size)
    loss = units[0].new_zeros(stop - start)
    for m, n in walk.pairs:
        loss = loss + pair_rows(units[m], units[n], tau, walk.symmetric, start, stop)
    if walk.tuples is not None:
        loss = loss + walk.tuples.alpha * tuple_rows(units, tau, walk.tuples, start, stop)
    return weigh(loss, walk.masks, None, walk.reduction, start, stop, size)


def pair_rows(x: Tensor, y: Tensor, tau: Tensor, symmetric: bool, start: int, stop: int) -> Tensor:
    """Eq. (1) for anchors ``start..stop`` among the candidates of the whole batch."""
    if stop - start == len(x):
        return _TiledPair.apply(x, y, tau, symmetric, 0)
    loss: Tensor = _TiledPair.apply(x[start:stop], y, tau, False, start)
    return (loss + _TiledPair.apply(y[start:stop], x, tau, False, start)) / 2 if symmetric else loss


def bounds(first: int, last: int, step: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + step, last)) for start in range(first, last, step))


class _TiledPair(torch.autograd.Function):
    """Eq. (1) for each row of ``x``, whose matches are the rows of ``y`` from ``first`` on; the mean of both
    directions if symmetric, which takes as many rows of each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, tau: Tensor, symmetric: bool, first: int) -> Tensor:
        rows, columns = x.new_full((len(x),), -torch.inf), y.new_full((len(y),), -torch.inf)
        for (i, j), (k, n) in itertools.product(bounds(0, len(x), _TILE), bounds(0, len(y), _TILE)):
            logits = (x[i:j] @ y[k:n].mT).div_(tau)
            rows[i:j] = torch.logaddexp(rows[i:j], torch.logsumexp(logits, 1))
            if symmetric:
                columns[k:n] = torch.logaddexp(columns[k:n], torch.logsumexp(logits, 0))
        matched = torch.linalg.vecdot(x, y[first : first + len(x)]) / tau
        ctx.symmetric, ctx.first = symmetric, first
        ctx.save_for_backward(x, y, tau, rows, columns)
        return (rows + columns) / 2 - matched if symmetric else rows - matched

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, tau, rows, columns = ctx.saved_tensors
        share = grad / (2 * tau) if ctx.symmetric else grad / tau
        by_x, by_y = torch.zeros_like(x), torch.zeros_like(y)
        for (i, j), (k, n) in itertools.product(bounds(0, len(x), _TILE), bounds(0, len(y), _TILE)):
            logits = (x[i:j] @ y[k:n].mT).div_(tau)
            weights = (logits - rows[i:j, None]).exp_().mul_(share[i:j, None])
            if ctx.symmetric:
                weights.add_(logits.sub_(columns[k:n]).exp_().mul_(share[k:n]))
            by_x[i:j].addmm_(weights, y[k:n])
            by_y[k:n].addmm_(weights.mT, x[i:j])
        matched = (grad / tau)[:, None]
        own = slice(ctx.first, ctx.first + len(x))
        by_x.addcmul_(y[own], matched, value=-1)
        by_y[own].addcmul_(x, matched, value=-1)
        # d(loss)/d(tau) = -sum(gradient x cosine) / tau, and that sum is the one over x times its gradient.
        by_tau = -torch.linalg.vecdot(by_x, x).sum() / tau if ctx.needs_input_grad[2] else None
        return by_x, by_y, by_tau, None, None


def tuple_rows(units: list[Tensor], tau: Tensor, tuples: Tuples, start: int, stop: int) -> Tensor:
    """Eq. (3) for anchors ``start..stop``, some of them at a time."""
    cells = tuples.cells
    assert cells is not None
    dim = units[0].shape[1]
    if isinstance(cells, ListCells):
        step = max(1, _CELLS // cells.width)
    else:
        step = max(1, min(_CELLS // cells.width, _GATHERED // (cells.width * dim)))

    def rows(start: int, stop: int, tau: Tensor, *units: Tensor) -> Tensor:
        logits = cell_values(list(units), tuples, start, stop) / tau
        positive = cells.positive(start, stop)
        matched = logits[:, 0] if isinstance(positive, int) else logits[torch.arange(stop - start), positive]
        return torch.logsumexp(logits, 1) - matched

    parts = [checkpoint(rows, i, j, tau, *units, use_reentrant=False) for i, j in bounds(start, stop, step)]
    return torch.cat(parts) if parts else units[0].new_zeros(0)


def similarity_of_rows(
    rows: list[Tensor], similarity: CosineSimilarity | Multilinear, present: list[Tensor] | None = None
) -> Tensor:
    """The similarity of tuples given by their rows ``(..., D)``, or of those of their members that are present."""
    if isinstance(similarity, Multilinear):
        return similarity.of_rows(rows)
    cosines = [torch.linalg.vecdot(rows[m], rows[n]) for m, n in pairs_of(len(rows))]
    return similarity(cosines) if present is None else similarity.of_present(cosines, present)


def cell_values(
    units: list[Tensor], tuples: Tuples, start: int, stop: int, present: list[Tensor] | None = None
) -> Tensor:
    """The similarity ``(R, 1 + K)`` of the tuples of some anchors, or of those of their members that are present."""
    cells = tuples.cells
    if isinstance(cells, ListCells):
        return _values_of_lists(units, tuples, cells, start, stop, present)
    assert isinstance(cells, GatheredCells)
    size = len(units[0])
    planes = [cells.plane(m, start, stop) for m in range(len(units))]
    valid = torch.stack([(plane >= 0) & (plane < size) for plane in planes]).all(0)
    members = [unit[plane.clamp(0, size - 1)] for unit, plane in zip(units, planes)]  # (R, 1 + K, D) each
    return torch.where(valid, similarity_of_rows(members, tuples.similarity, present), torch.nan)


def _values_of_lists(
    units: list[Tensor], tuples: Tuples, cells: ListCells, start: int, stop: int, present: list[Tensor] | None
) -> Tensor:
    """The same where all anchors meet the same candidates: matmuls, and nothing gathered for a cell."""
    lists = cells.lists(units)
    anchors = units[0][start:stop]
    similarity = tuples.similarity
    if isinstance(similarity, Multilinear):
        values = anchors @ torch.stack(lists).prod(0).mT
        positives = torch.stack([unit[start:stop] for unit in units]).prod(0).sum(1)
        return values if cells.orders is None else torch.cat((positives[:, None], values), dim=1)
    cosines = []
    for m, n in pairs_of(len(units)):
        if m == 0:
            negatives = anchors @ lists[n - 1].mT
        else:
            negatives = torch.linalg.vecdot(lists[m - 1], lists[n - 1]).expand(stop - start, -1)
        if cells.orders is not None:
            own = torch.linalg.vecdot(units[m][start:stop], units[n][start:stop])
            negatives = torch.cat((own[:, None], negatives), dim=1)
        cosines.append(negatives)
    return similarity(cosines) if present is None else similarity.of_present(cosines, present)
