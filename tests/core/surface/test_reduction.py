from __future__ import annotations

import numpy as np
import pytest
import trimesh

from brats_cli.core.surface import reduction
from brats_cli.core.surface.reduction import reduced
from brats_cli.core.surface.shells import Shells
from brats_cli.core.surface.triangles import TriangleMesh


def balls(*radii: float, subdivisions: int = 4) -> tuple[TriangleMesh, np.ndarray, np.ndarray]:
    """Balls beside each other, the shell of each vertex, and their volumes."""
    made = [trimesh.creation.icosphere(subdivisions, radius=radius) for radius in radii]
    offsets = np.cumsum([0, *(len(ball.vertices) for ball in made)])
    vertices = [ball.vertices + np.array([3 * i * max(radii), 0, 0]) for i, ball in enumerate(made)]
    faces = [ball.faces + offset for ball, offset in zip(made, offsets, strict=False)]
    shell = np.repeat(np.arange(len(made)), [len(ball.vertices) for ball in made])
    volumes = np.array([ball.volume for ball in made])
    return TriangleMesh(np.vstack(vertices), np.vstack(faces)), shell, volumes


def shells_of(shell: np.ndarray, volumes: np.ndarray) -> Shells:
    return Shells(shell, volumes, np.full((len(volumes), 3), np.nan))


@pytest.mark.parametrize("faces", [3000, 1000, 600])
def test_a_ball_of_fewer_triangles_is_closed_and_of_the_same_volume(faces):
    mesh, shell, volumes = balls(20)  # of 5,120 triangles
    few = reduced(mesh, shells_of(shell, volumes), faces=faces, spacing_mm=1)
    assert len(few.faces) == pytest.approx(faces, rel=0.01)
    assert few.is_closed
    assert few.volume_mm3 == pytest.approx(volumes[0], rel=1e-6)
    assert few.area_mm2 == pytest.approx(4 * np.pi * 20**2, rel=0.01)


def test_no_fewer_than_a_tenth_of_the_triangles_are_left():
    mesh, shell, volumes = balls(20)
    assert len(reduced(mesh, shells_of(shell, volumes), faces=20, spacing_mm=1).faces) >= 500


def test_small_shells_are_kept_whole():
    mesh, shell, volumes = balls(20, 1)
    octahedron = trimesh.creation.icosphere(0)  # 20 triangles
    island = TriangleMesh(
        np.vstack([mesh.vertices, octahedron.vertices - 100]),
        np.vstack([mesh.faces, octahedron.faces + len(mesh.vertices)]),
    )
    shell = np.append(shell, np.full(len(octahedron.vertices), 2))
    few = reduced(
        island, shells_of(shell, np.append(volumes, octahedron.volume)), faces=1000, spacing_mm=1
    )
    assert few.shells == 3
    kept = few.vertices[few.vertices[:, 0] < -50]
    np.testing.assert_allclose(np.sort(kept, axis=0), np.sort(octahedron.vertices - 100, axis=0))


def test_nothing_is_done_where_there_is_nothing_to_do():
    mesh, shell, volumes = balls(20, subdivisions=2)
    assert reduced(mesh, shells_of(shell, volumes), faces=len(mesh.faces), spacing_mm=1) is mesh
    tiny, shell, volumes = balls(1, subdivisions=0)
    assert reduced(tiny, shells_of(shell, volumes), faces=10, spacing_mm=1) is tiny


def test_where_a_reduction_fails_more_triangles_are_kept(monkeypatch):
    mesh, shell, volumes = balls(20)
    collapsed, tried = reduction._collapsed, []

    def failing(points, faces, shells, wanted, spacing_mm):
        tried.append(wanted)
        return None if len(tried) < 3 else collapsed(points, faces, shells, wanted, spacing_mm)

    monkeypatch.setattr(reduction, "_collapsed", failing)
    few = reduced(mesh, shells_of(shell, volumes), faces=1000, spacing_mm=1)
    assert tried == [1000, 1500, 2250]
    assert len(few.faces) == pytest.approx(2250, rel=0.01)
    monkeypatch.setattr(reduction, "_collapsed", lambda *_: None)
    assert reduced(mesh, shells_of(shell, volumes), faces=1000, spacing_mm=1) is mesh


def test_each_ball_keeps_its_own_volume():
    mesh, shell, volumes = balls(20, 5, 2)
    few = reduced(mesh, shells_of(shell, volumes), faces=1500, spacing_mm=1)
    assert len(few.faces) == pytest.approx(1500, rel=0.1)
    parts = trimesh.Trimesh(few.vertices, few.faces).split()
    assert sorted(part.volume for part in parts) == pytest.approx(sorted(volumes), rel=1e-6)
