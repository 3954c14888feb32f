"""Outputs appear whole or not at all."""

import hashlib
import json
import math
import subprocess
import sys

import pytest

from pag_core.pipeline.artifacts import (
    canonical_json,
    digest,
    file_digest,
    replacing_file,
    replacing_folder,
    write_json,
)
from tests.fixtures.samples import ROOT


class Interrupted(Exception):
    pass


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_file_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "out.txt"
    for text in ("old", "new"):
        with replacing_file(path) as partial:
            partial.write_text(text)
            assert partial.parent == path.parent and partial != path
            assert not path.exists() if text == "old" else path.read_text() == "old"
        assert path.read_text() == text
    assert names(path.parent) == ["out.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("existed", [True, False])
def test_a_failing_writer_leaves_the_old_file_and_no_litter(tmp_path, existed):
    path = tmp_path / "out.txt"
    if existed:
        path.write_text("old")
    with pytest.raises(Interrupted), replacing_file(path) as partial:
        partial.write_text("half of the n")
        raise Interrupted
    assert names(tmp_path) == (["out.txt"] if existed else [])
    assert not existed or path.read_text() == "old"


def test_folder_is_replaced_whole(tmp_path):
    path = tmp_path / "out"
    with replacing_folder(path) as partial:
        (partial / "a").write_text("old")
        assert not path.exists()
    with replacing_folder(path) as partial:
        (partial / "b").write_text("new")
        assert names(path) == ["a"]
    assert names(path) == ["b"]
    assert names(tmp_path) == ["out"]
    assert path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("existed", [True, False])
def test_a_failing_writer_leaves_the_old_folder_and_no_litter(tmp_path, existed):
    path = tmp_path / "out"
    if existed:
        path.mkdir()
        (path / "a").write_text("old")
    with pytest.raises(Interrupted), replacing_folder(path) as partial:
        (partial / "a").write_text("new")
        raise Interrupted
    assert names(tmp_path) == (["out"] if existed else [])
    assert not existed or (path / "a").read_text() == "old"


KILLED = """
import os, shutil, sys
from pathlib import Path
sys.path[0] = {root!r}
from pag_core.pipeline.artifacts import replacing_folder
path = Path({path!r})
calls = []

def dying(whole):
    def call(*arguments, **options):
        calls.append(arguments)
        if len(calls) == {call}:
            os._exit(9)
        return whole(*arguments, **options)
    return call

if {place!r} == "rename":
    Path.replace = dying(Path.replace)
else:
    shutil.rmtree = dying(shutil.rmtree)
with replacing_folder(path) as partial:
    (partial / "a").write_text("new")
    (partial / "b").write_text("new")
"""


@pytest.mark.parametrize(
    ("place", "call", "after"), [("rename", 1, "old"), ("rename", 2, None), ("remove", 1, "new"), ("remove", 2, "new")]
)
def test_a_folder_is_whole_wherever_its_writer_is_killed(tmp_path, place, call, after):
    """Old or new, or for a moment not there, when the next writer brings the old one back; never a part of either."""
    path = tmp_path / "out"
    contents = {"old": {"a": "old"}, "new": {"a": "new", "b": "new"}}

    def found():
        return {file.name: file.read_text() for file in path.iterdir()} if path.exists() else None

    path.mkdir()
    (path / "a").write_text("old")
    script = KILLED.format(root=str(ROOT), path=str(path), call=call, place=place)
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    assert found() == contents.get(after)
    with pytest.raises(Interrupted), replacing_folder(path):
        assert found() == contents[after or "old"]
        raise Interrupted
    assert found() == contents[after or "old"] and names(tmp_path) == ["out"]


@pytest.mark.parametrize("replacing", [replacing_file, replacing_folder])
def test_what_a_killed_writer_left_is_removed(tmp_path, replacing):
    (tmp_path / ".out.k1lled.partial").write_text("half")
    (tmp_path / ".out.k1lled2.partial").mkdir()
    (tmp_path / ".out.k1lled2.partial" / "a").write_text("half")
    (tmp_path / ".other.x.partial").write_text("another path's writer may be alive")
    (tmp_path / "out.partial").write_text("not ours")
    with pytest.raises(Interrupted), replacing(tmp_path / "out"):
        raise Interrupted
    assert names(tmp_path) == [".other.x.partial", "out.partial"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_json_refuses_what_is_not_json(tmp_path, bad):
    path = tmp_path / "metrics.json"
    write_json(path, {"loss": 1.0})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"nested": [{"loss": bad}]})
    assert path.read_bytes() == before
    assert names(tmp_path) == ["metrics.json"]


def test_json_is_canonical(tmp_path):
    first, second = {"b": 1, "a": {"y": [1, 2.5], "x": "ä"}}, {"a": {"x": "ä", "y": [1, 2.5]}, "b": 1}
    assert canonical_json(first) == canonical_json(second)
    assert canonical_json(first).index('"a"') < canonical_json(first).index('"b"')
    write_json(tmp_path / "x.json", first)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == first
    assert "ä" in (tmp_path / "x.json").read_text(encoding="utf-8")


def test_digests(tmp_path):
    content = {"b": [1, 2], "a": "x"}
    text = '{\n  "a": "x",\n  "b": [\n    1,\n    2\n  ]\n}\n'
    assert digest(content) == hashlib.sha256(text.encode()).hexdigest()
    assert digest({"a": "x", "b": [1, 2]}) == digest(content) != digest({"a": "x", "b": [2, 1]})
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    # the test vector of FIPS 180-2
    assert file_digest(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
