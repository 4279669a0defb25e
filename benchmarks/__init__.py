"""Benchmarks: ``python -m benchmarks.timing``, ``.losses``, ``.kernels``, ``.table``."""
