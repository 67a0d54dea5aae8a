import gzip
import os
import struct
import tracemalloc
import zlib

import nibabel as nib
import numpy as np
import pytest
from helpers import DAMAGES, volume

from brats_cli.core.data.labels import SCHEMES, noted_scheme, write_labels
from brats_cli.core.errors import (
    BratsWarning,
    LabelError,
    OutputExistsError,
    UnreadableFileError,
)
from brats_cli.core.images.grid import Grid
from brats_cli.core.images.nifti import (
    count_labels,
    read_channels,
    read_image,
    read_labels,
    read_volume,
    shape_on_disk,
    stem,
    write_image,
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
    read = read_image(save(tmp_path / f"a{ending}", RAMP))
    np.testing.assert_array_equal(read.data, RAMP)
    np.testing.assert_array_equal(read.affine, AFFINE)
    assert (read.shape, read.data.dtype) == ((2, 3, 4), np.float32)
    assert read.spacing_mm == (1.0, 2.0, 3.0)


def test_stored_values_are_scaled(tmp_path):
    image = nib.Nifti1Image(RAMP, AFFINE)
    image.header.set_slope_inter(2, 10)
    nib.save(image, tmp_path / "a.nii")
    assert read_image(tmp_path / "a.nii").data.max() == 2 * 23 + 10


def test_a_channel_of_four_dimensions(tmp_path):
    data = np.stack([RAMP, RAMP + 100], axis=-1)
    path = save(tmp_path / "a.nii.gz", data)
    np.testing.assert_array_equal(read_image(path, 1).data, RAMP + 100)
    with pytest.raises(UnreadableFileError, match="it has 2 channels, too few"):
        read_image(path, 2)


def test_a_last_axis_of_one_is_nothing(tmp_path):
    path = save(tmp_path / "a.nii.gz", RAMP[..., None])
    assert read_image(path, None).shape == (2, 3, 4)
    assert read_labels(path).data.shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("data", "channel", "found"), [(RAMP, 0, "3 dimensions"), (RAMP[0], None, "2 dimensions")]
)
def test_other_dimensions_are_refused(tmp_path, data, channel, found):
    with pytest.raises(UnreadableFileError, match=f"it has {found}"):
        read_image(save(tmp_path / "a.nii.gz", data), channel)


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
        for read in (read_image, read_labels, count_labels):
            with pytest.raises(UnreadableFileError, match=f"cannot read .*{path.name}: ") as caught:
                read(path)
            assert caught.value.hint


# --- labels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
def test_whole_numbers_of_any_type_are_labels(tmp_path, dtype):
    labels = np.array([0, 1, 2, 4], dtype=dtype).reshape(2, 2, 1)
    path = save(tmp_path / "a.nii.gz", labels)
    read = read_labels(path).data
    assert (read.ravel().tolist(), read.dtype) == ([0, 1, 2, 4], np.uint8)
    assert count_labels(path).voxels == {0: 1, 1: 1, 2: 1, 4: 1}


@pytest.mark.parametrize("value", [2.98, 2.011, -1, 256, 300, np.nan, np.inf, 0.5])
def test_other_numbers_are_not(tmp_path, value):
    path = save(tmp_path / "a.nii.gz", np.array([0, value, 1], np.float64).reshape(3, 1, 1))
    for read in (read_labels, count_labels):
        with pytest.raises(LabelError, match=rf"a.nii.gz holds {value:g}, which is not a label"):
            read(path)


# ANTs, FSL and SCT write label maps as floats that are nearly whole.
@pytest.mark.parametrize(("value", "label"), [(2.0000002, 2), (2.9999, 3), (0.995, 1), (4.01, 4)])
def test_labels_spoilt_by_a_float_format_are_rounded_with_a_warning(tmp_path, value, label):
    path = save(tmp_path / "a.nii.gz", np.array([0, value, 1], np.float64).reshape(3, 1, 1))
    for read in (read_labels, count_labels):
        said = rf"a.nii.gz holds {value:.9g}, taken as label {label}$"
        with pytest.warns(BratsWarning, match=said):
            found = read(path)
    assert found.voxels == ({0: 1, 1: 2} if label == 1 else {0: 1, 1: 1, label: 1})


def test_a_number_that_is_no_label_is_shown_with_all_its_digits(tmp_path):
    path = save(tmp_path / "a.nii.gz", np.full((2, 2, 2), 2.0200001, np.float64))
    with pytest.raises(LabelError, match=r"a.nii.gz holds 2.0200001, which is not a label"):
        read_labels(path)


