"""The batch of one call: the rows of this process, or those of all ranks, of which its own are the anchors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multicontrast._checks import check_generator
from multicontrast.distributed import Meeting, Ranks
from multicontrast.losses._diagnostics import Diagnostics
from multicontrast.losses._masks import Masks
from multicontrast.losses._ring import check_ring, ring_loss
from multicontrast.losses._road import choose_tuples, walk_loss
from multicontrast.losses._walk import Tuples, Walk
from multicontrast.negatives import SAMPLED_SCHEMES
from multicontrast.similarity import Similarity


@dataclass(frozen=True)
class Batch:
    """What a walk runs on."""

    embeddings: list[Tensor]  # (B, D): the rows of all ranks; in a ring those of this one, (B_local, D)
    tau: float | Tensor
    masks: Masks | None  # of the samples of all ranks
    generator: torch.Generator | None  # in one state on all ranks
    ranks: Ranks | None
    ring: bool

    @property
    def anchors(self) -> tuple[int, int] | None:
        """The rows that this rank answers for; None for a process on its own."""
        return None if self.ranks is None else (self.ranks.start, self.ranks.stop)

    @property
    def outlines(self) -> list[Tensor]:
        """Tensors of the shape, type and device of the whole batch, without its content: what schemes look at."""
        if self.ranks is None or not self.ring:
            return self.embeddings
        return [x.new_empty(1, 1).expand(self.ranks.total, x.shape[1]) for x in self.embeddings]

    def loss(
        self,
        operation: str,
        walk: Walk,
        *,
        normalize: bool,
        tiled: bool | None,
        diagnostics: Diagnostics | None = None,
    ) -> Tensor:
        """What this rank returns, for its own anchors: the mean over the ranks is the loss of one process.

        A rank without rows returns 0, joined to the graph all the same: the others wait for it in the backward pass.
        """
        if self.ranks is not None and self.ring:
            loss = ring_loss(self.embeddings, self.tau, walk, normalize, self.ranks)
        else:
            if self.ring and (walk.tuples is None or walk.tuples.cells is not None):
                tiled = True  # a ring of one
            loss = walk_loss(
                operation, self.embeddings, self.tau, walk, normalize=normalize, tiled=tiled, diagnostics=diagnostics
            )
        if self.ranks is None:
            return loss
        if walk.reduction != "none":
            loss = loss * self.ranks.size
        return self.ranks.join(loss, *self.embeddings, *([self.tau] if isinstance(self.tau, Tensor) else []))


def meet(
    meeting: Meeting,
    embeddings: Sequence[Tensor],
    tau: float | Tensor,
    options: Mapping[str, object],
    *,
    masks: Masks | None = None,
    generator: torch.Generator | None = None,
    draws: bool = False,
    ring: bool = False,
) -> Batch:
    """The batch of a call whose own arguments have been checked.

    Args:
        options: what has to be alike on all ranks, by name.
        masks: those of this rank's samples; what belongs to a sample comes from all ranks, without a gradient. Further
            negatives stay where they are, candidates of the rank's own anchors.
        draws: whether the loss draws its negatives.
        ring: leave the embeddings where they are, and let them travel later. Masks that act on logits need all of
            them, and hand the ring back.
    """
    ring = ring and (masks is None or masks.only_weigh)
    tau_tensor = tau if isinstance(tau, Tensor) else None
    alike = {name: _spoken(value) for name, value in options.items()}
    alike["temperature"] = "a tensor" if tau_tensor is not None else tau
    values = [] if masks is None else [masks.present, masks.ids, masks.weight]
    given = tuple(value is not None for value in values)
    alike["set of masks"] = (
        given
        if masks is None
        else (
            *given,
            masks.label_smoothing,
            masks.hardness,
            masks.extra is not None,
        )
    )
    ranks = meeting.exchange(embeddings, tau_tensor, alike, generator, draws)
    if ranks is None:
        return Batch(list(embeddings), tau, masks, generator, None, ring)
    if draws and generator is None:
        generator = torch.Generator().manual_seed(ranks.seed)
    gathered = list(embeddings)
    if not ring:
        tau_tensor, gathered = ranks.gather(*embeddings, tau=tau_tensor)
    found = iter(ranks.gather_values(*(value for value in values if value is not None)))
    if masks is not None:
        present, ids, weight = (None if value is None else next(found) for value in values)
        masks = dataclasses.replace(masks, present=present, ids=ids, weight=weight)
    return Batch(gathered, tau if tau_tensor is None else tau_tensor, masks, generator, ranks, ring)


def meet_for_tuples(
    operation: str,
    meeting: Meeting,
    embeddings: Sequence[Tensor],
    tau: float | Tensor,
    options: Mapping[str, object],
    terms: tuple[str | Similarity, str | Tensor, int | None, int | str, torch.Generator | None],
    alpha: float = 1.0,
    masks: Masks | None = None,
    ring: bool = False,
) -> tuple[Batch, Tuples | None]:
    """The batch, and which tuples of it are compared: ``terms`` are ``similarity, negatives, num_negatives, anchor,
    generator``. An index has the rows of this rank, in row numbers of all of them."""
    similarity, negatives, num_negatives, anchor, generator = terms
    check_generator(operation, generator)
    names = ("similarity", "kind of negatives", "number of negatives", "anchor")
    options = {**options, **dict(zip(names, terms)), "weight of the tuples": alpha, "generator": generator is None}
    draws = alpha > 0 and isinstance(negatives, str) and negatives in SAMPLED_SCHEMES
    batch = meet(meeting, embeddings, tau, options, masks=masks, generator=generator, draws=draws, ring=ring)
    if isinstance(negatives, Tensor):
        meeting.reopen()  # one rank's index may be wrong
    tuples = choose_tuples(
        operation,
        batch.outlines,
        similarity,
        negatives,
        num_negatives,
        anchor,
        batch.generator,
        alpha,
        batch.anchors,
    )
    if batch.ring:
        check_ring(operation, tuples, len(embeddings))
    meeting.close()
    return batch, tuples


def _spoken(option: object) -> object:
    """An option in a form that reads the same in every process."""
    if isinstance(option, Tensor):
        return ("a tensor", tuple(option.shape[1:]))
    if option is None or isinstance(option, (bool, int, float, str, tuple, list)):
        return option
    return getattr(option, "__qualname__", type(option).__qualname__)
