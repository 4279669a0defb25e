"""Checks data before training: what they contain, how well 2D and 3D agree, and what is wrong.

The checks use anatomy. A leg is 0.55 to 1.15 m long, knees bend forward, hips and shoulders agree on what is left, the
head is above the feet. So a file in other units, with exchanged sides or a mirrored axis fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .camera import Camera
from .joint_order import implausibility
from .layouts import LAYOUTS
from .motion import Motion
from .readers.common import H36M_CAMERAS, listed, picture_size
from .recording import Recording
from .shapes import Array, all_finite
from .skeleton import SKELETON, limb_lengths

MOST_SAMPLES = 20_000  # used to check the geometry
MOST_PICTURES = 200  # opened, at most
LEG = (0.55, 1.15)  # metres from hip to ankle
WELL_PROJECTED = 0.02  # of the box's longer side; a median above it means a wrong calibration
BENT = 0.03  # metres off the line from hip to ankle above which the direction of a knee's bend is known
RIGID = ("rknee", "rankle", "lknee", "lankle", "lelbow", "lwrist", "relbow", "rwrist")
UNEVEN = 0.25  # between a left and a right limb: MPI-INF-3DHP's thighs differ by up to 0.18
STEADY = 0.15  # relative spread of a rigid limb within a sequence
STRANGE = 0.25  # median of `implausibility`: 0.12 for correct joints with 2% noise, 0.37 and more for another order
_UNITS = {1e3: "millimetres", 1e2: "centimetres", 1e1: "decimetres", 1 / 0.0254: "inches", 1 / 0.3: "units of 0.3 m"}
_H36M_SUBJECTS = ("S1", "S5", "S6", "S7", "S8", "S9", "S11")


@dataclass(frozen=True)
class Limb:
    """Length of a limb: mean over all samples, and the median over sequences of its relative spread inside one."""

    name: str
    millimetres: float
    spread: float


@dataclass
class Report:
    """The results of a check.

    Attributes:
        form: the reader's name. kind: "recording" or "motion".
        facts: the contents, for display: name to value.
        counts: (subject, action) to samples.
        limbs: the 16 limbs; empty without 3D.
        measures: numbers by name, pixels, millimetres or shares as the name says.
        problems: faults, a sentence each. notes: remarks, a sentence each.
    """

    form: str
    kind: str
    facts: dict[str, str] = field(default_factory=dict)
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    limbs: list[Limb] = field(default_factory=list)
    measures: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        counts: dict[str, dict[str, int]] = {}
        for (subject, action), count in self.counts.items():
            counts.setdefault(subject, {})[action] = count
        return {
            "format": self.form,
            "kind": self.kind,
            "facts": self.facts,
            "counts": counts,
            "limbs_mm": {limb.name: {"mean": limb.millimetres, "spread": limb.spread} for limb in self.limbs},
            "measures": self.measures,
            "problems": self.problems,
            "notes": self.notes,
        }


def check(data: Recording | Motion) -> Report:
    """Runs all checks."""
    return check_recording(data) if isinstance(data, Recording) else check_motion(data)


def check_motion(motion: Motion) -> Report:
    """Counts, limbs, handedness, the vertical, jumps and frozen frames of motion capture."""
    report = Report("motion capture", "motion", notes=list(motion.notes))
    report.facts = {
        "frames": f"{len(motion)} at {motion.fps:g} a second, {motion.seconds / 60:.1f} min",
        "sequences": f"{motion.num_sequences} of {_of(motion)}",
        "splits": _splits({split: sum(int(n) for n, s in zip(motion.starts.diff(), motion.split) if s == split)
                           for split in dict.fromkeys(motion.split)}),
    }  # fmt: skip
    for subject, action, count in zip(motion.subject, motion.action, motion.starts.diff().tolist()):
        report.counts[subject, action] = report.counts.get((subject, action), 0) + count
    rows = _spaced(len(motion))
    joints = motion.joints[rows].double()
    sequence = motion.sequence[rows].numpy()
    _check_limbs(report, joints, sequence)
    _check_sides(report, joints)
    rise = joints[:, SKELETON.index("head")] - joints[:, [3, 6]].mean(1)
    upright = float((rise[:, 2] > 0.5 * rise.norm(dim=-1)).double().mean())
    report.measures["upright, share of frames"] = upright
    if upright < 0.5:
        up = "xyz"[int(rise.mean(0).abs().argmax())]
        report.problems.append(
            f"z is not up: the head is above the feet in {upright:.0%} of frames (along {up}?). Turn the recording."
        )
    inside = motion.sequence[1:] == motion.sequence[:-1]
    steps = motion.joints.diff(dim=0).norm(dim=-1).amax(-1)[inside] * motion.fps
    if len(steps):
        fast = float((steps > 15).double().mean())  # metres a second: a punch is below 12
        report.measures["fastest joint, m/s"] = float(steps.max())
        frozen = float((steps == 0).double().mean())
        report.measures["frozen, share of frames"] = frozen
        if fast > 1e-3:
            report.problems.append(f"joints jump (faster than 15 m/s) in {fast:.1%} of frames: cut or repair those.")
        if frozen > 0.05:
            report.problems.append(f"{frozen:.0%} of frames repeat the one before: is the frame rate right?")
    return report


def check_recording(recording: Recording) -> Report:
    """Counts, pictures, reprojection, limbs and handedness of a recording."""
    report = Report(recording.format, "recording", notes=list(recording.notes))
    names, sizes = np.unique(recording.splits, return_counts=True)
    named = sorted(set(recording.camera_name.tolist()))
    moving = len(named) < 0.5 * len(recording.cameras) and recording.format == "3dpw"
    report.facts = {
        "samples": f"{len(recording)} in {recording.num_sequences} sequences of {_of(recording)}",
        "frame rate": ", ".join(f"{fps:g}" for fps in sorted(set(recording.fps))) + " a second",
        "splits": _splits(dict(zip(names.tolist(), sizes.tolist()))),
        "cameras": f"{len(named)} ({listed(named, 5)})" + (", moving" if moving else ""),
        "2D joints": _share(recording.has_2d) + " with all 17",
        "3D joints": _share(recording.has_3d) + " with all 17",
    }
    if recording.detected_2d is not None:
        report.facts["detected 2D"] = _share(all_finite(recording.detected_2d, (1, 2))) + " with all 17"
    for row, count in zip(*np.unique(recording.sequence, return_counts=True)):
        key = recording.subject[row], recording.action[row]
        report.counts[key] = report.counts.get(key, 0) + int(count)
    _check_completeness(report, recording)
    sample = recording.take(_spaced(len(recording)))
    _check_pixels(report, sample)
    solid = torch.from_numpy(np.asarray(sample.joints_3d)).double()
    known = torch.from_numpy(all_finite(sample.joints_3d, -1))
    if known.any():
        _check_limbs(report, solid, sample.sequence)
        _check_sides(report, solid)
        rise = solid[:, SKELETON.index("thorax")] - solid[:, [3, 6]].mean(1)
        upright = float((rise[:, 1] < 0)[rise.isfinite().all(-1)].double().mean())
        report.measures["upright, share of frames"] = upright
        if upright < 0.5:
            report.problems.append(
                f"y does not point down: the chest is above the feet in {upright:.0%} of frames. Negate y and z, both."
            )
        _check_projection(report, sample)
    else:
        report.notes.append("no 3D joints: lengths, handedness and reprojection cannot be checked")
    _check_pictures(report, recording)
    return report


def _of(data: Motion | Recording) -> str:
    counts = {"subject": len(set(data.subject)), "action": len(set(data.action))}
    return ", ".join(f"{count} {name}{'s' * (count != 1)}" for name, count in counts.items())


def _splits(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items())


def _share(mask: Array) -> str:
    return f"{int(mask.sum())} of {len(mask)}"


def _spaced(count: int) -> Array:
    return np.unique(np.linspace(0, count - 1, min(count, MOST_SAMPLES)).round().astype(np.int64))


def _check_completeness(report: Report, recording: Recording) -> None:
    if set(recording.camera_name.tolist()) <= set(H36M_CAMERAS):
        absent = [subject for subject in _H36M_SUBJECTS if subject not in recording.subject]
        if absent:
            report.notes.append(f"not the whole of Human3.6M: no {', '.join(absent)}")
        for subject in sorted(set(recording.subject)):
            actions = {action for name, action in zip(recording.subject, recording.action) if name == subject}
            if len(actions) != 15:
                report.notes.append(f"{subject} has {len(actions)} actions of Human3.6M's 15")


def _check_pixels(report: Report, sample: Recording) -> None:
    """Compares the annotated joints with their pictures, and the detected joints with the annotated."""
    pixels = np.asarray(sample.joints_2d)
    known = all_finite(pixels, -1)
    if known.any():
        size = sample.cameras.image_size.numpy()[sample.camera][:, None]
        outside = ((pixels < -0.5) | (pixels > size - 0.5)).any(-1) & known
        share = outside.sum() / known.sum()
        report.measures["outside the picture, share of joints"] = float(share)
        if share > 0.2:
            report.problems.append(
                f"{share:.0%} of the 2D joints lie outside their pictures: are they pixels of the full image, and are "
                "the sizes right?"
            )
        if np.nanmax(np.abs(pixels)) <= 2:
            report.problems.append("2D joints lie within [-2, 2]: they are normalised; pixels are needed.")
        strange = implausibility(pixels, LAYOUTS["h36m17"])
        strange = strange[np.isfinite(strange)]
        if len(strange) >= 5 and np.median(strange) > STRANGE:
            report.problems.append(
                "the 2D limbs do not have people's proportions: are the joints in the order that was read? Name them "
                "in `categories`, or state the layout."
            )
    if sample.detected_2d is not None and known.any():
        distance = np.linalg.norm(sample.detected_2d - pixels, axis=-1)
        distance = distance[np.isfinite(distance)]
        if len(distance):
            report.measures["detected to annotated, median px"] = float(np.median(distance))


def _check_limbs(report: Report, joints: torch.Tensor, sequence: Array) -> None:
    lengths = limb_lengths(joints).numpy()
    for limb, (parent, child) in enumerate(SKELETON.limbs):
        own = lengths[:, limb]
        known = np.isfinite(own)
        if not known.any():
            continue
        number = np.bincount(sequence[known])
        mean = np.bincount(sequence[known], own[known]) / np.maximum(number, 1)
        square = np.bincount(sequence[known], (own[known] - mean[sequence[known]]) ** 2) / np.maximum(number, 1)
        spread = np.sqrt(square)[number > 1] / np.maximum(mean[number > 1], 1e-12)
        name = f"{SKELETON.joint_names[parent]}-{SKELETON.joint_names[child]}"
        report.limbs.append(
            Limb(name, 1000 * float(own[known].mean()), float(np.median(spread)) if len(spread) else 0.0)
        )
    by_child = {limb.name.partition("-")[2]: limb for limb in report.limbs}
    if not all(name in by_child for name in RIGID):
        return
    legs = {side: (by_child[f"{side}knee"].millimetres + by_child[f"{side}ankle"].millimetres) / 1000 for side in "lr"}
    leg = (legs["l"] + legs["r"]) / 2
    report.measures["leg, mm"] = 1000 * leg
    if not LEG[0] <= leg <= LEG[1]:
        unit = next((name for scale, name in _UNITS.items() if LEG[0] <= leg / scale <= LEG[1]), None)
        guess = f" They look like {unit}: convert to metres." if unit else " Are the joints in this order?"
        report.problems.append(f"a leg is {leg:.3g} m long; people's are {LEG[0]} to {LEG[1]} m.{guess}")
    uneven = {
        name: abs(by_child[f"l{name}"].millimetres / max(by_child[f"r{name}"].millimetres, 1e-9) - 1)
        for name in ("knee", "ankle", "elbow", "wrist")
    }
    worst = max(uneven, key=lambda name: uneven[name])
    report.measures["left to right limbs, largest difference"] = uneven[worst]
    if uneven[worst] > UNEVEN:
        report.problems.append(
            f"left and right limbs differ by {uneven[worst]:.0%} (to the {worst}s): are the joints in this order?"
        )
    widest = max(by_child[name].spread for name in RIGID)
    report.measures["rigid limbs, largest spread"] = widest
    if widest > STEADY:
        report.problems.append(
            f"limbs that do not bend change their length by {widest:.0%} within a sequence: wrong joints, or a bad fit."
        )
    elif widest > 0.02:
        report.notes.append(
            f"rigid limbs vary by up to {widest:.1%} within a sequence: estimated, not measured, joints"
        )


def _check_sides(report: Report, joints: torch.Tensor) -> None:
    """Checks that knees bend forward and hips agree with shoulders; otherwise says what is exchanged."""
    index = SKELETON.index
    across = joints[:, index("lhip")] - joints[:, index("rhip")]
    forward, bends = 0, 0
    for side in "lr":
        hip, knee, ankle = (joints[:, index(f"{side}{name}")] for name in ("hip", "knee", "ankle"))
        bend = knee - (hip + ankle) / 2
        behind = torch.linalg.cross(hip - knee, across)  # the direction in which nobody's knee bends
        scale = (hip - knee).norm(dim=-1).clamp(min=1e-12)
        bent = bend.norm(dim=-1) > BENT / 0.45 * scale  # of a thigh of 0.45 m, whatever the unit
        forward += int(((bend * behind).sum(-1) < 0)[bent].sum())
        bends += int(bent.sum())
    shoulders = joints[:, index("lshoulder")] - joints[:, index("rshoulder")]
    agree = ((across * shoulders).sum(-1) > 0)[(across + shoulders).isfinite().all(-1)].double()
    if len(agree):
        report.measures["hips agree with shoulders, share of frames"] = float(agree.mean())
    if bends < 20:
        report.notes.append("too few bent knees to tell left from right")
        return
    share = forward / bends
    report.measures["knees that bend forward, share"] = share
    turned, crossed = share < 0.5, len(agree) > 0 and float(agree.mean()) < 0.5
    seen = f"knees bend forward in {share:.0%} of frames"
    if crossed:
        which = "legs" if turned else "arms"
        trap = " (the order of J_regressor_h36m.npy has them so)" if turned else ""
        report.problems.append(
            f"left and right of the {which} are exchanged{trap}: {seen}, hips and shoulders agree in "
            f"{float(agree.mean()):.0%}."
        )
    elif turned:
        report.problems.append(f"left and right are exchanged, or one axis is mirrored: {seen}.")
    elif share < 0.9:
        report.notes.append(f"{seen}: noisy 3D joints")


def _check_projection(report: Report, sample: Recording) -> None:
    """Reports the distance between annotated and projected joints (median, 90th percentile), and why it is large."""
    solid = torch.from_numpy(np.asarray(sample.joints_3d)).double()
    pixels = torch.from_numpy(np.asarray(sample.joints_2d)).double()
    cameras = sample.cameras.to(torch.float64)[torch.from_numpy(np.asarray(sample.camera))]
    root = torch.from_numpy(np.asarray(sample.root)).double()
    unplaced = ~root.isfinite().all(-1)
    if bool(unplaced.all()):
        report.notes.append("the distance from the camera is not in the files: it is fitted for the reprojection")
    root = torch.where(unplaced[:, None], fitted_root(solid, pixels, cameras), root)
    behind = float((root[:, 2] <= 0).double().mean())
    if behind > 0.01:
        report.problems.append(f"{behind:.0%} of the people stand behind the camera: is z forward, is it their camera?")
    joints = solid + root[:, None]
    side = torch.from_numpy(np.asarray(sample.box[:, 2])).double().nanmedian()

    bent = not bool(unplaced.all())  # the fit has no distortion

    def error(points: torch.Tensor, marks: torch.Tensor, distort: bool = bent) -> Array:
        distance = (cameras.project(points, distort=distort) - marks).norm(dim=-1)
        return distance[distance.isfinite()].numpy()

    found = error(joints, pixels)
    if not len(found):
        report.notes.append("no joint is known both in 2D and in 3D in front of its camera")
        return
    median = _median(found)
    report.measures |= {
        "reprojection, median px": median,
        "reprojection, 90% px": float(np.quantile(found, 0.9)),
        "reprojection without distortion, median px": _median(error(joints, pixels, distort=False)),
    }
    if median <= WELL_PROJECTED * float(side):
        return
    share = median / float(side)
    words = f"2D and 3D do not belong together: projected joints are {median:.1f} px off, {share:.0%} of the box"
    swap = list(SKELETON.flip_permutation)
    swapped = _median(error(joints, pixels[:, swap]))
    mirrored = pixels[:, swap].clone()
    mirrored[..., 0] = cameras.image_size[:, None, 0] - 1 - mirrored[..., 0]
    flipped = _median(error(joints, mirrored))
    refitted = _median(error(solid + fitted_root(solid, pixels, cameras)[:, None], pixels))
    if swapped < 0.5 * median:
        words += f". With left and right of the 2D exchanged they are {swapped:.1f} px off: exchange them"
    elif flipped < 0.5 * median:
        words += f". In the mirrored picture they are {flipped:.1f} px off: the 2D, or the pictures, are mirrored"
    elif refitted < 0.5 * median:
        words += f". From a better place they are {refitted:.1f} px off: poses fit, the camera's position does not"
    elif not sample.calibrated.all():
        words += ". The focal length is only assumed"
    report.problems.append(words + ".")


def _median(values: Array) -> float:
    return float(np.median(values)) if len(values) else float("inf")


def fitted_root(joints: torch.Tensor, pixels: torch.Tensor, cameras: Camera) -> torch.Tensor:
    """The place of the pelvis from which the joints project on the pixels: linear least squares, without distortion.

    Args:
        joints: ``(N, J, 3)`` metres from the pelvis. pixels: ``(N, J, 2)``; NaN where unknown.
        cameras: a batch ``(N,)``.
    Returns: ``(N, 3)`` metres; NaN where fewer than three joints are known.
    """
    rays = (pixels - cameras.principal[:, None]) / cameras.focal[:, None]  # x / z
    known = (rays.isfinite().all(-1) & joints.isfinite().all(-1)).to(joints)
    rays, joints = rays.nan_to_num() * known[..., None], joints.nan_to_num()
    # X + t_x = r (Z + t_z): one row for each axis
    zero = torch.zeros_like(known)
    rows = torch.stack(
        [torch.stack([known, zero, -rays[..., 0]], -1), torch.stack([zero, known, -rays[..., 1]], -1)], -2
    ).flatten(1, 2)
    right = (rays * joints[..., 2:] - joints[..., :2] * known[..., None]).flatten(1)
    normal, moment = rows.mT @ rows, (rows.mT @ right[..., None])[..., 0]
    enough = known.sum(-1) >= 3
    normal = torch.where(enough[:, None, None], normal, torch.eye(3).to(normal))
    solution, info = torch.linalg.solve_ex(normal, moment)
    return torch.where((enough & (info == 0))[:, None], solution, torch.nan)


def _check_pictures(report: Report, recording: Recording) -> None:
    """Checks that pictures exist, can be opened, and have the camera's size."""
    rows = np.flatnonzero(recording.picture >= 0)
    if not len(rows):
        report.facts["pictures"] = "none"
        return
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_PICTURES)).round().astype(int))]
    lost: list[str] = []
    other: list[str] = []
    for row in chosen:
        path = recording.picture_path(int(row))
        content = recording.picture_bytes(int(row)) if path is None else path
        size = None if content is None else picture_size(content)
        if size is None:
            lost.append(str(path or f"number {recording.picture[row]} of the pack"))
        elif recording.picture_affine is None:
            expected = tuple(int(value) for value in recording.cameras.image_size[int(recording.camera[row])].tolist())
            apart = max(abs(side - wanted) / wanted for side, wanted in zip(size, expected))
            if recording.calibrated[recording.camera[row]] and apart > 0.01:  # Human3.6M's own differ by two rows
                other.append(f"{path} is {size[0]} x {size[1]} instead of {expected[0]} x {expected[1]}")
    kind = "pictures" if recording.picture_affine is None else "pictures, cropped"
    report.facts["pictures"] = f"{len(rows)} {kind}; {len(chosen) - len(lost)} of {len(chosen)} looked at can be read"
    if len(lost) == len(chosen):
        report.notes.append(f"the pictures are not there ({lost[0]}): poses can be used, images cannot")
    elif lost:
        report.problems.append(
            f"{len(lost)} of {len(chosen)} pictures looked at are missing or damaged, {lost[0]} for one: unpack the "
            "pictures there, or do without them."
        )
    if other:
        report.problems.append(f"{len(other)} pictures have another size than their camera: {other[0]}.")
