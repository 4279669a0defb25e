"""Eq. (4) over held Gram blocks and in tiles: the kernels against float64, straight from the equations."""

from __future__ import annotations

import pytest
import torch
from executors import EVERYWHERE, device, emulated, on
from torch import Tensor

PAIRS = ((0, 1), (0, 2), (1, 2))


def _units(xs: list[Tensor], present: Tensor | None, normalize: bool) -> list[Tensor]:
    if present is not None:
        xs = [torch.where(present[:, m, None], x, 0) for m, x in enumerate(xs)]
    if not normalize:
        return xs
    lengths = [x.norm(dim=1, keepdim=True) for x in xs]
    return [torch.where(length > 0, x / torch.where(length > 0, length, 1), 0) for x, length in zip(xs, lengths)]


def _cross_entropy(logits: Tensor, positive: Tensor, valid: Tensor) -> Tensor:
    return torch.cat((positive[:, None], logits.masked_fill(~valid, -torch.inf)), 1).logsumexp(1) - positive


def _pair(x: Tensor, y: Tensor, tau: Tensor, here: Tensor, ids: Tensor) -> Tensor:
    logits = x @ y.mT / tau
    valid = (ids[:, None] != ids) & here
    return torch.where(here, _cross_entropy(logits, logits.diagonal(), valid), 0)


def _triplet(units: list[Tensor], tau: Tensor, index: Tensor, present: Tensor, ids: Tensor) -> Tensor:
    size = len(ids)
    i, j, k = index.unbind(-1)
    x, y, z = units[0][i], units[1][j], units[2][k]
    a, b, c = ((u * v).sum(-1) for u, v in ((x, y), (x, z), (y, z)))
    one = torch.ones_like(a)
    gram = torch.stack((one, a, b, a, one, c, b, c, one), -1).unflatten(-1, (3, 3))
    logits = torch.linalg.eigvalsh(gram)[..., -1] / tau
    part = present.sum(1) >= 2
    there = torch.stack([present[:, m][rows] for m, rows in enumerate((i, j, k))])
    strange = torch.stack([ids[rows] != ids[:, None] for rows in (i, j, k)])
    valid = (there & strange).any(0) & (there.sum(0) >= 2) & part[i] & part[j] & part[k]
    valid[:, 0] = False
    loss = _cross_entropy(logits, logits[:, 0], valid)
    return torch.where(part, loss, torch.zeros(size, dtype=loss.dtype))


def _definition(xs, tau, terms, index, present, ids, weight, reduction, normalize):
    """The loss in float64; masks and index on the CPU."""
    units = _units(xs, present, normalize)
    size, count = len(xs[0]), len(xs)
    present = torch.ones(size, count, dtype=torch.bool) if present is None else present
    ids = torch.arange(size) if ids is None else ids
    weight = torch.ones(size, dtype=torch.float64) if weight is None else weight.double()
    found = []
    for (m, n), row, column in zip(terms.pairs, terms.rows, terms.columns):
        here = present[:, m] & present[:, n]
        loss = row * _pair(units[m], units[n], tau, here, ids) + column * _pair(units[n], units[m], tau, here, ids)
        found.append((loss, here))
    if index is not None:
        found.append((terms.alpha * _triplet(units, tau, index, present, ids), present.sum(1) >= 2))
    if reduction == "none":
        return sum(weight * loss for loss, _ in found)
    if reduction == "sum":
        return sum((weight * loss).sum() for loss, _ in found)
    return sum((weight * loss).sum() / (weight * here).sum() for loss, here in found)


def _check(
    xs, tau, terms, index=None, present=None, ids=None, weight=None, reduction="mean", normalize=True, slack=8.0
):
    """Value and every gradient, in eps of the largest logit or gradient."""
    from multicontrast.losses.triton import fused_triton as fused

    inputs = [x.double().cpu().requires_grad_() for x in xs]
    temperature = torch.tensor(tau, dtype=torch.float64, requires_grad=True)
    stored = None
    if index is not None:
        own = torch.arange(len(xs[0]))[:, None]
        stored = index
        if terms.scheme == "shifts":
            stored = torch.stack((own.expand(-1, len(index)), *((own + s) % len(xs[0]) for s in index.unbind(1))), -1)
    expected = _definition(inputs, temperature, terms, stored, present, ids, weight, reduction, normalize)
    cotangent = torch.rand_like(expected)
    grads = torch.autograd.grad((expected * cotangent).sum(), [*inputs, temperature])

    def move(given):
        return None if given is None else given.to(device())

    samples = fused.Samples(move(present), move(ids), move(weight))
    t = torch.tensor(tau, device=device())
    rows, scale, power = fused.prepare(xs, samples.present, terms, normalize)
    grams = rows if terms.tiled else fused.products(rows)
    loss, sums = fused.forward(grams, scale, t, terms, samples, move(index), reduction)
    results, dtau = fused.backward(
        grams, rows, scale, power, t, terms, samples, move(index), sums, cotangent.float().to(device()), normalize
    )
    eps = torch.finfo(torch.float32).eps
    scale_of = max(1.0, 1 / tau)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double().cpu(), expected.detach(), rtol=slack * eps, atol=slack * eps * scale_of)
    for x, result, reference in zip((*xs, t), (*results, dtau), grads):
        assert result.dtype == x.dtype and result.shape == x.shape
        own_eps = torch.finfo(x.dtype).eps
        tolerance = slack * max(own_eps, eps * scale_of) * float(reference.abs().max()) + 1e-30
        torch.testing.assert_close(result.double().cpu(), reference, rtol=0, atol=tolerance)
    found, wanted = (loss, *results, dtau), (expected.detach(), *grads)
    return [float((one.double().cpu() - other).abs().max()) for one, other in zip(found, wanted)], cotangent


