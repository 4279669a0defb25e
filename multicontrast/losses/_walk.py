"""What one loss is made of: the pairs and the tuples that it visits on its one walk over the Gram blocks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from multicontrast.losses._cells import Cells, pairs_of
from multicontrast.losses._grams import Pair
from multicontrast.losses._masks import Masks
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
    """The sum of some pair terms and perhaps a tuple term, over N modalities.

    ``anchors`` is the range of rows, ``(start, stop)``, that this call answers for; None is all of them. Embeddings are
    always those of the whole batch, which are the candidates. With ``reduction="none"`` a range has the losses
    ``(stop - start,)`` of its anchors, with ``"sum"`` their sum, and with ``"mean"`` its *share of the batch's mean*:
    their sum over the weight of the whole batch, not over that of the range. So the results of ranges that partition
    the batch concatenate, or add up, to the result of the whole, whatever is masked or weighted; and the same holds
    for their gradients.
    """

    num_modalities: int
    pairs: tuple[Pair, ...] = ()
    symmetric: bool = True
    tuples: Tuples | None = None
    reduction: str = "mean"
    anchors: tuple[int, int] | None = None
    masks: Masks | None = None

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

    @property
    def is_unmasked(self) -> bool:
        """Whether each anchor's loss is what it is without options; weights may then still act on the average."""
        return self.masks is None or self.masks.only_weigh

    def range(self, batch_size: int) -> tuple[int, int]:
        """The anchors of this call, as bounds."""
        return self.anchors if self.anchors is not None else (0, batch_size)
