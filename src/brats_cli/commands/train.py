"""`brats train`: teach a network on a split."""

from __future__ import annotations

import math
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from .. import console

if TYPE_CHECKING:
    import torch

    from ..core.compute.distributed import Group
    from ..core.data.splits import Split
    from ..core.model.network import Network
    from ..core.prepared.store import Store, StoredCases
    from ..core.train.config import TrainConfig
    from ..core.train.run_record import Run
    from ..core.train.training import Epoch

HEADER = "  epoch    loss    WT    TC    ET  mean       lr patches/s  wait    time"

HEADER_EVERY = 20
"""Rows after which a terminal shows the header again: the last one may be out of sight."""


def _seconds(text: str) -> float:
    """Seconds of a time like 2h, 90m or 1h30m."""
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", str(text))
    if not parts or not any(parts.groups()):
        raise typer.BadParameter(f"{text} is not a time: write 2h, 90m or 1h30m")
    hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return float(3600 * hours + 60 * minutes + seconds)


def train(
    splits: Annotated[Path, typer.Argument(help="The splits file.")] = Path("splits.yaml"),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the run [runs/DATE_TIME].")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs to train [100].")] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Number of the CUDA GPU to use; 0,1 trains on both.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file with settings.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, as network.channels=16.")
    ] = None,
    fold: Annotated[
        str, typer.Option(help="Fold of the split to train on, or all, one after another.")
    ] = "0",
    max_time: Annotated[
        float | None,
        typer.Option(parser=_seconds, metavar="TIME", help="Stop in time: 2h, 90m or 1h30m."),
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Validations without a better score before stopping [30].")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read patches.")] = None,
    store: Annotated[
        Path | None, typer.Option(help="Folder of prepared cases [brats-store beside SPLITS].")
    ] = None,
    prepare_only: Annotated[
        bool, typer.Option("--prepare-only", help="Prepare the cases of the fold, and stop.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Say whether data or network is slower, and stop.")
    ] = False,
    summary: Annotated[
        bool, typer.Option("--summary", help="Tell what the network costs, and stop.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in -o, or with the newest.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in -o.")] = False,
) -> None:
    """Train a 3D U-Net, or a network of MONAI; keep its best and its last checkpoint.

    Prints a row an epoch: loss, validation Dice of whole, core and enhancing tumour,
    learning rate, and how long the network waited for data. Settings come from flags,
    then the config file, then defaults. Ctrl-C loses at most the epoch in work. Cases are
    prepared once, and again when their files have changed.

    Example: brats train --epochs 100 --gpu 0

    Example: brats train splits.yaml -c examples/cpu.yaml --device cpu -o runs/first

    Example: brats train --summary --set network=monai/SegResNet
    """
    from ..core.compute.devices import choose_devices
    from ..core.compute.distributed import Group, launch
    from ..core.train.config import parse_setting
    from ..core.train.run_record import Run

    run = Run(output) if output else Run.newest() if resume else Run.named_by_time()
    overrides = dict(parse_setting(text) for text in settings or [])
    flags = {"epochs": epochs, "patience": patience, "workers": workers}
    overrides |= {key: value for key, value in flags.items() if value is not None}
    if summary:
        settled = _settled(run, config, overrides, resume=resume)
        _show_costs(settled, choose_devices(device, gpu)[0])
        return
    jobs = _jobs(run, splits, fold, config, overrides, resume=resume)
    folder = store or splits.parent / "brats-store"
    if prepare_only:
        for job in jobs:
            prepared = _prepare(job, folder)
            cases = len(prepared.training) + len(prepared.validation)
            console.message(f"{cases} cases in {folder}")
        return
    devices, group = choose_devices(device, gpu), Group.from_environment()
    if not profile and group.leads:
        for job in jobs:
            if not job.resume:
                job.run.require_absent(overwrite=overwrite)
    for job in jobs:
        _network(job.config)  # what cannot be made is told now, not when the cases are prepared
    if len(devices) > 1 and group.size == 1 and not profile:
        status = launch([sys.executable, "-m", "brats_cli", *sys.argv[1:]], len(devices))
        raise typer.Exit(status)
    chosen = group.device(devices)
    if not group.leads:
        console.verbosity = -1
    # Of what was typed, what the runs' own files do not say.
    options = {"--store": store, "--gpu": gpu, "--device": None if device == "auto" else device}
    if fold == "all":
        options["--fold"] = fold
        options["-o"] = jobs[0].run.folder.parent
    deadline = time.monotonic() + (math.inf if max_time is None else max_time)
    with _quiet_about_peers(), group.joined(chosen):
        for job in jobs:
            with group.one_by_machine():
                prepared = _prepare(job, folder)
            with prepared.store.in_use():
                if profile:
                    _profile(job.config, prepared, chosen)
                    return
                with _told_how_to_resume(job.run, splits, options):
                    stopped = _train(job, prepared, chosen, group, deadline - time.monotonic())
            if stopped == "time":
                return
    if len(jobs) > 1 and group.leads:
        _folds_summary([job.run for job in jobs])


