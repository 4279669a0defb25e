"""The front door of every loss: what must hold of the arguments before any work is done."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from multicontrast._checks import (
    as_float,
    check_choice,
    check_floating,
    check_same_device,
    describe,
    three_beats,
    values_are_free,
)
from multicontrast.losses._masks import Masks

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
    if not (0 < as_float(tau) < math.inf):
        raise ValueError(three_beats(f"`{operation}` needs `tau` to be positive and finite", describe(tau), remedy))


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
    if not (0 <= as_float(alpha) < math.inf):
        raise ValueError(three_beats(f"`{operation}` needs `alpha` to be finite and >= 0", describe(alpha), remedy))


def check_ring_flag(operation: str, ring: object, gather: object, tiled: object) -> None:
    """Raise unless ``ring`` is a bool that goes with ``gather`` and ``tiled``."""
    check_flag(operation, "ring", ring)
    if ring and gather is False:
        raise ValueError(
            three_beats(f"`{operation}` needs `gather` for a ring", "ring=True alone", "Pass gather=True, too.")
        )
    if ring and tiled is False:
        raise ValueError(
            three_beats(f"`{operation}` computes a ring in tiles", "ring=True and tiled=False", "Leave `tiled` out.")
        )


def check_masks(
    operation: str,
    embeddings: Sequence[Tensor],
    present: object,
    ids: object,
    weight: object,
    label_smoothing: object,
    hardness: object,
    extra_negatives: object,
) -> Masks | None:
    """The options of a loss, None if none was given; raises for what does not fit."""
    size, count, device = len(embeddings[0]), len(embeddings), embeddings[0].device
    if present is not None:
        remedy = "Row i says which modalities sample i has, as `torch.isfinite(x).all(1)` might."
        _check_per_sample(operation, "present", present, (size, count), "(B, N)", device, remedy)
        assert isinstance(present, Tensor)
        if present.dtype != torch.bool:
            raise TypeError(three_beats(f"`{operation}` needs `present` to be bool", describe(present), remedy))
    if ids is not None:
        remedy = "Samples with equal numbers are never negatives of each other."
        _check_per_sample(operation, "ids", ids, (size,), "(B,)", device, remedy)
        assert isinstance(ids, Tensor)
        if ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype == torch.bool:
            raise TypeError(three_beats(f"`{operation}` needs `ids` to be integers", describe(ids), remedy))
    if weight is not None:
        remedy = "Weights are finite and not negative; the mean divides by their sum."
        _check_per_sample(operation, "weight", weight, (size,), "(B,)", device, remedy)
        assert isinstance(weight, Tensor)
        if weight.dtype.is_complex:
            raise TypeError(three_beats(f"`{operation}` needs `weight` to be real", describe(weight), remedy))
        if values_are_free(weight) and not bool(((weight >= 0) & (weight < math.inf)).all()):
            low, high = weight.min().item(), weight.max().item()
            raise ValueError(
                three_beats(f"`{operation}` needs `weight` >= 0 and finite", f"values from {low:g} to {high:g}", remedy)
            )
    remedy = "0 puts the whole target on the positive; 0.1 is a usual value."
    smoothing = _check_number(operation, "label_smoothing", label_smoothing, remedy)
    if not 0 <= smoothing < 1:
        raise ValueError(three_beats(f"`{operation}` needs 0 <= `label_smoothing` < 1", repr(label_smoothing), remedy))
    remedy = "0 weighs all negatives alike; 0.5 to 2 are usual values."
    tilt = _check_number(operation, "hardness", hardness, remedy)
    if not 0 <= tilt < math.inf:
        raise ValueError(three_beats(f"`{operation}` needs `hardness` >= 0 and finite", repr(hardness), remedy))
    extra = _check_extra(operation, embeddings[0], count, extra_negatives)
    if present is None and ids is None and weight is None and smoothing == 0 and tilt == 0 and extra is None:
        return None
    return Masks(present, ids, weight, smoothing, tilt, extra)


def _check_per_sample(
    operation: str, name: str, value: object, shape: tuple[int, ...], words: str, device: torch.device, remedy: str
) -> None:
    needed = f"`{operation}` needs `{name}` of shape {words} = {shape}"
    if not isinstance(value, Tensor):
        raise TypeError(three_beats(f"`{operation}` needs `{name}` to be a tensor", describe(value), remedy))
    if value.shape != shape:
        raise ValueError(three_beats(needed, describe(value), remedy))
    if value.device != device:
        raise ValueError(three_beats(f"{needed} on {device}", describe(value), "Move it with `.to(device)`."))


def _check_number(operation: str, name: str, value: object, remedy: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(three_beats(f"`{operation}` needs `{name}` to be a number", describe(value), remedy))
    return as_float(value)


def _check_extra(operation: str, like: Tensor, count: int, extra: object) -> tuple[Tensor | None, ...] | None:
    """The further negatives, one tensor for each modality, or None if there are none."""
    if extra is None:
        return None
    remedy = "Pass [e_0, e_1, ...], with None for a modality that has none."
    if isinstance(extra, Tensor) or not isinstance(extra, Sequence):
        raise TypeError(
            three_beats(f"`{operation}` needs `extra_negatives` to be a list or tuple", describe(extra), remedy)
        )
    if len(extra) != count:
        raise ValueError(
            three_beats(
                f"`{operation}` needs `extra_negatives` for {count} modalities", f"{len(extra)} entries", remedy
            )
        )
    given = [(m, x) for m, x in enumerate(extra) if x is not None]
    for m, x in given:
        name = f"extra_negatives[{m}]"
        check_floating(operation, name, x)
        if x.ndim != 2 or x.shape[1] != like.shape[1]:
            raise ValueError(
                three_beats(f"`{operation}` needs `{name}` of shape (E, {like.shape[1]})", describe(x), remedy)
            )
        if x.device != like.device:
            raise ValueError(
                three_beats(
                    f"`{operation}` needs `{name}` on {like.device}", describe(x), "Move it with `.to(device)`."
                )
            )
        if len(x) != len(given[0][1]):
            raise ValueError(
                three_beats(
                    f"`{operation}` needs as many `extra_negatives` of each modality, whose rows are samples",
                    f"{len(given[0][1])} and {len(x)}",
                    remedy,
                )
            )
    return tuple(extra) if given and len(given[0][1]) > 0 else None
