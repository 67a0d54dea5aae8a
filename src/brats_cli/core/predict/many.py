"""Prediction of many cases: reading, computing and writing overlap; devices share the cases."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from ... import __version__
from ..compute.cluster import connected, paths_for
from ..compute.devices import choose_devices, describe
from ..compute.executors import as_completed
from ..compute.plan import Plan
from ..compute.processes import Send, streamed
from ..data.cases import Case
from ..data.given import find_each
from ..data.labels import LabelScheme, as_scheme
from ..errors import BratsError, CaseError, ConfigError
from ..images.nifti import is_nifti
from ..model.checkpoint import Checkpoint
from ..model.run_folder import checkpoint_paths
from ..model.windows import CPU
from ..reading import read_text
from ..wording import KILLED, listing
from ..writing import append_line, growing_file, require_writable
from .predictor import (
    MEMORY_OF_NETWORK,
    Loaded,
    PredictConfig,
    Predictor,
    Samples,
    companion,
    memory_of,
)

Item = TypeVar("Item")
Input = TypeVar("Input")
Answer = TypeVar("Answer")
Outcome = TypeVar("Outcome")

FORMAT = "brats-predictions/1"

# A GPU takes 0.1 s for a case, which takes several times that to be unzipped and prepared.
_LOADERS_OF_A_GPU = 2

MANIFEST = "predictions.jsonl"
"""File in a folder of predictions with one line per prediction, in the order they were made; if a
case has several lines, the last one is valid. One without `finished` says that the case's files are
being replaced, so that no line is of others than those that lie there."""


@dataclass(frozen=True)
class Job:
    """A case to segment, and the file for its label map."""

    case: Case
    file: Path


@dataclass(frozen=True)
class Prediction:
    """A case that was segmented; one line of the manifest.

    Attributes:
        case: Case id.
        file: Its label map.
        labels: Name of the label scheme.
        models: The checkpoints.
        device: Device that computed.
        precision: Number type that the networks computed in.
        tta: Whether the flips were averaged.
        modalities: Modalities that were used.
        missing: Modalities that the case lacks; the networks were given zeros.
        volumes_mm3: Volume of each region.
        doubt: By region, 1 minus the expected Dice.
        review: Mean of `doubt`; cases with high values should be reviewed first.
        seconds: Time for reading, computing and writing, which may overlap with other cases.
        network_seconds: Part of `seconds` in the networks.
        finished: Date and time.
        versions: Versions of brats and torch.
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


@dataclass(frozen=True)
class PredictionStarted:
    """The models are loaded, and the first case comes next.

    Attributes:
        cases: Number of cases to segment, without those that are skipped.
        models: The checkpoints.
        devices: Description of each device.
    """

    cases: int
    models: tuple[Path, ...]
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Skipped:
    """A case that was not segmented because its outputs exist."""

    case: str
    file: Path


PredictEvent = PredictionStarted | Plan | Skipped | Prediction | BratsError
"""What `predict` yields; a `BratsError` is a case or a path that failed."""


