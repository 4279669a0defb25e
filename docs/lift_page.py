"""Writes the data of the lifting page: a residual-MLP lifter as one JavaScript file, and a few poses to start from.

``docs/conf.py`` calls it at the end of a build. The page runs a small stack machine (``lift.js``). Its program is
generated from the layers, with each BatchNorm folded into the linear layer before it and the modality token into a
bias. The browser computes the same as :meth:`unihpe_ref.lifter.Lifter.lift`, up to the rounding of the weights to
float16. The poses are generated motion, seen from the front and a little from the side, so no recording is published.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from multicontrast._checks import three_beats
from unihpe_ref.data import SKELETON, generate_motion, look_at
from unihpe_ref.data.boxes import ASPECT, INFORMATION_MEAN, INFORMATION_STD, PADDING
from unihpe_ref.files import write_whole
from unihpe_ref.lifter import BOX_RANGE, Lifter, load_lifter
from unihpe_ref.models import UniHPE
from unihpe_ref.models.decoders import MLPDecoder
from unihpe_ref.models.residual_mlp import PoseMLP, ResidualBlock
from unihpe_ref.models.unihpe import _NORM_EPS, MODALITIES

# name on the button: (action, seconds into the take, degrees from the front)
_POSES = {
    "Standing": ("idle", 1.0, 20.0),
    "Walking": ("walk", 2.4, 50.0),
    "Waving": ("wave", 3.0, 15.0),
    "Kicking": ("kick", 1.4, 60.0),
    "Sitting": ("sit", 4.0, 50.0),
    "Dancing": ("dance", 3.0, 25.0),
}
_FPS = 25.0


@dataclass(frozen=True)
class PageCamera:
    """The camera of the page: a square image with the principal point in its middle, of which a square is shown."""

    focal: float = 1145.0  # pixels, as Human3.6M's
    size: int = 1000
    window: tuple[int, int, int] = (255, 250, 490)  # left, top and side of what is shown


def export_browser(lifter: Lifter, path: Path, *, poses: dict[str, Tensor], camera: PageCamera) -> None:
    """Write ``window.LIFTER = {...}`` for the page that lifts a dragged skeleton.

    Args:
        lifter: whose model has a residual-MLP pose encoder and decoder.
        path: of the JavaScript file.
        poses: names and ``(17, 2)`` pixels of the poses that the page offers.
        camera: that they were seen by.
    Raises: TypeError for a model with other parts.
    """
    program = Program()
    program.lift(lifter.model)
    content = {
        "program": program.steps,
        "weights": base64.b64encode(np.concatenate(program.numbers).tobytes()).decode(),
        "skeleton": {
            "names": SKELETON.joint_names,
            "parents": SKELETON.parents,
            "left": SKELETON.left,
            "right": SKELETON.right,
        },
        "box": {
            "padding": PADDING,
            "aspect": ASPECT,
            "mean": INFORMATION_MEAN,
            "std": INFORMATION_STD,
            "range": BOX_RANGE[lifter.config.data.cameras],
        },
        "facing": lifter.config.data.view == "box",
        "camera": asdict(camera),
        "poses": {name: [[round(c, 1) for c in joint] for joint in pose.tolist()] for name, pose in poses.items()},
    }
    write_whole(path, f"window.LIFTER = {json.dumps(content)};\n".encode())


class Program:
    """The instructions of the stack machine, and their weights in float16."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.numbers: list[np.ndarray] = []
        self._length = 0

    def lift(self, model: UniHPE) -> None:
        """2D joints and box information to a 3D pose in metres."""
        encoder, decoder, config = model.encoder_2d, model.decoder_3d, model.config
        if not isinstance(encoder, PoseMLP) or not isinstance(decoder, MLPDecoder):
            came = f"a {type(encoder).__name__} and a {type(decoder).__name__}"
            remedy = "Train with `model.pose_encoder='mlp'` and `model.decoder='mlp'`."
            raise TypeError(three_beats("The page needs a residual-MLP encoder and decoder", came, remedy))
        self._add("input", box=encoder.box_token)
        self._layers(encoder.layers)
        if config.condition != "raw":
            self._add("normalise", eps=_NORM_EPS)
        condition = decoder.condition
        self._add("scale", by=condition.scale)
        bias = torch.zeros(config.embedding_dim, dtype=torch.float64)
        if condition.modality is not None:
            bias = bias + condition.modality.weight[MODALITIES.index("2d")].detach().double()
        if condition.box is not None:
            weight = condition.box.weight.detach().double()
            bias = bias + condition.box.bias.detach().double()
        else:
            weight = torch.zeros(config.embedding_dim, 3, dtype=torch.float64)
        self._linear("add_box", weight, bias)
        self._layers(decoder.layers)
        self._add("scale", by=config.scale_3d)

    def _layers(self, layers: nn.Sequential) -> None:
        held: tuple[Tensor, Tensor] | None = None

        def flush() -> None:
            nonlocal held
            if held is not None:
                self._linear("linear", *held)
                held = None

        for layer in layers:
            if isinstance(layer, nn.BatchNorm1d):
                assert held is not None
                held = _folded(*held, layer)
            elif isinstance(layer, nn.Dropout):
                continue
            else:
                flush()
                if isinstance(layer, nn.Linear):
                    held = (layer.weight.detach().double(), layer.bias.detach().double())
                elif isinstance(layer, nn.LeakyReLU):
                    self._add("leaky", slope=layer.negative_slope)
                elif isinstance(layer, ResidualBlock):
                    self._add("push")
                    self._layers(layer.layers)
                    self._add("add")
                else:
                    needed = "The page knows linear layers, BatchNorm, LeakyReLU, Dropout and residual blocks"
                    raise TypeError(three_beats(needed, f"a {type(layer).__name__}", "Teach it in `lift.js` and here."))
        flush()

    def _linear(self, step: str, weight: Tensor, bias: Tensor) -> None:
        rows, columns = weight.shape
        self._add(step, rows=rows, columns=columns, offset=self._length)
        for tensor in (weight, bias):
            self.numbers.append(tensor.to(torch.float16).numpy().ravel())
            self._length += tensor.numel()

    def _add(self, step: str, **arguments: Any) -> None:
        self.steps.append({"step": step, **arguments})


