"""The workflows use existing scripts, extras and folders, pinned actions, and no unneeded permissions."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml", reason="comes with the extra `dev`")

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
if not WORKFLOWS:
    pytest.skip("the workflows stay in the repository; this is an unpacked sdist", allow_module_level=True)

MAY_WRITE = {("release.yml", "publish", "id-token"), ("release.yml", "announce", "contents")}


def load(path):
    """The workflow; YAML takes the key `on` for a truth value."""
    content = yaml.safe_load(path.read_text())
    content["on"] = content.pop(True, content.get("on"))
    return content


def jobs():
    return [(path.name, name, job) for path in WORKFLOWS for name, job in load(path)["jobs"].items()]


def steps():
    return [(file, name, step) for file, name, job in jobs() for step in job["steps"]]


def test_the_workflows_are_ci_and_release():
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "release.yml"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_no_other_permission_is_granted(path):
    assert load(path)["permissions"] == {}
    for file, name, job in jobs():
        for right, level in job["permissions"].items() if "permissions" in job else ():
            assert level == "read" or (file, name, right) in MAY_WRITE


def test_actions_are_pinned_by_hash_and_checkouts_keep_no_credentials():
    used = [step for _, _, step in steps() if "uses" in step]
    assert used
    for step in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"]), step["uses"]
        if step["uses"].startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
    for path in WORKFLOWS:
        for line in path.read_text().splitlines():
            if "uses:" in line:
                assert re.search(r"# v\d+\.\d+\.\d+$", line), f"say which version the hash is: {line.strip()}"
    hashes = {}
    for step in used:
        name, _, commit = step["uses"].partition("@")
        assert hashes.setdefault(name, commit) == commit, f"two versions of {name}"


def test_scripts_and_extras_of_the_workflows_exist():
    extras = re.search(r"\[project\.optional-dependencies\](.*?)\n\[", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    offered = set(re.findall(r"^(\w+) = \[", extras[1], re.MULTILINE))
    for _, _, step in steps():
        command = step.get("run", "")
        for asked in re.findall(r'-e "\.\[([\w,]+)\]"', command):
            assert set(asked.split(",")) <= offered
        for path in re.findall(r"(?:^|\s)((?:\.ci|tests|docs|benchmarks|multicontrast)/[\w./-]+)", command):
            assert (ROOT / path).exists(), path
        for module in re.findall(r"python -m (\w+)", command):
            assert module in {"pip", "pytest", "build", "twine", "venv"}
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_shell_of_every_step_parses():
    for _, _, step in steps():
        if "run" in step:
            command = re.sub(r"\$\{\{.*?\}\}", "x", step["run"])
            subprocess.run(["bash", "-n", "-c", command], check=True)
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)


def test_no_untrusted_expression_reaches_a_shell():
    for _, _, step in steps():
        for expression in re.findall(r"\$\{\{\s*(.*?)\s*\}\}", step.get("run", "")):
            assert expression.startswith("matrix."), expression


def test_the_matrix_is_what_the_metadata_promises():
    include = load(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["core"]["strategy"]["matrix"]["include"]
    metadata = (ROOT / "pyproject.toml").read_text()
    promised = set(re.findall(r"Python :: (3\.\d+)", metadata))
    assert {entry["python"] for entry in include} == promised
    oldest = min(include, key=lambda entry: tuple(map(int, entry["python"].split("."))))
    bounds = re.findall(r'"(torch|numpy)>=([\d.]+)"', metadata)
    assert len(bounds) == 2
    for name, bound in bounds:
        assert f"{name}=={bound}.0" in oldest["needs"]
    assert {entry["os"].split("-")[0] for entry in include} == {"ubuntu", "macos", "windows"}
    assert any("whl/cpu" in entry["needs"] for entry in include)


def test_the_tag_of_a_release_is_compared_with_the_version():
    (step,) = (step for _, _, step in steps() if step.get("name") == "The tag is the version")
    version = re.search(r'__version__ = "(.+)"', (ROOT / "multicontrast" / "_version.py").read_text())[1]
    for tag, status in ((f"v{version}", 0), ("v999.0", 1)):
        done = subprocess.run(["bash", "-c", step["run"]], cwd=ROOT, env={**os.environ, "TAG": tag}, check=False)
        assert done.returncode == status


@pytest.mark.parametrize("file", [".ci/run", ".github/workflows/release.yml"])
def test_nothing_is_published_that_was_not_checked(file):
    script = (ROOT / file).read_text()
    built = script.index("-m build")
    for check in ("-m twine check --strict", "check-wheel-contents "):
        assert script.find(check, built) > built, f"`{file}` builds, and then needs `{check.strip()}`"


def test_the_bug_form_asks_for_nothing_that_the_core_package_lacks():
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    (where,) = (field["attributes"]["description"] for field in form["body"] if field["attributes"]["label"] == "Where")
    command = re.search(r"`python -c '(.*)'`", where)[1]
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "multicontrast" in done.stdout
    assert "torch" in done.stdout


def test_hooks_of_pre_commit_run_tools_of_the_extra():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    metadata = (ROOT / "pyproject.toml").read_text()
    assert {hook["id"] for hook in hooks} == {"ruff", "format", "mypy"}
    for hook in hooks:
        assert hook["language"] == "system"
        assert f'"{hook["entry"].split()[0]}>=' in metadata
