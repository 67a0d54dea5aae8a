"""A data set with one defect at a time: each is named with its file, and repaired if it can be."""

import gzip
import io
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from helpers import REAL, brats, needs_real, save_nifti

SHAPE = (12, 14, 10)
AFFINE = np.array([[-1.0, 0, 0, 6], [0, -1, 0, 7], [0, 0, 1, -5], [0, 0, 0, 1]])  # as BraTS: LPS
ROLES = ("t1", "t1ce", "t2", "flair", "seg")
BROKEN = "BraTS2021_00001"


def run(*words):
    return brats("check", *words)


def write_case(folder, number, *, case_id=None):
    """A ball of a brain with a tumour in it, in every image something else."""
    case_id = case_id or f"BraTS2021_{number:05}"
    generator = np.random.default_rng(number)
    distance = np.linalg.norm(np.indices(SHAPE).T - (np.array(SHAPE) - 1) / 2, axis=-1).T
    for role in ROLES:
        image = generator.integers(100, 999, SHAPE, dtype=np.int16)
        image[distance > 5] = 0
        labels = np.zeros(SHAPE, np.uint8)
        labels[4:8, 5:9, 4:7] = 2
        labels[4:6, 5:8, 4:6] = 1
        labels[5, 6, 4 : 5 + number % 2] = 4
        labels[7, 8, 4 : 4 + number % 3] = 0  # no two cases share a tumour
        save(folder / case_id / f"{case_id}_{role}.nii.gz", labels if role == "seg" else image)


def save(path, data, affine=AFFINE):
    save_nifti(path, data, affine)


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    """Four cases without a defect; not to be changed."""
    folder = tmp_path_factory.mktemp("check") / "sound"
    for number in range(4):
        write_case(folder, number)
    return folder


@pytest.fixture
def data(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "data")


class Broken:
    """The case that a defect is made in, file by file."""

    def __init__(self, data):
        self.data = data

    def path(self, role):
        return self.data / BROKEN / f"{BROKEN}_{role}.nii.gz"

    def voxels(self, role):
        return np.asarray(nib.load(self.path(role)).dataobj)

    def save(self, role, voxels, affine=AFFINE):
        save(self.path(role), voxels, affine)

    def change(self, role, where, value, dtype=None):
        voxels = self.voxels(role).astype(dtype) if dtype else self.voxels(role).copy()
        voxels[where] = value
        self.save(role, voxels)

    def move(self, role, millimetres):
        affine = AFFINE.copy()
        affine[0, 3] += millimetres
        self.save(role, self.voxels(role), affine)

    def header(self, *roles, **fields):
        """Write header fields as they are, which nibabel would repair."""
        for role in roles:
            raw = gzip.decompress(self.path(role).read_bytes())
            header = nib.Nifti1Header.from_fileobj(io.BytesIO(raw), check=False)
            for name, value in fields.items():
                header[name] = value
            self.path(role).write_bytes(gzip.compress(header.binaryblock + raw[348:]))

    def bytes(self, role, content):
        self.path(role).write_bytes(content)

    def shear(self, *roles):
        affine = AFFINE.copy()
        affine[0, 1] = 0.05
        for role in roles:
            image = nib.Nifti1Image(self.voxels(role), AFFINE)
            image.set_qform(AFFINE, code=0)
            image.set_sform(affine, code=2)
            nib.save(image, self.path(role))


def brain_of(broken):
    return broken.voxels("t1") > 0


