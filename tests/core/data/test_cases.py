import nibabel as nib
import numpy as np
import pytest
from casefiles import OLD, four, put, put_all

from brats_cli.core.data.cases import read_images
from brats_cli.core.data.finding import case_at, find_cases
from brats_cli.core.data.naming import MODALITIES
from brats_cli.core.errors import BratsWarning, GridMismatchError, MissingModalityError


def test_a_missing_modality_is_named(tmp_path):
    put_all(tmp_path, ["x_t1.nii.gz", "x_flair.nii.gz"])
    (case,) = find_cases(tmp_path)
    with pytest.raises(MissingModalityError, match=r"case x has no t1ce, t2 \(found: t1, flair\)"):
        case.require()


def test_images_come_in_the_order_asked_for(tmp_path):
    for value, suffix in enumerate(OLD[:4]):
        put(tmp_path / f"x_{suffix}.nii.gz", value=value)
    (case,) = find_cases(tmp_path)
    assert [int(image.data[0, 0, 0]) for image in read_images(case)] == [0, 1, 2, 3]
    assert [int(v.data[0, 0, 0]) for v in read_images(case, ("flair", "t1"))] == [3, 0]


def test_channels_of_one_file_come_in_our_order(tmp_path):
    data = np.broadcast_to(np.arange(4, dtype=np.int16), (2, 3, 4, 4))  # FLAIR, T1, T1ce, T2
    nib.save(nib.Nifti1Image(data.copy(), np.eye(4)), tmp_path / "x.nii.gz")
    images = read_images(case_at(tmp_path / "x.nii.gz"))
    assert [(image.shape, int(image.data[0, 0, 0])) for image in images] == [
        ((2, 3, 4), 1), ((2, 3, 4), 2), ((2, 3, 4), 3), ((2, 3, 4), 0),
    ]  # fmt: skip


def shifted(millimetres):
    affine = np.eye(4)
    affine[0, 3] = millimetres
    return affine


def case_with_t2_off_by(tmp_path, millimetres):
    put_all(tmp_path, four("x", OLD[:4]))
    put(tmp_path / "x_t2.nii.gz", affine=shifted(millimetres))
    return case_at(tmp_path)


def test_a_hundredth_of_a_millimetre_is_nothing(tmp_path):
    assert len(read_images(case_with_t2_off_by(tmp_path, 0.0099))) == 4


def test_up_to_half_a_voxel_is_warned_about_and_reconciled(tmp_path):
    case = case_with_t2_off_by(tmp_path, 0.4)
    with pytest.warns(BratsWarning, match=r"x_t2.nii.gz is 0.4 mm off the grid of .*x_t1.nii.gz"):
        images = read_images(case)
    np.testing.assert_array_equal(images[2].affine, images[0].affine)


def test_more_than_half_a_voxel_is_an_error_that_names_both_files(tmp_path):
    case = case_with_t2_off_by(tmp_path, 0.6)
    with pytest.raises(GridMismatchError, match=r"x_t2.* grid of .*x_t1.*: corners 0.6 mm apart"):
        read_images(case)


def test_a_background_of_another_value_is_taken_as_0_with_a_warning(tmp_path):
    for role in ("t1", "t1ce", "t2", "flair"):
        data = np.full((6, 6, 6), -1000, np.int16)
        data[2:4, 2:4, 2:4] = 7
        nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / f"X_{role}.nii")
    with pytest.warns(BratsWarning) as caught:
        images = read_images(case_at(tmp_path))
    assert [str(each.message) for each in caught] == [
        f"{tmp_path}/X_{role}.nii: its background is -1000, taken as 0" for role in MODALITIES
    ]
    assert [(image.data.sum(), image.data.min()) for image in images] == [(56, 0)] * 4
