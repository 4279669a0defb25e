r"""Turns logits into losses by masks, log-sums, cross-entropy and averages, with each equation written once.

With z the logits, :math:`z_i^+` that of the positive and sums over the C_i - 1 negatives of anchor i,

.. math:: \mathcal L_i = \log\Big(e^{z_i^+} + \sum_j w_{ij} e^{z_{ij}}\Big)
          - (1 - \epsilon) z_i^+ - \frac{\epsilon}{C_i} \Big(z_i^+ + \sum_j z_{ij}\Big),
          \qquad w_{ij} = \frac{e^{\beta z_{ij}}}{\operatorname{mean}_k e^{\beta z_{ik}}}

with the label smoothing :math:`\epsilon` (as ``torch.nn.functional.cross_entropy`` has it) and the hardness
:math:`\beta` (Robinson et al., ICLR 2021, without their correction for false negatives). The sum over the negatives may
be taken in parts, which merge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(eq=False)
class Masks:
    """The options that act on logits and averages, for the samples of the whole batch, and extra negatives for the
    anchors. :mod:`multicontrast.losses.options` documents them."""

    present: Tensor | None = None
    ids: Tensor | None = None
    weight: Tensor | None = None
    label_smoothing: float = 0.0
    hardness: float = 0.0
    extra: tuple[Tensor | None, ...] | None = None

    shape_nothing: bool = field(init=False)  # whether they leave each anchor's loss unchanged, except for smoothing
    only_weigh: bool = field(init=False)  # whether they leave each anchor's loss unchanged

    def __post_init__(self) -> None:
        """Compute the derived fields."""
        self.shape_nothing = self.present is None and self.ids is None and self.extra is None and self.hardness == 0
        self.only_weigh = self.shape_nothing and self.label_smoothing == 0

    def fill_absent(self, x: Tensor, modality: int, value: float) -> Tensor:
        """The rows, with ``value`` in place of absent ones, which then have no gradient."""
        return x if self.present is None else torch.where(self.present[:, modality, None], x, value)

    def taking_part(self, modalities: Sequence[int]) -> Tensor | None:
        """``(B,)``: the samples that have two of the modalities; None if all do."""
        # Stacked, because an index would be copied from the host.
        return None if self.present is None else torch.stack([self.present[:, m] for m in modalities]).sum(0) >= 2


UNMASKED = Masks()


class Sums(NamedTuple):
    """Sums over some negatives, ``(R,)`` each."""

    number: Tensor
    log: Tensor  # log sum exp(z); -inf for an anchor without negatives
    hard: Hard | None  # only with a hardness
    total: Tensor | None  # sum of z: only with label smoothing
    stats: Stats | None  # only for diagnostics


class Hard(NamedTuple):
    """Sums that weigh near negatives more, ``(R,)`` each. Subtracting the peak keeps every hardness from overflow."""

    peak: Tensor  # the largest logit, detached: the loss does not depend on it
    tilted: Tensor  # log sum exp(z + hardness (z - peak))
    tilt: Tensor  # log sum exp(hardness (z - peak))


class Stats(NamedTuple):
    """Figures of the negatives' logits for diagnostics, ``(R,)`` each, detached."""

    peak: Tensor  # the largest
    total: Tensor  # the sum
    log: Tensor  # log sum exp(z)
    square: Tensor  # log sum exp(2 z)


def sum_negatives(logits: Tensor, valid: Tensor | None, masks: Masks, stats: bool) -> Sums:
    """The sums over the last axis of ``logits`` ``(R, C)`` where ``valid``."""
    if valid is None:
        valid = torch.ones((), dtype=torch.bool, device=logits.device)
    valid = valid.expand(logits.shape)
    number = valid.sum(-1)
    total = found = detached_total = None
    if masks.label_smoothing > 0:
        total = torch.where(valid, logits, 0).sum(-1)
    if stats:
        detached_total = torch.where(valid, logits.detach(), 0).sum(-1)
    # 0 for rows without a valid entry: the gradient of a logsumexp of -inf alone is NaN.
    fill = torch.where(number > 0, -torch.inf, 0.0).to(logits.dtype)[..., None]
    logits = torch.where(valid, logits, fill)

    def log_sum(x: Tensor) -> Tensor:
        return torch.logsumexp(x, -1).masked_fill(number == 0, -torch.inf)

    hard, log = None, log_sum(logits)
    if masks.hardness > 0 or stats:
        peak = logits.detach().amax(-1) if logits.shape[-1] else log.detach()
    if masks.hardness > 0:
        further = _tilt(masks, logits, peak)
        hard = Hard(peak.masked_fill(number == 0, -torch.inf), log_sum(logits + further), log_sum(further))
    if detached_total is not None:
        with torch.no_grad():
            found = Stats(peak.masked_fill(number == 0, -torch.inf), detached_total, log.detach(), log_sum(2 * logits))
    return Sums(number, log, hard, total, found)