# What nibabel writes: pixdim 1 1 1, sform code 2 (aligned), qform code 0 where only an affine is
# given. A row: what is done to the case, the rule that names it, the file it is named with, and
# whether it can be repaired.
FIX, NO_FIX = True, False
DEFECTS = {
    # Files
    "an empty file": (lambda c: c.bytes("t1", b""), "unreadable", "t1", NO_FIX),
    "a text file": (lambda c: c.bytes("t2", b"<html>log in</html>"), "unreadable", "t2", NO_FIX),
    "a zipped text file": (
        lambda c: c.bytes("t2", gzip.compress(b"<html>log in</html>" * 99)),
        "unreadable", "t2", NO_FIX,
    ),
    "a file cut short": (
        lambda c: c.bytes("flair", c.path("flair").read_bytes()[:-200]),
        "unreadable", "flair", NO_FIX,
    ),
    "a header without voxels": (
        lambda c: c.bytes("t1", gzip.compress(gzip.decompress(c.path("t1").read_bytes())[:352])),
        "unreadable", "t1", NO_FIX,
    ),
    "voxels cut short and zipped again": (
        lambda c: c.bytes("t1", gzip.compress(gzip.decompress(c.path("t1").read_bytes())[:-999])),
        "unreadable", "t1", NO_FIX,
    ),
    "a flipped bit": (
        lambda c: c.bytes("t1ce", flip_a_bit(c.path("t1ce").read_bytes())),
        "unreadable", "t1ce", NO_FIX,
    ),
    "not zipped under a zipped name": (
        lambda c: c.bytes("t1", gzip.decompress(c.path("t1").read_bytes())), "ending", "t1", FIX,
    ),
    "a truncated label map": (
        lambda c: c.bytes("seg", c.path("seg").read_bytes()[:60]), "unreadable", "seg", NO_FIX,
    ),
    # Dimensions and types
    "a 4D image where 3D is due": (
        lambda c: c.save("t1", np.stack([c.voxels("t1")] * 2, axis=-1)), "unreadable", "t1", NO_FIX,
    ),
    "a slice": (lambda c: c.save("t1", c.voxels("t1")[:, :, 5]), "unreadable", "t1", NO_FIX),
    "a label map of one channel a region": (
        lambda c: c.save("seg", np.stack([c.voxels("seg")] * 3, axis=-1)),
        "unreadable", "seg", NO_FIX,
    ),
    "complex numbers": (
        lambda c: c.save("t2", c.voxels("t2").astype(np.complex64)), "unreadable", "t2", NO_FIX,
    ),
    "an axis of length 0": (
        lambda c: c.header("t1", dim=[3, 12, 0, 10, 1, 1, 1, 1]),
        "unreadable", "t1", NO_FIX,
    ),
    "a type of number that does not exist": (
        lambda c: c.header("t1", datatype=9999),
        "unreadable", "t1", NO_FIX,
    ),
    # Headers
    "a voxel size of 0": (
        lambda c: c.header("t2", pixdim=[1, 0, 1, 1, 0, 0, 0, 0]),
        "voxel-size", "t2", FIX,
    ),
    "a negative voxel size": (
        lambda c: c.header("t2", pixdim=[1, -1, 1, 1, 0, 0, 0, 0]),
        "voxel-size", "t2", FIX,
    ),
    "a voxel size that is no number": (
        lambda c: c.header("t2", pixdim=[1, np.nan, 1, 1, 0, 0, 0, 0]), "voxel-size", "t2", FIX,
    ),
    "a voxel size of 0 in every file": (
        lambda c: c.header(*ROLES, pixdim=[1, 0, 1, 1, 0, 0, 0, 0]), "voxel-size", "t1", FIX,
    ),
    "a flat affine": (lambda c: c.header("t1", srow_x=[0, 0, 0, 0]), "affine", "t1", FIX),
    "an affine that is no number": (
        lambda c: c.header("flair", srow_y=[0, np.nan, 0, 7]),
        "affine", "flair", FIX,
    ),
    "a sheared affine": (lambda c: c.shear("t1ce"), "cosines", "t1ce", FIX),
    "a sheared affine in every file": (lambda c: c.shear(*ROLES), "cosines", "t1", FIX),
    "a voxel size other than the affine's": (
        lambda c: c.header("t1", pixdim=[1, 2, 2, 2, 0, 0, 0, 0]), "header-size", "t1", FIX,
    ),
    "sform and qform apart": (
        lambda c: c.header("t1", qform_code=1, qoffset_x=30), "sform-qform", "t1", FIX,
    ),
    "a qform that is no rotation": (
        lambda c: c.header("t1", qform_code=1, quatern_b=3, quatern_c=3),
        "qform-rotation", "t1", FIX,
    ),
    "no orientation": (
        lambda c: c.header("t2", sform_code=0, qform_code=0),
        "orientation", "t2", FIX,
    ),
    "no orientation in any file": (
        lambda c: c.header(*ROLES, sform_code=0, qform_code=0), "orientation", "t1", NO_FIX,
    ),
    "micrometres": (lambda c: c.header("t1", xyzt_units=3), "unit", "t1", FIX),
    "metres in every file": (lambda c: in_metres(c, *ROLES), "unit", "t1", FIX),
    "voxels of a thousandth": (
        lambda c: [c.save(r, c.voxels(r), shrunk(0.001)) for r in ROLES],
        "spacing", "t1", NO_FIX,
    ),
    # Grids
    "another shape": (lambda c: c.save("t2", c.voxels("t2")[:-1]), "shape", "t2", NO_FIX),
    "a label map of another shape": (
        lambda c: c.save("seg", c.voxels("seg")[:, :-1]),
        "shape", "seg", NO_FIX,
    ),
    "an image 5 mm off": (lambda c: c.move("flair", 5), "place", "flair", NO_FIX),
    "a label map 3 mm off": (lambda c: c.move("seg", 3), "place", "seg", NO_FIX),
    "a mirrored affine": (
        lambda c: c.save("t1", c.voxels("t1"), np.diag([-1, 1, 1, 1]) @ AFFINE),
        "place", "t1", NO_FIX,
    ),
    "an image 5 mm off that says micrometres": (
        lambda c: [c.move("t2", 5), c.header("t2", xyzt_units=3)], "place", "t2", NO_FIX,
    ),
    "one file in metres": (lambda c: in_metres(c, "t2"), "place", "t2", FIX),
    # Voxels
    "voxels that are no numbers": (
        lambda c: c.change("t1", (slice(0, 2), 0, 0), np.nan, np.float32), "not-finite", "t1", FIX,
    ),
    "infinite voxels": (
        lambda c: c.change("t2", (6, 7, 5), np.inf, np.float32),
        "not-finite", "t2", FIX,
    ),
    "an empty image": (lambda c: c.save("t1ce", c.voxels("t1ce") * 0), "empty", "t1ce", NO_FIX),
    "a mask for an image": (
        lambda c: c.save("t1", brain_of(c).astype(np.int16)),
        "few-values", "t1", NO_FIX,
    ),
    "a label map for an image": (
        lambda c: c.save("t1", c.voxels("seg")),
        "few-values", "t1", NO_FIX,
    ),
    "values wrapped round": (lambda c: c.save("t2", wrapped(c.voxels("t2"))), "wrapped", "t2", FIX),
    "T1 and T1ce with the same voxels": (
        lambda c: c.save("t1ce", c.voxels("t1")),
        "same-voxels", "t1ce", NO_FIX,
    ),
    "T2 and FLAIR with the same voxels, in another type": (
        lambda c: c.save("flair", c.voxels("t2").astype(np.float32)),
        "same-voxels", "flair", NO_FIX,
    ),
    "a modality of another brain": (
        lambda c: c.save("t2", np.roll(c.voxels("t2"), 4, 0)),
        "registration", "t2", NO_FIX,
    ),
    # Labels
    "a label of 2.9999": (
        lambda c: c.change("seg", (4, 5, 4), 2.9999, np.float32),
        "rounding", "seg", NO_FIX,
    ),
    "labels of 3.9999 for 4": (
        lambda c: c.save("seg", np.where(c.voxels("seg") == 4, 3.9999, c.voxels("seg"))),
        "rounding", "seg", FIX,
    ),
    "probabilities for labels": (
        lambda c: c.save("seg", c.voxels("seg") / 7),
        "not-whole", "seg", NO_FIX,
    ),
    "a negative label": (
        lambda c: c.change("seg", (4, 5, 4), -1, np.int16),
        "range", "seg", NO_FIX,
    ),
    "a label of 300": (lambda c: c.change("seg", (4, 5, 4), 300, np.int16), "range", "seg", NO_FIX),
    "a label that no year has": (lambda c: c.change("seg", (4, 5, 4), 7), "labels", "seg", NO_FIX),
    "labels of another year": (
        lambda c: c.save("seg", np.where(c.voxels("seg") == 4, 3, c.voxels("seg"))),
        "labels", "seg", NO_FIX,
    ),
    "a label that is no number": (
        lambda c: c.change("seg", (0, 0, 0), np.nan, np.float32),
        "not-finite", "seg", FIX,
    ),
    "a tumour outside the brain": (
        lambda c: c.save("seg", np.roll(c.voxels("seg"), 5, 1)),
        "outside", "seg", NO_FIX,
    ),
    "an MR image for a label map": (
        lambda c: c.save("seg", c.voxels("t1")),
        "range", "seg", NO_FIX,
    ),
    # Cases
    "no T1ce": (lambda c: c.path("t1ce").unlink(), "missing", None, NO_FIX),
    "a file of another case": (
        lambda c: c.path("t2").rename(c.path("t2").with_name("BraTS2021_00009_t2.nii.gz")),
        "missing", None, NO_FIX,
    ),
    "another case's images": (
        lambda c: shutil.copy(str(c.path("t2")).replace("00001", "00000"), c.path("t2")),
        "twin", "t2", NO_FIX,
    ),
    "another case's label map": (
        lambda c: shutil.copy(str(c.path("seg")).replace("00001", "00000"), c.path("seg")),
        "twin", "seg", NO_FIX,
    ),
}  # fmt: skip


