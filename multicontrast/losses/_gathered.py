"""The batch of one call: the rows of this process, or those of all ranks, of which its own are the anchors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multicontrast.distributed import Meeting, Ranks
from multicontrast.losses._arguments import check_generator
from multicontrast.losses._masks import Masks
from multicontrast.losses._road import choose_tuples
from multicontrast.losses._walk import Tuples
from multicontrast.negatives import SAMPLED_SCHEMES
from multicontrast.similarity import Similarity


@dataclass(frozen=True)
class Batch:
    """What a walk runs on."""

    embeddings: list[Tensor]  # (B, D): the rows of all ranks
    tau: float | Tensor
    masks: Masks | None
    generator: torch.Generator | None  # in one state on all ranks
    ranks: Ranks | None

    @property
    def anchors(self) -> tuple[int, int] | None:
        """The rows that this rank answers for; None for a process on its own."""
        return None if self.ranks is None else (self.ranks.start, self.ranks.stop)

    def share(self, loss: Tensor, reduction: str) -> Tensor:
        """What this rank returns, of the loss of its own anchors: the mean over the ranks is that of one process.

        A rank without rows returns 0, joined to the graph all the same: the others wait for it in the backward pass.
        """
        if self.ranks is None:
            return loss
        if reduction != "none":
            loss = loss * self.ranks.size
        if self.ranks.start == self.ranks.stop:
            inputs = [*self.embeddings, *([self.tau.reshape(1)] if isinstance(self.tau, Tensor) else [])]
            nothing = torch.stack([x[:0].sum().to(loss) for x in inputs]).sum()
            loss = loss + nothing
        return loss


def meet(
    meeting: Meeting,
    embeddings: Sequence[Tensor],
    tau: float | Tensor,
    options: Mapping[str, object],
    *,
    masks: Masks | None = None,
    generator: torch.Generator | None = None,
    draws: bool = False,
) -> Batch:
    """The batch of a call whose own arguments have been checked.

    Args:
        options: what has to be alike on all ranks, by name.
        masks: those of this rank's samples; what belongs to a sample comes from all ranks, without a gradient. Further
            negatives stay where they are, candidates of the rank's own anchors.
        draws: whether the loss draws its negatives.
    """
    tau_tensor = tau if isinstance(tau, Tensor) else None
    alike = {name: _spoken(value) for name, value in options.items()}
    alike["temperature"] = "a tensor" if tau_tensor is not None else tau
    values = [] if masks is None else [masks.present, masks.ids, masks.weight]
    given = tuple(value is not None for value in values)
    alike["set of masks"] = given if masks is None else (*given, masks.label_smoothing, masks.hardness)
    ranks = meeting.exchange(embeddings, tau_tensor, alike, generator, draws)
    if ranks is None:
        return Batch(list(embeddings), tau, masks, generator, None)
    if draws and generator is None:
        generator = torch.Generator().manual_seed(ranks.seed)
    gathered_tau, gathered = ranks.gather(*embeddings, tau=tau_tensor)
    found = iter(ranks.gather_values(*(value for value in values if value is not None)))
    if masks is not None:
        present, ids, weight = (None if value is None else next(found) for value in values)
        masks = dataclasses.replace(masks, present=present, ids=ids, weight=weight)
    return Batch(gathered, tau if gathered_tau is None else gathered_tau, masks, generator, ranks)


def meet_for_tuples(
    operation: str,
    meeting: Meeting,
    embeddings: Sequence[Tensor],
    tau: float | Tensor,
    options: Mapping[str, object],
    terms: tuple[str | Similarity, str | Tensor, int | None, int | str, torch.Generator | None],
    alpha: float = 1.0,
    masks: Masks | None = None,
) -> tuple[Batch, Tuples | None]:
    """The batch, and which tuples of it are compared: ``terms`` are ``similarity, negatives, num_negatives, anchor,
    generator``. An index has the rows of this rank, in row numbers of all of them."""
    similarity, negatives, num_negatives, anchor, generator = terms
    check_generator(operation, generator)
    names = ("similarity", "kind of negatives", "number of negatives", "anchor")
    options = {**options, **dict(zip(names, terms)), "weight of the tuples": alpha, "generator": generator is None}
    draws = alpha > 0 and isinstance(negatives, str) and negatives in SAMPLED_SCHEMES
    batch = meet(meeting, embeddings, tau, options, masks=masks, generator=generator, draws=draws)
    if isinstance(negatives, Tensor):
        meeting.reopen()  # one rank's index may be wrong
    tuples = choose_tuples(
        operation,
        batch.embeddings,
        similarity,
        negatives,
        num_negatives,
        anchor,
        batch.generator,
        alpha,
        batch.anchors,
    )
    meeting.close()
    return batch, tuples


def _spoken(option: object) -> object:
    """An option in a form that reads the same in every process."""
    if isinstance(option, Tensor):
        return ("a tensor", tuple(option.shape[1:]))
    if option is None or isinstance(option, (bool, int, float, str, tuple, list)):
        return option
    return getattr(option, "__qualname__", type(option).__qualname__)
