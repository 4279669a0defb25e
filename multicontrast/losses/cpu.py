r"""Means and sums on a CPU with closed-form gradients: each Gram block is overwritten by its own gradient.

The forward pass takes one matmul for each pair of modalities. It then works on blocks of rows that stay in cache: read
the candidates' cosines, compute similarity, derivative and softmax, and write the weighted derivative back. Writing it
back needs one more Gram block for each pair of modalities without the anchor's. The backward pass takes two matmuls for
each block. For few samples, where the cost is that of the calls, one operation computes all modalities and all pairs.
For many samples this takes 0.5 to 0.8 of the reference's time (B = 180 to 2,048, D = 1,024; rows in
``benchmarks/results/losses.csv``). The second derivative is the reference's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from multicontrast._backend import use_triton
from multicontrast._checks import can_read_values
from multicontrast._workspace import Workspace
from multicontrast.losses import reference
from multicontrast.losses.candidates import Blocks, Pair
from multicontrast.losses.plan import Plan, Term
from multicontrast.losses.reference import unit_rows
from multicontrast.losses.softmax import scale_free
from multicontrast.similarity import CosineSimilarity, has_closed_form

BLOCK_ENTRIES = 1 << 17  # entries worked on at a time: enough to hide the cost of a call, few enough to stay in cache
_CHUNK = 1 << 17  # the same for rows of embeddings
TOGETHER = 1 << 15  # entries of rows or blocks of all modalities up to which one operation computes all of them
LOG2_E = math.log2(math.e)
LARGEST_SCALE = 2.0**12  # of cosines scaled to logits: their fourth powers stay within float32

# The largest logit to the base 2 that needs no shift, the range in which sums and positives must lie, and the largest
# quotient of two of them.
_LIMITS = {
    torch.float32: (100.0, 2.0**-100, 2.0**120, 2.0**126),
    torch.float64: (950.0, 2.0**-950, 2.0**1000, 2.0**1020),
}


def applies(plan: Plan, embeddings: Sequence[Tensor]) -> bool:
    """Means and sums over the whole batch, without masks other than weights, of similarities with a closed-form
    derivative."""
    term, weight = plan.tuples, plan.masks.weight
    return (
        not use_triton(embeddings[0])
        and plan.reduction != "none"
        and plan.is_whole
        and plan.size > 1
        and bool(plan.terms)
        and plan.masks.only_weigh
        and plan.diagnostics is None
        and not plan.tiled
        and (term is None or _has_formula(term))
        and (weight is None or (can_read_values(weight) and not weight.requires_grad))
        and can_read_values(*embeddings, *plan.taus)
    )


def _has_formula(term: Term) -> bool:
    one_part = len(term.directions) == 1 and len(term.directions[0]) == 1
    return one_part and has_closed_form(term.similarity, len(term.modalities)) and not term.factorises


def loss(plan: Plan, embeddings: Sequence[Tensor]) -> Tensor:
    """The plan's loss, a 0-dim tensor of the embeddings' type."""
    value: Tensor = _Fused.apply(plan, len(plan.taus), *plan.taus, *embeddings)
    return value


def row_blocks(rows: int, width: int) -> Iterator[tuple[int, int]]:
    """Bounds of consecutive rows that hold about ``BLOCK_ENTRIES`` entries."""
    step = max(1, BLOCK_ENTRIES // max(1, width))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


class _Fused(torch.autograd.Function):
    """Forward saves the gradients w.r.t. the Gram blocks; backward multiplies them by the rows."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, count: int, *inputs: Tensor) -> Tensor:
        embeddings = inputs[count:]
        needs_tau, needs_rows = any(ctx.needs_input_grad[2 : 2 + count]), ctx.needs_input_grad[2 + count :]
        together = len(embeddings) * plan.size * max(embeddings[0].shape) <= TOGETHER
        groups = [torch.stack(embeddings)] if together else list(embeddings)
        inverses: list[Tensor] = []
        scaled = False
        if plan.normalize:
            groups, inverses, scaled = lengths_to_undo(groups, may_scale=not together)
        # The gradient of a single tau needs the sum of gradient x cosine, which the rows' radial gradients also give.
        direct = needs_tau and not (count == 1 and plan.normalize and all(needs_rows))
        rows = groups[0].unbind() if together else groups
        work = _Work(plan, rows, inverses if scaled else None, direct, needs_tau or any(needs_rows), together)
        value = work.run()
        if work.needs_gradient:
            ctx.plan, ctx.count, ctx.together, ctx.scaled, ctx.direct = plan, count, together, scaled, direct
            ctx.slopes, ctx.values = work.slopes, [work.tau[id(tau)] for tau in plan.taus]
            ctx.save_for_backward(*inputs, work.gram, *groups, *inverses)
        return value

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        plan: Plan = ctx.plan
        count, modalities = ctx.count, len(ctx.needs_input_grad) - 2 - ctx.count
        taus, embeddings, (gram, *saved) = _cut(ctx.saved_tensors, count, modalities)
        if torch.is_grad_enabled():  # create_graph=True: the gradient must itself have one
            plan = plan.with_taus(taus)
            return None, None, *reference.second_order(plan, embeddings, grad_loss, ctx.needs_input_grad[2:])
        groups, inverses = _cut(saved, 1 if ctx.together else modalities)
        rows = groups[0].unbind() if ctx.together else groups
        blocks = dict(zip(plan.blocks, gram.unbind()))
        # If the incoming gradient cannot be read, as under `is_grads_batched`, it multiplies the results at the end.
        plain = can_read_values(grad_loss)
        scale = grad_loss.item() if plain else 1.0
        radial, sum_radial = 0.0, not ctx.direct and any(ctx.needs_input_grad[2 : 2 + count])
        wanted = ctx.needs_input_grad[2 + count :]
        results: list[Tensor | None] = []
        for k, group in enumerate(groups):
            if not ctx.together and not wanted[k]:
                results.append(None)
                continue
            grad = torch.empty_like(group)
            parts = grad.unbind() if ctx.together else [grad]
            for m, part in enumerate(parts, k):
                _gradient_by_rows(m, blocks, rows, part)
            if plan.normalize:
                radial += undo_lengths_backward_(grad, group, inverses[k], ctx.scaled, scale, sum_radial)
            elif scale != 1:
                grad.mul_(scale)
            results += parts
        slopes = list(ctx.slopes)
        if not ctx.direct:
            slopes[0] += radial / 2  # both sides of each block contribute
        by_tau = [
            torch.full_like(tau, -slope * scale / value) if wanted else None
            for slope, tau, value, wanted in zip(slopes, taus, ctx.values, ctx.needs_input_grad[2:])
        ]
        found = [*by_tau, *(grad if want else None for grad, want in zip(results, wanted))]
        if not plain:
            found = [None if grad is None else grad * grad_loss for grad in found]
        return None, None, *found


