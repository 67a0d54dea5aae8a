"""What happens during a training, as `run.train` yields it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ..model.checkpoint import Checkpoint
from ..model.decision import Decision
from ..model.summary import Cost
from .figures import Preview

WAIT_IS_LONG = 10.0
"""Percent of the time spent waiting for patches from which the data are the bottleneck."""

Stop = Literal["patience", "time"]
"""Why a training ends before its last epoch."""


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
    """A case is in the store now.

    Attributes:
        case_id: Its id.
    """

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


@dataclass(frozen=True, eq=False)
class StepDone:
    """A step of an epoch.

    Attributes:
        step: Its number, from 1.
        steps: Steps per epoch.
        device_loss: Its loss, still on the device.
    """

    step: int
    steps: int
    device_loss: torch.Tensor

    @property
    def loss(self) -> float:
        """The loss; to ask for it waits for the GPU."""
        return self.device_loss.item()


@dataclass(frozen=True, eq=False)
class CaseValidated:
    """A validation case, segmented by the network as it is.

    Attributes:
        case_id: Its id.
        dice: By region.
        reference: Masks of WT, TC and ET as the expert drew them, (3, X, Y, Z), where it computed.
        predicted: Those of the network, in the same place.
    """

    case_id: str
    dice: Mapping[str, float]
    reference: torch.Tensor
    predicted: torch.Tensor


@dataclass(frozen=True, eq=False)
class Epoch:
    """What happened in one epoch.

    Attributes:
        number: From 1.
        loss: Mean training loss.
        dice: Validation Dice by region, mean over cases; None if not validated.
        is_best: Whether the mean of `dice` is the best so far.
        learning_rate: Of the epoch's last step.
        seconds: Of training, validation excluded.
        validation_seconds: Of validation.
        data_wait_percent: Share of `seconds` that the device waited for patches: that a GPU idled.
        patches_per_second: Patches trained on in a second.
        peak_memory_mb: The most memory this process has held so far, in 10^6 bytes.
        stops: Why this is the last epoch, where it is not by number.
        checkpoint: All that `last.pt` needs; shares the network's tensors, so save it at once.
        preview: A slice of the first validation case; None if not validated.
    """

    number: int
    loss: float
    dice: Mapping[str, float] | None
    is_best: bool
    learning_rate: float
    seconds: float
    validation_seconds: float
    data_wait_percent: float
    patches_per_second: float
    peak_memory_mb: float
    stops: Stop | None
    checkpoint: Checkpoint
    preview: Preview | None = None

    @property
    def mean_dice(self) -> float | None:
        """Mean Dice of the regions, by which the best epoch is chosen."""
        return None if self.dice is None else float(np.mean(list(self.dice.values())))


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


@dataclass(frozen=True)
class Profile:
    """Where the time of training goes.

    Attributes:
        data_wait_percent: Share of it that the device waited for patches: that a GPU idled.
        patches_per_second: Patches trained on in a second.
        workers: Processes that read patches.
        cpus: CPUs that there are.
        device: What computes, such as `cuda`.
        precision: The network's arithmetic, such as `bfloat16`.
    """

    data_wait_percent: float
    patches_per_second: float
    workers: int
    cpus: int
    device: str = "cpu"
    precision: str = "float32"

    @property
    def data_is_bottleneck(self) -> bool:
        """Whether the network waits for the data for long, not the data for the network."""
        return self.data_wait_percent >= WAIT_IS_LONG
