"""Loads weights of published 2D pose networks, HRNet and ViTPose trained on COCO, into the image encoders.

A loader that ignored mismatches would leave random layers without a warning. Here the checkpoint must lack exactly the
tensors that its network is known to lack, and may have no others except its head.

HRNet's pose networks end in one map, so their last exchange between resolutions computes only that one. Of the four
stage-4 maps that UniHPE pools, the three coarse ones come from 9 paths (13 convolutions with BatchNorm, 78 tensors)
that no pose checkpoint holds. The branches to which these paths add are in the checkpoint, and trained.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from multicontrast._checks import check_choice, check_path, three_beats
from unihpe_ref.models.hrnet import HRNetEncoder
from unihpe_ref.models.vit import ViTEncoder
from unihpe_ref.unfit import reading

FUSE_INITS = ("zero", "imagenet", "random")
_HEADS = ("final_layer.", "keypoint_head.", "head.")  # official HRNet; mmpose 0.x, ViTPose; mmpose 1.x
_PARE_STD = 0.001
_VIT_NAMES = (  # mmpose 1.x, whose backbone is mmpretrain's; ViTPose's own names differ in the last line alone
    (r"^layers\.", "blocks."),
    (r"^(blocks\.\d+)\.ln([12])\.", r"\1.norm\2."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^(?:ln1|last_norm)\.", "norm."),
)


def load_pose_weights(
    encoder: nn.Module,
    weights: Path | str | Mapping[str, Tensor],
    *,
    fuse_init: str = "zero",
    imagenet: Path | str | Mapping[str, Tensor] | None = None,
) -> None:
    """Fills the backbone of an image encoder from a checkpoint of a 2D pose network of the same size.

    Args:
        encoder: a HRNet encoder or a ViT encoder. Its linear layer keeps its values, because no checkpoint has one.
        weights: a file (safetensors, or from ``torch.save``; read without running code), or its tensors. For HRNet the
            official repository's or mmpose's, for ViT ViTPose's or mmpose 1.x's.
        fuse_init: initialises the paths that no HRNet pose checkpoint holds. ``"zero"``: the last BatchNorm of each
            is multiplied by 0, so that the first forward gives the trained branches alone and the paths grow with
            training. ``"imagenet"``: from the classifier that the pose networks started from. ``"random"``: as in PARE,
            the nearest code that the paper cites. ViT has no such paths.
        imagenet: for ``"imagenet"``, a checkpoint of timm's HRNet classifier; timm fetches it unless given.
    Raises: ValueError when names or shapes differ in any other way; TypeError for another encoder.
    """
    check_choice("load_pose_weights", "fuse_init", fuse_init, FUSE_INITS)
    if imagenet is not None and not isinstance(imagenet, Mapping):
        imagenet = check_path("load_pose_weights", "imagenet", imagenet)
    if isinstance(encoder, HRNetEncoder):
        missing = fuse_tensors(encoder)
        state = _backbone_of(read_state(weights))
    elif isinstance(encoder, ViTEncoder):
        missing = set()
        state = _as_timm_vit(_backbone_of(read_state(weights)))
    else:
        needed = "`load_pose_weights` needs a HRNet or a ViT encoder"
        raise TypeError(three_beats(needed, f"a {type(encoder).__name__}", "Choose another `image_encoder`."))
    target = encoder.backbone.state_dict()
    _check_names(target, state, missing)
    filler = _fuse_values(encoder, missing, fuse_init, imagenet) if isinstance(encoder, HRNetEncoder) else {}
    encoder.backbone.load_state_dict({**state, **filler})


def fuse_tensors(encoder: HRNetEncoder) -> set[str]:
    """The tensors that a HRNet pose checkpoint lacks: all but the first output of the last exchange."""
    last = len(encoder.backbone.stage4) - 1
    return {name for name in encoder.backbone.state_dict() if re.match(rf"stage4\.{last}\.fuse_layers\.[123]\.", name)}


def read_state(weights: Path | str | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, without the wrappers that training put around them.

    Raises: FileNotFoundError for no file; ValueError for one that holds more than tensors and plain values.
    """
    if isinstance(weights, Mapping):
        held = dict(weights)
    else:
        path = check_path("load_pose_weights", "weights", weights)
        if not os.path.isfile(path):
            needed = f"`{path}` needs to be a checkpoint of a 2D pose network"
            remedy = "Fetch one from the model zoo of HRNet, ViTPose or mmpose."
            raise FileNotFoundError(three_beats(needed, "no such file", remedy))
        needed = f"`{path}` needs to hold tensors and plain values alone"
        remedy = "If you trust it, load it yourself and pass its tensors."
        with reading(needed, remedy, also=(Exception,)):  # torch and safetensors raise many kinds for other files
            if path.suffix == ".safetensors":
                held = load_file(path)
            else:
                held = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(held, dict):
                raise ValueError(f"a {type(held).__name__}")
    for _ in range(3):  # limited, because a file can contain itself
        if isinstance(held.get("state_dict"), Mapping):
            held = dict(held["state_dict"])
    return {name.removeprefix("module."): value for name, value in held.items()}


