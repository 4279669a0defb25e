"""Buffers that are reused from block to block."""

from __future__ import annotations

import torch
from torch import Tensor


class Workspace:
    """Uninitialised buffers by name. A smaller or equal request is served from the same memory."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A contiguous buffer of that shape, with the type and device of ``like`` and arbitrary content."""
        count = 1
        for length in shape:
            count *= length
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < count:
            buffer = torch.empty(count, dtype=like.dtype, device=like.device)
            self._buffers[name] = buffer
        return buffer[:count].view(shape)
