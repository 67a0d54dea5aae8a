"""Initial weights: those of a checkpoint, and which of them are frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data.labels import REGIONS
from ..errors import CheckpointError
from ..model.checkpoint import Checkpoint
from ..model.config import stored_network_config
from ..model.network import Network, encoder_of
from ..model.run_folder import checkpoint_path
from ..reading import sha256_of
from ..wording import listing
from .config import TrainConfig


@dataclass(frozen=True)
class Initialised:
    """The weights that a training starts from.

    Attributes:
        file: The checkpoint.
        fitting: Names of the tensors whose values are loaded from it.
        random: Names of those that keep random values, as the checkpoint has none that fit.
        unused: Names of the checkpoint's tensors that the network does not have.
        differences: How the training differs from that of the checkpoint, in words.
        frozen: Number of weights that do not change.
    """

    file: Path
    fitting: tuple[str, ...]
    random: tuple[str, ...]
    unused: tuple[str, ...]
    differences: tuple[str, ...]
    frozen: int


def settings_of(model: Path) -> dict[str, Any]:
    """Default settings of a training that starts from a checkpoint.

    These are its network, modalities, patch size and preparation; `origin` records which file it
    was.

    Raises:
        CheckpointError: If there is no checkpoint, or one per fold.
    """
    file = checkpoint_path(model)
    checkpoint = Checkpoint.load(file)
    network = stored_network_config(checkpoint.config["network"])
    recipe = checkpoint.recipe
    return {
        "network": network.model_dump(mode="json"),
        "modalities": list(checkpoint.modalities),
        "patch_size": checkpoint.patch_size,
        "preparation": recipe.content() if recipe else None,
        "origin": {
            "file": str(file.absolute()),
            "sha256": sha256_of(file),
            "epoch": checkpoint.epoch,
            "origin": dict(checkpoint.origin),
        },
    }


def starting_point(
    config: TrainConfig, network: Network
) -> tuple[Initialised, dict[str, torch.Tensor]]:
    """Which tensors of the checkpoint in `config.init` fit a network, and their values.

    Raises:
        CheckpointError: If some tensors of the network have no values and `init_partial` is off, if
            none has, or if the file has changed since the run began.
    """
    file = checkpoint_path(Path(str(config.init)))
    checkpoint = Checkpoint.load(file)
    noted = (config.origin or {}).get("sha256")
    if noted and noted != sha256_of(file):
        raise CheckpointError(
            f"{file} is not the file any more that this run started from",
            hint="start a new run from it with -o NAME, without --resume",
        )
    due, weights = network.state_dict(), checkpoint.weights
    fitting = [name for name in due if _shape(weights, name) == due[name].shape]
    random = [name for name in due if name not in set(fitting)]
    if random and (not config.init_partial or not fitting):
        raise CheckpointError(
            f"{len(random)} of {len(due)} tensors of the network have no values in {file} that "
            f"fit: {_described(random, due, weights)}",
            hint="train without --set network..., to have the network of the checkpoint"
            + ("; or add --init-partial to start these from random values" if fitting else ""),
        )
    frozen = 0
    if config.freeze == "encoder":
        frozen = sum(each.numel() for part in encoder_of(network) for each in part.parameters())
    found = Initialised(
        file=file,
        fitting=tuple(fitting),
        random=tuple(random),
        unused=tuple(name for name in weights if name not in due),
        differences=tuple(_differences(config, checkpoint)),
        frozen=frozen,
    )
    return found, {name: weights[name] for name in fitting}


def freeze(network: Network, config: TrainConfig) -> None:
    """Keep the weights of the encoder from changing, if that is set."""
    if config.freeze == "encoder":
        for part in encoder_of(network):
            part.requires_grad_(False)


def into_training(network: Network, config: TrainConfig) -> None:
    """Put a network into training mode; frozen parts keep their batch norm statistics too."""
    network.train()
    if config.freeze == "encoder":
        for part in encoder_of(network):
            part.eval()


def _shape(weights: Mapping[str, torch.Tensor], name: str) -> torch.Size | None:
    return weights[name].shape if name in weights else None


def _described(
    names: list[str], due: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]
) -> str:
    """Names of tensors, with their shapes in the network and in the checkpoint."""

    def words(name: str) -> str:
        here, there = tuple(due[name].shape), _shape(weights, name)
        return f"{name} {here}" + (f", not {tuple(there)}" if there is not None else "")

    return listing([words(name) for name in names])


def _differences(config: TrainConfig, checkpoint: Checkpoint) -> list[str]:
    """How a training differs from that of a checkpoint, apart from its cases."""
    found = []
    for name, here, there in (
        ("modalities", config.modalities, checkpoint.modalities),
        ("regions", REGIONS, checkpoint.regions),
    ):
        if here != there:
            found.append(
                f"the checkpoint's {name} are {', '.join(there)}, those of this training "
                f"{', '.join(here)}"
            )
    if config.preparation != checkpoint.recipe:
        found.append("images are prepared in another way than for the checkpoint")
    return found
