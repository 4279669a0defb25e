"""Encoders, decoders and their assembly: sizes of the paper, conventions, and the effect of each option."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small import POSES_ONLY, SMALL
from torch import Tensor, nn
from torch.testing import assert_close

from multicontrast import metrics
from unihpe_ref.applications.export import export_model
from unihpe_ref.config import ModelConfig, SamplerConfig
from unihpe_ref.lifter import Lifter
from unihpe_ref.models import UniHPE, best_hypothesis, costs, mean_hypothesis, parameters, retrieve
from unihpe_ref.models.hrnet import HRNetEncoder
from unihpe_ref.models.pose_transformer import PoseTransformer
from unihpe_ref.models.residual_mlp import PoseMLP
from unihpe_ref.parts import Part
from unihpe_ref.stages import make_stages


@pytest.fixture(scope="module")
def poses() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "kp2d": 0.36 * torch.randn(5, 17, 2, generator=generator),
        "kp3d": 0.3 * torch.randn(5, 17, 3, generator=generator),
        "box_info": torch.randn(5, 3, generator=generator),
        "image": torch.randn(5, 3, 32, 32, generator=generator),
    }


# Parameters, and multiply-adds of the backbone at 256 x 192 in 1e9. Those of ViT are the ones with the two products of
# attention, 2 x 12 layers x 192^2 tokens x width; tables that leave them out have 4.13 and 16.42.
_IMAGE_ENCODERS = {
    "hrnet_w32": (29_798_080, 7.73, 0),
    "hrnet_w48": (66_063_424, 15.89, 0),
    "vit_s": (22_057_600, 4.13, 384),
    "vit_b": (86_581_504, 16.42, 768),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "hrnet_w48" else []) for name in _IMAGE_ENCODERS]
)
def test_image_encoders_cost_what_they_are_known_to(name: str) -> None:
    expected, giga, attention_width = _IMAGE_ENCODERS[name]
    found, macs = costs(ModelConfig(image_encoder=name))["image encoder"]
    assert found == expected
    assert round((macs - 2 * 12 * 192**2 * attention_width) / 1e9, 2) == giga


def test_pose_networks_cost_what_they_are_known_to() -> None:
    """By hand: the encoder's layers hold 4 w^2 + 2 w f weights, used at each token, and attention 2 tokens^2 w."""
    cost = costs(ModelConfig(image_encoder="none"))
    w, f, tokens = 256, 512, 18
    layer = tokens * (4 * w * w + 2 * w * f) + 2 * tokens**2 * w
    assert cost["3D pose encoder"] == (1_850_880, 17 * 3 * w + 3 * layer + w * 1024)
    assert cost["2D pose encoder"][0] == 1_851_904
    for name in ("2D pose decoder", "3D pose decoder"):
        assert [round(number / 1e6, 1) for number in cost[name]] == [13.5, 13.5 if "3D" in name else 13.4]


def test_paper_s_image_encoders_pool_480_and_720_channels() -> None:
    for name, channels in (("hrnet_w32", 480), ("hrnet_w48", 720)):
        with torch.device("meta"):
            encoder = HRNetEncoder(name, 1024)
        assert encoder.out.in_features == channels
        assert parameters(encoder) == _IMAGE_ENCODERS[name][0]


def test_image_embedding_is_the_mean_over_each_map(poses: dict[str, Tensor]) -> None:
    encoder = HRNetEncoder("hrnet_tiny", 8).eval()
    maps = encoder.backbone(poses["image"])
    assert [tuple(features.shape[1:]) for features in maps] == [(8, 8, 8), (16, 4, 4), (32, 2, 2), (64, 1, 1)]
    pooled = torch.cat([features.flatten(2).mean(-1) for features in maps], -1)
    assert_close(encoder(poses["image"]), encoder.out(pooled))


