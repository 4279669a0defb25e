"""Triplet InfoNCE: eq. (3) of UniHPE, for a sample in three modalities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from multicontrast.distributed import Gather
from multicontrast.losses._diagnostics import Diagnostics
from multicontrast.losses._module import as_temperature
from multicontrast.losses.multimodal import tuple_infonce
from multicontrast.similarity import Similarity
from multicontrast.temperature import Temperature

NAMES = ("x_img", "x_2d", "x_3d")


def triplet_infonce(
    x_img: Tensor,
    x_2d: Tensor,
    x_3d: Tensor,
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
    r"""InfoNCE over triplets, one sample in three modalities: image, 2D pose and 3D pose, or any other three.

    .. math:: \mathcal{L}_i = -\log \frac{\exp(\lambda_i^+ / \tau)}
                                         {\exp(\lambda_i^+ / \tau) + \sum_k \exp(\lambda_{ik}^- / \tau)}

    :math:`\lambda`, the largest eigenvalue of the triplet's Gram matrix, lies in [1, 3]. It is blind to signs (cosines
    ``(1, -1, -1)`` score 3): never train with this term alone, but beside the pairs, as
    :func:`multicontrast.trimodal_infonce` does.

    "Triplet" means three modalities here, not (anchor, positive, negative).

    Args:
        x_img, x_2d, x_3d: ``(B, D)`` embeddings, normalised here; row ``i`` of each is sample ``i``.
        tau: temperature, a positive number or 0-dim tensor; it divides.
        similarity, negatives, num_negatives, anchor, generator, reduction, normalize, tiled, gather: see
            :func:`multicontrast.multimodal_infonce`, also for `present`, `ids`, `weight`, `label_smoothing`,
            `hardness`, `extra_negatives` and `diagnostics`. The defaults are the paper's loss, but that the positive
            is kept out of the negatives; ``negatives="all"`` is its exact form, with ``B^2`` triplets in each
            denominator (``anchor=0``) or the ``3 B^2 - 3 B + 1`` that hold any embedding of the anchor
            (``anchor="any"``).

    Returns:
        The loss in float32 (float64 for float64 input). A batch of one has no negatives and the loss 0.

    Raises:
        ValueError, TypeError: for arguments that do not fit; before any work.

    Reference:
        Eq. (3) and Algorithms 1, 2 of Jiang et al., UniHPE, arXiv 2311.16477.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> x_img, x_2d, x_3d = torch.randn(3, 8, 16, generator=generator)
        >>> triplet_infonce(x_img, x_2d, x_3d, 0.2, generator=generator).shape
        torch.Size([])
    """
    return tuple_infonce(
        "triplet_infonce",
        NAMES,
        (x_img, x_2d, x_3d),
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


class TripletInfoNCE(nn.Module):
    """:func:`triplet_infonce` with a temperature of its own, or a shared one.

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
        self.temperature = as_temperature("TripletInfoNCE", temperature)
        self.label_smoothing, self.hardness = label_smoothing, hardness
        self.similarity, self.negatives, self.num_negatives = similarity, negatives, num_negatives
        self.anchor, self.generator = anchor, generator
        self.reduction, self.normalize = reduction, normalize
        self.tiled, self.gather, self.ring = tiled, gather, ring

    def forward(
        self,
        x_img: Tensor,
        x_2d: Tensor,
        x_3d: Tensor,
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
        return triplet_infonce(
            x_img,
            x_2d,
            x_3d,
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
