"""Plain PyTorch replaces a kernel that cannot be built or launched, with one warning; TF32 follows PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch

import multicontrast as mc
from multicontrast import _backend, _launch_triton


@pytest.fixture
def failing(monkeypatch):
    """Every launch fails as Triton does without a C compiler; ``auto`` chooses kernels for tensors of the CPU."""

    def fail(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    monkeypatch.setattr(_launch_triton, "_launch", fail)
    monkeypatch.setattr(_launch_triton, "architecture", lambda: "cuda:80")
    monkeypatch.setattr(_launch_triton, "_failed", {})
    monkeypatch.setattr(_backend, "_warned", set())
    original = _backend.use_triton
    for module in list(sys.modules.values()):
        if getattr(module, "use_triton", None) is original:
            monkeypatch.setattr(module, "use_triton", lambda _: True)


CALLS = {
    "pairs": lambda xs, tau: mc.pairwise_infonce(xs[0], xs[1], tau),
    "pairs in tiles": lambda xs, tau: mc.pairwise_infonce(xs[0], xs[1], tau, tiled=True),
    "triplet": lambda xs, tau: mc.triplet_infonce(*xs, tau, generator=torch.Generator().manual_seed(0)),
    "all triplets": lambda xs, tau: mc.triplet_infonce(*xs, tau, negatives="all"),
    "trimodal": lambda xs, tau: mc.trimodal_infonce(*xs, tau, generator=torch.Generator().manual_seed(0)),
}


def _results(name: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    xs = [torch.randn(7, 5, generator=generator).requires_grad_() for _ in range(3)]
    tau = torch.tensor(0.3, requires_grad=True)
    loss = CALLS[name](xs, tau)
    return [loss, *torch.autograd.grad(loss, [*xs, tau], materialize_grads=True)]


@pytest.mark.parametrize("name", CALLS)
def test_plain_pytorch_takes_over_with_one_warning(name, request):
    expected = _results(name)
    request.getfixturevalue("failing")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = _results(name)
        again = _results(name)
    for result, same, reference in zip(found, again, expected):
        torch.testing.assert_close(result, reference, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(same, reference, rtol=1e-4, atol=1e-5)
    texts = [str(warning.message) for warning in caught if "Triton kernel" in str(warning.message)]
    assert len(texts) == 1 and "C compiler" in texts[0] and "gcc" in texts[0]


@pytest.mark.parametrize("name", CALLS)
def test_asked_for_kernels_it_raises(name, failing, monkeypatch):
    monkeypatch.setenv("MULTICONTRAST_BACKEND", "triton")
    with pytest.raises(_backend.KernelUnavailable, match=r"C compiler.*gcc"):
        _results(name)


SWITCHES = {
    "pass": "off",
    "torch.set_float32_matmul_precision('high')": "on",
    "torch.backends.cuda.matmul.allow_tf32 = True": "on",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'": "on",
    "torch.backends.fp32_precision = 'tf32'": "on",
    "torch.backends.fp32_precision = 'tf32'; torch.backends.cuda.matmul.fp32_precision = 'ieee'": "off",
}


@pytest.mark.skipif(os.name != "posix", reason="fork")
def test_tf32_follows_the_old_switches_and_the_new():
    """Each in a process of its own, since PyTorch refuses its old switches once a new one was set."""
    new = hasattr(torch.backends.cuda.matmul, "fp32_precision")
    switches = [switch for switch in SWITCHES if new or "fp32_precision" not in switch]
    program = f"""
import os, torch
from benchmarks.environment import tf32_flags
from multicontrast._backend import tf32_allowed
for switch in {switches}:
    if os.fork() == 0:
        exec(switch)
        print(switch, {{True: "on", False: "off"}}[tf32_allowed()], tf32_flags(), sep="|", flush=True)
        os._exit(0)
    os.wait()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    found = [line.split("|") for line in done.stdout.splitlines()]
    assert {switch: allowed for switch, allowed, _ in found} == {s: SWITCHES[s] for s in switches}, done.stderr
    assert all(flags.startswith(f"matmul {SWITCHES[switch]}") for switch, _, flags in found), found


@pytest.mark.parametrize(
    ("version", "architecture", "exact", "fast"),
    [
        ((3, 2), "cuda:80", "tf32x3", "tf32"),
        ((3, 5), "cuda:90", "tf32x3", "tf32"),
        ((3, 6), "cuda:90", "bf16x6", "bf16x3"),
        ((3, 9), "hip:gfx942", "bf16x6", "bf16x3"),
        ((3, 4), "hip:gfx942", "ieee", "ieee"),
        ((3, 9), "cuda:75", "ieee", "ieee"),
        ((3, 9), "interpreter", "ieee", "ieee"),
    ],
)
def test_precision_has_names_that_the_version_knows(version, architecture, exact, fast, monkeypatch):
    monkeypatch.setattr(_launch_triton, "VERSION", version)
    monkeypatch.setattr(_launch_triton, "architecture", lambda: architecture)
    assert (_launch_triton.dot_precision(False), _launch_triton.dot_precision(True)) == (exact, fast)


def test_an_architecture_without_an_entry_has_that_of_its_generation():
    table = _launch_triton.Tuning(_launch_triton.config(4, BLOCK=1), {"cuda:120": _launch_triton.config(2, BLOCK=2)})
    assert table["cuda:121"].kwargs == {"BLOCK": 2}
    assert table["cuda:103"].kwargs == {"BLOCK": 1}


@pytest.mark.parametrize("name", ["gram3_eigmax", "eigvalsh3", "eigh3", "eigmax", "procrustes_align"])
def test_so_do_the_small_eigenproblems(name, request):
    matrix = torch.randn(6, 4, 4, generator=torch.Generator().manual_seed(0))
    matrix = matrix + matrix.mT

    def result() -> torch.Tensor:
        if name == "gram3_eigmax":
            return mc.linalg.gram3_eigmax(*torch.tanh(matrix[:3, :, 0]))
        if name == "procrustes_align":
            return mc.metrics.procrustes_align(matrix[..., :3], matrix.flip(0)[..., :3])
        found = getattr(mc.linalg, name)(matrix if name == "eigmax" else matrix[:, :3, :3])
        return found if isinstance(found, torch.Tensor) else found[0]

    expected = result()
    request.getfixturevalue("failing")
    with pytest.warns(RuntimeWarning, match="C compiler"):
        torch.testing.assert_close(result(), expected, rtol=1e-5, atol=1e-5)
