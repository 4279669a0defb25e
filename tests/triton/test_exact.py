"""Eq. (3) over all triplets: the kernels against float64, straight from the equation."""

from __future__ import annotations

import torch
from executors import EVERYWHERE, device, emulated, on
from torch import Tensor
from torch.nn.functional import normalize


def _definition(a: Tensor, b: Tensor, c: Tensor, tau: Tensor) -> Tensor:
    """logsumexp of ``(lambda_max - 1) / tau`` over all (j, k), by a full eigendecomposition of every triplet."""
    a, b, c = torch.broadcast_tensors(a[:, :, None], b[:, None, :], c[None])
    one = torch.ones_like(a)
    gram = torch.stack([one, a, b, a, one, c, b, c, one], -1).unflatten(-1, (3, 3))
    return ((torch.linalg.eigvalsh(gram)[..., -1] - 1) / tau).flatten(1).logsumexp(1)


def _case(sizes: tuple[int, int, int]) -> list[Tensor]:
    x, y, z = (normalize(torch.randn(size, 6, dtype=torch.float64), dim=-1) for size in sizes)
    return [block.float().to(device()) for block in (x @ y.mT, x @ z.mT, y @ z.mT)]


def _check(a: Tensor, b: Tensor, c: Tensor, tau: float) -> None:
    from multicontrast.losses.triton.exact_triton import exact_backward, exact_forward

    inputs = [t.double().cpu().requires_grad_() for t in (a, b, c)]
    inputs.append(torch.tensor(tau, dtype=torch.float64, requires_grad=True))
    expected = _definition(*inputs)
    temperature = torch.tensor(tau, device=device())
    lse, mean = exact_forward(a, b, c, temperature)
    grad = torch.rand(len(a), device=device())
    results = exact_backward(a, b, c, temperature, lse, mean, grad)
    grads = torch.autograd.grad(expected, inputs, grad.double().cpu())
    eps, scale = torch.finfo(torch.float32).eps, max(1.0, 2 / tau)
    torch.testing.assert_close(lse.double().cpu(), expected.detach(), rtol=0, atol=2 * eps * (scale + 10))
    for result, reference in zip(results, grads):
        # Weights err by an eps of the logit; the gradient holds 1 / tau.
        tolerance = 2 * eps * (scale + 10) * max(1 / tau, float(reference.abs().max()))
        torch.testing.assert_close(result.double().cpu(), reference, rtol=0, atol=tolerance)


@on(*EVERYWHERE)
def test_logsumexp_and_gradients():
    emulated(noise=1.0)
    _check(*_case((7, 19, 35)), 0.07)
    _check(*_case((1, 1, 1)), 0.5)


@on("interpreter", "sm_80", "gpu")
def test_few_anchors_with_many_candidates_and_the_other_way_round():
    _check(*_case((2, 3, 300)), 0.1)
    _check(*_case((33, 2, 3)), 0.01)


@on("interpreter", "sm_80", "gpu")
def test_strided_blocks():
    a, b, c = _case((6, 9, 11))
    padded = torch.full((12, 33), float("nan"), device=device())
    padded[1::2, ::3] = b
    _check(a.mT.contiguous().mT, padded[1::2, ::3], c, 0.1)


@on("interpreter", "gpu")
def test_nan_and_bad_temperatures():
    from multicontrast.losses.triton.exact_triton import exact_backward, exact_forward

    a, b, c = _case((5, 6, 7))
    for tau in (0.0, -0.1, float("nan")):
        lse, mean = exact_forward(a, b, c, torch.tensor(tau, device=device()))
        assert lse.isnan().all()
    b[2, 3] = float("nan")
    tau = torch.tensor(0.1, device=device())
    lse, mean = exact_forward(a, b, c, tau)
    assert lse.isnan().nonzero().flatten().tolist() == [2]
    da, _, dc, _ = exact_backward(a, b, c, tau, lse, mean, torch.ones_like(lse))
    assert da[2].isnan().all() and da[[0, 1, 3, 4]].isfinite().all() and dc.isnan().all()


@on("interpreter", "gpu")
def test_no_anchors():
    from multicontrast.losses.triton.exact_triton import exact_forward

    a, b, c = _case((4, 5, 6))
    lse, mean = exact_forward(a[:0], b[:0], c, torch.tensor(0.1, device=device()))
    assert lse.shape == mean.shape == (0,)


@on("sm_90", "gpu")
def test_offsets_beyond_32_bits():
    """The third block is 46,400 apart in rows: its last entries lie beyond 2**31."""
    from multicontrast.losses.triton.exact_triton import exact_backward, exact_forward

    a, b, c = _case((2, 3, 5))
    far = torch.empty(2**31 + 64, device=device()).as_strided((3, 5), (2**30, 1))
    far.copy_(c)
    tau = torch.tensor(0.1, device=device())
    for result, expected in zip(exact_forward(a, b, far, tau), exact_forward(a, b, c, tau)):
        torch.testing.assert_close(result, expected, rtol=0, atol=0)
    lse, mean = exact_forward(a, b, c, tau)
    grads = [exact_backward(a, b, block, tau, lse, mean, torch.ones_like(lse)) for block in (far, c)]
    for result, expected in zip(*grads):
        torch.testing.assert_close(result, expected, rtol=0, atol=0)