class _Job(NamedTuple):
    """One run: its settings and its split, which holds its fold alone."""

    run: Run
    config: TrainConfig
    split: Split
    resume: bool


def _jobs(
    run: Run,
    splits: Path,
    fold: str,
    config: Path | None,
    overrides: Mapping[str, object],
    *,
    resume: bool,
) -> list[_Job]:
    """The run that is meant, or one of each fold in folders of its own."""
    from ..core.data.splits import Split
    from ..core.errors import ConfigError

    def job(run: Run, number: int, *, resume: bool) -> _Job:
        if resume:
            run.require_present()
            # The run's copy of the split holds its own fold alone.
            number, split = 0, Split.load(run.splits)
        else:
            split = Split.load(splits)
        settled = _settled(run, config, overrides, resume=resume)
        return _Job(run, settled, replace(split, folds=(split.fold(number),)), resume)

    if fold.isdecimal():
        return [job(run, int(fold), resume=resume)]
    if fold != "all":
        raise ConfigError(f"--fold {fold} is no fold", hint="write --fold 0, or --fold all")
    if resume and run.folder.name.startswith("fold_"):  # the newest
        run = replace(run, folder=run.folder.parent)
    numbers = range(len(Split.load(splits).folds))
    runs = [run.fold(number) for number in numbers]
    if resume and not runs[0].config.is_file():
        runs[0].require_present()
    return [
        job(each, number, resume=resume and each.config.is_file())
        for number, each in zip(numbers, runs, strict=True)
    ]


def _settled(
    run: Run, config: Path | None, overrides: Mapping[str, Any], *, resume: bool
) -> TrainConfig:
    """The settings of a run, which a resumed one has in its own file."""
    from ..core.train.config import load_config

    if resume and config is None:
        return load_config(run.config, of_a_run=True, **overrides)
    return load_config(config, **overrides)


def _network(config: TrainConfig) -> Network:
    """The network of a config, not trained."""
    import torch

    from ..core.data.labels import REGIONS
    from ..core.model.config import UNetConfig
    from ..core.model.network import make_network

    with torch.device("meta" if isinstance(config.network, UNetConfig) else "cpu"):
        return make_network(
            config.network,
            in_channels=len(config.modalities),
            out_channels=len(REGIONS),
            patch_size=config.patch_size,
        )


def _show_costs(config: TrainConfig, device: torch.device) -> None:
    """A row for each part of the network: what it gives, and what it costs a patch."""
    from ..core.compute.devices import arithmetic
    from ..core.model.summary import Cost, costs

    dtype = arithmetic(device, config.precision)
    parts = costs(
        _network(config),
        in_channels=len(config.modalities),
        patch_size=config.patch_size,
        dtype=dtype,
    )
    total = Cost(
        part="total",
        parameters=sum(part.parameters for part in parts),
        flops=sum(part.flops for part in parts),
        kept_bytes=sum(part.kept_bytes for part in parts),
    )
    console.table(
        ["part", "output", "parameters", "GFLOP", "MB kept"],
        [
            [
                part.part,
                " x ".join(map(str, part.output)),
                f"{part.parameters:,}",
                f"{part.flops / 1e9:,.1f}",
                f"{part.kept_bytes / 1e6:,.1f}",
            ]
            for part in [*parts, total]
        ],
    )
    fixed = 4 * 4 * total.parameters / 1e9  # weights, gradients and Adam's two moments, float32
    name = str(dtype).removeprefix("torch.")
    console.message(
        f"for one patch of {config.patch_size} voxels an edge, in {name}: forward, a "
        "multiplication and an addition being\ntwo operations, the backward pass takes twice as "
        f"many; MB kept for the backward pass.\nTraining with batch_size {config.batch_size} takes "
        f"about {fixed + config.batch_size * total.kept_bytes / 1e9:.1f} GB, besides what the "
        "convolutions work in."
    )


