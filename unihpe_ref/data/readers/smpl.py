r"""A plain implementation of SMPL: from pose and shape to the joints that evaluations regress from its vertices.

.. math::
    V = W\big(T + B_S \beta + B_P (R(\theta) - I),\; J(\beta),\; \theta\big), \qquad \text{joints} = R_{H36M} V + t

The model files are the user's, from the SMPL site: ``SMPL_{FEMALE,MALE,NEUTRAL}`` or ``basicModel_{f,m}_...`` as pkl
or npz, and ``J_regressor_h36m.npy``. The pickles hold objects of other packages, which are read as plain data.

Reference: Loper et al., "SMPL: A Skinned Multi-Person Linear Model", SIGGRAPH Asia 2015, equations 2-10.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from multicontrast._checks import three_beats
from unihpe_ref.unfit import reading, unfit

from ..layouts import LAYOUTS
from ..safe_pickle import Inert, load_pickle, read_npz
from ..shapes import Array
from .common import existing

_FILES = {
    "f": ("SMPL_FEMALE", "basicModel_f_lbs_10_207_0_v1.0.0", "basicmodel_f_lbs_10_207_0_v1.1.0"),
    "m": ("SMPL_MALE", "basicModel_m_lbs_10_207_0_v1.0.0", "basicmodel_m_lbs_10_207_0_v1.1.0"),
    "n": ("SMPL_NEUTRAL", "basicModel_neutral_lbs_10_207_0_v1.0.0", "basicmodel_neutral_lbs_10_207_0_v1.1.0"),
}
_REGRESSOR = "J_regressor_h36m.npy"
_CHUNK = 256  # frames at once, of 6890 vertices each


@dataclass
class BodyModels:
    """The models of a folder, each read on first use."""

    folder: Path
    regressor: Array
    _models: dict[str, dict[str, Array]] = field(default_factory=dict)

    @staticmethod
    def near(folder: Path) -> BodyModels | None:
        """The models in ``smpl/`` below ``folder``; None if there is no such folder.

        Raises: FileNotFoundError if the folder lacks the regressor.
        """
        place = folder / "smpl"
        if not place.is_dir():
            return None
        if not (place / _REGRESSOR).is_file():
            needed = f"`read_data` needs {_REGRESSOR} in {place}"
            raise FileNotFoundError(three_beats(needed, "none", "Add it, or remove the folder to read without SMPL."))
        return BodyModels(place, np.load(place / _REGRESSOR, allow_pickle=False).astype(float))

    def joints(self, held: dict[str, Any], person: int, rows: Array, file: Path) -> Array:
        """Human3.6M's 17 joints of some frames of a 3DPW sequence, ``(F, 17, 3)`` world metres."""
        missing = [key for key in ("poses", "betas", "trans") if key not in held]
        if missing:
            raise unfit(f"{file} needs poses, betas and trans", f"no {missing[0]}")
        model = self._model(str(held["genders"][person])[:1].lower())
        pose = np.asarray(held["poses"][person], float)[rows]
        trans = np.asarray(held["trans"][person], float)[rows]
        beta = np.asarray(held["betas"][person], float).ravel()[:10]
        parts = [
            self.regressor @ posed_vertices(model, pose[start : start + _CHUNK], beta)
            for start in range(0, len(rows), _CHUNK)
        ]
        return LAYOUTS["j_regressor_h36m"].to_h36m(np.concatenate(parts) + trans[:, None])[0]

    def _model(self, gender: str) -> dict[str, Array]:
        if gender not in self._models:
            names = _FILES.get(gender, _FILES["n"])
            path = existing(self.folder, *(f"{name}.{end}" for name in names for end in ("npz", "pkl")))
            if path is None:
                needed = f"`read_data` needs SMPL's model {names[0]} (npz or pkl) in {self.folder}"
                raise FileNotFoundError(three_beats(needed, "none", "Get it from the SMPL site."))
            self._models[gender] = read_model(path)
        return self._models[gender]


