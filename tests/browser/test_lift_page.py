"""The page that lifts a dragged skeleton computes the same as the model, and takes mouse, touch and keys."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from lift_page import PageCamera, export_browser, page_poses
from torch import Tensor, nn

from unihpe_ref.lifter import Lifter, load_lifter
from unihpe_ref.models import UniHPE
from unihpe_ref.presets import preset

from .chromium import Page

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "_static" / "lift"
CAMERA = PageCamera()


def random_lifter(view: str) -> Lifter:
    """Small, with statistics and tokens that are not what a new model has."""
    torch.manual_seed(0)
    small = {"model.embedding_dim": 48, "model.mlp_width": 40, "model.mlp_blocks": 2}
    config = preset("lifting").override(**small, **{"data.view": view})
    model = UniHPE(config.model).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    nn.init.normal_(model.decoder_3d.condition.modality.weight)
    return Lifter(model, config)


def poses(count: int) -> Tensor:
    """Any 17 points will do: the page must compute the same whatever they mean."""
    generator = torch.Generator().manual_seed(1)
    return 200 + 600 * torch.rand(count, 17, 2, generator=generator)


def lifted(lifter: Lifter, joints: Tensor) -> Tensor:
    """What the Python model says for pixels of the page's camera, in metres."""
    middle = CAMERA.size / 2
    intrinsics = torch.tensor([[CAMERA.focal, 0, middle], [0, CAMERA.focal, middle], [0, 0, 1]])
    return lifter.lift(joints, intrinsics=intrinsics).joints_3d


