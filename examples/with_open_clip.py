"""open_clip's training loop with our loss. The loop passes keywords and expects a dictionary, so `Loss` adapts.

In a checkout of open_clip, return `Loss()` from `open_clip.create_loss`. python examples/with_open_clip.py
"""

from __future__ import annotations

import torch
from open_clip.model import CLIP
from torch import Tensor, nn

import multicontrast as mc


class Loss(nn.Module):
    def forward(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor, output_dict: bool = False, **_: object
    ) -> Tensor | dict[str, Tensor]:
        value = mc.pairwise_infonce(image_features, text_features, 1 / logit_scale, gather=True)
        return {"contrastive_loss": value} if output_dict else value


def model() -> CLIP:
    """A few thousand parameters, in place of `open_clip.create_model`."""
    vision = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16}
    text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    return CLIP(16, vision, text, output_dict=True)


def main(loss: nn.Module | None = None) -> list[float]:
    torch.manual_seed(0)
    clip, loss = model(), loss or Loss()
    optimizer = torch.optim.AdamW(clip.parameters(), lr=1e-3)
    images, texts = torch.randn(8, 3, 16, 16), torch.randint(1, 50, (8, 8))
    values = []
    for _ in range(5):  # as in open_clip_train.train.train_one_epoch
        optimizer.zero_grad()
        losses = loss(**clip(images, texts), output_dict=True)
        total = sum(losses.values())
        total.backward()
        optimizer.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(0, 4.6052)  # the loop keeps the scale below 100
        values.append(total.item())
    print("losses", " ".join(f"{value:.4f}" for value in values))
    return values


if __name__ == "__main__":
    main()
