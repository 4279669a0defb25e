"""Recorded motion from one npz file.

The file holds ``joints_3d`` (N, 17, 3) float32 world metres, z up, in Human3.6M's order; ``seq_start`` and ``seq_end``
(S,); ``seq_name``, ``subject``, ``action``, ``split`` (S,) strings, ``split`` being "train" or "test"; ``fps``; and, if
stated, ``joint_names``, ``parents``, ``unit`` and ``up``, which must then agree with this package.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from multicontrast._checks import three_beats
from unihpe_ref.unfit import unfit

from .motion import SPLITS, Motion
from .safe_pickle import read_npz
from .shapes import all_finite
from .skeleton import SKELETON

_TEXTS = ("seq_name", "subject", "action", "split")
_KEYS = ("joints_3d", "seq_start", "seq_end", *_TEXTS, "fps")
_EXPECTED = {
    "joint_names": np.array(SKELETON.joint_names),
    "parents": np.array(SKELETON.parents),
    "unit": np.array("metre"),
    "up": np.array("z"),
}


def read_mocap(path: str | os.PathLike[str]) -> Motion:
    """Reads a recording; the whole file is checked before anything is returned.

    Args:
        path: an npz file with the entries named at the top of this file.
    Returns: a :class:`Motion` with the splits as stored, by whole sequence.
    Raises: OSError if the file cannot be opened; ValueError if it is damaged, truncated, lacks an entry or has an
        invalid one.
    """
    path = Path(path)

    def no(needed: str, came: str, remedy: str) -> ValueError:
        return unfit(f"`read_mocap` needs {needed} in {path}", came, remedy)

    if not path.is_file():
        raise FileNotFoundError(three_beats(f"`read_mocap` needs a file at {path}", "none", "Check the path."))
    arrays = read_npz(path, (*_KEYS, *_EXPECTED))
    missing = [key for key in _KEYS if key not in arrays]
    if missing:
        raise no(f"the entries {', '.join(_KEYS)}", f"no {', '.join(missing)}", "Write all of them.")
    for key, expected in _EXPECTED.items():
        if key in arrays and not np.array_equal(arrays[key], expected):
            came = f"`{key}` = {arrays[key].tolist()}"
            raise no(f"`{key}` = {expected.tolist()}", came, "Convert the recording first.")
    joints, starts, ends = arrays["joints_3d"], arrays["seq_start"], arrays["seq_end"]
    if joints.ndim != 3 or joints.shape[1:] != (SKELETON.num_joints, 3) or joints.dtype.kind != "f" or not len(joints):
        came = f"{joints.dtype} of shape {joints.shape}"
        raise no("`joints_3d` as floats of shape (N, 17, 3), N > 0", came, "Convert to Human3.6M's 17 joints.")
    if not np.isfinite(joints).all():
        frame = int(np.flatnonzero(~all_finite(joints, (1, 2)))[0])
        raise no("finite joints", f"NaN or infinity in frame {frame}", "Cut or repair those frames.")
    for name in (*_TEXTS, "seq_start", "seq_end"):
        kind = "U" if name in _TEXTS else "iu"
        if arrays[name].shape != starts.shape or starts.ndim != 1 or arrays[name].dtype.kind not in kind:
            came = f"`{name}`: {arrays[name].dtype} of shape {arrays[name].shape}"
            needed = f"one {'string' if kind == 'U' else 'integer'} for each of {starts.size} sequences"
            raise no(needed, came, "Write one entry for each sequence.")
    tiled = len(starts) > 0 and starts[0] == 0 and ends[-1] == len(joints) and (starts[1:] == ends[:-1]).all()
    if not tiled or not (ends > starts).all():
        came = f"`seq_start` and `seq_end` that leave gaps, overlap, or do not end at {len(joints)}"
        raise no("sequences that cover all frames in order", came, "Write the frames sequence by sequence.")
    unknown = sorted(set(arrays["split"].tolist()) - set(SPLITS))
    if unknown:
        raise no("splits 'train' and 'test'", repr(unknown[0]), "Mark each sequence with one of the two.")
    fps = arrays["fps"]
    if fps.size != 1 or fps.dtype.kind not in "fiu" or not 0 < float(fps.reshape(())) < np.inf:
        raise no("`fps` as one positive number", repr(fps.tolist()), "Write the frame rate.")
    return Motion(
        joints=torch.from_numpy(np.ascontiguousarray(joints, dtype=np.float32)),
        sequence=torch.arange(len(starts)).repeat_interleave(torch.from_numpy((ends - starts).astype(np.int64))),
        subject=tuple(arrays["subject"].tolist()),
        action=tuple(arrays["action"].tolist()),
        split=tuple(arrays["split"].tolist()),
        name=tuple(arrays["seq_name"].tolist()),
        fps=float(fps.reshape(())),
    )
