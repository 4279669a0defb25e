"""Every operation under transforms, in graphs, on other devices and under autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from multicontrast import linalg
from multicontrast.linalg.rotation import proper_rotation


def _entries(function: Callable[..., Any]) -> Callable[[Tensor], Any]:
    """A function of three cosines as one of matrices, like the others."""
    return lambda m: function(m[..., 1, 0], m[..., 2, 0], m[..., 2, 1])


OPERATIONS: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    "gram3_eigmax": (_entries(linalg.gram3_eigmax), 3),
    "gram3_eigvals": (_entries(linalg.gram3_eigvals), 3),
    "eigvalsh3": (linalg.eigvalsh3, 3),
    "eigh3": (linalg.eigh3, 3),
    **{f"eigmax, N = {n}": (linalg.eigmax, n) for n in (2, 3, 4, 8)},
    "proper_rotation": (proper_rotation, 3),
    "proper_rotation, reflections": (lambda m: proper_rotation(m, allow_reflection=True), 3),
    "proper_rotation, 2 x 2": (proper_rotation, 2),
}
ONCE = {name for name in OPERATIONS if name.startswith("proper_rotation")}  # differentiable once
every_operation = pytest.mark.parametrize("name", OPERATIONS)


def matrices(name: str, *batch: int, dtype: torch.dtype = torch.float32) -> Tensor:
    n = OPERATIONS[name][1]
    matrix = torch.randn(*batch, n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    return ((matrix + matrix.mT) / 4).to(dtype)


def invariant(name: str, matrix: Tensor) -> Tensor:
    """The result, one tensor; what the arbitrary signs of eigenvectors leave of it."""
    result = OPERATIONS[name][0](matrix)
    if isinstance(result, Tensor):
        return result
    values, vectors = result
    return torch.cat([values.unsqueeze(-2), vectors * vectors[..., :1, :]], -2)


def derivatives(name: str, matrix: Tensor) -> list[Tensor]:
    """The value alone, the value, the gradient, and (where there is one) a Hessian-vector product."""
    leaf = matrix.detach().requires_grad_()
    result = invariant(name, leaf)
    weight = torch.linspace(-1, 2, result.numel(), dtype=result.dtype, device=result.device).view(result.shape)
    (gradient,) = torch.autograd.grad(result, leaf, weight, create_graph=name not in ONCE)
    found = [invariant(name, matrix), result.detach(), gradient.detach()]
    if name not in ONCE:
        found.append(torch.autograd.grad(gradient.square().sum(), leaf)[0])
    return found


@every_operation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_meta_tensors_have_the_shapes_and_types_of_others(name, dtype):
    expected = derivatives(name, matrices(name, 2, 3, dtype=dtype))
    for got, known in zip(derivatives(name, matrices(name, 2, 3, dtype=dtype).to("meta")), expected):
        assert (got.device.type, got.shape, got.dtype) == ("meta", known.shape, known.dtype)


@every_operation
def test_fake_tensors_have_the_shapes_of_others(name):
    matrix = matrices(name, 5)
    expected = derivatives(name, matrix)
    with FakeTensorMode():
        found = derivatives(name, torch.empty(matrix.shape))
        on_a_gpu = torch.empty(matrix.shape, device="cuda")  # whose backward torch runs only where there is one
        values = [invariant(name, z) for z in (on_a_gpu, on_a_gpu.clone().requires_grad_())]
    for got, known in zip(found, expected):
        assert (got.device.type, got.shape, got.dtype) == ("cpu", known.shape, known.dtype)
    for value in values:
        assert (value.device.type, value.shape, value.dtype) == ("cuda", expected[0].shape, expected[0].dtype)


@every_operation
def test_the_default_device_does_not_matter(name):
    matrix = matrices(name, 4)
    spoiled = matrix.clone()
    spoiled[0], spoiled[1] = 0, torch.nan  # matrices that are done again
    expected = [derivatives(name, z) for z in (matrix, spoiled)]
    with torch.device("meta"):
        found = [derivatives(name, z) for z in (matrix, spoiled)]
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(function.overloadpacket).split(".")[-1])
        return function(*args, **(kwargs or {}))


@every_operation
def test_no_product_follows_the_settings_for_matrix_products(name):
    """TF32, autocast and `set_float32_matmul_precision` round the inputs of these to 10 bits or fewer."""
    with _Recorder() as seen:
        derivatives(name, matrices(name, 4))
    assert seen.names, "nothing was recorded"
    assert not seen.names & {"mm", "bmm", "addmm", "baddbmm", "matmul", "linear", "mv", "dot", "einsum", "_linalg_det"}


@every_operation
def test_autocast_does_not_matter(name):
    matrix = matrices(name, 6)
    expected = derivatives(name, matrix)
    with torch.autocast("cpu", torch.bfloat16):
        found = derivatives(name, matrix)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@every_operation
@pytest.mark.parametrize("mode", ["inference", "no_grad"])
def test_without_derivatives_the_value_is_the_same(name, mode):
    matrix = matrices(name, 6)
    expected = invariant(name, matrix.clone().requires_grad_()).detach()
    with torch.inference_mode() if mode == "inference" else torch.no_grad():
        got = invariant(name, matrix.clone().requires_grad_())
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@every_operation
def test_one_graph_serves_all_sizes(name):
    """The first is for one size, as torch compiles by default; the second serves every other."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(lambda m: invariant(name, m).sin().sum(), fullgraph=True, backend=backend)
    for size in (7, 2, 5, 13, 89, 20_011):
        leaf = matrices(name, size).requires_grad_()
        value, expected = compiled(leaf), invariant(name, leaf).sin().sum()
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(*(torch.autograd.grad(z, leaf) for z in (value, expected)), rtol=1e-3, atol=1e-3)
    assert len(graphs) <= 2


