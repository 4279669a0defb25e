"""Crops of photographs for the image encoder: a box of a picture, resampled to the size of the crop."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from unihpe_ref.data import crop_affine
from unihpe_ref.data.pictures import warp


def crop_image(
    picture: Image.Image,
    box: Tensor,
    size: tuple[int, int],
    *,
    convention: str = "aligned",
    antialias: bool = False,
) -> Tensor:
    """The crop that :func:`unihpe_ref.data.crop_affine` describes, ``(3, H, W)``, RGB in [0, 1].

    Args:
        picture: RGB.
        box: ``(3,)`` centre and longer side, pixels. What lies outside the picture is black.
        size: height and width of the crop.
        convention: of the crop's pixels, as in the model's training (``data.crop``).
        antialias: average pixels before a strong reduction. Models trained on crops of recordings expect False, because
            those crops are made without it; rendered pictures have smooth edges.
    """
    affine = crop_affine(box.double(), size, convention=convention)
    factor = max(1, int(1 / float(affine[0, 0]) + 1e-6)) if antialias else 1
    if factor > 1:  # pixel k of the smaller picture covers pixels k * factor to (k + 1) * factor - 1
        picture = picture.reduce(factor)
        affine[:, 2] += affine[:, :2].sum(-1) * (factor - 1) / 2
        affine[:, :2] *= factor
    return torch.from_numpy(warp(picture, affine.numpy(), size).copy()).permute(2, 0, 1).float() / 255