def _backbone_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the head, and without a prefix ``backbone.``."""
    body = {name: value for name, value in state.items() if not name.startswith(_HEADS)}
    if any(name.startswith("backbone.") for name in body):
        return {name.removeprefix("backbone."): value for name, value in body.items()}
    return body


def _as_timm_vit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in _VIT_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    positions = renamed.get("pos_embed")
    if positions is not None and positions.ndim == 3 and positions.shape[1] % 2:  # 193: the first is the class token's
        renamed["pos_embed"] = positions[:, 1:] + positions[:, :1]  # as in ViTPose's forward
    return renamed


def _check_names(target: Mapping[str, Tensor], state: Mapping[str, Tensor], missing: set[str]) -> None:
    lacking = sorted(target.keys() - state.keys() - missing)
    beyond = sorted(state.keys() - target.keys())
    not_missing = sorted(missing & state.keys())
    shapes = [n for n in target.keys() & state.keys() if target[n].shape != state[n].shape]
    for names, words in (
        (lacking, "lacks"),
        (beyond, "holds beside the head"),
        (not_missing, "should lack (is it a classifier's?) but holds"),
        (sorted(shapes), "has in another shape"),
    ):
        if names:
            needed = "`load_pose_weights` needs a checkpoint of a pose network of the encoder's kind and size"
            listed = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
            came = f"one that {words} {len(names)} of {len(target)} tensors: {listed}"
            raise ValueError(three_beats(needed, came, "Check that `image_encoder` names the checkpoint's network."))


def _fuse_values(
    encoder: HRNetEncoder, missing: set[str], fuse_init: str, imagenet: Path | str | Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    if fuse_init == "imagenet":
        state = _classifier(encoder, imagenet)
        lacking = sorted(missing - state.keys())
        if lacking:
            needed = "`imagenet` needs a checkpoint of timm's HRNet classifier of the encoder's size"
            raise ValueError(three_beats(needed, f"one without {lacking[0]}", "Leave it out: timm fetches its own."))
        return {name: state[name] for name in missing}
    values = {}
    for name, tensor in encoder.backbone.state_dict().items():
        if name not in missing:
            continue
        module = encoder.backbone.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.Conv2d):
            values[name] = nn.init.normal_(torch.empty_like(tensor), std=_PARE_STD) if fuse_init == "random" else tensor
        elif name.endswith("weight"):
            values[name] = torch.full_like(tensor, 0.0 if fuse_init == "zero" and _ends_path(name) else 1.0)
        else:  # bias, running mean and the count start at 0, the running variance at 1
            values[name] = torch.full_like(tensor, 1 if name.endswith("running_var") else 0)
    return values


def _ends_path(name: str) -> bool:
    """Whether this BatchNorm is the last of its path: ``fuse_layers.i.j`` is one step up, or i - j steps down."""
    i, j, step = map(int, re.findall(r"fuse_layers\.(\d)\.(\d)\.(\d)", name)[0])
    return j > i or step == i - j - 1


def _classifier(encoder: HRNetEncoder, imagenet: Path | str | Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    if imagenet is not None:
        return read_state(imagenet)
    import timm

    kept: dict[str, Any] = {"features_only": True, "feature_location": "", "out_indices": (1, 2, 3, 4)}
    return timm.create_model(encoder.name, pretrained=True, **kept).state_dict()
