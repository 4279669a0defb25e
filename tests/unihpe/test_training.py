"""Training: trained and frozen parts, reproducible bits, checkpoints, and the log."""

import itertools
import json
import math
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from small import POSES_ONLY, SMALL, quiet_log, small_motion, small_source, weights

from multicontrast import metrics
from unihpe_ref.applications.run import run_folder
from unihpe_ref.checkpoint import load_model, save_model
from unihpe_ref.config import EvaluationConfig, Stage1, Stage3
from unihpe_ref.evaluation import MeanPose, evaluate
from unihpe_ref.files import write_whole
from unihpe_ref.models import PoseEstimate, UniHPE
from unihpe_ref.runs import new_model, open_source, train_model
from unihpe_ref.stages import ImageAlignment, MultiTask, PoseAlignment, make_stages
from unihpe_ref.training import fit, learning_rate_factor, make_optimizer


def model_of(config=SMALL) -> UniHPE:
    torch.manual_seed(0)
    return UniHPE(config.model, config.sampler)


def changed(before: dict, after: dict) -> set[str]:
    """The parts of the model, by the first word of their names, in which some weight moved."""
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("stage", "parts"),
    [
        (PoseAlignment(SMALL.stage1), {"encoder_2d", "encoder_3d"}),
        (ImageAlignment(SMALL.stage2), {"image_encoder"}),
    ],
    ids=["stage 1", "stage 2"],
)
def test_a_stage_moves_its_own_parts_and_no_other(stage, parts, tmp_path):
    model = model_of()
    before = weights(model)
    with quiet_log(tmp_path) as log:
        fit(stage, model, small_source(images=stage.needs_images), log, seed=1)
    assert changed(before, weights(model)) == parts
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_stage_3_moves_everything(tmp_path):
    model = model_of()
    before = weights(model)
    with quiet_log(tmp_path) as log:
        fit(MultiTask(SMALL.stage3), model, small_source(images=True), log, seed=1)
    assert changed(before, weights(model)) == {name.split(".")[0] for name in before}


@pytest.mark.parametrize(("stage", "low"), [(PoseAlignment, 1 / 100), (ImageAlignment, 1 / 10), (MultiTask, 1 / 5)])
def test_each_stage_has_its_own_temperature_and_bounds(stage, low):
    config = {PoseAlignment: SMALL.stage1, ImageAlignment: SMALL.stage2, MultiTask: SMALL.stage3}[stage]
    temperature = stage(config).temperature
    assert math.isclose(temperature.min, low)
    assert temperature.max == 1e4
    with torch.no_grad():
        temperature.log_tau.fill_(-30)
    assert temperature().item() >= low


def test_the_temperature_is_in_the_optimizer_without_weight_decay():
    model = model_of()
    stage = PoseAlignment(SMALL.stage1.override(weight_decay=0.1))
    weighted, free = make_optimizer(model, stage).param_groups
    assert weighted["weight_decay"] == 0.1
    assert free["weight_decay"] == 0.0
    assert free["params"] == [stage.temperature.log_tau]


def test_the_learning_rate_warms_up_and_falls_to_its_end():
    config = Stage1(steps=30, warmup_steps=10, final_learning_rate=0.1)
    factors = [learning_rate_factor(step, config) for step in range(31)]
    assert factors[:10] == [(step + 1) / 10 for step in range(10)]
    assert factors[10] == 1
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))
    assert math.isclose(factors[30], 0.1)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path):
    motion = small_motion(seconds=2.0)
    runs = []
    for k, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(k)
        folder.mkdir()
        with quiet_log(folder) as log:
            runs.append(weights(train_model(SMALL.override(seed=seed), motion, log, torch.device("cpu"))))
    assert not changed(runs[0], runs[1])
    assert changed(runs[0], runs[2])


def test_every_step_is_a_record(tmp_path):
    with quiet_log(tmp_path) as log:
        train_model(SMALL, small_motion(seconds=2.0), log, torch.device("cpu"))
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["event"] == "step"]
    assert [(record["stage"], record["step"]) for record in steps] == [
        (stage.name, step + 1) for stage in make_stages(SMALL) for step in range(stage.config.steps)
    ]
    assert all(math.isfinite(record["loss"]) for record in steps)
    assert {"cosine_img_2d", "cosine_img_3d", "cosine_2d_3d", "tau", "gradient_norm"} <= set(steps[-1])


