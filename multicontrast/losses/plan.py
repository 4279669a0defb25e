"""The plan of a call, made from a loss's options: terms over the Gram blocks of a batch, each with a similarity and
candidates."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from multicontrast._checks import can_read_values, check_choice, describe, three_beats
from multicontrast.losses.candidates import (
    SCHEMES,
    All,
    Candidates,
    Draw,
    Given,
    Pair,
    Tied,
    check_index,
    check_negatives,
    draw,
    pairs_of,
)
from multicontrast.losses.softmax import Masks
from multicontrast.similarity import CosineSimilarity, MeanCosine, Multilinear, resolve_similarity

if TYPE_CHECKING:
    from multicontrast.losses.diagnostics import Diagnostics

TRIPLET = "triplet"
_ALWAYS_HELD = 1 << 28  # bytes of Gram blocks and gradients that are held regardless of the free memory
_SMALLEST_TAU = 1e-3  # exp(-2 / (3 tau)), a lower bound of the largest term, does not vanish in float64


@dataclass(frozen=True)
class Term:
    """InfoNCE over tuples of some modalities: eq. (3), and with two modalities and the cosine eq. (1).

    A direction is a set of candidates, in one part or several disjoint ones. The loss of a term with two directions is
    their mean.
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

    @property
    def factorises(self) -> bool:
        """Whether the sum over all tuples is a product of matmuls. Three modalities with a temperature below
        ``_SMALLEST_TAU``, where its value can be read, are summed one by one."""
        if not (self.directions[0][0].are_all and isinstance(self.similarity, MeanCosine)):
            return False
        return len(self.modalities) > 3 or not can_read_values(self.tau) or self.tau.item() >= _SMALLEST_TAU


@dataclass(eq=False)
class Plan:
    """The sum of some terms, for the anchors ``start..stop`` of a batch of ``size`` samples.

    The embeddings of the whole batch are the candidates. With ``reduction="none"`` the result is the
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
    taus: list[Tensor] = field(init=False)  # the distinct temperatures
    is_whole: bool = field(init=False)  # whether every sample of the batch is an anchor
    blocks: list[Pair] = field(init=False)  # the pairs whose cosines the terms read, the smaller modality first

    def __post_init__(self) -> None:
        """Compute the derived fields."""
        self.is_whole = self.start == 0 and self.stop == self.size
        first = self.terms[0] if self.terms else None
        self.tuples = None if first is None or first.is_pair else first
        self.pairs = list(self.terms if self.tuples is None else self.terms[1:])
        self.taus = []
        for term in self.terms:  # compared by `is`: a compiler would recompile for a tensor with another `id`
            if not any(term.tau is tau for tau in self.taus):
                self.taus.append(term.tau)
        if self.tuples is None:
            self.blocks = sorted({(min(term.modalities), max(term.modalities)) for term in self.pairs})
        else:
            self.blocks = pairs_of(len(self.tuples.modalities))

    def with_taus(self, taus: Sequence[Tensor]) -> Plan:
        """The same plan with other tensors for :attr:`taus`."""
        places = [next(k for k, tau in enumerate(self.taus) if tau is term.tau) for term in self.terms]
        terms = tuple(dataclasses.replace(term, tau=taus[place]) for term, place in zip(self.terms, places))
        return dataclasses.replace(self, terms=terms)


def make_plan(
    operation: str,
    like: Sequence[Tensor],
    taus: Mapping[Any, Tensor] | Tensor,
    options: Mapping[str, Any],
    masks: Masks,
    *,
    pairs: Sequence[Pair] = (),
    has_tuples: bool = False,
    anchors: tuple[int, int] | None = None,
    generator: torch.Generator | None = None,
) -> Plan:
    """The plan of a loss's options; raises for options that exclude each other.

    Args:
        like: tensors of the shape, type and device of the whole batch.
        taus: the temperature, or one for each term by name.
        anchors: the rows that are this process's anchors; None for all.
    """
    size = like[0].shape[0]
    start, stop = (0, size) if anchors is None else anchors
    terms: list[Term] = []

    def tau_of(name: Pair | str) -> Tensor:
        return taus if isinstance(taus, Tensor) else taus[name if isinstance(name, str) else tuple(sorted(name))]

    if has_tuples:
        alpha = options.get("alpha", 1.0)
        similarity = resolve_similarity(operation, options["similarity"])
        directions = _directions(operation, like, options, similarity, start, stop, generator, draws=alpha > 0)
        if alpha > 0:
            terms.append(Term(tuple(range(len(like))), similarity, directions, tau_of(TRIPLET), alpha))
        if options["diagnostics"] is not None and options["diagnostics"].sampling_gap:
            check_all(operation, len(like), similarity, None)
    for m, n in pairs:
        tied = Tied(size, 2, like[0].device)
        both = ((tied,), (tied.reversed(),)) if options["symmetric"] else ((tied,),)
        terms.append(Term((m, n), _COSINE, both, tau_of((m, n)), is_pair=True))
    if not terms:
        remedy = "Pass a pair, or alpha > 0."
        raise ValueError(three_beats(f"`{operation}` needs a term", "pairs=() and alpha=0", remedy))
    plan = Plan(
        tuple(terms),
        size,
        start,
        stop,
        options["reduction"],
        options["normalize"],
        masks,
        False,
        options["diagnostics"],
    )
    plan.tiled = not _holds_blocks(operation, plan, like[0], options["tiled"])
    return plan


_COSINE = MeanCosine()


def _holds_blocks(operation: str, plan: Plan, like: Tensor, tiled: bool | None) -> bool:
    """Whether the Gram blocks are held whole: as ``tiled`` says, or by default if they and their gradients take at most
    half the free memory."""
    every = any(part.are_all for term in plan.terms for parts in term.directions for part in parts)
    if every and tiled:
        needed = f"`{operation}` streams negatives='all' over whole Gram blocks"
        raise ValueError(three_beats(needed, "tiled=True", "Leave `tiled` out, or choose a sampled scheme."))
    if tiled is not None or every or torch.compiler.is_compiling():
        return not tiled
    itemsize = 8 if like.dtype == torch.float64 else 4
    rows = plan.size if plan.tuples is not None else plan.stop - plan.start
    bytes_needed = 2 * len(plan.blocks) * rows * plan.size * itemsize
    return bytes_needed <= _ALWAYS_HELD or 2 * bytes_needed <= _free_memory(like.device)


def _free_memory(device: torch.device) -> int:
    """Free bytes on a device, where that is cheap to find out; 8 GiB elsewhere."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "cpu" and os.path.exists("/proc/meminfo"):
        with open("/proc/meminfo") as lines:  # MemAvailable includes the file caches
            available = next((line for line in lines if line.startswith("MemAvailable:")), "")
        if available:
            return 1024 * int(available.split()[1])
    return 1 << 33


