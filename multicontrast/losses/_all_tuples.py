r"""Eq. (3) with every tuple of the batch in the denominator, streamed: memory stays at a few Gram blocks.

``anchor=0`` compares the positive of sample ``i`` with the tuples that hold its first embedding, ``B^2`` for three
modalities. ``anchor="any"`` takes those that hold any of its embeddings, ``3 B^2 - 3 B + 1``: a tuple ``(i, j, k)``
then stands in the denominators of ``i``, of ``j`` and of ``k``, once in each.

The sums run over slabs of a few anchors. On a CPU the closed-form derivative of the similarity goes along (one walk
for ``anchor=0``, two for ``"any"``); elsewhere, and for second derivatives, each slab is checkpointed. The mean cosine
factorises, and its sum over all pairs of candidates is one matmul: see :mod:`multicontrast.losses._factorised`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from multicontrast._backend import use_triton
from multicontrast._checks import values_are_free
from multicontrast._workspace import Workspace
from multicontrast.losses._pair_block import BLOCK_CELLS, LARGEST_SCALE, LOG2_E
from multicontrast.losses._rows import dot
from multicontrast.losses._walk import Tuples
from multicontrast.similarity import CosineSimilarity, MeanCosine, Multilinear, Pullback

Pair = tuple[int, int]

# Powers of two below which the sum over an anchor's tuples needs no shift to stay in range.
_NO_SHIFT = {torch.float32: 90.0, torch.float64: 900.0}


def all_tuples_loss(units: list[Tensor], blocks: Mapping[Pair, Tensor], tau: Tensor, tuples: Tuples) -> Tensor:
    """The loss of each anchor, ``(B,)``; differentiable. Two modalities or three, not the mean cosine."""
    similarity = tuples.similarity
    if len(units) == 2:
        return _two_modalities(_pair_values(units, blocks, similarity) / tau, tuples.anchor)

    def slab(start: int, stop: int, tau: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        return _slab_terms(_slab_values(inputs, similarity, start, stop) / tau, start, tuples.anchor)

    inputs = units if isinstance(similarity, Multilinear) else [blocks[0, 1], blocks[0, 2], blocks[1, 2]]
    parts = [checkpoint(slab, start, stop, tau, *inputs, use_reentrant=False) for start, stop in _slabs(len(units[0]))]
    own, matched, *others = (list(column) for column in zip(*parts))
    denominator = torch.cat(own)
    for sums in others:
        denominator = torch.logaddexp(denominator, _log_sum(torch.stack(sums)))
    return denominator - torch.cat(matched)


def fused_all_tuples_loss(blocks: Mapping[Pair, Tensor], tau: Tensor, tuples: Tuples, reduction: str) -> Tensor:
    """The reduced loss over all triplets with the closed-form derivative of the similarity. CPU, three modalities."""
    loss: Tensor = _FusedAllTuples.apply(tuples, reduction, tau, blocks[0, 1], blocks[0, 2], blocks[1, 2])
    return loss


def can_fuse(units: list[Tensor], tau: Tensor, tuples: Tuples, reduction: str) -> bool:
    """Whether :func:`fused_all_tuples_loss` does this case."""
    return (
        tuples.cells is None
        and len(units) == 3
        and tuples.similarity.is_fixed
        and reduction != "none"
        and not isinstance(tuples.similarity, (MeanCosine, Multilinear))
        and all(values_are_free(x) for x in (*units, tau))
        and not use_triton(units[0])
    )


def softmax_slab(similarity: CosineSimilarity, a: Tensor, b: Tensor, c: Tensor, factor: float) -> tuple[Tensor, ...]:
    """All triplets of some anchors, as one program for the compiler.

    Returns: the log2 of the sum of 2^(factor x similarity) of each anchor; then, with the softmax over its triplets as
    weights, the sum of the similarity over all anchors, and those of its derivatives by the cosines ``a`` ``(R, B)``,
    ``b`` ``(R, B)`` and ``c`` ``(B, B)``.
    """
    value, (by_a, by_b, by_c) = similarity.with_gradient(torch.broadcast_tensors(a[:, :, None], b[:, None, :], c[None]))
    logits = value * factor
    peak = logits.amax((1, 2), keepdim=True)
    powers = torch.exp2(logits - peak)
    total = powers.sum((1, 2), keepdim=True)
    weights = powers / total
    logsum = (peak + total.log2()).flatten()
    return logsum, (weights * value).sum(), (by_a * weights).sum(2), (by_b * weights).sum(1), (by_c * weights).sum(0)


def _slabs(size: int) -> list[tuple[int, int]]:
    """Bounds of anchors that hold about two ``BLOCK_CELLS`` triplets (a slab takes two hundred calls, and half of its
    passes read the small Gram blocks), all alike to one: few shapes, few compilations."""
    count = -(-size // max(1, 2 * BLOCK_CELLS // (size * size)))
    return [(size * k // count, size * (k + 1) // count) for k in range(count)]


def _slab_values(inputs: Any, similarity: Any, start: int, stop: int) -> Tensor:
    """The similarity ``(R, B, B)`` of all triplets of some anchors."""
    if isinstance(similarity, Multilinear):
        x, y, z = inputs
        return (x[start:stop, None] * y) @ z.mT
    a, b, c = inputs
    rows = stop - start
    size = c.shape[0]
    shape = (rows, size, size)
    value: Tensor = similarity(
        [a[start:stop, :, None].expand(shape), b[start:stop, None, :].expand(shape), c.expand(shape)]
    )
    return value


def _slab_terms(logits: Tensor, start: int, anchor: int | str) -> tuple[Tensor, ...]:
    """What a slab adds: log-sums for its own anchors, their positives, log-sums for the second and third members."""
    rows, size = logits.shape[:2]
    local = torch.arange(rows, device=logits.device)
    own = local + start
    result = (torch.logsumexp(logits.flatten(1), 1), logits[local, own, own])
    if anchor == 0:
        return result
    others = torch.arange(size, device=logits.device)
    is_own = others == own[:, None]  # (R, B)
    # (i, j, k) belongs to j unless j is i, and to k unless k is i or j: each tuple counts once for each sample in it.
    second = torch.logsumexp(logits, 2).masked_fill(is_own, -torch.inf)
    repeated = torch.eye(size, dtype=torch.bool, device=logits.device)
    third = torch.logsumexp(logits.masked_fill(repeated, -torch.inf), 1).masked_fill(is_own, -torch.inf)
    return (*result, _log_sum(second), _log_sum(third))


def _log_sum(logits: Tensor) -> Tensor:
    """logsumexp over rows whose gradient is 0, not NaN, where all of a column is -inf."""
    empty = (logits == -torch.inf).all(0)
    total = torch.logsumexp(logits.masked_fill(empty, 0), 0)
    return total.masked_fill(empty, -torch.inf)


def _pair_values(units: list[Tensor], blocks: Mapping[Pair, Tensor], similarity: Any) -> Tensor:
    if isinstance(similarity, Multilinear):
        return units[0] @ units[1].mT
    value: Tensor = similarity([blocks[0, 1]])
    return value


def _two_modalities(logits: Tensor, anchor: int | str) -> Tensor:
    matched = logits.diagonal()
    if anchor == 0:
        return torch.logsumexp(logits, 1) - matched
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    both = torch.cat((logits, logits.mT.masked_fill(own, -torch.inf)), dim=1)
    return torch.logsumexp(both, 1) - matched


class _FusedAllTuples(torch.autograd.Function):
    """Slabs with the derivative by each cosine, summed into the gradients of the three blocks as they pass."""

    @staticmethod
    def forward(ctx: Any, tuples: Tuples, reduction: str, tau: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        weight = 1.0 / len(a) if reduction == "mean" else 1.0
        needs_gradient = any(ctx.needs_input_grad)
        stream = _Stream(tuples.similarity, tau.item(), a, b, c)
        if tuples.anchor == 0:
            loss, grads, slope = stream.first_member(weight, needs_gradient)
        else:
            loss, grads, slope = stream.any_member(weight, needs_gradient)
        ctx.tuples, ctx.reduction, ctx.slope = tuples, reduction, slope
        ctx.save_for_backward(tau, a, b, c, *(grads or ()))
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        tau, a, b, c, *grads = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            units = [a, b, c]  # only their number and length are looked at
            rows = all_tuples_loss(units, {(0, 1): a, (0, 2): b, (1, 2): c}, tau, ctx.tuples)
            loss = rows.mean() if ctx.reduction == "mean" else rows.sum()
            inputs = [x for x, needed in zip((tau, a, b, c), ctx.needs_input_grad[2:]) if needed]
            found = iter(torch.autograd.grad(loss, inputs, grad_loss, create_graph=True, materialize_grads=True))
            return (None, None, *(next(found) if needed else None for needed in ctx.needs_input_grad[2:]))
        grad_tau = grad_loss * (-ctx.slope / tau.item()) if ctx.needs_input_grad[2] else None
        scaled = [grad * grad_loss if needed else None for grad, needed in zip(grads, ctx.needs_input_grad[3:])]
        return (None, None, grad_tau, *scaled)


class _Stream:
    """All triplets of a batch, slab by slab. A homogeneous similarity meets the cosines as logits to the base 2."""

    def __init__(self, similarity: Any, tau: float, a: Tensor, b: Tensor, c: Tensor) -> None:
        scale = LOG2_E / tau if similarity.homogeneous and LOG2_E / tau < LARGEST_SCALE else 1.0
        self.similarity, self.tau, self.factor = similarity, tau, LOG2_E / (tau * scale)
        self.cosines = [x * scale for x in (a, b, c)]
        self.size = len(a)
        self.grads = [torch.zeros_like(a), torch.zeros_like(b), torch.zeros_like(c)]
        self.slope = 0.0
        self.workspace = Workspace()

    def first_member(self, weight: float, needs_gradient: bool) -> tuple[Tensor, list[Tensor] | None, float]:
        """``anchor=0``: a slab holds the whole denominator of its anchors, so one walk does everything."""
        fuse = getattr(self.similarity, "fuse", None)
        if needs_gradient and fuse is not None:
            return self._first_member_fused(weight, fuse(softmax_slab))
        loss = self.grads[0].new_zeros(())
        for start, stop in _slabs(self.size):
            value, logits, pullback = self._slab(start, stop, needs_gradient)
            powers = logits.view(stop - start, -1)
            positives = powers.view(-1)[start * (self.size + 1) :: self.size**2 + self.size + 1]  # (i, i, i)
            loss -= weight / LOG2_E * positives.sum()
            peak = powers.amax(1, keepdim=True)
            if self.size == 1 or not peak.abs().amax().item() < _NO_SHIFT[peak.dtype]:  # NaN counts as large
                powers.sub_(peak)
                loss += weight / LOG2_E * peak.sum()
            total = powers.exp2_().sum(1, keepdim=True)
            loss += weight * total.log().sum()
            if pullback is not None:
                powers.mul_(weight / (self.tau * total))
                positives -= weight / self.tau
                self._add(start, stop, logits, value, pullback)
        return loss, self._finish() if needs_gradient else None, self.slope

    def _first_member_fused(
        self, weight: float, slab: Callable[..., tuple[Tensor, ...]]
    ) -> tuple[Tensor, list[Tensor], float]:
        """The same with each slab in one compiled program; the positives are taken off for the whole batch at once."""
        a, b, c = self.cosines
        scale = weight / self.tau
        logits, slope = [], 0.0
        for start, stop in _slabs(self.size):
            logsum, mean, by_a, by_b, by_c = slab(a[start:stop], b[start:stop], c, self.factor)
            logits.append(logsum)
            slope += scale * float(mean)
            torch.mul(by_a, scale, out=self.grads[0][start:stop])
            torch.mul(by_b, scale, out=self.grads[1][start:stop])
            self.grads[2].add_(by_c, alpha=scale)
        value, slopes = self.similarity.with_gradient([cosine.diagonal() for cosine in self.cosines])
        for grad, of_positive in zip(self.grads, slopes):
            grad.diagonal().sub_(of_positive, alpha=scale)
        loss = weight / LOG2_E * (torch.cat(logits) - value * self.factor).sum()
        if not self.similarity.homogeneous:
            self.slope = slope - scale * float(value.sum())
        return loss, self._finish(), self.slope

    def any_member(self, weight: float, needs_gradient: bool) -> tuple[Tensor, list[Tensor] | None, float]:
        """``anchor="any"``: the denominators need all slabs, so a second walk spreads the weights."""
        terms: list[tuple[Tensor, ...]] = []
        for start, stop in _slabs(self.size):
            _, logits, _ = self._slab(start, stop, False)
            terms.append(_slab_terms(logits.div_(LOG2_E), start, "any"))
        own, matched, second, third = zip(*terms)
        logsum = torch.cat(own)
        for sums in (second, third):
            logsum = torch.logaddexp(logsum, torch.logsumexp(torch.stack(sums), 0))
        loss = weight * (logsum - torch.cat(matched)).sum()
        if not needs_gradient:
            return loss, None, 0.0
        scale = weight / self.tau
        logsum = logsum * LOG2_E
        for start, stop in _slabs(self.size):
            value, logits, pullback = self._slab(start, stop, True)
            assert pullback is not None
            local = torch.arange(stop - start)
            own_rows = local + start
            # 2^(z - logsum_j) for the second member, unless it is the first again, and so on.
            second_sum = logsum.expand(stop - start, -1).clone()
            second_sum[local, own_rows] = torch.inf
            weights = (logits - second_sum[:, :, None]).exp2_()
            third_share = (logits - second_sum[:, None, :]).exp2_()
            third_share.diagonal(dim1=1, dim2=2).zero_()
            weights += third_share
            weights += logits.sub_(logsum[start:stop, None, None]).exp2_()
            weights.mul_(scale)
            weights[local, own_rows, own_rows] -= scale
            self._add(start, stop, weights, value, pullback)
        return loss, self._finish(), self.slope

    def _slab(self, start: int, stop: int, needs_gradient: bool) -> tuple[Tensor, Tensor, Pullback | None]:
        """Similarity and logits to the base 2 (the similarity itself, for one that scales), and the way back."""
        a, b, c = self.cosines
        cosines = [a[start:stop, :, None], b[start:stop, None, :], c[None]]
        pullback = None
        if needs_gradient:
            value, pullback = self.similarity.with_pullback(cosines, self.workspace)
        else:
            value = self.similarity.without_gradient(torch.broadcast_tensors(*cosines))
        return value, value if self.factor == 1 else value * self.factor, pullback

    def _add(self, start: int, stop: int, weights: Tensor, value: Tensor, pullback: Pullback) -> None:
        by_a, by_b, by_c = pullback(weights)
        if not self.similarity.homogeneous:
            self.slope += dot(weights, value)
        torch.sum(by_a, 2, out=self.grads[0][start:stop])
        torch.sum(by_b, 1, out=self.grads[1][start:stop])
        self.grads[2] += by_c.sum(0)

    def _finish(self) -> list[Tensor]:
        """The gradients; their sum of products with the cosines is the slope of a similarity that scales."""
        if self.similarity.homogeneous:
            scaled = sum(dot(grad, cosine) for grad, cosine in zip(self.grads, self.cosines))
            self.slope = scaled * self.tau * self.factor / LOG2_E
        return self.grads
