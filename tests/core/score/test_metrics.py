import math
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
from helpers import REAL, needs_real
from medpy.metric import binary
from scipy.ndimage import gaussian_filter

from brats_cli.core.data.labels import SCHEMES
from brats_cli.core.images.nifti import read_labels
from brats_cli.core.score.conventions import BRATS_2022
from brats_cli.core.score.metrics import score

UNIT = (1.0, 1.0, 1.0)


def row(*voxels, length=10):
    """A mask of one row of voxels along X: all of them are border voxels."""
    mask = np.zeros((length, 1, 1), dtype=bool)
    mask[list(voxels)] = True
    return mask


def blobs(seed, *, shape=(30, 26, 22), share=0.1):
    """A mask of smooth random blobs that may touch the edge of the grid."""
    field = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2)
    return field > np.quantile(field, 1 - share)


def noise(seed, *, share, shape=(20, 18, 16)):
    return np.random.default_rng(seed).random(shape) < share


def by_medpy(reference, predicted, spacing):
    """What medpy's own functions say of the whole grid, one call a metric."""
    overlap = {
        "dice": binary.dc,
        "jaccard": binary.jc,
        "sensitivity": binary.sensitivity,
        "specificity": binary.specificity,
        "precision": binary.precision,
    }
    distance = {
        "hausdorff_mm": binary.hd,
        "hausdorff95_mm": binary.hd95,
        "assd_mm": binary.assd,
    }
    return {name: metric(predicted, reference) for name, metric in overlap.items()} | {
        name: metric(predicted, reference, voxelspacing=spacing)
        for name, metric in distance.items()
    }


def assert_equals_medpy(reference, predicted, spacing):
    ours = asdict(score(reference, predicted, spacing))
    for name, theirs in by_medpy(reference, predicted, spacing).items():
        assert ours[name] == pytest.approx(theirs, rel=0, abs=1e-9), name


def test_every_metric_of_two_rows_that_overlap_by_half():
    # Reference 1-4, prediction 3-6, in 10 voxels 2 mm long: 2 common, 6 in the union.
    found = score(row(1, 2, 3, 4), row(3, 4, 5, 6), (2.0, 1.0, 1.0), tolerance_mm=2.0)
    assert found.dice == 2 * 2 / (4 + 4)
    assert found.jaccard == 2 / 6
    assert found.sensitivity == 2 / 4
    assert found.precision == 2 / 4
    # 4 of the 10 voxels are in neither, 2 of the 6 outside the reference were drawn.
    assert found.specificity == 4 / 6
    # Voxels 1, 2 lie 4 and 2 mm from 3; voxels 6, 5 lie 4 and 2 mm from 4; the others on both:
    # pooled 0 0 0 0 2 2 4 4, and 95 % of the way is between the two last.
    assert found.hausdorff_mm == 4
    assert found.hausdorff95_mm == 4
    assert found.assd_mm == 12 / 8
    assert found.surface_dice == 6 / 8
    assert (found.reference_mm3, found.predicted_mm3) == (4 * 2, 4 * 2)


def test_hd95_pools_both_directions_before_the_percentile():
    # Reference 0-9; prediction 0-9 and 14. Directed: ten zeros one way, ten zeros and 5 mm the
    # other. The larger directed percentile would be 95 % of the way through 11 values, at
    # 9.5: 2.5 mm. Pooled there are 21 values, and the 95th percentile, at 19, is 0.
    found = score(row(*range(10), length=20), row(*range(10), 14, length=20), UNIT)
    assert found.hausdorff95_mm == 0
    assert found.hausdorff_mm == 5


def test_sensitivity_and_precision_are_not_swapped():
    found = score(row(1, 2, 3, 4), row(1), UNIT)
    assert (found.sensitivity, found.precision) == (1 / 4, 1)


def test_surface_dice_counts_a_neighbour_one_voxel_away_despite_float32_spacing():
    spacing = (float(np.float32(1) + np.float32(1e-7)), 1.0, 1.0)
    assert spacing[0] > 1
    assert score(row(3), row(4), spacing, tolerance_mm=1.0).surface_dice == 1


def test_the_tolerance_decides_the_surface_dice():
    assert score(row(3), row(5), UNIT, tolerance_mm=1.9).surface_dice == 0
    assert score(row(3), row(5), UNIT, tolerance_mm=2.0).surface_dice == 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spacing", [UNIT, (0.9375, 0.9375, 3.0)], ids=["1 mm", "anisotropic"])
def test_blobs_score_as_medpy_scores_them(seed, spacing):
    assert_equals_medpy(blobs(seed), blobs(seed + 100, share=0.05), spacing)


@pytest.mark.parametrize("share", [0.002, 0.1, 0.5, 0.98])
def test_noise_scores_as_medpy_scores_it_whatever_its_density(share):
    assert_equals_medpy(noise(1, share=share), noise(2, share=share), (1.0, 2.0, 0.5))


