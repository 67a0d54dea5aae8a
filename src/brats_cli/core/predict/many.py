"""Many cases, one after another on each device: reading, computing and writing at the same time."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from ... import __version__
from ..compute.devices import describe
from ..compute.processes import Send, streamed
from ..data.cases import Case, case_at, survey
from ..errors import BratsError, CaseError, OutputError
from ..model.checkpoint import Checkpoint
from ..model.windows import CPU
from ..wording import KILLED
from ..writing import require_writable
from .predictor import Loaded, PredictConfig, Predictor, Samples, companion

Item = TypeVar("Item")
Input = TypeVar("Input")
Answer = TypeVar("Answer")
Outcome = TypeVar("Outcome")

FORMAT = "brats-predictions/1"

MANIFEST = "predictions.jsonl"
"""In a folder of predictions: a line for each, in the order of their making; of several lines for
one case the last holds."""


@dataclass(frozen=True)
class Job:
    """A case to segment, and the file for its label map."""

    case: Case
    file: Path


@dataclass(frozen=True)
class Prediction:
    """What was made of a case; a line of the manifest.

    Attributes:
        case: Case id.
        file: Its label map.
        labels: The label scheme.
        models: The checkpoints.
        device: What computed.
        precision: The networks' arithmetic.
        tta: Whether the flips were averaged.
        modalities: Those that were used.
        missing: Those that the networks were given empty.
        volumes_mm3: By region.
        doubt: By region, 1 less the Dice to be expected.
        review: Mean doubt: the higher, the sooner a person should look.
        seconds: Reading, computing and writing, which may overlap with other cases.
        network_seconds: Of them, the networks'.
        finished: Date and time.
        versions: Of brats and torch.
    """

    case: str
    file: str
    labels: str
    models: tuple[str, ...]
    device: str
    precision: str
    tta: bool
    modalities: tuple[str, ...]
    missing: tuple[str, ...]
    volumes_mm3: Mapping[str, float]
    doubt: Mapping[str, float]
    review: float
    seconds: float
    network_seconds: float
    finished: str
    versions: Mapping[str, str]

    def row(self) -> dict[str, Any]:
        """As plain values."""
        return {"format": FORMAT, **asdict(self)}


Share = Callable[[float], None]
"""Hears of progress: the part of a case's work that was done since it was last called."""


@dataclass(frozen=True)
class Batch:
    """How a batch of cases is predicted, on any number of devices.

    Attributes:
        models: Checkpoints; several are an ensemble.
        config: How cases are segmented.
        manifest: The file to note predictions in, if any.
        overwrite: Whether outputs may exist.
    """

    models: tuple[Path, ...]
    config: PredictConfig
    manifest: Path | None = None
    overwrite: bool = False

    def run(
        self,
        jobs: Sequence[Job],
        devices: Sequence[torch.device],
        on_share: Share = lambda share: None,
    ) -> Iterator[Prediction | BratsError]:
        """Segment cases: what was made of each, or what was wrong, when it is done.

        The models are read at once. Several devices share the cases out, each in a process.

        Raises:
            BratsError: If a model cannot be read, or several make no ensemble.
        """
        predictor = self._predictor(devices[0] if len(devices) == 1 else CPU)
        if len(devices) == 1:
            return self._with(predictor, jobs, on_share)
        shares = [jobs[first :: len(devices)] for first in range(len(devices))]
        work = [(device, share) for device, share in zip(devices, shares, strict=True) if share]
        return self._in_processes(work, on_share)

    def _in_processes(
        self, work: Sequence[tuple[torch.device, Sequence[Job]]], on_share: Share
    ) -> Iterator[Prediction | BratsError]:
        """The cases of each device in a process of its own, which sends floats for progress."""
        tasks = [partial(self._send, device, jobs) for device, jobs in work]
        for received in streamed(tasks, ended=lambda number, status: _ended(*work[number], status)):
            if isinstance(received, float):
                on_share(received)
            else:
                yield received

    def _send(self, device: torch.device, jobs: Sequence[Job], send: Send) -> None:
        for outcome in self._with(self._predictor(device), jobs, send):
            send(outcome)

    def _predictor(self, device: torch.device) -> Predictor:
        return Predictor([Checkpoint.load(path) for path in self.models], device, self.config)

    def _with(
        self, predictor: Predictor, jobs: Sequence[Job], on_share: Share
    ) -> Iterator[Prediction | BratsError]:
        stages = _Stages(self, predictor, on_share)
        return overlapped(jobs, stages.load, stages.compute, stages.finish)


@dataclass(frozen=True)
class _Work:
    """A case on its way through the stages, and the seconds it has taken."""

    job: Job
    loaded: Loaded
    seconds: float
    samples: Samples | None = None
    network_seconds: float = 0


