"""The page that shows lifted poses: pictures, people on one floor, the time of a video, light and dark."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from unihpe_ref.applications.frames import thumbnail
from unihpe_ref.applications.poses import PoseSet
from unihpe_ref.applications.turntable import save_pose_view
from unihpe_ref.data import SKELETON, generate_motion
from unihpe_ref.lifter import LiftedPoses

from .chromium import Page

_CORNER = "(({ x, y }) => [x, y])(document.getElementById('turn').getBoundingClientRect())"


def pose_set(frames: int, people: int = 2, *, video: bool = True, pictures: bool = True, **more: object) -> PoseSet:
    """People beside each other who move, seen by a camera 4 m away; the picture is a plain blue one."""
    motion = generate_motion(0, actions=("walk",), num_subjects=2, num_test_subjects=1, seconds=3.0)
    world = motion.joints[:frames].repeat_interleave(people, 0)
    joints = torch.stack([world[..., 0], -world[..., 2], world[..., 1]], -1)
    joints = joints - joints[:, :1]
    root = torch.tensor([[1.2 * k, 0.1 * k, 4.0 + k] for k in range(people)]).repeat(frames, 1)
    seen = joints + root[:, None]
    pixels = 500 * seen[..., :2] / seen[..., 2:] + torch.tensor([320.0, 240.0])
    count = frames * people
    names = [f"clip.mp4 #{k}" for k in range(frames) for _ in range(people)]
    held = thumbnail(Image.new("RGB", (640, 480), (0, 0, 255)))
    return PoseSet(
        image=names,
        joints_2d=pixels,
        lifted=LiftedPoses(joints, root, torch.zeros(count), torch.zeros(count, dtype=torch.bool)),
        frame=[k for k in range(frames) for _ in range(people)] if video else None,
        time=[k / 25 for k in range(frames) for _ in range(people)] if video else None,
        person=list(range(people)) * frames if video else None,
        pictures=dict.fromkeys(names, (held, 640, 480)) if pictures else {},
        **more,  # type: ignore[arg-type]
    )


def opened(browser: Page, folder: Path, poses: PoseSet, **media: str) -> Page:
    save_pose_view(folder / "poses.html", poses)
    browser.errors.clear()
    browser.size(1100, 900)
    browser.media(**({"prefers_color_scheme": "light", "prefers_reduced_motion": "reduce"} | media))
    browser.open((folder / "poses.html").as_uri())
    browser.run("new Promise((done) => setTimeout(done, 150))")  # pictures are decoded
    return browser


def colour(page: Page, canvas: str, x: float, y: float) -> list[int]:
    """RGBA of a point of a canvas, in shares of its width and height."""
    data = f"c.getContext('2d').getImageData(Math.floor({x} * c.width), Math.floor({y} * c.height), 1, 1).data"
    return page.run(f"((c) => [...{data}])(document.getElementById('{canvas}'))")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_picture_lies_behind_the_joints_in_light_and_dark(browser: Page, tmp_path: Path, scheme: str) -> None:
    page = opened(browser, tmp_path, pose_set(3), prefers_color_scheme=scheme)
    red, green, blue, alpha = colour(page, "input", 0.02, 0.02)
    assert blue > 200 > 60 > max(red, green) and alpha == 255
    paper = page.run("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(19, 20, 22)"}[scheme]
    assert page.errors == []


def test_a_long_video_keeps_the_last_picture_it_has(browser: Page, tmp_path: Path) -> None:
    poses = pose_set(6)
    for k in (1, 2, 4, 5):
        del poses.pictures[f"clip.mp4 #{k}"]  # type: ignore[attr-defined]
    page = opened(browser, tmp_path, poses)
    for k in range(6):
        page.run(f"viewer.show({k}); new Promise((done) => setTimeout(done, 100))")
        assert colour(page, "input", 0.02, 0.02)[2] > 200, k


def test_all_people_of_a_picture_stand_on_one_floor(browser: Page, tmp_path: Path) -> None:
    page = opened(browser, tmp_path, pose_set(1, 3, video=False))
    people = torch.tensor(page.run("viewer.scenes[0].people.map((p) => p.joints)"))
    assert people.shape == (3, 17, 3)
    torch.testing.assert_close(people[..., 1].amax(1), torch.zeros(3), atol=1e-3, rtol=0)  # y is down
    apart = people[1:, 0] - people[:-1, 0]
    torch.testing.assert_close(apart[:, [0, 2]], torch.tensor([[1.2, 1.0]] * 2), atol=2e-3, rtol=0)
    assert page.run("document.getElementById('play').hidden")


def test_slider_and_play_follow_the_time_of_the_video(browser: Page, tmp_path: Path) -> None:
    page = opened(browser, tmp_path, pose_set(50))
    page.run("(() => { const f = document.getElementById('frame'); f.value = 30; f.oninput({ target: f }); })()")
    assert page.run("viewer.frame()") == 30
    assert page.run("document.getElementById('time').textContent") == "1.20 s"
    assert page.run("document.getElementById('title').textContent") == "clip.mp4 #30"
    page.run("viewer.show(0); document.getElementById('play').click()")
    page.run("new Promise((done) => setTimeout(done, 600))")
    assert 0 < page.run("viewer.frame()") < 50
    page.run("document.getElementById('play').click()")
    assert page.run("viewer.playing()") is False


def test_mouse_and_keys_turn_it_and_show_a_joints_name(browser: Page, tmp_path: Path) -> None:
    estimated = torch.zeros(2, 17, dtype=torch.bool)
    estimated[0, SKELETON.index("rwrist")] = True
    page = opened(browser, tmp_path, pose_set(1, 2, video=False, estimated=estimated))
    corner, place = page.run(_CORNER), page.run(f"viewer.seen()[0][{SKELETON.index('rwrist')}]")
    at = corner[0] + place[0], corner[1] + place[1]
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=at[0], y=at[1])
    text = page.run("document.getElementById('joint').textContent")
    assert text.startswith("rwrist: ") and "m from the pelvis" in text and text.endswith("estimated")
    page.drag((at[0], at[1] + 60), (at[0] + 80, at[1] + 60))
    angle = page.run("viewer.azimuth()")
    assert angle == pytest.approx(0.8, abs=0.05)
    page.run("document.getElementById('turn').focus()")
    page.key("ArrowLeft")
    page.key("+")
    assert page.run("viewer.azimuth()") < angle
    assert page.run("viewer.zoom()") > 1


def test_spread_is_shown_if_asked(browser: Page, tmp_path: Path) -> None:
    page = opened(browser, tmp_path, pose_set(1, video=False, spread=torch.full((2, 17), 0.3)))
    before = page.run("document.getElementById('turn').toDataURL()")
    page.run("document.getElementById('bars').click()")
    assert page.run("document.getElementById('turn').toDataURL()") != before
    assert not page.run("document.getElementById('spreads').hidden")
    page = opened(browser, tmp_path, pose_set(1, video=False))
    assert page.run("document.getElementById('spreads').hidden")


def test_it_fits_a_phone_and_uses_no_network(browser: Page, tmp_path: Path) -> None:
    page = opened(browser, tmp_path, pose_set(2))
    page.size(390, 844, touch=True, scale=2)
    page.run("new Promise((done) => setTimeout(done, 200))")  # it draws anew
    assert page.run("document.documentElement.scrollWidth") <= 390
    assert page.run("document.getElementById('turn').width") > 600  # device pixels
    page.size(1100, 760)
    text = (tmp_path / "poses.html").read_text()
    assert "http" not in text and "fetch(" not in text


def test_a_title_cannot_leave_its_place(browser: Page, tmp_path: Path) -> None:
    poses = pose_set(1, 1, video=False, pictures=False)
    object.__setattr__(poses, "image", ["</script><script>window.broken = 1</script><b>x"])
    page = opened(browser, tmp_path, poses)
    assert page.run("window.broken") is None
    assert page.run("document.getElementById('title').textContent").startswith("</script>")
