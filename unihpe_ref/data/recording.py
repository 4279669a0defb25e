"""People recorded by cameras: the common form of all data sets.

A sample is one person in one frame of one camera. Arrays are numpy's and may be memory-mapped; the tables of sequences
and cameras are small. Unknown values are NaN (joints, pelvis) or -1 (picture).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from multicontrast._checks import three_beats

from .camera import TRAILING, Camera
from .shapes import Array, all_finite
from .skeleton import SKELETON

SPLITS = ("train", "validation", "test")


class PicturePack(Protocol):
    """Encoded pictures by number."""

    def __getitem__(self, number: int) -> bytes: ...


_ROWS: dict[str, tuple[int, ...]] = {  # of each sample
    "joints_2d": (SKELETON.num_joints, 2),
    "confidence": (SKELETON.num_joints,),
    "joints_3d": (SKELETON.num_joints, 3),
    "root": (3,),
    "box": (3,),
    "sequence": (),
    "frame": (),
    "camera": (),
    "picture": (),
}
_OPTIONAL_ROWS: dict[str, tuple[int, ...]] = {"detected_2d": (SKELETON.num_joints, 2), "picture_affine": (2, 3)}


@dataclass(frozen=True)
class Recording:
    """N samples of S sequences seen by C cameras.

    Attributes:
        format: the name of the reader.
        joints_2d: ``(N, 17, 2)`` float32, annotated joints in pixels of the full image; NaN where unknown.
        confidence: ``(N, 17)`` float32 of ``joints_2d``, 0 where unknown, 1 where certain.
        joints_3d: ``(N, 17, 3)`` float32, metres from the pelvis along the camera's axes; NaN where unknown.
        root: ``(N, 3)`` float32, the pelvis in the camera's frame, metres; NaN where unknown.
        box: ``(N, 3)`` float32, centre and longer padded side, pixels (``boxes.py``).
        sequence, camera: ``(N,)`` int64, rows of the tables below.
        frame: ``(N,)`` int64, the frame's number at its sequence's frame rate; ascending in a view of a sequence.
        picture: ``(N,)`` int64, row of ``pictures``; -1 without one.
        cameras: a :class:`~unihpe_ref.data.camera.Camera` batch ``(C,)``. camera_name: ``(C,)`` strings; a moving
            camera has a row for each frame, all with one name. calibrated: ``(C,)`` bool, False if focal length and
            centre are assumed.
        sequence_name, subject, action, split: S strings each; fps: S frame rates.
        pictures: ``(P,)`` strings, paths below ``folder``.
        detected_2d: ``(N, 17, 2)`` float32, a detector's joints in the same frames, or None.
        picture_affine: ``(N, 2, 3)`` float32, full-image pixels to pixels of the stored picture, if the stored picture
            is already a crop; None if it is the full image.
        notes: the reader's remarks. sources: the files that were read, except pictures.
        pack: holds the pictures if they are packed into few files; otherwise they are below ``folder``.
    Raises: ValueError if the attributes do not fit together.
    """

    format: str
    joints_2d: Array
    confidence: Array
    joints_3d: Array
    root: Array
    box: Array
    sequence: Array
    frame: Array
    camera: Array
    picture: Array
    cameras: Camera
    camera_name: Array
    calibrated: Array
    sequence_name: tuple[str, ...]
    subject: tuple[str, ...]
    action: tuple[str, ...]
    split: tuple[str, ...]
    fps: tuple[float, ...]
    pictures: Array = field(default_factory=lambda: np.zeros(0, "U1"))
    folder: Path = Path()
    detected_2d: Array | None = None
    picture_affine: Array | None = None
    notes: tuple[str, ...] = ()
    sources: tuple[Path, ...] = ()
    pack: PicturePack | None = None

    def __post_init__(self) -> None:
        count = len(self.joints_2d)
        for name, trailing in (_ROWS | _OPTIONAL_ROWS).items():
            value = getattr(self, name)
            if name in _OPTIONAL_ROWS and value is None:
                continue
            kind = "i" if not trailing else "f"
            if value.shape != (count, *trailing) or value.dtype.kind != kind:
                words = "integers" if kind == "i" else "floats"
                needed = f"`Recording` needs `{name}` of shape {(count, *trailing)}, {words}"
                raise ValueError(three_beats(needed, f"{value.dtype} of shape {value.shape}", "Give one row a sample."))
        tables = {"sequence": self.num_sequences, "camera": len(self.cameras), "picture": len(self.pictures)}
        for name, rows in tables.items():
            value, low = getattr(self, name), -1 if name == "picture" else 0
            if count and (value.min() < low or value.max() >= rows):
                needed = f"`Recording` needs `{name}` from {low} to {rows - 1}"
                raise ValueError(three_beats(needed, f"{value.min()} to {value.max()}", "Number the table's rows."))
        lengths = {len(getattr(self, name)) for name in ("sequence_name", "subject", "action", "split", "fps")}
        if len(lengths) != 1 or set(self.split) - set(SPLITS) or not all(fps > 0 for fps in self.fps):
            needed = f"`Recording` needs a name, subject, action, fps and a split of {', '.join(SPLITS)} a sequence"
            raise ValueError(three_beats(needed, f"{sorted(lengths)}, {sorted(set(self.split))}", "Fill the table."))
        if not len(self.cameras) == len(self.camera_name) == len(self.calibrated):
            needed = "`Recording` needs a name and a flag for each camera"
            raise ValueError(three_beats(needed, f"{len(self.camera_name)}", "Complete the table."))

    def __len__(self) -> int:
        """N."""
        return len(self.joints_2d)

    @property
    def num_sequences(self) -> int:
        """S."""
        return len(self.sequence_name)

    @property
    def splits(self) -> Array:
        """``(N,)`` strings: the split of each sample."""
        return np.array(self.split)[self.sequence] if self.split else np.zeros(0, "U1")

    @property
    def has_2d(self) -> Array:
        """``(N,)`` bool: all joints annotated in the picture."""
        return all_finite(self.joints_2d, (1, 2))

    @property
    def has_3d(self) -> Array:
        """``(N,)`` bool: all joints known in 3D."""
        return all_finite(self.joints_3d, (1, 2))

    @property
    def views(self) -> Array:
        """``(N,)`` int64: the number of each sample's view. A view is one sequence seen by one named camera."""
        _, named = np.unique(self.camera_name, return_inverse=True)
        key = self.sequence.astype(np.int64) * (int(named.max(initial=0)) + 1) + named[self.camera]
        return np.unique(key, return_inverse=True)[1].astype(np.int64)

    def take(self, samples: Array) -> Recording:
        """Some samples, by a mask or by indices; the tables are kept, so that numbers stay valid."""
        chosen = {name: getattr(self, name)[samples] for name in _ROWS}
        for name in _OPTIONAL_ROWS:
            value = getattr(self, name)
            chosen[name] = None if value is None else value[samples]
        return replace(self, **chosen)

    def select(self, split: str) -> Recording:
        """The samples of one split. Raises ``ValueError`` if there are none."""
        mask = self.splits == split
        if not mask.any():
            needed = f"`Recording.select` needs samples of the split {split!r}"
            raise ValueError(three_beats(needed, f"only {', '.join(sorted(set(self.split)))}", "Choose one of those."))
        return self.take(mask)

    def thinned(self, fps: float) -> Recording:
        """Every k-th frame of each sequence, from its frame 0, for ``fps`` frames a second.

        Raises: ValueError if a frame rate is no whole multiple of it.
        """
        steps = np.array(self.fps) / fps
        whole = np.maximum(steps.round(), 1).astype(np.int64)
        if (np.abs(steps - whole) > 0.01 * whole).any():
            needed = f"`Recording.thinned` needs frame rates that are multiples of {fps:g}"
            raise ValueError(three_beats(needed, f"{sorted(set(self.fps))}", "Choose a rate that divides them."))
        return self.take(self.frame % whole[self.sequence] == 0)

    def picture_path(self, sample: int) -> Path | None:
        """The path of a sample's picture; None without one, or if the pictures are packed."""
        number = int(self.picture[sample])
        if number < 0 or self.pack is not None:
            return None
        stored = self.pictures[number]
        name = stored.decode() if isinstance(stored, bytes) else str(stored)
        if Path(name).is_absolute() or ".." in Path(name).parts:
            needed = f"a recording needs its pictures below its folder {self.folder}"
            raise ValueError(three_beats(needed, repr(name), "Write their names relative to it, without `..`."))
        return self.folder / name

    def picture_bytes(self, sample: int) -> bytes | None:
        """The encoded picture of a sample; None without one. Raises ``OSError`` if its file cannot be read."""
        number = int(self.picture[sample])
        if number < 0:
            return None
        path = self.picture_path(sample)
        if path is None and self.pack is not None:
            return self.pack[number]
        try:
            return (path or Path()).read_bytes()
        except OSError as error:
            came = error.strerror or str(error)
            remedy = "Put it there, or read the data without pictures."
            raise type(error)(three_beats(f"the recording needs the picture {path}", came, remedy)) from None


