"""Writes every data set's files, key by key as its owners do, from generated motion seen by known cameras.

Each writer returns what a reader has to find: joints in the camera's frame (metres) and pixels by (sequence, camera).
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image
from scipy.io import savemat

from unihpe_ref.data import Camera, Motion, fixed_cameras, generate_motion
from unihpe_ref.data.layouts import LAYOUTS

CAMERA_IDS = ("54138969", "55011271", "58860488", "60457274")
H36M_32 = LAYOUTS["h36m32"]


@dataclass(frozen=True)
class Truth:
    """(sequence, camera) to ``(F, 17, 3)`` camera metres and ``(F, 17, 2)`` pixels."""

    joints: dict[tuple[str, str], np.ndarray]
    pixels: dict[tuple[str, str], np.ndarray]


def small_motion(subjects: int = 3, seconds: float = 0.4, fps: float = 50.0) -> Motion:
    """Two actions of a few people."""
    return generate_motion(
        3, actions=("walk", "sit"), num_subjects=subjects, num_test_subjects=1, seconds=seconds, fps=fps
    )


def sequences(motion: Motion) -> list[np.ndarray]:
    """World joints of each sequence, float64."""
    return [motion.joints[motion.sequence == s].double().numpy() for s in range(motion.num_sequences)]


def spread(joints: np.ndarray, layout: str) -> np.ndarray:
    """The 17 joints in another order; joints that the 17 lack repeat the pelvis."""
    order = LAYOUTS[layout]
    result = np.repeat(joints[..., :1, :], order.num_joints, -2)
    best = [alternatives[0][0] if alternatives else () for alternatives in order.sources]
    for target, source in sorted(enumerate(best), key=lambda entry: -len(entry[1])):  # middles first
        for index in source:
            result[..., index, :] = joints[..., target, :]
    return result


def seen(world: np.ndarray, camera: Camera, *, distort: bool) -> tuple[np.ndarray, np.ndarray]:
    """Joints in the frame of one camera, and their pixels."""
    camera = Camera(*(getattr(camera, name).double() for name in camera.__dataclass_fields__))
    joints = camera.world_to_camera(torch.from_numpy(world))
    return joints.numpy(), camera.project(joints, distort=distort).numpy()


def pickled_npz(path: Path, **entries: object) -> None:
    """npz with each entry a 0-dimensional array of objects, as ``np.savez_compressed(path, name=dictionary)``."""
    np.savez_compressed(path, **{name: np.array(value, dtype=object) for name, value in entries.items()})


def quaternion(rotation: np.ndarray) -> list[float]:
    """(w, x, y, z) of a rotation whose trace is above -1."""
    r, t = rotation, rotation.trace()
    lower = [
        [t, 0, 0, 0],
        [r[2, 1] - r[1, 2], 2 * r[0, 0] - t, 0, 0],
        [r[0, 2] - r[2, 0], r[0, 1] + r[1, 0], 2 * r[1, 1] - t, 0],
        [r[1, 0] - r[0, 1], r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], 2 * r[2, 2] - t],
    ]
    values, vectors = np.linalg.eigh(np.array(lower))
    return vectors[:, values.argmax()].tolist()


# --- Human3.6M ------------------------------------------------------------------------------------------------


def write_videopose3d(
    folder: Path, *, truth: bool = True, detected: bool = True, cameras: str = "source", extra: int = 3
) -> Truth:
    """``data/`` of VideoPose3D, and its ``common/h36m_dataset.py`` (or mmpose's ``cameras.pkl``) beside it."""
    motion = small_motion()
    rig = fixed_cameras()
    subjects = dict(zip(sorted(set(motion.subject)), ("S1", "S9", "S11")))
    positions: dict[str, dict[str, np.ndarray]] = {}
    pixels_2d: dict[str, dict[str, list[np.ndarray]]] = {}
    joints_of: dict[tuple[str, str], np.ndarray] = {}
    pixels_of: dict[tuple[str, str], np.ndarray] = {}
    for subject, action, world in zip(motion.subject, motion.action, sequences(motion)):
        person = subjects[subject]
        stored, take = {"walk": ("WalkingDog 1", "WalkDog 1"), "sit": ("Sitting", "Sitting")}[action]
        positions.setdefault(person, {})[stored] = spread(world, "h36m32").astype(np.float32)
        views = []
        for number, name in enumerate(CAMERA_IDS):
            joints, pixels = seen(world.astype(np.float32).astype(float), rig[number], distort=True)
            joints_of[f"{person} {take}", name] = joints
            pixels_of[f"{person} {take}", name] = pixels
            longer = np.concatenate([pixels, np.repeat(pixels[-1:], max(extra, 0), 0)])[: len(pixels) + extra]
            views.append(longer.astype(np.float32))
        pixels_2d.setdefault(person, {})[stored] = views
    folder.mkdir(parents=True, exist_ok=True)
    pickled_npz(folder / "data_3d_h36m.npz", positions_3d=positions)
    metadata = {
        "layout_name": "h36m",
        "num_joints": 17,
        "keypoints_symmetry": [[4, 5, 6, 11, 12, 13], [1, 2, 3, 14, 15, 16]],
    }
    if truth:
        pickled_npz(folder / "data_2d_h36m_gt.npz", positions_2d=pixels_2d, metadata=metadata)
    if detected:
        off = {
            s: {a: [v + np.float32(2) for v in views] for a, views in takes.items()} for s, takes in pixels_2d.items()
        }
        pickled_npz(folder / "data_2d_h36m_cpn_ft_h36m_dbb.npz", positions_2d=off, metadata=metadata)
    if cameras == "source":
        write_h36m_source(folder.parent / "common" / "h36m_dataset.py", rig, list(subjects.values()))
    elif cameras == "pickle":
        write_cameras_pickle(folder / "cameras.pkl", rig, list(subjects.values()))
    return Truth(joints_of, pixels_of)


def write_h36m_source(path: Path, rig: Camera, subjects: list[str]) -> None:
    """Two tables of literals in a Python file that would fail, loudly, if it were run."""
    lenses, stands = [], []
    for number, name in enumerate(CAMERA_IDS):
        camera = rig[number]
        lenses.append(
            {
                "id": name, "center": camera.principal.tolist(), "focal_length": camera.focal.tolist(),
                "radial_distortion": camera.radial.tolist(), "tangential_distortion": camera.tangential.tolist(),
                "res_w": int(camera.image_size[0]), "res_h": int(camera.image_size[1]), "azimuth": 70,
            }
        )  # fmt: skip
        stands.append(
            {
                "orientation": quaternion(camera.rotation.double().numpy().T),
                "translation": (camera.position.double() * 1000).tolist(),
            }
        )
    extrinsic = dict.fromkeys(subjects, stands) | {"S2": [{}, {}, {}, {}]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "raise SystemExit('this file was run')\nfrom common.skeleton import Skeleton\n"
        f"h36m_cameras_intrinsic_params = {lenses!r}\nh36m_cameras_extrinsic_params = {extrinsic!r}\n"
    )


def write_cameras_pickle(path: Path, rig: Camera, subjects: list[str]) -> None:
    """mmpose's ``cameras.pkl``: camera-to-world R, the place T, columns for the rest."""
    held = {}
    for subject in subjects:
        for number, name in enumerate(CAMERA_IDS):
            camera = rig[number]
            column = {key: getattr(camera, key).double().numpy()[:, None] for key in ("principal", "focal")}
            held[subject, name] = {
                "R": camera.rotation.double().numpy().T, "T": camera.position.double().numpy()[:, None],
                "c": column["principal"], "f": column["focal"], "k": camera.radial.double().numpy()[:, None],
                "p": camera.tangential.double().numpy()[:, None], "w": int(camera.image_size[0]),
                "h": int(camera.image_size[1]), "name": f"camera{number + 1}", "id": name,
            }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(held))


