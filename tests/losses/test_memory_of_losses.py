"""The memory of a step beyond its Gram blocks, counted by allocation."""

import pytest
import torch

import multicontrast as mc
from benchmarks.driver import peak_bytes
from multicontrast.linalg._gram3_in_place import SCRATCH_ROWS
from multicontrast.losses import cpu

SIZE, DIM, CELLS = 512, 8, 1 << 11
BLOCK = 4 * SIZE * SIZE  # bytes of a Gram block
PART = 4 * (CELLS + SIZE)  # of a buffer for some rows of it
ROWS = 4 * SIZE * DIM


@pytest.fixture(autouse=True)
def small_row_blocks(monkeypatch):
    monkeypatch.setattr(cpu, "BLOCK_ENTRIES", CELLS)
    monkeypatch.setattr(cpu, "TOGETHER", 0)  # the rows of a few samples are copied


def step_peak(**options: object) -> int:
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(SIZE, DIM, generator=generator, requires_grad=True) for _ in range(3)]
    tau = torch.tensor(0.2, requires_grad=True)
    return peak_bytes(lambda: mc.trimodal_infonce(*xs, tau, **options).backward(), torch.device("cpu"))


# Beside the blocks: cosines of some rows, the scratch of the eigenvalue, one for each pair, index planes of eight bytes
# for some rows, and the rows of the batch, unit and differentiated.
PARTS = PART * (3 + SCRATCH_ROWS + 3 + 2 * 6) + 16 * ROWS


@pytest.mark.parametrize("negatives", ["shared", "tied", "cyclic", "index"])
def test_tuples_need_one_block_more(negatives):
    """The gradient of the block without the anchor gathers while its cosines are still read."""
    if negatives == "index":
        negatives = mc.sample_tuples(SIZE, generator=torch.Generator().manual_seed(0))
    assert step_peak(negatives=negatives) < 4 * BLOCK + PARTS


def test_pairs_need_one_block_each():
    x, y = (torch.randn(SIZE, DIM, requires_grad=True) for _ in range(2))
    assert peak_bytes(lambda: mc.pairwise_infonce(x, y, 0.2).backward(), torch.device("cpu")) < BLOCK + PARTS


@pytest.mark.parametrize("size", [32, 128])
def test_normalising_copies_no_rows_of_a_short_batch(size, monkeypatch):
    """As many rows as there are columns, and up to a quarter of that."""
    monkeypatch.setattr(cpu, "_CHUNK", 1000)
    x, y = (torch.randn(size, 128, requires_grad=True) for _ in range(2))
    peaks = [
        peak_bytes(lambda: mc.pairwise_infonce(x, y, 0.2, normalize=normalize).backward(), torch.device("cpu"))  # noqa: B023
        for normalize in (True, False)
    ]
    assert peaks[0] - peaks[1] < 4 * size * 128 / 2


def test_every_triplet_needs_a_few_blocks():
    """Of B^3 similarities no more than the slab of one anchor is ever there: a multiple of B^2."""
    x, y, z = (torch.randn(96, DIM, requires_grad=True) for _ in range(3))
    block = 4 * 96 * 96
    step = peak_bytes(lambda: mc.triplet_infonce(x, y, z, 0.2, negatives="all").backward(), torch.device("cpu"))
    assert step < (9 + SCRATCH_ROWS + 6) * block + 16 * 4 * 96 * DIM
