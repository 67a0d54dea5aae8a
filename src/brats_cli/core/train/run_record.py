"""What a training leaves on disk, and which run is the newest."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ..data.labels import REGIONS
from ..data.splits import Split
from ..errors import CheckpointError, OutputError, OutputExistsError
from ..model.checkpoint import Checkpoint
from ..writing import require_writable, whole_file
from .config import TrainConfig
from .figures import draw_curves
from .training import Epoch
from .validation import CaseValidation

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

RUNS = Path("runs")
"""Where runs go by default, in the folder one works in."""

_EVENTS = "events.out.tfevents."  # how TensorBoard names its files

COLUMNS = (
    "epoch",
    "loss",
    *(f"val_dice_{region}" for region in REGIONS),
    "val_dice_mean",
    "is_best",
    "learning_rate",
    "seconds",
    "validation_seconds",
    "data_wait_percent",
    "patches_per_second",
    "peak_memory_mb",
)


@dataclass(frozen=True)
class Run:
    """The folder of one training."""

    folder: Path

    @property
    def best(self) -> Path:
        """The checkpoint of the best validation."""
        return self.folder / "best.pt"

    @property
    def last(self) -> Path:
        """The checkpoint of the last epoch, to resume from."""
        return self.folder / "last.pt"

    @property
    def log(self) -> Path:
        """A row an epoch."""
        return self.folder / "log.csv"

    @property
    def validation(self) -> Path:
        """Scores of each validation case at the end, as the best checkpoint segments it."""
        return self.folder / "validation.csv"

    def fold(self, number: int) -> Run:
        """The run of one fold, where there is one of each."""
        return Run(self.folder / f"fold_{number}")

    @property
    def curves(self) -> Path:
        """The log as a picture."""
        return self.folder / "curves.png"

    @classmethod
    def newest(cls) -> Run:
        """The run that was started last in the folder one works in.

        Raises:
            CheckpointError: If there is none.
        """
        pointer = RUNS / "latest"
        if not pointer.is_file():
            raise CheckpointError(
                f"there is no trained model in {RUNS.absolute()}",
                hint="train one with `brats train --epochs 100`, or name one with --model",
            )
        return cls(RUNS / pointer.read_text(encoding="utf-8").strip())

    @classmethod
    def named_by_time(cls) -> Run:
        """A run whose name is the time of day, and which does not exist yet."""
        return cls(RUNS / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))

    @property
    def config(self) -> Path:
        """Every setting, resolved."""
        return self.folder / "config.yaml"

    @property
    def splits(self) -> Path:
        """Who was trained on."""
        return self.folder / "splits.yaml"

    def require_absent(self, *, overwrite: bool) -> None:
        """Check that a new run may go here.

        Raises:
            OutputExistsError: If there is a run and `overwrite` is false.
            OutputError: If the folder cannot be made.
        """
        require_writable(self.log, overwrite=overwrite)
        if self.last.exists() and not overwrite:
            raise OutputExistsError(self.folder)

    def require_present(self) -> None:
        """Check that there is a run to resume.

        Raises:
            CheckpointError: If not.
        """
        if not self.config.is_file() or not self.splits.is_file():
            raise CheckpointError(
                f"there is no run to resume in {self.folder}",
                hint="name the run's folder with -o, or train without --resume",
            )

    def start(self, config: TrainConfig, split: Split) -> None:
        """Make the folder, with its config and split; in a folder `runs`, note it as the newest."""
        made = (self.log, self.curves, self.validation, self.best, self.last)
        for old in (*made, *self.folder.glob(f"{_EVENTS}*")):
            old.unlink(missing_ok=True)
        self.note(config)
        split.save(self.splits, overwrite=True)
        folder = self.folder.absolute()
        for runs in list(folder.parents)[:2]:  # the second, of the folds of a run
            if runs.name == RUNS.name:
                with whole_file(runs / "latest") as partial:
                    partial.write_text(f"{folder.relative_to(runs)}\n", encoding="utf-8")

    def note(self, config: TrainConfig) -> None:
        """Write the resolved config."""
        config.save(self.config)

    def resume(self) -> Checkpoint | None:
        """The last checkpoint, or None if the run ended before its first epoch did."""
        return Checkpoint.load(self.last) if self.last.exists() else None

    def record(self, epoch: Epoch) -> None:
        """Add an epoch to the log, save its checkpoints, and draw the curves anew.

        `last.pt` goes after what it makes sure of: if this is cut short before, resuming repeats
        the epoch and writes the same. A picture is not worth an epoch.
        """
        rows = [row for row in self.rows() if int(row["epoch"]) < epoch.number]
        # A log of another version of brats keeps its columns, and has no values in ours.
        columns = list(dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)]))
        rows.append(_row(epoch))
        with whole_file(self.log) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        if epoch.is_best:
            replace(epoch.checkpoint, state=None).save(self.best)
        epoch.checkpoint.save(self.last)
        draw_curves(rows, self.curves)

    def conclude(self, best: Checkpoint, validated: Sequence[CaseValidation]) -> None:
        """Save the best checkpoint as it was finished, and what each validation case scores."""
        columns = ("case", "region", "dice", "hausdorff95_mm")
        with whole_file(self.validation) as partial, partial.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for case in validated:
                for region, found in case.scores.items():
                    numbers = (found.dice, found.hausdorff95_mm)
                    writer.writerow([case.case_id, region, *(f"{value:.6f}" for value in numbers)])
        best.save(self.best)

    def rows(self) -> list[dict[str, str]]:
        """The log's rows so far."""
        if not self.log.exists():
            return []
        with self.log.open(newline="") as file:
            return list(csv.DictReader(file))