def _cut(values: Sequence[Tensor], *lengths: int) -> list[list[Tensor]]:
    """Consecutive pieces of those lengths, and the rest."""
    pieces, start = [], 0
    for length in lengths:
        pieces.append(list(values[start : start + length]))
        start += length
    return [*pieces, list(values[start:])]


def _gradient_by_rows(m: int, blocks: dict[Pair, Tensor], rows: Sequence[Tensor], out: Tensor) -> None:
    """Write the gradient w.r.t. the rows of modality ``m``."""
    is_first = True
    for (first, second), block in blocks.items():
        if m in (first, second):
            left, right = (block, rows[second]) if m == first else (block.mT, rows[first])
            out.addmm_(left, right, beta=0 if is_first else 1)
            is_first = False
    if is_first:
        out.zero_()


class _Work:
    """The Gram blocks of one call, from cosines to gradients.

    Args:
        rows: the factors of the Gram blocks.
        inverses: their inverse lengths, which the products are scaled by; None if they are unit rows.
        direct: whether to sum gradient x cosine of each temperature, in :attr:`slopes`.
        together: whether pair terms with equal options are computed in one pass.
    """

    def __init__(
        self,
        plan: Plan,
        rows: Sequence[Tensor],
        inverses: list[Tensor] | None,
        direct: bool,
        needs_gradient: bool,
        together: bool,
    ) -> None:
        self.plan, self.rows, self.inverses = plan, rows, inverses
        self.direct, self.needs_gradient, self.together = direct, needs_gradient, together
        taus = plan.taus
        self.tau = {id(tau): tau.item() for tau in taus}
        self.slopes = [0.0] * len(taus)
        self.place = {id(tau): k for k, tau in enumerate(taus)}
        term = plan.tuples
        # The product can give base-2 logits at no cost if the similarity is homogeneous.
        scalable = len(taus) == 1 and not direct and (term is None or term.similarity.homogeneous)
        scale = LOG2_E / self.tau[id(taus[0])]
        self.scale = scale if scalable and scale < LARGEST_SCALE else 1.0
        size, kind = plan.size, rows[0]
        self.gram = kind.new_empty(len(plan.blocks), size, size)
        self.blocks = dict(zip(plan.blocks, self.gram.unbind()))
        for pair in self.blocks:
            self.write(pair)
        weight = plan.masks.weight
        self.weight: Tensor | None = None
        total = float(size)
        if weight is not None:
            self.weight = (scale_free(weight, kind.dtype) if plan.reduction == "mean" else weight).to(kind.dtype)
            total = self.weight.sum().item() or 1.0
        self.share = 1.0 / total if plan.reduction == "mean" else 1.0

    def write(self, *pairs: Pair) -> None:
        """Compute blocks, again if they were overwritten."""
        for m, n in pairs:
            self.blocks[m, n].addmm_(self.rows[m], self.rows[n].mT, beta=0, alpha=self.scale)
            self.undo_lengths((m, n))

    def undo_lengths(self, pair: Pair) -> None:
        """Turns products into cosines, or gradients w.r.t. cosines into those w.r.t. products."""
        if self.inverses is not None:
            scale_products_(self.blocks[pair], self.inverses[pair[0]], self.inverses[pair[1]])

    def run(self) -> Tensor:
        """The loss; with ``needs_gradient`` the blocks become its gradients w.r.t. the products of the rows."""
        plan, term = self.plan, self.plan.tuples
        if term is not None and term.directions[0][0].width == 0:
            term = None  # no negatives, no loss
        self.pair_terms = self._pair_terms(may_overwrite=term is None and not self.direct)
        values = [softmax.total() for _, _, softmax in self.pair_terms]
        gradients, finished = self.blocks, set[Pair]()
        if term is not None:
            value, gradients, finished = self._tuples(term)
            values.append(value)
        if self.needs_gradient:
            if len(finished) < len(self.blocks):
                for start, stop in row_blocks(plan.size, plan.size):
                    self._differentiate_pairs(self.blocks.keys() - finished, start, stop)
            for pair, block in self.blocks.items():
                if gradients[pair] is not block:
                    block.add_(gradients[pair])
                self.undo_lengths(pair)
        return sum(values[1:], start=values[0]) if values else self.gram.new_zeros(())

    def _pair_terms(self, may_overwrite: bool) -> list[tuple[list[Pair], Tensor, PairSoftmax]]:
        """Pair terms over their blocks: which blocks, the temperature, and the softmaxes. For few samples, one pass
        over all blocks computes the terms if their options are equal."""
        terms = {(min(term.pair), max(term.pair)): term for term in self.plan.pairs}
        alike = {(id(term.tau), term.symmetric or term.pair == pair, term.symmetric) for pair, term in terms.items()}
        whole = self.together and len(alike) == 1 and len(terms) == len(self.blocks)
        found = []
        for pairs in [list(terms)] if whole else [[pair] for pair in terms]:
            term = terms[pairs[0]]
            softmax = PairSoftmax(
                self.gram if whole else self.blocks[pairs[0]][None],
                self.tau[id(term.tau)],
                self.scale,
                self.share * term.alpha / len(term.directions),
                rows=term.symmetric or term.pair == pairs[0],
                columns=term.symmetric or term.pair != pairs[0],
                weight=self.weight,
                is_unit=self.plan.normalize,
                restore=partial(self.write, *pairs) if may_overwrite else None,
            )
            found.append((pairs, term.tau, softmax))
        return found

    def _differentiate_pairs(self, pairs: Collection[Pair], start: int, stop: int) -> None:
        """Replace rows of some blocks by the gradient of their pair terms."""
        for of_term, tau, softmax in self.pair_terms:
            if of_term[0] in pairs:
                slope = softmax.gradient_rows_(start, stop, self.direct)
                self.slopes[self.place[id(tau)]] += slope
        for pair in set(pairs).difference(*(of_term for of_term, _, _ in self.pair_terms)):
            self.blocks[pair][start:stop].zero_()

    def _tuples(self, term: Term) -> tuple[Tensor, dict[Pair, Tensor], set[Pair]]:
        """The tuple term: its value, the buffers of the blocks' gradients, and the blocks that already hold the
        gradients of their pair terms, because their cosines are not read again."""
        similarity, candidates = term.similarity, term.directions[0][0]
        assert isinstance(similarity, CosineSimilarity)
        size, tau, kind = self.plan.size, self.tau[id(term.tau)], self.rows[0]
        blocks, pairs = Blocks(self.rows, 0, size, whole=self.blocks), list(self.blocks)
        # The positive is column 0 if the candidates do not include it: read with them or concatenated.
        merged = candidates.with_positive()
        beside = merged is None and not candidates.holds_positive
        candidates = candidates if merged is None else merged
        matched = self.gram.diagonal(dim1=1, dim2=2)
        parts = list(row_blocks(size, candidates.width))
        finished: set[Pair] = set()
        if len(parts) == 1:
            finished = set(pairs)
        elif candidates.anchored and not self.together:  # these rows are read by their own anchors alone
            finished = {(0, n) for n in range(1, len(self.rows))}
        gradients = dict(self.blocks)
        if self.needs_gradient:
            gradients |= {pair: torch.zeros_like(self.blocks[pair]) for pair in pairs if pair not in finished}
        factor = LOG2_E / (tau * self.scale)
        scale = self.share * term.alpha / tau
        needs_slope = self.direct or not similarity.homogeneous
        slope, values = 0.0, []
        workspace = Workspace() if len(parts) > 1 else None
        for start, stop in parts:
            cosines, scatter = candidates.read(blocks, start, stop)
            if beside:
                cosines = [
                    torch.cat((own, other.expand(stop - start, -1)), 1)
                    for own, other in zip(matched[:, start:stop, None], cosines)
                ]
            if candidates.holds_positive:
                target = candidates.target(start, stop)[:, None]
            else:
                target = torch.zeros(stop - start, 1, dtype=torch.int64, device=kind.device)
            if self.needs_gradient:
                similar, pullback = similarity.with_pullback(cosines, workspace)
            else:
                similar = similarity.without_gradient(torch.broadcast_tensors(*cosines))
            logits = similar if factor == 1 and not needs_slope else similar * factor
            powers = logits.reshape(stop - start, -1)
            own, peak = powers.gather(1, target), powers.amax(1, keepdim=True)
            powers.sub_(peak).exp2_().scatter_(1, target, 0)
            negatives, positive = powers.sum(1, keepdim=True), (own - peak).exp2_()
            # Where the positive is the largest, loss and gradient keep their relative accuracy however small they are.
            losses = torch.log1p(negatives + (positive - 1)).add_(peak - own, alpha=1 / LOG2_E)
            shares = scale / negatives.add(positive)
            if self.weight is not None:
                weight = self.weight[start:stop, None]
                losses, shares = losses * weight, shares * weight
            values.append(losses.sum())
            if not self.needs_gradient:
                continue
            weights = powers.mul_(shares).scatter_(1, target, -shares * negatives).view(similar.shape)
            slopes = pullback(weights)
            if needs_slope:
                slope += row_products(weights.flatten(1), similar.flatten(1))
            if not self.direct and not similarity.homogeneous:
                whole = torch.broadcast_tensors(*cosines)
                slope -= sum(row_products(x.flatten(1), y.flatten(1)) for x, y in zip(slopes, whole))
            self._differentiate_pairs(finished, start, stop)
            if beside:
                for pair, of_pair in zip(pairs, slopes):
                    gradients[pair].diagonal()[start:stop].add_(of_pair[:, 0])
                slopes = [of_pair[:, 1:] for of_pair in slopes]
            scatter(gradients, slopes)
        self.slopes[self.place[id(term.tau)]] += slope
        return sum(values[1:], start=values[0]) * (scale * tau), gradients, finished


