"""The plain road under masks and in sight of diagnostics: every option of every term, differentiable PyTorch.

A term reads its cosines and similarities as the plain road does, asks :mod:`multicontrast.losses._masks` who is a
negative of whom, and leaves the softmax to :mod:`multicontrast.losses._softmax`. In tiles the anchors are taken some
at a time, and each part is computed again in the backward pass.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from multicontrast._checks import values_are_free
from multicontrast.losses import _tiled
from multicontrast.losses._cells import ListCells, pairs_of
from multicontrast.losses._diagnostics import Diagnostics, Direction, TermDiagnostics, describe_term, share_of_flipped
from multicontrast.losses._every_tuple import every_tuple_sums
from multicontrast.losses._grams import Grams, Pair
from multicontrast.losses._masks import CellMembers, Masks, Samples, at_least_two, weigh
from multicontrast.losses._rows import unit_rows
from multicontrast.losses._softmax import NegativeSums, concatenate, cross_entropy, merge, sum_negatives
from multicontrast.losses._walk import Tuples, Walk
from multicontrast.similarity import Multilinear


def masked_loss(
    embeddings: Sequence[Tensor],
    tau: Tensor,
    walk: Walk,
    normalize: bool,
    tiled: bool,
    diagnostics: Diagnostics | None = None,
) -> Tensor:
    """The walk's loss: 0-dim, or one value for each anchor for ``reduction="none"``. Fills ``diagnostics``."""
    masks = walk.masks or Masks()
    rows = [masks.fill_absent(x, m, 0) for m, x in enumerate(embeddings)]
    units = [unit_rows(x) for x in rows] if normalize else rows
    extra = [None if x is None else x.to(units[0].dtype) for x in masks.extra or [None] * len(units)]
    if normalize:
        extra = [None if x is None else unit_rows(x) for x in extra]
    tau = tau.to(units[0].dtype)
    tau = torch.where(tau > 0, tau, torch.nan)
    size = len(units[0])
    start, stop = walk.range(size)
    grams = Grams(units, start, stop)
    terms: list[_Pair | _Tuples] = [] if walk.tuples is None else [_Tuples(walk.tuples, masks, extra, tiled)]
    terms += [_Pair(pair, walk.symmetric, masks, extra, tiled) for pair in walk.pairs]
    loss = units[0].new_zeros(stop - start if walk.reduction == "none" else ())
    for term in terms:
        directions = _in_parts(term, grams, tau, diagnostics is not None)
        by_anchor = torch.stack([direction.loss for direction in directions]).mean(0)
        taking_part = masks.taking_part(term.modalities)
        loss = loss + term.alpha * weigh(by_anchor, masks, taking_part, walk.reduction, start, stop, size)
        if diagnostics is not None:
            _look(diagnostics, term, directions, grams, tau)
    if terms and not any(_may_take_part(masks.taking_part(term.modalities)) for term in terms):
        _say_that_nobody_is_left()
    return loss


@torch.no_grad()
def _look(
    diagnostics: Diagnostics, term: _Pair | _Tuples, directions: list[Direction], grams: Grams, tau: Tensor
) -> None:
    """Note what a term saw."""
    masks = term.masks
    start, stop = grams.start, grams.stop
    taking_part = masks.taking_part(term.modalities)
    here = None if taking_part is None else taking_part[start:stop]
    own = dataclasses.replace(masks, weight=None if masks.weight is None else masks.weight[start:stop])
    matched, apart = term.extremes(grams)
    figures = describe_term(directions, tau, own, here, matched, apart)
    if isinstance(term, _Pair):
        diagnostics.pairs[term.pair] = TermDiagnostics(**figures)
        return
    figures["sign_flipped"] = share_of_flipped([unit[start:stop] for unit in grams.units], here)
    if diagnostics.sampling_gap and term.tuples.cells is not None:
        whole = dataclasses.replace(term.tuples, cells=None, anchor=0)
        exact = dataclasses.replace(term, tuples=whole).directions(term.prepare(grams), tau, False)[0].loss
        figures["sampling_gap"] = weigh(exact - directions[0].loss, own, here, "mean", 0, stop - start, stop - start)
    diagnostics.tuples = TermDiagnostics(**figures)