def _tilt(masks: Masks, logits: Tensor, peak: Tensor) -> Tensor:
    """``hardness (z - peak)`` over the last axis, never positive; the hardness is clamped to the type's range."""
    finfo = torch.finfo(logits.dtype)
    return min(max(masks.hardness, finfo.tiny), finfo.max) * (logits - peak[..., None])


def merge(parts: Sequence[Sums], masks: Masks) -> Sums:
    """The sums over several sets of negatives of the same anchors."""
    if len(parts) == 1:
        return parts[0]

    def logs(name: str) -> Tensor | None:
        found = [getattr(part, name) for part in parts]
        return None if found[0] is None else finite_logsumexp(torch.stack(found, -1))

    log = logs("log")
    assert log is not None
    number = torch.stack([part.number for part in parts]).sum(0)
    totals = [part.total for part in parts if part.total is not None]
    total = torch.stack(totals).sum(0) if totals else None
    stats = None
    found = [part.stats for part in parts if part.stats is not None]
    if found:
        peak, sums, logs_, squares = (torch.stack(column, -1) for column in zip(*found))
        stats = Stats(peak.amax(-1), sums.sum(-1), finite_logsumexp(logs_), finite_logsumexp(squares))
    return Sums(number, log, _merge_hard([part.hard for part in parts if part.hard is not None], masks), total, stats)


def _merge_hard(parts: Sequence[Hard], masks: Masks) -> Hard | None:
    if not parts:
        return None
    peaks, tilted, tilt = (torch.stack(column, -1) for column in zip(*parts))
    peak = peaks.amax(-1)
    further = _tilt(masks, peaks, peak.clamp_min(torch.finfo(peak.dtype).min))
    return Hard(peak, finite_logsumexp(tilted + further), finite_logsumexp(tilt + further))


def cross_entropy(positive: Tensor, negatives: Sums, masks: Masks) -> Tensor:
    """The loss ``(R,)`` of each anchor; 0 where there is no negative."""
    log = negatives.log
    if negatives.hard is not None:
        mean = negatives.hard.tilt - negatives.number.clamp_min(1).to(log.dtype).log()
        log = torch.where(negatives.number > 0, negatives.hard.tilted - mean, -torch.inf)
    loss = torch.logsumexp(torch.stack((positive, log)), 0) - positive
    if negatives.total is not None:
        candidates = 1 + negatives.number
        loss = loss + masks.label_smoothing * (positive - (positive + negatives.total) / candidates)
    return loss


def plain_cross_entropy(positive: Tensor, logits: Tensor, masks: Masks) -> Tensor:
    """The same without masks, where every candidate is a negative."""
    logits = torch.cat((positive[:, None], logits), 1)
    return F.cross_entropy(
        logits,
        torch.zeros(logits.shape[0], dtype=torch.int64, device=logits.device),
        reduction="none",
        label_smoothing=masks.label_smoothing,
    )


def finite_logsumexp(x: Tensor) -> Tensor:
    """logsumexp over the last axis; of -inf alone it is -inf with the gradient 0, where torch's gradient is NaN."""
    if x.shape[-1] == 0:
        return x.sum(-1) - torch.inf
    empty = (x == -torch.inf).all(-1)
    return torch.logsumexp(x.masked_fill(empty[..., None], 0), -1).masked_fill(empty, -torch.inf)


