r"""Eq. (1), pairwise InfoNCE, as Triton kernels: over Gram blocks in memory, or over tiles that are never stored.

With the logits :math:`z_{ij} = g_{ij} s_i t_j / \tau`, one pass over the products :math:`g` computes the largest logit
and the softmax's sum of each row and column. Another computes both gradients from the weights

.. math:: W_{ij} = \bar r_i e^{z_{ij} - \log R_i} + \bar c_j e^{z_{ij} - \log C_j} - [i = j] (\bar r_i + \bar c_i).

Held blocks are read in strips of rows. The tiled kernels compute the products of a tile where they need them, and add
its gradients :math:`W y` and :math:`W^\top x` to those of the rows. In tiles

* programs are numbered so that those that run at the same time share rows and columns in the cache;
* the gradient skips tiles away from the diagonal whose softmaxes are all at most :math:`2^{-24} / B`. The skipped
  weights of a row sum to at most :math:`2^{-24}` of its softmax and as much of its columns' softmaxes, the rounding
  error of a weight of 1 in float32. For B = 65,536 these tiles have cosines :math:`27.8 \tau` below the largest of
  their rows and columns: 0.28 at tau = 0.01, never at tau = 0.07. Their part of the gradient w.r.t. tau is kept;
* under ``torch.use_deterministic_algorithms(True)`` no tile is skipped, and each gradient has its own pass, in which
  one program sums each row in a fixed order. It adds to memory by atomics, because a block of gradients does not fit in
  registers; the order of atomics is fixed within a thread, so no barrier is needed.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from multicontrast._launch_triton import VERSION, Tuning, architecture, config, dot_precision, launch
from multicontrast.losses.triton.rows_triton import (
    ROUNDED,
    Samples,
    Sums,
    Terms,
    cotangent,
    grad_stride_of,
    has_both,
    inverse_of,
    share,
    two_bits,
)

# Rows of a strip. Each strip stores its column sums, which are then added in a fixed order.
_STRIP = 16
_PAIRS = Tuning(
    default=config(num_warps=8, BLOCK_COLUMNS=256),
    by_architecture={"hip:gfx1100": config(num_warps=8, BLOCK_COLUMNS=128)},  # Triton 3.9 fails to compile a larger one
    candidates=[config(num_warps=w, BLOCK_COLUMNS=c) for w, c in ((4, 128), (4, 256), (8, 256), (8, 512))],
)
_SUMS = Tuning(default=config(num_warps=4, BLOCK_STRIPS=16, BLOCK=64))


# The largest tiles that spill no register; `_tile_rows` gives their rows. Large tiles are better because splitting a
# float32 into three bfloat16 costs as much as the products, and a larger tile splits each row and column less often.
def _tile(columns: int, depth: int = 16, num_warps: int = 8, num_stages: int = 2) -> triton.Config:
    return config(num_warps=num_warps, num_stages=num_stages, BLOCK_COLUMNS=columns, BLOCK_DEPTH=depth)


_TILES = [_tile(64), _tile(64, 32), _tile(64, 32, 4), _tile(64, 32, 8, 3), _tile(128, 32)]
_SCALAR = {"cuda:75": _tile(32, num_warps=4, num_stages=1)}  # its tensor cores have neither bfloat16 nor TF32
_AMD = {"hip": _tile(64, num_warps=4), "hip:gfx1100": _tile(16)}
_TILE_SUMS = Tuning(
    _tile(64), {"cuda:90": _tile(64, 32), "cuda:100": _tile(64, 32), "cuda:120": _tile(32), **_SCALAR}, _TILES
)
_TILE_GRADIENT = Tuning(_tile(64), {"cuda:100": _tile(64, 32), **_SCALAR, **_AMD}, _TILES)
_MASKED_GRADIENT = Tuning(_tile(32), {"cuda:90": _tile(64), "cuda:100": _tile(64, 32), **_SCALAR, **_AMD}, _TILES)
if VERSION < (3, 6):
    # Three TF32 products take more registers. Triton 3.2 fails on a larger tile for sm_90 and on a pipeline on AMD.
    _AMD = {"hip": _tile(32, num_warps=4, num_stages=1), "hip:gfx1100": _tile(16, num_stages=1)}
    _TILE_GRADIENT = _MASKED_GRADIENT = Tuning(_tile(32, num_warps=4), {**_SCALAR, **_AMD})
if VERSION == (3, 3):  # it spills with four warps
    _TILE_GRADIENT = Tuning(_tile(32), {**_SCALAR, **_AMD})
    _MASKED_GRADIENT = Tuning(_tile(32), {"cuda:80": _tile(16), **_SCALAR, **_AMD})
if VERSION == (3, 6):  # it spills with a larger tile for sm_90
    _MASKED_GRADIENT = Tuning(_tile(32), {"cuda:100": _tile(64, 32), **_SCALAR, **_AMD}, _TILES)

_PROGRAMS = 264  # two for each multiprocessor of a large device
_GROUP = 16  # strips of a group, over at least as many parts of the columns: 16 x 16 programs run at a time
_PARTIAL = 1 << 24  # entries of partial column sums that are held at a time
_NEGLIGIBLE = 2.0**-24
_LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def _logits(
    gram, scale_ptr, present_ptr, ids_ptr, inverse_tau, m, n, i, j, size,
    MODALITIES: tl.constexpr, HAS_PRESENT: tl.constexpr, HAS_IDS: tl.constexpr,
):  # fmt: skip
    """``(z, s_i, t_j, i = j)`` of a tile; z is minus infinity where j is not a candidate of i, and beyond the end.

    A sample without both modalities is neither an anchor nor a candidate.
    """
    valid = (i[:, None] < size) & (j[None, :] < size)
    left = tl.load(scale_ptr + m * size + i, mask=i < size, other=0.0)[:, None]
    right = tl.load(scale_ptr + n * size + j, mask=j < size, other=0.0)[None, :]
    z = (gram * (left * right)) * inverse_tau
    match = i[:, None] == j[None, :]
    if HAS_PRESENT:
        anchor = has_both(present_ptr, i, m, n, i < size, MODALITIES)
        candidate = has_both(present_ptr, j, m, n, j < size, MODALITIES)
        valid &= anchor[:, None] & candidate[None, :]
    if HAS_IDS:
        own = tl.load(ids_ptr + i, mask=i < size, other=0)
        other = tl.load(ids_ptr + j, mask=j < size, other=0)
        valid &= (own[:, None] != other[None, :]) | match
    return tl.where(valid, z, -float("inf")), left, right, match


@triton.jit
def _add_rows(z, match, peak, total, positive):
    """The largest logit of each row, the sum of ``exp(z - largest)`` and the positive's logit, after one more tile."""
    higher = tl.maximum(peak, tl.max(z, 1))
    total = total * tl.exp(peak - higher) + tl.sum(tl.exp(z - higher[:, None]), 1)
    return higher, total, positive + tl.sum(tl.where(match, z, 0.0), 1)