def picture(path: Path, width: int, height: int) -> None:
    """A picture that says where its pixels are: red grows to the right, green downwards."""
    y, x = np.mgrid[:height, :width]
    array = np.stack([255 * x / (width - 1), 255 * y / (height - 1), np.full_like(x, 128)], -1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.round().astype(np.uint8)).save(path, quality=95)


def write_mmpose_h36m(folder: Path, *, cameras: bool = True, pictures: bool = False) -> Truth:
    """``annotation_body3d/fps10/h36m_{train,test}.npz``, ``cameras.pkl``, and ``images/`` of one view."""
    motion = small_motion()
    rig = fixed_cameras()
    subjects = dict(zip(sorted(set(motion.subject)), ("S1", "S9", "S11")))
    joints_of, pixels_of = {}, {}
    rows: dict[str, dict[str, list]] = {
        split: {key: [] for key in ("imgname", "part", "S")} for split in ("train", "test")
    }
    for subject, action, world in zip(motion.subject, motion.action, sequences(motion)):
        person = subjects[subject]
        stored, take = {"walk": ("Walking_1", "Walking 1"), "sit": ("Sitting", "Sitting")}[action]
        for number, name in enumerate(CAMERA_IDS):
            joints, pixels = seen(world[::5], rig[number], distort=False)
            joints_of[f"{person} {take}", name], pixels_of[f"{person} {take}", name] = joints, pixels
            own = rows["test" if person in ("S9", "S11") else "train"]
            for frame, (points, marks) in enumerate(zip(joints, pixels)):
                base = f"{person}_{stored}.{name}"
                own["imgname"].append(f"{person}/{base}/{base}_{5 * frame + 1:06d}.jpg")
                own["part"].append(np.concatenate([marks, np.ones((17, 1))], 1))
                own["S"].append(np.concatenate([points, np.ones((17, 1))], 1))
                if pictures and (take, number) == ("Walking 1", 0):
                    size = rig[number].image_size.int().tolist()
                    picture(folder / "images" / own["imgname"][-1], *size)
    place = folder / "annotation_body3d" / "fps10"
    place.mkdir(parents=True)
    for split, own in rows.items():
        part = np.stack(own["part"]).astype(np.float32)
        low, high = part[..., :2].min(1), part[..., :2].max(1)
        np.savez(
            place / f"h36m_{split}.npz",
            imgname=np.array(own["imgname"]),
            center=((low + high) / 2).astype(np.float32),
            scale=(1.2 * (high - low).max(1) / 200).astype(np.float32),
            part=part,
            S=np.stack(own["S"]).astype(np.float32),
        )
    if cameras:
        write_cameras_pickle(folder / "annotation_body3d" / "cameras.pkl", rig, list(subjects.values()))
    return Truth(joints_of, pixels_of)


