r"""The schemes of negatives: which tuples are compared. They do not depend on the similarity.

Every scheme compares anchor ``i`` (its embedding in modality 0) with its positive tuple ``(i, i, ..., i)`` and with K
negatives. For three modalities negative ``k`` is

===============  ================================================================================  ===================
scheme           negative ``k`` of anchor ``i``                                                    cost
===============  ================================================================================  ===================
``cyclic``       ``(i, i + s_k, i + t_k)`` modulo B: random shifts. The first B - 1 negatives of   2 B draws, no index
                 an anchor hold each sample of a modality at most once
``permutation``  ``(i, p_k(i), q_k(i))``: a fresh permutation for each column and modality         2 B K draws
                 (UniHPE, Algorithm 1)
``shared``       ``(i, p(k), q(k))``: one permutation for each modality, the same for all anchors  2 B draws
                 (as Symile's ``n``); its gradient is several times as noisy
``tied``         ``(i, j, j)`` for the other samples ``j`` (as GRAM and TRIANGLE)                  none
``all``          every tuple of the batch (``anchor=0``: with the anchor's first embedding;        B^2 or 3 B^2 - 3 B
                 ``anchor="any"``: with any embedding of the anchor's sample)                      + 1 terms an anchor
===============  ================================================================================  ===================

A custom scheme is a subclass of :class:`Sampled` with ``draw`` and ``members``, and an entry in ``SCHEMES``.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from multicontrast._backend import refuse_capture
from multicontrast._checks import (
    can_read_values,
    check_choice,
    check_count,
    check_device,
    check_flag,
    check_generator,
    check_whole,
    describe,
    three_beats,
)

__all__ = ["sample_tuples"]

MAX_MODALITIES = 8
FEW = 16  # with fewer than size / FEW candidates, dot products replace a matmul with the whole batch

Pair = tuple[int, int]
Gradients = Mapping[Pair, Tensor]
Scatter = Callable[[Gradients, Sequence[Tensor]], None]


def pairs_of(num_modalities: int) -> list[Pair]:
    """The pairs of modalities in the order of a tuple's cosines."""
    return list(itertools.combinations(range(num_modalities), 2))


class Blocks:
    """The cosines between unit rows ``(B, D)`` of N modalities that the anchors ``start..stop`` need.

    Args:
        units: the rows of the whole batch.
        held: whether products are computed once and kept. Otherwise they are computed where they are read: rows as
            strips of a product, single entries as dot products; nothing of size ``(B, B)`` is kept.
        whole: products that are already computed.
    """

    def __init__(
        self,
        units: Sequence[Tensor],
        start: int,
        stop: int,
        *,
        held: bool = True,
        whole: dict[Pair, Tensor] | None = None,
    ) -> None:
        self.units, self.start, self.stop, self.held = list(units), start, stop, held
        self.size = units[0].shape[0]
        self._of = tuple(range(len(self.units)))
        self._whole: dict[Pair, Tensor] = {} if whole is None else whole
        self._rows: dict[Pair, Tensor] = {}

    def restrict(self, modalities: Sequence[int], units: Sequence[Tensor] | None = None) -> Blocks:
        """The same products for some of the modalities, which are then numbered from 0."""
        view = Blocks.__new__(Blocks)
        view.__dict__.update(self.__dict__)
        view.units = [self.units[m] for m in modalities] if units is None else list(units)
        view._of = tuple(self._of[m] for m in modalities)
        return view

    def whole(self, m: int, n: int) -> Tensor:
        """``(B, B)``: all rows of modality ``m`` against all of ``n``."""
        if not self.held:
            return self.units[m] @ self.units[n].mT
        key = self._of[m], self._of[n]
        if key[0] > key[1]:
            return self.whole(n, m).mT
        if key not in self._whole:
            self._whole[key] = self.units[m] @ self.units[n].mT
        return self._whole[key]

    def rows(self, m: int, n: int, start: int, stop: int) -> Tensor:
        """``(R, B)``: rows ``start..stop`` of modality ``m`` against all of ``n``."""
        if not self.held:
            return self.units[m][start:stop] @ self.units[n].mT
        key = self._of[m], self._of[n]
        every = self.start == 0 and self.stop == self.size
        if every or (min(key), max(key)) in self._whole:
            return self.whole(m, n)[start:stop]
        if key not in self._rows:
            self._rows[key] = self.units[m][self.start : self.stop] @ self.units[n].mT
        return self._rows[key][start - self.start : stop - self.start]


