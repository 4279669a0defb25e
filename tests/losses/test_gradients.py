"""Derivatives of every order, and finite gradients where other implementations have NaN."""

import math

import pytest
import torch

import multicontrast as mc
from multicontrast.losses import cpu
from tests.losses.inputs import SCHEMES, SIMILARITIES, assert_same, assert_transforms_agree, embeddings


def index(size: int, count: int = 3) -> torch.Tensor:
    return mc.sample_tuples(size, count, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("similarity", ["eigenvalue", "mean_cosine"])
@pytest.mark.parametrize("negatives", ["index", "tied", "all"])
def test_first_and_second_derivatives(similarity, negatives):
    inputs = [*embeddings(3, 4, dim=3), torch.tensor(0.4, dtype=torch.float64, requires_grad=True)]
    chosen = index(4) if negatives == "index" else negatives

    def loss(*inputs):
        return mc.trimodal_infonce(*inputs, similarity=similarity, negatives=chosen)

    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


def test_pairwise_second_derivatives():
    inputs = [*embeddings(2, 4, dim=3), torch.tensor(0.4, dtype=torch.float64, requires_grad=True)]
    assert torch.autograd.gradcheck(mc.pairwise_infonce, inputs)
    assert torch.autograd.gradgradcheck(mc.pairwise_infonce, inputs)


@pytest.mark.parametrize("similarity", ["eigenvalue", "volume"])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_gradient_by_a_temperature_whose_logits_to_the_base_two_are_the_similarities(similarity, normalize):
    """Nothing scales them then, and they are still read after the powers are taken."""
    inputs = [torch.nn.functional.normalize(x.detach(), dim=1) for x in embeddings(3, 5)]
    tau = torch.tensor(math.log2(math.e), dtype=torch.float64, requires_grad=True)
    options = {"similarity": similarity, "negatives": "tied", "normalize": normalize}
    got, expected = (mc.triplet_infonce(*inputs, tau, **options, impl=impl) for impl in ("cpu", "reference"))
    torch.testing.assert_close(torch.autograd.grad(got, tau), torch.autograd.grad(expected, tau))


@pytest.mark.parametrize("length", [1e-3, 30, 1e4])
@pytest.mark.parametrize("tau", [0.01, 0.02, 0.025, 0.5])
def test_powers_of_any_size(length, tau):
    """Sums of powers are checked unless the rows have length 1 and the temperature keeps them within float32."""
    x, y = embeddings(2, 7)
    taus = [torch.tensor(tau, dtype=dtype, requires_grad=True) for dtype in (torch.float64, torch.float32)]
    for other in (y, (-x).detach().requires_grad_()):  # the second has the smallest powers there are
        got = mc.pairwise_infonce(x.float(), other.float(), tau, impl="cpu")
        expected = mc.pairwise_infonce(x, other, tau, impl="reference")
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-6)
    rows = [(length * torch.nn.functional.normalize(x.detach(), dim=1)).requires_grad_() for x in (x, y)]
    wide, inputs = [*rows, taus[0]], [*(x.detach().float().requires_grad_() for x in rows), taus[1]]
    got = mc.pairwise_infonce(*inputs, normalize=False, impl="cpu")
    expected = mc.pairwise_infonce(*wide, normalize=False, impl="reference")
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-6)
    for grad, wanted in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(expected, wide)):
        assert (grad - wanted).norm() <= 1e-3 * wanted.norm() + 1e-6


def test_a_product_that_overflows_is_an_infinite_loss():
    x, y = (x.detach().float() for x in embeddings(2, 4))
    x[0], y[0] = 1e20 * x[0], -1e20 * x[0]
    for impl in ("cpu", "reference"):
        assert mc.pairwise_infonce(x, y, 0.1, normalize=False, impl=impl) == math.inf


def test_few_samples_with_many_negatives(monkeypatch):
    """All pairs in one pass, the tuples in several: their cosines are read to the end."""
    monkeypatch.setattr(cpu, "BLOCK_ENTRIES", 7)
    inputs = [*embeddings(3, 5), torch.tensor(0.4, dtype=torch.float64, requires_grad=True)]
    tuples = index(5)
    losses = [mc.trimodal_infonce(*inputs, negatives=tuples, impl=impl) for impl in ("cpu", "reference")]
    assert_same(*losses, inputs)


