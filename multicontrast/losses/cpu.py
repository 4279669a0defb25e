r"""Means and sums on a CPU with closed-form gradients: each Gram block is overwritten by its own gradient.

One matmul for each pair of modalities, then blocks of rows that stay in cache: read the candidates' cosines, similarity
and derivative, softmax, write the weighted derivative back; then two matmuls for each block in the backward pass.
Beside the Gram blocks it needs one more for each pair of modalities that does not hold the anchor. The default trimodal
step takes 0.6 of the reference's time at B = 512 and 1,024, D = 1,024 (78 against 127, 264 against 446 ms in one run),
which the bars need. The second derivative is the reference's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from multicontrast._backend import use_triton
from multicontrast._checks import values_are_free
from multicontrast._workspace import Workspace
from multicontrast.losses import reference
from multicontrast.losses.candidates import Blocks, Pair, pairs_of
from multicontrast.losses.plan import Plan, Term
from multicontrast.losses.reference import unit_rows
from multicontrast.losses.softmax import scale_free
from multicontrast.similarity import CosineSimilarity, has_closed_form

BLOCK_CELLS = 1 << 17  # entries worked on at a time: enough to hide the cost of a call, few enough to stay in cache
_CHUNK = 1 << 17  # the same for rows of embeddings
LOG2_E = math.log2(math.e)
LARGEST_SCALE = 2.0**12  # of cosines that are logits already: their fourth powers stay well inside float32

# The largest logit to the base 2 that needs no shift, the range in which sums and positives must lie, and the largest
# quotient of two of them.
_LIMITS = {
    torch.float32: (100.0, 2.0**-100, 2.0**120, 2.0**126),
    torch.float64: (950.0, 2.0**-950, 2.0**1000, 2.0**1020),
}


def applies(plan: Plan, embeddings: Sequence[Tensor]) -> bool:
    """Means and sums over the whole batch without masks but weights, of similarities with a closed-form derivative."""
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
        and (weight is None or (values_are_free(weight) and not weight.requires_grad))
        and values_are_free(*embeddings, *plan.taus)
    )


def _has_formula(term: Term) -> bool:
    one_part = len(term.directions) == 1 and len(term.directions[0]) == 1
    return one_part and has_closed_form(term.similarity, len(term.modalities)) and not term.factorises


def loss(plan: Plan, embeddings: Sequence[Tensor]) -> Tensor:
    """The plan's loss, a 0-dim tensor of the embeddings' type."""
    value: Tensor = _Fused.apply(plan, len(plan.taus), *plan.taus, *embeddings)
    return value


def row_blocks(rows: int, width: int) -> Iterator[tuple[int, int]]:
    """Bounds of consecutive rows that hold about ``BLOCK_CELLS`` entries."""
    step = max(1, BLOCK_CELLS // max(1, width))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


class _Fused(torch.autograd.Function):
    """Forward leaves the gradients of the Gram blocks; backward multiplies them out."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, count: int, *inputs: Tensor) -> Tensor:
        embeddings = inputs[count:]
        rows, inverses, scaled = lengths_to_undo(embeddings) if plan.normalize else (list(embeddings), [], False)
        needs_tau, needs_rows = any(ctx.needs_input_grad[2 : 2 + count]), ctx.needs_input_grad[2 + count :]
        # The sum of gradient x cosine, which is what one tau needs, comes with the radial part of the rows' gradients.
        direct = needs_tau and not (count == 1 and plan.normalize and all(needs_rows))
        work = _Work(plan, rows, inverses if scaled else None, direct, needs_tau or any(needs_rows))
        value = work.run()
        if work.needs_gradient:
            ctx.plan, ctx.count, ctx.scaled, ctx.direct = plan, count, scaled, direct
            ctx.pairs, ctx.slopes = list(work.blocks), work.slopes
            ctx.save_for_backward(*inputs, *rows, *inverses, *work.blocks.values())
        return value

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        plan: Plan = ctx.plan
        count, modalities = ctx.count, len(ctx.needs_input_grad) - 2 - ctx.count
        taus, embeddings, *rest = _cut(ctx.saved_tensors, count, modalities, modalities)
        if torch.is_grad_enabled():  # create_graph=True: the gradient must itself have one
            plan = plan.with_taus(taus)
            return None, None, *reference.second_order(plan, embeddings, grad_loss, ctx.needs_input_grad[2:])
        rows, saved = rest
        inverses, blocks = (saved[:modalities], saved[modalities:]) if plan.normalize else ([], saved)
        # A gradient that must not be looked at, as under `is_grads_batched`, multiplies at the end.
        plain = values_are_free(grad_loss)
        scale = grad_loss.item() if plain else 1.0
        radial = 0.0
        results: list[Tensor | None] = []
        for m, wanted in enumerate(ctx.needs_input_grad[2 + count :]):
            if not wanted:
                results.append(None)
                continue
            grad = _gradient_by_rows(m, dict(zip(ctx.pairs, blocks)), rows)
            if plan.normalize:
                radial += undo_lengths_backward_(grad, rows[m], inverses[m], ctx.scaled, scale)
            elif scale != 1:
                grad.mul_(scale)
            results.append(grad)
        slopes = list(ctx.slopes)
        if not ctx.direct:
            slopes[0] += radial / 2  # each block is met from both sides
        by_tau = [
            (-slope / tau * (scale if plain else 1)).to(tau.dtype) if wanted else None
            for slope, tau, wanted in zip(slopes, taus, ctx.needs_input_grad[2:])
        ]
        found = [*by_tau, *results]
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


