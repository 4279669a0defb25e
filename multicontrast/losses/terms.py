"""What one call computes: terms over the Gram blocks of a batch, each a similarity times a set of candidates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from multicontrast.losses.candidates import Candidates, Pair, pairs_of
from multicontrast.losses.diagnostics import Diagnostics
from multicontrast.losses.softmax import Masks
from multicontrast.similarity import CosineSimilarity, Multilinear

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


@dataclass(frozen=True)
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

    @property
    def pairs(self) -> list[Term]:
        """The terms of two modalities."""
        return [term for term in self.terms if term.is_pair]

    @property
    def tuples(self) -> Term | None:
        """The tuple term, if there is one; it comes first."""
        return next((term for term in self.terms if not term.is_pair), None)

    @property
    def is_whole(self) -> bool:
        """Whether every sample of the batch is an anchor."""
        return self.start == 0 and self.stop == self.size

    @property
    def taus(self) -> list[Tensor]:
        """The temperatures, each once."""
        return list({id(term.tau): term.tau for term in self.terms}.values())

    @property
    def blocks(self) -> list[Pair]:
        """The pairs of modalities whose cosines the terms read, the smaller number first."""
        found = {pair for term in self.terms for pair in pairs_of(len(term.modalities)) if term.is_pair is False}
        return sorted(found | {(min(term.pair), max(term.pair)) for term in self.pairs})

    def with_taus(self, taus: Sequence[Tensor]) -> Plan:
        """The same with other tensors in place of :attr:`taus`."""
        of = {id(old): new for old, new in zip(self.taus, taus)}
        terms = tuple(dataclasses.replace(term, tau=of[id(term.tau)]) for term in self.terms)
        return dataclasses.replace(self, terms=terms)