def test_the_gradient_may_be_taken_twice_from_one_graph():
    inputs = embeddings(3, 5)
    loss = mc.trimodal_infonce(*inputs, 0.2, negatives=index(5))
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    second = torch.autograd.grad(loss, inputs)
    for f, s in zip(first, second):
        assert torch.equal(f, s)


def test_changing_an_input_before_the_backward_pass_is_noticed():
    x, y = (x.detach() for x in embeddings(2, 4))
    x.requires_grad_()
    loss = mc.pairwise_infonce(x, y, 0.1, normalize=False)
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("negatives", [*SCHEMES, "all"])
@pytest.mark.parametrize("case", ["all equal", "two equal", "opposite", "orthogonal", "zero row", "all zero"])
def test_degenerate_batches_have_finite_gradients(case, negatives, similarity, dtype):
    size, dim = 4, 12
    x, y, z = (v.detach().to(dtype) for v in embeddings(3, size, dim))
    if case == "all equal":
        x = y = z = x[:1].expand(size, dim)
    elif case == "two equal":
        y = x
    elif case == "opposite":
        y, z = -x, -x
    elif case == "orthogonal":
        x, y, z = torch.eye(dim, dtype=dtype).view(3, size, dim)
    elif case == "zero row":
        y[1] = 0
    else:
        x, y, z = torch.zeros(3, size, dim, dtype=dtype)
    inputs = [v.clone().requires_grad_() for v in (x, y, z)]
    tau = torch.tensor(0.1, dtype=dtype, requires_grad=True)
    for reduction in ("mean", "none"):
        loss = mc.trimodal_infonce(*inputs, tau, similarity=similarity, negatives=negatives, reduction=reduction).sum()
        assert math.isfinite(loss.item())
        for grad in torch.autograd.grad(loss, [*inputs, tau]):
            assert grad.isfinite().all()


@pytest.mark.parametrize("exponent", [-30, -15, 15, 30])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_rows_of_any_scale(exponent, reduction):
    """The loss does not see the scale of the rows, and the gradient is divided by it."""
    inputs = [x.detach().float().requires_grad_() for x in embeddings(3, 6)]
    scale = torch.tensor(2.0 ** (3.3 * exponent))
    scaled = [(x.detach() * scale).requires_grad_() for x in inputs]
    chosen = index(6)
    plain = mc.trimodal_infonce(*inputs, 0.2, negatives=chosen, reduction=reduction).sum()
    moved = mc.trimodal_infonce(*scaled, 0.2, negatives=chosen, reduction=reduction).sum()
    torch.testing.assert_close(moved, plain)
    for g, e in zip(torch.autograd.grad(moved, scaled), torch.autograd.grad(plain, inputs)):
        torch.testing.assert_close(g * scale, e, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("negatives", [*SCHEMES, "all"])
def test_non_finite_input_gives_nan_and_never_a_number(negatives, reduction, value):
    inputs = [x.detach().float() for x in embeddings(3, 5)]
    inputs[1][2, 3] = value
    for similarity in SIMILARITIES:
        loss = mc.trimodal_infonce(*inputs, 0.2, similarity=similarity, negatives=negatives, reduction=reduction)
        assert loss.isnan().any()
        if reduction == "none":
            assert loss[2].isnan()


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("negatives", [*SCHEMES, "all"])
def test_one_sample_has_the_loss_zero(negatives, similarity):
    inputs = embeddings(3, 1)
    for reduction in ("mean", "sum", "none"):
        loss = mc.triplet_infonce(*inputs, 0.1, negatives=negatives, similarity=similarity, reduction=reduction)
        assert loss.sum().item() == 0
        for grad in torch.autograd.grad(loss.sum(), inputs):
            assert torch.equal(grad, torch.zeros_like(grad))


def test_transforms_of_torch_func():
    """vmap over batches, grad and jvp agree with ordinary autograd."""
    stacked = torch.stack([torch.stack(embeddings(3, 4, seed=s)).detach() for s in range(3)])
    chosen = index(4)

    def loss(xs):
        return mc.trimodal_infonce(*xs.unbind(0), 0.2, negatives=chosen)

    assert_transforms_agree(loss, stacked)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    inputs = [x.detach().to(dtype).requires_grad_() for x in embeddings(3, 6)]
    wide = [x.detach().float().requires_grad_() for x in inputs]
    chosen = index(6)
    loss = mc.trimodal_infonce(*inputs, 0.1, negatives=chosen)
    expected = mc.trimodal_infonce(*wide, 0.1, negatives=chosen)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    for g, e in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, wide)):
        assert g.dtype == dtype
        torch.testing.assert_close(g, e.to(dtype))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autocast_changes_nothing(reduction):
    inputs = [x.detach().float().requires_grad_() for x in embeddings(3, 6)]
    chosen = index(6)
    expected = mc.trimodal_infonce(*inputs, 0.1, negatives=chosen, reduction=reduction)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = mc.trimodal_infonce(*inputs, 0.1, negatives=chosen, reduction=reduction)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


