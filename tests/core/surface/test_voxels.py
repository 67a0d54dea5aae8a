from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from brats_cli.core.surface.triangles import is_closed
from brats_cli.core.surface.voxels import voxel_surface


def test_the_vertices_of_a_voxel_are_the_middles_of_its_faces():
    mask = np.zeros((3, 4, 5), dtype=bool)
    mask[1, 2, 3] = True
    surface = voxel_surface(mask)
    assert surface.faces.shape == (8, 3)
    np.testing.assert_array_equal(surface.vertices, [1, 2, 3] + 0.5 * surface.steps)
    assert sorted(surface.steps.tolist()) == [
        [-1, 0, 0], [0, -1, 0], [0, 0, -1], [0, 0, 1], [0, 1, 0], [1, 0, 0]
    ]  # fmt: skip
    assert surface.shell_voxels.tolist() == [1]


def test_a_cavity_is_a_shell_of_its_own_and_holds_less_than_nothing():
    mask = np.ones((5, 6, 7), dtype=bool)
    mask[2, 2, 2:4] = False  # two voxels
    mask = np.pad(mask, 3)
    mask[0, 0, 0] = True
    surface = voxel_surface(mask)
    assert sorted(surface.shell_voxels) == [-2, 1, 5 * 6 * 7]
    assert sorted(surface.shell_faces)[:2] == [8, 16]  # 10 vertices: 2 * 10 - 4


@pytest.mark.parametrize("density", [0.05, 0.3, 0.5, 0.7, 0.95])
def test_shells_of_random_masks_hold_whole_voxels_and_together_all(density):
    mask = np.random.default_rng(1).random((11, 12, 13)) < density
    surface = voxel_surface(mask)
    assert is_closed(surface.faces, len(surface.vertices))
    np.testing.assert_allclose(surface.shell_voxels, np.round(surface.shell_voxels), atol=1e-4)
    assert surface.shell_voxels.sum() == pytest.approx(mask.sum())
    # Islands are joined through faces of voxels, and what is outside of them through edges too.
    _, islands = ndimage.label(mask)
    _, outsides = ndimage.label(
        np.pad(~mask, 1, constant_values=True), ndimage.generate_binary_structure(3, 2)
    )
    assert (surface.shell_voxels > 0).sum() == islands
    assert (surface.shell_voxels < 0).sum() == outsides - 1


def test_the_centre_of_a_shell_is_that_of_its_voxels():
    mask = np.zeros((9, 8, 20), dtype=bool)
    mask[1:6, 2:4, 3:9] = mask[1, 1, 15:18] = True
    surface = voxel_surface(mask)
    order = surface.shell_voxels.argsort()
    np.testing.assert_allclose(surface.shell_voxels[order], [3, 60], rtol=1e-6)
    np.testing.assert_allclose(surface.shell_centres[order], [[1, 1, 16], [3, 2.5, 5.5]])
