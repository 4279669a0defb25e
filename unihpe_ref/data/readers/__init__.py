"""Readers, one for each format, and :func:`read_data`, which chooses among them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from multicontrast._checks import check_choice, three_beats
from unihpe_ref.unfit import reading

from ..mocap import read_mocap
from ..motion import Motion
from ..recording import Recording
from . import acclaim, bvh, coco, imgname_npz, mpi_inf_3dhp, multiview, pw3d, videopose3d
from .common import listed

MODULES: dict[str, ModuleType] = {
    module.NAME: module for module in (videopose3d, mpi_inf_3dhp, pw3d, multiview, imgname_npz, acclaim, bvh, coco)
}
"""The readers, in the order in which they are tried."""

MOCAP_NPZ = "mocap_npz"
FORMATS = (*MODULES, MOCAP_NPZ)

LICENCES = {
    "videopose3d": "Human3.6M: academic use after registration, http://vision.imar.ro/human3.6m/eula.php",
    "imgname_npz": "that of the data set whose pictures are named",
    "mpi_inf_3dhp": "MPI-INF-3DHP: non-commercial research, https://vcai.mpi-inf.mpg.de/3dhp-dataset/",
    "3dpw": "3DPW: non-commercial research, https://virtualhumans.mpi-inf.mpg.de/3DPW/license.html",
    "coco": "COCO: annotations CC BY 4.0, pictures under their owners' Flickr terms, https://cocodataset.org/#termsofuse",
}
"""Where a data set's terms are; the user must have agreed to them."""


def recognise(path: Path) -> str:
    """The name of the reader for ``path``.

    Raises: FileNotFoundError if nothing is there; ValueError if no reader knows it.
    """
    _check_there(path)
    for name, module in MODULES.items():
        if module.find(path):
            return name
    if path.suffix == ".npz":
        return MOCAP_NPZ  # its reader names what is missing
    known = "; ".join(f"{name}: {module.TITLE}" for name, module in MODULES.items())
    inside = listed((item.name for item in path.iterdir()), 8) if path.is_dir() else path.name
    needed = f"{path} needs to hold one of the known forms ({known}; {MOCAP_NPZ})"
    raise ValueError(three_beats(needed, inside or "an empty folder", "The data pages show each folder's layout."))


def _check_there(path: Path) -> None:
    if not path.exists():
        needed = f"`read_data` needs data at {path}"
        raise FileNotFoundError(three_beats(needed, "no such file or folder", "Check the path."))


def read_data(path: Path, form: str | None = None, joints: Mapping[str, str] | None = None) -> Recording | Motion:
    """Reads data of any known format.

    Args:
        path: a file or a folder. form: a name from ``FORMATS``; recognised unless given.
        joints: for BVH, which of its joints stand for which of Human3.6M's 17, by name.
    Returns: a :class:`Recording` where cameras saw people, a :class:`Motion` for motion capture alone.
    Raises: OSError if something is missing or cannot be opened; ValueError if it is damaged.
    """
    if form is None:
        form = recognise(path)
    check_choice("read_data", "form", form, FORMATS)
    _check_there(path)
    if form == MOCAP_NPZ:
        return read_mocap(path)
    if joints and form != bvh.NAME:
        raise ValueError(three_beats("`joints` needs BVH files", form, "Other forms have fixed names: leave it out."))
    with reading(f"{path} needs to hold whole data of the form {form}"):
        data: Recording | Motion = bvh.read(path, joints) if form == bvh.NAME else MODULES[form].read(path)
        return data
