"""Stage 3: encoders and decoders together (section 3.3, equation 5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multicontrast import Temperature, pairwise_infonce, trimodal_infonce
from unihpe_ref.config import Stage3
from unihpe_ref.data import PoseBatch
from unihpe_ref.models import UniHPE
from unihpe_ref.training import StageOutput


class MultiTask:
    """Trains everything with L_cl + L_2D + L_3D; the decoders learn from every modality there is.

    L_cl holds all three pairs and the triplet; without an image encoder, the one pair there is.
    """

    number = 3
    name = "3 everything"
    needs_images = True  # where the model encodes them

    def __init__(self, config: Stage3) -> None:
        self.config = config
        self.ema_decay: float | None = config.ema_decay
        self.temperature = Temperature(config.temperature, min=config.temperature_min, max=config.temperature_max)

    def trained(self, model: UniHPE) -> list[nn.Module]:
        return [model]

    def forward(self, model: UniHPE, batch: PoseBatch, generator: torch.Generator) -> StageOutput:
        kp2d, box_info = batch.joints_2d_normalised(), batch.box_info()
        embeddings: dict[str, Tensor] = {}
        if model.image_encoder is not None:
            embeddings["img"] = model.encode(image=batch.image)
        embeddings["2d"] = model.encode(kp2d=kp2d, box_info=box_info)
        embeddings["3d"] = model.encode(kp3d=batch.joints_3d)
        loss_2d, loss_3d = model.decoding_losses(embeddings, kp2d, batch.joints_3d, box_info, generator=generator)
        contrastive = self.config.contrastive_weight * self._contrastive(embeddings, generator)
        losses = {"contrastive": contrastive, "decoding_2d": loss_2d, "decoding_3d": loss_3d}
        return StageOutput(losses, embeddings)

    def _contrastive(self, embeddings: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        tau = self.temperature()
        if "img" not in embeddings:
            return pairwise_infonce(embeddings["2d"], embeddings["3d"], tau)
        return trimodal_infonce(
            embeddings["img"],
            embeddings["2d"],
            embeddings["3d"],
            tau,
            alpha=self.config.alpha,
            generator=generator,
        )
