r"""Eq. (4), pairs and sampled triplets, over Gram blocks that are held: each block is read once for each pass.

Rows :math:`x_i` of modality m enter the products as they are, times an exact power of two, and their lengths come in
as scales :math:`s = 1 / |x|` of rows and columns. With :math:`g_{ij} = x_i \cdot y_j` and the logits
:math:`z_{ij} = g_{ij} s_i t_j / \tau`, a pair's losses and its gradient by the products are

.. math:: \ell_i = \log \sum_j e^{z_{ij}} - z_{ii}, \qquad
          \frac{\partial L}{\partial g_{ij}} = \frac{s_i t_j}{\tau}
          \big(\bar r_i e^{z_{ij} - \log R_i} + \bar c_j e^{z_{ij} - \log C_j} - [i = j] (\bar r_i + \bar c_i)\big)

with the sums :math:`R_i` of a row and :math:`C_j` of a column over the negatives and the positive. Triplets are as
in ``sampled_triton.py``, with the eigenvalue of ``docs/math/h-cubic.md``. Who is absent, who has whose id and how much
an anchor weighs is looked up in the kernels. Order of the launches:

==================  ================================================================================================
:func:`prepare`     scaled rows and the inverses of their lengths
:func:`products`    all Gram blocks, one batched product
:func:`forward`     sums of rows and columns; triplets; one number
:func:`backward`    gradient by the blocks; two batched products; gradient by the embeddings
==================  ================================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from multicontrast._launch_triton import Tuning, config, launch
from multicontrast.linalg._gram3_triton import eigmax_excess_of, eigmax_with_gradient_of, power_of_two
from multicontrast.losses.triton.sampled_triton import _members

_ROWS = Tuning(default=config(num_warps=4, BLOCK=1024))
# Strips of rows: each makes sums of its part of the columns, which are added up in a fixed order.
_STRIP = 16
_PAIRS = Tuning(
    default=config(num_warps=8, BLOCK_COLUMNS=256),
    candidates=[config(num_warps=w, BLOCK_COLUMNS=c) for w, c in ((4, 128), (4, 256), (8, 256), (8, 512))],
)
_SUMS = Tuning(default=config(num_warps=4, BLOCK_STRIPS=16, BLOCK=64))
_TRIPLETS = Tuning(default=config(num_warps=4, BLOCK=256))
_TRIPLETS_BACKWARD = Tuning(default=config(num_warps=4, BLOCK=128))
_LAST = Tuning(default=config(num_warps=8, BLOCK=1024))
# A logit is rounded before its row's largest is taken off, in both passes: a softmax of one entry is 1 at any tau.
_ROUNDED: dict[str, Any] = {"enable_fp_fusion": False}


class Terms(NamedTuple):
    """Which terms there are, over Gram blocks of some pairs of modalities.

    ``pairs`` are those of the blocks, two bits for each modality, ``rows`` and ``columns`` the factor of each block's
    loss of rows and of columns: 0, 0.5 or 1 (0.5 each for a symmetric pair). ``alpha`` is that of the triplets, 0 for
    none; their blocks are ``(0, 1), (0, 2), (1, 2)``.
    """

    pairs: tuple[tuple[int, int], ...]
    rows: tuple[float, ...]
    columns: tuple[float, ...]
    alpha: float
    scheme: str  # of the triplets: see `sampled_triton.SCHEMES`

    @property
    def left(self) -> int:
        return sum(m << 2 * place for place, (m, _) in enumerate(self.pairs))

    @property
    def right(self) -> int:
        return sum(n << 2 * place for place, (_, n) in enumerate(self.pairs))

    @property
    def slots(self) -> tuple[int, ...]:
        """The modality of each block's left and then of each block's right factor."""
        return (*(m for m, _ in self.pairs), *(n for _, n in self.pairs))

    def shares(self) -> dict[str, Any]:
        """The factors, coded, as compile-time constants."""
        coded = [
            sum(int(2 * f) << 2 * place for place, f in enumerate(factors)) for factors in (self.rows, self.columns)
        ]
        return {"ROW_SHARES": coded[0], "COLUMN_SHARES": coded[1]}


class Samples(NamedTuple):
    """What is known of the samples, ``present`` ``(B, N)`` bool, ``ids`` ``(B,)``, ``weight`` ``(B,)``, or None."""

    present: Tensor | None
    ids: Tensor | None
    weight: Tensor | None

    def arguments(self, like: Tensor) -> tuple[Tensor, ...]:
        """Tensors for the kernels; what is None is not read."""
        return tuple(like if given is None else given for given in self)


class Sums(NamedTuple):
    """What the forward pass leaves for the backward: the largest logit of a row or column and its sum, ``(P, B)``."""

    row_peak: Tensor
    row_sum: Tensor
    column_peak: Tensor
    column_sum: Tensor
    triplet: Tensor  # (B,), the loss of each anchor's triplets
    totals: Tensor  # (P + 1,), what the mean of each term divides by

    @staticmethod
    def length(blocks: int, size: int) -> int:
        """Of a buffer that holds them all."""
        return (4 * blocks + 1) * size + blocks + 1

    @classmethod
    def of(cls, buffer: Tensor, blocks: int, size: int) -> Sums:
        """Views of such a buffer."""
        *parts, triplet, totals = buffer.split([blocks * size] * 4 + [size, blocks + 1])
        first, second, third, fourth = (part.view(blocks, size) for part in parts)
        return cls(first, second, third, fourth, triplet, totals)


@triton.jit
def _share(codes, place):
    """The factor of a block's loss, coded in two bits: 0, 1/2 or 1."""
    return 0.5 * ((codes >> (2 * place)) & 3).to(tl.float32)


