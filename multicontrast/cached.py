"""One training step whose encoders see the batch in chunks and whose loss sees it whole.

Contrastive losses want large batches, and what fills the memory is the encoders' activations. Gradient accumulation
does not help: the candidates would be those of a chunk. The loss depends on the encoders through the embeddings alone,
so its gradient by them is all that the encoders' backward pass needs (Gao et al., arXiv 2101.06983):

1. encode chunk by chunk without a graph, noting the state of the random numbers before each chunk,
2. the loss of all embeddings, and its gradient by them,
3. encode each chunk again, from the same random state, and send its rows of that gradient back through it.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

from multicontrast._checks import describe, three_beats

__all__ = ["cached_step"]

Encoder = Callable[[Any], Any]


def cached_step(
    encoders: Encoder | Sequence[Encoder],
    inputs: Any,
    loss: Callable[..., Tensor],
    *,
    chunk_size: int,
    scaler: torch.amp.GradScaler | None = None,
) -> Tensor:
    r"""Forward and backward pass of a large batch in the memory of a chunk; ``.grad`` is that of the plain step.

    In place of ``loss(*(encoder(x) for encoder, x in zip(encoders, inputs))).backward()``. It costs one more forward
    pass of the encoders. The gradients are added to ``.grad``; the optimizer's step is the caller's.

    An encoder is wrapped in DistributedDataParallel or not: all its backward passes but the last are ``no_sync``, so
    that its gradients are averaged once. The loss may gather over the ranks. Under ``fully_shard`` every forward pass
    is a collective, so all ranks need equally many chunks.

    Args:
        encoders: one for each element of ``inputs``, or a single callable. Each maps ``(b, ...)`` to ``(b, D)``, or to
            a tuple of such embeddings; one encoder may stand for several inputs.
        inputs: for each encoder a tensor, or a tuple, list or dict of tensors, of as many rows, whose first axis is cut
            into chunks. For a single callable, its input itself.
        loss: called with all embeddings as arguments, in the order of the encoders; returns a 0-dim tensor. Its own
            parameters, such as a temperature, get their gradients as usual.
        chunk_size: the rows that an encoder sees at a time.
        scaler: multiplies the loss by its scale, as ``scaler.scale(loss).backward()`` does.

    Returns:
        The loss, detached and unscaled.

    Raises:
        ValueError, TypeError: for arguments that do not fit; before any work. For a loss that is not 0-dim, after the
            first pass.

    Warns:
        UserWarning: for BatchNorm in training mode, which sees chunks where the plain step sees the batch, and counts
            each twice.

    Example:
        >>> import torch, multicontrast as mc
        >>> image_encoder, pose_encoder = torch.nn.Linear(12, 4), torch.nn.Linear(6, 4)
        >>> criterion = mc.PairwiseInfoNCE(0.07)
        >>> batch = torch.randn(64, 12), torch.randn(64, 6)
        >>> value = cached_step([image_encoder, pose_encoder], batch, criterion, chunk_size=16)
        >>> image_encoder.weight.grad.shape, value.requires_grad
        (torch.Size([4, 12]), False)
    """
    listed, batches = _checked(encoders, inputs, chunk_size)
    for encoder in listed:
        _warn_of_batch_norm(encoder)
    chunks = [
        _Chunk(encoder, batch, start, stop)
        for encoder, batch in zip(listed, batches)
        for start, stop in _bounds(_rows(batch), chunk_size)
    ]
    for chunk in chunks:
        chunk.encode_without_graph()
    leaves = [
        [torch.cat(parts).requires_grad_() for parts in zip(*(c.embeddings for c in chunks if c.place == place))]
        for place in _mark(chunks, batches)
    ]
    value = loss(*(leaf for group in leaves for leaf in group))
    if not isinstance(value, Tensor) or value.ndim != 0:
        raise ValueError(
            three_beats("`cached_step` needs a loss that is a 0-dim tensor", describe(value), "Reduce it to a number.")
        )
    (value if scaler is None else scaler.scale(value)).backward()
    last = {id(chunk.encoder): chunk for chunk in chunks}
    for chunk in chunks:
        grads = [None if leaf.grad is None else leaf.grad[chunk.start : chunk.stop] for leaf in leaves[chunk.place]]
        chunk.encode_again(grads, synchronise=chunk is last[id(chunk.encoder)])
    return value.detach()


@dataclass
class _Chunk:
    """Some rows of one encoder's input, and what the first pass leaves of them."""

    encoder: Encoder
    batch: Any
    start: int
    stop: int
    place: int = 0  # of the encoder among the encoders

    def encode_without_graph(self) -> None:
        rows = _cut(self.batch, self.start, self.stop)
        self._random = _RandomState(rows)
        with torch.no_grad(), _quiet(self.encoder):
            self.embeddings = _as_embeddings(self.encoder(rows), self.stop - self.start)

    def encode_again(self, grads: list[Tensor | None], synchronise: bool) -> None:
        rows = _cut(self.batch, self.start, self.stop)
        with contextlib.nullcontext() if synchronise else _quiet(self.encoder):
            with self._random.restored():
                embeddings = _as_embeddings(self.encoder(rows), self.stop - self.start)
            pairs = [(x, g) for x, g in zip(embeddings, grads) if g is not None and x.requires_grad]
            if pairs:
                torch.autograd.backward([x for x, _ in pairs], [g for _, g in pairs])


