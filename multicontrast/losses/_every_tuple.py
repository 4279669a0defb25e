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

from multicontrast.losses._cells import pairs_of
from multicontrast.losses._grams import Grams, Pair
from multicontrast.losses._masks import Samples, at_least_two
from multicontrast.losses._pair_block import BLOCK_CELLS
from multicontrast.losses._softmax import NegativeSums, concatenate, merge, sum_negatives
from multicontrast.losses._walk import Tuples
from multicontrast.similarity import Multilinear


def every_tuple_sums(grams: Grams, tau: Tensor, tuples: Tuples, samples: Samples, see: bool) -> NegativeSums:
    """The sums over all tuples that are negatives of each anchor of the range; differentiable."""
    places = range(1 if tuples.anchor == 0 else len(grams.units))
    parts = []
    for first, last in _slabs(grams.start, grams.stop, grams.size ** (len(grams.units) - 1)):
        slab = _Slab(tuples, grams, samples, first, last, see)
        sums = [checkpoint(slab.sums, place, tau, *slab.inputs(place), use_reentrant=False) for place in places]
        parts.append(merge(sums))
    joined: NegativeSums = concatenate(parts)
    return joined


def _slabs(start: int, stop: int, cells: int) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK_CELLS // cells)
    yield from ((first, min(first + step, stop)) for first in range(start, stop, step))
    if start == stop:
        yield start, stop


class _Slab:
    """The tuples of anchors ``first..last`` with these in one place: ``(R, B, ..., B)``, the other modalities in
    their order along the other axes."""

    def __init__(self, tuples: Tuples, grams: Grams, samples: Samples, first: int, last: int, see: bool) -> None:
        self.similarity, self.grams, self.samples = tuples.similarity, grams, samples
        self.first, self.last, self.see = first, last, see
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

    def sums(self, place: int, tau: Tensor, *inputs: Tensor) -> NegativeSums:
        """Over the tuples of each anchor, ``(R,)``."""
        present = None
        if self.samples.masks.present is not None:
            present = [self._member(column, m, place) for m, column in enumerate(self.samples.masks.present.unbind(1))]
        logits = self._values(place, inputs, present) / tau
        valid = self._negatives(place, present).expand(self.shape)
        return sum_negatives(logits.flatten(1), valid.flatten(1), self.samples.masks, self.see)

    def _negatives(self, place: int, present: list[Tensor] | None) -> Tensor:
        samples = self.samples
        own = self._along(samples.identity[self.first : self.last], place, place)
        valid = torch.zeros((), dtype=torch.bool, device=own.device)
        for m in range(self.count):
            stranger = self._member(samples.identity, m, place) != own
            valid = valid | (stranger if present is None else stranger & present[m])
        rows = torch.arange(self.size, device=own.device)
        for m in range(place):  # those tuples were met in an earlier place
            valid = valid & (self._member(rows, m, place) != self._along(rows[self.first : self.last], place, place))
        if present is not None and samples.taking_part is not None:
            for m in range(self.count):
                valid = valid & self._member(samples.taking_part, m, place)
            valid = valid & at_least_two(present)
        return valid

    def _values(self, place: int, inputs: tuple[Tensor, ...], present: list[Tensor] | None) -> Tensor:
        if isinstance(self.similarity, Multilinear):
            rows = [unit[self.first : self.last] if m == place else unit for m, unit in enumerate(inputs)]
            return _multilinear(rows, place)
        cosines = []
        for (m, n), block in zip(pairs_of(self.count), inputs):
            pair = (n, m) if n == place else (m, n)  # rows of the place come first
            cosines.append(self._block(block, pair, place).expand(self.shape))
        return self.similarity(cosines) if present is None else self.similarity.of_present(cosines, present)

    def _axis(self, modality: int, place: int) -> int:
        """The axis of a modality: the place first, the others in their order."""
        return 0 if modality == place else modality + (modality < place)

    def _member(self, values: Tensor, modality: int, place: int) -> Tensor:
        """``values`` ``(B,)`` of the member of one modality, broadcastable to the slab."""
        return self._along(values[self.first : self.last] if modality == place else values, modality, place)

    def _along(self, vector: Tensor, modality: int, place: int) -> Tensor:
        shape = [1] * self.count
        shape[self._axis(modality, place)] = len(vector)
        return vector.view(shape)

    def _block(self, block: Tensor, pair: Pair, place: int) -> Tensor:
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