def _gradient_by_rows(m: int, blocks: dict[Pair, Tensor], rows: Sequence[Tensor]) -> Tensor:
    grad: Tensor | None = None
    for (first, second), block in blocks.items():
        if m in (first, second):
            left, right = (block, rows[second]) if m == first else (block.mT, rows[first])
            grad = left @ right if grad is None else grad.addmm_(left, right)
    return torch.zeros_like(rows[m]) if grad is None else grad


class _Work:
    """The Gram blocks of one call, from cosines to gradients.

    Args:
        rows: what is multiplied.
        inverses: their inverse lengths, by which the products are still to be scaled; None if they are unit rows.
        direct: whether to sum gradient x cosine of each temperature, in :attr:`slopes`.
    """

    def __init__(
        self, plan: Plan, rows: list[Tensor], inverses: list[Tensor] | None, direct: bool, needs_gradient: bool
    ) -> None:
        self.plan, self.rows, self.inverses = plan, rows, inverses
        self.direct, self.needs_gradient = direct, needs_gradient
        taus = plan.taus
        self.tau = {id(tau): tau.item() for tau in taus}
        self.slopes = [0.0] * len(taus)
        self.place = {id(tau): k for k, tau in enumerate(taus)}
        term = plan.tuples
        # Logits to the base 2, as the softmax wants them, cost nothing in the product; a similarity must not mind.
        scalable = len(taus) == 1 and not direct and (term is None or term.similarity.homogeneous)
        scale = LOG2_E / self.tau[id(taus[0])]
        self.scale = scale if scalable and scale < LARGEST_SCALE else 1.0
        size, kind = plan.size, rows[0]
        self.blocks = {pair: kind.new_empty(size, size) for pair in plan.blocks}
        for pair in self.blocks:
            self.write(pair)
        weight = plan.masks.weight
        self.weight: Tensor | None = None
        total = float(size)
        if weight is not None:
            self.weight = (scale_free(weight, kind.dtype) if plan.reduction == "mean" else weight).to(kind.dtype)
            total = self.weight.sum().item() or 1.0
        self.share = 1.0 / total if plan.reduction == "mean" else 1.0

    def write(self, pair: Pair) -> None:
        """Multiply a block out, again if it was overwritten."""
        m, n = pair
        self.blocks[pair].addmm_(self.rows[m], self.rows[n].mT, beta=0, alpha=self.scale)
        self.undo_lengths(pair)

    def undo_lengths(self, pair: Pair) -> None:
        """From products to cosines, or from gradients by cosines to those by products."""
        if self.inverses is not None:
            scale_products_(self.blocks[pair], self.inverses[pair[0]], self.inverses[pair[1]])

    def run(self) -> Tensor:
        """The loss; with ``needs_gradient`` the blocks become its gradients by the products of the rows."""
        plan, term = self.plan, self.plan.tuples
        if term is not None and term.directions[0][0].width == 0:
            term = None  # no negatives, no loss
        value = self.rows[0].new_zeros(())
        self.pair_blocks: dict[Pair, tuple[Term, PairBlock]] = {}
        for pair_term in plan.pairs:
            m, n = pair_term.pair
            pair = min(m, n), max(m, n)
            unread = term is None and not self.direct
            of_pair = PairBlock(
                self.blocks[pair],
                self.tau[id(pair_term.tau)],
                self.scale,
                rows=pair_term.symmetric or m < n,
                columns=pair_term.symmetric or m > n,
                weight=self.weight,
                restore=partial(self.write, pair) if unread else None,
            )
            share = self.share * pair_term.alpha / len(pair_term.directions)
            value += share * of_pair.total()
            self.pair_blocks[pair] = pair_term, of_pair
        local: set[Pair] = set()
        gradients = self.blocks
        if term is not None:
            if term.directions[0][0].anchored:
                local = {(0, n) for n in range(1, len(self.rows))}
            gradients = dict(self.blocks)
            if self.needs_gradient:
                gradients |= {pair: torch.zeros_like(x) for pair, x in self.blocks.items() if pair not in local}
            value += self._tuples(term, gradients, local)
        if self.needs_gradient:
            for pair, block in self.blocks.items():
                if pair not in local:
                    for start, stop in row_blocks(*block.shape):
                        self._differentiate_pair(pair, start, stop)
                    if gradients[pair] is not block:
                        block.add_(gradients[pair])
                self.undo_lengths(pair)
        return value

    def _differentiate_pair(self, pair: Pair, start: int, stop: int) -> None:
        """Replace rows of a block by the gradient of its pair term."""
        rows = self.blocks[pair][start:stop]
        if pair not in self.pair_blocks:
            rows.zero_()
            return
        term, block = self.pair_blocks[pair]
        cosines = rows.clone() if self.direct else None
        block.gradient_rows_(start, stop, self.share * term.alpha / len(term.directions))
        if cosines is not None:
            self.slopes[self.place[id(term.tau)]] += row_products(rows, cosines)

    def _tuples(self, term: Term, gradients: dict[Pair, Tensor], local: set[Pair]) -> Tensor:
        """The tuple term. Blocks of ``local``, whose rows only their own anchors read, become gradients on the way."""
        similarity, candidates = term.similarity, term.directions[0][0]
        assert isinstance(similarity, CosineSimilarity)
        size, tau, kind = self.plan.size, self.tau[id(term.tau)], self.rows[0]
        blocks = Blocks(self.rows, 0, size, whole=self.blocks)
        pairs = pairs_of(len(self.rows))
        chosen = candidates.positive(0, size)
        if chosen is None:
            matched = [self.blocks[pair].diagonal().clone() for pair in pairs]
        else:
            matched = [self.blocks[m, n].view(-1)[chosen[m] * size + chosen[n]] for m, n in pairs]
        positive, pullback_of_positive = similarity.with_pullback(matched, Workspace())
        factor = LOG2_E / (tau * self.scale)
        scale = self.share * term.alpha / tau
        scales = kind.new_full((size,), scale) if self.weight is None else scale * self.weight
        by_positive = torch.empty_like(scales)
        value, slope, workspace = kind.new_zeros(()), 0.0, Workspace()
        for start, stop in row_blocks(size, candidates.width):
            cosines, scatter = candidates.read(blocks, start, stop)
            if self.needs_gradient:
                similar, pullback = similarity.with_pullback(cosines, workspace)
            else:
                similar = similarity.without_gradient(torch.broadcast_tensors(*cosines))
            logits = similar if factor == 1 else similar * factor
            powers = logits.reshape(stop - start, -1)
            own = positive[start:stop] * factor
            peak = torch.maximum(powers.amax(1), own) if powers.shape[1] else own
            powers.sub_(peak[:, None]).exp2_()
            if candidates.holds_positive:
                powers.scatter_(1, candidates.target(start, stop)[:, None], 0)
            negatives, beside = powers.sum(1), (own - peak).exp2()
            # Where the positive is the largest, loss and gradient keep their digits however small they are.
            losses = (peak - own) / LOG2_E + torch.log1p(negatives + (beside - 1))
            shares = scales[start:stop] / (negatives + beside)
            value += (scales[start:stop] * tau * losses).sum()
            if not self.needs_gradient:
                continue
            by_positive[start:stop] = -shares * negatives
            weights = powers.mul_(shares[:, None]).view(similar.shape)
            slopes = pullback(weights)
            if self.direct:
                slope += row_products(weights.flatten(1), similar.flatten(1))
            elif not similarity.homogeneous:
                slope += row_products(weights.flatten(1), similar.flatten(1))
                cosines = torch.broadcast_tensors(*cosines)
                slope -= sum(row_products(x.flatten(1), y.flatten(1)) for x, y in zip(slopes, cosines))
            for pair in local:
                self._differentiate_pair(pair, start, stop)
            scatter(gradients, slopes)
        if self.needs_gradient:
            if self.direct or not similarity.homogeneous:
                slope += dot(by_positive, positive)
            for (m, n), gradient, cosine in zip(pairs, pullback_of_positive(by_positive), matched):
                if not self.direct and not similarity.homogeneous:
                    slope -= dot(gradient, cosine)
                if chosen is None:
                    gradients[m, n].diagonal().add_(gradient)
                else:
                    gradients[m, n].view(-1).scatter_add_(0, chosen[m] * size + chosen[n], gradient)
            self.slopes[self.place[id(term.tau)]] += slope
        return value


