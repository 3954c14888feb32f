"""The runs of a description: what their results are known by, and in which order DVC's queue gets them."""

import functools
import shutil
import time
from types import SimpleNamespace

import pytest
import typer

from experiments.description.experiment import base_params, read_experiment
from experiments.runs import queue
from experiments.runs.named import Run, is_as_named, named
from experiments.runs.stages import Stages, needed_for
from pag_core.errors import DatasetError
from pag_core.params.yaml_text import written_yaml
from pag_core.pipeline.code_identity import code_record
from tests.fixtures.samples import changed, save_png

MODEL = {"train", "validation", "autoattack", "foolbox", "masking", "pag_score", "figures", "report"}
BASELINE = {f"baseline{of}" for of in ("", "_validation", "_autoattack", "_foolbox")}
SOURCES = {*(f"heuristic@{name}" for name in ("none", "oi", "cm", "nn")), "own"}
TEACHER = {"diffusion", "sbg", "sbg_online"}


@pytest.fixture(scope="module", autouse=True)
def code_read_once():
    """The code of a stage, which costs a good part of a second for all of them, does not change in these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.runs.stages.code_record", functools.cache(code_record))
        yield


@pytest.fixture(scope="module")
def stages():
    return Stages()


def different(stages, one, other):
    return different_between(stages.of(one), stages.of(other))


CASES = [
    ({"processes": 2, "threads": 3, "device": "cpu", "checkpoint_seconds": 7, "feed.mode": "resident"}, set()),
    ({"check.stages": ["train"]}, set()),
    ({"image_folder": "elsewhere"}, set()),
    ({"lambda": 3.5}, MODEL),
    ({"control": "other_class"}, MODEL),
    ({"baseline_method": "at"}, BASELINE | MODEL - {"train", "validation"}),
    ({"at.steps": 3}, set()),
    ({"method": "at", "at.steps": 3}, MODEL),
    ({"autoattack.images": 7}, {"autoattack", "baseline_autoattack", "figures"}),
    ({"foolbox.images": 7}, {"foolbox", "baseline_foolbox"}),
    ({"validation.images": 7}, {"validation", "baseline_validation"}),
    ({"diffusion.steps": 7}, TEACHER | MODEL),
    ({"sbg.timestep": 170}, TEACHER - {"diffusion"} | MODEL),
    ({"own.options": {"noise": 0.5}}, {"own"}),
    ({"cm.factor": 2.0}, {"heuristic@cm", "figures"}),
    ({"prepare.image_size": 9}, {"prepare"} | BASELINE | MODEL | TEACHER | SOURCES),
    ({"seed": 5}, {"prepare"} | BASELINE | MODEL | TEACHER | SOURCES),
]


@pytest.mark.parametrize(("changes", "expected"), CASES, ids=[str(changes) for changes, _ in CASES])
def test_a_result_is_known_by_the_parameters_that_it_depends_on(stages, changes, expected):
    """The page shows all parameters, and where work ran is none of the others'."""
    base = base_params()
    found = different(stages, base, changed(base_params(), changes))
    shows_all = {"check", "report", "code"}
    assert found - shows_all == expected - shows_all


def test_a_training_that_validates_depends_on_how(stages):
    validating = {"train.validate_every": 1}
    found = different(
        stages, changed(base_params(), validating), changed(base_params(), validating | {"validation.images": 7})
    )
    assert {"train", "baseline", "autoattack"} <= found and not found & {"prepare", "sbg", "diffusion"}


def test_stages_come_with_what_they_need_and_measure(stages):
    found = stages.of({**base_params(), "source": "nn"})
    needed = needed_for(found, ["autoattack"])
    assert needed == sorted(
        ["autoattack", "baseline", "baseline_autoattack", "check", "code", "heuristic@nn", "prepare", "train"]
    )
    assert found["autoattack"].metrics == {
        "autoattack": "metrics/autoattack.json",
        "details/autoattack": "metrics/details/autoattack.json",
    }
    assert found["train"].cached and not found["heuristic@nn"].cached


