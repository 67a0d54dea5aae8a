"""What a trained network needs to be used again: everything, in one file that runs no code."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any, cast

import torch

from ... import __version__
from ..data.labels import REGIONS, SCHEMES, LabelScheme, scheme_named
from ..data.naming import MODALITIES
from ..errors import BratsError, CheckpointError, UnreadableFileError
from ..prepared.preparation import PREPARATION
from ..prepared.recipe import RECIPE, Recipe
from ..wording import brief
from ..writing import whole_file
from .archive import DAMAGED, load_archive
from .config import UNetConfig, stored_network_config
from .decision import Decision
from .network import Network, is_far_larger, network_without_weights
from .sliding import SlidingWindow

FORMAT = "brats-checkpoint/1"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained network and all that `predict` and `--resume` need to know of it.

    Attributes:
        weights: The network's state, by parameter name.
        config: The training config as plain values; of an imported network what inference needs,
            and where it comes from.
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

    @property
    def recipe(self) -> Recipe | None:
        """How images are prepared, if not as brats does by default."""
        content = self.config.get("preparation")
        return Recipe.of(content) if content else None

    @property
    def sliding(self) -> SlidingWindow | None:
        """The rule of its windows, if it was imported; else brats chooses them."""
        content = self.config.get("inference")
        return SlidingWindow.of(content) if content else None

    @property
    def origin(self) -> Mapping[str, Any]:
        """Where it was imported from, or what its training started from; empty if neither."""
        return self.config.get("origin") or {}

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
        try:
            network.load_state_dict(dict(self.weights), assign=True)
        except DAMAGED as error:
            raise CheckpointError(
                f"the weights do not fit the network of the checkpoint: {_first_line(error)}",
                hint="was the file changed, or MONAI? train again, or use the MONAI of that time",
            ) from error
        return network.eval()

    def save(self, path: Path) -> None:
        """Write to `path`, which holds either the old checkpoint or the new one, never half.

        Raises:
            OutputError: If it cannot be written.
        """
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        content["decision"] = self.decision.content() if self.decision else {}
        with whole_file(path) as partial, partial.open("wb") as file:
            written = _Written(file)
            try:
                torch.save({"format": FORMAT, **content}, cast("IO[bytes]", written))
            except RuntimeError as error:
                # torch tells of no reason why it could not write.
                raise written.error or error from error

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
            content = load_archive(path)
        except DAMAGED as error:
            raise CheckpointError(
                f"{path} is not a brats checkpoint",
                hint="was it cut short while copying? give best.pt or last.pt of a run",
            ) from error
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise CheckpointError(
                f"{path} was not written by this version of brats ({FORMAT})",
                hint="give best.pt or last.pt of a run that `brats train` wrote",
            )
        preparation, version = content.get("preparation"), content.get("version")
        if preparation not in (PREPARATION, RECIPE) and isinstance(preparation, str):
            raise CheckpointError(
                f"{path} expects images prepared as {preparation}, not {PREPARATION}",
                hint=f"use the version of brats that trained it ({version}), or train again",
            )
        if wrong := _first_wrong(content):
            raise CheckpointError(
                f"{path} is not a sound checkpoint: {wrong}",
                hint="was it changed, or made by another version of brats? give best.pt or "
                "last.pt of a run",
            )
        decision = content.pop("decision", None)  # brats 0.1.0 had none at first
        return cls(**content, decision=Decision.of(decision) if decision else None)


class _Written:
    """A file for `torch.save` that keeps the system's error, of which torch says nothing."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return self._put(content)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()

    def _put(self, content: Any) -> int:
        return self._file.write(content)


# --- what a file may hold ----------------------------------------------------------------------

_PRECISIONS = ("auto", "float32", "bfloat16", "float16")

_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "weights": Mapping,
    "config": Mapping,
    "labels": str,
    "epoch": int,
    "scores": Mapping,
    "regions": tuple,
    "spacing_mm": (int, float),
    "preparation": str,
    "version": str,
    "state": (Mapping, type(None)),
    "decision": (Mapping, type(None)),
}


