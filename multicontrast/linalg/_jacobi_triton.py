r"""Cyclic Jacobi as a Triton kernel: all eigenpairs of small symmetric matrices, N = 2..8, a matrix for each thread.

A rotation by :math:`\tan\theta = t`, the smaller root of :math:`t^2 + t (a_{qq} - a_{pp}) / a_{pq} = 1`, makes
:math:`a_{pq}` zero; a sweep visits all entries below the diagonal, and convergence is quadratic, so the number of
sweeps is a constant of N and of the type. The matrix (its lower triangle) and the eigenvectors live in registers, as
tuples of N (N + 1) / 2 and N^2 values.

The order is a tournament's: neighbours ``(0, 1), (2, 3), ...`` meet, then all but one move a seat on, and after N - 1
rounds (N for odd N, where one rests) everybody has met everybody. So the code is one round, in a loop. Sweeps and
errors: ``docs/math/symmetric-eigenproblems.md``.
"""
# A kernel's tuples grow, and know no stars.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment"

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from multicontrast._launch_triton import Tuning, config, launch
from multicontrast.linalg._gram3_triton import power_of_two
from multicontrast.linalg._symmetric3_triton import inverse_root, reciprocal

# Sweeps after which neither value nor vector gets better, and one to spare in float64.
_SWEEPS = {
    torch.float32: {2: 1, 3: 4, 4: 4, 5: 5, 6: 6, 7: 6, 8: 6},
    torch.float64: {2: 1, 3: 5, 4: 6, 5: 7, 6: 7, 7: 7, 8: 7},
}

_TUNING = Tuning(
    default=config(num_warps=2, BLOCK=64),
    candidates=[config(num_warps=w, BLOCK=32 * w) for w in (1, 2, 4)],
)


@triton.jit
def _angle(app, aqq, apq):
    """``(t, cos, sin)`` of the rotation that makes ``apq`` zero; none where it is zero, or vanishes beside the rest."""
    gap = aqq - app
    twice = 2 * apq
    divisor = tl.abs(gap) + tl.sqrt(gap * gap + twice * twice)
    null = divisor < 1.0842021724855044e-19  # 2^-63; entries are of about 1
    t = tl.where(null, 0.0, twice * reciprocal(tl.where(null, 1.0, divisor)))
    t = tl.where(gap < 0, -t, t)
    cos = inverse_root(1 + t * t)
    return t, cos, t * cos


