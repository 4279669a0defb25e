"""How kernels are launched: static tables, the autotuner on request, no call of a driver before."""

from __future__ import annotations

import os
import subprocess
import sys

import torch
from executors import device, kind, on


@on("sm_80", "gpu")
def test_the_autotuner_chooses_among_the_candidates_and_changes_no_result():
    """Also for kernels that add to their results: those are cleared between trials."""
    from multicontrast.linalg import _gram3_triton
    from multicontrast.losses.triton import sampled_triton

    cosines = (2 * torch.rand(3, 100, device=device()) - 1).unbind()
    blocks = [2 * torch.rand(5, 5, device=device()) - 1 for _ in range(3)]
    index = torch.randint(5, (5, 9, 3), device=device())
    tau = torch.tensor(0.1, device=device())

    def results() -> list[torch.Tensor]:
        _, loss = sampled_triton.sampled_forward(*blocks, index, tau)
        grads = sampled_triton.sampled_backward(*blocks, index, tau, loss, torch.ones_like(loss))
        return [*_gram3_triton.eigmax_with_gradient(*cosines), loss, *grads]

    expected = results()
    before = _launches()
    os.environ["MULTICONTRAST_AUTOTUNE"] = "1"
    try:
        tuned = results()
        trials = _launches() - before
        again = results()
    finally:
        del os.environ["MULTICONTRAST_AUTOTUNE"]
    for result, same, reference in zip(tuned, again, expected):
        torch.testing.assert_close(result, reference, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(same, reference, rtol=1e-6, atol=1e-6)
    if kind() == "sm_80":
        assert trials > 3 * 4  # every candidate of each of the three kernels
        assert _launches() - before - trials == 3  # then the choice stands


def _launches() -> int:
    if kind() == "gpu":
        return 0
    from ptx import driver

    return len(driver.launches)


def test_a_table_has_an_entry_for_an_architecture_a_family_or_everything():
    from multicontrast._launch_triton import Tuning, config

    default, hopper, amd = config(4, BLOCK=128), config(8, BLOCK=256), config(2, BLOCK=64)
    table = Tuning(default, {"cuda:90": hopper, "hip": amd})
    assert table["cuda:90"] is hopper
    assert table["hip:gfx942"] is table["hip:gfx1100"] is amd
    assert table["cuda:80"] is table["interpreter"] is default


def test_importing_the_kernels_asks_no_driver():
    """Nor does a launcher with nothing to do; a launch on a machine without one says what is missing."""
    program = """
import torch, triton
from multicontrast.linalg import _gram3_triton, _jacobi_triton, _rotation_triton, _symmetric3_triton
from multicontrast.losses.triton import exact_triton, pairs_triton, sampled_triton
_gram3_triton.eigmax_excess(*torch.zeros(3, 0))
assert triton.runtime.driver._active is None
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
