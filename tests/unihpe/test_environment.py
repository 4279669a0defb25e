"""The environment of a run."""

import subprocess

import torch

from unihpe_ref.runs.environment import commit, describe_environment


def test_the_environment_names_versions_machine_and_commit():
    found = describe_environment(torch.device("cpu"))
    assert found["packages"]["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["device"] == "cpu"
    assert found["gpu"] is None


def test_the_commit_and_whether_something_was_changed_since(tmp_path):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], capture_output=True, check=True)
        return done.stdout.decode().strip()

    assert commit(tmp_path) == {"commit": None, "changed": None}
    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-qm", "one", "--no-verify")
    assert commit(tmp_path) == {"commit": git("rev-parse", "HEAD"), "changed": False}
    (tmp_path / "file").write_text("2")
    assert commit(tmp_path)["changed"] is True
