"""Actions: functions from time to joint angles.

Shapes follow gait analysis and everyday observation, in degrees. Every take draws its own speed, amplitude, side and
posture, and slow noise varies every angle, so no two takes are equal and none is a loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .body import ANGLES, within_limits

Angles = dict[str, Tensor]


class Take:
    """The time axis, the random numbers, and the building blocks of actions.

    Attributes:
        time: ``(F,)`` seconds, float64.
        angles: of each joint, ``(F,)`` degrees; actions add to them.
        lift: ``(F,)`` metres above the floor.
        support: share of the weight on the right foot, ``(F,)`` in [0, 1]; None if the lower foot carries it.
    """

    support: Tensor | None = None

    def __init__(self, time: Tensor, generator: torch.Generator) -> None:
        self.time = time
        self.duration = float(time[-1])
        self.generator = generator
        self.angles: Angles = {name: torch.zeros_like(time) for name in ANGLES}
        self.lift = torch.zeros_like(time)

    def uniform(self, low: float, high: float) -> float:
        """A number from [low, high)."""
        return low + (high - low) * float(torch.rand((), generator=self.generator, dtype=torch.float64))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform(0, 1) < probability

    def sides(self) -> tuple[str, str]:
        """Left and right in random order: the leading side, and the other."""
        return ("l", "r") if self.chance(0.5) else ("r", "l")

    def add(self, **angles: Tensor | float) -> None:
        """Adds degrees to angles by name."""
        for name, value in angles.items():
            self.angles[name] = self.angles[name] + value

    def add_side(self, side: str, **angles: Tensor | float) -> None:
        """Adds degrees to angles of one side: ``add_side("l", knee=...)``."""
        self.add(**{f"{side}_{name}": value for name, value in angles.items()})

    def add_both(self, **angles: Tensor | float) -> None:
        """Adds degrees to both sides."""
        self.add_side("l", **angles)
        self.add_side("r", **angles)

    def wander(self, amplitude: float, period: float = 4.0) -> Tensor:
        """Slow noise of roughly this amplitude: three incommensurate waves."""
        noise = torch.zeros_like(self.time)
        for _ in range(3):
            frequency, phase = self.uniform(0.4, 1.6) / period, self.uniform(0, 2 * math.pi)
            noise = noise + (2 * math.pi * frequency * self.time + phase).sin()
        return noise * (amplitude / math.sqrt(3))

    def cycles(self, rate: float) -> Tensor:
        """A running phase in cycles, from a random start, at a rate that drifts by a few per cent."""
        return self.uniform(0, 1) + rate * self.time + self.wander(0.04, 5.0)

    def ease(self, start: float, length: float) -> Tensor:
        """0 before ``start``, 1 after ``start + length``, smooth to the second derivative in between."""
        x = ((self.time - start) / length).clamp(0, 1)
        return x**3 * (x * (6 * x - 15) + 10)

    def beats(self, period: float) -> list[tuple[float, float]]:
        """Start and length in seconds of repetitions that fill the take."""
        beats, start = [], -self.uniform(0, 0.5) * period
        while start < self.duration:
            beats.append((start, period * self.uniform(0.85, 1.15)))
            start += beats[-1][1]
        return beats

    def bump(self, start: float, length: float, rise: float = 0.35, hold: float = 0.1) -> Tensor:
        """From 0 to 1 and back within ``length`` seconds; ``rise`` and ``hold`` are shares of it."""
        fall = min(rise, 0.98 - rise - hold)
        return self.ease(start, rise * length) - self.ease(start + (rise + hold) * length, fall * length)

    def repetitions(self, period: float, rise: float = 0.35, hold: float = 0.1) -> list[Tensor]:
        """One :meth:`bump` for each of the :meth:`beats`."""
        return [self.bump(start, length, rise, hold) for start, length in self.beats(period)]


def perform(action: str, time: Tensor, generator: torch.Generator) -> Take:
    """One take of an action.

    Args:
        action: a name from ``ACTIONS``. time: ``(F,)`` seconds, float64. generator: CPU; draws everything random.
    Returns: the take, with all angles within their limits.
    """
    take = Take(time, generator)
    take.add(yaw=take.uniform(-180, 180) + take.wander(4), pitch=take.wander(1.5), roll=take.wander(1))
    take.add(spine_flex=take.uniform(0, 8) + take.wander(2), spine_side=take.wander(2), spine_twist=take.wander(3))
    take.add(neck_flex=take.uniform(-2, 12) + take.wander(5), neck_side=take.wander(3), neck_twist=take.wander(10, 3))
    for side in "lr":
        take.add_side(side, hip_flex=take.wander(1.5), hip_abd=take.uniform(1, 5), hip_rot=take.uniform(-8, 4))
        take.add_side(side, knee=take.uniform(4, 9) + take.wander(1.5))
        take.add_side(side, arm_flex=take.wander(3), arm_abd=take.uniform(7, 13) + take.wander(2))
        take.add_side(side, arm_rot=take.uniform(0, 25) + take.wander(4), elbow=take.uniform(10, 26) + take.wander(4))
    ACTIONS[action](take)
    take.angles = within_limits(take.angles)
    return take


def _idle(take: Take) -> None:
    shift = take.wander(1, 5)  # weight from one leg to the other
    take.add(roll=3 * shift, spine_side=-3 * shift, l_knee=8 * shift.clamp(min=0), l_hip_flex=4 * shift.clamp(min=0))
    take.add(r_knee=8 * (-shift).clamp(min=0), r_hip_flex=4 * (-shift).clamp(min=0), neck_twist=take.wander(15))
    posture = take.uniform(0, 3)
    if posture < 1:  # hands on the hips
        take.add_both(arm_abd=38, arm_rot=60, elbow=75, arm_flex=-18)
    elif posture < 2:  # arms folded
        take.add_both(arm_flex=32, arm_rot=58, elbow=78, arm_abd=-4)


def _stride(take: Take, phase: Tensor, swing: float, mean: float, fold: float, yielding: float) -> None:
    """Legs of a gait. ``phase`` counts strides, 0 at the right heel's strike; ``yielding`` bends the loaded knee."""
    take.support = torch.sigmoid(9 * (2 * math.pi * (phase - 0.02)).sin())
    for side, own in (("r", phase), ("l", phase + 0.5)):
        take.add_side(side, hip_flex=mean + swing * (_wave(own - 0.02) + 0.1 * _wave(3 * (own - 0.02))))
        take.add_side(side, knee=yielding * _peak(own - 0.13, 0.10) + fold * _peak(own - 0.72, 0.13))


