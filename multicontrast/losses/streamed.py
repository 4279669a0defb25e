r"""Losses that never hold the logits: one log-sum over chunks of candidates, in one process or around a ring of ranks.

If all anchors share the same candidates (pairs and tied tuples), each tile of logits is added to the log-sums of its
rows and, for the reverse direction, of its columns; the backward pass computes each tile again. In a ring each rank
keeps its anchors and sends the embeddings of its candidates to the next, together with the log-sums of their columns
and, in the backward pass, their gradients, until every anchor was compared with every candidate. Memory holds a rank's
own rows, those of one other rank, and a tile. Other schemes use the reference's slabs; a ring gathers their rows.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from multicontrast._checks import without_autocast
from multicontrast.distributed import Ranks, with_all
from multicontrast.losses import reference
from multicontrast.losses.candidates import Blocks, pairs_of
from multicontrast.losses.plan import Plan, Term
from multicontrast.losses.reference import Evaluation, mean_of, unit_rows
from multicontrast.losses.softmax import weigh
from multicontrast.similarity import CosineSimilarity, Multilinear, is_learnable

TILE = 1024  # rows and columns of logits at a time


def applies(plan: Plan, embeddings: Sequence[Tensor]) -> bool:
    """Tiled plans, without masks other than weights."""
    unmasked = plan.masks.only_weigh and plan.diagnostics is None and plan.size > 1
    return plan.tiled and unmasked and any(_is_streamed(term) for term in plan.terms)


def _is_streamed(term: Term) -> bool:
    """Whether all anchors of a term have the whole batch as candidates, and only the embeddings and the temperature are
    differentiated."""
    return term.directions[0][0].are_tied and not is_learnable(term.similarity, len(term.modalities))


def loss(plan: Plan, embeddings: Sequence[Tensor]) -> Tensor:
    """The plan's loss: 0-dim, or one value for each anchor for ``reduction="none"``."""
    return reference.loss(plan, embeddings, _by_anchor)


def _by_anchor(evaluation: Evaluation) -> Tensor | None:
    term, plan = evaluation.term, evaluation.plan
    if not _is_streamed(term):
        return None
    first, *others = evaluation.blocks.units
    own = slice(plan.start, plan.stop)

    def log_sums(anchors: Tensor, lists: Sequence[Tensor], columns: bool) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = _LogSum.apply(None, term.similarity, columns, evaluation.tau, anchors, *lists)
        return found

    if plan.is_whole:
        rows, columns = log_sums(first, others, term.symmetric)
    else:
        rows, _ = log_sums(first[own], others, False)
        if term.symmetric:
            _, columns = log_sums(first, [x[own] for x in others], True)
    matched = evaluation.positive(term.directions[0][0], plan.start, plan.stop) / evaluation.tau
    return mean_of([rows, columns] if term.symmetric else [rows]) - matched


def ring_loss(plan: Plan, embeddings: Sequence[Tensor], ranks: Ranks) -> Tensor:
    """The plan's loss of this rank's anchors, which are the rows of ``embeddings``."""
    units = [unit_rows(x) for x in embeddings] if plan.normalize else list(embeddings)
    blocks: Blocks | None = None
    total = units[0].new_zeros(plan.stop - plan.start if plan.reduction == "none" else ())
    for term in plan.terms:
        tau = torch.where(term.tau > 0, term.tau, torch.nan).to(units[0].dtype)
        rows = [units[m] for m in term.modalities]
        if _is_streamed(term):
            sums, columns = _LogSum.apply(ranks, term.similarity, term.symmetric, tau, *rows)
            matched = _similarity_of_rows(term.similarity, rows) / tau
            by_anchor = mean_of([sums, columns] if term.symmetric else [sums]) - matched
        else:
            if blocks is None:
                blocks = Blocks(ranks.gather(*units)[1], plan.start, plan.stop)
            held = term.directions[0][0].holds_positive  # all tuples read whole blocks repeatedly
            blocks.held = held
            evaluation = Evaluation(term, dataclasses.replace(plan, tiled=not held), blocks, [None] * len(units))
            by_anchor = mean_of(direction.loss for direction in evaluation.directions())
            by_anchor = ranks.join(by_anchor, *blocks.units)
        value = weigh(by_anchor, plan.masks, None, plan.reduction, plan.start, plan.stop, plan.size)
        total = total + term.alpha * value
    return total


