"""Cells of the cyclic scheme: tuples named by shifts, read off sheared Gram blocks without a row number for any cell.

A shift moves all anchors alike. So in a block *sheared* by one column a row, entry ``(i, p)`` is what anchor ``i`` has
at the shift ``p``, and the columns of a shear are in the order of the shifts. Let the columns of the cells be in the
order of the shifts of modality 1: then cosines with that modality are the shear itself, and those with another one a
permutation of its columns, the same for every anchor. A cosine that does not touch the anchor, ``(i + s, i + t)``, lies
on the diagonal ``t - s`` of its block, at row ``i + s``: diagonals are copied as rows, one for each shift ``s``, and
in the sheared transpose of these rows, again, entry ``(i, s)`` belongs to anchor ``i``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multicontrast._workspace import Workspace
from multicontrast.losses._cells import Blocks, GatheredCells, pairs_of
from multicontrast.losses._grams import Pair
from multicontrast.losses._pair_block import row_blocks

IN_CACHE = 640  # samples: the entries of a smaller block stay near, and gathering them is as fast as shearing


class ShiftCells(GatheredCells):
    """Cells ``(i, i + s_k, i + t_k, ...)`` modulo B, from the ``(N - 1, K)`` shifts: an index that is never stored.

    The shifts of a modality are different from one another. B - 1 of them, which is all but one of each modality, are
    read by shears in large batches; fewer, and those of small batches, by gathering.
    """

    anchored = True

    def __init__(self, batch_size: int, shifts: Tensor) -> None:
        super().__init__()
        self.shifts = torch.cat((shifts.new_zeros(len(shifts), 1), shifts), dim=1)  # in front, the positive
        self.batch_size = batch_size
        self.num_modalities, self.width = len(shifts) + 1, self.shifts.shape[1]
        self._wrapped = torch.arange(2 * batch_size, device=shifts.device) % batch_size
        self._sheared: _ShearedCells | None = None

    def plane(self, modality: int, start: int, stop: int) -> Tensor:
        if modality == 0:
            return torch.arange(start, stop, device=self.shifts.device)[:, None].expand(-1, self.width)
        # Row i of the plane is a window of the doubled row numbers, read at the shifts: no modulo for each cell.
        windows = self._wrapped.as_strided((stop - start, self.batch_size), (1, 1), start)
        return windows.gather(1, self.shifts[modality - 1].expand(stop - start, -1))

    def reads(self, pair: Pair) -> bool:
        return self._sheared is None or self.row_local(pair)

    def prepare(self, blocks: Blocks) -> None:
        if self.width < self.batch_size or self.batch_size <= IN_CACHE:
            super().prepare(blocks)
        else:
            self._sheared = _ShearedCells(self.shifts[:, 1:], blocks)

    def read_rows(self, blocks: Blocks, start: int, stop: int, out: list[Tensor]) -> None:
        if self._sheared is None:
            super().read_rows(blocks, start, stop, out)
        else:
            self._sheared.read_rows(blocks, start, stop, out)

    def write_rows(self, gradients: Blocks, start: int, stop: int, values: list[Tensor]) -> None:
        if self._sheared is None:
            super().write_rows(gradients, start, stop, values)
        else:
            self._sheared.write_rows(gradients, start, stop, values)

    def finish(self, gradients: Blocks) -> None:
        if self._sheared is None:
            super().finish(gradients)
        else:
            self._sheared.finish(gradients)
            self._sheared = None


class _ShearedCells:
    """The cells of one walk, for B - 1 shifts of each modality.

    Column 0 holds the positive, in the place of the one tuple of shifts that was not drawn; so the columns are a
    permutation of the shifts of each modality.
    """

    def __init__(self, shifts: Tensor, blocks: Blocks) -> None:
        count, size = len(shifts) + 1, shifts.shape[1] + 1
        self.pairs, self.size = pairs_of(count), size
        self.step = next(stop for _, stop in row_blocks(size, size))
        self.workspace, self.like = Workspace(), next(iter(blocks.values()))
        left_out = size * (size - 1) // 2 - shifts.sum(1, keepdim=True)
        # Places: shifts from the one that was left out on. Columns come in the order of those of modality 1.
        places = torch.cat((torch.zeros_like(left_out), (shifts - left_out) % size), dim=1)
        places = places[:, places[0].argsort()]
        self.first = [0, *left_out[:, 0].tolist()]
        columns = torch.arange(size)
        # The place of each column, the column of each place; None where they are the same. int32 selects faster.
        self.places = [None, None, *(place.int() for place in places[1:])]
        self.columns = [None, None, *(torch.empty_like(p).scatter_(0, p, columns).int() for p in places[1:])]
        self.positives = {pair: block.diagonal().clone() for pair, block in blocks.items()}
        self.by_positives = {pair: torch.zeros_like(own) for pair, own in self.positives.items()}
        self.diagonals: dict[Pair, Tensor] = {}
        self.held: dict[Pair, Tensor] = {}  # cosines, each overwritten by its gradient
        for m, n in self.pairs:
            if m > 0:
                by_place = places[n - 1] if m == 1 else places[n - 1][self.columns[m]]
                self.diagonals[m, n] = (self.first[n] + by_place - self.first[m] - columns) % size
                self.held[m, n] = self._read_diagonals(blocks[m, n], self.diagonals[m, n])

    def read_rows(self, blocks: Blocks, start: int, stop: int, out: list[Tensor]) -> None:
        for (m, n), cosine in zip(self.pairs, out):
            own = m or n  # the modality in the order of whose shifts the cosines come
            if m == 0:
                sheared = self._shear(blocks[m, n][start:stop], start + self.first[n])
            else:
                transpose = self._take("transpose", self.size, stop - start)
                for held, place in self._windows(self.held[m, n], start + self.first[m], stop - start):
                    transpose[place] = held
                sheared = transpose.mT
            place = self.places[own]
            if place is None:
                cosine.copy_(sheared)
            else:
                torch.index_select(sheared, 1, place, out=cosine)
            cosine[:, 0] = self.positives[m, n][start:stop]

    def write_rows(self, gradients: Blocks, start: int, stop: int, values: list[Tensor]) -> None:
        for pair, value in zip(self.pairs, values):
            self.by_positives[pair][start:stop] = value[:, 0]
        for value in values:
            value[:, 0] = 0  # which is what the tuple that was not drawn adds
        for (m, n), value in zip(self.pairs, values):
            column = self.columns[m or n]
            if column is not None:
                value = torch.index_select(value, 1, column, out=self._take("sheared", stop - start, self.size))
            if m == 0:
                self._add_sheared(gradients[m, n][start:stop], start + self.first[n], value)
                continue
            transpose = self._take("transpose", self.size, stop - start).copy_(value.mT)
            # Over the cosines that were read for these anchors, and for no others.
            for held, place in self._windows(self.held[m, n], start + self.first[m], stop - start):
                held.copy_(transpose[place])

    def finish(self, gradients: Blocks) -> None:
        for (m, n), held in self.held.items():
            self._add_diagonals(gradients[m, n], held, self.diagonals[m, n], self.first[m])
        for pair, by_positive in self.by_positives.items():
            gradients[pair].diagonal().add_(by_positive)

    # --- sheared rows ---------------------------------------------------------------------------------------------

    def _padded(self, rows: int) -> tuple[Tensor, Tensor]:
        """Rows with as many columns more as there are rows, and their shear: row r from column r on."""
        padded = self._take("padded", rows, self.size + rows)
        return padded, padded.as_strided((rows, self.size), (self.size + rows + 1, 1))

    def _shear(self, rows: Tensor, first: int) -> Tensor:
        """``out[r, p] = rows[r, first + r + p]`` modulo B, until the workspace is used again."""
        size, first = self.size, first % self.size
        padded, sheared = self._padded(len(rows))
        padded[:, : size - first] = rows[:, first:]
        padded[:, size - first : size] = rows[:, :first]
        padded[:, size:] = padded[:, : len(rows)]
        return sheared

    def _add_sheared(self, rows: Tensor, first: int, values: Tensor) -> None:
        """``rows[r, first + r + p] += values[r, p]`` modulo B."""
        size, first, count = self.size, first % self.size, len(rows)
        padded, sheared = self._padded(count)
        padded[:, :count] = 0
        padded[:, size:] = 0
        sheared.copy_(values)
        padded[:, :count] += padded[:, size:]
        rows[:, first:] += padded[:, : size - first]
        rows[:, :first] += padded[:, size - first : size]

    # --- a block's diagonals as rows ------------------------------------------------------------------------------

    def _read_diagonals(self, block: Tensor, diagonals: Tensor) -> Tensor:
        """``(B, B + step)``: row p is the diagonal of that number, its first columns once more at the end."""
        size, step = self.size, self.step
        held = block.new_empty(size, size + step)
        for start, stop in row_blocks(size, size):
            sheared = self._take("sheared", stop - start, size).copy_(self._shear(block[start:stop], start))
            transpose = self._take("transpose", size, stop - start).copy_(sheared.mT)
            torch.index_select(transpose, 0, diagonals, out=held[:, start:stop])
        held[:, size:] = held[:, :step]
        return held

    def _windows(self, held: Tensor, first: int, count: int) -> list[tuple[Tensor, slice]]:
        """Of row p the ``count`` columns from ``first + p`` on modulo B, in two parts, each with its range of rows."""
        size, first, stride = self.size, first % self.size, held.stride(0) + 1
        last = size - first  # rows that come before the wrap
        parts = [(held.as_strided((last, count), (stride, 1), first), slice(0, last))]
        if first > 0:
            parts.append((held.as_strided((first, count), (stride, 1), last * held.stride(0)), slice(last, size)))
        return parts

    def _add_diagonals(self, block: Tensor, held: Tensor, diagonals: Tensor, first: int) -> None:
        """Add rows that were written by windows of ``step`` anchors to the block's diagonals."""
        size, step = self.size, self.step
        # The anchor of row p that meets column 0, and how many columns its window wrote past the end of the row.
        anchor = (-first - torch.arange(size)) % size
        within = anchor % step
        past = torch.where(within > 0, (size - (anchor - within)).clamp(max=step) - within, 0)
        torch.where(torch.arange(step) < past[:, None], held[:, size:], held[:, :step], out=held[:, :step])
        for start, stop in row_blocks(size, size):
            rows = self._take("rows", size, stop - start).copy_(held[:, start:stop])
            transpose = self._take("transpose", size, stop - start).zero_()
            transpose.index_add_(0, diagonals, rows)  # several shifts may share a diagonal
            sheared = self._take("sheared", stop - start, size).copy_(transpose.mT)
            self._add_sheared(block[start:stop], start, sheared)

    def _take(self, name: str, rows: int, columns: int) -> Tensor:
        return self.workspace.take(name, (rows, columns), self.like)
