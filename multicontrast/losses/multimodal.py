"""Tuple InfoNCE for any number of modalities: eq. (3) of UniHPE with N in place of three."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from multicontrast._checks import describe, three_beats
from multicontrast.distributed import Gather, Meeting
from multicontrast.losses._arguments import (
    check_embeddings,
    check_flag,
    check_masks,
    check_reduction,
    check_ring_flag,
    check_tau,
)
from multicontrast.losses._diagnostics import Diagnostics
from multicontrast.losses._gathered import meet_for_tuples
from multicontrast.losses._module import as_temperature
from multicontrast.losses._road import MAX_MODALITIES
from multicontrast.losses._tiled import check_tiled
from multicontrast.losses._walk import Walk
from multicontrast.similarity import Similarity
from multicontrast.temperature import Temperature


def multimodal_infonce(
    embeddings: Sequence[Tensor],
    tau: float | Tensor,
    *,
    similarity: str | Similarity = "eigenvalue",
    negatives: str | Tensor = "permutation",
    num_negatives: int | None = None,
    anchor: int | str = 0,
    generator: torch.Generator | None = None,
    reduction: str = "mean",
    normalize: bool = True,
    tiled: bool | None = None,
    gather: Gather = False,
    ring: bool = False,
    present: Tensor | None = None,
    ids: Tensor | None = None,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    hardness: float = 0.0,
    extra_negatives: Sequence[Tensor | None] | None = None,
    diagnostics: Diagnostics | None = None,
) -> Tensor:
    r"""InfoNCE over whole tuples of N modalities: row ``i`` of every embedding is one positive tuple.

    .. math:: \mathcal{L}_i = -\log \frac{\exp(s_i^+ / \tau)}{\exp(s_i^+ / \tau) + \sum_k \exp(s_{ik}^- / \tau)}

    with :math:`s` the similarity of a tuple, by default the largest eigenvalue of its Gram matrix, in [1, N]. The
    eigenvalue is blind to signs (cosines ``(1, -1, -1)`` score 3 like ``(1, 1, 1)``): never train with this term alone,
    but beside pairwise terms, as :func:`multicontrast.trimodal_infonce` does.

    The cosines of the tuples are read from the ``(B, B)`` Gram blocks; no ``(B, B, N, D)`` tensor is ever built.

    Args:
        embeddings: N = 2..8 tensors ``(B, D)``, normalised here. Floating types are promoted; half precision computes
            in float32.
        tau: temperature, a positive number or 0-dim tensor; it divides.
        similarity: ``"eigenvalue"``, ``"singular_value"``, ``"mean_cosine"``, ``"volume"``, ``"area"``,
            ``"multilinear"``, or a callable on the list of cosines; see :mod:`multicontrast.similarity`.
        negatives: ``"permutation"`` (UniHPE, Algorithm 1), ``"shared"``, ``"cyclic"``, ``"tied"``, ``"all"`` (exact, up
            to three modalities, any number for the mean cosine), or an index ``(B, 1 + K, N)`` of row numbers whose
            column 0 is the positive, as :func:`multicontrast.sample_tuples` draws; see :mod:`multicontrast.negatives`.
        num_negatives: K for the drawn schemes; ``None`` means B - 1.
        anchor: with ``negatives="all"``, 0 for the tuples that hold the first embedding of the anchor, ``"any"`` for
            those that hold any of its embeddings.
        generator: source of the drawn tuples, on the CPU; torch's global one by default.
        reduction: ``"mean"`` over the anchors, ``"sum"``, or ``"none"`` for ``(B,)``.
        normalize: False promises rows of length one.
        tiled: compute in tiles and never hold a ``(B, B)`` tensor; ``None`` does so for more than 8192 samples, but not
            for ``negatives="all"``, which needs its Gram blocks. First derivatives only for the pairs.
        gather: True, or a process group, for the rows of all ranks as candidates; each rank answers for its own
            anchors, and the mean over the ranks is the loss of one process. An index is
            ``(B_local, 1 + K, N)`` then, in row numbers of all ranks. See :mod:`multicontrast.distributed`.
        ring: with ``gather``, never hold the logits of all candidates; under ``negatives="tied"`` nor their embeddings,
            which travel from rank to rank. Not with ``anchor="any"``. First derivatives only.
        present: bool ``(B, N)``: which samples have which modality. A tuple is as alike as those of its members that
            are there, and needs two; samples with fewer are as if they were not in the batch, whatever their rows hold.
        ids: integers ``(B,)``: a tuple all of whose members have the anchor's number is no negative.
        weight: ``(B,)``, not negative: factors of the anchors' losses; the mean divides by their sum.
        label_smoothing: share of the target that is spread evenly over all candidates, the positive included.
        hardness: exponent by which near negatives count more; see :doc:`/losses/masks-and-weights`.
        extra_negatives: N tensors ``(E, D)``, or None for a modality: further samples, each of which is a negative of
            every anchor as the tuple of the anchor's first embedding and the sample's others.
        diagnostics: a :class:`multicontrast.Diagnostics` that the call fills.

    Returns:
        The loss in float32 (float64 for float64 input). A batch of one has no negatives and the loss 0.

    Raises:
        ValueError, TypeError: for arguments that do not fit; before any work. On CUDA and in compiled graphs values
            are not looked at, and an invalid temperature or index gives NaN.

    Reference:
        Eq. (3) and Algorithms 1, 2 of Jiang et al., UniHPE, arXiv 2311.16477.

    Example:
        >>> import torch
        >>> rows = torch.eye(4)
        >>> loss = multimodal_infonce([rows, rows, rows, rows], 0.05, negatives="tied")
        >>> loss.item() < 1e-6
        True
    """
    operation = "multimodal_infonce"
    if isinstance(embeddings, Tensor) or not isinstance(embeddings, Sequence):
        raise TypeError(
            three_beats(f"`{operation}` needs a list or tuple of embeddings", describe(embeddings), "Pass [x, y, ...].")
        )
    names = [f"embeddings[{m}]" for m in range(len(embeddings))]
    return tuple_infonce(
        operation,
        names,
        embeddings,
        tau,
        similarity,
        negatives,
        num_negatives,
        anchor,
        generator,
        reduction,
        normalize,
        tiled,
        gather,
        ring,
        present,
        ids,
        weight,
        label_smoothing,
        hardness,
        extra_negatives,
        diagnostics,
    )


def tuple_infonce(
    operation: str,
    names: Sequence[str],
    embeddings: Sequence[Tensor],
    tau: float | Tensor,
    similarity: str | Similarity,
    negatives: str | Tensor,
    num_negatives: int | None,
    anchor: int | str,
    generator: torch.Generator | None,
    reduction: str,
    normalize: bool,
    tiled: bool | None,
    gather: Gather,
    ring: bool,
    present: Tensor | None,
    ids: Tensor | None,
    weight: Tensor | None,
    label_smoothing: float,
    hardness: float,
    extra_negatives: Sequence[Tensor | None] | None,
    diagnostics: Diagnostics | None,
) -> Tensor:
    """:func:`multimodal_infonce` under the name of the function that was called."""
    with Meeting(operation, gather) as meeting:
        if not 2 <= len(embeddings) <= MAX_MODALITIES:
            raise ValueError(
                three_beats(
                    f"`{operation}` needs 2 to {MAX_MODALITIES} modalities", str(len(embeddings)), "Pass one for each."
                )
            )
        check_embeddings(operation, names, embeddings, may_be_empty=not meeting.alone)
        check_tau(operation, tau)
        check_flag(operation, "normalize", normalize)
        check_reduction(operation, reduction)
        check_ring_flag(operation, ring, gather, tiled)
        ring = ring and diagnostics is None  # which look at logits
        options = {"normalize": normalize, "reduction": reduction, "tiled": tiled, "ring": ring}
        terms = (similarity, negatives, num_negatives, anchor, generator)
        masks = check_masks(operation, embeddings, present, ids, weight, label_smoothing, hardness, extra_negatives)
        batch, tuples = meet_for_tuples(operation, meeting, embeddings, tau, options, terms, masks=masks, ring=ring)
        check_tiled(operation, tiled, tuples)
    walk = Walk(len(embeddings), (), True, tuples, reduction, batch.anchors, batch.masks)
    return batch.loss(operation, walk, normalize=normalize, tiled=tiled, diagnostics=diagnostics)


class MultimodalInfoNCE(nn.Module):
    """:func:`multimodal_infonce` with a temperature of its own, or a shared one.

    Args:
        temperature: an initial value, for a learnable :class:`multicontrast.Temperature` without bounds, or a
            :class:`~multicontrast.Temperature`. Its parameter has to be in the optimizer, without weight decay.
        similarity, negatives, num_negatives, anchor, generator: as for the function.
        reduction, normalize, tiled, gather, ring, label_smoothing, hardness: as for the function.
    """

    def __init__(
        self,
        temperature: float | Temperature = 0.07,
        *,
        similarity: str | Similarity = "eigenvalue",
        negatives: str = "permutation",
        num_negatives: int | None = None,
        anchor: int | str = 0,
        generator: torch.Generator | None = None,
        reduction: str = "mean",
        normalize: bool = True,
        tiled: bool | None = None,
        gather: Gather = False,
        ring: bool = False,
        label_smoothing: float = 0.0,
        hardness: float = 0.0,
    ) -> None:
        super().__init__()
        self.temperature = as_temperature(type(self).__name__, temperature)
        self.label_smoothing, self.hardness = label_smoothing, hardness
        self.similarity, self.negatives, self.num_negatives = similarity, negatives, num_negatives
        self.anchor, self.generator = anchor, generator
        self.reduction, self.normalize = reduction, normalize
        self.tiled, self.gather, self.ring = tiled, gather, ring

    def forward(
        self,
        embeddings: Sequence[Tensor],
        *,
        negatives: Tensor | None = None,
        present: Tensor | None = None,
        ids: Tensor | None = None,
        weight: Tensor | None = None,
        extra_negatives: Sequence[Tensor | None] | None = None,
        diagnostics: Diagnostics | None = None,
    ) -> Tensor:
        """The loss of a batch; an index passed here takes the place of the drawn negatives. The rest as for
        the function."""
        return multimodal_infonce(
            embeddings,
            self.temperature(),
            similarity=self.similarity,
            negatives=self.negatives if negatives is None else negatives,
            num_negatives=self.num_negatives if negatives is None else None,
            anchor=self.anchor,
            generator=self.generator,
            reduction=self.reduction,
            normalize=self.normalize,
            tiled=self.tiled,
            gather=self.gather,
            ring=self.ring,
            present=present,
            ids=ids,
            weight=weight,
            label_smoothing=self.label_smoothing,
            hardness=self.hardness,
            extra_negatives=extra_negatives,
            diagnostics=diagnostics,
        )