def _similarity_of_rows(similarity: CosineSimilarity | Multilinear, rows: Sequence[Tensor]) -> Tensor:
    if isinstance(similarity, Multilinear):
        return similarity.of_rows(rows)
    return similarity([torch.linalg.vecdot(rows[m], rows[n]) for m, n in pairs_of(len(rows))])


def _logits(
    similarity: CosineSimilarity | Multilinear, tau: Tensor, anchors: Tensor, lists: Sequence[Tensor]
) -> Tensor:
    """``(R, C)``: each anchor against the tuples that the rows of ``lists`` complete."""
    if isinstance(similarity, Multilinear):
        return anchors @ math.prod(lists[1:], start=lists[0]).mT / tau
    cosines = []
    for m, n in pairs_of(1 + len(lists)):
        if m == 0:
            cosines.append(anchors @ lists[n - 1].mT)
        else:
            cosines.append(torch.linalg.vecdot(lists[m - 1], lists[n - 1])[None])
    return similarity(torch.broadcast_tensors(*cosines)) / tau


class _LogSum(torch.autograd.Function):
    """The log-sum of every anchor over the candidates of all ranks; with ``columns`` also that of every candidate of
    this process over the anchors (otherwise empty)."""

    @staticmethod
    def forward(
        ctx: Any,
        ranks: Ranks | None,
        similarity: CosineSimilarity | Multilinear,
        columns: bool,
        tau: Tensor,
        anchors: Tensor,
        *lists: Tensor,
    ) -> tuple[Tensor, Tensor]:
        rows = anchors.new_full((len(anchors),), -torch.inf)
        block = torch.cat(lists, dim=1)
        sums = block.new_full((len(block) if columns else 0,), -torch.inf)
        for home, send in _visits(ranks):
            coming = send(block)
            for (i, j), (k, n) in _tiles(len(anchors), len(block)):
                logits = _logits(similarity, tau, anchors[i:j], block[k:n].chunk(len(lists), dim=1))
                rows[i:j] = torch.logaddexp(rows[i:j], torch.logsumexp(logits, 1))
                if columns:
                    sums[k:n] = torch.logaddexp(sums[k:n], torch.logsumexp(logits, 0))
            if columns and ranks is not None:
                sums = _Pass(ranks, sums, home).wait()
            if coming is not None:
                block = coming.wait()
        ctx.ranks, ctx.similarity, ctx.columns = ranks, similarity, columns
        ctx.save_for_backward(tau, rows, sums, anchors, *lists)
        return rows, sums

    @staticmethod
    def backward(ctx: Any, by_rows: Tensor, by_columns: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            return None, None, None, *_second_order(ctx, by_rows, by_columns)
        with without_autocast(by_rows.device):
            return None, None, None, *_LogSum._backward(ctx, by_rows, by_columns)

    @staticmethod
    def _backward(ctx: Any, by_rows: Tensor, by_columns: Tensor) -> tuple[Tensor, ...]:
        ranks: Ranks | None = ctx.ranks
        tau, rows, sums, anchors, *lists = ctx.saved_tensors
        grad_tau, grad_anchors = torch.zeros_like(tau), torch.zeros_like(anchors)
        rows, by_rows = rows[:, None], by_rows[:, None]
        block = torch.cat(lists, dim=1)
        # Sent with the candidates: their gradient so far, and their log-sum as anchors of the reverse direction.
        carried = torch.cat(
            [torch.zeros_like(block), *([sums[:, None], by_columns[:, None]] if ctx.columns else [])], 1
        )
        width = block.shape[1]
        for home, send in _visits(ranks):
            coming = send(block)
            for (i, j), (k, n) in _tiles(len(anchors), len(block)):
                with torch.enable_grad():
                    candidates = block[k:n].chunk(len(lists), dim=1)
                    leaves = [x.detach().requires_grad_() for x in (tau, anchors[i:j], *candidates)]
                    logits = _logits(ctx.similarity, leaves[0], leaves[1], leaves[2:])
                weights = (logits.detach() - rows[i:j]).exp_().mul_(by_rows[i:j])
                if ctx.columns:
                    column = carried[k:n, width:]
                    weights += (logits.detach() - column[:, 0]).exp_().mul_(column[:, 1])
                by_tau, by_anchors, *by_lists = torch.autograd.grad(logits, leaves, weights)
                grad_tau += by_tau
                grad_anchors[i:j] += by_anchors
                carried[k:n, :width] += torch.cat(by_lists, dim=1)
            if ranks is not None:
                carried = _Pass(ranks, carried, home).wait()
            if coming is not None:
                block = coming.wait()
        return grad_tau, grad_anchors, *carried[:, :width].chunk(len(lists), dim=1)


def _second_order(ctx: Any, by_rows: Tensor, by_columns: Tensor) -> list[Tensor | None]:
    """The first derivative with a graph of its own, through all logits at once."""
    if ctx.ranks is not None:
        raise RuntimeError(
            "A loss with `ring=True` has first derivatives only; got create_graph=True. Leave `ring` out, "
            "and gather=True gives the same loss with derivatives of every order."
        )
    tau, _, _, *rows = ctx.saved_tensors
    logits = _logits(ctx.similarity, tau, rows[0], rows[1:])
    found, grads = [torch.logsumexp(logits, 1)], [by_rows]
    if ctx.columns:
        found, grads = [*found, torch.logsumexp(logits, 0)], [*grads, by_columns]
    wanted = ctx.needs_input_grad[3:]
    inputs = [x for x, want in zip((tau, *rows), wanted) if want]
    results = iter(torch.autograd.grad(found, inputs, grads, create_graph=True, materialize_grads=True))
    return [next(results) if want else None for want in wanted]


def _tiles(rows: int, columns: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    return itertools.product(_bounds(rows), _bounds(columns))


def _bounds(size: int) -> list[tuple[int, int]]:
    return [(start, min(start + TILE, size)) for start in range(0, size, TILE)]


# --- The ring --------------------------------------------------------------------------------------------------------


def _visits(ranks: Ranks | None) -> Iterator[tuple[int, Any]]:
    """For each step of the ring: the rank whose rows are here, and a function that sends them on."""
    if ranks is None:
        yield 0, lambda _: None
        return
    for visit in range(ranks.size):
        home = (ranks.rank - visit) % ranks.size
        last = visit == ranks.size - 1
        yield home, lambda block, home=home, last=last: None if last else _Pass(ranks, block, home)


class _Pass:
    """One step of the ring: sends rows to the next rank and receives those of the rank before.

    ``home`` is the rank whose rows are here; it determines the number of rows received.
    """

    def __init__(self, ranks: Ranks, rows: Tensor, home: int) -> None:
        self._ranks, self._sent = ranks, rows.contiguous()
        count = ranks.counts[(home - 1) % ranks.size]
        self._received = rows.new_empty(count, *rows.shape[1:])
        after, before = (dist.get_global_rank(ranks.group, (ranks.rank + turn) % ranks.size) for turn in (1, -1))
        operations = []
        if len(self._sent):
            operations.append(dist.P2POp(dist.isend, self._sent, after, ranks.group))
        if count:
            operations.append(dist.P2POp(dist.irecv, self._received, before, ranks.group))
        self._work = self._with_all(dist.batch_isend_irecv, operations) if operations else []

    def wait(self) -> Tensor:
        """The received rows."""
        for work in self._work:
            self._with_all(work.wait)
        return self._received

    def _with_all(self, step: Callable[..., Any], *arguments: Any) -> Any:
        return with_all(self._ranks.operation, self._ranks.group, step, *arguments)