def write_spin(path: Path, *, solid: bool = True) -> Truth:
    """``h36m_train.npz`` of SPIN: 24 joints, from the pelvis, every fifth frame of one camera."""
    motion = small_motion()
    joints_of, pixels_of = {}, {}
    names, parts, solids = [], [], []
    for subject, action, world in zip(motion.subject, motion.action, sequences(motion)):
        person = {"G1": "S1", "G2": "S5", "G3": "S6"}[subject]
        take = {"walk": "Walking_1", "sit": "Sitting"}[action]
        joints, pixels = seen(world[::5], fixed_cameras()[3], distort=False)
        key = (f"{person} {take.replace('_', ' ')}", CAMERA_IDS[3])
        joints_of[key], pixels_of[key] = joints - joints[:, :1], pixels
        for frame in range(len(joints)):
            names.append(f"images/{person}_{take}.{CAMERA_IDS[3]}_{5 * frame + 1:06d}.jpg")
        used = spread(np.ones((len(joints), 17, 1)), "spin24")
        used[:, [13, 15, 19, 20, 21, 22, 23]] = 0  # joints of SPIN's 24 that Human3.6M lacks
        parts.append(np.concatenate([spread(pixels, "spin24"), used], -1))
        solids.append(np.concatenate([spread(joints - joints[:, :1], "spin24"), used], -1))
    part = np.concatenate(parts)
    low, high = part[..., :2].min(1), part[..., :2].max(1)
    entries = {
        "imgname": np.array(names), "center": (low + high) / 2, "scale": 1.2 * (high - low).max(1) / 200, "part": part,
        "openpose": np.zeros((len(names), 25, 3)),
    }  # fmt: skip
    np.savez(path, **entries, **({"S": np.concatenate(solids)} if solid else {}))
    return Truth(joints_of, pixels_of)


# --- MPI-INF-3DHP ---------------------------------------------------------------------------------------------

HP_SIZE = 2048.0


def hp_rig() -> Camera:
    """Four square cameras of 2048 pixels without distortion."""
    rig = fixed_cameras()
    return Camera(
        rig.rotation, rig.translation, rig.focal * 1.3, torch.full((4, 2), 1024.0) + torch.arange(4.0)[:, None],
        torch.zeros(4, 3), torch.zeros(4, 2), torch.full((4, 2), HP_SIZE),
    )  # fmt: skip


