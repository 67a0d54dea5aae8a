import gzip

import nibabel as nib
import numpy as np
import pytest

from brats_cli.core.data.labels import SCHEMES
from brats_cli.core.errors import (
    BratsWarning,
    GridMismatchError,
    LabelError,
    OutputExistsError,
    UnreadableFileError,
)
from brats_cli.core.images.nifti import (
    Volume,
    corner_distance_mm,
    count_labels,
    read_channel,
    read_label_map,
    read_volume,
    require_same_grid,
    shape_on_disk,
    stem,
    write_label_map,
)

# Axes to left, posterior and superior, voxels of 1 x 2 x 3 mm.
AFFINE = np.array([[-1.0, 0, 0, 5], [0, -2, 0, 7], [0, 0, 3, -9], [0, 0, 0, 1]])
RAMP = np.arange(24, dtype=np.int16).reshape(2, 3, 4)


def save(path, data, affine=AFFINE):
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


# --- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".NII.GZ"])
def test_a_volume_has_its_voxels_and_its_place(tmp_path, ending):
    volume = read_volume(save(tmp_path / f"a{ending}", RAMP))
    np.testing.assert_array_equal(volume.data, RAMP)
    np.testing.assert_array_equal(volume.affine, AFFINE)
    assert (volume.shape, volume.data.dtype) == ((2, 3, 4), np.float32)
    assert volume.spacing_mm == (1.0, 2.0, 3.0)


