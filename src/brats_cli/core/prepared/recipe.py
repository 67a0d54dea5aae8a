"""Preparation for a network that was trained elsewhere, as values of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ..errors import CheckpointError
from ..images.grid import Affine, Mask, Volume, bounding_box, to_canonical, translation
from ..wording import brief
from .preparation import Array, Prepared, prepare, require_content, resample

RECIPE = "brats-recipe/1"
"""Noted in checkpoints in place of `PREPARATION`; changes with the meaning of a recipe."""

Crop = Literal["none", "nonzero", "positive"]
Over = Literal["nonzero", "mask", "all"]

_TINY = 1e-8  # nnU-Net's least standard deviation

_SPLINE = 3

_FINEST_MM = 0.4
"""Finer voxels would make a head of more than a thousand million."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A preparation with other values than brats' own.

    Attributes:
        orientation: Directions of the network's axes, such as `LPS`, in which BraTS distributes
            its images, or `SPL`, the same with the axes z, y, x.
        crop: Cut off what is outside the box of the voxels that are not 0, or above 0, in any
            image; or keep the full field of view.
        margin: Voxels that are kept around that box.
        over: Voxels that give mean and standard deviation, and are changed: `nonzero`, those of
            each image that are not 0; `mask`, where any image is not 0, with holes filled; `all`.
        limit: L, if z-scores z are compressed to L * tanh(z / L).
        spacing_mm: Voxel size along the network's axes, if images are resampled to one.
        tolerance: Deviation from `spacing_mm`, as a fraction, up to which nothing is resampled.
    """

    orientation: str = "LPS"
    crop: Crop = "none"
    margin: int = 0
    over: Over = "nonzero"
    limit: float | None = None
    spacing_mm: tuple[float, float, float] | None = None
    tolerance: float = 0.01

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Recipe:
        """The recipe that a checkpoint holds.

        Raises:
            CheckpointError: If a value is unknown or invalid.
        """
        known = {field.name for field in fields(cls)}
        values = dict(content)
        if isinstance(values.get("spacing_mm"), list):
            values["spacing_mm"] = tuple(values["spacing_mm"])
        wrong = [name for name in values if name not in known or not _fits(name, values[name])]
        if wrong:
            raise CheckpointError(
                "the preparation of the checkpoint cannot have "
                f"{wrong[0]} {brief(values[wrong[0]])}",
                hint="import the network again with this version of brats",
            )
        return cls(**values)

    def content(self) -> dict[str, Any]:
        """As plain values, for a file."""
        return asdict(self)

    def prepare(self, volumes: Sequence[Volume]) -> Prepared:
        """Reorient, crop, normalise and resample a case's modalities, in this order.

        Args:
            volumes: One per modality, all on one grid.

        Raises:
            UnreadableFileError: If an image holds NaN or infinity, or one value alone.
        """
        for volume in volumes:
            require_content(volume)
        stored = [volume.data for volume in volumes]
        images, affine = to_canonical(stored, volumes[0].affine, self.orientation)
        if self.crop != "none":
            box = bounding_box(_signal(images, self.crop), margin=self.margin)
            images = [image[box] for image in images]
            affine = affine @ translation([side.start for side in box])
        brain = _signal(images, "nonzero")
        images = self._normalised(images, brain)
        if self._resamples(affine):
            images, brain, affine = _resampled(images, brain, affine, self.spacing_mm)
        return Prepared(np.stack(images), affine, brain)

    def _normalised(self, images: Sequence[Array], brain: Mask) -> list[npt.NDArray[np.float32]]:
        filled = ndimage.binary_fill_holes(brain) if self.over == "mask" else brain
        found = []
        for image in images:
            scores = image.astype(np.float32)  # a copy
            inside = {"nonzero": image != 0, "mask": filled, "all": np.ones_like(brain)}[self.over]
            values = scores[inside].astype(np.float64)
            spread = float(values.std())
            scores[inside] = (values - values.mean()) / (spread if spread > _TINY else 1.0)
            if self.limit is not None:
                scores = self.limit * np.tanh(scores / self.limit)
            found.append(scores)
        return found

    def _resamples(self, affine: Affine) -> bool:
        if self.spacing_mm is None:
            return False
        share = np.linalg.norm(affine[:3, :3], axis=0) / self.spacing_mm
        return bool(np.abs(share - 1).max() > self.tolerance)


def prepare_by(recipe: Recipe | None, volumes: Sequence[Volume]) -> Prepared:
    """A case prepared by a recipe, or as brats does by default.

    Raises:
        UnreadableFileError: If an image holds NaN or infinity, or one value alone.
    """
    return recipe.prepare(volumes) if recipe else prepare(volumes)


def _fits(name: str, value: Any) -> bool:
    """Whether a field of a recipe may have a value."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name == "orientation":
        axes = {"LR": 0, "PA": 1, "SI": 2}
        letters = value if isinstance(value, str) else ""
        return len(letters) == 3 and {
            axis for letter in letters for ends, axis in axes.items() if letter in ends
        } == {0, 1, 2}
    if name in ("crop", "over"):
        return value in get_args(Crop if name == "crop" else Over)
    if name == "spacing_mm":
        return value is None or (
            isinstance(value, tuple)
            and len(value) == 3
            and all(isinstance(side, int | float) and _FINEST_MM <= side <= 20 for side in value)
        )
    if name == "limit":
        return value is None or (number and value > 0)
    return bool(number and 0 <= value <= 1000 and (name != "margin" or isinstance(value, int)))


def _signal(images: Sequence[Array], crop: Crop) -> Mask:
    """Where any of `images` is not 0, or is above it."""
    found: Mask = np.zeros(images[0].shape, dtype=bool)
    for image in images:
        found |= image > 0 if crop == "positive" else image != 0
    return found


def _resampled(
    images: Sequence[Array],
    brain: Mask,
    affine: Affine,
    spacing_mm: Sequence[float] | None,
) -> tuple[list[Array], Mask, Affine]:
    """Images with voxels of another size along the same axes; the field of view keeps its edges."""
    assert spacing_mm is not None
    old = np.array(brain.shape)
    size = np.linalg.norm(affine[:3, :3], axis=0)
    shape = tuple(int(side) for side in np.maximum(1, np.rint(old * size / spacing_mm)))
    step = old / shape
    scale = np.diag([*step, 1.0])
    scale[:3, 3] = (step - 1) / 2  # the first voxel's centre lies half a voxel from the edge
    target = affine @ scale
    finer = [resample(image, affine, target, shape, order=_SPLINE) for image in images]
    inside: Mask = resample(brain.astype(np.uint8), affine, target, shape, order=0) > 0
    return finer, inside, target