class Candidates:
    """The tuples that each of B anchors is compared with."""

    holds_positive = False
    """Whether the positive is one of the candidates; otherwise it is computed separately."""
    anchored = True
    """Whether modality 0 of every candidate of an anchor is the anchor's own row."""
    are_tied = False
    """Whether the candidates are the other samples, each with all its members, so that a matmul gives their cosines."""
    are_all = False
    """Whether the candidates are all tuples with the anchor, which need whole Gram blocks."""
    earlier: tuple[int, ...] = ()
    """Modalities in which a candidate must not hold the anchor's sample, because another part has those tuples."""

    def __init__(self, size: int, num_modalities: int, device: torch.device) -> None:
        self.size, self.num_modalities, self.device = size, num_modalities, device

    @property
    def width(self) -> int:
        """The number of candidates of an anchor."""
        raise NotImplementedError

    def members(self, start: int, stop: int) -> list[Tensor]:
        """For each modality the row numbers of the candidates of anchors ``start..stop``, broadcastable to
        ``(R, width)``, or for all tuples to ``(R, B, ...)``."""
        raise NotImplementedError

    def positive(self, start: int, stop: int) -> list[Tensor] | None:
        """The members ``(R,)`` of the positives; None if they are the anchors' own rows."""
        return None

    def strays(self, start: int, stop: int) -> Tensor | None:
        """The candidates with a row number out of range, whose similarity is NaN; None if there are none."""
        return None

    def stray_positives(self, start: int, stop: int) -> Tensor | None:
        """``(R,)``: the anchors whose positive has a row number out of range; None if there are none."""
        return None

    def target(self, start: int, stop: int) -> Tensor:
        """``(R,)``: the column of the positive among the flattened candidates, if they include it."""
        raise NotImplementedError

    def reversed(self) -> Candidates:
        """The reverse direction, where modality 0 changes and the others stay; for tied tuples only."""
        raise NotImplementedError

    def read(self, blocks: Blocks, start: int, stop: int) -> tuple[list[Tensor], Scatter]:
        """The cosines of the candidates of anchors ``start..stop``, and their gradient function.

        Returns: for each pair of modalities the differentiable cosines, broadcastable to the shape of the candidates;
        and a function that adds the gradients w.r.t. them, in that whole shape, to the gradients of the blocks.
        """
        raise NotImplementedError

    def multilinear(self, units: Sequence[Tensor], start: int, stop: int) -> Tensor:
        """The sum over the coordinates of the product of a candidate's rows."""
        raise NotImplementedError

    def listed(self) -> tuple[str, Tensor] | None:
        """``("shifts" or "list", (1 + K, N - 1))`` if all anchors share one list of shifts or row numbers, whose first
        entry is the positive; None if each anchor has its own."""
        return None

    def with_positive(self) -> Candidates | None:
        """The candidates with the positive in front, if that costs nothing; otherwise None."""
        return None

    def own(self, start: int, stop: int) -> Tensor:
        """The anchors' row numbers ``(R, 1)``."""
        return torch.arange(start, stop, device=self.device)[:, None]


