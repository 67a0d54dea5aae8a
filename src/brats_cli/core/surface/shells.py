"""What each shell of a mesh encloses, volume and centre, and how vertices move until it does.

A shell is a connected piece of a surface; a cavity is a shell that encloses less than nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import numpy.typing as npt

from .triangles import Indices, Points, Triangles, corners_of, crosses_of, dot, unit, vertices_in

Steps = tuple[npt.NDArray[np.bool_], npt.NDArray[np.int8]]
"""For which vertices, (V,), there are steps to move along instead of normals, and these, (V, 3)."""

_MOST_ROUNDS = 20

_CENTRE_ROUNDS = 3


@dataclass(frozen=True, eq=False)
class Shells:
    """What the shells of a mesh are to enclose.

    Attributes:
        of: The shell of each vertex, (V,).
        volumes: (S,); negative for a cavity.
        centres: The centres of these volumes, (S, 3); NaN where they do not matter.
    """

    of: Indices
    volumes: Points
    centres: Points

    def mapped(self, affine: npt.NDArray[np.floating[Any]]) -> Shells:
        """The same after an affine, (4, 4); mirrored shells count as turned outward again."""
        linear, offset = affine[:3, :3], affine[:3, 3]
        return Shells(
            self.of,
            self.volumes * abs(float(np.linalg.det(linear))),
            self.centres @ linear.T + offset,
        )


def enclosing(
    vertices: npt.NDArray[np.floating[Any]],
    faces: Triangles,
    shells: Shells,
    *,
    steps: Steps | None = None,
    only: npt.NDArray[np.bool_] | None = None,
    longest: float = 0.5,
    off_centre: float = 0.03,
) -> Points:
    """Vertices moved until each shell encloses its volume, and with its centre about where it is.

    Vertices move along their normals: scaling would throw thin parts far out. For the volume all of
    a shell move by one distance; for a centre that is off, by one that grows across the shell.

    Args:
        vertices: (V, 3).
        faces: (F, 3); closed.
        shells: What each shell is to enclose.
        steps: What some vertices move along instead of their normals.
        only: Which shells, (S,), if not all; the others stay as they are.
        longest: How far vertices may move at once.
        off_centre: How far a centre may be off.

    Returns:
        (V, 3), float64. The volume is nearly always exact; where `longest` is in the way it is as
        near as possible.
    """
    if only is not None:
        part = _Part.of(only, faces, shells, steps)
        moved = vertices.astype(np.float64)
        if len(part.vertices):
            moved[part.vertices] = enclosing(
                moved[part.vertices],
                part.faces,
                part.shells,
                steps=part.steps,
                longest=longest,
                off_centre=off_centre,
            )
        return moved
    middle = vertices.mean(axis=0, dtype=np.float64)
    points = np.ascontiguousarray((vertices - middle).T)
    targets = replace(shells, centres=shells.centres - middle)
    pieces = _Pieces.of(faces, targets)
    points, corners, crosses = _centred(points, pieces, targets, steps, longest, off_centre)
    volumes = shells.volumes
    for _ in range(_MOST_ROUNDS):
        held = pieces.sums(pieces.at_vertices(dot(corners[0], crosses))) / 18
        if (np.abs(volumes - held) <= 1e-6 * np.abs(volumes)).all():
            break
        areas, directions = _directions(crosses, pieces, steps)
        growth = _growth(corners, areas, directions, pieces)
        a, b, c = (pieces.sums(each) / 6 for each in growth)
        distance = _root(held - volumes, a, b, c, longest)
        points = points + directions * distance[shells.of]
        if (np.abs(distance) < longest).all():
            break  # the cubic is exact
        corners = corners_of(points, pieces.faces)
        crosses = crosses_of(corners)
    whole: Points = points.T + middle
    return whole


@dataclass(frozen=True, eq=False)
class _Part:
    """Some shells of a mesh as a mesh of their own.

    Attributes:
        vertices: Which vertices, in rising order.
        of_faces: Which faces, likewise.
        faces: These, in numbers of the part.
        shells: In numbers of the part.
        steps: Of these vertices.
    """

    vertices: Indices
    of_faces: Indices
    faces: Indices
    shells: Shells
    steps: Steps | None

    @classmethod
    def of(
        cls,
        chosen: npt.NDArray[np.bool_],
        faces: Triangles,
        shells: Shells,
        steps: Steps | None,
    ) -> _Part:
        """The shells that are chosen, (S,)."""
        is_vertex = chosen[shells.of]
        vertices, of_faces = np.flatnonzero(is_vertex), np.flatnonzero(is_vertex[faces[:, 0]])
        number, vertex = np.cumsum(chosen) - 1, np.cumsum(is_vertex) - 1
        part = Shells(number[shells.of[vertices]], shells.volumes[chosen], shells.centres[chosen])
        along = None if steps is None else (steps[0][vertices], steps[1][vertices])
        return cls(vertices, of_faces, vertex[faces[of_faces]], part, along)


@dataclass(frozen=True, eq=False)
class _Pieces:
    """The faces of shells, in the order in memory that is summed fastest.

    Attributes:
        faces: (F, 3), numpy's own kind of index, each corner of all faces after the other.
        incidence: Sparse, (V, F): 1 where a vertex belongs to a face.
        bins: Of each vertex, (V,): `_LANES` for each shell. A sum waits for the one before it in
            the same bin, and nearly all vertices belong to one shell.
        number: Of shells.
    """

    faces: Indices
    incidence: Any
    bins: Indices
    number: int

    @classmethod
    def of(cls, faces: Triangles, shells: Shells) -> _Pieces:
        vertices = len(shells.of)
        return cls(
            np.ascontiguousarray(faces.T, dtype=np.intp).T,
            vertices_in(faces, vertices),
            shells.of * _LANES + np.arange(vertices) % _LANES,
            len(shells.volumes),
        )

    def at_vertices(self, values: Points) -> Points:
        """For each vertex the sum of its faces' values, (F,) -> (V,)."""
        sums: Points = self.incidence @ values
        return sums

    def sums(self, values: Points) -> Points:
        """For each shell the sum of its vertices' values, (V,) -> (S,)."""
        lanes = np.bincount(self.bins, values, self.number * _LANES)
        sums: Points = lanes.reshape(self.number, _LANES).sum(axis=1)
        return sums


