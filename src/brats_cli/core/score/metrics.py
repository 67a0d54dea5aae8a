"""How two masks are compared: medpy's definitions, in millimetres, and what empty masks score."""

from __future__ import annotations

import builtins
import math
import sys
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..images.grid import Mask, bounding_box
from .surfaces import Distances, Spacing, border_distances_mm

# Headers hold the spacing as float32: a neighbour 1.0000001 mm away is within 1 mm.
_ROUNDING_MM = 1e-5


def _load_medpy() -> Any:
    """`medpy.metric.binary` without `scipy.stats`, which takes half a second to load.

    In every process that is more than all else that scores need. medpy imports it for its
    `volume_correlation` and `volume_change_correlation` alone, which are of no use here. So its
    file is run as a module of our own, to which the import gives nothing; what others import as
    `medpy.metric.binary` is untouched and whole.
    """

    def without_statistics(name: str, *rest: Any) -> Any:
        return SimpleNamespace(pearsonr=None) if name == "scipy.stats" else __import__(name, *rest)

    package = find_spec("medpy.metric")
    folders = package.submodule_search_locations if package else None
    spec = PathFinder.find_spec("binary", folders) if folders else None
    if "scipy.stats" in sys.modules or spec is None or spec.loader is None:
        from medpy.metric import binary

        return binary
    module = module_from_spec(spec)
    vars(module)["__builtins__"] = {**vars(builtins), "__import__": without_statistics}
    spec.loader.exec_module(module)
    return module


binary = _load_medpy()


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
    reference: Mask,
    predicted: Mask,
    spacing_mm: Spacing,
    *,
    tolerance_mm: float = 1.0,
    outside: int = 0,
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
        outside: Number of voxels of the grid that were cut away, which are in neither mask; the
            specificity counts them.

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
    distances = None
    if found and drawn:
        distances = np.concatenate(border_distances_mm(expert, guess, spacing_mm))
    voxel_mm3 = math.prod(spacing_mm)
    return MaskScore(
        dice=float(binary.dc(guess, expert)) if found or drawn else math.nan,
        jaccard=float(binary.jc(guess, expert)) if found or drawn else math.nan,
        sensitivity=float(binary.sensitivity(guess, expert)) if drawn else math.nan,
        specificity=_specificity(expert, guess, outside + reference.size - expert.size),
        precision=float(binary.precision(guess, expert)) if found else math.nan,
        hausdorff_mm=math.nan if distances is None else float(distances.max()),
        hausdorff95_mm=math.nan if distances is None else float(np.percentile(distances, 95)),
        assd_mm=math.nan if distances is None else float(distances.mean()),
        surface_dice=_surface_dice(distances, tolerance_mm) if found or drawn else math.nan,
        reference_mm3=float(np.count_nonzero(expert) * voxel_mm3),
        predicted_mm3=float(np.count_nonzero(guess) * voxel_mm3),
    )


def _specificity(reference: Mask, predicted: Mask, outside: int) -> float:
    """Share of the voxels outside the reference that the prediction leaves out too."""
    negative = outside + np.count_nonzero(~reference)
    right = outside + np.count_nonzero(~(reference | predicted))
    return right / negative if negative else math.nan


def _surface_dice(distances: Distances | None, tolerance_mm: float) -> float:
    """Share of the pooled distances within the tolerance; 0 where one surface is missing."""
    return 0.0 if distances is None else float((distances <= tolerance_mm + _ROUNDING_MM).mean())
