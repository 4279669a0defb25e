"""The environment of a measurement: the header of every benchmark, and columns of every row."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from multicontrast._backend import tf32_allowed

ROOT = Path(__file__).resolve().parents[1]
# A change to one of these may change a figure, so a commit with uncommitted changes to them is marked.
_TIMED_CODE = ("multicontrast", "unihpe_ref", "benchmarks", "tests/definitions.py")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The columns of a row that do not depend on the contender."""

    device: str
    threads: int
    backend: str
    python: str
    torch: str
    triton: str
    cuda: str
    driver: str
    tf32: str
    commit: str
    date: str
    load: float | None
    clock: str

    def header(self) -> str:
        """One line for each fact, for the top of a report."""
        return "\n".join(f"{name:>8}: {'-' if value in ('', None) else value}" for name, value in asdict(self).items())


def describe_environment(device: torch.device, clock: str) -> Environment:
    """The environment of this process."""
    cuda = device.type == "cuda"
    return Environment(
        device=torch.cuda.get_device_name(device) if cuda else _cpu_name(),
        threads=torch.get_num_threads(),
        backend=os.environ.get("MULTICONTRAST_BACKEND", "auto"),
        python=platform.python_version(),
        torch=torch.__version__,
        triton=_version("triton"),
        cuda=(torch.version.cuda or "") if cuda else "",
        driver=_run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0] if cuda else "",
        tf32=tf32_flags() if cuda else "",
        commit=_commit(),
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        load=round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        clock=clock,
    )


def tf32_flags() -> str:
    """PyTorch's TF32 settings, whichever API set them: its old names raise once a new one was used."""
    convolution = getattr(getattr(torch.backends.cudnn, "conv", None), "fp32_precision", None)
    cudnn = torch.backends.cudnn.allow_tf32 if convolution is None else convolution == "tf32"
    return f"matmul {_on(tf32_allowed())}, cudnn {_on(cudnn)}"


def _on(flag: bool) -> str:
    return "on" if flag else "off"


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _commit() -> str:
    commit = _run("git", "rev-parse", "--short=10", "HEAD")
    changed = _run("git", "status", "--porcelain", "--", *_TIMED_CODE, ":(exclude)benchmarks/results")
    return f"{commit}+changes" if commit and changed else commit
