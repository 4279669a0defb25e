"""Names of Human3.6M: its actions in the order papers print them, and the 17 joints most papers use."""

from __future__ import annotations

import re

ACTIONS = (
    "Directions", "Discussion", "Eating", "Greeting", "Phoning", "Photo", "Posing", "Purchases",
    "Sitting", "SittingDown", "Smoking", "Waiting", "WalkDog", "Walking", "WalkTogether",
)  # fmt: skip
SHORT_ACTIONS = {
    "Directions": "Dir.", "Discussion": "Disc.", "Eating": "Eat", "Greeting": "Greet", "Phoning": "Phone",
    "Photo": "Photo", "Posing": "Pose", "Purchases": "Purch.", "Sitting": "Sit", "SittingDown": "SitD.",
    "Smoking": "Smoke", "Waiting": "Wait", "WalkDog": "WalkD.", "Walking": "Walk", "WalkTogether": "WalkT.",
}  # fmt: skip
JOINTS = (
    "pelvis", "right hip", "right knee", "right ankle", "left hip", "left knee", "left ankle", "spine", "thorax",
    "neck", "head", "left shoulder", "left elbow", "left wrist", "right shoulder", "right elbow", "right wrist",
)  # fmt: skip
PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15)

_OTHER_NAMES = {
    "takingphoto": "Photo",
    "photo": "Photo",
    "walkingdog": "WalkDog",
    "walkdog": "WalkDog",
    "walkingtogether": "WalkTogether",
    "walktogether": "WalkTogether",
    "purchasing": "Purchases",
}


def action_name(recording: str) -> str:
    """The action of a recording, as papers print it: ``"WalkingDog 1"``, ``"WalkDog"`` and ``"walking_dog"`` are one.

    Raises ValueError for a recording of none of the 15 actions.

    Example:
        >>> action_name("TakingPhoto 1"), action_name("SittingDown")
        ('Photo', 'SittingDown')
    """
    plain = re.sub(r"[^a-z]", "", recording.lower())
    names = {**{action.lower(): action for action in ACTIONS}, **_OTHER_NAMES}
    if plain not in names:
        raise ValueError(
            f"`action_name` needs a recording of Human3.6M; got {recording!r}. Its actions are {', '.join(ACTIONS)}."
        )
    return names[plain]
