"""Which voxels of a label map are meshed, and how they become a closed surface in millimetres."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..data.labels import SCHEMES, LabelScheme, Region, label_scheme, noted_scheme, tightest_schemes
from ..data.naming import case_id_of, schemes_by_name
from ..errors import LabelError, MeshError
from ..images.grid import Mask, Volume, bounding_box
from .triangles import TriangleMesh


@dataclass(frozen=True)
class RegionSurface:
    """A region's surface, and the volume of the voxels that it stands for."""

    region: Region
    mesh: TriangleMesh
    voxels_mm3: float


def surface(mask: Mask, affine: npt.NDArray[np.floating]) -> TriangleMesh:
    """The surface between the voxels of `mask` and those around it, with the volume of the voxels.

    Closed and outward for every mask, also one that touches the edge of the grid. Voxels that
    touch only along an edge or at a corner stay apart.

    Args:
        mask: (X, Y, Z).
        affine: (4, 4), from voxel indices to millimetres.

    Returns:
        An empty mesh if the mask is empty.

    Raises:
        ValueError: If the affine is not finite or flattens space.
    """
    determinant = _determinant(affine)
    if determinant == 0:
        raise ValueError("the affine is singular or not finite")
    if not mask.any():
        return TriangleMesh(np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64))
    from skimage.measure import marching_cubes  # scipy loads with it

    box = bounding_box(mask)
    # A mask that touches the edge of the grid would give an open surface.
    padded = np.pad(mask[box], 1)
    # Lorensen's table, because Lewiner's, the default, joins four faces at an edge where masks
    # touch diagonally (in 2 of 34 expert masks). 'ascent', because the default winds inward.
    half_way, faces, _, _ = marching_cubes(
        padded.astype(np.float32), level=0.5, method="lorensen", gradient_direction="ascent"
    )
    mesh = _of_the_voxels_volume(TriangleMesh(half_way.astype(np.float64), faces), padded)
    indices = mesh.vertices + [axis.start - 1 for axis in box]
    # An affine that mirrors turns the surface inside out.
    outward = faces if determinant > 0 else faces[:, ::-1]
    return TriangleMesh(
        indices @ affine[:3, :3].T + affine[:3, 3], np.ascontiguousarray(outward, dtype=np.int64)
    )


def _of_the_voxels_volume(half_way: TriangleMesh, mask: Mask) -> TriangleMesh:
    """The surface of `mask`, in voxels, moved until it holds as much as the voxels do.

    Half-way between voxels marching cubes cuts corners: of a ragged predicted tumour it lost up to
    5 %, of a single voxel 5/6. Each vertex lies on the line from a voxel inside to one outside; all
    are moved along theirs by one fraction of the way, as another level would place them. For expert
    masks that is 0.03 voxels at most, for single ones (3/4)^(1/3) - 1/2 = 0.41: no vertex reaches
    a voxel's centre, so nothing tears or folds over.
    """
    low, high = np.floor(half_way.vertices).astype(int), np.ceil(half_way.vertices).astype(int)
    inside_is_low = mask[low[:, 0], low[:, 1], low[:, 2]]
    outward = np.where(inside_is_low[:, None], high - low, low - high)

    def moved(by: float) -> TriangleMesh:
        return TriangleMesh(half_way.vertices + by * outward, half_way.faces)

    # The volume is a cubic of the step, so that four of its values tell all others.
    steps = np.array([-0.5, 0, 0.25, 0.5])
    excess = [moved(step).volume_mm3 - np.count_nonzero(mask) for step in steps]
    roots = np.roots(np.polyfit(steps, excess, 3))
    real = roots[np.isreal(roots)].real
    return moved(float(real[np.abs(real).argmin()]))


def region_surfaces(
    label_map: Volume, wanted: str, *, labels: str | None = None
) -> Iterator[RegionSurface]:
    """The surface of each region of a label map that `wanted` names; see `regions_of`.

    Raises:
        LabelError: If several schemes fit and differ in the region, or none has it.
        MeshError: If no voxel is in the region, or the file does not tell where its voxels are.
    """
    voxel_mm3 = abs(_determinant(label_map.affine))
    if voxel_mm3 == 0:
        raise MeshError(
            f"{label_map.path} does not tell where its voxels are: "
            "its affine is singular or not finite",
            hint="copy the sform and qform of the scan that it was drawn on",
        )
    for region in regions_of(label_map, wanted, labels=labels):
        mask = region.mask(label_map.data)
        if not mask.any():
            held = ", ".join(map(str, np.unique(label_map.data)))
            raise MeshError(
                f"{label_map.path} has no {region.name}: its voxels are {held}, "
                f"none is {' or '.join(map(str, region.labels))}",
                hint="choose another --region, or all for those that are there",
            )
        yield RegionSurface(region, surface(mask, label_map.affine), int(mask.sum()) * voxel_mm3)


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
    if text.lower() != "all" and text.upper() not in known:
        raise LabelError(
            f"there is no region '{text}'",
            hint=f"the regions are {', '.join(known)}; a label value and all will do as well",
        )
    return "all" if text.lower() == "all" else text.upper()


def regions_of(label_map: Volume, wanted: str, *, labels: str | None = None) -> list[Region]:
    """The regions of a label map that `wanted` names.

    A region that has the same labels whichever of the fitting schemes is meant (as WT has for
    0, 1, 2 and 3) needs no scheme.

    Args:
        label_map: As read; its header, its name, its grid and its values tell the scheme.
        wanted: From `wanted_region`: `all` means every region that is not empty.
        labels: The name of the scheme as the user gave it; wins.

    Raises:
        LabelError: If several schemes fit and differ in the region, or none has it.
        MeshError: If all regions are wanted and all are empty.
    """
    if wanted.isdecimal():
        return [Region(wanted, (int(wanted),))]
    present = {int(value) for value in np.unique(label_map.data)}
    named = schemes_by_name(case_id_of(label_map.path), label_map.shape)
    open_to = [scheme for scheme in named if present <= scheme.values] or tightest_schemes(present)
    noted = noted_scheme(label_map.note)
    told = labels is not None or (noted and present <= noted.values)
    if not told and wanted != "all" and (agreed := _agreed(wanted, present, open_to)):
        return [agreed]
    scheme = label_scheme(present, noted, str(label_map.path), labels, allowed=named)
    if wanted != "all":
        return [scheme.region(wanted)]
    regions = [region for region in scheme.regions if present & set(region.labels)]
    if not regions:
        raise MeshError(
            f"{label_map.path} has no tumour in any region", hint="is it the right label map?"
        )
    return regions


def _agreed(name: str, present: set[int], schemes: list[LabelScheme]) -> Region | None:
    """The region called `name`, if it holds the same of the labels present in all `schemes`."""
    regions = [region for scheme in schemes for region in scheme.regions if region.name == name]
    meanings = {frozenset(present & set(region.labels)) for region in regions}
    return regions[0] if len(meanings) == 1 else None


def _determinant(affine: npt.NDArray[np.floating]) -> float:
    """How much the affine stretches space, negative if it mirrors; 0 if it is no affine at all."""
    return float(np.linalg.det(affine[:3, :3])) if np.isfinite(affine).all() else 0.0
