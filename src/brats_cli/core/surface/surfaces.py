"""From a mask to the surface that is wanted of it: smooth, reduced, closed, of the same volume."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

import numpy as np

from ..errors import ConfigError
from ..images.grid import Grid, Mask, bounding_box
from ..wording import did_you_mean
from .reduction import reduced
from .shells import Shells
from .slices import THICK, between_slices, parts_of_slices
from .smoothing import UNSMOOTHED_FACES, Smoothing, iterations, smoothed
from .triangles import Points, TriangleMesh
from .voxels import VoxelSurface, voxel_surface

LEAST_FACES = 20


@dataclass(frozen=True, kw_only=True)
class SurfaceConfig:
    """How a surface is made.

    Attributes:
        smooth: `none`, `light`, `medium` or `strong`.
        faces: How many triangles to reduce it to.
        reduce: Or which part of the triangles to keep, above 0 and up to 1.
        interpolate: Whether to interpolate between slices; None: where they are thick.
    """

    smooth: Smoothing = "light"
    faces: int | None = None
    reduce: float | None = None
    interpolate: bool | None = None

    def __post_init__(self) -> None:
        if self.smooth not in (known := get_args(Smoothing)):
            raise ConfigError(
                f"there is no smoothing '{self.smooth}'",
                hint=did_you_mean(self.smooth, known, otherwise=f"choose {', '.join(known)}"),
            )
        if self.faces is not None and self.reduce is not None:
            raise ConfigError(
                "both a number of faces and a part of them are given", hint="give one of the two"
            )
        if self.reduce is not None and not 0 < self.reduce <= 1:
            raise ConfigError(
                f"cannot keep {self.reduce:g} of the faces",
                hint="give the part of the faces to keep, above 0 and up to 1, such as 0.25",
            )
        if self.faces is not None and self.faces < LEAST_FACES:
            raise ConfigError(
                f"cannot make a surface of {self.faces} faces",
                hint=f"give at least {LEAST_FACES}, such as 10000, or the part to keep (--reduce)",
            )

    def wanted(self, faces: int) -> int:
        """To how many triangles a surface of `faces` is reduced."""
        if self.reduce is not None:
            return round(self.reduce * faces)
        return faces if self.faces is None else min(self.faces, faces)


@dataclass(frozen=True, eq=False)
class Surface:
    """A surface, and what it was made of.

    Attributes:
        mesh: Closed and outward, in mm.
        voxels: Marching cubes of the mask, to compare with.
        voxels_mm3: The volume of the mask's voxels.
        full_faces: Triangles before the reduction.
        full_shells: Shells before it.
        smooth: The smoothing, which is weaker than wanted if that would have been torn.
        unsmoothed: Shells so small that they were not smoothed.
        parts: Into how many parts voxels were cut along each axis; None if they were not.
    """

    mesh: TriangleMesh
    voxels: VoxelSurface
    voxels_mm3: float
    full_faces: int
    full_shells: int
    smooth: str
    unsmoothed: int
    parts: tuple[int, int, int] | None

    @property
    def shells(self) -> int:
        """Connected pieces of the mesh, cavities' inner surfaces included."""
        # Smoothing joins and parts none.
        is_reduced = len(self.mesh.faces) != self.full_faces
        return self.mesh.shells if is_reduced else self.full_shells


