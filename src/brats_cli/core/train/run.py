"""`train`: from a splits file to a finished run, one fold or all, as a generator of events."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..compute.devices import arithmetic, choose_devices, describe, dtype_name
from ..compute.distributed import Group
from ..compute.machine import available_cpus
from ..compute.plan import Plan
from ..compute.signals import Stops
from ..data.cases import Case
from ..data.labels import REGIONS
from ..data.splits import Split
from ..errors import ConfigError
from ..model.checkpoint import Checkpoint
from ..model.network import Network, network_without_weights
from ..model.run_folder import RUNS
from ..model.summary import costs
from ..prepared.store import Preparation, Store, StoredCases, training_scheme
from ..writing import own_folder
from . import training
from .config import TrainConfig, initial_model, load_config, parse_setting
from .events import (
    CasePrepared,
    CaseValidated,
    Epoch,
    FoldsFinished,
    NetworkCosts,
    Prepared,
    Preparing,
    Profile,
    RunFinished,
    RunStarted,
    StepDone,
    Stop,
    Stopped,
)
from .run_record import Board, RunRecord
from .start import Initialised, settings_of, starting_point
from .thresholds import SelectionPass, select_thresholds
from .validation import evenly

Event = (
    Preparing
    | CasePrepared
    | Prepared
    | Initialised
    | RunStarted
    | StepDone
    | CaseValidated
    | Epoch
    | Stopped
    | SelectionPass
    | RunFinished
    | FoldsFinished
    | NetworkCosts
    | Profile
    | Plan
)


class ProcessesNeeded(ConfigError):  # noqa: N818
    """Several GPUs were asked for, which takes one process each.

    Attributes:
        count: Processes to start.
    """

    def __init__(self, count: int) -> None:
        super().__init__(
            f"training on {count} GPUs takes {count} processes, and this is one",
            hint=f"run `brats train --gpu 0,1`, or `torchrun --nproc-per-node {count}` of your "
            "script",
        )
        self.count = count


def train(
    splits: str | Path = "splits.yaml",
    *,
    output: str | Path | None = None,
    epochs: int | None = None,
    gpu: str | int | None = None,
    device: str = "auto",
    config: str | Path | None = None,
    settings: Sequence[str] | Mapping[str, object] | None = None,
    fold: str | int = "0",
    max_time: float | None = None,
    patience: int | None = None,
    workers: int | None = None,
    store: str | Path | None = None,
    init: str | Path | None = None,
    init_partial: bool = False,
    freeze: str | None = None,
    prepare_only: bool = False,
    profile: bool = False,
    summary: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
) -> Generator[Event, None, None]:
    """Train a network on a split; yields what happens, and works as it is iterated over.

    Settings come from the arguments, else from the config file, else from defaults. Ctrl-C and
    SIGTERM stop it at once, or when the files that are being written are whole; `resume` loses at
    most the epoch in progress. Under `torchrun`, the first process alone yields events.

    Args:
        splits: The splits file.
        output: Folder of the run; default: runs/DATE_TIME, or the newest run for `resume`.
        epochs: Epochs to train.
        gpu: Number of the CUDA GPU to use; several, as "0,1", in as many processes.
        device: auto, cpu, cuda or mps.
        config: YAML file with settings.
        settings: Further settings, as ["network.channels=16"] or {"network.channels": 16}.
        fold: Fold of the split to train on, or "all", one after another.
        max_time: Seconds after which to stop.
        patience: Validations without a better score before stopping.
        workers: Processes that read patches.
        store: Folder of prepared cases; default: brats-store beside the splits file.
        init: Checkpoint or run whose weights training starts from.
        init_partial: Start although some layers do not fit those of `init`, from random values.
        freeze: "encoder" keeps that part of the network as it is in `init`.
        prepare_only: Prepare the cases, and stop.
        profile: Find out whether data or network is the bottleneck, and stop.
        summary: Find out what the network costs, and stop; needs no data.
        resume: Resume the run in `output`, or the newest.
        dry_run: Write nothing, and yield a `Plan` of what would be done and needed.
        overwrite: Replace the run in `output`.

    Yields:
        `Preparing`, `CasePrepared`, `Prepared`; `Initialised`, `RunStarted`; `StepDone`,
        `CaseValidated`, `Epoch`; `Stopped`; `SelectionPass`; `RunFinished`; `FoldsFinished`. Or
        `NetworkCosts`, `Profile` or `Plan`.

    Raises:
        BratsError: If data, files or settings are wrong.
        ProcessesNeeded: If several GPUs are asked for in a single process.
    """
    run = RunRecord(Path(output)) if output else _default_run(resume=resume)
    overrides = _overrides(
        settings,
        epochs=epochs,
        patience=patience,
        workers=workers,
        init=None if init is None else str(init),
        init_partial=init_partial or None,
        freeze=freeze,
    )
    config = Path(config) if config else None
    gpus = None if gpu is None else str(gpu)
    if summary:
        settled = _settled(run, config, overrides, resume=resume)
        yield _costs(settled, choose_devices(device, gpus)[0])
        return
    jobs = _jobs(run, Path(splits), str(fold), config, overrides, resume=resume)
    place = Path(store) if store else Path(splits).parent / "brats-store"
    group, work = Group.from_environment(), _Work(jobs, place)
    if prepare_only:
        plan = work.plan(group).require_room()
        yield from iter([plan]) if dry_run else work.prepare_all()
        return
    devices = choose_devices(device, gpus)
    if group.leads and not profile:
        _require_absent(jobs, overwrite=overwrite)
    _require_sound(jobs)
    if group.leads:  # the others would look at every case again
        plan = work.plan(group, devices).require_room()
    if dry_run:
        yield from [plan] if group.leads else []
        return
    if len(devices) > 1 and group.size == 1 and not profile:
        raise ProcessesNeeded(len(devices))
    if not (profile or resume or output) and group.leads:
        work = replace(work, jobs=_in_folder(jobs, run, run.fresh()))
    chosen = group.device(devices)
    events = work.profiled(chosen) if profile else work.trained(chosen, group, max_time)
    with group.joined(chosen):
        for event in events:
            if group.leads:
                yield event


# --- settings ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """One run: its settings and its split, which holds its fold alone."""

    run: RunRecord
    config: TrainConfig
    split: Split
    resume: bool

    def used(self) -> list[Case]:
        """Its training and its validation cases."""
        names, cases = self.split.fold(0), self.split.cases()
        return [cases[case_id] for case_id in (*names.train, *names.val)]


def _default_run(*, resume: bool) -> RunRecord:
    return RunRecord.newest() if resume else RunRecord.named_by_time()


def _overrides(
    settings: Sequence[str] | Mapping[str, object] | None, **flags: object
) -> dict[str, object]:
    """The settings that override those of a file."""
    if isinstance(settings, Mapping):
        found = dict(settings)
    else:
        found = dict(parse_setting(text) for text in settings or [])
    return found | {key: value for key, value in flags.items() if value is not None}


def _settled(
    run: RunRecord,
    config: Path | None,
    overrides: Mapping[str, Any],
    *,
    resume: bool,
    split: Split | None = None,
) -> TrainConfig:
    """The settings of a run, which a resumed one has in its own file."""
    if resume and config is None:
        return load_config(run.config, of_a_run=True, **overrides)
    model = initial_model(config, overrides)
    defaults = settings_of(model) if model else {}
    if split:
        wanted = defaults.get("modalities", split.modalities)
        defaults["modalities"] = [name for name in wanted if name in split.modalities]
    return load_config(config, defaults=defaults, **overrides)


def _jobs(
    run: RunRecord,
    splits: Path,
    fold: str,
    config: Path | None,
    overrides: Mapping[str, Any],
    *,
    resume: bool,
) -> list[_Job]:
    """The run that is meant, or one per fold in folders of their own."""

    def job(
        run: RunRecord, split: Split, number: int, *, resume: bool, like: RunRecord | None = None
    ) -> _Job:
        begun = like is not None or resume
        settled = _settled(like or run, config, overrides, resume=begun, split=split)
        return _Job(run, settled, split.only(number), resume)

    if fold.isdecimal() and resume:
        run.require_present()
        return [job(run, Split.load(run.splits), 0, resume=True)]  # its copy holds its fold alone
    if fold.isdecimal():
        return [job(run, Split.load(splits), int(fold), resume=False)]
    if fold != "all":
        raise ConfigError(f"--fold {fold} is not a fold", hint="use --fold 0, or --fold all")
    if resume and run.folder.name.startswith("fold_"):  # the newest
        run = RunRecord(run.folder.parent)
    whole = Split.load(splits)
    if resume and not run.fold(0).config.is_file():
        run.fold(0).require_present()
    jobs = []
    for number in range(len(whole.folds)):
        each = run.fold(number)
        if resume and each.config.is_file():
            each.require_present()
            jobs.append(job(each, Split.load(each.splits, like=whole), 0, resume=True))
        else:
            # Not begun yet: what was typed for the folds before is in their files alone.
            like = run.fold(0) if resume else None
            jobs.append(job(each, whole, number, resume=False, like=like))
    return jobs


def _require_absent(jobs: Sequence[_Job], *, overwrite: bool) -> None:
    """Check that no new run would replace one that is there, unless that is wanted."""
    for job in jobs:
        if not job.resume:
            job.run.require_absent(overwrite=overwrite)


def _require_sound(jobs: Sequence[_Job]) -> None:
    """Report networks that cannot be made, or do not fit their checkpoint, before any work."""
    for job in jobs:
        network = _network(job.config)
        if job.config.init and not (job.resume and job.run.last.exists()):
            starting_point(job.config, network)


def _in_folder(jobs: Sequence[_Job], old: RunRecord, new: RunRecord) -> list[_Job]:
    """`jobs` whose runs lie in the folder of another run."""
    return [
        replace(job, run=RunRecord(new.folder / job.run.folder.relative_to(old.folder)))
        for job in jobs
    ]


def _network(config: TrainConfig) -> Network:
    return network_without_weights(
        config.network,
        in_channels=len(config.modalities),
        out_channels=len(REGIONS),
        patch_size=config.patch_size,
    )


def _costs(config: TrainConfig, device: torch.device) -> NetworkCosts:
    dtype = arithmetic(device, config.precision)
    parts = costs(
        _network(config),
        in_channels=len(config.modalities),
        patch_size=config.patch_size,
        dtype=dtype,
        device=device,
    )
    return NetworkCosts(tuple(parts), config.patch_size, config.batch_size, dtype_name(dtype))


# What a process that reads patches takes, which has loaded torch and TorchIO; measured.
_WORKER_BYTES = 350_000_000


def _memory(config: TrainConfig, device: torch.device, group: Group) -> int:
    """About what the training takes of this machine's memory, without that of a GPU."""
    processes = group.local_size * (training.worker_count(config, group) + 1)
    memory = processes * _WORKER_BYTES
    if device.type == "cpu":
        parts = _costs(config, device).parts
        memory += 16 * sum(part.parameters for part in parts)  # weights, gradients, optimizer
        memory += config.batch_size * sum(part.kept_bytes for part in parts)
    return memory


