"""Seeds by name. What a step draws depends on the run's seed and the step's number, not on what was drawn before it.

So a run goes on from its checkpoint as if nothing had happened, and a batch is the same whoever builds it: this
process, a worker, or each of the processes that share it.
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
    return int.from_bytes(digest, "little") >> 1  # torch takes 64 bits with a sign


def generator_of(*path: int | str) -> torch.Generator:
    """A generator on the CPU, for one purpose."""
    return torch.Generator().manual_seed(seed_of(*path))
