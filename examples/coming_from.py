"""The losses of other libraries, written with ours, with equal values and gradients.

Each function returns both losses as functions of three embeddings of the same samples; losses of two modalities use
the first two. GRAM and TRIANGLE have no packages, so their losses are written from the papers. `pip install
'multicontrast[peers]'` installs the small libraries, and `pip install --no-deps lightly lightly-utils` lightly, whose
loss needs only torch. Libraries that are not installed are skipped.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import multicontrast as mc

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def open_clip() -> tuple[Loss, Loss]:
    from open_clip.loss import ClipLoss

    clip = ClipLoss()

    def theirs(image: Tensor, text: Tensor, _: Tensor) -> Tensor:
        logit_scale = torch.tensor(1 / 0.07, dtype=image.dtype)  # multiplies
        return clip(F.normalize(image), F.normalize(text), logit_scale)

    def ours(image: Tensor, text: Tensor, _: Tensor) -> Tensor:
        return mc.pairwise_infonce(image, text, 0.07)  # divides

    return theirs, ours


def hugging_face_clip() -> tuple[Loss, Loss]:
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    def theirs(image: Tensor, text: Tensor, _: Tensor) -> Tensor:
        return image_text_contrastive_loss(F.normalize(text) @ F.normalize(image).T / 0.07)

    def ours(image: Tensor, text: Tensor, _: Tensor) -> Tensor:
        return mc.pairwise_infonce(image, text, 0.07)

    return theirs, ours


def pytorch_metric_learning() -> tuple[Loss, Loss]:
    from pytorch_metric_learning.losses import NTXentLoss

    nt_xent = NTXentLoss(temperature=0.1)

    def theirs(x: Tensor, y: Tensor, _: Tensor) -> Tensor:
        labels = torch.arange(len(x))
        return nt_xent(x, labels, ref_emb=y, ref_labels=labels.clone())  # the same object twice would give 0

    def ours(x: Tensor, y: Tensor, _: Tensor) -> Tensor:
        return mc.pairwise_infonce(x, y, 0.1, symmetric=False)

    return theirs, ours


def pytorch_metric_learning_views() -> tuple[Loss, Loss]:
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    views = SelfSupervisedLoss(NTXentLoss(temperature=0.1), symmetric=True)

    def theirs(x: Tensor, y: Tensor, _: Tensor) -> Tensor:
        return views(x, y)

    def ours(x: Tensor, y: Tensor, _: Tensor) -> Tensor:
        ids = torch.arange(len(x)).repeat(2)  # rows with the same id are not negatives of each other
        return mc.pairwise_infonce(torch.cat((x, y)), torch.cat((y, x)), 0.1, ids=ids, symmetric=False)

    return theirs, ours


def lightly() -> tuple[Loss, Loss]:
    from lightly.loss import NTXentLoss

    nt_xent = NTXentLoss(temperature=0.5)

    def theirs(x: Tensor, y: Tensor, _: Tensor) -> Tensor:
        return nt_xent(x, y)

    def ours(x: Tensor, y: Tensor, _: Tensor) -> Tensor:
        ids = torch.arange(len(x)).repeat(2)
        return mc.pairwise_infonce(torch.cat((x, y)), torch.cat((y, x)), 0.5, ids=ids, symmetric=False)

    return theirs, ours


def info_nce_pytorch() -> tuple[Loss, Loss]:
    from info_nce import info_nce

    def theirs(query: Tensor, positive: Tensor, _: Tensor) -> Tensor:
        return info_nce(query, positive, temperature=0.1)

    def ours(query: Tensor, positive: Tensor, _: Tensor) -> Tensor:
        return mc.pairwise_infonce(query, positive, 0.1, symmetric=False)

    return theirs, ours


def info_nce_pytorch_unpaired() -> tuple[Loss, Loss]:
    from info_nce import info_nce

    def theirs(query: Tensor, positive: Tensor, negatives: Tensor) -> Tensor:
        return info_nce(query, positive, negatives, temperature=0.1)

    def ours(query: Tensor, positive: Tensor, negatives: Tensor) -> Tensor:
        same = torch.zeros(len(query), dtype=torch.int64)  # one id for all: no row of the batch is a negative
        return mc.pairwise_infonce(query, positive, 0.1, symmetric=False, ids=same, extra_negatives=(None, negatives))

    return theirs, ours


def info_nce_pytorch_paired() -> tuple[Loss, Loss]:
    from info_nce import info_nce

    def two_for_each(rows: Tensor) -> Tensor:
        return torch.stack((rows, rows.roll(1, 0)), 1)  # (B, 2, D): each query has its own negatives

    def theirs(query: Tensor, positive: Tensor, rows: Tensor) -> Tensor:
        return info_nce(query, positive, two_for_each(rows), temperature=0.1, negative_mode="paired")

    def ours(query: Tensor, positive: Tensor, rows: Tensor) -> Tensor:
        same = torch.zeros(len(query), dtype=torch.int64)
        own = (None, two_for_each(rows))
        return mc.pairwise_infonce(query, positive, 0.1, symmetric=False, ids=same, extra_negatives=own)

    return theirs, ours


def sentence_transformers() -> tuple[Loss, Loss]:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    ranking = MultipleNegativesRankingLoss(model=None, scale=20.0)

    def theirs(query: Tensor, document: Tensor, _: Tensor) -> Tensor:
        return ranking.compute_loss_from_embeddings([query, document], labels=None)

    def ours(query: Tensor, document: Tensor, _: Tensor) -> Tensor:
        return mc.pairwise_infonce(query, document, 1 / 20.0, symmetric=False)

    return theirs, ours


def sentence_transformers_hard_negatives() -> tuple[Loss, Loss]:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    ranking = MultipleNegativesRankingLoss(model=None, scale=20.0)

    def theirs(query: Tensor, document: Tensor, hard: Tensor) -> Tensor:
        return ranking.compute_loss_from_embeddings([query, document, hard], labels=None)

    def ours(query: Tensor, document: Tensor, hard: Tensor) -> Tensor:
        return mc.pairwise_infonce(query, document, 1 / 20.0, symmetric=False, extra_negatives=(None, hard))

    return theirs, ours


def gram() -> tuple[Loss, Loss]:
    def theirs(text: Tensor, video: Tensor, audio: Tensor) -> Tensor:
        text, video, audio = F.normalize(text), F.normalize(video), F.normalize(audio)
        anchors = text[:, None].expand(-1, len(text), -1)
        rows = torch.stack((anchors, video.expand_as(anchors), audio.expand_as(anchors)), 2)
        logits = -torch.linalg.det(rows @ rows.mT).abs().sqrt() / 0.07  # (B, B): text i with video j and audio j
        target = torch.arange(len(text))
        return sum(F.cross_entropy(side, target, label_smoothing=0.1) for side in (logits, logits.T)) / 2

    def ours(text: Tensor, video: Tensor, audio: Tensor) -> Tensor:
        return mc.triplet_infonce(
            text, video, audio, 0.07, similarity="volume", negatives="tied", symmetric=True, label_smoothing=0.1
        )

    return theirs, ours


def triangle() -> tuple[Loss, Loss]:
    def theirs(text: Tensor, video: Tensor, audio: Tensor) -> Tensor:
        text, video, audio = F.normalize(text), F.normalize(video), F.normalize(audio)
        u, v = video - text[:, None], audio - text[:, None]
        logits = -((u * u).sum(-1) * (v * v).sum(-1) - (u * v).sum(-1) ** 2) / 2 / 0.07  # TRIANGLE's code: 2 A^2, not A
        target = torch.arange(len(text))
        return sum(F.cross_entropy(side, target, label_smoothing=0.1) for side in (logits, logits.T)) / 2

    def twice_squared_area(cosines: list[Tensor]) -> Tensor:
        d, e, f = (1 - cosine for cosine in cosines)
        return -(4 * d * e - (d + e - f) ** 2) / 2

    def ours(text: Tensor, video: Tensor, audio: Tensor) -> Tensor:
        return mc.triplet_infonce(
            text,
            video,
            audio,
            0.07,
            similarity=twice_squared_area,
            negatives="tied",
            symmetric=True,
            label_smoothing=0.1,
        )

    return theirs, ours


def symile() -> tuple[Loss, Loss]:
    from symile import Symile

    every = Symile(negative_sampling="n_squared")

    def theirs(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return every([F.normalize(x), F.normalize(y), F.normalize(z)], logit_scale=20.0)

    def ours(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        turns = ((x, y, z), (y, z, x), (z, x, y))  # each modality is the anchor in turn
        losses = [mc.triplet_infonce(*turn, 1 / 20.0, similarity="multilinear", negatives="all") for turn in turns]
        return sum(losses) / len(losses)

    return theirs, ours


# comparison -> package, or "" without one
PEERS: dict[Callable[[], tuple[Loss, Loss]], str] = {
    open_clip: "open_clip_torch",
    hugging_face_clip: "transformers",
    pytorch_metric_learning: "pytorch-metric-learning",
    pytorch_metric_learning_views: "pytorch-metric-learning",
    lightly: "lightly",
    info_nce_pytorch: "info-nce-pytorch",
    info_nce_pytorch_unpaired: "info-nce-pytorch",
    info_nce_pytorch_paired: "info-nce-pytorch",
    sentence_transformers: "sentence-transformers",
    sentence_transformers_hard_negatives: "sentence-transformers",
    gram: "",
    triangle: "",
    symile: "symile",
}


def differences(make: Callable[[], tuple[Loss, Loss]]) -> tuple[float, float]:
    """Largest differences of values and gradients in float64; raises ImportError without the other library."""
    theirs, ours = make()
    x, y, z = torch.randn(3, 24, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results = []
    for loss in (theirs, ours):
        leaves = [rows.clone().requires_grad_() for rows in (x, y, z)]
        value = loss(*leaves)
        gradients = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
        results.append((value, torch.stack(gradients)))
    (value, gradient), (other, other_gradient) = results
    assert value > 0, "a loss of 0 would agree with anything"
    assert gradient.abs().max() > 0, "so would a gradient of 0"
    return (value - other).abs().item(), (gradient - other_gradient).abs().max().item()


def main() -> None:
    for make, package in PEERS.items():
        try:
            value, gradient = differences(make)
        except ImportError as missing:
            print(f"{make.__name__}: skipped, {missing}")
        else:
            version = importlib.metadata.version(package) if package else "from the paper"
            print(f"{make.__name__} ({version}): values differ by {value:.1e}, gradients by {gradient:.1e}")


if __name__ == "__main__":
    main()
