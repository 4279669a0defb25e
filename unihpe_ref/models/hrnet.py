"""HRNet image encoder: the four stage-4 maps, pooled and concatenated (UniHPE section 3.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from multicontrast._checks import check_choice, describe, three_beats

_STRIDE = 32  # stride of the coarsest map; image sides must be multiples for the exchange between resolutions
_TINY_CHANNELS = (8, 16, 32, 64)


class HRNetEncoder(nn.Module):
    """Images to features: HRNet, global average pooling of its four resolutions, one linear layer.

    Args:
        name: a HRNet of timm, whose weights start at random, or ``"hrnet_tiny"``. ``"hrnet_w32"`` and ``"hrnet_w48"``
            are the paper's (480 and 720 pooled channels). ``"hrnet_tiny"`` is timm's ``hrnet_w18_small`` at half its
            width with one block per branch, for small crops on a CPU (120 pooled channels, 0.24 M parameters).
        embedding_dim: D, the length of the output.
    Raises: ValueError for another name.
    """

    def __init__(self, name: str, embedding_dim: int) -> None:
        super().__init__()
        import timm  # takes seconds, because of torchvision; models without images skip it

        check_choice("HRNetEncoder", "name", name, ["hrnet_tiny", *timm.list_models("hrnet_*")])
        variant, changes = ("hrnet_w18_small", _tiny()) if name == "hrnet_tiny" else (name, {})
        # feature_location="" gives the maps that pose networks use; the default adds the classifier's layers.
        backbone: Any = timm.create_model(
            variant, pretrained=False, features_only=True, feature_location="", out_indices=(1, 2, 3, 4), **changes
        ).to(memory_format=torch.channels_last)  # a quarter faster on a CPU
        self.backbone, self.name = backbone, name
        self.out = nn.Linear(sum(backbone.feature_info.channels()), embedding_dim)

    def forward(self, image: Tensor) -> Tensor:
        """``(B, 3, H, W)`` normalised images to features ``(B, D)``; H and W are multiples of 32.

        Raises: ValueError for any other shape.
        """
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] % _STRIDE or image.shape[3] % _STRIDE:
            needed = f"`HRNetEncoder` needs images (B, 3, H, W) with H and W multiples of {_STRIDE}"
            raise ValueError(three_beats(needed, describe(image), "Resize the crops, for example to 256 x 192."))
        maps = self.backbone(image.contiguous(memory_format=torch.channels_last))
        return self.out(torch.cat([features.mean((-2, -1)) for features in maps], -1))


def _tiny() -> dict[str, Any]:
    """The options of a network whose stages are single modules of one block per branch."""
    stages: dict[str, Any] = {"stem_width": 16}
    for branches in (1, 2, 3, 4):
        stages[f"stage{branches}"] = {
            "num_modules": 1,
            "num_branches": branches,
            "block_type": "BOTTLENECK" if branches == 1 else "BASIC",
            "num_blocks": (1,) * branches,
            "num_channels": (16,) if branches == 1 else _TINY_CHANNELS[:branches],
            "fuse_method": "SUM",
        }
    return stages
