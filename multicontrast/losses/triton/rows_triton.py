"""What the kernels of eq. (4) share: rows ready for products, and the gradient of the embeddings.

A row enters the products times an exact power of two, so that it neither overflows nor vanishes. The products are
scaled by the inverse lengths of their rows afterwards, so half precision needs no conversion.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from multicontrast._launch_triton import Tuning, config, launch
from multicontrast.linalg._gram3_triton import power_of_two

_ROWS = Tuning(default=config(num_warps=4, BLOCK=1024))
# Both passes round a logit before they subtract its row's largest, so the softmax of one entry is 1 at any tau.
ROUNDED: dict[str, Any] = {"enable_fp_fusion": False}


def packed(numbers: Iterable[int]) -> int:
    """Numbers from 0 to 3 as one compile-time constant, two bits each."""
    return sum(number << 2 * place for place, number in enumerate(numbers))


class Terms(NamedTuple):
    """The terms of a loss over the Gram blocks of some pairs of modalities.

    ``pairs`` are the modalities of the blocks. ``rows`` and ``columns`` are the factors of each block's loss by rows
    and by columns: 0, 0.5 or 1 (0.5 each for a symmetric pair). ``alpha`` is the factor of the triplets, 0 for none;
    their blocks are ``(0, 1), (0, 2), (1, 2)``.
    """

    pairs: tuple[tuple[int, int], ...]
    rows: tuple[float, ...]
    columns: tuple[float, ...]
    alpha: float
    scheme: str  # of the triplets: see `sampled_triton.SCHEMES`
    tiled: bool = False  # whether products are computed where they are read; for pairs only
    tf32: bool = False  # whether those products may be rounded to TF32

    @property
    def left(self) -> int:
        return packed(m for m, _ in self.pairs)

    @property
    def right(self) -> int:
        return packed(n for _, n in self.pairs)

    @property
    def slots(self) -> tuple[int, ...]:
        """The modality of each block's left and then of each block's right factor."""
        return (*(m for m, _ in self.pairs), *(n for _, n in self.pairs))

    @property
    def has_pairs(self) -> bool:
        return any(self.rows) or any(self.columns)

    def shares(self) -> dict[str, Any]:
        """The packed factors, as compile-time constants."""
        rows, columns = (packed(int(2 * factor) for factor in factors) for factors in (self.rows, self.columns))
        return {"ROW_SHARES": rows, "COLUMN_SHARES": columns}


class Samples(NamedTuple):
    """The masks of the samples: ``present`` ``(B, N)`` bool, ``ids`` ``(B,)``, ``weight`` ``(B,)``, each or None."""

    present: Tensor | None
    ids: Tensor | None
    weight: Tensor | None

    def arguments(self, like: Tensor) -> tuple[Tensor, ...]:
        """Tensors for the kernels, which do not read those that are None here."""
        return tuple(like if given is None else given for given in self)

    def masks(self) -> dict[str, Any]:
        """Which masks are given, as compile-time constants."""
        names = ("HAS_PRESENT", "HAS_IDS", "HAS_WEIGHT")
        return {name: given is not None for name, given in zip(names, self)}


class Sums(NamedTuple):
    """What the forward pass saves: the largest logit and the softmax's sum of each row and column, ``(P, B)``."""

    row_peak: Tensor
    row_sum: Tensor
    column_peak: Tensor
    column_sum: Tensor
    triplet: Tensor  # (B,), the loss of each anchor's triplets
    totals: Tensor  # (P + 1,), what the mean of each term divides by

    @staticmethod
    def length(blocks: int, size: int) -> int:
        """The length of a buffer that holds all of them."""
        return (4 * blocks + 1) * size + blocks + 1

    @classmethod
    def of(cls, buffer: Tensor, blocks: int, size: int) -> Sums:
        """Views of such a buffer."""
        *parts, triplet, totals = buffer.split([blocks * size] * 4 + [size, blocks + 1])
        first, second, third, fourth = (part.view(blocks, size) for part in parts)
        return cls(first, second, third, fourth, triplet, totals)


def grad_stride_of(grad: Tensor) -> int:
    """The stride of a cotangent that is 0-dim or ``(B,)``."""
    return grad.stride(0) if grad.dim() else 0


@triton.jit
def inverse_of(tau_ptr):
    """``1 / tau``; NaN for a temperature that is not positive."""
    tau = tl.load(tau_ptr)
    return tl.where(tau > 0, 1 / tau, float("nan"))


