"""Runs as experiments in DVC's queue, worked off by DVC's workers."""

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import psutil
from dvc.repo import Repo
from dvc.repo.experiments.executor.base import ExecutorResult
from dvc.repo.experiments.queue.base import QueueEntry
from dvc.repo.experiments.queue.celery import LocalCeleryQueue
from dvc.repo.experiments.queue.exceptions import CannotKillTasksError

from experiments.description.experiment import base_params
from experiments.runs.named import Done, Run, finished, is_as_named, queue_lock
from experiments.runs.overrides import overrides
from experiments.runs.repository import require_committer, without_remote
from pag_core.errors import ExperimentFailed
from pag_core.pipeline.code_identity import CHECKOUT
from pag_core.pipeline.locks import holding

SECONDS_BETWEEN_LOOKS = 2.0
# without a process, before a run counts as lost: the machine was switched off, or its worker was killed
SECONDS_UNTIL_LOST = 30.0
SECONDS_TO_SAVE = 120.0
LINES_OF_A_FAILURE = 10
# of DVC, while another of its commands changes the repository
BUSY = "Unable to acquire lock"
CHANGED = "it has not begun: code or images were edited after its name was made of them; give the command again"


def run_all(runs: dict[str, Run], jobs: int) -> dict[str, Done]:
    """Run what has not finished, `jobs` at once; returns all runs.

    Of runs that share a stage that nobody has made yet, one goes first. A run that is in the queue already, for another
    command or since one was killed, is waited for. Raises ExperimentFailed, with the last lines of each run that failed,
    after the others have run. If it is interrupted (`interruptible`), its runs save checkpoints and end first.
    """
    require_committer()
    before = finished(runs)
    for run in before:
        print(f"{runs[run].name}: done before", flush=True)
    waiting = {run: wanted for run, wanted in runs.items() if run not in before}
    made = {"": "what is made now", **{one.revision: runs[run].name for run, one in before.items()}}
    if lacking := without_remote([one.revision for one in before.values()]):
        names = ", ".join(made[revision] for revision in lacking)
        print(
            f"{names}: DVC has no remote in its configuration, so dvc exp push sends none of its data and does not say so "
            "(docs/sharing.md)",
            file=sys.stderr,
            flush=True,
        )
    if not waiting:
        return before
    with Repo(str(CHECKOUT)) as repo:
        # where DVC's own have theirs
        logs = Path(repo.experiments.celery_queue.wdir)
        logs.mkdir(parents=True, exist_ok=True)
        with _Workers(jobs, logs) as workers:
            failed = _Queue(repo, workers, jobs).work_off(waiting)
    if failed:
        raise ExperimentFailed("\n".join(f"{name} failed; its last lines:\n{log}" for name, log in failed.items()))
    return finished(runs)


