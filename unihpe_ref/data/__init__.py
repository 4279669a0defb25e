"""Data: skeleton, cameras, motion, pictures, and the batches made of them. Imports no model."""

from __future__ import annotations

from .batches import PoseBatch
from .boxes import (
    apply_affine,
    box_information,
    crop_affine,
    denormalise_joints,
    invert_affine,
    joint_box,
    normalise_joints,
    tight_box_size,
)
from .camera import Camera, crop_intrinsics, fixed_cameras, intrinsic_matrix, look_at, project, random_camera
from .joined import JoinedSource
from .mocap import read_mocap
from .motion import Motion, generate_motion
from .prepared import open_data, open_prepared, prepare
from .protocols import PROTOCOLS, Protocol, protocol
from .readers import read_data
from .recording import Recording
from .recording_source import JOINT_NOISE, RecordingSource
from .render import denormalise_image, normalise_image, render_poses
from .skeleton import SKELETON, Skeleton, flip_joints, flip_pixels, limb_lengths
from .source import Augmentation, PoseSource, Source

__all__ = [
    "JOINT_NOISE",
    "PROTOCOLS",
    "SKELETON",
    "Augmentation",
    "Camera",
    "JoinedSource",
    "Motion",
    "PoseBatch",
    "PoseSource",
    "Protocol",
    "Recording",
    "RecordingSource",
    "Skeleton",
    "Source",
    "apply_affine",
    "box_information",
    "crop_affine",
    "crop_intrinsics",
    "denormalise_image",
    "denormalise_joints",
    "fixed_cameras",
    "flip_joints",
    "flip_pixels",
    "generate_motion",
    "intrinsic_matrix",
    "invert_affine",
    "joint_box",
    "limb_lengths",
    "look_at",
    "normalise_image",
    "normalise_joints",
    "open_data",
    "open_prepared",
    "prepare",
    "project",
    "protocol",
    "random_camera",
    "read_data",
    "read_mocap",
    "render_poses",
    "tight_box_size",
]
