r"""Eq. (4), pairs and sampled triplets, forward and backward: each pass reads each Gram block in memory once.

Rows :math:`x_i` of modality m enter the products times an exact power of two; scales :math:`s = 1 / |x|` of rows and
columns then normalise the products. With :math:`g_{ij} = x_i \cdot y_j` and the logits
:math:`z_{ij} = g_{ij} s_i t_j / \tau`, a pair's losses and its gradient w.r.t. the products are

.. math:: \ell_i = \log \sum_j e^{z_{ij}} - z_{ii}, \qquad
          \frac{\partial L}{\partial g_{ij}} = \frac{s_i t_j}{\tau} W_{ij}

with the weights of ``pairs_triton.py``. Triplets are as in ``sampled_triton.py``, with the eigenvalue of
``docs/math/h-cubic.md``. The kernels read the masks, ids and weights of the samples.
Order of the launches:

==================  ================================================================================================
:func:`prepare`     scaled rows and the inverses of their lengths
:func:`products`    all Gram blocks, one batched product; none if they are tiled
:func:`forward`     sums of rows and columns; triplets; one number
:func:`backward`    gradient w.r.t. the blocks; two batched products; gradient w.r.t. the embeddings
==================  ================================================================================================
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from multicontrast._launch_triton import Tuning, config, launch
from multicontrast.linalg._gram3_triton import eigmax_excess_of, eigmax_with_gradient_of
from multicontrast.losses.triton import pairs_triton
from multicontrast.losses.triton.rows_triton import (
    Samples,
    Sums,
    Terms,
    add_exponential,
    cotangent,
    embedding_gradient,
    grad_stride_of,
    has_both,
    inverse_of,
    is_present,
    log_sum,
    multiply,
    prepare,
    products,
    takes_part,
    two_bits,
)
from multicontrast.losses.triton.sampled_triton import _members, extent

__all__ = [
    "Samples",
    "Sums",
    "Terms",
    "backward",
    "embedding_gradient",
    "forward",
    "gram_gradient",
    "prepare",
    "products",
]

_TRIPLETS = Tuning(default=config(num_warps=4, BLOCK=256))
_TRIPLETS_BACKWARD = Tuning(default=config(num_warps=4, BLOCK=128))
_LAST = Tuning(default=config(num_warps=8, BLOCK=1024))


# Triplets -------------------------------------------------------------------------------------------------------------


@triton.jit
def _triplets(
    gram_ptr, scale_ptr, present_ptr, ids_ptr, index_ptr, index_stride, index_last_stride,
    own, size, columns, inside,
    HAS_PRESENT: tl.constexpr, HAS_IDS: tl.constexpr, SCHEME: tl.constexpr,
):  # fmt: skip
    """``(a, b, c, offsets and scales of each, valid, read)``; a cosine is NaN where a member is out of range."""
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
        # A candidate is a negative if a present member has another sample or id, all its members' samples take part,
        # and two members are present. A member out of range must give NaN.
        hi, hj, hk = read, read, read
        if HAS_PRESENT:
            hi = is_present(present_ptr, i, 0, read, 3)
            hj = is_present(present_ptr, j, 1, read, 3)
            hk = is_present(present_ptr, k, 2, read, 3)
            valid &= takes_part(present_ptr, i, read, 3) & takes_part(present_ptr, j, read, 3)
            valid &= takes_part(present_ptr, k, read, 3)
            two = (hi & hj) | (hi & hk) | (hj & hk)
            whole &= two | (columns > 0)  # a caller's positive with fewer than two present members is an error: NaN
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
    """``x`` of the anchor's positive."""
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
    inverse_tau = inverse_of(tau_ptr)
    positive = _positive(
        gram_ptr, scale_ptr, present_ptr, ids_ptr, index_ptr, index_stride, index_last_stride,
        own, size, HAS_PRESENT, HAS_IDS, SCHEME,
    )  # fmt: skip
    highest = tl.zeros((BLOCK,), tl.float32)  # the positive's z
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        columns = start + tl.arange(0, BLOCK).to(tl.int64)
        a, b, c, _at, _bt, _ct, _sa, _sb, _sc, valid, _read = _triplets(
            gram_ptr, scale_ptr, present_ptr, ids_ptr, index_ptr, index_stride, index_last_stride,
            own, size, columns, columns < count, HAS_PRESENT, HAS_IDS, SCHEME,
        )  # fmt: skip
        z = tl.where(valid, (eigmax_excess_of(a, b, c) - positive) * inverse_tau, -float("inf"))
        highest, total = add_exponential(z, highest, total)
    loss = log_sum(highest, total)
    if HAS_PRESENT:
        loss = tl.where(takes_part(present_ptr, own, own >= 0, 3), loss, 0.0)
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
    inverse_tau = inverse_of(tau_ptr)
    grad = alpha * cotangent(grad_ptr, grad_stride, weight_ptr, totals_ptr, term, own, own >= 0, HAS_WEIGHT)
    taking_part = own >= 0
    if HAS_PRESENT:
        taking_part = takes_part(present_ptr, own, own >= 0, 3)
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
        used = valid & taking_part
        p = tl.where(used, tl.exp(z - loss), 0.0)
        slope += tl.where(used, p * z, 0.0)
        weight = grad * inverse_tau * (p - tl.where((columns == 0) & taking_part, 1.0, 0.0))
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
    """The loss of all anchors or of each, and the divisor of each term's mean."""
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
                    m, n = two_bits(LEFT, term), two_bits(RIGHT, term)
                    here = has_both(present_ptr, i, m, n, inside, MODALITIES)
                else:
                    here = takes_part(present_ptr, i, inside, MODALITIES)
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