def _walk(take: Take) -> None:
    phase = take.cycles(take.uniform(0.72, 1.0))
    swing, arms = take.uniform(19, 27), take.uniform(10, 30)
    _stride(take, phase, swing, 7, take.uniform(48, 62), take.uniform(8, 16))
    for side, own in (("r", phase), ("l", phase + 0.5)):
        forward = -_wave(own - 0.04)
        take.add_side(side, arm_flex=arms * forward + 2, elbow=6 + 0.4 * arms * (1 + forward))
    take.add(yaw=take.uniform(-30, 30) * take.time + 5 * _wave(phase + 0.5), spine_twist=-9 * _wave(phase + 0.5))
    take.add(roll=3 * _wave(phase - 0.3), spine_side=-3 * _wave(phase - 0.3), spine_flex=take.uniform(0, 6))


def _run(take: Take) -> None:
    phase = take.cycles(take.uniform(1.2, 1.45))
    _stride(take, phase, take.uniform(30, 40), 20, take.uniform(80, 105), take.uniform(22, 32))
    arms = take.uniform(25, 40)
    for side, own in (("r", phase), ("l", phase + 0.5)):
        forward = -_wave(own - 0.04)
        take.add_side(side, arm_flex=arms * forward - 5, elbow=60 + 18 * forward, arm_rot=10)
    take.add(yaw=take.uniform(-40, 40) * take.time, spine_twist=-10 * _wave(phase + 0.5), pitch=take.uniform(4, 10))
    take.lift = take.uniform(0.04, 0.08) * (0.5 - 0.5 * _wave(2 * phase - 0.3))