class PairSoftmax:
    r"""Eq. (1) over Gram blocks, some rows at a time, overwriting them with their gradients.

    One power of two for each logit serves the softmax of its row and that of its column: cosines are at most 1, so that
    :math:`2^{z}, z = \cos \cdot \log_2 e / \tau`, stays within the range of float32 down to ``tau`` of about 0.01
    without subtracting the largest. The sums are checked afterwards, unless rows of length 1 and ``tau`` keep them in
    range. If a sum is out of range (longer rows, a smaller ``tau``, NaN), each row and each column gets its own shift,
    which takes one exponential for each direction.

    Args:
        gram: ``(P, B, B)`` cosines times ``scale``, which :meth:`gradient_rows_` overwrites with the gradient w.r.t.
            the cosines.
        share: the factor of one anchor's loss in the result.
        rows, columns: whether the rows are anchors, and whether the columns are.
        weight: factors ``(B,)`` of the samples' losses; None for 1.
        is_unit: whether all rows have length 1.
        restore: computes the blocks again. It is given if nothing else reads them, so that the powers may overwrite
            the cosines.
    """

    def __init__(
        self,
        gram: Tensor,
        tau: float,
        scale: float,
        share: float,
        *,
        rows: bool,
        columns: bool,
        weight: Tensor | None,
        is_unit: bool,
        restore: Callable[[], None] | None = None,
    ) -> None:
        self.gram, self.weight, self.rows, self.columns = gram, weight, rows, columns
        self.factor = LOG2_E / (tau * scale)
        self.share, self.scale = share, share / tau
        # Sums of the rows and of the columns, if they are anchors; then the positives.
        self.sums = gram.new_empty(int(rows) + int(columns) + 1, *gram.shape[:2])
        *of_anchors, self.positives = self.sums.unbind()
        self.row_sum, self.column_sum = of_anchors[0], of_anchors[-1]
        largest, low, high, quotient = _LIMITS[gram.dtype]
        self.shift = max(0.0, LOG2_E / tau - largest)
        self.narrow = self.shift < largest
        self.replaced = self.narrow and restore is not None
        self._buffer: Tensor | None = None
        self._weights: Tensor | None = None
        self._sum()
        if self.narrow and not (is_unit and 2 * LOG2_E / tau + math.log2(gram.shape[1]) < math.log2(quotient)):
            lowest, highest = (bound.item() for bound in self.sums.aminmax())
            self.narrow = lowest > low and highest < min(high, quotient * lowest)  # False for NaN
            if not self.narrow:
                if restore is not None:
                    self.replaced = False
                    restore()
                self._sum()

    def total(self) -> Tensor:
        """``share`` times the sum of the losses of all anchors."""
        if self.narrow:
            losses = self.sums.div(self.positives).log_()  # a quotient keeps a small loss accurate
        else:
            losses = self.sums[:-1] - self.positives
        return (losses if self.weight is None else losses * self.weight).sum() * self.share

    def gradient_rows_(self, start: int, stop: int, direct: bool) -> float:
        """Replace rows by the derivatives of :meth:`total` by the cosines. Returns, if ``direct``, the sum of their
        products with the cosines."""
        block = _rows(self.gram, start, stop)
        cosines = block.clone() if direct else None
        if self._weights is None:
            sums = self.sums
            self._weights = sums.reciprocal().mul_(self.scale) if self.narrow else torch.full_like(sums, self.scale)
            if self.weight is not None:
                self._weights *= self.weight
        of_rows = self._weights[0, :, start:stop, None] if self.rows else None
        of_columns = self._weights[-2, :, None] if self.columns else None
        if self.narrow:
            if not self.replaced:
                self._powers(block, block)
            if of_rows is not None and of_columns is not None:
                block.mul_(torch.add(of_rows, of_columns, out=self._scratch(stop - start)))
            else:
                block.mul_(of_columns if of_rows is None else of_rows)  # type: ignore[arg-type]
        else:
            logits = block.mul_(self.factor / LOG2_E)
            columns = (logits - self.column_sum[:, None]).exp_().mul_(of_columns) if of_columns is not None else None
            if of_rows is not None:
                logits.sub_(_rows(self.row_sum, start, stop)[:, :, None]).exp_().mul_(of_rows)
                if columns is not None:
                    logits.add_(columns)
            elif columns is not None:
                logits.copy_(columns)
        own = self.scale * (int(self.rows) + int(self.columns))
        block.diagonal(start, 1, 2).sub_(own if self.weight is None else own * self.weight[start:stop])
        return 0.0 if cosines is None else row_products(block.flatten(0, 1), cosines.flatten(0, 1))

    def _powers(self, block: Tensor, out: Tensor | None) -> Tensor:
        """``2 ** logits``, in ``out``, which may be the block, or in a new tensor."""
        if self.factor != 1:
            block = torch.mul(block, self.factor, out=out)
        if self.shift:
            block = torch.sub(block, self.shift, out=out)
        return torch.exp2(block, out=out)

    def _scratch(self, rows: int) -> Tensor | None:
        """A reused buffer for some rows; None for all rows."""
        if rows == self.gram.shape[1]:
            return None
        if self._buffer is None or self._buffer.shape[1] < rows:
            self._buffer = torch.empty_like(_rows(self.gram, 0, rows))
        return _rows(self._buffer, 0, rows)

    def _sum(self) -> None:
        """The sums of powers, or the logs of sums of exponentials, and the positives."""
        total, add = (torch.sum, torch.add) if self.narrow else (torch.logsumexp, torch.logaddexp)
        size = self.gram.shape[1]
        for start, stop in row_blocks(size, size):
            block = _rows(self.gram, start, stop)
            out = block if self.replaced else self._scratch(stop - start)
            values = self._powers(block, out) if self.narrow else torch.mul(block, self.factor / LOG2_E, out=out)
            if self.rows:
                total(values, 2, out=_rows(self.row_sum, start, stop))
            if self.columns and start == 0:
                total(values, 1, out=self.column_sum)
            elif self.columns:
                add(self.column_sum, total(values, 1), out=self.column_sum)
            _rows(self.positives, start, stop).copy_(values.diagonal(start, 1, 2))


