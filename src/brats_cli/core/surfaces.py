"""How a mask of voxels becomes a surface in millimetres: closed, outward and where the scan is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import MeshError
from .labels import Mask

Points = npt.NDArray[np.float64]
Triangles = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TriangleMesh:
    """A surface of triangles in space.

    Attributes:
        vertices: (V, 3), in millimetres; RAS+ if it was made from a NIfTI affine.
        faces: (F, 3), three vertex numbers each, counter-clockwise seen from outside.
    """

    vertices: Points
    faces: Triangles

    @property
    def is_empty(self) -> bool:
        """Whether there is no triangle."""
        return len(self.faces) == 0

    @property
    def is_closed(self) -> bool:
        """Whether every edge belongs to exactly two faces, which run along it in opposite ways.

        Such a surface has no hole, and its faces all look outward or all inward (the sign of the
        volume tells which). True of an empty mesh.
        """
        start = self.faces.ravel().astype(np.int64)
        end = np.roll(self.faces, -1, axis=1).ravel().astype(np.int64)
        forth = np.sort(start * len(self.vertices) + end)
        back = np.sort(end * len(self.vertices) + start)
        used_twice = bool((forth[1:] == forth[:-1]).any())
        return not used_twice and bool((start != end).all()) and np.array_equal(forth, back)

    @property
    def volume_mm3(self) -> float:
        """The volume enclosed, by the divergence theorem; negative if the faces look inward."""
        if self.is_empty:
            return 0.0
        # Measured from a vertex, for a head far from the origin would cost digits.
        a, b, c = np.moveaxis(self._corners - self.vertices[0], 1, 0)
        return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)

    @property
    def area_mm2(self) -> float:
        """The sum of the triangles' areas."""
        return float(np.linalg.norm(self._crosses, axis=1).sum() / 2)

    @property
    def normals(self) -> Points:
        """Unit normal of each face, (F, 3); zero for a face without area."""
        crosses = self._crosses
        lengths = np.linalg.norm(crosses, axis=1, keepdims=True)
        return crosses / np.where(lengths > 0, lengths, 1)

    @property
    def _corners(self) -> Points:
        return self.vertices[self.faces]  # (F, 3 corners, 3)

    @property
    def _crosses(self) -> Points:
        a, b, c = np.moveaxis(self._corners, 1, 0)
        crosses: Points = np.cross(b - a, c - a)
        return crosses


def surface(mask: Mask, affine: npt.NDArray[np.floating]) -> TriangleMesh:
    """The surface half-way between the voxels of `mask` and those around it.

    Closed and outward for every mask, also one that touches the edge of the grid. Voxels that
    touch only along an edge or at a corner stay apart. Marching cubes cuts corners off, so that
    the mesh holds less than the voxels where these are few: 1/6 of a single one, a few per cent
    less of some hundred, within 0.8 % for whole tumours.

    Args:
        mask: (X, Y, Z).
        affine: (4, 4), from voxel indices to millimetres.

    Returns:
        An empty mesh if the mask is empty.

    Raises:
        MeshError: If the affine is not finite or flattens space.
    """
    determinant = np.linalg.det(affine[:3, :3]) if np.isfinite(affine).all() else 0.0
    if determinant == 0:
        raise MeshError(
            "the voxels have no place in space: the affine is singular or not finite",
            hint="compare the file's header with its scan's, and copy sform and qform from there",
        )
    if not mask.any():
        return TriangleMesh(np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64))
    from skimage.measure import marching_cubes  # scipy loads with it

    box = _box(mask)
    # A mask that touches the edge of the grid would give an open surface.
    padded = np.pad(mask[box], 1).astype(np.float32)
    # Lorensen's table, because Lewiner's, the default, joins four faces at an edge where masks
    # touch diagonally (in 2 of 34 expert masks). 'ascent', because the default winds inward.
    voxels, faces, _, _ = marching_cubes(
        padded, level=0.5, method="lorensen", gradient_direction="ascent"
    )
    indices = voxels.astype(np.float64) + [axis.start - 1 for axis in box]
    # An affine that mirrors turns the surface inside out.
    outward = faces if determinant > 0 else faces[:, ::-1]
    return TriangleMesh(
        indices @ affine[:3, :3].T + affine[:3, 3], np.ascontiguousarray(outward, dtype=np.int64)
    )


def _box(mask: Mask) -> tuple[slice, slice, slice]:
    """The smallest box that holds a mask which is not empty."""
    x, y, z = (
        np.flatnonzero(mask.any(axis=others))[[0, -1]] for others in ((1, 2), (0, 2), (0, 1))
    )
    return slice(x[0], x[1] + 1), slice(y[0], y[1] + 1), slice(z[0], z[1] + 1)
