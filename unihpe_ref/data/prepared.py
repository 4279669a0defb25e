"""Prepared data: memory-mapped arrays, a manifest that describes them, and their hashes.

``prepare`` writes piece by piece. Each piece gets its name only when it is complete, and is entered in
``progress.json``. After an interruption the same command resumes and keeps the pieces whose hashes match.
``manifest.json`` is written last; a folder without it is unfinished.

The folder::

    manifest.json        format, source files and their hashes, tables, every piece with its SHA-256
    arrays/*.npy         one row a sample (or a frame), and the cameras
    pictures/*.bin       with crops: JPEGs end to end; arrays/picture_offsets.npy says where each begins
    source/              the contents of an archive, kept if pictures are read from it
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multicontrast._checks import check_number, three_beats
from unihpe_ref.files import LOCK, file_hash, locked, remove_whole, write_whole
from unihpe_ref.unfit import reading, unfit

from .archives import is_archive, unpack
from .camera import Camera
from .motion import Motion
from .pictures import SHARD, Shards, decode, encode, warp
from .readers import LICENCES, MODULES, read_data
from .recording import Recording, row_fields
from .shapes import Array, all_finite

Say = Callable[[str], object]

FORMAT = "unihpe_data/1"
MANIFEST, PROGRESS = "manifest.json", "progress.json"
_PIECE = re.compile(r"(arrays/\w+\.npy|pictures/\d{5}\.bin)")
_TABLES = ("sequence_name", "subject", "action", "split", "fps")
CROP_SIZE = (384, 288)  # height, width of packed crops: 256 x 192 with room for augmentation
CROP_MARGIN = 1.5  # of the box's side


def is_prepared(path: Path) -> bool:
    """Whether ``path`` is a folder that :func:`prepare` finished."""
    return (path / MANIFEST).is_file()


def prepare(
    source: Path,
    folder: Path,
    *,
    form: str | None = None,
    fps: float | None = None,
    crops: bool = False,
    joints: Mapping[str, str] | None = None,
    say: Say = len,  # says nothing
) -> Recording | Motion:
    """Converts data into ``folder`` and opens them.

    Args:
        source: a file or folder that a reader knows, or a zip or tar archive of one.
        folder: made if it does not exist; an unfinished one of the same source and options is continued.
        form: the reader; recognised unless given.
        fps: keeps this many frames per second of each sequence; all unless given.
        crops: cuts every person out, with a margin of half a box, and packs the crops; otherwise pictures stay where
            they are.
        joints: for BVH, as in :func:`~unihpe_ref.data.read_data`.
        say: called with progress messages.
    Raises: FileExistsError if the folder holds other files; OSError and ValueError as in the readers.
    """
    if fps is not None:
        fps = check_number("prepare", "fps", fps, above=0, below=1e6, remedy="Leave it out for all frames.")
    needed = f"`prepare` needs a folder that is empty or unfinished at {folder}"
    if folder.exists() and (not folder.is_dir() or _holds_something_else(folder)):
        raise FileExistsError(three_beats(needed, "one with other files", "Choose another name."))
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if is_prepared(folder):
            (folder / PROGRESS).unlink(missing_ok=True)  # left by a process that was killed after it wrote the manifest
            raise FileExistsError(three_beats(needed, f"finished data ({MANIFEST})", "Choose another, or remove it."))
        return _prepare(source, folder, form, fps, crops, joints, say)


def _prepare(
    source: Path,
    folder: Path,
    form: str | None,
    fps: float | None,
    crops: bool,
    joints: Mapping[str, str] | None,
    say: Say,
) -> Any:
    archive = file_hash(source) if is_archive(source) else None
    before = _progress(folder)
    if before.get("archive") != archive or archive is None:
        remove_whole(folder / "source")  # of another archive
    write_whole(folder / PROGRESS, _json(before | {"archive": archive}))  # marks the folder as ours
    place = _unpacked(source, folder, say) if archive is not None else source
    say(f"reading {place}")
    data = read_data(place, form, joints)
    if fps is not None:
        data = data.thinned(fps)
    sources = _sources(data, place, source, archive)
    hashes = [(Path(name).name, held["sha256"]) for name, held in sources.items()]  # for any spelling of the path
    key = hashlib.sha256(
        _json({"sources": hashes, "fps": fps, "crops": crops, "joints": dict(joints or {}), "format": FORMAT})
    ).hexdigest()
    pieces = Pieces(folder, key, archive, say)
    held = _write_recording(data, pieces, crops) if isinstance(data, Recording) else _write_motion(data, pieces)
    manifest = {"format": FORMAT, "key": key, "sources": sources, "fps": fps, **held, "pieces": pieces.done}
    pieces.remove_others()
    if place != source and (crops or isinstance(data, Motion) or not len(data.pictures)):
        remove_whole(folder / "source")
    write_whole(folder / MANIFEST, _json(manifest))
    (folder / PROGRESS).unlink()
    return open_prepared(folder)


def _holds_something_else(folder: Path) -> bool:
    """Whether the folder holds anything that is not from :func:`prepare`, finished or killed."""
    ours = is_prepared(folder) or _is_ours(folder)
    return not ours and any(path.name != LOCK and not path.match(".*.tmp") for path in folder.iterdir())


def open_data(
    path: Path, form: str | None = None, *, verify: bool = False, joints: Mapping[str, str] | None = None
) -> Recording | Motion:
    """Prepared data, or whatever a reader knows.

    Args:
        path: file or folder. form, joints: for data that are not prepared, as in :func:`~unihpe_ref.data.read_data`.
        verify: compares prepared data with their hashes.
    Raises: OSError or ValueError.
    """
    if form is None and (is_prepared(path) or _is_ours(path)):
        return open_prepared(path, verify=verify)
    return read_data(path, form, joints)


def open_prepared(folder: Path, *, verify: bool = False) -> Recording | Motion:
    """Opens what :func:`prepare` wrote; arrays stay on the disk until they are used.

    Args:
        folder: with a manifest. verify: compares every byte with its hash.
    Raises: FileNotFoundError for an unfinished folder; ValueError if a piece is missing, altered, or not ours.
    """
    if not is_prepared(folder):
        came = "an unfinished one" if (folder / PROGRESS).exists() else "none"
        remedy = "Run the same `unihpe data prepare` again." if came != "none" else "Run `unihpe data prepare` first."
        needed = f"`open_prepared` needs prepared data ({MANIFEST}) in {folder}"
        raise FileNotFoundError(three_beats(needed, came, remedy))
    needed = f"`open_prepared` needs a folder of format {FORMAT} at {folder}"
    with reading(needed, "Prepare it again."):
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT:
            raise unfit(needed, f"format {manifest['format']!r}", "Prepare it again.")
        for name, piece in manifest["pieces"].items():
            if fault := _fault(folder, name, piece, verify):
                raise unfit(needed, f"{name!r}, {fault}", "Prepare it again.")
        arrays = {
            Path(name).stem: np.load(folder / name, mmap_mode="c", allow_pickle=False)
            for name in manifest["pieces"]
            if name.startswith("arrays/")
        }
        opened = _open_recording if manifest["kind"] == "recording" else _open_motion
        try:
            return opened(folder, manifest, arrays)
        except (TypeError, ValueError) as error:  # the message does not name the folder
            raise unfit(needed, f"parts that do not fit ({error})", "Prepare it again.") from error


def _fault(folder: Path, name: str, piece: dict[str, Any], verify: bool) -> str | None:
    if not _PIECE.fullmatch(name):
        return "a name that no piece has"
    path = folder / name
    if not path.is_file():
        return "which is missing"
    if path.stat().st_size != piece["bytes"]:
        return f"of {path.stat().st_size} bytes instead of {piece['bytes']}"
    return "whose bytes have changed" if verify and file_hash(path) != piece["sha256"] else None


# --- writing --------------------------------------------------------------------------------------------------


class Pieces:
    """The files of a folder: each is written once, recorded with its hash, and kept after an interruption."""

    def __init__(self, folder: Path, key: str, archive: str | None, say: Say) -> None:
        self.folder = folder
        self.key = key
        self.archive = archive
        self.say = say
        self.done: dict[str, dict[str, Any]] = {}
        before = _progress(folder)
        self._before: dict[str, dict[str, Any]] = before["pieces"] if before.get("key") == key else {}
        for name in ("arrays", "pictures"):
            (folder / name).mkdir(exist_ok=True)

    def holds(self, name: str) -> bool:
        """Whether an earlier run finished this piece, and it has not changed since."""
        piece, path = self._before.get(name), self.folder / name
        held = piece is not None and path.is_file() and path.stat().st_size == piece["bytes"]
        if piece is not None and held and file_hash(path) == piece["sha256"]:
            self.done[name] = piece
            self.say(f"{name}: kept from before")
            return True
        return False

    def put(self, name: str, content: Callable[[Any], None]) -> None:
        """Writes a piece; ``content`` is given the open file."""
        path = self.folder / name
        write_whole(path, content)
        self.done[name] = {"bytes": path.stat().st_size, "sha256": file_hash(path)}
        progress = {"key": self.key, "archive": self.archive, "pieces": self._before | self.done}
        write_whole(self.folder / PROGRESS, _json(progress))
        self.say(f"{name}: {self.done[name]['bytes'] / 2**20:.1f} MB")

    def array(self, name: str, array: Array) -> None:
        """Writes an array as ``arrays/name.npy``."""
        name = f"arrays/{name}.npy"
        if not self.holds(name):
            self.put(name, lambda file: np.save(file, np.ascontiguousarray(array), allow_pickle=False))

    def remove_others(self) -> None:
        """Removes files left by an earlier run with other options, or by an interrupted write."""
        for name in ("arrays", "pictures"):
            for path in (self.folder / name).iterdir():
                if f"{name}/{path.name}" not in self.done:
                    path.unlink()
        if not any((self.folder / "pictures").iterdir()):
            (self.folder / "pictures").rmdir()


def _write_motion(motion: Motion, pieces: Pieces) -> dict[str, Any]:
    pieces.array("joints", motion.joints.numpy())
    pieces.array("lengths", motion.starts.diff().numpy())
    table = {name: list(getattr(motion, name)) for name in ("subject", "action", "split", "name")}
    return {"kind": "motion", "tables": table | {"fps": motion.fps}, "notes": list(motion.notes)}


def _write_recording(recording: Recording, pieces: Pieces, crops: bool) -> dict[str, Any]:
    if crops:
        recording = _pack(recording, pieces)
    for name, array in row_fields(recording).items():
        pieces.array(name, array)
    for item in dataclasses.fields(Camera):
        pieces.array(f"camera_{item.name}", getattr(recording.cameras, item.name).numpy())
    pieces.array("camera_names", _as_bytes(recording.camera_name))
    pieces.array("calibrated", np.asarray(recording.calibrated, bool))
    if recording.pack is None and len(recording.pictures):
        pieces.array("pictures", _as_bytes(recording.pictures))
    return {
        "kind": "recording",
        "reader": recording.format,
        "licence": LICENCES.get(recording.format, ""),
        "folder": str(recording.folder.resolve()),
        "packed": recording.pack is not None,
        "tables": {name: list(getattr(recording, name)) for name in _TABLES},
        "notes": list(recording.notes),
    }


def crop_map(box: Array, margin: float = CROP_MARGIN, size: tuple[int, int] = CROP_SIZE) -> Array:
    """Full-image pixels to pixels of a packed crop, ``(2, 3)``: the box with a margin, upright."""
    height, width = size
    scale = height / (margin * float(box[2]))
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    return np.concatenate([scale * np.eye(2), (middle - scale * box[:2])[:, None]], 1)


def _pack(recording: Recording, pieces: Pieces) -> Recording:
    """Cuts every person who has a picture out of it; the pack has a picture for each of these samples."""
    rows = np.flatnonzero((np.asarray(recording.picture) >= 0) & all_finite(recording.box, 1))
    if not len(rows):
        raise ValueError(
            three_beats("`prepare` with `crops` needs samples with pictures", "none", "Leave the option out.")
        )
    affine = np.full((len(recording), 2, 3), np.nan, np.float32)
    number = np.full(len(recording), -1)
    offsets: list[Array] = []
    for shard in range(0, len(rows), SHARD):
        own = rows[shard : shard + SHARD]
        name = f"pictures/{shard // SHARD:05d}.bin"
        for row in own:
            affine[row] = crop_map(recording.box[row])
        number[own] = np.arange(shard, shard + len(own))
        table = pieces.folder / "arrays" / f"offsets_{shard // SHARD:05d}.npy"
        key = f"arrays/{table.name}"
        if not (pieces.holds(name) and pieces.holds(key)):
            lengths: list[int] = []

            def write(file: Any, own: Array = own, lengths: list[int] = lengths) -> None:
                for content in _cut(recording, own, affine):
                    lengths.append(len(content))
                    file.write(content)

            pieces.put(name, write)
            pieces.array(table.stem, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
        offsets.append(np.load(table, allow_pickle=False))
    files = [pieces.folder / f"pictures/{index:05d}.bin" for index in range(len(offsets))]
    pack = Shards(files, np.concatenate(offsets))
    return dataclasses.replace(
        recording, picture=number.astype(np.int64), picture_affine=affine, pack=pack,
        pictures=np.zeros(len(rows), "S1"),
    )  # fmt: skip


def _cut(recording: Recording, rows: Array, affine: Array) -> Iterator[bytes]:
    for row in rows:
        path = recording.picture_path(int(row))
        content = recording.picture_bytes(int(row))
        assert content is not None
        own = np.asarray(affine[row], float)
        if recording.picture_affine is not None:  # the stored picture is a crop already
            stored = np.vstack([recording.picture_affine[row], [0, 0, 1]])
            own = own @ np.linalg.inv(stored)
        yield encode(warp(decode(content, path), own, CROP_SIZE))


def _sources(data: Recording | Motion, place: Path, source: Path, archive: str | None) -> dict[str, dict[str, Any]]:
    """The files that were read, with sizes and hashes; the archive's hash is known already."""
    if place != source:
        files = [source]
    elif isinstance(data, Recording):
        files = list(data.sources)
    elif place.is_file():
        files = [place]
    else:
        files = sorted(
            path for module in MODULES.values() for file in module.find(place) for path in file.parent.iterdir()
            if path.suffix.lower() in (".amc", ".asf", ".bvh", ".csv")
        )  # fmt: skip
    return {
        str(path.resolve()): {"bytes": path.stat().st_size, "sha256": archive or file_hash(path)}
        for path in dict.fromkeys(files)
    }