def predict(
    cases: str | Path | Sequence[str | Path],
    *,
    output: str | Path | None = None,
    model: str | Path | Sequence[str | Path] | None = None,
    gpu: str | int | None = None,
    device: str = "auto",
    executor: Executor | str | None = None,
    labels: LabelScheme | str | None = None,
    tta: bool = False,
    overlap: float | None = None,
    batch_windows: int = 1,
    allow_missing: bool = False,
    probabilities: bool = False,
    uncertainty: bool = False,
    uncertainty_format: str | None = None,
    skip_existing: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[float, int], object] = lambda done, total: None,
) -> Iterator[PredictEvent]:
    """Segment cases with one trained network, or with the average of several.

    A generator: it works while it is iterated over, and stops when the loop is left. One case
    that fails does not stop the others: its `BratsError` is yielded, not raised.

    Args:
        cases: Case folders, 4D files, modality files or data set folders, or a splits file for its
            test cases; one or several.
        output: File for one case, or folder for several; by default the current folder.
        model: Run folder or checkpoint; several are averaged. By default best.pt of the newest
            run in `runs/`.
        gpu: Number of the CUDA GPU; several, as "0,1", share the cases.
        device: auto, cpu, cuda or mps.
        executor: Where to segment the cases instead of in this process, or the address of a Dask
            scheduler. Every worker computes on the one `gpu` or `device` as it sees it.
        labels: Label scheme of the predictions; by default that of the training.
        tta: Average over the eight flips of a case (test-time augmentation).
        overlap: Overlap of neighbouring windows, as a fraction of a window; by default 0.25, or
            0.5 for networks with instance normalisation.
        batch_windows: Number of windows computed at the same time.
        allow_missing: Segment cases that lack a sequence, even if the network was never trained
            on such cases.
        probabilities: Also write the probability of each region.
        uncertainty: Also write the uncertainty of each region, 0 to 100.
        uncertainty_format: Its files, and that they are to be written: `4d` for one file (the
            default), `brats` for `CASE_unc_whole`, `_core` and `_enhance` as in BraTS 2020.
        skip_existing: Skip cases whose outputs exist.
        dry_run: Write nothing, and yield a `Plan` of what would be done and needed.
        overwrite: Replace outputs that exist.
        on_progress: Called with the number of cases done (in fractions of a case) and their
            total, also from other threads.

    Yields:
        Failures to find a case; then a `Plan`, if only that was asked for, or a `Skipped` per case
        skipped, one `PredictionStarted`, and a `Prediction` or a `BratsError` per case.

    Raises:
        BratsError: Before the first case, if there is no case, a model or device cannot be used,
            or an output exists or cannot be written.
    """
    config = PredictConfig(
        labels=as_scheme(labels),
        tta=tta,
        overlap=overlap,
        batch_windows=batch_windows,
        allow_missing=allow_missing,
        probabilities=probabilities,
        uncertainty=uncertainty or uncertainty_format is not None,
        uncertainty_format=uncertainty_format or "4d",
    )
    path = paths_for(executor)
    found, failed = find_each([path(each) for each in _paths(cases)])
    if not found:
        raise _none_found(failed)
    folder, jobs = assign_outputs(found, path(output or "") if output or executor else None)
    manifest = folder / MANIFEST if folder else None
    lines = recorded(manifest)
    todo = [job for job in jobs if not (skip_existing and complete(job, config, lines))]
    # A case that lacks one of its outputs is segmented again, and its other outputs replaced.
    replacing = overwrite or skip_existing
    require_outputs_writable(todo, config, overwrite=replacing)
    given: Sequence[Path | None] = _paths(model) if model else [None]
    batch = Batch(
        models=tuple(path(model) for each in given for model in checkpoint_paths(each)),
        config=config,
        manifest=manifest,
        lines=frozenset(lines or ()),
        overwrite=replacing,
    )
    left_out = [job for job in jobs if job not in todo]
    progress = _Progress(len(todo), on_progress)
    gpus = None if gpu is None else str(gpu)
    with ExitStack() as until_done:
        plan = _plan(todo, left_out, config)
        if executor is None:
            devices = choose_devices(device, gpus)
            described = [describe(each) for each in devices]
            run = partial(batch.run, todo, devices, progress.add)
        else:
            workers = until_done.enter_context(connected(executor))
            described = device_of_workers(workers, device, gpus)
            plan = plan.elsewhere()
            run = partial(batch.run_over, workers, todo, device, gpus, progress.add)
        plan.require_room()
        if dry_run:
            batch.require_models()
            yield from failed
            yield replace(plan, device=", ".join(described))
            return
        outcomes = run() if todo else iter(())
        yield from failed
        yield from (Skipped(job.case.id, job.file) for job in left_out)
        yield PredictionStarted(len(todo), batch.models, tuple(described))
        if manifest and todo:
            # There before the first case: one without a line is then known to be unfinished.
            until_done.enter_context(growing_file(manifest))
        yield from outcomes


# Measured: a case of 240 x 240 x 155 voxels has probabilities of 2 to 5 MB, an uncertainty of 0.5
# MB, and a label map of 0.05 MB.
_BYTES_PER_VOXEL = {"probabilities": 0.5, "uncertainty": 0.06}
_BYTES_OF_LABELS = 0.006


def _plan(jobs: Sequence[Job], left_out: Sequence[Job], config: PredictConfig) -> Plan:
    """What would be written for which cases; estimated from the shapes in their headers."""
    share = _BYTES_OF_LABELS
    share += sum(size for name, size in _BYTES_PER_VOXEL.items() if getattr(config, name))
    disk: dict[Path, int] = {}
    for job in jobs:
        size = int(share * job.case.voxels_on_disk())
        disk[job.file.parent] = disk.get(job.file.parent, 0) + size
    # One case is loaded while another is computed.
    memory = sorted((memory_of(job.case, len(job.case.images)) for job in jobs), reverse=True)
    return Plan(
        cases=tuple(job.case.id for job in jobs),
        outputs=tuple(str(file) for job in jobs for file in outputs(job, config)),
        skipped=tuple(job.case.id for job in left_out),
        disk_bytes=disk,
        memory_bytes=MEMORY_OF_NETWORK + sum(memory[:2]),
        least_memory_bytes=memory[-1] if memory else 0,
    )


class _Progress:
    """Adds up the shares of work that several threads report."""

    def __init__(self, total: int, on_progress: Callable[[float, int], object]) -> None:
        self.total, self.done = total, 0.0
        self.on_progress = on_progress
        self.turn = threading.Lock()

    def add(self, share: float) -> None:
        with self.turn:
            self.done += share
            self.on_progress(self.done, self.total)


