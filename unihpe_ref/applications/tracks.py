"""Follows people through a video: numbers them, repairs swapped sides, fills short gaps, smooths their 2D joints."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import median_filter
from scipy.optimize import linear_sum_assignment
from scipy.signal import savgol_filter

from unihpe_ref.data import SKELETON
from unihpe_ref.data.shapes import Array, all_finite

_FAR = 0.5  # shares of a person's size: a pose further from a track belongs to another person
_MEMORY = 1.0  # seconds for which a track waits for its person
_GAP = 0.5  # seconds: the longest gap that is filled
_WINDOW = 0.5  # seconds: window of the polynomial
_MEDIAN = 3  # frames: window of the median
_LEGS, _ARMS = (1, 2, 3, 4, 5, 6), (11, 12, 13, 14, 15, 16)
_SWAPPED, _MOVED = 0.6, 0.05  # a swap must cut the distance to this share of it; unswapped, it is over this of the size


def number_people(joints: Array, frame: Sequence[int], fps: float) -> Array:
    """The number of the person of each pose, ``(N,)`` int64, from 0 in the order of appearance.

    Poses of neighbouring frames are matched so that the sum of mean joint distances is smallest.

    Args:
        joints: ``(N, 17, 2)`` pixels, NaN where missing. frame: N numbers. fps: frames a second.
    """
    frame_of = np.asarray(frame)
    number = np.full(len(joints), -1)
    last: dict[int, int] = {}  # person: row
    for now in np.unique(frame_of):
        rows = np.flatnonzero(frame_of == now)
        last = {person: row for person, row in last.items() if now - frame_of[row] <= max(1.0, _MEMORY * fps)}
        people = list(last)
        if people:
            cost = np.array([[_distance(joints[row], joints[last[person]]) for person in people] for row in rows])
            for row, column in zip(*linear_sum_assignment(np.minimum(cost, 2 * _FAR))):
                if cost[row, column] < _FAR:
                    number[rows[row]] = people[column]
        for row in rows:
            if number[row] < 0:
                number[row] = number.max() + 1
            last[int(number[row])] = int(row)
    return number


def _distance(pose: Array, other: Array) -> float:
    """Mean distance of the joints that both have, in units of the larger person; infinite if they share none."""
    both = all_finite(pose, -1) & all_finite(other, -1)
    if not both.any():
        return np.inf
    size = max(np.ptp(pose[both], 0).max(), np.ptp(other[both], 0).max(), 1e-6)
    return float(np.linalg.norm(pose[both] - other[both], axis=-1).mean() / size)


def smooth(joints: Array, frame: Sequence[int], fps: float) -> tuple[Array, Array, int]:
    """Smooths one person's track.

    Sides that a detector swaps for some frames are swapped back, gaps of up to half a second are filled linearly, and
    each coordinate goes through a median of three frames and a Savitzky-Golay filter of half a second, second order.
    Joints that are missing for longer stay missing.

    Args:
        joints: ``(F, 17, 2)`` pixels of frames in order, NaN where missing. frame: F numbers, ascending.
        fps: frames a second.
    Returns: joints of every frame from the first to the last, ``(G, 17, 2)``; ``(G, 17)`` bool, True for filled ones;
        and the number of frames whose sides were swapped.
    """
    position = np.asarray(frame) - frame[0]
    track = np.full((position[-1] + 1, *joints.shape[1:]), np.nan)
    repaired, swapped = _sides_kept(joints)
    track[position] = repaired
    filled = np.zeros(track.shape[:2], bool)
    window = max(3, round(_WINDOW * fps) // 2 * 2 + 1)
    for joint in range(track.shape[1]):
        known = all_finite(track[:, joint], -1)
        for start, stop in _runs(~known):  # gaps
            if start > 0 and stop < len(track) and stop - start <= max(1, _GAP * fps):
                share = (np.arange(start, stop) - start + 1)[:, None] / (stop - start + 1)
                ends = track[start - 1, joint], track[stop, joint]
                track[start:stop, joint] = (1 - share) * ends[0] + share * ends[1]
                filled[start:stop, joint] = True
        known = all_finite(track[:, joint], -1)
        for start, stop in _runs(known):
            piece = track[start:stop, joint]
            if len(piece) >= _MEDIAN:
                piece = median_filter(piece, (_MEDIAN, 1), mode="nearest")
            size = min(window, (len(piece) - 1) // 2 * 2 + 1)
            if size > 2:
                piece = savgol_filter(piece, size, 2, axis=0, mode="interp")
            track[start:stop, joint] = piece
    return track, filled, swapped


def _runs(mask: Array) -> list[tuple[int, int]]:
    """First and last + 1 of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))


def _sides_kept(joints: Array) -> tuple[Array, int]:
    """Swaps left and right of legs or arms where that continues the frames before; also returns in how many frames.

    The majority of frames counts as right: if more than half would be swapped, the others are swapped instead.
    """
    result = joints.copy()
    changed = np.zeros((len(joints), 2), bool)
    mirror = list(SKELETON.flip_permutation)
    for limb, members in enumerate((_LEGS, _ARMS)):
        own, other = list(members), [mirror[joint] for joint in members]
        for now in range(1, len(joints)):
            before, here, there = result[now - 1, own], joints[now, own], joints[now, other]
            known = all_finite(before, -1) & all_finite(here, -1) & all_finite(there, -1)
            if known.sum() < 4:
                continue
            size = np.nanmax(np.ptp(joints[now][all_finite(joints[now], -1)], axis=0))
            kept, turned = (np.linalg.norm(pose - before, axis=-1)[known].mean() for pose in (here, there))
            if turned < _SWAPPED * kept and kept > _MOVED * size:
                result[now, own] = there
                changed[now, limb] = True
        if changed[:, limb].mean() > 0.5:
            result[:, own] = result[:, other]
            changed[:, limb] = ~changed[:, limb]
    return result, int(changed.any(1).sum())
