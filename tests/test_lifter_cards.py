"""The cards of the shipped lifters, and the tables made of them."""

import json

import pytest
import torch

pytest.importorskip("timm", reason="the lifters are UniHPE models; install the extra `unihpe`")

from benchmarks import lifters
from unihpe_ref.checkpoint import save_model
from unihpe_ref.config import RunConfig
from unihpe_ref.lifter import SHIPPED, load_lifter
from unihpe_ref.models import UniHPE


@pytest.mark.parametrize("page", lifters.PAGES, ids=lambda page: page.name)
def test_tables_of_the_pages_are_those_of_the_cards(page):
    text = page.read_text()
    assert "<!-- table: lifters -->" in text
    assert lifters.render(text) == text, "run `python -m benchmarks.lifters page`"


@pytest.mark.parametrize("joints_2d", SHIPPED)
def test_a_card_describes_the_file_beside_it(joints_2d):
    card = json.loads(lifters.card_path(joints_2d).read_text())
    lifter = load_lifter(joints_2d=joints_2d)
    assert card["parameters"] == sum(parameter.numel() for parameter in lifter.model.parameters())
    assert card["preset"] == lifter.config.preset
    exact = card["joint_noise"]["0.0"]
    of_training = card["evaluation"]["paths"]["2D to 3D, flip"]["frame_mean"]
    for metric, value in exact.items():
        assert value == pytest.approx(of_training[metric], abs=0.1)  # stored in half precision since
    errors = [card["joint_noise"][str(noise)]["MPJPE"] for noise in lifters.NOISE]
    assert errors == sorted(errors)


def test_what_is_shipped_is_the_run_it_came_from(tmp_path, monkeypatch):
    """The pair of the run, in half precision, and a card with the run's own numbers."""
    torch.manual_seed(0)
    config = RunConfig(preset="small").override(
        **{"model.image_encoder": "none", "model.pose_encoder": "mlp", "model.decoder": "mlp", "model.mlp_width": 16,
           "model.embedding_dim": 32}
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
    weights, card = lifters.ship(run, "detected")
    shipped = load_lifter(weights)
    assert shipped.config.preset == "lifter-detected"
    for name, value in shipped.model.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-3, atol=1e-4)
    told = json.loads(card.read_text())
    assert told["evaluation"] == {"frames": 3, "value": 1.235}
    assert told["trained"]["wall_minutes"] == 1.5
    assert lifters.main(["ship", str(tmp_path / "nowhere"), "--joints-2d", "detected"]) == 2