def _paths(given: str | Path | Sequence[str | Path]) -> list[Path]:
    """One path or several, as a list."""
    return [Path(each) for each in ([given] if isinstance(given, str | Path) else given)]


def _none_found(failed: Sequence[BratsError]) -> BratsError:
    """The error if none of the paths holds a case."""
    if len(failed) == 1:
        return failed[0]
    if not failed:
        return CaseError("no paths of cases were given", hint="give at least one case")
    return CaseError(
        f"none of {len(failed)} paths is a case: {listing(failed)}", hint=failed[0].hint
    )


_NOT_WRITTEN = (
    ".mha", ".mhd", ".nrrd", ".mgz", ".hdr", ".img", ".gz", ".zip", ".dcm", ".nifti", ".npy",
    ".npz", ".h5", ".mat", ".tif", ".tiff", ".png", ".jpg", ".stl", ".obj", ".ply", ".json",
    ".csv", ".txt", ".yaml", ".yml", ".pt",
)  # fmt: skip
"""Endings of files of other formats, which no folder of predictions is called by."""


def assign_outputs(cases: Sequence[Case], output: Path | None) -> tuple[Path | None, list[Job]]:
    """The output file of each case; and the folder of all of them, unless `output` is a file.

    Raises:
        ConfigError: If `output` is one file for several cases.
    """
    if output is None or output.is_dir() or not is_nifti(output):
        if output is not None and output.suffix.lower() in _NOT_WRITTEN and not output.is_dir():
            raise ConfigError(
                f"{output} cannot be written: label maps are written as .nii.gz or .nii",
                hint=f"use -o {output.with_suffix('')}.nii.gz, or the name of a folder",
            )
        folder = output or Path()
        return folder, [Job(case, folder / f"{case.id}.nii.gz") for case in cases]
    if len(cases) > 1:
        raise ConfigError(
            f"{len(cases)} cases cannot be written to one file, {output}",
            hint="give a folder with -o",
        )
    return None, [Job(case, output) for case in cases]


Share = Callable[[float], None]
"""Called with the part of a case's work that was done since the last call."""


@dataclass(frozen=True)
class Batch:
    """How a batch of cases is segmented, on any number of devices.

    Attributes:
        models: Checkpoints; several are averaged.
        config: How cases are segmented.
        manifest: File that gets a line per prediction, if any.
        lines: Ids of the cases that have one already.
        overwrite: Whether to replace outputs that exist.
    """

    models: tuple[Path, ...]
    config: PredictConfig
    manifest: Path | None = None
    lines: frozenset[str] = frozenset()
    overwrite: bool = False

    def run(
        self,
        jobs: Sequence[Job],
        devices: Sequence[torch.device],
        on_share: Share = lambda share: None,
    ) -> Iterator[Prediction | BratsError]:
        """Segment cases, and yield the prediction or the error of each when it is done.

        The models are read at once. Several devices share the cases, each in its own process.

        Raises:
            BratsError: If a model cannot be read, or if several cannot be averaged.
        """
        predictor = self._predictor(devices[0] if len(devices) == 1 else CPU)
        if len(devices) == 1:
            return self._with(predictor, jobs, on_share)
        shares = [jobs[first :: len(devices)] for first in range(len(devices))]
        work = [(device, share) for device, share in zip(devices, shares, strict=True) if share]
        return self._in_processes(work, on_share)

    def require_models(self) -> None:
        """Read the models, and raise what is wrong with them."""
        self._predictor(CPU)

    def run_over(
        self,
        executor: Executor,
        jobs: Sequence[Job],
        device: str,
        gpu: str | None,
        on_share: Share = lambda share: None,
    ) -> Iterator[Prediction | BratsError]:
        """As `run`, but on the device of whoever does the work, in any process of any machine.

        The manifest is written here: lines that several machines append to one file may get lost.
        """
        self._predictor(CPU)  # for what is wrong with the models
        for job in jobs:  # as they may go on when this process is gone
            self.withdraw(job)
        # A case whose worker was lost may have been written.
        away = replace(self, manifest=None, overwrite=True)
        return self._over(executor, _Segment(away, device, gpu), jobs, on_share)

    def withdraw(self, job: Job) -> None:
        """Say in the manifest, if a case has a line in it, that its files are being replaced."""
        if self.manifest and job.case.id in self.lines:
            row = {"format": FORMAT, "case": job.case.id, "file": str(job.file)}
            append_line(self.manifest, json.dumps(row))

    def _over(
        self, executor: Executor, task: _Segment, jobs: Sequence[Job], on_share: Share
    ) -> Iterator[Prediction | BratsError]:
        for outcome in as_completed(
            task,
            jobs,
            executor=executor,
            name=lambda job: f"case {job.case.id}",
            lost=lambda job, error: error,
        ):
            if self.manifest and isinstance(outcome, Prediction):
                append_line(self.manifest, json.dumps(outcome.row(), allow_nan=False))
            on_share(1)
            yield outcome

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
        loaders = _LOADERS_OF_A_GPU if predictor.device.type == "cuda" else 1
        return overlapped(jobs, stages.load, stages.compute, stages.finish, loaders=loaders)


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
    """The three stages of a case; their shares of progress are those of their times on two CPUs."""

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
        self.batch.withdraw(work.job)
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
            append_line(self.batch.manifest, json.dumps(prediction.row(), allow_nan=False))
        self.on_share(0.1)
        return prediction


