"""An experiment on a machine without DVC: the stages that dvc.yaml describes, each run once for equal inputs.

Every run of a stage has a folder of its own, named after all that its result depends on, with links to the outputs of the
stages before it. So classifiers share what is equal, and a stage that has finished is not run again.
"""

import functools
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from experiments.described_stages import (
    PARAMS,
    Plain,
    described_stages,
    given_to,
    inputs_of,
    made_from,
    metrics_of,
    needed_for,
    outputs_of,
    value_at,
)
from experiments.description import Experiment
from experiments.images import is_arranged
from experiments.programs import run_program
from experiments.results import Measured
from pag_core.datasets.image_files import files_below
from pag_core.errors import ParamsError
from pag_core.params.yaml_text import written_yaml
from pag_core.pipeline.artifacts import digest, file_digest, read_json, replacing_folder, write_json
from pag_core.pipeline.code_identity import CHECKOUT, code_fingerprint
from pag_core.pipeline.locks import holding
from pag_core.pipeline.places import CHECKED, FIGURES, WANTED

ENDED = "ended.json"


class ByHand:
    """Runs of stages below `work` with the parameters of one classifier."""

    def __init__(
        self,
        params: Plain,
        work: Path,
        fingerprint: Callable[[Path], str] = code_fingerprint,
        contents: dict[str, str] | None = None,
        wanted: tuple[str, ...] | None = None,
    ) -> None:
        """`fingerprint` gives that of a program's code; it is asked before each stage, as the code may have changed.

        `contents` are the fingerprints of what the user gave, by path, for the runs of one command to share. `wanted` are the
        stages that will be made, None is any of them: the stage `check` looks at what these ask for.
        """
        self.params = params
        self.fingerprint = fingerprint
        self.work = work.resolve()
        self.stages = described_stages(params)
        self.makers = {output: name for name, stage in self.stages.items() for output in outputs_of(stage)}
        self.folders: dict[str, Path] = {}
        self.contents = {} if contents is None else contents
        self.made: set[str] = set()
        self.wanted = list(self.stages) if wanted is None else needed_for(self.stages, wanted)

    def make(self, name: str) -> None:
        """Run the stage `name` after all that it needs, unless it has run; ends the program where one fails."""
        if name in self.made:
            return
        for maker in inputs_of(self.stages, name).values():
            self.make(maker)
        # two commands of one --work may want the same stage
        with holding(self.work / "locks" / self.folder(name).name, f"running the stage {name}"):
            if self.is_done(name):
                print(f"{name}: done before", flush=True)
            else:
                self._run(name)
        self.made.add(name)

    def is_done(self, name: str) -> bool:
        """Whether the stage has run with what it depends on now, and its outputs are there."""
        folder = self.folder(name)
        return (folder / ENDED).exists() and all((folder / path).exists() for path in outputs_of(self.stages[name]))

    def folder(self, name: str) -> Path:
        """The folder of the stage `name`, which runs in it or has run."""
        if name not in self.folders:
            self.folders[name] = self.work / f"{name}-{digest(self._identity(name))[:16]}"
        return self.folders[name]

    def output(self, path: str) -> Path:
        """Where an output of a stage that has run lies."""
        return self.folder(self.makers[path]) / path

    def measured(self) -> dict[str, Plain]:
        """The metrics of the stages that were made, by the names of their files."""
        return {
            metrics: read_json(self.folder(name) / path)
            for name in sorted(self.made)
            for metrics, path in metrics_of(self.stages[name]).items()
        }

    def find(self, stages: tuple[str, ...]) -> bool:
        """Whether `stages` have run with what they depend on now; they count as made then, and nothing runs."""
        done = all(self.is_done(stage) for stage in stages)
        self.made |= set(stages) if done else set()
        return done

    def _content(self, path: str) -> str | None:
        """SHA-256 over all files of what is given; None for images that were arranged, whose place is named after them."""
        place = CHECKOUT / path
        if path not in self.contents and not is_arranged(place):
            files = files_below(place) if place.is_dir() else [place]
            self.contents[path] = digest(
                {str(file.relative_to(place)): file_digest(file) for file in files if file.is_file()}
            )
        return self.contents.get(path)

    def _identity(self, name: str) -> Plain:
        stage = self.stages[name]
        _, script, *options = stage["cmd"].split()
        # an entry that is not a key is the file itself: all parameters
        tracked = {
            str(key): value_at(self.params, key) if isinstance(key, str) else self.params for key in stage["params"]
        }
        if str(CHECKED) in outputs_of(stage):
            options += self.wanted
        given = {path: self._content(path) for path in given_to(self.stages, name, self.params)}
        return {
            "code": self.fingerprint(CHECKOUT / script),
            "options": options,
            "params": tracked,
            "inputs": {path: self.folder(maker).name for path, maker in made_from(self.stages, name).items()}
            | {path: content for path, content in given.items() if content is not None},
        }

    def _run(self, name: str) -> None:
        _, script, *options = self.stages[name]["cmd"].split()
        print(f"\n=== {name}: {self.stages[name]['cmd']}", flush=True)
        folder = self.folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PARAMS).write_text(written_yaml(self.params), encoding="utf-8")
        taken = {path: self.folder(maker) / path for path, maker in inputs_of(self.stages, name).items()}
        # a path of the user's is relative to the checkout, as DVC has it
        taken |= {
            path: CHECKOUT / path for path in given_to(self.stages, name, self.params) if not Path(path).is_absolute()
        }
        for path, place in taken.items():
            link = folder / path
            if ".." in Path(path).parts:
                raise ParamsError(
                    f"{path} leads out of the folder of a stage; give it as an absolute path: {place.resolve()}"
                )
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink() or link.readlink() != place:
                link.unlink(missing_ok=True)
                link.symlink_to(place)
        identity, start = self._identity(name), time.perf_counter()
        # checkpoints of all stages in one place, as under DVC
        environment = {"DVC_ROOT": str(self.work), WANTED: " ".join(self.wanted)}
        code = run_program([sys.executable, str(CHECKOUT / script), *options], folder, **environment)
        if code:
            print(f"{name} ended with exit code {code}; the same command resumes from here", file=sys.stderr)
            sys.exit(code)
        write_json(folder / ENDED, {"seconds": round(time.perf_counter() - start, 1), "identity": identity})