def forward(
    source: Tensor,
    scale: Tensor,
    tau: Tensor,
    terms: Terms,
    samples: Samples,
    index: Tensor | None,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """``(loss, sums)``: 0-dim, or ``(B,)`` for ``reduction="none"``, and a buffer of :class:`Sums`, in float32.

    Args:
        source: ``(P, B, B)`` in float32, contiguous: products of rows, in the order of ``terms.pairs``; or for
            tiled blocks the rows ``(N, B, D)``.
        scale: ``(N, B)`` in float32: a cosine is a product times the scales of its rows.
        tau: 0-dim float32; a temperature that is not positive gives NaN.
        samples: masks, contiguous; ``present`` and ``ids`` decide which candidates an anchor has, as in
            `losses/masks-and-weights`.
        index: the triplets, in the layout of ``terms.scheme``.
    """
    blocks, size = len(terms.pairs), scale.shape[1]
    given, masks = samples.arguments(scale), samples.masks()
    has_weight = masks.pop("HAS_WEIGHT")
    allocate = scale.new_empty if terms.has_pairs and index is not None else scale.new_zeros
    buffer = allocate(Sums.length(blocks, size))
    sums = Sums.of(buffer, blocks, size)
    if terms.has_pairs:
        losses = pairs_triton.pair_losses(source, scale, tau, terms, samples, sums)
    else:
        losses = scale.new_zeros(blocks, size)
    if index is not None:
        _, count, strides = extent(size, index, terms.scheme)
        launch(
            _triplet_losses_kernel, lambda _: (size,), _TRIPLETS,
            source, scale, tau, *given[:2], index, sums.triplet, size, *strides, count,
            SCHEME=terms.scheme, **masks, key=("count",),
        )  # fmt: skip
    loss = scale.new_empty((size,) if reduction == "none" else ())
    launch(
        _reduce_kernel, lambda _: (1,), _LAST,
        losses, sums.triplet, given[0], given[2], loss, sums.totals, terms.alpha, size,
        BLOCKS=blocks, HAS_TRIPLETS=int(index is not None), HAS_PRESENT=masks["HAS_PRESENT"], HAS_WEIGHT=has_weight,
        MEAN=reduction == "mean", EACH=reduction == "none", LEFT=terms.left, RIGHT=terms.right, MODALITIES=len(scale),
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
    """``(gradients w.r.t. the embeddings, in their type; gradient w.r.t. tau, in float32)``.

    Args:
        grams, rows, scale, power, tau, terms, samples, index: those of the forward pass; ``grams`` is not read if
            blocks are tiled.
        sums: the buffer that :func:`forward` returned.
        grad: the cotangent of its loss, 0-dim or ``(B,)``.
    """
    is_short = rows.dtype == torch.float16  # weights are scaled into its range: the largest becomes about 2^8
    if terms.tiled:
        unit = _unit(_largest_weight(tau, terms, samples, sums, grad, rows.shape[1])) if is_short else None
        kept = Sums.of(sums, len(terms.pairs), rows.shape[1])
        by_left, slopes = pairs_triton.gradient_in_tiles(rows, scale, tau, terms, samples, kept, grad, unit)
        by_right = by_left
    else:
        dgrams, slopes = gram_gradient(grams, scale, tau, terms, samples, index, sums, grad)
        unit = _unit(dgrams.abs().amax()) if is_short else None
        left, right = rows.chunk(2)
        dgrams = (dgrams if unit is None else dgrams * unit).to(rows.dtype)
        by_left, by_right = multiply(dgrams, right), multiply(dgrams.mT, left)
    power = power if unit is None else power / unit
    return embedding_gradient(by_left, by_right, rows, scale, power, terms, normalize), slopes.sum()


def _unit(largest: Tensor) -> Tensor:
    """The power of two that scales a number to about 2^8."""
    return torch.exp2(8 - torch.frexp(largest).exponent.clamp(-100, 100).float())


def _largest_weight(tau: Tensor, terms: Terms, samples: Samples, sums: Tensor, grad: Tensor, size: int) -> Tensor:
    """A bound on every gradient w.r.t. a product: two softmaxes and the positive are each at most 1."""
    each = grad.abs() if samples.weight is None else (grad * samples.weight).abs()
    return 2 * each.amax() / Sums.of(sums, len(terms.pairs), size).totals[:-1].amin() / tau


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
    """``(gradient w.r.t. the products (P, B, B), parts of the gradient w.r.t. tau)``, float32. Triplets add theirs by
    atomics, whose order is not fixed."""
    blocks, size, _ = grams.shape
    kept = Sums.of(sums, blocks, size)
    dgrams = torch.empty_like(grams) if terms.has_pairs else torch.zeros_like(grams)
    parts = pairs_triton.slopes_of_held(blocks, size) if terms.has_pairs else 0
    slopes = scale.new_empty(parts + (0 if index is None else size))
    if terms.has_pairs:
        pairs_triton.pair_gradient(grams, scale, tau, terms, samples, kept, grad, dgrams, slopes)
    if index is not None:
        _, count, strides = extent(size, index, terms.scheme)
        launch(
            _triplet_gradient_kernel, lambda _: (size,), _TRIPLETS_BACKWARD,
            grams, scale, tau, *samples.arguments(scale), index, grad, kept.totals, kept.triplet, dgrams,
            slopes[parts:], terms.alpha, size, blocks, grad_stride_of(grad), *strides, count,
            SCHEME=terms.scheme, **samples.masks(), key=("count",), zeroed=("dgram_ptr",),
        )  # fmt: skip
    return dgrams, slopes