class _Queue:
    """DVC's queue as one command uses it."""

    def __init__(self, repo: Repo, workers: "_Workers", jobs: int) -> None:
        self._queue = repo.experiments.celery_queue
        self._workers, self._jobs = workers, jobs
        self._begun: dict[str, tuple[QueueEntry, float]] = {}
        self._own: set[str] = set()
        self._seen_alive: dict[str, float] = {}
        self._failed: dict[str, str] = {}
        self._seconds: list[float] = []

    def work_off(self, runs: dict[str, Run]) -> dict[str, str]:
        """Run all; returns the last lines of those that failed, by the names of their experiments."""
        waiting, made, total = dict(runs), set[str](), len(runs)
        try:
            for run, entry in self._entries(waiting).items():
                self._begin(waiting.pop(run), run, entry, "is in the queue")
            while waiting or self._begun:
                for run, lost in list(self._ended()):
                    if lost:
                        waiting[run] = runs[run]
                    elif runs[run].name not in self._failed:
                        made |= runs[run].shared
                    if self._seconds and not lost and (left := len(waiting) + len(self._begun)):
                        seconds = left * statistics.fmean(self._seconds) / self._jobs
                        about = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
                        print(f"{left} left: about {about}, if they take as long as those before", flush=True)
                self._begin_some(waiting, runs, made, total)
                # a worker that finds nothing ends: while all runs have a process, another command's too, none is started again
                if not all(self._is_alive(entry.stash_rev) for entry, _ in self._begun.values()):
                    self._workers.keep(len(self._begun))
                time.sleep(SECONDS_BETWEEN_LOOKS)
        except BaseException:
            self._give_up()
            raise
        return self._failed

    def _begin_some(self, waiting: dict[str, Run], runs: dict[str, Run], made: set[str], total: int) -> None:
        for run, wanted in list(waiting.items()):
            being_made = set().union(*(runs[other].shared for other in self._begun)) - made
            if len(self._begun) >= self._jobs or wanted.shared & being_made:
                continue
            del waiting[run]
            state = put(wanted)
            if state == "done":
                print(f"{wanted.name}: done by another command", flush=True)
                made |= wanted.shared
                continue
            if state == "changed":
                self._failed[wanted.name] = CHANGED
                continue
            self._own |= {wanted.name} if state == "queued" else set()
            self._begin(wanted, run, self._entries({run: wanted})[run], f"{total - len(waiting)} of {total}")

    def _begin(self, wanted: Run, run: str, entry: QueueEntry, said: str) -> None:
        print(f"{wanted.name}: {said} (dvc queue logs {wanted.name} --follow)", flush=True)
        self._begun[run] = (entry, time.monotonic())
        self._seen_alive[run] = time.monotonic()

    def _entries(self, wanted: dict[str, Run]) -> dict[str, QueueEntry]:
        """What is in the queue of the runs that are `wanted`: what waits, runs, or had no time to be seen."""
        entries = [*self._queue.iter_queued(), *self._queue.iter_active()]
        entries += [entry for entry, _ in ended(self._queue, lambda entry: entry.name in self._own)]
        by_name = {entry.name: entry for entry in reversed(entries)}
        return {run: by_name[one.name] for run, one in wanted.items() if one.name in by_name}

    def _ended(self) -> Iterator[tuple[str, bool]]:
        """The runs that have ended since the last look, and whether that was without a result of any kind."""
        quiet = []
        for run, (entry, _) in self._begun.items():
            if self._is_alive(entry.stash_rev):
                self._seen_alive[run] = time.monotonic()
            else:
                quiet.append(run)
        if not quiet:  # to ask DVC is to have it read every task that there ever was
            return
        queued = {entry.stash_rev for entry in self._queue.iter_queued()}
        active = {entry.stash_rev for entry in self._queue.iter_active()}
        revisions = {self._begun[run][0].stash_rev for run in quiet}
        done = {entry.stash_rev: result for entry, result in ended(self._queue, lambda one: one.stash_rev in revisions)}
        for run in quiet:
            entry, since = self._begun[run]
            revision = entry.stash_rev
            if revision in done:
                del self._begun[run]
                if done[revision] is None:
                    self._failed[entry.name] = self._last_lines(revision)
                said = "failed" if done[revision] is None else "done"
                self._seconds.append(time.monotonic() - since)
                print(f"{entry.name}: {said} after {self._seconds[-1]:.0f} s", flush=True)
                yield run, False
            elif revision in queued:
                self._seen_alive[run] = time.monotonic()
            elif time.monotonic() - self._seen_alive[run] > SECONDS_UNTIL_LOST:
                self._seen_alive[run] = time.monotonic()
                if revision not in active or self._is_dropped(entry.name):
                    del self._begun[run]
                    print(f"{entry.name}: its process is gone; it goes on from what was saved", flush=True)
                    yield run, True

    def _is_alive(self, revision: str) -> bool:
        process = self._queue.proc.get(revision)
        with contextlib.suppress(psutil.Error):
            return process is not None and any(revision in word for word in psutil.Process(process.pid).cmdline())
        return False

    def _is_dropped(self, name: str) -> bool:
        """Take a run whose process is gone out of the queue, unless a worker still has it."""
        try:
            self._queue.kill([name])
        except CannotKillTasksError:
            return False
        return True

    def _last_lines(self, revision: str) -> str:
        process = self._queue.proc.get(revision)
        if process is None:
            return f"it could not be set up (see {Path(self._queue.wdir) / '*.out'})"
        said = Path(process.stdout).read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(said[-LINES_OF_A_FAILURE:])

    def _give_up(self) -> None:
        """End what this command has queued: what waits leaves the queue, what runs saves a checkpoint."""
        print("Ending: what runs saves a checkpoint, and the same command resumes", file=sys.stderr, flush=True)
        names = {entry.name for entry, _ in self._begun.values()}
        if others := names - self._own:
            print(f"{', '.join(sorted(others))}: goes on in DVC's queue (dvc queue kill)", file=sys.stderr, flush=True)
        names &= self._own
        if waiting := [entry.name for entry in self._queue.iter_queued() if entry.name in names]:
            self._queue.remove(waiting)
        deadline = time.monotonic() + SECONDS_TO_SAVE
        told: set[str] = set()
        while time.monotonic() < deadline:
            active = {entry.name: entry.stash_rev for entry in self._queue.iter_active() if entry.name in names}
            running = {name for name, revision in active.items() if self._is_alive(revision)}
            if running - told:
                told |= running
                self._queue.kill(sorted(running))
            if not active or (told and not running):
                return
            time.sleep(SECONDS_BETWEEN_LOOKS)


