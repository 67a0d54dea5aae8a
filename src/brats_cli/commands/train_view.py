"""What `brats train` shows of a training: a row per epoch, a line below the rows, and tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from .. import console
from ..core.wording import count_of, listing, size_text

if TYPE_CHECKING:
    from ..core.train import events as e
    from ..core.train.events import Epoch, Profile, StepDone
    from ..core.train.run import Event
    from ..core.train.start import Initialised
    from ..core.train.thresholds import SelectionPass

REGIONS = ("WT", "TC", "ET")

HEADER = "  epoch    loss    WT    TC    ET  mean       lr patches/s  wait    time"

HEADER_EVERY = 20
"""Rows after which a terminal shows the header again: the last one may be out of sight."""


class TrainView:
    """Shows the events of a training; a context, at whose end no live line is left.

    Attributes:
        folder: Of the run in progress, or None.
        all_folds: Whether one run per fold is trained.
    """

    def __init__(self, *, all_folds: bool, report_prepared: bool) -> None:
        self.folder: Path | None = None
        self.all_folds = all_folds
        self.report_prepared = report_prepared
        self._live = ExitStack()
        self._advance: Callable[[], None] = lambda: None
        self._rows = 0
        self._pace: Pace | None = None

    def __enter__(self) -> TrainView:
        return self

    def __exit__(self, *_: object) -> None:
        self._live.close()

    def show(self, event: Event) -> None:
        """Show what has happened."""
        from ..core.train import events as e
        from ..core.train.events import CaseValidated, Epoch, Profile, StepDone
        from ..core.train.start import Initialised
        from ..core.train.thresholds import SelectionPass

        match event:
            case StepDone() if self._pace:
                self._pace.step(event)
            case CaseValidated() if self._pace:
                self._pace.case()
            case Epoch() if self._pace:
                self._epoch(event, self._pace)
            case e.Preparing():
                size = size_text(event.size_bytes)
                console.message(
                    f"preparing {count_of(event.cases, 'case')} in {event.folder} "
                    f"(once, about {size})"
                )
                self._bar("preparing", event.cases)
            case e.CasePrepared():
                self._advance()
            case e.Prepared():
                self._live.close()
                if self.report_prepared:
                    console.message(f"{count_of(event.cases, 'case')} in {event.folder}")
            case Initialised():
                _show_initialised(event)
            case e.RunStarted():
                self._start(event)
            case e.Stopped():
                self._live.close()
                console.message(
                    f"stopped: no better score in {event.patience} validations"
                    if event.reason == "patience"
                    else "stopped: the time is up"
                )
            case SelectionPass():
                self._selection(event)
            case e.RunFinished():
                self._live.close()
                self.folder = None
                _show_result(event)
            case e.FoldsFinished():
                _show_folds(event)
            case e.NetworkCosts():
                _show_costs(event)
            case Profile():
                _show_profile(event)

    def _start(self, event: e.RunStarted) -> None:
        others = f" and {event.processes - 1} more" if event.processes > 1 else ""
        fewer = event.validation < event.validation_in_all
        share = f" ({event.validation} of them after each epoch)" if fewer else ""
        console.message(
            f"training on {event.device}{others} in {event.dtype}: "
            f"{count_of(event.training, 'training case')}, "
            f"{count_of(event.validation_in_all, 'validation case')}{share}\n"
            f"run: {event.folder}"
        )
        self.folder, self._rows = event.folder, 0
        self._pace = Pace(event, self._live.enter_context(console.last_line()))

    def _epoch(self, epoch: Epoch, pace: Pace) -> None:
        if self._rows == 0 or (self._rows % HEADER_EVERY == 0 and console.is_live()):
            console.message(HEADER, style="bold")
        self._rows += 1
        console.message(_row(epoch, pace.epochs), style="green" if epoch.is_best else "")
        pace.next(epoch)

    def _selection(self, event: SelectionPass) -> None:
        if event.done:
            self._advance()
            return
        self._live.close()
        console.message("selecting thresholds on the validation cases")
        self._bar("passes", event.passes)

    def _bar(self, text: str, total: int) -> None:
        bars = self._live.enter_context(console.progress())
        task = bars.add_task(text, total=total)
        self._advance = lambda: bars.advance(task)


def _show_initialised(event: Initialised) -> None:
    total = len(event.fitting) + len(event.random)
    console.message(f"starting from {event.file}: {len(event.fitting)} of {total} tensors")
    for name, tensors in (("random", event.random), ("unused", event.unused)):
        if tensors:
            console.message(f"{name}: {listing(tensors, shown=8)}")
    for difference in event.differences:
        console.warning(difference)
    if event.frozen:
        console.message(f"frozen: the encoder, {event.frozen / 1e6:.1f} million weights")


class Pace:
    """The line below the rows: the progress of the epoch, and how long it all may take."""

    def __init__(self, run: e.RunStarted, show: console.ShowLine) -> None:
        self.epochs, self.steps, self.cases = run.epochs, run.steps_per_epoch, run.validation
        self.show = show
        self.number = run.epochs_done + 1
        self.validated = 0
        self.validation_seconds = 0.0  # of the last validation
        self.step_seconds: float | None = None  # the mean of this epoch, else of the last
        self.first: float | None = None  # when this epoch's first step was done
        self.shown = 0.0
        if run.epochs_done < run.epochs:
            self._line(0, "", self.steps)

    def step(self, event: StepDone) -> None:
        """A step is done; seldom enough that asking for its loss costs nothing, show it."""
        now = time.monotonic()
        if self.first is None:
            self.first = now  # workers and kernels start with the first step: it is not typical
        elif event.step > 1:
            self.step_seconds = (now - self.first) / (event.step - 1)
        if console.is_live() and (now - self.shown > 0.5 or event.step in (1, self.steps)):
            self.shown = now
            text = f"{event.step}/{self.steps}  loss {event.loss:.4f}"
            self._line(event.step / self.steps, text, self.steps - event.step)

    def case(self) -> None:
        """A case is validated."""
        self.validated += 1
        text = f"validated {self.validated}/{self.cases}"
        self._line(self.validated / self.cases, text, 0)

    def next(self, epoch: Epoch) -> None:
        """An epoch is over."""
        self.number, self.validated, self.first = epoch.number + 1, 0, None
        self.validation_seconds = epoch.validation_seconds or self.validation_seconds
        if not epoch.stops and epoch.number < self.epochs:
            self._line(0, "", self.steps)

    def _line(self, share: float, text: str, steps_left: int) -> None:
        left = ""
        if self.step_seconds is not None:
            unseen = 1 - self.validated / self.cases if self.cases else 0
            rest = steps_left * self.step_seconds + unseen * self.validation_seconds
            epoch = self.steps * self.step_seconds + self.validation_seconds
            run = rest + (self.epochs - self.number) * epoch
            left = f"  {console.duration(rest)} left, run {console.duration(run)}"
        number = f"{self.number}/{self.epochs}"
        self.show(f"{number:>7}", share, text + left)


def _row(epoch: Epoch, epochs: int) -> str:
    dice = [*(epoch.dice.values() if epoch.dice else [None] * 3), epoch.mean_dice]
    number = f"{epoch.number}/{epochs}"
    took = console.duration(epoch.seconds + epoch.validation_seconds)
    return (
        f"{number:>7} {epoch.loss:7.4f} {' '.join(f'{console.number(each):>5}' for each in dice)} "
        f"{epoch.learning_rate:8.1e} {epoch.patches_per_second:9.1f} "
        f"{epoch.data_wait_percent:4.0f}% {took:>7}{' best' if epoch.is_best else ''}"
    )


def _show_result(run: e.RunFinished) -> None:
    """The best epoch, what the run took, where it is, and the command that comes next."""
    if run.best_epoch is None:
        console.message(f"no epoch of {run.folder} was validated: use --resume with more --epochs")
        return
    dice = _dice(run)
    memory = f"{run.peak_memory_mb / 1000:.1f} GB" if run.peak_memory_mb else "-"
    took = console.duration(run.seconds)
    best = f"{run.best_epoch}/{run.epochs}"
    console.table(
        ["run", "best", *REGIONS, "mean", "time", "memory"],
        [[str(run.folder), best, *map(console.number, dice), took, memory]],
    )
    if run.decision:
        chosen = ", ".join(f"{name} {limit:g}" for name, limit in run.decision.thresholds.items())
        smallest = run.decision.smallest_et_mm3
        rule = (
            f"; predicted enhancing tumour below {smallest:g} mm3 in total is relabelled as "
            "necrosis"
        )
        console.message(f"thresholds: {chosen}{rule if smallest else ''}")
    console.message(
        f"in {run.folder}: {', '.join(path.name for path in run.files)}\n"
        f"curves: tensorboard --logdir {run.folder.parent}\n"
        f"next: brats predict CASE -o seg.nii.gz --model {run.folder}"
    )


def _show_folds(event: e.FoldsFinished) -> None:
    """A row per fold, and their mean and standard deviation."""
    scores = [_dice(run) for run in event.runs]
    columns = [[value for value in each if value is not None] for each in zip(*scores, strict=True)]
    rows = [
        [run.folder.name, *map(console.number, dice)]
        for run, dice in zip(event.runs, scores, strict=True)
    ]
    rows.append(["mean", *(console.number(fmean(each) if each else None) for each in columns)])
    rows.append(["sd", *(console.number(stdev(each) if each[1:] else None) for each in columns)])
    console.table(["fold", *REGIONS, "mean"], rows)
    console.message(
        f"next: brats predict CASE -o seg.nii.gz --model {event.folder}, "
        "which averages the models of all folds"
    )


def _dice(run: e.RunFinished) -> list[float | None]:
    """Dice of each region, and their mean."""
    dice = [run.scores.get(name) for name in REGIONS]
    return [*dice, _mean(dice)]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _show_costs(event: e.NetworkCosts) -> None:
    """A row for each part of the network: its output, and its cost per patch."""
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
            for part in [*event.parts, event.total]
        ],
    )
    console.message(
        f"for one patch of {event.patch_size} voxels per edge, in {event.dtype}: GFLOP of the "
        "forward pass (a\nmultiplication and an addition are two operations; the backward pass "
        "takes twice as\nmany), and MB kept for the backward pass. Training with batch_size "
        f"{event.batch_size} takes about\n{event.training_bytes / 1e9:.1f} GB, and the working "
        "memory of the convolutions."
    )


def _show_profile(found: Profile) -> None:
    """One line: whether the data or the network is the bottleneck, and what to change."""
    if found.data_is_bottleneck:
        slower = "the data are"
        advice = (
            f"--workers {found.cpus} (now {found.workers})"
            if found.workers < found.cpus
            else "a --store on a faster disk"
        )
    else:
        slower = "the network is"
        advice = "fewer network.channels or a smaller patch_size"
        if found.precision == "float32":
            advice = f"precision=bfloat16, {advice}"
        if found.device == "cpu":
            advice = f"a GPU, {advice}"
    console.result(
        f"{slower} the bottleneck: {found.data_wait_percent:.0f} % of the time is spent waiting "
        f"for patches, at {found.patches_per_second:.1f} patches/s; faster with {advice}"
    )
