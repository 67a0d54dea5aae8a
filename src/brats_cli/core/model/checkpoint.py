"""What a trained network needs to be used again: everything, in one file that runs no code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch

from ... import __version__
from ..data.labels import REGIONS, LabelScheme, scheme_named
from ..errors import CheckpointError, UnreadableFileError
from ..prepared.preparation import PREPARATION
from ..writing import whole_file
from .config import stored_network_config
from .decision import Decision
from .network import Network, network_without_weights

FORMAT = "brats-checkpoint/1"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained network and all that `predict` and `--resume` need to know of it.

    Attributes:
        weights: The network's state, by parameter name.
        config: The training config as plain values.
        labels: Name of the label scheme that predictions are written in.
        epoch: Epochs trained.
        scores: Validation Dice by region at that epoch.
        regions: Names of the output channels.
        spacing_mm: Voxel size the network was trained on.
        preparation: How images were prepared.
        version: Version of brats that wrote it.
        state: Optimiser, schedule and early stopping, to resume from; empty in `best.pt`.
        decision: How probabilities become labels, where that was selected on validation cases.
    """

    weights: Mapping[str, torch.Tensor]
    config: Mapping[str, Any]
    labels: str
    epoch: int
    scores: Mapping[str, float]
    regions: tuple[str, ...] = REGIONS
    spacing_mm: float = 1.0
    preparation: str = PREPARATION
    version: str = __version__
    state: Mapping[str, Any] | None = None
    decision: Decision | None = None

    # Only what inference needs is read from the config: how a network was trained may gain and
    # lose settings from one version to the next.

    @property
    def modalities(self) -> tuple[str, ...]:
        """The network's input channels."""
        return tuple(self.config["modalities"])

    @property
    def patch_size(self) -> int:
        """Edge of the patches it was trained on, in voxels."""
        return int(self.config["patch_size"])

    @property
    def precision(self) -> str:
        """The arithmetic it was trained in, or `auto`."""
        return str(self.config["precision"])

    @property
    def scheme(self) -> LabelScheme:
        """The label scheme it was trained in."""
        return scheme_named(self.labels)

    @property
    def saw_missing_modalities(self) -> bool:
        """Whether it was trained on patches with blanked modalities, and can do without some."""
        augmentation = self.config.get("augmentation", {})
        dropout = augmentation.get("modality_dropout", 0)
        return bool(augmentation.get("enabled", True) and dropout > 0)

    def network(self) -> Network:
        """The network with these weights (not copies of them), in evaluation mode.

        Raises:
            ConfigError: If it is one of MONAI's, and MONAI is not installed or has it no more.
        """
        # No random weights, which take longer than these.
        network = network_without_weights(
            stored_network_config(self.config["network"]),
            in_channels=len(self.modalities),
            out_channels=len(self.regions),
            patch_size=self.patch_size,
        )
        network.load_state_dict(dict(self.weights), assign=True)
        return network.eval()

    def save(self, path: Path) -> None:
        """Write to `path`, which holds either the old checkpoint or the new one, never half.

        Raises:
            OutputError: If it cannot be written.
        """
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        content["decision"] = self.decision.content() if self.decision else {}
        with whole_file(path) as partial:
            torch.save({"format": FORMAT, **content}, partial)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint, its tensors on the CPU.

        Raises:
            UnreadableFileError: If there is no such file.
            CheckpointError: If it is not a checkpoint of brats, or of a version that differs.
        """
        if not path.is_file():
            raise UnreadableFileError(path, "there is no such checkpoint", hint="check --model")
        try:
            if not is_zipfile(path):  # torch would take text for a pickle, and stumble anywhere
                raise pickle.UnpicklingError("not an archive, as torch.save writes it")
            # weights_only: a checkpoint from the internet must not run code.
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
            raise CheckpointError(
                f"{path} is not a brats checkpoint",
                hint="was it cut short while copying? give best.pt or last.pt of a run",
            ) from error
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise CheckpointError(
                f"{path} was not written by this version of brats ({FORMAT})",
                hint="give best.pt or last.pt of a run that `brats train` wrote",
            )
        if content["preparation"] != PREPARATION:
            raise CheckpointError(
                f"{path} expects images prepared as {content['preparation']}, not {PREPARATION}",
                hint="use the version of brats that trained it "
                f"({content['version']}), or train again",
            )
        decision = content.pop("decision", None)  # brats 0.1.0 had none at first
        return cls(**content, decision=Decision.of(decision) if decision else None)