class PairBlock:
    """Eq. (1) over one Gram block, some rows at a time, overwriting the block with its gradient.

    One power of two for each logit serves the softmax of its row and that of its column: cosines are at most 1, so that
    :math:`2^{z}, z = \\cos \\cdot \\log_2 e / \\tau`, stays within the range of float32 down to ``tau`` of about 0.01
    without looking for the largest. The sums are checked afterwards. Where one is out of range (rows that were not of
    length one, a smaller ``tau``, NaN) each row and each column takes a shift of its own, and one exponential for each
    direction.

    Args:
        gram: ``(B, B)`` cosines times ``scale``, which :meth:`gradient_rows_` overwrites with the gradient by the
            cosines.
        rows, columns: which of them are anchors.
        weight: factors ``(B,)`` of the samples' losses; None for 1.
        restore: writes the block again. Given where nobody else reads the block: the powers may then replace the
            cosines at once.
    """

    def __init__(
        self,
        gram: Tensor,
        tau: float,
        scale: float,
        *,
        rows: bool,
        columns: bool,
        weight: Tensor | None,
        restore: Any = None,
    ) -> None:
        self.gram, self.tau, self.weight = gram, tau, weight
        self.rows, self.columns = rows, columns
        self.factor = LOG2_E / (tau * scale)
        self.matched = gram.diagonal().clone()
        largest, low, high, quotient = _LIMITS[gram.dtype]
        self.shift = max(0.0, LOG2_E / tau - largest)
        self.replaced = False
        self.narrow = self.shift < largest
        self._buffer: Tensor | None = None
        if self.narrow:
            self.replaced = restore is not None
            self._sum_powers()
            self.positives = self._powers(self.matched, torch.empty_like(self.matched))
            lowest, highest = (bound.item() for bound in torch.aminmax(torch.stack([*self.sums, self.positives])))
            self.narrow = lowest > low and highest < min(high, quotient * lowest)  # False for NaN
            if not self.narrow and restore is not None:
                self.replaced = False
                restore()
        if not self.narrow:
            self._log_sum_exponentials()

    def total(self) -> Tensor:
        """The sum of the losses of all anchors."""
        sums = torch.stack(self.sums)
        if self.narrow:
            losses = sums.div_(self.positives).log_()  # the quotient of likes: a small loss keeps its digits
        else:
            losses = sums - self.matched * (self.factor / LOG2_E)
        return losses.sum() if self.weight is None else (losses @ self.weight).sum()

    def gradient_rows_(self, start: int, stop: int, share: float) -> None:
        """Replace rows by ``share`` times the derivative of :meth:`total` by the cosines."""
        block = self.gram[start:stop]
        scale = share / self.tau
        weight = torch.full_like(self.matched, scale) if self.weight is None else scale * self.weight
        own = weight[start:stop]
        if self.narrow:
            if not self.replaced:
                self._powers(block, block)
            of_rows = (own / self.row_sum[start:stop])[:, None] if self.rows else None
            of_columns = weight / self.column_sum if self.columns else None
            if of_rows is not None and of_columns is not None:
                block.mul_(torch.add(of_rows, of_columns, out=self._scratch(stop - start)))
            else:
                block.mul_(of_columns if of_rows is None else of_rows)  # type: ignore[arg-type]
        else:
            logits = block.mul_(self.factor / LOG2_E)
            columns = (logits - self.column_sum).exp_().mul_(weight) if self.columns else None
            if self.rows:
                logits.sub_(self.row_sum[start:stop, None]).exp_().mul_(own[:, None])
                if columns is not None:
                    logits.add_(columns)
            elif columns is not None:
                logits.copy_(columns)
        block[:, start:stop].diagonal().sub_(own, alpha=int(self.rows) + int(self.columns))

    @property
    def sums(self) -> list[Tensor]:
        """Of the rows and of the columns, where they are anchors."""
        return [*([self.row_sum] if self.rows else []), *([self.column_sum] if self.columns else [])]

    def _powers(self, block: Tensor, out: Tensor) -> Tensor:
        """Two to the power of the logits, into ``out``, which may be the block."""
        if self.factor != 1:
            block = torch.mul(block, self.factor, out=out)
        if self.shift:
            block = torch.sub(block, self.shift, out=out)
        return torch.exp2(block, out=out)

    def _scratch(self, rows: int) -> Tensor:
        """A buffer for some rows, used again and again."""
        if self._buffer is None or len(self._buffer) < rows:
            self._buffer = torch.empty_like(self.gram[:rows])
        return self._buffer[:rows]

    def _sum_powers(self) -> None:
        size = len(self.gram)
        self.row_sum, self.column_sum = torch.empty_like(self.matched), torch.zeros_like(self.matched)
        for start, stop in row_blocks(size, size):
            block = self.gram[start:stop]
            powers = self._powers(block, block if self.replaced else self._scratch(stop - start))
            if self.rows:
                torch.sum(powers, 1, out=self.row_sum[start:stop])
            if self.columns:
                self.column_sum += powers.sum(0)

    def _log_sum_exponentials(self) -> None:
        """The same in logarithms: the sums then hold the log of the sums of exp(logit)."""
        size = len(self.gram)
        self.row_sum, self.column_sum = torch.empty_like(self.matched), torch.full_like(self.matched, -torch.inf)
        for start, stop in row_blocks(size, size):
            logits = torch.mul(self.gram[start:stop], self.factor / LOG2_E, out=self._scratch(stop - start))
            if self.rows:
                torch.logsumexp(logits, 1, out=self.row_sum[start:stop])
            if self.columns:
                self.column_sum = torch.logaddexp(self.column_sum, torch.logsumexp(logits, 0))


