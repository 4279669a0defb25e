"""What ``unihpe lift``, ``estimate``, ``retrieve``, ``export`` and ``doctor`` do, once their options are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from multicontrast._checks import three_beats
from unihpe_ref.data import joint_box, normalise_image
from unihpe_ref.data.pictures import decode
from unihpe_ref.doctor import examine
from unihpe_ref.export import export_model
from unihpe_ref.images import crop_image
from unihpe_ref.keypoints import Keypoints, camera_matrix, read_keypoints
from unihpe_ref.lifter import LiftedPoses, Lifter, camera_of, load_lifter, place
from unihpe_ref.models import retrieve
from unihpe_ref.poses import read_poses, save_poses
from unihpe_ref.turntable import save_pose_view

_VIEWS = (".gif", ".png", ".html")
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


@dataclass(frozen=True, kw_only=True)
class Lift:
    """Lift 2D poses of a keypoint file (COCO, BODY-25 or Human3.6M's 17 joints) to 3D.

    The lifter that comes with the package needs no training and no download. Say how the camera sees: its intrinsics
    where they are known, else the size of the image.
    """

    keypoints: tyro.conf.Positional[Path]
    """JSON of a detector, or a folder of OpenPose files"""
    out: tuple[Path, ...] = (Path("poses.json"), Path("poses.html"))
    """what to write: .json or .npz for the joints; .gif, .png or .html to look at"""
    layout: Literal["auto", "coco17", "body25", "h36m17"] = "auto"
    """which joints the file holds; auto reads it from the file"""
    image_size: tuple[int, int] | None = None
    """width and height of the image, where the file does not say"""
    intrinsics: tuple[float, float, float, float] | None = None
    """fx fy cx cy in pixels, where the file does not say"""
    min_confidence: float = 0.0
    """joints at or below it are missing; poses with missing joints are left out"""
    joints_2d: Literal["detected", "annotated"] = "detected"
    """a detector's, off by a percent of the person's size or more; or exact ones: what the lifter is told"""
    flip: bool = True
    """average with the mirrored pose"""
    checkpoint: Path | None = None
    """another lifter: a model.safetensors of `unihpe train`"""

    def execute(self, console: Console) -> None:
        writers = _check_outputs(self.out)
        found = read_keypoints(self.keypoints, layout=self.layout, min_confidence=self.min_confidence)
        keep = found.complete
        if not bool(keep.any()):
            needed = f"`unihpe lift` needs a pose with all of its joints in {self.keypoints}"
            remedy = "Lower `--min-confidence`, or use a picture that shows the whole person."
            raise ValueError(three_beats(needed, f"{len(found)} with some missing", remedy))
        rows = torch.nonzero(keep)[:, 0]
        size, intrinsics = _camera_of(found, rows, self.image_size, self.intrinsics)
        lifter = load_lifter(self.checkpoint, joints_2d=self.joints_2d)
        joints_px = found.joints_px[rows]
        generator = torch.Generator().manual_seed(0)
        lifted = lifter.lift(joints_px, image_size=size, intrinsics=intrinsics, flip=self.flip, generator=generator)
        titles = [found.image[k] for k in rows.tolist()]
        for path, write in writers:
            if write:
                save_poses(path, lifted, joints_px, titles)
            else:
                save_pose_view(path, lifted.joints_3d, titles, joints_px=joints_px)
        console.print(
            f"{len(rows)} of {len(found)} poses lifted; root-relative metres in camera axes.", highlight=False
        )
        if len(rows) < len(found):
            console.print(f"  {len(found) - len(rows)} left out: joints are missing", highlight=False)
        if bool(lifted.clamped.any()):
            words = "nearer or further than any in training: their depth is a guess"
            console.print(f"  {int(lifted.clamped.sum())} seen {words}", highlight=False)
        if intrinsics is None:
            console.print("  focal length taken for the image's diagonal; `--intrinsics` is better", highlight=False)
        off = float(lifted.reprojection_px.median())
        console.print(f"  joints project within {off:.1f} px of the given ones (median)", highlight=False)
        _say_written(console, self.out)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimate the 2D and 3D pose of a person in a photograph, with a checkpoint that has an image encoder."""

    image: tyro.conf.Positional[Path]
    """the photograph"""
    checkpoint: Path
    """a model.safetensors of `unihpe train`, trained with images"""
    box: tuple[float, float, float, float] | None = None
    """left, top, width and height of the person, pixels; the whole picture unless given"""
    intrinsics: tuple[float, float, float, float] | None = None
    """fx fy cx cy in pixels; the focal length is taken for the picture's diagonal unless given"""
    out: tuple[Path, ...] = (Path("poses.json"), Path("poses.html"))
    """what to write: .json or .npz for the joints; .gif, .png or .html to look at"""

    def execute(self, console: Console) -> None:
        writers = _check_outputs(self.out)
        lifter = load_lifter(self.checkpoint)
        data = lifter.config.data
        picture = _open_image(self.image)
        corners = self.box or (0.0, 0.0, float(picture.width), float(picture.height))
        if min(corners[2:]) <= 0:
            raise ValueError(three_beats("`--box` needs a width and a height above 0", str(corners), "In pixels."))
        left, top, width, height = corners
        ends = torch.tensor([[left, top], [left + width - 1, top + height - 1]])
        box = joint_box(ends[None], padding=1.25 if self.box else 1.0)
        matrix = None if self.intrinsics is None else camera_matrix(self.intrinsics)
        size = torch.tensor([float(picture.width), float(picture.height)])
        focal, principal = camera_of(1, size, matrix)
        crop = crop_image(picture, box[0], data.image_size, convention=data.crop)
        found = lifter.estimate(normalise_image(crop)[None], box, focal, principal)
        rays = (found.joints_px - principal[:, None]) / focal[:, None]
        root = place(found.joints_3d, rays)
        seen = found.joints_3d + root[:, None]
        error = ((seen[..., :2] / seen[..., 2:].clamp(min=1e-3) - rays) * focal[:, None]).norm(dim=-1).mean(-1)
        poses = LiftedPoses(found.joints_3d, root, error, found.clamped)
        for path, write in writers:
            if write:
                save_poses(path, poses, found.joints_px, [self.image.name])
            else:
                save_pose_view(path, poses.joints_3d, [self.image.name], joints_px=found.joints_px)
        console.print("One pose estimated; root-relative metres in camera axes.", highlight=False)
        _say_written(console, self.out)


@dataclass(frozen=True, kw_only=True)
class Retrieve:
    """Find the poses of a gallery that are nearest to each query, across modalities.

    Queries and gallery are each a keypoint file (2D), a file that `unihpe lift` wrote (3D), or photographs (a file or
    a folder; the checkpoint then needs an image encoder).
    """

    query: tyro.conf.Positional[Path]
    """what is looked for"""
    gallery: tyro.conf.Positional[Path]
    """where"""
    top: int = 5
    """how many for each query"""
    layout: Literal["auto", "coco17", "body25", "h36m17"] = "auto"
    """which joints keypoint files hold; auto reads it from the file"""
    image_size: tuple[int, int] | None = None
    """width and height of the images, where keypoint files do not say"""
    intrinsics: tuple[float, float, float, float] | None = None
    """fx fy cx cy in pixels, where keypoint files do not say"""
    checkpoint: Path | None = None
    """a model.safetensors of `unihpe train`; the lifter of the package unless given, which knows 2D and 3D"""

    def execute(self, console: Console) -> None:
        lifter = load_lifter(self.checkpoint)
        kinds, names, embeddings = zip(*(self._embed(lifter, path) for path in (self.query, self.gallery)))
        found = retrieve(embeddings[0], embeddings[1], min(self.top, len(names[1])))
        table = Table(title=f"{kinds[0]} to {kinds[1]}: cosine", title_justify="left", title_style="")
        for column in ("query", *(f"{k + 1}" for k in range(found.index.shape[1]))):
            table.add_column(column)
        for name, index, cosine in zip(names[0], found.index.tolist(), found.cosine.tolist()):
            table.add_row(name, *(f"{names[1][i]}  {c:.3f}" for i, c in zip(index, cosine)))
        console.print(table)

    def _embed(self, lifter: Lifter, path: Path) -> tuple[str, list[str], Tensor]:
        """Modality, names, and embeddings ``(N, D)`` of a file or a folder."""
        pictures, data = _images_in(path), lifter.config.data
        if pictures:
            embeddings = []
            for picture_path in pictures:
                picture = _open_image(picture_path)
                ends = torch.tensor([[0.0, 0.0], [picture.width - 1.0, picture.height - 1.0]])
                box = joint_box(ends[None], padding=1.0)[0]
                crop = crop_image(picture, box, data.image_size, convention=data.crop)
                embeddings.append(lifter.embed_image(normalise_image(crop)[None]))
            return "image", [picture_path.name for picture_path in pictures], torch.cat(embeddings)
        poses = read_poses(path)
        if poses is not None:
            names, joints_3d, root = poses
            if lifter.model.config.lifting_only:  # the shipped one's 3D encoder is a file of its own
                lifter = load_lifter(self.checkpoint, whole=True)
            return "3D", names, lifter.embed_3d(joints_3d, root)
        found = read_keypoints(path, layout=self.layout)
        rows = torch.nonzero(found.complete)[:, 0]
        if not len(rows):
            needed = f"`unihpe retrieve` needs a pose with all of its joints in {path}"
            raise ValueError(three_beats(needed, "none", "Use pictures that show the whole person."))
        size, intrinsics = _camera_of(found, rows, self.image_size, self.intrinsics)
        embeddings_2d = lifter.embed_2d(found.joints_px[rows], image_size=size, intrinsics=intrinsics)
        return "2D", [found.image[k] for k in rows.tolist()], embeddings_2d


@dataclass(frozen=True, kw_only=True)
class Export:
    """Export an encoder or the lifter for use without this package, and check that it gives the same numbers."""

    out: tyro.conf.Positional[Path]
    """file to write: .pt2 (torch.export) or .onnx"""
    part: Literal["lifter", "encoder-2d", "encoder-3d", "image-encoder"] = "lifter"
    """lifter: normalised 2D joints and box information to 3D joints; encoders: to unit embeddings"""
    checkpoint: Path | None = None
    """a model.safetensors of `unihpe train`; the lifter of the package unless given"""

    def execute(self, console: Console) -> None:
        lifter = load_lifter(self.checkpoint, whole=self.part == "encoder-3d")
        report = export_model(lifter, self.part, self.out)
        console.print(f"{self.out}: {report.format}, {self.part}, {report.bytes / 1e6:.1f} MB", highlight=False)
        for name, shape in (*report.inputs.items(), *report.outputs.items()):
            console.print(f"  {name} {shape}", highlight=False)
        console.print(
            f"  largest difference from PyTorch {report.difference:.1e} ({report.checked_by})", highlight=False
        )


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Say what is installed, which back ends will be used here, and how to mend what is not right."""

    def execute(self, console: Console) -> None:
        findings = examine()
        table = Table(show_header=False, box=None, pad_edge=False)
        for finding in findings:
            table.add_row({"good": "ok", "note": "--", "bad": "!!"}[finding.state], finding.name, finding.value)
            if finding.remedy:
                table.add_row("", "", finding.remedy)
        console.print(table)
        bad = [finding.name for finding in findings if finding.state == "bad"]
        if bad:
            raise SystemExit(1)
        console.print("Nothing is wrong.", highlight=False)


def _check_outputs(paths: tuple[Path, ...]) -> list[tuple[Path, bool]]:
    """Each path and whether it takes joints rather than a view; raises before any work."""
    found = []
    for path in paths:
        ending = path.suffix.lower()
        if ending not in (".json", ".npz", *_VIEWS):
            needed = f"`--out` needs files that end in .json, .npz, {', '.join(_VIEWS)}"
            raise ValueError(three_beats(needed, repr(path.name), "Change the ending."))
        if not path.absolute().parent.is_dir():
            needed = f"`--out` needs a folder for {path.name}"
            raise FileNotFoundError(three_beats(needed, f"no {path.parent}", "Make the folder first."))
        found.append((path, ending in (".json", ".npz")))
    return found


def _camera_of(
    found: Keypoints,
    rows: Tensor,
    image_size: tuple[int, int] | None,
    intrinsics: tuple[float, float, float, float] | None,
) -> tuple[Tensor | None, Tensor | None]:
    """What the options say, else what the file says."""
    size = None if found.image_size is None else found.image_size[rows]
    matrix = None if found.intrinsics is None else found.intrinsics[rows]
    if image_size is not None:
        size = torch.tensor([float(image_size[0]), float(image_size[1])])
    if intrinsics is not None:
        matrix = camera_matrix(intrinsics)
    if size is None and matrix is None:
        needed = "the camera of the keypoints needs to be known"
        came = "neither a size of the image nor intrinsics"
        raise ValueError(three_beats(needed, came, "Add `--image-size WIDTH HEIGHT`, or better `--intrinsics`."))
    return size, matrix


def _images_in(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix.lower() in _IMAGES)
    return [path] if path.suffix.lower() in _IMAGES else []


def _open_image(path: Path) -> Image.Image:
    return decode(path.read_bytes(), path)


def _say_written(console: Console, paths: tuple[Path, ...]) -> None:
    for path in paths:
        console.print(f"  {path}", highlight=False, soft_wrap=True)
