"""Estimates the memory of a run: every stage runs once on meta tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from unihpe_ref.config import RunConfig
from unihpe_ref.data import PoseBatch
from unihpe_ref.models import UniHPE
from unihpe_ref.parts import Part
from unihpe_ref.stages import make_stages
from unihpe_ref.training import Stage, choose_trained

_FLOAT = 4  # bytes
_BLOCKS = 3  # Gram blocks of three modalities, their gradients and intermediates


def estimate_memory(config: RunConfig) -> dict[str, dict[str, int]]:
    """The bytes that each stage holds at once, by kind.

    ``"weights"`` are the model's and their average's. ``"gradients"`` and ``"optimizer"`` are those of the trained
    weights (Adam keeps two numbers for each). ``"activations"`` are the tensors that PyTorch keeps for the backward
    pass of a micro-batch, measured. ``"contrast"`` are the blocks of cosines of the whole batch. PyTorch itself, the
    workspace of convolutions, fragmentation and prepared batches are not included. Allow a quarter more.
    """
    found = {}
    for stage in make_stages(config):
        with torch.device("meta"):
            model = UniHPE(config.model, config.sampler)
        choose_trained(model, stage)
        weights = sum(tensor.nbytes for tensor in model.state_dict().values())
        trained = _FLOAT * sum(p.numel() for p in model.parameters() if p.requires_grad)
        rows = -(-stage.config.batch_size // stage.config.accumulate)
        activations = saved_for_backward(stage, model, meta_batch(rows, config))
        found[stage.name] = {
            "weights": weights * (1 if stage.ema_decay is None else 2),
            "gradients": trained,
            "optimizer": 2 * trained,
            "activations": activations if config.precision == "float32" else activations // 2,
            "contrast": 3 * _BLOCKS * _FLOAT * stage.config.batch_size**2,
        }
    return found


def memory_lines(config: RunConfig) -> list[str]:
    """The estimate, a line for each stage."""
    lines = []
    for name, parts in estimate_memory(config).items():
        listed = ", ".join(f"{part} {_readable(size)}" for part, size in parts.items())
        lines.append(f"{name}: about {_readable(sum(parts.values()))} ({listed})")
    return lines


def saved_for_backward(stage: Stage, model: UniHPE, batch: PoseBatch) -> int:
    """Bytes that autograd keeps between the forward and the backward pass of a batch, weights aside."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}  # holds the tensors, because the address of a freed storage may be used again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in weights:
            kept.setdefault(storage, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        embeddings = stage.embed(model, batch)
        stage.decode(model, embeddings, batch, torch.Generator().manual_seed(0), Part.whole(len(batch)))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def meta_batch(rows: int, config: RunConfig) -> PoseBatch:
    """A batch of meta tensors."""
    joints = config.model.joints
    shapes = {
        "joints_3d": (joints, 3),
        "root": (3,),
        "joints_2d": (joints, 2),
        "box": (3,),
        "focal": (2,),
        "principal": (2,),
        "image_size": (2,),
        "image": (3, *config.data.image_size),
        "crop_affine": (2, 3),
        "joint_noise": (),
    }
    floats = {name: torch.empty(rows, *shape, device="meta") for name, shape in shapes.items()}
    numbers = {name: torch.empty(rows, dtype=torch.int64, device="meta") for name in _NUMBERS}
    if config.model.image_encoder == "none":
        floats["image"] = None  # type: ignore[assignment]
    return PoseBatch(**floats, **numbers)


_NUMBERS = ("action", "subject", "sequence", "index")


def _readable(size: int) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 2**10:.0f} KiB"