def _squat(take: Take) -> None:
    depth, reach = take.uniform(75, 110), take.uniform(40, 95)
    take.add_both(hip_abd=take.uniform(2, 12))
    for bump in take.repetitions(take.uniform(2.0, 3.2)):
        low = bump * take.uniform(0.8, 1)
        take.add(pitch=0.28 * depth * low, spine_flex=0.1 * depth * low, neck_flex=-0.25 * depth * low)
        take.add_both(hip_flex=1.02 * depth * low, knee=1.15 * depth * low, arm_flex=(reach + 0.3 * depth) * low)


def _lunge(take: Take) -> None:
    front, back = take.sides()
    hands = take.uniform(0, 60)
    for bump in take.repetitions(take.uniform(2.2, 3.2)):
        deep = bump * take.uniform(0.75, 1)
        take.add_side(front, hip_flex=78 * deep, knee=80 * deep)
        take.add_side(back, hip_flex=-14 * deep, knee=62 * deep)
        take.add_both(elbow=hands * bump, arm_flex=0.4 * hands * bump)
        take.add(pitch=4 * deep)
        front, back = back, front


def _wave_hand(take: Take) -> None:
    hand, _ = take.sides()
    raised = take.ease(take.uniform(0, 0.8), 0.7) - take.ease(take.duration - take.uniform(0.2, 1.0), 0.7)
    rate, width, height = take.uniform(0.9, 1.8), take.uniform(12, 30), take.uniform(60, 120)
    take.add_side(hand, arm_abd=raised * height, arm_rot=-raised * 95, arm_flex=raised * take.uniform(0, 25))
    swing = torch.sin(2 * math.pi * take.cycles(rate))
    take.add_side(hand, elbow=raised * (130 - 0.6 * height + width * swing), arm_abd=-raised * 0.3 * width * swing)
    take.add(spine_side=(4 if hand == "l" else -4) * raised)


def _reach(take: Take) -> None:
    for bump in take.repetitions(take.uniform(1.8, 2.8), hold=0.2):
        hand, other = take.sides()
        outward = 1 if hand == "l" else -1
        height = take.uniform(50, 165)
        take.add_side(hand, arm_flex=height * bump, arm_abd=take.uniform(-25, 55) * bump, elbow=-12 * bump)
        take.add(spine_twist=outward * -take.uniform(0, 30) * bump, yaw=outward * take.uniform(-25, 25) * bump)
        take.add(spine_flex=max(0.0, 95 - height) * 0.35 * bump, spine_side=-outward * take.uniform(-4, 12) * bump)
        take.add(neck_flex=(85 - height) * 0.3 * bump)
        take.add_side(other, elbow=take.uniform(0, 35) * bump)


def _sit(take: Take) -> None:
    down = take.ease(take.uniform(0.0, 0.8), 1.3)
    if take.chance(0.5):
        down = down - take.ease(take.duration - take.uniform(1.4, 2.0), 1.3)
    lean = 4 * down * (1 - down)  # bows on the way
    take.add(pitch=-take.uniform(0, 14) * down + 25 * lean, spine_flex=take.uniform(0, 18) * down + 14 * lean)
    for side in "lr":
        take.add_side(side, hip_flex=take.uniform(76, 92) * down + 10 * lean, knee=take.uniform(72, 108) * down)
        take.add_side(side, hip_abd=take.uniform(0, 14) * down)
        gesture = take.wander(14, 2)
        take.add_side(side, arm_flex=(take.uniform(15, 42) + gesture) * down, elbow=(45 + 2 * gesture) * down)
        take.add_side(side, arm_rot=take.uniform(0, 30) * down)
    if take.chance(0.3):  # one leg over the other
        over, _ = take.sides()
        take.add_side(over, hip_flex=22 * down, hip_abd=-20 * down, knee=15 * down)


