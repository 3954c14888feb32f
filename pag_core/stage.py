"""What every stage does around its one function: read params.yaml, print errors as a user reads them, time itself."""

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import typer

from pag_core.artifacts import write_json
from pag_core.errors import LaunchRefused, PagError

TIMINGS = Path("timings")


@contextlib.contextmanager
def stage(name: str, *, shared: bool = False) -> Iterator[None]:
    """Run a stage's body; a PagError ends it with its message and exit code 1, without a traceback.

    Its duration goes to `timings/NAME.json`, apart from the metrics, which are the same bytes in every run. Only a
    `shared` stage, whose processes divide its work, may be one of several ranks of torchrun.
    """
    start = time.perf_counter()
    try:
        if not shared and "TORCHELASTIC_RUN_ID" in os.environ and os.environ["WORLD_SIZE"] != "1":
            raise LaunchRefused(
                f"torchrun started {os.environ['WORLD_SIZE']} processes of a stage that runs in one; start it with python"
            )
        yield
    except PagError as error:
        print(f"\n{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        print(
            f"\n{name}: the disk is full ({error}); finished work is kept in .cache, so free some space and run again",
            file=sys.stderr,
            flush=True,
        )
        sys.exit(1)
    write_json(TIMINGS / f"{name}.json", {"seconds": round(time.perf_counter() - start, 3)})


def run(main: Callable[..., None]) -> None:
    """Run a stage's `main` as a command; an unforeseen error keeps Python's plain traceback."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
