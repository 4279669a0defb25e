"""Half precision, autocast, scaled gradients; compilation, export, no wait for the device, and deterministic mode."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter
from torch._functorch.aot_autograd import make_boxed_func
from torch._subclasses.fake_tensor import FakeTensorMode

import multicontrast as mc
from multicontrast.losses import reference
from tests.losses.inputs import SIMILARITIES, embeddings

INDEX = mc.sample_tuples(9, 3, num_negatives=5, generator=torch.Generator().manual_seed(0))
LOSSES: dict[str, Any] = {
    "pairs": lambda x, y, _, tau: mc.pairwise_infonce(x, y, tau),
    "pairs in tiles": lambda x, y, _, tau: mc.pairwise_infonce(x, y, tau, tiled=True),
    "an index": lambda x, y, z, tau: mc.triplet_infonce(x, y, z, tau, negatives=INDEX.to(x.device)),
    "all": lambda x, y, z, tau: mc.triplet_infonce(x, y, z, tau, negatives="all"),
    "trimodal": lambda x, y, z, tau: mc.trimodal_infonce(x, y, z, tau, negatives="tied"),
    "masked": lambda x, y, z, tau: mc.trimodal_infonce(
        x, y, z, tau, negatives="tied", ids=torch.arange(9, device=x.device) // 2, label_smoothing=0.1
    ),
}


def inputs(dtype: torch.dtype, tau: float = 0.1) -> list[Tensor]:
    """Embeddings that are exact in ``dtype``, and a temperature in float32 at least."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    xs = [x.detach().to(dtype).requires_grad_() for x in embeddings(3, 9)]
    return [*xs, torch.tensor(tau, dtype=wide, requires_grad=True)]


