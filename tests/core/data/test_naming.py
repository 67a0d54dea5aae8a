from pathlib import Path

import pytest

from brats_cli.core.data.naming import (
    case_id_of,
    lies_beside,
    naming_of,
    parse_name,
    patient_of,
    schemes_by_name,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("BraTS2021_00006_t1ce", ("BraTS2021_00006", "t1ce")),
        ("BraTS-GLI-00000-000-t2W", ("BraTS-GLI-00000-000", "t2")),
        ("TCGA-02-0006_1996.08.23_t1Gd", ("TCGA-02-0006_1996.08.23", "t1ce")),
        ("FLAIR", ("", "flair")),
        ("W39_1998.09.19_Segm", ("W39_1998.09.19", "label")),
        ("BRATS_001", ("BRATS_001", "")),
        ("scant1", ("scant1", "")),  # no joint before it
        ("x_t1_brain", ("x_t1_brain", "")),
        ("x_t1_t2", ("x_t1", "t2")),
    ],
)
def test_a_name_is_an_id_and_a_role(name, expected):
    assert parse_name(name) == expected


@pytest.mark.parametrize(
    ("path", "case_id"),
    [
        ("a/BraTS2021_00006_seg.nii.gz", "BraTS2021_00006"),
        ("a/BraTS2021_00006.nii.gz", "BraTS2021_00006"),
        ("a/patient_7/seg.nii", "patient_7"),
        ("a/case_0001.nii.gz", "case_0001"),  # not channel 1 of `case`
    ],
)
def test_the_id_of_a_label_map(path, case_id):
    assert case_id_of(Path(path)) == case_id


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Brats17_TCIA_248_1", "Brats18_TCIA09_248_1"),  # a year later, with the site's number
        ("Brats18_2013_2_1", "BraTS19_2013_2_2"),
        ("BraTS-GLI-00005-000", "BraTS-GLI-00005-101"),
        ("TCGA-02-0006_1996.08.23", "TCGA-02-0006_1997.01.01"),
        ("UPENN-GBM-00001_11", "UPENN-GBM-00001_21"),
        ("sub-01_ses-1", "sub-01_ses-2"),
        ("BraTS-MEN-RT-0001-1", "BraTS-MEN-RT-0001-2"),
    ],
)
def test_visits_of_one_patient(first, second):
    assert patient_of(first).lower() == patient_of(second).lower()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("BraTS2021_00000", "BraTS2021_00001"),
        ("BraTS20_Training_001", "BraTS20_Validation_001"),
        ("BraTS-GLI-00005-000", "BraTS-MET-00005-000"),
        ("BraTS-GLI-00005-000", "BraTS-GLI-00050-000"),
        ("Brats18_2013_2_1", "Brats18_2013_20_1"),
        ("mine_1", "mine_2"),
    ],
)
def test_different_patients(first, second):
    assert patient_of(first).lower() != patient_of(second).lower()


def test_the_grid_settles_the_scheme_of_gliomas_only():
    def names(case_id, shape):
        return [scheme.name for scheme in schemes_by_name(case_id, shape)]

    assert names("BraTS-GLI-00000-000", (182, 218, 182)) == ["brats2024"]
    assert names("BraTS-GLI-00000-000", (240, 240, 155)) == ["brats2023"]
    assert names("BraTS-GLI-00000-000", None) == ["brats2023", "brats2024"]
    assert names("BraTS-MET-00000-000", (240, 240, 155)) == ["brats2023", "brats2024"]
    assert names("anything", (240, 240, 155)) == []


def test_every_id_has_a_row():
    assert naming_of("x").name == "other"
    assert naming_of("line\nbreak").name == "other"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("A_uncertainty", True), ("A_unc_core", True), ("A_unc_edema", False), ("A_seg", False)],
)
def test_maps_of_predict_are_known_by_their_names(name, expected):
    assert lies_beside(name) is expected