def write_3dhp_train(folder: Path, *, calibration: bool = True) -> Truth:
    """``S1/Seq1`` and ``S2/Seq1``: annot.mat with cells of 14 videos, and camera.calibration in millimetres."""
    motion = small_motion(2)
    rig = hp_rig()
    joints_of, pixels_of = {}, {}
    for number, world in enumerate(sequences(motion)[::2]):
        place = folder / f"S{number + 1}" / "Seq1"
        place.mkdir(parents=True)
        cells_2d, cells_3d = (np.empty((14, 1), object) for _ in range(2))
        lines = ["Skeletool Camera Calibration File V1.0"]
        for video in range(14):
            camera = rig[video % 4]
            joints, pixels = seen(world, camera, distort=False)
            cells_3d[video, 0] = spread(joints, "3dhp28").reshape(len(world), 84) * 1000
            cells_2d[video, 0] = spread(pixels, "3dhp28").reshape(len(world), 56)
            if video in (0, 1, 2, 4, 5, 6, 7, 8):
                key = (f"S{number + 1} Seq1", str(video))
                joints_of[key], pixels_of[key] = joints, pixels
            lens = np.eye(4)
            lens[[0, 1], [0, 1]], lens[:2, 2] = camera.focal.double(), camera.principal.double()
            pose = np.eye(4)
            pose[:3, :3], pose[:3, 3] = camera.rotation.double(), camera.translation.double() * 1000
            text = [" ".join(f"{value:.9g}" for value in matrix.ravel()) for matrix in (lens, pose)]
            lines += [
                f"name          {video}", "  sensor      10 10 ", f"  size        {HP_SIZE:.0f} {HP_SIZE:.0f}",
                "  animated    0", f"  intrinsic   {text[0]} ", f"  extrinsic   {text[1]} ", "  radial      0",
            ]  # fmt: skip
        frames = np.arange(len(world), dtype=np.float64)[:, None]
        savemat(
            place / "annot.mat", {"annot2": cells_2d, "annot3": cells_3d, "univ_annot3": cells_3d, "frames": frames}
        )
        if calibration:
            (place / "camera.calibration").write_text("\n".join(lines) + "\n")
    return Truth(joints_of, pixels_of)