def flip_a_bit(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def shrunk(factor):
    return np.diag([factor, factor, factor, 1]) @ AFFINE


def in_metres(broken, *roles):
    for role in roles:
        broken.save(role, broken.voxels(role), shrunk(0.001))
    broken.header(*roles, xyzt_units=1)


def wrapped(voxels):
    """An image that reached 40,000 before it was stored as int16."""
    high = voxels.astype(np.int64) * 45
    return high.astype(np.uint16).view(np.int16)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", DEFECTS)
def test_every_defect_is_named_and_repaired_if_it_can_be(name, data, tmp_path):
    break_it, rule, role, repairs = DEFECTS[name]
    broken = Broken(data)
    break_it(broken)
    before = contents(data)

    result = run(data, "--json", "--fix", tmp_path / "repaired")
    report = json.loads(result.stdout)
    case = next(case for case in report["cases"] if case["id"] == BROKEN)
    file = data / BROKEN if role is None else broken.path(role)
    found = [(each["rule"], each["file"]) for each in case["findings"] if each["level"] == "error"]
    assert (rule, str(file)) in found
    assert case["level"] == "error"
    assert contents(data) == before

    assert result.exit_code == (0 if repairs else 3)
    if repairs:
        repaired = run(tmp_path / "repaired", "--json")
        assert repaired.exit_code == 0, repaired.stdout
        (again,) = json.loads(repaired.stdout)["cases"]
        assert (again["id"], again["labels"]) == (BROKEN, "brats2020")
        assert again["level"] == "ok"
    else:
        error, hint = result.stderr.splitlines()[-2:]
        assert error.startswith("error: ")
        assert hint.startswith(" hint: ")


def test_the_corpus_is_large_enough():
    assert len(DEFECTS) >= 40
    assert sum(repairs for *_, repairs in DEFECTS.values()) >= 15


def test_nothing_is_wrong_with_sound_cases(sound):
    result = run(sound, "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 0
    assert [case["level"] for case in report["cases"]] == ["ok"] * 4
    assert report["summary"]["labels"] == {"brats2020": 4}


def test_zipped_under_an_unzipped_name_is_repaired_with_the_right_name(data, tmp_path):
    path = Broken(data).path("t1")
    path.rename(path.with_suffix(""))
    result = run(data, "--fix", tmp_path / "repaired")
    assert result.exit_code == 0
    assert "_t1.nii: it is gzipped, but its name does not end in .gz" in result.stdout
    assert (tmp_path / "repaired" / BROKEN / path.name).exists()
    assert run(tmp_path / "repaired").exit_code == 0


# --- what concerns more than one case ----------------------------------------------------------


@pytest.mark.parametrize("labels", [2, 4])
def test_labels_of_most_of_the_brain_are_no_tumour(data, labels):
    broken = Broken(data)
    broken.save("seg", np.where(brain_of(broken), labels, 0).astype(np.uint8))
    result = run(data)
    assert "_seg.nii.gz: its labels cover 100 % of the brain: are they of tissues?" in result.stdout


def test_one_id_in_two_places_is_named(data):
    shutil.copytree(data / BROKEN, data / "copy" / BROKEN)
    result = run(data)
    assert result.exit_code == 3
    assert f"case {BROKEN} was found in two places" in result.stdout


def test_two_files_for_one_modality_are_named(data):
    path = data / BROKEN / f"{BROKEN}_t1.nii"
    save(path, np.zeros(SHAPE, np.int16))
    result = run(data)
    assert result.exit_code == 3
    assert f"case {BROKEN} has two t1 files" in result.stdout


def test_a_case_under_two_ids_is_named(data):
    write_case(data, 2, case_id="BraTS2021_00777")
    result = run(data, "--json")
    cases = {case["id"]: case for case in json.loads(result.stdout)["cases"]}
    messages = [each["message"] for each in cases["BraTS2021_00777"]["findings"]]
    assert result.exit_code == 3
    assert any(m.startswith("the same t1 voxels as case BraTS2021_00002") for m in messages)
    assert any(m.startswith("the same tumour as case BraTS2021_00002") for m in messages)


def test_labels_without_a_scheme_need_the_flag(tmp_path):
    for number in range(2):
        write_case(tmp_path, number, case_id=f"mine_{number}")
        path = tmp_path / f"mine_{number}/mine_{number}_seg.nii.gz"
        labels = np.asarray(nib.load(path).dataobj)
        save(path, np.where(labels == 4, 3, labels).astype(np.uint8))
    result = run(tmp_path)
    assert result.exit_code == 3
    assert "which fit several schemes: brats2023, msd, nnunet; choose one with --labels" in (
        result.stdout
    )
    assert run(tmp_path, "--labels", "brats2023").exit_code == 0


def test_labels_of_another_year_are_repaired_once_the_flag_tells_them(data, tmp_path):
    broken = Broken(data)
    DEFECTS["labels of another year"][0](broken)
    expected = np.asarray(nib.load(str(broken.path("seg"))).dataobj)
    alone = tmp_path / "alone"
    shutil.copytree(data / BROKEN, alone / BROKEN)
    result = run(alone, "--labels", "brats2023", "--fix", tmp_path / "repaired")
    assert result.exit_code == 0
    assert "it has labels of brats2023, but its name is of brats2020" in result.stdout
    repaired = nib.load(tmp_path / f"repaired/{BROKEN}/{BROKEN}_seg.nii.gz")
    np.testing.assert_array_equal(
        np.asarray(repaired.dataobj), np.where(expected == 3, 4, expected)
    )
    assert run(tmp_path / "repaired").exit_code == 0


def test_channels_without_a_dataset_json_are_named(tmp_path):
    save(tmp_path / "imagesTr/case_0000.nii.gz", np.zeros(SHAPE))
    result = run(tmp_path)
    assert result.exit_code == 3
    assert "case_0000.nii.gz is channel 0 of a case, but no dataset.json" in result.stdout


def test_four_channels_need_four_channels(tmp_path):
    save(tmp_path / "imagesTr/BRATS_001.nii.gz", np.ones((*SHAPE, 3), np.int16))
    result = run(tmp_path)
    assert result.exit_code == 3
    assert "BRATS_001.nii.gz: it has 3 channels; 4 are expected" in result.stdout


def test_the_decathlons_files_are_repaired_as_they_are_laid_out(sound, tmp_path):
    files = [sound / BROKEN / f"{BROKEN}_{role}.nii.gz" for role in ("flair", "t1", "t1ce", "t2")]
    images = np.stack([np.asarray(nib.load(file).dataobj) for file in files], axis=-1)
    images = images.astype(np.float32)
    images[0, 0, 0] = np.nan
    labels = np.asarray(nib.load(sound / BROKEN / f"{BROKEN}_seg.nii.gz").dataobj)
    save(tmp_path / "data/imagesTr/BRATS_001.nii.gz", images)
    save(tmp_path / "data/labelsTr/BRATS_001.nii.gz", np.where(labels == 4, 3, labels))
    (tmp_path / "data/dataset.json").write_text('{"name": "BRATS"}')
    result = run(tmp_path / "data", "--fix", tmp_path / "repaired")
    assert result.exit_code == 0
    assert (tmp_path / "repaired/dataset.json").exists()
    repaired = np.asarray(nib.load(tmp_path / "repaired/imagesTr/BRATS_001.nii.gz").dataobj)
    np.testing.assert_array_equal(repaired, np.nan_to_num(images))
    assert run(tmp_path / "repaired").exit_code == 0


# --- warnings ----------------------------------------------------------------------------------


def test_less_than_half_a_voxel_is_a_warning_that_is_repaired(data, tmp_path):
    Broken(data).move("t2", 0.3)
    result = run(data, "--fix", tmp_path / "repaired")
    assert result.exit_code == 0
    assert "warning: " in result.stdout
    assert "_t2.nii.gz: its corners are 0.3 mm from those of" in result.stdout
    repaired = nib.load(tmp_path / f"repaired/{BROKEN}/{BROKEN}_t2.nii.gz")
    np.testing.assert_allclose(repaired.affine, AFFINE, atol=1e-6)
    assert "warning" not in run(tmp_path / "repaired").stdout.replace("with warnings", "")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda c: c.path("seg").unlink(), "no label map; 3 of 4 cases have one"),
        (lambda c: c.save("seg", c.voxels("seg") * 0), "no tumour: every voxel is 0"),
        (
            lambda c: [c.change(role, c.voxels(role) == 0, 50) for role in ROLES[:4]],
            "its background is 50, not 0: brats takes it as 0",
        ),
        (lambda c: c.change("seg", (0, 0, 0), 2), "of its tumour lies outside the brain"),
    ],
)
def test_what_may_be_meant_is_a_warning(data, break_it, message):
    break_it(Broken(data))
    result = run(data)
    assert result.exit_code == 0
    assert any(
        line.startswith("warning: ") and message in line for line in result.stdout.splitlines()
    )


