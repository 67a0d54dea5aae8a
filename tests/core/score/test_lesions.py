"""Hand-drawn lesions; the numbers follow from the published rules, worked out beside them."""

import math

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, generate_binary_structure

from brats_cli.core.errors import ConfigError
from brats_cli.core.images.grid import Grid
from brats_cli.core.score.lesions import dilated, lesion_rules, score_lesions

SHAPE = (60, 20, 20)
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])
AFFINE[:3, 3] = (10, 20, 30)


def boxes(*spans, shape=SHAPE):
    """A mask of blocks (start, stop along X), each 4 x 4 voxels across in the middle."""
    mask = np.zeros(shape, dtype=bool)
    for start, stop in spans:
        mask[start:stop, 8:12, 8:12] = True
    return mask


def lesions(reference, predicted, *, year="2023", challenge="GLI", region="WT", **tissues):
    grid = Grid(reference.shape, AFFINE)
    rules = lesion_rules(year, challenge, region, grid)
    return score_lesions(reference, predicted, rules, grid, **tissues)


def counts(found):
    return found.lesions, found.lesions_found, found.lesions_missed, found.lesions_invented


def test_one_found_one_missed_one_invented():
    # Blocks of 16 voxels a slice. Lesion A at 2-9 (128 mm3) is hit by 4-9 (96): Dice
    # 2 x 96 / (128 + 96) = 6/7. Lesion B at 20-25 (96) is missed. 40-41 (32) is invented.
    found = lesions(boxes((2, 10), (20, 26)), boxes((4, 10), (40, 42)))
    assert counts(found) == (2, 1, 1, 1)
    assert found.lesion_dice == pytest.approx((6 / 7 + 0 + 0) / 3)
    # A's end is 2 mm off: 95 % of the area is reached there, of the reference's surface.
    a, b, invented = found.table
    assert a.hausdorff95_mm == 2
    assert found.lesion_hausdorff95_mm == pytest.approx((2 + 374 + 374) / 3)
    assert (a.kind, b.kind, invented.kind) == ("found", "missed", "invented")
    assert (a.reference_mm3, a.predicted_mm3) == (128, 96)
    assert (b.reference_mm3, b.predicted_mm3) == (96, 0)
    assert (invented.reference_mm3, invented.predicted_mm3) == (0, 32)
    # The centre of voxels 2-9, 8-11, 8-11 is (5.5, 9.5, 9.5); X and Y are mirrored.
    assert (a.x_mm, a.y_mm, a.z_mm) == (10 - 5.5, 20 - 9.5, 30 + 9.5)


def test_one_prediction_across_two_lesions_finds_both_and_is_counted_whole_with_each():
    # Lesions 2-9 and 20-27, 128 voxels each and too far apart (10) to be one after 2 x 3
    # dilations. The prediction 2-27 has 416: Dice 2 x 128 / (128 + 416) with each.
    found = lesions(boxes((2, 10), (20, 28)), boxes((2, 28)))
    assert counts(found) == (2, 2, 0, 0)
    assert found.lesion_dice == pytest.approx(256 / 544)
    assert [each.predicted_mm3 for each in found.table] == [416, 416]


def test_a_lesion_of_the_size_that_is_dropped_does_not_count():
    # 2023, GLI: up to 50 mm3. 50 voxels of 1 mm in a row of 2 x 1 across, and 52.
    masks = np.zeros((2, *SHAPE), dtype=bool)
    masks[0, 5:30, 8:10, 8] = True
    masks[1, 5:31, 8:10, 8] = True
    assert counts(lesions(masks[0], masks[0])) == (0, 0, 0, 0)
    assert counts(lesions(masks[1], masks[1])) == (1, 1, 0, 0)


def test_predicted_components_are_merged_by_dilation_except_in_men():
    # 2024: 4-7 and 9-12, 64 voxels each and one apart, which one dilation of each bridges.
    predicted, nothing = boxes((4, 8), (9, 13)), boxes()
    assert counts(lesions(nothing, predicted, year="2024", challenge="MET"))[3] == 1
    assert counts(lesions(nothing, predicted, year="2024", challenge="MEN"))[3] == 2


