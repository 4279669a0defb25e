"""What acts on logits and averages: who is there, who is the same, who counts how much, and how a softmax is shaped.

===================  ================================================================================================
option               meaning
===================  ================================================================================================
``present``          ``(B, N)``: a sample takes part in a term if it has two of its modalities (a pair: both). Samples
                     that do not might as well have been dropped from the batch. A tuple is compared by the members that
                     are present, and needs two of them.
``ids``              ``(B,)``: a candidate all of whose present members have the anchor's id is no negative. Without ids
                     each sample has its own.
``weight``           ``(B,)``: of each anchor's loss; the mean divides by the weights of the anchors that take part.
``label_smoothing``  share of the target that is spread evenly over all candidates, the positive included.
``hardness``         exponent by which near negatives count more (Robinson et al., ICLR 2021).
``extra``            further samples ``(E, D)`` for each modality, candidates of every anchor and anchors of nothing.
===================  ================================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multicontrast.losses._cells import Cells, GatheredCells, ListCells


@dataclass(frozen=True)
class Masks:
    """The options of one walk, for the samples of the whole batch. Tensors are on the embeddings' device."""

    present: Tensor | None = None
    ids: Tensor | None = None
    weight: Tensor | None = None
    label_smoothing: float = 0.0
    hardness: float = 0.0
    extra: tuple[Tensor | None, ...] | None = None

    @property
    def only_weigh(self) -> bool:
        """Whether the loss of each anchor is what it is without any option."""
        return (
            self.present is None
            and self.ids is None
            and self.extra is None
            and self.label_smoothing == 0
            and self.hardness == 0
        )

    def fill_absent(self, x: Tensor, modality: int, value: float) -> Tensor:
        """The rows with ``value`` for those that are absent, whose content and gradient are then nowhere."""
        return x if self.present is None else torch.where(self.present[:, modality, None], x, value)

    def taking_part(self, modalities: Sequence[int]) -> Tensor | None:
        """``(B,)``: the samples that have two of the modalities; None if all do."""
        return None if self.present is None else self.present[:, list(modalities)].sum(1) >= 2

    def identity(self, size: int, device: torch.device) -> Tensor:
        """``(B,)``: what tells samples apart."""
        return torch.arange(size, device=device) if self.ids is None else self.ids


class Samples:
    """Who is who in one term of the loss, for the anchors ``start..stop`` of a batch of ``size``."""

    def __init__(
        self, masks: Masks, modalities: Sequence[int], start: int, stop: int, size: int, device: torch.device
    ) -> None:
        self.masks, self.start, self.stop, self.size = masks, start, stop, size
        self.taking_part = masks.taking_part(modalities)  # (B,), None for all
        self.identity = masks.identity(size, device)  # (B,)
        self.own = self.identity[start:stop]

    def anchors_taking_part(self) -> Tensor:
        """``(R,)``: the anchors that have a loss."""
        if self.taking_part is None:
            return torch.ones_like(self.own, dtype=torch.bool)
        return self.taking_part[self.start : self.stop]

    def pair_negatives(self) -> Tensor:
        """``(R, B)``: the samples that are negatives of each anchor, in a term of two modalities."""
        different = self.own[:, None] != self.identity
        return different if self.taking_part is None else different & self.taking_part


class CellMembers:
    """The members of sampled cells ``(R, 1 + K)``, as far as masks look at them."""

    def __init__(self, cells: Cells, samples: Samples) -> None:
        self.cells, self.samples = cells, samples
        self.modalities = range(cells.num_modalities)

    def present(self) -> list[Tensor] | None:
        """For each modality whether the cell's member is there, broadcastable to the cells; None if all are."""
        if self.samples.masks.present is None:
            return None
        return [self._look_up(m, self.samples.masks.present[:, m]) for m in self.modalities]

    def negatives(self, present: list[Tensor] | None) -> Tensor:
        """``(R, 1 + K)``: the cells that are negatives of their anchor. Never the positive."""
        samples, cells = self.samples, self.cells
        positive = cells.positive(samples.start, samples.stop)
        device = samples.identity.device
        column = torch.arange(cells.width, device=device)
        if isinstance(positive, int):
            valid = (column != positive).expand(samples.stop - samples.start, -1)
        else:
            valid = column != torch.arange(samples.start, samples.stop, device=device)[:, None]
        if present is None and samples.masks.ids is None:
            return valid
        strangers = torch.zeros((), dtype=torch.bool, device=device)
        for m in self.modalities:
            stranger = self._look_up(m, samples.identity, differs_from=samples.own[:, None])
            strangers = strangers | (stranger if present is None else stranger & present[m])
        valid = valid & strangers
        if present is not None:
            assert samples.taking_part is not None
            for m in self.modalities:
                valid = valid & self._look_up(m, samples.taking_part)
            valid = valid & at_least_two(present)
        if isinstance(cells, GatheredCells):  # a row number out of range makes the cell NaN, which must be seen
            for m in self.modalities:
                plane = cells.plane(m, samples.start, samples.stop)
                valid = valid | (plane < 0) | (plane >= samples.size)
        return valid

    def _look_up(self, modality: int, values: Tensor, differs_from: Tensor | None = None) -> Tensor:
        """``values`` ``(B,)`` of the member of one modality, or whether they differ from another."""
        cells, start, stop = self.cells, self.samples.start, self.samples.stop

        def look(rows: Tensor) -> Tensor:
            return rows if differs_from is None else rows != differs_from

        if isinstance(cells, ListCells):
            own = look(values[start:stop, None])
            if modality == 0:
                return own
            if cells.orders is None:
                return look(values[None])
            listed = look(values[cells.orders[modality - 1, : cells.count]][None])
            return torch.cat((own, listed.expand(stop - start, -1)), dim=1)
        assert isinstance(cells, GatheredCells)
        plane = cells.plane(modality, start, stop)
        return look(values[plane.clamp(0, self.samples.size - 1)])


def at_least_two(present: Sequence[Tensor]) -> Tensor:
    """Whether two of the members are there."""
    one = two = torch.zeros((), dtype=torch.bool, device=present[0].device)
    for member in present:
        two = two | (one & member)
        one = one | member
    return two


def weigh(
    losses: Tensor, masks: Masks | None, taking_part: Tensor | None, reduction: str, start: int, stop: int, size: int
) -> Tensor:
    """One number of the losses of anchors ``start..stop``, or all of them: what does not take part is 0, and a mean is
    over the weight of the whole batch. Nobody left in the batch is 0."""
    weight = None if masks is None else masks.weight
    if taking_part is not None:
        losses = torch.where(taking_part[start:stop], losses, 0)
    if weight is not None:
        weight = weight.to(losses.dtype)
        losses = losses * weight[start:stop]
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
        total = (weight if taking_part is None else torch.where(taking_part, weight, 0)).sum()
    return losses.sum() / torch.where(total > 0, total, 1)
