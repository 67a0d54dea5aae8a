import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import REAL, needs_real, volume

from brats_cli.core.errors import UnreadableFileError
from brats_cli.core.prepared.preparation import (
    MARGIN,
    brain_of,
    from_grid,
    prepare,
    prepare_labels,
    resample,
    to_native,
)

# BraTS's own axes: to left, posterior and superior.
LPS = np.array([[-1.0, 0, 0, 3], [0, -1.0, 0, 239], [0, 0, 1.0, -7], [0, 0, 0, 1]])

ORIENTATIONS = [
    np.array([*zip(axes, signs, strict=True)])
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def axcodes(orientation):
    return "".join(nib.orientations.ornt2axcodes(orientation))


def brain(seed=0, shape=(9, 8, 7)):
    """Random intensities in a box of 4 x 4 x 3 voxels near the middle, 0 around it."""
    data = np.zeros(shape, dtype=np.float32)
    data[3:7, 3:7, 3:6] = np.random.default_rng(seed).uniform(50, 90, (4, 4, 3))
    return data


def turned(scan, orientation):
    """The same scan as nibabel stores it with other axes."""
    image = nib.Nifti1Image(scan.data, scan.affine).as_reoriented(orientation)
    return volume(np.asarray(image.dataobj), image.affine)


def line(values, *, affine=None):
    """A column of voxels with the values given, and background all around it."""
    data = np.zeros((5, 5, len(values) + 4), dtype=np.float32)
    data[2, 2, 2:-2] = values
    return volume(data, np.eye(4) if affine is None else affine)


# --- intensities -------------------------------------------------------------------------------


def test_z_scores_after_clipping_by_hand():
    # 1 to 201 has 0.995 * 200 = 199 ranks below its 99.5th percentile, which is thus 200. So 201
    # becomes 200: mean (201 * 101 - 1) / 201 = 20300 / 201, mean square by sum of n^2 to 200.
    # A thousand more changes no z-score, and keeps the column from being taken for a rim.
    prepared = prepare([line(1000 + np.arange(1.0, 202))])
    mean = 20300 / 201
    mean_square = (200 * 201 * 401 / 6 + 200**2) / 201
    std = (mean_square - mean**2) ** 0.5
    scores = prepared.images[0][prepared.brain]
    np.testing.assert_allclose(scores[:200], (np.arange(1, 201) - mean) / std, atol=1e-5)
    assert scores[200] == scores[199]


def test_the_brain_has_mean_0_and_standard_deviation_1_and_the_rest_is_0():
    prepared = prepare([volume(brain(seed), np.eye(4)) for seed in range(2)])
    assert prepared.images.dtype == np.float32
    for image in prepared.images:
        inside = image[prepared.brain].astype(float)
        assert inside.mean() == pytest.approx(0, abs=1e-6)
        assert inside.std() == pytest.approx(1, abs=1e-6)
        assert not image[~prepared.brain].any()


def test_the_brain_is_where_any_modality_has_signal():
    # The second modality's one voxel counts as brain in the first too: -1 / sqrt(2) there,
    # 1 / sqrt(2) and 0 in none: of (4, 0) mean 2 and deviation 2 make 1 and -1.
    first, second = line([4.0, 0]), line([0, 7.0])
    prepared = prepare([first, second])
    assert prepared.brain.sum() == 2
    np.testing.assert_allclose(prepared.images[0][prepared.brain], [1, -1], atol=0.02)
    np.testing.assert_allclose(prepared.images[1][prepared.brain], [-1, 1], atol=0.02)


def test_a_modality_without_contrast_is_0_everywhere_and_not_nan():
    prepared = prepare([line([5.0, 5, 5])])
    assert prepared.brain.sum() == 3
    assert not prepared.images.any()


# --- the box, and the grid ---------------------------------------------------------------------


def test_the_box_keeps_two_voxels_around_the_brain_and_stays_in_the_grid():
    # Brain from 3 to 6, 3 to 6 and 3 to 5: from 1, and to 8, 8 and 7 (the grid ends there).
    prepared = prepare([volume(brain(), np.eye(4))])
    assert prepared.images.shape == (1, 8, 7, 6)
    np.testing.assert_array_equal(prepared.affine[:3, 3], [1, 1, 1])
    np.testing.assert_array_equal(prepared.brain, brain()[1:, 1:, 1:] != 0)


def test_the_box_holds_what_any_modality_shows():
    # Signal from 2 to 4 in one, at 9 in the other: from 0 to 11, two more on each side.
    first, second = np.zeros((2, 20, 5, 5), dtype=np.float32)
    first[2:5, 2, 2] = second[9, 2, 2] = 1
    for images in [(first, second), (second, first)]:
        prepared = prepare([volume(image, np.eye(4)) for image in images])
        assert prepared.images.shape == (2, 12, 5, 5)


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=axcodes)
def test_every_way_to_store_a_scan_is_prepared_the_same_and_goes_back(orientation):
    scan = volume(brain(), LPS)
    expected = prepare([scan])
    stored = turned(scan, orientation)
    prepared = prepare([stored])
    np.testing.assert_array_equal(prepared.images, expected.images)
    np.testing.assert_allclose(prepared.affine, expected.affine)
    assert nib.aff2axcodes(prepared.affine) == ("R", "A", "S")
    # On LPS the scores go back with two flips, to where the box begins: voxel 1 of each axis.
    scores = np.zeros(scan.shape, dtype=np.float32)
    scores[1:, 1:, 1:] = expected.images[0][::-1, ::-1]
    np.testing.assert_array_equal(
        to_native(prepared.images[0], prepared.affine, stored.grid),
        turned(volume(scores, LPS), orientation).data,
    )