def _unpacked(archive: Path, folder: Path, say: Say) -> Path:
    place = folder / "source"
    if not place.exists():
        say(f"unpacking {archive}")
        unpack(archive, place)
    inside = [path for path in place.iterdir() if not path.name.startswith(("__MACOSX", "."))]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else place


def _is_ours(folder: Path) -> bool:
    return (folder / PROGRESS).is_file()


def _progress(folder: Path) -> dict[str, Any]:
    try:
        held = json.loads((folder / PROGRESS).read_bytes())
        return held if isinstance(held, dict) and isinstance(held.get("pieces"), dict) else {"pieces": {}}
    except (OSError, ValueError):
        return {"pieces": {}}


def _json(values: Any) -> bytes:
    return (json.dumps(values, indent=1, sort_keys=True) + "\n").encode()


def _as_bytes(names: Array) -> Array:
    return names if names.dtype.kind == "S" else np.char.encode(names.astype(str), "utf-8")


# --- opening --------------------------------------------------------------------------------------------------


def _open_motion(_: Path, manifest: dict[str, Any], arrays: dict[str, Array]) -> Motion:
    tables = manifest["tables"]
    lengths = torch.from_numpy(np.array(arrays["lengths"]))
    return Motion(
        joints=torch.from_numpy(arrays["joints"]),
        sequence=torch.arange(len(lengths)).repeat_interleave(lengths),
        subject=tuple(tables["subject"]),
        action=tuple(tables["action"]),
        split=tuple(tables["split"]),
        name=tuple(tables["name"]),
        fps=float(tables["fps"]),
        notes=tuple(manifest.get("notes", ())),
    )


def _open_recording(folder: Path, manifest: dict[str, Any], arrays: dict[str, Any]) -> Recording:
    camera = {
        item.name: torch.from_numpy(np.array(arrays.pop(f"camera_{item.name}"))) for item in dataclasses.fields(Camera)
    }
    offsets = [arrays.pop(name) for name in sorted(arrays) if name.startswith("offsets_")]
    pack, pictures = None, arrays.pop("pictures", np.zeros(0, "S1"))
    if manifest["packed"]:
        files = [folder / f"pictures/{index:05d}.bin" for index in range(len(offsets))]
        pack = Shards(files, np.concatenate(offsets))
        pictures = np.zeros(sum(len(own) - 1 for own in offsets), "S1")
    tables: dict[str, Any] = {name: tuple(manifest["tables"][name]) for name in _TABLES}
    return Recording(
        format=str(manifest["reader"]),
        cameras=Camera(**camera),
        camera_name=np.char.decode(arrays.pop("camera_names"), "utf-8"),
        calibrated=np.array(arrays.pop("calibrated")),
        **tables,
        pictures=pictures,
        folder=Path(manifest["folder"]),
        notes=tuple(manifest["notes"]),
        pack=pack,
        **arrays,
    )