def test_stage_3_ends_with_the_average_of_its_weights(tmp_path):
    """With a decay of 0 the average is the last weights; with the warm-up of GFPose it lags behind them."""
    ends = {}
    for decay in (0.0, 0.9999):
        model = model_of(POSES_ONLY)
        stage = MultiTask(Stage3(**{**vars(POSES_ONLY.stage3), "ema_decay": decay}))
        with quiet_log(tmp_path) as log:
            fit(stage, model, small_source(), log, seed=1)
        ends[decay] = weights(model)
    assert changed(ends[0.0], ends[0.9999])


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    model = model_of(POSES_ONLY)
    with torch.no_grad():
        next(model.encoder_2d.parameters()).fill_(torch.nan)
    with quiet_log(tmp_path) as log, pytest.raises(FloatingPointError, match="needs a finite loss; got nan at step 1"):
        fit(PoseAlignment(POSES_ONLY.stage1), model, small_source(), log, seed=1)


def test_a_model_without_images_skips_stage_2():
    assert [stage.number for stage in make_stages(SMALL)] == [1, 2, 3]
    assert [stage.number for stage in make_stages(POSES_ONLY)] == [1, 3]
    assert [stage.number for stage in make_stages(SMALL.override(**{"stage1.steps": 0}))] == [2, 3]


# --- checkpoints ----------------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_whole(tmp_path):
    model = model_of()
    save_model(model, SMALL, tmp_path / "model.safetensors")
    first = (tmp_path / "model.safetensors").read_bytes()
    for _ in range(8):  # the same bytes each time, though safetensors orders its metadata at random
        save_model(model, SMALL, tmp_path / "model.safetensors")
        assert (tmp_path / "model.safetensors").read_bytes() == first
    loaded, config = load_model(tmp_path / "model.safetensors")
    assert config == SMALL
    assert not changed(weights(model), weights(loaded))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_run_can_start_from_another_model_of_the_same_parts(tmp_path):
    other = new_model(SMALL.override(seed=5))
    save_model(other, SMALL, tmp_path / "other.safetensors")
    config = SMALL.override(start=tmp_path / "other.safetensors")
    started = new_model(config)
    assert not changed(weights(other), weights(started))
    assert changed(weights(model_of(SMALL)), weights(started))
    with pytest.raises(ValueError, match=r"`start` needs a model with `model\.mlp_width` = 8; got 16 in "):
        new_model(config.override(**{"model.mlp_width": 8}))


def test_a_damaged_checkpoint_is_refused_in_words(tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(model_of(POSES_ONLY), POSES_ONLY, path)
    whole = path.read_bytes()
    with pytest.raises(FileNotFoundError, match="needs to be a checkpoint; got no such file"):
        load_model(tmp_path / "other.safetensors")
    for cut in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="needs to be a whole safetensors file; got another file or a damaged"):
            load_model(path)
    altered = bytearray(whole)
    altered[-3] ^= 1
    path.write_bytes(altered)
    with pytest.raises(ValueError, match="weights that match its checksum; got altered bytes"):
        load_model(path)
    path.write_bytes(whole.replace(b"unihpe_ref/1", b"unihpe_ref/9"))
    with pytest.raises(ValueError, match="checkpoint of format unihpe_ref/1; got format unihpe_ref/9"):
        load_model(path)


def test_a_file_that_could_not_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")

    def full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_folder_with_a_model_is_not_overwritten_unasked(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FileExistsError, match="a folder without a trained model"), run_folder(tmp_path):
        pass
    with run_folder(tmp_path, overwrite=True):
        assert (tmp_path / "model.safetensors").exists()  # until there is another
    with (
        pytest.raises(NotADirectoryError, match="needs a folder; got the file"),
        run_folder(tmp_path / "model.safetensors", overwrite=True),
    ):
        pass
    with (
        pytest.raises(ValueError, match="needs one of them; got both"),
        run_folder(tmp_path, overwrite=True, resume=True),
    ):
        pass


# --- evaluation -----------------------------------------------------------------------------------------------------


