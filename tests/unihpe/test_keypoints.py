"""Files of 2D poses: reading, conversion, warnings and errors."""

import json

import numpy as np
import pytest
import torch
from detections import people

from unihpe_ref.applications.keypoints import camera_matrix, read_keypoints, to_h36m
from unihpe_ref.data import SKELETON, read_data
from unihpe_ref.data.layouts import COCO17, DETECTED, LAYOUTS, joint_name, layout_of_names

MMPOSE_H36M = [
    "root",
    "right_hip",
    "right_knee",
    "right_foot",
    "left_hip",
    "left_knee",
    "left_foot",
    "spine",
    "thorax",
    "neck_base",
    "head",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "right_shoulder",
    "right_elbow",
    "right_wrist",
]
POSETRACK = [
    "nose",
    "head_bottom",
    "head_top",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
]
MMPOSE_MPII = [
    "right_ankle",
    "right_knee",
    "right_hip",
    "left_hip",
    "left_knee",
    "left_ankle",
    "pelvis",
    "thorax",
    "upper_neck",
    "head_top",
    "right_wrist",
    "right_elbow",
    "right_shoulder",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
]


def named(layout: str, count: int = 2) -> torch.Tensor:
    """Joints whose place tells which they are: joint k of person n at (k, 100 n + k), fully confident."""
    joints = LAYOUTS[layout].num_joints
    index = torch.arange(joints).float()
    rows = [torch.stack([index, 100 * n + index, torch.ones(joints)], -1) for n in range(count)]
    return torch.stack(rows)


def save(path, content):
    path.write_text(json.dumps(content))
    return path


def coco(poses, names=None, **more):
    """COCO's annotations of poses ``(N, K, 3)``, one image each."""
    categories = [{"id": 1, "name": "person", **({} if names is None else {"keypoints": names})}]
    return {
        "images": [{"id": k, "width": 1000, "height": 1000, "file_name": f"{k}.jpg"} for k in range(len(poses))],
        "annotations": [
            {"id": k, "image_id": k, "category_id": 1, "num_keypoints": pose.shape[0], **more,
             "keypoints": pose.flatten().tolist()}
            for k, pose in enumerate(poses)
        ],
        "categories": categories,
    }  # fmt: skip


# --- what joints become ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", DETECTED)
def test_limbs_keep_their_names_and_sides(layout):
    joints, confidence = to_h36m(named(layout), layout)
    for side in "lr":
        for part in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle"):
            there, here = LAYOUTS[layout].joints.index(side + part), SKELETON.index(side + part)
            assert joints[1, here].tolist() == [there, 100 + there]
    assert (confidence == 1).all()


def test_every_layout_gives_nearly_the_same_person():
    """Twelve joints alike; trunk and head, which come from other joints in each, within a tenth of the person."""
    reference = people("h36m17")[..., :2]
    size = (reference.amax(1) - reference.amin(1)).amax(-1)
    limbs = [
        k
        for k, name in enumerate(SKELETON.joint_names)
        if name[1:] in ["hip", "knee", "ankle", "shoulder", "elbow", "wrist"]
    ]
    for layout in DETECTED:
        joints, confidence = to_h36m(people(layout), layout)
        assert (confidence > 0).all(), layout
        distance = (joints - reference).norm(dim=-1) / size[:, None]
        assert distance[:, limbs].max() == 0, layout
        assert distance.max() < 0.1, layout


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


@pytest.mark.parametrize(
    ("spellings", "name"),
    [
        (
            "left_shoulder LeftShoulder Left-Shoulder LShoulder L_Shoulder shoulder_l leftShoulder lshoulder",
            "lshoulder",
        ),
        ("right_foot RAnkle right_ankle", "rankle"),
        ("root pelvis mid_hip Hip hips", "pelvis"),
        ("head_top top_head head", "head"),
        ("upper_neck head_bottom", "upper_neck"),
    ],
)
def test_names_are_known_in_any_spelling(spellings, name):
    for spelling in spellings.split():
        assert joint_name(spelling) == name, spelling


