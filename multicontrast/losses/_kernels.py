"""The walk by kernels: each term that has one runs as an operator, over Gram blocks that another term needs anyway.

===========================================  ======================================================
term                                         operator
===========================================  ======================================================
pairs of all anchors, without a tuple term   ``pairwise_logsumexp``: no Gram block at all
pairs and sampled triplets of a whole batch  ``fused_loss``: all of it, over Gram blocks that are held
sampled triplets, largest eigenvalue         ``sampled_loss``: nothing of size (B, 1 + K) but an index
all triplets of an anchor, likewise          ``exact_logsumexp``: nothing of size B^3
===========================================  ======================================================

What is not in the table is the other roads', which do everything. Differentiable twice.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multicontrast._backend import has_bfloat16, is_transformed, use_triton
from multicontrast.linalg.gram3 import gram3_excess
from multicontrast.losses._cells import Cells, IndexCells, ListCells
from multicontrast.losses._exact_operator import exact_logsumexp
from multicontrast.losses._grams import Grams
from multicontrast.losses._masked import masked_loss
from multicontrast.losses._masks import Masks
from multicontrast.losses._pairwise_operator import pairwise_logsumexp
from multicontrast.losses._plain import pair_rows, reduce_rows
from multicontrast.losses._rows import unit_rows
from multicontrast.losses._sampled_operator import sampled_loss
from multicontrast.losses._shift_cells import ShiftCells
from multicontrast.losses._tiled import tuple_rows
from multicontrast.losses._walk import Tuples, Walk
from multicontrast.losses.triton.fused_operator import fused_loss
from multicontrast.similarity import Eigenvalue


def is_fused(embeddings: Sequence[Tensor], tau: Tensor, walk: Walk, tiled: bool) -> bool:
    """Whether :func:`fused` does this walk: its Gram blocks are held, and its masks only say who is whose negative."""
    first, masks, tuples = embeddings[0], walk.masks, walk.tuples
    if tiled or walk.anchors is not None or len(first) == 1 or len(embeddings) > 3 or not use_triton(first):
        return False
    if is_transformed(*embeddings, tau) or any(x.dtype == torch.float64 for x in (*embeddings, tau)):
        return False
    if masks is not None and (masks.extra is not None or masks.label_smoothing > 0 or masks.hardness > 0):
        return False
    if masks is not None and masks.weight is not None and masks.weight.requires_grad:
        return False
    if tuples is None:
        return bool(walk.pairs)
    kinds = (IndexCells, ListCells, ShiftCells)
    is_triplet = len(embeddings) == 3 and type(tuples.similarity) is Eigenvalue and isinstance(tuples.cells, kinds)
    anchored = not isinstance(tuples.cells, IndexCells) or tuples.cells.index.shape[0] == len(first)
    return is_triplet and anchored and not torch.are_deterministic_algorithms_enabled()


def fused(embeddings: Sequence[Tensor], tau: Tensor, walk: Walk, normalize: bool) -> Tensor:
    """The walk's loss as one operator. Half precision enters the products as it is."""
    first, tuples, masks = embeddings[0], walk.tuples, walk.masks or Masks()
    dtype = first.dtype if all(x.dtype == first.dtype for x in embeddings) else torch.float32
    if dtype == torch.bfloat16 and not has_bfloat16(first.device):
        dtype = torch.float32
    tau = tau.to(first.device, torch.float32, non_blocking=True)
    pairs = {(min(pair), max(pair)): pair for pair in walk.pairs}
    blocks = list(pairs) if tuples is None else [(0, 1), (0, 2), (1, 2)]
    share = 0.5 if walk.symmetric else 1.0
    rows = [share * (block in pairs and (walk.symmetric or pairs[block] == block)) for block in blocks]
    columns = [share * (block in pairs and (walk.symmetric or pairs[block] != block)) for block in blocks]
    scheme, index = "index", None
    if tuples is not None:
        assert tuples.cells is not None
        scheme, index = _scheme(tuples.cells, len(first), 0, len(first), first.device)
    loss, *_ = fused_loss(
        [x.to(dtype) for x in embeddings], tau, index, masks.present, masks.ids, masks.weight,
        [m for m, _ in blocks], [n for _, n in blocks], rows, columns,
        0.0 if tuples is None else tuples.alpha, scheme, walk.reduction, normalize,
    )  # fmt: skip
    return loss


def differentiable_form(
    embeddings: list[Tensor], tau: Tensor,
    index: Tensor | None, present: Tensor | None, ids: Tensor | None, weight: Tensor | None,
    left: Sequence[int], right: Sequence[int], rows: Sequence[float], columns: Sequence[float], alpha: float,
    scheme: str, reduction: str, normalize: bool,
) -> Tensor:  # fmt: skip
    """What :func:`fused_loss` computes, by the implementation that does everything."""
    xs, size = [x.to(tau.dtype) for x in embeddings], len(embeddings[0])
    cells: dict[str, Any] = {
        "index": lambda index: IndexCells(index, batch_size=size),
        "shifts": lambda index: ShiftCells(size, index.mT[:, 1:]),
        "list": lambda index: ListCells(size, 3, len(index) - 1, index.mT[:, 1:]),
    }
    tuples = None if index is None else Tuples(Eigenvalue(), cells[scheme](index), alpha=alpha)
    symmetric = all(row == column for row, column in zip(rows, columns))
    pairs = tuple((m, n) if row else (n, m) for m, n, row, column in zip(left, right, rows, columns) if row or column)
    walk = Walk(len(xs), pairs, symmetric, tuples, reduction, None, Masks(present, ids, weight))
    return masked_loss(xs, tau, walk, normalize, False)


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
    scheme, index = _scheme(cells, grams.size, start, stop, c.device)
    anchored: Tensor = sampled_loss(a, b, c, index, tau, scheme, start)
    return anchored


def _scheme(cells: Cells, size: int, start: int, stop: int, device: torch.device) -> tuple[str, Tensor]:
    """What :func:`sampled_loss` calls an arrangement of cells, and the index that it asks for."""
    if isinstance(cells, IndexCells):
        return "index", cells.of_anchors(start, stop)
    if isinstance(cells, ShiftCells):
        return "shifts", cells.shifts.mT
    assert isinstance(cells, ListCells)
    if cells.orders is None:  # all samples, in the order in which they follow the anchor
        return "shifts", torch.arange(size, device=device)[:, None].expand(-1, 2)
    return "list", torch.nn.functional.pad(cells.orders[:, : cells.count], (1, 0)).mT