def _directions(
    operation: str,
    like: Sequence[Tensor],
    options: Mapping[str, Any],
    similarity: object,
    start: int,
    stop: int,
    generator: torch.Generator | None,
    draws: bool,
) -> tuple[tuple[Candidates, ...], ...]:
    """The candidates of the anchors, one tuple of parts for each direction."""
    negatives, anchor, num_negatives = options["negatives"], options["anchor"], options["num_negatives"]
    size, count, device = like[0].shape[0], len(like), like[0].device
    is_index = isinstance(negatives, Tensor)
    if anchor == "any" and (is_index or negatives != "all"):
        came = "an index" if is_index else f"negatives={describe(negatives)}"
        needed = f"`{operation}` has `anchor='any'` for `negatives='all'` alone"
        raise ValueError(three_beats(needed, came, "Pass negatives='all', or leave anchor=0."))
    symmetric = "pairs" not in options and options["symmetric"]
    if symmetric and (is_index or negatives != "tied"):
        came = "an index" if is_index else f"negatives={describe(negatives)}"
        needed = f"`{operation}` has `symmetric=True` for `negatives='tied'` alone"
        raise ValueError(three_beats(needed, came, "Pass negatives='tied', or leave `symmetric` out."))
    if is_index:
        check_index(operation, negatives, stop - start, count, device, size)
        if num_negatives is not None and num_negatives != negatives.shape[1] - 1:
            needed = f"`{operation}` takes the number of negatives from the index, {negatives.shape[1] - 1}"
            raise ValueError(three_beats(needed, f"num_negatives={num_negatives!r}", "Leave `num_negatives` out."))
        return ((Given(size, negatives, start),),)
    check_choice(operation, "negatives", negatives, (*SCHEMES, "all"))
    if negatives == "all":
        check_all(operation, count, similarity, num_negatives)
        if count == 2 and anchor == 0:
            return ((Tied(size, count, device),),)
        return (tuple(All(size, count, device, place) for place in range(1 if anchor == 0 else count)),)
    num_negatives = check_negatives(operation, size, num_negatives, negatives)
    if not draws:
        return ()
    drawn = draw(operation, negatives, Draw(size, count, num_negatives, True, generator, device))
    return ((drawn,), (drawn.reversed(),)) if symmetric else ((drawn,),)


def check_all(operation: str, num_modalities: int, similarity: object, num_negatives: object) -> None:
    """Raise unless ``negatives="all"`` fits the other options."""
    if num_negatives is not None:
        needed, came = (
            f"`{operation}` compares with every tuple under negatives='all'",
            f"num_negatives={num_negatives}",
        )
        remedy = "Leave `num_negatives` out, or choose a sampled scheme."
        raise ValueError(three_beats(needed, came, remedy))
    if num_modalities > 3 and not isinstance(similarity, MeanCosine):
        needed = f"`{operation}` has negatives='all' for up to three modalities, for any number with the mean cosine"
        remedy = "Use similarity='mean_cosine', or a sampled scheme."
        raise ValueError(three_beats(needed, f"{num_modalities} modalities", remedy))
