"""Seeds by name. The draws of a step depend only on the run's seed and the step's number.

Therefore a resumed run gives the same bits, and every process and worker builds the same batch.
"""

from __future__ import annotations

import hashlib

import torch


def seed_of(*path: int | str) -> int:
    """A seed for one purpose, from the numbers and words that name it.

    Example:
        >>> seed_of(0, "noise", 7) == seed_of(0, "noise", 7)
        True
        >>> seed_of(0, "noise", 7) == seed_of(0, "noise", 8)
        False
    """
    digest = hashlib.blake2b(repr(path).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # torch takes signed 64-bit seeds


def generator_of(*path: int | str) -> torch.Generator:
    """A generator on the CPU, for one purpose."""
    return torch.Generator().manual_seed(seed_of(*path))
