"""Errors of files that are not what their reader needs."""

from __future__ import annotations

import errno
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from multicontrast._checks import three_beats

try:
    from lzma import LZMAError
except ImportError:  # Python was built without it
    LZMAError = EOFError  # type: ignore[assignment, misc]

AGAIN = "Copy or download it again."
# Errors that parsers raise for files of other kinds and for damaged ones.
_ERRORS = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, EOFError, ImportError, MemoryError,
    RuntimeError, SyntaxError, LZMAError, pickle.UnpicklingError, struct.error, tarfile.TarError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def unfit(needed: str, came: str, remedy: str = AGAIN) -> ValueError:
    """The error to raise."""
    return ValueError(three_beats(needed, came, remedy))


@contextmanager
def reading(needed: str, remedy: str = AGAIN, *, also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turns an error of a parser, or one of ``also``, into a ``ValueError`` in three parts.

    Errors that are already in three parts pass unchanged, and so does an ``OSError`` of the disk. An ``OSError`` of a
    parser has no errno, or that of a position before the file's beginning.
    """
    errors: tuple[type[Exception], ...] = (*_ERRORS, OSError, *also)
    try:
        yield
    except errors as error:
        words = " ".join(str(error).split())
        if isinstance(error, (ValueError, TypeError, OSError)) and "; got " in words:
            raise
        if isinstance(error, OSError) and not isinstance(error, also) and error.errno not in (None, errno.EINVAL):
            raise
        name = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
        raise unfit(needed, f"another file or a damaged one ({name}{words[:200]})", remedy) from error
