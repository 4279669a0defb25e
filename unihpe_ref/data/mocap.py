"""Recorded motion from one npz file.

The file holds ``joints_3d`` (N, 17, 3) float32 world metres, z up, in Human3.6M's order; ``seq_start`` and ``seq_end``
(S,); ``seq_name``, ``subject``, ``action``, ``split`` (S,) strings, ``split`` being "train" or "test"; ``fps``; and, if
stated, ``joint_names``, ``parents``, ``unit`` and ``up``, which must then agree with this package.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from multicontrast._checks import three_beats

from .motion import SPLITS, Motion
from .skeleton import SKELETON

_TEXTS = ("seq_name", "subject", "action", "split")
_KEYS = ("joints_3d", "seq_start", "seq_end", *_TEXTS, "fps")


def read_mocap(path: str | os.PathLike[str]) -> Motion:
    """Reads a recording; the whole file is checked before anything is returned.

    Args:
        path: an npz file with the entries named at the top of this file. Pickled objects are refused.
    Returns: a :class:`Motion` with the splits as stored, by whole sequence.
    Raises: OSError where the file cannot be opened; ValueError where it is damaged, truncated, lacks an entry or
        holds what it should not.
    """
    path = Path(path)
    arrays = _load(path)
    joints, starts, ends = arrays["joints_3d"], arrays["seq_start"], arrays["seq_end"]
    if joints.ndim != 3 or joints.shape[1:] != (SKELETON.num_joints, 3) or joints.dtype.kind != "f" or not len(joints):
        came = f"{joints.dtype} of shape {joints.shape}"
        raise _unfit(
            path, "`joints_3d` as floats of shape (N, 17, 3), N > 0", came, "Convert to Human3.6M's 17 joints."
        )
    if not np.isfinite(joints).all():
        frame = int(np.flatnonzero(~np.isfinite(joints).all((1, 2)))[0])
        raise _unfit(path, "finite joints", f"NaN or infinity in frame {frame}", "Cut or repair those frames.")
    for name in (*_TEXTS, "seq_start", "seq_end"):
        kind = "U" if name in _TEXTS else "iu"
        if arrays[name].shape != starts.shape or starts.ndim != 1 or arrays[name].dtype.kind not in kind:
            came = f"`{name}`: {arrays[name].dtype} of shape {arrays[name].shape}"
            needed = f"one {'string' if kind == 'U' else 'integer'} for each of {starts.size} sequences"
            raise _unfit(path, needed, came, "Write one entry for each sequence.")
    tiled = len(starts) > 0 and starts[0] == 0 and ends[-1] == len(joints) and (starts[1:] == ends[:-1]).all()
    if not tiled or not (ends > starts).all():
        came = f"`seq_start` and `seq_end` that leave gaps, overlap, or do not end at {len(joints)}"
        raise _unfit(path, "sequences that cover all frames in order", came, "Write the frames sequence by sequence.")
    unknown = sorted(set(arrays["split"].tolist()) - set(SPLITS))
    if unknown:
        raise _unfit(path, "splits 'train' and 'test'", repr(unknown[0]), "Mark each sequence with one of the two.")
    fps = arrays["fps"]
    if fps.size != 1 or fps.dtype.kind not in "fiu" or not 0 < float(fps.reshape(())) < np.inf:
        raise _unfit(path, "`fps` as one positive number", repr(fps.tolist()), "Write the frame rate.")
    return Motion(
        joints=torch.from_numpy(np.ascontiguousarray(joints, dtype=np.float32)),
        sequence=torch.arange(len(starts)).repeat_interleave(torch.from_numpy((ends - starts).astype(np.int64))),
        subject=tuple(arrays["subject"].tolist()),
        action=tuple(arrays["action"].tolist()),
        split=tuple(arrays["split"].tolist()),
        name=tuple(arrays["seq_name"].tolist()),
        fps=float(fps.reshape(())),
    )


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        stored = np.load(path, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise _unfit(path, "an npz archive", "a single array", "Save with `numpy.savez_compressed`.")
        with stored:
            missing = [key for key in _KEYS if key not in stored.files]
            if missing:
                raise _unfit(path, f"the entries {', '.join(_KEYS)}", f"no {', '.join(missing)}", "Write all of them.")
            arrays = {key: stored[key] for key in _KEYS}
            for key, expected in _expected().items():
                if key in stored.files and not np.array_equal(stored[key], expected):
                    came = f"`{key}` = {stored[key].tolist()}"
                    raise _unfit(path, f"`{key}` = {expected.tolist()}", came, "Convert the recording first.")
    except _Unfit:
        raise
    except OSError as error:
        needed = f"`read_mocap` needs a file it can open at {path}"
        raise type(error)(three_beats(needed, str(error), "Check the path and the permissions.")) from error
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        came = f"another file or a damaged one ({error})"
        raise _unfit(path, "an npz archive of plain arrays", came, "Copy the file again.") from error
    return arrays


def _expected() -> dict[str, np.ndarray]:
    return {
        "joint_names": np.array(SKELETON.joint_names),
        "parents": np.array(SKELETON.parents),
        "unit": np.array("metre"),
        "up": np.array("z"),
    }


class _Unfit(ValueError):
    """The error for a file that opens but holds no recording."""


def _unfit(path: Path, needed: str, came: str, remedy: str) -> _Unfit:
    return _Unfit(three_beats(f"`read_mocap` needs {needed} in {path}", came, remedy))
