"""``unihpe lift``: keypoint files, pictures, videos and folders of them to 3D poses.

A pose is read or detected, numbered and smoothed if it is in a video, completed if joints are missing, lifted, checked
for doubtful results, and written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track
from torch import Tensor

from multicontrast._checks import three_beats
from unihpe_ref.applications.completion import LEAST, complete, steeply_seen, turned_by
from unihpe_ref.applications.detector import Detected, Detector
from unihpe_ref.applications.frames import PICTURES, VIDEOS, Frame, read_picture, read_video, thumbnail
from unihpe_ref.applications.keypoints import MIN_CONFIDENCE, Keypoints, camera_matrix, read_keypoints
from unihpe_ref.applications.poses import PoseSet, save_poses
from unihpe_ref.applications.tracks import number_people, smooth
from unihpe_ref.applications.turntable import MOST_ROWS, save_pose_view
from unihpe_ref.data import PoseSource, generate_motion, look_at
from unihpe_ref.data.layouts import DETECTED, LAYOUTS
from unihpe_ref.data.pictures import decode
from unihpe_ref.data.shapes import Array, all_finite
from unihpe_ref.lifter import LiftedPoses, Lifter, camera_of, load_lifter

_LAYOUT_NAMES = ("auto", *DETECTED)
LayoutName = Literal[_LAYOUT_NAMES]  # type: ignore[valid-type]
VIEWS = (".gif", ".png", ".html")
_MOST_PICTURES = 240  # pictures of a video in the page
_MOST_FRAMES = 5_000_000  # a day of video
_THOROUGH = 30  # frames between two searches for small people
# A pose is doubtful if its joints project further than this from the given ones, in shares of the person. With 1.5 % of
# noise this holds for 1 to 4 % of poses from level cameras.
DOUBTFUL = 0.016


@dataclass
class Found:
    """2D poses of one source.

    Attributes:
        keypoints: the poses.
        fps: of a video. time: seconds of its frames, by frame number.
        pictures: small encoded pictures by name, each with the size of the original picture.
        prefix: of the names of frames, before the number.
    """

    keypoints: Keypoints
    fps: float = 30.0
    time: dict[int, float] = field(default_factory=dict)
    pictures: dict[str, tuple[bytes, int, int]] = field(default_factory=dict)
    prefix: str = ""


def sources_of(paths: Iterable[Path]) -> list[tuple[str, list[Path]]]:
    """The sources at some paths, as (kind, files): "keypoints", all "pictures" together, or "video" one by one.

    Raises: OSError or ValueError if there is nothing, or nothing of these kinds.
    """
    found: list[tuple[str, list[Path]]] = []
    pictures: list[Path] = []
    for path in paths:
        if not path.exists():
            needed = f"`unihpe lift` needs a file or a folder at {path}"
            raise FileNotFoundError(three_beats(needed, "nothing there", "Check the path."))
        inside = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
        seen = [file for file in inside if file.suffix.lower() in PICTURES]
        videos = [file for file in inside if file.suffix.lower() in VIDEOS]
        keypoints = [file for file in inside if file.suffix.lower() == ".json"]
        pictures += seen
        found += [("video", [file]) for file in videos]
        if keypoints and (not path.is_dir() or not (seen or videos)):
            found.append(("keypoints", [path]))
        if not (seen or videos or keypoints):
            needed = f"`unihpe lift` needs keypoints (.json), pictures ({', '.join(PICTURES)}) or videos at {path}"
            raise ValueError(three_beats(needed, path.suffix or "none in the folder", "Convert the file."))
    return ([("pictures", pictures)] if pictures else []) + found


def find_poses(kind: str, files: list[Path], asked: Lift, detector: Detector | None, console: Console) -> Found:
    """2D poses of one source, of a kind of :func:`sources_of`."""
    if kind == "keypoints":
        read = read_keypoints(files[0], layout=asked.layout, min_confidence=asked.min_confidence)
        pictures = _pictures_beside(files[0], read.image)
        if read.image_size is None and set(read.image) <= set(pictures):
            read = replace(read, image_size=torch.tensor([pictures[name][1:] for name in read.image]).float())
        return Found(read, fps=asked.fps, pictures=pictures)
    assert detector is not None
    if kind == "pictures":
        people, pictures = [], {}
        twice = len({path.name for path in files}) < len(files)
        for path in track(files, "finding people", console=console, transient=True, disable=len(files) < 2):
            picture, name = read_picture(path), str(path) if twice else path.name
            pictures[name] = (thumbnail(picture, 800), *picture.size)
            people += [(name, 0, picture.size, person) for person in detector.find(picture)]
        return Found(_keypoints(people, asked, video=False), pictures=pictures)
    return _of_video(files[0], asked, detector, console)


def _pictures_beside(path: Path, names: Iterable[str]) -> dict[str, tuple[bytes, int, int]]:
    """The pictures that a keypoint file names and that are in its folder, or in `images` in or beside that folder."""
    folder = path if path.is_dir() else path.parent
    places = [place for place in (folder, folder / "images", folder.parent / "images") if place.is_dir()]
    found = {}
    for name in list(dict.fromkeys(names))[:_MOST_PICTURES]:
        for file in (place / name for place in places):
            inside = any(place.resolve() in file.resolve().parents for place in places)
            if inside and file.suffix.lower() in PICTURES and file.is_file():
                # data sets annotate the pixels as they are stored
                picture = decode(file.read_bytes(), file)
                found[name] = (thumbnail(picture, 800), *picture.size)
                break
    return found


def _of_video(path: Path, asked: Lift, detector: Detector, console: Console) -> Found:
    people: list[tuple[str, int, tuple[int, int], Detected]] = []
    pictures: dict[str, tuple[bytes, int, int]] = {}
    times: dict[int, float] = {}
    thorough, every, prefix = True, 1, f"{path.name} #"

    def progress() -> Iterable[Frame]:
        return track(read_video(path), f"finding people in {path.name}", console=console, transient=True, total=None)

    for frame in progress():
        name = f"{prefix}{frame.number}"
        times[frame.number] = frame.time
        look = thorough or frame.number % _THOROUGH == 0
        found = detector.find(frame.picture, thorough=look)
        if frame.number % _THOROUGH == 0:  # decide whether to search for small people
            thorough = len(found) > len(detector.find(frame.picture, thorough=False))
        people += [(name, frame.number, frame.picture.size, person) for person in found]
        if frame.number % every == 0:
            pictures[name] = (thumbnail(frame.picture, 360, 60), *frame.picture.size)
        if len(pictures) > _MOST_PICTURES:
            pictures = dict(list(pictures.items())[::2])
            every *= 2
    seconds = max(times.values()) - min(times.values())
    fps = (len(times) - 1) / seconds if seconds > 0 else asked.fps
    return Found(_keypoints(people, asked, video=True), fps, times, pictures, prefix)


def _keypoints(people: list[tuple[str, int, tuple[int, int], Detected]], asked: Lift, *, video: bool) -> Keypoints:
    if not people:
        needed = "`unihpe lift` needs people that its detector can see"
        raise ValueError(three_beats(needed, "nobody", "Use pictures in which people are larger, or keypoints."))
    names, frames, sizes, found = zip(*people)
    joints, confidence = LAYOUTS["blazepose33"].to_h36m(
        np.stack([person.joints[:, :2] for person in found]),
        np.stack([np.where(person.joints[:, 2] > asked.min_confidence, person.joints[:, 2], 0) for person in found]),
    )
    return Keypoints(
        torch.from_numpy(joints).float(),
        torch.from_numpy(confidence).float(),
        tuple(names),
        torch.tensor(sizes).float(),
        frame=tuple(frames) if video else None,
        layout="blazepose33",
    )


def example() -> Found:
    """Three seconds of a person who walks and waves, as from a detector: 1 % of noise, and a gap."""
    motion = generate_motion(3, actions=("walk", "wave"), num_subjects=2, num_test_subjects=1, seconds=3.0, fps=30.0)
    body = PoseSource(motion).motion
    joints = body.joints[body.sequence == 0][:90]
    middle = joints.mean((0, 1))
    rotation, translation = look_at(middle + torch.tensor([4.0, 2.0, 0.6]), middle)
    seen = joints @ rotation.mT + translation
    pixels = 1100.0 * seen[..., :2] / seen[..., 2:] + torch.tensor([639.5, 359.5])
    generator = torch.Generator().manual_seed(0)
    size = (pixels.amax(1) - pixels.amin(1)).amax(-1)
    pixels = pixels + 0.01 * size[:, None, None] * torch.randn(pixels.shape, generator=generator)
    confidence = torch.full(pixels.shape[:2], 0.9)
    confidence[40:46, 15:] = 0  # the right forearm
    frames = tuple(range(len(pixels)))
    return Found(
        Keypoints(
            torch.where(confidence[..., None] > 0, pixels, torch.nan),
            confidence,
            tuple(f"example #{frame}" for frame in frames),
            torch.tensor([[1280.0, 720.0]]).expand(len(frames), 2),
            frame=frames,
        ),
        30.0,
        {frame: frame / 30 for frame in frames},
    )


def followed(found: Found, smoothed: bool = True) -> tuple[Found, Tensor, list[str]]:
    """Numbers the people of a video, and smooths their tracks if ``smoothed``.

    Returns: the poses, one for each frame of each person; ``(N, 17)`` bool, True for joints that were filled in; and
        remarks.
    """
    points = found.keypoints
    nothing = torch.zeros(points.confidence.shape, dtype=torch.bool)
    if points.frame is None:
        return found, nothing, []
    points = points.take(torch.tensor(points.frame).argsort(stable=True))
    assert points.frame is not None
    if points.frame[-1] - points.frame[0] > _MOST_FRAMES:
        needed = f"`unihpe lift` needs frames of one video, numbered within {_MOST_FRAMES}"
        came = f"{points.frame[0]} to {points.frame[-1]}"
        raise ValueError(three_beats(needed, came, "Number them one by one, or leave the numbers out."))
    person = np.array(points.person) if points.person is not None else None
    if person is None:
        person = number_people(points.joints_px.double().numpy(), points.frame, found.fps)
    names = dict(zip(points.frame, points.image))
    if not smoothed or len(set(points.frame)) < 5:
        return replace(found, keypoints=replace(points, person=tuple(person.tolist()))), nothing, []
    columns: dict[str, list[Array]] = {}
    swaps = 0
    frame_of = np.array(points.frame)
    for number in np.unique(person):
        rows = np.flatnonzero(person == number)
        frames, first = np.unique(frame_of[rows], return_index=True)
        rows = rows[first]
        steady, filled, swapped = smooth(points.joints_px[rows].double().numpy(), frames.tolist(), found.fps)
        swaps += swapped
        span = np.arange(frames[0], frames[-1] + 1)
        confidence = np.zeros(steady.shape[:2], np.float32)
        confidence[frames - frames[0]] = points.confidence[rows].numpy()
        track_of = {
            "joints": steady,
            "confidence": confidence,
            "filled": filled,
            "frame": span,
            "row": rows[np.searchsorted(frames, span, "right") - 1],  # the frame itself, or the last one before it
            "person": np.full(len(span), number),
        }
        some = all_finite(steady, -1).any(1)
        for name, values in track_of.items():
            columns.setdefault(name, []).append(values[some])
    order = np.argsort(np.concatenate(columns["frame"]), kind="stable")
    held = {name: np.concatenate(values)[order] for name, values in columns.items()}
    merged = replace(
        points.take(torch.from_numpy(held["row"])),
        joints_px=torch.from_numpy(held["joints"]).float(),
        confidence=torch.from_numpy(held["confidence"]),
        image=tuple(names.get(frame, f"{found.prefix}{frame}") for frame in held["frame"].tolist()),
        frame=tuple(held["frame"].tolist()),
        person=tuple(held["person"].tolist()),
    )
    words = [f"left and right were swapped back in {swaps} frames"] if swaps else []
    return replace(found, keypoints=merged), torch.from_numpy(held["filled"]), words


def lift_found(
    found: Found,
    lifter: Lifter,
    *,
    smoothed: bool = True,
    image_size: tuple[int, int] | None = None,
    intrinsics: tuple[float, float, float, float] | None = None,
    flip: bool = True,
    hypotheses: int = 1,
) -> tuple[PoseSet, list[str]]:
    """Poses of one source in 3D, and remarks about doubtful results.

    Raises: ValueError if no pose has enough joints, or nothing is known about the camera.
    """
    total = len(found.keypoints)
    found, filled, words = followed(found, smoothed)
    points, count = found.keypoints, len(found.keypoints)
    joints, guessed = complete(points.joints_px)
    rows = torch.nonzero(joints.isfinite().all(-1).all(-1))[:, 0]
    if not len(rows):
        needed = f"`unihpe lift` needs poses with at least {LEAST} joints"
        came = f"{total} with fewer that are certain enough"
        raise ValueError(three_beats(needed, came, "Lower `--min-confidence`, or show more of the person."))
    points, joints, guessed = points.take(rows), joints[rows], guessed[rows]
    size, matrix = camera_for(points, image_size, intrinsics)
    lifted, spread = _lifted(lifter, joints, size, matrix, flip, hypotheses)
    own, error = _reprojection(lifted, joints, size, matrix)
    if points.frame is not None and smoothed:
        lifted = replace(lifted, root=_steady(lifted.root, points, found.fps))
    poses = PoseSet(
        image=points.image,
        joints_2d=joints,
        lifted=lifted,
        confidence=torch.where(guessed, 0.0, points.confidence),
        estimated=filled[rows] | guessed,
        joint_reprojection_px=own,
        frame=points.frame,
        time=None if points.frame is None else [found.time.get(k, k / found.fps) for k in points.frame],
        person=points.person,
        spread=spread,
        assumed_focal=matrix is None,
        pictures=found.pictures,
    )
    return poses, [*points.notes, *words, *_doubts(poses, error, count)]


def _lifted(
    lifter: Lifter, joints: Tensor, size: Tensor | None, matrix: Tensor | None, flip: bool, hypotheses: int
) -> tuple[LiftedPoses, Tensor | None]:
    """The pose, or the mean of several hypotheses with their spread."""
    generator = torch.Generator().manual_seed(0)
    several = [
        lifter.lift(joints, image_size=size, intrinsics=matrix, flip=flip, generator=generator)
        for _ in range(hypotheses)
    ]
    if hypotheses == 1:
        return several[0], None
    solid = torch.stack([one.joints_3d for one in several])
    mean = solid.mean(0)
    spread = (solid - mean).square().sum(-1).mean(0).sqrt()
    if not bool((spread > 1e-5).any()):  # the hypotheses differ by rounding only
        needed = "`--hypotheses` needs a lifter with a score-based decoder"
        raise ValueError(three_beats(needed, "one that gives a single pose", "Give such a `--checkpoint`."))
    roots = torch.stack([one.root for one in several]).mean(0)
    reprojection = torch.stack([one.reprojection_px for one in several]).mean(0)
    return LiftedPoses(mean, roots, reprojection, several[0].clamped), spread


def _reprojection(
    lifted: LiftedPoses, joints: Tensor, size: Tensor | None, matrix: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Distance of projected from given joints in pixels ``(N, 17)``, and its mean in shares of the person ``(N,)``."""
    focal, principal = camera_of(len(joints), size, matrix)
    seen = lifted.joints_3d + lifted.root[:, None]
    projected = focal[:, None] * seen[..., :2] / seen[..., 2:].clamp(min=1e-3) + principal[:, None]
    own = (projected - joints).norm(dim=-1)
    extent = (joints.amax(1) - joints.amin(1)).amax(-1)
    return own, own.mean(-1) / extent