def _rows(x: Tensor, start: int, stop: int) -> Tensor:
    """Entries ``start..stop`` of axis 1."""
    return x if stop - start == x.shape[1] else x[:, start:stop]


# --- lengths of rows -------------------------------------------------------------------------------------------------


def lengths_to_undo(xs: Sequence[Tensor], may_scale: bool) -> tuple[list[Tensor], list[Tensor], bool]:
    """Rows to use instead of unit rows, their inverse lengths ``(..., B, 1)``, and whether the products must be scaled
    by both inverses. Not differentiable.

    Scaling the products of the embeddings needs no copy of them, and fewer passes if there are no more rows than
    columns. Otherwise, and for lengths near the limits of the type, the rows are unit rows.
    """
    size, dim = xs[0].shape[-2:]
    finfo = torch.finfo(xs[0].dtype)
    lengths = [torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in xs]
    shortest, longest = torch.aminmax(lengths[0] if len(lengths) == 1 else torch.cat(lengths))
    if shortest.item() > finfo.tiny**0.25 and longest.item() < finfo.max**0.25:  # False for NaN
        inverses = [length.reciprocal_() for length in lengths]
        if size <= dim and may_scale:
            return list(xs), inverses, True
        return [x * inverse for x, inverse in zip(xs, inverses)], inverses, False
    units = [unit_rows(x) for x in xs]
    return units, [_inverse_length(x, unit) for x, unit in zip(xs, units)], False


