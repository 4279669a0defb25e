"""Eq. (3) over sampled triplets: the kernels against float64, straight from the equations."""

from __future__ import annotations

import torch
from executors import COMPILED, EVERYWHERE, device, emulated, on
from torch import Tensor


def _definition(a: Tensor, b: Tensor, c: Tensor, index: Tensor, tau: Tensor) -> Tensor:
    """The loss of each row by a full eigendecomposition of every triplet's Gram matrix; differentiable."""
    i, j, k = index.unbind(-1)
    a, b, c = a[i, j], b[i, k], c[j, k]
    one = torch.ones_like(a)
    gram = torch.stack([one, a, b, a, one, c, b, c, one], -1).unflatten(-1, (3, 3))
    logits = torch.linalg.eigvalsh(gram)[..., -1] / tau
    return logits.logsumexp(-1) - logits[:, 0]


def _case(sizes: tuple[int, int, int], rows: int, count: int) -> tuple[Tensor, ...]:
    """Gram blocks of unit vectors and random tuples."""
    x, y, z = (torch.nn.functional.normalize(torch.randn(size, 8, dtype=torch.float64), dim=-1) for size in sizes)
    index = torch.stack([torch.randint(size, (rows, count)) for size in sizes], -1)
    return *(block.float().to(device()) for block in (x @ y.mT, x @ z.mT, y @ z.mT)), index.to(device())


def _expected(a: Tensor, b: Tensor, c: Tensor, index: Tensor, tau: float, grad: Tensor) -> tuple[Tensor, ...]:
    inputs = [t.double().cpu().requires_grad_() for t in (a, b, c)] + [torch.tensor(tau).double().requires_grad_()]
    loss = _definition(*inputs[:3], index.cpu(), inputs[3])
    return loss, *torch.autograd.grad(loss, inputs, grad.double().cpu())


def _assert_near(result: Tensor, expected: Tensor, eps: float) -> None:
    """Within ``eps`` float32 roundings of the largest expected value, or of 1, the sum of a softmax's weights."""
    tolerance = eps * torch.finfo(torch.float32).eps * max(float(expected.detach().abs().max()), 1.0)
    torch.testing.assert_close(result.double().cpu(), expected.detach(), rtol=0, atol=tolerance)


def _check(case: tuple[Tensor, ...], tau: float, deterministic: bool) -> None:
    from multicontrast.losses.triton.sampled_triton import sampled_backward, sampled_forward

    a, b, c, index = case
    temperature = torch.tensor(tau, device=device())
    grad = torch.rand(len(index), device=device())
    loss, *grads = _expected(*case, tau, grad)
    lse, result = sampled_forward(a, b, c, index, temperature)
    # A logit errs by an eps of lambda / tau; what the softmax makes of it is no larger.
    slack = 4 * (1 + 1 / tau)
    _assert_near(result, loss, slack)
    positive = torch.linalg.eigvalsh(_gram(a, b, c, index[:, 0]))[:, -1] - 1
    _assert_near(lse, loss + positive.cpu() / tau, slack)
    results = sampled_backward(a, b, c, index, temperature, result, grad, deterministic)
    for gradient, expected in zip(results, grads):
        _assert_near(gradient, expected, slack)


def _gram(a: Tensor, b: Tensor, c: Tensor, index: Tensor) -> Tensor:
    i, j, k = index.unbind(-1)
    a, b, c = (t.double() for t in (a[i, j], b[i, k], c[j, k]))
    one = torch.ones_like(a)
    return torch.stack([one, a, b, a, one, c, b, c, one], -1).unflatten(-1, (3, 3))


@on(*EVERYWHERE)
def test_loss_and_gradients():
    emulated(noise=1.0)
    _check(_case((9, 9, 9), 9, 300), 0.07, deterministic=False)
    _check(_case((5, 7, 6), 4, 63), 0.5, deterministic=True)
    _check(_case((3, 2, 4), 1, 1), 0.1, deterministic=False)


