"""Where the compared tuples lie in the Gram blocks, and how their cosines are read and their gradients written.

A *cell* is one compared tuple. Its cosine between modalities ``m`` and ``n`` is one entry of the Gram block of that
pair. Each class knows one arrangement of cells; none knows a similarity. Each serves two roads: ``read`` is
differentiable and whole, ``read_rows`` and ``write_rows`` work on some anchors at a time, without a graph.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from multicontrast.losses._grams import Grams, Pair
from multicontrast.negatives import transpose

Blocks = Mapping[Pair, Tensor]


class Cells(Protocol):
    """An arrangement of ``(B, 1 + K)`` cells in the Gram blocks of N modalities."""

    num_modalities: int
    width: int  # 1 + K
    orders: Tensor | None  # (N - 1, B): row orders that modalities 1.. are brought into before the products

    def positive(self, start: int, stop: int) -> Tensor | int:
        """The column of the positive, for anchors ``start..stop`` or for all alike."""
        ...

    def read(self, grams: Grams) -> list[Tensor]:
        """The cosines ``(R, 1 + K)`` of the walk's anchors for each pair of modalities; differentiable."""
        ...

    def row_local(self, pair: Pair) -> bool:
        """Whether the cells of anchor ``i`` only touch row ``i`` of that block."""
        ...

    def prepare(self, blocks: Blocks) -> None:
        """Note whatever is read from blocks that are not ``reads``."""
        ...

    def reads(self, pair: Pair) -> bool:
        """Whether ``read_rows`` still looks at that block after ``prepare``."""
        ...

    def read_rows(self, blocks: Blocks, start: int, stop: int, out: list[Tensor]) -> None:
        """The cosines of anchors ``start..stop`` into ``(stop - start, 1 + K)`` buffers."""
        ...

    def write_rows(self, gradients: Blocks, start: int, stop: int, values: list[Tensor]) -> None:
        """Add the cells' gradients to the row-local blocks (whose rows ``start..stop`` are given whole)."""
        ...

    def finish(self, gradients: Blocks) -> None:
        """Add what was kept back until the other blocks were ready."""
        ...


def pairs_of(num_modalities: int) -> list[Pair]:
    """The pairs of modalities in the order of a tuple's cosines."""
    return list(itertools.combinations(range(num_modalities), 2))


class GatheredCells:
    """Cells that lie anywhere: read by gathering, written by scattering."""

    orders: Tensor | None = None
    num_modalities: int
    width: int
    batch_size: int
    anchored: bool  # whether modality 0 of the cells of anchor i is row i throughout

    def __init__(self) -> None:
        self._kept: dict[Pair, Tensor] = {}
        self._flat: dict[Pair, Tensor] = {}
        self._planes: list[Tensor] = []

    def plane(self, modality: int, start: int, stop: int) -> Tensor:
        """The row numbers ``(stop - start, 1 + K)`` of one modality, for some anchors."""
        raise NotImplementedError

    def positive(self, start: int, stop: int) -> Tensor | int:
        return 0

    def read(self, grams: Grams) -> list[Tensor]:
        size = self.batch_size
        planes = [self.plane(m, grams.start, grams.stop) for m in range(self.num_modalities)]
        valid = torch.stack([(plane >= 0) & (plane < size) for plane in planes]).all(0)
        planes = [plane.clamp(0, size - 1) for plane in planes]
        cosines = {}
        for m, n in sorted(pairs_of(self.num_modalities), key=self.row_local):  # whole blocks first
            if self.row_local((m, n)):
                cell = grams.rows(m, n).gather(1, planes[n])
            else:
                flat = (planes[m] * size + planes[n]).flatten()
                cell = grams.whole(m, n).flatten().index_select(0, flat).view_as(planes[0])
            cosines[m, n] = torch.where(valid, cell, torch.nan)
        return [cosines[pair] for pair in pairs_of(self.num_modalities)]

    def row_local(self, pair: Pair) -> bool:
        return self.anchored and pair[0] == 0

    def reads(self, pair: Pair) -> bool:
        return True

    def prepare(self, blocks: Blocks) -> None:
        self._kept = {pair: torch.zeros_like(block) for pair, block in blocks.items() if not self.row_local(pair)}

    def read_rows(self, blocks: Blocks, start: int, stop: int, out: list[Tensor]) -> None:
        self._planes = [self.plane(m, start, stop) for m in range(self.num_modalities)]
        self._flat = {}
        for (m, n), cosine in zip(pairs_of(self.num_modalities), out):
            if self.row_local((m, n)):
                torch.gather(blocks[m, n][start:stop], 1, self._planes[n], out=cosine)
            else:
                flat = torch.add(self._planes[n], self._planes[m], alpha=self.batch_size).reshape(-1)
                self._flat[m, n] = flat
                torch.index_select(blocks[m, n].view(-1), 0, flat, out=cosine.view(-1))

    def write_rows(self, gradients: Blocks, start: int, stop: int, values: list[Tensor]) -> None:
        for (m, n), value in zip(pairs_of(self.num_modalities), values):
            if self.row_local((m, n)):
                gradients[m, n][start:stop].scatter_add_(1, self._planes[n], value)
            else:
                self._kept[m, n].view(-1).scatter_add_(0, self._flat[m, n], value.view(-1))

    def finish(self, gradients: Blocks) -> None:
        for pair, kept in self._kept.items():
            gradients[pair].add_(kept)
        self._kept, self._flat, self._planes = {}, {}, []


