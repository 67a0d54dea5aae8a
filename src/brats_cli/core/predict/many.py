"""Prediction of many cases: which there are, what is written for each, and who segments them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..compute.cluster import connected, paths_for
from ..compute.devices import choose_devices, describe
from ..compute.plan import Plan, by_folder
from ..data.given import as_paths, find_each
from ..data.labels import LabelScheme, as_scheme
from ..data.manifest import MANIFEST
from ..errors import BratsError, CaseError
from ..model.run_folder import checkpoint_paths
from ..wording import listing
from ..writing import growing_file
from .batch import Batch
from .outputs import (
    Job,
    Prediction,
    assign_outputs,
    complete,
    outputs,
    recorded,
    require_outputs_writable,
)
from .predictor import MEMORY_OF_NETWORK, PredictConfig, memory_of
from .workers import device_of_workers, run_on_workers


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
    """A case that was not segmented because its outputs exist.

    Attributes:
        case: Case id.
        file: Its label map.
    """

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
        allow_missing=allow_missing,
        probabilities=probabilities,
        uncertainty=uncertainty or uncertainty_format is not None,
        uncertainty_format=uncertainty_format or "4d",
    )
    path = paths_for(executor)
    found, failed = find_each([path(each) for each in as_paths(cases)])
    if not found:
        raise _none_found(failed)
    folder, jobs = assign_outputs(found, path(output or "") if output or executor else None)
    manifest = folder / MANIFEST if folder else None
    lines = recorded(manifest)
    todo = [job for job in jobs if not (skip_existing and complete(job, config, lines))]
    # A case that lacks one of its outputs is segmented again, and its other outputs replaced.
    replacing = overwrite or skip_existing
    require_outputs_writable(todo, config, overwrite=replacing)
    given: Sequence[Path | None] = as_paths(model) if model else [None]
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
        if executor is None:
            devices = choose_devices(device, gpus)
            described = [describe(each) for each in devices]
            run = partial(batch.run, todo, devices, progress.add)
        else:
            workers = until_done.enter_context(connected(executor))
            described = device_of_workers(workers, device, gpus)
            run = partial(run_on_workers, batch, workers, todo, device, gpus, progress.add)
        plan = _plan(todo, left_out, batch).over(executor).require_room()
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


def _plan(jobs: Sequence[Job], left_out: Sequence[Job], batch: Batch) -> Plan:
    """What would be written for which cases; estimated from the shapes in their headers."""
    config = batch.config
    manifest = [batch.manifest] if batch.manifest and jobs else []
    share = _BYTES_OF_LABELS
    share += sum(size for name, size in _BYTES_PER_VOXEL.items() if getattr(config, name))
    # One case is loaded while another is computed.
    memory = sorted((memory_of(job.case, len(job.case.images)) for job in jobs), reverse=True)
    return Plan(
        cases=tuple(job.case.id for job in jobs),
        outputs=(
            *(str(file) for job in jobs for file in outputs(job, config)),
            *map(str, manifest),
        ),
        skipped=tuple(job.case.id for job in left_out),
        disk_bytes=by_folder((job.file, int(share * job.case.voxels_on_disk())) for job in jobs),
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


def _none_found(failed: Sequence[BratsError]) -> BratsError:
    """The error if none of the paths holds a case."""
    if len(failed) == 1:
        return failed[0]
    if not failed:
        return CaseError("no paths of cases were given", hint="give at least one case")
    return CaseError(
        f"none of {len(failed)} paths is a case: {listing(failed)}", hint=failed[0].hint
    )