def test_oblique_axes_have_their_length():
    # 3 mm along (0.6, 0.8, 0): the first column is (1.8, 2.4, 0).
    affine = np.array([[1.8, -0.8, 0, 0], [2.4, 0.6, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
    assert Volume(RAMP, affine).spacing_mm == pytest.approx((3.0, 1.0, 2.0))


def test_stored_values_are_scaled(tmp_path):
    image = nib.Nifti1Image(RAMP, AFFINE)
    image.header.set_slope_inter(2, 10)
    nib.save(image, tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii").data.max() == 2 * 23 + 10


def test_a_channel_of_four_dimensions(tmp_path):
    data = np.stack([RAMP, RAMP + 100], axis=-1)
    path = save(tmp_path / "a.nii.gz", data)
    np.testing.assert_array_equal(read_channel(path, 1).data, RAMP + 100)
    with pytest.raises(UnreadableFileError, match="it has 2 channels, too few"):
        read_channel(path, 2)


def test_a_last_axis_of_one_is_nothing(tmp_path):
    path = save(tmp_path / "a.nii.gz", RAMP[..., None])
    assert read_channel(path, None).shape == (2, 3, 4)
    assert read_label_map(path).data.shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("data", "channel", "found"), [(RAMP, 0, "3 dimensions"), (RAMP[0], None, "2 dimensions")]
)
def test_other_dimensions_are_refused(tmp_path, data, channel, found):
    with pytest.raises(UnreadableFileError, match=f"it has {found}"):
        read_channel(save(tmp_path / "a.nii.gz", data), channel)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])
    return path


def test_what_is_no_nifti_file_is_named(tmp_path):
    text = tmp_path / "text.nii.gz"
    text.write_text("<html>log in first</html>")
    empty = tmp_path / "empty.nii"
    empty.touch()
    big = np.random.default_rng(0).integers(0, 999, (20, 20, 20), dtype=np.int16)
    for path in (
        text,
        empty,
        cut(save(tmp_path / "cut.nii.gz", big), 5000),
        cut(save(tmp_path / "cut.nii", big), 5000),
        tmp_path / "none.nii",
    ):
        for read in (read_volume, read_label_map, count_labels):
            with pytest.raises(UnreadableFileError, match=f"cannot read .*{path.name}: ") as caught:
                read(path)
            assert caught.value.hint


# --- labels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
def test_whole_numbers_of_any_type_are_labels(tmp_path, dtype):
    labels = np.array([0, 1, 2, 4], dtype=dtype).reshape(2, 2, 1)
    path = save(tmp_path / "a.nii.gz", labels)
    read = read_label_map(path).data
    assert (read.ravel().tolist(), read.dtype) == ([0, 1, 2, 4], np.uint8)
    assert count_labels(path).voxels == {0: 1, 1: 1, 2: 1, 4: 1}


@pytest.mark.parametrize("value", [2.9999, -1, 256, 300, np.nan, np.inf, 0.5])
def test_other_numbers_are_not(tmp_path, value):
    path = save(tmp_path / "a.nii.gz", np.array([0, value, 1], np.float64).reshape(3, 1, 1))
    for read in (read_label_map, count_labels):
        with pytest.raises(LabelError, match=rf"a.nii.gz holds {value:g}, which is not a label"):
            read(path)


def test_labels_are_counted_with_the_size_of_a_voxel(tmp_path):
    labels = np.zeros((3, 4, 5), np.uint8)
    labels[0] = 2  # 20 voxels
    labels[1, 0] = 4  # 5
    count = count_labels(save(tmp_path / "a.nii.gz", labels))
    assert count.voxels == {0: 35, 2: 20, 4: 5}
    assert list(count.voxels) == [0, 2, 4]
    assert count.voxel_mm3 == 6.0  # 1 x 2 x 3 mm


def test_a_label_map_is_written_on_its_cases_grid(tmp_path):
    image = nib.Nifti1Image(RAMP, AFFINE)
    image.set_sform(AFFINE, code=0)
    image.set_qform(AFFINE, code=1)
    nib.save(image, tmp_path / "t1.nii.gz")
    like = read_volume(tmp_path / "t1.nii.gz")
    labels = (RAMP % 3).astype(np.uint8)
    write_label_map(tmp_path / "seg.nii.gz", labels, like, SCHEMES["brats2023"])

    written = nib.load(tmp_path / "seg.nii.gz")
    assert written.get_data_dtype() == np.uint8
    codes = [int(written.header[code]) for code in ("sform_code", "qform_code")]
    assert codes == [0, 1]
    np.testing.assert_allclose(written.affine, AFFINE, atol=1e-6)
    assert written.header.get_xyzt_units()[0] == like.header.get_xyzt_units()[0]
    np.testing.assert_array_equal(read_label_map(tmp_path / "seg.nii.gz").data, labels)


def test_a_label_map_remembers_its_scheme(tmp_path):
    like = Volume(RAMP, AFFINE)
    write_label_map(tmp_path / "a.nii.gz", np.zeros_like(RAMP), like, SCHEMES["brats2024-ped"])
    assert read_label_map(tmp_path / "a.nii.gz").scheme.name == "brats2024-ped"
    assert count_labels(tmp_path / "a.nii.gz").scheme.name == "brats2024-ped"
    assert like.scheme is None


def test_a_label_map_is_not_written_over_another(tmp_path):
    (tmp_path / "a.nii.gz").write_text("mine")
    with pytest.raises(OutputExistsError):
        write_label_map(tmp_path / "a.nii.gz", RAMP, Volume(RAMP, AFFINE), SCHEMES["brats2020"])
    assert (tmp_path / "a.nii.gz").read_text() == "mine"


# --- grids -------------------------------------------------------------------------------------


def moved(x=0.0, degrees=0.0):
    turn = np.eye(4)
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn[:2, :2] = [[cosine, -sine], [sine, cosine]]
    turn[0, 3] = x
    return Volume(np.zeros((11, 11, 11)), turn)


def test_corners_are_compared_in_millimetres():
    assert corner_distance_mm(moved(), moved(x=0.3)) == pytest.approx(0.3)
    # Turned by 90 degrees about (0, 0), (10, 10) goes to (-10, 10) and (10, 0) to (0, 10): the
    # farthest corner goes 10 * sqrt(4) = 20 mm.
    assert corner_distance_mm(moved(), moved(degrees=90)) == pytest.approx(20)


def test_a_hundredth_of_a_millimetre_is_the_same_place():
    require_same_grid([moved(), moved(x=0.0099), moved(x=-0.0099)])


def test_less_than_half_a_voxel_is_warned_about():
    with pytest.warns(BratsWarning, match=r"is 0.49 mm off the grid of .* taken as the same"):
        require_same_grid([moved(), moved(x=0.49)])


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (moved(x=0.51), "corners 0.51 mm apart"),
        (moved(x=np.nan), "corners nan mm apart"),
        (Volume(np.zeros((11, 11, 12)), np.eye(4)), "11 x 11 x 12 voxels, not 11 x 11 x 11"),
    ],
)
def test_more_is_another_grid(other, difference):
    with pytest.raises(GridMismatchError, match=difference):
        require_same_grid([moved(), other])


# --- names and first bytes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.nii.gz", "a"), ("a.b.nii", "a.b"), ("A.NII.GZ", "A"), ("run.pt", "run")],
)
def test_the_stem_is_the_name_without_its_ending(tmp_path, name, expected):
    assert stem(tmp_path / name) == expected


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_the_first_bytes_tell_the_shape(tmp_path, ending):
    path = save(tmp_path / f"a{ending}", np.zeros((3, 4, 5, 2), np.uint8))
    assert shape_on_disk(path) == (3, 4, 5, 2)
    big_endian = nib.Nifti1Image(RAMP, AFFINE, nib.Nifti1Header(endianness=">"))
    nib.save(big_endian, path)
    assert shape_on_disk(path) == (2, 3, 4)


@pytest.mark.parametrize("content", [b"", b"text", gzip.compress(b"text"), b"\x1f\x8b\x08junk"])
def test_the_first_bytes_of_something_else_tell_nothing(tmp_path, content):
    (tmp_path / "a.nii.gz").write_bytes(content)
    assert shape_on_disk(tmp_path / "a.nii.gz") is None
    assert shape_on_disk(tmp_path / "none.nii.gz") is None