def _first_wrong(content: Mapping[str, Any]) -> str:
    """What is wrong with the content of a checkpoint, in words; empty if nothing is."""
    missing = [name for name in ("weights", "config", "labels", "epoch", "scores", "version")
               if name not in content]  # fmt: skip
    if missing:
        return f"it has no {missing[0]}"
    for name, value in content.items():
        if name not in _KINDS:
            return f"it has an entry {str(name)[:40]!r}, which is unknown"
        if not isinstance(value, _KINDS[name]) or isinstance(value, bool):
            return f"its {name} is {brief(value)}"
    if content["labels"] not in SCHEMES:
        return f"there is no label scheme {brief(content['labels'])}"
    if content.get("regions", REGIONS) != REGIONS:
        return f"its regions are {brief(content['regions'])}, not {', '.join(REGIONS)}"
    if content.get("spacing_mm", 1.0) != 1.0 or content["epoch"] < 0:
        return f"its spacing_mm is {brief(content['spacing_mm'])}, its epoch {content['epoch']}"
    if not all(isinstance(score, int | float) for score in content["scores"].values()):
        return f"its scores are {brief(content['scores'])}"
    return (
        _wrong_config(content["config"])
        or _wrong_decision(content.get("decision") or {})
        or _wrong_weights(content)
    )


def _wrong_config(config: Mapping[str, Any]) -> str:
    modalities, patch_size = config.get("modalities"), config.get("patch_size")
    if (
        not isinstance(modalities, list | tuple)
        or not modalities
        or not all(name in MODALITIES for name in modalities)
        or len(set(modalities)) < len(modalities)
    ):
        return f"its modalities are {brief(modalities)}"
    if not isinstance(patch_size, int) or not 0 < patch_size <= 4096:
        return f"its patch_size is {brief(patch_size)}"
    if config.get("precision") not in _PRECISIONS:
        return f"its precision is {brief(config.get('precision'))}"
    augmentation = config.get("augmentation", {})
    if not isinstance(augmentation, Mapping) or not isinstance(
        augmentation.get("modality_dropout", 0), int | float
    ):
        return f"its augmentation is {brief(augmentation)}"
    if "network" not in config:
        return "it has no network"
    return _wrong_import(config)


def _wrong_import(config: Mapping[str, Any]) -> str:
    """What is wrong with the entries that only an imported network has."""
    for name in ("preparation", "inference", "origin"):
        if not isinstance(config.get(name) or {}, Mapping):
            return f"its {name} is {brief(config[name])}"
    try:
        Recipe.of(config.get("preparation") or {})
        if config.get("inference"):
            SlidingWindow.of(config["inference"])
    except CheckpointError as error:
        return _first_line(error)
    return ""


def _wrong_decision(decision: Mapping[str, Any]) -> str:
    thresholds, least = decision.get("thresholds", {}), decision.get("smallest_et_mm3", 0)
    numbers = [*thresholds.values(), least] if isinstance(thresholds, Mapping) else [None]
    heat = decision.get("temperatures", {})
    numbers += [each or None for each in heat.values()] if isinstance(heat, Mapping) else [None]
    # Not isfinite: an int may be too large to be asked.
    if all(isinstance(n, int | float) and abs(n) <= sys.float_info.max for n in numbers):
        return ""
    return f"its decision is {brief(decision)}"


def _wrong_weights(content: Mapping[str, Any]) -> str:
    """Compare the weights with those of the network that the config describes."""
    weights, config = content["weights"], content["config"]
    if not all(
        isinstance(name, str) and isinstance(weight, torch.Tensor) and weight.device.type == "cpu"
        for name, weight in weights.items()
    ):
        return "its weights are not tensors"
    sizes = {
        "in_channels": len(config["modalities"]),
        "out_channels": len(REGIONS),
        "patch_size": config["patch_size"],
    }
    try:
        shape = stored_network_config(config["network"])
        if not isinstance(shape, UNetConfig):
            # It takes seconds to make, and is compared when it is needed.
            larger = is_far_larger(shape, weights, **sizes)
            return f"its network {shape.name} has more weights than it holds" if larger else ""
        network = network_without_weights(shape, **sizes)
    except (BratsError, *DAMAGED) as error:  # pydantic's is a ValueError
        return f"its network is {brief(config['network'])} ({_first_line(error)})"
    due = {name: (value.shape, value.dtype) for name, value in network.state_dict().items()}
    found = {name: (value.shape, value.dtype) for name, value in weights.items()}
    other = [name for name in {**due, **found} if due.get(name) != found.get(name)]
    return f"the weights {other[0][:60]} do not fit its network" if other else ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
