"""The environment of a run: versions, machine, device, command line, and the commit of this code."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("multicontrast", "numpy", "timm", "torchvision", "safetensors", "triton")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Plain values for JSON; None for what is missing."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        **commit(Path(__file__).resolve().parent),
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in _PACKAGES} | {"torch": torch.__version__},  # with its build
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
    }


def commit(folder: Path) -> dict[str, Any]:
    """The commit that a folder is checked out at, and whether its tracked files were changed since."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)  # noqa: S603, S607 - fixed words, whichever git there is
        except (OSError, subprocess.CalledProcessError):
            return None  # installed from a wheel, or no git
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "changed": None if changed is None else bool(changed)}


def version_of(name: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str | None:
    """The processor's name, on Linux as the system states it; None if unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