class _RandomState:
    """The state of the random numbers on the CPU and on the devices of some tensors."""

    def __init__(self, batch: Any) -> None:
        self.cpu = torch.get_rng_state()
        self.devices, self.states = get_device_states(*_tensors(batch))

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """That state inside, the present one again afterwards."""
        device_type = torch.accelerator.current_accelerator() if self.devices else None
        options = {} if device_type is None else {"device_type": device_type.type}
        with torch.random.fork_rng(devices=self.devices, **options):
            torch.set_rng_state(self.cpu)
            if self.devices:
                set_device_states(self.devices, self.states, **options)
            yield


def _quiet(encoder: Encoder) -> contextlib.AbstractContextManager[Any]:
    """No communication between ranks for the gradients of this module."""
    no_sync = getattr(encoder, "no_sync", None)
    return contextlib.nullcontext() if no_sync is None else no_sync()


def _mark(chunks: list[_Chunk], batches: list[Any]) -> range:
    """Number the chunks by their encoder's place among the encoders."""
    place = -1
    for chunk in chunks:
        place += chunk.start == 0
        chunk.place = place
    return range(len(batches))


def _bounds(rows: int, size: int) -> Iterator[tuple[int, int]]:
    """Bounds of the chunks; an empty batch has one, empty, for the sake of the other ranks."""
    for start in range(0, max(rows, 1), size):
        yield start, min(start + size, rows)


# --- Inputs: a tensor, or tensors in tuples, lists and dicts ------------------------------------------------------


def _cut(batch: Any, start: int, stop: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[start:stop]
    if isinstance(batch, Mapping):
        return {name: _cut(part, start, stop) for name, part in batch.items()}
    return type(batch)(_cut(part, start, stop) for part in batch)


def _tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    parts = batch.values() if isinstance(batch, Mapping) else batch
    return [tensor for part in parts for tensor in _tensors(part)]


def _rows(batch: Any) -> int:
    return len(_tensors(batch)[0])


def _as_embeddings(output: Any, rows: int) -> list[Tensor]:
    listed = list(output) if isinstance(output, (tuple, list)) else [output]
    for x in listed:
        if not isinstance(x, Tensor) or x.ndim < 1 or len(x) != rows:
            raise ValueError(
                three_beats(
                    f"`cached_step` needs encoders that return embeddings ({rows}, D) for {rows} rows",
                    describe(x),
                    "Return a tensor, or a tuple of them.",
                )
            )
    return listed


def _checked(encoders: Any, inputs: Any, chunk_size: object) -> tuple[list[Encoder], list[Any]]:
    """The encoders and their inputs as lists; raises for what does not fit."""
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int):
        raise TypeError(
            three_beats("`cached_step` needs `chunk_size` to be an int", describe(chunk_size), "Pass a number of rows.")
        )
    if chunk_size < 1:
        raise ValueError(
            three_beats("`cached_step` needs `chunk_size` >= 1", str(chunk_size), "Pass a number of rows.")
        )
    if callable(encoders):
        encoders, inputs = [encoders], [inputs]
    if not isinstance(encoders, Sequence) or not all(callable(encoder) for encoder in encoders):
        raise TypeError(
            three_beats(
                "`cached_step` needs `encoders` to be callables", describe(encoders), "Pass [image_encoder, ...]."
            )
        )
    if not isinstance(inputs, (tuple, list)) or len(inputs) != len(encoders) or not encoders:
        came = f"{len(inputs)} for {len(encoders)}" if isinstance(inputs, (tuple, list)) else describe(inputs)
        raise ValueError(
            three_beats("`cached_step` needs one input for each encoder", came, "Pass a list as long as `encoders`.")
        )
    for place, batch in enumerate(inputs):
        _check_input(f"inputs[{place}]", batch)
    counts = [len(tensor) for tensor in _tensors(inputs)]
    if len(set(counts)) > 1:
        raise ValueError(
            three_beats("`cached_step` needs as many rows in every input", str(counts), "Cut them to the same samples.")
        )
    return list(encoders), list(inputs)


def _check_input(name: str, batch: Any) -> None:
    if isinstance(batch, Tensor) and batch.ndim >= 1:
        return
    parts = batch.values() if isinstance(batch, Mapping) else batch if type(batch) in (tuple, list) else ()
    if not parts:
        raise TypeError(
            three_beats(
                f"`cached_step` needs `{name}` to be a tensor (B, ...), or a tuple, list or dict of them",
                describe(batch),
                "Put everything else into the encoder.",
            )
        )
    for part in parts:
        _check_input(name, part)


def _warn_of_batch_norm(encoder: Encoder) -> None:
    if not isinstance(encoder, nn.Module):
        return
    for module in encoder.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.track_running_stats:
            warnings.warn(
                three_beats(
                    "`cached_step` needs rows that do not depend on each other",
                    "BatchNorm in training mode",
                    "It sees a chunk where the plain step sees the batch, and counts each twice: "
                    "call `.eval()` on it, or use another norm.",
                ),
                UserWarning,
                stacklevel=3,
            )
            return
