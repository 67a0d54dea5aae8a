"""Patch sampling: balanced, and in the same order for any number of workers."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from multiprocessing.reduction import DupFd
from threading import Thread
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
import torchio as tio
from torch.utils.data import DataLoader

from ..compute.signals import interrupts_held_back, name_of
from ..data.labels import REGIONS
from ..errors import BratsError
from ..prepared.store import StoredCase
from ..wording import KILLED
from .transfer import Batch, Transfer

_CPU = torch.device("cpu")

_PREFETCH = 2
"""Patches that each worker reads ahead; DataLoader's default."""


class WorkerError(BratsError):
    """A worker process that reads patches has failed."""


class Patches:
    """Patch number `i` of a run, read from the store alone."""

    def __init__(
        self, cases: Sequence[StoredCase], *, edge: int, tumour_share: float, seed: int
    ) -> None:
        self.cases = cases  # no copy, which would open all those of a store
        self.edge = edge
        self.tumour_share = tumour_share
        self.seed = seed

    def __getitem__(self, index: int) -> tio.Subject:
        case, corner = self.draw(index)
        return _subject(*cut(case, corner, self.edge), case.id)

    def draw(self, index: int) -> tuple[StoredCase, npt.NDArray[np.int_]]:
        """Case and lowest corner of patch `index`, which depend on seed and index only."""
        rounds, place = divmod(index, len(self.cases))
        # Every case once per round, in a new order each round.
        order = np.random.default_rng((self.seed, 0, rounds)).permutation(len(self.cases))
        case = self.cases[order[place]]
        random = np.random.default_rng((self.seed, 1, index))
        kinds = [name for name in REGIONS if len(case.centres[name])]
        tumour = kinds and random.random() < self.tumour_share
        centres = case.centres[kinds[random.integers(len(kinds))] if tumour else "brain"]
        centre = centres[random.integers(len(centres))].astype(int)
        room = np.maximum(np.array(case.labels.shape) - self.edge, 0)
        return case, np.clip(centre - self.edge // 2, 0, room)


def batches(
    patches: Patches,
    numbers: Sequence[int],
    *,
    batch_size: int,
    workers: int,
    device: torch.device = _CPU,
) -> Iterator[Batch]:
    """Batches of the patches of these numbers, in this order, through a TorchIO queue.

    They are on `device`, or being copied there; operations on the device wait for the copy.

    One queue serves a whole run, so that workers start once and read ahead during validation.

    Raises:
        UnreadableFileError: If a stored case is damaged.
        WorkerError: If the workers cannot be started, or one was killed.
    """
    if not numbers:
        return
    shape = _PREFETCH * workers + batch_size, patches.cases[0].images.shape[0], patches.edge
    with _unnamed_file(_Slots.size(*shape)) as file:
        slots = _Slots(file, *shape)
        queue = _start(_Reader(patches, numbers, slots), batch_size, workers)
    try:
        transfer = Transfer(device)
        stack = partial(_stack, transfer=transfer)
        yield from map(transfer.send, DataLoader(queue, batch_size, collate_fn=stack))
    except RuntimeError as error:
        ended = [worker.exitcode for worker in getattr(queue.subjects_iterable, "_workers", [])]
        if any(ended):
            raise _death(next(filter(None, ended)), workers) from error
        raise


def cut(
    case: StoredCase, corner: npt.NDArray[np.int_], edge: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The patch of `edge` voxels at `corner`; background where it reaches beyond the case.

    Returns:
        Images (C, edge, edge, edge) float16 and labels (edge, edge, edge) uint8.
    """
    box = tuple(slice(start, start + edge) for start in corner)
    images, labels = case.images[(slice(None), *box)], case.labels[box]
    short = [edge - side for side in labels.shape]
    if any(short):
        # Padded by half on each side, as the window at inference is.
        pad = [(gap // 2, gap - gap // 2) for gap in short]
        images, labels = np.pad(images, [(0, 0), *pad]), np.pad(labels, pad)
    return torch.from_numpy(images), torch.from_numpy(labels)


# --- from process to process -------------------------------------------------------------------


class _Slots:
    """Shared memory for patches on their way to the training process, used as a ring of slots.

    A DataLoader would make new shared memory for every patch. The first touch of that takes ten
    times as long as the copy, and it comes out of /dev/shm, which containers keep small.
    """

    def __init__(self, file: IO[bytes], count: int, channels: int, edge: int) -> None:
        self.handle = file.fileno()  # for as long as workers are being started
        memory = torch.frombuffer(mmap.mmap(self.handle, 0), dtype=torch.uint8)
        bound = 2 * channels * count * edge**3
        self.images = memory[:bound].view(torch.float16).view(count, channels, edge, edge, edge)
        self.labels = memory[bound:].view(count, edge, edge, edge)

    def __reduce__(self) -> tuple[Any, ...]:
        return _attached, (DupFd(self.handle), *self.images.shape[:3])

    @staticmethod
    def size(count: int, channels: int, edge: int) -> int:
        """Bytes of `count` slots: float16 images and uint8 labels."""
        return count * (2 * channels + 1) * edge**3

    def put(self, index: int, patch: tio.Subject) -> None:
        """Copy patch `index` into its slot, over one that has been used."""
        self.images[index % len(self.images)] = patch["images"][tio.DATA]
        self.labels[index % len(self.labels)] = patch["labels"][tio.DATA][0]

    def get(self, index: int, case_id: str) -> tio.Subject:
        """Patch `index`, as views of the shared memory."""
        place = index % len(self.images)
        return _subject(self.images[place], self.labels[place], case_id)


class _Reader(tio.SubjectsDataset):  # type: ignore[misc]
    """The data set of the workers: reads a patch, puts it into its slot and sends its number.

    A `tio.Queue` moves whole subjects from its workers to the training process and cuts patches
    there; here a subject *is* a patch, so that volumes never travel.
    """

    def __init__(self, patches: Patches, numbers: Sequence[int], slots: _Slots) -> None:
        # TorchIO's own __init__ wants subjects whose images it can open.
        self.patches = patches
        self.numbers = numbers
        self.slots = slots

    def dry_iter(self) -> range:
        """The subjects as the queue counts them: one per patch."""
        return range(sys.maxsize)

    def __getitem__(self, index: int) -> tuple[int, str] | BratsError:
        try:
            patch = self.patches[self.numbers[index]]
        except BratsError as error:
            return error  # raised here, it would reach the training as the text of a traceback
        self.slots.put(index, patch)
        return index, patch["case_id"]


class _Arrival(tio.data.PatchSampler):  # type: ignore[misc]
    """The queue's sampler: returns the patch that a worker sent, or raises its error."""

    def __init__(self, slots: _Slots) -> None:
        self.slots = slots

    def __call__(self, sent: Any, num_patches: int | None = None) -> Iterator[tio.Subject]:
        if isinstance(sent, BratsError):
            raise sent
        yield self.slots.get(*sent)


def _start(reader: _Reader, batch_size: int, workers: int) -> tio.Queue:
    """A queue whose workers have started."""

    def start() -> tio.Queue:
        with warnings.catch_warnings():
            # Of a fork beside threads (Python 3.12): the workers only read. Of more workers than
            # CPUs (PyTorch): whoever asks for them gets them.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded")
            warnings.filterwarnings("ignore", "This DataLoader will create")
            return tio.Queue(
                reader,
                max_length=batch_size,
                samples_per_volume=1,
                sampler=_Arrival(reader.slots),
                subject_sampler=range(len(reader.numbers)),
                num_workers=workers,
                shuffle_subjects=False,
                shuffle_patches=False,  # their order is random, and the same for any workers
            )

    try:
        # As many as a DataLoader needs: one that fails half-way prints a traceback as well.
        tried: list[object] = [multiprocessing.Queue() for _ in range(workers + 3) if workers]
        del tried
        with interrupts_held_back():
            return _in_a_thread(start)
    except OSError as error:
        raise WorkerError(
            f"cannot start {workers} processes that read patches: {error.strerror or error}",
            hint="is /dev/shm full? free it, or read within the training process: --workers 0",
        ) from error


def _in_a_thread(start: Callable[[], tio.Queue]) -> tio.Queue:
    """The result of `start`, called in a thread.

    In the main thread, PyTorch would have a worker's death raise an error wherever the training is
    at that moment; out of it, the error comes when the next patch is asked for. (Not by a
    `ThreadPoolExecutor`: a process forked in one of its threads does not end well.)
    """
    future: Future[tio.Queue] = Future()

    def run() -> None:
        try:
            future.set_result(start())
        except Exception as error:
            future.set_exception(error)

    thread = Thread(target=run)
    thread.start()
    thread.join()
    return future.result()


def _death(exitcode: int, workers: int) -> WorkerError:
    if exitcode == -signal.SIGKILL:
        return WorkerError(
            f"a process that reads patches {KILLED}",
            hint=f"use fewer of them: --workers {workers // 2}",
        )
    return WorkerError(
        f"a process that reads patches ended with {name_of(exitcode)}",
        hint="--workers 0 reads within the training process, which shows what is wrong",
    )


def _subject(images: torch.Tensor, labels: torch.Tensor, case_id: str) -> tio.Subject:
    return tio.Subject(
        images=tio.ScalarImage(tensor=images),
        labels=tio.LabelMap(tensor=labels[None]),
        case_id=case_id,
    )


def _stack(subjects: Sequence[tio.Subject], transfer: Transfer) -> Batch:
    return transfer.stack(
        [subject["images"][tio.DATA].numpy() for subject in subjects],
        [subject["labels"][tio.DATA][0].numpy() for subject in subjects],
        [subject["case_id"] for subject in subjects],
    )


@contextmanager
def _unnamed_file(size: int) -> Iterator[IO[bytes]]:
    """An in-memory file where the system has such; it goes with the last process that holds it."""
    if hasattr(os, "memfd_create"):
        file: IO[bytes] = os.fdopen(os.memfd_create("brats-patches"), "r+b", 0)
    else:
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
    with file:
        file.truncate(size)
        yield file


def _attached(handle: Any, count: int, channels: int, edge: int) -> _Slots:
    with os.fdopen(handle.detach(), "r+b", 0) as file:
        return _Slots(file, count, channels, edge)