def test_the_code_of_a_stage_is_part_of_its_results(monkeypatch):
    def with_code(record):
        monkeypatch.setattr("experiments.runs.stages.code_record", record)
        return Stages().of(base_params())

    before, edited = with_code(lambda program: ""), with_code(lambda program: "edited" * (program.stem == "train"))
    assert different_between(before, edited) == BASELINE | MODEL


def different_between(before, after):
    return {name for name in before if before[name].identity != after[name].identity}


@pytest.fixture
def images(tmp_path):
    for place in ("train/ant", "train/bee", "test/ant", "test/bee"):
        save_png(tmp_path / "images" / place / "0.png")
    return tmp_path / "images"


def test_images_are_known_by_their_content(tmp_path, images):
    def identity(folder, dataset="image_folder"):
        return Stages().of({**base_params(), "dataset": dataset, "image_folder": str(folder)})["prepare"].identity

    before = identity(images)
    shutil.copytree(images, tmp_path / "moved")
    (tmp_path / "link").symlink_to(images)
    assert identity(tmp_path / "link") == identity(images) == identity(tmp_path / "moved") == before
    assert identity(images, "digits") == identity(tmp_path / "gone", "digits") != before
    save_png(images / "train/ant/0.png", seed=3)
    assert identity(images) != before
    with pytest.raises(DatasetError, match=r"gone is not there; params\.yaml, a description or --images names it"):
        identity(tmp_path / "gone")
    (images / "train/cat").symlink_to(tmp_path / "moved/train/ant")
    with pytest.raises(DatasetError, match=r"train/cat is a link to .*moved/train/ant, and DVC sees no change behind"):
        identity(images)


def test_a_diffusion_model_of_the_users_is_known_by_its_content(tmp_path):
    params = {**base_params(), "diffusion_checkpoint": str(tmp_path / "teacher")}
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher/weights").write_bytes(b"one")
    before = Stages().of(params)
    assert "diffusion" not in before["sbg"].before
    (tmp_path / "teacher/weights").write_bytes(b"another")
    assert different_between(before, Stages().of(params)) >= {"sbg", "train", "autoattack"}
    assert different_between(before, Stages().of(params)) & (BASELINE | {"prepare", "diffusion"}) == set()


def test_a_classifier_of_the_users_is_known_by_its_content_and_nothing_is_trained_for_it(tmp_path):
    params = {**base_params(), "classifier_checkpoint": str(tmp_path / "network")}
    (tmp_path / "network").mkdir()
    (tmp_path / "network/weights").write_bytes(b"one")
    before = Stages().of(params)
    measured = [name for name in MODEL if name != "train"]
    assert needed_for(before, measured) == sorted(
        {*BASELINE, *measured, "check", "code", "prepare", "heuristic@none"} - {"baseline_validation"}
    )
    (tmp_path / "network/weights").write_bytes(b"another")
    assert different_between(before, Stages().of(params)) == {*measured}
    (run,) = named(
        described(tmp_path, f"classifier_checkpoint={tmp_path / 'network'}", classifiers={"own": {}})
    ).values()
    assert run.params["classifier_checkpoint"] == str(tmp_path / "network")
    assert run.params["check"] == {"stages": ["baseline", "validation", "autoattack"]}


DESCRIPTION = {
    "stages": ["autoattack"],
    "sizes": {"full": {}},
    "classifiers": {"cm": {"source": "cm"}, "sbg": {"source": "sbg"}},
}


def described(tmp_path, *changes, images=None, **other):
    (tmp_path / "study.yaml").write_text(written_yaml({**DESCRIPTION, **other}), encoding="utf-8")
    return read_experiment(tmp_path / "study.yaml", "full", list(changes), images)


