"""Reads untrusted pickles of arrays, numbers, texts and containers; no code in a file can run.

Data sets come as pickles (3DPW, ``cameras.pkl``) and as npz files with pickles inside (VideoPose3D). Python's own
unpickler imports and calls whatever a file names. This one knows the eight names of numpy's arrays and replaces each by
a function that builds plain arrays from checked parts; everything else is refused.

A few bytes can also request gigabytes or years of work: a place in the memo, a size, or a dictionary key that is a
tuple of the same tuple twice, nested forty times. So the instructions are checked before they are executed.
"""

from __future__ import annotations

import collections
import io
import math
import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format

from multicontrast._checks import three_beats
from unihpe_ref.unfit import reading, unfit

from .archives import is_bomb

_PLAIN_DTYPE = re.compile(r"[|<>=]?(?:[biufcSU]\d+|O\d*|b1)")


class UnsafePickle(ValueError):
    """A pickle that requests something other than arrays and plain values."""


class Inert:
    """An object of another package, kept as the data it was made of. Nothing of that package is imported or run.

    Attributes:
        state: what the object stored, by name.
    """

    state: dict[str, Any]

    def __new__(cls, *arguments: Any) -> Inert:
        made = super().__new__(cls)
        made.state = {}
        return made

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.state.update(part)


def load_pickle(path: str | os.PathLike[str], *, encoding: str = "latin1", inert: tuple[str, ...] = ()) -> Any:
    """Reads one pickle, of Python 2 or 3, protocols 0 to 5.

    Args:
        path: the file. encoding: of byte strings from Python 2, whose arrays need latin1.
        inert: packages whose objects are read as :class:`Inert` data instead of being refused.
    Returns: dictionaries, lists, tuples, texts, numbers and numpy arrays (of plain types, or of such objects).
    Raises: OSError if the file cannot be opened; ValueError if it is damaged or asks for anything else.
    """
    path = Path(path)
    return _load(path.read_bytes(), str(path), encoding, inert)