# --- work --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cases:
    """The cases of a fold in their store."""

    store: Store
    training: StoredCases
    validation: StoredCases


@dataclass(frozen=True)
class _Work:
    """The runs to do, and where their cases are prepared.

    Attributes:
        jobs: One, or one per fold.
        folder: The store.
        plans: What is in the store and what is not, so that folds of the same cases share it.
        prepared: Those of `plans` that were carried out.
        locks: Keep other trainings from removing anything from the store.
    """

    jobs: Sequence[_Job]
    folder: Path
    plans: dict[object, Preparation] = field(default_factory=dict)
    prepared: set[object] = field(default_factory=set)
    locks: ExitStack = field(default_factory=ExitStack)

    def prepare_all(self) -> Iterator[Event]:
        """Prepare the cases of every run."""
        with self.locks:
            for job in self.jobs:
                yield from self._prepare(job)

    def profiled(self, device: torch.device) -> Iterator[Event]:
        """Prepare the cases of the first run, and find its bottleneck."""
        with self.locks:
            job = self.jobs[0]
            cases = yield from self._prepare(job)
            yield training.profile(job.config, cases.training, cases.store.scheme, device)

    def trained(
        self, device: torch.device, group: Group, max_time: float | None
    ) -> Iterator[Event]:
        """Prepare and train one run after another, until the time is up."""
        deadline = time.monotonic() + (math.inf if max_time is None else max_time)
        finished = []
        with self.locks:
            # After the folders: a run that ended before it began leaves nothing at all.
            self.locks.callback(_remove_if_empty, RUNS)
            for job in self.jobs if group.leads else ():
                self.locks.enter_context(own_folder(job.run.folder))
            for job in self.jobs:
                with group.one_by_machine():
                    cases = yield from self._prepare(job)
                left = deadline - time.monotonic()
                stopped, result = yield from _trained(job, cases, device, group, left)
                if stopped == "time":
                    return
                finished.append(result)
        if len(self.jobs) > 1:
            yield FoldsFinished(self.jobs[0].run.folder.parent, tuple(finished))

    def plan(self, group: Group, devices: Sequence[torch.device] = ()) -> Plan:
        """What the runs would prepare and write; without `devices`, they prepare and no more.

        Raises:
            OutputError: If the disk is too small for the cases that are not in the store.
        """
        missing: dict[str, int] = {}
        folders: dict[Path, int] = {}
        memory = 0
        for job in self.jobs:
            _, plan = self._planned(job)
            plan.require_room()
            missing |= {case.id: plan.store.bytes_needed([case]) for case in plan.missing}
            if devices:
                parameters = sum(each.numel() for each in _network(job.config).parameters())
                # best.pt has the weights; last.pt those, and two numbers per weight of the
                # optimizer; while it is replaced, there are two of it.
                folders[job.run.folder] = 7 * 4 * parameters
                memory = max(memory, _memory(job.config, devices[0], group))
        store = {self.folder: sum(missing.values())} if missing else {}
        return Plan(
            cases=tuple(dict.fromkeys(case.id for job in self.jobs for case in job.used())),
            outputs=tuple(map(str, [*store, *folders])),
            device=", ".join(map(describe, devices)),
            disk_bytes={**store, **folders},
            memory_bytes=memory,
            least_memory_bytes=memory // 2,  # an estimate is no reason to refuse what might fit
        )

    def _planned(self, job: _Job) -> tuple[object, Preparation]:
        """Which cases of a run are in the store, and a key that runs of the same cases share."""
        config, used = job.config, job.used()
        key = frozenset(case.id for case in used), config.modalities, config.preparation
        if key not in self.plans:
            scheme = training_scheme(used)
            store = Store(self.folder, scheme, config.modalities, config.preparation)
            self.plans[key] = store.plan(used)
        return key, self.plans[key]

    def _prepare(self, job: _Job) -> Generator[Event, None, _Cases]:
        """Prepare the cases of a run that are not in the store."""
        names, config = job.split.fold(0), job.config
        key, plan = self._planned(job)
        if key not in self.prepared:
            if plan.missing:
                size = plan.store.bytes_needed(plan.missing)
                yield Preparing(len(plan.missing), size, self.folder)
            workers = available_cpus() if config.workers is None else config.workers
            yield from map(CasePrepared, plan.run(workers=workers))
            self.locks.enter_context(plan.store.in_use())
            self.prepared.add(key)
        yield Prepared(len(plan.places), self.folder)
        return _Cases(plan.store, plan.cases(names.train), plan.cases(names.val))


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _trained(
    job: _Job, cases: _Cases, device: torch.device, group: Group, max_seconds: float
) -> Generator[Event, None, tuple[Stop | None, RunFinished]]:
    """Train a run: why it stopped, where not by number of epochs, and its result."""
    run, config = job.run, job.config
    checkpoint = run.resume() if job.resume else None
    if not job.resume and group.leads:
        run.start(config, job.split)
    weights = None
    if config.init and checkpoint is None:
        initialised, weights = starting_point(config, _network(config))
        yield initialised
    yield RunStarted(
        folder=run.folder,
        device=describe(device),
        processes=group.size,
        dtype=dtype_name(arithmetic(device, config.precision)),
        training=len(cases.training),
        validation=len(evenly(len(cases.validation), config.validate_cases)),
        validation_in_all=len(cases.validation),
        epochs=config.epochs,
        epochs_done=checkpoint.epoch if checkpoint else 0,
        steps_per_epoch=config.steps_per_epoch,
    )
    stopped = yield from _recorded(job, cases, device, group, checkpoint, weights, max_seconds)
    if stopped is not None:
        yield Stopped(stopped, config.patience)
    best = yield from _selected(run, cases, device, group)
    result = _result(run, best)
    yield result
    return stopped, result


