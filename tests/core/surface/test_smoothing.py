from __future__ import annotations

import numpy as np
import pytest

from brats_cli.core.surface.shells import Shells
from brats_cli.core.surface.smoothing import iterations, smoothed
from brats_cli.core.surface.voxels import VoxelSurface, voxel_surface


def shells_of(surface: VoxelSurface) -> Shells:
    return Shells(surface.shell, surface.shell_voxels, surface.shell_centres)


@pytest.mark.parametrize(
    ("strength", "spacing", "times"),
    [
        ("none", (1, 1, 1), 0),
        ("light", (1, 1, 1), 7),
        ("medium", (2, 2, 2), 20),
        ("strong", (1, 1, 1), 60),
        ("light", (1, 1, 2), 20),  # 7 * 2^1.5
        ("strong", (1, 1, 2), 100),  # at most
    ],
)
def test_voxels_that_are_longer_than_wide_take_more_iterations(strength, spacing, times):
    assert iterations(strength, spacing) == times


def test_between_slices_there_are_more_iterations():
    assert iterations("light", (1, 1, 1), interpolated=True) == 21


def test_small_shells_are_left_on_the_lines_between_their_voxels():
    mask = np.zeros((30, 30, 30), dtype=bool)
    mask[2:18, 2:18, 2:18] = mask[25, 25, 25:27] = True
    surface = voxel_surface(mask)
    moved = smoothed(surface, 8, shells_of(surface)) - surface.vertices
    small = surface.shell == surface.shell_faces.argmin()
    along = (moved * surface.steps).sum(axis=1)
    np.testing.assert_allclose(moved[small], along[small, None] * surface.steps[small], atol=1e-6)
    assert 0.3 < along[small].min() <= along[small].max() < 0.42  # a single voxel takes 0.41
    corners = np.abs(moved[~small]).max(axis=1)
    assert corners.max() > 0.2  # the cube's edges are rounded


def test_smoothing_does_not_shrink():
    grid = np.linalg.norm(np.indices((44, 44, 44)).T - 21.3, axis=-1)
    surface = voxel_surface(grid <= 20)
    vertices = smoothed(surface, 60, shells_of(surface))
    radii = np.linalg.norm(vertices - 21.3, axis=1)
    assert radii.std() < 0.12
    assert radii.mean() == pytest.approx(20, abs=0.05)
