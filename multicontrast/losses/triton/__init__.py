"""The losses' Triton kernels."""
