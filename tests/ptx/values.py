"""Types and values of PTX in numpy: widths, bfloat16, flushing, directed rounding."""

from __future__ import annotations

import functools
import re

import numpy as np

WINDOW_BITS = 40  # of the address window of one buffer
UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}


class PTXFault(RuntimeError):
    pass


class PTXUnsupported(NotImplementedError):
    pass


@functools.cache
def type_info(t):
    """'.f32' -> (kind, bits)."""
    m = re.fullmatch(r"(pred)|([bsuf])(8|16|32|64|128)|(f16x2|bf16x2|f32x2|bf16|tf32)", t)
    if not m:
        raise PTXUnsupported("type " + t)
    if t == "pred":
        return "p", 1
    if m.group(4):
        return t, {"f16x2": 32, "bf16x2": 32, "f32x2": 64, "bf16": 16, "tf32": 32}[t]
    return m.group(2), int(m.group(3))


def numpy_type(t):
    k, b = type_info(t)
    if k == "f":
        return {16: np.float16, 32: np.float32, 64: np.float64}[b]
    if k in ("f16x2", "bf16x2", "bf16", "f32x2", "tf32"):
        return UNSIGNED[b]
    return SIGNED[b] if k == "s" else UNSIGNED[b]


def to_bfloat16(x):
    """float32 -> bf16 bits, round to nearest even."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    r = (u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    r = np.where(np.isnan(x), np.uint32(0x7FFF), r)
    return r.astype(np.uint16)


def from_bfloat16(u):
    return (u.astype(np.uint32) << np.uint32(16)).view(np.float32)


TINY = np.float32(1.1754944e-38)


def flush(x):
    if x.dtype == np.float32:
        return np.where(np.abs(x) < TINY, np.copysign(np.float32(0), x), x)
    return x


def round_to_float32(y, mode):
    """float64 -> float32 with PTX rounding mode."""
    f = y.astype(np.float32)
    if mode == "rn":
        return f
    b = f.astype(np.float64)
    if mode == "rz":
        fix = np.abs(b) > np.abs(y)
        return np.where(fix, np.nextafter(f, np.float32(0)), f)
    if mode == "rm":
        return np.where(b > y, np.nextafter(f, np.float32(-np.inf)), f)
    return np.where(b < y, np.nextafter(f, np.float32(np.inf)), f)
