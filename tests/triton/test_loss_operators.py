"""The losses' operators are well formed, differentiable twice, and one node for the compiler; on both back ends."""

from __future__ import annotations

import pytest
import torch
from executors import device, on
from torch import Tensor
from torch.nn.functional import normalize

SAMPLED = ("sampled", "list", "shifts")
CASES = (*SAMPLED, "exact")


def _operators() -> dict:
    from multicontrast.losses.triton.exact_operator import exact_logsumexp
    from multicontrast.losses.triton.sampled_operator import sampled_loss

    return {**dict.fromkeys(SAMPLED, sampled_loss), "exact": exact_logsumexp}


def _inputs(case: str, dtype: torch.dtype) -> tuple:
    x, y, z = (normalize(torch.randn(size, 8, dtype=dtype), dim=-1).to(device()) for size in (5, 6, 4))
    tau = torch.tensor(0.2, dtype=dtype, device=device(), requires_grad=True)
    blocks = [(m @ n.mT).requires_grad_() for m, n in ((x, y), (x, z), (y, z))]
    if case == "exact":
        return *blocks, tau
    if case == "sampled":
        return *blocks, torch.stack([torch.randint(size, (5, 7)) for size in (5, 6, 4)], -1).to(device()), tau
    # Rows 1..3 of a batch of 4.
    blocks = [(m @ n.mT).detach().requires_grad_() for m, n in ((x[:3], y[:4]), (x[:3], z), (y[:4], z))]
    return *blocks, torch.randint(4, (7, 2)).to(device()), tau, case, 1


def _total(case: str, inputs: tuple) -> Tensor:
    """A scalar that depends on every differentiable result."""
    results = _operators()[case](*inputs)
    if case in SAMPLED:
        return results.square().sum()
    return results[0].square().sum()


def _differentiable(inputs: tuple) -> list[Tensor]:
    return [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]


@pytest.mark.parametrize("case", CASES)
@on("torch", "interpreter", "gpu")
def test_operators_pass_their_check(case):
    inputs = _inputs(case, torch.float32)
    torch.library.opcheck(_operators()[case], inputs)


@pytest.mark.parametrize("case", CASES)
@on("torch", "gpu")
def test_operators_are_differentiable_twice(case):
    inputs = _inputs(case, torch.float64)
    points = _differentiable(inputs)

    def function(*points: Tensor) -> Tensor:
        moving = iter(points)
        return _total(case, tuple(next(moving) if any(x is p for p in inputs_moving) else x for x in inputs))

    inputs_moving = points
    assert torch.autograd.gradcheck(function, tuple(points))
    assert torch.autograd.gradgradcheck(function, tuple(points))


@pytest.mark.parametrize("case", CASES)
@on("interpreter", "sm_80", "gpu")
def test_kernels_give_the_numbers_of_plain_pytorch(case):
    import os

    inputs = _inputs(case, torch.float32)
    points = _differentiable(inputs)
    total = _total(case, inputs)
    grads = torch.autograd.grad(total, points)
    second = torch.autograd.grad(
        sum(grad.square().sum() for grad in torch.autograd.grad(_total(case, inputs), points, create_graph=True)),
        points,
    )
    os.environ["MULTICONTRAST_BACKEND"] = "torch"
    try:
        expected = _total(case, inputs)
        first = torch.autograd.grad(expected, points, create_graph=True)
        expected_second = torch.autograd.grad(sum(grad.square().sum() for grad in first), points)
    finally:
        os.environ["MULTICONTRAST_BACKEND"] = "triton"
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
    for result, reference in zip((*grads, *second), (*first, *expected_second)):
        scale = float(reference.detach().abs().max())
        torch.testing.assert_close(result, reference, rtol=0, atol=2e-5 * scale)


@pytest.mark.parametrize("case", CASES)
@on("torch", "interpreter", "gpu")
def test_compile_and_export(case):
    inputs = _inputs(case, torch.float32)
    points = _differentiable(inputs)
    compiled = torch.compile(_total, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(_total(case, inputs), points)
    torch.testing.assert_close(torch.autograd.grad(compiled(case, inputs), points), expected)

    numbers = [x for x in inputs if not isinstance(x, Tensor)]

    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return _total(case, (*tensors, *numbers))

    tensors = tuple(x for x in inputs if isinstance(x, Tensor))
    exported = torch.export.export(Module(), tensors).module()
    torch.testing.assert_close(exported(*tensors), _total(case, inputs))
