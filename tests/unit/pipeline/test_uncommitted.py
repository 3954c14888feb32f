"""What is said of parameters that an experiment left in params.yaml."""

import subprocess

from pag_core.pipeline.uncommitted import uncommitted


def git(folder, *command):
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.invalid")
    subprocess.run(["git", *identity, *command], cwd=folder, check=True, capture_output=True)


def test_what_differs_from_the_last_commit_is_named(tmp_path):
    """In a folder of a larger repository too, and not that a value is written otherwise."""
    place = tmp_path / "projects/pag/params.yaml"
    place.parent.mkdir(parents=True)
    place.write_text("lambda: auto\nat: {steps: 7, radius: 0.5}\nold: 1\nsame: [1, 2]\n")
    assert uncommitted(place) == {}, "no repository"
    git(tmp_path, "init", "--quiet")
    assert uncommitted(place) == {}, "no commit"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "start")
    assert uncommitted(place) == {}
    place.write_text("lambda: 1.5\nat:\n  steps: 7\n  radius: 0.75\nnew: x\nsame:\n- 1\n- 2\n")
    assert uncommitted(place) == {
        "at.radius": (0.75, 0.5), "lambda": (1.5, "auto"), "new": ("x", None), "old": (None, 1),
    }  # fmt: skip