def run_by_hand(experiment: Experiment, work: Path) -> Measured:
    """Run the stages that the experiment wants of each classifier; returns what each run measured."""
    found: Measured = {}
    contents: dict[str, str] = {}
    for run, params in experiment.params.items():
        stages = ByHand(params, work, contents=contents, wanted=experiment.stages)
        for stage in experiment.stages:
            stages.make(stage)
        found[run] = stages.measured()
        place = work / "results" / experiment.names[run]
        # as a whole, so that nothing of an earlier run with other parameters stays
        with holding(work / "locks" / place.name, f"writing {place}"), replacing_folder(place) as partial:
            gather(stages, partial)
    return found


def gather(stages: ByHand, place: Path) -> None:
    """Copy into `place` what there is of a run: parameters, metrics, figures if they were wanted, and durations."""
    (place / PARAMS).write_text(written_yaml(stages.params), encoding="utf-8")
    for name, content in stages.measured().items():
        write_json(place / f"metrics/{name}.json", content)
    if "figures" in stages.made:
        shutil.copytree(stages.folder("figures") / FIGURES, place / FIGURES)
    seconds = {name: read_json(stages.folder(name) / ENDED)["seconds"] for name in sorted(stages.made)}
    write_json(place / "seconds.json", seconds)


def opened_by_hand(experiment: Experiment, work: Path) -> dict[str, ByHand]:
    """The runs whose wanted stages have run with the code and the parameters of now."""
    fingerprint = functools.lru_cache(code_fingerprint)
    contents: dict[str, str] = {}
    runs = {run: ByHand(params, work, fingerprint, contents) for run, params in experiment.params.items()}
    return {run: stages for run, stages in runs.items() if stages.find(experiment.stages)}


def found_by_hand(experiment: Experiment, work: Path) -> Measured:
    """What has been measured by earlier runs of the same experiment, with the code and the parameters of now."""
    return {run: stages.measured() for run, stages in opened_by_hand(experiment, work).items()}