@on("interpreter", "sm_80", "gpu")
def test_strided_blocks_and_index():
    a, b, c, index = _case((6, 5, 7), 6, 20)
    wide = torch.full((6, 40, 5), 99, device=device())
    wide[:, ::2, 4], wide[:, ::2, 2], wide[:, ::2, 0] = index.unbind(-1)
    padded = torch.full((12, 14), float("nan"), device=device())
    padded[::2, ::2] = b
    _check((a.mT.contiguous().mT, padded[::2, ::2], c[:, :], wide[:, ::2, 0::2].flip(-1)), 0.1, deterministic=True)


@on(*EVERYWHERE, slow=("sm_90", "sm_100"))
def test_a_list_or_shifts_stand_for_an_index():
    """For some anchors of a batch, strided and of 32 bits, against the index that they mean."""
    from multicontrast.losses.triton.sampled_triton import sampled_backward, sampled_forward

    size, first, stop = 11, 4, 9
    a, b, c, _ = _case((size, size, size), 1, 1)
    tau, grad = torch.tensor(0.1, device=device()), torch.rand(stop - first, device=device())
    own = torch.arange(first, stop, device=device())[:, None]
    wide = torch.randint(size, (2, 2 * 70), device=device(), dtype=torch.int32)
    wide[:, 0] = 0
    short = wide[:, ::2].mT  # (70, 2)
    j, k = short.long().unbind(-1)
    positive = torch.arange(70, device=device()) == 0
    meant = {
        "list": (torch.where(positive, own, j), torch.where(positive, own, k)),
        "shifts": ((own + j) % size, (own + k) % size),
    }
    for scheme, (j, k) in meant.items():
        index = torch.stack((own.expand_as(j), j, k), -1)
        rows = (a[first:stop], b[first:stop], c)
        lse, loss = sampled_forward(*rows, short, tau, scheme, first)
        same_lse, same_loss = sampled_forward(a, b, c, index, tau)
        torch.testing.assert_close(loss, same_loss, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(lse, same_lse, rtol=1e-6, atol=1e-6)
        grads = sampled_backward(*rows, short, tau, loss, grad, True, scheme, first)
        da, db, dc, dtau = sampled_backward(a, b, c, index, tau, same_loss, grad, True)
        assert not da[:first].any() and not da[stop:].any()
        for got, expected in zip(grads, (da[first:stop], db[first:stop], dc, dtau)):
            _assert_near(got, expected.double().cpu(), 8)
        # An index of these rows alone, whose numbers are those of the batch.
        for got, expected in zip(sampled_backward(*rows, index, tau, loss, grad, True, "index", first), grads):
            _assert_near(got, expected.double().cpu(), 8)


@on("interpreter", "gpu")
def test_float64():
    from multicontrast.losses.triton.sampled_triton import sampled_backward, sampled_forward

    *blocks, index = _case((6, 6, 6), 6, 70)
    blocks = [block.double() for block in blocks]
    tau = torch.tensor(0.1, dtype=torch.float64, device=device())
    grad = torch.rand(6, dtype=torch.float64, device=device())
    loss, *grads = _expected(*blocks, index, tau.cpu(), grad)
    _, result = sampled_forward(*blocks, index, tau)
    torch.testing.assert_close(result.cpu(), loss.detach(), rtol=1e-12, atol=1e-12)
    for gradient, expected in zip(sampled_backward(*blocks, index, tau, result, grad), grads):
        torch.testing.assert_close(gradient.cpu(), expected, rtol=1e-11, atol=1e-11)


@on("interpreter", "sm_80", "gpu")
def test_members_that_do_not_exist_make_their_row_nan_and_are_never_read():
    from multicontrast.losses.triton.sampled_triton import sampled_backward, sampled_forward

    a, b, c, index = _case((5, 5, 5), 6, 9)
    good = index.clone()
    index[1, 3, 0], index[2, 0, 1], index[3, 8, 2], index[4, 2, 2] = -1, 5, 2**40, -(2**62)
    tau = torch.tensor(0.1, device=device())
    lse, loss = sampled_forward(a, b, c, index, tau)
    _, expected = sampled_forward(a, b, c, good, tau)
    assert loss[1:5].isnan().all() and lse[1:5].isnan().all()
    torch.testing.assert_close(loss[[0, 5]], expected[[0, 5]], rtol=0, atol=0)
    for deterministic in (False, True):
        da, *_ = sampled_backward(a, b, c, index, tau, loss, torch.ones_like(loss), deterministic)
        touched = torch.zeros_like(da, dtype=torch.bool)
        i, j = index[1:5, :, 0].flatten(), index[1:5, :, 1].flatten()
        exists = (i >= 0) & (i < 5) & (j >= 0) & (j < 5) & (index[1:5, :, 2].flatten().abs() < 5)
        touched[i[exists], j[exists]] = True
        assert torch.equal(da.isnan(), touched)


@on("interpreter", "sm_100", "gpu")
def test_nan_cosines_and_temperatures_that_are_not_positive_give_nan():
    from multicontrast.losses.triton.sampled_triton import sampled_forward

    a, b, c, index = _case((5, 5, 5), 5, 9)
    for tau in (0.0, -0.1, float("nan")):
        assert sampled_forward(a, b, c, index, torch.tensor(tau, device=device()))[1].isnan().all()
    i, _, k = index[2, 4]
    b[i, k] = float("nan")
    hit = ((index[..., 0] == i) & (index[..., 2] == k)).any(1)
    loss = sampled_forward(a, b, c, index, torch.tensor(0.1, device=device()))[1]
    assert torch.equal(loss.isnan(), hit)


@on("sm_80", "gpu")
def test_the_deterministic_gradient_does_not_depend_on_the_order_of_additions():
    from multicontrast.losses.triton.sampled_triton import sampled_backward, sampled_forward

    a, b, c, index = _case((4, 4, 4), 24, 64)
    tau = torch.tensor(0.1, device=device())
    _, loss = sampled_forward(a, b, c, index, tau)
    grad = torch.rand_like(loss)

    def gradients(seed: int, deterministic: bool) -> tuple[Tensor, ...]:
        emulated(atomic_seed=seed, batch=1)
        return sampled_backward(a, b, c, index, tau, loss, grad, deterministic)

    first = gradients(0, True)
    for seed in range(1, 3):
        assert all(torch.equal(one, other) for one, other in zip(first, gradients(seed, True)))
    for one, other in zip(first, gradients(3, False)):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@on("interpreter", "gpu")
def test_deterministic_gradients_of_any_scale():
    """The unit of the sums follows the cotangent, to where its inverse would overflow."""
    from multicontrast.losses.triton.sampled_triton import sampled_backward, sampled_forward

    a, b, c, index = _case((4, 4, 4), 5, 9)
    tau = torch.tensor(0.1, device=device())
    _, loss = sampled_forward(a, b, c, index, tau)
    expected = sampled_backward(a, b, c, index, tau, loss, torch.ones_like(loss), True)
    for power, atol in ((-100, 2e-6), (-60, 2e-7), (60, 2e-7), (100, 2e-7)):
        results = sampled_backward(a, b, c, index, tau, loss, torch.full_like(loss, 2.0**power), True)
        for result, reference in zip(results, expected):
            torch.testing.assert_close(result * 2.0**-power, reference, rtol=1e-6, atol=atol)


@on("interpreter", "gpu")
def test_no_rows():
    from multicontrast.losses.triton.sampled_triton import sampled_backward, sampled_forward

    a, b, c, index = _case((4, 4, 4), 3, 5)
    tau = torch.tensor(0.1, device=device())
    _, loss = sampled_forward(a, b, c, index[:0], tau)
    assert loss.shape == (0,)
    assert all(not grad.any() for grad in sampled_backward(a, b, c, index[:0], tau, loss, loss))


@on(*COMPILED, "gpu", slow=("sm_80", "sm_100"))
def test_offsets_beyond_32_bits():
    """46,400 squared is past 2**31; the far corner of each block is all that is touched of its 8 GiB."""
    from multicontrast.losses.triton.sampled_triton import sampled_forward

    size = 46_400
    a, b, c, index = _case((4, 4, 4), 4, 20)
    tau = torch.tensor(0.1, device=device())
    _, expected = sampled_forward(a, b, c, index, tau)
    large = [torch.empty(size, size, device=device()) for _ in range(3)]
    for block, far in zip((a, b, c), large):
        far[-4:, -4:] = block
    _, loss = sampled_forward(*large, index + (size - 4), tau)
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