def test_labels_lie_on_the_images_and_come_back():
    labels = np.zeros((9, 8, 7), dtype=np.uint8)
    labels[3:7, 3:7, 3:6] = np.random.default_rng(1).integers(0, 4, (4, 4, 3))
    scan = volume(brain(), LPS)
    prepared = prepare([scan])
    found = prepare_labels(volume(labels, LPS), prepared)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, labels[:0:-1, :0:-1, 1:])  # from 1 on, x and y flipped
    np.testing.assert_array_equal(to_native(found, prepared.affine, scan.grid), labels)


# --- what interpolation left -------------------------------------------------------------------


def cube(inside, around, beyond=0.0, *, edge=20):
    """A cube with 8 voxels of margin, in a rim of one voxel, in ripples beyond that."""
    data = np.full((edge, edge, edge), beyond)
    data[7:-7, 7:-7, 7:-7] = around
    data[8:-8, 8:-8, 8:-8] = inside
    return data


def test_a_rim_that_is_dim_in_all_images_is_no_brain():
    core = cube(1, 0) > 0
    np.testing.assert_array_equal(brain_of([cube(100, 19), cube(70, 13)]), core)
    np.testing.assert_array_equal(brain_of([cube(100, 19), cube(70, 15)]), cube(1, 1) > 0)


def test_ripples_beyond_the_brain_are_no_brain():
    core = cube(1, 0) > 0
    np.testing.assert_array_equal(brain_of([cube(100, 5, 1.9), cube(70, 2, -1.3)]), core)


def test_what_is_dim_inside_the_brain_is_brain():
    # Three voxels below the surface, as in the ventricles of a T1.
    image = cube(100, 100)
    image[10, 10, 10] = 3
    assert brain_of([image])[10, 10, 10]


def test_the_edge_of_the_image_is_no_edge_of_the_brain():
    # A single slice, in which the left half is dark.
    image = np.full((20, 20, 1), 100.0)
    image[:10] = 5
    assert brain_of([image]).all()


def test_of_z_scores_all_is_brain_that_is_not_0():
    image = np.zeros((9, 9, 9))
    image[2:7, 2:7, 2:7] = np.linspace(-2, 2, 125).reshape(5, 5, 5)
    np.testing.assert_array_equal(brain_of([image]), image != 0)


