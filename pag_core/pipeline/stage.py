"""What every stage does around its one function: open parameters and device, print errors for users, measure its time."""

import contextlib
import errno
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import typer

from pag_core.compute.device import prepare_device
from pag_core.compute.interruption import Interrupted, interruptible
from pag_core.compute.memory import is_out_of_memory, what_was_asked_for
from pag_core.compute.processes import divide_cores
from pag_core.errors import LaunchRefused, PagError
from pag_core.params.declared import Reads, declared_params, recorded_params
from pag_core.params.reading import load_params
from pag_core.params.sections import Params
from pag_core.pipeline.artifacts import write_json
from pag_core.pipeline.provenance import provenance

TIMINGS = Path("timings")
EPILOG = "All parameters are in params.yaml, which explains each; for one run: dvc exp run -S train.epochs=5"


class OpenStage:
    """A running stage: the parameters that it `reads` and its device, each when it is first asked for."""

    def __init__(self, name: str, reads: Reads = ()) -> None:
        self.name = name
        self.reads = reads

    @functools.cached_property
    def all_params(self) -> Params:
        """All that params.yaml says, for what may refuse and shapes no result; raises ParamsError."""
        return load_params()

    @property
    def params(self) -> Params:
        """What the stage declares that it reads, and where it runs; raises ParamsError, and UndeclaredParameter for more."""
        return declared_params(self.all_params, self.reads, self.name)

    @property
    def recorded(self) -> dict[str, Any]:
        """The parameters that shape its result, as records hold them."""
        return recorded_params(self.all_params, self.reads)

    @functools.cached_property
    def device(self) -> torch.device:
        """The device of `device`, prepared; raises ParamsError if this machine lacks it."""
        return prepare_device(self.params.device, self.params.threads)

    def divide_cores(self, processes: int) -> None:
        """Take the threads of one of `processes` that share the work: before a record, which states how many threads did it."""
        if self.device.type == "cpu":
            divide_cores(processes)

    def provenance(self, *, inputs: dict[str, str], on_device: bool = True, processes: int = 1) -> dict[str, Any]:
        """The record of an artifact that the stage's parameters and `inputs` (fingerprints by name) made on this device."""
        return provenance(
            params=self.recorded,
            seed=self.params.seed,
            inputs=inputs,
            device=self.device if on_device else None,
            processes=processes,
        )


@contextlib.contextmanager
def stage(name: str, *, reads: Reads = (), shared: bool = False, memory: str | None = None) -> Iterator[OpenStage]:
    """Run a stage's body; a PagError ends it with its message and exit code 1, without a traceback.

    `reads` declares its parameters in the words of dvc.yaml: it gets no others, and they are the record of what it writes.
    SIGTERM and Ctrl-C end it with 143 and 130, after a checkpoint where it trains.
    Its duration, and on a GPU its peak memory, goes to `timings/NAME.json`, apart from the metrics, which are the same bytes
    in every run. Only a `shared` stage, whose processes divide its work, may be one of several ranks of torchrun. `memory` is
    the parameter (`section.key`) that bounds what the stage holds in memory, which a message names where that ran out.
    """
    opened = OpenStage(name, reads)
    start = time.perf_counter()
    try:
        if not shared and "TORCHELASTIC_RUN_ID" in os.environ and os.environ["WORLD_SIZE"] != "1":
            raise LaunchRefused(
                f"torchrun started {os.environ['WORLD_SIZE']} processes of a stage that runs in one; start it with python"
            )
        with interruptible():
            yield opened
    except Interrupted as signal:
        print(
            f"\n{name}: {signal}; the same command resumes from the last checkpoint or finished part",
            file=sys.stderr,
            flush=True,
        )
        sys.exit(signal.exit_code)
    except PagError as error:
        print(f"\n{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except (MemoryError, OSError, RuntimeError) as error:
        if is_out_of_memory(error):
            print(f"\n{name}: {_out_of_memory(error, opened, memory)}", file=sys.stderr, flush=True)
            sys.exit(1)
        if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        print(
            f"\n{name}: the disk is full ({error}); finished work is kept in .cache, so free some space and run again",
            file=sys.stderr,
            flush=True,
        )
        sys.exit(1)
    used = {"peak_gpu_bytes": torch.cuda.max_memory_allocated()} if torch.cuda.is_initialized() else {}
    write_json(TIMINGS / f"{name}.json", {"seconds": round(time.perf_counter() - start, 3), **used})


def _out_of_memory(error: BaseException, opened: OpenStage, parameter: str | None) -> str:
    """One sentence on what ran out of memory, and the remedy."""
    said = f"out of memory ({what_was_asked_for(error)})"
    if parameter is None:
        return f"{said}; end what else runs on this machine, or take one with more memory, and run again"
    section, key = parameter.split(".")
    value = getattr(getattr(opened.all_params, section), key)
    if value == 1:
        return f"{said}, although {parameter} is 1; take a device with more memory, or a smaller network or images"
    return f"{said}; set {parameter}, which is {value}, lower in params.yaml and run again"


def run(main: Callable[..., None]) -> None:
    """Run a stage's `main` as a command; an unforeseen error keeps Python's plain traceback."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(epilog=EPILOG)(main)
    app()
