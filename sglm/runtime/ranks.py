"""The ranks: several processes that train one model together, each on its share of the lanes.

torchrun starts them and gives each its rank. Quantities common to all (weights, trust, the states
of random generators) are kept equal by averaging gradients and measurements. Quantities of a lane
(states, dropout masks) are drawn or gathered for all lanes in the order of ranks, so that a run
does not depend on the number of processes, up to rounding. Without torchrun there is one rank, and
the functions here have no effect.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from sglm.errors import SglmError
from sglm.runtime.process import signals_handled

# Parts of the error messages that torch's backends give when another process has ended, for which
# there is no exception class.
_LOST_PROCESS_MESSAGES = (
    *("gloo", "Gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe"),
    *("NCCL communicator was aborted", "ncclRemoteError", "ncclSystemError", "timed out"),
)
_TIMEOUT = timedelta(minutes=30)  # the others wait while rank 0 saves and reports


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among `count`. All of them must make the same collective calls, in one order.

    Attributes:
        rank: The number of this process, counted from 0; rank 0 is the one that writes.
        count: Number of processes.
        control: The group for decisions made on the CPU, which do not wait for a GPU's work.
    """

    rank: int = 0
    count: int = 1
    control: dist.ProcessGroup | None = None

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def own(self, every: Tensor, dim: int = 0) -> Tensor:
        """Returns this rank's part of a tensor over all lanes, whose dimension `dim` counts lanes
        or a multiple of them."""
        if self.count == 1:
            return every
        return every.chunk(self.count, dim)[self.rank]

    def gather(self, own: Tensor, dim: int = 0) -> Tensor:
        """Returns the tensor over all lanes, of which each rank passes its part: undoes `own`."""
        if self.count == 1:
            return own
        own = own.contiguous()
        parts = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(parts, own)
        return torch.cat(parts, dim)

    def average(self, values: Sequence[Tensor]) -> None:
        """Replaces tensors of one type by their means over the ranks."""
        if self.count == 1:
            return
        flat = torch.cat([value.reshape(-1) for value in values])
        dist.all_reduce(flat)
        flat /= self.count
        for value, mean in zip(values, torch.split(flat, [v.numel() for v in values]), strict=True):
            value.copy_(mean.view_as(value))

    def totals(self, numbers: list[float]) -> list[float]:
        """Returns the sum of each number over the ranks, in float64; waits for all of them."""
        if self.count == 1:
            return numbers
        values = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(values, group=self.control)
        summed: list[float] = values.tolist()
        return summed

    def maximum(self, number: int) -> int:
        """Returns the largest of the ranks' numbers; waits for all of them."""
        return self.maxima([number])[0]

    def maxima(self, numbers: list[int]) -> list[int]:
        """Returns the `maximum` of each of several numbers, in the time of one call."""
        if self.count == 1:
            return numbers
        values = torch.tensor(numbers)
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.control)
        largest: list[int] = values.tolist()
        return largest

    def agree(self, number: int) -> bool:
        """Returns whether all ranks have the same number; the answer is the same on all ranks."""
        return self.maximum(number) == -self.maximum(-number)

    def wait(self) -> None:
        """Returns once every rank has made this call."""
        if self.count > 1:
            dist.barrier(group=self.control)


ALONE = Ranks()


def gather_lanes(ranks: Ranks, own: Tensor | None, dim: int = 0) -> Tensor | None:
    """Returns a tensor over the lanes of all ranks, to be saved; None if there is none."""
    return None if own is None else ranks.gather(own, dim)


def own_lanes(
    ranks: Ranks, every: Tensor | None, device: torch.device, *, dim: int = 0
) -> Tensor | None:
    """Returns this rank's lanes of a saved tensor, on its device: undoes `gather_lanes`."""
    return None if every is None else ranks.own(every, dim).to(device)


def expected_ranks() -> Ranks:
    """Returns this process's rank and the number of ranks, before it has joined the others. The
    result cannot make collective calls."""
    if not _launched_together():
        return ALONE
    return Ranks(rank=int(os.environ["RANK"]), count=int(os.environ["WORLD_SIZE"]))


def _launched_together() -> bool:
    # Batch systems set some of these variables also for programs that do not run together.
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    return not alone and {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def local_rank() -> int | None:
    """Returns the number of this process among those on its machine, counted from 0; None if it was
    not launched with others."""
    return int(os.environ.get("LOCAL_RANK", "0")) if _launched_together() else None


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Joins the processes that torchrun has started, and leaves them at the end of the block.

    Args:
        device: The device: GPUs communicate through NCCL, CPUs through gloo.

    Raises:
        SglmError: Another process was lost.
    """
    if not _launched_together():
        yield ALONE
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        # While this waits for the others, which may never start, a signal ends the process at once.
        with signals_handled(signal.SIG_DFL, signal.SIGINT, signal.SIGTERM):
            store, rank, count = next(rendezvous("env://"))
            # After a restart torchrun's store still has the addresses of the processes that
            # ended. (Where agents of several machines count their restarts differently, the first
            # restart fails, and the next one succeeds.)
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = dist.PrefixStore(f"attempt {attempt}", store)  # type: ignore[attr-defined]
            dist.init_process_group(
                backend, store=store, rank=rank, world_size=count, timeout=_TIMEOUT
            )
            control = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        yield Ranks(rank=rank, count=count, control=control)
    except RuntimeError as error:
        if not any(message in str(error) for message in _LOST_PROCESS_MESSAGES):
            raise
        raise SglmError(
            "another process of this training has ended or cannot be reached; the same command"
            " continues from the last checkpoint"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def averaged_in_backward(module: nn.Module) -> DistributedDataParallel:
    """Wraps a module so that its backward pass averages its gradients over all ranks.

    Its buffers must be and stay the same on all ranks: they are not sent.
    """
    # torch has renamed this argument, and warns of the old name.
    known = signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    settings: dict[str, Any] = {name: False}
    return DistributedDataParallel(module, **settings)
