"""Processes that train one network together, as `torchrun` starts them."""

from __future__ import annotations

import logging
import os
import signal
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ..errors import BratsError
from ..wording import KILLED
from .signals import name_of

Item = TypeVar("Item")

# The first process of a machine prepares the cases of a run while the others wait.
_PATIENCE = timedelta(hours=12)

# Seconds in which a process that has failed may report why, and end, before those that miss it do:
# the status of the first that ends is that of all.
_GRACE = 5


class PeerError(BratsError):
    """Another process of the training has ended, and has reported why itself."""


@dataclass(frozen=True)
class Group:
    """This process among those that train together; by default it is alone.

    Attributes:
        rank: Number of this process, from 0.
        size: Processes in all.
        local_rank: Number of this process on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> Group:
        """The group that `torchrun` put this process into."""
        rank, size, local = (
            int(os.environ.get(name, default))
            for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
        )
        return cls(rank, size, local)

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    def device(self, devices: Sequence[torch.device]) -> torch.device:
        """This process's own of some devices; one without a number means all of a machine."""
        if len(devices) > 1:
            return devices[self.local_rank % len(devices)]
        if self.size > 1 and devices[0].type == "cuda":
            return torch.device("cuda", self.local_rank)
        return devices[0]

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Be connected to the others.

        Raises:
            PeerError: If one of them ends before the block does.
        """
        if self.size == 1:
            yield
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=_PATIENCE)
        try:
            yield
        except RuntimeError as error:
            if not _is_of_a_peer(error):
                raise
            time.sleep(_GRACE)
            raise PeerError(
                "another process of this training has ended", hint="see what it reported"
            ) from error
        finally:
            dist.destroy_process_group()

    @contextmanager
    def one_by_machine(self) -> Iterator[None]:
        """The first process of every machine goes ahead; the others follow when it is done."""
        if self.size > 1 and self.local_rank:
            dist.barrier()
        yield
        if self.size > 1 and not self.local_rank:
            dist.barrier()

    def mean(self, value: float, device: torch.device) -> float:
        """The mean of a number over all processes."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, device=device)
        dist.all_reduce(shared)
        return shared.item() / self.size

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of some work."""
        return items[self.rank :: self.size] if self.size > 1 else items

    def gathered(self, results: Sequence[Item]) -> list[Item]:
        """What all have made of their `share`, in the order of the whole; the same everywhere."""
        if self.size == 1:
            return list(results)
        parts: list[list[Item]] = [[] for _ in range(self.size)]
        dist.all_gather_object(parts, list(results))
        count = sum(map(len, parts))
        return [parts[place % self.size][place // self.size] for place in range(count)]

    def as_the_first(self, value: Item) -> Item:
        """The first process's value, in every process."""
        if self.size == 1:
            return value
        shared = [value]
        dist.broadcast_object_list(shared)
        return shared[0]


def _is_of_a_peer(error: RuntimeError) -> bool:
    """Whether an error is that of a connection whose other end is gone."""
    # gloo has no class for it.
    words = ("closed by peer", "reset by peer", "Broken pipe")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


ALONE = Group()


def summed(local: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes that train together, which gradients pass through."""
    if not (dist.is_available() and dist.is_initialized()):
        return local
    total: torch.Tensor = _Sum.apply(local)  # type: ignore[no-untyped-call]
    return total


class _Sum(torch.autograd.Function):
    """Each process's loss has the sum in it, so that its share gets the gradients of all."""

    @staticmethod
    def forward(_: Any, local: torch.Tensor) -> torch.Tensor:
        total = local.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def launch(command: Sequence[str], processes: int) -> int:
    """Run a command in several processes of this machine that train together, as `torchrun` does.

    Returns:
        The exit status of the first that failed, or 0.

    Raises:
        BratsError: If that was killed.
    """
    # Each process reports its own mistakes.
    os.environ.setdefault("LOGLEVEL", "CRITICAL")
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(settings, command[0])(*command[1:])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise BratsError(
                f"process {rank + 1} of {processes} {_how_ended(failure.exitcode)}",
                hint="end other programs or lower batch_size, and continue with --resume",
            ) from error
        return int(failure.exitcode)
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def _how_ended(exitcode: int) -> str:
    return KILLED if exitcode == -signal.SIGKILL else f"was ended by {name_of(exitcode)}"
