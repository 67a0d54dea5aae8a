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

from ..errors import BratsError, ConfigError
from ..wording import KILLED
from .devices import choose_device
from .machine import available_cpus
from .signals import end_without_clearing_up, name_of

Item = TypeVar("Item")

# For what all do at once; a step takes seconds, the validation of one case more minutes at most.
_PATIENCE = timedelta(minutes=30)

# The first process of a machine prepares the cases of a run while the others wait.
_PATIENCE_WITH_PREPARING = timedelta(hours=12)

# Seconds in which a process that has failed may report why, and end, before those that miss it do:
# the status of the first that ends is that of all.
_GRACE = 2

# Seconds that processes have to end after one has failed or a stop came. One that waits for a peer
# within NCCL hears nothing, and is killed then; PyTorch gives it 30.
_SECONDS_TO_END = 10


class PeerError(BratsError):
    """Another process of the training has ended, and has reported why itself."""


@dataclass(frozen=True)
class Group:
    """This process among those that train together; by default it is alone.

    Attributes:
        rank: Number of this process, from 0.
        size: Processes in all.
        local_rank: Number of this process on its machine.
        local_size: Processes on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def from_environment(cls) -> Group:
        """The group that `torchrun` put this process into.

        Raises:
            ConfigError: If the environment does not say it in whole numbers.
        """
        defaults = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
        try:
            return cls(*(int(os.environ.get(name, value)) for name, value in defaults.items()))
        except ValueError as error:
            said = ", ".join(
                f"{name}={os.environ[name]}" for name in defaults if name in os.environ
            )
            raise ConfigError(
                f"the environment says {said}, which are not whole numbers",
                hint="torchrun sets these variables: unset them to train without it",
            ) from error

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    def device(self, devices: Sequence[torch.device]) -> torch.device:
        """This process's own of the devices asked for.

        Of several, and of all GPUs of a machine where one without a number is asked for, it is
        the one at the process's place. A process to which its launcher shows a single GPU (Slurm's
        `--gpus-per-task=1`) has that one.

        Raises:
            ConfigError: If there are more processes than GPUs.
            DeviceError: If this machine does not have it.
        """
        first, place = devices[0], self.local_rank
        if len(devices) > 1:
            if self.local_size > len(devices):
                raise self._too_few(len(devices))
            return devices[place]
        if first.type != "cuda" or self.local_size == 1:
            return first
        visible = torch.cuda.device_count()
        if visible == 1:
            return choose_device("cuda:0")
        if place >= visible:
            raise self._too_few(visible)
        return choose_device(f"cuda:{place}")

    def _too_few(self, gpus: int) -> ConfigError:
        return ConfigError(
            f"{self.local_size} processes train on this machine, and have {gpus} GPUs",
            hint=f"each needs its own: torchrun --nproc-per-node {gpus}",
        )

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Connect to the other processes while the block runs.

        An error of one process ends all, and is reported at once: that process does not wait for
        the others, which NCCL would have it do before it disconnects.

        Raises:
            PeerError: If one of them ends before the block does.
            ConfigError: If two of them have the same GPU.
        """
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if self.size == 1:
            yield
            return
        torch.set_num_threads(max(1, min(torch.get_num_threads(), self.of_each(available_cpus()))))
        try:
            _connect(device)
            yield
        except RuntimeError as error:
            _abort(device)
            if "Duplicate GPU" in str(error):
                raise ConfigError(
                    f"another process of this training has {device} as well",
                    hint="start no more processes than there are GPUs: torchrun --nproc-per-node",
                ) from error
            if not _is_of_a_peer(error):
                raise
            time.sleep(_GRACE)
            raise PeerError(
                "another process of this training has ended", hint="see what it reported"
            ) from error
        except BaseException:
            _abort(device)
            raise
        dist.destroy_process_group()

    @contextmanager
    def one_by_machine(self) -> Iterator[None]:
        """The first process of every machine goes ahead; the others follow when it is done."""
        if self.size == 1:
            yield
            return
        patient = dist.new_group(backend="gloo", timeout=_PATIENCE_WITH_PREPARING)
        if self.local_rank:
            dist.barrier(patient)
        yield
        if not self.local_rank:
            dist.barrier(patient)

    def of_each(self, count: int) -> int:
        """CPUs per process on this machine, given their total."""
        return count // self.local_size

    def raise_together(self, error: BratsError | None) -> None:
        """Go on only if no process has an error; else all end.

        Raises:
            BratsError: `error`, in the first process that has one.
            PeerError: In the others.
        """
        failed = [error is not None]
        if self.size > 1:
            failed = [False] * self.size
            dist.all_gather_object(failed, error is not None)
        if error is not None and failed.index(True) == self.rank:
            raise error
        if any(failed):
            raise PeerError(
                "another process of this training has failed", hint="see what it reported"
            )

    def share_buffers(self, network: torch.nn.Module) -> None:
        """Average the buffers, batch norm's statistics, over all processes.

        Each has seen patches of its own; what is validated and saved must be one network.
        """
        if self.size == 1:
            return
        for buffer in network.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= self.size

    def mean(self, value: float) -> float:
        """The mean of a number over all processes."""
        if self.size == 1:
            return value
        shared = torch.tensor(value)
        dist.all_reduce(shared)
        return shared.item() / self.size

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of some work."""
        return items[self.rank :: self.size] if self.size > 1 else items

    def gathered(self, results: Sequence[Item]) -> list[Item]:
        """The results of all processes for their `share`, in the order of the whole."""
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


def _connect(device: torch.device) -> None:
    """Connect this process to the others: NCCL for what lies on GPUs, gloo for all else."""
    if device.type == "cuda":
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=_PATIENCE, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=_PATIENCE)


def _abort(device: torch.device) -> None:
    """Leave the others without waiting for them: NCCL now, gloo when the process ends."""
    end_without_clearing_up()
    if device.type == "cuda" and dist.is_initialized():
        dist.distributed_c10d._abort_process_group()


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
    if hasattr(settings, "shutdown_timeout"):  # PyTorch before 2.9 has it not
        settings.shutdown_timeout = _SECONDS_TO_END
    try:
        elastic_launch(settings, command[0])(*command[1:])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise _death(rank, processes, failure.exitcode) from error
        return int(failure.exitcode)
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def _death(rank: int, processes: int, exitcode: int) -> BratsError:
    """The error for a process that was ended by a signal."""
    how = KILLED if exitcode == -signal.SIGKILL else f"was ended by {name_of(exitcode)}"
    hint = "end other programs or lower batch_size, and continue with --resume"
    if exitcode == -signal.SIGABRT:  # NCCL's watchdog ends a process that has waited for too long
        how += ", most likely because another one no longer answers"
        hint = "check the network and nvidia-smi on each machine, and continue with --resume"
    return BratsError(f"process {rank + 1} of {processes} {how}", hint=hint)
