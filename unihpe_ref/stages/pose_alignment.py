"""Stage 1: aligns the 2D and the 3D pose encoder (section 3.2, figure 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multicontrast import pairwise_infonce
from unihpe_ref.config import Stage1
from unihpe_ref.data import PoseBatch
from unihpe_ref.models import UniHPE
from unihpe_ref.training import Stage


class PoseAlignment(Stage):
    """Trains E_2D, E_3D and tau with L_pair(2D, 3D)."""

    number = 1
    name = "1 poses"
    config: Stage1

    def trained(self, model: UniHPE) -> list[nn.Module]:
        return [model.encoder_2d, model.encoder_3d]

    def embed(self, model: UniHPE, batch: PoseBatch) -> dict[str, Tensor]:
        x_2d = model.encode(**batch.inputs_2d())
        return {"2d": x_2d, "3d": model.encode(kp3d=batch.joints_3d)}

    def align(self, embeddings: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        return pairwise_infonce(
            embeddings["2d"], embeddings["3d"], self.temperature(), symmetric=self.config.symmetric, gather=True
        )
