"""The compiled kernels: some are compiled here, all are on file."""

from __future__ import annotations

import pytest
import torch
from ptx import compilation
from ptx.recording import compiled_by

from benchmarks import compiled


def _gram3(gradient: bool) -> compiled.Case:
    name = "gram3 value and gradient" if gradient else "gram3 value"
    return next(case for case in compiled.cases() if case.name == name)


@pytest.mark.parametrize("target", compilation.TARGETS)
def test_gram3_compiles_without_spills_everywhere(target):
    for gradient in (False, True):
        (kernel,) = compiled_by(_gram3(gradient).call, target)
        resources = compilation.resources(kernel)
        assert resources.spilled == 0
        assert resources.registers <= 128
        assert resources.shared <= compilation.SHARED_MEMORY_LIMIT[target]


def test_gram3_takes_few_instructions_and_is_bound_by_memory():
    """106 is what the textbook's cheapest accurate form takes on sm_80."""
    for name, gpu in compiled.GPUS.items():
        case = _gram3(gradient=False)
        (kernel,) = compiled_by(case.call, gpu.target)
        assert compiled.per_element(case, kernel).total() <= 58, name
        assert compiled.best_time(case, kernel, gpu)[1] == "memory", name


def test_the_page_is_made_from_the_latest_rows():
    assert compiled.PAGE.read_text() == compiled.page(compiled.read())


# A pair of registers that ptxas stores and reads once for 256 candidates, with 56 of 255 registers in use: not for want
# of them, and 2 of the loop's 590 instructions.
SPILLS = {("held blocks, shifts, masked, forward", "float32", "cuda:90"): 8}


def test_every_kernel_of_every_architecture_is_on_file_without_spills_and_within_shared_memory():
    rows = compiled.read()
    names = {(case.name, case.dtype) for case in compiled.cases()}
    found = {(row.kernel, row.dtype, row.target) for row in rows}
    assert found == {(*name, target) for name in names for target in compilation.TARGETS}
    for row in rows:
        assert row.spilled <= SPILLS.get((row.kernel, row.dtype, row.target), 0), row
        assert row.shared <= row.shared_limit == compilation.SHARED_MEMORY_LIMIT[row.target], row
    for row in rows:
        if row.kernel == "gram3 value" and row.dtype == "float32" and row.target in ("cuda:80", "cuda:90"):
            assert row.bound == "memory" and row.instructions <= 58


@pytest.mark.slow
def test_the_rows_on_file_are_what_the_compiler_makes_today():
    rows = {(row.kernel, row.dtype, row.target): row for row in compiled.read()}
    for row in compiled.measure():
        filed = rows[row.kernel, row.dtype, row.target]
        assert (row.registers, row.spilled, row.shared) == (filed.registers, filed.spilled, filed.shared), row


def test_a_loop_and_a_spill_are_seen():
    """The counter finds the loop of a kernel that has one, once; a kernel too large for its registers spills."""
    from multicontrast._launch_triton import Tuning, config
    from multicontrast.linalg import _gram3_triton, _jacobi_triton

    (jacobi,) = compiled_by(lambda: _jacobi_triton.jacobi(torch.zeros(64, 5, 5)), "cuda:80")
    (loop,) = compilation.loops(jacobi)
    assert 100 < loop.total() < compilation.opcodes(jacobi).total()
    (gram,) = compiled_by(_gram3(gradient=False).call, "cuda:80")
    assert compilation.loops(gram) == []
    tuning = _gram3_triton._GRADIENT[torch.float64]
    _gram3_triton._GRADIENT[torch.float64] = Tuning(default=config(num_warps=4, BLOCK=1024))
    try:
        cosines = torch.zeros(3, 4096, dtype=torch.float64)
        (large,) = compiled_by(lambda: _gram3_triton.eigmax_with_gradient(*cosines), "cuda:80")
    finally:
        _gram3_triton._GRADIENT[torch.float64] = tuning
    assert compilation.resources(large).spilled > 0