class IndexCells(GatheredCells):
    """Cells named by an index ``(B, 1 + K, N)`` of row numbers, the positive in column 0.

    An index of fewer rows than the batch holds the cells of anchors ``first, first + 1, ...`` alone.
    """

    def __init__(self, index: Tensor, anchored: bool = False, *, batch_size: int | None = None, first: int = 0) -> None:
        super().__init__()
        self.index, self._first = index.long(), first
        rows, self.width, self.num_modalities = index.shape
        self.batch_size = rows if batch_size is None else batch_size
        self.anchored = anchored

    def plane(self, modality: int, start: int, stop: int) -> Tensor:
        return self.of_anchors(start, stop)[..., modality]

    def of_anchors(self, start: int, stop: int) -> Tensor:
        """The index ``(stop - start, 1 + K, N)`` of some anchors."""
        return self.index[start - self._first : stop - self._first]

    def prepare(self, blocks: Blocks) -> None:
        if not self.anchored:
            rows = np.arange(self.batch_size)[:, None]
            self.anchored = bool((self.index[:, :, 0].numpy() == rows).all())  # several times faster than torch's
        super().prepare(blocks)


class PermutationCells(GatheredCells):
    """Cells ``(i, p_k(i), q_k(i), ...)`` from ``(N - 1, K, B)`` permutations in a narrow type: half the memory of an
    index or less, which is written out for some anchors at a time."""

    anchored = True

    def __init__(self, permutations: Tensor) -> None:
        super().__init__()
        self.permutations = permutations
        self.num_modalities, self.width = len(permutations) + 1, permutations.shape[1] + 1
        self.batch_size = permutations.shape[2]

    def plane(self, modality: int, start: int, stop: int) -> Tensor:
        rows = torch.arange(start, stop)[:, None]
        if modality == 0:
            return rows.expand(-1, self.width)
        plane = torch.empty(stop - start, self.width, dtype=torch.int64)
        plane[:, :1] = rows
        transpose(self.permutations[modality - 1, :, start:stop], out=plane[:, 1:])
        return plane