@dataclass(frozen=True)
class _Stages:
    """What is done to each case; the shares are about what each takes on two CPU cores."""

    batch: Batch
    predictor: Predictor
    on_share: Share

    def load(self, job: Job) -> _Work:
        started = time.perf_counter()
        loaded = self.predictor.load(job.case)
        self.on_share(0.2)
        return _Work(job, loaded, time.perf_counter() - started)

    def compute(self, work: _Work) -> _Work:
        started = time.perf_counter()
        samples = self.predictor.compute(work.loaded, lambda share: self.on_share(0.7 * share))
        passed = time.perf_counter() - started
        done = work.loaded.without_images()
        return _Work(work.job, done, work.seconds + passed, samples, passed)

    def finish(self, work: _Work) -> Prediction:
        started = time.perf_counter()
        assert work.samples is not None
        found = self.predictor.decode(work.loaded, work.samples)
        found.write(work.job.file, overwrite=self.batch.overwrite)
        device = self.predictor.device
        prediction = Prediction(
            case=work.job.case.id,
            file=str(work.job.file),
            labels=found.scheme.name,
            models=tuple(map(str, self.batch.models)),
            device=describe(device),
            precision=self.predictor.precision,
            tta=self.batch.config.tta,
            modalities=found.modalities,
            missing=tuple(
                name for name in self.predictor.modalities if name not in found.modalities
            ),
            volumes_mm3=found.volumes_mm3(),
            doubt={region: round(value, 4) for region, value in found.doubt.items()},
            review=round(found.review, 4),
            seconds=round(work.seconds + time.perf_counter() - started, 3),
            network_seconds=round(work.network_seconds, 3),
            finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            versions={"brats": __version__, "torch": torch.__version__},
        )
        if self.batch.manifest:
            append_line(self.batch.manifest, prediction.row())
        self.on_share(0.1)
        return prediction


def find_each(paths: Sequence[Path]) -> tuple[list[Case], list[BratsError]]:
    """The cases at `paths`, each a case or a data set, and what is wrong with the others."""
    cases: dict[str, Case] = {}
    wrong: list[BratsError] = []
    for path in paths:
        try:
            found, clashes = survey(path) if path.is_dir() else ([case_at(path)], [])
        except BratsError as error:
            found, clashes = [], [error]
        wrong += clashes
        for case in found:
            other = cases.setdefault(case.id, case)
            if other.folder.resolve() != case.folder.resolve():
                wrong.append(CaseError.twice(case.id, other.folder, case.folder))
    return list(cases.values()), wrong


def complete(job: Job, config: PredictConfig) -> bool:
    """Whether all that would be written for a case is there; files are whole or absent."""
    return all(file.exists() for file in outputs(job, config))


def outputs(job: Job, config: PredictConfig) -> list[Path]:
    """The files that are written for a case, the label map last."""
    return [*(companion(job.file, name) for name in config.companions), job.file]


def require_outputs_writable(
    jobs: Sequence[Job], config: PredictConfig, *, overwrite: bool
) -> None:
    """Check, before any work, that every output could be written now.

    Raises:
        OutputExistsError: If one exists and `overwrite` is false.
        OutputError: If the folder for it may not be written to.
    """
    for job in jobs:
        for file in outputs(job, config):
            require_writable(file, overwrite=overwrite)


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Add a line of JSON to a file, in one write, so that processes may share it.

    Raises:
        OutputError: If it cannot be written.
    """
    line = json.dumps(content, allow_nan=False) + "\n"
    try:
        place = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(place, line.encode())
        finally:
            os.close(place)
    except OSError as error:
        raise OutputError(path, error.strerror or str(error)) from error


# --- at the same time --------------------------------------------------------------------------


def overlapped(
    items: Sequence[Item],
    load: Callable[[Item], Input],
    compute: Callable[[Input], Answer],
    finish: Callable[[Answer], Outcome],
) -> Iterator[Outcome | BratsError]:
    """`finish(compute(load(item)))` of each item in order, or what was wrong with it.

    While one is computed, in this thread, the next is loaded and the last is finished.
    """
    with ThreadPoolExecutor(1) as loading, ThreadPoolExecutor(1) as finishing:
        coming = deque(loading.submit(load, item) for item in items[:1])
        leaving: deque[Future[Outcome]] = deque()
        for number in range(len(items)):
            loaded = coming.popleft()
            coming.extend(loading.submit(load, item) for item in items[number + 1 : number + 2])
            try:
                leaving.append(finishing.submit(finish, compute(loaded.result())))
            except (BratsError, MemoryError) as error:
                leaving.append(Future())
                leaving[-1].set_exception(error)
            del loaded  # a case's images, which take as much as the network
            if len(leaving) > 1:
                yield _outcome(leaving.popleft())
        for last in leaving:
            yield _outcome(last)


def _outcome(future: Future[Any]) -> Any:
    """What a future gives, or the user's mistake that it ended with."""
    try:
        return future.result()
    except BratsError as error:
        return error
    except MemoryError as error:
        return BratsError(
            f"no memory left: {error}", hint="end other programs, or use a larger machine"
        )


def _ended(device: torch.device, jobs: Sequence[Job], status: int) -> BratsError:
    """What to report of a device's process that did not end well.

    Raises:
        RuntimeError: If its own error, which it has printed, is a bug.
    """
    if status > 0:
        raise RuntimeError(f"the process on {device} failed")
    return BratsError(
        f"the process on {device} {KILLED}; some of its {len(jobs)} cases are not segmented",
        hint="end other programs, and run the same command again with --skip-existing",
    )