def write_3dhp_test(folder: Path, universal: float = 0.92) -> Truth:
    """``mpi_inf_3dhp_test_set/TS1``: v7.3 arrays; every third frame is not valid; two activities."""
    world = sequences(small_motion(2))[0]
    place = folder / "mpi_inf_3dhp_test_set" / "TS1"
    place.mkdir(parents=True)
    joints, pixels = seen(world, hp_rig()[0], distort=False)
    valid = np.arange(len(world)) % 3 != 0
    activity = np.where(np.arange(len(world)) < len(world) // 2, 1, 5)
    with h5py.File(place / "annot_data.mat", "w") as file:
        file["annot2"] = spread(pixels, "3dhp17")[:, None]
        file["annot3"] = spread(joints, "3dhp17")[:, None] * 1000
        file["univ_annot3"] = spread(joints, "3dhp17")[:, None] * 1000 * universal
        file["valid_frame"] = valid[:, None].astype(np.float64)
        file["activity_annotation"] = activity[:, None].astype(np.float64)
    joints_of, pixels_of = {}, {}
    for name, number in (("standing/walking", 1), ("on the floor", 5)):
        rows = valid & (activity == number)
        joints_of[f"TS1 {name}", "TS1"] = joints[rows] * universal
        pixels_of[f"TS1 {name}", "TS1"] = pixels[rows]
    return Truth(joints_of, pixels_of)


# --- 3DPW -----------------------------------------------------------------------------------------------------


def write_3dpw(folder: Path, *, people: int = 1, protocol: int = 2) -> Truth:
    """``sequenceFiles/test/downtown_walk_00.pkl`` with a moving camera; the last two frames have none."""
    motion = small_motion(2, fps=30.0)
    world = sequences(motion)[:people]
    frames = len(world[0])
    rig = fixed_cameras()
    poses = np.repeat(np.eye(4)[None], frames, 0)
    poses[:, :3, :3] = rig.rotation[0].double()
    poses[:, :3, 3] = rig.translation[0].double()
    poses[:, 2, 3] += 0.01 * np.arange(frames)  # it walks backwards
    lens = np.array([[1961.1, 0, 540.0], [0, 1969.2, 960.0], [0, 0, 1]])
    valid = np.ones(frames)
    valid[-2:] = 0
    joints_of, pixels_of = {}, {}
    positions, found = [], []
    for person, points in enumerate(world):
        joints = points @ poses[:, :3, :3].transpose(0, 2, 1) + poses[:, None, :3, 3]
        pixels = joints[..., :2] / joints[..., 2:] * [lens[0, 0], lens[1, 1]] + lens[:2, 2]
        name = "downtown_walk_00" + (f" person {person}" if people > 1 else "")
        joints_of[name, "moving"], pixels_of[name, "moving"] = joints[:-2], pixels[:-2]
        positions.append(spread(points, "smpl24").reshape(frames, 72))
        marks = np.concatenate([spread(pixels, "coco18"), np.ones((frames, 18, 1))], -1)
        marks[1] = 0  # nobody was detected there
        found.append(marks.transpose(0, 2, 1))
    held = {
        "sequence": "downtown_walk_00", "betas": [np.zeros(10)] * people, "poses": [np.zeros((frames, 72))] * people,
        "trans": [np.zeros((frames, 3))] * people, "poses2d": found, "jointPositions": positions,
        "genders": ["m", "f"][:people], "cam_poses": poses, "campose_valid": [valid] * people, "cam_intrinsics": lens,
        "img_frame_ids": np.arange(frames), "v_template_clothed": [np.zeros((10, 3))] * people,
        "texture_maps": [np.zeros((4, 4, 3), np.uint8)] * people,
    }  # fmt: skip
    place = folder / "sequenceFiles" / "test"
    place.mkdir(parents=True)
    (place / "downtown_walk_00.pkl").write_bytes(pickle.dumps(held, protocol))
    return Truth(joints_of, pixels_of)


# The joints of a take in the names of exports that are about; the right side follows from the left.
RIGS = {
    rig: names.split()
    for rig, names in {
        "": "Hips LowerBack Spine1 Neck1 Head LeftUpLeg LeftLeg LeftFoot LeftShoulder LeftArm LeftForeArm LeftHand",
        "mixamo": "mixamorig:Hips mixamorig:Spine mixamorig:Spine1 mixamorig:Neck mixamorig:Head mixamorig:LeftUpLeg "
        "mixamorig:LeftLeg mixamorig:LeftFoot mixamorig:LeftShoulder mixamorig:LeftArm mixamorig:LeftForeArm "
        "mixamorig:LeftHand",
        "daz": "hip abdomen chest neck head lThigh lShin lFoot lCollar lShldr lForeArm lHand",
        "daz, genesis": "hip abdomenLower chestLower neckUpper head lThighBend lShin lFoot lCollar lShldrBend "
        "lForearmBend lHand",
        "makehuman": "root spine05 spine03 neck01 head upperleg01.L lowerleg01.L foot.L clavicle.L upperarm01.L "
        "lowerarm01.L wrist.L",
        "deepmotion": "hips_JNT spine_JNT spine1_JNT neck_JNT head_JNT l_upleg_JNT l_leg_JNT l_foot_JNT l_shoulder_JNT "
        "l_arm_JNT l_forearm_JNT l_hand_JNT",
        "unreal": "pelvis spine_01 spine_02 neck_01 head thigh_l calf_l foot_l clavicle_l upperarm_l lowerarm_l hand_l",
        "biped": "Bip01_Pelvis Bip01_Spine Bip01_Spine1 Bip01_Neck Bip01_Head Bip01_L_Thigh Bip01_L_Calf Bip01_L_Foot "
        "Bip01_L_Clavicle Bip01_L_UpperArm Bip01_L_Forearm Bip01_L_Hand",
        "small": "hips spine chest neck head lhip lknee lankle lcollar lshoulder lelbow lwrist",
        "capitals": "HIPS SPINE SPINE1 NECK HEAD LEFTUPLEG LEFTLEG LEFTFOOT LEFTSHOULDER LEFTARM LEFTFOREARM LEFTHAND",
    }.items()
}


def _other_side(name: str) -> str:
    for left, right in (("Left", "Right"), ("LEFT", "RIGHT"), (".L", ".R"), ("_L_", "_R_")):
        if left in name:
            return name.replace(left, right)
    if name.endswith("_l"):
        return name[:-1] + "r"
    return "r" + name.removeprefix("l")


# --- motion capture -------------------------------------------------------------------------------------------


def write_bvh(
    path: Path, *, unit: float = 0.01, prefix: str = "", frames: int = 12, rig: str = "", top: float = 12.0
) -> np.ndarray:
    """A take in centimetres, y up, all rotations as angles; returns the 17 joints in metres, z up, as composed here
    by products of homogeneous matrices.

    ``rig`` names its joints as one of ``RIGS`` does; ``top`` is the length of the end site above the head.
    """
    names = dict(zip(RIGS[""], RIGS[rig]))

    def spelt(name: str) -> str:
        if name.startswith("Right"):
            return _other_side(names[name.replace("Right", "Left")])
        return names[name]

    tree = {  # name: parent, offset in metres
        "Hips": (None, (0, 0.95, 0)), "LowerBack": ("Hips", (0, 0.2, 0)), "Spine1": ("LowerBack", (0, 0.25, 0)),
        "Neck1": ("Spine1", (0, 0.12, 0.02)), "Head": ("Neck1", (0, 0.1, 0)),
        **{
            f"{side}{name}": (parent and (parent if parent in ("Hips", "Spine1") else f"{side}{parent}"), (s * x, y, z))
            for side, s in (("Left", 1), ("Right", -1))
            for name, parent, (x, y, z) in (
                ("UpLeg", "Hips", (0.1, 0, 0)), ("Leg", "UpLeg", (0, -0.42, 0)), ("Foot", "Leg", (0, -0.43, 0)),
                ("Shoulder", "Spine1", (0.05, 0.02, 0)), ("Arm", "Shoulder", (0.12, 0, 0)),
                ("ForeArm", "Arm", (0.28, 0, 0)), ("Hand", "ForeArm", (0.25, 0, 0)),
            )
        },
    }  # fmt: skip
    rng = np.random.default_rng(5)
    angles = {name: rng.uniform(-25, 25, (1, 3)) * np.linspace(0, 1, frames)[:, None] for name in tree}
    shift = np.linspace(0, 0.5, frames)[:, None] * np.array([1.0, 0, 0.3])
    children = {name: [child for child, (parent, _) in tree.items() if parent == name] for name in tree}
    lines, order = ["HIERARCHY"], []

    def emit(name: str, depth: int) -> None:
        pad = "\t" * depth
        offset = " ".join(f"{value / unit:.6f}" for value in tree[name][1])
        lines.extend(
            [f"{pad}{'JOINT' if depth else 'ROOT'} {prefix}{spelt(name)}", pad + "{", f"{pad}\tOFFSET {offset}"]
        )
        places = "" if depth else "Xposition Yposition Zposition "
        lines.append(f"{pad}\tCHANNELS {3 if depth else 6} {places}Zrotation Xrotation Yrotation")
        order.append(name)
        for child in children[name]:
            emit(child, depth + 1)
        if not children[name]:
            end = f"0.0 {top} 0.0" if name == "Head" else "0.0 0.0 0.0"
            lines.extend([f"{pad}\tEnd Site", pad + "\t{", f"{pad}\t\tOFFSET {end}", pad + "\t}"])
        lines.append(pad + "}")

    emit("Hips", 0)
    lines += ["MOTION", f"Frames: {frames}", "Frame Time: 0.016667"]
    for frame in range(frames):
        numbers = [*((np.array(tree["Hips"][1]) + shift[frame]) / unit)]
        for name in order:
            numbers.extend(angles[name][frame])
        lines.append(" ".join(f"{number:.6f}" for number in numbers))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")

    def turn(axis: int, degrees: float) -> np.ndarray:
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        matrix = np.eye(4)
        matrix[[i, j], [i, j]] = np.cos(np.deg2rad(degrees))
        matrix[j, i] = np.sin(np.deg2rad(degrees))
        matrix[i, j] = -matrix[j, i]
        return matrix

    result = np.zeros((frames, 17, 3))
    for frame in range(frames):
        world: dict[str, np.ndarray] = {}
        for name in order:
            parent, offset = tree[name]
            z, x, y = angles[name][frame]
            move = np.eye(4)
            move[:3, 3] = np.array(offset) + (shift[frame] if parent is None else 0)
            world[name] = (np.eye(4) if parent is None else world[parent]) @ move @ turn(2, z) @ turn(0, x) @ turn(1, y)
        at = {name: matrix[:3, 3] for name, matrix in world.items()}
        at["end"] = (world["Head"] @ np.array([0, top * unit, 0, 1]))[:3]
        picked = {
            0: (at["LeftUpLeg"] + at["RightUpLeg"]) / 2, 7: at["LowerBack"], 8: (at["LeftArm"] + at["RightArm"]) / 2,
            9: at["Neck1"], 10: at["end"],
        }  # fmt: skip
        for first, side in ((1, "Right"), (4, "Left")):
            picked |= {first + k: at[side + name] for k, name in enumerate(("UpLeg", "Leg", "Foot"))}
        for first, side in ((11, "Left"), (14, "Right")):
            picked |= {first + k: at[side + name] for k, name in enumerate(("Arm", "ForeArm", "Hand"))}
        for joint, point in picked.items():
            result[frame, joint] = (point[0], -point[2], point[1])
    return result


ASF_BONES = {  # name: parent, direction, length (file units), axis XYZ degrees, dof
    "lhipjoint": ("root", (0.6, -0.7, 0.3), 2.4, (0, 0, 0), ""),
    "lfemur": ("lhipjoint", (0.34, -0.94, 0), 7.2, (0, 0, 20), "rx ry rz"),
    "ltibia": ("lfemur", (0.34, -0.94, 0), 7.4, (0, 0, 20), "rx"),
    "rhipjoint": ("root", (-0.6, -0.7, 0.3), 2.4, (0, 0, 0), ""),
    "rfemur": ("rhipjoint", (-0.34, -0.94, 0), 7.2, (0, 0, -20), "rx ry rz"),
    "rtibia": ("rfemur", (-0.34, -0.94, 0), 7.4, (0, 0, -20), "rx"),
    "lowerback": ("root", (0, 1, -0.1), 2.0, (0, 0, 0), "rx ry rz"),
    "upperback": ("lowerback", (0, 1, 0), 2.0, (0, 0, 0), "rx ry rz"),
    "thorax": ("upperback", (0, 1, 0), 2.0, (0, 0, 0), "rx ry rz"),
    "lowerneck": ("thorax", (0, 1, 0.1), 1.6, (0, 0, 0), "rx ry rz"),
    "upperneck": ("lowerneck", (0, 1, 0), 1.6, (0, 0, 0), "rx ry rz"),
    "head": ("upperneck", (0, 1, 0), 1.7, (0, 0, 0), "rx ry rz"),
    **{
        f"{side}{name}": (parent if parent == "thorax" else f"{side}{parent}", (s * x, y, z), length, axis, dof)
        for side, s in (("l", 1), ("r", -1))
        for name, parent, (x, y, z), length, axis, dof in (
            ("clavicle", "thorax", (0.9, 0.4, 0), 3.5, (0, 0, 0), "ry rz"),
            ("humerus", "clavicle", (1, 0, 0), 5.0, (180, 30, -90), "rx ry rz"),
            ("radius", "humerus", (1, 0, 0), 3.2, (180, 30, -90), "rx"),
            ("wrist", "radius", (1, 0, 0), 1.6, (180, 30, -90), "ry"),
        )
    },
}


def write_amc(folder: Path, takes: int = 1, frames: int = 6) -> np.ndarray:
    """``01.asf`` and ``01_0k.amc``; returns the 17 joints of the first take in metres, z up, from scipy's rotations."""
    from scipy.spatial.transform import Rotation

    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "# AST/ASF file", ":version 1.10", ":name VICON", ":units", "  mass 1.0", "  length 0.45", "  angle deg",
        ":documentation", "   made for a test", ":root", "   order TX TY TZ RX RY RZ", "   axis XYZ",
        "   position 0 0 0", "   orientation 0 0 0", ":bonedata",
    ]  # fmt: skip
    for number, (name, (_, direction, length, axis, dof)) in enumerate(ASF_BONES.items(), start=1):
        unit = np.array(direction) / np.linalg.norm(direction)
        lines += [
            "  begin", f"     id {number}", f"     name {name}", f"     direction {' '.join(f'{v:.8f}' for v in unit)}",
            f"     length {length}", f"     axis {' '.join(map(str, axis))}   XYZ",
        ]  # fmt: skip
        if dof:
            limits = ["(-160.0 20.0)"] * len(dof.split())
            lines += [f"    dof {dof}", f"    limits {limits[0]}", *(f"           {limit}" for limit in limits[1:])]
        lines.append("  end")
    lines += [":hierarchy", "  begin"]
    for parent in ("root", *ASF_BONES):
        children = [name for name, bone in ASF_BONES.items() if bone[0] == parent]
        if children:
            lines.append(f"    {parent} {' '.join(children)}")
    (folder / "01.asf").write_text("\n".join([*lines, "  end"]) + "\n")

    metres = 0.0254 / 0.45
    first = None
    for take in range(takes):
        rng = np.random.default_rng(take)
        share = np.linspace(0, 1, frames)
        root = np.concatenate(
            [rng.normal(0, 2, (1, 3)) + [0, 17, 0] + share[:, None], rng.uniform(-30, 30, (1, 3)) * share[:, None]], 1
        )
        angles = {
            name: rng.uniform(-40, 40, (1, len(bone[4].split()))) * share[:, None]
            for name, bone in ASF_BONES.items()
            if bone[4]
        }
        text = ["#!OML:ASF F:\\VICON\\made.ASF", ":FULLY-SPECIFIED", ":DEGREES"]
        for frame in range(frames):
            text += [str(frame + 1), "root " + " ".join(f"{v:.6f}" for v in root[frame])]
            text += [f"{name} " + " ".join(f"{v:.6f}" for v in values[frame]) for name, values in angles.items()]
        (folder / f"01_{take + 1:02d}.amc").write_text("\n".join(text) + "\n")
        if first is not None:
            continue
        turn = {"root": Rotation.from_euler("xyz", root[:, 3:], degrees=True)}
        at = {"root": root[:, :3]}
        for name, (parent, direction, length, axis, dof) in ASF_BONES.items():
            frame_of = Rotation.from_euler("xyz", axis, degrees=True)
            own = Rotation.identity(frames)
            if dof:
                own = Rotation.from_euler("".join(word[1] for word in dof.split()), angles[name], degrees=True)
            turn[name] = turn[parent] * frame_of * own * frame_of.inv()
            at[name] = at[parent] + length * turn[name].apply(np.array(direction) / np.linalg.norm(direction))
        names = (
            None, "rhipjoint", "rfemur", "rtibia", "lhipjoint", "lfemur", "ltibia", "lowerback", "thorax", "upperneck",
            "head", "lclavicle", "lhumerus", "lwrist", "rclavicle", "rhumerus", "rwrist",
        )  # fmt: skip
        middle = (at["lhipjoint"] + at["rhipjoint"]) / 2
        points = np.stack([middle if name is None else at[name] for name in names], 1) * metres
        first = np.stack([points[..., 0], -points[..., 2], points[..., 1]], -1)
    assert first is not None
    return first