def _terms(pairs=PAIRS, alpha=0.7, scheme="shifts", symmetric=True):
    from multicontrast.losses.triton.fused_triton import Terms

    share = 0.5 if symmetric else 1.0
    return Terms(tuple(pairs), (share,) * len(pairs), (share * symmetric,) * len(pairs), alpha, scheme)


def _embeddings(size: int, depth: int, count: int = 3) -> list[Tensor]:
    shared = torch.randn(size, depth)
    return [(shared + torch.randn(size, depth)).to(device()) for _ in range(count)]


def _shifts(size: int, count: int) -> Tensor:
    """``(1 + K, 2)``, the positive first."""
    drawn = torch.stack([torch.randperm(size - 1)[:count] + 1 for _ in range(2)])
    return torch.cat((torch.zeros(2, 1, dtype=torch.int64), drawn), 1).mT


@on(*EVERYWHERE, slow=("sm_90", "sm_100"))
def test_pairs_and_triplets_by_shifts():
    emulated(noise=1.0)
    _check(_embeddings(21, 13), 0.2, _terms(), _shifts(21, 20))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@on("interpreter", "sm_80", "gpu", slow=("sm_80",))
def test_masks_weights_and_an_index(reduction):
    size = 11
    present = torch.rand(size, 3) < 0.7
    present[:3] = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]], dtype=torch.bool)
    ids = torch.randint(6, (size,))
    weight = torch.rand(size)
    index = torch.randint(size, (size, 1 + 15, 3))
    index[:, 0] = torch.arange(size)[:, None]
    xs = _embeddings(size, 7)
    for m, x in enumerate(xs):
        x[~present[:, m].to(x.device)] = float("nan")  # whatever an absent row holds
    _check(xs, 0.3, _terms(scheme="index"), index, present, ids, weight, reduction)
    _check(_embeddings(size, 7), 0.3, _terms(), _shifts(size, 10), ids=ids, reduction=reduction)


@on("interpreter", "sm_90", "gpu", slow=("sm_90",))
def test_subsets_of_terms():
    _check(_embeddings(18, 9, 2), 0.1, _terms(PAIRS[:1], 0.0))
    _check(_embeddings(18, 9, 2), 0.1, _terms(PAIRS[:1], 0.0, symmetric=False))
    _check(_embeddings(18, 9), 0.1, _terms(PAIRS[:2], 0.0))
    no_pairs = _terms()._replace(rows=(0.0,) * 3, columns=(0.0,) * 3)
    _check(_embeddings(18, 9), 0.1, no_pairs, _shifts(18, 5))
    _check(
        [x / x.norm(dim=1, keepdim=True) for x in _embeddings(18, 9)], 0.1, _terms(), _shifts(18, 5), normalize=False
    )


@on("interpreter", "sm_80", "gpu", slow=("sm_80",))
def test_rows_of_any_scale_and_zero_rows():
    xs = _embeddings(17, 9)
    scales = torch.logspace(-30, 30, 17).to(device())[:, None]
    from multicontrast.losses.triton import fused_triton as fused

    terms, index = _terms(), _shifts(17, 16).to(device())
    nothing = fused.Samples(None, None, None)
    tau = torch.tensor(0.1, device=device())

    def run(xs):
        rows, scale, power = fused.prepare(xs, None, terms, True)
        grams = fused.products(rows)
        loss, sums = fused.forward(grams, scale, tau, terms, nothing, index, "mean")
        one = torch.ones((), device=device())
        return loss, *fused.backward(grams, rows, scale, power, tau, terms, nothing, index, sums, one, True)

    loss, grads, dtau = run(xs)
    scaled_loss, scaled_grads, scaled_dtau = run([x * scales for x in xs])
    torch.testing.assert_close(scaled_loss, loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scaled_dtau, dtau, rtol=1e-4, atol=1e-5)
    for grad, scaled in zip(grads, scaled_grads):
        torch.testing.assert_close(scaled * scales, grad, rtol=1e-4, atol=1e-5 * float(grad.abs().max()))
    xs[1][4] = 0
    loss, grads, dtau = run(xs)
    assert loss.isfinite() and dtau.isfinite() and all(grad.isfinite().all() for grad in grads)
    assert not grads[1][4].any()


