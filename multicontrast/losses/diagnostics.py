"""Statistics of a loss: detached figures of each term, from the logits that it computes anyway."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from multicontrast._checks import check_flag
from multicontrast.linalg._gram import gram_eigmax_with_gradient
from multicontrast.losses.candidates import Pair, pairs_of
from multicontrast.losses.softmax import Hard, Masks, Stats, Sums, cross_entropy, weigh


@dataclass(frozen=True)
class TermDiagnostics:
    """One term of a loss on one batch: detached 0-dim tensors, over the anchors that take part in the term.

    ``accuracy`` and ``effective_negatives`` have an entry for each direction: ``(2,)`` for a symmetric pair, ``(1,)``
    otherwise.
    """

    loss: Tensor
    """Mean loss of the term, without ``alpha``."""
    floor: Tensor
    """What is reached at this batch size and temperature, the loss if every positive matched exactly and all other
    samples were at right angles. Below it negatives point away from each other."""
    accuracy: Tensor
    """Share of anchors whose positive is more alike than each of its negatives."""
    positive_similarity: Tensor
    """Mean similarity of the positives."""
    negative_similarity: Tensor
    """Mean similarity of the negatives."""
    effective_negatives: Tensor
    r"""Over how many negatives an anchor's gradient spreads, :math:`(\sum_k p_k)^2 / \sum_k p_k^2` with p their
    probabilities: from 1, one of them, to all of them."""
    anchors: Tensor
    """Number of anchors that take part."""
    sign_flipped: Tensor | None = None
    """Of tuples the share of positives some of whose members point against the others along the leading eigenvector, to
    which the eigenvalue and the volume are blind."""
    sampling_gap: Tensor | None = None
    """Of tuples, if asked for, the mean of the loss with every tuple of the batch (``anchor=0``) minus that of the
    sampled ones."""


@dataclass
class Diagnostics:
    """Statistics of a loss on its last batch. Pass one as ``diagnostics=``, and the call fills it.

    The figures come from the logits that the reference implementation computes anyway, without a further matmul; they
    are detached, and stay on the device. They disable the fused implementations: ask for them every hundred steps or
    so. Under ``gather`` they are of this rank's anchors.

    Args:
        sampling_gap: whether to compute what sampling leaves out of the denominators, which takes the loss over all
            tuples once more (up to three modalities, any number for the mean cosine).

    Example:
        >>> import torch
        >>> from multicontrast import pairwise_infonce
        >>> diagnostics = Diagnostics()
        >>> loss = pairwise_infonce(torch.eye(4), torch.eye(4), 1.0, diagnostics=diagnostics)
        >>> term = diagnostics.pairs[0, 1]
        >>> term.accuracy.tolist(), round(term.floor.item(), 4), round(term.effective_negatives[0].item(), 4)
        ([1.0, 1.0], 0.7437, 3.0)
    """

    sampling_gap: bool = False
    pairs: dict[Pair, TermDiagnostics] = field(default_factory=dict, init=False)
    tuples: TermDiagnostics | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.sampling_gap = check_flag("Diagnostics", "sampling_gap", self.sampling_gap)

    def as_dict(self) -> dict[str, Tensor]:
        """All figures by names such as ``pair_0_1/accuracy_0`` and ``tuples/loss``, 0-dim each, for a logger."""
        terms = {f"pair_{m}_{n}": term for (m, n), term in self.pairs.items()}
        if self.tuples is not None:
            terms["tuples"] = self.tuples
        flat = {}
        for prefix, term in terms.items():
            for name, value in vars(term).items():
                if value is None:
                    continue
                if value.ndim == 0:
                    flat[f"{prefix}/{name}"] = value
                else:
                    flat.update({f"{prefix}/{name}_{k}": entry for k, entry in enumerate(value)})
        return flat


class Direction(NamedTuple):
    """One softmax of a term, for the anchors of a range: ``(R,)`` each."""

    loss: Tensor
    positive: Tensor  # logit
    number: Tensor  # of negatives
    stats: Stats | None  # what else diagnostics need, if somebody asked


@torch.no_grad()
def describe_term(
    directions: list[Direction], tau: Tensor, masks: Masks, taking_part: Tensor | None, matched: Tensor, apart: Tensor
) -> dict[str, Tensor]:
    """The figures of a term from its softmaxes.

    Args:
        taking_part: ``(R,)``, the anchors that do; None if all.
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
    """The loss of anchors whose logits are these, for all negatives alike."""
    log = number.clamp_min(1).to(positive.dtype).log()
    log_sum = torch.where(number > 0, log + negative, -torch.inf)
    hard = Hard(negative, log_sum, log) if masks.hardness > 0 else None
    sums = Sums(number, log_sum, hard, number * negative if masks.label_smoothing > 0 else None, None)
    return cross_entropy(positive.expand_as(log), sums, masks)


@torch.no_grad()
def share_of_flipped(rows: list[Tensor], taking_part: Tensor | None) -> Tensor:
    """Share of tuples of unit rows ``(R, D)`` whose leading eigenvector has entries of both signs."""
    cosines = [torch.linalg.vecdot(rows[m], rows[n]) for m, n in pairs_of(len(rows))]
    _, products = gram_eigmax_with_gradient(cosines)  # 2 u_m u_n
    flipped = torch.stack(products).amin(0) < -1e-6
    if taking_part is not None:
        flipped = flipped & taking_part
    number = len(flipped) if taking_part is None else taking_part.sum().clamp_min(1)
    return flipped.sum().to(cosines[0].dtype) / number