# --- on the workers of an executor ---------------------------------------------------------------

_CASES_AT_A_TIME = 3
"""Of a worker with many threads: one is read, one computed and one written."""


@dataclass(frozen=True)
class _Segment:
    """Segments one case on a worker, which keeps the models for the others of the batch."""

    batch: Batch
    device: str
    gpu: str | None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __call__(self, job: Job) -> Prediction | BratsError:
        here = _here(self)
        try:
            with here.room:
                work = here.stages.load(job)
                with here.turn:
                    work = here.stages.compute(work)
                return here.stages.finish(work)
        except (BratsError, MemoryError) as error:
            return _as_error(error)


class _Here:
    """The models of a batch in this process, whose threads take turns at the device."""

    def __init__(self, task: _Segment) -> None:
        self.id = task.id
        self.room = threading.Semaphore(_CASES_AT_A_TIME)
        self.turn = threading.Lock()
        [device] = choose_devices(task.device, task.gpu)
        predictor = task.batch._predictor(device)
        self.stages = _Stages(task.batch, predictor, lambda share: None)


_of_last_batch: list[_Here] = []
_reading = threading.Lock()


def _here(task: _Segment) -> _Here:
    """The models of a batch, which are read when its first case comes."""
    with _reading:
        if not any(each.id == task.id for each in _of_last_batch):
            _of_last_batch.clear()  # before others are read: they take memory
            _of_last_batch.append(_Here(task))
        return _of_last_batch[0]


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
    return list(as_completed(_describe_chosen, [(device, gpu)], executor=executor))


def _describe_chosen(wanted: tuple[str, str | None]) -> str:
    [device] = choose_devices(*wanted)
    return f"{describe(device)} of each worker"


def complete(job: Job, config: PredictConfig, lines: Container[str] | None = None) -> bool:
    """Whether all outputs of a case exist; since files are never half written, they are whole.

    Of `lines`, the manifest's, its own must be one: a process may have been killed before that.
    """
    whole = all(file.exists() for file in outputs(job, config))
    return whole and (lines is None or job.case.id in lines)


def outputs(job: Job, config: PredictConfig) -> list[Path]:
    """The files that are written for a case; the label map is the last."""
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


def recorded(manifest: Path | None) -> set[str] | None:
    """Ids of the cases that have a valid line in a manifest; None if there is no manifest."""
    if manifest is None or not manifest.is_file():
        return None
    found: dict[str, bool] = {}
    for line in read_text(manifest).splitlines():
        with suppress(ValueError, LookupError, TypeError):
            row = json.loads(line)
            found[row["case"]] = "finished" in row
    return {case for case, valid in found.items() if valid}


# --- at the same time --------------------------------------------------------------------------


def overlapped(
    items: Sequence[Item],
    load: Callable[[Item], Input],
    compute: Callable[[Input], Answer],
    finish: Callable[[Answer], Outcome],
    *,
    loaders: int = 1,
) -> Iterator[Outcome | BratsError]:
    """`finish(compute(load(item)))` of each item in order, or the error of an item that failed.

    While one item is computed, in this thread, the next `loaders` are loaded and the previous one
    finished.
    """
    with ThreadPoolExecutor(loaders) as loading, ThreadPoolExecutor(1) as finishing:
        coming = deque(loading.submit(load, item) for item in items[:loaders])
        leaving: deque[Future[Outcome]] = deque()
        for number in range(len(items)):
            loaded = coming.popleft()
            behind = number + loaders
            coming.extend(loading.submit(load, item) for item in items[behind : behind + 1])
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
    """The result of a future, or the `BratsError` that it ended with."""
    try:
        return future.result()
    except (BratsError, MemoryError) as error:
        return _as_error(error)


def _as_error(error: BratsError | MemoryError) -> BratsError:
    if isinstance(error, BratsError):
        return error
    return BratsError(
        f"not enough memory: {error}", hint="end other programs, or use a machine with more memory"
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
