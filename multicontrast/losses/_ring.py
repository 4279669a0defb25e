r"""The walk in a ring: candidates travel from rank to rank, and no rank ever holds the logits of all of them.

Each rank keeps its anchors and passes the embeddings of its candidates on; after W - 1 passes every anchor has met
every candidate, some columns at a time, and has kept no more than its log-sum. Where the candidates are anchors, too
(the other direction of a pair), their log-sums travel with them and come home complete. The backward pass goes round
once more with the gradients of the travelling rows on board. Memory is that of a rank's own rows, of one rank's
travelling ones, and of B_local x chunk logits.

==========================  =======================================================================================
term                        what travels
==========================  =======================================================================================
pairs                       one modality; a single product serves both directions
tuples, ``tied``            all modalities but the anchor's
tuples, other schemes       nothing: each anchor has candidates of its own on any rank, so the rows of all ranks are
                            gathered, ``(B, D)`` for each modality, and their cells computed in tiles, twice
all tuples, ``anchor=0``    nothing, likewise: ``B_local x B^2`` cells in tiles
==========================  =======================================================================================

First derivatives only. Weights act on the average; options that act on logits are the gathered loss's.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from multicontrast._checks import compute_dtype, three_beats
from multicontrast.distributed import Ranks
from multicontrast.losses import _tiled
from multicontrast.losses._cells import ListCells, pairs_of
from multicontrast.losses._masks import weigh
from multicontrast.losses._rows import unit_rows
from multicontrast.losses._walk import Tuples, Walk
from multicontrast.similarity import CosineSimilarity, Multilinear

_COLUMNS = 1024  # candidates at a time


def check_ring(operation: str, tuples: Tuples | None, num_modalities: int) -> None:
    """Raise for tuples that the ring does not do."""
    if tuples is None or tuples.cells is not None:
        return
    if tuples.anchor == "any" or num_modalities > 3:
        raise ValueError(
            three_beats(
                f"`{operation}` does negatives='all' in a ring for anchor=0 and up to three modalities",
                f"anchor={tuples.anchor!r} and {num_modalities} modalities with ring=True",
                "Leave `ring` out, or choose another scheme.",
            )
        )


def ring_loss(embeddings: Sequence[Tensor], tau: float | Tensor, walk: Walk, normalize: bool, ranks: Ranks) -> Tensor:
    """The walk's loss of this rank's anchors, which are the rows of ``embeddings``."""
    dtype = compute_dtype(*embeddings)
    device = embeddings[0].device
    with torch.autocast(device.type, enabled=False):
        xs = [x.to(dtype) for x in embeddings]
        units = [unit_rows(x) for x in xs] if normalize else xs
        tau = tau.to(dtype) if isinstance(tau, Tensor) else torch.full((), tau, dtype=dtype, device=device)
        tau = torch.where(tau > 0, tau, torch.nan)
        loss = units[0].new_zeros(len(units[0]))
        for m, n in walk.pairs:
            loss = loss + _pair_rows(units[m], units[n], tau, walk.symmetric, ranks)
        if walk.tuples is not None:
            loss = loss + walk.tuples.alpha * _tuple_rows(units, tau, walk.tuples, ranks)
        return weigh(loss, walk.masks, None, walk.reduction, ranks.start, ranks.stop, ranks.total)


def _pair_rows(x: Tensor, y: Tensor, tau: Tensor, symmetric: bool, ranks: Ranks) -> Tensor:
    """Eq. (1) for each anchor; the mean of both directions if symmetric."""
    rows, columns = _RingLogSumExp.apply(ranks, Multilinear(), symmetric, tau, x, y)
    matched = torch.linalg.vecdot(x, y) / tau
    return (rows + columns) / 2 - matched if symmetric else rows - matched


def _tuple_rows(units: list[Tensor], tau: Tensor, tuples: Tuples, ranks: Ranks) -> Tensor:
    """Eq. (3) for each anchor."""
    similarity, cells = tuples.similarity, tuples.cells
    if ranks.total == 1:
        return 0 * torch.stack(units).sum((0, 2)) * tau  # no one to compare with
    matched = _similarity_of_rows(similarity, units) / tau
    if (isinstance(cells, ListCells) and cells.orders is None) or (cells is None and len(units) == 2):
        rows, _ = _RingLogSumExp.apply(ranks, similarity, False, tau, *units)
        return rows - matched
    _, gathered = ranks.gather(*units)
    if cells is None:
        return ranks.join(_all_rows(units[0], gathered, tau, similarity) - matched, *gathered)
    return ranks.join(_tiled.tuple_rows(gathered, tau, tuples, ranks.start, ranks.stop), *gathered)


def _similarity_of_rows(similarity: CosineSimilarity | Multilinear, units: Sequence[Tensor]) -> Tensor:
    if isinstance(similarity, Multilinear):
        return similarity.of_rows(units)
    return similarity([torch.linalg.vecdot(units[m], units[n]) for m, n in pairs_of(len(units))])


def _logits(
    similarity: CosineSimilarity | Multilinear, tau: Tensor, anchors: Tensor, lists: Sequence[Tensor]
) -> Tensor:
    """``(R, C)``: each anchor against the tuples that the rows of ``lists`` complete."""
    if isinstance(similarity, Multilinear):
        product = lists[0]
        for other in lists[1:]:
            product = product * other
        return anchors @ product.mT / tau
    cosines = []
    for m, n in pairs_of(1 + len(lists)):
        if m == 0:
            cosines.append(anchors @ lists[n - 1].mT)
        else:
            cosines.append(torch.linalg.vecdot(lists[m - 1], lists[n - 1]).expand(len(anchors), -1))
    return similarity(cosines) / tau


# --- All tuples of an anchor -----------------------------------------------------------------------------------------


def _all_rows(anchors: Tensor, units: list[Tensor], tau: Tensor, similarity: CosineSimilarity | Multilinear) -> Tensor:
    """The log-sum over all ``(j, k)`` for each anchor, three modalities, in tiles that are computed again backward."""
    _, second, third = units
    step = 64
    rows = max(1, _tiled._CELLS // step**2)

    def tile(tau: Tensor, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        if isinstance(similarity, Multilinear):
            values = (x[:, None] * y) @ z.mT
        else:
            shape = (len(x), len(y), len(z))
            a, b, c = (x @ y.mT)[:, :, None], (x @ z.mT)[:, None, :], y @ z.mT
            values = similarity([cosine.expand(shape) for cosine in (a, b, c)])
        return torch.logsumexp((values / tau).flatten(1), 1)

    parts = []
    for own in anchors.split(rows):
        total = own.new_full((len(own),), -torch.inf)
        for y, z in itertools.product(second.split(step), third.split(step)):
            total = torch.logaddexp(total, checkpoint(tile, tau, own, y, z, use_reentrant=False))
        parts.append(total)
    return torch.cat(parts)


# --- The ring --------------------------------------------------------------------------------------------------------


class _RingLogSumExp(torch.autograd.Function):
    """The log-sum of every anchor over the candidates of all ranks; with ``columns`` that of every candidate over the
    anchors of all ranks, too, for the candidates that are at home here (empty if not asked for)."""

    @staticmethod
    def forward(
        ctx: Any,
        ranks: Ranks,
        similarity: CosineSimilarity | Multilinear,
        columns: bool,
        tau: Tensor,
        anchors: Tensor,
        *lists: Tensor,
    ) -> tuple[Tensor, Tensor]:
        rows = anchors.new_full((len(anchors),), -torch.inf)
        block = torch.cat(lists, dim=1)
        sums = block.new_full((len(block) if columns else 0,), -torch.inf)
        for visit in range(ranks.size):
            home = (ranks.rank - visit) % ranks.size
            coming = _Pass(ranks, block, home) if visit < ranks.size - 1 else None
            for k, n in _bounds(len(block)):
                logits = _logits(similarity, tau, anchors, block[k:n].chunk(len(lists), dim=1))
                rows = torch.logaddexp(rows, torch.logsumexp(logits, 1))
                if columns:
                    sums[k:n] = torch.logaddexp(sums[k:n], torch.logsumexp(logits, 0))
            if columns:
                sums = _Pass(ranks, sums, home).wait()
            if coming is not None:
                block = coming.wait()
        ctx.ranks, ctx.similarity, ctx.columns = ranks, similarity, columns
        ctx.save_for_backward(tau, rows, sums, anchors, *lists)
        return rows, sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_rows: Tensor, by_columns: Tensor) -> tuple[Any, ...]:
        with torch.autocast(by_rows.device.type, enabled=False):
            return _RingLogSumExp._backward(ctx, by_rows, by_columns)

    @staticmethod
    def _backward(ctx: Any, by_rows: Tensor, by_columns: Tensor) -> tuple[Any, ...]:
        ranks: Ranks = ctx.ranks
        tau, rows, sums, anchors, *lists = ctx.saved_tensors
        grad_tau, grad_anchors = torch.zeros_like(tau), torch.zeros_like(anchors)
        rows, by_rows = rows[:, None], by_rows[:, None]
        block = torch.cat(lists, dim=1)
        # What the candidates carry: their gradient so far, and as anchors of the other direction their log-sum.
        carried = torch.cat(
            [torch.zeros_like(block), *([sums[:, None], by_columns[:, None]] if ctx.columns else [])], 1
        )
        width = block.shape[1]
        for visit in range(ranks.size):
            home = (ranks.rank - visit) % ranks.size
            coming = _Pass(ranks, block, home) if visit < ranks.size - 1 else None
            for k, n in _bounds(len(block)):
                with torch.enable_grad():
                    leaves = [x.detach().requires_grad_() for x in (tau, anchors, *block[k:n].chunk(len(lists), dim=1))]
                    logits = _logits(ctx.similarity, leaves[0], leaves[1], leaves[2:])
                weights = (logits.detach() - rows).exp_().mul_(by_rows)
                if ctx.columns:
                    column = carried[k:n, width:]
                    weights += (logits.detach() - column[:, 0]).exp_().mul_(column[:, 1])
                by_tau, by_anchors, *by_lists = torch.autograd.grad(logits, leaves, weights)
                grad_tau += by_tau
                grad_anchors += by_anchors
                carried[k:n, :width] += torch.cat(by_lists, dim=1)
            carried = _Pass(ranks, carried, home).wait()
            if coming is not None:
                block = coming.wait()
        return None, None, None, grad_tau, grad_anchors, *carried[:, :width].chunk(len(lists), dim=1)


def _bounds(size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + _COLUMNS, size)) for start in range(0, size, _COLUMNS))


class _Pass:
    """One step around the ring: what lies here goes to the next rank, and what the rank before has comes.

    ``home`` is the rank whose rows lie here, which says how many come.
    """

    def __init__(self, ranks: Ranks, rows: Tensor, home: int) -> None:
        self._sent = rows.contiguous()
        count = ranks.counts[(home - 1) % ranks.size]
        self._received = rows.new_empty(count, *rows.shape[1:])
        after, before = (_global_rank(ranks, ranks.rank + turn) for turn in (1, -1))
        operations = []
        if len(self._sent):
            operations.append(dist.P2POp(dist.isend, self._sent, after, ranks.group))
        if count:
            operations.append(dist.P2POp(dist.irecv, self._received, before, ranks.group))
        self._work = dist.batch_isend_irecv(operations) if operations else []

    def wait(self) -> Tensor:
        """The rows that came."""
        for work in self._work:
            work.wait()
        return self._received


def _global_rank(ranks: Ranks, rank: int) -> int:
    return dist.get_global_rank(ranks.group, rank % ranks.size)