def _steady(root: Tensor, points: Keypoints, fps: float) -> Tensor:
    """Smooths the positions of people by the same filter as their joints; the distance is the noisiest number."""
    assert points.frame is not None
    assert points.person is not None
    result = root.clone()
    frames, person = np.array(points.frame), np.array(points.person)
    for number in np.unique(person):
        own = np.flatnonzero(person == number)
        steady, _, _ = smooth(np.repeat(root[own].double().numpy()[:, None], 17, 1), frames[own].tolist(), fps)
        result[own] = torch.from_numpy(steady[frames[own] - frames[own][0], 0]).float()
    return result


def _doubts(poses: PoseSet, error: Tensor, total: int) -> list[str]:
    words = []
    assert poses.estimated is not None
    if len(poses) < total:
        words.append(f"{total - len(poses)} poses left out: fewer than {LEAST} joints are certain")
    if bool(poses.estimated.any()):
        count = int(poses.estimated.any(1).sum())
        words.append(f"{int(poses.estimated.sum())} joints of {count} poses were not seen and are estimated (marked)")
    if bool(poses.lifted.clamped.any()):
        count = int(poses.lifted.clamped.sum())
        words.append(f"{count} nearer or further than any in training: their depth is a guess")
    turn = turned_by(poses.joints_2d)
    for degrees in turn.unique().tolist():
        if degrees:
            looks = f"{int((turn == degrees).sum())} of {len(poses)} poses look turned by {degrees} degrees clockwise"
            words.append(f"WARNING: {looks}: turn the picture back, unless people lie or stand on their heads")
    steep = torch.where(turn == 0, steeply_seen(poses.joints_2d), 0)
    for side, view, factor in ((-1, "below", 2), (1, "above", 1.2)):
        if count := int((steep == side).sum()):
            looks = f"{count} of {len(poses)} poses look seen from steeply {view}"
            words.append(f"WARNING: {looks}: expect {factor} times the error of level cameras")
    bad = error[(error > DOUBTFUL) & (turn == 0) & (steep == 0)]
    if len(bad):
        share = f"{100 * float(bad.median()):.0f} % of the person"
        doubtful = f"WARNING: {len(bad)} of {len(poses)} poses are doubtful"
        words.append(f"{doubtful}, they project {share} away from their joints: wrong joints, or a rare pose?")
    if poses.assumed_focal:
        words.append("focal length taken for the image's diagonal: distances are a guess; `--intrinsics` is better")
    return words


