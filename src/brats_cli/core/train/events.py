"""What happens during a training, beside its steps, cases and epochs, as `run.train` yields it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..model.decision import Decision
from ..model.summary import Cost
from .training import Stop


@dataclass(frozen=True)
class Preparing:
    """Cases are being prepared that are not in the store.

    Attributes:
        cases: Their number.
        size_bytes: About what they take on disk.
        folder: The store.
    """

    cases: int
    size_bytes: int
    folder: Path


@dataclass(frozen=True)
class CasePrepared:
    """A case is in the store now."""

    case_id: str


@dataclass(frozen=True)
class Prepared:
    """All cases of a run are in the store.

    Attributes:
        cases: Their number.
        folder: The store.
    """

    cases: int
    folder: Path


@dataclass(frozen=True)
class RunStarted:
    """A run starts, or resumes.

    Attributes:
        folder: Of the run.
        device: What computes, as its maker names it.
        processes: Processes that train together.
        dtype: The network's arithmetic, such as bfloat16.
        training: Number of training cases.
        validation: Number of cases that each validation takes.
        validation_in_all: Number of validation cases, which are all scored at the end.
        epochs: Epochs of the whole run.
        epochs_done: Of these, those before it was resumed.
        steps_per_epoch: Steps per epoch.
    """

    folder: Path
    device: str
    processes: int
    dtype: str
    training: int
    validation: int
    validation_in_all: int
    epochs: int
    epochs_done: int
    steps_per_epoch: int


@dataclass(frozen=True)
class Stopped:
    """A run ends before its last epoch.

    Attributes:
        reason: `patience`, or `time`.
        patience: Validations without a better score after which it stops.
    """

    reason: Stop
    patience: int | None


@dataclass(frozen=True)
class RunFinished:
    """A run has ended; its files are written.

    Attributes:
        folder: Of the run.
        epochs: Epochs trained.
        best_epoch: The epoch that best.pt is of; None if none was validated.
        scores: Final validation Dice by region.
        decision: The thresholds selected on the validation cases, if there are any.
        seconds: Of training and validation, over all epochs.
        peak_memory_mb: The most memory that the process held, in 10^6 bytes; 0 if not known.
        files: What was written, for people to look at.
    """

    folder: Path
    epochs: int
    best_epoch: int | None
    scores: Mapping[str, float]
    decision: Decision | None
    seconds: float
    peak_memory_mb: float
    files: tuple[Path, ...]


@dataclass(frozen=True)
class FoldsFinished:
    """All folds of a cross-validation have ended.

    Attributes:
        folder: That holds the folders of the runs.
        runs: One per fold.
    """

    folder: Path
    runs: tuple[RunFinished, ...]


@dataclass(frozen=True)
class NetworkCosts:
    """What a network costs.

    Attributes:
        parts: For each of its parts, for one patch in training.
        patch_size: Edge of the patch, in voxels.
        batch_size: Patches per step.
        dtype: The network's arithmetic.
    """

    parts: tuple[Cost, ...]
    patch_size: int
    batch_size: int
    dtype: str

    @property
    def total(self) -> Cost:
        """The sum over all parts."""
        return Cost(
            part="total",
            parameters=sum(part.parameters for part in self.parts),
            flops=sum(part.flops for part in self.parts),
            kept_bytes=sum(part.kept_bytes for part in self.parts),
        )

    @property
    def training_bytes(self) -> int:
        """Memory that training takes, beside the working memory of the convolutions.

        Weights, gradients and Adam's two moments are float32.
        """
        return 4 * 4 * self.total.parameters + self.batch_size * self.total.kept_bytes
