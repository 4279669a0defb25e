"""In tiles: the same numbers, never a block of the whole batch, and on its own accord for large batches."""

import pytest
import torch

import multicontrast as mc
from benchmarks.driver import peak_bytes
from multicontrast.losses import _road, _tiled
from tests.losses.test_values import SCHEMES, SIMILARITIES, assert_same, embeddings


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles small enough that a batch of 11 has several, the last one ragged."""
    monkeypatch.setattr(_tiled, "_TILE", 4)
    monkeypatch.setattr(_tiled, "_CELLS", 30)
    monkeypatch.setattr(_tiled, "_GATHERED", 200)


def inputs(size: int = 11) -> list[torch.Tensor]:
    return [*embeddings(3, size), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_pairs(symmetric, reduction):
    x, y, _, tau = inputs()
    options = {"symmetric": symmetric, "reduction": reduction}
    tiled = mc.pairwise_infonce(x, y, tau, tiled=True, **options)
    assert_same(tiled, mc.pairwise_infonce(x, y, tau, tiled=False, **options), [x, y, tau])


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("negatives", [*SCHEMES, "index"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_tuples(reduction, negatives, similarity):
    values = inputs()
    index = mc.sample_tuples(11, num_negatives=5, generator=torch.Generator().manual_seed(0)).flip(0)
    results = []
    for tiled in (True, False):
        results.append(
            mc.trimodal_infonce(
                *values,
                negatives=index if negatives == "index" else negatives,
                similarity=similarity,
                generator=torch.Generator().manual_seed(2),
                reduction=reduction,
                tiled=tiled,
            )
        )
    assert_same(*results, values)


def test_large_batches_are_tiled_of_their_own_accord(monkeypatch):
    monkeypatch.setattr(_road, "ALWAYS_ABOVE", 10)
    seen = []
    monkeypatch.setattr(_road, "tiled_loss", lambda *arguments: seen.append(arguments) or _tiled.tiled_loss(*arguments))
    x, y, z, tau = inputs()
    mc.pairwise_infonce(x, y, tau)
    assert len(seen) == 1
    mc.pairwise_infonce(x[:10], y[:10], tau)
    mc.pairwise_infonce(x, y, tau, tiled=False)
    mc.triplet_infonce(x, y, z, tau, negatives="all")
    assert len(seen) == 1


def test_what_cannot_be_tiled_is_said():
    x, y, z, tau = inputs()
    with pytest.raises(ValueError, match=r"streams negatives='all' over whole Gram blocks; got tiled=True\. Leave"):
        mc.triplet_infonce(x, y, z, tau, negatives="all", tiled=True)
    with pytest.raises(TypeError, match="`tiled` to be True, False or None; got 1"):
        mc.pairwise_infonce(x, y, tau, tiled=1)


@pytest.mark.slow
def test_a_batch_of_65536_needs_less_than_two_gibibytes():
    """The peak of the whole process, in a process of its own."""
    import subprocess
    import sys

    program = """
import resource, torch, multicontrast as mc
torch.set_num_threads(1)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
before = peak()
x, y = (torch.randn(65536, 256, requires_grad=True) for _ in range(2))
mc.pairwise_infonce(x, y, 0.07).backward()
assert x.grad.isfinite().all()
print(peak() - before)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=900)
    assert float(run.stdout) < 2.0


def test_a_large_batch_is_never_held_whole(monkeypatch):
    """What the 65,536 samples below do in minutes, for 4096: the peak, counted, is a few tiles beside the rows."""
    monkeypatch.setattr(_tiled, "_TILE", 256)
    size, dim = 4096, 32
    x, y = (torch.randn(size, dim, requires_grad=True) for _ in range(2))
    peak = peak_bytes(lambda: mc.pairwise_infonce(x, y, 0.07, tiled=True).backward(), torch.device("cpu"))
    rows, tile = 4 * size * dim, 4 * 256 * 256
    assert peak < 8 * rows + 6 * tile < 4 * size * size / 4


def test_tiles_have_the_numbers_of_whole_blocks(monkeypatch):
    """In float32, to 4 eps of the largest logit and of the largest gradient."""
    monkeypatch.setattr(_tiled, "_TILE", 64)
    monkeypatch.setattr(_tiled, "_CELLS", 20000)
    tau = 0.05
    xs = [x.detach().float().requires_grad_() for x in embeddings(3, 150, dim=24)]
    eps = torch.finfo(torch.float32).eps
    for negatives in ("permutation", "shared", "cyclic", "tied"):
        results = []
        for tiled in (True, False):
            generator = torch.Generator().manual_seed(1)
            loss = mc.trimodal_infonce(*xs, tau, negatives=negatives, generator=generator, tiled=tiled)
            results.append((loss, torch.autograd.grad(loss, xs)))
        (tiles, by_tiles), (whole, by_whole) = results
        assert abs(tiles - whole) <= 4 * eps * 3 / tau
        for t, w in zip(by_tiles, by_whole):
            assert (t - w).abs().max() <= 4 * eps * w.abs().max() / tau
