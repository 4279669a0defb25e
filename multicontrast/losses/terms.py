"""What one call computes: terms over the Gram blocks of a batch, each a similarity times a set of candidates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from multicontrast.losses.candidates import Candidates, Pair, pairs_of
from multicontrast.losses.softmax import Masks
from multicontrast.similarity import CosineSimilarity, Multilinear

if TYPE_CHECKING:
    from multicontrast.losses.diagnostics import Diagnostics

TRIPLET = "triplet"


@dataclass(frozen=True)
class Term:
    """InfoNCE over tuples of some modalities: eq. (3), and with two modalities and the cosine eq. (1).

    A direction is what the anchors are compared with, in one part or several that share no candidate. A term with two
    directions is their mean.
    """

    modalities: tuple[int, ...]
    similarity: CosineSimilarity | Multilinear
    directions: tuple[tuple[Candidates, ...], ...]
    tau: Tensor
    alpha: float = 1.0
    is_pair: bool = False

    @property
    def pair(self) -> Pair:
        """The modalities of a pair."""
        return self.modalities[0], self.modalities[1]

    @property
    def symmetric(self) -> bool:
        """Whether both directions count."""
        return len(self.directions) == 2


@dataclass(eq=False)
class Plan:
    """The sum of some terms, for the anchors ``start..stop`` of a batch of ``size`` samples.

    Embeddings are those of the whole batch, which are the candidates. With ``reduction="none"`` the result is the
    losses of the anchors, with ``"sum"`` their sum, and with ``"mean"`` their share of the batch's mean, so that the
    results of ranges that partition the batch concatenate or add up.
    """

    terms: tuple[Term, ...]
    size: int
    start: int
    stop: int
    reduction: str
    normalize: bool
    masks: Masks
    tiled: bool
    diagnostics: Diagnostics | None = None
    pairs: list[Term] = field(init=False)  # the terms of two modalities
    tuples: Term | None = field(init=False)  # the tuple term, if there is one; it comes first
    taus: list[Tensor] = field(init=False)  # the temperatures, each once
    blocks: list[Pair] = field(init=False)  # whose cosines the terms read, the smaller modality first

    def __post_init__(self) -> None:
        """What follows from the terms."""
        first = self.terms[0] if self.terms else None
        self.tuples = None if first is None or first.is_pair else first
        self.pairs = list(self.terms if self.tuples is None else self.terms[1:])
        self.taus = list({id(term.tau): term.tau for term in self.terms}.values())
        if self.tuples is None:
            self.blocks = sorted({(min(term.modalities), max(term.modalities)) for term in self.pairs})
        else:
            self.blocks = pairs_of(len(self.tuples.modalities))

    @property
    def is_whole(self) -> bool:
        """Whether every sample of the batch is an anchor."""
        return self.start == 0 and self.stop == self.size

    def with_taus(self, taus: Sequence[Tensor]) -> Plan:
        """The same with other tensors in place of :attr:`taus`."""
        of = {id(old): new for old, new in zip(self.taus, taus)}
        terms = tuple(dataclasses.replace(term, tau=of[id(term.tau)]) for term in self.terms)
        return dataclasses.replace(self, terms=terms)
