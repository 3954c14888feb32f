"""An evaluation as named units of work: each is kept when done, and several processes can share them."""

import contextlib
from collections.abc import Callable
from typing import Any

from pag_core.compute.processes import ranks, this_process
from pag_core.errors import RankLost
from pag_core.pipeline.checkpoint import RunFolder
from pag_core.pipeline.loop import progress_bar

Unit = Callable[[], dict[str, Any]]


def finished_units(
    folder: RunFolder, work: dict[str, Unit], *, processes: int | None, what: str
) -> dict[str, dict[str, Any]]:
    """The result of every unit in the order of `work`; those that an earlier run finished are not computed again.

    A unit must not depend on which others ran before it in the same process. The ranks
    that are started for more than one of `processes`, or those of torchrun, take their share and only rank 0 returns. Raises
    RankLost if one of them failed. With None this process does all of it, also as a rank of a torchrun that is the user's.
    """
    if processes is None or this_process().leads:
        folder.forget_claims()
    with progress_bar(what, len(work), 0, "unit") as bar:
        still_open = sum(folder.load_unit(name) is None for name in work)
        with contextlib.nullcontext() if processes is None else ranks(processes, units=still_open):
            for name in work:
                # units differ in length, so each process takes the next one that is free
                if folder.load_unit(name) is None and folder.claim(name):
                    folder.save_unit(name, work[name]())
                bar.update(sum(folder.load_unit(unit) is not None for unit in work) - bar.n)
        bar.update(len(work) - bar.n)
    return {name: _finished(folder, name) for name in work}


def _finished(folder: RunFolder, name: str) -> dict[str, Any]:
    result = folder.load_unit(name)
    if result is None:
        raise RankLost(
            f"no process has finished the unit {name} of {folder.path}; machines that share the work need one folder "
            "for it. Finished work is kept; run again to resume"
        )
    return result
