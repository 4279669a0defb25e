"""Exports encoders and lifter by torch.export and ONNX, each compared with PyTorch."""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multicontrast._checks import check_choice, three_beats
from unihpe_ref.files import write_whole
from unihpe_ref.lifter import Lifter
from unihpe_ref.models import UniHPE
from unihpe_ref.models.decoders import MLPDecoder
from unihpe_ref.models.unihpe import _NORM_EPS, MODALITIES

FORMATS = {".pt2": "torch.export", ".onnx": "ONNX"}
PARTS = ("encoder-2d", "encoder-3d", "image-encoder", "lifter")
_TOLERANCE = 1e-4  # for outputs around 1 (metres, unit embeddings); float32 sums in another order differ far less
_BATCHES = (2, 5)  # exported with the first, checked with both


@dataclass(frozen=True)
class ExportReport:
    """The file and its comparison with PyTorch."""

    format: str
    bytes: int
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    difference: float
    checked_by: str


class _Part(nn.Module):
    """One path through a model, built from its parts, because the public methods of :class:`UniHPE` check lengths,
    which would fix the batch size."""

    def __init__(self, model: UniHPE, part: str) -> None:
        super().__init__()
        self.part = part
        self.condition = model.config.condition
        self.scales = (model.config.scale_2d, model.config.scale_3d)
        self.joints = model.config.joints
        encoders = {"encoder-3d": model.encoder_3d, "image-encoder": model.image_encoder}
        self.encoder = encoders.get(part, model.encoder_2d)
        self.decoder = model.decoder_3d if part == "lifter" else None

    def forward(self, *inputs: Tensor) -> Tensor:
        assert self.encoder is not None
        first = inputs[0] / self.scales[1] if self.part == "encoder-3d" else inputs[0]
        features = self.encoder(first, *inputs[1:])
        embedding = nn.functional.normalize(features, dim=-1, eps=_NORM_EPS) if self.condition != "raw" else features
        if self.decoder is None:
            return embedding
        token = torch.full(embedding.shape[:1], MODALITIES.index("2d"))
        assert isinstance(self.decoder, MLPDecoder)
        decoded = self.decoder.layers(self.decoder.condition(embedding, token, inputs[1]))
        joints = decoded.unflatten(-1, (self.joints, 3)) * self.scales[1]
        return torch.cat((torch.zeros_like(joints[:, :1]), joints[:, 1:]), 1)


def _reference(model: UniHPE, part: str, values: Mapping[str, Tensor]) -> Tensor:
    """The results of the model's public methods, with which the exported program has to agree."""
    if part == "lifter":
        return model.lift(values["kp2d"], values["box_info"])
    return model.encode(**values)


