"""A model file: safetensors with the weights, the configuration and a checksum of the weights.

It never reads pickle, so an untrusted model cannot run code. A file gets its name only when it is complete.
``runs/resume.py`` stores what else a run needs to resume.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from multicontrast._checks import three_beats
from unihpe_ref.config import RunConfig
from unihpe_ref.files import write_whole
from unihpe_ref.models import UniHPE
from unihpe_ref.unfit import reading, unfit

_FORMAT = "unihpe_ref/1"


def save_model(model: UniHPE, config: RunConfig, path: Path, *, dtype: torch.dtype | None = None) -> None:
    """Writes weights and configuration to ``path``: a temporary file beside it first, then a rename.

    ``dtype`` stores floating-point weights in that type, to halve the file; models load in float32.
    """
    tensors = {
        name: tensor.detach().cpu().to(dtype if tensor.is_floating_point() else None).contiguous()
        for name, tensor in model.state_dict().items()
    }
    metadata = {
        "format": _FORMAT,
        "config": json.dumps(config.to_dict()),
        "sha256": _checksum(tensors),
    }
    write_whole(path, _with_sorted_header(save(tensors, metadata)))


def load_model(path: Path | str, device: torch.device | str = "cpu") -> tuple[UniHPE, RunConfig]:
    """The model, in evaluation mode on ``device``, and the configuration that trained it.

    Raises: FileNotFoundError when there is no such file; ValueError when it is truncated, altered or something else.
    """
    tensors, metadata = read_weights(path)
    needed = f"`{path}` needs the weights that its configuration describes"
    remedy = "It was written by another version; train again."
    try:
        config = RunConfig.from_dict(json.loads(metadata["config"]))
        with torch.device("meta"):  # so that no memory is allocated for tensors that the file lacks
            described = UniHPE(config.model, config.sampler).state_dict()
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(three_beats(needed, f"no configuration of this package ({error})", remedy)) from None
    for name in sorted(described.keys() | tensors.keys()):
        shapes = [tuple(held[name].shape) if name in held else "none" for held in (tensors, described)]
        if shapes[0] != shapes[1]:
            raise ValueError(three_beats(needed, f"{shapes[0]} for {shapes[1]} as `{name}`", remedy))
    model = UniHPE(config.model, config.sampler)
    model.load_state_dict(tensors)
    return model.to(device).eval(), config


def read_weights(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a model's file, checked, and its metadata.

    Raises: as :func:`load_model`.
    """
    path = Path(path)
    if not path.is_file():
        needed = f"`{path}` needs to be a checkpoint"
        raise FileNotFoundError(three_beats(needed, "no such file", "`unihpe train` writes `model.safetensors`."))
    remedy = "Copy it again, or train again."
    whole = reading(f"`{path}` needs to be a whole safetensors file", remedy, also=(SafetensorError,))
    with whole, safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    if metadata.get("format") != _FORMAT:
        came = f"format {metadata.get('format', 'unknown')}"
        needed = f"`{path}` needs to be a checkpoint of format {_FORMAT}"
        raise unfit(needed, came, "Use a `model.safetensors` that `unihpe train` wrote.")
    if metadata.get("sha256") != _checksum(tensors):
        raise unfit(f"`{path}` needs weights that match its checksum", "altered bytes", remedy)
    return tensors, metadata


def _with_sorted_header(file: bytes) -> bytes:
    """The same file with its header in one order: equal models then have equal files."""
    length = int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensors stay aligned
    return len(header).to_bytes(8, "little") + header + file[8 + length :]


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
