"""The commands ``unihpe estimate``, ``retrieve``, ``export`` and ``doctor``."""

from __future__ import annotations

import math
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
from unihpe_ref.applications.doctor import examine
from unihpe_ref.applications.export import export_model
from unihpe_ref.applications.frames import PICTURES, read_picture, thumbnail
from unihpe_ref.applications.images import crop_image
from unihpe_ref.applications.keypoints import camera_matrix, read_keypoints
from unihpe_ref.applications.lift_command import LayoutName, camera_for, check_folder, check_outputs, write_poses
from unihpe_ref.applications.poses import PoseSet, read_poses
from unihpe_ref.data import joint_box, normalise_image
from unihpe_ref.files import write_json
from unihpe_ref.lifter import LiftedPoses, Lifter, camera_of, load_lifter, place
from unihpe_ref.models import retrieve


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
    """fx fy cx cy in pixels; the focal length is taken as the picture's diagonal unless given"""
    out: tuple[Path, ...] = (Path("poses.json"), Path("poses.html"))
    """what to write: .json or .npz for the joints; .gif, .png or .html to look at"""

    def execute(self, console: Console) -> None:
        check_outputs(self.out)
        lifter = load_lifter(self.checkpoint)
        data = lifter.config.data
        picture = read_picture(self.image)
        box = _box_of(picture, self.box)
        matrix = None if self.intrinsics is None else camera_matrix(self.intrinsics)
        size = torch.tensor([float(picture.width), float(picture.height)])
        focal, principal = camera_of(1, size, matrix)
        crop = crop_image(picture, box[0], data.image_size, convention=data.crop)
        found = lifter.estimate(normalise_image(crop)[None], box, focal, principal)
        root, error = place(found.joints_3d, found.joints_px, focal, principal)
        poses = PoseSet(
            image=[self.image.name],
            joints_2d=found.joints_px,
            lifted=LiftedPoses(found.joints_3d, root, error, found.clamped),
            assumed_focal=matrix is None,
            pictures={self.image.name: (thumbnail(picture, 800), *picture.size)},
        )
        console.print("One pose estimated; metres from the pelvis in camera axes.")
        write_poses(self.out, poses, console)


@dataclass(frozen=True, kw_only=True)
class Retrieve:
    """Find the poses of a gallery that are nearest to each query, across modalities.

    Queries and gallery are each a keypoint file (2D), a file that `unihpe lift` wrote (3D), or photographs (a file or
    a folder; the checkpoint then needs an image encoder).
    """

    query: tyro.conf.Positional[Path]
    """the poses to search for"""
    gallery: tyro.conf.Positional[Path]
    """the poses to search among"""
    top: int = 5
    """number of matches for each query"""
    layout: LayoutName = "auto"
    """the layout of keypoint files' joints; auto reads it from the file"""
    image_size: tuple[int, int] | None = None
    """width and height of the images, if keypoint files do not state them"""
    intrinsics: tuple[float, float, float, float] | None = None
    """fx fy cx cy in pixels, if keypoint files do not state them"""
    checkpoint: Path | None = None
    """a model.safetensors of `unihpe train`; the package's lifter unless given, which embeds 2D and 3D poses"""
    out: Path | None = None
    """also write the matches to this file, as JSON"""

    def execute(self, console: Console) -> None:
        if self.out is not None:
            check_folder(self.out)
        lifter = load_lifter(self.checkpoint)
        kinds, names, embeddings = zip(*(self._embed(lifter, path) for path in (self.query, self.gallery)))
        found = retrieve(embeddings[0], embeddings[1], min(self.top, len(names[1])))
        table = Table(title=f"{kinds[0]} to {kinds[1]}: cosine", title_justify="left", title_style="")
        for column in ("query", *(f"{k + 1}" for k in range(found.index.shape[1]))):
            table.add_column(column, overflow="fold")  # keeps names whole in a narrow terminal or pipe
        top = []
        for name, index, cosine in zip(names[0], found.index.tolist(), found.cosine.tolist()):
            table.add_row(name, *(f"{names[1][i]}  {c:.3f}" for i, c in zip(index, cosine)))
            best = [{"name": names[1][i], "cosine": round(c, 6)} for i, c in zip(index, cosine)]
            top.append({"query": name, "matches": best})
        console.print(table)
        if self.out is not None:
            write_json(self.out, {"query": kinds[0], "gallery": kinds[1], "top": top}, indent=1)
            console.print(f"  {self.out}", soft_wrap=True)

    def _embed(self, lifter: Lifter, path: Path) -> tuple[str, list[str], Tensor]:
        """Modality, names, and embeddings ``(N, D)`` of a file or a folder."""
        pictures, data = _images_in(path), lifter.config.data
        if pictures:
            embeddings = []
            for picture_path in pictures:
                picture = read_picture(picture_path)
                crop = crop_image(picture, _box_of(picture)[0], data.image_size, convention=data.crop)
                embeddings.append(lifter.embed_image(normalise_image(crop)[None]))
            return "image", [picture_path.name for picture_path in pictures], torch.cat(embeddings)
        poses = read_poses(path)
        if poses is not None:
            names, joints_3d, root = poses
            if lifter.model.config.lifting_only:  # the shipped lifter's 3D encoder is in a second file
                lifter = load_lifter(self.checkpoint, whole=True)
            return "3D", names, lifter.embed_3d(joints_3d, root)
        found = read_keypoints(path, layout=self.layout)
        found = found.take(torch.nonzero(found.complete)[:, 0])
        if not len(found):
            needed = f"`unihpe retrieve` needs a pose with all of its joints in {path}"
            raise ValueError(three_beats(needed, "none", "Use pictures that show the whole person."))
        size, intrinsics = camera_for(found, self.image_size, self.intrinsics)
        return "2D", list(found.image), lifter.embed_2d(found.joints_px, image_size=size, intrinsics=intrinsics)


