r"""The fused road on a CPU: closed-form gradients, each Gram block overwritten by its own gradient.

One matmul for each pair of modalities, then row blocks that stay in cache: read the tuples' cosines, similarity and
derivative, softmax, write the weighted derivative back; then two matmuls for each block in the backward pass. Beside
the Gram blocks it needs memory for one row block, for tuples that lie anywhere one more block for each pair of
modalities that does not hold the anchor, and in short batches a copy of the blocks.

It does means and sums of the plain terms, weighted or not, for the first derivative. Everything else
(``reduction="none"``, masks, other devices, transforms, second derivatives) walks the differentiable road of
:mod:`multicontrast.losses._plain`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from multicontrast._workspace import Workspace
from multicontrast.losses._cells import Cells, pairs_of
from multicontrast.losses._grams import Pair
from multicontrast.losses._pair_block import LARGEST_SCALE, LOG2_E, PairBlock, row_blocks
from multicontrast.losses._plain import plain_loss
from multicontrast.losses._rows import dot, lengths_to_undo, row_products, scale_products_, undo_lengths_backward_
from multicontrast.losses._walk import Tuples, Walk
from multicontrast.similarity import CosineSimilarity

RowFunction = Callable[[int, int], None]

# Up to a quarter as many rows as columns a copy of the cosines costs less than passes over the gradients of the rows:
# from cosines and their gradients come the radial parts, which normalising takes off and of which tau has the sum.
_SHORT = 4


def dense_loss(embeddings: list[Tensor], tau: Tensor, walk: Walk, normalize: bool) -> Tensor:
    """The walk's loss, a 0-dim tensor of the embeddings' type; ``walk.tuples`` has cells, if there is any."""
    loss: Tensor = _DenseLoss.apply(walk, normalize, tau, *embeddings)
    return loss


class _DenseLoss(torch.autograd.Function):
    """Forward leaves the gradients of the Gram blocks; backward multiplies them out."""

    @staticmethod
    def forward(ctx: Any, walk: Walk, normalize: bool, tau: Tensor, *embeddings: Tensor) -> Tensor:
        with torch.autocast(embeddings[0].device.type, enabled=False):
            rows, inverses, scaled = lengths_to_undo(embeddings) if normalize else (list(embeddings), [], False)
            needs_gradient = any(ctx.needs_input_grad)
            blocks = _Blocks(_in_order(rows, walk), _in_order(inverses, walk) if scaled else None, walk, tau.item())
            if needs_gradient and scaled == normalize and _SHORT * rows[0].shape[0] <= rows[0].shape[1]:
                blocks.keep_cosines()
            given = None if walk.masks is None else walk.masks.weight
            by_anchor = None if given is None else given.to(rows[0].dtype)
            total = len(embeddings[0]) if by_anchor is None else by_anchor.sum().item() or 1.0
            weight = 1.0 / total if walk.reduction == "mean" else 1.0
            loss, slope = _walk_blocks(blocks, walk, weight, by_anchor, needs_gradient)
        if needs_gradient:
            ctx.walk, ctx.normalize, ctx.scaled, ctx.slope, ctx.slopes = walk, normalize, scaled, slope, blocks.slopes
            ctx.save_for_backward(tau, *embeddings, *(() if not normalize else (*rows, *inverses)), *blocks.values())
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        walk: Walk = ctx.walk
        count = walk.num_modalities
        tau, *saved = ctx.saved_tensors
        embeddings = saved[:count]
        if torch.is_grad_enabled():  # create_graph=True: the gradient must itself have one
            return (None, None, *_plain_gradients(ctx, tau, embeddings, grad_loss))
        rows, inverses = (saved[count : 2 * count], saved[2 * count : 3 * count]) if ctx.normalize else (embeddings, [])
        blocks = dict(zip(walk.blocks, saved[-len(walk.blocks) :] if walk.blocks else []))
        needs_tau, wanted = ctx.needs_input_grad[2], ctx.needs_input_grad[3:]
        scale = grad_loss.item()
        with torch.autocast(grad_loss.device.type, enabled=False):
            rows = _in_order(rows, walk)
            if ctx.normalize:
                inverses = _in_order(inverses, walk)
            whole = all(wanted)
            parts: list[Tensor] | None = ctx.slopes
            slope = 0.0 if parts is None else sum(float(part.sum()) for part in parts) / 2
            results: list[Tensor | None] = []
            for m, needed in enumerate(wanted):
                grad = None
                if needed and parts is not None and ctx.normalize:  # minus the radial part of what will be added
                    grad = rows[m] * (parts[m] * inverses[m].square()).neg_()
                needs_slope = needs_tau and not whole and parts is None
                grad, own_slope = _gradient_by_rows(m, blocks, rows, needed, needs_slope, grad)
                slope += own_slope
                results.append(grad)
                if grad is None:
                    continue
                radial = 0.0
                if ctx.normalize and parts is None:
                    radial = undo_lengths_backward_(grad, rows[m], inverses[m], ctx.scaled, scale)
                else:
                    if needs_tau and whole and parts is None:
                        radial = row_products(grad, rows[m])
                    if scale != 1:  # as `loss.backward()` has it
                        grad.mul_(scale)
                if whole:
                    slope += radial / 2  # each block is met twice, once from each side
            if walk.orders is not None:  # back to the order of the batch, into the copies that are done with
                for m, order in enumerate(walk.orders, start=1):
                    grad = results[m]
                    if grad is not None:
                        results[m] = torch.index_select(grad, 0, _inverse_order(order), out=rows[m])
            grad_tau = (grad_loss * (-(slope + ctx.slope) / tau.item())).to(tau.dtype) if needs_tau else None
        return (None, None, grad_tau, *results)


class _Blocks(dict[Pair, Tensor]):
    """The Gram blocks of a walk, times ``scale``: products of the rows, and of their inverse lengths where these are
    not in the rows already."""

    def __init__(self, rows: list[Tensor], inverses: list[Tensor] | None, walk: Walk, tau: float) -> None:
        super().__init__()
        self.rows, self.inverses, self.tau = rows, inverses, tau
        self.kept: dict[Pair, Tensor] = {}
        self.slopes: list[Tensor] | None = None  # for each row ``(B, 1)`` the sum of gradient x cosine over its pairs
        # Logits to the base 2, as the softmax wants them, cost nothing here; a similarity must not mind.
        similarity = None if walk.tuples is None else walk.tuples.similarity
        scalable = similarity is None or (isinstance(similarity, CosineSimilarity) and similarity.homogeneous)
        self.scale = LOG2_E / tau if scalable and LOG2_E / tau < LARGEST_SCALE else 1.0
        for m, n in walk.blocks:
            self[m, n] = rows[0].new_empty(len(rows[0]), len(rows[0]))
            self.write(m, n)

    def write(self, m: int, n: int) -> None:
        """Multiply a block out, again if it was overwritten."""
        self[m, n].addmm_(self.rows[m], self.rows[n].mT, beta=0, alpha=self.scale)
        self.undo_lengths(m, n)

    def undo_lengths(self, m: int, n: int) -> None:
        """From products to cosines, or from gradients by cosines to those by products."""
        if self.inverses is not None:
            scale_products_(self[m, n], self.inverses[m], self.inverses[n])

    def keep_cosines(self) -> None:
        """Beside the blocks, for :meth:`multiply_slopes`."""
        self.kept = {pair: block.clone() for pair, block in self.items()}

    def multiply_slopes(self) -> None:
        """Set ``slopes``, if cosines were kept, from gradients by them."""
        if not self.kept:
            return
        self.slopes = [row.new_zeros(len(row), 1) for row in self.rows]
        for (m, n), kept in self.kept.items():
            product = kept.mul_(self[m, n])
            self.slopes[m].add_(product.sum(1, keepdim=True), alpha=1 / self.scale)
            self.slopes[n].add_(product.sum(0)[:, None], alpha=1 / self.scale)
        self.kept = {}


def _plain_gradients(ctx: Any, tau: Tensor, embeddings: list[Tensor], grad_loss: Tensor) -> tuple[Tensor | None, ...]:
    """The first derivative with a graph of its own, by the differentiable road."""
    inputs = [tau, *embeddings]
    wanted = [x for x, needed in zip(inputs, ctx.needs_input_grad[2:]) if needed]
    loss = plain_loss(embeddings, tau, ctx.walk, ctx.normalize)
    grads = iter(torch.autograd.grad(loss, wanted, grad_loss, create_graph=True, materialize_grads=True))
    return tuple(next(grads) if needed else None for needed in ctx.needs_input_grad[2:])


def _in_order(values: Sequence[Tensor], walk: Walk) -> list[Tensor]:
    """What belongs to the rows of each modality, in the order in which they enter the products."""
    if walk.orders is None:
        return list(values)
    return [values[0], *(value.index_select(0, order) for value, order in zip(values[1:], walk.orders))]


def _inverse_order(order: Tensor) -> Tensor:
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))


def _gradient_by_rows(
    m: int,
    blocks: Mapping[Pair, Tensor],
    rows: Sequence[Tensor],
    wanted: bool,
    needs_slope: bool,
    grad: Tensor | None,
) -> tuple[Tensor | None, float]:
    """The gradient by the rows of one modality, if wanted, added to ``grad``; and if asked the sum of gradient x cosine
    over the blocks of its pairs with later modalities (for tau)."""
    slope = 0.0
    if wanted or needs_slope:
        for (first, second), block in blocks.items():
            if first == m:
                grad = _add_product(grad, block, rows[second])
        if needs_slope and grad is not None:
            slope = row_products(grad, rows[m])
    if not wanted:
        return None, slope
    for (first, second), block in blocks.items():
        if second == m:
            grad = _add_product(grad, block.mT, rows[first])
    return torch.zeros_like(rows[m]) if grad is None else grad, slope


def _add_product(held: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    return left @ right if held is None else held.addmm_(left, right)


def _walk_blocks(
    blocks: _Blocks, walk: Walk, weight: float, by_anchor: Tensor | None, needs_gradient: bool
) -> tuple[Tensor, float]:
    """The loss: ``weight`` times ``by_anchor`` times that of each anchor, summed. With ``needs_gradient`` the blocks
    become its gradients by the products of the rows.

    The second result corrects the derivative by tau: minus sum(gradient x cosine) / tau is exact for similarities
    that scale with the cosines, and off by this much (times -1 / tau) for others.
    """
    cells = walk.tuples.cells if walk.tuples is not None else None
    if cells is not None:
        cells.prepare(blocks)
    share = weight / 2 if walk.symmetric else weight
    loss = torch.zeros((), dtype=blocks.rows[0].dtype)
    pair_blocks = {}
    for pair in walk.pairs:
        unread = cells is None or not cells.reads(pair)
        restore = partial(blocks.write, *pair) if unread else None
        pair_blocks[pair] = PairBlock(
            blocks[pair],
            blocks.tau,
            blocks.scale,
            _targets(cells, pair),
            walk.symmetric,
            restore,
            None if by_anchor is None else (_in_rows(by_anchor, cells, pair[0]), _in_rows(by_anchor, cells, pair[1])),
        )
        loss += share * pair_blocks[pair].total()

    def differentiate_pair(pair: Pair, start: int, stop: int) -> None:
        if pair in pair_blocks:
            pair_blocks[pair].gradient_rows_(start, stop, share)
        else:
            blocks[pair][start:stop].zero_()

    correction = 0.0
    local = [pair for pair in blocks if cells is not None and cells.row_local(pair)]

    def make_room(start: int, stop: int) -> None:
        for pair in local:
            differentiate_pair(pair, start, stop)

    if walk.tuples is not None and cells is not None:
        term, correction = _walk_tuples(blocks, walk.tuples, cells, weight, by_anchor, needs_gradient, make_room)
        loss += term
    if needs_gradient:
        for pair, block in blocks.items():
            if pair not in local:
                for start, stop in row_blocks(*block.shape):
                    differentiate_pair(pair, start, stop)
        if cells is not None:
            cells.finish(blocks)
        blocks.multiply_slopes()
        for pair in blocks:
            blocks.undo_lengths(*pair)
    return loss, correction


def _in_rows(values: Tensor, cells: Cells | None, modality: int) -> Tensor:
    """Values of the samples in the order in which the rows of a modality enter the products."""
    if cells is None or cells.orders is None or modality == 0:
        return values
    return values[cells.orders[modality - 1]]


def _targets(cells: Cells | None, pair: Pair) -> Tensor | None:
    """The column of each row's match in a block whose modalities were reordered."""
    if cells is None or cells.orders is None:
        return None
    m, n = pair
    place = _inverse_order(cells.orders[n - 1])
    return place if m == 0 else place[cells.orders[m - 1]]


