"""Stage 2: aligns the image encoder with the frozen pose encoders (section 3.2, figure 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multicontrast import trimodal_infonce
from unihpe_ref.config import Stage2
from unihpe_ref.data import PoseBatch
from unihpe_ref.models import UniHPE
from unihpe_ref.training import Stage


class ImageAlignment(Stage):
    """Trains E_img and tau with L_pair(img, 2D) + L_pair(img, 3D) + alpha L_triplet.

    The pair of the two frozen encoders is left out, because it would only change tau.
    """

    number = 2
    name = "2 images"
    needs_images = True
    config: Stage2

    def trained(self, model: UniHPE) -> list[nn.Module]:
        assert model.image_encoder is not None
        return [model.image_encoder]

    def embed(self, model: UniHPE, batch: PoseBatch) -> dict[str, Tensor]:
        with torch.no_grad():
            x_2d = model.encode(**batch.inputs_2d())
            x_3d = model.encode(kp3d=batch.joints_3d)
        return {"img": model.encode(image=batch.image), "2d": x_2d, "3d": x_3d}

    def align(self, embeddings: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        return trimodal_infonce(
            embeddings["img"],
            embeddings["2d"],
            embeddings["3d"],
            self.temperature(),
            alpha=self.config.alpha,
            pairs=((0, 1), (0, 2)),
            similarity=self.config.similarity,
            negatives=self.config.negatives,
            generator=generator,
            symmetric=self.config.symmetric,
            gather=True,
        )
