"""Motion: joints over time, from a recording or from the generator here.

:func:`generate_motion` needs no download: it animates jointed bodies (:mod:`.body`) through the actions of
:mod:`.actions`, the same numbers for the same seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from multicontrast._checks import (
    check_choice,
    check_count,
    check_dense,
    check_number,
    check_texts,
    describe,
    three_beats,
)

from .actions import ACTIONS, perform
from .body import Body, forward_kinematics, stand
from .skeleton import SKELETON

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Motion:
    """Sequences of joints, concatenated.

    Attributes:
        joints: ``(F, 17, 3)`` float32, world metres, z up.
        sequence: ``(F,)`` int64, which sequence a frame belongs to: 0 .. S - 1, ascending.
        subject, action, split, name: S strings each; ``split`` is "train" or "test".
        fps: frames per second.
        notes: remarks about how they were read, a sentence each.
    Raises: ValueError if the attributes do not fit together.
    """

    joints: Tensor
    sequence: Tensor
    subject: tuple[str, ...]
    action: tuple[str, ...]
    split: tuple[str, ...]
    name: tuple[str, ...]
    fps: float
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("joints", "sequence"):
            check_dense("Motion", name, getattr(self, name))
        for name in ("subject", "action", "split", "name", "notes"):
            object.__setattr__(self, name, tuple(check_texts("Motion", name, getattr(self, name))))
        fps = check_number("Motion", "fps", self.fps, above=0, remedy="State the frame rate.")
        object.__setattr__(self, "fps", fps)
        unreal = any(value.is_meta or value._is_zerotensor() for value in (self.sequence, self.joints))
        if unreal or self.sequence.ndim != 1 or self.sequence.dtype != torch.int64:
            needed = "`Motion` needs `sequence` as int64 of one axis, and numbers in memory"
            raise ValueError(three_beats(needed, describe(self.sequence), "Number each frame's sequence."))
        frames = len(self.sequence)
        if tuple(self.joints.shape) != (frames, SKELETON.num_joints, 3) or self.joints.dtype != torch.float32:
            needed = f"`Motion` needs `joints` as float32 of shape ({frames}, 17, 3)"
            raise ValueError(three_beats(needed, describe(self.joints), "Convert the recording to Human3.6M's joints."))
        count = len(self.subject)
        if not count == len(self.action) == len(self.split) == len(self.name):
            came = f"{count}, {len(self.action)}, {len(self.split)}, {len(self.name)}"
            needed = "`Motion` needs one subject, action, split and name for each sequence"
            raise ValueError(three_beats(needed, came, "Give all four the same length."))
        step = self.sequence.diff()
        proper = frames > 0 and self.sequence[0] == 0 and self.sequence[-1] == count - 1 and bool((step >= 0).all())
        if not proper or bool((step > 1).any()):
            needed = f"`Motion` needs `sequence` to count int64 from 0 to {count - 1} without a gap, frames in order"
            raise ValueError(three_beats(needed, describe(self.sequence), "Number the sequences in storage order."))
        for split in self.split:
            check_choice("Motion", "split", split, SPLITS)

    def __len__(self) -> int:
        """The number of frames."""
        return len(self.sequence)

    @property
    def num_sequences(self) -> int:
        """S."""
        return len(self.subject)

    @property
    def starts(self) -> Tensor:
        """The first frame of each sequence, and the number of frames: ``(S + 1,)`` int64."""
        return torch.searchsorted(self.sequence, torch.arange(self.num_sequences + 1))

    @property
    def seconds(self) -> float:
        """Total duration."""
        return len(self) / self.fps

    def select(self, split: str) -> Motion:
        """The sequences of one split, "train" or "test", renumbered. Raises ``ValueError`` if there are none."""
        check_choice("Motion.select", "split", split, SPLITS)
        kept = [index for index, own in enumerate(self.split) if own == split]
        if not kept:
            needed = f"`Motion.select` needs sequences of the split {split!r}"
            came = f"{self.num_sequences} sequences, all {self.split[0]!r}"
            raise ValueError(three_beats(needed, came, f"Mark some {split!r}; of takes, one in five is held out."))
        number = torch.full((self.num_sequences,), -1)
        number[kept] = torch.arange(len(kept))
        frames = number[self.sequence] >= 0

        def chosen(values: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(values[index] for index in kept)

        return Motion(
            joints=self.joints[frames],
            sequence=number[self.sequence[frames]],
            subject=chosen(self.subject),
            action=chosen(self.action),
            split=chosen(self.split),
            name=chosen(self.name),
            fps=self.fps,
        )

    def every(self, step: int) -> Motion:
        """Every ``step``-th frame of each sequence: ``motion.every(6)`` turns 60 frames a second into 10."""
        step = check_count("Motion.every", "step", step, 1, remedy="1 keeps every frame.")
        frames = (torch.arange(len(self)) - self.starts[self.sequence]) % step == 0
        return replace(self, joints=self.joints[frames], sequence=self.sequence[frames], fps=self.fps / step)

    def thinned(self, fps: float) -> Motion:
        """:meth:`every` k-th frame, for ``fps`` frames a second. Raises ``ValueError`` if k is not a whole number."""
        step = max(1, round(self.fps / fps))
        if abs(self.fps / fps - step) > 0.01 * step:
            needed = f"`Motion.thinned` needs a frame rate of which {self.fps:g} is a multiple"
            raise ValueError(three_beats(needed, f"{fps:g}", "Choose a rate that divides it."))
        return self.every(step)


def generate_motion(
    seed: int,
    *,
    actions: Sequence[str] = tuple(ACTIONS),
    num_subjects: int = 7,
    num_test_subjects: int = 2,
    takes: int = 1,
    seconds: float = 8.0,
    fps: float = 25.0,
) -> Motion:
    """Plausible human motion: every subject performs every action, each take in its own way.

    Subjects differ in size and proportions, takes in speed, amplitude, posture, side and rhythm. Feet stay near the
    floor and do not slide, knees and elbows bend as in people, limbs keep their lengths. The last subjects are the test
    split, so bodies in it were never seen.

    Args:
        seed: the same seed and options give the same bits.
        actions: names from ``ACTIONS``.
        num_subjects: bodies. num_test_subjects: how many of them form the test split; fewer than all.
        takes: sequences for each subject and action.
        seconds: of each sequence. fps: frames per second.
    Returns: a :class:`Motion` of ``len(actions) * num_subjects * takes`` sequences.
    Raises: ValueError for an unknown action, no action, or counts and times that are not positive.
    """
    seed = check_count("generate_motion", "seed", seed, -(2**63))
    _check_generate(actions, num_subjects, num_test_subjects, takes, seconds, fps)
    frames = max(2, round(seconds * fps))
    time = torch.arange(frames, dtype=torch.float64) / float(fps)
    joints, subject, action, split, name = [], [], [], [], []
    for person in range(num_subjects):
        body = Body.random(_generator(seed, person))
        for index, chosen in enumerate(ACTIONS):
            if chosen not in actions:
                continue  # numbers follow the full table, so that a subset gives the same takes
            for take in range(takes):
                generator = _generator(seed, person, index, take)
                played = perform(chosen, time, generator)
                joints.append(stand(forward_kinematics(body, played.angles), played.lift, played.support))
                subject.append(f"G{person + 1}")
                action.append(chosen)
                split.append("test" if person >= num_subjects - num_test_subjects else "train")
                name.append(f"G{person + 1}_{chosen}_{take + 1}")
    return Motion(
        joints=torch.cat(joints).float(),
        sequence=torch.arange(len(joints)).repeat_interleave(frames),
        subject=tuple(subject),
        action=tuple(action),
        split=tuple(split),
        name=tuple(name),
        fps=float(fps),
    )


def _generator(*key: int) -> torch.Generator:
    """A separate generator for each subject and take, so that they do not depend on each other."""
    state = np.random.SeedSequence([abs(key[0]), int(key[0] < 0), *key[1:]]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) % 2**63)


def _check_generate(
    actions: Sequence[str], num_subjects: int, num_test_subjects: int, takes: int, seconds: float, fps: float
) -> None:
    for name, count in {"num_subjects": num_subjects, "num_test_subjects": num_test_subjects, "takes": takes}.items():
        check_count("generate_motion", name, count, -(2**63), 10**6)
    for name, number in {"seconds": seconds, "fps": fps}.items():
        check_number("generate_motion", name, number)
    if seconds * fps > 10**7 or 0 < fps < 1e-6:
        needed = "`generate_motion` needs `seconds` and `fps` that make 10 million frames at most"
        raise ValueError(three_beats(needed, f"{float(seconds * fps):g}", "Generate shorter sequences."))
    check_texts("generate_motion", "actions", actions)
    if not actions:
        needed = "`generate_motion` needs at least one action"
        raise ValueError(three_beats(needed, "none", f"Choose from {', '.join(ACTIONS)}."))
    for action in actions:
        check_choice("generate_motion", "actions", action, ACTIONS)
    for name, value in {"num_subjects": num_subjects, "takes": takes, "seconds": seconds, "fps": fps}.items():
        if not value > 0:
            raise ValueError(three_beats(f"`generate_motion` needs `{name}` > 0", repr(value), "Raise it."))
    if not 0 <= num_test_subjects < num_subjects:
        needed = f"`generate_motion` needs 0 <= `num_test_subjects` < `num_subjects` ({num_subjects})"
        raise ValueError(three_beats(needed, repr(num_test_subjects), "Leave somebody to train on."))