@triton.jit
def cotangent(grad_ptr, grad_stride, weight_ptr, totals_ptr, term, i, inside, HAS_WEIGHT: tl.constexpr):
    """The derivative of the result w.r.t. each anchor's loss of a term."""
    grad = tl.load(grad_ptr + i * grad_stride, mask=inside, other=0.0).to(tl.float32)
    if HAS_WEIGHT:
        grad *= tl.load(weight_ptr + i, mask=inside, other=0.0).to(tl.float32)
    return grad / tl.load(totals_ptr + term)


@triton.jit
def two_bits(codes, place):
    """One of the numbers that :func:`packed` encoded."""
    return (codes >> (2 * place)) & 3


@triton.jit
def share(codes, place):
    """The factor of a block's loss: 0, 1/2 or 1."""
    return 0.5 * two_bits(codes, place).to(tl.float32)


@triton.jit
def is_present(present_ptr, i, modality, mask, MODALITIES: tl.constexpr):
    return tl.load(present_ptr + i * MODALITIES + modality, mask=mask, other=0) != 0


@triton.jit
def has_both(present_ptr, i, m, n, mask, MODALITIES: tl.constexpr):
    return is_present(present_ptr, i, m, mask, MODALITIES) & is_present(present_ptr, i, n, mask, MODALITIES)


@triton.jit
def takes_part(present_ptr, i, mask, MODALITIES: tl.constexpr):
    """Whether samples have two of their modalities."""
    count = tl.zeros_like(i)
    for m in tl.static_range(MODALITIES):
        count += tl.where(is_present(present_ptr, i, m, mask, MODALITIES), 1, 0)
    return count >= 2


@triton.jit
def add_exponential(z, highest, total):
    """The largest logit of each lane and the sum of ``exp(z - largest)``, after one more logit."""
    higher = tl.maximum(highest, z)
    return higher, total * tl.exp(highest - higher) + tl.exp(z - higher)


@triton.jit
def log_sum(highest, total):
    """The logarithm of the sum over all lanes."""
    maximum = tl.max(highest, 0)
    return maximum + tl.log(tl.sum(total * tl.exp(highest - maximum), 0))


# Rows -----------------------------------------------------------------------------------------------------------------


@triton.jit
def _load_row(
    x0_ptr, x1_ptr, x2_ptr, x0_row_stride, x0_stride, x1_row_stride, x1_stride, x2_row_stride, x2_stride,
    m, i, k, mask,
):  # fmt: skip
    """Columns ``k`` of row ``i`` of modality ``m``, in float32."""
    x = tl.load(x0_ptr + i * x0_row_stride + k * x0_stride, mask=mask & (m == 0), other=0.0).to(tl.float32)
    x += tl.load(x1_ptr + i * x1_row_stride + k * x1_stride, mask=mask & (m == 1), other=0.0).to(tl.float32)
    x += tl.load(x2_ptr + i * x2_row_stride + k * x2_stride, mask=mask & (m == 2), other=0.0).to(tl.float32)
    return x


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
            x = _load_row(
                x0_ptr, x1_ptr, x2_ptr, x0_row_stride, x0_stride, x1_row_stride, x1_stride, x2_row_stride, x2_stride,
                m, i, k, (k < depth) & exists,
            )  # fmt: skip
            largest = tl.maximum(largest, tl.abs(x), propagate_nan=tl.PropagateNan.ALL)
        power, _inverse = power_of_two(tl.max(largest, 0))
    else:
        power = 1.0
    square = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, depth, BLOCK):
        k = start + tl.arange(0, BLOCK).to(tl.int64)
        x = _load_row(
            x0_ptr, x1_ptr, x2_ptr, x0_row_stride, x0_stride, x1_row_stride, x1_stride, x2_row_stride, x2_stride,
            m, i, k, (k < depth) & exists,
        )  # fmt: skip
        x *= power
        square += x * x
        for slot in tl.static_range(SLOT_COUNT):
            if two_bits(SLOTS, slot) == m:
                place = rows_ptr + (slot * size + i) * depth + k
                tl.store(place, x.to(rows_ptr.dtype.element_ty), mask=k < depth)
    length = tl.sum(square, 0)
    scale = tl.rsqrt(length)
    scale *= 1.5 - 0.5 * length * scale * scale  # the device's rsqrt has an error of two eps
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
    """Sums the products' gradients of a row, removes the part along the row and undoes its scale."""
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
        # An absent row's gradient is 0, even where its entries are NaN.
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
        is_left, is_right = two_bits(LEFT, place) == m, two_bits(RIGHT, place) == m
        raw += tl.load(left_ptr + offsets, mask=(k < depth) & is_left, other=0.0)
        raw += tl.load(right_ptr + offsets, mask=(k < depth) & is_right, other=0.0)
        x += tl.load(rows_ptr + offsets, mask=(k < depth) & is_left & (found == 0), other=0.0).to(tl.float32)
        found = found | is_left
        beyond = BLOCKS * size * depth
        x += tl.load(rows_ptr + beyond + offsets, mask=(k < depth) & is_right & (found == 0), other=0.0).to(tl.float32)
        found = found | is_right
    return x, raw