def _inverse_length(x: Tensor, unit: Tensor) -> Tensor:
    """Inverse lengths ``(..., B, 1)`` of rows of any finite scale; 0 for zero rows, whose gradient is 0."""
    scale = x.abs().amax(dim=-1, keepdim=True)
    scale = torch.where(scale == 0, 1, scale)
    inverse = (1 / torch.linalg.vector_norm(x / scale, dim=-1, keepdim=True)) / scale
    return torch.where(unit.abs().amax(-1, keepdim=True) == 0, 0, inverse.clamp(max=torch.finfo(x.dtype).max))


def scale_products_(products: Tensor, left: Tensor, right: Tensor) -> None:
    """Multiply rows by ``left`` ``(B, 1)`` and columns by ``right`` ``(B, 1)``, in place."""
    columns = right.mT
    step = max(1, _CHUNK // products.shape[1])
    for rows, factor in _chunks(step, products, left):
        rows.mul_(factor).mul_(columns)


def _chunks(step: int, *tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Rows of each tensor, ``step`` at a time; splitting a small batch costs more than its arithmetic."""
    return [tensors] if tensors[0].shape[0] <= step else zip(*(x.split(step) for x in tensors))


def dot(x: Tensor, y: Tensor) -> float:
    """The sum of products of two tensors of one shape."""
    return float(torch.dot(x.reshape(-1), y.reshape(-1)))


def row_products(x: Tensor, y: Tensor) -> float:
    """The same, some rows at a time; their sums are added in double precision."""
    step = max(1, _CHUNK // x.shape[1])
    return sum(dot(x[start : start + step], y[start : start + step]) for start in range(0, len(x), step))


def undo_lengths_backward_(
    grad: Tensor, rows: Tensor, inverse: Tensor, scaled: bool, factor: float, sum_radial: bool
) -> float:
    """``factor`` times the gradient w.r.t. the embeddings, from that w.r.t. the rows of :func:`lengths_to_undo`, in
    place: project off the radial part, undo the scale.

    Returns the sum of the radial parts, if asked for.
    """
    step, radial = max(1, _CHUNK // grad.shape[-1]), 0.0
    for by_row, row, inverse_length in _chunks(step, grad, rows, inverse):
        part = (by_row * row).sum(-1, keepdim=True)
        if sum_radial:
            radial += float(part.sum(dtype=torch.float64))
        if scaled:  # of a row x of length l the unit row is x / l, and the products are scaled by 1 / l already
            by_row.addcmul_(row, inverse_length.square().mul_(part), value=-1)
            if factor != 1:
                by_row.mul_(factor)
        else:
            by_row.addcmul_(row, part, value=-1).mul_(inverse_length if factor == 1 else inverse_length * factor)
    return radial