@pytest.mark.parametrize(
    ("names", "layout"),
    [(MMPOSE_H36M, "h36m17"), (POSETRACK, "posetrack18"), (MMPOSE_MPII, "mpii16"), (COCO17, "coco17")],
)
def test_names_lead_to_the_known_layouts(names, layout):
    assert layout_of_names(names) == LAYOUTS[layout]


def test_an_order_of_ones_own_is_read_by_its_names():
    order = list(reversed(MMPOSE_H36M[1:]))  # no pelvis, and another order
    pose = people("h36m17", 3)
    values = pose.numpy()[:, [MMPOSE_H36M.index(name) for name in order]]
    joints, confidence = layout_of_names(order).to_h36m(values[..., :2], values[..., 2])
    np.testing.assert_array_equal(joints[:, 1:], pose[:, 1:, :2].numpy())
    hips = pose[:, [1, 4], :2].mean(1).numpy()
    np.testing.assert_allclose(joints[:, 0], hips, rtol=1e-6)
    assert (confidence > 0).all()
    with pytest.raises(ValueError, match="needs names of joints"):
        layout_of_names(["paw", "tail"])


# --- forms of files --------------------------------------------------------------------------------------------


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
        "keypoints": people("h36m17", 2)[..., :2].tolist(),
    }
    save(tmp_path / "annotations.json", annotations)
    save(tmp_path / "results.json", [{"image_id": 3, "keypoints": flat}])
    save(tmp_path / "plain.json", plain)
    folder = tmp_path / "openpose"
    folder.mkdir()
    for k in (1, 0):
        save(folder / f"frame_{k}_keypoints.json", openpose)

    found = read_keypoints(tmp_path / "annotations.json")
    assert found.image == ("a.jpg",)
    assert found.image_size.tolist() == [[640, 480]]
    assert read_keypoints(tmp_path / "results.json").image == ("3",)
    found = read_keypoints(folder)
    assert found.image == ("frame_0_keypoints", "frame_1_keypoints")
    assert found.frame == (0, 1)
    found = read_keypoints(tmp_path / "plain.json")
    torch.testing.assert_close(found.joints_px, people("h36m17", 2)[..., :2])
    assert found.intrinsics.shape == (2, 3, 3)
    assert found.complete.all()


@pytest.mark.parametrize("layout", ["coco18", "body25"])
def test_both_models_of_openpose_are_read(layout, tmp_path):
    pose = people(layout, 1)
    path = save(tmp_path / "k.json", {"people": [{"pose_keypoints_2d": pose.flatten().tolist()}]})
    found = read_keypoints(path)
    assert found.layout == layout
    torch.testing.assert_close(found.joints_px, to_h36m(pose, layout)[0])


@pytest.mark.parametrize("layout", ["coco17", "halpe26", "halpe136"])
def test_alphapose_numbers_frames_and_people(layout, tmp_path):
    poses = people(layout, 3, stride=1)
    held = [
        {"image_id": f"{4 + k}.jpg", "category_id": 1, "keypoints": pose.flatten().tolist(), "score": 2.7,
         "box": [0, 0, 1, 1], "idx": 6}
        for k, pose in enumerate(poses)
    ]  # fmt: skip
    found = read_keypoints(save(tmp_path / "alphapose-results.json", held))
    assert (found.layout, found.frame, found.person) == (layout, (4, 5, 6), (6, 6, 6))
    torch.testing.assert_close(found.joints_px, to_h36m(poses, layout)[0])
    body = {f"{k}.jpg": {"people": [{"pose_keypoints_2d": pose.flatten().tolist()}]} for k, pose in enumerate(poses)}
    assert read_keypoints(save(tmp_path / "open.json", body)).image == ("0.jpg", "1.jpg", "2.jpg")


