"""The card of the shipped lifter, and the tables of its evaluation."""

import hashlib
import json

import pytest
import torch

pytest.importorskip("timm", reason="the lifter is a UniHPE model; install the extra `unihpe`")

from benchmarks import doubts, lifters
from benchmarks.judged import on_motion
from multicontrast.metrics import pa_mpjpe
from unihpe_ref.checkpoint import load_model, save_model
from unihpe_ref.config import RunConfig
from unihpe_ref.data import JOINT_NOISE, generate_motion
from unihpe_ref.lifter import load_lifter
from unihpe_ref.models import UniHPE
from unihpe_ref.weights import ASSETS, CARD, LIFTER, WHOLE, lifter_path


@pytest.mark.parametrize("page", lifters.PAGES, ids=lambda page: page.name)
def test_tables_of_the_pages_are_those_of_the_rows(page):
    text = page.read_text()
    assert "<!-- table: lifters -->" in text
    assert lifters.render(text) == text, "run `python -m benchmarks.lifters page`"


def test_the_table_of_cameras_is_that_of_the_shipped_lifter():
    text = doubts.PAGE.read_text()
    assert "<!-- table: steep -->" in text
    assert doubts.render(text) == text, "run `python -m benchmarks.doubts page`"
    digits = hashlib.sha256(lifter_path().read_bytes()).hexdigest()[:12]
    measured = {line["weights"] for line in doubts.records.latest(doubts.RESULTS)}
    assert measured == {digits}, "run `python -m benchmarks.doubts measure`"


def test_the_card_describes_the_file_beside_it():
    card = json.loads((ASSETS / CARD).read_text())
    lifter, (_, config) = load_lifter(), load_model(lifter_path())
    assert card["preset"] == config.preset
    assert abs(card["parameters"] - sum(parameter.numel() for parameter in lifter.model.parameters())) <= 512
    assert config.model.encoder_noise_token
    if (ASSETS / WHOLE).exists():
        assert card["whole_sha256"] == hashlib.sha256((ASSETS / WHOLE).read_bytes()).hexdigest()


def test_shipped_weights_name_no_folder_of_the_machine_that_trained_them():
    for path in ASSETS.glob("*.safetensors"):
        _, config = load_model(path)
        assert config.motion is None or config.motion.name == str(config.motion)


def test_the_rows_are_of_the_file_that_is_shipped():
    digits = hashlib.sha256(lifter_path().read_bytes()).hexdigest()[:12]
    shipped = [line for line in lifters.records.every(lifters.RESULTS) if line["lifter"] == lifters.SHIPPED]
    assert {line["joints_2d"] for line in shipped if line["weights"] == digits} == set(JOINT_NOISE)


def test_the_whole_lifter_lifts_as_the_shipped_one_does():
    if not (ASSETS / WHOLE).exists():
        pytest.skip(f"{WHOLE} is in a checkout alone")
    joints = torch.rand(3, 17, 2, generator=torch.Generator().manual_seed(0)) * 400 + 300
    size = torch.tensor([1000.0, 1000.0])
    some, whole = (load_lifter(whole=whole).lift(joints, image_size=size).joints_3d for whole in (False, True))
    assert torch.equal(some, whole)


def test_what_is_shipped_is_the_run_it_came_from(tmp_path, monkeypatch):
    """The pair of the run and the whole, in half precision, and a card with the run's own numbers."""
    torch.manual_seed(0)
    config = RunConfig(preset="small").override(
        **{"model.image_encoder": "none", "model.pose_encoder": "mlp", "model.decoder": "mlp", "model.mlp_width": 16,
           "model.embedding_dim": 32, "model.encoder_noise_token": True}
    )  # fmt: skip
    model = UniHPE(config.model).eval()
    run, assets = tmp_path / "run", tmp_path / "assets"
    run.mkdir()
    assets.mkdir()
    save_model(model, config, run / "model.safetensors")
    environment = {"packages": {"torch": "2"}, "threads": 1, "processor": "any"}
    (run / "environment.json").write_text(json.dumps(environment))
    (run / "log.jsonl").write_text('{"seconds": 1.0}\n{"seconds": 90.0}\n')
    (run / "evaluation.json").write_text(json.dumps({"frames": 3, "value": 1.23456}))
    monkeypatch.setattr(lifters, "ASSETS", assets)
    pair, whole, card = lifters.ship(run)
    assert [path.name for path in (pair, whole, card)] == [LIFTER, WHOLE, CARD]
    told = json.loads(card.read_text())
    for path, parts in (
        (pair, {"encoder_2d", "decoder_3d"}),
        (whole, {name.split(".")[0] for name in model.state_dict()}),
    ):
        held = load_model(path)[0].state_dict()
        assert {name.split(".")[0] for name in held} == parts
        for name, value in held.items():
            torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-3, atol=1e-4)
    assert told["whole_sha256"] == hashlib.sha256(whole.read_bytes()).hexdigest()
    assert told["evaluation"] == {"frames": 3, "value": 1.235}
    assert told["trained"]["wall_minutes"] == 1.5
    assert lifters.main(["ship", str(tmp_path / "nowhere")]) == 2
    rows = lifters.judge(load_lifter(pair), pair, "small", "detected", list(on_motion(small_motion()))[:1])
    assert [row.joint_noise for row in rows] == [*lifters.NOISE, 0.0, 0.0]
    assert [row.focal_length for row in rows[-2:]] == list(lifters.FOCAL_LENGTHS)
    assert all(row.mpjpe >= row.pa_mpjpe > 0 for row in rows)


def small_motion():
    return generate_motion(0, actions=("walk", "sit"), num_subjects=3, num_test_subjects=1, seconds=2.0)


def test_what_lifters_are_judged_on_differs_in_what_the_rows_say():
    recorded, trained, h36m, people, anywhere, generated = on_motion(small_motion())
    assert (
        len(trained.joints_3d)
        and float(torch.cdist(trained.joints_3d.flatten(1), recorded.joints_3d.flatten(1)).min()) > 0
    )
    for other in (h36m, people):
        assert other.joints_3d.shape == recorded.joints_3d.shape
        assert float(pa_mpjpe(other.joints_3d, recorded.joints_3d)) > 0.005
    thigh = (h36m.joints_3d[:, 2] - h36m.joints_3d[:, 1]).norm(dim=-1)
    torch.testing.assert_close(thigh, torch.full_like(thigh, 0.442), atol=1e-4, rtol=0)
    assert anywhere.joints_px.isfinite().all()
    assert generated.joints_3d.isfinite().all()
    noisy = recorded.with_noise(0.01)
    assert 0 < float((noisy.joints_px - recorded.joints_px).std()) < 20
    assert torch.equal(noisy.joints_px, recorded.with_noise(0.01).joints_px)
    assert torch.equal(recorded.with_focal_length(2.0).intrinsics[:, 0, 0], 2 * recorded.intrinsics[:, 0, 0])
