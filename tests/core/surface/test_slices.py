from __future__ import annotations

import numpy as np
import pytest

from brats_cli.core.surface.slices import between_slices, parts_of_slices


@pytest.mark.parametrize(
    ("spacing", "parts"),
    [((1, 1, 5), (1, 1, 5)), ((0.9, 1.1, 3), (1, 1, 3)), ((3, 1, 2.6), (3, 1, 3)),
     ((1, 1, 1.4), (1, 1, 1))],
)  # fmt: skip
def test_voxels_are_cut_until_their_sides_are_about_equal(spacing, parts):
    assert parts_of_slices(spacing) == parts


def test_between_a_square_and_a_shifted_one_lies_one_half_way():
    # Seen along y: two slices 4 mm apart, with voxels 2 to 6 and 4 to 8 of 1 mm. Half-way between
    # them the distance to the boundary is the mean of both slices', above 0 from 3 to 7.
    mask = np.zeros((12, 9, 2), dtype=bool)
    mask[2:7, 2:7, 0] = mask[4:9, 2:7, 1] = True
    finer, to_coarse = between_slices(mask, (1, 1, 4), (1, 1, 4))
    assert finer.shape == (14, 11, 13)  # 3 intervals of the padded slices in 4 parts
    np.testing.assert_allclose(to_coarse @ [1, 1, 4, 1], [0, 0, 0, 1])
    middle = finer[:, 1 + 4, 6]
    assert np.flatnonzero(middle).tolist() == [1 + each for each in range(3, 8)]


@pytest.mark.parametrize("seed", range(5))
def test_the_slices_themselves_stay_what_they_are(seed):
    mask = np.random.default_rng(seed).random((6, 7, 5)) < 0.4
    finer, _ = between_slices(mask, (1, 1, 3), (1, 1, 3))
    np.testing.assert_array_equal(finer[:, :, ::3], np.pad(mask, 1))
    # What is between them is next to one of them.
    between = finer[:, :, 1::3] | finer[:, :, 2::3]
    assert not (between & ~(finer[:, :, :-3:3] | finer[:, :, 3::3])).any()


def test_what_is_thin_ends_where_its_voxels_end():
    # A single voxel of 1 x 1 x 5 mm: its five parts, two of them on either side of the middle.
    mask = np.ones((1, 1, 1), dtype=bool)
    finer, _ = between_slices(mask, (1, 1, 5), (1, 1, 5))
    assert np.flatnonzero(finer[1, 1]).tolist() == [3, 4, 5, 6, 7]
    assert finer.sum() == 5
