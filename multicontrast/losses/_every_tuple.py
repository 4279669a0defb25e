r"""Eq. (3) with every tuple of the batch in the denominator, for some of the anchors and under masks.

Anchor ``i`` meets the tuples with sample ``i`` in place 0; under ``anchor="any"`` also those with it in place 1 and not
in place 0, in place 2 and in neither of the first two, and so on: each tuple that holds the sample once. One slab
holds the tuples of a few anchors and one place; it is computed again in the backward pass.

:mod:`multicontrast.losses._all_tuples` shares the slabs of ``anchor="any"`` among the places, which needs the whole
batch as anchors and no masks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from multicontrast.losses._cells import Pair, pairs_of
from multicontrast.losses._grams import Grams
from multicontrast.losses._pair_block import BLOCK_CELLS
from multicontrast.losses._walk import Tuples
from multicontrast.similarity import Multilinear


def every_tuple_rows(units: list[Tensor], grams: Grams, tau: Tensor, tuples: Tuples) -> Tensor:
    """The loss of each anchor of the range, ``(stop - start,)``; differentiable."""
    places = range(1 if tuples.anchor == 0 else len(units))
    parts = []
    for first, last in _slabs(grams.start, grams.stop, grams.size ** (len(units) - 1)):
        slab = _Slab(tuples, grams, first, last)
        sums = [checkpoint(slab.log_sum, place, tau, *slab.inputs(place), use_reentrant=False) for place in places]
        total = _finite_logsumexp(torch.stack(sums))
        parts.append(total - slab.positives() / tau)
    return torch.cat(parts) if parts else units[0].new_zeros(0)


def _slabs(start: int, stop: int, cells: int) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK_CELLS // cells)
    return ((first, min(first + step, stop)) for first in range(start, stop, step))


class _Slab:
    """The tuples of anchors ``first..last`` with these in one place: ``(R, B, ..., B)``, the other modalities in
    their order along the other axes."""

    def __init__(self, tuples: Tuples, grams: Grams, first: int, last: int) -> None:
        self.similarity, self.grams, self.first, self.last = tuples.similarity, grams, first, last
        self.count, self.size = len(grams.units), grams.size
        self.shape = (last - first, *[self.size] * (self.count - 1))

    def inputs(self, place: int) -> list[Tensor]:
        """The cosines that the slab is made of, or the unit rows for the multilinear product."""
        if isinstance(self.similarity, Multilinear):
            return self.grams.units
        local = slice(self.first - self.grams.start, self.last - self.grams.start)
        return [
            self.grams.rows(place, n if m == place else m)[local] if place in (m, n) else self.grams.whole(m, n)
            for m, n in pairs_of(self.count)
        ]

    def log_sum(self, place: int, tau: Tensor, *inputs: Tensor) -> Tensor:
        """The log of the sum of exp(logit) over the tuples of each anchor, ``(R,)``; -inf where there is none."""
        logits = self._values(place, inputs) / tau
        anchors = torch.arange(self.first, self.last, device=tau.device)
        everyone = torch.arange(self.size, device=tau.device)
        for m in range(place):  # those tuples were met in an earlier place
            repeated = self._along(everyone, m, place) == self._along(anchors, place, place)
            logits = logits.masked_fill(repeated, -torch.inf)
        return _finite_logsumexp(logits.flatten(1).mT)

    def positives(self) -> Tensor:
        """The similarity of each anchor's own tuple."""
        rows = [unit[self.first : self.last] for unit in self.grams.units]
        if isinstance(self.similarity, Multilinear):
            return self.similarity.of_rows(rows)
        return self.similarity([torch.linalg.vecdot(rows[m], rows[n]) for m, n in pairs_of(self.count)])

    def _values(self, place: int, inputs: tuple[Tensor, ...]) -> Tensor:
        if isinstance(self.similarity, Multilinear):
            rows = [unit[self.first : self.last] if m == place else unit for m, unit in enumerate(inputs)]
            return _multilinear(rows, place)
        cosines = []
        for (m, n), block in zip(pairs_of(self.count), inputs):
            if n == place:  # rows of the place come first
                m, n = n, m
            cosines.append(self._along_both(block, (m, n), place).expand(self.shape))
        value: Tensor = self.similarity(cosines)
        return value

    def _axis(self, modality: int, place: int) -> int:
        """The axis of a modality: the place first, the others in their order."""
        return 0 if modality == place else 1 + modality - (modality > place)

    def _along(self, vector: Tensor, modality: int, place: int) -> Tensor:
        shape = [1] * self.count
        shape[self._axis(modality, place)] = len(vector)
        return vector.view(shape)

    def _along_both(self, block: Tensor, pair: Pair, place: int) -> Tensor:
        """A block with its rows along the axis of the pair's first modality and its columns along that of the second;
        the first axis comes before the second."""
        shape = [1] * self.count
        shape[self._axis(pair[0], place)], shape[self._axis(pair[1], place)] = block.shape
        return block.reshape(shape)


def _multilinear(rows: list[Tensor], place: int) -> Tensor:
    """Sum over the coordinates of the product of one row of each modality, for all tuples; the place's axis first."""
    ordered = [rows[place], *(unit for m, unit in enumerate(rows) if m != place)]
    product = ordered[0]
    for unit in ordered[1:-1]:
        product = product[..., None, :] * unit
    return product @ ordered[-1].mT


def _finite_logsumexp(x: Tensor) -> Tensor:
    """logsumexp over the first axis; where nothing is finite -inf, with the gradient 0."""
    empty = (x == -torch.inf).all(0)
    total = torch.logsumexp(x.masked_fill(empty, 0), 0)
    return total.masked_fill(empty, -torch.inf)
