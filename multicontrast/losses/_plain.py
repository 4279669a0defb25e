"""The plain road: ordinary differentiable PyTorch on any device, as often differentiable as its similarity.

It is what the fused roads are compared with, and what runs wherever they do not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from multicontrast.losses._all_tuples import all_tuples_loss, can_fuse, fused_all_tuples_loss
from multicontrast.losses._cells import pairs_of
from multicontrast.losses._rows import unit_rows
from multicontrast.losses._tiled import tuple_rows
from multicontrast.losses._walk import Tuples, Walk
from multicontrast.similarity import Multilinear


def plain_loss(embeddings: Sequence[Tensor], tau: Tensor, walk: Walk, normalize: bool) -> Tensor:
    """The walk's loss: 0-dim, or ``(B,)`` for ``reduction="none"``."""
    units = [unit_rows(x) for x in embeddings] if normalize else list(embeddings)
    tau = tau.to(units[0].dtype)
    tau = torch.where(tau > 0, tau, torch.nan)
    blocks = {(m, n): units[m] @ units[n].mT for m, n in walk.blocks}
    loss = units[0].new_zeros(len(units[0]))
    for pair in walk.pairs:
        loss = loss + pair_rows(blocks[pair] / tau, walk.symmetric)
    tuples = walk.tuples
    if tuples is None:
        return reduce_rows(loss, walk.reduction)
    if tuples.cells is None and can_fuse(units, tau, tuples, walk.reduction):
        fused = fused_all_tuples_loss(blocks, tau, tuples, walk.reduction)
        return reduce_rows(loss, walk.reduction) + tuples.alpha * fused
    return reduce_rows(loss + tuples.alpha * _tuple_loss(units, blocks, tau, tuples), walk.reduction)


def reduce_rows(loss: Tensor, reduction: str) -> Tensor:
    """One number of the ``(B,)`` losses, or all of them."""
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.mean()


def pair_rows(logits: Tensor, symmetric: bool) -> Tensor:
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
    if isinstance(tuples.similarity, Multilinear):
        return tuple_rows(units, tau, tuples)  # which needs no Gram block, only the rows themselves
    cells = tuples.cells
    cosines = cells.read(blocks if cells.orders is None else _ordered_blocks(units, cells.orders))
    logits = tuples.similarity(cosines) / tau
    positive = cells.positive(0, len(logits))
    matched = logits[:, 0] if isinstance(positive, int) else logits.diagonal()
    return torch.logsumexp(logits, 1) - matched


def _ordered_blocks(units: list[Tensor], orders: Tensor) -> dict[tuple[int, int], Tensor]:
    """Gram blocks of the rows in the order of a shared list of candidates."""
    ordered = [units[0], *(unit.index_select(0, order) for unit, order in zip(units[1:], orders))]
    return {(m, n): ordered[m] @ ordered[n].mT for m, n in pairs_of(len(units))}