def camera_for(
    found: Keypoints, image_size: tuple[int, int] | None, intrinsics: tuple[float, float, float, float] | None
) -> tuple[Tensor | None, Tensor | None]:
    """The camera from the options, else from the file: sizes ``(N, 2)`` and intrinsics ``(N, 3, 3)``."""
    size, matrix = found.image_size, found.intrinsics
    if image_size is not None:
        size = torch.tensor(image_size).float().expand(len(found), 2)
    if intrinsics is not None:
        matrix = camera_matrix(intrinsics).expand(len(found), 3, 3)
    if size is None and matrix is None:
        needed = "the camera of the keypoints needs to be known"
        came = "neither a size of the image nor intrinsics"
        raise ValueError(three_beats(needed, came, "Add `--image-size WIDTH HEIGHT`, or better `--intrinsics`."))
    return size, matrix


def joined(parts: list[PoseSet]) -> PoseSet:
    """Joins the poses of several sources, with unique numbers of people; each picture is a frame 0."""
    if len(parts) == 1:
        return parts[0]
    taken: set[str] = set()
    for number, part in enumerate(parts):
        if taken & set(part.image):  # for example two keypoint files that both count from 0
            names = {name: f"{name} ({number + 1})" for name in (*part.image, *part.pictures)}
            pictures = {names[name]: held for name, held in part.pictures.items()}
            parts[number] = replace(part, image=[names[name] for name in part.image], pictures=pictures)
        taken |= set(parts[number].image)
    if any(part.person is not None for part in parts):
        numbered, people = [], 0
        for part in parts:
            count = len(part)
            person = list(range(count)) if part.person is None else list(part.person)
            frame = [0] * count if part.frame is None else part.frame
            time = [0.0] * count if part.time is None else part.time
            numbered.append(replace(part, frame=frame, time=time, person=[people + number for number in person]))
            people += max(person) + 1
        parts = numbered

    def chained(name: str, of: str = "") -> Any:
        values = [getattr(getattr(part, of) if of else part, name) for part in parts]
        if any(value is None for value in values):
            return None
        return torch.cat(values) if isinstance(values[0], Tensor) else [item for value in values for item in value]

    each = (
        "image",
        "joints_2d",
        "confidence",
        "estimated",
        "joint_reprojection_px",
        "frame",
        "time",
        "person",
        "spread",
    )
    solid = ("joints_3d", "root", "reprojection_px", "clamped")
    return PoseSet(
        lifted=LiftedPoses(*(chained(name, "lifted") for name in solid)),
        assumed_focal=any(part.assumed_focal for part in parts),
        pictures={name: held for part in parts for name, held in part.pictures.items()},
        **{name: chained(name) for name in each},
    )