@contextmanager
def _quiet_about_peers() -> Iterator[None]:
    """End without a word where another process of the training has told what is wrong."""
    from ..core.compute.distributed import PeerError

    try:
        yield
    except PeerError as error:
        raise typer.Exit(3) from error


@contextmanager
def _told_how_to_resume(run: Run, splits: Path, options: Mapping[str, object]) -> Iterator[None]:
    """On Ctrl-C or SIGTERM, say what is kept and how to go on.

    `last.pt` is that of the last whole epoch. Resuming trains the one in work again, on the same
    patches: what comes out is the run that was never stopped.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        words: list[object] = [] if str(splits) == "splits.yaml" else [splits]
        for option, value in {"-o": run.folder, **options}.items():
            words += [] if value is None else [option, value]
        command = f"brats train {shlex.join(map(str, words))} --resume"
        if run.last.exists():
            console.message(f"stopped; the epochs done are in last.pt\ngo on with: {command}")
        elif run.config.exists():
            console.message(
                f"stopped in the first epoch, of which nothing is kept\nbegin anew with: {command}"
            )
        raise


@dataclass(frozen=True)
class _Prepared:
    """The cases of a fold in their store."""

    store: Store
    training: StoredCases
    validation: StoredCases


def _prepare(job: _Job, folder: Path) -> _Prepared:
    """Prepare the cases of a run where they are not."""
    from ..core.compute.machine import available_cpus
    from ..core.prepared.store import Store, size_text, training_scheme

    config, split = job.config, job.split
    names, cases = split.fold(0), split.cases()
    training, validation = (
        [cases[case_id] for case_id in part] for part in (names.train, names.val)
    )
    used = [*training, *validation]
    schemes = {case.id: split.scheme_of(case.id) for case in used}
    store = Store(folder, training_scheme(schemes), config.modalities)
    work = [case for case, _ in store.missing(used, schemes)]
    if work:
        size = size_text(store.bytes_needed(work))
        console.message(f"preparing {len(work)} cases in {folder} (once, about {size})")
    workers = available_cpus() if config.workers is None else config.workers
    with console.progress() as bars:
        task = bars.add_task("preparing", total=len(work), visible=bool(work))
        for _ in store.prepare(used, schemes, workers=workers):
            bars.advance(task)
    return _Prepared(store, store.cases(training, schemes), store.cases(validation, schemes))


def _profile(config: TrainConfig, prepared: _Prepared, device: torch.device) -> None:
    """One line: whether the data or the network is the bottleneck, and what to change."""
    from ..core.compute.machine import available_cpus
    from ..core.train.training import WAIT_IS_LONG, profile, worker_count

    found = profile(config, prepared.training, prepared.store.scheme, device)
    workers, cpus = worker_count(config), available_cpus()
    if found.data_wait_percent < WAIT_IS_LONG:
        slower = "the network is"
        advice = "a GPU, bfloat16, fewer network.channels or a smaller patch_size"
    else:
        slower = "the data are"
        advice = (
            f"--workers {cpus} (now {workers})" if workers < cpus else "a --store on a faster disk"
        )
    console.result(
        f"{slower} the bottleneck: {found.data_wait_percent:.0f} % of the time is spent waiting "
        f"for patches, at {found.patches_per_second:.1f} patches/s; faster with {advice}"
    )


def _train(
    job: _Job, prepared: _Prepared, device: torch.device, group: Group, max_seconds: float
) -> str | None:
    """Run the epochs, showing and saving each; why it ended, where not by number."""
    from ..core.compute.devices import arithmetic, describe
    from ..core.train.run_record import Board
    from ..core.train.training import train as epochs_of

    run, config = job.run, job.config
    checkpoint = run.resume() if job.resume else None
    if not job.resume and group.leads:
        run.start(config, job.split)
    arithmetic_name = str(arithmetic(device, config.precision)).removeprefix("torch.")
    others = f" and {group.size - 1} more" if group.size > 1 else ""
    console.message(
        f"training on {describe(device)}{others} in {arithmetic_name}: "
        f"{len(prepared.training)} cases, {len(prepared.validation)} to validate\n"
        f"run: {run.folder}"
    )
    stopped = None
    with _Stops() as stops, Board(run) as board, console.last_line() as show:
        done = checkpoint.epoch if checkpoint else 0
        pace = _Pace(config, len(prepared.validation), done, show)
        to_note = job.resume and group.leads

        def step_done(step: int, loss: torch.Tensor) -> None:
            nonlocal to_note
            if to_note:  # not before: settings that do not fit the run are refused
                run.note(config)
                to_note = False
            stops.ask()
            pace.step(step, loss)

        def case_done(*_: object) -> None:
            stops.ask()
            pace.case()

        for shown, epoch in enumerate(
            epochs_of(
                config,
                prepared.training,
                prepared.validation,
                prepared.store.scheme,
                device,
                resume=checkpoint,
                group=group,
                max_seconds=max_seconds,
                on_step=step_done,
                on_case=case_done,
            )
        ):
            stopped = epoch.stops
            if not group.leads:
                continue
            with stops.later():
                board.add(epoch)
                run.record(epoch)
            if shown == 0 or (shown % HEADER_EVERY == 0 and console.is_live()):
                console.message(HEADER, style="bold")
            console.message(_row(epoch, config.epochs), style="green" if epoch.is_best else "")
            pace.next(epoch)
    if stopped == "patience":
        console.message(f"stopped: no better score for {config.patience} validations")
    elif stopped == "time":
        console.message("stopped: the time is up")
    _finish(run, prepared, device, group)
    if group.leads:
        _summary(run)
    return stopped


def _finish(run: Run, prepared: _Prepared, device: torch.device, group: Group) -> None:
    """Choose the best checkpoint's thresholds on the validation cases, where that is not done."""
    from ..core.model.checkpoint import Checkpoint
    from ..core.train.validation import finish

    found = Checkpoint.load(run.best) if group.leads and run.best.exists() else None
    best = group.as_the_first(found)
    if best is None or best.decision or not prepared.validation:
        return
    console.message("choosing thresholds on the validation cases")
    with console.progress() as bars:
        task = bars.add_task("passes", total=2 * len(group.share(prepared.validation)))
        finished, validated = finish(
            best, prepared.validation, device, group=group, on_pass=lambda: bars.advance(task)
        )
    if group.leads:
        run.conclude(finished, validated)


