"""CUDA graphs: replays are right, and what cannot be captured raises; tested without a GPU.

A graph on the CPU records each operator of a capture and runs it again on the same tensors at a replay. As on a GPU,
values that Python read at the capture stay, and reading a value during the capture raises.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from executors import on
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import multicontrast as mc
from benchmarks import traced

_LOOKS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"}


class Graph(TorchDispatchMode):
    """A graph on the CPU; the mode is its capture."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function._schema.name in _LOOKS:
            raise RuntimeError(f"{function}: operation not permitted when stream is capturing")
        result = function(*args, **kwargs)
        self.steps.append((function, args, kwargs, result))
        return result

    def replay(self) -> None:
        with torch.no_grad():
            for function, args, kwargs, result in self.steps:
                for old, new in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs))):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


@contextlib.contextmanager
def _values_cost() -> Iterator[None]:
    """Values are not read, as on a GPU."""
    from multicontrast import _checks

    original, patched = _checks.can_read_values, []
    for module in list(sys.modules.values()):
        if getattr(module, "can_read_values", None) is original:
            module.can_read_values = lambda *_: False
            patched.append(module)
    try:
        yield
    finally:
        for module in patched:
            module.can_read_values = original


def _inputs(size: int = 5) -> tuple[list[Tensor], Tensor]:
    return [torch.randn(size, 6, requires_grad=True) for _ in range(3)], torch.tensor(0.3, requires_grad=True)


@pytest.mark.parametrize("case", ["cyclic", "permutation", "shared", "tied", "tiled", "masked"])
@on("interpreter")
def test_replays_are_fresh_draws_over_new_embeddings(case):
    options: dict[str, Any] = {
        "tiled": {"alpha": 0.0, "tiled": True},
        "masked": {"ids": torch.arange(5) // 2, "weight": torch.rand(5), "num_negatives": 7},
    }.get(case, {"negatives": case})
    xs, tau = _inputs()

    def step() -> tuple[Tensor, ...]:
        loss = mc.trimodal_infonce(*xs, tau, **options)
        return loss, *torch.autograd.grad(loss, [*xs, tau])

    with _values_cost():
        step()
        graph = Graph()
        with graph:
            captured = step()
        with torch.no_grad():
            for x in (*xs, tau):
                x.copy_(torch.rand_like(x))
        torch.manual_seed(5)
        graph.replay()
        found = [x.clone() for x in captured]
        torch.manual_seed(5)
        for result, expected in zip(found, step()):
            torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)
        graph.replay()  # further on in the same stream of numbers
    if case in ("cyclic", "permutation", "shared", "masked"):
        assert captured[0] != found[0]


@on("interpreter")
def test_a_module_is_made_a_graphed_callable():
    """PyTorch's own function, with streams and graphs that are not there taken off it."""
    from unittest import mock

    @contextlib.contextmanager
    def capture(graph: Graph, **_: object) -> Iterator[None]:
        with graph:
            yield

    class Criterion(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loss = mc.TrimodalInfoNCE(mc.Temperature(0.2, min=0.01))

        def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            return self.loss(x, y, z)

    xs, _ = _inputs()
    plain, graphed = Criterion(), Criterion()
    nothing = {"synchronize": lambda *_: None, "Stream": lambda *_: None, "stream": lambda _: contextlib.nullcontext()}
    with _values_cost(), mock.patch.multiple(torch.cuda, graph=capture, CUDAGraph=Graph, **nothing):
        with mock.patch("torch.cuda.graphs.graph_pool_handle", return_value=None):
            graphed = torch.cuda.make_graphed_callables(graphed, tuple(x.detach().requires_grad_() for x in xs))
        for seed in (1, 2):
            points = [torch.randn_like(x).requires_grad_() for x in xs]
            results = []
            for criterion in (graphed, plain):
                criterion.zero_grad()
                torch.manual_seed(seed)
                loss = criterion(*points)
                grads = torch.autograd.grad(loss, [*points, criterion.loss.temperature.log_tau])
                results.append([x.clone() for x in (loss, *grads)])
            for result, expected in zip(*results):
                torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)