@pytest.mark.parametrize(("unit", "mm"), [("meter", 1000.0), ("micron", 0.001)])
def test_lengths_in_other_units_are_millimetres_inside_and_themselves_on_disk(tmp_path, unit, mm):
    image = nib.Nifti1Image(np.ones((4, 5, 6), np.uint8), np.diag([2 / mm, 1 / mm, 1 / mm, 1]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii.gz")
    volume = read_labels(tmp_path / "a.nii.gz")
    assert volume.spacing_mm == pytest.approx((2, 1, 1))
    assert count_labels(tmp_path / "a.nii.gz").voxel_mm3 == pytest.approx(2)
    write_image(tmp_path / "b.nii.gz", volume.data, volume.grid)
    again = nib.load(tmp_path / "b.nii.gz")
    np.testing.assert_allclose(again.affine, image.affine, rtol=1e-6)
    assert again.header.get_xyzt_units()[0] == unit


def test_a_wrong_unit_does_not_make_voxels_of_a_metre(tmp_path):
    image = nib.Nifti1Image(np.ones((4, 5, 6), np.uint8), np.eye(4))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "a.nii.gz")
    assert read_labels(tmp_path / "a.nii.gz").spacing_mm == (1, 1, 1)


# Metres, and centimetres of 1 and 2 mm voxels, that are called millimetres; and a slab of 30 mm.
@pytest.mark.parametrize("sides", [(0.001,) * 3, (0.1,) * 3, (0.2,) * 3, (1, 1, 30)])
def test_voxels_of_no_head_scan_are_refused(tmp_path, sides):
    path = save(tmp_path / "a.nii.gz", np.ones((4, 5, 6), np.uint8), np.diag([*sides, 1]))
    for read in (read_labels, count_labels, read_image):
        with pytest.raises(UnreadableFileError, match=r"a.nii.gz: its voxels are .* no head scan"):
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
    write_labels(tmp_path / "seg.nii.gz", labels, like.grid, SCHEMES["brats2023"])

    written = nib.load(tmp_path / "seg.nii.gz")
    assert written.get_data_dtype() == np.uint8
    codes = [int(written.header[code]) for code in ("sform_code", "qform_code")]
    assert codes == [0, 1]
    np.testing.assert_allclose(written.affine, AFFINE, atol=1e-6)
    assert written.header.get_xyzt_units()[0] == like.header.get_xyzt_units()[0]
    np.testing.assert_array_equal(read_labels(tmp_path / "seg.nii.gz").data, labels)


def test_a_label_map_remembers_its_scheme(tmp_path):
    grid = Grid(RAMP.shape, AFFINE)
    write_labels(tmp_path / "a.nii.gz", np.zeros_like(RAMP), grid, SCHEMES["brats2024-ped"])
    for read in (read_labels, count_labels):
        assert noted_scheme(read(tmp_path / "a.nii.gz").note) is SCHEMES["brats2024-ped"]
    assert noted_scheme(volume(RAMP, AFFINE).note) is None


def test_a_label_map_is_not_written_over_another(tmp_path):
    (tmp_path / "a.nii.gz").write_text("mine")
    with pytest.raises(OutputExistsError):
        write_labels(tmp_path / "a.nii.gz", RAMP, Grid(RAMP.shape, AFFINE), SCHEMES["brats2020"])
    assert (tmp_path / "a.nii.gz").read_text() == "mine"


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


@pytest.mark.parametrize(
    "content", [b"", b"text", gzip.compress(b"text", mtime=0), b"\x1f\x8b\x08junk"]
)
def test_the_first_bytes_of_something_else_tell_nothing(tmp_path, content):
    (tmp_path / "a.nii.gz").write_bytes(content)
    assert shape_on_disk(tmp_path / "a.nii.gz") is None
    assert shape_on_disk(tmp_path / "none.nii.gz") is None


# --- strict about bytes ------------------------------------------------------------------------


def test_a_volume_keeps_the_header_as_it_was_written(tmp_path):
    path = save(tmp_path / "a.nii", RAMP, np.diag([2.0, 2, 2, 1]))
    content = bytearray(path.read_bytes())
    content[80:84] = np.float32(0).tobytes()  # pixdim[1]
    path.write_bytes(content)
    read = read_volume(path)
    assert read.header["pixdim"][1:4].tolist() == [0, 2, 2]  # nibabel would say 1
    assert read.spacing_mm == (2, 2, 2)
    assert read.data.dtype == np.int16


def test_the_foreground_is_finite_and_not_zero():
    data = np.array([0, 1, np.nan, np.inf, -2], np.float32).reshape(5, 1, 1)
    assert volume(data).foreground.tolist() == [1, -2]


@pytest.mark.parametrize("name", ["a.nii", "b.nii.gz"])
def test_gzip_is_recognised_by_content(tmp_path, name):
    inner = save(tmp_path / "plain.nii", RAMP).read_bytes()
    other = inner if name.endswith(".gz") else gzip.compress(inner)
    (tmp_path / name).write_bytes(other)
    read = read_volume(tmp_path / name)
    assert read.gzipped is not name.endswith(".gz")
    np.testing.assert_array_equal(read.data, RAMP)


def test_several_gzip_members_are_one_file(tmp_path):
    # As bgzip and pigz write them; then zeros up to the end of a block, as tapes have them.
    content = save(tmp_path / "a.nii", RAMP).read_bytes()
    members = [gzip.compress(content[start : start + 100]) for start in range(0, len(content), 100)]
    (tmp_path / "a.nii.gz").write_bytes(b"".join(members) + bytes(512))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").data, RAMP)


def test_a_flipped_bit_is_noticed_by_the_checksum(tmp_path):
    content = bytearray(gzip.compress(save(tmp_path / "a.nii", RAMP).read_bytes(), 0))
    content[400] ^= 1
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(UnreadableFileError, match=r"its bytes are damaged \(checksum\)"):
        read_image(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_headers_are_named_and_nothing_else_is_said(tmp_path, damage, zipped, caplog):
    content = DAMAGES[damage](save(tmp_path / "whole.nii", RAMP).read_bytes())
    path = tmp_path / ("a.nii.gz" if zipped else "a.nii")
    path.write_bytes(gzip.compress(content) if zipped else content)
    for read in (read_image, read_labels, count_labels):
        with pytest.raises(UnreadableFileError, match=f"cannot read .*{path.name}: ") as caught:
            read(path)
        assert caught.value.hint
    assert caplog.records == []  # nibabel logs what it repairs


def test_what_nibabel_repairs_is_not_logged(tmp_path, caplog, capfd):
    content = bytearray(save(tmp_path / "a.nii", RAMP).read_bytes())
    content[80:84] = np.float32(0).tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    read_image(tmp_path / "a.nii")
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_a_header_that_claims_too_much_is_refused_before_memory_is_asked_for(tmp_path):
    # 352 + 2 * 32,767^3 bytes are 70 TB; a gzip file of a kilobyte holds a megabyte at most.
    content = DAMAGES["huge-dim"](save(tmp_path / "a.nii", RAMP).read_bytes())
    (tmp_path / "a.nii").write_bytes(content)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content))
    for name in ("a.nii", "a.nii.gz"):
        tracemalloc.start()
        with pytest.raises(UnreadableFileError, match="claims 70,362,301,923,678 bytes"):
            read_image(tmp_path / name)
        assert tracemalloc.get_traced_memory()[1] < 2e6
        tracemalloc.stop()