class Sampled(Candidates):
    """K candidates of each anchor, given by their row numbers, without the positive."""

    @classmethod
    def draw(cls, draw: Draw) -> Candidates:
        """Draw random candidates."""
        raise NotImplementedError

    def read(self, blocks: Blocks, start: int, stop: int) -> tuple[list[Tensor], Scatter]:
        members, strays, rows = self.members(start, stop), self.strays(start, stop), stop - start
        pairs = pairs_of(self.num_modalities)
        # Rows of a block that is not held need a matmul, which is wasted on few candidates.
        in_rows = self.anchored and (blocks.held or FEW * self.width > self.size)
        cosines, places = [], []
        for m, n in pairs:
            own_row = m == 0 and in_rows
            place = members[n].expand(rows, -1) if own_row else members[m] * self.size + members[n]
            if own_row:
                cosine = blocks.rows(0, n, start, stop).gather(1, place)
            elif blocks.held:
                cosine = blocks.whole(m, n).reshape(-1).index_select(0, place.reshape(-1)).view(place.shape)
            else:
                cosine = torch.linalg.vecdot(blocks.units[m][members[m]], blocks.units[n][members[n]])
            cosines.append(cosine if strays is None else torch.where(strays, torch.nan, cosine))
            places.append(place)

        def scatter(gradients: Gradients, slopes: Sequence[Tensor]) -> None:
            for (m, n), slope, place in zip(pairs, slopes, places):
                if m == 0 and self.anchored:
                    gradients[m, n][start:stop].scatter_add_(1, place, slope)
                else:
                    slope = slope.sum_to_size(place.shape)
                    gradients[m, n].view(-1).scatter_add_(0, place.reshape(-1), slope.reshape(-1))

        return cosines, scatter

    def multilinear(self, units: Sequence[Tensor], start: int, stop: int) -> Tensor:
        strays = self.strays(start, stop)
        rows = [unit[member] for unit, member in zip(units, self.members(start, stop))]
        values = math.prod(rows[1:], start=rows[0]).sum(-1)
        return values if strays is None else torch.where(strays, torch.nan, values)


class Cyclic(Sampled):
    """``(i, i + s_k, i + t_k, ...)`` modulo B, from the ``(N - 1, K)`` shifts; with ``reverse``, for tied tuples,
    ``(i - s_k, i, ..., i)``, the tuples that have ``i`` as their candidate."""

    def __init__(self, size: int, shifts: Tensor, reverse: bool = False) -> None:
        super().__init__(size, shifts.shape[0] + 1, shifts.device)
        self.shifts, self.reverse, self.anchored = shifts, reverse, not reverse

    @classmethod
    def draw(cls, draw: Draw) -> Cyclic:
        # A round is one permutation of the B shifts for each modality. It leaves out the column that is the positive,
        # or the last column if none is.
        rounds, drawn = [], 0
        while True:
            shifts = draw.permutations(draw.num_modalities - 1)
            if draw.exclude:
                is_positive = (shifts == 0).all(0)
                left_out = torch.where(is_positive.any(), is_positive.int().argmax(), draw.size - 1)
                column = torch.arange(draw.size - 1, device=shifts.device)
                shifts = shifts[:, column + (column >= left_out)]
            rounds.append(shifts)
            drawn += draw.size - draw.exclude
            if drawn >= draw.count:
                break
        shifts = rounds[0] if len(rounds) == 1 else torch.cat(rounds, 1)
        return cls(draw.size, draw.cut(shifts).to(draw.device))

    @property
    def width(self) -> int:
        return self.shifts.shape[1]

    def reversed(self) -> Cyclic:
        return Cyclic(self.size, self.shifts, reverse=True)

    def listed(self) -> tuple[str, Tensor] | None:
        return None if self.reverse else ("shifts", self.with_positive().shifts.mT)

    def with_positive(self) -> Cyclic:
        return Cyclic(self.size, torch.nn.functional.pad(self.shifts, (1, 0)), self.reverse)

    def members(self, start: int, stop: int) -> list[Tensor]:
        own = self.own(start, stop)
        if self.reverse:
            moved = own - self.shifts[0]
            return [torch.where(moved < 0, moved + self.size, moved), *[own] * (self.num_modalities - 1)]
        ahead = [own + shift for shift in self.shifts]
        return [own, *(torch.where(row < self.size, row, row - self.size) for row in ahead)]


