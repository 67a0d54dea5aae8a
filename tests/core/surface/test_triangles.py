from __future__ import annotations

import numpy as np
import pytest
import trimesh

from brats_cli.core.surface.triangles import TriangleMesh, counting_order

# A right-angled corner of a cube: legs of 1 along x, 2 along y and 3 along z.
CORNER = TriangleMesh(
    np.array([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]]),
    np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]),
)


def test_volume_area_and_normals_of_the_corner_of_a_cube():
    # V = 1*2*3 / 6. The three right-angled faces have 1*2/2, 1*3/2 and 2*3/2 mm2, and the fourth,
    # by de Gua's theorem, the root of the sum of their squares: sqrt(1 + 2.25 + 9) = 3.5.
    assert CORNER.volume_mm3 == pytest.approx(1)
    assert CORNER.area_mm2 == pytest.approx(1 + 1.5 + 3 + 3.5)
    # The slanted face: x + y/2 + z/3 = 1.
    slanted = np.array([1, 1 / 2, 1 / 3]) / np.sqrt(1 + 1 / 4 + 1 / 9)
    np.testing.assert_allclose(
        CORNER.normals, [[0, 0, -1], [0, -1, 0], [-1, 0, 0], slanted], atol=1e-12
    )
    assert CORNER.is_closed


def test_inward_faces_make_the_volume_negative():
    inward = TriangleMesh(CORNER.vertices, CORNER.faces[:, ::-1])
    assert inward.is_closed
    assert inward.volume_mm3 == pytest.approx(-1)


def test_the_volume_is_as_exact_a_kilometre_away():
    far = TriangleMesh(CORNER.vertices + 1e6, CORNER.faces)
    assert far.volume_mm3 == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize(
    "faces",
    [
        CORNER.faces[1:],  # a face is missing
        np.vstack([CORNER.faces[:3], CORNER.faces[3:, ::-1]]),  # a face looks inward
        np.vstack([CORNER.faces, CORNER.faces]),  # four faces at every edge
        np.vstack([CORNER.faces, [[1, 1, 2]]]),  # a face without area
    ],
    ids=["hole", "flipped", "doubled", "degenerate"],
)
def test_a_surface_that_cannot_be_printed_is_not_closed(faces):
    assert not TriangleMesh(CORNER.vertices, faces).is_closed


def test_a_face_without_area_has_no_normal():
    line = TriangleMesh(CORNER.vertices, np.array([[0, 1, 1]]))
    np.testing.assert_array_equal(line.normals, [[0, 0, 0]])


def tetrahedron(*corners: int) -> list[list[int]]:
    """Its four faces, outward if the fourth corner lies on the side to which the first three turn
    clockwise."""
    a, b, c, d = corners
    return [[a, c, b], [a, b, d], [a, d, c], [b, c, d]]


# Corners of a unit cube.
CUBE = np.array([[x, y, z] for x in (0.0, 1) for y in (0.0, 1) for z in (0.0, 1)])


@pytest.mark.parametrize(
    ("vertices", "faces"),
    [
        # Two tetrahedra: four faces meet at the edge, or two fans at the vertex, that they share.
        (CUBE[[0, 1, 2, 4, 7]], tetrahedron(0, 1, 2, 3) + tetrahedron(0, 1, 3, 4)),
        (np.vstack([CUBE[[0, 4, 2, 1]], -CUBE[[4, 2, 1]]]),
         tetrahedron(0, 1, 2, 3) + tetrahedron(0, 5, 4, 6)),
        (CORNER.vertices, np.vstack([CORNER.faces, CORNER.faces[:1], CORNER.faces[:1, ::-1]])),
    ],
    ids=["shared edge", "shared vertex", "film"],
)  # fmt: skip
def test_a_surface_that_touches_itself_is_not_closed(vertices, faces):
    assert not TriangleMesh(vertices, np.array(faces)).is_closed


def test_two_tetrahedra_apart_are_closed():
    vertices = np.vstack([CORNER.vertices, CORNER.vertices + 5])
    both = TriangleMesh(vertices, np.vstack([CORNER.faces, CORNER.faces + 4]))
    assert both.is_closed
    assert both.shells == 2
    assert both.euler_number == 4  # 8 - 12 + 8


def test_a_ring_has_an_euler_number_of_0():
    ring = trimesh.creation.torus(3, 1)
    mesh = TriangleMesh(ring.vertices, ring.faces)
    assert mesh.is_closed
    assert (mesh.euler_number, mesh.shells) == (0, 1)


@pytest.mark.parametrize("torn", [False, True])
def test_trimesh_agrees_on_what_is_closed(torn):
    ball = trimesh.creation.icosphere(3)
    faces = ball.faces[1:] if torn else ball.faces
    mesh, theirs = TriangleMesh(ball.vertices, faces), trimesh.Trimesh(ball.vertices, faces)
    assert mesh.is_closed == theirs.is_watertight == (not torn)
    assert mesh.area_mm2 == pytest.approx(theirs.area)
    np.testing.assert_allclose(mesh.normals, theirs.face_normals, atol=1e-12)


def test_the_normals_of_a_balls_vertices_are_their_directions():
    ball = trimesh.creation.icosphere(3)
    mesh = TriangleMesh(ball.vertices + 100, ball.faces)
    np.testing.assert_allclose(mesh.vertex_normals, ball.vertices, atol=0.02)


def test_vertices_that_are_equal_in_float32_are_not_apart():
    # Around 100, float32 has steps of 2^-17 = 0.0000076.
    near = CORNER.vertices + 100
    assert TriangleMesh(near, CORNER.faces).is_apart
    for distance, apart in ((1e-7, False), (1e-4, True)):
        twice = np.vstack([near, near[:1] + distance])
        assert TriangleMesh(twice, CORNER.faces).is_apart == apart


def test_counting_puts_equal_numbers_side_by_side_in_their_order():
    # 0 is at 1 and 4, 2 at 0, 2 and 5, 7 at 3.
    np.testing.assert_array_equal(
        counting_order(np.array([2, 0, 2, 7, 0, 2]), 8), [1, 4, 0, 2, 5, 3]
    )
