"""Photographs as the image encoder wants them: a box of a picture, resampled to the size of the crop."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unihpe_ref.data import crop_affine, invert_affine


def crop_image(picture: Image.Image, box: Tensor, size: tuple[int, int]) -> Tensor:
    """The crop that :func:`unihpe_ref.data.crop_affine` describes, ``(3, H, W)``, RGB in [0, 1].

    Args:
        picture: RGB.
        box: ``(3,)`` centre and longer side, pixels. What lies outside the picture is black.
        size: height and width of the crop.
    """
    affine = crop_affine(box.double(), size)
    # A large box is first reduced by averaging: bilinear sampling alone would skip pixels.
    reduction = max(1, int(1 / float(affine[0, 0]) + 1e-6))
    if reduction > 1:
        picture = picture.reduce(reduction)
    back = invert_affine(affine)
    # Pillow counts pixels from their corners, we from their centres; a reduced picture's pixels are `reduction` wide.
    linear = back[:, :2]
    shift = (back[:, 2] + 0.5 - linear.sum(-1) * 0.5) / reduction
    linear = linear / reduction
    coefficients = (*linear[0].tolist(), shift[0].item(), *linear[1].tolist(), shift[1].item())
    height, width = size
    crop = picture.transform((width, height), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(crop, dtype=np.float32) / 255).permute(2, 0, 1)
