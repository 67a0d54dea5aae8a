"""What a training leaves on disk: log, checkpoints, curves and TensorBoard events."""

from __future__ import annotations

import csv
import io
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.labels import REGIONS
from ..data.splits import Split
from ..errors import UnreadableFileError
from ..model.checkpoint import Checkpoint
from ..model.run_folder import RunFolder
from ..reading import read_table
from ..score.scores import write_csv
from ..writing import append, whole_file
from .config import TrainConfig
from .events import Epoch
from .figures import draw_curves
from .thresholds import FinalScore

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

_NEEDED = ("loss", "seconds", "validation_seconds")


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
        with (
            whole_file(self.log) as partial,
            partial.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        if epoch.is_best:
            replace(epoch.checkpoint, state=None).save(self.best)
        epoch.checkpoint.save(self.last)
        draw_curves(rows, self.curves)

    def conclude(self, best: Checkpoint, final: Sequence[FinalScore]) -> None:
        """Save the best checkpoint with its decision, and the final scores of each case."""
        rows = [
            {
                "case": case.case_id,
                "region": region,
                "dice": f"{found.dice:.6f}",
                "hausdorff95_mm": f"{found.hausdorff95_mm:.6f}",
            }
            for case in final
            for region, found in case.scores.items()
        ]
        columns = ("case", "region", "dice", "hausdorff95_mm")
        write_csv(self.validation, columns, rows, overwrite=True)
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
                if not 0 < int(row["epoch"]) < 1_000_000_000:
                    raise ValueError(row["epoch"])
                for name in COLUMNS:  # of another version of brats, some are not there
                    if row.get(name) or name in _NEEDED:
                        float(row[name])
        except (KeyError, ValueError) as error:
            raise UnreadableFileError(
                self.log,
                "it is not the log of a run",
                hint="was it edited? move it away to resume the run with a new one",
            ) from error
        return rows


class Board:
    """A run's TensorBoard events, in a file of its own in the run's folder.

    An epoch that is added again, after a resume, replaces the earlier one. (torch's `SummaryWriter`
    writes in a thread: where a disk is full, that prints a traceback, and training continues.)
    """

    def __init__(self, run: RunFolder) -> None:
        self.folder = run.folder
        self._file: Path | None = None

    def add(self, epoch: Epoch) -> None:
        """Add an epoch's numbers, and its preview if it has one, all or nothing.

        Raises:
            OutputError: If they cannot be written.
        """
        # Here, as a resume that is refused or has nothing to do leaves no file.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary

        made: Any = summary  # has no types
        now, number = time.time(), epoch.number
        shown = [made.scalar(name, value) for name, value in _scalars(epoch).items()]
        if epoch.preview is not None:
            shown.append(made.image("preview", epoch.preview.draw(), dataformats="HWC"))
        events = [Event(wall_time=now, step=number, summary=each) for each in shown]
        file = self._file
        if file is None:
            whose = f"{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
            file = self.folder / f"{_EVENTS}{int(now):010d}.{whose}"
            # From here on, what another file says of this step and later ones does not count.
            begun = SessionLog(status=SessionLog.START)
            events.insert(0, Event(wall_time=now, step=number, session_log=begun))
            events.insert(0, Event(wall_time=now, file_version="brain.Event:2"))
        content = io.BytesIO()
        for event in events:
            RecordWriter(content).write(event.SerializeToString())
        append(file, content.getvalue())
        self._file = file


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
