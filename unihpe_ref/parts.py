"""Parts of a batch: the rows of one process or one micro-batch.

Random numbers are drawn for the whole batch and sliced, so that a batch in parts gives the same results.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from multicontrast._checks import check_type


@dataclass(frozen=True)
class Part:
    """Rows ``start`` to ``stop`` (exclusive) of a batch of ``total``."""

    start: int
    stop: int
    total: int

    @staticmethod
    def whole(total: int) -> Part:
        """All rows."""
        return Part(0, total, total)

    @property
    def count(self) -> int:
        """How many rows."""
        return self.stop - self.start

    @property
    def share(self) -> float:
        """The share of the batch, the weight of a mean over the part in a mean over the batch."""
        return self.count / self.total

    @property
    def rows(self) -> slice:
        """Indexes a tensor that holds the whole batch."""
        return slice(self.start, self.stop)

    def split(self, pieces: int) -> list[Part]:
        """``pieces`` consecutive parts whose lengths differ by at most one.

        Example:
            >>> [part.count for part in Part.whole(7).split(3)]
            [2, 2, 3]
        """
        cuts = [self.start + k * self.count // pieces for k in range(pieces + 1)]
        return [Part(low, high, self.total) for low, high in pairwise(cuts)]


def check_part(operation: str, part: Part | None, total: int) -> Part:
    """``part``, or all ``total`` rows if it is None; another type raises ``TypeError``."""
    check_type(operation, "part", part, Part, "Leave it out for all rows.", optional=True)
    return part or Part.whole(total)
