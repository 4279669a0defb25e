r"""Cyclic Jacobi as a Triton kernel: all eigenpairs of small symmetric matrices, N = 2..8, a matrix for each thread.

A rotation by :math:`\tan\theta = t`, the smaller root of :math:`t^2 + t (a_{qq} - a_{pp}) / a_{pq} = 1`, makes
:math:`a_{pq}` zero; a sweep visits all entries below the diagonal, and convergence is quadratic, so the number of
sweeps is a constant of N and of the type. The matrix (its lower triangle) and the eigenvectors live in registers, each
entry a variable of its own. Triton has no arrays in registers, and tuples that grow only since 3.4, so the kernel of
each N is written by :func:`_source`.

The order is that of a round-robin: a round rotates the pairs of rows ``(0, 1), (2, 3), ...``, then all rows but one
move one place on, and after N - 1 rounds (N for odd N, where one row has no partner) every pair has been rotated once.
So the code is one round, in a loop. Sweeps and errors: ``docs/math/symmetric-eigenproblems.md``.
"""

from __future__ import annotations

import functools
import linecache
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from multicontrast._launch_triton import Tuning, config, launch
from multicontrast.linalg._gram3_triton import power_of_two  # noqa: F401, for the generated source
from multicontrast.linalg._jacobi_torch import SWEEPS
from multicontrast.linalg._symmetric3_triton import inverse_root, reciprocal

_SWEEPS = SWEEPS | {torch.float32: SWEEPS[torch.float32] | {4: 4}}  # in this order 4 x 4 needs one sweep fewer

_TUNING = Tuning(
    default=config(num_warps=2, BLOCK=64),
    candidates=[config(num_warps=w, BLOCK=32 * w) for w in (1, 2, 4)],
)


@triton.jit
def _angle(app, aqq, apq):
    """``(t, cos, sin)`` of the rotation that makes ``apq`` zero; none if ``apq`` and ``aqq - app`` are negligible."""
    gap = aqq - app
    twice = 2 * apq
    divisor = tl.abs(gap) + tl.sqrt(gap * gap + twice * twice)
    null = divisor < 1.0842021724855044e-19  # 2^-63; entries are of about 1
    t = tl.where(null, 0.0, twice * reciprocal(tl.where(null, 1.0, divisor)))
    t = tl.where(gap < 0, -t, t)
    cos = inverse_root(1 + t * t)
    return t, cos, t * cos


