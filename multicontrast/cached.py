"""One training step whose encoders see the batch in chunks and whose loss sees it whole.

Contrastive losses need large batches, and the encoders' activations fill the memory. Gradient accumulation does not
help, because each chunk has only its own candidates. The encoders' backward pass needs only the gradient w.r.t. the
embeddings (Gao et al., arXiv 2101.06983):

1. encode chunk by chunk without a graph, and keep the random state before each chunk,
2. compute the loss of all embeddings, and its gradient w.r.t. them,
3. encode each chunk again from the same random state, and backpropagate its rows of that gradient.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import get_device_states, set_device_states

from multicontrast._backend import refuse_capture
from multicontrast._checks import call, check_callable, check_count, check_dense, describe, three_beats
from multicontrast.losses import MultimodalInfoNCE

__all__ = ["cached_step"]

Encoder = Callable[[Any], Any]
_RandomState = tuple[Tensor, list[int], list[Tensor]]  # of the CPU; indices of accelerators; their states


def cached_step(
    encoders: Encoder | Sequence[Encoder],
    inputs: Any,
    loss: Callable[..., Tensor],
    *,
    chunk_size: int,
    scaler: torch.amp.GradScaler | None = None,
) -> Tensor:
    r"""Forward and backward pass of a large batch in the memory of a chunk; ``.grad`` is that of the plain step.

    Replaces ``loss(*(encoder(x) for encoder, x in zip(encoders, inputs))).backward()``, at the price of one more
    forward pass of the encoders. It adds to ``.grad`` and does not call the optimizer.

    An encoder may be wrapped in DistributedDataParallel: all its backward passes but the last are ``no_sync``, so that
    its gradients are averaged once. The loss may gather over the ranks. Under ``fully_shard`` every forward pass
    is a collective, so all ranks need equally many chunks.

    Args:
        encoders: one for each element of ``inputs``, or a single callable. Each maps ``(b, ...)`` to ``(b, D)``, or to
            a tuple of such embeddings; one encoder may stand for several inputs.
        inputs: for each encoder a tensor, or a tuple, namedtuple, list or mapping of tensors, of as many rows, whose
            first axis is cut into chunks (an encoder gets a mapping as a dict). For a single callable, its input.
        loss: called with all embeddings as arguments, in the order of the encoders
            (:class:`multicontrast.MultimodalInfoNCE` with the list of them); returns a 0-dim tensor. Its own
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
    chunk_size = check_count("cached_step", "chunk_size", chunk_size, 1, remedy="Pass a number of rows.")
    check_callable("cached_step", "loss", loss, "Pass a loss, such as `multicontrast.PairwiseInfoNCE(0.07)`.")
    if scaler is not None and not callable(getattr(scaler, "scale", None)):
        needed = "`cached_step` needs `scaler` to be a GradScaler or None"
        raise TypeError(three_beats(needed, describe(scaler), "Make one with `torch.amp.GradScaler()`."))
    listed, batches, rows = _checked(encoders, inputs)
    needed = "`cached_step` needs to read the state of the random numbers"
    for x in _tensors(batches):
        refuse_capture(
            x.device, needed, "a CUDA graph's capture", "Capture the loss alone, or run the step in eager mode."
        )
    _warn_of_batch_norm(listed)
    # An empty batch has one chunk, empty: the other ranks expect its collectives.
    parts = [slice(start, min(start + chunk_size, rows)) for start in range(0, max(rows, 1), chunk_size)]
    first = [_first_pass(encoder, batch, parts) for encoder, batch in zip(listed, batches)]
    embeddings = [leaf for _, leaves in first for leaf in leaves]
    wrapped = getattr(loss, "module", getattr(loss, "_orig_mod", loss))  # by DistributedDataParallel, torch.compile
    arguments = [embeddings] if isinstance(wrapped, MultimodalInfoNCE) else embeddings
    needed = f"`cached_step` calls `loss` with {len(embeddings)} embeddings"
    value = call(needed, loss, *arguments, remedy="Take one argument for each, in the order of the encoders.")
    if not isinstance(value, Tensor) or value.ndim != 0:
        raise ValueError(
            three_beats("`cached_step` needs a loss that is a 0-dim tensor", describe(value), "Reduce it to a number.")
        )
    (value if scaler is None else scaler.scale(value)).backward()
    chunks = [
        (encoder, batch, part, state, leaves)
        for encoder, batch, (states, leaves) in zip(listed, batches, first)
        for part, state in zip(parts, states)
    ]
    last = {id(encoder): number for number, (encoder, *_) in enumerate(chunks)}
    for number, (encoder, batch, part, state, leaves) in enumerate(chunks):
        with contextlib.nullcontext() if number == last[id(encoder)] else _no_sync(encoder):
            with _random_state_of(state):
                again = _encode(encoder, batch, part)
            pairs = [(x, y.grad[part]) for x, y in zip(again, leaves) if x.requires_grad and y.grad is not None]
            if pairs:
                torch.autograd.backward([x for x, _ in pairs], [grad for _, grad in pairs])
    return value.detach()


