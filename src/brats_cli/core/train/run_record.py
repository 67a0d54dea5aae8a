"""What a training leaves on disk: log, checkpoints, curves and TensorBoard events."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..data.labels import REGIONS
from ..data.splits import Split
from ..errors import OutputError, UnreadableFileError
from ..model.checkpoint import Checkpoint
from ..model.run_folder import RunFolder
from ..reading import read_table
from ..writing import whole_file
from .config import TrainConfig
from .events import Epoch
from .figures import draw_curves
from .thresholds import FinalScore

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

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


class RunRecord(RunFolder):
    """The folder of a run, and what a training writes into it."""

    def start(self, config: TrainConfig, split: Split) -> None:
        """Make the folder, with config and split; in a folder `runs`, record it as the newest."""
        made = (self.log, self.curves, self.validation, self.best, self.last)
        for old in (*made, *self.folder.glob(f"{_EVENTS}*")):
            old.unlink(missing_ok=True)
        self.note(config)
        split.save(self.splits, overwrite=True)
        self.note_as_newest()

    def note(self, config: TrainConfig) -> None:
        """Write the resolved settings."""
        config.save(self.config)

    def resume(self) -> Checkpoint | None:
        """The last checkpoint, or None if the run ended before its first epoch did."""
        return Checkpoint.load(self.last) if self.last.exists() else None

    def record(self, epoch: Epoch) -> None:
        """Add an epoch to the log, save its checkpoints, and draw the curves again.

        `last.pt` is saved after the log and `best.pt`: if this is interrupted before, resuming
        repeats the epoch and writes the same. The curves come last, so no epoch is lost for them.
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

    def conclude(self, best: Checkpoint, final: Sequence[FinalScore]) -> None:
        """Save the best checkpoint with its decision, and the final scores of each case."""
        columns = ("case", "region", "dice", "hausdorff95_mm")
        with whole_file(self.validation) as partial, partial.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for case in final:
                for region, found in case.scores.items():
                    numbers = (found.dice, found.hausdorff95_mm)
                    writer.writerow([case.case_id, region, *(f"{value:.6f}" for value in numbers)])
        best.save(self.best)

    def rows(self) -> list[dict[str, str]]:
        """The log's rows so far.

        Raises:
            UnreadableFileError: If it is not the log of a run.
        """
        if not self.log.exists():
            return []
        rows = read_table(self.log)
        try:
            for row in rows:
                int(row["epoch"])
                for name in ("loss", "seconds", "validation_seconds"):
                    float(row[name])
        except (KeyError, ValueError) as error:
            raise UnreadableFileError(
                self.log,
                "it is not the log of a run",
                hint="was it edited? move it away to resume the run with a new one",
            ) from error
        return rows


class Board:
    """A run's TensorBoard events, in its folder; a context, at whose end they are all written.

    An epoch that is added again, after a resume, replaces the earlier one.
    """

    def __init__(self, run: RunFolder) -> None:
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

    def __exit__(self, kind: object, *_: object) -> None:
        if self._writer is None:
            return
        try:
            self._writer.close()
        except OSError as failure:
            if kind is None:  # else a full disk was noticed before
                reason = failure.strerror or str(failure)
                raise OutputError(self.folder, reason) from failure


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