class _Stops:
    """Ctrl-C and SIGTERM: heard at once while the network learns, after it while files are written.

    Python drops an exception that is raised while it clears up an object, and matplotlib has many
    that are cleared up: a stop may be missed anywhere, so each step and case asks again.
    """

    def __init__(self) -> None:
        self.heard: int | None = None
        self.held_back = False

    def __enter__(self) -> _Stops:
        self.before = {
            number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _: object) -> None:
        self.heard = number
        if not self.held_back:
            self.ask()

    def ask(self) -> None:
        """End the training here, if that was asked for."""
        if self.heard == signal.SIGINT:
            raise KeyboardInterrupt
        if self.heard is not None:
            sys.exit(128 + self.heard)

    @contextmanager
    def later(self) -> Iterator[None]:
        """Hold a stop back until the block ends."""
        self.held_back = True
        try:
            yield
        finally:
            self.held_back = False
        self.ask()


class _Pace:
    """The line below the rows: how far the epoch in work is, and how long it all may take."""

    def __init__(self, config: TrainConfig, cases: int, done: int, show: console.ShowLine) -> None:
        self.config, self.cases, self.show = config, cases, show
        self.number = done + 1
        self.validated = 0
        self.validation_seconds = 0.0  # of the last validation
        self.step_seconds: float | None = None  # the mean of this epoch, else of the last
        self.first: float | None = None  # when this epoch's first step was done
        self.told = 0.0
        if done < config.epochs:
            self._line(0, "", config.steps_per_epoch)

    def step(self, step: int, loss: torch.Tensor) -> None:
        """A step is done; seldom enough that asking for its loss costs nothing, show it."""
        now = time.monotonic()
        if self.first is None:
            self.first = now  # workers and kernels start with the first step: it is not typical
        elif step > 1:
            self.step_seconds = (now - self.first) / (step - 1)
        steps = self.config.steps_per_epoch
        if console.is_live() and (now - self.told > 0.5 or step in (1, steps)):
            self.told = now
            self._line(step / steps, f"{step}/{steps}  loss {loss.item():.4f}", steps - step)

    def case(self) -> None:
        """A case is validated."""
        self.validated += 1
        told = f"validated {self.validated}/{self.cases}"
        self._line(self.validated / self.cases, told, 0)

    def next(self, epoch: Epoch) -> None:
        """An epoch is over."""
        self.number, self.validated, self.first = epoch.number + 1, 0, None
        self.validation_seconds = epoch.validation_seconds or self.validation_seconds
        if not epoch.stops and epoch.number < self.config.epochs:
            self._line(0, "", self.config.steps_per_epoch)

    def _line(self, share: float, told: str, steps_left: int) -> None:
        config = self.config
        left = ""
        if self.step_seconds is not None:
            unseen = 1 - self.validated / self.cases if self.cases else 0
            rest = steps_left * self.step_seconds + unseen * self.validation_seconds
            epoch = config.steps_per_epoch * self.step_seconds + self.validation_seconds
            run = rest + (config.epochs - self.number) * epoch
            left = f"  {console.duration(rest)} left, run {console.duration(run)}"
        number = f"{self.number}/{config.epochs}"
        self.show(f"{number:>7}", share, told + left)


