"""What only a GPU can show: no wait of the host, memory, several devices, graphs, the compiler's own kernels.

That the kernels' numbers are right on it is shown by the other modules here, which all run there too (`-m gpu`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from executors import NEEDS_A_GPU
from torch import Tensor

import multicontrast as mc

pytestmark = NEEDS_A_GPU
MIB = 2**20


@contextmanager
def no_waiting() -> Iterator[None]:
    """The host may not wait for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _embeddings(size: int, dim: int, count: int = 3) -> list[Tensor]:
    return [torch.randn(size, dim, device="cuda", requires_grad=True) for _ in range(count)]


def _index(size: int, negatives: int) -> Tensor:
    return mc.sample_tuples(size, 3, num_negatives=negatives).cuda()


LOSSES: dict[str, Callable[[list[Tensor], Tensor | float, Tensor], Tensor]] = {
    "pairwise": lambda xs, tau, _: mc.pairwise_infonce(xs[0], xs[1], tau),
    "triplet": lambda xs, tau, index: mc.triplet_infonce(*xs, tau, negatives=index),
    "triplet, drawn": lambda xs, tau, _: mc.triplet_infonce(*xs, tau),
    "triplet, shared": lambda xs, tau, _: mc.triplet_infonce(*xs, tau, negatives="shared"),
    "triplet, cyclic": lambda xs, tau, _: mc.triplet_infonce(*xs, tau, negatives="cyclic"),
    "trimodal": lambda xs, tau, index: mc.trimodal_infonce(*xs, tau, negatives=index),
    "trimodal, all": lambda xs, tau, _: mc.trimodal_infonce(*xs, tau, negatives="all"),
    "trimodal, volume": lambda xs, tau, index: mc.trimodal_infonce(*xs, tau, negatives=index, similarity="volume"),
    "trimodal, tiled": lambda xs, tau, index: mc.trimodal_infonce(*xs, tau, negatives=index, tiled=True),
}


@pytest.mark.parametrize("kind_of_tau", ["number", "tensor"])
@pytest.mark.parametrize("name", LOSSES)
def test_the_host_never_waits_for_the_device(name, kind_of_tau):
    xs, index = _embeddings(64, 32), _index(64, 20)
    tau = 0.1 if kind_of_tau == "number" else torch.tensor(0.1, device="cuda", requires_grad=True)
    LOSSES[name](xs, tau, index).backward()  # compiles
    with no_waiting():
        LOSSES[name](xs, tau, index).backward()


def test_nothing_in_linalg_makes_the_host_wait():
    cosines = [(2 * torch.rand(1000, device="cuda") - 1).requires_grad_() for _ in range(3)]
    calls: list[Callable[[], Tensor]] = [
        lambda: mc.linalg.gram3_eigmax(*cosines),
        lambda: mc.linalg.gram3_eigvals(*cosines),
    ]
    for n in (2, 3, 5, 8):
        matrix = torch.randn(100, n, n, device="cuda")
        matrix = (matrix + matrix.mT).requires_grad_()
        calls.append(lambda matrix=matrix: mc.linalg.eigmax(matrix))
    small = torch.randn(100, 3, 3, device="cuda", requires_grad=True)
    calls += [lambda: mc.linalg.eigvalsh3(small), lambda: mc.linalg.eigh3(small)[1]]
    for call in calls:
        call().sum().backward()
        with no_waiting():
            call().sum().backward()


def _peak(call: Callable[[], object]) -> int:
    """Bytes that a call takes beyond what was there."""
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def test_pairs_never_hold_their_logits():
    size, dim = 32_768, 64  # whose logits would take 4 GiB
    xs = _embeddings(size, dim, 2)
    assert _peak(lambda: mc.pairwise_infonce(*xs, 0.1).backward()) < 128 * MIB


def test_sampled_and_exact_triplets_take_a_few_gram_blocks():
    size = 1024
    xs, index = _embeddings(size, 64), _index(size, 4 * size)  # one float for each tuple would take 16 MiB
    block = 4 * size * size
    assert _peak(lambda: mc.triplet_infonce(*xs, 0.1, negatives=index).backward()) < 10 * block
    assert _peak(lambda: mc.triplet_infonce(*xs, 0.1, negatives="all").backward()) < 12 * block


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_a_kernel_runs_on_the_device_of_its_tensors():
    cosines = (2 * torch.rand(3, 100, device="cuda:1") - 1).unbind()
    with torch.cuda.device(0):
        result = mc.linalg.gram3_eigmax(*cosines)
    torch.testing.assert_close(result.cpu(), mc.linalg.gram3_eigmax(*(cosine.cpu() for cosine in cosines)))


