"""Bad arguments raise before any work, in three parts: what was needed, what it got, what to do."""

import functools
import re
import warnings

import pytest
import torch

import multicontrast as mc
from multicontrast.losses import options as option_classes

X = torch.randn(4, 3)


def pair(x=X, y=X, tau=0.1, **options):
    return mc.pairwise_infonce(x, y, tau, **options)


def triplet(a=X, b=X, c=X, tau=0.1, **options):
    return mc.triplet_infonce(a, b, c, tau, **options)


def trimodal(a=X, b=X, c=X, tau=0.1, **options):
    return mc.trimodal_infonce(a, b, c, tau, **options)


def many(embeddings=(X, X, X, X), tau=0.1, **options):
    return mc.multimodal_infonce(embeddings, tau, **options)


INDEX = mc.sample_tuples(4)

CASES = [
    (pair, {"x": [1.0]}, TypeError, "needs `x` to be a tensor; got a list"),
    (pair, {"y": X.long()}, TypeError, "real floating-point numbers; got a int64 tensor of shape (4, 3) on cpu"),
    (pair, {"y": X.to(torch.complex64)}, TypeError, "real floating-point numbers; got a complex64"),
    (pair, {"y": X.to_sparse()}, TypeError, "to be dense"),
    (pair, {"x": X[0]}, ValueError, "`x` of shape (B, D)"),
    (pair, {"y": X[:3]}, ValueError, "as many rows; got 4 and 3. Drop samples that lack a modality"),
    (pair, {"y": X[:, :2]}, ValueError, "in one space; got dimensions 3 and 2"),
    (pair, {"x": X[:0], "y": X[:0]}, ValueError, "at least one row and one column; got shape (0, 3)"),
    (pair, {"y": X.to("meta")}, ValueError, "all tensors on one device; got `x` on cpu, `y` on meta"),
    (pair, {"tau": 0}, ValueError, "`tau` to be positive and finite; got 0"),
    (pair, {"tau": -0.1}, ValueError, "`tau` to be positive and finite; got -0.1"),
    (pair, {"tau": float("nan")}, ValueError, "`tau` to be positive and finite; got NaN"),
    (pair, {"tau": float("inf")}, ValueError, "`tau` to be positive and finite; got inf"),
    (pair, {"tau": torch.tensor(-1.0)}, ValueError, "`tau` to be positive and finite; got -1.0"),
    (pair, {"tau": torch.tensor(1)}, TypeError, "needs `tau`, the temperature, to be a number or a floating tensor"),
    (pair, {"tau": torch.ones(2)}, ValueError, "`tau` to be a 0-dim tensor"),
    (pair, {"tau": "0.1"}, TypeError, "`tau` to be a number or a tensor; got '0.1'"),
    (pair, {"tau": True}, TypeError, "`tau` to be a number or a tensor; got True"),
    (pair, {"reduction": "avg"}, ValueError, "`reduction` to be one of 'mean', 'none', 'sum'; got 'avg'"),
    (pair, {"reduction": None}, TypeError, "`reduction` to be one of"),
    (pair, {"symmetric": 1}, TypeError, "`symmetric` to be True or False; got 1"),
    (pair, {"normalize": "yes"}, TypeError, "`normalize` to be True or False; got 'yes'"),
    (triplet, {"c": X[:2]}, ValueError, "`triplet_infonce` pairs rows, so `x_img` and `x_3d` need as many rows"),
    (triplet, {"similarity": "eigen_value"}, ValueError, "Did you mean 'eigenvalue'?"),
    (triplet, {"similarity": 3}, TypeError, "`similarity` to be a name or a callable"),
    (triplet, {"negatives": "shred"}, ValueError, "Did you mean 'shared'?"),
    (triplet, {"negatives": None}, TypeError, "`negatives` to be one of"),
    (triplet, {"negatives": INDEX.float()}, TypeError, "`negatives` to be integers; got a float32"),
    (triplet, {"negatives": INDEX[:, :, :2]}, ValueError, "= (4, 1 + K, 3) with the positive in column 0"),
    (triplet, {"negatives": INDEX[:3]}, ValueError, "got shape (3, 4, 3)"),
    (triplet, {"negatives": INDEX + 1}, ValueError, "row numbers from 0 to 3 in the index; got values from 1 to 4"),
    (triplet, {"negatives": INDEX - 1}, ValueError, "got values from -1 to 2"),
    (triplet, {"negatives": INDEX.to("meta")}, ValueError, "index on the embeddings' device cpu; got meta"),
    (triplet, {"negatives": INDEX, "num_negatives": 7}, ValueError, "from the index, 3; got num_negatives=7"),
    (triplet, {"num_negatives": -2}, ValueError, "`num_negatives` >= 0; got -2"),
    (triplet, {"num_negatives": 1.5}, TypeError, "`num_negatives` to be an int; got 1.5"),
    (triplet, {"negatives": "tied", "num_negatives": 4}, ValueError, "at most batch_size - 1 = 3"),
    (triplet, {"negatives": "all", "num_negatives": 2}, ValueError, "every tuple under negatives='all'"),
    (triplet, {"anchor": "any"}, ValueError, "`anchor='any'` for `negatives='all'` alone"),
    (triplet, {"anchor": "any", "negatives": INDEX}, ValueError, "alone; got an index"),
    (triplet, {"anchor": 1}, ValueError, "`anchor` to be 0 or 'any'; got 1"),
    (triplet, {"generator": 3}, TypeError, "`generator` to be a Generator or None; got 3"),
    (triplet, {"a": X[:1], "b": X[:1], "c": X[:1], "num_negatives": 1}, ValueError, "at least two samples"),
    (trimodal, {"alpha": -1}, ValueError, "`alpha` to be a finite number and >= 0; got -1"),
    (trimodal, {"alpha": "1"}, TypeError, "`alpha` to be a finite number; got '1'"),
    (trimodal, {"alpha": 0, "negatives": "cyclical"}, ValueError, "Did you mean 'cyclic'?"),
    (trimodal, {"pairs": ((0, 3),)}, ValueError, "out of 0..2, each once; got (0, 3)"),
    (trimodal, {"pairs": ((1, 1),)}, ValueError, "pairs of different modalities"),
    (trimodal, {"pairs": ((0, 1), (1, 0))}, ValueError, "each once"),
    (trimodal, {"pairs": 3}, TypeError, "`pairs` to be a list or tuple; got 3"),
    (pair, {"present": torch.ones(4, 2)}, TypeError, "`present` to be bool; got a float32 tensor"),
    (pair, {"present": torch.ones(4, 3, dtype=torch.bool)}, ValueError, "`present` of shape (B, N) = (4, 2); got"),
    (pair, {"present": [True] * 4}, TypeError, "`present` to be a tensor; got a list"),
    (triplet, {"present": torch.ones(4, 3, dtype=torch.bool).to("meta")}, ValueError, "(4, 3) on cpu; got a bool"),
    (pair, {"ids": torch.ones(4)}, TypeError, "`ids` to be integers; got a float32"),
    (pair, {"ids": torch.arange(3)}, ValueError, "`ids` of shape (B,) = (4,); got"),
    (
        trimodal,
        {"weight": torch.tensor([1.0, -1, 1, 1])},
        ValueError,
        "`weight` >= 0 and finite; got values from -1 to",
    ),
    (trimodal, {"weight": torch.full((4,), float("nan"))}, ValueError, "`weight` >= 0 and finite; got values from nan"),
    (trimodal, {"weight": 0.5}, TypeError, "`weight` to be a tensor; got 0.5"),
    (pair, {"label_smoothing": 1}, ValueError, "`label_smoothing` to be a finite number and >= 0 and < 1; got 1"),
    (pair, {"label_smoothing": None}, TypeError, "`label_smoothing` to be a finite number; got None"),
    (pair, {"hardness": -0.5}, ValueError, "`hardness` to be a finite number and >= 0; got -0.5"),
    (pair, {"hardness": True}, TypeError, "`hardness` to be a finite number; got True"),
    (pair, {"extra_negatives": X}, TypeError, "`extra_negatives` to be a list or tuple; got a float32"),
    (pair, {"extra_negatives": [X] * 3}, ValueError, "`extra_negatives` for 2 modalities; got 3 entries"),
    (pair, {"extra_negatives": [None, X[:, :2]]}, ValueError, "`extra_negatives[1]` of shape (E, 3) or (4, E, 3); got"),
    (pair, {"extra_negatives": [X, X[:2]]}, ValueError, "as many `extra_negatives` of each modality, whose rows"),
    (pair, {"extra_negatives": [X.long(), None]}, TypeError, "`extra_negatives[0]` to hold real floating-point"),
    (many, {"embeddings": X}, TypeError, "`embeddings` to be a list or tuple"),
    (many, {"embeddings": (X,)}, ValueError, "needs 2 to 8 modalities; got 1"),
    (many, {"embeddings": (X,) * 9}, ValueError, "needs 2 to 8 modalities; got 9"),
    (many, {"embeddings": (X, X[:2])}, ValueError, "`embeddings[0]` and `embeddings[1]` need as many rows"),
    (many, {"negatives": "all"}, ValueError, "up to three modalities, for any number with the mean cosine"),
]