def _may_take_part(taking_part: Tensor | None) -> bool:
    """False if looking costs nothing and shows that nobody does."""
    return taking_part is None or not values_are_free(taking_part) or bool(taking_part.any())


@functools.cache
def _say_that_nobody_is_left() -> None:
    """Once in a process."""
    warnings.warn(
        "No sample of this batch has the two modalities that a term of the loss needs: loss and gradient are 0. "
        "Further such batches pass in silence.",
        stacklevel=2,
    )


def _in_parts(term: _Pair | _Tuples, grams: Grams, tau: Tensor, see: bool) -> list[Direction]:
    """The softmaxes of a term for all anchors of the range."""
    grams = term.prepare(grams)
    step = term.step(grams)
    if step is None or step >= grams.stop - grams.start:
        return term.directions(grams, tau, see)

    def part(start: int, stop: int, tau: Tensor, *units: Tensor) -> list[Direction]:
        return term.directions(Grams(list(units), start, stop), tau, see)

    bounds = _tiled.bounds(grams.start, grams.stop, step)
    parts = [checkpoint(part, i, j, tau, *grams.units, use_reentrant=False) for i, j in bounds]
    joined: list[Direction] = concatenate(parts)
    return joined


def _direction(positive: Tensor, parts: Sequence[NegativeSums], masks: Masks) -> Direction:
    negatives = merge(parts)
    return Direction(cross_entropy(positive, negatives, masks), positive, negatives.number, negatives.seen)