def test_a_run_has_its_name_by_all_that_its_results_depend_on(tmp_path, images):
    first = named(described(tmp_path))
    assert [run.name.rpartition("-")[0] for run in first.values()] == ["study-full-cm", "study-full-sbg"]
    same = named(described(tmp_path, "processes=2", "foolbox.images=3"))
    assert [run.name for run in same.values()] == [run.name for run in first.values()]
    other = named(described(tmp_path, "cm:lambda=9"))
    assert other["cm"].name != first["cm"].name and other["sbg"].name == first["sbg"].name
    more = named(described(tmp_path, stages=["autoattack", "foolbox"]))
    assert not {run.name for run in more.values()} & {run.name for run in first.values()}
    (on_images, _) = named(described(tmp_path, images=images)).values()
    assert on_images.params["image_folder"] == str(images) and on_images.name != first["cm"].name


def test_an_edit_after_the_command_began_is_seen(tmp_path, images, monkeypatch):
    """And not those of settings of where it runs, nor of what the run's parameters override."""
    of_digits, _ = named(described(tmp_path)).values()
    on_images, _ = named(described(tmp_path, images=images)).values()
    assert is_as_named(of_digits) and is_as_named(on_images)
    save_png(images / "train/ant/0.png", seed=3)
    assert is_as_named(of_digits) and not is_as_named(on_images)
    monkeypatch.setattr(
        "experiments.runs.stages.code_record", lambda program: "edited" * (program.stem == "autoattack")
    )
    assert not is_as_named(of_digits)


def test_dvc_is_told_what_is_wanted_and_where_what_the_user_gave_lies(tmp_path):
    run = named(described(tmp_path))["cm"]
    assert run.wanted == run.addresses == ("validation", "autoattack")
    (other, _) = named(described(tmp_path, stages=["train", "heuristic@oi"])).values()
    assert other.addresses[-2:] == ("stages/gradients/dvc.yaml:train", "stages/gradients/dvc.yaml:heuristic@oi")
    assert run.params["check"] == {"stages": ["train", "baseline", "validation", "autoattack"]}
    assert run.metrics.keys() == {"training", "autoattack", "details/training", "details/autoattack"}


def test_runs_of_another_seed_wait_for_nothing_that_those_of_one_seed_share(tmp_path):
    two_seeds = {"cm-seed1": {"source": "cm", "seed": 1}, "sbg-seed1": {"source": "sbg", "seed": 1}}
    runs = named(described(tmp_path, classifiers={**two_seeds, "cm-seed2": {"source": "cm", "seed": 2}}))
    assert len(runs["cm-seed1"].shared & runs["sbg-seed1"].shared) == 3, "prepare, baseline and its attack"
    assert not runs["cm-seed1"].shared & runs["cm-seed2"].shared


def test_a_stage_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(typer.BadParameter, match=r"study-full-cm: the stage autoatack is not one of: .*autoattack"):
        named(described(tmp_path, stages=["train", "autoatack"]))


class Simulated(queue._Queue):
    """The queue of a command whose runs take no time; `log` has which are running at each look."""

    def __init__(self, jobs, failing=(), lost=(), alive=None):
        super().__init__(SimpleNamespace(experiments=SimpleNamespace(celery_queue=None)), self, jobs)
        self.failing, self.lost, self.log, self.queued = failing, list(lost), [], set()
        self.alive = dict(alive or {})

    def keep(self, count):
        """As workers."""
        self.log += [sorted(self._begun)] if count else []

    def _entries(self, wanted):
        return {run: SimpleNamespace(name=run, stash_rev=run) for run in wanted if run in self.queued}

    def _is_alive(self, revision):
        return self.alive.get(revision, 0) > 0

    def _ended(self):
        for run in list(self._begun):
            if self._is_alive(run):
                self.alive[run] -= 1
                continue
            del self._begun[run]
            if run in self.failing:
                self._failed[run] = "its last lines"
            self._seconds.append(90)
            gone = run in self.lost
            if gone:
                self.lost.remove(run)
            yield run, gone


