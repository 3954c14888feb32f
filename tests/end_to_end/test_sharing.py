"""docs/sharing.md: two clones, DVC's remote on one S3 server and the gradient store on another."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fixtures.project_copy import SMALL, ProjectCopy, stages_run
from tests.fixtures.s3_servers import LACKING, S3Server

pytest.importorskip("dvc_s3", reason="no dvc-s3 is installed (pip install dvc-s3)")
pytestmark = [
    pytest.mark.slow,
    *(pytest.mark.skipif(lacking is not None, reason=str(lacking)) for lacking in LACKING.values()),
]
TRAIN = "stages/gradients/dvc.yaml:train"
WEIGHTS = "data/classifier/weights.safetensors"


def cloned(origin: Path, path: Path) -> ProjectCopy:
    """A clone of somebody else."""
    subprocess.run(["git", "clone", "--quiet", "--branch", "main", str(origin), str(path)], check=True)
    clone = ProjectCopy.__new__(ProjectCopy)
    clone.path = path
    clone.git("config", "user.name", "other")
    clone.git("config", "user.email", "other@example.invalid")
    return clone


def test_two_clones_share_results_experiments_and_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moto, rclone = servers = [S3Server(name, tmp_path / name) for name in ("moto", "rclone")]
    for key, value in rclone.environment.items():
        monkeypatch.setenv(key, value)
    try:
        share(tmp_path, moto, rclone)
    finally:
        for server in servers:
            server.stop()


def share(place: Path, moto: S3Server, rclone: S3Server) -> None:
    changes = {"diffusion.steps": 40, "train.epochs": 1, "gradient_store.address": "s3://bucket/pag"}
    mine = ProjectCopy(place / "mine", {**SMALL, **changes})
    origin = place / "origin.git"
    subprocess.run(["git", "init", "--quiet", "--bare", str(origin)], check=True)
    mine.git("remote", "add", "origin", str(origin))
    assert "sbg" in stages_run(mine.run("dvc", "repro", TRAIN).stdout)
    address = json.loads((mine.path / "data/gradients/sbg.zarr/manifest.json").read_text(encoding="utf-8"))["address"]
    shard = f"{address.removeprefix('s3://bucket/')}/train/gradient/c/0/0/0/0/0"
    assert rclone.requests(shard) == ["PUT", "HEAD", "GET"]
    mine.commit("results")
    early = trained(mine, "early", 0.5)
    mine.git("checkout", "--quiet", "HEAD", ".")

    # the store is on one server, all that DVC keeps on the other
    mine.run("dvc", "remote", "add", "--default", "shared", "s3://bucket/dvc")
    mine.run("dvc", "remote", "modify", "shared", "endpointurl", moto.url)
    mine.commit("a remote")
    mine.run("dvc", "push")
    mine.git("push", "--quiet", "origin", "main")
    late = trained(mine, "late", 0.6)
    assert "uploaded" not in mine.run("dvc", "exp", "push", "origin", "early").stdout
    assert "files uploaded" in mine.run("dvc", "exp", "push", "origin", "late").stdout

    theirs = cloned(origin, place / "theirs")
    theirs.run("dvc", "pull", "--allow-missing")
    assert stages_run(theirs.run("dvc", "repro", TRAIN).stdout) == [] and theirs.git("status", "--short") == ""
    theirs.run("dvc", "exp", "pull", "origin", "late", "early")
    assert applied(theirs, "late") == late
    # no data of what was made before there was a remote, until it is pushed and pulled with one that each has for itself
    assert applied(theirs, "early") is None
    for clone, command in ((mine, "push"), (theirs, "pull")):
        shutil.copy2(mine.path / ".dvc/config", clone.path / ".dvc/config.local")
        clone.run("dvc", "exp", command, "origin", "early")
    assert applied(theirs, "early") == early

    # and back: an experiment of theirs, from the store in the bucket
    back = trained(theirs, "back", 0.7)
    assert rclone.requests(shard)[3:] == ["GET"] * 3
    theirs.run("dvc", "exp", "push", "origin", "back")
    mine.run("dvc", "exp", "pull", "origin", "back")
    assert applied(mine, "back") == back
    assert stages_run(mine.run("dvc", "repro", TRAIN).stdout) == []

    rclone.stop()
    mine.set({"lambda": 0.8})
    told = mine.stage("train", check=False)
    assert told.returncode == 1 and "Traceback" not in told.stderr
    assert "StoreError: s3://bucket/pag/sbg-" in told.stderr.splitlines()[-1] and "could not be reached" in told.stderr


def trained(clone: ProjectCopy, name: str, weight: float) -> bytes:
    """The classifier of a new experiment."""
    made = clone.run("dvc", "exp", "run", TRAIN, "--name", name, "-S", f"lambda={weight}")
    assert stages_run(made.stdout) == ["check", "train"]
    return (clone.path / WEIGHTS).read_bytes()


def applied(clone: ProjectCopy, name: str) -> bytes | None:
    """The classifier of an experiment that is taken into the workspace of a clone, if it is there."""
    # it ends with an error where stages have never run, and tells what they would make
    said = clone.run("dvc", "exp", "apply", name, check=False).stderr
    return None if "\ndata/classifier\n" in said else (clone.path / WEIGHTS).read_bytes()
