r"""Eq. (1) in both directions over one Gram block, some rows at a time, overwriting the block with its gradient.

One power of two for each logit serves the softmax of its row and that of its column: cosines are at most 1, so that
:math:`2^{z}, z = \cos \cdot \log_2 e / \tau`, stays within the range of float32 down to ``tau`` of about 0.01 without
looking for the largest. The sums say afterwards whether it did. Where it did not (rows that were not of length one, a
smaller ``tau``, NaN) each row and each column takes a shift of its own, and one exponential for each direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

BLOCK_CELLS = 1 << 17  # cells worked on at a time: enough to hide the cost of a call, few enough to stay in cache
LOG2_E = math.log2(math.e)
LARGEST_SCALE = 2.0**12  # of cosines that are logits already: their fourth powers stay well inside float32

# Powers of two: the largest logit that needs no shift, and the range in which sums and positives must lie.
_LIMITS = {torch.float32: (100.0, 2.0**-100, 2.0**120), torch.float64: (950.0, 2.0**-950, 2.0**1000)}


def row_blocks(rows: int, width: int) -> Iterator[tuple[int, int]]:
    """Bounds of consecutive rows that hold about ``BLOCK_CELLS`` cells."""
    step = max(1, BLOCK_CELLS // max(1, width))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


class PairBlock:
    """One pair of modalities: the loss of its anchors, then the gradient in place of the cosines.

    Args:
        gram: ``(B, B)`` cosines times ``scale``, which :meth:`gradient_rows_` overwrites with the gradient by the
            cosines.
        tau: the temperature.
        scale: what the cosines were multiplied with.
        targets: the column of each row's match, or None for the diagonal.
        symmetric: whether the columns are anchors too.
        weights: factors of the losses of the rows and of the columns; a row and its match have the same. None for 1.
        restore: writes the block again. Given where no one else reads the block: the powers may then replace the
            cosines at once.
    """

    def __init__(
        self,
        gram: Tensor,
        tau: float,
        scale: float,
        targets: Tensor | None,
        symmetric: bool,
        restore: Callable[[], object] | None,
        weights: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.gram, self.tau, self.targets, self.symmetric = gram, tau, targets, symmetric
        self.row_weight = None if weights is None else weights[0]
        self.column_weight = None if weights is None else weights[1]
        self.factor = LOG2_E / (tau * scale)
        self.rows = torch.arange(len(gram))
        self.matched = gram.diagonal().clone() if targets is None else gram[self.rows, targets]
        largest, low, high = _LIMITS[gram.dtype]
        self.shift = max(0.0, LOG2_E / tau - largest)
        self.kept = False
        self.narrow = self.shift < largest
        if self.narrow:
            self.kept = restore is not None
            self._sum_powers()
            sums = [self.row_sum, self._positives(), *([self.column_sum] if symmetric else [])]
            lowest, highest = torch.aminmax(torch.stack(sums))
            self.narrow = bool(lowest > low and highest < high)  # False for NaN
            if not self.narrow and restore is not None:
                self.kept = False
                restore()
        if not self.narrow:
            self._log_sum_exponentials()

    def total(self) -> Tensor:
        """The sum of the losses of all anchors, of both directions if symmetric."""
        if self.narrow:
            positives = self._positives()
            loss = _weighted_sum(_log_of_quotient(self.row_sum, positives), self.row_weight)
            if self.symmetric:
                columns = _log_of_quotient(self.column_sum, self._of_columns(positives))
                loss += _weighted_sum(columns, self.column_weight)
            return loss
        logits = self.matched * (self.factor / LOG2_E)
        loss = _weighted_sum(self.row_sum - logits, self.row_weight)
        if self.symmetric:
            loss += _weighted_sum(self.column_sum - self._of_columns(logits), self.column_weight)
        return loss

    def gradient_rows_(self, start: int, stop: int, weight: float) -> None:
        """Replace rows by ``weight`` times the derivative of :meth:`total` by the cosines."""
        block = self.gram[start:stop]
        scale = weight / self.tau
        of_rows: float | Tensor = scale
        of_columns: float | Tensor = scale
        if self.row_weight is not None and self.column_weight is not None:
            of_rows, of_columns = scale * self.row_weight[start:stop], scale * self.column_weight
        if self.narrow:
            if not self.kept:
                self._powers(block, block)
            factor = (of_rows / self.row_sum[start:stop])[:, None]
            if self.symmetric:
                factor = torch.add(factor, of_columns / self.column_sum, out=self._scratch(stop - start))
            block.mul_(factor)
        else:
            logits = block.mul_(self.factor / LOG2_E)
            columns = (logits - self.column_sum).exp_().mul_(of_columns) if self.symmetric else None
            logits.sub_(self.row_sum[start:stop, None]).exp_()
            logits.mul_(of_rows if isinstance(of_rows, float) else of_rows[:, None])
            if columns is not None:
                logits.add_(columns)
        positive = of_rows * (2 if self.symmetric else 1)
        if self.targets is None:
            block[:, start:stop].diagonal().sub_(positive)
        else:
            block[self.rows[: stop - start], self.targets[start:stop]] -= positive

    def _powers(self, block: Tensor, out: Tensor) -> Tensor:
        """Two to the power of the logits, into ``out``, which may be the block."""
        if self.factor != 1:
            block = torch.mul(block, self.factor, out=out)
        if self.shift:
            block = torch.sub(block, self.shift, out=out)
        return torch.exp2(block, out=out)

    def _positives(self) -> Tensor:
        return self._powers(self.matched, torch.empty_like(self.matched))

    def _of_columns(self, values: Tensor) -> Tensor:
        """Values of the rows in the order of the columns that match them."""
        return values if self.targets is None else torch.empty_like(values).index_copy_(0, self.targets, values)

    def _scratch(self, rows: int) -> Tensor:
        """A buffer shared by the row blocks of this pair."""
        if self._buffer is None or len(self._buffer) < rows:
            self._buffer = torch.empty_like(self.gram[:rows])
        return self._buffer[:rows]

    _buffer: Tensor | None = None

    def _sum_powers(self) -> None:
        size = self.gram.shape[0]
        self.row_sum = torch.empty_like(self.matched)
        self.column_sum = torch.zeros_like(self.matched)
        for start, stop in row_blocks(size, size):
            block = self.gram[start:stop]
            powers = self._powers(block, block if self.kept else self._scratch(stop - start))
            torch.sum(powers, 1, out=self.row_sum[start:stop])
            if self.symmetric:
                self.column_sum += powers.sum(0)

    def _log_sum_exponentials(self) -> None:
        """The same in logarithms: ``row_sum`` and ``column_sum`` then hold the log of the sums of exp(logit)."""
        size = self.gram.shape[0]
        self.row_sum = torch.empty_like(self.matched)
        self.column_sum = torch.full_like(self.matched, -torch.inf)
        for start, stop in row_blocks(size, size):
            logits = torch.mul(self.gram[start:stop], self.factor / LOG2_E, out=self._scratch(stop - start))
            torch.logsumexp(logits, 1, out=self.row_sum[start:stop])
            if self.symmetric:
                self.column_sum = torch.logaddexp(self.column_sum, torch.logsumexp(logits, 0))


def _weighted_sum(losses: Tensor, weight: Tensor | None) -> Tensor:
    return losses.sum() if weight is None else torch.dot(losses, weight)


def _log_of_quotient(sums: Tensor, positives: Tensor) -> Tensor:
    """Of like quantities, so that a small loss keeps its digits; of their logarithms where that leaves the range."""
    quotient = sums / positives
    return torch.where(quotient.isfinite(), quotient.log(), sums.log() - positives.log())