@triton.jit
def _rotate(triangle, P: tl.constexpr, t, cos, sin, N: tl.constexpr):
    """The lower triangle after the rotation of ``p`` and ``q = p + 1`` from both sides."""
    Q: tl.constexpr = P + 1
    apq = triangle[Q * (Q + 1) // 2 + P]
    rotated = ()
    for i in tl.static_range(N):
        for j in tl.static_range(i + 1):
            value = triangle[i * (i + 1) // 2 + j]
            if i == P and j == P:
                value = value - t * apq
            elif i == Q and j == Q:
                value = value + t * apq
            elif i == Q and j == P:
                value = tl.zeros_like(apq)
            elif i == P:
                value = cos * value - sin * triangle[Q * (Q + 1) // 2 + j]
            elif i == Q:
                value = sin * triangle[P * (P + 1) // 2 + j] + cos * value
            elif j == P:
                value = cos * value - sin * triangle[i * (i + 1) // 2 + Q]
            elif j == Q:
                value = sin * triangle[i * (i + 1) // 2 + P] + cos * value
            rotated = rotated + (value,)
    return rotated


@triton.jit
def _rotate_vectors(vectors, P: tl.constexpr, cos, sin, N: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows ``p`` and ``p + 1`` of the eigenvectors after the rotation."""
    rotated = ()
    for k in tl.static_range(N * COLUMNS):
        value = vectors[k]
        if k // COLUMNS == P:
            value = cos * value - sin * vectors[k + COLUMNS]
        elif k // COLUMNS == P + 1:
            value = sin * vectors[k - COLUMNS] + cos * value
        rotated = rotated + (value,)
    return rotated


@triton.jit
def _reorder(values, ORDER: tl.constexpr, COUNT: tl.constexpr):
    """``values[ORDER[0]], values[ORDER[1]], ...``"""
    reordered = ()
    for k in tl.static_range(COUNT):
        reordered = reordered + (values[ORDER[k]],)
    return reordered


@triton.jit
def _jacobi_kernel(
    matrix_ptr, values_ptr, vectors_ptr, stride, row_stride, column_stride, count,
    N: tl.constexpr, COLUMNS: tl.constexpr, ROUNDS: tl.constexpr,
    TRIANGLE_ORDER: tl.constexpr, VECTOR_ORDER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,)
    parts: tl.constexpr = (N + COLUMNS - 1) // COLUMNS
    matrix = lane // parts
    first = (lane % parts) * COLUMNS  # the columns of the eigenvectors that this lane turns
    inside = matrix < count
    matrix_ptr += matrix * stride
    largest = tl.abs(tl.load(matrix_ptr, mask=inside, other=0.0))
    raw = ()
    for i in tl.static_range(N):
        for j in tl.static_range(i + 1):
            value = tl.load(matrix_ptr + i * row_stride + j * column_stride, mask=inside, other=0.0)
            largest = tl.maximum(largest, tl.abs(value), propagate_nan=tl.PropagateNan.ALL)
            raw = raw + (value,)
    poison = largest * 0
    power, inverse = power_of_two(largest)
    triangle = ()
    for k in tl.static_range(N * (N + 1) // 2):
        triangle = triangle + (raw[k] * power,)
    vectors = ()
    for k in tl.static_range(N * COLUMNS):
        vectors = vectors + (tl.where(first + k % COLUMNS == k // COLUMNS, 1.0, 0.0).to(largest.dtype),)

    for _ in range(ROUNDS):
        for p in tl.static_range(N % 2, N - 1, 2):  # for odd N the first rests
            t, cos, sin = _angle(
                triangle[p * (p + 1) // 2 + p],
                triangle[(p + 1) * (p + 2) // 2 + p + 1],
                triangle[(p + 1) * (p + 2) // 2 + p],
            )
            triangle = _rotate(triangle, p, t, cos, sin, N)
            vectors = _rotate_vectors(vectors, p, cos, sin, N, COLUMNS)
        triangle = _reorder(triangle, TRIANGLE_ORDER, N * (N + 1) // 2)
        vectors = _reorder(vectors, VECTOR_ORDER, N * COLUMNS)

    # Each rotation adds rounding to the lengths; their squares are 1 + e, and 1 - e / 2 mends that.
    scales = ()
    for i in tl.static_range(N):
        square = tl.zeros_like(largest)
        for j in tl.static_range(COLUMNS):
            square += tl.where(first + j < N, vectors[i * COLUMNS + j] * vectors[i * COLUMNS + j], 0.0)
        if parts > 1:
            square = tl.sum(tl.reshape(square, (BLOCK // parts, parts)), 1, keep_dims=True)
            square = tl.reshape(tl.broadcast_to(square, (BLOCK // parts, parts)), (BLOCK,))
        scales = scales + (1.5 - 0.5 * square + poison,)
    for i in tl.static_range(N):
        value = triangle[i * (i + 1) // 2 + i] * inverse + poison
        tl.store(values_ptr + matrix * N + i, value, mask=inside & (first == 0))
    for k in tl.static_range(N * COLUMNS):
        column = first + k % COLUMNS
        offsets = matrix * (N * N) + column * N + k // COLUMNS  # eigenvectors are columns for the caller
        tl.store(vectors_ptr + offsets, vectors[k] * scales[k // COLUMNS], mask=inside & (column < N))


def rounds(n: int, dtype: torch.dtype) -> int:
    """How many rounds of the tournament are played: N - 1 a sweep, N for odd N."""
    return _SWEEPS[dtype][n] * (n - 1 + n % 2)


@functools.cache
def _seats(n: int) -> tuple[int, ...]:
    """Where the player of each seat comes from: all but the first of an even number move one seat on."""
    players = n + n % 2  # with an odd number, a dummy in the first seat makes its neighbour rest
    source = [0] * players
    for seat in range(1, players):
        if seat % 2:
            source[seat] = players - 2 if seat == players - 1 else seat + 2
        else:
            source[seat] = 1 if seat == 2 else seat - 2
    if players == 2:
        source = [0, 1]
    return tuple(seat - n % 2 for seat in source[n % 2 :])


@functools.cache
def _orders(n: int, columns: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The same as sources of the entries of the lower triangle, and of some columns of the eigenvectors, by rows."""
    seats = _seats(n)
    pairs = [(max(seats[i], seats[j]), min(seats[i], seats[j])) for i in range(n) for j in range(i + 1)]
    triangle = tuple(i * (i + 1) // 2 + j for i, j in pairs)
    return triangle, tuple(seats[i] * columns + j for i in range(n) for j in range(columns))


def jacobi(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``(..., N)``, in no order, and eigenvectors, the columns of ``(..., N, N)``, of matrices.

    Args:
        matrix: ``(..., N, N)``, N = 2..8, float32 or float64, any strides and any scale; the lower triangle is read.

    NaN or infinity in a matrix's lower triangle makes all its results NaN.
    """
    n = matrix.shape[-1]
    flat = matrix.reshape(-1, n, n)
    values = torch.empty(matrix.shape[:-1], dtype=matrix.dtype, device=matrix.device)
    vectors = torch.empty(matrix.shape, dtype=matrix.dtype, device=matrix.device)
    if len(flat):
        # The eigenvectors of a large float64 matrix would not fit into one lane's registers: two share them.
        parts = 2 if matrix.dtype == torch.float64 and n > 6 else 1
        columns = triton.cdiv(n, parts)
        triangle, rows = _orders(n, columns)
        launch(
            _jacobi_kernel, lambda constants: (triton.cdiv(len(flat) * parts, constants["BLOCK"]),), _TUNING,
            flat, values, vectors, *flat.stride(), len(flat),
            N=n, COLUMNS=columns, ROUNDS=rounds(n, matrix.dtype),
            TRIANGLE_ORDER=triangle, VECTOR_ORDER=rows,
        )  # fmt: skip
    return values, vectors
