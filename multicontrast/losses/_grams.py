"""The Gram blocks of one walk, or of the rows that a range of anchors needs: each product is computed once."""

from __future__ import annotations

from torch import Tensor

Pair = tuple[int, int]


class Grams:
    """Cosines of unit rows, computed when first asked for; differentiable.

    A walk asks for whole blocks first, so that rows of them are views; what is asked for in rows alone is a product of
    those rows alone.
    """

    def __init__(self, units: list[Tensor], start: int, stop: int) -> None:
        self.units, self.start, self.stop = units, start, stop
        self.size = len(units[0])
        self._whole: dict[Pair, Tensor] = {}
        self._rows: dict[Pair, Tensor] = {}

    def whole(self, m: int, n: int) -> Tensor:
        """``(B, B)``: all rows of modality ``m`` against all of ``n``."""
        if m > n:
            return self.whole(n, m).mT
        if (m, n) not in self._whole:
            self._whole[m, n] = self.units[m] @ self.units[n].mT
        return self._whole[m, n]

    def rows(self, m: int, n: int) -> Tensor:
        """``(stop - start, B)``: the rows of the range in modality ``m`` against all of ``n``."""
        if (self.start, self.stop) == (0, self.size) or (min(m, n), max(m, n)) in self._whole:
            return self.whole(m, n)[self.start : self.stop]
        if (m, n) not in self._rows:
            self._rows[m, n] = self.units[m][self.start : self.stop] @ self.units[n].mT
        return self._rows[m, n]
