"""A batch of cases on the workers of an executor, each of which computes on a device of its own."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial

from ..compute.devices import choose_devices, describe
from ..compute.executors import as_completed
from ..compute.processes import outcome_of
from ..errors import BratsError, ConfigError
from .batch import Batch, Share, Stages
from .outputs import Job, Prediction

_CASES_AT_A_TIME = 3
"""Of a worker with many threads: one is read, one computed and one written."""


def device_of_workers(executor: Executor, device: str, gpu: str | None) -> list[str]:
    """The device that the first worker to answer computes on.

    Raises:
        ConfigError: If several GPUs are asked for.
        DeviceError: If that worker has no such device.
    """
    if gpu is not None and "," in gpu:
        raise ConfigError(
            f"--gpu {gpu} is for one machine; each worker of a scheduler has one device",
            hint="start one worker per GPU, each with its own CUDA_VISIBLE_DEVICES, and leave out "
            "--gpu",
        )
    return list(as_completed(_describe_chosen, [(device, gpu)], executor))


def _describe_chosen(wanted: tuple[str, str | None]) -> str:
    [device] = choose_devices(*wanted)
    return f"{describe(device)} of each worker"


def run_on_workers(
    batch: Batch,
    executor: Executor,
    jobs: Sequence[Job],
    device: str,
    gpu: str | None,
    on_share: Share,
) -> Iterator[Prediction | BratsError]:
    """As `Batch.run`, but on the device of whoever does the work, in any process of any machine."""
    batch.require_models()
    for job in jobs:  # as they may go on when this process is gone
        batch.withdraw(job)
    # A case whose worker was lost may have been written. The manifest is written here: lines that
    # several machines append to one file may get lost.
    away = replace(batch, manifest=None, overwrite=True)
    outcomes = as_completed(
        _Segment(away, device, gpu),
        jobs,
        executor,
        name=lambda job: f"case {job.case.id}",
        lost=lambda job, error: error,
    )
    return _recorded(batch, outcomes, on_share)


def _recorded(
    batch: Batch, outcomes: Iterator[Prediction | BratsError], on_share: Share
) -> Iterator[Prediction | BratsError]:
    for outcome in outcomes:
        if isinstance(outcome, Prediction):
            batch.record(outcome)
        on_share(1)
        yield outcome


# --- in a worker ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Segment:
    """Segments one case on a worker, which keeps the models for the others of the batch."""

    batch: Batch
    device: str
    gpu: str | None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __call__(self, job: Job) -> Prediction | BratsError:
        return outcome_of(partial(_here(self).segment, job))


class _Here:
    """The models of a batch in this process, whose threads take turns at the device."""

    def __init__(self, task: _Segment) -> None:
        self.id = task.id
        self.room = threading.Semaphore(_CASES_AT_A_TIME)
        self.turn = threading.Lock()
        [device] = choose_devices(task.device, task.gpu)
        self.stages = Stages(task.batch, task.batch.predictor(device), lambda share: None)

    def segment(self, job: Job) -> Prediction:
        with self.room:
            work = self.stages.load(job)
            with self.turn:
                work = self.stages.compute(work)
            return self.stages.finish(work)


_of_last_batch: list[_Here] = []
_reading = threading.Lock()


def _here(task: _Segment) -> _Here:
    """The models of a batch, which are read when its first case comes."""
    with _reading:
        if not any(each.id == task.id for each in _of_last_batch):
            _of_last_batch.clear()  # before others are read: they take memory
            _of_last_batch.append(_Here(task))
        return _of_last_batch[0]
