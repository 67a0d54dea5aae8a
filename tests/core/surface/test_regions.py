from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import volume

from brats_cli.core.data.labels import SCHEMES, write_labels
from brats_cli.core.errors import LabelError, MeshError
from brats_cli.core.images.grid import Volume
from brats_cli.core.images.nifti import read_labels
from brats_cli.core.surface.regions import region_surfaces, regions_of, surface, wanted_region
from brats_cli.core.surface.triangles import TriangleMesh

REAL = Path(__file__).parents[3] / "shared/data"

# A right-angled corner of a cube: legs of 1 along x, 2 along y and 3 along z.
CORNER = TriangleMesh(
    np.array([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]]),
    np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]),
)


def block(*shape: int, filled: list[tuple[int, ...]]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    for voxel in filled:
        mask[voxel] = True
    return mask


def ball(radius: float, *, centre: tuple[float, float, float], shape: tuple[int, int, int]):
    x, y, z = np.ogrid[: shape[0], : shape[1], : shape[2]]
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2 <= radius**2


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


# Half the diagonal of the octahedron that holds as much as a cube of 1: 4/3 * h * h * h = 1.
HALF_DIAGONAL = 0.75 ** (1 / 3)


@pytest.mark.parametrize("mirror", [1, -1], ids=["RAS", "LAS"])
def test_one_voxel_meshes_to_an_octahedron_of_its_volume(mirror):
    mesh = surface(np.ones((1, 1, 1), dtype=bool), np.diag([mirror, 1.0, 2.0, 1.0]))
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
    mesh = surface(np.ones((4, 5, 6), dtype=bool), np.eye(4))
    s = -mesh.vertices.min()
    slabs, prisms = 2 * (3 * 4 + 3 * 5 + 4 * 5) * s, 4 * (3 + 4 + 5) * s**2 / 2
    assert 60 + slabs + prisms + 8 * s**3 / 6 == pytest.approx(120)
    assert mesh.volume_mm3 == pytest.approx(120)
    np.testing.assert_allclose(mesh.vertices.min(axis=0), [-s, -s, -s])
    np.testing.assert_allclose(mesh.vertices.max(axis=0), [3 + s, 4 + s, 5 + s])
    assert 0.5 < s < 0.6


@pytest.mark.parametrize("second", [(1, 1, 0), (1, 1, 1)], ids=["edge", "corner"])
def test_voxels_that_touch_at_an_edge_or_a_corner_stay_apart(second):
    mesh = surface(block(2, 2, 2, filled=[(0, 0, 0), second]), np.eye(4))
    assert mesh.is_closed
    assert len(mesh.faces) == 2 * 8  # two octahedra
    assert mesh.volume_mm3 == pytest.approx(2)


def test_a_hollow_mask_has_an_inner_surface_that_looks_into_the_hollow():
    solid = np.ones((5, 5, 5), dtype=bool)
    hollow = solid.copy()
    hollow[2, 2, 2] = False
    mesh = surface(hollow, np.eye(4))
    assert mesh.is_closed
    assert mesh.volume_mm3 == pytest.approx(5**3 - 1)
    inner = np.abs(mesh.vertices - 2).max(axis=1) < 1
    assert inner.sum() == 6  # an octahedron
    # Moved outwards as the outer vertices are, the inner ones come nearer to the middle.
    outer_step = -0.5 - mesh.vertices.min()
    np.testing.assert_allclose(np.abs(mesh.vertices[inner] - 2).max(axis=1), 0.5 - outer_step)


@pytest.mark.parametrize("name", ["RAS", "oblique, anisotropic, mirrored"])
def test_every_neighbourhood_of_voxels_gives_a_closed_outward_surface(name):
    # Whether a surface is closed is decided wherever two cells of eight voxels share a face, which
    # are 2 x 2 x 3 voxels: all 4,096 of them, along each axis, prove it for every mask.
    patterns = (np.arange(4096)[:, None] >> np.arange(12) & 1).astype(bool).reshape(-1, 2, 2, 3)
    spaced = np.pad(patterns, [(0, 0), (0, 1), (0, 1), (0, 1)]).reshape(16, 16, 16, 3, 3, 4)
    mask = spaced.transpose(0, 3, 1, 4, 2, 5).reshape(48, 48, 64)
    for axes in [(0, 1, 2), (2, 0, 1), (1, 2, 0)]:
        mesh = surface(mask.transpose(axes), AFFINES[name])
        assert mesh.is_closed
        assert_outward(mesh, mask.transpose(axes), AFFINES[name])


@pytest.mark.parametrize("density", [0.01, 0.05, 0.3, 0.5, 0.7, 0.95, 0.99])
def test_random_masks_give_closed_outward_surfaces_of_the_voxels_volume(density):
    mask = np.random.default_rng(0).random((20, 21, 22)) < density
    affine = AFFINES["oblique, anisotropic, mirrored"]
    mesh = surface(mask, affine)
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
    assert surface(np.ones((3, 4, 5), dtype=bool), np.eye(4)).is_closed


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_the_surface_lies_where_the_voxels_lie_and_holds_their_volume(affine):
    mask = np.zeros((30, 31, 32), dtype=bool)
    mask[5:20, 6:24, 7:29] = True
    mesh = surface(mask, affine)
    centre = affine @ [12, 14.5, 17.5, 1]  # of 5..19, 6..23 and 7..28
    np.testing.assert_allclose(mesh.vertices.mean(axis=0), centre[:3], atol=1e-9)
    voxel_mm3 = np.prod(np.linalg.norm(affine[:3, :3], axis=0))  # the axes are orthogonal
    assert mesh.volume_mm3 == pytest.approx(15 * 18 * 22 * voxel_mm3)


def test_a_ball_has_the_volume_and_nearly_the_area_of_the_sphere():
    mask = ball(20, centre=(24.3, 25.1, 23.8), shape=(50, 50, 50))
    mesh = surface(mask, np.eye(4))
    assert mesh.volume_mm3 == pytest.approx(4 / 3 * np.pi * 20**3, rel=0.005)
    # A staircase, even one of bevelled steps, is larger than the slope that it follows: a line of
    # slope m is 1 - m + m * sqrt(2) long instead of sqrt(1 + m * m), which is up to 8.2 % more, and
    # a surface leans two ways. Found: 8.7 %.
    assert 1.05 < mesh.area_mm2 / (4 * np.pi * 20**2) < 1.10


def test_an_empty_mask_gives_an_empty_mesh():
    mesh = surface(np.zeros((2, 3, 4), dtype=bool), np.eye(4))
    assert mesh.is_empty
    assert mesh.is_closed
    assert (mesh.volume_mm3, mesh.area_mm2) == (0, 0)
    assert mesh.normals.shape == (0, 3)


@pytest.mark.parametrize("value", [0.0, np.nan], ids=["flat", "nan"])
def test_voxels_without_a_place_in_space_have_no_surface(value):
    affine = np.diag([1, 1, value, 1])
    with pytest.raises(ValueError, match="the affine is singular or not finite"):
        surface(np.ones((1, 1, 1), dtype=bool), affine)
    with pytest.raises(
        MeshError, match=r"seg\.nii\.gz does not tell where its voxels are"
    ) as caught:
        list(region_surfaces(label_map(1, affine=affine), "WT"))
    assert "sform" in caught.value.hint


def label_map(*values: int, name: str = "seg.nii.gz", affine: np.ndarray | None = None) -> Volume:
    """One voxel of each value and one of background, in a row."""
    data = np.array([0, *values], dtype=np.uint8).reshape(-1, 1, 1)
    path = Path("/data/case") / name
    return volume(data, np.eye(4) if affine is None else affine, path=path)


@pytest.mark.parametrize(
    ("text", "wanted"), [("WT", "WT"), ("et", "ET"), ("All", "all"), ("02", "2"), ("255", "255")]
)
def test_a_region_may_be_written_in_several_ways(text, wanted):
    assert wanted_region(text) == wanted


def test_an_unknown_region_names_those_there_are():
    with pytest.raises(LabelError, match="there is no region 'tumor'") as caught:
        wanted_region("tumor")
    assert caught.value.hint.startswith("the regions are ET, GTV, RC, TC, WT;")


@pytest.mark.parametrize("text", ["0", "256"])
def test_the_background_is_no_tissue(text):
    with pytest.raises(LabelError, match=f"no tissue of label {text}"):
        wanted_region(text)


@pytest.mark.parametrize(
    ("volume", "wanted", "labels"),
    [
        (label_map(1, 2, 4), "TC", (1, 4)),  # 2017-2022, by its values
        (label_map(1, 2, 3), "WT", (1, 2, 3)),  # 2023, Decathlon or nnU-Net: WT is the same
        (label_map(1, 2, 3), "ET", (3,)),  # so is ET
        (label_map(1, 2, name="BraTS20_Training_001_seg.nii.gz"), "TC", (1, 4)),
        (label_map(1, 2, 3, name="BraTS-SSA-00001-000-seg.nii.gz"), "TC", (1, 3)),
        (label_map(1, name="BraTS-MEN-RT-0001-1_gtv.nii.gz"), "GTV", (1,)),
        (label_map(1, 2, 3, 4), "2", (2,)),  # a value needs no scheme
        (label_map(1, 2, 3, 4), "RC", (4,)),  # which only 2024 has
    ],
)
def test_the_region_meant_is_found_without_a_flag(volume, wanted, labels):
    (region,) = regions_of(volume, wanted)
    assert region.labels == labels


@pytest.mark.parametrize(
    ("values", "wanted", "fitting"),
    [
        ((1, 2, 3), "TC", "brats2023, msd, nnunet"),  # necrosis or edema is 1?
        ((1, 2, 3, 4), "WT", "brats2015, brats2024, brats2024-ped"),  # tumour or cavity is 4?
        ((1, 2, 3), "all", "brats2023, msd, nnunet"),
    ],
)
def test_a_region_that_depends_on_the_scheme_is_an_error_that_names_the_flag(
    values, wanted, fitting
):
    with pytest.raises(LabelError, match=f"fit several schemes: {fitting}") as caught:
        regions_of(label_map(*values), wanted)
    assert caught.value.hint == f"say which it is with --labels, one of {fitting}"


def test_the_scheme_that_the_user_gives_wins_over_the_name():
    name = "BraTS2021_00006_seg.nii.gz"
    (region,) = regions_of(label_map(1, 2, name=name), "TC", labels="nnunet")
    assert region.labels == (2, 3)
    with pytest.raises(LabelError, match="holds label 4, which label scheme msd"):
        regions_of(label_map(4, name=name), "WT", labels="msd")


def test_a_post_treatment_grid_tells_the_year():
    data = np.zeros((182, 218, 182), dtype=np.uint8)
    data[90, 100, 90:94] = [1, 2, 3, 4]
    later = volume(data, np.eye(4), path=Path("BraTS-GLI-00005-100-seg.nii.gz"))
    assert [region.name for region in regions_of(later, "all")] == ["WT", "TC", "ET", "RC"]


def test_the_scheme_in_the_header_is_known(tmp_path):
    def written(scheme: str) -> Volume:
        labels = label_map(1, 2, 3)
        write_labels(tmp_path / f"{scheme}.nii.gz", labels.data, labels.grid, SCHEMES[scheme])
        return read_labels(tmp_path / f"{scheme}.nii.gz")

    assert regions_of(written("brats2023"), "TC")[0].labels == (1, 3)
    assert regions_of(written("msd"), "TC")[0].labels == (2, 3)


def test_all_regions_are_those_that_are_not_empty():
    regions = regions_of(label_map(1, 2, name="BraTS2021_01477_seg.nii.gz"), "all")
    assert [region.name for region in regions] == ["WT", "TC"]
    with pytest.raises(MeshError, match=r"seg\.nii\.gz has no tumour in any region"):
        regions_of(label_map(), "all")


def test_an_empty_region_tells_what_the_map_holds():
    with pytest.raises(
        MeshError, match=r"seg\.nii\.gz has no TC: its voxels are 0, 2, none is 1 or 4$"
    ) as caught:
        list(region_surfaces(label_map(2), "TC", labels="brats2020"))
    assert caught.value.hint == "choose another --region, or all for those that are there"


def test_a_surface_comes_with_the_volume_of_its_voxels():
    # Two voxels of 1 x 2 x 3 mm, which do not touch.
    volume = label_map(1, 2, 4, affine=np.diag([-1.0, 2, 3, 1]))
    (core,) = region_surfaces(volume, "TC")
    assert core.region.name == "TC"
    assert core.voxels_mm3 == pytest.approx(2 * 6)
    assert core.mesh.volume_mm3 == pytest.approx(2 * 6)


@pytest.mark.real
@pytest.mark.skipif(not REAL.exists(), reason="the real cases are not in ../shared/data")
@pytest.mark.parametrize("case", ["BraTS2021_01479", "BraTS2021_01482", "BraTS-GLI-00000-000"])
def test_real_tumours_are_closed_where_they_lie_and_of_the_volume_of_their_voxels(case):
    (path,) = (REAL / "cases" / case).glob("*seg.nii.gz")
    labels = read_labels(path)
    surfaces = list(region_surfaces(labels, "all"))
    assert [each.region.name for each in surfaces] == ["WT", "TC", "ET"]
    assert all(each.mesh.is_closed for each in surfaces)
    whole, indices = surfaces[0], np.argwhere(labels.data > 0)
    assert whole.voxels_mm3 == len(indices)  # of 1 mm3
    assert whole.mesh.volume_mm3 == pytest.approx(whole.voxels_mm3)
    centre = labels.affine @ [*indices.mean(axis=0), 1]
    np.testing.assert_allclose(centroid(whole.mesh), centre[:3], atol=0.1)


def centroid(mesh: TriangleMesh) -> np.ndarray:
    """Centre of the enclosed volume: each face spans a tetrahedron with the origin."""
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
    volumes = np.einsum("ij,ij->i", a, np.cross(b, c)) / 6
    return (volumes[:, None] * (a + b + c) / 4).sum(axis=0) / volumes.sum()
