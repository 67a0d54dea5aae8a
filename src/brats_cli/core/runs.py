"""What a training leaves on disk, and which run is the newest."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from .checkpoints import Checkpoint
from .config import TrainConfig
from .errors import CheckpointError, OutputExistsError
from .files import require_writable, whole_file
from .labels import REGIONS
from .splits import Split
from .training import Epoch

RUNS = Path("runs")
"""Where runs go by default, in the folder one works in."""

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
        for name in ("log.csv", "best.pt", "last.pt"):
            (self.folder / name).unlink(missing_ok=True)
        self.note(config)
        split.save(self.splits, overwrite=True)
        if self.folder.absolute().parent.name == RUNS.name:
            with whole_file(self.folder.parent / "latest") as partial:
                partial.write_text(self.folder.name + "\n", encoding="utf-8")

    def note(self, config: TrainConfig) -> None:
        """Write the resolved config."""
        config.save(self.config)

    def resume(self) -> Checkpoint | None:
        """The last checkpoint, or None if the run ended before its first epoch did."""
        return Checkpoint.load(self.last) if self.last.exists() else None

    def record(self, epoch: Epoch) -> None:
        """Add an epoch to the log, and save its checkpoints.

        `last.pt` goes last: if this is cut short, resuming repeats the epoch and writes the same.
        """
        rows = [row for row in self.rows() if int(row["epoch"]) < epoch.number]
        with whole_file(self.log) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows([*rows, _row(epoch)])
        if epoch.is_best:
            replace(epoch.checkpoint, state=None).save(self.best)
        epoch.checkpoint.save(self.last)

    def rows(self) -> list[dict[str, str]]:
        """The log's rows so far."""
        if not self.log.exists():
            return []
        with self.log.open(newline="") as file:
            return list(csv.DictReader(file))


def checkpoint_path(model: Path | None) -> Path:
    """The checkpoint meant by a run's folder, a checkpoint file, or nothing (the newest run's).

    Raises:
        CheckpointError: If there is none.
    """
    if model is not None and model.is_file():
        return model
    run = Run(model) if model is not None else Run.newest()
    if not run.best.is_file():
        raise CheckpointError(
            f"there is no best.pt in {run.folder}",
            hint="give a run's folder or a checkpoint with --model; `brats train` makes them",
        )
    return run.best


def _row(epoch: Epoch) -> Mapping[str, str | int]:
    dice = epoch.dice or {}
    values: list[str | int] = [
        epoch.number,
        f"{epoch.loss:.6f}",
        *(f"{dice[region]:.6f}" if dice else "" for region in REGIONS),
        "" if epoch.mean_dice is None else f"{epoch.mean_dice:.6f}",
        int(epoch.is_best),
        f"{epoch.learning_rate:.3g}",
        f"{epoch.seconds:.2f}",
        f"{epoch.validation_seconds:.2f}",
        f"{epoch.data_wait_percent:.1f}",
        f"{epoch.patches_per_second:.2f}",
    ]
    return dict(zip(COLUMNS, values, strict=True))