def test_cavities_are_united_by_enhancing_tumour_and_necrosis_by_their_own_rules():
    # GLI 2024: 3 dilations and up to 10 voxels for ET, 5 and 20 for the other tissues.
    rules = lesion_rules("2024", "GLI", "RC", Grid(SHAPE, AFFINE))
    united = {each.tissue: (each.dilations, each.dropped_voxels) for each in rules.united_by}
    assert united == {"ET": (3, 10), "NCR": (5, 20)}


def test_components_that_meet_when_dilated_are_one_lesion():
    # 2-9 and 14-21 are 4 voxels apart; three dilations of each side bridge up to 6.
    reference = boxes((2, 10), (14, 22))
    assert counts(lesions(reference, boxes((2, 10)))) == (1, 1, 0, 0)
    # MET dilates once, and has two lesions, of which the second is missed.
    assert counts(lesions(reference, boxes((2, 10)), challenge="MET")) == (2, 1, 1, 0)


def test_all_components_that_touch_the_dilated_lesion_are_united_with_it():
    # Lesion 10-17. Predictions 10-13 and 20-21, the latter 3 voxels beyond: the dilated lesion
    # ends at 20 and touches it. Dice 2 x 64 / (128 + 64 + 32).
    found = lesions(boxes((10, 18)), boxes((10, 14), (20, 22)))
    assert counts(found) == (1, 1, 0, 0)
    assert found.lesion_dice == pytest.approx(128 / 224)
    # One voxel further it is invented.
    assert counts(lesions(boxes((10, 18)), boxes((10, 14), (21, 23)))) == (1, 1, 0, 1)


def test_lesions_of_50_mm3_or_less_do_not_count_but_what_touches_them_is_not_invented():
    # 3 slices are 48 mm3. Alone there is neither a lesion nor an invented one: Dice 1, HD95 0.
    small = lesions(boxes((10, 13)), boxes((10, 13)))
    assert counts(small) == (0, 0, 0, 0)
    assert (small.lesion_dice, small.lesion_hausdorff95_mm) == (1, 0)
    assert [each.counts for each in small.table] == [False]
    # Missed as well: it costs nothing. In MET, whose limit is 2 mm3, it does.
    assert lesions(boxes((10, 13)), boxes()).lesion_dice == 1
    assert lesions(boxes((10, 13)), boxes(), challenge="MET").lesion_dice == 0


def test_a_single_invented_voxel_counts_in_2023_and_is_dropped_in_2024():
    predicted = boxes((10, 18))
    reference = predicted.copy()
    predicted[40, 0, 0] = True
    old = lesions(reference, predicted)
    assert (old.lesion_dice, old.lesion_hausdorff95_mm) == (1 / 2, 374 / 2)
    new = lesions(reference, predicted, year="2024")
    assert (new.lesion_dice, new.lesion_hausdorff95_mm, new.lesions_invented) == (1, 0, 0)
    assert math.isnan(old.lesion_surface_dice_1)
    assert new.lesion_surface_dice_1 == pytest.approx(1, abs=1e-8)


def test_predictions_are_merged_by_dilation_in_2024():
    # Two invented blocks 4 voxels apart are one.
    reference, predicted = boxes((2, 10)), boxes((2, 10), (30, 36), (40, 46))
    assert lesions(reference, predicted).lesions_invented == 2
    found = lesions(reference, predicted, year="2024")
    assert found.lesions_invented == 1
    assert found.lesion_hausdorff95_mm == 337 / 2
    # MEN merged nothing then, and charges 374.
    other = lesions(reference, predicted, year="2024", challenge="MEN")
    assert (other.lesions_invented, other.lesion_hausdorff95_mm) == (2, 374 * 2 / 3)