def read_npz(path: str | os.PathLike[str], names: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
    """Reads an npz archive; arrays of objects are unpickled as :func:`load_pickle` does.

    Args:
        path: the archive. names: the entries to read; all unless given. Those that are absent are left out.
    Raises: OSError if the file cannot be opened; ValueError if it is damaged or holds more than arrays.
    """
    path = Path(path)
    with reading(f"{path} needs to be a whole npz archive"), zipfile.ZipFile(path) as archive:
        members = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
        wanted = members if names is None else [name for name in names if name in members]
        arrays = {}
        for name in wanted:
            info = archive.getinfo(members[name])
            if is_bomb(info.file_size, info.compress_size):
                raise ValueError(f"{name}, {info.file_size} bytes packed into {info.compress_size}")
            with archive.open(info) as file:
                arrays[name] = _read_npy(file, f"{path} ({name})")
        return arrays


def _read_npy(file: IO[bytes], name: str) -> np.ndarray:
    content = io.BytesIO(file.read())
    version = npy_format.read_magic(content)
    read_header = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, _, dtype = read_header(content)
    if not dtype.hasobject:
        left = content.getbuffer().nbytes - content.tell()
        if any(type(size) is not int or size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != left:
            raise ValueError(f"{left} bytes for the shape {shape}")
        content.seek(0)
        return npy_format.read_array(content, allow_pickle=False)
    held = _load(content.read(), name, "latin1")
    if not isinstance(held, np.ndarray) or not held.dtype.hasobject or held.size != math.prod(shape):
        came = f"a pickled {type(held).__name__}"
        raise unfit(f"{name} needs an array of shape {shape}", came)
    return held.reshape(shape)


def _load(content: bytes, name: str, encoding: str, inert: tuple[str, ...] = ()) -> Any:
    with reading(f"{name} needs to be a whole pickle"):
        try:
            _look_through(content)
            held = _Unpickler(io.BytesIO(content), encoding, inert).load()
            _check_expansion(held)
            return held
        except UnsafePickle as error:
            needed = f"{name} needs to hold arrays, numbers and texts alone"
            remedy = "Do not open it with other tools; ask its source."
            raise UnsafePickle(three_beats(needed, str(error), remedy)) from None


_DEEPEST = 200
_MOST = 5 * 10**7  # the largest size of a value, shared parts counted at each use


class _Part:
    """The size and depth of a value, of tuples and lists only."""

    __slots__ = ("depth", "size")

    def __init__(self, parts: list[_Part] | None = None) -> None:
        self.size, self.depth = 1, 0
        self.add(parts or [])

    def add(self, parts: list[_Part]) -> None:
        self.size += sum(part.size for part in parts)
        self.depth = max([self.depth, *(1 + part.depth for part in parts)])
        if self.depth > _DEEPEST or self.size > _MOST:
            raise UnsafePickle("values within values, too deep or too many")


def _look_through(content: bytes) -> None:
    """Refuses instructions that take far more memory or time than their bytes, without executing them.

    Tuples must be bounded before they are made, because a dictionary hashes its keys, and hashing a tuple visits all of
    its parts, each as often as it occurs and at any depth.
    """
    stack: list[_Part | None] = []  # None: a mark
    memo: dict[int, _Part] = {}
    hashed = 0
    steps: Iterable[tuple[Any, Any, Any]] = pickletools.genops(content)
    for number, (operation, argument, _) in enumerate(steps):
        name = operation.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            if argument > number:
                raise UnsafePickle(f"place {argument} of a memo that has {len(memo)}")
            memo[argument] = _top(stack)
        elif name == "MEMOIZE":
            memo[len(memo)] = _top(stack)
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            if argument not in memo:
                raise ValueError(f"nothing at place {argument} of the memo")
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(None)
        elif name == "DUP":
            stack.append(_top(stack))
        else:
            parts: list[_Part] = []
            count = len(operation.stack_before)
            if pickletools.stackslice in operation.stack_before:
                while stack and stack[-1] is not None:
                    parts.append(_top(stack))
                    stack.pop()
                if not stack:
                    raise ValueError("a mark is missing")
                stack.pop()
                count = operation.stack_before.index(pickletools.markobject)
            if name == "POP" and stack and stack[-1] is None:
                stack.pop()  # pops the mark, as the unpickler does
                continue
            for _ in range(count):
                parts.append(_top(stack))
                stack.pop()
            if name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"):
                held = parts.pop()
                if name in ("APPEND", "APPENDS"):
                    held.add(parts)
                stack.append(held)
            elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "LIST"):
                stack.append(_Part(parts))
            else:
                stack.extend(_Part() for _ in operation.stack_after)
            if name in ("SETITEM", "SETITEMS", "ADDITEMS", "DICT", "FROZENSET", "REDUCE"):
                hashed += sum(part.size for part in parts)
                if hashed > _MOST:
                    raise UnsafePickle("keys that would take hours to look up")


def _top(stack: list[_Part | None]) -> _Part:
    if not stack or stack[-1] is None:
        raise ValueError("a value is missing")
    return stack[-1]


def _check_expansion(held: Any) -> None:
    """Refuses a value that contains itself, and values shared so often that reading would not end."""
    sizes: dict[int, int] = {}
    way: list[tuple[Any, list[Any]]] = [(held, _inside(held))]
    open_ones = {id(held)}
    while way:
        value, left = way[-1]
        if left:
            part = left.pop()
            if id(part) in open_ones:
                raise UnsafePickle("a value within itself")
            if id(part) not in sizes and isinstance(part, _HOLDERS):
                if len(way) > _DEEPEST:
                    raise UnsafePickle("values within values, too deep")
                open_ones.add(id(part))
                way.append((part, _inside(part)))
            continue
        sizes[id(value)] = 1 + sum(sizes.get(id(part), 1) for part in _inside(value))
        if sizes[id(value)] > _MOST:
            raise UnsafePickle("values within values, too many")
        open_ones.discard(id(value))
        way.pop()


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, Inert):
        return [value.state]
    if isinstance(value, np.ndarray):
        return list(value.ravel()) if value.dtype.hasobject else []
    return list(value) if isinstance(value, (list, tuple, set, frozenset)) else []


class _Unpickler(pickle.Unpickler):
    """Only the tables below decide what a name in the file stands for."""

    def __init__(self, file: IO[bytes], encoding: str, inert: tuple[str, ...]) -> None:
        super().__init__(file, encoding=encoding)
        self._inert = inert
        self._inert_class = type("Inert", (Inert,), {})  # a new class for each file

    def find_class(self, module: str, name: str) -> Any:
        if any(module == package or module.startswith(f"{package}.") for package in self._inert):
            return self._inert_class
        known = _STAND_INS | _OF_INERT if self._inert else _STAND_INS
        if (module, name) not in known:
            raise UnsafePickle(f"a request for `{module}.{name}`")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickle("a reference to an object outside the file")


