"""Files of other programs: read without running code in them, and refused by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ..data.naming import modality_named
from ..errors import CheckpointError, UnreadableFileError
from ..prepared.recipe import RECIPE, Recipe
from ..reading import read_json, sha256_of
from .archive import DAMAGED, load_archive
from .checkpoint import Checkpoint
from .config import MonaiConfig, NetworkConfig, NnunetConfig
from .decision import Decision
from .network import is_far_larger
from .sliding import SlidingWindow

MOST_PATCH = 128
"""Edge of the patches that an imported network is fine-tuned on by default, at most."""


@dataclass(frozen=True)
class Source:
    """What a network is imported from.

    Attributes:
        weights: The file with its weights.
        content: What that file holds.
        folder: The folder with its settings, if there is one.
    """

    weights: Path
    content: Mapping[str, Any]
    folder: Path | None = None

    def origin(self, kind: str, name: str) -> dict[str, Any]:
        """What a checkpoint records of where it comes from, as plain values."""
        return {
            "kind": kind,
            "name": name,
            "licence": licence_in(self.folder) if self.folder else "not stated",
            "file": str(self.weights),
            "sha256": sha256_of(self.weights),
        }


def read_weights(path: Path) -> Any:
    """What a file of `torch.save` holds; nothing in it is run.

    Raises:
        CheckpointError: If it is none, or holds anything else.
    """
    try:
        return load_archive(path)
    except DAMAGED as error:
        raise CheckpointError(
            f"{path} cannot be read: {_reason(error)}",
            hint="download it again, and only from who trained it: brats runs no code that a "
            "file of weights brings along",
        ) from error


def _reason(error: BaseException) -> str:
    """Why torch cannot read a file, in a few words."""
    text = str(error)
    named = re.search(r"(?:GLOBAL|it calls) ([\w.]+)", text)
    if named or re.search(r"unrecognized function|Can only (build|create)", text):
        return f"it would run code ({named[1]})" if named else "it would run code"
    return "it is not a whole file of torch.save, of PyTorch 1.6 or later"


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file.

    Raises:
        UnreadableFileError: If it is something else.
    """
    if not path.is_file():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise UnreadableFileError(path, "it holds no JSON object")
    return content


def licence_in(folder: Path) -> str:
    """The first lines of a licence in a folder, and its file; or that none is stated."""
    for file in sorted([*folder.glob("*"), *folder.glob("docs/*")]):
        if file.is_file() and file.stem.lower() in ("license", "licence", "copying"):
            with file.open(encoding="utf-8", errors="replace") as lines:
                words = " ".join(lines.read(2000).split())
            if words:
                return f"{words[:80]} ({file.name})"
    return "not stated"


def modalities_of(names: Sequence[object], source: Path) -> tuple[str, ...]:
    """The four modalities by the names of a network's channels.

    Raises:
        CheckpointError: If they are others.
    """
    found = tuple(modality_named(str(name)) for name in names)
    if None in found or len(set(found)) < len(found) or not found:
        raise CheckpointError(
            f"{source} is of a network for other images: {', '.join(map(str, names)) or 'none'}",
            hint="brats imports networks for T1, T1ce, T2 and FLAIR of the brain",
        )
    return tuple(name for name in found if name)


def reordered(weight: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    """The output channels of a last convolution's weight or bias in another order."""
    return weight[list(order)].clone()


def by_inclusion(sets: Sequence[frozenset[int]], source: Path) -> list[int]:
    """The places of WT, TC and ET among three sets of label values, each inside another.

    Raises:
        CheckpointError: If they are not three, or not so.
    """
    order = sorted(range(len(sets)), key=lambda place: -len(sets[place]))
    nested = all(sets[inner] < sets[outer] for outer, inner in pairwise(order))
    if len(sets) != 3 or not nested:
        shown = ", ".join(str(sorted(values)) for values in sets)
        raise CheckpointError(
            f"{source} segments {shown or 'no regions'}, not WT, TC and ET",
            hint="brats predicts whole tumour, tumour core and enhancing tumour, each inside the "
            "one before",
        )
    return order


def checkpoint_of(
    network: NetworkConfig,
    weights: Mapping[str, torch.Tensor],
    *,
    modalities: Sequence[str],
    labels: str,
    multiple: int,
    recipe: Recipe,
    sliding: SlidingWindow,
    origin: Mapping[str, Any],
    epoch: object = 0,
    decision: Decision | None = None,
) -> Checkpoint:
    """A checkpoint of brats for an imported network, whose weights are loaded once as a check.

    Args:
        network: Its shape.
        weights: By the parameter names of the original network.
        modalities: Its input channels.
        labels: The label scheme of predictions.
        multiple: Edges of patches are multiples of this.
        recipe: How images are prepared.
        sliding: How windows are placed.
        origin: Where it comes from.
        epoch: Epochs trained, if it says so.
        decision: How probabilities become labels, if not by a threshold of a half.

    Raises:
        CheckpointError: If the weights are not those of the network.
    """
    edge = min(MOST_PATCH, *sliding.window)
    checkpoint = Checkpoint(
        weights={f"net.{name}": _as_float32(value) for name, value in weights.items()},
        config={
            "network": network.model_dump(mode="json"),
            "modalities": list(modalities),
            "patch_size": max(2 * multiple, edge - edge % multiple),
            "precision": "float32",
            "augmentation": {"enabled": False},
            "preparation": recipe.content(),
            "inference": sliding.content(),
            "origin": dict(origin),
        },
        labels=labels,
        epoch=epoch if type(epoch) is int and epoch >= 0 else 0,
        scores={},
        preparation=RECIPE,
        decision=decision,
    )
    if len(modalities) != 4 or len(set(modalities)) != 4:
        raise CheckpointError(
            f"{origin['file']} takes {len(modalities)} modalities: {', '.join(modalities)}",
            hint="give each of t1, t1ce, t2 and flair once, in the order of the network's channels",
        )
    try:
        made = checkpoint.network()
    except CheckpointError as error:
        raise CheckpointError(
            f"{origin['file']} does not hold the weights of its network: "
            f"{str(error).partition(': ')[2]}",
            hint="is it whole? download it again",
        ) from error
    multiple = made.config.multiple
    if any(side % multiple for side in sliding.window):
        raise CheckpointError(
            f"{origin['file']} has windows of {sliding.window} voxels, which its network does not "
            "take",
            hint=f"each side has to be a multiple of {multiple}",
        )
    return checkpoint


def require_fitting(
    network: MonaiConfig | NnunetConfig, weights: Mapping[str, torch.Tensor], source: Path
) -> None:
    """Check, before a network is made, that it is not far larger than the weights for it.

    Raises:
        CheckpointError: If it is.
    """
    if is_far_larger(network, weights, in_channels=4, out_channels=3, patch_size=MOST_PATCH):
        raise CheckpointError(
            f"{source} does not hold the weights of its network, which has many more",
            hint="is it whole, and do the files beside it belong to it?",
        )


def _as_float32(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.is_floating_point() else value


def holds_tensors(content: object) -> bool:
    """Whether something is weights: tensors by name."""
    return isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    )