@dataclass(frozen=True)
class _Pair:
    """Eq. (1) between two modalities, in one direction or both."""

    pair: Pair
    symmetric: bool
    masks: Masks
    extra: Sequence[Tensor | None]
    tiled: bool
    alpha: float = 1.0

    @property
    def modalities(self) -> Pair:
        return self.pair

    def prepare(self, grams: Grams) -> Grams:
        return grams

    def step(self, grams: Grams) -> int | None:
        """How many anchors at a time; None for all."""
        return max(1, _tiled._CELLS // grams.size) if self.tiled else None

    def extremes(self, grams: Grams) -> tuple[Tensor, Tensor]:
        """The similarity of a match and of strangers."""
        one = grams.units[0].new_ones(())
        return one, 0 * one

    def directions(self, grams: Grams, tau: Tensor, see: bool) -> list[Direction]:
        samples = Samples(self.masks, self.pair, grams.start, grams.stop, grams.size, tau.device)
        negatives = samples.pair_negatives()
        found = []
        for m, n in (self.pair, self.pair[::-1]) if self.symmetric else (self.pair,):
            block = grams.rows(m, n)
            positive = block[:, grams.start : grams.stop].diagonal() / tau
            parts = [sum_negatives(block / tau, negatives, self.masks, see)]
            candidates = self.extra[n]
            if candidates is not None:
                more = grams.units[m][grams.start : grams.stop] @ candidates.mT / tau
                parts.append(sum_negatives(more, torch.ones_like(more, dtype=torch.bool), self.masks, see))
            found.append(_direction(positive, parts, self.masks))
        return found


@dataclass(frozen=True)
class _Tuples:
    """Eq. (3)."""

    tuples: Tuples
    masks: Masks
    extra: Sequence[Tensor | None]
    tiled: bool

    @property
    def alpha(self) -> float:
        return self.tuples.alpha

    @property
    def modalities(self) -> range:
        return range(len(self.extra))

    def prepare(self, grams: Grams) -> Grams:
        """In a product an absent member is 1 in every coordinate."""
        if not isinstance(self.tuples.similarity, Multilinear) or self.masks.present is None:
            return grams
        units = [self.masks.fill_absent(unit, m, 1) for m, unit in enumerate(grams.units)]
        return Grams(units, grams.start, grams.stop)

    def step(self, grams: Grams) -> int | None:
        """How many anchors at a time; None for all."""
        cells = self.tuples.cells
        if cells is None:
            return None
        if self._gathers and not isinstance(cells, ListCells):
            return max(1, min(_tiled._CELLS, _tiled._GATHERED // grams.units[0].shape[1]) // cells.width)
        return max(1, _tiled._CELLS // cells.width) if self._gathers else None

    def extremes(self, grams: Grams) -> tuple[Tensor, Tensor]:
        """The similarity of each anchor's tuple if all its members were equal, and of a whole tuple of strangers."""
        one = grams.units[0].new_ones(())
        similarity = self.tuples.similarity
        if isinstance(similarity, Multilinear):
            return one, 0 * one
        equal, strangers = ([value * one for _ in pairs_of(len(self.extra))] for value in (1, 0))
        if self.masks.present is None:
            return similarity(equal), similarity(strangers)
        present = self.masks.present[grams.start : grams.stop].unbind(1)
        pairs = [(present[m] & present[n]).to(one.dtype) for m, n in pairs_of(len(present))]
        return similarity.of_present(pairs, list(present)), similarity(strangers)

    @property
    def _gathers(self) -> bool:
        """Whether a cell's similarity comes from its rows, and not from Gram blocks."""
        return self.tiled or isinstance(self.tuples.similarity, Multilinear)

    def directions(self, grams: Grams, tau: Tensor, see: bool) -> list[Direction]:
        samples = Samples(self.masks, self.modalities, grams.start, grams.stop, grams.size, tau.device)
        similarity, cells, masks = self.tuples.similarity, self.tuples.cells, self.masks
        if cells is None:
            rows = [unit[grams.start : grams.stop] for unit in grams.units]
            present = None if masks.present is None else list(masks.present[grams.start : grams.stop].unbind(1))
            positive = _tiled.similarity_of_rows(rows, similarity, present) / tau
            parts = [every_tuple_sums(grams, tau, self.tuples, samples, see)]
        else:
            members = CellMembers(cells, samples)
            present = members.present()
            if self._gathers or isinstance(similarity, Multilinear):
                values = _tiled.cell_values(grams.units, self.tuples, grams.start, grams.stop, present)
            else:
                cosines = cells.read(grams)
                values = similarity(cosines) if present is None else similarity.of_present(cosines, present)
            column = cells.positive(grams.start, grams.stop)
            if isinstance(column, int):
                positive = values[:, column] / tau
                if present is not None:  # of an index of the user's own
                    whole = at_least_two([member[:, :1] for member in present])[:, 0]
                    positive = torch.where(whole | ~samples.anchors_taking_part(), positive, torch.nan)
            else:
                positive = values[:, grams.start : grams.stop].diagonal() / tau
            parts = [sum_negatives(values / tau, members.negatives(present), self.masks, see)]
        more = self._extra(grams, samples)
        if more is not None:
            parts.append(sum_negatives(more[0] / tau, more[1], self.masks, see))
        return [_direction(positive, parts, self.masks)]

    def _extra(self, grams: Grams, samples: Samples) -> tuple[Tensor, Tensor] | None:
        """The similarity ``(R, E)`` of each anchor's first embedding with the others of the further samples, and which
        of these tuples have two members."""
        given = [x for x in self.extra[1:] if x is not None]
        if not given:
            return None
        anchors, similarity = grams.units[0][grams.start : grams.stop], self.tuples.similarity
        shape = (len(anchors), len(given[0]))
        yes = torch.ones(shape, dtype=torch.bool, device=anchors.device)
        present = [yes if x is not None else ~yes for x in (anchors, *self.extra[1:])]
        if self.masks.present is not None:
            present[0] = self.masks.present[samples.start : samples.stop, :1].expand(shape)
        if isinstance(similarity, Multilinear):
            return anchors @ torch.stack(given).prod(0).mT, at_least_two(present)
        cosines = []
        for m, n in pairs_of(len(self.extra)):
            x, y = self.extra[m], self.extra[n]
            if y is None or (m > 0 and x is None):
                cosines.append(anchors.new_zeros(shape))
            elif m == 0:
                cosines.append(anchors @ y.mT)
            elif x is not None:
                cosines.append(torch.linalg.vecdot(x, y).expand(shape))
        whole = self.masks.present is None and len(given) == len(self.extra) - 1
        values = similarity(cosines) if whole else similarity.of_present(cosines, present)
        return values, at_least_two(present)