def _kneel(take: Take) -> None:
    knee, foot = take.sides()
    down = take.ease(take.uniform(0.2, 1.0), 1.5) - take.ease(take.duration - take.uniform(1.5, 2.2), 1.4)
    both = 1.0 if take.chance(0.4) else 0.0
    take.add_side(knee, hip_flex=-2 * down, knee=take.uniform(86, 100) * down)
    take.add_side(foot, hip_flex=(84 - 86 * both) * down, knee=88 * down)
    take.add(pitch=take.uniform(0, 8) * down, spine_flex=take.uniform(0, 30) * down, neck_flex=10 * down)
    for side in "lr":
        take.add_side(side, arm_flex=(take.uniform(10, 60) + take.wander(10, 2)) * down)
        take.add_side(side, elbow=take.uniform(10, 60) * down)


def _turn(take: Take) -> None:
    start = take.uniform(-0.3, 0.5)
    while start < take.duration:
        length = take.uniform(1.4, 2.4)
        angle = take.uniform(70, 190) * (1 if take.chance(0.5) else -1)
        progress = take.ease(start, length)
        take.add(yaw=angle * progress, neck_twist=0.35 * angle * 4 * progress * (1 - progress) * 0.6)
        moving = take.ease(start, 0.35) - take.ease(start + length - 0.4, 0.35)
        steps = 2 * progress * (abs(angle) / 90)
        for side, own in (("r", steps), ("l", steps + 0.5)):
            up = (0.5 - 0.5 * _wave(own)).square() * moving
            take.add_side(side, hip_flex=26 * up, knee=46 * up)
        start += length + take.uniform(0.2, 1.0)


def _punch(take: Take) -> None:
    front, rear = take.sides()
    twist = 1 if front == "r" else -1  # the front shoulder turns forward
    take.add_side(front, hip_flex=take.uniform(16, 26), knee=take.uniform(12, 24))
    take.add_side(rear, hip_flex=-take.uniform(8, 16), knee=take.uniform(14, 26), hip_abd=6)
    take.add_both(arm_flex=38, elbow=100, arm_rot=24, arm_abd=2)
    take.add(spine_flex=8, neck_flex=4)
    bounce = take.wander(5, 0.9)
    take.add_both(knee=bounce + 5, hip_flex=0.5 * bounce)
    for bump in take.repetitions(take.uniform(0.7, 1.2), rise=0.28, hold=0.04):
        hand, sign = (front, twist) if take.chance(0.6) else (rear, -twist)
        height = take.uniform(35, 62)
        take.add_side(hand, arm_flex=height * bump, elbow=-112 * bump, arm_rot=20 * bump, arm_abd=-4 * bump)
        take.add(spine_twist=sign * 26 * bump, yaw=sign * 8 * bump, spine_flex=6 * bump)


def _kick(take: Take) -> None:
    leg, stand = take.sides()
    take.add_both(arm_abd=16, elbow=28, arm_flex=10)
    for bump in take.repetitions(take.uniform(1.5, 2.3), rise=0.3, hold=0.04):
        height = take.uniform(45, 98)
        early = bump * (1 - bump) * 4
        take.add_side(leg, hip_flex=height * bump, knee=55 * early, hip_abd=take.uniform(0, 14) * bump)
        take.add_side(stand, knee=14 * bump, hip_flex=8 * bump)
        take.add(pitch=-12 * bump, spine_flex=14 * bump)
        take.add_both(arm_abd=22 * bump)
        if take.chance(0.3):
            leg, stand = stand, leg


