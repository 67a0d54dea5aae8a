"""A surface of triangles in space: whether it is closed, its volume, area, shells and normals."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csc_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components

Points = npt.NDArray[np.float64]

Triangles = npt.NDArray[np.integer[Any]]

Indices = npt.NDArray[np.integer[Any]]


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
        """Whether the surface is closed and a manifold, as printers need it; see `is_closed`."""
        return is_closed(self.faces, len(self.vertices))

    @cached_property
    def is_apart(self) -> bool:
        """Whether no two vertices have equal float32 positions.

        Then the surface stays closed for a reader that merges those that have, as each reader of
        STL must, which holds no vertex numbers.
        """
        rounded = np.ascontiguousarray(self.vertices, dtype=np.float32) + np.float32(0)  # no -0
        hashed = hashed_rows(rounded.view(np.uint32))
        return not _repeats(hashed) or len(np.unique(rounded, axis=0)) == len(rounded)

    @property
    def volume_mm3(self) -> float:
        """The volume enclosed, by the divergence theorem; negative if the faces look inward."""
        if self.is_empty:
            return 0.0
        # Measured from a vertex, for a head far from the origin would cost digits.
        first = np.take(self.vertices, self.faces[:, 0], axis=0) - self.vertices[0]
        return float(dot(first.T, self._crosses).sum() / 6)

    @property
    def centre_mm(self) -> Points:
        """The centre of the volume enclosed, (3,)."""
        origin = self.vertices[0]
        corners = corners_of((self.vertices - origin).T, self.faces)
        # Each face spans a tetrahedron with the origin, whose centre is the mean of its corners.
        volumes = dot(corners[0], crosses_of(corners))
        sums = ((corners[0] + corners[1] + corners[2]) * volumes).sum(axis=1) / 4
        centre: Points = origin + sums / volumes.sum()
        return centre

    @property
    def area_mm2(self) -> float:
        """The sum of the triangles' areas."""
        return float(self.areas_mm2.sum())

    @property
    def areas_mm2(self) -> Points:
        """The area of each triangle, (F,)."""
        areas: Points = np.sqrt(dot(self._crosses, self._crosses)) / 2
        return areas

    @property
    def normals(self) -> Points:
        """Unit normal of each face, (F, 3); zero for a face without area."""
        return unit(self._crosses).T

    @property
    def vertex_normals(self) -> Points:
        """Unit normal of each vertex, (V, 3): the mean of its faces', weighted by their areas."""
        return unit(vertex_sums(self._crosses, self.faces, len(self.vertices))).T

    @property
    def euler_number(self) -> int:
        """Vertices - edges + faces: 2 for each shell, less 2 for each handle (a ring has one).

        Of a closed surface, which has three edges for every two faces.
        """
        return int(np.count_nonzero(self._is_used)) - len(self.faces) // 2

    @property
    def shells(self) -> int:
        """Connected pieces, cavities' inner surfaces included."""
        found, _ = connected_components(neighbours(self.faces, len(self.vertices)), directed=False)
        return int(found) - int(np.count_nonzero(~self._is_used))

    @cached_property
    def _is_used(self) -> npt.NDArray[np.bool_]:
        return is_used(self.faces, len(self.vertices))

    @cached_property
    def _crosses(self) -> Points:
        return crosses_of(corners_of(self.vertices.T, self.faces))