def ended(
    queue: LocalCeleryQueue, wanted: Callable[[QueueEntry], bool]
) -> Iterator[tuple[QueueEntry, ExecutorResult | None]]:
    """The tasks of the queue that have ended and are `wanted`, with their results: None of one that failed.

    As `iter_done` of DVC, which for each of n tasks reads all n again: 16 s of a core for 145 (DVC 3.67).
    """
    for _, entry in queue._iter_done_tasks():
        if wanted(entry):
            try:
                yield entry, queue.get_result(entry)
            except FileNotFoundError:
                yield entry, None


def put(run: Run) -> Literal["queued", "there", "done", "changed"]:
    """Queue an experiment of the run, unless another command has put it there or has made it since.

    Nor is it queued where its name is no longer that of what DVC would run. Raises ExperimentFailed with what DVC says where
    it cannot be queued.
    """
    settings = [f"--set-param={text}" for text in overrides(run.params, base_params())]
    with holding(queue_lock(), "queueing an experiment"):
        if finished({run.name: run}):
            return "done"
        if not is_as_named(run):
            return "changed"
        with Repo(str(CHECKOUT)) as repo:
            queue = repo.experiments.celery_queue
            if run.name in {entry.name for entry in [*queue.iter_queued(), *queue.iter_active()]}:
                return "there"
            # failed attempts have the name, and an experiment whose metrics are gone
            names = {name for found in repo.experiments.ls().values() for name, _ in found}
            failed = [result is None for _, result in ended(queue, lambda entry: entry.name == run.name)]
            if run.name in names or any(failed):
                repo.experiments.remove([run.name])
        while said := _refusal(["dvc", "exp", "run", "--queue", "--name", run.name, *settings, *run.addresses]):
            if BUSY not in said:
                raise ExperimentFailed(f"{run.name} cannot be queued: {said}")
            time.sleep(1)
    return "queued"


def _refusal(command: list[str]) -> str:
    """What a command of DVC says if it fails. It ends in its own time: the checkout is as it was only then."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command], cwd=CHECKOUT, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        _, said = process.communicate()
    except BaseException:
        process.communicate()
        raise
    return said.strip() or f"exit code {process.returncode}" if process.returncode else ""


class _Workers:
    """DVC's workers, each of which runs one experiment of the queue at a time. They end when there is nothing to do.

    Each has its share of the cores: `processes: null` takes all that it may use. They are not told of Ctrl-C by the terminal,
    and go on if this program is killed.
    """

    def __init__(self, jobs: int, logs: Path) -> None:
        self._logs = logs
        self._started: list[subprocess.Popen[bytes] | None] = [None] * jobs

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *error: object) -> None:
        for worker in filter(None, self._started):
            # a run that it has taken for another command it finishes
            worker.terminate()

    def keep(self, count: int) -> None:
        """Start workers until there are `count`, or as many as there are jobs."""
        for place, worker in enumerate(self._started[:count]):
            if worker is None or worker.poll() is not None:
                self._started[place] = self._start(place)

    def _start(self, place: int) -> "subprocess.Popen[bytes]":
        name = f"pag-{os.getpid()}-{time.monotonic_ns()}@localhost"
        # stages are started by the name python
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        with (self._logs / f"{name}.out").open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "dvc", "exp", "queue-worker", name], cwd=CHECKOUT, env={**os.environ, "PATH": path},
                start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        process = psutil.Process(worker.pid)
        # macOS has no such thing
        if hasattr(process, "cpu_affinity"):
            cores = process.cpu_affinity()
            process.cpu_affinity(cores[place :: len(self._started)] or cores)
        return worker
