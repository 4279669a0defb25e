"""ViT image encoder, as ViTPose builds it (UniHPE Table 5)."""

from __future__ import annotations

from torch import Tensor, nn

from multicontrast._checks import check_choice, describe, three_beats

_PATCH = 16
_PADDING = 2  # ViTPose pads the patch convolution; 256 x 192 pixels still give 16 x 12 tokens
_SIZES = {  # width, depth, heads. ViTPose-S has 12 heads, where timm's ViT-S has 6
    "vit_s": (384, 12, 12),
    "vit_b": (768, 12, 12),
    "vit_tiny": (64, 2, 4),  # ours, for small crops on a CPU
}
VITS = tuple(_SIZES)


class ViTEncoder(nn.Module):
    """Images to features: a plain vision transformer without a class token, the mean of its tokens, one linear layer.

    Positions are learned for 256 x 192 pixels and interpolated for other sizes.

    Args:
        name: ``"vit_s"``, ``"vit_b"`` or ``"vit_tiny"``; the weights start at random. See
            :func:`unihpe_ref.models.load_pose_weights` for ViTPose's.
        embedding_dim: D, the length of the output.
    Raises: ValueError for another name.
    """

    def __init__(self, name: str, embedding_dim: int) -> None:
        super().__init__()
        from timm.models.vision_transformer import VisionTransformer  # takes seconds, because of torchvision

        check_choice("ViTEncoder", "name", name, VITS)
        width, depth, heads = _SIZES[name]
        self.backbone = VisionTransformer(
            img_size=(256, 192),
            patch_size=_PATCH,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            class_token=False,
            global_pool="avg",
            fc_norm=False,
            num_classes=0,
            dynamic_img_size=True,
        )
        self.backbone.patch_embed.proj.padding = (_PADDING, _PADDING)
        self.out = nn.Linear(width, embedding_dim)

    def forward(self, image: Tensor) -> Tensor:
        """``(B, 3, H, W)`` normalised images to features ``(B, D)``; H and W are multiples of 16.

        Raises: ValueError for any other shape.
        """
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] % _PATCH or image.shape[3] % _PATCH:
            needed = f"`ViTEncoder` needs images (B, 3, H, W) with H and W multiples of {_PATCH}"
            raise ValueError(three_beats(needed, describe(image), "Resize the crops, for example to 256 x 192."))
        return self.out(self.backbone(image))
