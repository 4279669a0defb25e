"""Lifting alone, for the small shipped lifter. Not a stage of the paper."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multicontrast import Temperature, pairwise_infonce
from multicontrast.metrics import mpjpe
from unihpe_ref.config import LiftingStage
from unihpe_ref.data import PoseBatch
from unihpe_ref.models import UniHPE
from unihpe_ref.parts import Part
from unihpe_ref.training import Stage


class Lifting(Stage):
    """Trains E_2D and D_3D on the reported error: the MPJPE of lifted poses, over the scale of the data.

    It takes a third of stage 3's work for each pose, and estimates the conditional median instead of the mean. It needs
    a decoder that takes one step.
    """

    number = 0  # before the paper's
    name = "lifting"

    def __init__(self, config: LiftingStage) -> None:
        super().__init__(config)
        self.temperature = Temperature(config.temperature, learnable=False)  # no contrastive loss

    def trained(self, model: UniHPE) -> list[nn.Module]:
        return [model.encoder_2d, model.decoder_3d]

    def embed(self, model: UniHPE, batch: PoseBatch) -> dict[str, Tensor]:
        return {"2d": model.encode(**batch.inputs_2d())}

    def align(self, embeddings: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        return embeddings["2d"].new_zeros(())  # nothing to compare with

    def decode(
        self, model: UniHPE, embeddings: dict[str, Tensor], batch: PoseBatch, generator: torch.Generator, part: Part
    ) -> dict[str, Tensor]:
        lifted = model.decode_3d(embeddings["2d"], "2d", batch.box_info())
        return {"decoding_3d": mpjpe(lifted, batch.joints_3d) / model.config.scale_3d}


class Companions(Stage):
    """Trains E_3D and D_2D around a frozen lifter, for retrieval and reprojection, in minutes.

    L_pair(2D, 3D) with a frozen E_2D, and L_2D from both embeddings.
    """

    number = 9  # after the paper's
    name = "companions"

    def trained(self, model: UniHPE) -> list[nn.Module]:
        return [model.encoder_3d, model.decoder_2d]

    def embed(self, model: UniHPE, batch: PoseBatch) -> dict[str, Tensor]:
        with torch.no_grad():
            x_2d = model.encode(**batch.inputs_2d())
        return {"2d": x_2d, "3d": model.encode(kp3d=batch.joints_3d)}

    def align(self, embeddings: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        return pairwise_infonce(embeddings["2d"], embeddings["3d"], self.temperature())

    def decode(
        self, model: UniHPE, embeddings: dict[str, Tensor], batch: PoseBatch, generator: torch.Generator, part: Part
    ) -> dict[str, Tensor]:
        joints, box_info, scale = batch.joints_2d_normalised(), batch.box_info(), model.config.scale_2d
        errors = [
            nn.functional.mse_loss(model.decode_2d(embedding, name, box_info) / scale, joints / scale)
            for name, embedding in embeddings.items()
        ]
        return {"decoding_2d": torch.stack(errors).mean()}
