"""Stage 3: encoders and decoders together (section 3.3, equation 5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multicontrast import pairwise_infonce, trimodal_infonce
from unihpe_ref.config import Stage3
from unihpe_ref.data import PoseBatch
from unihpe_ref.models import UniHPE
from unihpe_ref.parts import Part
from unihpe_ref.training import Stage


class MultiTask(Stage):
    """Trains everything with L_cl + L_2D + L_3D; the decoders learn from every modality.

    L_cl holds all three pairs and the triplet; without an image encoder, the one pair.
    """

    number = 3
    name = "3 everything"
    needs_images = True  # if the model encodes them
    config: Stage3

    def trained(self, model: UniHPE) -> list[nn.Module]:
        return [model]

    def embed(self, model: UniHPE, batch: PoseBatch) -> dict[str, Tensor]:
        embeddings: dict[str, Tensor] = {}
        if model.image_encoder is not None:
            embeddings["img"] = model.encode(image=batch.image)
        embeddings["2d"] = model.encode(**batch.inputs_2d())
        embeddings["3d"] = model.encode(kp3d=batch.joints_3d)
        return embeddings

    def align(self, embeddings: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        return self.config.contrastive_weight * self._contrastive(embeddings, generator)

    def decode(
        self, model: UniHPE, embeddings: dict[str, Tensor], batch: PoseBatch, generator: torch.Generator, part: Part
    ) -> dict[str, Tensor]:
        loss_2d, loss_3d = model.decoding_losses(
            embeddings,
            batch.joints_2d_normalised(),
            batch.joints_3d,
            batch.box_info(),
            generator=generator,
            part=part,
        )
        return {"decoding_2d": loss_2d, "decoding_3d": loss_3d}

    def _contrastive(self, embeddings: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        tau, symmetric = self.temperature(), self.config.symmetric
        if "img" not in embeddings:
            return pairwise_infonce(embeddings["2d"], embeddings["3d"], tau, symmetric=symmetric, gather=True)
        return trimodal_infonce(
            embeddings["img"],
            embeddings["2d"],
            embeddings["3d"],
            tau,
            alpha=self.config.alpha,
            similarity=self.config.similarity,
            negatives=self.config.negatives,
            generator=generator,
            symmetric=symmetric,
            gather=True,
        )