@triton.jit
def _store_column_sums(z, peak_ptr, sum_ptr, out, inside):
    """The largest logit and the sum of each column of one tile."""
    peak = tl.maximum(tl.max(z, 0), _LOWEST)
    tl.store(peak_ptr + out, peak, mask=inside)
    tl.store(sum_ptr + out, tl.sum(tl.exp(z - peak[None, :]), 0), mask=inside)


@triton.jit
def _side(
    grad_ptr, grad_stride, weight_ptr, totals_ptr, peak_ptr, sum_ptr, place, i, size, HAS_WEIGHT: tl.constexpr
):  # fmt: skip
    """``(cotangent, largest logit, softmax's sum)`` of some rows or columns."""
    inside = i < size
    by = cotangent(grad_ptr, grad_stride, weight_ptr, totals_ptr, place, i, inside, HAS_WEIGHT)
    peak = tl.load(peak_ptr + place * size + i, mask=inside, other=0.0)
    return by, peak, tl.load(sum_ptr + place * size + i, mask=inside, other=1.0)


@triton.jit
def _less_positive(weight, positive, z, match):
    """The weights less the positive's, and for each row the sum of weight times logit."""
    weight -= tl.where(match, positive[:, None], 0.0)
    weight = tl.where(z == -float("inf"), 0.0, weight)  # it is NaN if the largest logit is minus infinity, too
    return weight, tl.sum(tl.where(weight == 0, 0.0, weight * z), 1)


