"""From options to terms, and from terms to the implementation that computes them: decided once, here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from multicontrast._backend import KernelUnavailable, give_way
from multicontrast._checks import check_choice, compute_dtype, describe, three_beats
from multicontrast.losses import cpu, reference, streamed
from multicontrast.losses.candidates import (
    MAX_MODALITIES,
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
)
from multicontrast.losses.softmax import Masks
from multicontrast.losses.terms import TRIPLET, Plan, Term
from multicontrast.losses.triton import fused_operator, kernels
from multicontrast.similarity import MeanCosine, resolve_similarity


class Implementation(NamedTuple):
    """Which plans it computes, and how. Without ``takes_half`` embeddings are float32 at least."""

    name: str
    applies: Callable[[Plan, Sequence[Tensor]], bool]
    loss: Callable[[Plan, Sequence[Tensor]], Tensor]
    takes_half: bool = False


IMPLEMENTATIONS = (
    Implementation("cpu", cpu.applies, cpu.loss),
    Implementation("fused", fused_operator.applies, fused_operator.loss, takes_half=True),
    Implementation("triton", kernels.applies, kernels.loss, takes_half=True),
    Implementation("streamed", streamed.applies, streamed.loss),
    Implementation("reference", reference.applies, reference.loss),
)
"""The first that applies computes a plan. All give the reference's numbers, to rounding."""

_ALWAYS_HELD = 1 << 28  # bytes of Gram blocks and their gradients that nobody asks the free memory about


def run(operation: str, plan: Plan, embeddings: Sequence[Tensor], impl: str | None = None) -> Tensor:
    """The plan's loss by the first implementation that applies, or by the one that is named."""
    if impl is not None:
        check_choice(operation, "impl", impl, [found.name for found in IMPLEMENTATIONS])
    dtype = compute_dtype(*embeddings)
    wide = [x.to(dtype) for x in embeddings]
    for found in IMPLEMENTATIONS:
        xs = embeddings if found.takes_half else wide
        if impl in (None, found.name) and found.applies(plan, xs):
            try:
                return found.loss(plan, xs)
            except KernelUnavailable as error:
                give_way(error)
    remedy = "Leave `impl` out."
    raise ValueError(three_beats(f"`{operation}` needs a plan that {impl!r} computes", "another", remedy))


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
    """What the options of a loss mean; raises for those that do not go together.

    Args:
        like: tensors of the shape, type and device of the whole batch.
        taus: the temperature, or one for each term by its name.
        anchors: the rows that this process answers for; None for all.
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
    return dataclasses.replace(plan, tiled=not _holds_blocks(operation, plan, like[0], options["tiled"]))


_COSINE = MeanCosine()


def _holds_blocks(operation: str, plan: Plan, like: Tensor, tiled: bool | None) -> bool:
    """Whether the Gram blocks are held whole: as asked for, or if they and their gradients take at most half of the
    free memory."""
    every = any(part.are_all for term in plan.terms for parts in term.directions for part in parts)
    if every and tiled:
        needed = f"`{operation}` streams negatives='all' over whole Gram blocks"
        raise ValueError(three_beats(needed, "tiled=True", "Leave `tiled` out, or choose a sampled scheme."))
    if tiled is not None or every or torch.compiler.is_compiling():
        return not tiled
    itemsize = 8 if like.dtype == torch.float64 else 4
    rows = plan.size if plan.tuples is not None else plan.stop - plan.start
    bytes_needed = 2 * len(plan.blocks) * rows * plan.size * itemsize
    return bytes_needed <= _ALWAYS_HELD or 2 * bytes_needed <= reference.free_memory(like.device)


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
    """Which tuples the anchors are compared with."""
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
            needed = f"`{operation}` reads the number of negatives off the index, {negatives.shape[1] - 1}"
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
    """Raise unless every tuple of the batch may be compared."""
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


def check_count_of_modalities(operation: str, count: int) -> None:
    """Raise unless there are 2 to 8 modalities."""
    if not 2 <= count <= MAX_MODALITIES:
        needed = f"`{operation}` needs 2 to {MAX_MODALITIES} modalities"
        raise ValueError(three_beats(needed, str(count), "Pass a tensor for each."))
