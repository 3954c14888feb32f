"""The stages of dvc.yaml as DVC resolves them for parameters of one's own, and what the result of each is known by."""

import contextlib
import functools
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx
from dvc.dependency import ParamsDependency
from dvc.repo import Repo
from dvc.stage import PipelineStage
from dvc_data.hashfile.build import build
from dvc_objects.fs.local import LocalFileSystem

from experiments.description.experiment import PARAMS
from experiments.description.file import Plain
from pag_core.errors import DatasetError
from pag_core.params.declared import validation_record
from pag_core.params.reading import value_at
from pag_core.params.yaml_text import written_yaml
from pag_core.pipeline.artifacts import digest
from pag_core.pipeline.code_identity import CHECKOUT, NAMED, code_record, own_code_record
from pag_core.pipeline.own_code import OWN
from pag_core.pipeline.paths import CODE, METRICS, VALIDATED

PIPELINES = ("dvc.yaml", "stages/gradients/dvc.yaml")
# they say that something is there, and not what: nothing is made from their outputs
WATCHING = {"code", "check"}
# where what the user gave lies; what a stage makes of it is known by its content
GIVEN = {"image_folder", "diffusion_checkpoint", "classifier_checkpoint", "own.reads"}


@dataclass(frozen=True)
class Stage:
    """A stage for the parameters of one run.

    `address` is what DVC's commands find it by, from the checkout. `identity` is a fingerprint of all that its result
    depends on: its command, code, the parameters of the keys that are `tracked` (all: `params.yaml`), what the user gave,
    and the stages before it. `cached` says that DVC's cache keeps what it makes for other runs, `metrics` are the paths of
    its metrics files by name (`autoattack`, `details/autoattack`), `before` the names of all stages that it needs.
    """

    name: str
    address: str
    command: str
    tracked: frozenset[str]
    identity: str
    cached: bool
    metrics: dict[str, str]
    before: frozenset[str]


class Stages:
    """The stages of this checkout, for one set of parameters after another."""

    def __init__(self) -> None:
        # removed with this object
        self._place = tempfile.TemporaryDirectory()
        self._folder = Path(self._place.name).resolve()
        with _quiet():
            Repo.init(str(self._folder), no_scm=True).close()
        for file in PIPELINES:
            (self._folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CHECKOUT / file, self._folder / file)
        self._code = functools.cache(lambda name: code_record(CHECKOUT / "stages" / f"{name}.py"))
        self._given = functools.cache(content_of)

    def of(self, params: Plain) -> dict[str, Stage]:
        """Each stage by its name, as `heuristic@cm`; raises DatasetError where what the user gave is not there."""
        (self._folder / PARAMS).write_text(written_yaml(params), encoding="utf-8")
        with Repo(str(self._folder)) as repo:
            return self._read(params, repo.index.graph)

    def _read(self, params: Plain, graph: "networkx.DiGraph[PipelineStage]") -> dict[str, Stage]:
        found: dict[str, Stage] = {}
        # those before a stage come first
        for stage in networkx.dfs_postorder_nodes(graph):
            before = [found[one.name] for one in graph.successors(stage)]
            of_params = [dep for dep in stage.deps if isinstance(dep, ParamsDependency)]
            tracked = frozenset(key for dep in of_params for key in dep.params or [PARAMS])
            identity = {
                "command": stage.cmd,
                "parameters": _parameters(tracked, params),
                "given": self._read_by(stage, params, made={out.fs_path for one in graph for out in one.outs}),
                "before": {one.name: one.identity for one in before if one.name not in WATCHING},
            }
            file = Path(stage.dvcfile.path).resolve().relative_to(self._folder).as_posix()
            outputs = [Path(out.fs_path).relative_to(self._folder).as_posix() for out in stage.outs]
            found[stage.name] = Stage(
                stage.name,
                stage.name if file == PIPELINES[0] else f"{file}:{stage.name}",
                stage.cmd,
                tracked,
                digest(identity),
                cached=any(out.use_cache for out in stage.outs),
                metrics={
                    path.removeprefix(f"{METRICS}/").removesuffix(".json"): path
                    for path in outputs
                    if path.startswith(f"{METRICS}/")
                },
                before=frozenset({one.name for one in before}.union(*(one.before for one in before))),
            )
        return found

    def _read_by(self, stage: PipelineStage, params: Plain, made: set[str]) -> dict[str, str]:
        """By name the content of what `stage` reads and no stage makes: its code, and what the user gave."""
        found = {}
        for dep in stage.deps:
            path = Path(dep.fs_path)
            if isinstance(dep, ParamsDependency) or any(Path(out).is_relative_to(path) for out in made):
                continue
            inside = path.relative_to(self._folder) if path.is_relative_to(self._folder) else path
            if inside == VALIDATED:
                found["validation"] = validation_record(params)
            elif inside.parent == CODE:
                found["code"] = self._code(inside.stem)
            elif inside.parent == CODE / OWN:
                # a source of the user's that reads nothing has a path that says so
                if (key := NAMED.get(inside.stem)) is not None:
                    found[key] = own_code_record(value_at(params, key), key)
            # of any dataset DVC takes image_folder for an input, but only this one is read from it
            elif stage.name != "code" and (
                str(inside) != params["image_folder"] or params["dataset"] == "image_folder"
            ):
                found["the user's"] = self._given(CHECKOUT / inside)
        return found


def needed_for(stages: dict[str, Stage], wanted: Iterable[str]) -> list[str]:
    """The stages `wanted` and all before them."""
    return sorted(set(wanted).union(*(stages[name].before for name in wanted)))


def content_of(path: Path) -> str:
    """DVC's hash of a file or folder of the user's, which DVC takes again only where times or sizes have changed.

    Raises DatasetError where it is not there, and for a link to a folder in it, behind which DVC does not look.
    """
    if not path.exists():
        raise DatasetError(f"{path} is not there; params.yaml, a description or --images names it")
    path = path.resolve()
    for place, folders, _ in os.walk(path):
        if link := next((Path(place) / name for name in folders if (Path(place) / name).is_symlink()), None):
            raise DatasetError(
                f"{link} is a link to {link.readlink()}, and DVC sees no change behind a link to a folder: copy the folder "
                "(cp -al makes hard links, which take no space), or name the one that it leads to"
            )
    with Repo(str(CHECKOUT)) as repo:
        return str(build(repo.cache.local, str(path), LocalFileSystem(), "md5", dry_run=True)[2].hash_info.value)


def _parameters(tracked: frozenset[str], params: Plain) -> Plain:
    keys = params.keys() if PARAMS in tracked else tracked
    return {key: value_at(params, key) for key in keys if key not in GIVEN}


@contextlib.contextmanager
def _quiet() -> Any:
    """Without what DVC says as it makes a repository."""
    logger = logging.getLogger("dvc")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