@on("interpreter", "sm_80", "gpu", slow=("sm_80",))
def test_a_tiny_temperature():
    """At tau = 1e-8 a softmax has one entry: its gradient is that of the nearest, not a multiple of it."""
    from multicontrast.losses.triton import fused_triton as fused

    terms = _terms(PAIRS[:1], 0.0)
    xs = _embeddings(40, 16, 2)
    tau = torch.tensor(1e-8, device=device())
    rows, scale, _ = fused.prepare(xs, None, terms, True)
    grams = fused.products(rows)
    nothing = fused.Samples(None, None, None)
    _, sums = fused.forward(grams, scale, tau, terms, nothing, None, "mean")
    dgrams, _ = fused.gram_gradient(grams, scale, tau, terms, nothing, None, sums, torch.ones((), device=device()))
    cosines = (grams[0] * scale[0][:, None] * scale[1]).double().cpu()
    own = torch.eye(40, dtype=torch.float64)
    by_row = torch.nn.functional.one_hot(cosines.argmax(1), 40) - own
    by_column = torch.nn.functional.one_hot(cosines.argmax(0), 40).mT - own
    expected = (by_row + by_column) / 2 / 40 / 1e-8
    got = (dgrams[0] / scale[0][:, None] / scale[1]).double().cpu()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 / 1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@on("interpreter", "sm_80", "gpu", slow=("sm_80",))
def test_half_precision(dtype):
    xs = [x.to(dtype) for x in _embeddings(19, 12)]
    _check(xs, 0.2, _terms(), _shifts(19, 18))


@pytest.mark.parametrize("power", [83, -83])
@on("interpreter", "gpu")
def test_rows_of_bfloat16_of_any_size(power):
    """Their squares leave the range of float32."""
    _check([(x * 2.0**power).bfloat16() for x in _embeddings(19, 12)], 0.2, _terms(), _shifts(19, 18))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@on("interpreter", "gpu")
def test_half_precision_errs_less_than_under_autocast(dtype):
    """The loss and every gradient of three pairs: PyTorch rounds the unit rows and the cosines to half precision."""
    xs = [x.to(dtype) for x in _embeddings(48, 24)]
    errors, cotangent = _check(xs, 0.1, _terms(alpha=0.0))

    def autocast(inputs, tau, narrow):
        units = [narrow(torch.nn.functional.normalize(x, dim=1)) for x in inputs]
        logits = [narrow(units[m] @ units[n].mT).to(tau.dtype) / tau for m, n in PAIRS]
        own = torch.arange(48)
        return sum(torch.nn.functional.cross_entropy(one, own) / 2 for z in logits for one in (z, z.mT))

    found = []
    for wide, narrow in ((torch.float64, lambda x: x), (torch.float32, lambda x: x.to(dtype))):
        leaves = [x.cpu().to(wide).requires_grad_() for x in xs]
        tau = torch.tensor(0.1, dtype=wide, requires_grad=True)
        loss = autocast(leaves, tau, narrow)
        grads = torch.autograd.grad(loss, [*leaves, tau], cotangent.to(wide))
        kept = [grad if wide == torch.float64 or k == 3 else grad.to(dtype) for k, grad in enumerate(grads)]
        found.append([value.detach().double() for value in (loss, *kept)])
    theirs = [float((other - one).abs().max()) for one, other in zip(*found)]
    assert all(own <= other for own, other in zip(errors, theirs)), (errors, theirs)


@on("interpreter", "sm_90", "gpu", slow=("sm_90",))
def test_invalid_temperatures_and_members_that_do_not_exist_give_nan():
    from multicontrast.losses.triton import fused_triton as fused

    xs = _embeddings(9, 5)
    nothing = fused.Samples(None, None, None)
    index = torch.randint(9, (9, 6, 3)).to(device())
    terms = _terms(scheme="index")
    rows, scale, _ = fused.prepare(xs, None, terms, True)
    grams = fused.products(rows)
    for tau in (0.0, -1.0, float("nan")):
        loss, _ = fused.forward(grams, scale, torch.tensor(tau, device=device()), terms, nothing, index, "none")
        assert loss.isnan().all()
    index[2, 3, 1], index[5, 0, 2] = 9, -1
    for ids in (None, torch.arange(9, device=device())):
        given = fused.Samples(None, ids, None)
        loss, _ = fused.forward(grams, scale, torch.tensor(0.1, device=device()), terms, given, index, "none")
        assert loss.isnan().nonzero().flatten().tolist() == [2, 5]