def test_ripples_change_nothing():
    plain = prepare([volume(cube(100, 0), LPS)])
    rippled = prepare([volume(cube(100, 15, 1), LPS)])
    np.testing.assert_array_equal(rippled.images, plain.images)
    np.testing.assert_array_equal(rippled.affine, plain.affine)


# --- other grids -------------------------------------------------------------------------------


def ramp(affine, shape):
    """3 + 2 x - y + 5 z of the world position of each voxel."""
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = voxels @ affine[:3, :3].T + affine[:3, 3]
    return 3 + world @ [2, -1, 5]


def test_a_2_mm_grid_keeps_its_positions_at_1_mm():
    # Voxels at 100, 102, ..., 140 mm cover 41 voxels of 1 mm, and likewise for the others.
    coarse = np.diag([2.0, 2, 2, 1])
    coarse[:3, 3] = 100, 200, 300
    prepared = prepare([volume(ramp(coarse, (21, 22, 23)), coarse)])
    assert prepared.images.shape == (1, 41, 43, 45)
    np.testing.assert_array_equal(
        prepared.affine, [[1, 0, 0, 100], [0, 1, 0, 200], [0, 0, 1, 300], [0, 0, 0, 1]]
    )
    # A z-score is a multiple of the intensity plus a constant, below the clip. A spline is
    # reflected at the edge, which from 8 voxels of 2 mm on changes nothing (0.27^8 is 3e-5).
    middle = np.s_[16:-16, 16:-16, 16:-16]
    world, found = ramp(prepared.affine, (41, 43, 45)), prepared.images[0]
    slope, offset = np.polyfit(world[middle].ravel(), found[middle].ravel(), 1)
    np.testing.assert_allclose(found[middle], slope * world[middle] + offset, atol=1e-4)
    # At the edge, it changes the spread by less than 2 in 1000.
    assert slope == pytest.approx(1 / np.minimum(world, np.percentile(world, 99.5)).std(), rel=2e-3)


