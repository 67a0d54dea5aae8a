"""A batch of cases on the devices of this machine: reading, computing and writing overlap."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import torch

from ... import __version__
from ..compute.devices import describe
from ..compute.processes import Send, overlapped, streamed
from ..errors import BratsError
from ..model.checkpoint import Checkpoint
from ..model.windows import CPU
from ..wording import KILLED
from ..writing import append_line
from .outputs import FORMAT, Job, Prediction
from .predictor import Loaded, PredictConfig, Predictor, Samples

# A GPU takes 0.1 s for a case, which takes several times that to be unzipped and prepared.
_LOADERS_OF_A_GPU = 2

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
        predictor = self.predictor(devices[0] if len(devices) == 1 else CPU)
        if len(devices) == 1:
            return self._with(predictor, jobs, on_share)
        shares = [jobs[first :: len(devices)] for first in range(len(devices))]
        work = [(device, share) for device, share in zip(devices, shares, strict=True) if share]
        return self._in_processes(work, on_share)

    def require_models(self) -> None:
        """Read the models, and raise what is wrong with them."""
        self.predictor(CPU)

    def predictor(self, device: torch.device) -> Predictor:
        """The networks of the models on a device.

        Raises:
            BratsError: If a model cannot be read, or if several cannot be averaged.
        """
        return Predictor([Checkpoint.load(path) for path in self.models], device, self.config)

    def withdraw(self, job: Job) -> None:
        """Say in the manifest, if a case has a line in it, that its files are being replaced."""
        if self.manifest and job.case.id in self.lines:
            row = {"format": FORMAT, "case": job.case.id, "file": str(job.file)}
            append_line(self.manifest, json.dumps(row))

    def record(self, prediction: Prediction) -> None:
        """Add a line to the manifest."""
        if self.manifest:
            append_line(self.manifest, json.dumps(prediction.row(), allow_nan=False))

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
        for outcome in self._with(self.predictor(device), jobs, send):
            send(outcome)

    def _with(
        self, predictor: Predictor, jobs: Sequence[Job], on_share: Share
    ) -> Iterator[Prediction | BratsError]:
        stages = Stages(self, predictor, on_share)
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
class Stages:
    """The three stages of a case; their shares of progress are those of their times on two CPUs."""

    batch: Batch
    predictor: Predictor
    on_share: Share

    def load(self, job: Job) -> _Work:
        """Read and prepare a case."""
        started = time.perf_counter()
        loaded = self.predictor.load(job.case)
        self.on_share(0.2)
        return _Work(job, loaded, time.perf_counter() - started)

    def compute(self, work: _Work) -> _Work:
        """Let the networks see it."""
        started = time.perf_counter()
        samples = self.predictor.compute(work.loaded, lambda share: self.on_share(0.7 * share))
        passed = time.perf_counter() - started
        done = work.loaded.without_images()
        return _Work(work.job, done, work.seconds + passed, samples, passed)

    def finish(self, work: _Work) -> Prediction:
        """Write what they found."""
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
        self.batch.record(prediction)
        self.on_share(0.1)
        return prediction


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
