"""The configuration: errors with suggestions, and JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from unihpe_ref.config import DataConfig, ModelConfig, RunConfig, Stage1, Stage2, Stage3
from unihpe_ref.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_json(name: str) -> None:
    config = preset(name).override(motion=Path("a/b.npz"))
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_defaults_are_the_paper_s() -> None:
    """Section 4.2."""
    config = preset("paper")
    assert (config.stage1.batch_size, config.stage2.batch_size, config.stage3.batch_size) == (2048, 180, 180)
    bounds = [
        (s.temperature, s.temperature_min, s.temperature_max) for s in (config.stage1, config.stage2, config.stage3)
    ]
    assert bounds == [(1 / 14, 1 / 100, 1e4), (1 / 5, 1 / 10, 1e4), (1 / 5, 1 / 5, 1e4)]
    assert {s.learning_rate for s in (config.stage1, config.stage2, config.stage3)} == {1e-4}
    assert (config.stage2.alpha, config.stage3.alpha) == (1, 1)
    assert (config.data.image_size, config.sampler.steps, config.model.embedding_dim) == ((256, 192), 1000, 1024)


def test_override_reaches_into_nested_settings_and_leaves_the_original() -> None:
    config = RunConfig()
    changed = config.override(seed=3, **{"stage3.steps": 5, "stage3.alpha": 0.5})
    assert (changed.seed, changed.stage3.steps, changed.stage3.alpha) == (3, 5, 0.5)
    assert changed.override(seed=0, **{"stage3.steps": 20000, "stage3.alpha": 1}) == config


def test_whole_numbers_become_floats_and_lists_tuples() -> None:
    config = DataConfig.from_dict({"scale": 0, "image_size": [64, 32]})
    assert isinstance(config.scale, float)
    assert config.image_size == (64, 32)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: Stage2().override(temprature=0.1),
            ValueError,
            "`Stage2` has no option `temprature`. Did you mean `temperature`",
        ),
        (
            lambda: RunConfig().override(**{"stage9.steps": 1}),
            ValueError,
            "`RunConfig` has no option `stage9`. Did you mean",
        ),
        (lambda: RunConfig().override(xyz=1), ValueError, "It has `preset`, `seed`"),
        (
            lambda: RunConfig().override(**{"seed.value": 1}),
            ValueError,
            "`RunConfig.seed` is a single value; got options",
        ),
        (lambda: RunConfig.from_dict({"model": {"widht": 3}}), ValueError, "`ModelConfig` has no option `widht`"),
        (lambda: RunConfig.from_dict([1]), TypeError, "read from a JSON object; got a list"),
        (lambda: RunConfig.from_dict({"stage1": 3}), TypeError, "`Stage1` is read from a JSON object; got 3"),
        (lambda: ModelConfig(pose_encoder="transfomer"), ValueError, "Did you mean 'transformer'"),
        (lambda: ModelConfig(joints=17.0), TypeError, "`ModelConfig.joints` needs int; got 17.0"),
        (lambda: ModelConfig(modality_token=1), TypeError, "`ModelConfig.modality_token` needs bool; got 1"),
        (lambda: ModelConfig(encoder_layers=True), TypeError, "needs int; got True"),
        (lambda: Stage1(steps=-1), ValueError, "`Stage1.steps` needs to be at least 0; got -1. Its default is 8000"),
        (lambda: Stage1(learning_rate=0), ValueError, "needs to be greater than 0; got 0.0"),
        (lambda: Stage1(learning_rate=float("nan")), ValueError, "needs to be greater than 0; got nan"),
        (lambda: Stage3(ema_decay=1.0), ValueError, "needs to be less than 1; got 1.0"),
        (lambda: Stage3(temperature=0.1), ValueError, r"starts within its bounds; got 0.1 for \[0.2, 10000\]"),
        (
            lambda: DataConfig(image_size=(64, 16)),
            ValueError,
            "`DataConfig.image_size` needs to be at least 32; got 16",
        ),
        (lambda: DataConfig(image_size=(64,)), TypeError, "`DataConfig.image_size` needs tuple"),
        (lambda: RunConfig(motion=3), TypeError, "`RunConfig.motion` needs Path"),
        (lambda: preset("papr"), ValueError, "Did you mean 'paper'"),
    ],
)  # fmt: skip
def test_settings_say_what_does_not_fit(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_each_row_of_the_ablations_is_a_preset_that_differs_in_that_row_alone() -> None:
    """Tables 4, 5 and 6 of the paper; the rows that a table has in common with the paper's model are that model."""
    paper = preset("paper")
    rows = {name: preset(name).override(preset="paper").differences(paper) for name in PRESETS if "table" in name}
    assert {name for name, found in rows.items() if not found} == {
        "table4-transformer-diffusion",
        "table5-hrnet-w32",
        "table6-pairs-triplet-token",
        "table6-pairs-triplet-token-3dhp",
    }
    mlp = {"model.pose_encoder": ("mlp", "transformer")}
    direct = {"model.decoder": ("mlp", "diffusion")}
    blind = {"model.modality_token": (False, True)}
    assert rows["table4-mlp-mlp"] == mlp | direct
    assert rows["table4-transformer-mlp"] == direct
    assert rows["table4-mlp-diffusion"] == mlp
    for name, encoder in (("vit-s", "vit_s"), ("vit-b", "vit_b"), ("hrnet-w48", "hrnet_w48")):
        assert rows[f"table5-{name}"] == {"model.image_encoder": (encoder, "hrnet_w32")}
    assert rows["table6-pairs-triplet"] == blind
    assert rows["table6-pairs"] == blind | {"stage2.alpha": (0, 1)}
    off = {"stage1.steps": (0, 8000), "stage2.steps": (0, 8000), "stage3.contrastive_weight": (0, 1)}
    assert rows["table6-no-contrast"] == blind | off