class Index(Sampled):
    """Any row numbers: ``(B, K)`` or ``(1, K)`` for each modality."""

    def __init__(self, size: int, planes: Sequence[Tensor]) -> None:
        super().__init__(size, len(planes) + 1, planes[0].device)
        self.planes = planes

    @property
    def is_list(self) -> bool:
        """Whether one list serves every anchor."""
        return all(plane.shape[0] == 1 < self.size for plane in self.planes)

    @property
    def width(self) -> int:
        return self.planes[0].shape[1]

    def listed(self) -> tuple[str, Tensor] | None:
        if not self.is_list:
            return None
        return "list", torch.nn.functional.pad(torch.cat(list(self.planes)), (1, 0)).mT

    def multilinear(self, units: Sequence[Tensor], start: int, stop: int) -> Tensor:
        if not self.is_list:
            return super().multilinear(units, start, stop)
        first, *others = units
        lists = [unit[plane[0]] for unit, plane in zip(others, self.planes)]
        return first[start:stop] @ math.prod(lists[1:], start=lists[0]).mT

    def members(self, start: int, stop: int) -> list[Tensor]:
        planes = self.planes if self.is_list else [plane[start:stop] for plane in self.planes]
        return [self.own(start, stop), *planes]


class Permutation(Index):
    """``(i, p_k(i), q_k(i), ...)``: Algorithm 1 of UniHPE."""

    @classmethod
    def draw(cls, draw: Draw) -> Permutation:
        shape = (draw.num_modalities - 1, draw.count, draw.size)
        drawn = draw.permutations(shape[0] * shape[1]).view(shape)
        if draw.exclude:
            offending = (drawn == torch.arange(draw.size, device=drawn.device)).all(0)
            drawn[-1] = _exchange(drawn[-1], offending)
        return cls(draw.size, [permutations.mT for permutations in drawn.to(draw.device)])


class Shared(Index):
    """``(i, p(k), q(k), ...)``: all anchors share one list of candidates."""

    @classmethod
    def draw(cls, draw: Draw) -> Shared:
        lists = draw.permutations(draw.num_modalities - 1)
        if not draw.exclude:
            pass
        elif draw.num_modalities == 2:  # leave out each anchor's positive
            place = torch.empty_like(lists[0]).scatter_(0, lists[0], torch.arange(draw.size, device=lists.device))
            column = torch.arange(draw.size - 1, device=lists.device)
            planes = lists[0][column + (column >= place[:, None])]
            return cls(draw.size, [draw.cut(planes).to(draw.device)])
        else:  # no candidate has all its members from one sample
            lists[-1] = _exchange(lists[-1:], (lists == lists[0]).all(0)[None])[0]
        return cls(draw.size, list(draw.cut(lists).to(draw.device)[:, None]))