def test_a_gzip_bomb_is_not_unzipped(tmp_path):
    # A header of 48 bytes of voxels, and behind them 200 MB of zeros in 200 kB.
    content = save(tmp_path / "a.nii", RAMP).read_bytes()
    packer = zlib.compressobj(wbits=31)
    parts = [packer.compress(content)] + [packer.compress(bytes(1 << 20)) for _ in range(200)]
    (tmp_path / "a.nii.gz").write_bytes(b"".join(parts) + packer.flush())
    tracemalloc.start()
    with pytest.raises(UnreadableFileError, match="it holds more than the 400 bytes it claims"):
        read_image(tmp_path / "a.nii.gz")
    assert tracemalloc.get_traced_memory()[1] < 40e6
    tracemalloc.stop()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_is_not_a_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.nii")
    (tmp_path / "zero.nii").symlink_to("/dev/zero")
    for name in ("a.nii", "zero.nii"):
        with pytest.raises(UnreadableFileError, match="it is not a regular file"):
            read_image(tmp_path / name)
    with pytest.raises(UnreadableFileError, match="it is a folder") as caught:
        read_image(tmp_path)
    assert caught.value.hint == "give the NIfTI files in it"
    assert shape_on_disk(tmp_path / "a.nii") is None


def test_channels_are_read_from_one_file(tmp_path):
    data = np.stack([RAMP, RAMP + 100, RAMP + 200], axis=-1)
    path = save(tmp_path / "a.nii.gz", data)
    first, second = read_channels(path, [2, 0])
    np.testing.assert_array_equal(first.data, RAMP + 200)
    np.testing.assert_array_equal(second.data, RAMP)