# --- lengths of rows -------------------------------------------------------------------------------------------------


def lengths_to_undo(embeddings: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], bool]:
    """Rows to multiply in place of unit rows, the inverse of their lengths ``(B, 1)``, and whether the products are
    still to be scaled by both inverses. No graph.

    Products of the embeddings themselves, scaled, need no copy of them and fewer passes while there are no more rows
    than columns. Otherwise, and for lengths whose squares leave the comfortable range, the rows are unit rows.
    """
    size, dim = embeddings[0].shape
    finfo = torch.finfo(embeddings[0].dtype)
    lengths = [torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in embeddings]
    shortest, longest = torch.aminmax(torch.cat(lengths))
    if shortest.item() > finfo.tiny**0.25 and longest.item() < finfo.max**0.25:  # False for NaN
        inverses = [length.reciprocal_() for length in lengths]
        if size <= dim:
            return list(embeddings), inverses, True
        return [x * inverse for x, inverse in zip(embeddings, inverses)], inverses, False
    units = [unit_rows(x) for x in embeddings]
    return units, [_inverse_length(x, unit) for x, unit in zip(embeddings, units)], False


def _inverse_length(x: Tensor, unit: Tensor) -> Tensor:
    """Inverse lengths ``(B, 1)`` at any finite scale; 0 for zero rows, whose gradient is 0."""
    scale = x.abs().amax(dim=1, keepdim=True)
    scale = torch.where(scale == 0, 1, scale)
    inverse = (1 / torch.linalg.vector_norm(x / scale, dim=1, keepdim=True)) / scale
    return torch.where(unit.abs().amax(1, keepdim=True) == 0, 0, inverse.clamp(max=torch.finfo(x.dtype).max))


