"""The plain road: ordinary differentiable PyTorch on any device, as often differentiable as its similarity.

It is what the fused roads are compared with, and what runs wherever they do not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from multicontrast.losses._all_tuples import all_tuples_loss, can_fuse, fused_all_tuples_loss
from multicontrast.losses._cells import pairs_of
from multicontrast.losses._every_tuple import every_tuple_sums
from multicontrast.losses._factorised import mean_cosine_denominators
from multicontrast.losses._grams import Grams
from multicontrast.losses._masks import Masks, Samples, weigh
from multicontrast.losses._rows import unit_rows
from multicontrast.losses._softmax import cross_entropy
from multicontrast.losses._tiled import similarity_of_rows, tuple_rows
from multicontrast.losses._walk import Tuples, Walk
from multicontrast.similarity import MeanCosine, Multilinear


def plain_loss(embeddings: Sequence[Tensor], tau: Tensor, walk: Walk, normalize: bool) -> Tensor:
    """The walk's loss: 0-dim, or one value for each anchor for ``reduction="none"``."""
    units = [unit_rows(x) for x in embeddings] if normalize else list(embeddings)
    tau = tau.to(units[0].dtype)
    tau = torch.where(tau > 0, tau, torch.nan)
    size = len(units[0])
    start, stop = walk.range(size)
    grams = Grams(units, start, stop)
    tuples = walk.tuples
    loss = units[0].new_zeros(stop - start)
    fused: Tensor | None = None
    if (
        tuples is not None
        and walk.anchors is None
        and walk.masks is None
        and can_fuse(units, tau, tuples, walk.reduction)
    ):
        blocks = {pair: grams.whole(*pair) for pair in pairs_of(3)}
        fused = tuples.alpha * fused_all_tuples_loss(blocks, tau, tuples, walk.reduction)
    elif tuples is not None:
        loss = loss + tuples.alpha * _tuple_rows(grams, tau, tuples)
    for pair in walk.pairs:
        loss = loss + pair_rows(grams, tau, pair, walk.symmetric)
    total = reduce_rows(loss, walk, size)
    return total if fused is None else total + fused


def reduce_rows(loss: Tensor, walk: Walk, size: int) -> Tensor:
    """One number of the losses of the walk's anchors in a batch of ``size``, or all of them."""
    return weigh(loss, walk.masks, None, walk.reduction, *walk.range(size), size)


def pair_rows(grams: Grams, tau: Tensor, pair: tuple[int, int], symmetric: bool) -> Tensor:
    """Eq. (1) for each anchor; the mean of both directions if symmetric."""
    loss = _cross_entropy(grams.rows(*pair) / tau, grams.start)
    if symmetric:
        loss = (loss + _cross_entropy(grams.rows(*reversed(pair)) / tau, grams.start)) / 2
    return loss


def _tuple_rows(grams: Grams, tau: Tensor, tuples: Tuples) -> Tensor:
    """Eq. (3) for each anchor."""
    units, cells = grams.units, tuples.cells
    if cells is None:
        return _every_tuple_rows(grams, tau, tuples)
    if isinstance(tuples.similarity, Multilinear):
        # which needs no Gram block, only the rows themselves
        return tuple_rows(units, tau, tuples, grams.start, grams.stop)
    logits = tuples.similarity(cells.read(grams)) / tau
    positive = cells.positive(grams.start, grams.stop)
    return _cross_entropy(logits, positive if isinstance(positive, int) else grams.start, isinstance(positive, int))


def _every_tuple_rows(grams: Grams, tau: Tensor, tuples: Tuples) -> Tensor:
    """Eq. (3) for each anchor with every tuple of the batch."""
    units = grams.units
    rows = [unit[grams.start : grams.stop] for unit in units]
    if grams.size == 1:
        return 0 * torch.stack(rows).sum((0, 2)) * tau  # no one to compare with
    if isinstance(tuples.similarity, MeanCosine):
        positive = similarity_of_rows(rows, tuples.similarity) / tau
        return mean_cosine_denominators(grams, tau, tuples.anchor) - positive
    if grams.stop - grams.start < grams.size:
        masks = Masks()
        samples = Samples(masks, range(len(units)), grams.start, grams.stop, grams.size, tau.device)
        negatives = every_tuple_sums(grams, tau, tuples, samples, see=False)
        return cross_entropy(similarity_of_rows(rows, tuples.similarity) / tau, negatives, masks)
    blocks = {}
    if not isinstance(tuples.similarity, Multilinear):
        blocks = {pair: grams.whole(*pair) for pair in pairs_of(len(units))}
    return all_tuples_loss(units, blocks, tau, tuples)


def _cross_entropy(logits: Tensor, first: int, column: bool = False) -> Tensor:
    """Cross-entropy ``(R,)`` of the rows, whose matches stand on a diagonal from column ``first`` on, or in it."""
    matched = logits[:, first] if column else logits[:, first : first + len(logits)].diagonal()
    return torch.logsumexp(logits, 1) - matched