def _bend(take: Take) -> None:
    straight = take.uniform(0, 1)  # from bending the legs to bowing with straight legs
    for bump in take.repetitions(take.uniform(2.6, 3.8), hold=0.15):
        twist = take.uniform(-22, 22)
        take.add(pitch=(28 + 16 * straight) * bump, spine_flex=(38 + 24 * straight) * bump, spine_twist=twist * bump)
        take.add(neck_flex=-8 * bump)
        legs = 1 - 0.75 * straight
        take.add_both(hip_flex=(28 + 58 * legs + 10 * straight) * bump, knee=88 * legs * bump)
        for side in "lr":
            take.add_side(side, arm_flex=take.uniform(58, 96) * bump, elbow=take.uniform(-8, 24) * bump)


def _jumping_jack(take: Take) -> None:
    phase = take.cycles(take.uniform(0.75, 1.1))
    wide = (0.5 - 0.5 * _wave(phase)).pow(1.3)
    high, legs = take.uniform(115, 160), take.uniform(16, 26)
    take.add_both(arm_abd=high * wide, hip_abd=legs * wide - 1, arm_rot=-15, elbow=10 * wide)
    spring = _peak(2 * phase, 0.16)  # knees bend at both ends of the swing
    take.add_both(knee=24 * spring, hip_flex=13 * spring)
    take.lift = take.uniform(0.05, 0.12) * (0.5 - 0.5 * _wave(2 * phase)).square()


def _jump(take: Take) -> None:
    start = take.uniform(0, 0.6)
    while start < take.duration:
        depth, height = take.uniform(45, 80), take.uniform(0.15, 0.38)
        crouch = take.ease(start, 0.6) - take.ease(start + 0.62, 0.34)
        flight = ((take.time - start - 0.85) / (2 * math.sqrt(2 * height / 9.81))).clamp(0, 1)
        landing_time = start + 0.85 + 2 * math.sqrt(2 * height / 9.81)
        landing = take.ease(landing_time - 0.14, 0.34) - take.ease(landing_time + 0.22, 0.6)
        bent = crouch + 0.75 * landing
        take.add(pitch=0.42 * depth * bent, neck_flex=-0.2 * depth * bent)
        take.add_both(hip_flex=1.05 * depth * bent, knee=1.18 * depth * bent)
        up = take.ease(start + 0.5, 0.5) - take.ease(landing_time - 0.1, 0.5)
        take.add_both(arm_flex=take.uniform(90, 150) * up - 45 * crouch * (1 - up), elbow=12 * up)
        take.lift = take.lift + height * (4 * flight * (1 - flight)) ** 1.5
        start = landing_time + take.uniform(0.9, 1.6)


def _dance(take: Take) -> None:
    beat = take.cycles(take.uniform(0.85, 1.25))

    def sway(amplitude: float) -> Tensor:
        """A sway at the beat or half its rate, with varying amplitude."""
        pace = 0.5 if take.chance(0.5) else 1.0
        return amplitude * _wave(pace * beat + take.uniform(0, 1)) * (0.75 + take.wander(0.2, 6))

    take.add(roll=sway(7), spine_side=sway(10), spine_twist=sway(16), pitch=sway(3), yaw=sway(14) + take.wander(25, 6))
    take.add(neck_side=sway(8), neck_flex=sway(6))
    bob = 14 * (1 + _wave(beat)) / 2
    for side in "lr":
        take.add_side(side, knee=bob + 10 + sway(9), hip_flex=0.5 * bob + 4 + sway(7), hip_abd=4 + sway(5))
        take.add_side(side, arm_abd=take.uniform(20, 85) + sway(24), arm_flex=take.uniform(0, 45) + sway(24))
        take.add_side(side, elbow=take.uniform(25, 75) + sway(24), arm_rot=take.uniform(-60, 10) + sway(18))
    steps = beat * 0.5
    for side, own in (("r", steps), ("l", steps + 0.5)):
        up = (0.5 - 0.5 * _wave(own)).pow(3)
        take.add_side(side, hip_flex=18 * up, knee=34 * up, hip_abd=5 * up)


