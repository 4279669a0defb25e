"""The walk by kernels: each term that has one runs as an operator, over Gram blocks that another term needs anyway.

===========================================  ======================================================
term                                         operator
===========================================  ======================================================
pairs of all anchors, without a tuple term   ``pairwise_logsumexp``: no Gram block at all
sampled triplets, largest eigenvalue         ``sampled_loss``: nothing of size (B, 1 + K) but an index
all triplets of an anchor, likewise          ``exact_logsumexp``: nothing of size B^3
===========================================  ======================================================

What is not in the table is the other roads', which do everything. Differentiable twice.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from multicontrast._backend import is_transformed, use_triton
from multicontrast.linalg.gram3 import gram3_excess
from multicontrast.losses._cells import Cells, IndexCells, ListCells
from multicontrast.losses._exact_operator import exact_logsumexp
from multicontrast.losses._grams import Grams
from multicontrast.losses._pairwise_operator import pairwise_logsumexp
from multicontrast.losses._plain import pair_rows, reduce_rows
from multicontrast.losses._rows import unit_rows
from multicontrast.losses._sampled_operator import sampled_loss
from multicontrast.losses._shift_cells import ShiftCells
from multicontrast.losses._tiled import tuple_rows
from multicontrast.losses._walk import Tuples, Walk
from multicontrast.similarity import Eigenvalue


def has_kernels(embeddings: Sequence[Tensor], tau: Tensor, walk: Walk, tiled: bool) -> bool:
    """Whether :func:`kernel_loss` does this walk: Triton is in charge, and knows its terms."""
    first = embeddings[0]
    if not walk.is_unmasked or not use_triton(first) or len(first) == 1 or is_transformed(*embeddings, tau):
        return False  # a batch of one has the gradient 0 exactly, which only subtraction of equals gives
    tuples = walk.tuples
    if tuples is None or tiled:
        return bool(walk.pairs) and walk.anchors is None and first.dtype == torch.float32
    if len(embeddings) != 3 or type(tuples.similarity) is not Eigenvalue:
        return False
    if tuples.cells is None:
        return tuples.anchor == 0 and first.dtype == torch.float32
    return isinstance(tuples.cells, (IndexCells, ListCells, ShiftCells))


def kernel_loss(embeddings: Sequence[Tensor], tau: Tensor, walk: Walk, normalize: bool, tiled: bool) -> Tensor:
    """The walk's loss: 0-dim, or one value for each anchor for ``reduction="none"``."""
    units = [unit_rows(x) for x in embeddings] if normalize else list(embeddings)
    # A number becomes a tensor there, and a tensor comes over, without the host waiting for the device.
    tau = tau.to(units[0].device, units[0].dtype, non_blocking=True)
    tuples = walk.tuples
    size = len(units[0])
    start, stop = walk.range(size)
    grams = Grams(units, start, stop)
    loss = units[0].new_zeros(stop - start)
    if tuples is not None:  # first, since it needs whole blocks, of which pairs take rows
        by_tuples = tuple_rows(units, tau, tuples, start, stop) if tiled else _triplet_rows(grams, tau, tuples)
        loss = loss + tuples.alpha * by_tuples
    for m, n in walk.pairs:
        if tuples is not None and not tiled:  # which needs the block as well
            loss = loss + pair_rows(grams, torch.where(tau > 0, tau, torch.nan), (m, n), walk.symmetric)
        else:
            rows, columns, match = pairwise_logsumexp(units[m], units[n], tau, 0, walk.symmetric)
            loss = loss + ((rows + columns) / 2 if walk.symmetric else rows) - match
    return reduce_rows(loss, walk, size)


def _triplet_rows(grams: Grams, tau: Tensor, tuples: Tuples) -> Tensor:
    """Eq. (3) for each anchor, with the largest eigenvalue."""
    c, cells, start, stop = grams.whole(1, 2), tuples.cells, grams.start, grams.stop
    if isinstance(cells, IndexCells) and not cells.anchored:  # whose first members may be any rows
        index = cells.of_anchors(start, stop)
        loss: Tensor = sampled_loss(grams.whole(0, 1), grams.whole(0, 2), c, index, tau)
        return loss
    a, b = grams.rows(0, 1), grams.rows(0, 2)
    if cells is None:
        lse, _ = exact_logsumexp(a, b, c, tau)
        return lse - gram3_excess(a.diagonal(start), b.diagonal(start), c.diagonal()[start:stop]) / tau
    scheme, index = _scheme(cells, grams)
    anchored: Tensor = sampled_loss(a, b, c, index, tau, scheme, start)
    return anchored


def _scheme(cells: Cells, grams: Grams) -> tuple[str, Tensor]:
    """What :func:`sampled_loss` calls an arrangement of cells, and the index that it asks for."""
    if isinstance(cells, IndexCells):
        return "index", cells.of_anchors(grams.start, grams.stop)
    if isinstance(cells, ShiftCells):
        return "shifts", cells.shifts.mT
    assert isinstance(cells, ListCells)
    if cells.orders is None:  # all samples, in the order in which they follow the anchor
        return "shifts", torch.arange(grams.size, device=grams.units[0].device)[:, None].expand(-1, 2)
    return "list", torch.nn.functional.pad(cells.orders[:, : cells.count], (1, 0)).mT
