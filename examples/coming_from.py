"""Moving: the loss of another library, ours beside it, and their difference (values and gradients).

Install what you come from; what is missing is skipped. ``pip install 'multicontrast[peers]'`` brings open_clip and
pytorch-metric-learning. lightly's loss needs nothing but torch: ``pip install --no-deps lightly lightly-utils``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import multicontrast as mc

Loss = Callable[[Tensor, Tensor], Tensor]


def open_clip() -> tuple[Loss, Loss]:
    """CLIP's loss. It takes unit rows and ``logit_scale``, which multiplies; ``tau`` divides."""
    from open_clip.loss import ClipLoss

    clip = ClipLoss()
    return (
        lambda x, y: clip(F.normalize(x), F.normalize(y), torch.tensor(1 / 0.07, dtype=x.dtype)),
        lambda x, y: mc.pairwise_infonce(x, y, 0.07),
    )


def open_clip_smoothed() -> tuple[Loss, Loss]:
    """A single direction of it, with smoothed targets."""
    from open_clip.loss import ClipLoss

    clip = ClipLoss()

    def theirs(x: Tensor, y: Tensor) -> Tensor:
        logits, _ = clip.get_logits(F.normalize(x), F.normalize(y), 1 / 0.1)
        return F.cross_entropy(logits, torch.arange(len(x)), label_smoothing=0.1)

    return theirs, lambda x, y: mc.pairwise_infonce(x, y, 0.1, symmetric=False, label_smoothing=0.1)


def metric_learning() -> tuple[Loss, Loss]:
    """NT-Xent between two modalities of pytorch-metric-learning: references are candidates, labels say who matches."""
    from pytorch_metric_learning.losses import NTXentLoss

    nt_xent = NTXentLoss(temperature=0.1)

    def theirs(x: Tensor, y: Tensor) -> Tensor:
        labels = torch.arange(len(x))
        return nt_xent(x, labels, ref_emb=y, ref_labels=labels.clone())  # the same object would drop the matches

    return theirs, lambda x, y: mc.pairwise_infonce(x, y, 0.1, symmetric=False)


def metric_learning_views() -> tuple[Loss, Loss]:
    """Its ``SelfSupervisedLoss``, in which the rows of the anchor's own view are negatives, too."""
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    # symmetric=True takes both views as anchors
    return SelfSupervisedLoss(NTXentLoss(temperature=0.1), symmetric=True), _views(0.1)


def lightly() -> tuple[Loss, Loss]:
    """lightly's NT-Xent, the same."""
    from lightly.loss import NTXentLoss

    return NTXentLoss(temperature=0.5), _views(0.5)


def _views(tau: float) -> Loss:
    """Each of the 2 B rows against the 2 B - 1 others: both views stacked, and ids that say who is the same sample."""

    def ours(x: Tensor, y: Tensor) -> Tensor:
        ids = torch.arange(len(x)).repeat(2)
        return mc.pairwise_infonce(torch.cat((x, y)), torch.cat((y, x)), tau, ids=ids, symmetric=False)

    return ours


PEERS = {
    "open_clip ClipLoss": open_clip,
    "open_clip, one direction, smoothed": open_clip_smoothed,
    "pytorch-metric-learning NTXentLoss": metric_learning,
    "pytorch-metric-learning SelfSupervisedLoss": metric_learning_views,
    "lightly NTXentLoss": lightly,
}


def differences(make: Callable[[], tuple[Loss, Loss]]) -> tuple[float, float]:
    """How far the values and the gradients are apart; raises ImportError without the other library."""
    theirs, ours = make()
    x, y = torch.randn(2, 24, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results = []
    for loss in (theirs, ours):
        leaves = [x.clone().requires_grad_(), y.clone().requires_grad_()]
        value = loss(*leaves)
        results.append((value, torch.stack(torch.autograd.grad(value, leaves))))
    (value, grad), (other, other_grad) = results
    return (value - other).abs().item(), (grad - other_grad).abs().max().item()


def main() -> None:
    for name, make in PEERS.items():
        try:
            value, gradient = differences(make)
        except ImportError as missing:
            print(f"{name}: skipped, {missing}")
        else:
            print(f"{name}: values differ by {value:.1e}, gradients by {gradient:.1e}")


if __name__ == "__main__":
    main()