def test_both_versions_and_byte_orders_are_read(tmp_path):
    for number, kind in enumerate((nib.Nifti1Image, nib.Nifti2Image)):
        for order in "<>":
            header = kind.header_class(endianness=order)
            header.set_data_dtype(np.int16)
            nib.save(kind(RAMP, AFFINE, header), tmp_path / f"{number}.nii")
            size = struct.unpack(f"{order}i", (tmp_path / f"{number}.nii").read_bytes()[:4])[0]
            assert size == (348, 540)[number]
            read = read_image(tmp_path / f"{number}.nii")
            np.testing.assert_array_equal(read.data, RAMP)
            np.testing.assert_array_equal(read.affine, AFFINE)


# --- writing -----------------------------------------------------------------------------------


def test_sform_and_qform_are_written_as_they_were_read(tmp_path):
    other = AFFINE.copy()
    other[0, 3] += 0.25
    image = nib.Nifti1Image(RAMP, AFFINE)
    image.set_sform(AFFINE, code=4)
    image.set_qform(other, code=1)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "a.nii")
    write_image(tmp_path / "b.nii", RAMP, read_image(tmp_path / "a.nii").grid, note="mine")
    header = nib.load(tmp_path / "b.nii").header
    np.testing.assert_array_equal(header.get_sform(), AFFINE)
    np.testing.assert_allclose(header.get_qform(), other, atol=1e-6)
    assert (int(header["sform_code"]), int(header["qform_code"])) == (4, 1)
    assert header.get_xyzt_units() == ("mm", "sec")
    assert bytes(header["descrip"]).rstrip(b"\0") == b"mine"


@pytest.mark.parametrize(("code", "written"), [(5, 5), (6, 1), (-1, 0)])
def test_codes_of_niftis_are_written_and_others_by_whether_they_mean_a_place(
    tmp_path, code, written
):
    write_image(tmp_path / "a.nii", RAMP, Grid(RAMP.shape, AFFINE, codes=(code, 1)))
    assert int(nib.load(tmp_path / "a.nii").header["sform_code"]) == written


def test_a_step_scales_what_is_read(tmp_path):
    write_image(tmp_path / "a.nii.gz", RAMP, Grid(RAMP.shape, AFFINE), step=0.5)
    np.testing.assert_array_equal(nib.load(tmp_path / "a.nii.gz").get_fdata(), RAMP / 2)


def test_an_image_of_another_shape_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="does not fit the grid"):
        write_image(tmp_path / "a.nii", RAMP, Grid((4, 3, 2), AFFINE))
    assert not (tmp_path / "a.nii").exists()


@pytest.mark.parametrize(
    ("offset", "kind", "values"),
    [
        (252, "i2", (-32768,)),  # qform_code
        (252, "i2", (1792, 9)),  # and sform_code
        (80, "f4", (np.nan,)),  # pixdim, so that the qform is not finite
        (84, "f4", (0.0,)),  # or flat
    ],
)
def test_what_can_be_read_can_be_written_on_its_grid(tmp_path, offset, kind, values):
    content = bytearray(nib.Nifti1Image(np.ones((4, 5, 6), np.uint8), AFFINE).to_bytes())
    new = np.array(values, f"<{kind}").tobytes()
    content[offset : offset + len(new)] = new
    (tmp_path / "a.nii").write_bytes(content)
    volume = read_labels(tmp_path / "a.nii")
    write_image(tmp_path / "b.nii", volume.data, volume.grid)
    assert np.array_equal(read_labels(tmp_path / "b.nii").affine, volume.affine)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_infinite_voxel_sizes_warn_nobody(tmp_path, kind):
    """Infinite times 0 in the qform; warnings are errors here."""
    image = kind(RAMP.astype(np.uint8), AFFINE)
    image.set_qform(AFFINE, code=1)
    nib.save(image, tmp_path / "x.nii")
    content = bytearray((tmp_path / "x.nii").read_bytes())
    header = type(image.header)(bytes(content[: image.header.template_dtype.itemsize]))
    start = image.header.template_dtype.fields["pixdim"][1]
    size = image.header.template_dtype["pixdim"].base.itemsize
    content[start + size : start + 2 * size] = struct.pack("<f" if size == 4 else "<d", np.inf)
    (tmp_path / "x.nii").write_bytes(content)
    assert int(header["sform_code"]) > 0
    assert read_volume(tmp_path / "x.nii").grid.qform is None
    code = image.header.template_dtype.fields["sform_code"][1]
    width = image.header.template_dtype["sform_code"].itemsize
    content[code : code + width] = bytes(width)  # the qform is all there is
    (tmp_path / "x.nii").write_bytes(content)
    with pytest.raises(UnreadableFileError):
        read_labels(tmp_path / "x.nii")