def test_what_is_invented_costs_nothing_in_men_rt():
    found = lesions(boxes((2, 10)), boxes((2, 10), (30, 36)), year="2024", challenge="MEN-RT")
    assert (found.lesion_dice, found.lesions_invented) == (1, 1)


def test_the_surface_dice_of_2024_is_the_mean_of_both_directions():
    # A row of 5 voxels of which 3 are found, and nothing else. At 0.5 mm 3/5 of one direction and
    # 3/3 of the other; at 1 mm 4/5 and 3/3.
    reference, predicted = np.zeros((2, 30, 5, 5), dtype=bool)
    reference[5:10, 2, 2] = predicted[5:8, 2, 2] = True
    found = lesions(reference, predicted, year="2024", challenge="MET")
    assert found.lesion_surface_dice_05 == pytest.approx((3 / 5 + 1) / 2, abs=1e-8)
    assert found.lesion_surface_dice_1 == pytest.approx((4 / 5 + 1) / 2, abs=1e-8)
    # A prediction of 2 voxels is dropped, and the lesion missed.
    predicted[7, 2, 2] = False
    assert lesions(reference, predicted, year="2024", challenge="MET").lesion_dice == 0


def test_enhancing_lesions_around_one_necrosis_are_one_in_2024():
    # ET at 2-7 and 18-23, too far apart to be merged; the necrosis 8-17 between touches both.
    et, necrosis, nothing = boxes((2, 8), (18, 24)), boxes((8, 18)), boxes()
    tissues = {"NCR": necrosis, "RC": nothing}
    none = {"NCR": nothing, "RC": nothing}
    with_necrosis = lesions(
        et, boxes((2, 8)), year="2024", region="ET",
        reference_tissues=tissues, predicted_tissues=none,
    )  # fmt: skip
    assert counts(with_necrosis) == (1, 1, 0, 0)
    without = lesions(
        et, boxes((2, 8)), year="2024", region="ET", reference_tissues=none, predicted_tissues=none
    )
    assert counts(without) == (2, 1, 1, 0)


def test_nothing_at_all_scores_1_and_0():
    found = lesions(boxes(), boxes())
    assert (found.lesion_dice, found.lesion_hausdorff95_mm, found.table) == (1, 0, ())
    assert lesions(boxes(), boxes(), year="2024").lesion_surface_dice_05 == 1


@pytest.mark.parametrize("times", [1, 3, 5])
def test_dilation_is_that_of_scipy_at_the_edge_too(times):
    mask = np.random.default_rng(times).random((14, 13, 12)) < 0.004
    mask[0, 0, 0] = mask[-1, 5, -1] = True
    theirs = binary_dilation(mask, generate_binary_structure(3, 2), iterations=times)
    np.testing.assert_array_equal(dilated(mask, times), theirs)


@pytest.mark.parametrize(
    ("year", "challenge", "region", "dilations", "dropped_mm3"),
    [
        *[("2023", name, "WT", 3, 50) for name in ("GLI", "SSA", "PED")],
        ("2023", "MEN", "ET", 1, 50),
        ("2023", "MET", "ET", 1, 2),
        ("2024", "GLI", "WT", 3, 20),
        ("2024", "GLI", "ET", 3, 10),
        ("2024", "GLI", "RC", 5, 20),
        ("2024", "PED", "ET", 5, 10),
        ("2024", "SSA", "TC", 3, 50),
        ("2024", "MEN", "TC", 1, 50),
        ("2024", "MEN-RT", "GTV", 1, 50),
        ("2024", "MET", "TC", 1, 2),
    ],
)
def test_the_table_of_rules(year, challenge, region, dilations, dropped_mm3):
    rules = lesion_rules(year, challenge, region, Grid((240, 240, 155), AFFINE))
    assert (rules.dilations, rules.dropped_mm3) == (dilations, dropped_mm3)


def test_2023_had_no_radiotherapy():
    with pytest.raises(ConfigError, match="BraTS 2023 had no lesion-wise scores for MEN-RT"):
        lesion_rules("2023", "MEN-RT", "GTV", Grid(SHAPE, AFFINE))
