"""Files of 2D poses: what is read, what joints become, and what is refused in words."""

import json

import pytest
import torch

from unihpe_ref.data import SKELETON
from unihpe_ref.keypoints import BODY25, COCO17, LAYOUTS, camera_matrix, read_keypoints, to_h36m


def named(layout: str, people: int = 2) -> torch.Tensor:
    """Joints whose place tells which they are: joint k of person n at (k, 100 n + k), fully confident."""
    count = len(LAYOUTS[layout])
    index = torch.arange(count).float()
    rows = [torch.stack([index, 100 * n + index, torch.ones(count)], -1) for n in range(people)]
    return torch.stack(rows)


@pytest.mark.parametrize(("layout", "names"), [("coco17", COCO17), ("body25", BODY25)])
def test_limbs_keep_their_names_and_sides(layout, names):
    joints, confidence = to_h36m(named(layout), layout)
    for side in "lr":
        for part in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle"):
            there, here = names.index(side + part), SKELETON.index(side + part)
            assert joints[1, here].tolist() == [there, 100 + there]
    assert (confidence == 1).all()


def test_the_trunk_of_coco_lies_between_hips_shoulders_and_ears():
    pose = torch.zeros(1, 17, 2)
    for name, place in {"lhip": (10, 0), "rhip": (-10, 0), "lshoulder": (20, -100), "rshoulder": (-20, -100)}.items():
        pose[0, COCO17.index(name)] = torch.tensor(place).float()
    for name in ("lear", "rear"):
        pose[0, COCO17.index(name)] = torch.tensor([0.0, -120.0])
    joints, _ = to_h36m(pose, "coco17")
    wanted = {"pelvis": 0.0, "spine": -42.0, "thorax": -88.0, "neck_nose": -120.0, "head": -133.8}
    for name, height in wanted.items():
        torch.testing.assert_close(joints[0, SKELETON.index(name)], torch.tensor([0.0, height]))


def test_what_needs_a_missing_joint_is_missing_and_one_ear_will_do():
    pose = named("coco17", 1)
    pose[0, COCO17.index("lhip"), 2] = 0
    pose[0, COCO17.index("lear"), 2] = 0
    joints, confidence = to_h36m(pose, "coco17")
    gone = {SKELETON.joint_names[k] for k in torch.nonzero(confidence[0] == 0)[:, 0].tolist()}
    assert gone == {"lhip", "pelvis", "spine", "thorax"}
    assert joints[0, SKELETON.index("lhip")].isnan().all()
    assert joints[0, SKELETON.index("neck_nose")].tolist() == [4.0, 4.0]  # the right ear
    pose[0, COCO17.index("rear"), 2] = 0
    assert to_h36m(pose, "coco17")[0][0, SKELETON.index("neck_nose")].tolist() == [0.0, 0.0]  # the nose


def test_coco_annotations_results_openpose_and_plain_files_are_read(tmp_path):
    flat = named("coco17", 1).flatten().tolist()
    annotations = {
        "images": [{"id": 7, "width": 640, "height": 480, "file_name": "a.jpg"}],
        "annotations": [
            {"image_id": 7, "keypoints": flat, "num_keypoints": 17},
            {"image_id": 7, "keypoints": [0] * 51, "num_keypoints": 0},
            {"image_id": 7, "bbox": [0, 0, 1, 1]},
        ],
    }
    openpose = {"version": 1.3, "people": [{"pose_keypoints_2d": named("body25", 1).flatten().tolist()}]}
    plain = {
        "layout": "h36m17",
        "image_size": [1000, 800],
        "intrinsics": [1100, 1101, 500, 400],
        "keypoints": named("h36m17")[..., :2].tolist(),
    }
    for name, content in {"annotations": annotations, "results": [{"image_id": 3, "keypoints": flat}]}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "plain.json").write_text(json.dumps(plain))
    folder = tmp_path / "openpose"
    folder.mkdir()
    for k in (1, 0):
        (folder / f"frame_{k}_keypoints.json").write_text(json.dumps(openpose))

    found = read_keypoints(tmp_path / "annotations.json")
    assert found.image == ("a.jpg",)
    assert found.image_size.tolist() == [[640, 480]]
    assert read_keypoints(tmp_path / "results.json").image == ("3",)
    assert read_keypoints(folder).image == ("frame_0_keypoints", "frame_1_keypoints")
    found = read_keypoints(tmp_path / "plain.json")
    torch.testing.assert_close(found.joints_px, named("h36m17")[..., :2])
    assert found.intrinsics.shape == (2, 3, 3)
    assert found.complete.all()


def test_confidences_decide_who_is_complete(tmp_path):
    pose = named("coco17", 2)
    pose[1, COCO17.index("rwrist"), 2] = 0.2
    path = tmp_path / "k.json"
    path.write_text(json.dumps([{"image_id": k, "keypoints": pose[k].flatten().tolist()} for k in range(2)]))
    assert read_keypoints(path).complete.tolist() == [True, True]
    assert read_keypoints(path, min_confidence=0.3).complete.tolist() == [True, False]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "needs JSON"),
        ("{}", "needs COCO, OpenPose or plain keypoints"),
        ('{"people": []}', "needs people"),
        ('{"people": [{"pose_keypoints_2d": [1, 2, 3]}]}', "needs 75 numbers"),
        (json.dumps({"people": [{"pose_keypoints_2d": [1] * 54}]}), "BODY_25"),
        ('{"keypoints": [[1, 2]]}', "needs a layout"),
        ('{"layout": "h36m", "keypoints": [[1, 2]]}', "Did you mean 'h36m17'?"),
        ('{"layout": "h36m17", "keypoints": [[1, 2], [3]]}', "lists of numbers"),
        ('{"layout": "h36m17", "keypoints": [[1, 2]]}', "shape"),
        ('[{"keypoints": [1, 2, 3]}]', "needs 51 numbers"),
    ],
)
def test_other_content_is_refused_in_words(content, words, tmp_path):
    path = tmp_path / "k.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=words):
        read_keypoints(path)


def test_intrinsics_are_a_matrix_or_four_numbers():
    assert camera_matrix([1.0, 2, 3, 4]).tolist() == [[1, 0, 3], [0, 2, 4], [0, 0, 1]]
    for bad in ([1.0, 2], [[1.0]], "f", [-1.0, 1, 0, 0], [float("nan"), 1, 0, 0]):
        with pytest.raises(ValueError, match="`intrinsics` need to be"):
            camera_matrix(bad)
