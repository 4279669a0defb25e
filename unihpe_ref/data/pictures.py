"""Photographs: decoding them, cutting crops out of them, and packing crops into few files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from unihpe_ref.unfit import reading

from .shapes import Array

if TYPE_CHECKING:
    from PIL import Image

SHARD = 2048  # pictures in each file of a pack
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000")
MOST_PIXELS = 100_000_000  # a photograph of 100 megapixels takes 300 MB


def open_picture(source: Path | IO[bytes]) -> Image.Image:
    """A photograph whose pixels are still encoded. Only formats of photographs are tried, because Pillow knows seventy
    formats and starts Ghostscript for some.

    Raises: OSError for other files.
    """
    from PIL import Image

    Image.init()
    return Image.open(source, formats=[name for name in FORMATS if name in Image.OPEN])


def decode(content: bytes, name: object, *, upright: bool = False) -> Image.Image:
    """RGB pixels of an encoded picture, turned by its EXIF orientation if ``upright``.

    Data sets annotate pixels as stored; photographs are shown upright.
    Raises ``ValueError`` if it is damaged or too large for a photograph.
    """
    from PIL import Image, ImageOps

    needed = f"`decode` needs a picture that can be read at {name}"
    errors = (OSError, Image.DecompressionBombError)
    with reading(needed, also=errors), open_picture(io.BytesIO(content)) as picture:
        if picture.width * picture.height > MOST_PIXELS:
            raise ValueError(f"{picture.width} x {picture.height} pixels")
        return (ImageOps.exif_transpose(picture) if upright else picture).convert("RGB")


def warp(picture: Image.Image, affine: Array, size: tuple[int, int]) -> Array:
    """A picture through an affine map, bilinear (colours rounded down), black outside.

    Args:
        picture: RGB. affine: ``(2, 3)``, pixels of the picture to pixels of the result, centres at whole numbers.
        size: (height, width) of the result.
    Returns: ``(height, width, 3)`` uint8.
    """
    from PIL import Image

    linear, shift = np.asarray(affine[:, :2], float), np.asarray(affine[:, 2], float)
    back = np.linalg.inv(linear)
    origin = -back @ shift
    # Pillow has the centre of a pixel at +0.5
    origin = origin + 0.5 - back @ np.array([0.5, 0.5])
    data = (back[0, 0], back[0, 1], origin[0], back[1, 0], back[1, 1], origin[1])
    turned = picture.transform((size[1], size[0]), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    return np.asarray(turned)


def encode(pixels: Array) -> bytes:
    """``(H, W, 3)`` uint8 as a JPEG of high quality; the same bytes for the same pixels."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


class Shards:
    """Pictures packed end to end in files, each memory-mapped when first used.

    Args:
        files: in order, :data:`SHARD` pictures in each but the last. offsets: ``(P + F,)`` int64: for each file the
            byte where each of its pictures begins, and its length.
    """

    def __init__(self, files: Sequence[Path], offsets: Array) -> None:
        self._files = list(files)
        self._offsets = offsets
        self._maps: dict[int, Array] = {}

    def __getitem__(self, number: int) -> bytes:
        shard, place = divmod(number, SHARD)
        if shard not in self._maps:
            self._maps[shard] = np.memmap(self._files[shard], np.uint8, "r")
        start, end = self._offsets[shard * (SHARD + 1) + place :][:2]
        return self._maps[shard][int(start) : int(end)].tobytes()

    def __getstate__(self) -> dict[str, Any]:
        """The state without the open maps, because workers open their own."""
        return {"_files": self._files, "_offsets": self._offsets, "_maps": {}}
