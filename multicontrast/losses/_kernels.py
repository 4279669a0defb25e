"""The walk by kernels: each term that has one runs as an operator, over Gram blocks that another term needs anyway.

=========================================  ======================================================
term                                       operator
=========================================  ======================================================
pairs, without a tuple term                ``pairwise_logsumexp``: no Gram block at all
triplets of an index, largest eigenvalue   ``sampled_loss``: nothing of size (B, 1 + K)
all triplets of an anchor, likewise        ``exact_logsumexp``: nothing of size B^3
=========================================  ======================================================

What is not in the table is the other roads', which do everything. Differentiable twice.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from multicontrast._backend import is_transformed, use_triton
from multicontrast.linalg.gram3 import gram3_excess
from multicontrast.losses._cells import IndexCells
from multicontrast.losses._exact_operator import exact_logsumexp
from multicontrast.losses._grams import Grams
from multicontrast.losses._pairwise_operator import pairwise_logsumexp
from multicontrast.losses._plain import pair_rows, reduce_rows
from multicontrast.losses._rows import unit_rows
from multicontrast.losses._sampled_operator import sampled_loss
from multicontrast.losses._tiled import tuple_rows
from multicontrast.losses._walk import Tuples, Walk
from multicontrast.similarity import Eigenvalue


def has_kernels(embeddings: Sequence[Tensor], tau: Tensor, walk: Walk, tiled: bool) -> bool:
    """Whether :func:`kernel_loss` does this walk: Triton is in charge, and knows its terms."""
    first = embeddings[0]
    if (
        walk.anchors is not None
        or not walk.is_unmasked
        or not use_triton(first)
        or len(first) == 1
        or is_transformed(*embeddings, tau)
    ):
        return False  # a batch of one has the gradient 0 exactly, which only subtraction of equals gives
    tuples = walk.tuples
    if tuples is None or tiled:
        return bool(walk.pairs) and first.dtype == torch.float32
    if len(embeddings) != 3 or type(tuples.similarity) is not Eigenvalue:
        return False
    if tuples.cells is None:
        return tuples.anchor == 0 and first.dtype == torch.float32
    return isinstance(tuples.cells, IndexCells)


def kernel_loss(embeddings: Sequence[Tensor], tau: Tensor, walk: Walk, normalize: bool, tiled: bool) -> Tensor:
    """The walk's loss: 0-dim, or ``(B,)`` for ``reduction="none"``."""
    units = [unit_rows(x) for x in embeddings] if normalize else list(embeddings)
    # A number becomes a tensor there, and a tensor comes over, without the host waiting for the device.
    tau = tau.to(units[0].device, units[0].dtype, non_blocking=True)
    tuples = walk.tuples
    size = len(units[0])
    grams = Grams(units, 0, size)
    loss = units[0].new_zeros(size)
    for m, n in walk.pairs:
        if tuples is not None and not tiled:  # which needs the block as well
            loss = loss + pair_rows(grams, torch.where(tau > 0, tau, torch.nan), (m, n), walk.symmetric)
        else:
            rows, columns, match = pairwise_logsumexp(units[m], units[n], tau, 0, walk.symmetric)
            loss = loss + ((rows + columns) / 2 if walk.symmetric else rows) - match
    if tuples is not None:
        by_tuples = tuple_rows(units, tau, tuples, 0, size) if tiled else _triplet_rows(grams, tau, tuples)
        loss = loss + tuples.alpha * by_tuples
    return reduce_rows(loss, walk, size)


def _triplet_rows(grams: Grams, tau: Tensor, tuples: Tuples) -> Tensor:
    """Eq. (3) for each anchor, with the largest eigenvalue."""
    a, b, c = grams.whole(0, 1), grams.whole(0, 2), grams.whole(1, 2)
    if isinstance(tuples.cells, IndexCells):
        loss: Tensor = sampled_loss(a, b, c, tuples.cells.index, tau)
        return loss
    lse, _ = exact_logsumexp(a, b, c, tau)
    return lse - gram3_excess(a.diagonal(), b.diagonal(), c.diagonal()) / tau