class Tied(Candidates):
    """``(i, j, ..., j)`` for every sample ``j``, or with ``reverse`` ``(j, i, ..., i)``; the positive is included."""

    holds_positive = True
    are_tied = True

    def __init__(self, size: int, num_modalities: int, device: torch.device, reverse: bool = False) -> None:
        super().__init__(size, num_modalities, device)
        self.reverse = reverse

    @classmethod
    def draw(cls, draw: Draw) -> Tied | Cyclic:
        """All other samples, or K random shifts, the same for all anchors."""
        if draw.exclude and draw.count == draw.size - 1:
            return cls(draw.size, draw.num_modalities, draw.device)
        first = int(draw.exclude)
        shifts = first + draw.permutations(1, draw.size - first)
        return Cyclic(draw.size, draw.cut(shifts).to(draw.device).expand(draw.num_modalities - 1, -1))

    def reversed(self) -> Tied:
        return Tied(self.size, self.num_modalities, self.device, reverse=True)

    @property
    def width(self) -> int:
        return self.size

    def listed(self) -> tuple[str, Tensor] | None:
        if self.reverse:
            return None
        return "shifts", torch.arange(self.size, device=self.device)[:, None].expand(-1, self.num_modalities - 1)

    def members(self, start: int, stop: int) -> list[Tensor]:
        own, every = self.own(start, stop), torch.arange(self.size, device=self.device)[None]
        first, other = (every, own) if self.reverse else (own, every)
        return [first, *[other] * (self.num_modalities - 1)]

    def target(self, start: int, stop: int) -> Tensor:
        return torch.arange(start, stop, device=self.device)

    def read(self, blocks: Blocks, start: int, stop: int) -> tuple[list[Tensor], Scatter]:
        cosines = []
        for m, n in pairs_of(self.num_modalities):
            if m == 0:
                cosines.append(blocks.rows(n, 0, start, stop) if self.reverse else blocks.rows(0, n, start, stop))
            elif self.reverse:
                own = (blocks.units[modality][start:stop] for modality in (m, n))
                cosines.append(torch.linalg.vecdot(*own)[:, None])
            elif blocks.held:
                cosines.append(blocks.whole(m, n).diagonal()[None])
            else:
                cosines.append(torch.linalg.vecdot(blocks.units[m], blocks.units[n])[None])

        def scatter(gradients: Gradients, slopes: Sequence[Tensor]) -> None:
            for (m, n), slope in zip(pairs_of(self.num_modalities), slopes):
                if m == 0:
                    gradients[m, n][start:stop] += slope
                else:
                    gradients[m, n].diagonal().add_(slope.sum(0))

        return cosines, scatter

    def multilinear(self, units: Sequence[Tensor], start: int, stop: int) -> Tensor:
        first, *others = units
        tied = math.prod(others[1:], start=others[0])
        return tied[start:stop] @ first.mT if self.reverse else first[start:stop] @ tied.mT


class All(Candidates):
    """Every tuple with the anchor's sample in the modality ``place``, and not in an earlier one.

    The candidates of R anchors have the shape ``(R, B, ..., B)``: first the place, then the others in their order.
    """

    holds_positive = True
    are_all = True

    def __init__(self, size: int, num_modalities: int, device: torch.device, place: int = 0) -> None:
        super().__init__(size, num_modalities, device)
        self.place, self.earlier, self.anchored = place, tuple(range(place)), place == 0

    @property
    def width(self) -> int:
        return self.size ** (self.num_modalities - 1)

    def _axis(self, modality: int) -> int:
        return 0 if modality == self.place else modality + (modality < self.place)

    def _along(self, values: Tensor, *modalities: int) -> Tensor:
        """``values``, whose axes are those of the modalities in the order of the candidates' axes."""
        shape = [1] * self.num_modalities
        for modality, length in zip(modalities, values.shape):
            shape[self._axis(modality)] = length
        return values.reshape(shape)

    def members(self, start: int, stop: int) -> list[Tensor]:
        own, every = (torch.arange(*bounds, device=self.device) for bounds in ((start, stop), (0, self.size)))
        return [self._along(own if m == self.place else every, m) for m in range(self.num_modalities)]

    def target(self, start: int, stop: int) -> Tensor:
        own = torch.arange(start, stop, device=self.device)
        return own * sum(self.size**k for k in range(self.num_modalities - 1))

    def read(self, blocks: Blocks, start: int, stop: int) -> tuple[list[Tensor], Scatter]:
        cosines = []
        for m, n in pairs_of(self.num_modalities):
            if self.place in (m, n):
                other = n if m == self.place else m
                cosines.append(self._along(blocks.rows(self.place, other, start, stop), self.place, other))
            else:
                cosines.append(self._along(blocks.whole(m, n), m, n))

        def scatter(gradients: Gradients, slopes: Sequence[Tensor]) -> None:
            assert self.place == 0
            for (m, n), slope in zip(pairs_of(self.num_modalities), slopes):
                others = [axis for axis in range(self.num_modalities) if axis not in (m, n)]
                block = gradients[m, n]
                (block[start:stop] if m == 0 else block).add_(slope.sum(others) if others else slope)

        return cosines, scatter

    def multilinear(self, units: Sequence[Tensor], start: int, stop: int) -> Tensor:
        product, last = units[self.place][start:stop], self.num_modalities - 1 - (self.place == self.num_modalities - 1)
        for m, unit in enumerate(units):
            if m not in (self.place, last):
                product = product[..., None, :] * unit
        return product @ units[last].mT