def weigh(
    losses: Tensor, masks: Masks, taking_part: Tensor | None, reduction: str, start: int, stop: int, size: int
) -> Tensor:
    """The reduced losses of anchors ``start..stop``. Anchors that do not take part have the loss 0, and a mean divides
    by the weight of the whole batch; it is 0 if no anchor takes part.

    So the results of ranges of anchors that partition the batch concatenate, or add up, to that of the whole.
    """
    weight = masks.weight
    if taking_part is not None:
        losses = torch.where(taking_part[start:stop], losses, 0)
    if weight is not None:
        if reduction == "mean":
            weight = weight if taking_part is None else torch.where(taking_part, weight, 0)
            weight = scale_free(weight, losses.dtype)
        losses = losses * weight[start:stop].to(losses.dtype)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if weight is None and taking_part is None:
        return losses.sum() / size
    if weight is None:
        assert taking_part is not None
        total = taking_part.sum()
    else:
        weight = weight.to(losses.dtype)
        total = weight.sum()
    return losses.sum() / torch.where(total > 0, total, 1)


def scale_free(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights divided by the largest, so that none overflows or vanishes; this does not change a mean."""
    weight = weight.to(torch.promote_types(weight.dtype, dtype))
    largest = weight.detach().amax()
    return weight / torch.where(largest > 0, largest, 1)


def concatenate(parts: Sequence[Any]) -> Any:
    """Results of consecutive ranges of anchors, one after the other: tensors, or lists or named tuples of them."""
    first = parts[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    columns = [concatenate(column) for column in zip(*parts)]
    return columns if isinstance(first, list) else type(first)(*columns)


# --- diagnostics ----------------------------------------------------------------------------------------------------


class Direction(NamedTuple):
    """One softmax of a term, for the anchors of a range: ``(R,)`` each."""

    loss: Tensor
    positive: Tensor  # logit
    number: Tensor  # of negatives
    stats: Stats | None  # only for diagnostics


@torch.no_grad()
def describe_term(
    directions: list[Direction], tau: Tensor, masks: Masks, taking_part: Tensor | None, matched: Tensor, apart: Tensor
) -> dict[str, Tensor]:
    """The figures of a term from its softmaxes.

    Args:
        taking_part: ``(R,)``, the anchors of the term; None if all.
        matched, apart: the similarity of a perfect match, ``(R,)`` or 0-dim, and of unrelated samples.
    """
    size = len(directions[0].loss)
    stats = [direction.stats for direction in directions if direction.stats is not None]
    here = torch.ones_like(directions[0].loss, dtype=torch.bool) if taking_part is None else taking_part
    number = here.sum()

    def mean(values: Tensor) -> Tensor:
        return torch.where(here, values, 0).sum() / number.clamp_min(1)

    loss = torch.stack([direction.loss for direction in directions]).mean(0)
    floors = [_floor(direction.number, matched / tau, apart / tau, masks) for direction in directions]
    negatives = torch.stack([torch.where(here, direction.number, 0).sum() for direction in directions]).sum()
    totals = torch.stack([torch.where(here, of.total, 0).sum() for of in stats]).sum()
    spread = [torch.where(s.number > 0, torch.exp(2 * of.log - of.square), 0) for s, of in zip(directions, stats)]
    return {
        "loss": weigh(loss, masks, taking_part, "mean", 0, size, size),
        "floor": mean(torch.stack(floors).mean(0)),
        "accuracy": torch.stack([mean((s.positive > of.peak).to(loss.dtype)) for s, of in zip(directions, stats)]),
        "positive_similarity": mean(directions[0].positive) * tau,
        "negative_similarity": totals / negatives.clamp_min(1) * tau,
        "effective_negatives": torch.stack([mean(values) for values in spread]),
        "anchors": number,
    }


def _floor(number: Tensor, positive: Tensor, negative: Tensor, masks: Masks) -> Tensor:
    """The loss of anchors with the logit ``positive`` and ``number`` negatives of the logit ``negative`` each."""
    log = number.clamp_min(1).to(positive.dtype).log()
    log_sum = torch.where(number > 0, log + negative, -torch.inf)
    hard = Hard(negative, log_sum, log) if masks.hardness > 0 else None
    sums = Sums(number, log_sum, hard, number * negative if masks.label_smoothing > 0 else None, None)
    return cross_entropy(positive.expand_as(log), sums, masks)
