r"""Masks, log-sums, cross-entropy and averages: where logits become losses, each equation once.

With z the logits, :math:`z_i^+` that of the positive and a sum over the C_i - 1 negatives of anchor i,

.. math:: \mathcal L_i = \log\Big(e^{z_i^+} + \sum_j w_{ij} e^{z_{ij}}\Big)
          - (1 - \epsilon) z_i^+ - \frac{\epsilon}{C_i} \Big(z_i^+ + \sum_j z_{ij}\Big),
          \qquad w_{ij} = \frac{e^{\beta z_{ij}}}{\operatorname{mean}_k e^{\beta z_{ik}}}

with the label smoothing :math:`\epsilon` (as ``torch.nn.functional.cross_entropy`` has it) and the hardness
:math:`\beta` (Robinson et al., ICLR 2021, without their correction for false negatives). The sum over the negatives may
be taken in parts, which merge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from multicontrast.losses.candidates import Candidates


@dataclass(frozen=True)
class Masks:
    """The options that act on logits and averages, for the samples of the whole batch; further negatives for the
    anchors alone. :mod:`multicontrast.losses.options` says what they mean."""

    present: Tensor | None = None
    ids: Tensor | None = None
    weight: Tensor | None = None
    label_smoothing: float = 0.0
    hardness: float = 0.0
    extra: tuple[Tensor | None, ...] | None = None

    @property
    def only_weigh(self) -> bool:
        """Whether the loss of each anchor is what it is without any option."""
        return self.shape_nothing and self.label_smoothing == 0

    @property
    def shape_nothing(self) -> bool:
        """The same but for label smoothing."""
        return self.present is None and self.ids is None and self.extra is None and self.hardness == 0

    def fill_absent(self, x: Tensor, modality: int, value: float) -> Tensor:
        """The rows with ``value`` for those that are absent, so that neither their content nor a gradient matters."""
        return x if self.present is None else torch.where(self.present[:, modality, None], x, value)

    def taking_part(self, modalities: Sequence[int]) -> Tensor | None:
        """``(B,)``: the samples that have two of the modalities; None if all do."""
        # Not by an index, which would be copied from the host.
        return None if self.present is None else torch.stack([self.present[:, m] for m in modalities]).sum(0) >= 2


class Part(NamedTuple):
    """Who is who among some candidates of anchors ``start..stop``."""

    present: list[Tensor] | None  # for each modality whether the candidate's member is there; None if all are
    valid: Tensor | None  # which candidates are negatives; None if all are


def look_up(masks: Masks, modalities: Sequence[int], candidates: Candidates, start: int, stop: int) -> Part:
    """Which candidates are negatives of anchors ``start..stop``, and which of their members are there."""
    members, own = candidates.members(start, stop), candidates.own(start, stop)
    dims = max(member.ndim for member in members)
    own = own.view(-1, *[1] * (dims - 1))
    present = None
    if masks.present is not None:
        present = [masks.present[:, m][member] for m, member in zip(modalities, members)]
    valid: Tensor | None = None
    if candidates.holds_positive or masks.ids is not None or present is not None:
        strangers = torch.zeros((), dtype=torch.bool, device=own.device)
        for m, member in enumerate(members):
            stranger = member != own if masks.ids is None else masks.ids[member] != masks.ids[own]
            strangers = strangers | (stranger if present is None else stranger & present[m])
        valid = strangers
        for m in candidates.earlier:
            valid = valid & (members[m] != own)
        taking_part = masks.taking_part(modalities)
        if present is not None and taking_part is not None:
            for member in members:
                valid = valid & taking_part[member]
            valid = valid & at_least_two(present)
        strays = candidates.strays(start, stop)
        if strays is not None:  # their similarity is NaN, which must show
            valid = valid | strays
    return Part(present, valid)


def at_least_two(present: Sequence[Tensor]) -> Tensor:
    """Whether two of the members are there."""
    one = two = torch.zeros((), dtype=torch.bool, device=present[0].device)
    for member in present:
        two = two | (one & member)
        one = one | member
    return two


class Sums(NamedTuple):
    """What a loss needs to know of some negatives, ``(R,)`` each."""

    number: Tensor
    log: Tensor  # log sum exp(z); -inf where there is none
    hard: Hard | None  # only with a hardness
    total: Tensor | None  # sum of z: only with label smoothing
    stats: Stats | None  # only for diagnostics


class Hard(NamedTuple):
    """Sums that weigh near negatives more, ``(R,)`` each. With the peak, no hardness overflows."""

    peak: Tensor  # the largest logit, without a graph: nothing depends on it
    tilted: Tensor  # log sum exp(z + hardness (z - peak))
    tilt: Tensor  # log sum exp(hardness (z - peak))


class Stats(NamedTuple):
    """What diagnostics need of the logits of negatives, ``(R,)`` each, without a graph."""

    peak: Tensor  # the largest
    total: Tensor  # the sum
    log: Tensor  # log sum exp(z)
    square: Tensor  # log sum exp(2 z)


def sum_negatives(logits: Tensor, valid: Tensor | None, masks: Masks, stats: bool) -> Sums:
    """The sums over the last axis of ``logits`` ``(R, C)`` where ``valid``; the others are not looked at."""
    if valid is None:
        valid = torch.ones((), dtype=torch.bool, device=logits.device)
    valid = valid.expand(logits.shape)
    number = valid.sum(-1)
    total = found = detached_total = None
    if masks.label_smoothing > 0:
        total = torch.where(valid, logits, 0).sum(-1)
    if stats:
        detached_total = torch.where(valid, logits.detach(), 0).sum(-1)
    # Where nothing is valid all would be -inf, of which the gradient of logsumexp is NaN: 0 for them.
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
    """``hardness (z - peak)`` over the last axis, never positive; also for a hardness that the type does not have."""
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
    """logsumexp over the last axis; where nothing is finite -inf, with the gradient 0 (torch's own is NaN there)."""
    if x.shape[-1] == 0:
        return x.sum(-1) - torch.inf
    empty = (x == -torch.inf).all(-1)
    return torch.logsumexp(x.masked_fill(empty[..., None], 0), -1).masked_fill(empty, -torch.inf)


def weigh(
    losses: Tensor, masks: Masks, taking_part: Tensor | None, reduction: str, start: int, stop: int, size: int
) -> Tensor:
    """One number of the losses of anchors ``start..stop``, or all of them: what does not take part is 0, and a mean is
    over the weight of the whole batch. A batch in which nobody takes part has the loss 0.

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
    """Weights over the largest of them, so that no scale overflows or vanishes: a mean does not see it."""
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
