"""Generated motion is humanly possible, smooth, varied, and the same for the same seed."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unihpe_ref.data import SKELETON, Motion, generate_motion, limb_lengths
from unihpe_ref.data.actions import ACTIONS, perform
from unihpe_ref.data.body import ANGLES, FREE, LIMITS, Body, forward_kinematics, stand, within_limits

ANKLES = [SKELETON.index("rankle"), SKELETON.index("lankle")]


@pytest.fixture(scope="module")
def motion() -> Motion:
    return generate_motion(11, num_subjects=3, num_test_subjects=1, seconds=5.0)


def of(motion: Motion, action: str) -> torch.Tensor:
    """The frames of one action, (S, F, 17, 3); every generated sequence has the same length."""
    chosen = [index for index, name in enumerate(motion.action) if name == action]
    return motion.joints.unflatten(0, (motion.num_sequences, -1))[chosen]


def forward(joints: torch.Tensor) -> torch.Tensor:
    """Where the pelvis faces: left x up."""
    left = joints[..., SKELETON.index("lhip"), :] - joints[..., SKELETON.index("rhip"), :]
    up = joints[..., SKELETON.index("spine"), :] - joints[..., SKELETON.index("pelvis"), :]
    return torch.nn.functional.normalize(torch.linalg.cross(left, up), dim=-1)


def test_every_subject_performs_every_action(motion):
    assert len(ACTIONS) >= 12
    assert motion.num_sequences == 3 * len(ACTIONS)
    assert len(motion) == motion.num_sequences * 125
    assert {(s, a) for s, a in zip(motion.subject, motion.action)} == {(f"G{k}", a) for k in (1, 2, 3) for a in ACTIONS}
    assert set(motion.split) == {"train", "test"}
    assert motion.seconds == pytest.approx(5.0 * motion.num_sequences)


def test_test_bodies_are_never_seen_in_training(motion):
    assert not set(motion.select("train").subject) & set(motion.select("test").subject)


def test_limb_lengths_are_constant_within_a_sequence_and_differ_between_bodies(motion):
    lengths = limb_lengths(motion.joints.double()).unflatten(0, (motion.num_sequences, -1))
    assert (lengths - lengths[:, :1]).abs().max() < 5e-6  # float32 at tens of metres from the origin
    people = {name: lengths[index, 0] for index, name in enumerate(motion.subject)}
    for index, name in enumerate(motion.subject):
        torch.testing.assert_close(lengths[index, 0], people[name], rtol=0, atol=5e-6)
    assert (people["G1"] - people["G2"]).abs().max() > 5e-3


def test_left_and_right_limbs_are_alike_and_of_human_length(motion):
    length = dict(zip([child for _, child in SKELETON.limbs], limb_lengths(motion.joints).unbind(-1)))
    for left, right in zip(SKELETON.left, SKELETON.right):
        torch.testing.assert_close(length[left], length[right], rtol=0, atol=1e-5)
    for name, low, high in (
        ("lknee", 0.36, 0.55),
        ("lankle", 0.36, 0.55),
        ("lelbow", 0.23, 0.34),
        ("lwrist", 0.2, 0.31),
    ):
        joint = SKELETON.index(name)
        assert low < length[joint].min()
        assert length[joint].max() < high


def test_the_pelvis_is_midway_between_the_hips(motion):
    middle = (motion.joints[:, 1] + motion.joints[:, 4]) / 2
    torch.testing.assert_close(motion.joints[:, 0], middle, rtol=0, atol=1e-5)


def test_knees_and_elbows_bend_the_human_way(motion):
    """The knee lies in front of the line from hip to ankle; a mirrored or inside-out body fails."""
    ahead = forward(motion.joints)
    for side in "lr":
        hip, knee, ankle = (motion.joints[:, SKELETON.index(side + name)] for name in ("hip", "knee", "ankle"))
        bend = knee - (hip + ankle) / 2
        # The plane in which the shin folds is that of the thigh, so turn "ahead" into it: across x thigh.
        across = motion.joints[:, 4] - motion.joints[:, 1]
        front = torch.nn.functional.normalize(torch.linalg.cross(across, hip - knee), dim=-1)
        assert ((bend * front).sum(-1) > 0).float().mean() > 0.999
    standing = motion.joints[:, 0, 2] > 0.8
    toes = motion.joints[:, 2] - (motion.joints[:, 1] + motion.joints[:, 3]) / 2
    assert ((toes * ahead).sum(-1)[standing] > -0.01).all()


def test_right_is_right_of_the_way_people_walk(motion):
    for sequence in of(motion, "walk").double():
        course = sequence[25:, 0] - sequence[:-25, 0]  # one second
        left = sequence[25:, 4] - sequence[25:, 1]
        up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand_as(left)
        assert (torch.linalg.cross(up, course) * left).sum(-1).min() > 0  # up x forward = left
        assert course[:, :2].norm(dim=-1).mean() > 0.5


def test_feet_stay_near_the_floor_and_nothing_goes_through_it(motion):
    assert motion.joints[..., 2].min() > 0.03
    assert motion.joints[:, ANKLES, 2].min() > 0.079
    for action in ACTIONS:
        lowest = of(motion, action)[..., ANKLES, 2].amin(-1)
        airborne = action in ("jump", "jumping_jack", "run", "kneel")
        assert lowest.median() < 0.12, action
        assert airborne or lowest.max() < 0.10, action


def test_a_standing_foot_stays_where_it_is(motion):
    for action, limit in (("walk", 0.2), ("squat", 0.2), ("sit", 0.1), ("punch", 0.1), ("reach", 0.1), ("bend", 0.1)):
        feet = of(motion, action)[:, :, ANKLES, :2]
        speed = feet.diff(dim=1).norm(dim=-1).amin(-1) * motion.fps  # of the slower foot
        assert speed.mean() < limit, action


def test_motion_is_smooth(motion):
    joints = motion.joints.double().unflatten(0, (motion.num_sequences, -1))
    speed = joints.diff(dim=1).norm(dim=-1) * motion.fps
    acceleration = joints.diff(n=2, dim=1).norm(dim=-1) * motion.fps**2
    assert speed.max() < 15  # metres a second: a sprinter's foot
    assert acceleration.max() < 250
    assert acceleration.quantile(0.5) < 5


def test_more_frames_a_second_show_the_same_motion():
    slow = generate_motion(3, actions=("dance",), num_subjects=1, num_test_subjects=0, seconds=3.0, fps=25.0)
    fast = generate_motion(3, actions=("dance",), num_subjects=1, num_test_subjects=0, seconds=3.0, fps=50.0)
    shape = fast.every(2).joints - fast.every(2).joints[:, :1]
    torch.testing.assert_close(slow.joints - slow.joints[:, :1], shape[: len(slow)], rtol=0, atol=0.02)


def test_the_seed_decides_everything():
    options = {"actions": ("walk", "sit", "jump"), "num_subjects": 2, "num_test_subjects": 1, "seconds": 2.0}
    first, again, other = (generate_motion(seed, **options) for seed in (4, 4, 5))
    assert torch.equal(first.joints, again.joints)
    assert not torch.equal(first.joints, other.joints)
    assert not torch.equal(generate_motion(-4, **options).joints, first.joints)


def test_a_take_does_not_depend_on_what_else_is_generated():
    options = {"num_subjects": 2, "num_test_subjects": 1, "seconds": 2.0}
    alone = generate_motion(4, actions=("sit",), **options)
    among = generate_motion(4, actions=("walk", "sit", "jump"), **options)
    assert torch.equal(of(among, "sit"), of(alone, "sit"))
    assert not torch.equal(*of(generate_motion(4, actions=("sit",), takes=2, **options), "sit")[:2])


def test_actions_are_what_they_are_called(motion):
    up = {name: of(motion, name) for name in ACTIONS}
    wrists = [SKELETON.index("lwrist"), SKELETON.index("rwrist")]
    head = SKELETON.index("head")
    for name in ("squat", "sit", "kneel", "lunge"):  # the pelvis sinks by a fifth at least
        assert (up[name][:, :, 0, 2].amin(1) < 0.8 * up["idle"][:, :, 0, 2].amax(1)).all(), name
    for name in ("stretch", "jumping_jack", "wave"):
        assert (up[name][:, :, wrists, 2].amax((1, 2)) > 0.9 * up[name][:, :, head, 2].amax(1)).any(), name
    assert (up["bend"][:, :, wrists, 2].amin((1, 2)) < 0.75).all()
    assert (up["jump"][:, :, ANKLES, 2].amin(2).amax(1) > 0.15).all()
    assert (up["kick"][:, :, ANKLES, 2].amax((1, 2)) > 0.45).all()
    for name, low, high in (("walk", 0.6, 2.0), ("run", 1.5, 5.0)):
        speed = up[name][:, :, 0, :2].diff(dim=1).norm(dim=-1).mean() * motion.fps
        assert low < speed < high, name


@given(st.integers(0, 2**31), st.sampled_from(sorted(ACTIONS)))
@settings(max_examples=40)
def test_angles_stay_within_the_limits_of_the_joints(seed, action):
    take = perform(action, torch.arange(60, dtype=torch.float64) / 20, torch.Generator().manual_seed(seed))
    assert set(take.angles) == set(ANGLES)
    for name, (low, high) in LIMITS.items():
        assert low <= take.angles[name].min(), name
        assert take.angles[name].max() <= high, name


@given(st.floats(-1e3, 1e3), st.sampled_from(sorted(LIMITS)))
def test_limits_hold_for_any_request_and_leave_the_middle_alone(value, name):
    low, high = LIMITS[name]
    bent = within_limits({name: torch.tensor([value], dtype=torch.float64)})[name].item()
    assert low <= bent <= high
    if low + 4 <= value <= high - 4:
        assert bent == value


@given(st.integers(0, 2**31))
def test_mirrored_angles_give_the_mirrored_body(seed):
    dice = torch.Generator().manual_seed(seed)
    body = Body.random(dice)
    angles = {name: torch.randn(3, generator=dice, dtype=torch.float64) * 30 for name in ANGLES}
    odd = {"yaw", "roll", "spine_side", "spine_twist", "neck_side", "neck_twist"}
    swap = {"l": "r", "r": "l"}
    mirrored = {}
    for name, value in angles.items():
        if name[:2] in ("l_", "r_"):
            mirrored[swap[name[0]] + name[1:]] = value
        else:
            mirrored[name] = -value if name in odd else value
    expected = forward_kinematics(body, angles)[:, list(SKELETON.flip_permutation)] * torch.tensor([1.0, -1.0, 1.0])
    torch.testing.assert_close(forward_kinematics(body, mirrored), expected.double())


def test_the_upright_stance_is_upright():
    body = Body.random(torch.Generator().manual_seed(0))
    zero = dict.fromkeys(ANGLES, torch.zeros(2, dtype=torch.float64))
    joints = stand(forward_kinematics(body, zero), torch.zeros(2, dtype=torch.float64))
    ankle, knee, hip, wrist, elbow = (
        joints[0, SKELETON.index(f"l{n}")] for n in ("ankle", "knee", "hip", "wrist", "elbow")
    )
    assert ankle[2].item() == pytest.approx(0.08 + 0.012 * 0.6931, abs=1e-4)  # two feet share the weight
    assert (hip[2] - knee[2]).item() == pytest.approx(body.thigh)
    assert (knee[2] - ankle[2]).item() == pytest.approx(body.shin)
    assert (elbow[2] - wrist[2]).item() == pytest.approx(body.forearm)
    assert hip[1] > 0  # left is +y when x is ahead
    assert len(FREE) + len(LIMITS) == len(ANGLES)


def test_flexing_moves_each_joint_the_way_it_is_named():
    body = Body.random(torch.Generator().manual_seed(0))
    zero = dict.fromkeys(ANGLES, torch.zeros(1, dtype=torch.float64))

    def moved(joint: str, **angles: float) -> torch.Tensor:
        asked = zero | {name: torch.tensor([value], dtype=torch.float64) for name, value in angles.items()}
        index = SKELETON.index(joint)
        return forward_kinematics(body, asked)[0, index] - forward_kinematics(body, zero)[0, index]

    ahead, left, up = 0, 1, 2
    assert moved("lknee", l_hip_flex=40)[ahead] > 0.2
    assert moved("lankle", l_knee=40)[ahead] < -0.2
    assert moved("lwrist", l_elbow=90)[ahead] > 0.2
    assert moved("lelbow", l_arm_abd=90)[left] > 0.2
    assert moved("relbow", r_arm_abd=90)[left] < -0.2
    assert moved("rknee", r_hip_abd=30)[left] < -0.1
    assert moved("head", spine_flex=40)[ahead] > 0.2
    assert moved("head", spine_side=30)[left] < -0.1  # to the right
    assert moved("lwrist", l_arm_flex=170)[up] > 0.8
    assert moved("lwrist", l_elbow=90, l_arm_rot=90)[left] < -0.1  # the forearm turns inward


def test_every_keeps_the_first_frame_of_each_sequence(motion):
    thin = motion.every(6)
    assert thin.fps == pytest.approx(25 / 6)
    assert torch.equal(thin.joints[thin.starts[:-1]], motion.joints[motion.starts[:-1]])
    assert torch.equal(thin.joints[1], motion.joints[6])
    assert thin.num_sequences == motion.num_sequences


def test_select_renumbers_and_keeps_frames_with_their_labels(motion):
    test = motion.select("test")
    assert test.num_sequences == motion.split.count("test")
    for index, name in enumerate(test.name):
        original = motion.name.index(name)
        assert torch.equal(test.joints[test.sequence == index], motion.joints[motion.sequence == original])
        assert test.action[index] == motion.action[original]


def test_bad_requests_are_refused_in_words(motion):
    with pytest.raises(ValueError, match=r"needs `actions` to be one of .*; got 'wlak'\. Did you mean 'walk'\?"):
        generate_motion(0, actions=("wlak",))
    with pytest.raises(ValueError, match=r"at least one action; got none\. Choose from idle"):
        generate_motion(0, actions=())
    with pytest.raises(ValueError, match=r"`seconds` > 0; got -1\.0"):
        generate_motion(0, seconds=-1.0)
    with pytest.raises(ValueError, match=r"`num_test_subjects` < `num_subjects` \(2\); got 2\. Leave somebody"):
        generate_motion(0, num_subjects=2, num_test_subjects=2)
    with pytest.raises(ValueError, match="`step` >= 1; got 0"):
        motion.every(0)
    with pytest.raises(ValueError, match="Did you mean 'test'"):
        motion.select("tset")
    with pytest.raises(ValueError, match=r"split 'test'; got 2 sequences, all 'train'"):
        generate_motion(0, actions=("idle",), num_subjects=2, num_test_subjects=0, seconds=0.2).select("test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"joints": torch.zeros(5, 14, 3)}, r"`joints` as float32 of shape \(\d+, 17, 3\); got .*\(5, 14, 3\)"),
        ({"action": ("walk",)}, "same length"),
        ({"fps": 0.0}, "> 0; got 0.0"),
        ({"fps": float("nan")}, "> 0; got nan"),
        ({"sequence": torch.zeros(250, dtype=torch.int64)}, "count int64 from 0 to 1 without a gap"),
        ({"split": ("train", "dev")}, "'dev'"),
    ],
)
def test_a_motion_that_does_not_fit_together_is_refused(change, message):
    motion = generate_motion(0, actions=("idle",), num_subjects=2, num_test_subjects=1, seconds=5.0)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(motion, **change)