def _three(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Arguments for three modalities; the kernels do not read those beyond the number of modalities."""
    return [*tensors, *[tensors[0]] * (3 - len(tensors))]


def prepare(
    embeddings: Sequence[Tensor], present: Tensor | None, terms: Terms, normalize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``(rows, scale, power)``: the factors of the products, their inverse lengths, and the powers of two in them.

    Args:
        embeddings: two or three ``(B, D)`` of one floating type up to 32 bits, any strides.
        present: bool ``(B, N)``, contiguous; absent rows become zero, even if they hold NaN.
        normalize: pass False only for rows of length 1.

    Returns:
        rows in the embeddings' type, ``(2 P, B, D)``, the left factors of the blocks and then the right ones, or
        ``(N, B, D)`` if blocks are tiled, and ``(N, B)`` twice in float32. A product of scaled rows neither overflows
        nor vanishes, at any finite scale.
    """
    first = embeddings[0]
    size, depth = first.shape
    slots = range(len(embeddings)) if terms.tiled else terms.slots
    rows = first.new_empty(len(slots), size, depth)
    scale, power = (first.new_empty(len(embeddings), size, dtype=torch.float32) for _ in range(2))
    strides = [stride for x in _three(embeddings) for stride in x.stride()]
    launch(
        _prepare_kernel, lambda _: (len(embeddings) * size,), _ROWS,
        *_three(embeddings), first if present is None else present, rows, scale, power, *strides, size, depth,
        MODALITIES=len(embeddings), SLOTS=packed(slots), SLOT_COUNT=len(slots),
        NORMALIZE=normalize, HAS_PRESENT=present is not None,
    )  # fmt: skip
    return rows, scale, power


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """A batched product in float32 of factors of one type. Where PyTorch can (on a GPU, since 2.8), tensor cores
    multiply 16-bit factors without conversion; float32 follows PyTorch's setting for TF32."""
    if left.dtype == torch.float32:
        return torch.bmm(left, right)
    if left.is_cuda and _HAS_WIDE_OUTPUT:
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left.float(), right.float())


_HAS_WIDE_OUTPUT = hasattr(torch.ops.aten.bmm, "dtype")


def products(rows: Tensor) -> Tensor:
    """The Gram blocks ``(P, B, B)``, in float32, of the rows of :func:`prepare`."""
    left, right = rows.chunk(2)
    return multiply(left, right.mT)


# Tiled blocks give one gradient for each modality. It is read as the left factor of a block that has no right factor.
_EACH, _NONE = 0b100100, 0b111111


def embedding_gradient(
    by_left: Tensor, by_right: Tensor, rows: Tensor, scale: Tensor, power: Tensor, terms: Terms, normalize: bool
) -> list[Tensor]:
    """Gradients ``(B, D)`` of the embeddings, in their type.

    Args:
        by_left, by_right: ``(P, B, D)`` in float32: the blocks' gradients times their right and left factors. If
            blocks are tiled, both are the gradients w.r.t. the rows, ``(N, B, D)``.
        rows, scale, power: from :func:`prepare`.
    """
    _, size, depth = rows.shape
    results = [rows.new_empty(size, depth) for _ in range(len(scale))]
    launch(
        _embedding_gradient_kernel, lambda _: (len(scale) * size,), _ROWS,
        by_left, by_right, rows, scale, power, *_three(results), size, depth,
        LEFT=_EACH if terms.tiled else terms.left, RIGHT=_NONE if terms.tiled else terms.right,
        BLOCKS=len(by_left), NORMALIZE=normalize,
    )  # fmt: skip
    return results
