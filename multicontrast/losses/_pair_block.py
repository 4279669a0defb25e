r"""Eq. (1) in both directions over one Gram block, some rows at a time, overwriting the block with its gradient.

The logits are ``gram / tau``. All exponentials of a block share one shift when their range allows it, so that one
exponential serves the softmax of the row and that of the column; a wide range (a small ``tau``) takes a shift for each
row and column, and one exponential for each direction.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_CELLS = 1 << 17  # cells worked on at a time: enough to hide the cost of a call, few enough to stay in cache


def row_blocks(rows: int, width: int) -> Iterator[tuple[int, int]]:
    """Bounds of consecutive rows that hold about ``BLOCK_CELLS`` cells."""
    step = max(1, BLOCK_CELLS // max(1, width))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


class PairBlock:
    """One pair of modalities: the loss of its anchors, then the gradient in place of the cosines.

    Args:
        gram: ``(B, B)`` cosines, which :meth:`gradient_rows_` overwrites.
        tau: the temperature.
        targets: the column of each row's match, or None for the diagonal.
        symmetric: whether the columns are anchors too.
        keep: whether the exponentials may replace the cosines at once, because no one else reads them.
    """

    def __init__(self, gram: Tensor, tau: float, targets: Tensor | None, symmetric: bool, keep: bool) -> None:
        self.gram, self.tau, self.symmetric = gram, tau, symmetric
        size = gram.shape[0]
        self.rows = torch.arange(size)
        self.targets = self.rows if targets is None else targets
        self.matched = gram[self.rows, self.targets]
        low, high = torch.aminmax(gram)
        self.shift = high.item()
        # exp must neither vanish nor, summed over a row, overflow; NaN fails the comparison and takes the careful way.
        self.narrow = (self.shift - low.item()) / tau <= (80.0 if gram.dtype == torch.float32 else 600.0)
        self.kept = keep and self.narrow
        if self.narrow:
            self._sum_exponentials()
        else:
            self._log_sum_exponentials()

    def total(self) -> Tensor:
        """The sum of the losses of all anchors, of both directions if symmetric."""
        if self.narrow:
            logits = (self.matched - self.shift) / self.tau
            loss = self.row_sum.log().sum() - logits.sum()
            return loss + self.column_sum.log().sum() - logits.sum() if self.symmetric else loss
        logits = self.matched / self.tau
        loss = self.row_sum.sum() - logits.sum()
        return loss + self.column_sum.sum() - logits.sum() if self.symmetric else loss

    def gradient_rows_(self, start: int, stop: int, weight: float) -> None:
        """Replace rows by ``weight`` times the derivative of :meth:`total` by the cosines."""
        block = self.gram[start:stop]
        scale = weight / self.tau
        if self.narrow:
            if not self.kept:
                block.sub_(self.shift).div_(self.tau).exp_()
            factor = (scale / self.row_sum[start:stop])[:, None]
            if self.symmetric:
                block.mul_(torch.add(factor, self.column_factor(scale), out=self._scratch(stop - start)))
            else:
                block.mul_(factor)
        else:
            logits = block.div_(self.tau)
            columns = (logits - self.column_sum).exp_() if self.symmetric else None
            logits.sub_(self.row_sum[start:stop, None]).exp_()
            if columns is not None:
                logits.add_(columns)
            logits.mul_(scale)
        block[self.rows[: stop - start], self.targets[start:stop]] -= scale * (2 if self.symmetric else 1)

    def column_factor(self, scale: float) -> Tensor:
        return scale / self.column_sum

    def _scratch(self, rows: int) -> Tensor:
        """A buffer shared by the row blocks of this pair."""
        if self._buffer is None or len(self._buffer) < rows:
            self._buffer = torch.empty_like(self.gram[:rows])
        return self._buffer[:rows]

    _buffer: Tensor | None = None

    def _sum_exponentials(self) -> None:
        size = self.gram.shape[0]
        self.row_sum = torch.empty_like(self.matched)
        self.column_sum = torch.zeros_like(self.matched)
        for start, stop in row_blocks(size, size):
            block = self.gram[start:stop]
            scaled = (
                block.sub_(self.shift) if self.kept else torch.sub(block, self.shift, out=self._scratch(stop - start))
            )
            exponentials = scaled.div_(self.tau).exp_()
            torch.sum(exponentials, 1, out=self.row_sum[start:stop])
            if self.symmetric:
                self.column_sum += exponentials.sum(0)

    def _log_sum_exponentials(self) -> None:
        """The same in logarithms: ``row_sum`` and ``column_sum`` then hold the log of the sums of exp(logit)."""
        size = self.gram.shape[0]
        self.row_sum = torch.empty_like(self.matched)
        self.column_sum = torch.full_like(self.matched, -torch.inf)
        for start, stop in row_blocks(size, size):
            logits = torch.div(self.gram[start:stop], self.tau, out=self._scratch(stop - start))
            torch.logsumexp(logits, 1, out=self.row_sum[start:stop])
            if self.symmetric:
                self.column_sum = torch.logaddexp(self.column_sum, torch.logsumexp(logits, 0))