def _walk_tuples(
    blocks: _Blocks,
    tuples: Tuples,
    cells: Cells,
    weight: float,
    by_anchor: Tensor | None,
    needs_gradient: bool,
    make_room: RowFunction,
) -> tuple[Tensor, float]:
    """The tuple term: ``make_room(start, stop)`` turns the row-local blocks into gradients once they have been read."""
    similarity = tuples.similarity
    assert isinstance(similarity, CosineSimilarity)
    size, tau = len(blocks.rows[0]), blocks.tau
    kind = blocks.rows[0]
    step = max(stop - start for start, stop in row_blocks(size, cells.width))
    workspace = Workspace()
    buffers = [kind.new_empty(step, cells.width) for _ in pairs_of(cells.num_modalities)]
    factor = LOG2_E / (tau * blocks.scale)
    scale: float | Tensor = weight * tuples.alpha / tau
    of_batch = None if by_anchor is None else scale * by_anchor
    loss, correction = kind.new_zeros(()), 0.0
    for start, stop in row_blocks(size, cells.width):
        rows = stop - start
        if of_batch is not None:
            scale = of_batch[start:stop]
        cosines = [buffer[:rows] for buffer in buffers]
        cells.read_rows(blocks, start, stop, cosines)
        if needs_gradient:
            value, pullback = similarity.with_pullback(cosines, workspace)
        else:
            value = similarity.without_gradient(cosines)
        logits = value if factor == 1 else value * factor
        column = cells.positive(start, stop)
        where = (slice(None), column) if isinstance(column, int) else (torch.arange(rows), column)
        positive = logits[where].clone()
        peak = logits.amax(1)
        powers = logits.sub_(peak[:, None]).exp2_()
        total = powers.sum(1)
        loss += ((scale * tau) * ((peak - positive) / LOG2_E + total.log())).sum()
        if not needs_gradient:
            continue
        weights = powers.mul_((scale / total)[:, None])
        weights[where] -= scale
        slopes = pullback(weights)
        if not similarity.homogeneous:
            correction += dot(weights, value) - sum(dot(slope, cosine) for slope, cosine in zip(slopes, cosines))
        make_room(start, stop)
        cells.write_rows(blocks, start, stop, slopes)
    return loss, correction
