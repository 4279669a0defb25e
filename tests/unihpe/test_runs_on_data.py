"""A run on data sets in their published formats: Human3.6M with pictures through all stages, and a second one."""

import io

import formats
import pytest
import torch
from rich.console import Console
from small import POSES_ONLY, SMALL

from unihpe_ref.applications.run import run
from unihpe_ref.data import JoinedSource, RecordingSource, read_data
from unihpe_ref.data.prepared import prepare
from unihpe_ref.runs import open_motion, open_training_source


@pytest.fixture(scope="module")
def h36m(tmp_path_factory):
    folder = tmp_path_factory.mktemp("h36m")
    formats.write_mmpose_h36m(folder, pictures=True)
    recording = read_data(folder)
    paths = [recording.picture_path(sample) for sample in range(len(recording))]
    there = next(path for path in paths if path is not None and path.exists())
    for path in paths:
        if path is not None and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.hardlink_to(there)
    return folder


def test_all_stages_run_on_human36m_with_pictures(h36m, tmp_path):
    config = SMALL.override(motion=h36m, **{"data.min_gap_seconds": 0.0, "evaluation.stride": 40})
    _, evaluation = run(config, tmp_path, Console(file=io.StringIO()), torch.device("cpu"))
    assert [path.name for path in evaluation.paths if "to" in path.name] == ["2D to 3D", "image to 3D", "image to 2D"]
    assert evaluation.frames
    assert set(open_motion(config).split) == {"train", "test"}


def test_prepared_data_is_the_same_data(h36m, tmp_path):
    prepare(h36m, tmp_path / "prepared")
    sources = [
        open_training_source(open_motion(config), config, images=True)
        for config in (SMALL.override(motion=path) for path in (h36m, tmp_path / "prepared"))
    ]
    assert len(sources[0]) == len(sources[1])
    indices = torch.arange(4)
    batches = [source.batch(indices, torch.Generator().manual_seed(0)) for source in sources]
    torch.testing.assert_close(batches[0].joints_2d, batches[1].joints_2d)
    torch.testing.assert_close(batches[0].joints_3d, batches[1].joints_3d)


def test_two_data_sets_meet_in_a_batch(h36m, tmp_path):
    formats.write_3dhp_train(tmp_path / "3dhp")
    config = POSES_ONLY.override(motion=h36m, also=tmp_path / "3dhp", **{"data.min_gap_seconds": 0.0})
    source = open_training_source(open_motion(config), config, images=False)
    assert isinstance(source, JoinedSource)
    assert all(isinstance(part, RecordingSource) for part in source.sources)
    assert source.action_names == tuple(
        sorted({name for path in (h36m, tmp_path / "3dhp") for name in read_data(path).action})
    )
    indices = next(source.sampler(8, torch.Generator().manual_seed(0), 0.0))
    assert torch.isfinite(source.batch(indices, torch.Generator().manual_seed(0)).joints_3d).all()
