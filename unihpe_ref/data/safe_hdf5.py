"""Reads data sets of untrusted HDF5 files, which can refer to other files and state wrong sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .archives import is_bomb


def read_hdf5(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Data sets of numbers by name; absent ones are left out.

    Raises: OSError if the file cannot be read; ValueError for links, storage in other files, virtual data sets,
        types other than numbers, and data far larger than the file.
    """
    import h5py

    found = {}
    with h5py.File(path, "r") as file:
        for name in names:
            if name not in file:
                continue
            link = file.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise ValueError(f"a link to {getattr(link, 'filename', 'elsewhere')!r} called {name!r}")
            held = file[name]
            if not isinstance(held, h5py.Dataset) or held.dtype.kind not in "biuf" or held.shape is None:
                raise ValueError(f"{name!r}, which is no data set of numbers")
            if held.is_virtual or held.external:
                raise ValueError(f"{name!r}, whose numbers are in another file")
            if is_bomb(held.nbytes, path.stat().st_size):
                raise ValueError(f"{name!r}, {held.nbytes} bytes in a file of {path.stat().st_size}")
            found[name] = np.asarray(held[()])
    return found