@pytest.mark.parametrize("kind", ["transformer", "mlp"])
def test_embeddings_are_unit_rows_of_each_sample_alone(kind: str, poses: dict[str, Tensor]) -> None:
    model = UniHPE(SMALL.model.override(pose_encoder=kind)).eval()
    for modality in ("image", "kp2d", "kp3d"):
        box = {"box_info": poses["box_info"]} if modality == "kp2d" else {}
        embedding = model.encode(**{modality: poses[modality]}, **box)
        assert_close(embedding.norm(dim=-1), torch.ones(5))
        alone = model.encode(**{modality: poses[modality][2:3]}, **{k: v[2:3] for k, v in box.items()})
        assert_close(alone[0], embedding[2], atol=1e-5, rtol=1e-4)


def test_raw_condition_keeps_the_length_of_the_features(poses: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    unit = UniHPE(POSES_ONLY.model).eval()
    torch.manual_seed(0)
    raw = UniHPE(POSES_ONLY.model.override(condition="raw")).eval()
    features = raw.encode(kp3d=poses["kp3d"])
    assert not torch.allclose(features.norm(dim=-1), torch.ones(5))
    assert_close(nn.functional.normalize(features), unit.encode(kp3d=poses["kp3d"]))


def test_transformer_knows_which_joint_is_which(poses: dict[str, Tensor]) -> None:
    """Without positions a set of joints has one embedding, whatever their order."""
    encoder = PoseTransformer(3, 17, 8, box_token=False, width=16, layers=1, heads=2, feedforward=16).eval()
    swapped = poses["kp3d"].flip(1)
    assert not torch.allclose(encoder(swapped), encoder(poses["kp3d"]))
    nn.init.zeros_(encoder.position)
    assert_close(encoder(swapped), encoder(poses["kp3d"]))


@pytest.mark.parametrize("encoder_class", [PoseTransformer, PoseMLP])
def test_box_token_matters_exactly_where_it_is_on(encoder_class: type[nn.Module], poses: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    encoder = encoder_class(2, 17, 8, box_token=True, width=16).eval()
    seen = encoder(poses["kp2d"], poses["box_info"])
    assert not torch.allclose(encoder(poses["kp2d"], poses["box_info"] + 1), seen)
    blind = UniHPE(POSES_ONLY.model.override(encoder_box_token=False)).eval()
    without = blind.encode(kp2d=poses["kp2d"])
    assert_close(blind.encode(kp2d=poses["kp2d"], box_info=poses["box_info"]), without)


@pytest.mark.parametrize("decoder", ["diffusion", "mlp"])
def test_decoders_see_modality_and_box_exactly_where_they_are_on(decoder: str, poses: dict[str, Tensor]) -> None:
    embedding = nn.functional.normalize(torch.randn(5, 32), dim=-1)

    def decoded(model: UniHPE, modality: str, box_info: Tensor) -> Tensor:
        return model.decode_3d(embedding, modality, box_info, generator=torch.Generator().manual_seed(0))

    torch.manual_seed(0)
    model = UniHPE(POSES_ONLY.model.override(decoder=decoder), SamplerConfig(steps=3)).eval()
    base = decoded(model, "2d", poses["box_info"])
    assert torch.equal(decoded(model, "img", poses["box_info"]), base)  # the tokens start at zero
    nn.init.normal_(model.decoder_3d.condition.modality.weight)
    assert not torch.allclose(decoded(model, "img", poses["box_info"]), decoded(model, "2d", poses["box_info"]))
    assert not torch.allclose(decoded(model, "2d", 1 + poses["box_info"]), decoded(model, "2d", poses["box_info"]))

    bare = POSES_ONLY.model.override(decoder=decoder, modality_token=False, decoder_box_token=False)
    model = UniHPE(bare, SamplerConfig(steps=3)).eval()
    assert torch.equal(decoded(model, "img", poses["box_info"]), decoded(model, "3d", 1 + poses["box_info"]))


@pytest.mark.parametrize("decoder", ["diffusion", "mlp"])
def test_poses_come_in_metres_with_the_pelvis_at_the_origin(decoder: str, poses: dict[str, Tensor]) -> None:
    """Twice the scale of the data is twice the pose, from the same weights and noise."""

    def lifted(scale: float) -> Tensor:
        torch.manual_seed(0)
        model = UniHPE(POSES_ONLY.model.override(decoder=decoder, scale_3d=scale), SamplerConfig(steps=3)).eval()
        return model.lift(poses["kp2d"], poses["box_info"], generator=torch.Generator().manual_seed(1))

    joints = lifted(0.3)
    assert joints.shape == (5, 17, 3)
    assert torch.equal(joints[:, 0], torch.zeros(5, 3))
    assert_close(lifted(0.6), 2 * joints)


def test_estimate_is_both_decoders_on_one_embedding(poses: dict[str, Tensor]) -> None:
    model = UniHPE(SMALL.model.override(decoder="mlp")).eval()
    estimate = model.estimate(poses["image"], poses["box_info"])
    embedding = model.encode(image=poses["image"])
    assert torch.equal(estimate.joints_2d, model.decode_2d(embedding, "img", poses["box_info"]))
    assert torch.equal(estimate.joints_3d, model.decode_3d(embedding, "img", poses["box_info"]))


def test_decoding_losses_average_over_the_modalities(poses: dict[str, Tensor]) -> None:
    """The mean square error of all rows is the mean of the modalities' own."""
    model = UniHPE(SMALL.model.override(decoder="mlp")).eval()
    nn.init.normal_(model.decoder_2d.condition.modality.weight)
    embeddings = {name: nn.functional.normalize(torch.randn(5, 32), dim=-1) for name in ("img", "2d", "3d")}

    def losses(chosen: dict[str, Tensor]) -> Tensor:
        return torch.stack(model.decoding_losses(chosen, poses["kp2d"], poses["kp3d"], poses["box_info"]))

    each = torch.stack([losses({name: embedding}) for name, embedding in embeddings.items()])
    assert_close(losses(embeddings), each.mean(0))
    predicted = model.decode_2d(embeddings["2d"], "2d", poses["box_info"])
    assert_close(each[1, 0], ((predicted - poses["kp2d"]) / 0.36).square().mean())


def test_noise_draws_average_the_same_loss(poses: dict[str, Tensor]) -> None:
    def loss(draws: int, seed: int) -> float:
        torch.manual_seed(0)
        model = UniHPE(POSES_ONLY.model.override(noise_draws=draws)).eval()
        embeddings = {"2d": model.encode(kp2d=poses["kp2d"], box_info=poses["box_info"])}
        generator = torch.Generator().manual_seed(seed)
        args = (poses["kp2d"], poses["kp3d"], poses["box_info"])
        return model.decoding_losses(embeddings, *args, generator=generator)[1].item()

    single = torch.tensor([loss(1, seed) for seed in range(60)])
    many = torch.tensor([loss(16, seed) for seed in range(60)])
    error = (single.var() / 60 + many.var() / 60).sqrt()
    assert (single.mean() - many.mean()).abs() < 4 * error
    assert many.std() < single.std() / 2


@pytest.mark.parametrize("sampler", ["gfpose", "ode", "sde"])
def test_hypotheses_are_drawn_for_one_embedding_each_with_noise_of_its_own(
    sampler: str, poses: dict[str, Tensor]
) -> None:
    torch.manual_seed(0)
    model = UniHPE(POSES_ONLY.model.override(parameterisation="preconditioned"), SamplerConfig(steps=50)).eval()
    sampling = SamplerConfig(sampler=sampler, steps=4)

    def lifted(**options: object) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        return model.lift(poses["kp2d"], poses["box_info"], sampling=sampling, generator=generator, **options)

    several = lifted(hypotheses=6)
    assert several.shape == (6, 5, 17, 3)
    assert torch.equal(several[:, :, 0], torch.zeros(6, 5, 3))
    assert not torch.allclose(several[0], several[1])
    # as if the batch held each sample six times
    generator = torch.Generator().manual_seed(3)
    again = model.lift(
        poses["kp2d"].repeat(6, 1, 1), poses["box_info"].repeat(6, 1), sampling=sampling, generator=generator
    )
    assert_close(several.flatten(0, 1), again)
    assert lifted().shape == (5, 17, 3)
    assert lifted(hypotheses=1).shape == (1, 5, 17, 3)


@pytest.mark.parametrize("parameterisation", ["noise", "preconditioned"])
def test_a_score_decoder_that_states_nothing_loses_one_for_each_coordinate(parameterisation: str) -> None:
    """The variance of what it should state, weighed alike at every time."""
    torch.manual_seed(0)
    config = POSES_ONLY.model.override(parameterisation=parameterisation, denoising_reduction="mean")
    decoder = UniHPE(config).eval().decoder_3d
    nn.init.zeros_(decoder.network.out.weight)
    nn.init.zeros_(decoder.network.out.bias)
    target, rows = torch.randn(2000, 51), torch.zeros(2000, 32)
    token, box_info = torch.zeros(2000, dtype=torch.int64), torch.zeros(2000, 3)
    assert decoder.loss(
        target, decoder.condition(rows, token, box_info), None, Part.whole(2000)
    ).item() == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize("sampler", ["gfpose", "ode", "sde"])
def test_a_sampling_projects_the_condition_once_and_the_time_once_a_step(
    sampler: str, poses: dict[str, Tensor]
) -> None:
    """Rows that the projections of all layers were given, whatever the hypotheses and steps."""
    model = UniHPE(POSES_ONLY.model, SamplerConfig(sampler=sampler, steps=4)).eval()
    network = model.decoder_3d.network
    rows: dict[str, list[int]] = {"condition": [], "time": []}
    for layer in (network.stem, *network.blocks):
        for name, seen in rows.items():
            getattr(layer, name).register_forward_hook(lambda _, given, __, seen=seen: seen.append(len(given[0])))
    model.lift(poses["kp2d"], poses["box_info"], hypotheses=3)
    evaluations, layers = (7 if sampler == "ode" else 4), 1 + len(network.blocks)
    assert rows == {"condition": [5] * layers, "time": [1] * layers * evaluations}


def test_training_projects_the_condition_once_for_all_noise_draws(poses: dict[str, Tensor]) -> None:
    model = UniHPE(POSES_ONLY.model.override(noise_draws=4)).eval()
    rows: list[int] = []
    model.decoder_3d.network.stem.condition.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    embeddings = {"2d": model.encode(kp2d=poses["kp2d"], box_info=poses["box_info"])}
    model.decoding_losses(embeddings, poses["kp2d"], poses["kp3d"], poses["box_info"])
    assert rows == [5]


@pytest.mark.parametrize("encoder", ["mlp", "transformer"])
def test_the_level_of_the_joints_noise_is_told_exactly_where_it_is_asked_for(
    encoder: str, poses: dict[str, Tensor]
) -> None:
    def lifted(level: float | None, **changes: object) -> Tensor:
        torch.manual_seed(0)
        model = UniHPE(POSES_ONLY.model.override(pose_encoder=encoder, decoder="mlp", **changes)).eval()
        joint_noise = None if level is None else torch.full((5,), level)
        return model.lift(poses["kp2d"], poses["box_info"], joint_noise=joint_noise)

    assert torch.equal(lifted(0.01), lifted(None))
    assert torch.equal(lifted(0.0, encoder_noise_token=True), lifted(None, encoder_noise_token=True))
    assert not torch.allclose(lifted(0.01, encoder_noise_token=True), lifted(None, encoder_noise_token=True))
    with pytest.raises(ValueError, match="needs `encoder_box_token`"):
        lifted(0.0, encoder_noise_token=True, encoder_box_token=False)


@pytest.mark.parametrize("encoder", ["mlp", "transformer"])
def test_a_model_with_a_fixed_joint_noise_gives_the_same_numbers(encoder: str, poses: dict[str, Tensor]) -> None:
    model = UniHPE(POSES_ONLY.model.override(pose_encoder=encoder, decoder="mlp", encoder_noise_token=True)).eval()
    fixed = model.with_joint_noise(0.012)
    assert not fixed.config.encoder_noise_token
    joint_noise = torch.full((5,), 0.012)
    expected = model.lift(poses["kp2d"], poses["box_info"], joint_noise=joint_noise)
    assert_close(fixed.lift(poses["kp2d"], poses["box_info"]), expected)
    assert fixed.with_joint_noise(0.5) is fixed  # it has no input for it


def test_the_mean_of_hypotheses_is_honest_and_the_best_one_looks_at_the_answer() -> None:
    target = torch.randn(4, 17, 3, generator=torch.Generator().manual_seed(0))
    hypotheses = target + torch.randn(7, 4, 17, 3, generator=torch.Generator().manual_seed(1))
    assert_close(mean_hypothesis(hypotheses), sum(hypotheses) / 7)
    best = best_hypothesis(hypotheses, target)
    by_hand = [min(hypotheses[:, k], key=lambda pose: (pose - target[k]).norm(dim=-1).mean()) for k in range(4)]
    assert torch.equal(best, torch.stack(by_hand))
    assert_close(metrics.mpjpe(best, target), metrics.min_mpjpe(hypotheses, target))
    with pytest.raises(ValueError, match=r"`target` of shape \(4, 17, 3\); got a float32"):
        best_hypothesis(hypotheses, target[:3])
    with pytest.raises(ValueError, match="Ask `decode` for `hypotheses=H`"):
        mean_hypothesis(target)


def test_decode_goes_from_any_modality_to_either_pose(poses: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    model = UniHPE(SMALL.model.override(decoder="mlp")).eval()
    nn.init.normal_(model.decoder_2d.condition.modality.weight)
    nn.init.normal_(model.decoder_3d.condition.modality.weight)
    given = {"img": {"image": poses["image"]}, "3d": {"kp3d": poses["kp3d"]}}
    given["2d"] = {"kp2d": poses["kp2d"], "box_info": poses["box_info"]}
    for source, inputs in given.items():
        embedding = model.encode(**inputs)
        for target, shape in (("2d", (5, 17, 2)), ("3d", (5, 17, 3))):
            joints = model.decode(embedding, source, target, poses["box_info"])
            assert joints.shape == shape
            assert all(
                not torch.allclose(model.decode(embedding, other, target, poses["box_info"]), joints)
                for other in given.keys() - {source}
            )


def test_retrieval_finds_the_nearest_of_another_modality_by_cosine() -> None:
    generator = torch.Generator().manual_seed(0)
    gallery = torch.randn(1500, 8, generator=generator)
    query = 3 * gallery[200:1400] + 0.01 * torch.randn(1200, 8, generator=generator)  # of any length
    found = retrieve(query, gallery, k=3)
    assert torch.equal(found.index[:, 0], torch.arange(200, 1400))
    cosine = nn.functional.cosine_similarity(query[:, None], gallery[None], dim=-1)
    expected = cosine.sort(descending=True, stable=True)
    assert_close(found.cosine, expected.values[:, :3])
    assert torch.equal(found.index, expected.indices[:, :3])
    assert retrieve(query[:0], gallery).index.shape == (0, 5)
    for bad, message in (
        ((query, gallery, 0), "`k` >= 1; got 0. The gallery holds 1500"),
        ((query[:, :5], gallery, 1), "query's 5 numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            retrieve(*bad)


def _call(name: str, **changes: object) -> Callable[[dict[str, Tensor]], object]:
    def call(poses: dict[str, Tensor]) -> object:
        model = UniHPE(POSES_ONLY.model, SamplerConfig(steps=1)).eval()
        arguments = {key: value(poses) if callable(value) else value for key, value in changes.items()}
        return getattr(model, name)(**arguments)

    return call


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (_call("encode"), ValueError, "exactly one of `image`, `kp2d` and `kp3d`; got none of them"),
        (
            _call("encode", kp2d=lambda p: p["kp2d"], kp3d=lambda p: p["kp3d"]),
            ValueError,
            "got `kp2d`, `kp3d`. Call it once",
        ),
        (_call("encode", image=lambda p: p["image"]), ValueError, "needs a model with an image encoder"),
        (_call("encode", kp3d=lambda p: p["kp2d"]), ValueError, r"`kp3d` of shape \(B, 17, 3\); got a float32"),
        (_call("encode", kp3d=[1.0]), TypeError, "needs `kp3d` to be a tensor"),
        (_call("encode", kp2d=lambda p: p["kp2d"]), TypeError, "needs `box_info` to be a tensor; got None"),
        (
            _call("encode", kp2d=lambda p: p["kp2d"], box_info=lambda p: p["box_info"][:2]),
            ValueError,
            r"`box_info` of shape \(5, 3\)",
        ),
        (
            _call("decode_3d", embedding=torch.ones(5, 32), modality="image", box_info=torch.ones(5, 3)),
            ValueError,
            "`modality` to be one of '2d', '3d', 'img'; got 'image'",
        ),
        (
            _call("decode_2d", embedding=torch.ones(5, 31), modality="img", box_info=torch.ones(5, 3)),
            ValueError,
            r"`embedding` of shape \(B, 32\)",
        ),
        (
            _call("decode", embedding=torch.ones(5, 32), source="img", target="4d", box_info=torch.ones(5, 3)),
            ValueError,
            "`target` to be one of '2d', '3d'; got '4d'",
        ),
        (
            lambda p: (
                UniHPE(POSES_ONLY.model.override(decoder="mlp")).eval().lift(p["kp2d"], p["box_info"], hypotheses=2)
            ),
            ValueError,
            "a score-based decoder to draw them; got 2 of a MLPDecoder. Leave it out",
        ),
        (lambda _: HRNetEncoder("hrnet_w33", 8), ValueError, "Did you mean 'hrnet_w32'"),
        (
            lambda _: HRNetEncoder("hrnet_tiny", 8)(torch.ones(2, 3, 48, 32)),
            ValueError,
            r"multiples of 32; got a float32 tensor of shape \(2, 3, 48, 32\)",
        ),
        (
            lambda _: PoseTransformer(2, 17, 8, box_token=True, width=30, heads=4),
            ValueError,
            r"multiple of `heads` \(4\); got 30",
        ),
    ],
)
def test_errors_come_before_any_work(
    call: Callable[[dict[str, Tensor]], object], error: type[Exception], message: str, poses: dict[str, Tensor]
) -> None:
    with pytest.raises(error, match=message):
        call(poses)


def test_a_model_that_only_lifts_has_half_of_the_parts_and_says_so(poses: dict[str, Tensor], tmp_path: Path) -> None:
    whole = UniHPE(POSES_ONLY.model.override(decoder="mlp")).eval()
    config = POSES_ONLY.override(**{"model.decoder": "mlp", "model.lifting_only": True})
    model = UniHPE(config.model).eval()
    held = {name.split(".")[0] for name in model.state_dict()}
    assert held == {"encoder_2d", "decoder_3d"}
    weights = whole.state_dict()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    assert torch.equal(model.lift(poses["kp2d"], poses["box_info"]), whole.lift(poses["kp2d"], poses["box_info"]))
    assert set(costs(config.model)) == {"2D pose encoder", "3D pose decoder"}
    with pytest.raises(ValueError, match="needs a model with a 3D encoder; got one that only lifts"):
        model.encode(kp3d=poses["kp3d"])
    with pytest.raises(ValueError, match="needs a model with a 2D decoder; got one that only lifts"):
        model.decode_2d(torch.ones(5, 32), "2d", poses["box_info"])
    with pytest.raises(ValueError, match="--part encoder-3d` needs a model with a 3D encoder; got one that only lifts"):
        export_model(Lifter(model, config), "encoder-3d", tmp_path / "encoder.pt2")
    assert not list(tmp_path.iterdir())


def test_a_model_that_only_lifts_is_trained_by_one_stage() -> None:
    none = {"stage1.steps": 0, "stage3.steps": 0}
    only = POSES_ONLY.override(**{"model.lifting_only": True, "lifting.steps": 2, "model.decoder": "mlp"})
    assert [stage.name for stage in make_stages(only.override(**none))] == ["lifting"]
    with pytest.raises(ValueError, match="trained by the stage `lifting` alone; got steps in 1 poses, 3 everything"):
        make_stages(only)
    with pytest.raises(ValueError, match=r"`ModelConfig\.lifting_only` needs `image_encoder='none'`; got 'hrnet_tiny'"):
        SMALL.override(**{"model.lifting_only": True})