def test_a_label_map_without_images_is_a_warning(data):
    save(data / "left_over_seg.nii.gz", np.zeros(SHAPE, np.uint8))
    result = run(data)
    assert result.exit_code == 0
    assert "left_over_seg.nii.gz: a label map without images" in result.stdout


# --- the command -------------------------------------------------------------------------------


def test_the_worst_case_comes_first(data):
    Broken(data).path("t1").unlink()
    lines = run(data).stdout.splitlines()
    assert lines[1].split()[:2] == [BROKEN, "error"]
    assert lines[2].split()[:2] == ["BraTS2021_00000", "ok"]


def test_the_summary_tells_the_data_set(sound):
    out = run(sound).stdout
    assert "4 of 4 patients, 0 of whom were scanned more than once" in out
    assert "12 x 14 x 10 (4)" in out
    assert "1 x 1 x 1 (4)" in out
    assert "brats2020 (4)" in out


def test_repairs_are_offered_with_their_number(data):
    broken = Broken(data)
    broken.header("t2", xyzt_units=3)
    result = run(data)
    assert result.exit_code == 3
    assert result.stderr.splitlines() == [
        f"error: 1 of 4 cases in {data} have errors",
        " hint: --fix OUT writes repaired copies of 1 of them",
    ]


def test_repairs_go_nowhere_near_the_originals(data, tmp_path):
    Broken(data).header("t2", xyzt_units=3)
    before = contents(data)
    inside = run(data, "--fix", data / "repaired")
    assert inside.exit_code == 3
    assert "it lies inside the data set" in inside.stderr
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").touch()
    full = run(data, "--fix", tmp_path / "full")
    assert full.exit_code == 3
    assert "full exists already" in full.stderr
    assert contents(data) == before


