"""How a network learns: a generator of epochs, the same again for the same seed."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from ..compute.devices import dtype_name
from ..compute.distributed import ALONE, Group
from ..compute.machine import available_cpus
from ..data.labels import LabelScheme
from ..model.checkpoint import Checkpoint
from ..prepared.store import StoredCase
from .config import TrainConfig
from .events import CaseValidated, Epoch, Profile, StepDone
from .learner import Learner
from .sampling import Patches, batches
from .transfer import Batch

Result = TypeVar("Result")

MOST_WORKERS = 8
"""Reading patches from a store needs few processes."""


def train(
    config: TrainConfig,
    training: Sequence[StoredCase],
    validation: Sequence[StoredCase],
    scheme: LabelScheme,
    device: torch.device,
    *,
    resume: Checkpoint | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
    group: Group = ALONE,
    max_seconds: float = math.inf,
) -> Iterator[StepDone | CaseValidated | Epoch]:
    """Train a network, yielding after every step, validated case and epoch.

    The caller decides what to do with an epoch: print it, save its checkpoint, or stop by leaving
    the loop. Nothing here writes a file or a line of text.

    Args:
        config: What to learn, and how.
        training: Cases that patches are drawn from.
        validation: Cases that are segmented whole to score an epoch; without any, the last epoch
            is the best.
        scheme: The label scheme of the stored cases.
        device: Where to compute.
        resume: `last.pt` of the same run, to resume from.
        weights: Values that the network starts from, of all its tensors or some.
        group: The processes that train together: each reads `batch_size` patches per step.
        max_seconds: Stop after the epoch with which this time is up, or before one that would
            likely not end in it.

    Raises:
        TrainingError: If the loss is no longer a number, or memory is out.
        CheckpointError: If `resume` holds no state to resume from.
    """
    started = time.monotonic()
    learner = Learner(config, scheme, device, resume, group, weights)
    feed = _feed(config, training, learner.progress.epoch, group, device)
    while learner.progress.epoch < config.epochs and not learner.progress.stops(config):
        before = time.monotonic()
        epoch = yield from learner.epoch(feed, validation)
        now = time.monotonic()
        late = group.as_the_first(now - started + (now - before) > max_seconds)
        if late and epoch.stops is None and epoch.number < config.epochs:
            epoch = replace(epoch, stops="time")
        yield epoch
        if late:
            return


def profile(
    config: TrainConfig,
    training: Sequence[StoredCase],
    scheme: LabelScheme,
    device: torch.device,
    *,
    steps: int = 20,
) -> Profile:
    """Train for `steps` steps after as many to warm up, keep nothing, and report the time."""
    short = config.model_copy(update={"steps_per_epoch": steps, "epochs": 2})
    learner = Learner(short, scheme, device, None, ALONE)
    feed = _feed(short, training, 0, ALONE, device)
    _result(learner.steps(feed))
    started = time.perf_counter()
    _, waited = _result(learner.steps(feed))
    seconds = time.perf_counter() - started
    return Profile(
        data_wait_percent=100 * waited / seconds,
        patches_per_second=steps * config.batch_size / seconds,
        workers=worker_count(config, ALONE),
        cpus=available_cpus(),
        device=device.type,
        precision=dtype_name(learner.dtype),
    )


def _result(work: Generator[Any, None, Result]) -> Result:
    """What a generator returns, whatever it yields before."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: Result = end.value
            return result


def worker_count(config: TrainConfig, group: Group) -> int:
    """Processes that read patches for this one: as configured, or its share of CPUs, less one."""
    if config.workers is not None:
        return config.workers
    return max(0, min(MOST_WORKERS, group.of_each(available_cpus()) - 1))


def _feed(
    config: TrainConfig,
    training: Sequence[StoredCase],
    epoch: int,
    group: Group,
    device: torch.device,
) -> Iterator[Batch]:
    """This process's batches of the epochs after `epoch`, on its device."""
    patches = Patches(
        training, edge=config.patch_size, tumour_share=config.tumour_share, seed=config.seed
    )
    each = config.batch_size
    together = each * group.size
    per_epoch = config.steps_per_epoch * config.accumulate * together
    first = range(epoch * per_epoch, config.epochs * per_epoch, together)
    numbers = [start + group.rank * each + place for start in first for place in range(each)]
    workers = worker_count(config, group)
    return batches(patches, numbers, batch_size=each, workers=workers, device=device)
