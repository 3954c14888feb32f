"""Copies of one network trained in step by several processes (data parallelism), by Lightning Fabric.

Every process makes the random draws of the whole batch and computes its share of the rows; the gradient of a step is
that of the mean over the whole batch, however many processes share it.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn

from pag_core.compute import process_group
from pag_core.compute.processes import Process, is_rank, processes_here, ranks
from pag_core.compute.randomness import restore_global_state, seed_global_streams
from pag_core.errors import ParamsError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# from a device to a checkpoint whose tensors are on it, or None
LoadCheckpoint = Callable[[torch.device], dict[str, Any] | None]


@dataclass(frozen=True)
class Share:
    """The `rows` of a batch of `whole` images that one process computes.

    Their mean makes the `fraction` of the batch's mean gradient. If all processes compute the same rows, only one
    has them `counted` in sums over the batch.
    """

    rows: slice
    whole: int
    fraction: float
    counted: bool = True


def undivided(whole: int) -> Share:
    """All rows of a batch of `whole` images."""
    return Share(slice(0, whole), whole, 1.0)


class Replicas:
    """The processes that train one network. A single one adds nothing to the plain work."""

    def __init__(self, process: Process, fabric: "Fabric | None") -> None:
        self.process = process
        self._fabric = fabric

    @property
    def leads(self) -> bool:
        """Whether this process writes checkpoints, curves and results."""
        return self.process.leads

    def share(self, whole: int) -> Share:
        """This process's rows of a batch of `whole` images.

        A batch smaller than the number of processes is computed whole by each: an empty share would have no mean, and
        the mean over equal copies is the same.
        """
        rank, count = self.process.rank, self.process.count
        if whole < count:
            return Share(slice(0, whole), whole, 1 / count, counted=self.leads)
        rows = slice(rank * whole // count, (rank + 1) * whole // count)
        return Share(rows, whole, (rows.stop - rows.start) / whole)

    def replicate(self, module: nn.Module) -> nn.Module:
        """`module` with its gradients averaged over the processes in `backward`; all start from rank 0's weights."""
        return module if self._fabric is None else self._fabric.setup_module(module, move_to_device=False)

    def backward(self, loss: torch.Tensor, share: Share) -> None:
        """The gradient of the whole batch's mean loss, from the mean `loss` over the rows of `share`."""
        if self._fabric is None:
            loss.backward()
        else:
            self._fabric.backward(loss * (share.fraction * self.process.count))

    def part_of_mean(self, mean: torch.Tensor, share: Share) -> torch.Tensor:
        """What a mean over the rows of `share` adds to the mean over the whole batch: `total` sums the parts."""
        return mean if self._fabric is None else mean.detach() * share.fraction

    def part_of_sum(self, amount: torch.Tensor, share: Share) -> torch.Tensor:
        """What a sum over the rows of `share` adds to the sum over the whole batch: `total` sums the parts."""
        return amount if share.counted else torch.zeros_like(amount)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of `values` over the processes, on each; all of them call it."""
        if self._fabric is not None:
            distributed.all_reduce(values)
        return values

    def wait_for_leader(self) -> None:
        """Return when rank 0, which may have worked alone for long, has called it too; all of them call it."""
        if self._fabric is not None:
            process_group.current().wait_for_all()

    def load_checkpoint(self, load: LoadCheckpoint, device: torch.device) -> dict[str, Any] | None:
        """The checkpoint that `load` gives rank 0, or None, on every process; all of them call it."""
        if self._fabric is None:
            return load(device)
        state = load(torch.device("cpu")) if self.leads else None
        received: dict[str, Any] | None = process_group.current().from_leader(state)
        return received

    def begin_step(self, seed: int, step: int) -> None:
        """Give each process global random streams of its own in `step` (dropout), whether or not the run was resumed."""
        if self._fabric is not None:
            seed_global_streams(seed, "replica", step, self.process.rank)

    def restore_global_state(self, state: dict[str, Any], device: torch.device) -> None:
        """Put back the global random streams of a checkpoint; with several processes `begin_step` sets them."""
        if self._fabric is None:
            restore_global_state(state, device)


@contextlib.contextmanager
def replicas(count: int, device: torch.device) -> Iterator[Replicas]:
    """`count` processes that train one network on `device` each, this one among them; rank 0 alone leaves the block.

    Raises RankLost if one fails, and ParamsError where `device` does not give each a GPU.
    """
    if count == 1 and not is_rank():
        yield Replicas(Process(0, 1), None)
        return
    if device.type == "cuda":
        _require_a_gpu_each(processes_here(count), device)
    # around everything: DDP's forward talks to the other processes too (it broadcasts buffers)
    with ranks(count, device=device) as process, process_group.telling_losses():
        yield Replicas(process, _fabric(process, device))


def _require_a_gpu_each(wanted: int, device: torch.device) -> None:
    if wanted > torch.cuda.device_count():
        raise ParamsError(
            f"{wanted} processes are to train on GPUs of this machine, which has {torch.cuda.device_count()}; set "
            "params.yaml: processes (or torchrun --nproc-per-node) to at most that, or `device: cpu`"
        )
    if device.index is not None and device.index != int(os.environ.get("LOCAL_RANK", "-1")):
        raise ParamsError(
            f"params.yaml: device is 'cuda:{device.index}', one GPU, and {wanted} processes are to train on one each; "
            "set `device: cuda`"
        )


def _fabric(process: Process, device: torch.device) -> "Fabric":
    # imported here: a single process does not need it
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import TorchElasticEnvironment
    from lightning_fabric.strategies import DDPStrategy

    here = int(os.environ["LOCAL_WORLD_SIZE"])
    fabric = Fabric(
        accelerator=device.type,
        devices=here,
        num_nodes=process.count // here,
        strategy=DDPStrategy(),
        plugins=[TorchElasticEnvironment()],
    )
    fabric.launch()
    return fabric