SCHEMES: dict[str, type[Sampled] | type[Tied]] = {
    "cyclic": Cyclic,
    "permutation": Permutation,
    "shared": Shared,
    "tied": Tied,
}
"""The drawn schemes by name."""


class Draw:
    """The sizes of a draw and its source of randomness.

    ``count`` is K, by default B - 1; ``exclude`` keeps the positive out.
    """

    def __init__(
        self,
        size: int,
        num_modalities: int,
        count: int | None,
        exclude: bool,
        generator: torch.Generator | None,
        device: torch.device,
    ) -> None:
        self.size, self.num_modalities, self.exclude, self.generator = size, num_modalities, exclude, generator
        self.count = size - 1 if count is None else count
        self.device = device

    def permutations(self, number: int, length: int | None = None) -> Tensor:
        """``(number, length)``: independent uniform permutations of the batch, or of ``length`` numbers, on the device
        of the generator."""
        device = self.device if self.generator is None else self.generator.device
        length = self.size if length is None else length
        if device != self.device:
            needed = "Negatives that are drawn in a CUDA graph need a generator of the embeddings' device"
            remedy = "Leave `generator` out, or make one there and call `graph.register_generator_state(generator)`."
            refuse_capture(self.device, needed, f"one of the {device.type}, whose draw all replays would reuse", remedy)
        # `randperm` with `generator=None` would fix the size of an exported batch.
        source: dict[str, Any] = {} if self.generator is None else {"generator": self.generator}
        if 0 < number <= MAX_MODALITIES or (device.type == "cpu" and number and not torch.compiler.is_compiling()):
            return torch.stack([torch.randperm(length, device=device, **source) for _ in range(number)])
        # Sorting random keys is one launch; on a CPU it takes four times as long as a `randperm` for each row.
        return torch.rand(number, length, dtype=torch.float64, device=device, **source).argsort(-1)

    def cut(self, drawn: Tensor) -> Tensor:
        """The first K columns."""
        return drawn[..., : self.count]


def _exchange(permutations: Tensor, offending: Tensor) -> Tensor:
    """Permutations ``(K, B)`` with their offending entries rotated among themselves; a single one swaps with another.

    An offending entry makes its candidate the positive. At another sample's place it makes a negative.
    """
    size = permutations.shape[1]
    order = offending.int().argsort(dim=1, descending=True, stable=True)  # offending entries first
    number = offending.sum(1, keepdim=True)
    circle = torch.where(number == 1, 2, number).clamp_max(size)
    column = torch.arange(size, device=permutations.device)
    following = torch.where(column < circle, (column + 1) % circle.clamp_min(1), column)
    return torch.empty_like(permutations).scatter_(1, order, permutations.gather(1, order.gather(1, following)))


def draw(operation: str, scheme: str, asked: Draw) -> Candidates:
    """The candidates of a scheme; raises with a remedy if ``torch.func.vmap`` forbids randomness."""
    try:
        return SCHEMES[scheme].draw(asked)
    except RuntimeError as error:
        if torch._C._functorch.peek_interpreter_stack() is None or "randomness" not in str(error):
            raise
        needed = f"`{operation}` draws negatives, so `torch.func.vmap` needs to know whether its samples share them"
        remedy = "Pass vmap(..., randomness='different') or 'same', or negatives=an index of `sample_tuples`."
        raise ValueError(three_beats(needed, "randomness='error', its default", remedy)) from error


