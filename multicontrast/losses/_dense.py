r"""The fused road on a CPU: closed-form gradients, each Gram block overwritten by its own gradient.

One matmul for each pair of modalities, then row blocks that stay in cache: read the tuples' cosines, similarity and
derivative, softmax, write the weighted derivative back; then two matmuls for each block in the backward pass. Beside
the Gram blocks it needs memory for one row block, and for tuples that lie anywhere one more block for each pair of
modalities that does not hold the anchor.

It does means and sums of the plain terms, weighted or not, for the first derivative. Everything else
(``reduction="none"``, masks, other devices, transforms, second derivatives) walks the differentiable road of
:mod:`multicontrast.losses._plain`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from multicontrast._workspace import Workspace
from multicontrast.losses._cells import Cells, pairs_of
from multicontrast.losses._grams import Pair
from multicontrast.losses._pair_block import LARGEST_SCALE, LOG2_E, PairBlock, row_blocks
from multicontrast.losses._plain import plain_loss
from multicontrast.losses._rows import dot, row_products, unit_rows_backward_, unit_rows_with_inverse
from multicontrast.losses._walk import Tuples, Walk
from multicontrast.similarity import CosineSimilarity

RowFunction = Callable[[int, int], None]


def dense_loss(embeddings: list[Tensor], tau: Tensor, walk: Walk, normalize: bool) -> Tensor:
    """The walk's loss, a 0-dim tensor of the embeddings' type; ``walk.tuples`` has cells, if there is any."""
    loss: Tensor = _DenseLoss.apply(walk, normalize, tau, *embeddings)
    return loss


class _DenseLoss(torch.autograd.Function):
    """Forward leaves the gradients of the Gram blocks; backward multiplies them out."""

    @staticmethod
    def forward(ctx: Any, walk: Walk, normalize: bool, tau: Tensor, *embeddings: Tensor) -> Tensor:
        with torch.autocast(embeddings[0].device.type, enabled=False):
            if normalize:
                units, inverses = zip(*(unit_rows_with_inverse(x) for x in embeddings))
            else:
                units, inverses = embeddings, ()
            blocks = _Blocks(_in_order(units, walk), walk, tau.item())
            given = None if walk.masks is None else walk.masks.weight
            by_anchor = None if given is None else given.to(units[0].dtype)
            total = len(embeddings[0]) if by_anchor is None else by_anchor.sum().item() or 1.0
            weight = 1.0 / total if walk.reduction == "mean" else 1.0
            needs_gradient = any(ctx.needs_input_grad)
            loss, slope = _walk_blocks(blocks, walk, weight, by_anchor, needs_gradient)
        if needs_gradient:
            ctx.walk, ctx.normalize, ctx.slope = walk, normalize, slope
            ctx.save_for_backward(tau, *embeddings, *(() if not normalize else (*units, *inverses)), *blocks.values())
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        walk: Walk = ctx.walk
        count = walk.num_modalities
        tau, *saved = ctx.saved_tensors
        embeddings = saved[:count]
        if torch.is_grad_enabled():  # create_graph=True: the gradient must itself have one
            return (None, None, *_plain_gradients(ctx, tau, embeddings, grad_loss))
        units, inverses = (
            (saved[count : 2 * count], saved[2 * count : 3 * count]) if ctx.normalize else (embeddings, [])
        )
        blocks = dict(zip(walk.blocks, saved[-len(walk.blocks) :] if walk.blocks else []))
        needs_tau, wanted = ctx.needs_input_grad[2], ctx.needs_input_grad[3:]
        scale = grad_loss.item()
        with torch.autocast(grad_loss.device.type, enabled=False):
            ordered = _in_order(units, walk)
            whole = all(wanted)
            grads, slope = _multiply_out(blocks, ordered, wanted, needs_tau and not whole)
            results: list[Tensor | None] = []
            for m, grad in enumerate(grads):
                if grad is None:
                    results.append(None)
                    continue
                order = walk.orders[m - 1] if m > 0 and walk.orders is not None else None
                unit = ordered[m]
                if ctx.normalize:
                    inverse = inverses[m] if order is None else inverses[m].index_select(0, order)
                    radial = unit_rows_backward_(grad, unit, inverse * scale if scale != 1 else inverse)
                else:
                    radial = row_products(grad, unit) if needs_tau and whole else 0.0
                    if scale != 1:  # as `loss.backward()` has it
                        grad.mul_(scale)
                if whole:
                    slope += radial / 2  # each block is met twice, once from each side
                if order is not None:  # back to the order of the batch, into the copy that is done with
                    grad = torch.index_select(grad, 0, _inverse_order(order), out=unit)
                results.append(grad)
            grad_tau = (grad_loss * (-(slope + ctx.slope) / tau.item())).to(tau.dtype) if needs_tau else None
        return (None, None, grad_tau, *results)


class _Blocks(dict[Pair, Tensor]):
    """The Gram blocks of a walk, times ``scale``."""

    def __init__(self, units: list[Tensor], walk: Walk, tau: float) -> None:
        super().__init__()
        self.units, self.tau = units, tau
        # Logits to the base 2, as the softmax wants them, cost nothing here; a similarity must not mind.
        similarity = None if walk.tuples is None else walk.tuples.similarity
        scalable = similarity is None or (isinstance(similarity, CosineSimilarity) and similarity.homogeneous)
        self.scale = LOG2_E / tau if scalable and LOG2_E / tau < LARGEST_SCALE else 1.0
        for m, n in walk.blocks:
            self[m, n] = units[0].new_empty(len(units[0]), len(units[0]))
            self.write(m, n)

    def write(self, m: int, n: int) -> None:
        """Multiply a block out, again if it was overwritten."""
        self[m, n].addmm_(self.units[m], self.units[n].mT, beta=0, alpha=self.scale)


def _plain_gradients(ctx: Any, tau: Tensor, embeddings: list[Tensor], grad_loss: Tensor) -> tuple[Tensor | None, ...]:
    """The first derivative with a graph of its own, by the differentiable road."""
    inputs = [tau, *embeddings]
    wanted = [x for x, needed in zip(inputs, ctx.needs_input_grad[2:]) if needed]
    loss = plain_loss(embeddings, tau, ctx.walk, ctx.normalize)
    grads = iter(torch.autograd.grad(loss, wanted, grad_loss, create_graph=True, materialize_grads=True))
    return tuple(next(grads) if needed else None for needed in ctx.needs_input_grad[2:])


def _in_order(units: tuple[Tensor, ...] | list[Tensor], walk: Walk) -> list[Tensor]:
    """The unit rows in the order in which they enter the products."""
    if walk.orders is None:
        return list(units)
    return [units[0], *(unit.index_select(0, order) for unit, order in zip(units[1:], walk.orders))]


def _inverse_order(order: Tensor) -> Tensor:
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))


def _multiply_out(
    blocks: Mapping[Pair, Tensor], units: list[Tensor], wanted: tuple[bool, ...], needs_slope: bool
) -> tuple[list[Tensor | None], float]:
    """The gradients by the unit rows, and if asked the sum of gradient x cosine over all blocks (for tau)."""
    grads: list[Tensor | None] = [None] * len(units)
    slope = 0.0

    def add(m: int, left: Tensor, right: Tensor) -> None:
        held = grads[m]
        grads[m] = left @ right if held is None else held.addmm_(left, right)

    for (m, n), block in blocks.items():
        if needs_slope:
            product = block @ units[n]
            slope += row_products(product, units[m])
            held = grads[m]
            if wanted[m]:
                grads[m] = product if held is None else held.add_(product)
        elif wanted[m]:
            add(m, block, units[n])
        if wanted[n]:
            add(n, block.mT, units[m])
    zero_where_missing = [
        torch.zeros_like(unit) if needed and grad is None else grad for grad, unit, needed in zip(grads, units, wanted)
    ]
    return zero_where_missing, slope


def _walk_blocks(
    blocks: _Blocks, walk: Walk, weight: float, by_anchor: Tensor | None, needs_gradient: bool
) -> tuple[Tensor, float]:
    """The loss: ``weight`` times ``by_anchor`` times that of each anchor, summed. With ``needs_gradient`` the blocks
    become its gradients by the cosines.

    The second result corrects the derivative by tau: minus sum(gradient x cosine) / tau is exact for similarities
    that scale with the cosines, and off by this much (times -1 / tau) for others.
    """
    cells = walk.tuples.cells if walk.tuples is not None else None
    if cells is not None:
        cells.prepare(blocks)
    share = weight / 2 if walk.symmetric else weight
    loss = torch.zeros((), dtype=blocks.units[0].dtype)
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
    size, tau = len(blocks.units[0]), blocks.tau
    kind = blocks.units[0]
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
