"""Every arrangement of tuples reads the cosines of the tuples that it names, and writes their gradients there."""

import pytest
import torch
from torch import Tensor

import multicontrast as mc
from multicontrast.losses import _pair_block, _shift_cells
from multicontrast.losses._cells import IndexCells, ListCells, PermutationCells, pairs_of
from multicontrast.losses._shift_cells import ShiftCells
from multicontrast.negatives import draw_cyclic, draw_permutations, draw_shared
from tests.losses.test_values import embeddings

ARRANGEMENTS = ["index", "permutations", "shears", "few shifts", "lists"]


def arrangement(name: str, size: int, count: int, seed: int):
    """Cells, and the index of the same tuples."""

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    if name == "index":
        index = torch.randint(size, (size, 5, count), generator=generator())
        index[:, 0] = torch.arange(size)[:, None]
        return IndexCells(index), index
    if name == "permutations":
        cells = PermutationCells(draw_permutations(size, count, size - 1, True, generator()))
        return cells, mc.sample_tuples(size, count, generator=generator())
    if name == "lists":
        cells = ListCells(size, count, size - 1, draw_shared(size, count, True, generator()))
        return cells, mc.sample_tuples(size, count, scheme="shared", generator=generator())
    negatives = size - 1 if name == "shears" else (size - 1) // 2
    cells = ShiftCells(size, draw_cyclic("cyclic", size, count, negatives, True, generator()))
    return cells, mc.sample_tuples(size, count, num_negatives=negatives, scheme="cyclic", generator=generator())


def code(cosines: list[Tensor]) -> Tensor:
    """One number for each tuple, from which the cosines can be read off."""
    return sum(cosine * 170.0**k for k, cosine in enumerate(cosines))


@pytest.mark.parametrize("name", ARRANGEMENTS)
@pytest.mark.parametrize("count", [3, 4])
@pytest.mark.parametrize("size", [2, 5, 12, 13])
def test_cells_are_where_the_index_says(size, count, name, monkeypatch):
    """In integers, so that every sum is exact: the tuples of an anchor in any order, the positive where it is said."""
    monkeypatch.setattr(_pair_block, "BLOCK_CELLS", 5 * size)  # several row blocks, the last one smaller
    monkeypatch.setattr(_shift_cells, "IN_CACHE", 0)
    for seed in range(3):
        cells, index = arrangement(name, size, count, seed)
        pairs = pairs_of(count)
        made = torch.Generator().manual_seed(seed)
        grams = {pair: torch.randperm(size * size, generator=made).view(size, size).double() for pair in pairs}
        if cells.orders is not None:  # these enter the products in an order of their own
            order = [torch.arange(size), *cells.orders]
        else:
            order = [torch.arange(size)] * count
        blocks = {(m, n): gram[order[m]][:, order[n]].clone() for (m, n), gram in grams.items()}
        expected = [gram[index[..., m], index[..., n]] for (m, n), gram in grams.items()]
        slopes = {pair: torch.zeros_like(gram) for pair, gram in grams.items()}
        for (m, n), slope in slopes.items():
            value = code(expected) % (97 + m + 10 * n)
            slope.view(-1).index_add_(0, (index[..., m] * size + index[..., n]).flatten(), value.flatten())

        cells.prepare(blocks)
        for pair, block in blocks.items():
            if not cells.reads(pair):
                block.fill_(torch.nan)
        for start, stop in _pair_block.row_blocks(size, cells.width):
            out = [torch.empty(stop - start, cells.width, dtype=torch.float64) for _ in pairs]
            cells.read_rows(blocks, start, stop, out)
            for got, right in zip(out, expected):
                assert torch.equal(got[:, cells.positive(start, stop)], right[start:stop, 0])
            assert torch.equal(code(out).sort(1).values, code(expected)[start:stop].sort(1).values)
            for pair in pairs:
                if cells.row_local(pair):
                    blocks[pair][start:stop] = 0
            cells.write_rows(blocks, start, stop, [code(out) % (97 + m + 10 * n) for m, n in pairs])
        for pair in pairs:
            if not cells.row_local(pair):
                blocks[pair].zero_()
        cells.finish(blocks)
        for (m, n), slope in slopes.items():
            assert torch.equal(blocks[m, n], slope[order[m]][:, order[n]])


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("scheme", ["permutation", "cyclic"])
def test_a_scheme_is_the_loss_of_its_index(scheme, count, monkeypatch):
    """The same tuples as :func:`sample_tuples` draws: bit for bit where they are also summed in the same order."""
    monkeypatch.setattr(_pair_block, "BLOCK_CELLS", 200)
    monkeypatch.setattr(_shift_cells, "IN_CACHE", 0)
    xs = embeddings(count, 21)
    tau = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    index = mc.sample_tuples(21, count, scheme=scheme, generator=torch.Generator().manual_seed(3))
    results = []
    for negatives in (scheme, index):
        generator = None if negatives is index else torch.Generator().manual_seed(3)
        loss = mc.multimodal_infonce(xs, tau, negatives=negatives, generator=generator)
        results.append([loss, *torch.autograd.grad(loss, [*xs, tau])])
    tolerance = 0 if scheme == "permutation" else 1e-12
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