def test_evaluation_averages_over_frames_and_over_actions():
    motion = small_motion(seconds=2.0)
    config = EvaluationConfig(stride=7, batch_size=5)
    source = open_source(motion, POSES_ONLY, images=False)
    mean_pose = MeanPose.of(source.split("train"), config)
    result = evaluate(model_of(POSES_ONLY).eval(), source.split("test"), mean_pose, config)
    test = source.split("test")
    batch = test.evaluation_batch(test.evaluation_indices(7))
    guess = mean_pose.joints_3d.expand_as(batch.joints_3d)
    errors = 1000 * metrics.mpjpe(guess, batch.joints_3d, reduction="none").double()
    path = result.path("mean pose, 3D")
    assert result.frames == len(batch)
    assert math.isclose(path.frame_mean["MPJPE"], errors.mean().item(), rel_tol=1e-6)
    per_action = [errors[batch.action == k].mean().item() for k in batch.action.unique()]
    assert math.isclose(path.action_mean["MPJPE"], sum(per_action) / len(per_action), rel_tol=1e-6)
    assert set(path.per_action) == {test.action_names[k] for k in batch.action.unique()}


def test_pck_measures_by_mmpose_s_box(monkeypatch):
    """0.05 of 1.2 times the larger side of the tight box: 0.06 of that side."""
    source, model, config = small_source(images=True), model_of().eval(), EvaluationConfig(stride=40)
    batch = source.evaluation_batch(source.evaluation_indices(config.stride))
    side = (batch.joints_2d.amax(1) - batch.joints_2d.amin(1)).amax(-1)
    for share, expected in ((0.058, 100.0), (0.062, 0.0)):
        moved = replace(batch, joints_2d=batch.joints_2d + share * side[:, None, None] * torch.tensor([0.6, 0.8]))
        estimate = PoseEstimate(moved.joints_2d_normalised(), batch.joints_3d)
        monkeypatch.setattr(model, "estimate", lambda *_, estimate=estimate, **__: estimate)
        assert evaluate(model, source, None, config).path("image to 2D").frame_mean["PCK@0.05"] == expected


def test_the_mean_pose_is_the_mean_of_the_training_poses():
    source = small_source()
    mean_pose = MeanPose.of(source, EvaluationConfig(stride=1, batch_size=17))
    batch = source.evaluation_batch(source.evaluation_indices(1))
    torch.testing.assert_close(mean_pose.joints_3d, batch.joints_3d.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mean_pose.joints_2d, batch.joints_2d_normalised().mean(0), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_recorded_motion_is_lifted_far_below_the_mean_pose(tmp_path):
    """A few minutes of the run that docs/unihpe/training-on-mocap.md reports."""
    recording = Path(__file__).resolve().parents[2] / "../shared/data/cmu17_60hz.npz"
    if not recording.exists():
        pytest.skip("the CMU recording is not beside the checkout")
    from unihpe_ref.presets import preset
    from unihpe_ref.runs import evaluate_model, open_motion

    config = preset("lifting").override(
        **{"motion": recording, "stage1.steps": 50, "stage3.steps": 800, "evaluation.stride": 96}
    )
    motion = open_motion(config)
    with quiet_log(tmp_path) as log:
        model = train_model(config, motion, log, torch.device("cpu"))
    result = evaluate_model(model, config, motion)
    guess, lifted = (result.path(name).frame_mean["MPJPE"] for name in ("mean pose, 3D", "2D to 3D"))
    assert 190 < guess < 215
    assert lifted < guess / 2


# --- how a step is taken --------------------------------------------------------------------------------------------

STILL = POSES_ONLY.override(**{"model.encoder_dropout": 0.0, "model.decoder_dropout": 0.0})


class OneBatch:
    """A source of one batch."""

    def __init__(self, batch) -> None:
        self.held = batch

    def sampler(self, *_):
        return itertools.repeat(torch.arange(len(self.held)))

    def batch(self, indices, generator, rows):
        return self.held[rows]


def gradients(stage, model, batch, **changes) -> dict[str, torch.Tensor]:
    """Of one step on all parts and on tau, and the losses beside them; in float64."""
    model.double()
    doubled = {f.name: getattr(batch, f.name) for f in fields(batch) if getattr(batch, f.name) is not None}
    batch = replace(batch, **{n: v.double() if v.is_floating_point() else v for n, v in doubled.items()})
    stage = type(stage)(stage.config.override(steps=1, batch_size=len(batch), clip=1e9, **changes))
    with tempfile.TemporaryDirectory() as folder:
        with quiet_log(Path(folder)) as log:
            fit(stage, model, OneBatch(batch), log, seed=5)
        (record,) = (json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines())
    losses = {name: torch.tensor(value) for name, value in record.items() if name.startswith(("contr", "decod"))}
    assert losses
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**found, "tau": stage.temperature.log_tau.grad, **losses}