def export_model(lifter: Lifter, part: str, path: Path) -> ExportReport:
    """Writes one part of a model to ``path``; the batch size stays free.

    Args:
        lifter: holds the model.
        part: one of :data:`PARTS`. "lifter" takes box-normalised 2D joints ``(B, 17, 2)`` and box information
            ``(B, 3)`` and gives metres ``(B, 17, 3)``, in the frame of ``data.view``; the encoders give embeddings.
        path: ``.pt2`` for torch.export, ``.onnx`` for ONNX; written after the comparison.
    Raises: ValueError for another ending, a missing package, a model without that part, or if the exported program
        gives other numbers.
    """
    check_choice("export", "part", part, PARTS)
    ending = path.suffix.lower()
    if ending not in FORMATS:
        needed = f"`unihpe export` needs a file that ends in {' or '.join(FORMATS)}"
        raise ValueError(three_beats(needed, repr(path.name), "Change the ending."))
    if ending == ".onnx":
        _require_onnx()
    model = lifter.model.cpu().eval()
    if part == "lifter" and not isinstance(model.decoder_3d, MLPDecoder):
        needed = "`unihpe export --part lifter` needs a decoder that answers in one step"
        remedy = "Export `encoder-2d`, and sample with `UniHPE.decode`."
        raise ValueError(three_beats(needed, "a score-based decoder, which is a loop", remedy))
    if part == "image-encoder" and model.image_encoder is None:
        needed = "`unihpe export --part image-encoder` needs a model with images"
        raise ValueError(three_beats(needed, "a model of poses alone", "Choose another checkpoint."))
    if part == "encoder-3d" and model.config.lifting_only:
        needed = "`unihpe export --part encoder-3d` needs a model with a 3D encoder"
        raise ValueError(three_beats(needed, "one that only lifts", "Choose another checkpoint."))
    program = _Part(model, part)
    named = _example_inputs(lifter, part, _BATCHES[0])
    with torch.no_grad():
        output = _reference(model, part, named)
    batch = torch.export.Dim("batch", min=1)
    shapes = (tuple({0: batch} for _ in named),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own warnings
        exported = torch.export.export(program, tuple(named.values()), dynamic_shapes=shapes)
        content = _torch_bytes(exported) if ending == ".pt2" else _onnx_bytes(exported, list(named))
    difference, checked_by = _compare(lifter, part, content, ending)
    if not difference <= _TOLERANCE:
        needed = f"the exported program needs to agree with PyTorch within {_TOLERANCE:g}"
        raise ValueError(three_beats(needed, f"{difference:g}", "Nothing was written; please report it."))
    write_whole(path, content)
    return ExportReport(
        FORMATS[ending],
        len(content),
        {name: _shape(value) for name, value in named.items()},
        {"joints_3d" if part == "lifter" else "embedding": _shape(output)},
        difference,
        checked_by,
    )


def _shape(value: Tensor) -> str:
    return f"({', '.join(['batch', *(str(n) for n in value.shape[1:])])})"


def _example_inputs(lifter: Lifter, part: str, count: int) -> dict[str, Tensor]:
    """Inputs of the size of real ones, the same at each call."""
    generator = torch.Generator().manual_seed(count)

    def normal(*shape: int, scale: float) -> Tensor:
        return scale * torch.randn(count, *shape, generator=generator)

    joints = lifter.config.model.joints
    if part == "image-encoder":
        return {"image": normal(3, *lifter.config.data.image_size, scale=1.0)}
    if part == "encoder-3d":
        return {"kp3d": normal(joints, 3, scale=0.3)}
    return {"kp2d": normal(joints, 2, scale=0.36), "box_info": normal(3, scale=1.0)}


def _torch_bytes(exported: torch.export.ExportedProgram) -> bytes:
    content = io.BytesIO()
    torch.export.save(exported, content)
    return content.getvalue()


def _onnx_bytes(exported: torch.export.ExportedProgram, names: list[str]) -> bytes:
    for noisy in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    made = torch.onnx.export(exported, input_names=names, output_names=["output"], dynamo=True, verbose=False)
    assert made is not None
    serialised: bytes = made.model_proto.SerializeToString()
    return serialised


def _compare(lifter: Lifter, part: str, content: bytes, ending: str) -> tuple[float, str]:
    """The largest difference from PyTorch over two batch sizes, and the name of what ran the exported program."""
    run: Any
    if ending == ".pt2":
        loaded = torch.export.load(io.BytesIO(content)).module()
        run, checked_by = (lambda values: loaded(*values.values())), "torch.export.load"
    elif importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime

        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        checked_by = f"onnxruntime {onnxruntime.__version__}"

        def run(values: dict[str, Tensor]) -> Tensor:
            return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in values.items()})[0])
    else:
        import onnx
        from onnx.reference import ReferenceEvaluator

        evaluator: Any = ReferenceEvaluator(onnx.load_from_string(content))
        checked_by = "onnx's reference evaluator"

        def run(values: dict[str, Tensor]) -> Tensor:
            return torch.from_numpy(evaluator.run(None, {name: value.numpy() for name, value in values.items()})[0])

    difference = 0.0
    for count in _BATCHES:
        values = _example_inputs(lifter, part, count)
        with torch.no_grad():
            difference = max(difference, float((run(values) - _reference(lifter.model, part, values)).abs().max()))
    return difference, checked_by


def _require_onnx() -> None:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        needed = "ONNX needs the packages of the extra `export`"
        remedy = "Run `pip install 'multicontrast[export]'`, or export to `.pt2`."
        raise ValueError(three_beats(needed, f"no {' and no '.join(missing)}", remedy))