def _recorded(
    job: _Job,
    cases: _Cases,
    device: torch.device,
    group: Group,
    checkpoint: Checkpoint | None,
    weights: Mapping[str, torch.Tensor] | None,
    max_seconds: float,
) -> Generator[StepDone | CaseValidated | Epoch, None, Stop | None]:
    """Train the epochs, each recorded before it is yielded."""
    run, stopped = job.run, None
    to_note = job.resume and group.leads
    board = Board(run)
    with Stops() as stops:
        for event in training.train(
            job.config,
            cases.training,
            cases.validation,
            cases.store.scheme,
            device,
            resume=checkpoint,
            weights=weights,
            group=group,
            max_seconds=max_seconds,
        ):
            if not isinstance(event, Epoch):
                if to_note:  # not before: settings that do not fit the run are refused
                    run.note(job.config)
                    to_note = False
                stops.ask()
            else:
                stopped = event.stops
                if group.leads:
                    with stops.later():
                        board.add(event)
                        run.record(event)
            yield event
    return stopped


def _selected(
    run: RunRecord, cases: _Cases, device: torch.device, group: Group
) -> Generator[SelectionPass, None, Checkpoint | None]:
    """The best checkpoint; its thresholds are selected here, where that is not done."""
    found = Checkpoint.load(run.best) if group.leads and run.best.exists() else None
    best = group.as_the_first(found)
    if best is None or best.decision or not cases.validation:
        return best
    best, final = yield from select_thresholds(best, cases.validation, device, group=group)
    if group.leads:
        run.conclude(best, final)
    return best


def _result(run: RunRecord, best: Checkpoint | None) -> RunFinished:
    rows = run.rows()
    made = (run.best, run.log, run.curves, run.validation)
    return RunFinished(
        folder=run.folder,
        epochs=max((int(row["epoch"]) for row in rows), default=0),
        best_epoch=best.epoch if best else None,
        scores=best.scores if best else {},
        decision=best.decision if best else None,
        seconds=sum(float(row["seconds"]) + float(row["validation_seconds"]) for row in rows),
        peak_memory_mb=max((float(row.get("peak_memory_mb") or 0) for row in rows), default=0),
        files=tuple(path for path in made if path.exists()),
    )
