import nibabel as nib
import numpy as np
import pytest

from brats_cli.core.errors import CaseError, GridMismatchError, UnreadableFileError
from brats_cli.core.images.grid import Grid, Volume
from brats_cli.core.score.uncertainty import THRESHOLDS, read_uncertainty, score_uncertainty

SHAPE = (10, 1, 1)
BRAIN = np.ones(SHAPE, dtype=bool)
GRID = Volume(np.zeros(SHAPE, dtype=np.uint8), Grid(SHAPE, np.eye(4)))


def row(*voxels):
    mask = np.zeros(SHAPE, dtype=bool)
    mask[list(voxels)] = True
    return mask


def doubt(**by_voxel):
    values = np.zeros(SHAPE, dtype=np.float32)
    for voxel, value in by_voxel.items():
        values[int(voxel[1:])] = value
    return values


def put(path, values, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(values), np.eye(4) if affine is None else affine), path)


def test_there_are_41_thresholds_and_the_last_is_100():
    assert (len(THRESHOLDS), THRESHOLDS[1], THRESHOLDS[-1]) == (41, 2.5, 100)


def test_a_false_voxel_that_is_uncertain_costs_little():
    # No ET in truth, one false voxel at u = 70: Dice is 1 at the 28 thresholds up to 67.5 and 0
    # from 70 on. Trapezoid: 27 whole steps and half a one, of 2.5 / 100.
    found = score_uncertainty(row(), row(4), doubt(v4=70), BRAIN)
    assert found.uncertainty_dice_auc == pytest.approx(0.6875)
    assert (found.uncertainty_ftp_auc, found.uncertainty_ftn_auc) == (0, 0)
    assert found.uncertainty_score == pytest.approx((0.6875 + 1 + 1) / 3)


def test_a_true_voxel_that_is_uncertain_is_filtered_out():
    # Two true voxels, one at u = 50: at the 20 thresholds below 50 half of the true positives
    # is gone. Trapezoid: 19 steps of 1/2 and half a one. Dice of what is left is 1.
    found = score_uncertainty(row(1, 2), row(1, 2), doubt(v2=50), BRAIN)
    assert found.uncertainty_dice_auc == pytest.approx(1)
    assert found.uncertainty_ftp_auc == pytest.approx(19.5 * 2.5 / 100 / 2)


def test_true_negatives_are_counted_inside_the_brain_only():
    # Brain 0-4, tumour 1: four true negatives, one of which is at u = 100, filtered out at the
    # first 40 thresholds: 39 steps of 1/4 and half a one. Voxel 9, outside, changes nothing.
    brain = row(0, 1, 2, 3, 4)
    found = score_uncertainty(row(1), row(1), doubt(v3=100, v9=100), brain)
    assert found.uncertainty_ftn_auc == pytest.approx(39.5 * 2.5 / 100 / 4)


def test_dice_counts_voxels_outside_the_brain_as_well():
    found = score_uncertainty(row(1, 8), row(1), doubt(), row(0, 1, 2))
    assert found.uncertainty_dice_auc == pytest.approx(2 / 3)


def test_a_voxel_counts_at_a_threshold_that_equals_its_uncertainty():
    one = score_uncertainty(row(), row(4), doubt(v4=2.5), BRAIN)
    assert one.uncertainty_dice_auc == pytest.approx(0.5 * 2.5 / 100)
    over = score_uncertainty(row(), row(4), doubt(v4=2.6), BRAIN)
    assert over.uncertainty_dice_auc == pytest.approx(1.5 * 2.5 / 100)


def test_our_4d_file_and_the_challenges_three_files_read_the_same(tmp_path):
    maps = np.arange(30, dtype=np.uint8).reshape(*SHAPE, 3)
    put(tmp_path / "ours/A_uncertainty.nii.gz", maps)
    for number, name in enumerate(("whole", "core", "enhance")):
        put(tmp_path / f"theirs/A_unc_{name}.nii.gz", maps[..., number])
    ours = read_uncertainty(tmp_path / "ours", "A", GRID)
    theirs = read_uncertainty(tmp_path / "theirs", "A", GRID)
    assert list(ours) == list(theirs) == ["WT", "TC", "ET"]
    for number, region in enumerate(ours):
        np.testing.assert_array_equal(ours[region], maps[..., number])
        np.testing.assert_array_equal(theirs[region], maps[..., number])


def test_a_case_without_maps_is_named(tmp_path):
    with pytest.raises(CaseError, match="has no uncertainty of case A: neither A_uncertainty"):
        read_uncertainty(tmp_path, "A", GRID)


def test_values_beyond_100_and_other_grids_are_errors(tmp_path):
    path = tmp_path / "A_uncertainty.nii.gz"
    put(path, np.full((*SHAPE, 3), 255, dtype=np.uint8))
    with pytest.raises(UnreadableFileError, match="from 255 to 255, not from 0 to 100"):
        read_uncertainty(tmp_path, "A", GRID)
    put(path, np.full((*SHAPE, 3), np.nan, dtype=np.float32))
    with pytest.raises(UnreadableFileError, match="not from 0 to 100"):
        read_uncertainty(tmp_path, "A", GRID)
    put(path, np.zeros(SHAPE, dtype=np.uint8))
    with pytest.raises(UnreadableFileError, match=r"not \(X, Y, Z, 3\)"):
        read_uncertainty(tmp_path, "A", GRID)
    put(path, np.zeros((*SHAPE, 3), dtype=np.uint8), affine=np.diag([2.0, 1, 1, 1]))
    with pytest.raises(GridMismatchError, match="corners 9 mm apart"):
        read_uncertainty(tmp_path, "A", GRID)
