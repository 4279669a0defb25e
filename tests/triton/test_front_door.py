"""The public losses with Triton as back end: the same results, from kernels where they exist."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from executors import device, kind, on
from torch import Tensor

import multicontrast as mc
from tests.losses.inputs import trimodal_of_range

TAU = 0.1
Loss = Callable[[list[Tensor], Tensor, Tensor], Tensor]

# Loss, its definition, and the kernels that must have run for it; none where plain PyTorch does the work.
SAMPLED_KERNELS = {"_sampled_forward_kernel", "_sampled_backward_kernel"}
EXACT_KERNELS = {"_exact_forward_kernel", "_exact_gradient_kernel"}
WHOLE = {"_prepare_kernel", "_embedding_gradient_kernel", "_reduce_kernel"}
HELD_PAIRS = WHOLE | {"_pair_sums_kernel", "_pair_losses_kernel", "_pair_gradient_kernel"}
TILED_PAIRS = WHOLE | {"_tile_sums_kernel", "_pair_losses_kernel", "_tile_gradient_kernel"}
HELD_TRIPLETS = WHOLE | {"_triplet_losses_kernel", "_triplet_gradient_kernel"}
ALL_KERNELS = TILED_PAIRS | SAMPLED_KERNELS | EXACT_KERNELS | HELD_PAIRS | HELD_TRIPLETS


def _pairwise(symmetric: bool = True, **options: object) -> Loss:
    return lambda xs, tau, _: mc.pairwise_infonce(xs[0], xs[1], tau, symmetric=symmetric, **options)


def _definitions():
    from tests import definitions

    return definitions


def _pair(xs: list[Tensor], tau: Tensor, _: Tensor) -> Tensor:
    return _definitions().pair_infonce(xs[0], xs[1], tau)


def _one_way(xs: list[Tensor], tau: Tensor, _: Tensor) -> Tensor:
    return _definitions().directed_infonce(xs[0], xs[1], tau)


def _sampled(xs: list[Tensor], tau: Tensor, index: Tensor) -> Tensor:
    return _definitions().sampled_infonce(xs, index, tau, "eigenvalue")


def _exact(xs: list[Tensor], tau: Tensor, _: Tensor) -> Tensor:
    return _definitions().exact_infonce(xs, tau)


def _trimodal(tuples: Loss, alpha: float = 1.0) -> Loss:
    return lambda xs, tau, index: _definitions().three_pairs(xs, tau) + alpha * tuples(xs, tau, index).mean()


def _drawn(scheme: str) -> tuple[Loss, Loss, set[str]]:
    """A scheme that the loss draws, and the index that it stands for."""

    def options() -> dict[str, object]:
        count = None if scheme == "tied" else 7
        return {"num_negatives": count, "generator": torch.Generator().manual_seed(3)}

    def definition(xs: list[Tensor], tau: Tensor, _: Tensor) -> Tensor:
        return _trimodal(_sampled)(xs, tau, mc.sample_tuples(len(xs[0]), 3, scheme=scheme, **options()))

    return (
        lambda xs, tau, _: mc.trimodal_infonce(*xs, tau, negatives=scheme, **options()),
        definition,
        HELD_PAIRS | HELD_TRIPLETS,
    )


CASES: dict[str, tuple[Loss, Loss, set[str]]] = {
    "pairwise": (_pairwise(), _pair, HELD_PAIRS),
    "pairwise, one direction, each row": (_pairwise(False, reduction="none"), _one_way, HELD_PAIRS),
    "pairwise, tiled": (_pairwise(tiled=True), _pair, TILED_PAIRS),
    "pairs of three": (
        lambda xs, tau, _: mc.trimodal_infonce(*xs, tau, alpha=0.0),
        lambda xs, tau, _: _definitions().three_pairs(xs, tau),
        HELD_PAIRS,
    ),
    "triplet": (
        lambda xs, tau, index: mc.triplet_infonce(*xs, tau, negatives=index, reduction="none"),
        _sampled,
        HELD_TRIPLETS,
    ),
    "triplet, all": (
        lambda xs, tau, _: mc.triplet_infonce(*xs, tau, negatives="all", reduction="none"),
        _exact,
        EXACT_KERNELS,
    ),
    **{f"trimodal, {scheme}": _drawn(scheme) for scheme in ("permutation", "shared", "cyclic", "tied")},
    "trimodal": (
        lambda xs, tau, index: mc.trimodal_infonce(*xs, tau, negatives=index, alpha=0.5),
        _trimodal(_sampled, 0.5),
        HELD_PAIRS | HELD_TRIPLETS,
    ),
    "trimodal, int32 index": (
        lambda xs, tau, index: mc.trimodal_infonce(*xs, tau, negatives=index.int()),
        _trimodal(_sampled),
        HELD_PAIRS | HELD_TRIPLETS,
    ),
    "trimodal, all": (
        lambda xs, tau, _: mc.trimodal_infonce(*xs, tau, negatives="all"),
        _trimodal(_exact),
        EXACT_KERNELS,
    ),
    "trimodal, tiled": (
        lambda xs, tau, index: mc.trimodal_infonce(*xs, tau, negatives=index, tiled=True),
        _trimodal(_sampled),
        TILED_PAIRS,
    ),
    "volume": (
        lambda xs, tau, index: mc.triplet_infonce(*xs, tau, negatives=index, similarity="volume", reduction="none"),
        lambda xs, tau, index: _definitions().sampled_infonce(xs, index, tau, "volume"),
        set(),
    ),
}


def _inputs(size: int, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor, Tensor]:
    shared = torch.randn(size, 12, dtype=torch.float64)
    xs = [(shared + torch.randn(size, 12, dtype=torch.float64)).to(device(), dtype) for _ in range(3)]
    xs = [(3.0 * x).requires_grad_() for x in xs]
    tau = torch.tensor(TAU, dtype=dtype, device=device(), requires_grad=True)
    index = mc.sample_tuples(size, 3, num_negatives=7, generator=torch.Generator().manual_seed(0))
    return xs, tau, index.to(device())


def _launched(run: Callable[[], None]) -> set[str] | None:
    """The names of the kernels that ran, or None where nobody keeps a record."""
    if not kind().startswith("sm_"):
        run()
        return None
    from ptx import driver

    driver.launches.clear()
    run()
    return {launch.kernel for launch in driver.launches}


@pytest.mark.parametrize("case", CASES)
@on("sm_90", "gpu")
def test_losses_equal_their_definitions_and_run_their_kernels(case):
    loss, definition, kernels = CASES[case]
    xs, tau, index = _inputs(19)
    leaves = [*xs, tau]
    found: list[Tensor] = []

    def run() -> None:
        value = loss(xs, tau, index)
        cotangent = torch.linspace(0.5, 1.5, value.numel(), device=device()).view_as(value)
        found.append(value)
        found.extend(torch.autograd.grad(value, leaves, cotangent, allow_unused=True, materialize_grads=True))

    launched = _launched(run)
    if launched is not None:
        assert launched & ALL_KERNELS == kernels, launched
    doubles = [leaf.detach().double().cpu().requires_grad_() for leaf in leaves]
    expected = definition(doubles[:3], doubles[3], index.cpu())
    cotangent = torch.linspace(0.5, 1.5, expected.numel(), dtype=torch.float64).view_as(expected)
    grads = torch.autograd.grad(expected, doubles, cotangent, allow_unused=True, materialize_grads=True)
    eps = torch.finfo(torch.float32).eps
    # A logit errs by a few eps / tau, and so does every softmax's weight; the gradient by tau holds another 1 / tau.
    for result, reference, scale in zip(found, (expected, *grads), (1.0, 1.0, 1.0, 1.0, 1 / TAU)):
        tolerance = 8 * eps / TAU * scale * max(1.0, float(reference.detach().abs().max()))
        torch.testing.assert_close(result.detach().double().cpu(), reference.detach(), rtol=0, atol=tolerance)


@on("interpreter", "gpu")
def test_what_has_no_kernel_is_handed_back_and_keeps_its_value():
    """Other similarities, types and transforms give the numbers of plain PyTorch."""
    import os

    xs, tau, index = _inputs(9)
    doubles = [x.detach().double() for x in xs]
    calls: list[Callable[[], Tensor]] = [
        lambda: mc.triplet_infonce(*xs, tau, negatives=index, similarity="singular_value"),
        lambda: mc.triplet_infonce(*xs, tau, negatives="all", anchor="any"),
        lambda: mc.multimodal_infonce([*xs, xs[0].flip(0)], tau, generator=torch.Generator().manual_seed(1)),
        lambda: mc.pairwise_infonce(*doubles[:2], 0.1),
        lambda: mc.trimodal_infonce(*doubles, 0.1, negatives=index),
        lambda: mc.pairwise_infonce(xs[0][:1], xs[1][:1], tau),
        lambda: torch.func.vmap(lambda x: mc.pairwise_infonce(x, xs[1], 0.1))(torch.stack([xs[0], xs[2]])),
        lambda: torch.func.jvp(lambda x: mc.pairwise_infonce(x, xs[1], 0.1), (xs[0],), (xs[2],))[1],
        lambda: torch.func.grad(lambda x: mc.trimodal_infonce(x, xs[1], xs[2], 0.1, negatives=index))(xs[0]),
    ]
    for call in calls:
        result = call()
        os.environ["MULTICONTRAST_BACKEND"] = "torch"
        try:
            expected = call()
        finally:
            os.environ["MULTICONTRAST_BACKEND"] = "triton"
        rtol, atol = (1e-12, 1e-12) if result.dtype == torch.float64 else (1e-4, 1e-5)
        torch.testing.assert_close(result, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("negatives", ["index", "any index", "permutation", "shared", "cyclic", "tied", "all"])
@on("interpreter", "gpu")
def test_ranges_of_anchors_add_up_to_the_whole(negatives):
    xs, tau, index = _inputs(9)
    if negatives == "any index":
        index = index[torch.randperm(9, device=index.device)]  # whose rows are not their own anchors

    def loss(anchors: tuple[int, int] | None) -> Tensor:
        start, stop = anchors or (0, 9)
        given = index[start:stop] if "index" in negatives else negatives
        generator = torch.Generator().manual_seed(2)
        options = {"negatives": given, "pairs": ((0, 1), (1, 2)), "reduction": "sum"}
        return trimodal_of_range(xs, tau, anchors, generator=generator, **options)

    whole = loss(None)
    parts = loss((0, 2)) + loss((2, 3)) + loss((3, 9))
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    leaves = [*xs, tau]
    for part, expected in zip(torch.autograd.grad(parts, leaves), torch.autograd.grad(whole, leaves)):
        torch.testing.assert_close(part, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


@on("interpreter", "gpu")
def test_a_batch_of_one_has_the_loss_and_the_gradient_zero():
    x, y = (torch.randn(1, 5, device=device(), requires_grad=True) for _ in range(2))
    loss = mc.pairwise_infonce(x, y, 0.1)
    assert loss == 0
    assert not any(grad.any() for grad in torch.autograd.grad(loss, (x, y)))


@on("interpreter", "gpu")
def test_bad_temperatures_and_members_are_nan_where_values_cannot_be_read():
    """A CUDA tensor's values are not looked at; neither is a tensor's under compilation."""
    xs, tau, index = _inputs(6)
    index[2, 1, 1] = 99
    bad = torch.tensor(-0.1, device=device())

    def losses(tau: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        triplet = mc.triplet_infonce(*xs, tau, negatives=index, reduction="none")
        return mc.pairwise_infonce(xs[0], xs[1], tau), triplet, mc.trimodal_infonce(*xs, tau, negatives="all")

    compiled = torch.compile(losses, backend="eager", fullgraph=True)
    _, triplet, _ = compiled(tau, index)
    assert triplet.isnan().nonzero().flatten().tolist() == [2]
    assert all(result.isnan().all() for result in compiled(bad, index))


@on("interpreter", "gpu")
def test_losses_are_one_graph_for_the_compiler_and_differentiable_twice():
    xs, tau, index = _inputs(6)

    def loss(x: Tensor, y: Tensor, z: Tensor, tau: Tensor) -> Tensor:
        return mc.trimodal_infonce(x, y, z, tau, negatives=index) + mc.pairwise_infonce(x, y, tau, tiled=True)

    expected = torch.autograd.grad(loss(*xs, tau), [*xs, tau])
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(*xs, tau), [*xs, tau]), expected)
    first = torch.autograd.grad(loss(*xs, tau), [*xs, tau], create_graph=True)
    second = torch.autograd.grad(sum(grad.square().sum() for grad in first), [*xs, tau])
    doubles = [x.detach().double().requires_grad_() for x in (*xs, tau)]
    first = torch.autograd.grad(loss(*doubles), doubles, create_graph=True)
    reference = torch.autograd.grad(sum(grad.square().sum() for grad in first), doubles)
    for result, expected in zip(second, reference):
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.slow
@on("torch", "interpreter")
def test_inductor_compiles_the_whole_loss():
    """On CPU tensors; `test_on_a_gpu.py` tests the same on a GPU."""
    xs, tau, index = _inputs(9)

    def loss(x: Tensor, y: Tensor, z: Tensor, tau: Tensor) -> Tensor:
        return mc.trimodal_infonce(x, y, z, tau, negatives=index) + mc.pairwise_infonce(x, y, tau, tiled=True)

    results = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*xs, tau), [*xs, tau])
    for result, expected in zip(results, torch.autograd.grad(loss(*xs, tau), [*xs, tau])):
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
