"""The plain road: ordinary differentiable PyTorch on any device, as often differentiable as its similarity.

It is what the fused roads are compared with, and what runs wherever they do not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from multicontrast.losses._all_tuples import all_tuples_loss, can_fuse, fused_all_tuples_loss
from multicontrast.losses._cells import GatheredCells, ListCells, pairs_of
from multicontrast.losses._rows import unit_rows
from multicontrast.losses._walk import Tuples, Walk
from multicontrast.similarity import Multilinear

_PRODUCT_ENTRIES = 1 << 22  # entries of the gathered rows that the multilinear product handles at a time


def plain_loss(embeddings: Sequence[Tensor], tau: Tensor, walk: Walk, normalize: bool) -> Tensor:
    """The walk's loss: 0-dim, or ``(B,)`` for ``reduction="none"``."""
    units = [unit_rows(x) for x in embeddings] if normalize else list(embeddings)
    tau = tau.to(units[0].dtype)
    tau = torch.where(tau > 0, tau, torch.nan)
    blocks = {(m, n): units[m] @ units[n].mT for m, n in walk.blocks}
    loss = units[0].new_zeros(len(units[0]))
    for pair in walk.pairs:
        loss = loss + _pair_loss(blocks[pair] / tau, walk.symmetric)
    tuples = walk.tuples
    if tuples is None:
        return _reduce(loss, walk.reduction)
    if tuples.cells is None and can_fuse(units, tau, tuples, walk.reduction):
        fused = fused_all_tuples_loss(blocks, tau, tuples, walk.reduction)
        return _reduce(loss, walk.reduction) + tuples.alpha * fused
    return _reduce(loss + tuples.alpha * _tuple_loss(units, blocks, tau, tuples), walk.reduction)


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.mean()


def _pair_loss(logits: Tensor, symmetric: bool) -> Tensor:
    """Eq. (1) for each anchor; the mean of both directions if symmetric."""
    matched = logits.diagonal()
    loss = torch.logsumexp(logits, 1) - matched
    if symmetric:
        loss = (loss + torch.logsumexp(logits, 0) - matched) / 2
    return loss


def _tuple_loss(units: list[Tensor], blocks: dict[tuple[int, int], Tensor], tau: Tensor, tuples: Tuples) -> Tensor:
    """Eq. (3) for each anchor."""
    if tuples.cells is None:
        return all_tuples_loss(units, blocks, tau, tuples)
    cells = tuples.cells
    similarity = tuples.similarity
    if isinstance(similarity, Multilinear):
        values = _multilinear_values(units, tuples)
    else:
        values = similarity(cells.read(blocks if cells.orders is None else _ordered_blocks(units, cells.orders)))
    logits = values / tau
    positive = cells.positive(0, len(logits))
    matched = logits[:, 0] if isinstance(positive, int) else logits.diagonal()
    return torch.logsumexp(logits, 1) - matched


def _ordered_blocks(units: list[Tensor], orders: Tensor) -> dict[tuple[int, int], Tensor]:
    """Gram blocks of the rows in the order of a shared list of candidates."""
    ordered = [units[0], *(unit.index_select(0, order) for unit, order in zip(units[1:], orders))]
    return {(m, n): ordered[m] @ ordered[n].mT for m, n in pairs_of(len(units))}


def _multilinear_of_lists(units: list[Tensor], cells: ListCells) -> Tensor:
    """Every anchor meets the same candidates, so their products come first and the anchors in one matmul."""
    if cells.orders is None:
        lists = units[1:]
    else:
        lists = [unit.index_select(0, order[: cells.count]) for unit, order in zip(units[1:], cells.orders)]
    values = units[0] @ torch.stack(lists).prod(0).mT
    if cells.orders is None:
        return values
    positives = torch.stack(units).prod(0).sum(1, keepdim=True)
    return torch.cat((positives, values), dim=1)


def _multilinear_values(units: list[Tensor], tuples: Tuples) -> Tensor:
    """The multilinear product of every cell, in row blocks whose gathered rows are not kept for the backward pass."""
    cells = tuples.cells
    assert cells is not None
    size, dim = units[0].shape
    if isinstance(cells, ListCells):
        return _multilinear_of_lists(units, cells)
    assert isinstance(cells, GatheredCells)
    step = max(1, _PRODUCT_ENTRIES // (cells.width * dim))

    def rows(start: int, stop: int, *units: Tensor) -> Tensor:
        product = units[0][start:stop, None]
        for m, unit in enumerate(units[1:], start=1):
            product = product * unit[cells.plane(m, start, stop)]
        return product.sum(-1)

    parts = [
        checkpoint(rows, start, min(start + step, size), *units, use_reentrant=False) for start in range(0, size, step)
    ]
    return torch.cat(parts)