@pytest.mark.parametrize(("call", "options", "error", "words"), CASES, ids=[f"{c[3][:40]}" for c in CASES])
def test_the_message_says_what_was_needed_and_what_came(call, options, error, words):
    with pytest.raises(error, match=re.escape(words)) as caught:
        call(**options)
    message = str(caught.value)
    assert re.search(r"; got .+\. ", message), f"not in three beats: {message}"


def test_values_are_not_looked_at_off_the_cpu_and_an_invalid_index_is_nan():
    """Under a transform the index is no ordinary tensor: out of range gives NaN for that anchor, and reads nothing."""
    index = INDEX.clone()
    index[2, 1, 1] = 99
    rows = torch.func.vmap(lambda i: triplet(negatives=i, reduction="none"))(index[None])[0]
    assert rows[2].isnan()
    assert rows[[0, 1, 3]].isfinite().all()


def test_an_invalid_temperature_under_a_transform_is_nan():
    taus = torch.tensor([0.1, 0.0, -1.0])
    losses = torch.func.vmap(lambda tau: pair(tau=tau))(taus)
    assert losses.isnan().tolist() == [False, True, True]


def test_drawn_negatives_under_vmap_say_what_it_has_to_be_told():
    taus = torch.tensor([0.1, 0.2])
    words = "needs to know whether its samples share them; got randomness='error', its default. Pass vmap("
    for negatives in ("cyclic", "permutation", "shared"):
        loss = functools.partial(triplet, negatives=negatives)
        with pytest.raises(ValueError, match=re.escape(words)):
            torch.func.vmap(lambda tau, loss=loss: loss(tau=tau))(taus)
        assert torch.func.vmap(lambda tau, loss=loss: loss(tau=tau), randomness="same")(taus).shape == (2,)


def test_a_logit_scale_in_the_place_of_the_temperature_warns_once(monkeypatch):
    monkeypatch.setattr(option_classes, "_warned_of_scale", set())
    with pytest.warns(UserWarning, match=re.escape("got 100. If this is a logit scale, as CLIP's, pass")) as caught:
        first = pair(tau=100.0)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pair(tau=torch.tensor(100.0)) == first
        triplet(tau=9.0)
