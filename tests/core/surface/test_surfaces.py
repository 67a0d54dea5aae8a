from __future__ import annotations

import numpy as np
import pytest
import trimesh
from helpers import centroid
from scipy import ndimage
from scipy.special import ellipeinc, ellipkinc

from brats_cli.core.errors import ConfigError
from brats_cli.core.images.grid import Grid
from brats_cli.core.surface.surfaces import Surface, SurfaceConfig, surface_of
from brats_cli.core.surface.triangles import TriangleMesh


def made(mask: np.ndarray, affine: np.ndarray, **config) -> Surface:
    return surface_of(mask, Grid(mask.shape, affine), SurfaceConfig(**config))


def unsmoothed(mask: np.ndarray, affine: np.ndarray) -> TriangleMesh:
    return made(mask, affine, smooth="none", interpolate=False).mesh


def block(*shape: int, filled: list[tuple[int, ...]]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    for voxel in filled:
        mask[voxel] = True
    return mask


def oblique(scale: tuple[float, float, float]) -> np.ndarray:
    """30 degrees about z, then 20 about x; voxels of `scale` mm; far from the origin."""
    a, b = np.radians([30, 20])
    about_z = [[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]
    about_x = [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    affine = np.eye(4)
    affine[:3, :3] = np.array(about_x) @ about_z @ np.diag(scale)
    affine[:3, 3] = [-90, 126, -72]
    return affine


AFFINES = {
    "RAS": np.diag([1.0, 1, 1, 1]),
    "LPS": np.diag([-1.0, -1, 1, 1]),
    "LAS": np.diag([-1.0, 1, 1, 1]),  # as FSL's: mirrored
    "anisotropic": np.diag([0.5, 0.5, 3, 1]),
    "oblique": oblique((1, 1, 1)),
    "oblique, anisotropic, mirrored": oblique((-0.9, 1.1, 4)),
}


# Half the diagonal of the octahedron that holds as much as a cube of 1: 4/3 * h * h * h = 1.
HALF_DIAGONAL = 0.75 ** (1 / 3)


@pytest.mark.parametrize("mirror", [1, -1], ids=["RAS", "LAS"])
def test_one_voxel_meshes_to_an_octahedron_of_its_volume(mirror):
    mesh = unsmoothed(np.ones((1, 1, 1), dtype=bool), np.diag([mirror, 1.0, 2.0, 1.0]))
    assert mesh.volume_mm3 == pytest.approx(2)
    h = HALF_DIAGONAL
    np.testing.assert_allclose(
        sorted(mesh.vertices.tolist()),
        [[-h, 0, 0], [0, -h, 0], [0, 0, -2 * h], [0, 0, 2 * h], [0, h, 0], [h, 0, 0]],
        atol=1e-9,
    )
    # A face has an edge of h * sqrt(2) in the x-y plane, h / sqrt(2) from the middle, and its third
    # corner 2 * h above: 8 faces of h * sqrt(2) * h * sqrt(4 + 1/2) / 2 = 1.5 * h * h.
    assert mesh.area_mm2 == pytest.approx(12 * h * h)
    assert mesh.faces.shape == (8, 3)
    assert mesh.is_closed


def test_a_block_is_a_cuboid_with_its_edges_bevelled():
    # 4 x 5 x 6 voxels. Their centres span 3 * 4 * 5; around that the surface is s away on every
    # side: slabs on the six faces, triangular prisms of s * s / 2 along the twelve edges and
    # corners of s * s * s / 6 in the eight corners. With s = 0.5 that were 113.2 of 120 voxels.
    mesh = unsmoothed(np.ones((4, 5, 6), dtype=bool), np.eye(4))
    s = -mesh.vertices.min()
    slabs, prisms = 2 * (3 * 4 + 3 * 5 + 4 * 5) * s, 4 * (3 + 4 + 5) * s**2 / 2
    assert 60 + slabs + prisms + 8 * s**3 / 6 == pytest.approx(120)
    assert mesh.volume_mm3 == pytest.approx(120)
    np.testing.assert_allclose(mesh.vertices.min(axis=0), [-s, -s, -s])
    np.testing.assert_allclose(mesh.vertices.max(axis=0), [3 + s, 4 + s, 5 + s])
    assert 0.5 < s < 0.6


@pytest.mark.parametrize("second", [(1, 1, 0), (1, 1, 1)], ids=["edge", "corner"])
def test_voxels_that_touch_at_an_edge_or_a_corner_stay_apart(second):
    mesh = unsmoothed(block(2, 2, 2, filled=[(0, 0, 0), second]), np.eye(4))
    assert mesh.is_closed
    assert len(mesh.faces) == 2 * 8  # two octahedra
    assert mesh.volume_mm3 == pytest.approx(2)


def test_a_hollow_mask_has_an_inner_surface_that_looks_into_the_hollow():
    solid = np.ones((5, 5, 5), dtype=bool)
    hollow = solid.copy()
    hollow[2, 2, 2] = False
    mesh = unsmoothed(hollow, np.eye(4))
    assert mesh.is_closed
    assert mesh.volume_mm3 == pytest.approx(5**3 - 1)
    inner = np.abs(mesh.vertices - 2).max(axis=1) < 1
    assert inner.sum() == 6  # an octahedron
    # Each shell has its own voxels' volume: the cavity that of one voxel.
    np.testing.assert_allclose(np.abs(mesh.vertices[inner] - 2).max(axis=1), HALF_DIAGONAL)
    assert mesh.vertices.min() == pytest.approx(unsmoothed(solid, np.eye(4)).vertices.min())


@pytest.mark.parametrize("name", ["RAS", "oblique, anisotropic, mirrored"])
def test_every_neighbourhood_of_voxels_gives_a_closed_outward_unsmoothed(name):
    # Whether a surface is closed is decided wherever two cells of eight voxels share a face, which
    # are 2 x 2 x 3 voxels: all 4,096 of them, along each axis, prove it for every mask.
    patterns = (np.arange(4096)[:, None] >> np.arange(12) & 1).astype(bool).reshape(-1, 2, 2, 3)
    spaced = np.pad(patterns, [(0, 0), (0, 1), (0, 1), (0, 1)]).reshape(16, 16, 16, 3, 3, 4)
    mask = spaced.transpose(0, 3, 1, 4, 2, 5).reshape(48, 48, 64)
    for axes in [(0, 1, 2), (2, 0, 1), (1, 2, 0)]:
        mesh = unsmoothed(mask.transpose(axes), AFFINES[name])
        assert mesh.is_closed
        assert_outward(mesh, mask.transpose(axes), AFFINES[name])


@pytest.mark.parametrize("density", [0.01, 0.05, 0.3, 0.5, 0.7, 0.95, 0.99])
def test_random_masks_give_closed_outward_surfaces_of_the_voxels_volume(density):
    mask = np.random.default_rng(0).random((20, 21, 22)) < density
    affine = AFFINES["oblique, anisotropic, mirrored"]
    mesh = unsmoothed(mask, affine)
    assert mesh.is_closed
    assert_outward(mesh, mask, affine)
    assert mesh.volume_mm3 == pytest.approx(mask.sum() * 0.9 * 1.1 * 4)
    # None needs to be moved farther than single voxels: the vertices stay between the voxels.
    index = (mesh.vertices - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    from_half_way = np.abs(np.abs(index - np.floor(index + 1e-9)) - 0.5)
    assert from_half_way.min(axis=1).max() <= HALF_DIAGONAL - 0.5 + 1e-9


def assert_outward(mesh: TriangleMesh, mask: np.ndarray, affine: np.ndarray) -> None:
    """Every vertex lies between two voxels; its faces look towards the one outside."""
    to_index = np.linalg.inv(affine)
    index = mesh.vertices @ to_index[:3, :3].T + to_index[:3, 3] + 1  # into the padded mask
    low, high = np.floor(index + 1e-6).astype(int), np.ceil(index - 1e-6).astype(int)
    padded = np.pad(mask, 1)
    below, above = padded[tuple(low.T)], padded[tuple(high.T)]
    assert (below != above).all()
    outside = (high - low) @ affine[:3, :3].T * np.where(below, 1, -1)[:, None]
    # A face may lean past the axis of one of its corners, but not past all three.
    towards = (outside[mesh.faces] * mesh.normals[:, None]).sum(axis=2)
    assert (towards.max(axis=1) > 0).all()
    assert mesh.volume_mm3 > 0


def test_a_mask_at_every_edge_of_the_grid_is_closed():
    assert unsmoothed(np.ones((3, 4, 5), dtype=bool), np.eye(4)).is_closed


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_the_surface_lies_where_the_voxels_lie_and_holds_their_volume(affine):
    mask = np.zeros((30, 31, 32), dtype=bool)
    mask[5:20, 6:24, 7:29] = True
    mesh = unsmoothed(mask, affine)
    centre = affine @ [12, 14.5, 17.5, 1]  # of 5..19, 6..23 and 7..28
    np.testing.assert_allclose(mesh.vertices.mean(axis=0), centre[:3], atol=1e-9)
    voxel_mm3 = np.prod(np.linalg.norm(affine[:3, :3], axis=0))  # the axes are orthogonal
    assert mesh.volume_mm3 == pytest.approx(15 * 18 * 22 * voxel_mm3)


def ellipsoid(half_axes: tuple[float, ...], affine: np.ndarray) -> tuple[np.ndarray, Grid]:
    """The voxels whose centres lie in an ellipsoid along the axes of the world, and their grid."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    shape = tuple(int(2 * max(half_axes) / side) + 5 for side in spacing)
    centred = affine.copy()
    middle = (np.array(shape) - 1) / 2 + [0.3, 0.1, -0.2]  # not on a voxel
    centred[:3, 3] = -affine[:3, :3] @ middle
    places = np.moveaxis(np.indices(shape), 0, -1) @ centred[:3, :3].T + centred[:3, 3]
    return ((places / half_axes) ** 2).sum(axis=-1) <= 1, Grid(shape, centred)


def area_of_ellipsoid(half_axes: tuple[float, ...]) -> float:
    """Legendre's formula (DLMF 19.33.1), for half-axes a > c."""
    c, b, a = sorted(half_axes)
    phi = np.arccos(c / a)
    m = a**2 * (b**2 - c**2) / (b**2 * (a**2 - c**2))
    parts = ellipeinc(phi, m) * np.sin(phi) ** 2 + ellipkinc(phi, m) * np.cos(phi) ** 2
    return 2 * np.pi * c**2 + 2 * np.pi * a * b / np.sin(phi) * parts


TRUE_GRIDS = {
    "1 mm": np.eye(4),
    "mirrored": np.diag([-1.0, 1, 1, 1]),
    "0.9 x 1.1 x 3": np.diag([0.9, 1.1, 3, 1]),
    "oblique": oblique((1, 1, 1)),
    "oblique, 0.9 x 1.1 x 3, mirrored": oblique((-0.9, 1.1, 3)),
}


@pytest.mark.parametrize("half_axes", [(20, 20, 20), (30, 30, 30), (20, 24, 30)], ids=str)
@pytest.mark.parametrize("affine", TRUE_GRIDS.values(), ids=TRUE_GRIDS)
def test_spheres_and_ellipsoids_have_the_area_and_the_centre_of_the_truth(half_axes, affine):
    mask, grid = ellipsoid(half_axes, affine)
    mesh = surface_of(mask, grid).mesh
    a, b, c = half_axes
    sphere = 4 * np.pi * a * a
    area = sphere if a == c else area_of_ellipsoid(half_axes)
    assert mesh.area_mm2 == pytest.approx(area, rel=0.02)
    assert mesh.volume_mm3 == pytest.approx(mask.sum() * grid.voxel_mm3, rel=1e-5)
    assert mesh.volume_mm3 == pytest.approx(4 / 3 * np.pi * a * b * c, rel=0.01)
    assert mesh.is_closed
    indices = np.argwhere(mask).mean(axis=0)
    of_voxels = grid.affine[:3, :3] @ indices + grid.affine[:3, 3]
    np.testing.assert_allclose(centroid(mesh), of_voxels, atol=0.05)
    # Outward: the normals of an ellipsoid at p point along p / half_axes^2.
    middle = mesh.vertices[mesh.faces].mean(axis=1)
    assert ((middle / np.square(half_axes)) * mesh.normals).sum(axis=1).min() > 0


def test_without_smoothing_a_sphere_is_a_staircase():
    # Even one of bevelled steps is larger than the slope that it follows: a line of slope m is
    # 1 - m + m * sqrt(2) long instead of sqrt(1 + m * m), which is up to 8.2 % more.
    mask, grid = ellipsoid((20, 20, 20), np.eye(4))
    area = unsmoothed(mask, grid.affine).area_mm2
    assert 1.05 < area / (4 * np.pi * 20**2) < 1.10


def ragged(seed: int = 0, size: int = 26) -> np.ndarray:
    """A random blob with holes, bridges and islands."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random((size,) * 3), 1.2)
    return noise > np.quantile(noise, 0.6)


@pytest.mark.parametrize("smooth", ["none", "light", "medium", "strong"])
@pytest.mark.parametrize("reduce", [1, 0.5, 0.25, 0.1])
def test_every_smoothing_and_reduction_is_closed_and_as_large_as_the_voxels(smooth, reduce):
    mask, affine = ragged(), oblique((-1, 1, 1.5))
    surface = made(mask, affine, smooth=smooth, reduce=reduce)
    mesh = surface.mesh
    assert mesh.is_closed
    assert mesh.is_apart
    assert mesh.volume_mm3 == pytest.approx(mask.sum() * 1.5, rel=1e-5)
    assert surface.voxels_mm3 == pytest.approx(mask.sum() * 1.5)
    assert mesh.shells >= len(surface.voxels.shell_voxels)
    assert len(mesh.faces) <= max(reduce, 0.1) * surface.full_faces * 1.3 + 100
    welded = trimesh.Trimesh(mesh.vertices.astype(np.float32), mesh.faces)  # merges as it loads
    assert welded.is_watertight
    assert welded.is_winding_consistent


def edges_of(faces):
    return np.vstack([faces[:, [0, 1]], faces[:, [1, 2]]])


def test_more_smoothing_is_rounder():
    mask = ragged()
    areas = [
        made(mask, np.eye(4), smooth=smooth).mesh.area_mm2
        for smooth in ("none", "light", "medium", "strong")
    ]
    assert areas == sorted(areas, reverse=True)


def test_single_voxels_and_small_islands_stay_where_they_are():
    mask = np.zeros((12, 12, 12), dtype=bool)
    mask[1, 1, 1] = mask[5:7, 5, 5] = mask[9, 9, 8:11] = True
    surface = made(mask, np.eye(4), smooth="strong")
    np.testing.assert_allclose(surface.mesh.vertices, unsmoothed(mask, np.eye(4)).vertices)
    assert surface.unsmoothed == 3
    assert made(mask, np.eye(4), reduce=0.1).mesh.shells == 3


@pytest.mark.parametrize("settings", [{}, {"reduce": 0.25}, {"interpolate": True}])
def test_the_surface_knows_how_many_shells_its_mesh_has(settings):
    surface = made(ragged(), np.diag([1.0, 1, 2, 1]), **settings)
    # Faces around a vertex belong together: trimesh's connected components of edges.
    faces = surface.mesh.faces
    assert surface.shells == len(trimesh.graph.connected_components(edges_of(faces)))
    assert surface.shells > 1


def test_a_number_of_faces_is_met():
    mask, grid = ellipsoid((20, 20, 20), np.eye(4))
    surface = surface_of(mask, grid, SurfaceConfig(faces=2000))
    assert surface.full_faces > 10_000
    assert len(surface.mesh.faces) == pytest.approx(2000, rel=0.01)
    more = surface_of(mask, grid, SurfaceConfig(faces=10**6))
    assert len(more.mesh.faces) == more.full_faces


def test_thick_slices_are_interpolated_unless_told_otherwise():
    affine = np.diag([1.0, 1, 5, 1])
    mask, grid = ellipsoid((20, 24, 30), affine)
    smooth = surface_of(mask, grid)
    blocks = surface_of(mask, grid, SurfaceConfig(interpolate=False))
    assert (smooth.parts, blocks.parts) == ((1, 1, 5), None)
    truth = area_of_ellipsoid((20, 24, 30))
    assert smooth.mesh.area_mm2 == pytest.approx(truth, rel=0.04)
    for surface in (smooth, blocks):
        assert surface.mesh.volume_mm3 == pytest.approx(mask.sum() * 5, rel=1e-5)

    def off(surface: Surface) -> float:
        """How far most vertices lie from the ellipsoid at most, as a part of its radius."""
        radii = np.linalg.norm(surface.mesh.vertices / (20, 24, 30), axis=1)
        return float(np.percentile(np.abs(radii - 1), 95))

    assert off(smooth) < 0.6 * off(blocks)


def test_an_island_between_thick_slices_keeps_its_own_volume():
    mask = np.zeros((30, 30, 12), dtype=bool)
    mask[2:20, 2:20, 2:9] = True
    mask[8, 8, 5] = False  # a cavity
    mask[25, 25, 6] = mask[25:27, 2, 4:6] = True
    mesh = made(mask, np.diag([1.0, 1, 5, 1])).mesh
    assert mesh.volume_mm3 == pytest.approx(mask.sum() * 5, rel=1e-5)
    parts = trimesh.Trimesh(mesh.vertices, mesh.faces).split(only_watertight=False)
    volumes = sorted(part.volume for part in parts)
    whole = 18 * 18 * 7 * 5
    assert volumes[1:] == pytest.approx([5, 4 * 5, whole - 5 - volumes[0]], rel=1e-4)
    assert -8 < volumes[0] < -3


def test_voxels_that_are_about_as_thick_as_wide_are_not_cut():
    mask = np.ones((3, 3, 3), dtype=bool)
    assert made(mask, np.diag([1.0, 1, 2.4, 1])).parts is None
    assert made(mask, np.diag([1.0, 1, 2.4, 1]), interpolate=True).parts == (1, 1, 2)
    assert made(mask, np.eye(4), interpolate=True).parts is None


@pytest.mark.slow
def test_random_masks_of_all_kinds_are_closed_at_all_settings():
    generator = np.random.default_rng(0)
    for number in range(240):
        shape = generator.integers(1, 10, 3)
        mask = generator.random(shape) < generator.choice([0.05, 0.3, 0.5, 0.7, 0.95])
        if number % 4 == 1:
            mask = np.indices(shape).sum(axis=0) % 2 == 0  # a checkerboard
        elif number % 4 == 2:
            mask[tuple(slice(1, -1) for _ in shape)] = False  # hollow, and with tears
        mask[0, 0, 0] = True
        spacing = generator.choice([0.5, 1, 2, 5], 3) * generator.choice([-1, 1], 3)
        affine = np.diag([*spacing, 1.0])
        affine[:3, 3] = generator.normal(0, 100, 3)
        smooth = ("none", "light", "medium", "strong")[number % 3]
        surface = made(mask, affine, smooth=smooth, reduce=generator.choice([1, 0.5, 0.1, 0.03]))
        mesh = surface.mesh
        assert mesh.is_closed
        assert mesh.is_apart
        voxels_mm3 = mask.sum() * np.abs(np.prod(spacing))
        assert mesh.volume_mm3 == pytest.approx(voxels_mm3, rel=1e-4)
        if surface.parts is None:
            assert mesh.shells >= len(surface.voxels.shell_voxels)


@pytest.mark.parametrize("value", [0.0, np.nan], ids=["flat", "nan"])
def test_voxels_without_a_place_in_space_have_no_surface(value):
    with pytest.raises(ValueError, match="the affine is singular or not finite"):
        made(np.ones((1, 1, 1), dtype=bool), np.diag([1, 1, value, 1]))


@pytest.mark.parametrize(
    ("config", "message", "hint"),
    [
        ({"reduce": 0}, "cannot keep 0 of the faces", "above 0 and up to 1, such as 0.25"),
        ({"reduce": 25}, "cannot keep 25 of the faces", "above 0 and up to 1, such as 0.25"),
        ({"reduce": float("nan")}, "cannot keep nan of the faces", "above 0"),
        ({"faces": 3}, "cannot make a surface of 3 faces", "give at least 20"),
        ({"faces": 99, "reduce": 0.5}, "a number of faces and a part", "give one of the two"),
        ({"smooth": "lite"}, "there is no smoothing 'lite'", "did you mean 'light'?"),
    ],
)
def test_settings_that_make_no_sense(config, message, hint):
    with pytest.raises(ConfigError, match=message) as caught:
        SurfaceConfig(**config)
    assert hint in caught.value.hint
