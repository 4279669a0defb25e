"""The reference: every option of every term on any device, differentiable as often as its similarity.

All other implementations are compared with it. It takes the anchors in slabs; if there are several, the backward pass
computes each slab again. Memory is bounded by the Gram blocks, or by the batch if the blocks are not held.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from multicontrast._checks import can_read_values
from multicontrast.linalg.gram3 import gram_eigmax_with_gradient
from multicontrast.losses.candidates import FEW, All, Blocks, Candidates, pairs_of
from multicontrast.losses.diagnostics import Diagnostics, TermDiagnostics
from multicontrast.losses.factorised import mean_cosine_denominators
from multicontrast.losses.plan import Plan, Term
from multicontrast.losses.softmax import (
    Direction,
    Sums,
    concatenate,
    cross_entropy,
    describe_term,
    merge,
    plain_cross_entropy,
    sum_negatives,
    weigh,
)
from multicontrast.similarity import Multilinear

ByAnchor = Callable[["Evaluation"], "Tensor | None"]

_CANDIDATES = 1 << 20  # tuples in a slab
_GATHERED = 1 << 23  # entries of gathered rows in a slab, if blocks are not held
_SLABS = 8  # at most, if blocks are held: each adds a gradient of a whole block


def applies(plan: Plan, embeddings: Sequence[Tensor]) -> bool:
    """Always."""
    return True


def loss(plan: Plan, embeddings: Sequence[Tensor], special: ByAnchor | None = None) -> Tensor:
    """The plan's loss: 0-dim, or one value for each anchor for ``reduction="none"``. Fills its diagnostics.

    ``special`` computes the losses ``(R,)`` of a term's anchors, or returns None to leave the term to the reference.
    """
    masks = plan.masks
    rows = [masks.fill_absent(x, m, 0) for m, x in enumerate(embeddings)]
    units = [unit_rows(x) for x in rows] if plan.normalize else rows
    extra = [None if x is None else x.to(units[0].dtype) for x in masks.extra or [None] * len(units)]
    if plan.normalize:
        extra = [None if x is None else unit_rows(x) for x in extra]
    blocks = Blocks(units, plan.start, plan.stop, held=not plan.tiled)
    total = units[0].new_zeros(plan.stop - plan.start if plan.reduction == "none" else ())
    for term in plan.terms:
        evaluation = Evaluation(term, plan, blocks, extra)
        directions: list[Direction] = []
        by_anchor = None if special is None else special(evaluation)
        if by_anchor is None:
            directions = evaluation.directions()
            by_anchor = mean_of(direction.loss for direction in directions)
        value = weigh(by_anchor, masks, evaluation.taking_part, plan.reduction, plan.start, plan.stop, plan.size)
        total = total + (value if term.alpha == 1 else term.alpha * value)
        if plan.diagnostics is not None:
            evaluation.describe(plan.diagnostics, directions)
    if masks.present is not None and plan.terms:
        _warn_if_no_anchor_is_left([masks.taking_part(term.modalities) for term in plan.terms])
    return total


def unit_rows(x: Tensor) -> Tensor:
    """Rows of ``x``, along its last axis, divided by their length; differentiable. A zero row stays zero and has the
    gradient 0.

    Each row is first divided by its largest entry, so that no square overflows or vanishes. That entry is a constant
    for the gradient: unit rows do not depend on the scale.
    """
    scale = x.detach().abs().amax(dim=-1, keepdim=True)
    scale = torch.where(scale > 0, scale, torch.where(scale == 0, 1, scale))  # NaN stays
    x = x / scale
    length = x.square().sum(dim=-1, keepdim=True)
    nonzero = ~(length == 0)
    return torch.where(nonzero, x / torch.where(nonzero, length, 1).sqrt(), 0 * x)


def mean_of(losses: Iterable[Tensor]) -> Tensor:
    """The mean over the directions of a term."""
    first, *second = losses
    return (first + second[0]) / 2 if second else first


class Evaluation:
    """One term of a plan over its blocks."""

    def __init__(self, term: Term, plan: Plan, blocks: Blocks, extra: Sequence[Tensor | None]) -> None:
        self.term, self.plan, self.masks = term, plan, plan.masks
        self.similarity = term.similarity
        self.extra = [extra[m] for m in term.modalities]
        self.taking_part = self.masks.taking_part(term.modalities)
        self.blocks = blocks.restrict(term.modalities)
        if isinstance(self.similarity, Multilinear) and self.masks.present is not None:
            # In a product an absent member is 1 in every coordinate.
            filled = [self.masks.fill_absent(x, m, 1) for m, x in zip(term.modalities, self.blocks.units)]
            self.blocks = blocks.restrict(term.modalities, filled)
        self.tau = torch.where(term.tau > 0, term.tau, torch.nan).to(blocks.units[0].dtype)
        self.stats = plan.diagnostics is not None

    def directions(self) -> list[Direction]:
        """The softmaxes of the term for all anchors of the plan."""
        start, stop = self.plan.start, self.plan.stop
        if torch.compiler.is_compiling():  # one graph for all sizes
            return self._slab(start, stop)
        step = self._step()
        if step >= stop - start:
            return self._slab(start, stop)
        if self.blocks.held:
            self._slab(start, start)  # computes the blocks once for all slabs
        bounds = [(i, min(i + step, stop)) for i in range(start, stop, step)]
        parts = [checkpoint(self._slab, i, j, use_reentrant=False) for i, j in bounds]
        joined: list[Direction] = concatenate(parts)
        return joined

    def _step(self) -> int:
        """The number of anchors in a slab."""
        candidates = [part for direction in self.term.directions for part in direction]
        if self._factorises():
            return max(1, _CANDIDATES // self.plan.size ** (len(self.extra) - 2))
        width = max(1, *(part.width for part in candidates))
        step = _CANDIDATES // width
        if self.blocks.held and not isinstance(self.similarity, Multilinear):
            if not any(part.are_all for part in candidates):
                step = max(step, -(-(self.plan.stop - self.plan.start) // _SLABS))
        elif not all(part.holds_positive for part in candidates):
            strip = self.plan.size if FEW * width > self.plan.size else 1
            step = min(_CANDIDATES // max(width, strip), _GATHERED // (width * self.blocks.units[0].shape[1]))
        return max(1, step)

    def _slab(self, start: int, stop: int) -> list[Direction]:
        return [
            self._direction(parts, start, stop, reverse=bool(number))
            for number, parts in enumerate(self.term.directions)
        ]

    def _direction(self, parts: Sequence[Candidates], start: int, stop: int, reverse: bool) -> Direction:
        masks, first = self.masks, parts[0]
        positive = self.positive(first, start, stop) / self.tau
        if self._factorises():
            anchor = 0 if len(parts) == 1 else "any"
            log = mean_cosine_denominators(self.blocks, self.tau, anchor, start, stop)
            return Direction(log - positive, positive, positive, None)
        if masks.shape_nothing and not self.stats and len(parts) == 1:
            logits = (self._values(first, start, stop, None) / self.tau).flatten(1)
            if not first.holds_positive:
                return Direction(plain_cross_entropy(positive, logits, masks), positive, positive, None)
            target = first.target(start, stop)
            return Direction(
                F.cross_entropy(logits, target, reduction="none", label_smoothing=masks.label_smoothing),
                positive,
                positive,
                None,
            )
        sums = []
        for part in parts:
            present, valid = self._look_up(part, start, stop)
            logits = self._values(part, start, stop, present) / self.tau
            valid = None if valid is None else valid.expand(logits.shape).flatten(1)
            sums.append(sum_negatives(logits.flatten(1), valid, masks, self.stats))
        extra = self._extra(start, stop, reverse)
        if extra is not None:
            sums.append(sum_negatives(extra[0] / self.tau, extra[1], masks, self.stats))
        negatives: Sums = merge(sums, masks)
        return Direction(cross_entropy(positive, negatives, masks), positive, negatives.number, negatives.stats)

    def _factorises(self) -> bool:
        """Whether the sum over all tuples is a product of matmuls, which masks and statistics exclude."""
        return self.masks.only_weigh and not self.stats and self.plan.size > 1 and self.term.factorises

    def _look_up(self, part: Candidates, start: int, stop: int) -> tuple[list[Tensor] | None, Tensor | None]:
        """Which members of the candidates are present, for each modality, or None if all are; and which candidates are
        negatives, or None if all are."""
        masks, modalities = self.masks, self.term.modalities
        members, own = part.members(start, stop), part.own(start, stop)
        own = own.view(-1, *[1] * (max(member.ndim for member in members) - 1))
        present = None
        if masks.present is not None:
            present = [masks.present[:, m][member] for m, member in zip(modalities, members)]
        if not part.holds_positive and masks.ids is None and present is None:
            return None, None
        strangers = torch.zeros((), dtype=torch.bool, device=own.device)
        for m, member in enumerate(members):
            stranger = member != own if masks.ids is None else masks.ids[member] != masks.ids[own]
            strangers = strangers | (stranger if present is None else stranger & present[m])
        valid = strangers
        for m in part.earlier:
            valid = valid & (members[m] != own)
        if present is not None and self.taking_part is not None:
            for member in members:
                valid = valid & self.taking_part[member]
            valid = valid & at_least_two(present)
        strays = part.strays(start, stop)
        if strays is not None:  # keep their NaN
            valid = valid | strays
        return present, valid

    def _values(self, part: Candidates, start: int, stop: int, present: list[Tensor] | None) -> Tensor:
        """The similarity of the candidates, over their present members."""
        if isinstance(self.similarity, Multilinear):
            return part.multilinear(self.blocks.units, start, stop)
        cosines = torch.broadcast_tensors(*part.read(self.blocks, start, stop)[0])
        if self.term.is_pair:  # a pair needs both members, so its cosine is enough
            present = None
        return self.similarity(cosines) if present is None else self.similarity.of_present(cosines, present)

    def positive(self, candidates: Candidates, start: int, stop: int) -> Tensor:
        """The similarity ``(R,)`` of the positives."""
        chosen = candidates.positive(start, stop)
        if chosen is None:
            rows = [unit[start:stop] for unit in self.blocks.units]
        else:
            rows = [unit[member] for unit, member in zip(self.blocks.units, chosen)]
        present = None
        if self.masks.present is not None:
            whole = [self.masks.present[:, m] for m in self.term.modalities]
            present = [x[start:stop] if chosen is None else x[chosen[m]] for m, x in enumerate(whole)]
        if isinstance(self.similarity, Multilinear):
            values = self.similarity.of_rows(rows)
        else:
            cosines = [torch.linalg.vecdot(rows[m], rows[n]) for m, n in pairs_of(len(rows))]
            values = self.similarity(cosines) if present is None else self.similarity.of_present(cosines, present)
        if present is not None and chosen is not None and self.taking_part is not None:  # an index of the user's
            values = torch.where(at_least_two(present) | ~self.taking_part[start:stop], values, torch.nan)
        strays = candidates.stray_positives(start, stop)
        return values if strays is None else torch.where(strays, torch.nan, values)

    def _extra(self, start: int, stop: int, reverse: bool) -> tuple[Tensor, Tensor] | None:
        """The similarity ``(R, E)`` of the tuples of the anchors' own rows and the extra samples, and which of these
        tuples have two present members. The anchor gives its first embedding, or with ``reverse`` all but the first."""
        count = len(self.extra)
        is_own = [(m == 0) != reverse for m in range(count)]
        given = [x for m, x in enumerate(self.extra) if x is not None and not is_own[m]]
        if not given:
            return None
        first = self.plan.start
        further = [
            None if x is None else x[None] if x.ndim == 2 else x[start - first : stop - first] for x in self.extra
        ]
        rows = [u[start:stop, None] if own else x for own, u, x in zip(is_own, self.blocks.units, further)]
        shape = (stop - start, given[0].shape[-2])
        present = [torch.full((), x is not None, device=given[0].device).expand(shape) for x in rows]
        if self.masks.present is not None:
            own_present = self.masks.present[start:stop]
            present = [
                own_present[:, self.term.modalities[m], None].expand(shape) if is_own[m] else present[m]
                for m in range(count)
            ]
        if isinstance(self.similarity, Multilinear):
            product = torch.ones((), dtype=given[0].dtype, device=given[0].device)
            for x in rows:
                product = product if x is None else product * x
            return product.sum(-1).expand(shape), at_least_two(present)
        cosines = []
        for m, n in pairs_of(count):
            x, y = rows[m], rows[n]
            if x is None or y is None:
                cosines.append(given[0].new_zeros(shape))
            elif is_own[m] != is_own[n] and (y if is_own[m] else x).shape[0] == 1:  # one list for all anchors
                own, listed = (x, y) if is_own[m] else (y, x)
                cosines.append(own[:, 0] @ listed[0].mT)
            else:
                cosines.append(torch.linalg.vecdot(x, y).expand(shape))
        whole = self.masks.present is None and len(given) == count - sum(is_own)
        values = self.similarity(cosines) if whole else self.similarity.of_present(cosines, present)
        return values, at_least_two(present)

    # --- diagnostics ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def describe(self, diagnostics: Diagnostics, directions: list[Direction]) -> None:
        """Store the statistics of the term."""
        plan, term, masks = self.plan, self.term, self.masks
        start, stop = plan.start, plan.stop
        here = None if self.taking_part is None else self.taking_part[start:stop]
        own = dataclasses.replace(masks, weight=None if masks.weight is None else masks.weight[start:stop])
        matched, apart = self._extremes()
        figures = describe_term(directions, self.tau, own, here, matched, apart)
        if term.is_pair:
            diagnostics.pairs[term.pair] = TermDiagnostics(**figures)
            return
        units = self.blocks.units
        figures["sign_flipped"] = share_of_flipped([unit[start:stop] for unit in units], here)
        if diagnostics.sampling_gap and not term.directions[0][0].are_all:
            every = (All(plan.size, len(units), units[0].device),)
            whole = dataclasses.replace(term, directions=(every,))
            exact = Evaluation(whole, dataclasses.replace(plan, diagnostics=None), self.blocks, self.extra)
            gap = exact.directions()[0].loss - directions[0].loss
            figures["sampling_gap"] = weigh(gap, own, here, "mean", 0, stop - start, stop - start)
        diagnostics.tuples = TermDiagnostics(**figures)

    def _extremes(self) -> tuple[Tensor, Tensor]:
        """The similarity of each anchor's tuple if all its members were equal, and of orthogonal members."""
        one = self.blocks.units[0].new_ones(())
        similarity, plan = self.similarity, self.plan
        if isinstance(similarity, Multilinear):
            return one, 0 * one
        equal, strangers = ([value * one for _ in pairs_of(len(self.extra))] for value in (1, 0))
        if self.masks.present is None:
            return similarity(equal), similarity(strangers)
        present = [self.masks.present[plan.start : plan.stop, m] for m in self.term.modalities]
        pairs = [(present[m] & present[n]).to(one.dtype) for m, n in pairs_of(len(present))]
        return similarity.of_present(pairs, present), similarity(strangers)


