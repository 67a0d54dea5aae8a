from __future__ import annotations

import fast_simplification
import numpy as np
import pytest
import trimesh

from brats_cli.core.surface.repair import moved_apart, repaired
from brats_cli.core.surface.triangles import TriangleMesh
from brats_cli.core.surface.voxels import voxel_surface


def fixed(vertices, faces) -> TriangleMesh:
    """The repaired mesh, which is closed for readers that merge equal positions too."""
    found = repaired(np.asarray(vertices, dtype=float), np.asarray(faces), spacing_mm=1)
    assert found is not None
    mesh = TriangleMesh(*found)
    assert mesh.is_closed
    assert mesh.is_apart
    return mesh


def tetrahedra(*tips: tuple[int, int, int]) -> tuple[np.ndarray, list[list[int]]]:
    """Tetrahedra over the triangle of 0, 1 and 2, with tips 3, 4 and so on, each outward."""
    vertices = np.array([[0.0, 0, 0], [4, 0, 0], [0, 4, 0], *tips])
    faces = []
    for tip in range(3, len(vertices)):
        up = vertices[tip][2] > 0
        sides = [[0, 1, tip], [1, 2, tip], [2, 0, tip]]
        faces += sides if up else [side[::-1] for side in sides]
        faces.append([0, 2, 1] if up else [0, 1, 2])
    return vertices, faces


def test_what_is_sound_stays_as_it_is():
    vertices, faces = tetrahedra((1, 1, 3))
    mesh = fixed(vertices, faces)
    assert len(mesh.vertices) == 4
    assert mesh.volume_mm3 == pytest.approx(4 * 4 / 2 * 3 / 3)


def test_two_tetrahedra_that_share_an_edge_are_split_or_joined_along_it():
    # They touch along the edge from 0 to 1 with space between them on both sides.
    vertices = np.array([[0.0, 0, 0], [4, 0, 0], [2, 2, 1], [2, 2, -1], [2, -2, 1], [2, -2, -1]])
    one, other = [0, 1, 2, 3], [0, 1, 5, 4]
    faces = [
        face for a, b, c, d in (one, other) for face in ([a, b, c], [a, d, b], [a, c, d], [b, d, c])
    ]
    assert TriangleMesh(vertices, np.array(faces)).volume_mm3 > 0
    assert not TriangleMesh(vertices, np.array(faces)).is_closed
    mesh = fixed(vertices, faces)
    before = TriangleMesh(vertices, np.array(faces)).volume_mm3
    assert mesh.volume_mm3 == pytest.approx(before, rel=0.1)


def test_two_tetrahedra_that_share_a_vertex_come_apart():
    vertices, faces = tetrahedra((1, 1, 3))
    mirrored = -vertices[1:]
    both = np.vstack([vertices, mirrored])
    number = np.array([0, 4, 5, 6])
    faces = np.vstack([faces, number[np.array(faces)][:, ::-1]])
    assert not TriangleMesh(both, faces).is_closed
    mesh = fixed(both, faces)
    assert mesh.shells == 2
    assert len(mesh.vertices) == 8
    # By a hair: 0.08 of a voxel at most.
    moved = np.linalg.norm(mesh.vertices, axis=1)
    assert 0 < np.sort(moved)[:2].max() <= 0.08


def test_a_film_becomes_a_pillow():
    # A pyramid, and a triangle that sticks out from one of its edges, seen from both sides.
    vertices, faces = tetrahedra((1, 1, 3))
    vertices = np.vstack([vertices, [[2, -4, 0]]])
    film = [[0, 4, 1], [0, 1, 4]]
    mesh = fixed(vertices, np.vstack([faces, film]))
    assert len(mesh.faces) == 4 + 2 * 3 + 2  # and the edge that they share is halved for one
    # Each side rises by 0.1 over the triangle of 8 mm2: two pyramids of 8 * 0.1 / 3.
    assert mesh.volume_mm3 == pytest.approx(8 + 2 * 8 * 0.1 / 3, rel=0.02)


def test_faces_of_no_area_go():
    vertices, faces = tetrahedra((1, 1, 3))
    mesh = fixed(vertices, np.vstack([faces, [[0, 1, 1]]]))
    assert len(mesh.faces) == 4


@pytest.mark.parametrize("seed", range(60))
def test_torn_reductions_of_random_masks_are_mended(seed):
    generator = np.random.default_rng(seed)
    mask = generator.random(generator.integers(3, 9, 3)) < generator.choice([0.3, 0.5, 0.7])
    surface = voxel_surface(mask)
    wanted = max(int(len(surface.faces) * generator.choice([0.5, 0.25, 0.1, 0.03])), 8)
    vertices, faces = fast_simplification.simplify(
        surface.vertices, surface.faces, target_count=wanted
    )
    if not len(faces):
        return
    mesh = fixed(vertices, faces)
    welded = trimesh.Trimesh(mesh.vertices.astype(np.float32), mesh.faces)
    assert welded.is_watertight
    assert welded.is_winding_consistent


def test_vertices_in_one_place_move_apart_towards_their_own_neighbours():
    vertices, faces = tetrahedra((1, 1, 3))
    both = np.vstack([vertices, vertices * (1, 1, -1)])
    faces = np.vstack([faces, np.array(faces)[:, ::-1] + 4])
    assert not TriangleMesh(both, faces).is_apart
    moved = TriangleMesh(moved_apart(both, faces, 1), faces)
    assert moved.is_apart
    assert np.linalg.norm(moved.vertices - both, axis=1).max() <= 0.08 + 1e-9
    np.testing.assert_array_equal(moved.vertices[[3, 7]], both[[3, 7]])