def order(monkeypatch, jobs, shared, queued=(), made_elsewhere=(), edited=(), **options):
    simulated = Simulated(jobs, **options)
    simulated.queued |= set(queued)

    def put(run):
        if run.name in edited:
            return "changed"
        simulated.queued.add(run.name)
        return "done" if run.name in made_elsewhere else "queued"

    monkeypatch.setattr(queue, "put", put)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    runs = {name: Run(name, {}, ("train",), ("train",), {}, frozenset(made)) for name, made in shared.items()}
    failed = simulated.work_off(runs)
    return simulated.log, failed


def test_of_runs_that_share_a_stage_one_goes_first(monkeypatch):
    """Runs of another seed share nothing with it, and begin with it."""
    shared = {"a1": "dp", "b1": "dq", "c1": "dr", "a2": "es", "b2": "et"}
    begun, failed = order(monkeypatch, 2, shared)
    assert begun == [["a1", "a2"], ["b1", "c1"], ["b2"]] and failed == {}


def test_one_job_takes_them_in_their_order(monkeypatch):
    begun, _ = order(monkeypatch, 1, {"a": "dx", "b": "dy", "c": "e"})
    assert begun == [["a"], ["b"], ["c"]]


def test_how_long_the_rest_takes_is_said_after_each_run(monkeypatch, capsys):
    """Runs of 90 s: two left at one job take three minutes, at two jobs half of that."""
    order(monkeypatch, 1, {"a": "x", "b": "y", "c": "z"})
    said = [line for line in capsys.readouterr().out.splitlines() if "left" in line]
    assert [line.partition(",")[0] for line in said] == ["2 left: about 3 min", "1 left: about 90 s"]
    order(monkeypatch, 2, {"a": "x", "b": "x", "c": "x", "d": "x", "e": "x"})
    assert "4 left: about 3 min" in capsys.readouterr().out


def test_a_run_that_fails_ends_no_other_and_is_named(monkeypatch):
    begun, failed = order(monkeypatch, 2, {"a": "dx", "b": "dy", "c": "dz"}, failing=("a",))
    assert begun == [["a"], ["b"], ["c"]] and failed == {"a": "its last lines"}


def test_a_run_whose_process_is_gone_goes_into_the_queue_again(monkeypatch):
    begun, failed = order(monkeypatch, 1, {"a": "x", "b": "y"}, lost=("a",))
    assert begun == [["a"], ["b"], ["a"]] and failed == {}


def test_a_run_that_is_in_the_queue_is_waited_for(monkeypatch):
    """That another command has put there; what shares a stage with it waits."""
    begun, _ = order(monkeypatch, 1, {"a": "x", "b": "x", "c": "y"}, queued=("b",))
    assert begun == [["a"], ["c"]]


def test_while_another_command_runs_it_no_worker_is_started_for_it(monkeypatch):
    """One that finds nothing to do ends, and would be started again at every look."""
    begun, _ = order(monkeypatch, 1, {"a": "x", "b": "y"}, queued=("b",), alive={"b": 3})
    assert begun == [["b"], ["a"]], "when its process has gone, in case nobody else takes it again"


def test_what_another_command_has_made_since_is_not_run(monkeypatch):
    begun, failed = order(monkeypatch, 1, {"a": "x", "b": "xy", "c": "y"}, made_elsewhere=("b",))
    assert begun == [["a"], ["c"]] and failed == {}


def test_a_run_that_an_edit_has_made_another_is_not_begun(monkeypatch):
    """What runs goes on: DVC has a copy of the checkout for it."""
    begun, failed = order(monkeypatch, 2, {"a": "x", "b": "y", "c": "z"}, edited=("b",))
    assert begun == [["a", "c"]] and failed == {"b": queue.CHANGED}
