"""What one loss is made of: the pairs and the tuples that it visits on its one walk over the Gram blocks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from multicontrast.losses._cells import Cells, Pair, pairs_of
from multicontrast.similarity import CosineSimilarity, Multilinear


@dataclass(frozen=True)
class Tuples:
    """The tuple term of eq. (3): which tuples, how alike, and the factor alpha of eq. (4)."""

    similarity: CosineSimilarity | Multilinear
    cells: Cells | None  # None: every tuple of the batch
    anchor: int | str = 0  # for every tuple: those that hold the anchor's first embedding, or any
    alpha: float = 1.0


@dataclass(frozen=True)
class Walk:
    """The sum of some pair terms and perhaps a tuple term, over N modalities."""

    num_modalities: int
    pairs: tuple[Pair, ...] = ()
    symmetric: bool = True
    tuples: Tuples | None = None
    reduction: str = "mean"

    @property
    def blocks(self) -> list[Pair]:
        """The pairs of modalities whose Gram block the walk needs."""
        if self.tuples is not None and isinstance(self.tuples.similarity, CosineSimilarity):
            return pairs_of(self.num_modalities)
        return sorted(self.pairs)

    @property
    def orders(self) -> Tensor | None:
        """Row orders ``(N - 1, B)`` in which modalities 1.. enter the products, or None for the order they have."""
        cells = None if self.tuples is None else self.tuples.cells
        return None if cells is None else cells.orders