# Held blocks ----------------------------------------------------------------------------------------------------------


@triton.jit
def _held(gram_ptr, place, i, j, size):
    """A tile of a Gram block; 0 beyond its end."""
    offsets = (place * size + i[:, None]) * size + j[None, :]
    return tl.load(gram_ptr + offsets, mask=(i[:, None] < size) & (j[None, :] < size), other=0.0)


@triton.jit
def _strip_of_block(strips, LEFT: tl.constexpr, RIGHT: tl.constexpr, STRIP: tl.constexpr):
    """``(program, block, its left and right modality, rows)``: each program takes one strip of rows of one block."""
    program = tl.program_id(0).to(tl.int64)
    place = program // strips
    rows = program % strips * STRIP + tl.arange(0, STRIP)
    return program, place, two_bits(LEFT, place), two_bits(RIGHT, place), rows


@triton.jit
def _pair_sums_kernel(
    gram_ptr, scale_ptr, tau_ptr, present_ptr, ids_ptr,
    row_peak_ptr, row_sum_ptr, match_ptr, part_peak_ptr, part_sum_ptr, size, strips,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, MODALITIES: tl.constexpr, HAS_PRESENT: tl.constexpr,
    HAS_IDS: tl.constexpr, STRIP: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    program, place, m, n, i = _strip_of_block(strips, LEFT, RIGHT, STRIP)
    inverse_tau = inverse_of(tau_ptr)
    peak = tl.full((STRIP,), _LOWEST, tl.float32)
    total = tl.zeros((STRIP,), tl.float32)
    positive = tl.zeros((STRIP,), tl.float32)
    for start in range(0, size, BLOCK_COLUMNS):
        j = start + tl.arange(0, BLOCK_COLUMNS).to(tl.int64)
        z, _left, _right, match = _logits(
            _held(gram_ptr, place, i, j, size), scale_ptr, present_ptr, ids_ptr, inverse_tau, m, n, i, j, size,
            MODALITIES, HAS_PRESENT, HAS_IDS,
        )  # fmt: skip
        peak, total, positive = _add_rows(z, match, peak, total, positive)
        _store_column_sums(z, part_peak_ptr, part_sum_ptr, program * size + j, j < size)
    out = place * size + i
    tl.store(row_peak_ptr + out, peak, mask=i < size)
    tl.store(row_sum_ptr + out, total, mask=i < size)
    tl.store(match_ptr + out, positive, mask=i < size)


@triton.jit
def _pair_gradient_kernel(
    gram_ptr, scale_ptr, tau_ptr, present_ptr, ids_ptr, weight_ptr, grad_ptr, totals_ptr,
    row_peak_ptr, row_sum_ptr, column_peak_ptr, column_sum_ptr, dgram_ptr, slope_ptr,
    size, strips, grad_stride,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, ROW_SHARES: tl.constexpr, COLUMN_SHARES: tl.constexpr,
    MODALITIES: tl.constexpr, HAS_PRESENT: tl.constexpr,
    HAS_IDS: tl.constexpr, HAS_WEIGHT: tl.constexpr, STRIP: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    program, place, m, n, i = _strip_of_block(strips, LEFT, RIGHT, STRIP)
    row_share, column_share = share(ROW_SHARES, place), share(COLUMN_SHARES, place)
    inverse_tau = inverse_of(tau_ptr)
    by_row, row_peak, row_sum = _side(
        grad_ptr, grad_stride, weight_ptr, totals_ptr, row_peak_ptr, row_sum_ptr, place, i, size, HAS_WEIGHT
    )
    slope = tl.zeros((STRIP,), tl.float32)
    for start in range(0, size, BLOCK_COLUMNS):
        j = start + tl.arange(0, BLOCK_COLUMNS).to(tl.int64)
        z, left, right, match = _logits(
            _held(gram_ptr, place, i, j, size), scale_ptr, present_ptr, ids_ptr, inverse_tau, m, n, i, j, size,
            MODALITIES, HAS_PRESENT, HAS_IDS,
        )  # fmt: skip
        by_column, column_peak, column_sum = _side(
            grad_ptr, grad_stride, weight_ptr, totals_ptr, column_peak_ptr, column_sum_ptr, place, j, size, HAS_WEIGHT
        )
        weight = (row_share * by_row / row_sum)[:, None] * tl.exp(z - row_peak[:, None])
        weight += (column_share * by_column / column_sum)[None, :] * tl.exp(z - column_peak[None, :])
        weight, slopes = _less_positive(weight, (row_share + column_share) * by_row, z, match)
        slope += slopes
        place_of = dgram_ptr + (place * size + i[:, None]) * size + j[None, :]
        tl.store(place_of, weight * (left * right) * inverse_tau, mask=(i[:, None] < size) & (j[None, :] < size))
    tl.store(slope_ptr + program, -tl.sum(slope, 0) * inverse_tau)


@triton.jit
def _pair_losses_kernel(
    part_peak_ptr, part_sum_ptr, row_peak_ptr, row_sum_ptr, match_ptr, present_ptr,
    column_peak_ptr, column_sum_ptr, loss_ptr, size, strips, programs,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, ROW_SHARES: tl.constexpr, COLUMN_SHARES: tl.constexpr,
    MODALITIES: tl.constexpr, HAS_PRESENT: tl.constexpr,
    BLOCK_STRIPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Combines the strips' column sums, and computes each anchor's loss of a pair."""
    program = tl.program_id(0).to(tl.int64)
    place = program // programs
    m, n = two_bits(LEFT, place), two_bits(RIGHT, place)
    j = program % programs * BLOCK + tl.arange(0, BLOCK)
    inside = j < size
    peak = tl.full((BLOCK,), _LOWEST, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, strips, BLOCK_STRIPS):
        strip = start + tl.arange(0, BLOCK_STRIPS)
        mask = (strip[:, None] < strips) & inside[None, :]
        offsets = (place * strips + strip[:, None]) * size + j[None, :]
        peaks = tl.load(part_peak_ptr + offsets, mask=mask, other=_LOWEST)
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
    loss = share(ROW_SHARES, place) * by_row + share(COLUMN_SHARES, place) * by_column
    if HAS_PRESENT:
        loss = tl.where(has_both(present_ptr, j, m, n, inside, MODALITIES), loss, 0.0)
    tl.store(loss_ptr + out, loss, mask=inside)


# Tiles ----------------------------------------------------------------------------------------------------------------


@triton.jit
def _strip_and_part(strips, parts, GROUP: tl.constexpr):
    """The strip of rows and the part of the columns of a program. All parts of a group of strips come before the next
    group, and neighbouring programs have neighbouring strips."""
    program = tl.program_id(0).to(tl.int64)
    group = program // (GROUP * parts)
    height = tl.minimum(strips - group * GROUP, GROUP)
    place = program % (GROUP * parts)
    return group * GROUP + place % height, place // height


@triton.jit
def _load_rows(x_ptr, i, k, size, depth, PRECISION: tl.constexpr):
    x = tl.load(x_ptr + i * depth + k, mask=(i < size) & (k < depth), other=0.0)
    if PRECISION == "ieee":  # for scalar units and the interpreter
        x = x.to(tl.float32)
    return x


@triton.jit
def _products(
    x_ptr, y_ptr, i, j, size, depth,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``x_i . y_j``: ``(BLOCK_ROWS, BLOCK_COLUMNS)`` in float32; rows beyond the end are zero."""
    products = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for start in range(0, depth, BLOCK_DEPTH):
        k = start + tl.arange(0, BLOCK_DEPTH).to(tl.int64)
        x = _load_rows(x_ptr, i[:, None], k[None, :], size, depth, PRECISION)
        y = _load_rows(y_ptr, j[None, :], k[:, None], size, depth, PRECISION)
        products = tl.dot(x, y, products, input_precision=PRECISION)
    return products


@triton.jit
def _softmax(z, peak):
    """``exp(z - peak)``, at most 1: the backward pass may round a product differently, and a tiny tau magnifies it."""
    return tl.exp(tl.minimum(z - peak, 0.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def _tile_sums_kernel(
    x_ptr, y_ptr, scale_ptr, tau_ptr, present_ptr, ids_ptr,
    row_peak_ptr, row_sum_ptr, match_ptr, column_peak_ptr, column_sum_ptr,
    m, n, first, size, depth, strips, parts, part_columns,
    MODALITIES: tl.constexpr, HAS_PRESENT: tl.constexpr, HAS_IDS: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums of rows for each part and of columns for each strip, for the strips from row ``first`` on."""
    strip, part = _strip_and_part(strips, parts, GROUP)
    inverse_tau = inverse_of(tau_ptr)
    i = first + strip * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    peak = tl.full((BLOCK_ROWS,), _LOWEST, tl.float32)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    positive = tl.zeros((BLOCK_ROWS,), tl.float32)
    begin = part * part_columns
    for start in range(begin, tl.minimum(begin + part_columns, size), BLOCK_COLUMNS):
        j = start + tl.arange(0, BLOCK_COLUMNS).to(tl.int64)
        products = _products(x_ptr, y_ptr, i, j, size, depth, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_DEPTH, PRECISION)
        z, _left, _right, match = _logits(
            products, scale_ptr, present_ptr, ids_ptr, inverse_tau, m, n, i, j, size, MODALITIES, HAS_PRESENT, HAS_IDS
        )
        peak, total, positive = _add_rows(z, match, peak, total, positive)
        _store_column_sums(z, column_peak_ptr, column_sum_ptr, strip * size + j, j < size)
    out = part * size + i
    tl.store(row_peak_ptr + out, peak, mask=i < size)
    tl.store(row_sum_ptr + out, total, mask=i < size)
    tl.store(match_ptr + out, positive, mask=i < size)


@triton.jit
def _add_products(
    ptr, factor, rows_ptr, i, j, size, depth, BLOCK_DEPTH: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """Adds ``factor @ rows[j]`` to the rows ``i``."""
    for start in range(0, depth, BLOCK_DEPTH):
        k = start + tl.arange(0, BLOCK_DEPTH).to(tl.int64)
        rows = _load_rows(rows_ptr, j[:, None], k[None, :], size, depth, PRECISION)
        products = tl.dot(factor, rows, input_precision=PRECISION)
        mask = (i[:, None] < size) & (k[None, :] < depth)
        tl.atomic_add(ptr + i[:, None] * depth + k[None, :], products, mask=mask, sem="relaxed")


@triton.jit
def _tile_gradient_kernel(
    x_ptr, y_ptr, scale_ptr, tau_ptr, present_ptr, ids_ptr, weight_ptr, grad_ptr, totals_ptr, unit_ptr,
    row_peak_ptr, row_sum_ptr, column_peak_ptr, column_sum_ptr, dx_ptr, dy_ptr, slope_ptr,
    m, n, place, row_share, column_share, negligible, size, depth, strips, parts, part_columns, grad_stride,
    MODALITIES: tl.constexpr, HAS_PRESENT: tl.constexpr, HAS_IDS: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_UNIT: tl.constexpr, BOTH: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds to the gradient of ``x``, and with ``BOTH`` to that of ``y``; skips negligible tiles."""
    strip, part = _strip_and_part(strips, parts, GROUP)
    inverse_tau = inverse_of(tau_ptr)
    unit = inverse_tau
    if HAS_UNIT:
        unit *= tl.load(unit_ptr)
    first = strip * BLOCK_ROWS
    i = first + tl.arange(0, BLOCK_ROWS)
    by_row, row_peak, row_sum = _side(
        grad_ptr, grad_stride, weight_ptr, totals_ptr, row_peak_ptr, row_sum_ptr, place, i, size, HAS_WEIGHT
    )
    slope = tl.zeros((BLOCK_ROWS,), tl.float32)
    begin = part * part_columns
    for start in range(begin, tl.minimum(begin + part_columns, size), BLOCK_COLUMNS):
        j = start + tl.arange(0, BLOCK_COLUMNS).to(tl.int64)
        products = _products(x_ptr, y_ptr, i, j, size, depth, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_DEPTH, PRECISION)
        z, left, right, match = _logits(
            products, scale_ptr, present_ptr, ids_ptr, inverse_tau, m, n, i, j, size, MODALITIES, HAS_PRESENT, HAS_IDS
        )
        by_column, column_peak, column_sum = _side(
            grad_ptr, grad_stride, weight_ptr, totals_ptr, column_peak_ptr, column_sum_ptr, place, j, size, HAS_WEIGHT
        )
        of_row = _softmax(z, row_peak[:, None]) / row_sum[:, None]
        of_column = _softmax(z, column_peak[None, :]) / column_sum[None, :]
        weight = (row_share * by_row)[:, None] * of_row + (column_share * by_column)[None, :] * of_column
        weight, slopes = _less_positive(weight, (row_share + column_share) * by_row, z, match)
        slope += slopes
        counts = tl.where((of_row <= negligible) & (of_column <= negligible), 0, 1)  # NaN counts
        on_diagonal = (start < first + BLOCK_ROWS) & (start + BLOCK_COLUMNS > first)
        # Flattened: Triton 3.6 fails on two reductions in a row for sm_100.
        if on_diagonal | (tl.max(tl.reshape(counts, (BLOCK_ROWS * BLOCK_COLUMNS,)), 0) > 0):
            factor = (weight * (left * unit) * right).to(x_ptr.dtype.element_ty)
            if PRECISION == "ieee":
                factor = factor.to(tl.float32)
            _add_products(dx_ptr, factor, y_ptr, i, j, size, depth, BLOCK_DEPTH, PRECISION)
            if BOTH:  # in its own loop, because registers hold one shape of the factor at a time
                _add_products(dy_ptr, tl.trans(factor), x_ptr, j, i, size, depth, BLOCK_DEPTH, PRECISION)
    tl.store(slope_ptr + tl.program_id(0), -tl.sum(slope, 0) * inverse_tau)


# Launchers ------------------------------------------------------------------------------------------------------------


def pair_losses(source: Tensor, scale: Tensor, tau: Tensor, terms: Terms, samples: Samples, sums: Sums) -> Tensor:
    """The loss of each pair and anchor ``(P, B)``, float32. Fills the sums of rows and columns in ``sums``.

    Args:
        source: the products ``(P, B, B)`` in float32, contiguous; or for tiled blocks the rows ``(N, B, D)`` from
            :func:`~multicontrast.losses.triton.rows_triton.prepare`.
        scale: ``(N, B)`` in float32: a cosine is a product times the scales of its rows.
    """
    blocks, size = len(terms.pairs), source.shape[1]
    given, masks = samples.arguments(scale), samples.masks()
    del masks["HAS_WEIGHT"]
    pairs: dict[str, Any] = {"LEFT": terms.left, "RIGHT": terms.right, "MODALITIES": len(scale)}
    match, losses = scale.new_empty(2, blocks, size).unbind()
    if terms.tiled:
        part_peak, part_sum = _sums_in_tiles(source, scale, tau, terms, given, masks, sums, match)
    else:
        strips = triton.cdiv(size, _STRIP)
        part_peak, part_sum = scale.new_empty(2, blocks, strips, size).unbind()
        launch(
            _pair_sums_kernel, lambda _: (blocks * strips,), _PAIRS,
            source, scale, tau, *given[:2], sums.row_peak, sums.row_sum, match, part_peak, part_sum, size, strips,
            STRIP=_STRIP, **pairs, **masks, **ROUNDED, key=("size",),
        )  # fmt: skip
    programs = triton.cdiv(size, _SUMS.default.kwargs["BLOCK"])
    launch(
        _pair_losses_kernel, lambda _: (blocks * programs,), _SUMS,
        part_peak, part_sum, sums.row_peak, sums.row_sum, match, given[0],
        sums.column_peak, sums.column_sum, losses, size, part_peak.shape[1], programs,
        HAS_PRESENT=masks["HAS_PRESENT"], **terms.shares(), **pairs, **ROUNDED,
    )  # fmt: skip
    return losses


def pair_gradient(
    source: Tensor, scale: Tensor, tau: Tensor, terms: Terms, samples: Samples, sums: Sums, grad: Tensor,
    dgrams: Tensor, slopes: Tensor,
) -> None:  # fmt: skip
    """Fills ``dgrams`` ``(P, B, B)``, the gradient w.r.t. the products of held blocks, and ``slopes``, the
    :func:`slopes_of_held` parts of the gradient w.r.t. tau.

    Args:
        grad: the cotangent of the loss, 0-dim or ``(B,)``.
    """
    blocks, size, _ = source.shape
    strips = triton.cdiv(size, _STRIP)
    launch(
        _pair_gradient_kernel, lambda _: (blocks * strips,), _PAIRS,
        source, scale, tau, *samples.arguments(scale), grad, sums.totals,
        sums.row_peak, sums.row_sum, sums.column_peak, sums.column_sum, dgrams, slopes,
        size, strips, grad_stride_of(grad), **terms.shares(), LEFT=terms.left, RIGHT=terms.right, MODALITIES=len(scale),
        STRIP=_STRIP, **samples.masks(), **ROUNDED, key=("size",),
    )  # fmt: skip


def slopes_of_held(blocks: int, size: int) -> int:
    """The number of parts of the gradient w.r.t. tau that :func:`pair_gradient` stores."""
    return blocks * triton.cdiv(size, _STRIP)


def _tile_rows(gradient: bool) -> int:
    """The rows of a tile."""
    name = architecture()
    if name == "cuda:75" or (gradient and name.startswith("hip:gfx11")):
        return 32
    return 64 if gradient or name.startswith(("cuda:12", "hip:gfx11")) else 128


def _grid(programs: int) -> Any:
    return lambda _: (programs,)


def _parts(strips: int, size: int, least: int = _GROUP) -> tuple[int, int]:
    """``(number of parts, columns of each)``; each part is a number of whole tiles."""
    unit = max(constants.kwargs["BLOCK_COLUMNS"] for constants in _TILES)
    tiles = triton.cdiv(size, unit)
    part = triton.cdiv(tiles, min(tiles, max(least, triton.cdiv(_PROGRAMS, strips))))
    return triton.cdiv(tiles, part), part * unit


def _merge(peaks: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit and the softmax's sum over all parts, along the first dimension."""
    peak = peaks.amax(0)
    return peak, (sums * torch.exp(peaks - peak)).sum(0)


def _sums_in_tiles(
    rows: Tensor, scale: Tensor, tau: Tensor, terms: Terms, given: tuple[Tensor, ...], masks: dict[str, Any],
    sums: Sums, match: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Fills the sums of rows; returns ``(peaks, sums)`` of columns, ``(P, 1, B)``. Slabs of rows bound the memory of
    partial sums of columns."""
    _, size, depth = rows.shape
    height, precision = _tile_rows(gradient=False), dot_precision(terms.tf32)
    parts, part_columns = _parts(triton.cdiv(size, height), size)
    slab = max(1, _PARTIAL // size) * height
    columns = []
    for place, (m, n) in enumerate(terms.pairs):
        peaks, totals, matches = scale.new_empty(3, parts, size).unbind()
        found = []
        for first in range(0, size, slab):
            strips = triton.cdiv(min(slab, size - first), height)
            column_peak, column_sum = scale.new_empty(2, strips, size).unbind()
            launch(
                _tile_sums_kernel, _grid(strips * parts), _TILE_SUMS,
                rows[m], rows[n], scale, tau, *given[:2], peaks, totals, matches, column_peak, column_sum,
                m, n, first, size, depth, strips, parts, part_columns, MODALITIES=len(scale), GROUP=_GROUP,
                BLOCK_ROWS=height, PRECISION=precision, **masks, **ROUNDED, key=("size", "depth"),
            )  # fmt: skip
            found.append(_merge(column_peak, column_sum))
        columns.append(_merge(*(torch.stack(part) for part in zip(*found))))
        for kept, merged in zip((sums.row_peak, sums.row_sum), _merge(peaks, totals)):
            kept[place].copy_(merged)
        match[place].copy_(matches.sum(0))
    peak, total = (torch.stack(part)[:, None] for part in zip(*columns))
    return peak, total


def gradient_in_tiles(
    rows: Tensor, scale: Tensor, tau: Tensor, terms: Terms, samples: Samples, sums: Sums, grad: Tensor,
    unit: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``(gradient w.r.t. the rows (N, B, D), times the unit; parts of the gradient w.r.t. tau)``, float32.

    Args:
        unit: a power of two that brings the weights into the range of the rows' type; None for 1.
    """
    _, size, depth = rows.shape
    deterministic = torch.are_deterministic_algorithms_enabled()
    height, precision = _tile_rows(gradient=True), dot_precision(terms.tf32)
    strips = triton.cdiv(size, height)
    parts, part_columns = (1, size) if deterministic else _parts(strips, size)
    by = torch.zeros(rows.shape, dtype=torch.float32, device=rows.device)
    slopes = scale.new_empty(len(terms.pairs), 1 + deterministic, strips * parts)
    kept = (sums.row_peak, sums.row_sum, sums.column_peak, sums.column_sum)
    tuning = _TILE_GRADIENT if samples.present is None and samples.ids is None else _MASKED_GRADIENT
    for place, (m, n) in enumerate(terms.pairs):
        row_share, column_share = terms.rows[place], terms.columns[place]
        ways = [(m, n, row_share, column_share, kept)]
        if deterministic:
            ways.append((n, m, column_share, row_share, (*kept[2:], *kept[:2])))
        for way, (left, right, left_share, right_share, found) in enumerate(ways):
            launch(
                _tile_gradient_kernel, _grid(strips * parts), tuning,
                rows[left], rows[right], scale, tau, *samples.arguments(scale), grad, sums.totals,
                tau if unit is None else unit, *found, by[left], by[right], slopes[place, way],
                left, right, place, left_share, right_share, -1.0 if deterministic else _NEGLIGIBLE / size,
                size, depth, strips, parts, part_columns, grad_stride_of(grad), MODALITIES=len(scale),
                HAS_UNIT=unit is not None, BOTH=not deterministic, GROUP=_GROUP, BLOCK_ROWS=height,
                PRECISION=precision, **samples.masks(), **ROUNDED, key=("size", "depth"), zeroed=("dx_ptr", "dy_ptr"),
            )  # fmt: skip
    return by, slopes[:, 0]