@pytest.mark.parametrize("config", [STILL, SMALL], ids=["poses, score", "images, dropout"])
def test_cached_gradients_are_those_of_the_whole_batch(config):
    """Dropout has its own draw for each micro-batch, so a second run with another number of them must differ there."""
    source = small_source(images=config is SMALL)
    batch = source.batch(next(source.sampler(7, torch.Generator().manual_seed(0))), torch.Generator().manual_seed(0))
    changes = {"freeze_batch_norm": True}
    whole = gradients(MultiTask(config.stage3), model_of(config), batch, **changes)
    for pieces in (2, 3):
        cached = gradients(MultiTask(config.stage3), model_of(config), batch, accumulate=pieces, **changes)
        assert cached.keys() == whole.keys()
        same = [torch.allclose(cached[name], whole[name], rtol=1e-6, atol=1e-9) for name in whole if name != "tau"]
        torch.testing.assert_close(cached["tau"], whole["tau"], rtol=1e-4 if config is STILL else 1, atol=0)  # float32
        assert all(same) == (config is STILL)
    plain = gradients(
        MultiTask(config.stage3), model_of(config), batch, accumulate=2, cached_gradients=False, **changes
    )
    assert plain["contrastive"] < whole["contrastive"]  # fewer to be told apart from


def test_micro_batches_without_a_cache_are_averages_of_their_own_losses():
    source = small_source()
    batch = source.batch(next(source.sampler(6, torch.Generator().manual_seed(0))), torch.Generator().manual_seed(0))
    both = gradients(PoseAlignment(STILL.stage1), model_of(STILL), batch, accumulate=2, cached_gradients=False)
    halves = [gradients(PoseAlignment(STILL.stage1), model_of(STILL), batch[rows]) for rows in (slice(3), slice(3, 6))]
    for name in both:
        torch.testing.assert_close(both[name], (halves[0][name] + halves[1][name]) / 2, rtol=1e-6, atol=1e-8)


def test_rows_pass_through_batch_norm_once():
    """With cached gradients each row is embedded twice; the running statistics move as if it had been once."""
    source = small_source(images=True)
    batch = source.batch(next(source.sampler(6, torch.Generator().manual_seed(0))), torch.Generator().manual_seed(0))
    buffers = []
    for changes in ({"accumulate": 2}, {"accumulate": 2, "cached_gradients": False}):
        model = model_of(SMALL)
        gradients(ImageAlignment(SMALL.stage2), model, batch, **changes)
        buffers.append({n: b.clone() for n, b in model.named_buffers() if "running" in n})
    fresh = {n: b for n, b in model_of(SMALL).named_buffers() if "running" in n}
    assert any(not torch.equal(buffers[0][name], fresh[name]) for name in fresh)
    for name in fresh:
        torch.testing.assert_close(buffers[0][name], buffers[1][name])


def test_frozen_batch_norm_keeps_its_statistics(tmp_path):
    model = model_of()
    before = weights(model)
    with quiet_log(tmp_path) as log:
        fit(
            ImageAlignment(SMALL.stage2.override(freeze_batch_norm=True)), model, small_source(images=True), log, seed=1
        )
    moved = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    assert moved
    assert not any("running" in name for name in moved)


def test_any_number_of_workers_prepares_the_same_batches(tmp_path):
    ends = []
    for workers in (0, 2):
        model = model_of(POSES_ONLY)
        with quiet_log(tmp_path) as log:
            fit(MultiTask(POSES_ONLY.stage3), model, small_source(), log, seed=1, workers=workers)
        ends.append(weights(model))
    assert not changed(*ends)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_as_float32_does_within_its_digits(precision, tmp_path):
    records = {}
    for name in ("float32", precision):
        folder = tmp_path / name
        folder.mkdir()
        with quiet_log(folder) as log:
            fit(MultiTask(STILL.stage3), model_of(STILL), small_source(), log, seed=1, log_every=1, precision=name)
        lines = (folder / "log.jsonl").read_text().splitlines()
        records[name] = [json.loads(line) for line in lines]
    for one, half in zip(records["float32"], records[precision]):
        assert half["loss"] != one["loss"]  # it ran in another type
        assert half["loss"] == pytest.approx(one["loss"], rel=0.02)
        assert half["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=0.1)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = model_of(POSES_ONLY)
    torch.nn.init.constant_(model.decoder_3d.network.out.bias, math.nan)
    with (
        quiet_log(tmp_path) as log,
        pytest.raises(FloatingPointError, match="3 everything needs a finite loss; got nan"),
    ):
        fit(MultiTask(POSES_ONLY.stage3), model, small_source(), log, seed=1)
