import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import volume

from brats_cli.core.errors import BratsWarning, GridMismatchError
from brats_cli.core.images.grid import Grid, bounding_box, on_one_grid, require_same_grid

# Axes to left, posterior and superior, voxels of 1 x 2 x 3 mm.
AFFINE = np.array([[-1.0, 0, 0, 5], [0, -2, 0, 7], [0, 0, 3, -9], [0, 0, 0, 1]])


def test_spacing_and_volume_by_hand():
    grid = Grid((2, 3, 4), AFFINE)
    assert grid.spacing_mm == (1.0, 2.0, 3.0)
    assert grid.voxel_mm3 == 6.0
    assert grid.determinant == pytest.approx(6)  # two mirrored axes cancel out


def test_oblique_axes_have_their_length():
    # 3 mm along (0.6, 0.8, 0): the first column is (1.8, 2.4, 0).
    affine = np.array([[1.8, -0.8, 0, 0], [2.4, 0.6, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
    assert Grid((2, 2, 2), affine).spacing_mm == pytest.approx((3.0, 1.0, 2.0))


@pytest.mark.parametrize(
    ("affine", "usable"),
    [
        (np.diag([-1.0, 1, 1, 1]), True),
        (np.diag([1.0, 1, 0, 1]), False),
        (np.diag([np.nan, 1, 1, 1]), False),
        (np.diag([np.inf, 1, 1, 1]), False),
        (np.diag([1e-5, 1e-5, 1e-5, 1]), False),
    ],
)
def test_a_flat_or_endless_affine_is_not_usable(affine, usable):
    assert Grid((2, 2, 2), affine).is_usable is usable


def test_what_is_cropped_keeps_its_place():
    cropped = Grid((5, 6, 7), AFFINE, qform=AFFINE).crop(np.s_[1:3, 2:6, 3:7])
    assert cropped.shape == (2, 4, 4)
    # Voxel (1, 2, 3) of the whole, as above, is (0, 0, 0) of the part.
    assert cropped.affine[:3, 3].tolist() == [4, 3, 0]
    assert cropped.qform[:3, 3].tolist() == [4, 3, 0]


@pytest.mark.parametrize(
    ("margin", "expected"),
    [(0, np.s_[2:4, 1:2, 0:3]), (1, np.s_[1:5, 0:3, 0:4]), (9, np.s_[0:6, 0:5, 0:4])],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_bounding_box_by_hand(margin, expected, order):
    mask = np.zeros((6, 5, 4), dtype=bool, order=order)
    mask[2, 1, 0] = mask[3, 1, 2] = True
    assert bounding_box(mask, margin=margin) == expected


def test_the_box_of_an_empty_mask_is_empty():
    assert bounding_box(np.zeros((6, 5, 4), dtype=bool), margin=1) == np.s_[0:0, 0:0, 0:0]


def moved(x=0.0, degrees=0.0):
    turn = np.eye(4)
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn[:2, :2] = [[cosine, -sine], [sine, cosine]]
    turn[0, 3] = x
    return volume(np.zeros((11, 11, 11)), turn)


def test_corners_are_compared_in_millimetres():
    grid = moved().grid
    assert grid.distance_mm(moved(x=0.3).grid) == pytest.approx(0.3)
    # Turned by 90 degrees about (0, 0), (10, 10) goes to (-10, 10) and (10, 0) to (0, 10): the
    # farthest corner goes 10 * sqrt(4) = 20 mm.
    assert grid.distance_mm(moved(degrees=90).grid) == pytest.approx(20)


def test_a_hundredth_of_a_millimetre_is_the_same_place():
    with warnings.catch_warnings(record=True) as seen:
        require_same_grid([moved(), moved(x=0.0099), moved(x=-0.0099)])
    assert seen == []


def test_less_than_half_a_voxel_is_warned_about():
    with pytest.warns(BratsWarning, match=r"is 0.49 mm off the grid of .* taken as the same"):
        require_same_grid([moved(), moved(x=0.49)])


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (moved(x=0.51), "corners 0.51 mm apart"),
        (moved(x=np.nan), "corners nan mm apart"),
        (volume(np.zeros((11, 11, 12))), "11 x 11 x 12 voxels, not 11 x 11 x 11"),
    ],
)
def test_more_is_another_grid(other, difference):
    with pytest.raises(GridMismatchError, match=difference):
        require_same_grid([moved(), other])


# --- label maps that were stored otherwise -----------------------------------------------------

LABELS = np.zeros((5, 6, 7), np.uint8)
LABELS[1:3, 2:5, 3:6] = np.arange(1, 19).reshape(2, 3, 3)


def stored(take, turn=()):
    """A crop of `LABELS`, with some axes reversed, and the affine that it then has."""
    whole = volume(LABELS, AFFINE)
    data, grid = LABELS[take], whole.grid.crop(take)
    steps = np.eye(4)
    for axis in turn:
        data = np.flip(data, axis)
        steps[axis, axis], steps[axis, 3] = -1, data.shape[axis] - 1
    return volume(data, grid.affine @ steps)


@pytest.mark.parametrize(
    "other",
    [
        stored(np.s_[1:4, 1:6, 2:7]),
        stored(np.s_[1:3, 2:5, 3:6]),
        stored(np.s_[:, :, :], turn=(0,)),
        stored(np.s_[0:4, 2:5, 3:7], turn=(0, 1, 2)),
        volume(LABELS.transpose(2, 0, 1), AFFINE[:, [2, 0, 1, 3]]),
    ],
    ids=["cropped", "its box", "mirrored", "both", "axes in another order"],
)
def test_the_same_voxels_come_onto_one_grid_exactly(other):
    whole = volume(LABELS, AFFINE)
    for first, second in (on_one_grid(whole, other), on_one_grid(other, whole)[::-1]):
        assert np.array_equal(first.data, second.data)
        assert first.grid.distance_mm(second.grid) < 1e-9
        assert np.array_equal(np.sort(first.data, axis=None)[-18:], np.arange(1, 19))


def test_a_crop_that_would_lose_labels_is_padded_instead():
    crop = stored(np.s_[1:2, 2:5, 3:6])
    first, second = on_one_grid(crop, volume(LABELS, AFFINE))
    assert first.shape == second.shape == LABELS.shape
    assert np.array_equal(second.data, LABELS)


# By whole voxels as well: of two maps of one shape that are apart, one has a wrong header.
@pytest.mark.parametrize("shift", [2.5, 2.4, 1, 2, -3, 30])
def test_voxels_that_do_not_coincide_are_not_moved(shift):
    affine = AFFINE.copy()
    affine[:, 3] += AFFINE[:, 0] * shift
    with pytest.raises(GridMismatchError, match="corners"):
        on_one_grid(volume(LABELS, AFFINE), volume(LABELS, affine, path=Path("b.nii")))


# The identity, as ITK and FSL write it too; or codes that say nothing.
@pytest.mark.parametrize(
    "lost", [np.eye(4), np.diag([-1, -1, 1, 1.0]), np.diag([-1, 1, 1, 1.0]), AFFINE]
)
def test_a_lost_header_is_named_and_nothing_is_resampled(lost):
    one = volume(LABELS, AFFINE + np.diag([0, 0, 0, 0.0]), path=Path("t.nii"))
    moved = lost.copy()
    moved[0, 3] += 30 * (lost is AFFINE)
    codes = (1, 1) if lost is not AFFINE else (0, 0)
    grid = replace(volume(LABELS, moved).grid, codes=codes)
    other = replace(volume(LABELS, moved, path=Path("p.nii")), grid=grid)
    with pytest.raises(GridMismatchError) as caught:
        require_same_grid([one, other])
    assert caught.value.hint == (
        "p.nii lost its header (its affine is the identity, or has no code): if its voxels are "
        "those of t.nii, copy the affine of that; do not resample"
    )