@triton.jit
def _is_present(present_ptr, i, modality, mask, MODALITIES: tl.constexpr):
    return tl.load(present_ptr + i * MODALITIES + modality, mask=mask, other=0) != 0


@triton.jit
def _takes_part(present_ptr, i, mask, MODALITIES: tl.constexpr):
    """Whether samples have two of their modalities."""
    count = tl.zeros_like(i)
    for m in tl.static_range(MODALITIES):
        count += tl.where(_is_present(present_ptr, i, m, mask, MODALITIES), 1, 0)
    return count >= 2


# Rows -----------------------------------------------------------------------------------------------------------------


@triton.jit
def _prepare_kernel(
    x0_ptr, x1_ptr, x2_ptr, present_ptr, rows_ptr, scale_ptr, power_ptr,
    x0_row_stride, x0_stride, x1_row_stride, x1_stride, x2_row_stride, x2_stride, size, depth,
    MODALITIES: tl.constexpr, SLOTS: tl.constexpr, SLOT_COUNT: tl.constexpr,
    NORMALIZE: tl.constexpr, HAS_PRESENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    m, i = program // size, program % size
    exists = i >= 0
    if HAS_PRESENT:
        exists = tl.load(present_ptr + i * MODALITIES + m) != 0
    largest = tl.zeros((BLOCK,), tl.float32)
    if NORMALIZE:
        for start in range(0, depth, BLOCK):
            k = start + tl.arange(0, BLOCK).to(tl.int64)
            inside = (k < depth) & exists
            x = tl.load(x0_ptr + i * x0_row_stride + k * x0_stride, mask=inside & (m == 0), other=0.0).to(tl.float32)
            x += tl.load(x1_ptr + i * x1_row_stride + k * x1_stride, mask=inside & (m == 1), other=0.0).to(tl.float32)
            x += tl.load(x2_ptr + i * x2_row_stride + k * x2_stride, mask=inside & (m == 2), other=0.0).to(tl.float32)
            largest = tl.maximum(largest, tl.abs(x), propagate_nan=tl.PropagateNan.ALL)
        power, _inverse = power_of_two(tl.max(largest, 0))
    else:
        power = 1.0
    square = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, depth, BLOCK):
        k = start + tl.arange(0, BLOCK).to(tl.int64)
        inside = (k < depth) & exists
        x = tl.load(x0_ptr + i * x0_row_stride + k * x0_stride, mask=inside & (m == 0), other=0.0).to(tl.float32)
        x += tl.load(x1_ptr + i * x1_row_stride + k * x1_stride, mask=inside & (m == 1), other=0.0).to(tl.float32)
        x += tl.load(x2_ptr + i * x2_row_stride + k * x2_stride, mask=inside & (m == 2), other=0.0).to(tl.float32)
        x *= power
        square += x * x
        for slot in tl.static_range(SLOT_COUNT):
            if ((SLOTS >> (2 * slot)) & 3) == m:
                place = rows_ptr + (slot * size + i) * depth + k
                tl.store(place, x.to(rows_ptr.dtype.element_ty), mask=k < depth)
    length = tl.sum(square, 0)
    scale = tl.rsqrt(length)
    scale *= 1.5 - 0.5 * length * scale * scale  # the device's own errs by two eps
    scale = tl.where(length == 0, 0.0, scale)
    if not NORMALIZE:
        scale = tl.where(exists, 1.0, 0.0)
    tl.store(scale_ptr + program, scale)
    tl.store(power_ptr + program, tl.where(exists, power, 0.0))