@pytest.mark.parametrize("order", [1, 3])
def test_a_linear_ramp_stays_that_ramp_on_an_oblique_grid(order):
    angle = np.radians(20)
    oblique = np.eye(4)
    oblique[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    oblique[:3, 3] = -5, 2, 1
    fine = np.eye(4)
    fine[:3, 3] = -5, 12, 6
    found = resample(ramp(oblique, (30, 30, 30)), oblique, fine, (9, 9, 15), order=order)
    # The grid lies 5 voxels within the oblique one, so that a spline does not feel its edge.
    np.testing.assert_allclose(found, ramp(fine, (9, 9, 15)), atol=0.02 if order == 3 else 1e-4)


def test_whole_numbers_are_interpolated_to_fractions_and_below_zero():
    # A single 9 among zeros, and half-way between voxels. The spline's coefficients are sqrt(3) z^k
    # with z = sqrt(3) - 2, and a B-spline is 23/48 and 1/48 at 0.5 and 1.5: 1.5 voxels away it is
    # 9 sqrt(3) ((1 + z^3) / 48 + 23/48 (z + z^2)) = -1.147, in unsigned numbers a bright voxel.
    column = np.zeros((9, 1, 1), dtype=np.uint8)
    column[4] = 9
    half = np.diag([0.5, 1, 1, 1])
    lines = resample(column, np.eye(4), half, (17, 1, 1), order=1)
    np.testing.assert_allclose(lines[6:11, 0, 0], [0, 4.5, 9, 4.5, 0])
    spline = resample(column, np.eye(4), half, (17, 1, 1), order=3)
    assert spline[8] == pytest.approx(9, rel=1e-5)
    assert spline[5] == spline[11] == pytest.approx(-1.147, abs=0.01)


def test_a_nearly_1_mm_grid_is_not_interpolated():
    # 0.999999 mm, as float32 headers say it.
    scan = volume(brain(), LPS)
    nearly = volume(brain(), LPS * np.array([0.999999, 1, 1, 1]))
    np.testing.assert_array_equal(prepare([nearly]).images, prepare([scan]).images)


def test_a_2_mm_mask_goes_there_and_back():
    # A cube of 4 voxels of 2 mm: in its middle nothing is lost by the interpolations.
    coarse = np.diag([-2.0, -2, 2, 1])
    data = np.zeros((10, 10, 10), dtype=np.float32)
    data[3:7, 3:7, 3:7] = np.random.default_rng(0).uniform(50, 90, (4, 4, 4))
    scan = volume(data, coarse)
    prepared = prepare([scan])
    # From the first to the last of 4 voxels of 2 mm are 7 of 1 mm, a half-bright one lies on each
    # side, and two of background.
    assert prepared.images.shape == (1, 13, 13, 13)
    labels = prepare_labels(volume((data > 0).astype(np.uint8), coarse), prepared)
    back = to_native(labels.astype(np.float32), prepared.affine, scan.grid) >= 0.5
    np.testing.assert_array_equal(back, data > 0)


def test_voxels_that_grow_are_averaged_first():
    # 0 and 1 in turn at 0.5 mm: every second voxel alone would be 0 everywhere. A Gaussian of
    # (2 - 1) / 2 = 0.5 voxels weighs the neighbours exp(-2) and those beyond them exp(-8), so
    # that a voxel of 0 becomes 2 exp(-2) / (1 + 2 exp(-2) + 2 exp(-8)) = 0.2129.
    stripes = np.tile(np.array([0.0, 1.0]), (12, 12, 6))
    fine = np.diag([0.5, 0.5, 0.5, 1])
    found = resample(stripes, fine, np.eye(4), (6, 6, 6), order=1)
    np.testing.assert_allclose(found[2:4, 2:4, 2:4], 0.2129, atol=1e-4)


@pytest.mark.parametrize("shift", [-4, 0, 2, 30])
def test_copying_beyond_the_source_gives_0(shift):
    # Target voxel t is source voxel t + shift, where there is one.
    values = np.arange(1.0, 9).reshape(8, 1, 1)
    target = np.eye(4)
    target[0, 3] = shift
    found = from_grid(values, np.eye(4), target, (10, 1, 1), order=1)
    expected = [t + shift + 1 if 0 <= t + shift < 8 else 0 for t in range(10)]
    np.testing.assert_array_equal(found[:, 0, 0], expected)


# --- images that cannot be prepared ------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_voxel_that_is_no_number_names_the_file(value):
    data = brain()
    data[0, 0, 0] = value
    with pytest.raises(UnreadableFileError) as caught:
        prepare([volume(brain(), LPS), volume(data, LPS, path=Path("x_t2.nii.gz"))])
    assert str(caught.value) == "cannot read x_t2.nii.gz: it holds NaN or infinite voxels"
    assert caught.value.hint == "repair it: brats check --fix"


def test_an_image_of_zeros_names_the_file():
    empty = volume(np.zeros((9, 8, 7), np.float32), LPS, path=Path("x_t1.nii.gz"))
    with pytest.raises(UnreadableFileError, match="every voxel is 0"):
        prepare([volume(brain(), LPS), empty])


# --- real cases --------------------------------------------------------------------------------


@pytest.mark.real
@needs_real
def test_a_real_label_map_goes_there_and_back_voxel_for_voxel():
    from brats_cli.core.data.cases import read_images
    from brats_cli.core.data.finding import case_at
    from brats_cli.core.images.nifti import read_labels

    case = case_at(REAL / "cases" / "BraTS-GLI-00000-000")
    volumes = read_images(case, ("flair",))
    prepared = prepare(volumes)
    label_map = read_labels(case.label)
    labels = prepare_labels(label_map, prepared)
    assert labels.shape == prepared.images.shape[1:]
    assert labels.size < label_map.data.size / 2  # the brain box is less than half of the grid
    np.testing.assert_array_equal(
        to_native(labels, prepared.affine, volumes[0].grid), label_map.data
    )
    assert MARGIN == 2