def test_a_single_case_is_checked_and_repaired_under_its_name(data, tmp_path):
    Broken(data).header("t2", xyzt_units=3)
    result = run(data / BROKEN, "--fix", tmp_path / "repaired")
    assert result.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "repaired" / BROKEN).iterdir()) == sorted(
        f"{BROKEN}_{role}.nii.gz" for role in ROLES
    )


@pytest.mark.slow
def test_several_processes_find_the_same(data):
    Broken(data).path("t1").unlink()
    alone, together = (run(data, "--json", "--workers", n).stdout for n in (1, 2))
    assert alone == together


def test_a_scheme_that_does_not_exist_is_an_error(data):
    result = run(data, "--labels", "brats1999")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith("error: there is no label scheme 'brats1999'")


def test_a_folder_without_cases_is_an_error(tmp_path):
    result = run(tmp_path)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith(f"error: no cases in {tmp_path}")


# What ../shared/data/README.md calls worth knowing.
WORTH_KNOWING = {
    "BraTS2021_01477": {"no-et", "coarse"},
    "BraTS2021_01484": {"no-et"},
    "BraTS2021_01476": {"little-et"},
    "BraTS2021_01657": {"sform-code"},
    "BraTS2021_01659": {"sform-code"},
    "BraTS2021_01482": {"clipped"},
    "BraTS-GLI-00000-000": {"float-labels", "sform-code"},
}


@pytest.mark.real
@pytest.mark.slow
@needs_real
def test_the_real_cases_are_sound_and_what_is_worth_knowing_is_told():
    result = run(REAL / "cases", "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 0
    found = {case["id"]: {each["rule"] for each in case["findings"]} for case in report["cases"]}
    assert {case_id: found[case_id] for case_id in WORTH_KNOWING} == WORTH_KNOWING
    assert report["summary"]["labels"] == {"brats2020": 11, "brats2023": 1}
    # README: Brats18_2013_2_1 has 4,514 + 34,894 + 21,677 voxels of 1 mm3.
    case = next(case for case in report["cases"] if case["id"] == "Brats18_2013_2_1")
    assert case["regions_mm3"] == {"WT": 61085.0, "TC": 26191.0, "ET": 21677.0}
