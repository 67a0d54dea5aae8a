"""A manifold from what quadric reduction leaves: faces joined by fours at an edge, or at a point.

Collapsing an edge never opens a surface: each edge keeps as many faces that run along it one way as
the other. Such faces can always be paired again along their edges, around which they are fans; each
fan gets a vertex of its own, and what touched itself comes apart by a hair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from .triangles import (
    Indices,
    Points,
    Triangles,
    counting_order,
    fans_of,
    hashed_rows,
    is_closed,
)

PILLOW = 0.1
"""How far the two sides of a film are pushed apart, in parts of the smallest voxel spacing."""

APART = 0.08
"""How far at most the copies of a vertex move, likewise: too far for any reader to merge them."""

_ONE_PLACE = 1e-4
"""Vertices on the same point of a grid this fine, likewise, are in one place."""

_SHARE_APART = 0.15  # but never farther than this part of the way to their neighbours

_MOST_ROUNDS = 6  # of thousands of random masks two needed a third round, and none a fourth


def repaired(
    vertices: Points, faces: Triangles, spacing_mm: float
) -> tuple[Points, Triangles] | None:
    """Vertices (V, 3) in mm and faces (F, 3) of a closed manifold that looks the same.

    Args:
        vertices: (V, 3), in mm.
        faces: (F, 3), outward. Each edge must have as many faces one way as the other.
        spacing_mm: The smallest side of a voxel.

    Returns:
        None if several rounds were not enough.
    """
    vertices, corners = _pillows(vertices, faces.astype(np.int32), PILLOW * spacing_mm)
    corners = _without_opposites(corners, len(vertices))
    for _ in range(_MOST_ROUNDS):
        twin = _paired(vertices, corners)
        vertices, corners = _split(vertices, corners, twin, APART * spacing_mm)
        if is_closed(corners, len(vertices)):
            return vertices, corners
        vertices, corners = _crowded_edges_split(vertices, corners, twin, APART * spacing_mm)
    return None


def moved_apart(vertices: Points, faces: Triangles, spacing_mm: float) -> Points:
    """Vertices of which those in one place have moved into their own fans, by a hair.

    On flat parts collapses put several vertices into one place.
    """
    places = np.round(vertices / (_ONE_PLACE * spacing_mm)).astype(np.int64)
    _, place, count = np.unique(hashed_rows(places), return_inverse=True, return_counts=True)
    together = np.flatnonzero(count[place] > 1)
    return _moved_inwards(vertices, faces, together, APART * spacing_mm)


def _pillows(
    vertices: Points, faces: npt.NDArray[np.int32], thickness: float
) -> tuple[Points, npt.NDArray[np.int32]]:
    """Films, two faces of the same corners back to back, made into thin pillows.

    They are what is left of a part one voxel thin. Cancelled, as they usually are, the part would
    be lost: up to 2.2 mm of a real tumour at a quarter of its faces, instead of 1.1.
    """
    faces = faces[(faces != np.roll(faces, -1, axis=1)).all(axis=1)]
    order, first, count = _groups(np.sort(faces, axis=1).T, len(vertices))
    pair = first[count == 2]
    front, back = order[pair], order[pair + 1]
    crosses = [_crosses(vertices, faces[side]) for side in (front, back)]
    area = np.linalg.norm(crosses[0], axis=1)
    film = ((crosses[0] * crosses[1]).sum(axis=1) < 0) & (area > 0)
    if not film.any():
        return vertices, faces
    chosen = np.concatenate((front[film], back[film]))
    normals = np.concatenate([each[film] for each in crosses])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    tops = vertices[faces[chosen]].mean(axis=1) + thickness * normals
    top = len(vertices) + np.arange(len(chosen), dtype=np.int32)
    a, b, c = faces[chosen].T
    sides = [np.stack(side, axis=1) for side in ((a, b, top), (b, c, top), (c, a, top))]
    kept = np.delete(faces, chosen, axis=0)
    return np.concatenate((vertices, tops)), np.concatenate((kept, *sides))


def _without_opposites(faces: npt.NDArray[np.int32], vertices: int) -> npt.NDArray[np.int32]:
    """The faces without pairs of opposite ones, which enclose nothing."""
    order, first, count = _groups(np.sort(faces, axis=1).T, vertices)
    if (count == 1).all():
        return faces
    # Of the corners in rising order: whether the face runs through them that way round.
    least = faces.argmin(axis=1)
    rows = np.arange(len(faces))
    rising = faces[rows, (least + 1) % 3] < faces[rows, (least + 2) % 3]
    dropped: list[int] = []
    for start, size in zip(first[count > 1], count[count > 1], strict=True):
        same = order[start : start + size]
        opposites = min(rising[same].sum(), (~rising[same]).sum())
        dropped += [*same[rising[same]][:opposites], *same[~rising[same]][:opposites]]
    return np.delete(faces, dropped, axis=0)


def _paired(vertices: Points, faces: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """For each half-edge the one to join it with, (3F,): the other, or the next around the edge."""
    start, end = faces.ravel(), faces[:, [1, 2, 0]].ravel()
    ends = np.minimum(start, end), np.maximum(start, end)
    order, first, count = _groups(ends, len(vertices))
    twin = np.empty(len(start), dtype=np.int32)
    two = first[count == 2]
    twin[order[two]], twin[order[two + 1]] = order[two + 1], order[two]
    for begin, size in zip(first[count > 2], count[count > 2], strict=True):
        for forth, back in _around(order[begin : begin + size], vertices, faces):
            twin[forth], twin[back] = back, forth
    return twin


def _around(
    half_edges: Indices, vertices: Points, faces: npt.NDArray[np.int32]
) -> Iterator[tuple[int, int]]:
    """Pairs of one edge's half-edges that run opposite ways, matched like brackets around it.

    Through the empty side, so that what was collapsed onto each other stays joined; through the
    solid more pieces come off, and more faces intersect.
    """
    face, corner = half_edges // 3, half_edges % 3
    start, opposite = faces[face, corner], faces[face, (corner + 2) % 3]
    low, high = start.min(), faces[face[0], [corner[0], (corner[0] + 1) % 3]].max()
    axis = vertices[high] - vertices[low]
    axis = axis / max(np.linalg.norm(axis), 1e-12)
    away = vertices[opposite] - vertices[low]
    away = away - np.outer(away @ axis, axis)
    right = away[0] / max(np.linalg.norm(away[0]), 1e-12)
    angle = np.arctan2(away @ np.cross(axis, right), away @ right)
    order = np.argsort(angle, kind="stable")
    ring, forth = half_edges[order], (start == low)[order]
    free = np.ones(len(ring), dtype=bool)
    for gap in range(1, len(ring)):
        for here in np.flatnonzero(forth):
            there = (here + gap) % len(ring)
            if free[here] and free[there] and not forth[there]:
                free[here] = free[there] = False
                yield int(ring[here]), int(ring[there])


def _split(
    vertices: Points, faces: npt.NDArray[np.int32], twin: npt.NDArray[np.int32], apart: float
) -> tuple[Points, npt.NDArray[np.int32]]:
    """One vertex for each fan of faces; the copies of a vertex move into their own fans."""
    fans, fan_of = fans_of(twin)
    original = np.empty(fans, dtype=np.int64)
    original[fan_of] = faces.ravel()
    points, corners = vertices[original], fan_of.reshape(-1, 3)
    copied = np.flatnonzero(np.bincount(original, minlength=len(vertices))[original] > 1)
    return _moved_inwards(points, corners, copied, apart), corners


def _crowded_edges_split(
    vertices: Points, faces: npt.NDArray[np.int32], twin: npt.NDArray[np.int32], apart: float
) -> tuple[Points, npt.NDArray[np.int32]]:
    """A vertex in the middle of each edge of more than two faces, for all its pairs but one.

    Both ends of such an edge are one fan each, so that the pairs could not be told apart there.
    """
    start, end = faces.ravel(), faces[:, [1, 2, 0]].ravel()
    ends = np.minimum(start, end), np.maximum(start, end)
    order, first, count = _groups(ends, len(vertices))
    gone: set[int] = set()
    added: list[tuple[int, int, int]] = []
    middles: list[Points] = []
    for begin, size in zip(first[count > 2], count[count > 2], strict=True):
        half_edges = order[begin : begin + size]
        low = start[half_edges].min()
        for forth in half_edges[start[half_edges] == low][1:]:
            back = twin[forth]
            if {int(forth // 3), int(back // 3)} & gone:
                continue
            gone |= {int(forth // 3), int(back // 3)}
            u, w = start[forth], end[forth]
            p, q = (faces[each // 3, (each % 3 + 2) % 3] for each in (forth, back))
            middle = (vertices[u] + vertices[w]) / 2
            middle = middle + _hair(((vertices[p] + vertices[q]) / 2 - middle)[None], apart)[0]
            new = len(vertices) + len(middles)
            middles.append(middle)
            added += [(u, new, p), (new, w, p), (w, new, q), (new, u, q)]
    if not added:
        return vertices, faces
    kept = np.delete(faces, sorted(gone), axis=0)
    return np.concatenate((vertices, middles)), np.concatenate(
        (kept, np.array(added, dtype=np.int32))
    )


def _moved_inwards(points: Points, faces: Triangles, chosen: Indices, apart: float) -> Points:
    """Points of which the chosen ones are moved a hair towards the mean of their neighbours."""
    if not len(chosen):
        return points
    is_chosen = np.zeros(len(points), dtype=bool)
    is_chosen[chosen] = True
    near = faces[is_chosen[faces].any(axis=1)]
    start, end = near.ravel(), near[:, [1, 2, 0]].ravel()
    degree = np.bincount(start, minlength=len(points))[chosen, None]
    sums = [np.bincount(start, points[end, axis], len(points))[chosen] for axis in range(3)]
    moved = points.copy()
    moved[chosen] += _hair(np.stack(sums, axis=1) / degree - points[chosen], apart)
    return moved


def _hair(ways: Points, apart: float) -> Points:
    """A small part of each way, (N, 3), at most `apart` long."""
    lengths = np.linalg.norm(ways, axis=1, keepdims=True)
    hair: Points = ways * np.minimum(_SHARE_APART, apart / np.maximum(lengths, 1e-12))
    return hair


def _crosses(vertices: Points, faces: Triangles) -> Points:
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    crosses: Points = np.cross(b - a, c - a)
    return crosses


def _groups(columns: Sequence[Indices] | Indices, number: int) -> tuple[Indices, Indices, Indices]:
    """The order that puts equal rows side by side, and where each group starts and its size.

    Args:
        columns: Vertex numbers, the first of each row, then the second, and so on.
        number: Of vertices.
    """
    order = counting_order(columns[-1], number)
    for column in columns[-2::-1]:
        order = order[counting_order(column[order], number)]
    ordered = [column[order] for column in columns]
    differs = np.any([column[1:] != column[:-1] for column in ordered], axis=0)
    first = np.flatnonzero(np.r_[True, differs])
    return order, first, np.diff(np.r_[first, len(order)])
