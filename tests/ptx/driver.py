"""A Triton driver without a GPU: ``kernel[grid](cpu_tensors)`` is compiled for an architecture and run on the CPU.

After ``install("cuda:80")`` unchanged library code goes through Triton's own just-in-time path: specialisation,
compilation down to machine code, and the check of shared memory against the GPU's limit, which raises
``OutOfResources`` as on hardware. The compiled PTX is then executed in place on the CPU tensors. The autotuner works;
its timings are the order of appearance.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.cache import get_cache_manager

from ptx import emulator
from ptx.compilation import NVIDIA_TOOLS, SHARED_MEMORY_LIMIT


class Launch(NamedTuple):
    """What was launched."""

    kernel: str
    grid: tuple[int, int, int]
    num_warps: int
    shared: int


launches: list[Launch] = []
_options: dict = {}  # keyword arguments of every `emulator.launch`


def install(target: str = "cuda:80", **options) -> None:
    """Makes ``target`` Triton's active device; ``options`` go to :func:`ptx.emulator.launch`."""
    _options.clear()
    _options.update(options)
    triton.runtime.driver.set_active(_Driver(target))


class _Utils:
    def __init__(self, capability):
        self.capability = capability

    def get_device_properties(self, device):
        return {
            "max_shared_mem": SHARED_MEMORY_LIMIT[f"cuda:{self.capability}"],
            "multiprocessor_count": 108,
            "max_num_regs": 65536,
            "warpSize": 32,
            "sm_clock_rate": 1_400_000,
            "mem_clock_rate": 1_200_000,
            "mem_bus_width": 5120,
        }

    def load_binary(self, name, kernel, shared, device):
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(kernel)
            file.flush()
            command = [NVIDIA_TOOLS / "cuobjdump", "--dump-resource-usage", file.name]
            report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = re.search(r"REG:(\d+) STACK:(\d+)", report)
        registers, stack = (int(number) for number in found.groups())
        threads = 1024 if registers <= 64 else 65536 // registers // 32 * 32
        return name, name, registers, stack // 4, threads

    def unload_module(self, module):
        pass


class _Launcher:
    def __init__(self, source, metadata):
        group = get_cache_manager(metadata.hash).get_group(source.name[:150] + ".json")
        self.ptx = Path(next(path for name, path in group.items() if name.endswith(".ptx"))).read_text()
        self.keep = [kind != "constexpr" for kind in source.signature.values()]
        self.metadata = metadata

    def __call__(self, gx, gy, gz, stream, function, packed, launch_metadata, enter, leave, *arguments):
        kept = [argument for argument, keep in zip(arguments, self.keep) if keep]
        meta = self.metadata
        launches.append(Launch(meta.name, (gx, gy, gz), meta.num_warps, meta.shared))
        emulator.launch(self.ptx, (gx, gy, gz), *kept, num_threads=meta.num_warps * 32, shared=meta.shared, **_options)


class _Driver:
    launcher_cls = _Launcher

    def __init__(self, target):
        self.capability = int(target.split(":")[1])
        self.utils = _Utils(self.capability)
        self.timings = 0

    @classmethod
    def is_active(cls):
        return True

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability  # compiled kernels are cached per device: one number per architecture

    def set_current_device(self, device):
        pass

    def get_current_stream(self, device=0):
        return 0

    def get_device_capability(self, device=0):
        return divmod(self.capability, 10)

    def map_python_to_cpp_type(self, kind):
        return kind

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_device_interface(self):
        return torch.cpu

    def get_benchmarker(self):
        def benchmark(call, quantiles=None, **_):
            call()
            self.timings += 1
            return [float(self.timings)] * (len(quantiles) if quantiles else 1)

        return benchmark

    def get_empty_cache_for_benchmark(self):
        return torch.empty(1)

    def clear_cache(self, cache):
        pass
