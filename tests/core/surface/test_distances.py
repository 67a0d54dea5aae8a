from __future__ import annotations

import numpy as np
import pytest
import trimesh

from brats_cli.core.images.grid import Grid
from brats_cli.core.surface.distances import (
    _to_near_squares,
    _to_squares,
    _to_triangle,
    _to_triangles,
    voxel_distances,
)
from brats_cli.core.surface.surfaces import SurfaceConfig, surface_of
from brats_cli.core.surface.triangles import TriangleMesh
from brats_cli.core.surface.voxels import voxel_surface


@pytest.mark.parametrize(
    ("point", "distance"),
    [
        ((1, 1, 2), 2),  # above the inside
        ((1, 1, -2), 2),
        ((1, 1, 0), 0),
        ((2, -3, 4), 5),  # beyond the side along x
        ((-3, -4, 12), 13),  # beyond the corner at 0: 3, 4, 12, 13
        ((7, 0, 4), 5),  # beyond the corner at (4, 0, 0)
        ((4, 4, 0), 8**0.5),  # (2, 2, 0) on the slanted side is nearest
    ],
)
def test_the_distance_to_a_triangle(point, distance):
    triangle = [np.array([each], dtype=float).T for each in ((0, 0, 0), (4, 0, 0), (0, 4, 0))]
    assert _to_triangle(np.array([point], dtype=float), *triangle)[0] == pytest.approx(distance)


def test_trimesh_finds_the_same_nearest_points():
    ball = trimesh.creation.icosphere(3, radius=10)
    points = np.random.default_rng(0).normal(0, 8, (300, 3))
    corners = list(ball.triangles.transpose(1, 2, 0))
    _, theirs, _ = trimesh.proximity.closest_point_naive(ball, points)
    np.testing.assert_allclose(_to_triangles(points, corners), theirs, atol=1e-9)


def test_triangles_of_very_different_sizes_are_found_too():
    # A large square of two triangles with a finely divided one 4 mm above a corner of it.
    large = trimesh.Trimesh(
        [[0, 0, 0], [40, 0, 0], [40, 40, 0], [0, 40, 0]], [[0, 1, 2], [0, 2, 3]]
    )
    fine = trimesh.Trimesh([[0, 0, 4], [9, 0, 4], [0, 9, 4]], [[0, 1, 2]])
    for _ in range(5):
        fine = fine.subdivide()
    corners = [np.vstack([large.triangles[:, i], fine.triangles[:, i]]).T for i in range(3)]
    points = np.array([[1.0, 1, 1], [20, 20, 3], [39, 1, 2], [1, 1, 3.5]])
    np.testing.assert_allclose(_to_triangles(points, corners), [1, 3, 2, 0.5], atol=1e-9)


def faces_of_voxels(mask, affine):
    """The faces between the voxels of a mask and the others, two triangles each."""
    padded, corners = np.pad(mask, 1), []
    for voxel in np.argwhere(padded):
        for axis in range(3):
            for side in (-1, 1):
                step = side * np.eye(3, dtype=int)[axis]
                if not padded[tuple(voxel + step)]:
                    middle = voxel - 1 + step / 2
                    x, y = np.delete(np.eye(3) / 2, axis, axis=0)
                    a, b, c, d = middle - x - y, middle + x - y, middle + x + y, middle - x + y
                    corners += [a, b, c, a, c, d]
    moved = np.array(corners) @ affine[:3, :3].T + affine[:3, 3]
    return trimesh.Trimesh(moved, np.arange(len(moved)).reshape(-1, 3), process=False)


TURN = trimesh.transformations.rotation_matrix(0.7, [1, 2, 3])


@pytest.mark.parametrize(
    ("affine", "are_known"),
    [
        (np.diag([-1.0, 1, 1, 1]), True),
        (TURN @ np.diag([0.9, 1.1, 3, 1]), True),
        (np.array([[1, 0.3, 0, 5], [0, 1, 0, 6], [0, 0, 2, 7], [0, 0, 0, 1.0]]), False),  # slanted
    ],
    ids=["mirrored", "oblique", "slanted"],
)
def test_trimesh_finds_the_same_distances_to_the_faces_of_voxels(affine, are_known):
    generator = np.random.default_rng(1)
    mask = generator.random((4, 5, 3)) < 0.4
    surface = voxel_surface(mask)
    # From within the voxels to two voxels beyond them.
    places = generator.uniform([-2, -2, -2], [5, 6, 4], (300, 3))
    points = places @ affine[:3, :3].T + affine[:3, 3]
    _, theirs, _ = trimesh.proximity.closest_point_naive(faces_of_voxels(mask, affine), points)
    near, is_known = _to_near_squares(points, surface, affine)
    assert 50 < is_known.sum() < 250 if are_known else not is_known.any()
    np.testing.assert_allclose(near[is_known], theirs[is_known], atol=1e-9)
    ours = _to_squares(points, surface, affine)
    # Of those far away, the centre of the nearest face may not be among the twelve nearest.
    assert (ours >= theirs - 1e-9).all()
    assert np.mean(np.abs(ours - theirs) > 1e-9) < 0.02


def box(low: float, high: float) -> TriangleMesh:
    made = trimesh.creation.box(bounds=[[low] * 3, [high] * 3])
    return TriangleMesh(made.vertices, made.faces)


def test_the_boundary_of_the_voxels_has_distance_0_and_a_larger_box_its_margin():
    mask = np.ones((10, 10, 10), dtype=bool)  # its faces lie at -0.5 and 9.5
    voxels = voxel_surface(mask)
    same = voxel_distances(box(-0.5, 9.5), voxels, np.eye(4))
    assert same.max_mm == pytest.approx(0, abs=1e-6)
    wider = voxel_distances(box(-0.7, 9.7), voxels, np.eye(4))
    assert wider.mean_mm == pytest.approx(0.2, abs=0.01)
    assert wider.p95_mm == pytest.approx(0.2, abs=0.05)
    # At the corners of the box: a cube's diagonal of 0.2.
    assert 0.2 < wider.max_mm <= 0.2 * 3**0.5 + 1e-9


def test_distances_are_in_mm():
    affine = np.diag([-2.0, 2, 2, 1])
    affine[:3, 3] = [100, -50, 30]
    mask = np.ones((6, 6, 6), dtype=bool)
    voxels = voxel_surface(mask)
    mesh = surface_of(mask, Grid(mask.shape, affine), SurfaceConfig(smooth="none")).mesh
    twice = voxel_distances(mesh, voxels, affine)
    once = voxel_distances(
        surface_of(mask, Grid(mask.shape, np.eye(4)), SurfaceConfig(smooth="none")).mesh,
        voxels,
        np.eye(4),
    )
    assert twice.mean_mm == pytest.approx(2 * once.mean_mm, rel=0.02)
    assert 0.03 < once.mean_mm < 0.1