def is_closed(faces: Triangles, vertices: int) -> bool:
    """Whether faces make a closed, oriented manifold; true of no faces at all.

    Each edge belongs to exactly two faces, which run along it in opposite ways; the faces at each
    vertex make one fan; no face is there twice. Such a surface has no hole, touches itself nowhere
    and has an inside; the sign of its volume says whether its faces look outward.
    """
    if len(faces) == 0:
        return True
    twin = twins(faces, vertices)
    if twin is None:
        return False
    # Of a face that is there twice, all three edges lead to the other one.
    first, second, third = (twin // 3).reshape(-1, 3).T
    if ((first == second) & (second == third)).any():
        return False
    return _is_one_fan_each(faces, twin, vertices)


def is_used(faces: Triangles, vertices: int) -> npt.NDArray[np.bool_]:
    """Which vertices belong to a face, (V,)."""
    used = np.zeros(vertices, dtype=bool)
    used[faces] = True
    return used


def twins(faces: Triangles, vertices: int) -> npt.NDArray[np.int32] | None:
    """The half-edge that runs along each half-edge the other way; None unless there is just one.

    Half-edge 3 f + k runs from corner k of face f to the next corner.
    """
    start, end = faces.ravel(), faces[:, [1, 2, 0]].ravel()
    number = np.arange(1, len(start) + 1, dtype=np.int32)
    forth = csr_matrix((number, (start, end)), (vertices, vertices))
    if forth.nnz != len(start) or (start == end).any():  # a doubled half-edge is summed
        return None
    forth.sort_indices()
    back = forth.T.tocsr()
    back.sort_indices()
    if not (
        np.array_equal(forth.indptr, back.indptr) and np.array_equal(forth.indices, back.indices)
    ):
        return None
    twin = np.empty(len(start), dtype=np.int32)
    twin[forth.data - 1] = back.data - 1
    return twin


def _is_one_fan_each(faces: Triangles, twin: npt.NDArray[np.int32], vertices: int) -> bool:
    """Whether the faces at each vertex make one fan.

    A walk around each vertex at once, from face to face over their common edges, takes as many
    steps back to the first of them as it has faces; in a third of the time of `fans_of`.
    """
    corners = faces.ravel()
    following = _following(twin)
    first = np.zeros(vertices, dtype=np.int32)
    first[corners] = np.arange(len(corners), dtype=np.int32)
    count = np.bincount(corners, minlength=vertices)
    first, count = first[count > 0], count[count > 0]
    here, steps = following[first], 1
    while len(here):
        is_back = here == first
        if (count[is_back] != steps).any():
            return False
        first, count = first[~is_back], count[~is_back]
        here, steps = following[here[~is_back]], steps + 1
    return True


def _following(twin: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int32]:
    """The half-edge after the twin of each: it starts at the same vertex, in the next face."""
    after = np.arange(len(twin), dtype=np.int32).reshape(-1, 3)[:, [1, 2, 0]].ravel()
    following: npt.NDArray[np.int32] = after[twin]
    return following


def fans_of(twin: npt.NDArray[np.integer[Any]]) -> tuple[int, npt.NDArray[np.int32]]:
    """The fans of faces around vertices: how many there are, and the one of each corner, (3F,)."""
    corners = len(twin)
    ones = np.ones(corners, dtype=np.int8)
    graph = csr_matrix((ones, _following(twin), np.arange(corners + 1)), (corners, corners))
    fans, fan_of = connected_components(graph, connection="weak")
    return int(fans), fan_of


def neighbours(faces: Triangles, vertices: int) -> Any:
    """Which vertices share an edge, as a sparse (V, V) matrix of float32 ones.

    Symmetric for a closed surface, where every edge is run along both ways.
    """
    start, end = faces.ravel(), faces[:, [1, 2, 0]].ravel()
    return csr_matrix((np.ones(len(start), np.float32), (start, end)), (vertices, vertices))


def corners_of(points: npt.NDArray[Any], faces: Triangles) -> list[npt.NDArray[Any]]:
    """What each face has at its first, second and third corner: (3, V) -> three of (3, F).

    Coordinates come first, because rows of them are several times as fast as columns.
    """
    # numpy's own kind of index, which spares it a copy for each row.
    corners = np.ascontiguousarray(faces.T, dtype=np.intp)
    return [np.take(points, corner, axis=1) for corner in corners]


def crosses_of(corners: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The cross product of two sides of each face, (3, F): outward, and twice its area long."""
    first, second, third = corners
    (ux, uy, uz), (wx, wy, wz) = second - first, third - first
    return np.stack((uy * wz - uz * wy, uz * wx - ux * wz, ux * wy - uy * wx))


def dot(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Scalar products of columns, (3, N) and (3, N) -> (N,)."""
    products: npt.NDArray[Any] = a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
    return products


def unit(vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Columns (3, N) of length 1; those of length 0 stay so."""
    lengths = np.sqrt(dot(vectors, vectors))
    return vectors / np.where(lengths > 0, lengths, 1)


def vertex_sums(values: Points, faces: Triangles, vertices: int) -> Points:
    """For each vertex the sum of its faces' `values`, (3, F) -> (3, V)."""
    incidence = vertices_in(faces, vertices)
    return np.stack([incidence @ row for row in values])


def vertices_in(faces: Triangles, vertices: int) -> Any:
    """Which vertices belong to which face, as a sparse (V, F) matrix of ones.

    Its product with faces' values sums them for each vertex, in half the time of `bincount`.
    """
    ends = np.arange(0, faces.size + 1, 3)
    return csc_matrix((np.ones(faces.size), faces.ravel(), ends), (vertices, len(faces)))


def counting_order(values: Indices, number: int) -> npt.NDArray[np.int32]:
    """The order that sorts whole numbers below `number`; equal ones stay in theirs.

    A sparse matrix of one entry for each value is turned from columns to rows, which is counting
    sort, and takes a quarter of the time of numpy's.
    """
    ones = np.ones(len(values), dtype=np.int8)
    ends = np.arange(len(values) + 1, dtype=np.int32)
    by_column = csc_matrix((ones, values.astype(np.int32), ends), (number, len(values)))
    order: npt.NDArray[np.int32] = by_column.tocsr().indices
    return order


def hashed_rows(rows: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint64]:
    """A number for each row of (N, 3), equal for equal rows, which sorts far more quickly."""
    x, y, z = rows.T.astype(np.uint64)
    hashed: npt.NDArray[np.uint64] = (x * _ODD + y) * _ODD + z
    return hashed


_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / the golden ratio, whose multiples are spread evenly


def _repeats(values: npt.NDArray[Any]) -> bool:
    """Whether a value is there twice."""
    ordered = np.sort(values)
    return bool((ordered[1:] == ordered[:-1]).any())
