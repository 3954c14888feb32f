"""The process group (torch.distributed) that the ranks of one piece of work form, and what they agree on through it.

The ranks find each other at a TCP store: torchrun's, or one that the process which starts companions opens itself.
"""

import contextlib
import datetime
import os
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import distributed

from pag_core.errors import CompanionLost

# a peer that hangs for this long ends the work (one that dies is noticed at once, because its connections close)
COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=10)
# ranks may wait for one that is busy: with the last unit of work, or behind another run of the same work
LONGEST_WAIT = datetime.timedelta(hours=24)


class ProcessGroup:
    """This process's membership: tensors travel by gloo on the CPU and NCCL between GPUs, messages by gloo."""

    def __init__(self, messages: "distributed.ProcessGroup") -> None:
        self._messages = messages

    def from_leader(self, value: Any) -> Any:
        """What rank 0 passes as `value`, on every rank; all ranks call it. Raises CompanionLost if one is gone."""
        held = [value]
        with telling_losses():
            distributed.broadcast_object_list(held, src=0, group=self._messages)
        return held[0]

    def wait_for_all(self) -> None:
        """Return when every rank has called it; raises CompanionLost if one is gone."""
        with telling_losses():
            distributed.barrier(group=self._messages)

    def leave(self) -> None:
        """Leave the group; this process works alone from here on."""
        global _joined
        distributed.destroy_process_group()
        _joined = None


_joined: ProcessGroup | None = None


def open_store(count: int) -> "distributed.TCPStore":
    """A store on a free port of this machine, at which `count` ranks can meet."""
    return distributed.TCPStore(
        "127.0.0.1", 0, count, is_master=True, wait_for_workers=False, timeout=COLLECTIVE_TIMEOUT
    )


def opened_store() -> "distributed.TCPStore":
    """The store that the leader opened, at MASTER_ADDR and MASTER_PORT; raises CompanionLost if it is gone."""
    address, port, count = (os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"))
    with telling_losses():
        return distributed.TCPStore(
            address, int(port), int(count), is_master=False, wait_for_workers=False, timeout=COLLECTIVE_TIMEOUT
        )


def join(device: torch.device, store: "distributed.TCPStore | None" = None) -> ProcessGroup:
    """Join the group of the ranks that RANK and WORLD_SIZE number, once; returns when all have come.

    They meet at `store`, under torchrun at its own (None). Raises CompanionLost if one does not come.
    """
    global _joined
    if _joined is None:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        with telling_losses():
            if store is None:
                distributed.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
            else:
                distributed.init_process_group(
                    backend, store=store, rank=rank, world_size=count, timeout=COLLECTIVE_TIMEOUT
                )
            messages = distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
        _joined = ProcessGroup(cast("distributed.ProcessGroup", messages))
    return _joined


def current() -> ProcessGroup:
    """The group that this process has joined."""
    if _joined is None:
        raise RuntimeError("this process has joined no group")
    return _joined


@contextlib.contextmanager
def telling_losses() -> Iterator[None]:
    """Turn the errors of collectives within the block into CompanionLost; others pass."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        # gloo's errors come through autograd as plain RuntimeErrors
        if not isinstance(error, distributed.DistError) and "gloo" not in text and "NCCL" not in text:
            raise
        raise CompanionLost(
            f"another process is gone or does not answer ({text.splitlines()[0]}); finished work is kept; run again to resume"
        ) from error
