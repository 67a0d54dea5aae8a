import nibabel as nib
import numpy as np
import pytest

from brats_cli.core.check import repair
from brats_cli.core.check.repair import repair_data_set, rotation_only
from brats_cli.core.check.run import check
from brats_cli.core.errors import OutputError, OutputExistsError, UnreadableFileError
from brats_cli.core.images.grid import Grid
from brats_cli.core.images.nifti import read_volume


def grid(affine):
    return Grid((3, 3, 3), affine)


def test_a_shear_is_shared_between_the_axes():
    # The y axis leans over to x by 20 degrees; the nearest right angle turns both axes by 10, one
    # towards the other.
    lean, half = np.radians(20), np.radians(10)
    affine = np.eye(4)
    affine[:2, 1] = [3 * np.sin(lean), 3 * np.cos(lean)]
    affine[:3, 3] = [5, -6, 7]
    expected = np.eye(4)
    expected[:2, 0] = [np.cos(half), -np.sin(half)]
    expected[:2, 1] = [3 * np.sin(half), 3 * np.cos(half)]
    expected[:3, 3] = [5, -6, 7]
    np.testing.assert_allclose(rotation_only(grid(affine)).affine, expected, atol=1e-12)


@pytest.mark.parametrize("mirror", [1, -1])
def test_handedness_and_voxel_size_are_kept(mirror):
    affine = np.diag([mirror * 1.0, 2, 3, 1])
    affine[0, 2] = 0.3
    repaired = rotation_only(grid(affine)).affine
    assert np.sign(np.linalg.det(repaired)) == mirror
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    np.testing.assert_allclose(np.linalg.norm(repaired[:3, :3], axis=0), sizes)
    cosines = repaired[:3, :3] / sizes
    np.testing.assert_allclose(cosines.T @ cosines, np.eye(3), atol=1e-12)


def test_what_is_orthonormal_stays_as_it_is():
    sound = grid(np.diag([-1.0, -1, 1, 1]))
    assert rotation_only(sound) is sound


@pytest.fixture
def data(tmp_path):
    """Two cases: one sound, one whose T2 says micrometres, with a label map of floats."""
    for case_id in ("BraTS2021_00000", "BraTS2021_00001"):
        generator = np.random.default_rng(int(case_id[-1]))
        for suffix in ("t1", "t1ce", "t2", "flair", "seg"):
            voxels = generator.integers(100, 999, (6, 6, 6), dtype=np.int16)
            voxels[0] = 0
            if suffix == "seg":
                voxels = np.zeros((6, 6, 6), np.float32)
                voxels[2, 2, : 3 + int(case_id[-1])] = 4
            image = nib.Nifti1Image(voxels, np.diag([1.0, 1, 2, 1]))
            image.header.set_xyzt_units("mm")
            if (suffix, case_id[-1]) == ("t2", "1"):
                image.header.set_xyzt_units("micron")
            (tmp_path / "data/deep" / case_id).mkdir(parents=True, exist_ok=True)
            nib.save(image, tmp_path / "data/deep" / case_id / f"{case_id}_{suffix}.nii.gz")
    return tmp_path / "data"


def test_only_the_broken_case_is_written_with_all_its_files(data, tmp_path):
    assert repair_data_set(check(data), tmp_path / "out") == ["BraTS2021_00001"]
    written = [path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.nii.gz")]
    source = data / "deep/BraTS2021_00001"
    assert sorted(written) == sorted(path.relative_to(data) for path in source.iterdir())
    repaired = nib.load(tmp_path / "out/deep/BraTS2021_00001/BraTS2021_00001_t2.nii.gz")
    assert repaired.header.get_xyzt_units()[0] == "mm"
    assert repaired.header.get_zooms() == (1, 1, 2)
    assert repaired.get_data_dtype() == np.int16


def test_files_without_a_defect_are_copied_byte_by_byte(data, tmp_path):
    repair_data_set(check(data), tmp_path / "out")
    for suffix in ("t1", "t1ce", "flair", "seg"):
        name = f"deep/BraTS2021_00001/BraTS2021_00001_{suffix}.nii.gz"
        assert (tmp_path / "out" / name).read_bytes() == (data / name).read_bytes()


def test_voxels_stay_what_they_were(data, tmp_path):
    repair_data_set(check(data), tmp_path / "out")
    name = "deep/BraTS2021_00001/BraTS2021_00001_t2.nii.gz"
    before, after = (read_volume(folder / name) for folder in (data, tmp_path / "out"))
    np.testing.assert_array_equal(before.data, after.data)


def test_nothing_is_written_where_nothing_is_broken(data, tmp_path):
    alone = data / "deep/BraTS2021_00000"
    assert repair_data_set(check(alone), tmp_path / "out") == []
    assert not (tmp_path / "out").exists()


def test_the_data_set_is_no_place_for_repairs(data):
    with pytest.raises(OutputError, match="it lies inside the data set"):
        repair_data_set(check(data), data / "out")


def test_other_work_is_not_mixed_with_repairs(data, tmp_path):
    (tmp_path / "out").mkdir()
    repair_data_set(check(data), tmp_path / "out")  # an empty folder is fine
    with pytest.raises(OutputExistsError):
        repair_data_set(check(data), tmp_path / "out")


def test_a_file_that_is_cut_after_the_check_is_not_copied(data, tmp_path, monkeypatch):
    read = repair.read_case

    def cut_after(case):
        yield from read(case)
        path = case.images["t1"].path
        path.write_bytes(path.read_bytes()[:-200])

    monkeypatch.setattr(repair, "read_case", cut_after)
    with pytest.raises(UnreadableFileError, match=r"t1.nii.*changed while it was being copied"):
        check(data, fix=tmp_path / "out", workers=0)
    assert not (tmp_path / "out").exists()
