"""Reads cells of numbers from untrusted MATLAB files of version 5 and 7.

An element can state any size and nest others. Nothing is read beyond an element, and a cell may hold numbers only.

The format: https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .archives import is_bomb

_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_CELL, _OPAQUE, _NUMERIC, _COMPLEX = 1, 17, range(6, 16), 0x0800
_CHUNK = 1 << 16
_Read = Callable[[int], "bytes | bytearray"]


def read_cells(path: Path, names: Sequence[str]) -> dict[str, list[NDArray[Any]]]:
    """The cells of variables by name, in MATLAB's order; absent variables are left out.

    Raises: OSError if the file cannot be read; ValueError for another format, cells of anything but real numbers,
        and sizes that the file does not hold.
    """
    found = {}
    with path.open("rb") as file:
        head, size = file.read(128), path.stat().st_size
        if head[124:128] != b"\x00\x01IM":  # little-endian, as all recent versions
            raise ValueError("another format, or MATLAB's version 4 or 7.3")
        while file.tell() < size:
            kind, packed = np.frombuffer(_exactly(file.read, 8), "<u4").tolist()
            end = file.tell() + packed
            if end > size:
                raise ValueError(f"an element of {packed} bytes in a file of {size}")
            part = _Part(file.read, packed)
            if kind == _COMPRESSED:
                part = _Part(_inflated(file, packed), 8)
                kind, part.left = np.frombuffer(part.take(8), "<u4").tolist()
            if kind == _MATRIX:
                shape, name, held = part.matrix()
                if name in names:
                    if held != _CELL:
                        raise ValueError(f"{name!r}, which is not made of cells")
                    if is_bomb(part.left, packed):
                        raise ValueError(f"{name!r} of {part.left} bytes packed in {packed}")
                    count = math.prod(shape)
                    if count > part.left // 8:
                        raise ValueError(f"{name!r} of {count} cells in {part.left} bytes")
                    found[name] = [part.cell(name) for _ in range(count)]
            file.seek(end)
    return found


class _Part:
    """The bytes of an element."""

    def __init__(self, read: _Read, left: int) -> None:
        self._read, self.left = read, left

    def take(self, count: int) -> bytes | bytearray:
        if count > self.left:
            raise ValueError(f"{count} bytes where {self.left} are left")
        self.left -= count
        return _exactly(self._read, count)

    def values(self, *kinds: int) -> NDArray[Any]:
        """The numbers of the next element, which must be of one of ``kinds``."""
        tag = self.take(4)
        kind = int(np.frombuffer(tag, "<u4")[0])
        if kind >> 16:  # up to four bytes, in the tag itself
            kind, count, padding = kind & 0xFFFF, kind >> 16, 4 - (kind >> 16)
        else:
            count = int(np.frombuffer(self.take(4), "<u4")[0])
            padding = min(-count % 8, max(0, self.left - count))
        if kind not in kinds or padding < 0 or count % np.dtype(_NUMBERS[kind]).itemsize:
            raise ValueError(f"{count} bytes of the kind {kind}")
        content = self.take(count)
        self.take(padding)
        return np.frombuffer(content, "<" + _NUMBERS[kind])

    def matrix(self) -> tuple[list[int], str, int]:
        """The shape of a matrix, its name and its class; the class is 0 for a complex matrix."""
        flags = self.values(_UINT32)
        if len(flags) and flags[0] & 0xFF == _OPAQUE:
            return [], "", _OPAQUE
        shape = self.values(_INT32).tolist()
        name = self.values(_INT8).tobytes().decode("latin-1")
        if len(flags) != 2 or not 2 <= len(shape) <= 32 or min(shape) < 0:
            raise ValueError(f"a matrix of shape {shape}")
        return shape, name, 0 if flags[0] & _COMPLEX else int(flags[0]) & 0xFF

    def cell(self, name: str) -> NDArray[Any]:
        kind, count = np.frombuffer(self.take(8), "<u4").tolist()
        if kind != _MATRIX or count > self.left:
            raise ValueError(f"a cell of {name!r} of {count} bytes where {self.left} are left")
        part = _Part(self.take, count)
        shape, _, held = part.matrix()
        if held not in _NUMERIC:
            raise ValueError(f"a cell of {name!r} without real numbers")
        values = part.values(*_NUMBERS)
        if part.left or len(values) != math.prod(shape):
            raise ValueError(f"a cell of {name!r} of shape {shape} with {len(values)} numbers")
        return values.reshape(shape, order="F")


def _exactly(read: _Read, count: int) -> bytes | bytearray:
    content = read(count)
    if len(content) < count:
        raise ValueError("an end before that of its last element")
    return content


def _inflated(file: IO[bytes], packed: int) -> _Read:
    """A reader of an element compressed in so many bytes."""
    unzip, left = zlib.decompressobj(), packed

    def read(count: int) -> bytearray:
        nonlocal left
        found = bytearray()
        while len(found) < count:
            chunk = unzip.unconsumed_tail or file.read(min(_CHUNK, left))
            left -= 0 if unzip.unconsumed_tail else len(chunk)
            try:
                more = unzip.decompress(chunk, count - len(found))
            except zlib.error as error:
                raise ValueError(str(error)) from None
            if not more and not chunk:
                break
            found += more
        return found

    return read