def _warn_if_no_anchor_is_left(taking_part: Sequence[Tensor | None]) -> None:
    if all(who is not None and can_read_values(who) and not bool(who.any()) for who in taking_part):
        _warn_once_of_no_anchor()


@functools.cache
def _warn_once_of_no_anchor() -> None:
    """Warn once per process."""
    warnings.warn(
        "No sample of this batch has the two modalities that a term of the loss needs: loss and gradient are 0. "
        "Further such batches give no warning.",
        stacklevel=2,
    )


def second_order(plan: Plan, embeddings: Sequence[Tensor], grad: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
    """The differentiable gradients w.r.t. the plan's temperatures and the embeddings, for the backward passes of
    implementations whose own gradients are not differentiable."""
    count = len(plan.taus)
    inputs = [x.view_as(x) for x in (*plan.taus, *embeddings)]  # one tensor may be passed twice
    chosen = [x for x, want in zip(inputs, wanted) if want]
    value = loss(plan.with_taus(inputs[:count]), inputs[count:])
    found = iter(torch.autograd.grad(value, chosen, grad, create_graph=True, materialize_grads=True))
    return [next(found) if want else None for want in wanted]


def at_least_two(present: Sequence[Tensor]) -> Tensor:
    """Whether at least two members are present."""
    one = two = torch.zeros((), dtype=torch.bool, device=present[0].device)
    for member in present:
        two = two | (one & member)
        one = one | member
    return two


@torch.no_grad()
def share_of_flipped(rows: list[Tensor], taking_part: Tensor | None) -> Tensor:
    """Share of tuples of unit rows ``(R, D)`` whose leading eigenvector has entries of both signs."""
    cosines = [torch.linalg.vecdot(rows[m], rows[n]) for m, n in pairs_of(len(rows))]
    _, products = gram_eigmax_with_gradient(cosines)  # 2 u_m u_n
    flipped = torch.stack(products).amin(0) < -1e-6
    if taking_part is not None:
        flipped = flipped & taking_part
    number = len(flipped) if taking_part is None else taking_part.sum().clamp_min(1)
    return flipped.sum().to(cosines[0].dtype) / number
