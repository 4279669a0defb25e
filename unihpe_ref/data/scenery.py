"""The looks of a rendered picture: clothes, skin, hair, light and the room behind."""

from __future__ import annotations

import torch
from torch import Tensor

LOOK_CHANNELS = 24
_BLOCKS = 5
_COARSE, _FINE = (5, 4), (20, 15)
_SCENE_PARTS = {
    "wall_top": 3, "wall_bottom": 3, "floor_near": 3, "horizon": 1, "strength": 2,
    "blocks": 8 * _BLOCKS, "coarse": 3 * _COARSE[0] * _COARSE[1], "fine": _FINE[0] * _FINE[1],
}  # fmt: skip
SCENE_CHANNELS = sum(_SCENE_PARTS.values())

_SKIN = torch.tensor([[0.26, 0.16, 0.11], [0.55, 0.36, 0.25], [0.80, 0.58, 0.45], [0.97, 0.80, 0.69]])
_HAIR = torch.tensor([[0.04, 0.03, 0.03], [0.22, 0.13, 0.08], [0.55, 0.36, 0.16], [0.70, 0.68, 0.66]])


def looks(noise: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Colours and light from ``(B, LOOK_CHANNELS)`` uniform numbers.

    Returns: colours by name, each ``(B, 3)`` RGB; and the direction towards the light, ``(B, 3)`` unit vectors in the
    camera's frame (y down): from above, and from the camera's side.
    """
    skin, hair = _along(_SKIN, noise[:, 0]), _along(_HAIR, noise[:, 1] ** 2)
    shirt, trousers, shoes = _cloth(noise[:, 2:6]), _cloth(noise[:, 6:10]), _cloth(noise[:, 10:14])
    shoes = 0.6 * shoes

    def mostly(share: Tensor, probability: float, cloth: Tensor) -> Tensor:
        return torch.where(share[:, None] < probability, cloth, skin)

    palette = {
        "skin": skin,
        "hair": hair,
        "shirt": shirt,
        "trousers": trousers,
        "shoes": shoes,
        "sleeve": mostly(noise[:, 14], 0.88, shirt),
        "cuff": mostly(torch.maximum(noise[:, 14], noise[:, 15]), 0.55, shirt),
        "leg": mostly(noise[:, 16], 0.75, trousers),
    }
    light = torch.stack([1.6 * (noise[:, 17] - 0.5), -0.3 - noise[:, 18], -0.35 - noise[:, 19]], -1)
    return palette, torch.nn.functional.normalize(light, dim=-1)


def backgrounds(noise: Tensor, size: tuple[int, int]) -> Tensor:
    """Rooms from ``(B, SCENE_CHANNELS)`` uniform numbers: wall, floor, blocks of furniture, blotches and grain.

    Returns: ``(B, 3, H, W)`` RGB in [0, 1].
    """
    part = dict(zip(_SCENE_PARTS, noise.split(list(_SCENE_PARTS.values()), -1)))
    height, width = size
    down = torch.linspace(0, 1, height, device=noise.device)[:, None]  # (H, 1)
    right = torch.linspace(0, 1, width, device=noise.device)[None]  # (1, W)

    def filled(colour: Tensor) -> Tensor:
        grey = colour.mean(-1, keepdim=True)  # rooms are duller than clothes
        return (0.06 + 0.88 * torch.lerp(grey, colour, 0.45))[:, :, None, None]

    image = torch.lerp(filled(part["wall_top"]), filled(part["wall_bottom"]), down).expand(-1, -1, height, width)
    for block in part["blocks"].unflatten(-1, (_BLOCKS, 8)).unbind(1):
        x, y, w, h, *rest = (value[:, None, None] for value in block.unbind(-1))
        covers = ((right - 1.2 * x + 0.1).abs() < 0.05 + 0.2 * w) & ((down - y).abs() < 0.05 + 0.3 * h)
        present = covers & (rest[3] < 0.6)
        image = torch.where(present[:, None], filled(block[:, 4:7]), image)
    horizon = (0.55 + 0.5 * part["horizon"])[:, :, None]  # (B, 1, 1); beyond 1: no floor in sight
    floor = filled(part["floor_near"]) * (0.75 + 0.35 * down)
    image = torch.where((down > horizon)[:, None], floor, image)
    blotches = (part["coarse"] - 0.5).unflatten(-1, (3, *_COARSE))
    grain = (part["fine"] - 0.5).unflatten(-1, (1, *_FINE))
    strength = part["strength"][..., None, None, None] ** 2
    image = image + 0.45 * strength[:, 0] * _stretched(blotches, size) + 0.5 * strength[:, 1] * _stretched(grain, size)
    return image.clamp(0, 1).contiguous()


def _stretched(grid: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.nn.functional.interpolate(grid, size, mode="bilinear", align_corners=True)


def _along(scale: Tensor, share: Tensor) -> Tensor:
    """A colour from a scale of (K, 3) colours, ``share`` (B,) of the way along it: ``(B, 3)``."""
    scale = scale.to(share.device)
    place = share * (len(scale) - 1)
    below = place.long().clamp(max=len(scale) - 2)
    return torch.lerp(scale[below], scale[below + 1], (place - below)[:, None])


def _cloth(noise: Tensor) -> Tensor:
    """A colour from ``(B, 4)``: any hue, from dull to vivid."""
    grey = noise[:, :3].mean(-1, keepdim=True)
    return (0.06 + 0.9 * torch.lerp(grey, noise[:, :3], 0.3 + 0.7 * noise[:, 3:])).clamp(0, 1)
