"""Timings that can be run again: ``python -m benchmarks.timing``, ``.losses``, ``.kernels``, ``.table``."""
