"""The process group (torch.distributed) that the ranks of one piece of work form, and what they agree on through it.

The ranks find each other at a TCP store: torchrun's, or one that the rank 0 which starts the others opens.
"""

import contextlib
import datetime
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import distributed

from pag_core.errors import RankLost

# a peer that hangs for this long ends the work (one that dies is noticed at once, because its connections close)
COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=10)
# ranks may wait for one that is busy: with the last unit of work, or behind another run of the same work
LONGEST_WAIT = datetime.timedelta(hours=24)


class ProcessGroup:
    """This process's membership: tensors travel by gloo on the CPU and NCCL between GPUs, messages by gloo."""

    def __init__(self, messages: "distributed.ProcessGroup") -> None:
        self._messages = messages

    def from_leader(self, value: Any) -> Any:
        """What rank 0 passes as `value`, on every rank; all ranks call it. Raises RankLost if one is gone."""
        held = [value]
        with telling_losses():
            distributed.broadcast_object_list(held, src=0, group=self._messages)
        return held[0]

    def wait_for_all(self) -> None:
        """Return when every rank has called it; raises RankLost if one is gone."""
        with telling_losses():
            distributed.barrier(group=self._messages)

    def leave(self) -> None:
        """Leave the group; this process works alone from here on."""
        global _joined
        distributed.destroy_process_group()
        _joined = None


_joined: ProcessGroup | None = None


def open_store() -> "distributed.TCPStore":
    """A store on a free port of this machine, at which ranks can meet as long as it is held."""
    return distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def join(device: torch.device) -> ProcessGroup:
    """Join the group of the ranks that RANK and WORLD_SIZE number, once; returns when all have come.

    Raises RankLost if one does not come.
    """
    global _joined
    if _joined is None:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with telling_losses():
            distributed.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
            messages = distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
        _joined = ProcessGroup(cast("distributed.ProcessGroup", messages))
    return _joined


def current() -> ProcessGroup:
    """The group that this process has joined."""
    if _joined is None:
        raise RuntimeError("this process has joined no group")
    return _joined


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Within the block this process is in the group, which all enter together and leave together; raises RankLost."""
    group = join(device)
    # rank 0 has prepared the work (forgotten stale claims) before any rank begins
    group.wait_for_all()
    yield
    group.wait_for_all()
    group.leave()


@contextlib.contextmanager
def telling_losses() -> Iterator[None]:
    """Turn the errors of collectives within the block into RankLost; others pass."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        # gloo's errors come through autograd as plain RuntimeErrors
        if not isinstance(error, distributed.DistError) and "gloo" not in text and "NCCL" not in text:
            raise
        raise RankLost(
            f"another process is gone or does not answer ({text.splitlines()[0]}); finished work is kept; run again to resume"
        ) from error