def test_mixed_types_are_promoted():
    x, y = (x.detach() for x in embeddings(2, 4))
    assert mc.pairwise_infonce(x.float(), y, 0.1).dtype == torch.float64
    assert mc.pairwise_infonce(x.half(), y.bfloat16(), 0.1).dtype == torch.float32


def test_a_user_similarity_is_one_function():
    def cube_of_the_first(cosines):
        return cosines[0] ** 3

    inputs = embeddings(3, 5)
    for negatives in (index(5), "tied", "all"):
        fused = mc.triplet_infonce(*inputs, 0.3, similarity=cube_of_the_first, negatives=negatives)
        rows = mc.triplet_infonce(*inputs, 0.3, similarity=cube_of_the_first, negatives=negatives, reduction="none")
        torch.testing.assert_close(fused, rows.mean())
        first = torch.autograd.grad(fused, inputs, materialize_grads=True)
        second = torch.autograd.grad(rows.mean(), inputs, materialize_grads=True)
        for f, p in zip(first, second):
            torch.testing.assert_close(f, p)


# --- faults that were found once ---------------------------------------------------------------------------------


@pytest.mark.parametrize("negatives", ["permutation", "cyclic", "shared", "tied", "all"])
@pytest.mark.parametrize("similarity", ["eigenvalue", "singular_value", "volume", "area", "mean_cosine"])
def test_the_gradient_with_a_graph_is_the_gradient(similarity, negatives):
    """`create_graph=True` once gave the gradient over all tuples for every sampled scheme."""
    xs = [torch.randn(6, 5, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def loss():
        return mc.triplet_infonce(
            *xs, 0.3, similarity=similarity, negatives=negatives, generator=torch.Generator().manual_seed(1)
        )

    plain = torch.autograd.grad(loss(), xs)
    with_graph = torch.autograd.grad(loss(), xs, create_graph=True)
    torch.testing.assert_close([g.detach() for g in with_graph], list(plain), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("negatives", ["permutation", "cyclic", "tied", "all"])
def test_parameters_of_a_similarity_get_their_gradient(negatives, reduction):
    """Those of a module, and a tensor that a function closes over."""
    xs = [torch.randn(6, 5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    weights = torch.rand(3, dtype=torch.float64, requires_grad=True)

    class Closed:
        def __call__(self, cosines):
            return sum(w * cosine for w, cosine in zip(weights, cosines))

        def with_gradient(self, cosines):
            return self(cosines), [w.expand_as(cosine) for w, cosine in zip(weights, cosines)]

    for similarity in (lambda cosines: sum(w * cosine for w, cosine in zip(weights, cosines)), Closed()):
        loss = mc.triplet_infonce(
            *xs, 0.3, similarity=similarity, negatives=negatives, reduction=reduction,
            generator=torch.Generator().manual_seed(1),
        )  # fmt: skip
        (gradient,) = torch.autograd.grad(loss.sum(), weights)
        assert gradient.abs().min() > 0