def scale_products_(products: Tensor, left: Tensor, right: Tensor) -> None:
    """Multiply rows by ``left`` ``(B, 1)`` and columns by ``right`` ``(B, 1)``, in place."""
    columns = right.mT
    step = max(1, _CHUNK // products.shape[1])
    for rows, factor in _chunks(step, products, left):
        rows.mul_(factor).mul_(columns)


def _chunks(step: int, *tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Rows of each tensor, ``step`` at a time; splitting costs more than all the rest of a small batch."""
    return [tensors] if tensors[0].shape[0] <= step else zip(*(x.split(step) for x in tensors))


def dot(x: Tensor, y: Tensor) -> float:
    """The sum of products of two tensors of one shape."""
    return float(torch.dot(x.reshape(-1), y.reshape(-1)))


def row_products(x: Tensor, y: Tensor) -> float:
    """The same for many rows, some at a time: the sums are added in double precision."""
    step = max(1, _CHUNK // x.shape[1])
    return sum(dot(x[start : start + step], y[start : start + step]) for start in range(0, len(x), step))


def undo_lengths_backward_(grad: Tensor, rows: Tensor, inverse: Tensor, scaled: bool, factor: float) -> float:
    """``factor`` times the gradient by the embeddings, from that by the rows of :func:`lengths_to_undo`, in place:
    project off the radial part, undo the scale.

    Returns the sum of the radial parts.
    """
    step = max(1, _CHUNK // grad.shape[1])
    radial = grad.new_empty(len(grad), 1)
    scratch = torch.empty_like(grad[:step])
    for part, by_row, row, inverse_length in _chunks(step, radial, grad, rows, inverse):
        torch.sum(torch.mul(by_row, row, out=scratch[: len(row)]), 1, keepdim=True, out=part)
        if scaled:  # of a row x of length l the unit row is x / l, and the products are scaled by 1 / l already
            by_row.addcmul_(row, inverse_length.square().mul_(part), value=-1)
            if factor != 1:
                by_row.mul_(factor)
        else:
            by_row.addcmul_(row, part, value=-1).mul_(inverse_length * factor)
    return float(radial.sum())
