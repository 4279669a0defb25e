"""Kernel tests import ``executors`` from here, ``ptx`` and ``families`` from the folder above."""

import pytest

pytest.importorskip("triton", reason="the kernels need triton")
