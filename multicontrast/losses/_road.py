"""Which cells a scheme means, and which road a loss takes over them: decided once, here, below the front door."""

from __future__ import annotations

import torch
from torch import Tensor

from multicontrast._backend import KernelUnavailable, give_way, use_triton
from multicontrast._checks import check_choice, check_generator, compute_dtype, describe, three_beats, values_are_free
from multicontrast.losses._arguments import check_index
from multicontrast.losses._cells import Cells, IndexCells, ListCells, PermutationCells
from multicontrast.losses._dense import dense_loss
from multicontrast.losses._diagnostics import Diagnostics
from multicontrast.losses._kernels import fused, has_kernels, is_fused, kernel_loss
from multicontrast.losses._masked import masked_loss
from multicontrast.losses._plain import plain_loss
from multicontrast.losses._shift_cells import ShiftCells
from multicontrast.losses._tiled import ALWAYS_ABOVE, check_tiled, tiled_loss
from multicontrast.losses._walk import Tuples, Walk
from multicontrast.negatives import (
    SCHEMES,
    bring,
    check_counts,
    draw_cyclic,
    draw_permutations,
    draw_shared,
    sample_tuples,
)
from multicontrast.similarity import MeanCosine, Multilinear, Similarity, resolve_similarity

ANCHORS = (0, "any")
MAX_MODALITIES = 8


def choose_tuples(
    operation: str,
    embeddings: list[Tensor],
    similarity: str | Similarity,
    negatives: str | Tensor,
    num_negatives: int | None,
    anchor: int | str,
    generator: torch.Generator | None,
    alpha: float = 1.0,
    anchors: tuple[int, int] | None = None,
) -> Tuples | None:
    """The tuple term that the arguments of a loss describe; raises for what does not go together.

    With ``alpha=0`` the arguments are checked, nothing is drawn, and there is no term. For a range of ``anchors`` the
    embeddings are those of the whole batch, and so is what is drawn; an index has the rows of the range alone.
    """
    first = embeddings[0]
    size, count = len(first), len(embeddings)
    start, stop = (0, size) if anchors is None else anchors
    resolved = resolve_similarity(operation, similarity)
    if isinstance(anchor, bool) or not isinstance(anchor, (int, str)) or anchor not in ANCHORS:
        raise ValueError(
            three_beats(
                f"`{operation}` needs `anchor` to be 0 or 'any'", describe(anchor), "0 is the first modality's row."
            )
        )
    check_generator(operation, generator)
    if anchor == "any" and not (isinstance(negatives, str) and negatives == "all"):
        raise ValueError(
            three_beats(
                f"`{operation}` has `anchor='any'` for `negatives='all'` alone",
                "an index" if isinstance(negatives, Tensor) else f"negatives={negatives!r}",
                "Pass negatives='all', or leave anchor=0.",
            )
        )
    if isinstance(negatives, Tensor):
        check_index(operation, negatives, stop - start, count, first.device, size)
        if num_negatives is not None and num_negatives != negatives.shape[1] - 1:
            raise ValueError(
                three_beats(
                    f"`{operation}` reads the number of negatives off the index, {negatives.shape[1] - 1}",
                    f"num_negatives={num_negatives}",
                    "Leave `num_negatives` out.",
                )
            )
        cells = IndexCells(negatives, batch_size=size, first=start)
        return Tuples(resolved, cells, anchor, alpha) if alpha > 0 else None
    check_choice(operation, "negatives", negatives, SCHEMES)
    if negatives == "all":
        _check_all(operation, count, resolved, num_negatives)
        return Tuples(resolved, None, anchor, alpha) if alpha > 0 else None
    check_counts(operation, size, count, num_negatives, negatives)
    if alpha == 0:
        return None
    return Tuples(resolved, _cells(negatives, first, count, num_negatives, generator), anchor, alpha)


def _check_all(operation: str, num_modalities: int, similarity: object, num_negatives: int | None) -> None:
    if num_negatives is not None:
        raise ValueError(
            three_beats(
                f"`{operation}` compares with every tuple under negatives='all'",
                f"num_negatives={num_negatives}",
                "Leave `num_negatives` out, or choose a sampled scheme.",
            )
        )
    if num_modalities > 3 and not isinstance(similarity, MeanCosine):
        raise ValueError(
            three_beats(
                f"`{operation}` has negatives='all' for up to three modalities, for any number with the mean cosine",
                f"{num_modalities} modalities",
                "Use similarity='mean_cosine', or a sampled scheme.",
            )
        )