def check_outputs(paths: tuple[Path, ...]) -> None:
    """Raises, before any work, if a file has no known ending or no folder to be written to."""
    for path in paths:
        if path.suffix.lower() not in (".json", ".npz", *VIEWS):
            needed = f"`--out` needs files that end in .json, .npz, {', '.join(VIEWS)}"
            raise ValueError(three_beats(needed, repr(path.name), "Change the ending."))
        check_folder(path)


def check_folder(path: Path) -> None:
    """Raises FileNotFoundError if a file's folder does not exist."""
    if not path.absolute().parent.is_dir():
        needed = f"`--out` needs a folder for {path.name}"
        raise FileNotFoundError(three_beats(needed, f"no {path.parent}", "Make the folder first."))


def write_poses(paths: tuple[Path, ...], poses: PoseSet, console: Console) -> None:
    """Writes each file and prints its name."""
    for path in paths:
        if path.suffix.lower() in VIEWS:
            save_pose_view(path, poses)
        else:
            save_poses(path, poses)
        few = path.suffix.lower() == ".png" and len(poses) > MOST_ROWS
        shown = f"  ({MOST_ROWS} of {len(poses)} poses, evenly chosen)" if few else ""
        console.print(f"  {path}{shown}", soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Lift:
    """Lift people in photographs, videos or keypoint files to 3D.

    The lifter that comes with the package needs no training and no download; photographs and videos need the extra
    `detect`. Describe the camera: give its intrinsics if they are known, else the size of the image.
    """

    paths: tyro.conf.Positional[tuple[Path, ...]] = ()
    """pictures, videos, JSON of a detector (COCO, OpenPose, AlphaPose, mmpose), or folders of them"""
    example: bool = False
    """lift three seconds of generated motion instead, to try this without a file of your own"""
    out: tuple[Path, ...] = (Path("poses.json"), Path("poses.html"))
    """what to write: .json or .npz for the joints; .gif, .png or .html to look at"""
    layout: LayoutName = "auto"
    """the layout of a keypoint file's joints; auto reads it from the file"""
    image_size: tuple[int, int] | None = None
    """width and height of the image, if the file does not state them"""
    intrinsics: tuple[float, float, float, float] | None = None
    """fx fy cx cy in pixels, if the file does not state them"""
    min_confidence: float = MIN_CONFIDENCE
    """joints at or below this confidence count as missing and are estimated from the others"""
    smooth: bool = True
    """for videos: fill gaps, repair swapped sides and smooth the joints"""
    fps: float = 30.0
    """frames per second of keypoint files that hold a video"""
    joints_2d: Literal["detected", "annotated"] = "detected"
    """a detector's joints, off by 1 % of the person's size or more; or exact ones, if yours are exact"""
    flip: bool = True
    """average with the mirrored pose"""
    hypotheses: int = 1
    """number of poses that a score-based --checkpoint draws; their mean and their spread are written"""
    checkpoint: Path | None = None
    """another lifter: a model.safetensors of `unihpe train`"""

    def execute(self, console: Console) -> None:
        check_outputs(self.out)
        for name, least in (("fps", 1e-3), ("hypotheses", 1)):
            given = getattr(self, name)
            if not least <= given < math.inf:
                raise ValueError(three_beats(f"`--{name}` needs to be positive", str(given), "Leave it out."))
        if bool(self.paths) == self.example:
            came = "both" if self.example else "neither"
            needed = "`unihpe lift` needs pictures, videos or keypoints, or `--example`"
            raise ValueError(three_beats(needed, came, "Try `unihpe lift --example` for a first look."))
        sources = sources_of(self.paths)
        detector = Detector() if any(kind != "keypoints" for kind, _ in sources) else None
        lifter = load_lifter(self.checkpoint, joints_2d=self.joints_2d)
        parts, words = [], []
        found = [example()] if self.example else (find_poses(*source, self, detector, console) for source in sources)
        for one in found:
            poses, doubts = lift_found(
                one,
                lifter,
                smoothed=self.smooth,
                image_size=self.image_size,
                intrinsics=self.intrinsics,
                flip=self.flip,
                hypotheses=self.hypotheses,
            )
            parts.append(poses)
            words += doubts
        poses = joined(parts)
        people = len(set(poses.person)) if poses.person is not None else 0
        of = f" of {people} {'person' if people == 1 else 'people'} in {len(set(poses.image))} frames" if people else ""
        console.print(f"{len(poses)} poses{of} lifted; metres from the pelvis in camera axes.")
        off = float(poses.lifted.reprojection_px.median())
        for sentence in (*dict.fromkeys(words), f"joints project within {off:.1f} px of the given ones (median)"):
            console.print(f"  {sentence}", soft_wrap=True)
        write_poses(self.out, poses, console)
