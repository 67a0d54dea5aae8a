"""Thick slices: the shape between them, so that the surface does not follow their blocks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ..images.grid import Mask

THICK = 2.5
"""From this ratio of the largest to the smallest side of a voxel on, slices are interpolated. On
1 x 1 x 5 mm, a real tumour then lies 0.35 mm from its 1 mm truth instead of 0.40; at 1 x 1 x 2 it
would lie farther away (0.155 instead of 0.121)."""


def parts_of_slices(spacing_mm: npt.ArrayLike) -> tuple[int, int, int]:
    """Into how many parts a voxel is cut along each axis, so that all sides are about equal."""
    spacing = np.asarray(spacing_mm, dtype=float)
    x, y, z = np.maximum(np.round(spacing / spacing.min()), 1).astype(int)
    return int(x), int(y), int(z)


def between_slices(
    mask: Mask, spacing_mm: npt.ArrayLike, parts: tuple[int, int, int]
) -> tuple[Mask, npt.NDArray[np.float64]]:
    """A finer mask with the shapes between those of the slices, and its affine to the coarse one.

    Raya and Udupa 1990, 'Shape-based interpolation of multidimensional objects': the distance to
    the boundary, positive inside, is interpolated linearly. The slices themselves stay what they
    are, hence no island and no cavity is lost.

    Args:
        mask: (X, Y, Z), not empty.
        spacing_mm: Size of a voxel along each axis.
        parts: Into how many parts each voxel is cut along each axis.

    Returns:
        The mask, one coarse voxel wider on every side, and (4, 4) from its indices to `mask`'s.
    """
    padded = np.pad(mask, 1)
    spacing = np.asarray(spacing_mm, dtype=float)
    inside, outside = (
        ndimage.distance_transform_edt(each, sampling=spacing) for each in (padded, ~padded)
    )
    depth = (inside - outside).astype(np.float32)
    for axis, count in enumerate(parts):
        if count > 1:
            depth = _linear(depth, axis, count)
    to_coarse = np.diag([*(1 / np.array(parts)), 1.0])
    to_coarse[:3, 3] = -1
    return depth > 0, to_coarse


def _linear(values: npt.NDArray[np.float32], axis: int, parts: int) -> npt.NDArray[np.float32]:
    """`parts` - 1 values between each two neighbours along an axis, linearly."""
    moved = np.moveaxis(values, axis, 0)
    share = (np.arange(parts, dtype=np.float32) / parts)[:, None, None]
    low, high = moved[:-1, None], moved[1:, None]
    between = (low * (1 - share) + high * share).reshape(-1, *moved.shape[1:])
    return np.moveaxis(np.concatenate((between, moved[-1:])), 0, axis)
