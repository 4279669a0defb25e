"""The skeleton is a tree with a mirror, and flipping a pose is exact."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unihpe_ref.data import SKELETON, flip_joints, flip_pixels, limb_lengths


def test_the_tree_is_human36m_with_17_joints():
    assert SKELETON.num_joints == 17
    assert SKELETON.parents[0] == -1
    assert all(parent < child for parent, child in SKELETON.limbs)
    assert len(SKELETON.limbs) == len(SKELETON.limb_colours) == 16
    assert SKELETON.joint_names[1:7] == ("rhip", "rknee", "rankle", "lhip", "lknee", "lankle")
    assert SKELETON.joint_names[11:] == ("lshoulder", "lelbow", "lwrist", "rshoulder", "relbow", "rwrist")


def test_the_mirror_exchanges_left_and_right_names_and_keeps_the_tree():
    flip = SKELETON.flip_permutation
    for joint, name in enumerate(SKELETON.joint_names):
        other = SKELETON.joint_names[flip[joint]]
        assert flip[flip[joint]] == joint
        swapped = {"l": "r", "r": "l"}.get(name[0]) if joint in SKELETON.left + SKELETON.right else None
        assert other == (swapped + name[1:] if swapped else name)
        parent = SKELETON.parents[joint]
        assert SKELETON.parents[flip[joint]] == (flip[parent] if parent >= 0 else -1)


@given(st.integers(0, 2**31), st.sampled_from([2, 3]), st.sampled_from([torch.float32, torch.float64, torch.float16]))
def test_flipping_twice_gives_the_same_bits(seed, channels, dtype):
    joints = torch.randn(3, 17, channels, generator=torch.Generator().manual_seed(seed)).to(dtype)
    kept = joints.clone()
    assert torch.equal(flip_joints(flip_joints(joints)), joints)
    assert torch.equal(joints, kept)  # the input is left alone


def test_flipping_moves_the_left_wrist_to_the_mirrored_right_one():
    joints = torch.zeros(17, 3)
    joints[SKELETON.index("lwrist")] = torch.tensor([0.5, 1.0, 2.0])
    flipped = flip_joints(joints)
    assert torch.equal(flipped[SKELETON.index("rwrist")], torch.tensor([-0.5, 1.0, 2.0]))
    assert torch.equal(flipped[SKELETON.index("lwrist")].abs(), torch.zeros(3))


def test_flipped_pixels_follow_the_mirrored_image():
    picture = torch.zeros(1, 9, 12)
    joints = torch.rand(17, 2).mul(torch.tensor([11.0, 8.0])).round()
    u, v = joints[SKELETON.index("lankle")].long()
    picture[0, v, u] = 1
    mirrored = flip_pixels(joints, 12)
    u, v = mirrored[SKELETON.index("rankle")].long()  # what was the left ankle is a right one in the mirror
    assert picture.flip(-1)[0, v, u] == 1
    assert torch.equal(flip_pixels(mirrored, 12), joints)  # small whole numbers are exact


def test_flipped_pixels_take_one_width_for_each_pose():
    joints = torch.rand(4, 17, 2) * 100
    widths = torch.tensor([100.0, 200.0, 300.0, 400.0])
    for one, width, expected in zip(joints, widths, flip_pixels(joints, widths)):
        torch.testing.assert_close(flip_pixels(one, float(width)), expected, rtol=0, atol=0)


def test_limb_lengths_are_distances_from_parent_to_child():
    joints = torch.randn(2, 17, 3, dtype=torch.float64)
    for limb, (parent, child) in enumerate(SKELETON.limbs):
        expected = ((joints[:, parent] - joints[:, child]) ** 2).sum(-1) ** 0.5
        torch.testing.assert_close(limb_lengths(joints)[:, limb], expected)


@pytest.mark.parametrize("flip", [flip_joints, lambda joints: flip_pixels(joints, 10)])
def test_other_skeletons_are_refused(flip):
    with pytest.raises(
        ValueError, match=r"`joints` of shape \(\.\.\., 17, C\); got .*\(2, 14, 3\).*Map other skeletons"
    ):
        flip(torch.zeros(2, 14, 3))
    with pytest.raises(TypeError, match="floating-point"):
        flip(torch.zeros(17, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"name of a joint; got 'tail'\. Choose one of pelvis"):
        SKELETON.index("tail")