def _row(epoch: Epoch, epochs: int) -> str:
    dice = [*(epoch.dice.values() if epoch.dice else [None] * 3), epoch.mean_dice]
    number = f"{epoch.number}/{epochs}"
    took = console.duration(epoch.seconds + epoch.validation_seconds)
    return (
        f"{number:>7} {epoch.loss:7.4f} {' '.join(f'{console.number(each):>5}' for each in dice)} "
        f"{epoch.learning_rate:8.1e} {epoch.patches_per_second:9.1f} "
        f"{epoch.data_wait_percent:4.0f}% {took:>7}{' best' if epoch.is_best else ''}"
    )


def _summary(run: Run) -> None:
    """The best epoch, what the run took, where it is, and the command that comes next."""
    from ..core.model.checkpoint import Checkpoint

    if not run.best.exists():
        console.message(f"{run.folder} has no validated epoch yet: --resume it with more --epochs")
        return
    rows, best = run.rows(), Checkpoint.load(run.best)
    dice = [best.scores.get(name) for name in ("WT", "TC", "ET")]
    seconds = sum(float(row["seconds"]) + float(row["validation_seconds"]) for row in rows)
    memory = max(float(row.get("peak_memory_mb") or 0) for row in rows)
    console.table(
        ["run", "best", "WT", "TC", "ET", "mean", "time", "memory"],
        [
            [
                str(run.folder),
                f"{best.epoch}/{rows[-1]['epoch']}",
                *map(console.number, [*dice, _mean(dice)]),
                console.duration(seconds),
                f"{memory / 1000:.1f} GB" if memory else "-",
            ]
        ],
    )
    made = (run.best, run.log, run.curves, run.validation)
    if best.decision:
        chosen = best.decision["thresholds"].items()
        console.message(
            f"thresholds: {', '.join(f'{name} {limit:g}' for name, limit in chosen)}; "
            f"ET of less than {best.decision['smallest_et_mm3']:g} mm3 is none"
        )
    console.message(
        f"in {run.folder}: {', '.join(path.name for path in made if path.exists())}\n"
        f"look: tensorboard --logdir {run.folder.parent}\n"
        f"next: brats predict CASE -o seg.nii.gz --model {run.folder}"
    )


def _folds_summary(runs: list[Run]) -> None:
    """A row for each fold, and their mean and standard deviation."""
    from ..core.model.checkpoint import Checkpoint

    found = [Checkpoint.load(run.best).scores for run in runs]
    scores = [[each.get(name) for name in ("WT", "TC", "ET")] for each in found]
    named = [[*dice, _mean(dice)] for dice in scores]
    rows = [
        [run.folder.name, *map(console.number, dice)] for run, dice in zip(runs, named, strict=True)
    ]
    known = [
        [value for value in column if value is not None] for column in zip(*named, strict=True)
    ]
    rows.append(["mean", *(console.number(fmean(column) if column else None) for column in known)])
    rows.append(
        ["sd", *(console.number(stdev(column) if column[1:] else None) for column in known)]
    )
    console.table(["fold", "WT", "TC", "ET", "mean"], rows)
    console.message(
        f"next: brats predict CASE -o seg.nii.gz --model {runs[0].folder.parent}, "
        "which takes the mean of all folds"
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
