"""What lies where in the folder of a run, and which run is the newest; no checkpoint is read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import TypeVar

from ..errors import CheckpointError, OutputError, OutputExistsError
from ..reading import read_text
from ..writing import require_writable, whole_file

Kind = TypeVar("Kind", bound="RunFolder")

RUNS = Path("runs")
"""Where runs go by default, in the working folder."""


@dataclass(frozen=True)
class RunFolder:
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
        """One row per epoch."""
        return self.folder / "log.csv"

    @property
    def validation(self) -> Path:
        """Final scores of each validation case, as the best checkpoint segments it."""
        return self.folder / "validation.csv"

    @property
    def curves(self) -> Path:
        """The log as a picture."""
        return self.folder / "curves.png"

    @property
    def config(self) -> Path:
        """The resolved settings."""
        return self.folder / "config.yaml"

    @property
    def splits(self) -> Path:
        """A copy of the split, with the fold of the run alone."""
        return self.folder / "splits.yaml"

    def fold(self: Kind, number: int) -> Kind:
        """The run of one fold, where there is one of each."""
        return type(self)(self.folder / f"fold_{number}")

    @classmethod
    def newest(cls: type[Kind]) -> Kind:
        """The run that was started last in the working folder.

        Raises:
            CheckpointError: If there is none.
        """
        pointer = RUNS / "latest"
        if not pointer.is_file():
            raise CheckpointError(
                f"there is no trained model in {RUNS.absolute()}",
                hint="train one with `brats train --epochs 100`, or name one with --model",
            )
        name = read_text(pointer, hint="remove it, and name the run with --model").strip()
        return cls(RUNS / name)

    @classmethod
    def named_by_time(cls: type[Kind]) -> Kind:
        """A run whose name is the date and time, and which does not exist yet."""
        return cls(RUNS / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))

    def fresh(self: Kind) -> Kind:
        """This run, its folder made; or the first of `NAME-2`, `NAME-3` that does not exist yet.

        Runs that start within one second have one name, and each needs a folder of its own.

        Raises:
            OutputError: If no folder can be made.
        """
        for number in count(1):
            folder = self.folder if number == 1 else Path(f"{self.folder}-{number}")
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise OutputError(folder, error.strerror or str(error)) from error
            break
        return type(self)(folder)

    def note_as_newest(self) -> None:
        """In a folder `runs`, write into `runs/latest` that this run is the newest."""
        folder = self.folder.absolute()
        for runs in list(folder.parents)[:2]:  # the second, of the folds of a run
            if runs.name == RUNS.name:
                with whole_file(runs / "latest") as partial:
                    name = str(folder.relative_to(runs))
                    partial.write_bytes(os.fsencode(name) + b"\n")

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


def checkpoint_paths(model: Path | None) -> tuple[Path, ...]:
    """The checkpoints meant by a run's folder, a checkpoint file, or nothing (the newest run's).

    A folder with one run per fold means the best checkpoint of every fold.

    Raises:
        CheckpointError: If there is none.
    """
    if model is not None and model.is_file():
        return (model,)
    run = RunFolder(model) if model is not None else RunFolder.newest()
    folds = sorted(run.folder.glob("fold_*/best.pt"))
    if not run.best.is_file() and not folds:
        which = run.folder if model is not None else f"{run.folder}, the newest run"
        raise CheckpointError(
            f"there is no best.pt in {which}",
            hint="give a run's folder or a checkpoint with --model; `brats train` makes them",
        )
    return (run.best,) if run.best.is_file() else tuple(folds)


def checkpoint_path(model: Path) -> Path:
    """The one checkpoint meant by a run's folder or a checkpoint file.

    Raises:
        CheckpointError: If there is none, or one per fold.
    """
    paths = checkpoint_paths(model)
    if len(paths) > 1:
        raise CheckpointError(
            f"{model} holds the networks of {len(paths)} folds", hint=f"choose one: {paths[0]}"
        )
    return paths[0]
