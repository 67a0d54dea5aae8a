"""Which voxels of a label map or a scan are meshed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..data.labels import SCHEMES, LabelScheme, Region, as_scheme, noted_scheme
from ..data.meaning import Known, known_of, values_in
from ..data.naming import case_id_of, schemes_by_name
from ..errors import ConfigError, LabelError, MeshError
from ..images.grid import Grid, Mask, Volume, bounding_box

BRAIN = "brain"
"""The region of all voxels of a scan that are not 0, with what lies inside them."""


@dataclass(frozen=True, kw_only=True)
class Islands:
    """Which parts of a region's mask are kept. Voxels that touch only at an edge are two parts.

    Attributes:
        min_volume: The smallest volume of a part that is kept, in mm3.
        largest: Whether only the largest part is kept.
        fill_holes: Whether cavities are filled.
    """

    min_volume: float = 0
    largest: bool = False
    fill_holes: bool = False

    def __post_init__(self) -> None:
        if not self.min_volume >= 0:
            raise ConfigError(
                f"a minimum volume of {self.min_volume:g} mm3 is not possible",
                hint="give 0 or more, such as 10 to leave out islands smaller than 10 mm3",
            )

    def of(self, mask: Mask, voxel_mm3: float) -> Mask:
        """What is kept of `mask`, in the same shape; empty if every part is too small."""
        if self.fill_holes:
            mask = filled(mask)
        if not self.largest and self.min_volume <= voxel_mm3:
            return mask
        from scipy import ndimage  # 0.1 s to import, and seldom needed

        parts, _ = ndimage.label(mask)
        voxels = np.bincount(parts.ravel())
        voxels[0] = 0
        kept = voxels * voxel_mm3 >= max(self.min_volume, 1e-9)
        if self.largest:
            kept &= np.arange(len(voxels)) == voxels.argmax()
        chosen: Mask = kept[parts]
        return chosen


def filled(mask: Mask) -> Mask:
    """`mask` with its cavities, which are those that its surface has a shell for."""
    from scipy import ndimage  # 0.1 s to import, and seldom needed

    # The outside passes between two voxels that share an edge, and not through a corner.
    passages = ndimage.generate_binary_structure(3, 2)
    full: Mask = ndimage.binary_fill_holes(mask, structure=passages)
    return full


@dataclass(frozen=True, eq=False)
class RegionMask:
    """The voxels of a region, in the box of all that is not background.

    Attributes:
        region: Which.
        mask: (X, Y, Z).
        grid: Where its voxels lie.
    """

    region: Region
    mask: Mask
    grid: Grid


def region_masks(
    image: Volume,
    wanted: str,
    *,
    labels: LabelScheme | str | None = None,
    known: Known | None = None,
    islands: Islands | None = None,
) -> Iterator[RegionMask]:
    """The mask of each region that `wanted` names in a label map, or in a scan if it is the brain.

    Raises:
        LabelError: If several schemes fit and differ in the region, or none has it.
        MeshError: If no voxel is in the region.
    """
    # The box of all regions is found once, and all that follows looks at a tenth of the voxels.
    box = bounding_box(image.data != 0)
    data, grid = image.data[box], image.grid.crop(box)
    for region in regions_of(image, wanted, labels=labels, known=known):
        mask = _brain(data) if wanted == BRAIN else region.mask(data)
        if not mask.any():
            raise _empty(region, image)
        kept = (islands or Islands()).of(mask, grid.voxel_mm3)
        if not kept.any():
            raise MeshError(
                f"{image.path} has no part of {region.name} that is large enough",
                hint="choose a smaller --min-volume",
            )
        yield RegionMask(region, kept, grid)


def _empty(region: Region, image: Volume) -> MeshError:
    if not region.labels:
        return MeshError(f"{image.path} is empty: all its voxels are 0", hint="is it a scan?")
    held = ", ".join(map(str, sorted(values_in(image))))
    return MeshError(
        f"{image.path} has no {region.name}: its voxels are {held}, "
        f"none is {' or '.join(map(str, region.labels))}",
        hint="choose another --region, or all for those that are there",
    )


def _brain(data: npt.NDArray[np.generic]) -> Mask:
    return filled(np.isfinite(data) & (data != 0))


def wanted_region(text: str) -> str:
    """A region as the user wrote it, as `regions_of` takes it: `wt` is WT, `02` is 2.

    Raises:
        LabelError: If no scheme has it.
    """
    if text.isdecimal():
        if not 0 < int(text) < 256:
            raise LabelError(
                f"there is no tissue of label {int(text)}",
                hint="labels run from 1 to 255; 0 is the background",
            )
        return str(int(text))
    known = sorted({region.name for scheme in SCHEMES.values() for region in scheme.regions})
    by_lower = {name.lower(): name for name in (*known, "all", BRAIN)}
    if text.lower() not in by_lower:
        raise LabelError(
            f"there is no region '{text}'",
            hint=f"the regions are {', '.join(known)}; a label value, all and {BRAIN} work as well",
        )
    return by_lower[text.lower()]


def regions_of(
    label_map: Volume,
    wanted: str,
    *,
    labels: LabelScheme | str | None = None,
    known: Known | None = None,
) -> list[Region]:
    """The regions of a label map that `wanted` names.

    A region that has the same labels whichever of the fitting schemes is meant (as WT has for
    0, 1, 2 and 3) needs no scheme.

    Args:
        label_map: As read; its header, its name, its grid and its values decide the scheme.
        wanted: From `wanted_region`: `all` means every region that is not empty.
        labels: The scheme as the user gave it; overrides the others.
        known: What is known of its values; by default what its own file and name say.

    Raises:
        LabelError: If several schemes fit and differ in the region, or none has it.
        MeshError: If all regions are wanted and all are empty.
    """
    if wanted == BRAIN:
        return [Region(BRAIN, ())]
    if wanted.isdecimal():
        return [Region(wanted, (int(wanted),))]
    present = values_in(label_map)
    known = known or _known(label_map)
    declared = labels is not None or (known.declared and present <= known.declared.values)
    if not declared and wanted != "all":
        agreed = _agreed(wanted, present, known.fitting(present))
        if agreed:
            return [agreed]
    scheme = known.scheme(present, label_map.path, as_scheme(labels))
    if wanted != "all":
        return [scheme.region(wanted)]
    regions = [region for region in scheme.regions if present & set(region.labels)]
    if not regions:
        raise MeshError(
            f"{label_map.path} has no tumour in any region", hint="is it the right label map?"
        )
    return regions


def _known(label_map: Volume) -> Known:
    """What is known of a label map on its own."""
    known = known_of({label_map.path: case_id_of(label_map.path)})[label_map.path]
    named = schemes_by_name(case_id_of(label_map.path), label_map.shape)
    declared = noted_scheme(label_map.note)
    return replace(known, declared=declared, allowed=known.allowed or named)


def _agreed(name: str, present: frozenset[int], schemes: list[LabelScheme]) -> Region | None:
    """The region called `name`, if it holds the same of the labels present in all `schemes`."""
    regions = [region for scheme in schemes for region in scheme.regions if region.name == name]
    meanings = {frozenset(present & set(region.labels)) for region in regions}
    return regions[0] if len(meanings) == 1 else None
