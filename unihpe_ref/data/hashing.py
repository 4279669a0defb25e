"""Random numbers that depend on the sample, not on the order of requests."""

from __future__ import annotations

import torch
from torch import Tensor


def hashed_uniform(keys: Tensor, count: int, seed: int = 0) -> Tensor:
    """``count`` numbers in [0, 1) for each key, independent of the rest of the batch.

    Args:
        keys: ``(B,)`` int64. count: numbers for each. seed: a different seed gives different numbers.
    Returns: ``(B, count)`` float32 on the device of the keys: the top 24 bits of a hash.
    Reference: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014), in wrapping int64 arithmetic.
    """
    golden = _signed(0x9E3779B97F4A7C15)
    counter = torch.arange(1, count + 1, device=keys.device) * golden
    state = _mixed(_mixed(keys + _signed(seed * 0x632BE59BD9B4E019))[:, None] + counter)
    return (_shifted(state, 40)).float() * 2.0**-24


def hashed_normal(keys: Tensor, count: int, seed: int = 0) -> Tensor:
    """As :func:`hashed_uniform`, but from the standard normal distribution, within 5.3 deviations."""
    middle = (hashed_uniform(keys, count, seed).double() + 2.0**-25) * 2 - 1
    return (torch.erfinv(middle) * 2**0.5).float()


def _mixed(state: Tensor) -> Tensor:
    state = (state ^ _shifted(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shifted(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """The int64 with the low 64 bits of ``value``."""
    value %= 1 << 64
    return value - (1 << 64) if value >= 1 << 63 else value
