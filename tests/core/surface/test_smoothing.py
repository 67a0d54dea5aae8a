from __future__ import annotations

import numpy as np
import pytest
import trimesh

from brats_cli.core.surface.smoothing import iterations, smoothed, with_volumes
from brats_cli.core.surface.triangles import TriangleMesh
from brats_cli.core.surface.voxels import voxel_surface


@pytest.mark.parametrize(
    ("strength", "spacing", "times"),
    [
        ("none", (1, 1, 1), 0),
        ("light", (1, 1, 1), 8),
        ("medium", (2, 2, 2), 20),
        ("strong", (1, 1, 1), 60),
        ("light", (1, 1, 2), 23),  # 8 * 2^1.5
        ("strong", (1, 1, 2), 100),  # at most
    ],
)
def test_voxels_that_are_longer_than_wide_take_more_iterations(strength, spacing, times):
    assert iterations(strength, spacing) == times


def test_between_slices_there_are_more_iterations():
    assert iterations("light", (1, 1, 1), interpolated=True) == 20


@pytest.mark.parametrize("factor", [0.3, 0.9, 1.0, 1.1, 3.0])
def test_a_ball_grows_along_its_normals_to_any_volume(factor):
    ball = trimesh.creation.icosphere(3, radius=1)
    centre = np.array([500.0, -300, 20])
    volume = ball.volume * factor
    moved = with_volumes(ball.vertices + centre, ball.faces, np.array([volume]))
    assert TriangleMesh(moved, ball.faces).volume_mm3 == pytest.approx(volume, rel=1e-6)
    radii = np.linalg.norm(moved - centre, axis=1)
    np.testing.assert_allclose(radii, factor ** (1 / 3), rtol=0.01)


def test_each_shell_gets_its_own_volume():
    # A ball of radius 3 with a cavity of radius 1, to 100 and to a cavity of 2 mm3.
    outer, inner = (trimesh.creation.icosphere(3, radius=radius) for radius in (3, 1))
    vertices = np.vstack([outer.vertices, inner.vertices])
    faces = np.vstack([outer.faces, inner.faces[:, ::-1] + len(outer.vertices)])
    shell = np.repeat([0, 1], [len(outer.vertices), len(inner.vertices)])
    moved = with_volumes(vertices, faces, np.array([100.0, -2]), shell=shell)
    radii = np.linalg.norm(moved, axis=1)
    # 4/3 pi r^3 = 100 and 2, less a little for a ball of triangles.
    assert radii[shell == 0].mean() == pytest.approx(2.879, rel=0.01)
    assert radii[shell == 1].mean() == pytest.approx(0.782, rel=0.01)


def test_small_shells_are_left_on_the_lines_between_their_voxels():
    mask = np.zeros((30, 30, 30), dtype=bool)
    mask[2:18, 2:18, 2:18] = mask[25, 25, 25:27] = True
    surface = voxel_surface(mask)
    moved = smoothed(surface, 8, surface.shell_voxels) - surface.vertices
    small = surface.shell == surface.shell_faces.argmin()
    along = (moved * surface.steps).sum(axis=1)
    np.testing.assert_allclose(moved[small], along[small, None] * surface.steps[small], atol=1e-6)
    assert 0.3 < along[small].min() <= along[small].max() < 0.42  # a single voxel takes 0.41
    corners = np.abs(moved[~small]).max(axis=1)
    assert corners.max() > 0.2  # the cube's edges are rounded


def test_smoothing_does_not_shrink():
    grid = np.linalg.norm(np.indices((44, 44, 44)).T - 21.3, axis=-1)
    surface = voxel_surface(grid <= 20)
    vertices = smoothed(surface, 60, surface.shell_voxels)
    radii = np.linalg.norm(vertices - 21.3, axis=1)
    assert radii.std() < 0.12
    assert radii.mean() == pytest.approx(20, abs=0.05)
