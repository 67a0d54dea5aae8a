"""What is done to a case before the network sees it, and how results go back to its own grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from .errors import UnreadableFileError
from .volumes import Volume

Array = npt.NDArray[Any]
Box = tuple[slice, slice, slice]

PREPARATION = "brats-preparation/1"
"""Noted in stores and checkpoints; changes when the same scans would be prepared differently."""

CLIP_PERCENTILE = 99.5
"""Intensities above this percentile of the brain are cut off: vessels and artefacts would
otherwise decide mean and standard deviation."""

MARGIN = 2
"""Voxels of background kept around the brain box."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A case as the network sees it.

    Attributes:
        images: (C, X, Y, Z) float32: z-scores inside the brain, exactly 0 outside.
        affine: (4, 4), from the prepared grid's voxels to RAS millimetres.
        brain: (X, Y, Z), where any modality is not 0.
    """

    images: npt.NDArray[np.float32]
    affine: npt.NDArray[np.float64]
    brain: npt.NDArray[np.bool_]


def prepare(volumes: Sequence[Volume]) -> Prepared:
    """Bring a case's modalities to canonical orientation, 1 mm, the brain box and z-scores.

    A 1 mm grid is only flipped and permuted, with no interpolation, also if it is oblique: slices
    are tilted so as to follow the head. Any other is resampled linearly along its own axes.

    Args:
        volumes: One a modality, all on one grid.

    Raises:
        UnreadableFileError: If an image holds NaN or infinity, or nothing but zeros.
    """
    for volume in volumes:
        _require_content(volume)
    box = bounding_box(_anything(volumes), margin=MARGIN)
    cropped = np.stack([volume.data[box] for volume in volumes])
    corner = volumes[0].affine @ _translation([side.start for side in box])
    images, affine = _to_canonical(cropped, corner)
    if _needs_resampling(affine):
        target, shape = _millimetre_grid(affine, images.shape[1:])
        images = np.stack([resample(image, affine, target, shape) for image in images])
        affine = target
    brain = np.any(images != 0, axis=0)
    return Prepared(_z_scores(images, brain), affine, brain)


def prepare_labels(labels: Volume, like: Prepared) -> npt.NDArray[np.uint8]:
    """A label map on the prepared grid, (X, Y, Z); nearest neighbours where it is resampled."""
    found = from_grid(labels.data, labels.affine, like.affine, like.brain.shape, order=0)
    return found.astype(np.uint8, copy=False)


def to_native(values: Array, prepared_affine: Array, like: Volume) -> Array:
    """Values of the prepared grid on the case's own grid; 0 outside the brain box.

    Args:
        values: (X, Y, Z) on the prepared grid.
        prepared_affine: Its affine.
        like: Any volume of the case.
    """
    return from_grid(values, prepared_affine, like.affine, like.shape, order=1)


def from_grid(
    values: Array,
    affine: Array,
    target: Array,
    shape: tuple[int, ...],
    *,
    order: int,
) -> Array:
    """`values` of one grid on another: copied where voxels coincide, else interpolated.

    Voxels of the target outside the source are 0.
    """
    steps = np.linalg.inv(affine) @ target  # from target voxels to source voxels
    whole = np.rint(steps)
    if np.abs(whole - steps).max() < 1e-3 and _is_signed_permutation(whole[:3, :3]):
        return _copy(values, whole.astype(int), shape)
    return resample(values, affine, target, shape, order=order)


def resample(
    values: Array,
    affine: Array,
    target: Array,
    shape: tuple[int, ...],
    *,
    order: int = 1,
) -> Array:
    """Interpolate `values` onto the grid of `target` and `shape`; 0 outside.

    Where voxels grow, linear interpolation first averages over the larger voxel, so that fine
    structure does not turn into noise.
    """
    # Rounded, because a voxel beyond the edge by 1e-15 would be outside.
    steps = np.round(np.linalg.inv(affine) @ target, 9)
    if order:
        coarser = np.sqrt((steps[:3, :3] ** 2).sum(axis=1))
        # The standard deviation for a reduction by f, as scikit-image's resize has it: (f - 1) / 2.
        blur = np.maximum(0, (coarser - 1) / 2)
        if blur.max() > 0.1:
            values = ndimage.gaussian_filter(values, blur, mode="nearest")
    found: Array = ndimage.affine_transform(
        values, steps[:3, :3], steps[:3, 3], output_shape=shape, order=order, mode="constant"
    )
    return found


def bounding_box(mask: npt.NDArray[np.bool_], *, margin: int = 0) -> Box:
    """Smallest box around the true voxels, grown by `margin` within the grid.

    A mask without a true voxel has the whole grid as its box.
    """
    sides = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(mask.any(axis=others))
        if not found.size:
            return slice(0, mask.shape[0]), slice(0, mask.shape[1]), slice(0, mask.shape[2])
        last = int(found[-1]) + 1 + margin
        sides.append(slice(max(int(found[0]) - margin, 0), min(last, mask.shape[axis])))
    return sides[0], sides[1], sides[2]


def _anything(volumes: Sequence[Volume]) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = volumes[0].data != 0
    for volume in volumes[1:]:
        found |= volume.data != 0
    return found


def _z_scores(images: Array, brain: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    scores = np.zeros(images.shape, dtype=np.float32)
    for image, score in zip(images, scores, strict=True):
        inside = image[brain].astype(np.float32)
        inside = np.minimum(inside, np.percentile(inside, CLIP_PERCENTILE))
        spread = float(inside.std())
        score[brain] = (inside - inside.mean()) / (spread if spread > 0 else 1.0)
    return scores


def _require_content(volume: Volume) -> None:
    if not np.isfinite(volume.data).all():
        raise UnreadableFileError(
            volume.path, "it holds NaN or infinite voxels", hint="repair it: brats check --fix"
        )
    if not volume.data.any():
        raise UnreadableFileError(
            volume.path, "every voxel is 0", hint="is it the right file? export it again"
        )


def _to_canonical(images: Array, affine: Array) -> tuple[Array, Array]:
    """Flip and permute (C, X, Y, Z) so that the axes run to the right, anterior and superior."""
    orientation = nib.io_orientation(affine)
    turned = np.stack([nib.apply_orientation(image, orientation) for image in images])
    return turned, affine @ nib.orientations.inv_ornt_aff(orientation, images.shape[1:])


def _needs_resampling(affine: Array) -> bool:
    # 1 % of a voxel, or axes half a degree off a right angle: less than headers are worth.
    metric = affine[:3, :3].T @ affine[:3, :3]
    return bool(np.abs(metric - np.eye(3)).max() > 0.02)


def _millimetre_grid(affine: Array, shape: tuple[int, ...]) -> tuple[Array, tuple[int, ...]]:
    """The 1 mm grid along the axes of `affine` that covers its box of `shape`."""
    axes = np.eye(4)
    # The nearest right-angled axes (the polar decomposition), where the grid is sheared.
    left, _, right = np.linalg.svd(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    axes[:3, :3] = left @ right
    ends = np.array([[x, y, z, 1.0] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    corners = (ends * np.array([*(np.array(shape) - 1), 1.0])) @ (np.linalg.inv(axes) @ affine).T
    low, high = corners[:, :3].min(axis=0), corners[:, :3].max(axis=0)
    size = tuple(int(edge) for edge in np.ceil(high - low - 1e-6) + 1)
    return axes @ _translation(low), size


def _translation(offset: Sequence[float] | Array) -> npt.NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, 3] = offset
    return affine


def _is_signed_permutation(matrix: Array) -> bool:
    size = np.abs(matrix)
    return bool((size.sum(axis=0) == 1).all() and (size.sum(axis=1) == 1).all())


def _copy(values: Array, steps: npt.NDArray[np.int_], shape: tuple[int, ...]) -> Array:
    """Copy voxels between grids that differ by flips, permutations and whole shifts."""
    # Turn the source so that its axes run as the target's, then shift.
    axes = np.abs(steps[:3, :3]).argmax(axis=0)  # source axis of each target axis
    signs = steps[:3, :3].sum(axis=0)[:]
    turned = values.transpose(tuple(axes))
    offset = steps[:3, 3][axes]
    copied = np.zeros(shape, dtype=values.dtype)
    source, target = [], []
    for axis in range(3):
        length = turned.shape[axis]
        if signs[axis] < 0:
            turned = np.flip(turned, axis)
            start = length - 1 - int(offset[axis])
        else:
            start = int(offset[axis])
        # Target voxel t holds source voxel start + t.
        first = max(0, -start)
        last = min(shape[axis], length - start)
        target.append(slice(first, max(first, last)))
        source.append(slice(first + start, max(first, last) + start))
    copied[tuple(target)] = turned[tuple(source)]
    return copied