def _cells(
    scheme: str, first: Tensor, num_modalities: int, num_negatives: int | None, generator: torch.Generator | None
) -> Cells:
    """The cells of a sampled scheme, in the form that is cheapest to read. Draws what `sample_tuples` would.

    ``first`` has the size and the device of the batch.
    """
    size, device = len(first), first.device
    count = size - 1 if num_negatives is None else num_negatives
    if count > 0 and scheme == "tied" and count == size - 1:
        return ListCells(size, num_modalities, count, None)
    if count > 0 and scheme == "shared" and num_modalities > 2:
        return ListCells(size, num_modalities, count, bring(draw_shared(size, num_modalities, True, generator), device))
    if count > 0 and scheme in ("cyclic", "tied"):
        shifts = draw_cyclic(scheme, size, num_modalities, count, True, generator)
        return ShiftCells(size, bring(shifts, device))
    if count > 0 and scheme == "permutation" and device.type == "cpu" and not use_triton(first):
        return PermutationCells(draw_permutations(size, num_modalities, count, True, generator))
    index = sample_tuples(
        size, num_modalities, num_negatives=num_negatives, scheme=scheme, generator=generator, device=device
    )
    return IndexCells(index, anchored=True)


def walk_loss(
    operation: str,
    embeddings: list[Tensor],
    tau: float | Tensor,
    walk: Walk,
    normalize: bool,
    tiled: bool | None,
    diagnostics: Diagnostics | None = None,
) -> Tensor:
    """The loss of a walk, in float32 at least, whatever autocast says.

    ``embeddings`` are those of the whole batch. With ``walk.anchors`` the result is that of a range of anchors, as
    :class:`~multicontrast.losses._walk.Walk` says: results of ranges that partition the batch add up.
    """
    check_tiled(operation, tiled, walk.tuples)
    if diagnostics is not None:
        _make_ready(operation, diagnostics, walk)
    every_tuple = walk.tuples is not None and walk.tuples.cells is None
    if tiled is None:
        tiled = len(embeddings[0]) > ALWAYS_ABOVE and not every_tuple
    dtype = compute_dtype(*embeddings)
    device = embeddings[0].device
    with torch.autocast(device.type, enabled=False):
        # A number is written on the device that uses it: copied there, the host would wait.
        tau = tau if isinstance(tau, Tensor) else torch.full((), tau, dtype=dtype, device=device)
        if diagnostics is None and is_fused(embeddings, tau, walk, tiled):
            try:
                return fused(embeddings, tau, walk, normalize)
            except KernelUnavailable as error:
                give_way(error)
        xs = [x.to(dtype) for x in embeddings]
        if diagnostics is not None or not walk.is_unmasked:
            return masked_loss(xs, tau, walk, normalize, tiled, diagnostics)
        if has_kernels(xs, tau, walk, tiled):
            return kernel_loss(xs, tau, walk, normalize, tiled)
        if tiled:
            return tiled_loss(xs, tau, walk, normalize)
        if _is_dense(xs, tau, walk):
            return dense_loss(xs, tau, walk, normalize)
        return plain_loss(xs, tau, walk, normalize)


def _make_ready(operation: str, diagnostics: Diagnostics, walk: Walk) -> None:
    """Raise unless the walk can fill the diagnostics; empty them."""
    if not isinstance(diagnostics, Diagnostics):
        raise TypeError(
            three_beats(
                f"`{operation}` needs `diagnostics` to be a Diagnostics or None",
                describe(diagnostics),
                "Make one with `multicontrast.Diagnostics()`, and read it after the call.",
            )
        )
    if diagnostics.sampling_gap and walk.tuples is not None:
        _check_all(operation, walk.num_modalities, walk.tuples.similarity, None)
    diagnostics.pairs, diagnostics.tuples = {}, None


def _is_plain_number(weight: Tensor | None) -> bool:
    """Whether weights want no gradient and may be looked at."""
    return weight is not None and not weight.requires_grad and values_are_free(weight)


def _is_dense(embeddings: list[Tensor], tau: Tensor, walk: Walk) -> bool:
    """Whether the fused CPU road does this walk."""
    tuples = walk.tuples
    return (
        walk.reduction != "none"
        and walk.anchors is None
        and walk.is_unmasked
        and (walk.masks is None or _is_plain_number(walk.masks.weight))
        and (tuples is None or (tuples.cells is not None and not isinstance(tuples.similarity, Multilinear)))
        and bool(walk.blocks)
        and all(values_are_free(x) for x in (*embeddings, tau))
        and not use_triton(embeddings[0])
    )