def read_model(path: Path) -> dict[str, Array]:
    """The arrays of a model file: v_template, shapedirs, posedirs, J_regressor, weights, parents.

    Raises: ValueError if it is not a model file.
    """
    held: Any = read_npz(path) if path.suffix == ".npz" else load_pickle(path, inert=("chumpy", "scipy.sparse"))
    needed = f"{path} needs v_template, shapedirs, posedirs, J_regressor, weights and kintree_table of SMPL"
    with reading(needed, "Get it from the SMPL site."):
        model = {name: dense(held[name]) for name in ("v_template", "shapedirs", "posedirs", "J_regressor", "weights")}
        parents = np.asarray(held["kintree_table"])[0].astype(np.int64)
        parents[0] = -1
        vertices = len(model["v_template"])
        shapes = {"J_regressor": (24, vertices), "weights": (vertices, 24), "posedirs": (vertices, 3, 207)}
        for name, shape in shapes.items():
            if model[name].shape != shape:
                raise ValueError(f"{name} of shape {model[name].shape}")
    return model | {"parents": parents}


def dense(value: Any) -> Array:
    """An array from an array, or from the state of a chumpy array or of a sparse matrix in columns."""
    if isinstance(value, Inert):
        state = value.state
        if "x" in state:  # chumpy
            return dense(state["x"])
        shape = tuple(int(size) for size in state.get("_shape", state.get("shape", ())))
        data, rows, starts = (np.asarray(state[name]) for name in ("data", "indices", "indptr"))
        columns = np.repeat(np.arange(shape[1]), np.diff(starts))
        matrix = np.zeros(shape)
        np.add.at(matrix, (rows, columns), data)
        return matrix
    return np.asarray(value, float)


def posed_vertices(model: dict[str, Array], pose: Array, beta: Array) -> Array:
    """Vertices without translation.

    Args:
        model: from :func:`read_model`. pose: ``(F, 72)`` axis-angles, radians. beta: ``(10,)``.
    Returns: ``(F, V, 3)`` metres.
    """
    shaped = model["v_template"] + model["shapedirs"][..., : len(beta)] @ beta
    rest = model["J_regressor"] @ shaped  # (24, 3)
    rotation = rotation_of_axis_angle(pose.reshape(-1, 24, 3))
    bent = (rotation[:, 1:] - np.eye(3)).reshape(len(pose), 207)
    vertices = shaped + np.einsum("vck,fk->fvc", model["posedirs"], bent, optimize=True)
    turned, placed = [rotation[:, 0]], [np.broadcast_to(rest[0], (len(pose), 3))]
    for joint, parent in enumerate(model["parents"].tolist()[1:], start=1):
        turned.append(turned[parent] @ rotation[:, joint])
        placed.append(placed[parent] + turned[parent] @ (rest[joint] - rest[parent]))
    turns, places = np.stack(turned, 1), np.stack(placed, 1)
    shift = places - np.einsum("fjab,jb->fja", turns, rest)
    blend = np.einsum("vj,fjab->fvab", model["weights"], turns, optimize=True)
    return np.einsum("fvab,fvb->fva", blend, vertices) + model["weights"] @ shift


def rotation_of_axis_angle(vector: Array) -> Array:
    """Rodrigues' formula: ``(..., 3)`` radians to ``(..., 3, 3)``, exact at zero."""
    angle = np.linalg.norm(vector, axis=-1)[..., None, None]
    cross = np.zeros((*vector.shape, 3))
    x, y, z = np.moveaxis(vector, -1, 0)
    cross[..., 0, 1], cross[..., 0, 2], cross[..., 1, 2] = -z, y, -x
    cross -= cross.swapaxes(-1, -2)
    half = np.sinc(angle / (2 * np.pi)) / np.sqrt(2)  # (1 - cos a) / a^2 = half^2
    return np.eye(3) + np.sinc(angle / np.pi) * cross + half**2 * (cross @ cross)
