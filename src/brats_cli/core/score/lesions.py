"""Lesion-wise scores, as the BraTS 2023 and 2024 challenges computed them, quirks included.

Read at: BraTS-2023-Metrics (`brats_metrics.py`) and BraTS-2024-Metrics (`metrics_GLI.py` and its
siblings), as of their last commits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.ndimage import find_objects, label

from ..errors import ConfigError
from ..images.grid import Box, Grid, Mask, bounding_box
from .conventions import CONVENTIONS
from .surfaces import Spacing, border_distances_mm, weighted_hausdorff95_mm

Labels = npt.NDArray[np.int32]

_TOUCHING = np.ones((3, 3, 3), dtype=bool)  # by faces, edges and corners: 26 neighbours


@dataclass(frozen=True)
class Uniting:
    """A tissue whose components unite the lesions that they touch, and how these are made."""

    tissue: str
    dilations: int
    dropped_voxels: float


@dataclass(frozen=True, kw_only=True)
class LesionRules:
    """How one challenge of one year scores the lesions of one region.

    Attributes:
        dilations: How often lesions are dilated, by faces and edges, to see which belong together
            and what touches them.
        dropped_mm3: Reference lesions of this size or less do not count.
        missed_mm: HD95 of a lesion that was missed or invented.
        merges_predictions: Whether predicted components are united by dilation as well (2024),
            and dropped if they have `dropped_voxels` or fewer.
        dropped_voxels: Compared with a number of voxels whatever their size, as in the challenge's
            code (MEN-RT compares mm3).
        counts_invented: Whether what touches no lesion lowers the score (not in MEN-RT).
        united_by: Tissues of which one component unites all lesions it touches (2024, ET and RC).
        surface_dice: Whether the surface Dice at 0.5 and 1 mm is taken (2024).
    """

    dilations: int
    dropped_mm3: float
    missed_mm: float
    merges_predictions: bool = False
    dropped_voxels: float = 0
    counts_invented: bool = True
    united_by: tuple[Uniting, ...] = ()
    surface_dice: bool = False


# By challenge: dilations, and mm3 up to which a reference lesion is dropped.
_RULES = {
    "2023": {"GLI": (3, 50), "SSA": (3, 50), "PED": (3, 50), "MEN": (1, 50), "MET": (1, 2)},
    "2024": {
        "GLI": (3, 20),
        "PED": (5, 10),
        "SSA": (3, 50),
        "MEN": (1, 50),
        "MEN-RT": (1, 50),
        "MET": (1, 2),
    },
}
YEARS = tuple(_RULES)

_UNITED_BY = {
    ("GLI", "ET"): (Uniting("NCR", 5, 20), Uniting("RC", 5, 20)),
    ("GLI", "RC"): (Uniting("ET", 3, 10), Uniting("NCR", 5, 20)),
    ("SSA", "ET"): (Uniting("NCR", 3, 50),),
    ("MET", "ET"): (Uniting("NCR", 1, 2),),
}


def require_challenge(year: str, challenge: str) -> None:
    """Check that a challenge had lesion-wise scores in a year.

    Raises:
        ConfigError: If not.
    """
    if challenge not in _RULES[year]:
        raise ConfigError(
            f"BraTS {year} had no lesion-wise scores for {challenge}",
            hint=f"choose --challenge from {', '.join(_RULES[year])}, or another year",
        )


def lesion_rules(year: str, challenge: str, region: str, grid: Grid) -> LesionRules:
    """The rules of a year (`2023`, `2024`) and challenge for a region on a grid.

    Raises:
        ConfigError: If that year had no such challenge.
    """
    require_challenge(year, challenge)
    dilations, dropped_mm3 = _RULES[year][challenge]
    missed_mm = CONVENTIONS[f"brats{year}"].penalty_mm(challenge, grid.shape)
    if year == "2023":
        return LesionRules(dilations=dilations, dropped_mm3=dropped_mm3, missed_mm=missed_mm)
    if challenge == "GLI":
        dilations = 5 if region == "RC" else 3
        dropped_mm3 = 10 if region == "ET" else 20
    return LesionRules(
        dilations=dilations,
        dropped_mm3=dropped_mm3,
        missed_mm=missed_mm,
        merges_predictions=challenge != "MEN",
        dropped_voxels=dropped_mm3 / grid.voxel_mm3 if challenge == "MEN-RT" else dropped_mm3,
        counts_invented=challenge != "MEN-RT",
        united_by=_UNITED_BY.get((challenge, region), ()),
        surface_dice=True,
    )


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """A lesion of the reference, or a predicted one that touches none.

    Attributes:
        kind: `found`, `missed` or `invented`.
        counts: Whether it is large enough to count in the case's score.
        reference_mm3: Its volume; 0 if it was invented.
        predicted_mm3: Volume of all predicted components that touch it, counted whole.
        x_mm: Its centre of mass in RAS+ millimetres, with `y_mm` and `z_mm`.
        dice: With those components; 0 if missed or invented.
        hausdorff95_mm: With those components; the penalty if missed or invented.
        surface_dice_05: At 0.5 mm; NaN where the challenge did not take it.
        surface_dice_1: At 1 mm, likewise.
    """

    kind: str
    counts: bool
    reference_mm3: float
    predicted_mm3: float
    x_mm: float
    y_mm: float
    z_mm: float
    dice: float
    hausdorff95_mm: float
    surface_dice_05: float = math.nan
    surface_dice_1: float = math.nan


@dataclass(frozen=True, kw_only=True)
class LesionScore:
    """The lesions of one region of one case, and the case's score.

    All but the last are columns of `scores.csv`. A predicted component that touches two lesions
    counts for both, as in the challenge: both are found, each compared with the whole component.
    """

    lesion_dice: float
    lesion_hausdorff95_mm: float
    lesion_surface_dice_05: float
    lesion_surface_dice_1: float
    lesions: int
    lesions_found: int
    lesions_missed: int
    lesions_invented: int
    table: tuple[Lesion, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, table: Sequence[Lesion], rules: LesionRules) -> LesionScore:
        """The case's score: means over the lesions that count and the invented ones.

        Dice 1 and HD95 0 if there is neither. What touches a lesion too small to count is neither
        invented nor found.
        """
        kept = [each for each in table if each.counts and each.kind != "invented"]
        invented = [each for each in table if each.kind == "invented"]
        counted = kept + (invented if rules.counts_invented else [])

        def mean(name: str, of_none: float) -> float:
            values = [getattr(each, name) for each in counted]
            return math.fsum(values) / len(values) if values else of_none

        no_surface = 1.0 if rules.surface_dice else math.nan
        return cls(
            lesion_dice=mean("dice", 1.0),
            lesion_hausdorff95_mm=mean("hausdorff95_mm", 0.0),
            lesion_surface_dice_05=mean("surface_dice_05", no_surface),
            lesion_surface_dice_1=mean("surface_dice_1", no_surface),
            lesions=len(kept),
            lesions_found=sum(each.kind == "found" for each in kept),
            lesions_missed=sum(each.kind == "missed" for each in kept),
            lesions_invented=len(invented),
            table=tuple(table),
        )


def score_lesions(
    reference: Mask,
    predicted: Mask,
    rules: LesionRules,
    grid: Grid,
    *,
    reference_tissues: Mapping[str, Mask] | None = None,
    predicted_tissues: Mapping[str, Mask] | None = None,
) -> LesionScore:
    """Score a region lesion by lesion.

    Components are 26-connected. Those of the reference that lie in one component of the reference
    dilated `dilations` times are one lesion. The predicted components that touch a lesion, dilated
    likewise, are united and scored with it. Those that touch none are invented.

    Args:
        reference: Expert mask, (X, Y, Z).
        predicted: Mask to score, same shape.
        rules: Of the challenge.
        grid: Where the masks lie.
        reference_tissues: The masks of the tissues of `rules.united_by`, in the reference.
        predicted_tissues: The same in the prediction.
    """
    box = _box_of(reference | predicted, reference_tissues or {}, predicted_tissues or {})
    reference, predicted, grid = reference[box], predicted[box], grid.crop(box)
    if not reference.size:
        return LesionScore.of([], rules)
    lesions = _united(reference, rules, _cut(reference_tissues, box), drops=False)
    if rules.merges_predictions:
        parts = _united(predicted, rules, _cut(predicted_tissues, box), drops=True)
    else:
        parts = _components(predicted)
    part_boxes = find_objects(parts)
    touched = np.zeros(len(part_boxes) + 1, dtype=bool)
    table = []
    for number, box in enumerate(find_objects(lesions), 1):
        if box is None:
            continue
        near = _padded(box, rules.dilations, reference.shape)
        reach = dilated(lesions[near] == number, rules.dilations)
        hit = np.bincount(parts[near][reach], minlength=len(touched)) > 0
        hit[0] = False
        touched |= hit
        around = _around([box, *(part_boxes[part - 1] for part in np.flatnonzero(hit))])
        lesion, united = lesions[around] == number, hit[parts[around]]
        table.append(_compared(lesion, united, rules, grid.crop(around)))
    for part, box in enumerate(part_boxes, 1):
        if box is not None and not touched[part]:
            table.append(_invented(parts[box] == part, rules, grid.crop(box)))
    return LesionScore.of(table, rules)


def _box_of(mask: Mask, *tissues: Mapping[str, Mask]) -> Box:
    """The box that holds a mask and all tissues.

    What meets when dilated meets inside it: of the voxels where two dilated masks touch, those
    nearest to the box are no farther from either mask.
    """
    for masks in tissues:
        for each in masks.values():
            mask = mask | each
    return bounding_box(mask)


def _cut(masks: Mapping[str, Mask] | None, box: Box) -> dict[str, Mask]:
    return {name: mask[box] for name, mask in (masks or {}).items()}


def _compared(lesion: Mask, parts: Mask, rules: LesionRules, grid: Grid) -> Lesion:
    """A lesion and the predicted components that touch it."""
    spacing_mm, voxel_mm3 = grid.spacing_mm, grid.voxel_mm3
    size, predicted = np.count_nonzero(lesion), np.count_nonzero(parts)
    x, y, z = grid.centre_mm(lesion).tolist()
    if rules.surface_dice:
        surface = _surface_dice(lesion, parts, spacing_mm) if predicted else (0.0, 0.0)
    else:
        surface = (math.nan, math.nan)
    return Lesion(
        kind="found" if predicted else "missed",
        counts=bool(size * voxel_mm3 > rules.dropped_mm3),
        reference_mm3=size * voxel_mm3,
        predicted_mm3=predicted * voxel_mm3,
        x_mm=x,
        y_mm=y,
        z_mm=z,
        dice=2 * np.count_nonzero(lesion & parts) / (size + predicted),
        hausdorff95_mm=(
            weighted_hausdorff95_mm(lesion, parts, spacing_mm) if predicted else rules.missed_mm
        ),
        surface_dice_05=surface[0],
        surface_dice_1=surface[1],
    )


def _surface_dice(lesion: Mask, parts: Mask, spacing_mm: Spacing) -> tuple[float, float]:
    """At 0.5 and 1 mm, as nnU-Net has it: the mean of the shares of border voxels either way."""
    there, back = border_distances_mm(lesion, parts, spacing_mm)
    at = [float((there <= mm).mean() + (back <= mm).mean()) / (2 + 1e-8) for mm in (0.5, 1.0)]
    return at[0], at[1]


def _invented(part: Mask, rules: LesionRules, grid: Grid) -> Lesion:
    no_surface = 0.0 if rules.surface_dice else math.nan
    x, y, z = grid.centre_mm(part).tolist()
    return Lesion(
        kind="invented",
        counts=rules.counts_invented,
        reference_mm3=0.0,
        predicted_mm3=float(np.count_nonzero(part) * grid.voxel_mm3),
        x_mm=x,
        y_mm=y,
        z_mm=z,
        dice=0.0,
        hausdorff95_mm=rules.missed_mm,
        surface_dice_05=no_surface,
        surface_dice_1=no_surface,
    )


# --- components --------------------------------------------------------------------------------


def _components(mask: Mask) -> Labels:
    found: Labels = np.zeros(mask.shape, dtype=np.int32)
    if mask.any():
        box = bounding_box(mask)
        label(mask[box], structure=_TOUCHING, output=found[box])
    return found


def _merged(mask: Mask, dilations: int) -> Labels:
    """The components of `mask`; those that meet when dilated count as one."""
    found: Labels = np.zeros(mask.shape, dtype=np.int32)
    if mask.any():
        box = bounding_box(mask, margin=dilations)
        found[box] = _components(dilated(mask[box], dilations))
        found[~mask] = 0
    return found


def _united(mask: Mask, rules: LesionRules, tissues: Mapping[str, Mask], *, drops: bool) -> Labels:
    """The lesions of `mask`: merged by dilation, then by the tissues that unite them.

    Components that are too small are dropped first, also those of the tissues, if it `drops`.
    """
    lesions = _merged(mask, rules.dilations)
    if drops:
        lesions = _without_small(lesions, rules.dropped_voxels)
    for each in rules.united_by:
        others = _merged(tissues[each.tissue], each.dilations)
        if drops:
            others = _without_small(others, each.dropped_voxels)
        lesions = _united_by(lesions, others)
    return lesions


def _without_small(lesions: Labels, voxels: float) -> Labels:
    small = np.bincount(lesions.ravel()) <= voxels
    return np.where(small[lesions], 0, lesions) if small[1:].any() else lesions


def _united_by(lesions: Labels, others: Labels) -> Labels:
    """Lesions that touch the same component of `others` (by face or edge), united.

    A lesion that touches several goes by the first. As in the challenge's code, nothing is done
    if only one lesion touches only one component.
    """
    pairs: set[tuple[int, int]] = set()
    for a, b in ((lesions, others), (others, lesions)):
        for number, box in enumerate(find_objects(a), 1):
            if box is None:
                continue
            near = _padded(box, 1, a.shape)
            hit = np.unique(b[near][dilated(a[near] == number, 1)]).tolist()
            pairs |= {(number, o) if a is lesions else (o, number) for o in hit if o}
    if len(pairs) < 2:
        return lesions
    table = np.arange(lesions.max() + 1, dtype=np.int32)
    for lesion, other in sorted(pairs, reverse=True):  # so that the first one stands at the end
        table[lesion] = lesions.max() + other
    united: Labels = table[lesions]
    return united


def dilated(mask: Mask, times: int) -> Mask:
    """`mask` grown by faces and edges (18 neighbours), as scipy's `binary_dilation` does it.

    >>> int(dilated(np.pad(np.ones((1, 1, 1), bool), 1), 1).sum())
    19
    """
    for _ in range(times):
        # The 18 neighbours are the three squares of nine in the planes through a voxel.
        along = [_grown(mask, axis) for axis in (0, 1)]
        mask = _grown(along[0], 1) | _grown(along[0], 2) | _grown(along[1], 2)
    return mask


def _grown(mask: Mask, axis: int) -> Mask:
    grown = mask.copy()
    into, out = [slice(None)] * 3, [slice(None)] * 3
    into[axis], out[axis] = slice(1, None), slice(None, -1)
    grown[tuple(into)] |= mask[tuple(out)]
    grown[tuple(out)] |= mask[tuple(into)]
    return grown


def _padded(box: Box, by: int, shape: tuple[int, ...]) -> Box:
    x, y, z = (
        slice(max(each.start - by, 0), min(each.stop + by, size))
        for each, size in zip(box, shape, strict=True)
    )
    return x, y, z


def _around(boxes: Sequence[Box]) -> Box:
    x, y, z = (
        slice(min(each.start for each in axis), max(each.stop for each in axis))
        for axis in zip(*boxes, strict=True)
    )
    return x, y, z