def _source(n: int, columns: int) -> Iterator[str]:
    """The lines of the kernel for ``n`` rows, of which a lane turns ``columns`` columns of the eigenvectors.

    ``a{i}{j}`` is entry ``(i, j)``, i >= j, and ``v{i}{k}`` the k-th of the lane's columns in row i.
    """
    parts = triton.cdiv(n, columns)
    triangle = [f"a{i}{j}" for i in range(n) for j in range(i + 1)]
    vectors = [f"v{i}{k}" for i in range(n) for k in range(columns)]
    yield f"def _jacobi_{n}_{columns}_kernel("
    yield "    matrix_ptr, values_ptr, vectors_ptr, stride, row_stride, column_stride, count,"
    yield "    ROUNDS: tl.constexpr, BLOCK: tl.constexpr,"
    yield "):"
    yield "    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,)"
    yield f"    matrix = lane // {parts}"
    yield f"    first = (lane % {parts}) * {columns}  # the columns of the eigenvectors that this lane turns"
    yield "    inside = matrix < count"
    yield "    matrix_ptr += matrix * stride"
    yield "    largest = tl.abs(tl.load(matrix_ptr, mask=inside, other=0.0))"
    for a in triangle:
        place = f"matrix_ptr + {a[1]} * row_stride + {a[2]} * column_stride"
        yield f"    {a} = tl.load({place}, mask=inside, other=0.0)"
        yield f"    largest = tl.maximum(largest, tl.abs({a}), propagate_nan=tl.PropagateNan.ALL)"
    yield "    poison = largest * 0"
    yield "    power, inverse = power_of_two(largest)"
    yield from (f"    {a} = {a} * power" for a in triangle)
    for v in vectors:
        yield f"    {v} = tl.where(first + {v[2]} == {v[1]}, 1.0, 0.0).to(largest.dtype)"
    yield "    for _ in range(ROUNDS):"
    for p in range(n % 2, n - 1, 2):  # for odd N the first rests
        q = p + 1
        yield f"        t, cos, sin = _angle(a{p}{p}, a{q}{q}, a{q}{p})"
        yield f"        a{p}{p} = a{p}{p} - t * a{q}{p}"
        yield f"        a{q}{q} = a{q}{q} + t * a{q}{p}"
        yield f"        a{q}{p} = tl.zeros_like(a{q}{p})"
        turned = [(f"a{max(k, p)}{min(k, p)}", f"a{max(k, q)}{min(k, q)}") for k in range(n) if k not in (p, q)]
        for left, right in (*turned, *((f"v{p}{k}", f"v{q}{k}") for k in range(columns))):
            yield f"        turned = cos * {left} - sin * {right}"
            yield f"        {right} = sin * {left} + cos * {right}"
            yield f"        {left} = turned"
    places = _places(n)
    sources = [f"a{max(places[i], places[j])}{min(places[i], places[j])}" for i in range(n) for j in range(i + 1)]
    sources += [f"v{places[i]}{k}" for i in range(n) for k in range(columns)]
    yield from (f"        n{source} = {source}" for source in sources)
    yield from (f"        {name} = n{source}" for name, source in zip((*triangle, *vectors), sources))
    # Each rotation adds rounding to the lengths; their squares are 1 + e, and 1 - e / 2 mends that.
    for i in range(n):
        yield "    square = tl.zeros_like(largest)"
        for k in range(columns):
            yield f"    square += tl.where(first + {k} < {n}, v{i}{k} * v{i}{k}, 0.0)"
        if parts > 1:
            yield f"    square = tl.sum(tl.reshape(square, (BLOCK // {parts}, {parts})), 1, keep_dims=True)"
            yield f"    square = tl.reshape(tl.broadcast_to(square, (BLOCK // {parts}, {parts})), (BLOCK,))"
        yield "    scale = 1.5 - 0.5 * square + poison"
        yield f"    tl.store(values_ptr + matrix * {n} + {i}, a{i}{i} * inverse + poison, mask=inside & (first == 0))"
        for k in range(columns):  # eigenvectors are columns for the caller
            place = f"vectors_ptr + matrix * {n * n} + (first + {k}) * {n} + {i}"
            yield f"    tl.store({place}, v{i}{k} * scale, mask=inside & (first + {k} < {n}))"


@functools.cache
def _kernel(n: int, columns: int) -> Any:
    """The compiled lines. Triton reads a kernel's source, so ``linecache`` gets it under a made-up file name."""
    name, lines = f"<jacobi {n}x{n}, {columns} columns>", [f"{line}\n" for line in _source(n, columns)]
    text = "".join(lines)
    linecache.cache[name] = (len(text), None, lines, name)
    namespace = dict(globals())
    exec(compile(text, name, "exec"), namespace)  # noqa: S102, text of our own
    return triton.jit(namespace[f"_jacobi_{n}_{columns}_kernel"])


def rounds(n: int, dtype: torch.dtype) -> int:
    """The number of rounds: N - 1 a sweep, N for odd N."""
    return _SWEEPS[dtype][n] * (n - 1 + n % 2)


@functools.cache
def _places(n: int) -> tuple[int, ...]:
    """For each place, the place its next row comes from: all rows but the first of an even number move one place on."""
    rows = n + n % 2  # with an odd number, a dummy in the first place leaves its neighbour without a partner
    source = [0] * rows
    for place in range(1, rows):
        if place % 2:
            source[place] = rows - 2 if place == rows - 1 else place + 2
        else:
            source[place] = 1 if place == 2 else place - 2
    if rows == 2:
        source = [0, 1]
    return tuple(place - n % 2 for place in source[n % 2 :])


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
        launch(
            _kernel(n, columns), lambda constants: (triton.cdiv(len(flat) * parts, constants["BLOCK"]),), _TUNING,
            flat, values, vectors, *flat.stride(), len(flat), ROUNDS=rounds(n, matrix.dtype),
        )  # fmt: skip
    return values, vectors
