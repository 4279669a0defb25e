"""Triton's compiled kernels on a machine without a GPU: compile for an architecture, count, and run on the CPU.

``compilation``  any kernel for any target; registers, spills and shared memory; instruction counts
``emulator``     runs PTX on CPU tensors
``driver``       a Triton driver that makes ``kernel[grid](cpu_tensors)`` do so

The other modules are the emulator's parts. Needs numpy, torch and triton, and no driver.
"""
