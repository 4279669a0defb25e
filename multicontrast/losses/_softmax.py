r"""Cross-entropy of a positive among its negatives, whatever they are: the one place where logits become losses.

With z the logits, :math:`z_i^+` that of the positive and a sum over the C_i - 1 negatives of anchor i,

.. math:: \mathcal L_i = \log\Big(e^{z_i^+} + \sum_j w_{ij} e^{z_{ij}}\Big)
          - (1 - \epsilon) z_i^+ - \frac{\epsilon}{C_i} \Big(z_i^+ + \sum_j z_{ij}\Big),
          \qquad w_{ij} = \frac{e^{\beta z_{ij}}}{\operatorname{mean}_k e^{\beta z_{ik}}}

with the label smoothing :math:`\epsilon` (as ``torch.nn.functional.cross_entropy`` has it) and the hardness
:math:`\beta` (Robinson et al., ICLR 2021, without their correction for false negatives). The sum over the negatives
may be taken in parts, which merge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from multicontrast.losses._masks import Masks


class NegativeSums(NamedTuple):
    """What a loss needs to know of some negatives, ``(R,)`` each."""

    number: Tensor
    log: Tensor  # log sum exp(z); -inf where there is none
    tilted: Tensor | None  # log sum exp((1 + hardness) z), and
    tilt: Tensor | None  # log sum exp(hardness z): only with a hardness
    total: Tensor | None  # sum of z: only with label smoothing
    seen: Seen | None  # only for diagnostics


class Seen(NamedTuple):
    """What diagnostics look at in the logits of negatives, ``(R,)`` each, without a graph."""

    peak: Tensor  # the largest
    total: Tensor  # the sum
    log: Tensor  # log sum exp(z)
    square: Tensor  # log sum exp(2 z)


def sum_negatives(logits: Tensor, valid: Tensor, masks: Masks, see: bool) -> NegativeSums:
    """The sums over the last axis of ``logits`` ``(R, C)`` where ``valid``; the others are not looked at."""
    number = valid.sum(-1)
    fill = torch.where(number > 0, -torch.inf, 0.0).to(logits.dtype)  # 0, for the gradient, where all would be -inf
    total = seen = seen_total = None
    if masks.label_smoothing > 0:
        total = torch.where(valid, logits, 0).sum(-1)
    if see:
        seen_total = torch.where(valid, logits.detach(), 0).sum(-1)
    logits = torch.where(valid, logits, fill[..., None])  # which frees the others, if nobody else holds them

    def log_sum(scale: float) -> Tensor:
        summed = torch.logsumexp(logits if scale == 1 else scale * logits, -1)
        return summed.masked_fill(number == 0, -torch.inf)

    tilted = tilt = None
    log = log_sum(1)
    if masks.hardness > 0:
        tilted, tilt = log_sum(1 + masks.hardness), log_sum(masks.hardness)
    if seen_total is not None:
        with torch.no_grad():
            peak = logits.amax(-1).masked_fill(number == 0, -torch.inf)
            seen = Seen(peak, seen_total, log.detach(), log_sum(2))
    return NegativeSums(number, log, tilted, tilt, total, seen)


def merge(parts: Sequence[NegativeSums]) -> NegativeSums:
    """The sums over several sets of negatives of the same anchors."""
    if len(parts) == 1:
        return parts[0]

    def logs(name: str) -> Tensor | None:
        found = [getattr(part, name) for part in parts]
        return None if found[0] is None else _finite_logsumexp(torch.stack(found))

    log = logs("log")
    assert log is not None
    number = torch.stack([part.number for part in parts]).sum(0)
    totals = [part.total for part in parts if part.total is not None]
    total = torch.stack(totals).sum(0) if totals else None
    seen = None
    found = [part.seen for part in parts if part.seen is not None]
    if found:
        columns = [torch.stack(column) for column in zip(*found)]
        seen = Seen(columns[0].amax(0), columns[1].sum(0), _finite_logsumexp(columns[2]), _finite_logsumexp(columns[3]))
    return NegativeSums(number, log, logs("tilted"), logs("tilt"), total, seen)


def cross_entropy(positive: Tensor, negatives: NegativeSums, masks: Masks) -> Tensor:
    """The loss ``(R,)`` of each anchor; 0 where there is no negative."""
    log = negatives.log
    if negatives.tilted is not None and negatives.tilt is not None:
        mean = negatives.tilt - negatives.number.clamp_min(1).to(log.dtype).log()
        log = torch.where(negatives.number > 0, negatives.tilted - mean, -torch.inf)
    loss = torch.logsumexp(torch.stack((positive, log)), 0) - positive
    if negatives.total is not None:
        candidates = 1 + negatives.number
        loss = loss + masks.label_smoothing * (positive - (positive + negatives.total) / candidates)
    return loss


def _finite_logsumexp(x: Tensor) -> Tensor:
    """logsumexp over the first axis; where nothing is finite -inf, with the gradient 0."""
    empty = (x == -torch.inf).all(0)
    return torch.logsumexp(x.masked_fill(empty, 0), 0).masked_fill(empty, -torch.inf)


def concatenate(parts: Sequence[Any]) -> Any:
    """Results of consecutive ranges of anchors, one after the other: tensors, or lists or named tuples of them."""
    first = parts[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    columns = [concatenate(column) for column in zip(*parts)]
    return columns if isinstance(first, list) else type(first)(*columns)