def test_mmposes_inferencer_is_read(tmp_path):
    poses = people("wholebody133", 2)

    def person(pose):
        return {"keypoints": pose[:, :2].tolist(), "keypoint_scores": pose[:, 2].tolist(), "bbox": [[0, 0, 1, 1]]}

    picture = [person(pose) for pose in poses]
    video = [{"frame_id": 5, "instances": picture[:1]}, {"frame_id": 6, "instances": []},
             {"frame_id": 7, "instances": picture[1:]}]  # fmt: skip
    found = read_keypoints(save(tmp_path / "picture.json", picture))
    assert (found.layout, found.frame, found.image) == ("wholebody133", None, ("picture", "picture"))
    torch.testing.assert_close(found.joints_px, to_h36m(poses, "wholebody133")[0])
    assert read_keypoints(save(tmp_path / "video.json", video)).frame == (5, 7)
    h36m = people("h36m17", 2)
    meta = {"keypoint_id2name": {str(k): name for k, name in enumerate(MMPOSE_H36M)}}
    held = {"meta_info": meta, "instance_info": [{"frame_id": 1, "instances": [person(pose) for pose in h36m]}]}
    found = read_keypoints(save(tmp_path / "results.json", held))
    assert (found.layout, found.notes) == ("h36m17", ())
    torch.testing.assert_close(found.joints_px, h36m[..., :2])
    for odd in (7, ["nose"], {"x": "nose"}, True):
        with pytest.raises(ValueError, match=r"a whole file of a known form at .*odd\.json; got another file or a dam"):
            read_keypoints(save(tmp_path / "odd.json", held | {"meta_info": {"keypoint_id2name": odd}}))


# --- whose joints these are ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "layout"),
    [(MMPOSE_H36M, "h36m17"), (POSETRACK, "posetrack18"), (MMPOSE_MPII, "mpii16"), (COCO17, "coco17")],
)
def test_names_in_categories_decide_for_lifting_and_for_data_sets(names, layout, tmp_path):
    """One mapping for both: the same file gives the same joints, and as many of them."""
    poses = people(layout)
    poses[3, LAYOUTS[layout].joints.index("lwrist"), 2] = 0
    if layout == "coco17":
        poses[4, COCO17.index("lear"), 2] = poses[5, COCO17.index("rear"), 2] = 0
    path = save(tmp_path / "k.json", coco(poses, list(names)))
    found, recording = read_keypoints(path), read_data(path)
    assert (found.layout, found.notes) == (layout, ())
    torch.testing.assert_close(found.joints_px, torch.from_numpy(recording.joints_2d), equal_nan=True)
    assert torch.equal(found.complete, torch.from_numpy(recording.has_2d))
    assert int(found.complete.sum()) == 11


@pytest.mark.parametrize("layout", ["h36m17", "posetrack18"])
def test_seventeen_joints_without_names_are_told_apart_by_their_limbs(layout, tmp_path):
    poses = people(layout)
    path = save(tmp_path / "k.json", coco(poses))
    found, recording = read_keypoints(path), read_data(path)
    assert found.layout == layout
    assert "without names" in found.notes[0] and layout in found.notes[0]
    torch.testing.assert_close(found.joints_px, to_h36m(poses, layout)[0])
    np.testing.assert_allclose(recording.joints_2d, found.joints_px.numpy(), rtol=1e-6)
    assert any(layout in note for note in recording.notes)
    assert read_keypoints(path, layout="coco17").layout == "coco17"  # who asks is obeyed


def test_names_that_the_limbs_contradict_are_followed_and_doubted(tmp_path):
    from unihpe_ref.data.checking import check

    path = save(tmp_path / "k.json", coco(people("h36m17"), list(COCO17)))
    found = read_keypoints(path)
    assert found.layout == "coco17"
    assert "the file says coco17, but the limbs are those of h36m17" in found.notes[0]
    report = check(read_data(path))
    assert any("h36m17" in note for note in report.notes)
    assert any("proportions" in problem for problem in report.problems)
    right = check(read_data(save(tmp_path / "right.json", coco(people("h36m17"), MMPOSE_H36M))))
    assert right.problems == []


