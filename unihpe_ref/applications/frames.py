"""Reads pictures and videos: upright, in RGB."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from multicontrast._checks import three_beats
from unihpe_ref.applications.detector import INSTALL
from unihpe_ref.data.pictures import decode
from unihpe_ref.unfit import reading

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".gif")


@dataclass(frozen=True)
class Frame:
    """A picture of a video. ``time`` in seconds."""

    number: int
    time: float
    picture: Image.Image


def read_picture(path: Path) -> Image.Image:
    """A picture in RGB, turned by its EXIF orientation. Raises: OSError or ValueError if it cannot be read."""
    return decode(path.read_bytes(), path, upright=True)


def read_video(path: Path) -> Iterator[Frame]:
    """The frames of a video, turned by its display matrix. Needs PyAV, from the extra `detect`.

    Raises: OSError or ValueError if it cannot be read, or PyAV is missing.
    """
    if importlib.util.find_spec("av") is None:
        needed = "reading a video needs the extra `detect`"
        raise ValueError(three_beats(needed, "no package av", f"Run `{INSTALL}`."))
    import av

    path.stat()  # raises for a missing file
    number = -1
    needed, remedy = f"`read_video` needs a video that can be read at {path}", "Copy it again, or convert it to MP4."
    with reading(needed, remedy, also=(av.error.FFmpegError,)), av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("no pictures")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for number, frame in enumerate(container.decode(stream)):
            rotation = int(getattr(frame, "rotation", 0) or 0)
            picture = frame.to_image()
            seconds = float(frame.time) if frame.time is not None else number / float(stream.average_rate or 30)
            yield Frame(number, seconds, picture.rotate(rotation, expand=True) if rotation else picture)
    if number < 0:
        needed = f"`read_video` needs frames in {path}"
        raise ValueError(three_beats(needed, "none", "Copy it again."))


def thumbnail(picture: Image.Image, most: int = 480, quality: int = 70) -> bytes:
    """A picture as JPEG, at most ``most`` pixels wide and high."""
    small = picture.copy()
    small.thumbnail((most, most))
    content = io.BytesIO()
    small.save(content, "JPEG", quality=quality)
    return content.getvalue()
