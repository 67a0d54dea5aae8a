"""A surface of triangles in space: whether it is closed, its volume, area and normals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