_LANES = 8


def _centred(
    points: Points,
    pieces: _Pieces,
    shells: Shells,
    steps: Steps | None,
    longest: float,
    off_centre: float,
    rounds: int = _CENTRE_ROUNDS,
) -> tuple[Points, list[Points], Points]:
    """Points (3, V) moved until no shell's centre is farther off than `off_centre`.

    With the corners and the crosses of their faces.
    """
    corners = corners_of(points, pieces.faces)
    crosses = crosses_of(corners)
    # Each face spans a tetrahedron with the origin, whose centre is the mean of its corners.
    shares = pieces.at_vertices(dot(corners[0], crosses)) / 24
    held = pieces.sums(shares) * 4 / 3
    moments = np.stack([pieces.sums(each) for each in points * shares])
    missing = held * shells.centres.T - moments
    is_off = np.sqrt(dot(missing, missing)) > off_centre * np.abs(held)  # false of NaN
    if not rounds or not is_off.any():
        return points, corners, crosses
    due = np.where(is_off, np.concatenate(((shells.volumes - held)[None], missing)), 0).T
    if np.mean(is_off[shells.of]) > 0.5:
        areas, directions = _directions(crosses, pieces, steps)
        distance = _distances(points, dot(areas, directions), pieces, shells, due, longest)
        moved = points + directions * distance
        return _centred(moved, pieces, shells, steps, longest, off_centre, rounds - 1)
    # Most often only a few small shells are off, and the others need not be looked at again.
    part = _Part.of(is_off, pieces.faces, shells, steps)
    few = _Pieces.of(part.faces, part.shells)
    areas, directions = _directions(crosses[:, part.of_faces], few, part.steps)
    there, growth = points[:, part.vertices], dot(areas, directions)
    moved = there + directions * _distances(there, growth, few, part.shells, due[is_off], longest)
    points = points.copy()
    points[:, part.vertices], few_corners, crosses[:, part.of_faces] = _centred(
        moved, few, part.shells, part.steps, longest, off_centre, rounds - 1
    )
    for corner, replaced in zip(corners, few_corners, strict=True):
        corner[:, part.of_faces] = replaced
    return points, corners, crosses