@dataclass(frozen=True, kw_only=True)
class Export:
    """Export an encoder or the lifter for use without this package, and compare its results."""

    out: tyro.conf.Positional[Path]
    """file to write: .pt2 (torch.export) or .onnx"""
    part: Literal["lifter", "encoder-2d", "encoder-3d", "image-encoder"] = "lifter"
    """lifter: normalised 2D joints and box information to 3D joints; encoders: to unit embeddings"""
    checkpoint: Path | None = None
    """a model.safetensors of `unihpe train`; the lifter of the package unless given"""

    def execute(self, console: Console) -> None:
        lifter = load_lifter(self.checkpoint, whole=self.part == "encoder-3d")
        report = export_model(lifter, self.part, self.out)
        console.print(f"{self.out}: {report.format}, {self.part}, {report.bytes / 1e6:.1f} MB")
        for name, shape in (*report.inputs.items(), *report.outputs.items()):
            console.print(f"  {name} {shape}")
        console.print(
            f"  largest difference from PyTorch {report.difference:.1e} ({report.checked_by})",
            highlight=False,
            markup=False,
        )


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Report what is installed, which back ends are used here, and how to fix what is missing."""

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
        console.print("Nothing is wrong.")


def _box_of(picture: Image.Image, part: tuple[float, float, float, float] | None = None) -> Tensor:
    """The box ``(1, 3)`` of a part (left, top, width, height) of a picture, padded as around joints; or of all."""
    left, top, width, height = part or (0.0, 0.0, float(picture.width), float(picture.height))
    across = min(left + width, picture.width) - max(left, 0)
    down = min(top + height, picture.height) - max(top, 0)
    if not (all(map(math.isfinite, (left, top, width, height))) and min(across, down, width, height) > 0):
        needed = f"`--box` needs left, top, width and height of a part of the {picture.width} x {picture.height} pixels"
        raise ValueError(three_beats(needed, str(part), "Leave it out for the whole picture."))
    ends = torch.tensor([[left, top], [left + width - 1, top + height - 1]])
    return joint_box(ends[None], padding=1.25 if part else 1.0)


def _images_in(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
    return [path] if path.suffix.lower() in PICTURES else []