def open_page(browser: Page, lifter: Lifter, folder: Path) -> Page:
    shutil.copytree(PAGE, folder)
    first, second = poses(2)
    # The joints of the first pose lie where a finger finds each of them alone.
    first = torch.stack([290 + 100 * (torch.arange(17) % 5), 290 + 130 * (torch.arange(17) // 5)], -1).float()
    export_browser(lifter, folder / "weights.js", poses={"First": first, "Second": second}, camera=CAMERA)
    browser.errors.clear()
    browser.size(1100, 760)
    browser.media(prefers_color_scheme="light", prefers_reduced_motion="reduce")
    browser.open((folder / "index.html").as_uri())
    return browser


@pytest.fixture
def page(browser: Page, tmp_path: Path) -> Page:
    return open_page(browser, random_lifter("camera"), tmp_path / "lift")


def where(page: Page, joint: int) -> tuple[float, float]:
    """Where a joint is on the screen."""
    box = f"document.querySelector('[data-joint=\"{joint}\"] .dot').getBoundingClientRect()"
    return tuple(page.run(f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({box})"))


def moved(before: list[list[float]], after: list[list[float]]) -> list[int]:
    return [j for j, (one, other) in enumerate(zip(before, after)) if one != other]


@pytest.mark.parametrize("which", ["random", "random, facing", "shipped"])
def test_the_page_says_what_the_model_says(browser: Page, tmp_path: Path, which: str) -> None:
    lifter = load_lifter() if which == "shipped" else random_lifter("box" if "facing" in which else "camera")
    page = open_page(browser, lifter, tmp_path / "lift")
    given = poses(20)
    if which == "shipped":  # people, and people with joints dragged about
        people = torch.stack(list(page_poses(CAMERA).values())).repeat(5, 1, 1)
        given = people + 15 * torch.randn(people.shape, generator=torch.Generator().manual_seed(2))
    expected = lifted(lifter, given)
    for joints, truth in zip(given, expected):
        found = torch.tensor(page.run(f"Lift.lift({joints.tolist()})"))
        assert (found - truth).norm(dim=-1).max() < 1e-3  # 1 mm
    assert expected.std(0).mean() > 0.02  # and the poses do differ
    assert page.errors == []


def test_the_mouse_moves_one_joint_and_the_pose_follows(page: Page) -> None:
    before, pose = page.run("liftPage.joints()"), page.run("liftPage.pose()")
    start = where(page, 13)
    page.drag(start, (start[0] + 30, start[1] - 20))
    after = page.run("liftPage.joints()")
    assert moved(before, after) == [13]
    assert where(page, 13) == pytest.approx((start[0] + 30, start[1] - 20), abs=1.5)
    assert page.run("liftPage.pose()") == page.run(f"Lift.lift({after})") != pose


def test_a_finger_does_the_same_on_a_phone(page: Page) -> None:
    page.size(390, 844, touch=True, scale=2)
    before = page.run("liftPage.joints()")
    start = where(page, 9)
    page.touch(start, (start[0] - 15, start[1] + 25))
    assert moved(before, page.run("liftPage.joints()")) == [9]
    assert where(page, 9) == pytest.approx((start[0] - 15, start[1] + 25), abs=1.5)
    assert page.run("document.documentElement.scrollWidth") <= 390
    page.size(1100, 760)


def test_the_keyboard_reaches_joints_and_view(page: Page) -> None:
    page.run("document.querySelector('[data-joint=\"3\"]').focus()")
    x, y = page.run("liftPage.joints()")[3]
    page.key("ArrowRight")
    page.key("ArrowUp", shift=True)
    assert page.run("liftPage.joints()")[3] == [x + 5, y - 25]
    page.run("document.getElementById('solid').focus()")
    angle = page.run("liftPage.angle()")
    page.key("ArrowRight")
    assert page.run("liftPage.angle()") != angle


def test_a_joint_stays_inside_the_picture(page: Page) -> None:
    left, top, _ = CAMERA.window
    start = where(page, 0)
    page.drag(start, (start[0] - 3000, start[1] - 3000))
    assert page.run("liftPage.joints()")[0] == [left, top]


def test_buttons_choose_and_mirror(page: Page) -> None:
    page.run("[...document.querySelectorAll('#poses button')].find((b) => b.textContent === 'Second').click()")
    second = page.run("liftPage.joints()")
    assert second == page.run("Lift.poses.Second")
    page.run("document.getElementById('mirror').click()")
    mirrored = page.run("liftPage.joints()")
    assert mirrored[1][0] == pytest.approx(CAMERA.size - second[4][0])  # the right hip is where the left one was
    page.run("document.getElementById('mirror').click()")
    assert torch.allclose(torch.tensor(page.run("liftPage.joints()")), torch.tensor(second))


def test_the_pose_turns_by_itself_unless_motion_is_unwelcome(page: Page) -> None:
    assert page.run("document.getElementById('turning').getAttribute('aria-pressed')") == "false"
    angle = page.run("liftPage.angle()")
    page.run("document.getElementById('turning').click()")
    page.run("new Promise((done) => setTimeout(done, 200))")
    assert page.run("liftPage.angle()") > angle


def test_light_and_dark_have_colours_of_their_own(page: Page) -> None:
    papers = []
    for scheme in ("light", "dark"):
        page.media(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
        papers.append(page.run("getComputedStyle(document.body).backgroundColor"))
    assert papers == ["rgb(255, 255, 255)", "rgb(19, 20, 22)"]


def test_the_page_uses_no_network() -> None:
    """No address of another host, no request at all: what it needs lies beside it."""
    for file in PAGE.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")  # a name, never fetched
        assert not re.search(r"https?:|\bfetch\(|XMLHttpRequest|WebSocket|import\(", text), file.name


def test_a_transformer_is_refused_in_words(tmp_path: Path) -> None:
    config = preset("lifting").override(**{"model.pose_encoder": "transformer"})
    lifter = Lifter(UniHPE(config.model), config)
    with pytest.raises(TypeError, match=r"residual-MLP encoder.*PoseTransformer"):
        export_browser(lifter, tmp_path / "weights.js", poses={}, camera=CAMERA)
    assert list(tmp_path.iterdir()) == []
