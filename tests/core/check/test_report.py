"""The parts of the check on their own; tests/commands/test_check_command.py has the corpus."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import write_case

from brats_cli.core.check.report import (
    CaseReport,
    DataReport,
    Intensities,
    check_data_set,
    examine,
    reference_of,
    summarize,
)
from brats_cli.core.check.rules import (
    ERROR,
    IMAGE_RULES,
    NOTE,
    WARNING,
    Finding,
    compare,
    not_orthonormal,
    print_of,
)
from brats_cli.core.data.finding import case_at
from brats_cli.core.images.grid import Grid, Volume


def scan(data, affine=None, *, codes=(1, 1)):
    """A scan as it would be read from a sound file."""
    image = nib.Nifti1Image(data, np.eye(4) if affine is None else affine)
    image.set_sform(image.affine, code=codes[0])
    image.set_qform(image.affine, code=codes[1])
    x, y, z = data.shape[:3]
    grid = Grid((x, y, z), image.affine, codes, image.get_qform())
    return Volume(data, grid, Path("a.nii"), image.header)


def grid(affine):
    return Grid((3, 3, 3), affine)


def moved(x):
    affine = np.eye(4)
    affine[0, 3] = x
    return affine


CUBE = np.arange(27, dtype=np.int16).reshape(3, 3, 3)


# --- one file ----------------------------------------------------------------------------------


def test_intensities_are_those_of_the_brain():
    data = np.concatenate([np.zeros(1000), np.arange(1, 102)]).reshape(-1, 1, 1).astype(np.int16)
    # 101 values from 1 to 101: the percentiles fall on values.
    assert Intensities.of(scan(data)) == Intensities(low=2, median=51, high=100, largest=101)


def test_an_empty_image_has_no_intensities():
    assert Intensities.of(scan(CUBE * 0)).largest == 0


def test_equal_voxels_have_one_fingerprint_in_any_type():
    assert print_of(scan(CUBE)) == print_of(scan(CUBE.astype(np.float64)))
    assert print_of(scan(CUBE)) == print_of(scan(np.asfortranarray(CUBE)[...].copy("C")))


@pytest.mark.parametrize(
    "other", [CUBE + 1, np.roll(CUBE, 1), CUBE[::-1].copy(), CUBE.reshape(1, 3, 9)]
)
def test_other_voxels_or_places_have_another(other):
    assert print_of(scan(CUBE)) != print_of(scan(other))


def test_a_rotation_is_orthonormal_and_a_shear_is_not():
    turn = np.eye(4)
    turn[:2, :2] = [[0.6, -0.8], [0.8, 0.6]]
    assert not_orthonormal(grid(turn @ np.diag([1, 2, 3, 1]))) == pytest.approx(0, abs=1e-12)
    assert not_orthonormal(grid(np.diag([-1.0, 1, 1, 1]))) == 0  # a mirror is orthonormal too
    shear = np.eye(4)
    shear[0, 1] = 0.75  # the second column is (0.75, 1, 0) / 1.25, its product with the first 0.6
    assert not_orthonormal(grid(shear)) == pytest.approx(0.6)


# --- one case ----------------------------------------------------------------------------------


def test_the_grid_of_most_is_the_reference():
    scans = {"t1": scan(CUBE, moved(5)), "t1ce": scan(CUBE), "t2": scan(CUBE)}
    assert reference_of(scans) is scans["t1ce"]


def test_a_sound_header_is_worth_more_than_a_majority():
    scans = {
        "t1": scan(CUBE, codes=(0, 0)),
        "t1ce": scan(CUBE, codes=(0, 0)),
        "t2": scan(CUBE, moved(5)),
    }
    assert reference_of(scans) is scans["t2"]


def test_there_may_be_no_reference():
    assert reference_of({}) is None


def write(folder, case_id, *, shape=(6, 6, 6), lacks=()):
    labels = np.zeros(shape, np.uint8)
    labels[2, 2, : 2 + int(case_id[-1])] = (1, 2, *[3] * int(case_id[-1]))
    seed = sum(map(ord, case_id))
    spacing = np.diag([1.0, 1, 2, 1])
    write_case(folder, case_id, labels, seed=seed, lacks=lacks, affine=spacing, joined_by="-")


def test_a_case_is_measured(tmp_path):
    write(tmp_path, "BraTS-SSA-00000-002")
    report = examine(case_at(tmp_path))
    assert (report.shape, report.spacing_mm) == ((6, 6, 6), (1.0, 1.0, 2.0))
    assert (report.level, report.findings) == ("ok", ())
    assert report.count.voxels == {0: 212, 1: 1, 2: 1, 3: 2}
    assert report.count.voxel_mm3 == 2.0


def test_volumes_follow_once_the_scheme_is_known(tmp_path):
    write(tmp_path, "BraTS-SSA-00000-002")
    (case,) = check_data_set(tmp_path).cases
    assert case.scheme.name == "brats2023"
    # NCR, ED and ET have 1, 1 and 2 voxels of 2 mm3.
    assert case.regions_mm3 == {"WT": 8.0, "TC": 6.0, "ET": 4.0}
    (little,) = case.findings
    assert (little.level, little.message) == (NOTE, "very little enhancing tumour (4 mm3)")


def test_a_case_that_lacks_an_image_is_measured_all_the_same(tmp_path):
    write(tmp_path, "BraTS-SSA-00000-002", lacks=("t1ce", "t2", "flair"))
    (case,) = check_data_set(tmp_path).cases
    assert [finding.message for finding in case.findings if finding.level == ERROR] == [
        "no t1ce, t2, flair"
    ]
    assert case.regions_mm3["WT"] == 8.0


# --- reports -----------------------------------------------------------------------------------


def report(*levels, repair=""):
    findings = tuple(Finding(level, "rule", "message", repair=repair) for level in levels)
    return CaseReport("id", "patient", ()).with_findings(*findings)


@pytest.mark.parametrize(
    ("levels", "worst"),
    [((), "ok"), ((NOTE,), "ok"), ((NOTE, WARNING), WARNING), ((NOTE, WARNING, ERROR), ERROR)],
)
def test_a_case_is_as_bad_as_its_worst_finding(levels, worst):
    assert report(*levels).level == worst
    assert [finding.level for finding in report(*levels).findings] == list(reversed(levels))


def test_a_case_can_be_repaired_if_no_error_is_left():
    repairs, does_not = (Finding(ERROR, "rule", "message", repair=r) for r in ("header", ""))
    bare = CaseReport("id", "patient", ())
    assert bare.with_findings(repairs).repairable
    assert not bare.with_findings(repairs, does_not).repairable
    assert not bare.with_findings(Finding(WARNING, "rule", "message")).repairable
    assert not bare.repairable


def test_errors_are_counted_by_case_and_elsewhere(tmp_path):
    data = DataReport(
        tmp_path,
        (report(ERROR, ERROR), report(WARNING), report()),
        (Finding(ERROR, "clash", "message"), Finding(WARNING, "stray", "message")),
    )
    assert (data.errors, data.count(WARNING), data.count("ok")) == (2, 1, 1)


def test_the_summary_tallies_the_data_set(tmp_path):
    write(tmp_path, "BraTS-SSA-00000-001")
    write(tmp_path, "BraTS-SSA-00000-002")
    write(tmp_path, "BraTS-SSA-00001-000", shape=(6, 6, 7))
    summary = summarize(check_data_set(tmp_path))
    assert (summary["cases"], summary["patients"]) == (3, 2)
    assert summary["patients_with_several_visits"] == 1
    assert summary["grids"] == {"6 x 6 x 6": 2, "6 x 6 x 7": 1}
    assert summary["spacings_mm"] == {"1 x 1 x 2": 3}
    assert summary["labels"] == {"brats2023": 3}
    assert summary["without_et"] == 1
    # 2, 3 and 4 voxels of 2 mm3
    assert summary["regions_mm3"]["WT"] == {"min": 4.0, "median": 6.0, "max": 8.0}
    assert summary["intensities"]["t1"]["largest"]["max"] <= 998


def test_a_resection_cavity_in_one_case_tells_the_year_of_all(tmp_path):
    write(tmp_path, "BraTS-MET-00000-001")
    write(tmp_path, "BraTS-MET-00001-002")
    path = tmp_path / "BraTS-MET-00001-002/BraTS-MET-00001-002-seg.nii.gz"
    labels = np.asarray(nib.load(path).dataobj).copy()
    labels[4, 4, 4] = 4
    nib.save(nib.Nifti1Image(labels, np.diag([1.0, 1, 2, 1])), path)
    checked = check_data_set(tmp_path)
    assert [case.scheme.name for case in checked.cases] == ["brats2024", "brats2024"]
    assert checked.cases[1].regions_mm3["RC"] == 2.0


def test_progress_is_reported(tmp_path):
    write(tmp_path, "BraTS-SSA-00000-001")
    write(tmp_path, "BraTS-SSA-00001-002")
    seen = []
    check_data_set(tmp_path, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


# --- limits ------------------------------------------------------------------------------------


def brain(start=0):
    """1,000 voxels of a grid of 20 x 10 x 20."""
    data = np.zeros((20, 10, 20))
    data[start : start + 10, :, 5:15] = np.random.default_rng(0).uniform(1, 9, (10, 10, 10))
    return data


def found_by_comparing(label=None, **images):
    volumes = {role: scan(data) for role, data in images.items()}
    if label is not None:
        volumes["label"] = scan(label)
    return {each.rule: each.level for each in compare(volumes, next(iter(volumes.values())))}


def labelled(inside, outside):
    """So many voxels of tumour in the brain and beside it."""
    label = np.zeros((20, 10, 20), np.uint8)
    for places, count in ((brain() != 0, inside), (brain() == 0, outside)):
        label[tuple(np.argwhere(places)[:count].T)] = 1
    return label


@pytest.mark.parametrize(
    ("inside", "outside", "findings"),
    [
        (100, 0, {}),
        (95, 5, {"outside": WARNING}),
        (94, 6, {"outside": ERROR}),
        (600, 0, {}),
        (601, 0, {"tissues": WARNING}),
    ],
)
def test_a_tumour_lies_in_the_brain_and_is_a_part_of_it(inside, outside, findings):
    assert found_by_comparing(labelled(inside, outside), t1=brain()) == findings


@pytest.mark.parametrize(("shift", "findings"), [(2, {}), (3, {"registration": ERROR})])
def test_brains_of_one_case_overlap_by_four_fifths(shift, findings):
    # Of ten slices 8 or 7 are shared: a Dice of 0.8 or 0.7.
    assert found_by_comparing(t1=brain(), t2=brain(shift) * 2) == findings


@pytest.mark.parametrize(
    ("name", "odd", "count", "is_noted"),
    [
        ("negative", -1, 100, False),
        ("negative", -1, 101, True),
        ("coarse", 401, 1, False),
        ("coarse", 400, 1, True),
    ],
)
def test_a_hundredth_of_negative_voxels_and_400_grey_levels_are_noted(name, odd, count, is_noted):
    data = np.tile(np.arange(1, 101, dtype=np.int16), 100)
    data[:count] = odd
    if name == "negative":
        data[-1] = 1000
    [rule] = [each for each in IMAGE_RULES if each.name == name]
    assert bool(list(rule.find(scan(data.reshape(100, 10, 10))))) is is_noted


@pytest.mark.parametrize(("voxels", "is_little"), [(499, True), (500, False)])
def test_enhancing_tumour_below_500_mm3_is_little(tmp_path, voxels, is_little):
    labels = np.full((12, 12, 12), 2, np.uint8)
    labels[:2] = 0
    labels.reshape(-1)[-voxels:] = 4
    write_case(tmp_path, "BraTS2021_00000", labels, seed=0)
    [case] = check_data_set(tmp_path, workers=0).cases
    assert ("little-et" in {finding.rule for finding in case.findings}) is is_little
