"""Pairwise InfoNCE: eq. (1) of UniHPE, the CLIP loss when symmetric."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

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
from multicontrast.losses._gathered import meet
from multicontrast.losses._module import as_temperature
from multicontrast.losses._tiled import check_tiled
from multicontrast.losses._walk import Walk
from multicontrast.temperature import Temperature


def pairwise_infonce(
    x: Tensor,
    y: Tensor,
    tau: float | Tensor,
    *,
    symmetric: bool = True,
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
    r"""InfoNCE between two modalities: row ``i`` of ``x`` matches row ``i`` of ``y``, all other rows are negatives.

    .. math:: \mathcal{L}_i = -\log \frac{\exp(\langle x_i, y_i \rangle / \tau)}
                                         {\sum_j \exp(\langle x_i, y_j \rangle / \tau)}

    One Gram product serves both directions, and one exponential each softmax of a row and of a column.

    Args:
        x, y: ``(B, D)`` embeddings, normalised here. Floating types are promoted; half precision computes in float32.
        tau: temperature, a positive number or 0-dim tensor; it divides (CLIP's ``logit_scale`` is ``1 / tau``).
        symmetric: the mean of both directions; False takes only ``x`` as anchors.
        reduction: ``"mean"`` over the batch, ``"sum"``, or ``"none"`` for ``(B,)``.
        normalize: False promises rows of length one.
        tiled: compute in tiles and never hold a ``(B, B)`` tensor, at the cost of one more product in the backward
            pass; ``None`` does so for more than 8192 samples. First derivatives only.
        gather: True, or a process group, for the rows of all ranks as candidates; each rank answers for its own
            anchors, and the mean over the ranks is the loss of one process. See :mod:`multicontrast.distributed`.
        ring: with ``gather``, let the candidates travel from rank to rank: no rank ever holds the logits of all of
            them, nor the embeddings. First derivatives only.
        present: bool ``(B, 2)``: which samples have which modality. Those that lack one are as if they were not there,
            whatever their rows hold.
        ids: integers ``(B,)``: samples with equal numbers are no negatives of each other.
        weight: ``(B,)``, not negative: factors of the anchors' losses; the mean divides by their sum.
        label_smoothing: share of the target that is spread evenly over all candidates, the positive included.
        hardness: exponent by which near negatives count more; see :doc:`/losses/masks-and-weights`.
        extra_negatives: ``[extra_x, extra_y]``, each ``(E, D)`` or None: further candidates for the anchors of the
            other modality.
        diagnostics: a :class:`multicontrast.Diagnostics` that the call fills.

    Returns:
        The loss in float32 (float64 for float64 input). A batch of one has the loss 0.

    Raises:
        ValueError, TypeError: for shapes, types, devices or a temperature that do not fit; before any work.

    Reference:
        Eq. (1) of Jiang et al., UniHPE, arXiv 2311.16477; van den Oord et al., arXiv 1807.03748.

    Example:
        >>> import torch
        >>> x = torch.eye(4)
        >>> round(pairwise_infonce(x, x, 1.0).item(), 4)  # log(1 + 3 / e)
        0.7437
    """
    operation = "pairwise_infonce"
    with Meeting(operation, gather) as meeting:
        check_embeddings(operation, ("x", "y"), (x, y), may_be_empty=not meeting.alone)
        check_tau(operation, tau)
        options: dict[str, object] = {"symmetric": symmetric, "normalize": normalize}
        for name, value in options.items():
            check_flag(operation, name, value)
        check_reduction(operation, reduction)
        check_ring_flag(operation, ring, gather, tiled)
        ring = ring and diagnostics is None  # which look at logits
        check_tiled(operation, tiled, None)
        masks = check_masks(operation, (x, y), present, ids, weight, label_smoothing, hardness, extra_negatives)
        options |= {"reduction": reduction, "tiled": tiled, "ring": ring}
        batch = meet(meeting, [x, y], tau, options, masks=masks, ring=ring)
    walk = Walk(2, ((0, 1),), symmetric, None, reduction, batch.anchors, batch.masks)
    return batch.loss(operation, walk, normalize=normalize, tiled=tiled, diagnostics=diagnostics)


class PairwiseInfoNCE(nn.Module):
    """:func:`pairwise_infonce` with a temperature of its own, or a shared one.

    Args:
        temperature: an initial value, for a learnable :class:`multicontrast.Temperature` without bounds, or a
            :class:`~multicontrast.Temperature`. Its parameter has to be in the optimizer, without weight decay.
        symmetric, reduction, normalize, tiled, gather, ring, label_smoothing, hardness: as for the function.

    Example:
        >>> import torch
        >>> loss = PairwiseInfoNCE(0.07)
        >>> loss(torch.eye(4), torch.eye(4)).item() < 1e-5
        True
    """

    def __init__(
        self,
        temperature: float | Temperature = 0.07,
        *,
        symmetric: bool = True,
        reduction: str = "mean",
        normalize: bool = True,
        tiled: bool | None = None,
        gather: Gather = False,
        ring: bool = False,
        label_smoothing: float = 0.0,
        hardness: float = 0.0,
    ) -> None:
        super().__init__()
        self.temperature = as_temperature("PairwiseInfoNCE", temperature)
        self.label_smoothing, self.hardness = label_smoothing, hardness
        self.symmetric, self.reduction = symmetric, reduction
        self.normalize, self.tiled = normalize, tiled
        self.gather, self.ring = gather, ring

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        *,
        present: Tensor | None = None,
        ids: Tensor | None = None,
        weight: Tensor | None = None,
        extra_negatives: Sequence[Tensor | None] | None = None,
        diagnostics: Diagnostics | None = None,
    ) -> Tensor:
        """The loss of a batch. Its options are as for the function."""
        return pairwise_infonce(
            x,
            y,
            self.temperature(),
            symmetric=self.symmetric,
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
