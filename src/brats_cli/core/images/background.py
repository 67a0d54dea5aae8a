"""What lies around the brain: a value that stands for air, or a skull that was not stripped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .grid import Volume, bounding_box

Array = npt.NDArray[Any]

_AT_BORDER = 0.5
"""Share of the voxels on the faces of an image that hold its background, if it has one."""

_MOST_BRAIN_MM3 = 2.3e6
"""No brain is larger; the twelve real cases have 1.2 to 1.7 litres, a head has 3 to 5."""

_MOST_SHARE, _MOST_SHARE_OF_CROP = 0.4, 0.55
"""Share of voxels that a brain fills at most: of a scan (real cases: 0.13 to 0.19), and of one
that was cropped to it (0.42 to 0.50)."""

_SMALLEST_SCAN = 20_000
"""Fewer voxels show no head."""

_BRIGHT_SHELL = 1.25
"""How much brighter than the rest the outermost twentieth of a brain is at most in T1: its cortex
is darker (real cases: 0.58 to 1.00), while the fat of a scalp is the brightest there is."""


def odd_background(image: Array) -> float | None:
    """The one value around the head, if it is not 0: that of the corners and most of the faces.

    >>> image = np.full((4, 4, 4), -1000)
    >>> image[1:3, 1:3, 1:3] = 7
    >>> odd_background(image)
    -1000.0
    """
    corners = image[np.ix_(*([0, -1],) * 3)].ravel()
    value = float(np.median(corners))
    if value == 0 or not np.isfinite(value) or np.count_nonzero(corners == value) < 6:
        return None
    faces = [image.take(end, axis) == value for axis in range(3) for end in (0, -1)]
    share = sum(np.count_nonzero(face) for face in faces) / sum(face.size for face in faces)
    # An image of one value alone has no head, and so no background.
    return value if share >= _AT_BORDER and (image != value).any() else None


def on_zero(volume: Volume) -> Volume:
    """`volume` with 0 around the head, if another value stands for air there."""
    background = odd_background(volume.data)
    if background is None:
        return volume
    return replace(volume, data=np.where(volume.data == background, 0, volume.data))


def signs_of_skull(image: Array, voxel_mm3: float, *, is_t1: bool) -> str:
    """Why the skull seems to be still on, in words; empty if it does not.

    Args:
        image: (X, Y, Z), 0 outside of the head.
        voxel_mm3: Volume of a voxel.
        is_t1: Whether it is T1-weighted, with or without contrast.
    """
    inside = image != 0
    if inside.size < _SMALLEST_SCAN:
        return ""
    share = np.count_nonzero(inside) / inside.size
    if share > 0.99:
        return "almost no voxel is 0"
    litres = share * inside.size * voxel_mm3 / 1e6
    if litres * 1e6 > _MOST_BRAIN_MM3:
        return f"{litres:.1f} litres are not 0, and a brain has 1 to 2"
    box = bounding_box(inside)
    margins = [(side.start, size - side.stop) for side, size in zip(box, image.shape, strict=True)]
    is_crop = all(max(ends) <= 0.05 * size for ends, size in zip(margins, image.shape, strict=True))
    if share > (_MOST_SHARE_OF_CROP if is_crop else _MOST_SHARE):
        return f"{100 * share:.0f} % of all voxels are not 0"
    ratio = _shell_ratio(image[box], inside[box]) if is_t1 and share else 1.0
    if ratio > _BRIGHT_SHELL:
        return f"T1 is {ratio:.1f} times as bright outside as inside, like a scalp"
    return ""


def _shell_ratio(image: Array, inside: npt.NDArray[np.bool_]) -> float:
    """Median of the outermost voxels over that of the others."""
    from scipy import ndimage  # 0.1 s to import

    step = max(1, round(max(image.shape) / 64))  # coarse is as good, and takes 10 ms
    image, inside = image[::step, ::step, ::step], inside[::step, ::step, ::step]
    depth = max(1, round(0.04 * min(image.shape)))
    inner = ndimage.binary_erosion(inside, iterations=depth)
    if not inner.any():
        return 1.0
    within = float(np.median(image[inner]))
    return float(np.median(image[inside & ~inner])) / within if within > 0 else 1.0
