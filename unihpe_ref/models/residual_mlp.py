"""Residual-MLP encoder of a pose and its building block (UniHPE supplement B.1; the block is MPM's)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """``h + f(h)`` where f is two times Linear, BatchNorm, LeakyReLU(0.2), Dropout."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_layer(width, dropout), *_layer(width, dropout))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.layers(h)


def _layer(width: int, dropout: float) -> list[nn.Module]:
    return [nn.Linear(width, width), nn.BatchNorm1d(width), nn.LeakyReLU(0.2), nn.Dropout(dropout)]


class PoseMLP(nn.Module):
    """Residual blocks on the flattened pose; a drop-in for :class:`PoseTransformer`.

    Args:
        coordinates: 2 or 3 numbers per joint.
        joints: J.
        embedding_dim: D, the length of the output.
        box_token: whether ``forward`` takes box information, appended to the flattened joints.
        noise_token: whether the box information has a fourth number, the level of the joints' noise.
        width, blocks, dropout: of the residual blocks; three blocks in the paper.
    """

    def __init__(
        self,
        coordinates: int,
        joints: int,
        embedding_dim: int,
        *,
        box_token: bool,
        noise_token: bool = False,
        width: int = 1024,
        blocks: int = 3,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.box_token = box_token
        self.layers = nn.Sequential(
            nn.Linear(coordinates * joints + 3 * box_token + noise_token, width),
            *(ResidualBlock(width, dropout) for _ in range(blocks)),
            nn.Linear(width, embedding_dim),
        )

    def forward(self, joints: Tensor, box_info: Tensor | None = None) -> Tensor:
        """``(B, J, 2 or 3)`` joints and, with a box token, ``(B, 3 or 4)`` box information: features ``(B, D)``."""
        flat = joints.flatten(1)
        if self.box_token:
            assert box_info is not None  # UniHPE checks its arguments
            flat = torch.cat((flat, box_info), -1)
        return self.layers(flat)
