"""The content of the wheel, and its metadata.

``MULTICONTRAST_WHEEL`` names a wheel that is already built (CI does); otherwise it is built here, offline.
"""

from __future__ import annotations

import email
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import pytest

import multicontrast

ROOT = Path(__file__).resolve().parents[1]
BUILDERS = ("build", "hatchling", "hatch_fancy_pypi_readme")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    given = os.environ.get("MULTICONTRAST_WHEEL")
    if given:
        return zipfile.ZipFile(given)
    for builder in BUILDERS:
        pytest.importorskip(builder, reason="the wheel is built offline, with tools from the extra `dev`")
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, capture_output=True, check=True)
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(name))


def test_the_wheel_holds_both_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"multicontrast", "unihpe_ref"}


def test_the_wheel_is_typed_and_licensed(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {"multicontrast/py.typed", "unihpe_ref/py.typed"} <= names
    (licence,) = (name for name in names if name.endswith("LICENSE"))
    assert b"Apache License" in wheel.read(licence)


def test_the_wheel_holds_every_source_file(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if name.endswith(".py")}
    for package in ("multicontrast", "unihpe_ref"):
        if (ROOT / package).is_dir():  # CI moves them aside
            assert {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")} <= packed
    assert not any("__pycache__" in name or name.startswith("tests") for name in wheel.namelist())


def test_the_wheel_holds_the_lifter_with_its_card_and_stays_small(wheel: zipfile.ZipFile) -> None:
    packed = {info.filename: info.file_size for info in wheel.infolist()}
    assets = {name.rpartition("/")[2] for name in packed if name.startswith("unihpe_ref/assets/")}
    assert assets == {"LIFTER.md", "poses2d.npz", "turntable.html", "lifter.json", "lifter.safetensors"}
    assert b"mocap.cs.cmu.edu" in wheel.read("unihpe_ref/assets/LIFTER.md")
    assert sum(info.compress_size for info in wheel.infolist()) < 6e6


LEFT_OUT = (
    ".ci/",
    ".github/",
    ".pre-commit-config.yaml",
    ".readthedocs.yaml",
)  # the sdist is for building and testing, not for developing


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the sdist is compared with what git has")
@pytest.mark.skipif("MULTICONTRAST_WHEEL" in os.environ, reason="CI has moved the packages aside")
def test_the_sdist_holds_every_file_that_building_and_testing_need(tmp_path: Path) -> None:
    for builder in BUILDERS:
        pytest.importorskip(builder, reason="the sdist is built offline, with tools from the extra `dev`")
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, capture_output=True, check=True)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = {name for name in listed.splitlines() if (ROOT / name).exists()}
    assert {name for name in tracked if not name.startswith(LEFT_OUT)} <= packed
    assert {name for name in packed if "__pycache__" in name or name.startswith(LEFT_OUT)} == set()
    assert path.stat().st_size < 16e6


def test_tools_of_last_year_can_read_the_metadata(metadata: Message) -> None:
    # 2.4 brought SPDX licences. twine 6.1 and 6.2 refuse 2.5, and the pinned action that publishes brings one of them.
    assert metadata["Metadata-Version"] == "2.4"


def test_project_urls_are_those_of_the_citation(metadata: Message) -> None:
    """Links of the package index are those of CITATION.cff, which has none before the project has a public home."""
    cited = re.findall(r"^(?:url|repository-code): (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    linked = [link.split(", ")[1] for link in metadata.get_all("Project-URL", [])]
    assert bool(linked) == bool(cited)
    assert all(any(link.startswith(home.strip('"')) for home in cited) for link in linked)


def test_the_description_stands_alone_on_the_package_index(metadata: Message) -> None:
    """There, relative links lead nowhere and pictures of the repository are not shown."""
    text = metadata.get_payload()
    assert "# multicontrast" in text
    assert metadata["Description-Content-Type"] == "text/markdown"
    for target in re.findall(r"\]\(([^)\s]+)", text) + re.findall(r"(?:src|href)=\"([^\"]+)", text):
        assert target.startswith(("https://", "#")), f"`{target}` breaks on the package index"


def test_the_core_depends_on_torch_and_numpy_only(metadata: Message) -> None:
    needs = [need for need in metadata.get_all("Requires-Dist", []) if "extra ==" not in need]
    assert sorted(need.split(">=")[0] for need in needs) == ["numpy", "torch"]


def test_extras_command_and_version(wheel: zipfile.ZipFile, metadata: Message) -> None:
    assert set(metadata.get_all("Provides-Extra", [])) == {
        "unihpe", "detect", "plot", "triton", "tensorboard", "export", "test", "accelerate", "peers", "integrations",
        "dev",
    }  # fmt: skip
    assert metadata["Version"] == multicontrast.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert b"unihpe = unihpe_ref.__main__:main" in wheel.read(name)


def test_the_installed_version_is_the_one_in_the_file() -> None:
    assert importlib.metadata.version("multicontrast") == multicontrast.__version__


def test_citation_and_changelog_know_the_version() -> None:
    release = multicontrast.__version__.split(".dev")[0]
    assert f"version: {release}" in (ROOT / "CITATION.cff").read_text()
    changelog = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## (.+)$", changelog, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert re.fullmatch(rf"\[{re.escape(release)}\] - \d{{4}}-\d{{2}}-\d{{2}}", headings[1])
    kinds = set(re.findall(r"^### (.+)$", changelog, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.skipif("MULTICONTRAST_WHEEL" not in os.environ, reason="only where CI tests the wheel")
def test_the_tests_run_against_the_wheel_and_not_the_checkout() -> None:
    assert ROOT not in Path(multicontrast.__file__).resolve().parents
