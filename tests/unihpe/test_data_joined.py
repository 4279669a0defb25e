"""Two data sets in one batch, in proportion to their sizes."""

from dataclasses import fields

import pytest
import torch
from small import POSES_ONLY, small_motion

from unihpe_ref.data import JoinedSource, PoseSource, generate_motion
from unihpe_ref.runs import open_training_source, train_model


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def joined() -> JoinedSource:
    motions = (
        small_motion(seconds=2.0),
        generate_motion(3, actions=("walk", "jump"), num_subjects=4, num_test_subjects=1, seconds=1.0),
    )
    names = {
        "action_names": tuple(sorted({name for motion in motions for name in motion.action})),
        "subject_names": tuple(sorted({name for motion in motions for name in motion.subject})),
    }
    return JoinedSource([PoseSource(motion, image_size=(32, 32), **names).split("train") for motion in motions])


def test_shares_are_those_of_the_sizes_and_every_batch_is_full(joined):
    first = len(joined.sources[0])
    counts = []
    for _, indices in zip(range(400), joined.sampler(7, generator(), 0.1)):
        assert len(indices) == len(set(indices.tolist())) == 7
        counts.append(int((indices < first).sum()))
    exact = 7 * first / len(joined)
    assert set(counts) <= {int(exact), int(exact) + 1}
    assert sum(counts) / 400 == pytest.approx(exact, abs=0.1)


def test_samples_are_those_of_their_source(joined):
    first, second = joined.sources
    indices = torch.tensor([0, 5, len(first), len(first) + 3])
    batch = joined.batch(indices, generator())
    assert torch.equal(batch.index, indices)
    poses = torch.cat([first.motion.joints[[0, 5]], second.motion.joints[[0, 3]]])
    limbs = (poses[:, 1] - poses[:, 2]).norm(dim=-1)
    torch.testing.assert_close((batch.joints_3d[:, 1] - batch.joints_3d[:, 2]).norm(dim=-1), limbs)
    assert [joined.action_names[k] for k in batch.action] == [
        source.motion.action[source.motion.sequence[k]]
        for source, k in ((first, 0), (first, 5), (second, 0), (second, 3))
    ]
    assert batch.sequence.tolist()[2] == first.motion.num_sequences


def test_rows_are_the_same_whoever_builds_them(joined):
    indices = next(joined.sampler(8, generator(), 0.1))
    whole = joined.batch(indices, generator(1))
    for rows in (slice(0, 2), slice(2, 7), slice(7, 8)):
        part = joined.batch(indices, generator(1), rows)
        for field in fields(part):
            torch.testing.assert_close(getattr(part, field.name), getattr(whole[rows], field.name))


def test_what_does_not_fit_is_said(joined):
    with pytest.raises(ValueError, match="samples of a batch source by source; got an order"):
        joined.batch(torch.tensor([len(joined) - 1, 0]), generator())
    with pytest.raises(ValueError, match="the same numbers for actions and subjects; got 2 numberings in 2 sources"):
        JoinedSource([PoseSource(small_motion(seconds=1.0)), joined.sources[1]])
    with pytest.raises(ValueError, match="the samples 1 s apart"):
        joined.sampler(500, generator())


def test_a_run_trains_on_both(tmp_path, monkeypatch):
    import numpy as np
    from small import quiet_log

    motion = small_motion(seconds=2.0)
    monkeypatch.setattr("unihpe_ref.runs.assembly.open_data", lambda _: small_motion(seconds=1.0))
    config = POSES_ONLY.override(also=tmp_path / "3dhp", **{"data.min_gap_seconds": 0.1})
    source = open_training_source(motion, config, images=False)
    assert len(source) == sum(len(part) for part in source.sources)
    assert np.isclose(len(source.sources[0]) / len(source), 2 / 3, atol=0.05)
    with quiet_log(tmp_path) as log:
        train_model(config, motion, log, torch.device("cpu"))
