"""The two stages of the shipped lifter: what is trained, what is frozen, and what is learned."""

from dataclasses import replace

import torch
from small import POSES_ONLY, quiet_log, small_source, weights

from unihpe_ref.data import PoseSource
from unihpe_ref.models import UniHPE
from unihpe_ref.stages import Companions, ImageAlignment, Lifting, make_stages
from unihpe_ref.training import fit

CONFIG = POSES_ONLY.override(
    **{
        "model.pose_encoder": "mlp",
        "model.decoder": "mlp",
        "lifting.steps": 30,
        "lifting.batch_size": 8,
        "lifting.learning_rate": 3e-3,
        "lifting.warmup_steps": 2,
        "lifting.ema_decay": 0.5,
        "companions.steps": 3,
        "companions.batch_size": 8,
    }
)


def test_they_are_off_unless_asked_for_and_frame_the_stages_of_the_paper():
    assert [stage.name for stage in make_stages(POSES_ONLY)] == ["1 poses", "3 everything"]
    names = [stage.name for stage in make_stages(CONFIG)]
    assert names == ["lifting", "1 poses", "3 everything", "companions"]


def test_lifting_moves_its_pair_and_lowers_the_reported_error(tmp_path):
    model, source = UniHPE(CONFIG.model), small_source()
    before = weights(model)
    batch = source.evaluation_batch(torch.arange(0, len(source), 7))

    def error():
        lifted = model.eval().lift(batch.joints_2d_normalised(), batch.box_info())
        return (lifted - batch.joints_3d).norm(dim=-1).mean()

    first = error()
    with quiet_log(tmp_path) as log:
        fit(Lifting(CONFIG.lifting), model, source, log, seed=0)
    assert error() < 0.8 * first
    moved = {name.split(".")[0] for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    assert moved == {"encoder_2d", "decoder_3d"}


def test_every_stage_tells_the_encoder_how_much_the_joints_err():
    config = CONFIG.override(**{"model.encoder_noise_token": True})
    model = UniHPE(config.model).eval()
    source = PoseSource(small_source().motion, joint_noise=0.01)
    batch = source.evaluation_batch(torch.arange(0, len(source), 20))
    told = model.encode(**batch.inputs_2d())
    assert not torch.allclose(told, model.encode(kp2d=batch.joints_2d_normalised(), box_info=batch.box_info()))
    stages = [*make_stages(config), ImageAlignment(config.stage2)]
    model.image_encoder = torch.nn.Flatten()
    batch = replace(batch, image=torch.zeros(len(batch), 4, 8))
    assert len(stages) == 5
    for stage in stages:
        assert torch.equal(stage.embed(model, batch)["2d"], told), stage.name


def test_companions_leave_the_lifter_as_it_is(tmp_path):
    model, source = UniHPE(CONFIG.model), small_source()
    before = weights(model)
    with quiet_log(tmp_path) as log:
        fit(Companions(CONFIG.companions), model, source, log, seed=0)
    moved = {name.split(".")[0] for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    assert moved == {"encoder_3d", "decoder_2d"}