def loss_and_gradients(loss: Any, values: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    result = loss(*values)
    return result.detach(), list(torch.autograd.grad(result, values, materialize_grads=True))


@pytest.mark.parametrize("tau", [0.1, 0.01], ids=["tau 0.1", "the clamp of CLIP"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_the_softmax_is_float32_at_least_whatever_comes(name, dtype, autocast, tau):
    """Against float64 on the very same rows: logits of bfloat16 would be off by a quarter at a scale of 100."""
    given = inputs(dtype, tau)
    with torch.autocast("cpu", dtype=autocast) if autocast is not None else contextlib.nullcontext():
        value = LOSSES[name](*given)
    grads = torch.autograd.grad(value, given, materialize_grads=True)
    value = value.detach()
    exact = [x.detach().double().requires_grad_() for x in given]
    expected, wanted = loss_and_gradients(LOSSES[name], exact)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    eps = torch.finfo(value.dtype).eps
    torch.testing.assert_close(value.double(), expected, rtol=0, atol=32 * eps / tau)
    for grad, other, x in zip(grads, wanted, given):
        assert grad.dtype == x.dtype
        # The gradient is rounded to the type of its row at the very end.
        rounding = torch.finfo(x.dtype).eps * other.abs().max().item()
        torch.testing.assert_close(grad.double(), other, rtol=0, atol=2 * rounding + 64 * eps / tau**2)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_half_precision_rows_are_the_rows_themselves(similarity):
    """Cosines are taken in float32 from the rows as they are: volumes and areas of close tuples keep their digits."""
    close = [x.detach().bfloat16() for x in embeddings(3, 9, scale=0.02)]
    half = mc.triplet_infonce(*close, 0.1, negatives="tied", similarity=similarity)
    single = mc.triplet_infonce(*(x.float() for x in close), 0.1, negatives="tied", similarity=similarity)
    assert torch.equal(half, single)


def test_scaled_gradients_train_in_float16():
    """GradScaler with a float16 encoder: the same steps as float32, to what float16 rows can hold."""
    ends = []
    for half in (False, True):
        torch.manual_seed(0)
        encoder, loss = nn.Linear(6, 4), mc.PairwiseInfoNCE(mc.Temperature(0.2, min=0.05))
        optimizer = torch.optim.SGD([*encoder.parameters(), *loss.parameters()], lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=half)
        x, y = torch.randn(2, 16, 6, generator=torch.Generator().manual_seed(1))
        for _ in range(5):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16, enabled=half):
                features = encoder(x), encoder(y)
                assert features[0].dtype == (torch.float16 if half else torch.float32)
                value = loss(*features)
            scaler.scale(value).backward()
            scaler.step(optimizer)
            scaler.update()
        ends.append([p.detach().clone() for p in (*encoder.parameters(), *loss.parameters())])
        assert scaler.get_scale() >= (2.0**12 if half else 1)  # no step was skipped for an overflow
    for single, half in zip(*ends):
        torch.testing.assert_close(half, single, rtol=2e-2, atol=2e-3)


# --- Graphs -----------------------------------------------------------------------------------------------------------


class Whole(nn.Module):
    """What a user compiles: a loss that owns its temperature."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.temperature = name, mc.Temperature(0.2, min=0.1)

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return LOSSES[self.name](x, y, z, self.temperature())


@pytest.mark.parametrize("name", ["trimodal", "an index", "all"])
def test_one_graph_forward_and_backward(name):
    torch._dynamo.reset()
    module = Whole(name)
    values = inputs(torch.float32)[:3]
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    value, grads = loss_and_gradients(compiled, values)
    expected, wanted = loss_and_gradients(module, values)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grads, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*divides by `tau`")
def test_a_compiler_sees_the_formulas_of_all_triplets():
    """No operator hides them from fusion, one graph serves every size of the batch and scale of the rows, and the
    gradient is that of float64, ties and zeros included."""
    torch._dynamo.reset()
    graphs = []

    def compiler(graph: Any, example_inputs: Any) -> Any:
        operators = (node for node in graph.graph.nodes if "multicontrast" in str(node.target))
        graphs.append([node.args[0].meta["val"].dim() for node in operators])
        return make_boxed_func(graph.forward)

    def loss(x: Tensor, y: Tensor, z: Tensor, tau: Tensor) -> Tensor:
        losses = mc.triplet_infonce(x, y, z, tau, negatives="all", normalize=False, reduction="none")
        return (losses * torch.arange(1, 1 + losses.numel())).sum()

    backend = aot_autograd(fw_compiler=compiler, bw_compiler=compiler)
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=backend)
    for size, scale in itertools.product((9, 7), (1.0, 2.0**-20, 2.0**20)):
        *xs, tau = inputs(torch.float32)
        with torch.no_grad():
            for x in xs:
                x[3], x[4] = 0, 0
            for m, x in enumerate(xs):  # all products -1: the largest eigenvalue is double
                x[4, m], x[4, (m + 1) % 3] = 1, -1
        scaled = *(x[:size] * scale for x in xs), tau * scale**2
        values = [x.detach().requires_grad_() for x in scaled]
        result, grads = loss_and_gradients(compiled, values)
        expected, wanted = loss_and_gradients(loss, [x.detach().double().requires_grad_() for x in values])
        torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=0)
        for grad, other in zip(grads, wanted):
            torch.testing.assert_close(grad.double(), other, rtol=0, atol=2e-5 * float(other.abs().max()))
    assert len(graphs) == 2
    assert {dim for graph in graphs for dim in graph} <= {1}  # the positives alone


def test_what_was_compiled_for_another_version_is_not_taken_from_the_disk():
    """PyTorch looks it up by the captured graph, which does not hold the formulas of the operators."""
    torch._dynamo.reset()
    arguments = []

    def compiler(graph: Any, example_inputs: Any) -> Any:
        shown = [node for node in graph.graph.nodes if "exact_logsumexp" in str(node.target)]
        arguments.extend(argument for node in shown for argument in node.args)
        return graph.forward

    torch.compile(LOSSES["all"], fullgraph=True, backend=compiler)(*inputs(torch.float32))
    assert mc.__version__ in arguments


def test_all_triplets_are_differentiable_twice_in_a_captured_graph():
    torch._dynamo.reset()
    values = inputs(torch.float64)
    compiled = torch.compile(LOSSES["all"], fullgraph=True, backend="eager")

    def curvature(loss: Any) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(loss(*values), values, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in first), values)

    torch.testing.assert_close(curvature(compiled), curvature(LOSSES["all"]))


@pytest.mark.parametrize("owned", [False, True])
def test_one_graph_for_every_size_of_the_batch_and_temperature(owned):
    torch._dynamo.reset()
    graphs = []

    def backend(graph: Any, example_inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    module = mc.TrimodalInfoNCE(0.2, negatives="tied")
    loss = (lambda x, y, z, _: module(x, y, z)) if owned else LOSSES["trimodal"]
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=backend)
    for size in (5, 8, 13):
        values = *(x.detach().float() for x in embeddings(3, size)), torch.tensor(1 / size)
        torch.testing.assert_close(compiled(*values), loss(*values))
    assert len(graphs) == 1


def test_numbers_that_follow_a_schedule_do_not_make_a_graph_at_every_step():
    torch._dynamo.reset()
    counter = CompileCounter()

    def loss(tau: float, alpha: float) -> Tensor:
        return mc.trimodal_infonce(*xs, tau, negatives="tied", alpha=alpha, hardness=alpha)

    xs = [x.detach() for x in inputs(torch.float32)[:3]]
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for step in range(1, 5):
        torch.testing.assert_close(compiled(0.1 * step, 1 / step), loss(0.1 * step, 1 / step))
    assert counter.frame_count <= 2  # the first takes the numbers for constants


@pytest.mark.skipif(
    torch.torch_version.TorchVersion(torch.__version__) < (2, 10),
    reason="older PyTorch (seen on 2.6) cannot export a parameter that is clamped in place under no_grad",
)
def test_export():
    module = Whole("trimodal")
    xs = tuple(x.detach() for x in inputs(torch.float32)[:3])
    exported = torch.export.export(module, xs).module()
    torch.testing.assert_close(exported(*xs), module(*xs))


@pytest.mark.skipif(
    torch.torch_version.TorchVersion(torch.__version__) < (2, 10) and not torch.cuda.is_available(),
    reason="fake CUDA tensors end the process without a CUDA device in older PyTorch",
)
@pytest.mark.parametrize("name", LOSSES)
def test_nothing_on_a_gpu_makes_the_host_wait(name, monkeypatch):
    """Fake tensors have no values: whatever looked at one would raise, so none of this breaks a CUDA graph. Where there
    is no CUDA device autograd has no queue for it; the backward pass is that of fake CPU tensors, whose values are not
    looked at either, and which take the same road."""
    monkeypatch.setenv("MULTICONTRAST_BACKEND", "torch")
    for device, backward in (("cuda", torch.cuda.is_available()), ("cpu", True)):
        with FakeTensorMode():
            values = [torch.empty(x.shape, device=device, requires_grad=True) for x in inputs(torch.float32)]
            index = torch.empty(INDEX.shape, dtype=torch.int64, device=device)
            if name == "an index":
                loss = mc.triplet_infonce(*values, negatives=index)
            else:
                loss = LOSSES[name](*values)
            assert loss.device.type == device
            if backward:
                grads = torch.autograd.grad(loss, values, materialize_grads=True)
                assert [grad.shape for grad in grads] == [x.shape for x in values]


@pytest.mark.parametrize("name", LOSSES)
def test_deterministic_mode(name):
    """Nothing that torch refuses in deterministic mode, and the same bits each time."""
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (loss_and_gradients(LOSSES[name], inputs(torch.float32)) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1]))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("anchor", [0, "any"])
@pytest.mark.parametrize("tau", [1e-3, 1e-4])
def test_mean_cosine_over_all_tuples_at_small_temperatures(reduction: Any, anchor: Any, tau: float) -> None:
    """The exponentials of its matmuls vanish below 0.001 even in float64; it was NaN there."""
    xs = embeddings(3, 9)

    def loss(values: list[Tensor]) -> Tensor:
        options: Any = {"similarity": "mean_cosine", "negatives": "all", "reduction": reduction, "anchor": anchor}
        return mc.multimodal_infonce(values, tau, **options)

    expected = torch.stack([loss_of_row(xs, i, anchor == "any", tau) for i in range(9)])
    torch.testing.assert_close(loss([x.double() for x in xs]), expected if reduction == "none" else expected.mean())
    assert all(bool(x.isfinite().all()) for x in torch.autograd.grad(loss(xs).sum(), xs))


def loss_of_row(xs: list[Tensor], i: int, anywhere: bool, tau: float) -> Tensor:
    """The loss of one anchor by the definition, in float64."""
    x, y, z = (nn.functional.normalize(v.double(), dim=1) for v in xs)
    logits = ((x @ y.mT)[:, :, None] + (x @ z.mT)[:, None] + (y @ z.mT)[None]) / (3 * tau)
    place = torch.arange(9) == i
    holds = place[:, None, None] | ((place[None, :, None] | place) if anywhere else False)
    return torch.logsumexp(logits.masked_fill(~holds, -torch.inf).flatten(), 0) - logits[i, i, i]


def test_mean_cosine_over_all_tuples_is_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs of few anchors, each with the exponentials of a whole block, made it as slow as tuple by tuple."""
    calls, products = [], reference.mean_cosine_denominators
    monkeypatch.setattr(reference, "mean_cosine_denominators", lambda *a: calls.append(a) or products(*a))
    for reduction in ("mean", "none"):
        mc.multimodal_infonce(embeddings(3, 300), 0.1, similarity="mean_cosine", negatives="all", reduction=reduction)
    assert len(calls) == 2


@pytest.mark.parametrize("negatives", ["tied", "all", "cyclic"])
def test_small_losses_keep_their_digits(negatives: Any) -> None:
    """Losses far below 1e-7 beside a positive that is 1 in the sum, and their slopes by the temperature."""
    x = torch.eye(6) + 0.01 * torch.randn(6, 6, generator=torch.Generator().manual_seed(0))

    def found(dtype: torch.dtype) -> tuple[Tensor, ...]:
        tau = torch.tensor(0.03, dtype=dtype, requires_grad=True)
        loss = mc.triplet_infonce(
            *[x.to(dtype)] * 3, tau, negatives=negatives, generator=torch.Generator().manual_seed(0)
        )
        return loss.detach(), *torch.autograd.grad(loss, tau)

    for single, double in zip(found(torch.float32), found(torch.float64)):
        assert 0 < double.abs() < 1e-6
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=0)