def _folded(weight: Tensor, bias: Tensor, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """``norm(weight @ x + bias)`` in evaluation as one linear map."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    return weight * gain[:, None], (bias - norm.running_mean.double()) * gain + norm.bias.detach().double()


def page_poses(camera: PageCamera) -> dict[str, Tensor]:
    """``(17, 2)`` pixels of each pose in the page's camera, 5 m away."""
    actions = sorted({action for action, _, _ in _POSES.values()})
    motion = generate_motion(3, actions=actions, num_subjects=2, num_test_subjects=1, fps=_FPS).select("train")
    poses = {}
    for name, (action, seconds, degrees) in _POSES.items():
        sequence = motion.action.index(action)
        pose = motion.joints[motion.starts[sequence] + round(seconds * _FPS)]
        middle = (pose.amin(0) + pose.amax(0)) / 2
        across = pose[11, :2] - pose[14, :2]  # right shoulder to left; one faces a quarter turn to its right
        facing = torch.atan2(-across[0], across[1]) + torch.deg2rad(torch.tensor(degrees))
        eye = middle + torch.stack([5 * facing.cos(), 5 * facing.sin(), torch.tensor(0.4)])
        rotation, translation = look_at(eye, middle)
        seen = pose @ rotation.mT + translation
        poses[name] = camera.focal * seen[:, :2] / seen[:, 2:] + camera.size / 2
    return poses


def write_weights(path: Path) -> None:
    """``weights.js`` beside the page."""
    camera = PageCamera()
    export_browser(load_lifter(), path, poses=page_poses(camera), camera=camera)