@triton.jit
def _embedding_gradient_kernel(
    left_ptr, right_ptr, rows_ptr, scale_ptr, power_ptr, dx0_ptr, dx1_ptr, dx2_ptr, size, depth,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, BLOCKS: tl.constexpr, NORMALIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds up what the products give, takes off the part along the row and undoes its scale."""
    program = tl.program_id(0).to(tl.int64)
    m, i = program // size, program % size
    scale = tl.load(scale_ptr + program)
    power = tl.load(power_ptr + program)
    radial = tl.zeros((BLOCK,), tl.float32)
    if NORMALIZE:
        for start in range(0, depth, BLOCK):
            k = start + tl.arange(0, BLOCK).to(tl.int64)
            x, raw = _row_and_gradient(left_ptr, right_ptr, rows_ptr, m, i, k, size, depth, LEFT, RIGHT, BLOCKS)
            radial += x * raw
    along = tl.sum(radial, 0) * scale * scale
    for start in range(0, depth, BLOCK):
        k = start + tl.arange(0, BLOCK).to(tl.int64)
        x, raw = _row_and_gradient(left_ptr, right_ptr, rows_ptr, m, i, k, size, depth, LEFT, RIGHT, BLOCKS)
        # An absent row's gradient is 0, whatever comes.
        dx = tl.where(power == 0, 0.0, (raw - along * x) * power).to(dx0_ptr.dtype.element_ty)
        inside = k < depth
        tl.store(dx0_ptr + i * depth + k, dx, mask=inside & (m == 0))
        tl.store(dx1_ptr + i * depth + k, dx, mask=inside & (m == 1))
        tl.store(dx2_ptr + i * depth + k, dx, mask=inside & (m == 2))


@triton.jit
def _row_and_gradient(
    left_ptr, right_ptr, rows_ptr, m, i, k, size, depth,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    x = tl.zeros(k.shape, tl.float32)
    raw = tl.zeros(k.shape, tl.float32)
    found = m < 0
    for place in tl.static_range(BLOCKS):
        offsets = (place * size + i) * depth + k
        is_left, is_right = ((LEFT >> (2 * place)) & 3) == m, ((RIGHT >> (2 * place)) & 3) == m
        raw += tl.load(left_ptr + offsets, mask=(k < depth) & is_left, other=0.0)
        raw += tl.load(right_ptr + offsets, mask=(k < depth) & is_right, other=0.0)
        x += tl.load(rows_ptr + offsets, mask=(k < depth) & is_left & (found == 0), other=0.0).to(tl.float32)
        found = found | is_left
        beyond = BLOCKS * size * depth
        x += tl.load(rows_ptr + beyond + offsets, mask=(k < depth) & is_right & (found == 0), other=0.0).to(tl.float32)
        found = found | is_right
    return x, raw


# Pairs ----------------------------------------------------------------------------------------------------------------


@triton.jit
def _logits(
    gram_ptr, scale_ptr, present_ptr, ids_ptr, inverse_tau, place, m, n, i, j, size,
    MODALITIES: tl.constexpr, HAS_PRESENT: tl.constexpr, HAS_IDS: tl.constexpr,
):  # fmt: skip
    """``(z, s_i, t_j, i = j, takes part)`` of a tile: minus infinity where j is no candidate of i, and beyond the end.

    A sample without both modalities is no candidate of anyone, nor is an anchor without them asked.
    """
    inside = (i[:, None] < size) & (j[None, :] < size)
    left = tl.load(scale_ptr + m * size + i, mask=i < size, other=0.0)[:, None]
    right = tl.load(scale_ptr + n * size + j, mask=j < size, other=0.0)[None, :]
    gram = tl.load(gram_ptr + (place * size + i[:, None]) * size + j[None, :], mask=inside, other=0.0)
    z = (gram * (left * right)) * inverse_tau
    match = i[:, None] == j[None, :]
    valid = inside
    taking_part = i < size
    if HAS_PRESENT:
        taking_part &= _is_present(present_ptr, i, m, i < size, MODALITIES)
        taking_part &= _is_present(present_ptr, i, n, i < size, MODALITIES)
        candidate = _is_present(present_ptr, j, m, j < size, MODALITIES)
        candidate &= _is_present(present_ptr, j, n, j < size, MODALITIES)
        valid &= taking_part[:, None] & candidate[None, :]
    if HAS_IDS:
        own = tl.load(ids_ptr + i, mask=i < size, other=0)
        other = tl.load(ids_ptr + j, mask=j < size, other=0)
        valid &= (own[:, None] != other[None, :]) | match
    return tl.where(valid, z, -float("inf")), left, right, match, taking_part


@triton.jit
def _pair_sums_kernel(
    gram_ptr, scale_ptr, tau_ptr, present_ptr, ids_ptr,
    row_peak_ptr, row_sum_ptr, match_ptr, part_peak_ptr, part_sum_ptr, size, strips,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, MODALITIES: tl.constexpr, HAS_PRESENT: tl.constexpr,
    HAS_IDS: tl.constexpr, STRIP: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    place, strip = program // strips, program % strips
    m, n = (LEFT >> (2 * place)) & 3, (RIGHT >> (2 * place)) & 3
    tau = tl.load(tau_ptr).to(tl.float32)
    inverse_tau = tl.where(tau > 0, 1 / tau, float("nan"))
    i = strip * STRIP + tl.arange(0, STRIP)
    peak = tl.full((STRIP,), -3.4028234663852886e38, tl.float32)
    total = tl.zeros((STRIP,), tl.float32)
    positive = tl.zeros((STRIP,), tl.float32)
    for start in range(0, size, BLOCK_COLUMNS):
        j = start + tl.arange(0, BLOCK_COLUMNS).to(tl.int64)
        z, _left, _right, match, _part = _logits(
            gram_ptr, scale_ptr, present_ptr, ids_ptr, inverse_tau, place, m, n, i, j, size,
            MODALITIES, HAS_PRESENT, HAS_IDS,
        )  # fmt: skip
        higher = tl.maximum(peak, tl.max(z, 1))
        total = total * tl.exp(peak - higher) + tl.sum(tl.exp(z - higher[:, None]), 1)
        peak = higher
        positive += tl.sum(tl.where(match, z, 0.0), 1)
        highest = tl.maximum(tl.max(z, 0), -3.4028234663852886e38)
        out = program * size + j
        tl.store(part_peak_ptr + out, highest, mask=j < size)
        tl.store(part_sum_ptr + out, tl.sum(tl.exp(z - highest[None, :]), 0), mask=j < size)
    out = place * size + i
    tl.store(row_peak_ptr + out, peak, mask=i < size)
    tl.store(row_sum_ptr + out, total, mask=i < size)
    tl.store(match_ptr + out, positive, mask=i < size)


@triton.jit
def _pair_losses_kernel(
    part_peak_ptr, part_sum_ptr, row_peak_ptr, row_sum_ptr, match_ptr, present_ptr,
    column_peak_ptr, column_sum_ptr, loss_ptr, size, strips, programs,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, ROW_SHARES: tl.constexpr, COLUMN_SHARES: tl.constexpr,
    MODALITIES: tl.constexpr, HAS_PRESENT: tl.constexpr,
    BLOCK_STRIPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Columns of all strips together, and each anchor's loss of a pair."""
    program = tl.program_id(0).to(tl.int64)
    place = program // programs
    m, n = (LEFT >> (2 * place)) & 3, (RIGHT >> (2 * place)) & 3
    j = program % programs * BLOCK + tl.arange(0, BLOCK)
    inside = j < size
    peak = tl.full((BLOCK,), -3.4028234663852886e38, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, strips, BLOCK_STRIPS):
        strip = start + tl.arange(0, BLOCK_STRIPS)
        mask = (strip[:, None] < strips) & inside[None, :]
        offsets = (place * strips + strip[:, None]) * size + j[None, :]
        peaks = tl.load(part_peak_ptr + offsets, mask=mask, other=-3.4028234663852886e38)
        sums = tl.load(part_sum_ptr + offsets, mask=mask, other=0.0)
        higher = tl.maximum(peak, tl.max(peaks, 0))
        total = total * tl.exp(peak - higher) + tl.sum(sums * tl.exp(peaks - higher[None, :]), 0)
        peak = higher
    out = place * size + j
    tl.store(column_peak_ptr + out, peak, mask=inside)
    tl.store(column_sum_ptr + out, total, mask=inside)
    positive = tl.load(match_ptr + out, mask=inside, other=0.0)
    row_peak = tl.load(row_peak_ptr + out, mask=inside, other=0.0)
    row_sum = tl.load(row_sum_ptr + out, mask=inside, other=1.0)
    by_row = (row_peak - positive) + tl.log(row_sum)
    by_column = (peak - positive) + tl.log(total)
    loss = _share(ROW_SHARES, place) * by_row + _share(COLUMN_SHARES, place) * by_column
    if HAS_PRESENT:
        both = _is_present(present_ptr, j, m, inside, MODALITIES) & _is_present(present_ptr, j, n, inside, MODALITIES)
        loss = tl.where(both, loss, 0.0)
    tl.store(loss_ptr + out, loss, mask=inside)


@triton.jit
def _cotangent(grad_ptr, grad_stride, weight_ptr, totals_ptr, term, i, inside, HAS_WEIGHT: tl.constexpr):
    """What each anchor's loss of a term counts in the result."""
    grad = tl.load(grad_ptr + i * grad_stride, mask=inside, other=0.0).to(tl.float32)
    if HAS_WEIGHT:
        grad *= tl.load(weight_ptr + i, mask=inside, other=0.0).to(tl.float32)
    return grad / tl.load(totals_ptr + term)


@triton.jit
def _pair_gradient_kernel(
    gram_ptr, scale_ptr, tau_ptr, present_ptr, ids_ptr, weight_ptr, grad_ptr, totals_ptr,
    row_peak_ptr, row_sum_ptr, column_peak_ptr, column_sum_ptr, dgram_ptr, slope_ptr,
    size, strips, grad_stride,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, ROW_SHARES: tl.constexpr, COLUMN_SHARES: tl.constexpr,
    MODALITIES: tl.constexpr, HAS_PRESENT: tl.constexpr,
    HAS_IDS: tl.constexpr, HAS_WEIGHT: tl.constexpr, STRIP: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    place, strip = program // strips, program % strips
    m, n = (LEFT >> (2 * place)) & 3, (RIGHT >> (2 * place)) & 3
    tau = tl.load(tau_ptr).to(tl.float32)
    inverse_tau = tl.where(tau > 0, 1 / tau, float("nan"))
    i = strip * STRIP + tl.arange(0, STRIP)
    inside = i < size
    own = place * size + i
    row_peak = tl.load(row_peak_ptr + own, mask=inside, other=0.0)
    by_row = _cotangent(grad_ptr, grad_stride, weight_ptr, totals_ptr, place, i, inside, HAS_WEIGHT)
    by_column = by_row * _share(COLUMN_SHARES, place)
    by_row *= _share(ROW_SHARES, place)
    row_weight = by_row / tl.load(row_sum_ptr + own, mask=inside, other=1.0)
    slope = tl.zeros((STRIP,), tl.float32)
    for start in range(0, size, BLOCK_COLUMNS):
        j = start + tl.arange(0, BLOCK_COLUMNS).to(tl.int64)
        z, left, right, match, _taking_part = _logits(
            gram_ptr, scale_ptr, present_ptr, ids_ptr, inverse_tau, place, m, n, i, j, size,
            MODALITIES, HAS_PRESENT, HAS_IDS,
        )  # fmt: skip
        other = place * size + j
        column_peak = tl.load(column_peak_ptr + other, mask=j < size, other=0.0)
        column_weight = _cotangent(grad_ptr, grad_stride, weight_ptr, totals_ptr, place, j, j < size, HAS_WEIGHT)
        column_weight *= _share(COLUMN_SHARES, place)
        column_weight /= tl.load(column_sum_ptr + other, mask=j < size, other=1.0)
        weight = row_weight[:, None] * tl.exp(z - row_peak[:, None])
        weight += column_weight[None, :] * tl.exp(z - column_peak[None, :])
        weight -= tl.where(match, (by_row + by_column)[:, None], 0.0)
        # 0 where there is no logit, whose difference from a column's largest may be no number.
        weight = tl.where(z == -float("inf"), 0.0, weight)
        slope += tl.sum(tl.where(weight == 0, 0.0, weight * z), 1)
        dgram = weight * (left * right) * inverse_tau
        place_of = dgram_ptr + (place * size + i[:, None]) * size + j[None, :]
        tl.store(place_of, dgram, mask=inside[:, None] & (j[None, :] < size))
    tl.store(slope_ptr + program, -tl.sum(slope, 0) * inverse_tau)


# Triplets -------------------------------------------------------------------------------------------------------------


@triton.jit
def _triplets(
    gram_ptr, scale_ptr, present_ptr, ids_ptr, index_ptr, index_stride, index_last_stride,
    own, size, columns, inside,
    HAS_PRESENT: tl.constexpr, HAS_IDS: tl.constexpr, SCHEME: tl.constexpr,
):  # fmt: skip
    """``(a, b, c, offsets and scales of each, valid)``: cosines are NaN where a member does not exist."""
    i, j, k = _members(index_ptr, index_stride, index_last_stride, own, size, columns, inside, SCHEME)
    exists = (i >= 0) & (i < size) & (j >= 0) & (j < size) & (k >= 0) & (k < size)
    read = inside & exists
    block = size * size
    si = tl.load(scale_ptr + i, mask=read, other=0.0)
    sj = tl.load(scale_ptr + size + j, mask=read, other=0.0)
    sk = tl.load(scale_ptr + 2 * size + k, mask=read, other=0.0)
    at, bt, ct = i * size + j, block + i * size + k, 2 * block + j * size + k
    sa, sb, sc = si * sj, si * sk, sj * sk
    a = tl.load(gram_ptr + at, mask=read, other=0.0) * sa
    b = tl.load(gram_ptr + bt, mask=read, other=0.0) * sb
    c = tl.load(gram_ptr + ct, mask=read, other=0.0) * sc
    valid, whole = inside, exists
    if HAS_PRESENT or HAS_IDS:
        # A candidate is a negative if a member that is there is a stranger, each member is a sample that takes part,
        # and two members are there. A member that does not exist must be seen, as NaN.
        hi, hj, hk = read, read, read
        if HAS_PRESENT:
            hi = _is_present(present_ptr, i, 0, read, 3)
            hj = _is_present(present_ptr, j, 1, read, 3)
            hk = _is_present(present_ptr, k, 2, read, 3)
            valid &= _takes_part(present_ptr, i, read, 3) & _takes_part(present_ptr, j, read, 3)
            valid &= _takes_part(present_ptr, k, read, 3)
            two = (hi & hj) | (hi & hk) | (hj & hk)
            whole &= two | (columns > 0)  # a positive of the caller's index that is not there would be no positive
            valid &= two
        if HAS_IDS:
            me = tl.load(ids_ptr + own)
            other_i = tl.load(ids_ptr + i, mask=read, other=0) != me
            other_j = tl.load(ids_ptr + j, mask=read, other=0) != me
            other_k = tl.load(ids_ptr + k, mask=read, other=0) != me
        else:
            other_i, other_j, other_k = i != own, j != own, k != own
        valid &= (hi & other_i) | (hj & other_j) | (hk & other_k)
        valid = (valid | (inside & (exists == 0))) | (inside & (columns == 0))
    return tl.where(whole, a, float("nan")), b, c, at, bt, ct, sa, sb, sc, valid, read


@triton.jit
def _positive(
    gram_ptr, scale_ptr, present_ptr, ids_ptr, index_ptr, index_stride, index_last_stride, own, size,
    HAS_PRESENT: tl.constexpr, HAS_IDS: tl.constexpr, SCHEME: tl.constexpr,
):  # fmt: skip
    """``x`` of the anchor's first triplet."""
    first = tl.zeros((1,), tl.int64)
    a, b, c, _at, _bt, _ct, _sa, _sb, _sc, _valid, _read = _triplets(
        gram_ptr, scale_ptr, present_ptr, ids_ptr, index_ptr, index_stride, index_last_stride,
        own, size, first, first == 0, HAS_PRESENT, HAS_IDS, SCHEME,
    )  # fmt: skip
    return tl.sum(eigmax_excess_of(a, b, c), 0)


@triton.jit
def _triplet_losses_kernel(
    gram_ptr, scale_ptr, tau_ptr, present_ptr, ids_ptr, index_ptr, loss_ptr,
    size, index_row_stride, index_stride, index_last_stride, count,
    HAS_PRESENT: tl.constexpr, HAS_IDS: tl.constexpr, SCHEME: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    own = tl.program_id(0).to(tl.int64)
    index_ptr += own * index_row_stride
    tau = tl.load(tau_ptr).to(tl.float32)
    inverse_tau = tl.where(tau > 0, 1 / tau, float("nan"))
    positive = _positive(
        gram_ptr, scale_ptr, present_ptr, ids_ptr, index_ptr, index_stride, index_last_stride,
        own, size, HAS_PRESENT, HAS_IDS, SCHEME,
    )  # fmt: skip
    highest = tl.zeros((BLOCK,), tl.float32)  # the positive's own
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        columns = start + tl.arange(0, BLOCK).to(tl.int64)
        a, b, c, _at, _bt, _ct, _sa, _sb, _sc, valid, _read = _triplets(
            gram_ptr, scale_ptr, present_ptr, ids_ptr, index_ptr, index_stride, index_last_stride,
            own, size, columns, columns < count, HAS_PRESENT, HAS_IDS, SCHEME,
        )  # fmt: skip
        z = tl.where(valid, (eigmax_excess_of(a, b, c) - positive) * inverse_tau, -float("inf"))
        higher = tl.maximum(highest, z)
        total = total * tl.exp(highest - higher) + tl.exp(z - higher)
        highest = higher
    maximum = tl.max(highest, 0)
    loss = maximum + tl.log(tl.sum(total * tl.exp(highest - maximum), 0))
    if HAS_PRESENT:
        loss = tl.where(_takes_part(present_ptr, own, own >= 0, 3), loss, 0.0)
    tl.store(loss_ptr + own, loss)


@triton.jit
def _triplet_gradient_kernel(
    gram_ptr, scale_ptr, tau_ptr, present_ptr, ids_ptr, weight_ptr, index_ptr, grad_ptr, totals_ptr, loss_ptr,
    dgram_ptr, slope_ptr, alpha, size, term, grad_stride, index_row_stride, index_stride, index_last_stride, count,
    HAS_PRESENT: tl.constexpr, HAS_IDS: tl.constexpr, HAS_WEIGHT: tl.constexpr, SCHEME: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    own = tl.program_id(0).to(tl.int64)
    index_ptr += own * index_row_stride
    tau = tl.load(tau_ptr).to(tl.float32)
    inverse_tau = tl.where(tau > 0, 1 / tau, float("nan"))
    grad = alpha * _cotangent(grad_ptr, grad_stride, weight_ptr, totals_ptr, term, own, own >= 0, HAS_WEIGHT)
    takes_part = own >= 0
    if HAS_PRESENT:
        takes_part = _takes_part(present_ptr, own, own >= 0, 3)
    loss = tl.load(loss_ptr + own)
    positive = _positive(
        gram_ptr, scale_ptr, present_ptr, ids_ptr, index_ptr, index_stride, index_last_stride,
        own, size, HAS_PRESENT, HAS_IDS, SCHEME,
    )  # fmt: skip
    slope = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        columns = start + tl.arange(0, BLOCK).to(tl.int64)
        a, b, c, at, bt, ct, sa, sb, sc, valid, read = _triplets(
            gram_ptr, scale_ptr, present_ptr, ids_ptr, index_ptr, index_stride, index_last_stride,
            own, size, columns, columns < count, HAS_PRESENT, HAS_IDS, SCHEME,
        )  # fmt: skip
        x, ga, gb, gc = eigmax_with_gradient_of(a, b, c, False)
        z = (x - positive) * inverse_tau
        used = valid & takes_part
        p = tl.where(used, tl.exp(z - loss), 0.0)
        slope += tl.where(used, p * z, 0.0)
        weight = grad * inverse_tau * (p - tl.where((columns == 0) & takes_part, 1.0, 0.0))
        add = read & used
        tl.atomic_add(dgram_ptr + at, weight * ga * sa, mask=add, sem="relaxed")
        tl.atomic_add(dgram_ptr + bt, weight * gb * sb, mask=add, sem="relaxed")
        tl.atomic_add(dgram_ptr + ct, weight * gc * sc, mask=add, sem="relaxed")
    tl.store(slope_ptr + own, -grad * tl.sum(slope, 0) * inverse_tau)


# One number -----------------------------------------------------------------------------------------------------------


@triton.jit
def _reduce_kernel(
    pair_ptr, triplet_ptr, present_ptr, weight_ptr, loss_ptr, totals_ptr, alpha, size,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, BLOCKS: tl.constexpr, MODALITIES: tl.constexpr,
    HAS_TRIPLETS: tl.constexpr, HAS_PRESENT: tl.constexpr, HAS_WEIGHT: tl.constexpr, MEAN: tl.constexpr,
    EACH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The loss of all anchors, or that of each, and what the mean of each term divides by."""
    result = 0.0
    for term in tl.static_range(BLOCKS + HAS_TRIPLETS):
        summed = tl.zeros((BLOCK,), tl.float32)
        weights = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, size, BLOCK):
            i = start + tl.arange(0, BLOCK).to(tl.int64)
            inside = i < size
            weight = tl.where(inside, 1.0, 0.0)
            if HAS_WEIGHT:
                weight = tl.load(weight_ptr + i, mask=inside, other=0.0).to(tl.float32)
            if term < BLOCKS:
                loss = tl.load(pair_ptr + term * size + i, mask=inside, other=0.0)
            else:
                loss = alpha * tl.load(triplet_ptr + i, mask=inside, other=0.0)
            summed += loss * weight
            if HAS_PRESENT:
                if term < BLOCKS:
                    m, n = (LEFT >> (2 * term)) & 3, (RIGHT >> (2 * term)) & 3
                    here = _is_present(present_ptr, i, m, inside, MODALITIES)
                    here &= _is_present(present_ptr, i, n, inside, MODALITIES)
                else:
                    here = _takes_part(present_ptr, i, inside, MODALITIES)
                weight = tl.where(here, weight, 0.0)
            weights += weight
        total = 1.0
        if MEAN:
            total = tl.sum(weights, 0)
            total = tl.where(total > 0, total, 1.0)
        tl.store(totals_ptr + term, total)
        result += tl.sum(summed, 0) / total
    if EACH:
        for start in range(0, size, BLOCK):
            i = start + tl.arange(0, BLOCK).to(tl.int64)
            inside = i < size
            loss = tl.zeros((BLOCK,), tl.float32)
            for term in tl.static_range(BLOCKS):
                loss += tl.load(pair_ptr + term * size + i, mask=inside, other=0.0)
            if HAS_TRIPLETS:
                loss += alpha * tl.load(triplet_ptr + i, mask=inside, other=0.0)
            if HAS_WEIGHT:
                loss *= tl.load(weight_ptr + i, mask=inside, other=0.0).to(tl.float32)
            tl.store(loss_ptr + i, loss, mask=inside)
    else:
        tl.store(loss_ptr, result)


# Launchers ------------------------------------------------------------------------------------------------------------


def _three(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Arguments for three modalities; those that there are not are not read."""
    return [*tensors, *[tensors[0]] * (3 - len(tensors))]


def prepare(
    embeddings: Sequence[Tensor], present: Tensor | None, terms: Terms, normalize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``(rows, scale, power)``: what enters the products, the inverse of its length, the power of two in it.

    Args:
        embeddings: two or three ``(B, D)`` of one floating type up to 32 bits, any strides.
        present: bool ``(B, N)``, contiguous; absent rows become zero, whatever they hold.
        normalize: False promises unit rows.

    Returns:
        ``(2 P, B, D)`` in the embeddings' type, the left factors of the blocks and then the right ones, and ``(N, B)``
        twice in float32. A product of scaled rows neither overflows nor vanishes, at any finite scale.
    """
    first = embeddings[0]
    size, depth = first.shape
    slots = terms.slots
    rows = first.new_empty(len(slots), size, depth)
    scale, power = (first.new_empty(len(embeddings), size, dtype=torch.float32) for _ in range(2))
    strides = [stride for x in _three(embeddings) for stride in x.stride()]
    launch(
        _prepare_kernel, lambda _: (len(embeddings) * size,), _ROWS,
        *_three(embeddings), first if present is None else present, rows, scale, power, *strides, size, depth,
        MODALITIES=len(embeddings), SLOTS=sum(m << 2 * place for place, m in enumerate(slots)), SLOT_COUNT=len(slots),
        NORMALIZE=normalize, HAS_PRESENT=present is not None,
    )  # fmt: skip
    return rows, scale, power


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """A batched product in float32 of factors of one type. Those of 16 bits are multiplied as they are, by tensor
    cores, where PyTorch has that (on a GPU, since 2.8); float32 as PyTorch's switch for TF32 says."""
    if left.dtype == torch.float32:
        return torch.bmm(left, right)
    if left.is_cuda and _HAS_WIDE_OUTPUT:
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left.float(), right.float())


_HAS_WIDE_OUTPUT = hasattr(torch.ops.aten.bmm, "dtype")


def products(rows: Tensor) -> Tensor:
    """The Gram blocks ``(P, B, B)`` in float32 of what :func:`prepare` made."""
    left, right = rows.chunk(2)
    return multiply(left, right.mT)


def forward(
    grams: Tensor,
    scale: Tensor,
    tau: Tensor,
    terms: Terms,
    samples: Samples,
    index: Tensor | None,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """``(loss, sums)``: 0-dim, or ``(B,)`` for ``reduction="none"``, and a buffer of :class:`Sums`, in float32.

    Args:
        grams: ``(P, B, B)`` in float32, contiguous: products of rows, in the order of ``terms.pairs``.
        scale: ``(N, B)`` in float32: a cosine is a product times the scales of its rows.
        tau: 0-dim; one that is not positive gives NaN.
        samples: ``present`` and ``ids`` say who is a candidate of whom, as in `losses/masks-and-weights`; contiguous.
        index: of the triplets, as ``terms.scheme`` says.
    """
    blocks, size, _ = grams.shape
    strips = triton.cdiv(size, _STRIP)
    given = samples.arguments(scale)
    pairs: dict[str, Any] = {"LEFT": terms.left, "RIGHT": terms.right, "MODALITIES": len(scale)}
    masks: dict[str, Any] = {"HAS_PRESENT": samples.present is not None, "HAS_IDS": samples.ids is not None}
    by_pairs = any(terms.rows) or any(terms.columns)
    allocate = scale.new_empty if by_pairs and index is not None else scale.new_zeros
    buffer = allocate(Sums.length(blocks, size))
    sums = Sums.of(buffer, blocks, size)
    match, losses = scale.new_empty(2, blocks, size).unbind()
    part_peak, part_sum = scale.new_empty(2, blocks, strips, size).unbind()
    if by_pairs:
        launch(
            _pair_sums_kernel, lambda _: (blocks * strips,), _PAIRS,
            grams, scale, tau, *given[:2], sums.row_peak, sums.row_sum, match, part_peak, part_sum, size, strips,
            STRIP=_STRIP, **pairs, **masks, **_ROUNDED, key=("size",),
        )  # fmt: skip
        programs = triton.cdiv(size, _SUMS.default.kwargs["BLOCK"])
        launch(
            _pair_losses_kernel, lambda _: (blocks * programs,), _SUMS,
            part_peak, part_sum, sums.row_peak, sums.row_sum, match, given[0],
            sums.column_peak, sums.column_sum, losses, size, strips, programs,
            HAS_PRESENT=masks["HAS_PRESENT"], **terms.shares(), **pairs, **_ROUNDED,
        )  # fmt: skip
    else:
        losses.zero_()
    if index is not None:
        launch(
            _triplet_losses_kernel, lambda _: (size,), _TRIPLETS,
            grams, scale, tau, *given[:2], index, sums.triplet, size, *_index_strides(index, terms.scheme),
            _count(index, terms.scheme), SCHEME=terms.scheme, **masks, key=("count",),
        )  # fmt: skip
    loss = scale.new_empty((size,) if reduction == "none" else ())
    launch(
        _reduce_kernel, lambda _: (1,), _LAST,
        losses, sums.triplet, given[0], given[2], loss, sums.totals, terms.alpha, size,
        BLOCKS=blocks, HAS_TRIPLETS=int(index is not None), HAS_PRESENT=masks["HAS_PRESENT"],
        HAS_WEIGHT=samples.weight is not None, MEAN=reduction == "mean", EACH=reduction == "none", **pairs,
    )  # fmt: skip
    return loss, buffer


def backward(
    grams: Tensor,
    rows: Tensor,
    scale: Tensor,
    power: Tensor,
    tau: Tensor,
    terms: Terms,
    samples: Samples,
    index: Tensor | None,
    sums: Tensor,
    grad: Tensor,
    normalize: bool,
) -> tuple[list[Tensor], Tensor]:
    """``(gradients of the embeddings, in their type; that of tau, float32)``.

    Args:
        grams, rows, scale, power, tau, terms, samples, index: as before.
        sums: what :func:`forward` left.
        grad: of its result; 0-dim or ``(B,)``.
    """
    dgrams, slopes = gram_gradient(grams, scale, tau, terms, samples, index, sums, grad)
    left, right = rows.chunk(2)
    unit = None
    if rows.dtype == torch.float16:  # whose range is short: the largest entry comes to about 2^8
        unit = torch.exp2(8 - torch.frexp(dgrams.abs().amax()).exponent.clamp(-100, 100).float())
        dgrams = dgrams * unit
    dgrams = dgrams.to(rows.dtype)
    by_left, by_right = multiply(dgrams, right), multiply(dgrams.mT, left)
    power = power if unit is None else power / unit
    return embedding_gradient(by_left, by_right, rows, scale, power, terms, normalize), slopes.sum()


def embedding_gradient(
    by_left: Tensor, by_right: Tensor, rows: Tensor, scale: Tensor, power: Tensor, terms: Terms, normalize: bool
) -> list[Tensor]:
    """Gradients ``(B, D)`` of the embeddings, in their type.

    Args:
        by_left, by_right: ``(P, B, D)`` in float32: the blocks' gradients times their right, left factors.
        rows, scale, power: of :func:`prepare`.
    """
    _, size, depth = rows.shape
    results = [rows.new_empty(size, depth) for _ in range(len(scale))]
    launch(
        _embedding_gradient_kernel, lambda _: (len(scale) * size,), _ROWS,
        by_left, by_right, rows, scale, power, *_three(results), size, depth,
        LEFT=terms.left, RIGHT=terms.right, BLOCKS=len(by_left), NORMALIZE=normalize,
    )  # fmt: skip
    return results


def gram_gradient(
    grams: Tensor,
    scale: Tensor,
    tau: Tensor,
    terms: Terms,
    samples: Samples,
    index: Tensor | None,
    sums: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor]:
    """``(gradient by the products (P, B, B), parts of the gradient by tau)``, float32. Triplets add theirs by atomics:
    the order of additions is not fixed."""
    blocks, size, _ = grams.shape
    strips = triton.cdiv(size, _STRIP)
    given = samples.arguments(scale)
    kept = Sums.of(sums, blocks, size)
    masks: dict[str, Any] = {
        "HAS_PRESENT": samples.present is not None, "HAS_IDS": samples.ids is not None,
        "HAS_WEIGHT": samples.weight is not None,
    }  # fmt: skip
    stride = grad.stride(0) if grad.dim() else 0
    by_pairs = any(terms.rows) or any(terms.columns)
    dgrams = torch.empty_like(grams) if by_pairs else torch.zeros_like(grams)
    parts = blocks * strips if by_pairs else 0
    slopes = scale.new_empty(parts + (0 if index is None else size))
    if by_pairs:
        launch(
            _pair_gradient_kernel, lambda _: (blocks * strips,), _PAIRS,
            grams, scale, tau, *given, grad, kept.totals,
            kept.row_peak, kept.row_sum, kept.column_peak, kept.column_sum, dgrams, slopes,
            size, strips, stride, **terms.shares(), LEFT=terms.left, RIGHT=terms.right, MODALITIES=len(scale),
            STRIP=_STRIP, **masks, **_ROUNDED, key=("size",),
        )  # fmt: skip
    if index is not None:
        launch(
            _triplet_gradient_kernel, lambda _: (size,), _TRIPLETS_BACKWARD,
            grams, scale, tau, *given, index, grad, kept.totals, kept.triplet, dgrams, slopes[parts:],
            terms.alpha, size, blocks, stride, *_index_strides(index, terms.scheme), _count(index, terms.scheme),
            SCHEME=terms.scheme, **masks, key=("count",), zeroed=("dgram_ptr",),
        )  # fmt: skip
    return dgrams, slopes


def _index_strides(index: Tensor, scheme: str) -> tuple[int, ...]:
    """By anchor, by candidate, by member."""
    strides: Any = index.stride() if scheme == "index" else (0, *index.stride())
    return strides


def _count(index: Tensor, scheme: str) -> int:
    return index.shape[1] if scheme == "index" else index.shape[0]