def sample_tuples(
    batch_size: int,
    num_modalities: int = 3,
    *,
    num_negatives: int | None = None,
    scheme: str = "permutation",
    exclude_positive: bool = True,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Draw the tuples that each anchor is compared with (UniHPE, arXiv 2311.16477, Algorithm 1).

    Column 0 is the positive ``(i, i, ..., i)``; modality 0 is always the anchor's own row. The paper's Algorithm 1 is
    ``scheme="permutation"`` with ``exclude_positive=False``. As printed, its first loop runs over the batch, where it
    should run over the three modalities, and a negative can be the positive again. Here it never is by default.

    Args:
        batch_size: number of samples, B.
        num_modalities: N >= 2.
        num_negatives: K, the negatives of each anchor; ``None`` means B - 1. ``"shared"`` and ``"tied"`` have at most
            B - 1, ``"permutation"`` and ``"cyclic"`` have any number.
        scheme: ``"permutation"``, ``"cyclic"``, ``"shared"`` or ``"tied"``; see :mod:`multicontrast.losses.candidates`.
        exclude_positive: whether the positive is kept out of the negatives.
        generator: source of randomness, which draws on its own device; by default torch's generator of the device.
        device: where the index is put; by default torch's default device.

    Returns:
        int64 ``(B, 1 + K, N)`` of row numbers.

    Raises:
        ValueError, TypeError: for an empty batch, fewer than two modalities, a number of negatives that the scheme does
            not have (one sample has none), or an unknown scheme.

    Example:
        >>> index = sample_tuples(4, generator=torch.Generator().manual_seed(0))
        >>> index.shape, index[2, 0].tolist(), index[:, 1, 0].tolist()
        (torch.Size([4, 4, 3]), [2, 2, 2], [0, 1, 2, 3])
    """
    operation = "sample_tuples"
    check_choice(operation, "scheme", scheme, SCHEMES)
    size = check_count(operation, "batch_size", batch_size, 1, remedy="Skip the loss for an empty batch.")
    modalities = check_count(operation, "num_modalities", num_modalities, 2)
    count = check_negatives(operation, size, num_negatives, scheme)
    exclude = check_flag(operation, "exclude_positive", exclude_positive)
    check_generator(operation, generator)
    place = check_device(operation, device)
    width = size if count is None else 1 + count
    if size * width * modalities > 2**36:
        needed = f"`{operation}` needs an index of at most 2^36 row numbers, half a terabyte"
        remedy = "Ask for fewer negatives: a few thousand serve any anchor."
        raise ValueError(three_beats(needed, describe(size * width * modalities), remedy))
    index = torch.arange(size, device=place)[:, None, None].repeat(1, width, modalities)
    if width > 1:
        drawn = draw(operation, scheme, Draw(size, modalities, count, exclude, generator, place))
        for m, member in enumerate(drawn.members(0, size)):
            others = member
            if drawn.holds_positive and m > 0:  # all samples but the anchor itself
                column = torch.arange(size - 1, device=place)
                others = column + (column >= drawn.own(0, size))
            index[:, 1:, m] = others
    return index


def check_negatives(operation: str, batch_size: int, num_negatives: object, scheme: str) -> int | None:
    """K, or None for B - 1; raises unless the scheme has that many negatives for that many samples."""
    if num_negatives is None:
        return None
    remedy = "Pass num_negatives=None for one less than the batch."
    count = check_count(operation, "num_negatives", num_negatives, most=2**31 - 1, remedy=remedy)
    if count > 0 and batch_size == 1:
        needed = f"`{operation}` needs at least two samples to draw negatives from"
        remedy = "Use a larger batch, or num_negatives=0, for which the loss is 0."
        raise ValueError(three_beats(needed, f"a batch of 1 with num_negatives={count}", remedy))
    if scheme in ("shared", "tied") and count > batch_size - 1:
        needed = f"`{operation}` has at most batch_size - 1 = {batch_size - 1} negatives with the scheme {scheme!r}"
        remedy = "Ask for fewer, or use the scheme 'cyclic', which has any number."
        raise ValueError(three_beats(needed, f"num_negatives={count}", remedy))
    return count


class Given(Sampled):
    """The tuples of an index ``(R, 1 + K, N)`` of row numbers for the anchors from ``first`` on; column 0 is the
    positive."""

    def __init__(self, size: int, index: Tensor, first: int) -> None:
        super().__init__(size, index.shape[2], index.device)
        self._first, self._begin = first, 1
        index = index.long()
        if can_read_values(index):  # `check_index` found no stray; modality 0 may be the anchors' own rows
            if index.is_neg() or index._is_zerotensor():  # torch would index with the memory as stored
                index = torch.empty(index.shape, dtype=torch.int64).copy_(index)
            self._index, self._strays = index, None
            rows = torch.arange(first, first + index.shape[0], device=index.device)[:, None]
            self.anchored = bool((index[:, :, 0] == rows).all())
        else:
            self._strays = ((index < 0) | (index >= size)).any(-1)
            self._index = index.clamp(0, size - 1)
            self.anchored = False

    @property
    def width(self) -> int:
        return self._index.shape[1] - self._begin

    def members(self, start: int, stop: int) -> list[Tensor]:
        return list(self._index[start - self._first : stop - self._first, self._begin :].unbind(-1))

    def positive(self, start: int, stop: int) -> list[Tensor]:
        return list(self._index[start - self._first : stop - self._first, 0].unbind(-1))

    def strays(self, start: int, stop: int) -> Tensor | None:
        return None if self._strays is None else self._strays[start - self._first : stop - self._first, self._begin :]

    def stray_positives(self, start: int, stop: int) -> Tensor | None:
        return None if self._strays is None else self._strays[start - self._first : stop - self._first, 0]

    def with_positive(self) -> Given:
        found = copy.copy(self)
        found._begin = 0
        return found


def check_index(
    operation: str, index: Tensor, anchors: int, num_modalities: int, device: torch.device, size: int
) -> None:
    """Raise unless ``index`` is integer ``(anchors, 1 + K, N)`` on ``device``, with row numbers of the batch
    (checked only where the values can be read)."""
    check_whole(operation, "negatives", index)
    if index.dtype not in (torch.int64, torch.int32):
        raise TypeError(
            three_beats(f"`{operation}` needs an index of int64 row numbers", describe(index), "Call `.long()` on it.")
        )
    if index.ndim != 3 or index.shape[0] != anchors or index.shape[1] < 1 or index.shape[2] != num_modalities:
        needed = (
            f"`{operation}` needs an index of shape (B, 1 + K, N) = ({anchors}, 1 + K, {num_modalities}) "
            "with the positive in column 0"
        )
        raise ValueError(three_beats(needed, f"shape {tuple(index.shape)}", "Draw one with `sample_tuples`."))
    if index.device != device:
        remedy = "Move it with `.to(device)`, or pass `device=` to `sample_tuples`."
        needed = f"`{operation}` needs the index on the embeddings' device {device}"
        raise ValueError(three_beats(needed, str(index.device), remedy))
    if can_read_values(index) and index.numel() > 0:
        low, high = (int(bound) for bound in index.aminmax())
        if low < 0 or high >= size:
            needed = f"`{operation}` needs row numbers from 0 to {size - 1} in the index"
            raise ValueError(three_beats(needed, f"values from {low} to {high}", "Draw the index for this batch size."))


def index_of(candidates: Candidates, start: int, stop: int) -> Tensor:
    """``(R, 1 + K, N)``: the positive and the candidates of each anchor; -1 for row numbers out of range."""
    members = candidates.members(start, stop)
    chosen = candidates.positive(start, stop) or [candidates.own(start, stop)[:, 0]] * len(members)
    columns = [
        torch.cat((first[:, None], member.expand(stop - start, candidates.width)), 1)
        for first, member in zip(chosen, members)
    ]
    index = torch.stack(columns, -1)
    strays = candidates.strays(start, stop)
    if strays is not None:
        index[:, 1:].masked_fill_(strays[..., None], -1)
    return index