@every_operation
def test_compiled_and_exported_are_eager(name):
    torch._dynamo.reset()
    matrix = matrices(name, 7, dtype=torch.float64)

    class Module(torch.nn.Module):
        def forward(self, m: Tensor) -> Tensor:
            return invariant(name, m)

    exported = torch.export.export(Module(), (matrix,)).module()
    compiled = torch.compile(Module(), fullgraph=True, backend="aot_eager")
    for leaf in (matrix, matrix.clone().requires_grad_()):
        expected = invariant(name, leaf)
        for function in (exported, compiled):
            got = function(leaf)
            torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)
            if leaf.requires_grad:
                weight = torch.rand_like(got)
                torch.testing.assert_close(
                    *(torch.autograd.grad(z, leaf, weight, retain_graph=True) for z in (got, expected)),
                    rtol=1e-12,
                    atol=1e-12,
                )


@every_operation
def test_transforms_of_torch_func_agree_with_a_loop(name):
    matrix = matrices(name, 3, 4, dtype=torch.float64)

    def loss(m: Tensor) -> Tensor:
        return invariant(name, m).sin().sum()

    torch.testing.assert_close(
        torch.func.vmap(lambda m: invariant(name, m), in_dims=1)(matrix),
        torch.stack([invariant(name, one) for one in matrix.unbind(1)]),
    )
    expected = torch.stack([torch.func.grad(loss)(one) for one in matrix])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(matrix), expected)
    per_matrix = torch.func.vmap(torch.func.vmap(torch.func.grad(loss)))(matrix)
    torch.testing.assert_close(per_matrix, expected)


@every_operation
def test_tensor_subclasses_and_parameters(name):
    class Marked(Tensor):
        pass

    matrix = matrices(name, 4)
    expected = derivatives(name, matrix)
    torch.testing.assert_close(
        [z.as_subclass(Tensor) for z in derivatives(name, matrix.as_subclass(Marked))], expected, rtol=1e-5, atol=1e-5
    )
    parameter = torch.nn.Parameter(matrix)
    (gradient,) = torch.autograd.grad(invariant(name, parameter).sum(), parameter)
    leaf = matrix.clone().requires_grad_()
    # To the bit: by the same implementation, and so as fast.
    assert torch.equal(gradient, torch.autograd.grad(invariant(name, leaf).sum(), leaf)[0])


@every_operation
def test_results_may_be_written_to(name):
    """Views that a custom function returns may not; where a derivative needs the result, torch says so in backward."""
    results = OPERATIONS[name][0](matrices(name, 4).requires_grad_())
    for result in (results,) if isinstance(results, Tensor) else results:
        assert result.mul_(2).grad_fn is not None


@every_operation
def test_transforms_in_either_order(name):
    """A transform may hide from the inner one that somebody outside differentiates."""
    matrix = matrices(name, 3, dtype=torch.float64)
    leaf = matrix.clone().requires_grad_()
    (expected,) = torch.autograd.grad(invariant(name, leaf).sin().sum(), leaf)
    mapped = torch.func.vmap(lambda m: invariant(name, m))
    torch.testing.assert_close(torch.func.grad(lambda m: mapped(m).sin().sum())(matrix), expected)
    if name in ONCE:
        return
    tangent = matrices(name, 3, dtype=torch.float64).flip(0)
    _, slope = torch.func.jvp(lambda m: mapped(m).sin().sum(), (matrix,), (tangent,))
    torch.testing.assert_close(slope, (expected * tangent).sum())