def _phone(take: Take) -> None:
    ear, free = take.sides()
    raised = take.ease(take.uniform(-1.0, 0.6), 0.9)
    take.add_side(ear, arm_flex=raised * (38 + take.wander(5)), arm_abd=raised * take.uniform(18, 38))
    take.add_side(ear, elbow=raised * take.uniform(110, 118), arm_rot=raised * -take.uniform(0, 12))
    take.add(neck_flex=6 * raised, neck_side=(-6 if ear == "l" else 6) * raised)
    take.add_side(free, elbow=20 + take.wander(22, 2.5), arm_flex=10 + take.wander(12, 2.5))
    if take.chance(0.5):  # to and fro
        phase = take.cycles(take.uniform(0.55, 0.75))
        _stride(take, phase, take.uniform(9, 15), 5, take.uniform(30, 42), 7)
        take.add(yaw=take.wander(70, 7))


def _throw(take: Take) -> None:
    hand, other = take.sides()
    inward = 1 if hand == "r" else -1  # a positive twist brings the right shoulder forward
    for start, length in take.beats(take.uniform(1.9, 2.7)):
        bump = take.bump(start, length, rise=0.42, hold=0.02)
        late = take.ease(start + 0.28 * length, 0.3 * length)
        swing = (2 * late - 1) * bump  # draws back, then sweeps forward
        take.add_side(hand, arm_abd=72 * bump, arm_rot=-70 * bump, elbow=(62 - 76 * late) * bump)
        take.add_side(hand, arm_flex=52 * swing + 18 * bump)
        take.add(spine_twist=inward * 30 * swing, spine_flex=12 * swing + 6 * bump, yaw=inward * 14 * swing)
        take.add_side(other, arm_flex=-34 * swing + 22 * bump, arm_abd=12 * bump, hip_flex=24 * bump, knee=22 * bump)
        take.add_side(hand, hip_flex=-10 * bump, knee=16 * bump)


def _stretch(take: Take) -> None:
    for bump in take.repetitions(take.uniform(2.8, 4.2), hold=0.22):
        if take.chance(0.5):  # up on both arms, bending sideways
            side = take.uniform(-30, 30)
            take.add_both(arm_abd=take.uniform(140, 158) * bump, arm_rot=-20 * bump, elbow=-10 * bump)
            take.add(spine_side=side * bump, spine_flex=-10 * bump, neck_flex=-14 * bump)
        else:  # arms spread, chest turned
            take.add_both(arm_abd=78 * bump, arm_flex=-12 * bump, elbow=-10 * bump)
            take.add(spine_twist=take.uniform(-42, 42) * bump, yaw=take.uniform(-10, 10) * bump)


def _wave(cycles: Tensor) -> Tensor:
    return (2 * math.pi * cycles).cos()


def _peak(cycles: Tensor, width: float) -> Tensor:
    """A periodic bump of height 1 at whole cycles, with about this standard deviation in cycles."""
    return ((_wave(cycles) - 1) / (2 * math.pi * width) ** 2).exp()


ACTIONS: dict[str, Callable[[Take], None]] = {
    "idle": _idle,
    "walk": _walk,
    "run": _run,
    "squat": _squat,
    "lunge": _lunge,
    "wave": _wave_hand,
    "reach": _reach,
    "sit": _sit,
    "kneel": _kneel,
    "turn": _turn,
    "punch": _punch,
    "kick": _kick,
    "bend": _bend,
    "jumping_jack": _jumping_jack,
    "jump": _jump,
    "dance": _dance,
    "phone": _phone,
    "throw": _throw,
    "stretch": _stretch,
}
"""Every action of the generator by name."""
