"""How two masks are compared: medpy's definitions, in millimetres, and what empty masks score."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from medpy.metric import binary
from scipy.ndimage import binary_erosion, distance_transform_edt
from scipy.spatial import KDTree

from ..images.grid import Mask, bounding_box

Spacing = tuple[float, float, float]

# Headers hold the spacing as float32: a neighbour 1.0000001 mm away is within 1 mm.
_ROUNDING_MM = 1e-5

# Measured: above about one surface voxel in four, as in the noise of an untrained network, the
# distance transform of the whole box takes less time than a search from every surface voxel.
_CROWDED = 4


@dataclass(frozen=True, kw_only=True)
class MaskScore:
    """How well one mask agrees with another; NaN where a metric has no value.

    The fields are the columns of `scores.csv`.
    """

    dice: float
    jaccard: float
    sensitivity: float
    specificity: float
    precision: float
    hausdorff_mm: float
    hausdorff95_mm: float
    assd_mm: float
    surface_dice: float
    reference_mm3: float
    predicted_mm3: float


def score(
    reference: Mask, predicted: Mask, spacing_mm: Spacing, *, tolerance_mm: float = 1.0
) -> MaskScore:
    """Every metric of one pair of masks, equal to medpy's.

    The distances are those between the border voxels of the masks (a border voxel has one of its
    six neighbours outside), from each to the nearest of the other mask, both directions pooled:
    HD is their maximum, HD95 their 95th percentile, ASSD their mean, and the surface Dice the
    share within `tolerance_mm`. Codes that weight by surface area (DeepMind's surface-distance,
    BraTS 2023 and 2024) or take the larger of two directed percentiles give other numbers.

    Args:
        reference: Expert mask, (X, Y, Z).
        predicted: Mask to score, same shape.
        spacing_mm: Voxel size along each array axis.
        tolerance_mm: How far a surface may be off and still count as found.

    Returns:
        NaN for what an empty mask leaves undefined: all but the specificity and the volumes if
        both are empty; the distances and sensitivity (empty reference) or precision (empty
        prediction) if one is. The specificity has no value where the reference fills the grid.

    Raises:
        ValueError: If the shapes differ (callers check the grids first).
    """
    if reference.shape != predicted.shape:
        raise ValueError(f"masks of shape {reference.shape} and {predicted.shape}")
    # Outside the union box both masks are empty, as medpy takes them to be beyond the array's
    # edge: the numbers are those of the whole grid. Only the specificity counts voxels there.
    box = bounding_box(reference | predicted)
    expert, guess = reference[box], predicted[box]
    found, drawn = bool(guess.any()), bool(expert.any())
    distances = _surface_distances_mm(expert, guess, spacing_mm) if found and drawn else None
    voxel_mm3 = math.prod(spacing_mm)
    return MaskScore(
        dice=float(binary.dc(guess, expert)) if found or drawn else math.nan,
        jaccard=float(binary.jc(guess, expert)) if found or drawn else math.nan,
        sensitivity=float(binary.sensitivity(guess, expert)) if drawn else math.nan,
        specificity=_specificity(reference, predicted),
        precision=float(binary.precision(guess, expert)) if found else math.nan,
        hausdorff_mm=math.nan if distances is None else float(distances.max()),
        hausdorff95_mm=math.nan if distances is None else float(np.percentile(distances, 95)),
        assd_mm=math.nan if distances is None else float(distances.mean()),
        surface_dice=_surface_dice(distances, tolerance_mm) if found or drawn else math.nan,
        reference_mm3=float(np.count_nonzero(expert) * voxel_mm3),
        predicted_mm3=float(np.count_nonzero(guess) * voxel_mm3),
    )


def _specificity(reference: Mask, predicted: Mask) -> float:
    return math.nan if reference.all() else float(binary.specificity(predicted, reference))


def _surface_dice(distances: npt.NDArray[np.float64] | None, tolerance_mm: float) -> float:
    """Share of the pooled distances within the tolerance; 0 where one surface is missing."""
    return 0.0 if distances is None else float((distances <= tolerance_mm + _ROUNDING_MM).mean())


def _surface_distances_mm(
    reference: Mask, predicted: Mask, spacing_mm: Spacing
) -> npt.NDArray[np.float64]:
    """Surface distances as medpy takes them, both directions pooled; no mask may be empty."""
    expert, guess = _border(reference), _border(predicted)
    return np.concatenate(
        [_nearest_mm(guess, expert, spacing_mm), _nearest_mm(expert, guess, spacing_mm)]
    )


def _border(mask: Mask) -> Mask:
    """The voxels of `mask` with a face to the outside, or to the edge of the array."""
    border: Mask = mask & ~binary_erosion(mask)
    return border


def _nearest_mm(start: Mask, target: Mask, spacing_mm: Spacing) -> npt.NDArray[np.float64]:
    """From each voxel of `start`, in array order, how far the nearest voxel of `target` is."""
    nearest: npt.NDArray[np.float64]
    if _CROWDED * np.count_nonzero(start | target) > target.size:
        nearest = distance_transform_edt(~target, sampling=spacing_mm)[start]
    else:
        # A plain tree is built in half the time of a balanced one, and searched at least as fast.
        tree = KDTree(np.argwhere(target) * spacing_mm, balanced_tree=False, compact_nodes=False)
        nearest, _ = tree.query(np.argwhere(start) * spacing_mm)
    return nearest
