"""`brats train`: teach a network on a split."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import console

if TYPE_CHECKING:
    import torch

    from ..core.config import TrainConfig
    from ..core.runs import Run
    from ..core.splits import Split
    from ..core.store import Store, StoredCases
    from ..core.training import Epoch

HEADER = "  epoch    loss    WT    TC    ET  mean       lr patches/s  wait    time"

HEADER_EVERY = 20
"""Rows after which a terminal shows the header again: the last one may be out of sight."""


def train(
    splits: Annotated[Path, typer.Argument(help="The splits file.")] = Path("splits.yaml"),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the run [runs/DATE_TIME].")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs to train [100].")] = None,
    gpu: Annotated[int | None, typer.Option(help="Number of the CUDA GPU to use.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file with settings.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, as network.channels=16.")
    ] = None,
    fold: Annotated[int, typer.Option(help="Fold of the split to train on.")] = 0,
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
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in -o, or with the newest.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in -o.")] = False,
) -> None:
    """Train a 3D U-Net with Dice loss; keep its best and its last checkpoint.

    Prints a row an epoch: loss, validation Dice of whole, core and enhancing tumour,
    learning rate, and how long the network waited for data. Settings come from flags,
    then the config file, then defaults. Ctrl-C loses at most the epoch in work. Cases are
    prepared once, and again when their files have changed.

    Example: brats train --epochs 100 --gpu 0

    Example: brats train splits.yaml -c examples/cpu.yaml --device cpu -o runs/first
    """
    from ..core.config import load_config, parse_setting
    from ..core.devices import choose_device
    from ..core.runs import Run
    from ..core.splits import Split

    run = Run(output) if output else Run.newest() if resume else Run.named_by_time()
    overrides = dict(parse_setting(text) for text in settings or [])
    flags = {"epochs": epochs, "patience": patience, "workers": workers}
    overrides |= {key: value for key, value in flags.items() if value is not None}
    if resume:
        run.require_present()
        resolved = load_config(config or run.config, **overrides)
        split, fold = Split.load(run.splits), 0  # the run's copy holds its own fold alone
    else:
        if not prepare_only and not profile:
            run.require_absent(overwrite=overwrite)
        resolved = load_config(config, **overrides)
        split = Split.load(splits)
    folder = store or splits.parent / "brats-store"
    if prepare_only:
        prepared = _prepare(split, fold, resolved, folder)
        console.message(f"{len(prepared.training) + len(prepared.validation)} cases in {folder}")
        return
    chosen = choose_device(device, gpu)
    prepared = _prepare(split, fold, resolved, folder)
    split = replace(split, folds=(split.fold(fold),))
    with prepared.store.in_use():
        if profile:
            _profile(resolved, prepared, chosen)
            return
        # Of what was typed, what the run's own files do not say.
        options = {"--store": store, "--gpu": gpu, "--device": None if device == "auto" else device}
        with _told_how_to_resume(run, splits, options):
            _train(run, resolved, split, prepared, chosen, resume=resume)


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


def _prepare(split: Split, fold: int, config: TrainConfig, folder: Path) -> _Prepared:
    """Prepare the cases of a fold where they are not."""
    from ..core.parallel import available_cpus
    from ..core.store import Store, size_text, training_scheme

    names, cases = split.fold(fold), split.cases()
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
    from ..core.parallel import available_cpus
    from ..core.training import WAIT_IS_LONG, profile, worker_count

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
    run: Run,
    config: TrainConfig,
    split: Split,
    prepared: _Prepared,
    device: torch.device,
    *,
    resume: bool,
) -> None:
    """Run the epochs, showing and saving each."""
    from ..core.devices import arithmetic, describe
    from ..core.runs import Board
    from ..core.training import train as epochs_of

    checkpoint = run.resume() if resume else None
    if not resume:
        run.start(config, split)
    arithmetic_name = str(arithmetic(device, config.precision)).removeprefix("torch.")
    console.message(
        f"training on {describe(device)} in {arithmetic_name}: {len(prepared.training)} cases, "
        f"{len(prepared.validation)} to validate\nrun: {run.folder}"
    )
    with Board(run) as board, console.last_line() as show:
        pace = _Pace(config, len(prepared.validation), checkpoint.epoch if checkpoint else 0, show)
        for shown, epoch in enumerate(
            epochs_of(
                config,
                prepared.training,
                prepared.validation,
                prepared.store.scheme,
                device,
                resume=checkpoint,
                on_step=pace.step,
                on_case=lambda *_: pace.case(),
            )
        ):
            if resume:
                run.note(config)  # not before: settings that do not fit the run are refused
            board.add(epoch)
            run.record(epoch)
            if shown == 0 or (shown % HEADER_EVERY == 0 and console.is_live()):
                console.message(HEADER, style="bold")
            console.message(_row(epoch, config.epochs), style="green" if epoch.is_best else "")
            pace.next(epoch)
            if epoch.stops:
                console.message(f"stopped: no better score for {config.patience} validations")
    _summary(run)


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
            unseen = 1 - self.validated / self.cases
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
    rows = run.rows()
    scored = [row for row in rows if row["val_dice_mean"]]
    if not scored:
        console.message(f"{run.folder} has no validated epoch yet: --resume it with more --epochs")
        return
    best = max(scored, key=lambda row: float(row["val_dice_mean"]))
    seconds = sum(float(row["seconds"]) + float(row["validation_seconds"]) for row in rows)
    memory = max(float(row.get("peak_memory_mb") or 0) for row in rows)
    console.table(
        ["run", "best", "WT", "TC", "ET", "mean", "time", "memory"],
        [
            [
                str(run.folder),
                f"{best['epoch']}/{rows[-1]['epoch']}",
                *(f"{float(best[f'val_dice_{name}']):.3f}" for name in ("WT", "TC", "ET", "mean")),
                console.duration(seconds),
                f"{memory / 1000:.1f} GB" if memory else "-",
            ]
        ],
    )
    files = ", ".join(path.name for path in (run.best, run.log, run.curves))
    console.message(
        f"in {run.folder}: {files}\n"
        f"look: tensorboard --logdir {run.folder.parent}\n"
        f"next: brats predict CASE -o seg.nii.gz --model {run.folder}"
    )
