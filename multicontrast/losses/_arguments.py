"""The front door of every loss: what must hold of the arguments before any work is done."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from multicontrast._checks import (
    check_choice,
    check_floating,
    check_same_device,
    describe,
    three_beats,
    values_are_free,
)

REDUCTIONS = ("mean", "sum", "none")


def check_embeddings(
    operation: str, names: Sequence[str], embeddings: Sequence[Tensor], *, may_be_empty: bool = False
) -> None:
    """Raise unless the embeddings are ``(B, D)`` floating tensors of one shape on one device, with B, D >= 1.

    One rank of several may be empty.
    """
    for name, x in zip(names, embeddings):
        check_floating(operation, name, x)
        if x.ndim != 2:
            raise ValueError(
                three_beats(
                    f"`{operation}` needs `{name}` of shape (B, D)",
                    describe(x),
                    "Pool or flatten each sample to one vector first.",
                )
            )
    first = embeddings[0]
    for name, x in zip(names[1:], embeddings[1:]):
        if x.shape[0] != first.shape[0]:
            raise ValueError(
                three_beats(
                    f"`{operation}` pairs rows, so `{names[0]}` and `{name}` need as many rows",
                    f"{first.shape[0]} and {x.shape[0]}",
                    "Drop samples that lack a modality before the loss.",
                )
            )
        if x.shape[1] != first.shape[1]:
            raise ValueError(
                three_beats(
                    f"`{operation}` needs `{names[0]}` and `{name}` in one space",
                    f"dimensions {first.shape[1]} and {x.shape[1]}",
                    "Project both to the same dimension.",
                )
            )
    if (first.shape[0] == 0 and not may_be_empty) or first.shape[1] == 0:
        raise ValueError(
            three_beats(
                f"`{operation}` needs at least one row and one column",
                f"shape {tuple(first.shape)}",
                "Skip the loss for an empty batch.",
            )
        )
    check_same_device(operation, names, embeddings)


def check_tau(operation: str, tau: object) -> None:
    """Raise unless ``tau`` is a positive finite number or a 0-dim floating tensor (of a positive value, if free)."""
    remedy = "Temperatures divide the similarities: 0.07 is a usual value, `Temperature` learns one."
    if isinstance(tau, Tensor):
        check_floating(operation, "tau", tau)
        if tau.ndim != 0:
            raise ValueError(three_beats(f"`{operation}` needs `tau` to be a 0-dim tensor", describe(tau), remedy))
        if values_are_free(tau) and not (0 < tau.item() < math.inf):
            raise ValueError(
                three_beats(f"`{operation}` needs `tau` to be positive and finite", repr(tau.item()), remedy)
            )
        return
    if isinstance(tau, bool) or not isinstance(tau, (int, float)):
        raise TypeError(three_beats(f"`{operation}` needs `tau` to be a number or a tensor", describe(tau), remedy))
    if not (0 < tau < math.inf):
        raise ValueError(three_beats(f"`{operation}` needs `tau` to be positive and finite", repr(tau), remedy))


def check_index(
    operation: str, index: Tensor, anchors: int, num_modalities: int, device: torch.device, batch_size: int
) -> None:
    """Raise unless ``index`` is integer ``(anchors, 1 + K, N)`` on ``device`` (with row numbers of the batch, if
    free)."""
    if index.dtype not in (torch.int64, torch.int32):
        raise TypeError(
            three_beats(
                f"`{operation}` needs an index of int64 row numbers",
                describe(index),
                "Draw one with `sample_tuples`, or call `.long()`.",
            )
        )
    if index.ndim != 3 or index.shape[0] != anchors or index.shape[1] < 1 or index.shape[2] != num_modalities:
        raise ValueError(
            three_beats(
                f"`{operation}` needs an index of shape (B, 1 + K, N) = ({anchors}, 1 + K, {num_modalities}) "
                "with the positive in column 0",
                f"shape {tuple(index.shape)}",
                "Draw one with `sample_tuples`.",
            )
        )
    if index.device != device:
        raise ValueError(
            three_beats(
                f"`{operation}` needs the index on the embeddings' device {device}",
                f"{index.device}",
                "Move it with `.to(device)`, or pass `device=` to `sample_tuples`.",
            )
        )
    if values_are_free(index) and index.numel() > 0:
        # NumPy looks at a strided view in place, and at integers several times faster than torch does. Read without
        # their sign negative numbers are large, so one look finds both kinds of stray.
        values = index.numpy()
        if int(values.view("u8" if index.dtype == torch.int64 else "u4").max()) >= batch_size:
            low, high = int(values.min()), int(values.max())
            raise ValueError(
                three_beats(
                    f"`{operation}` needs row numbers from 0 to {batch_size - 1} in the index",
                    f"values from {low} to {high}",
                    "Draw the index for this batch size.",
                )
            )


def check_reduction(operation: str, reduction: object) -> None:
    """Raise unless ``reduction`` is one of the three names."""
    check_choice(operation, "reduction", reduction, REDUCTIONS)


def check_flag(operation: str, name: str, value: object) -> None:
    """Raise unless ``value`` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(three_beats(f"`{operation}` needs `{name}` to be True or False", describe(value), "Pass one."))


def check_pairs(operation: str, pairs: object, num_modalities: int) -> tuple[tuple[int, int], ...]:
    """The pairs of modalities as sorted tuples; raise unless they are distinct pairs of different modalities."""
    needed = f"`{operation}` needs `pairs` to be pairs of different modalities out of 0..{num_modalities - 1}"
    remedy = "For example pairs=((0, 1), (0, 2), (1, 2))."
    try:
        listed = [tuple(pair) for pair in pairs]  # type: ignore[attr-defined]
    except TypeError:
        raise TypeError(three_beats(needed, describe(pairs), remedy)) from None
    for pair in listed:
        valid = len(pair) == 2 and all(isinstance(m, int) and 0 <= m < num_modalities for m in pair)
        if not valid or pair[0] == pair[1]:
            raise ValueError(three_beats(needed, repr(pair), remedy))
    chosen = tuple((min(pair), max(pair)) for pair in listed)
    if len(set(chosen)) != len(chosen):
        raise ValueError(three_beats(needed + ", each once", repr(tuple(listed)), remedy))
    return chosen


def check_weight_of_triplet(operation: str, alpha: object) -> None:
    """Raise unless ``alpha`` is a finite number >= 0."""
    remedy = "The paper uses alpha=1; 0 leaves the pairs alone."
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise TypeError(three_beats(f"`{operation}` needs `alpha` to be a number", describe(alpha), remedy))
    if not (0 <= alpha < math.inf):
        raise ValueError(three_beats(f"`{operation}` needs `alpha` to be finite and >= 0", repr(alpha), remedy))


def check_generator(operation: str, generator: object) -> None:
    """Raise unless ``generator`` is None or a generator on the CPU."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            three_beats(
                f"`{operation}` needs `generator` to be a torch.Generator or None",
                describe(generator),
                "Make one with `torch.Generator().manual_seed(seed)`.",
            )
        )
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(
            three_beats(
                f"`{operation}` draws on the CPU, for the same tuples on every device, and needs a CPU generator",
                f"one on {generator.device}",
                "Make one with `torch.Generator().manual_seed(seed)`.",
            )
        )
