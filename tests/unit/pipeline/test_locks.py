"""Locks on a file system that has none: a refusal that names it and says what to do, never a wait without end."""

import errno
import fcntl
import os

import psutil
import pytest

from pag_core.errors import LocksUnavailable
from pag_core.pipeline.checkpoint import run_folder
from pag_core.pipeline.locks import holding
from pag_core.pipeline.raw_copies import hold_raw_copy, is_held


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK], ids=["Lustre without flock", "NFS without a lock service"])
def without_locks(monkeypatch, request, tmp_path):
    """A file system without flock, called lustre."""

    def refuse(file, operation):
        raise OSError(request.param, os.strerror(request.param))

    (part, *_) = psutil.disk_partitions(all=True)
    mounts = [part, part._replace(mountpoint=str(tmp_path), fstype="lustre")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    monkeypatch.setattr(fcntl, "flock", refuse)
    return str(tmp_path)


@pytest.mark.timeout(20)
def test_work_is_refused_with_the_file_system_and_the_remedy(without_locks, tmp_path, monkeypatch, cpu):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    words = rf"{tmp_path}/.* cannot be locked .*: {tmp_path} \(lustre\) is mounted without file locks .*; mount it with"
    for _ in range(2):  # nothing is left behind that would be waited for
        with pytest.raises(LocksUnavailable, match=words), run_folder("train", {"seed": 1}, cpu):
            pass
        with pytest.raises(LocksUnavailable, match=words), holding(tmp_path / "work/locks/sbg", "running a stage"):
            pass
        with pytest.raises(LocksUnavailable, match=words):
            hold_raw_copy(tmp_path / ".cache/sbg-1.raw", lambda file: None)


@pytest.mark.timeout(20)
def test_a_copy_is_not_taken_for_unheld(without_locks, tmp_path):
    (tmp_path / "sbg-1.raw").write_bytes(b"codes")
    with pytest.raises(LocksUnavailable, match=r"\(lustre\) is mounted without file locks"):
        is_held(tmp_path / "sbg-1.raw")