class ListCells:
    """Cells ``(i, p(k), q(k), ...)``: every anchor meets the same list of candidates.

    ``orders`` ``(N - 1, B)`` brings each modality into the order of its list before the products, so that the cells of
    an anchor are the first ``count`` entries of its row, and cosines among the candidates lie on a diagonal. With
    ``orders=None`` (the tied scheme) the lists are the batch itself, whose own entry is the anchor's positive.
    """

    def __init__(self, batch_size: int, num_modalities: int, count: int, orders: Tensor | None) -> None:
        self.batch_size, self.num_modalities, self.count, self.orders = batch_size, num_modalities, count, orders
        self.width = batch_size if orders is None else 1 + count
        self._diagonals: dict[Pair, tuple[Tensor, Tensor | None]] = {}
        self._sums: dict[Pair, tuple[Tensor, Tensor | None]] = {}
        if orders is None:
            self.place = None
        else:
            rows = torch.arange(batch_size, device=orders.device)
            self.place = torch.empty_like(orders).scatter_(1, orders, rows.expand_as(orders))  # inverse orders

    def positive(self, start: int, stop: int) -> Tensor | int:
        return torch.arange(start, stop) if self.orders is None else 0

    def read(self, grams: Grams) -> list[Tensor]:
        start, stop = grams.start, grams.stop
        units, lists = grams.units, self.lists(grams.units)
        cosines = []
        for m, n in pairs_of(self.num_modalities):
            if m == 0:
                rows = grams.rows(m, n)
                negatives = rows if self.orders is None else rows.index_select(1, self.orders[n - 1, : self.count])
            else:
                negatives = torch.linalg.vecdot(lists[m - 1], lists[n - 1]).expand(stop - start, -1)
            if self.orders is not None:
                own = torch.linalg.vecdot(units[m][start:stop], units[n][start:stop])
                negatives = torch.cat((own[:, None], negatives), dim=1)
            cosines.append(negatives)
        return cosines

    def lists(self, units: list[Tensor]) -> list[Tensor]:
        """The candidates' rows in modalities 1..: ``(K, D)`` each, or the whole batch for the tied scheme."""
        if self.orders is None:
            return units[1:]
        return [unit.index_select(0, order[: self.count]) for unit, order in zip(units[1:], self.orders)]

    def row_local(self, pair: Pair) -> bool:
        return pair[0] == 0

    def reads(self, pair: Pair) -> bool:
        return pair[0] == 0

    def prepare(self, blocks: Blocks) -> None:
        for (m, n), block in blocks.items():
            positives = None if self.orders is None else self._positives(block, m, n).clone()
            self._diagonals[m, n] = (self._diagonal(block).clone(), positives)
            if m > 0:
                self._sums[m, n] = (
                    torch.zeros_like(self._diagonals[m, n][0]),
                    None if positives is None else torch.zeros_like(positives),
                )

    def read_rows(self, blocks: Blocks, start: int, stop: int, out: list[Tensor]) -> None:
        for (m, n), cosine in zip(pairs_of(self.num_modalities), out):
            diagonal, positives = self._diagonals[m, n]
            negatives = blocks[m, n][start:stop, : self._columns] if m == 0 else diagonal
            if positives is None:
                cosine.copy_(negatives)
            else:
                cosine[:, 1:] = negatives
                cosine[:, 0] = positives[start:stop]

    def write_rows(self, gradients: Blocks, start: int, stop: int, values: list[Tensor]) -> None:
        rows = torch.arange(start, stop)
        for (m, n), value in zip(pairs_of(self.num_modalities), values):
            negatives = value if self.orders is None else value[:, 1:]
            if m == 0:
                block = gradients[m, n]
                block[start:stop, : self._columns] += negatives
                if self.place is not None:
                    block[rows, self.place[n - 1, start:stop]] += value[:, 0]
            else:
                along, positives = self._sums[m, n]
                along += negatives.sum(0)
                if positives is not None:
                    positives[start:stop] += value[:, 0]

    def finish(self, gradients: Blocks) -> None:
        for (m, n), (along, positives) in self._sums.items():
            block = gradients[m, n]
            self._diagonal(block).add_(along)
            if positives is not None and self.place is not None:
                block[self.place[m - 1], self.place[n - 1]] += positives
        self._sums, self._diagonals = {}, {}

    @property
    def _columns(self) -> int:
        return self.batch_size if self.orders is None else self.count

    def _diagonal(self, block: Tensor) -> Tensor:
        return block.diagonal()[: self._columns]

    def _positives(self, block: Tensor, m: int, n: int) -> Tensor:
        assert self.place is not None
        rows = torch.arange(self.batch_size, device=block.device) if m == 0 else self.place[m - 1]
        return block[rows, self.place[n - 1]]