def _first_pass(encoder: Encoder, batch: Any, parts: Sequence[slice]) -> tuple[list[_RandomState], list[Tensor]]:
    """The embeddings of all chunks without a graph, and the state of the random numbers before each chunk."""
    states, found = [], []
    for part in parts:
        states.append((torch.get_rng_state(), *get_device_states(*_tensors(batch))))
        with torch.no_grad(), _no_sync(encoder):
            found.append(_encode(encoder, batch, part))
    return states, [torch.cat(column).requires_grad_() for column in zip(*found)]


def _encode(encoder: Encoder, batch: Any, part: slice) -> list[Tensor]:
    rows = part.stop - part.start
    needed = f"`cached_step` calls each encoder with {rows} rows of its input"
    remedy = "Take one argument; a `lambda` may unpack it."
    output = call(needed, encoder, _map(lambda x: x[part], batch), remedy=remedy)
    listed = list(output) if isinstance(output, (tuple, list)) else [output]
    for x in listed:
        if not isinstance(x, Tensor) or x.ndim < 1 or len(x) != rows:
            needed = f"`cached_step` needs encoders that return embeddings ({rows}, D) for {rows} rows"
            raise ValueError(three_beats(needed, describe(x), "Return a tensor, or a tuple of them."))
    return listed


@contextlib.contextmanager
def _random_state_of(state: _RandomState) -> Iterator[None]:
    """Sets that state, and restores the present one afterwards."""
    cpu, devices, states = state
    accelerator = torch.accelerator.current_accelerator() if devices else None
    options = {} if accelerator is None else {"device_type": accelerator.type}
    with torch.random.fork_rng(devices=devices, **options):
        torch.set_rng_state(cpu)
        if devices:
            set_device_states(devices, states, **options)
        yield


def _no_sync(encoder: Encoder) -> contextlib.AbstractContextManager[Any]:
    """No communication between ranks for the gradients of this module."""
    no_sync = getattr(encoder, "no_sync", None)
    return contextlib.nullcontext() if no_sync is None else no_sync()


def _map(function: Callable[[Tensor], Any], batch: Any, name: str = "inputs") -> Any:
    """``function`` of every tensor in tuples, lists and mappings; raises for anything else."""
    if isinstance(batch, Tensor):
        check_dense("cached_step", name, batch)
        if batch.ndim >= 1:
            return function(batch)
    if isinstance(batch, Mapping) and batch:
        return {key: _map(function, part, name) for key, part in batch.items()}
    if isinstance(batch, (tuple, list)) and batch:
        parts = [_map(function, part, name) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    raise TypeError(
        three_beats(
            f"`cached_step` needs `{name}` to be a tensor (B, ...), or a tuple, list or mapping of them",
            describe(batch),
            "Put everything else into the encoder.",
        )
    )


def _tensors(batch: Any, name: str = "inputs") -> list[Tensor]:
    found: list[Tensor] = []
    try:
        _map(found.append, batch, name)
    except RecursionError:
        needed = f"`cached_step` needs `{name}` to be a tensor, or a tuple, list or mapping of them"
        raise ValueError(three_beats(needed, "one within itself, or nested too deep", "Flatten it.")) from None
    return found


def _checked(encoders: Any, inputs: Any) -> tuple[list[Encoder], list[Any], int]:
    """The encoders and their inputs as lists, and the number of rows; raises if they do not fit together."""
    if not isinstance(encoders, (list, tuple, nn.ModuleList)):
        check_callable("cached_step", "encoders", encoders, "Pass [image_encoder, ...], one for each input.")
        encoders, inputs = [encoders], [inputs]
    for place, encoder in enumerate(encoders):
        check_callable("cached_step", f"encoders[{place}]", encoder, "Pass a module or a function.")
    if not isinstance(inputs, (tuple, list)) or len(inputs) != len(encoders) or not inputs:
        came = f"{len(inputs)} for {len(encoders)}" if isinstance(inputs, (tuple, list)) else describe(inputs)
        raise ValueError(
            three_beats("`cached_step` needs one input for each encoder", came, "Pass a list as long as `encoders`.")
        )
    counts = [len(x) for place, batch in enumerate(inputs) for x in _tensors(batch, f"inputs[{place}]")]
    if len(set(counts)) > 1:
        raise ValueError(
            three_beats("`cached_step` needs as many rows in every input", str(counts), "Cut them to the same samples.")
        )
    return list(encoders), list(inputs), counts[0]


def _warn_of_batch_norm(encoders: Sequence[Encoder]) -> None:
    modules = [part for encoder in encoders if isinstance(encoder, nn.Module) for part in encoder.modules()]
    if any(isinstance(m, _BatchNorm) and m.training and m.track_running_stats for m in modules):
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