def _distances(
    points: Points, growth: Points, pieces: _Pieces, shells: Shells, due: Points, longest: float
) -> Points:
    """How far each vertex moves so that shells get volumes and moments, (V,).

    Moved by d, a vertex adds d times a third of its faces' area to the volume, and that times its
    place to the moment. d = (1, place) . x, so that there are four equations for each shell.

    Args:
        points: (3, V).
        growth: Six times the volume that each vertex adds for a step of 1, (V,).
        pieces: Of these shells.
        shells: What they are to enclose.
        due: The volume and the moments that they lack, (S, 4).
        longest: Half of it is the farthest that a vertex moves.
    """
    of, number = shells.of, pieces.number
    centres = np.nan_to_num(shells.centres).T  # where they do not matter nothing is due
    terms = np.concatenate((np.ones((1, len(of))), points - centres[:, of]))
    matrix = np.empty((number, 4, 4))
    for row, column in combinations_with_replacement(range(4), 2):
        product = pieces.sums(terms[row] * terms[column] * growth / 6)
        matrix[:, row, column] = matrix[:, column, row] = product
    solved = np.linalg.solve(matrix + 1e-9 * np.eye(4), due[..., None])[..., 0]
    distance = (terms * solved.T[:, of]).sum(axis=0)
    farthest = np.zeros(number)
    np.maximum.at(farthest, of, np.abs(distance))
    limited: Points = distance * np.minimum(1, longest / 2 / np.maximum(farthest, 1e-12))[of]
    return limited


def _directions(crosses: Points, pieces: _Pieces, steps: Steps | None) -> tuple[Points, Points]:
    """The sum of the crosses of each vertex's faces, and the unit vector it moves along, (3, V)."""
    sums = np.stack([pieces.at_vertices(each) for each in crosses])
    directions = unit(sums)
    if steps is not None:
        chosen, along = steps
        directions[:, chosen] = along[chosen].T
    return sums, directions


def _growth(
    corners: list[Points], areas: Points, directions: Points, pieces: _Pieces
) -> tuple[Points, Points, Points]:
    """How much 6 volumes grow when corners p become p + d u: factors of d, d^2, d^3, each (V,).

    A face adds the determinant of its corners. Its factor of d holds one u, that of d^2 two; over
    a closed shell they sum up to products with the cross products of sides.
    """
    along = corners_of(directions, pieces.faces)
    turned = crosses_of(along)
    return (
        dot(directions, areas),
        pieces.at_vertices(dot(corners[0] + corners[1] + corners[2], turned)) / 3,
        pieces.at_vertices(dot(along[0], turned)) / 3,
    )


def _root(missing: Points, a: Points, b: Points, c: Points, longest: float) -> Points:
    """Where missing + a d + b d^2 + c d^3 is 0, by Newton's method from 0; `longest` at most."""
    distance = np.zeros_like(missing)
    for _ in range(30):
        value = missing + distance * (a + distance * (b + distance * c))
        slope = a + distance * (2 * b + distance * 3 * c)
        step = -value / np.where(slope > 0, slope, np.maximum(a, 1e-12))
        distance = np.clip(distance + step, -longest, longest)
        if (np.abs(step) < 1e-12).all():
            break
    return distance