def test_masks_far_apart_at_the_edges_of_the_grid_score_as_medpy_scores_them():
    reference, predicted = np.zeros((2, 20, 20, 20), dtype=bool)
    reference[:3, :3, :3] = True
    predicted[-1, -1, -1] = True
    assert_equals_medpy(reference, predicted, UNIT)


def test_a_mask_that_fills_the_grid_leaves_the_specificity_undefined():
    full = np.ones((3, 3, 3), dtype=bool)
    found = score(full, full, UNIT)
    assert found.dice == 1
    assert math.isnan(found.specificity)


def test_masks_in_fortran_order_as_nibabel_reads_them_score_the_same():
    reference, predicted = blobs(1), blobs(2)
    assert score(np.asfortranarray(reference), predicted, UNIT) == score(reference, predicted, UNIT)


def test_different_shapes_are_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match=r"masks of shape \(10, 1, 1\) and \(9, 1, 1\)"):
        score(row(1), row(1, length=9), UNIT)


EMPTY, DRAWN = row(), row(2, 3)
EMPTIES = {
    "both empty": (EMPTY, EMPTY),
    "missed": (DRAWN, EMPTY),
    "invented": (EMPTY, DRAWN),
}

# Which metrics have no value, and what the specificity is: all 10 voxels are right where nothing
# is invented; two of ten are wrong where two are.
UNDEFINED = {
    "both empty": {
        *("dice", "jaccard", "surface_dice", "sensitivity", "precision"),
        *("hausdorff_mm", "hausdorff95_mm", "assd_mm"),
    },
    "missed": {"precision", "hausdorff_mm", "hausdorff95_mm", "assd_mm"},
    "invented": {"sensitivity", "hausdorff_mm", "hausdorff95_mm", "assd_mm"},
}
SPECIFICITY = {"both empty": 1, "missed": 1, "invented": 8 / 10}


@pytest.mark.parametrize("kind", EMPTIES)
def test_an_empty_mask_leaves_undefined_what_it_must(kind):
    found = asdict(score(*EMPTIES[kind], UNIT))
    assert {name for name, value in found.items() if math.isnan(value)} == UNDEFINED[kind]
    assert found["specificity"] == SPECIFICITY[kind]


@pytest.mark.parametrize(
    ("kind", "overlap", "distance_mm", "undefined"),
    [
        ("both empty", 1, 0, {"sensitivity", "precision"}),
        ("missed", 0, 373.12866, {"precision"}),
        ("invented", 0, 373.12866, {"sensitivity"}),
    ],
)
def test_the_convention_scores_empty_masks(kind, overlap, distance_mm, undefined):
    found = BRATS_2022.official(score(*EMPTIES[kind], UNIT))
    assert (found.dice, found.jaccard, found.surface_dice) == (overlap,) * 3
    assert (found.hausdorff_mm, found.hausdorff95_mm, found.assd_mm) == (distance_mm,) * 3
    assert {name for name, value in asdict(found).items() if math.isnan(value)} == undefined


def test_a_missed_tumour_costs_the_diagonal_of_the_brats_grid():
    # 240 x 240 x 155 voxels of 1 mm.
    assert BRATS_2022.missed_mm == pytest.approx(math.sqrt(240**2 + 240**2 + 155**2), abs=1e-5)


def test_what_was_missed_is_found_by_nobody():
    # The reference is there, so its sensitivity is defined, and it is 0; a surface as well.
    found = score(DRAWN, EMPTY, UNIT)
    assert (found.dice, found.sensitivity, found.surface_dice) == (0, 0, 0)
    assert score(EMPTY, DRAWN, UNIT).precision == 0


def test_the_convention_leaves_two_drawn_masks_alone():
    found = score(row(1), row(2), UNIT)
    assert BRATS_2022.official(found) == found
    assert replace(BRATS_2022, missed_mm=1.0).official(found) == found


@pytest.mark.real
@pytest.mark.slow
@needs_real
@pytest.mark.parametrize("region", ["TC", "ET"])
def test_a_real_pair_scores_as_medpy_scores_its_whole_grid(region):
    reference = read_labels(REAL / "pairs/truth/BraTS20_Training_001_seg.nii.gz")
    predicted = read_labels(REAL / "pairs/model_a/BraTS20_Training_001.nii.gz")
    labels = SCHEMES["brats2020"].region(region)
    masks = labels.mask(predicted.data), labels.mask(reference.data)
    found = score(masks[1], masks[0], reference.spacing_mm)
    assert found.hausdorff95_mm == pytest.approx(
        binary.hd95(*masks, voxelspacing=reference.spacing_mm), rel=0, abs=1e-9
    )
    assert found.specificity == binary.specificity(*masks)


def test_scores_are_medpys_own_and_load_no_statistics():
    code = (
        "import sys\n"
        "from brats_cli.core.score.metrics import binary\n"
        "print('scipy.stats' in sys.modules, binary.sensitivity.__code__.co_filename)\n"
        "from medpy.metric import binary as whole\n"
        "print(whole.pearsonr([1, 2, 4], [2, 4, 8])[0] > 0.999, binary is whole)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, right = done.stdout.splitlines()
    assert loaded == f"False {binary.__file__}"
    assert right == "True False"
