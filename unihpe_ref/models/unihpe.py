"""UniHPE: three encoders into one embedding space, and two decoders from it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from multicontrast._checks import (
    check_choice,
    check_count,
    check_floating,
    check_generator,
    check_like,
    check_number,
    check_same_device,
    check_shape,
    check_type,
    describe,
    three_beats,
)
from unihpe_ref.config import ModelConfig, SamplerConfig
from unihpe_ref.models.absent import Absent
from unihpe_ref.models.decoders import MLPDecoder, ScoreDecoder
from unihpe_ref.models.hrnet import HRNetEncoder
from unihpe_ref.models.pose_transformer import PoseTransformer
from unihpe_ref.models.residual_mlp import PoseMLP
from unihpe_ref.models.vit import ViTEncoder
from unihpe_ref.parts import Part, check_part

MODALITIES = ("img", "2d", "3d")  # also the rows of the modality token
_NORM_EPS = 1e-6


class PoseEstimate(NamedTuple):
    """The poses that :meth:`UniHPE.estimate` finds in an image."""

    joints_2d: Tensor  # (B, J, 2) or (H, B, J, 2), normalised by the box
    joints_3d: Tensor  # (B, J, 3) or (H, B, J, 3), metres, pelvis at the origin, camera axes


class UniHPE(nn.Module):
    """The model of the paper or of one of its ablations.

    Conventions, for every method: 2D joints are normalised by their box, ``(pixel - centre) / (side / 2)``, and box
    information is CLIFF's three numbers (:meth:`unihpe_ref.data.PoseBatch.joints_2d_normalised` and ``box_info``); 3D
    joints are metres relative to the pelvis in camera axes; images are normalised crops.

    Args:
        config: sizes and parts.
        sampler: how score-based decoders sample; residual-MLP decoders ignore it.
    """

    def __init__(self, config: ModelConfig, sampler: SamplerConfig | None = None) -> None:
        super().__init__()
        check_type("UniHPE", "config", config, ModelConfig, "Pass `RunConfig().model`, for example.")
        check_type("UniHPE", "sampler", sampler, SamplerConfig, "Pass `SamplerConfig(steps=50)`.", optional=True)
        self.config = config
        self.sampler = sampler or SamplerConfig()
        self.image_encoder = _image_encoder(config)
        self.encoder_2d = _pose_encoder(
            config, 2, box_token=config.encoder_box_token, noise_token=config.encoder_noise_token
        )
        whole = not config.lifting_only
        self.encoder_3d: PoseTransformer | PoseMLP | Absent = (
            _pose_encoder(config, 3, box_token=False) if whole else Absent("3D encoder")
        )
        decoder = ScoreDecoder if config.decoder == "diffusion" else MLPDecoder
        self.decoder_2d: ScoreDecoder | MLPDecoder | Absent = (
            decoder(config, 2 * config.joints, len(MODALITIES)) if whole else Absent("2D decoder")
        )
        self.decoder_3d = decoder(config, 3 * config.joints, len(MODALITIES))

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.parameters()).device

    def encode(
        self,
        *,
        image: Tensor | None = None,
        kp2d: Tensor | None = None,
        kp3d: Tensor | None = None,
        box_info: Tensor | None = None,
        joint_noise: Tensor | None = None,
    ) -> Tensor:
        """The embeddings ``(B, D)`` of one modality: unit rows, or raw features if the configuration says so.

        Args:
            image: ``(B, 3, H, W)``.
            kp2d: ``(B, J, 2)``, normalised by the box; needs ``box_info`` ``(B, 3)``.
            kp3d: ``(B, J, 3)``, pelvis-relative metres.
            joint_noise: ``(B,)``, standard deviation of the error of ``kp2d`` in shares of the box's longer side; 0
                unless given. Only a model with ``encoder_noise_token`` uses it.
        Raises: ValueError or TypeError unless exactly one of the three is given, with the shape above.
        """
        given = [name for name, value in (("image", image), ("kp2d", kp2d), ("kp3d", kp3d)) if value is not None]
        if len(given) != 1:
            came = ", ".join(f"`{name}`" for name in given) or "none of them"
            needed = "`encode` needs exactly one of `image`, `kp2d` and `kp3d`"
            raise ValueError(three_beats(needed, came, "Call it once for each modality."))
        if image is not None:
            if self.image_encoder is None:
                needed = "`encode(image=...)` needs a model with an image encoder"
                raise ValueError(three_beats(needed, "`image_encoder='none'`", "Train with `hrnet_w32`, for example."))
            check_floating("encode", "image", image)  # the encoder checks the shape
            check_like("encode", "image", image, next(self.parameters()))
            features = self.image_encoder(image)
        elif kp2d is not None:
            self._check("encode", "kp2d", kp2d, (self.config.joints, 2))
            if self.config.encoder_box_token or box_info is not None:
                self._check("encode", "box_info", box_info, (3,), len(kp2d))
            if joint_noise is not None:
                check_shape("encode", "joint_noise", joint_noise, (len(kp2d),))
                check_same_device("encode", ("kp2d", "joint_noise"), (kp2d, joint_noise))
            if self.config.encoder_noise_token:
                assert box_info is not None  # the noise token is a part of the box token
                level = box_info.new_zeros(len(box_info)) if joint_noise is None else joint_noise
                box_info = torch.cat((box_info, noise_level(level).to(box_info)[:, None]), -1)
            features = self.encoder_2d(kp2d, box_info)
        else:
            assert kp3d is not None
            self._check("encode", "kp3d", kp3d, (self.config.joints, 3))
            features = self.encoder_3d(kp3d / self.config.scale_3d)
        features = features.to(torch.promote_types(features.dtype, torch.float32))  # also under autocast
        if self.config.condition == "raw":
            return features
        return nn.functional.normalize(features, dim=-1, eps=_NORM_EPS)

    def with_joint_noise(self, joint_noise: float) -> UniHPE:
        """The same model for 2D joints that always err by ``joint_noise`` (see :meth:`encode`).

        The noise level becomes part of the encoder's bias, so later calls need not pass it. Without
        ``encoder_noise_token`` this returns the model itself.
        """
        joint_noise = check_number(
            "with_joint_noise", "joint_noise", joint_noise, least=0, remedy="Pass a share of the box, such as 0.01."
        )
        if not self.config.encoder_noise_token:
            return self
        with torch.device("meta"):
            model = UniHPE(self.config.override(encoder_noise_token=False), self.sampler)
        weights = dict(self.state_dict())
        name = next(name for name, value in model.state_dict().items() if value.shape != weights[name].shape)
        weight, bias = weights[name], name.removesuffix("weight") + "bias"
        weights[bias] = weights[bias] + weight[:, -1] * noise_level(weight.new_tensor(joint_noise))
        weights[name] = weight[:, :-1]
        model.load_state_dict(weights, assign=True)
        return model.train(self.training)

    def decode(
        self,
        embedding: Tensor,
        source: str,
        target: str,
        box_info: Tensor,
        *,
        hypotheses: int | None = None,
        sampling: SamplerConfig | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Poses from embeddings ``(B, D)`` of one modality.

        Args:
            embedding: from :meth:`encode`.
            source: ``"img"``, ``"2d"`` or ``"3d"``: the modality that was encoded.
            target: ``"2d"``: ``(B, J, 2)``, normalised by the box; or ``"3d"``: ``(B, J, 3)``, pelvis-relative metres.
            box_info: ``(B, 3)``.
            hypotheses: how many poses a score-based decoder draws for each embedding, ``(H, B, J, 2 or 3)``.
                The sampler ``"gfpose"`` hardly varies them; ``"sde"`` and ``"ode"`` draw from the distribution, and
                need a ``preconditioned`` decoder. See :func:`unihpe_ref.models.mean_hypothesis` and
                :func:`unihpe_ref.models.best_hypothesis`.
            sampling: replaces the model's sampler.
            generator: of a score-based decoder's noise.
        Raises: ValueError or TypeError for shapes and names that do not fit, and for several hypotheses of a
            deterministic decoder.
        """
        check_choice("decode", "target", target, ("2d", "3d"))
        token = self._token("decode", embedding, source, box_info)
        decoder = self.decoder_2d if target == "2d" else self.decoder_3d
        coordinates, scale = (2, self.config.scale_2d) if target == "2d" else (3, self.config.scale_3d)
        check_type("decode", "sampling", sampling, SamplerConfig, "Pass `SamplerConfig(steps=50)`.", optional=True)
        check_generator("decode", generator)
        remedy = "Leave it out for one pose."
        count = 1 if hypotheses is None else check_count("decode", "hypotheses", hypotheses, 1, 10**6, remedy=remedy)
        if hypotheses is not None and isinstance(decoder, MLPDecoder):
            needed = "`decode` needs `hypotheses` of at least 1, and a score-based decoder to draw them"
            raise ValueError(three_beats(needed, f"{count} of a MLPDecoder", remedy))
        condition = decoder.condition(embedding, token, box_info)
        decoded = decoder.decode(condition, sampling or self.sampler, generator, count)
        joints = decoded.unflatten(-1, (self.config.joints, coordinates)) * scale
        if target == "3d":
            joints = torch.cat((torch.zeros_like(joints[:, :1]), joints[:, 1:]), 1)  # the pelvis is the origin
        return joints if hypotheses is None else joints.unflatten(0, (count, len(embedding)))

    def decode_2d(
        self, embedding: Tensor, modality: str, box_info: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """:meth:`decode` with target ``"2d"``."""
        return self.decode(embedding, modality, "2d", box_info, generator=generator)

    def decode_3d(
        self, embedding: Tensor, modality: str, box_info: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """:meth:`decode` with target ``"3d"``."""
        return self.decode(embedding, modality, "3d", box_info, generator=generator)

    def lift(
        self,
        kp2d: Tensor,
        box_info: Tensor,
        *,
        joint_noise: Tensor | None = None,
        hypotheses: int | None = None,
        sampling: SamplerConfig | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """3D poses ``(B, J, 3)`` of 2D poses ``(B, J, 2)``; the options are those of :meth:`encode` and
        :meth:`decode`."""
        embedding = self.encode(kp2d=kp2d, box_info=box_info, joint_noise=joint_noise)
        options: dict[str, Any] = {"hypotheses": hypotheses, "sampling": sampling, "generator": generator}
        return self.decode(embedding, "2d", "3d", box_info, **options)

    def estimate(
        self,
        image: Tensor,
        box_info: Tensor,
        *,
        hypotheses: int | None = None,
        sampling: SamplerConfig | None = None,
        generator: torch.Generator | None = None,
    ) -> PoseEstimate:
        """2D and 3D poses of images ``(B, 3, H, W)``, which are encoded once; the options are those of
        :meth:`decode`."""
        embedding = self.encode(image=image)
        options: dict[str, Any] = {"hypotheses": hypotheses, "sampling": sampling, "generator": generator}
        return PoseEstimate(
            self.decode(embedding, "img", "2d", box_info, **options),
            self.decode(embedding, "img", "3d", box_info, **options),
        )

    def decoding_losses(
        self,
        embeddings: dict[str, Tensor],
        joints_2d: Tensor,
        joints_3d: Tensor,
        box_info: Tensor,
        *,
        generator: torch.Generator | None = None,
        part: Part | None = None,
    ) -> tuple[Tensor, Tensor]:
        """L_2D and L_3D of equation (5), averaged over the modalities in ``embeddings`` (their names are the keys).

        All modalities pass through a decoder as one batch, each row with its own noise. ``part`` says which rows of a
        larger batch these are; see :func:`unihpe_ref.diffusion.denoising_loss`.
        """
        if not isinstance(embeddings, dict) or not embeddings:
            needed = "`decoding_losses` needs `embeddings` by modality"
            raise TypeError(three_beats(needed, describe(embeddings), "Pass `{'2d': embedding}`."))
        check_generator("decoding_losses", generator)
        self._check("decoding_losses", "joints_2d", joints_2d, (self.config.joints, 2))
        self._check("decoding_losses", "joints_3d", joints_3d, (self.config.joints, 3), len(joints_2d))
        self._check("decoding_losses", "box_info", box_info, (3,), len(joints_2d))
        part = check_part("decoding_losses", part, len(joints_2d))
        tokens = torch.cat([self._token("decoding_losses", e, name, box_info) for name, e in embeddings.items()])
        rows = torch.cat(list(embeddings.values()))
        sources = len(embeddings)
        box_info = box_info.repeat(sources, 1)
        target_2d = (joints_2d.flatten(1) / self.config.scale_2d).repeat(sources, 1)
        target_3d = (joints_3d.flatten(1) / self.config.scale_3d).repeat(sources, 1)
        return (
            self.decoder_2d.loss(target_2d, self.decoder_2d.condition(rows, tokens, box_info), generator, part),
            self.decoder_3d.loss(target_3d, self.decoder_3d.condition(rows, tokens, box_info), generator, part),
        )

    def _token(self, operation: str, embedding: Tensor, modality: str, box_info: Tensor) -> Tensor:
        check_choice(operation, "modality", modality, MODALITIES)
        self._check(operation, "embedding", embedding, (self.config.embedding_dim,))
        self._check(operation, "box_info", box_info, (3,), len(embedding))
        return torch.full((len(embedding),), MODALITIES.index(modality), device=embedding.device)

    def _check(self, operation: str, name: str, value: object, shape: tuple[int, ...], rows: int | str = "B") -> None:
        check_shape(operation, name, value, (rows, *shape))
        assert isinstance(value, Tensor)
        check_like(operation, name, value, next(self.parameters()))


def _image_encoder(config: ModelConfig) -> HRNetEncoder | ViTEncoder | None:
    if config.image_encoder == "none":
        return None
    encoder = ViTEncoder if config.image_encoder.startswith("vit") else HRNetEncoder
    return encoder(config.image_encoder, config.embedding_dim)


def noise_level(joint_noise: Tensor) -> Tensor:
    """The encoder's input for a deviation in shares of the box: its square root, scaled to 1 at 1 %."""
    return (100 * joint_noise).sqrt()


def _pose_encoder(
    config: ModelConfig, coordinates: int, *, box_token: bool, noise_token: bool = False
) -> PoseTransformer | PoseMLP:
    if config.pose_encoder == "mlp":
        return PoseMLP(
            coordinates,
            config.joints,
            config.embedding_dim,
            box_token=box_token,
            noise_token=noise_token,
            width=config.mlp_width,
            blocks=config.mlp_blocks,
            dropout=config.mlp_dropout,
        )
    return PoseTransformer(
        coordinates,
        config.joints,
        config.embedding_dim,
        box_token=box_token,
        noise_token=noise_token,
        width=config.encoder_width,
        layers=config.encoder_layers,
        heads=config.encoder_heads,
        feedforward=config.encoder_feedforward,
        dropout=config.encoder_dropout,
    )