def test_deterministic_on_request():
    xs, index = _embeddings(200, 32), _index(200, 500)
    torch.use_deterministic_algorithms(True)
    try:
        runs = [torch.autograd.grad(mc.trimodal_infonce(*xs, 0.05, negatives=index), xs) for _ in range(5)]
    finally:
        torch.use_deterministic_algorithms(False)
    for run in runs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(run, runs[0]))


def test_a_step_is_captured_in_a_graph():
    xs, index = _embeddings(64, 32), _index(64, 63)
    tau = torch.tensor(0.1, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a stream that is not the default one, for the warm-up
        for _ in range(3):
            expected = torch.autograd.grad(mc.trimodal_infonce(*xs, tau, negatives=index), xs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = torch.autograd.grad(mc.trimodal_infonce(*xs, tau, negatives=index), xs)
    graph.replay()
    torch.testing.assert_close(captured, expected)


def test_draws_in_a_graph_are_fresh_at_every_replay():
    xs, tau = _embeddings(64, 32), torch.tensor(0.1, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            mc.trimodal_infonce(*xs, tau, num_negatives=8).backward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = mc.trimodal_infonce(*xs, tau, num_negatives=8)
    seen = set()
    for _ in range(4):
        graph.replay()
        seen.add(loss.item())
    assert len(seen) == 4
    with pytest.raises(RuntimeError, match="register_generator_state"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        mc.trimodal_infonce(*xs, tau, generator=torch.Generator())


@pytest.mark.parametrize("tiled", [False, True])
def test_a_batch_beyond_8192_equals_float64(tiled):
    xs, index = _embeddings(8200, 32), _index(8200, 16)
    loss = mc.trimodal_infonce(*xs, 0.1, negatives=index, tiled=tiled)
    doubles = [x.detach().double().cpu().requires_grad_() for x in xs]
    expected = mc.trimodal_infonce(*doubles, 0.1, negatives=index.cpu(), tiled=True)
    torch.testing.assert_close(loss.double().cpu(), expected, rtol=1e-5, atol=1e-5)
    for grad, reference in zip(torch.autograd.grad(loss, xs), torch.autograd.grad(expected, doubles)):
        torch.testing.assert_close(grad.double().cpu(), reference, rtol=0, atol=1e-4 * float(reference.abs().max()))


def test_gathering_over_nccl_with_one_rank(tmp_path):
    import torch.distributed as dist

    dist.init_process_group("nccl", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        xs = _embeddings(40, 16)
        index = _index(40, 10)
        gathered = mc.trimodal_infonce(*xs, 0.1, negatives=index, gather=True)
        torch.testing.assert_close(gathered, mc.trimodal_infonce(*xs, 0.1, negatives=index))
    finally:
        dist.destroy_process_group()


def test_inductor_compiles_the_whole_loss():
    xs, index = _embeddings(64, 32), _index(64, 63)
    tau = torch.tensor(0.1, device="cuda", requires_grad=True)

    def loss(*xs: Tensor) -> Tensor:
        return mc.trimodal_infonce(*xs, tau, negatives=index)

    compiled = torch.compile(loss, fullgraph=True)
    results = torch.autograd.grad(compiled(*xs), [*xs, tau])
    torch.testing.assert_close(results, torch.autograd.grad(loss(*xs), [*xs, tau]), rtol=1e-4, atol=1e-5)


def test_half_precision_under_autocast_is_computed_in_float32():
    xs = [x.detach().bfloat16() for x in _embeddings(128, 64)]
    index = _index(128, 50)
    with torch.autocast("cuda", torch.bfloat16):
        loss = mc.trimodal_infonce(*xs, 0.1, negatives=index)
    assert loss.dtype == torch.float32
    expected = mc.trimodal_infonce(*(x.double().cpu() for x in xs), 0.1, negatives=index.cpu())
    torch.testing.assert_close(loss.double().cpu(), expected, rtol=1e-5, atol=1e-5)