class _Array(np.ndarray):
    """An array that is filled by the checked version of numpy's own ``__setstate__``."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        dtype = _plain(dtype)
        shape = _checked_shape(shape)
        if dtype.hasobject:
            if not isinstance(content, list) or len(content) != math.prod(shape):
                raise UnsafePickle("an array whose objects do not fill its shape")
        else:
            if isinstance(content, str):  # Python 2, protocol 0 or 1
                content = content.encode("latin1")
            if not isinstance(content, bytes) or len(content) != math.prod(shape) * dtype.itemsize:
                raise UnsafePickle("an array whose bytes do not fill its shape")
        super().__setstate__((1, shape, dtype, bool(fortran), content))  # type: ignore[arg-type]


class _Dtype:
    """An incomplete type: made by name, completed by the state that follows."""

    __slots__ = ("dtype",)

    def __init__(self, name: Any) -> None:
        if isinstance(name, bytes):
            name = name.decode("latin1")
        if not isinstance(name, str) or not _PLAIN_DTYPE.fullmatch(name):
            raise UnsafePickle(f"an array of type {name!r}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        _, order, subdtype, names, fields = state[:5]
        if subdtype is not None or names is not None or fields is not None:
            raise UnsafePickle("an array of records")
        if isinstance(order, bytes):
            order = order.decode("latin1")
        if order not in ("<", ">", "|", "="):
            raise UnsafePickle(f"an array with byte order {order!r}")
        self.dtype = self.dtype.newbyteorder(order)


class _Made:
    """A function that replaces a name. It has no attributes, so that a file cannot change it for the next file."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise UnsafePickle("a state for a function")


@_Made
def _class(*_: Any) -> None:
    raise UnsafePickle("a call of a class")


@_Made
def _reconstruct(subtype: Any, *_: Any) -> np.ndarray:
    if subtype is not _class:
        raise UnsafePickle("an array of an unusual class")
    return np.empty(0, np.int8).view(_Array)


@_Made
def _scalar(dtype: Any, content: Any = b"") -> Any:
    dtype = _plain(dtype)
    if isinstance(content, str):
        content = content.encode("latin1")
    if dtype.hasobject or not isinstance(content, bytes) or len(content) != dtype.itemsize:
        raise UnsafePickle("a number whose bytes do not fit its type")
    return np.frombuffer(content, dtype)[0] if dtype.itemsize else dtype.type()


@_Made
def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray:
    dtype = _plain(dtype)
    if dtype.hasobject or not isinstance(content, (bytes, bytearray)) or order not in ("C", "F"):
        raise UnsafePickle("an array from an unusual buffer")
    shape = _checked_shape(shape)
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise UnsafePickle("an array whose bytes do not fill its shape")
    return np.frombuffer(bytes(content), dtype).reshape(shape, order=order).copy()


@_Made
def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnsafePickle(f"a text encoded as {encoding!r}")
    return text.encode("latin1")


@_Made
def _bytearray(content: Any = b"", encoding: Any = None) -> bytearray:
    if isinstance(content, str) and encoding in ("latin1", "latin-1"):
        content = content.encode("latin1")
    if not isinstance(content, bytes):  # a number would allocate that many bytes
        raise UnsafePickle("a bytearray from something else than bytes")
    return bytearray(content)


@_Made
def _rebuild(kind: Any, *_: Any) -> Inert:
    """``copyreg._reconstructor`` and ``__newobj__``: how protocols 0 to 2 make objects of any class."""
    if not (isinstance(kind, type) and issubclass(kind, Inert)):
        raise UnsafePickle("an object of an unusual class")
    return kind()


_HOLDERS = (list, tuple, set, frozenset, dict, np.ndarray, Inert)
_BUILTINS = {
    "bytes": _Made(lambda: b""),  # how protocols 0 to 2 write it
    "bytearray": _bytearray, "complex": complex, "set": set, "frozenset": frozenset,
}  # fmt: skip
_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _class,
    ("numpy", "dtype"): _Made(lambda name, *_: _Dtype(name)),
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): collections.OrderedDict,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    **{(module, name): made for module in ("builtins", "__builtin__") for name, made in _BUILTINS.items()},
}
"""The replacements for the names in a file."""
_OF_INERT = {
    **{(module, name): _rebuild for module in ("copyreg", "copy_reg") for name in ("_reconstructor", "__newobj__")},
    **{(module, "object"): _class for module in ("builtins", "__builtin__")},
}
"""The same for objects that are kept as data."""


def _plain(dtype: Any) -> np.dtype[Any]:
    if not isinstance(dtype, _Dtype):
        raise UnsafePickle("an array without a proper type")
    return dtype.dtype


def _checked_shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape) or len(shape) > 32:
        raise UnsafePickle(f"an array of shape {shape!r}")
    return shape