class Board:
    """A run's events for TensorBoard, in its folder; a context, at whose end they are all written.

    What it shows of an epoch that is added again, after a resume, is what was added last.
    """

    def __init__(self, run: Run) -> None:
        self.folder = run.folder
        self._writer: SummaryWriter | None = None

    def add(self, epoch: Epoch) -> None:
        """Add an epoch's numbers, and its preview if it has one.

        Raises:
            OutputError: If they cannot be written.
        """
        try:
            if self._writer is None:
                # Here, as a resume that is refused or has nothing to do leaves no file.
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self.folder), purge_step=epoch.number)
            for name, value in _scalars(epoch).items():
                self._writer.add_scalar(name, value, epoch.number)
            if epoch.preview is not None:
                picture = epoch.preview.draw()
                self._writer.add_image("preview", picture, epoch.number, dataformats="HWC")
            self._writer.flush()
        except OSError as error:
            raise OutputError(self.folder, error.strerror or str(error)) from error

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()


def checkpoint_paths(model: Path | None) -> tuple[Path, ...]:
    """The checkpoints meant by a run's folder, a checkpoint file, or nothing (the newest run's).

    A folder with a run of each fold means the best of all folds.

    Raises:
        CheckpointError: If there is none.
    """
    if model is not None and model.is_file():
        return (model,)
    run = Run(model) if model is not None else Run.newest()
    folds = sorted(run.folder.glob("fold_*/best.pt"))
    if not run.best.is_file() and not folds:
        raise CheckpointError(
            f"there is no best.pt in {run.folder}",
            hint="give a run's folder or a checkpoint with --model; `brats train` makes them",
        )
    return (run.best,) if run.best.is_file() else tuple(folds)


def _row(epoch: Epoch) -> dict[str, str]:
    dice = epoch.dice or {}
    values = [
        str(epoch.number),
        f"{epoch.loss:.6f}",
        *(f"{dice[region]:.6f}" if dice else "" for region in REGIONS),
        "" if epoch.mean_dice is None else f"{epoch.mean_dice:.6f}",
        str(int(epoch.is_best)),
        f"{epoch.learning_rate:.3g}",
        f"{epoch.seconds:.2f}",
        f"{epoch.validation_seconds:.2f}",
        f"{epoch.data_wait_percent:.1f}",
        f"{epoch.patches_per_second:.2f}",
        f"{epoch.peak_memory_mb:.0f}",
    ]
    return dict(zip(COLUMNS, values, strict=True))


def _scalars(epoch: Epoch) -> Mapping[str, float]:
    """An epoch's numbers by the names that TensorBoard groups them by."""
    return {
        "loss": epoch.loss,
        "learning_rate": epoch.learning_rate,
        **{f"dice/{region}": value for region, value in (epoch.dice or {}).items()},
        **({"dice/mean": epoch.mean_dice} if epoch.mean_dice is not None else {}),
        "speed/patches_per_second": epoch.patches_per_second,
        "speed/data_wait_percent": epoch.data_wait_percent,
        "memory/peak_mb": epoch.peak_memory_mb,
    }
