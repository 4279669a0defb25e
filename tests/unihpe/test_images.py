"""Crops of photographs: each pixel is where the affine map of the crop says."""

import numpy as np
import torch
from PIL import Image

from unihpe_ref.applications.images import crop_image
from unihpe_ref.data import apply_affine, crop_affine, invert_affine


def ramp(width: int = 120, height: int = 90) -> Image.Image:
    """Red counts columns, green counts rows, two values a pixel."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([2 * columns, 2 * rows, np.zeros_like(rows)], -1).astype(np.uint8))


def test_a_crop_samples_where_its_affine_map_says():
    cases = ((40.0, (64, 48), False), (64.0, (32, 24), False), (64.0, (32, 24), True), (70.0, (20, 16), True))
    for side, size, antialias in cases:  # larger, smaller, much smaller
        box = torch.tensor([59.3, 44.1, side])
        crop = crop_image(ramp(), box, size, antialias=antialias)
        v, u = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
        pixels = torch.stack([u, v], -1).reshape(1, -1, 2).double()
        wanted = apply_affine(invert_affine(crop_affine(box.double(), size))[None], pixels)[0]
        seen = 255 / 2 * crop[:2].permute(1, 2, 0).reshape(-1, 2).double()
        inside = ((wanted > 4) & (wanted < torch.tensor([115.0, 85.0]))).all(-1)
        assert inside.sum() > 100
        assert (seen - wanted)[inside].abs().max() < 0.8  # half of that is the rounding to 8 bits


def test_what_lies_outside_is_black():
    crop = crop_image(ramp(), torch.tensor([-200.0, -200.0, 40.0]), (32, 24))
    assert crop.shape == (3, 32, 24)
    assert not crop.any()