def row_fields(recording: Recording) -> dict[str, Array]:
    """The arrays with one row for each sample, by name; optional ones only if they exist."""
    names = [*_ROWS, *(name for name in _OPTIONAL_ROWS if getattr(recording, name) is not None)]
    return {name: getattr(recording, name) for name in names}


@dataclass(frozen=True)
class Lens:
    """A camera of a recording, in pixels and metres; by default without distortion and at the world's origin."""

    focal: Array | float
    principal: Array
    image_size: Any
    radial: Any = 0.0
    tangential: Any = 0.0
    rotation: Any = field(default_factory=lambda: np.eye(3))  # world to camera
    translation: Any = 0.0

    def values(self, name: str) -> Array:
        """One of the fields in :class:`Camera`'s form; a single number is repeated."""
        value = np.asarray(getattr(self, name), float)
        shape = TRAILING[name]
        return value.reshape(shape) if value.size > 1 else np.broadcast_to(value.ravel(), shape)


class RecordingBuilder:
    """Collects a recording view by view; every reader writes through it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.notes: list[str] = []
        self.sources: list[Path] = []
        self._parts: list[dict[str, Array | None]] = []
        self._cameras: dict[Any, tuple[int, str, Lens, bool]] = {}
        self._sequences: dict[str, tuple[int, str, str, str, float]] = {}
        self._pictures: list[str] = []

    def sequence(self, name: str, *, subject: str, action: str, split: str, fps: float) -> int:
        """The number of a sequence; the same name is the same sequence."""
        row = (len(self._sequences), subject, action, split, float(fps))
        return self._sequences.setdefault(name, row)[0]

    def camera(self, name: str, lens: Lens, *, key: Any = None, calibrated: bool = True) -> int:
        """The number of a camera; the same ``key`` (the name unless given) is the same camera."""
        row = (len(self._cameras), name, lens, calibrated)
        return self._cameras.setdefault(name if key is None else key, row)[0]

    def add(
        self,
        sequence: int,
        camera: int | Array,
        frame: Array,
        *,
        joints_2d: Array | None = None,
        confidence: Array | None = None,
        joints_cam: Array | None = None,
        joints_3d: Array | None = None,
        box: Array | None = None,
        pictures: Sequence[str] | None = None,
        detected_2d: Array | None = None,
        picture_affine: Array | None = None,
    ) -> None:
        """Adds F samples of one sequence.

        Args:
            sequence, camera: numbers from the methods above; one camera for each frame if it moves. frame: ``(F,)``.
            joints_2d: ``(F, 17, 2)`` pixels. confidence: ``(F, 17)``; 1 where ``joints_2d`` is finite unless given.
            joints_cam: ``(F, 17, 3)`` metres in the camera's frame, or instead
            joints_3d: ``(F, 17, 3)`` metres from the pelvis, if the distance is unknown.
            box: ``(F, 3)``; around the joints unless given (around the detected ones if there are no others).
            pictures: F paths below the folder, "" for frames without a picture.
            detected_2d, picture_affine: as in :class:`Recording`.
        """
        count = len(frame)
        unknown = np.full((count, SKELETON.num_joints, 3), np.nan, np.float32)
        root = np.full((count, 3), np.nan, np.float32)
        if joints_cam is not None:
            root = joints_cam[:, 0].astype(np.float32)
            joints_3d = joints_cam - joints_cam[:, :1]
        known_2d = unknown[..., :2] if joints_2d is None else joints_2d
        if confidence is None:
            confidence = all_finite(known_2d, -1)
        known_2d = np.where((np.asarray(confidence) > 0)[..., None], known_2d, np.nan)
        if box is None:
            box = boxes_of(known_2d if joints_2d is not None or detected_2d is None else detected_2d)
        numbers = np.full(count, -1)
        if pictures is not None:
            for position, picture in enumerate(pictures):
                if picture:
                    numbers[position] = len(self._pictures)
                    self._pictures.append(picture)
        part = {
            "joints_2d": known_2d,
            "confidence": confidence,
            "joints_3d": unknown if joints_3d is None else joints_3d,
            "root": root,
            "box": box,
            "sequence": np.full(count, sequence),
            "frame": frame,
            "camera": np.broadcast_to(camera, (count,)),
            "picture": numbers,
            "detected_2d": detected_2d,
            "picture_affine": picture_affine,
        }
        self._parts.append({name: None if value is None else _typed(name, value) for name, value in part.items()})

    def build(self) -> Recording:
        """The recording. Raises ``ValueError`` if nothing was added."""
        if not sum(len(part["frame"]) for part in self._parts if part["frame"] is not None):
            needed = f"the format {self.name} needs at least one sample below {self.folder}"
            raise ValueError(three_beats(needed, "none", "Check the folder against the documentation."))
        rows: dict[str, Array | None] = {}
        for name in self._parts[0]:
            parts = [part[name] for part in self._parts]
            if any(part is not None for part in parts):
                shape = (_ROWS | _OPTIONAL_ROWS)[name]
                filled = [
                    np.full((len(own["frame"]), *shape), np.nan, np.float32) if part is None else part  # type: ignore[arg-type]
                    for part, own in zip(parts, self._parts)
                ]
                rows[name] = filled[0] if len(filled) == 1 else np.concatenate(filled)
            else:
                rows[name] = None
        _, subjects, actions, splits, rates = zip(*self._sequences.values())
        _, camera_names, lenses, calibrated = zip(*self._cameras.values())
        tensors = {
            name: torch.tensor(np.stack([lens.values(name) for lens in lenses]), dtype=torch.float32)
            for name in TRAILING
        }
        return Recording(
            format=self.name,
            **rows,  # type: ignore[arg-type]
            cameras=Camera(**tensors),
            camera_name=np.array(camera_names),
            calibrated=np.array(calibrated),
            sequence_name=tuple(self._sequences),
            subject=subjects,
            action=actions,
            split=splits,
            fps=rates,
            pictures=np.array(self._pictures) if self._pictures else np.zeros(0, "U1"),
            folder=self.folder,
            notes=tuple(self.notes),
            sources=tuple(dict.fromkeys(self.sources)),
        )


def _typed(name: str, value: Array) -> Array:
    return np.ascontiguousarray(value, np.int64 if (_ROWS | _OPTIONAL_ROWS)[name] == () else np.float32)


def boxes_of(joints_2d: Array, *, padding: float = 1.25, aspect: float = 3 / 4) -> Array:
    """:func:`.boxes.joint_box` of the known joints: ``(F, J, 2)`` with NaN to ``(F, 3)``; NaN if none is known."""
    known = np.isfinite(joints_2d)
    low = np.where(known, joints_2d, np.inf).min(1)
    high = np.where(known, joints_2d, -np.inf).max(1)
    low, high = (np.where(np.isfinite(side), side, np.nan) for side in (low, high))
    width, height = ((high - low) * padding).T
    return np.concatenate([(low + high) / 2, np.maximum(height, width / aspect)[:, None]], 1).astype(np.float32)
