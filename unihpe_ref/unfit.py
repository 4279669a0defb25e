"""Errors of files that are not what their reader needs."""

from __future__ import annotations

import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from multicontrast._checks import three_beats

AGAIN = "Copy or download it again."
PARSER_ERRORS = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, EOFError, ImportError, MemoryError,
    RuntimeError, SyntaxError, pickle.UnpicklingError, struct.error, tarfile.TarError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What parsers raise for other files and for damaged ones."""


class Unfit(ValueError):
    """A file is not what its reader needs; its message has the usual three parts."""


def unfit(needed: str, came: str, remedy: str = AGAIN) -> Unfit:
    """The error to raise."""
    return Unfit(three_beats(needed, came, remedy))


@contextmanager
def reading(needed: str, remedy: str = AGAIN, *, also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Within it an error of a parser (or one of ``also``) becomes :class:`Unfit`, which itself passes as it is."""
    try:
        yield
    except Unfit:
        raise
    except (*PARSER_ERRORS, *also) as error:
        words = " ".join(str(error).split())[:200]
        words = words if isinstance(error, (ValueError, *also)) else f"{type(error).__name__}: {words}"
        raise unfit(needed, f"another file or a damaged one ({words})", remedy) from None