@pytest.mark.parametrize("layout", DETECTED)
def test_a_right_order_is_not_doubted(layout, tmp_path):
    poses = people(layout)
    poses[..., :2] += 6 * torch.randn(poses[..., :2].shape, generator=torch.Generator().manual_seed(0))
    plain = {"layout": layout, "keypoints": poses.tolist()}
    assert read_keypoints(save(tmp_path / "k.json", plain)).notes == ()


# --- confidences, and what are no pixels -----------------------------------------------------------------------


def test_a_detectors_guesses_are_missing_unless_asked_for(tmp_path):
    poses = people("coco17", 2)
    poses[1, COCO17.index("rwrist"), 2] = 0.04
    path = save(tmp_path / "k.json", coco(poses))
    assert read_keypoints(path).complete.tolist() == [True, False]
    assert read_keypoints(path, min_confidence=0).complete.tolist() == [True, True]
    with pytest.raises(ValueError, match="at least 0 and less than 1"):
        read_keypoints(path, min_confidence=1)


def test_flags_of_visibility_are_no_confidences(tmp_path):
    poses = people("coco17", 2)
    poses[..., 2] = 2
    poses[1, 5, 2] = 1  # labelled though hidden
    found = read_keypoints(save(tmp_path / "k.json", coco(poses)))
    assert (found.confidence == 1).all()


def test_the_corner_of_the_picture_is_no_joint(tmp_path):
    poses = people("coco17", 2)
    poses[0, COCO17.index("lwrist"), :2] = 0
    found = read_keypoints(save(tmp_path / "k.json", coco(poses)))
    assert found.complete.tolist() == [False, True]
    assert "1 joints at (0, 0) are taken as missing" in found.notes[0]


def test_shares_of_the_picture_and_missing_confidences_are_refused(tmp_path):
    poses = people("coco17", 2)
    shares = poses.clone()
    shares[..., :2] /= 1000
    with pytest.raises(ValueError, match=r"needs pixels.*multiply u by its width"):
        read_keypoints(save(tmp_path / "k.json", coco(shares)))
    poses[..., 2] = 0
    with pytest.raises(ValueError, match="a confidence of 0 for every joint"):
        read_keypoints(save(tmp_path / "k.json", {"layout": "coco17", "keypoints": poses.tolist()}))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "needs JSON"),
        ("{}", "needs keypoints of COCO, OpenPose, AlphaPose or mmpose"),
        ('{"people": []}', "needs people"),
        ('{"people": [{"pose_keypoints_2d": [10, 20, 1]}]}', "1 without names"),
        ('{"people": [{"pose_keypoints_2d": [1, 2]}]}', "needs 3 numbers for each joint"),
        ('{"keypoints": [[10, 20]]}', "1 without names"),
        ('{"layout": "h36m", "keypoints": [[1, 2]]}', "Did you mean 'h36m17'?"),
        ('{"layout": "h36m17", "keypoints": [[1, 2], [3]]}', "lists of numbers"),
        ('{"layout": "h36m17", "keypoints": [[10, 20]]}', "needs 17 joints"),
        ('[{"instances": [{"keypoints": [[9, 9]], "keypoint_scores": [1, 1]}]}]', "one of `keypoint_scores`"),
        ('{"instance_info": [1]}', "a whole file of a known form"),
        ('[{"instances": [1]}]', "a whole file of a known form"),
        ('{"annotations": [{"keypoints": [9, 9, 1], "image_id": [1]}]}', "a whole file of a known form"),
    ],
)
def test_other_content_is_refused(content, words, tmp_path):
    path = tmp_path / "k.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=words):
        read_keypoints(path)


def test_a_picture_in_place_of_keypoints_is_named(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match="a picture"):
        read_keypoints(tmp_path / "photo.jpg")


def test_intrinsics_are_a_matrix_or_four_numbers():
    assert camera_matrix([1.0, 2, 3, 4]).tolist() == [[1, 0, 3], [0, 2, 4], [0, 0, 1]]
    for bad in ([1.0, 2], [[1.0]], "f", [-1.0, 1, 0, 0], [float("nan"), 1, 0, 0]):
        with pytest.raises(ValueError, match="`intrinsics` need to be"):
            camera_matrix(bad)