SCHEMES = ("cyclic", "permutation", "shared", "tied", "all")


@pytest.mark.parametrize(
    "options", [{"negatives": scheme} for scheme in SCHEMES] + [{"tiled": True, "alpha": 0.0}], ids=str
)
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
def test_no_scheme_waits_or_copies(options, masked):
    """What waits for the device or copies from the host could not be captured."""

    def loss(xs: list[Tensor], tau: Tensor) -> Tensor:
        masks = {}
        if masked:
            masks = {
                "present": torch.empty(8, 3, device="cuda", dtype=torch.bool),
                "ids": torch.empty(8, device="cuda", dtype=torch.int64),
                "weight": torch.empty(8, device="cuda"),
            }
        return mc.trimodal_infonce(*xs, tau, **options, **masks)

    counts = traced.trace(loss, 8, 4, torch.float32)
    assert (counts.waits, counts.copies) == (0, 0), counts.names


@pytest.fixture
def capturing(monkeypatch) -> Iterator[Callable[..., Tensor]]:
    """Fake tensors of a GPU whose stream is being captured."""
    from multicontrast import _backend

    original = _backend.is_captured
    for module in list(sys.modules.values()):
        if getattr(module, "is_captured", None) is original:
            monkeypatch.setattr(module, "is_captured", lambda device: device.type == "cuda")
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield lambda *shape: torch.empty(*shape, device="cuda")


def test_only_a_gpu_is_asked_whether_a_stream_is_captured(monkeypatch):
    from multicontrast._backend import is_captured

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not is_captured(torch.device("cpu"))
    assert not is_captured(torch.device("cuda"))  # where no driver was started
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert is_captured(torch.device("cuda"))


def test_draws_of_a_generator_of_the_cpu_are_refused(capturing):
    xs = [capturing(8, 4) for _ in range(3)]
    with pytest.raises(RuntimeError, match=r"need a generator of the embeddings' device.*register_generator_state"):
        mc.trimodal_infonce(*xs, 0.1, generator=torch.Generator())
    with pytest.raises(RuntimeError, match="all replays would reuse"):
        mc.sample_tuples(8, generator=torch.Generator(), device="cuda")


def test_a_temperature_of_the_cpu_is_refused(capturing):
    xs = [capturing(8, 4) for _ in range(2)]
    with pytest.raises(RuntimeError, match=r"needs `tau` on cuda:0.*\.to\(device\)"):
        mc.pairwise_infonce(*xs, torch.ones(()))


def test_gathering_is_refused(capturing, monkeypatch):
    from multicontrast import distributed

    monkeypatch.setattr(distributed, "check_gather", lambda *_: "a group")
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda _: 2)
    with pytest.raises(RuntimeError, match="other ranks' answers"):
        mc.pairwise_infonce(capturing(8, 4), capturing(8, 4), 0.1, gather=True)


def test_a_queue_is_read_when_it_is_full_and_never_filled(capturing):
    queue = mc.MemoryQueue(4, 3)
    queue.rows = capturing(2, 4, 3)
    with pytest.raises(RuntimeError, match="0 of 4 samples"):
        queue()
    with pytest.raises(RuntimeError, match="outside the graph"):
        queue.push([capturing(2, 3), capturing(2, 3)])
    queue._pushed = 4
    assert queue()[0].shape == (4, 3)


def test_a_step_in_chunks_is_refused(capturing):
    with pytest.raises(RuntimeError, match="state of the random numbers"):
        mc.cached_step(lambda x: x, capturing(8, 4), lambda x: x.sum(), chunk_size=4)


def test_what_fails_in_a_capture_is_tried_again_later(capturing, monkeypatch):
    from multicontrast import _launch_triton

    def fail(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(_launch_triton, "_launch", fail)
    monkeypatch.setattr(_launch_triton, "_failed", {})
    with pytest.raises(RuntimeError, match="not permitted"):
        _launch_triton.launch(None, None, None, capturing(3))
    assert not _launch_triton._failed
