"""Closed-form derivatives of the similarities: equal to autograd where that exists, finite elsewhere."""

import itertools

import pytest
import torch
from torch import Tensor

from multicontrast.similarity import CosineSimilarity, resolve_similarity
from tests.losses.inputs import SIMILARITIES as NAMES

SIMILARITIES = {name: resolve_similarity("tests", name) for name in NAMES}
OF_COSINES = [name for name, similarity in SIMILARITIES.items() if isinstance(similarity, CosineSimilarity)]


class Poisoned:
    """A workspace whose buffers hold NaN until somebody writes to them."""

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return torch.full(shape, torch.nan, dtype=like.dtype, device=like.device)


def cosines_of(count: int, tuples: int = 40, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    rows = torch.randn(tuples, count, 9, dtype=torch.float64, generator=generator)
    rows = torch.nn.functional.normalize(rows + 0.7 * rows[:, :1], dim=-1)
    gram = rows @ rows.mT
    return [gram[:, i, j].to(dtype) for i, j in itertools.combinations(range(count), 2)]


def by_autograd(similarity: CosineSimilarity, cosines: list[Tensor], weights: Tensor) -> tuple[Tensor, list[Tensor]]:
    leaves = [cosine.clone().requires_grad_() for cosine in cosines]
    value = similarity(leaves)
    return value.detach(), list(torch.autograd.grad(value, leaves, weights, materialize_grads=True))


@pytest.mark.parametrize("count", range(2, 9))
@pytest.mark.parametrize("name", OF_COSINES)
def test_closed_forms_are_the_derivatives(name, count):
    similarity = SIMILARITIES[name]
    cosines = cosines_of(count)
    weights = torch.randn(len(cosines[0]), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    value, expected = by_autograd(similarity, cosines, weights)
    assert type(similarity).with_gradient is not CosineSimilarity.with_gradient
    alone, grads = similarity.with_gradient(cosines)
    kept = [cosine.clone() for cosine in cosines]
    pulled_value, pullback = similarity.with_pullback(cosines, Poisoned())
    pulled_value = pulled_value.clone()
    offset = alone - value  # a constant is allowed
    torch.testing.assert_close(offset, offset[:1].expand_as(offset))
    torch.testing.assert_close(pulled_value, alone)
    for grad, pulled, wanted in zip(grads, pullback(weights), expected):
        torch.testing.assert_close(grad * weights, wanted)
        torch.testing.assert_close(pulled, wanted)
    for cosine, before in zip(cosines, kept):
        assert torch.equal(cosine, before), "cosines are only read"


@pytest.mark.parametrize("name", OF_COSINES)
def test_cosines_may_broadcast(name):
    similarity = SIMILARITIES[name]
    a, b, c = (cosine[:5] for cosine in cosines_of(3))
    shaped = [a[:2, None, None].expand(2, 5, 1), b[:2, None, None].expand(2, 1, 5), c.expand(5, 5)[None]]
    weights = torch.randn(2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = [x.contiguous() for x in torch.broadcast_tensors(*shaped)]
    value, pullback = similarity.with_pullback(shaped, Poisoned())
    expected_value, expected = similarity.with_pullback(whole, Poisoned())
    assert torch.equal(value, expected_value)
    for got, wanted in zip(pullback(weights), expected(weights)):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("name", [name for name in OF_COSINES if SIMILARITIES[name].homogeneous])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_homogeneous_similarities_scale(name, count):
    """By a power of two exactly; the derivatives do not change."""
    cosines = cosines_of(count)
    value, grads = SIMILARITIES[name].with_gradient(cosines)
    scaled, same = SIMILARITIES[name].with_gradient([8 * cosine for cosine in cosines])
    torch.testing.assert_close(scaled, 8 * value, rtol=1e-14, atol=0)
    for grad, again in zip(grads, same):
        torch.testing.assert_close(grad, again, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", range(2, 9))
@pytest.mark.parametrize("name", OF_COSINES)
def test_gradients_are_finite_where_roots_vanish(name, count, dtype):
    """All equal, all orthogonal, two equal, two opposite; with each of a few roundings."""
    pairs = list(itertools.combinations(range(count), 2))
    for make in (
        lambda i, j: 1.0 + 0 * (i + j),
        lambda i, j: 0.0 * (i + j),
        lambda i, j: 1.0 if (i, j) == pairs[-1] else 0.0,
        lambda i, j: -1.0 if (i, j) == pairs[0] else 0.0,
        lambda i, j: (-1.0) ** (i + j),
    ):
        base = torch.tensor([make(i, j) for i, j in pairs], dtype=dtype)
        ulp = torch.finfo(dtype).eps * torch.tensor([0.0, 1.0, -1.0, 2.0, -0.5], dtype=dtype)
        cosines = list((base[:, None] * (1 + ulp)).unbind(0))
        value, grads = SIMILARITIES[name].with_gradient(cosines)
        assert value.isfinite().all() and all(grad.isfinite().all() for grad in grads)
        exactly_flat = (value == 0) if name in ("volume", "area") else torch.zeros_like(value, dtype=torch.bool)
        assert all((grad[exactly_flat] == 0).all() for grad in grads)


def sum_of_cubes(cosines):
    """Without a closed form."""
    return sum(cosine**3 for cosine in cosines)
