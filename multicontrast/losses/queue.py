"""A memory queue of the last embeddings, for extra negatives."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from multicontrast._backend import refuse_capture
from multicontrast._checks import check_count, check_floating, describe, three_beats

__all__ = ["MemoryQueue"]


class MemoryQueue(nn.Module):
    """The embeddings of the last samples, to pass as ``extra_negatives=``: more negatives than the batch has.

    The embeddings have no gradient, and a longer queue holds older ones, so the encoders that fill it should change
    slowly (MoCo fills it from a moving average of the encoder; XBM starts once the embeddings change slowly). The rows
    are buffers: they are moved, saved and loaded with the module. Each process has its own queue: keep it out of
    ``DistributedDataParallel``, which would overwrite it with rank 0's.

    Args:
        size: number of samples to remember.
        dim: dimension of the embeddings.
        num_modalities: number of modalities, N.

    Raises:
        TypeError, ValueError: for sizes that are not positive whole numbers, or embeddings of the wrong shape or type.

    References:
        He et al., Momentum Contrast, CVPR 2020; Wang et al., Cross-Batch Memory, CVPR 2020.

    Example:
        >>> import torch
        >>> from multicontrast import PairwiseInfoNCE
        >>> criterion, queue = PairwiseInfoNCE(0.1), MemoryQueue(size=6, dim=8)
        >>> for _ in range(3):
        ...     x, y = torch.randn(2, 4, 8)
        ...     loss = criterion(x, y, extra_negatives=queue())
        ...     queue.push([x, y])
        >>> len(queue), queue()[0].shape
        (6, torch.Size([6, 8]))
    """

    rows: Tensor
    pushed: Tensor

    def __init__(self, size: int, dim: int, num_modalities: int = 2) -> None:
        super().__init__()
        size = check_count("MemoryQueue", "size", size, 1)
        dim = check_count("MemoryQueue", "dim", dim, 1)
        num_modalities = check_count("MemoryQueue", "num_modalities", num_modalities, 2)
        if size * dim * num_modalities > 2**36:
            needed = "`MemoryQueue` needs to hold at most 2^36 numbers, a quarter of a terabyte"
            came = f"{describe(size * dim * num_modalities)} = num_modalities * size * dim"
            raise ValueError(three_beats(needed, came, "Remember fewer samples."))
        self.register_buffer("rows", torch.zeros(num_modalities, size, dim))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))
        self._pushed = 0  # a copy on the host: reading it does not wait for a device
        self.register_load_state_dict_post_hook(_read_number)

    def __len__(self) -> int:
        """The number of samples in the queue."""
        return min(self._pushed, self.rows.shape[1])

    def forward(self) -> list[Tensor]:
        """The samples in the queue, one tensor ``(E, D)`` for each modality."""
        if len(self) < self.rows.shape[1]:
            needed = "A `MemoryQueue` that is read in a CUDA graph needs to be full: its length is captured"
            came = f"{len(self)} of {self.rows.shape[1]} samples"
            refuse_capture(self.rows.device, needed, came, "Push until `len(queue)` is its size, then capture.")
        return [rows[: len(self)].clone() for rows in self.rows]  # the next push must not change tensors in a graph

    @torch.no_grad()
    def push(self, embeddings: Sequence[Tensor]) -> None:
        """Replace the oldest samples by those of a batch, ``(B, D)`` for each modality."""
        needed = "`MemoryQueue.push` needs to run in Python, which counts the samples"
        refuse_capture(self.rows.device, needed, "a CUDA graph's capture", "Push after each replay, outside the graph.")
        count, size, dim = self.rows.shape
        remedy = "Push one tensor for each modality, with rows of the same samples."
        if isinstance(embeddings, Tensor) or not isinstance(embeddings, Sequence):
            raise TypeError(
                three_beats("`MemoryQueue.push` needs a list or tuple of embeddings", describe(embeddings), remedy)
            )
        if len(embeddings) != count:
            raise ValueError(
                three_beats(f"`MemoryQueue.push` needs {count} modalities", f"{len(embeddings)} tensors", remedy)
            )
        for m, x in enumerate(embeddings):
            check_floating("MemoryQueue.push", f"embeddings[{m}]", x)
            if x.ndim != 2 or x.shape != (len(embeddings[0]), dim):
                number = len(embeddings[0]) if embeddings[0].ndim else "B"
                needed = f"`MemoryQueue.push` needs `embeddings[{m}]` of shape ({number}, {dim})"
                raise ValueError(three_beats(needed, describe(x), remedy))
            if x.is_meta and not self.rows.is_meta:
                needed = f"`MemoryQueue.push` needs `embeddings[{m}]` that hold numbers"
                raise ValueError(three_beats(needed, describe(x), "Push tensors of the device that computes."))
        number = len(embeddings[0])
        kept = min(number, size)
        places = torch.arange(self._pushed + number - kept, self._pushed + number, device=self.rows.device) % size
        for rows, x in zip(self.rows, embeddings):
            rows[places] = x[number - kept :].to(rows)
        self._pushed += number
        self.pushed.fill_(self._pushed)

    def clear(self) -> None:
        """Remove all samples."""
        self._pushed = 0
        self.pushed.zero_()

    def extra_repr(self) -> str:
        count, size, dim = self.rows.shape
        return f"size={size}, dim={dim}, num_modalities={count}"


def _read_number(queue: MemoryQueue, _: Any) -> None:
    queue._pushed = int(queue.pushed)
