"""Preparation of a case for the network, and the way of results back to the case's own grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ..compute.processes import in_threads
from ..errors import UnreadableFileError
from ..images.grid import (
    Box,
    Grid,
    Volume,
    bounding_box,
    copied,
    is_turn,
    to_canonical,
    translation,
)

Array = npt.NDArray[Any]

PREPARATION = "brats-preparation/1"
"""Noted in stores and checkpoints; changes when the same scans would be prepared differently."""

CLIP_PERCENTILE = 99.5
"""Intensities above this percentile of the brain are cut off: vessels and artefacts would
otherwise decide mean and standard deviation."""

MARGIN = 2
"""Voxels of background kept around the brain box."""

# Interpolating a skull-stripped scan leaves a rim of partial-volume voxels around the brain, and
# cubic splines ripple far beyond it. Counted as brain, these shift mean and standard deviation: the
# whole tumour of a case rotated by 10 degrees then had a Dice of 0.81 with that of the case
# itself, and has 0.98 without them. As fractions of the brain's brightest:
_RIPPLE = 0.02
_DIM = 0.2
_RIM = 2  # voxels

# Cubic splines blur less than linear interpolation: the core of a case that was rotated by 12
# degrees then had a Dice of 0.957 with that of the case itself, against 0.935.
_SPLINE = 3


@dataclass(frozen=True, eq=False)
class Prepared:
    """A case as the network's input.

    Attributes:
        images: (C, X, Y, Z) float32: z-scores inside the brain, exactly 0 outside.
        affine: (4, 4), from the prepared grid's voxels to RAS millimetres.
        brain: (X, Y, Z), as `brain_of` finds it.
    """

    images: npt.NDArray[np.float32]
    affine: npt.NDArray[np.float64]
    brain: npt.NDArray[np.bool_]


def prepare(volumes: Sequence[Volume]) -> Prepared:
    """Bring a case's modalities to canonical orientation, 1 mm, the brain box and z-scores.

    An axis-aligned 1 mm grid is only flipped and permuted, with no interpolation; any other
    (2 mm, oblique) is resampled by cubic splines, which blur less than linear interpolation.

    Args:
        volumes: One per modality, all on one grid.

    Raises:
        UnreadableFileError: If an image holds NaN or infinity, or one value alone.
    """
    for volume in volumes:
        require_content(volume)
    box = bounding_box(_anything([volume.data for volume in volumes]), margin=MARGIN)
    cropped = [volume.data[box] for volume in volumes]
    images, affine = to_canonical(cropped, _shifted(volumes[0].affine, box))
    if _needs_resampling(affine):
        target, shape = _canonical_grid(affine, images[0].shape)
        finer = partial(resample, affine=affine, target=target, shape=shape, order=_SPLINE)
        images = list(in_threads(finer, images))
        affine = target
    brain = brain_of(images)
    box = bounding_box(brain if brain.any() else np.ones_like(brain), margin=MARGIN)
    images, brain = [image[box] for image in images], brain[box]
    return Prepared(_z_scores(images, brain), _shifted(affine, box), brain)


def brain_of(images: Sequence[Array]) -> npt.NDArray[np.bool_]:
    """Brain mask: where any of `images` (X, Y, Z) has signal, without traces of interpolation.

    Left out are ripples and, within two voxels of them or of the background, voxels that are dim in
    all images. Of images with values of both signs, as z-scores, every non-zero voxel is brain.
    """
    found = _anything(images)
    signal, bright = np.zeros((2, *found.shape), dtype=bool)
    ends = 100 - CLIP_PERCENTILE, CLIP_PERCENTILE
    ranges = in_threads(lambda image: np.percentile(image[found], ends), images)
    for image, (low, high) in zip(images, ranges, strict=True):
        if low < -_DIM * high:
            return found
        signal |= image > _RIPPLE * high
        bright |= image > _DIM * high
    inner = ndimage.binary_erosion(signal, iterations=_RIM, border_value=1)
    brain: npt.NDArray[np.bool_] = signal & (bright | inner)
    return brain


def prepare_labels(labels: Volume, like: Prepared) -> npt.NDArray[np.uint8]:
    """A label map on the prepared grid, (X, Y, Z), resampled by nearest neighbour where needed."""
    found = from_grid(labels.data, labels.affine, like.affine, like.brain.shape, order=0)
    return found.astype(np.uint8, copy=False)


def to_native(values: Array, prepared_affine: Array, grid: Grid) -> Array:
    """Values of the prepared grid on the case's own grid; 0 outside the brain box.

    Args:
        values: (X, Y, Z) on the prepared grid.
        prepared_affine: Its affine.
        grid: The case's own.
    """
    return from_grid(values, prepared_affine, grid.affine, grid.shape, order=1)


def from_grid(
    values: Array,
    affine: Array,
    target: Array,
    shape: tuple[int, ...],
    *,
    order: int,
) -> Array:
    """Transfer `values` from one grid to another: copied where voxels coincide, else interpolated.

    Voxels of the target outside the source are 0.
    """
    steps = np.linalg.inv(affine) @ target  # from target voxels to source voxels
    whole = np.rint(steps)
    if np.abs(whole - steps).max() < 1e-3 and is_turn(whole):
        return copied(values, whole, shape)[0]
    return resample(values, affine, target, shape, order=order)


def resample(
    values: Array,
    affine: Array,
    target: Array,
    shape: tuple[int, ...],
    *,
    order: int,
) -> Array:
    """Interpolate `values` onto the grid of `target` and `shape`; 0 outside.

    Where voxels grow, images (not labels: order 0) are smoothed first, so that fine structure does
    not alias.
    """
    # Rounded, because a voxel beyond the edge by 1e-15 would be outside.
    steps = np.round(np.linalg.inv(affine) @ target, 9)
    if order:
        coarser = np.sqrt((steps[:3, :3] ** 2).sum(axis=1))
        # The standard deviation for a reduction by f, as scikit-image's resize has it: (f - 1) / 2.
        blur = np.maximum(0, (coarser - 1) / 2)
        if blur.max() > 0.1:
            values = ndimage.gaussian_filter(values, blur, output=np.float32, mode="nearest")
    # In an integer type values would be rounded, and those below 0 wrap around if it is unsigned.
    dtype = np.float32 if order else values.dtype
    found = np.empty(shape, dtype)
    ndimage.affine_transform(values, steps[:3, :3], steps[:3, 3], shape, found, order, "constant")
    return found


def _anything(images: Sequence[Array]) -> npt.NDArray[np.bool_]:
    """Where any of `images` is not 0."""
    found: npt.NDArray[np.bool_] = images[0] != 0
    for image in images[1:]:
        found |= image != 0
    return found


def _z_scores(images: Sequence[Array], brain: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    scores = np.zeros((len(images), *brain.shape), dtype=np.float32)

    def score(number: int) -> None:
        inside = images[number][brain].astype(np.float32)
        inside = np.minimum(inside, np.percentile(inside, CLIP_PERCENTILE))
        spread = float(inside.std())
        scores[number][brain] = (inside - inside.mean()) / (spread if spread > 0 else 1.0)

    list(in_threads(score, range(len(images))))
    return scores


def require_content(volume: Volume) -> None:
    """Check that an image is finite, and not blank.

    Raises:
        UnreadableFileError: If not.
    """
    if not np.isfinite(volume.data).all():
        raise UnreadableFileError(
            volume.path, "it holds NaN or infinite voxels", hint="repair it: brats check --fix"
        )
    if volume.is_blank:
        value = f"{volume.data.flat[0]:g}" if volume.data.size else "missing"
        raise UnreadableFileError(
            volume.path, f"every voxel is {value}", hint="is it the right file? export it again"
        )


def _needs_resampling(affine: Array) -> bool:
    # A tenth of a degree, or 1 % of a voxel: below the precision of scanners' headers.
    return bool(np.abs(affine[:3, :3] - np.eye(3)).max() > 0.01)


def _canonical_grid(affine: Array, shape: tuple[int, ...]) -> tuple[Array, tuple[int, ...]]:
    """The 1 mm axis-aligned grid that covers the box of `affine` and `shape`."""
    ends = np.array([[x, y, z, 1.0] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    corners = (ends * np.array([*(np.array(shape) - 1), 1.0])) @ affine.T
    low, high = corners[:, :3].min(axis=0), corners[:, :3].max(axis=0)
    size = tuple(int(edge) for edge in np.ceil(high - low - 1e-6) + 1)
    return translation(low), size


def _shifted(affine: Array, box: Box) -> Array:
    """The affine of the part that `box` crops."""
    shifted: Array = affine @ translation([side.start for side in box])
    return shifted