# --- pictures -------------------------------------------------------------------------------------------------


def write_coco(folder: Path, *, pictures: bool = True) -> Truth:
    """``person_keypoints_val2017.json`` with ``val2017/``: three pictures, a crowd, and a person without joints."""
    world = sequences(small_motion(2))[0][:3]
    pixels = 0.5 * seen(world, fixed_cameras()[1], distort=False)[1]
    images, annotations = [], []
    for number, marks in enumerate(pixels):
        name = f"{number + 1:012d}.jpg"
        images.append({"id": 10 + number, "file_name": name, "width": 500, "height": 500})
        points = np.concatenate([spread(marks, "coco17"), np.full((17, 1), 2)], 1)
        low, high = points[:, :2].min(0), points[:, :2].max(0)
        annotations.append(
            {
                "id": number, "image_id": 10 + number, "category_id": 1, "iscrowd": 0, "num_keypoints": 17,
                "bbox": [*low.tolist(), *(high - low).tolist()], "area": 1.0, "keypoints": points.ravel().tolist(),
            }
        )  # fmt: skip
        if pictures:
            picture(folder / "val2017" / name, 500, 500)
    annotations[2]["keypoints"][3 * 15 + 2] = 0  # the left ankle of the last is not labelled
    nothing = {"image_id": 10, "category_id": 1, "num_keypoints": 0, "bbox": [0, 0, 9, 9], "keypoints": [0] * 51}
    annotations += [nothing | {"id": 98, "iscrowd": 0}, nothing | {"id": 99, "iscrowd": 1, "keypoints": [1, 1, 2] * 17}]
    (folder / "annotations").mkdir(parents=True)
    held = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    (folder / "annotations" / "person_keypoints_val2017.json").write_text(json.dumps(held))
    return Truth({}, {("person_keypoints_val2017", "assumed"): pixels})
