import math
import sys

import numpy as np
import pytest
import scipy.ndimage

from brats_cli.core.score.surfaces import border_distances_mm, weighted_hausdorff95_mm

UNIT = (1.0, 1.0, 1.0)


def cube(edge, at, shape=(24, 12, 12)):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(start, start + edge) for start in at)] = True
    return mask


def blobs(seed, share, shape=(18, 17, 16)):
    field = scipy.ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.5)
    return field > np.quantile(field, 1 - share)


def test_two_voxels_are_as_far_apart_as_their_elements_of_surface():
    # Each voxel has eight elements around its corners; those of one lie 3 x 2 mm from those of
    # the other at every corner.
    assert weighted_hausdorff95_mm(cube(1, (2, 2, 2)), cube(1, (5, 2, 2)), (2.0, 1.0, 1.0)) == 6


def test_the_larger_direction_counts_and_is_not_pooled():
    # Reference: a voxel at 2. Prediction: the same, and one at 12: half of its area lies 10 mm
    # away from the reference, or 9 mm for the half of its eight elements that look back.
    reference = cube(1, (2, 2, 2))
    predicted = reference | cube(1, (12, 2, 2))
    assert weighted_hausdorff95_mm(reference, predicted, UNIT) == 10
    assert weighted_hausdorff95_mm(predicted, reference, UNIT) == 10


def test_area_decides_which_distance_95_percent_is():
    # A cube of 8 and a voxel 2 beyond it, against the cube alone. A cube of n has 6 (n - 1)^2
    # whole faces of 1 mm2, 12 (n - 1) edges of sqrt(2)/2 and 8 corners of sqrt(3)/8; a voxel has
    # the corners alone, 8 sqrt(3)/8 = 1.73 of about 355 mm2: 0.5 %, so that the percentile is 0.
    # Counted one by one, pooled or not, its 8 of 394 elements would not reach 5 % either; but
    # with ten such voxels they are 17 % of the elements and 4.7 % of the area.
    reference = cube(8, (0, 0, 0), shape=(24, 24, 24))
    predicted = reference.copy()
    predicted[::4, 12, 12] = predicted[2:14:4, 16, 16] = predicted[2, 20, 20] = True
    assert np.count_nonzero(predicted & ~reference) == 10
    area = 6 * 49 + 12 * 7 * math.sqrt(2) / 2 + math.sqrt(3)
    assert 10 * math.sqrt(3) / (area + 10 * math.sqrt(3)) < 0.05
    assert weighted_hausdorff95_mm(reference, predicted, UNIT) == 0


def test_an_empty_mask_has_no_surface():
    empty = np.zeros((4, 4, 4), dtype=bool)
    assert math.isnan(weighted_hausdorff95_mm(empty, ~empty, UNIT))
    assert math.isnan(weighted_hausdorff95_mm(~empty, empty, UNIT))


def test_border_distances_come_by_direction():
    there, back = border_distances_mm(cube(1, (2, 2, 2)), cube(2, (2, 2, 2)), UNIT)
    assert sorted(there) == pytest.approx([0, 1, 1, 1, *[2**0.5] * 3, 3**0.5])
    assert list(back) == [0]


@pytest.fixture
def surface_distance(monkeypatch):
    """DeepMind's package, which was written for NumPy 1."""
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)
    for name in ("filters", "morphology"):
        monkeypatch.setattr(scipy.ndimage, name, scipy.ndimage, raising=False)
    module = pytest.importorskip("surface_distance")
    yield module
    sys.modules.pop("surface_distance", None)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spacing", [UNIT, (0.9, 1.3, 2.5)], ids=["1 mm", "anisotropic"])
def test_it_equals_deepminds_robust_hausdorff_distance(surface_distance, seed, spacing):
    reference, predicted = blobs(seed, 0.15), blobs(seed + 50, 0.05)
    found = surface_distance.compute_surface_distances(reference, predicted, spacing)
    theirs = surface_distance.compute_robust_hausdorff(found, 95)
    assert weighted_hausdorff95_mm(reference, predicted, spacing) == pytest.approx(
        theirs, rel=0, abs=1e-9
    )
