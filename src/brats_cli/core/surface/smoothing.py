"""Smoothing without shrinking, and the exact volume of every shell afterwards."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .triangles import (
    Indices,
    Points,
    Triangles,
    corners_of,
    crosses_of,
    dot,
    unit,
    vertex_sums,
)
from .voxels import VoxelSurface

Smoothing = Literal["none", "light", "medium", "strong"]

ITERATIONS: dict[str, int] = {"none": 0, "light": 8, "medium": 20, "strong": 60}
"""Pairs of a smoothing and an inflating step, on cubic voxels."""

MOST_ITERATIONS = 100

# Taubin 1995, 'A signal processing approach to fair surface design': a step of -0.53 after each of
# 0.5 undoes its shrinking, but not its smoothing.
_SMOOTH, _INFLATE = np.float32(0.5), np.float32(-0.53)

UNSMOOTHED_FACES = 60
"""Shells of fewer faces (about 10 voxels) are left as they are: of a single voxel ten iterations
leave nothing, and of 12 voxels half."""

_SMOOTHED_FACES = 400  # from so many on, shells are smoothed in full; between, in proportion

_MOST_ROUNDS = 20


_BETWEEN_SLICES = 2.5


def iterations(strength: str, spacing_mm: npt.ArrayLike, *, interpolated: bool = False) -> int:
    """Iterations for a strength: more on voxels that are longer than wide, and between slices.

    With the ratio's power of 1.5 the area of ellipsoids is within 2 % up to a ratio of 3.3. Between
    interpolated slices steps are longer than on cubic voxels: on 0.9 x 1.1 x 3 mm, 8 iterations
    leave 3.2 % too much of a sphere's area, 20 leave 1.7 %, and real tumours lie as near to their
    1 mm truth (0.24 mm).
    """
    spacing = np.asarray(spacing_mm)
    ratio = float(spacing.max() / spacing.min())
    times = ITERATIONS[strength] * float(ratio**1.5) * (_BETWEEN_SLICES if interpolated else 1)
    return min(round(times), MOST_ITERATIONS)


def smoothed(surface: VoxelSurface, times: int, volumes: Points) -> Points:
    """The vertices after smoothing, each shell with its volume, in voxel indices.

    Args:
        surface: As marching cubes made it.
        times: Iterations; with 0 each vertex only moves along the line between its two voxels.
        volumes: What each shell is to hold, in voxels, (S,); negative for a cavity.

    Returns:
        (V, 3).
    """
    weight = _weights(surface.shell_faces) if times else np.zeros(len(surface.shell_faces))
    vertices = surface.vertices
    if weight.any():
        vertices = _taubin(vertices, surface.neighbours, times)
        if (weight < 1).any():
            share = weight.astype(np.float32)[surface.shell][:, None]
            vertices = surface.vertices + share * (vertices - surface.vertices)
    # Along its own line no vertex reaches a voxel's centre (a single voxel takes 0.41 of the 0.5),
    # so that what is not smoothed cannot fold or touch itself either.
    along_lines = None if (weight > 0).all() else (weight == 0)[surface.shell]
    return with_volumes(
        vertices,
        surface.faces,
        volumes,
        shell=surface.shell,
        steps=None if along_lines is None else (along_lines, surface.steps),
    )


def with_volumes(
    vertices: npt.NDArray[np.floating[Any]],
    faces: Triangles,
    volumes: Points,
    *,
    shell: Indices | None = None,
    steps: tuple[npt.NDArray[np.bool_], npt.NDArray[np.int8]] | None = None,
    longest: float = 0.5,
) -> Points:
    """Vertices moved so that each shell encloses its volume, all of a shell's by one distance.

    A vertex moves along its normal. Scaling instead would throw thin parts far out.

    Args:
        vertices: (V, 3).
        faces: (F, 3); closed.
        volumes: What each shell is to hold, (S,); negative for a cavity.
        shell: The shell of each vertex, (V,); None if all are one.
        steps: For which vertices (V,) there are steps to move along instead, and these, (V, 3).
        longest: How far vertices may move before normals are computed anew.

    Returns:
        (V, 3), float64. Nearly always exact; where `longest` is in the way, as near as possible.
    """
    centre = vertices.mean(axis=0, dtype=np.float64)
    points = np.ascontiguousarray((vertices - centre).T)
    of_vertex = np.zeros(points.shape[1], dtype=np.int32) if shell is None else shell
    of_face = of_vertex[faces[:, 0]]
    for _ in range(_MOST_ROUNDS):
        corners = corners_of(points, faces)
        crosses = crosses_of(corners)
        held = np.bincount(of_face, dot(corners[0], crosses), len(volumes)) / 6
        if (np.abs(volumes - held) <= 1e-6 * np.abs(volumes)).all():
            break
        directions = unit(vertex_sums(crosses, faces, points.shape[1]))
        if steps is not None:
            chosen, along = steps
            directions[:, chosen] = along[chosen].T
        growth = _growth(corners, crosses, corners_of(directions, faces))
        a, b, c = (np.bincount(of_face, each, len(volumes)) / 6 for each in growth)
        distance = _root(held - volumes, a, b, c, longest)
        points = points + directions * distance[of_vertex]
        if (np.abs(distance) < longest).all():
            break  # the cubic is exact
    moved: Points = points.T + centre
    return moved


def _weights(faces: Indices) -> npt.NDArray[np.float64]:
    """How much of the smoothing shells of so many faces get, from 0 to 1."""
    span = _SMOOTHED_FACES - UNSMOOTHED_FACES
    return np.clip((faces - UNSMOOTHED_FACES) / span, 0, 1)


def _taubin(
    vertices: npt.NDArray[np.float32], neighbours: Any, times: int
) -> npt.NDArray[np.float32]:
    share = 1 / np.diff(neighbours.indptr).astype(np.float32)
    mean_of_neighbours = neighbours.copy()
    mean_of_neighbours.data = np.repeat(share, np.diff(neighbours.indptr))
    points = vertices.copy()
    for _ in range(times):
        for step in (_SMOOTH, _INFLATE):
            towards = mean_of_neighbours @ points
            towards -= points
            towards *= step
            points += towards
    return points


def _growth(
    corners: list[Points], crosses: Points, directions: list[Points]
) -> tuple[Points, Points, Points]:
    """How much 6 volumes grow when corners p become p + d u: each face's factors of d, d^2, d^3.

    A face adds the determinant of its corners. Its factor of d holds one u, that of d^2 two; over
    a closed shell they sum up to products with the cross products of sides.
    """
    turned = crosses_of(directions)
    return (
        dot(directions[0] + directions[1] + directions[2], crosses),
        dot(corners[0] + corners[1] + corners[2], turned),
        dot(directions[0], turned),
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