def surface_of(mask: Mask, grid: Grid, config: SurfaceConfig | None = None) -> Surface:
    """The surface of a mask that is not empty, with the volume of its voxels.

    Closed, a manifold and outward for every mask, also one that touches the edge of the grid.
    Voxels that touch only along an edge or at a corner stay apart; no island and no cavity is lost.

    Args:
        mask: (X, Y, Z).
        grid: Where its voxels lie.
        config: How to make it; None is as by default.

    Raises:
        ValueError: If the grid has no place in space.
    """
    if not grid.is_usable:
        raise ValueError("the affine is singular or not finite")
    config = config or SurfaceConfig()
    voxels = voxel_surface(mask)
    fine, cut = voxels, grid
    is_large = (voxels.shell_faces >= UNSMOOTHED_FACES)[:, None]
    centres = np.where(is_large, voxels.shell_centres, np.nan)
    shells = Shells(voxels.shell, voxels.shell_voxels, centres)
    parts = parts_of_slices(grid.spacing_mm) if is_interpolated(config, grid) else None
    if parts:
        box = bounding_box(mask)
        finer, to_coarse = between_slices(mask[box], grid.spacing_mm, parts)
        cut = Grid(finer.shape, grid.crop(box).affine @ to_coarse)
        fine = voxel_surface(finer)
        shells = _interpolated_shells(fine, finer, parts)
    for smooth in _STRENGTHS[_STRENGTHS.index(config.smooth) :]:
        times = iterations(smooth, cut.spacing_mm, interpolated=parts is not None)
        mesh = _mesh(fine, shells, cut, times, config)
        if parts:
            # Half a slice more at one end than at the other would move the centre.
            mesh = replace(mesh, vertices=mesh.vertices + grid.centre_mm(mask) - mesh.centre_mm)
        if mesh.is_apart:
            break
    return Surface(
        mesh=mesh,
        voxels=voxels,
        voxels_mm3=float(voxels.shell_voxels.sum()) * abs(grid.determinant),
        full_faces=len(fine.faces),
        full_shells=len(shells.volumes),
        smooth=smooth,
        unsmoothed=int((fine.shell_faces < UNSMOOTHED_FACES).sum()) if smooth != "none" else 0,
        parts=parts,
    )


def is_interpolated(config: SurfaceConfig, grid: Grid) -> bool:
    """Whether the shape between slices is interpolated, by what is wanted or by their thickness."""
    spacing = grid.spacing_mm
    if parts_of_slices(spacing) == (1, 1, 1):
        return False
    if config.interpolate is not None:
        return config.interpolate
    return max(spacing) / min(spacing) >= THICK


_STRENGTHS: tuple[Smoothing, ...] = ("strong", "medium", "light", "none")


def _mesh(
    surface: VoxelSurface, shells: Shells, grid: Grid, times: int, config: SurfaceConfig
) -> TriangleMesh:
    """The mesh of a surface, smoothed so many times, with what its shells enclose in voxels."""
    # An affine that mirrors turns the surface inside out.
    faces = surface.faces if grid.determinant > 0 else surface.faces[:, ::-1]
    faces = np.ascontiguousarray(faces)

    def placed(points: Points) -> TriangleMesh:
        return TriangleMesh(points @ grid.affine[:3, :3].T + grid.affine[:3, 3], faces)

    wanted = config.wanted(len(faces))
    if wanted < len(faces):
        # What is reduced gets its volume afterwards.
        smooth = smoothed(surface, times, shells, only_small=times > 0)
        targets, spacing_mm = shells.mapped(grid.affine), min(grid.spacing_mm)
        mesh = reduced(placed(smooth), targets, faces=wanted, spacing_mm=spacing_mm)
        if len(mesh.faces) < len(faces):
            return mesh
    return placed(smoothed(surface, times, shells))


def _interpolated_shells(surface: VoxelSurface, finer: Mask, parts: tuple[int, int, int]) -> Shells:
    """What the shells of an interpolated mask are to enclose, in its voxels.

    Each island holds as much as the voxels of the slices in it, of which the interpolation makes
    more or less; its cavities change by the same factor.
    """
    from scipy import ndimage  # 0.1 s to import, and seldom needed

    islands, _ = ndimage.label(finer)
    of_slices = islands[tuple(slice(None, None, count) for count in parts)]
    size = np.bincount(islands.ravel())
    factor = np.bincount(of_slices.ravel(), minlength=len(size)) * np.prod(parts) / size
    inside = (surface.vertices - surface.steps / 2).astype(np.int64)
    island = np.zeros(len(surface.shell_voxels), dtype=np.int64)
    island[surface.shell] = islands[tuple(inside.T)]
    volumes = surface.shell_voxels * factor[island]
    return Shells(surface.shell, volumes, np.full((len(volumes), 3), np.nan))
