from __future__ import annotations

import numpy as np
import pytest
import trimesh

from brats_cli.core.surface.shells import Shells, enclosing
from brats_cli.core.surface.triangles import TriangleMesh

NOWHERE = np.full((1, 3), np.nan)  # centres that do not matter


@pytest.mark.parametrize("factor", [0.3, 0.9, 1.0, 1.1, 3.0])
def test_a_ball_grows_along_its_normals_to_any_volume(factor):
    ball = trimesh.creation.icosphere(3, radius=1)
    centre = np.array([500.0, -300, 20])
    volume = ball.volume * factor
    shells = Shells(np.zeros(len(ball.vertices), dtype=int), np.array([volume]), NOWHERE)
    moved = enclosing(ball.vertices + centre, ball.faces, shells)
    assert TriangleMesh(moved, ball.faces).volume_mm3 == pytest.approx(volume, rel=1e-6)
    radii = np.linalg.norm(moved - centre, axis=1)
    np.testing.assert_allclose(radii, factor ** (1 / 3), rtol=0.01)


def test_each_shell_gets_its_own_volume():
    # A ball of radius 3 with a cavity of radius 1, to 100 and to a cavity of 2 mm3.
    outer, inner = (trimesh.creation.icosphere(3, radius=radius) for radius in (3, 1))
    vertices = np.vstack([outer.vertices, inner.vertices])
    faces = np.vstack([outer.faces, inner.faces[:, ::-1] + len(outer.vertices)])
    shell = np.repeat([0, 1], [len(outer.vertices), len(inner.vertices)])
    moved = enclosing(vertices, faces, Shells(shell, np.array([100.0, -2]), NOWHERE.repeat(2, 0)))
    radii = np.linalg.norm(moved, axis=1)
    # 4/3 pi r^3 = 100 and 2, less a little for a ball of triangles.
    assert radii[shell == 0].mean() == pytest.approx(2.879, rel=0.01)
    assert radii[shell == 1].mean() == pytest.approx(0.782, rel=0.01)


def test_a_ball_off_centre_moves_to_it_as_one_and_stays_round():
    ball = trimesh.creation.icosphere(4, radius=10)
    centre = np.array([[100.3, 50, 20]])
    shells = Shells(np.zeros(len(ball.vertices), dtype=int), np.array([ball.volume]), centre)
    moved = TriangleMesh(
        enclosing(ball.vertices + np.array([100, 50, 20]), ball.faces, shells), ball.faces
    )
    assert np.linalg.norm(moved.centre_mm - centre[0]) <= 0.03
    assert moved.volume_mm3 == pytest.approx(ball.volume, rel=1e-6)
    radii = np.linalg.norm(moved.vertices - moved.centre_mm, axis=1)
    np.testing.assert_allclose(radii, 10, atol=0.02)


def test_a_centre_that_is_near_enough_is_left_alone():
    ball = trimesh.creation.icosphere(2, radius=10)
    shells = Shells(
        np.zeros(len(ball.vertices), dtype=int), np.array([ball.volume]), np.array([[0, 0, 0.02]])
    )
    np.testing.assert_allclose(enclosing(ball.vertices, ball.faces, shells), ball.vertices)


def two_balls():
    """A ball of radius 10 at 0, and one of radius 2 at x = 20, with the shell of each vertex."""
    large, small = trimesh.creation.icosphere(4, radius=10), trimesh.creation.icosphere(2, radius=2)
    vertices = np.vstack([large.vertices, small.vertices + np.array([20, 0, 0])])
    faces = np.vstack([large.faces, small.faces + len(large.vertices)])
    shell = np.repeat([0, 1], [len(large.vertices), len(small.vertices)])
    return vertices, faces, shell, np.array([large.volume, small.volume])


@pytest.mark.parametrize("off", [0, 1], ids=["the large one", "the small one"])
def test_of_two_balls_only_the_one_off_centre_moves(off):
    vertices, faces, shell, volumes = two_balls()
    centres = np.array([[0.0, 0, 0], [20, 0, 0]])
    centres[off, 1] += 0.2
    moved = enclosing(vertices, faces, Shells(shell, volumes, centres))
    np.testing.assert_allclose(moved[shell != off], vertices[shell != off], atol=1e-6)
    ball = TriangleMesh(moved, faces[shell[faces[:, 0]] == off])
    assert np.linalg.norm(ball.centre_mm - centres[off]) <= 0.03
    assert ball.volume_mm3 == pytest.approx(volumes[off], rel=1e-6)


def test_shells_that_are_left_out_stay_as_they_are():
    vertices, faces, shell, volumes = two_balls()
    shells = Shells(shell, volumes * [2, 0.5], NOWHERE.repeat(2, 0))
    moved = enclosing(vertices, faces, shells, only=np.array([False, True]))
    np.testing.assert_array_equal(moved[shell == 0], vertices[shell == 0])
    small = TriangleMesh(moved, faces[shell[faces[:, 0]] == 1])
    assert small.volume_mm3 == pytest.approx(volumes[1] / 2, rel=1e-6)
    none = enclosing(vertices, faces, shells, only=np.zeros(2, dtype=bool))
    np.testing.assert_array_equal(none, vertices)


def test_vertices_with_steps_move_along_them():
    box = trimesh.creation.box()  # of 1 mm, with 8 vertices
    up = np.tile([0, 0, 1], (8, 1)) * np.sign(box.vertices[:, 2:])
    steps = (np.ones(8, dtype=bool), up.astype(np.int8))
    shells = Shells(np.zeros(8, dtype=int), np.array([1.5]), NOWHERE)
    moved = enclosing(box.vertices, box.faces, shells, steps=steps)
    np.testing.assert_allclose(moved, box.vertices * (1, 1, 1.5), atol=1e-9)


def test_shells_are_mapped_into_mm():
    shells = Shells(np.zeros(1, dtype=int), np.array([2.0]), np.array([[1.0, 2, 3]]))
    affine = np.diag([-1.0, 2, 3, 1])
    affine[:3, 3] = [10, 20, 30]
    mapped = shells.mapped(affine)
    np.testing.assert_allclose(mapped.volumes, [12])
    np.testing.assert_allclose(mapped.centres, [[9, 24, 39]])
