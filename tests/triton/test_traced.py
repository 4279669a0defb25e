"""The launches and bytes of a loss, counted without a GPU and compared with the calls of a driver."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from executors import on
from torch.utils._python_dispatch import TorchDispatchMode

import multicontrast as mc
from benchmarks import traced

MASKED = ("trimodal present", "trimodal ids", "trimodal weight", "trimodal bfloat16")
SIZES = {180: (traced.CLIP, "pairs", "trimodal", *MASKED), 4096: (traced.CLIP, "pairs", "trimodal")}


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, int], traced.Row]:
    return {(name, batch): traced.measure(name, batch, repeats=0) for batch, names in SIZES.items() for name in names}


def test_three_clip_losses_take_two_products_each(rows):
    for batch in traced.BATCHES:
        row = rows[traced.CLIP, batch]
        assert row.gemm_flops == {"float32": 18 * 2 * batch * batch * traced.DIM}  # two products, and two for each
        assert (row.waits, row.copies) == (0, 0)
    assert 120 <= rows[traced.CLIP, 180].launches <= 200


def test_ours_stay_below_the_bounds(rows):
    """The bounds of a default trimodal loss, with masks as without, and nothing from the host."""
    for (name, batch), row in rows.items():
        if name == traced.CLIP:
            continue
        assert row.launches <= 45, (name, batch, row.launches)
        assert row.bytes <= 5 * 2**30
        assert row.copies == row.waits == 0
        kind = "bfloat16" if name.endswith("bfloat16") else "float32"
        assert row.gemm_flops == {kind: 9 * 2 * batch * batch * traced.DIM}, name


def test_a_list_of_objects_is_all_that_stands_on_stdout(capsys):
    assert traced.main(["--json", "--batch", "24", "--dim", "16", "--only", "pairs", "trimodal"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["loss"], row["batch"], row["dim"], row["dtype"]) for row in rows] == [
        ("pairs", 24, 16, "float32"),
        ("trimodal", 24, 16, "float32"),
    ]
    wanted = {"loss", "batch", "dim", "dtype", "launches", "bytes", "gemm_flops", "waits", "copies"}
    assert all(wanted <= set(row) for row in rows)


@on("sm_80", "gpu")
def test_the_trace_counts_what_a_driver_is_given():
    """The same kernels, as often, as the emulated GPU runs."""
    from ptx import driver

    xs = [torch.randn(12, 8, requires_grad=True) for _ in range(3)]
    tau = torch.tensor(0.2, requires_grad=True)
    driver.launches.clear()
    mc.trimodal_infonce(*xs, tau).backward()
    ran = Counter(launch.kernel for launch in driver.launches)
    counted = traced.trace(lambda xs, tau: mc.trimodal_infonce(*xs, tau), 12, 8, torch.float32).names
    assert {name: number for name, number in counted.items() if "::" not in name} == ran


class Operators(TorchDispatchMode):
    """The operators that compute, as PyTorch's own engine runs them."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view and function._schema.name != "aten::detach":
            self.names[function._schema.name] += 1
        return function(*args, **(kwargs or {}))


def test_the_trace_counts_the_operators_that_a_step_really_runs():
    """Of PyTorch alone, forward and backward, where the engine is not the trace's own."""

    def step(xs, tau):
        return traced.three_clip_losses(xs, tau) + (xs[0] / tau).exp().sum()

    with Operators() as real:
        xs = [torch.rand(24, 16).requires_grad_() for _ in range(3)]
        tau = torch.tensor(0.2, requires_grad=True)
        real.names.clear()
        step(xs, tau).backward()
    assert traced.trace(step, 24, 16, torch.float32).names == real.names


def test_what_a_kernel_touches_is_read_off_its_source():
    from multicontrast.losses.triton import pairs_triton, sampled_triton

    constants = frozenset({"HAS_PRESENT": False, "HAS_IDS": False, "HAS_WEIGHT": False}.items())
    reads, writes = traced.touched(pairs_triton._pair_gradient_kernel, constants)
    assert {"gram_ptr", "scale_ptr", "tau_ptr", "grad_ptr", "row_peak_ptr", "column_sum_ptr"} <= reads
    assert not {"present_ptr", "ids_ptr", "weight_ptr"} & reads  # branches that the constants leave out
    assert writes == {"dgram_ptr", "slope_ptr"}
    reads, writes = traced.touched(sampled_triton._sampled_backward_kernel, frozenset({"DETERMINISTIC": False}.items()))
    assert {"da_ptr", "db_ptr", "dc_ptr"} <= reads & writes  # added to
    assert "a_fixed_ptr" not in writes


def test_a_wait_and_a_copy_are_seen():
    counts = traced.trace(lambda xs, tau: xs[0].sum() * tau.item() + xs[1].cpu().sum().to("cuda"), 8, 4, torch.float32)
    assert counts.waits >= 2
    assert counts.copies >= 1
